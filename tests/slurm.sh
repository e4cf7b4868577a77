#!/usr/bin/env bash
# A real Slurm of two machines for tests/test_slurm.py, on one: as root, from Debian's packages, on the loopback only.
#
#     slurm.sh install          the packages: 30 s
#     slurm.sh start [noacct]   Slurm afresh, noacct without accounting: 10 s; then sbatch, squeue and the rest work
#     slurm.sh up|down NODE     start one machine, or end it with all that runs there, as a loss of power does
#     slurm.sh up|down slurmctld
#     slurm.sh stop             end all of it
#
# The machines n1 and n2 are namespaces: each has its own host name and its own process numbers. Jobs of the partition
# high send those of the default one, low, back into the queue.
set -euo pipefail
place=/tmp/slurm-of-two  # not below a home folder, which the users mysql and munge may not enter
database="$place/database/socket"

main() {
    case ${1:-} in
    install)
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends munge slurmctld slurmd slurm-client slurmdbd mariadb-server ;;
    start) start "${2:-}" ;;
    up) up "$2" ;;
    down) down "$2" ;;
    stop) stop ;;
    *) sed -n '2,11p' "$0"; exit 2 ;;
    esac
}

start() {
    stop
    rm -rf $place
    mkdir -p $place/{state,database} /etc/slurm /run/munge
    if [ "$1" = noacct ]; then
        configure AccountingStorageType=accounting_storage/none
    else
        configure AccountingStorage{Type=accounting_storage/slurmdbd,Host=localhost,Port=16819,Enforce=associations}
    fi
    up munged
    [ "$1" = noacct ] || accounting
    up slurmctld
    up n1
    up n2
}

stop() {
    local name
    for name in n1 n2 slurmctld slurmdbd mariadbd munged; do down $name; done
}

configure() {  # each argument a line of slurm.conf more
    cat > /etc/slurm/slurm.conf <<END
ClusterName=two
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$place/state
SlurmctldPidFile=$place/slurmctld.own-pid
SlurmdPidFile=$place/%n.own-pid
SlurmdSpoolDir=$place/spool.%n
# Nothing of the kernel's: no cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# As many CPUs as a test likes, whatever the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nor a real GPU: something to ask for.
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port=17001 CPUs=4 RealMemory=1000 Gres=gpu:1
NodeName=n2 NodeAddr=127.0.0.1 Port=17002 CPUs=4 RealMemory=1000 Gres=gpu:1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# In seconds what takes minutes by default: scheduling, a requeued job's delay, a dead machine's discovery.
SchedulerParameters=batch_sched_delay=1,bf_interval=1
AuthInfo=cred_expire=5
KillWait=1
SlurmdTimeout=15
ReturnToService=2
END
    printf '%s\n' "$@" >> /etc/slurm/slurm.conf
    echo CgroupPlugin=cgroup/v1 > /etc/slurm/cgroup.conf
    echo "NodeName=n[1-2] Name=gpu File=/dev/null" > /etc/slurm/gres.conf
}

accounting() {
    chown mysql: $place/database
    mariadb-install-db --no-defaults --user=mysql --datadir=$place/database --auth-root-authentication-method=normal \
        > $place/database.log
    up mariadbd
    sql "create database slurm_acct_db; create user slurm@localhost; grant all on slurm_acct_db.* to slurm@localhost"
    cat > /etc/slurm/slurmdbd.conf <<END
DbdHost=localhost
DbdPort=16819
SlurmUser=root
PidFile=$place/slurmdbd.own-pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
END
    chmod 600 /etc/slurm/slurmdbd.conf
    up slurmdbd
    sacctmgr -i add cluster two
    sacctmgr -i add account lab
    sacctmgr -i add user root account=lab
} >> $place/accounting.log 2>&1

sql() { mariadb --no-defaults --socket=$database -u root -e "$1"; }

up() {
    case $1 in
    munged)
        [ -s /etc/munge/munge.key ] || (umask 077 && head -c 128 /dev/urandom > /etc/munge/munge.key)
        chown munge: /etc/munge/munge.key /run/munge
        chmod 755 /run/munge
        behind munged setpriv --reuid=munge --regid=munge --clear-groups munged --foreground
        until_so munge -n ;;
    mariadbd)
        behind mariadbd setpriv --reuid=mysql --regid=mysql --clear-groups mariadbd --no-defaults \
            --datadir=$place/database --socket=$database --skip-networking --innodb-use-native-aio=0
        until_so sql "select 1" ;;
    slurmdbd)
        behind slurmdbd env MYSQL_UNIX_PORT=$database slurmdbd -D
        until_so sacctmgr -n list cluster ;;
    slurmctld)
        behind slurmctld slurmctld -D
        until_so scontrol ping ;;
    n1 | n2)
        behind "$1" unshare --pid --uts --mount-proc --fork --kill-child bash -c "hostname $1; exec slurmd -D -N $1"
        until_so srun --nodelist="$1" --immediate=5 true ;;
    *) echo "$1: expected munged, mariadbd, slurmdbd, slurmctld, n1 or n2" >&2; exit 2 ;;
    esac
}

behind() {  # behind NAME COMMAND...: start it in the background; what it says goes into NAME.log
    local name=$1
    shift
    setsid "$@" >> "$place/$name.log" 2>&1 < /dev/null &
    echo $! > "$place/$name.pid"
}

until_so() {  # wait until a command succeeds
    local tries
    for tries in {1..200}; do
        ! "$@" > $place/waited.log 2>&1 || return 0
        sleep 0.2
    done
    echo "does not come up: $* ($(tail -n 1 $place/waited.log)); see $place" >&2
    exit 1
}

down() {  # what NAME.pid names, and for a machine all that runs there with it
    local pid
    pid=$(cat "$place/$1.pid" 2> /dev/null) || return 0
    rm "$place/$1.pid"
    kill -9 "$pid" 2> /dev/null || true
    while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
}

main "$@"
