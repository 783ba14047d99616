"""Features and ground truth into a shard set: in parallel, byte-identical for any number of workers, hard to kill.

The work is planned from file headers alone, so every shard's content is known before the first is written. Shards are
built in `OUT.partial` beside OUT; each finished one leaves a note, by which a run started again after a kill keeps it.
The last act is one rename, so a shard set is there whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aumn.data.packing.planning import match, measure_coverage, order_classes, plan_shards, plan_videos
from aumn.data.packing.pool import run_in_processes
from aumn.data.packing.shard_writer import Row, ShardPlan, Written, read_finished, replacing, write_shard
from aumn.data.packing.workplace import Workplace, refuse_existing, workplace
from aumn.data.problems import refuse
from aumn.data.shards.layout import ANNOTATIONS, DESCRIPTION, FORMAT_VERSION, MANIFEST, Description, Shard, checksum
from aumn.data.shards.manifest import read_manifest, write_manifest
from aumn.data.sources.containers import Containers
from aumn.data.sources.features import Joint, check_features
from aumn.data.sources.releases import Release, describe, find_release, read_fact
from aumn.data.truth.annotated import AnnotatedVideo
from aumn.data.truth.annotations import read_annotations, write_annotations
from aumn.records import InputError

logger = logging.getLogger(__name__)

DEFAULT_STRIDE_FRAMES = 16
DTYPES = ("float16", "float32")
Progress = Callable[[int, int], None]  # videos done, videos in all


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What was packed, and what could not be: videos without annotations have neither subset nor labels."""

    path: Path
    packed: dict[str, int]  # subset -> videos
    classes: tuple[str, ...]
    streams: dict[str, int]  # stream -> width
    shards: int
    kept_shards: int  # of them, those that an earlier, stopped run had finished
    bytes: int
    without_features: list[str]
    without_annotations: list[str]
    source: str  # how the features were understood
    coverage: float | None  # of the durations in the ground truth, by the features: the median; None without any


def pack(
    features: Path,
    out: Path,
    annotations: Path,
    *,
    name: str,
    layout: str | None = None,
    joint: str = "rgb,flow",
    prefix: str = "",
    stride_frames: int | None = None,
    fps: float | None = None,
    classes: Sequence[str] | None = None,
    dtype: str = "float16",
    shard_bytes: int = 256 * 10**6,
    workers: int | None = None,
    allow_pickle: bool = False,
    trim_streams: bool = False,
    on_progress: Progress | None = None,
) -> PackingReport:
    """Pack every annotated video that has features; `releases` tells of the layouts, of which one is found by looking.

    `joint` says how joint arrays hold the streams, `prefix` what the features' names have before the annotations'.
    `stride_frames` and `fps` are those that the features were extracted at; by default what an archive tells, else 16
    and the ground truth's. `classes` fixes the order of the labels, alphabetical by default. `workers` defaults to the
    cores at hand.
    """
    refuse_existing(out)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    _check_options(dtype, fps, {"stride_frames": stride_frames, "shard_bytes": shard_bytes, "workers": workers})
    ground_truth = read_annotations(annotations, allow_pickle=allow_pickle)
    ordered_classes = order_classes(ground_truth, classes)
    columns = Joint.parse(joint)
    containers = Containers(allow_pickle=allow_pickle)
    order = list(ground_truth.videos) if ground_truth.is_wtalc else None
    release = find_release(features, containers, layout=layout, names=order, prefix=prefix)
    matched = match(release, ground_truth)
    checked, streams = check_features(release, matched.both, containers, joint=columns, trim_streams=trim_streams)
    stride_frames, fps = _read_clock(release, containers, stride_frames, fps)
    del containers  # worker processes open the files themselves
    videos = plan_videos(checked, ground_truth, ordered_classes, stride_frames=stride_frames, fps=fps)
    plans = plan_shards(videos, dtype, shard_bytes, allow_pickle=allow_pickle)
    if release.layout == "wtalc":
        workers = 1  # each process would hold the whole file

    with workplace(out) as work:
        kept = _find_finished(plans, work)
        written = _write_rest(plans, kept, work, workers, on_progress)
        shards = tuple(Shard(shard.file, shard.bytes) for shard in written)
        description = Description(FORMAT_VERSION, name, "", ordered_classes, streams, dtype, stride_frames, shards, {})
        rows = [row for shard in written for row in shard.rows]
        _write_tables(work, description, rows, [ground_truth.videos[video] for video in matched.both])
        work.publish(out, {ANNOTATIONS, MANIFEST, DESCRIPTION, *(shard.file for shard in shards)})
    return PackingReport(
        path=out,
        packed=dict(Counter(video.subset for video in videos)),
        classes=ordered_classes,
        streams=streams,
        shards=len(shards),
        kept_shards=len(kept),
        bytes=sum(shard.bytes for shard in shards),
        without_features=matched.without_features,
        without_annotations=matched.without_annotations,
        source=_say_source(release, columns, streams, stride_frames, sorted({video.fps for video in videos})),
        coverage=measure_coverage(videos, ground_truth, stride_frames),
    )


def _read_clock(
    release: Release, containers: Containers, stride_frames: int | None, fps: float | None
) -> tuple[int, float | None]:
    """Stride and frame rate as given, else as an archive tells; no frame rate where it is the ground truth's."""
    stride = stride_frames or read_fact(release, "stride_frames", containers) or DEFAULT_STRIDE_FRAMES
    if stride != int(stride):
        raise InputError(f"{release.path} tells a stride_frames of {stride:g}; give a whole number: --stride-frames.")
    return int(stride), fps or read_fact(release, "fps", containers)


def _say_source(release: Release, joint: Joint, streams: dict[str, int], stride_frames: int, rates: list[float]) -> str:
    how = "found by looking" if release.was_found else "as told"
    parts = [f"layout {release.layout} ({describe(release.layout)}), {how}"]
    if release.layout in {"joint", "wtalc"}:
        spans = joint.split(sum(streams.values()))
        parts.append(
            "columns " + ", ".join(f"{first}-{first + width - 1} {name}" for name, (first, width) in spans.items())
        )
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return "; ".join([*parts, f"a snippet every {stride_frames} frames at {shown} fps"])


def _check_options(dtype: str, fps: float | None, counts: dict[str, int | None]) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one that shards hold: choose {' or '.join(DTYPES)}.")
    if fps is not None and not fps > 0:
        raise InputError(f"fps is {fps}; it must be above 0.")
    for option, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{option} is {count}; it must be at least 1.")


def _find_finished(plans: Sequence[ShardPlan], work: Workplace) -> dict[str, Written]:
    finished = [read_finished(plan, work.shards, work.progress) for plan in plans]
    kept = {shard.file: shard for shard in finished if shard is not None}
    outdated = len(work.notes()) - len(kept)
    if outdated:
        logger.warning(
            "%d shards in %s were packed from other files or with other options: they are packed afresh.",
            outdated,
            work.partial,
        )
    return kept


def _write_rest(
    plans: Sequence[ShardPlan], kept: dict[str, Written], work: Workplace, workers: int, on_progress: Progress | None
) -> list[Written]:
    """All shards in the plans' order, the kept ones too; bad videos are reported together, once all are read."""
    videos = {plan.file: len(plan.videos) for plan in plans}
    written = dict(kept)

    def tell() -> None:
        if on_progress:
            on_progress(sum(videos[file] for file in written), sum(videos.values()))

    tell()
    calls = [(plan, work.shards, work.progress) for plan in plans if plan.file not in kept]
    for shard in run_in_processes(write_shard, calls, workers):
        written[shard.file] = shard
        tell()
    problems = [problem for plan in plans for problem in written[plan.file].problems]
    finished = sum(not shard.problems for shard in written.values())
    refuse(
        problems,
        f"{len(problems):,} videos cannot be packed ({finished} finished shards of {len(plans)} stay in {work.partial} "
        "for the next run):",
    )
    return [written[plan.file] for plan in plans]


def _write_tables(work: Workplace, description: Description, rows: list[Row], videos: Sequence[AnnotatedVideo]) -> None:
    with replacing(work.shards / ANNOTATIONS, work.progress) as file:
        write_annotations(file, videos)
    with replacing(work.shards / MANIFEST, work.progress) as file:
        write_manifest(file, rows, list(description.streams))
    content = {table: (work.shards / table).read_bytes() for table in (MANIFEST, ANNOTATIONS)}
    identity = read_manifest(content[MANIFEST], list(description.streams)).identity(description)
    checksums = {table: checksum(content[table]) for table in content}
    with replacing(work.shards / DESCRIPTION, work.progress) as file:
        file.write(replace(description, identity=identity, checksums=checksums).to_json().encode())
