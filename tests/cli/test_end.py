"""What a command says last, with which exit code, and which of its ranks says it."""

import pytest

from aumn.cli import explain
from aumn.records import InputError
from aumn.runtime.preemption import stopped
from tests.launching import aumn


def test_a_reason_is_one_sentence_of_the_rank_that_tells_it():
    found = InputError("The shard is damaged.")
    assert [explain(found, rank) for rank in (0, 1)] == [(2, "The shard is damaged."), (2, None)]
    found.teller = 1
    assert [explain(found, rank) for rank in (0, 1)] == [(2, None), (2, "The shard is damaged.")]
    full = OSError(28, "No space left on device", "out.json")
    told = "out.json: No space left on device. Check the path, its permissions and the free space."
    assert explain(full, 0) == (2, told)
    assert explain(stopped(15), 0)[0] == 75


@pytest.mark.parametrize(
    "left_over", [{"RANK": "1"}, {"RANK": "word", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}], ids=str
)
def test_what_a_launcher_left_in_the_environment_silences_no_error(left_over, tmp_path):
    ended = aumn("train", "nope.yaml", cwd=tmp_path, **left_over)
    assert ended.returncode == 2
    assert ended.stderr.startswith("aumn: nope.yaml does not exist")
