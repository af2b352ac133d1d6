/*
 * check_network.c - opening the models of a run: what is checked before anything is loaded, a dry
 * run, and which weights a model gets.
 *
 * Each opening is a process of its own. The models are those of toy.h, with a few thousand weights.
 */
#include "run/run.c"  // for a look inside

#include "toy.h"

static struct {
    const char *judge;
    int longest;
    bool judges, create, frozen, changes, value_head;
} args;

static const Flag flags[] = {
    TITLE("Networks"),
    {"judge", TEXT(args.judge, NULL), "The directory of a second model.",
     .may_change_on_resume = true},
    {"longest", NUMBER(args.longest, "0", 0, 1000), "The longest sequence of both, in tokens."},
    {"judges", SWITCH(args.judges, "false"), "The second model must be a reward model."},
    {"create", SWITCH(args.create, "false"), "The first model is made, not read."},
    {"frozen", SWITCH(args.frozen, "false"), "The first model does not train."},
    {"changes", SWITCH(args.changes, "false"), "Its weights change, but it does not train."},
    {"value_head", SWITCH(args.value_head, "false"), "The first model has a value head."},
    {0},
};

static GPT2 *make_new(const GPT2Config *config, uint64_t seed) {
    GPT2 *m = gpt2_create(config, false);
    gpt2_init_weights(m, seed);
    return m;
}

/* Opens the models and says of the first what a stage can know. */
static int open_main(const char *name, int argc, char **argv) {
    char model_flag[256];
    snprintf(model_flag, sizeof model_flag, "--model=%s", at("base"));
    const char *const defaults[] = {model_flag, NULL};
    const Program program = {
        .name = name, .about = "A toy.", .flags = flags, .lines = {.program = defaults}};
    Run run = run_begin(&program, argc, argv);
    run_plan(&run, 18, 8, 0);
    const GPT2Limits limits = {.tokens = 4, .sequences = 1, .scored = 4};
    Network policy = {.role = "policy",
                      .head = args.value_head ? LM_AND_VALUE_HEAD : LM_HEAD,
                      .limits = limits,
                      .trains = !args.frozen,
                      .longest = args.longest,
                      .changes = args.changes,
                      .create = args.create ? make_new : NULL};
    Network judge = {.role = "judge",
                     .dir = args.judge,
                     .head = SCORE_HEAD,
                     .limits = limits,
                     .longest = args.longest,
                     .judges = args.judges};
    networks_open(&run, (Network *[]){&policy, args.judge ? &judge : NULL, NULL});
    float weight;
    gpt2_read(policy.model, 0, GPT2_WEIGHT, 0, 1, &weight);
    printf("opened %s, head %d, train %d, weight %.9g\n", policy.from, policy.has_head,
           policy.limits.train, (double)weight);
    if (args.judge) printf("judge %s, head %d\n", judge.from, judge.has_head);
    return run_finish(&run);
}

static int make_models(const char *name, int argc, char **argv) {
    (void)name;
    (void)argc;
    (void)argv;
    GPT2Config c = toy_config;
    int failed = make_model("base", &c);
    c.vocab_size = 256;
    failed |= make_model("small", &c);
    c.vocab_size = 300;
    failed |= make_model("large", &c);
    c.vocab_size = 257;
    c.n_positions = 6;
    failed |= make_model("short", &c);
    c.n_positions = 8;
    c.head = SCORE_HEAD;
    failed |= make_model("reward", &c);
    failed |= make_model("other", &c);
    return failed;
}

static void setup(void) {
    make_directory();
    ck_assert_int_eq(run_process(make_models, "make", ""), 0);
}

__attribute__((format(printf, 1, 2))) static int open_with(const char *format, ...) {
    char words[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    return run_process(open_main, "toy", words);
}

#define ck_open(status, ...)                                                                       \
    do {                                                                                           \
        const int got = open_with(__VA_ARGS__);                                                    \
        ck_assert_msg(got == (status), "exit status %d, expected %d:\n%s", got, (status), said.s); \
    } while (0)

/* ---- checks ---------------------------------------------------------------------------------- */

START_TEST(positions_are_enough_or_refused) {
    ck_open(0, "--longest 8");
    ck_open(2, "--longest 9");
    assert_said("the policy ");
    assert_said("base has 8 positions, and prompt and answer take up to 9");
    ck_open(0, "--longest 6 --judge %s", at("short"));
    ck_open(2, "--longest 7 --judge %s", at("short"));
    assert_said("the judge ");
    assert_said("short has 6 positions, and prompt and answer take up to 7");
}
END_TEST

START_TEST(a_vocabulary_fits_or_is_refused) {
    ck_open(2, "--model %s", at("small"));
    assert_said("the tokenizer has 257 tokens and the model 256; they do not belong together");
    ck_open(2, "--judge %s", at("small"));
    assert_said("the judge ");
    assert_said("small has 256 tokens and the tokenizer of ");
    ck_open(0, "--model %s --judge %s", at("large"), at("large"));  // rows without a token
}
END_TEST

START_TEST(a_judge_has_a_head_and_the_same_vocabulary) {
    ck_open(0, "--judges --judge %s", at("reward"));
    assert_said("reward, head 1");
    ck_open(2, "--judges --judge %s", at("base"));
    assert_said("base holds no reward model");
    ck_open(0, "--judge %s", at("base"));  // one that need not judge: its head is zeros
    assert_said("base, head 0");
    // a vocabulary of the same size, in which two tokens have changed places
    ck_open(0, "--judges --judge %s", at("other"));
    Str vocab = bytes_of("other/vocab.json");
    char *a = strstr(vocab.s, "\"a\": 97"), *b = strstr(vocab.s, "\"b\": 98");
    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_nonnull(b);
    a[1] = 'b';
    b[1] = 'a';
    write_text("other/vocab.json", vocab.s);
    free(vocab.s);
    ck_open(2, "--judges --judge %s", at("other"));
    assert_said("other and the policy ");
    assert_said("base have different vocabularies");
    ck_open(0, "--judge %s", at("other"));  // of one that does not judge, nobody looks at it
}
END_TEST

START_TEST(a_model_that_is_not_there_is_refused) {
    ck_open(2, "--judge %s", at("nowhere"));
    assert_said("nowhere");
    ck_open(2, "--model %s", at("nowhere"));
    ck_assert_int_eq(unlink(at("base/model.safetensors")), 0);
    ck_open(2, "--max_steps 0");
    assert_said("base");
}
END_TEST

/* ---- a dry run ------------------------------------------------------------------------------- */

START_TEST(a_dry_run_shows_the_memory_and_writes_nothing) {
    write_text("base/model.safetensors", "not read");
    const int before = count_entries("", "");
    ck_open(0, "--dry_run --output %s", at("out"));
    assert_said("parameters: ");
    assert_said("memory: ");
    assert_said(" weights ");
    assert_said(" gradients ");
    assert_said(" moments ");
    assert_not_said("by model");
    assert_not_said("opened");
    ck_open(0, "--dry_run --output %s --judge %s", at("out"), at("reward"));
    assert_said("memory in MB, by model: policy ");
    assert_said(", judge ");
    ck_assert(!exists("out"));
    ck_assert_int_eq(count_entries("", ""), before);
    ck_open(2, "--dry_run --longest 9");  // what can be checked is checked
    ck_open(2, "--dry_run --resume --output %s", at("out"));
    ck_assert(!exists("out"));
}
END_TEST

/* ---- weights --------------------------------------------------------------------------------- */

static double first_weight(void) {
    const char *text = strstr(said.s, ", weight ");
    ck_assert_ptr_nonnull(text);
    return atof(text + 9);
}

START_TEST(weights_are_read_or_made) {
    ck_open(0, "--max_steps 0");
    const double read = first_weight();
    assert_said("base, head 0, train 0");
    ck_open(0, "--max_steps 0 --seed 1");
    ck_assert_double_eq(first_weight(), read);
    ck_open(0, "--max_steps 0 --create --seed 7");  // the seed that made base
    ck_assert_double_eq(first_weight(), read);
    ck_open(0, "--max_steps 0 --create --seed 8");
    ck_assert_double_ne(first_weight(), read);
    ck_assert_int_eq(unlink(at("base/model.safetensors")), 0);
    ck_open(0, "--max_steps 0 --create");  // only its configuration is needed
    ck_open(0, "--max_steps 0 --value_head --model %s", at("large"));
    assert_said("large, head 0");
}
END_TEST

/* A model trains when it is to and there are steps. */
START_TEST(only_what_trains_has_gradients) {
    ck_open(0, "--dry_run --max_steps 5");
    assert_said(" gradients ");
    assert_not_said("parameters: 0 ");
    ck_open(0, "--dry_run --max_steps 5 --frozen");
    assert_not_said(" gradients ");
    assert_said("parameters: 0 ");
    ck_open(0, "--dry_run --max_steps 0");
    assert_not_said(" gradients ");
    assert_said("parameters: 0 ");
    ck_open(0, "--max_steps 0 --frozen --changes");
    assert_said("train 0");
}
END_TEST

int main(void) {
    Suite *suite = suite_create("network");
    const TTest *const tests[] = {positions_are_enough_or_refused,
                                  a_vocabulary_fits_or_is_refused,
                                  a_judge_has_a_head_and_the_same_vocabulary,
                                  a_model_that_is_not_there_is_refused,
                                  a_dry_run_shows_the_memory_and_writes_nothing,
                                  weights_are_read_or_made,
                                  only_what_trains_has_gradients};
    (void)toy_main;
    (void)make_toy;
    (void)toy;
    add_tests(suite, "opening", setup, tests, COUNT(tests));
    return finish_suite(suite);
}
