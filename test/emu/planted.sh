#!/bin/sh
# planted.sh BUILD: does the suite see a bug in kernels.cu? Plants one at a time in a copy, and runs the kernel tests on it, emulated.
#
# Each line of the list below is what the bug is | the tests that look there (a case of check_kernels) | the sed command that plants it. A bug is
# caught when the tests fail in bf16, with the threads in forward or in reverse order, or in fp32; or, for an offset of 32 bits, whose values are
# right below 2^31 elements, when clang-tidy names more places than it does without. The tests must pass where nothing is planted. BUILD is a flavour in
# which check_kernels is built for emu and emu_bf16. Fails when a bug survives, and when one can no longer be planted.
set -eu
build=$1
dir=$build/planted
libs="$(pkg-config --libs jansson libpcre2-8 check) -lm"
mkdir -p "$dir/common"
ln -sfn "$PWD/test" "$dir/test"   # what kernels.cu includes, as seen from the copy
ln -sfn "$PWD/common" "$dir/common.real"
copy=$dir/common/model/kernels.cu
standard="-std=gnu++17 -Wno-unknown-pragmas -mavx2 -mfma"

# Do the tests of a case fail on the copy? $1: the case, all when empty, $2: the kind of numbers, the rest: orders of threads. Says in which.
failing() {
    case=$1 kind=$2 bf16=$([ "$2" = emu ] || echo -DREAL_BF16)
    shift 2
    ${CXX:-c++} $standard -O1 -ffp-contract=off $bf16 -x c++ -c "$copy" -o "$dir/$kind.o" 2>"$dir/errors" || { echo "the compiler"; return; }
    ${CXX:-c++} -fopenmp "$build/$kind/check_kernels.o" "$dir/$kind.o" "$build/$kind/common.a" -o "$dir/check" $libs
    for order in "$@"; do
        env ${case:+CK_RUN_CASE="$case"} CUDA_EMU_ORDER=$order BUILD=$build timeout 600 "$dir/check" >"$dir/said" 2>&1 || { echo "$kind, $order"; return; }
    done
}

widenings() {
    clang-tidy -checks='-*,bugprone-implicit-widening-of-multiplication-result' "$1" -- -x c++ $standard -DREAL_BF16 2>/dev/null |
        grep -c 'kernels.cu:.*warning' || true
}

# How the bug in the copy is caught; nothing when it is not.
caught() {
    by=$(failing "$1" emu_bf16 forward reverse)
    [ -n "$by" ] || by=$(failing "$1" emu forward)
    case $2 in *"32 bits"*)
        [ -n "$by" ] || [ -z "$clean" ] || [ "$(widenings "$copy")" -le "$clean" ] || by=clang-tidy;;
    esac
    echo "$by"
}

cp common/model/kernels.cu "$copy"
by=$(caught "" "nothing")
[ -z "$by" ] || { echo "✗ the tests fail without a bug: $by"; exit 1; }
clean=
! command -v clang-tidy >/dev/null || clean=$(widenings "$copy")

planted=0 survived=0
while IFS='|' read -r what case plant; do
    case=$(echo $case)
    sed -e "${plant# }" common/model/kernels.cu >"$copy"
    ! cmp -s common/model/kernels.cu "$copy" || { echo "✗ $what: this can no longer be planted: $plant"; exit 1; }
    by=$(caught "$case" "$what")
    planted=$((planted + 1))
    [ -n "$by" ] || survived=$((survived + 1))
    printf '%s %-64s %s\n' "$([ -n "$by" ] && echo ✓ || echo ✗)" "$what" "${by:-NOTHING}"
done <<'LIST'
a barrier is missing in the sum over a block                    | optimiser        | /if (threadIdx.x % 32 == 0) part/{n;s/__syncthreads();//}
a barrier is missing before rows of the embedding are linked    | embedding        | /ids\[threadIdx.x\] = /{n;s/__syncthreads();//}
a barrier is missing in the sums over columns                   | linear           | /sums\[w\]\[lane\] = sum;/{n;s/__syncthreads();//}
a barrier is missing before a block of keys is read             | attention, large | s/__syncthreads();   .. this block of keys has arrived.*//
a barrier is missing before queries are overwritten             | attention, large | s/__syncthreads();   .. the last block of queries.*//
a barrier of a warp is missing before its probabilities are read| attention, large | /o\[j\]\[i\] \*= shrink/{n;s/__syncwarp();//}
a wait is missing for keys and values, forward                  | attention, large | /for (int k0 = 0, stage = 0/{n;s/cp_async_wait<0>();//}
a wait is missing for keys and values, dq                       | attention, large | s/^        cp_async_wait<0>();$//
a wait is missing for queries, dk and dv                        | attention, large | s/^            cp_async_wait<0>();$//
the other of two buffers is read                                | attention, large | s/K + stage \* T::SIZE, T::LD, HSP/K + (stage ^ 1) * T::SIZE, T::LD, HSP/
the causal mask hides the token itself                          | attention, large | s/key <= query ? s/key < query ? s/
the causal mask of dq shows one token more                      | attention, large | s/key <= q0 + row;/key <= q0 + row + 1;/
the causal mask of dk and dv hides the token itself             | attention, large | s/k0 + key > q0 + column/k0 + key >= q0 + column/
a row beyond the tile's last is loaded                          | attention, large | s/from = t < end \&\& c < hs/from = t <= end \&\& c < hs/
a row beyond the last is written                                | attention, large | s/if (row < rows \&\& d < hs) put(out/if (row <= rows \&\& d < hs) put(out/
a shared beginning's keys end one token early                   | attention, large | s/start\[p + 1\] - start\[p\], start\[s\]/start[p + 1] - start[p] - 1, start[s]/
a sequence's blocks are counted from a lane too late            | attention, large | s/if (lane >= d) sum += below;/if (lane > d) sum += below;/
a slot's keys begin where the last one's have not ended          | cache            | s/(size_t)h) \* 2 \* head;/(size_t)h) * head;/
lanes are left out of the sum over a warp                       | layernorm        | /T warp_sum(T x) {/{n;s/d = 16/d = 8/}
the last channel is left out of the variance                    | layernorm        | s/c < C; c += 32 \* W) {   .. the variance/c < C - 1; c += 32 * W) {   \/\/ the variance/
one element too many is worked on                               | gelu             | s/if (i < n) f.template/if (i <= n) f.template/
what lies beyond the vocabulary counts                          | logprob          | s/if (j0 + k < V) f(j0 + k, v\[k\]);/f(j0 + k, v[k]);/
a draw of noise is used four times                              | noise            | s/c \/ 4).v\[c % 4\]/c \/ 4).v[0]/
a repeated token's gradient is counted again                    | embedding        | s/if (!first\[n\] || c >= C) return;/if (c >= C) return;/
a product takes the wrong transpose                             | linear           | s/Matrix{weight, (size_t)OC, true}, dinp/Matrix{weight, (size_t)OC, false}, dinp/
a gradient replaces what is there                               | linear           | s/dweight, (size_t)OC, (const real \*)NULL, true, true/dweight, (size_t)OC, (const real *)NULL, false, true/
what GELU was taken of goes to rows too far apart               | gelu             | s/_AUX_LD, (int64_t)c_stride/_AUX_LD, (int64_t)c_stride + 8/
GELU is not taken where the product has none                     | gelu             | /linear_forward(pre, inp/{n;s/gelu_forward(out/gelu_forward(pre/}
the way of a product depends on the rows beside it              | linear           | s/rows_are_k ? M : 0, N, rows_are_k ? 0 : K/M, N, K/
a threshold of NF4 belongs to the code above                    | nf4              | s/x\[i\] \* inverse > tables/x[i] * inverse >= tables/
the running sum of probabilities skips lanes                    | sample           | s/if (lane >= d) before += below;/if (lane > d) before += below;/
the likeliest of equal tokens is the last                       | logprob          | s/(other == top \&\& there < place)/(other == top \&\& there > place)/
a step does not reach the master                                | optimiser        | s/if (master) master\[i\] = next;//
an offset of 32 bits: a row of layernorm                        | layernorm        | /void layernorm_backward_kernel/,/^}/s/(size_t)n \* (size_t)C/n * C/
an offset of 32 bits: a row of logits                           | logprob          | /void logprob_forward_kernel/,/^}/s/logits + r \* (size_t)ldv/logits + (int)r * ldv/
LIST
echo "$((planted - survived)) of $planted planted bugs were caught"
[ "$survived" = 0 ]
