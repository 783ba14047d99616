"""Checkpoints behind training's back, on real disks that are full: what is told, what is kept, what goes on."""

import os
import resource
import subprocess
import threading
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aumn.checkpoint import read_checkpoint, read_last_checkpoint
from aumn.saving import CheckpointWriter

from .launching import succeed
from .test_checkpoint import assert_same, make_checkpoint, make_weights
from .tiny import Tiny


def make_writer(folder: Path, said: list[str], **options) -> CheckpointWriter:
    options = {"keep_last": 2, "last": None, "secure": lambda: None} | options
    return CheckpointWriter(folder, say=said.append, **options)


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
        raise OSError(28, "No space left on device", "tracking.jsonl")

    said = []
    with closing(make_writer(tmp_path, said, secure=secure)) as writer:
        writer.save(make_checkpoint(1))
        assert not writer.wait()
    assert "No space left on device: 'tracking.jsonl'" in said[0]
    assert read_last_checkpoint(tmp_path) is None


class SmallDisk:
    """A tmpfs of one megabyte; where mounting is not permitted, a limit on the size of the command's files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.filler = folder, folder / "filler"
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "aumn-test", str(folder)]
        self.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self, pid: int) -> None:
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
            return
        with self.filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024))

    def free(self, pid: int) -> None:
        if self.is_mounted:
            self.filler.unlink()
        else:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.mark.slow
def test_training_goes_on_while_the_disk_is_full_and_what_is_missing_in_the_end_is_an_error_that_resume_mends(tmp_path):
    tiny = Tiny(tmp_path)
    settings = ["run.steps=300", "run.checkpoint_every=5", "model.embedding_width=64", "evaluation.every=300"]
    succeed(tiny.train("undisturbed", *settings))
    with closing(SmallDisk(tmp_path / "disk")) as disk:
        with tiny.start("disk/run", *settings) as run:
            run.wait_for("step 12/300")
            disk.fill(run.process.pid)
            run.wait_for("The checkpoint of step .* cannot be written, and the last whole one is ")
            whole = tiny.steps("disk/run")
            run.wait_for("step 120/300")
            assert tiny.steps("disk/run") == whole
            disk.free(run.process.pid)
            run.wait_for("Checkpoints can be written again: ")
            disk.fill(run.process.pid)
            ended = run.finish()
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.count("cannot be written, and the last whole one") == 2
        step = tiny.steps("disk/run")[-1]
        assert step < 300
        assert "aumn: The trained model cannot be written to" in ended.stderr
        assert (
            f"run the same command with --resume, which goes on from {tiny.root}/disk/run/checkpoints/step_{step:08d}"
            in (ended.stderr)
        )
        assert not [name for name in os.listdir(tiny.root / "disk/run") if "partial" in name or name == "model"]
        disk.free(os.getpid())
        succeed(tiny.train("disk/run", *settings, "--resume"))
        assert tiny.model("disk/run") == tiny.model("undisturbed")
