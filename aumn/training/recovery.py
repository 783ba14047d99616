"""What a restart by a launcher took, by part, from the last step that was logged to the first new one.

    detect       from the last line of metrics.jsonl until a rank or the launcher found that the attempt had ended
    requeue      until the next one began: its batch script, or this process where none tells
    start        Python, and what training imports
    rendezvous   until the ranks had met
    load         data, checkpoint, engine, MLflow
    first_step   with what is made once

A moment that nobody saw is left out: its part counts with the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from aumn.files import started_at


def seconds_by_part(
    environment: Mapping[str, str],
    *,
    seen_s: float | None,
    ended_s: float | None,
    process_s: float,
    own: Mapping[str, float],
) -> dict[str, float]:
    """Seconds by part; all moments count from 1970.

    Args:
        environment: slurm/train.sbatch tells when it saw the attempt before end, AUMN_LOST_MS, and when it began
            itself, AUMN_BEGAN_MS. Where torchrun has restarted within the job since, neither counts.
        seen_s: when the attempt before logged its last line.
        ended_s: when it said that it ended.
        process_s: when this process began.
        own: when this attempt was done with each of the parts from `start` on, in order.
    """
    lost_s, began_s = (_seconds(environment.get(name)) for name in ("AUMN_LOST_MS", "AUMN_BEGAN_MS"))
    since_s = seen_s or 0.0
    if began_s is None or began_s < since_s:
        lost_s, began_s = None, process_s
    found_s = min((moment for moment in (ended_s, lost_s) if moment and moment >= since_s), default=None)
    before_s, parts = seen_s, {}
    for name, over_s in {"detect": found_s, "requeue": began_s, **own}.items():
        if over_s is not None:
            if before_s is not None:
                parts[name] = max(0.0, round(over_s - before_s, 3))
            before_s = over_s
    return parts


def process_began_s() -> float:
    """When this process did, since 1970."""
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up_s + (started_at(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")


def _seconds(milliseconds: str | None) -> float | None:
    try:
        return int(milliseconds or "") / 1000
    except ValueError:
        return None
