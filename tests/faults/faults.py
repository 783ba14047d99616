"""What is done to a running command, one function a fault.

A fault that ends by itself returns a `Mend`: what ends it, and after how long; it never outlasts the command.
"""

import math
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from .places import Place
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
    return Mend(scene.dice.choice((scene.dice.uniform(0.2, 3), math.inf)), scene.place.disk.free)


def kill_server(scene: Scene) -> Mend:
    """Kill -9 of the MLflow server, which is back in a while or only after the command has ended."""
    scene.place.server.kill()
    return Mend(scene.dice.choice((0, scene.dice.uniform(1, 5), math.inf)), scene.place.server.start)


def hang_server(scene: Scene) -> Mend:
    """SIGSTOP to the MLflow server: it takes requests and answers none."""
    scene.place.server.hang()
    return Mend(scene.dice.choice((scene.dice.uniform(1, 5), math.inf)), scene.place.server.go_on)


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
}
