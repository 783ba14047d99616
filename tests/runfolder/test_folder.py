"""One writer a run's folder, on file systems with and without flock, in real processes."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from aumn import files
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.saving import RunWriter
from tests.launching import succeed
from tests.tiny import Tiny

NO_FLOCK = """
import fcntl

def refuse(file, operation):
    raise OSError(37, "No locks available")

fcntl.flock = refuse
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With an undisturbed run, `alone`."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    succeed(tiny.train("alone"))
    return tiny


@pytest.mark.slow
@pytest.mark.parametrize("has_flock", [True, False])
def test_of_two_trainings_in_one_folder_one_is_refused_and_the_other_ends_as_if_alone(has_flock, tiny):
    run, site = f"shared-{has_flock}", tiny.root / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(NO_FLOCK)
    paths = [*([] if has_flock else [str(site)]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    with tiny.start(run, **environment) as one, tiny.start(run, **environment) as other:
        first, second = sorted((one.finish(), other.finish()), key=lambda ended: ended.returncode)
    assert (first.returncode, second.returncode) == (0, 2), first.stderr + second.stderr
    # Where the first one is done within the seconds for which a lock is waited for, the other finds its model.
    in_use = f"run.folder={tiny.root / run} is in use: another process trains this run"
    assert in_use in second.stderr or "already holds a run" in second.stderr
    assert second.stderr.count("\n") == 1
    assert tiny.model(run) == tiny.model("alone")
    assert tiny.steps(run) == tiny.steps("alone")


@pytest.fixture
def without_flock(monkeypatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.3)
    monkeypatch.setattr(files, "SETTLE_S", 0.05)


def hold_elsewhere(folder: Path, **holder: object) -> None:
    """As another process leaves the lock that was killed while it held it."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": files.started_at(os.getpid()), "launch": None}
    folder.mkdir(exist_ok=True)
    (folder / "lock").write_text(json.dumps(me | holder))


@pytest.mark.parametrize(
    ("holder", "message"),
    [
        ({}, r"is in use: .*process \d+ on .* holds the lock"),
        ({"host": "node17", "launch": "SLURM job 1"}, r"process \d+ on node17 holds the lock; if it has ended, remove"),
    ],
)
def test_without_flock_a_holder_that_may_be_alive_is_told_with_the_file_to_remove(
    holder, message, without_flock, tmp_path
):
    hold_elsewhere(tmp_path, **holder)
    with pytest.raises(InputError, match=message), RunFolder(tmp_path).writing("SLURM job 2"):
        pass


@pytest.mark.parametrize("holder", [{"started": 1}, {"host": "node17", "launch": "SLURM job 2"}])
def test_without_flock_a_holder_that_has_ended_and_an_earlier_attempt_are_succeeded(holder, without_flock, tmp_path):
    hold_elsewhere(tmp_path, **holder)
    for _ in range(2):  # and let go of
        with RunFolder(tmp_path).writing("SLURM job 2"):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        assert json.loads((tmp_path / "lock").read_text()) == {}


def test_an_earlier_attempt_of_the_launch_is_waited_for_and_nobody_else(monkeypatch, tmp_path):
    """As where its node is cut off, and it has yet to find out."""
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.2)
    held = threading.Event()

    def attempt_before() -> None:
        with RunFolder(tmp_path).writing("SLURM job 2"):
            held.set()
            time.sleep(1.5)

    thread = threading.Thread(target=attempt_before)
    thread.start()
    assert held.wait(10)
    with pytest.raises(InputError, match="is in use"), RunFolder(tmp_path).writing("SLURM job 3", 60):
        pass
    assert thread.is_alive()
    with RunFolder(tmp_path).writing("SLURM job 2", 60):
        assert RunFolder(tmp_path).holder()
    thread.join()


def test_an_attempt_that_was_succeeded_leaves_the_status_alone(without_flock, tmp_path):
    """A first rank that was cut off finds out that another one has ended, or that a checkpoint is written, too late."""
    with RunFolder(tmp_path).writing("SLURM job 2"):
        writer = RunWriter(tmp_path, 2, print)
        writer.note(step=3)
        hold_elsewhere(tmp_path, host="node17", launch="SLURM job 2")
        RunFolder(tmp_path).write_status(Status(step=4))
        writer.note(state="failed", code=1)
        writer.close()
    assert RunFolder(tmp_path).status() == Status(step=4)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"run\.folder=.*file/run cannot be written: .* Choose a folder that you may"),
        RunFolder(tmp_path / "file" / "run").writing(),
    ):
        pass


def test_a_link_that_leads_nowhere_is_told_before_anything_is_trained(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(InputError, match=r"/model is a link to /\S+/gone, which is not there: mend or remove it"),
        RunFolder(tmp_path).writing(),
    ):
        pass


def test_a_status_comes_back_and_one_that_is_damaged_is_told_with_what_to_do(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.status() == Status()
    status = Status(state="failed", why="No space: «voll»", step=7, best=0.1 + 0.2, facts={"host": "node17"})
    folder.write_status(status)
    assert folder.status() == status
    (tmp_path / "status.json").write_text('{"format_version": 2}')
    with pytest.raises(InputError, match=r"status\.json is damaged or of another aumn \(format_version: .*remove it"):
        folder.status()
