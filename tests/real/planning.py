"""What planning to pack a million videos costs: ActivityNet1.3's rows under other names, with tiny SYNTHETIC features.

    python -m tests.real.planning OUT [--videos 1001650]

Each .npy file of the two streams is a hard link to one of a few real ones, so that a million videos take two million
names and no room: look at `df -i` first. The ground truth is ActivityNet's JSON, of as many videos. Prints a line of
JSON a stage, as `tests.real.million` does. OUT is left, for another run.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.real.million import MEASURABLE, Stages
from tests.real.rehearsal import SHARED

LINKS = 50_000  # of one file; ext4 takes 65,000
WIDTH = 2
SHARD_MB = 0.05  # some hundred videos a shard, as there are with features of usual size


def make(out: Path, count: int) -> None:
    """Features and gt.json."""
    database = json.loads((SHARED / "data" / "activitynet" / "gt_activitynet13.json").read_text())["database"]
    kept = [(video, facts) for video, facts in database.items() if facts["subset"] in {"training", "validation"}]
    for stream in ("rgb", "flow"):
        (out / stream).mkdir(parents=True)
        (out / f"real_{stream}").mkdir()
    with (out / "gt.json").open("w") as truth:
        truth.write('{"database": {')
        for number in range(count):
            video, facts = kept[number % len(kept)]
            name, real = f"{video}~{number // len(kept)}", number // LINKS
            told = {key: facts[key] for key in ("subset", "duration", "annotations")}
            truth.write(f"{', ' * (number > 0)}{json.dumps(name)}: {json.dumps(told)}")
            for stream in ("rgb", "flow"):
                source = out / f"real_{stream}" / f"{real}.npy"
                if not source.exists():
                    np.save(source, np.ones((20 + real, WIDTH), np.float16))
                os.link(source, out / stream / f"{name}.npy")
        truth.write("}}")
    for stream in ("rgb", "flow"):
        for source in (out / f"real_{stream}").iterdir():
            source.unlink()
        (out / f"real_{stream}").rmdir()


def plan(out: Path) -> None:
    """Plan in this very process."""
    from aumn.data.packing.options import PackOptions
    from aumn.data.packing.planning import plan_packing
    from aumn.data.truth import annotations  # noqa: F401

    options = PackOptions(out, str(out / "set"), out / "gt.json", fps=25.0, shard_mb=SHARD_MB)
    stage = Stages()
    found = stage("plan", lambda: plan_packing(options))
    print(f"{sum(found.shards.sizes().values()):,} videos in {len(found.shards):,} shards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=67 * 14_950)
    parser.add_argument("--here", action="store_true", help="Plan in this very process.")
    options = parser.parse_args()
    if options.here:
        plan(options.out)
        return
    if not options.out.exists():
        make(options.out, options.videos)
    command = [sys.executable, "-m", "tests.real.planning", str(options.out), "--here"]
    subprocess.run(command, env={**os.environ, **MEASURABLE}, check=True)


if __name__ == "__main__":
    main()
