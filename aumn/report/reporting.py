"""A report put together: localize where that is still to do, read, measure, write the page, keep it with the run."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aumn import __version__
from aumn.data.truth.annotations import read_ground_truth, restricted
from aumn.evaluation.evaluate import choose_tious
from aumn.inference.detections import is_run, read_detections
from aumn.inference.snippet_scores import FOLDER, ScoredModel, SnippetScores, read_scores
from aumn.records import HELD_OUT, Detections, GroundTruth, InputError, Place, place_of
from aumn.report.films import find_films, link_films
from aumn.report.measures import Measured, classes, errors, measure, overview
from aumn.report.page import write_page
from aumn.report.units import summarize_units
from aumn.report.videos import list_videos, pack_videos

if TYPE_CHECKING:  # and imported where there is a run: what reads its settings takes as long as a small page
    from aumn.report.runs import Run, Training
    from aumn.runfolder.metrics import Curve

Say = Callable[[str], None]
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Videos of a subset that a run held out of its training."""

    subset: str
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user may say about a report; None: found out, see `report_of`."""

    annotations: Place
    allow_pickle: bool = False
    on_bad: str | None = None
    subset: str | None = None
    protocol: str | None = None
    tiou: str | None = None
    detections: Path | None = None
    shards: Place | None = None
    tracking_uri: str | None = None
    device: str = "cpu"
    videos: Path | None = None

    held_out: HeldOut | None = None  # whom `subset` means, where it is held_out

    def ground_truth(self, subset: str | None) -> GroundTruth:
        """The subset's, or that of videos held out of one; InputError for what is wrong with it."""
        only = self.held_out
        where = only.subset if only else subset
        truth = read_ground_truth(self.annotations, where, allow_pickle=self.allow_pickle, on_bad=self.on_bad)
        return restricted(truth, only.names) if only else truth


def report_of(what: Path, out: Path, choices: Choices, *, attach: bool, say: Say, advance: Advance) -> None:
    """Report on a run, or on detections.

    A run is localized first, on this rank alone, unless `choices.detections` has been already. The subset is the one
    that was localized, or the one that the run did not train on; thresholds and shard set are by default the run's.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: name the file to write, such as {out / 'report.html'}.")
    run, detections = None, choices.detections or what
    films = find_films(choices.videos) if choices.videos else {}
    with tempfile.TemporaryDirectory(prefix="aumn-report-") as temporary:
        if is_run(what):
            from aumn.report.runs import open_run

            run = open_run(what, None if choices.detections else Path(temporary) / "model")
        if choices.subset == HELD_OUT:
            choices = replace(choices, held_out=_held_out(run, choices))
        protocol = run.config["evaluation"]["protocol"] if run and not choices.tiou else None
        tious = choose_tious(choices.protocol or protocol, choices.tiou)
        if run and not choices.detections:
            detections = Path(temporary) / "detections"
            _localize(run, detections, choices, advance)
        measured = _write(out, run, detections, tious, choices, films=films)
    evaluation, population = measured.evaluation, measured.evaluation.population
    say(
        f"{out}: mAP {100 * evaluation.average:.1f} (tIoU {tious[0]} to {tious[-1]}) on {population.videos:,} videos, "
        f"{population.instances:,} instances, {population.classes:,} classes; {out.stat().st_size / 1e6:.1f} MB"
    )
    if films and (missing := [video for video in measured.ground_truth.videos if video not in films]):
        say(f"{choices.videos} has no file of {len(missing):,} of {population.videos:,} videos, such as {missing[0]}.")
    if run and run.tracking_run and attach:
        _attach(run.tracking_run, out, choices.tracking_uri or run.config["tracking"]["uri"], say)


def compare_runs(folders: Sequence[Path], out: Path, *, say: Say) -> None:
    """Put several runs side by side, by what their folders hold; nothing is localized or measured again."""
    from aumn.report.runs import open_run
    from aumn.report.sweep import compare

    for folder in folders:
        if not is_run(folder):
            raise InputError(f"{folder} is no run: several folders are compared as runs, each with its checkpoints.")
    comparison, title = compare([open_run(folder) for folder in folders]), f"{len(folders)} runs"
    write_page(out, title, {"version": __version__, "title": title, "sweep": comparison})
    differing = ", ".join(comparison["differing"]) or "nothing but the seed"
    say(f"{out}: {title}, {len(comparison['groups'])} settings; they differ in {differing}")


def _held_out(run: Run | None, choices: Choices) -> HeldOut:
    """Whom the run held out; of one subset of one set."""
    from aumn.data.loader import split_holdout, trained_sets  # and with it torch, which no other page needs
    from aumn.data.settings import DataSettings

    if run is None:
        raise InputError("--subset held_out is of a run: give its folder, and detections of it as --detections.")
    given = {"shards": choices.shards} if choices.shards else {}
    data = DataSettings.model_validate({**run.config["data"], **given})
    if len(data.subsets) > 1:
        raise InputError(
            f"{run.folder} was trained on {', '.join(data.subsets)} of {', '.join(map(str, data.places))}: held_out is "
            "shown of one subset of one set; name a subset."
        )
    shards = trained_sets(data, [run.card.dataset_identity], str(run.folder))
    training = shards.indices(*data.subsets)
    _, held_out = split_holdout(training, shards.ids(training), data)
    return HeldOut(data.subsets[0], frozenset(shards.ids(held_out)))


def _localize(run: Run, out: Path, choices: Choices, advance: Advance) -> None:
    from aumn.data.shards.shard_set import ShardSet
    from aumn.inference.localize import localize_subset
    from aumn.runtime.ranks import Ranks

    data, subset = run.config["data"], choices.subset
    if choices.shards is None and isinstance(data["shards"], list):
        raise InputError(
            f"{run.folder} was trained on several shard sets, {', '.join(data['shards'])}: name the one to look at "
            "with --shards."
        )
    shards = choices.shards or place_of(data["shards"])
    if subset is None:
        trained_on = data["subset"] if isinstance(data["subset"], list) else [data["subset"]]
        others = sorted(set(ShardSet.open(shards).subsets) - set(trained_on))
        if len(others) != 1:
            raise InputError(
                f"{shards}: name the subset to look at with --subset; beside {', '.join(trained_on)} it has "
                f"{', '.join(others) or 'no other'}."
            )
        (subset,) = others
    choices.ground_truth(subset)  # what is wrong with it is told before the work
    localize_subset(
        run.model,
        shards,
        out,
        Ranks(),
        model=str(run.folder),
        subset=subset,
        device=choices.device,
        advance=advance,
        with_scores=True,
        only=choices.held_out.names if choices.held_out else None,
    )


def _write(
    out: Path,
    run: Run | None,
    detections: Path,
    tious: tuple[float, ...],
    choices: Choices,
    *,
    films: Mapping[str, Path],
) -> Measured:
    found, metadata = read_detections(detections)
    subset = choices.subset or metadata.get("subset")
    facts = run.facts() if run else {"Detections": str(detections), "Model": metadata.get("model", "not said")}
    facts |= {"Subset": subset or "the only one annotated", "Ground truth": str(choices.annotations)}
    if "dataset" in metadata:
        facts["Localized in"] = f"{metadata['dataset']} ({metadata['dataset_identity']})"
    return write_report(
        out,
        found,
        choices.ground_truth(subset),
        tious,
        title=(run.folder if run else detections).resolve().name,
        facts=facts,
        scores=detections / FOLDER if (detections / FOLDER).is_dir() else None,
        training=run.training() if run else None,
        films=films,
    )


def write_report(
    out: Path,
    detections: Detections,
    ground_truth: GroundTruth,
    tious: Sequence[float],
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Path | None = None,
    training: Training | None = None,
    films: Mapping[str, Path] = MappingProxyType({}),
) -> Measured:
    """Measure and write the page; what was measured, for a line about it.

    `facts` say where it all comes from, as they are and in their order; `scores` is the folder that `localize_subset`
    wrote with the detections; `films` are the videos' files, which the page plays.
    """
    measured = measure(detections, ground_truth, tious)
    model: ScoredModel | None = None
    by_video: defaultdict[str, list[SnippetScores]] = defaultdict(list)
    if scores:
        model, rows = read_scores(scores)
        for row in rows:
            by_video[row.video].append(row)
    model_classes = model.classes if model else ()
    names = list(dict.fromkeys((*measured.evaluation.labels, *model_classes)))  # labels, as the page numbers them
    numbers = {name: index for index, name in enumerate(names)}
    known_s = {row.video: row.duration_s for rows in by_video.values() for row in rows} | dict(ground_truth.durations_s)
    videos = measured.ground_truth.videos
    units = summarize_units([by_video[video] for video in videos], measured.ground_truth)
    contents = {
        "version": __version__,
        "title": title,
        "facts": dict(facts),
        "names": names,
        "overview": overview(measured),
        "classes": classes(measured),
        "errors": errors(measured),
        "videos": list_videos(measured, known_s),
        "films": link_films(films, videos, out) if films else None,
        "weights": model.weights if model else None,
        "units": units,
        "training": training and {"curves": _columns(training.curves), "note": training.note},
    }
    streams = [unit["stream"] for unit in units]
    packed = pack_videos(measured, by_video, [numbers[name] for name in model_classes], streams)
    write_page(out, title, contents, packed)
    return measured


def _columns(curves: Mapping[str, Curve]) -> dict[str, list[list[Any]]]:
    """Steps and values, these rounded for drawing; JSON has no NaN and no infinity."""
    return {
        name: [list(curve), [float(f"{value:.5g}") if math.isfinite(value) else None for value in curve.values()]]
        for name, curve in curves.items()
    }


def _attach(run_id: str, out: Path, tracking_uri: str | None, say: Say) -> None:
    """Keep the page with the run, where MLflow's pages show it; it is already written, so a refusal is only said."""
    from aumn.tracking.job_run import attach

    try:
        attach(run_id, out, "report", tracking_uri)
    except InputError as error:
        say(f"{out} is written, but is not kept with the run in MLflow. {error}")
    else:
        say(f"kept with the run in MLflow as report/{out.name} (run {run_id})")
