"""What a table of average precisions does not show: how detections and ground truth met, and what is odd about them.

Nothing is left out or mended for being odd. Instances that are longer than their video or lie behind its end, and those
too short to be found, are matched and counted like any other, as in published numbers, and are told of.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from aumn.ends import TOLD, Ends, measure_ends
from aumn.records import Detections, GroundTruth, InputError

SHORT_S = 0.02
NO_ENDS = Ends()

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

    detections: int = 0
    outside_population: dict[str, int] = field(default_factory=dict)  # of each video that is not of the population
    unknown_labels: dict[str, int] = field(default_factory=dict)  # detections of each label without ground truth
    classes_without_detections: tuple[str, ...] = ()
    videos_without_detections: int = 0
    renamed_videos: int = 0  # with detections: those that the ground truth names with v_ before them, or without
    untimed_videos: int = 0  # left out, with their detections: nobody annotated when their actions happen
    is_apart: bool = True  # no detection matches any instance
    detection_ends: Ends = NO_ENDS
    instance_ends: Ends = NO_ENDS
    zero_length_instances: int = 0
    short_instances: int = 0  # of SHORT_S at most, those of no length among them
    duplicate_instances: int = 0  # that are another's double, to the last bit
    left_out_instances: int = 0  # that end before they start, where the user chose so
    swapped_instances: int = 0
    similar_labels: tuple[tuple[str, ...], ...] = ()  # that only their spelling keeps apart


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank's detections add to the counts; no other rank has any of these videos."""

    detections: int
    outside: Counter[str]
    videos: int  # of the population, that have detections
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


def met_names(names: Sequence[str], *known: Collection[str]) -> list[str]:
    """The known names of the detections' videos, some with v_ before."""

    def met(name: str) -> str:
        tried = (name, f"v_{name}", name.removeprefix("v_"))
        return next((found for found in tried if any(found in names for names in known)), name)

    return [name if name in known[0] else met(name) for name in names]


def keep_rows(table: Table, is_kept_N: np.ndarray) -> Table:
    """Some of the rows."""
    if is_kept_N.all():
        return table
    columns = [column.name for column in fields(table) if column.name.endswith("_N")]
    return replace(table, **{name: getattr(table, name)[is_kept_N] for name in columns})


def count_truth(ground_truth: GroundTruth) -> Counts:
    """What is to be told of the ground truth, as if there were no detections."""
    length_s_N = ground_truth.end_s_N - ground_truth.start_s_N
    ends_s = [ground_truth.durations_s.get(name, math.nan) for name in ground_truth.videos]
    columns = (ground_truth.video_N, ground_truth.label_N, ground_truth.start_s_N, ground_truth.end_s_N)
    order = np.lexsort(columns)
    is_double = np.logical_and.reduce([column_N[order][1:] == column_N[order][:-1] for column_N in columns])
    return Counts(
        untimed_videos=len(ground_truth.untimed),
        instance_ends=measure_ends(ground_truth.video_N, ground_truth.start_s_N, ground_truth.end_s_N, ends_s),
        zero_length_instances=int((length_s_N == 0).sum()),
        short_instances=int((length_s_N <= SHORT_S).sum()),
        duplicate_instances=int(is_double.sum()),
        left_out_instances=ground_truth.left_out,
        swapped_instances=ground_truth.swapped,
    )


def count(
    truth: Counts,
    shares: Sequence[Share],
    population: Population,
    labels: Sequence[str],
    *,
    example: str,
    is_apart: bool,
) -> Counts:
    """Of all ranks' shares; InputError where no video is of the population, of which there is an `example`."""
    outside, seen = (sum((getattr(share, name) for share in shares), Counter[str]()) for name in ("outside", "labels"))
    detections, videos = (sum(getattr(share, name) for share in shares) for name in ("detections", "videos"))
    if outside and not videos:  # the wrong annotations, not a bad detector
        raise InputError(
            f"None of the {detections:,} detections is of a video of the ground truth: they are of videos such "
            f"as {min(outside)!r}, it has videos such as {example!r}; "
            "give the annotations and the subset of the videos that were localized."
        )
    return replace(
        truth,
        detections=detections,
        outside_population=dict(sorted(outside.items())),
        unknown_labels={name: seen[name] for name in sorted(seen.keys() - set(labels))},
        classes_without_detections=tuple(label for label in labels if label not in seen),
        videos_without_detections=population.videos - videos,
        renamed_videos=sum(share.renamed_videos for share in shares),
        is_apart=is_apart,
        detection_ends=sum((share.ends for share in shares), NO_ENDS),
        similar_labels=_find_similar({*labels, *seen}),
    )


def _find_similar(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Labels that are the same but for case, signs and a first word "playing", together."""
    spelled = defaultdict(list)
    for label in sorted(labels):
        spelled[re.sub(r"[\W_]+", "", label.casefold().removeprefix("playing"))].append(label)
    return tuple(tuple(names) for key, names in spelled.items() if key and len(names) > 1)


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    return ", ".join(islice(names, 3))


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
