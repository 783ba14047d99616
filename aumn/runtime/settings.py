"""How the engine holds and multiplies numbers, and how Adam moves them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aumn.config.section import Count, Positive, Section, ShareBelowOne, Weight, refusal, setting

DEEPSPEED = "run.engine=deepspeed"


class OptimizerSettings(Section):
    """Adam (paper); its weight decay is decoupled (AdamW)."""

    learning_rate: Positive = setting(1e-4, "Paper: 1e-4.")
    weight_decay: Weight = setting(0.0, "Decoupled, times the learning rate (paper: none).")
    beta1: ShareBelowOne = setting(0.9, "Of Adam's mean of the gradients.")
    beta2: ShareBelowOne = setting(0.999, "Of Adam's mean of their squares.")
    clip_norm: Positive | None = setting(None, "Largest gradient norm, per stream (paper: no clipping).")
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = setting(0, "Steps of linear warm-up.")
    schedule: Literal["constant", "cosine", "trapezoid"] = setting(
        "constant",
        "After warm-up (the paper does not say); cosine ends at zero, trapezoid is constant and falls to "
        "zero in a line over the last 40 % of the steps.",
    )

    @property
    def betas(self) -> tuple[float, float]:
        """As Adam takes them."""
        return self.beta1, self.beta2


class EngineSettings(Section):
    """How the engine holds and multiplies numbers; a run may change all but `precision` when it resumes."""

    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "Of the embedding's matrix products; the rest is always float32. fp16 scales the loss."
    )
    bank_ranks: Count = setting(
        1,
        "Ranks that share out each memory of K units, with its gradient and Adam's state; neighbours, so that they are "
        "of one machine, and a divisor of all ranks.",
        may_change=True,
        needs="run.engine=ddp",
    )
    zero_stage: Literal[0, 1, 2, 3] = setting(
        2,
        "What the ranks share out: 0 nothing, 1 Adam's state, 2 and gradients, 3 and weights.",
        may_change=True,
        needs=DEEPSPEED,
    )
    offload: Literal["none", "optimizer", "all"] = setting(
        "none",
        "What waits in host memory: Adam's state (zero_stage 1 to 3), or the weights too (3).",
        may_change=True,
        needs=DEEPSPEED,
    )
    compile_ops: bool = setting(
        False,
        "DeepSpeed's own fused Adam, which it compiles for minutes when first used.",
        may_change=True,
        needs=DEEPSPEED,
    )

    @model_validator(mode="after")
    def _check(self) -> EngineSettings:
        least_stage = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least_stage:
            raise refusal(f"engine.offload={self.offload} needs engine.zero_stage={least_stage} or more")
        if self.compile_ops and self.zero_stage == 0:
            raise refusal("engine.compile_ops=true needs engine.zero_stage=1 or more")
        return self
