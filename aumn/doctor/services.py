"""What answers from outside this process, each asked once and not for long: names, SLURM, the MLflow store."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from base64 import b64encode
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from aumn.addresses import hide
from aumn.records import InputError
from aumn.tracking.store import find_address

PATIENCE_S = 4
NEEDED = ("sbatch", "squeue", "scontrol", "srun")

State = Literal["works", "limited", "broken"]
Answer = tuple[State, str, str]  # the state, what was found, and a remedy


def find_names() -> Answer:
    """Whether this machine's own name leads to an address: gloo asks for it when ranks connect."""
    name = socket.gethostname()
    remedy = f"Several ranks may not connect: give {name} an address in /etc/hosts, or set GLOO_SOCKET_IFNAME=lo."
    answer = _ask("getent", "hosts", name)
    if isinstance(answer, str):
        return "limited", f"{name}: {answer}", remedy
    if answer.returncode or not answer.stdout.strip():
        return "limited", f"{name} has no address", remedy
    return "works", f"{name} is {answer.stdout.split()[0]}", ""


def find_slurm() -> Answer:
    """Whether its commands are here, and whether its controller answers."""
    missing = [command for command in NEEDED if not shutil.which(command)]
    local = "aumn submit works with --local and --dry-run alone"
    if missing:
        return "limited", f"no {', '.join(missing)} on PATH", f"{local}; submit from a cluster's login node."
    answer = _ask("scontrol", "ping")
    if isinstance(answer, str):
        return "limited", f"scontrol ping: {answer}", f"{local} until its controller answers."
    if answer.returncode or " UP" not in answer.stdout:
        said = " ".join((answer.stdout + answer.stderr).split())[:200]
        return "limited", f"the controller does not answer: {said}", f"{local} until it does."
    job = os.environ.get("SLURM_JOB_ID")
    return "works", " ".join(answer.stdout.split()) + (f"; inside job {job}" if job else ""), ""


def find_store(tracking_uri: str | None) -> Answer:
    """Whether the store that `tracking.uri` or MLFLOW_TRACKING_URI names can be reached; a database is not opened."""
    state, found, remedy = _find_store(tracking_uri)
    return state, hide_credentials(found, tracking_uri), hide_credentials(remedy, tracking_uri)


def hide_credentials(text: str, tracking_uri: str | None) -> str:
    """The text without the name and password that the store's address may hold, in whatever part an error quotes."""
    return hide(text, tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))


def _find_store(tracking_uri: str | None) -> Answer:
    try:
        address = find_address(tracking_uri)
    except InputError as error:
        return "broken", tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""), str(error)
    if address.startswith("sqlite:///"):
        return _find_file(Path(address.removeprefix("sqlite:///")))
    if address.startswith(("http://", "https://")):
        return _find_server(address.rstrip("/"))
    return "limited", f"{address} was not tried", "aumn models list tries it."


def _find_file(database: Path) -> Answer:
    folder = next(parent for parent in database.parents if parent.exists())
    target = database if database.exists() else folder
    if not os.access(target, os.W_OK):
        return "broken", f"{database} cannot be written", "Give a store that can be: --tracking-uri, tracking.uri."
    return "works", f"{database}" + ("" if database.exists() else ", made when it is first used"), ""


def _find_server(address: str) -> Answer:
    try:
        with urlopen(_request_health(address), timeout=PATIENCE_S) as answer:  # noqa: S310  http or https, as checked
            return "works", f"{address} answers {answer.status}", ""
    except HTTPError as error:
        if error.code in {401, 403}:
            remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            return "limited", f"{address} wants credentials", remedy
        remedy = "Check the address: an MLflow server answers /health with 200."
        return "limited", f"{address} answers {error.code}", remedy
    except (InvalidURL, ValueError):  # its text may quote a part of a password
        remedy = "Correct tracking.uri or MLFLOW_TRACKING_URI: a password's / : @ and % are %2F %3A %40 and %25."
        return "limited", f"{address} is no address of a server", remedy
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        remedy = (
            "Runs go on and keep their metrics in their folder until it does; models cannot be registered or fetched."
        )
        return "limited", f"{address} does not answer ({reason})", remedy


def _request_health(address: str) -> Request:
    """The question, with the address's name and password in a header: urllib takes them for a part of the host."""
    parts = urlsplit(f"{address}/health")
    credentials, _, host = parts.netloc.rpartition("@")
    request = Request(parts._replace(netloc=host).geturl())  # noqa: S310  http or https, as checked
    if credentials:
        basic = b64encode(unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _ask(*command: str) -> subprocess.CompletedProcess[str] | str:
    """A command's answer, or why there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {PATIENCE_S} s"
    except OSError as error:
        return f"{command[0]} cannot be run ({error.strerror})"
