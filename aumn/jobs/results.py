"""The numbers that a point of a job has measured: from a training's run folder, or from the file of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aumn.records import InputError
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import last_metrics


def describe_training(run_folder: Path) -> str:
    """Such as "step 400/1000  loss 0.5210  mAP 31.2%"; empty where nothing is logged yet, or it cannot be read."""
    with suppress(InputError, OSError):
        numbers = last_metrics(run_folder)
        shown = [f"step {numbers['step']}/{RunFolder(run_folder).status().steps}"] if numbers else []
        shown += [f"loss {numbers['loss']:.4f}"] if isinstance(numbers.get("loss"), float) else []
        shown += [f"mAP {value:.1%}" for name, value in numbers.items() if name.endswith("mAP/average")]
        return "  ".join(shown)
    return ""


def read_evaluation(arguments: Sequence[str], directory: Path) -> dict[str, float]:
    """The mAP that an `aumn evaluate` wrote, by `mAP/THRESHOLD` and `mAP/average`; empty for any other command."""
    if arguments[0] == "evaluate" and "--json" in arguments[:-1]:
        file = directory / arguments[arguments.index("--json") + 1]
        with suppress(OSError, ValueError, KeyError):
            result = json.loads(file.read_text())
            return {f"mAP/{tiou}": value for tiou, value in {**result["mAP"], "average": result["average"]}.items()}
    return {}
