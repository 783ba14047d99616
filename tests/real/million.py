"""What a million videos cost a rank before its first step: a manifest of that many, read as training and localizing do.

    python -m tests.real.million OUT [--videos 1001650]

The rows are ActivityNet1.3's (real durations and labels) over and over under other names, with SYNTHETIC offsets and
checksums; the tars of 256 MB are there in their sizes, and empty (sparse files). Prints a line of JSON a stage: seconds
of CPU, and megabytes that the process holds beyond its imports when the stage is over and at its peak.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.real.rehearsal import SHARED, SNIPPETS_PER_S

WIDTH, SHARD_BYTES, STREAMS = 1024, 256 * 10**6, {"rgb": 1024, "flow": 1024}
MEASURABLE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Environment in which freed memory goes back to the system at once."""


def make(out: Path, count: int) -> None:
    """A shard set without features."""
    from aumn.data.shards.layout import DESCRIPTION, FORMAT_VERSION, MANIFEST, Description, Shard, checksum
    from aumn.data.shards.manifest import schema

    database = json.loads((SHARED / "data" / "activitynet" / "gt_activitynet13.json").read_text())["database"]
    kept = [(video, facts) for video, facts in database.items() if facts["subset"] in {"training", "validation"}]
    classes = tuple(sorted({found["label"] for _, facts in kept for found in facts["annotations"]}))
    number_of = {label: number for number, label in enumerate(classes)}
    labels = [sorted({number_of[found["label"]] for found in facts["annotations"]}) for _, facts in kept]
    place_N = np.arange(count) % len(kept)
    duration_s_N = np.array([facts["duration"] for _, facts in kept])[place_N]
    snippets_N = np.maximum(1, np.round(duration_s_N * SNIPPETS_PER_S)).astype(np.int32)
    bytes_N = 128 + snippets_N.astype(np.int64) * WIDTH * 2
    end_N = np.cumsum(2 * bytes_N)
    shard_N = (end_N // SHARD_BYTES).astype(np.int32)
    columns: dict[str, Any] = {
        "id": [f"{kept[place][0]}~{number // len(kept)}" for number, place in enumerate(place_N)],
        "subset": [kept[place][1]["subset"] for place in place_N],
        "shard": shard_N,
        "snippets": snippets_N,
        "labels": [labels[place] for place in place_N],
        "duration_s": duration_s_N,
        "fps": np.full(count, 25.0),
    }
    random = np.random.default_rng(0)
    for position, stream in enumerate(STREAMS):
        columns[f"{stream}_offset"] = (end_N - (2 - position) * bytes_N) % SHARD_BYTES
        columns[f"{stream}_bytes"] = bytes_N
        columns[f"{stream}_xxh3"] = random.integers(0, 2**64, count, dtype=np.uint64)
    out.mkdir(parents=True)
    wanted = schema(list(STREAMS))
    table = pa.table({name: pa.array(columns[name]) for name in wanted.names}).cast(wanted)
    pq.write_table(table, out / MANIFEST, compression="zstd")
    tar_bytes = SHARD_BYTES + int(bytes_N.max())  # the last member begins below SHARD_BYTES
    shards = tuple(Shard(f"all-{number:06d}.tar", tar_bytes) for number in range(int(shard_N[-1]) + 1))
    for shard in shards:
        with (out / shard.file).open("wb") as file:
            file.truncate(shard.bytes)
    sums = {MANIFEST: checksum((out / MANIFEST).read_bytes())}
    described = Description(FORMAT_VERSION, "million", "0" * 16, classes, STREAMS, "float16", 16, shards, sums)
    (out / DESCRIPTION).write_text(described.to_json())
    size_mb = (out / MANIFEST).stat().st_size / 1e6
    print(f"{count:,} videos, {int(end_N[-1]) / 1e12:.2f} TB in {len(shards):,} tars, manifest {size_mb:.1f} MB")


def rank(out: Path, what: str) -> None:
    """Get ready to train, or to localize, as the first of eight ranks."""
    import torch  # noqa: F401

    from aumn.data.loader import TrainingLoader, deal, split_holdout, whole_videos
    from aumn.data.settings import DataSettings
    from aumn.data.shards.shard_set import ShardSet

    stage = Stages()
    shards = stage("open", lambda: ShardSet.open(out))
    if what == "train":
        indices = stage("indices", lambda: shards.indices("training"))
        training, _ = stage("hold out", lambda: split_holdout(indices, shards.ids(indices), DataSettings(shards=out)))
        options = {"micro_videos": None, "snippets": 100, "seed": 0, "rank": 0, "world_size": 8}
        stage("loader", lambda: TrainingLoader(shards, training, global_videos=32, **options))
    else:
        indices = stage("indices", lambda: shards.indices("validation"))
        stage("deal", lambda: whole_videos(shards, indices, rank=0, world_size=8))
        own = deal(shards, indices, rank=0, world_size=8)
        stage("facts", lambda: {video.id: video for video in map(shards.videos.__getitem__, own)})


class Stages:
    """Measures calls one after the other, and keeps what they return."""

    def __init__(self) -> None:
        gc.collect()
        self.first_mb = megabytes("RssAnon")
        self.kept: list[object] = []

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before_mb = megabytes("VmRSS") - megabytes("RssAnon")
        start_s = time.process_time()
        self.kept.append(call())
        elapsed_s = time.process_time() - start_s
        peak_mb = megabytes("VmHWM") - before_mb - self.first_mb
        gc.collect()
        held_mb = megabytes("RssAnon") - self.first_mb
        print(
            json.dumps({"stage": name, "cpu_s": round(elapsed_s, 2), "held_mb": held_mb, "peak_mb": peak_mb}),
            flush=True,
        )
        return self.kept[-1]


def megabytes(field: str) -> int:
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 // 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=67 * 14_950)
    parser.add_argument("--rank", choices=("train", "localize"), help="Only this, in this very process.")
    options = parser.parse_args()
    if options.rank:
        rank(options.out, options.rank)
        return
    if not options.out.exists():
        make(options.out, options.videos)
    for what in ("train", "localize"):
        print(what, flush=True)
        command = [sys.executable, "-m", "tests.real.million", str(options.out), "--rank", what]
        subprocess.run(command, env={**os.environ, **MEASURABLE}, check=True, timeout=600)


if __name__ == "__main__":
    main()
