"""From a model and a shard set to detections.

Videos go through the network one by one, whole, so a video's detections do not depend on the ranks or on its company.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np

from aumn.data.loader import deal, whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.files import partial_of, whole_folder
from aumn.inference.detections import export_json, read_detections
from aumn.inference.one_video import load_network
from aumn.inference.parts import part_of, write_part
from aumn.inference.proposals import VideoDetections, detect
from aumn.inference.scoring import ScoreKeeper
from aumn.inference.settings import LocalizeSettings
from aumn.records import Batch, Detections, InputError, VideoScores
from aumn.runfolder.checkpoint import ModelCard
from aumn.runtime.ranks import Ranks


class Localizer(Protocol):
    """What localization needs of a network."""

    def localize(self, batch: Batch) -> dict[str, VideoScores]:
        """Every stream's scores of the batch's one whole video."""


def localize(
    network: Localizer,
    batches: Iterable[Batch],
    card: ModelCard,
    *,
    rules: LocalizeSettings,
    advance: Callable[[int], None] = lambda _done: None,
    keep: Callable[[Batch, dict[str, VideoScores], VideoDetections], None] | None = None,
) -> Detections:
    """The detections of the batches' videos, of which each batch has one.

    `keep` is shown each video's scores before they are dropped.
    """
    names: list[str] = []
    counts: list[int] = []
    columns: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int32), np.zeros(0), np.zeros(0), np.zeros(0))]
    for batch in batches:
        (video,) = batch.videos
        scores = network.localize(batch)
        found = detect(scores, video, card.stride_frames, rules)
        if keep:
            keep(batch, scores, found)
        names.append(video.id)
        counts.append(len(found.score_N))
        columns.append((found.label_N, found.score_N, found.start_s_N, found.end_s_N))
        advance(len(names))
    label_N, score_N, start_s_N, end_s_N = (np.concatenate(column) for column in zip(*columns, strict=True))
    video_N = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return Detections(tuple(names), card.classes, video_N, label_N.astype(np.int32), score_N, start_s_N, end_s_N)


def localize_subset(
    folder: Path,
    shards_path: Path,
    out: Path,
    ranks: Ranks,
    *,
    model: str,
    subset: str,
    device: str,
    advance: Callable[[int, int], None],
    with_scores: bool = False,
    json_file: Path | None = None,
) -> int:
    """Localize a subset on all ranks: `out` appears whole, with a Parquet part a rank; how many detections in all.

    `folder` holds the model that the user called `model`. `with_scores` also writes `out`/scores; see `scoring`.
    `out` is the last to appear: where it is, there is the JSON too.
    """
    place = ranks.device(device)
    if out.exists():
        raise InputError(f"{out} already exists: name a new folder for the detections, or remove it first.")
    network, card = load_network(folder)
    shards = ShardSet.open(shards_path)
    check_fit(card, model, shards)
    indices = shards.indices(subset)
    own = deal(shards, indices, rank=ranks.rank, world_size=ranks.size)
    network = network.to(place)

    def batches() -> Iterator[Batch]:
        whole = whole_videos(shards, indices, rank=ranks.rank, world_size=ranks.size)
        return (batch.to(place) for batch in whole)

    keeper = ScoreKeeper.of(network, batches, card, ranks) if with_scores else None
    advance(0, len(own))
    detections = localize(
        network,
        batches(),
        card,
        rules=card.localize,
        advance=lambda done: advance(done, len(own)),
        keep=keeper,
    )
    metadata = {"model": model, "subset": subset, "dataset": shards.name, "dataset_identity": shards.identity}
    with _appearing_whole(out, ranks) as partial:
        write_part(detections, part_of(partial, ranks.rank), metadata)
        if keeper:
            keeper.write(partial, model, ranks.rank)
        if json_file:
            ranks.barrier()
            if ranks.is_first:
                with _telling_refusals(json_file):
                    export_json(read_detections(partial)[0], json_file)
    return sum(ranks.gather(len(detections)))


def final_model(folder: Path) -> Path:
    """The folder of the model that a user means by `folder`: of a run's, the final model in it."""
    inside = folder / "model"
    return inside if (inside / "model.json").is_file() and not (folder / "model.json").exists() else folder


@contextmanager
def _appearing_whole(out: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder that every rank writes into and that takes its name once all have."""
    with _telling_refusals(out):
        with whole_folder(out, checksums=False) if ranks.is_first else nullcontext(partial_of(out)) as partial:
            ranks.barrier()
            yield partial
            ranks.barrier()
        ranks.barrier()


@contextmanager
def _telling_refusals(path: Path) -> Iterator[None]:
    """What a disk refuses one rank is told in one sentence, and ends the others too; see `runtime.ranks.connect`."""
    try:
        yield
    except FileNotFoundError:  # another rank refused, and the first one took the folder away
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(
            f"{path} cannot be written: {reason}. Free space, mend its folder, or name another."
        ) from error


def check_fit(card: ModelCard, model: str, shards: ShardSet) -> None:
    """InputError unless the shard set has the classes, feature widths and stride that the model was trained with."""
    if shards.classes != card.classes:
        raise InputError(
            f"{shards.path} has other classes than the model {model} ({_difference(shards.classes, card.classes)}): "
            "pack it with the model's class list (aumn pack --classes FILE), or use a model of these classes."
        )
    if shards.streams != card.streams:
        raise InputError(
            f"{shards.path} has features {shards.streams} wide, the model {model} was trained on {card.streams}: "
            "use features of the same extractor."
        )
    if shards.stride_frames != card.stride_frames:
        raise InputError(
            f"{shards.path} has a snippet every {shards.stride_frames} frames, the model {model} was trained on one "
            f"every {card.stride_frames}: extract the features again with that stride."
        )


def _difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    extra = [name for name in ours if name not in theirs]
    missing = [name for name in theirs if name not in ours]
    if not extra and not missing:
        return "the same names in another order"
    groups = ((extra, "extra"), (missing, "missing"))
    parts = [f"{len(names)} {word}: {', '.join(names[:3])}" for names, word in groups if names]
    return f"{len(ours)} against {len(theirs)}; {'; '.join(parts)}"
