"""A round as data: which stage, which faults, when. Drawn from a seed and a number, so that it can be had again."""

import random
from dataclasses import dataclass

from .moments import AfterLines, AtShare, Moment, WhileWriting
from .stages import STAGES, STEPS, Stage

SHARES = {"pack": 0.25, "train": 0.4, "train alone": 0.1, "localize": 0.15, "evaluate": 0.1}
ALONE = ("kill -9 of all", "SIGTERM", "disk full")
SEVERAL = (*ALONE, "kill -9 of one", "kill -9 of the launcher", "SIGSTOP, SIGCONT")
TRACKED = ("SIGUSR1", "MLflow killed", "MLflow stopped")
KINDS = {
    "pack": SEVERAL,
    "train": (*SEVERAL, *TRACKED, "kill -9 of one", "SIGSTOP"),
    "train alone": (*ALONE, *TRACKED),
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
    return Round(stage, tuple(Strike(kind, _moment(kind, STAGES[stage], dice)) for kind in kinds), name)


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
    return WhileWriting(dice.choice(stage.writing), dice.choice((0, dice.uniform(0, 0.05))))
