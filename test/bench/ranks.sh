# What several processes cost, on GPT-2 124M with 4 x 256 tokens a step. Read by test/network.sh:
#
#     TOKENIZER=models/gpt2 sh test/network.sh .build/gcc test/bench/ranks.sh
#
# TOKENIZER is a directory with the files of a tokenizer; the weights are random. Each row shows a
# run of STEPS steps without its first step. The first two kinds take turns, so that a busy machine
# slows both, and the second turn is shown. SHAPE is another model's, as for --init.
#
# Weights and gradients are as many bytes. All processes wait for the weights, and only for those
# gradients that have not arrived behind the backward pass. So 1 - the wait for gradients / the wait
# for weights is the share of the exchange that is hidden.
#
# test/bench/machines.awk computes from this output what more machines would give.
tokenizer=$(cd "$root" && realpath "${TOKENIZER-models/gpt2}")
steps=${STEPS-6} shape=${SHAPE-d12-c768-h12-t1024}
# 40 records of about 600 tokens, of which each example takes 257
cat "$root"/common/model/*.c "$root"/common/run/*.c | tr -cd '[:print:]\n' | tr '\n"\\' '   ' |
    fold -w 2000 | head -40 | sed 's/.*/{"text": "&"}/' >"$work/disk/records.jsonl"
flags="--init $shape --model $tokenizer --data records.jsonl --eval_samples 0
    --validation_split_percentage 0 --max_length 257 --per_device_train_batch_size 4
    --gradient_accumulation_steps 1 --logging_steps 1 --no_gradient_checkpointing"

# From what a run has printed
rate() { sed -n 's/^time .*, \([0-9,]*\) tokens\/s.*/\1/p' "$1"; }
peak() { sed -n 's/^peak memory \([0-9]* MB, planned [0-9]* MB\)/\1/p' "$1"; }
parameters() { sed -n 's/^parameters: \([0-9,]*\).*/\1/p' "$1" | tr -d ,; }
sent() {
    ip -n $name-1 -s link show eth0 | awk 'left && !--left { print $1 } /TX:/ { left = 1 }'
}
row() { printf '%-44s %6s tokens/s   %s\n' "$1" "$(rate "$2")" "$(peak "$2")"; }
hidden() {
    sed -n 's/^waits of a step: \([0-9.]*\) s .* \([0-9.]*\) s for weights/\1 \2/p' "$1" |
        awk '{ printf "    waits of a step: gradients %s s, weights %s s; hidden %.3f\n", $1, $2,
                      1 - $1 / $2 }'
}

for turn in 1 2; do
    OMP_NUM_THREADS=2 inside 1 "$build/full_ft" $flags --max_steps "$steps" \
        >"$work/alone.$turn" </dev/null
    OMP_NUM_THREADS=1 inside 1 mpirun -n 2 --oversubscribe --bind-to none \
        "$build/full_ft_mpi" $flags --max_steps "$steps" --shards 2 >"$work/two.$turn" </dev/null
done
row "1 process of 2 threads" "$work/alone.2"
row "2 processes of 1 thread, shared memory" "$work/two.2"
for speed in 10gbit 1gbit; do
    for k in 1 2; do shape "$k" tbf rate $speed burst 1mb latency 50ms; done
    first=$(sent)
    on 2 full_ft $flags --max_steps 2 --shards 2 >"$work/short" </dev/null
    middle=$(sent)
    on 2 full_ft $flags --max_steps "$steps" --shards 2 >"$work/$speed" </dev/null
    last=$(sent)
    row "2 machines of 1 thread, $speed" "$work/$speed"
    hidden "$work/$speed"
done
# half of the gradient and half of the weights leave each process
echo "$first $middle $last $steps $(parameters "$work/alone.1")" | awk '{
    bytes = (($3 - $2) - ($2 - $1)) / ($4 - 2)
    printf "bytes sent a step and process: %.0f, %.3f of 2 (R-1)/R of the parameters\n", bytes,
           bytes / (4 * $5) }'
