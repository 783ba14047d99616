"""How long ranks wait for each other: long outside of steps, in steps as the user says or as was learnt."""

from types import SimpleNamespace

import pytest
from torch.distributed import distributed_c10d

from aumn.records import Stopped
from aumn.runtime import patience
from aumn.runtime.ending import as_told
from aumn.runtime.patience import Patience
from aumn.runtime.ranks import Ranks

PAIR_CLOSED = "Application timeout caused pair closure"  # gloo's, where the question beside a sum has timed out
STEPS_S = [90.0, 1.0, 2.0, 1.0]  # the first one waits for what is done at the start


class Waits(Ranks):
    """A rank that keeps what it was told, on a clock of its own."""

    def wait_at_most(self, seconds: float) -> None:
        self.told, self.clock_s = seconds, getattr(self, "clock_s", 0.0)


@pytest.fixture
def ranks(monkeypatch):
    ranks = Waits()
    monkeypatch.setattr(patience.time, "monotonic", lambda: ranks.clock_s)
    return ranks


def take(own: Patience, ranks: Waits, seconds: list[float]) -> list[float]:
    """Each step's limit."""
    limits = []
    for number, step_s in enumerate(seconds, 1):
        with own.step(number):
            limits.append(ranks.told)
            ranks.clock_s += step_s
    return limits


@pytest.mark.parametrize(
    ("settings", "seconds", "limits"),
    [
        ({}, [*STEPS_S, 1, 1], [600, 600, 600, 600, 30, 30]),
        ({}, [*STEPS_S, 7, 1], [600, 600, 600, 600, 30, 70]),
        ({"away_s": 300}, [*STEPS_S, 7, 1], [600, 600, 600, 600, 330, 370]),
        ({"step_s": 5, "away_s": 4}, STEPS_S, [600, 5, 5, 5]),
    ],
)
def test_a_step_may_take_what_the_user_says_or_ten_times_the_slowest_and_no_less_than_30_s(
    ranks, settings, seconds, limits
):
    own = Patience(ranks, start_s=600, **settings)
    assert take(own, ranks, seconds) == limits
    with own.alone():  # an evaluation is no step, whatever it takes
        assert ranks.told == 600
        ranks.clock_s += 500
    assert take(own, ranks, [1, 1]) == limits[-1:] * 2


@pytest.mark.parametrize(
    ("settings", "steps", "said"),
    [
        ({}, 1, "Step 2: another rank has not answered for 600 s (run.start_timeout_s, as in all first steps). It"),
        ({"step_s": 7}, 1, "Step 2: another rank has not answered for 7 s (run.step_timeout_s). It hangs, or the"),
        ({"away_s": 9}, 4, "for 39 s (10 times the slowest step so far, 2 s, 30 s at least, and data.store_away_s=9 "),
    ],
)
def test_a_rank_that_does_not_come_is_told_with_the_limit_and_where_it_is_from(ranks, settings, steps, said):
    own = Patience(ranks, start_s=600, **settings)
    take(own, ranks, STEPS_S[:steps])
    for words in ("gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 39000ms for", PAIR_CLOSED):
        with pytest.raises(Stopped) as stop, own.step(steps + 1):
            raise RuntimeError(words)
        assert said in str(stop.value)
        assert stop.value.code == 75
    assert as_told(RuntimeError(PAIR_CLOSED)).code == 1  # outside of a step
    closed = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3. This is"
    )
    assert "does not answer: Connection closed by peer [127.0.0.1]:3. If it did" in str(as_told(RuntimeError(closed)))
    with pytest.raises(RuntimeError, match="a defect"), own.step(1):
        raise RuntimeError("a defect")


def test_groups_that_a_library_has_made_since_get_the_limit_too(monkeypatch):
    """As DeepSpeed's, which would wait for half an hour."""
    told: list[float] = []
    backend = SimpleNamespace(_set_default_timeout=lambda limit: told.append(limit.total_seconds()))
    groups = [SimpleNamespace(_get_backend=lambda _device: backend)]
    monkeypatch.setattr(distributed_c10d, "_world", SimpleNamespace(pg_map=groups))
    monkeypatch.setattr(distributed_c10d, "_set_pg_timeout", lambda _limit, _group: None)
    ranks = Ranks(0, 2)
    for limit_s in (7, 7):
        ranks.wait_at_most(limit_s)
    assert told == [7]
    groups.append(groups[0])
    ranks.wait_at_most(7)
    assert told == [7, 7, 7]
