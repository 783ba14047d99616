"""Whether features reach the end of their video, and instances and detections lie before it; what unit would fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

DURATION_SLACK = 0.1  # of the duration; and two snippets, which extractors lose at a video's end
COMMON_RATES = (25, 30, 50, 60, 1000)  # the last: milliseconds
RATES = (60, 50, 30, 25, 24, 20, 15, 12, 10)  # frames a second, as videos have them
LEAST_FPS = 5.0  # no video has fewer
BLOCK_ROWS = 2**18  # of long columns, which fit into a core's cache
LIKE_FRAMES = 5.0  # times that reach so many times as far as their video are no seconds
COVERED = "what their video's features cover"
TOLD = "their video's duration in the ground truth"


class Length(NamedTuple):
    """How long a video's features are, by the rate that their stride is counted in."""

    covered_s: float
    snippet_s: float
    fps: float

    def fits(self, duration_s: float) -> bool:
        """Whether they may be those of a video that lasts so long."""
        return abs(self.covered_s - duration_s) <= max(DURATION_SLACK * duration_s, 2 * self.snippet_s)


@dataclass(frozen=True, slots=True)
class Ends:
    """How many rows lie behind their video's end; rows of videos whose end nobody tells are not counted.

    `reaches` has, of each video with a row that starts behind its end, the last such row's end in lengths of the video.
    """

    rows: int = 0
    starting: int = 0
    ending: int = 0  # those that start there, too
    videos: int = 0
    reaches: tuple[float, ...] = ()

    def __add__(self, other: Ends) -> Ends:
        return Ends(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def say(self, noun: str, end: str, fps: float | None = None) -> Iterator[str]:
        """One sentence, or none; `fps` is the rate by which the ends were reckoned, where they were."""
        if not self.ending:
            return
        unit, farthest = "", max(self.reaches, default=1.0)
        if 2 * len(self.reaches) >= self.videos and np.median(self.reaches) > LIKE_FRAMES:
            rate: float = min((rate for rate in COMMON_RATES if rate >= farthest), default=math.ceil(farthest))
            guess = "milliseconds" if rate == COMMON_RATES[-1] else "frames"
            unit = f" Are these times {guess}? Divided by {rate} a second, all lie inside."
        elif fps and self.reaches and fps / farthest >= LEAST_FPS:
            rate = max((rate for rate in RATES if rate <= fps / farthest), default=math.floor(10 * fps / farthest) / 10)
            videos = "this video" if len(self.reaches) == 1 else f"these {len(self.reaches):,} videos"
            unit = f" At {rate:g} frames a second instead of {fps:g} all lie inside: is that the rate of {videos}?"
        yield (
            f"Behind {end}: {self.starting:,} of {self.rows:,} {noun}s start there, and "
            f"{self.ending - self.starting:,} more end there.{unit}"
        )


def measure_ends(
    video_N: np.ndarray, start_s_N: np.ndarray, end_s_N: np.ndarray, ends_s: Sequence[float] | np.ndarray
) -> Ends:
    """Rows against the end of each one's video, which is NaN where nobody tells it."""
    end_s_V = np.asarray(ends_s, float)
    reached_s_V, has_rows_V = np.zeros(len(end_s_V)), np.zeros(len(end_s_V), bool)
    rows = starting = ending = 0
    for first in range(0, len(video_N), BLOCK_ROWS):
        video_n, start_s_n, end_s_n = (column[first : first + BLOCK_ROWS] for column in (video_N, start_s_N, end_s_N))
        last_s_n = end_s_V[video_n]
        is_starting_n = start_s_n > last_s_n
        np.maximum.at(reached_s_V, video_n[is_starting_n], end_s_n[is_starting_n])
        has_rows_V[video_n] = True
        rows += int(np.isfinite(last_s_n).sum())
        starting += int(is_starting_n.sum())
        ending += int((end_s_n > last_s_n).sum())
    reaches = tuple((reached_s_V / end_s_V)[reached_s_V > 0].tolist())
    return Ends(rows, starting, ending, int((np.isfinite(end_s_V) & has_rows_V).sum()), reaches)
