"""What SLURM knows of jobs: one call of squeue for all of them, and one of sacct for those that it has forgotten."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aumn.records import InputError

TIMEOUT_S = 60
COLUMNS = {
    "ArrayJobID": 20, "ArrayTaskID": 20, "State": 20, "RestartCnt": 10, "TimeUsed": 20, "Comment": 60, "Reason": 60,
    "NodeList": 300,
}  # fmt: skip
"""What squeue is asked, with the width that it cuts each answer to."""

OF_OUTER_JOB = ("SLURM_ARRAY_", "SLURM_RESTART_COUNT", "AUMN_FOLLOWS", "AUMN_SPARE_NODES", "AUMN_LOST_MS")
"""Where a job submits another, sbatch hands these on, and the new one would take them for its own."""

Key = tuple[str, int]
"""A job's number, and the index in its array or 0."""


@dataclass(frozen=True)
class Task:
    """A job, or one task of an array, as SLURM sees it or as it said itself at its end."""

    job_id: str  # of an array, its own
    state: str  # SLURM's word, such as PENDING, NODE_FAIL
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    elapsed_s: int = 0
    comment: str = ""


class TooFewNodesError(InputError):
    """The cluster has not what a job asks for, at least not without the nodes that it excludes."""


def require_slurm() -> None:
    """Refuse at once where there is no SLURM to submit to."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not found on PATH: run this where SLURM's commands are, such as a login node, or "
            "give --local to run the steps on this machine, or --dry-run to see the commands."
        )


def run_sbatch(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit; the job's number. InputError where there is none, which need not mean that there is no job."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(OF_OUTER_JOB)}
    try:
        done = _run(argv, {**ours, **environment})
        code, said = done.returncode, " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
    except subprocess.TimeoutExpired:
        code, said = 1, "Socket timed out"  # in SLURM's words, which gives up by itself where the controller is slow
    if code == 0:
        return done.stdout.strip().partition(";")[0]
    if "timed out" in said:
        raise InputError(
            "sbatch did not answer in time: look at `sinfo`, then submit again. A job that SLURM took all the same is "
            "found then, and not submitted twice."
        )
    _refuse_without_cluster(said)
    of_nodes = ("node configuration is not available", "Invalid node name")  # the latter also of one asked for by name
    error = TooFewNodesError if any(text in said for text in of_nodes) else InputError
    raise error(f"sbatch refused: {said.rstrip('.')}. Mend the step's resources or options, then submit again.")


def cancel(job_ids: Iterable[str]) -> None:
    """End jobs, those of an array all together; one that has ended is none to cancel."""
    if ids := list(job_ids):
        _ask("scancel", "--quiet", *ids)


def signal(job_id: str, name: str) -> None:
    """Send a signal to all ranks of a job."""
    _ask("scancel", f"--signal={name}", job_id)


def look_up(names: Collection[str], job_ids: Collection[str]) -> dict[Key, Task]:
    """All that SLURM knows of jobs with these names, and of these numbers; what it has forgotten is left out."""
    if not names:
        return {}
    columns = ",".join(f"{name}:{width}|" for name, width in COLUMNS.items())
    jobs = f"--name={','.join(sorted(names))}"
    found = dict(read_squeue(_ask("squeue", "--noheader", "--states=all", "--array", jobs, f"--Format={columns}")))
    forgotten = sorted(set(job_ids) - {job_id for job_id, _ in found})
    if forgotten and shutil.which("sacct"):
        columns = "JobID,State,NodeList,ElapsedRaw"
        with_ids = ("--parsable2", "--noheader", "-X", "-j", ",".join(forgotten), "-o", columns)
        found |= dict(read_sacct(_ask("sacct", *with_ids, unless="accounting storage is disabled")))
    return found


def read_squeue(text: str) -> Iterator[tuple[Key, Task]]:
    """Tasks of `squeue --Format` with COLUMNS, each followed by |; the last may hold anything."""
    for line in text.splitlines():
        job_id, index, state, restarts, elapsed, comment, reason, nodes = (
            word.strip() for word in line.split("|", len(COLUMNS) - 1)
        )
        reason = "" if reason in {"None", "(null)"} else reason
        task = Task(job_id, state, reason, nodes.rstrip("| "), int(restarts), _seconds(elapsed), comment)
        yield (job_id, int(index) if index.isdigit() else 0), task


def read_sacct(text: str) -> Iterator[tuple[Key, Task]]:
    """Tasks of `sacct --parsable2 --noheader -o JobID,State,NodeList,ElapsedRaw`; 7_[0-2,5%2] waits as one line."""
    for line in text.splitlines():
        name, state, nodes, elapsed_s = line.split("|")
        job_id, _, indices = name.partition("_")
        for part in (indices.strip("[]").partition("%")[0] or "0").split(","):
            first, _, last = part.partition("-")
            for index in range(int(first), int(last or first) + 1):
                yield (job_id, index), Task(job_id, state.split()[0], nodes=nodes, elapsed_s=int(elapsed_s or 0))


def _ask(*argv: str, unless: str | None = None) -> str:
    """What a command of SLURM says; nothing where it has no answer for a reason that is none of ours."""
    try:
        done = _run(argv)
        if done.returncode == 0 or (unless and unless in done.stderr):
            return done.stdout
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    _refuse_without_cluster(said)
    raise InputError(f"{argv[0]} did not answer ({said}): look at `sinfo`, then try again.")


def _refuse_without_cluster(said: str) -> None:
    if "configuration source" in said or "Unable to contact slurm controller" in said:
        raise InputError(
            "SLURM's commands are here, but no cluster answers them: submit on a machine of the cluster, or run "
            "the steps here with --local."
        )


def _run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def _seconds(text: str) -> int:
    """Of D-HH:MM:SS, of which squeue leaves out what is zero in front."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
