/*
 * run.c - the life of a run: begin, plan, the step, finish. See run.h for what each promises.
 *
 * Order: the flags of every run; begin; schedule; the loop; finish. Figures are in watch.c, their
 * lines in log.c, what a person sees in screen.c, models in network.c, checkpoints and OUTPUT in
 * checkpoint.c.
 *
 * Left out on purpose: schedules that nobody here uses, and metrics services, which can read
 * log.jsonl.
 */
#include "run/run.h"

#include "files/hf.h"
#include "model/kernels.h"  // device_init: the machine is checked before anything else is done
#include "model/shards.h"
#include "ranks.h"
#include "run/chat.h"
#include "run/lock.h"
#include "run/machine.h"
#include "run/private.h"
#include "run/signals.h"
#include "run/streams.h"
#include "run/technique.h"
#include "version.h"
#include "text/template.h"

#include <limits.h>
#include <unistd.h>

#ifdef __clang__
#    define COMPILER "clang " __clang_version__
#else
#    define COMPILER "gcc " __VERSION__
#endif

/* The last step is done and nothing is left to stop. A signal then ends the program at once, or,
   where there is no checkpoint of that step, after the result is written. */
static bool at_end;

/* ---- the flags of every run ------------------------------------------------------------------ */

/* The schedules that have a warm-up */
#define WARMED_UP \
    "lr_scheduler_type=constant_with_warmup lr_scheduler_type=linear lr_scheduler_type=cosine"

static void add_run_flags(Run *run, const char *without) {
    const Flag rows[] = {
        TITLE("Files"),
        {"model", TEXT(run->model, NULL), "The directory of the model to start from.",
         .may_change_on_resume = true},
        {"data", TEXT(run->data, NULL), "The training records, a JSONL file, or several.",
         .may_change_on_resume = true, .many = true},
        {"eval", TEXT(run->eval, NULL), "The held-out records, a JSONL file, or several.",
         .may_change_on_resume = true, .many = true},
        {"output", TEXT(run->output, NULL),
         "The directory for log.jsonl, checkpoint-N/ and the finished model. Without it nothing is "
         "written.",
         .may_change_on_resume = true},
        {"overwrite_output_dir", SWITCH(run->overwrite_output_dir, "false"),
         "Start anew in an --output that is not empty: its older result goes when something of the "
         "new run is whole. Replace files that other flags name.",
         .may_change_on_resume = true,
         .only_with =
             "output merge score_output feedback dump_rollouts dump_tokens dump_dialogues"},
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
         "The number of optimiser steps; 0 only evaluates; -1 trains for --num_train_epochs.",
         .conflicts = "num_train_epochs total_episodes"},
        {"dataloader_drop_last", SWITCH(run->dataloader_drop_last, "false"),
         "Leave out the examples of an epoch that do not fill a whole batch."},
        {"learning_rate", NUMBER(run->learning_rate, "5e-5", 0, 10), "The peak learning rate."},
        {"lr_scheduler_type",
         CHOICE(run->lr_scheduler_type, "linear", "constant|constant_with_warmup|linear|cosine"),
         "The course of the learning rate after the warm-up; linear and cosine end at 0."},
        {"warmup_steps", NUMBER(run->warmup_steps, "100", 0, 1e9),
         "The number of optimiser steps over which the learning rate rises from 0.",
         .only_with = WARMED_UP},
        {"warmup_ratio", NUMBER(run->warmup_ratio, "0", 0, 1),
         "The length of the warm-up as a share of all steps; above 0 it replaces --warmup_steps.",
         .only_with = WARMED_UP},
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
        {"shards", NUMBER(run->shards, "0", 0, MOST_SHARDS),
         "The number of groups, a power of two, in which the gradient of a step is added up; 0: "
         "one for each process. Every number of processes up to it gives the same bits."},
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
        {"progress_seconds", NUMBER(run->progress_seconds, "30", 0, 1e9),
         "Where stdout is no terminal, print how far the run is after this many seconds without "
         "another line; 0 never does.",
         .may_change_on_resume = true},
        {"quiet", SWITCH(run->quiet, "false"),
         "Print errors only; with --prompt and --chat, only the answers.",
         .may_change_on_resume = true},
        {"eval_steps", NUMBER(run->eval_steps, "0", 0, 1e9),
         "The number of steps between two evaluations; 0 evaluates once an epoch.",
         .may_change_on_resume = true},
        {"save_steps", NUMBER(run->save_steps, "500", 0, 1e9),
         "The number of steps between two checkpoints; 0 saves only at the end.",
         .may_change_on_resume = true, .only_with = "output"},
        {"save_strategy", CHOICE(run->save_strategy, "steps", "no|steps|epoch|best"),
         "Save a checkpoint every --save_steps, at the end of every epoch, or when the held-out "
         "loss is the lowest so far; no saves only the result, and what Ctrl-C interrupts.",
         .may_change_on_resume = true},
        {"save_total_limit", NUMBER(run->save_total_limit, "2", 0, 1e9),
         "The number of checkpoints to keep; 0 keeps all.", .may_change_on_resume = true,
         .only_with = "output"},
        {"save_only_model", SWITCH(run->save_only_model, "false"),
         "Save checkpoints without AdamW's moments, which are two thirds of them; such a "
         "checkpoint cannot be resumed.",
         .may_change_on_resume = true, .only_with = "output"},
        {"keep_moments", SWITCH(run->keep_moments, "false"),
         "Keep AdamW's moments in the checkpoints of a run that has ended, which nothing needs.",
         .may_change_on_resume = true, .only_with = "output"},
        {"load_best_model_at_end", SWITCH(run->load_best_model_at_end, "false"),
         "Make the model with the lowest held-out loss the result, instead of the last one.",
         .may_change_on_resume = true, .only_with = "output"},
        {"metric_for_best_model", CHOICE(run->metric_for_best_model, "eval_loss", "eval_loss|loss"),
         "The figure by which a model is the best: the held-out loss, which has two names.",
         .may_change_on_resume = true},
        {"early_stopping_patience", NUMBER(run->early_stopping_patience, "0", 0, 1e9),
         "End the run after this many evaluations in a row without a lower held-out loss; 0 never "
         "does."},
        {"early_stopping_threshold", NUMBER(run->early_stopping_threshold, "0", 0, INFINITY),
         "The held-out loss must fall by more than this to count as lower.",
         .only_with = "early_stopping_patience"},
        {0},
    };
    flags_add(run->state->flags, rows, without);
}

static const char *const save_strategies[] = {"no", "steps", "epoch", "best"};

/* Refuses flags of saving that cannot have an effect. */
static int check_saving(const Run *run, Error *e) {
    const bool asked = run->save_strategy == SAVE_EPOCH || run->save_strategy == SAVE_BEST;
    if (asked && !(run->output && *run->output))
        return fail(e, "--save_strategy %s has no effect without --output",
                    save_strategies[run->save_strategy]);
    if (run->save_strategy == SAVE_BEST &&
        word_in(run->state->program->without, "load_best_model_at_end"))
        return fail(e,
                    "--save_strategy best needs a held-out loss, and %s measures none; use "
                    "steps or epoch",
                    run->state->program->name);
    if (run_given(run, "save_only_model") && run_given(run, "keep_moments"))
        return fail(e, "--save_only_model and --keep_moments are both given; give one of them");
    if (run->save_strategy == SAVE_NO && run->load_best_model_at_end)
        return fail(e,
                    "--load_best_model_at_end needs OUTPUT/best, which --save_strategy no does "
                    "not write; use steps, epoch or best");
    return 0;
}

int run_parse(Run *run, const Program *program, int argc, char **argv, Error *e) {
    run_free(run);
    struct RunState *s = run->state = (struct RunState *)xcalloc(1, sizeof *s);
    s->own_end = -1;
    s->program = program;
    at_end = false;
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
    return check_saving(run, e);
}

void run_only(const Run *run, const char *mode, const char *uses) {
    Error e;
    if (flags_check_uses(run->state->flags, mode, uses, &e)) die_usage("%s", e.text);
}

void run_refuse(const Run *run, const char *flags, const char *why) {
    const Flag *f;
    for (int i = 0; (f = flags_at(run->state->flags, i)); i++)
        if (f->given && !flags_idle(f) && word_in(flags, f->name))
            die_usage("--%s has no effect, %s", f->name, why);
}

void run_nothing_held_out(const Run *run, const char *flags) {
    static const char why[] =
        "because nothing is held out: see --eval and --validation_split_percentage";
    run_refuse(run, flags, why);
    run_refuse(run, "eval_steps " BEST_FLAGS, why);
    if (run->save_strategy == SAVE_BEST) die_usage("--save_strategy best has no effect, %s", why);
    printf(
        "note: nothing is held out, so nothing is measured but the training loss: see --eval "
        "and --validation_split_percentage\n");
}

/* ---- begin ----------------------------------------------------------------------------------- */

static bool is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

/* --shards, by default the number of processes. */
static void use_shards(Run *run) {
    if (!is_power_of_two(ranks()) || ranks() > MOST_SHARDS)
        die_usage("mpirun has started %d processes; start a power of two of them, up to %d",
                  ranks(), MOST_SHARDS);
    if (!run->shards) run->shards = ranks();
    if (!is_power_of_two(run->shards) || run->shards < ranks())
        die_usage(
            "--shards %d: it takes a power of two that is not less than the number of "
            "processes, %d",
            run->shards, ranks());
    shards_use(run->shards);
}

/* Ends the program with 2 if several processes are asked for what one alone does. */
static void refuse_ranks(const Run *run, const Program *p) {
    static const char *const flags[] = {"prompt", "chat", "score"};
    if (ranks() == 1) return;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (run_given(run, flags[i]))
            die_usage("--%s needs one process: start %s without mpirun", flags[i], p->name);
    if (p->technique && p->technique->flags->merge && !run->data)
        die_usage("--merge without --data needs one process: start %s without mpirun", p->name);
}

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

/* Does the run start from a new model? */
static bool creates_model(const Run *run) {
    const char *flag = run->state->program->creates;
    return flag && run_given(run, flag) && !run_weights_dir(run);
}

/* Reads the tokenizer. A new model gets its tokens, and no fewer than config.json says. */
static void read_tokenizer(Run *run) {
    const bool creates = creates_model(run);
    const int vocab_size = run->config.vocab_size;
    if (creates) run->config.vocab_size = INT_MAX;
    run->tokenizer = run_load_tokenizer(run->state->model_dir, &run->config);
    if (!creates) return;
    const int tokens = tokenizer_size(run->tokenizer);
    run->config.vocab_size = max_int(tokens, vocab_size);
    if (vocab_size && vocab_size != tokens)
        printf(
            "%s: vocab_size of config.json is %d, and the tokenizer has %d tokens; the new model "
            "has %d\n",
            run->state->model_dir, vocab_size, tokens, run->config.vocab_size);
}

/* Reads the configuration: the checkpoint's, if that holds a whole model, or --model's. */
static void read_config(Run *run, const Program *p) {
    Error e;
    const char *checkpoint = run_weights_dir(run);
    const char *dir = checkpoint && !p->technique ? checkpoint : run->model;
    if (!dir) return;
    if (creates_model(run) && !exists_in(dir, "config.json"))
        run->config = (GPT2Config){.layer_norm_epsilon = 1e-5f,
                                   .embd_pdrop = 0.1f,
                                   .attn_pdrop = 0.1f,
                                   .resid_pdrop = 0.1f};
    else if (hf_config(dir, &run->config, &e))
        die_usage("%s", e.text);
    run->state->model_dir = xstrdup(dir);
}

/* Records without --template are put into the template of the model's directory. A resumed run uses
   the one that it began with: template.txt of a checkpoint may be that of one kind of records. */
static void use_template(Run *run) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    const Flag *flag = flags_find(s->flags, "template");
    if (!flag) return;
    const char *given = *(char **)flag->value;
    if (!given) {
        s->default_template =
            s->checkpoint
                ? checkpoint_template(run)
                : chat_template(NULL, technique ? technique->flags->adapter : NULL, s->model_dir,
                                run->config.head == SCORE_HEAD ? NULL : run->tokenizer);
        template_set_default(s->default_template);
    }
    // a reward model is read where it was trained: at the end of the template's text
    const int end = tokenizer_eos(run->tokenizer);
    if (run->config.head != SCORE_HEAD &&
        run_end_by_template(run->tokenizer, given ? given : s->default_template))
        s->own_end = end;
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

/* Prints what is being done, by what, on what. */
static void print_beginning(const Run *run) {
    const GPT2Config *c = &run->config;
    printf("%s: %s\n", run->state->program->name, run->state->program->about);
    printf("model: %s%s, %d layers of %d channels, %d positions\n",
           creates_model(run) ? "a new one, with the tokenizer of " : "", run->state->model_dir,
           c->n_layer, c->n_embd, c->n_positions);
    printf("machine: %s%s\n", device_name(), run->bf16 && is_cpu() ? ", products in bf16" : "");
    fflush(stdout);
}

/* Prints what --help, -h or --version ask for. */
static void describe(const Run *run, int asked) {
    const Program *p = run->state->program;
    const int columns = min_int(streams_columns(100), 100);
    if (asked == FLAGS_VERSION)
        printf("%s of posttrain.c %s, built by %s\n", p->name, POSTTRAIN_VERSION, COMPILER);
    else if (asked == FLAGS_SHORT_HELP)
        flags_print_short_help(run->state->flags, &p->lines, p->name, p->about, columns);
    else
        flags_print_help(run->state->flags, &p->lines, p->name, p->about, columns);
}

Run run_begin(const Program *program, int argc, char **argv) {
    Error e;
    device_init();  // may start the program again, and MPI can be joined only once
    ranks_begin();
    streams_begin();
    machine_check();
    signals_catch();
    static Run run;  // the rows of the table of flags point into it for the life of the program
    const int parsed = run_parse(&run, program, argc, argv, &e);
    run.state->argc = argc;
    run.state->argv = argv;
    if (parsed < 0) die_usage("%s\n%s --help lists every flag", e.text, program->name);
    if (parsed > 0) {
        describe(&run, parsed);
        run_free(&run);
        exit(0);
    }
    choose_machine(&run);
    use_shards(&run);
    refuse_ranks(&run, program);
    if (checkpoint_find(&run, &e)) die_usage("%s", e.text);
    read_config(&run, program);
    const Technique *technique = program->technique;
    const bool chats = program->chat && chat_asked(program->chat);
    if (run.quiet) streams_quiet(false);
    const bool merged = technique && technique_merges_alone(technique, &run, chats);
    if (merged || (program->instead && program->instead(&run))) {
        run_free(&run);
        exit(0);
    }
    if (chats) answer(&run, program);
    if (run.quiet) streams_quiet(true);
    check_needs(&run, program);
    if (checkpoint_prepare_output(&run, &e)) die_usage("%s", e.text);
    ranks_share(&run.state->older, sizeof run.state->older, 0);
    if (run_writes(&run)) streams_outlive();
    if (technique) technique_check_merge(technique, &run);
    // a checkpoint has a copy of the tokenizer, so --model may be gone when it is resumed
    read_tokenizer(&run);
    use_template(&run);
    if (technique) technique->plan(&run, technique_directory(technique, &run));
    print_beginning(&run);
    if (technique) technique->print(&run.config);
    return run;
}

void run_template(Run *run, const char *template) {
    struct RunState *s = run->state;
    free(s->template);
    s->template = template ? template_line(template) : NULL;
    Error e;
    if (s->template && usage_check_template(s->template, &e)) die_usage("--template: %s", e.text);
}

void run_settle_end(Run *run, bool plain) {
    struct RunState *s = run->state;
    Str own = {0};
    if (s->own_end < 0) return;
    tokenizer_decode(run->tokenizer, &s->own_end, 1, &own);
    if (plain) {
        tokenizer_set_eos(run->tokenizer, s->own_end);
        template_set_end(own.s);
    } else {
        run_say_end(own.s);
    }
    s->own_end = -1;
    free(own.s);
}

void run_template_used(Run *run, const char *given, bool templated) {
    run_settle_end(run, false);
    const char *own = run->state->default_template;
    char *used = given || templated ? template_line(given) : xstrdup(own ? own : "{instruction}");
    run_template(run, used);
    free(used);
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

static double warmup_length(const Run *run) {
    if (run->lr_scheduler_type == CONSTANT) return 0;
    if (run->warmup_ratio > 0) return ceil(run->total_steps * as_written(run->warmup_ratio));
    return run->warmup_steps;
}

/* Says so if the warm-up takes more than half of the run. */
static void note_warmup(const Run *run) {
    const double warmup = warmup_length(run), rate = as_written(run->learning_rate);
    const int n = run->total_steps;
    const char *flag = run->warmup_ratio > 0 ? "warmup_ratio" : "warmup_steps";
    if (n == 0 || warmup <= 0.5 * n) return;
    if (warmup >= n)
        printf(
            "note: this run has %d step%s and the warm-up (--%s) takes %.0f: --learning_rate %g is "
            "not reached, the last step has %.2g\n",
            n, plural(n), flag, warmup, rate, rate * (n - 1) / warmup);
    else
        printf("note: the warm-up (--%s) takes %.0f of the %d steps of this run\n", flag, warmup,
               n);
}

/* A command line of transformers often has both. */
static void note_saving(const Run *run) {
    if (run->save_strategy != SAVE_STEPS && run_given(run, "save_steps") && run->save_steps > 0)
        printf("note: --save_steps %d has no effect with --save_strategy %s\n", run->save_steps,
               save_strategies[run->save_strategy]);
}

void run_plan(Run *run, int examples, int64_t per_step, double steps) {
    run->state->examples = examples;
    run->state->per_step = per_step;
    if (examples && !used_examples(run) && !run_given(run, "dataloader_drop_last")) {
        printf("note: the examples do not fill a batch of %d, so --dataloader_drop_last is off\n",
               run->per_device_train_batch_size);
        run->dataloader_drop_last = false;
    }
    const int used = used_examples(run);
    run->steps_per_epoch = (int)((used + per_step - 1) / per_step);
    if (run->max_steps != 0 && !examples)
        die_usage(
            "there is no example to train on; look at the data, or use --max_steps 0 to "
            "evaluate only");
    if (run->max_steps != 0 && !used)
        die_usage(
            "the data has %d example%s, which is less than a batch of %d, and "
            "--dataloader_drop_last leaves that out; use smaller batches",
            examples, plural(examples), run->per_device_train_batch_size);
    if (steps == 0) steps = as_written(run->num_train_epochs) * run->steps_per_epoch;
    if (run->max_steps >= 0) steps = run->max_steps;
    steps = ceil(steps);
    if (steps > INT_MAX)
        die_usage("--num_train_epochs %g of %d steps each are more steps than can be counted",
                  (double)run->num_train_epochs, run->steps_per_epoch);
    run->total_steps = (int)steps;
    note_warmup(run);
    note_saving(run);
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

/* ---- the loop -------------------------------------------------------------------------------- */

/* After `done` steps: is it time for something that is done every so many steps? */
static bool is_time(const Run *run, int done, int every) {
    return done == run_end(run) || (every > 0 && done % every == 0);
}

int run_end(const Run *run) {
    return run->state->stopped_at ? run->state->stopped_at : run->total_steps;
}

bool run_is_last(const Run *run) { return run->step + 1 == run_end(run); }

bool run_should_evaluate(Run *run) {
    const int every = run->eval_steps > 0 ? run->eval_steps : run->steps_per_epoch;
    return is_time(run, run->step + 1, every) && !run_postpones(run);
}

bool run_postpones(Run *run) {
    run->state->postponed |= run_interrupted();
    return run_interrupted();
}

bool run_measures_again(Run *run) {
    struct RunState *s = run->state;
    if (!s->postponed) return false;
    s->postponed = false;
    s->again = s->in_step = true;
    run->step--;
    signals_note();
    return true;
}

/* After run->step steps: is it time for a checkpoint? */
static bool should_save(const Run *run) {
    switch (run->save_strategy) {
        case SAVE_NO: return false;
        case SAVE_EPOCH: return is_time(run, run->step, run->steps_per_epoch);
        case SAVE_BEST: return run->step == (int)run->state->best.step;
        default: return is_time(run, run->step, run->save_steps);
    }
}

/* Ends a step: log line, held-out line, checkpoint. */
static void finish_step(Run *run) {
    struct RunState *s = run->state;
    s->in_step = false;
    run->step++;
    if (!s->again && is_time(run, run->step, run->logging_steps)) watch_log(run);
    s->again = false;
    watch_log_held_out(run);
    if (should_save(run) || run_interrupted()) run_checkpoint(run);
    checkpoint_check_moved(run);
}

bool run_next(Run *run) {
    struct RunState *s = run->state;
    signals_agree();
    if (s->in_step)
        finish_step(run);
    else
        watch_log_before(run);
    if (run->step >= run_end(run) && !s->postponed) {
        at_end = true;
        if (s->saved_step == run->step || !run_saves(run)) signals_end();
        best_load(run);
    }
    if (run->step >= run_end(run) || run_interrupted()) return false;
    signals_note();
    streams_optional();
    screen_follow(run);
    free(s->figures_before);
    s->figures_before = watch_text(run);
    s->in_step = true;
    s->step_began = now_seconds();
    if (!s->started) s->started = s->step_began;
    return true;
}

double run_optimise(Run *run, GPT2 *m, double loss, long tokens, int line) {
    const AdamW adamw = run_adamw(run);
    double sums[2] = {loss, (double)tokens};
    ranks_add(sums, 2);
    loss = sums[0];
    tokens = (long)sums[1];
    watch_gather(run);
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

void run_check_finite(const Run *run, const char *what, double value) {
    if (isfinite(value)) return;
    if (isnan(value)) value = NAN;  // without a sign
    if (run->state->in_step)
        die("step %d: %s is %g, so the model is not saved; lower --learning_rate, and resume from "
            "an earlier checkpoint or start anew",
            run->step + 1, what, value);
    die("%s is %g: the weights are finite, but what the model computes with them is not; use "
        "another model",
        what, value);
}

/* ---- finish ---------------------------------------------------------------------------------- */

bool run_interrupted(void) { return !at_end && signals_noted() != 0; }

bool run_completed(const Run *run) { return run->step == run_end(run) && !run_interrupted(); }

/* Saves a checkpoint of an interrupted run. Only a finished run writes a model into OUTPUT itself.
 */
static int stop_early(Run *run) {
    struct RunState *s = run->state;
    if (s->in_step && !s->again) {  // the step was left in its middle: so are its figures
        watch_free(run);
        watch_restore(run, s->figures_before);
    }
    if (run->step != s->saved_step) run_checkpoint(run);
    checkpoint_check_moved(run);
    if (run_writes(run) && run->save_only_model && run->step > 0)
        printf(
            "stopped at step %d of %d; its checkpoint is a model without AdamW's moments "
            "(--save_only_model), which cannot be resumed\n",
            run->step, run->total_steps);
    else if (run_writes(run) && s->older)
        printf("stopped at step %d of %d; nothing is saved, and the older result is unchanged\n",
               run->step, run->total_steps);
    else if (run_writes(run))
        printf("stopped at step %d of %d; the same command with --resume continues\n", run->step,
               run->total_steps);
    else
        printf("stopped at step %d of %d; nothing is saved, because there is no --output\n",
               run->step, run->total_steps);
    return 128 + signals_noted();
}

/* Writes the finished models and says how to load them. */
static void save_result(Run *run) {
    Error e;
    const struct RunState *s = run->state;
    checkpoint_begin_saving(run);
    if (checkpoint_save_models(run, run->output, true, &e) || run_json_write(run, &e))
        die("%s; %s", e.text, checkpoint_remedy(run, error_remedy(e.error)));
    if (!run->keep_moments) run_remove_moments(run);
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
    if (s->moved) die("%s; the finished model is there", s->moved);
    for (int i = 1; i < s->networks; i++)
        if (s->network[i]->trains)
            printf("the %s is in %s/%s\n", s->network[i]->role, run->output, s->network[i]->role);
}

int run_finish(Run *run) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    int status = 0;
    streams_progress("");
    screen_leave(run);
    screen_times(run);
    const bool trained = run->total_steps > 0 && run->step == run_end(run);
    printf("peak memory %.0f MB, planned %.0f MB\n", (double)device_memory_peak() / 1e6,
           (double)s->memory.total / 1e6);
    shards_print_exchanges();
    if (run_interrupted())  // before the end, or the last evaluation is left out
        status = stop_early(run);
    else if (run_writes(run))
        save_result(run);
    if (technique && technique->flags->merge && trained && !status && !rank())
        technique_merge(technique, run, s->network[0]->model, s->template);
    if (trained) best_report(run);
    fflush(stdout);
    run_free(run);
    ranks_end();
    return status;
}

void run_free(Run *run) {
    struct RunState *s = run->state;
    if (!s) return;
    screen_leave(run);
    if (s->log) fclose(s->log);
    lock_release();
    for (int i = 0; i < s->networks; i++) {
        gpt2_free(s->network[i]->model);
        free(s->network[i]->from);
        free(s->network[i]->origin);
        bundle_free(&s->network[i]->files);
    }
    if (s->networks && s->program->technique) added_free(s->program->technique->added);
    for (int i = 0; i < s->contents; i++) {
        free(s->content[i].name);
        free(s->content[i].shown);
        free(s->content[i].text);
    }
    watch_free(run);
    flags_free(s->flags);
    tokenizer_free(run->tokenizer);
    free(s->network);
    free(s->model_dir);
    free(s->checkpoint);
    free(s->order);
    free(s->kept);
    free(s->text);
    free(s->first_line.s);
    free(s->best.figures.s);
    free(s->best.from);
    free(s->content);
    free(s->template);
    free(s->default_template);
    free(s->moved);
    free(s->figures_before);
    free(s);
    run->state = NULL;
    run->tokenizer = NULL;
}
