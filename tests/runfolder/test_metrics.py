"""A run's metrics on real disks: what is logged is in the file, once, whatever was refused or cut short before."""

import math
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from aumn.records import InputError
from aumn.runfolder.metrics import MetricsWriter, last_metrics, read_curves, read_metrics


@pytest.fixture
def writer(tmp_path) -> Iterator[MetricsWriter]:
    with closing(MetricsWriter(tmp_path)) as writer:
        yield writer


def losses(folder) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder)]


def test_numbers_come_back_by_line_and_by_metric_and_what_is_not_finite_is_null(writer, tmp_path):
    writer.append(10, {"loss": 0.1 + 0.2, "rgb/norm": math.inf})
    writer.append(10, {"mAP": 0.5})
    first, second = read_metrics(tmp_path)
    assert first == {"step": 10, "at_ms": first["at_ms"], "loss": 0.1 + 0.2, "rgb/norm": None}
    assert second["mAP"] == 0.5
    assert [line["step"] for line in read_metrics(tmp_path, 1)] == [10]
    curves = read_curves(tmp_path)
    assert list(curves) == ["loss", "rgb/norm", "mAP"]
    assert math.isnan(curves.pop("rgb/norm")[10])
    assert curves == {"loss": {10: 0.1 + 0.2}, "mAP": {10: 0.5}}
    assert last_metrics(tmp_path)["mAP"] == 0.5


def test_a_run_that_goes_on_cuts_the_file_back_and_a_line_cut_short_by_a_kill_is_none(writer, tmp_path):
    for step in (1, 2, 3):
        writer.append(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 3)]
    again = MetricsWriter(tmp_path, keep=2)
    assert again.count == 2
    again.append(3, {"loss": 3.5})
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 3.5)]
    again.close()


@pytest.mark.parametrize(
    "line",
    ["half a line", "[1]", '{"loss": 1}', '{"step": "3"}', '{"step": 3, "loss": "x"}', '{"step": 3, "loss": 1e999}'],
)
def test_a_line_that_is_none_of_ours_is_told_with_its_number(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": Infinity}}\n{line}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2: mend it, or remove the file"):
        list(read_metrics(tmp_path))
    assert next(read_metrics(tmp_path)) == {"step": 1, "loss": None}  # as other programs write what we write as null


def test_what_a_full_disk_refuses_is_kept_and_written_when_there_is_room_again(writer, tmp_path):
    writer.append(1, {"loss": 1})
    writer.sync()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (70, hard))
    try:
        for step in (2, 3):
            writer.append(step, {"loss": step})  # ends no training
        with pytest.raises(OSError, match=r"File too large|No space left"):
            writer.sync()
        assert losses(tmp_path) == [(1, 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    writer.append(4, {"loss": 4})
    writer.sync()
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_the_last_value_of_each_metric_is_read_from_the_end_of_a_long_file(writer, tmp_path):
    for step in range(3000):
        writer.append(step, {"loss": step / 2, "some_long_name_of_a_metric": 0.1})
    writer.append(3000, {"mAP": 0.5})
    found = last_metrics(tmp_path)
    assert (found["step"], found["loss"], found["mAP"]) == (3000, 2999 / 2, 0.5)


@pytest.mark.parametrize("fails", [False, True])
def test_steps_are_logged_while_the_disk_is_slow_to_take_those_before(fails, writer, tmp_path, monkeypatch):
    """Training waits for no fsync. One that fails may have lost what it was to keep, so that is written anew."""
    begun, may_end, synced = threading.Event(), threading.Event(), []

    def slow(descriptor: int) -> None:
        begun.set()
        assert may_end.wait(30)
        if fails and not synced:
            synced.append("failed")
            os.truncate(tmp_path / "metrics.jsonl", 3)
            raise OSError(5, "Input/output error")

    writer.append(1, {"loss": 1})
    monkeypatch.setattr("aumn.runfolder.metrics.os.fsync", slow)
    failed = []

    def sync() -> None:
        try:
            writer.sync()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    assert begun.wait(30)
    writer.append(2, {"loss": 2})
    assert losses(tmp_path) == [(1, 1), (2, 2)]
    may_end.set()
    thread.join()
    assert bool(failed) == fails
    writer.append(3, {"loss": 3})
    writer.sync()
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 3)]
