"""How a bank's first rank gets the others' rows for a checkpoint: block by block, so that no rank ever holds all.

The first one asks for rows of a tensor by its number, and the rank that holds them sends them, from a thread of its own
while it trains on. Whatever becomes of the checkpoint, it is asked no more after `END`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from aumn.records import Rows, own_rows
from aumn.runtime.ranks import Ranks

BLOCK_BYTES = 1 << 24
END = -1


def shared_rows(own: Tensor, number: int, count: int, bank: Ranks) -> Rows:
    """Of a tensor of so many rows, the `number`th that is shared out."""
    shape = (count, *own.shape[1:])
    like = own.new_empty((0, *own.shape[1:]), device="cpu")
    rest = partial(_fetch, like, number, count, bank)
    return Rows(own, shape, rest, partial(_end, bank), partial(_serve, bank))


def _fetch(like: Tensor, number: int, count: int, bank: Ranks) -> Iterator[Tensor]:
    size = max(1, BLOCK_BYTES // max(1, like[:0].new_empty(1, *like.shape[1:]).nbytes))
    for place in range(1, bank.size):
        rows = own_rows(count, place, bank.size)
        held = rows.stop - rows.start
        for start in range(0, held, size):
            stop = min(start + size, held)
            bank.send(torch.tensor([number, start, stop]), place)
            yield bank.receive(like.new_empty(stop - start, *like.shape[1:]), place)


def _end(bank: Ranks) -> None:
    for place in range(1, bank.size):
        bank.send(torch.tensor([END, 0, 0]), place)


def _serve(bank: Ranks, tensors: Sequence[Tensor]) -> None:
    while True:
        number, start, stop = bank.receive(torch.empty(3, dtype=torch.int64), 0).tolist()
        if number == END:
            return
        bank.send(tensors[number][start:stop].contiguous(), 0)
