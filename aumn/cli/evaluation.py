"""`aumn evaluate`: mean average precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aumn.cli.printing import print_evaluation


def evaluate(
    detections: Annotated[
        Path, typer.Argument(help="Folder of Parquet parts, ActivityNet results JSON, or a run's folder.")
    ],
    annotations: Annotated[Path, typer.Option(help="Ground truth: ActivityNet-layout JSON, or a shard set.")],
    subset: Annotated[
        str | None, typer.Option(help="Subset to measure on; default: the one that was localized.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="thumos14 (0.1:0.7:0.1) or activitynet (0.5:0.95:0.05).")] = None,
    tiou: Annotated[str | None, typer.Option(help="Thresholds instead, as 0.1:0.7:0.1 or 0.3,0.5,0.7.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the AP of every class.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers at full precision.")] = None,
) -> None:
    """Mean average precision, exact at any number of ranks. Of a run's folder, by the detections in RUN/detections.

    Example: aumn evaluate build/demo/found --annotations build/demo/features/gt.json --protocol thumos14
    """
    from aumn.data.truth.annotations import read_ground_truth
    from aumn.evaluation.evaluate import choose_tious, evaluate
    from aumn.files import whole_file
    from aumn.inference.detections import detections_of, read_detections
    from aumn.runtime.ranks import connect

    tious = choose_tious(protocol, tiou)
    detections = detections_of(detections, subset)
    with connect() as ranks:
        found, metadata = read_detections(detections, ranks.rank, ranks.size)
        chosen = subset or metadata.get("subset")
        truth = read_ground_truth(annotations, chosen)
        result = evaluate(found, truth, tious, ranks)
    if ranks.is_first:
        if json_file:
            with whole_file(json_file) as file:
                file.write_text(json.dumps(result.to_json(), indent=1) + "\n")
        print_evaluation(result, f"{detections}, {f'subset {chosen}' if chosen else 'all'} of {annotations}", per_class)
