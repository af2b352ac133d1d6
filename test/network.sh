#!/bin/sh
# Several machines on one: network namespaces, each with a host name, a directory and an address of
# its own, joined by a bridge. mpirun starts its daemon in each, as it would by ssh, and a link can
# be slowed or cut. Needs root, iproute2 and Open MPI. run.json names the output, so it is not
# compared.
#
#   sh test/network.sh BUILD         tests: the same bytes on 1, 2 and 4 machines, also where
#                                    packets are lost; a link that is cut
#   sh test/network.sh BUILD SCRIPT  reads SCRIPT instead, with the functions below
set -eu
cd "$(dirname "$0")/.."
root=$PWD
build=$(realpath "$1")
work=$(mktemp -d)
machines=4
name=posttrain$$
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

inside() {  # inside K COMMAND...: runs it on machine K
    k=$1
    shift
    ip netns exec $name-$k unshare -u sh -c \
        'hostname machine$1; export TMPDIR=$2/tmp$1; cd "$2/disk"; shift 2; exec "$@"' \
        inside "$k" "$work" "$@"
}

down() {
    for k in $(seq $machines); do
        ip netns pids $name-$k 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del $name-$k 2>/dev/null || true
    done
    ip netns del $name-switch 2>/dev/null || true
    rm -rf "$work"
}
trap down EXIT
trap 'exit 1' INT TERM

up() {
    mkdir "$work/disk"
    ip netns add $name-switch
    ip -n $name-switch link add bridge type bridge
    ip -n $name-switch link set bridge up
    for k in $(seq $machines); do
        mkdir "$work/tmp$k"
        ip netns add $name-$k
        ip link add eth0 netns $name-$k type veth peer name port$k netns $name-switch
        ip -n $name-$k addr add 10.77.0.$k/24 dev eth0
        ip -n $name-$k link set eth0 up
        ip -n $name-$k link set lo up
        ip -n $name-switch link set port$k master bridge up
    done
    # what mpirun calls in the place of ssh: ADDRESS COMMAND
    cat >"$work/agent" <<END
#!/bin/sh
k=\${1##*.}
shift
exec ip netns exec $name-\$k unshare -u sh -c \\
    'hostname machine\$1; export TMPDIR=$work/tmp\$1; cd $work/disk; eval "\$2"' agent \$k "\$*"
END
    chmod +x "$work/agent"
}

shape() {  # shape K QDISC...: what leaves machine K; and what is sent to it
    k=$1
    shift
    ip netns exec $name-$k tc qdisc replace dev eth0 root "$@"
    ip netns exec $name-switch tc qdisc replace dev port$k root "$@"
}

# on R PROGRAM FLAGS...: the program on the first R machines, one process each
on() {
    processes=$1 program=$2
    shift 2
    hosts=$(seq -s, -f "10.77.0.%.0f:1" "$processes")
    inside 1 mpirun -n "$processes" --host "$hosts" --bind-to none \
        --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include eth0 \
        --mca oob_tcp_if_include eth0 --mca oob_tcp_keepalive_time 5 \
        --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 5 -x OMP_NUM_THREADS \
        "$build/${program}_mpi" "$@"
}

flags="--model $root/test/tiny/chat --data $root/test/tiny/sft.jsonl --eval_samples 0
    --logging_steps 1 --shards 4"
say() { printf '%s\n' "$*"; }
fail() {
    say "✗ $*"
    exit 1
}

same_bytes() {
    for processes in 1 2 4; do
        on $processes sft $flags --max_steps 4 --save_steps 2 --output out$processes \
            >"$work/text" 2>&1 || { cat "$work/text"; fail "$processes machines"; }
        diff -r -x run.json "$work/disk/out1" "$work/disk/out$processes" || fail "other bytes"
    done
    say "✓ the same bytes on 1, 2 and 4 machines"
}

# A queue of 20 KB in front of a slow link drops packets.
dropped() {
    for k in $(seq $machines); do shape "$k" tbf rate 200mbit burst 5kb limit 20kb; done
    on 4 sft $flags --max_steps 4 --save_steps 2 --output lossy >"$work/text" 2>&1 ||
        { cat "$work/text"; fail "a network that loses packets"; }
    diff -r -x run.json "$work/disk/out1" "$work/disk/lossy" || fail "other bytes"
    lost=$(ip netns exec $name-switch tc -s qdisc | sed -n 's/.*dropped \([0-9]*\),.*/\1/p' |
        awk '{ n += $1 } END { print n }')
    [ "$lost" -gt 0 ] || fail "no packet was lost"
    for k in $(seq $machines); do shape "$k" pfifo_fast; done
    say "✓ the same bytes on a network that lost $lost packets"
}

cut_link() {
    on 4 sft $flags --max_steps 100 --save_steps 2 --output cut >"$work/text" 2>&1 &
    mpirun=$!
    while ! [ -e "$work/disk/cut/checkpoint-2" ]; do
        kill -0 $mpirun 2>/dev/null || { cat "$work/text"; fail "no run to cut"; }
        sleep 0.1
    done
    ip -n $name-3 link set eth0 down
    began=$(date +%s)
    wait $mpirun && fail "a run without one of its machines ended with 0"
    seconds=$(($(date +%s) - began))
    ip -n $name-3 link set eth0 up
    [ $seconds -le 60 ] || fail "a cut link was noticed after $seconds seconds"
    # the daemons of mpirun may notice it first, and end the processes
    grep -qE '^error: rank 2 on machine3 has given no sign of life|lost communication with a remote' \
        "$work/text" ||
        { cat "$work/text"; fail "no sentence names the machine that was cut off"; }
    on 2 sft $flags --max_steps 100 --save_steps 2 --output cut --resume >"$work/text" 2>&1 ||
        { cat "$work/text"; fail "the run does not continue"; }
    inside 1 "$build/sft" $flags --max_steps 100 --save_steps 2 --output whole >"$work/text" 2>&1
    diff -r -x run.json "$work/disk/whole" "$work/disk/cut" || fail "other bytes"
    say "✓ a link was cut: all ended after $seconds seconds, and 2 machines finished the run"
}

# A container may be root and yet make no namespace, link or host name.
can() {
    ip netns add $name-switch && ip -n $name-switch link add bridge type bridge &&
        ip -n $name-switch link add veth0 type veth peer name veth1 &&
        ip netns exec $name-switch unshare -u true && ip netns del $name-switch
}
if ! why=$(can 2>&1); then
    say "no network of machines can be made here, so nothing was run: $why"
    exit 0
fi
up
if [ $# -gt 1 ]; then
    shift
    . "$1"
    exit 0
fi
same_bytes
dropped
cut_link
