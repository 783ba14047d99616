"""Which video comes when: a pure function of (seed, epoch), so that a run resumes at any step by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

import numpy as np


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """An epoch shows each of `count` videos once, in an order of its own.

    With `shard_N`, the tar of each video, tars are shuffled, and then the videos within each `window` of them, so that
    few tars are read from at a time; without it any video may come next to any. `of_set` tells sets of one seed apart.
    """

    seed: int
    count: int
    shard_N: np.ndarray | None = None
    window: int = 1
    of_set: tuple[int, ...] = ()

    def of(self, epoch: int) -> np.ndarray:
        """The videos' numbers, in the epoch's order."""
        return _shuffled(self, epoch)

    def draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, and how often the set of each had been through before, which only `MixedOrder` counts."""
        number_N = self.of(epoch)
        return number_N, np.zeros_like(number_N)


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """An epoch draws as many videos as there are, of each set its share of them, however many the set has.

    A set runs through orders of its own, one behind the other: its k-th draw over the whole run is place k % n of its
    order number k // n, its n videos once in each. So a small set repeats, and a large one goes on in the next epoch
    where it stopped. The epoch's draws are then shuffled together as `EpochOrder` shuffles an epoch.
    """

    seed: int
    members: tuple[np.ndarray, ...]  # the numbers of each set's videos
    shares: tuple[int, ...]  # of each set, in every epoch
    shard_N: np.ndarray | None = None
    window: int = 1

    def draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The videos' numbers, in the epoch's order, and for each how often its set had been through before."""
        return _mixed(self, epoch)

    def set_order(self, number: int) -> EpochOrder:
        """That of a set's own passes."""
        members = self.members[number]
        shard_N = None if self.shard_N is None else self.shard_N[members]
        return EpochOrder(self.seed, len(members), shard_N, self.window, of_set=(number,))


def share_out(count: int, weights: Sequence[float]) -> tuple[int, ...]:
    """So many in whole shares by weight; what is left goes to the largest remainders, of equal ones to the first."""
    exact = [count * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: shares[number] - exact[number])
    for number in by_remainder[: count - sum(shares)]:
        shares[number] += 1
    return tuple(shares)


@lru_cache(maxsize=4)  # threads that read ahead are in other epochs than those that load
def _shuffled(order: EpochOrder, epoch: int) -> np.ndarray:
    random = np.random.default_rng(hash63("order", order.seed, epoch, *order.of_set))
    return _shuffle(random, order.count, order.shard_N, order.window)


@lru_cache(maxsize=4)
def _mixed(order: MixedOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    numbers, passes = [], []
    for number, (members, share) in enumerate(zip(order.members, order.shares, strict=True)):
        of_set, first = order.set_order(number), epoch * share
        for turn in range(first // len(members), -(-(first + share) // len(members))):
            begun = turn * len(members)
            places = of_set.of(turn)[max(first - begun, 0) : first + share - begun]
            numbers.append(members[places])
            passes.append(np.full(len(places), turn))
    number_N, pass_N = np.concatenate(numbers), np.concatenate(passes)
    random = np.random.default_rng(hash63("order", order.seed, epoch))
    shard_N = None if order.shard_N is None else order.shard_N[number_N]
    order_N = _shuffle(random, len(number_N), shard_N, order.window)
    return number_N[order_N], pass_N[order_N]


def _shuffle(random: np.random.Generator, count: int, shard_N: np.ndarray | None, window: int) -> np.ndarray:
    if shard_N is None:
        return random.permutation(count)
    shards, number_N = np.unique(shard_N, return_inverse=True)
    window_N = random.permutation(len(shards))[number_N] // window
    found: np.ndarray = np.lexsort((random.random(count), window_N))
    return found


def hash63(*key: object) -> int:
    """63 bits of blake2b over the key: the same on every machine, unlike Python's own `hash`."""
    digest = blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
