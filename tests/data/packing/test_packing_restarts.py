"""Packing gives the same bytes however it was split among workers, stopped, killed and started again."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO, contents
from tests.launching import aumn


def test_same_bytes_for_any_number_of_workers(publish: Callable[..., Any], tmp_path: Path) -> None:
    published = publish({"training": [f"t{number}" for number in range(9)], "testing": ["x", "y"]})
    for workers in (1, 2, 3):
        published.pack(tmp_path / f"out{workers}", workers=workers, shard_mb=200e-6)
    expected = contents(tmp_path / "out1")
    assert len(expected) > 5
    assert contents(tmp_path / "out2") == expected
    assert contents(tmp_path / "out3") == expected


def test_a_bad_video_among_several_workers_is_one_sentence(publish: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing of the machinery behind it: no traceback, no warning of what leaked."""
    published = publish({"training": ["a", "b"], "testing": ["c"]})
    published.save("rgb", "b", published.features["b"]["rgb"] * np.array([1, 1, np.nan, 1, 1], dtype="float32"))
    options = ("--annotations", published.annotations, "--stride-frames", 8, "--workers", 2)
    ended = aumn("pack", published.root, tmp_path / "out", *options)
    assert ended.returncode == 2
    assert ended.stderr.count("aumn: ") == 1
    assert ended.stderr.rstrip().endswith(
        "b.npy has 2 NaN or infinite values, the first in snippet 0: extract it again. Or leave bad "
        "videos out: --on-bad skip."
    )


class StoppedError(Exception):
    """The run ends here, as by an error of the machine."""


def stop_at(videos: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done >= videos:
            raise StoppedError

    return on_progress


def test_finished_shards_are_kept(published: Any, tmp_path: Path) -> None:
    published.pack(tmp_path / "whole", shard_mb=ONE_VIDEO)
    with pytest.raises(StoppedError):
        published.pack(tmp_path / "out", shard_mb=ONE_VIDEO, on_progress=stop_at(3))
    assert not (tmp_path / "out").exists()
    left_by_a_kill = tmp_path / "out.partial" / "shards" / ".testing-000000.tar.partial"
    left_by_a_kill.write_bytes(b"half a shard")
    seen: list[int] = []

    def on_progress(done: int, total: int) -> None:
        seen.append(done)
        assert not left_by_a_kill.exists()

    report = published.pack(tmp_path / "out", shard_mb=ONE_VIDEO, on_progress=on_progress)
    assert (report.kept_shards, report.shards, seen) == (3, 5, [3, 4, 5])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_other_options_start_afresh_and_say_so(
    published: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        published.pack(tmp_path / "out", shard_mb=ONE_VIDEO, on_progress=stop_at(4))
    report = published.pack(tmp_path / "out", dtype="float32", shard_mb=1e-3)
    published.pack(tmp_path / "fresh", dtype="float32", shard_mb=1e-3)
    assert report.kept_shards == 0
    assert "4 shards in" in caplog.text
    assert "were packed from other files or with other options: they are packed afresh" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")  # no shard of the first plan among them


def test_only_shards_of_changed_files_and_damaged_shards_are_redone(
    published: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        published.pack(tmp_path / "out", shard_mb=ONE_VIDEO, on_progress=stop_at(5))
    published.save("rgb", "a", published.features["a"]["rgb"] + 1)  # of the same size: its time tells
    shards = tmp_path / "out.partial" / "shards"
    (shards / "testing-000000.tar").unlink()
    os.truncate(shards / "training-000002.tar", 512)
    report = published.pack(tmp_path / "out", shard_mb=ONE_VIDEO)
    published.pack(tmp_path / "fresh", shard_mb=ONE_VIDEO)
    assert report.kept_shards == 2
    assert "3 shards in" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_good_shards_survive_bad_videos(published: Any, tmp_path: Path) -> None:
    for video in ("b", "e"):
        published.save("rgb", video, np.full_like(published.features[video]["rgb"], np.nan))
    with pytest.raises(InputError, match=r"2 videos cannot be packed \(3 finished shards of 5 stay in .*out.partial"):
        published.pack(tmp_path / "out", shard_mb=ONE_VIDEO)
    for video in ("b", "e"):
        published.save("rgb", video, published.features[video]["rgb"])
    assert published.pack(tmp_path / "out", shard_mb=ONE_VIDEO).kept_shards == 3


def test_one_run_at_a_time(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aumn.files.LOCK_WAIT_S", 0.1)
    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"Another run is packing into .*out: let it finish, or stop it first"):
            published.pack(tmp_path / "out")
    published.pack(tmp_path / "out")


def test_a_run_that_waited_for_one_that_gave_up_does_not_hold_a_removed_lock(published: Any, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with ThreadPoolExecutor(1) as threads:
        with (tmp_path / "out.partial" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = threads.submit(published.pack, tmp_path / "out")
            time.sleep(1)
            shutil.rmtree(tmp_path / "out.partial")
        with pytest.raises(InputError, match=r"packing into .*out has just ended: run the same command again"):
            second.result()


PACK_AND_DIE = """
import multiprocessing, os, signal, sys
from pathlib import Path
from aumn.data.packing.packing import pack

def die(done, total):
    if done >= {videos}:
        print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    pack(root, out, root / "gt.json", name="small", workers={workers}, shard_mb=8e-6, on_progress=die)
"""


@pytest.mark.parametrize(("workers", "videos"), [(1, 7), (2, 0), (2, 5), (2, 13), (2, 24)])
def test_killed_and_resumed_is_never_killed(
    publish: Callable[..., Any], tmp_path: Path, workers: int, videos: int
) -> None:
    published = publish({"training": [f"t{number}" for number in range(15)], "testing": list("abcdefghi")})
    script = tmp_path / "pack_and_die.py"
    script.write_text(PACK_AND_DIE.format(videos=videos, workers=workers))
    command = [sys.executable, str(script), str(published.root), str(tmp_path / "out")]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    for worker in killed.stdout.split():
        wait_until_dead(int(worker))

    report = published.pack(tmp_path / "out", shard_mb=ONE_VIDEO, workers=2)
    assert videos <= report.kept_shards < videos + 20
    published.pack(tmp_path / "whole", shard_mb=ONE_VIDEO)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def wait_until_dead(process: int, patience_s: float = 20.0) -> None:
    give_up = time.monotonic() + patience_s
    while Path(f"/proc/{process}/stat").exists():
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < give_up, f"worker {process} outlived its parent"
        time.sleep(0.05)


def test_workers_import_nothing_heavy() -> None:
    code = (
        "import sys, aumn.data.packing.shard_writer as w; print({'torch', 'pyarrow', 'webdataset'} & set(sys.modules))"
    )
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == "set()"
