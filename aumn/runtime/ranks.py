"""Who am I, and what do the others say: ranks under torchrun, under srun, or alone.

A process alone is a world of size 1, not a special case. Importing this file imports no torch: a world of size 1 needs
none, so `aumn evaluate` of a small set starts at once. The only importer of torch.distributed.

Backend: NCCL for CUDA tensors with gloo for host tensors, or gloo alone. Untested on CUDA for want of a GPU.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from aumn.records import InputError
from aumn.runtime.attempts import end_with_launcher
from aumn.runtime.ending import ANSWER_S, HEAR_S, POLL_S, START_S, Ending, answer_of, as_told, brief, in_thread, wait
from aumn.runtime.nodelist import node_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _own(error: BaseException) -> BaseException:
    """What a rank alone leaves with."""
    return as_told(error) or error


@dataclass
class Ranks:
    """This process's place in the run, and the few collectives the stages need. Every rank must call each of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sums_s: float = field(default=0.0, compare=False, repr=False)  # spent in `sum_` so far, on the host's clock
    store: Any = field(default=None, compare=False, repr=False)  # by which the ranks met; alone, there is none
    settle: Callable[[BaseException], BaseException] = field(default=_own, compare=False, repr=False)  # `Ending.settle`
    counts: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    began_s: float = field(default=0.0, compare=False, repr=False)  # `connect`, since 1970: all but us is imported
    met_s: float = field(default=0.0, compare=False, repr=False)  # the others
    group: Any = field(default=None, compare=False, repr=False)  # of a part of the ranks; None: all of them
    aside: Any = field(default=None, compare=False, repr=False)  # a group of the same ranks for `send` and `receive`
    _meshes: dict[int, tuple[Ranks, Ranks]] = field(default_factory=dict, compare=False, repr=False)
    _waits: tuple[float, int] = field(default=(0.0, 0), compare=False, repr=False)  # by `wait_at_most`: seconds, groups

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that prints, logs and writes what is written once."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This rank's device of a kind: on CUDA, each of a machine's ranks has its own, which becomes the current one.

        What names no device, such as an event or a library's own memory, then lies there and not on the first GPU.
        """
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
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place; no gradient flows through."""
        if self.size > 1:
            start_s = time.perf_counter()
            _dist().all_reduce(tensor, group=self.group)
            self.sums_s += time.perf_counter() - start_s
        return tensor

    def exchange(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """So many rows to each rank, in their order, and so many from each; no gradient flows through."""
        start_s = time.perf_counter()
        found = tensor.new_empty(sum(received), *tensor.shape[1:])
        _dist().all_to_all_single(found, tensor.contiguous(), list(received), list(sent), group=self.group)
        self.sums_s += time.perf_counter() - start_s
        return found

    def copy_first_(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor on every rank, in place."""
        if self.size > 1:
            _dist().broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def ask(self, question: Callable[[], int]) -> Callable[[], int]:
        """Start to find the highest of the ranks' whole numbers; the call that is returned waits for it.

        Put before a step's compute and waited for behind it, the question costs the step nothing. Alone, it is put when
        the answer is wanted.
        """
        answer = self.ask_and_tell(question)
        return lambda: answer()[0]

    def ask_and_tell(self, question: Callable[[], int], own: int | None = None) -> Callable[[], list[int]]:
        """`ask`, and in the same collective each rank's own whole number, not below 0; the answer, and those by rank.

        The highest is exact whatever the order, so the numbers that `sum_` adds up keep their last bits.
        """
        if self.size == 1:
            return lambda: [question()]
        import torch

        # On the host whatever the device, so that no device is waited for.
        answers = torch.zeros(1 if own is None else 1 + self.size, dtype=torch.int64)
        answers[0] = question()
        if own is not None:
            answers[1 + self.rank] = own
        work = _dist().all_reduce(answers, op=_dist().ReduceOp.MAX, group=self.group, async_op=True)

        def highest() -> list[int]:
            work.wait()
            return [int(answer) for answer in answers.tolist()]

        return highest

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (any picklable object of our own making), in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        _dist().all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        _dist().broadcast_object_list(box, src=0)
        return box[0]

    def count(self, name: str, number: int = 1) -> int:
        """Add to a number that all ranks share; the sum so far, whoever added to it. No rank waits for another."""
        if self.size > 1:
            return int(answer_of(partial(self.store.add, f"count/{name}", number)))
        self.counts[name] += number
        return self.counts[name]

    def wait_at_most(self, seconds: float) -> None:
        """Collectives that begin from now on, a library's own groups' too, fail where a rank is away for longer.

        NCCL's do a little later: its watchdog ends the process without a word, and gloo's errors can be told.
        """
        if self.size == 1:
            return
        from torch.distributed import distributed_c10d

        # torch 2.13 has no public call. What a rank serves aside, it serves as long as the first one takes to write.
        served = [bank.aside for bank, _ in self._meshes.values() if not bank.is_first]
        groups = [group for group in distributed_c10d._world.pg_map if group not in served]
        if (seconds, len(groups)) != self._waits:
            for group in groups:
                distributed_c10d._set_pg_timeout(timedelta(seconds=seconds + ANSWER_S + HEAR_S), group)
                group._get_backend(self.device("cpu"))._set_default_timeout(timedelta(seconds=seconds))
            self._waits = seconds, len(groups)

    def send(self, tensor: Tensor, to: int) -> None:
        """To another rank of a bank's group, which waits in `receive`; from any thread, whatever is done beside it."""
        _dist().send(tensor, group=self.aside, group_dst=to)

    def receive(self, tensor: Tensor, of: int) -> Tensor:
        """What another rank sends, into this tensor."""
        _dist().recv(tensor, group=self.aside, group_src=of)
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            _dist().barrier(self.group)

    def split(self, bank_ranks: int) -> tuple[Ranks, Ranks]:
        """The mesh's two parts with this rank: its bank's group, and the ranks with its place in theirs.

        Neighbours make a group of `bank_ranks`, whose place in it is their `rank`. All ranks must call; asked again, it
        is the same groups.
        """
        if bank_ranks == 1:
            return Ranks(), self
        if self.size % bank_ranks:
            raise InputError(
                f"A memory over {bank_ranks} ranks (engine.bank_ranks, --bank-ranks) needs a multiple of so many, and "
                f"there are {self.size}: start {bank_ranks} or {2 * bank_ranks}, say, or share it out among fewer."
            )
        if bank_ranks not in self._meshes:
            banks = [range(first, first + bank_ranks) for first in range(0, self.size, bank_ranks)]
            parts = self._part(banks), self._part(list(zip(*banks, strict=True)))
            parts[0].aside = self._part(banks, "gloo").group
            self._meshes[bank_ranks] = parts
        return self._meshes[bank_ranks]

    def _part(self, parts: Sequence[Sequence[int]], backend: str | None = None) -> Ranks:
        """This rank's of parts that are all of the ranks together."""
        (own,) = (part for part in parts if self.rank in part)
        lasts = timedelta(seconds=START_S)
        group, _ = _dist().new_subgroups_by_enumeration([list(part) for part in parts], lasts, backend)
        return Ranks(list(own).index(self.rank), len(own), self.local_rank, group=group)


def read_environment(environment: Mapping[str, str]) -> Ranks:
    """This process's place as torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID, ...) tells it, or alone.

    A SLURM job's batch shell also has SLURM_NTASKS; only a step's task (srun) has SLURM_STEP_ID and counts as a rank.
    """
    if {"RANK", "WORLD_SIZE"} & environment.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Ranks()
    try:
        rank, size, local_rank = (int({names[2]: "0", **environment}[name]) for name in names)
    except (KeyError, ValueError):
        shown = ", ".join(f"{name}={environment.get(name)!r}" for name in names)
        raise InputError(
            f"The launcher's environment is not a rank: {shown}; each must be a whole number. Unset what is left over."
        ) from None
    if not 0 <= rank < size:
        raise InputError(
            f"{names[0]}={rank} must be from 0 to {names[1]}-1={size - 1}: start every rank with one launcher."
        )
    return Ranks(rank, size, local_rank)


@contextmanager
def connect(*, cuda: bool = False, timeout_s: float = START_S, start_s: float = START_S) -> Iterator[Ranks]:
    """Join the run's other ranks for the length of a `with` block; alone, nothing is joined and nothing imported.

    To start they have `start_s`. A rank that then waits for another one for longer than `timeout_s` ends with an error.
    How they end together, and what an error leaves as, is `ending`'s affair.
    """
    ranks = read_environment(os.environ)
    ranks.began_s = ranks.met_s = time.time()
    end_with_launcher(os.environ)
    if ranks.size == 1:
        yield ranks
        return
    dist = _dist()
    serves = ranks.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    ending = Ending(_store(ranks, start_s, serves=serves), ranks.rank, ranks.size, serves=serves)
    try:
        ending.wait_for_all(start_s)
        ranks.store, ranks.settle = ending.store, ending.settle
        dist.init_process_group(
            _backend(cuda),
            store=ending.store,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timedelta(seconds=timeout_s),
        )
        ranks.met_s = time.time()
        yield ranks
        ending.wait_for_first()
    except BaseException as error:
        if (leaves_with := ending.settle(error)) is error:
            raise
        raise leaves_with from error
    finally:
        with suppress(RuntimeError):  # the outcome is settled, and no broken connection changes it
            if dist.is_initialized():
                dist.destroy_process_group()
        ending.leave()


def backends() -> dict[str, bool]:
    """Which ways for ranks to talk this torch has."""
    dist = _dist()
    here = dist.is_available()
    return {"gloo": here and dist.is_gloo_available(), "nccl": here and dist.is_nccl_available()}


def group_of_one(*, cuda: bool = False) -> None:
    """A process group of this process alone, for a library that will not do without one; it is never closed."""
    if not _dist().is_initialized():
        store = _dist().TCPStore("127.0.0.1", 0, is_master=True)
        _dist().init_process_group(_backend(cuda), store=store, rank=0, world_size=1)


def _dist() -> Any:
    """Imported by the first use, so not at all where there is one rank."""
    import torch.distributed

    return torch.distributed


def _backend(cuda: bool) -> str:
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def _store(ranks: Ranks, start_s: float, *, serves: bool) -> Any:
    """The rendezvous store, with a prefix for this attempt.

    torchrun's agent keeps its store over an elastic restart; without the prefix gloo would dial the dead ranks.
    """
    host, port = rendezvous()
    longer = timedelta(seconds=start_s + 60)  # than our own patience, behind which torch would print its stack in C++

    def join() -> Any:
        if not serves:
            _wait_for_port(host, port)
        return _dist().TCPStore(host, port, is_master=serves, timeout=longer)

    place = f"the first rank, or torchrun, at MASTER_ADDR={host} and MASTER_PORT={port}"
    waits, joined = wait(start_s, lambda: place, teller=ranks.rank), in_thread(join)
    while not joined.done() or joined.exception():
        if joined.done():
            if serves:
                why = brief(joined.exception())
                raise InputError(f"MASTER_PORT={port} cannot be opened here ({why}): choose a port that is free.")
            joined = in_thread(join)
        next(waits)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return _dist().PrefixStore(f"attempt_{attempt}/", joined.result())


def _wait_for_port(host: str, port: int) -> None:
    """Until somebody listens: torch would look after a second only, and print its stack in C++ each time."""
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError:
            time.sleep(POLL_S)


def rendezvous() -> tuple[str, int]:
    """Where the store listens: the launcher's word, else SLURM's first node and a port made of the job's number.

    A job that is requeued takes another one: what it ended for may be that this one was taken.
    """
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if not host.strip() or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
            raise InputError(
                f"MASTER_ADDR={host!r} and MASTER_PORT={port!r} must be the first rank's machine and a port of it, 1 "
                "to 65535, the same for all ranks: start the ranks with torchrun or srun, which set them."
            )
        return host, int(port)
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")  # a job may have spare ones
    if not nodes:
        raise InputError("MASTER_ADDR and MASTER_PORT are not set: start the ranks with torchrun or srun.")
    try:
        number = int(os.environ.get("SLURM_JOB_ID", "")) + 7_919 * int(os.environ.get("SLURM_RESTART_COUNT") or "0")
    except ValueError:
        raise InputError(
            "SLURM_JOB_ID and SLURM_RESTART_COUNT are no numbers: set MASTER_ADDR and MASTER_PORT."
        ) from None
    return node_names(nodes)[0], 20_000 + number % 20_000
