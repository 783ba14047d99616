"""`aumn localize MODEL --video FILE ...`: a video's detections, of its features or itself, as table and timeline."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aumn.cli.console import progress
from aumn.cli.printing import print_table
from aumn.records import VIDEO_ENDINGS, Detections, InputError

if TYPE_CHECKING:
    from aumn.runfolder.checkpoint import ModelCard

DTYPES = ("float16", "float32")
SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
NARROWEST = 20
TICK_EVERY = 12  # columns, at least


def localize_one(
    folder: Path,
    files: Sequence[str],
    *,
    fps: float | None,
    duration_s: float | None,
    dtype: str,
    top: int,
    json_file: Path | None,
    weights: Sequence[str] = (),
    device: str = "cpu",
    rules: Sequence[str] = (),
) -> None:
    """Localize in one video, and print what was found; `files` are a video, or see `_by_stream`."""
    from aumn.config.run_config import change_rules
    from aumn.data.sources.arrays import read_array
    from aumn.inference.detections import export_json
    from aumn.inference.one_video import load_network, localize_video

    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; give that of the shards trained on, {' or '.join(DTYPES)}.")
    network, card = load_network(folder)
    card = card.model_copy(update={"localize": change_rules(card.localize, rules)})
    if Path(files[0]).suffix.lower() in VIDEO_ENDINGS:
        if fps or duration_s or len(files) > 1:
            raise InputError(f"--video {files[0]} tells its own times: leave out --fps, --duration and other files.")
        paths = {"": Path(files[0])}
        features, fps, duration_s = _extract(folder, card, paths[""], weights, device)
    else:
        paths = _by_stream(files, list(card.streams))
        features = {stream: read_array(path, allow_pickle=False).astype(dtype) for stream, path in paths.items()}
    found = localize_video(network, card, features, fps=fps, duration_s=duration_s)
    name, snippets = next(iter(paths.values())).stem, len(next(iter(features.values())))
    detections = Detections((name,), card.classes, np.zeros(len(found.score_N), np.int32), *found)
    if json_file:
        export_json(detections, json_file)
    lasts_s = card.clock.lasts_s(snippets, fps) if fps else duration_s or 0.0
    print(f"{name}: {snippets:,} snippets, {lasts_s:,.1f} s; {len(detections):,} detections")
    _print_best(detections, top)
    _print_timeline(detections, lasts_s)


def _extract(
    folder: Path, card: ModelCard, video: Path, weights: Sequence[str], device: str
) -> tuple[dict[str, np.ndarray], float, float]:
    """The features that the model takes of a video, as those it was trained on were made; their rate, and seconds."""
    from aumn.video.extract import extract_video
    from aumn.video.extractor import open_extractor, read_settings
    from aumn.video.options import weights_of

    if card.extractor is None:
        raise InputError(
            f"{folder} was trained on features that `aumn extract` did not make, so that how to make a video's is not "
            "known: make them as those were, and give them as --video RGB.npy FLOW.npy."
        )
    settings = read_settings(card.extractor, f"{folder / 'model.json'}")
    extractor = open_extractor(settings, weights_of(weights), device)
    with progress("extracting", "%") as advance:
        found = extract_video(video, extractor, advance=lambda share: advance(int(100 * share), 100))
    return found.streams, found.fps, found.duration_s


def _by_stream(files: Sequence[str], streams: Sequence[str]) -> dict[str, Path]:
    """Each stream's file: as given, `stream=FILE`, or else in the model's order."""
    named = {stream: path for stream, _, path in (file.partition("=") for file in files) if stream in streams}
    if not named and len(files) == len(streams):
        named = dict(zip(streams, files, strict=True))
    if len(files) != len(streams) or len(named) != len(streams):
        order = " ".join(f"{stream}=FILE" for stream in streams)
        raise InputError(
            f"--video has {len(files)} files ({', '.join(files)}), and the model takes {order}: give these."
        )
    return {stream: Path(path) for stream, path in named.items()}


def _print_best(found: Detections, top: int) -> None:
    best_first_N = (-found.score_N).argsort(kind="stable")[:top]
    columns = (found.label_N, found.start_s_N, found.end_s_N, found.score_N)
    rows = [
        (found.labels[label], f"{start_s:.2f}", f"{end_s:.2f}", f"{score:.4f}")
        for label, start_s, end_s, score in zip(*(column[best_first_N] for column in columns), strict=True)
    ]
    print_table(("action", "start s", "end s", "score"), rows)
    if len(found) > top:
        print(f"The best {top} of {len(found):,}; --top {len(found)} shows all.\n")


def _print_timeline(detections: Detections, duration_s: float) -> None:
    """Rows in colours where the terminal has them; the shades alone say it all."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    columns = console.width if console.is_terminal else 100
    ascii_only = not console.encoding.lower().startswith("utf")
    lines = draw_timeline(detections, duration_s, columns=columns, ascii_only=ascii_only)
    colours = ("cyan", "yellow", "magenta", "green", "blue")
    for number, line in enumerate(lines):
        style = "dim" if number >= len(lines) - 2 else colours[number % len(colours)]  # the last two are the clock
        console.print(Text(line, style=style), no_wrap=True, crop=False, soft_wrap=True)


def draw_timeline(found: Detections, duration_s: float, *, columns: int = 80, ascii_only: bool = False) -> list[str]:
    """The one video as text: a row for each class that was detected, best class first, and the clock below.

    A cell shows the highest score of any detection that touches it, in four steps from 0 up to the video's highest.
    It is legible without colour, in a log, and in an alphabet of 95 characters.
    """
    shades = ASCII_SHADES if ascii_only else SHADES
    best_score = {label: found.score_N[found.label_N == label].max() for label in set(found.label_N.tolist())}
    ranked = sorted(best_score, key=lambda label: (-best_score[label], found.labels[label]))
    margin = max((len(found.labels[label]) for label in ranked), default=0) + 1
    width = max(columns - margin - 2, NARROWEST)
    lines = []
    for label in ranked:
        cells_W = _paint(found, found.label_N == label, duration_s, width)
        steps_W = np.ceil(cells_W / max(found.score_N.max(), 1e-9) * (len(shades) - 1)).astype(int)
        lines.append(f"{found.labels[label]:<{margin}}|{''.join(shades[step] for step in steps_W)}|")
    return [*lines, *(" " * margin + line for line in _clock(duration_s, width))]


def _paint(found: Detections, chosen_N: np.ndarray, duration_s: float, width: int) -> np.ndarray:
    """The highest score in each of `width` equal parts of the video; even a short detection fills one."""
    cells_W = np.zeros(width)
    first_N = np.clip(np.floor(found.start_s_N[chosen_N] / duration_s * width).astype(int), 0, width - 1)
    last_N = np.clip(np.ceil(found.end_s_N[chosen_N] / duration_s * width).astype(int), first_N + 1, width)
    for first, last, score in zip(first_N, last_N, found.score_N[chosen_N], strict=True):
        cells_W[first:last] = np.maximum(cells_W[first:last], score)
    return cells_W


def _clock(duration_s: float, width: int) -> tuple[str, str]:
    """A ruler with a tick at round times, and the times."""
    ruler, times = [" "] * (width + 2), [" "] * (width + 2 + TICK_EVERY)
    step_s = _round_step(duration_s * TICK_EVERY / width)
    for tick in range(ceil(duration_s / step_s) + 1):
        column = 1 + round(tick * step_s / duration_s * width)
        if column <= width:
            ruler[column] = "'"
            text = clock_time(tick * step_s)
            times[column : column + len(text)] = text
    return "".join(ruler).rstrip(), "".join(times).rstrip()


def _round_step(least_s: float) -> float:
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    return next((step for step in steps if step >= least_s), 3600 * ceil(least_s / 3600))


def clock_time(time_s: float) -> str:
    """Seconds as 1:02:03, 2:03 or, where they are few and not whole, 2.5."""
    if time_s < 60 and time_s != round(time_s):
        return f"{time_s:.1f}"
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
