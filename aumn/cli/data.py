"""`aumn synth`, `aumn pack`: features into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.printing import print_packing
from aumn.records import InputError


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
) -> None:
    """Make two-stream features with known action units, and their ground truth.

    Example: aumn synth build/demo/features --videos 60 --width 256
    """
    from aumn.cli.console import progress
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
            on_progress=advance,
        )
    print(
        f"{out}: {report.training} training and {report.testing} testing videos, {report.instances} instances, "
        f"{report.bytes_written / 1e6:,.0f} MB of SYNTHETIC features"
    )


def pack(
    features: Annotated[Path, typer.Argument(help="Folder or archive of features, each T x D; see --layout.")],
    out: Annotated[Path, typer.Argument(help="Shard set to make, e.g. data_shards/thumos14.")],
    annotations: Annotated[Path, typer.Option(help="Ground truth: ActivityNet's JSON, a CSV, or W-TALC's folder.")],
    name: Annotated[str | None, typer.Option(help="Name of the set; default: OUT's.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="folders (rgb/VIDEO), suffixes (VIDEO_rgb), joint or wtalc; default: found by looking."),
    ] = None,
    joint: Annotated[str, typer.Option(help="Columns of joint arrays: flow,rgb or rgb=2048,flow=1024.")] = "rgb,flow",
    prefix: Annotated[str, typer.Option(help="What features' names have before the annotations', e.g. v_.")] = "",
    stride_frames: Annotated[
        int | None, typer.Option(help="Frames from one snippet to the next; default: as an archive tells, else 16.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frame rate of the features; default: as an archive tells, else the ground truth's."),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file, a class a line, to fix their order.")] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    shard_mb: Annotated[int, typer.Option(help="Size to aim at for a shard, in MB.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core. Changes no byte.")] = None,
    trim_streams: Annotated[bool, typer.Option(help="Cut a video's longer stream to the shorter.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option(help="Read pickled arrays too; nothing but arrays is unpickled.")
    ] = False,
) -> None:
    """Pack features and ground truth into WebDataset shards with a manifest.

    Features: .npy files in folders, .npz and HDF5 archives, W-TALC's pickled arrays; docs/own_data.md shows each.
    Interrupted, the same command goes on from the shards that are finished.

    Example: aumn pack build/demo/features build/demo/shards --annotations build/demo/features/gt.json
    """
    from aumn.cli.console import progress
    from aumn.data.packing import packing

    with progress("packing", "videos") as advance:
        report = packing.pack(
            features,
            out,
            annotations,
            name=name or out.name,
            layout=layout,
            joint=joint,
            prefix=prefix,
            stride_frames=stride_frames,
            fps=fps,
            classes=_read_lines(classes) if classes else None,
            dtype=dtype,
            shard_bytes=shard_mb * 10**6,
            workers=workers,
            allow_pickle=allow_pickle,
            trim_streams=trim_streams,
            on_progress=advance,
        )
    print_packing(report)


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: give a file with a class a line.") from None
