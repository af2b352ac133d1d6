#!/bin/sh
# Does ranks.sh see a bug in what several GPUs exchange? Plants known bugs in copies of the files, one
# at a time, and runs it on each copy. `make planted_ranks` starts it.
#
#   sh test/emu/planted_ranks.sh BUILD [WORDS]    every bug, or those whose name contains WORDS
#
# BUILD is .build/cc/emu or another directory with full_ft_mpi and full_ft_nccl. A bug in the list
# below has two lines: its name and its file, then the sed command that plants it. The script fails
# if ranks.sh fails without a bug, if a bug is not caught, or if one can no longer be planted.
set -eu
build=$1 words=${2:-} dir=$1/planted
mkdir -p "$dir"
cp "$build/full_ft_mpi" "$dir/"

mpi_cxx() { eval "$MPI_CXX \"\$@\""; }

# caught FILE: links full_ft_nccl with this file in the place of its own; prints how ranks.sh fails
caught() {
    case $1 in
        *.c) $COMPILE -O1 -c "$1" -o "$dir/copy.o" ;;
        *_nccl.cu) mpi_cxx $CU_FLAGS -O1 -include test/emu/nccl_emu.h -x c++ -c "$1" \
            -o "$dir/copy.o" ;;
        *) $CXX $CU_FLAGS -O1 -include test/emu/cuda_emu.h -x c++ -c "$1" -o "$dir/copy.o" ;;
    esac
    case $1 in *_nccl.cu) nccl= ;; *) nccl=$build/exchange_nccl.o ;; esac
    mpi_cxx -fopenmp "$build/full_ft.o" "${build%/*}/ranks_mpi.o" "$dir/copy.o" $nccl \
        "$build/common.a" -o "$dir/full_ft_nccl" $LDLIBS
    sh test/emu/ranks.sh "$dir" >"$dir/said" 2>&1 ||
        grep -m1 -E '✗ emulated|^error|differ$|^Only' "$dir/said" || tail -1 "$dir/said"
}

cp "$build/full_ft_nccl" "$dir/"
sh test/emu/ranks.sh "$dir" >"$dir/said" 2>&1 ||
    { cat "$dir/said"; echo "✗ it fails without a bug"; exit 1; }
planted=0 survived=0
while IFS='|' read -r name file && IFS= read -r plant; do
    name=$(echo $name) file=$(echo $file)
    case $name in *"$words"*) ;; *) continue ;; esac
    copy=$dir/copy_of_${file##*/}
    sed -e "$plant" "$file" >"$copy"
    planted=$((planted + 1))
    if cmp -s "$file" "$copy"; then
        echo "✗ $name: the sed command changes nothing:$plant"
        exit 1
    fi
    by=$(caught "$copy")
    [ -n "$by" ] || survived=$((survived + 1))
    printf '%s %s\n      %s\n' "$([ -n "$by" ] && echo ✓ || echo ✗)" "$name" "${by:-NOTHING}"
done <<'LIST'
the second queue does not wait for the first one | common/model/kernels.cu
    s/CUDA(cudaStreamWaitEvent(queue.other, queue.begin, 0));//
a send and a receive are not in a group | common/model/exchange_nccl.cu
    s/check(ncclGroup[A-Za-z]*(), "[a-z ]*");//
fewer numbers are received than are sent | common/model/exchange_nccl.cu
    s/ncclRecv(in, in_n,/ncclRecv(in, in_n - 1,/
a process sends to itself | common/model/exchange_nccl.cu
    s/out_n, ncclFloat, peer/out_n, ncclFloat, rank()/
a band leaves before its layer is final | common/model/shards.c
    s/lowest >= l)/lowest >= l - 1)/
the sums of the turns are not waited for | common/model/shards.c
    /^static void wait_beside/,/^}/s/exchange_wait();//
what is added has not been received yet | common/model/shards.c
    /^static void exchange_sums/,/^}/{/exchange_floats(in/{h;d};/move_taken(m, what, &to/{G}}
the weights are not waited for | common/model/shards.c
    /^void shards_spread/,/^}/s/exchange_wait();//
LIST
echo "$((planted - survived)) of $planted planted bugs were caught"
[ "$planted" -gt 0 ] && [ "$survived" = 0 ]
