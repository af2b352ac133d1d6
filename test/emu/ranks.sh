#!/bin/sh
# A program on an emulated GPU, in 1, 2 and 4 processes: the outputs must be equal byte for byte.
# Without mpirun there is nothing to run.
#
#   sh test/emu/ranks.sh BUILD    BUILD: a directory with full_ft_mpi, such as .build/gcc/emu
set -eu
command -v ${MPIRUN-mpirun} >/dev/null || exit 0
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export ASAN_OPTIONS=detect_leaks=0  # Open MPI does not free all of its memory
for processes in 1 2 4; do
    ${MPIRUN-mpirun} -n $processes "$1/full_ft_mpi" --init d1-c32-h2-t64 --model test/tiny \
        --data test/tiny/domain.jsonl --eval_samples 0 --validation_split_percentage 0 \
        --max_steps 2 --save_steps 1 --logging_steps 1 --warmup_steps 1 --shards 4 \
        --per_device_train_batch_size 2 --gradient_accumulation_steps 2 \
        --output "$out/$processes" >"$out/text" 2>&1 </dev/null || { cat "$out/text"; exit 1; }
    diff -r -x run.json "$out/1" "$out/$processes"
done
echo "✓ equal in 1, 2 and 4 processes: $1"
