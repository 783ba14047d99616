"""The MLflow store that runs and models go to: which one, and a quiet way in that says at once what is wrong.

A database takes the store's words, but files need a place too. Left alone, MLflow puts a sqlite store's files into
`mlruns/` of whatever folder a program ran in; here they go to `mlartifacts/` beside the database, for experiments that
aumn creates. A server knows its own place, and experiments made by others keep theirs. MLflow notes absolute addresses
of files; where the two were moved together, those are mended when the database is opened.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aumn.addresses import hide, public
from aumn.records import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"
_FILES = "mlartifacts"
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's tables hold absolute addresses of files."""

# MLflow reads these when it is imported or used; what the user has set stays.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is raised, and told by us
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# With its own numbers MLflow tries for four minutes before it says that nobody answers; the mirror tries again itself.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

logger = logging.getLogger(__name__)


class StoreError(InputError):
    """The store did not do what it was asked, or did not answer at all."""


class RefusedForGoodError(StoreError):
    """The store answered, and will never take what it was sent."""


def open_store(uri: str | None = None) -> MlflowClient:
    """A client of the store, which has answered; `client.tracking_uri` is the address it has.

    `uri` None: MLFLOW_TRACKING_URI, else mlflow.db in the working directory. A new sqlite store is created.
    """
    address = find_address(uri)
    for name, value in (_QUIET | _IMPATIENT).items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try in its own words
    with explain(address):
        from mlflow import MlflowClient

        with _database_at_hand(address) if address.startswith(_SQLITE) else nullcontext():
            client = MlflowClient(tracking_uri=address, registry_uri=address)
            client.search_experiments(max_results=1)
    return client


@contextmanager
def connected(uri: str | None = None) -> Iterator[MlflowClient]:
    """A client as of `open_store`, whose failures within the block are told as there."""
    client = open_store(uri)
    with explain(client.tracking_uri):
        yield client


def find_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is created where there is none."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    address = client.tracking_uri
    place = (_database(address).parent / _FILES).as_uri() if address.startswith(_SQLITE) else None
    try:
        return str(client.create_experiment(name, place))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another run created it in the meantime
            return str(found.experiment_id)
        raise


@contextmanager
def explain(address: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or its server raise into a sentence for the user."""
    try:
        yield
    except _refusals() as error:
        for_good = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
        raise (RefusedForGoodError if for_good else StoreError)(
            f"The tracking store {public(address)} refused: {reason(error, address)}. {_remedy(address)}"
        ) from error


def reason(error: BaseException | None, address: str) -> str:
    """The heart of a long message: without the SQL statement, without the layers around a connection's failure."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    text = re.split(r" \[SQL: |\. To increase the timeout, ", text)[0]
    layers = re.search(r"\(Caused by (?:.*: )?(.*?)[\"')]*$", text)
    cause = layers[1] if layers else text.rstrip(".")
    return textwrap.shorten(hide(cause, address), 300, placeholder=" [...]")


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
    if address.startswith("http") and not _is_readable(address):
        raise InputError(
            f"The tracking store {public(address)} is no address: write a password's / : @ ? # and % as %2F %3A %40 "
            "%3F %23 and %25, a space as %20."
        )
    return address


@contextmanager
def _database_at_hand(address: str) -> Iterator[None]:
    """A sqlite store's file, as MLflow will find it: made where there is none, and followed where it was moved.

    What is wrong with it is raised at once, where MLflow would try for minutes. Several processes that make a new
    store's tables at once break it, so its folder is locked meanwhile.
    """
    database = _database(address)
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no flock
            fcntl.flock(folder, fcntl.LOCK_EX)
        with closing(sqlite3.connect(str(database).partition("?")[0], timeout=30)) as connection, connection:
            _follow(connection, database)
        yield
    finally:
        os.close(folder)


def _follow(connection: sqlite3.Connection, database: Path) -> None:
    """Let what MLflow wrote down of the files beside a database that is no longer where it was lead to them again."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    here = database.parent / _FILES
    places = connection.execute("SELECT DISTINCT artifact_location FROM experiments") if "experiments" in tables else ()
    for (place,) in list(places):
        there = Path(unquote(urlsplit(place or "").path))
        if there.name != _FILES or there == here or (there.parent / database.name).exists():
            continue
        if there.exists() and not here.exists():  # the database alone was moved
            continue
        for table, column in ((table, column) for table, column in _PLACES if table in tables):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",  # noqa: S608
                (here.as_uri(), len(place) + 1, len(place) + 1, f"{place}/"),
            )
        logger.warning("%s was in %s before: the files that it names are now looked for in %s.", database, there, here)


def _is_readable(address: str) -> bool:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return False
    return "@" not in address.replace(parts.netloc, "", 1) and not re.search(r"\s", address)


def _refusals() -> tuple[type[Exception], ...]:
    """MLflow lets through what its database, its HTTP client (an OSError) and a missing database driver raise."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError


def missing(address: str) -> str:
    """What of a store that is a file is not there: `file`, `folder`, or nothing."""
    database = _database(address)
    if not address.startswith(_SQLITE) or database.exists():
        return ""
    return "file" if database.parent.exists() else "folder"


def _database(address: str) -> Path:
    return Path(address.removeprefix(_SQLITE)).absolute()


def _remedy(address: str) -> str:
    if address.startswith("http"):
        return "Start the server, or correct tracking.uri or MLFLOW_TRACKING_URI."
    if address.startswith(_SQLITE):
        return "Let tracking.uri or MLFLOW_TRACKING_URI name a file that MLflow can write and no other program locks."
    return f"Correct tracking.uri or MLFLOW_TRACKING_URI, or use {DEFAULT_STORE}."
