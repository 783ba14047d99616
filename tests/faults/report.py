"""What many rounds came to: counts by stage and fault, and the seconds that an interruption costs."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .playing import Outcome

Row = dict[str, Any]


def summary(outcomes: Sequence[Outcome]) -> Row:
    return {
        "rounds": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "faults_injected": sum(len(outcome.struck) for outcome in outcomes),
        "strikes_that_came_too_late": sum(outcome.missed for outcome in outcomes),
        "bytes_that_differ": sum(difference.bytes for outcome in outcomes for difference in outcome.differences),
        "metric_rows_that_differ": sum(difference.rows for outcome in outcomes for difference in outcome.differences),
        "by_stage_and_fault": list(_rows(outcomes)),
    }


def table(found: Row) -> str:
    """For people, and for docs/faults.md as it is."""
    lines = ["| stage | fault | injected | in rounds | survived | seconds lost a fault: median | most |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in found["by_stage_and_fault"]:
        seconds = (f"{row[name]:.1f}" if row[name] is not None else "-" for name in ("median_lost_s", "most_lost_s"))
        cells = (row["stage"], row["fault"], row["injected"], row["rounds"], row["rounds_survived"], *seconds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Seconds are of rounds in which only this fault struck, shared among its strikes."""
    injected = Counter((outcome.round.stage, struck.kind) for outcome in outcomes for struck in outcome.struck)
    for stage, fault in sorted(injected):
        of_stage = [outcome for outcome in outcomes if outcome.round.stage == stage]
        hit = [outcome for outcome in of_stage if any(struck.kind == fault for struck in outcome.struck)]
        alone = [
            outcome for outcome in hit if outcome.survived and {struck.kind for struck in outcome.struck} == {fault}
        ]
        lost_s = [outcome.lost_s / len(outcome.struck) for outcome in alone]
        yield {
            "stage": stage,
            "fault": fault,
            "injected": injected[stage, fault],
            "rounds": len(hit),
            "rounds_survived": sum(outcome.survived for outcome in hit),
            "median_lost_s": statistics.median(lost_s) if lost_s else None,
            "most_lost_s": max(lost_s, default=None),
        }
