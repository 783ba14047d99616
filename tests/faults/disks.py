"""A disk of a round's own that can be filled; where nobody may mount one, a limit on the size of files."""

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil

from .processes import processes_in

DISK_BYTES = 64 * 2**20


class Disk(Protocol):
    def fill(self, left_bytes: int) -> None:
        """Refuse what is written from now on, but for so many bytes at most."""

    def free(self) -> None:
        """Take everything again."""


class Tmpfs:
    """Filled with a file, so that writers get ENOSPC."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / ".ballast"

    def fill(self, left_bytes: int) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            with suppress(OSError):  # no space left
                while file.write(bytes(2**16)):
                    pass
            file.truncate(max(0, file.tell() - left_bytes))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class SizeLimit:
    """No process may make a file longer than what would be left, so that writers get EFBIG."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, left_bytes: int) -> None:
        self._limit(left_bytes)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, limit_bytes: int) -> None:
        for process in processes_in(self._folder):
            with suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


@contextmanager
def a_disk(folder: Path, size: int = DISK_BYTES) -> Iterator[Disk]:
    """The folder's disk; what was on it stays in the folder, to be looked into."""
    if not _mount(folder, size):
        yield SizeLimit(folder)
        return
    disk = Tmpfs(folder)
    try:
        yield disk
    finally:
        disk.free()
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept, symlinks=True)
        subprocess.run(["umount", folder], check=True, timeout=30)
        folder.rmdir()
        kept.rename(folder)


def _mount(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    return subprocess.run(command, check=False, timeout=30, capture_output=True).returncode == 0
