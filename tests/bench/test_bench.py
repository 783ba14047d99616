"""The benchmarks still run, and their two sides agree, at tiny sizes; nothing is timed."""

from tests.conftest import REPOSITORY
from tests.launching import python, succeed


def test_every_benchmark_agrees_with_its_reference():
    checked = succeed(python("tests/bench/run.py", "--check", cwd=REPOSITORY))
    assert checked.stdout.count("agrees") == 6
