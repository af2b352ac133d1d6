/*
 * toy.h - a stage reduced to its bones, for the tests of common/run.
 *
 * Its model has a few thousand weights. Its arithmetic is its own, and a step depends on all that a
 * checkpoint must keep, so that a checkpoint that forgets anything changes the bits. It runs as a
 * process of its own, because OpenMP must not run in a process that forks.
 *
 * A test includes "run/run.c" first: the toy calls finish_step.
 */
#ifndef POSTTRAIN_TEST_TOY_H
#define POSTTRAIN_TEST_TOY_H

#include "files/hf.h"
#include "run/network.h"
#include "run/run.h"

#include "run_files.h"

#include <sys/resource.h>

/* The vocabulary is that of test/tiny. */
static const GPT2Config toy_config = {.n_positions = 8,
                                      .vocab_size = 257,
                                      .n_layer = 1,
                                      .n_head = 2,
                                      .n_embd = 8,
                                      .n_inner = 32,
                                      .layer_norm_epsilon = 1e-5f};

enum { LARGEST_TENSOR = 257 * 8 };

/* Writes a model with random weights and the tokenizer of test/tiny into a directory. */
static inline int make_model(const char *directory_name, const GPT2Config *config) {
    Error e;
    GPT2 *m = gpt2_create(config, false);
    gpt2_init_weights(m, 7);
    if (hf_save(m, at(directory_name), NULL, &e)) die("%s", e.text);
    gpt2_free(m);
    char command[1024];
    snprintf(command, sizeof command, "cp %s %s %s", example_file("tiny/vocab.json"),
             example_file("tiny/merges.txt"), at(directory_name));
    return system(command);
}

/* A step whose result depends on the weights, both moments, the examples and their order, and the
 * learning rate. */
static inline double toy_step(GPT2 *m, const int *which, int n, float rate) {
    static float w[LARGEST_TENSOR], m1[LARGEST_TENSOR], m2[LARGEST_TENSOR];
    float gradient = 0;
    double loss = 0;
    for (int i = 0; i < n; i++) gradient = 0.7f * gradient + 1e-3f * (float)which[i];
    for (int t = 0; t < gpt2_tensors(m); t++) {
        const size_t count = gpt2_tensor(m, t)->n;
        ck_assert_uint_le(count, LARGEST_TENSOR);
        gpt2_read(m, t, GPT2_WEIGHT, 0, count, w);
        gpt2_read(m, t, GPT2_MOMENT1, 0, count, m1);
        gpt2_read(m, t, GPT2_MOMENT2, 0, count, m2);
        for (size_t i = 0; i < count; i++) {
            const float g = gradient + w[i];
            m1[i] = 0.9f * m1[i] + 0.1f * g;
            m2[i] = 0.99f * m2[i] + 0.01f * g * g;
            w[i] -= 100 * rate * m1[i] / (sqrtf(m2[i]) + 1e-3f);
            loss += (double)w[i] * w[i];
        }
        gpt2_write(m, t, GPT2_WEIGHT, 0, count, w);
        gpt2_write(m, t, GPT2_MOMENT1, 0, count, m1);
        gpt2_write(m, t, GPT2_MOMENT2, 0, count, m2);
    }
    return loss;
}

static struct {
    int examples, signal_at, late_at, die_at, full_at, room;
    bool twice, terminate, second;
    const char *template, *losses;
} toy_args;

static const Flag toy_flags[] = {
    TITLE("Toy"),
    {"examples", NUMBER(toy_args.examples, "18", 0, 1e6), "The number of examples.",
     .may_change_on_resume = true},
    {"signal_at", NUMBER(toy_args.signal_at, "-1", -1, 1e6), "The step that is interrupted.",
     .may_change_on_resume = true},
    {"late_at", NUMBER(toy_args.late_at, "-1", -1, 1e6),
     "The step after whose saving an interruption comes.", .may_change_on_resume = true},
    {"terminate", SWITCH(toy_args.terminate, "false"), "Interrupt by SIGTERM.",
     .may_change_on_resume = true},
    {"twice", SWITCH(toy_args.twice, "false"), "Interrupt again at once.",
     .may_change_on_resume = true},
    {"die_at", NUMBER(toy_args.die_at, "-1", -1, 1e6), "The step that ends suddenly.",
     .may_change_on_resume = true},
    {"full_at", NUMBER(toy_args.full_at, "-1", -1, 1e6),
     "The step from which on no file grows beyond --room.", .may_change_on_resume = true},
    {"room", NUMBER(toy_args.room, "4000", 0, 1e9), "The room, in bytes.",
     .may_change_on_resume = true},
    {"template", TEXT(toy_args.template, ""), "Any text."},
    {"losses", TEXT(toy_args.losses, NULL),
     "The held-out losses before training and at each evaluation.", .may_change_on_resume = true},
    {"second", SWITCH(toy_args.second, "false"), "Train a second model, with a scalar head."},
    {0},
};

/* "Measures" the held-out loss number k of --losses, the last one if there are not so many. */
static inline void toy_evaluate(Run *run, int k) {
    const char *list = toy_args.losses;
    for (; k > 0 && list && strchr(list, ','); k--) list = strchr(list, ',') + 1;
    if (!list) return;
    watch_held_out(run, "eval_loss", strtod(list, NULL));
    run_held_out_loss(run, strtod(list, NULL));
}

static inline int toy_main(const char *name, int argc, char **argv) {
    char model_flag[256], data_flag[256];
    snprintf(model_flag, sizeof model_flag, "--model=%s", at("base"));
    snprintf(data_flag, sizeof data_flag, "--data=%s", at("data.jsonl"));
    // steps of 4 examples: 5 an epoch of 18, the last of 2
    const char *const defaults[] = {model_flag,
                                    data_flag,
                                    "--per_device_train_batch_size=2",
                                    "--warmup_steps=3",
                                    "--save_steps=5",
                                    "--logging_steps=1",
                                    "--keep_moments",  // so that a test may resume any checkpoint
                                    NULL};
    const Program program = {
        .name = name, .about = "A toy.", .flags = toy_flags, .lines = {.program = defaults}};
    double best = INFINITY;
    Run run = run_begin(&program, argc, argv);
    run_fingerprint(&run, "data", run.data);
    run_keep(&run, "best", &best);
    run_plan(&run, toy_args.examples,
             run.per_device_train_batch_size * run.gradient_accumulation_steps, 0);
    Network model = {
        .role = "model", .limits = {.tokens = 4, .sequences = 1, .scored = 4}, .trains = true};
    Network judge = {.role = "judge",
                     .dir = run.model,
                     .head = SCORE_HEAD,
                     .limits = {.tokens = 4, .sequences = 1},
                     .trains = true};
    networks_open(&run, (Network *[]){&model, toy_args.second ? &judge : NULL, NULL});
    if (!run_checkpoint_dir(&run)) toy_evaluate(&run, 0);
    if (run_measures_again(&run)) {
        const int every = run.eval_steps > 0 ? run.eval_steps : run.steps_per_epoch;
        toy_evaluate(&run, (run.step + every) / every);
    }
    if (toy_args.signal_at == 0) raise(SIGINT);  // before the first step
    while (run_next(&run)) {
        const int step = run.step + 1;
        const float rate = run_adamw(&run).learning_rate;
        int which[8], n = run_examples(&run, which);
        const double loss = toy_step(model.model, which, n, rate);
        if (toy_args.second) toy_step(judge.model, which, n, 2 * rate);
        if (step == toy_args.die_at) _exit(77);
        if (step == toy_args.signal_at) raise(toy_args.terminate ? SIGTERM : SIGINT);
        if (step == toy_args.signal_at && toy_args.twice) raise(SIGINT);
        const rlim_t room = (rlim_t)toy_args.room;
        if (step == toy_args.full_at) setrlimit(RLIMIT_FSIZE, &(struct rlimit){room, room});
        if (loss < best) best = loss;
        watch(&run, "loss", loss);
        watch(&run, "best", best);
        watch(&run, "examples", n);
        watch_mean(&run, "mean", loss, 1);
        run_progress(&run, loss, n);
        const int every = run.eval_steps > 0 ? run.eval_steps : run.steps_per_epoch;
        if (run_should_evaluate(&run)) toy_evaluate(&run, (step + every - 1) / every);
        if (step != toy_args.late_at) continue;
        finish_step(&run);  // between saving a step and deciding whether to continue
        raise(SIGINT);
    }
    return run_finish(&run);
}

static inline int make_base(const char *name, int argc, char **argv) {
    (void)name;
    (void)argc;
    (void)argv;
    return make_model("base", &toy_config);
}

/* A directory with a model, base/, and data. */
static inline void make_toy(void) {
    make_directory();
    write_text("data.jsonl", "foobar");
    ck_assert_int_eq(run_process(make_base, "base", ""), 0);
}

/* Runs the toy with flags as for printf. */
__attribute__((format(printf, 1, 2))) static inline int toy(const char *format, ...) {
    char words[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return run_process(toy_main, "toy", words);
}

#define ck_toy(status, ...)                                                                        \
    do {                                                                                           \
        const int got = toy(__VA_ARGS__);                                                          \
        ck_assert_msg(got == (status), "exit status %d, expected %d:\n%s", got, (status), said.s); \
    } while (0)

#endif
