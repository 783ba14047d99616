"""Packing 4 GB of .npy in page cache with two workers: against `tar cf` of the same files, and an earlier commit.

All files are in memory (/dev/shm), so that no disk's mood is measured: a disk slower than `tar` is the limit of both. A
quarter of the files is real, the others are links to these, of which every side makes copies. Both columns of a row are
seconds, the processor's where a row says so, which other work on the machine changes less.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import REPOSITORY, Row, at_commit, fresh_seed, main, run

OLD, ROUNDS, WORKERS = "0e01a02", 3, 2
VIDEOS, SNIPPETS, WIDTH, CLASSES = 5350, 183, 1024, 200  # two streams of float16: 4 GB
STREAMS = ("rgb", "flow")


def measure() -> list[Row]:
    seed, rows = fresh_seed(), []
    for dtype, videos in (("float32", VIDEOS // 2), ("float16", VIDEOS)):
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="aumn-bench-") as folder:
            sources = make(Path(folder) / "sources", videos, SNIPPETS, np.dtype(dtype), seed)
            found = take_sides(sources, Path(folder) / "out")
        walls, cpus = ({name: [run[place] for run in runs] for name, runs in found.items()} for place in (0, 1))
        packs = f"packing 4 GB of {dtype}"
        rows += [
            Row.of_runs(f"{packs}, two workers, against tar", "<= 1.3", walls["ours"], walls["tar"], "s"),
            Row.of_runs(f"  against commit {OLD}", ">= 1.5", walls["ours"], walls["old"], "s"),
            Row.of_runs("  processor time against that commit's", ">= 1.5", cpus["ours"], cpus["old"], "s"),
        ]
    return rows


def make(folder: Path, videos: int, snippets: int, dtype: np.dtype, seed: int) -> Path:
    """A folder a stream, and gt.json."""
    random = np.random.default_rng(seed)
    for stream in STREAMS:
        (folder / stream).mkdir(parents=True)
        for number in range(videos):
            path = folder / stream / f"video{number:05d}.npy"
            if number <= videos // 4:
                values = np.maximum(random.standard_normal((snippets, WIDTH), np.float32), 0)
                np.save(path, values.astype(dtype))
            else:
                os.link(folder / stream / f"video{number % (videos // 4):05d}.npy", path)
    truth = {"subset": "training", "fps": 25.0}
    database = {
        f"video{number:05d}": truth | {"annotations": [{"label": f"class {number % CLASSES:03d}", "segment": [0, 1]}]}
        for number in range(videos)
    }
    (folder / "gt.json").write_text(json.dumps({"database": database}))
    return folder


def take_sides(sources: Path, out: Path) -> dict[str, list[tuple[float, float]]]:
    """Each side's seconds and the processor's, round by round; shards of both commits are the same bytes."""
    arguments = ["--annotations", str(sources / "gt.json"), "--workers", str(WORKERS), "--name", "bench"]
    pack = [sys.executable, "-m", "aumn", "pack", str(sources), str(out), *arguments]
    sides = {
        "tar": (["tar", "cf", str(out), "--hard-dereference", "-C", str(sources), *STREAMS], REPOSITORY),
        "ours": (pack, REPOSITORY),
        "old": (pack, at_commit(OLD)),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    sums = {}
    for _ in range(ROUNDS):
        for name, (command, code) in sides.items():
            before, start_s = processor_s(), time.perf_counter()
            run(command, {"PYTHONPATH": str(code)}, code=code)
            found[name].append((time.perf_counter() - start_s, processor_s() - before))
            if out.is_dir():
                tables = json.loads((out / "dataset.json").read_text())
                sums[name] = (tables["identity"], tables["shards"], tables["checksums"])
                shutil.rmtree(out)
            else:
                out.unlink()
        print({name: [f"{wall:.1f} s ({cpu:.1f} s of CPU)" for wall, cpu in runs] for name, runs in found.items()})
    assert sums["ours"] == sums["old"], "the two commits pack other shards"
    return found


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(measure)
