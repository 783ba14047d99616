"""`aumn doctor`: what this machine has, and what will not work on it."""

from __future__ import annotations

import json
from dataclasses import asdict
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
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{MARKS[finding.state]}  {finding.what}: {finding.found}")
            if finding.remedy:
                print(f"    {finding.remedy}")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
