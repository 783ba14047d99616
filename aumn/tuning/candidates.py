"""What to try on a shard set, in order: the most promising first, since a small budget takes the first ones alone."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from aumn.config.run_config import RunConfig
from aumn.tuning.statistics import Statistics


class Candidate(BaseModel):
    """Settings that differ from those to start from, and why they may suit."""

    name: str  # of its runs' folders, too
    changes: dict[str, JsonValue]  # by section.field
    reason: str


def candidates(found: Statistics, base: RunConfig) -> list[Candidate]:
    """Those for a set with these statistics; the first is the configuration to start from, as it is."""
    several = f"{found.share_several:.0%} of the videos hold several classes, {found.share_none:.0%} none"
    list_of = [
        ("recommended", {}, "what to start from where nothing is known"),
        ("pooling_0.1", {"model.pooling_share": 0.1}, "actions that fill about a tenth of a video"),
        (
            "half_filled",
            {"model.pooling_share": 0.2, "loss.pseudo_labels": 0.5, "localize.proposals": "attention"},
            "actions that fill much of a video, found by an attention that class activations teach",
        ),
        ("pseudo_labels", {"loss.pseudo_labels": 0.5}, "class activations teach the attention where actions are"),
        ("all_snippets", {"model.pooling_share": 1.0}, "Eq. 8's own mean, for actions that fill most of a video"),
        ("one_class", {"model.independent_classes": False}, f"Eq. 9's softmax, for one class a video; here {several}"),
        ("short_kernel", {"model.kernel": 3}, "actions of few snippets"),
        ("long", {"run.steps": 2 * base.run.steps}, "a set that is learnt slowly"),
        ("less_dropout", {"model.channel_dropout": 0.2}, "features of which few channels can be spared"),
        (
            "self_attention",
            {"model.self_attention": True, "model.mixing_dropout": 0.5},
            "Eq. 4, for actions that are told by the rest of the video",
        ),
        ("narrow_pooling", {"model.pooling_share": 0.01}, "short actions in long videos"),
        ("wide", {"model.embedding_width": 256}, "many classes, or features of several streams"),
    ]
    return [Candidate(name=name, changes=changes, reason=reason) for name, changes, reason in list_of]
