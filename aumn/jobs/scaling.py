"""What a scaling experiment showed: videos a second, efficiency, and where the time went, by ranks and K.

Every number is read from a run that was measured: the tracking store's nested runs of one job (jobs/scaling.yaml). Runs
that lack a number are left out and named, never filled in.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aumn.records import InputError
from aumn.tracking.job_run import NestedRun

METRICS = ("videos_per_s", "data_wait_share", "communication_wait_share")
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
    communication_share: float | None  # None: the engine does not measure it


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement against the run on one rank."""

    mode: str  # strong: as many videos a step at any number of ranks; weak: as many a rank
    measured: Measurement
    efficiency: float  # videos a second, over those of one rank times the ranks


def read_measurements(runs: Iterable[NestedRun]) -> tuple[list[Measurement], list[str]]:
    """Of the training runs among a job's; and the names of those that hold too little."""
    found, lacking = [], []
    for run in runs:
        if "model.units" not in run.params:  # another step than training
            continue
        rates = run.metrics.get("videos_per_s", [])[WARM_UP:]
        if not rates or not run.tags.get("ranks"):
            lacking.append(run.name)
            continue
        waits = run.metrics.get("communication_wait_share", [])[WARM_UP:]
        found.append(
            Measurement(
                units=int(run.params["model.units"]),
                ranks=int(run.tags["ranks"]),
                global_videos=int(run.params["batch.global_videos"]),
                videos_per_s=statistics.median(rates),
                data_share=statistics.median(run.metrics["data_wait_share"][WARM_UP:]),
                communication_share=statistics.median(waits) if waits else None,
            )
        )
    return found, lacking


def compare(measurements: Sequence[Measurement]) -> list[Row]:
    """Strong and weak scaling, each from its run on one rank; without such a run, or alone, none is shown."""
    rows = []
    for base in (found for found in measurements if found.ranks == 1):
        alike = [found for found in measurements if found.units == base.units]
        for mode, videos_a_rank in (("strong", 0), ("weak", base.global_videos)):
            group = [
                found for found in alike if found.global_videos == (videos_a_rank * found.ranks or base.global_videos)
            ]
            if len(group) > 1:
                rate = base.videos_per_s
                rows += [Row(mode, found, found.videos_per_s / (rate * found.ranks)) for found in group]
    return sorted(rows, key=lambda row: (row.mode, row.measured.units, row.measured.ranks, row.measured.global_videos))


def write_report(runs: Sequence[NestedRun], out: Path, source: str) -> Path:
    """A table in Markdown with a figure beside it; the table's path."""
    measurements, lacking = read_measurements(runs)
    rows = compare(measurements)
    if not rows:
        raise InputError(
            f"{source} holds no two training runs to compare, one of them on one rank, with {WARM_UP + 1} or more "
            "readings each: add the rank to the sweep, or lower run.log_every."
        )
    out.mkdir(parents=True, exist_ok=True)
    _draw(rows, out / "scaling.png")
    (out / "scaling.md").write_text(_table(rows, lacking, source))
    return out / "scaling.md"


def _table(rows: Sequence[Row], lacking: Sequence[str], source: str) -> str:
    lines = [
        f"Measured by the training runs of {source}; medians of each run's readings but the first. Time in",
        "communication is what no compute hid, waiting for slower ranks included; `-`: the engine does not measure it.",
        "",
        "| scaling | K | ranks | videos a step | videos/s | efficiency | time in communication | time in data |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.measured
        wait = "-" if found.communication_share is None else f"{found.communication_share:.1%}"
        lines.append(
            f"| {row.mode} | {found.units:,} | {found.ranks} | {found.global_videos} | {found.videos_per_s:,.1f} | "
            f"{row.efficiency:.0%} | {wait} | {found.data_share:.1%} |"
        )
    if lacking:
        lines += ["", f"Left out, since they measured too little: {', '.join(lacking)}."]
    return "\n".join([*lines, "", "![videos a second and efficiency by ranks](scaling.png)", ""])


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Videos a second and efficiency by ranks: a line for each K and mode, told apart without colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rate, share) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    markers = "osD^vPX*"
    lines: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        found = row.measured
        per_base = found.global_videos if row.mode == "strong" else found.global_videos // found.ranks
        lines.setdefault((row.mode, found.units, per_base), []).append(row)
    for number, ((mode, units, _), points) in enumerate(lines.items()):
        ranks = [point.measured.ranks for point in points]
        style = {"marker": markers[number % len(markers)], "linestyle": "-" if mode == "strong" else "--"}
        rate.plot(ranks, [point.measured.videos_per_s for point in points], label=f"{mode}, K={units:,}", **style)
        share.plot(ranks, [point.efficiency for point in points], **style)
    rate.set(xlabel="ranks", ylabel="videos a second", xscale="log", yscale="log")
    share.set(xlabel="ranks", ylabel="efficiency", xscale="log", ylim=(0, None))
    for axes in (rate, share):
        ticks = sorted({row.measured.ranks for row in rows})
        axes.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
