"""How the ranks of a run end together, through the store by which they met.

A rank starts, works and leaves. It leaves well; or for a reason that is told in a sentence, a user's mistake or a
signal; or broken, because another rank has left and a collective failed. Each reason is told to the user once. So the
store holds

    started          how many ranks have come to the meeting
    reason           the signal (0: an error) and the rank of the first that left for a reason
    teller/SENTENCE  the rank that tells this sentence: the first one that found it
    first_is_done    is there as soon as the first rank has nothing left to do
    left             how many ranks have left since
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from aumn.records import InputError, Stopped
from aumn.runtime.preemption import request_exit, stopped

START_S = 600
POLL_S = 0.1
HEAR_S = 10
"""How long the rank that serves the store stays for the others to hear how it ended."""

_unless_gone = suppress(RuntimeError)  # the first rank may serve the store, and have left


class Ending:
    """One rank's part in the common end; `serves` says whether the store goes when this rank goes."""

    def __init__(self, store: Any, rank: int, size: int, *, serves: bool) -> None:
        self._store, self._rank, self._size, self._serves = store, rank, size, serves
        self._has_told = False

    def wait_for_all(self) -> None:
        """Until every rank has started, for START_S at most; what another one leaves for meanwhile is raised.

        The store is asked again and again, since no signal could reach a wait in C.
        """
        here = self._store.add("started", 1)
        give_up_s = time.monotonic() + START_S
        while here < self._size:
            if reason := self.find():
                raise reason
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"Only {here} of {self._size} ranks have started in {START_S} s: see their logs.")
            time.sleep(POLL_S)
            here = self._store.add("started", 0)

    def announce(self, error: InputError | Stopped) -> None:
        """This rank leaves for a reason: let the others find it, and settle in `error.teller` which rank tells it."""
        request_exit()  # torchrun sends SIGTERM to the others as soon as one has left
        if error.teller is not None:
            return
        self._has_told, error.teller = True, 0
        with _unless_gone:
            number = error.signal if isinstance(error, Stopped) else 0
            _, first = self._claim("reason", f"{number} {self._rank}").split()
            known = isinstance(error, Stopped)  # a signal that comes after another rank's reason comes from it
            error.teller = int(first if known else self._claim(f"teller/{error}", str(self._rank)))

    def find(self) -> InputError | Stopped | None:
        """What to raise where another rank has left for a reason, which that rank tells."""
        with _unless_gone:
            if self._store.check(["reason"]):
                number, rank = map(int, self._store.get("reason").split())
                reason = stopped(number) if number else InputError("Another rank stopped and said why.")
                reason.teller = rank
                return reason
        return None

    def wait_for_first(self) -> None:
        """At a good end, until the first rank is done too; raises the reason that some rank left for.

        The first rank may publish for longer than a collective would wait, and srun ends the last ranks some time after
        another one has gone (`--wait`).
        """
        self._has_told = True
        with _unless_gone:
            if self._rank == 0:
                self._store.set("first_is_done", "")
            while not self._store.check(["first_is_done"]):
                time.sleep(POLL_S)
        if reason := self.find():
            raise reason

    def leave(self) -> None:
        """The last call, however this rank ended; where it serves the store, the others first hear what it has told."""
        with _unless_gone:
            if self._rank == 0:
                self._store.set("first_is_done", "")  # also after a failure: nobody is to wait for this rank
            give_up_s = time.monotonic() + HEAR_S
            started, left = self._store.add("started", 0), self._store.add("left", 1)
            while self._serves and self._has_told and left < started and time.monotonic() < give_up_s:
                time.sleep(POLL_S / 5)
                left = self._store.add("left", 0)

    def _claim(self, key: str, value: str) -> str:
        """The value under a key, which is this one unless another rank has set it before."""
        return str(self._store.compare_set(key, "", value).decode())


def as_sentence(error: OSError) -> str:
    """An error of the operating system, told to a user."""
    if error.strerror:
        subject = error.filename or "The output"
        return f"{subject}: {error.strerror}. Check the path, its permissions and the free space."
    return str(error)
