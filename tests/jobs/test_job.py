"""Jobs as data: all problems told at once, and the sbatch commands read as text, with hostile values."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from aumn.jobs.job import build, load_job
from aumn.jobs.job_folder import JobFolder
from aumn.jobs.queue import Task, read_sacct, read_squeue
from aumn.jobs.rehearsal import rehearse
from aumn.jobs.submit import dry_run
from aumn.records import InputError
from aumn.runtime.ranks import rendezvous
from tests.launching import aumn

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {"data": {"shards": "shards"}, "run": {"folder": "run", "steps": 3}}
HOSTILE = """a b;touch pwned $(touch pwned) `touch pwned` && touch pwned | ' " * ~ {point} # \\"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run configuration, in which jobs are written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def write(place, steps, **fields):
    (place / "job.yaml").write_text(yaml.safe_dump({"name": "mine", "steps": steps, **fields}, sort_keys=False))
    return place / "job.yaml"


PIPELINE = {
    "pack": {"run": "pack {features} shards --annotations gt.json", "resources": {"cpus_per_rank": 8, "memory_gb": 32}},
    "train": {
        "needs": ["pack"],
        "run": "train c.yaml run.folder={folder}/{point}",
        "resources": {"nodes": 2, "ranks_per_node": 4, "gpus_per_node": 4, "minutes": 90, "options": ["--qos=long"]},
        "sweep": {"axes": {"model.units": [1, 7], "loss": {"all": {}, "none": {"loss.diversity": 0}}}, "at_most": 2},
    },
}


def test_the_commands_are_a_script_that_says_everything_sbatch_is_told(place):
    (place / "slurm").mkdir()
    job = load_job(write(place, PIPELINE, settings={"features": "f"}), ["steps.pack.resources.minutes=5"])
    lines = [line.replace(str(place), "HERE") for line in dry_run(job) if not line.startswith("#")]
    assert [re.sub(r"AUMN=\S+", "AUMN=aumn", line) for line in lines] == [
        "pack=$(env AUMN_JOB=mine AUMN_JOB_FOLDER=HERE/runs/jobs/mine AUMN=aumn AUMN_STEP=pack AUMN_MOST_RESTARTS=10 "
        "sbatch --parsable --job-name=mine.pack --chdir=HERE --output=HERE/runs/jobs/mine/logs/pack.log "
        "--open-mode=append --export=ALL --nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --mem=32G --time=5 --requeue "
        "HERE/slurm/step.sbatch pack f shards --annotations gt.json)",
        "train=$(env AUMN_JOB=mine AUMN_JOB_FOLDER=HERE/runs/jobs/mine AUMN=aumn AUMN_STEP=train "
        "AUMN_MOST_RESTARTS=10 sbatch --parsable --job-name=mine.train --chdir=HERE "
        "--output=HERE/runs/jobs/mine/logs/train.%a.log --open-mode=append --export=ALL --nodes=2 "
        "--ntasks-per-node=4 --cpus-per-task=1 --gpus-per-node=4 --time=90 --requeue --signal=USR1@120 "
        '--array=0,1,2,3%2 --qos=long --dependency="afterok:$pack" --kill-on-invalid-dep=yes '
        "HERE/slurm/train.sbatch --points HERE/runs/jobs/mine/points/train)",
    ]


def test_spare_nodes_are_asked_for_beyond_those_that_train(place):
    resources = {"nodes": 2, "spare_nodes": 1, "ranks_per_node": 4}
    (line,) = dry_run(load_job(write(place, {"train": {"run": "train c.yaml", "resources": resources}})))
    assert "AUMN_SPARE_NODES=1 sbatch " in line
    assert " --nodes=3 --ntasks-per-node=4 " in line


def test_a_sweep_has_a_point_for_every_combination_and_a_file_of_arguments_for_each(place):
    job = load_job(write(place, PIPELINE, settings={"features": "f"}))
    JobFolder.of(job).write()
    points = [point.name for point in job.step("train").points]
    assert points == ["units=1,all", "units=1,none", "units=7,all", "units=7,none"]
    written = (place / "runs/jobs/mine/points/train/3").read_text().splitlines()
    assert written == [
        "c.yaml", f"run.folder={place}/runs/jobs/mine/units=7,none", "model.units=7", "loss.diversity=0",
    ]  # fmt: skip


def test_points_that_take_different_resources_are_groups_one_after_the_other(place):
    ranks = {"one": {"resources.nodes": 1}, "two": {"resources.nodes": 2}}
    step = {"run": "train c.yaml run.folder={folder}/{point}", "sweep": {"axes": {"n": ranks, "run.seed": [0, 1]}}}
    first, second = (line for line in dry_run(load_job(write(place, {"train": step}))) if not line.startswith("#"))
    assert re.search(r"--nodes=1 .* --array=0,1 ", first)
    assert re.search(r'^train_1=.* --nodes=2 .* --array=2,3 --dependency="afterany:\$train"', second)


def test_jobs_that_take_over_wait_for_all_before_and_a_later_step_for_any(place):
    steps = {
        "train": {"run": "train c.yaml", "resources": {"follow_ups": 2}},
        "after": {"run": "pack x y", "needs": ["train"]},
    }
    lines = list(dry_run(load_job(write(place, steps))))
    waits = [(line.partition("=")[0], *re.findall(r'--dependency="(.*?)"', line)) for line in lines]
    assert waits == [
        ("train",),
        ("train_1_later", "afternotok:$train"),
        ("train_2_later", "afternotok:$train,afternotok:$train_1_later"),
        ("after", "afterok:$train?afterok:$train_1_later?afterok:$train_2_later"),
    ]
    assert ["AUMN_FOLLOWS=1" in line for line in lines] == [False, True, True, False]


def test_no_value_becomes_shell_syntax(place):
    """The printed script, run by a real bash with an sbatch that notes what it was given."""
    (place / "sbatch").write_text('#!/bin/sh\nprintf "%s\\0" "$@" "$AUMN_JOB_FOLDER" >> got\n')
    (place / "sbatch").chmod(0o755)
    folder = Path("""runs/a b;touch pwned $(touch pwned) `touch pwned`'"{x}""")
    job = load_job(write(place, PIPELINE, settings={"features": HOSTILE}), folder=folder)
    script = "\n".join(dry_run(job))
    subprocess.run(["bash", "-c", f"PATH={place}:$PATH\n{script}"], check=True, timeout=30, cwd=place)
    got = (place / "got").read_text().split("\0")
    assert HOSTILE in got
    assert got.count(str(place / folder)) == 2
    assert f"--output={place / folder}/logs/pack.log" in got
    assert not list(place.rglob("*pwned"))


class Node:
    """A machine on which the batch script itself runs, with an srun that plays training and a scontrol that listens."""

    def __init__(self, place: Path, scontrol: str = 'echo "$@" >> called', script: str = "train.sbatch") -> None:
        self.place, self.script, self.scontrol = place, REPOSITORY / "slurm" / script, scontrol

    def run(self, training: str, *, nodes_answer: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        is_probe = f'case "$*" in *\\ true) exit {int(not nodes_answer)};; esac'
        for program, body in {"srun": f"{is_probe}\n{training}", "scontrol": self.scontrol}.items():
            (self.place / program).write_text(f"#!/bin/sh\n{body}\n")
            (self.place / program).chmod(0o755)
        names = {"SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_RESTART_COUNT": "3"}
        names |= {"PATH": f"{self.place}:/usr/bin:/bin", **variables}
        arguments = ["--points", "points"] if "SLURM_ARRAY_TASK_ID" in names else ["c.yaml"]
        command = ["bash", self.script, *arguments]
        return subprocess.run(command, env=names, cwd=self.place, capture_output=True, text=True, timeout=60)  # noqa: PLW1510

    def requeued(self) -> list[str]:
        called = self.place / "called"
        return called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (2, "failed"), (1, "failed"), (75, "requeued")])
def test_how_training_ended_is_known_when_slurm_has_forgotten_it(place, monkeypatch, code, state):
    folder = JobFolder.of(load_job(write(place, {"train": {"run": "train c.yaml"}})))
    folder.write()
    folder.record("train", [0], job_id="5")
    node = Node(place)
    done = node.run(f"exit {code}", AUMN_JOB_FOLDER=str(folder.path), AUMN_STEP="train")
    monkeypatch.setattr("aumn.jobs.job_folder.look_up", lambda *_: {})
    (status,) = JobFolder.open(folder.path).statuses()
    if state == "requeued":
        assert (done.returncode, node.requeued()) == (75, ["requeue 5"])
        assert status.reason == "ended without a word, and SLURM has forgotten it"
    else:
        assert (done.returncode, node.requeued()) == (code, [])
        assert (status.state, status.nodes, status.restarts) == (state, "n[1-2]", 3)


@pytest.mark.parametrize(
    ("srun", "code", "saved", "ends"),
    [
        (1, 1, 20, 75), (137, None, 20, 75), (1, 1, 10, 1), (137, None, 10, 137), (137, 2, 20, 2), (143, 75, 10, 75),
        (137, 0, 20, 0), (138, None, 10, 75),
    ],
)  # fmt: skip
def test_what_the_run_says_of_its_end_counts_and_else_what_srun_says(place, srun, code, saved, ends):
    """A task that srun ends decides about srun's code alone; this start began at step 10."""
    status = json.dumps({"state": "x", "why": '"code": 7,\n  "code": 8,', "code": code, "step": saved}, indent=2)
    (place / "a run").mkdir()
    (place / "a run" / "status.json").write_text(status)
    node = Node(place)
    done = node.run(f'echo "10 $PWD/a run" > "$AUMN_NOTE"; exit {srun}')
    assert (done.returncode, node.requeued()) == (ends, ["requeue 5"] * (ends == 75))
    if ends in {1, 137}:
        assert f"exit code {ends}, with no checkpoint written since this start and no node lost: not r" in done.stderr
    assert len(list(place.glob(".aumn-note*"))) == (ends == 75)


@pytest.mark.parametrize("restarts", ["0", "1"])  # 1: where a node failed before the script began
@pytest.mark.parametrize(
    ("word", "code"), [("5 75 n1 0 9", 0), ("5 2 n1 0 9", 1), ("5 137 n1 0 9", 1), ("", 1), (None, 1)]
)
def test_a_job_that_takes_over_does_so_once_and_only_where_the_one_before_said_so(place, word, code, restarts):
    outcome = place / "outcomes" / "train.0"
    outcome.parent.mkdir()
    if word is not None:
        outcome.write_text(word)
    variables = {"AUMN_JOB_FOLDER": str(place), "AUMN_STEP": "train", "AUMN_FOLLOWS": "1"}
    done = Node(place).run("cat outcomes/train.0; exit 0", SLURM_RESTART_COUNT=restarts, **variables)
    assert done.returncode == code
    assert ("left no word that it is to be gone on with: nothing is done." in done.stderr) == bool(code)
    assert done.stdout == "", "the word is for one job alone"
    found = outcome.read_text() if outcome.exists() else None
    assert re.fullmatch(rf"5 0 n\[1-2\] {restarts} \d+\n", found) if code == 0 else found == word
    again = Node(place).run("exit 0", SLURM_RESTART_COUNT="2", **variables)
    assert again.returncode == code, "a requeued one goes on"


def test_a_script_that_cannot_requeue_itself_leaves_word(place):
    (place / "outcomes").mkdir()
    node = Node(place, scontrol="exit 127")
    variables = {"AUMN_JOB_FOLDER": str(place), "AUMN_STEP": "train"}
    assert node.run("exit 137", nodes_answer=False, **variables).returncode == 75
    assert (place / "outcomes" / "train.0").read_text().split()[:2] == ["5", "75"]


@pytest.mark.parametrize("code", [75, 1, 0])
def test_a_script_that_slurm_told_to_end_requeues_nothing(place, code):
    """As scancel and a time limit do; how training ended is noted where that is settled."""
    (place / "outcomes").mkdir()
    node = Node(place)
    variables = {"AUMN_JOB_FOLDER": str(place), "AUMN_STEP": "train"}
    assert node.run(f"kill -TERM $PPID; exit {code}", nodes_answer=False, **variables).returncode == code
    assert (node.requeued(), (place / "outcomes/train.0").exists()) == ([], code == 0)


@pytest.mark.parametrize(("state", "called"), [("COMPLETING", []), ("RUNNING", ["requeue 5"]), ("", ["requeue 5"])])
def test_a_job_that_slurm_has_ended_stays_so_though_this_node_has_not_heard_of_it(place, state, called):
    """Ranks on other nodes hear of scancel before the script does where its node is slow or cut off."""
    (place / "outcomes").mkdir()
    (place / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    (place / "squeue").chmod(0o755)
    node = Node(place)
    done = node.run("exit 75", AUMN_JOB_FOLDER=str(place), AUMN_STEP="train")
    assert (done.returncode, node.requeued(), (place / "outcomes/train.0").exists()) == (75, called, False)


@pytest.mark.parametrize(
    ("ends", "state", "called", "word"),
    [
        ("exit 75", "RUNNING", ["requeue 5"], False),
        ("exit 143", "RUNNING", ["requeue 5"], False),
        ("exit 75", "COMPLETING", [], False),
        ("kill -TERM $PPID; exit 75", "RUNNING", [], False),
        ("exit 2", "RUNNING", [], True),
    ],
)
def test_any_other_step_that_is_asked_to_stop_starts_again_unless_slurm_ends_the_job(place, ends, state, called, word):
    """With a grace time, a preemption asks the ranks first: the step ended before SLURM would have requeued it."""
    (place / "outcomes").mkdir()
    (place / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    (place / "squeue").chmod(0o755)
    node = Node(place, script="step.sbatch")
    node.run(ends, AUMN_JOB_FOLDER=str(place), AUMN_STEP="pack")
    assert (node.requeued(), (place / "outcomes/pack.0").exists()) == (called, word)


SCONTROL = """case "$1 $2" in
"show hostnames") echo "$3" | tr , '\\n' ;;
"show job") echo "   ReqNodeList=${REQUIRED:-(null)} ExcNodeList=$EXCLUDED" ;;
*) echo "$@" >> called ;;
esac"""


@pytest.mark.parametrize(
    ("spare", "says", "code", "called", "bad", "told"),
    [
        ("2", "healthy", 2, [], [], "of 2 nodes 2 are to be spare (AUMN_SPARE_NODES), which leaves none to train on"),
        ("1", "", 9, [], [], "no node is left out, since none says more of itself than: nothing"),
        ("1", "the shared files: no space", 9, [], [], "none says more of itself than: aumn-node n1 the shared files:"),
        (
            "1",
            "its disk: x",
            75,
            ["requeue 5", "update JobId=5 ExcNodeList=n1,n2"],
            ["n1", "n2"],
            "0 of 2 are: requeued",
        ),
        ("1", "healthy", 9, [], [], "training runs on n1"),
    ],
)
def test_what_fails_on_all_nodes_alike_is_the_fault_of_none(place, spare, says, code, called, bad, told):
    """No aumn on the nodes, or a full disk: requeued ten times, the job would exclude healthy nodes for a week."""
    (place / "sinfo").write_text("#!/bin/sh\necho 9 idle\n")
    (place / "sinfo").chmod(0o755)
    answer = (
        f'case "$*" in *--relative=0*) node=n1;; *) node=n2;; esac; [ -z "{says}" ] || echo "aumn-node $node {says}"'
    )
    node = Node(place, SCONTROL)
    variables = {"AUMN_SPARE_NODES": spare, "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_PARTITION": "main"}
    training = f'case "$*" in *doctor*) {answer}; exit 0;; esac; exit 9'
    done = node.run(training, SLURM_JOB_NODELIST="n1,n2", **variables)
    assert (done.returncode, node.requeued()) == (code, called), done.stderr
    assert re.findall(r"(n\d) is left out", done.stderr) == bad
    assert told in done.stderr


@pytest.mark.parametrize(
    ("noted", "excluded", "there", "told"),
    [
        ([], "(null)", 9, []),
        (["n2 NOW slow", "n3 LONG_AGO slow"], "(null)", 9, ["update JobId=5 ExcNodeList=n2"]),
        (["n2 NOW slow"], "n8,n7", 9, ["update JobId=5 ExcNodeList=n2,n7,n8"]),
        ([f"n{node} NOW slow" for node in range(7)], "(null)", 9, ["update JobId=5 ExcNodeList=n3,n4,n5,n6"]),
        (["n2 NOW slow", "n3 NOW slow"], "(null)", 3, []),  # two of three, where two are needed
        (["n2 NOW slow"], "(null) REQUIRED", 9, []),
    ],
)
def test_a_requeued_job_goes_round_bad_nodes_where_enough_are_left(place, noted, excluded, there, told):
    times = {"NOW": f"{time.time():.0f}", "LONG_AGO": f"{time.time() - 8 * 86_400:.0f}"}
    lines = "".join(f"{line}\n" for line in noted)
    (place / "bad_nodes").write_text(re.sub("NOW|LONG_AGO", lambda found: times[found[0]], lines))
    (place / "outcomes").mkdir()
    (place / "sinfo").write_text(f"#!/bin/sh\necho 2 idle\necho {there - 2} mixed\necho 5 drained\necho 5 'down*'\n")
    (place / "sinfo").chmod(0o755)
    node = Node(place, SCONTROL)
    job = {"AUMN_JOB_FOLDER": str(place), "AUMN_STEP": "train", "SLURM_JOB_PARTITION": "main"}
    job |= {"EXCLUDED": excluded.split()[0], "REQUIRED": "n[2-3]" if "REQUIRED" in excluded else ""}
    done = node.run("exit 75", **job)
    assert (done.returncode, node.requeued()) == (75, ["requeue 5", *told])
    assert ("too few nodes would be left without n2 n3, so they are used again" in done.stderr) == (there == 3)


def test_a_requeued_attempt_knows_when_the_one_before_ended_and_when_it_began_itself(place):
    node, times = Node(place), 'echo "${AUMN_LOST_MS:-none} $AUMN_BEGAN_MS" > times'
    found = []
    for nodes_answer in (False, True, True):  # a node is lost; then nothing helps, so nothing is left to be known
        node.run(f"{times}; exit 137", nodes_answer=nodes_answer)
        found.append((place / "times").read_text().split())
    (first, _), (lost_ms, began_ms), (third, _) = found
    assert (first, third) == ("none", "none")
    assert 0 <= int(began_ms) - int(lost_ms) < 60_000


@pytest.mark.parametrize("most", ["2", "0"])
def test_a_batch_script_gives_up_after_so_many_restarts(place, most):
    done = Node(place).run("exit 0", AUMN_MOST_RESTARTS=most)
    assert done.returncode == 1
    assert f"restarted {most} times, which is the most allowed" in done.stderr


def test_a_task_of_an_array_is_given_its_point_word_by_word_and_requeues_itself_alone(place):
    """Of the task that started last, SLURM_JOB_ID is the array's: requeued by it, every point would start again."""
    (place / "points").mkdir()
    (place / "points" / "2").write_text(f"c.yaml\n{HOSTILE}\n")
    node = Node(place)
    node.run('printf "%s\\0" "$@" > got; exit 75', SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2")
    assert (place / "got").read_text().split("\0")[-5:] == ["aumn", "train", "c.yaml", HOSTILE, ""]
    assert not list(place.rglob("*pwned"))
    assert node.requeued() == ["requeue 5_2"]


def test_a_requeued_job_tries_another_port(place, monkeypatch):
    """The first one may be taken, and its number stays the job's."""
    monkeypatch.setenv("PATH", "/nowhere")  # a container has no command of SLURM
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[3-4]")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    found = set()
    for restarts in range(11):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        found.add(rendezvous())
    assert len(found) == 11
    assert all(host == "n3" and 20_000 <= port < 40_000 for host, port in found)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[4-5]")  # n3 is a spare node, or was not healthy
    assert rendezvous()[0] == "n4"


def test_every_problem_is_told_at_once(place):
    steps = {
        "pack": {"run": "pak {features} shards", "resources": {"nodes": 1}},
        "train": {"needs": ["pakc"], "run": "train c.yaml {foldre}"},
    }
    with pytest.raises(InputError) as refused:
        load_job(write(place, steps, settings={"features": "-x\n", "point": 1}))
    text = str(refused.value)
    assert "(5 to mend)" in text, text
    assert "settings.features='-x\\n' must not begin with - nor hold control characters" in text
    assert "settings.point: {point} is filled in by aumn" in text
    assert "steps.train.needs: there is no step pakc; the steps are pack, train" in text
    assert "steps.pack.run: must begin with a command of aumn, one of evaluate, " in text
    assert "steps.train.run: {foldre} is not known; there are features, folder, point." in text


SWEEP = {"run": "train c.yaml run.folder={folder}/{point}"}
WRONG = {
    "a field": ({"a": {"run": "pack x y", "need": []}}, r"steps\.a\.need is no field of a job"),
    "a number": ({"a": {"run": "pack x y", "resources": {"nodes": 0}}}, r"a\.resources\.nodes=0: .*greater than"),
    "a name": ({"a; b": {"run": "pack x y"}}, r"steps\.a; b"),
    "a circle": ({"a": {"run": "pack x y", "needs": ["b"]}, "b": {"run": "pack x y", "needs": ["a"]}}, r"a, b need"),
    "a quote": ({"a": {"run": "pack 'x"}}, r"steps\.a\.run: no closing quotation"),
    "a line break": ({"a": {"run": 'pack "x\ny"'}}, r"must not hold control characters"),
    "an option of ours": (
        {"a": {"run": "pack x y", "resources": {"options": ["--dep=afterok:1"]}}}, r"'--dep=afterok:1' must read --n",
    ),
    "a limit below the signal": (
        {"a": {"run": "pack x y", "resources": {"minutes": 1}}}, r"minutes=1 ends before signal_s=120",
    ),
    "a choice that names no folder": (
        {"a": {**SWEEP, "sweep": {"axes": {"data.shards": ["x/y"]}}}}, r"'shards=x/y' must be letters",
    ),
    "a sweep of no training": (
        {"a": {"run": "pack x y", "sweep": {"axes": {"model.units": [1]}}}}, r"only train has the field model\.units",
    ),
    "resources of a point": (
        {"a": {**SWEEP, "sweep": {"axes": {"resources.nodes": [0, 2]}}}}, r"a\.sweep, nodes=0: resources\.nodes=0",
    ),
    "a setting of the run": (
        {"a": {**SWEEP, "sweep": {"axes": {"model.unts": [1]}}}}, r"a\[unts=1\]: .*\n.*model\.unts is not a setting",
    ),
    "jobs that take over a sweep": (
        {"a": {**SWEEP, "resources": {"follow_ups": 1}, "sweep": {"axes": {"run.seed": [0, 1]}}}},
        r"a\.resources\.follow_ups: only a train step without a sweep",
    ),
    "jobs that take over, and others": (
        {
            "a": {"run": "train c.yaml", "resources": {"follow_ups": 1}},
            "b": {"run": "pack x y"},
            "c": {"run": "pack x y", "needs": ["a", "b"]},
        },
        r"steps\.c cannot wait for whichever of the jobs of a ends well and for others",
    ),
    "spare nodes of no training": (
        {"a": {"run": "pack x y", "resources": {"spare_nodes": 1}}}, r"a\.resources\.spare_nodes: only train looks",
    ),
    "another store": ({"a": {"run": "train c.yaml tracking.uri=sqlite:///x.db"}}, r"is not the job's, None"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, place):
    steps, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        load_job(write(place, steps))


SECRET = "https://me:hunter2@server"
PASSWORDS = [
    {"tracking": {"uri": SECRET}},
    {"settings": {"store": SECRET}, "steps": {"a": {"run": "models promote m 1 x --tracking-uri {store}"}}},
    {"steps": {"a": {"run": f"models promote m 1 x --tracking-uri={SECRET}"}}},
    {"steps": {"a": {"run": "train c.yaml", "sweep": {"axes": {"which": {"one": {"tracking.uri": SECRET}}}}}}},
]


@pytest.mark.parametrize("fields", PASSWORDS)
def test_a_password_has_no_place_in_a_job(place, fields):
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_PASSWORD") as refused:
        load_job(write(place, **{"steps": {"a": {"run": "pack x y"}}, **fields}))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_that_come_with_aumn_are_jobs(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    job = load_job(path)
    assert job.plan.name == path.stem
    for line in dry_run(job):
        assert line.startswith("#") or shlex.split(line)


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs SLURM's commands: make install-slurm")
@pytest.mark.parametrize("options", [[], ["--rehearse"]])
def test_without_a_cluster_that_answers_one_sentence_names_local(options, place, monkeypatch):
    monkeypatch.delenv("SLURM_CONF", raising=False)
    changes = ("--set", f"scripts={REPOSITORY / 'slurm'}")
    write(place, {"train": {"run": "train c.yaml"}}, tracking={"enabled": False})
    refused = aumn("submit", "job.yaml", *changes, *options, cwd=place)
    assert refused.returncode == 2
    assert "no cluster answers them: submit on a machine of the cluster" in refused.stderr
    assert "--local" in refused.stderr


@pytest.mark.parametrize("options", [["--step", "train"], ["--rehearse", "--local"], ["--rehearse", "--dry-run"]])
def test_options_that_would_do_nothing_are_refused(place, options):
    write(place, {"train": {"run": "train c.yaml"}})
    refused = aumn("submit", "job.yaml", *options, cwd=place)
    assert refused.returncode == 2
    assert "--step belongs to --rehearse, and that to neither --local nor --dry-run" in refused.stderr


@pytest.mark.parametrize(
    ("steps", "name", "said"),
    [
        ({"train": {"run": "train c.yaml"}}, "trian", "--step trian cannot be rehearsed: its train steps are train."),
        ({"pack": {"run": "pack x y"}}, None, "There is nothing to rehearse: it has no train step."),
    ],
)
def test_what_cannot_be_rehearsed_is_told(place, steps, name, said):
    with pytest.raises(InputError, match=re.escape(said)):
        rehearse(load_job(write(place, steps)), name, print)


def test_what_slurm_says_of_jobs_is_read():
    """Lines of a real squeue, spaces shortened, and of sacct as its manual has them."""
    text = (
        "2   |3   |PENDING   |0   |0:00   |aumn:x:train:1   |JobArrayTaskLimit   |   |\n"
        "2   |0   |RUNNING   |2   |1-00:00:07   |aumn:x:train:1   |None   |n[1-2]   |\n"
        "3   |N/A   |CANCELLED   |0   |1:02   |(null)   |None   |n3   |\n"
    )
    found = dict(read_squeue(text))
    assert found["2", 0] == Task("2", "RUNNING", "", "n[1-2]", 2, 86407, "aumn:x:train:1")
    assert found["2", 3] == Task("2", "PENDING", "JobArrayTaskLimit", comment="aumn:x:train:1")
    assert (found["3", 0].elapsed_s, found["3", 0].nodes) == (62, "n3")
    told = "7_0|COMPLETED|n1|12\n7_[1-2,5%2]|PENDING|None assigned|0\n8|CANCELLED by 0|n2|3\n"
    assert {key: task.state for key, task in read_sacct(told)} == {
        ("7", 0): "COMPLETED", ("7", 1): "PENDING", ("7", 2): "PENDING", ("7", 5): "PENDING", ("8", 0): "CANCELLED",
    }  # fmt: skip


@pytest.mark.parametrize("is_held", [True, False])
def test_a_rehearsal_takes_the_place_of_one_before_it_only_once_that_has_ended(place, monkeypatch, is_held):
    """One that still runs elsewhere has the folder's lock; of one that was killed, the job may still be ending."""
    job = load_job(write(place, {"train": {"run": "train c.yaml"}}))
    path = place / "runs/jobs/mine.rehearsal"
    before = JobFolder.of(build(job.plan.model_copy(update={"name": "mine.rehearsal"}), path, place))
    before.write()
    before.record("train", [0], comment="c", job_id="5")
    (path / "run").mkdir()
    seen, left = [], ["RUNNING", "COMPLETING", "CANCELLED", "CANCELLED"]

    def look_up(*_):
        seen.append((path / "run").exists())
        return {("5", 0): Task("5", left.pop(0) if left else "CANCELLED")}

    def submitted(*_):
        raise InputError("submitted")

    monkeypatch.setattr("aumn.jobs.job_folder.look_up", look_up)
    monkeypatch.setattr("aumn.jobs.queue.cancel", list)
    monkeypatch.setattr("aumn.jobs.rehearsal.submit", submitted)
    monkeypatch.setattr("aumn.jobs.rehearsal.POLL_S", 0.01)
    monkeypatch.setattr("aumn.files.LOCK_WAIT_S", 0.1)
    with JobFolder.lock(path) if is_held else nullcontext(), pytest.raises(InputError) as refused:
        rehearse(job, None, print)
    assert ("is being submitted or run by another aumn" in str(refused.value)) == is_held
    assert (path / "run").exists() == is_held
    assert seen[:3] == ([] if is_held else [True, True, True])


def test_a_rehearsal_whose_terminal_is_closed_is_cancelled_as_one_that_is_asked_to_stop(place, monkeypatch):
    """Else its job would run for fifteen minutes, and again after each."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    cancelled = []

    def hang_up(*_):
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr("aumn.jobs.rehearsal.submit", hang_up)
    monkeypatch.setattr("aumn.jobs.rehearsal.cancel_job", lambda *_: cancelled.append("cancelled"))
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            rehearse(load_job(write(place, {"train": {"run": "train c.yaml"}})), None, print)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert cancelled == ["cancelled"]
