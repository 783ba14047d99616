"""Several runs side by side: the settings they differ in, their mAP over seeds, the paper's Figure 4 and Table 4.

A run's mAP is the one its model card holds: measured at the last step, on the videos that `evaluation.videos` named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aumn.config.run_config import says, settings_of
from aumn.records import InputError
from aumn.report.runs import Run

SEED = "run.seed"
LOSSES = ("loss.sparsity", "loss.diversity", "loss.homogeneity", "model.self_attention")


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page says of these runs. Those that differ in nothing but the seed are one line, a mean over them."""
    measured, tious = _measured_on(runs)
    settings = [settings_of(run.config) for run in runs]
    names = sorted({name for found in settings for name in found} - {SEED})
    differing = [
        name
        for name in names
        if not says(name, "same_model") and len({repr(found[name]) for found in settings if name in found}) > 1
    ]
    groups: dict[str, dict[str, Any]] = {}
    for run, found in zip(runs, settings, strict=True):
        values = {name: found.get(name) for name in differing}
        mean_ap = [run.card.metrics.get(f"{measured}/mAP/{name}", math.nan) for name in (*tious, "average")]
        line = {
            "folder": str(run.folder),
            "seed": found[SEED],
            "step": run.step,
            "steps": run.config["run"]["steps"],
            "map": mean_ap if all(map(math.isfinite, mean_ap)) else None,
        }
        groups.setdefault(repr(values), {"settings": values, "runs": []})["runs"].append(line)
    return {
        "measured": measured,
        "tious": tious,
        "data": sorted({f"{run.card.dataset} ({run.card.dataset_identity})" for run in runs}),
        "differing": differing,
        "common": {name: settings[0][name] for name in ("model.units", *LOSSES) if name not in differing},
        "groups": [group | _over_seeds([run["map"] for run in group["runs"]]) for group in groups.values()],
    }


def _measured_on(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The videos and the thresholds that mAP was measured on, the same for all runs that have one."""
    found: dict[tuple[str, ...], Path] = {}
    for run in runs:
        if names := tuple(sorted(name for name in run.card.metrics if "/mAP/" in name)):
            found.setdefault(names, run.folder)
    if not found:
        raise InputError(
            f"None of the {len(runs)} runs has an mAP, such as {runs[0].folder}: train with evaluation.videos=held_out "
            "or with the name of a subset."
        )
    if len(found) > 1:
        one, other = (f"{folder} has {', '.join(names)}" for names, folder in list(found.items())[:2])
        raise InputError(
            f"mAPs on different videos or at different tIoUs do not compare: {one}; {other}. Give runs of the same "
            "evaluation.videos and evaluation.protocol."
        )
    (names,) = found
    measured = names[0].partition("/mAP/")[0]
    return measured, [name.rpartition("/")[2] for name in names if not name.endswith("/average")]


def _over_seeds(rows: Sequence[list[float] | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of mAP at each threshold, then of the average; none of a single run."""
    columns = list(zip(*filter(None, rows), strict=True))
    deviations = [statistics.stdev(column) for column in columns if len(column) > 1]
    return {"mean": [statistics.fmean(column) for column in columns] or None, "deviation": deviations or None}
