"""What a user does when a command has ended: believe it, follow the remedy it names, or run it again."""

from .places import Place
from .stages import Inputs, Stage


def next_command(stage: Stage, inputs: Inputs, place: Place, code: int, said: str) -> list[object] | None:
    """Python's arguments; None: the work is done. `said` is what the command that ended has printed."""
    if "aumn deliver " in said and code == 0:  # the tracking store did not take everything
        return ["-m", "aumn", "deliver", "run"]
    if code == 0 or ("already exists" in said and all((place.work / output).exists() for output in stage.outputs)):
        return None
    is_begun = any((place.work / "run" / "checkpoints").glob("step_*"))
    return [*stage.command(inputs, place.settings()), *(["--resume"] if is_begun else [])]
