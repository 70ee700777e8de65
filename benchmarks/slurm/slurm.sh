#!/usr/bin/env bash
# A Slurm of two nodes on this machine alone, for tests and for trying batch files. Needs root.
#
#     benchmarks/slurm/slurm.sh install        # Debian and Ubuntu: apt-get install slurm-wlm munge
#     eval "$(benchmarks/slurm/slurm.sh start)"  # prints `export SLURM_CONF=...`: with it sbatch, srun, squeue find this Slurm
#     benchmarks/slurm/slurm.sh stop           # ends its jobs and its daemons, and removes its files
#
# It runs in a container too: no systemd, no cgroups, no database of accounts (so `sacct` knows nothing). All of it lies in one
# folder ($FINETUNE_SLURM_STATE, or finetune-slurm in the folder of temporary files) and listens on ports 16817 to 16819; a Slurm that
# this machine belongs to is not touched. Both nodes are this machine, each with all its cores, so that jobs may share cores.
set -euo pipefail

state="${FINETUNE_SLURM_STATE:-${TMPDIR:-/tmp}/finetune-slurm}"
export SLURM_CONF="$state/slurm.conf"

install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge >&2
}

configure() {
    local host cores memory
    host="$(hostname -s)"
    cores="$(nproc)"
    memory="$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)"
    cat >"$SLURM_CONF" <<CONF
ClusterName=finetune
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$state/munge.socket
StateSaveLocation=$state/slurmctld
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/%n.log
# neither systemd nor cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
# a test does not wait: jobs start at once, and a requeued one soon
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=10
OverTimeLimit=0
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$cores RealMemory=$memory
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$cores RealMemory=$memory
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
}

start() {
    if [ -e "$SLURM_CONF" ] && scontrol ping 2>/dev/null | grep -q UP; then
        echo "it runs already" >&2
    else
        mkdir -p "$state/slurmctld" "$state/node1" "$state/node2"
        chmod 755 "$state"
        [ -e "$state/munge.key" ] || mungekey --create --keyfile="$state/munge.key"
        configure
        # --force: the folder of temporary files may be written to by all
        munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munge.pid" \
            --log-file="$state/munge.log" --seed-file="$state/munge.seed" 2>/dev/null
        slurmctld -f "$SLURM_CONF"
        slurmd -f "$SLURM_CONF" -N node1
        slurmd -f "$SLURM_CONF" -N node2
        for _ in $(seq 100); do
            [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ] && break
            sleep 0.1
        done
    fi
    sinfo >&2
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    [ -e "$SLURM_CONF" ] || return 0
    scancel --user=root 2>/dev/null || true
    for _ in $(seq 150); do
        [ -z "$(squeue --noheader 2>/dev/null)" ] && break
        sleep 0.1
    done
    local name
    for name in node1 node2 slurmctld munge; do
        [ -e "$state/$name.pid" ] && kill "$(cat "$state/$name.pid")" 2>/dev/null || true
    done
    for _ in $(seq 100); do
        ls "$state"/*.pid >/dev/null 2>&1 || break
        sleep 0.1
    done
    rm -rf "$state"
}

case "${1:-}" in
    install | start | stop) "$1" ;;
    *)
        sed -n '2,10p' "$0" >&2
        exit 2
        ;;
esac
