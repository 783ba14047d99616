"""Real processes for tests: torchrun and the command line, always with a timeout."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def torchrun(
    ranks: int, *arguments: object, cwd: Path | None = None, timeout_s: float = 120, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on so many ranks of this machine."""
    return python(*launcher(ranks), *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)


def aumn(*arguments: object, cwd: Path | None = None, timeout_s: float = 120, ranks: int = 1, **environment: str):
    """Run the command line, under torchrun where there are several ranks."""
    if ranks > 1:
        return torchrun(ranks, "-m", "aumn", *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)
    return python("-m", "aumn", *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)


def launcher(ranks: int, *options: str) -> list[str]:
    """Python's arguments that start what follows on so many ranks of this machine."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]


def python(
    *arguments: object, cwd: Path | None = None, timeout_s: float = 120, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter; the caller looks at the exit code."""
    command = [sys.executable, *map(str, arguments)]
    variables = {**os.environ, **QUIET, **environment}
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def succeed(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The process, after showing what it printed if it failed."""
    assert process.returncode == 0, f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process
