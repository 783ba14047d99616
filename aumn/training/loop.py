"""The loop around a training step; see `step`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Protocol

import torch
from torch import Tensor

from aumn.config.run_config import OptimizerConfig, RunSection
from aumn.model.losses import LossWeights
from aumn.records import Step
from aumn.runtime import preemption
from aumn.runtime.engines import Engine
from aumn.training.finite import FiniteWatch, HostCopy
from aumn.training.step import learning_rate, train_step


class StepSource(Protocol):
    """Where steps come from: `data.loader.TrainingLoader`."""

    steps_per_epoch: int
    wait_s: float

    def steps(self, first: int, last: int) -> Iterable[Step]:
        """Steps first, ..., last - 1, prefetched."""


def train(
    engine: Engine,
    loader: StepSource,
    run: RunSection,
    optimizer: OptimizerConfig,
    weights: Mapping[str, LossWeights],
    *,
    first_step: int,
    watch: FiniteWatch,
    after_step: Callable[[int, dict[str, float] | None, int], None],
) -> None:
    """Run steps `first_step`, ..., `run.steps` - 1.

    `after_step(done, metrics, signal)` is called on every rank after each step: with the number of steps done; on the
    steps that `run.log_every` names with the metrics, summed over ranks; and with the signal that asked some rank to
    stop (0: none did), the same on every rank. It then keeps what is to be kept and raises `Stopped`. Who keeps what a
    step leaves settles `watch` first.
    """
    clock = _Clock(loader, engine)
    with closing(loader.steps(first_step, run.steps)) as steps:  # type: ignore[type-var]
        for step in steps:
            answer = engine.ranks.ask(preemption.asked)
            report = train_step(engine, step, _weights_at(weights, step.index / run.steps))
            rate = learning_rate(optimizer, step.index, run.steps)
            norms = engine.update(rate)
            watch.add(step, report, norms)
            clock.videos += step.global_videos
            done = step.index + 1
            metrics = None
            if done % run.log_every == 0 or done == run.steps:
                watch.settle()
                metrics = _summed(engine, report) | _engine_metrics(engine, norms)
                metrics |= {"learning_rate": rate, "epoch": done / loader.steps_per_epoch, **clock.read()}
            after_step(done, metrics, answer())


def _weights_at(weights: Mapping[str, LossWeights], share: float) -> dict[str, LossWeights]:
    """The weights after a share of the run's steps."""
    return {name: weight.at(share) for name, weight in weights.items()}


def _engine_metrics(engine: Engine, norms: Mapping[str, Tensor]) -> dict[str, float]:
    """A norm that is not finite is no number to plot; it shows as a loss scale that fell."""
    found = {f"{name}/gradient_norm": norm for name, norm in HostCopy(norms).read().items() if math.isfinite(norm)}
    scales = {name: scale.value.item() for name, scale in engine.scales.items() if scale.is_dynamic}
    return found | {f"{name}/loss_scale": value for name, value in scales.items()}


def _summed(engine: Engine, report: Mapping[str, Tensor]) -> dict[str, float]:
    """The report over all ranks, in one collective and one copy to the host."""
    values = engine.ranks.sum_(torch.stack(list(report.values())).double()).tolist()
    metrics = dict(zip(report, values, strict=True))
    return metrics | {"loss": sum(value for name, value in metrics.items() if name.endswith("/total"))}


class _Clock:
    """Videos a second, and the shares of time spent waiting for data and for other ranks, since the last reading."""

    def __init__(self, loader: StepSource, engine: Engine) -> None:
        self.loader, self.engine, self.videos = loader, engine, 0
        self.before = self._totals_s()

    def read(self) -> dict[str, float]:
        now = self._totals_s()
        spent = {name: total_s - self.before.get(name, 0.0) for name, total_s in now.items()}
        elapsed_s = max(spent.pop("elapsed"), 1e-9)
        rates = {"videos_per_s": self.videos / elapsed_s}
        self.videos, self.before = 0, now
        return rates | {f"{name}_wait_share": spent_s / elapsed_s for name, spent_s in spent.items()}

    def _totals_s(self) -> dict[str, float]:
        """Without the ranks' where the engine does not measure it."""
        totals = {"elapsed": time.perf_counter(), "data": self.loader.wait_s}
        gradients_s = self.engine.communication_s()
        if gradients_s is not None:
            totals["communication"] = gradients_s
        return totals
