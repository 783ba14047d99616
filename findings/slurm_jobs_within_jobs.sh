#!/usr/bin/env bash
# SLURM 22.05.8 (Debian's slurmctld and slurmd), as root. Tried 2026-11-30. It starts a cluster of three nodes on this machine's loopback.
# 1. A job that is submitted from inside a task of an array, an ordinary job without --array, runs with SLURM_ARRAY_JOB_ID and SLURM_ARRAY_TASK_ID of the
#    task that submitted it: sbatch hands its environment on, and SLURM sets of these only what the new job has itself. A batch script that requeues
#    ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} restarts another job.
# 2. Where one node of a step is dead and SLURM has not noticed, srun ends the tasks on the healthy nodes too as soon as it cannot launch that one, some
#    ten seconds later, with --kill-on-bad-exit=0 as well; code 233. Who asks each node for something starts a step a node.
# 3. scontrol update ExcNodeList is refused for a job that runs, and taken as soon as it has been requeued.
set -euo pipefail
type slurmctld slurmd munged > /dev/null 2>&1 ||
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } > /dev/null
place=$(mktemp -d); chmod 755 "$place"; cd "$place"; mkdir -m 711 state munge
cp /etc/hosts hosts.before
end() {
  scancel --user=root 2> /dev/null || true
  sleep 1
  kill $(jobs -p) 2> /dev/null || true
  wait 2> /dev/null || true
  cat hosts.before > /etc/hosts; cd /; rm -rf "$place"
}
trap end EXIT
for n in 1 2 3; do echo "127.0.0.$((20 + n)) f$n" >> /etc/hosts; done
head -c 1024 /dev/urandom > munge/key; chmod 600 munge/key
munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/socket" --pid-file="$place/munge/pid" \
  --log-file="$place/munge/log" --seed-file="$place/munge/seed" > /dev/null 2>&1 &
ports=($(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))'))
cat > slurm.conf << END
ClusterName=find
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$place/munge/socket,cred_expire=5
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool-%n
SlurmctldPidFile=$place/ctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/ctld.log
SlurmdLogFile=$place/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
SlurmdTimeout=300
MessageTimeout=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PartitionName=main Nodes=f[1-3] Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
NodeName=f1 NodeHostname=f1 NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=2 RealMemory=1000
NodeName=f2 NodeHostname=f2 NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=2 RealMemory=1000
NodeName=f3 NodeHostname=f3 NodeAddr=127.0.0.1 Port=${ports[3]} CPUs=2 RealMemory=1000
END
export SLURM_CONF=$place/slurm.conf
until [[ -S munge/socket ]]; do sleep 0.1; done
slurmctld -D -i > /dev/null 2>&1 &
for n in 1 2 3; do slurmd -D -N f$n > /dev/null 2>&1 & slurmd[n]=$!; done
await() { for _ in $(seq 600); do if eval "$1" > /dev/null 2>&1; then return; fi; sleep 0.1; done; echo "not in a minute: $1"; exit 1; }
await '[[ $(sinfo -h -t idle -o %D) == 3 ]]'
slurmctld -V

printf '#!/bin/bash\nenv | grep -E "^SLURM_(JOB_ID|ARRAY_JOB_ID|ARRAY_TASK_ID)=" | sort > inner.out\n' > inner
printf '#!/bin/bash\nsbatch --parsable inner > inner.job\n' > outer
sbatch --parsable --array=7 outer > outer.job
await '[[ -s inner.out ]]'
echo "1. job $(cat inner.job), no array, submitted by task 7 of the array $(cat outer.job), has:"; cat inner.out
grep -q "^SLURM_ARRAY_TASK_ID=7$" inner.out
grep -q "^SLURM_ARRAY_JOB_ID=$(cat outer.job)$" inner.out

printf '#!/bin/bash\nsrun --kill-on-bad-exit=0 --wait=0 -N3 -n3 bash -c "sleep 30; echo \\$SLURMD_NODENAME >> all.out"; echo $? > code.out\n' > step
printf '#!/bin/bash\nuntil [[ -e dead ]]; do sleep 0.2; done\n. ./step\n' > waits
sbatch --parsable -N3 waits > waits.job
await '[[ $(squeue -h -j $(cat waits.job) -o %T) == RUNNING ]]'
disown "${slurmd[3]}"; kill -9 "${slurmd[3]}"; touch dead
await '[[ -s code.out ]]'
echo "2. a step on three nodes, one dead: srun's code $(cat code.out), nodes that got to their end: $(cat all.out 2> /dev/null || echo none)"
[[ $(cat code.out) != 0 && ! -s all.out ]]
scancel "$(cat waits.job)"

printf '#!/bin/bash\nsleep 60\n' > long
sbatch --parsable -N1 --requeue long > long.job
await '[[ $(squeue -h -j $(cat long.job) -o %T) == RUNNING ]]'
if told=$(scontrol update JobId="$(cat long.job)" ExcNodeList=f2 2>&1); then echo "3. taken of a running job"; exit 1; fi
echo "3. of a running job: $told"
scontrol requeue "$(cat long.job)"
scontrol update JobId="$(cat long.job)" ExcNodeList=f2
scontrol show job "$(cat long.job)" | grep -o "ExcNodeList=[^ ]*"
