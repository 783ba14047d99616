"""Comparing versions, and giving an alias to the better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aumn.config.run_config import says, settings_of
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard
from aumn.tracking.model_card import measure, why_incomparable
from aumn.tracking.registry import Description, check_names, describe, find_aliases, find_version, read_description
from aumn.tracking.store import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions side by side; a row is a name and what each has, None where it has nothing of the kind."""

    first: Description
    second: Description
    metrics: list[tuple[str, Any, Any]]  # fractions, or None
    settings: list[tuple[str, Any, Any]]  # those that differ
    data: list[tuple[str, Any, Any]]  # text
    incomparable: str | None  # why their mAP say nothing of each other


def compare(first_uri: str, second_uri: str, uri: str | None = None) -> Comparison:
    """Two versions, each `models:/name/version` or `models:/name@alias`."""
    first, second = describe(first_uri, uri), describe(second_uri, uri)
    settings = _side_by_side(_settings(first, second), _settings(second, first))
    return Comparison(
        first,
        second,
        _side_by_side(first.card.metrics, second.card.metrics),
        [(name, ours, theirs) for name, ours, theirs in settings if ours != theirs],
        _side_by_side(_facts(first.card), _facts(second.card)),
        why_incomparable(measure(first.card, first.config), measure(second.card, second.config)),
    )


def _side_by_side(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]


@dataclass(frozen=True, slots=True)
class Promotion:
    """Which version has the alias now, which one had it, and why the two were not compared, if they were not."""

    version: int
    before: int | None
    remark: str | None


class NotBetterError(InputError):
    """The version that has the alias records a higher mAP."""


def promote(name: str, which: str, alias: str, uri: str | None = None, *, force: bool = False) -> Promotion:
    """Give a version, named by its number or by @alias, another alias.

    Without `force`, NotBetterError where the version that has the alias records a higher mAP, InputError where it
    records one that this version cannot be compared with. A version without an mAP makes way for any.
    """
    check_names(alias=alias)
    with connected(uri) as client:
        version = find_version(client, name, which)
        before = find_aliases(client, name).get(alias)
        remark = None
        if before not in {None, version} and not force:
            remark = _judge(client, name, version, before, alias)
        client.set_registered_model_alias(name, alias, str(version))
        return Promotion(version, before, remark)


def _judge(client: MlflowClient, name: str, version: int, before: int, alias: str) -> str | None:
    new, old = read_description(client, name, version), read_description(client, name, before)
    ours, theirs = measure(new.card, new.config), measure(old.card, old.config)
    why = why_incomparable(ours, theirs)
    if theirs is None:
        return f"version {before} records no mAP to compare with"
    if why is not None:
        raise InputError(
            f"{new} cannot be compared with version {before}, which is @{alias} now: {why}. Measure both alike on the "
            "same videos, or pass --force."
        )
    assert ours is not None
    if ours.average < theirs.average:
        raise NotBetterError(
            f"{new} has mAP {ours}, less than the {100 * theirs.average:.1f}% of version {before}, which is @{alias} "
            "now: promote a better one, or pass --force."
        )
    if new.card.chosen_rules and new.card.chosen_rules != old.card.chosen_rules:
        return f"its rules were chosen on these very videos, {ours.population}: on others it is a little worse"
    if not any(name.startswith("held_out/") for name in new.card.metrics):
        return (
            f"chosen by its mAP on {ours.population}, which is no measure of it any more: choose on training videos, "
            "evaluation.videos=held_out"
        )
    return None


def _settings(of: Description, other: Description) -> dict[str, Any]:
    """All of the run's where both have them, else those of the network; and the model's own of localization."""
    sections: Mapping[str, Any] = of.card.model_dump(mode="json", include={"model", "localize"})
    if of.config and other.config:
        sections = {**of.config, "localize": sections["localize"]}
    return {name: value for name, value in settings_of(sections).items() if not says(name, "same_model")}


def _facts(card: ModelCard) -> dict[str, str]:
    return {
        "dataset": card.dataset,
        "identity": card.dataset_identity,
        "classes": f"{len(card.classes)}",
        "streams": ", ".join(f"{stream} {width}" for stream, width in card.streams.items()),
        "a snippet": str(card.clock),
        "commit": card.commit or "unknown",
        "rules": str(card.chosen_rules or "the run's"),
    }
