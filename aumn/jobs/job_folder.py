"""A job's own folder: what was asked for, what was submitted, and how each point ended. All state is in these files.

job.json          the job as asked for, where it was submitted from, and the tracking run that holds its steps
submitted.jsonl   a line before each submission (step, points, our comment for it) and one with the job's number
points/STEP/N     arguments of a sweep's point N, a line each
outcomes/STEP.N   "NUMBER CODE NODES RESTARTS SECONDS" of the point's last end, written by the batch script
logs/             what the points printed
bad_nodes         "NODE SECONDS WHY" of nodes with slow ranks, by training, or not healthy, by the batch script

The folder may be moved, and looked at from anywhere: where it is now counts, not where it was.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from aumn.files import hold, started_at, whole_file
from aumn.jobs.job import Job, Step, build
from aumn.jobs.job_schema import JobPlan
from aumn.jobs.queue import Key, Task, look_up
from aumn.jobs.sbatch import points_folder, sbatch_name, script_arguments
from aumn.records import InputError
from aumn.runfolder.typed import typed

State = Literal["waiting", "queued", "running", "done", "failed", "cancelled"]
NEVER, DONE, NO_WORD = "DependencyNeverSatisfied", "COMPLETED", "ended without a word"
LOCAL = "local-"
BAD_FOR_S = 7 * 86_400
MOST_BAD = 4
_STATES: Mapping[str, State] = {
    "PENDING": "queued", "REQUEUED": "queued", "CONFIGURING": "running", "RUNNING": "running", "COMPLETING": "running",
    "RESIZING": "running", "SUSPENDED": "running", "STOPPED": "running", "SIGNALING": "running",
    DONE: "done", "CANCELLED": "cancelled",
}  # fmt: skip
"""What we make of SLURM's words; any other says that the point has failed."""


class Submitted(BaseModel):
    """A line of `submitted.jsonl`: points of a step, the comment that SLURM knows their job by, its number if known.

    `follow_ups` are the jobs that take over from it, one after the other.
    """

    step: str
    points: list[int]
    comment: str = ""
    job_id: str
    follow_ups: list[str] = []


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
    chain: tuple[str, ...] = ()  # the job and its follow-ups, where it has any

    @property
    def label(self) -> str:
        """What people call it."""
        return self.step.label(self.index)

    @property
    def task_id(self) -> str:
        """What scancel calls it."""
        return f"{self.job_id}_{self.index}" if self.step.is_sweep else self.job_id

    @property
    def task_ids(self) -> tuple[str, ...]:
        """What ends it for good, and what --dependency waits for: any of them."""
        return self.chain or (self.task_id,)

    @property
    def is_active(self) -> bool:
        """Whether somebody is to run it, or does."""
        return self.state in {"queued", "running"}


@dataclass
class JobFolder:
    """The folder of a job that was submitted at least once."""

    job: Job
    identity: str  # stays the job's wherever its folder goes
    tracking_run: str | None = None

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.job.folder

    @classmethod
    def of(cls, job: Job) -> JobFolder:
        """Of a job to be submitted: new, or as an earlier submission left it.

        A job's points are what they are; only what they take, and when, may change.
        """
        if (found := cls._read(job.folder)) is None:
            return cls(job, secrets.token_hex(4))
        before, now = (
            {step.name: (step.needs, [point.arguments for point in step.points]) for step in asked.steps}
            for asked in (found.job, job)
        )
        if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            raise InputError(
                f"{job.folder} holds a job whose steps differ in {', '.join(changed)}: submit it as it was, or name "
                "another --folder."
            )
        return cls(job, found.identity, found.tracking_run)

    @classmethod
    def open(cls, path: Path) -> JobFolder:
        """Of a job that `aumn submit` knows."""
        path = Path(os.path.abspath(path))
        if found := cls._read(path):
            return found
        if (path / "job.json").exists():
            raise InputError(
                f"{path} was submitted by an older aumn: give its `aumn submit` once more, which goes on with it."
            )
        raise InputError(f"{path} holds no job: name the folder that `aumn submit` said, such as runs/jobs/NAME.")

    @classmethod
    def _read(cls, path: Path) -> JobFolder | None:
        """None: there is no job, or one of an older aumn."""
        try:
            facts = json.loads((path / "job.json").read_text())
            if "plan" not in facts:
                return None
            job = build(JobPlan.model_validate(facts["plan"]), path, Path(facts["directory"]))
            run_folders = {label: path / folder for label, folder in facts["run_folders"].items()}
            return cls(replace(job, run_folders=run_folders), facts["identity"], facts["tracking_run"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/job.json cannot be read ({error}): remove {path} to start anew.") from None

    def write(self) -> None:
        """Put the job and each point's arguments on the disk."""
        for folder in ("logs", "outcomes"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        for step in self.job.steps:
            for index in range(len(step.points)) if step.is_sweep else ():
                file = points_folder(self.job, step) / str(index)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(f"{word}\n" for word in script_arguments(step, index)))
        run_folders = {  # seen from this folder where they lie in it, so that they move along
            label: str(folder.relative_to(self.path) if folder.is_relative_to(self.path) else folder)
            for label, folder in self.job.run_folders.items()
        }
        facts = {
            "identity": self.identity,
            "plan": self.job.plan.model_dump(mode="json"),
            "directory": str(self.job.directory),
            "run_folders": run_folders,
            "tracking_run": self.tracking_run,
        }
        with whole_file(self.path / "job.json") as file:
            file.write_text(json.dumps(facts, indent=1) + "\n")

    @staticmethod
    def lock(path: Path) -> AbstractContextManager[None]:
        """One `aumn submit` at a time."""
        return hold(path / "lock", f"{path} is being submitted or run by another aumn: wait until that is done")

    def announce(self, step: str, indices: Sequence[int]) -> str:
        """Remember that these points are about to be submitted; the comment by which SLURM will know the job.

        A job whose number never came is found by it: `aumn:JOB:STEP:` and something that no other submission has.
        """
        comment = f"aumn:{self.identity}:{step}:{secrets.token_hex(4)}"
        self.record(step, indices, comment=comment)
        for index in indices:
            self.outcome_file(step, index).unlink(missing_ok=True)
        return comment

    def record(
        self,
        step: str,
        indices: Sequence[int],
        *,
        comment: str = "",
        job_id: str = "",
        follow_ups: Sequence[str] = (),
    ) -> None:
        """Remember a submission, on the disk before anything else happens."""
        facts = {"step": step, "points": list(indices), "comment": comment, "job_id": job_id}
        line = json.dumps(facts | ({"follow_ups": list(follow_ups)} if follow_ups else {}))
        file = self.path / "submitted.jsonl"
        begins = not file.exists() or file.read_bytes()[-1:] in {b"", b"\n"}
        with file.open("a") as lines:
            lines.write(("" if begins else "\n") + line + "\n")  # what a kill has cut short stays a line of its own
            lines.flush()
            os.fsync(lines.fileno())

    def record_local(self, step: str, index: int, pid: int) -> str:
        """Remember a process of this machine that runs a point: what stands for the job's number."""
        name = f"{LOCAL}{pid}-{started_at(pid)}"
        self.record(step, [index], job_id=name)
        return name

    def outcome_file(self, step: str, index: int) -> Path:
        """Where a point's last end is noted."""
        return self.path / "outcomes" / f"{step}.{index}"

    def bad_nodes(self) -> dict[str, str]:
        """Nodes to go round, and why: of those noted in the last BAD_FOR_S, the newest MOST_BAD."""
        file, found = self.path / "bad_nodes", dict[str, str]()
        for line in file.read_text().splitlines() if file.exists() else ():
            name, at_s, why = (*line.split(maxsplit=2), "", "", "")[:3]
            if at_s.isdigit() and int(at_s) >= time.time() - BAD_FOR_S:
                found.pop(name, None)
                found[name] = why
        return dict(list(found.items())[-MOST_BAD:])

    def sent(self) -> dict[Key, Submitted]:
        """The last submission of each point, by step and index."""
        found: dict[Key, Submitted] = {}
        file = self.path / "submitted.jsonl"
        for line in file.read_bytes().splitlines() if file.exists() else ():
            if not line.endswith(b"}"):
                continue  # cut short by a kill, before anything was submitted
            last = typed(Submitted, line, file, "mend the line, or remove it if no such job runs")
            found |= dict.fromkeys(((last.step, index) for index in last.points), last)
        return found

    def statuses(self) -> list[PointStatus]:
        """Every point, in the order of the steps; asks SLURM about those that have not ended well, all at once."""
        ends, sent = self._ends(), self.sent()
        asked = {
            key: last
            for key, last in sent.items()
            if not last.job_id.startswith(LOCAL) and (key not in ends or ends[key].state != DONE)
        }
        names = {sbatch_name(self.job, step) for step, _ in asked}
        tasks = look_up(names, {last.job_id for last in asked.values() if last.job_id})
        numbers: dict[str, set[str]] = {}
        for task in tasks.values():
            numbers.setdefault(task.comment, set()).add(task.job_id)
        found = []
        for step, index in self._points():
            last, end = sent.get((step.name, index)), ends.get((step.name, index))
            job_id, chain = end.job_id if end else "", list[str]()
            if last:
                answering = {*filter(None, [last.job_id, *last.follow_ups]), *numbers.get(last.comment, ())}
                chain = sorted(answering, key=lambda name: (len(name), name)) if last.comment else [last.job_id]
                job_id = _current([tasks.get((name, index), Task(name, "")) for name in chain], end) or job_id
            known = tasks.get((job_id, index))
            state, reason = _state(job_id, end, known)
            known = known or end or Task("", "")  # SLURM may have forgotten it
            facts = (known.nodes, known.restarts, known.elapsed_s)
            jobs = tuple(chain) if len(chain) > 1 else ()
            found.append(PointStatus(step, index, state, job_id, reason, *facts, jobs))
        return found

    def not_done(self) -> set[str]:
        """Labels of the points that have not ended well, by what they left on the disk alone."""
        done = {key for key, end in self._ends().items() if end.state == DONE}
        return {step.label(index) for step, index in self._points() if (step.name, index) not in done}

    def _points(self) -> list[tuple[Step, int]]:
        return [(step, index) for step in self.job.steps for index in range(len(step.points))]

    def _ends(self) -> dict[Key, Task]:
        """How points ended, by what they left on the disk; one that ran here knows of no nodes."""
        found = {}
        for step, index in self._points():
            with suppress(OSError, ValueError):
                job_id, code, *facts = self.outcome_file(step.name, index).read_text().split()
                nodes, restarts, elapsed_s = facts or ("", 0, 0)
                state, how = DONE if code == "0" else "FAILED", f"exit code {code}"
                found[step.name, index] = Task(job_id, state, how, nodes, int(restarts), int(elapsed_s))
        return found


def _current(chain: Sequence[Task], end: Task | None) -> str:
    """The number of the one that counts, of a job and those that take over from it; empty where there is none.

    What has begun goes before what waits, and that before what is over; but where one of them left word that nothing is
    to follow, it is that one.
    """
    if end and end.reason != f"exit code {os.EX_TEMPFAIL}" and any(task.job_id == end.job_id for task in chain):
        return end.job_id

    def order(task: Task) -> int:
        state = _STATES.get(task.state)
        if state == "queued":
            return 2 if task.reason == "Dependency" else 1
        return {"running": 0, "cancelled": 3}.get(state or "", 4) if task.reason != NEVER else 4

    return min(chain, key=order).job_id if chain else ""


def _state(job_id: str, end: Task | None, task: Task | None) -> tuple[State, str]:
    """Where a point is, and why: a good end counts most, then what SLURM says now, then how the point ended before."""
    if end and end.state == DONE:
        return "done", ""
    if job_id.startswith(LOCAL) and not (end and end.job_id == job_id):
        return ("running", "") if _is_running(job_id) else ("failed", NO_WORD)
    if task is None and end:
        return "failed", end.reason
    if task is None:
        return ("failed", f"{NO_WORD}, and SLURM has forgotten it") if job_id else ("waiting", "")
    state = "cancelled" if task.reason == NEVER else _STATES.get(task.state, "failed")
    if state != "failed":
        return state, task.reason
    return state, end.reason if end and task.state == "FAILED" else task.state


def _is_running(job_id: str) -> bool:
    """Whether a process of this machine has the number and the start that were noted: numbers are given again."""
    pid, _, start = job_id.removeprefix(LOCAL).partition("-")
    return start.isdigit() and started_at(int(pid)) == int(start)
