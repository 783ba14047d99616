"""`aumn models`: the registry, looked into and promoted in; `aumn deliver`: what a run's store has not got yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.options import TrackingUri
from aumn.cli.printing import print_table

app = typer.Typer(no_args_is_help=True, help="Look into the model registry, and promote versions.")


@app.command("list")
def list_models(tracking_uri: TrackingUri = None) -> None:
    """Registered models, with their newest version and aliases.

    Example: aumn models list --tracking-uri sqlite:///build/demo/mlflow.db
    """
    from aumn.tracking import registry

    rows = []
    for found in registry.list_models(tracking_uri):
        newest = max((int(version.version) for version in found.latest_versions), default="-")  # of each stage
        aliases = ", ".join(f"{alias}: {version}" for alias, version in sorted(found.aliases.items()))
        rows.append((found.name, str(newest), aliases))
    print_table(("model", "newest version", "aliases"), rows) if rows else print("No model is registered yet.")


@app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Registered name.")], tracking_uri: TrackingUri = None) -> None:
    """A model's versions: aliases, training data, metrics.

    Example: aumn models show aumn-synthetic-demo --tracking-uri sqlite:///build/demo/mlflow.db
    """
    from aumn.tracking import registry

    for version in registry.show_model(name, tracking_uri):
        aliases = f" @{', @'.join(version.aliases)}" if version.aliases else ""
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        print(f"models:/{name}/{version.version}{aliases}  {created:%Y-%m-%d %H:%M} UTC  run {version.run_id or '-'}")
        for tag, value in sorted(version.tags.items()):
            print(f"    {tag}: {value}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="models:/name/version or models:/name@alias.")],
    second: Annotated[str, typer.Argument(help="The same.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Two versions side by side: metrics, settings that differ, data.

    Example: aumn models compare models:/aumn-synthetic-demo@challenger models:/aumn-synthetic-demo/1
    --tracking-uri sqlite:///build/demo/mlflow.db
    """
    from aumn.tracking.promotion import compare

    found = compare(first, second, tracking_uri)
    sides = (str(found.first), str(found.second))
    if found.metrics:
        print_table(("metric, %", *sides, "difference"), [_metric_row(*row) for row in found.metrics])
    print_table(("data", *sides), found.data)
    if found.settings:
        print_table(
            ("setting", *sides), [(name, _value(ours), _value(theirs)) for name, ours, theirs in found.settings]
        )
    else:
        print("No setting differs.")
    if found.incomparable:
        print(f"Their mAP cannot be compared: {found.incomparable}.")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[str, typer.Argument(help="Version to promote: its number, or an alias of it as @challenger.")],
    alias: Annotated[str, typer.Argument(help="Alias it takes over, e.g. champion.")],
    tracking_uri: TrackingUri = None,
    force: Annotated[bool, typer.Option("--force", help="Whatever mAP the two versions record.")] = False,
    if_better: Annotated[
        bool, typer.Option("--if-better", help="A worse version is no error; nothing is done.")
    ] = False,
) -> None:
    """Give a version an alias, by which it is then looked up, unless the version that has it is better.

    Example: aumn models promote aumn-synthetic-demo 1 champion --tracking-uri sqlite:///build/demo/mlflow.db
    """
    from aumn.tracking import promotion

    try:
        done = promotion.promote(name, version, alias, tracking_uri, force=force)
    except promotion.NotBetterError as refusal:
        if not if_better:
            raise
        print(f"models:/{name}@{alias} stays as it is: {refusal}")
        return
    before = f"; it was {done.before}" if done.before else ""
    print(f"models:/{name}@{alias} is version {done.version} now{before}{f' ({done.remark})' if done.remark else ''}.")


def _metric_row(name: str, ours: float | None, theirs: float | None) -> tuple[str, ...]:
    difference = "-" if ours is None or theirs is None else f"{100 * (theirs - ours):+.1f}"
    return name, *("-" if value is None else f"{100 * value:.1f}" for value in (ours, theirs)), difference


def _value(value: object) -> str:
    return "-" if value is None else str(value)


def deliver(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: the one that the run used.")] = None,
) -> None:
    """Deliver what the tracking store did not take while a run trained: metrics, how it ended, its model.

    Nothing is delivered twice; where nothing waits, nothing happens. Another store gets all of the run.

    Example: aumn deliver build/demo/run
    """
    from aumn.tracking.mirror import push

    delivered = push(folder, tracking_uri, say=print)
    print(f"{folder}: delivered {delivered}." if delivered else f"{folder}: nothing waits to be delivered.")
