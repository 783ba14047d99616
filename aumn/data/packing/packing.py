"""Features and ground truth into a shard set: in parallel, byte-identical for any number of workers, hard to kill.

The plan is made from file headers alone, so every shard's content is known before the first is written. Shards are
built in `OUT.partial` beside OUT; each finished one leaves a note, by which a run started again after a kill keeps it.
The last act is one rename, so a shard set is there whole or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aumn.data.packing.options import PackOptions
from aumn.data.packing.planning import PackingReport, Plan, plan_packing, refuse_existing
from aumn.data.packing.pool import run_in_processes
from aumn.data.packing.shard_writer import PROGRESS, SHARDS, Row, Written, read_finished, write_shard
from aumn.data.problems import OR_SKIP, refuse
from aumn.data.shards.layout import ANNOTATIONS, DESCRIPTION, MANIFEST, Description, Shard, checksum
from aumn.data.shards.manifest import Manifest, write_manifest
from aumn.data.truth.annotated import AnnotatedVideo
from aumn.data.truth.annotations import write_annotations
from aumn.files import hold, sync
from aumn.records import InputError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # videos done, videos in all


def pack(
    features: Path, out: Path, annotations: Path, *, on_progress: Progress | None = None, **options: Any
) -> PackingReport:
    """Write the shard set, from where a stopped run of the same plan left it; `options` are PackOptions' fields."""
    plan = plan_packing(PackOptions(features, out, annotations, **options))
    with _workplace(out) as work:
        finished = [read_finished(shard, work) for shard in plan.shards]
        kept = {shard.file: shard for shard in finished if shard is not None}
        if outdated := len(list((work / PROGRESS).glob("*.json"))) - len(kept):
            logger.warning(
                "%d shards in %s were packed from other files or with other options: they are packed afresh.",
                outdated,
                work,
            )
        written = _write_rest(plan, kept, work, on_progress)
        shards = work / SHARDS
        left_out = _left_out(plan, written)
        description = replace(
            plan.description,
            shards=tuple(Shard(shard.file, shard.bytes) for shard in written),
            left_out=tuple(sorted(left_out)),
        )
        annotated = [video for video in plan.annotated if video.id not in left_out]
        write_tables(shards, description, [row for shard in written for row in shard.rows], annotated, plan.on_bad)
        files = {ANNOTATIONS, MANIFEST, DESCRIPTION, *(shard.file for shard in written)}
        for file in shards.iterdir():
            if file.name in files:
                sync(file)
            else:  # of an earlier plan, or of a run that was killed
                file.unlink()
        refuse_existing(out)
        sync(shards)
        shards.rename(out)
        sync(out.parent)
        shutil.rmtree(work)
    return replace(
        plan.report,
        packed=dict(Counter(row["subset"] for shard in written for row in shard.rows)),
        bad=left_out,
        kept_shards=len(kept),
        bytes=sum(shard.bytes for shard in written),
    )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """`OUT.partial`, for this process alone; left for the next run to go on from if it holds finished shards.

    See `files.hold` for file systems without flock.
    """
    work = out.with_name(out.name + ".partial")
    lock = work / "lock"
    with hold(lock, f"Another run is packing into {out}: let it finish, or stop it first"):
        refuse_existing(out)  # the run that was waited for may have made it
        if not lock.exists():  # or have given up and removed it
            raise InputError(f"The run that was packing into {out} has just ended: run the same command again.")
        try:
            for folder in (work / SHARDS, work / PROGRESS):
                folder.mkdir(exist_ok=True)
                for unfinished in folder.glob(".*.partial"):
                    unfinished.unlink()
            yield work
        finally:
            if work.exists() and not any((work / PROGRESS).glob("*.json")):
                shutil.rmtree(work)


def _write_rest(plan: Plan, kept: dict[str, Written], work: Path, on_progress: Progress | None) -> list[Written]:
    """All shards in the plan's order, the kept ones too; bad videos are reported together, once all are read."""
    videos = {shard.file: len(shard.videos) for shard in plan.shards}
    written = dict(kept)

    def tell() -> None:
        if on_progress:
            on_progress(sum(videos[file] for file in written), sum(videos.values()))

    tell()
    calls = [(shard, work) for shard in plan.shards if shard.file not in kept]
    for shard in run_in_processes(write_shard, calls, plan.workers or len(os.sched_getaffinity(0))):
        written[shard.file] = shard
        tell()
    in_order = [written[file] for file in videos]
    problems = [problem for shard in in_order for problem in shard.problems.values()]
    finished = sum(not shard.problems for shard in in_order)
    is_all = len(problems) == sum(videos.values())
    if plan.on_bad != "skip" or is_all:
        refuse(
            problems,
            f"{len(problems):,} videos cannot be packed ({finished} finished shards of {len(videos)} stay in "
            f"{work} for the next run):",
            "" if is_all else OR_SKIP,
        )
    return in_order


def _left_out(plan: Plan, written: Sequence[Written]) -> dict[str, str]:
    """The videos that were found bad by their headers, and by their values."""
    return plan.report.bad | {video: text for shard in written for video, text in shard.problems.items()}


def write_tables(
    folder: Path, description: Description, rows: list[Row], annotated: Sequence[AnnotatedVideo], on_bad: str
) -> None:
    """The three files beside the tars; the description is the last, with the identity and the checksums that it lacks.

    Rows and annotated videos have the same order.
    """
    streams = list(description.streams)
    write_annotations(folder / ANNOTATIONS, annotated, on_bad)
    write_manifest(folder / MANIFEST, rows, streams)
    content = {table: (folder / table).read_bytes() for table in (MANIFEST, ANNOTATIONS)}
    description = replace(
        description,
        identity=Manifest(content[MANIFEST], streams).identity(description),
        checksums={table: checksum(content[table]) for table in content},
    )
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
