"""What a step's time would be made of on a mesh that is not here: its collectives by link, and rates in, seconds out.

Collectives are recorded, not guessed: the real engine and network make their calls to a `Mesh` in place of ranks. Each
is taken as a ring's, or as one message to every other rank, at the bandwidth of the slower of its two links. Latency,
slow ranks, and links that do less than they promise are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

from torch import Tensor

from aumn.records import InputError
from aumn.runtime.ranks import Ranks

EXCHANGED = "queries and readings"


@dataclass(frozen=True)
class Rates:
    """What a rank's device, its links and a node's disk do at their best, in a second; by default an H100 of eight."""

    flops: float = 4e14
    memory: float = 3e12  # bytes, of the device's memory
    local: float = 4e11  # bytes that a rank sends within a node
    network: float = 5e10  # bytes that a rank sends to other nodes
    disk: float = 1e10  # bytes that a node reads

    @classmethod
    def parse(cls, text: str) -> Self:
        """`flops=4e14,network=5e10` as rates; those that are not named, or all of `default`, are the class's own."""
        names, found = [field.name for field in fields(cls)], {}
        for part in text.split(",") if text != "default" else ():
            name, _, value = part.partition("=")
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = 0.0
            if name not in names or not 0 < found[name] < float("inf"):
                raise InputError(
                    f"--rates {part!r} must read name=number above 0, e.g. flops=4e14; the names are "
                    f"{', '.join(names)}: FLOP/s and bytes/s."
                )
        return cls(**found)

    def __str__(self) -> str:
        return (
            f"{self.flops:.3g} FLOP/s and {self.memory:.3g} B/s of device memory a rank, which sends {self.local:.3g} "
            f"B/s in its node and {self.network:.3g} B/s to others; {self.disk:.3g} B/s from a node's disk"
        )


class Collective(NamedTuple):
    """What a rank sends in calls of one kind, on average, and receives as much of."""

    what: str
    ranks: int
    within: float
    between: float

    def seconds(self, rates: Rates) -> float:
        """Both links are busy at once."""
        return max(self.within / rates.local, self.between / rates.network)


class Mesh(Ranks):
    """The first of so many ranks that are not there: what it would send is noted, and nothing arrives.

    `stride`: how far apart the ranks are in the launcher's order, which fills a node before the next one.
    """

    def __init__(self, size: int, per_node: int, stride: int = 1, *, sums: str = "gradients, Eq. 11") -> None:
        super().__init__(size=size)
        self._per_node, self.sums = per_node, sums
        self._here = max(1, min(size, per_node // stride))  # on a node
        self.parts: list[Mesh] = [self]
        self.sent: dict[str, float] = defaultdict(float)  # bytes to be summed, or to others, by what they are

    def sum_(self, tensor: Tensor) -> Tensor:
        """Note that it would be summed over the ranks."""
        self.sent[self.sums] += tensor.nbytes
        return tensor

    def exchange(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Note what would go to others."""
        self.sent[EXCHANGED] += (sum(sent) - sent[self.rank]) * tensor[:1].nbytes
        return tensor.new_empty(sum(received), *tensor.shape[1:])

    def copy_first_(self, tensor: Tensor) -> Tensor:
        """Nothing: it is not of a step."""
        return tensor

    def ask_and_tell(self, question: Callable[[], int], own: int | None = None) -> Callable[[], list[int]]:
        """All ranks say what this one does."""
        return lambda: [question(), *[own or 0] * self.size]

    def collectives(self, sent: Mapping[str, float]) -> list[Collective]:
        """By link. A ring sends a tensor twice, but for a rank's share, and leaves each node once; rails share that."""
        found = []
        others = self.size - 1
        for what, size in sent.items() if others else ():
            if what == EXCHANGED:
                total, away = size, (self.size - self._here) / others
            else:
                total, away = 2 * size * others / self.size, (self._here < self.size) / self._here
            found.append(Collective(what, self.size, total * (1 - away), total * away))
        return found

    def _part(self, parts: Sequence[Sequence[int]], backend: str | None = None) -> Ranks:
        first, second = parts[0][0], parts[0][1] if len(parts[0]) > 1 else parts[0][0] + 1
        if backend:  # for checkpoints
            return Ranks()
        if second - first == 1:
            part = Mesh(len(parts[0]), self._per_node, sums="sums of Eq. 10 to 12")
        else:
            part = Mesh(len(parts[0]), self._per_node, second - first, sums="gradients of units, Eq. 11")
        self.sums = "gradients of all else"
        self.parts.append(part)
        return part
