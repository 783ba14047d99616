"""The scaling report: what it computes from measured runs, and what it refuses to make up."""

import pytest

from aumn.jobs.scaling import compare, read_measurement, write_report
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import MetricsWriter


def run(place, name, ranks, videos, rates, units=7, communication=(0.9, 0.1, 0.3, 0.2)):
    """A run's folder, as training leaves it."""
    folder = RunFolder(place / name)
    folder.path.mkdir(parents=True)
    folder.write_config({"model": {"units": units}, "batch": {"global_videos": videos}})
    folder.write_status(Status(state="finished", facts={"ranks": str(ranks)}))
    metrics = MetricsWriter(folder.path)
    for step, rate in enumerate(rates, 1):
        waits = {"communication_wait_share": communication[step - 1]} if communication else {}
        metrics.append(step, {"videos_per_s": rate, "data_wait_share": 0.5, **waits})
        metrics.append(step, {"held_out/mAP/average": 0.1})
    metrics.close()
    return name, folder.path


@pytest.fixture
def runs(tmp_path):
    return dict([
        run(tmp_path, "strong_1", 1, 64, [1.0, 100.0, 90.0, 110.0]),  # the first reading is left out
        run(tmp_path, "strong_2", 2, 64, [1.0, 150.0, 150.0, 150.0]),
        run(tmp_path, "weak_1", 1, 32, [1.0, 80.0, 80.0, 80.0]),
        run(tmp_path, "weak_2, another K", 2, 64, [1.0, 70.0, 70.0, 70.0], units=1024, communication=()),
        run(tmp_path, "killed early", 4, 64, [1.0]),
        ("never begun", tmp_path / "never begun"),
    ])  # fmt: skip


def test_each_mode_is_measured_against_its_own_run_on_one_rank(runs):
    measurements = [found for found in map(read_measurement, runs.values()) if found]
    rows = [(row.mode, row.measured.ranks, row.measured.videos_per_s, row.efficiency) for row in compare(measurements)]
    assert sorted(rows) == [
        ("strong", 1, 100.0, 1.0),
        ("strong", 2, 150.0, 0.75),
        ("weak", 1, 80.0, 1.0),
        ("weak", 2, 150.0, 150 / 160),
    ]


def test_the_report_is_a_table_and_a_figure(runs, tmp_path):
    more = run(tmp_path, "another K alone", 1, 64, [1.0, 60.0, 60.0, 60.0], units=1024, communication=())
    table = write_report(runs | dict([more]), tmp_path / "out", "the job x").read_text()
    assert "| strong | 7 | 2 | 64 | 150.0 | 75% | 20.0% | 50.0% |" in table
    assert "| strong | 1,024 | 2 | 64 | 70.0 | 58% | - | 50.0% |" in table
    assert "Left out, since they measured too little: killed early, never begun." in table
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_made_up(runs, tmp_path):
    alone = {"weak_1": runs["weak_1"]}
    with pytest.raises(InputError, match=r"the job x holds no two training runs to compare, one of them on one rank"):
        write_report(alone, tmp_path / "out", "the job x")
    assert not (tmp_path / "out").exists()
