"""The benchmarks still run, and their two sides agree, at tiny sizes; nothing is timed."""

import sys

import pytest

from tests.conftest import REPOSITORY
from tests.launching import python, succeed


def test_every_benchmark_agrees_with_its_reference():
    checked = succeed(python("tests/bench/run.py", "--check", cwd=REPOSITORY))
    assert checked.stdout.count("agrees") == 6


@pytest.mark.parametrize(
    ("theirs_s", "verdict"), [([3, 4, 9, 9], "met"), ([3, 3.1, 3.2, 4.1], "noise"), ([3, 3, 3, 3, 9], "MISSED")]
)
def test_a_row_of_several_runs_is_their_median_and_tells_noise_from_a_miss(monkeypatch, theirs_s, verdict):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "tests" / "bench"), *sys.path])
    from harness import Row

    ones = [1.0] * len(theirs_s)
    for row in (Row.of_runs("row", ">= 4", ones, theirs_s, "s"), Row.of_runs("row", "<= 0.25", ones, theirs_s, "s")):
        assert row.verdict == verdict
        assert str(row).endswith(f"{verdict}  {len(ones)} runs, {min(row.runs):.3g} to {max(row.runs):.3g}")
