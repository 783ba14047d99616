"""The benchmarks on real input, through the product's own commands: features, shards, two DDP ranks, registry, mAP.

    python -m tests.real.benchmark spliced_i3d --seeds 0 1 2 [--config FILE] [section.field=value ...]

prints each seed's mAP on the test videos, and their mean and standard deviation. The features come from the scripts in
SHARED/tools (default: ../shared), whose docstrings say what they are.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.launching import aumn, succeed

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "spliced_i3d": ("spliced_i3d.py", 16),
    "shrec21": ("shrec21_features.py", 8),
    "hapt": ("hapt_features.py", 16),
}  # and frames a snippet


def make_shards(name: str, tools: Path, folder: Path, *options: str, shuffle_labels: bool = False) -> Path:
    """The benchmark's shard set in `folder`; options go to its script."""
    script, stride_frames = SCRIPTS[name]
    features, shards = folder / "features", folder / "shards"
    if not features.exists():
        command = [sys.executable, str(tools / script), str(features), *options]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    annotations = features / "gt.json"
    if shuffle_labels:
        shards, annotations = folder / "shards_shuffled", _shuffle_training_labels(annotations)
    if not shards.exists():
        options = ("--annotations", str(annotations), "--name", name, "--stride-frames", str(stride_frames))
        succeed(aumn("pack", features, shards, *options, timeout_s=600))
    return shards


def run(
    name: str,
    shards: Path,
    folder: Path,
    *overrides: str,
    config: Path | None = None,
    ranks: int = 2,
    timeout_s: float = 3600,
) -> dict:
    """Train, register, localize the test videos with the model looked up by alias, evaluate: the metrics."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = f"sqlite:///{folder}/mlflow.db"
    model = f"aumn-{name.replace('_', '-')}"
    tracking = (f"tracking.uri={store}", f"tracking.model_name={model}", "tracking.alias=challenger")
    settings = (f"data.shards={shards}", f"run.folder={folder}/run", *tracking, *overrides)
    succeed(aumn("train", config or _config_of(name), *settings, ranks=ranks, timeout_s=timeout_s))
    found, metrics = folder / "detections", folder / "metrics.json"
    place = ("--subset", "testing", "--out", found, "--tracking-uri", store)
    succeed(aumn("localize", f"models:/{model}@challenger", shards, *place, ranks=ranks, timeout_s=timeout_s))
    succeed(aumn("evaluate", found, "--annotations", shards, "--protocol", "thumos14", "--json", metrics))
    return json.loads(metrics.read_text())


def _config_of(name: str) -> Path:
    """A benchmark's own configuration, or the one for sets that have none."""
    own = REPOSITORY / "configs" / f"{name}.yaml"
    return own if own.exists() else own.with_name("recommended.yaml")


def _shuffle_training_labels(annotations: Path) -> Path:
    """The same ground truth with the training videos' label sets dealt anew: what is left to learn is chance."""
    truth = json.loads(annotations.read_text())
    training = [video for video in truth["database"].values() if video["subset"] == "training"]
    donors = [video["annotations"] for video in training]
    random.Random(0).shuffle(donors)
    for video, annotated in zip(training, donors, strict=True):
        video["annotations"] = annotated
    shuffled = annotations.with_name("gt_shuffled.json")
    shuffled.write_text(json.dumps(truth))
    return shuffled


def _print_row(title: object, values: Sequence[float]) -> None:
    print(f"{title!s:>6} " + " ".join(f"{100 * value:6.1f}" for value in values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SCRIPTS)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, help="default: configs/NAME.yaml, or recommended.yaml")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_intermixed_args()
    tools = Path(os.environ.get("AUMN_SHARED", REPOSITORY.parent / "shared")) / "tools"
    folder = (arguments.out / arguments.name).resolve()
    shards = make_shards(arguments.name, tools, folder)
    rows = []
    for seed in arguments.seeds:
        overrides = (f"run.seed={seed}", *arguments.overrides)
        place = folder / f"seed_{seed}"
        metrics = run(arguments.name, shards, place, *overrides, config=arguments.config, ranks=arguments.ranks)
        if not rows:
            print(f"{arguments.name}, test videos: {metrics['population']}")
            print(f"{'tIoU':>6} " + " ".join(f"{tiou:>6}" for tiou in (*metrics["mAP"], "avg")))
        rows.append([*metrics["mAP"].values(), metrics["average"]])
        _print_row(f"seed {seed}", rows[-1])
    if len(rows) > 1:
        _print_row("mean", [statistics.fmean(column) for column in zip(*rows, strict=True)])
        _print_row("std", [statistics.stdev(column) for column in zip(*rows, strict=True)])


if __name__ == "__main__":
    main()
