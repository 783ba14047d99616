"""A small srun with slurm/train.sbatch's mind: two ranks on two nodes of a network, again on two that answer.

AUMN_TEST_NETWORK="NUMBER FOLDER" python -m tests.faults.two_nodes -m aumn train ...
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.network import Network

NODES = ("n1", "n2", "n3")
NETWORK = "AUMN_TEST_NETWORK"

MOST_STARTS = 4
WAIT_S = 30.0
"""How long the second rank may take to end behind the first one; srun's --wait."""
ANSWER_S, TRIES = 1.0, 8
FINAL = (0, 2, 75, 130)
"""Codes behind which nothing is started again: done, a user's mistake, asked to stop."""


def main() -> int:
    number, folder = os.environ[NETWORK].split(" ", 1)
    net, asked, arguments = Network(int(number), NODES, Path(folder), 0), [], sys.argv[1:]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, _frame: object) -> None:
        asked.append(signum)
        for rank in ranks:
            rank.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(signum, pass_on)
    code = 1
    for start in range(MOST_STARTS):
        nodes = [node for node in NODES if _answers(net.addresses[node])][:2]
        print(f"two nodes: start {start} on {nodes}", flush=True)
        if len(nodes) < 2:
            break
        ranks[:] = [_rank(net, nodes, rank, start, arguments) for rank in range(2)]
        code = _wait(ranks)
        print(f"two nodes: exit codes {[rank.returncode for rank in ranks]}", flush=True)
        if code in FINAL or asked:
            break
    return code


def _rank(net: Network, nodes: list[str], rank: int, start: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {"SLURM_PROCID": rank, "SLURM_NTASKS": 2, "SLURM_LOCALID": 0, "SLURM_STEP_ID": start}
    environment |= {"SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NODELIST": ",".join(nodes), "SLURM_RESTART_COUNT": start}
    environment |= {"SLURMD_NODENAME": nodes[rank]}
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(net.at(nodes[rank], sys.executable, *arguments), env=variables)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """A final code where a rank had one, else the highest, of a signal too; ranks that come too late are killed."""
    ended_s: float | None = None
    while any(rank.poll() is None for rank in ranks):
        if ended_s is None and any(rank.returncode is not None for rank in ranks):
            ended_s = time.monotonic()
        if ended_s is not None and time.monotonic() - ended_s > WAIT_S:
            for rank in ranks:
                rank.kill()
        time.sleep(0.02)
    codes = [rank.returncode if rank.returncode >= 0 else 128 - rank.returncode for rank in ranks]
    return next((code for code in codes if code in FINAL and code), max(codes))


def _answers(address: str) -> bool:
    """Whether the node's system refuses a connection, rather than say nothing."""
    for _ in range(TRIES):
        try:
            socket.create_connection((address, 9), ANSWER_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            continue
    return False


if __name__ == "__main__":
    sys.exit(main())
