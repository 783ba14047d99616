"""Making a model artifact a version in the registry, once.

A version's files are uploaded as an MLflow logged model, tied to the run that trained it:

    model.safetensors  model.json  SHA256SUMS          the artifact as training wrote it, which `aumn localize` reads
    config.yaml        MODEL_CARD.md                   all settings of the run; the facts for people
    MLmodel  requirements.txt  input_example.json ...  MLflow's: signature, requirements, an example
    code/                                              `aumn.tracking.pyfunc` and what of aumn localization imports
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aumn.files import CHECKSUMS, whole_file
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, read_card
from aumn.tracking.model_card import summarize, write_model_card
from aumn.tracking.registry import Description, check_names, pages
from aumn.tracking.store import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

REQUIREMENTS = ("mlflow", "numpy", "pandas", "pydantic", "safetensors", "torch")
"""All that loading and predicting imports beside the standard library; each is listed with the version it has here."""
SHIPPED = ("__init__.py", "files.py", "records.py", "config", "inference", "model", "runfolder")
"""What of aumn `inference/one_video` imports, at any depth: files and whole rooms."""

_PACKAGE = Path(__file__).parents[1]
_DIGEST = "files_sha256"
_LINKS = "mlflow.modelVersions"


def register(
    folder: Path, name: str, *, run_id: str, config: Mapping[str, Any] | None = None, uri: str | None = None
) -> int:
    """Upload a model artifact as the next version of a name, new or not; the version's number.

    A run registers the same files once: killed and repeated at any moment, this finds the version that is there.
    `config` is the run's.
    """
    check_names(name)
    card = read_card(folder)
    digest = hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()
    facts = card.model_dump(include={"dataset", "dataset_identity", "aumn_version", "commit"}, exclude_none=True)
    if card.chosen_rules:
        facts["rules"] = str(card.chosen_rules)
    tags = {_DIGEST: digest, **facts, **{metric: repr(value) for metric, value in card.metrics.items()}}
    with connected(uri) as client:
        if not _registered(client, name, run_id, digest):  # and nothing will be, before all files are in the store
            model = _upload(client, folder, card, config, run_id=run_id, tags=tags)
            _add_version(client, name, model, run_id=run_id, tags=tags, description=summarize(card, config))
        # A store that hung may have taken an upload given up long since: the first one counts.
        number, *doubles = _registered(client, name, run_id, digest)
        for double in doubles:
            client.delete_model_version(name, double)
        return int(number)


def register_rules(folder: Path, of: Description, uri: str | None = None) -> int:
    """Upload the model of another version's weights, with rules of its own, as the next version of the same name."""
    with connected(uri) as client:
        run_id = client.get_model_version(of.name, str(of.version)).run_id
    if not run_id:
        raise InputError(f"{of} names no run that made it, so that it gets no new version: write a folder with --out.")
    return register(folder, of.name, run_id=run_id, config=of.config, uri=uri)


def _registered(client: MlflowClient, name: str, run_id: str, digest: str) -> list[str]:
    """The versions that this run made of these files, oldest first."""
    found = pages(client.search_model_versions, f"name = '{name}' and run_id = '{run_id}'")
    return sorted((str(version.version) for version in found if version.tags.get(_DIGEST) == digest), key=int)


def _upload(
    client: MlflowClient,
    artifact: Path,
    card: ModelCard,
    config: Mapping[str, Any] | None,
    *,
    run_id: str,
    tags: dict[str, str],
) -> LoggedModel:
    """The logged model of these files. One that an earlier attempt began gets what it lacks."""
    import yaml
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    these = f"source_run_id = '{run_id}' AND tags.{_DIGEST} = '{tags[_DIGEST]}'"
    begun = client.search_logged_models([experiment_id], these, max_results=1)
    model = begun[0] if begun else client.create_logged_model(experiment_id, "localizer", run_id, tags, None, "AUMN")
    if model.status != LoggedModelStatus.READY:
        there = {file.path: file.file_size for file in client.list_logged_model_artifacts(model.model_id)}
        files = [file for file in sorted(artifact.iterdir()) if file.is_file()]
        with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(1) as beside:
            sent = [
                beside.submit(_send, client, model, file)
                for file in files
                if there.get(file.name) != file.stat().st_size
            ]
            _save_pyfunc(Path(made), card, run_id, model.model_id)
            settings = yaml.safe_dump(dict(config or {}), sort_keys=False)
            (Path(made) / "config.yaml").write_text(settings, encoding="utf-8")
            (Path(made) / "MODEL_CARD.md").write_text(write_model_card(card, config), encoding="utf-8")
            client.log_model_artifacts(model.model_id, made)
            for one in sent:
                one.result()
        if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, "READY")
    return model


def _send(client: MlflowClient, model: LoggedModel, file: Path) -> None:
    """Put a file, which may be large, where the logged model's files are, whole or not at all.

    A server gets it as it is read. In a folder of this machine it is a copy, so that whatever is done to the model's
    own folder later, the version stays what it is.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    if urlsplit(model.artifact_location).scheme not in {"", "file"}:
        client.log_model_artifact(model.model_id, str(file))
        return
    with whole_file(Path(local_file_uri_to_path(model.artifact_location)) / file.name) as partial:
        shutil.copyfile(file, partial)


def _add_version(client: MlflowClient, name: str, model: LoggedModel, **facts: Any) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.create_model_version(name, model.artifact_location, model_id=model.model_id, **facts)
    # As mlflow.register_model does: its UI leads from the logged model to its versions by this.
    links = json.loads(model.tags.get(_LINKS, "[]"))
    links = json.dumps([*links, {"name": name, "version": found.version}])
    client.set_logged_model_tags(model.model_id, {_LINKS: links})


def _save_pyfunc(folder: Path, card: ModelCard, run_id: str, model_id: str) -> None:
    warnings.filterwarnings("ignore", r".*Any type hint is inferred as AnyType", UserWarning)  # in MLflow's own classes
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as code:
        _copy_code(Path(code))
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


def _copy_code(code: Path) -> None:
    """`aumn_pyfunc.py`, and what its one import leads to."""
    shutil.copy(_PACKAGE / "tracking" / "pyfunc.py", code / "aumn_pyfunc.py")
    shipped = code / "shipped" / "aumn"
    shipped.mkdir(parents=True)
    for name in SHIPPED:
        copy = shutil.copytree if (_PACKAGE / name).is_dir() else shutil.copy
        copy(_PACKAGE / name, shipped / name)


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
