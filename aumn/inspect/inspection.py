"""What a shard set holds, and which of its videos look wrong: one pass over its features, video by video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.shards.shard_set import ShardSet
from aumn.inspect.values import Finding, StreamFacts, VideoValues, compare_scales, measure_stream, take_together
from aumn.records import InputError, Video

DURATION_SLACK = 0.1  # of the duration; and two snippets, which extractors lose at a video's end
CHUNK_VIDEOS = 64  # read ahead by threads


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
class Inspection:
    """Everything that was found; `classes` counts the videos of each class by subset."""

    path: Path
    name: str
    identity: str
    stride_frames: int
    subsets: dict[str, SubsetFacts]
    classes: dict[str, dict[str, int]]
    streams: dict[str, StreamFacts]
    findings: list[Finding]
    population: Sequence[Video]  # every video of the set
    videos: list[VideoValues]  # those that were read whole
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
    path: Path, *, sample: int | None = None, workers: int = 1, advance: Callable[[int, int], None] = lambda *_: None
) -> Inspection:
    """Look at every video of a shard set, or at the values of `sample` videos spread evenly over it.

    Counts, durations and duplicates come from the manifest, so they are of all videos in any case.
    """
    for name, number in (("sample", sample), ("workers", workers)):
        if number is not None and number < 1:
            raise InputError(f"--{name} is {number}; it must be at least 1.")
    shards = ShardSet.open(path)
    chosen = _spread(len(shards), sample)
    values: list[VideoValues] = []
    findings = [*_find_duplicates(shards), *_check_durations(shards)]
    for done, outcome in enumerate(_read_all(shards, chosen, workers), start=1):
        seen, found = outcome
        values += [seen] if seen else []
        findings += found
        advance(done, len(chosen))
    findings += compare_scales(values)
    order = {video.id: index for index, video in enumerate(shards.videos)}
    return Inspection(
        path=path,
        name=shards.name,
        identity=shards.identity,
        stride_frames=shards.stride_frames,
        subsets=_count_subsets(shards),
        classes=_count_classes(shards),
        streams={stream: take_together(values, stream) for stream in shards.streams},
        findings=sorted(findings, key=lambda finding: (finding.kind, order[finding.video])),
        population=shards.videos,
        videos=values,
        read=len(chosen),
    )


def _spread(count: int, sample: int | None) -> Sequence[int]:
    if sample is None or sample >= count:
        return range(count)
    indices: list[int] = np.linspace(0, count - 1, sample).round().astype(int).tolist()
    return indices


def _read_all(
    shards: ShardSet, indices: Sequence[int], workers: int
) -> Iterator[tuple[VideoValues | None, list[Finding]]]:
    """In the videos' order, which is that of the shards on the disk; threads read a little ahead."""

    def look(index: int) -> tuple[VideoValues | None, list[Finding]]:
        return _look(shards, index)

    with ThreadPoolExecutor(workers) as threads:
        for first in range(0, len(indices), CHUNK_VIDEOS):
            yield from threads.map(look, indices[first : first + CHUNK_VIDEOS])


def _look(shards: ShardSet, index: int) -> tuple[VideoValues | None, list[Finding]]:
    video = shards.videos[index]
    try:
        features = shards.read(index)
    except InputError as error:
        return None, [Finding("damaged", video.id, video.subset, str(error))]
    streams, findings = {}, []
    for stream, features_TD in features.items():
        facts, problem = measure_stream(features_TD.astype(np.float32))
        if problem:
            findings.append(Finding(problem[0], video.id, video.subset, f"{stream} {problem[1]}"))
        if facts:
            streams[stream] = facts
    whole = len(streams) == len(features)
    return (VideoValues(video, streams) if whole else None), findings


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


def _check_durations(shards: ShardSet) -> Iterator[Finding]:
    for video in shards.videos:
        snippet_s = shards.stride_frames / video.fps
        covered_s = video.snippets * snippet_s
        if abs(covered_s - video.duration_s) > max(DURATION_SLACK * video.duration_s, 2 * snippet_s):
            text = f"{video.snippets:,} snippets cover {covered_s:,.1f} s of a video of {video.duration_s:,.1f} s"
            yield Finding("duration", video.id, video.subset, text)


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
