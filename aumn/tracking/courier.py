"""One background thread that brings a run's letters to its store, so that no training step ever waits for the store."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aumn.tracking.recipient import Recipient
from aumn.tracking.spool import Contents, Letter, Spool

GATHER_S = 2.0
RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
_AT_ONCE = 100


@dataclass
class _Outage:
    """From the first refusal until nothing waits any more; told once when it begins and once when it ends."""

    since_s: float
    delivered: Contents = field(default_factory=Contents)


class Courier:
    """Takes letters at any time and delivers them in order, however often the store goes away."""

    def __init__(self, spool: Spool, recipient: Recipient, say: Callable[[str], None]) -> None:
        self._spool, self._recipient, self._say = spool, recipient, say
        self._changed = threading.Condition()  # its lock guards all that follows, and the spool
        self._hurried = self._stopped = False
        self._outage: _Outage | None = None
        self._refused_since_s: float | None = None
        self._settling_since_s: float | None = None
        self._retry_s = RETRY_S
        self._tried_s = time.monotonic()
        threading.Thread(target=self._deliver, name="tracking", daemon=True).start()

    def post(self, letter: Letter) -> None:
        """Take a letter; returns at once."""
        with self._changed:
            self._spool.append(letter)
            self._changed.notify_all()

    def secure(self) -> None:
        """Make sure that all letters so far outlive this process: on the disk, or where it refuses, in the store.

        OSError where both refuse.
        """
        try:
            with self._changed:
                self._spool.sync()
        except OSError:
            if not self.settle(grace_s=0, most_s=10):
                raise

    def settle(self, *, grace_s: float, most_s: float = math.inf) -> bool:
        """Wait until all is delivered; whether it is.

        No longer than `most_s`, nor than `grace_s` for a store that refuses, over all calls together that have any.
        """
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            start_s = time.monotonic()
            if grace_s:
                self._settling_since_s = self._settling_since_s or start_s
            while len(self._spool):
                end_s = start_s + most_s
                if self._refused_since_s is not None:
                    end_s = min(end_s, max(self._refused_since_s, self._settling_since_s or 0) + grace_s)
                if time.monotonic() >= end_s:
                    break
                self._changed.wait(min(1.0, end_s - time.monotonic()))
            self._hurried = False
            return not len(self._spool)

    def stop(self) -> Contents | None:
        """Deliver no more; what still waits, and stays in the spool's file, if anything does."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            waiting = self._spool.first(len(self._spool))
            self._spool.close()
        return Contents().add(waiting) if waiting else None

    def _deliver(self) -> None:
        while letters := self._next():
            try:
                delivered = letters[: self._recipient.deliver(letters)]
            except Exception as error:  # whatever it is: a dead thread would deliver nothing more
                self._refused(error)
            else:
                self._accepted(delivered)

    def _next(self) -> list[Letter]:
        """Wait until it is time to deliver; then the letters, none if it is time to stop."""
        with self._changed:
            while not self._stopped and (not len(self._spool) or time.monotonic() < self._due_s()):
                self._changed.wait(self._due_s() - time.monotonic() if len(self._spool) else None)
            self._tried_s = time.monotonic()
            return [] if self._stopped else self._spool.first(_AT_ONCE)

    def _due_s(self) -> float:
        pause_s = GATHER_S if self._refused_since_s is None else self._retry_s
        if self._hurried:
            pause_s = 0 if self._refused_since_s is None else RETRY_S
        return self._tried_s + pause_s

    def _refused(self, error: Exception) -> None:
        with self._changed:
            is_news = self._outage is None and not self._stopped
            self._outage = self._outage or _Outage(time.monotonic())
            self._refused_since_s = self._refused_since_s or time.monotonic()
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            self._changed.notify_all()
        if is_news:
            self._say(f"{error} Training goes on; {self._spool.path} keeps its metrics until the store answers again.")

    def _accepted(self, letters: Sequence[Letter]) -> None:
        ended = None
        with self._changed:
            if self._stopped:
                return
            self._spool.drop(len(letters))
            self._refused_since_s, self._retry_s = None, RETRY_S
            if self._outage:
                self._outage.delivered.add(letters)
                if not len(self._spool):
                    ended, self._outage = self._outage, None
            self._changed.notify_all()
        if ended:
            self._say(
                f"The tracking store is back after {time.monotonic() - ended.since_s:.0f} s: {ended.delivered} "
                "have been delivered."
            )
