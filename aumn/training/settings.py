"""The run itself, the mAP that it follows, and what somebody is to be told of at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from aumn.addresses import has_password
from aumn.config.section import Count, Section, Seed, refusal, setting


class RunSettings(Section):
    """The run itself."""

    folder: Path = setting(..., "Where checkpoints and the final model go.", same_model=True)
    steps: Count = setting(
        ..., "Optimizer steps. A resumed run may change them where nothing else is a share of them.", may_change=True
    )
    seed: Seed = setting(0, "Of initial weights, order of videos, snippets and dropout.")
    engine: Literal["single", "ddp", "deepspeed"] = setting(
        "ddp",
        "`ddp` and `deepspeed` join whatever ranks were launched, also one; see docs/engines.md.",
        may_change=True,
    )
    device: Literal["cpu", "cuda"] = setting("cpu", "cuda is untested for want of a GPU.")
    log_every: Count = setting(10, "Steps between lines of metrics.", same_model=True)
    checkpoint_every: Count = setting(500, "Steps between checkpoints; the last step always has one.", same_model=True)
    keep_checkpoints: Count = setting(2, "How many of the newest checkpoints are kept.", same_model=True)
    step_timeout_s: Count | None = setting(
        None,
        "After how many seconds a rank that waits for another one in a step ends; null: learnt, ten times the slowest "
        "step so far, 30 at least, and data.store_away_s beyond where a store may be away.",
        same_model=True,
    )
    start_timeout_s: Count = setting(
        600,
        "The same outside of steps, where a rank may work alone: while ranks start (after 30 they say whom they wait "
        "for) and load, in an evaluation's longest videos, at a checkpoint, in publishing, and in the first steps.",
        same_model=True,
    )


class EvaluationSettings(Section):
    """The mAP followed while training; never used to choose a checkpoint unless it is of held-out training videos."""

    videos: str | None = setting(
        None,
        "`held_out`, or the name of a subset, or null: the run then reports no mAP, and the other settings here wait.",
    )
    every: Count = setting(100, "Steps between evaluations; the last step always has one.")
    protocol: Literal["thumos14", "activitynet"] = setting("thumos14", "tIoU 0.1:0.7:0.1 or 0.5:0.95:0.05.")


class AlertRule(Section):
    """What somebody is to be told of, once each time that it begins."""

    rule: Literal["not_finite", "below", "above", "fell_to", "silent_min"]
    metric: str = ""
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> AlertRule:
        if bool(self.metric) == (self.rule == "silent_min"):
            raise refusal("alerts.rules: silent_min is about steps; each other rule names a metric, such as loss")
        if (self.value is None) != (self.rule == "not_finite"):
            raise refusal("alerts.rules: not_finite has no value; each other rule has one, such as 0.5")
        if self.rule in {"fell_to", "silent_min"} and not 0 < (self.value or 0) < (
            1 if self.rule == "fell_to" else 1e6
        ):
            raise refusal(
                f"alerts.rules: {self.rule} with value={self.value}: fell_to is a share of the metric's best, between "
                "0 and 1, and silent_min is minutes, more than 0"
            )
        return self


class AlertSettings(Section):
    """Whom to tell, and of what; see docs/interruptions.md. A resumed run may change all of it."""

    rules: tuple[AlertRule, ...] = setting(
        (),
        "A list of {metric, rule, value}: not_finite, below, above, fell_to (a share of its best), or silent_min "
        "(minutes without a step) without a metric. `*/attention_mean` means every stream's.",
        same_model=True,
    )
    command: tuple[str, ...] = setting(
        (), "Words of a command, which gets AUMN_ALERT, AUMN_ALERT_METRIC, _VALUE, _STEP and _RUN.", same_model=True
    )
    url: str | None = setting(None, "http or https: JSON with the same, and `text`, is posted there.", same_model=True)

    @model_validator(mode="after")
    def _check(self) -> AlertSettings:
        if has_password(self.url or ""):
            raise refusal(
                "alerts.url must hold no password, since settings are kept with checkpoints and models: let "
                "alerts.command be a script that knows it"
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise refusal(f"alerts.url={self.url!r} must begin with http:// or https://")
        if bool(self.rules) != bool(self.command or self.url):
            raise refusal(
                "alerts.rules need alerts.command or alerts.url, and these need rules: set both, or leave both out"
            )
        return self
