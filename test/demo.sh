#!/bin/sh
# Every program on the built-in world, and one table of what it learned there. A claim that does not hold fails the command.
#
#   sh test/demo.sh BUILD      BUILD: the directory of the programs
set -eu
cd "$(dirname "$0")/.."
build=$1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

# row TECHNIQUE MEASURE BEFORE AFTER AT_MOST_BEFORE AT_LEAST_AFTER SECONDS
row() {
    verdict=$(awk -v b="$3" -v a="$4" -v most="$5" -v least="$6" 'BEGIN { print (b + 0 <= most && a + 0 >= least) ? "holds" : "FAILS" }')
    [ "$verdict" = holds ] || failed=1
    printf '%s\t%s\t%s\t%s\t%s\t%s (before <= %s, after >= %s)\n' "$1" "$2" "$3" "$4" "$7" "$verdict" "$5" "$6" >>"$out/table"
}

# run PROGRAM SEED: the held-out exact match, in percent, before and after, and the seconds it took
run() {
    echo "→ ./$1 --seed $2"
    begin=$(date +%s)
    "$build/$1" --seed "$2" >"$out/$1.txt" || { cat "$out/$1.txt"; exit 1; }
    seconds=$(($(date +%s) - begin))
    line=$(grep 'exact match' "$out/$1.txt")
    before=$(echo "$line" | sed 's/.*exact match \([0-9.]*\) % -> .*/\1/')
    after=$(echo "$line" | sed 's/.*exact match [0-9.]* % -> \([0-9.]*\) %.*/\1/')
}

printf 'technique\theld-out measure\tbefore\tafter\tseconds\tclaim\n' >"$out/table"
for seed in 1 2 3; do
    run sft $seed
    row "sft, seed $seed" "exact answers to questions never asked, %" "$before" "$after" 5 85 "$seconds"
done
run full_ft 1
row full_ft "exact summaries of new texts, %" "$before" "$after" 5 80 "$seconds"
for seed in 1 2 3; do
    run lora $seed
    row "lora, seed $seed" "exact remedies for patients never asked about, %" "$before" "$after" 5 65 "$seconds"
done
for seed in 1 2 3; do
    run adapter $seed
    row "adapter, seed $seed" "exact remedies for patients never asked about, %" "$before" "$after" 5 55 "$seconds"
done

echo
column -t -s '	' "$out/table" 2>/dev/null || cat "$out/table"
exit $failed
