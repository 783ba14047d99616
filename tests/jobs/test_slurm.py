"""Pipelines and sweeps on a real SLURM of four nodes: end to end, and whatever a cluster does to a job meanwhile."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from aumn.jobs import queue
from aumn.jobs.job import load_job
from aumn.jobs.job_folder import JobFolder, PointStatus
from aumn.jobs.submit import submit
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder
from aumn.runtime.nodelist import node_names
from tests.launching import aumn, python, succeed
from tests.running import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {
    "data": {"shards": "shards", "snippets": 24},
    "model": {"embedding_width": 16, "units": 3, "bottleneck": 4},
    "optimizer": {"learning_rate": 0.003},
    "batch": {"global_videos": 8},
    "run": {"folder": "unused", "steps": 12, "log_every": 2, "checkpoint_every": 4},
}


class Place:
    """A folder on what all nodes share, with shards to train on."""

    def __init__(self, root: Path, slurm) -> None:
        self.root, self.slurm = root, slurm
        features = root / "features"
        succeed(self.aumn("synth", features, "--videos", 30, "--classes", 3, "--width", 12, "--snippets", 40))
        succeed(self.aumn("pack", features, root / "shards", "--annotations", features / "gt.json"))
        (root / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))

    def aumn(self, *arguments, **options):
        return aumn(*arguments, cwd=self.root, **{"timeout_s": 600, **options})

    def write(self, name: str, steps: dict, **fields) -> Path:
        job = {"name": name, "scripts": str(REPOSITORY / "slurm"), "steps": steps, **fields}
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
        return self.root / f"{name}.yaml"

    def statuses(self, name: str) -> dict[str, PointStatus]:
        return {status.label: status for status in JobFolder.open(Path("runs/jobs") / name).statuses()}

    def log(self, name: str, step: str) -> str:
        path = self.root / "runs/jobs" / name / "logs" / f"{step}.log"
        return path.read_text() if path.exists() else ""

    def requeues(self, name: str, step: str) -> int:
        return self.log(name, step).count("requeued, to go on from the last checkpoint")

    def wait_for_log(self, name: str, step: str, text: str) -> None:
        self.slurm.wait_until(lambda: text in self.log(name, step), f"{text} of {step}", timeout_s=600)

    def wait(self, name: str, what: str, happened, *, timeout_s: float = 900) -> dict[str, PointStatus]:
        self.slurm.wait_until(lambda: happened(self.statuses(name)), what, timeout_s=timeout_s)
        return self.statuses(name)

    def weights(self, name: str, step: str) -> bytes:
        return (self.root / "runs/jobs" / name / step / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def place(slurm, tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Place(root, slurm)


def ended(statuses: dict[str, PointStatus]) -> bool:
    return not any(status.is_active for status in statuses.values())


def states(statuses: dict[str, PointStatus]) -> dict[str, str]:
    return {label: status.state for label, status in statuses.items()}


@pytest.mark.shared
def test_the_shrec21_pipeline_from_features_to_a_registered_model_by_one_command(place, shared_tools):
    features = place.root / "shrec21 features; touch pwned"
    succeed(python(shared_tools / "shrec21_features.py", features, timeout_s=600))
    config = REPOSITORY / "configs" / "shrec21.yaml"
    small = "run.steps=20 model.embedding_width=32 data.snippets=64 run.log_every=5"
    changes = (
        f"settings.features={features}",
        f"scripts={REPOSITORY / 'slurm'}",
        f"steps.train.run=train {config} data.shards={{shards}} run.folder={{folder}}/train {small}",
    )
    command = ("submit", REPOSITORY / "jobs/shrec21.yaml", *(word for change in changes for word in ("--set", change)))
    secret = {"MLFLOW_TRACKING_PASSWORD": "hunter2hunter2"}
    succeed(place.aumn(*command, **secret))
    statuses = place.wait("shrec21", "end of the pipeline", ended)
    assert set(states(statuses).values()) == {"done"}, [place.log("shrec21", step) for step in statuses]
    assert (statuses["train"].nodes, statuses["localize"].nodes) == ("n[1-2]", "n1")
    assert "on 4 ranks" in place.log("shrec21", "train")
    assert json.loads((place.root / "runs/jobs/shrec21/metrics.json").read_text())["population"]["videos"] == 72
    shown = succeed(place.aumn("models", "show", "aumn-shrec21")).stdout
    assert re.match(r"models:/aumn-shrec21/1 @(challenger, @champion|champion, @challenger) ", shown), shown
    assert "nothing to submit; all steps are done" in succeed(place.aumn(*command, **secret)).stderr
    assert states(place.statuses("shrec21")) == states(statuses)
    assert not list(place.root.rglob("pwned*"))
    assert_no_secret(place, "hunter2hunter2")
    assert_nested(place)


def assert_no_secret(place: Place, secret: str) -> None:
    """Not in a file of the job, its logs or the tracking store, and not in what SLURM shows to everyone."""
    for path in place.root.rglob("*"):
        if path.is_file() and path.suffix != ".npy":
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in place.slurm.run("scontrol", "show", "job", "--details")


def assert_nested(place: Place) -> None:
    """One parent run with every step in it, and their tags."""
    parent, nested = tracked(place, "shrec21")
    assert (parent["name"], parent["status"]) == ("shrec21", "FINISHED")
    assert {run["name"]: run["status"] for run in nested} == dict.fromkeys(
        ["pack", "train", "localize", "evaluate", "promote"], "FINISHED"
    )
    for run in (parent, *nested):
        assert re.fullmatch("[0-9a-f]{16}", run["tags"]["dataset_identity"]), run
    numbers = {run["tags"]["step"]: run["tags"]["slurm_job_id"] for run in nested}
    assert {f"slurm.{step}": number for step, number in numbers.items()}.items() <= parent["tags"].items()
    assert re.match("[0-9a-f]{40}", parent["tags"]["commit"])
    assert "mAP/average" in next(run["metrics"] for run in nested if run["name"] == "evaluate")


def tracked(place: Place, experiment: str) -> tuple[dict, list[dict]]:
    """The one run that holds a job, and those nested in it."""
    code = f"""
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
runs = client.search_runs([client.get_experiment_by_name("{experiment}").experiment_id])
facts = [{{**dict(run.info), **run.data.to_dictionary()}} for run in runs]
print(json.dumps([{{"name": run["run_name"], **run}} for run in facts]))
"""
    runs = json.loads(succeed(python("-W", "ignore", "-c", code, cwd=place.root)).stdout)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run["tags"]]
    nested = [run for run in runs if run is not parent]
    assert {run["tags"]["mlflow.parentRunId"] for run in nested} == {parent["run_id"]}
    return parent, nested


def test_a_sweep_runs_two_at_once_and_a_failing_point_is_named_and_alone(place):
    """Then the point's shards arrive; it, and the step that needs it, are tried again within the same tracked run.

    Meanwhile a tuning goes its way, of which a run is requeued.
    """
    seeds = {f"seed_{seed}": {"run.seed": seed} for seed in range(3)}
    points = {"seed_0": seeds.pop("seed_0"), "broken": {"data.shards": "later"}, **seeds}
    train = {
        "run": "train tiny.yaml run.folder={folder}/{point} tracking.experiment=sweep",
        "sweep": {"axes": {"which": points}, "at_most": 2},
    }
    after = {"needs": ["train"], "run": "synth {folder}/more --videos 2 --classes 1 --width 3"}
    job = place.write("sweep", {"train": train, "after": after}, tracking={"experiment": "sweep"})
    succeed(place.aumn("submit", job))
    most = []

    def done(statuses) -> bool:
        most.append([status.state for label, status in statuses.items() if label != "after"].count("running"))
        return ended(statuses)

    statuses = place.wait("sweep", "end of the sweep", done)
    assert max(most) == 2
    expected = {f"train[{point}]": "failed" if point == "broken" else "done" for point in points}
    assert states(statuses) == {**expected, "after": "cancelled"}
    told = place.aumn("jobs", "runs/jobs/sweep")
    assert told.returncode == 2
    assert "aumn: train[broken] failed: read the log" in told.stderr
    assert "exit code 2" in told.stdout
    assert "step 12/12" in told.stdout
    assert tracked(place, "sweep")[0]["status"] == "FAILED"

    (place.root / "later").symlink_to("shards")
    again = place.aumn("jobs", "runs/jobs/sweep", "--retry-failed").stderr
    assert re.search(r"train, 1 point \(broken\): submitted as job \d+\nafter: submitted as job", again), again
    tuned = begin_tuning(place)
    assert set(states(place.wait("sweep", "end of the point", ended)).values()) == {"done"}
    parent, nested = tracked(place, "sweep")
    assert parent["status"] == "FINISHED"
    assert {run["name"] for run in nested} == {*points, "after"}
    ids = {run["name"]: run["tags"]["slurm_job_id"] for run in nested}
    assert len(set(ids.values())) == len(ids), "each point is a job of its own"
    assert all(run["params"]["run.seed"] for run in nested if run["name"] in points)
    assert_tuned(place, tuned)


def begin_tuning(place: Place) -> list[object]:
    """jobs/tune.yaml of three configurations; its command."""
    small = "model.embedding_width=16 run.steps=400 run.checkpoint_every=20 tracking.experiment=tune"
    words = f"tune shards {small} --budget 3 --config {REPOSITORY}/configs/recommended.yaml --out {{folder}}/tuned"
    run = {"plan": f"{words} --only plan", "write": words}
    run |= {f"rung_{rung}": f"{words} --only {rung}.{{point}}" for rung in range(3)}
    changes = [f"steps.{step}.run={line}" for step, line in run.items()]
    places = ("{'0': {}, '1': {}, '2': {}}", "{'0': {}, '1': {}}", "{'0': {}}")
    changes += [f"steps.rung_{rung}.sweep.axes.place={of_rung}" for rung, of_rung in enumerate(places)]
    changes += [f"steps.rung_{rung}.resources={{ranks_per_node: 2}}" for rung in range(3)]
    changes += [f"scripts={REPOSITORY / 'slurm'}"]
    command = ["submit", REPOSITORY / "jobs/tune.yaml", *(word for change in changes for word in ("--set", change))]
    succeed(place.aumn(*command))
    return command


def assert_tuned(place: Place, command: list[object]) -> None:
    """The full run was asked to stop and went on; all runs are nested in the job's, and nothing is done twice."""
    run = place.root / "runs/jobs/tune/tuned/runs"
    place.wait_for_log("tune", "rung_1.0", "in rung 1: ")
    (name,) = re.findall(r"in rung 1: (\S+),", place.log("tune", "rung_1.0"))
    place.slurm.wait_until(lambda: list((run / name / "checkpoints").glob("step_*")), "a checkpoint", timeout_s=300)
    place.slurm.run("scancel", "--signal=USR1", place.statuses("tune")["rung_1[0]"].task_id)
    statuses = place.wait("tune", "end of the tuning", ended)
    assert set(states(statuses).values()) == {"done"}, [place.log("tune", step) for step in statuses]
    assert statuses["rung_1[0]"].restarts == 1
    assert "the same command goes on where it was" in place.log("tune", "rung_1.0")
    assert "its plan has no run 2.0" in place.log("tune", "rung_2.0")
    config = yaml.safe_load((place.root / "runs/jobs/tune/tuned/config.yaml").read_text())
    assert config["run"]["steps"] == 400
    assert "Next: aumn train " in place.log("tune", "write")
    assert len(list(run.glob("*/tuned.json"))) == 5
    parent, nested = tracked(place, "tune")
    assert parent["status"] == "FINISHED"
    assert {run["name"].rpartition("_")[2] for run in nested} == {"40", "400"}
    assert "nothing to submit; all steps are done" in succeed(place.aumn(*command)).stderr


PROGRAM = """#!{python}
import os, signal, sys, time
from pathlib import Path
from aumn import cli
from aumn.records import InputError
from aumn.runfolder import saving
from aumn.runtime import ending, preemption
from aumn.training import run
ending.ANSWER_S = 5
(folder,) = [word for word in sys.argv if word.startswith("run.folder=")]
roles = Path(folder).name.split("-") if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else ["errs", "waits"]

def train(own):
    ranks, role = own.engine.ranks, roles[own.engine.ranks.rank]
    ranks.barrier()  # the run has begun
    if role == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    if role == "waits":
        ranks.barrier()
    raise preemption.stopped(signal.SIGUSR1) if role == "asked" else InputError("This is to be mended.")

def save(*arguments, save=saving.save_checkpoint, **options):
    print("saving", flush=True)
    time.sleep(5)
    return save(*arguments, **options)

match roles[int(os.environ["SLURM_PROCID"])]:
    case "starts_late":
        print("starts late", flush=True)
        time.sleep(600)
    case "saves":
        saving.save_checkpoint = save
    case _:
        run.train = train
cli.main()
"""


def scripts_with(place: Place, name: str, line: str) -> str:
    """A site's copy of the batch scripts, with this line in training's."""
    shutil.copytree(REPOSITORY / "slurm", place.root / name)
    script = place.root / name / "train.sbatch"
    script.write_text(script.read_text().replace("\nset -u\n", f"\n{line}\nset -u\n", 1))
    return name


@pytest.fixture(scope="module")
def programmed(place) -> str:
    """Scripts that run PROGRAM."""
    (place.root / "program").write_text(PROGRAM.format(python=sys.executable))
    (place.root / "program").chmod(0o755)
    return scripts_with(place, "programmed", f"AUMN={place.root}/program")


def test_a_rank_that_srun_kills_hides_no_other_ranks_verdict_and_the_last_point_starts_again_alone(place, programmed):
    """Each point is named after what its ranks do once the run has begun.

    srun kills those that hang, and says 137 then. What a user has to mend is not tried again; only the last point was
    asked to stop, and of that SLURM_JOB_ID is the whole array's number.
    """
    points = ("errs-hangs", "waits-errs", "hangs-errs", "asked-hangs")
    train = {
        "run": "train tiny.yaml run.folder={folder}/{point} tracking.enabled=false",
        "resources": {"ranks_per_node": 2},
        "sweep": {"axes": {"ranks": {name: {} for name in points}}},
    }
    job = place.write("verdicts", {"train": train}, scripts=programmed, tracking={"enabled": False})
    succeed(place.aumn("submit", job, AUMN_WAIT_S="3"))
    statuses = place.wait("verdicts", "end", ended)
    found = {label: (status.state, status.reason, status.restarts) for label, status in statuses.items()}
    restarts = dict.fromkeys(points, 0) | {"asked-hangs": 1}
    expected = {f"train[{name}]": ("failed", "exit code 2", number) for name, number in restarts.items()}
    logs = [place.log("verdicts", f"train.{index}") for index in range(len(points))]
    assert found == expected, logs
    assert [log.count("aumn: job ") for log in logs] == [1, 1, 1, 2]
    for name in points:
        status = RunFolder(place.root / "runs/jobs/verdicts" / name).status()
        assert (status.state, status.code, status.why) == ("failed", 2, "This is to be mended."), name
    told = place.aumn("jobs", "runs/jobs/verdicts").stderr
    assert told.count("]: This is to be mended.\n") == len(points), told


def test_where_scontrol_is_missing_a_waiting_job_takes_over_but_from_nothing_cancelled_or_to_be_mended(place):
    bare = scripts_with(place, "bare", 'scontrol() { echo "scontrol: command not found" >&2; return 127; }')
    folder, after = "run.folder={folder}/", "synth {folder}/more --videos 2 --classes 1 --width 3"
    train = f"train tiny.yaml {folder}%s tracking.enabled=false run.steps=300"
    steps = {name: {"run": train % name, "resources": {"follow_ups": 1}} for name in ("asked", "cancelled", "broken")}
    steps["broken"]["run"] += " data.shards=nowhere"
    steps["after"] = {"run": after, "needs": ["asked"]}
    steps["never"] = {"run": after, "needs": ["cancelled"]}
    succeed(place.aumn("submit", place.write("chains", steps, scripts=bare, tracking={"enabled": False})))
    for step, options in {"asked": ["--signal=USR1"], "cancelled": []}.items():
        place.wait_for_log("chains", step, "step 20/")
        place.slurm.run("scancel", *options, place.statuses("chains")[step].job_id)
    statuses = place.wait("chains", "end", ended)
    expected = {"asked": "done", "cancelled": "cancelled", "broken": "failed", "after": "done", "never": "cancelled"}
    assert states(statuses) == expected, [place.log("chains", step) for step in steps]
    assert statuses["asked"].job_id == statuses["asked"].chain[1]
    assert "a job that waits to take over does" in place.log("chains", "asked")
    assert re.search(r"steps [1-9]\d* to 300 ", place.log("chains", "asked"))
    for step in ("cancelled", "broken"):
        place.wait_for_log("chains", step, "left no word that it is to be gone on with: nothing is done.")
        assert place.log("chains", step).count("steps 0 to 300") == (step == "cancelled")


def test_a_rehearsal_says_what_it_saw_of_signals_requeue_and_scancel_or_the_first_thing_that_was_not_so(place):
    """Once where jobs come back, and meanwhile where they do not."""
    scripts_with(place, "stays", 'scontrol() { echo "scontrol: not permitted" >&2; return 1; }')
    steps = {"train": {"run": "train tiny.yaml run.folder={folder}/{point}", "sweep": {"axes": {"run.seed": [0, 1]}}}}
    place.write("rehearsed", steps)
    place.write("stays", steps, scripts="stays")
    command = ("-m", "aumn", "submit")

    def others() -> dict[Path, int]:
        ours = re.compile("rehearsed|stays")
        files = (path for path in place.root.rglob("*") if path.is_file() and not ours.search(str(path)))
        return {path: path.stat().st_mtime_ns for path in files}

    before = others()
    with (
        start(*command, "rehearsed.yaml", "--rehearse", cwd=place.root) as comes_back,
        start(*command, "stays.yaml", "--rehearse", cwd=place.root) as stays,
    ):
        refused, done = stays.finish(), comes_back.finish()
    assert refused.returncode == 2
    sentence = (
        r"job did not come back, having saved step \d+ and ended with 75 \(failed: exit code 75\): where scontrol"
    )
    assert re.search(sentence, refused.stderr), refused.stderr
    succeed(done)
    saw = r"saved step \d+ and ended in \d+ s, ran again \d+ s later on n\d, took a further step \d+ s after that\n"
    for line in (
        r"start: job \d+ waited \d+ s for n\d, its first step ended \d+ s later\n",
        rf"SIGUSR1, as before a time limit that comes near: {saw}",
        rf"SIGTERM, as before a preemption: {saw}",
        r"scancel: ended in \d+ s with step \d+ saved, and not back \d+ s later\n",
        r"rehearsed: train comes back and goes on here",
    ):
        assert re.search(line, done.stderr), done.stderr
    assert not (place.root / "runs/jobs/rehearsed").exists()
    assert others() == before


def test_a_training_that_fails_without_having_got_on_ends_and_says_why(place):
    """Killed before its first checkpoint, on nodes that all answer, it would end so again."""
    train = "train tiny.yaml run.folder={folder}/train run.steps=100000 run.checkpoint_every=100000"
    quiet = {"tracking": {"enabled": False}}
    resources = {"nodes": 2}
    job = {"train": {"run": f"{train} tracking.enabled=false", "resources": resources}}
    succeed(place.aumn("submit", place.write("hopeless", job, **quiet)))
    place.wait_for_log("hopeless", "train", "step 10/")
    nodes = node_names(place.statuses("hopeless")["train"].nodes)
    place.slurm.kill_tasks(nodes[1])
    (status,) = place.wait("hopeless", "end", ended).values()
    # The other rank, which found it lost, wrote the code into the run; srun said 137.
    assert (status.state, status.reason, status.restarts) == ("failed", "exit code 1", 0)
    assert "no checkpoint written since this start and no node lost: not requeued" in place.log("hopeless", "train")


def test_a_job_that_slurm_took_without_answering_in_time_is_found_again(place, tmp_path, monkeypatch):
    """An sbatch that submits and then says nothing; a training submitted twice would train twice."""
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@"; sleep 20\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setattr(queue, "TIMEOUT_S", 5)
    steps = {"late": {"run": "synth {folder}/made --videos 2 --classes 1 --width 3"}}
    folder = JobFolder.of(load_job(place.write("late", steps, tracking={"enabled": False})))
    folder.write()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(InputError, match="sbatch did not answer in time"):
            submit(folder, print)
    said = []
    submit(JobFolder.open(folder.path), said.append)
    assert re.fullmatch(r".*/late: nothing to submit; (1 under way|all steps are done)\.", said[0]), said
    (status,) = place.wait("late", "end", ended).values()
    assert (status.state, place.log("late", "late").count("aumn: job ")) == ("done", 1)


def test_bad_nodes_at_the_start_cost_seconds_and_the_job_goes_round_them(place, tmp_path):
    """Two nodes for a rank that needs one, both bad: requeued to two others, of which one is bad, too."""
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    wrapper, script = tmp_path / "wrapper", tmp_path / "slurm" / "train.sbatch"
    wrapper.write_text('#!/bin/sh\ncase $SLURMD_NODENAME in n[123]) export TMPDIR=/not/there;; esac\nexec "$@"\n')
    wrapper.chmod(0o755)
    script.write_text(script.read_text().replace("\ncontainer=()", f"\ncontainer=({wrapper})"))
    train = "train tiny.yaml run.folder={folder}/train tracking.enabled=false"
    steps = {"train": {"run": train, "resources": {"spare_nodes": 1}}}
    job = place.write("spared", steps, scripts=str(tmp_path / "slurm"), tracking={"enabled": False})
    succeed(place.aumn("submit", job))
    (status,) = place.wait("spared", "end", ended).values()
    log = place.log("spared", "train")
    assert (status.state, status.restarts, status.nodes) == ("done", 1, "n[3-4]"), log
    for node in ("n1", "n2", "n3"):
        assert re.search(rf"aumn: {node} is left out: its own disk: .*No such file or directory.*/not/there", log), log
    assert "aumn: training needs 1 healthy nodes, and 0 of 2 are: requeued, to get others." in log
    assert "aumn: goes on without n1 n2; " in log
    assert "aumn: training runs on n4\n" in log
    assert list(JobFolder.open(Path("runs/jobs/spared")).bad_nodes()) == ["n1", "n2", "n3"]


LONG = "run.steps=500 run.checkpoint_every=10 run.log_every=5 tracking.enabled=false"
STRUCK = ("lost", "signalled", "cancelled")


@pytest.fixture(scope="module")
def undisturbed(place) -> bytes:
    """The weights that two ranks end in where nothing happens to them."""
    succeed(place.aumn("train", "tiny.yaml", "run.folder=calm", *LONG.split(), ranks=2))
    return (place.root / "calm" / "model" / "model.safetensors").read_bytes()


def test_whatever_ends_training_early_the_model_is_that_of_the_undisturbed_run(place, programmed, undisturbed):
    """A node's power cut, the signal before a time limit, scancel with a later submission; two ranks each.

    The test sends the signal, which saves a minute; the next one waits for SLURM's. Around each rank is a program that
    neither becomes it nor hands a signal on, as a container's may be; with cgroups that program alone is signalled.
    Meanwhile an urgent job preempts another training, and two more are cancelled: before their ranks have met, and
    while a checkpoint is being written.
    """
    wrapped = scripts_with(place, "wrapped", """container=(bash -c '"$@"; exit $?' wrapper)""")
    nodes = {"lost": 2, "signalled": 1, "cancelled": 1}
    steps = {
        step: {
            "run": f"train tiny.yaml run.folder={{folder}}/{step} {LONG}",
            "resources": {"nodes": nodes[step], "ranks_per_node": 2 // nodes[step]},
        }
        for step in STRUCK
    }
    quiet = {"tracking": {"enabled": False}}
    succeed(place.aumn("submit", place.write("struck", steps, scripts=wrapped, **quiet)))
    struck = {}
    for step in STRUCK:
        place.wait_for_log("struck", step, "step 40/")
        struck[step] = place.statuses("struck")[step]
        strike(place, struck[step])
    preempt(place)
    cancel_for_good(place, programmed)
    statuses = place.wait("struck", "end", ended)
    assert states(statuses) == {"lost": "done", "signalled": "done", "cancelled": "cancelled"}
    assert (struck["lost"].nodes, statuses["signalled"].restarts) == ("n[1-2]", 1)
    assert statuses["lost"].restarts >= 1
    assert "n2" not in node_names(statuses["lost"].nodes)
    assert "Stopped by SIGUSR1" in place.log("struck", "signalled")
    assert "requeued, to go on from the last checkpoint" in place.log("struck", "signalled")
    assert "Stopped by SIGTERM" in place.log("struck", "cancelled")
    assert place.log("struck", "cancelled").count("aumn: job ") == 1
    succeed(place.aumn("submit", place.root / "struck.yaml"))
    place.wait("struck", "end of what was cancelled", ended)
    for step, state in states(place.statuses("final")).items():
        assert (state, place.log("final", step).count("aumn: job ")) == ("cancelled", 1), step
    assert RunFolder(place.root / "runs/jobs/final/saves").status().code == 75
    preempted = place.wait("preempted", "end", ended)["train"]
    assert (preempted.state, preempted.restarts >= 1) == ("done", True)
    assert "Stopped by SIGTERM" in place.log("preempted", "train")
    assert place.weights("preempted", "train") == undisturbed
    for step in STRUCK:
        starts = [int(first) for first in re.findall(r"steps (\d+) to 500 ", place.log("struck", step))]
        assert starts[0] == 0 < starts[-1], (step, starts)
        assert place.weights("struck", step) == undisturbed, step


def test_at_the_time_limit_training_is_requeued_and_ends_in_the_same_model(place, undisturbed):
    """SLURM's own signal, a minute before a limit of two or, as SLURM does, up to 30 s earlier; two nodes.

    The ranks are held still until it is there, so that they need longer than their limit however fast the machine is;
    which must not look to them as if another one did not answer.
    """
    train = f"train tiny.yaml run.folder={{folder}}/train {LONG} run.step_timeout_s=600"
    resources = {"nodes": 2, "minutes": 2, "signal_s": 60}
    quiet = {"tracking": {"enabled": False}}
    succeed(place.aumn("submit", place.write("limited", {"train": {"run": train, "resources": resources}}, **quiet)))
    place.wait_for_log("limited", "train", "step 40/")
    job, requeues = place.statuses("limited")["train"], place.requeues("limited", "train")
    nodes = node_names(job.nodes)
    place.slurm.run("scancel", "--signal=STOP", job.job_id)
    place.slurm.wait_until(
        lambda: (
            all(place.slurm.is_held_with(signal.SIGUSR1, node) for node in nodes)
            or place.requeues("limited", "train") > requeues  # the signal was quicker than we
        ),
        "signal from SLURM",
        timeout_s=120,
    )
    place.slurm.run("scancel", "--signal=CONT", job.job_id)

    ended_as = place.wait("limited", "end", ended)["train"]
    assert (ended_as.state, ended_as.restarts) == ("done", place.requeues("limited", "train"))
    assert ended_as.restarts >= 1
    log = place.log("limited", "train")
    assert "Stopped by SIGUSR1" in log
    assert "TIME LIMIT" not in log, "SLURM had to end the job itself"
    starts = [int(first) for first in re.findall(r"steps (\d+) to 500 ", log)]
    assert starts[0] == 0 < starts[-1], starts
    assert place.weights("limited", "train") == undisturbed


def preempt(place: Place) -> None:
    train = f"train tiny.yaml run.folder={{folder}}/train {LONG}"
    step = {"run": train, "resources": {"ranks_per_node": 2}}
    succeed(place.aumn("submit", place.write("preempted", {"train": step}, tracking={"enabled": False})))
    place.wait_for_log("preempted", "train", "step 40/")
    node = place.statuses("preempted")["train"].nodes
    place.slurm.run("sbatch", "--partition=urgent", f"--nodelist={node}", "--ntasks=2", "--wrap=sleep 5")


def cancel_for_good(place: Place, scripts: str) -> None:
    folders = {"starting": "waits-starts_late", "saving": "saves"}
    steps = {
        step: {
            "run": f"train tiny.yaml run.folder={{folder}}/{name} {LONG}",
            "resources": {"ranks_per_node": len(name.split("-"))},
        }
        for step, name in folders.items()
    }
    job = place.write("final", steps, scripts=scripts, tracking={"enabled": False})
    succeed(place.aumn("submit", job))
    for step, text in {"starting": "starts late", "saving": "saving"}.items():
        place.wait_for_log("final", step, text)
        place.slurm.run("scancel", place.statuses("final")[step].job_id)


def strike(place: Place, struck: PointStatus) -> None:
    if struck.step.name == "lost":
        place.slurm.lose("n2")
    else:
        place.slurm.run("scancel", *(["--signal=USR1"] if struck.step.name == "signalled" else []), struck.job_id)
