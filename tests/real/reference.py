"""A tiny network to stand beside ours: two temporal convolutions and a linear classifier a snippet, nothing of AUMN.

    python -m tests.real.reference SHARDS [--seeds 0 1 2] [--frame-labels] [--streams rgb] [--out OUT] [localize.x=y]

It is trained on the labels of whole videos: of each class the mean over its best share of snippets (top-k multiple
instance learning), binary cross-entropy. Shards, loader, rules of localization and evaluator are the product's; all
streams are one, side by side. `--frame-labels` teaches each snippet its own labels, from the training videos'
instances: **not weakly supervised**, an upper bound of what times would give. Prints the table of `tests.real.tables`;
with `--out`, its rows join those of OUT/results.jsonl there.

Shapes: B videos, T snippets, D width of all streams together, F hidden channels, C classes.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aumn.config.yaml_files import parse_value
from aumn.data.loader import TrainingLoader, whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation.evaluate import Evaluation, evaluate, parse_tious
from aumn.inference.localize import localize
from aumn.inference.settings import LocalizeSettings
from aumn.records import Batch, VideoScores
from aumn.runtime.ranks import Ranks
from aumn.runtime.settings import OptimizerSettings
from aumn.training.step import learning_rate
from tests.real.tables import print_table

TIOUS = parse_tious("0.1:0.7:0.1")
RULES = {"proposals": "class_activation", "class_threshold": 0.02}


@dataclass(frozen=True)
class Recipe:
    """The same for every set unless said otherwise; nobody tuned it."""

    channels: int = 128
    kernel: int = 9
    dropout: float = 0.5
    pooling_share: float = 0.1  # of a video's snippets that a class's score is the mean of
    steps: int = 400
    global_videos: int = 16
    rate: float = 1e-3


class TinyNetwork(nn.Module):
    """Localizes as `aumn.model` does: one stream, an attention of 1 everywhere."""

    def __init__(self, streams: Mapping[str, int], classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.streams, self.share = tuple(streams), recipe.pooling_share
        widths, kernel = (sum(streams.values()), recipe.channels), recipe.kernel
        self.convolutions = nn.ModuleList(nn.Conv1d(width, widths[1], kernel, padding="same") for width in widths)
        self.dropout = nn.Dropout(recipe.dropout)
        self.classifier = nn.Linear(widths[1], classes)

    def forward(self, batch: Batch) -> Tensor:
        """Each snippet's logits, B x T x C."""
        hidden_BFT = torch.cat([batch.features[stream] for stream in self.streams], dim=2).transpose(1, 2)
        for convolution in self.convolutions:
            hidden_BFT = self.dropout(convolution(hidden_BFT).relu()) * batch.mask_BT[:, None]
        return self.classifier(hidden_BFT.transpose(1, 2))

    def pool(self, logits_BTC: Tensor, batch: Batch) -> Tensor:
        """The mean of each class's best snippets, B x C."""
        own = [logits_BTC[place, :length] for place, length in enumerate(batch.lengths)]
        return torch.stack([of.topk(max(1, round(self.share * len(of))), dim=0)[0].mean(0) for of in own])

    def localize(self, batch: Batch) -> dict[str, VideoScores]:
        """What `aumn.inference` asks of a network."""
        with torch.no_grad():
            logits_BTC = self(batch)
            video_C, cas_TC = self.pool(logits_BTC, batch)[0].sigmoid(), logits_BTC[0].sigmoid()
        return {"all": VideoScores(video_C.numpy(), np.ones(len(cas_TC), np.float32), cas_TC.numpy())}


def train(
    shards: ShardSet, subset: str, streams: Sequence[str], seed: int, recipe: Recipe, *, frame_labels: bool
) -> TinyNetwork:
    """By videos' labels, or by those of each snippet."""
    torch.manual_seed(seed)
    network = TinyNetwork({name: shards.streams[name] for name in streams}, len(shards.classes), recipe)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    rates = OptimizerSettings(learning_rate=recipe.rate, schedule="trapezoid")
    told = snippet_labels(shards, subset) if frame_labels else {}
    whole = {"micro_videos": None, "snippets": None, "rank": 0, "world_size": 1}
    loader = TrainingLoader(shards, shards.indices(subset), global_videos=recipe.global_videos, seed=seed, **whole)
    for step in loader.steps(0, recipe.steps):
        (batch,) = step.micro_batches
        logits_BTC = network(batch)
        if frame_labels:
            target_NC = torch.cat([told[video.id] for video in batch.videos])
            loss = functional.binary_cross_entropy_with_logits(logits_BTC[batch.mask_BT], target_NC)
        else:
            logits_BC = network.pool(logits_BTC, batch)
            loss = functional.binary_cross_entropy_with_logits(logits_BC, batch.labels_BC)
        optimizer.param_groups[0]["lr"] = learning_rate(rates, step.index, recipe.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def snippet_labels(shards: ShardSet, subset: str) -> dict[str, Tensor]:
    """For each video the classes in whose instances its snippets' middles lie, T x C."""
    truth = read_ground_truth(shards.path, subset)
    videos = {video.id: video for video in shards.videos}
    labels = {name: torch.zeros(videos[name].snippets, len(shards.classes)) for name in truth.videos}
    class_of = [shards.classes.index(label) for label in truth.labels]
    rows = zip(truth.video_N, truth.label_N, truth.start_s_N, truth.end_s_N, strict=True)
    for number, label, start_s, end_s in rows:
        video = videos[truth.videos[number]]
        middle_s_T = torch.as_tensor(shards.clock.seconds(np.arange(video.snippets) + 0.5, video.fps))
        labels[video.id][(middle_s_T >= start_s) & (middle_s_T < end_s), class_of[label]] = 1
    return labels


def measure(network: TinyNetwork, shards: ShardSet, subset: str, rules: LocalizeSettings) -> Evaluation:
    """On every video of the subset, as `aumn localize` and `aumn evaluate` have it."""
    batches = whole_videos(shards, shards.indices(subset), rank=0, world_size=1)
    found = localize(network, batches, shards, rules=rules)  # a set has a clock and classes, as a model's card has
    return evaluate(found, read_ground_truth(shards.path, subset), TIOUS, Ranks())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("rules", nargs="*", metavar="localize.field=value", help=f"beside {RULES}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frame-labels", action="store_true")
    parser.add_argument("--streams", nargs="+", help="default: all")
    parser.add_argument("--subsets", nargs=2, default=("training", "testing"), metavar=("TRAINED_ON", "MEASURED_ON"))
    parser.add_argument("--out", type=Path)
    for name, value in vars(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_intermixed_args()
    recipe = Recipe(**{name: getattr(arguments, name) for name in vars(Recipe())})
    given = {names[-1]: value for names, value in map(parse_value, arguments.rules)}
    rules = LocalizeSettings(**RULES | given)
    shards = ShardSet.open(arguments.shards)
    streams = arguments.streams or list(shards.streams)
    row = "tiny network, frame labels (upper bound)" if arguments.frame_labels else "tiny network, top-k MIL"
    row += f", {'+'.join(streams)}" if arguments.streams else ""
    results = []
    for seed in arguments.seeds:
        started_s = time.process_time()
        trained_on, measured_on = arguments.subsets
        network = train(shards, trained_on, streams, seed, recipe, frame_labels=arguments.frame_labels)
        cpu_s = time.process_time() - started_s
        result = measure(network, shards, measured_on, rules)
        values = [*result.map_T, result.average]
        results.append({"row": row, "seed": seed, "cpu_s": cpu_s, "rules": {"class activation": values}})
        print(f"seed {seed}: {100 * values[-1]:.1f} on {result.population}, {cpu_s:.0f} CPU s", flush=True)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            with (arguments.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(results[-1] | {"recipe": vars(recipe), "given": given}) + "\n")
    print_table(results)


if __name__ == "__main__":
    main()
