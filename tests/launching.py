"""Real processes for tests: the command line, ranks and torchrun, always with a timeout."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .template import Template, rank_environments

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
AT_THE_START = ("PYTHON", "LD_", "MALLOC_", "OMP_", "TORCH", "CUDA")
"""Of these, a process that is already there has heard."""
_templates: list[Template] = []


def aumn(*arguments: object, cwd: Path | None = None, timeout_s: float = 120, ranks: int = 1, **environment: str):
    """Run the command line; several ranks are started as by a script of one's own, see `together`."""
    return together(ranks, "-m", "aumn", *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)


def together(
    ranks: int, *arguments: object, cwd: Path | None = None, timeout_s: float = 120, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS`, a module or a file, as so many ranks without a launcher; see `template`."""
    if any(name.startswith(AT_THE_START) for name in environment):
        start = launcher(ranks) if ranks > 1 else []
        return python(*start, *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)
    base = os.environ | QUIET
    if not (_templates and _templates[-1].is_alive):
        _templates.append(Template(base | {"MLFLOW_LOGGING_LEVEL": "CRITICAL"}))  # as aumn has it
    environments = [base | environment | of_rank for of_rank in rank_environments(ranks)]
    return _templates[-1].run([*map(str, arguments)], cwd or Path.cwd(), environments, timeout_s)


def torchrun(
    ranks: int, *arguments: object, cwd: Path | None = None, timeout_s: float = 120, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on so many ranks of this machine, each started anew."""
    return python(*launcher(ranks), *arguments, cwd=cwd, timeout_s=timeout_s, environment=environment)


def launcher(ranks: int, *options: str) -> list[str]:
    """Python's arguments that start what follows on so many ranks of this machine."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]


def python(
    *arguments: object, cwd: Path | None = None, timeout_s: float = 120, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, started anew; the caller looks at the exit code."""
    command = [sys.executable, *map(str, arguments)]
    variables = {**os.environ, **QUIET, **environment}
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def succeed(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The process, after showing what it printed if it failed."""
    assert process.returncode == 0, f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process
