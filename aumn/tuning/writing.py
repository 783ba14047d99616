"""What a tuning comes to: a configuration whose comments give its reasons, and a table of all that was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aumn.config.run_config import RunConfig, default
from aumn.evaluation.evaluate import PROTOCOLS
from aumn.files import whole_file
from aumn.records import HELD_OUT
from aumn.training.run import note_held_out
from aumn.tuning import criterion
from aumn.tuning.plan import Plan, Rung, entrants
from aumn.tuning.points import Record

TRAINS_ON_ALL: dict[str, Any] = {
    f"data.holdout_{name}": default(f"data.holdout_{name}") for name in ("share", "seed", "groups", "videos")
}
FEW = 30  # held-out videos, by which configurations a few points apart cannot be told


class Result(NamedTuple):
    """What a rung's candidates were worth, by their place in the plan."""

    rung: Rung
    values: dict[int, float]


def write(plan: Plan, results: Sequence[Result], record: Record, out: Path) -> str:
    """`out`/config.yaml, unless it is there, and `out`/table.md; the table, and what to do next."""
    winner = entrants(results[-1].values)[0]
    table = "\n".join(_table(plan, results))
    with whole_file(out / "table.md") as file:
        file.write_text(f"{_population(plan)}\n\n{table}\n")
    rules = {f"localize.{name}": value for name, value in record.rules.model_dump(mode="json").items()}
    if not (out / "config.yaml").exists():  # which somebody may have edited since
        changes = {"run.folder": str(out / "run"), **TRAINS_ON_ALL, **rules}
        if plan.settings["evaluation"]["videos"] == HELD_OUT:  # of which there are none then
            changes["evaluation.videos"] = None
        config = plan.config(winner, changes=changes)
        with whole_file(out / "config.yaml") as file:
            file.write_text("\n".join(_configuration(plan, config, winner, table)) + "\n")
    told = f"{out}/config.yaml is {plan.candidates[winner].name}. Next: aumn train {out}/config.yaml"
    return f"{_population(plan)}\n\n{table}\n\n{told}"


def _population(plan: Plan) -> str:
    if not plan.timed:
        return f"{criterion.NAME} (%) on {len(plan.held_out):,} held-out training videos without timed actions"
    protocol = plan.settings["evaluation"]["protocol"]
    measure = f"mAP (%, mean over tIoU {PROTOCOLS[protocol]})"
    doubt = f" (with fewer than {FEW}, gaps of several points are chance)" if plan.timed < FEW else ""
    return f"{measure} on {plan.timed:,} held-out training videos{doubt}, each by the rules that suit it"


def _table(plan: Plan, results: Sequence[Result]) -> Iterator[str]:
    shares = [f"{rung.share:.3g} of the steps" for rung, _ in results]
    yield f"| candidate | changes | {' | '.join(shares)} | why |"
    yield "|---" * (len(shares) + 3) + "|"
    order = sorted(results[0].values, key=lambda index: [-of.values.get(index, -2.0) for of in reversed(results)])
    for index in order:
        candidate = plan.candidates[index]
        changes = ", ".join(f"{name}={_text(value)}" for name, value in candidate.changes.items())
        cells = [_cell(of.values.get(index)) for of in results]
        yield f"| {candidate.name} | {changes} | {' | '.join(cells)} | {candidate.reason} |"


def _cell(value: float | None) -> str:
    return "" if value is None else "not finite" if value < 0 else f"{100 * value:.1f}"


def _configuration(plan: Plan, config: RunConfig, winner: int, table: str) -> Iterator[str]:
    chosen = plan.candidates[winner]
    yield f"# Chosen by `aumn tune {plan.asked['shards']}` among {len(plan.candidates)} configurations: {chosen.name}."
    yield f"# It trains on all training videos. They were compared by {_population(plan)}:"
    yield f"# {note_held_out(plan.held_out)}"
    yield "# The best of several on the same videos is a little worth less on others."
    yield from (f"# {line}" for line in [plan.statistics.describe(), *table.splitlines()])
    rules = "chosen on the held-out videos" if plan.timed else ""
    for section, fields in config.model_dump(mode="json").items():
        lines = {
            name: _text(value)
            for name, value in fields.items()
            if f"{section}.{name}" in chosen.changes or _text(value) != _text(default(f"{section}.{name}"))
        }
        if lines:
            yield f"{section}:" + (f"  # {rules}" if section == "localize" and rules else "")
        for name, value in lines.items():
            because = f"  # {chosen.reason}" if f"{section}.{name}" in chosen.changes else ""
            yield f"  {name}: {value}{because}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
