"""`aumn tune`: settings chosen by the program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.console import progress, say
from aumn.cli.options import TrackingUri
from aumn.cli.printing import print_rules
from aumn.records import InputError

BUDGET = 12


def tune(
    shards: Annotated[
        str | None, typer.Argument(help="Shard set to train on; with --rules: default, the model's own.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...; these stay as given.")] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Train nothing: choose how the scores of this model become detections. A run's, checkpoint's or "
            "model's folder; models:/name@alias or models:/name/3.",
            metavar="MODEL",
        ),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="With --rules: the videos to choose on; default: those held out of training.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help=f"How many configurations to try, default {BUDGET}; 12 cost 4 full runs.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="In place of a budget: as many as fit, by the speed of the first run.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the plan, the runs and what comes of them, default tuned. With --rules: of the model with "
            "the chosen rules; default: RUN/tuned, and of a registered model a new version in place of a folder."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="What to start from; default: configs/recommended.yaml.")] = None,
    only: Annotated[
        str | None, typer.Option(help="For jobs: `plan`, or RUNG.PLACE, such as 0.3, for one run of the plan.")
    ] = None,
    tracking_uri: TrackingUri = None,
    device: Annotated[str, typer.Option(help="With --rules: cpu or cuda (untested for want of a GPU).")] = "cpu",
) -> None:
    """Try configurations, compare them on held-out training videos, and write the best with its reasons.

    The same command goes on where it was. Alone, or on every rank that torchrun or srun starts. With --rules RUN, of a
    model that is trained, only its rules of localization, in seconds.

    Example: aumn tune build/demo/shards --budget 2 --out build/demo/tuned run.steps=16
    """
    if rules is not None:
        if (budget, minutes, config, only) != (None, None, None, None):
            raise InputError("--rules trains nothing: leave out --budget, --minutes, --config and --only.")
        words = [*filter(None, [shards]), *(overrides or [])]
        tune_rules(rules, words, subset=subset, out=out, tracking_uri=tracking_uri, device=device)
        return
    if shards is None:
        raise InputError("Name the shard set to train on; or, to change a trained model's rules alone, --rules MODEL.")
    if (subset, tracking_uri, device) != (None, None, "cpu"):
        raise InputError("--subset, --tracking-uri and --device belong to --rules: what trains is section.field=value.")
    out = out or Path("tuned")
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


def tune_rules(
    model: str, words: list[str], *, subset: str | None, out: Path | None, tracking_uri: str | None, device: str
) -> None:
    """Choose a trained model's rules, and write the same weights with them: a folder, or a version of a registered one.

    `words` are a shard set, if any, and `localize.field=value` for rules that stay.
    """
    from tempfile import TemporaryDirectory

    from aumn.cli.training import model_folder
    from aumn.runfolder.checkpoint import read_card, save_with_rules
    from aumn.tuning.trained import rules_of

    given = [word for word in words if "=" in word and word.startswith("localize.")]
    places = [word for word in words if word not in given]
    if len(places) > 1:
        raise InputError(f"{', '.join(places)}: name one shard set; and of settings, those of localize alone.")
    folder, version = model_folder(model, tracking_uri), None
    read_card(folder)  # or its sentence, before those about where to write
    if model.startswith("models:"):
        from aumn.tracking.registry import describe

        version = describe(model, tracking_uri)
    elif out is None and (Path(model) / "checkpoints").is_dir():
        out = Path(model) / "tuned"
    if out is None and version is None:
        raise InputError(f"Name a folder for {model} with the chosen rules: --out FOLDER.")
    if out is not None and out.exists():
        raise InputError(f"{out} already exists: name a new folder for the model with --out.")
    name = str(version or model)
    with progress("scoring", "videos") as advance:
        chosen = rules_of(
            folder, model=name, shards=next(iter(places), None), subset=subset, overrides=given, device=device,
            advance=advance,
        )  # fmt: skip
    print_rules(chosen)
    if chosen.choice.best.rules == chosen.before:
        print(f"None of the {len(chosen.choice.tried)} tried is better than those that {name} has: nothing is written.")
        return
    if out is not None:
        print(f"{save_with_rules(out, folder, chosen.card)}: the weights of {name} with these rules")
        return
    assert version is not None
    from aumn.tracking.registration import register_rules

    with TemporaryDirectory() as temporary:
        made = register_rules(save_with_rules(Path(temporary) / "model", folder, chosen.card), version, tracking_uri)
    print(f"registered: models:/{version.name}/{made}, the weights of {name} with these rules")
