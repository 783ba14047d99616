"""The mAP that a run follows while it trains, on held-out training videos or on a subset by name.

Only a model chosen on held-out training videos was chosen fairly; a subset by name is followed, never chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch

from aumn.config.run_config import RunConfig
from aumn.data.loader import whole_videos
from aumn.data.problems import StoreGoneError
from aumn.data.settings import DataSettings
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_ground_truth, restricted
from aumn.evaluation.evaluate import PROTOCOLS, evaluate, parse_tious
from aumn.inference.localize import localize
from aumn.model.aumn import StreamNetworks
from aumn.records import HELD_OUT, GroundTruth, InputError
from aumn.runfolder.checkpoint import ModelCard
from aumn.runtime import preemption
from aumn.runtime.ranks import Ranks


@dataclass(frozen=True)
class Validation:
    """Videos, their temporal ground truth, and how to measure a network on them."""

    name: str
    shards: ShardSet
    indices: list[int]
    ground_truth: GroundTruth
    tious: tuple[float, ...]
    card: ModelCard

    @classmethod
    def of(cls, config: RunConfig, shards: ShardSet, held_out: list[int], card: ModelCard) -> Validation | None:
        """What `evaluation.videos` asks for; None where it asks for nothing."""
        name = config.evaluation.videos
        if name is None:
            return None
        if name == HELD_OUT and not held_out:
            raise InputError(
                f"evaluation.videos=held_out, but data.holdout_share={config.data.holdout_share} of "
                f"{config.data.subset} holds none out: set it to 0.2, say, or name some in data.holdout_videos, or set "
                "evaluation.videos=null."
            )
        if name == HELD_OUT:
            asked = held_out
            ground_truth, indices = held_out_truth(shards, config.data, held_out)
        else:
            asked = indices = shards.indices(name)
            truth = _read_ground_truth(shards, [name] * len(shards.parts))
            ground_truth = restricted(truth, set(shards.ids(indices)))
        if not len(ground_truth):
            raise InputError(
                f"evaluation.videos={name}: its {len(asked)} videos have no annotated instance; name another subset, "
                "or set evaluation.videos=null."
            )
        tious = parse_tious(PROTOCOLS[config.evaluation.protocol])
        return cls(name, shards, indices, ground_truth, tious, card)

    def measure(self, network: StreamNetworks, ranks: Ranks, device: torch.device) -> dict[str, float] | None:
        """Mean average precision by threshold and on average, the same on every rank.

        None where a rank was asked to stop meanwhile; it leaves the rest of its videos. StoreGoneError on every rank
        where the store of any of them is gone.
        """

        def asked() -> bool:
            return bool(preemption.asked())

        network.eval()
        batches = whole_videos(self.shards, self.indices, rank=ranks.rank, world_size=ranks.size, give_up=asked)
        on_device = (batch.to(device) for batch in takewhile(lambda _: not asked(), batches))
        gone = ""
        try:
            detections = localize(network, on_device, self.card, rules=self.card.localize)
        except StoreGoneError as error:
            gone = str(error)
        network.serve()
        network.train()
        if problem := next(filter(None, ranks.gather(gone)), ""):
            raise StoreGoneError(problem)
        if ranks.ask(preemption.asked)():
            return None
        result = evaluate(detections, self.ground_truth, self.tious, ranks)
        metrics = {f"mAP/{tiou}": value for tiou, value in zip(result.tious, result.map_T, strict=True)}
        return metrics | {"mAP/average": result.average}

    def describe(self, metrics: dict[str, float]) -> str:
        """A line for the log, with the population."""
        average = f"{100 * metrics['mAP/average']:.1f} (tIoU {self.tious[0]} to {self.tious[-1]})"
        return f"mAP {average} on {len(self.indices)} videos: {self.name.replace('_', ' ')}"


def held_out_truth(shards: ShardSet, data: DataSettings, held_out: list[int]) -> tuple[GroundTruth, list[int]]:
    """When actions happen in the held-out videos, and those of them that can be measured on: whose times are known."""
    truth = _read_ground_truth(shards, data.subsets, may_lack_times=True)
    ids = shards.ids(held_out)
    timed = [index for index, video in zip(held_out, ids, strict=True) if video not in truth.untimed]
    return restricted(truth, set(ids)), timed


def _read_ground_truth(shards: ShardSet, subsets: Sequence[str], *, may_lack_times: bool = False) -> GroundTruth:
    """Of each set its subset, if it has it, or all of the only set; by the names that the union has for all of it."""
    parts = list(zip(shards.parts, shards.prefixes, strict=True))
    asked = list(zip(parts if len(parts) > 1 else parts * len(subsets), subsets, strict=True))
    of_each = [
        _renamed(
            read_ground_truth(
                part.path, subset, identity=part.identity, may_lack_times=may_lack_times or len(asked) > 1
            ),
            prefix,
            shards.class_names,
        )
        for (part, prefix), subset in asked
        if subset in part.subsets
    ]
    labels = sorted({label for truth in of_each for label in truth.labels})
    numbers = {label: number for number, label in enumerate(labels)}
    firsts = np.cumsum([0, *(len(truth.videos) for truth in of_each[:-1])])
    label_N = [np.array([numbers[label] for label in truth.labels], np.int32)[truth.label_N] for truth in of_each]
    return GroundTruth(
        videos=[video for truth in of_each for video in truth.videos],
        labels=labels,
        video_N=np.concatenate([truth.video_N + first for truth, first in zip(of_each, firsts, strict=True)]),
        label_N=np.concatenate(label_N),
        start_s_N=np.concatenate([truth.start_s_N for truth in of_each]),
        end_s_N=np.concatenate([truth.end_s_N for truth in of_each]),
        durations_s={video: duration_s for truth in of_each for video, duration_s in truth.durations_s.items()},
        untimed=frozenset(video for truth in of_each for video in truth.untimed),
        left_out=sum(truth.left_out for truth in of_each),
        swapped=sum(truth.swapped for truth in of_each),
    )


def _renamed(truth: GroundTruth, prefix: str, class_names: Mapping[str, str]) -> GroundTruth:
    """By the names of the union; where two labels become one, an instance that both have counts once."""
    labels = [class_names.get(label, label) for label in truth.labels]
    label_of: dict[tuple[object, ...], int] = {}
    rows = zip(
        *(column.tolist() for column in (truth.video_N, truth.start_s_N, truth.end_s_N, truth.label_N)), strict=True
    )
    kept_N = np.array([label_of.setdefault((*row, labels[label]), label) == label for *row, label in rows], bool)
    return replace(
        truth,
        videos=[prefix + video for video in truth.videos],
        labels=labels,
        video_N=truth.video_N[kept_N],
        label_N=truth.label_N[kept_N],
        start_s_N=truth.start_s_N[kept_N],
        end_s_N=truth.end_s_N[kept_N],
        durations_s={prefix + video: duration_s for video, duration_s in truth.durations_s.items()},
        untimed=frozenset(prefix + video for video in truth.untimed),
    )
