"""What a rank keeps of the ground truth: the instances of its own videos, and of all others how many there are."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aumn.ends import BLOCK_ROWS, measure_ends
from aumn.evaluation.counts import Counts, Population, Share, count_truth, keep_rows, met_names
from aumn.records import Detections, GroundTruth, InputError


@dataclass(frozen=True, slots=True)
class OwnTruth:
    """The ground truth as it concerns a rank's detections, V videos of them; see `deal`.

    Numbers of videos are the same on every rank, which need not know each other's videos: they sort as the names do.
    The population has the odd ones. Videos outside it share the even one between two of it: they match nothing, so
    their order among themselves cannot matter.
    """

    population: Population
    counts: Counts  # as if there were no detections
    labels: list[str]  # that have an instance, sorted
    instances_C: np.ndarray
    example: str  # a video of the population
    videos: list[str]  # of the detections, by the ground truth's names
    number_V: np.ndarray  # int32
    is_timed_V: np.ndarray
    end_s_V: np.ndarray  # where it is told, else NaN
    renamed_videos: int
    instances: GroundTruth  # of these videos alone, by their numbers

    def numbered(self, detections: Detections) -> Detections:
        """The detections by the same numbers; those of labels without an instance have one more than there are."""
        class_of = {label: number for number, label in enumerate(self.labels)}
        class_L = np.array([class_of.get(label, len(class_of)) for label in detections.labels], np.int32)
        columns = (self.number_V[detections.video_N], class_L[detections.label_N], *detections.columns[2:])
        return Detections((), self.labels, *columns)

    def timed(self, detections: Detections) -> Detections:
        """Those that can be measured: of videos of which somebody annotated when their actions happen."""
        return detections if self.is_timed_V.all() else keep_rows(detections, self.is_timed_V[detections.video_N])

    def share(self, timed: Detections) -> Share:
        """What there is to count of those detections."""
        rows_V, is_inside_V = _tally(timed.video_N, len(self.videos)), self.number_V % 2 == 1
        rows_L = _tally(timed.label_N, len(timed.labels))
        outside = np.flatnonzero(~is_inside_V & (rows_V > 0)).tolist()
        return Share(
            detections=len(timed),
            outside=Counter({self.videos[video]: int(rows_V[video]) for video in outside}),
            videos=len(np.unique(self.number_V[is_inside_V & (rows_V > 0)])),
            labels=+Counter(dict(zip(timed.labels, rows_L.tolist(), strict=True))),
            renamed_videos=self.renamed_videos,
            ends=measure_ends(timed.video_N, timed.start_s_N, timed.end_s_N, self.end_s_V),
        )


def deal(ground_truth: GroundTruth, videos: Sequence[str]) -> OwnTruth:
    """What concerns the detections of these videos; InputError where there is no instance at all."""
    if not len(ground_truth):
        raise InputError("The ground truth holds no instance to find: choose a subset that has annotations.")
    population = sorted(set(ground_truth.videos))
    number_of = {name: 2 * i + 1 for i, name in enumerate(population)}
    met = met_names(videos, number_of.keys(), ground_truth.untimed)
    number_V = np.array([number_of.get(name) or 2 * bisect_left(population, name) for name in met], np.int32)
    labels = sorted({ground_truth.labels[i] for i in np.unique(ground_truth.label_N)})
    class_of = {name: number for number, name in enumerate(labels)}
    class_N = np.array([class_of.get(name, -1) for name in ground_truth.labels], np.int32)[ground_truth.label_N]
    number_N = np.array([number_of[name] for name in ground_truth.videos], np.int32)[ground_truth.video_N]
    instances = replace(
        ground_truth, videos=(), labels=labels, video_N=number_N, label_N=class_N, durations_s={}, untimed=()
    )
    return OwnTruth(
        population=Population(len(population), len(ground_truth), len(labels)),
        counts=count_truth(ground_truth),
        labels=labels,
        instances_C=np.bincount(class_N, minlength=len(labels)),
        example=population[0],
        videos=met,
        number_V=number_V,
        is_timed_V=np.array([name not in ground_truth.untimed for name in met], bool),
        end_s_V=np.array([ground_truth.durations_s.get(name, math.nan) for name in met]),
        renamed_videos=sum(name != now for name, now in zip(videos, met, strict=True)),
        instances=keep_rows(instances, np.isin(number_N, number_V)),
    )


def _tally(index_N: np.ndarray, size: int) -> np.ndarray:
    """How many rows there are of each; a block at a time, of which numpy makes longer numbers."""
    rows = np.zeros(size, np.int64)
    for start in range(0, len(index_N), BLOCK_ROWS):
        rows += np.bincount(index_N[start : start + BLOCK_ROWS], minlength=size)
    return rows
