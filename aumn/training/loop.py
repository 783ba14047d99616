"""The loop: after each step, in this order, log, evaluate, save, stop, where each is due.

Every rank makes the same decisions at the same step; what lasts is written by the first one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader
from aumn.data.problems import StoreGoneError
from aumn.model.losses import Objective
from aumn.records import HELD_OUT, InputError, Step
from aumn.runfolder.checkpoint import Checkpoint
from aumn.runfolder.saving import RowServer, RunWriter
from aumn.runtime import preemption
from aumn.runtime.engines import Engine
from aumn.runtime.patience import Patience
from aumn.runtime.ranks import Ranks
from aumn.training.finite import FiniteWatch
from aumn.training.resume import Progress
from aumn.training.slow import SlowRanks, place_of
from aumn.training.step import learning_rate, train_step

if TYPE_CHECKING:
    from aumn.training.validation import Validation  # which opens temporal ground truth; training does not

NO_DATA = "no_data"  # counts ranks that wait for data no more
HAS_DAMAGE, ASKED, GONE = 1, 1_000, 2_000  # ASKED and the signal; a rank without data outranks one with damage


@dataclass
class Run:
    """A run put together, the same on every rank, but for the writer, which the first one alone has."""

    config: RunConfig
    engine: Engine
    loader: TrainingLoader
    watch: FiniteWatch
    progress: Progress
    validation: Validation | None = None
    writer: RunWriter | None = None
    say: Callable[[str], None] = lambda _line: None
    advance: Callable[[int, int], None] = lambda _done, _steps: None
    is_back: Callable[[], None] | None = None  # is told of the first new step after a launcher's restart
    patience: Patience = field(init=False)
    rows: RowServer = field(default_factory=RowServer)
    all_stop: bool = False  # every rank has been told to stop, at the same step
    slow: SlowRanks | None = None
    left_out: set[str] = field(default_factory=set)  # damaged videos so far, the same on every rank

    def __post_init__(self) -> None:
        run, ranks, away_s = self.config.run, self.engine.ranks, self.config.store_away_s
        self.patience = Patience(ranks, start_s=run.start_timeout_s, step_s=run.step_timeout_s, away_s=away_s)


def train(run: Run) -> None:
    """Run the steps that are left; `Stopped` on every rank, at the same step, where a signal came to any of them.

    Where a rank's store is gone, all ranks save what they have, and the error is everybody's.
    """
    try:
        _train(run)
    except StoreGoneError as error:  # on every rank, at the same step
        with run.patience.alone():
            _save(run)
            run.all_stop = True
            how = run.engine.ranks.broadcast(_how_to_go_on(run)) or ""
        raise InputError(f"{error} {how[:1].upper()}{how[1:]}.") from None


def _train(run: Run) -> None:
    config, progress, ranks = run.config.run, run.progress, run.engine.ranks
    clock = _Clock(run.loader, run.engine)
    if ranks.size > 1:
        places = ranks.gather(place_of(ranks.rank, ranks.local_rank, run.engine.device))
        run.slow = SlowRanks(places, run.say, run.writer)
    # Ranks that do not agree on a step take it, so none may do without its data.
    give_up = partial(_should_give_up, ranks) if run.loader.may_lack else _never
    with closing(run.loader.steps(progress.step, config.steps, give_up)) as steps:
        # A run that was stopped before it could evaluate a step begins with that evaluation; None stands for its step.
        for step in chain([None] if progress.evaluation_due else [], steps):
            signal = 0 if step is None else _agree_and_take(run, step, clock)
            if run.is_back and step is not None:
                run.is_back = run.is_back()
            save_due = progress.step % config.checkpoint_every == 0 or progress.step == config.steps
            with run.patience.alone() if progress.evaluation_due or save_due or signal else nullcontext():
                best = None
                if progress.evaluation_due and not signal:  # a signal goes first: who resumes begins with it
                    best = _evaluate(run)
                    signal = ranks.ask(preemption.asked)() if progress.evaluation_due else 0  # it was broken off

                if best is not None:
                    _save_best(run, best)
                elif save_due or signal:
                    _save(run)

                if signal:
                    run.all_stop = True
                    raise preemption.stopped(signal, ranks.broadcast(_how_to_go_on(run)))
            run.advance(progress.step, config.steps)


def _never() -> bool:
    return False


def _should_give_up(ranks: Ranks) -> bool:
    """Whether a step is waited for in vain, since this rank was asked to stop, or another one has no data."""
    return bool(preemption.asked()) or ranks.count(NO_DATA, 0) > 0


def _agree(run: Run, step: Step) -> tuple[Step, int]:
    """The step as all ranks take it, without damaged videos; or the signal for which none of them takes it.

    Where a rank's store is gone, the error is everybody's.
    """
    ranks, loader = run.engine.ranks, run.loader
    if step.problem and not ranks.count(NO_DATA, 0):
        ranks.count(NO_DATA)
    gone = str(step.problem) if isinstance(step.problem, StoreGoneError) else ""
    asked = preemption.asked() if step.problem else 0
    stop = ASKED + asked if asked else 0
    state = ranks.ask(lambda: max(GONE * bool(gone), stop, HAS_DAMAGE * bool(step.damaged)))()
    if state == GONE:
        raise StoreGoneError(next(filter(None, ranks.gather(gone))))
    if state > ASKED:
        return step, state - ASKED
    assert step.problem is None, "a rank without data says why"
    if not state:
        return step, 0
    there = sum(len(batch.videos) for batch in step.micro_batches)
    damaged, counts = zip(*ranks.gather((dict(step.damaged), there)), strict=True)
    found: dict[str, str] = {video: why for of_rank in damaged for video, why in of_rank.items()}
    for video in sorted(found.keys() - run.left_out):
        run.say(f"{video} is left out of step {step.index + 1}, and of those to come: {found[video]}")
    run.left_out |= found.keys()
    if len(run.left_out) > loader.damaged_limit:
        raise InputError(
            f"{len(run.left_out)} videos are damaged, and data.damage_limit={loader.damaged_limit} allows no more: "
            f"fetch or pack {run.loader.shards.path} again, or raise the limit."
        )
    return replace(step, global_videos=sum(counts)), 0


def _agree_and_take(run: Run, step: Step, clock: _Clock) -> int:
    with run.patience.step(step.index + 1):
        agreed, signal = _agree(run, step) if run.loader.may_lack else (step, 0)
        if signal or agreed.global_videos:
            return signal or _take(run, agreed, clock)
        run.say(f"step {step.index + 1} is passed over: all its videos are damaged.")
        _advance(run, step)
        return run.engine.ranks.ask(preemption.asked)()


def _take(run: Run, step: Step, clock: _Clock) -> int:
    """Take a step, and log it where that is due; the signal that asked any rank to stop meanwhile, or 0."""
    config, engine, progress, steps = run.config, run.engine, run.progress, run.config.run.steps
    is_logged = (step.index + 1) % config.run.log_every == 0 or step.index + 1 == steps
    own_us = clock.own_us() if is_logged else None
    answer = engine.ranks.ask_and_tell(preemption.asked, own_us)  # given while the step computes
    report = train_step(engine, step, Objective(config.loss, steps, config.model.independent_classes))
    rate = learning_rate(config.optimizer, step.index, steps)
    norms = engine.update(rate)
    run.watch.add(step, report, norms)
    clock.videos += step.global_videos
    clock.steps += 1
    _advance(run, step)
    if is_logged:
        run.watch.settle()
        epoch = progress.step / run.loader.steps_per_epoch
        others = {**clock.read(), "learning_rate": rate, "epoch": epoch}
        if run.slow:
            others |= run.slow.add(clock.told_steps, [own / 1e6 for own in answer()[1:]])
        _log(run, report, norms, others)
    return answer()[0]


def _advance(run: Run, step: Step) -> None:
    progress, last = run.progress, step.index + 1 == run.config.run.steps
    progress.step = step.index + 1
    progress.card = progress.card.model_copy(update={"metrics": {}})  # until they are measured here
    every = run.config.evaluation.every
    progress.evaluation_due = run.validation is not None and (progress.step % every == 0 or last)


def _evaluate(run: Run) -> float | None:
    """Measure and log; the mAP if it is the best so far, which only held-out videos may decide.

    Evaluation stays due where a rank was asked to stop meanwhile.
    """
    validation, engine, progress = run.validation, run.engine, run.progress
    assert validation is not None
    run.watch.settle()
    metrics = validation.measure(engine.whole_network(), engine.ranks, engine.device)
    if metrics is None:
        return None
    progress.evaluation_due = False
    named = {f"{validation.name}/{name}": value for name, value in metrics.items()}
    if run.writer:
        run.writer.log(progress.step, named)
    run.say(f"step {progress.step}: {validation.describe(metrics)}")
    progress.card = progress.card.model_copy(update={"metrics": named})
    average = metrics["mAP/average"]
    return average if validation.name == HELD_OUT and average > progress.best else None


def _save_best(run: Run, best: float) -> None:
    """What is not on the disk is not the best, so training waits for this one."""
    progress, ranks = run.progress, run.engine.ranks
    before = progress.best, progress.best_step
    progress.best, progress.best_step = best, progress.step
    _save(run, best=True)
    if not ranks.broadcast(run.writer and run.writer.wait()):
        progress.best, progress.best_step = before
        stays = f"the best that is saved is still step {before[1]}" if before[1] else "no best one is saved yet"
        run.say(f"Step {progress.step} has the best mAP so far, {best:.1%}, but could not be saved: {stays}.")


def _save(run: Run, *, best: bool = False) -> None:
    """Begin to write a checkpoint."""
    run.watch.settle()
    tensors, optimizer = run.engine.trainer_state()
    weights, progress = run.engine.weights(), run.progress
    if run.writer:
        facts = {**progress.facts(), "optimizer": optimizer}
        run.writer.save(Checkpoint(progress.step, weights, progress.card, tensors, facts), best=best)
    elif run.engine.data.is_first:
        run.rows.save(weights, tensors)


def _how_to_go_on(run: Run) -> str | None:
    """After being stopped, by the first rank; true whatever the disk did."""
    if (writer := run.writer) is None:
        return None
    step = f"step {run.progress.step} of {run.config.run.steps}"
    if writer.wait():
        return f"{writer.last} holds {step}; go on by the same command with --resume"
    if writer.last is None:
        return f"{step} could not be saved, and no checkpoint is whole; start again by the same command"
    return f"{step} could not be saved; go on from {writer.last} by the same command with --resume"


def _log(run: Run, report: Mapping[str, Tensor], norms: Mapping[str, Tensor], others: Mapping[str, float]) -> None:
    """The report over all ranks, in one collective and one copy to the host, and what this rank alone knows.

    A norm that is not finite is no number to plot; it shows as a loss scale that fell.
    """
    engine, step, steps = run.engine, run.progress.step, run.config.run.steps
    values = engine.ranks.sum_(torch.stack(list(report.values())).double()).tolist()
    metrics = dict(zip(report, values, strict=True))
    metrics["loss"] = sum(value for name, value in metrics.items() if name.endswith("/total"))
    metrics |= {f"{name}/gradient_norm": norm.item() for name, norm in norms.items() if norm.isfinite()}
    metrics |= {f"{name}/loss_scale": scale.value.item() for name, scale in engine.scales.items() if scale.is_dynamic}
    metrics |= others
    if run.writer:
        run.writer.log(step, metrics)
    attention = ", ".join(f"{stream} {metrics[f'{stream}/attention_mean']:.2f}" for stream in norms)
    run.say(
        f"step {step}/{steps}  loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.1e}  "
        f"{metrics['videos_per_s']:,.0f} videos/s  waiting {metrics['data_wait_share']:.1%}  attention {attention}"
    )


class _Clock:
    """Videos a second, and the shares of time spent waiting for data and for other ranks, since the last reading."""

    def __init__(self, loader: TrainingLoader, engine: Engine) -> None:
        self.loader, self.engine, self.videos = loader, engine, 0
        self.before = self._totals_s()
        self.steps = self.told_steps = 0
        self.told_s = 0.0

    def own_us(self) -> int:
        """This rank's own time, loading and computing, in the `told_steps` since it was last asked for."""
        own_s, before_s = self.loader.wait_s + self.engine.own_time.read(), self.told_s
        self.told_s, self.told_steps, self.steps = own_s, self.steps, 0
        return round((own_s - before_s) * 1e6)

    def read(self) -> dict[str, float]:
        now = self._totals_s()
        elapsed_s, *spent_s = (now_s - before_s for now_s, before_s in zip(now, self.before, strict=True))
        rates = {"videos_per_s": self.videos / elapsed_s}
        self.videos, self.before = 0, now
        shares = zip(("data_wait_share", "communication_wait_share"), spent_s, strict=False)
        return rates | {name: share_s / elapsed_s for name, share_s in shares}

    def _totals_s(self) -> list[float]:
        """So far: elapsed, for data, and for other ranks where the engine measures that."""
        others_s = self.engine.communication_s()
        return [time.perf_counter(), self.loader.wait_s, *([] if others_s is None else [others_s])]
