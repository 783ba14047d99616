#!/usr/bin/env bash
# torch 2.13.0. Tried 2026-11-30, Debian, CPython 3.11.
# A TCPStore is made with a timeout, and a call that waits for a key gets one; neither holds where the store's server is silent: stopped, as here, or
# behind a cut link, which TCP does not tell of for a quarter of an hour. add, check and compare_set have no limit at all. get and wait say on stderr
# that they "timed out after 2000ms", then cancel, and wait without a limit for the answer to that.
# Who must end in bounded time calls the store in a thread and leaves it behind.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
venv/bin/python - <<'END'
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore

LIMIT = timedelta(seconds=2)
SERVE = "import sys, time, torch.distributed as d; s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\nprint(s.port, flush=True); time.sleep(999)"
server = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
port = int(server.stdout.readline())
CALLS = {
    "get": lambda store: store.get("key"),
    "wait": lambda store: store.wait(["no such key"], LIMIT),
    "add": lambda store: store.add("number", 1),
    "check": lambda store: store.check(["key"]),
    "compare_set": lambda store: store.compare_set("key", "value", "other"),
}


def ends(call, store):
    """Seconds until the call returned or failed; None: not within five times its limit."""
    begin_s, done = time.monotonic(), threading.Event()

    def run():
        try:
            call(store)
        except Exception as error:
            print(f"    {error!r:.150}")
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return time.monotonic() - begin_s if done.wait(5 * LIMIT.total_seconds()) else None


stuck = []
for name, call in CALLS.items():
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=LIMIT)
    store.set("key", "value")
    if name == "wait":  # the limit holds where the server answers
        assert ends(call, store) < 4
    server.send_signal(signal.SIGSTOP)
    took_s = ends(call, store)
    print(f"{name}, limit {LIMIT.total_seconds():.0f} s, server silent:", "waits still" if took_s is None else f"{took_s:.1f} s", flush=True)
    stuck += [name] if took_s is None else []
    server.send_signal(signal.SIGCONT)
    time.sleep(1)
server.kill()
assert stuck == list(CALLS), f"only {stuck} wait without a limit now"
os._exit(0)  # threads wait in C
END
