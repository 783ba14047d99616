"""`aumn tune`: settings chosen by the program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.console import progress, say
from aumn.records import InputError

BUDGET = 12


def tune(
    shards: Annotated[str, typer.Argument(help="Shard set to train on.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...; these stay as given.")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help=f"How many configurations to try, default {BUDGET}; 12 cost 4 full runs.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="In place of a budget: as many as fit, by the speed of the first run.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the plan, the runs and what comes of them.")] = Path("tuned"),
    config: Annotated[Path | None, typer.Option(help="What to start from; default: configs/recommended.yaml.")] = None,
    only: Annotated[
        str | None, typer.Option(help="For jobs: `plan`, or RUNG.PLACE, such as 0.3, for one run of the plan.")
    ] = None,
) -> None:
    """Try configurations, compare them on held-out training videos, and write the best with its reasons.

    The same command goes on where it was. Alone, or on every rank that torchrun or srun starts.

    Example: aumn tune build/demo/shards --budget 2 --out build/demo/tuned run.steps=16
    """
    if minutes is not None and (budget is not None or not minutes > 0):
        raise InputError(f"--minutes={minutes:g} must be above 0 and stand alone: leave out --budget, or --minutes.")
    from aumn.runtime.ranks import connect, read_environment
    from aumn.tuning.tuning import Asked, tune

    asked = Asked(
        shards=shards,
        config=str(config) if config else None,
        overrides=overrides or [],
        budget=budget or (BUDGET if minutes is None else None),
        minutes=minutes,
    )
    first, run = read_environment(os.environ).is_first, asked.base(out).run
    with connect(cuda=run.device == "cuda", timeout_s=run.start_timeout_s, start_s=run.start_timeout_s) as ranks:
        heard = say if ranks.is_first else lambda _line: None
        told = tune(
            asked, out, ranks, say=heard, watch=lambda name: progress(name, "steps", silent=not first), only=only
        )
    if told:
        print(told)
