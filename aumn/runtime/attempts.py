"""The launcher that started this process: is this its next attempt at the same command, and is it still there?

Attempts are torchrun's `--max-restarts`, SLURM's requeueing, and a job's step that is submitted again (`aumn submit`).
All start the very same command again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping

from aumn.runtime import preemption


def is_restart(environment: Mapping[str, str]) -> bool:
    """Whether the launcher says that it has started this command before, or may have: a job's step."""
    if "AUMN_JOB_FOLDER" in environment:
        return True
    counts = (environment.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in {"", "0"} for count in counts)


def launch_id(environment: Mapping[str, str]) -> str | None:
    """What all attempts of one launch have in common and no other launch has; None: nobody would start it again."""
    if job := environment.get("AUMN_JOB"):
        return f"step {environment.get('AUMN_STEP')}, point {environment.get('AUMN_POINT')} of the job {job}"
    if job := environment.get("SLURM_JOB_ID"):
        return f"SLURM job {job} of {environment.get('SLURM_CLUSTER_NAME', 'the cluster')}"
    if run := environment.get("TORCHELASTIC_RUN_ID"):
        # Where torchrun was given no name for the launch, its agent's process is one.
        return f"torchrun {run}" if run != "none" else f"torchrun {socket.gethostname()} {os.getppid()}"
    return None


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """From now on, end this process when torchrun has ended without ending it, as after a kill -9.

    Its ranks would train on, write into the run that the next launch goes on with, and wait for no one. A rank that was
    asked to stop does so by itself: where SIGUSR1 goes to all processes of a SLURM step, it ends torchrun at once.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        threading.Thread(target=_watch, args=(os.getppid(),), name="aumn-launcher", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(preemption.ECHO_S)  # what has ended torchrun may be on its way here
    if not preemption.has_come():
        os._exit(1)
