"""`aumn report`: one page to look at, of a run or of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.options import TrackingUri
from aumn.records import InputError


def report(
    what: Annotated[list[Path], typer.Argument(help="A run's folder, or detections; or several runs, to compare.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
    annotations: Annotated[
        Path | None, typer.Option(help="Ground truth: ActivityNet-layout JSON, or a shard set. Not for several runs.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Default: the one that was localized, or the one the run did not train on.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="thumos14 or activitynet; default: the run's.")] = None,
    tiou: Annotated[str | None, typer.Option(help="Thresholds instead, as 0.1:0.7:0.1 or 0.3,0.5,0.7.")] = None,
    detections: Annotated[
        Path | None, typer.Option(help="The run's detections, localized with --scores; default: localize now.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="Shard set to localize in; default: the run's own.")] = None,
    attach: Annotated[bool, typer.Option(help="Keep the page with the run in MLflow, too.")] = True,
    tracking_uri: TrackingUri = None,
    device: Annotated[str, typer.Option(help="cpu or cuda (untested for want of a GPU).")] = "cpu",
) -> None:
    """Write one self-contained HTML page: mAP, errors, every video, the action units, training curves.

    It opens from disk and needs no network. A run is localized first, on this machine alone; a large subset is better
    localized on many ranks by aumn localize --scores, then given as --detections. Several runs make a page that
    compares them: mAP over K, the ablation table, every setting.

    Example: aumn report build/demo/run --annotations build/demo/features/gt.json --out build/demo/report.html
    """
    from aumn.cli.console import progress
    from aumn.report.reporting import Choices, compare_runs, report_of

    if len(what) > 1:
        if annotations or detections:
            raise InputError(
                "Several runs are compared by the mAP they have: leave --annotations and --detections out."
            )
        compare_runs(what, out, say=print)
        return
    if annotations is None:
        raise InputError("--annotations is missing: give the ground truth, an ActivityNet-layout JSON or a shard set.")
    choices = Choices(annotations, subset, protocol, tiou, detections, shards, tracking_uri, device)
    with progress("localizing", "videos") as advance:
        report_of(what[0], out, choices, attach=attach, say=print, advance=advance)
