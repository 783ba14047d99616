"""Keeping every snippet's scores while a subset is localized, for the report; see `snippet_scores`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from aumn.inference.proposals import VideoDetections
from aumn.inference.snippet_scores import (
    FOLDER,
    KEPT_UNITS,
    ScoredModel,
    SnippetScores,
    classes_to_keep,
    compact,
    write_scores,
)
from aumn.model.aumn import TwoStream
from aumn.records import Batch, VideoScores
from aumn.runfolder.checkpoint import ModelCard
from aumn.runtime.ranks import Ranks


class ScoreKeeper:
    """Gathers a rank's videos; called with each one as it is localized."""

    def __init__(self, network: TwoStream, card: ModelCard, units: dict[str, list[int]]) -> None:
        self.network, self.card, self.units = network, card, units
        self.rows: list[SnippetScores] = []

    @classmethod
    def of(
        cls, network: TwoStream, batches: Callable[[], Iterable[Batch]], card: ModelCard, ranks: Ranks
    ) -> ScoreKeeper:
        """A keeper on each rank. A memory of many units needs a pass over the videos first, to choose those to keep."""
        count = card.model.units
        if count <= KEPT_UNITS:
            return cls(network, card, {stream: list(range(count)) for stream in card.streams})
        return cls(network, card, _most_similar(network, batches(), card, ranks))

    def __call__(self, batch: Batch, scores: dict[str, VideoScores], found: VideoDetections) -> None:
        """Keep one video's scores."""
        (video,) = batch.videos
        classes = classes_to_keep(scores, video, found.label_N.tolist())
        similarity = self.network.similarity(batch, self.units)
        for stream, score in scores.items():
            self.rows.append(
                compact(
                    video,
                    stream,
                    score,
                    similarity[stream],
                    stride_frames=self.card.stride_frames,
                    classes=classes,
                    units=self.units[stream],
                )
            )

    def write(self, detections: Path, model: str, rank: int) -> None:
        """Write what this rank gathered, beside its detections."""
        card = self.card
        facts = ScoredModel(model, card.classes, card.model.units, card.localize.theta)
        write_scores(detections / FOLDER, rank, self.rows, facts)


def _most_similar(network: TwoStream, batches: Iterable[Batch], card: ModelCard, ranks: Ranks) -> dict[str, list[int]]:
    """The units that the subset's snippets are most similar to, by the mean over videos of their mean; at any ranks."""
    means: dict[str, Tensor] = {stream: torch.zeros(card.model.units, dtype=torch.float64) for stream in card.streams}
    for batch in batches:
        for stream, sums_BK in network.unit_sums(batch).items():
            means[stream] += sums_BK[0].double().cpu() / batch.lengths[0]
    kept = {}
    for stream, mean_K in means.items():
        total_K = torch.stack(ranks.gather(mean_K)).sum(0)
        kept[stream] = sorted(total_K.argsort(descending=True, stable=True)[:KEPT_UNITS].tolist())
    return kept
