"""Whether a node can train, found out in seconds and before ranks meet: by all nodes of a job at once, a process each.

A link has two ends. So each node sends to the first few others, and only one that reaches none of them is to blame.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from aumn.runtime.ending import in_thread
from aumn.runtime.nodelist import node_names

PATIENCE_S = 15.0
"""For each look: what hangs is not healthy."""
HUBS = 3
LINK_BYTES = 16 * 2**20
LINK_S = 1.0
"""16 MB/s: what is slower has lost most of its link, whatever that was."""
AT_ONCE = 4
"""How many nodes may send to the same one at a time: its link is theirs together."""
HUB_S = 30.0
"""How long a node that others send to stays for those that start late."""
POLL_S = 0.05


def check_node(shared: Path) -> tuple[str, str]:
    """This node's name, and why it cannot train, empty where it can; `shared` is a folder that all nodes see.

    Every node of a SLURM job calls it at the same time. It returns when no other node needs this one any more.
    """
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    nodes = node_names(os.environ.get("SLURM_JOB_NODELIST", name))
    looks: dict[str, Callable[[], None]] = {
        "its processor or GPU": _compute,
        "its own disk": partial(_write, Path(os.environ.get("TMPDIR", "/tmp"))),  # noqa: S108
        "the shared files": partial(_write, shared),
    }
    serves = len(nodes) >= HUBS and name in nodes[:HUBS]
    if len(nodes) >= HUBS:  # of two that do not reach each other, which is the bad one?
        if serves:
            in_thread(partial(_serve, shared / f"{name}.port"))
        looks["the link to other nodes"] = partial(_reach, shared, [hub for hub in nodes[:HUBS] if hub != name])
    if _gpus():
        import_module("torch")  # which may take long where the file system is cold, and is no fault of the node's
    start_s = time.monotonic()
    end_s = start_s + PATIENCE_S
    answers = {what: in_thread(look) for what, look in looks.items()}
    why = "; ".join(f"{what}: {found}" for what, answer in answers.items() if (found := _wait(answer, end_s)))
    with suppress(OSError):
        (shared / f"{name}.done").touch()
    if serves:
        while time.monotonic() < start_s + HUB_S and not all((shared / f"{node}.done").exists() for node in nodes):
            time.sleep(POLL_S)
    return name, why


def _wait(answer: Future[None], end_s: float) -> str:
    """What is wrong, in a line."""
    try:
        answer.result(max(0.0, end_s - time.monotonic()))
    except TimeoutError:
        return f"no answer in {PATIENCE_S:.0f} s"
    except Exception as error:  # whatever it is, the node is left out
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _compute() -> None:
    """A product of whole numbers, exact in float32 whatever the order, on the CPU and on each GPU that the job has."""
    left, right = np.random.default_rng(0).integers(-8, 9, (2, 512, 512))
    wanted = left @ right
    if not np.array_equal(left.astype(np.float32) @ right.astype(np.float32), wanted):
        raise ArithmeticError("a product of matrices is wrong")
    if count := _gpus():
        import torch

        if torch.cuda.device_count() < count:
            raise OSError(f"{torch.cuda.device_count()} of {count} GPUs are visible")
        for index in range(count):
            on_gpu = [torch.from_numpy(matrix).float().to(f"cuda:{index}") for matrix in (left, right)]
            if not np.array_equal((on_gpu[0] @ on_gpu[1]).cpu().numpy(), wanted):
                raise ArithmeticError(f"a product of matrices is wrong on GPU {index}")


def _gpus() -> int:
    return int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)


def _write(folder: Path) -> None:
    """A megabyte, through to the disk and back."""
    data = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="aumn-check-") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if Path(file.name).read_bytes() != data:
            raise OSError(f"{folder} gives back other bytes than were written")


def _serve(port_file: Path) -> None:
    """Take what other nodes send, for as long as this process lives."""
    server = socket.create_server(("", 0))
    new = port_file.with_suffix(".new")
    new.write_text(str(server.getsockname()[1]))
    new.rename(port_file)
    turns = threading.Semaphore(AT_ONCE)
    while True:
        threading.Thread(target=_take, args=(server.accept()[0], turns), daemon=True).start()


def _take(link: socket.socket, turns: threading.Semaphore) -> None:
    """Say that it is the other's turn, and when all bytes are there; one that falls silent gives its turn up."""
    with suppress(OSError), link, turns:
        link.settimeout(PATIENCE_S / 3)
        link.sendall(b"0")
        left = LINK_BYTES
        while left and (got := link.recv(2**20)):
            left -= len(got)
        link.sendall(b"1")


def _reach(shared: Path, hubs: Sequence[str]) -> None:
    """Return once one of the hubs has got all bytes quickly; else raise what went wrong last."""
    sent = [in_thread(partial(_send, hub, shared / f"{hub}.port")) for hub in hubs]
    while not any(one.done() and not one.exception() for one in sent):
        if all(one.done() for one in sent):
            raise OSError("; ".join(f"{hub}: {one.exception()}" for hub, one in zip(hubs, sent, strict=True)))
        time.sleep(POLL_S)


def _send(hub: str, port_file: Path) -> None:
    while not port_file.exists():  # the other node is still starting
        time.sleep(POLL_S)
    port = int(port_file.read_text())
    with socket.create_connection((hub, port), timeout=PATIENCE_S) as link:
        link.recv(1)
        start_s = time.monotonic()
        link.sendall(bytes(LINK_BYTES))
        link.recv(1)
    if (took_s := time.monotonic() - start_s) > LINK_S:
        raise OSError(f"{LINK_BYTES / took_s / 1e6:.1f} MB/s, where {LINK_BYTES / LINK_S / 1e6:.0f} are the least")
