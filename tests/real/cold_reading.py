"""Reading videos in random order from shards that are not in page cache, as with a set larger than memory; then again.

    python -m tests.real.cold_reading SHARDS [--videos 2048]

Nothing else may have the tars open. The cache that is dropped is this machine's; one below it, of a host or a file
server, stays.
"""

import argparse
import os
import time
from pathlib import Path

from aumn.data.loader import TrainingLoader
from aumn.data.shards.shard_set import ShardSet


def drop_from_cache(folder: Path) -> None:
    for tar in folder.glob("*.tar"):
        with tar.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--videos", type=int, default=2048)
    options = parser.parse_args()
    drop_from_cache(options.shards)
    for state in ("cold", "warm"):
        shards = ShardSet.open(options.shards)
        indices = shards.indices("training")
        cut = {"micro_videos": None, "snippets": 100, "seed": 0, "rank": 0, "world_size": 1}
        loader = TrainingLoader(shards, indices, global_videos=32, **cut)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        seen = [video.id for step in loader.steps(0, options.videos // 32) for video in step.micro_batches[0].videos]
        elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        chosen = set(seen)
        snippets = sum(video.snippets for video in shards.videos if video.id in chosen)
        read_bytes = snippets * sum(shards.streams.values()) * shards.dtype.itemsize
        print(
            f"{state}: {len(seen):,} videos of {read_bytes / len(seen) / 1e6:.2f} MB in {elapsed_s:.1f} s, CPU "
            f"{cpu_s:.1f} s: {len(seen) / elapsed_s:,.0f} videos/s, {read_bytes / elapsed_s / 1e6:,.0f} MB/s"
        )
        del shards, loader


if __name__ == "__main__":
    main()
