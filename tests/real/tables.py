"""Rows of a benchmark in one process: settings changed one way and another; the mAP of the last iterate.

    python -m tests.real.tables OUT --shards SHARDS --rows ROW ... [--seeds 0 1 2] [--config FILE]

A row is `NAME` or `NAME:section.field=value,...`, the changes to the configuration. Each row and seed is trained by
`aumn train`'s own function, then localized by its own rules and each of its set's RULES in turn (training does not
depend on them) on the `testing` videos, and appended to OUT/results.jsonl; what stands there is not trained again.
Afterwards the table of all that stands there is printed: mean and standard deviation over seeds, in percent.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aumn.config.run_config import load_config
from aumn.data.loader import whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation.evaluate import evaluate, parse_tious
from aumn.inference.one_video import load_network
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import Batch, GroundTruth
from aumn.runtime.ranks import Ranks
from aumn.training.run import run_training

TIOUS = parse_tious("0.1:0.7:0.1")
SUBSET = "testing"
CLASS = {"proposals": "class_activation"}


def _weights(rgb: float) -> dict[str, dict[str, float]]:
    return {"weights": {"rgb": rgb, "flow": 1 - rgb}}


CHOSEN = {**_weights(0.45), "class_threshold": 0.005}
RULES = {
    "paper": LocalizeSettings(),
    "theta 0.45": LocalizeSettings(**_weights(0.45)),
    "class threshold 0.005": LocalizeSettings(class_threshold=0.005),
    "class activation": LocalizeSettings(**CLASS),
    "without class activation": LocalizeSettings(**CHOSEN),
    "all (spliced_i3d_plus)": LocalizeSettings(**CLASS, **CHOSEN),
}
SHREC21 = {"weights": {"rgb": 1.0}, "class_threshold": 0.02}
SHREC21_RULES = {
    "paper": LocalizeSettings(),
    "theta 0.3": LocalizeSettings(**SHREC21 | _weights(0.3)),
    "theta 0.7": LocalizeSettings(**SHREC21 | _weights(0.7)),
    "class threshold 0.1": LocalizeSettings(**SHREC21 | {"class_threshold": 0.1}),
    "class threshold 0.005": LocalizeSettings(**SHREC21 | {"class_threshold": 0.005}),
    "NMS at 0.5": LocalizeSettings(**SHREC21, nms_tiou=0.5),
    "class activation (shrec21_plus)": LocalizeSettings(**SHREC21, **CLASS),
}


def score(row: str, seed: int, config_path: Path, changes: list[str], shards_path: Path, out: Path) -> dict[str, Any]:
    """Train, localize by all rules, evaluate."""
    folder = out / f"{row.replace(' ', '_')}_{seed}"
    started_s = time.process_time()
    train(config_path, changes, shards_path, seed, folder)
    cpu_s = time.process_time() - started_s
    network, card = load_network(folder / "model")
    shards = ShardSet.open(shards_path)
    indices = shards.indices(SUBSET)
    batches = list(whole_videos(shards, indices, rank=0, world_size=1))
    truth = read_ground_truth(shards_path, SUBSET)
    remembered, rules = RememberedScores.of(network, batches, card), {}
    chosen = SHREC21_RULES if shards.name == "shrec21" else RULES
    for name, rule in ({"the configuration's": card.localize} | chosen).items():
        found = evaluate(remembered.localize(rule), truth, TIOUS, Ranks())
        rules[name] = [*found.map_T, found.average]
    used = {name: units_used(network, batches, name, truth, shards) for name in network.networks}
    facts = {"best_class_right": best_class_right(remembered), "units": used}
    return {"row": row, "seed": seed, "changes": changes, "cpu_s": cpu_s, "rules": rules, **facts}


def train(config_path: Path, changes: Sequence[str], shards: Path, seed: int, folder: Path) -> None:
    """A run, or the rest of it."""
    settings = [f"data.shards={shards}", f"run.folder={folder}", f"run.seed={seed}", *changes]
    fixed = ["run.engine=single", "run.checkpoint_every=1000000", "tracking.enabled=false"]
    config = load_config(config_path, [*settings, *fixed])
    run_training(config, Ranks(), resume=folder.exists(), say=lambda _: None, advance=lambda *_: None)


def best_class_right(remembered: RememberedScores) -> float:
    """Share of videos whose best class, both streams alike, is one they hold."""
    right = [
        sum(part.video_C for part in scores.values()).argmax() in video.labels
        for video, scores in zip(remembered.videos, remembered.scores, strict=True)
    ]
    return float(np.mean(right))


def units_used(network: Any, batches: list[Batch], stream: str, truth: GroundTruth, shards: ShardSet) -> dict[str, Any]:
    """How many of a stream's units Eq. 7's maximum ever takes on an action's snippets, and for how many classes.

    A unit serves a class where it has the maximum of at least a tenth of the class's snippets. `share` is the mean
    share of a unit's most frequent class in the snippets that it leads: 1 is a unit a class, 1/C no preference.
    """
    units = len(network.networks[stream].memory.units_KF)
    leads_KC = np.zeros((units, len(truth.labels)))
    number = {video: index for index, video in enumerate(truth.videos)}
    for batch in batches:
        (video,) = batch.videos
        lead_T = network.similarity(batch, {stream: range(units)})[stream].argmax(1)
        middle_s_T = (np.arange(len(lead_T)) + 0.5) * shards.stride_frames / video.fps
        for g in np.flatnonzero(truth.video_N == number[video.id]):
            inside_T = (middle_s_T >= truth.start_s_N[g]) & (middle_s_T < truth.end_s_N[g])
            np.add.at(leads_KC, (lead_T[inside_T], truth.label_N[g]), 1)
    share_KC = leads_KC / leads_KC.sum(0).clip(1)
    classes_K = (share_KC >= 0.1).sum(1)
    leading_K = leads_KC.sum(1) > 0
    most_K = leads_KC[leading_K].max(1) / leads_KC[leading_K].sum(1)
    return {
        "lead": int(leading_K.sum()),
        "serving": int((classes_K > 0).sum()),
        "classes_a_unit": float(classes_K[classes_K > 0].mean()) if (classes_K > 0).any() else 0.0,
        "share": float(most_K.mean()),
        "classes": classes_K.tolist() if units <= 16 else None,
    }


def print_table(results: Iterable[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, by row and rules."""
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for result in results:
        for name, values in result["rules"].items():
            found[result["row"], name].append(values)
    print("| row | rules | seeds | " + " | ".join(map(str, TIOUS)) + " | average |")
    for (row, name), values in sorted(found.items()):
        print(f"| {row} | {name} | {len(values)} | " + " | ".join(mean_and_deviation(values)) + " |")


def mean_and_deviation(values: Sequence[Sequence[float]]) -> list[str]:
    """Of each column, in percent; of one row the values."""
    columns = list(zip(*values, strict=True))
    if len(values) == 1:
        return [f"{100 * value:.1f}" for (value,) in columns]
    return [f"{100 * statistics.fmean(column):.1f} ± {100 * statistics.stdev(column):.1f}" for column in columns]


def rows_to_do(results: Path, rows: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, list[str]]]:
    """Each row's name, seed and changes that the file has no line of yet; the file is there from then on."""
    results.parent.mkdir(parents=True, exist_ok=True)
    results.touch()
    for seed in seeds:
        for row in rows:
            name, _, changes = row.partition(":")
            done = {(line["row"], line["seed"]) for line in map(json.loads, results.read_text().splitlines())}
            if (name, seed) not in done:
                yield name, seed, [change for change in changes.split(",") if change]


def row_options(told: str | None, config: str) -> argparse.ArgumentParser:
    """Of a command that trains rows."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=Path(config))
    return parser


def main() -> None:
    arguments = row_options(__doc__, "configs/spliced_i3d.yaml").parse_args()
    results = arguments.out / "results.jsonl"
    for name, seed, changes in rows_to_do(results, arguments.rows, arguments.seeds):
        result = score(name, seed, arguments.config, changes, arguments.shards, arguments.out)
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(name, seed, {rules: f"{100 * values[-1]:.1f}" for rules, values in result["rules"].items()}, flush=True)
    print_table(map(json.loads, results.read_text().splitlines()))


if __name__ == "__main__":
    main()
