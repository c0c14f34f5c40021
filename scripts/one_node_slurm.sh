#!/usr/bin/env bash
# A SLURM of one node with two CPUs, for tests: everything of it lies in one folder, nothing of it is a service.
#   scripts/one_node_slurm.sh install        Debian's slurm-wlm and munge, if they are missing (root)
#   scripts/one_node_slurm.sh start FOLDER   start it; then: export SLURM_CONF=FOLDER/slurm.conf
#   scripts/one_node_slurm.sh stop FOLDER    end its jobs and its daemons
# Partition low (the default) can be preempted by partition high.
set -euo pipefail

install() {
    if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || {
            echo "one_node_slurm: slurm-wlm and munge are missing, and only root on Debian can install them here." >&2
            exit 3
        }
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
    fi
    [ "$(id -u)" = 0 ] || { echo "one_node_slurm: only root can start slurmd." >&2; exit 3; }
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    local folder host version
    folder=$(realpath -m "$1") host=$(hostname -s)
    mkdir -p "$folder"/{state,spool,munge}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Also how long a requeued job waits before it may start again.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=20
SchedulerParameters=sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    version=$(slurmd -V | grep -oE '[0-9]+' | head -1)
    # Newer ones insist on control groups unless told; older ones do not know the word.
    if [ "$version" -ge 23 ]; then echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"; fi
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd
    for _ in $(seq 60); do
        if sinfo --noheader --partition=low --format=%t 2>/dev/null | grep -q '^idle$'; then return; fi
        sleep 0.5
    done
    echo "one_node_slurm: the node did not come up; see $folder/slurmd.log and $folder/slurmctld.log" >&2
    stop "$folder"
    exit 1
}

stop() {
    local folder
    folder=$(realpath -m "$1")
    export SLURM_CONF="$folder/slurm.conf"
    scancel --user=root 2>/dev/null || true
    for _ in $(seq 50); do
        [ -z "$(squeue --noheader 2>/dev/null)" ] && break
        sleep 0.5
    done
    for file in slurmd.pid slurmctld.pid munge/pid; do
        [ -s "$folder/$file" ] && kill "$(cat "$folder/$file")" 2>/dev/null || true
    done
    # slurmctld removes its file when it has saved its state.
    for _ in $(seq 40); do
        [ -e "$folder/slurmctld.pid" ] || break
        sleep 0.25
    done
}

case "${1:-}" in
install) install ;;
start | stop) "$1" "${2:?say the folder}" ;;
*)
    sed -n '2,6s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
