"""Files and folders that are on the disk whole or not at all, and locks that let one process write them.

A folder's SHA256SUMS has a line a file, as `sha256sum --check SHA256SUMS` reads it, and tells damage since.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from aumn.records import InputError

CHECKSUMS = "SHA256SUMS"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux, <fcntl.h> and <linux/fs.h>
LOCK_WAIT_S = 5.0
"""For a process that is just ending."""
SETTLE_S = 1.0
"""How long it takes at most, where flock is missing, until another machine sees what was written."""

logger = logging.getLogger(__name__)


class DamagedError(InputError):
    """Files are not what was written; `problem` is the sentence without the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of writing say what was written, where the system does not: a full disk, say."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(path: Path, *, checksums: bool = True) -> Iterator[Path]:
    """A folder to put files into, which becomes `path` when the block ends well and vanishes when it does not.

    What had the name before gives it up in one step, and is removed only once the new folder is on the disk under it.
    Where the file system cannot exchange two names (NFS, Lustre), the old folder is first renamed aside. A kill between
    the two renames leaves it there: readers here find it, the next writer puts it back. One writer a path at a time.
    Where `path` is a link, its target is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _restore(path)
    partial = partial_of(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
    partial.mkdir()
    try:
        with _naming(path):
            yield partial
            if checksums:  # they and all files are on the disk before the folder has its name
                files = sorted(partial.iterdir())
                (partial / CHECKSUMS).write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files))
                for written in (*files, partial / CHECKSUMS, partial):
                    sync(written)
            _put(partial, path)
            sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what did not become `path`, or what was it before


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path`, in place of what had the name, when the block ends well.

    Where `path` is a link, its target is replaced; a device or a pipe is written to.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with _naming(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def partial_of(path: Path) -> Path:
    """Where `whole_folder` and `whole_file` write what becomes `path`."""
    path = path.resolve()
    return path.with_name(f".{path.name}.partial")


def remove_folder(path: Path) -> None:
    """Delete a folder; killed half-way, this leaves no folder with a part of its files under the name."""
    doomed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Delete what killed writers left in `parent`, where nobody is writing now, as far as that is permitted."""
    for aside in parent.glob(".*.replaced"):
        _restore(parent / aside.name[1:].removesuffix(".replaced"))
    for leftover in parent.glob(".*.partial"):
        with suppress(OSError):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def standing(path: Path) -> Path:
    """Where the folder called `path` is: there, or aside, where a writer was killed between two renames."""
    aside = _aside(path)
    return aside if not path.exists() and aside.exists() else path


def _put(partial: Path, path: Path) -> None:
    """Give `partial` the name; the folder that had it, if any, is called `partial` then."""
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        aside = _aside(path)
        path.rename(aside)
        try:
            partial.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        aside.rename(partial)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the file system or the C library cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _restore(path: Path) -> None:
    """End the two renames at which a writer was killed: the old folder is put back, or removed where the new one is."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def read_checked(folder: Path, name: str, *, remedy: str) -> bytes:
    """A file's bytes, if they are those that were written."""
    folder = standing(folder)
    with _telling_damage(folder / name, remedy):
        data = (folder / name).read_bytes()
    _compare(folder / name, hashlib.sha256(data).hexdigest(), _read_checksums(folder, remedy).get(name), remedy)
    return data


def check_folder(folder: Path, *, remedy: str) -> None:
    """Compare every file that has a checksum with it."""
    for name in _read_checksums(standing(folder), remedy):
        check_file(folder, name, remedy=remedy)


def check_file(folder: Path, name: str, *, remedy: str) -> Path:
    """Where a file is, if its bytes are those that were written; they are read and not kept."""
    folder = standing(folder)
    with _telling_damage(folder / name, remedy):
        checksum = _sha256(folder / name)
    _compare(folder / name, checksum, _read_checksums(folder, remedy).get(name), remedy)
    return folder / name


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_checksums(folder: Path, remedy: str) -> dict[str, str]:
    with _telling_damage(folder / CHECKSUMS, remedy):
        lines = (folder / CHECKSUMS).read_text().splitlines()
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}


def _compare(file: Path, checksum: str, expected: str | None, remedy: str) -> None:
    if checksum != expected:
        raise DamagedError(
            f"{file} does not match its checksum in {CHECKSUMS}: it was damaged, cut short or edited.", remedy
        )


@contextmanager
def _telling_damage(file: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing.", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{file} cannot be read ({error}).", remedy) from None


@contextmanager
def hold(lock: Path, refusal: str, *, launch: str | None = None, attempt_wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold a lock file for the length of a `with` block; InputError where another process holds it.

    `refusal` says what the other process does and what helps. A process that is just ending is waited for, and an
    earlier attempt of the same `launch` for `attempt_wait_s`: on a node that is cut off it learns late of its end.

    The system takes the lock (flock) from a process that ends, however it ends. On a file system without flock the
    file's content counts instead: it names the holder. A holder that has ended on this machine is succeeded, and so is
    an earlier attempt of the launch at once; any other is refused until its file is removed.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    begun_s, tells = time.monotonic(), True
    pid = os.getpid()
    me = {"host": socket.gethostname(), "pid": pid, "started": started_at(pid), "launch": launch}
    with lock.open("ab+", buffering=0) as file:
        while (holder := _take(file, me)) is not None:
            is_ours = launch is not None and _read_holder(file).get("launch") == launch
            waited_s = time.monotonic() - begun_s
            if waited_s >= (max(attempt_wait_s, LOCK_WAIT_S) if is_ours else LOCK_WAIT_S):
                raise InputError(f"{refusal} ({holder})")
            if tells and waited_s >= LOCK_WAIT_S:
                logger.warning(
                    "Waiting for this launch's attempt before to end, %.0f s at most: %s.", attempt_wait_s, holder
                )
                tells = False
            time.sleep(0.1)
        try:
            yield
        finally:
            with suppress(OSError):
                if _read_holder(file) == me:
                    _write_holder(file, {})


def _take(file: FileIO, me: dict[str, Any]) -> str | None:
    """Try to become the lock's holder; None: this process is, else a few words on who is."""
    holder, remedy = _read_holder(file), ""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:  # a file system without flock
        is_attempt_of_ours = me["launch"] is not None and holder.get("launch") == me["launch"]
        has_ended = holder.get("host") == me["host"] and started_at(holder["pid"]) != holder["started"]
        if not holder or is_attempt_of_ours or has_ended:
            _write_holder(file, me)
            time.sleep(SETTLE_S)  # whoever else has just found it free has written by now, and the last one holds it
            holder = _read_holder(file)
        if holder == me:
            return None
        remedy = f"; if it has ended, remove {file.name}"
    else:
        with suppress(OSError):  # a full disk: flock holds without it
            _write_holder(file, me)
        return None
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{who} holds the lock{remedy}"


def started_at(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None where it has ended.

    A number of a process is given again; a number and a start together name one process.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def holder_of(lock: Path) -> dict[str, Any]:
    """Who holds a lock, or was the last to: host, pid, started, launch; empty where nobody does, or it is not known."""
    try:
        with lock.open("rb", buffering=0) as file:
            return _read_holder(file)
    except OSError:
        return {}


def _read_holder(file: FileIO) -> dict[str, Any]:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
    except ValueError:
        return {}
    return holder if holder.keys() >= {"host", "pid", "started"} else {}


def _write_holder(file: FileIO, holder: dict[str, Any]) -> None:
    file.truncate(0)  # the file is open for appending, so what is written next begins it
    file.write(json.dumps(holder).encode())
