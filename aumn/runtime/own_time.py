"""How long a rank computes by itself: from a step's beginning to the first time that it has to wait for the others.

Behind that all ranks look alike, since each leaves a collective when the slowest has come.
"""

from __future__ import annotations

import time

import torch


class OwnTime:
    """One rank's, over all steps so far.

    On CUDA the host's clock sees launches alone, so events on the stream take the time. They are read when they have
    happened, and the host waits for none. Untested there for want of a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._begun_s: float | None = None
        self._total_s = 0.0
        self._begun: torch.cuda.Event | None = None
        self._unread: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """A step begins."""
        if self._device:
            self._begun = torch.cuda.current_stream(self._device).record_event(torch.cuda.Event(enable_timing=True))
        else:
            self._begun_s = time.perf_counter()

    def end(self) -> None:
        """The others are about to be waited for; only a step's first call counts."""
        if self._begun is not None:
            now = torch.cuda.current_stream(self._device).record_event(torch.cuda.Event(enable_timing=True))
            self._unread.append((self._begun, now))
        elif self._begun_s is not None:
            self._total_s += time.perf_counter() - self._begun_s
        self._begun = self._begun_s = None

    def read(self) -> float:
        """Seconds so far, of the steps that are done."""
        while self._unread and self._unread[0][1].query():
            begun, ended = self._unread.pop(0)
            self._total_s += begun.elapsed_time(ended) / 1000
        return self._total_s
