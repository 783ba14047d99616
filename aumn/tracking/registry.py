"""The model registry, looked into: versions by name, number and alias, and their files (see `registration`)."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aumn.addresses import public
from aumn.files import CHECKSUMS
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, read_card
from aumn.tracking.store import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Description:
    """What a version's files say of it; `config` is that of its run, None where it was not recorded."""

    name: str
    version: int
    card: ModelCard
    config: dict[str, Any] | None

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


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
    name, which = _parse(model_uri)
    with connected(uri) as client:
        version = find_version(client, name, which)
        source = client.get_model_version_download_uri(name, str(version))
        return _fetch(source, client.tracking_uri, f"{name}-{version}")


def describe(model_uri: str, uri: str | None = None) -> Description:
    """What a version says of itself; downloads no weights."""
    name, which = _parse(model_uri)
    with connected(uri) as client:
        return read_description(client, name, find_version(client, name, which))


def list_models(uri: str | None = None) -> list[RegisteredModel]:
    """Every model in the registry, alphabetically."""
    with connected(uri) as client:
        return list(_find_models(client))


def show_model(name: str, uri: str | None = None) -> list[ModelVersion]:
    """A model's versions, newest first. Their tags hold what the registration said; others may have added to them.

    Ours are dataset, dataset_identity, commit, aumn_version and each metric at full precision, such as
    held_out/mAP/average.
    """
    with connected(uri) as client:
        aliases, versions = find_aliases(client, name), _find_versions(client, name)
    for found in versions:  # MLflow's search leaves them out
        found.aliases = sorted(alias for alias, version in aliases.items() if version == int(found.version))
    return versions


def read_description(client: MlflowClient, name: str, version: int) -> Description:
    """The same of a version that exists."""
    import yaml
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(name, str(version))
    with tempfile.TemporaryDirectory() as folder:
        for file in ("model.json", CHECKSUMS, "config.yaml"):
            download_artifacts(f"{source}/{file}", dst_path=folder, tracking_uri=client.tracking_uri)
        config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
        return Description(name, version, read_card(Path(folder)), config or None)


def _parse(model_uri: str) -> tuple[str, str]:
    """Name, and version or @alias."""
    match = re.fullmatch(r"models:/(?P<name>[^/:@]+)(?P<which>@[^/:@]+|/\d+)", model_uri)
    if not match:
        raise InputError(
            f"{model_uri} is no registered model: write models:/<name>@<alias> or models:/<name>/<version>, "
            "such as models:/aumn-thumos14@champion."
        )
    return match["name"], match["which"].removeprefix("/")


def find_aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """The version that each alias of a model stands for; the model must be there."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in _find_models(client)]
        raise InputError(
            f"No model is registered as {name} in {public(client.tracking_uri)}; {_choices('names', names)}."
        ) from None
    return {alias: int(version) for alias, version in found.items()}  # sqlite and a server differ in types


def find_version(client: MlflowClient, name: str, which: str) -> int:
    """The version of a model that must be there: by its number, or by @alias."""
    aliases = find_aliases(client, name)
    if which.startswith("@"):
        if which[1:] not in aliases:
            raise InputError(f"Model {name} has no alias {which[1:]}; {_choices('aliases', sorted(aliases))}.")
        return aliases[which[1:]]
    if not which.isdecimal():
        raise InputError(f"{which!r} is no version of {name}: give its number, or an alias of it such as @challenger.")
    versions = [int(found.version) for found in _find_versions(client, name)]
    if int(which) not in versions:
        raise InputError(f"Model {name} has no version {which}; {_choices('versions', versions)}.")
    return int(which)


def _find_models(client: MlflowClient) -> Iterator[RegisteredModel]:
    yield from pages(client.search_registered_models, order_by=["name ASC"])


def _find_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return list(pages(client.search_model_versions, f"name = '{name}'", order_by=["version_number DESC"]))


def _choices(kind: str, choices: Sequence[object]) -> str:
    if not choices:
        return f"there are no {kind} yet"
    more = f" and {len(choices) - _SHOWN:,} more" if len(choices) > _SHOWN else ""
    return f"the {kind} are {', '.join(map(str, choices[:_SHOWN]))}{more}"


def pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """What a search of MLflow finds, over all its pages."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _fetch(source: str, address: str, readable: str) -> Path:
    """A version's files on this machine. A version never changes, so one copy serves for good."""
    from mlflow.artifacts import download_artifacts

    if urlsplit(source).scheme in {"", "file"}:
        return Path(download_artifacts(source, tracking_uri=address))
    digest = hashlib.sha256(f"{address} {source}".encode()).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = caches / "aumn" / "models" / f"{readable}-{digest}"
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
