"""A real MLflow server to talk to, which can be killed, stopped and started again at the same address."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.network import Network

START_S = 120
MLFLOW = "mlflow"


class Server:
    def __init__(self, folder: Path, database: Path, net: Network | None = None) -> None:
        """Serve a copy of a database, on a network as the node MLFLOW; the server's files stay with it in `folder`."""
        self._folder, self._net, self.kept = folder, net, folder / "kept"
        (folder / "server.db").write_bytes(database.read_bytes())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._host = net.addresses[MLFLOW] if net else "127.0.0.1"
        self.address = f"http://{self._host}:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", self._host]
        store = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        places = [*store, "--artifacts-destination", str(self.kept), "--port", str(self._port)]
        command = [*command, *places]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # halves the start
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                self._net.at(MLFLOW, *command) if self._net else command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
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
