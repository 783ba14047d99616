"""A folder in which one round happens, with what its faults need: a disk and a tracking server of its own."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tracking.servers import Server

from .disks import Disk, a_disk
from .processes import end_all


@dataclass(frozen=True)
class Place:
    """`work` is the commands' working directory. The tracking store is beside it, so that it has another disk."""

    folder: Path
    work: Path
    log: Path
    database: Path
    own_disk: Disk | None = None
    own_server: Server | None = None

    @property
    def disk(self) -> Disk:
        assert self.own_disk is not None
        return self.own_disk

    @property
    def server(self) -> Server:
        assert self.own_server is not None
        return self.own_server

    def environment(self) -> dict[str, str]:
        address = self.own_server.address if self.own_server else f"sqlite:///{self.database}"
        # The first rank waits alone for a store that hangs, twice so long, and is itself taken to hang after 60 s.
        return {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def a_place(
    folder: Path, blank_database: Path, *, needs_disk: bool = False, needs_server: bool = False
) -> Iterator[Place]:
    """The folder is made anew; whatever still runs in it in the end is killed, and its disk unmounted."""
    shutil.rmtree(folder, ignore_errors=True)
    work, store = folder / "work", folder / "store"
    work.mkdir(parents=True)
    store.mkdir()
    with ExitStack() as stack:
        server, database = None, store / "mlflow.db"
        if needs_server:
            server, database = Server(store, blank_database), store / "server.db"
            stack.callback(server.end)
        else:
            shutil.copy(blank_database, database)
        disk = stack.enter_context(a_disk(work)) if needs_disk else None
        stack.callback(end_all, folder)
        yield Place(folder, work, folder / "log.txt", database, disk, server)
