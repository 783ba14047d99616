"""What a node says of itself before training: healthy, or in a line what is wrong, and never later than it may."""

import importlib
import os
import re
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from aumn.runtime import node_check
from aumn.runtime.ending import in_thread
from aumn.runtime.node_check import check_node
from tests.launching import aumn, succeed

CONNECT = socket.create_connection


def test_a_node_that_can_train_says_so_and_leaves_nothing_but_word_that_it_is_done(tmp_path):
    shown = succeed(aumn("doctor", "--node", tmp_path, SLURMD_NODENAME="n7", SLURM_JOB_NODELIST="n7"))
    assert shown.stdout == "aumn-node n7 healthy\n"
    assert os.listdir(tmp_path) == ["n7.done"]


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        ("TMPDIR", r"its own disk: .*No such file or directory.*/not/there.*"),
        ("shared", r"the shared files: .*No such file or directory.*"),
        ("product", r"its processor or GPU: a product of matrices is wrong"),
        ("GPUs", r"its processor or GPU: \d of 99 GPUs are visible"),
        ("hangs", r"its processor or GPU: no answer in 0 s"),
    ],
)
def test_a_node_that_cannot_says_what_is_wrong_and_does_not_wait_for_what_hangs(broken, wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[7-8]")
    shared = tmp_path / "not there" if broken == "shared" else tmp_path
    if broken == "TMPDIR":
        monkeypatch.setenv("TMPDIR", "/not/there")
    if broken == "GPUs":
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", "99")
    if broken == "product":
        monkeypatch.setattr(node_check.np, "array_equal", lambda *_: False)
    if broken == "hangs":
        monkeypatch.setattr(node_check, "PATIENCE_S", 0.4)
        monkeypatch.setattr(node_check, "_compute", lambda: time.sleep(30))
    name, why = check_node(shared)
    assert name == "n7"
    assert re.fullmatch(wrong, why), why


@pytest.mark.parametrize(
    ("cut", "wrong"),
    [
        ({}, {}),
        ({"n3"}, {"n3": r"the link to other nodes: n1: no route; n2: no route"}),
        ({"n1"}, {"n1": r"the link to other nodes: n2: no route; n3: no route"}),
    ],
)
def test_only_the_node_whose_link_is_cut_is_to_blame(cut, wrong, tmp_path, monkeypatch):
    def connect(here, place, timeout):
        if {here, place[0]} & set(cut):
            raise OSError("no route")
        return CONNECT(("127.0.0.1", place[1]), timeout=timeout)

    nodes = ["n1", "n2", "n3", "n4"]
    for node in nodes[:3]:
        in_thread(partial(node_check._serve, tmp_path / f"{node}.port"))
    for node in nodes:
        monkeypatch.setattr(node_check.socket, "create_connection", partial(connect, node))
        found = in_thread(partial(node_check._reach, tmp_path, [hub for hub in nodes[:3] if hub != node]))
        why = node_check._wait(found, time.monotonic() + 20)
        assert (f"the link to other nodes: {why}" if why else None) == wrong.get(node)


def test_a_link_that_is_slow_is_as_good_as_none(tmp_path, monkeypatch):
    in_thread(partial(node_check._serve, tmp_path / "n1.port"))
    monkeypatch.setattr(
        node_check.socket, "create_connection", lambda place, timeout: CONNECT(("127.0.0.1", place[1]), timeout=timeout)
    )
    monkeypatch.setattr(node_check, "LINK_S", 1e-6)
    with pytest.raises(OSError, match=r"n1: \d+\.\d MB/s, where 16777216 are the least"):
        node_check._reach(tmp_path, ["n1"])


def test_many_nodes_that_send_to_one_at_once_are_not_slow_for_that(tmp_path, monkeypatch):
    """A hub has one link: forty at once get a fortieth of it each, less than a node's least.

    The clock is the link's: it goes on with the bytes that pass, and not while this machine is busy with other things.
    """
    receive, lock, passed = socket.socket.recv, threading.Lock(), [0]

    def shared_link(self, most, *rest):
        got = receive(self, min(most, 2**16), *rest)
        with lock:
            passed[0] += len(got)
        return got

    monkeypatch.setattr(node_check.socket.socket, "recv", shared_link)
    monkeypatch.setattr(node_check, "LINK_BYTES", 2**18)
    monkeypatch.setattr(node_check, "LINK_S", 15 * 2**18)  # of which four at once need four, and forty forty
    monkeypatch.setattr(
        node_check.socket, "create_connection", lambda place, timeout: CONNECT(("127.0.0.1", place[1]), timeout=timeout)
    )
    in_thread(partial(node_check._serve, tmp_path / "n1.port"))
    monkeypatch.setattr(node_check, "time", SimpleNamespace(monotonic=lambda: passed[0], sleep=time.sleep))
    sent = [in_thread(partial(node_check._send, "n1", tmp_path / "n1.port")) for _ in range(40)]
    for one in sent:
        one.result(60)


def test_the_clock_of_a_node_begins_when_torch_is_imported(tmp_path, monkeypatch):
    """From a file system that is cold that takes longer than any look may."""
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n7")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "99")
    monkeypatch.setattr(node_check, "PATIENCE_S", 3.0)
    monkeypatch.setattr(node_check, "import_module", lambda name: time.sleep(3.2) or importlib.import_module(name))
    assert re.fullmatch(r"its processor or GPU: \d of 99 GPUs are visible", check_node(tmp_path)[1])
