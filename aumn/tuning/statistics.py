"""What a shard set tells of itself without its instances: how many videos, how long, with how many labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from aumn.data.shards.shard_set import ShardSet


class Statistics(BaseModel):
    """Of the videos to train on; the manifest and the labels say all of it."""

    videos: int
    classes: int
    widths: dict[str, int]
    snippets: tuple[int, int, int]  # of the shortest, the median and the longest video
    snippet_s: float  # median
    labels: float  # a video, mean
    share_several: float  # of the videos, with more than one label
    share_none: float
    videos_a_class: tuple[int, int]  # of the rarest class, and median

    @classmethod
    def of(cls, shards: ShardSet, indices: Sequence[int]) -> Statistics:
        """Look at these videos."""
        videos = [shards.videos[index] for index in indices]
        labels_N = np.array([len(video.labels) for video in videos])
        snippets_N = np.array([video.snippets for video in videos])
        counts = Counter(label for video in videos for label in video.labels)
        of_class_C = [counts[label] for label in range(len(shards.classes))]
        return cls(
            videos=len(videos),
            classes=len(shards.classes),
            widths=dict(shards.streams),
            snippets=(int(snippets_N.min()), int(np.median(snippets_N)), int(snippets_N.max())),
            snippet_s=float(np.median([shards.stride_frames / video.fps for video in videos])),
            labels=float(labels_N.mean()),
            share_several=float((labels_N > 1).mean()),
            share_none=float((labels_N == 0).mean()),
            videos_a_class=(min(of_class_C), int(np.median(of_class_C))),
        )

    def describe(self) -> str:
        """A sentence for people."""
        shortest, median, longest = self.snippets
        widths = ", ".join(f"{stream} {width}" for stream, width in self.widths.items())
        return (
            f"{self.videos:,} training videos of {shortest:,} to {longest:,} snippets of {self.snippet_s:.3g} s "
            f"(median {median:,}), {widths} wide; {self.classes:,} classes in {self.videos_a_class[0]:,} or more each; "
            f"{self.labels:.1f} labels a video, several in {self.share_several:.0%} and none in {self.share_none:.0%}"
        )
