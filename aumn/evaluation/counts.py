"""What a table of average precisions does not show: how detections and ground truth met, and what is odd about them.

Nothing is left out or mended for being odd. Instances that are longer than their video or lie behind its end, and those
too short to be found, are matched and counted like any other, as in published numbers, and are told of.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from aumn.ends import TOLD, Ends, measure_ends
from aumn.records import Detections, GroundTruth, InputError

SHORT_S = 0.02

Table = TypeVar("Table", Detections, GroundTruth)


@dataclass(frozen=True, slots=True)
class Population:
    """What the precisions were measured on."""

    videos: int
    instances: int
    classes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How detections and ground truth met, over all ranks."""

    detections: int
    outside_population: dict[str, int]  # detections of each video that is not of the population
    unknown_labels: dict[str, int]  # detections of each label without ground truth
    classes_without_detections: tuple[str, ...]
    videos_without_detections: int
    renamed_videos: int  # with detections: those that the ground truth names with v_ before them, or without
    untimed_videos: int  # left out, with their detections: nobody annotated when their actions happen
    is_apart: bool  # no detection matches any instance
    detection_ends: Ends
    instance_ends: Ends
    zero_length_instances: int
    short_instances: int  # of SHORT_S at most, those of no length among them
    duplicate_instances: int  # that are another's double, to the last bit
    left_out_instances: int  # that end before they start, where the user chose so
    swapped_instances: int
    similar_labels: tuple[tuple[str, ...], ...]  # that only their spelling keeps apart


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank's detections add to the counts."""

    videos: Counter[str]
    labels: Counter[str]
    renamed_videos: int
    ends: Ends


def notes(counts: Counts, population: Population, labels: Sequence[str]) -> Iterator[str]:
    """A sentence on each thing that a reader of the table may not expect; `labels` are the classes measured on."""
    if counts.detections:
        yield from _notes_of_detections(counts, population)
    else:
        yield "There are no detections, so every average precision is 0."
    if counts.untimed_videos:
        yield f"Not measured on, for nobody annotated when: {_plural(counts.untimed_videos, 'video')}."
    for count, text in (
        (counts.left_out_instances, "Left out, for they end before they start"),
        (counts.swapped_instances, "Taken with start and end exchanged, for they end before they start"),
        (counts.zero_length_instances, "Never matched, for want of length"),
        (counts.short_instances, f"Hardly to be matched, for they last {SHORT_S:g} s at most"),
        (counts.duplicate_instances, "Annotated once more, to the same times"),
    ):
        if count:
            yield f"{text}: {_plural(count, 'instance')}."
    yield from counts.instance_ends.say("instance", TOLD)
    if similar := counts.similar_labels:
        pairs = (" and ".join(map(repr, names)) for names in similar)
        yield f"Kept apart by spelling alone: {_plural(len(similar), 'group')} of labels, such as {_some(pairs)}."
    if ambiguous := [label for label in labels if label.casefold() == "ambiguous"]:
        yield f"{ambiguous[0]!r} is measured as a class; THUMOS14 calls so what is not to be measured on."


def _notes_of_detections(counts: Counts, population: Population) -> Iterator[str]:
    for what, noun, found in (
        ("False positives outside the population", "video", counts.outside_population),
        ("Left out, for want of ground truth", "label", counts.unknown_labels),
    ):
        if found:
            detections = f"{_plural(sum(found.values()), 'detection')} of {_plural(len(found), noun)}"
            yield f"{what}: {detections}, such as {_some(found)}."
    if silent := counts.classes_without_detections:
        yield f"Without a detection, so AP 0: {len(silent)} of {population.classes} classes, such as {_some(silent)}."
    if counts.videos_without_detections:
        yield f"Without a detection: {counts.videos_without_detections:,} of {population.videos:,} videos."
    if counts.renamed_videos:
        yield f"Named with v_ in one of the two files alone: {_plural(counts.renamed_videos, 'video')}."
    if counts.is_apart:
        yield "No detection overlaps an instance of its class by the lowest tIoU."
    if counts.detection_ends.starting:
        yield from counts.detection_ends.say("detection", TOLD)


def meet(detections: Detections, ground_truth: GroundTruth) -> Detections:
    """The detections that can be measured, by the ground truth's names of videos, some with v_ before."""
    known = {*ground_truth.videos, *ground_truth.untimed}

    def met(name: str) -> str:
        names = (name, f"v_{name}", name.removeprefix("v_"))
        return next((known_name for known_name in names if known_name in known), name)

    videos = [met(name) for name in detections.videos]
    is_timed_V = np.array([name not in ground_truth.untimed for name in videos], dtype=bool)
    return keep_rows(replace(detections, videos=videos), is_timed_V[detections.video_N])


def keep_rows(table: Table, is_kept_N: np.ndarray) -> Table:
    """Some of the rows."""
    if is_kept_N.all():
        return table
    columns = [field.name for field in fields(table) if field.name.endswith("_N")]
    return replace(table, **{name: getattr(table, name)[is_kept_N] for name in columns})


def count_share(names: Sequence[str], met: Detections, ground_truth: GroundTruth) -> Share:
    """Of one rank's own detections, as `meet` gave them back; `names` are those that their videos came with."""
    return Share(
        videos=_tally(met.videos, met.video_N),
        labels=_tally(met.labels, met.label_N),
        renamed_videos=sum(name != now for name, now in zip(names, met.videos, strict=True)),
        ends=_measure_ends(met, ground_truth),
    )


def count(
    shares: Sequence[Share], ground_truth: GroundTruth, population: list[str], labels: list[str], *, is_apart: bool
) -> Counts:
    """Of all ranks' shares; InputError where no video is of the population."""
    videos, seen = (sum((getattr(share, name) for share in shares), Counter[str]()) for name in ("videos", "labels"))
    outside = {name: videos[name] for name in sorted(videos.keys() - set(population))}
    if videos and len(outside) == len(videos):  # the wrong annotations, not a bad detector
        raise InputError(
            f"None of the {videos.total():,} detections is of a video of the ground truth: they are of videos such "
            f"as {min(outside)!r}, it has videos such as {population[0]!r}; "
            "give the annotations and the subset of the videos that were localized."
        )
    length_s_N = ground_truth.end_s_N - ground_truth.start_s_N
    columns = (ground_truth.video_N, ground_truth.label_N, ground_truth.start_s_N, ground_truth.end_s_N)
    return Counts(
        detections=videos.total(),
        outside_population=outside,
        unknown_labels={name: seen[name] for name in sorted(seen.keys() - set(labels))},
        classes_without_detections=tuple(label for label in labels if label not in seen),
        videos_without_detections=len(population) - (len(videos) - len(outside)),
        renamed_videos=sum(share.renamed_videos for share in shares),
        untimed_videos=len(ground_truth.untimed),
        is_apart=is_apart,
        detection_ends=sum((share.ends for share in shares), Ends()),
        instance_ends=_measure_ends(ground_truth, ground_truth),
        zero_length_instances=int((length_s_N == 0).sum()),
        short_instances=int((length_s_N <= SHORT_S).sum()),
        duplicate_instances=len(ground_truth) - len(np.unique(np.stack(columns), axis=1).T),
        left_out_instances=ground_truth.left_out,
        swapped_instances=ground_truth.swapped,
        similar_labels=_find_similar({*labels, *seen}),
    )


def _measure_ends(table: Detections | GroundTruth, ground_truth: GroundTruth) -> Ends:
    ends_s = [ground_truth.durations_s.get(name, math.nan) for name in table.videos]
    return measure_ends(table.video_N, table.start_s_N, table.end_s_N, ends_s)


def _find_similar(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Labels that are the same but for case, signs and a first word "playing", together."""
    spelled = defaultdict(list)
    for label in sorted(labels):
        spelled[re.sub(r"[\W_]+", "", label.casefold().removeprefix("playing"))].append(label)
    return tuple(tuple(names) for key, names in spelled.items() if key and len(names) > 1)


def _tally(names: Sequence[str], index_N: np.ndarray) -> Counter[str]:
    """How many rows there are of each name that has any."""
    tally = Counter[str]()
    for name, rows in zip(names, np.bincount(index_N, minlength=len(names)).tolist(), strict=True):
        tally[name] += rows
    return +tally


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    return ", ".join(islice(names, 3))


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
