"""What keeps aumn from working on this machine that pip, nvidia-smi or df do not tell, and what helps.

A check returns what it found; nothing that is missing, slow or refused stops it or the others.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from aumn.addresses import hide, public
from aumn.records import InputError
from aumn.tracking.store import find_address

GB = 10**9
LEAST_SHM_GB = 0.5  # containers are often given 64 MB, and NCCL dies of it
LEAST_FILES = 1024  # a shard set keeps up to 256 tars open
PATIENCE_S = 4
SLURM_COMMANDS = ("sbatch", "squeue", "scontrol", "srun")

State = Literal["works", "limited", "broken"]
Finding = tuple[State, str, str]
"""The state, what was found, and what will not work and what helps; this last is empty where all is well."""


def examine(tracking_uri: str | None = None) -> dict[str, Finding]:
    """Every check's finding, by what it looks at; they run beside each other, since some wait for an answer."""
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    checks = CHECKS | {"MLflow store": lambda: _find_store(address)}

    def examine_one(check: Callable[[], Finding]) -> Finding:
        try:
            state, found, remedy = check()
        except Exception as error:  # a check that cannot look is a finding, and the others still count
            state, found, remedy = "limited", f"could not be looked at: {error!r}", "Look at it by hand."
        return state, hide(found, address), hide(remedy, address)

    with ThreadPoolExecutor(len(checks)) as threads:
        return dict(zip(checks, threads.map(examine_one, checks.values()), strict=True))


def _find_ranks() -> Finding:
    """What ranks can run on and talk through, as this build of torch and this CPU have it."""
    import torch

    from aumn.runtime.ranks import backends

    here = [name for name, is_here in backends().items() if is_here]
    vectors = torch.backends.cpu.get_cpu_capability()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = f"torch {torch.__version__}, {', '.join(here) or 'no backend'}, {gpus} GPUs, {vectors}"
    if "gloo" not in here:
        return "broken", found, "Several ranks need gloo: install a torch that has it. One rank works."
    if gpus and "nccl" not in here:
        return "limited", found, "Ranks on GPUs need NCCL, which a CUDA build of torch has; ranks on CPUs work."
    if not gpus:
        slow = "" if "AVX512" in vectors else "; engine.precision=bf16 is several times slower than fp32 on this CPU"
        return "limited", found, f"run.device=cuda will not work; run.device=cpu does{slow}."
    return "works", found, ""


def _find_shared_memory() -> Finding:
    usage = shutil.disk_usage("/dev/shm")  # noqa: S108
    found = f"{usage.free / GB:,.2f} of {usage.total / GB:,.2f} GB free in /dev/shm"
    if usage.free < LEAST_SHM_GB * GB:
        return "limited", found, "NCCL between GPUs of one machine needs more: docker run --shm-size=8g, or --ipc=host."
    return "works", found, ""


def _find_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} for this process, which may raise it to {hard:,}"
    if soft < LEAST_FILES:
        return "limited", found, f"Sets of hundreds of shards need more: ulimit -n {max(LEAST_FILES, min(hard, 4096))}."
    return "works", found, ""


def _find_names() -> Finding:
    """Whether this machine's own name leads to an address: gloo asks for it when ranks connect."""
    name = socket.gethostname()
    code, said = _ask("getent", "hosts", name)
    if code or not said:
        remedy = f"Several ranks may not connect: give {name} an address in /etc/hosts, or set GLOO_SOCKET_IFNAME=lo."
        return "limited", f"{name} has no address{said and f' ({said})'}", remedy
    return "works", f"{name} is {said.split()[0]}", ""


def _find_slurm() -> Finding:
    """Whether its commands are here, and whether its controller answers."""
    local = "aumn submit works with --local and --dry-run alone"
    if missing := [command for command in SLURM_COMMANDS if not shutil.which(command)]:
        return "limited", f"no {', '.join(missing)} on PATH", f"{local}; submit from a cluster's login node."
    code, said = _ask("scontrol", "ping")
    if code or " UP" not in said:
        return "limited", f"the controller does not answer: {said[:200]}", f"{local} until it does."
    return "works", said, ""


def _find_store(given: str) -> Finding:
    """Whether the store that `tracking.uri` or MLFLOW_TRACKING_URI names can be reached; a database is not opened."""
    try:
        address = find_address(given)
    except InputError as error:
        return "broken", given, str(error)
    if address.startswith(("http://", "https://")):
        return _find_server(address.rstrip("/"))
    if not address.startswith("sqlite:///"):
        return "limited", f"{public(address)} was not tried", "aumn models list tries it."
    database = Path(address.removeprefix("sqlite:///"))
    if not os.access(next(place for place in (database, *database.parents) if place.exists()), os.W_OK):
        return "broken", f"{database} cannot be written", "Give a store that can be: --tracking-uri, tracking.uri."
    return "works", f"{database}" + ("" if database.exists() else ", made when it is first used"), ""


def _find_server(address: str) -> Finding:
    try:
        parts = urlsplit(f"{address}/health")
        credentials, _, host = parts.netloc.rpartition("@")  # which urllib takes for a part of the host
        request = Request(parts._replace(netloc=host).geturl())  # noqa: S310  http or https, as checked
        if credentials:
            basic = b64encode(unquote(credentials).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        with urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310  http or https, as checked
            return "works", f"{address} answers {answer.status}", ""
    except HTTPError as error:
        if error.code in {401, 403}:
            remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            return "limited", f"{address} wants credentials", remedy
        return "limited", f"{address} answers {error.code}", "Check the address: an MLflow server has 200 at /health."
    except (InvalidURL, ValueError):  # its text may quote a part of a password
        remedy = "Correct tracking.uri or MLFLOW_TRACKING_URI: a password's / : @ and % are %2F %3A %40 and %25."
        return "limited", f"{address} is no address of a server", remedy
    except (OSError, HTTPException) as error:
        remedy = "Runs go on and keep their metrics in their folder until it does; models cannot be registered."
        return "limited", f"{address} does not answer ({getattr(error, 'reason', error)})", remedy


def _ask(*command: str) -> tuple[int, str]:
    """A command's exit code and what it said, on one line; or why it said nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {PATIENCE_S} s"
    except OSError as error:
        return 1, f"{command[0]} cannot be run: {error.strerror}"
    return done.returncode, " ".join((done.stdout + done.stderr).split())


CHECKS: dict[str, Callable[[], Finding]] = {
    "ranks": _find_ranks,
    "own name": _find_names,
    "shared memory": _find_shared_memory,
    "open files": _find_open_files,
    "SLURM": _find_slurm,
}
