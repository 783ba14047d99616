"""What to try on a shard set, in order: the most promising first, since a small budget takes the first ones alone."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from aumn.tuning.statistics import Statistics

SAMPLED = 0.4  # of the median video's snippets


class Candidate(BaseModel):
    """Settings that differ from those to start from, and why they may suit."""

    name: str  # of its runs' folders, too
    changes: dict[str, JsonValue]  # by section.field
    reason: str


def candidates(found: Statistics) -> list[Candidate]:
    """Those for a set with these statistics; the first is the configuration to start from, as it is."""
    several = f"{found.share_several:.0%} of the videos hold several classes, {found.share_none:.0%} none"
    list_of = [
        ("recommended", {}, "what to start from where nothing is known"),
        ("pooling_0.1", {"model.pooling_share": 0.1}, "actions that fill about a tenth of a video"),
        ("half_filled", {"model.pooling_share": 0.2}, "actions that fill much of a video"),
        (
            "sampled",
            {"data.snippets": max(1, round(SAMPLED * found.snippets[1]))},
            "neighbouring snippets that are near copies of each other",
        ),
        ("narrow_pooling", {"model.pooling_share": 0.02}, "short actions in long videos"),
        ("less_dropout", {"model.channel_dropout": 0.0}, "features of which no channel can be spared"),
        ("wide_kernel", {"model.kernel": 9}, "actions of many snippets"),
        ("short_kernel", {"model.kernel": 3}, "actions of few snippets"),
        ("shallow", {"model.embedding_layers": 1}, "features that say nearly all, or few videos"),
        ("no_prototypes", {"model.prototypes": False}, "classes that look one way here and another way there"),
        (
            "self_attention",
            {"model.self_attention": True, "model.mixing_dropout": 0.5},
            "Eq. 4, for actions that are told by the rest of the video",
        ),
        ("one_class", {"model.independent_classes": False}, f"Eq. 9's softmax, for one class a video; here {several}"),
    ]
    return [Candidate(name=name, changes=changes, reason=reason) for name, changes, reason in list_of]
