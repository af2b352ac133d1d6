# The roofline of a training step of GPT-2 124M on a GPU, in bf16 with AdamW: for each kernel the
# bytes that it must move to or from memory, the operations of its matrix products, and the least
# time for them. Prints a table. cuda_table.sh passes bandwidth (TB/s) and peak (TFLOP/s).
#
# The last column is a guess until a GPU has been measured: the least time, divided by the share of
# a ceiling that such kernels reach elsewhere. Kernels that read and write rows: 0.85 of the memory.
# cuBLASLt: 0.8 of the tensor cores, and 0.9 for the head, whose matrices are larger. Attention has
# as many instructions beside its products as the tensor cores have cycles. So its ceiling is their
# issue, at 132 x 4 a cycle of 1.755 GHz (H100 SXM), of which 0.6 are used. A launch adds 1.5 us.
#
# The order of the calls is that of gpt2.c, and what a kernel reads or writes is that of kernels.cu.
# There is no dropout. All tokens are scored. Their logits have room in memory, so none are computed
# twice. What a kernel reads again counts once, as if it came from a cache, but nothing stays there
# from one kernel to the next. Left out are biases, the few numbers of a row where its C channels
# count, too, and all arithmetic but matrix products (cuda_table.sh loops).

# Adds calls of a kernel to its row, each of so many bytes and operations.
function add(calls, bytes, operations,    memory, tensor) {
    memory = bytes / (bandwidth * 1e9)  # ms
    tensor = operations / (peak * 1e9)
    row_calls += calls
    row_bytes += calls * bytes
    row_operations += calls * operations
    row_ms += calls * (memory > tensor ? memory : tensor)
    of_memory += calls * memory * (memory > tensor)
}

# Prints the row and begins the next one. share: of the ceiling. instructions: of all warps in a
# call, if they are the ceiling.
function row(name, share, instructions,    guess) {
    guess = instructions ? row_calls * instructions / (132 * 4 * 1.755e9) * 1e3 : row_ms
    guess = guess / share + row_calls * 1.5e-3
    printf "| %s | %d | %.2f | %s | %s | %.2f | %.2f |\n", name, row_calls, row_bytes / 1e9,
        (row_operations ? sprintf("%.2f", row_operations / 1e12) : ""),
        (of_memory > row_ms / 2 ? "memory" : "tensor cores"), row_ms, guess
    all_bytes += row_bytes
    all_operations += row_operations
    all_ms += row_ms
    all_guess += guess
    row_calls = row_bytes = row_operations = row_ms = of_memory = 0
}

# Products of each layer, of IC inputs and OC outputs. An output is stored `times` times.
function forward(IC, OC, times) { add(L, r*N*IC + r*IC*OC + times*r*N*OC, 2*N*IC*OC) }
function dgrad(IC, OC) { add(L, r*N*OC + r*IC*OC + r*N*IC, 2*N*IC*OC) }
function wgrad(IC, OC) { add(L, r*N*IC + r*N*OC + 2*f*IC*OC, 2*N*IC*OC) }

BEGIN {
    N = 16 * 1024  # tokens, in sequences of T
    T = 1024
    C = 768        # channels
    NH = 12        # heads
    hs = C / NH    # head size
    L = 12         # layers
    V = 50257      # vocabulary
    ldv = 50304    # its rows of wte in memory, and a row of logits
    P = V*C + T*C + L*(12*C*C + 13*C) + 2*C  # parameters that train
    r = 2          # bytes of a real
    f = 4          # bytes of a float
    half = N*T*NH*hs  # operations of a causal product of attention: half of 2 N T NH hs
    blocks = T / 64  # of 64 queries, each of which attends to the blocks of keys up to its own
    warps = N / T * NH * blocks * (blocks + 1) / 2 * 4  # with 64 keys each (cuda_table.sh loops)
    ids = V * (1 - exp(-N / V))  # different tokens among N random ones

    print "| kernel | calls | GB | TFLOP | limit | least ms | guess, ms |"
    print "|---|---|---|---|---|---|---|"
    add(1, r*N*C + r*T*C + r*N*C)
    row("embedding, forward", 0.85)
    add(1, r*N*C + r*N*C)              # the first: no sum
    add(2*L, r*2*N*C + r*N*C + r*N*C)  # reads x and y, writes their sum and its norm
    row("layer norm, forward, with the residual", 0.85)
    forward(C, 3*C, 1)
    forward(C, C, 1)
    forward(C, 4*C, 2)  # before and after GELU
    forward(4*C, C, 1)
    row("products, forward (cuBLASLt)", 0.8)
    add(L, r*3*N*C + r*N*C + f*N*NH, 2*half)  # reads qkv, writes out and lse
    row("attention, forward", 0.6, warps * 429)
    add(2, r*N*C + r*N*C)  # gather_rows, scatter_rows
    add(2, r*N*C)          # zeros in d_norm and d_r
    row("rows of the head, and zeros", 0.85)
    add(1, r*N*C + r*ldv*C + r*N*ldv, 2*N*C*ldv)
    add(1, r*N*ldv + r*ldv*C + r*N*C, 2*N*C*ldv)
    add(1, r*N*ldv + r*N*C + 2*f*ldv*C, 2*N*C*ldv)
    row("head: forward, dgrad, wgrad (cuBLASLt)", 0.9)
    add(1, r*N*V)  # once, though the kernel reads a row twice
    row("log-probability, forward", 0.85)
    add(1, r*N*V + r*N*ldv)
    row("log-probability, backward", 0.85)
    dgrad(C, 3*C)
    dgrad(C, C)
    dgrad(C, 4*C)
    dgrad(4*C, C)
    row("products, dgrad (cuBLASLt)", 0.8)
    wgrad(C, 3*C)
    wgrad(C, C)
    wgrad(C, 4*C)
    wgrad(4*C, C)
    row("products, wgrad (cuBLASLt)", 0.8)
    add(2*L, r*N*C + r*N*C)
    row("layer norm, forward again", 0.85)
    add(2*L + 1, r*3*N*C + r*N*C)  # reads dout, x and dx, writes dx
    row("layer norm, backward", 0.85)
    add(2*L + 1, r*2*N*C)
    row("sums over columns, of a norm", 0.85)
    add(2*L, r*N*C)
    add(L, r*4*N*C)
    add(L, r*3*N*C)
    row("sums over columns, of a bias", 0.85)
    parts = 2 * 2*f*N/128  # of a column, written and read: two floats for each chunk of 128 rows
    add(2*L + 1, parts*C)
    add(2*L, parts*C)
    add(L, parts*4*C)
    add(L, parts*3*C)
    row("sums of chunks", 0.85)
    add(L, r*2*4*N*C + r*2*4*N*C)  # reads and writes dout and x
    row("GELU, backward", 0.85)
    add(L, r*2*N*C + f*N*NH + 4*f*N*NH)  # reads dout, out, lse; writes sums
    row("attention, sums of rows", 0.85)
    add(L, r*3*N*C + r*N*C + 4*f*N*NH + r*N*C, 3*half)  # reads qkv, dout, sums
    row("attention, dq", 0.6, warps * 427)
    add(L, r*3*N*C + r*N*C + 4*f*N*NH + r*2*N*C, 4*half)  # the same
    row("attention, dk and dv", 0.6, warps * 608)
    add(1, r*N*C + 2*f*ids*C)
    add(1, r*N*C + 2*f*T*C)
    row("embedding, backward, both tables", 0.85)
    add(1, f*P)
    row("sum of squares", 0.85)
    add(1, 4*f*P + 4*f*P + r*P)  # reads master, g, m, v; writes them and the weight
    row("AdamW", 0.85)
    printf "| sum | | %.1f | %.2f | | %.2f | %.2f |\n\n", all_bytes / 1e9, all_operations / 1e12,
        all_ms, all_guess
    printf "%d tokens in %.1f ms at %g TB/s and %g TFLOP/s are %d tokens/s, and %.0f %% of the " \
        "TFLOP/s.\n", N, all_ms, bandwidth, peak, N / all_ms * 1000,
        all_operations / all_ms * 1e3 / 1e12 / peak * 100
    printf "By the guess they are %d tokens/s, and %.0f %%.\n", N / all_guess * 1000,
        all_operations / all_guess * 1e3 / 1e12 / peak * 100
}
