"""Features and ground truth into a shard set: in parallel, byte-identical for any number of workers, hard to kill.

    plan = plan_packing(options)
    report = write(plan)

The plan is made from file headers alone, so every shard's content is known before the first is written. Shards are
built in `OUT.partial` beside OUT; each finished one leaves a note, by which a run started again after a kill keeps it.
The last act is one rename, so a shard set is there whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aumn.data.packing.options import PackOptions
from aumn.data.packing.planning import Plan, plan_packing
from aumn.data.packing.pool import run_in_processes
from aumn.data.packing.shard_writer import Row, ShardPlan, Written, read_finished, write_shard
from aumn.data.packing.workplace import Workplace, workplace
from aumn.data.problems import refuse
from aumn.data.shards.layout import ANNOTATIONS, DESCRIPTION, MANIFEST, Shard, checksum
from aumn.data.shards.manifest import read_manifest, write_manifest
from aumn.data.truth.annotations import write_annotations
from aumn.files import whole_file

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # videos done, videos in all


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What was packed, and what could not be: videos without annotations have neither subset nor labels."""

    path: Path
    packed: dict[str, int]  # subset -> videos
    classes: tuple[str, ...]
    streams: dict[str, int]  # stream -> width
    shards: int
    kept_shards: int  # of them, those that an earlier, stopped run had finished
    bytes: int
    without_features: list[str]
    without_annotations: list[str]
    source: str  # how the features were understood
    coverage: float | None  # of the durations in the ground truth, by the features: the median; None without any


def pack(
    features: Path, out: Path, annotations: Path, *, on_progress: Progress | None = None, **options: Any
) -> PackingReport:
    """Plan and write in one call; `options` are the fields of PackOptions."""
    return write(plan_packing(PackOptions(features, out, annotations, **options)), on_progress)


def write(plan: Plan, on_progress: Progress | None = None) -> PackingReport:
    """Write the planned shard set, from where a stopped run of the same plan left it."""
    out = plan.options.out
    with workplace(out) as work:
        kept = _find_finished(plan.shards, work)
        written = _write_rest(plan, kept, work, on_progress)
        _write_tables(plan, work, written)
        work.publish(out, {ANNOTATIONS, MANIFEST, DESCRIPTION, *(shard.file for shard in written)})
    return PackingReport(
        path=out,
        packed=dict(Counter(video.subset for shard in plan.shards for video in shard.videos)),
        classes=plan.description.classes,
        streams=plan.description.streams,
        shards=len(written),
        kept_shards=len(kept),
        bytes=sum(shard.bytes for shard in written),
        without_features=plan.without_features,
        without_annotations=plan.without_annotations,
        source=plan.source,
        coverage=plan.coverage,
    )


def _find_finished(plans: Sequence[ShardPlan], work: Workplace) -> dict[str, Written]:
    finished = [read_finished(plan, work.shards, work.progress) for plan in plans]
    kept = {shard.file: shard for shard in finished if shard is not None}
    outdated = len(work.notes()) - len(kept)
    if outdated:
        logger.warning(
            "%d shards in %s were packed from other files or with other options: they are packed afresh.",
            outdated,
            work.partial,
        )
    return kept


def _write_rest(plan: Plan, kept: dict[str, Written], work: Workplace, on_progress: Progress | None) -> list[Written]:
    """All shards in the plan's order, the kept ones too; bad videos are reported together, once all are read."""
    videos = {shard.file: len(shard.videos) for shard in plan.shards}
    written = dict(kept)

    def tell() -> None:
        if on_progress:
            on_progress(sum(videos[file] for file in written), sum(videos.values()))

    tell()
    calls = [(shard, work.shards, work.progress) for shard in plan.shards if shard.file not in kept]
    for shard in run_in_processes(write_shard, calls, plan.workers or len(os.sched_getaffinity(0))):
        written[shard.file] = shard
        tell()
    in_order = [written[file] for file in videos]
    problems = [problem for shard in in_order for problem in shard.problems]
    finished = sum(not shard.problems for shard in in_order)
    refuse(
        problems,
        f"{len(problems):,} videos cannot be packed ({finished} finished shards of {len(videos)} stay in "
        f"{work.partial} for the next run):",
    )
    return in_order


def _write_tables(plan: Plan, work: Workplace, written: Sequence[Written]) -> None:
    """The three files beside the tars; the description is the last."""
    rows: list[Row] = [row for shard in written for row in shard.rows]
    streams = list(plan.description.streams)
    with whole_file(work.shards / ANNOTATIONS) as partial, partial.open("wb") as file:
        write_annotations(file, plan.annotated)
    with whole_file(work.shards / MANIFEST) as partial, partial.open("wb") as file:
        write_manifest(file, rows, streams)
    content = {table: (work.shards / table).read_bytes() for table in (MANIFEST, ANNOTATIONS)}
    description = replace(
        plan.description,
        identity=read_manifest(content[MANIFEST], streams).identity(plan.description),
        shards=tuple(Shard(shard.file, shard.bytes) for shard in written),
        checksums={table: checksum(content[table]) for table in content},
    )
    with whole_file(work.shards / DESCRIPTION) as partial:
        partial.write_text(description.to_json(), encoding="utf-8")
