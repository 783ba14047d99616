"""Ranks end together, however long the first one works alone, and however it ends."""

import pytest

from tests.launching import torchrun

PROGRAM = """
import sys, time
from aumn.cluster.preemption import leave
from aumn.cluster.ranks import connect
from aumn.records import InputError
try:
    with connect(timeout_s=2) as ranks:
        ranks.barrier()
        if ranks.is_first:
            time.sleep(4)
            if sys.argv[1] == "error":
                raise InputError("The model cannot be published.")
            print("published", flush=True)
except InputError as error:
    print("silent" if error.told_by_another_rank else error, flush=True)
    leave(2)
print("left", flush=True)
leave()
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("well", 0, ["published", "left", "left"]),
        ("error", 1, ["The model cannot be published.", "silent"]),
    ],
)
def test_the_others_wait_for_the_first_rank_beyond_the_timeout(tmp_path, how, code, said):
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = torchrun(2, tmp_path / "program.py", how, timeout_s=250)
    assert ended.returncode == code, ended.stderr
    assert sorted(ended.stdout.split("\n")) == sorted([*said, ""])
    assert ended.stdout.startswith(said[0]) or how == "error"
