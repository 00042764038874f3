#!/usr/bin/env bash
# SLURM on this one machine, for tests and for trying the profile: not a cluster, and not for other people's jobs.
# As root:  single_node.sh install   munge and slurm-wlm from Debian or Ubuntu
#           single_node.sh start     writes the configuration, starts the daemons, waits until the node is idle
#           single_node.sh stop      cancels every job, stops what start started, removes the configuration
# A SLURM that start has not configured is left alone.
set -euo pipefail

MARK="# written by covidlib's workflow/cluster/single_node.sh"
CONF=/etc/slurm/slurm.conf # its default place; jobs do not see SLURM_CONF
GRES=/etc/slurm/gres.conf
STATE=/var/lib/covidlib-slurm
RUN=/run/covidlib-slurm
MUNGE=/run/munge/munge.socket.2

fail() {
  echo "single_node.sh: $*" >&2
  exit 1
}

refuse_others() {
  [ "$(id -u)" = 0 ] || fail "SLURM's daemons need root. Received: user $(id -un)"
  for file in "$CONF" "$GRES"; do
    if [ -e "$file" ] && ! grep -qxF "$MARK" "$file"; then
      fail "$file belongs to another SLURM, which stays as it is; use that one, or another machine"
    fi
  done
}

install() {
  [ "$(id -u)" = 0 ] || fail "installing needs root. Received: user $(id -un)"
  command -v apt-get >/dev/null || fail "only Debian and Ubuntu are known here; install munge and SLURM by hand"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends munge slurm-wlm ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends munge slurm-wlm; }
}

configure() {
  local node cpus memory
  node=$(hostname -s)
  cpus=$(nproc)
  memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p /etc/slurm "$STATE/ctld" "$STATE/d" "$RUN"
  cat >"$CONF" <<CONF
$MARK
ClusterName=covidlib
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=defer,batch_sched_delay=1,sched_interval=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
KillWait=10
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
  # Two devices that every machine has: jobs that ask for a GPU are let in where there is none.
  printf '%s\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n' "$MARK" >"$GRES"
}

alive() { # PID_FILE NAME
  [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]
}

halt() { # PID_FILE NAME
  local pid
  alive "$1" "$2" || return 0
  pid=$(cat "$1")
  kill "$pid"
  for _ in $(seq 30); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 1
  done
  fail "$2 (process $pid) did not end within 30 seconds"
}

start() {
  refuse_others
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || fail "$program is not installed: single_node.sh install"
  done
  if alive "$RUN/slurmctld.pid" slurmctld && alive "$RUN/slurmd.pid" slurmd; then
    sinfo
    return
  fi
  for program in slurmctld slurmd; do
    if pgrep -x "$program" >/dev/null && ! alive "$RUN/$program.pid" "$program"; then
      fail "a $program runs here that this script has not started; it stays as it is"
    fi
  done
  configure
  if ! munge -n >/dev/null 2>&1; then
    mkdir -p /run/munge && chown munge:munge /run/munge
    [ -s /etc/munge/munge.key ] || runuser -u munge -- mungekey --create
    runuser -u munge -- munged --pid-file=/run/munge/covidlib.pid || fail "munged did not start"
  fi
  alive "$RUN/slurmctld.pid" slurmctld || slurmctld -c || fail "slurmctld did not start: $STATE/slurmctld.log"
  alive "$RUN/slurmd.pid" slurmd || slurmd -c || fail "slurmd did not start: $STATE/slurmd.log"
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
      sinfo
      return
    fi
    sleep 1
  done
  sinfo --Node --long >&2 || true
  fail "the node was not idle within a minute: $STATE/slurmctld.log, $STATE/slurmd.log"
}

empty_queue() { # or jobs would outlive the daemons, and nobody would know of them
  local queued
  for _ in $(seq 60); do
    queued=$(squeue --noheader --format=%A) || fail "slurmctld does not answer: $STATE/slurmctld.log"
    [ -n "$queued" ] || return 0
    echo "$queued" | xargs scancel --quiet || true # one that has ended since is an error
    sleep 1
  done
  fail "jobs did not end within a minute of scancel; SLURM is left running. Received: squeue=${queued//$'\n'/ }"
}

stop() {
  refuse_others
  if [ ! -e "$CONF" ]; then
    return
  fi
  if alive "$RUN/slurmctld.pid" slurmctld; then
    empty_queue
  fi
  halt "$RUN/slurmd.pid" slurmd
  halt "$RUN/slurmctld.pid" slurmctld
  halt /run/munge/covidlib.pid munged
  rm -rf "$CONF" "$GRES" "$STATE" "$RUN"
}

case "${1:-}" in
install | start | stop) "$1" ;;
*) fail "usage: single_node.sh install|start|stop. Received: ${1:-nothing}" ;;
esac
