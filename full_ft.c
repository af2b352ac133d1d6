/*
 * full_ft.c - full fine-tuning: go on training every parameter of a GPT-2, on a task or on plain
 * text.
 *
 * A record is an input x and an output y, put into a task's template; of plain text, y is
 * everything. Every parameter theta moves:
 *
 *     L(theta) = -1/M  sum over scored tokens i of  log p_theta(y_i | x, y_<i)         M: scored
 * tokens of the optimiser step theta <- AdamW(theta, dL/dtheta)
 *
 * This is how GPT was made fit for a task before there were prompts (Radford et al. 2018,
 * section 3.2), and the yardstick for what came after: lora.c and adapter.c train a hundredth of
 * the parameters with the same loop. Read them with diff. It costs four numbers a parameter
 * (weight, gradient, two moments), and what it saves it saves in activations: gradient
 * checkpointing is on by default.
 *
 * With --init it starts from random weights instead, which is pre-training: `make tiny` makes the
 * built-in model that way.
 *
 * Left out: layer-wise learning rates, weight averaging, and optimisers with smaller states.
 */
#include "common/model/gpt2.h"  // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step
#include "common/model/loss.h"  // cross_entropy
#include "common/files/hf.h"    // hf_config, hf_load
#include "common/run/run.h"     // flags, schedule, log, checkpoints
#include "common/run/chat.h"    // --prompt and --chat
#include "common/run/task.h"    // records as examples, held-out figures
#include "common/util.h"        // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "fine-tuning of all parameters of a GPT-2 on a task, or on plain text. Without arguments: a "
    "small built-in example.";

static Task task;

static struct {
    const char *dropout, *init;
    bool gradient_checkpointing;
} args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Full fine-tuning"},
    TASK_FLAGS(task),
    {"init", FLAG_STRING, &args.init, .bare = "d12-c768-h12-t1024",
     .help = "start from random weights of this shape (depth, channels, heads, positions); --model "
             "names the tokenizer's directory"},
    {"dropout", FLAG_STRING, &args.dropout, .bare = "config",
     .help = "probability on embeddings, attention and residuals; without a value: those of "
             "config.json"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    TALK_FLAGS(task.talk, "init"),
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns
 * something in half a minute. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 2;
    run.gradient_accumulation_steps = 4;
    run.num_train_epochs = 5;
    run.learning_rate = 2e-5f;
    run.warmup_steps = 50;
    run.weight_decay = 0.01f;
    run.save_total_limit = 2;
    run.dataloader_drop_last = true;
    task = task_defaults();
    args.init = NULL;
    args.dropout = "0";
    args.gradient_checkpointing = true;
    if (example) {
        run.model = run_example_file("tiny");
        run.data = run_example_file("tiny/summaries.jsonl");
        run.eval = run_example_file("tiny/summaries-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 400;
        run.learning_rate = 1.5e-3f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.eval_steps = 200;
        run.logging_steps = 50;
        task.eval_samples = 64;
        task.talk.max_new_tokens = 96;
    }
    return run;
}

/* ---- random initialisation ------------------------------------------------------------------- */

/* "d4-c128-h4-t256" into the sizes of config, which keeps its vocabulary. -1 with e filled. */
static int read_shape(const char *text, GPT2Config *config, Error *e) {
    int depth, channels, heads, positions, end = 0;
    if (sscanf(text, "d%d-c%d-h%d-t%d%n", &depth, &channels, &heads, &positions, &end) != 4 ||
        text[end])
        return fail(e, "is not of the form d4-c128-h4-t256: depth, channels, heads, positions");
    if (depth < 1 || depth > 1000 || heads < 1 || channels < heads || channels > 65536 ||
        channels % heads || positions < 2 || positions > 1 << 20)
        return fail(e,
                    "is no model: 1 to 1000 layers, channels (up to 65536) a multiple of the "
                    "heads, 2 to 1048576 positions");
    config->n_layer = depth;
    config->n_embd = channels;
    config->n_inner = 4 * channels;
    config->n_head = heads;
    config->n_positions = positions;
    return 0;
}

/* ---- the loop -------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either
    // way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "full_ft", flags, argc, argv, &e) == 0 && !run.model &&
                   !run.data && !talk_asked(&task.talk);
    run_free(&run);
    run = defaults(example);
    run_start(&run, "full_ft", about, flags, argc, argv);
    if (talk_asked(&task.talk)) return talk_to_model(&task.talk, &run, task.template);
    if (!run.model || !run.data)
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model with --prompt or --chat");

    // The model's shape, the records as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    const bool from_scratch = args.init && !run.resume;
    if (hf_config(run_model_dir(&run), &config, &e)) die_usage("%s", e.text);
    if (from_scratch && read_shape(args.init, &config, &e))
        die_usage("--init %s %s", args.init, e.text);
    if (run_dropout(&noise, &config, args.dropout, &e))
        die_usage("--dropout %s: it %s", args.dropout, e.text);
    run_echo(&run);
    task_load(&task, &run, &config);
    GPT2Limits limits = task_limits(&task, &run);
    limits.gradient_checkpointing = args.gradient_checkpointing;
    GPT2Memory memory = gpt2_memory(&config, &limits);
    run_print_parameters(limits.train ? gpt2_parameters(&config, TRAIN_ALL) : 0,
                         gpt2_parameters(&config, TRAIN_ALL));
    run_print_memory(&memory);
    task_show(&task, run.dry_run ? 3 : 1);
    if (run.dry_run) {
        task_free(&task);
        run_free(&run);
        return 0;
    }

    GPT2 *model = from_scratch ? gpt2_create(&config, false)
                               : hf_load(run_model_dir(&run), !limits.train, &e);
    if (!model) die_usage("%s", e.text);
    if (from_scratch) gpt2_init_weights(model, (uint64_t)run.seed);
    gpt2_reserve(model, &limits);
    task_reserve(&task, &limits);
    Totals interval = {0};  // since the last line of the log
    double num_tokens = 0;  // trained on
    run_keep(&run, "loss", &interval.loss);
    run_keep(&run, "entropy", &interval.entropy);
    run_keep(&run, "correct", &interval.correct);
    run_keep(&run, "tokens", &interval.tokens);
    run_keep(&run, "num_tokens", &num_tokens);
    double best = INFINITY;  // held-out loss of the model in OUTPUT/best
    run_keep(&run, "best", &best);
    run_resume(&run, model);

    const int batch_size = run.per_device_train_batch_size;
    const RaggedBatch *batch = &task.batch;
    int *which =
        (int *)xmalloc(sizeof(int) * (size_t)(batch_size * run.gradient_accumulation_steps));
    Totals before = task_evaluate(&task, model, batch_size), after = before;
    task_print_totals("before", before);
    Generation was = task_answer(&task, model);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. the examples of this step, and M, the number of tokens it scores
        int n = run_examples(&run, run.step, which);
        double M = 0, loss = 0;
        for (int i = 0; i < n; i++)
            M += dataset_targets(task.train.data, which[i] = task.train.which[which[i]]);
        // 2. per micro-batch: log p of every scored token, the loss, its gradient; the gradients
        // add up
        noise.step = (uint32_t)run.step;
        long tokens = 0;
        for (int i = 0; i < n; i += batch_size) {
            ragged_fill(&task.batch, task.train.data, which + i,
                        n - i < batch_size ? n - i : batch_size);
            gpt2_forward(model, &batch->batch, &noise);
            gpt2_logprob(model, batch->target, 1, task.y.logp, task.y.entropy, task.y.best);
            loss += cross_entropy(batch->batch.N, batch->target, task.y.logp, M, task.y.dlogp);
            gpt2_backward(model, task.y.dlogp, NULL, NULL);
            task_add(&task, &interval);
            tokens += batch->batch.N;
        }
        // 3. clip, AdamW
        AdamW adamw = run_adamw(&run, run.step);
        double norm = (double)gpt2_step(model, &adamw, run.step + 1);
        if (!isfinite(loss) || !isfinite(norm))
            die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate, or "
                "look at the records of this step, the first on line %d of %s",
                run.step + 1, loss, norm, task.train.data->line[which[0]], run.data);
        run.step++;
        num_tokens += (double)tokens;
        // 4. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run)) {
            run_log(&run, {"loss", interval.loss / interval.tokens},
                    {"entropy", interval.entropy / interval.tokens},
                    {"mean_token_accuracy", interval.correct / interval.tokens},
                    {"grad_norm", norm}, {"learning_rate", (double)adamw.learning_rate},
                    {"num_tokens", num_tokens}, {"epoch", run_epoch(&run)});
            interval = (Totals){0};
        }
        if (run_should_evaluate(&run) && task.held_out.n) {
            after = task_evaluate(&task, model, batch_size);
            run_log(&run, {"eval_loss", after.loss / after.tokens},
                    {"eval_perplexity", exp(after.loss / after.tokens)},
                    {"eval_mean_token_accuracy", after.correct / after.tokens});
            if (after.loss / after.tokens < best) {
                best = after.loss / after.tokens;
                run_save(&run, model, "best");
            }
        }
        if (run_should_save(&run)) run_checkpoint(&run, model);
    }

    // What it has learned
    if (!run_interrupted() && run.total_steps > 0) {
        Generation is = task_answer(&task, model);
        task_report(&task, &was, &is, before, after);
        generation_free(&is);
    }
    run_print_peak_memory(&memory);
    int status = run_finish(&run, model);
    generation_free(&was);
    gpt2_free(model);
    task_free(&task);
    free(which);
    return status;
}
#endif
