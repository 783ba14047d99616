"""`aumn doctor`: what this machine has, and what will not work on it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from aumn.cli.options import TrackingUri

MARKS = {"works": "ok", "limited": "--", "broken": "!!"}


def doctor(
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, e.g. for an issue.")] = False,
) -> None:
    """Say what this machine has, what will not work on it, and what helps; exit code 1 if aumn will not work at all.

    Example: aumn doctor
    """
    from aumn.doctor import examine

    findings = examine(tracking_uri)
    if as_json:
        names = ("what", "state", "found", "remedy")
        rows = [dict(zip(names, (what, *finding), strict=True)) for what, finding in findings.items()]
        print(json.dumps(rows, indent=1))
    else:
        for what, (state, found, remedy) in findings.items():
            print(f"{MARKS[state]}  {what}: {found}" + (f"\n    {remedy}" if remedy else ""))
    if any(state == "broken" for state, _, _ in findings.values()):
        raise typer.Exit(1)
