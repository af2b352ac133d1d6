# Counts the instructions of a loop of each kernel, by kind, in what nvdisasm and c++filt say of a
# cubin (cuda_table.sh). Prints the rows of a table.
#
# A loop is what lies between a label and the last branch back to it. Its instructions are those
# that are in no loop inside it: attention's loop over the keys is without the loops that copy tiles
# that are not whole.
# What is outside of all loops counts as one more, for kernels whose threads run their main part
# once; then the row says so. One of them is chosen by these rules, in this order:
#
#   - one that has instructions of the tensor cores;
#   - one in which a thread loads or stores 16 bytes at a time;
#   - a loop, rather than what is outside of all;
#   - one without a loop inside;
#   - the longest, because nvcc unrolls: the loop that runs most is the long one, and a short one
#     beside it does what is left over.
#
# All instructions in the range count once, also those of a branch that is seldom or never taken,
# such as the loads of single numbers where eight are not aligned. Code that nvcc has moved behind
# the end of the kernel does not count, and its branch back makes no loop.

function kind_of(op) {
    if (op ~ /^(H|I|Q|D|W|B)G?MMA$/) return "tensor"
    if (op ~ /^LD(S|SM)$/) return "from shared"
    if (op ~ /^STSM?$/) return "to shared"
    if (op ~ /^LD(G|GSTS)?$/) return "load"
    if (op ~ /^STG?$/) return "store"
    if (op ~ /^(LD|ST)L$/) return "local"
    if (op == "MUFU") return "special"
    if (op ~ /^[FD](FMA|ADD|MUL|MNMX|SETP?|SEL|CHK|2FP?|2I)$|^I2FP?$/) return "float"
    if (op ~ /^(BRA|BRX|CALL|RET|EXIT|BSSY|BSYNC|BREAK|ENDCOLLECTIVE)$/) return "control"
    if (op ~ /^(BAR|WARPSYNC|DEPBAR|LDGDEPBAR|MEMBAR|SHFL|VOTE|MATCH|REDUX)$/) return "control"
    return "integer"  # also moves, and HFMA2, with which nvcc sets registers
}

# Is loop k around loop j?
function is_around(k, j) { return k != j && begin[k] <= begin[j] && last[j] <= last[k] }

# Prints the row of the kernel that has ended.
function end_kernel(    i, j, k, best, score, most, row) {
    if (!n) return
    for (k = 0; k <= loops; k++) innermost[k] = k > 0
    for (k = 1; k <= loops; k++)
        for (j = 1; j <= loops; j++)
            if (is_around(k, j)) innermost[k] = 0
    for (i = 1; i <= n; i++) {
        of[i] = 0  # the smallest loop around instruction i
        for (k = 1; k <= loops; k++)
            if (begin[k] <= i && i <= last[k] && \
                (!of[i] || last[k] - begin[k] < last[of[i]] - begin[of[i]]))
                of[i] = k
        if (op[i] == "NOP") continue
        count[of[i]]++
        count[of[i], kind_of(op[i])]++
        if (wide[i]) count[of[i], "wide"]++
    }
    most = -1
    for (k = 0; k <= loops; k++) {
        score = count[k] + 1e6 * innermost[k] + 2e6 * (k > 0) + 4e6 * (count[k, "wide"] > 0)
        score += 8e6 * (count[k, "tensor"] > 0)
        if (score > most) {
            most = score
            best = k
        }
    }
    row = "| " name (best ? "" : ", outside of loops") " | " count[best]
    for (i = 1; i <= kinds; i++) row = row " | " count[best, kind[i]] + 0
    print row " |"
}

BEGIN {
    kinds = split("tensor,from shared,to shared,load,store,local,special,float,integer,control",
                  kind, ",")
}
/^\t\.section/ {
    end_kernel()
    n = loops = end = 0
    split("", at)
    split("", count)
}
/^ *\.global/ {
    name = $0
    sub(/^ *\.global *(void )?/, "", name)
    sub(/\(.*/, "", name)
}
/^\.L_x_[0-9]+:/ { at[substr($1, 1, length($1) - 1)] = n + 1 }
/^ *\/\*[0-9a-f]+\*\// {
    line = $0
    sub(/^[^@A-Z]*(@!?U?P[0-9T] *)?/, "", line)
    op[++n] = line
    sub(/[^A-Z0-9].*/, "", op[n])
    if ($2 == "EXIT") end = n  # on no condition
    wide[n] = line ~ /^(LD|ST)G?\.[A-Z.]*128/
    if (op[n] != "BRA" || !match(line, /\.L_x_[0-9]+/)) next
    label = substr(line, RSTART, RLENGTH)
    if (!(label in at) || at[label] <= end || at[label] == n) next  # no way back to a loop
    for (k = 1; k <= loops && begin[k] != at[label]; k++) continue
    if (k > loops) loops = k
    begin[k] = at[label]
    last[k] = n
}
END { end_kernel() }
