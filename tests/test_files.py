"""Folders that replace others: killed at any moment, a writer leaves the old one or the new one, never neither."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aumn.files import remove_leftovers, whole_file, whole_folder

KILLED_AT_EVERY_MOMENT = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from aumn import files

if sys.argv[2] == "by two renames":
    files.ctypes.CDLL = lambda *_, **__: None  # a C library without renameat2

model = Path(sys.argv[1]) / "model"

def write(text):
    with files.whole_folder(model) as folder:
        (folder / "weights").write_text(text)

def die_at(moment):
    events = itertools.count(1)
    sys.addaudithook(lambda *_: next(events) == moment and os.kill(os.getpid(), signal.SIGKILL))
    write("new")
    os._exit(0)

found = []
while not found or found[-1] != "done":
    shutil.rmtree(model.parent, ignore_errors=True)
    write("old")
    if not (child := os.fork()):
        die_at(len(found) + 1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in {0, -signal.SIGKILL}
    found.append(files.read_checked(model, "weights", remedy="").decode() if ended else "done")
    if len(found) % 2:
        write("newer")
    else:
        files.remove_leftovers(model.parent)
    assert os.listdir(model.parent) == ["model"], os.listdir(model.parent)
    assert files.read_checked(model, "weights", remedy="").decode() in {"newer", found[-1], "new"}
print(*found)
"""


@pytest.mark.parametrize("how", ["by exchange", "by two renames"])
def test_killed_at_any_moment_the_old_folder_or_the_new_one_is_found(tmp_path, how):
    command = [sys.executable, "-c", KILLED_AT_EVERY_MOMENT, str(tmp_path / "run"), how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    *found, done = ended.stdout.split()
    assert done == "done"
    assert found.count("old") > 10
    assert found.count("new") > 3
    assert found == sorted(found, reverse=True), "once the new one is found, the old one is not found again"


def test_what_cannot_be_finished_leaves_the_old_folder_alone(tmp_path):
    def write(text, into="weights"):
        with whole_folder(tmp_path / "model") as folder:
            (folder / "half").write_text(text)
            (folder / into).write_text(text)

    write("old")
    with pytest.raises(FileNotFoundError):
        write("new", into="nowhere/weights")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def write_file(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text)


def test_what_is_no_file_is_written_to_and_a_link_stays_one(tmp_path):
    null, pipe, link, folder_link = Path("/dev/null"), tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    write_file(null, "nothing")
    assert stat.S_ISCHR(null.stat().st_mode)
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_text)
        write_file(pipe, "through")
        assert read.result(10) == "through"
    link.symlink_to("elsewhere/file")
    write_file(link, "one")
    write_file(link, "two")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere/file").read_text() == "two"
    folder_link.symlink_to("elsewhere/model")
    for text in ("one", "two"):
        with whole_folder(folder_link) as folder:
            write_file(folder / "weights", text)
    assert folder_link.is_symlink()
    assert (tmp_path / "elsewhere/model/weights").read_text() == "two"
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["file", "model"]
