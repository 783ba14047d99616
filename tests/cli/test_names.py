"""Names of classes and subsets are text wherever they are shown: no terminal and no figure takes them for markup."""

import json
from pathlib import Path

import numpy as np
import pytest

from aumn.cli.data import inspect
from aumn.cli.evaluation import evaluate
from aumn.cli.printing import show, table
from aumn.data.packing.packing import pack
from aumn.inference.parts import write_part
from aumn.records import Detections

NAMES = ("walk [/both ways]", "Long [jump]", "$ and 5_$", ":smile: [bold]x[/bold]")
SUBSETS = ("_train [/set]", "[red]test")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A video a class and subset, packed, with a detection of each class; the place's name is no markup either."""
    root, database = tmp_path / "[a] $x_$", {}
    for stream in ("rgb", "flow"):
        (root / "features" / stream).mkdir(parents=True)
        for number in range(8):
            np.save(root / "features" / stream / f"v{number}.npy", np.random.default_rng(number).random((20, 4)))
    for number in range(8):
        annotation = {"label": NAMES[number % 4], "segment": [1.0, 5.0]}
        database[f"v{number}"] = {"subset": SUBSETS[number // 4], "duration": 12.8, "annotations": [annotation]}
    (root / "gt.json").write_text(json.dumps({"database": database}))
    pack(root / "features", root / "shards", root / "gt.json", name="[/set]", fps=25, workers=1)
    return root


def test_inspect_shows_names_as_they_are_and_draws_them(place, capsys):
    inspect(place / "shards", picture=place / "new" / "p.svg", json_file=place / "new" / "i.json")
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*NAMES, *SUBSETS))
    assert json.loads((place / "new" / "i.json").read_text())["classes"].keys() == set(NAMES)
    picture = (place / "new" / "p.svg").read_text()
    drawn = "".join(line for line in picture.splitlines() if line.strip().startswith("<!-- "))
    assert all(name in drawn for name in (*NAMES, *(f"{name} (4)" for name in SUBSETS)))


def test_evaluate_shows_every_class_by_its_name(place, capsys):
    labels = tuple(sorted(NAMES))
    column = np.arange(4)
    videos = tuple(f"v{number}" for number in range(4, 8))
    found = Detections(videos, labels, column, column, column / 9 + 0.1, column + 1.0, column + 5.0)
    (place / "found").mkdir()
    write_part(found, place / "found" / "part-00000.parquet", {"subset": SUBSETS[1], "model": "m", "dataset": "x"})
    evaluate(place / "found", annotations=place / "gt.json", protocol="thumos14", per_class=True)
    printed = capsys.readouterr().out
    assert all(f"{name} (1)" in printed for name in NAMES)


def test_a_table_keeps_headers_cells_and_caption_as_they_are(capsys):
    show(table(NAMES, [NAMES], caption=NAMES[0]))
    header, _rule, row, caption = filter(str.strip, capsys.readouterr().out.splitlines())
    assert [cell.strip() for cell in header.split("  ")] == [cell.strip() for cell in row.split("  ")] == list(NAMES)
    assert caption.strip() == NAMES[0]
