"""What a step chosen on the test videos is worth: three columns of a configuration, of which the last is no result.

    python -m tests.real.honest OUT --shards SHARDS --rows ROW ... [--config FILE] [--every 25] [--seeds 0 1 2]

Rows are those of `tests.real.tables`. Each row and seed is trained twice by `aumn train`'s own function: on all
training videos, followed on the test videos, and without the held-out ones (`--hold-out`), on which a step is chosen.
The columns are the first run's mAP on the test videos at its last step, at the step that the second run chose, and at
the best step of all that were evaluated, as most public codes report it. What stands in OUT/honest.jsonl is not trained
again; the table of all of it is printed afterwards.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from aumn.runfolder.metrics import read_curves
from tests.real.tables import SUBSET, mean_and_deviation, row_options, rows_to_do, train

Curve = dict[int, float]
COLUMNS = ("last step", "chosen on held-out training videos", "best on test, not to be used")


def columns(tested: Curve, held_out: Curve) -> list[float]:
    """Of the mAP by step on test videos and on held-out ones; of equal steps the earlier is chosen."""
    chosen = max(sorted(held_out), key=lambda step: held_out[step])
    return [tested[max(tested)], tested[chosen], max(tested.values())]


def score(name: str, seed: int, changes: Sequence[str], hold_out: Sequence[str], arguments: Any) -> dict[str, Any]:
    """Train twice, and read what was followed."""
    curves = {}
    for videos, settings in {SUBSET: [], "held_out": hold_out}.items():
        folder = arguments.out / f"{name.replace(' ', '_')}_{videos}_{seed}"
        followed = [f"evaluation.videos={videos}", f"evaluation.every={arguments.every}"]
        train(arguments.config, [*changes, *settings, *followed], arguments.shards, seed, folder)
        curves[videos] = read_curves(folder)[f"{videos}/mAP/average"]
    return {"row": name, "seed": seed, "changes": changes, "columns": columns(*curves.values()), "curves": curves}


def print_table(results: Iterable[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, and what the habit is worth in points, by row."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for result in results:
        last, chosen, best = result["columns"]
        found[result["row"]].append([last, chosen, best, best - last, best - chosen])
    print(f"| row | seeds | {' | '.join(COLUMNS)} | the habit over the last step | over the chosen one |")
    for row, values in sorted(found.items()):
        print(f"| {row} | {len(values)} | " + " | ".join(mean_and_deviation(values)) + " |")


def main() -> None:
    parser = row_options(__doc__, "configs/recommended.yaml")
    parser.add_argument("--every", type=int, default=25, help="steps between evaluations")
    parser.add_argument("--hold-out", nargs="+", default=["data.holdout_share=0.2"], metavar="data.field=value")
    arguments = parser.parse_args()
    results = arguments.out / "honest.jsonl"
    for name, seed, changes in rows_to_do(results, arguments.rows, arguments.seeds):
        result = score(name, seed, changes, arguments.hold_out, arguments)
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(name, seed, [f"{100 * value:.1f}" for value in result["columns"]], flush=True)
    print_table(map(json.loads, results.read_text().splitlines()))


if __name__ == "__main__":
    main()
