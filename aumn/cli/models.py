"""`aumn models`: the registry, looked into and promoted in; `aumn deliver`: what a run's store has not got yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.options import TrackingUri
from aumn.cli.printing import print_table

app = typer.Typer(no_args_is_help=True, help="Look into the model registry, and promote versions.")


@app.command("list")
def list_models(tracking_uri: TrackingUri = None) -> None:
    """Registered models, with their newest version and aliases."""
    from aumn.tracking import registry

    rows = [
        (found.name, str(found.newest_version or "-"), ", ".join(f"{a}: {v}" for a, v in sorted(found.aliases.items())))
        for found in registry.list_models(tracking_uri)
    ]
    print_table(("model", "newest version", "aliases"), rows) if rows else print("No model is registered yet.")


@app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Registered name.")], tracking_uri: TrackingUri = None) -> None:
    """A model's versions: aliases, training data, metrics."""
    from aumn.tracking import registry

    for version in registry.show_model(name, tracking_uri):
        aliases = f" @{', @'.join(version.aliases)}" if version.aliases else ""
        print(f"models:/{name}/{version.version}{aliases}  {version.created:%Y-%m-%d %H:%M} UTC  run {version.run_id}")
        for tag, value in sorted(version.tags.items()):
            print(f"    {tag}: {value}")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[int, typer.Argument(help="Version to promote.")],
    alias: Annotated[str, typer.Argument(help="Alias it takes over, e.g. champion.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Give a version an alias, by which it is then looked up."""
    from aumn.tracking import registry

    before = registry.promote(name, version, alias, tracking_uri)
    print(f"models:/{name}@{alias} is version {version} now" + (f"; it was {before}." if before else "."))


def deliver(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: the one that the run used.")] = None,
) -> None:
    """Deliver what the tracking store did not take while a run trained: metrics, how it ended, its model.

    Nothing is delivered twice; where nothing waits, nothing happens.

    Example: aumn deliver runs/thumos14
    """
    from aumn.tracking import delivery

    delivered = delivery.deliver(folder, tracking_uri)
    print(f"{folder}: delivered {delivered}." if delivered else f"{folder}: nothing waits to be delivered.")
