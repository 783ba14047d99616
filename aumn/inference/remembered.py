"""Scores of a set of videos, computed once, to be localized by many rules.

They are kept as float32, in which the network computes, so that detections are to the last bit those of `localize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from aumn.inference.proposals import detect, together
from aumn.inference.settings import LocalizeSettings
from aumn.model.aumn import StreamNetworks
from aumn.records import Batch, Clock, Detections, Video, VideoScores
from aumn.runfolder.checkpoint import ModelCard


@dataclass(frozen=True, slots=True)
class RememberedScores:
    """What a network says of videos: `scores` has every stream's of each of `videos`."""

    videos: tuple[Video, ...]
    scores: tuple[dict[str, VideoScores], ...]
    classes: tuple[str, ...]
    clock: Clock

    @classmethod
    def of(
        cls,
        network: StreamNetworks,
        batches: Iterable[Batch],
        card: ModelCard,
        *,
        advance: Callable[[int], None] = lambda _done: None,
    ) -> RememberedScores:
        """Of the batches' videos, of which each batch has one."""
        videos: list[Video] = []
        scores: list[dict[str, VideoScores]] = []
        for batch in batches:
            videos += batch.videos
            scores.append(_as(np.float32, network.localize(batch)))
            advance(len(videos))
        return cls(tuple(videos), tuple(scores), card.classes, card.clock)

    def localize(self, rules: LocalizeSettings) -> Detections:
        """The detections that these rules make of them."""
        pairs = zip(self.videos, self.scores, strict=True)
        found = [detect(_as(np.float64, score), video, self.clock, rules) for video, score in pairs]
        return together([video.id for video in self.videos], found, self.classes)


def _as(dtype: type[np.floating], scores: dict[str, VideoScores]) -> dict[str, VideoScores]:
    def converted(score: VideoScores) -> VideoScores:
        return VideoScores(*(part.astype(dtype) for part in (score.video_C, score.attention_T, score.cas_TC)))

    return {stream: converted(score) for stream, score in scores.items()}
