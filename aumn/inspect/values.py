"""What one video's values, or all of them together, look like, and what looks wrong about them.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aumn.records import Video

SCALE_FACTOR = 5.0  # a stream that deviates this much more or less than the usual is of another extraction
REPEATED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """All values of one stream together."""

    width: int
    lowest: float
    highest: float
    mean: float
    deviation: float
    zeros: float  # their share


@dataclass(frozen=True, slots=True)
class VideoValues:
    """One video's values in each stream."""

    video: Video
    streams: dict[str, StreamFacts]


@dataclass(frozen=True, slots=True)
class Finding:
    """A video that looks wrong, and why."""

    kind: str  # damaged, not finite, constant, repeated, duplicated, scale, duration
    video: str
    subset: str
    text: str


def measure_stream(features_TD: np.ndarray) -> tuple[StreamFacts | None, tuple[str, str] | None]:
    """A stream's values, None where they are not finite; and what looks wrong about them, its kind and how."""
    low_D, high_D = features_TD.min(axis=0), features_TD.max(axis=0)
    if not (np.isfinite(low_D).all() and np.isfinite(high_D).all()):
        bad = int((~np.isfinite(features_TD)).sum())
        return None, ("not finite", f"has {bad:,} NaN or infinite values")
    facts = StreamFacts(
        width=features_TD.shape[1],
        lowest=float(low_D.min()),
        highest=float(high_D.max()),
        mean=float(features_TD.mean(dtype=np.float64)),
        deviation=float(features_TD.std(dtype=np.float64)),
        zeros=float((features_TD == 0).mean()),
    )
    return facts, _find_standstill(features_TD, low_D, high_D)


def _find_standstill(features_TD: np.ndarray, low_D: np.ndarray, high_D: np.ndarray) -> tuple[str, str] | None:
    snippets = len(features_TD)
    if not high_D.any() and not low_D.any():
        return "constant", "is all zeros"
    if snippets > 1 and (low_D == high_D).all():
        return "constant", f"is the same in all {snippets:,} snippets"
    repeats = int((features_TD[1:] == features_TD[:-1]).all(axis=1).sum())
    if repeats >= REPEATED_SHARE * snippets:
        return "repeated", f"repeats the snippet before in {repeats:,} of {snippets:,} snippets"
    return None


def compare_scales(values: Sequence[VideoValues]) -> Iterator[Finding]:
    """Streams whose values are spread far more, or far less, than the middle video's."""
    for stream in values[0].streams if values else ():
        usual = float(np.median([seen.streams[stream].deviation for seen in values]))
        for seen in values:
            deviation = seen.streams[stream].deviation
            if deviation and usual and not 1 / SCALE_FACTOR <= deviation / usual <= SCALE_FACTOR:
                text = f"{stream} deviates by {deviation:.3g} from its mean, the middle video's by {usual:.3g}"
                yield Finding("scale", seen.video.id, seen.video.subset, text)


def take_together(values: Sequence[VideoValues], stream: str) -> StreamFacts:
    """One stream's values in all videos as if they were one; NaN where there is no video."""
    facts = [seen.streams[stream] for seen in values]
    if not facts:
        return StreamFacts(0, *[float("nan")] * 5)
    weights = np.array([seen.video.snippets for seen in values], float)
    means, deviations, zeros = (
        np.array([getattr(part, name) for part in facts]) for name in ("mean", "deviation", "zeros")
    )
    mean = float(np.average(means, weights=weights))
    variance = np.average(deviations**2 + (means - mean) ** 2, weights=weights)
    return StreamFacts(
        width=facts[0].width,
        lowest=min(part.lowest for part in facts),
        highest=max(part.highest for part in facts),
        mean=mean,
        deviation=float(np.sqrt(variance)),
        zeros=float(np.average(zeros, weights=weights)),
    )
