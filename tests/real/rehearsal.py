"""Features as large as ActivityNet1.3's, on its real ground truth: real videos and durations, SYNTHETIC values.

    python -m tests.real.rehearsal OUT [--width 1024] [--videos 1.0]

writes OUT/rgb, OUT/flow (float16, a snippet every 16 frames at 25 fps) and OUT/gt.json. At full width that is 11 GB;
the same again is needed for the shards. Each class has a direction in feature space, added to noise while it happens.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

SNIPPETS_PER_S = 25 / 16
SHARED = Path(os.environ.get("AUMN_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def write_video(item: tuple[int, tuple[str, dict]], out: Path, width: int, directions_CD: dict[str, np.ndarray]) -> int:
    """Both streams of a video; bytes written. A function of the video's place in the list."""
    seed, (video, facts) = item
    random = np.random.default_rng(seed)
    snippets = max(1, round(facts["duration"] * SNIPPETS_PER_S))
    written = 0
    for stream in ("rgb", "flow"):
        features_TD = random.standard_normal((snippets, width), dtype=np.float32)
        for found in facts["annotations"]:
            first, last = (round(second * SNIPPETS_PER_S) for second in found["segment"])
            features_TD[first : last + 1] += directions_CD[found["label"]]
        path = out / stream / f"{video}.npy"
        np.save(path, features_TD.astype(np.float16))
        written += path.stat().st_size
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--videos", type=float, default=1.0, help="Share of each subset's videos.")
    arguments = parser.parse_args()
    truth = json.loads((SHARED / "data" / "activitynet" / "gt_activitynet13.json").read_text())
    database = {
        name: facts for name, facts in truth["database"].items() if facts["subset"] in {"training", "validation"}
    }
    step = round(1 / arguments.videos)
    database = dict(list(database.items())[::step])
    labels = sorted({found["label"] for facts in database.values() for found in facts["annotations"]})
    random = np.random.default_rng(0)
    directions_CD = {label: random.standard_normal(arguments.width, dtype=np.float32) for label in labels}
    for stream in ("rgb", "flow"):
        (arguments.out / stream).mkdir(parents=True, exist_ok=True)
    (arguments.out / "gt.json").write_text(json.dumps({"database": database}))
    write = partial(write_video, out=arguments.out, width=arguments.width, directions_CD=directions_CD)
    with ProcessPoolExecutor() as pool:
        written = sum(pool.map(write, enumerate(database.items()), chunksize=64))
    print(f"{arguments.out}: {len(database):,} videos, {len(labels)} classes, {written / 1e9:.2f} GB, SYNTHETIC")


if __name__ == "__main__":
    main()
