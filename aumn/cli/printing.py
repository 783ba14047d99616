"""What the commands print when they are done: sentences and tables, as wide as a terminal or a log takes them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from aumn.data.packing.planning import PackingReport
    from aumn.evaluation.evaluate import Evaluation
    from aumn.inference.settings import LocalizeSettings
    from aumn.training.footprint import Footprint
    from aumn.training.plan import Rates
    from aumn.tuning.trained import Chosen


def print_packing(report: PackingReport) -> None:
    """What was packed, and what was left out and why."""
    videos = ", ".join(f"{count:,} {subset}" for subset, count in report.packed.items())
    widths = ", ".join(f"{stream} {width}" for stream, width in report.streams.items())
    added = "" if report.appended_to is None else f" added to {report.appended_to:,}"
    if report.held:
        print(f"Passed over: {report.held:,} videos that are in the set already, with equal features and annotations.")
    if report.appended_to is not None and not report.packed:
        print(f"{report.path}: nothing to add to its {report.appended_to:,} videos; nothing was changed.")
    else:
        print(f"{report.path}: {videos} videos{added}; {len(report.classes)} classes; {widths} wide; "
              f"{report.shards} shards, {report.bytes / 1e6:,.0f} MB")  # fmt: skip
        if report.new_classes:
            print(f"New classes, behind those it had: {', '.join(report.new_classes)}.")
    print(f"Features: {report.source}.")
    if report.coverage is not None and not 0.9 <= report.coverage <= 1.1:
        print(
            f"CHECK stride and fps: at these, the features cover {report.coverage:.2f} of a video's duration in the "
            "ground truth (median), so detections would come out of place. Give those of the extraction with "
            "--stride-frames and --fps."
        )
    for note in report.notes:
        print(note)
    if report.kept_shards:
        print(f"{report.kept_shards} of the shards were finished by an earlier run.")
    for names, text in (
        ([f"{video} ({reason})" for video, reason in report.bad.items()], "bad"),
        (report.without_features, "annotated videos have no features"),
        (report.without_annotations, "videos with features are not annotated"),
    ):
        if names:
            shown = names if not sys.stdout.isatty() else names[:10]  # a log has them all
            print(f"Left out: {len(names):,} {text}: {', '.join(shown)}{', ...' * (len(names) > len(shown))}")


def print_footprint(found: Footprint, what: str, rates: Rates | None) -> None:
    """Parameters, what a rank holds and sends, and at given rates what a step's time is made of."""
    print(f"{what}: {found.micro_batches} micro-batch{'es' * (found.micro_batches > 1)} a step on each rank")
    parts = {part: None for counts in found.parameters.values() for part in counts}
    rows = [(part, *(f"{counts[part]:,}" for counts in found.parameters.values())) for part in parts]
    rows.append(("together", *(f"{sum(counts.values()):,}" for counts in found.parameters.values())))
    print_table(("parameters", *found.parameters), rows)

    def held(name: str, *sizes: int) -> tuple[str, ...]:
        return name, *(f"{size / 1e6:,.1f}" for size in sizes), *[""] * (3 - len(sizes)), f"{sum(sizes) / 1e6:,.1f}"

    rows = [held("memory's units", *found.bank), held("all other parameters", *found.rest)]
    name = f"activations, {found.micro_videos} videos x {found.snippets} snippets"
    alone = {
        name: found.activations_bytes,
        f"features of {found.steps_in_flight} steps, read ahead": found.features_bytes,
        "together": found.held_bytes,
        "together on the first rank while it keeps a checkpoint": found.first_rank_bytes,
    }
    rows += [(name, "", "", "", f"{size / 1e6:,.1f}") for name, size in alone.items()]
    print_table(("a rank holds at its peak, MB", "weights", "gradients", "Adam", "together"), rows)
    print("Python and torch themselves take about 300 MB more.")
    sent = [
        (one.what, f"{one.ranks:,}", f"{one.within / 1e6:,.1f}", f"{one.between / 1e6:,.1f}")
        + ((f"{1e3 * one.seconds(rates):,.1f}",) if rates else ())
        for one in found.collectives
    ]
    if sent:
        print_table(("a rank sends in a step, MB", "among", "in its node", "to others", *["ms"] * bool(rates)), sent)
    epoch = f" An epoch of {found.videos:,} videos has {found.steps_an_epoch:,} steps." if found.steps_an_epoch else ""
    print(f"A rank's step has {found.flops / 1e12:,.3g} TFLOP of matrix products.{epoch}")
    if rates:
        print_time(found, rates)


def print_time(found: Footprint, rates: Rates) -> None:
    """What a step's time is made of, and what it is bound by."""
    parts, reading_s = found.seconds(rates), found.reading_s(rates)
    rows = [(f"bound by {name}", f"{1e3 * seconds:,.1f}") for name, seconds in parts.items()]
    step_s = sum(parts.values())
    rows += [("together", f"{1e3 * step_s:,.1f}"), ("meanwhile a node's disk reads for", f"{1e3 * reading_s:,.1f}")]
    print_table(("a step's time at these rates", "ms"), rows)
    limit = "the disk" if reading_s > step_s else max(parts, key=parts.__getitem__)
    taken_s = max(step_s, reading_s)
    epoch = f"; an epoch {duration(taken_s * found.steps_an_epoch)}" if found.steps_an_epoch else ""
    videos = found.ranks * found.micro_batches * found.micro_videos
    print(f"What binds is {limit}: {1e3 * taken_s:,.1f} ms a step, {videos / taken_s:,.0f} videos/s{epoch}.")
    print(f"At {rates}. Latency and waiting for slow ranks are left out.")


def duration(seconds: float) -> str:
    """In the unit that suits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def print_evaluation(result: Evaluation, what: str, per_class: bool) -> None:
    """The mAP table with its population; every class's AP if asked."""
    population = result.population
    print(f"mAP (%) of {what}")
    print(f"{population.videos:,} videos, {population.instances:,} instances, {population.classes:,} classes")
    header = ("tIoU", *(f"{tiou:g}" for tiou in result.tious), "average")
    rows = [("mAP", *(f"{100 * value:.1f}" for value in (*result.map_T, result.average)))]
    if per_class:
        rows += [
            (f"{label} ({instances})", *(f"{100 * ap:.1f}" for ap in ap_T), f"{100 * ap_T.mean():.1f}")
            for label, instances, ap_T in zip(result.labels, result.instances_C, result.ap_CT, strict=True)
        ]
    print_table(header, rows)
    if means := result.usual_means():
        print("  ".join(f"average {name}: {100 * value:.1f}" for name, value in means.items()))
    for note in result.notes():
        print(note)


def print_rules(chosen: Chosen) -> None:
    """What the rules of a model are worth, the best found, and what each change of one part of them would cost."""
    from aumn.config.yaml_files import as_override
    from aumn.tuning.rules import differing

    choice, card = chosen.choice, chosen.card

    def text(rules: LocalizeSettings, others: LocalizeSettings) -> str:
        return " ".join(as_override(f"localize.{name}", value) for name, value in differing(rules, others).items())

    def row(part: str, rules: str, value: float) -> tuple[str, ...]:
        return part, rules, f"{100 * value:.1f}", f"{100 * (value - choice.best.value):+.1f}"

    changes = text(choice.best.rules, chosen.before)
    rows = [row("the model's", text(choice.own.rules, chosen.before), choice.own.value)]
    rows += [row("best", changes or "the model's", choice.best.value)]
    rows += [row(part, text(one.rules, choice.best.rules), one.value) for part, one in choice.neighbours()]
    print(f"{choice.measure} (%) of {len(choice.tried)} rules; below the best, those that change one part of them")
    print_table(("part", "rules", choice.measure, "against the best"), rows, words=2)
    print(f"best: {changes or 'those that the model has'}; {card.chosen_rules}.")
    print(
        "These videos chose the rules, so that on others they are a little worse: what you report, measure on others"
        f"{'; the network was trained on them, too, which makes them look better than others' * chosen.trained_on}."
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> None:
    """Print a table of names and their numbers."""
    show(table(header, rows, words=words))


def show(made: Table) -> None:
    """Print a table; a terminal takes it as wide as the terminal is, a log as wide as the table is."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000).print(made)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1, caption: str = "") -> Table:
    """Cells as they are: a name may hold what rich takes for markup. `words` columns are words; numbers follow them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=Text(caption), caption_justify="left"
    )
    for index, name in enumerate(header):
        is_word = index < words
        made.add_column(Text(name), justify="left" if is_word else "right", overflow="fold", no_wrap=not is_word)
    for row in rows:
        made.add_row(*map(Text, row))
    return made
