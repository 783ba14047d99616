"""How the ranks of a run end together, through the store by which they met.

A rank starts, works and leaves. It leaves well; or for a reason that is told in a sentence, a user's mistake or a
signal; or broken, by a defect, or because a collective failed for want of another rank. Each reason is told to the user
once. So the store holds

    here/RANK        this rank has come to the meeting
    started          how many have
    reason           exit code, signal (0: none), rank and sentence of the first one that did not leave well
    teller/SENTENCE  the rank that tells this sentence: the first one that found it
    first_is_done    is there as soon as the first rank has nothing left to do
    left             how many ranks have left since
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from aumn.records import InputError, Stopped
from aumn.runtime.preemption import has_come, interrupted, request_exit, stopped

START_S = 600
NOTICE_S = 30
"""When a rank that waits for others to start says so."""
POLL_S = 0.1
REASON_S = 2
"""How long the reason of a rank that broke a collective may come behind its end."""
ANSWER_S = 20
"""How long the store may take to answer, before it counts as gone."""
HEAR_S = 10
"""How long the rank that serves the store stays for the others to hear how it ended."""

GONE = "the store by which the ranks met is gone"

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StoreGoneError(RuntimeError):
    """The store's server has left, or the link to it is cut."""


_unless_gone = suppress(StoreGoneError)


class Ending:
    """One rank's part in the common end; `serves` says whether the store goes when this rank goes."""

    def __init__(self, store: Any, rank: int, size: int, *, serves: bool) -> None:
        self.store, self._rank, self._size, self._serves = store, rank, size, serves
        self._has_told = self._is_gone = False

    def wait_for_all(self, seconds: float) -> None:
        """Until every rank has started; what another one leaves for meanwhile is raised."""
        self._ask("set", f"here/{self._rank}", "")
        self._ask("add", "started", 1)
        for _ in wait(seconds, self._missing, tells=self._rank == 0):
            if self._ask("add", "started", 0) == self._size:
                return
            if reason := self._find():
                raise reason

    def settle(self, error: BaseException) -> BaseException:
        """What this rank leaves with, where `error` has ended its work: another rank's reason, else its own.

        The others find it, and its `teller` is the rank that tells it. What is settled stays so when asked again.
        """
        request_exit()  # torchrun sends SIGTERM to the others as soon as one has left
        own = as_told(error)
        if own is not error and (reason := self._find(0 if isinstance(error, OSError) else REASON_S)):
            return reason  # which broke our collective, or took our unfinished files away
        if isinstance(own, Stopped) and own.signal and own.teller is None and (reason := self._find()):
            return reason  # torchrun's signal comes from it
        self._has_told = True
        if own is None:
            with _unless_gone:
                self._claim_reason(1, 0, error)
            return error
        if own.teller is None:
            own.teller = self._agree_on_teller(own)
        return own

    def wait_for_first(self) -> None:
        """At a good end, until the first rank is done too; raises the reason that some rank left for.

        The first rank may publish for longer than a collective would wait, and srun ends the last ranks some time after
        another one has gone (`--wait`).
        """
        self._has_told = True
        with _unless_gone:
            if self._rank == 0:
                self._ask("set", "first_is_done", "")
            while not self._ask("check", ["first_is_done"]):
                time.sleep(POLL_S)
        if reason := self._find():
            raise reason

    def leave(self) -> None:
        """The last call, however this rank ended; where it serves the store, the others first hear what it has told."""
        with _unless_gone:
            if self._rank == 0:
                self._ask("set", "first_is_done", "")  # also after a failure: nobody is to wait for this rank
            started, _ = self._ask("add", "started", 0), self._ask("add", "left", 1)
            for _ in _pauses(HEAR_S if self._serves and self._has_told else 0):
                if self._ask("add", "left", 0) == started:
                    break

    def _missing(self) -> str:
        missing = [str(rank) for rank in range(self._size) if not self._ask("check", [f"here/{rank}"])]
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        return f"{len(missing)} of {self._size} ranks to start: {', '.join(missing[:10])}{more}"

    def _find(self, patience_s: float = 0) -> Stopped | None:
        """What to raise where another rank did not leave well, which that rank tells."""
        with _unless_gone:
            for _ in _pauses(patience_s):
                if self._ask("check", ["reason"]):
                    code, number, rank, sentence = self._ask("get", "reason").decode().split(" ", 3)
                    reason = Stopped(sentence, signal=int(number), code=int(code))
                    reason.teller = int(rank)
                    return reason
                if has_come():  # torchrun has found a rank gone: had it had a reason, it would be here
                    break
        return None

    def _agree_on_teller(self, error: InputError | Stopped) -> int:
        number = error.signal if isinstance(error, Stopped) else 0
        with _unless_gone:
            first = self._claim_reason(error.code, number, error)
            # A signal, or a broken link, that comes after another rank's reason comes from it.
            return int(first if isinstance(error, Stopped) else self._claim(f"teller/{error}", str(self._rank)))
        return 0 if number else self._rank

    def _claim_reason(self, code: int, number: int, error: BaseException) -> str:
        """The rank whose reason it is that the ranks end for."""
        return self._claim("reason", f"{code} {number} {self._rank} {first_line(error)}").split(" ", 3)[2]

    def _claim(self, key: str, value: str) -> str:
        """The value under a key, which is this one unless another rank has set it before."""
        return str(self._ask("compare_set", key, "", value).decode())

    def _ask(self, name: str, *arguments: Any) -> Any:
        """The store's answer to one of its methods; StoreGoneError, then and ever after, where it gives none."""
        if self._is_gone:
            raise StoreGoneError(GONE)
        try:
            return answer_of(partial(getattr(self.store, name), *arguments))
        except StoreGoneError:
            self._is_gone = True
            raise


def answer_of(call: Callable[[], T]) -> T:
    """The store's answer; StoreGoneError where it gives none, as behind a cut link, for which torch has no limit."""
    try:
        return in_thread(call).result(ANSWER_S)
    except (RuntimeError, TimeoutError):
        raise StoreGoneError(GONE) from None


def in_thread(call: Callable[[], T]) -> Future[T]:
    """A call that may wait in C for ever, where neither a signal nor a deadline reaches it."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def wait(
    seconds: float, describe: Callable[[], str], *, tells: bool = True, teller: int | None = None
) -> Iterator[None]:
    """Pauses in which to look whether others have started; Stopped, told by `teller`, when the time is over.

    With `tells`, this rank says after NOTICE_S whom it waits for.
    """
    for waited_s in _pauses(seconds):
        if tells and waited_s >= NOTICE_S:
            logger.warning("Waiting for %s (for %.0f s so far, for %.0f s at most).", describe(), waited_s, seconds)
            tells = False
        yield
    late = (
        f"Waited {seconds:.0f} s for {describe()}. Look at their logs, and whether this machine reaches theirs; "
        "run.start_timeout_s gives training more time (exit code 1)."
    )
    error = Stopped(late, signal=0, code=1)
    error.teller = teller
    raise error


def _pauses(seconds: float) -> Iterator[float]:
    """How long has been waited, at least once, and then every POLL_S until the time is over."""
    start_s = time.monotonic()
    while True:
        yield (waited_s := time.monotonic() - start_s)
        if waited_s >= seconds:
            return
        time.sleep(POLL_S)


def as_told(error: BaseException) -> InputError | Stopped | None:
    """The error as a user is told it; None: a defect of the program, of which the traceback is wanted."""
    if isinstance(error, Stopped):
        return error
    if number := interrupted():  # inside a library, say, which has made an error of its own of it
        return stopped(number)
    if isinstance(error, OSError):
        subject = error.filename or "The output"
        named = f"{subject}: {error.strerror}. Check the path, its permissions and the free space."
        return InputError(named if error.strerror else str(error))
    if _is_broken_link(error):
        text = (
            f"Another rank has ended, or does not answer: {brief(error)}. If it did not say why, its launcher's log "
            "does; run the same command again, training with --resume (exit code 1)."
        )
        return Stopped(text, signal=0, code=1)
    return error if isinstance(error, InputError) else None


def first_line(error: BaseException) -> str:
    """What an error says, as one sentence."""
    return str(error).partition("\n")[0] or type(error).__name__


def timed_out(error: BaseException) -> bool:
    """Whether a collective has waited for as long as it may, or another one of this rank's that ran beside it."""
    return any(text in str(error) for text in ("Timed out waiting", "Application timeout caused pair closure"))


def brief(error: BaseException | None) -> str:
    """The heart of an error of torch.distributed: without its advice, and the stack in C++ on its other lines."""
    return re.sub(r"^\[[^]]*\] |\. This is.*", "", str(error).partition("\n")[0]).rstrip(". ")


def _is_broken_link(error: BaseException) -> bool:
    """Whether a collective or the store failed; gloo's errors have no type of their own."""
    return (
        isinstance(error, StoreGoneError)
        or any(kind.__name__ == "DistError" for kind in type(error).__mro__)
        or "/gloo/" in str(error)
        or timed_out(error)
    )
