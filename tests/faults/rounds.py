"""A round as data: which stage, which faults, when. Drawn from a seed and a number, so that it can be had again."""

import random
from dataclasses import dataclass

from .disks import DISK_BYTES
from .moments import AfterLines, AtShare, Moment, WhileWriting
from .places import CACHE, Reading
from .stages import STAGES, STEPS, Stage

SHARES = {
    "pack": 0.15,
    "train": 0.1,
    "train over two nodes": 0.15,
    "train alone": 0.05,
    "train deepspeed": 0.05,
    "train on a mesh": 0.05,
    "localize": 0.1,
    "evaluate": 0.05,
}
SHARES |= {"train remote": 0.1, "train remote by shards": 0.1, "train remote alone": 0.1}
ALONE = ("kill -9 of all", "SIGTERM", "disk full")
SEVERAL = (*ALONE, "kill -9 of one", "kill -9 of the launcher", "SIGSTOP, SIGCONT")
TRACKED = ("SIGUSR1", "MLflow killed", "MLflow stopped")
STORE = ("store away", "store gone", "store cuts", "store slow", "store busy", "store damages", "store lies")
LINKS = ("link cut", "first rank's link cut", "MLflow's link cut", "link slow", "link loses frames")
CACHED = ("cache removed", "cache changed", "cache truncated", "cache disk full")
KINDS = {
    "pack": SEVERAL,
    "train": (*SEVERAL, *TRACKED, "kill -9 of one", "SIGSTOP"),
    "train deepspeed": (*SEVERAL, *TRACKED),
    "train on a mesh": (*SEVERAL, "kill -9 of one", "SIGUSR1", "SIGSTOP"),
    "train over two nodes": (*LINKS, "kill -9 of one", "kill -9 of all", "SIGTERM", "SIGUSR1"),
    "train alone": (*ALONE, *TRACKED),
    "train remote": (*STORE, *CACHED, *SEVERAL, "SIGUSR1", "SIGSTOP"),
    "train remote by shards": (*STORE, *CACHED, *SEVERAL, "SIGUSR1", "SIGSTOP"),
    "train remote alone": (*STORE, *CACHED, *ALONE, "SIGUSR1"),
    "localize": SEVERAL,
    "evaluate": SEVERAL,
}


@dataclass(frozen=True)
class Strike:
    """A fault and its moment, counted from the strike before it or from the command's start."""

    kind: str
    moment: Moment


@dataclass(frozen=True)
class Round:
    """Strikes hit one after another; where one ends the command, the next one hits the command run again."""

    stage: str
    strikes: tuple[Strike, ...]
    name: str = "round"
    reading: Reading | None = None

    @property
    def needs_disk(self) -> bool:
        return any(strike.kind == "disk full" for strike in self.strikes)

    @property
    def needs_server(self) -> bool:
        return any(strike.kind.startswith("MLflow") for strike in self.strikes)

    def dice(self) -> random.Random:
        """What the faults choose by."""
        return random.Random(f"faults of {self.name}")


def draw(seed: int, number: int, stages: tuple[str, ...] = tuple(STAGES)) -> Round:
    name = f"{seed}-{number:04d}"
    dice = random.Random(name)
    (stage,) = dice.choices(stages, [SHARES[stage] for stage in stages])
    (count,) = dice.choices((1, 2, 3), (0.6, 0.3, 0.1))
    kinds = [dice.choice(KINDS[stage]) for _ in range(count)]
    strikes = tuple(Strike(kind, _moment(kind, STAGES[stage], dice)) for kind in kinds)
    return Round(stage, strikes, name, _reading(kinds, dice) if STAGES[stage].is_remote else None)


def _reading(kinds: list[str], dice: random.Random) -> Reading:
    """The six tars of the subset have 5.3 MB: a cache holds them, or half of them, or its disk does."""
    needs_cache = any(kind in CACHED for kind in kinds)
    read = "shard" if needs_cache or dice.random() < 0.7 else "range"
    choices = [(0.0027, None), (0.1, 3 * 2**20)]
    if not any(kind in STORE for kind in kinds):  # a store whose whole set is cached can do nothing wrong
        choices.append((0.1, None))
    cache_gb, disk_bytes = dice.choice(choices)
    return Reading(read, cache_gb, disk_bytes or (DISK_BYTES if "cache disk full" in kinds else None))


def _moment(kind: str, stage: Stage, dice: random.Random) -> Moment:
    """Half the time anywhere; else where it hurts: while something is written, or between two steps.

    Not much later than at 0.8 of the time, since a command that is faster today would have ended before.
    """
    if kind == "SIGSTOP":  # while they start, ranks wait for each other for ten minutes
        return AfterLines(stage.lines or "", dice.randint(1, STEPS // 2), dice.uniform(0, 0.1))
    if dice.random() < 0.5 or not stage.writing:
        return AtShare(dice.uniform(0, 0.8))
    if stage.lines and dice.random() < 0.4:
        return AfterLines(stage.lines, dice.randint(1, STEPS), dice.uniform(0, 0.1))
    writing = (*stage.writing, *(f"{CACHE}/.*.partial",) * (3 if stage.is_remote else 0))
    return WhileWriting(dice.choice(writing), dice.choice((0, dice.uniform(0, 0.05))))
