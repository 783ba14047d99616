"""A stream's network, and the loss that trains it. Defaults are the paper's where it gives one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aumn.config.section import (
    EVERY_STREAM,
    Count,
    Positive,
    Section,
    Share,
    ShareBelowOne,
    Size,
    StreamWeights,
    Weight,
    refusal,
    refuse_unknown,
    setting,
)
from aumn.records import JOINT, InputError

PAPER_UNITS = 7


class ModelSettings(Section):
    """One stream's network; all streams' have the same shape."""

    embedding_width: Size = setting(512, "F of Eq. 1 (paper: 512).")
    kernel: Size = setting(3, "Taps of Eq. 1's convolution, in snippets (the paper does not say).")
    key_ratio: Size = setting(4, "m of Eq. 2, 4, 5: keys are F/m wide (the paper does not say).")
    units: Count = setting(PAPER_UNITS, "K, the memory's action units (paper: 7).")
    unit_rates: bool = setting(
        True,
        "Adam moves units, their encoders and values by what suits their number, so that other settings serve any "
        "model.units alike; at 7 nothing differs. Off: as models that were begun up to commit b3b6a4d.",
    )
    bottleneck: Size = setting(64, "R of Eq. 3's value encoder (the paper does not say).")
    self_attention: bool = setting(True, "Eq. 4; off: X = E, as in the ablation.")
    dropout: ShareBelowOne = setting(0.0, "Share of embedding values dropped while training (paper: none).")
    channel_dropout: ShareBelowOne = setting(
        0.0,
        "Share of the features' channels dropped while training, the same ones in all of a video's snippets (paper: "
        "none). Snippets of one clip are near copies, over which dropout of single values averages out.",
    )
    mixing_dropout: ShareBelowOne = setting(
        0.0,
        "Share of videos that Eq. 4's sum over snippets is left out of while training (paper: none).",
        needs="model.self_attention=true",
    )
    centred_queries: bool = setting(
        False,
        "Eq. 4 compares queries without their mean over the video and at one length (paper: as they are), "
        "so that background does not attend to actions. Pays together with normalised_pooling (docs/results.md).",
        needs="model.self_attention=true",
    )
    attention_rate: Positive = setting(
        1.0, "Adam moves Eq. 5's queries and keys this many times as fast as the rest (paper: 1)."
    )
    independent_classes: bool = setting(
        False,
        "Every class on its own: a bias each and sigmoids in place of Eq. 8's and 15's softmax, binary "
        "cross-entropy in place of Eq. 9 (paper: softmaxes). Suits videos that hold several actions.",
    )
    embedding_layers: Annotated[int, Field(ge=1, le=64, strict=True)] = setting(
        1, "Convolutions of Eq. 1, one behind the other, each with its ReLU (paper: one)."
    )
    pooling_share: Annotated[float, Field(gt=0, le=1, strict=True)] = setting(
        1.0,
        "Eq. 8's mean is over this share of a video's snippets, for each class those with the highest "
        "a_t X_t W_t (paper: 1, all). Less suits short actions in long videos, and takes B x T x J x C values.",
    )
    normalised_pooling: bool = setting(
        False,
        "Eq. 8 divides by the sum of a_t (paper: by the number of snippets), so that only the attention's "
        "shape counts, not its scale, for which W can make up. Pays together with centred_queries.",
        needs="model.weighted_pooling=true",
    )
    weighted_pooling: bool = setting(
        True,
        "Eq. 8 weighs each snippet's X_t W_t by its attention a_t (paper). Off: classes find their snippets by "
        "themselves, and the attention learns from loss.pseudo_labels; pays with a small pooling_share.",
    )
    prototypes: bool = setting(
        False,
        "The memory holds a prototype of each class and one of background, embeddings that loss.prototypes brings the "
        "surest snippets of every video near (paper: none). They serve training alone.",
    )
    streams: Literal["apart", "joint", "both"] = setting(
        "apart",
        "A network a stream, whose scores Eq. 16 weighs (paper: apart); or one that sees the features of all streams "
        "side by side, for streams that say little alone, `joint` in localize.weights and loss.sparsity; or both.",
    )

    @staticmethod
    def know_rates(saved: dict[str, Any]) -> None:
        """Say of settings saved before there was `unit_rates` what they had: at seven units it is one thing."""
        saved.setdefault("unit_rates", saved.get("units") == PAPER_UNITS)

    @property
    def key_width(self) -> int:
        """A."""
        return self.embedding_width // self.key_ratio

    def networks(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The networks' names and input widths: one a stream of these widths, and `joint`, as `streams` says.

        A single stream's network has its name in any case.
        """
        apart, joint = dict(widths), {JOINT: sum(widths.values())}
        if self.streams == "apart" or len(apart) == 1:
            return apart
        return joint if self.streams == "joint" else apart | joint

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.embedding_width % self.key_ratio:
            raise refusal(
                f"model.embedding_width={self.embedding_width} is no multiple of model.key_ratio={self.key_ratio}, and "
                "keys are the one divided by the other wide"
            )
        return self


class LossSettings(Section):
    """The weights of Eq. 14. With model.units=1, diversity and homogeneity count nothing, as in the paper."""

    diversity: Weight = setting(0.01, "alpha, of Eq. 10 (paper: 0.01).")
    homogeneity: Weight = setting(0.02, "beta, of Eq. 12 (paper: 0.02).")
    sparsity: StreamWeights = setting(
        {EVERY_STREAM: 0.05, "flow": 0.03},
        "gamma of each stream's network, of Eq. 13: one number, or {rgb: 0.05, flow: 0.03} (paper: these); `default` "
        "is that of streams which are not named.",
    )
    sparsity_reduction: Literal["mean", "sum"] = setting(
        "mean", "Over time: `sum` is Eq. 13 to the letter and swamps Eq. 8's mean (docs/experiments.md)."
    )
    pseudo_labels: Weight = setting(
        0.0,
        "Of a cross-entropy that teaches each stream's attention where the class activations of the video's own "
        "classes, a mean over the streams, stand above their mean over the video (paper: none).",
    )
    pseudo_labels_from: Share = setting(
        0.2,
        "After this share of the steps; before, class activations have nothing to teach.",
        needs="loss.pseudo_labels",
    )

    prototypes: Weight = setting(
        0.5,
        "Of a cross-entropy that brings each class's surest snippets of a video near its prototype, and the least sure "
        "ones near the background's (paper: none).",
        needs="model.prototypes=true",
    )

    def gamma(self, stream: str) -> float:
        """What Eq. 13 counts in a stream's loss; `check` has seen that there is one."""
        return self.sparsity[stream if stream in self.sparsity else EVERY_STREAM]

    def check(self, streams: Iterable[str]) -> None:
        """InputError unless every stream of a shard set, and none beside, has its gamma."""
        if self.sparsity != LossSettings().sparsity:
            refuse_unknown("loss.sparsity", self.sparsity, streams, remedy="name these, or give one number for all")
        if missing := [stream for stream in streams if not {stream, EVERY_STREAM} & self.sparsity.keys()]:
            raise InputError(f"loss.sparsity has none for {', '.join(missing)}: add it, or `default` for all others.")

    @classmethod
    def modern(cls, given: dict[str, Any]) -> dict[str, Any]:
        """In place of `sparsity_rgb` and `sparsity_flow`, which there were up to commit 497c31b."""
        rest = dict(given)
        old = {name: rest.pop(name) for name in ("sparsity_rgb", "sparsity_flow") if name in given}
        if old and "sparsity" in given:
            raise refusal(f"loss.{min(old)} is the old name of what loss.sparsity says too: leave it out")
        rgb, flow = old.get("sparsity_rgb", 0.05), old.get("sparsity_flow", 0.03)
        return rest | {"sparsity": {EVERY_STREAM: rgb} | ({} if flow == rgb else {"flow": flow})} if old else given
