"""A run's settings: YAML and `section.field=value` overrides in, one frozen RunConfig out.

Defaults are the paper's where it gives one. Unknown or wrong fields are all reported at once; nothing is ever merged
silently and nothing changes after the run has started.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, PydanticUndefined

from aumn.config.yaml_files import parse_value, read_yaml
from aumn.records import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

REMOVED = {
    "engine.shared_memory": "the ranks of one machine sum gradients as all others do",
}
"""Settings of earlier versions, and what a run does now. A run that has them in its checkpoints goes on."""


class Section(BaseModel):
    """A part of the settings: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Section):
    """Which videos a run sees, and which of their snippets."""

    shards: Path = Field(description="Shard set that `aumn pack` wrote.")
    subset: str = Field("training", description="Subset to train on; THUMOS14 trains on `validation`.")
    holdout_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the subset's videos held out of training, so that choices need no test video."
    )
    holdout_seed: int = Field(0, description="Which videos are held out; independent of run.seed.")
    snippets: Count | None = Field(
        750,
        description="Snippets drawn a video (one at random from each of as many equal slices); null: all, padded. "
        "The paper does not say; usual are 750 for THUMOS14 and 50 to 150 for ActivityNet.",
    )


class ModelConfig(Section):
    """One stream's network; both streams have the same shape."""

    embedding_width: Count = Field(512, description="F of Eq. 1 (paper: 512).")
    kernel: Count = Field(3, description="Taps of Eq. 1's convolution, in snippets (the paper does not say).")
    key_ratio: Count = Field(4, description="m of Eq. 2, 4, 5: keys are F/m wide (the paper does not say).")
    units: Count = Field(7, description="K, the memory's action units (paper: 7).")
    bottleneck: Count = Field(64, description="R of Eq. 3's value encoder (the paper does not say).")
    self_attention: bool = Field(True, description="Eq. 4; off: X = E, as in the ablation.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of embedding values dropped while training (paper: none)."
    )
    channel_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the features' channels dropped while training, the same ones in all of a video's "
        "snippets (paper: none).",
    )
    mixing_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of videos that Eq. 4's sum over snippets is left out of while training (paper: none)."
    )
    centred_queries: bool = Field(
        False,
        description="Eq. 4 compares queries without their mean over the video and at one length (paper: as they are), "
        "so that background does not attend to actions. Pays together with normalised_pooling (docs/results.md).",
    )
    attention_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="Adam moves Eq. 5's queries and keys this many times as fast as the rest (paper: 1)."
    )
    independent_classes: bool = Field(
        False,
        description="Every class on its own: a bias each and sigmoids in place of Eq. 8's and 15's softmax, binary "
        "cross-entropy in place of Eq. 9 (paper: softmaxes). Suits videos that hold several actions.",
    )
    embedding_layers: Count = Field(
        1, description="Convolutions of Eq. 1, one behind the other, each with its ReLU (paper: one)."
    )
    pooling_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Eq. 8's mean is over this share of a video's snippets, for each class those with the highest "
        "a_t X_t W_t (paper: 1, all). Less suits short actions in long videos, and takes B x T x J x C values.",
    )
    normalised_pooling: bool = Field(
        False,
        description="Eq. 8 divides by the sum of a_t (paper: by the number of snippets), so that only the attention's "
        "shape counts, not its scale, for which W can make up. Pays together with centred_queries.",
    )

    @model_validator(mode="after")
    def _check_key_width(self) -> ModelConfig:
        if self.embedding_width % self.key_ratio:
            raise PydanticCustomError(
                "settings",
                f"model.embedding_width={self.embedding_width} is no multiple of model.key_ratio={self.key_ratio}, and "
                "keys are the one divided by the other wide",
            )
        return self


class LossConfig(Section):
    """The weights of Eq. 14. With model.units=1, diversity and homogeneity count nothing, as in the paper."""

    diversity: Weight = Field(0.01, description="alpha, of Eq. 10 (paper: 0.01).")
    homogeneity: Weight = Field(0.02, description="beta, of Eq. 12 (paper: 0.02).")
    sparsity_rgb: Weight = Field(0.05, description="gamma of the RGB network, of Eq. 13 (paper: 0.05).")
    sparsity_flow: Weight = Field(0.03, description="gamma of the FLOW network (paper: 0.03).")
    sparsity_reduction: Literal["mean", "sum"] = Field(
        "mean", description="Over time: `sum` is Eq. 13 to the letter and swamps Eq. 8's mean (docs/experiments.md)."
    )
    pseudo_labels: Weight = Field(
        0.0,
        description="Of a cross-entropy that teaches each stream's attention where both streams' class activations of "
        "the video's own classes stand above their mean (paper: none).",
    )
    pseudo_labels_from: Share = Field(
        0.2, description="After this share of the steps; before, class activations have nothing to teach."
    )


class OptimizerConfig(Section):
    """Adam (paper); its weight decay is decoupled (AdamW)."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1e-4, description="Paper: 1e-4.")
    weight_decay: Weight = Field(0.0, description="Decoupled, times the learning rate (paper: none).")
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest gradient norm, per stream (paper: no clipping)."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine", "trapezoid"] = Field(
        "constant",
        description="After warm-up (the paper does not say); cosine ends at zero, trapezoid is constant and falls to "
        "zero in a line over the last 40 % of the steps.",
    )


class BatchConfig(Section):
    """How many videos make a step; the result does not depend on how ranks and micro-batches share them."""

    global_videos: Count = Field(32, description="Videos a step, over all ranks and micro-batches (paper: 32).")
    micro_videos: Count | None = Field(None, description="Videos a rank's pass; null: its whole share in one pass.")


class RunSection(Section):
    """The run itself."""

    folder: Path = Field(description="Where checkpoints and the final model go.")
    steps: Count = Field(description="Optimizer steps.")
    seed: int = Field(0, ge=0, description="Of initial weights, order of videos, snippets and dropout.")
    engine: Literal["single", "ddp", "deepspeed"] = Field(
        "ddp", description="`ddp` and `deepspeed` join whatever ranks were launched, also one; see docs/engines.md."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda is untested for want of a GPU.")
    log_every: Count = Field(10, description="Steps between lines of metrics.")
    checkpoint_every: Count = Field(500, description="Steps between checkpoints; the last step always has one.")
    keep_checkpoints: Count = Field(2, description="How many of the newest checkpoints are kept.")
    hang_timeout_s: Count = Field(
        600,
        description="After how many seconds without a word from another rank a rank ends; more than one rank may ever "
        "work alone, as on an evaluation's longest videos.",
    )


class EngineConfig(Section):
    """How the engine holds and multiplies numbers; a run may change all but `precision` when it resumes."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the embedding's matrix products; the rest is always float32. fp16 scales the loss."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="deepspeed: what the ranks share out. 0 nothing, 1 Adam's state, 2 and gradients, 3 and weights."
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="deepspeed: what waits in host memory. Adam's state (zero_stage 1 to 3), or the weights too (3).",
    )
    compile_ops: bool = Field(
        False, description="deepspeed: its own fused Adam, which it compiles for minutes when first used."
    )

    @model_validator(mode="after")
    def _check_offload(self) -> EngineConfig:
        least_stage = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least_stage:
            raise PydanticCustomError(
                "settings", f"engine.offload={self.offload} needs engine.zero_stage={least_stage} or more"
            )
        if self.compile_ops and self.zero_stage == 0:
            raise PydanticCustomError("settings", "engine.compile_ops=true needs engine.zero_stage=1 or more")
        return self


class LocalizeConfig(Section):
    """From scores to detections."""

    theta: Share = Field(
        0.3,
        description="RGB's share in Eq. 16 and in the video score; at 0 or 1, one stream alone proposes (paper: 0.3).",
    )
    class_threshold: Share = Field(0.1, description="Classes above it are kept, or the best one (paper: 0.1).")
    nms_tiou: Share = Field(0.3, description="Class-wise NMS (paper: 0.3).")
    proposals: Literal["attention", "class_activation"] = Field(
        "attention",
        description="What stands above its mean in a proposal: a stream's attention (paper), or what Eq. 16 averages, "
        "for each class on its own.",
    )


class EvaluationConfig(Section):
    """The mAP followed while training; never used to choose a checkpoint unless it is of held-out training videos."""

    videos: str | None = Field(
        None, description="`held_out`, or the name of a subset, or null: the run then reports no mAP."
    )
    every: Count = Field(100, description="Steps between evaluations; the last step always has one.")
    protocol: Literal["thumos14", "activitynet"] = Field("thumos14", description="tIoU 0.1:0.7:0.1 or 0.5:0.95:0.05.")


class TrackingConfig(Section):
    """Where metrics and models go."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow store; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
    experiment: str = "aumn"
    run_name: str | None = None
    model_name: str | None = Field(None, description="Registered under this name at the end; null: not registered.")
    alias: str | None = Field(None, description="Given to the registered version, e.g. `challenger`.")

    @model_validator(mode="after")
    def _check_password(self) -> TrackingConfig:
        if re.search(r"//[^/@\s]*:[^/@\s]*@", self.uri or ""):
            raise PydanticCustomError(
                "settings",
                "tracking.uri must hold no password, since settings are kept with checkpoints and models: set "
                "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment",
            )
        return self


class RunConfig(Section):
    """All of a training run."""

    data: DataConfig
    run: RunSection
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    engine: EngineConfig = EngineConfig()
    localize: LocalizeConfig = LocalizeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    def network_settings(self) -> dict[str, Any]:
        """What `model.aumn.TwoStream.build` is told for training; a trained model is told `model` alone."""
        return self.model.model_dump() | {"scores_snippets": self.loss.pseudo_labels > 0}

    @classmethod
    def default(cls, section: str, name: str) -> Any:
        """What a field is where nobody sets it, as `model_dump(mode="json")` has it; None where it must be set."""
        section_type: Any = cls.model_fields[section].annotation
        default = section_type.model_fields[name].default
        return None if default is PydanticUndefined else default

    @model_validator(mode="after")
    def _check_engine(self) -> RunConfig:
        for name in ("zero_stage", "offload", "compile_ops"):
            if self.run.engine != "deepspeed" and name in self.engine.model_fields_set:
                raise PydanticCustomError(
                    "settings", f"engine.{name} is deepspeed's: set run.engine=deepspeed, or leave it out"
                )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `section.field=value` overrides (values are YAML); InputError lists every problem."""
    settings = _read_sections(path)
    for override in overrides:
        _apply(settings, override)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise InputError(f"{path} is not a run configuration ({len(problems)} to mend):", *problems) from None


def _read_sections(path: Path) -> dict[str, Any]:
    settings = read_yaml(path, "a run configuration, such as one of configs/*.yaml")
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        raise InputError(
            f"{path} must hold sections ({', '.join(RunConfig.model_fields)}), each with `field: value` lines."
        )
    return settings


def _apply(settings: dict[str, Any], override: str) -> None:
    if not re.match(r"[^.=]+\.[^=]+=", override):
        raise InputError(f"override {override!r} must read section.field=value, e.g. optimizer.learning_rate=0.001.")
    (section, *field), value = parse_value(override)
    settings.setdefault(section, {})[".".join(field)] = value


def _describe(problem: Any) -> str:
    """One line: the field, its value, the rule, and for a typo the nearest name."""
    if problem["type"] == "settings":  # ours, about fields together
        return f"{problem['msg']}."
    *parents, name = (str(part) for part in problem["loc"])
    where = ".".join((*parents, name))
    if problem["type"] == "missing":
        return f"{where} is missing; it has no default."
    if where in REMOVED:
        return f"{where} is no longer a setting: {REMOVED[where]}. Leave it out."
    if problem["type"] == "extra_forbidden":
        section = RunConfig.model_fields[parents[0]].annotation if parents else RunConfig
        fields = list(getattr(section, "model_fields", {}))
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(fields)}."
        return f"{where} is not a setting: {hint}"
    return f"{where}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."
