"""From a model and a shard set to detections.

Videos go through the network one by one, whole, so a video's detections do not depend on the ranks or on its company.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from aumn.data.loader import deal, whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.data.shards.union import check_alike
from aumn.files import hold, partial_of, whole_folder
from aumn.inference.detections import export_json, read_detections
from aumn.inference.one_video import load_network
from aumn.inference.parts import part_of, write_part
from aumn.inference.proposals import VideoDetections, detect, together
from aumn.inference.settings import LocalizeSettings
from aumn.inference.snippet_scores import (
    FOLDER,
    KEPT_UNITS,
    ScoredModel,
    SnippetScores,
    classes_to_keep,
    compact,
    write_scores,
)
from aumn.model.aumn import StreamNetworks
from aumn.records import Batch, Detections, InputError, Place, VideoScores
from aumn.runfolder.checkpoint import ModelCard
from aumn.runtime.ranks import Ranks


def localize(
    network: StreamNetworks,
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
    found: list[VideoDetections] = []
    for batch in batches:
        (video,) = batch.videos
        scores = network.localize(batch)
        found.append(detect(scores, video, card.clock, rules))
        if keep:
            keep(batch, scores, found[-1])
        names.append(video.id)
        advance(len(names))
    return together(names, found, card.classes)


def localize_subset(
    folder: Path,
    shards_path: Place,
    out: Path,
    ranks: Ranks,
    *,
    model: str,
    subset: str,
    device: str,
    advance: Callable[[int, int], None],
    with_scores: bool = False,
    json_file: Path | None = None,
    change: Callable[[LocalizeSettings], LocalizeSettings] = lambda rules: rules,
    only: Collection[str] | None = None,
    bank_ranks: int = 1,
) -> int:
    """Localize a subset on all ranks: `out` appears whole, with a Parquet part a rank; how many detections in all.

    `folder` holds the model that the user called `model`. `with_scores` also writes `out`/scores; see `snippet_scores`.
    `out` is the last to appear: where it is, there is the JSON too. `change` makes the rules of the model's own.
    With `only`, the videos of these names are localized, and `subset` is what they are called together. `bank_ranks`
    share out the model's memories, as in training.
    """
    place = ranks.device(device)
    if out.exists():
        raise InputError(f"{out} already exists: name a new folder for the detections, or remove it first.")
    if with_scores and bank_ranks > 1:
        raise InputError("--scores needs whole memories, which --bank-ranks shares out: leave one of them out.")
    network, card = load_network(folder, ranks.split(bank_ranks)[0])
    own_rules, card = card.localize, card.model_copy(update={"localize": change(card.localize)})
    shards = ShardSet.open(shards_path)
    check_fit(card, model, shards)
    shards = shards.relabelled(card.classes)
    everything = range(len(shards))
    named = zip(everything, shards.ids(everything), strict=True)
    indices = shards.indices(subset) if only is None else [index for index, name in named if name in only]
    own = deal(shards, indices, rank=ranks.rank, world_size=ranks.size)
    network = network.to(place)

    def batches() -> Iterator[Batch]:
        whole = whole_videos(shards, indices, rank=ranks.rank, world_size=ranks.size)
        return (batch.to(place) for batch in whole)

    keeper = _ScoreKeeper(network, batches, card, ranks) if with_scores else None
    advance(0, len(own))
    detections = localize(
        network,
        batches(),
        card,
        rules=card.localize,
        advance=lambda done: advance(done, len(own)),
        keep=keeper,
    )
    network.serve()
    metadata = {"model": model, "subset": subset, "dataset": shards.name, "dataset_identity": shards.identity}
    if card.localize != own_rules:
        metadata["rules"] = card.localize.model_dump_json()
    with _appearing_whole(out, ranks) as partial:
        write_part(detections, part_of(partial, ranks.rank), metadata)
        if keeper:
            facts = ScoredModel(model, card.classes, card.model.units, card.localize.shares(card.networks))
            write_scores(partial / FOLDER, ranks.rank, keeper.rows, facts)
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
    with _telling_refusals(out), _alone(out) if ranks.is_first else nullcontext():
        with whole_folder(out, checksums=False) if ranks.is_first else nullcontext(partial_of(out)) as partial:
            ranks.barrier()
            yield partial
            ranks.barrier()
        ranks.barrier()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One localization a folder at a time."""
    lock = out.resolve().with_name(f".{out.name}.lock")
    with hold(lock, f"Another localization is writing {out}: let it end"):
        if not lock.exists():  # the one that was waited for has removed it
            raise InputError(f"The localization that was writing {out} has just ended: run the same command again.")
        try:
            yield
        finally:
            lock.unlink()


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
    """InputError unless the model knows the set's classes, and the features are like those that it was trained on."""
    if unknown := [name for name in shards.classes if name not in card.classes]:
        raise InputError(
            f"{shards.path} has classes that the model {model} does not know ({len(unknown)} of {len(shards.classes)}: "
            f"{', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}): use a model of these classes; where it calls "
            "them otherwise, name them so in the annotations and pack again."
        )
    check_alike(shards, card, f"the model {model} was trained on")


class _ScoreKeeper:
    """Gathers the snippet scores of a rank's videos; called with each one as it is localized."""

    def __init__(
        self, network: StreamNetworks, batches: Callable[[], Iterable[Batch]], card: ModelCard, ranks: Ranks
    ) -> None:
        self._network, self._card = network, card
        self._units = {stream: list(range(card.model.units)) for stream in card.networks}
        if card.model.units > KEPT_UNITS:  # takes a pass over the videos of its own
            self._units = _most_similar(network, batches(), card, ranks)
        self.rows: list[SnippetScores] = []

    def __call__(self, batch: Batch, scores: dict[str, VideoScores], found: VideoDetections) -> None:
        (video,) = batch.videos
        classes = classes_to_keep(scores, video, found.label_N.tolist())
        similarity = self._network.similarity(batch, self._units)
        for stream, score in scores.items():
            kept = {"classes": classes, "units": self._units[stream]}
            self.rows.append(compact(video, stream, score, similarity[stream], clock=self._card.clock, **kept))


def _most_similar(
    network: StreamNetworks, batches: Iterable[Batch], card: ModelCard, ranks: Ranks
) -> dict[str, list[int]]:
    """The units that the subset's snippets are most similar to, by the mean over videos of their mean; at any ranks."""
    means = {stream: torch.zeros(card.model.units, dtype=torch.float64) for stream in card.networks}
    for batch in batches:
        for stream, sums_BK in network.unit_sums(batch).items():
            means[stream] += sums_BK[0].double().cpu() / batch.lengths[0]
    totals = {stream: torch.stack(ranks.gather(mean_K)).sum(0) for stream, mean_K in means.items()}
    return {
        stream: sorted(total_K.argsort(descending=True, stable=True)[:KEPT_UNITS].tolist())
        for stream, total_K in totals.items()
    }
