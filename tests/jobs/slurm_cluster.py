"""A real SLURM of a few nodes on this machine, for tests and for trying things out; Debian, as root.

    python -m tests.jobs.slurm_cluster           # prints the line that makes a shell use it; Ctrl-C ends it

`make install-slurm` installs it. No systemd, cgroups or accounts are needed. The nodes are on the loopback, each one's
name in /etc/hosts while the cluster is up, so that ranks can find each other; or on a `network`, each with an address
and a host name of its own, so that links can be cut.
"""

import argparse
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from tests.network import ROOT, Network, network

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
HOSTS = Path("/etc/hosts")
CGROUPS = Path("/sys/fs/cgroup")
"""Where version 1 is mounted and may be written, processes are tracked by it, as clusters do; else by their parents."""
MARK = "# aumn's test cluster"
CONFIGURATION = """
ClusterName=aumn
SlurmctldHost={host}({address})
SlurmctldPort={port}
# The ranks' port is made of the job's number: this range is below those that the system hands out, to daemons too, and
# another cluster on this machine counts from elsewhere.
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# Credentials that expire soon let a requeued job start again after seconds rather than two minutes.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
KillWait=30
SlurmctldTimeout=10
SlurmdTimeout=5
MessageTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-{nodes}] PriorityTier=2 PreemptMode=OFF State=UP
"""


class Cluster:
    """A running cluster; its nodes are n1, n2, ..."""

    def __init__(self, folder: Path, nodes: int, network: Network | None = None, settings: str = "") -> None:
        self.folder, self.network, self.settings = folder, network, settings
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}
        self.has_cgroups = os.access(CGROUPS / "freezer", os.W_OK) and any(
            Path("/usr/lib").rglob("proctrack_cgroup.so")
        )

    def run(self, *argv: object, timeout_s: float = 30) -> str:
        """A client command's output; it must succeed."""
        done = subprocess.run(
            [*map(str, argv)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def lose(self, node: str) -> None:
        """Kill -9 everything on a node, as a power cut would."""
        mine = [(pid, parent) for pid, parent in self._processes_of(node)]
        for pid in (self.daemons[node].pid, *{parent for _, parent in mine}, *(pid for pid, _ in mine)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons.pop(node).wait(10)

    def kill_tasks(self, node: str) -> None:
        """Kill -9 what jobs run on a node, which stays."""
        for pid, _ in list(self._processes_of(node)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def is_held_with(self, number: signal.Signals, node: str) -> bool:
        """Whether what jobs run on a node is stopped, and has this signal waiting for it."""
        waiting = [0]
        for pid, _ in self._processes_of(node):
            with suppress(OSError):
                facts = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                if facts["State"].startswith("T"):
                    waiting.append(int(facts["ShdPnd"], 16))
        return all(signals >> (number - 1) & 1 for signals in waiting[1:] or waiting)

    def has_tasks(self, node: str) -> bool:
        """Whether a job has a process on a node."""
        return any(self._processes_of(node))

    def start_node(self, node: str, prefix: Sequence[str] = ()) -> None:
        """Start a node, first or again after `lose`; behind e.g. `taskset -c 0`, it shares a core with a load there."""
        command = [*prefix, "slurmd", "-D", "-N", node]
        self._start(node, *(self.network.at(node, *command) if self.network else command))

    def _processes_of(self, node: str) -> Iterator[tuple[int, int]]:
        """What jobs run on a node, each with the daemon that holds it."""
        wanted = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                    parent = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
                    name = Path(f"/proc/{parent}/comm").read_text()
                    yield int(process.name), parent if name.startswith("slurmstepd") else int(process.name)

    def start(self) -> None:
        for name in ("state", "munge"):
            (self.folder / name).mkdir(mode=0o711)
        ports = _free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            address=self._address(ROOT),
            port=ports[0],
            first_job=20_000 + ports[0] % 12_000,
            folder=self.folder,
            nodes=len(self.nodes),
            proctrack="cgroup" if self.has_cgroups else "linuxproc",
        )
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={CGROUPS}\n")
        text += "".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={self._address(node)} Port={port} CPUs=2 RealMemory=4000 "
            "State=UNKNOWN\n"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        if self.network is None:  # else the controller would listen at the address that this machine's name has
            text += "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n"
        (self.folder / "slurm.conf").write_text(text + self.settings)
        self._start_munge()
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in self.nodes:
            self.start_node(node)
        self.wait_until(lambda: self._idle_nodes() == len(self.nodes), "idle nodes")

    def stop(self) -> None:
        """Cancel what runs, and end what `start` started."""
        with suppress(subprocess.TimeoutExpired, AssertionError):
            self.run("scancel", "--user", getpass.getuser())
            self.wait_until(lambda: not self.run("squeue", "-h"), "an empty queue", timeout_s=15)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def wait_until(self, happened: Callable[[], object], what: str, *, timeout_s: float = 60) -> None:
        """Poll; says what the daemons said where it does not happen."""
        deadline_s = time.monotonic() + timeout_s
        while not happened():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            assert not dead, f"{dead} ended:\n{self._logs()}"
            assert time.monotonic() < deadline_s, f"no {what} in {timeout_s} s:\n{self._logs()}"
            time.sleep(0.1)

    def _idle_nodes(self) -> int:
        with suppress(AssertionError):
            return len(set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()))
        return 0

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        files = ("key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed")
        options = [f"--{name}={folder / file}" for name, file in (text.split("=") for text in files)]
        self._start("munged", "munged", "--foreground", "--force", "--num-threads=2", *options)
        self.wait_until((folder / "socket").exists, "munge socket")

    def _address(self, node: str) -> str:
        return self.network.addresses[node] if self.network else "127.0.0.1"

    def _start(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                argv,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _logs(self) -> str:
        files = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-500:]}" for file in files)


@contextmanager
def cluster(nodes: int = 4, net: Network | None = None, settings: str = "") -> Iterator[Cluster]:
    """A cluster that is up for the length of the block; its controller is on the network's root.

    `settings` are more lines of slurm.conf, or others than those here.
    """
    known = nullcontext() if net else _known_hosts(nodes)
    with tempfile.TemporaryDirectory(prefix="aumn-slurm-", ignore_cleanup_errors=True) as folder, known:
        Path(folder).chmod(0o755)
        found = Cluster(Path(folder), nodes, net, settings)
        try:
            found.start()
            yield found
        finally:
            found.stop()


@contextmanager
def _known_hosts(nodes: int) -> Iterator[None]:
    """The nodes' names in /etc/hosts, and out of it again, and what killed runs left there too."""
    lines = [f"127.0.0.{10 + number} n{number} {MARK} {os.getpid()}" for number in range(1, nodes + 1)]
    _write_hosts(lines)
    try:
        yield
    finally:
        _write_hosts([])


def _write_hosts(ours: list[str]) -> None:
    others = [line for line in HOSTS.read_text().splitlines() if not _is_left_over(line)]
    HOSTS.write_text("\n".join([*others, *ours]) + "\n")  # in place: in a container it is a mount, which none replaces


def _is_left_over(line: str) -> bool:
    _, mark, pid = line.partition(MARK)
    return bool(mark) and (int(pid) == os.getpid() or not Path(f"/proc/{pid.strip()}").exists())


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.jobs.slurm_cluster")
    parser.add_argument("nodes", type=int, nargs="?", default=4)
    parser.add_argument(
        "--network", action="store_true", help="addresses of their own; slurm/README.md has the commands"
    )
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    names = [f"n{number}" for number in range(1, options.nodes + 1)]
    with network(names) if options.network else nullcontext() as net, cluster(options.nodes, net) as started:
        print(f"export SLURM_CONF={started.environment['SLURM_CONF']}", flush=True)
        while net is not None and (line := sys.stdin.readline()):
            try:
                _obey(net, *line.split())
            except (ValueError, KeyError) as error:
                print(f"not understood: {error}", flush=True)
        signal.pause()


def _obey(net: Network, command: str, *words: str) -> None:
    nodes = [word for word in words if word in net.names]
    number = next((float(word) for word in words if word not in net.names), None)
    if command == "cut":
        net.cut(*nodes, for_s=number)
    elif command in {"slow", "lose"}:
        net.slow(*nodes, **{"delay_s" if command == "slow" else "loss": number or 0.0})
    elif command == "restore":
        net.restore(*nodes)
    else:
        raise ValueError(command)


if __name__ == "__main__":
    main()
