"""`aumn train`, `aumn localize`: what runs on ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.console import progress, say
from aumn.cli.options import TrackingUri
from aumn.cli.printing import print_footprint
from aumn.records import InputError, place_of


def train(
    config: Annotated[Path, typer.Argument(help="Run configuration, one of configs/*.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a rank would hold, send and take.")] = False,
    num_ranks: Annotated[int, typer.Option("--ranks", min=1, help="With --dry-run: how many ranks.")] = 1,
    per_node: Annotated[int, typer.Option("--ranks-per-node", min=1, help="With --dry-run.")] = 8,
    classes: Annotated[int | None, typer.Option(min=1, help="With --dry-run, in place of the shard set's.")] = None,
    widths: Annotated[str | None, typer.Option(help="The same; e.g. rgb=1024,flow=1024.")] = None,
    videos: Annotated[int | None, typer.Option(min=1, help="The same.")] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="With --dry-run: say a step's time at these, e.g. flops=4e14,network=5e10, or default."),
    ] = None,
) -> None:
    """Train a network a stream: alone, or on every rank that torchrun or srun starts.

    Example: torchrun --standalone --nproc-per-node 2 -m aumn train configs/synthetic_demo.yaml run.steps=40
    """
    from aumn.config.run_config import load_config

    settings = load_config(config, overrides or [])
    if dry_run:
        from aumn.training.footprint import parse_widths, predict
        from aumn.training.plan import Rates

        is_zero = settings.run.engine == "deepspeed"
        zero, bank = settings.engine.zero_stage if is_zero else 0, settings.engine.bank_ranks
        found = predict(
            settings,
            ranks=num_ranks,
            zero=zero,
            per_node=per_node,
            num_classes=classes,
            widths=parse_widths(widths),
            videos=videos,
        )
        shared = f"ZeRO {zero}" if is_zero else f"a bank over {bank} ranks" if bank > 1 else "DDP"
        nodes = f" on {-(-num_ranks // per_node)} nodes" * (num_ranks > per_node)
        print_footprint(
            found,
            f"{config}: K={settings.model.units:,}, {num_ranks:,} rank{'s' * (num_ranks > 1)}{nodes}, {shared}",
            None if rates is None else Rates.parse(rates),
        )
        return
    if (num_ranks, per_node, classes, widths, videos, rates) != (1, 8, None, None, None, None):
        raise InputError(
            "--ranks, --ranks-per-node, --classes, --widths, --videos and --rates belong to --dry-run: start ranks "
            "with torchrun or srun."
        )
    from aumn.runtime.ranks import connect, read_environment
    from aumn.training.run import run_training

    bar = sys.stderr.isatty() and read_environment(os.environ).is_first  # a log has the run's own lines
    run = settings.run
    connected = connect(cuda=run.device == "cuda", timeout_s=run.start_timeout_s, start_s=run.start_timeout_s)
    with connected as ranks, progress("training", "steps", silent=not bar) as advance:
        heard = say if ranks.is_first else lambda _line: None
        run_training(settings, ranks, resume=resume, say=heard, advance=advance)


def localize(
    model: Annotated[
        str, typer.Argument(help="Run, checkpoint or model folder; models:/name@alias or models:/name/3.")
    ],
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            help="Shard set to localize in; localize.field=value changes one of the model's rules.",
            metavar="[SHARDS] [localize.FIELD=VALUE]...",
            show_default=False,
        ),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Its subset, e.g. testing.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the detections, a new one; default: RUN/detections/SUBSET.")
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            help="Or one video, shown here: itself (CLIP.mp4), where `aumn extract` made the model's training data; "
            "or its features, a file a stream in the model's order (RGB.npy FLOW.npy) or by name (flow=FLOW.npy ...).",
            metavar="FILE [FILE]...",
        ),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="With --video: frame rate of the features.")] = None,
    duration: Annotated[
        float | None, typer.Option(help="With --video: seconds it lasts, where --fps is not known.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="With --video: that of the shards trained on.")] = "float16",
    weights: Annotated[
        list[str] | None, typer.Option(help="With --video CLIP.mp4: the extractor's, STREAM=FILE, as for aumn extract.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="With --video: how many detections to list.")] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write ActivityNet's results JSON.")] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Also keep every snippet's scores, for aumn report.")
    ] = False,
    bank_ranks: Annotated[
        int, typer.Option(min=1, help="Ranks that share out each memory, as by engine.bank_ranks in training.")
    ] = 1,
    tracking_uri: TrackingUri = None,
    device: Annotated[str, typer.Option(help="cpu or cuda (untested for want of a GPU).")] = "cpu",
) -> None:
    """Detect actions in every video of a subset, sharded over the ranks of torchrun or srun; or in one video.

    A run's folder stands for its final model, RUN/model.

    Example: aumn localize build/demo/run/model build/demo/shards --subset testing --out build/demo/found
    """
    rules = [word for word in shards or () if word.startswith("localize.") and "=" in word]
    places = [word for word in shards or () if word not in rules]
    if video:
        if subset or out or any(Path(place).is_dir() for place in places):
            raise InputError("--video is one video: leave out the shard set, --subset and --out.")
        from aumn.cli.one_video import localize_one

        folder, files = model_folder(model, tracking_uri), [video, *places]
        localize_one(
            folder, files, fps=fps, duration_s=duration, dtype=dtype, top=top, json_file=json_file,
            weights=weights or (), device=device, rules=rules,
        )  # fmt: skip
        return
    if len(places) > 1:
        raise InputError(f"{', '.join(places)}: name one shard set.")
    if not out and subset and (Path(model) / "checkpoints").is_dir():
        out = Path(model) / "detections" / subset
    if not (places and subset and out):
        raise InputError("Name a shard set, its --subset and a folder --out; or one video: --video RGB.npy FLOW.npy.")
    (place,) = places
    from functools import partial

    from aumn.config.run_config import change_rules
    from aumn.inference.localize import localize_subset
    from aumn.runtime.ranks import connect, read_environment

    first = read_environment(os.environ).is_first
    with connect(cuda=device == "cuda") as ranks, progress("localizing", "videos", silent=not first) as advance:
        folder = model_folder(model, tracking_uri)
        model = model if model.startswith("models:") else str(folder)
        count = localize_subset(
            folder, place_of(place), out, ranks, model=model, subset=subset, device=device, advance=advance,
            with_scores=scores, json_file=json_file,
            change=partial(change_rules, overrides=rules), bank_ranks=bank_ranks,
        )  # fmt: skip
    if first:
        print(f"{out}: {count:,} detections by {model} in subset {subset} of {place}")


def model_folder(model: str, tracking_uri: str | None) -> Path:
    """Where the model lies that a user means by a run's, a checkpoint's or a model's folder, or by models:/..."""
    if not model.startswith("models:"):
        from aumn.inference.localize import final_model

        return final_model(Path(model))
    from aumn.tracking.registry import resolve

    return resolve(model, tracking_uri)
