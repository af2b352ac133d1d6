# What 2 to 1,024 machines would give, computed from the output of test/bench/ranks.sh:
#
#     TOKENIZER=models/gpt2 sh test/network.sh .build/gcc test/bench/ranks.sh | tee ranks.txt
#     awk -f test/bench/machines.awk ranks.txt
#
# It prints tables in Markdown: tokens/s of all machines, and their share of R times one machine's.
# -v micro=1 sets how many micro-batches of 4 x 256 tokens a machine computes in a step, and -v
# latency=1e-4 the seconds that a message takes besides its bytes. Measured are
#
#     rate      tokens/s of one machine on 124M                      row "1 process of 2 threads"
#     hidden    share of the gradients' exchange that is hidden      row "10gbit"
#     sent      bytes sent by 2 (R-1)/R of the parameters'           row "bytes sent"
#
# A step of R machines on a model of P parameters, N = 1,024 micro tokens for each machine:
#
#     compute   N / rate. For 1.5B the rate is lower by the ratio of the FLOP of a token, 6 P + 12 L C
#               T / 2 at T = 256: it is assumed to reach the same share of the peak.
#     bytes     sent x 4 P (R-1)/R, once for gradients and once for weights, at the link's speed. Each
#               machine has one link, which sends and receives at full speed at the same time, to a
#               switch that slows nobody.
#     rounds    latency x log2(R) x (layers + 1), once for each: every band of the gradients is
#               halved log2(R) times.
#     overlap   The gradients are hidden as measured, as far as the backward pass of the last
#               micro-batch lasts, two thirds of its time: a machine waits for
#               max((1 - hidden) x exchange, exchange - backward). For weights it waits as long as
#               they take.
#     tokens/s  R N / (compute + both waits). All machines are equal, and none is late.

function log2(x) { return log(x) / log(2) }
function flop(P, L, C) { return 6 * P + 12 * L * C * 256 / 2 }
function commas(n, s) {
    for (n = sprintf("%.0f", n); length(n) > 3; n = substr(n, 1, length(n) - 3))
        s = "," substr(n, length(n) - 2) s
    return n s
}
# tokens/s of R machines; bits a second; parameters, layers, channels
function speed(R, bits, P, L, C, N, compute, exchange, rounds, backward, gradients) {
    N = 1024 * micro
    compute = N / rate * flop(P, L, C) / flop(124439808, 12, 768)
    rounds = latency * log2(R) * (L + 1)
    exchange = sent * 32 * P * (R - 1) / R / bits + rounds
    backward = compute / micro * 2 / 3
    gradients = (1 - hidden) * exchange
    if (exchange - backward > gradients) gradients = exchange - backward
    return R * N / (compute + gradients + exchange)
}
function table(name, P, L, C, R, i, one, all) {
    printf "\n%s, %s tokens a machine and step\n\n", name, commas(1024 * micro)
    print "| machines | 1 Gbit/s | 10 Gbit/s | 100 Gbit/s |"
    print "|---|---|---|---|"
    one = speed(1, 1e9, P, L, C)
    for (R = 2; R <= 1024; R *= 2) {
        printf "| %s |", commas(R)
        for (i = 9; i <= 11; i++) {
            all = speed(R, 10 ^ i, P, L, C)
            printf " %s (%.0f %%) |", commas(all), 100 * all / (R * one)
        }
        print ""
    }
}

BEGIN {
    if (!micro) micro = 1
    if (!latency) latency = 1e-4
}
/^1 process of/ {
    gsub(",", "", $6)
    rate = $6
}
/10gbit/ { fast = 1 }
/hidden/ && fast { hidden = $NF; fast = 0 }
/^bytes sent/ { sent = $8 }
END {
    if (!rate || hidden == "" || !sent) {
        print "no measurements: give the output of test/bench/ranks.sh" >"/dev/stderr"
        exit 2
    }
    printf "measured: %s tokens/s, %.1f %% hidden, %.3f of the bytes; assumed: %g s a message\n",
           rate, 100 * hidden, sent, latency
    table("GPT-2 124M", 124439808, 12, 768)
    table("GPT-2 1.5B", 1557611200, 48, 1600)
}
