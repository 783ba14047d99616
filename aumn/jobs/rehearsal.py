"""A rehearsal: a train step under its own settings, to see what this cluster does to a job before a week depends on it.

The job has a folder of its own beside the real one, trains there, and is tracked nowhere. It is sent the signals that a
time limit and a preemption send, and is cancelled in the end. What is said was seen; what did not happen is an error.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aumn.jobs import queue
from aumn.jobs.job import Job, Step, build
from aumn.jobs.job_folder import JobFolder, PointStatus
from aumn.jobs.job_schema import JobPlan, StepPlan, Tracking
from aumn.jobs.sbatch import log_path
from aumn.jobs.submit import Say, cancel_job, last_line, submit
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import last_metrics

MINUTES = 15
"""The time limit of an attempt, so that a crowded cluster finds a place for it."""
POLL_S = 1.0
HEARD_S, STEP_S = 120.0, 900.0
"""How long training may take to end when it was asked to, and to take its next step once it runs."""
SIGNALS = {"USR1": "a time limit that comes near", "TERM": "a preemption"}
STEPS = 10_000_000  # never reached


def rehearse(job: Job, name: str | None, say: Say) -> None:
    """Start it, ask it twice to stop, cancel it; a line each, or InputError on the first that was not as it must be."""
    step = _choose(job, name)
    path = job.folder.with_name(f"{job.folder.name}.rehearsal")
    with _cleared(path, job):
        folder = _prepare(job, step, path)
        trial = _Trial(folder, path / "run", log_path(folder.job, folder.job.step(step.name), 0), say)
        with trial.cancelled_at_the_end():
            folder.write()
            trial.start()
            delays_s = [trial.ask(number, why) for number, why in SIGNALS.items()]
            trial.cancel(max(delays_s))
        shutil.rmtree(trial.run, ignore_errors=True)
    say(f"{job.plan.name}: {step.name} comes back and goes on here. Log: {trial.log}")


def _choose(job: Job, name: str | None) -> Step:
    trains = [step for step in job.steps if step.command == "train"]
    if found := [step for step in trains if name in {None, step.name}]:
        return found[0]
    known = f"its train steps are {', '.join(step.name for step in trains)}" if trains else "it has no train step"
    raise InputError(
        f"--step {name} cannot be rehearsed: {known}." if name else f"There is nothing to rehearse: {known}."
    )


@contextmanager
def _cleared(path: Path, job: Job) -> Iterator[None]:
    """Hold the rehearsal's folder for the length of the block; what one before it left there is ended and removed."""
    before = JobFolder.open(path) if path.exists() and os.listdir(path) != ["lock"] else None  # else no job: InputError
    if before and before.job.plan.name != f"{job.plan.name}.rehearsal":
        raise InputError(f"{path} holds the job {before.job.plan.name}, no rehearsal: name another --folder.")
    with JobFolder.lock(path):
        if before:
            cancel_job(before, lambda _line: None)
            end_s = time.monotonic() + HEARD_S
            while any(status.is_active for status in before.statuses()):  # it still writes what it may save
                if time.monotonic() > end_s:
                    raise InputError(f"A rehearsal's job in {path} has not ended {HEARD_S:.0f} s after scancel: wait.")
                time.sleep(POLL_S)
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        yield


def _prepare(job: Job, step: Step, path: Path) -> JobFolder:
    """A job of that step alone, the first point of a sweep, in a folder of its own."""
    point = step.points[0]
    words = [word for word in point.arguments[1:] if word != "--resume"]
    words += [f"run.folder={path / 'run'}", f"run.steps={STEPS}", "run.log_every=1", "tracking.enabled=false"]
    taken = point.resources
    limit = {"minutes": min(taken.minutes or MINUTES, MINUTES), "restarts": max(taken.restarts, len(SIGNALS))}
    resources = taken.model_copy(update={**limit, "signal_s": min(taken.signal_s, 60 * limit["minutes"] - 1)})
    run = " ".join(["train", *(f"{{w{number}}}" for number in range(len(words)))])
    plan = JobPlan(
        name=f"{job.plan.name}.rehearsal",
        settings={f"w{number}": word for number, word in enumerate(words)},  # what they hold is filled in nowhere
        scripts=job.plan.scripts,
        tracking=Tracking(enabled=False),
        steps={step.name: StepPlan(run=run, resources=resources)},
    )
    return JobFolder.of(build(plan, path, job.directory))


@dataclass
class _Trial:
    """The job under way, and what has been seen of it."""

    folder: JobFolder
    run: Path
    log: Path
    say: Say
    _told: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Submit it, and wait for its first step."""
        begin_s = time.monotonic()
        submit(self.folder, lambda _line: None)
        self._until(lambda point, _run: point.state == "running", "start")
        queued_s = time.monotonic() - begin_s
        self._until(lambda _point, _run: self._step() > 0, "take its first step", STEP_S)
        total_s, point = time.monotonic() - begin_s, self._point()
        self.say(
            f"start: job {point.task_id} waited {queued_s:.0f} s for {point.nodes}, its first step ended "
            f"{total_s - queued_s:.0f} s later"
        )

    def ask(self, number: str, why: str) -> float:
        """Send all its ranks a signal, and wait until it goes on; for how many seconds it was away."""
        before, begin_s = self._point(), time.monotonic()
        queue.signal(before.task_id, number)
        remedy = (
            f"SIG{number} did not reach training: slurm/README.md says how it does through a container; a script of "
            "yours must not keep it"
        )
        self._until(lambda _point, run: run.code is not None, f"end after SIG{number}", HEARD_S, remedy)
        stopped, end_s = RunFolder(self.run).status(), time.monotonic()
        if stopped.code != os.EX_TEMPFAIL or not stopped.step:
            raise self._error(
                f"ended with code {stopped.code} after SIG{number}, and not with a checkpoint and {os.EX_TEMPFAIL}"
            )

        def is_another(point: PointStatus, _run: Status) -> bool:
            return point.state == "running" and (point.job_id, point.restarts) != (before.job_id, before.restarts)

        remedy = "where scontrol cannot requeue a job, resources.follow_ups lets another one take over"
        self._until(
            is_another, f"come back, having saved step {stopped.step} and ended with {os.EX_TEMPFAIL}", remedy=remedy
        )
        back_s = time.monotonic()
        self._until(lambda _point, run: run.code is None, "begin again", STEP_S)
        if RunFolder(self.run).status().step < stopped.step:
            raise self._error(f"began anew, where it had saved step {stopped.step}")
        self._until(lambda _point, _run: self._step() > stopped.step, "take a further step", STEP_S)
        self.say(
            f"SIG{number}, as before {why}: saved step {stopped.step} and ended in {end_s - begin_s:.0f} s, ran again "
            f"{back_s - end_s:.0f} s later on {self._point().nodes}, took a further step {_since(back_s)} s after that"
        )
        return back_s - end_s

    def cancel(self, delay_s: float) -> None:
        """As a user does, and wait for longer than it has taken to come back."""
        begin_s = time.monotonic()
        queue.cancel([self._point().task_id])
        remedy = "a script of your own must not requeue what SLURM ends"
        self._until(lambda point, _run: point.state == "cancelled", "end after scancel", HEARD_S, remedy)
        ended_s, watched_s = time.monotonic(), delay_s + 10
        while time.monotonic() < ended_s + watched_s:
            if self._point().is_active:
                raise self._error(f"came back {_since(ended_s)} s after scancel: {remedy}")
            time.sleep(POLL_S)
        step = RunFolder(self.run).status().step
        self.say(
            f"scancel: ended in {ended_s - begin_s:.0f} s with step {step} saved, and not back {watched_s:.0f} s later"
        )

    @contextmanager
    def cancelled_at_the_end(self) -> Iterator[None]:
        """However the block ends, a terminal that is closed included, nothing of it runs on."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup has it ignored
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            yield
        finally:
            cancel_job(self.folder, lambda _line: None)

    def _until(
        self, happened: Callable[[PointStatus, Status], bool], what: str, most_s: float | None = None, remedy: str = ""
    ) -> None:
        """Poll; the queue is waited for as long as it takes, a job that runs for `most_s`."""
        begin_s = time.monotonic()
        while True:
            point, run = self._point(), RunFolder(self.run).status()
            if happened(point, run):
                return
            if not point.is_active and (most_s is None or _since(begin_s) > POLL_S):
                how = f"{point.state}: {point.reason}" if point.reason else point.state
                raise self._error(f"did not {what} ({how}){f': {remedy}' if remedy else ''}")
            if most_s is not None and _since(begin_s) > most_s:
                raise self._error(f"did not {what} in {most_s:.0f} s{f': {remedy}' if remedy else ''}")
            if point.state == "queued" and point.reason not in {"", *self._told}:
                self._told.add(point.reason)
                self.say(f"waiting in the queue: {point.reason}")
            time.sleep(POLL_S)

    def _point(self) -> PointStatus:
        return self.folder.statuses()[0]

    def _step(self) -> int:
        """The last step that it has logged."""
        with suppress(InputError, OSError):
            return int(last_metrics(self.run).get("step", 0))
        return 0

    def _error(self, what: str) -> InputError:
        return InputError(f"The rehearsal's job {what}. Its log, {self.log}, ends: {last_line(self.log)}")


def _since(begin_s: float) -> int:
    return round(time.monotonic() - begin_s)
