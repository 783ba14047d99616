"""Scores of every snippet on disk, for looking at: attention, class activation, similarity to the action units.

`<detections>/scores/` holds a Parquet part a rank, with a row a video and stream. Scores are fractions in steps of
1/255, a byte a snippet: enough to draw, too coarse to localize by. What a page of thousands of videos has no use for is
left out: see `SnippetScores` for which classes and units are kept.

Letters: T snippets, C classes of the model, c of them kept, K action units, k of them kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from aumn.files import whole_file
from aumn.inference.parts import part_of
from aumn.records import Clock, InputError, Video, VideoScores

FOLDER = "scores"
STEPS = 255
ALL_CLASSES = 32  # a model of at most so many classes has them all kept
KEPT_CLASSES = 8  # of more: those that the video holds or was found to hold, and the best up to so many
KEPT_UNITS = 64  # of more: those that the subset's snippets are most similar to
BATCH_ROWS = 1024  # few enough that their cells, which are copied, are still in cache


@dataclass(frozen=True, slots=True)
class SnippetScores:
    """One stream's scores of one video. Snippet i covers the `snippet_s` from second first_s + i * snippet_s on."""

    video: str
    stream: str
    duration_s: float
    snippet_s: float
    attention_T: np.ndarray  # uint8, Eq. 7
    threshold: float  # the mean attention, above which a proposal lies
    classes: list[int]  # those kept, ascending
    video_c: list[float]  # their Eq. 8
    cas_cT: np.ndarray  # uint8, their Eq. 15 after its softmax
    units: list[int]  # those kept, ascending; the same ones in every video
    similarity_kT: np.ndarray  # uint8, Eq. 5
    peak_k: list[float]  # each unit's highest similarity, to full precision
    peak_snippet_k: list[int]  # the snippet that has it, of several the first
    first_s: float = 0.0  # not in parts from before there were windows


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """What the parts of a folder say of the model together: its name, its classes, how many units a stream has."""

    model: str
    classes: tuple[str, ...]
    units: int
    weights: dict[str, float]  # each stream's share where they are combined


def compact(
    video: Video,
    stream: str,
    scores: VideoScores,
    similarity_Tk: np.ndarray,
    *,
    clock: Clock,
    classes: Sequence[int],
    units: Sequence[int],
) -> SnippetScores:
    """Round one stream's scores of one video; `units` are the columns of `similarity_Tk`."""
    kept = list(classes)
    return SnippetScores(
        video=video.id,
        stream=stream,
        duration_s=clock.lasts_s(len(scores.attention_T), video.fps),
        snippet_s=clock.stride_frames / video.fps,
        first_s=clock.seconds(0, video.fps),
        attention_T=_round(scores.attention_T),
        threshold=float(scores.attention_T.mean()),
        classes=kept,
        video_c=scores.video_C[kept].tolist(),
        cas_cT=_round(scores.cas_TC[:, kept].T),
        units=list(units),
        similarity_kT=_round(similarity_Tk.T),
        peak_k=similarity_Tk.max(0).tolist(),
        peak_snippet_k=similarity_Tk.argmax(0).tolist(),
    )


def classes_to_keep(scores: Mapping[str, VideoScores], video: Video, detected: Sequence[int]) -> list[int]:
    """All classes if they are few, else the labels, the detected and the best ones by the streams' mean video score."""
    video_C = np.mean([score.video_C for score in scores.values()], axis=0)
    if len(video_C) <= ALL_CLASSES:
        return list(range(len(video_C)))
    kept = dict.fromkeys([*video.labels, *detected])
    for label in np.argsort(-video_C, kind="stable").tolist():
        if len(kept) >= KEPT_CLASSES:
            break
        kept.setdefault(label)
    return sorted(kept)


def write_scores(folder: Path, rank: int, rows: Sequence[SnippetScores], model: ScoredModel) -> None:
    """Write one rank's part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        **dict.fromkeys(("video", "stream"), pa.string()),
        **dict.fromkeys(("duration_s", "snippet_s", "first_s", "threshold"), pa.float64()),
        **dict.fromkeys(("attention_T", "cas_cT", "similarity_kT"), pa.binary()),
        **dict.fromkeys(("classes", "units", "peak_snippet_k"), pa.list_(pa.int32())),
        **dict.fromkeys(("video_c", "peak_k"), pa.list_(pa.float64())),
    }
    names = [field.name for field in fields(SnippetScores)]
    cells = [{name: getattr(row, name) for name in names} for row in rows]
    cells = [
        {name: cell.tobytes() if isinstance(cell, np.ndarray) else cell for name, cell in row.items()} for row in cells
    ]
    table = pa.Table.from_pylist(cells, pa.schema([(name, kinds[name]) for name in names]))
    table = table.replace_schema_metadata({"aumn.scores": json.dumps(asdict(model))})
    with whole_file(part_of(folder, rank)) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_scores(folder: Path) -> tuple[ScoredModel, Iterator[SnippetScores]]:
    """The model and the rows of a `scores` folder, part by part."""
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("*.parquet"))
    facts = [json.loads((pq.read_schema(part).metadata or {}).get(b"aumn.scores", b"null")) for part in parts]
    if not parts or facts[0] is None or any(other != facts[0] for other in facts):
        raise InputError(f"{folder} holds no scores of one model: localize again with --scores into a new folder.")
    first: dict[str, Any] = {**facts[0], "classes": tuple(facts[0]["classes"])}
    if (theta := first.pop("theta", None)) is not None:  # up to commit 497c31b
        first["weights"] = {"rgb": theta, "flow": 1 - theta}
    model = ScoredModel(**first)
    # `pq.read_table` would first import pandas, for half a second.
    batches = (batch for part in parts for batch in pq.ParquetFile(part).iter_batches(BATCH_ROWS))
    return model, (_from_cells(row) for batch in batches for row in batch.to_pylist())


def _from_cells(row: dict[str, Any]) -> SnippetScores:
    snippets = len(row["attention_T"])
    for name in ("attention_T", "cas_cT", "similarity_kT"):
        scores = np.frombuffer(row[name], np.uint8)
        row[name] = scores if name == "attention_T" else scores.reshape(-1, snippets)
    return SnippetScores(**row)


def _round(fraction: np.ndarray) -> np.ndarray:
    return np.round(np.ascontiguousarray(fraction) * STEPS).astype(np.uint8)
