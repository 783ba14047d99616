"""Bytes of a set's tars: mapped where they lie, fetched into the machine's cache, or read part by part from afar.

What lies in a cache is copied rather than mapped: whoever shortens or changes a cached file ends no process by SIGBUS
and changes nothing behind a checksum, and what is removed gives its room back at once. That costs about a tenth of the
reading (docs/performance.md).
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from aumn.addresses import public
from aumn.data.blocks import Blocks
from aumn.data.problems import DamagedVideoError
from aumn.data.shards.cache import NoRoomError, ShardCache
from aumn.data.shards.layout import Shard
from aumn.data.shards.stores import Remote
from aumn.records import InputError

logger = logging.getLogger(__name__)

OPEN_TARS = 256  # each open map holds a file descriptor, and 1,024 is a usual limit
FETCHERS = 2  # threads that fetch what is needed next
TOGETHER_BYTES = 2**20  # parts that lie no further apart are asked for at once

Span = tuple[int, int]  # first byte, bytes


class Tars(Protocol):
    """The tars of one set, by number. Safe to read from several threads."""

    def spans(self, shard: int, wanted: Sequence[Span]) -> list[memoryview]:
        """These parts of a tar: read-only, and valid for as long as they are kept. DamagedVideoError if it is short."""

    def forget(self, shard: int) -> bool:
        """Drop what is held of a tar that is damaged; True where it may come better."""

    def ahead(self, shards: Iterable[int], share: float) -> AbstractContextManager[None]:
        """While the block runs, fetch these, in the order in which they will be asked for, as far as room allows.

        `share` is what these tars may take of a cache that they have together with others.
        """

    def interrupted(self) -> AbstractContextManager[None]:
        """While the block runs, whoever waits for a store is sent away with an error."""


class MappedTars:
    """Tars in a folder; see `Tars`."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._files = [folder / shard.file for shard in shards]
        self._maps = _Maps()

    def spans(self, shard: int, wanted: Sequence[Span]) -> list[memoryview]:
        """Parts of the map."""
        return self._maps.spans(self._files[shard], wanted)

    def forget(self, _shard: int) -> bool:
        """What is damaged in a folder stays so."""
        return False

    def ahead(self, _shards: Iterable[int], _share: float) -> AbstractContextManager[None]:
        """Everything is here."""
        return nullcontext()

    def interrupted(self) -> AbstractContextManager[None]:
        """Nobody waits."""
        return nullcontext()


class RemoteTars:
    """Tars of a remote set; see `Tars`.

    They are read whole from a cache or, `whole` being False or the cache without room, part by part. `check` says what
    is wrong with the content of a tar, or nothing; `name` is its file's in the cache.
    """

    def __init__(
        self,
        store: Remote,
        shards: Sequence[Shard],
        cache: ShardCache,
        *,
        whole: bool,
        name: Callable[[int], str],
        check: Callable[[int, memoryview], str],
    ) -> None:
        self._store, self._shards, self._cache, self._whole = store, shards, cache, whole
        self._name, self._find_damage, self._blocks = name, check, Blocks()
        self._ahead: _Ahead | None = None
        self._damaged: set[int] = set()  # in the store itself

    def spans(self, shard: int, wanted: Sequence[Span]) -> list[memoryview]:
        """Parts of the cached file, or of the one far away."""
        if self._ahead:
            self._ahead.used(shard)
        while file := self._cache.held(self._name(shard)) or self._fetch_if_whole(shard):
            try:
                if copies := _copies(file, wanted, self._blocks):
                    return copies
                self._cache.drop(self._name(shard))  # it became shorter
            except FileNotFoundError:  # it made room for another one just now
                continue
            except OSError as error:
                raise _unreadable(file, error) from None
        return self._read(shard, wanted)

    def forget(self, shard: int) -> bool:
        """The store's copy is better, unless it was found to be damaged."""
        if shard in self._damaged:
            return False
        self._cache.drop(self._name(shard))
        return True

    @contextmanager
    def ahead(self, shards: Iterable[int], share: float) -> Generator[None]:
        """Where all fits into the cache, each is fetched once; else half of the cache is kept for what is in use."""
        if not self._whole:
            yield
            return
        sizes, cache_bytes = [shard.bytes for shard in self._shards], round(share * self._cache.size_bytes)
        fits = sum(sizes) <= cache_bytes
        upcoming = _once(shards, len(sizes)) if fits else iter(shards)
        room = sum(sizes) if fits else cache_bytes // 2
        self._ahead = _Ahead(upcoming, sizes, room, lambda shard: self._fetch(shard, wait=False))
        try:
            yield
        finally:
            with self.interrupted():
                self._ahead.end()
            self._ahead = None

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """The store's own flag."""
        self._store.stopping.set()
        try:
            yield
        finally:
            self._store.stopping.clear()

    def _fetch_if_whole(self, shard: int) -> Path | None:
        return self._fetch(shard) if self._whole or not self._store.ranges else None

    def _fetch(self, shard: int, *, wait: bool = True) -> Path | None:
        """The shard's file in the cache; None where it has no room, or another process is fetching it now."""
        source = self._shards[shard]
        try:
            return self._cache.get(
                self._name(shard),
                self._store,
                source.file,
                source.bytes,
                lambda content: self._check(shard, content),
                wait=wait,
            )
        except NoRoomError as error:
            place = public(str(self._store.place))
            if not self._store.ranges:
                raise InputError(
                    f"{error}, and {place} serves no parts of a file: give data.cache.folder and data.cache.size_gb "
                    "with room for a shard at least."
                ) from None
            if self._whole:
                self._whole = False
                logger.warning("%s: videos are read one by one from %s, which is slower.", error, place)
            return None

    def _check(self, shard: int, content: memoryview) -> str:
        problem = self._find_damage(shard, content)
        (self._damaged.add if problem else self._damaged.discard)(shard)
        return problem

    def _read(self, shard: int, wanted: Sequence[Span]) -> list[memoryview]:
        source = self._shards[shard]
        first, last = min(first for first, _ in wanted), max(first + size for first, size in wanted)
        if last - first - sum(size for _, size in wanted) > TOGETHER_BYTES:
            return [part for span in wanted for part in self._read(shard, [span])]
        content = self._blocks.take(last - first)
        self._store.fill(source.file, first, content, source.bytes)
        self._cache.fetched_bytes += len(content)
        return [content[start - first : start - first + size].toreadonly() for start, size in wanted]


class _Ahead:
    """Threads that fetch shards before they are asked for; not more than `room` bytes of them wait for their use."""

    def __init__(
        self, upcoming: Iterator[int], sizes: Sequence[int], room: int, fetch: Callable[[int], Path | None]
    ) -> None:
        self._upcoming, self._sizes, self._room, self._fetch = upcoming, sizes, room, fetch
        self._unused: set[int] = set()
        self._changed, self._ended = threading.Condition(), False
        self._threads = [threading.Thread(target=self._work, name="aumn-fetch", daemon=True) for _ in range(FETCHERS)]
        for thread in self._threads:
            thread.start()

    def used(self, shard: int) -> None:
        """Note that a shard was asked for, so that another one may be fetched."""
        with self._changed:
            if shard in self._unused:
                self._unused.discard(shard)
                self._changed.notify_all()

    def end(self) -> None:
        """Wait for the threads, which end as soon as their store lets them."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._fetch(shard)
            except InputError:  # who needs it is told
                return

    def _next(self) -> int | None:
        with self._changed:
            for shard in self._upcoming:
                if shard in self._unused:
                    continue
                while self._unused and self._held() + self._sizes[shard] > self._room and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return None
                self._unused.add(shard)
                return shard
        return None

    def _held(self) -> int:
        return sum(self._sizes[shard] for shard in self._unused)


class _Maps:
    """Memory maps of files, the last so many that were used."""

    def __init__(self) -> None:
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def spans(self, file: Path, wanted: Sequence[Span]) -> list[memoryview]:
        content = self._of(file)
        if content.size() < max(first + size for first, size in wanted):
            # asks the file; to touch a page of a map behind its end is a SIGBUS
            raise DamagedVideoError("", f"{file} became shorter while it was read: fetch this shard again.")
        view = memoryview(content)
        return [view[first : first + size] for first, size in wanted]

    def _of(self, file: Path) -> mmap.mmap:
        with self._lock:
            if file in self._maps:
                self._maps.move_to_end(file)
                return self._maps[file]
        try:
            with file.open("rb") as opened:
                found = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise _unreadable(file, error) from None
        with self._lock:
            self._maps[file] = found
            while len(self._maps) > OPEN_TARS:
                self._maps.popitem(last=False)
        return found


def _copies(file: Path, wanted: Sequence[Span], blocks: Blocks) -> list[memoryview]:
    """None at all where the file is shorter than one of them says."""
    found = []
    with file.open("rb", buffering=0) as opened:
        for first, size in wanted:
            copy = blocks.take(size)
            if os.preadv(opened.fileno(), [copy], first) != size:
                return []
            found.append(copy.toreadonly())
    return found


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read ({error}): fetch this shard again.")


def _once(shards: Iterable[int], count: int) -> Iterator[int]:
    """Each shard when it comes first, until all have come."""
    seen: set[int] = set()
    for shard in shards:
        if shard not in seen:
            seen.add(shard)
            yield shard
            if len(seen) == count:
                return
