# One table from two outputs of bench.c:
#
#   awk -f test/bench/bench_compare.awk CPU GPU
#
# A row that both outputs have is compared by the milliseconds of its fastest repetition. A row that
# only one has gets dashes for the other.
BEGIN { FS = "\t" }
FNR == 1 { file++ }
/^#/ { if (FNR == 1) print; next }
/^name\t/ { next }
NF < 7 { next }
{
    key = $1 "  " $2
    if (!(key in seen)) { seen[key] = 1; order[++n] = key }
    ms[file, key] = $3; peak[file, key] = $7
}
function or_dash(x, format) { return x == "" || x == "-" ? "-" : sprintf(format, x) }
END {
    if (file != 2) { print "bench_compare: two outputs of bench are needed" >"/dev/stderr"; exit 1 }
    print "# ms: of the fastest repetition; %: of the machine\047s own peak, the median; " \
          "times: the CPU\047s ms by the GPU\047s"
    printf "%-52s %12s %7s %12s %7s %9s\n", "name and shape", "CPU ms", "%", "GPU ms", "%", "times"
    for (i = 1; i <= n; i++) {
        k = order[i]
        both = ms[1, k] > 0 && ms[2, k] > 0
        printf "%-52s %12s %7s %12s %7s %9s\n", k, or_dash(ms[1, k], "%.3f"),
            or_dash(peak[1, k], "%.1f"), or_dash(ms[2, k], "%.3f"), or_dash(peak[2, k], "%.1f"),
            both ? sprintf("%.3g", ms[1, k] / ms[2, k]) : "-"
    }
}
