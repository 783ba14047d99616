"""`aumn evaluate`: mean average precision; `aumn report`: one page to look at, of a run or of detections."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.console import progress
from aumn.cli.options import TrackingUri
from aumn.cli.printing import print_evaluation
from aumn.records import InputError, place_of

GROUND_TRUTH = "Ground truth: JSON in ActivityNet's layout, a CSV, W-TALC's folder, or a shard set."
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read W-TALC's pickled arrays; nothing but arrays is unpickled.")
]
OnBad = Annotated[
    str | None,
    typer.Option(
        help="Instances that end before they start: stop, skip or swap (their times); default: as the shard set was "
        "packed, else stop."
    ),
]


def evaluate(
    detections: Annotated[
        Path,
        typer.Argument(
            help="Folder of Parquet parts, ActivityNet results JSON, THUMOS14's run text, or a run's folder."
        ),
    ],
    annotations: Annotated[str, typer.Option(help=GROUND_TRUTH)],
    subset: Annotated[
        str | None, typer.Option(help="Subset to measure on; default: the one that was localized.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="thumos14 (0.1:0.7:0.1) or activitynet (0.5:0.95:0.05).")] = None,
    tiou: Annotated[str | None, typer.Option(help="Thresholds instead, as 0.1:0.7:0.1 or 0.3,0.5,0.7.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the AP of every class.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers at full precision.")] = None,
    allow_pickle: AllowPickle = False,
    on_bad: OnBad = None,
) -> None:
    """Mean average precision, exact at any number of ranks. Of a run's folder, by the detections in RUN/detections.

    Example: aumn evaluate build/demo/found --annotations build/demo/features/gt.json --protocol thumos14
    """
    from aumn.data.truth.annotations import read_ground_truth
    from aumn.evaluation.evaluate import choose_tious, evaluate
    from aumn.evaluation.own_truth import deal
    from aumn.files import whole_file
    from aumn.inference.detections import detections_of, read_detections
    from aumn.runtime.ranks import connect

    tious = choose_tious(protocol, tiou)
    detections = detections_of(detections, subset)
    with connect() as ranks:
        found, metadata = read_detections(detections, ranks.rank, ranks.size)
        chosen = subset or metadata.get("subset")
        read = partial(read_ground_truth, place_of(annotations), chosen, allow_pickle=allow_pickle, on_bad=on_bad)
        own = deal(ranks.broadcast(read() if ranks.is_first else None), found.videos)
        result = evaluate(found, own, tious, ranks)
    if ranks.is_first:
        if json_file:
            with whole_file(json_file) as file:
                file.write_text(json.dumps(result.to_json(), indent=1) + "\n")
        print_evaluation(result, f"{detections}, {f'subset {chosen}' if chosen else 'all'} of {annotations}", per_class)


def report(
    what: Annotated[list[Path], typer.Argument(help="A run's folder, or detections; or several runs, to compare.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
    annotations: Annotated[str | None, typer.Option(help=f"{GROUND_TRUTH} Not for several runs.")] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="held_out, or a name; default: the localized one, or the one the run did not train on."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="thumos14 or activitynet; default: the run's.")] = None,
    tiou: Annotated[str | None, typer.Option(help="Thresholds instead, as 0.1:0.7:0.1 or 0.3,0.5,0.7.")] = None,
    detections: Annotated[
        Path | None, typer.Option(help="The run's detections, localized with --scores; default: localize now.")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="Shard set to localize in; default: the run's own.")] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the video files, which the page then plays; it links them.")
    ] = None,
    allow_pickle: AllowPickle = False,
    on_bad: OnBad = None,
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
    from aumn.report.reporting import Choices, compare_runs, report_of

    if len(what) > 1:
        if annotations or detections or videos:
            raise InputError(
                "Several runs are compared by the mAP they have: leave --annotations, --detections and --videos out."
            )
        compare_runs(what, out, say=print)
        return
    if annotations is None:
        raise InputError("--annotations is missing: give the ground truth, an ActivityNet-layout JSON or a shard set.")
    choices = Choices(
        place_of(annotations),
        allow_pickle,
        on_bad,
        subset,
        protocol,
        tiou,
        detections,
        place_of(shards) if shards else None,
        tracking_uri,
        device,
        videos,
    )
    with progress("localizing", "videos") as advance:
        report_of(what[0], out, choices, attach=attach, say=print, advance=advance)
