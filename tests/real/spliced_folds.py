"""Videos to choose on, spliced from the training clips of `spliced_i3d.py` alone, so that test clips play no part.

    python -m tests.real.spliced_folds OUT --fold 0 --shared ../shared

Every fourth training clip of each class, counted from the fold's number, is held out: the "training" videos of OUT are
spliced from the others, its "testing" videos from these. Held-out *videos* would not do: each is spliced from dozens of
clips, which the remaining videos share. OUT is laid out as `spliced_i3d.py` does it.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

FOLDS = 4

Clips = dict[str, list[np.ndarray]]


def read_clips(data: Path) -> tuple[Clips, list[str]]:
    """Clips by class, and the classes from the most frequent on, as `spliced_i3d.py` has them."""
    labels = json.loads((data / "gym_labels.json").read_text())["database"]
    clips: Clips = defaultdict(list)
    with np.load(data / "gym_trimmed_i3d.npz") as archive:
        for key in archive.files:
            clips[labels[key]["label"]].append(archive[key])
    return clips, sorted(clips, key=lambda label: (-len(clips[label]), label))


def split(clips: Clips, ranked: list[str], fold: int) -> dict[str, Clips]:
    """The training clips of seed 0 in two; the test clips are left out."""
    rng = np.random.default_rng(0)
    parts: dict[str, Clips] = {"training": {}, "testing": {}}
    for label in ranked:
        order = rng.permutation(len(clips[label]))
        training = [clips[label][index] for index in order[: round(0.6 * len(order))]]
        parts["training"][label] = [clip for index, clip in enumerate(training) if index % FOLDS != fold]
        parts["testing"][label] = training[fold::FOLDS]
    return parts


def write(out: Path, splicing: Any, data: Path, fold: int) -> None:
    """200 training and 100 testing videos; `splicing` is the module `spliced_i3d`."""
    clips, ranked = read_clips(data)
    actions, background = ranked[: splicing.NUM_ACTIONS], ranked[splicing.NUM_ACTIONS :]
    rng, database = np.random.default_rng(1000 + fold), {}
    for stream in ("rgb", "flow"):
        (out / stream).mkdir(parents=True)
    for subset, part in split(clips, ranked, fold).items():
        for index in range(200 if subset == "training" else 100):
            features, annotations = splicing.make_video(part, actions, background, rng)
            video, width = f"{subset}_{index:04d}", features.shape[1] // 2
            np.save(out / "rgb" / f"{video}.npy", features[:, :width])
            np.save(out / "flow" / f"{video}.npy", features[:, width:])
            duration_s = len(features) * splicing.SNIPPET_S
            facts = {"subset": subset, "duration": duration_s, "fps": splicing.FPS}
            database[video] = {**facts, "annotations": annotations}
    (out / "gt.json").write_text(json.dumps({"version": f"spliced I3D clips, fold {fold}", "database": database}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    parser.add_argument("--shared", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.shared / "tools"))
    import spliced_i3d

    write(arguments.out, spliced_i3d, arguments.shared / "data" / "i3d_samples", arguments.fold)


if __name__ == "__main__":
    main()
