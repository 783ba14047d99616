"""The model registry: model artifacts by name, version and alias.

A version's files are uploaded as an MLflow logged model, tied to the run that trained it, so that an `MLmodel` file in
the artifact's folder is all that makes it an MLflow pyfunc as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aumn.checkpoint import ModelCard, read_card
from aumn.durable import CHECKSUMS
from aumn.records import InputError
from aumn.tracking.store import explain, open_store, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A name in the registry."""

    name: str
    newest_version: int | None
    aliases: dict[str, int]  # alias -> version


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model. `tags` holds what the registration said of it; others may have added to them.

    Ours are dataset, dataset_identity, commit, aumn_version and each metric at full precision, such as
    held_out/mAP/average.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    created: datetime
    run_id: str | None
    tags: dict[str, str]


def register(folder: Path, name: str, alias: str | None = None, *, run_id: str, uri: str | None = None) -> ModelVersion:
    """Upload a model artifact as the next version of a name, new or not; the version takes over the alias.

    A run registers the same files once: killed and repeated at any moment, this finds the version that is there.
    """
    check_names(name, alias)
    tags = _describe(read_card(folder)) | {
        "files_sha256": hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()
    }
    client = open_store(uri)
    with explain(client.tracking_uri):
        if not _registered(client, name, run_id, tags):
            _upload(client, folder, name, run_id, tags)
        # A store that hung may have taken an upload given up long since: the first one counts.
        version, *doubles = _registered(client, name, run_id, tags)
        for double in doubles:
            client.delete_model_version(name, double)
        if alias:
            client.set_registered_model_alias(name, alias, version)
        return _version(client.get_model_version(name, version), _find_model(client, name).aliases)


def check_names(name: str | None = None, alias: str | None = None) -> None:
    """Refuse what the registry would refuse, but before a day of training rather than after it."""
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"model name {name!r} must be letters, digits, - _ and . only: such as aumn-thumos14.")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias, re.ASCII) or re.fullmatch(r"(?i)latest|v\d+", alias)):
        raise InputError(
            f"alias {alias!r} must be letters, digits, - and _, and neither `latest` nor like v3: such as champion."
        )


def resolve(model_uri: str, uri: str | None = None) -> Path:
    """The folder of `models:/name@alias` or `models:/name/version`: the store's own if it is on this machine, else a
    copy in the user's cache, downloaded once. Any number of ranks may ask at the same time.
    """
    match = re.fullmatch(r"models:/(?P<name>[^/:@]+)(@(?P<alias>[^/:@]+)|/(?P<version>\d+))", model_uri)
    if not match:
        raise InputError(
            f"{model_uri} is no registered model: write models:/<name>@<alias> or models:/<name>/<version>, "
            "such as models:/aumn-thumos14@champion."
        )
    client = open_store(uri)
    with explain(client.tracking_uri):
        name = match["name"]
        version = _find_alias(client, name, match["alias"]) if match["alias"] else int(match["version"])
        _find_version(client, name, version)
        source = client.get_model_version_download_uri(name, str(version))
        return _fetch(source, client.tracking_uri, f"{name}-{version}")


def list_models(uri: str | None = None) -> list[RegisteredModel]:
    """Every name in the registry, alphabetically."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        return [_model(found) for found in _pages(client.search_registered_models, order_by=["name ASC"])]


def show_model(name: str, uri: str | None = None) -> list[ModelVersion]:
    """A model's versions, newest first."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        aliases = _find_model(client, name).aliases
        return [_version(found, aliases) for found in _find_versions(client, name)]


def promote(name: str, version: int, alias: str, uri: str | None = None) -> int | None:
    """Give a version an alias; the version that had it, if one did."""
    check_names(alias=alias)
    client = open_store(uri)
    with explain(client.tracking_uri):
        _find_version(client, name, version)
        before = _find_model(client, name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, str(version))
        return before


def _describe(card: ModelCard) -> dict[str, str]:
    facts = {"dataset": card.dataset, "dataset_identity": card.dataset_identity, "aumn_version": card.aumn_version}
    commit = {"commit": card.commit} if card.commit else {}
    return facts | commit | {name: repr(value) for name, value in card.metrics.items()}


def _registered(client: MlflowClient, name: str, run_id: str, tags: Mapping[str, str]) -> list[str]:
    """The versions that this run made of these files, oldest first."""
    found = _pages(client.search_model_versions, f"name = '{name}' and run_id = '{run_id}'")
    digest = tags["files_sha256"]
    return sorted((str(version.version) for version in found if version.tags.get("files_sha256") == digest), key=int)


def _upload(client: MlflowClient, folder: Path, name: str, run_id: str, tags: dict[str, str]) -> None:
    """A new version. Nothing is in the registry before all files are in the store."""
    from mlflow.entities import LoggedModelOutput

    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "localizer", run_id, tags, model_type="AUMN")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _create_name(client, name)
    version = client.create_model_version(
        name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id
    ).version
    # As mlflow.register_model does: its UI leads from the logged model to the version by this.
    link = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})


def _create_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find_model(client: MlflowClient, name: str) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    try:
        return _model(client.get_registered_model(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    names = [model.name for model in _pages(client.search_registered_models, order_by=["name ASC"])]
    raise InputError(
        f"No model is registered as {name} in {without_password(client.tracking_uri)}; {_choices('names', names)}."
    )


def _find_alias(client: MlflowClient, name: str, alias: str) -> int:
    aliases = _find_model(client, name).aliases
    if alias not in aliases:
        raise InputError(f"Model {name} has no alias {alias}; {_choices('aliases', sorted(aliases))}.")
    return aliases[alias]


def _find_version(client: MlflowClient, name: str, version: int) -> None:
    _find_model(client, name)
    versions = [int(found.version) for found in _find_versions(client, name)]
    if version not in versions:
        raise InputError(f"Model {name} has no version {version}; {_choices('versions', versions)}.")


def _find_versions(client: MlflowClient, name: str) -> list[Any]:
    return list(_pages(client.search_model_versions, f"name = '{name}'", order_by=["version_number DESC"]))


def _choices(kind: str, choices: Sequence[object]) -> str:
    if not choices:
        return f"there are no {kind} yet"
    more = f" and {len(choices) - _SHOWN:,} more" if len(choices) > _SHOWN else ""
    return f"the {kind} are {', '.join(map(str, choices[:_SHOWN]))}{more}"


def _pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """What a search of MLflow finds, over all its pages."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _model(found: Any) -> RegisteredModel:
    """MLflow says the newest version of each stage, of which ours have none; sqlite and a server differ in types."""
    newest = max((int(version.version) for version in found.latest_versions or []), default=None)
    return RegisteredModel(found.name, newest, {alias: int(version) for alias, version in found.aliases.items()})


def _version(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    version = int(found.version)
    return ModelVersion(
        found.name,
        version,
        tuple(sorted(alias for alias, holder in aliases.items() if holder == version)),
        datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        found.run_id or None,
        dict(found.tags),
    )


def _fetch(source: str, address: str, readable: str) -> Path:
    """A version's files on this machine. A version never changes, so one copy serves for good."""
    from mlflow.artifacts import download_artifacts

    if urlsplit(source).scheme in {"", "file"}:
        return Path(download_artifacts(source, tracking_uri=address))
    digest = hashlib.sha256(f"{address} {source}".encode()).hexdigest()[:16]
    target = _cache() / f"{readable}-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".", ignore_cleanup_errors=True) as partial:
            downloaded = Path(download_artifacts(source, dst_path=partial, tracking_uri=address))
            try:
                downloaded.rename(target)
            except OSError:
                if not target.is_dir():  # else another rank was faster
                    raise
    return target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aumn" / "models"
