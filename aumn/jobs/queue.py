"""What SLURM knows of jobs: scontrol for those it remembers, sacct for older ones where accounting is on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aumn.records import InputError

TIMEOUT_S = 60
ACTIVE = {
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "RESIZING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
}


@dataclass(frozen=True)
class Task:
    """A job, or one task of an array, as SLURM sees it."""

    state: str  # SLURM's word, such as PENDING, NODE_FAIL
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    elapsed_s: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it is waiting or running."""
        return self.state in ACTIVE


def require_slurm() -> None:
    """Refuse at once where there is no SLURM to submit to."""
    missing = [name for name in ("sbatch", "scontrol", "scancel") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not found on PATH: run this where SLURM's commands are, such as a login node, or "
            "give --local to run the steps on this machine, or --dry-run to see the commands."
        )


def run_sbatch(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit; the job's number."""
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"sbatch did not answer within {TIMEOUT_S} s: look at `sinfo`, then submit again.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
        if "configuration source" in said or "Unable to contact slurm controller" in said:
            raise InputError(
                "SLURM's commands are here, but no cluster answers them: submit on a machine of the cluster, or run "
                "the steps here with --local."
            )
        raise InputError(
            f"sbatch refused: {said.rstrip('.')}. Mend the step's resources or options, then submit again."
        )
    return done.stdout.strip().partition(";")[0]


def cancel(job_ids: Iterable[str]) -> None:
    """End jobs, those of an array all together; one that has ended is none to cancel."""
    if ids := list(job_ids):
        _client("scancel", "--quiet", *ids)


def look_up(job_ids: Iterable[str]) -> dict[tuple[str, int], Task]:
    """Tasks by (job's number, index in its array or 0); what SLURM has forgotten is left out."""
    found: dict[tuple[str, int], Task] = {}
    for job_id in dict.fromkeys(job_ids):
        tasks = dict(read_scontrol(_client("scontrol", "show", "job", "--oneliner", job_id)))
        found |= tasks or dict(read_sacct(_accounts(job_id)))
    return found


def read_scontrol(text: str) -> Iterator[tuple[tuple[str, int], Task]]:
    """Tasks of `scontrol show job --oneliner`; the pending rest of an array is one line."""
    for line in text.splitlines():
        fields: dict[str, str] = {}
        for name, value in re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(\S*)", line):
            fields.setdefault(name, value)
        if "JobState" not in fields:
            continue
        task = Task(
            fields["JobState"],
            fields.get("Reason", "").removeprefix("None"),
            fields.get("NodeList", "").removeprefix("(null)"),
            int(fields.get("Restarts", "0")),
            _seconds(fields.get("RunTime", "")),
        )
        job_id = fields.get("ArrayJobId", fields["JobId"])
        yield from (((job_id, index), task) for index in _indices(fields.get("ArrayTaskId", "0")))


def read_sacct(text: str) -> Iterator[tuple[tuple[str, int], Task]]:
    """Tasks of `sacct --parsable2 --noheader -o JobID,State,NodeList,ElapsedRaw`."""
    for line in text.splitlines():
        name, state, nodes, elapsed_s = line.split("|")
        job_id, _, index = name.partition("_")
        for number in _indices(index.strip("[]") or "0"):
            yield (job_id, number), Task(state.split()[0], nodes=nodes, elapsed_s=int(elapsed_s or 0))


def _accounts(job_id: str) -> str:
    if shutil.which("sacct") is None:
        return ""
    return _client("sacct", "--parsable2", "--noheader", "-X", "-j", job_id, "-o", "JobID,State,NodeList,ElapsedRaw")


def _client(*argv: str) -> str:
    """What a command says; nothing where SLURM does not know the job."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{argv[0]} did not answer ({error}): look at `sinfo`, then try again.") from None
    lost = re.search(r"Unable to contact slurm controller|Connection refused|Socket timed out", done.stderr)
    if done.returncode and lost:
        raise InputError(f"{argv[0]} did not answer ({lost[0]}): look at `sinfo`, then try again.")
    return done.stdout if done.returncode == 0 else ""


def _indices(text: str) -> Iterator[int]:
    """0, 1, 2, 5 of 0-2,5%2."""
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from range(int(first), int(last or first) + 1)


def _seconds(text: str) -> int:
    """Of D-HH:MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
