"""Run under torchrun by test_evaluate: evaluate a folder of parts; every rank saves what came out, and what it took."""

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np

from aumn.evaluation.evaluate import evaluate
from aumn.inference.detections import read_detections
from aumn.records import GroundTruth
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import connect

TIOUS = (0.1, 0.3, 0.5, 0.9)


def load_ground_truth(path: Path) -> GroundTruth:
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays}
    columns["videos"], columns["labels"] = columns["videos"].tolist(), columns["labels"].tolist()
    return GroundTruth(**columns)


def main() -> None:
    folder = Path(sys.argv[1])
    truth = load_ground_truth(folder / "truth.npz")
    with connect() as ranks:
        tracemalloc.start()
        detections, _ = read_detections(folder / "detections", ranks.rank, ranks.size)
        evaluation = evaluate(detections, truth, TIOUS, ranks)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    result = {
        "evaluation": evaluation.to_json(),
        "rows": len(detections),
        "peak_bytes": peak_bytes,
        "modules": [name for name in sys.modules if "." not in name],
    }
    (folder / f"{ranks.rank}of{ranks.size}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    leave()
