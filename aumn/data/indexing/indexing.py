"""Tars that others packed into a shard set, without copying them: a manifest of where everything lies in them.

Tars are looked through in parallel; what is written does not depend on by how many processes. Where no ground truth is
given, what the samples tell of themselves takes its place, and everything behind it is as in packing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from aumn.data.indexing.choosing import choose
from aumn.data.indexing.options import IndexOptions
from aumn.data.indexing.samples import Found, TarIndex, Wanted, read_tar
from aumn.data.indexing.tars import Tar, common_place, find_tars
from aumn.data.indexing.telling import Named, fill_gaps, name_samples, tell_videos
from aumn.data.packing.packing import write_tables
from aumn.data.packing.planning import (
    PackingReport,
    look_at_truth,
    match,
    measure_coverage,
    order_classes,
    plan_videos,
    read_classes,
    refuse_existing,
    refuse_rescaled,
    say_times,
)
from aumn.data.packing.pool import run_in_processes
from aumn.data.packing.shard_writer import PlannedVideo, Row
from aumn.data.problems import OR_SKIP, about, refuse
from aumn.data.shards.layout import FORMAT_VERSION, Description, Shard, table_of
from aumn.data.shards.manifest import MEMBER_PARTS, schema
from aumn.data.sources.features import Features, VideoFeatures
from aumn.data.sources.forms import find_forms
from aumn.data.truth.annotations import Annotations, read_annotations
from aumn.files import sync, whole_folder
from aumn.records import Clock, InputError, Place

Samples = list[tuple[int, Found]]  # with the number of its tar


def index(
    tars: Sequence[str], out: Path, *, on_progress: Callable[[int, int], None] | None = None, **options: Any
) -> PackingReport:
    """Make the set; `options` are IndexOptions' fields, and progress is counted in tars."""
    chosen = IndexOptions(list(tars), out, **options)
    refuse_existing(out, grows=False)
    classes = read_classes(chosen.classes)
    found, notes = find_tars(chosen.tars)
    wanted = choose(chosen, found[0])
    indexed = _read_all(found, wanted, chosen.workers, on_progress)
    names = _names_of(found)
    bad = {f"{names[tar.number]}/{key}": text for tar in indexed for key, text in tar.bad.items()}
    samples = [(tar.number, each) for tar in indexed for each in tar.samples]
    for stream, suffix in wanted.streams.items() if chosen.transposed is None else ():
        found_as = [each.arrays[stream] for _, each in samples]
        find_forms(f"The members {suffix}", {(array.snippets, array.width) for array in found_as}, None, None)
    samples, widths, dtype = _check_widths(samples, names, bad)
    named, id_source = name_samples(samples, chosen, bad)
    truth = _read_truth(chosen, named, found, classes, bad)
    taken = {each.id: each for each in named if each.id not in bad and (chosen.annotations or each.id in truth.videos)}
    if chosen.on_bad != "skip" or not taken:
        headline = f"{len(bad):,} samples of {' '.join(chosen.tars)} cannot be taken:"
        refuse(list(bad.values()), headline, OR_SKIP if taken else "")
    clock = Clock(chosen.stride_frames, chosen.window_frames or chosen.stride_frames)
    source = Path(chosen.tars[0])
    ids = match(source, taken.keys(), truth)
    snippets_N = np.array([_snippets(taken[video]) for video in ids])
    features = Features(ids, snippets_N, [VideoFeatures(video, _snippets(taken[video]), {}) for video in ids])
    refuse_rescaled(source, features, truth, chosen.rescaled)
    ordered = order_classes(truth, classes)
    is_rescaled = bool(chosen.rescaled)
    videos = plan_videos(features, truth, ordered, clock, chosen.fps, is_rescaled=is_rescaled, facts={})
    annotated = [truth.videos[video] for video in ids]
    used = {number: place for place, number in enumerate(sorted({taken[video].tar for video in ids}))}
    folder = common_place([found[number].path for number in used])
    description = Description(
        FORMAT_VERSION,
        chosen.name or out.name,
        "",
        ordered,
        widths,
        dtype.name,
        clock.stride_frames,
        tuple(Shard(_name_in(folder, found[number].path), indexed[number].bytes) for number in used),
        {},
        window_frames=None if len(set(clock)) == 1 else clock.window_frames,
        left_out=tuple(sorted(bad)),
        tars=_seen_from(out, folder, source),
        decoded=_decoded(taken, wanted, dtype),
        transposed=wanted.is_transposed,
    )
    rows = table_of([_row(video, taken[video.features.video], used) for video in videos], schema(list(widths)))
    with whole_folder(out, checksums=False) as work:
        write_tables(work, description, rows, annotated, chosen.on_bad)
        for file in (*work.iterdir(), work):
            sync(file)
    return PackingReport(
        path=out,
        packed=dict(Counter(video.subset for video in videos)),
        classes=ordered,
        streams=widths,
        shards=len(used),
        without_features=sorted(truth.videos.keys() - taken),
        without_annotations=sorted(taken.keys() - truth.videos),
        bad=bad,
        source="; ".join(
            [
                *_say_members(wanted, description.decoded),
                f"names from {id_source}",
                *_say_labels(taken),
                say_times(clock, sorted({video.fps for video in videos}), is_rescaled=is_rescaled),
            ]
        ),
        coverage=None if is_rescaled else measure_coverage(videos, truth, clock),
        notes=[*notes, *_say_beside(indexed, wanted, chosen), *look_at_truth(videos, annotated, clock, chosen.on_bad)],
        bytes=sum(shard.bytes for shard in description.shards),
    )


def _read_all(
    tars: Sequence[Tar], wanted: Wanted, workers: int | None, on_progress: Callable[[int, int], None] | None
) -> list[TarIndex]:
    calls = [(number, tar, wanted) for number, tar in enumerate(tars)]
    indexed: dict[int, TarIndex] = {}
    for each in run_in_processes(read_tar, calls, workers or len(os.sched_getaffinity(0))):
        indexed[each.number] = each
        if on_progress:
            on_progress(len(indexed), len(tars))
    return [indexed[number] for number in range(len(tars))]


def _check_widths(
    samples: Samples, names: Sequence[str], bad: dict[str, str]
) -> tuple[Samples, dict[str, int], np.dtype[Any]]:
    """The samples with the streams' usual widths; those; and the set's dtype, which holds what all members hold."""
    if not samples:
        refuse(list(bad.values()), f"None of the {len(bad):,} samples can be taken:")
        raise InputError("The tars hold no samples: give WebDataset tars, whose members are named KEY.SUFFIX.")
    widths = {stream: mode(found.arrays[stream].width for _, found in samples) for stream in samples[0][1].arrays}
    good = []
    for tar, found in samples:
        odd = [stream for stream, array in found.arrays.items() if array.width != widths[stream]]
        if odd:
            bad[f"{names[tar]}/{found.key}"] = (
                f"Sample {found.key!r} has {odd[0]} features of width {found.arrays[odd[0]].width} where the others' "
                f"have {widths[odd[0]]}: extract it with the same network."
            )
        else:
            good.append((tar, found))
    kinds = {np.dtype(array.dtype).newbyteorder("=") for _, found in good for array in found.arrays.values()}
    return good, widths, np.dtype(np.float16 if kinds == {np.dtype(np.float16)} else np.float32)


def _read_truth(
    options: IndexOptions,
    named: Sequence[Named],
    tars: Sequence[Tar],
    classes: Sequence[str] | None,
    bad: dict[str, str],
) -> Annotations:
    if options.annotations is None:
        return Annotations(Path(options.tars[0]), tell_videos(named, tars, options, classes, bad))
    truth = read_annotations(options.annotations, allow_pickle=options.allow_pickle)
    filled = {}
    for each in (each for each in named if each.id in truth.videos):
        try:
            with about(f"{tars[each.tar].path}: sample {each.found.key!r}"):
                filled[each.id] = fill_gaps(truth.videos[each.id], each)
        except InputError as error:
            bad[each.id] = str(error)
    return replace(truth, videos={**truth.videos, **filled})


def _snippets(named: Named) -> int:
    return next(iter(named.found.arrays.values())).snippets


def _decoded(taken: Mapping[str, Named], wanted: Wanted, dtype: np.dtype[Any]) -> dict[str, str]:
    """The streams whose members are not all plain arrays of the set's dtype."""
    is_decoded = {
        stream: any(
            not each.found.arrays[stream].is_plain or np.dtype(each.found.arrays[stream].dtype) != dtype
            for each in taken.values()
        )
        for stream in wanted.streams
    }
    return {stream: suffix for stream, suffix in wanted.streams.items() if is_decoded[stream]}


def _row(video: PlannedVideo, named: Named, used: Mapping[int, int]) -> Row:
    row: Row = {
        "id": named.id,
        "subset": video.subset,
        "shard": used[named.tar],
        "snippets": video.features.snippets,
        "labels": video.labels,
        "duration_s": video.duration_s,
        "fps": video.fps,
    }
    places = named.found.arrays.items()
    return row | {f"{stream}_{part}": getattr(array, part) for stream, array in places for part in MEMBER_PARTS}


def _names_of(tars: Sequence[Tar]) -> list[str]:
    """By which samples of tars are told apart, whose keys may come again."""
    folder = common_place([tar.path for tar in tars])
    return [_name_in(folder, tar.path) for tar in tars]


def _name_in(folder: Place, tar: Place) -> str:
    return str(Path(tar).resolve().relative_to(folder)) if isinstance(folder, Path) else Path(tar).name


def _seen_from(out: Path, folder: Place, given: Path) -> str:
    """The tars' folder as it was given: from the root, or from the set, so that the two can be moved together."""
    if isinstance(folder, str):
        return folder
    return str(folder) if given.is_absolute() else os.path.relpath(folder, out.resolve())


def _say_beside(indexed: Sequence[TarIndex], wanted: Wanted, options: IndexOptions) -> Iterator[str]:
    """What else the samples of all tars have, where the user did not choose."""
    beside = sorted({suffix for tar in indexed for suffix in tar.arrays} - {*wanted.streams.values()})
    if beside and not options.streams:
        yield f"Not taken: the members {', '.join(beside)}. To take others: --streams."


def _say_members(wanted: Wanted, decoded: Mapping[str, str]) -> Iterator[str]:
    for stream, suffix in wanted.streams.items():
        yield f"{stream} from members {suffix}, {'decoded at every read' if stream in decoded else 'read in place'}"


def _say_labels(taken: Mapping[str, Named]) -> Iterator[str]:
    sources = {each.found.facts["labels"][0] for each in taken.values() if "labels" in each.found.facts}
    if sources:
        yield f"labels from {' and '.join(sorted(sources))}"
