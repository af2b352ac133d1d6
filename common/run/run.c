/*
 * run.c - the life of a run: begin, plan, the step, finish. See run.h for what each promises.
 *
 * Order: the flags of every run; begin; schedule; progress; the loop; finish. Figures are in
 * watch.c, their lines in log.c, models in network.c, checkpoints and OUTPUT in checkpoint.c.
 *
 * Left out on purpose: schedules that nobody here uses, and metrics services, which can read
 * log.jsonl.
 */
#include "run/run.h"

#include "files/hf.h"
#include "model/kernels.h"  // device_init: the machine is checked before anything else is done
#include "run/chat.h"
#include "run/private.h"
#include "run/technique.h"
#include "text/template.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <unistd.h>

/* ---- the flags of every run ------------------------------------------------------------------ */

static void add_run_flags(Run *run, const char *without) {
    const Flag rows[] = {
        TITLE("Files"),
        {"model", TEXT(run->model, NULL), "The directory of the model to start from.",
         .may_change_on_resume = true},
        {"data", TEXT(run->data, NULL), "The training records, a JSONL file.",
         .may_change_on_resume = true},
        {"eval", TEXT(run->eval, NULL), "The held-out records, a JSONL file.",
         .may_change_on_resume = true},
        {"output", TEXT(run->output, NULL),
         "The directory for log.jsonl, checkpoint-N/ and the finished model. Without it nothing is "
         "written.",
         .may_change_on_resume = true},
        {"overwrite_output_dir", SWITCH(run->overwrite_output_dir, "false"),
         "Start anew in an --output that is not empty, and remove its checkpoints.",
         .may_change_on_resume = true},
        {"resume", TEXT(run->resume, NULL),
         "Resume from this checkpoint; without a value, or with \"latest\", from the newest in "
         "--output.",
         .may_change_on_resume = true, .bare = "latest"},
        {"dry_run", SWITCH(run->dry_run, "false"),
         "Print the memory, the counts and the first examples, and write nothing.",
         .may_change_on_resume = true},
        TITLE("Training"),
        {"per_device_train_batch_size", NUMBER(run->per_device_train_batch_size, "4", 1, 65536),
         "The number of examples that pass through the model together."},
        {"gradient_accumulation_steps", NUMBER(run->gradient_accumulation_steps, "2", 1, 65536),
         "The number of batches whose gradients add up to one optimiser step."},
        {"num_train_epochs", NUMBER(run->num_train_epochs, "3", 0, 1e6),
         "The number of passes over the training data, which may be a fraction."},
        {"max_steps", NUMBER(run->max_steps, "-1", -1, 1e9),
         "The number of optimiser steps; 0 only evaluates; -1 trains for --num_train_epochs."},
        {"dataloader_drop_last", SWITCH(run->dataloader_drop_last, "false"),
         "Leave out the examples of an epoch that do not fill a whole batch."},
        {"learning_rate", NUMBER(run->learning_rate, "5e-5", 0, 10), "The peak learning rate."},
        {"lr_scheduler_type",
         CHOICE(run->lr_scheduler_type, "linear", "constant|constant_with_warmup|linear|cosine"),
         "The course of the learning rate after the warm-up; linear and cosine end at 0."},
        {"warmup_steps", NUMBER(run->warmup_steps, "100", 0, 1e9),
         "The number of optimiser steps over which the learning rate rises from 0."},
        {"warmup_ratio", NUMBER(run->warmup_ratio, "0", 0, 1),
         "The length of the warm-up as a share of all steps; above 0 it replaces --warmup_steps."},
        {"weight_decay", NUMBER(run->weight_decay, "0.01", 0, 10),
         "AdamW's weight decay, which applies to matrices only."},
        {"max_grad_norm", NUMBER(run->max_grad_norm, "1", 0, INFINITY),
         "Clip the norm of the whole gradient to this; 0 never clips."},
        {"adam_beta1", NUMBER(run->adam_beta1, "0.9", 0, 0.999999),
         "The decay of AdamW's first moment per step."},
        {"adam_beta2", NUMBER(run->adam_beta2, "0.999", 0, 0.999999),
         "The decay of AdamW's second moment per step."},
        {"adam_epsilon", NUMBER(run->adam_epsilon, "1e-8", 1e-20, 1),
         "AdamW adds this to the root of the second moment."},
        {"seed", NUMBER(run->seed, "42", 0, INFINITY),
         "The seed of all random numbers. The same seed and flags give the same result."},
        TITLE("Machine"),
        {"bf16", SWITCH(run->bf16, "false"),
         "Round the factors of every matrix product to bf16, which is faster on CPUs with AVX-512 "
         "and bf16; all else stays float32. The bits are the same on every CPU."},
        {"fp16", SWITCH(run->fp16, "false"), "Refused: use --bf16."},
        {"cpu", TEXT(run->cpu, "auto"),
         "The instructions to use: avx2, avx512, avx512bf16 or auto; all give the same bits.",
         .may_change_on_resume = true},
        TITLE("Log and checkpoints"),
        {"logging_steps", NUMBER(run->logging_steps, "10", 0, 1e9),
         "The number of steps between two lines of the log; 0 logs only the last step.",
         .may_change_on_resume = true},
        {"eval_steps", NUMBER(run->eval_steps, "0", 0, 1e9),
         "The number of steps between two evaluations; 0 evaluates once an epoch.",
         .may_change_on_resume = true},
        {"save_steps", NUMBER(run->save_steps, "500", 0, 1e9),
         "The number of steps between two checkpoints; 0 saves only at the end.",
         .may_change_on_resume = true},
        {"save_total_limit", NUMBER(run->save_total_limit, "2", 0, 1e9),
         "The number of checkpoints to keep; 0 keeps all.", .may_change_on_resume = true},
        {0},
    };
    flags_add(run->state->flags, rows, without);
}

int run_parse(Run *run, const Program *program, int argc, char **argv, Error *e) {
    run_free(run);
    struct RunState *s = run->state = (struct RunState *)xcalloc(1, sizeof *s);
    s->program = program;
    s->order_epoch = -1;
    s->in_phase = -1;
    s->saved_step = -1;
    s->terminal = isatty(STDOUT_FILENO);
    s->flags = flags_new();
    add_run_flags(run, program->without);
    flags_add(s->flags, program->flags, NULL);
    const int status = flags_parse(s->flags, &program->lines, argc, argv, e);
    if (status) return status;
    const bool ratio = run_given(run, "warmup_ratio"), steps = run_given(run, "warmup_steps");
    if (ratio && steps && run->warmup_ratio > 0 && run->warmup_steps > 0)
        return fail(e, "--warmup_steps %d and --warmup_ratio %g are both given; give one of them",
                    run->warmup_steps, (double)run->warmup_ratio);
    if (steps && !ratio) run->warmup_ratio = 0;
    if (run->warmup_ratio > 0) run->warmup_steps = 0;
    return 0;
}

/* ---- signals: the first asks the run to save and stop, the second ends it -------------------- */

static volatile sig_atomic_t interrupted;  // the signal's number

static void on_signal(int number) {
    static const char text[] =
        "\nThe run will save and stop after this step. Another signal stops it at once.\n";
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    interrupted = number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) return;  // it stops anyway
}

static void catch_signal(int number) {
    struct sigaction old, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    // SIG_IGN: the program was started with nohup or in the background
    if (!sigaction(number, NULL, &old) && old.sa_handler == SIG_IGN) return;
    sigaction(number, &action, NULL);
}

bool run_interrupted(void) { return interrupted != 0; }

/* ---- begin ----------------------------------------------------------------------------------- */

/* Ends the program when one of the flags in Program.needs is missing. */
static void check_needs(const Run *run, const Program *p) {
    for (const char *word = p->needs; word && *word; word += *word == ' ') {
        char name[64], text[64];
        const size_t n = strcspn(word, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, word);
        word += n;
        const Flag *f = flags_find(run->state->flags, name);
        const char *value = f ? flag_text(f, text) : NULL;
        if (value && *value) continue;
        if (p->usage) die_usage("%s", p->usage);
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model%s",
            !p->technique         ? " with --prompt or --chat"
            : p->technique->merge ? ", --adapter, and --prompt, --chat or --merge"
                                  : ", --adapter, and --prompt or --chat");
    }
}

/* Answers --prompt and --chat, and ends the program. */
static void answer(Run *run, const Program *p) {
    const char *adapter = p->technique ? p->technique->flags->adapter : NULL;
    if (p->technique && !(run->model && adapter))
        die_usage(
            "--prompt and --chat need --model DIR with --adapter DIR; ./sft answers from a "
            "model alone");
    chat_answer(p->chat, run, p->technique, adapter);
    run_free(run);
    exit(0);
}

/* Reads the configuration: the checkpoint's, if that holds a whole model, or --model's. */
static void read_config(Run *run, const Program *p) {
    Error e;
    const char *checkpoint = run->state->checkpoint;
    const char *dir = checkpoint && !p->technique ? checkpoint : run->model;
    if (!dir) return;
    if (hf_config(dir, &run->config, &e)) die_usage("%s", e.text);
    run->state->model_dir = xstrdup(dir);
}

static bool is_cpu(void) { return !strncmp(device_name(), "CPU", 3); }

/* --cpu, --bf16 and --fp16. */
static void choose_machine(const Run *run) {
    Error e;
    device_init();
    if (run_given(run, "cpu") && device_choose(run->cpu, &e)) die_usage("--cpu: %s", e.text);
    if (run->fp16)
        die_usage(
            "--fp16: use --bf16; the numbers of fp16 end at 65504, so it needs a scaled loss, and "
            "no CPU here multiplies them faster");
    if (run->bf16 && !is_cpu() && sizeof(real) == sizeof(float))
        die_usage(
            "--bf16: this program was built for a GPU with PRECISION=fp32; build it without, and "
            "it computes in bf16");
}

/* Opens /dev/null in the place of a stdin, stdout or stderr that is closed. Without this, the next
   file that is opened would get its number: log.jsonl would receive what is printed. */
static void open_standard_files(void) {
    int file = open("/dev/null", O_RDWR);
    while (file >= 0 && file <= STDERR_FILENO) file = dup(file);
    if (file >= 0) close(file);
}

Run run_begin(const Program *program, int argc, char **argv) {
    Error e;
    open_standard_files();
    static Run run;  // the rows of the table of flags point into it for the life of the program
    const int parsed = run_parse(&run, program, argc, argv, &e);
    if (parsed < 0) die_usage("%s\n%s --help lists every flag", e.text, program->name);
    if (parsed > 0) {
        flags_print_help(run.state->flags, &program->lines, program->name, program->about);
        run_free(&run);
        exit(0);
    }
    choose_machine(&run);
    catch_signal(SIGINT);
    catch_signal(SIGTERM);
    if (checkpoint_find(&run, &e)) die_usage("%s", e.text);
    read_config(&run, program);
    const Technique *technique = program->technique;
    const bool chats = program->chat && chat_asked(program->chat);
    const bool merged = technique && technique_merges_alone(technique, &run, chats);
    if (merged || (program->instead && program->instead(&run))) {
        run_free(&run);
        exit(0);
    }
    if (chats) answer(&run, program);
    check_needs(&run, program);
    if (checkpoint_prepare_output(&run, &e)) die_usage("%s", e.text);
    // a checkpoint has a copy of the tokenizer, so --model may be gone when it is resumed
    run.tokenizer = run_load_tokenizer(run.state->model_dir, &run.config);
    if (technique) technique->plan(&run, technique_directory(technique, &run));
    printf("%s%s\n", device_name(), run.bf16 && is_cpu() ? ", products in bf16" : "");
    flags_echo(run.state->flags);
    if (technique) technique->print(&run.config);
    return run;
}

void run_template(Run *run, const char *template) {
    struct RunState *s = run->state;
    free(s->template);
    s->template = template ? template_line(template) : NULL;
}

void run_dropout(GPT2Noise *noise, const GPT2Config *config, const char *text) {
    double p;
    if (!strcmp(text, "config")) {
        noise->embd_pdrop = config->embd_pdrop;
        noise->attn_pdrop = config->attn_pdrop;
        noise->resid_pdrop = config->resid_pdrop;
        return;
    }
    if (!read_number(text, &p) || !(p >= 0 && p < 1))
        die_usage(
            "--dropout %s: it takes a probability from 0 to below 1, or no value for those "
            "of config.json",
            text);
    noise->embd_pdrop = noise->attn_pdrop = noise->resid_pdrop = (float)p;
}

/* ---- schedule -------------------------------------------------------------------------------- */

/* A float flag as the double its user wrote: 0.1f is 0.100000001..., and ceil(0.1f * 30) is 4 where
   Python's is 3. */
static double as_written(float x) {
    char text[64];
    return strtod(number_text((double)x, text), NULL);
}

/* The examples of an epoch: all, or as many as fill whole batches. */
static int used_examples(const Run *run) {
    const int examples = run->state->examples;
    return run->dataloader_drop_last ? examples - examples % run->per_device_train_batch_size
                                     : examples;
}

void run_plan(Run *run, int examples, int per_step, double steps) {
    run->state->examples = examples;
    run->state->per_step = per_step;
    const int used = used_examples(run);
    run->steps_per_epoch = (int)(((int64_t)used + per_step - 1) / per_step);
    if (run->max_steps != 0 && !examples)
        die_usage(
            "there is no example to train on; look at the data, or use --max_steps 0 to "
            "evaluate only");
    if (run->max_steps != 0 && !used)
        die_usage(
            "%d examples do not fill a batch of %d, and --dataloader_drop_last leaves them "
            "out; use smaller batches",
            examples, run->per_device_train_batch_size);
    if (steps == 0) steps = as_written(run->num_train_epochs) * run->steps_per_epoch;
    if (run->max_steps >= 0) steps = run->max_steps;
    steps = ceil(steps);
    if (steps > INT_MAX)
        die_usage("--num_train_epochs %g of %d steps each are more steps than can be counted",
                  (double)run->num_train_epochs, run->steps_per_epoch);
    run->total_steps = (int)steps;
}

static double warmup_length(const Run *run) {
    if (run->lr_scheduler_type == CONSTANT) return 0;
    if (run->warmup_ratio > 0) return ceil(run->total_steps * as_written(run->warmup_ratio));
    return run->warmup_steps;
}

/* The learning rate of this step: transformers' schedules. */
static float learning_rate(const Run *run) {
    const double warmup = warmup_length(run), rest = fmax(1, run->total_steps - warmup);
    double factor = 1;
    if (run->step < warmup)
        factor = run->step / warmup;
    else if (run->lr_scheduler_type == LINEAR)
        factor = fmax(0, (run->total_steps - run->step) / rest);
    else if (run->lr_scheduler_type == COSINE)
        factor = fmax(0, 0.5 * (1 + cos(M_PI * ((run->step - warmup) / rest))));
    return (float)(as_written(run->learning_rate) * factor);
}

AdamW run_adamw(const Run *run) {
    return (AdamW){
        .learning_rate = learning_rate(run),
        .beta1 = run->adam_beta1,
        .beta2 = run->adam_beta2,
        .epsilon = run->adam_epsilon,
        .weight_decay = run->weight_decay,
        .max_grad_norm = run->max_grad_norm,
    };
}

int run_examples(Run *run, int *which) {
    struct RunState *s = run->state;
    const int epoch = run->step / run->steps_per_epoch;
    if (epoch != s->order_epoch) {
        s->order = (int *)xrealloc(s->order, (size_t)s->examples, sizeof *s->order);
        random_permutation(s->order, s->examples, (uint64_t)run->seed, RANDOM_SHUFFLE,
                           (uint32_t)epoch);
        s->order_epoch = epoch;
    }
    const int64_t first = (int64_t)(run->step % run->steps_per_epoch) * s->per_step;
    const int64_t end = first + s->per_step, used = used_examples(run);
    const int n = (int)((end < used ? end : used) - first);
    memcpy(which, s->order + first, sizeof *which * (size_t)n);
    return n;
}

/* ---- progress -------------------------------------------------------------------------------- */

/* Appends "2 h 05 min", "12 min" or "40 s". */
static void add_duration(Str *line, double seconds) {
    const int minutes = (int)fmin(seconds / 60, 1e8);
    if (minutes >= 60)
        str_printf(line, "%d h %02d min", minutes / 60, minutes % 60);
    else if (minutes >= 2)
        str_printf(line, "%d min", minutes);
    else
        str_printf(line, "%.0f s", seconds);
}

static void show_progress(Run *run, double loss, double now) {
    struct RunState *s = run->state;
    const int done = run->step + 1, left = run->total_steps - done;
    Str line = {0};
    str_printf(&line, "step %d/%d", done, run->total_steps);
    if (!isnan(loss)) str_printf(&line, "  loss %.4f", loss);
    if (s->trained > 0) {
        str_printf(&line, "  %.0f tokens/s  ", (double)s->tokens / s->trained);
        add_duration(&line, (now - s->first_ended) / (done - s->first_step) * left);
        str_printf(&line, " left");
    }
    run_clear_progress(run);
    printf("%s", line.s);
    fflush(stdout);
    s->shown = (int)line.n;
    s->redrawn = now;
    free(line.s);
}

/* Rates leave out the first step, which pays for memory that is touched for the first time. */
void run_progress(Run *run, double loss, long tokens) {
    struct RunState *s = run->state;
    const double now = now_seconds();
    if (!s->first_ended) {
        s->first_ended = now;
        s->first_step = run->step + 1;
    } else {
        s->trained += now - s->step_began;
        s->tokens += tokens;
    }
    if (s->terminal && now - s->redrawn > 0.1) show_progress(run, loss, now);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* After `done` steps: is it time for something that is done every so many steps? */
static bool is_time(const Run *run, int done, int every) {
    return done == run->total_steps || (every > 0 && done % every == 0);
}

bool run_is_last(const Run *run) { return run->step + 1 == run->total_steps; }

bool run_should_evaluate(const Run *run) {
    const int every = run->eval_steps > 0 ? run->eval_steps : run->steps_per_epoch;
    return is_time(run, run->step + 1, every);
}

/* Ends a step: log line, held-out line, checkpoint. */
static void finish_step(Run *run) {
    run->state->in_step = false;
    run->step++;
    if (is_time(run, run->step, run->logging_steps)) watch_log(run);
    watch_log_held_out(run);
    if (is_time(run, run->step, run->save_steps) || run_interrupted()) run_checkpoint(run);
}

bool run_next(Run *run) {
    struct RunState *s = run->state;
    if (s->in_step) finish_step(run);
    if (run->step >= run->total_steps || run_interrupted()) return false;
    s->in_step = true;
    s->step_began = now_seconds();
    if (!s->started) s->started = s->step_began;
    return true;
}

double run_optimise(Run *run, GPT2 *m, double loss, long tokens, int line) {
    const AdamW adamw = run_adamw(run);
    const double norm = tokens ? (double)gpt2_step(m, &adamw, run->step + 1) : 0;
    if (!isfinite(loss) || !isfinite(norm)) {
        Str where = {0};
        if (line)
            str_printf(&where, ", or look at the records of this step, the first on line %d of %s",
                       line, run->data);
        die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate%s",
            run->step + 1, loss, norm, where.s ? where.s : "");
    }
    watch(run, "grad_norm", norm);
    watch(run, "learning_rate", (double)adamw.learning_rate);
    watch_total(run, "num_tokens", (double)tokens);
    run_progress(run, loss, tokens);
    return norm;
}

/* ---- finish ---------------------------------------------------------------------------------- */

bool run_completed(const Run *run) { return run->step == run->total_steps && !run_interrupted(); }

/* Saves a checkpoint of an interrupted run. Only a finished run writes a model into OUTPUT itself.
 */
static int stop_early(Run *run) {
    if (run->step != run->state->saved_step) run_checkpoint(run);
    if (run_writes(run))
        printf("stopped at step %d of %d; the same command with --resume continues\n", run->step,
               run->total_steps);
    else
        printf("stopped at step %d of %d; nothing is saved, because there is no --output\n",
               run->step, run->total_steps);
    return 128 + interrupted;
}

/* Writes the finished models and says how to load them. */
static void save_result(Run *run) {
    Error e;
    const struct RunState *s = run->state;
    run_begin_writing(run);
    if (checkpoint_save_models(run, run->output, true, &e))
        die("%s; the checkpoints in %s are complete", e.text, run->output);
    if (s->program->technique) {
        printf(s->program->technique->loading, run->output);
        putchar('\n');
    } else {
        printf(
            "the model is in %s: give it to --model, or in Python to %s.from_pretrained(\"%s\")\n",
            run->output,
            s->network[0]->head == SCORE_HEAD ? "AutoModelForSequenceClassification"
                                              : "AutoModelForCausalLM",
            run->output);
    }
    for (int i = 1; i < s->networks; i++)
        if (s->network[i]->trains)
            printf("the %s is in %s/%s\n", s->network[i]->role, run->output, s->network[i]->role);
}

int run_finish(Run *run) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    int status = 0;
    run_clear_progress(run);
    const bool trained = run->total_steps > 0 && run->step == run->total_steps;
    if (technique && technique->flags->merge && trained)
        technique_merge(technique, run, s->network[0]->model, s->template);
    printf("peak memory %.0f MB, planned %.0f MB\n", (double)device_memory_peak() / 1e6,
           (double)s->memory.total / 1e6);
    if (interrupted && run->step < run->total_steps)
        status = stop_early(run);
    else if (run_writes(run))
        save_result(run);
    fflush(stdout);
    run_free(run);
    return status;
}

void run_free(Run *run) {
    struct RunState *s = run->state;
    if (!s) return;
    if (s->log) fclose(s->log);
    for (int i = 0; i < s->networks; i++) {
        gpt2_free(s->network[i]->model);
        free(s->network[i]->from);
    }
    if (s->networks && s->program->technique) added_free(s->program->technique->added);
    for (int i = 0; i < s->fingerprint_n; i++) free(s->fingerprint[i].text);
    watch_free(run);
    flags_free(s->flags);
    tokenizer_free(run->tokenizer);
    free(s->network);
    free(s->model_dir);
    free(s->checkpoint);
    free(s->order);
    free(s->kept);
    free(s->fingerprint);
    free(s->template);
    free(s);
    run->state = NULL;
    run->tokenizer = NULL;
}
