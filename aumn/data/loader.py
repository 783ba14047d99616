"""(shard set, rank, world size, step) -> batches, as a pure function: a run resumes at any step by arithmetic.

The videos of a step, the snippets drawn from each, and each video's seed depend on (run seed, epoch, video) alone,
where sets have weights also on how often its set had been through, so ranks, micro-batches, threads and restarts change
nothing about what is learned from.

Shapes: B videos, T snippets, D width, C classes.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from aumn.data.buffers import Buffers
from aumn.data.order import EpochOrder, MixedOrder, hash63, share_out
from aumn.data.problems import DamagedVideoError, StoreGoneError
from aumn.data.settings import DataSettings, groups_of
from aumn.records import Batch, InputError, Step

if TYPE_CHECKING:
    from aumn.data.shards.shard_set import ShardSet

THREADS = 2
STEPS_AHEAD = 2
GIVE_UP_POLL_S = 0.5

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def split_holdout(indices: Sequence[int], ids: Sequence[str], data: DataSettings) -> tuple[list[int], list[int]]:
    """Training videos in two: those that stay, and those held out, on which choices are made; `ids` are their names.

    Of a share: a video's side is a function of the seed and its id alone, so which other videos there are, and in what
    order, is all one; with `holdout_groups`, it is one of the seed and of which groups there are.
    """
    named = set(data.holdout_videos)
    if unknown := sorted(named - set(ids)):
        raise InputError(
            f"data.holdout_videos names {len(unknown)} that are no training videos ({', '.join(unknown[:3])}"
            f"{', ...' * (len(unknown) > 3)}): name videos of data.subset."
        )
    if data.holdout_groups is None:
        is_held_out = [
            video in named or hash63("holdout", data.holdout_seed, video) < data.holdout_share * 2**63 for video in ids
        ]
    else:
        groups = _groups(ids, data.holdout_groups)
        chosen = sorted(set(groups), key=lambda group: hash63("holdout", data.holdout_seed, group))
        chosen = chosen[: round(data.holdout_share * len(chosen)) or 1]
        is_held_out = [group in chosen for group in groups]
    training = [index for index, out in zip(indices, is_held_out, strict=True) if not out]
    held_out = [index for index, out in zip(indices, is_held_out, strict=True) if out]
    if (data.holdout_share or named) and not (training and held_out):
        raise InputError(
            f"data.{'holdout_videos' if named else f'holdout_share={data.holdout_share:g}'} leaves {len(training)} "
            f"videos to train on and {len(held_out)} held out; both must have some: change "
            f"{'the list' if named else 'the share, data.holdout_seed or data.holdout_groups'}."
        )
    return training, held_out


def trained_sets(data: DataSettings, identities: Sequence[str], model: str) -> ShardSet:
    """The sets of `data`, as they were when `model` was trained on them; InputError if nothing was held out of that."""
    from aumn.data.shards.union import open_sets

    places = " and ".join(map(str, data.places))
    if not (data.holdout_share or data.holdout_videos):
        raise InputError(
            f"{model} was trained on all videos of {', '.join(data.subsets)}, and held none out: name others with "
            "--subset, not those that you report; or hold some out (data.holdout_share=0.2) and train."
        )
    shards = open_sets(data, identities=identities)
    if [part.identity for part in shards.parts] != [*identities]:
        raise InputError(
            f"{places} is not what {model} was trained on (identity {shards.identity}, not {', '.join(identities)}), "
            "so that none of it was held out: name a --subset of it."
        )
    return shards


def _groups(ids: Sequence[str], pattern: str) -> list[str]:
    """What the table says of each video, or what the pattern finds in its name: all of it, or what is in brackets."""
    if (group_of := groups_of(pattern)) is not None:
        if untold := [video for video in ids if video not in group_of]:
            raise InputError(
                f"data.holdout_groups names no group for {len(untold)} of {len(ids)} videos, such as {untold[0]}: "
                "give each a row in the table."
            )
        return [group_of[video] for video in ids]
    found = [re.search(pattern, video) for video in ids]
    if none := [video for video, match in zip(ids, found, strict=True) if match is None]:
        raise InputError(
            f"data.holdout_groups={pattern!r} finds nothing in {len(none)} of {len(ids)} names, such as {none[0]}: "
            "every training video must belong to a group."
        )
    return ["/".join(part or "" for part in match.groups()) or match[0] for match in found if match]


@dataclass
class TrainingLoader:
    """The steps of a training run as one rank sees them.

    An epoch shows every video exactly once, in an order that depends on (seed, epoch) alone; where the sets of a union
    have weights, it shows as many videos, of each set its share (see `MixedOrder`). It is cut into steps of
    `global_videos`; the last is smaller where that does not divide, and so is every step where the set itself is
    smaller. A step is cut into `world_size` x micro-batches as evenly as can be. Each rank has the same number of
    micro-batches at every step, since all must take part in the collectives: in a small step some are empty.
    """

    shards: ShardSet
    indices: Sequence[int]  # the videos to train on
    _: KW_ONLY
    global_videos: int  # of a step over all ranks
    micro_videos: int | None  # most of one forward pass; None takes a rank's share of the step at once
    snippets: int | None  # T drawn from each video (see `draw_snippets`); None: all, padded to the longest of the pass
    seed: int  # of the run
    rank: int
    world_size: int
    dtype: torch.dtype = torch.float32  # of the features in the batches, whatever the shards hold
    pin_memory: bool = False  # page-locked, for copies to CUDA that overlap with compute; untested for want of a GPU
    window_shards: int | None = None  # tars among which videos are shuffled; None: among all; see `EpochOrder`
    damaged_limit: int = 0  # damaged videos that are left out of their steps before they are an error
    weights: Sequence[float] | None = None  # of each set of a union; None: each video comes once an epoch

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise InputError("There is no video to train on: pack some of the training subset, or hold out fewer.")
        if len(self.shards.unlabelled(self.indices)) == len(self.indices):
            raise InputError(
                f"None of the {len(self.indices)} videos to train on has a label: annotate which actions occur in "
                "them, and pack again."
            )
        self.steps_per_epoch = -(-len(self.indices) // self.global_videos)
        self.wait_s = 0.0  # how long the consumer of `steps` has waited for data so far
        self._indices = np.asarray(self.indices)
        self._order = self._order_of_epochs()
        self._micro_count = count_micro_batches(self.global_videos, self.micro_videos, self.world_size)
        self._reader = _Reader(self.shards, self.dtype, self.pin_memory)
        self._damaged: dict[int, str] = {}  # of the videos that this rank has met, why

    @property
    def may_lack(self) -> bool:
        """Whether ranks have to agree on each step before they take it, as one of them may lack some of it."""
        return self.shards.is_remote or self.damaged_limit > 0

    def load(self, step: int) -> Step:
        """Any step's data, at once."""
        epoch, mine, count = self._draws_of(step)
        damaged: dict[str, str] = {}
        batches = tuple(self._load_batch(piece.tolist(), epoch, damaged) for piece in mine)
        return Step(step, epoch, count, batches, damaged)

    def steps(self, first: int, last: int, give_up: Callable[[], bool] = lambda: False) -> Generator[Step]:
        """`load` for first <= step < last, read ahead by threads; closing the generator ends them.

        Where a remote set's store is gone, or `give_up` says so while a step is waited for, that step comes without
        data, and is the last one; its `problem` says why.
        """
        load = partial(_or_problem, self.load)
        ahead = _prefetch(
            load,
            range(first, last),
            threads=THREADS,
            ahead=STEPS_AHEAD,
            interrupted=self.shards.interrupted,
            give_up=give_up,
        )
        with self.shards.ahead(_Upcoming(self, range(first, last))), closing(ahead):
            for index in range(first, last):
                asked_s = time.perf_counter()
                step = next(ahead)
                self.wait_s += time.perf_counter() - asked_s
                if isinstance(step, Step):
                    yield step
                    continue
                yield Step(index, 0, 0, (), problem=step or InputError("A step was waited for in vain."))
                return

    def _order_of_epochs(self) -> EpochOrder | MixedOrder:
        shard_N = None if self.window_shards is None else self.shards.shards_of(self.indices)
        if self.weights is None:
            return EpochOrder(self.seed, len(self.indices), shard_N, self.window_shards or 1)
        set_N, shares = self.shards.sets_of(self.indices), share_out(len(self.indices), self.weights)
        members = tuple(np.flatnonzero(set_N == number) for number in range(len(self.weights)))
        for part, of_set, share in zip(self.shards.parts, members, shares, strict=True):
            if not len(of_set) or not share:
                raise InputError(
                    f"data.weights={list(self.weights)} draws {share} videos an epoch of the {len(of_set)} of "
                    f"{part.path} that there are to train on: raise its weight, hold out fewer, or leave the set out."
                )
        return MixedOrder(self.seed, members, shares, shard_N, self.window_shards or 1)

    def _draws_of(self, step: int) -> tuple[int, list[np.ndarray], int]:
        """A step's epoch, each of this rank's micro-batches, and how many videos the step has over all ranks.

        A micro-batch is two columns: its videos, and how often the set of each had been through.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.global_videos
        place_N, pass_N = (column_N[first : first + self.global_videos] for column_N in self._order.draws(epoch))
        draws_N2 = np.stack([self._indices[place_N], pass_N], axis=1)
        pieces = np.array_split(draws_N2, self.world_size * self._micro_count)
        return epoch, pieces[self.rank * self._micro_count : (self.rank + 1) * self._micro_count], len(place_N)

    def _load_batch(self, draws: list[list[int]], epoch: int, damaged: dict[str, str]) -> Batch:
        """Of these videos; those that are damaged are noted and left out, where that is allowed."""
        while True:
            for index in [index for index, _ in draws if index in self._damaged]:
                damaged[self.shards.videos[index].id] = self._damaged[index]
            draws = [draw for draw in draws if draw[0] not in self._damaged]
            try:
                return self._read_batch(draws, epoch)
            except DamagedVideoError as error:
                if not self.damaged_limit:
                    raise
                index = next(index for index, _ in draws if self.shards.videos[index].id == error.video)
                self._damaged[index] = str(error)

    def _read_batch(self, draws: list[list[int]], epoch: int) -> Batch:
        indices = [index for index, _ in draws]
        videos = [self.shards.videos[index] for index in indices]
        turns = [[] if self.weights is None else [turn] for _, turn in draws]
        seeds = [hash63("video", self.seed, epoch, video.id, *turn) for video, turn in zip(videos, turns, strict=True)]
        if self.snippets is None:
            return self._reader.read(indices, [np.arange(video.snippets) for video in videos], seeds)
        lengths = (video.snippets for video in videos)
        rows = [draw_snippets(length, self.snippets, seed) for length, seed in zip(lengths, seeds, strict=True)]
        return self._reader.read(indices, rows, seeds)


@dataclass(frozen=True)
class _Upcoming:
    """The videos that a rank will read, in order; as often as somebody asks."""

    loader: TrainingLoader
    steps: range

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            for draws_n2 in self.loader._draws_of(step)[1]:
                yield from draws_n2[:, 0].tolist()


def count_micro_batches(global_videos: int, micro_videos: int | None, world_size: int) -> int:
    """How many micro-batches each rank has at every step."""
    videos_a_pass = world_size * (micro_videos or 1)
    if global_videos % videos_a_pass:
        multiple = -(-global_videos // videos_a_pass) * videos_a_pass
        cut = f": {world_size} ranks x batch.micro_videos={micro_videos} = {videos_a_pass} videos a pass"
        raise InputError(
            f"batch.global_videos={global_videos} does not split evenly"
            f"{cut if micro_videos else f' over {world_size} ranks'}. Use a multiple, e.g. {multiple}."
        )
    return global_videos // videos_a_pass if micro_videos else 1


def draw_snippets(length: int, count: int, seed: int) -> np.ndarray:
    """Snippets of a video of `length`, in order: one at random from each of `count` equal slices of it.

    Where the video has fewer than `count`, a slice is narrower than a snippet and snippets repeat.
    """
    at_T = (np.arange(count) + np.random.default_rng(seed).random(count)) * (length / count)
    return np.minimum(at_T.astype(np.int64), length - 1)


def whole_videos(
    shards: ShardSet,
    indices: Sequence[int],
    *,
    rank: int,
    world_size: int,
    dtype: torch.dtype = torch.float32,
    give_up: Callable[[], bool] = lambda: False,
) -> Generator[Batch]:
    """Every snippet of one video a batch, for localization: each video once over all ranks, the next one read ahead.

    They end where `give_up` says so while one is waited for.
    """
    reader = _Reader(shards, dtype)

    def load(index: int) -> Batch:
        rows = [np.arange(shards.videos[index].snippets)]
        return reader.read([index], rows, seeds=[0])  # nothing is random here

    own, ahead = deal(shards, indices, rank=rank, world_size=world_size), 4 if shards.is_remote else 1
    with closing(
        _prefetch(load, own, threads=ahead, ahead=ahead, interrupted=shards.interrupted, give_up=give_up)
    ) as batches:
        for batch in batches:
            if batch is None:
                return
            yield batch


def deal(shards: ShardSet, indices: Sequence[int], *, rank: int, world_size: int) -> list[int]:
    """The videos that a rank localizes, in the order of `whole_videos`.

    Longest first, dealt in turn: ranks differ by at most one video's snippets, and the largest memory comes first.
    """
    return shards.longest_first(indices)[rank::world_size]


@dataclass
class _Reader:
    """Features of several videos, from the shards' memory maps straight into one tensor a stream."""

    shards: ShardSet
    dtype: torch.dtype
    pin_memory: bool = False
    buffers: Buffers = field(default_factory=Buffers)

    def read(self, indices: Sequence[int], rows: Sequence[np.ndarray], seeds: Sequence[int]) -> Batch:
        """A batch of these videos' snippets `rows`. Without videos it is 0 x 1 x D."""
        videos = tuple(self.shards.videos[index] for index in indices)
        lengths = tuple(map(len, rows))
        longest, count = max(lengths, default=1), len(videos)
        features = {stream: self._empty(count, longest, width) for stream, width in self.shards.streams.items()}
        labels_BC = torch.zeros(count, len(self.shards.classes))
        for place, (index, video, rows_T) in enumerate(zip(indices, videos, rows, strict=True)):
            labels_BC[place, list(video.labels)] = 1
            for stream, source_TD in self.shards.read(index).items():
                # Gathering first costs little, as the copy lies in cache when it is converted; memory maps are
                # read-only, which torch tensors cannot be.
                gathered_TD = torch.from_numpy(source_TD.take(rows_T, axis=0))
                target_TD = features[stream][place]
                target_TD[: len(rows_T)].copy_(gathered_TD)
                target_TD[len(rows_T) :].zero_()
        mask_BT = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64)[:, None]
        return Batch(videos, lengths, tuple(seeds), features, mask_BT, labels_BC)

    def _empty(self, *shape: int) -> Tensor:
        if self.pin_memory:
            return torch.empty(shape, dtype=self.dtype, pin_memory=True)  # torch keeps such blocks for the next time
        return self.buffers.empty(shape, self.dtype)


def _or_problem(load: Callable[[int], Step], step: int) -> Step | StoreGoneError:
    try:
        return load(step)
    except StoreGoneError as error:
        return error


def _prefetch(
    load: Callable[[Item], Loaded],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int,
    interrupted: Callable[[], AbstractContextManager[None]],
    give_up: Callable[[], bool] = lambda: False,
) -> Generator[Loaded | None]:
    """`load` of each item, in order, `ahead` of them under way while the consumer works on one.

    None, where `give_up` says so while an item is waited for. Loads under way are sent away when the generator closes.
    """
    torch.get_num_threads()  # settles this thread's own count, which the next line would otherwise decide
    # One core a thread, as in torch's own DataLoader: a team of threads for each copy would spin in training's way.
    pool = ThreadPoolExecutor(threads, "aumn-data", initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[Future[Loaded]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(load, item))
            if len(pending) > ahead:
                yield _result(pending.popleft(), give_up)
        while pending:
            yield _result(pending.popleft(), give_up)
    finally:
        with interrupted() if pending else nullcontext():
            pool.shutdown(cancel_futures=True)


def _result(future: Future[Loaded], give_up: Callable[[], bool]) -> Loaded | None:
    while not wait([future], GIVE_UP_POLL_S).done:
        if give_up():
            return None
    return future.result()
