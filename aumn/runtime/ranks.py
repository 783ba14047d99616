"""Who am I, and what do the others say: ranks under torchrun, under srun, or alone.

A process alone is a world of size 1, not a special case. Importing this file imports no torch: a world of size 1 needs
none, so `aumn evaluate` of a small set starts at once. The only importer of torch.distributed.

Backend: NCCL for CUDA tensors with gloo for host tensors, or gloo alone. Untested here on CUDA for want of a GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aumn.records import InputError, Stopped
from aumn.runtime.attempts import end_with_launcher
from aumn.runtime.nodelist import node_names
from aumn.runtime.preemption import leaving, stopped

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TIMEOUT_S = 600
POLL_S = 0.1
_LEFT, _DONE, _KNOWN = "left_for_a_reason", "first_rank_is_done", "know_that_it_is"


@dataclass
class Stopwatch:
    """Seconds that something took so far."""

    total_s: float = 0.0


@dataclass(frozen=True)
class Ranks:
    """This process's place in the run, and the few collectives the stages need. Every rank must call each of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sums: Stopwatch = field(default_factory=Stopwatch, compare=False, repr=False)  # in `sum_`, on the host's clock

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that prints, logs and writes what is written once."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This rank's device of a kind: on CUDA, each of a machine's ranks has its own. Untested for want of a GPU."""
        import torch

        if name not in {"cpu", "cuda"}:
            raise InputError(f"device {name!r} is not known: choose cpu or cuda.")
        if name == "cpu":
            return torch.device("cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"device=cuda needs a GPU a rank, and this machine has {torch.cuda.device_count()} for local rank "
                f"{self.local_rank}: start fewer ranks on it, or choose device=cpu."
            )
        return torch.device("cuda", self.local_rank)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place; no gradient flows through."""
        if self.size > 1:
            import torch.distributed as dist

            start_s = time.perf_counter()
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
            self.sums.total_s += time.perf_counter() - start_s
        return tensor

    def ask(self, question: Callable[[], int]) -> Callable[[], int]:
        """Start to find the highest of the ranks' whole numbers; the call that is returned waits for it.

        Put before a step's compute and waited for behind it, the question costs the step nothing. Alone, it is put when
        the answer is wanted.
        """
        if self.size == 1:
            return question
        import torch
        import torch.distributed as dist

        answer = torch.tensor([question()])  # on the host whatever the device, so that no device is waited for
        work = dist.all_reduce(answer, op=dist.ReduceOp.MAX, async_op=True)

        def highest() -> int:
            work.wait()
            return int(answer.item())

        return highest

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (any picklable object of our own making), in rank order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def read_environment(environment: Mapping[str, str]) -> Ranks:
    """This process's place as torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID, ...) tells it, or alone.

    A SLURM job's batch shell also has SLURM_NTASKS; only a step's task (srun) has SLURM_STEP_ID and counts as a rank.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Ranks()
    try:
        rank, size, local_rank = (int(environment.get(name, "0")) for name in names)
    except ValueError:
        shown = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
        raise InputError(f"The launcher's environment is not a rank: {shown}; each must be a whole number.") from None
    if not 0 <= rank < size:
        raise InputError(
            f"{names[0]}={rank} must be from 0 to {names[1]}-1={size - 1}: start every rank with one launcher."
        )
    return Ranks(rank, size, local_rank)


@contextmanager
def connect(*, cuda: bool = False, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """Join the run's other ranks for the length of a `with` block; alone, nothing is joined and nothing imported.

    A rank that waits for another one for longer than `timeout_s` ends with an error. To start they have TIMEOUT_S.
    """
    ranks = read_environment(os.environ)
    end_with_launcher(os.environ)
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed as dist

    store = _store(dist)
    _wait_for_all(store, ranks)
    dist.init_process_group(
        _backend(cuda),
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield ranks
    except (InputError, Stopped) as error:
        leaving()
        error.told_by_another_rank = _tell(store, error)
        raise
    except (RuntimeError, OSError):
        if silent := _reason_of_another(store):  # which broke our collective, or took its unfinished files away
            raise silent from None
        raise
    else:
        _wait_for_first(store, ranks)
    finally:
        if ranks.is_first:
            with suppress(RuntimeError):
                store.set(_DONE, "")
        dist.destroy_process_group()


def backends() -> dict[str, bool]:
    """Which ways for ranks to talk this torch has."""
    import torch.distributed as dist

    here = dist.is_available()
    return {"gloo": here and dist.is_gloo_available(), "nccl": here and dist.is_nccl_available()}


def group_of_one(*, cuda: bool = False) -> None:
    """A process group of this process alone, for a library that will not do without one; it is never closed."""
    import torch.distributed

    dist: Any = torch.distributed
    if not dist.is_initialized():
        dist.init_process_group(
            _backend(cuda), store=dist.TCPStore("127.0.0.1", 0, is_master=True), rank=0, world_size=1
        )


def _tell(store: Any, error: InputError | Stopped) -> bool:
    """Let the others know that this rank leaves for a reason; whether another one tells that very reason."""
    with suppress(RuntimeError):  # the first rank, which may serve the store, can be gone
        if isinstance(error, Stopped) and store.check([_LEFT]):
            return True  # torchrun sends SIGTERM to the others as soon as one has left
        store.set(_LEFT, str(error.signal if isinstance(error, Stopped) else 0))
        return bool(store.add(f"told/{error}", 1) > 1)
    return True


def _reason_of_another(store: Any) -> InputError | Stopped | None:
    """What to raise, without a word, where another rank left for a reason that it tells."""
    with suppress(RuntimeError):
        if store.check([_LEFT]):
            number = int(store.get(_LEFT))
            silent = stopped(number) if number else InputError("Another rank stopped and said why.")
            silent.told_by_another_rank = True
            return silent
    return None


def _backend(cuda: bool) -> str:
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def _wait_for_all(store: Any, ranks: Ranks) -> None:
    """However long a rank takes to start, up to TIMEOUT_S, it is no hang. One that is asked to stop tells the others.

    They look again and again, rather than wait in C, where no signal could reach them and no word of another rank.
    """
    if store.add("started", 1) == ranks.size:
        store.set("all_started", "")
    give_up_s = time.monotonic() + TIMEOUT_S
    try:
        while not store.check(["all_started"]):
            if silent := _reason_of_another(store):
                raise silent
            if time.monotonic() > give_up_s:
                here = store.add("started", 0)
                raise RuntimeError(f"Only {here} of {ranks.size} ranks have started in {TIMEOUT_S} s: see their logs.")
            time.sleep(POLL_S)
    except Stopped as stop:
        stop.told_by_another_rank = _tell(store, stop)
        if ranks.is_first and not stop.told_by_another_rank:
            time.sleep(10 * POLL_S)  # it may serve the store, and the others are to hear of it
        raise


def _wait_for_first(store: Any, ranks: Ranks) -> None:
    """Stay until the first rank leaves too: it may publish for longer than a collective would wait, and srun ends the
    last ranks some time after the first has gone (`--wait`). The first one stays until all know, since it may serve the
    store, whose end would fill the others' logs.
    """
    with suppress(RuntimeError):
        if ranks.is_first:
            store.set(_DONE, "")
            give_up_s = time.monotonic() + 10
            while store.add(_KNOWN, 0) < ranks.size - 1 and time.monotonic() < give_up_s:
                time.sleep(0.02)
            return
        while not store.check([_DONE]):
            time.sleep(POLL_S)
        silent = _reason_of_another(store)
        store.add(_KNOWN, 1)
        if silent:
            raise silent


def _store(dist: Any) -> Any:
    """The rendezvous store, with a prefix for this attempt.

    torchrun's agent keeps its store over an elastic restart; without the prefix gloo would dial the dead ranks.
    """
    timeout = timedelta(seconds=TIMEOUT_S)
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = rendezvous()
    first = read_environment(os.environ).is_first
    store = dist.TCPStore(host, port, is_master=first and not agent_serves, timeout=timeout)
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/", store)


def rendezvous() -> tuple[str, int]:
    """Where the store listens: the launcher's word, else SLURM's first node and a port made of the job's number.

    A job that is requeued takes another one: what it ended for may be that this one was taken.
    """
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise InputError("MASTER_ADDR and MASTER_PORT are not set: start the ranks with torchrun or srun.")
    number = int(os.environ["SLURM_JOB_ID"]) + 7_919 * int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return node_names(os.environ["SLURM_JOB_NODELIST"])[0], 20_000 + number % 20_000
