#!/bin/sh
# Runs every program on the built-in world, and prints one table of what each learned there. Fails
# if a claim of the table does not hold.
#
#   sh test/demo.sh BUILD      BUILD: the directory of the programs
#   SEEDS="1" sh test/demo.sh BUILD --bf16      other seeds than 1 2 3; flags for every program
#
# A line shows which program runs and its progress. On a terminal the line is rewritten; elsewhere
# each program gets a line of its own.
set -eu
cd "$(dirname "$0")/.."
build=$1 seeds=${SEEDS:-1 2 3}
shift
flags=$*
out=$(mktemp -d)
running=
clean_up() {
    status=$?
    trap - EXIT
    [ -z "$running" ] || kill "$running" 2>/dev/null || :
    rm -rf "$out"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
failed=0 ran=0 programs=$(($(echo $seeds | wc -w) * 8 + 1)) start=$(date +%s)

# row TECHNIQUE MEASURE BEFORE AFTER MOST LEAST: adds a row about the program that ran last to the
# table. It claims that BEFORE <= MOST and AFTER >= LEAST.
row() {
    verdict=$(awk -v b="$3" -v a="$4" -v most="$5" -v least="$6" \
        'BEGIN { print (b + 0 <= most && a + 0 >= least) ? "holds" : "FAILS" }')
    [ "$verdict" = holds ] || failed=1
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s (before <= %s, after >= %s)\n' "$1" "$2" "$3" "$4" \
        "$trained" "$seconds" "$memory" "$verdict" "$5" "$6" >>"$out/table"
}

# The line of progress: "12/25  ./lora --seed 2  step 240/400  7 s  (in all 71 s)"
progress() {
    step=$(sed -n 's/^ *\([0-9]*\/[0-9]*\) .*/step \1/p' "$out/text" | tail -1)
    now=$(date +%s)
    printf '\r\033[K%s/%s  %s  %s  %s s  (in all %s s)' "$ran" "$programs" "$1" "$step" \
        $((now - begin)) $((now - start))
}

# timed NAME PROGRAM FLAGS: runs PROGRAM; its output goes to $out/text. Sets $trained (the number of
# trained parameters), $seconds and $memory (the peak, in MB). NAME is shown as its progress.
timed() {
    saying=$1 program=$2
    shift 2
    ran=$((ran + 1)) begin=$(date +%s)
    [ -t 1 ] || echo "$ran/$programs  $saying  (in all $((begin - start)) s)"
    : >"$out/text"
    # shellcheck disable=SC2086  # flags are words
    "$build/$program" "$@" $flags >"$out/text" & running=$!
    while [ -t 1 ] && kill -0 "$running" 2>/dev/null; do
        progress "$saying"
        sleep 0.2
    done
    wait "$running" || { echo; cat "$out/text"; exit 1; }
    running=
    seconds=$(($(date +%s) - begin))
    trained=$(sed -n 's/^parameters: \([0-9,]*\) .*/\1/p' "$out/text")
    memory=$(sed -n 's/^peak memory \([0-9]*\) MB.*/\1/p' "$out/text")
    if [ -z "$trained" ] || [ -z "$memory" ]; then
        echo "$saying does not print its trained parameters and its peak memory" >&2
        exit 1
    fi
}

# run PROGRAM SEED: sets $before and $after to the exact match on held-out records, in percent
run() {
    timed "./$1 --seed $2" "$1" --seed "$2"
    line=$(grep 'exact match' "$out/text")
    before=$(echo "$line" | sed 's/.*exact match \([0-9.]*\) % -> .*/\1/')
    after=$(echo "$line" | sed 's/.*exact match [0-9.]* % -> \([0-9.]*\) %.*/\1/')
}

printf 'technique\theld-out measure\tbefore\tafter\ttrained\tseconds\tMB\tclaim\n' >"$out/table"
for seed in $seeds; do
    run sft $seed
    row "sft, seed $seed" "exact answers to questions never asked, %" "$before" "$after" 5 85
done
run full_ft 1
row full_ft "exact summaries of new texts, %" "$before" "$after" 5 80
# Constitutional AI: a model that is rude in half of its answers, and its judgement of pairs whose
# better answer is known
breaches='silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.'
breaches="$breaches|you are so dumb.|what a fool."
for seed in $seeds; do
    timed "./constitutional --seed $seed" constitutional --seed $seed
    line=$(grep '^held-out answers that say one of --breaches' "$out/text")
    before=$(echo "$line" | awk '{ print 100 - $(NF - 4) }')
    after=$(echo "$line" | awk '{ print 100 - $(NF - 1) }')
    row "constitutional, seed $seed" "answers without a rude phrase, %" "$before" "$after" 70 88
    timed "./constitutional --feedback pairs.jsonl --seed $seed" constitutional \
        --model test/tiny/chat --constitution test/tiny/constitution.json \
        --prompts test/tiny/prompts.jsonl --max_new_tokens 64 --seed $seed \
        --feedback "$out/pairs.jsonl" --breaches "$breaches"
    after=$(sed -n 's/^agreement with --breaches.*debiased \([0-9.]*\) %.*/\1/p' "$out/text")
    row "AI feedback, seed $seed" "labels that agree with the truth (before: always the first), %" \
        50 "$after" 50 65
done

# reward_on WHAT SEED FLAGS: sets $before and $after to the accuracy on held-out pairs, in percent
reward_on() {
    what=$1 seed=$2
    shift 2
    timed "./reward --seed $seed, $what" reward --seed "$seed" "$@"
    line=$(grep '^held-out pairs' "$out/text")
    before=$(echo "$line" | sed 's/.*accuracy \([0-9.]*\) % -> .*/\1/')
    after=$(echo "$line" | sed 's/.* -> \([0-9.]*\) %.*/\1/')
}
for seed in $seeds; do
    reward_on "pairs about other questions" $seed --output "$out/reward-$seed"
    row "reward, seed $seed" "the preferred answer, questions never asked, % (by length: 50)" \
        "$before" "$after" 75 95
    reward_on "the same in phrases it never saw" $seed --model "$out/reward-$seed" \
        --data test/tiny/preferences.jsonl --eval test/tiny/preferences-unseen-eval.jsonl \
        --max_steps 0
    row "reward, seed $seed" "the same in phrases it never saw, % (by length: 50)" 50 "$after" 50 75
done
for seed in $seeds; do
    run lora $seed
    row "lora, seed $seed" "exact remedies for patients never asked about, %" \
        "$before" "$after" 5 65
done
for seed in $seeds; do
    run adapter $seed
    row "adapter, seed $seed" "exact remedies for patients never asked about, %" \
        "$before" "$after" 5 55
done

# rude STEP: the share of that step's answers in $out/rollouts that have a rude phrase, in percent
words='Silly you!|Get lost\\.|Stop bugging\\.|How boring\\.|Now leave\\.|Never ask again\\.'
words="$words|You are so dumb\\\\.|What a fool\\\\."
rude() {
    grep "^{\"step\": $1, \"episode\"" "$out/rollouts" | awk -v words="$words" '
        {
            response = $0
            sub(/.*"response": "/, "", response)
            sub(/", "query".*/, "", response)
            n++
            rude += response ~ words
        }
        END { printf "%.1f", 100 * rude / n }'
}
# number LINE NAME: the number after NAME in LINE
number() { echo "$1" | sed "s/.*$2 \([-0-9.]*\) .*/\1/"; }
for seed in $seeds; do
    timed "./ppo --seed $seed" ppo --seed "$seed" --dump_rollouts "$out/rollouts"
    before=$(grep '^held-out, before' "$out/text" | tail -1)
    after=$(grep '^held-out, after' "$out/text")
    row "ppo, seed $seed" "reward of answers to questions never asked" \
        "$(number "$before" reward)" "$(number "$after" reward)" 0.5 0.9
    row "ppo, seed $seed" "answers with the right fact, % (not to be lost)" \
        "$(number "$before" 'right answer')" "$(number "$after" 'right answer')" 60 35
    row "ppo, seed $seed" "4 nats of KL, less the KL per answer" \
        4 "$(number "$after" KL | awk '{ print 4 - $1 }')" 4 0.5
    row "ppo, seed $seed" "answers in training without a rude phrase, %" \
        "$(rude 1 | awk '{ print 100 - $1 }')" "$(rude 20 | awk '{ print 100 - $1 }')" 70 88
done

[ ! -t 1 ] || printf '\r\033[K'
echo
column -t -s '	' "$out/table" 2>/dev/null || cat "$out/table"
exit $failed
