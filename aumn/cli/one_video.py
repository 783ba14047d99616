"""`aumn localize MODEL --video RGB FLOW`: one video's detections as a table and a timeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aumn.cli.printing import print_table
from aumn.records import InputError

if TYPE_CHECKING:
    from aumn.records import Detections

DTYPES = ("float16", "float32")


def localize_one(
    folder: Path,
    rgb: Path,
    flow: Path,
    *,
    fps: float | None,
    duration_s: float | None,
    dtype: str,
    top: int,
    json_file: Path | None,
) -> None:
    """Localize in one video's two feature files, and print what was found."""
    import numpy as np

    from aumn.data.sources.arrays import read_array
    from aumn.inference.detections import export_json
    from aumn.inference.one_video import load_network, localize_video
    from aumn.records import Detections

    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; give that of the shards trained on, {' or '.join(DTYPES)}.")
    network, card = load_network(folder)
    features = {
        stream: read_array(path, allow_pickle=False).astype(dtype) for stream, path in (("rgb", rgb), ("flow", flow))
    }
    found = localize_video(network, card, features, fps=fps, duration_s=duration_s)
    detections = Detections((rgb.stem,), card.classes, np.zeros(len(found.score_N), np.int32), *found)
    if json_file:
        export_json(detections, json_file)
    snippets = len(features["rgb"])
    duration_s = duration_s or snippets * card.stride_frames / (fps or 1)
    print(f"{rgb.stem}: {snippets:,} snippets, {duration_s:,.1f} s; {len(detections):,} detections")
    _print_best(detections, top)
    _print_timeline(detections, duration_s)


def _print_best(detections: Detections, top: int) -> None:
    best_first_N = (-detections.score_N).argsort(kind="stable")[:top]
    rows = [
        (
            detections.labels[detections.label_N[row]],
            f"{detections.start_s_N[row]:.2f}",
            f"{detections.end_s_N[row]:.2f}",
            f"{detections.score_N[row]:.4f}",
        )
        for row in best_first_N
    ]
    print_table(("action", "start s", "end s", "score"), rows)
    if len(detections) > top:
        print(f"The best {top} of {len(detections):,}; --top {len(detections)} shows all.\n")


def _print_timeline(detections: Detections, duration_s: float) -> None:
    """Rows in colours where the terminal has them; the shades alone say it all."""
    from rich.console import Console
    from rich.text import Text

    from aumn.cli.timeline import draw_timeline

    console = Console()
    columns = console.width if console.is_terminal else 100
    ascii_only = not console.encoding.lower().startswith("utf")
    lines = draw_timeline(detections, duration_s, columns=columns, ascii_only=ascii_only)
    colours = ("cyan", "yellow", "magenta", "green", "blue")
    for number, line in enumerate(lines):
        is_clock = number >= len(lines) - 2
        console.print(
            Text(line, style="dim" if is_clock else colours[number % len(colours)]),
            no_wrap=True,
            crop=False,
            soft_wrap=True,
        )
