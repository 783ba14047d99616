"""Processes that begin with the heavy libraries loaded: a template imports them once, and every command is its fork.

Importing torch, MLflow and pandas costs a command 2 to 10 s of CPU, most of what a short one takes. A fork is a process
of its own, with its own environment, folder, output, signals and exit code, and runs `-m MODULE` or a file as `python`
does; nothing of aumn is imported before. What it does not show is how a process starts: for imports, what the
environment tells the interpreter or the loader, another hash seed, torchrun and signals to what is still starting,
`launching.python`, `launching.torchrun` and `running.start` start everything anew.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "torch._dynamo",  # which torch's optimizers import when they are made
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "pandas",
    "pyarrow.parquet",
    "scipy.ndimage",
)


class Template:
    """A process that forks one command after another, for as long as this process lives."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.template"],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.end)

    def run(
        self, arguments: Sequence[str], cwd: Path, environments: Sequence[Mapping[str, str]], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` once for each environment, all at the same time; the first exit code that is not 0."""
        with tempfile.TemporaryDirectory(prefix="aumn-test-") as folder:
            forks = [
                {"environment": dict(variables), "files": [f"{folder}/{number}.{name}" for name in ("out", "err")]}
                for number, variables in enumerate(environments)
            ]
            request = {"arguments": arguments, "cwd": str(cwd), "forks": forks, "timeout_s": timeout_s}
            codes = self._ask(request)
            out, err = (
                "".join(Path(fork["files"][which]).read_text(errors="replace") for fork in forks) for which in (0, 1)
            )
        if codes is None:
            raise subprocess.TimeoutExpired(list(arguments), timeout_s, out, err)
        return subprocess.CompletedProcess(list(arguments), next(filter(None, codes), 0), out, err)

    def _ask(self, request: dict[str, object]) -> list[int] | None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except BaseException:  # a test's own time limit, or Ctrl-C
            self.end()
            raise

    def end(self) -> None:
        """Kill it, and what it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """What a script that starts the ranks itself tells each of them."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    return [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def serve() -> None:
    """Fork what each line of the input asks for; answer with the exit codes, or with null where time was up."""
    for library in LIBRARIES:
        import_module(library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for fork in request["forks"]:
            pid = os.fork()
            if pid == 0:
                answers.close()
                become(request["arguments"], request["cwd"], **fork)
                return
            pids.append(pid)
        answers.write(json.dumps(codes_of(pids, request["timeout_s"])) + "\n")
        answers.flush()


def become(arguments: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    """Be `python ARGUMENTS`, in this process, until it ends."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((os.devnull, *files)):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    first, *rest = arguments
    if first == "-m":
        module, *rest = rest
        sys.argv, sys.path[0] = [module, *rest], cwd
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def codes_of(pids: list[int], timeout_s: float) -> list[int] | None:
    """As `subprocess` has them: less than 0 for a signal."""
    end_s, codes = time.monotonic() + timeout_s, {}
    while len(codes) < len(pids):
        if time.monotonic() > end_s:
            for pid in {*pids} - {*codes}:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return None
        for pid in {*pids} - {*codes}:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    serve()
