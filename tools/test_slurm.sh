#!/usr/bin/env bash
# Run a command, or the tests of Slurm, in a Slurm cluster that exists on this machine's
# loopback only and ends with the command, or with this script however it ends.
set -euo pipefail

PATH=${PATH}:/usr/sbin:/sbin  # daemons; not in a user's PATH on Debian
help_message="Usage: tools/test_slurm.sh [COMMAND [ARGUMENT …]]
Starts munged, slurmctld and slurmd with their own ports and temporary folder, as this user,
without systemd and cgroups, and runs the command with SLURM_CONF set. The nodes n1 and n2
claim four CPUs and 100 GB, n1 also two GPUs, which do not exist; the partition down has no
node that works.
  tools/test_slurm.sh        runs test/recipes/test_slurm_cluster.py, which starts its cluster
  tools/test_slurm.sh bash   gives a shell in which sbatch, squeue, … use the cluster"

fail() {
    echo "test_slurm.sh: error: $*" >&2
    exit 1
}
case ${1:-} in
    --help | -h) echo "${help_message}"; exit 0 ;;
    -*) fail "unknown option '$1'; see --help" ;;
esac
missing=()
for name in munged mungekey slurmctld slurmd sbatch scancel scontrol sinfo squeue; do
    command -v "${name}" > /dev/null || missing+=("${name}")
done
[ ${#missing[@]} -eq 0 ] || fail "not installed: ${missing[*]}; apt-get install slurm-wlm munge"
if [ $# -eq 0 ]; then
    cd "$(dirname "$0")/.."
    exec python3 -m pytest -q test/recipes/test_slurm_cluster.py
fi

end_cluster() { # <folder>: end its jobs and all processes whose SLURM_CONF lies in it
    local signal pids
    trap '' HUP INT TERM
    timeout 10 env SLURM_CONF="$1/slurm.conf" scancel --user "$(id -u)" 2> /dev/null || true
    for signal in TERM TERM KILL KILL; do
        pids=$(grep -lsxzF "SLURM_CONF=$1/slurm.conf" /proc/[0-9]*/environ | cut -d/ -f3 || true)
        [ -n "${pids}" ] || break
        # shellcheck disable=SC2086 # one word per process
        kill -s "${signal}" ${pids} 2> /dev/null || true
        sleep 0.7
    done
    rm -rf "$1"
}
export -f end_cluster

folder=$(mktemp -d /tmp/speechllm-slurm.XXXXXX)
chmod 755 "${folder}"  # munged refuses to serve from other folders
# The watcher survives a SIGKILL of this script and of its process group.
# shellcheck disable=SC2016
setsid bash -c 'trap "" HUP INT TERM
    while kill -0 "$1" 2> /dev/null; do sleep 0.5; done
    end_cluster "$2"' - $$ "${folder}" < /dev/null > /dev/null 2>&1 &
watcher=$!
trap 'end_cluster "${folder}"; kill -KILL "${watcher}"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

free_ports='import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in sockets))'
read -r control_port port_1 port_2 <<< "$(python3 -c "${free_ports}")"
host=$(hostname -s)
mkdir "${folder}"/{state,spool_n1,spool_n2,munge}
cat > "${folder}/slurm.conf" << END
ClusterName=speechllm_test
SlurmctldHost=${host}(127.0.0.1)
SlurmctldPort=${control_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A requeued job starts again after cred_expire seconds.
AuthInfo=socket=${folder}/munge/socket,cred_expire=5
StateSaveLocation=${folder}/state
SlurmdSpoolDir=${folder}/spool_%n
SlurmctldPidFile=${folder}/slurmctld.pid
SlurmdPidFile=${folder}/slurmd_%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
GresTypes=gpu
KillWait=5
SlurmdTimeout=10
ReturnToService=2
NodeName=n1 NodeHostname=${host} NodeAddr=127.0.0.1 Port=${port_1} CPUs=4 RealMemory=100000 Gres=gpu:2
NodeName=n2 NodeHostname=${host} NodeAddr=127.0.0.1 Port=${port_2} CPUs=4 RealMemory=100000
NodeName=broken NodeAddr=127.0.0.1 Port=1 CPUs=2 RealMemory=100000 State=DOWN
PartitionName=main Nodes=n1,n2 Default=YES
PartitionName=down Nodes=broken
END
for device in /dev/zero /dev/full; do
    echo "NodeName=n1 Name=gpu File=${device}"
done > "${folder}/gres.conf"
# Slurm 24.05 and later start without cgroups only so; earlier ones do not know it.
version=$(slurmd -V)
version=${version#* }
if [ "$(printf '%s\n' 24.05 "${version}" | sort -V | head -n 1)" = 24.05 ]; then
    echo "CgroupPlugin=disabled" > "${folder}/cgroup.conf"
fi

export SLURM_CONF=${folder}/slurm.conf
mungekey --create --keyfile="${folder}/munge/key"
daemon() { # <name> <program> …
    "${@:2}" < /dev/null > "${folder}/$1.log" 2>&1 &
}
daemon munged munged --foreground --key-file="${folder}/munge/key" \
    --socket="${folder}/munge/socket" --pid-file="${folder}/munge/pid" \
    --log-file="${folder}/munge/log" --seed-file="${folder}/munge/seed"
for ((tries = 0; tries < 100; tries++)); do
    [ ! -S "${folder}/munge/socket" ] || break
    sleep 0.1
done
daemon slurmctld slurmctld -D
daemon slurmd_n1 slurmd -D -N n1
daemon slurmd_n2 slurmd -D -N n2
for ((tries = 0; tries < 100; tries++)); do
    idle=$(timeout 5 sinfo --noheader --format=%D --states=idle --partition=main 2> /dev/null || true)
    [ "${idle}" != 2 ] || break
    sleep 0.3
done
if [ "${tries}" -eq 100 ]; then
    tail -n 5 "${folder}"/{munged,slurmctld,slurmd_n1,slurmd_n2}.log >&2
    fail "the cluster has not started; the last lines of its logs are above"
fi

"$@" <&0 &
wait "$!"
