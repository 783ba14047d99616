"""Memory that is used again and again; see `buffers` for tensors of it."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress

import numpy as np


class Blocks:
    """Blocks of memory; one serves anew when the last view of it is gone, whoever held it.

    A fresh block of many kilobytes costs a page fault every 4 KiB, which takes longer than filling it. A block that is
    too small for a request makes way for one as large as any asked for so far: where sizes vary, all end up as large as
    the largest. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()  # its append and pop are atomic
        self._largest = 0

    def take(self, size: int) -> memoryview:
        """So many uninitialised bytes."""
        self._largest = max(self._largest, size)
        block = bytearray()
        with suppress(IndexError):  # none is free
            block = self._free.pop()
        if len(block) < size:
            block = bytearray(self._largest)
        lease = np.frombuffer(block, np.uint8)  # a new object each time, kept alive by views of it and by nothing else
        weakref.finalize(lease, self._free.append, block).atexit = False
        return lease.data[:size]
