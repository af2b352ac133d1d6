#!/bin/sh
# Trains with two builds of sft, on the same records with the same seed, and fails if their losses
# differ by more than 1e-4 at any step.
#
#   sh test/emu/curve.sh SFT OTHER_SFT DIRECTORY STEPS
#
# SFT and OTHER_SFT are the two programs. DIRECTORY is for their outputs.
set -eu
for i in 1 2; do
    program=$1
    [ $i = 1 ] || program=$2
    rm -rf "$3/curve-$i"
    "$program" --model test/tiny --data test/tiny/sft.jsonl --eval test/tiny/sft-eval.jsonl \
        --eval_samples 1 --max_new_tokens 4 --output "$3/curve-$i" --max_steps "$4" \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 1e-3 \
        --warmup_steps 1 --logging_steps 1 --seed 1 >"$3/curve-$i.txt" 2>&1 ||
        { cat "$3/curve-$i.txt"; exit 1; }
    sed -n 's/.*"step": *\([0-9]*\).*[" ]loss": *\([0-9.e+-]*\).*/\1 \2/p' \
        "$3/curve-$i/log.jsonl" >"$3/curve-$i.losses"
done
paste -d ' ' "$3/curve-1.losses" "$3/curve-2.losses" | awk -v steps="$4" '
    {
        d = $2 - $4
        if (d < 0) d = -d
        if (d > worst) worst = d
        if ($1 != $3 || !(d <= 1e-4)) bad = 1
        n++
    }
    END {
        printf "%d losses of %d steps, up to %g apart\n", n, steps, worst
        exit bad || n < steps
    }'
