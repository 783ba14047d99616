"""What is done to a running command, one function a fault.

A fault that ends by itself returns a `Mend`: what ends it, and after how long; it never outlasts the command.
"""

import math
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.tracking.servers import MLFLOW

from .places import CACHE, STORE_AWAY_S, Place
from .processes import Command, processes_in, signal_to, wait_until


@dataclass(frozen=True)
class Scene:
    """What a fault can reach, and dice, by which it chooses."""

    command: Command
    place: Place
    dice: random.Random

    def child(self) -> psutil.Process | None:
        """A rank or a worker, as soon as there is one; None if the command ends first."""
        children: list[psutil.Process] = []

        def there_is_one() -> bool:
            children[:] = self.command.children()
            return bool(children) or self.command.has_ended()

        wait_until(there_is_one, 60, "no child process was started")
        return self.dice.choice(children) if children else None


@dataclass(frozen=True)
class Mend:
    """What ends a fault, after so many seconds."""

    after_s: float
    act: Callable[[], None]


def kill_one(scene: Scene) -> None:
    """Kill -9 of one rank, or of one of packing's workers."""
    if (child := scene.child()) is not None:
        signal_to(child, signal.SIGKILL)


def kill_launcher(scene: Scene) -> None:
    """Kill -9 of torchrun, or of the parent of packing's workers; those it leaves behind meet the next launch."""
    scene.command.launcher.kill()


def kill_all(scene: Scene) -> None:
    """Kill -9 of every process at once, the launcher first, as when a machine goes down."""
    scene.command.launcher.kill()
    for process in processes_in(scene.place.work):
        signal_to(process, signal.SIGKILL)


def terminate(scene: Scene) -> None:
    """SIGTERM to the process that the user started; torchrun passes it on."""
    scene.command.launcher.terminate()


def ask_to_stop(scene: Scene) -> None:
    """SIGUSR1 to every rank, as SLURM sends it ahead of a time limit."""
    for process in scene.command.children() if scene.command.has_ranks else [scene.command.launcher]:
        signal_to(process, signal.SIGUSR1)


def stop_one(scene: Scene) -> None:
    """SIGSTOP for good: the rank neither ends nor answers, as on a machine that hangs."""
    if (child := scene.child()) is not None:
        signal_to(child, signal.SIGSTOP)


def pause_one(scene: Scene) -> Mend | None:
    """SIGSTOP, then SIGCONT: a machine that stalls for seconds."""
    if (child := scene.child()) is None:
        return None
    signal_to(child, signal.SIGSTOP)
    return Mend(scene.dice.uniform(0.5, 4), lambda: signal_to(child, signal.SIGCONT))


def fill_disk(scene: Scene) -> Mend:
    """Nothing, a little or almost enough is left on the disk, for a while or until the command has ended."""
    scene.place.disk.fill(scene.dice.choice((0, 2**16, 2**20)))
    return Mend(_while(scene), scene.place.disk.free)


def kill_server(scene: Scene) -> Mend:
    """Kill -9 of the MLflow server, which is back in a while or only after the command has ended."""
    scene.place.server.kill()
    return Mend(scene.dice.choice((0, scene.dice.uniform(1, 5), math.inf)), scene.place.server.start)


def hang_server(scene: Scene) -> Mend:
    """SIGSTOP to the MLflow server: it takes requests and answers none."""
    scene.place.server.hang()
    return Mend(scene.dice.choice((scene.dice.uniform(1, 5), math.inf)), scene.place.server.go_on)


def misbehave(scene: Scene, after_s: float, **fields: object) -> Mend:
    """The store does as these fields of it say, for so long."""
    usual = {name: getattr(scene.place.store, name) for name in fields}
    vars(scene.place.store).update(fields)
    return Mend(after_s, lambda: vars(scene.place.store).update(usual))


def store_away(scene: Scene) -> Mend:
    """No answers, for less time than a run waits."""
    return misbehave(scene, scene.dice.uniform(0.5, STORE_AWAY_S / 2), away=True)


def store_gone(scene: Scene) -> Mend:
    """No answers until the command has ended."""
    return misbehave(scene, math.inf, away=True)


def store_cuts(scene: Scene) -> Mend:
    """Every connection ends after so many bytes."""
    return misbehave(scene, _while(scene), cut_after=scene.dice.choice((20_000, 200_000)))


def store_slow(scene: Scene) -> Mend:
    """A tar takes half a second, or five."""
    return misbehave(scene, _while(scene), pause_s=scene.dice.choice((0.002, 0.02)))


def store_busy(scene: Scene) -> None:
    """The next answers are 503."""
    scene.place.store.busy = scene.dice.choice((1, 5, 20))


def store_damages(scene: Scene) -> None:
    """The next tar that is sent has a byte changed."""
    scene.place.store.damage = 1


def store_lies(scene: Scene) -> Mend:
    """Files are said to have more bytes than they have, until the command has ended."""
    return misbehave(scene, math.inf, longer=5)


def cut_other(scene: Scene) -> Mend:
    """The second rank's link, for five seconds or until the command has ended, as are the others."""
    return on_link(scene, "n2", loss=1.0)


def cut_first(scene: Scene) -> Mend:
    """The link of the first rank and of the store by which the ranks meet."""
    return on_link(scene, "n1", loss=1.0)


def cut_server(scene: Scene) -> Mend:
    """The link of the MLflow server."""
    return on_link(scene, MLFLOW, loss=1.0)


def delay_link(scene: Scene) -> Mend:
    """200 ms more each way."""
    return on_link(scene, "n2", delay_s=0.2)


def lose_frames(scene: Scene) -> Mend:
    """5 or 30 of a hundred frames."""
    return on_link(scene, "n2", loss=scene.dice.choice((0.05, 0.3)))


def on_link(scene: Scene, node: str, **rule: float) -> Mend:
    scene.place.network.slow(node, **rule)
    return Mend(scene.dice.choice((5.0, math.inf)), lambda: scene.place.network.restore(node))


def remove_cache(scene: Scene) -> None:
    """Somebody tidies up."""
    shutil.rmtree(scene.place.work / CACHE, ignore_errors=True)


def change_cache(scene: Scene) -> None:
    """Somebody writes into cached files, mapped or not."""
    for file in _some_cached(scene):
        with file.open("r+b") as opened:
            for _ in range(20):
                opened.seek(scene.dice.randrange(file.stat().st_size))
                opened.write(b"damage")


def truncate_cache(scene: Scene) -> None:
    """Cached files lose their ends, or all they have."""
    for file in _some_cached(scene):
        os.truncate(file, scene.dice.choice((0, file.stat().st_size // 2)))


def fill_cache_disk(scene: Scene) -> Mend:
    """As `fill_disk`, of the disk that the cache has for its own."""
    scene.place.cache_disk.fill(scene.dice.choice((0, 2**16, 2**20)))
    return Mend(_while(scene), scene.place.cache_disk.free)


def _while(scene: Scene) -> float:
    return scene.dice.choice((scene.dice.uniform(0.2, 3), math.inf))


def _some_cached(scene: Scene) -> list[Path]:
    """Of the files that the cache holds now, about half; those that the ranks have removed meanwhile do not count."""
    files = sorted((scene.place.work / CACHE).glob("*.tar"))
    return [file for file in files if scene.dice.random() < 0.5 and file.exists()]


FAULTS: dict[str, Callable[[Scene], Mend | None]] = {
    "kill -9 of one": kill_one,
    "kill -9 of the launcher": kill_launcher,
    "kill -9 of all": kill_all,
    "SIGTERM": terminate,
    "SIGUSR1": ask_to_stop,
    "SIGSTOP": stop_one,
    "SIGSTOP, SIGCONT": pause_one,
    "disk full": fill_disk,
    "MLflow killed": kill_server,
    "MLflow stopped": hang_server,
    "store away": store_away,
    "store gone": store_gone,
    "store cuts": store_cuts,
    "store slow": store_slow,
    "store busy": store_busy,
    "store damages": store_damages,
    "store lies": store_lies,
    "link cut": cut_other,
    "first rank's link cut": cut_first,
    "MLflow's link cut": cut_server,
    "link slow": delay_link,
    "link loses frames": lose_frames,
    "cache removed": remove_cache,
    "cache changed": change_cache,
    "cache truncated": truncate_cache,
    "cache disk full": fill_cache_disk,
}
