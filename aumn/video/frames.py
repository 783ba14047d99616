"""A video's frames as they are shown: decoded, upright, at a constant rate, with the shorter side as long as asked.

Frame n of a constant rate is the last one whose time, rounded to a multiple of 1/fps (halves up), is n/fps or less, as
ffmpeg's filter `fps` has it; times are seconds since the first frame. Whatever cannot be trusted is an InputError,
without a subject: a packet that does not decode, a time that goes back, an end long before the one that is declared.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aumn.records import InputError

INSTALL = "pip install 'aumn[video]'"
LONGEST_STILL_S = 3600
"""For how long a frame may be shown before its successor's time is taken for damage."""
AGAIN = "fetch it again, or have ffmpeg write it anew (ffmpeg -i OLD -fps_mode cfr NEW.mp4)"


class _Shown(NamedTuple):
    """A frame, and when it is first and no longer shown."""

    frame: Any
    start_s: Fraction
    end_s: Fraction


class Frames:
    """To be gone through once; `frames`, `fps` and `duration_s` are known then. A frame is H x W x 3, uint8."""

    frames = 0  # decoded so far
    duration_s = 0.0  # until the end of the last one of them
    declared_s = 0.0  # what the file says itself; 0: nothing
    fps = 0.0  # of what has come out

    def __init__(self, path: Path, *, fps: float | None, side: int) -> None:
        self._path, self._fps, self._side = path, fps, side
        self._size: tuple[int, int] | None = None
        self._starts_s = array("d")

    def __iter__(self) -> Iterator[np.ndarray]:
        av = pyav()
        try:
            with av.open(str(self._path)) as container:
                stream: Any = container.streams.best("video")
                if stream is None:
                    raise InputError("holds no video.")
                stream.thread_type = "AUTO"
                declared_s = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
                self.declared_s = float(declared_s)
                rate = float(stream.average_rate or 0)
                with closing(self._shown(container, stream)) as shown:
                    yield from self._at_rate(shown) if self._fps else (self._pixels(frame) for frame, *_ in shown)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise InputError(f"cannot be read ({error.strerror}): check the path and its permissions.") from None
            if self.frames == 0:
                raise InputError(f"is no video, or was cut short ({error.strerror}): fetch it again.") from None
            raise InputError(f"cannot be decoded behind {self.duration_s:.2f} s ({error.strerror}): {AGAIN}.") from None
        if self.frames == 0:
            raise InputError("holds no frame.")
        if self.duration_s < 0.98 * self.declared_s - 1:
            raise InputError(
                f"ends at {self.duration_s:.2f} s, though it says {self.declared_s:.2f} s: it was cut short; {AGAIN}."
            )
        self.fps = self._fps or self._own_rate(rate)

    def _at_rate(self, shown: Iterator[_Shown]) -> Iterator[np.ndarray]:
        fps = Fraction(self._fps or 0)
        for frame, start_s, end_s in shown:
            count = _slot(end_s, fps) - _slot(start_s, fps)
            if count:
                pixels = self._pixels(frame)
                for _ in range(count):
                    yield pixels

    def _own_rate(self, declared: float) -> float:
        """The rate by which each frame is within half a frame of its time: the declared one, or the one measured."""
        last = len(self._starts_s) - 1
        for fps in (declared, round(last / (self._starts_s[-1] or math.inf), 5)):
            if fps and all(abs(start_s * fps - number) <= 0.5 for number, start_s in enumerate(self._starts_s)):
                return fps
        raise InputError("has frames of varying length, so it has no rate of its own: give --fps a number.")

    def _shown(self, container: Any, stream: Any) -> Generator[_Shown]:
        """Each frame with its time. The last one lasts as it is told, where that is within the file's own length.

        Else it is shown no longer than the one before: with B-frames, MP4 tells how far apart frames are decoded.
        """
        before, length = None, Fraction(0)
        for frame, tick in _timed(container, stream):
            if frame.is_corrupt:
                raise InputError(f"is damaged behind {self.duration_s:.2f} s: {AGAIN}.")
            start_s = tick * stream.time_base
            if before is None:
                first_s = start_s
            else:
                length = start_s - first_s - before[1]
                if not 0 <= length <= LONGEST_STILL_S:
                    raise InputError(
                        f"has a frame at {float(start_s - first_s):.2f} s behind one at {float(before[1]):.2f} s: its "
                        f"times are damaged; {AGAIN}."
                    )
                yield _Shown(*before, before[1] + length)
            before = frame, start_s - first_s
            lasts_s = (frame.duration or 0) * stream.time_base or length
            if before[1] + lasts_s > self.declared_s:
                lasts_s = min(lasts_s, length or lasts_s)
            self.frames += 1
            self._starts_s.append(before[1])
            self.duration_s = float(before[1] + lasts_s)
        if before is not None:
            yield _Shown(*before, before[1] + lasts_s)

    def _pixels(self, frame: Any) -> np.ndarray:
        """RGB, shorter side scaled (bilinear), turned as the file asks."""
        scale = self._side / min(frame.width, frame.height)
        size = (math.floor(frame.width * scale + 0.5), math.floor(frame.height * scale + 0.5))
        self._size = self._size or size
        if size != self._size:
            raise InputError(f"changes its shape behind {self.duration_s:.2f} s: {AGAIN}.")
        turns, rest = divmod(frame.rotation, 90)
        if rest:
            raise InputError(f"is to be turned by {frame.rotation} degrees, not by a right angle: {AGAIN}.")
        scaled = frame.reformat(*size, format="rgb24", interpolation="BILINEAR").to_ndarray()
        return np.ascontiguousarray(np.rot90(scaled, turns)) if turns else scaled


def pyav() -> Any:
    """The library that decodes; InputError where it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError(f"Decoding videos needs PyAV: {INSTALL}.") from None
    return av


def _slot(time_s: Fraction, fps: Fraction) -> int:
    return math.floor(time_s * fps + Fraction(1, 2))


def _timed(container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
    """Frames in the order in which they are shown, with their times.

    AVI knows when packets are to be decoded and nothing else: the n-th frame that is shown has the n-th such time.
    """
    is_avi, ticks = container.format.name == "avi", deque[int]()
    for packet in container.demux(stream):
        if is_avi and packet.dts is not None and packet.size:
            ticks.append(packet.dts)
        for frame in packet.decode():
            if not ticks if is_avi else frame.pts is None:
                raise InputError(f"has a frame without a time: {AGAIN}.")
            yield frame, ticks.popleft() if is_avi else frame.pts
