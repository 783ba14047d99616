"""An inspection as one picture: lengths, durations, class balance, values.

The colours can be told apart by everyone (Okabe and Ito's), and subsets differ by shape too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aumn.files import whole_file
from aumn.inspect.inspection import Inspection
from aumn.records import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = "os^vDPX*"
MOST_CLASSES_NAMED = 40


def check_picture(path: Path) -> None:
    """InputError unless the file's name is one that can be drawn to; before the work, not after it."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--picture {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")


def draw(found: Inspection, path: Path) -> None:
    """Write the picture; its kind follows from the suffix. Names stand in it as they are, dollar signs and all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}), whole_file(path) as file:
        figure = Figure(figsize=(13, 9), layout="constrained")
        sampled = f"   values of {found.read:,} videos" if found.is_sample else ""
        figure.suptitle(f"{found.name}   {found.path}{sampled}")
        lengths, durations, values, classes = figure.subplots(2, 2).flat
        _draw_lengths(lengths, found)
        _draw_durations(durations, found)
        _draw_values(values, found)
        _draw_classes(classes, found)
        figure.savefig(file, dpi=110, format=path.suffix[1:].lower())


def _draw_lengths(axes: Axes, found: Inspection) -> None:
    longest = max(subset.longest for subset in found.subsets.values())
    bins = list(np.linspace(0, longest + 1, 41))
    for subset, colour in zip(found.subsets, COLOURS * 9, strict=False):
        snippets = [row.snippets for row in found.population if row.subset == subset]
        label = _label(f"{subset} ({len(snippets):,})")
        axes.hist(snippets, bins, histtype="step", linewidth=2, color=colour, label=label)
    axes.set(title="Length", xlabel="snippets", ylabel="videos")
    axes.legend()


def _draw_durations(axes: Axes, found: Inspection) -> None:
    for number, subset in enumerate(found.subsets):
        rows = [row for row in found.population if row.subset == subset]
        seconds = [row.snippets * found.stride_frames / row.fps for row in rows]
        _dots(axes, number, subset, [row.duration_s for row in rows], seconds)
    axes.axline((0, 0), slope=1, color="0.5", linewidth=1)
    axes.set(title="Do the features fit the durations?", xlabel="duration, s", ylabel="covered by snippets, s")


def _draw_values(axes: Axes, found: Inspection) -> None:
    """A dot a video and stream: those of another extraction lie apart."""
    for number, stream in enumerate(found.streams):
        facts = [streams[stream] for _, streams in found.videos]
        _dots(axes, number, stream, [fact.mean for fact in facts], [fact.deviation for fact in facts])
    axes.set(title="Values of each video", xlabel="mean", ylabel="standard deviation")
    axes.legend()


def _dots(axes: Axes, number: int, label: str, x: list[float], y: list[float]) -> None:
    marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
    axes.plot(x, y, linestyle="none", marker=marker, color=colour, markersize=4, alpha=0.6, label=_label(label))


def _label(name: str) -> str:
    """Of a legend, which leaves out what starts with an underscore."""
    return f" {name}"


def _draw_classes(axes: Axes, found: Inspection) -> None:
    ranked = sorted(found.classes, key=lambda label: -sum(found.classes[label].values()))
    places, bottom = range(len(ranked)), np.zeros(len(ranked))
    for subset, colour in zip(found.subsets, COLOURS * 9, strict=False):
        counts = np.array([found.classes[label][subset] for label in ranked])
        axes.bar(places, counts, bottom=bottom, color=colour, edgecolor="white", linewidth=0.3, label=_label(subset))
        bottom += counts
    named = len(ranked) <= MOST_CLASSES_NAMED
    axes.set_xticks(places if named else [], ranked if named else [], rotation=90, fontsize=8)
    axes.set(title=f"{len(ranked):,} classes", ylabel="videos", xlabel="" if named else "classes, most frequent first")
