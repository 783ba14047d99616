"""Signals to real processes: what ends when, with which exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import aumn, succeed
from tests.running import start

PROGRAM = """
import sys, threading, time
from aumn.runtime import preemption
from aumn.records import Stopped
preemption.listen()
def asked(timeout_s=30):
    while not preemption.asked():
        time.sleep(0.01)
try:
    %s
except Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.code)
"""
ANYWHERE = "print('ready', flush=True); time.sleep(60)"
STEP = "with preemption.finish_first(): print('ready', flush=True); asked(); print('saved', flush=True)"
LONG_STEP = "with preemption.finish_first(): print('ready', flush=True); time.sleep(60); time.sleep(60)"
IN_C = """
    from torch.distributed import TCPStore
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    print('ready', flush=True)
    store.wait(['never'])"""

SLOW_STEP = """
    preemption.STUCK_S = 0.2
    try:
        with preemption.finish_first(): print('ready', flush=True); asked(); time.sleep(1)
    finally:
        time.sleep(1)
        print('noted', flush=True)"""

STUCK_STEP = f"""
    with preemption.finish_first('the last checkpoint is whole'):
        preemption.finish_by(time.monotonic() + 2)
        {IN_C.strip().replace("    ", "        ")}
        while True: time.sleep(1)"""


def run(body: str, *signals: tuple[float, int]) -> subprocess.CompletedProcess[str]:
    """Signal a program, so many seconds after it is ready or after the signal before."""
    with start("-W", "ignore", "-c", PROGRAM % body) as program:
        program.wait_for("ready")
        for after_s, number in signals:
            time.sleep(after_s)
            program.kill(number)
        return program.finish()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str
)
@pytest.mark.parametrize("body", [ANYWHERE, STEP], ids=["anywhere", "step"])
def test_one_signal_stops_at_once_or_after_the_step(number, code, body):
    ended = run(body, (0, number))
    assert ended.returncode == code
    assert ended.stderr.count("saved") == (body is STEP)
    assert f"Stopped by {number.name}: nothing is half-written; run the same command again (exit code {code})." in (
        ended.stderr
    )


def test_a_second_signal_ends_at_once_and_an_echo_of_the_first_does_not():
    assert run(LONG_STEP, (0, signal.SIGUSR1), (1.2, signal.SIGTERM)).returncode == 128 + signal.SIGTERM
    assert run(STEP, (0, signal.SIGTERM), (0, signal.SIGTERM)).returncode == 75


def test_a_process_that_waits_in_c_for_another_one_ends_too():
    begin_s = time.monotonic()
    ended = run(IN_C, (0, signal.SIGTERM))
    assert ended.returncode == 75
    assert "Stopped by SIGTERM" in ended.stderr
    assert time.monotonic() - begin_s < 40


@pytest.mark.parametrize("waits", ["store.wait(['never'])", "pass"], ids=["in C", "in Python"])
def test_a_step_that_waits_in_vain_ends_once_asked(waits):
    """Also where Python has heard of the signal, and the step has waited for others since."""
    begin_s = time.monotonic()
    ended = run(STUCK_STEP.replace("store.wait(['never'])", waits), (0, 15))
    assert ended.returncode == 75
    assert "Stopped by SIGTERM: the last checkpoint is whole (exit code 75)." in ended.stderr
    assert 2 < time.monotonic() - begin_s < 20


def test_a_block_that_takes_long_though_asked_ends_by_itself_and_so_does_what_comes_behind_it():
    """As a step and its checkpoint, and then the run's status."""
    ended = run(SLOW_STEP, (0, 15))
    assert (ended.returncode, ended.stderr.count("noted"), ended.stderr.count("Stopped")) == (75, 1, 1)


def test_what_is_ignored_stays_ignored():
    """As under nohup, or in the background of a script."""
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); exec({PROGRAM % STEP!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.5)
        program.terminate()
        assert program.wait(30) == 75


LAUNCHER = """
import os, subprocess, sys
os.environ['TORCHELASTIC_RUN_ID'] = 'x'
child = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', sys.argv[1]])
print('child', child.pid, flush=True)
child.wait()
"""
ORPHAN = """
    from aumn.runtime.attempts import end_with_launcher
    end_with_launcher(os.environ)
    with preemption.finish_first():
        print('ready', flush=True)
        time.sleep(4)
        print('saved', flush=True)"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_rank_outlives_its_launcher_only_to_do_what_it_was_asked(asked):
    """SIGUSR1 to every process of a SLURM step ends torchrun at once; its ranks may still save."""
    with start("-c", LAUNCHER, (PROGRAM % ORPHAN).replace("import sys,", "import os, sys,")) as launcher:
        child = int(launcher.wait_for(r"child (\d+)")[1])
        launcher.wait_for("ready")
        if asked:
            os.kill(child, signal.SIGUSR1)
        launcher.kill(signal.SIGUSR1 if asked else signal.SIGKILL)
        begin_s = time.monotonic()
        while Path(f"/proc/{child}").exists():
            assert time.monotonic() - begin_s < 20
            time.sleep(0.05)
        assert ("saved" in launcher.output) == ("exit code 75" in launcher.output) == asked, launcher.output


def test_packing_that_was_stopped_goes_on_and_ends_in_the_same_bytes(tmp_path):
    succeed(aumn("synth", "features", "--videos", 200, "--classes", 3, "--width", 512, "--snippets", 100, cwd=tmp_path))
    pack = ["pack", "features", "--annotations", "features/gt.json", "--name", "set", "--shard-mb", 2, "--workers", 2]
    succeed(aumn(*pack, "whole", cwd=tmp_path))
    with start("-m", "aumn", *pack, "stopped", cwd=tmp_path) as packing:
        packing.wait_until(lambda: list(tmp_path.glob("stopped.partial/progress/*.json")), what="a finished shard")
        packing.kill(signal.SIGTERM)
        asked_s = time.monotonic()
        ended = packing.finish()
        took_s = time.monotonic() - asked_s
    assert ended.returncode == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "stopped").exists()
    assert took_s < 10
    again = succeed(aumn(*pack, "stopped", cwd=tmp_path))
    assert "of the shards were finished by an earlier run" in again.stdout
    whole, stopped = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_a_command_that_is_starting_ends_too(tmp_path):
    with start("-m", "aumn", "localize", "model", "shards", "--subset", "x", "--out", "y", cwd=tmp_path) as command:
        maps = Path(f"/proc/{command.process.pid}/maps")
        command.wait_until(lambda: "libtorch" in maps.read_text(), what="import of torch")
        command.kill(signal.SIGTERM)
        ended = command.finish()
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.startswith("aumn: Stopped by SIGTERM: nothing is half-written")
    assert not list(tmp_path.iterdir())
