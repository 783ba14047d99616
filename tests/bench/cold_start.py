"""Cold start of the command line: the whole process, from its start to its end."""

import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

from harness import Row, fresh_seed, main, run, take_turns

from aumn.evaluation.evaluate import evaluate
from aumn.inference.parts import write_part
from aumn.runtime.ranks import Ranks
from tests import evaluation_reference as reference

AUMN = str(Path(sysconfig.get_path("scripts")) / "aumn")
QUIET_PYTHON = [sys.executable, "-c", "pass"]


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command, expected = small_case(Path(folder), fresh_seed())
        assert f"{expected:.1f}" in run(command), "the command line prints another mAP than the library computes"
        best_s = take_turns(
            7, help=partial(run, [AUMN, "--help"]), evaluate=partial(run, command), python=partial(run, QUIET_PYTHON)
        )
    return [
        Row("aumn --help (theirs: python alone)", best_s["help"], "<= 0.3", best_s["help"], best_s["python"], "s"),
        Row("aumn evaluate, a small set", best_s["evaluate"], "<= 1.0", best_s["evaluate"], best_s["python"], "s"),
    ]


def small_case(folder: Path, seed: int) -> tuple[list[str], float]:
    """The command that evaluates some fifty detections, and the average mAP in percent that it must print."""
    import json

    from evaluation import make_detections

    instances = [
        reference.Instance(f"v{number % 9}", f"class {number % 3}", number, number + 5.0) for number in range(30)
    ]
    truth = reference.as_ground_truth(instances)
    detections = make_detections(truth, 54, seed)
    (folder / "detections").mkdir()
    write_part(detections, folder / "detections" / "part-00000.parquet", {"subset": "testing"})
    database = {video: {"subset": "testing", "annotations": []} for video in truth.videos}
    for video, label, start_s, end_s in instances:
        database[video]["annotations"].append({"label": label, "segment": [start_s, end_s]})
    (folder / "gt.json").write_text(json.dumps({"database": database}))
    command = [
        AUMN,
        "evaluate",
        str(folder / "detections"),
        "--annotations",
        str(folder / "gt.json"),
        "--tiou",
        "0.3,0.5",
    ]
    return command, 100 * evaluate(detections, truth, (0.3, 0.5), Ranks()).average


if __name__ == "__main__":
    main(measure)
