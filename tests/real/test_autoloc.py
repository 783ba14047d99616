"""Real detections of a published method give its authors' own tables, to their three decimals."""

import json
from pathlib import Path

import pytest

from aumn.evaluation.evaluate import evaluate, parse_tious
from aumn.runtime.ranks import Ranks
from tests.evaluation_reference import Found, Instance, as_detections, as_ground_truth

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("name", "tious", "population"),
    [("th14", "0.1:0.9:0.1", (210, 3234, 20)), ("an12", "0.5:0.95:0.05", (2304, 3457, 100))],
)
def test_autolocs_table(shared_data: Path, name: str, tious: str, population: tuple[int, ...]):
    folder = shared_data / "detections"
    document = json.loads((folder / f"autoloc_{name}.json").read_text())
    rows = [Found(row["video_id"], str(row["label"]), row["score"], *row["segment"]) for row in document["predictions"]]
    truth = [Instance(row["video_id"], str(row["label"]), *row["segment"]) for row in document["ground_truth"]]

    evaluation = evaluate(as_detections(rows), as_ground_truth(truth), parse_tious(tious), Ranks())

    *published, average = published_row(folder / f"autoloc_{name}_map.tbl")
    assert [f"{value:.3f}" for value in evaluation.map_T] == published
    assert f"{evaluation.average:.3f}" == average
    assert (evaluation.population.videos, evaluation.population.instances, evaluation.population.classes) == population


def published_row(table: Path) -> list[str]:
    row = next(line for line in table.read_text().splitlines() if line.startswith("| mAP"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]
