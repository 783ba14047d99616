"""How long the ranks of a run wait for each other: long where one may work alone, briefly in a step.

A collective waits in C, and its group's limit is what ends it. So the limit is set before, on each rank, for all groups
(DeepSpeed has its own). A step ends for all ranks when its last sum is there: what they learn of its seconds differs by
moments, for which ten times the slowest step has room.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aumn.records import Stopped
from aumn.runtime import preemption
from aumn.runtime.ending import timed_out
from aumn.runtime.ranks import Ranks

LEARN_STEPS = 3
TIMES_SLOWEST = 10
LEAST_S = 30.0


class Patience:
    """In a step, `step_s`; where that is None, it is learnt: LEAST_S, or TIMES_SLOWEST the slowest step so far.

    What is learnt holds when LEARN_STEPS have been seen, with `away_s` added, for which a rank may have to do without
    its data. `start_s` holds before, in the first step in any case, and wherever ranks take no step. A rank that is
    asked to stop while it waits ends sooner: SLURM asks the others when it has found a node lost, and kills them later.
    """

    def __init__(self, ranks: Ranks, *, start_s: float, step_s: float | None = None, away_s: float = 0.0) -> None:
        self._ranks, self._start_s, self._step_s, self._away_s = ranks, start_s, step_s, away_s
        self._seen, self._slowest_s = 0, 0.0
        self._ended_s: float | None = None  # the step before, or what ranks did alone behind it

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which a rank may work alone, as for a checkpoint; the others wait for it at the block's end."""
        self._ranks.wait_at_most(self._start_s)
        yield
        self._ranks.ask(lambda: 0)()
        if self._ended_s is not None:
            self._ended_s = time.monotonic()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A block in which a step is taken; Stopped, with a sentence, where another rank does not come."""
        limit_s, why = self._limit()
        self._ranks.wait_at_most(limit_s)
        if self._ranks.size > 1:
            begun_s, least_s = time.monotonic(), preemption.STUCK_S if self._seen >= LEARN_STEPS else LEAST_S
            preemption.finish_by(*(begun_s + min(limit_s, self._usual_s(least)) for least in (LEAST_S, least_s)))
        try:
            yield
        except RuntimeError as error:
            if not timed_out(error):
                raise
            text = (
                f"Step {number}: another rank has not answered for {limit_s:.4g} s ({why}). It hangs, or the link to "
                f"it is cut; run the same command again, with --resume (exit code {os.EX_TEMPFAIL})."
            )
            raise Stopped(text, signal=0, code=os.EX_TEMPFAIL) from error  # other nodes may do better
        finally:
            preemption.finish_by(math.inf)
        before_s, self._ended_s = self._ended_s, time.monotonic()
        if before_s is not None:  # the first step waits for what the first rank does at the start
            self._seen, self._slowest_s = self._seen + 1, max(self._slowest_s, self._ended_s - before_s)

    def _usual_s(self, least_s: float) -> float:
        """In so many seconds the others would have answered a rank that is asked to stop."""
        return max(TIMES_SLOWEST * self._slowest_s, least_s) + self._away_s

    def _limit(self) -> tuple[float, str]:
        """In seconds, and where it is from."""
        if self._ended_s is None or (self._seen < LEARN_STEPS and self._step_s is None):
            return self._start_s, "run.start_timeout_s, as in all first steps"
        if self._step_s is not None:
            return self._step_s, "run.step_timeout_s"
        away = f", and data.store_away_s={self._away_s:g} beyond" if self._away_s else ""
        why = f"{TIMES_SLOWEST} times the slowest step so far, {self._slowest_s:.2g} s, {LEAST_S:g} s at least{away}"
        return self._usual_s(LEAST_S), f"{why}; run.step_timeout_s sets another"
