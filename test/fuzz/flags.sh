#!/bin/sh
# flags.sh BUILD SECONDS [SEED]: every flag of every program, from --help, at extreme values, and
# pairs of flags. A run is a --dry_run of the built-in example. It must end with 0, 1 or 2, within a
# minute, without a word of a sanitizer. BUILD has programs with sanitizers (make fuzz_flags).
#
# The runs come in an order that the seed decides, singles before pairs, and stop after SECONDS.
# SECONDS 0: all singles and as many pairs. The last line says how many there were.
set -eu
build=$(cd "$1" && pwd) seconds=$2 seed=${3:-1}
work=$(mktemp -d "${TMPDIR:-/tmp}/flags.XXXXXX")
trap 'rm -rf "$work"' EXIT
ln -s "$PWD/test" "$work/test"
export build work OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1

for program in sft reward ppo constitutional full_ft lora adapter; do
    "$build/$program" --help | sed -n "s/^  --\([a-z0-9_]*\) .*/$program \1/p"
done >"$work/flags"

# One run a line: PROGRAM --FLAG=VALUE [--FLAG=VALUE]
awk -v seed="$seed" '
BEGIN {
    n = 0
    srand(seed)
    n_values = split("-1 0 1 2 65536 1048576 2147483647 2147483648 9223372036854775807 1e-45 " \
                     "1e-3 1e38 1e999 nan -inf EMPTY true abc,", value, " ")
}
$2 != "help" && $2 != "dry_run" && $2 != "chat" { program[n] = $1; flag[n++] = $2 }
function setting(i, v) { return "--" flag[i] "=" (v == "EMPTY" ? "" : v) }
function any() { return value[1 + int(rand() * n_values)] }
END {
    for (i = 0; i < n; i++)
        for (v = 1; v <= n_values; v++)
            print 0, rand(), program[i], setting(i, value[v])
    for (k = 0; k < n * n_values; k++) {
        i = int(rand() * n)
        do j = int(rand() * n); while (program[j] != program[i])
        print 1, rand(), program[i], setting(i, any()), setting(j, any())
    }
}' "$work/flags" | sort -k1,1n -k2,2 | cut -d' ' -f3- >"$work/runs"

cat >"$work/run" <<'END'
set -u
[ "$(date +%s)" -lt "$until" ] || exit 255  # tells xargs to stop
line=$1
program=${line%% *} flags=${line#* }
dir=$(mktemp -d "$work/run.XXXXXX")
ln -s "$work/test" "$dir/test"
cd "$dir"
status=0
timeout 60 "$build/$program" --dry_run $flags </dev/null >out 2>&1 || status=$?
if [ $status -gt 2 ] || grep -q 'Sanitizer\|runtime error' out; then
    printf '✗ %s --dry_run %s: status %s\n' "$program" "$flags" "$status"
    tail -15 out | cut -c1-200
    echo x >>"$work/failed"
fi
echo x >>"$work/done"
cd "$work" && rm -rf "$dir"
END

until=$(($(date +%s) + (seconds > 0 ? seconds : 1000000)))
export until
tr '\n' '\0' <"$work/runs" | xargs -0 -n 1 -P "$(nproc)" sh "$work/run" 2>/dev/null || true
done=$(wc -l <"$work/done") failed=$(cat "$work/failed" 2>/dev/null | wc -l)
echo "$done of $(wc -l <"$work/runs") runs, $failed failed"
[ "$failed" = 0 ]
