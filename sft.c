/*
 * sft.c - supervised fine-tuning: teach a pre-trained GPT-2 to answer, by showing it answers.
 *
 * A record is a prompt x and a response y. The model reads both and is trained to predict the
 * response alone:
 *
 *     L = -1/M  sum over scored tokens i of  log p(y_i | x, y_<i)          M: scored tokens of the
 * whole optimiser step
 *
 * One <|endoftext|> ends every response and is scored like any other token: that is how a model
 * learns to stop. It is the first stage of InstructGPT (Ouyang et al. 2022, section 3.5), and where
 * reward.c, ppo.c and constitutional.c start from.
 *
 * Three things go wrong in other implementations and cannot here. The prompt's end is not searched
 * for among tokens: prompt and response are tokenised as separate spans of bytes. Nothing is
 * padded, so no pad token hides the end of text, and nothing leaks between records. And M is
 * counted over all micro-batches before the first backward pass, so gradient accumulation gives the
 * gradient of the large batch, not a mean of means.
 *
 * Left out: packing (a ragged batch has no holes to fill), mixed precision (the CPU has no use for
 * it), and label smoothing.
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
    "supervised fine-tuning of a GPT-2 on prompts and responses. Without arguments: a small "
    "built-in example.";

static Task task;

static struct {
    const char *dropout;
    float neftune_noise_alpha;
    bool gradient_checkpointing;
} args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Supervised fine-tuning"},
    TASK_FLAGS(task),
    {"neftune_noise_alpha", FLAG_FLOAT, &args.neftune_noise_alpha, .high = 1000,
     .help = "noise on the embeddings in training (Jain et al. 2023; 5 is usual); 0: none"},
    {"dropout", FLAG_STRING, &args.dropout, .bare = "config",
     .help = "probability on embeddings, attention and residuals; without a value: those of "
             "config.json"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    TALK_FLAGS(task.talk, ""),
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns
 * something in half a minute. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 4;
    run.gradient_accumulation_steps = 2;
    run.num_train_epochs = 3;
    run.learning_rate = 5e-5f;
    run.warmup_steps = 100;
    run.weight_decay = 0.01f;
    task = task_defaults();
    args.dropout = "0";
    args.neftune_noise_alpha = 0;
    args.gradient_checkpointing = false;
    if (example) {
        run.model = run_example_file("tiny");
        run.data = run_example_file("tiny/sft.jsonl");
        run.eval = run_example_file("tiny/sft-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 180;
        run.learning_rate = 5e-4f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.logging_steps = 20;
        run.eval_steps = 60;
        task.eval_samples = 72;
    }
    return run;
}

/* ---- the loop -------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either
    // way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "sft", flags, argc, argv, &e) == 0 && !run.model && !run.data &&
                   !talk_asked(&task.talk);
    run_free(&run);
    run = defaults(example);
    run_start(&run, "sft", about, flags, argc, argv);
    if (talk_asked(&task.talk)) return talk_to_model(&task.talk, &run, task.template);
    if (!run.model || !run.data)
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model with --prompt or --chat");

    // The model's shape, the records as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed, .neftune_alpha = args.neftune_noise_alpha};
    if (hf_config(run_model_dir(&run), &config, &e)) die_usage("%s", e.text);
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

    GPT2 *model = hf_load(run_model_dir(&run), !limits.train, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    task_reserve(&task, &limits);
    Totals interval = {0};  // since the last line of the log
    double num_tokens = 0;  // trained on
    run_keep(&run, "loss", &interval.loss);
    run_keep(&run, "entropy", &interval.entropy);
    run_keep(&run, "correct", &interval.correct);
    run_keep(&run, "tokens", &interval.tokens);
    run_keep(&run, "num_tokens", &num_tokens);
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
