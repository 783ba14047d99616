"""How scores become detections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from aumn.config.section import Count, Positive, Section, Share, ShareBelowOne, Weight, refusal, refuse_unknown, setting
from aumn.records import JOINT

PAPER = {"rgb": 0.3, "flow": 0.7}


def _several(given: Any) -> Any:
    return [given] if isinstance(given, int | float) else given


class LocalizeSettings(Section):
    """From scores to detections."""

    weights: dict[str, Share] = setting(
        {},
        "Each stream's share in Eq. 16 and in the video score, 1 together; a stream of share 0, or not named, proposes "
        "nothing (paper: {rgb: 0.3, flow: 0.7}). {}: the paper's where these are the streams, else equal ones; "
        "beside `joint`, which has half then.",
    )
    class_threshold: Share = setting(0.1, "Classes above it are kept, or the best one (paper: 0.1).")
    nms_tiou: Share = setting(0.3, "Class-wise NMS (paper: 0.3).")
    proposals: Literal["attention", "class_activation"] = setting(
        "attention",
        "What stands above its mean in a proposal: a stream's attention (paper), or what Eq. 16 averages, "
        "for each class on its own.",
    )
    scale: Literal["probability", "log_odds"] = setting(
        "probability",
        "What curves are thresholded and averaged as (paper: probability). log_odds: log p / (1 - p) above that of "
        "1 in 400. The flanks of an action count as its peak does, so proposals are wider.",
    )
    smoothing: Count = setting(
        1, "Curves are means over so many snippets around each (paper: 1, as they are), fewer at a video's ends."
    )
    thresholds: Annotated[tuple[ShareBelowOne, ...], BeforeValidator(_several)] = setting(
        [],
        "In place of the mean, shares of the way from a curve's lowest to its highest value: [0.1, 0.5] proposes what "
        "stands above a tenth of it, and what stands above half of it.",
    )
    contrast: Weight = setting(
        0.0,
        "How much of the mean in the quarters of a proposal's length before and behind it is taken off its confidence.",
    )
    fusion: Literal["nms", "gaussian"] = setting(
        "nms",
        "gaussian: a proposal that NMS keeps takes the mean of the ends of those that NMS drops for it and of its own, "
        "each weighted by its score times exp(-(1 - tIoU)^2 / (2 sigma^2)).",
    )
    fusion_sigma: Positive = setting(0.3, "Its sigma.", needs="localize.fusion=gaussian")

    def shares(self, streams: Iterable[str]) -> dict[str, float]:
        """Each stream's share in Eq. 16; InputError for one that `weights` names and that is none of them."""
        streams = tuple(streams)
        refuse_unknown("localize.weights", self.weights, streams, remedy="name these, or give {} for the default")
        apart = [stream for stream in streams if stream != JOINT]
        equal = dict.fromkeys(apart, (0.5 if JOINT in streams else 1) / max(1, len(apart)))
        joint = {JOINT: 0.5 if apart else 1.0}
        weights = self.weights or (PAPER if set(streams) == set(PAPER) else equal | joint)
        return {stream: weights.get(stream, 0.0) for stream in streams}

    @classmethod
    def modern(cls, given: dict[str, Any]) -> dict[str, Any]:
        """In place of `theta`, as RGB's share was called up to commit 497c31b; null stands for {}."""
        if given.get("weights", {}) is None:
            given = {**given, "weights": {}}
        if not isinstance(theta := given.get("theta"), int | float):
            return given
        if "weights" in given:
            raise refusal("localize.theta is the old name of what localize.weights says too: leave it out")
        rest = {name: value for name, value in given.items() if name != "theta"}
        shares = {"rgb": theta, "flow": 1 - theta}
        return rest | {"weights": {} if shares == PAPER else {name: share for name, share in shares.items() if share}}

    @model_validator(mode="after")
    def _check(self) -> LocalizeSettings:
        total = sum(self.weights.values())
        if self.weights and not math.isclose(total, 1, abs_tol=1e-6):
            raise refusal(f"localize.weights={self.weights} are {total:g} together, and shares are 1 together")
        return self
