"""Being asked to stop: SIGTERM and SIGUSR1 (a cluster wants its machine back), SIGINT (Ctrl-C).

Asked once, a command ends as soon as that leaves nothing half-done: `Stopped` is raised wherever it is, except inside
`finish_first`, where training ends its step and writes a checkpoint. Asked again, it ends at once, with 128 + signal.
The command line listens; a program that uses aumn as a library keeps its own handlers.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from aumn.records import Stopped

CODES = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGUSR1: os.EX_TEMPFAIL, signal.SIGINT: 130}
"""What a command that was asked to stop exits with. EX_TEMPFAIL, 75, says: run me again."""

ECHO_S = 1.0
"""A signal so soon after the first is the same request: SLURM and torchrun may both hand it to a rank."""

STUCK_S = 5.0
"""How long a call that no signal can interrupt, such as waiting for other ranks, may hold up the end."""

POLL_S = 0.1


class _Request:
    """What this process was asked, and whether its main thread is where it may not be interrupted."""

    signal: signal.Signals | None = None
    came_s: float | None = None  # when the first signal did; known before the main thread handles it
    finishing = raised = False
    state = ""  # of `finish_first`
    overdue_s = hasty_s = math.inf  # by the monotonic clock, when what may not be interrupted has waited in vain
    heard = threading.Event()


_request = _Request()


def listen() -> None:
    """From now on, be asked; for a program's main thread, once. A signal that is ignored, as nohup does, stays so."""
    ears, system = socket.socketpair()
    system.setblocking(False)
    # Python runs handlers between two instructions of the main thread, so never while that waits in a collective for a
    # rank that is gone. What the system writes here is read by a thread.
    signal.set_wakeup_fd(system.detach(), warn_on_full_buffer=False)
    for number in CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    threading.Thread(target=_watch, args=(ears,), name="aumn-signals", daemon=True).start()


def asked() -> int:
    """The signal that asked this process to stop; 0: none did."""
    return _request.signal or 0


def interrupted() -> int:
    """The signal for which `Stopped` was raised in the midst of something; 0: none."""
    return asked() if _request.raised else 0


def has_come() -> bool:
    """Whether a signal did, though the main thread may not have handled it yet."""
    return _request.came_s is not None


AGAIN = "nothing is half-written; run the same command again"


def stopped(number: int, state: str = AGAIN) -> Stopped:
    """What to raise when a signal has asked this rank, or another one, to stop; `state` says how to go on."""
    name, code = signal.Signals(number).name, CODES[signal.Signals(number)]
    return Stopped(f"Stopped by {name}: {state} (exit code {code}).", signal=number, code=code)


def request_exit() -> None:
    """This process is about to end: a first signal from now on is no news, such as torchrun's when a rank has left."""
    _request.heard.set()


def wait_to_be_ended(seconds: float) -> None:
    """Give the launcher time to end this process by SIGTERM, which ends it without a word."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)


@contextmanager
def finish_first(state: str = AGAIN) -> Iterator[None]:
    """A block that no signal interrupts: what runs in it looks at `asked` where it can stop.

    Where it did not stop, though asked, it is as soon as the block is done; `state` says how to go on then. A block
    that waits in vain (see `finish_by`) ends with the process.
    """
    _request.finishing, _request.state = True, state
    try:
        yield
    except Stopped:  # another rank was asked
        request_exit()
        raise
    finally:
        _request.finishing = False
    if number := asked():
        raise stopped(number, state)


def finish_by(overdue_s: float, hasty_s: float | None = None) -> None:
    """Where this process is asked in a `finish_first` block, end it if that lasts until then, by `time.monotonic`.

    By `hasty_s` where what asked is no SIGUSR1, which leaves time: SLURM kills some seconds behind its SIGTERM.
    """
    _request.overdue_s, _request.hasty_s = overdue_s, overdue_s if hasty_s is None else hasty_s


def _handle(number: int, _frame: object) -> None:
    """In the main thread."""
    if _request.heard.is_set():
        return
    _request.signal = signal.Signals(number)
    request_exit()
    if not _request.finishing:
        _request.raised = True
        raise stopped(number)


def _watch(ears: socket.socket) -> None:
    """End the process where it was asked again, or where its main thread cannot know that it was asked."""
    while True:
        for number in ears.recv(64):
            if number not in CODES:
                continue
            if _request.came_s is None:
                _request.came_s = time.monotonic()
                threading.Thread(target=_leave_if_stuck, args=(number,), daemon=True).start()
            elif time.monotonic() - _request.came_s > ECHO_S:
                os._exit(128 + number)


def _leave_if_stuck(number: int) -> None:
    end_s, has_time = time.monotonic() + STUCK_S, number == signal.SIGUSR1
    while True:
        has_heard, is_finishing = _request.heard.wait(POLL_S), _request.finishing
        if has_heard and not is_finishing:
            return  # also where the block was done long behind `end_s`: its end is the main thread's own
        overdue_s = _request.overdue_s if has_time else _request.hasty_s
        if time.monotonic() >= (overdue_s if is_finishing else end_s):
            break
        time.sleep(POLL_S)
    told = stopped(number, _request.state) if _request.finishing else stopped(number)
    print(f"aumn: {told}", file=sys.stderr, flush=True)
    os._exit(CODES[signal.Signals(number)])


def leave(code: int = 0) -> NoReturn:
    """End this process when all its work is done, without the interpreter's own end.

    DDP and DeepSpeed keep the process group, and gloo's threads with it, past `ranks.connect`. Those let go of tensors
    while the interpreter ends, which now and then aborts it ("terminate called without an active exception", exit code
    -6); packing was seen to end so, too, after its last file was written. `atexit` is not heard: multiprocessing's part
    of it waits for workers that only what comes before it at a real end would have told to stop.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a pipe that is closed, or a full disk, of which a command's end has told
            stream.flush()
    os._exit(code)
