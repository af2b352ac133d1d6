/*
 * full_ft.c - full fine-tuning: train every parameter of a pre-trained GPT-2 on a task or on plain
 * text.
 *
 * A record is an input x and an output y in the template of a task. In plain text, y is the whole
 * text. Every parameter theta is trained:
 *
 *     L(theta) = -1/M  sum over scored tokens i of  log p_theta(y_i | x, y_<i)
 *     theta <- AdamW(theta, dL/dtheta)
 *
 * M is the number of scored tokens of the whole optimiser step.
 *
 * Radford et al. 2018 (section 3.2) adapted the first GPT to its tasks in this way. It is also the
 * standard of comparison for lora.c and adapter.c, which train about a hundredth of the parameters
 * with the same loop: read the three with diff. Full fine-tuning stores four numbers per parameter
 * (weight, gradient, two moments). To save memory for activations, gradient checkpointing is on by
 * default.
 *
 * With --init the model starts from random weights, which is pre-training. `make tiny` makes the
 * built-in model in this way.
 *
 * Left out: layer-wise learning rates, weight averaging, and optimisers with smaller states.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

static Task task;  // the flags of a supervised task, its records, and arrays for a micro-batch

static struct { const char *init; } args;

static const Flag flags[] = {
    TITLE("Full fine-tuning"),
    TASK_FLAGS(task),
    GRADIENT_CHECKPOINTING_FLAG(task.gradient_checkpointing, "true"),
    {"init", TEXT(args.init, NULL),
     "Start from random weights of this shape (depth, channels, heads, positions); --model then "
     "names the directory of the tokenizer, which needs no config.json.",
     .bare = "d12-c768-h12-t1024"},
    CHAT_FLAGS(task.chat, "init dump_tokens"),  // --prompt, --chat; these two conflict with them
    {0},
};

/* ---- random initialisation ------------------------------------------------------------------- */

/* Reads "d4-c128-h4-t256" into the sizes of config, whose vocabulary stays. -1 with e filled. */
static int read_shape(const char *text, GPT2Config *config, Error *e) {
    int depth, channels, heads, positions, end = 0;
    if (sscanf(text, "d%d-c%d-h%d-t%d%n", &depth, &channels, &heads, &positions, &end) != 4 ||
        text[end])
        return fail(e, "is not of the form d4-c128-h4-t256: depth, channels, heads, positions");
    if (depth < 1 || depth > 1000 || heads < 1 || channels < heads || channels > 65536 ||
        channels % heads || positions < 2 || positions > 1000000)
        return fail(e,
                    "is not a possible shape: 1 to 1000 layers, channels (up to 65536) a multiple "
                    "of the heads, 2 to 1000000 positions");
    config->n_layer = depth;
    config->n_embd = channels;
    config->n_inner = 4 * channels;
    config->n_head = heads;
    config->n_positions = positions;
    return 0;
}

/* Makes run->config the shape of --init. false: there is no --init, or a checkpoint has the model.
 */
static bool init_shape(Run *run) {
    Error e;
    if (!args.init || run_weights_dir(run)) return false;
    if (read_shape(args.init, &run->config, &e)) die_usage("--init %s %s", args.init, e.text);
    return true;
}

static GPT2 *random_model(const GPT2Config *config, uint64_t seed) {
    GPT2 *model = gpt2_create(config, false);
    gpt2_init_weights(model, seed);
    return model;
}

/* ---- the program ----------------------------------------------------------------------------- */

static const Program program = {
    .name = "full_ft",
    .about = "Fine-tuning of all parameters of a GPT-2 on a task or on plain text.",
    .flags = flags,
    .lines.program =
        COMMAND_LINE("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4",
                     "--num_train_epochs=5", "--learning_rate=2e-5", "--warmup_steps=50",
                     "--dataloader_drop_last"),
    // The built-in example, if none of example_unless is given, learns to write summaries
    .lines.example = COMMAND_LINE(
        "--model=test/tiny", "--data=test/tiny/summaries.jsonl",
        "--eval=test/tiny/summaries-eval.jsonl", "--per_device_train_batch_size=16",
        "--gradient_accumulation_steps=1", "--max_steps=400", "--learning_rate=1.5e-3",
        "--adam_beta2=0.99", "--lr_scheduler_type=cosine", "--warmup_steps=20",
        "--logging_steps=50", "--eval_steps=200", "--eval_samples=64", "--max_new_tokens=96"),
    .lines.example_unless = "model data prompt chat",
    .lines.uses =
        "  ./full_ft --model models/gpt2 --data my.jsonl --output whole\n"
        "      trains on a task's records, or on plain {\"text\": ...}\n"
        "  ./full_ft --model whole --prompt 'The house'\n"
        "      continues a text\n",
    .needs = "model data",  // unless it is the example
    .chat = &task.chat,
    .creates = "init",
};

/* ---- the loop -------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    const bool from_scratch = init_shape(&run);
    task_load(&task, &run);
    Network network = {.role = "model", .limits = task_limits(&task, &run), .trains = true};
    if (from_scratch) network.create = random_model;
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
