"""Peak memory of the processes of SLURM jobs on this machine, by polling: for where SLURM keeps no accounts.

    python -m tests.real.peak_memory OUT.json      # until it is ended; OUT.json is renewed as it goes

A process's own memory (RssAnon) says what a rank needs. Its resident memory (VmHWM) counts mapped shards too, which are
page cache that ranks share and that the kernel drops at will.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

INTERVAL_S = 0.5
SMALLEST_MB = 20  # srun and shells stay out
WANTED = ("AUMN_STEP", "AUMN_POINT", "SLURM_JOB_ID", "SLURM_PROCID")


def main(out: Path) -> None:
    known: dict[str, dict] = {}
    while True:
        running = {process.name for process in Path("/proc").glob("[0-9]*")}
        for pid in running:
            with suppress(OSError, ProcessLookupError):
                if facts := known.get(pid) or rank_of(pid):
                    observe(pid, known.setdefault(pid, facts))
        for pid in {pid for pid in known if pid.isdigit()} - running:  # the number may come again
            known[f"{pid} until {time.time()}"] = known.pop(pid)
        ranks = [facts for facts in known.values() if facts["own_mb"] >= SMALLEST_MB]
        out.write_text("".join(json.dumps(facts) + "\n" for facts in ranks))
        time.sleep(INTERVAL_S)


def rank_of(pid: str) -> dict | None:
    """The rank that a process is, or works for; None: it is none of a job."""
    variables = dict(
        word.split("=", 1)
        for word in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        if "=" in word
    )
    if "AUMN_STEP" not in variables or "SLURM_PROCID" not in variables:
        return None
    return {name: variables.get(name, "") for name in WANTED} | {"s": time.time(), "own_mb": 0, "resident_mb": 0}


def observe(pid: str, facts: dict) -> None:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    for name, field in (("own_mb", "RssAnon"), ("resident_mb", "VmHWM")):
        if field in fields:
            facts[name] = max(facts[name], int(fields[field].split()[0]) * 1024 // 10**6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
