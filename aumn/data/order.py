"""Which video comes when: a pure function of (seed, epoch), so that a run resumes at any step by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """An epoch shows each of `count` videos once, in an order of its own.

    With `shard_N`, the tar of each video, tars are shuffled, and then the videos within each `window` of them, so that
    few tars are read from at a time; without it any video may come next to any.
    """

    seed: int
    count: int
    shard_N: np.ndarray | None = None
    window: int = 1

    def of(self, epoch: int) -> np.ndarray:
        """The videos' numbers, in the epoch's order."""
        return _shuffled(self, epoch)


@lru_cache(maxsize=2)
def _shuffled(order: EpochOrder, epoch: int) -> np.ndarray:
    random = np.random.default_rng(hash63("order", order.seed, epoch))
    if order.shard_N is None:
        return random.permutation(order.count)
    shards, number_N = np.unique(order.shard_N, return_inverse=True)
    window_N = random.permutation(len(shards))[number_N] // order.window
    found: np.ndarray = np.lexsort((random.random(order.count), window_N))
    return found


def hash63(*key: object) -> int:
    """63 bits of blake2b over the key: the same on every machine, unlike Python's own `hash`."""
    digest = blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
