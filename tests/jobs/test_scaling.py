"""The scaling report: what it computes from measured runs, and what it refuses to make up."""

import pytest

from aumn.jobs.scaling import compare, read_measurements, write_report
from aumn.records import InputError
from aumn.tracking.job_run import NestedRun


def run(name, ranks, videos, rates, units=7, communication=(0.9, 0.1, 0.3, 0.2)):
    params = {"model.units": str(units), "batch.global_videos": str(videos)}
    waits = {"communication_wait_share": list(communication)} if communication else {}
    return NestedRun(
        name, name, params, {"ranks": str(ranks)}, {"videos_per_s": rates, "data_wait_share": [0.5] * 4, **waits}
    )


RUNS = [
    NestedRun("pack", "pack", {}, {}, {}),
    run("strong_1", 1, 64, [1.0, 100.0, 90.0, 110.0]),  # the first reading is left out
    run("strong_2", 2, 64, [1.0, 150.0, 150.0, 150.0]),
    run("weak_1", 1, 32, [1.0, 80.0, 80.0, 80.0]),
    run("weak_2, another K", 2, 64, [1.0, 70.0, 70.0, 70.0], units=1024, communication=()),
    run("killed early", 4, 64, [1.0]),
]


def test_each_mode_is_measured_against_its_own_run_on_one_rank():
    measurements, lacking = read_measurements(RUNS)
    assert lacking == ["killed early"]
    rows = [(row.mode, row.measured.ranks, row.measured.videos_per_s, row.efficiency) for row in compare(measurements)]
    assert rows == [
        ("strong", 1, 100.0, 1.0),
        ("strong", 2, 150.0, 0.75),
        ("weak", 1, 80.0, 1.0),
        ("weak", 2, 150.0, 150 / 160),
    ]


def test_the_report_is_a_table_and_a_figure(tmp_path):
    more = run("another K alone", 1, 64, [1.0, 60.0, 60.0, 60.0], units=1024, communication=())
    table = write_report([*RUNS, more], tmp_path / "out", "the job x").read_text()
    assert "| strong | 7 | 2 | 64 | 150.0 | 75% | 20.0% | 50.0% |" in table
    assert "| strong | 1,024 | 2 | 64 | 70.0 | 58% | - | 50.0% |" in table
    assert "Left out, since they measured too little: killed early." in table
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_made_up(tmp_path):
    with pytest.raises(InputError, match=r"the job x holds no two training runs to compare, one of them on one rank"):
        write_report(RUNS[2:3], tmp_path / "out", "the job x")
    assert not (tmp_path / "out").exists()
