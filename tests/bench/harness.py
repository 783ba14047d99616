"""What the benchmarks share: sides that take turns, processes that measure themselves, and rows of the table."""

import argparse
import gc
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import starmap
from operator import truediv
from pathlib import Path
from statistics import median

from aumn.runtime.preemption import leave

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "bench"
sys.path.insert(
    0, os.environ.get("BENCH_CODE", str(REPOSITORY))
)  # for the tests' references, and `code` of `in_process`


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is what `target` ("<= 1.4") is about; `ours` and `theirs` are in `unit`.

    `runs` has the ratio of each run, where several were made and `ratio` is their median.
    """

    row: str
    ratio: float
    target: str
    ours: float
    theirs: float
    unit: str
    runs: Sequence[float] = ()

    @classmethod
    def of_runs(cls, row: str, target: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> "Row":
        """Of seconds or bytes that both sides took in runs in turn; ">=" is about theirs over ours, "<=" about ours."""
        pairs = zip(*((theirs, ours) if target.startswith(">") else (ours, theirs)), strict=True)
        runs = tuple(starmap(truediv, pairs))
        return cls(row, median(runs), target, median(ours), median(theirs), unit, runs)

    @property
    def verdict(self) -> str:
        """`noise`: the median misses the target and a quarter of the runs meets it, so that the machine decides."""
        relation, bound = self.target.split()
        met = [
            ratio >= float(bound) if relation == ">=" else ratio <= float(bound) for ratio in (self.ratio, *self.runs)
        ]
        return "met" if met[0] else "noise" if self.runs and 4 * sum(met) >= len(self.runs) else "MISSED"

    def __str__(self) -> str:
        figures = f"{self.ours:11.4g} {self.theirs:11.4g} {self.unit:<9}"
        spread = f"  {len(self.runs)} runs, {min(self.runs):.3g} to {max(self.runs):.3g}" if self.runs else ""
        return f"{self.row:<54} {figures} {self.ratio:8.3g} {self.target:>8}  {self.verdict}{spread}"


HEADER = f"{'row':<54} {'ours':>11} {'theirs':>11} {'unit':<9} {'ratio':>8} {'target':>8}"


def main(measure: Callable[[], list[Row]], **sides: Callable[..., object]) -> None:
    """A script's command line: measure and print, or with `--side NAME ARGUMENT...` measure one side for `in_process`.

    `--json FILE` writes the rows too.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", nargs="+")
    options = parser.parse_args()
    if options.side:
        name, *arguments = options.side
        found = sides[name](*arguments)
        if found is not None:  # several ranks leave it to one of them
            print("\n" + json.dumps(found))
        if "RANK" in os.environ:
            leave()
        return
    rows = measure()
    print("\n".join((HEADER, *map(str, rows))))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"verdict": row.verdict} for row in rows]))


def take_turns(rounds: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Each side's best time in seconds. They take turns, so that what else the machine does hits all alike."""
    for side in sides.values():
        side()  # warm
    return {name: min(times_s) for name, times_s in time_turns(rounds, **sides).items()}


def time_turns(rounds: int, **sides: Callable[[], object]) -> dict[str, list[float]]:
    """Each side's seconds, round by round."""
    times_s: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            start_s = time.perf_counter()
            side()
            times_s[name].append(time.perf_counter() - start_s)
    return times_s


def at_commit(commit: str) -> Path:
    """The code of an earlier commit, for `run` and `in_process`; it runs in this very environment."""
    folder = BUILD / f"commit-{commit}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, capture_output=True, check=False)
        if archive.returncode:
            sys.exit(f"commit {commit} is not here to be put beside this one: git fetch --unshallow")
        subprocess.run(["tar", "-x", "-C", partial], input=archive.stdout, check=True)
        partial.rename(folder)
    return folder


def in_process(
    *side: object,
    ranks: int = 0,
    environment: Mapping[str, str] = {},
    cores: Sequence[int] = (),
    timeout_s: float = 300,
    code: Path = REPOSITORY,
) -> dict:
    """What `--side SIDE...` of the calling script measures in a process of its own, or in as many as `ranks`.

    `code` is where it imports aumn from; see `at_commit`.
    """
    script = Path(sys.modules[sys._getframe(1).f_globals["__name__"]].__file__)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [sys.executable, *launcher, str(script), "--side", *map(str, side)]
    return json.loads(run(command, environment, cores, timeout_s, code).splitlines()[-1])


def run(
    command: Sequence[str],
    environment: Mapping[str, str] = {},
    cores: Sequence[int] = (),
    timeout_s: float = 300,
    code: Path = REPOSITORY,
) -> str:
    """A command's output; what it said is shown where it fails. `cores` pins it, `code` is what `-m aumn` is."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "BENCH_CODE": str(code)}
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    process = subprocess.run(
        command,
        env={**os.environ, **quiet, **environment},
        cwd=code,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        preexec_fn=pin,
        check=False,
    )
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stdout}\n{process.stderr}")
    return process.stdout


def cost(command: Sequence[str], code: Path = REPOSITORY, timeout_s: float = 900) -> dict[str, float]:
    """Seconds and processor seconds of a command, and its memory at the peak in bytes, by one thread."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
    start_s = time.perf_counter()
    process = subprocess.Popen(
        ["timeout", str(timeout_s), *command], cwd=code, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed in {code}")
    seconds = time.perf_counter() - start_s
    return {"wall_s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "bytes": usage.ru_maxrss * 1024}


MEASURABLE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which freed memory goes back to the system at once, so that what is resident is what is in use."""


def peak_growth_bytes(call: Callable[[], object]) -> int:
    """How far the process's resident memory rises above where it is now while `call` runs."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident_bytes("VmRSS")
    call()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def fresh_seed() -> int:
    """Another one each time, printed so that a failure can be had again; BENCH_SEED sets it."""
    seed = int(os.environ.get("BENCH_SEED", secrets.randbelow(2**31)))
    print(f"seed {seed}")
    return seed
