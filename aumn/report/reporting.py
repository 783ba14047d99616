"""A report put together: localize where that is still to do, read, measure, write the page, keep it with the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aumn.data.truth.annotations import read_durations, read_ground_truth
from aumn.evaluation.evaluate import Evaluation, choose_tious
from aumn.inference.detections import read_detections
from aumn.inference.snippet_scores import FOLDER
from aumn.records import InputError
from aumn.report.build import Report, write_comparison, write_report
from aumn.report.runs import Run, is_run, open_run

Say = Callable[[str], None]
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user may say about a report; None: found out, see `report_of`."""

    annotations: Path
    subset: str | None = None
    protocol: str | None = None
    tiou: str | None = None
    detections: Path | None = None
    shards: Path | None = None
    tracking_uri: str | None = None
    device: str = "cpu"


def report_of(what: Path, out: Path, choices: Choices, *, attach: bool, say: Say, advance: Advance) -> None:
    """Report on a run, or on detections.

    A run is localized first, on this rank alone, unless `choices.detections` has been already. The subset is the one
    that was localized, or the one that the run did not train on; thresholds and shard set are by default the run's.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: name the file to write, such as {out / 'report.html'}.")
    with tempfile.TemporaryDirectory(prefix="aumn-report-") as temporary:
        localizes = is_run(what) and not choices.detections
        run = open_run(what, Path(temporary) / "model" if localizes else None) if is_run(what) else None
        tious = _choose_tious(run, choices)
        detections = choices.detections or what
        if run and localizes:
            shards = choices.shards or Path(run.config["data"]["shards"])
            choices = replace(choices, subset=choices.subset or _other_subset(run, shards))
            read_ground_truth(choices.annotations, choices.subset)  # what is wrong with it is told before the work
            detections = Path(temporary) / "detections"
            _localize(run, shards, detections, choices, advance)
        evaluation = _write(out, run, detections, tious, choices)
    say(_sentence(out, evaluation))
    if run and run.tracking_run and attach:
        _attach(run, run.tracking_run, out, choices.tracking_uri, say)


def compare_runs(folders: Sequence[Path], out: Path, *, say: Say) -> None:
    """Put several runs side by side, by what their folders hold; nothing is localized or measured again."""
    for folder in folders:
        if not is_run(folder):
            raise InputError(f"{folder} is no run: several folders are compared as runs, each with its checkpoints.")
    comparison = write_comparison(out, [open_run(folder) for folder in folders])
    differing = ", ".join(comparison["differing"]) or "nothing but the seed"
    say(f"{out}: {len(folders)} runs, {len(comparison['groups'])} settings; they differ in {differing}")


def _choose_tious(run: Run | None, choices: Choices) -> tuple[float, ...]:
    protocol = choices.protocol
    if run and not (protocol or choices.tiou):
        protocol = run.config["evaluation"]["protocol"]
    return choose_tious(protocol, choices.tiou)


def _localize(run: Run, shards: Path, out: Path, choices: Choices, advance: Advance) -> None:
    from aumn.inference.localize import localize_subset
    from aumn.runtime.ranks import Ranks

    assert choices.subset
    localize_subset(
        run.model,
        shards,
        out,
        Ranks(),
        model=str(run.folder),
        subset=choices.subset,
        device=choices.device,
        advance=advance,
        with_scores=True,
    )


def _other_subset(run: Run, shards: Path) -> str:
    """The one subset of a shard set that the run did not train on; InputError where that is not one."""
    from aumn.data.shards.shard_set import ShardSet

    trained_on = run.config["data"]["subset"]
    others = sorted({video.subset for video in ShardSet.open(shards).videos} - {trained_on})
    if len(others) != 1:
        choices = ", ".join(others) or "no other"
        raise InputError(f"{shards}: name the subset to look at with --subset; beside {trained_on} it has {choices}.")
    return others[0]


def _write(out: Path, run: Run | None, detections: Path, tious: tuple[float, ...], choices: Choices) -> Evaluation:
    found, metadata = read_detections(detections)
    subset = choices.subset or metadata.get("subset")
    truth = read_ground_truth(choices.annotations, subset)
    report = Report(
        title=(run.folder if run else detections).resolve().name,
        facts=_facts(run, detections, choices.annotations, subset, metadata),
        scores=detections / FOLDER if (detections / FOLDER).is_dir() else None,
        durations_s=read_durations(choices.annotations),
        training=run.training() if run else None,
    )
    return write_report(out, report, found, truth, tious).evaluation


def _sentence(out: Path, evaluation: Evaluation) -> str:
    population, tious = evaluation.population, evaluation.tious
    return (
        f"{out}: mAP {100 * evaluation.average:.1f} (tIoU {tious[0]} to {tious[-1]}) on {population.videos:,} videos, "
        f"{population.instances:,} instances, {population.classes:,} classes; {out.stat().st_size / 1e6:.1f} MB"
    )


def _facts(
    run: Run | None, detections: Path, annotations: Path, subset: str | None, metadata: dict[str, str]
) -> dict[str, str]:
    facts = run.facts() if run else {"Detections": str(detections), "Model": metadata.get("model", "not said")}
    facts |= {"Subset": subset or "the only one annotated", "Ground truth": str(annotations)}
    if "dataset" in metadata:
        facts["Localized in"] = f"{metadata['dataset']} ({metadata['dataset_identity']})"
    return facts


def _attach(run: Run, run_id: str, out: Path, tracking_uri: str | None, say: Say) -> None:
    """Keep the page with the run, where MLflow's pages show it; it is already written, so a refusal is only said."""
    from aumn.tracking.job_run import attach

    try:
        attach(run_id, out, "report", tracking_uri or run.config["tracking"]["uri"])
    except InputError as error:
        say(f"{out} is written, but is not kept with the run in MLflow. {error}")
    else:
        say(f"kept with the run in MLflow as report/{out.name} (run {run_id})")
