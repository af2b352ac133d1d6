# The roofline of a training step of GPT-2 124M on a GPU, in bf16 with AdamW: for each kernel the
# bytes that it must move to or from memory, the operations of its matrix products, and the least
# time for them. Prints a table. cuda_table.sh passes bandwidth (TB/s) and peak (TFLOP/s).
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

# Prints the row and begins the next one.
function row(name) {
    printf "| %s | %d | %.2f | %s | %s | %.2f |\n", name, row_calls, row_bytes / 1e9,
        (row_operations ? sprintf("%.2f", row_operations / 1e12) : ""),
        (of_memory > row_ms / 2 ? "memory" : "tensor cores"), row_ms
    all_bytes += row_bytes
    all_operations += row_operations
    all_ms += row_ms
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
    ids = V * (1 - exp(-N / V))  # different tokens among N random ones

    print "| kernel | calls | GB | TFLOP | limit | least ms |"
    print "|---|---|---|---|---|---|"
    add(1, r*N*C + r*T*C + r*N*C)
    row("embedding, forward")
    add(1, r*N*C + r*N*C)              # the first: no sum
    add(2*L, r*2*N*C + r*N*C + r*N*C)  # reads x and y, writes their sum and its norm
    row("layer norm, forward, with the residual")
    forward(C, 3*C, 1)
    forward(C, C, 1)
    forward(C, 4*C, 2)  # before and after GELU
    forward(4*C, C, 1)
    row("products, forward (cuBLASLt)")
    add(L, r*3*N*C + r*N*C + f*N*NH, 2*half)  # reads qkv, writes out and lse
    row("attention, forward")
    add(2, r*N*C + r*N*C)  # gather_rows, scatter_rows
    add(2, r*N*C)          # zeros in d_norm and d_r
    row("rows of the head, and zeros")
    add(1, r*N*C + r*ldv*C + r*N*ldv, 2*N*C*ldv)
    add(1, r*N*ldv + r*ldv*C + r*N*C, 2*N*C*ldv)
    add(1, r*N*ldv + r*N*C + 2*f*ldv*C, 2*N*C*ldv)
    row("head: forward, dgrad, wgrad (cuBLASLt)")
    add(1, r*N*V)  # once, though the kernel reads a row twice
    row("log-probability, forward")
    add(1, r*N*V + r*N*ldv)
    row("log-probability, backward")
    dgrad(C, 3*C)
    dgrad(C, C)
    dgrad(C, 4*C)
    dgrad(4*C, C)
    row("products, dgrad (cuBLASLt)")
    wgrad(C, 3*C)
    wgrad(C, C)
    wgrad(C, 4*C)
    wgrad(4*C, C)
    row("products, wgrad (cuBLASLt)")
    add(2*L, r*N*C + r*N*C)
    row("layer norm, forward again")
    add(2*L + 1, r*3*N*C + r*N*C)  # reads dout, x and dx, writes dx
    row("layer norm, backward")
    add(2*L + 1, r*2*N*C)
    row("sums over columns, of a norm")
    add(2*L, r*N*C)
    add(L, r*4*N*C)
    add(L, r*3*N*C)
    row("sums over columns, of a bias")
    parts = 2 * 2*f*N/128  # of a column, written and read: two floats for each chunk of 128 rows
    add(2*L + 1, parts*C)
    add(2*L, parts*C)
    add(L, parts*4*C)
    add(L, parts*3*C)
    row("sums of chunks")
    add(L, r*2*4*N*C + r*2*4*N*C)  # reads and writes dout and x
    row("GELU, backward")
    add(L, r*2*N*C + f*N*NH + 4*f*N*NH)  # reads dout, out, lse; writes sums
    row("attention, sums of rows")
    add(L, r*3*N*C + r*N*C + 4*f*N*NH + r*N*C, 3*half)  # reads qkv, dout, sums
    row("attention, dq")
    add(L, r*3*N*C + r*N*C + 4*f*N*NH + r*2*N*C, 4*half)  # the same
    row("attention, dk and dv")
    add(1, r*N*C + 2*f*ids*C)
    add(1, r*N*C + 2*f*T*C)
    row("embedding, backward, both tables")
    add(1, f*P)
    row("sum of squares")
    add(1, 4*f*P + 4*f*P + r*P)  # reads master, g, m, v; writes them and the weight
    row("AdamW")
    printf "| sum | | %.1f | %.2f | | %.2f |\n\n", all_bytes / 1e9, all_operations / 1e12, all_ms
    printf "%d tokens in %.1f ms at %g TB/s and %g TFLOP/s are %d tokens/s, and %.0f %% of the " \
        "TFLOP/s.\n", N, all_ms, bandwidth, peak, N / all_ms * 1000,
        all_operations / all_ms * 1e3 / 1e12 / peak * 100
}
