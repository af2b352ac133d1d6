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
 * prompt and response are tokenised as separate spans of bytes. There is no padding, so no pad
 * token hides the end of text, and no record sees another one. M is counted over all micro-batches
 * before the first backward pass, so gradient accumulation gives the gradient of the large batch
 * and not a mean of means.
 *
 * Left out: packing (a batch without padding has no gaps to fill), and label smoothing.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

static Task task;

static struct { float neftune_noise_alpha; } args;

static const Flag flags[] = {
    TITLE("Supervised fine-tuning"),
    TASK_FLAGS(task),
    GRADIENT_CHECKPOINTING_FLAG(task.gradient_checkpointing, "false"),
    {"neftune_noise_alpha", NUMBER(args.neftune_noise_alpha, "0", 0, 1000),
     "Add uniform noise of this size to the embeddings in training (Jain et al. 2023 use 5)."},
    CHAT_FLAGS(task.chat, ""),
    {0},
};

static const Program program = {
    .name = "sft",
    .about = "Supervised fine-tuning of a GPT-2 on prompts and responses.",
    .flags = flags,
    // The built-in example learns to answer in half a minute
    .lines.example = COMMAND_LINE(
        "--model=test/tiny", "--data=test/tiny/sft.jsonl", "--eval=test/tiny/sft-eval.jsonl",
        "--per_device_train_batch_size=16", "--gradient_accumulation_steps=1", "--max_steps=180",
        "--learning_rate=5e-4", "--adam_beta2=0.99", "--lr_scheduler_type=cosine",
        "--warmup_steps=20", "--logging_steps=20", "--eval_steps=60", "--eval_samples=72"),
    .lines.example_unless = "model data prompt chat",
    .needs = "model data",
    .chat = &task.chat,
};

/* ---- the loop -------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    task_load(&task, &run);
    Network network = {.role = "model", .limits = task_limits(&task, &run), .trains = true};
    networks_open(&run, (Network *[]){&network, NULL});
    GPT2 *model = network.model;
    task_begin(&task, &run, model);
    task.noise.neftune_alpha = args.neftune_noise_alpha;
    const int B = run.per_device_train_batch_size;

    while (run_next(&run)) {
        // 1. Draw the examples of this step. M is the number of tokens that they score
        double loss = 0, M;
        const int n = task_examples(&task, &run, &M);
        // 2. For each micro-batch: log p of the scored tokens, the loss. The gradients add up
        for (int i = 0; i < n; i += B) {
            const Batch *batch = task_batch(&task, i, B);
            const int *target = task.ragged.target;
            gpt2_forward(model, batch, &task.noise);
            gpt2_logprob(model, target, 1, task.logp, task.entropy, task.best);
            loss += cross_entropy(batch->N, target, task.logp, M, task.dlogp);
            gpt2_backward(model, task.dlogp, NULL, NULL);
            task_watch(&task, &run);
        }
        // 3. Clip the gradient and take a step of AdamW
        task_optimise(&task, &run, model, loss);
        // 4. Measure the held-out records
        if (run_should_evaluate(&run)) task_evaluate(&task, &run, model);
    }

    task_report(&task, &run, model);
    task_free(&task);
    return run_finish(&run);
}
#endif
