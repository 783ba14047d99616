"""A folder in which one round happens, with what its faults need: a disk of its own that can fill."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .processes import end_all

DISK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Place:
    """`work` is the commands' working directory. The tracking store is beside it, so that it has another disk."""

    folder: Path
    work: Path
    log: Path
    database: Path
    ballast: Path

    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{self.database}"}

    def fill_disk(self, left_bytes: int) -> None:
        """Leave at most so many bytes free on the disk of `work`."""
        with self.ballast.open("wb", buffering=0) as file:
            with suppress(OSError):  # no space left
                while file.write(bytes(2**16)):
                    pass
            file.truncate(max(0, file.tell() - left_bytes))

    def free_disk(self) -> None:
        self.ballast.unlink(missing_ok=True)


@contextmanager
def a_place(folder: Path, blank_database: Path | None, *, own_disk: bool = False) -> Iterator[Place]:
    """The folder is made anew; whatever still runs in it in the end is killed, and its disk unmounted."""
    shutil.rmtree(folder, ignore_errors=True)
    work, store = folder / "work", folder / "store"
    work.mkdir(parents=True)
    store.mkdir()
    place = Place(folder, work, folder / "log.txt", store / "mlflow.db", work / ".ballast")
    if blank_database is not None:
        shutil.copy(blank_database, place.database)
    if own_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", work], check=True, timeout=30)
    try:
        yield place
    finally:
        end_all(folder)
        if own_disk:
            _unmount(place)


def _unmount(place: Place) -> None:
    """What was on the disk stays beside it, to be looked into."""
    place.free_disk()
    shutil.copytree(place.work, place.folder / "disk", symlinks=True)
    subprocess.run(["umount", place.work], check=True, timeout=30)
    place.work.rmdir()
    (place.folder / "disk").rename(place.work)
