"""A training run put together: shards, loader, network, engine, tracker, checkpoints.

Training opens features and video-level labels. The mAP that a run may follow meanwhile is measured by `Validation`,
which alone opens temporal ground truth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from aumn import __version__
from aumn.checkpoint import (
    Checkpoint,
    ModelCard,
    last_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_model,
    source_commit,
)
from aumn.cluster.engines import Engine, build_engine
from aumn.cluster.ranks import Ranks
from aumn.config import RunConfig
from aumn.data.loader import TrainingLoader, split_holdout
from aumn.data.shards import ShardSet
from aumn.finite import FiniteWatch
from aumn.model.aumn import TwoStream
from aumn.model.losses import LossWeights
from aumn.records import InputError
from aumn.tracking.tracker import NullTracker, Tracker
from aumn.train import train
from aumn.validation import Validation

FREE_ON_RESUME = (
    "data.shards",
    "batch.micro_videos",
    "run.folder",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.engine",
    "engine.zero_stage",
    "engine.offload",
    "engine.compile_ops",
    "tracking.",
)
"""Settings that a resumed run may change, and run.steps where the learning rate does not depend on it; another value of
any other setting would make it another run. The shard set may have moved, since its identity is checked."""


@dataclass
class Progress:
    """Where a run stands, as its checkpoints hold it."""

    card: ModelCard
    step: int = 0
    tracking_run: str | None = None
    best: float = -1.0
    config: dict[str, Any] = field(default_factory=dict)


def run_training(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool,
    say: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> None:
    """Train as `config` says, on all ranks together; checkpoints, the final model and its registration included.

    `say` takes lines for people, `advance` the steps done and in all; both are called on every rank.
    """
    shards = ShardSet.open(config.data.shards)
    indices = shards.indices(config.data.subset)
    ids = [shards.videos[index].id for index in indices]
    training, held_out = split_holdout(indices, ids, config.data.holdout_share, config.data.holdout_seed)
    loader = _build_loader(shards, training, config, ranks)
    torch.manual_seed(config.run.seed)
    network = TwoStream.build(shards.streams, len(shards.classes), config.model.model_dump())
    engine = _build_engine(config, network, ranks)
    progress = _restore(config, shards, engine) if resume else _begin(config, shards)
    validation = Validation.of(config, shards, held_out, progress.card)
    tracker = _open_tracker(config, ranks, progress, say)
    say(
        f"{config.run.folder}: {len(training)} training videos, {len(held_out)} held out; steps {progress.step} to "
        f"{config.run.steps} of {config.batch.global_videos} videos on {ranks.size} rank{'s' * (ranks.size > 1)}."
    )
    watch = FiniteWatch(engine)
    recorder = _Recorder(config, engine, network, watch, validation, tracker, progress, say, advance)
    with _outcome(tracker):
        train(
            engine,
            loader,
            config.run,
            config.optimizer,
            _loss_weights(config),
            first_step=progress.step,
            watch=watch,
            after_step=recorder.after_step,
        )
        recorder.publish()
    ranks.barrier()


@dataclass
class _Recorder:
    """What a run leaves behind as it goes: lines, metrics, evaluations, checkpoints, and in the end a model."""

    config: RunConfig
    engine: Engine
    network: TwoStream
    watch: FiniteWatch
    validation: Validation | None
    tracker: Tracker
    progress: Progress
    say: Callable[[str], None]
    advance: Callable[[int, int], None]

    def after_step(self, done: int, metrics: dict[str, float] | None) -> None:
        """Called on every rank; see `train`."""
        run, last = self.config.run, done == self.config.run.steps
        self.progress.step = done
        self.progress.card = self.progress.card.model_copy(update={"metrics": {}})  # until they are measured here
        if metrics is not None:
            self.tracker.log_metrics(metrics, done)
            self.say(_line(done, run.steps, metrics))
        best = False
        if self.validation is not None and (done % self.config.evaluation.every == 0 or last):
            best = self._evaluate(self.validation)
        if done % run.checkpoint_every == 0 or last or best:
            self._save(best=best)
        self.advance(done, run.steps)

    def publish(self) -> None:
        """The finished model, in the run's folder and, if it has a name, in the registry."""
        weights = self.engine.weights()
        if not self.engine.ranks.is_first:
            return
        folder = save_model(self.config.run.folder / "model", weights, self.progress.card)
        self.say(f"model: {folder}")
        tracking = self.config.tracking
        if tracking.model_name and (
            version := self.tracker.register_model(folder, tracking.model_name, tracking.alias)
        ):
            alias = f", which is now models:/{tracking.model_name}@{tracking.alias}" if tracking.alias else ""
            self.say(f"registered: models:/{tracking.model_name}/{version}{alias}")

    def _evaluate(self, validation: Validation) -> bool:
        """Measure and log; whether a checkpoint should be kept as the best, which only held-out videos may decide."""
        self.watch.settle()
        with self.engine.whole_network():
            metrics = validation.measure(self.network, self.engine.ranks, self.engine.device)
        named = {f"{validation.name}/{name}": value for name, value in metrics.items()}
        self.tracker.log_metrics(named, self.progress.step)
        self.say(f"step {self.progress.step}: {validation.describe(metrics)}")
        self.progress.card = self.progress.card.model_copy(update={"metrics": named})
        if not validation.is_held_out or metrics["mAP/average"] <= self.progress.best:
            return False
        self.progress.best = metrics["mAP/average"]
        return True

    def _save(self, *, best: bool) -> None:
        self.watch.settle()
        tensors, optimizer = self.engine.trainer_state()
        progress, run = self.progress, self.config.run
        facts = {"tracking_run": progress.tracking_run, "best": progress.best, "config": progress.config}
        weights = self.engine.weights()
        if self.engine.ranks.is_first:
            self.tracker.flush()  # so that a run resumed from here has its metrics up to here
            checkpoint = Checkpoint(progress.step, weights, progress.card, tensors, {**facts, "optimizer": optimizer})
            save_checkpoint(run.folder, checkpoint, keep_last=run.keep_checkpoints, best=best)


@contextmanager
def _outcome(tracker: Tracker) -> Iterator[None]:
    """Tell the tracker how the block ended."""
    try:
        yield
    except BaseException as error:
        with suppress(InputError):  # a store that cannot be told must not hide what went wrong
            tracker.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    tracker.finish("finished")


def _build_loader(shards: ShardSet, training: list[int], config: RunConfig, ranks: Ranks) -> TrainingLoader:
    return TrainingLoader(
        shards,
        training,
        global_videos=config.batch.global_videos,
        micro_videos=config.batch.micro_videos,
        snippets=config.data.snippets,
        seed=config.run.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        pin_memory=config.run.device == "cuda",
    )


def _build_engine(config: RunConfig, network: TwoStream, ranks: Ranks) -> Engine:
    optimizer = config.optimizer
    settings = {
        "betas": (optimizer.beta1, optimizer.beta2),
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm,
        **config.engine.model_dump(),
    }
    return build_engine(config.run.engine, network, ranks, ranks.device(config.run.device), settings)


def _loss_weights(config: RunConfig) -> dict[str, LossWeights]:
    loss = config.loss
    rgb = LossWeights(loss.diversity, loss.homogeneity, loss.sparsity_rgb, loss.sparsity_reduction)
    return {"rgb": rgb, "flow": replace(rgb, sparsity=loss.sparsity_flow)}


def _begin(config: RunConfig, shards: ShardSet) -> Progress:
    folder = config.run.folder
    if (folder / "checkpoints").exists() or (folder / "model").exists():
        raise InputError(f"{folder} already holds a run: pass --resume to go on with it, or name another run.folder.")
    _check_writable(folder)
    card = ModelCard(
        model=config.model.model_dump(),
        localize=config.localize.model_dump(),
        classes=shards.classes,
        streams=shards.streams,
        stride_frames=shards.stride_frames,
        dataset=shards.name,
        dataset_identity=shards.identity,
        metrics={},
        aumn_version=__version__,
        commit=source_commit(),
    )
    return Progress(card, config=config.model_dump(mode="json"))


def _check_writable(folder: Path) -> None:
    """Find out now, not at the first checkpoint."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise InputError(f"run.folder={folder} cannot be written in {nearest}: choose a folder that you may write to.")


def _restore(config: RunConfig, shards: ShardSet, engine: Engine) -> Progress:
    """Take up the run's last whole checkpoint, if it is of this run: the same settings and the same training data."""
    path = last_checkpoint(config.run.folder)
    if path is None:
        raise InputError(f"{config.run.folder} holds no checkpoint to resume from: start the run without --resume.")
    checkpoint = read_checkpoint(path)
    facts = dict(checkpoint.trainer_facts)
    optimizer = facts.pop("optimizer")
    progress = Progress(card=checkpoint.card, step=checkpoint.step, **facts)
    _refuse_another_run(progress.config, config.model_dump(mode="json"), path)
    if progress.card.dataset_identity != shards.identity:
        raise InputError(
            f"{shards.path} is not what {path} was trained on (identity {shards.identity}, not "
            f"{progress.card.dataset_identity}): resume with the shard set {progress.card.dataset!r} as it was."
        )
    if progress.step >= config.run.steps:
        raise InputError(
            f"{path} is at step {progress.step}, and run.steps={config.run.steps}: there is nothing left to train; set "
            "run.steps higher to go on."
        )
    engine.load_state(checkpoint.weights, checkpoint.trainer_tensors, optimizer)
    progress.config = config.model_dump(mode="json")
    return progress


def _refuse_another_run(saved: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    """A field that the run is too old to know had what is its default now."""
    free = FREE_ON_RESUME if given["optimizer"]["schedule"] != "constant" else (*FREE_ON_RESUME, "run.steps")
    differing = [
        f"{section}.{name}: the run has {before!r}, now {value!r}"
        for section, fields in given.items()
        for name, value in fields.items()
        if not f"{section}.{name}".startswith(free)
        and (before := saved.get(section, {}).get(name, RunConfig.default(section, name))) != value
    ]
    if differing:
        raise InputError(f"{path} is of a run with other settings; resume with those it started with:", *differing)


def _open_tracker(config: RunConfig, ranks: Ranks, progress: Progress, say: Callable[[str], None]) -> Tracker:
    """The first rank's tracker; it goes on with the run's own record where there is one."""
    if not (config.tracking.enabled and ranks.is_first):
        return NullTracker()
    from aumn.tracking.job_run import job_tags
    from aumn.tracking.mlflow_tracker import MlflowTracker
    from aumn.tracking.registry import check_names
    from aumn.tracking.spool import NAME as SPOOL

    check_names(config.tracking.model_name, config.tracking.alias)
    tracker = MlflowTracker(
        config.tracking.uri,
        experiment=config.tracking.experiment,
        run_name=config.tracking.run_name or config.run.folder.name,
        run_id=progress.tracking_run,
        spool=config.run.folder / SPOOL,
        say=say,
    )
    progress.tracking_run = tracker.run_id
    tracker.log_config(config.model_dump(mode="json"))
    card = progress.card
    tags = {"dataset": card.dataset, "dataset_identity": card.dataset_identity, "commit": card.commit or "unknown"}
    tracker.set_tags(tags | {"ranks": str(ranks.size), "host": os.uname().nodename} | job_tags(os.environ))
    return tracker


def _line(done: int, steps: int, metrics: dict[str, float]) -> str:
    attention = ", ".join(f"{stream} {metrics[f'{stream}/attention_mean']:.2f}" for stream in ("rgb", "flow"))
    return (
        f"step {done}/{steps}  loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.1e}  "
        f"{metrics['videos_per_s']:,.0f} videos/s  waiting {metrics['data_wait_share']:.1%}  attention {attention}"
    )
