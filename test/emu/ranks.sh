#!/bin/sh
# A program on emulated GPUs, in 1, 2 and 4 processes, which exchange through host memory or by NCCL
# (nccl_emu.h): the outputs must be equal byte for byte. A link that fails and a GPU that two
# processes share must end in a sentence. Without mpirun there is nothing to run.
#
#   sh test/emu/ranks.sh BUILD    BUILD: a directory with full_ft_mpi and full_ft_nccl, such as
#                                 .build/gcc/emu
set -eu
command -v ${MPIRUN-mpirun} >/dev/null || exit 0
build=$1 out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export ASAN_OPTIONS=detect_leaks=0  # Open MPI does not free all of its memory
export CUDA_EMU_DEVICES=4           # GPUs of a machine

# run WAY PROCESSES: into $out/WAY-PROCESSES, and what it says into $out/text
run() {
    ${MPIRUN-mpirun} -n "$2" "$build/full_ft_$1" --init d1-c32-h2-t64 --model test/tiny \
        --data test/tiny/domain.jsonl --eval_samples 0 --validation_split_percentage 0 \
        --max_steps 2 --save_steps 1 --logging_steps 1 --warmup_steps 1 --shards 4 \
        --per_device_train_batch_size 2 --gradient_accumulation_steps 2 \
        --output "$out/$1-$2" >"$out/text" 2>&1 </dev/null
}

# equal WAY PROCESSES ORDER: what the first run, of one process, has left
equal() {
    export CUDA_EMU_ORDER=$3
    run "$1" "$2" || { cat "$out/text"; exit 1; }
    diff -r -x run.json "$out/mpi-1" "$out/$1-$2"
}

# fails SETTING WORDS: a run by NCCL in two processes, with a setting of the emulation, and these words
fails() {
    rm -rf "$out/nccl-2"
    ! (export "$1" && run nccl 2) && grep -q "$2" "$out/text" || {
        echo "✗ it did not fail with: $2"
        cat "$out/text"
        exit 1
    }
}

equal mpi 1 forward
for processes in 2 4; do equal mpi $processes forward; done
grep -q 'what trains$' "$out/text"
# A second stream does its work at once in forward order, and as late as it can in reverse order.
equal nccl 2 forward
equal nccl 4 reverse
grep -q 'by NCCL$' "$out/text"
fails CUDA_EMU_NCCL=6 'rank [01] on .*: NCCL cannot exchange: remote process exited'
fails CUDA_EMU_DEVICES=1 'rank [01] on .*: NCCL cannot connect the GPUs of 2 processes: Duplicate'
echo "✓ equal in 1, 2 and 4 processes, by MPI and by NCCL: $build"
