"""Links that are cut or slow under real jobs: `python -m tests.faults.links` prints the table of docs/faults.md.

A case has a SLURM of its own, of three nodes with addresses of their own. slurm/train.sbatch trains on two of them, the
third one is for whatever comes; the tracking server is a node too. The batch script and the first rank are on n1.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.jobs.slurm_cluster import Cluster, cluster
from tests.launching import QUIET
from tests.tracking.servers import MLFLOW

from .comparing import Difference, differences
from .places import Place, a_place
from .playing import Undisturbed, refuse_crash
from .processes import HungError
from .stages import STAGES, STEPS
from .two_nodes import NODES
from .undisturbed import run_undisturbed

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_S = 400.0
FOR_EVER = None
BEFORE_RANKS_MEET = "start"


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
    def name(self) -> str:
        node = {"n1": "first rank's node, script and store", "n2": "other node", MLFLOW: "tracking server"}[self.node]
        what = f"{1000 * self.delay_s:.0f} ms each way" if self.delay_s else f"{100 * self.loss:.0f} % lost"
        how = "cut" if self.loss == 1 else what
        when = {BEFORE_RANKS_MEET: ", before the ranks have met", f"step {STEPS}/": ", as it publishes"}.get(
            self.when, ""
        )
        return f"{self.engine}: {node} {how} {'for ever' if self.for_s is None else f'for {self.for_s:g} s'}{when}"


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


SIGNS = {  # the first line behind the fault in which each is found
    "told": r"^aumn: .*(exit code 1\)|other rank|is gone|did not answer|does not answer|has not answered)",
    "requeued": r"requeued, to go on|CANCELLED AT .* DUE TO (NODE FAILURE|JOB REQUEUE)",
    "started": r"^aumn: job \d+ on",
    "met": r" held out; steps \d+ to ",
    "step": r"^step \d+/",
}


def play(case: Case, undisturbed: Undisturbed, folder: Path, slurm_settings: str = "") -> Outcome:
    """`slurm_settings` are lines of slurm.conf."""
    outcome, stage = Outcome(case), f"train {case.engine}" if case.engine != "ddp" else "train"
    with (
        a_place(folder, undisturbed.blank_database, is_networked=True, needs_server=case.node == MLFLOW) as place,
        cluster(len(NODES), place.network, slurm_settings) as slurm,
    ):
        try:
            _run(case, undisturbed, place, slurm, outcome)
            said = place.log.read_text(errors="replace")
            outcome.differences = differences(STAGES[stage], undisturbed.places[stage], place, said)
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _run(case: Case, undisturbed: Undisturbed, place: Place, slurm: Cluster, outcome: Outcome) -> None:
    stage = STAGES[f"train {case.engine}" if case.engine != "ddp" else "train"]
    _, *arguments = [*stage.arguments(undisturbed.inputs), "run.step_timeout_s=null", *case.settings]
    log = _Log(place.log)
    while True:
        outcome.submissions += 1
        job = _submit(slurm, place, [*arguments, *(["--resume"] if outcome.submissions > 1 else [])])
        if outcome.submissions == 1:
            if case.when == BEFORE_RANKS_MEET:
                slurm.wait_until(lambda: slurm.has_tasks(case.node), "task", timeout_s=MOST_S)
            else:
                log.wait_for(case.when, lambda job=job: _state(slurm, job) is None)
            if case.loss == 1:
                place.network.cut(case.node, for_s=case.for_s)
            else:
                place.network.slow(case.node, delay_s=case.delay_s, loss=case.loss, for_s=case.for_s)
            log.begin()
        log.wait_for("\0", lambda job=job: _state(slurm, job) is None)
        outcome.frames = place.network.counts()
        code = _code(slurm, job)
        outcome.marks |= {"ended": log.since_s()} | log.marks
        outcome.said = log.told
        refuse_crash(0, log.text)
        if code == 0 or outcome.submissions == 4:
            break
        place.network.restore()  # what a user mends before the next submission
    if code:
        raise HungError(f"exit code {code} after {outcome.submissions} submissions")
    if "aumn deliver " in log.text:
        place.network.restore()
        environment = {**os.environ, **QUIET, **place.environment()}
        slurm.run(
            "env", *_pairs(environment), sys.executable, "-m", "aumn", "deliver", place.work / "run", timeout_s=120
        )


def _submit(slurm: Cluster, place: Place, arguments: Sequence[object]) -> str:
    environment = {
        **QUIET,
        "MLFLOW_TRACKING_URI": place.environment()["MLFLOW_TRACKING_URI"],
        "PYTHONPATH": str(REPOSITORY),
    }
    environment["AUMN"] = str(Path(sys.executable).parent / "aumn")
    options = ["-N2", "--ntasks-per-node=1", "--parsable", f"--output={place.log}", f"--chdir={place.work}"]
    script = [REPOSITORY / "slurm" / "train.sbatch", *arguments]
    return slurm.run("env", *_pairs(environment), "sbatch", *options, *script).strip()


def _pairs(environment: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _facts(slurm: Cluster, job: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", slurm.run("scontrol", "show", "job", job)))


def _state(slurm: Cluster, job: str) -> str | None:
    """None: it has ended."""
    state = _facts(slurm, job)["JobState"]
    return state if state in {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"} else None


def _code(slurm: Cluster, job: str) -> int:
    return int(_facts(slurm, job)["ExitCode"].partition(":")[0])


class _Log:
    """A job's log as it grows; `marks` says when each of SIGNS came, in seconds behind `begin`."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.marks, self.told = path, "", {}, []
        self.begin_s, self._from = None, 0

    def begin(self) -> None:
        self.begin_s, self._from = time.monotonic(), len(self.text)

    def since_s(self) -> float:
        return time.monotonic() - self.begin_s if self.begin_s is not None else 0.0

    def wait_for(self, sign: str, has_ended) -> None:
        """Until a line begins so, or the job has ended."""
        end_s, looked_s = time.monotonic() + MOST_S, time.monotonic()
        while not re.search(f"(?m)^{re.escape(sign)}", self.text):
            if time.monotonic() - looked_s > 1:  # a question to the controller costs more than a look at a file
                looked_s = time.monotonic()
                if has_ended():
                    self._read()
                    return
            if time.monotonic() > end_s:
                raise HungError(f"not over after {MOST_S:.0f} s; the log says\n{self.text[-1500:]}")
            time.sleep(0.05)
            self._read()

    def _read(self) -> None:
        with_more = self.path.read_text(errors="replace") if self.path.exists() else ""
        new, self.text = with_more[len(self.text) :], with_more
        if self.begin_s is None or not new:
            return
        behind = self.text[self._from :]
        for name, sign in SIGNS.items():
            after_start = behind[match.start() :] if (match := re.search(f"(?m){SIGNS['started']}", behind)) else ""
            where = behind if name in {"told", "requeued", "started"} else after_start
            if name not in self.marks and re.search(f"(?m){sign}", where):
                self.marks[name] = self.since_s()
        self.told = re.findall(f"(?m){SIGNS['told']}.*|(?:aumn: )?.*{SIGNS['requeued']}.*", behind) and [
            line for line in behind.splitlines() if re.search(f"{SIGNS['told']}|{SIGNS['requeued']}", line)
        ]


def table(outcomes: Sequence[Outcome]) -> str:
    """For people, and for docs/faults.md as it is."""
    lines = [
        "| what was cut or slow | told | requeued | started | ranks met | first step | ended | by itself | "
        "bytes that differ |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for outcome in outcomes:
        seconds = [f"{outcome.marks[name]:.1f}" if name in outcome.marks else "" for name in (*SIGNS, "ended")]
        itself = "yes" if outcome.submissions == 1 else f"no, {outcome.submissions} submissions"
        bytes_ = sum(difference.bytes + difference.rows for difference in outcome.differences)
        cells = [outcome.case.name, *seconds, itself if outcome.failure is None else "no", f"{bytes_:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.links", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--only", default="", help="cases whose name has this in it, as a regular expression")
    parser.add_argument("--set", nargs="+", default=[], help="settings for all of them, such as run.step_timeout_s=10")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "links", help="is made anew")
    options = parser.parse_args()
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    cases = [case for case in CASES if re.search(options.only, case.name)]
    cases = [Case(**{**vars(case), "settings": (*options.set, *case.settings)}) for case in cases]
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    stages = {"train" if case.engine == "ddp" else f"train {case.engine}" for case in cases}
    undisturbed = run_undisturbed(folder / "undisturbed", tuple(stages))
    print(f"undisturbed: {undisturbed.elapsed_s}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = []
        places = [folder / f"{number:02d}" for number in range(len(cases))]
        for outcome in pool.map(lambda case, place: play(case, undisturbed, place), cases, places):
            outcomes.append(outcome)
            _tell(outcome)
    (folder / "outcomes.json").write_text(json.dumps(outcomes, default=vars, indent=1))
    print(f"\n{table(outcomes)}")
    return int(not all(outcome.survived for outcome in outcomes))


def _tell(outcome: Outcome) -> None:
    marks = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.marks.items())
    print(f"{outcome.case.name}: {marks}; {outcome.submissions} submissions, frames {outcome.frames}", flush=True)
    for line in dict.fromkeys((*outcome.said, *filter(None, [outcome.failure]), *map(str, outcome.differences))):
        print(f"    {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
