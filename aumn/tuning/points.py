"""A point of a tuning: one candidate trained for a share of its steps, and what held-out videos say of it.

Its folder is a run's, with two files more, of which the second tells that the point is done:

    held_out.npz    the network's scores of the held-out videos, where none is timed and points are compared by these
    tuned.json      `Record`: the rules that suit them best, and what these are worth
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel

from aumn.config.run_config import RunConfig
from aumn.data.loader import split_holdout, whole_videos
from aumn.data.settings import DataSettings
from aumn.data.shards.shard_set import ShardSet
from aumn.evaluation.evaluate import PROTOCOLS, parse_tious
from aumn.files import whole_file
from aumn.inference.one_video import load_network
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import GroundTruth, InputError, VideoScores
from aumn.runfolder.metrics import read_metrics
from aumn.runfolder.typed import typed
from aumn.runtime.ranks import Ranks
from aumn.training.validation import held_out_truth
from aumn.tuning.rules import choose_rules

SCORES, RECORD, PARTS = "held_out.npz", "tuned.json", ("video_C", "attention_T", "cas_TC")


class Record(BaseModel):
    """`tuned.json`."""

    rules: LocalizeSettings
    map: float | None = None  # by these rules, where held-out videos are timed
    why: str = ""  # it could not be trained
    step_s: float = 0.0  # median
    rest_s: float = 0.0  # what follows its last step


@dataclass(frozen=True)
class HeldOut:
    """The videos on which points are compared."""

    shards: ShardSet
    training: list[int]  # those of data.subset, held out or not
    names: list[str]  # of all that are held out
    indices: list[int]  # of those that are scored: the timed ones, where there are any
    truth: GroundTruth | None  # None: none is timed, or nothing happens in those that are

    @classmethod
    def of(cls, data: DataSettings, shards: ShardSet) -> HeldOut:
        """By what `data` says of them; InputError where it holds none out."""
        training = shards.indices(*data.subsets)
        _, held_out = split_holdout(training, shards.ids(training), data)
        if not held_out:
            raise InputError(
                f"data.holdout_share={data.holdout_share:g} holds no training video out, and candidates are compared "
                "on those: leave it out for a quarter, or name some in data.holdout_videos."
            )
        if len(shards.unlabelled(held_out)) == len(held_out):
            raise InputError(
                f"None of the {len(held_out)} held-out videos has a label, so that nothing can be compared on them: "
                "change data.holdout_seed, or name others in data.holdout_videos."
            )
        truth, timed = held_out_truth(shards, data, held_out)
        is_timed = len(truth) > 0
        return cls(shards, training, shards.ids(held_out), timed if is_timed else held_out, truth if is_timed else None)


def measure(config: RunConfig, held_out: HeldOut, ranks: Ranks, fixed: Collection[str]) -> Record:
    """Score the held-out videos with the model that the point's run has ended with, and choose its rules.

    `fixed` are those of the settings that stay as they are.
    """
    begun_s, folder = monotonic(), config.run.folder
    network, card = load_network(folder / "model")
    device = ranks.device(config.run.device)
    batches = whole_videos(held_out.shards, held_out.indices, rank=0, world_size=1)
    scores = RememberedScores.of(network.to(device), (batch.to(device) for batch in batches), card)
    rules, value = config.localize, None
    if held_out.truth is None:
        _save(held_out, scores, folder / SCORES)
    else:
        tious = parse_tious(PROTOCOLS[config.evaluation.protocol])
        stay = {name.removeprefix("localize.") for name in fixed if name.startswith("localize.")}
        rules, value = choose_rules(scores, held_out.truth, rules, tious, fixed=stay).best
    return Record(rules=rules, map=value, step_s=_step_s(folder), rest_s=monotonic() - begun_s)


def write_record(folder: Path, record: Record) -> None:
    """The point is done."""
    with whole_file(folder / RECORD) as file:
        file.write_text(record.model_dump_json(indent=1) + "\n")


def read_record(folder: Path) -> Record | None:
    """None where the point is not done."""
    file = folder / RECORD
    return typed(Record, file.read_bytes(), file, f"remove {folder}") if file.exists() else None


def read_scores(folder: Path, shards: ShardSet) -> RememberedScores:
    """What `measure` kept of the videos of a set."""
    try:
        with np.load(folder / SCORES) as kept:
            indices, networks = kept["videos"].tolist(), kept["networks"].tolist()
            scores = [
                {name: VideoScores(*(kept[f"{index}/{name}/{part}"] for part in PARTS)) for name in networks}
                for index in indices
            ]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{folder / SCORES} cannot be read ({error}): remove {folder}, to train it again.") from None
    videos = tuple(shards.videos[index] for index in indices)
    return RememberedScores(videos, tuple(scores), shards.classes, shards.clock)


def _save(held_out: HeldOut, remembered: RememberedScores, path: Path) -> None:
    index_of = dict(zip(held_out.shards.ids(held_out.indices), held_out.indices, strict=True))
    order = [index_of[video.id] for video in remembered.videos]
    arrays = {
        f"{index}/{stream}/{part}": getattr(of_stream, part)
        for index, of_video in zip(order, remembered.scores, strict=True)
        for stream, of_stream in of_video.items()
        for part in PARTS
    }
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, videos=np.array(order), networks=list(remembered.scores[0]), **arrays)


def _step_s(folder: Path) -> float:
    """A step's seconds by the lines that the run has logged, however often it was stopped between two of them."""
    lines = sorted({line["step"]: line["at_ms"] for line in read_metrics(folder)}.items())
    rates = [(at_ms - before_ms) / (step - before) for (before, before_ms), (step, at_ms) in pairwise(lines)]
    return statistics.median(rates) / 1000 if rates else 0.0
