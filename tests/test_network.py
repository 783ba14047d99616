"""The tests' network does to frames what it says, and leaves nothing behind; see `network`."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.network import network, require

ECHO = """
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("", 5000))
while True:
    echo.sendto(*echo.recvfrom(2000))
"""
ASK = """
import socket, sys
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(1)
ask.sendto(b"x", (sys.argv[1], 5000))
print(ask.recv(10), socket.gethostname(), socket.gethostbyname(sys.argv[1]))
"""


@pytest.fixture(scope="module", autouse=True)
def net():
    require()
    with network(["n1", "n2"]) as found:
        echo = subprocess.Popen(found.at("n1", sys.executable, "-c", ECHO))
        wait_until(lambda: answers(found, 1))
        yield found
    assert echo.wait(5) == -signal.SIGKILL


def wait_until(happened) -> None:
    deadline_s = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def answers(net, count: int, *, wait_s: float = 0.1) -> list[float]:
    """When each of so many datagrams to n1, sent at once, came back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        ask.settimeout(wait_s)
        begun_s, found = time.monotonic(), []
        for number in range(count):
            ask.sendto(bytes([number]), (net.addresses["n1"], 5000))
        try:
            for _ in range(count):
                ask.recv(10)
                found.append(time.monotonic() - begun_s)
        except TimeoutError:
            pass
        return found


@pytest.mark.parametrize(
    ("fault", "least", "most", "at_s"),
    [
        (lambda net: net.restore(), 100, 100, 0.0),
        (lambda net: net.slow("n1", delay_s=0.2), 100, 100, 0.4),
        (lambda net: net.slow("n1", loss=0.3), 30, 70, 0.0),  # 49 in the mean: both ways
        (lambda net: net.cut("n1"), 0, 0, 0.0),
        (lambda net: net.cut("n2"), 100, 100, 0.0),
        (lambda net: net.cut("n1", "n2"), 100, 100, 0.0),
        (lambda net: net.cut("root", "n1"), 0, 0, 0.0),
    ],
)
def test_frames_come_late_or_not_at_all(net, fault, least, most, at_s):
    fault(net)
    try:
        found = answers(net, 100, wait_s=5 if least == 100 else 0.5)  # the machine may be busy
        assert least <= len(found) <= most
        assert all(at_s <= late_s for late_s in found)
    finally:
        net.restore()
    wait_until(lambda: answers(net, 1))


def test_a_cut_ends_by_itself(net):
    begun_s = time.monotonic()
    net.cut("n1", for_s=0.8)
    assert not answers(net, 1)
    wait_until(lambda: answers(net, 1))
    assert time.monotonic() - begun_s > 0.8


def test_a_node_has_its_own_name_and_clock_and_knows_the_others(net):
    ahead = net.at("n2", sys.executable, "-c", f"import time; print(time.monotonic())\n{ASK}", "n1", clock_s=10**6)
    clock_s, said = subprocess.run(ahead, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    assert float(clock_s) > time.monotonic() + 10**6 - 1
    assert said == f"b'x' n2 {net.addresses['n1']}"


CHILD = """
import os, subprocess, sys, time
from tests.network import network
with network(["n1"]) as net:
    subprocess.Popen(net.at("n1", "sleep", "1000"))
    print(net.number, net.process.pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("with_its_switch", [False, True])
def test_what_a_killed_one_left_goes(with_its_switch):
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        number, pid = map(int, child.stdout.readline().split())
        space = Path(f"/run/netns/aumn{number}-n1")
        assert space.exists()
        if with_its_switch:
            os.kill(pid, signal.SIGKILL)
        child.kill()
    if with_its_switch:
        wait_until(lambda: f"aumn{number}" not in dict(map(reversed, socket.if_nameindex())))
        with network(["n1"]):
            pass
    wait_until(lambda: not space.exists())
