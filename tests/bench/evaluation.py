"""Evaluation at ActivityNet1.3's size: 472,800 detections of 4,926 videos, 200 classes, 10 tIoUs.

And of 20 times as many against commit 0e01a02, whole commands of one process.

On one core, from Parquet to the printed table. The fastest public evaluator that we know takes 12.7 s, and 2 s to load
its JSON (measured once, elsewhere). Then two ranks against one, from where both have started: time and memory.
"""

import contextlib
import io
import json
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from harness import BUILD, MEASURABLE, REPOSITORY, Row, at_commit, fresh_seed, in_process, main, peak_growth_bytes

from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation.evaluate import choose_tious, evaluate
from aumn.inference.detections import read_detections
from aumn.inference.parts import write_part
from aumn.records import Detections, GroundTruth
from aumn.runtime.ranks import Ranks, connect
from tests import evaluation_reference as reference
from tests.real.many_detections import evaluating, make

DETECTIONS, VIDEOS, CLASSES = 472_800, 4_926, 200
TIOUS = choose_tious("activitynet", None)
PUBLIC_S = 12.7
TIMES = 20


def measure() -> list[Row]:
    seed = fresh_seed()
    check_against_reference(seed)
    folder = BUILD / "evaluation"
    annotations = make_case(folder, seed)
    cores = sorted(os.sched_getaffinity(0))
    one_thread = {"OMP_NUM_THREADS": "1"}
    alone = min(
        (in_process("alone", annotations, folder, cores=cores[:1]) for _ in range(3)), key=lambda run: run["total_s"]
    )
    print(f"one core, seconds: {alone}")
    runs = {ranks: [] for ranks in (1, 2)}
    for _ in range(5):
        for ranks, of_size in runs.items():
            of_size.append(in_process("ranks", annotations, folder, ranks=ranks, environment=one_thread))
    assert len({run["mAP"] for of_size in runs.values() for run in of_size}) == 1, "ranks must not change the result"
    one_s, two_s = ([run["seconds"] for run in runs[ranks]] for ranks in (1, 2))
    one_mb, two_mb = (
        in_process("memory", annotations, folder, ranks=ranks, environment=one_thread | MEASURABLE)["bytes"] / 1e6
        for ranks in (1, 2)
    )
    many = BUILD / f"evaluation_{TIMES}"
    if not (many / "found").exists():
        make(many, TIMES, annotations)
    sides = {code: [] for code in (REPOSITORY, at_commit("0e01a02"))}
    for _ in range(3):
        for code, costs in sides.items():
            costs.append(evaluating(many, code))
    ours, theirs = sides.values()
    print(f"9.5 million detections: {ours}, and of 0e01a02: {theirs}")
    assert len({cost["mAP"] for cost in (*ours, *theirs)}) == 1, "a commit must not change the result"
    cpu_s, memory = ([[cost[name] / unit for cost in side] for side in (ours, theirs)]
                     for name, unit in (("cpu_s", 1), ("bytes", 1e9)))  # fmt: skip
    return [
        Row.of_runs("9.5 million detections against 0e01a02, processor", ">= 3", *cpu_s, "s"),
        Row.of_runs("  their memory at the peak", "<= 0.5", *memory, "GB"),
        Row("evaluation on one core, Parquet to table", alone["total_s"], "<= 1", alone["total_s"], PUBLIC_S, "s"),
        Row.of_runs("  two ranks against one", ">= 1.6", two_s, one_s, "s"),
        Row("  a rank's memory, two against one", two_mb / one_mb, "<= 0.7", two_mb, one_mb, "MB"),
    ]


def make_case(folder: Path, seed: int) -> Path:
    """Detections in two parts, half of them near an instance; the path of the ground truth."""
    official = (
        Path(os.environ.get("AUMN_SHARED", REPOSITORY.parent / "shared")) / "data/activitynet/gt_activitynet13.json"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    annotations = official if official.exists() else make_ground_truth(folder / "gt.json", seed)
    truth = read_ground_truth(annotations, "validation")
    detections = make_detections(truth, DETECTIONS, seed)
    half = int(np.searchsorted(detections.video_N, VIDEOS // 2))  # a video is of one part, as `aumn localize` has it
    for part, rows in enumerate((slice(half), slice(half, None))):
        columns = {name: getattr(detections, name)[rows] for name in COLUMNS}
        part_of = Detections(detections.videos, detections.labels, **columns)
        write_part(part_of, folder / f"part-{part:05d}.parquet", {"subset": "validation"})
    return annotations


COLUMNS = ("video_N", "label_N", "score_N", "start_s_N", "end_s_N")


def make_ground_truth(path: Path, seed: int) -> Path:
    """Synthetic, of the size of ActivityNet1.3's validation subset: 4,926 videos, 7,654 instances, 200 classes."""
    rng = np.random.default_rng(seed)
    database = {}
    for number in range(VIDEOS):
        starts_s = np.sort(rng.uniform(0, 100, 1 + rng.poisson(0.55)))
        instances = [{"label": f"class {number % CLASSES}", "segment": [s, s + 20.0]} for s in starts_s.tolist()]
        database[f"v_{number:05d}"] = {"subset": "validation", "duration": 120.0, "annotations": instances}
    path.write_text(json.dumps({"database": database}))
    return path


def make_detections(truth: GroundTruth, count: int, seed: int) -> Detections:
    """As many in each video as in any other; half of them an instance of theirs with its ends moved."""
    rng = np.random.default_rng(seed)
    video_N = np.sort(np.arange(count) % len(truth.videos)).astype(np.int32)
    label_N = rng.integers(0, len(truth.labels), count).astype(np.int32)
    start_s_N = rng.uniform(0, 100, count)
    end_s_N = start_s_N + rng.exponential(30, count)
    order = np.argsort(truth.video_N, kind="stable")
    near = np.flatnonzero((rng.random(count) < 0.5) & np.isin(video_N, truth.video_N))
    first, past = (np.searchsorted(truth.video_N[order], video_N[near], side=side) for side in ("left", "right"))
    instance = order[first + (rng.random(len(near)) * (past - first)).astype(int)]
    length_s = truth.end_s_N[instance] - truth.start_s_N[instance]
    label_N[near] = truth.label_N[instance]
    start_s_N[near] = truth.start_s_N[instance] + rng.normal(0, 0.2, len(near)) * length_s
    end_s_N[near] = np.maximum(truth.end_s_N[instance] + rng.normal(0, 0.2, len(near)) * length_s, start_s_N[near])
    return Detections(truth.videos, truth.labels, video_N, label_N, rng.random(count), start_s_N, end_s_N)


def check_against_reference(seed: int) -> None:
    """A few classes of a small case against the protocol written plainly."""
    rng = np.random.default_rng(seed)
    instances = [
        reference.Instance(f"v{rng.integers(12)}", f"class {rng.integers(4)}", float(start_s), float(start_s + 9))
        for start_s in rng.uniform(0, 50, 60)
    ]
    truth = reference.as_ground_truth(instances)
    detections = make_detections(truth, 600, seed)
    found, rows = evaluate(detections, truth, TIOUS, Ranks()), reference.as_rows(detections)
    for label, ap_T in zip(found.labels, found.ap_CT.tolist(), strict=True):
        for tiou, ap in zip(TIOUS, ap_T, strict=True):
            expected = float(reference.average_precision(rows, instances, label, tiou))
            assert abs(ap - expected) < 1e-12, f"AP of {label} at {tiou}: {ap}, should be {expected}"


def alone(annotations: str, folder: str) -> dict[str, float]:
    """Seconds of each part, from files to the printed table."""
    from aumn.cli.printing import print_evaluation

    marks = [time.perf_counter()]
    detections, metadata = read_detections(Path(folder))
    marks.append(time.perf_counter())
    truth = read_ground_truth(Path(annotations), metadata["subset"])
    marks.append(time.perf_counter())
    result = evaluate(detections, truth, TIOUS, Ranks())
    marks.append(time.perf_counter())
    with contextlib.redirect_stdout(io.StringIO()):
        print_evaluation(result, "the benchmark", per_class=False)
    marks.append(time.perf_counter())
    names = ("read_detections_s", "read_ground_truth_s", "evaluate_s", "print_s")
    return {name: round(b - a, 4) for name, (a, b) in zip(names, pairwise(marks), strict=True)} | {
        "total_s": marks[-1] - marks[0]
    }


def on_ranks(annotations: str, folder: str) -> dict | None:
    """The first rank's best time of several, past start-up."""
    truth = read_ground_truth(Path(annotations), "validation")
    with connect() as ranks:
        times_s = []
        for _ in range(20):
            ranks.barrier()
            start_s = time.perf_counter()
            detections, _ = read_detections(Path(folder), ranks.rank, ranks.size)
            result = evaluate(detections, truth, TIOUS, ranks)
            times_s.append(time.perf_counter() - start_s)
        return {"seconds": min(times_s), "mAP": result.average} if ranks.is_first else None


def memory_of_a_rank(annotations: str, folder: str) -> dict | None:
    """The larger growth of all ranks; the second time, when what is imported once is there."""
    truth = read_ground_truth(Path(annotations), "validation")
    with connect() as ranks:

        def run() -> None:
            detections, _ = read_detections(Path(folder), ranks.rank, ranks.size)
            evaluate(detections, truth, TIOUS, ranks)

        run()
        growth = ranks.gather(peak_growth_bytes(run))
        return {"bytes": max(growth)} if ranks.is_first else None


def check() -> None:
    check_against_reference(fresh_seed())


if __name__ == "__main__":
    main(measure, alone=alone, ranks=on_ranks, memory=memory_of_a_rank)
