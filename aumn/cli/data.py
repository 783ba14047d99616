"""`aumn synth`, `aumn pack`: features into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aumn.cli.options import signature_of
from aumn.cli.printing import print_packing
from aumn.data.packing.options import PackOptions


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


def pack(**given: Any) -> None:
    """Pack features and ground truth into WebDataset shards with a manifest.

    Features: .npy files in folders, .npz and HDF5 archives, W-TALC's pickled arrays; docs/own_data.md shows each.
    Interrupted, the same command goes on from the shards that are finished.

    Example: aumn pack build/demo/features build/demo/shards --annotations build/demo/features/gt.json
    """
    from aumn.cli.console import progress
    from aumn.data.packing import packing

    with progress("packing", "videos") as advance:
        report = packing.pack(**given, on_progress=advance)
    print_packing(report)


pack.__signature__ = signature_of(PackOptions, arguments=("features", "out"))  # type: ignore[attr-defined]
