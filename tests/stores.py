"""Servers that shard sets are read from: nginx, moto's S3, and one of ours that misbehaves as it is told."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

NGINX = """
daemon off; pid {work}/pid; error_log {work}/errors; worker_processes 1; {user}
events {{}}
http {{
  access_log off; log_format bytes '$request_method $uri $status $body_bytes_sent'; sendfile on;
  client_body_temp_path {work}/1; proxy_temp_path {work}/2; fastcgi_temp_path {work}/3; uwsgi_temp_path {work}/4;
  scgi_temp_path {work}/5;
  server {{ listen 127.0.0.1:{ports[0]}; root {root}; access_log {work}/access bytes; }}
  server {{ listen 127.0.0.1:{ports[1]}; root {root}; max_ranges 0; }}
  server {{ listen 127.0.0.1:{ports[2]} ssl; root {root};
            ssl_certificate {work}/cert.pem; ssl_certificate_key {work}/key.pem; }}
}}
"""
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Nginx:
    """Serves `root` with Range (`plain`), without it (`whole`) and by TLS (`tls`, which `certificate` vouches for)."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = root, work
        ports = [free_port() for _ in range(3)]
        self.plain, self.whole = (f"http://127.0.0.1:{port}" for port in ports[:2])
        self.tls, self.certificate = f"https://127.0.0.1:{ports[2]}", work / "cert.pem"
        name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        files = ["-keyout", work / "key.pem", "-out", self.certificate]
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run([*openssl, *files, *name], check=True, capture_output=True, timeout=60)
        user = "user root;" if os.geteuid() == 0 else ""
        (work / "conf").write_text(NGINX.format(work=work, root=root, ports=ports, user=user))

    def sent_bytes(self, ending: str = ".tar") -> int:
        """In bodies of answers of the server `plain`, of files with this ending."""
        lines = [line.split() for line in (self.work / "access").read_text().splitlines()]
        return sum(int(sent) for _, name, _, sent in lines if name.endswith(ending))


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[Nginx]:
    if not (program := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")):
        pytest.fail("needs nginx: apt-get install nginx-light")
    served = Nginx(root, work)
    with _serving([program, "-c", work / "conf", "-e", work / "errors"], served.plain):
        yield served


@contextmanager
def moto(work: Path) -> Iterator[str]:
    """The address of an S3 server."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with _serving(command, address, log=work / "moto.log"):
        yield address


@contextmanager
def _serving(command: list[object], address: str, log: Path | None = None) -> Iterator[None]:
    with (log or Path(os.devnull)).open("w") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline_s = time.monotonic() + 60
            while True:
                with suppress(OSError):
                    urlopen(address, timeout=1).close()
                    break
                if getattr(sys.exc_info()[1], "code", None) or _answers(address):
                    break
                assert process.poll() is None, f"{command[0]} ended"
                assert time.monotonic() < deadline_s, f"{command[0]} does not answer"
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("/")[2].partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


class Faulty(ThreadingHTTPServer):
    """A web server on a folder that misbehaves as its fields say; every answer is counted."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(root)))
        self.root = root
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.cut_after: int | None = None  # bytes of a body, then the connection ends
        self.busy = 0  # so many of the next answers are 503
        self.away = False  # connections are closed without an answer
        self.longer = 0  # more bytes that it says a file has than it has
        self.damage = 0  # so many of the next bodies of tars have a byte changed
        self.pause_s = 0.0  # before every piece of a body
        self.bytes_s: float | None = None  # of the link that all connections share
        self._link, self._free_s = threading.Lock(), 0.0
        self.requests: list[str] = []
        self.sent_bytes, self.counting = 0, threading.Lock()

    def take_link(self, size: int) -> None:
        """Wait until the link has carried so many bytes more."""
        with self._link:
            # A sleep that was too long is made up for by the next ones, as a link's queue does.
            self._free_s = max(self._free_s, time.monotonic() - 0.1) + size / self.bytes_s
            free_s = self._free_s
        time.sleep(max(0.0, free_s - time.monotonic()))

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that the client closed are no news."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        server: Faulty = self.server
        server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        self.close_connection = True
        if server.away:
            return
        if server.busy:
            server.busy -= 1
            self.send_error(503)
            return
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = bytearray(file.read_bytes())
        if server.damage and file.suffix == ".tar":
            server.damage -= 1
            content[content.index(b"NUMPY") + 130] ^= 1  # the first array's values
        first, last, size = 0, len(content) - 1, len(content) + server.longer
        if wanted := self.headers.get("Range"):
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
        self.end_headers()
        part = content[first : last + 1][: server.cut_after] if body else b""
        piece = 2**16 if server.bytes_s else 2**12
        for start in range(0, len(part), piece):
            time.sleep(server.pause_s)
            if server.bytes_s:
                server.take_link(len(part[start : start + piece]))
            with server.counting:  # before it is sent, as the client may ask at once
                server.sent_bytes += len(part[start : start + piece])
            self.wfile.write(part[start : start + piece])


@contextmanager
def faulty(root: Path) -> Iterator[Faulty]:
    with Faulty(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
