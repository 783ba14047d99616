"""A folder in which one round happens, with what its faults need: a disk and a tracking server of its own."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.network import Network, network
from tests.stores import Faulty, faulty
from tests.tracking.servers import MLFLOW, Server

from .disks import Disk, a_disk
from .processes import end_all
from .two_nodes import NETWORK, NODES

CACHE = "cache/shards"  # in the working directory
STORE_AWAY_S = 6


@dataclass(frozen=True)
class Reading:
    """How training reads its set from a store."""

    read: str
    cache_gb: float
    cache_disk_bytes: int | None = None  # of a disk of the cache's own


@dataclass(frozen=True)
class Place:
    """`work` is the commands' working directory. The tracking store is beside it, so that it has another disk."""

    folder: Path
    work: Path
    log: Path
    database: Path
    own_disk: Disk | None = None
    own_server: Server | None = None
    own_store: Faulty | None = None
    own_cache_disk: Disk | None = None
    own_network: Network | None = None
    reading: Reading | None = None

    @property
    def disk(self) -> Disk:
        assert self.own_disk is not None
        return self.own_disk

    @property
    def server(self) -> Server:
        assert self.own_server is not None
        return self.own_server

    @property
    def store(self) -> Faulty:
        assert self.own_store is not None
        return self.own_store

    @property
    def cache_disk(self) -> Disk:
        assert self.own_cache_disk is not None
        return self.own_cache_disk

    @property
    def network(self) -> Network:
        assert self.own_network is not None
        return self.own_network

    def settings(self) -> list[str]:
        """What training is told where it reads from a store."""
        if self.reading is None:
            return []
        of_data = {
            "shards": self.store.address,
            "store_away_s": STORE_AWAY_S,
            "read": self.reading.read,
            "cache.folder": CACHE,
            "cache.size_gb": self.reading.cache_gb,
        }
        return [f"data.{name}={value}" for name, value in of_data.items()]

    def environment(self) -> dict[str, str]:
        address = self.own_server.address if self.own_server else f"sqlite:///{self.database}"
        # The first rank waits alone for a store that hangs, twice so long, and is itself taken to hang after 60 s.
        found = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
        return found | ({NETWORK: f"{net.number} {net.folder}"} if (net := self.own_network) else {})


@contextmanager
def a_place(
    folder: Path,
    blank_database: Path,
    *,
    needs_disk: bool = False,
    needs_server: bool = False,
    is_networked: bool = False,
    reading: Reading | None = None,
    shards: Path | None = None,
) -> Iterator[Place]:
    """The folder is made anew, a store serves these shards, nodes are on a network with the tracking server.

    In the end what runs is killed, disks are unmounted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    work, store = folder / "work", folder / "store"
    work.mkdir(parents=True)
    store.mkdir()
    with ExitStack() as stack:
        server, database = None, store / "mlflow.db"
        net = stack.enter_context(network([*NODES, MLFLOW])) if is_networked else None
        if needs_server:
            server, database = Server(store, blank_database, net), store / "server.db"
            stack.callback(server.end)
        else:
            shutil.copy(blank_database, database)
        disk = stack.enter_context(a_disk(work)) if needs_disk else None
        web, cache_disk = None, None
        if reading:
            web = stack.enter_context(faulty(shards))
            (work / "cache").mkdir()
            if reading.cache_disk_bytes:
                cache_disk = stack.enter_context(a_disk(work / "cache", reading.cache_disk_bytes))
        stack.callback(end_all, folder)
        yield Place(folder, work, folder / "log.txt", database, disk, server, web, cache_disk, net, reading)
