/*
 * sft.c - supervised fine-tuning: teach a pre-trained GPT-2 to answer, by showing it answers.
 *
 * A record is a prompt x and a response y. The model reads both and is trained to predict the
 * response alone:
 *
 *     L = -1/M  sum over scored tokens i of  log p(y_i | x, y_<i)
 *
 * M is the number of scored tokens of the whole optimiser step.
 *
 * One <|endoftext|> ends every response and is scored like any other token, so the model learns to
 * stop. Supervised fine-tuning is the first stage of InstructGPT (Ouyang et al. 2022, section 3.5).
 * reward.c, ppo.c and constitutional.c start from its result.
 *
 * Three common mistakes are excluded here. The end of the prompt is not searched for among tokens:
 * prompt and response are tokenised as separate spans of bytes, so no token spans both. There is no
 * padding, so no pad token hides the end of text, and no record sees another one. M is counted over
 * all micro-batches before the first backward pass, so gradient accumulation gives the gradient of
 * the large batch and not a mean of means.
 *
 * Left out: packing (a batch without padding has no gaps to fill), and label smoothing, which needs
 * the mean of log p over the vocabulary. gpt2_logprob does not return that.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

static Task task;  // the flags of a supervised task, its records, and arrays for a micro-batch

static const Flag flags[] = {
    TITLE("Supervised fine-tuning"),
    TASK_FLAGS(task),
    GRADIENT_CHECKPOINTING_FLAG(task.gradient_checkpointing, "false"),
    {"neftune_noise_alpha", NUMBER(task.noise.neftune_alpha, "0", 0, 1000),
     "Add uniform noise of this size to the embeddings in training (Jain et al. 2023 use 5)."},
    CHAT_FLAGS(task.chat, "dump_tokens"),  // --prompt, --chat; --dump_tokens conflicts with them
    {0},
};

static const Program program = {
    .name = "sft",
    .about = "Supervised fine-tuning of a GPT-2 on prompts and responses.",
    .flags = flags,
    // The built-in example, if none of example_unless is given, learns to answer in half a minute
    .lines.example = COMMAND_LINE(
        "--model=test/tiny", "--data=test/tiny/sft.jsonl", "--eval=test/tiny/sft-eval.jsonl",
        "--per_device_train_batch_size=16", "--gradient_accumulation_steps=1", "--max_steps=180",
        "--learning_rate=5e-4", "--adam_beta2=0.99", "--lr_scheduler_type=cosine",
        "--warmup_steps=20", "--logging_steps=20", "--eval_steps=60", "--eval_samples=72"),
    .lines.example_unless = "model data prompt chat",
    .lines.uses =
        "  ./sft --model models/gpt2 --data my.jsonl --output tuned\n"
        "      trains on records of instruction and output\n"
        "  ./sft --model tuned --chat\n"
        "      talks to the result\n",
    .needs = "model data",  // unless it is the example
    .chat = &task.chat,
};

/* ---- the loop -------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    task_load(&task, &run);
    Network network = {.role = "model", .limits = task_limits(&task, &run), .trains = true};
    networks_open(&run, (Network *[]){&network, NULL});  // a list, which here has one network
    GPT2 *model = network.model;
    task_begin(&task, &run, model);  // measures the model before training
    const int B = run.per_device_train_batch_size;
    if (run_measures_again(&run)) task_evaluate(&task, &run, model);

    while (run_next(&run)) {
        // 1. Draw n examples for this step. M is the number of their tokens that are scored
        double loss = 0, M;
        const int n = task_examples(&task, &run, &M);
        // 2. For each micro-batch of B examples, end to end (the last one may be smaller): its part
        //    of the loss, which is a mean over M. So the gradients add up to those of the step
        int i = 0;
        for (; i < n && !run_interrupted(); i += task.ragged.batch.S) {
            const Batch *batch = task_batch(&task, i, B);
            const int *target = task.ragged.target;  // the next token, or -1: not scored
            gpt2_forward(model, batch, &task.noise);
            gpt2_logprob(model, target, 1, task.logp, task.entropy, task.best);  // at temperature 1
            // dlogp = dL/dlogp: -1/M where a token is scored, 0 elsewhere
            loss += cross_entropy(batch->N, target, task.logp, M, task.dlogp);
            gpt2_backward(model, task.dlogp, NULL, NULL);  // L has no entropy and no scalar head
            task_watch(&task, &run);  // logs the means of -logp, entropy, best == target
        }
        if (i < n) break;  // a signal: a resumed run begins the step anew
        // 3. Clip the gradient, take a step of AdamW, clear the gradient
        task_optimise(&task, &run, model, loss);
        // 4. Measure the held-out records. OUTPUT/best holds the model with the lowest loss
        if (run_should_evaluate(&run)) task_evaluate(&task, &run, model);
    }

    task_report(&task, &run, model);
    task_free(&task);
    return run_finish(&run);
}
