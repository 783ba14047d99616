"""Checkpoints behind training's back, on real disks that refuse: what is told, what is kept, what goes on."""

import os
import re
import resource
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aumn.runfolder.checkpoint import read_checkpoint, read_last_checkpoint
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.saving import RunWriter
from tests.launching import succeed
from tests.refusing import BrokenDisk, ForbiddenFolder, FullDisk, ReadOnlyDisk
from tests.runfolder.test_checkpoint import assert_same, make_checkpoint, make_weights
from tests.tiny import Tiny


def make_writer(folder: Path, said: list[str], secure=None) -> RunWriter:
    """`secure` is what happens where the metrics would be put on the disk, before a checkpoint is."""
    writer = RunWriter(folder, keep_last=2, say=said.append)
    if secure:
        writer.metrics.sync = secure
    return writer


def test_what_is_written_is_what_was_there_though_training_goes_on_meanwhile(tmp_path):
    started, may_write = threading.Event(), threading.Event()

    def secure():
        started.set()
        assert may_write.wait(30)

    checkpoint = make_checkpoint(100)
    with closing(make_writer(tmp_path, [], secure=secure)) as writer:
        writer.save(checkpoint)  # returns though nothing can be written yet
        assert started.wait(30)
        for tensor in [*checkpoint.weights.values(), *checkpoint.trainer_tensors.values()]:
            tensor.zero_()
        assert not list(tmp_path.glob("checkpoints/*"))
        may_write.set()
        assert writer.wait()
    assert_same(read_checkpoint(writer.last).weights, make_weights(100))


def test_one_checkpoint_is_under_way_at_most_and_closing_finishes_it(tmp_path):
    at_once, most = [], []

    def secure():
        at_once.append(1)
        most.append(len(at_once))
        threading.Event().wait(0.05)
        at_once.pop()

    with closing(make_writer(tmp_path, [], secure=secure)) as writer:
        for step in (1, 2, 3):
            writer.save(make_checkpoint(step))
    assert most == [1, 1, 1]
    assert read_last_checkpoint(tmp_path)[1].step == 3


def test_a_disk_that_refuses_is_told_once_with_the_last_whole_checkpoint_and_once_when_it_is_back(tmp_path):
    large, said = torch.zeros(100_000), []
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with closing(make_writer(tmp_path, said)) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            for step in (10, 20, 30):
                checkpoint = make_checkpoint(step)
                tensors = {**checkpoint.trainer_tensors, "large": large} if step != 20 else checkpoint.trainer_tensors
                writer.save(replace(checkpoint, trainer_tensors=tensors), best=True)
                assert writer.wait() == (step == 20)
                if step == 10:
                    assert writer.last is None
                    assert not (tmp_path / "best").exists()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    first, back, second = said
    whole = tmp_path / "checkpoints" / "step_00000020"
    assert first.startswith("The checkpoint of step 10 cannot be written, and there is no whole one yet: ")
    assert "File too large" in first
    assert back == f"Checkpoints can be written again: {whole} is whole."
    assert second.startswith(f"The checkpoint of step 30 cannot be written, and the last whole one is {whole}: ")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [whole.name]
    assert (tmp_path / "best").resolve() == whole


def test_metrics_that_cannot_be_kept_keep_the_checkpoint_from_claiming_them(tmp_path):
    def secure():
        raise OSError(28, "No space left on device", "metrics.jsonl")

    said = []
    with closing(make_writer(tmp_path, said, secure=secure)) as writer:
        writer.save(make_checkpoint(1))
        assert not writer.wait()
    assert "No space left on device: 'metrics.jsonl'" in said[0]
    assert read_last_checkpoint(tmp_path) is None


def disks(folder: Path, kind: str) -> FullDisk | ForbiddenFolder | ReadOnlyDisk | BrokenDisk:
    if kind.startswith("broken"):
        return BrokenDisk(folder, kind.split()[1])
    return {"full": FullDisk, "forbidden": ForbiddenFolder, "read-only": ReadOnlyDisk}[kind](folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With an undisturbed run, `undisturbed`."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    succeed(tiny.train("undisturbed", *SETTINGS))
    return tiny


SETTINGS = ["run.steps=200", "run.checkpoint_every=5", "model.embedding_width=64", "evaluation.every=200"]
TRACKED = ["tracking.enabled=true", "tracking.uri=sqlite:///mlflow.db"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "forbidden", "read-only", "broken fsync", "broken write"])
def test_training_goes_on_while_the_disk_refuses_and_what_is_missing_in_the_end_is_an_error_that_resume_mends(
    kind, tiny
):
    folder = tiny.root / kind.replace(" ", "-")
    run, settings = f"{folder.name}/run", [*SETTINGS, *(TRACKED if kind == "forbidden" else [])]
    with closing(disks(folder, kind)) as disk:
        with tiny.start(run, *settings, prefix=disk.prefix, **disk.environment) as process:
            process.wait_for("step 12/200")
            disk.refuse(process.process.pid)
            told = process.wait_for("The checkpoint of step .* cannot be written, and the last whole one is .*")
            assert re.search(disk.refusal, told[0])
            whole = tiny.steps(run)
            process.wait_for("step 60/200")
            assert tiny.steps(run) == whole
            disk.relent(process.process.pid)
            process.wait_for("Checkpoints can be written again: ")
            disk.refuse(process.process.pid)
            ended = process.finish()
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.count("cannot be written, and the last whole one") == 2
        assert re.search(
            r"Step 200 has the best mAP so far, \d+\.\d%, but could not be saved: no best one is saved yet\.",
            ended.stderr,
        )
        step = tiny.steps(run)[-1]
        assert step < 200
        assert "aumn: The trained model cannot be written to" in ended.stderr
        assert (
            f"run the same command with --resume, which goes on from {tiny.root}/{run}/checkpoints/step_{step:08d}"
            in (ended.stderr)
        )
        assert not [name for name in os.listdir(tiny.root / run) if name in {"model", ".model.partial"}]
        disk.relent(os.getpid())
        succeed(tiny.train(run, *settings, "--resume"))
        assert tiny.model(run) == tiny.model("undisturbed")
        assert not [leftover for leftover in folder.rglob("run/**/.*") if leftover.name.endswith(".partial")]


@pytest.mark.slow
def test_a_finished_run_says_its_last_step_though_no_checkpoint_could_be_written(tiny):
    run = tiny.root / "checkpointless"
    run.mkdir()
    (run / "checkpoints").touch()  # where a folder should be
    ended = succeed(tiny.train("checkpointless", *SETTINGS, "run.steps=6", "evaluation.every=6"))
    assert "there is no whole one yet" in ended.stderr
    status = RunFolder(run).status()
    assert (status.state, status.step, status.published_step) == ("finished", 6, 6)


@pytest.mark.slow
def test_a_run_whose_status_cannot_be_written_says_so_and_ends_in_the_same_model(tiny):
    record = tiny.root / "recordless" / "status.json"
    record.mkdir(parents=True)  # where a file should be
    ended = succeed(tiny.train("recordless", *SETTINGS))
    assert f"The run's status, {record}, cannot be written: [Errno 21] Is a directory" in ended.stderr
    assert tiny.model("recordless") == tiny.model("undisturbed")
    assert not list(record.parent.glob(".*"))
    succeed(tiny.train("recordless", *SETTINGS, "--resume"))  # not known to be finished, so it ends again
    assert tiny.model("recordless") == tiny.model("undisturbed")
