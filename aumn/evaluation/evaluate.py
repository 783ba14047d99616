"""mAP of detections against temporal ground truth: sharded by video, the same to the last bit at any number of ranks.

Each rank matches and ranks the detections of its own videos; the ranks then add up how many detections stand above each
true positive, and share out the classes. What the protocol computes, ties and zero lengths included, stands in
`average_precision`. What is counted:

- The population is every video of the ground truth, annotated or not. Detections of any other video are false
  positives, as in the ActivityNet devkit.
- The mean is over the classes that have an instance; one without a detection has AP 0. Detections of other labels count
  for nothing. `Evaluation.notes` says how many there were of whatever a reader may not expect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from aumn.evaluation.average_precision import (
    MOST_TIOUS,
    average_precisions,
    count_above,
    match,
    ranking,
    true_positives,
)
from aumn.evaluation.counts import Counts, Population, Table, count, keep_rows, notes
from aumn.evaluation.own_truth import OwnTruth, deal
from aumn.records import Detections, GroundTruth, InputError
from aumn.runtime.ranks import Ranks

PROTOCOLS = {"thumos14": "0.1:0.7:0.1", "activitynet": "0.5:0.95:0.05"}
USUAL_MEANS = ("0.1:0.5:0.1", "0.3:0.7:0.1", "0.1:0.7:0.1")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Average precision of each class at each threshold, as fractions, and what it was measured on."""

    tious: tuple[float, ...]
    labels: tuple[str, ...]
    ap_CT: np.ndarray
    instances_C: np.ndarray
    population: Population
    counts: Counts

    @property
    def map_T(self) -> list[float]:
        """Mean average precision at each threshold."""
        return [_mean(ap_C.tolist()) for ap_C in self.ap_CT.T]

    @property
    def average(self) -> float:
        """The mean of mAP over all thresholds."""
        return _mean(self.map_T)

    def usual_means(self) -> dict[str, float]:
        """The means that THUMOS14 papers print, as {"0.1:0.5": ...}; only those whose thresholds were all evaluated."""
        map_of = dict(zip(self.tious, self.map_T, strict=True))
        tious_of = {text.rpartition(":")[0]: parse_tious(text) for text in USUAL_MEANS}
        return {
            name: _mean([map_of[tiou] for tiou in tious])
            for name, tious in tious_of.items()
            if map_of.keys() >= set(tious)
        }

    def notes(self) -> list[str]:
        """Those of `counts`; none when all is as it should be."""
        return list(notes(self.counts, self.population, self.labels))

    def to_json(self) -> dict[str, Any]:
        """All of it for `json.dumps`; thresholds are keys such as "0.1" and "0.55"."""
        per_class = zip(self.labels, self.ap_CT, strict=True)
        return {
            "mAP": self._by_tiou(self.map_T),
            "average": self.average,
            "population": asdict(self.population),
            "counts": asdict(self.counts),
            "notes": self.notes(),
            "per_class": {label: self._by_tiou(ap_T.tolist()) for label, ap_T in per_class},
        }

    def _by_tiou(self, value_T: Sequence[float]) -> dict[str, float]:
        return {str(tiou): value for tiou, value in zip(self.tious, value_T, strict=True)}


def choose_tious(protocol: str | None, tious: str | None) -> tuple[float, ...]:
    """The thresholds of a protocol by name, or those spelled out: one of the two."""
    if (protocol is None) == (tious is None):
        raise InputError(
            "Give either --protocol thumos14 or activitynet, or --tiou with thresholds such as 0.1:0.7:0.1."
        )
    if protocol is None:
        return parse_tious(tious or "")
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r} is not known: choose {' or '.join(PROTOCOLS)}, or give --tiou.")
    return parse_tious(PROTOCOLS[protocol])


def parse_tious(text: str) -> tuple[float, ...]:
    """Thresholds from "0.1:0.7:0.1" (first, last, step; the last included) or from "0.3,0.5,0.7", ascending.

    Reckoned in decimals: the third of "0.1:0.7:0.1" is the float nearest 0.3, not 0.1 + 2 * 0.1.
    """
    try:
        if ":" in text:
            first, last, step = map(Decimal, text.split(":"))
            steps = (last - first) / step
            is_whole = 0 < steps < MOST_TIOUS and steps == int(steps)
            decimals = [first + step * i for i in range(int(steps) + 1)] if is_whole else []
        else:
            decimals = [Decimal(part) for part in text.split(",")]
        tious = sorted({float(tiou) for tiou in decimals})  # of which 1e-400 is 0
    except (ArithmeticError, ValueError):
        tious = []
    if not 0 < len(tious) <= MOST_TIOUS or not all(0 < tiou <= 1 for tiou in tious):
        raise InputError(
            f"tIoU thresholds {text!r} cannot be read: give first:last:step with steps that meet the last, such as "
            f"0.1:0.7:0.1, or a list such as 0.3,0.5; all above 0, none above 1, at most {MOST_TIOUS}."
        )
    return tuple(tious)


def evaluate(
    detections: Detections, ground_truth: GroundTruth | OwnTruth, tious: Sequence[float], ranks: Ranks
) -> Evaluation:
    """Average precision over the detections of all ranks; every rank gets the whole result.

    A rank brings every detection of its own videos, and no other rank any of those; and the ground truth, whole or what
    `deal` leaves of it for those videos.
    """
    own = ground_truth if isinstance(ground_truth, OwnTruth) else deal(ground_truth, detections.videos)
    timed = own.timed(detections)
    share, numbered = own.share(timed), own.numbered(timed)
    matched_N, _ = match(numbered, own.instances, tious)
    order_N = ranking(numbered, matched_N)
    found, shares = zip(*ranks.gather((true_positives(numbered, matched_N, order_N), share)), strict=True)
    is_apart = not any(map(len, found))
    counts = count(own.counts, shares, own.population, own.labels, example=own.example, is_apart=is_apart)
    positives = _own_positives(numbered, order_N, found, ranks)
    ap_CT = average_precisions(positives, own.instances_C, len(tious))
    return Evaluation(
        tious=tuple(float(tiou) for tiou in tious),
        labels=tuple(own.labels),
        ap_CT=np.sum(ranks.gather(ap_CT), axis=0),  # exact: only its owner has anything but 0 for a class
        instances_C=own.instances_C,
        population=own.population,
        counts=counts,
    )


def _own_positives(
    detections: Detections, order_N: np.ndarray, found: Sequence[np.ndarray], ranks: Ranks
) -> np.ndarray:
    """The true positives of the classes that this rank owns, with places among all ranks' detections."""
    if ranks.size == 1:
        return found[0]
    above = [
        own["above"] if rank == ranks.rank else count_above(detections, order_N, own) for rank, own in enumerate(found)
    ]
    positives = np.concatenate(found)
    positives["above"] = np.sum(ranks.gather(np.concatenate(above)), axis=0)
    positives = positives[positives["label"] % ranks.size == ranks.rank]
    order = np.lexsort((positives["above"], positives["label"]))
    return np.asarray(positives[order])


def renumber(table: Table, videos: list[str], labels: list[str]) -> Table:
    """The table numbered by these sorted names, so that numbers sort as names do; rows of other labels are left out."""
    video_of, label_of = ({name: number for number, name in enumerate(names)} for names in (videos, labels))
    video_N = np.array([video_of.get(name, -1) for name in table.videos], dtype=np.int32)[table.video_N]
    label_N = np.array([label_of.get(name, -1) for name in table.labels], dtype=np.int32)[table.label_N]
    return keep_rows(replace(table, videos=videos, labels=labels, video_N=video_N, label_N=label_N), label_N >= 0)


def _mean(values: Sequence[float]) -> float:
    """The mean, rounded once, so that the order of the values cannot show."""
    return math.fsum(values) / len(values)
