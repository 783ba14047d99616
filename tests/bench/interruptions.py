"""Seconds that an interruption costs: from the signal to the exit, and from the start to the first new step.

python tests/bench/interruptions.py
"""

import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aumn.runfolder.folder import RunFolder
from tests.running import Running
from tests.tiny import Tiny

ROUNDS = 3
SETTINGS = ("run.steps=100000", "run.checkpoint_every=50", "run.log_every=1", "evaluation.every=100000")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tiny = Tiny(Path(folder))
        for ranks in (1, 2):
            found = [preempt(tiny, ranks, index) for index in range(ROUNDS)]
            for name in found[0]:
                tell(f"{name}, {ranks} rank{'s' * (ranks > 1)}", [row[name] for row in found])
        found = [kill(tiny, index) for index in range(ROUNDS)]
        for name in found[0]:
            tell(f"kill -9 of one of two ranks, torchrun: {name}", [row[name] for row in found])


def preempt(tiny: Tiny, ranks: int, index: int) -> dict[str, float]:
    name = f"preempted_{ranks}_{index}"
    with tiny.start(name, *SETTINGS, ranks=ranks) as run:
        run.wait_for("step 30/")
        start_s = time.monotonic()
        run.kill(signal.SIGTERM)
        run.finish()
        stop_s = time.monotonic() - start_s
    start_s = time.monotonic()
    with tiny.start(name, *SETTINGS, "--resume", ranks=ranks) as run:
        run.wait_for(r"\nstep \d+/")
        return {"SIGTERM to exit": stop_s, "start with --resume to the first step": time.monotonic() - start_s}


def kill(tiny: Tiny, index: int) -> dict[str, float]:
    """Seconds to the next new step, and what the run says of them by part."""
    with tiny.start(f"killed_{index}", *SETTINGS, ranks=2, options=["--max-restarts", 1]) as run:
        run.wait_for("step 60/")
        start_s = time.monotonic()
        run.kill(rank=1)
        run.wait_until(lambda: goes_on(run), what="a step after the restart")
        seconds = time.monotonic() - start_s
        run.wait_until(lambda: RunFolder(tiny.root / f"killed_{index}").status().recovery, what="its parts")
        return {"in all": seconds, **RunFolder(tiny.root / f"killed_{index}").status().recovery}


def goes_on(run: Running) -> object:
    return re.search(r"(?s)steps 0 to.*steps 50 to.*\nstep \d+/", run.output)


def tell(what: str, seconds: list[float]) -> None:
    print(f"| {what} | {median(seconds):.1f} s |", flush=True)


if __name__ == "__main__":
    main()
