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

# timed SAYING PROGRAM FLAGS: what it prints goes to $out/text, and the seconds it took are $seconds
timed() {
    echo "→ $1"
    shift
    program=$1
    shift
    begin=$(date +%s)
    "$build/$program" "$@" >"$out/text" || { cat "$out/text"; exit 1; }
    seconds=$(($(date +%s) - begin))
}

# run PROGRAM SEED: the held-out exact match, in percent, before and after, and the seconds it took
run() {
    timed "./$1 --seed $2" "$1" --seed "$2"
    line=$(grep 'exact match' "$out/text")
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
# Constitutional AI: a model that is rude in half of its answers, and its judgement of pairs whose better answer is known
for seed in 1 2 3; do
    timed "./constitutional --seed $seed" constitutional --seed $seed
    line=$(grep '^held-out answers that say one of --breaches' "$out/text")
    before=$(echo "$line" | awk '{ print 100 - $(NF - 4) }')
    after=$(echo "$line" | awk '{ print 100 - $(NF - 1) }')
    row "constitutional, seed $seed" "answers without a rude phrase, %" "$before" "$after" 70 88 "$seconds"
    timed "./constitutional --feedback pairs.jsonl --seed $seed" constitutional --model test/tiny/chat --constitution test/tiny/constitution.json \
        --prompts test/tiny/prompts.jsonl --max_new_tokens 64 --seed $seed --feedback "$out/pairs.jsonl" \
        --breaches 'silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.|you are so dumb.|what a fool.'
    after=$(sed -n 's/^agreement with --breaches.*debiased \([0-9.]*\) %.*/\1/p' "$out/text")
    row "AI feedback, seed $seed" "labels that agree with the truth (before: always the first), %" 50 "$after" 50 65 "$seconds"
done

# reward_on WHAT SEED FLAGS: the accuracy on held-out pairs, in percent, before and after, and the seconds it took
reward_on() {
    what=$1 seed=$2
    shift 2
    timed "./reward --seed $seed, $what" reward --seed "$seed" "$@"
    line=$(grep '^held-out pairs' "$out/text")
    before=$(echo "$line" | sed 's/.*accuracy \([0-9.]*\) % -> .*/\1/')
    after=$(echo "$line" | sed 's/.* -> \([0-9.]*\) %.*/\1/')
}
for seed in 1 2 3; do
    reward_on "pairs about other questions" $seed --output "$out/reward-$seed"
    row "reward, seed $seed" "the preferred answer, questions never asked, % (by length: 50)" "$before" "$after" 75 95 "$seconds"
    reward_on "the same in phrases it never saw" $seed --model "$out/reward-$seed" --data test/tiny/preferences.jsonl \
        --eval test/tiny/preferences-unseen-eval.jsonl --max_steps 0
    row "reward, seed $seed" "the same in phrases it never saw, % (by length: 50)" 50 "$after" 50 75 "$seconds"
done
for seed in 1 2 3; do
    run lora $seed
    row "lora, seed $seed" "exact remedies for patients never asked about, %" "$before" "$after" 5 65 "$seconds"
done
for seed in 1 2 3; do
    run adapter $seed
    row "adapter, seed $seed" "exact remedies for patients never asked about, %" "$before" "$after" 5 55 "$seconds"
done

# rude STEP: the share of that step's answers in $out/rollouts that hold a rude phrase, in percent: words counted, no model asked
rude() {
    grep "^{\"step\": $1," "$out/rollouts" | awk -v words='Silly you!|Get lost\\.|Stop bugging\\.|How boring\\.|Now leave\\.|Never ask again\\.|You are so dumb\\.|What a fool\\.' '
        { response = $0; sub(/.*"response": "/, "", response); sub(/", "query".*/, "", response); n++; rude += response ~ words } END { printf "%.1f", 100 * rude / n }'
}
for seed in 1 2 3; do
    timed "./ppo --seed $seed" ppo --seed "$seed" --dump_rollouts "$out/rollouts"
    before=$(grep '^held-out, before' "$out/text" | tail -1) after=$(grep '^held-out, after' "$out/text")
    row "ppo, seed $seed" "reward of answers to questions never asked" "$(echo "$before" | sed 's/.*reward \([-0-9.]*\) .*/\1/')" \
        "$(echo "$after" | sed 's/.*reward \([-0-9.]*\) .*/\1/')" 0.5 0.9 "$seconds"
    row "ppo, seed $seed" "of them hold the right fact, % (not to be lost)" "$(echo "$before" | sed 's/.*right answer \([0-9.]*\) .*/\1/')" \
        "$(echo "$after" | sed 's/.*right answer \([0-9.]*\) .*/\1/')" 60 35 "$seconds"
    row "ppo, seed $seed" "what is left of 4 nats of KL" 4 "$(echo "$after" | sed 's/.*KL \([0-9.]*\) .*/\1/' | awk '{ print 4 - $1 }')" 4 0.5 "$seconds"
    row "ppo, seed $seed" "answers in training without a rude phrase, %" "$(rude 1 | awk '{ print 100 - $1 }')" "$(rude 20 | awk '{ print 100 - $1 }')" 70 88 "$seconds"
done

echo
column -t -s '	' "$out/table" 2>/dev/null || cat "$out/table"
exit $failed
