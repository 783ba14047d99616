"""Features and ground truth into a shard set: in parallel, byte-identical for any number of workers, hard to kill.

The plan is made from file headers alone, so every shard's content is known before the first is written. Shards are
built in `OUT.partial` beside OUT; each finished one leaves a note, by which a run started again after a kill keeps it.
The last act is one rename, so a shard set is there whole or not at all; of a set that grows, the old or the new one.
Where OUT is an address, `OUT.partial` is in the current folder, a finished shard is sent off and removed here, and the
last act is to send the description, without which there is no set.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from aumn.data.columns import Made
from aumn.data.packing.options import PackOptions
from aumn.data.packing.planning import PackingReport, Plan, plan_packing, refuse_existing
from aumn.data.packing.pool import run_in_processes
from aumn.data.packing.shard_writer import PROGRESS, SHARDS, Written, read_checksums, read_finished, write_shard
from aumn.data.problems import OR_SKIP, refuse
from aumn.data.shards.layout import (
    ANNOTATIONS,
    DESCRIPTION,
    MANIFEST,
    Description,
    Shard,
    checksum,
    kept_as,
    numbered,
    read_table_bytes,
    table_of,
)
from aumn.data.shards.manifest import Manifest, schema, write_manifest
from aumn.data.shards.stores import Remote, Store, open_store
from aumn.data.truth.annotated import AnnotatedVideo
from aumn.data.truth.annotations import write_annotations
from aumn.files import hold, sync
from aumn.records import InputError, Place, place_of

logger = logging.getLogger(__name__)

SENDERS = 2  # shards on their way to a remote store at once

Progress = Callable[[int, int], None]  # videos done, videos in all


def pack(
    features: Path, out: Place, annotations: Path, *, on_progress: Progress | None = None, **options: Any
) -> PackingReport:
    """Write the shard set, or add to it, from where a stopped run of the same plan left it.

    `options` are PackOptions' fields.
    """
    out = place_of(out)
    store = open_store(out)
    if isinstance(store, Remote) and not store.is_writable:
        raise InputError(
            f"{out} is a web server's, which takes no files: give a folder, or s3://bucket/{Path(out).name}."
        )
    plan = plan_packing(PackOptions(features, str(out), annotations, **options))
    with _workplace(plan, out) as work, _sending(store, work / SHARDS) as send:
        _check_held(plan, on_progress)
        noted = [index for index, file in enumerate(plan.shards.files) if (work / PROGRESS / f"{file}.json").is_file()]
        finished = [read_finished(plan.shards[index], work, store) for index in noted]
        kept = {shard.file: _in_columns(shard, plan) for shard in finished if shard is not None}
        if outdated := len(_notes(plan, work)) - len(kept):
            logger.warning(
                "%d shards in %s were packed from other files or with other options: they are packed afresh.",
                outdated,
                work,
            )
        for file in kept:
            send(file)
        written = _write_rest(plan, kept, work, send, on_progress)
        if plan.base is None or any(shard.rows for shard in written):
            send(None)
            _put(plan, written, work / SHARDS, out)
        shutil.rmtree(work)
    return replace(
        plan.report,
        packed=dict(Counter(subset for shard in written for subset in shard.rows["subset"].to_pylist())),
        bad=_left_out(plan, written),
        kept_shards=len(kept),
        bytes=sum(shard.bytes for shard in written),
    )


@contextmanager
def _sending(store: Store, shards: Path) -> Iterator[Callable[[str | None], None]]:
    """A call that sends a finished shard to a remote store, in the background, and removes it; None waits for all."""
    pending: list[Future[None]] = []

    def put(store: Remote, file: Path) -> None:
        store.put(file.name, file)
        file.unlink()

    def send(name: str | None) -> None:
        if name is None:
            for sent in pending:
                sent.result()
        elif isinstance(store, Remote) and (shards / name).is_file():
            pending.append(threads.submit(put, store, shards / name))

    with ThreadPoolExecutor(SENDERS, "aumn-send") as threads:
        try:
            yield send
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            if isinstance(store, Remote):
                store.stopping.set()
            raise


def _refuse_meanwhile(plan: Plan, out: Place) -> None:
    """InputError where another run has made the set, or added to it, since this one looked."""
    if plan.base:
        plan.base.refuse_growth()
    else:
        refuse_existing(out)


@contextmanager
def _workplace(plan: Plan, out: Place) -> Iterator[Path]:
    """`OUT.partial`, for this process alone; left for the next run to go on from if it holds finished shards.

    See `files.hold` for file systems without flock.
    """
    beside = Path(Path(out).name) if isinstance(out, str) else out.resolve() if out.is_symlink() else out
    work = beside.with_name(beside.name + ".partial")
    lock = work / "lock"
    with hold(lock, f"Another run is packing into {out}: let it finish, or stop it first"):
        _refuse_meanwhile(plan, out)  # one that was waited for
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


def _notes(plan: Plan, work: Path) -> list[Path]:
    """Those on finished shards that are not yet in the set."""
    there = {f"{shard.file}.json" for shard in plan.description.shards}
    return [note for note in (work / PROGRESS).glob("*.json") if note.name not in there]


def _workers(plan: Plan) -> int:
    return plan.workers or len(os.sched_getaffinity(0))


def _check_held(plan: Plan, on_progress: Progress | None) -> None:
    """InputError where features of videos that the set has are others now."""
    found: dict[str, dict[str, int]] = {}
    calls = Made(lambda index: (plan.held[index],), range(len(plan.held)))
    for checksums in run_in_processes(read_checksums, calls, _workers(plan)):
        found |= checksums
        if on_progress:
            on_progress(len(found), plan.report.held + sum(plan.shards.sizes().values()))
    if plan.base:
        plan.base.refuse_others(found)


def _write_rest(
    plan: Plan, kept: dict[str, Written], work: Path, send: Callable[[str], None], on_progress: Progress | None
) -> list[Written]:
    """All shards in the plan's order, the kept ones too; bad videos are reported together, once all are read."""
    videos = plan.shards.sizes()
    written, held = dict(kept), plan.report.held

    def tell() -> None:
        if on_progress:
            on_progress(held + sum(videos[file] for file in written), held + sum(videos.values()))

    tell()
    rest = [index for index, file in enumerate(plan.shards.files) if file not in kept]
    calls = Made(lambda index: (plan.shards[index], work), rest)
    for shard in run_in_processes(write_shard, calls, _workers(plan)):
        written[shard.file] = _in_columns(shard, plan)
        send(shard.file)
        tell()
    in_order = [written[file] for file in videos]
    problems = [problem for shard in in_order for problem in shard.problems.values()]
    finished = sum(not shard.problems for shard in in_order)
    is_all = len(problems) == sum(videos.values())
    if plan.on_bad != "skip" or (is_all and not plan.base):
        refuse(
            problems,
            f"{len(problems):,} videos cannot be packed ({finished} finished shards of {len(videos)} stay in "
            f"{work} for the next run):",
            "" if is_all else OR_SKIP,
        )
    return in_order


def _in_columns(shard: Written, plan: Plan) -> Written:
    """A finished shard whose rows are a table, a tenth of their size."""
    return replace(shard, rows=table_of(shard.rows, schema(list(plan.description.streams))))


def _put(plan: Plan, written: Sequence[Written], shards: Path, out: Place) -> None:
    """Write the tables, and let the folder be the set, or its files a part of it."""
    files = {*_tables_of(plan, shards, written), *(shard.file for shard in written)}
    for file in shards.iterdir():
        if file.name in files:
            sync(file)
        else:  # of an earlier plan, or of a run that was killed
            file.unlink()
    _refuse_meanwhile(plan, out)
    sync(shards)
    store = open_store(out)
    if isinstance(store, Remote):
        tables = sorted(file.name for file in shards.iterdir() if file.name != DESCRIPTION)
        if plan.base:
            tables.append(kept_as(plan.base.description.identity))
            (shards / tables[-1]).write_bytes(store.read(DESCRIPTION))
        for name in (*tables, DESCRIPTION):
            store.put(name, shards / name)
        return
    if plan.base:
        plan.base.grow(shards)
        return
    assert isinstance(out, Path)
    shards.rename(out)
    sync(out.parent)


def _left_out(plan: Plan, written: Sequence[Written]) -> dict[str, str]:
    """The videos that were found bad by their headers, and by their values."""
    return plan.report.bad | {video: text for shard in written for video, text in shard.problems.items()}


def _tables_of(plan: Plan, shards: Path, written: Sequence[Written]) -> set[str]:
    """The names of the three files beside the tars, once they are written."""
    base, left_out = plan.base, _left_out(plan, written)
    annotated = [video for video in plan.annotated if video.id not in left_out]
    before = None
    if base:
        annotated = sorted([*base.truth.videos.values(), *annotated], key=lambda video: (video.subset, video.id))
        before = read_table_bytes(open_store(base.path), base.description.table(MANIFEST), base.description)
        left_out = dict.fromkeys({*base.description.left_out, *left_out} - {video.id for video in annotated}, "")
    description = replace(
        plan.description,
        shards=(*plan.description.shards, *(Shard(shard.file, shard.bytes) for shard in written)),
        left_out=tuple(sorted(left_out)),
    )
    tables = [shard.rows for shard in written] or [table_of([], schema(list(description.streams)))]
    growths = base.description.growths + 1 if base else 0
    on_bad = plan.on_bad  # kept with the set for instances that end before they start; where none is added, as it was
    if base and not any(instance.is_reversed for video in plan.annotated for instance in video.annotations):
        on_bad = base.truth.on_bad
    return write_tables(
        shards, description, pa.concat_tables(tables), annotated, on_bad, growths=growths, before=before
    )


def write_tables(
    folder: Path,
    description: Description,
    rows: pa.Table,
    annotated: Sequence[AnnotatedVideo],
    on_bad: str,
    *,
    growths: int = 0,
    before: bytes | None = None,
) -> set[str]:
    """The three files beside the tars; the description is the last, with the identity and the checksums that it lacks.

    Rows, those of the manifest `before` among them, and annotated videos have the same order. Returns the files' names.
    """
    streams = list(description.streams)
    manifest, annotations = numbered(MANIFEST, growths), numbered(ANNOTATIONS, growths)
    write_annotations(folder / annotations, annotated, on_bad)
    write_manifest(folder / manifest, rows, before)
    content = {table: (folder / table).read_bytes() for table in (manifest, annotations)}
    description = replace(
        description,
        identity=Manifest(content[manifest], streams).identity(description),
        checksums={table: checksum(content[table]) for table in content},
    )
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
    return {manifest, annotations, DESCRIPTION}
