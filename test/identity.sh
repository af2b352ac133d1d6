#!/bin/sh
# Prints the SHA-256 of every log and model that short runs of the seven programs write. A change
# that should not alter behaviour must leave this output unchanged: compare those of two builds.
#
#   sh test/identity.sh BUILD      BUILD: the directory of the programs, such as .build/cc
set -eu
cd "$(dirname "$0")/.."
build=$1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# run NAME PROGRAM FLAGS: runs PROGRAM with --output $out/NAME
run() {
    name=$1 program=$2
    shift 2
    "$build/$program" "$@" --output "$out/$name" >"$out/$name.txt" 2>&1 ||
        { cat "$out/$name.txt"; exit 1; }
}
tiny=test/tiny
breaches='silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.'
breaches="$breaches|you are so dumb.|what a fool."

# so that a run that has ended can be resumed from an earlier checkpoint; an older build has no such
# flag
keep=--keep_moments
"$build/sft" --help | grep -q keep_moments || keep=

run sft sft --max_steps 24 --logging_steps 5 --eval_steps 9 --eval_samples 2 --save_steps 10 \
    --save_total_limit 0
run sft-plain sft --model $tiny/chat --data $tiny/sft.jsonl --max_steps 6 --logging_steps 1 \
    --neftune_noise_alpha 5 --dropout --validation_split_percentage 10 --warmup_steps 2 \
    --gradient_checkpointing --train_on_prompt
run full_ft full_ft --max_steps 12 --logging_steps 5 --eval_steps 6 --eval_samples 2
run full_ft-init full_ft --init d2-c32-h2-t64 --model $tiny --data $tiny/domain.jsonl \
    --eval $tiny/domain-eval.jsonl --max_steps 6 --eval_samples 2 --max_new_tokens 4 \
    --warmup_steps 2 --logging_steps 2
run lora lora --max_steps 12 --logging_steps 5 --eval_steps 6 --eval_samples 2 \
    --merge "$out/merged" --lora_dropout 0.1
run qlora lora --max_steps 8 --logging_steps 4 --eval_steps 4 --eval_samples 2 --load_in_4bit \
    --use_rslora --target_modules c_attn,mlp.c_proj
run lora-on lora --max_steps 4 --logging_steps 2 --adapter "$out/lora" --model $tiny \
    --data $tiny/domain.jsonl --eval $tiny/domain-eval.jsonl --eval_samples 2 --warmup_steps 1 \
    --dropout 0.1
run adapter adapter --max_steps 12 --logging_steps 5 --eval_steps 6 --eval_samples 2
run pfeiffer adapter --max_steps 8 --logging_steps 4 --eval_steps 4 --eval_samples 2 \
    --placement pfeiffer --activation silu --reduction_factor 8 --train_layernorm --init bert \
    --adapter_dropout 0.1
run reward reward --max_steps 12 --logging_steps 5 --eval_steps 6 --normalize \
    --center_rewards_coefficient 0.01
run reward-on reward --model "$out/reward" --data $tiny/preferences.jsonl --max_steps 4 \
    --logging_steps 1 --warmup_steps 1 --dropout 0.1 --gradient_checkpointing
"$build/reward" --model "$out/reward" --score $tiny/sft-eval.jsonl \
    --score_output "$out/scores.jsonl" >/dev/null
"$build/reward" --model $tiny/reward --prompt "Where is the red ball?" --response "In the box." \
    >"$out/score.jsonl"
run ppo ppo --max_steps 4 --logging_steps 2 --eval_steps 2 --eval_samples 8 \
    --dump_rollouts "$out/rollouts.jsonl" --whiten_rewards --entropy_coef 0.01 --save_steps 2 \
    --save_total_limit 0
run lmhp ppo --preset lmhp --model $tiny/chat --reward_model $tiny/reward \
    --data $tiny/prompts.jsonl --eval $tiny/prompts-eval.jsonl --max_steps 3 --batch_size 32 \
    --eval_samples 8 --adap_kl_ctrl --target 0.5 --horizon 100 --num_mini_batches 2 \
    --ptx_data $tiny/sft.jsonl --kl_estimator k3
run grpo ppo --preset textbook --model $tiny/chat --reward_model $tiny/reward \
    --data $tiny/prompts.jsonl --max_steps 3 --batch_size 32 --num_generations 4 \
    --advantage grpo --no_exact_kl
run rloo ppo --preset nplus --model $tiny/chat --data $tiny/prompts.jsonl --max_steps 2 \
    --batch_size 32 --num_generations 4 --advantage rloo --target_kl 0.001 \
    --reward_cmd 'sed -u "s/.*/{\"score\": 1}/"'
run constitutional constitutional --max_steps 6 --logging_steps 2 --eval_steps 3 \
    --eval_samples 8 --max_iterations 2
run constitutional-all constitutional --model $tiny/chat --prompts $tiny/prompts.jsonl \
    --data $tiny/sft.jsonl --max_steps 4 --logging_steps 1 --principles all --revisions all \
    --regenerate --keep_rounds 1 --max_new_tokens 32 --warmup_steps 1
"$build/constitutional" --model $tiny/chat --constitution $tiny/constitution.json \
    --prompts $tiny/prompts.jsonl --max_new_tokens 32 --feedback "$out/pairs.jsonl" \
    --breaches "$breaches" --clamp 0.1,0.9 >/dev/null
"$build/sft" --model $tiny/chat --prompt "Where is the red ball?" >"$out/answer.jsonl" 2>/dev/null
for stage in sft lora ppo constitutional; do   # stopped after step 3, and resumed
    set -- --max_steps 6 --save_steps 3 --save_total_limit 0 --logging_steps 4 --eval_samples 2 \
        $keep
    "$build/$stage" "$@" --output "$out/part-$stage" >/dev/null
    rm -r "$out/part-$stage/checkpoint-6"
    "$build/$stage" "$@" --output "$out/part-$stage" --resume >/dev/null
done
# adapter_config.json contains the path of the base model: make it relative.
find "$out" -name adapter_config.json -exec sed -i "s#$PWD/##" {} +
cd "$out"
find . -type f \( -name '*.jsonl' -o -name '*.safetensors' -o -name '*.json' \
    -o -name template.txt \) ! -name state.safetensors ! -name run.json | sort | xargs sha256sum
