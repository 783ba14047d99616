"""What a job's folder tells wherever it is looked at from, whatever SLURM and the tracking store do meanwhile.

A few lines of shell play SLURM: they take jobs, and list them until they are told to end.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from aumn.files import started_at
from aumn.jobs import queue
from aumn.jobs.job import load_job
from aumn.jobs.job_folder import JobFolder, Submitted
from aumn.jobs.submit import submit
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import MetricsWriter
from tests.answering import answer, refusal
from tests.launching import aumn, succeed

CONFIG = {"data": {"shards": "shards"}, "run": {"folder": "run", "steps": 3}}
STEPS = {
    "train": {"run": "train c.yaml run.folder={folder}/{point}", "sweep": {"axes": {"run.seed": [0, 1]}}},
    "evaluate": {
        "needs": ["train"],
        "run": "evaluate {folder}/found --annotations gt.json --protocol thumos14 --json {folder}/metrics.json",
    },
}
SBATCH = """
number=$(($(cat "$SLURM/number" 2> /dev/null || echo 40) + 1))
echo $number > "$SLURM/number"
for word in "$@"; do
  case $word in --comment=*) comment=${word#--comment=};; --array=*) array=${word#--array=};; esac
done
case "$array" in
  0,1) printf '%s |%s |RUNNING |0 |0:07 |%s |None |n1 |\\n' $number 0 "$comment" $number 1 "$comment";;
  ?) echo "$number |$array |RUNNING |0 |0:07 |$comment |None |n1 |";;
  *) echo "$number |N/A |PENDING |0 |0:00 |$comment |Dependency | |";;
esac >> "$SLURM/queue"
echo "$@" >> "$SLURM/submitted"
eval sleep "$(cat "$SLURM/slow" 2> /dev/null || echo 0)"
echo $number
"""
SQUEUE = """
echo asked >> "$SLURM/asked"
cat "$SLURM/queue" 2> /dev/null || true
"""


class Place:
    """A folder in which a job is submitted to the SLURM that is played."""

    def __init__(self, root: Path) -> None:
        self.root, self.slurm = root, root / "slurm played"
        self.slurm.mkdir()
        (root / "c.yaml").write_text(yaml.safe_dump(CONFIG))
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": "", "sacct": ""}.items():
            (self.slurm / name).write_text(f"#!/bin/sh\n{text}")
            (self.slurm / name).chmod(0o755)

    def write(self, *, tracked: bool = False, **fields) -> Path:
        job = {"name": "mine", "tracking": {"enabled": tracked}, "steps": STEPS, **fields}
        (self.root / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
        return self.root / "job.yaml"

    def lines(self, name: str) -> list[str]:
        file = self.slurm / name
        return file.read_text().splitlines() if file.exists() else []

    def end(self, step: str, index: int, code: int, folder: str = "runs/jobs/mine") -> None:
        """As the batch script says it; SLURM forgets the job."""
        (self.root / folder / "outcomes" / f"{step}.{index}").write_text(f"41 {code} n1 0 9\n")
        (self.slurm / "queue").unlink(missing_ok=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Place(tmp_path)
    monkeypatch.setenv("PATH", f"{found.slurm}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM", str(found.slurm))
    return found


def states(folder: Path) -> dict[str, str]:
    return {status.label: status.state for status in JobFolder.open(folder).statuses()}


RUNNING, DEPENDS, PREEMPTED = "RUNNING |None", "PENDING |Dependency", "PENDING |BeginTime"
ENDED, CANCELLED, NEVER = "FAILED |NonZeroExitCode", "CANCELLED |None", "CANCELLED |DependencyNeverSatisfied"


@pytest.mark.parametrize(
    ("jobs", "end", "state", "job_id"),
    [
        ((RUNNING, DEPENDS, DEPENDS), None, "running", "9"),
        ((PREEMPTED, DEPENDS, DEPENDS), None, "queued", "9"),
        ((ENDED, RUNNING, DEPENDS), None, "running", "10"),
        ((ENDED, DEPENDS, DEPENDS), "9 75", "queued", "10"),
        ((ENDED, DEPENDS, DEPENDS), "9 2", "failed", "9"),
        ((ENDED, RUNNING, DEPENDS), "9 2", "failed", "9"),
        ((ENDED, "COMPLETED |None", NEVER), "10 0", "done", "10"),
        ((CANCELLED, ENDED, ENDED), None, "cancelled", "9"),
        ((ENDED, CANCELLED, ENDED), None, "cancelled", "10"),
        ((ENDED, ENDED, ENDED), "11 75", "failed", "9"),
    ],
)
def test_of_jobs_that_take_over_from_each_other_one_counts_and_all_are_cancelled(place, jobs, end, state, job_id):
    steps = {"train": {"run": "train c.yaml", "resources": {"follow_ups": 2}}}
    folder = JobFolder.of(load_job(place.write(steps=steps)))
    folder.write()
    comment = folder.announce("train", [0])
    if state != "queued":  # else its numbers never came
        folder.record("train", [0], comment=comment, job_id="9", follow_ups=["10", "11"])
    numbered = zip((9, 10, 11), (job.split(" |") for job in jobs), strict=True)
    (place.slurm / "queue").write_text(
        "".join(f"{number} |N/A |{word} |0 |0:07 |{comment} |{why} |n1 |\n" for number, (word, why) in numbered)
    )
    if end:
        folder.outcome_file("train", 0).write_text(f"{end} n1 0 9\n")
    (status,) = JobFolder.open(folder.path).statuses()
    assert (status.state, status.task_id, status.task_ids) == (state, job_id, ("9", "10", "11"))


def test_the_table_tells_why_training_failed_and_what_its_last_restart_took(place):
    succeed(aumn("submit", place.write()))
    said = {"0": (2, "The set is damaged."), "1": (75, "Stopped by SIGUSR1.")}  # the second failed before its run began
    for seed, (code, why) in said.items():
        run = RunFolder(place.root / f"runs/jobs/mine/seed={seed}")
        run.path.mkdir(parents=True)
        parts = {"requeue": 6.0, "first_step": 0.52} if seed == "1" else {}
        run.write_status(Status(state="failed", code=code, why=why, recovery=parts))
        place.end("train", int(seed), 2)
    told = aumn("jobs", "runs/jobs/mine")
    assert "train[seed=1]: back after 6.5 s (requeue 6.0, first step 0.5)\n" in told.stdout
    assert "train[seed=0]: back" not in told.stdout
    assert told.stderr.endswith("--retry-failed\n  train[seed=0]: The set is damaged.\n"), told.stderr


def test_a_job_is_seen_from_any_folder_and_after_its_own_was_moved(place, tmp_path_factory, monkeypatch):
    """Looked at from elsewhere, nothing seems to wait; what failed alone goes on, to run where it ran before."""
    succeed(aumn("submit", place.write()))
    place.end("train", 0, 0)
    place.end("train", 1, 1)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    expected = {"train[seed=0]": "done", "train[seed=1]": "failed", "evaluate": "failed"}
    assert states(Path(os.path.relpath(place.root / "runs/jobs/mine"))) == expected
    moved = elsewhere / "moved"
    (place.root / "runs/jobs/mine").rename(moved)
    assert states(moved) == expected
    again = aumn("jobs", "moved", "--retry-failed", cwd=elsewhere)
    assert "train, 1 point (seed=1): submitted as job 43\nevaluate: submitted as job 44" in again.stderr
    train = place.lines("submitted")[-2]
    assert "--array=1 " in train
    assert f"--chdir={place.root} " in train
    assert (moved / "points/train/1").read_text() == f"c.yaml\nrun.folder={moved}/seed=1\nrun.seed=1\n"


@pytest.mark.parametrize(
    ("noted", "options", "excluded"),
    [
        ([], [], None),
        (["n2 NOW slow"], [], "n2"),
        (["n2 NOW slow"], ["--exclude=n9,n8"], "n9,n8,n2"),
        (["n2 LONG_AGO slow", "n3 NOW", "", "n4", "n5 x y"], [], "n3"),
        (["n2 NOW slow", "n3 NOW slow", "n2 NOW again"], [], "n3,n2"),
        ([f"n{node} NOW slow" for node in range(9)], [], "n5,n6,n7,n8"),
    ],
)
def test_nodes_that_were_bad_are_gone_round_by_the_next_submission_which_says_so(place, noted, options, excluded):
    step = {"run": "synth {folder}/x --videos 2 --classes 1 --width 3", "resources": {"options": options}}
    folder = JobFolder.of(load_job(place.write(steps={"one": step})))
    folder.write()
    times = {"NOW": f"{time.time():.0f}", "LONG_AGO": f"{time.time() - 8 * 86_400:.0f}"}
    text = "".join(f"{line}\n" for line in noted)
    (folder.path / "bad_nodes").write_text(re.sub("NOW|LONG_AGO", lambda found: times[found[0]], text))
    said = []
    submit(folder, said.append)
    given = re.findall(r"--exclude=(\S+)", place.lines("submitted")[-1])
    assert given[-1:] == ([excluded] if excluded else [])
    ours = excluded.replace("n9,n8,", "") if excluded else ""
    assert re.findall(r"(n\d)(?: \(|,|$)", said[0]) == (ours.split(",") if ours else [])
    assert ("bad_nodes to have its node back" in said[0]) == bool(excluded)


def test_a_job_that_is_submitted_from_within_a_job_is_told_nothing_of_that_one(place, monkeypatch):
    """Its script would requeue the outer job's task of an array, and leave its word under that one's number."""
    outer = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "AUMN_SPARE_NODES", "AUMN_FOLLOWS")
    for name in outer:
        monkeypatch.setenv(name, "7")
    folder = JobFolder.of(load_job(place.write(steps={"one": {"run": "synth x --videos 2 --classes 1 --width 3"}})))
    folder.write()
    (place.slurm / "slow").write_text('0; env > "$SLURM/told"')
    submit(folder, print)
    told = {line.partition("=")[0] for line in place.lines("told")}
    assert "AUMN_STEP" in told
    assert not told & set(outer)


@pytest.mark.parametrize("why", ["Requested node configuration is not available", "Invalid node name specified"])
def test_where_too_few_nodes_are_left_bad_ones_are_used_too(place, why):
    folder = JobFolder.of(load_job(place.write(steps={"one": {"run": "synth x --videos 2 --classes 1 --width 3"}})))
    folder.write()
    (folder.path / "bad_nodes").write_text(f"n2 {time.time():.0f} slow\n")
    refuses = f"sbatch: error: Batch job submission failed: {why}"
    (place.slurm / "slow").write_text(f"0; case $* in *--exclude*) echo {refuses} >&2; exit 1;; esac")
    said = []
    submit(folder, said.append)
    assert said[0] == "one: too few nodes without n2, so they are used"
    assert re.fullmatch(r"one: submitted as job \d+", said[1])


@pytest.mark.parametrize("lateness", ["10", "0; echo 'sbatch: error: Socket timed out on send/recv' >&2; exit 1"])
def test_a_job_whose_number_came_too_late_is_found_and_not_submitted_twice(place, monkeypatch, lateness):
    """It came after we gave up, or sbatch itself did."""
    monkeypatch.setattr(queue, "TIMEOUT_S", 3)
    folder = JobFolder.of(load_job(place.write()))
    folder.write()
    (place.slurm / "slow").write_text(lateness)
    with pytest.raises(InputError, match=r"sbatch did not answer in time: .* found then, and not submitted twice"):
        submit(folder, print)
    (place.slurm / "slow").unlink()
    assert states(folder.path) == {"train[seed=0]": "running", "train[seed=1]": "running", "evaluate": "waiting"}
    said = []
    submit(JobFolder.open(folder.path), said.append)
    assert said[0] == "evaluate: submitted as job 42"
    assert "--dependency=afterok:41_0:41_1" in place.lines("submitted")[-1]


def test_the_table_shows_what_the_run_folders_hold_and_what_slurm_says_when_asked_once(place):
    succeed(aumn("submit", place.write()))
    run = RunFolder(place.root / "runs/jobs/mine/seed=1")
    with closing(MetricsWriter(run.path)) as metrics:
        metrics.append(40, {"loss": 0.25, "videos_per_s": 9.0})
        metrics.append(40, {"held_out/mAP/0.5": 0.2, "held_out/mAP/average": 0.345})
    run.write_status(Status(step=40, steps=300))
    result = {"mAP": {"0.5": 0.3}, "average": 0.123}
    (place.root / "runs/jobs/mine/metrics.json").write_text(json.dumps(result))
    asked = len(place.lines("asked"))
    shown = succeed(aumn("jobs", "runs/jobs/mine")).stdout
    assert len(place.lines("asked")) == asked + 1
    assert re.search(r"train\[seed=0\] +running +41_0 +n1 +00:00:07 +train.0.log", shown), shown
    assert re.search(r"train\[seed=1\] .*step 40/300  loss 0.2500  mAP 34.5% +train.1.log", shown), shown
    assert re.search(r"evaluate +queued: Dependency .*mAP 12.3%", shown), shown


def test_a_store_that_is_away_costs_a_record_and_holds_up_neither_a_submission_nor_a_look(place):
    job = place.write(tracked=True, tracking={"uri": "http://127.0.0.1:9"})
    (place.root / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "tracking": {"uri": "http://127.0.0.1:9"}}))
    first = succeed(aumn("submit", job)).stderr
    assert "evaluate: submitted as job 42" in first
    assert "this job is not recorded in the tracking store: The tracking store http://127.0.0.1:9 refused" in first
    assert succeed(aumn("jobs", "runs/jobs/mine")).stdout.count("running") == 2
    for step, index, code in (("train", 0, 0), ("train", 1, 1), ("evaluate", 0, 1)):
        place.end(step, index, code)
    again = succeed(aumn("submit", job)).stderr
    assert "train, 1 point (seed=1): submitted as job 43" in again


def test_the_end_of_a_job_is_recorded_once(place):
    answer("submit", place.write(tracking={}))
    for step, index in (("train", 0), ("train", 1), ("evaluate", 0)):
        place.end(step, index, 0)

    def recorded() -> tuple[str, int]:
        answer("jobs", "runs/jobs/mine")
        with closing(sqlite3.connect(place.root / "mlflow.db")) as store:
            (found,) = store.execute("select status, end_time from runs").fetchall()
        return found

    first = recorded()
    assert first[0] == "FINISHED"
    assert recorded() == first


def test_a_process_that_was_given_the_number_of_a_local_run_is_not_that_run(place):
    folder = JobFolder.of(load_job(place.write()))
    folder.write()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = folder.record_local("train", 0, process.pid)
        assert states(folder.path)["train[seed=0]"] == "running"
        folder.record("train", [0], job_id=name.replace(str(started_at(process.pid)), "12"))
        assert states(folder.path)["train[seed=0]"] == "failed"
        process.communicate(b"\n")


def test_a_line_cut_short_by_a_kill_is_no_submission_and_one_that_was_edited_is_told(place):
    folder = JobFolder.of(load_job(place.write()))
    folder.write()
    file = folder.path / "submitted.jsonl"
    file.write_text('{"step": "train", "points": [0], "comment": "aumn:')
    assert folder.sent() == {}
    folder.record("train", [1], job_id="41")
    assert folder.sent() == {("train", 1): Submitted(step="train", points=[1], job_id="41")}
    file.write_text('{"step": "train", "points": "all", "job_id": "7"}\n')
    with pytest.raises(InputError, match=r"submitted\.jsonl is damaged or of another aumn \(points: .* mend the line"):
        folder.sent()


def test_a_folder_of_an_older_aumn_is_taken_over_by_submitting_again(place):
    folder = place.root / "runs/jobs/mine"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"job": {"name": "mine"}, "tracking_run": None}))
    (folder / "submitted.jsonl").write_text('{"step": "train", "points": [0, 1], "job_id": "7"}\n')
    (folder / "outcomes").mkdir()
    (folder / "outcomes/train.0").write_text("7 0 n1 0 5\n")
    with pytest.raises(InputError, match=r"^/\S+ was submitted by an older aumn: give its `aumn submit` once more"):
        JobFolder.open(folder)
    said = succeed(aumn("submit", place.write())).stderr
    assert "train, 1 point (seed=1): submitted as job 41" in said


def test_one_submission_at_a_time(place, monkeypatch):
    monkeypatch.setattr("aumn.files.LOCK_WAIT_S", 0.2)
    job = place.write()
    with JobFolder.lock(place.root / "runs/jobs/mine"):
        refused = refusal("submit", job)
    assert "runs/jobs/mine is being submitted or run by another aumn: wait until that is done" in refused
    assert not place.lines("submitted")
