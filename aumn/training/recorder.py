"""What a run leaves behind as it goes: lines, metrics, evaluations, checkpoints, and in the end a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from aumn.config.run_config import RunConfig
from aumn.model.aumn import TwoStream
from aumn.records import InputError
from aumn.runfolder.checkpoint import Checkpoint, save_model
from aumn.runfolder.run_record import RunRecord
from aumn.runfolder.saving import CheckpointWriter
from aumn.runtime.engines import Engine
from aumn.runtime.preemption import asked, stopped
from aumn.tracking.tracker import Tracker
from aumn.training.finite import FiniteWatch
from aumn.training.resume import Progress
from aumn.training.validation import Validation


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
    writer: CheckpointWriter  # the first rank's alone is ever used
    say: Callable[[str], None]
    advance: Callable[[int, int], None]
    all_stop: bool = False  # every rank has been told to stop, at the same step

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
        self.writer.wait()
        folder = self._write_model(weights)
        self.say(f"model: {folder}")
        name = tracking.model_name if tracking.enabled else None
        if not self.record.holds(run.steps, name):  # else this is a run that was killed just before its end
            registered = self._register(folder, name) if name else None
            self.note(published_step=run.steps, registered=registered)

    def note(self, **facts: Any) -> None:
        """Put what is new into the run's record. A disk that refuses it costs a convenience, and ends nothing."""
        self.record = replace(self.record, **facts)
        if self.engine.ranks.is_first:
            try:
                self.record.write(self.config.run.folder)
            except OSError as error:
                self.say(f"The run's record, {self.config.run.folder / 'run.json'}, cannot be written: {error}.")

    def _evaluate_save_and_stop_if(self, signal: int) -> None:
        """What follows a step, where it is due; a signal comes before an evaluation, and may come during one."""
        run, step, ranks = self.config.run, self.progress.step, self.engine.ranks
        best = None
        if self.progress.evaluation_due and not signal:
            best = self._evaluate()
            signal = ranks.ask(asked)() if self.progress.evaluation_due else 0
        if best is not None:
            self._save_best(best)
        elif step % run.checkpoint_every == 0 or step == run.steps or signal:
            self._save()
        if signal:
            self.all_stop = True
            raise stopped(signal, ranks.broadcast(self._how_to_go_on() if ranks.is_first else None))

    def _evaluate(self) -> float | None:
        """Measure and log; the mAP if it is the best so far, which only held-out videos may decide.

        Evaluation stays due where a rank was asked to stop meanwhile.
        """
        validation = self.validation
        assert validation is not None
        self.watch.settle()
        with self.engine.whole_network():
            metrics = validation.measure(self.network, self.engine.ranks, self.engine.device)
        if metrics is None:
            return None
        self.progress.evaluation_due = False
        named = {f"{validation.name}/{name}": value for name, value in metrics.items()}
        self.tracker.log_metrics(named, self.progress.step)
        self.say(f"step {self.progress.step}: {validation.describe(metrics)}")
        self.progress.card = self.progress.card.model_copy(update={"metrics": named})
        average = metrics["mAP/average"]
        return average if validation.is_held_out and average > self.progress.best else None

    def _save_best(self, best: float) -> None:
        """What is not on the disk is not the best, so training waits for this one."""
        before = self.progress.best, self.progress.best_step
        self.progress.best, self.progress.best_step = best, self.progress.step
        self._save(best=True)
        ranks = self.engine.ranks
        if not ranks.broadcast(self.writer.wait() if ranks.is_first else None):
            self.progress.best, self.progress.best_step = before
            stays = f"the best that is saved is still step {before[1]}" if before[1] else "no best one is saved yet"
            self.say(f"Step {self.progress.step} has the best mAP so far, {best:.1%}, but could not be saved: {stays}.")

    def _save(self, *, best: bool = False) -> None:
        """Begin to write a checkpoint."""
        self.watch.settle()
        tensors, optimizer = self.engine.trainer_state()
        weights = self.engine.weights()
        if self.engine.ranks.is_first:
            facts = {**self.progress.facts(), "optimizer": optimizer}
            self.writer.save(Checkpoint(self.progress.step, weights, self.progress.card, tensors, facts), best=best)

    def _how_to_go_on(self) -> str:
        """After being stopped; true whatever the disk did."""
        step = f"step {self.progress.step} of {self.config.run.steps}"
        if self.writer.wait():
            return f"{self.writer.last} holds {step}; go on by the same command with --resume"
        if self.writer.last is None:
            return f"{step} could not be saved, and no checkpoint is whole; start again by the same command"
        return f"{step} could not be saved; go on from {self.writer.last} by the same command with --resume"

    def _write_model(self, weights: Mapping[str, Tensor]) -> Path:
        path = self.config.run.folder / "model"
        try:
            return save_model(path, weights, self.progress.card)
        except OSError as error:
            last = self.writer.last
            again = f"run the same command with --resume, which goes on from {last}" if last else "train again"
            raise InputError(
                f"The trained model cannot be written to {path}: {error}. Free space, or mend the folder; then {again}."
            ) from error

    def _register(self, folder: Path, name: str) -> str | None:
        """The version that the model became, if it is tracked at all."""
        alias = self.config.tracking.alias
        version = self.tracker.register_model(folder, name, alias)
        if version is None:
            return None
        registered = f"models:/{name}/{version}"
        self.say(f"registered: {registered}{f', which is now models:/{name}@{alias}' if alias else ''}")
        return registered


def _line(done: int, steps: int, metrics: dict[str, float]) -> str:
    attention = ", ".join(f"{stream} {metrics[f'{stream}/attention_mean']:.2f}" for stream in ("rgb", "flow"))
    return (
        f"step {done}/{steps}  loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.1e}  "
        f"{metrics['videos_per_s']:,.0f} videos/s  waiting {metrics['data_wait_share']:.1%}  attention {attention}"
    )
