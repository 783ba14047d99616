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


def kill_all(scene: Scene) -> None:
    """Kill -9 of every process at once, the launcher first, as when a machine goes down."""
    scene.command.launcher.kill()
    for process in processes_in(scene.place.work):
        signal_to(process, signal.SIGKILL)


def terminate(scene: Scene) -> None:
    """SIGTERM to the process that the user started; torchrun passes it on."""
    scene.command.launcher.terminate()


def fill_disk(scene: Scene) -> Mend:
    """Nothing, a little or almost enough is left on the disk, for a while or until the command has ended."""
    scene.place.fill_disk(scene.dice.choice((0, 2**16, 2**20)))
    return Mend(scene.dice.choice((scene.dice.uniform(0.2, 3), math.inf)), scene.place.free_disk)


FAULTS: dict[str, Callable[[Scene], Mend | None]] = {
    "kill -9 of one": kill_one,
    "kill -9 of all": kill_all,
    "SIGTERM": terminate,
    "disk full": fill_disk,
}
