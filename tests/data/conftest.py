"""Small published datasets to pack, and one packed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aumn.data.packing.packing import pack
from aumn.data.packing.planning import PackingReport
from aumn.data.shards.shard_set import ShardSet

WIDTHS = {"rgb": 5, "flow": 3}
ONE_VIDEO = 8e-6  # shard_mb by which every video gets a shard of its own


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class Published:
    """A folder in the published layout, and what was written there."""

    root: Path
    features: dict[str, dict[str, np.ndarray]]  # video -> stream -> T x D
    database: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def annotations(self) -> Path:
        return self.root / "gt.json"

    def write_annotations(self) -> None:
        self.annotations.write_text(json.dumps({"database": self.database}))

    def path(self, stream: str, video: str) -> Path:
        return self.root / stream / f"{video}.npy"

    def pack(self, out: Path, source: Path | None = None, **options: Any) -> PackingReport:
        return pack(source or self.root, out, self.annotations, **{"name": "small", "workers": 1} | options)

    def open(self, **options: Any) -> ShardSet:
        """Packed anew."""
        out = self.root.with_name("opened")
        shutil.rmtree(out, ignore_errors=True)
        self.pack(out, **options)
        return ShardSet.open(out)

    def save(self, stream: str, video: str, features_TD: np.ndarray, **options: Any) -> Path:
        path = self.path(stream, video)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, features_TD, **options)
        return path


def write_published(
    root: Path, ids: dict[str, list[str]], lengths: tuple[int, ...] = (4, 2, 7), widths: dict[str, int] = WIDTHS
) -> Published:
    """Write a dataset: `ids` by subset; lengths from 2 snippets on, float32, two labels in turn."""
    rng = np.random.default_rng(7)
    published = Published(root, {})
    videos = [(subset, video) for subset, members in ids.items() for video in members]
    for number, (subset, video) in enumerate(videos):
        snippets = lengths[number % len(lengths)]
        arrays = {stream: rng.normal(size=(snippets, width)).astype("float32") for stream, width in widths.items()}
        published.features[video] = arrays
        for stream, features_TD in arrays.items():
            published.save(stream, video, features_TD)
        label = ["Run", "Jump"][number % 2]
        published.database[video] = {
            "subset": subset,
            "duration": 10.0 + number,
            "fps": 25.0,
            "annotations": [{"label": label, "segment": [1.0, 2.5 + number]}],
        }
    published.write_annotations()
    return published


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[dict[str, list[str]]], Published]:
    return lambda ids: write_published(tmp_path / "published", ids)


@pytest.fixture
def published(publish: Callable[..., Published]) -> Published:
    return publish({"training": ["a", "b", "c"], "testing": ["d", "e"]})


@pytest.fixture
def shard_set(published: Published, tmp_path: Path) -> ShardSet:
    published.pack(tmp_path / "packed")
    return ShardSet.open(tmp_path / "packed")


@pytest.fixture(scope="session")
def shrec(shared_tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real untrimmed recordings as features in the published layout."""
    folder = tmp_path_factory.mktemp("shrec")
    command = [sys.executable, str(shared_tools / "shrec21_features.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder
