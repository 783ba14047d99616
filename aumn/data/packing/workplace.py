"""`OUT.partial`: where a shard set is built, by one process at a time, until one rename makes it appear whole."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aumn.files import hold, sync
from aumn.records import InputError


@dataclass(frozen=True, slots=True)
class Workplace:
    """`shards` will be the shard set; `progress` holds notes on finished shards."""

    partial: Path

    @property
    def shards(self) -> Path:
        """The folder that becomes OUT."""
        return self.partial / "shards"

    @property
    def progress(self) -> Path:
        """The folder of what is not published."""
        return self.partial / "progress"

    def notes(self) -> list[Path]:
        """One file for each shard that some run has finished."""
        return list(self.progress.glob("*.json"))

    def publish(self, out: Path, files: Collection[str]) -> None:
        """Rename `shards` to OUT, holding exactly these files and safely on disk."""
        for stray in self.shards.iterdir():  # of an earlier plan, or of a run that was killed
            if stray.name not in files:
                stray.unlink()
        refuse_existing(out)
        sync(self.shards)
        self.shards.rename(out)
        sync(out.parent)
        shutil.rmtree(self.partial)


@contextmanager
def workplace(out: Path) -> Iterator[Workplace]:
    """OUT's workplace, for this process alone; left for the next run to go on from if it holds finished shards.

    See `files.hold` for file systems without flock.
    """
    work = Workplace(out.with_name(out.name + ".partial"))
    lock = work.partial / "lock"
    with hold(lock, f"Another run is packing into {out}: let it finish, or stop it first"):
        refuse_existing(out)  # the run that was waited for may have made it
        if not lock.exists():  # or have given up and removed it
            raise InputError(f"The run that was packing into {out} has just ended: run the same command again.")
        try:
            for folder in (work.shards, work.progress):
                folder.mkdir(exist_ok=True)
                for unfinished in folder.glob(".*.partial"):
                    unfinished.unlink()
            yield work
        finally:
            if work.partial.exists() and not work.notes():
                shutil.rmtree(work.partial)


def refuse_existing(out: Path) -> None:
    """A shard set is never overwritten."""
    if out.exists():
        raise InputError(f"{out} already exists: remove it, or pack into another folder.")
