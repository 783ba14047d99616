"""What a packing will write, known before it writes: which videos, with which labels, in which shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from aumn.data.packing.options import PackOptions
from aumn.data.packing.shard_writer import PlannedVideo, ShardPlan
from aumn.data.problems import about
from aumn.data.shards.layout import FORMAT_VERSION, Description, sample_key
from aumn.data.sources.containers import Containers
from aumn.data.sources.features import Joint, VideoFeatures, check_features, parse_joint, split_columns
from aumn.data.sources.releases import LAYOUTS, Release, find_release, read_fact
from aumn.data.truth.annotated import AnnotatedVideo, look
from aumn.data.truth.annotations import Annotations, read_annotations
from aumn.ends import Length
from aumn.records import InputError

DEFAULT_STRIDE_FRAMES = 16


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What is packed, and what cannot be: videos without annotations have neither subset nor labels."""

    path: Path
    packed: dict[str, int]  # subset -> videos
    classes: tuple[str, ...]
    streams: dict[str, int]  # stream -> width
    shards: int
    without_features: list[str]
    without_annotations: list[str]
    source: str  # how the features were understood
    coverage: float | None  # of the durations in the ground truth, by the features: the median; None without any
    notes: list[str]  # what looks wrong with the ground truth of these features
    kept_shards: int = 0  # of them, those that an earlier, stopped run had finished
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The description and the report lack only what is known once shards are written."""

    shards: list[ShardPlan]
    annotated: list[AnnotatedVideo]  # those to pack, in their order
    description: Description
    workers: int | None
    report: PackingReport
    on_bad: str


def plan_packing(options: PackOptions) -> Plan:
    """Pack every annotated video that has features; `releases` tells of the layouts, of which one is found by looking.

    Features are read up to their headers. InputError where anything cannot be packed.
    """
    refuse_existing(options.out)
    truth = read_annotations(options.annotations, allow_pickle=options.allow_pickle)
    classes = _order_classes(truth, options.classes)
    joint = parse_joint(options.joint)
    containers = Containers(allow_pickle=options.allow_pickle)  # worker processes open the files themselves
    names = list(truth.videos) if truth.is_wtalc else None
    release = find_release(options.features, containers, layout=options.layout, names=names, prefix=options.prefix)
    ids = _match(release, truth)
    features, streams = check_features(release, ids, containers, joint=joint, trim_streams=options.trim_streams)
    # Without a frame rate, that of the ground truth is taken.
    stride = options.stride_frames or read_fact(release, "stride_frames", containers) or DEFAULT_STRIDE_FRAMES
    if stride != int(stride):
        raise InputError(f"{release.path} tells a stride_frames of {stride:g}; give a whole number: --stride-frames.")
    fps = options.fps or read_fact(release, "fps", containers)
    with about(f"{release.path}:"):
        options = replace(options, stride_frames=int(stride), fps=fps)  # what an archive tells has the same bounds
    stride = int(stride)
    videos = _plan_videos(features, truth, classes, stride, fps)
    shards = _plan_shards(videos, options)
    annotated = [truth.videos[video] for video in ids]
    return Plan(
        shards=shards,
        annotated=annotated,
        description=Description(
            FORMAT_VERSION, options.name or options.out.name, "", classes, streams, options.dtype, stride, (), {}
        ),
        workers=1 if release.layout == "wtalc" else options.workers,  # each process would hold the whole file
        report=PackingReport(
            path=options.out,
            packed=dict(Counter(video.subset for video in videos)),
            classes=classes,
            streams=streams,
            shards=len(shards),
            without_features=sorted(truth.videos.keys() - release.places),
            without_annotations=sorted(release.places.keys() - truth.videos),
            source=_say_source(release, joint, streams, stride, sorted({video.fps for video in videos})),
            coverage=_measure_coverage(videos, truth, stride),
            notes=_look(videos, annotated, stride, options.on_bad),
        ),
        on_bad=options.on_bad,
    )


def refuse_existing(out: Path) -> None:
    """A shard set is never overwritten."""
    if out.exists():
        raise InputError(f"{out} already exists: remove it, or pack into another folder.")


def _match(release: Release, annotations: Annotations) -> list[str]:
    """The videos to pack, by subset and id: annotated ones with features, of one stream at least."""
    found, annotated = release.places.keys(), annotations.videos
    both = sorted(found & annotated.keys(), key=lambda video: (annotated[video].subset, video))
    if not both:
        remedy = "name the files as the annotations name the videos, or give --prefix where only a prefix differs"
        if {f"v_{video}" for video in annotated} & found:  # as ActivityNet's features are often named
            remedy = "give --prefix v_, which the features' names have before the annotations'"
        raise InputError(
            f"{release.path} has features of none of the videos in {annotations.source}: it holds {_examples(found)}, "
            f"and the annotations {_examples(annotated)}; {remedy}."
        )
    return both


def _order_classes(annotations: Annotations, file: Path | None) -> tuple[str, ...]:
    """The classes of the list, or else the labels of the whole ground truth in alphabetical order."""
    labels = {label for video in annotations.videos.values() for label in video.labels()}
    if file is None:
        return tuple(sorted(labels))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: give a file with a class a line.") from None
    classes = [line.strip() for line in lines if line.strip()]
    if twice := sorted({label for label in classes if classes.count(label) > 1}):
        raise InputError(
            f"The list of classes names {', '.join(map(repr, twice))} more than once; name each class once."
        )
    if unknown := sorted(labels - set(classes)):
        raise InputError(
            f"{annotations.source} has labels that are not in the list of {len(classes)} classes: "
            f"{_examples(unknown)}; add them to the list, or take them out of the annotations."
        )
    return tuple(classes)


def _plan_videos(
    features: Sequence[VideoFeatures], annotations: Annotations, classes: Sequence[str], stride: int, fps: float | None
) -> list[PlannedVideo]:
    """Each video's manifest facts; a missing duration is that of its snippets, a missing frame rate an error."""
    planned, unknown = [], []
    for arrays in features:
        video = annotations.videos[arrays.video]
        rate = fps or video.fps
        if not rate:
            unknown.append(video.id)
            continue
        labels = tuple(sorted(map(classes.index, video.labels())))
        duration_s = video.duration_s or arrays.snippets * stride / rate
        names = tuple(classes[label] for label in labels)
        planned.append(PlannedVideo(arrays, video.subset, labels, names, duration_s, rate))
    if unknown:
        raise InputError(
            f"{annotations.source} tells no fps for {len(unknown):,} videos ({_examples(unknown)}): "
            "give --fps, the frame rate that the features were extracted at."
        )
    return planned


def _say_source(release: Release, joint: Joint, streams: dict[str, int], stride: int, rates: list[float]) -> str:
    how = "found by looking" if release.was_found else "as told"
    parts = [f"layout {release.layout} ({LAYOUTS[release.layout]}), {how}"]
    if release.layout in {"joint", "wtalc"}:
        spans = split_columns(joint, sum(streams.values()))
        columns = [f"{first}-{first + width - 1} {name}" for name, (first, width) in spans.items()]
        parts.append(f"columns {', '.join(columns)}")
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return "; ".join([*parts, f"a snippet every {stride} frames at {shown} fps"])


def _measure_coverage(videos: Sequence[PlannedVideo], annotations: Annotations, stride: int) -> float | None:
    """How much of a video's annotated duration its snippets cover (median): far from 1, stride or fps is wrong."""
    shares = [
        video.features.snippets * stride / video.fps / duration_s
        for video in videos
        if (duration_s := annotations.videos[video.features.video].duration_s)
    ]
    return float(np.median(shares)) if shares else None


def _look(videos: Sequence[PlannedVideo], annotated: Sequence[AnnotatedVideo], stride: int, on_bad: str) -> list[str]:
    """Sentences on what looks wrong with the times in the ground truth."""
    lengths = [Length(video.features.snippets * stride / video.fps, stride / video.fps, video.fps) for video in videos]
    odd = [
        f"{truth.id} ({length.covered_s:,.1f} s of {truth.duration_s:,.1f} s)"
        for truth, length in zip(annotated, lengths, strict=True)
        if truth.duration_s and not length.fits(truth.duration_s)
    ]
    notes = list(look(annotated, lengths, on_bad))
    if odd:
        notes.append(
            f"Of another length than the ground truth says: {len(odd):,} videos, such as {', '.join(odd[:3])}."
        )
    return notes


def _plan_shards(videos: Sequence[PlannedVideo], options: PackOptions) -> list[ShardPlan]:
    """Cut the videos, in order, into shards of one subset each and of about `shard_mb` at most."""
    itemsize, shard_bytes = np.dtype(options.dtype).itemsize, round(options.shard_mb * 10**6)
    plans: list[ShardPlan] = []
    for subset, of_subset in groupby(videos, key=lambda video: video.subset):
        parts: list[list[PlannedVideo]] = []
        part_bytes = 0
        for video in of_subset:
            width = sum(array.width for array in video.features.streams.values())
            video_bytes = video.features.snippets * width * itemsize
            if not parts or part_bytes + video_bytes > shard_bytes:
                parts.append([])
                part_bytes = 0
            parts[-1].append(video)
            part_bytes += video_bytes
        for number, part in enumerate(parts):
            file = f"{sample_key(subset)}-{number:06d}.tar"
            plans.append(ShardPlan(file, len(plans), options.dtype, options.allow_pickle, tuple(part)))
    return plans


def _examples(names: Collection[str], shown: int = 3) -> str:
    listed = sorted(names)[:shown]
    return ", ".join(map(repr, listed)) + (", ..." if len(names) > shown else "") or "none"
