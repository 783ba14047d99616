"""`aumn doctor` here, and on machines that lack things, hang or refuse: a finding each, never a traceback."""

import base64
import http.server
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aumn import doctor
from aumn.doctor import CHECKS, examine

from .launching import QUIET, aumn


def store(address: str) -> tuple[str, str, str]:
    """What is found of a tracking store, as it is shown."""
    return examine(address)["MLflow store"]


def script(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_it_says_of_everything_what_is_here(tmp_path: Path) -> None:
    process = aumn("doctor", "--json", cwd=tmp_path, MLFLOW_TRACKING_URI="")
    findings = {row["what"]: row for row in json.loads(process.stdout)}
    assert list(findings) == [*CHECKS, "MLflow store"]
    assert "torch 2" in findings["ranks"]["found"]
    assert "gloo" in findings["ranks"]["found"]
    assert findings["MLflow store"]["found"] == f"{tmp_path}/mlflow.db, made when it is first used"
    assert all(row["remedy"] for row in findings.values() if row["state"] != "works")
    assert process.returncode == any(row["state"] == "broken" for row in findings.values())
    assert not list(tmp_path.iterdir())


def test_the_text_has_a_line_for_each_and_a_remedy_below() -> None:
    process = aumn("doctor", PATH="/nowhere")
    assert "--  SLURM: no sbatch, squeue, scontrol, srun on PATH\n    aumn submit works with --local" in process.stdout
    assert process.stdout.count("\nok  ") + process.stdout.startswith("ok  ") >= 2
    assert process.stderr == ""


@pytest.mark.parametrize("missing", ["torch", "mlflow"])
def test_without_a_library(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; from aumn.cli import main; main()"
    command = [sys.executable, "-c", code, "doctor", "--json"]
    process = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, timeout=60, check=False)
    findings = {row["what"]: row for row in json.loads(process.stdout)}
    assert ("could not be looked at" in findings["ranks"]["found"]) == (missing == "torch")
    assert findings["MLflow store"]["state"] == "works"


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst() -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setitem(CHECKS, "open files", burst)
    found = examine()
    expected = "could not be looked at: ZeroDivisionError('nobody thought of this')"
    assert found["open files"] == ("limited", expected, "Look at it by hand.")
    assert "GB free in /dev/shm" in found["shared memory"][1]


def test_slurm_that_answers_hangs_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.SLURM_COMMANDS:
        script(tmp_path / "bin", name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "PATIENCE_S", 1)
    script(tmp_path / "bin", "scontrol", "echo 'Slurmctld(primary) at login1 is UP'")
    assert CHECKS["SLURM"]() == ("works", "Slurmctld(primary) at login1 is UP", "")
    script(tmp_path / "bin", "scontrol", "echo 'Slurmctld(primary) at login1 is DOWN'; exit 1")
    state, found, remedy = CHECKS["SLURM"]()
    assert (state, found) == ("limited", "the controller does not answer: Slurmctld(primary) at login1 is DOWN")
    assert remedy == "aumn submit works with --local and --dry-run alone until it does."
    script(tmp_path / "bin", "scontrol", "exec sleep 30")
    started_s = time.perf_counter()
    assert CHECKS["SLURM"]()[:2] == ("limited", "the controller does not answer: no answer in 1 s")
    assert time.perf_counter() - started_s < 10


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "no-such-machine.invalid")
    state, found, remedy = CHECKS["own name"]()
    assert state == "limited"
    assert found.startswith("no-such-machine.invalid")
    assert "set GLOO_SOCKET_IFNAME=lo" in remedy


class _Answer(http.server.BaseHTTPRequestHandler):
    code = 200
    wanted: str | None = None

    def do_GET(self) -> None:
        if self.wanted and self.headers["Authorization"] != self.wanted:
            self.send_response(401)
            self.end_headers()
            return
        self.send_response(self.code if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = http.server.HTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("code", "state", "found"),
    [(200, "works", "answers 200"), (401, "limited", "wants credentials"), (502, "limited", "answers 502")],
)
def test_a_server_that_answers(server: str, monkeypatch: pytest.MonkeyPatch, code: int, state: str, found: str) -> None:
    monkeypatch.setattr(_Answer, "code", code)
    assert store(server)[:2] == (state, f"{server} {found}")


def test_stores_that_cannot_be_reached(tmp_path: Path) -> None:
    state, found, remedy = store("http://user:secret@127.0.0.1:9")
    assert (state, "secret" in found) == ("limited", False)
    assert found.startswith("http://***@127.0.0.1:9 does not answer (")
    assert "Runs go on and keep their metrics" in remedy
    assert store(str(tmp_path))[0] == "broken"
    assert store("postgresql://u:p@h/db") == (
        "limited", "postgresql://***@h/db was not tried", "aumn models list tries it."
    )  # fmt: skip


def test_credentials_in_a_servers_address_are_sent(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Answer, "wanted", f"Basic {base64.b64encode(b'me:s@cret').decode()}")
    host = server.removeprefix("http://")
    assert store(f"http://me:s%40cret@{host}") == ("works", f"http://***@{host} answers 200", "")
    assert store(f"http://me:other@{host}")[1] == f"http://***@{host} wants credentials"


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@127.0.0.1",
        "http://user:secret@127.0.0.1:9",
        "http://user:se/secret@127.0.0.1:9",
        "http://user:p@secret@127.0.0.1:9",
        "http://user:secret@[::1",
        "http://user:secret@127.0.0.1:port",
        "http:user:secret@127.0.0.1",
        "mysql:user:secret@host/db",
        "file://user:secret@host/runs",
    ],
)
def test_no_password_is_ever_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for given in (address, None):
        state, found, remedy = examine(given)["MLflow store"]
        assert state != "works"
        assert "secret" not in found + remedy
        assert "could not be looked at" not in found


def test_an_unforeseen_error_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(address: str) -> None:
        raise RuntimeError(f"nonnumeric port: {address.partition('user:')[2]!r}")

    monkeypatch.setattr(doctor, "find_address", burst)
    assert (
        store("http://user:secret@host")[1] == """could not be looked at: RuntimeError("nonnumeric port: '***@host'")"""
    )


def test_a_server_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example ready\r\n")

        threading.Thread(target=babble).start()
        state, found, _ = store(f"http://127.0.0.1:{listening.getsockname()[1]}")
    assert state == "limited"
    assert "does not answer (220 mail.example ready" in found


def test_few_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        state, found, remedy = CHECKS["open files"]()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (state, found.split()[0]) == ("limited", "512")
    assert remedy.startswith("Sets of hundreds of shards need more: ulimit -n ")


def test_a_broken_machine_ends_with_code_1(tmp_path: Path) -> None:
    process = aumn("doctor", "--tracking-uri", str(tmp_path))
    assert process.returncode == 1
    assert "!!  MLflow store: " in process.stdout
