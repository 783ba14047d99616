"""`aumn doctor`: what this machine has, and what will not work on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.options import TrackingUri

MARKS = {"works": "ok", "limited": "--", "broken": "!!"}


def doctor(
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, e.g. for an issue.")] = False,
    node: Annotated[
        Path | None,
        typer.Option(
            help="Only say whether this node can train: for all nodes of a SLURM job at once, which share FOLDER.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Say what this machine has, what will not work on it, and what helps; exit code 1 if aumn will not work at all.

    Example: aumn doctor
    """
    if node:
        from aumn.runtime.node_check import check_node
        from aumn.runtime.preemption import leave

        name, why = check_node(node)
        print(f"aumn-node {name} {why or 'healthy'}")
        leave()  # whatever hangs

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
