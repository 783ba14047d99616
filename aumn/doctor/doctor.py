"""What this machine has, what will not work on it, and what helps: quick, and never stopped by what is missing.

A check is a function that returns one Finding. Everything it may not find is a finding, too.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from aumn.doctor.services import Answer, State, find_names, find_slurm, find_store, hide_credentials

GB = 10**9
LEAST_DISK_GB = 5
LEAST_SHM_GB = 0.5  # containers are often given 64 MB, and NCCL dies of it
LEAST_FILES = 1024  # a shard set keeps up to 256 tars open
OPTIONAL = {"deepspeed": "run.engine=deepspeed", "h5py": "HDF5 features", "matplotlib": "aumn inspect --picture"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `remedy` says what will not work, and what helps; it is empty where all is well."""

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(tracking_uri: str | None = None) -> list[Finding]:
    """Every check's finding. Those that wait for an answer run beside the others; torch is imported by one thread."""
    asking = SERVICES | {"MLflow store": lambda: find_store(tracking_uri)}
    with ThreadPoolExecutor(len(asking)) as threads:
        examine_one = partial(_examine_one, tracking_uri)
        answers = threads.map(examine_one, asking.keys(), asking.values())
        return [*(examine_one(what, check) for what, check in CHECKS.items()), *answers]


def _examine_one(tracking_uri: str | None, what: str, check: Callable[[], Answer]) -> Finding:
    try:
        return Finding(what, *check())
    except Exception as error:  # a check that cannot look is a finding, and the others still count
        shown = hide_credentials(repr(error), tracking_uri)
        return Finding(what, "limited", f"could not be looked at: {shown}", "Look at it by hand.")


def _find_python() -> Answer:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return "limited", found, "Packing and ranks use Linux's file locks and signals: untested elsewhere."
    return "works", found, ""


def _find_packages() -> Answer:
    """The packages that aumn names as its own, by what is installed: importing them all would take ten seconds."""
    names = [line.split(";")[0] for line in metadata.requires("aumn") or [] if "extra ==" not in line]
    versions = {name: _version(name) for name in (_bare(line) for line in names)}
    missing = sorted(name for name, version in versions.items() if version is None)
    found = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if version)
    if not missing:
        return "works", found, ""
    lost = "; ".join(f"without {name} no {OPTIONAL[name]}" for name in missing if name in OPTIONAL)
    state: State = "limited" if set(missing) <= OPTIONAL.keys() else "broken"
    return state, found, f"pip install {' '.join(missing)}" + (f" ({lost})." if lost else ".")


def _bare(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0].lower()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _find_cores() -> Answer:
    import torch

    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    vectors = torch.backends.cpu.get_cpu_capability()
    found = (
        f"{usable} of {all_cores} cores, {vectors}; torch {torch.__version__} takes {torch.get_num_threads()} threads"
    )
    if "AVX512" not in vectors and not torch.cuda.is_available():
        return "limited", found, "engine.precision=bf16 is several times slower than fp32 on such a CPU: keep fp32."
    return "works", found, ""


def _find_memory() -> Answer:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    found = f"{available / GB:,.1f} of {total / GB:,.1f} GB free"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdecimal():
        found += f"; this process and its group may have {int(limit.read_text()) / GB:,.1f} GB"
    if available < 2 * GB:
        return (
            "limited",
            found,
            "A rank needs about 1 GB and the model: see aumn train --dry-run, and start fewer ranks.",
        )
    return "works", found, ""


def _find_cuda() -> Answer:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return "works", ", ".join(f"{d.name} with {d.total_memory / GB:,.0f} GB" for d in devices), ""
    remedy = "run.device=cuda will not work; run.device=cpu does"
    if torch.version.cuda is None:
        return (
            "limited",
            "none, and this torch is built for CPUs",
            f"{remedy}. For GPUs, install a CUDA build of torch.",
        )
    return "limited", f"none that torch (CUDA {torch.version.cuda}) can use", f"{remedy}. Look at nvidia-smi."


def _find_collectives() -> Answer:
    from aumn.runtime.ranks import backends

    here = [name for name, is_here in backends().items() if is_here]
    found = ", ".join(here) or "none"
    if "gloo" not in here:
        return "broken", found, "Several ranks need gloo: install a torch that has it. One rank works."
    if "nccl" not in here:
        return "limited", found, "Ranks on GPUs need NCCL, a CUDA build of torch has it; ranks on CPUs work."
    return "works", found, ""


def _find_disk() -> Answer:
    places = {Path.cwd(), Path(os.environ.get("TMPDIR", "/tmp"))}  # noqa: S108  where packages put what is temporary
    free = {place: shutil.disk_usage(place).free for place in sorted(places)}
    found = ", ".join(f"{size / GB:,.1f} GB free in {place}" for place, size in free.items())
    closed = [str(place) for place in free if not os.access(place, os.W_OK)]
    if closed:
        return "broken", found, f"{', '.join(closed)} cannot be written: run where you may write."
    if min(free.values()) < LEAST_DISK_GB * GB:
        return "limited", found, "A set of THUMOS14's features takes 0.6 GB, a checkpoint 0.1 to 1: make room."
    return "works", found, ""


def _find_shared_memory() -> Answer:
    usage = shutil.disk_usage("/dev/shm")  # noqa: S108
    found = f"{usage.free / GB:,.2f} of {usage.total / GB:,.2f} GB free in /dev/shm"
    if usage.free < LEAST_SHM_GB * GB:
        return "limited", found, "NCCL between GPUs of one machine needs more: docker run --shm-size=8g, or --ipc=host."
    return "works", found, ""


def _find_open_files() -> Answer:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} for this process, which may raise it to {hard:,}"
    if soft < LEAST_FILES:
        return "limited", found, f"Sets of hundreds of shards need more: ulimit -n {max(LEAST_FILES, min(hard, 4096))}."
    return "works", found, ""


CHECKS: dict[str, Callable[[], Answer]] = {
    "Python": _find_python,
    "packages": _find_packages,
    "CPU": _find_cores,
    "memory": _find_memory,
    "CUDA": _find_cuda,
    "collectives": _find_collectives,
    "disk": _find_disk,
    "shared memory": _find_shared_memory,
    "open files": _find_open_files,
}
SERVICES: dict[str, Callable[[], Answer]] = {"own name": find_names, "SLURM": find_slurm}
