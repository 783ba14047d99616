"""The same losses before and after a change: this code and another checkout's, step by step, in their metrics' bits.

    python -m tests.real.golden ../before [--steps 50] [--ranks 1] [NAME ...]

prints for each configuration how many of its logged numbers differ, and by how much at most. Features are made as in
`benchmark`; the other checkout may be as old as commit 0e01a02, whose metrics are in MLflow alone.
"""

import argparse
import json
import math
import os
import shutil
import sqlite3
from pathlib import Path

from tests.launching import aumn, succeed
from tests.real.benchmark import REPOSITORY, SCRIPTS, make_shards

NAMES = ("synthetic_demo", "spliced_i3d", "shrec21")
Row = dict[tuple[str, int], float]


def shards_of(name: str, folder: Path) -> Path:
    if name in SCRIPTS:
        return make_shards(name, Path(os.environ.get("AUMN_SHARED", REPOSITORY.parent / "shared")) / "tools", folder)
    features, shards = folder / "features", folder / "shards"
    if not shards.exists():
        succeed(aumn("synth", features, "--videos", 180, "--classes", 8, "--width", 256, "--seed", 0))  # make demo
        succeed(aumn("pack", features, shards, "--annotations", features / "gt.json"))
    return shards


def losses(code: Path, name: str, shards: Path, folder: Path, steps: int, ranks: int) -> Row:
    """Every number but the clock's that training logs with the code and the settings of a checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "mlflow.db"
    settings = {
        "data.shards": shards, "run.folder": folder / "run", "run.steps": steps, "run.log_every": 1,
        "evaluation.videos": "null", "tracking.uri": f"sqlite:///{store}", "tracking.model_name": "null",
        "tracking.alias": "null",
    }  # fmt: skip
    overrides = [f"{field}={value}" for field, value in settings.items()]
    config = code.resolve() / "configs" / f"{name}.yaml"
    succeed(aumn("train", config, *overrides, ranks=ranks, timeout_s=3600, cwd=folder, PYTHONPATH=str(code.resolve())))
    if (folder / "run" / "metrics.jsonl").exists():
        lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        found = {(key, line["step"]): value for line in lines for key, value in line.items()}
    else:
        with sqlite3.connect(store) as connection:
            rows = connection.execute("select key, step, value from metrics").fetchall()
        found = {(key, step): value for key, step, value in rows}
    clock = ("step", "at_ms", "videos_per_s", "own_s", "slowest_rank", "_share")
    return {(key, step): value for (key, step), value in found.items() if not key.endswith(clock)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/golden"))
    arguments = parser.parse_args()
    print(f"{'configuration':>16} {'numbers':>8} {'differ':>7} {'by at most':>11}   last loss before, after")
    for name in arguments.names or NAMES:
        folder = (arguments.out / name).resolve()
        shards = shards_of(name, folder)
        how = (arguments.steps, arguments.ranks)
        before = losses(arguments.before, name, shards, folder / "before", *how)
        after = losses(REPOSITORY, name, shards, folder / "after", *how)
        differing = [number for number in before.keys() | after.keys() if before.get(number) != after.get(number)]
        most = max((abs(before.get(number, math.nan) - after.get(number, math.nan)) for number in differing), default=0)
        last = ("loss", arguments.steps)
        print(
            f"{name:>16} {len(before):8,} {len(differing):7,} {most:11.2g}   {before[last]!r}, {after[last]!r}",
            flush=True,
        )


if __name__ == "__main__":
    main()
