# What runs inside a test machine, with the outside's programs, and ends it. The jobs follow.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
results=/run/xlb-kernels
mkdir -p /run/netns
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ulimit -l unlimited
ulimit -n 65536
ip link set lo up

# job NAME SECONDS COMMAND...: what it printed is NAME.log, how it ended NAME.status, how long it took NAME.seconds.
job() {
    name=$1 limit=$2
    shift 2
    echo "job $name"
    begun=$(cut -d. -f1 /proc/uptime)
    timeout -k 10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null
    echo $? >"$results/$name.status"
    ended=$(cut -d. -f1 /proc/uptime)
    echo $((ended - begun)) >"$results/$name.seconds"
}

