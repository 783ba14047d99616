"""`aumn synth`, `aumn pack`, `aumn index`: features into shards; `aumn inspect`: a shard set looked through."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aumn.addresses import public
from aumn.cli.console import progress
from aumn.cli.options import signature_of
from aumn.cli.printing import print_packing, print_table
from aumn.data.indexing.options import IndexOptions
from aumn.data.packing.options import PackOptions
from aumn.records import Clock, place_of

if TYPE_CHECKING:
    from aumn.inspect.inspection import Inspection

SHOWN = 20


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    videos: Annotated[int, typer.Option(help="How many videos.")],
    seed: Annotated[int, typer.Option(help="Everything is a function of it.")] = 0,
    classes: Annotated[int, typer.Option(help="Action classes; they share action units.")] = 10,
    units: Annotated[int, typer.Option(help="True action units.")] = 16,
    width: Annotated[int, typer.Option(help="D, values a snippet in each stream.")] = 1024,
    snippets: Annotated[int, typer.Option(help="Mean length of a video, in snippets.")] = 128,
    noise: Annotated[float, typer.Option(help="Scale of the noise on every value.")] = 1.0,
    testing_share: Annotated[float, typer.Option(help="Share of the videos in subset `testing`.")] = 1 / 3,
    streams: Annotated[str, typer.Option(help="One to eight names, e.g. rgb or rgb,flow,audio.")] = "rgb,flow",
) -> None:
    """Make features with known action units, and their ground truth.

    Example: aumn synth build/demo/features --videos 60 --width 256
    """
    from aumn.synth import synthesize

    with progress("synthesizing", "videos") as advance:
        report = synthesize(
            out,
            videos=videos,
            seed=seed,
            classes=classes,
            units=units,
            width=width,
            testing_share=testing_share,
            mean_snippets=snippets,
            noise=noise,
            streams=streams.split(","),
            on_progress=advance,
        )
    print(
        f"{out}: {report.training} training and {report.testing} testing videos, {report.instances} instances, "
        f"{report.bytes_written / 1e6:,.0f} MB of SYNTHETIC features"
    )


def pack(**given: Any) -> None:
    """Pack features and ground truth into WebDataset shards with a manifest.

    Features: .npy, .npz, HDF5, .mat, .pt, .csv and pickled arrays, in the layouts that docs/own_data.md shows.
    Interrupted, the same command goes on from the shards that are finished.

    Example: aumn pack build/demo/features build/demo/shards --annotations build/demo/features/gt.json
    """
    from aumn.data.packing import packing

    with progress("packing", "videos") as advance:
        report = packing.pack(**given, on_progress=advance)
    print_packing(report)


pack.__signature__ = signature_of(PackOptions, arguments=("features", "out"))  # type: ignore[attr-defined]


def index(**given: Any) -> None:
    """Make a shard set of WebDataset tars that somebody else packed, where they lie.

    Members are read by their place in the tars, which are neither copied nor changed: plain .npy as they are, .pth,
    .npz and others decoded at every read. Labels, subsets and durations are as --annotations or the samples tell.

    Example: aumn index build/demo/shards --out build/demo/indexed
    """
    from aumn.data.indexing import indexing

    with progress("indexing", "tars") as advance:
        report = indexing.index(**given, on_progress=advance)
    print_packing(report)


index.__signature__ = signature_of(IndexOptions, arguments=("tars",))  # type: ignore[attr-defined]


def inspect(
    shards: Annotated[str, typer.Argument(help="Shard set: a folder or an address, such as s3://bucket/set.")],
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png, .svg or .pdf.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all of it as JSON.")] = None,
    sample: Annotated[int | None, typer.Option(help="Look at the values of so many videos only.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that read.")] = 1,
) -> None:
    """Count videos, lengths and classes, measure values, and name the videos that look wrong.

    Wrong is what is damaged, NaN, constant, repeats itself or another video, is of another scale, is not as long as its
    duration, or has instances behind its end.

    Example: aumn inspect build/demo/shards --picture build/demo/shards.png
    """
    from aumn.files import whole_file
    from aumn.inspect.inspection import inspect_shards
    from aumn.inspect.picture import check_picture, draw

    if picture:
        check_picture(picture)
    with progress("inspecting", "videos") as advance:
        found = inspect_shards(place_of(shards), sample=sample, workers=workers, advance=advance)
    if json_file:
        with whole_file(json_file) as file:
            file.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if picture:
        draw(found, picture)
    print_inspection(found)


def print_inspection(found: Inspection) -> None:
    """Tables of counts and values, then what looks wrong."""
    clock = Clock(found.stride_frames, found.window_frames)
    print(f"{public(str(found.path))}: {found.name}, {len(found.classes)} classes, a snippet {clock}")
    header = ("subset", "videos", "hours", "snippets", "shortest", "median", "longest", "labels", "no label")
    print_table(header, [
        (name, f"{s.videos:,}", f"{s.hours:,.1f}", f"{s.snippets:,}", f"{s.shortest:,}", f"{s.median:,.0f}",
         f"{s.longest:,}", f"{s.labels:.1f}", f"{s.unlabelled:,}")
        for name, s in found.subsets.items()
    ])  # fmt: skip
    print_table(("videos of class", *found.subsets), _class_rows(found))
    print_table(("stream", "width", "norm", "lowest", "highest", "mean", "deviation", "zeros"), [
        (name, f"{s.width:,}", *(f"{value:.4g}" for value in (s.norm, s.lowest, s.highest, s.mean, s.deviation)),
         f"{100 * s.zeros:.1f} %")
        for name, s in found.streams.items()
    ])  # fmt: skip
    if found.is_sample:
        print(f"Values are of {found.read:,} videos, spread evenly; the rest is of all.")
    for sentence in found.known:
        print(sentence)
    for note in found.notes:
        print(f"CHECK the ground truth. {note}")
    if found.left_out:
        print(f"Left out when it was packed: {len(found.left_out):,} bad videos: {', '.join(found.left_out)}")
    if found.findings or not found.notes:
        _print_findings(found)


def _class_rows(found: Inspection) -> list[tuple[str, ...]]:
    """All, rarest first; on a terminal the rarest and the most frequent of many."""
    ranked = sorted(found.classes.items(), key=lambda item: (sum(item[1].values()), item[0]))
    rows = [(label, *(f"{count:,}" for count in counts.values())) for label, counts in ranked]
    if len(rows) <= SHOWN or not sys.stdout.isatty():
        return rows
    gap = (f"... {len(rows) - SHOWN:,} more ...", *("" for _ in found.subsets))
    return [*rows[: SHOWN // 2], gap, *rows[-SHOWN // 2 :]]


def _print_findings(found: Inspection) -> None:
    if not found.findings:
        print("No video looks wrong.")
        return
    kinds = Counter(finding.kind for finding in found.findings)
    print("Look at these: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()))
    told: Counter[str] = Counter()
    for finding in found.findings:
        told[finding.kind] += 1
        if told[finding.kind] <= SHOWN or not sys.stdout.isatty():
            print(f"  {finding.kind}: {finding.subset} {finding.video}: {finding.text}")
