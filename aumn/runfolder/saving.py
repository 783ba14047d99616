"""What a run leaves in its folder as it goes: metrics, checkpoints, status; see `folder`.

Checkpoints are written while training goes on: one at a time, by a thread of their own. A disk that refuses ends no
training: it is told once, the next checkpoint is the next try, and nothing is said to be saved that is not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aumn.records import Rows
from aumn.runfolder.checkpoint import Checkpoint, save_checkpoint
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import MetricsWriter


class RunWriter:
    """Writes a run's folder, in the one process that is inside `RunFolder.writing`.

    `last` is the last whole checkpoint, if there is any yet. `lines` of the metrics are kept, those that it counts on.
    `changed` is called whenever there is something new in the folder, and `say` takes lines for people; the thread that
    writes checkpoints calls both, too. `logged` gets what is logged. Where the folder has passed on to another attempt
    of the launch meanwhile, as from a node that was cut off, the status is that one's, and stays.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        say: Callable[[str], None],
        *,
        last: Path | None = None,
        lines: int = 0,
        status: Status | None = None,
    ) -> None:
        self.last, self.status = last, status or Status()
        self.metrics = MetricsWriter(folder, keep=lines)
        self.changed: Callable[[], None] = lambda: None
        self.logged: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None
        self._folder, self._keep_last, self._say = RunFolder(folder), keep_last, say
        self._holder = self._folder.holder()
        self._thread = ThreadPoolExecutor(1, "aumn-checkpoint")
        self._writing: Future[bool] | None = None
        self._refused = self._status_refused = False

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the run's settings, and its status."""
        try:
            self._folder.write_config(settings)
        except OSError as error:
            self._say(f"The run's settings, {self._folder.path / 'config.yaml'}, cannot be written: {error}.")
        self.note()
        if (note := os.environ.get("AUMN_NOTE")) and not self._status_refused:  # slurm/train.sbatch reads the status
            with suppress(OSError):
                Path(note).write_text(f"{self.status.step} {self._folder.path.absolute()}\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append numbers of a step to the metrics; never waits for the disk."""
        self.metrics.append(step, metrics)
        self.logged(step, metrics)
        self.changed()

    def note(self, **facts: Any) -> None:
        """Put what is new into the run's status. A disk that refuses it costs a convenience, and ends nothing."""
        self.status = self.status.model_copy(update=facts)
        if self._holder and self._folder.holder() not in (self._holder, {}):
            return
        try:
            self._folder.write_status(self.status)
        except OSError as error:
            if not self._status_refused:
                self._say(f"The run's status, {self._folder.path / 'status.json'}, cannot be written: {error}.")
            self._status_refused = True
        self.changed()

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Have the checkpoint written as it is now; returns when its tensors may change, having waited for `wait`."""
        self.wait()
        weights, tensors = HostCopy(checkpoint.weights), HostCopy(checkpoint.trainer_tensors)
        facts = {**checkpoint.trainer_facts, "metrics_lines": self.metrics.count}
        self._writing = self._thread.submit(
            self._write, replace(checkpoint, trainer_facts=facts), weights, tensors, best
        )

    def wait(self) -> bool:
        """Until nothing is being written; whether the checkpoint last asked for is on the disk."""
        return self._writing is not None and self._writing.result()

    def close(self) -> None:
        """Let what is being written be finished."""
        self._thread.shutdown()
        self.metrics.close()

    def _write(self, checkpoint: Checkpoint, weights: HostCopy, tensors: HostCopy, best: bool) -> bool:
        frozen = replace(checkpoint, weights=weights.read(), trainer_tensors=tensors.read())
        with fetching(frozen.weights):
            return self._save(frozen, best)

    def _save(self, checkpoint: Checkpoint, best: bool) -> bool:
        try:
            self.metrics.sync()  # a run that goes on from the checkpoint counts on them
            self.last = save_checkpoint(self._folder.path, checkpoint, keep_last=self._keep_last, best=best)
        except OSError as error:
            if not self._refused:
                last = f"the last whole one is {self.last}" if self.last else "there is no whole one yet"
                self._say(
                    f"The checkpoint of step {checkpoint.step} cannot be written, and {last}: {error}. Training goes "
                    "on, and tries again with the next: free space, or mend the folder."
                )
            self._refused = True
            return False
        if self._refused:
            self._refused = False
            self._say(f"Checkpoints can be written again: {self.last} is whole.")
        facts = checkpoint.trainer_facts
        self.note(step=checkpoint.step, **{name: facts[name] for name in ("best", "best_step") if name in facts})
        return True


class RowServer:
    """What a bank's other ranks do about a checkpoint: they give their rows as they are now, when asked for them.

    In a thread that ends with the process: where the first rank is lost, nobody asks.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def save(self, *tensors: Mapping[str, Tensor | Rows]) -> None:
        """Returns when they may change, having waited for the checkpoint before."""
        self.wait()
        rows = [one for of_file in tensors for one in of_file.values() if isinstance(one, Rows)]
        copies = HostCopy({str(number): one.own for number, one in enumerate(rows)})
        if rows:
            self._thread = threading.Thread(target=_serve, args=(rows[0], copies), name="aumn-rows", daemon=True)
            self._thread.start()

    def wait(self, most_s: float | None = None) -> None:
        """Until nothing more is asked for."""
        if self._thread is not None:
            self._thread.join(most_s)


def _serve(rows: Rows, copies: HostCopy) -> None:
    with suppress(RuntimeError):  # a lost rank is found where training waits for it
        rows.serve(list(copies.read().values()))


@contextmanager
def fetching(tensors: Mapping[str, Tensor | Rows]) -> Iterator[None]:
    """A block in which a bank's first rank may ask the others for their rows; behind it they are free."""
    try:
        yield
    finally:
        if rows := next((one for one in tensors.values() if isinstance(one, Rows)), None):
            rows.end()


class HostCopy:
    """Tensors on the host as they are now, whatever becomes of the originals.

    On CUDA they go into page-locked memory: what the device does next waits for that, and the host does when it reads
    them. Untested there for want of a GPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor | Rows]) -> None:
        own = {name: one.own if isinstance(one, Rows) else one for name, one in tensors.items()}
        copies = {name: _copy(tensor.detach()) for name, tensor in own.items()}
        self._tensors = {
            name: replace(one, own=copies[name]) if isinstance(one, Rows) else copies[name]
            for name, one in tensors.items()
        }
        self._device = next((tensor.device for tensor in own.values() if tensor.is_cuda), None)
        self._copied = torch.cuda.current_stream(self._device).record_event() if self._device else None

    def read(self) -> dict[str, Any]:
        """The copies, once they are complete; waits for nothing launched since."""
        if self._copied is not None:
            with torch.cuda.device(self._device):  # a thread's own current device is the first one
                self._copied.synchronize()
        return self._tensors


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
