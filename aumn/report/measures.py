"""What the page says of all detections together: mAP, precision and recall, errors. JSON values, rounded for drawing.

Letters: N detections, G instances, C classes, T tIoU thresholds, V videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from aumn.evaluation.average_precision import ranking, true_positive_places, true_positives
from aumn.evaluation.errors import KINDS, LENGTHS, Diagnosis, by_length, diagnose, profile, removal_gains
from aumn.evaluation.evaluate import Evaluation, evaluate, renumber
from aumn.evaluation.own_truth import deal
from aumn.records import Detections, GroundTruth
from aumn.runtime.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Measured:
    """Detections and ground truth that number videos and labels alike, and everything found by comparing them.

    `videos` are the population and whatever other videos have detections, in the order of their names.
    """

    detections: Detections
    ground_truth: GroundTruth
    evaluation: Evaluation
    diagnosis: Diagnosis


def measure(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float]) -> Measured:
    """Evaluate and diagnose. Detections of labels without ground truth are left out, as the evaluation's notes say."""
    own = deal(ground_truth, detections.videos)
    evaluation = evaluate(detections, own, tious, Ranks())
    videos = sorted({*ground_truth.videos, *evaluation.counts.outside_population})
    labels = list(evaluation.labels)
    timed = replace(own.timed(detections), videos=own.videos)
    found, truth = renumber(timed, videos, labels), renumber(ground_truth, videos, labels)
    return Measured(found, truth, evaluation, diagnose(found, truth, tious))


def overview(measured: Measured) -> dict[str, Any]:
    """The mAP table with its population, and the notes of the evaluation."""
    evaluation = measured.evaluation
    return {
        "tious": list(evaluation.tious),
        "map": evaluation.map_T,
        "average": evaluation.average,
        "means": evaluation.usual_means(),
        "population": asdict(evaluation.population),
        "detections": evaluation.counts.detections,
        "notes": evaluation.notes(),
    }


def classes(measured: Measured) -> dict[str, Any]:
    """Per class: instances, detections, AP, and where its ranking holds its true positives, at each threshold."""
    evaluation, found = measured.evaluation, measured.detections
    matched_N = measured.diagnosis.matched_N
    positives = true_positives(found, matched_N, ranking(found, matched_N))
    places = true_positive_places(positives, len(evaluation.labels), len(evaluation.tious))
    return {
        "names": list(evaluation.labels),
        "instances": evaluation.instances_C.tolist(),
        "detections": np.bincount(found.label_N, minlength=len(evaluation.labels)).tolist(),
        "ap": np.round(evaluation.ap_CT.T, 5).tolist(),
        "places": [[place_M.tolist() for place_M in of_class] for of_class in places],
    }


def errors(measured: Measured) -> dict[str, Any]:
    """The kinds of error at each threshold: how many, at which places of the ranking, by length, and what they cost."""
    found, truth, diagnosis = measured.detections, measured.ground_truth, measured.diagnosis
    lengths = by_length(found, truth, diagnosis)
    gain_TE = removal_gains(found, truth, diagnosis)
    return {
        "kinds": KINDS,
        "profile": profile(found, truth, diagnosis).tolist(),
        "total": [np.bincount(kind_N, minlength=len(KINDS)).tolist() for kind_N in diagnosis.kind_NT.T],
        "missed": (~diagnosis.taken_GT).sum(0).tolist(),
        "gain": np.round(gain_TE, 5).tolist(),
        "lengths": {
            "names": LENGTHS,
            "bounds_s": np.round(lengths.bounds_s, 3).tolist(),
            "instances": lengths.instances_L.tolist(),
            "missed": lengths.missed_TL.tolist(),
            "kinds": lengths.kind_TLE.tolist(),
        },
    }
