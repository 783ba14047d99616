"""The MLflow store that runs and models go to: which one, and a quiet way in that says at once what is wrong.

A database takes the store's words, but files need a place too. Left alone, MLflow puts a sqlite store's files into
`mlruns/` of whatever folder a program ran in; here they go to `mlartifacts/` beside the database, for experiments that
aumn creates. A server knows its own place, and experiments made by others keep theirs.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aumn.records import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"

# MLflow reads these when it is imported or used; what the user has set stays.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is raised, and told by us
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# With its own numbers MLflow tries for four minutes before it says that nobody answers; a courier tries again itself.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class StoreError(InputError):
    """The store did not do what it was asked, or did not answer at all."""


def open_store(uri: str | None = None) -> MlflowClient:
    """A client of the store, which has answered; `client.tracking_uri` is the address it has.

    `uri` None: MLFLOW_TRACKING_URI, else mlflow.db in the working directory. A new sqlite store is created.
    """
    address = find_address(uri)
    for name, value in (_QUIET | _IMPATIENT).items():
        os.environ.setdefault(name, value)
    with explain(address):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    return client


def artifact_location(address: str) -> str | None:
    """Where new experiments of a store keep files; None where the store knows best."""
    if not address.startswith(_SQLITE):
        return None
    return (_database(address).parent / "mlartifacts").as_uri()


@contextmanager
def explain(address: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or its server raise into a sentence for the user."""
    try:
        yield
    except _refusals() as error:
        raise StoreError(
            f"The tracking store {without_password(address)} refused: {_reason(error)}. {_remedy(address)}"
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """MLflow lets through what its database, its HTTP client (an OSError) and a missing database driver raise."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, ImportError


def find_address(uri: str | None) -> str:
    """The store's address, a sqlite file's made absolute so that it does not depend on later changes of directory."""
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    if re.match(r"(file:|[^:]*$)", address):
        raise InputError(
            f"The tracking store {address} is a folder, which MLflow no longer writes: use a database in it, "
            f"{_SQLITE}{address.removeprefix('file://').removeprefix('file:').rstrip('/')}/mlflow.db."
        )
    if address.startswith("sqlite:"):
        if not address.removeprefix(_SQLITE) or not address.startswith(_SQLITE):
            raise InputError(f"The tracking store {address} names no file: write {_SQLITE}<folder>/mlflow.db.")
        return f"{_SQLITE}{_database(address)}"
    return address


def _database(address: str) -> Path:
    return Path(address.removeprefix(_SQLITE)).absolute()


def _reason(error: Exception) -> str:
    """The heart of a long message: without the SQL statement, without the layers around a connection's failure."""
    text = " ".join(str(getattr(error, "orig", None) or error).split()).partition(" [SQL: ")[0]
    layers = re.search(r"\(Caused by (?:.*: )?(.*?)[\"')]*$", text)
    cause = layers[1] if layers else text.rstrip(".")
    return without_password(textwrap.shorten(cause, 300, placeholder=" [...]"))


def _remedy(address: str) -> str:
    if address.startswith("http"):
        return "Start the server, or correct tracking.uri or MLFLOW_TRACKING_URI."
    if address.startswith(_SQLITE):
        return "Let tracking.uri or MLFLOW_TRACKING_URI name a file that MLflow can write and no other program locks."
    return f"Correct tracking.uri or MLFLOW_TRACKING_URI, or use {DEFAULT_STORE}."


def without_password(text: str) -> str:
    """The text without what stands before the @ of an address."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)
