"""Many processes at one cache that holds half of their set, killed again and again: `python -m tests.faults.cache`.

They read videos at random, of a store that cuts its connections, and compare each with the set's own. Meanwhile the
cache's bound is asked for, parts and what was removed while it was open included. Exit code 1 if anything is wrong.
"""

import argparse
import fcntl
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from aumn.data.shards.shard_set import Access, ShardSet
from tests.launching import aumn, succeed
from tests.stores import faulty

WAIT_S = 60.0  # far more than a video takes: nobody may wait for longer


def main() -> int:
    options = _options()
    if options.read:
        return _read_forever(*options.read, options.seed)
    print(f"seed {options.seed}", flush=True)
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name, _shards(Path(name)) as shards, faulty(shards) as store:
        store.cut_after = 300_000
        cache, bound = Path(name) / "cache", ShardSet.open(shards).bytes // 2
        readers = [_Reader([shards, store.address, cache, bound], dice) for _ in range(options.processes)]
        most, kills, end_s = 0, 0, time.monotonic() + options.seconds
        try:
            while time.monotonic() < end_s:
                for _ in range(10):
                    most = max(most, _used(cache))
                    time.sleep(0.01)
                if (victim := dice.choice(readers)).has_begun and dice.random() < 0.2:
                    victim.kill()
                    kills += 1
                    victim.start()
                for reader in readers:
                    reader.look()
        finally:
            for reader in readers:
                reader.kill()
        videos = sum(reader.videos for reader in readers)
        print(f"{videos:,} videos right, {kills} kills, {store.sent_bytes / 1e6:,.0f} MB sent; ", end="")
        print(f"at most {most:,} bytes of {bound:,}", flush=True)
        return int(most > bound or not videos)


class _Reader:
    """A process that reads and counts, started anew after it was killed."""

    def __init__(self, arguments: list[object], dice: random.Random) -> None:
        self.arguments, self.dice, self.videos = arguments, dice, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.cache", "--seed", self.dice.randrange(2**31), "--read"]
        self.process = subprocess.Popen(list(map(str, command + self.arguments)), stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.heard_s, self.has_begun = time.monotonic(), False

    def look(self) -> None:
        """Count what it has read; an error if it ended, or has read nothing for long."""
        if heard := self.process.stdout.read():
            self.has_begun, self.heard_s = True, time.monotonic()
            self.videos += len(heard)
        assert self.process.poll() is None, f"a reader ended with {self.process.returncode}"
        assert time.monotonic() - self.heard_s < WAIT_S, "a reader waits in vain"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _read_forever(shards: str, address: str, cache: str, bound: str, seed: int) -> int:
    local = ShardSet.open(Path(shards))
    remote = ShardSet.open(address, Access(whole=True, cache_folder=Path(cache), cache_bytes=int(bound)))
    dice = random.Random(seed)
    with remote.ahead(iter(lambda: dice.randrange(len(local)), None)):
        while True:
            index = dice.randrange(len(local))
            expected, found = local.read(index), remote.read(index)
            assert all(np.array_equal(found[stream], expected[stream]) for stream in local.streams), index
            os.write(1, b".")


def _used(cache: Path) -> int:
    """Bytes of all files of the cache while nobody makes room; a file that is being renamed counts once."""
    with suppress(FileNotFoundError), (cache / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sizes = {}
        for path in cache.iterdir():
            with suppress(FileNotFoundError):
                sizes[path.stat().st_ino] = path.stat().st_size
        return sum(sizes.values())
    return 0


@contextmanager
def _shards(folder: Path) -> Iterator[Path]:
    features = folder / "features"
    succeed(aumn("synth", features, "--videos", 200, "--classes", 4, "--width", 192, "--snippets", 80))
    truth = ["--annotations", features / "gt.json"]
    succeed(aumn("pack", features, folder / "shards", *truth, "--shard-mb", 1))
    yield folder / "shards"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cache", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--read", nargs=4, help=argparse.SUPPRESS)  # what one of the processes is started with
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
