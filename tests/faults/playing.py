"""One round: run the real command, strike, do what a user would do next, compare what is left in the end."""

import re
import signal
import time
import traceback
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from .comparing import Difference, differences
from .faults import FAULTS, Mend, Scene
from .moments import watch
from .places import Place, a_place
from .processes import Command, HungError, wait_until
from .rounds import Round, Strike
from .stages import STAGES, Inputs, Stage
from .user import next_command

MOST_LAUNCHES = 8
AUMN = Path(__file__).resolve().parents[2] / "aumn"
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)
PATIENCE_S = 480.0  # more than ten times what any command takes on a busy machine


class CrashedError(Exception):
    """A process ended in a way that nobody asked for."""


@dataclass
class Struck:
    """A fault that hit, and when, in seconds after its command was started."""

    kind: str
    moment: str
    after_s: float


@dataclass
class Outcome:
    """What became of a round. `lost_s` is what it took longer than the undisturbed command."""

    round: Round
    struck: list[Struck] = field(default_factory=list)
    missed: int = 0  # strikes whose moment did not come before the work was done
    exit_codes: list[int] = field(default_factory=list)  # of one launch after another
    lost_s: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    failure: str | None = None

    @property
    def survived(self) -> bool:
        return self.failure is None and not self.differences

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "survived": self.survived}


@dataclass(frozen=True)
class Undisturbed:
    """What each stage leaves when nothing happens, and how long it takes."""

    inputs: Inputs
    blank_database: Path
    places: dict[str, Place]
    elapsed_s: dict[str, float]


def play(round_: Round, undisturbed: Undisturbed, folder: Path) -> Outcome:
    """`folder` keeps what was left, with the commands and all they said in log.txt."""
    stage, outcome = STAGES[round_.stage], Outcome(round_)
    needs = {"needs_disk": round_.needs_disk, "needs_server": round_.needs_server, "reading": round_.reading}
    needs |= {"is_networked": stage.is_networked}
    shards = undisturbed.inputs.of("pack") / "shards"
    with a_place(folder, undisturbed.blank_database, shards=shards, **needs) as place:
        try:
            start_s = time.monotonic()
            _run_until_done(stage, round_, undisturbed, place, outcome)
            outcome.lost_s = time.monotonic() - start_s - undisturbed.elapsed_s[stage.name]
            outcome.differences = differences(
                stage, undisturbed.places[stage.name], place, place.log.read_text(errors="replace")
            )
        except (HungError, CrashedError) as error:
            outcome.failure = str(error)
        except Exception:
            outcome.failure = traceback.format_exc()
    return outcome


def _run_until_done(stage: Stage, round_: Round, undisturbed: Undisturbed, place: Place, outcome: Outcome) -> None:
    strikes, dice = deque(round_.strikes), round_.dice()
    arguments: list[object] | None = stage.command(undisturbed.inputs, place.settings())
    while arguments is not None:
        if len(outcome.exit_codes) == MOST_LAUNCHES:
            raise HungError(f"the work was not done after {MOST_LAUNCHES} launches")
        command = Command(arguments, place.work, place.log, place.environment())
        _strike(Scene(command, place, dice), strikes, undisturbed.elapsed_s[stage.name], outcome)
        outcome.exit_codes.append(command.wait(PATIENCE_S))
        refuse_crash(outcome.exit_codes[-1], command.output())
        arguments = next_command(stage, undisturbed.inputs, place, outcome.exit_codes[-1], command.output())
    outcome.missed = len(strikes)


def refuse_crash(code: int, said: str) -> None:
    """No fault here sends these signals: a process that died of one, a rank under torchrun too, has a defect."""
    for number in CRASHES:
        if code == -number or re.search(rf"exitcode\s*: -{number}\b", said):
            raise CrashedError(f"a process died of {number.name}")
    said = re.sub(r"(?m)^\[rank\d+\]: ", "", said)  # which torch puts before each line of a rank's
    for trace in said.split("Traceback (most recent call last):\n")[1:]:  # torchrun's own do not go through us
        if any(f'File "{AUMN}/' in line for line in takewhile(lambda line: line.startswith(" "), trace.splitlines())):
            raise CrashedError("a traceback, of what is no defect")


def _strike(scene: Scene, strikes: deque[Strike], undisturbed_s: float, outcome: Outcome) -> None:
    """One strike after another, while the command lives; those that are left are for the next launch."""
    while strikes:
        question = watch(strikes[0].moment, scene.command, undisturbed_s)
        wait_until(lambda question=question: scene.command.has_ended() or question(), PATIENCE_S, "no moment came")
        if scene.command.has_ended():
            return
        strike = strikes.popleft()
        after_s = time.monotonic() - scene.command.start_s
        mend = FAULTS[strike.kind](scene)
        outcome.struck.append(Struck(strike.kind, str(strike.moment), round(after_s, 3)))
        if mend is not None:
            _wait_and_mend(scene, mend)


def _wait_and_mend(scene: Scene, mend: Mend) -> None:
    end_s = time.monotonic() + mend.after_s
    try:
        wait_until(lambda: scene.command.has_ended() or time.monotonic() > end_s, PATIENCE_S, "no end of the command")
    finally:
        mend.act()
