"""Optical flow by TV-L1 (Zach et al., 2007) as OpenCV computes it, several pairs of frames at once.

OpenCV's own threads gain little on pictures of this size; a pair a thread gives the same bits sooner.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from aumn.records import InputError
from aumn.video.frames import INSTALL

MOST_PIXELS = 20.0
"""Motion is clipped to it, and is 1 there."""


def with_flow(frames: Iterable[np.ndarray], crop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame with the motion from it to the next one: the crop's H x W x 2 of [-1, 1].

    Flow is found on the whole frame and cropped then. The last frame has no next: it has the flow of the one before.
    """
    cv2 = opencv()
    workers = torch.get_num_threads()
    threads, mine = ThreadPoolExecutor(workers), threading.local()

    def flow(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not hasattr(mine, "tvl1"):
            mine.tvl1 = cv2.optflow.DualTVL1OpticalFlow.create()
        moved = mine.tvl1.calc(one, other, None)  # of uint8; floats would have to be of 0 to 1
        return np.clip(centre(moved, crop) / MOST_PIXELS, -1, 1)

    waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
    before: tuple[np.ndarray, np.ndarray] | None = None
    last = np.zeros((crop, crop, 2), np.float32)
    own_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for frame in frames:
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            if before is not None:
                waiting.append((before[0], threads.submit(flow, before[1], grey)))
            before = frame, grey
            if len(waiting) > 2 * workers:
                done, found = waiting.popleft()
                yield done, (last := found.result())
        for done, found in waiting:
            yield done, (last := found.result())
        if before is not None:
            yield before[0], last
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        cv2.setNumThreads(own_threads)


def centre(picture: np.ndarray, crop: int) -> np.ndarray:
    """The square in a picture's middle."""
    top, left = ((size - crop) // 2 for size in picture.shape[:2])
    return picture[top : top + crop, left : left + crop]


def opencv() -> Any:
    """The library that finds flow; InputError where it, or its contributed part, is not installed."""
    found: Any = None
    with suppress(ImportError):
        import cv2

        found = cv2
    if not hasattr(found, "optflow"):
        raise InputError(f"Stream flow needs OpenCV with its contributed modules: {INSTALL}.")
    return found
