"""Putting a model artifact into the registry, once.

A version's files (see `packaging`) are uploaded as an MLflow logged model, tied to the run that trained it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aumn.files import CHECKSUMS
from aumn.runfolder.checkpoint import ModelCard, read_card
from aumn.tracking.model_card import summarize
from aumn.tracking.packaging import packaged
from aumn.tracking.registry import check_names, pages
from aumn.tracking.store import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DIGEST = "files_sha256"


def register(
    folder: Path,
    name: str,
    *,
    run_id: str,
    config: Mapping[str, Any] | None = None,
    uri: str | None = None,
) -> int:
    """Upload a model artifact as the next version of a name, new or not; the version's number.

    A run registers the same files once: killed and repeated at any moment, this finds the version that is there.
    `config` is the run's.
    """
    check_names(name)
    card = read_card(folder)
    digest = hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()
    with connected(uri) as client:
        if not _registered(client, name, run_id, digest):
            _upload(client, folder, name, card, config, run_id=run_id, digest=digest)
        # A store that hung may have taken an upload given up long since: the first one counts.
        version, *doubles = _registered(client, name, run_id, digest)
        for double in doubles:
            client.delete_model_version(name, double)
        return int(version)


def _registered(client: MlflowClient, name: str, run_id: str, digest: str) -> list[str]:
    """The versions that this run made of these files, oldest first."""
    found = pages(client.search_model_versions, f"name = '{name}' and run_id = '{run_id}'")
    return sorted((str(version.version) for version in found if version.tags.get(_DIGEST) == digest), key=int)


def _upload(
    client: MlflowClient,
    folder: Path,
    name: str,
    card: ModelCard,
    config: Mapping[str, Any] | None,
    *,
    run_id: str,
    digest: str,
) -> None:
    """A new version. Nothing is in the registry before all files are in the store."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    facts = card.model_dump(include={"dataset", "dataset_identity", "aumn_version", "commit"}, exclude_none=True)
    tags = {_DIGEST: digest, **facts, **{metric: repr(value) for metric, value in card.metrics.items()}}
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "localizer", run_id, tags, model_type="AUMN")
    with packaged(folder, card, config, run_id=run_id, model_id=model.model_id) as files:
        client.log_model_artifacts(model.model_id, str(files))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        model.artifact_location,
        run_id=run_id,
        tags=tags,
        description=summarize(card, config),
        model_id=model.model_id,
    ).version
    # As mlflow.register_model does: its UI leads from the logged model to the version by this.
    link = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
