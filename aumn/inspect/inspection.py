"""What a shard set holds, and which of its videos look wrong: one pass over its features, video by video."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotated import look
from aumn.data.truth.annotations import read_annotations
from aumn.ends import Length
from aumn.inspect.known import recognize
from aumn.records import Clock, InputError, Place, Video

CHUNK_VIDEOS = 64  # read ahead by threads
SCALE_FACTOR = 5.0  # a stream that deviates this much more or less than the usual is of another extraction
REPEATED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class SubsetFacts:
    """How many and how long; `labels` is the mean over its videos."""

    videos: int
    hours: float
    snippets: int
    shortest: int
    median: float
    longest: int
    labels: float
    unlabelled: int


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """All values of one stream together."""

    width: int
    lowest: float
    highest: float
    mean: float
    deviation: float
    zeros: float  # their share

    @property
    def norm(self) -> float:
        """Root mean square length of a snippet, by which one extractor's features are told from another's."""
        return math.sqrt(self.width * (self.mean**2 + self.deviation**2))


@dataclass(frozen=True, slots=True)
class Finding:
    """A video that looks wrong, and why."""

    kind: str  # damaged, not finite, constant, repeated, duplicated, scale, duration
    video: str
    subset: str
    text: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that was found; `classes` counts the videos of each class by subset."""

    path: Place
    name: str
    identity: str
    stride_frames: int
    window_frames: int
    subsets: dict[str, SubsetFacts]
    classes: dict[str, dict[str, int]]
    streams: dict[str, StreamFacts]
    findings: list[Finding]
    notes: list[str]  # what looks wrong with the ground truth
    known: list[str]  # about the public set that this looks like
    population: Sequence[Video]  # every video of the set
    videos: list[tuple[Video, dict[str, StreamFacts]]]  # those that were read whole, with each stream's values
    left_out: tuple[str, ...]  # when the set was packed, since they were bad
    read: int  # of so many videos the values were looked at

    @property
    def is_sample(self) -> bool:
        """Whether values were looked at in some of the videos only."""
        return self.read < sum(subset.videos for subset in self.subsets.values())

    def to_json(self) -> dict[str, Any]:
        """All but the single videos."""
        fields = asdict(self) | {"path": str(self.path), "sampled": self.is_sample}
        del fields["videos"], fields["population"]
        return fields


def inspect_shards(
    path: Place, *, sample: int | None = None, workers: int = 1, advance: Callable[[int, int], None] = lambda *_: None
) -> Inspection:
    """Look at every video of a shard set, or at the values of `sample` videos spread evenly over it.

    Counts, durations and duplicates come from the manifest, so they are of all videos in any case.
    """
    for name, number in (("sample", sample), ("workers", workers)):
        if number is not None and number < 1:
            raise InputError(f"--{name} is {number}; it must be at least 1.")
    shards = ShardSet.open(path)
    shards.check_identity()
    chosen: Sequence[int] = range(len(shards))
    if sample is not None and sample < len(shards):
        chosen = np.linspace(0, len(shards) - 1, sample).round().astype(int).tolist()
    values: list[tuple[Video, dict[str, StreamFacts]]] = []
    findings = [*_find_duplicates(shards), *_check_durations(shards)]
    for done, (index, (facts, found)) in enumerate(zip(chosen, _read_all(shards, chosen, workers), strict=True), 1):
        if facts.keys() == shards.streams.keys():
            values.append((shards.videos[index], facts))
        findings += found
        advance(done, len(chosen))
    snippets = [video.snippets for video, _ in values]
    order = {video.id: index for index, video in enumerate(shards.videos)}
    return Inspection(
        path=path,
        name=shards.name,
        identity=shards.identity,
        stride_frames=shards.stride_frames,
        window_frames=shards.clock.window_frames,
        subsets=_count_subsets(shards),
        classes=_count_classes(shards),
        streams={stream: _take_together([of[stream] for _, of in values], snippets) for stream in shards.streams},
        findings=sorted([*findings, *_compare_scales(values)], key=lambda found: (found.kind, order[found.video])),
        notes=_look_at_truth(shards),
        known=recognize(shards.videos, shards.classes, shards.clock),
        population=shards.videos,
        videos=values,
        left_out=shards.left_out,
        read=len(chosen),
    )


def _read_all(
    shards: ShardSet, indices: Sequence[int], workers: int
) -> Iterator[tuple[dict[str, StreamFacts], list[Finding]]]:
    """Each video's values, of its finite streams, and what looks wrong about them.

    In the videos' order, which is that of the shards on the disk; threads read a little ahead.
    """

    def look(index: int) -> tuple[dict[str, StreamFacts], list[Finding]]:
        video, facts, findings = shards.videos[index], {}, []
        try:
            features = shards.read(index)
        except InputError as error:
            return {}, [Finding("damaged", video.id, video.subset, str(error))]
        for stream, stored_TD in features.items():
            features_TD = stored_TD.astype(np.float32)
            kind, text = _find_wrong(features_TD) or ("", "")
            if kind:
                findings.append(Finding(kind, video.id, video.subset, f"{stream} {text}"))
            if kind != "not finite":
                facts[stream] = _measure(features_TD)
        return facts, findings

    with ThreadPoolExecutor(workers) as threads:
        for first in range(0, len(indices), CHUNK_VIDEOS):
            yield from threads.map(look, indices[first : first + CHUNK_VIDEOS])


def _measure(features_TD: np.ndarray) -> StreamFacts:
    """One video's values in one stream, which are finite."""
    return StreamFacts(
        width=features_TD.shape[1],
        lowest=float(features_TD.min()),
        highest=float(features_TD.max()),
        mean=float(features_TD.mean(dtype=np.float64)),
        deviation=float(features_TD.std(dtype=np.float64)),
        zeros=float((features_TD == 0).mean()),
    )


def _find_wrong(features_TD: np.ndarray) -> tuple[str, str] | None:
    """What looks wrong about one video's values in one stream, its kind and how."""
    snippets = len(features_TD)
    if bad := int((~np.isfinite(features_TD)).sum()):
        return "not finite", f"has {bad:,} NaN or infinite values"
    if not features_TD.any():
        return "constant", "is all zeros"
    repeats = int((features_TD[1:] == features_TD[:-1]).all(axis=1).sum())
    if snippets > 1 and repeats == snippets - 1:
        return "constant", f"is the same in all {snippets:,} snippets"
    if repeats >= REPEATED_SHARE * snippets:
        return "repeated", f"repeats the snippet before in {repeats:,} of {snippets:,} snippets"
    return None


def _take_together(facts: Sequence[StreamFacts], snippets: Sequence[int]) -> StreamFacts:
    """One stream's values in all videos as if they were one, from each one's; NaN where there is no video."""
    if not facts:
        return StreamFacts(0, *[float("nan")] * 5)
    means, deviations, zeros = (
        np.array([getattr(part, name) for part in facts]) for name in ("mean", "deviation", "zeros")
    )
    weights = np.array(snippets, float)
    mean = float(np.average(means, weights=weights))
    variance = np.average(deviations**2 + (means - mean) ** 2, weights=weights)
    return StreamFacts(
        width=facts[0].width,
        lowest=min(part.lowest for part in facts),
        highest=max(part.highest for part in facts),
        mean=mean,
        deviation=float(np.sqrt(variance)),
        zeros=float(np.average(zeros, weights=weights)),
    )


def _compare_scales(values: Sequence[tuple[Video, dict[str, StreamFacts]]]) -> Iterator[Finding]:
    """Streams whose values are spread far more, or far less, than the middle video's."""
    for stream in values[0][1] if values else ():
        usual = float(np.median([facts[stream].deviation for _, facts in values]))
        for video, facts in values:
            deviation = facts[stream].deviation
            if deviation and usual and not 1 / SCALE_FACTOR <= deviation / usual <= SCALE_FACTOR:
                text = f"{stream} deviates by {deviation:.3g} from its mean, the middle video's by {usual:.3g}"
                yield Finding("scale", video.id, video.subset, text)


def _find_duplicates(shards: ShardSet) -> Iterator[Finding]:
    """Videos whose features are another's, byte for byte: across subsets, training has seen what is being tested."""
    for stream in shards.streams:
        groups: dict[int, list[Video]] = defaultdict(list)
        for index, video in enumerate(shards.videos):
            groups[shards.checksum(index, stream)].append(video)
        for group in groups.values():
            for video in group[1:]:
                other = group[0]
                elsewhere = f" of subset {other.subset}" if other.subset != video.subset else ""
                yield Finding("duplicated", video.id, video.subset, f"{stream} is that of {other.id}{elsewhere}")


def _length_of(video: Video, clock: Clock) -> Length:
    return Length(clock.lasts_s(video.snippets, video.fps), clock.stride_frames / video.fps, video.fps)


def _check_durations(shards: ShardSet) -> Iterator[Finding]:
    for video in shards.videos:
        length = _length_of(video, shards.clock)
        if not length.fits(video.duration_s):
            text = (
                f"{video.snippets:,} snippets cover {length.covered_s:,.1f} s of a video of {video.duration_s:,.1f} s"
            )
            yield Finding("duration", video.id, video.subset, text)


def _look_at_truth(shards: ShardSet) -> list[str]:
    """What is wrong with the times of the instances, or with the file that holds them."""
    try:
        truth = read_annotations(shards.path, identity=shards.identity)
    except InputError as error:
        return [str(error)]
    if [video.id for video in shards.videos] != list(truth.videos):
        return [f"{shards.path}: the annotations are of other videos than the manifest: pack again."]
    lengths = [_length_of(video, shards.clock) for video in shards.videos]
    return list(look([truth.videos[video.id] for video in shards.videos], lengths, truth.on_bad))


def _count_subsets(shards: ShardSet) -> dict[str, SubsetFacts]:
    videos_of: dict[str, list[Video]] = defaultdict(list)
    for video in shards.videos:
        videos_of[video.subset].append(video)
    return {
        subset: SubsetFacts(
            videos=len(videos),
            hours=sum(video.duration_s for video in videos) / 3600,
            snippets=sum(video.snippets for video in videos),
            shortest=min(video.snippets for video in videos),
            median=float(np.median([video.snippets for video in videos])),
            longest=max(video.snippets for video in videos),
            labels=float(np.mean([len(video.labels) for video in videos])),
            unlabelled=sum(not video.labels for video in videos),
        )
        for subset, videos in videos_of.items()
    }


def _count_classes(shards: ShardSet) -> dict[str, dict[str, int]]:
    subsets = dict.fromkeys((video.subset for video in shards.videos), 0)
    counts = {label: dict(subsets) for label in shards.classes}
    for video in shards.videos:
        for label in video.labels:
            counts[shards.classes[label]][video.subset] += 1
    return counts
