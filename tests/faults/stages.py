"""The stages that are interrupted: the commands a user types first and again, and what must be there in the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.launching import launcher

STEPS = 24
SETTINGS = {
    "data": {"snippets": 48, "holdout_share": 0.2},
    "model": {"embedding_width": 128, "units": 5, "bottleneck": 8, "dropout": 0.3},
    "optimizer": {"learning_rate": 0.003, "clip_norm": 1.0, "warmup_steps": 5, "schedule": "cosine"},
    "batch": {"global_videos": 12},
    "run": {
        "folder": "run",
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": 4,
        "step_timeout_s": 60,
        "start_timeout_s": 120,
    },
    "evaluation": {"videos": "held_out", "every": 10},
    "tracking": {"model_name": "torture", "alias": "challenger"},
}
SYNTHETIC = ("--videos", 120, "--classes", 4, "--width", 192, "--snippets", 80)
MOST_RESTARTS = 3


@dataclass(frozen=True)
class Inputs:
    """Where the undisturbed runs left what later stages read."""

    folder: Path

    @property
    def features(self) -> Path:
        return self.folder / "features"

    def of(self, stage: str) -> Path:
        """The working directory in which a stage ran undisturbed."""
        return self.folder / stage.replace(" ", "_") / "work"


@dataclass(frozen=True)
class Stage:
    """One command. `writing` are patterns of what appears while it writes; `lines` begins what it says as it goes."""

    name: str
    ranks: int
    arguments: Callable[[Inputs], list[object]]
    outputs: tuple[str, ...]  # files or folders, compared byte for byte
    writing: tuple[str, ...]
    needs: tuple[str, ...] = ()  # stages whose undisturbed output it reads, and what those need
    lines: str | None = None
    is_remote: bool = False  # reads from a store when it is disturbed
    is_networked: bool = False  # its ranks are on nodes with addresses of their own

    def command(self, inputs: Inputs, settings: Sequence[str] = ()) -> list[object]:
        """Python's arguments. torchrun restarts training by itself; the other stages are simply run again."""
        restarts = ("--max-restarts", str(MOST_RESTARTS)) if self.name.startswith("train") else ()
        launch = launcher(self.ranks, *restarts) if self.ranks > 1 else []
        if self.is_networked:
            launch = ["-m", "tests.faults.two_nodes"]
        return [*launch, "-m", "aumn", *self.arguments(inputs), *settings]


def _pack(inputs: Inputs) -> list[object]:
    gt = inputs.features / "gt.json"
    return ["pack", inputs.features, "shards", "--annotations", gt, "--shard-mb", 1, "--workers", 2]


def _train(inputs: Inputs, *overrides: str) -> list[object]:
    config = inputs.folder / "train.yaml"
    if not config.exists():
        settings = SETTINGS | {"data": SETTINGS["data"] | {"shards": str(inputs.of("pack") / "shards")}}
        config.write_text(yaml.safe_dump(settings))
    return ["train", config, *overrides]


def _train_by_shards(inputs: Inputs) -> list[object]:
    return _train(inputs, "data.order=shards", "data.window_shards=2")


def _train_over_nodes(inputs: Inputs) -> list[object]:
    """With limits that let a round with a cut link end within a minute or two."""
    return _train(inputs, "run.step_timeout_s=8", "run.start_timeout_s=30")


def _train_deepspeed(inputs: Inputs) -> list[object]:
    return _train(inputs, "run.engine=deepspeed")


def _train_on_a_mesh(inputs: Inputs) -> list[object]:
    """Two banks of two ranks, with three and two units."""
    return _train(inputs, "engine.bank_ranks=2")


def _localize(inputs: Inputs) -> list[object]:
    model, shards = inputs.of("train") / "run" / "model", inputs.of("pack") / "shards"
    return ["localize", model, shards, "--subset", "testing", "--out", "detections", "--json", "results.json"]


def _evaluate(inputs: Inputs) -> list[object]:
    gt = inputs.features / "gt.json"
    detections = inputs.of("localize") / "detections"
    return ["evaluate", detections, "--annotations", gt, "--protocol", "thumos14", "--json", "metrics.json"]


_RUN = ("run/model", "run/best", f"run/checkpoints/step_{STEPS:08d}")
_RUN_WRITING = ("run/checkpoints/.step_*.partial", "run/.model.partial", "run/model", "run/checkpoints/step_*")
_DETECTIONS_WRITING = (".detections.partial", ".detections.partial/*", "detections")

STAGES = {
    stage.name: stage
    for stage in (
        Stage("pack", 1, _pack, ("shards",), ("shards.partial/shards/.*.partial", "shards.partial/shards/*.json")),
        Stage("train", 2, _train, _RUN, _RUN_WRITING, ("pack",), "step "),
        Stage("train alone", 1, _train, _RUN, _RUN_WRITING, ("pack",), "step "),
        Stage("train deepspeed", 2, _train_deepspeed, _RUN, _RUN_WRITING, ("pack",), "step "),
        Stage("train on a mesh", 4, _train_on_a_mesh, _RUN, _RUN_WRITING, ("pack",), "step "),
        Stage("train over two nodes", 2, _train_over_nodes, _RUN, _RUN_WRITING, ("pack",), "step ", is_networked=True),
        Stage("train remote", 2, _train, _RUN, _RUN_WRITING, ("pack",), "step ", True),
        Stage("train remote by shards", 2, _train_by_shards, _RUN, _RUN_WRITING, ("pack",), "step ", True),
        Stage("train remote alone", 1, _train_by_shards, _RUN, _RUN_WRITING, ("pack",), "step ", True),
        Stage("localize", 2, _localize, ("detections", "results.json"), _DETECTIONS_WRITING, ("pack", "train")),
        Stage("evaluate", 2, _evaluate, ("metrics.json",), (), ("pack", "train", "localize")),
    )
}
