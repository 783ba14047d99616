"""Several runs side by side: the settings they differ in, their mAP over seeds, the paper's Figure 4 and Table 4.

A run's mAP is the one its model card holds: measured at the last step, on the videos that `evaluation.videos` named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aumn.config.run_config import says, settings_of
from aumn.records import InputError
from aumn.report.runs import Run

SEED = "run.seed"


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page says of these runs. Those that differ in nothing but the seed are one line, a mean over them."""
    measured = _measured_on(runs)
    tious = _tious(runs, measured)
    settings = [settings_of(run.config) for run in runs]
    names = sorted({*(name for found in settings for name in found)} - {SEED})
    differing = [name for name in names if not says(name, "same_model") and _differs(name, settings)]
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for run, found in zip(runs, settings, strict=True):
        values = {name: found.get(name) for name in differing}
        group = groups.setdefault(tuple(map(repr, values.values())), {"settings": values, "runs": []})
        group["runs"].append(_run(run, found[SEED], measured, tious))
    return {
        "measured": measured,
        "tious": list(tious),
        "data": sorted({f"{run.card.dataset} ({run.card.dataset_identity})" for run in runs}),
        "differing": differing,
        "common": {name: settings[0][name] for name in ("model.units", *_LOSSES) if name not in differing},
        "groups": [group | _over_seeds(group["runs"]) for group in groups.values()],
    }


_LOSSES = ("loss.sparsity_rgb", "loss.sparsity_flow", "loss.diversity", "loss.homogeneity", "model.self_attention")


def _measured_on(runs: Sequence[Run]) -> str:
    """The videos that the runs' mAP was measured on, the same for all that have one."""
    found: dict[str, Path] = {}
    for run in runs:
        for name in run.card.metrics:
            if name.endswith("/mAP/average"):
                found.setdefault(name.removesuffix("/mAP/average"), run.folder)
    if not found:
        raise InputError(
            f"None of the {len(runs)} runs has an mAP, such as {runs[0].folder}: train with evaluation.videos=held_out "
            "or with the name of a subset."
        )
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        raise InputError(
            f"mAPs on different videos do not compare: {here} has one on {one}, {there} on {other}; give runs of the "
            "same evaluation.videos."
        )
    return next(iter(found))


def _tious(runs: Sequence[Run], measured: str) -> tuple[str, ...]:
    """The thresholds that were measured, which all runs must share, since their average is compared."""
    found: dict[tuple[str, ...], Path] = {}
    for run in runs:
        names = [name.rpartition("/")[2] for name in run.card.metrics if name.startswith(f"{measured}/mAP/")]
        if tious := tuple(sorted(name for name in names if name != "average")):
            found.setdefault(tious, run.folder)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise InputError(f"{first} and {second} were measured at other tIoUs: give runs of one evaluation.protocol.")
    return next(iter(found))


def _differs(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    """Among the runs in which it was in force."""
    return len({repr(found[name]) for found in settings if name in found}) > 1


def _run(run: Run, seed: int, measured: str, tious: Sequence[str]) -> dict[str, Any]:
    """A run's own line; without an mAP where it did not come to one."""
    metrics = run.card.metrics
    of = [metrics.get(f"{measured}/mAP/{name}") for name in (*tious, "average")]
    finite = None not in of and all(map(math.isfinite, (value or 0.0 for value in of)))
    return {
        "folder": str(run.folder),
        "seed": seed,
        "step": run.step,
        "steps": run.config["run"]["steps"],
        "map": of if finite else None,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of mAP at each threshold, then of the average; none of a single run."""
    rows = [run["map"] for run in runs if run["map"]]
    columns = list(zip(*rows, strict=True))
    deviations = [statistics.stdev(column) for column in columns] if len(rows) > 1 else None
    return {"mean": [statistics.fmean(column) for column in columns] or None, "deviation": deviations}
