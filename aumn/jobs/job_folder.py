"""A job's own folder: what was asked for, what was submitted, and how each point ended. All state is in these files.

job.json          the job, and the tracking run that holds its steps
submitted.jsonl   a line a submission: step, points, and the job's number (SLURM's, or local-PID)
points/STEP/N     arguments of a sweep's point N, a line each
outcomes/STEP.N   "NUMBER CODE NODES RESTARTS SECONDS" of the point's last end, written by the batch script
logs/             what the points printed
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from aumn.jobs.job import Job, Step
from aumn.jobs.queue import Task, look_up
from aumn.jobs.sbatch import log_path, points_folder, script_arguments
from aumn.records import InputError

State = Literal["waiting", "queued", "running", "done", "failed", "cancelled"]
NEVER = "DependencyNeverSatisfied"
_LOCAL = "local-"
_METRIC = re.compile(r"^(step \d+/\d+  loss \S+.*?videos/s|step \d+: .*mAP.*|\s*mAP +[\d. ]+)", re.MULTILINE)


class End(NamedTuple):
    """How a point ended, by what it left on the disk; a point that ran here knows of no nodes."""

    job_id: str
    code: int
    nodes: str = ""
    restarts: int = 0
    elapsed_s: int = 0


@dataclass(frozen=True)
class PointStatus:
    """Where one point of a step is."""

    step: Step
    index: int
    state: State
    job_id: str = ""
    reason: str = ""  # why it waits, or how it failed
    nodes: str = ""
    restarts: int = 0
    elapsed_s: int = 0

    @property
    def label(self) -> str:
        """What people call it."""
        return self.step.label(self.index)

    @property
    def task_id(self) -> str:
        """What scancel and --dependency call it."""
        return f"{self.job_id}_{self.index}" if self.step.is_sweep else self.job_id

    @property
    def is_local(self) -> bool:
        """Whether `aumn submit --local` ran it last."""
        return self.job_id.startswith(_LOCAL)

    @property
    def is_active(self) -> bool:
        """Whether somebody is to run it, or does."""
        return self.state in {"queued", "running"}


class JobFolder:
    """The folder of a job that was submitted at least once."""

    def __init__(self, job: Job, tracking_run: str | None) -> None:
        self.job, self.tracking_run = job, tracking_run
        self.path = job.folder

    @classmethod
    def open(cls, path: Path) -> JobFolder:
        """Of a job that `aumn submit` knows."""
        try:
            facts = json.loads((path / "job.json").read_text())
            return cls(TypeAdapter(Job).validate_python(facts["job"]), facts["tracking_run"])
        except FileNotFoundError:
            raise InputError(
                f"{path} holds no job: name the folder that `aumn submit` said, such as runs/jobs/NAME."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/job.json cannot be read ({error}): remove {path} to start anew.") from None

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether a job was submitted from here before."""
        return (path / "job.json").exists()

    def write(self) -> None:
        """Put the job and each point's arguments on the disk."""
        for folder in ("logs", "outcomes"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        for step in self.job.steps:
            for index in range(len(step.points)) if step.is_sweep else ():
                file = points_folder(self.job, step) / str(index)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(f"{word}\n" for word in script_arguments(step, index)))
        facts = {"job": TypeAdapter(Job).dump_python(self.job, mode="json"), "tracking_run": self.tracking_run}
        partial = self.path / ".job.json.partial"
        partial.write_text(json.dumps(facts, indent=1) + "\n")
        partial.replace(self.path / "job.json")

    def refuse_another(self, job: Job) -> None:
        """A job's points are what they are; only what they take, and when, may change."""
        before = {step.name: (step.needs, [point.arguments for point in step.points]) for step in self.job.steps}
        now = {step.name: (step.needs, [point.arguments for point in step.points]) for step in job.steps}
        if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            raise InputError(
                f"{self.path} holds a job whose steps differ in {', '.join(changed)}: submit it as it was, or name "
                "another --folder."
            )

    @staticmethod
    @contextmanager
    def lock(path: Path) -> Iterator[None]:
        """One `aumn submit` at a time."""
        path.mkdir(parents=True, exist_ok=True)
        with (path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{path} is being submitted or run by another aumn: wait until that is done."
                ) from None
            yield

    def record(self, step: str, indices: Sequence[int], job_id: str) -> None:
        """Remember a submission, on the disk before anything else happens."""
        line = json.dumps({"step": step, "points": list(indices), "job_id": job_id})
        with (self.path / "submitted.jsonl").open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_outcomes(self, step: str, indices: Sequence[int]) -> None:
        """Of points that are about to run again."""
        for index in indices:
            (self.path / "outcomes" / f"{step}.{index}").unlink(missing_ok=True)

    def record_outcome(self, step: str, index: int, job_id: str, code: int) -> None:
        """What the batch scripts do, for points that run here."""
        (self.path / "outcomes" / f"{step}.{index}").write_text(f"{job_id} {code}\n")

    def job_ids(self) -> dict[tuple[str, int], str]:
        """The last submission of each point."""
        found: dict[tuple[str, int], str] = {}
        with suppress(FileNotFoundError):
            for line in (self.path / "submitted.jsonl").read_text().splitlines():
                facts = json.loads(line)
                found |= dict.fromkeys(((facts["step"], index) for index in facts["points"]), facts["job_id"])
        return found

    def statuses(self) -> list[PointStatus]:
        """Every point, in the order of the steps; asks SLURM about those that have left no word."""
        ids = self.job_ids()
        keys = [(step, index) for step in self.job.steps for index in range(len(step.points))]
        ends = {(step.name, index): self._outcome(step.name, index) for step, index in keys}
        tasks = look_up(job_id for job_id in ids.values() if not job_id.startswith(_LOCAL))
        return [
            _status(step, index, ids.get((step.name, index), ""), ends[step.name, index], tasks) for step, index in keys
        ]

    def not_done(self) -> set[str]:
        """Labels of the points that have not ended well, by what they left on the disk alone."""
        keys = [(step, index) for step in self.job.steps for index in range(len(step.points))]
        ends = {step.label(index): self._outcome(step.name, index) for step, index in keys}
        return {label for label, end in ends.items() if end is None or end.code != 0}

    def log(self, status: PointStatus) -> Path:
        """Where the point's output is."""
        return log_path(self.job, status.step, status.index)

    def last_metric(self, status: PointStatus) -> str:
        """The last line of the point's output that holds a number to look at."""
        with suppress(OSError), self.log(status).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            found = _METRIC.findall(file.read().decode(errors="replace"))
            return " ".join(found[-1].split()) if found else ""
        return ""

    def _outcome(self, step: str, index: int) -> End | None:
        with suppress(OSError, ValueError, IndexError):
            job_id, code, *facts = (self.path / "outcomes" / f"{step}.{index}").read_text().split()
            return End(job_id, int(code), facts[0], int(facts[1]), int(facts[2])) if facts else End(job_id, int(code))
        return None


def _status(step: Step, index: int, job_id: str, end: End | None, tasks: Mapping[tuple[str, int], Task]) -> PointStatus:
    task = tasks.get((job_id, index))
    known = task or end  # SLURM may have forgotten it
    facts: Any = (known.nodes, known.restarts, known.elapsed_s) if known else ()
    if end is not None and end.code == 0:
        return PointStatus(step, index, "done", job_id, "", *facts)
    if not job_id:
        return PointStatus(step, index, "waiting")
    if job_id.startswith(_LOCAL):
        return PointStatus(step, index, *_local_state(job_id, end))
    how = f"exit code {end.code}" if end else "ended without a word, and SLURM has forgotten it"
    if task is None:
        return PointStatus(step, index, "failed", job_id, how, *facts)
    state = _state(task)
    reason = task.reason
    if state == "failed":
        reason = how if task.state == "FAILED" and end else task.state
    return PointStatus(step, index, state, job_id, reason, *facts)


def _local_state(job_id: str, end: End | None) -> tuple[State, str, str]:
    if end is not None and end.job_id == job_id:
        return "failed", job_id, f"exit code {end.code}"
    running = Path(f"/proc/{job_id.removeprefix(_LOCAL)}").exists()
    return ("running", job_id, "") if running else ("failed", job_id, "ended without a word")


def _state(task: Task) -> State:
    if task.state in {"PENDING", "REQUEUED"}:
        return "cancelled" if task.reason == NEVER else "queued"
    if task.is_active:
        return "running"
    return {"COMPLETED": "done", "CANCELLED": "cancelled"}.get(task.state, "failed")  # type: ignore[return-value]
