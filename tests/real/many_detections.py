"""What evaluating 100 times ActivityNet1.3's validation videos costs each rank.

    python -m tests.real.many_detections OUT [--times 100] [--ranks 1 2] [--against COMMIT]

The ground truth is the real one, its videos over and over under other names; the detections are SYNTHETIC, 96 a video,
half of them near an instance. Prints a line of JSON a rank: seconds of each stage, and gigabytes that the process holds
after it and held at its peak. With --against, what the whole command `aumn evaluate` takes here and of that commit.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.real.rehearsal import SHARED

A_VIDEO = 96
PARTS = 10  # copies of all videos in a Parquet part


OFFICIAL = SHARED / "data" / "activitynet" / "gt_activitynet13.json"


def make(out: Path, times: int, official: Path = OFFICIAL) -> None:
    """Ground truth and detections; the same for the same `times`."""
    from aumn.data.truth.annotations import read_ground_truth
    from aumn.inference.parts import write_part
    from aumn.records import Detections

    truth = read_ground_truth(official, "validation")
    database = json.loads(official.read_text())["database"]
    copies = {f"{video}~{copy}": database[video] for copy in range(times) for video in truth.videos}
    out.mkdir(parents=True)
    (out / "gt.json").write_text(json.dumps({"database": copies}))
    (out / "found").mkdir()
    order = np.argsort(truth.video_N, kind="stable")
    first_V = np.searchsorted(truth.video_N[order], np.arange(len(truth.videos)))
    count_V = np.bincount(truth.video_N, minlength=len(truth.videos))
    for part in range(0, times, PARTS):
        random = np.random.default_rng(part)
        names = [f"{video}~{copy}" for copy in range(part, min(part + PARTS, times)) for video in truth.videos]
        video_N = np.repeat(np.arange(len(names), dtype=np.int32), A_VIDEO)
        original_N = video_N % len(truth.videos)
        rows = len(video_N)
        instance_N = order[
            np.minimum(
                first_V[original_N] + random.integers(0, 2**31, rows) % np.maximum(count_V[original_N], 1),
                len(order) - 1,
            )
        ]
        near_N = (random.random(rows) < 0.5) & (count_V[original_N] > 0)
        length_s_N = truth.end_s_N[instance_N] - truth.start_s_N[instance_N]
        start_s_N = np.where(
            near_N, truth.start_s_N[instance_N] + random.normal(0, 0.2, rows) * length_s_N, random.uniform(0, 100, rows)
        )
        end_s_N = np.where(
            near_N,
            truth.end_s_N[instance_N] + random.normal(0, 0.2, rows) * length_s_N,
            start_s_N + random.exponential(30, rows),
        )
        label_N = np.where(near_N, truth.label_N[instance_N], random.integers(0, len(truth.labels), rows)).astype(
            np.int32
        )
        columns = (video_N, label_N, random.random(rows), start_s_N, np.maximum(start_s_N, end_s_N))
        table = Detections(names, truth.labels, *columns)
        write_part(table, out / "found" / f"part-{part // PARTS:05d}.parquet", {"subset": "validation"})


def rank(out: Path) -> None:
    """What `aumn evaluate` does, in stages."""
    from aumn.data.truth.annotations import read_ground_truth
    from aumn.evaluation.evaluate import choose_tious, evaluate
    from aumn.evaluation.own_truth import deal
    from aumn.inference.detections import read_detections
    from aumn.runtime.ranks import connect

    facts: dict[str, Any] = {}

    def mark(stage: str, start_s: float) -> float:
        facts[f"{stage}_s"], facts[f"{stage}_gb"] = round(time.perf_counter() - start_s, 1), gigabytes("RssAnon")
        return time.perf_counter()

    with connect() as ranks:
        now_s = mark("start", time.perf_counter())
        found, _ = read_detections(out / "found", ranks.rank, ranks.size)
        now_s = mark("detections", now_s)
        truth = read_ground_truth(out / "gt.json", "validation") if ranks.is_first else None
        truth = deal(ranks.broadcast(truth), found.videos)
        now_s = mark("ground_truth", now_s)
        result = evaluate(found, truth, choose_tious("activitynet", None), ranks)
        mark("evaluate", now_s)
        facts |= {"rows": len(found), "videos": len(found.videos), "mAP": result.average, "peak_gb": gigabytes("VmHWM")}
        for told in ranks.gather(facts):
            if ranks.is_first:
                print(json.dumps(told), flush=True)


def evaluating(out: Path, code: Path) -> dict[str, float]:
    """What `aumn evaluate` costs with this code, and the average mAP that it finds."""
    from harness import cost

    told = out / "found.json"
    options = ("--subset", "validation", "--protocol", "activitynet", "--json", told)
    command = [sys.executable, "-m", "aumn", "evaluate", out / "found", "--annotations", out / "gt.json", *options]
    return cost(list(map(str, command)), code) | {"mAP": json.loads(told.read_text())["average"]}


def gigabytes(field: str) -> float:
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(kilobytes) * 1024 / 1e9, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--against")
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(options.out)
        return
    if not options.out.exists():
        make(options.out, options.times)
    parts = list((options.out / "found").glob("*.parquet"))
    print(f"{len(parts)} parts, {sum(part.stat().st_size for part in parts) / 1e9:.2f} GB", flush=True)
    if options.against:
        sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
        from harness import REPOSITORY, at_commit

        for code in (at_commit(options.against), REPOSITORY):
            print(code.name, json.dumps(evaluating(options.out.resolve(), code)), flush=True)
    for ranks in options.ranks:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *launcher, "-m", "tests.real.many_detections", str(options.out)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=3600)


if __name__ == "__main__":
    main()
