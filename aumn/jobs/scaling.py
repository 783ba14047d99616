"""What a scaling experiment showed: videos a second, efficiency, and where the time went, by ranks and K.

Every number is read from the folder of a run that was measured (jobs/scaling.yaml). Runs that lack a number are left
out and named, never filled in.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from aumn.records import InputError
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import read_metrics

WARM_UP = 1
"""Readings left out of each run: the first one holds what happens once."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run: medians over its readings."""

    units: int
    ranks: int
    global_videos: int
    videos_per_s: float
    data_share: float
    communication_share: float  # not a number: the engine does not measure it


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement against the run on one rank."""

    mode: str  # strong: as many videos a step at any number of ranks; weak: as many a rank
    base_videos: int  # a step of the run on one rank
    measured: Measurement
    efficiency: float  # videos a second, over those of one rank times the ranks


def read_measurement(run: Path) -> Measurement | None:
    """Of a run's folder; None where it holds too little."""
    folder = RunFolder(run)
    config, ranks = folder.config(), folder.status().facts.get("ranks")
    readings = [line for line in read_metrics(run) if "videos_per_s" in line][WARM_UP:]
    if not (config and ranks and readings):
        return None

    def median(name: str) -> float:
        return float(statistics.median([line[name] for line in readings if line.get(name) is not None] or [math.nan]))

    units, videos = config["model"]["units"], config["batch"]["global_videos"]
    shares = median("data_wait_share"), median("communication_wait_share")
    return Measurement(units, int(ranks), videos, median("videos_per_s"), *shares)


def compare(measurements: Sequence[Measurement]) -> list[Row]:
    """Strong and weak scaling, each from its run on one rank; without such a run, or alone, none is shown."""
    rows = []
    for base in (found for found in measurements if found.ranks == 1):
        alike = [found for found in measurements if found.units == base.units]
        for mode in ("strong", "weak"):
            group = [f for f in alike if f.global_videos == base.global_videos * (f.ranks if mode == "weak" else 1)]
            if len(group) > 1:
                rate = base.videos_per_s
                rows += [Row(mode, base.global_videos, f, f.videos_per_s / (rate * f.ranks)) for f in group]
    return sorted(rows, key=lambda row: (row.mode, row.measured.units, row.base_videos, row.measured.ranks))


def write_report(runs: Mapping[str, Path], out: Path, source: str) -> Path:
    """A table in Markdown with a figure beside it, of run folders by name; the table's path."""
    found = {name: read_measurement(run) for name, run in runs.items()}
    rows = compare([measurement for measurement in found.values() if measurement])
    if not rows:
        raise InputError(
            f"{source} holds no two training runs to compare, one of them on one rank, with {WARM_UP + 1} or more "
            "readings each: add the rank to the sweep, or lower run.log_every."
        )
    out.mkdir(parents=True, exist_ok=True)
    _draw(rows, out / "scaling.png")
    slow = {name: RunFolder(run).status().facts.get("slow_ranks") for name, run in runs.items()}
    notes = {
        "Left out, since they measured too little": [name for name in found if found[name] is None],
        "Slow ranks made these runs slower than their nodes can be": [
            f"{run} ({who})" for run, who in slow.items() if who
        ],
    }
    (out / "scaling.md").write_text(_table(rows, notes, source))
    return out / "scaling.md"


def _table(rows: Sequence[Row], notes: Mapping[str, Sequence[str]], source: str) -> str:
    lines = [
        f"Measured by the training runs of {source}; medians of each run's readings but the first. Time in",
        "communication is what no compute hid, waiting for slower ranks included; `-`: the engine does not measure it.",
        "",
        "| scaling | K | ranks | videos a step | videos/s | efficiency | time in communication | time in data |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.measured
        wait = "-" if math.isnan(found.communication_share) else f"{found.communication_share:.1%}"
        lines.append(
            f"| {row.mode} | {found.units:,} | {found.ranks} | {found.global_videos} | {found.videos_per_s:,.1f} | "
            f"{row.efficiency:.0%} | {wait} | {found.data_share:.1%} |"
        )
    for note, names in notes.items():
        lines += ["", f"{note}: {', '.join(names)}."] if names else []
    return "\n".join([*lines, "", "![videos a second and efficiency by ranks](scaling.png)", ""])


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Videos a second and efficiency by ranks: a line for each K and mode, told apart without colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    rate, share = figure.subplots(1, 2)
    lines = groupby(rows, lambda row: (row.mode, row.measured.units, row.base_videos))
    for marker, ((mode, units, _), line) in zip("osD^vPX*" * len(rows), lines, strict=False):
        points = list(line)
        ranks = [point.measured.ranks for point in points]
        style = f"{marker}{'-' if mode == 'strong' else '--'}"
        rate.plot(ranks, [point.measured.videos_per_s for point in points], style, label=f"{mode}, K={units:,}")
        share.plot(ranks, [point.efficiency for point in points], style)
    rate.set(xlabel="ranks", ylabel="videos a second", xscale="log", yscale="log")
    share.set(xlabel="ranks", ylabel="efficiency", xscale="log", ylim=(0, None))
    ticks = sorted({row.measured.ranks for row in rows})
    for axes in (rate, share):
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
