"""A trained model's rules of localization, chosen again: the same weights with a card of their own.

By default on the videos that were held out of the model's training, which its run's configuration tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aumn.config.run_config import RunConfig, change_rules, changed_config, names_of
from aumn.data.loader import trained_sets, whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.data.shards.union import open_sets
from aumn.evaluation.evaluate import PROTOCOLS, evaluate, parse_tious
from aumn.inference.localize import check_fit
from aumn.inference.one_video import load_network
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import HELD_OUT, GroundTruth, InputError, place_of
from aumn.runfolder.checkpoint import ChosenRules, ModelCard, read_card
from aumn.runfolder.folder import RunFolder
from aumn.runtime.ranks import Ranks
from aumn.training.run import access_of
from aumn.training.validation import held_out_truth
from aumn.tuning.points import HeldOut
from aumn.tuning.rules import Choice, choose_rules


@dataclass(frozen=True)
class Judges:
    """The videos on which rules are compared."""

    shards: ShardSet
    indices: list[int]
    truth: GroundTruth | None  # None: nobody annotated when their actions happen
    subset: str  # or HELD_OUT
    trained_on: bool
    protocol: str


class Chosen(NamedTuple):
    """What a search came to."""

    choice: Choice
    before: LocalizeSettings  # the model's
    card: ModelCard  # with the rules chosen, and what was measured with them, but nothing that was with others
    trained_on: bool  # the videos that chose; nothing learns times from them, but they look better than others


def rules_of(
    folder: Path,
    *,
    model: str,
    shards: str | None,
    subset: str | None,
    overrides: Sequence[str],
    device: str,
    advance: Callable[[int, int], None],
) -> Chosen:
    """The rules chosen for the model in `folder`, which the user called `model`; `overrides` are rules that stay."""
    card = read_card(folder)
    judges = _judges(folder, card, model, shards, subset)
    own = change_rules(card.localize, overrides)
    own.shares(card.networks)
    network, _ = load_network(folder)
    place = Ranks().device(device)
    batches = whole_videos(judges.shards, judges.indices, rank=0, world_size=1)
    count = len(judges.indices)
    advance(0, count)
    scores = RememberedScores.of(
        network.to(place), (batch.to(place) for batch in batches), card, advance=lambda done: advance(done, count)
    )
    fixed = {name.removeprefix("localize.") for name in names_of(overrides)}
    tious = parse_tious(PROTOCOLS[judges.protocol])
    choice = choose_rules(scores, judges.truth, own, tious, fixed=fixed)
    metrics = {}
    if judges.truth is not None:
        result = evaluate(scores.localize(choice.best.rules), judges.truth, tious, Ranks())
        values = {**dict(zip(map(str, result.tious), result.map_T, strict=True)), "average": result.average}
        metrics = {f"{judges.subset}/mAP/{name}": value for name, value in values.items()}
    videos = tuple(sorted(judges.shards.ids(judges.indices)))
    chosen = ChosenRules(of=model, subset=judges.subset, measure=choice.measure, videos=videos)
    changes = {"localize": choice.best.rules, "metrics": metrics, "chosen_rules": chosen}
    return Chosen(choice, card.localize, card.model_copy(update=changes), judges.trained_on)


def _judges(folder: Path, card: ModelCard, model: str, shards: str | None, subset: str | None) -> Judges:
    settings = _settings_near(folder)
    subset = None if subset == HELD_OUT else subset
    if settings is None and not (shards and subset):
        raise InputError(
            f"{model} lies in no run's folder, so which videos were held out of its training is not known: name a "
            "shard set, and a --subset of it to choose rules on."
        )
    config = _config(settings, model, shards)
    trained_on = config.data.subsets if settings else []
    if subset is None:
        sets = trained_sets(config.data, card.dataset_parts or [card.dataset_identity], model)
        held_out = HeldOut.of(config.data, sets)
        return Judges(held_out.shards, held_out.indices, held_out.truth, HELD_OUT, False, config.evaluation.protocol)
    found = open_sets(config.data, access_of(config.data))
    check_fit(card, model, found)
    found = found.relabelled(card.classes)
    data, indices = config.data.model_copy(update={"subset": subset}), found.indices(subset)
    truth, timed = held_out_truth(found, data, indices)
    is_timed = len(truth) > 0
    return Judges(
        found,
        timed if is_timed else indices,
        truth if is_timed else None,
        subset,
        subset in trained_on,
        config.evaluation.protocol,
    )


def _settings_near(folder: Path) -> dict[str, Any] | None:
    """The configuration that a registered version has beside its files, and a run above its models."""
    for place in (folder, *folder.absolute().parents[:2]):
        settings = RunFolder(place).config()
        if {"data", "run", "evaluation"} <= settings.keys():
            return settings
    return None


def _config(settings: dict[str, Any] | None, model: str, shards: str | None) -> RunConfig:
    """What of it tells the videos and the measure; an older one may have other settings that are gone."""
    kept = {name: settings[name] for name in ("data", "evaluation")} if settings else {"data": {}}
    kept["data"] = {**kept["data"], **({"shards": str(place_of(shards))} if shards else {})}
    return changed_config(kept | {"run": {"folder": "none", "steps": 1}}, [], f"config.yaml of {model}")
