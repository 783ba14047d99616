"""The command line: parse, then one call. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aumn.records import InputError

if TYPE_CHECKING:
    from aumn.evaluate import Evaluation
    from aumn.footprint import Footprint

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AUMN at scale: weakly-supervised temporal action localization, from features to a registered model and an "
    "exact mAP. Add --debug to any command for a traceback.",
)
models = typer.Typer(no_args_is_help=True, help="Look into the model registry, and promote versions.")
app.add_typer(models, name="models")

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
]


def main() -> None:
    """Run a command; what the user can mend is one sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    code = _run([argument for argument in sys.argv[1:] if argument != "--debug"])
    if os.environ.keys() & {"RANK", "SLURM_PROCID"}:
        from aumn.cluster.ranks import leave

        leave(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        app(args=arguments, prog_name="aumn")
    except SystemExit as done:  # how typer ends, well or not
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (InputError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        if _is_mine_to_tell(error):
            print(f"aumn: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _is_mine_to_tell(error: Exception) -> bool:
    """Whether no other rank tells it. Before the ranks are connected, all find the same, and the first one speaks."""
    if not isinstance(error, InputError) or error.told_by_another_rank is not None:
        return not getattr(error, "told_by_another_rank", False)
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}. Check the path, its permissions and the free space."
    return str(error)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    videos: Annotated[int, typer.Option(help="How many videos.")],
    seed: Annotated[int, typer.Option(help="Everything is a function of it.")] = 0,
    classes: Annotated[int, typer.Option(help="Action classes; they share action units.")] = 10,
    units: Annotated[int, typer.Option(help="True action units.")] = 16,
    width: Annotated[int, typer.Option(help="D, values a snippet in each stream.")] = 1024,
    snippets: Annotated[int, typer.Option(help="Mean length of a video, in snippets.")] = 128,
    noise: Annotated[float, typer.Option(help="Scale of the noise on every value.")] = 1.0,
    testing_share: Annotated[float, typer.Option(help="Share of the videos in subset `testing`.")] = 1 / 3,
) -> None:
    """Make two-stream features with known action units, and their ground truth.

    Example: aumn synth build/features --videos 150
    """
    from aumn.console import progress
    from aumn.data.synthetic import synthesize

    with progress("synthesizing", "videos") as advance:
        report = synthesize(
            out,
            videos=videos,
            seed=seed,
            classes=classes,
            units=units,
            width=width,
            testing_share=testing_share,
            mean_snippets=snippets,
            noise=noise,
            on_progress=advance,
        )
    print(
        f"{out}: {report.training} training and {report.testing} testing videos, {report.instances} instances, "
        f"{report.bytes_written / 1e6:,.0f} MB of SYNTHETIC features"
    )


@app.command()
def pack(
    features: Annotated[Path, typer.Argument(help="Folder with rgb/<video>.npy and flow/<video>.npy, each T x D.")],
    out: Annotated[Path, typer.Argument(help="Shard set to make, e.g. data_shards/thumos14.")],
    annotations: Annotated[Path, typer.Option(help="Ground truth in ActivityNet's JSON layout.")],
    name: Annotated[str | None, typer.Option(help="Name of the set; default: OUT's.")] = None,
    stride_frames: Annotated[int, typer.Option(help="Frames from one snippet to the next.")] = 16,
    fps: Annotated[float | None, typer.Option(help="Frame rate of the features, over the ground truth's.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file, a class a line, to fix their order.")] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    shard_mb: Annotated[int, typer.Option(help="Size to aim at for a shard, in MB.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core. Changes no byte.")] = None,
    trim_streams: Annotated[bool, typer.Option(help="Cut a video's longer stream to the shorter.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option(help="Read pickled arrays too; nothing but arrays is unpickled.")
    ] = False,
) -> None:
    """Pack features and ground truth into WebDataset shards with a manifest.

    Interrupted, the same command goes on from the shards that are finished.

    Example: aumn pack build/features data_shards/mine --annotations build/features/gt.json
    """
    from aumn.console import progress
    from aumn.data import packing

    with progress("packing", "videos") as advance:
        report = packing.pack(
            features,
            out,
            annotations,
            name=name or out.name,
            stride_frames=stride_frames,
            fps=fps,
            classes=_read_lines(classes) if classes else None,
            dtype=dtype,
            shard_bytes=shard_mb * 10**6,
            workers=workers,
            allow_pickle=allow_pickle,
            trim_streams=trim_streams,
            on_progress=advance,
        )
    _print_packing(report)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Run configuration, one of configs/*.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a rank would hold and move.")] = False,
    num_ranks: Annotated[int, typer.Option("--ranks", min=1, help="With --dry-run: how many ranks.")] = 1,
    classes: Annotated[int | None, typer.Option(min=1, help="With --dry-run, in place of the shard set's.")] = None,
    widths: Annotated[str | None, typer.Option(help="The same; e.g. rgb=1024,flow=1024.")] = None,
) -> None:
    """Train both streams: alone, or on every rank that torchrun or srun starts.

    Example: torchrun --standalone --nproc-per-node 2 -m aumn train configs/synthetic_demo.yaml run.steps=100
    """
    from aumn.config import load_config

    settings = load_config(config, overrides or [])
    if dry_run:
        from aumn.footprint import parse_widths, predict

        zero = settings.engine.zero_stage if settings.run.engine == "deepspeed" else 0
        _print_footprint(
            predict(settings, ranks=num_ranks, zero=zero, num_classes=classes, widths=parse_widths(widths)),
            f"{config}: K={settings.model.units}, {num_ranks} rank{'s' * (num_ranks > 1)}, ZeRO {zero}",
        )
        return
    if (num_ranks, classes, widths) != (1, None, None):
        raise InputError("--ranks, --classes and --widths belong to --dry-run: start ranks with torchrun or srun.")
    from aumn.cluster.ranks import connect, read_environment
    from aumn.console import progress
    from aumn.run import run_training

    bar = sys.stderr.isatty() and read_environment(os.environ).is_first  # a log has the run's own lines
    with connect(cuda=settings.run.device == "cuda") as ranks, progress("training", "steps", silent=not bar) as advance:
        run_training(settings, ranks, resume=resume, say=_say if ranks.is_first else _say_nothing, advance=advance)


@app.command()
def localize(
    model: Annotated[str, typer.Argument(help="Checkpoint or model folder, or models:/name@alias, or models:/name/3.")],
    shards: Annotated[Path, typer.Argument(help="Shard set to localize in.")],
    subset: Annotated[str, typer.Option(help="Its subset, e.g. testing.")],
    out: Annotated[Path, typer.Option(help="Folder for the detections; must be new.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write ActivityNet's results JSON.")] = None,
    tracking_uri: TrackingUri = None,
    device: Annotated[str, typer.Option(help="cpu or cuda (untested for want of a GPU).")] = "cpu",
) -> None:
    """Detect actions in every video of a subset; sharded over the ranks of torchrun or srun.

    Example: aumn localize runs/demo/model build/shards --subset testing --out build/detections
    """
    from aumn.cluster.ranks import connect, read_environment
    from aumn.console import progress
    from aumn.localization.detections import export_json, read_detections
    from aumn.localize import localize_subset

    first = read_environment(os.environ).is_first
    with connect(cuda=device == "cuda") as ranks, progress("localizing", "videos", silent=not first) as advance:
        folder = _model_folder(model, tracking_uri)
        count = localize_subset(folder, shards, out, ranks, model=model, subset=subset, device=device, advance=advance)
    if first:
        if json_file:
            export_json(read_detections(out)[0], json_file)
        print(f"{out}: {count:,} detections by {model} in subset {subset} of {shards}")


@app.command()
def evaluate(
    detections: Annotated[Path, typer.Argument(help="Folder of Parquet parts, or ActivityNet results JSON.")],
    annotations: Annotated[Path, typer.Option(help="Ground truth: ActivityNet-layout JSON, or a shard set.")],
    subset: Annotated[
        str | None, typer.Option(help="Subset to measure on; default: the one that was localized.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="thumos14 (0.1:0.7:0.1) or activitynet (0.5:0.95:0.05).")] = None,
    tiou: Annotated[str | None, typer.Option(help="Thresholds instead, as 0.1:0.7:0.1 or 0.3,0.5,0.7.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the AP of every class.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers at full precision.")] = None,
) -> None:
    """Mean average precision, exact at any number of ranks.

    Example: aumn evaluate build/detections --annotations build/features/gt.json --protocol thumos14
    """
    from aumn.cluster.ranks import connect
    from aumn.data.annotations import read_ground_truth
    from aumn.evaluate import choose_tious, evaluate
    from aumn.localization.detections import read_detections

    tious = choose_tious(protocol, tiou)
    with connect() as ranks:
        found, metadata = read_detections(detections, ranks.rank, ranks.size)
        chosen = subset or metadata.get("subset")
        truth = read_ground_truth(annotations, chosen)
        result = evaluate(found, truth, tious, ranks)
    if ranks.is_first:
        if json_file:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            partial = json_file.with_name(f".{json_file.name}.partial")
            partial.write_text(json.dumps(result.to_json(), indent=1) + "\n")
            partial.replace(json_file)
        _print_evaluation(
            result, f"{detections}, {f'subset {chosen}' if chosen else 'all'} of {annotations}", per_class
        )


@models.command("list")
def list_models(tracking_uri: TrackingUri = None) -> None:
    """Registered models, with their newest version and aliases."""
    from aumn.tracking import registry

    rows = [
        (found.name, str(found.newest_version or "-"), ", ".join(f"{a}: {v}" for a, v in sorted(found.aliases.items())))
        for found in registry.list_models(tracking_uri)
    ]
    _print_table(("model", "newest version", "aliases"), rows) if rows else print("No model is registered yet.")


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Registered name.")], tracking_uri: TrackingUri = None) -> None:
    """A model's versions: aliases, training data, metrics."""
    from aumn.tracking import registry

    for version in registry.show_model(name, tracking_uri):
        aliases = f" @{', @'.join(version.aliases)}" if version.aliases else ""
        print(f"models:/{name}/{version.version}{aliases}  {version.created:%Y-%m-%d %H:%M} UTC  run {version.run_id}")
        for tag, value in sorted(version.tags.items()):
            print(f"    {tag}: {value}")


@models.command()
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


def _model_folder(model: str, tracking_uri: str | None) -> Path:
    if not model.startswith("models:"):
        return Path(model)
    from aumn.tracking.registry import resolve

    return resolve(model, tracking_uri)


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: give a file with a class a line.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_nothing(_line: str) -> None:
    pass


def _print_packing(report: Any) -> None:
    videos = ", ".join(f"{count:,} {subset}" for subset, count in report.packed.items())
    widths = ", ".join(f"{stream} {width}" for stream, width in report.streams.items())
    print(f"{report.path}: {videos} videos; {len(report.classes)} classes; {widths} wide; "
          f"{report.shards} shards, {report.bytes / 1e6:,.0f} MB")  # fmt: skip
    if report.kept_shards:
        print(f"{report.kept_shards} of the shards were finished by an earlier run.")
    for names, text in (
        (report.without_features, "annotated videos have no features"),
        (report.without_annotations, "videos with features are not annotated"),
    ):
        if names:
            shown = names if not sys.stdout.isatty() else names[:10]  # a log has them all
            print(f"Left out: {len(names):,} {text}: {', '.join(shown)}{', ...' * (len(names) > len(shown))}")


def _print_footprint(found: Footprint, what: str) -> None:
    print(f"{what}: {found.micro_batches} micro-batch{'es' * (found.micro_batches > 1)} a step on each rank")
    parts = {part: None for counts in found.parameters.values() for part in counts}
    rows = [(part, *(f"{counts[part]:,}" for counts in found.parameters.values())) for part in parts]
    rows.append(("together", *(f"{sum(counts.values()):,}" for counts in found.parameters.values())))
    _print_table(("parameters", *found.parameters), rows)
    _print_table(("a rank holds at its peak", "MB"), [(name, f"{size / 1e6:,.1f}") for name, size in found.rows()])
    print(f"Python and torch themselves take about 300 MB more. A rank sends {found.moved_bytes / 1e6:,.1f} MB a step.")


def _print_evaluation(result: Evaluation, what: str, per_class: bool) -> None:
    population = result.population
    print(f"mAP (%) of {what}")
    print(f"{population.videos:,} videos, {population.instances:,} instances, {population.classes:,} classes")
    header = ("tIoU", *(f"{tiou:g}" for tiou in result.tious), "average")
    rows = [("mAP", *(f"{100 * value:.1f}" for value in (*result.map_T, result.average)))]
    if per_class:
        rows += [
            (f"{label} ({instances})", *(f"{100 * ap:.1f}" for ap in ap_T), f"{100 * ap_T.mean():.1f}")
            for label, instances, ap_T in zip(result.labels, result.instances_C, result.ap_CT, strict=True)
        ]
    _print_table(header, rows)
    if means := result.usual_means():
        print("  ".join(f"average {name}: {100 * value:.1f}" for name, value in means.items()))
    for note in result.notes():
        print(note)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table that fits 80 columns with ten thresholds; a log takes it as wide as it is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, no_wrap=True, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table, width=console.width if console.is_terminal else 10_000)
