"""Memory for batches that is used again and again."""

from __future__ import annotations

import math
import weakref
from collections import deque
from contextlib import suppress

import torch
from torch import Tensor


class Buffers:
    """Tensors over blocks of memory; a block serves anew when the last tensor over it is gone, whoever held it.

    A fresh block of tens of megabytes costs a page fault every 4 KiB, which takes longer than filling it: reading was
    six times slower without this. A block too small for a request makes way for one as large as any asked for so far:
    with batches of varying size, all end up as large as the largest. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque()  # its append and pop are atomic
        self._largest = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the host."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        self._largest = max(self._largest, size)
        block = torch.empty(0, dtype=torch.uint8)
        with suppress(IndexError):  # none is free
            block = self._free.pop()
        if len(block) < size:
            block = torch.empty(self._largest, dtype=torch.uint8)
        lease = block.numpy()  # a new object each time, kept alive by the tensors made from it and by nothing else
        weakref.finalize(lease, self._free.append, block).atexit = False
        return torch.from_numpy(lease)[:size].view(dtype).view(shape)
