"""A model version's folder: the model artifact as training wrote it, and what makes MLflow understand it.

model.safetensors  model.json  SHA256SUMS          the artifact, which `aumn localize` reads
config.yaml        MODEL_CARD.md                   all settings of the run; the facts for people
MLmodel  requirements.txt  input_example.json ...  MLflow's: signature, requirements, an example
code/                                              `aumn.tracking.pyfunc` and the files of aumn that it needs
"""

from __future__ import annotations

import ast
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aumn.runfolder.checkpoint import ModelCard
from aumn.tracking.model_card import write_model_card

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

REQUIREMENTS = ("mlflow", "numpy", "pandas", "pydantic", "safetensors", "torch")
"""All that loading and predicting imports beside the standard library; each is listed with the version it has here."""

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def packaged(
    artifact: Path, card: ModelCard, config: Mapping[str, Any] | None, *, run_id: str, model_id: str
) -> Iterator[Path]:
    """A folder beside the artifact with all of a version's files, for as long as the block lasts."""
    import yaml

    folder = artifact.with_name(f".{artifact.name}.version.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    try:
        _save_pyfunc(folder, card, run_id, model_id)
        shutil.copytree(artifact, folder, dirs_exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config or {}), sort_keys=False), encoding="utf-8")
        (folder / "MODEL_CARD.md").write_text(write_model_card(card, config), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save_pyfunc(folder: Path, card: ModelCard, run_id: str, model_id: str) -> None:
    warnings.filterwarnings("ignore", r".*Any type hint is inferred as AnyType", UserWarning)  # in MLflow's own classes
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as code:
        _ship_code(Path(code))
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module="aumn_pyfunc",
            code_paths=[str(path) for path in Path(code).iterdir()],
            signature=_signature(card),
            input_example=_example(card),
            # a local suffix such as +cpu is known to some package indices only
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            metadata={"dataset": card.dataset, "dataset_identity": card.dataset_identity, "commit": card.commit},
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )


def _ship_code(code: Path) -> None:
    """`aumn_pyfunc.py`, and the files of aumn that its one import leads to."""
    shutil.copy(_PACKAGE / "tracking" / "pyfunc.py", code / "aumn_pyfunc.py")
    for file in _imported(_PACKAGE / "inference" / "one_video.py", set()):
        target = code / "shipped" / file.relative_to(_PACKAGE.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _imported(file: Path, found: set[Path]) -> set[Path]:
    """A file, its packages' __init__, and all files of ours that it imports at any depth."""
    inits = {parent / "__init__.py" for parent in file.parents if parent.is_relative_to(_PACKAGE)}
    for path in {file, *inits} - found:
        found.add(path)
        for name in _names(path):
            module = _PACKAGE.parent.joinpath(*name.split("."))
            if name.startswith("aumn") and module.with_suffix(".py").is_file():
                _imported(module.with_suffix(".py"), found)
    return found


def _names(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, of modules and of what is in them."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _signature(card: ModelCard) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    streams = [TensorSpec(np.dtype(np.float32), (-1, width), stream) for stream, width in card.streams.items()]
    seconds = [ColSpec("double", name) for name in ("score", "start_s", "end_s")]
    clock = [ParamSpec(name, "double", None) for name in ("fps", "duration_s")]
    return ModelSignature(Schema(streams), Schema([ColSpec("string", "label"), *seconds]), ParamSchema(clock))


def _example(card: ModelCard) -> tuple[dict[str, Any], dict[str, float]]:
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = {stream: rng.random((2, width)).round(3).astype(np.float32) for stream, width in card.streams.items()}
    return arrays, {"fps": 25.0, "duration_s": 2 * card.stride_frames / 25.0}
