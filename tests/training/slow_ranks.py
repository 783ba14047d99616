"""Run by test_slow as a rank of `aumn train ARGUMENTS`: each step's forward takes so long as SECONDS says for it."""

import os
import sys
import time

from aumn.cli import main
from aumn.runtime.engines import Engine

_, seconds, *arguments = sys.argv
RANK = int(os.environ.get("RANK", "0"))
SECONDS = [float(word) for word in seconds.split(",")]
os.environ["SLURMD_NODENAME"] = f"n{RANK + 1}"
forward = Engine.forward


def slow_forward(self, batch):
    time.sleep(SECONDS[RANK])
    return forward(self, batch)


Engine.forward = slow_forward
sys.argv = ["aumn", *arguments]
main()
