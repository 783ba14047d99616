"""Shards of remote sets, fetched whole into a folder of bounded size that the processes of a machine share.

A file appears under its name once it is whole and verified; its name is a fingerprint of its content, so sets that
share tars share them here. While one process fetches a file it holds a lock on the part that is there; others wait, or
fetch another. The file that was read longest ago makes room, and removing one that is being read is harmless.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aumn.addresses import public
from aumn.data.shards.stores import Remote
from aumn.records import InputError

logger = logging.getLogger(__name__)

POLL_S = 0.02
OURS = re.compile(r"\.?[0-9a-f]{16}-.+")  # a fingerprint, and the tar's own name


class NoRoomError(InputError):
    """The cache cannot hold a shard; reading goes on without it, by parts."""


class ShardCache:
    """A folder of at most `size_bytes`, for any number of sets and processes."""

    def __init__(self, folder: Path | None, size_bytes: int) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / f"aumn-cache-{os.getuid()}"
        self.size_bytes = size_bytes
        self.fetched_bytes = 0  # by this process

    def held(self, name: str) -> Path | None:
        """The file of this name, if it is here whole; from now on it counts as read just now."""
        file = self.folder / name
        try:
            os.utime(file)
        except OSError:
            return None
        return file

    def get(
        self, name: str, store: Remote, source: str, size: int, check: Callable[[memoryview], str], *, wait: bool = True
    ) -> Path | None:
        """The file, fetched first if it is not here; None where another process is fetching it and `wait` is False.

        None also where that one takes longer than a store may be away, as one that was stopped does. `check` says what
        is wrong with the content, or nothing; what stays wrong is kept as it is. NoRoomError where it cannot be held.
        """
        until_s = time.monotonic() + store.away_s * wait
        while True:
            if file := self.held(name):
                return file
            if size > self.size_bytes:
                raise NoRoomError(
                    f"data.cache.size_gb={self.size_bytes / 1e9:g} is less than {public(str(store.place))}/{source} "
                    f"has, {size / 1e9:.3g} GB"
                )
            try:
                if file := self._get_alone(name, store, source, size, check):
                    return file
            except FileNotFoundError:  # the folder was taken away meanwhile
                continue
            except OSError as error:  # of the disk or another user's file: the store's own are told as InputError
                raise NoRoomError(f"data.cache.folder={self.folder} cannot be written to ({error.strerror})") from None
            if time.monotonic() >= until_s:
                return None
            time.sleep(POLL_S)
            if store.stopping.is_set():
                store.missed("")

    def drop(self, name: str) -> None:
        """Forget a file, which turned out to be damaged."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder / name} is damaged and cannot be removed ({error.strerror}): remove it, or give another "
                "data.cache.folder."
            ) from None

    def _get_alone(
        self, name: str, store: Remote, source: str, size: int, check: Callable[[memoryview], str]
    ) -> Path | None:
        with self._alone(name) as descriptor:
            file = self.held(name)  # another may have finished it just now
            if file or descriptor is None or not self._reserve(descriptor, size):
                return file
            self._fetch(descriptor, store, source, size, check)
            with self._making_room():  # who counts files meanwhile would see neither name
                if not self._is(self._partial(name), os.fstat(descriptor).st_ino):  # it was removed, and begun anew
                    return None
                return self._partial(name).rename(self.folder / name)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"

    @contextmanager
    def _alone(self, name: str) -> Iterator[int | None]:
        """A descriptor of the file's part, for this process alone; None where another has it."""
        partial = self._partial(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NoRoomError(f"data.cache.folder={self.folder} cannot be made ({error.strerror})") from None
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            mine = os.fstat(descriptor).st_ino
            if not self._is(partial, mine):  # the one that had it has finished it, or given it up
                yield None
                return
            try:
                yield descriptor
            finally:
                if self._is(partial, mine):
                    partial.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    @staticmethod
    def _is(path: Path, inode: int) -> bool:
        try:
            return path.stat().st_ino == inode
        except FileNotFoundError:
            return False

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Take the disk's room for a file, after making it; False where what others fetch now has to be done first.

        Room is taken before anything is written, so that a disk which is full tells it at once.
        """
        with self._making_room():
            files = self._files()
            used = sum(stat.st_size for _, stat in files)
            oldest = [path for path, stat in sorted(files, key=lambda file: file[1].st_mtime_ns) if path.name[0] != "."]
            while used + size > self.size_bytes:
                if not oldest:
                    return False
                used -= self._remove(oldest.pop(0))
            while True:
                try:
                    os.posix_fallocate(descriptor, 0, size)
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        raise
                    if not oldest:
                        os.ftruncate(descriptor, 0)
                        raise NoRoomError(
                            f"The disk of data.cache.folder={self.folder} has no room for {size / 1e9:.3g} GB"
                        ) from None
                    self._remove(oldest.pop(0))
                else:
                    return True

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for as long as it takes to list and remove files
            yield
        finally:
            os.close(descriptor)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Whole files and parts, but not the parts that killed processes left, which are removed.

        What has another name is somebody else's: the folder may hold more than the cache.
        """
        found = []
        for path in filter(lambda path: OURS.fullmatch(path.name), self.folder.iterdir()):
            with suppress(FileNotFoundError):
                if path.name.endswith(".partial") and self._is_orphan(path):
                    path.unlink()
                else:
                    found.append((path, path.stat()))
        return found

    @staticmethod
    def _is_orphan(partial: Path) -> bool:
        """Whether nobody holds the lock of a part that has room already; flock counts descriptors, our own too."""
        descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(descriptor).st_size > 0
        except OSError:
            return False
        finally:
            os.close(descriptor)

    @staticmethod
    def _remove(path: Path) -> int:
        size = path.stat().st_size
        path.unlink()
        return size

    def _fetch(
        self, descriptor: int, store: Remote, source: str, size: int, check: Callable[[memoryview], str]
    ) -> None:
        """Fetch until it is what the manifest says, or often enough: what is damaged then is damaged in the store."""

        def put(at: int, piece: memoryview) -> None:
            try:
                os.pwrite(descriptor, piece, at)
            except OSError as error:  # which would look like the store's
                raise NoRoomError(f"data.cache.folder={self.folder} cannot be written to ({error.strerror})") from None

        for again in ("; it is fetched again.", "; it is fetched again.", " again: the store's copy is damaged."):
            store.copy(source, 0, size, size, put)
            self.fetched_bytes += size
            if not (problem := check(memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ)))):
                return
            logger.warning("%s/%s came damaged (%s)%s", public(str(store.place)), source, problem, again)
