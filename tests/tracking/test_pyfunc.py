"""A registered model as MLflow loads it, where this package is not installed and nothing is that it does not list."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from aumn.inference.one_video import load_network, localize_video
from aumn.model.aumn import StreamNetworks
from aumn.runfolder.checkpoint import ModelCard, save_model
from aumn.tracking.registry import resolve
from tests.tracking.conftest import add_version

CONFIG = {"data": {"subset": "training", "holdout_share": 0.25, "holdout_seed": 3}, "run": {"steps": 5}}

ELSEWHERE = """
import importlib.metadata, importlib.util, json, re, sys
sys.path += [path for path in sys.argv[1].split(":")]  # -S: no editable installs, so no aumn
assert importlib.util.find_spec("aumn") is None, importlib.util.find_spec("aumn")

def closure(names):
    found, left = set(), list(names)
    while left:
        name = re.match(r"[\\w.-]+", left.pop())[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            left += [need for need in needs if "extra ==" not in need]
    return found

class OnlyWhatIsListed:
    def __init__(self, listed):
        owners = importlib.metadata.packages_distributions()
        known = closure(listed)
        self.others = {
            module for module, names in owners.items()
            if module != "aumn" and not known & {name.lower().replace("_", "-") for name in names}
        }
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.others:
            raise ModuleNotFoundError(f"{name} is not among the requirements", name=name)

from pathlib import Path
folder, arrays, uri, store = Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
sys.meta_path.insert(0, OnlyWhatIsListed((folder / "requirements.txt").read_text().split()))
for absent in ("deepspeed", "typer", "webdataset"):
    try:
        __import__(absent)
    except ModuleNotFoundError:
        continue
    raise AssertionError(absent)
import mlflow, numpy as np
mlflow.set_tracking_uri(store)
model = mlflow.pyfunc.load_model(uri)
frame = model.predict(dict(np.load(arrays)), params={"fps": 25.0, "duration_s": 3.3})
print(json.dumps({"columns": list(frame), "rows": frame.to_numpy().tolist(), "code": sys.modules["aumn"].__file__}))
"""


def make_model(folder: Path) -> Path:
    torch.manual_seed(0)
    card = ModelCard(
        model={"embedding_width": 8, "units": 3, "bottleneck": 2},
        localize={"weights": {"rgb": 0.4, "flow": 0.6}, "class_threshold": 0.2, "nms_tiou": 0.5},
        classes=("Golf", "Diving", "High Jump"),
        streams={"rgb": 6, "flow": 5},
        stride_frames=8,
        dataset="spliced",
        dataset_identity="sha256:0123",
        metrics={"held_out/mAP/0.1": 0.4567, "held_out/mAP/0.2": 0.25, "held_out/mAP/average": 0.353},
        aumn_version="0.1.0",
        commit="c0ffee",
    )
    return save_model(folder / "model", StreamNetworks.build(card.streams, 3, card.model).state_dict(), card)


def load_elsewhere(uri: str, store: str, folder: Path, arrays: Path) -> dict:
    """Load and predict in a process that sees this interpreter's packages, but not this one."""
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    assert sites
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", ELSEWHERE, ":".join(sites), folder, arrays, uri, store]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, cwd=arrays.parent, env={**os.environ}
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {stream: rng.normal(size=(11, width)).astype("float32") for stream, width in (("rgb", 6), ("flow", 5))}


@pytest.mark.slow
def test_a_version_predicts_where_only_what_it_lists_is_installed(store, track, tmp_path, arrays):
    np.savez(tmp_path / "arrays.npz", **arrays)
    add_version(make_model(tmp_path), track(), "champion", config=CONFIG)
    folder = resolve("models:/aumn@champion", store)
    found = load_elsewhere("models:/aumn@champion", store, folder, tmp_path / "arrays.npz")
    assert Path(found["code"]).is_relative_to(folder / "code" / "shipped")

    network, card = load_network(folder)
    expected = localize_video(network, card, arrays, fps=25.0, duration_s=3.3)
    assert found["columns"] == ["label", "score", "start_s", "end_s"]
    assert len(expected.score_N) > 1
    assert found["rows"] == [
        [card.classes[label], *numbers]
        for label, *numbers in zip(
            expected.label_N, expected.score_N, expected.start_s_N, expected.end_s_N, strict=True
        )
    ]


def test_what_a_version_carries(store, track, tmp_path):
    from mlflow import MlflowClient
    from mlflow.models import Model

    run = track(tmp_path, config=CONFIG, model_name="aumn")
    make_model(tmp_path)
    assert run.publish() == "models:/aumn/1"
    run.end()
    folder = resolve("models:/aumn/1", store)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == run.folder.config()
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| tIoU | 0.1 | 0.2 | average |\n| --- | --- | --- | --- |\n| mAP, % | 45.7 | 25.0 | 35.3 |" in card
    assert "Measured on 25% of training held out with seed 3, of spliced:" in card
    for fact in ("`sha256:0123`", "rgb (6 wide), flow (5 wide)", "Golf, Diving, High Jump", "commit c0ffee"):
        assert fact in card
    described = MlflowClient(store).get_model_version("aumn", "1").description
    assert described in card

    model = Model.load(str(folder / "MLmodel"))
    assert [(spec.name, spec.shape) for spec in model.signature.inputs] == [("rgb", (-1, 6)), ("flow", (-1, 5))]
    assert model.signature.outputs.input_names() == ["label", "score", "start_s", "end_s"]
    assert (model.run_id, model.metadata["dataset_identity"]) == (run.sent.run, "sha256:0123")
    assert model.load_input_example(str(folder))["rgb"].shape == (2, 6)
    required = [line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert required == ["mlflow", "numpy", "pandas", "pydantic", "safetensors", "torch"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_example_predicts_and_what_cannot_be_is_told(store, track, tmp_path, arrays):
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    add_version(make_model(tmp_path), track())
    model = mlflow.pyfunc.load_model(str(resolve("models:/aumn/1", store)))
    assert len(model.predict(model.input_example, params={"fps": 25.0}))
    with pytest.raises(ValueError, match=r"Neither fps nor duration_s is given"):
        model.predict(arrays)
    with pytest.raises(MlflowException, match=r"missing inputs \['flow'\]"):
        model.predict({"rgb": arrays["rgb"]}, params={"fps": 25.0})


OLDER_LOADER = """
import importlib.util, sys
from pathlib import Path

def _load_pyfunc(path):
    if importlib.util.find_spec("aumn") is None:
        sys.path.append(str(Path(path) / "code" / "shipped"))
    return VideoModel(Path(path))

class VideoModel:
    def __init__(self, folder):
        from aumn.one_video import load_network
        self._network, self._card = load_network(folder)

    def predict(self, model_input, params=None):
        from aumn.one_video import localize_video
        return localize_video(self._network, self._card, model_input, fps=25.0)
"""


def test_a_version_of_commit_0e01a02_loads_where_this_aumn_is_installed(tmp_path, arrays):
    """It holds its own loader, which names modules as they were."""
    import mlflow.pyfunc

    folder = make_model(tmp_path)
    (folder / "code").mkdir()
    (folder / "code" / "older_pyfunc.py").write_text(OLDER_LOADER)
    flavour = {"loader_module": "older_pyfunc", "code": "code"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavour}}))
    found = mlflow.pyfunc.load_model(str(folder)).predict(arrays)
    expected = localize_video(*load_network(folder), arrays, fps=25.0)
    assert len(found.score_N)
    assert list(found.score_N) == list(expected.score_N)
