"""Which ranks are slow: each rank's own time, loading and computing, against that of the others.

Told once when it begins and once when it is over; `status.json` says which nodes are slow now, and where
AUMN_BAD_NODES names a file, as the batch scripts have it, each gets a line there, for the job's next start to go round.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from aumn.runfolder.saving import RunWriter

SLOW = 1.3
"""So many times the median's own time, or more, is slow."""
STEPS = 50
"""For so many steps in a row, or it is not told; no longer slow for as many, or it is not told to be over."""
READINGS = 2
"""And for so many lines of metrics, so that one hiccup in a long one names nobody."""
LEAST_S = 0.001
"""And by so many seconds a step: what costs less is nobody's slowness."""
WORST = 3
"""How many are named."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int
    node: str
    gpu: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}{f' ({self.gpu})' if self.gpu else ''}"


def place_of(rank: int, local_rank: int, device: torch.device) -> Place:
    """This process's."""
    gpu = ""
    if device.type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        number = seen[local_rank] if local_rank < len(seen) and seen[local_rank] else str(local_rank)
        gpu = f"GPU {number}, {torch.cuda.get_device_name(device)}"
    return Place(rank, os.environ.get("SLURMD_NODENAME") or socket.gethostname(), gpu)


class SlowRanks:
    """Compares the ranks at every line of metrics; of use on the first one, which tells."""

    def __init__(self, places: Sequence[Place], say: Callable[[str], None], writer: RunWriter | None) -> None:
        self._places, self._say, self._writer = places, say, writer
        self._slow: dict[int, float] = {}  # by rank: how many times the median
        self._streaks: dict[int, list[tuple[int, float, float]]] = {}  # readings that disagree with what was told
        self._is_first = True  # the reading that holds what happens once

    def add(self, steps: int, own_s: Sequence[float]) -> dict[str, float]:
        """Take each rank's own seconds in the last `steps` steps; the numbers to log."""
        usual_s = statistics.median_low(own_s)  # so that one of two can be the slow one
        turned = {}
        for rank, own in enumerate(own_s):
            is_slow = own >= SLOW * usual_s and own - usual_s >= LEAST_S * steps
            if self._is_first or is_slow == (rank in self._slow):
                self._streaks.pop(rank, None)
                continue
            streak = self._streaks.setdefault(rank, [])
            streak.append((steps, own, usual_s))
            if len(streak) >= READINGS and sum(steps for steps, _, _ in streak) >= STEPS:
                turned[rank] = self._streaks.pop(rank)
        if turned:
            self._tell(turned)
        self._is_first = False
        slowest = own_s.index(max(own_s))
        steps = max(1, steps)  # 0 where the first step is logged: the next reading has it
        return {"own_s": usual_s / steps, "slowest_own_s": own_s[slowest] / steps, "slowest_rank": slowest}

    def _tell(self, turned: dict[int, list[tuple[int, float, float]]]) -> None:
        over = [rank for rank in turned if self._slow.pop(rank, None)]
        begun = {rank: _ratio(streak) for rank, streak in turned.items() if rank not in over}
        self._slow |= begun
        if over:
            self._say(f"No longer slow: {self._named(over, {})}.")
        if begun:
            worst = sorted(begun, key=lambda rank: -begun[rank])
            steps = sum(steps for steps, _, _ in turned[worst[0]])
            self._say(
                f"Slow for {steps} steps: {self._named(worst, begun)}, against the median rank's own time, loading and "
                "computing before a step's first wait for others. The whole run is as slow as that."
            )
            if self._writer:
                of_node = {self._places[rank].node: begun[rank] for rank in worst[::-1]}
                _remember({node: f"slow, {ratio:.1f} times the median" for node, ratio in of_node.items()})
        if self._writer:
            worst = sorted(self._slow, key=lambda rank: self._slow[rank])  # a node has its worst rank's
            slow = {self._places[rank].node: round(self._slow[rank], 2) for rank in worst}
            facts = {**self._writer.status.facts, "slow_ranks": self._named(worst[::-1], self._slow)}
            self._writer.note(slow=slow, facts=facts)

    def _named(self, ranks: Sequence[int], ratios: Mapping[int, float]) -> str:
        names = [
            f"{self._places[rank]}{f' takes {ratios[rank]:.1f} times as long' if rank in ratios else ''}"
            for rank in ranks[:WORST]
        ]
        return ", ".join(names) + (f" and {len(ranks) - WORST} more" if len(ranks) > WORST else "")


def _ratio(streak: Sequence[tuple[int, float, float]]) -> float:
    return sum(own for _, own, _ in streak) / (sum(usual for _, _, usual in streak) or LEAST_S)


def _remember(nodes: dict[str, str]) -> None:
    """What cannot be noted costs the job a slow start, and this run nothing."""
    if note := os.environ.get("AUMN_BAD_NODES"):
        with suppress(OSError), Path(note).open("a") as file:
            file.writelines(f"{node} {time.time():.0f} {why}\n" for node, why in nodes.items())
