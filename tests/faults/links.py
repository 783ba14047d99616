"""Links that are cut or slow under real jobs: `python -m tests.faults.links` prints the table of docs/faults.md.

A case has a SLURM of its own, of three nodes with addresses of their own. slurm/train.sbatch trains on two of them, the
third one is for whatever comes; the tracking server is a node too. The batch script and the first rank are on n1.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.jobs.slurm_cluster import Cluster, cluster
from tests.launching import QUIET, python, succeed
from tests.tracking.servers import MLFLOW

from .comparing import Difference, differences
from .places import Place, a_place
from .playing import Undisturbed, refuse_crash
from .processes import INTERRUPTED, HungError
from .stages import STAGES, STEPS
from .two_nodes import NODES
from .undisturbed import run_undisturbed

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_S = 900.0
FOR_EVER = None
BEFORE_RANKS_MEET = "start"
NAMES = {BEFORE_RANKS_MEET: ", before the ranks have met", f"step {STEPS}/": ", as it publishes"}
UNDER_WAY = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"}
MOST_SUBMISSIONS = 4


@dataclass(frozen=True)
class Case:
    """What happens to all frames of a node, from the moment on at which training says `when`, and for how long."""

    engine: str
    node: str
    loss: float = 1.0
    delay_s: float = 0.0
    for_s: float | None = FOR_EVER
    when: str = "step 6/"
    settings: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return "train" if self.engine == "ddp" else f"train {self.engine}"

    @property
    def name(self) -> str:
        node = {"n1": "first rank's node, script and store", "n2": "other node", MLFLOW: "tracking server"}[self.node]
        what = f"{1000 * self.delay_s:.0f} ms each way" if self.delay_s else f"{100 * self.loss:.0f} % lost"
        how = "cut" if self.loss == 1 else what
        long = "for ever" if self.for_s is None else f"for {self.for_s:g} s"
        return f"{self.engine}: {node} {how} {long}{NAMES.get(self.when, '')}"


CASES = [
    *(
        Case(engine, node, for_s=for_s)
        for engine, nodes in (("ddp", ("n2", "n1", MLFLOW)), ("deepspeed", ("n2", "n1")))
        for node in nodes
        for for_s in (5, 60, FOR_EVER)
    ),
    *(
        Case(engine, "n2", loss=loss, delay_s=delay_s, when="aumn: job ")
        for engine in ("ddp", "deepspeed")
        for loss, delay_s in ((0, 0.2), (0.05, 0), (0.3, 0))
    ),
    Case("ddp", "n2", when=BEFORE_RANKS_MEET, settings=("run.start_timeout_s=40",)),
    Case("ddp", "n1", when=f"step {STEPS}/"),
]  # fmt: skip


@dataclass
class Outcome:
    """What a case came to; `marks` are seconds behind the fault at which the log said so."""

    case: Case
    marks: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # sentences about the fault
    submissions: int = 0
    differences: list[Difference] = field(default_factory=list)
    failure: str | None = None
    frames: dict[str, int] = field(default_factory=dict)

    @property
    def survived(self) -> bool:
        return self.failure is None and not self.differences


SIGNS = {  # what a line behind the fault says where each has come
    "told": r"^aumn: .*(another rank|Another rank|Waited|is gone).*exit code (1|75)\)",
    "requeued": r"requeued, to go on|JOB .* CANCELLED AT .* DUE TO NODE FAILURE",
    "started": r"^aumn: job \d+ on",
    "met": r" held out; steps \d+ to ",
    "step": r"^step \d+/",
}
OF_THE_FAULT, OF_THE_NEXT_START = ("told", "requeued"), ("met", "step")


def play(case: Case, undisturbed: Undisturbed, folder: Path, slurm_settings: str = "") -> Outcome:
    """`slurm_settings` are lines of slurm.conf."""
    outcome = Outcome(case)
    with (
        a_place(folder, undisturbed.blank_database, is_networked=True, needs_server=case.node == MLFLOW) as place,
        cluster(len(NODES), place.network, slurm_settings) as slurm,
    ):
        try:
            _run(undisturbed, place, slurm, outcome)
            said = place.log.read_text(errors="replace")
            refuse_crash(0, said)
            outcome.differences = differences(STAGES[case.stage], undisturbed.places[case.stage], place, said)
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _run(undisturbed: Undisturbed, place: Place, slurm: Cluster, outcome: Outcome) -> None:
    """Submit, strike, and do what a user would do where it has not ended well."""
    case = outcome.case
    _, *arguments = [*STAGES[case.stage].arguments(undisturbed.inputs), "run.step_timeout_s=null", *case.settings]
    job = _Job(slurm, place, arguments)
    job.wait_for(lambda: _has_come(case, job))
    place.network.slow(case.node, delay_s=case.delay_s, loss=case.loss, for_s=case.for_s)
    job.struck_s = time.monotonic()
    outcome.marks, outcome.said = job.marks, job.said
    while True:
        job.wait_for(lambda: False)
        outcome.submissions += 1
        outcome.marks["ended"] = time.monotonic() - job.struck_s
        outcome.frames = place.network.counts()
        if job.code() == 0:
            break
        if outcome.submissions == MOST_SUBMISSIONS:
            raise HungError(f"exit code {job.code()} after {outcome.submissions} submissions")
        place.network.restore()
        is_begun = any((place.work / "run" / "checkpoints").glob("step_*"))
        job.submit([*arguments, *(["--resume"] if is_begun else [])])
    if "aumn deliver " in job.log():
        place.network.restore()
        delivery = ["-m", "aumn", "deliver", "run"]
        succeed(python(*delivery, cwd=place.work, environment=place.environment(), timeout_s=MOST_S))


def _has_come(case: Case, job: "_Job") -> bool:
    if case.when == BEFORE_RANKS_MEET:
        return job.slurm.has_tasks(case.node)
    return f"\n{case.when}" in job.log()


class _Job:
    """A job under way, and what its log has said since `struck_s`: `marks` are seconds behind that."""

    def __init__(self, slurm: Cluster, place: Place, arguments: Sequence[object]) -> None:
        self.slurm, self.place = slurm, place
        self.struck_s = math.inf
        self.marks: dict[str, float] = {}
        self.said: list[str] = []
        self._lines = 0
        self.submit(arguments)

    def submit(self, arguments: Sequence[object]) -> None:
        variables = QUIET | {"PYTHONPATH": str(REPOSITORY), "AUMN": str(Path(sys.executable).parent / "aumn")}
        variables["MLFLOW_TRACKING_URI"] = self.place.environment()["MLFLOW_TRACKING_URI"]
        options = [f"--output={self.place.log}", f"--chdir={self.place.work}", "-N2", "--ntasks-per-node=1"]
        command = ["sbatch", "--parsable", *options, REPOSITORY / "slurm" / "train.sbatch", *arguments]
        self.id = self.slurm.run("env", *(f"{name}={value}" for name, value in variables.items()), *command).strip()

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until it has, or the job has ended."""
        end_s = time.monotonic() + MOST_S
        asked_s = time.monotonic()
        while not happened():
            if time.monotonic() > asked_s + 1:  # a question to the controller costs more than a look at a file
                asked_s = time.monotonic()
                if self._facts()["JobState"] not in UNDER_WAY:
                    self._read()
                    return
            if INTERRUPTED.is_set():
                raise HungError("interrupted")
            if time.monotonic() > end_s:
                raise HungError(f"not over after {MOST_S:.0f} s; the log says\n{self.log()[-1500:]}")
            time.sleep(0.05)
            self._read()

    def code(self) -> int:
        return int(self._facts()["ExitCode"].partition(":")[0])

    def log(self) -> str:
        """Behind a line feed."""
        return "\n" + (self.place.log.read_text(errors="replace") if self.place.log.exists() else "")

    def _facts(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm.run("scontrol", "show", "job", self.id)))

    def _read(self) -> None:
        lines = self.log().split("\n")[:-1]  # whole ones
        new, self._lines = lines[self._lines :], len(lines)
        since_s = time.monotonic() - self.struck_s
        for line in new if since_s >= 0 else ():
            for name in (name for name, sign in SIGNS.items() if re.search(sign, line)):
                if name in OF_THE_FAULT:
                    self.said.append(line)
                if name not in OF_THE_NEXT_START or "started" in self.marks:
                    self.marks.setdefault(name, since_s)


def table(outcomes: Sequence[Outcome]) -> str:
    """For people, and for docs/faults.md as it is."""
    lines = [
        "| what was cut or slow | told | requeued | started | ranks met | first step | ended | survived | "
        "bytes that differ |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for outcome in outcomes:
        seconds = [f"{outcome.marks[name]:.1f}" if name in outcome.marks else "" for name in (*SIGNS, "ended")]
        survived = "yes" if outcome.submissions == 1 else f"yes, submitted {outcome.submissions} times"
        bytes_ = sum(difference.bytes + difference.rows for difference in outcome.differences)
        cells = [outcome.case.name, *seconds, survived if outcome.survived else "no", f"{bytes_:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.links", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--only", default="", help="cases whose name has this in it, as a regular expression")
    parser.add_argument("--set", nargs="+", default=[], help="settings for all of them, such as run.step_timeout_s=10")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "links", help="is made anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    cases = [case for case in CASES if re.search(options.only, case.name)]
    cases = [Case(**{**vars(case), "settings": (*options.set, *case.settings)}) for case in cases]
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    undisturbed = run_undisturbed(folder / "undisturbed", tuple({case.stage for case in cases}))
    print(f"undisturbed: {undisturbed.elapsed_s}", flush=True)
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        places = [folder / f"{number:02d}" for number in range(len(cases))]
        try:
            for outcome in pool.map(lambda case, place: play(case, undisturbed, place), cases, places):
                outcomes.append(outcome)
                _tell(outcome)
        except KeyboardInterrupt:  # those under way clean up behind themselves
            INTERRUPTED.set()
            pool.shutdown(cancel_futures=True)
    (folder / "outcomes.json").write_text(json.dumps(outcomes, default=vars, indent=1))
    print(f"\n{table(outcomes)}")
    return 130 if INTERRUPTED.is_set() else int(not all(outcome.survived for outcome in outcomes))


def _tell(outcome: Outcome) -> None:
    marks = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.marks.items())
    print(f"{outcome.case.name}: {marks}; {outcome.submissions} submissions, frames {outcome.frames}", flush=True)
    for line in dict.fromkeys((*outcome.said, *filter(None, [outcome.failure]), *map(str, outcome.differences))):
        print(f"    {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
