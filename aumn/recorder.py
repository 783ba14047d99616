"""What a run leaves behind as it goes: lines, metrics, evaluations, checkpoints, and in the end a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aumn.checkpoint import Checkpoint, save_checkpoint, save_model
from aumn.cluster.engines import Engine
from aumn.cluster.preemption import asked, stopped
from aumn.config import RunConfig
from aumn.finite import FiniteWatch
from aumn.model.aumn import TwoStream
from aumn.resume import Progress
from aumn.run_record import RunRecord
from aumn.tracking.tracker import Tracker
from aumn.validation import Validation


@dataclass
class Recorder:
    """One run's. Every rank has one and makes the same calls; what lasts is the first one's doing."""

    config: RunConfig
    engine: Engine
    network: TwoStream
    watch: FiniteWatch
    validation: Validation | None
    tracker: Tracker
    progress: Progress
    record: RunRecord
    say: Callable[[str], None]
    advance: Callable[[int, int], None]

    def catch_up(self) -> None:
        """Evaluate what the run was stopped in the midst of evaluating, as if it had not been."""
        if self.progress.evaluation_due:
            self._evaluate_save_and_stop_if(0)

    def after_step(self, done: int, metrics: dict[str, float] | None, signal: int) -> None:
        """See `train`."""
        last = done == self.config.run.steps
        self.progress.step = done
        self.progress.card = self.progress.card.model_copy(update={"metrics": {}})  # until they are measured here
        if metrics is not None:
            self.tracker.log_metrics(metrics, done)
            self.say(_line(done, self.config.run.steps, metrics))
        every = self.config.evaluation.every
        self.progress.evaluation_due = self.validation is not None and (done % every == 0 or last)
        self._evaluate_save_and_stop_if(signal)
        self.advance(done, self.config.run.steps)

    def publish(self) -> None:
        """The finished model, in the run's folder and, if it has a name, in the registry."""
        weights = self.engine.weights()
        run, tracking = self.config.run, self.config.tracking
        if not self.engine.ranks.is_first:
            return
        folder = save_model(run.folder / "model", weights, self.progress.card)
        self.say(f"model: {folder}")
        name = tracking.model_name if tracking.enabled else None
        if not self.record.holds(run.steps, name):  # else this is a run that was killed just before its end
            registered = self._register(folder, name) if name else None
            self.note(published_step=run.steps, registered=registered)

    def note(self, **facts: Any) -> None:
        """Put what is new into the run's record."""
        self.record = replace(self.record, **facts)
        if self.engine.ranks.is_first:
            self.record.write(self.config.run.folder)

    def _evaluate_save_and_stop_if(self, signal: int) -> None:
        """What follows a step, where it is due; a signal comes before an evaluation, and may come during one."""
        run, step = self.config.run, self.progress.step
        best = False
        if self.progress.evaluation_due and not signal:
            best = self._evaluate()
            signal = self.engine.ranks.ask(asked)() if self.progress.evaluation_due else 0
        if step % run.checkpoint_every == 0 or step == run.steps or best or signal:
            path = self._save(best=best)
        if signal:
            path = self.engine.ranks.broadcast(path)  # no rank leaves before it is on the disk
            raise stopped(signal, f"{path} holds step {step} of {run.steps}; the same command with --resume goes on")

    def _evaluate(self) -> bool:
        """Measure and log; whether a checkpoint should be kept as the best, which only held-out videos may decide.

        Evaluation stays due where a rank was asked to stop meanwhile.
        """
        validation = self.validation
        assert validation is not None
        self.watch.settle()
        with self.engine.whole_network():
            metrics = validation.measure(self.network, self.engine.ranks, self.engine.device)
        if metrics is None:
            return False
        self.progress.evaluation_due = False
        named = {f"{validation.name}/{name}": value for name, value in metrics.items()}
        self.tracker.log_metrics(named, self.progress.step)
        self.say(f"step {self.progress.step}: {validation.describe(metrics)}")
        self.progress.card = self.progress.card.model_copy(update={"metrics": named})
        if not validation.is_held_out or metrics["mAP/average"] <= self.progress.best:
            return False
        self.progress.best = metrics["mAP/average"]
        return True

    def _register(self, folder: Path, name: str) -> str | None:
        """The version that the model became, if it is tracked at all."""
        alias = self.config.tracking.alias
        version = self.tracker.register_model(folder, name, alias)
        if version is None:
            return None
        registered = f"models:/{name}/{version}"
        self.say(f"registered: {registered}{f', which is now models:/{name}@{alias}' if alias else ''}")
        return registered

    def _save(self, *, best: bool) -> Path:
        self.watch.settle()
        tensors, optimizer = self.engine.trainer_state()
        weights, folder = self.engine.weights(), self.config.run.folder
        path = folder
        if self.engine.ranks.is_first:
            self.tracker.flush()  # so that a run resumed from here has its metrics up to here
            facts = {**self.progress.facts(), "optimizer": optimizer}
            checkpoint = Checkpoint(self.progress.step, weights, self.progress.card, tensors, facts)
            path = save_checkpoint(folder, checkpoint, keep_last=self.config.run.keep_checkpoints, best=best)
        return path


def _line(done: int, steps: int, metrics: dict[str, float]) -> str:
    attention = ", ".join(f"{stream} {metrics[f'{stream}/attention_mean']:.2f}" for stream in ("rgb", "flow"))
    return (
        f"step {done}/{steps}  loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.1e}  "
        f"{metrics['videos_per_s']:,.0f} videos/s  waiting {metrics['data_wait_share']:.1%}  attention {attention}"
    )
