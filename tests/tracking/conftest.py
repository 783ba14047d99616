"""A fresh sqlite store a test: made once, as MLflow takes seconds for it, then copied."""

import shutil
from pathlib import Path

import pytest
import torch

from aumn.runfolder.checkpoint import ModelCard, save_model
from aumn.tracking.registration import register
from aumn.tracking.registry import find_aliases
from aumn.tracking.store import open_store
from tests.tracking.runs import TrackedRun


@pytest.fixture(scope="session")
def blank_database(tmp_path_factory) -> Path:
    database = tmp_path_factory.mktemp("blank") / "mlflow.db"
    open_store(f"sqlite:///{database}")
    return database


@pytest.fixture
def store(blank_database, tmp_path, monkeypatch) -> str:
    """A store's address; no other store is known to the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "a store"
    folder.mkdir()
    shutil.copy(blank_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def track(store, tmp_path):
    """Begin a run that is mirrored in the store, by default in a folder of its own, or go on with one."""
    begun: list[TrackedRun] = []

    def track(folder=None, uri=store, **options) -> TrackedRun:
        begun.append(TrackedRun(folder or tmp_path / f"run {len(begun)}", uri=uri, **options))
        return begun[-1]

    yield track
    for run in begun:
        if run.status.state == "running":
            run.end("stopped")


def save_card(path: Path, **changes) -> Path:
    """A model artifact with weights that no network has, which the registry does not mind."""
    facts = {
        "model": {"units": 3},
        "localize": {},
        "classes": ("Golf", "Diving"),
        "streams": {"rgb": 5, "flow": 4},
        "stride_frames": 16,
        "dataset": "spliced",
        "dataset_identity": "sha256:0123",
        "metrics": {"testing/mAP/0.5": 0.1 + 0.2, "testing/mAP/average": 1 / 3},
        "aumn_version": "0.1.0",
        "commit": "c0ffee",
    }
    return save_model(path, {"memory": torch.arange(6.0).reshape(3, 2)}, ModelCard(**facts | changes))


@pytest.fixture
def artifact(tmp_path) -> Path:
    return save_card(tmp_path / "model")


def add_version(artifact: Path, run: TrackedRun, alias: str | None = None, *, name="aumn", config=None) -> int:
    """Register a model artifact as a run's, and give it the alias."""
    version = register(artifact, name, run_id=run.sent.run, config=config, uri=run.sent.store)
    if alias:
        open_store(run.sent.store).set_registered_model_alias(name, alias, str(version))
    return version


def aliases(store: str, name: str) -> dict[str, int]:
    """The versions that a model's aliases stand for."""
    return find_aliases(open_store(store), name)
