"""A real MLflow server to talk to, which can be killed, stopped and started again at the same address."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

START_S = 120


class Server:
    def __init__(self, folder: Path, database: Path) -> None:
        """Serve a copy of a database; the server's files stay with it in `folder`."""
        self._folder = folder
        (folder / "server.db").write_bytes(database.read_bytes())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        store = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        places = [*store, "--artifacts-destination", str(self._folder / "kept"), "--port", str(self._port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # halves the start
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, *places], stdout=log, stderr=log, start_new_session=True, env=environment
            )
        self._wait()

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    def hang(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()

    def _wait(self) -> None:
        for _ in range(START_S):
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(1)
        raise AssertionError(f"no answer from {self.address} in {START_S} s")
