#!/bin/sh
# Counts what the compiled kernels of kernels.cu take, in bf16: registers, shared memory, local
# memory (spilled registers, and arrays that registers do not hold), how many of their warps fit on
# a multiprocessor, and the instructions of their inner loops. Nothing is run, so no GPU is needed.
#
#   sh test/emu/cuda_table.sh table           prints a table of registers, memory and warps
#   sh test/emu/cuda_table.sh loops           prints a table of instructions by kind; which loop is
#                                             counted is said in cuda_loops.awk
#   sh test/emu/cuda_table.sh roofline        prints the least time of a training step, by kernel
#                                             (cuda_roofline.awk); this needs no compiler
#   sh test/emu/cuda_table.sh all             prints these three, as far as the tools are installed
#   sh test/emu/cuda_table.sh check [STAMP]   compares the kernels with test/emu/cuda_limits.txt;
#                                             when they agree, touches the file STAMP
#   sh test/emu/cuda_table.sh limits          prints a new cuda_limits.txt
#
# check fails if a kernel has more local memory or fewer warps than cuda_limits.txt says, and if a
# kernel is in only one of the two. NVCC is the compiler. The figures are those of its version, so
# with another version than that in cuda_limits.txt they are not compared. Without nvcc nothing is
# checked. Both are said in a sentence.
#
# NVDISASM is the disassembler. If it is not given, it is looked for beside nvcc, then in PATH.
#
# The ceilings of the roofline are TB_PER_S and TFLOP_PER_S, of memory and of products in bf16. They
# are 3.0 and 798 if not given, which others have measured on an H100.
#
# The figures are for compute capability 9.0a: 65,536 registers in four parts, 228 KiB of shared
# memory of which each block takes 1 KiB more than it asks for, 64 warps and 32 blocks.
set -eu
cd "$(dirname "$0")/../.."
what=${1:-table}
list=test/emu/cuda_limits.txt

roofline() {
    awk -v bandwidth="${TB_PER_S:-3.0}" -v peak="${TFLOP_PER_S:-798}" -f test/emu/cuda_roofline.awk
}

case $what in
table | loops | all | check | limits) ;;
roofline)
    roofline
    exit
    ;;
*)
    echo "table, loops, roofline, all, check or limits, not $what" >&2
    exit 2
    ;;
esac
nvcc=${NVCC:-nvcc}
if ! command -v "$nvcc" >/dev/null; then
    echo "$nvcc was not found, so the compiled GPU kernels are not counted"
    case $what in
    all)
        echo
        roofline
        ;;
    check) ;;
    *) exit 1 ;;
    esac
    exit 0
fi
beside=$(dirname "$(command -v "$nvcc")")/nvdisasm
[ -x "$beside" ] || beside=nvdisasm
nvdisasm=${NVDISASM:-$beside}
without="$nvdisasm was not found, so the instructions of the GPU kernels are not counted"
if [ "$what" = loops ] && ! command -v "$nvdisasm" >/dev/null; then
    echo "$without"
    exit 1
fi
version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
listed=$(sed -n 's/^nvcc|//p' "$list")
if [ "$what" = check ] && [ "$version" != "$listed" ]; then
    echo "nvcc has version $version and $list is of $listed: the compiled GPU kernels are not counted"
    exit 0
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Writes a line for each kernel, in the order of its name:
# name | registers | bytes of shared memory | threads | blocks | warps | bytes of local memory
"$nvcc" -std=c++17 -O3 -arch=sm_90a -cubin -Xptxas -v -Icommon -DREAL_BF16 common/model/kernels.cu \
    -o "$dir/cubin" 2>"$dir/said" || { cat "$dir/said" >&2; exit 1; }
c++filt <"$dir/said" | awk '
    function up(n, to) { return int((n + to - 1) / to) * to }
    function least(a, b) { return a < b ? a : b }
    /Compiling entry function/ {
        name = $0
        sub(/.*entry function .(void )?/, "", name)
        sub(/. for .sm_.*/, "", name)
        sub(/\(.*/, "", name)
    }
    /bytes stack frame/ { local = $1 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/)
        registers = substr($0, RSTART + 5, RLENGTH - 5)
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        threads = 256
        if (name ~ /^attention_(forward|dq|dkv|cached)/) {
            # as in shared_bytes() of kernels.cu: 4 tiles of 64 rows of a head and 16 bytes
            match(name, /[0-9]+/)
            shared = 4 * 64 * (2 * substr(name, RSTART, RLENGTH) + 16)
            if (name ~ /, true>$/) shared += 1024  # by warp groups: to begin at such a multiple
            threads = name ~ /cached/ ? 32 : 128
        }
        blocks = int(int(16384 / up(registers * 32, 256)) * 4 / (threads / 32))
        blocks = least(blocks, int(228 * 1024 / (up(shared, 128) + 1024)))
        blocks = least(least(blocks, int(64 / (threads / 32))), 32)
        print name "|" registers "|" shared "|" threads "|" blocks "|" blocks * threads / 32 \
            "|" local
    }' | LC_ALL=C sort >"$dir/kernels"

table() {
    echo "| kernel | registers | shared memory | threads | blocks | warps of 64 | local memory |"
    echo "|---|---|---|---|---|---|---|"
    sed 's/|/ | /g;s/.*/| & |/' "$dir/kernels"
}

loops() {
    "$nvdisasm" -c "$dir/cubin" >"$dir/code"
    c++filt <"$dir/code" | awk -f test/emu/cuda_loops.awk >"$dir/loops"
    if [ "$(wc -l <"$dir/loops")" != "$(wc -l <"$dir/kernels")" ]; then
        echo "cuda_loops.awk has not found each kernel in what $nvdisasm prints" >&2
        exit 1
    fi
    echo "| kernel | all | tensor cores | loads, shared | stores, shared | loads, global |" \
        "stores, global | local memory | special functions | float | integers, moves |" \
        "branches, barriers |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|---|"
    LC_ALL=C sort "$dir/loops"
}

case $what in
table) table ;;
loops) loops ;;
all)
    table
    echo
    if command -v "$nvdisasm" >/dev/null; then
        loops
    else
        echo "$without"
    fi
    echo
    roofline
    ;;
limits)
    echo "# kernel | warps that fit on a multiprocessor | bytes of local memory, for cuda_table.sh"
    echo "nvcc|$version"
    cut -d'|' -f1,6,7 "$dir/kernels"
    ;;
check)
    awk -F'|' '
        /^#/ || $1 == "nvcc" { next }
        FNR == NR { warps[$1] = $2; local[$1] = $3; next }
        !($1 in warps) { bad = 1; print "✗ " $1 " is not in cuda_limits.txt"; next }
        { seen[$1] = 1; count++ }
        $7 > local[$1] + 0 {
            bad = 1
            print "✗ " $1 " has " $7 " bytes of local memory, not " local[$1]
        }
        $6 < warps[$1] + 0 { bad = 1; print "✗ " $1 " has " $6 " warps, not " warps[$1] }
        END {
            for (name in warps)
                if (!(name in seen)) {
                    bad = 1
                    print "✗ " name " is in cuda_limits.txt and was not compiled"
                }
            if (bad)
                print "  mend the kernel; or, if this is meant, make the list anew:" \
                    " sh test/emu/cuda_table.sh limits >limits, and move it there"
            else
                print "✓ " count " compiled GPU kernels have their warps, and no more local memory"
            exit bad
        }' "$list" "$dir/kernels"
    if [ $# -gt 1 ]; then touch "$2"; fi
    ;;
esac
