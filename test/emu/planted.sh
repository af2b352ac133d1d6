#!/bin/sh
# Do the kernel tests see a bug in kernels.cu? Plants known bugs in a copy, one at a time, and runs
# the tests on each copy, emulated on the CPU.
#
#   sh test/emu/planted.sh BUILD [WORDS]    every bug, or those whose name contains WORDS
#   sh test/emu/planted.sh --dry-run        shows what each bug changes, and compiles it; no test
#
# BUILD is a directory such as .build/cc in which check_kernels has been built for emu and emu_bf16.
#
# A bug in the list below has two lines: its name and the test case of check_kernels that looks for
# it (and that of the same name with ", large"), then the sed command that plants it. A bug is
# caught when these tests fail in bf16 (threads in forward or reverse order) or in fp32 (forward
# order). Offsets of 32 bits are correct below 2^31 elements, which no test reaches; they are caught
# when clang-tidy gives more warnings than it gives for the original. The script fails if the tests
# fail without a bug, if a bug is not caught, or if a bug can no longer be planted.
set -eu
cd "$(dirname "$0")/../.."
build=$1 words=${2:-}
original=common/model/kernels.cu
standard="-std=gnu++17 -Wno-unknown-pragmas -mavx2 -mfma -Icommon -include test/emu/cuda_emu.h"
compiler=${CXX:-c++}
if [ "$build" = --dry-run ]; then
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
else
    dir=$build/planted
    mkdir -p "$dir"
    libs="$(pkg-config --libs jansson libpcre2-8 check) -lm"
fi
copy=$dir/kernels.cu

# failing CASE KIND ORDER ...: runs a case and its large one (all cases if empty) on the copy, in
# KIND (emu: float, emu_bf16: bf16) with each order of threads. Prints where it failed, nothing if
# it passed.
failing() {
    case=$1 kind=$2 bf16=
    [ "$2" = emu ] || bf16=-DREAL_BF16
    shift 2
    $compiler $standard -O1 -ffp-contract=off $bf16 -x c++ -c "$copy" -o "$dir/$kind.o" \
        2>"$dir/errors" || { echo "the compiler"; return; }
    $compiler -fopenmp "$build/$kind/check_kernels.o" "$dir/$kind.o" "$build/$kind/common.a" \
        -o "$dir/check" $libs
    for order in "$@"; do
        for run in "$case" ${case:+"$case, large"}; do
            env ${run:+CK_RUN_CASE="$run"} CUDA_EMU_ORDER="$order" BUILD="$build" \
                timeout 600 "$dir/check" >"$dir/said" 2>&1 || { echo "$kind, $order"; return; }
        done
    done
}

# widenings FILE: the number of places where clang-tidy sees a 32-bit product used as an offset
widenings() {
    clang-tidy -checks='-*,bugprone-implicit-widening-of-multiplication-result' "$1" -- \
        -x c++ $standard -DREAL_BF16 2>/dev/null | grep -c 'kernels.cu:.*warning' || true
}

# caught CASE NAME: prints what caught the bug in the copy, nothing if it survived
caught() {
    by=$(failing "$1" emu_bf16 forward reverse)
    [ -n "$by" ] || by=$(failing "$1" emu forward)
    case $2 in *"32 bits"*)
        [ -n "$by" ] || [ -z "$clean" ] || [ "$(widenings "$copy")" -le "$clean" ] ||
            by=clang-tidy ;;
    esac
    echo "$by"
}

if [ "$build" != --dry-run ]; then
    cp "$original" "$copy"
    clean=
    if [ -z "$words" ]; then
        by=$(caught "" "nothing")
        [ -z "$by" ] || { echo "✗ the tests fail without a bug: $by"; exit 1; }
    fi
    ! command -v clang-tidy >/dev/null || clean=$(widenings "$copy")
fi

planted=0 survived=0
while IFS='|' read -r name case && IFS= read -r plant; do
    name=$(echo $name) case=$(echo $case)
    case $name in *"$words"*) ;; *) continue ;; esac
    sed -e "$plant" "$original" >"$copy"
    planted=$((planted + 1))
    if cmp -s "$original" "$copy"; then
        echo "✗ $name: the sed command changes nothing:$plant"
        exit 1
    fi
    if [ "$build" = --dry-run ]; then
        echo "$name"
        diff "$original" "$copy" | grep '^[<>]' || true
        for bf16 in "" -DREAL_BF16; do
            $compiler $standard $bf16 -x c++ -fsyntax-only "$copy"
        done
        continue
    fi
    by=$(caught "$case" "$name")
    [ -n "$by" ] || survived=$((survived + 1))
    printf '%s %-66s %s\n' "$([ -n "$by" ] && echo ✓ || echo ✗)" "$name" "${by:-NOTHING}"
done <<'LIST'
a barrier is missing in the sum over a block | optimiser
    /if (threadIdx.x % 32 == 0) part/{n;s/__syncthreads();//}
a barrier is missing before ids of the embedding are overwritten | embedding
    /before = min(max(first - from, 0)/{n;s/__syncthreads();//}
a block compares its rows with one chunk of ids only | embedding
    s/from < N; from += (int)gridDim.y \* IDS/from < N; from += N/
a barrier is missing before rows of the embedding are compared | embedding
    /ids\[i\] = i < end/{n;s/__syncthreads();//}
the last of eight columns has the sum of the one before | linear
    s/sums\[w\]\[k\]\[lane\] = sum\[k\];/sums[w][k][lane] = sum[k == 7 ? 6 : k];/
a barrier is missing in the sums over columns | linear
    /sums\[w\]\[k\]\[lane\] = sum\[k\];/{n;s/__syncthreads();//}
a barrier is missing before a block of keys is read, forward | attention, large
    /Attended<T> attend(/,/^}/{/for (int k0 = 0/,/load_pair/s/loaded<T>();/cp_async_wait<0>();/}
a barrier is missing before a block of keys is read, dq | attention, large
    / attention_dq_kernel(/,/^}/{/for (int k0 = 0/,/load_pair/s/loaded<T>();/cp_async_wait<0>();/}
a barrier is missing before queries are overwritten, dk and dv | attention, large
    /for (int stage = 0; s < S/,/advance/s/loaded<T>();/cp_async_wait<0>();/
a barrier is missing before registers are filled, forward | attention, large
    /Attended<T> attend(/,/factor_of/s/loaded<T>();/cp_async_wait<0>();/
a barrier is missing before registers are filled, dq | attention, large
    / attention_dq_kernel(/,/factor_of/s/loaded<T>();/cp_async_wait<0>();/
a barrier is missing before registers are filled, dk and dv | attention, large
    / attention_dkv_kernel(/,/factor_of/s/loaded<T>();/cp_async_wait<0>();/
a wait is missing for keys and values, forward | attention, large
    /Attended<T> attend(/,/^}/{/for (int k0 = 0/,/load_pair/s/loaded<T>();/__syncthreads();/}
a wait is missing for the queries, forward | attention, large
    /Attended<T> attend(/,/factor_of/s/loaded<T>();/__syncthreads();/
a wait is missing for keys and values, dq | attention, large
    / attention_dq_kernel(/,/^}/s/loaded<T>();/__syncthreads();/
a wait is missing for queries, dk and dv | attention, large
    /for (int stage = 0; s < S/,/advance/s/loaded<T>();/__syncthreads();/
the other of two buffers is read | attention, large
    s/K = buffer + 2 \* stage \* SIZE/K = buffer + 2 * (stage ^ 1) * SIZE/
the next keys go to the buffer that is read | attention, large
    s/next = buffer + 2 \* (stage ^ 1) \* SIZE/next = buffer + 2 * stage * SIZE/
the next queries go to the buffer that is read | attention, large
    s/load(buffer + 2 \* (stage ^ 1) \* SIZE/load(buffer + 2 * stage * SIZE/
a fragment has its upper rows twice | attention, large
    s/bf16_pair(left\[2\], left\[3\])/bf16_pair(left[0], left[1])/
a fragment has its columns in another order | attention, large
    s/= {bf16_pair(left\[0\], left\[1\])/= {bf16_pair(left[1], left[0])/
a column of a product is taken from another lane | attention, large
    s/has = lane - t + k % 8 \/ 2/has = lane - t + k % 4/
the causal mask hides the token itself | attention, large
    /Attended<T> attend(/,/^}/s/key <= query ?/key < query ?/
the causal mask of dq shows one token more | attention, large
    / attention_dq_kernel(/,/^}/s/key <= query ?/key <= query + 1 ?/
the causal mask of dk and dv hides the token itself | attention, large
    / attention_dkv_kernel(/,/^}/s/key <= query ?/key < query ?/
a block of keys that needs the causal mask goes without | attention, large
    s/if (k0 + KB > first + 1)/if (k0 + KB > first + 16)/
16 keys that need the causal mask go without, dq | attention, large
    s/if (k0 + c + ONCE - 1 > first)/if (k0 + c > first)/
16 queries that need the causal mask go without, dk and dv | attention, large
    s/if (first + 15 > q0 + c)/if (first > q0 + c)/
16 keys too many are left out, dq | attention, large
    s/k0 + c >= first + 16) break/k0 + c >= first) break/
16 queries too many are left out, dk and dv | attention, large
    s/q0 + c + 15 < first) continue;/q0 + c < first + 1) continue;/
what is known of a query is not cleared beyond the last | attention, large
    s/else if (i < KB)/else if (i < 0)/
an exponential of base 2 gets a logarithm of base e | attention, large
    s/lse\[item\] \* LOG2_E/lse[item]/
a continuation's first queries are left out, dk and dv | attention, large
    /auto advance/,/};/s/\*from = 0;/*from = KB;/
dk is not scaled | attention, large
    s/3 \* C, dk, scale, scale/3 * C, dk, 1, 1/
lanes are left out of the sum over a head | attention, large
    s/for (int d = 4; d; d \/= 2) sum +=/for (int d = 2; d; d \/= 2) sum +=/
a row beyond the tile's last is loaded | attention, large
    s/from = t < end \&\& c < hs/from = t <= end \&\& c < hs/
a row beyond the last is written | attention, large
    s/if (row >= rows || c >= hs) continue;/if (row > rows || c >= hs) continue;/
a shared beginning's keys end one token early | attention, large
    s/start\[p + 1\] - start\[p\], start\[s\]/start[p + 1] - start[p] - 1, start[s]/
a sequence's blocks are counted from a lane too late | attention, large
    s/if (lane >= d) sum += below;/if (lane > d) sum += below;/
a tile with rows from two places is copied as a whole one | attention, large
    s/ \&\& (t0 >= x.P || t0 + ROWS_ <= x.P)//
a tile that lacks one row is copied as a whole one | attention, large
    s/whole = t0 + ROWS_ <= end/whole = t0 + ROWS_ <= end + 1/
a whole tile is the first one again | attention, large
    s/row_at(x, t0 + first) + column/row_at(x, first) + column/
warp groups read what no fence follows | attention
    s/if constexpr (T::GROUP) fence_for_wgmma();//
a product of a warp group is read before it has arrived | attention
    /Attended<T> attend(/,/^}/s/arrived<T>(s);//
rows of a tile are swizzled by four | attention
    s/c ^ row % 8 \* 8/c ^ row % 4 * 8/
the tiles of a warp group begin at any address | attention
    s/memory += to_swizzled(memory);/memory += 0;/
warp groups read the rows of values as columns | attention
    s/wgmma_bf16<true>(d, A/wgmma_bf16<false>(d, A/
a warp leaves out keys that its group does not | attention
    s/if (!GROUP \&\& k0 + c >=/if (k0 + c >=/
products of a warp group are read after a wait that names others | attention
    / attention_dq_kernel(/,/^}/s/arrived<T>(dp);//
heads of fewer numbers than a warp group has columns get their neighbours' | attention
    s/t < end \&\& c < hs ?/t < end \&\& (T::GROUP || c < hs) ?/
warp groups serve with dropout although that was not compared | attention
    s/for (float p : {0.0f, 0.5f})/for (float p : {0.0f})/
warp groups serve on GPUs after Hopper | attention on Blackwell
    s/properties.major == 9 \&\& same_attention/properties.major >= 9 \&\& same_attention/
warp groups serve although their bits differ | attention
    s/ \&\& same_attention();/;/
a slot's keys begin before the previous slot's keys have ended | cache
    s/(size_t)h) \* 2 \* head;/(size_t)h) * head;/
a sequence's rows beyond its first 16 are those of its first 16 | cache
    s/first = start\[s\] + i \* CACHED_ROWS/first = start[s]/
a block's number is its sequence's, whatever their lengths | cache
    s/(int)gridDim.x != S \&\& !find_block/false \&\& !find_block/
a small array is waited for on its way to the device | device
    s/const bool stages = bytes <= STAGED_MOST/const bool stages = bytes < 1/
a column beyond the vocabulary keeps its logit | logprob
    /void logprob_backward_kernel/,/^}/s/for (int j = V + (int)threadIdx.x/for (int j = V + 1 + (int)threadIdx.x/
lanes are left out of the sum over a warp | layernorm
    /T warp_sum(T x) {/{n;s/d = 16/d = 8/}
the last channel is left out of the variance | layernorm
    /float square = 0;/,/square = fmaf/s/c < C;/c < C - 1;/
one element too many is processed | gelu
    s/if (i < n) f.template/if (i <= n) f.template/
logits beyond the vocabulary count | logprob
    s/if (j0 + k < V) f(j0 + k, v\[k\]);/f(j0 + k, v[k]);/
a key takes the dropout of the key beside it, forward and dq | attention, large
    s/keep\[0\] = attention_keep(z, odd ? first/keep[0] = attention_keep(z, odd ? second/
the two queries of a lane change places in their dropout | attention, large
    s/= attention_draw(z, odd ? n1 : n0, key/= attention_draw(z, odd ? n0 : n1, key/
a key takes the dropout of the key beside it, dk and dv | attention, large
    s/q % 2 ? x.v\[i\] : x.v\[i + 1\], 4)/q % 2 ? x.v[i + 1] : x.v[i], 4)/
two keys of a lane draw the same dropout, dk and dv | attention, large
    s/key + q \/ 2 \* 8, h, NH)/key, h, NH)/
there is no dropout where there should be, dq | attention, large
    s/drop ? attention_dq_kernel<HSP, true, GROUP>/drop ? attention_dq_kernel<HSP, false, GROUP>/
a block takes more shared memory than some GPUs have | attention, large
    s/enum { KB = FP32 ? 32 : 64,/enum { KB = 64,/;s/static_assert(bytes <= SHARED_OF_ANY_GPU.*//
memory for copies is used again before they have been made | device
    s/if (staged + bytes > STAGING) wait_for_stream();/if (staged + bytes > STAGING) staged = 0;/
a product that cuBLASLt has no way for takes the wrong transpose | linear
    s/b_next = B.transposed ? 1 : B.stride;/b_next = B.transposed ? B.stride : 1;/
a product that cuBLASLt has no way for forgets what was there | linear
    s/put(to, add ? get(to) + sum : sum);/put(to, sum);/
a draw of noise is used four times | noise
    s/c \/ 4).v\[c % 4\]/c \/ 4).v[0]/
a repeated token's gradient is counted again | embedding
    s/if (c >= C || (blockIdx.x \&\& at\[-1\].x == id)) return;/if (c >= C) return;/
rows of an id are added from the last to the first | embedding
    s/for (int i = before; i < min(end, n - from); i++) sum/for (int i = max(before, n - from + 1); i < min(end, before + THREADS); i++) sum/
rows of an id in an earlier chunk are not counted as earlier | embedding
    s/smaller(ids, 0, before, mine + 1)/smaller(ids, 0, before, from < first - IDS ? mine : mine + 1)/
an id's rows end with its first full turn of loads | embedding
    s/for (int rows = AT_ONCE; rows == AT_ONCE; at += AT_ONCE)/for (int rows = AT_ONCE; rows > AT_ONCE; at += AT_ONCE)/
a turn of loads takes rows of the next id | embedding
    s/rows += next.x == id;/rows += next.x >= id;/
a width that is no multiple of eight is taken in eights | embedding
    s/eights = C % 8 == 0 \&\& aligned(to, dout)/eights = C % 8 == 0 || aligned(to, dout)/
a product takes the wrong transpose | linear
    s/Matrix{weight, (size_t)OC, true}, dinp/Matrix{weight, (size_t)OC, false}, dinp/
a weight's gradient is overwritten instead of accumulated | linear
    /^void linear_backward_weight/,/^}/s/true, true, NULL,/false, true, NULL,/
the input of GELU is written to rows too far apart | gelu
    s/_AUX_LD, (int64_t)stride/_AUX_LD, (int64_t)stride + 8/
GELU overwrites its input instead of writing its output | gelu
    /linear_forward(pre, inp/{n;s/gelu_forward(out/gelu_forward(pre/}
a second stream does not wait for the first | linear
    /cudaStreamWaitEvent(beside.own, beside.begin/d
the first stream does not wait for the second | linear
    /cudaStreamWaitEvent(own, beside.end/d
the first stream waits for itself instead of the second | linear
    s/cudaEventRecord(beside.end, beside.own)/cudaEventRecord(beside.end, own)/
a weight gradient's factor is overwritten while it is read | linear
    /for (int i = 0; i < beside.count; i++)/,/return stream.own/s/return stream;/return stream.own;/
what runs on the second stream is forgotten when there is much of it | linear
    s/if (beside.count + 3 > BESIDE_MOST) (void)(cudaStream_t)stream/if (beside.count + 3 > BESIDE_MOST) beside.count = 0/
the algorithm of a product depends on the number of rows | linear
    /const Kind kind = {/,/}/{s/rows_are_k ? M : 0/M/;s/rows_are_k ? 0 : K/K/}
a threshold of NF4 belongs to the code above | nf4
    s/x\[i\] \* inverse > tables/x[i] * inverse >= tables/
the running sum of probabilities skips lanes | sample
    s/if (lane >= d) before += below;/if (lane > d) before += below;/
of equal tokens the last ones are kept | sample
    s/((1u << id_bits) - 1 - (uint32_t)id)/(uint32_t)id/
0 and -0 are not equal | sample
    s/__float_as_uint(x + 0.0f)/__float_as_uint(x)/
negative numbers keep their order of bits | sample
    s/bits >> 31 ? ~bits : bits | 0x80000000u/bits ^ 0x80000000u/
tokens count whose higher digits are others | sample
    s/if ((key ^ found) >> shift >> DIGIT) return;//
tokens of larger digits are forgotten | sample
    s/before += sums\[d--\];/d--;/
a prefix ends with the token before the one that suffices | sample
    s/before + sums\[d\] < max(enough/before + sums[d] <= max(enough/
a barrier is missing before bins are added | sample
    s/__syncthreads();  \/\/ the bins are full//
a barrier is missing before the sums of bins are read | sample
    s/__syncthreads();  \/\/ the sums are there.*//
bins of the last pass are not emptied | sample
    s/bins\[d\]\[threadIdx.x\] = 0;/bins[d][threadIdx.x] = shift > 40 ? 0 : bins[d][threadIdx.x];/
what top_k left out counts for top_p | sample
    s/total += row.key(j, v) >= last ? row.weight(v) : 0;/total += row.weight(v);/
the likeliest of equal tokens is the last | logprob
    s/(other == top \&\& there < place)/(other == top \&\& there > place)/
a step does not reach the master | optimiser
    s/if (a.master) put<W>(a.master + i, w);//
a block steps on the array before its own | optimiser
    s/if (list\[middle\].first <= blockIdx.x)/if (list[middle].first < blockIdx.x)/
a block's place is counted from the first array | optimiser
    s/const size_t from = (size_t)(blockIdx.x - a.first)/const size_t from = (size_t)blockIdx.x/
a block of eights steps beyond its array | optimiser
    s/if (a.eights \&\& from + STEPPED <= a.array.n)/if (a.eights)/
eight numbers are read beyond an array | optimiser
    s/if (a.eights \&\& i + 8 <= n)/if (a.eights)/
an offset of 32 bits: a row of layernorm | layernorm
    /void layernorm_backward_kernel/,/^}/s/(size_t)n \* (size_t)C/n * C/
an offset of 32 bits: a row of logits | logprob
    /void logprob_forward_kernel/,/^}/s/logits + r \* (size_t)ldv/logits + (int)r * ldv/
LIST
if [ "$build" = --dry-run ]; then
    echo "$planted bugs can be planted, and compile"
else
    echo "$((planted - survived)) of $planted planted bugs were caught"
fi
[ "$planted" -gt 0 ] && [ "$survived" = 0 ]
