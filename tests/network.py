"""Nodes with addresses of their own on one machine: network namespaces, and a switch whose links tests cut and slow.

    with network(["n1", "n2"]) as net:
        subprocess.Popen(net.at("n1", "python", "-m", ...))
        net.cut("n2", for_s=5)

A kernel without netem delays and loses nothing by itself, and a link that is taken down tells its sockets, as a cut
behind a switch does not. So each node's interface is a TAP, and a process of ours carries every frame between them.
Debian's iproute2, as root. The tests' own namespace is one more node, ROOT.
"""

import fcntl
import heapq
import json
import math
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = "root"
TUN = "/dev/net/tun"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
MTU = 9000
BATCH = 64


def why_not() -> str | None:
    """Why this machine cannot have nodes with addresses of their own, in one sentence."""
    if shutil.which("ip") is None:
        return "needs the program `ip`, which `make install-slurm` installs (iproute2)"
    made = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True, check=False)
    if os.geteuid() != 0 or made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip() or 'not root'}"
    try:
        os.close(_tap(f"aumn-try{os.getpid()}"[:15]))
    except OSError as error:
        return f"network interfaces of one's own are not allowed here: {TUN}: {error.strerror}"
    return None


def require() -> None:
    """Skip the test where there can be none; where SLURM is required, a missing program is a failure."""
    import pytest  # here, so that the switch starts without

    if (reason := why_not()) is not None:
        is_lack = os.environ.get("AUMN_REQUIRE_SLURM") and shutil.which("ip") is None
        (pytest.fail if is_lack else pytest.skip)(reason)


class Network:
    """A running network; `at` starts things on its nodes, the rest says what happens to frames between them."""

    def __init__(self, number: int, names: Sequence[str], folder: Path, seed: int) -> None:
        self.number, self.names, self.folder, self.seed = number, [ROOT, *names], folder, seed
        self.addresses = {name: f"10.77.{number}.{index or 254}" for index, name in enumerate(self.names)}

    def at(self, node: str, *command: object, clock_s: int = 0) -> list[str]:
        """The command line that runs a command on a node: its address and its host name, and who the others are.

        `clock_s` sets its monotonic and boot clocks forward; the kernel has one wall clock for all.
        """
        words = [*map(str, command)]
        if node == ROOT:
            return words
        enter = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'
        if clock_s:  # a process keeps its clock: a child has the new one
            words = [
                *f"unshare --time --monotonic {clock_s} --boottime {clock_s} --fork --kill-child --".split(),
                *words,
            ]
        spaces = ["nsenter", f"--net=/run/netns/{_space(self.number, node)}", "unshare", "--uts", "--mount", "--"]
        return [*spaces, "sh", "-c", enter, "sh", node, str(self.folder / "hosts"), *words]

    def cut(self, *nodes: str, for_s: float | None = None) -> None:
        """Frames of a node vanish, or those between two; nobody is told. Replaces any rule that they had."""
        self._rule(nodes, loss=1.0, for_s=for_s)

    def slow(self, *nodes: str, delay_s: float = 0.0, loss: float = 0.0, for_s: float | None = None) -> None:
        """Frames of a node, or those between two, come later, each way, and this share of them not at all."""
        self._rule(nodes, delay_s=delay_s, loss=loss, for_s=for_s)

    def restore(self, *nodes: str) -> None:
        """As if nothing had been; of all nodes where none is named."""
        self._rule(nodes)

    def counts(self) -> dict[str, int]:
        """Frames `carried` and `lost` so far."""
        return self._tell({})

    def _rule(self, nodes: Sequence[str], delay_s: float = 0.0, loss: float = 0.0, for_s: float | None = None) -> None:
        rule = None if not delay_s and not loss else [delay_s, loss, for_s]
        self._tell({"nodes": [self.names.index(node) for node in nodes], "rule": rule})

    def _tell(self, command: dict) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, root_tap: int) -> None:
        hosts = [f"{self.addresses[name]} {name}\n" for name in self.names[1:]]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        taps = [root_tap]
        _remove_spaces({self.number})
        for index, name in enumerate(self.names):
            device, space = _device(self.number), _space(self.number, name)
            inside = []
            if index:
                device = f"{device}-{index}"
                taps.append(_tap(device))
                _ip(f"netns add {space}", f"link set {device} netns {space}")
                inside = ["-n", space]
            lines = [
                f"link set {device} address 02:00:00:00:{self.number:02x}:{index:02x} mtu {MTU} txqueuelen 5000",
                f"address add {self.addresses[name]}/24 dev {device}",
                f"link set {device} up",
            ]
            _ip(*lines, *(["link set lo up"] if index else []), options=inside)
        self.process = subprocess.Popen(
            [sys.executable, "-S", __file__, str(self.number), str(self.seed), *map(str, taps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=taps,
            start_new_session=True,
        )
        for tap in taps:
            os.close(tap)
        self.counts()

    def stop(self) -> None:
        """End what runs on the nodes, and the network."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@contextmanager
def network(names: Sequence[str], *, seed: int = 0) -> Iterator[Network]:
    """A network that is up for the length of the block; what dead ones left behind goes."""
    number, tap = _claim()
    with tempfile.TemporaryDirectory(prefix="aumn-network-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        found = Network(number, names, Path(folder), seed)
        found.start(tap)
        try:
            yield found
        finally:
            found.stop()


def _claim() -> tuple[int, int]:
    """A number that no other network on this machine has, held by its interface in the root namespace."""
    numbers = list(range(1, 255))
    random.shuffle(numbers)
    for number in numbers:
        with suppress(OSError):
            tap = _tap(_device(number))
            living = {name for _, name in socket.if_nameindex()}
            _remove_spaces({other for other in range(1, 255) if _device(other) not in living})
            return number, tap
    raise AssertionError("no network is free")


def _device(number: int) -> str:
    return f"aumn{number}"


def _space(number: int, name: str) -> str:
    return f"aumn{number}-{name}"


def _tap(name: str) -> int:
    """An interface that lasts as long as this file descriptor."""
    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    except OSError:
        os.close(tap)
        raise
    return tap


def _ip(*lines: str, options: Sequence[str] = ()) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=30)


def _remove_spaces(numbers: set[int]) -> None:
    """The namespaces of these networks, and what runs in them."""
    for space in Path("/run/netns").glob("aumn*-*"):
        if int(space.name.removeprefix("aumn").partition("-")[0]) in numbers:
            inside = subprocess.run(["ip", "netns", "pids", space.name], capture_output=True, text=True, check=False)
            for pid in inside.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space.name], capture_output=True, check=False)


class Switch:
    """Carries frames between the interfaces; one's place among `taps` is the last byte of its address.

    A rule, of a pair, is how late a frame comes, which share is lost, and until when the rule holds.
    """

    def __init__(self, taps: Sequence[int], seed: int) -> None:
        self.taps = taps
        self.rules: dict[tuple[int, int], tuple[float, float, float]] = {}
        self.late: list[tuple[float, int, int, bytes]] = []
        self.counts = {"carried": 0, "lost": 0}
        self.draw = random.Random(seed).random

    def run(self) -> None:
        """Until there is nobody left to give commands."""
        poll, places = select.epoll(), {tap: place for place, tap in enumerate(self.taps)}
        for file in (sys.stdin.fileno(), *self.taps):
            poll.register(file, select.EPOLLIN)
        while True:
            for file, _ in poll.poll(max(0.0, self.late[0][0] - time.monotonic()) if self.late else -1):
                if file in places:
                    self.empty(places[file])
                elif text := sys.stdin.readline():
                    self.obey(**json.loads(text))
                else:
                    return
            while self.late and self.late[0][0] <= time.monotonic():
                self.write(*heapq.heappop(self.late)[2:])

    def empty(self, source: int) -> None:
        for _ in range(BATCH):
            try:
                frame = os.read(self.taps[source], 65536)
            except OSError:
                return
            if frame[0] & 1:  # to all
                for target in range(len(self.taps)):
                    if target != source:
                        self.carry(source, target, frame)
            elif frame[5] < len(self.taps):
                self.carry(source, frame[5], frame)

    def carry(self, source: int, target: int, frame: bytes) -> None:
        delay_s, loss, until_s = self.rules.get((source, target), (0.0, 0.0, 0.0))
        holds = until_s and time.monotonic() < until_s
        if holds and self.draw() < loss:
            self.counts["lost"] += 1
        elif holds and delay_s:
            heapq.heappush(self.late, (time.monotonic() + delay_s, self.counts["carried"], target, frame))
            self.counts["carried"] += 1
        else:
            self.write(target, frame)

    def write(self, target: int, frame: bytes) -> None:
        self.counts["carried"] += 1
        with suppress(OSError):  # a full queue or an interface that is down: lost, as anywhere
            os.write(self.taps[target], frame)

    def obey(self, nodes: Sequence[int] | None = None, rule: Sequence[float | None] | None = None) -> None:
        places = range(len(self.taps))
        for pair in [(one, other) for one in places for other in places if nodes is not None]:
            if set(nodes or ()) <= set(pair):
                self.rules.pop(pair, None)
                if rule is not None:
                    delay_s, loss, for_s = rule
                    until_s = math.inf if for_s is None else time.monotonic() + for_s
                    self.rules[pair] = (delay_s or 0.0, loss or 0.0, until_s)
        print(json.dumps(self.counts), flush=True)


if __name__ == "__main__":
    Switch([int(tap) for tap in sys.argv[3:]], int(sys.argv[2])).run()
    _remove_spaces({int(sys.argv[1])})
