"""A restart's seconds by part; tests/training/test_resume.py has real ones."""

import subprocess
import sys
import time

import pytest

from aumn.training.recovery import seconds_by_part

OWN = {"start": 112.0, "rendezvous": 112.5, "load": 114.0, "first_step": 114.25}
LATER = {"start": 2.0, "rendezvous": 0.5, "load": 1.5, "first_step": 0.25}
SLURM = {"AUMN_LOST_MS": "102000", "AUMN_BEGAN_MS": "109000"}


@pytest.mark.parametrize(
    ("environment", "seen_s", "ended_s", "parts"),
    [
        (SLURM, 100, None, {"detect": 2, "requeue": 7, "start": 3}),
        (SLURM, 100, 101.5, {"detect": 1.5, "requeue": 7.5, "start": 3}),  # a rank found it before srun ended
        (SLURM, 100, 90.0, {"detect": 2, "requeue": 7, "start": 3}),  # of an attempt before the one that was killed
        ({"AUMN_BEGAN_MS": "109000"}, 100, None, {"requeue": 9, "start": 3}),
        ({"AUMN_LOST_MS": "?", "AUMN_BEGAN_MS": ""}, 100, None, {"requeue": 10}),
        (SLURM, None, None, {"requeue": 7, "start": 3}),  # no step was logged
        ({}, None, None, {}),
        # torchrun, within a job that began before
        ({}, 109.5, 109.75, {"detect": 0.25, "requeue": 0.25}),
        (SLURM, 109.5, 109.75, {"detect": 0.25, "requeue": 0.25}),
        (SLURM, 109.5, None, {"requeue": 0.5}),
        (SLURM, 110.5, None, {"requeue": 0, "start": 2}),  # clocks of two nodes
    ],
)
def test_each_part_ends_where_the_next_one_begins(environment, seen_s, ended_s, parts):
    found = seconds_by_part(environment, seen_s=seen_s, ended_s=ended_s, process_s=110.0, own=OWN)
    assert found == {**LATER, **parts}
    assert list(found) == [name for name in ("detect", "requeue", *OWN) if name in found]


def test_a_process_knows_when_it_began():
    before_s = time.time()
    code = "import time; time.sleep(0.3); from aumn.training.recovery import process_began_s as s; print(s())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert before_s - 0.05 < float(said) < before_s + 0.25
