"""What a packing will write, known before it writes: which videos, with which labels, in which shard."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from aumn.data.packing.shard_writer import PlannedVideo, ShardPlan
from aumn.data.shards.tars import sample_key
from aumn.data.sources.features import VideoFeatures
from aumn.data.sources.releases import Release
from aumn.data.truth.annotated import AnnotatedVideo
from aumn.data.truth.annotations import Annotations
from aumn.records import InputError


@dataclass(frozen=True, slots=True)
class Matched:
    """Which videos have both features and annotations, sorted by subset and id; and which have only one of them."""

    both: list[str]
    without_features: list[str]
    without_annotations: list[str]


def match(release: Release, annotations: Annotations) -> Matched:
    """Find the videos to pack: annotated ones with features, of one stream at least."""
    found, annotated = release.places.keys(), annotations.videos
    both = sorted(found & annotated.keys(), key=lambda video: (annotated[video].subset, video))
    if not both:
        raise InputError(
            f"{release.path} has features of none of the videos in {annotations.source}: it holds {_examples(found)}, "
            f"and the annotations {_examples(annotated)}; {_remedy(found, annotated)}."
        )
    return Matched(both, sorted(annotated.keys() - found), sorted(found - annotated.keys()))


def _remedy(found: Collection[str], annotated: Collection[str]) -> str:
    if {f"v_{video}" for video in annotated} & set(found):  # as ActivityNet's features are often named
        return "give --prefix v_, which the features' names have before the annotations'"
    return "name the files as the annotations name the videos, or give --prefix where only a prefix differs"


def order_classes(annotations: Annotations, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes as given, or else the labels of the whole ground truth in alphabetical order."""
    labels = {label for video in annotations.videos.values() for label in video.labels()}
    if classes is None:
        return tuple(sorted(labels))
    if len(set(classes)) != len(classes):
        twice = sorted({label for label in classes if list(classes).count(label) > 1})
        raise InputError(
            f"The list of classes names {', '.join(map(repr, twice))} more than once; name each class once."
        )
    unknown = sorted(labels - set(classes))
    if unknown:
        raise InputError(
            f"{annotations.source} has labels that are not in the list of {len(classes)} classes: "
            f"{_examples(unknown)}; add them to the list, or take them out of the annotations."
        )
    return tuple(classes)


def plan_videos(
    features: Sequence[VideoFeatures],
    annotations: Annotations,
    classes: Sequence[str],
    *,
    stride_frames: int,
    fps: float | None,
) -> list[PlannedVideo]:
    """Each video's manifest facts; a missing duration is that of its snippets, a missing frame rate an error."""
    index = {label: position for position, label in enumerate(classes)}
    videos = [annotations.videos[video.video] for video in features]
    unknown = [video.id for video in videos if not (fps or video.fps)]
    if unknown:
        raise InputError(
            f"{annotations.source} tells no fps for {len(unknown):,} videos ({_examples(unknown)}): "
            "give --fps, the frame rate that the features were extracted at."
        )

    def plan(video: AnnotatedVideo, arrays: VideoFeatures) -> PlannedVideo:
        labels = tuple(sorted(index[label] for label in video.labels()))
        names = tuple(classes[label] for label in labels)
        rate = fps or video.fps
        assert rate is not None
        duration_s = video.duration_s or arrays.snippets * stride_frames / rate
        return PlannedVideo(arrays, video.subset, labels, names, duration_s, rate)

    return [plan(video, arrays) for video, arrays in zip(videos, features, strict=True)]


def measure_coverage(videos: Sequence[PlannedVideo], annotations: Annotations, stride_frames: int) -> float | None:
    """How much of a video's annotated duration its snippets cover (median): far from 1, stride or fps is wrong."""
    durations = {video.id: video.duration_s for video in annotations.videos.values()}
    shares = [
        video.features.snippets * stride_frames / video.fps / duration_s
        for video in videos
        if (duration_s := durations[video.features.video])
    ]
    return float(np.median(shares)) if shares else None


def plan_shards(videos: Sequence[PlannedVideo], dtype: str, shard_bytes: int, *, allow_pickle: bool) -> list[ShardPlan]:
    """Cut the videos, in order, into shards of one subset each and of about `shard_bytes` at most."""
    plans: list[ShardPlan] = []
    for subset, of_subset in groupby(videos, key=lambda video: video.subset):
        for number, part in enumerate(_cut(of_subset, np.dtype(dtype).itemsize, shard_bytes)):
            file = f"{sample_key(subset)}-{number:06d}.tar"
            plans.append(ShardPlan(file, len(plans), dtype, allow_pickle, tuple(part)))
    return plans


def _cut(videos: Iterator[PlannedVideo], itemsize: int, shard_bytes: int) -> Iterator[list[PlannedVideo]]:
    part: list[PlannedVideo] = []
    part_bytes = 0
    for video in videos:
        width = sum(array.width for array in video.features.streams.values())
        video_bytes = video.features.snippets * width * itemsize
        if part and part_bytes + video_bytes > shard_bytes:
            yield part
            part, part_bytes = [], 0
        part.append(video)
        part_bytes += video_bytes
    yield part


def _examples(names: Collection[str], shown: int = 3) -> str:
    listed = sorted(names)[:shown]
    return ", ".join(map(repr, listed)) + (", ..." if len(names) > shown else "") or "none"
