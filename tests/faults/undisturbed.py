"""The stages one after another with nothing in their way: what they leave, and how long each takes."""

import sys
import time
from pathlib import Path

from tests.launching import aumn, python, succeed

from .places import Place, a_place
from .playing import PATIENCE_S, Undisturbed
from .processes import Command
from .stages import STAGES, SYNTHETIC, Inputs


def run_undisturbed(folder: Path, stages: tuple[str, ...] = tuple(STAGES)) -> Undisturbed:
    """Synthesize features, and run the stages with all that they need."""
    folder.mkdir(parents=True)
    inputs = Inputs(folder)
    succeed(aumn("synth", inputs.features, *SYNTHETIC))
    blank = folder / "blank.db"
    succeed(
        python("-W", "ignore", "-c", f"from aumn.tracking.store import open_store; open_store('sqlite:///{blank}')")
    )
    found = Undisturbed(inputs, blank, {}, {})
    needed = {*stages, *(need for stage in stages for need in STAGES[stage].needs)}
    for stage in (name for name in STAGES if name in needed):
        found.places[stage], found.elapsed_s[stage] = _run(stage, found)
    return found


def _run(stage: str, found: Undisturbed) -> tuple[Place, float]:
    inputs, start_s = found.inputs, time.monotonic()
    with a_place(inputs.of(stage).parent, found.blank_database, is_networked=STAGES[stage].is_networked) as place:
        command = Command(STAGES[stage].command(inputs), place.work, place.log, place.environment())
        code = command.wait(PATIENCE_S)
    if code:
        sys.exit(f"{stage} failed with nothing in its way:\n{place.log.read_text()}")
    return place, time.monotonic() - start_s
