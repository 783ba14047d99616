"""Checkpoints written while training goes on: one at a time, by a thread of their own.

A disk that refuses ends no training: it is told once, the next checkpoint is the next try, and nothing is said to be
saved that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from aumn.runfolder.checkpoint import Checkpoint, save_checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a run; `last` is the last whole one, if there is any yet.

    `secure` is called before each one is written: whatever a run that goes on from it relies on. OSError where the disk
    refuses. Both it and `say` are called in the writing thread.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep_last: int,
        last: Path | None,
        secure: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.last = last
        self._run_dir, self._keep_last, self._secure, self._say = run_dir, keep_last, secure, say
        self._thread = ThreadPoolExecutor(1, "aumn-checkpoint")
        self._writing: Future[bool] | None = None
        self._refused = False

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Have the checkpoint written as it is now; returns when its tensors may change, having waited for `wait`."""
        self.wait()
        weights, tensors = _Snapshot(checkpoint.weights), _Snapshot(checkpoint.trainer_tensors)
        self._writing = self._thread.submit(self._write, checkpoint, weights, tensors, best)

    def wait(self) -> bool:
        """Until nothing is being written; whether the checkpoint last asked for is on the disk."""
        return self._writing is not None and self._writing.result()

    def close(self) -> None:
        """Let what is being written be finished."""
        self._thread.shutdown()

    def _write(self, checkpoint: Checkpoint, weights: _Snapshot, tensors: _Snapshot, best: bool) -> bool:
        frozen = replace(checkpoint, weights=weights.read(), trainer_tensors=tensors.read())
        try:
            self._secure()
            self.last = save_checkpoint(self._run_dir, frozen, keep_last=self._keep_last, best=best)
        except OSError as error:
            self._tell_refusal(checkpoint.step, error)
            return False
        if self._refused:
            self._refused = False
            self._say(f"Checkpoints can be written again: {self.last} is whole.")
        return True

    def _tell_refusal(self, step: int, error: OSError) -> None:
        if not self._refused:
            last = f"the last whole one is {self.last}" if self.last else "there is no whole one yet"
            self._say(
                f"The checkpoint of step {step} cannot be written, and {last}: {error}. Training goes on, and tries "
                "again with the next: free space, or mend the folder."
            )
        self._refused = True


class _Snapshot:
    """Tensors on the host as they are now, whatever becomes of the originals.

    On CUDA they are copied into page-locked memory on a stream of its own. What the device does next waits for that,
    the host does not, until the thread that writes them reads them. Untested there for want of a GPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if self._device is None:
            self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            return
        present, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(present)
        with torch.cuda.stream(aside):
            self._tensors = {name: _to_pinned(tensor.detach()) for name, tensor in tensors.items()}
            self._copied = aside.record_event()
        present.wait_stream(aside)

    def read(self) -> dict[str, Tensor]:
        """The copies, once they are complete."""
        if self._device is not None:
            with torch.cuda.device(self._device):  # a thread's own current device is the first one
                self._copied.synchronize()
        return self._tensors


def _to_pinned(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
