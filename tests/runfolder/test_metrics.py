"""The metrics of a run: whole lines whatever the disk and the process do, and read back in several ways."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest

from aumn.records import InputError
from aumn.runfolder.metrics import NAME, MetricsWriter, last_metrics, read_curves, read_metrics


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder)]


@pytest.fixture
def writer(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    yield writer
    writer.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run"


def test_numbers_are_read_back_exactly_and_what_is_not_finite_is_null(writer, folder):
    writer.append(10, {"loss": 0.1 + 0.2, "größe": 3.0})
    writer.append(20, {"loss": math.nan, "x": math.inf})
    first, second = (json.loads(line) for line in (folder / NAME).read_text(encoding="utf-8").splitlines())
    assert (first["step"], first["loss"], first["größe"]) == (10, 0.1 + 0.2, 3.0)
    assert (second["loss"], second["x"]) == (None, None)
    assert second["at_ms"] >= first["at_ms"] > 1.7e12
    curves = read_curves(folder)
    assert curves["größe"] == {10: 3.0}
    assert curves["loss"][10] == 0.1 + 0.2
    assert math.isnan(curves["loss"][20])


def test_a_run_that_goes_back_to_a_checkpoint_cuts_what_it_will_do_again(writer, folder):
    for step in range(5):
        writer.append(step, {"loss": step})
    writer.sync()
    resumed = MetricsWriter(folder, keep=3)
    assert resumed.count == 3
    resumed.append(30, {"loss": 0.0})
    resumed.close()
    assert steps(folder) == [0, 1, 2, 30]
    assert [line["step"] for line in read_metrics(folder, first=2)] == [2, 30]


def test_the_last_value_of_each_metric_is_read_from_the_end_of_a_long_file(writer, folder):
    for step in range(3000):
        writer.append(step, {"loss": step / 2, "some_long_name_of_a_metric": 0.1})
    writer.append(3000, {"mAP": 0.5})
    found = last_metrics(folder)
    assert (found["step"], found["loss"], found["mAP"]) == (3000, 2999 / 2, 0.5)


def test_a_folder_without_metrics_has_none(tmp_path):
    assert (list(read_metrics(tmp_path)), read_curves(tmp_path), last_metrics(tmp_path)) == ([], {}, {})


def test_metrics_outlive_a_full_disk_and_a_cut_line(writer, folder):
    """The disk is a limit on a file's size, which ends a write half-way as a full disk does."""
    ignored, limits = signal.getsignal(signal.SIGXFSZ), resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.append(0, {"x" * 100: 1.0})
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
        for step in range(1, 5):
            writer.append(step, {"x" * 100: 1.0})
        with pytest.raises(OSError, match=r"No space left|too large"):
            writer.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    writer.append(5, {"x" * 100: 1.0})
    writer.sync()
    with (folder / NAME).open("ab") as file:  # as a kill does
        file.write(b'{"step": 6, "lo')
    assert steps(folder) == list(range(6))
    resumed = MetricsWriter(folder, keep=6)
    resumed.append(6, {"loss": 1.0})
    resumed.close()
    assert steps(folder) == list(range(7))


def test_what_the_disk_lost_when_it_failed_is_written_again(writer, folder, monkeypatch):
    """As Linux does it: what could not be written back is dropped, told by one fsync, and the next one is well."""
    writer.append(0, {"loss": 1.0})
    writer.sync()
    writer.append(1, {"loss": 1.0})
    synced = (folder / NAME).read_bytes().index(b"\n") + 1

    def fail(_descriptor):
        with (folder / NAME).open("r+b") as file:
            file.seek(synced)
            file.write(bytes(file.seek(0, os.SEEK_END) - synced))
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            writer.sync()
    writer.append(2, {"loss": 1.0})
    writer.sync()
    assert steps(folder) == [0, 1, 2]


@pytest.mark.parametrize("line", ["buy milk", "[1]", '{"loss": 1.0}', '{"step": "3"}'])
def test_a_damaged_line_is_told(writer, folder, line):
    writer.append(0, {"loss": 1.0})
    with (folder / NAME).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2: mend it, or remove the file"):
        steps(folder)
    with pytest.raises(InputError, match=r"is damaged in its last lines"):
        last_metrics(folder)
