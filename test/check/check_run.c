/*
 * check_run.c - flags, schedule, log, checkpoints and resume of common/run/run.c.
 *
 * What reads a table or computes a number is called directly. What writes, dies or is killed runs
 * in a process of its own: toy() below is a stage reduced to its bones, on a model of a thousand
 * weights with an arithmetic of its own, so that a checkpoint that forgets anything changes the
 * bits. OpenMP runs in those children only, never in the parent.
 */
#define _GNU_SOURCE  // defines: nftw, posix_openpt, ptsname

#include "run/run.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- a directory for each test, and files in it ---------------------------------------------- */

static char directory[64];

static const char *at(const char *name) {
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static void write_text(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(text, 1, strlen(text), f), strlen(text));
    ck_assert_int_eq(fclose(f), 0);
}

/* The bytes of a file, to be freed. */
static Str bytes_of(const char *name) {
    Str s = {0};
    Error e;
    if (read_file(at(name), 1 << 24, &s, &e)) ck_abort_msg("%s", e.text);
    return s;
}

static bool exists(const char *name) { return !access(at(name), F_OK); }

static void assert_same_file(const char *a, const char *b) {
    Str x = bytes_of(a), y = bytes_of(b);
    ck_assert_msg(x.n == y.n && !memcmp(x.s, y.s, x.n), "%s and %s differ", a, b);
    free(x.s);
    free(y.s);
}

static int remove_entry(const char *path, const struct stat *found, int type, struct FTW *where) {
    (void)found;
    (void)type;
    (void)where;
    return remove(path);
}

/* Entries of OUTPUT whose names hold `part`. */
static int count_entries(const char *name, const char *part) {
    DIR *d = opendir(at(name));
    ck_assert_ptr_nonnull(d);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(d));)
        n += *entry->d_name != '.' && strstr(entry->d_name, part);
    closedir(d);
    return n;
}

/* ---- the toy stage --------------------------------------------------------------------------- */

static const GPT2Config tiny = {.n_positions = 8,
                                .vocab_size = 16,
                                .n_layer = 1,
                                .n_head = 2,
                                .n_embd = 8,
                                .n_inner = 32,
                                .layer_norm_epsilon = 1e-5f};

/* A step whose result depends on the weights, both moments, the examples and their order, and the
 * learning rate. */
static double toy_step(GPT2 *m, const int *which, int n, float rate) {
    float w[512], m1[512], m2[512], gradient = 0;
    double loss = 0;
    for (int i = 0; i < n; i++) gradient = 0.7f * gradient + 1e-3f * (float)which[i];
    for (int t = 0; t < gpt2_tensors(m); t++) {
        const size_t count = gpt2_tensor(m, t)->n;
        ck_assert_uint_le(count, 512);
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

static int toy_main(const char *program, int argc, char **argv) {
    static Run run;
    static int examples = 18, signal_at = -1, late_at = -1, die_at = -1, full_at = -1, room = 4000;
    static bool twice, terminate, second;
    static const char *template = "";
    static double best = INFINITY;
    const Flag own[] = {
        {"examples", FLAG_INT, &examples, .help = "how many there are", .low = 0, .high = 1e6,
         .free_on_resume = true},
        {"signal_at", FLAG_INT, &signal_at, .help = "step of an interruption",
         .free_on_resume = true},
        {"late_at", FLAG_INT, &late_at, .help = "step after whose saving an interruption comes",
         .free_on_resume = true},
        {"terminate", FLAG_BOOL, &terminate, .help = "interrupt by SIGTERM",
         .free_on_resume = true},
        {"twice", FLAG_BOOL, &twice, .help = "interrupt again at once", .free_on_resume = true},
        {"die_at", FLAG_INT, &die_at, .help = "step of a sudden end", .free_on_resume = true},
        {"full_at", FLAG_INT, &full_at, .help = "step from which no file grows beyond --room",
         .free_on_resume = true},
        {"room", FLAG_INT, &room, .help = "bytes", .free_on_resume = true},
        {"template", FLAG_STRING, &template, .help = "any text"},
        {"second", FLAG_BOOL, &second, .help = "train a second model, with a scalar head"},
        {0},
    };
    char base[128], data[128];
    strcpy(base, at("base"));
    strcpy(data, at("data.jsonl"));
    run = run_defaults();
    run.model = base;
    run.data = data;
    run.per_device_train_batch_size = 2;  // steps of 4: 5 an epoch of 18, the last of 2
    run.warmup_steps = 3;
    run.save_steps = 5;
    run.logging_steps = 1;
    run_start(&run, program, "A toy.", own, argc, argv);
    run_fingerprint(&run, "data", run.data);
    run_keep(&run, "best", &best);
    Error e;
    GPT2 *m = hf_load(run_model_dir(&run), false, &e);
    if (!m) die_usage("%s", e.text);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4, .sequences = 1, .scored = 4, .train = true});
    GPT2 *judge = NULL;
    if (second) {
        char *dir = run_also_dir(&run, "judge", run.model);
        if (!(judge = hf_load_head(dir, SCORE_HEAD, false, NULL, &e))) die_usage("%s", e.text);
        gpt2_reserve(judge, &(GPT2Limits){.tokens = 4, .sequences = 1, .train = true});
        run_also(&run, "judge", judge, dir);
        free(dir);
    }
    run_plan_steps(&run, examples);
    run_resume(&run, m);
    while (run.step < run.total_steps && !run_interrupted()) {
        int which[4], n = run_examples(&run, run.step, which);
        const double loss = toy_step(m, which, n, run_learning_rate(&run, run.step));
        if (second) toy_step(judge, which, n, 2 * run_learning_rate(&run, run.step));
        run.step++;
        if (run.step == die_at) _exit(77);
        if (run.step == signal_at) raise(terminate ? SIGTERM : SIGINT);
        if (run.step == signal_at && twice) raise(SIGINT);
        if (run.step == signal_at && run.output && run_interrupted() && !run_should_save(&run))
            die("interrupted, but not to be saved");
        if (run.step == full_at)
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)room, (rlim_t)room});
        if (loss < best) best = loss;
        run_progress(&run, loss, n);
        if (run_should_log(&run))
            run_log(&run, {"loss", loss}, {"best", best}, {"epoch", run_epoch(&run)},
                    {"examples", n});
        if (run_should_save(&run)) run_checkpoint(&run, m);
        if (run.step == late_at) raise(SIGINT);
    }
    const int status = run_finish(&run, m);
    gpt2_free(judge);
    gpt2_free(m);
    return status;
}

static void make_base(void) {
    GPT2 *m = gpt2_create(&tiny, false);
    Error e;
    gpt2_init_weights(m, 7);
    if (hf_save(m, at("base"), NULL, &e)) die("%s", e.text);
    gpt2_free(m);
}

/* ---- children -------------------------------------------------------------------------------- */

static Str said;  // stdout and stderr of the last child
static bool
    ignoring;  // start children as nohup and `command &` in a script do: with SIGINT ignored

static void read_said(void) {
    free(said.s);
    said = bytes_of("said.txt");
}

/* Runs `PROGRAM words...` as a process. Its exit status, or minus the signal that ended it. */
static int run_program(const char *program, const char *words) {
    char line[2048], *argv[64] = {(char *)"toy"};
    int argc = 1, status;
    ck_assert_uint_lt(strlen(words), sizeof line);
    strcpy(line, words);
    for (char *p = strtok(line, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    fflush(stdout);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (!child) {
        int fd = open(at("said.txt"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        signal(SIGINT, ignoring ? SIG_IGN : SIG_DFL);
        signal(SIGXFSZ, SIG_IGN);  // a full disk is an error that write() returns, not a signal
        if (program) exit(toy_main(program, argc, argv));
        make_base();
        exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    read_said();
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

__attribute__((format(printf, 1, 2))) static int toy(const char *format, ...) {
    char words[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return run_program("toy", words);
}

static void assert_said(const char *text) {
    ck_assert_msg(strstr(said.s, text) != NULL, "expected \"%s\" in:\n%s", text, said.s);
}

#define ck_toy(status, ...)                                                                        \
    do {                                                                                           \
        int got = toy(__VA_ARGS__);                                                                \
        ck_assert_msg(got == (status), "exit status %d, expected %d:\n%s", got, (status), said.s); \
    } while (0)

static void setup(void) {
    strcpy(directory, "/tmp/check_run.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    write_text("data.jsonl", "foobar");
    ck_assert_int_eq(run_program(NULL, ""), 0);
}

static void teardown(void) { nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

/* ---- flags ----------------------------------------------------------------------------------- */

static Run parsed;
static int own_length, own_count;
static bool own_switch;
static const char *own_kind, *own_text, *own_question;
static float own_any;

static const Flag own_flags[] = {
    {"max_length", FLAG_INT, &own_length, .help = "tokens", .low = 1, .high = 1024},
    {"train_on_prompt", FLAG_BOOL, &own_switch, .help = "switch"},
    {"kind", FLAG_CHOICE, &own_kind, .help = "red|green|blue-ish: colour"},
    {"text", FLAG_STRING, &own_text, .help = "goes into the state"},
    {"any", FLAG_FLOAT, &own_any, .help = "any number"},
    {"count", FLAG_INT, &own_count, .help = "any whole number"},
    {"question", FLAG_STRING, &own_question, .help = "not beside some others",
     .apart = "data dry_run train_on_prompt model_x"},
    {0},
};

static int parse(int argc, char **argv, Error *e) {
    run_free(&parsed);
    parsed = run_defaults();
    parsed.without = "eval_steps adam_epsilon";  // flags that are not there keep their defaults
    own_length = 512;
    own_switch = false;
    own_kind = "red";
    own_text = own_question = NULL;
    own_any = 0;
    return run_parse(&parsed, "prog", own_flags, argc, argv, e);
}

/* Splits words at blanks; "_" stands for an empty argument. */
static int parse_words(const char *words, Error *e) {
    static char line[1024];
    char *argv[64] = {(char *)"prog"};
    int argc = 1;
    snprintf(line, sizeof line, "%s", words);
    for (char *p = strtok(line, " "); p; p = strtok(NULL, " "))
        argv[argc++] = strcmp(p, "_") ? p : (char *)"";
    return parse(argc, argv, e);
}

static void accept(const char *words) {
    Error e;
    if (parse_words(words, &e)) ck_abort_msg("%s: refused: %s", words, e.text);
}

START_TEST(test_accepts) {
    accept("");
    ck_assert_int_eq(parsed.per_device_train_batch_size, 4);
    ck_assert_int_eq(parsed.gradient_accumulation_steps, 2);
    ck_assert_float_eq(parsed.num_train_epochs, 3);
    ck_assert_float_eq(parsed.learning_rate, 5e-5f);
    ck_assert_int_eq(parsed.warmup_steps, 100);
    ck_assert_float_eq(parsed.weight_decay, 0.01f);
    ck_assert_int_eq(parsed.max_steps, -1);
    ck_assert_str_eq(parsed.lr_scheduler_type, "linear");
    ck_assert_ptr_null(parsed.output);

    accept(
        "--learning_rate 1e-4 --max-steps=7 --per-device_train-batch_size 3 --seed "
        "9007199254740993 --output=out --kind "
        "blue-ish");
    ck_assert_float_eq(parsed.learning_rate, 1e-4f);
    ck_assert_int_eq(parsed.max_steps, 7);
    ck_assert_int_eq(parsed.per_device_train_batch_size, 3);
    ck_assert(parsed.seed == 9007199254740993);  // 2^53 + 1: not through a double
    ck_assert_str_eq(parsed.output, "out");
    ck_assert_str_eq(own_kind, "blue-ish");

    accept("--max_steps -1 --any -2.5e-3 --max_length 1024 --max_grad_norm 1e6 --adam_beta1 0");
    ck_assert_int_eq(parsed.max_steps, -1);
    ck_assert_float_eq(own_any, -2.5e-3f);
    ck_assert_int_eq(own_length, 1024);
    accept("--seed 1 --seed 2 --seed=3");  // the last counts
    ck_assert(parsed.seed == 3);
    accept("--model a-b --output _");
    ck_assert_str_eq(parsed.model, "a-b");
    ck_assert_str_eq(parsed.output, "");
    accept("--count -2147483648");
    ck_assert_int_eq(own_count, INT_MIN);
    accept("--text=--odd=text");
    ck_assert_str_eq(own_text, "--odd=text");
}
END_TEST

START_TEST(test_switches) {
    const struct {
        const char *words;
        bool expected;
    } row[] = {
        {"--train_on_prompt", true},          {"--train-on-prompt", true},
        {"--train_on_prompt=true", true},     {"--train_on_prompt True", true},
        {"--train_on_prompt=false", false},   {"--train_on_prompt False", false},
        {"--no_train_on_prompt", false},      {"--no-train-on-prompt", false},
        {"--train_on_prompt --seed 5", true}, {"--train_on_prompt --no_train_on_prompt", false}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        accept(row[i].words);
        ck_assert_msg(own_switch == row[i].expected, "%s", row[i].words);
    }
}
END_TEST

START_TEST(test_bare_value) {
    accept("--resume");
    ck_assert_str_eq(parsed.resume, "latest");
    accept("--resume --seed 5");
    ck_assert_str_eq(parsed.resume, "latest");
    ck_assert(parsed.seed == 5);
    accept("--resume out/checkpoint-5");
    ck_assert_str_eq(parsed.resume, "out/checkpoint-5");
    accept("--resume=here");
    ck_assert_str_eq(parsed.resume, "here");
    accept("");
    ck_assert_ptr_null(parsed.resume);
}
END_TEST

START_TEST(test_refuses) {
    const struct {
        const char *words, *says[3];
    } row[] = {
        {"--learning_rate 5e-5x", {"--learning_rate", "5e-5x", "from 0 to 10"}},
        {"--learning_rate _", {"--learning_rate \"\"", "a number from 0 to 10"}},
        {"--learning_rate nan", {"--learning_rate", "nan", "not understood"}},
        {"--learning_rate inf", {"--learning_rate", "inf", "not understood"}},
        {"--learning_rate 0x1p-3", {"0x1p-3", "not understood"}},
        {"--learning_rate -1", {"--learning_rate", "-1", "out of range"}},
        {"--learning_rate 11", {"11", "out of range", "from 0 to 10"}},
        {"--learning_rate 1e-60", {"1e-60", "out of range"}},
        {"--learning_rate 1e999", {"1e999"}},
        {"--learning_rate 1.0.0", {"1.0.0", "not understood"}},
        {"--count 2147483648", {"2147483648", "out of range", "a whole number"}},
        {"--any 1e39", {"1e39", "out of range"}},
        {"--learning_rate", {"--learning_rate is given no value", "a number"}},
        {"--learning_rate --seed 3", {"--learning_rate is given no value"}},
        {"--learning_rate=", {"--learning_rate \"\""}},
        {"--max_length 1.5", {"--max_length", "1.5", "a whole number from 1 to 1024"}},
        {"--max_length 12a", {"12a", "not understood"}},
        {"--max_length 0x10", {"0x10", "not understood"}},
        {"--max_length 1e2", {"1e2", "a whole number"}},
        {"--max_length 0", {"--max_length \"0\" is out of range", "from 1 to 1024"}},
        {"--max_length 1025", {"1025", "out of range"}},
        {"--max_length 4294967297", {"4294967297", "out of range"}},
        {"--max_length 99999999999999999999", {"99999999999999999999"}},
        {"--seed -1", {"--seed", "-1", "0 or more"}},
        {"--seed 9223372036854775808", {"9223372036854775808"}},
        {"--lr_scheduler_type cosin",
         {"cosin", "one of constant|constant_with_warmup|linear|cosine"}},
        {"--lr_scheduler_type constant|linear", {"constant|linear"}},
        {"--lr_scheduler_type how", {"\"how\""}},
        {"--kind _", {"--kind \"\"", "red|green|blue-ish"}},
        {"--train_on_prompt=maybe", {"--train_on_prompt", "maybe", "true or false"}},
        {"--train_on_prompt maybe", {"\"maybe\" belongs to no flag"}},
        {"--no_train_on_prompt=true", {"--no_train_on_prompt"}},
        {"--no_seed", {"there is no flag --no_seed"}},
        {"--learnin_rate 1", {"no flag --learnin_rate", "did you mean --learning_rate?"}},
        {"--warmup-step 1", {"no flag --warmup-step", "did you mean --warmup_steps?"}},
        {"--output_dir x", {"did you mean --output?"}},
        {"--model_name_or_path x", {"did you mean --model?"}},
        {"--resume_from_checkpoint x", {"did you mean --resume?"}},
        {"--batch_size 8", {"did you mean --per_device_train_batch_size?"}},
        {"--max_len 8", {"did you mean --max_length?"}},
        {"--eval_steps 5", {"no flag --eval_steps"}},  // the table is without it
        {"--adam_epsilon 1e-5", {"no flag --adam_epsilon"}},
        {"data.jsonl", {"\"data.jsonl\" belongs to no flag", "--name value"}},
        {"--seed 1 2", {"\"2\" belongs to no flag"}},
        {"-seed 1", {"\"-seed\" belongs to no flag"}},
        {"--", {"\"--\" belongs to no flag"}},
        {"--=3", {"no flag --=3"}},
        {"--warmup_steps 5 --warmup_ratio 0.1",
         {"--warmup_steps 5", "--warmup_ratio 0.1", "one of them"}},
        {"--question why --data x", {"--question and --data are both given", "one of them"}},
        {"--data x --question why", {"--question and --data are both given", "one of them"}},
        {"--question why --seed 3 --train_on_prompt",
         {"--question and --train_on_prompt are both given"}},
        {"--text a\xff", {"--text", "UTF-8"}},
        {"--text \xed\xa0\x80", {"--text", "UTF-8"}},      // a surrogate
        {"--text \xc0\x80", {"--text", "UTF-8"}},          // an overlong form
        {"--text \xf4\x90\x80\x80", {"--text", "UTF-8"}},  // beyond U+10FFFF
        {"--text \xea\xb0", {"--text", "UTF-8"}},          // cut short
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Error e = {""};
        ck_assert_msg(parse_words(row[i].words, &e) == -1, "accepted: %s", row[i].words);
        for (int j = 0; j < 3 && row[i].says[j]; j++)
            ck_assert_msg(strstr(e.text, row[i].says[j]) != NULL, "%s: expected \"%s\" in \"%s\"",
                          row[i].words, row[i].says[j], e.text);
    }
    accept("--text \xea\xb0\x80\xf0\x9f\x98\x80");  // Hangul and an emoji
    accept("--model a\xff");                        // a path is bytes
    accept(
        "--question why --data _ --no_train_on_prompt --dry_run=false --model x");  // nothing is
                                                                                    // what they
                                                                                    // set, but for
                                                                                    // the model
    Error e;
    ck_assert_int_eq(parse_words("--zzzzqqqq 1", &e), -1);
    ck_assert_ptr_null(
        strstr(e.text, "did you mean"));  // nothing is near: no advice rather than bad advice
    char longest[1000] = "--";
    memset(longest + 2, 'a', 900);
    ck_assert_int_eq(parse_words(longest, &e), -1);
}
END_TEST

START_TEST(test_warmup_ratio_replaces_steps) {
    accept("--warmup_ratio 0.1");
    run_plan_steps(&parsed, 80);  // 30 steps, 3 of warm-up
    ck_assert_int_eq(parsed.total_steps, 30);
    ck_assert_float_eq_tol(run_learning_rate(&parsed, 1), 5e-5f / 3, 1e-11f);
    accept("--warmup_ratio 0 --warmup_steps 6");
    run_plan_steps(&parsed, 80);
    ck_assert_float_eq_tol(run_learning_rate(&parsed, 3), 2.5e-5f, 1e-11f);

    char *argv[] = {(char *)"prog", (char *)"--warmup_steps", (char *)"6"};
    Run run = run_defaults();
    Error e;
    run.warmup_ratio = 0.5f;  // a stage's default gives way to the other one's flag
    run.total_steps = 30;
    ck_assert_int_eq(run_parse(&run, "prog", NULL, 3, argv, &e), 0);
    ck_assert_float_eq_tol(run_learning_rate(&run, 3), 2.5e-5f, 1e-11f);
    run_free(&run);
}
END_TEST

START_TEST(test_help) {
    Error e;
    ck_assert_int_eq(parse_words("--seed 1 --help", &e), 1);
    ck_assert_int_eq(parse_words("-h", &e), 1);
    ck_toy(0, "--help");
    assert_said("usage: toy");
    assert_said("A toy.");
    const char *const names[] = {"model",
                                 "data",
                                 "eval",
                                 "output",
                                 "overwrite_output_dir",
                                 "resume",
                                 "dry_run",
                                 "per_device_train_batch_size",
                                 "gradient_accumulation_steps",
                                 "num_train_epochs",
                                 "max_steps",
                                 "dataloader_drop_last",
                                 "learning_rate",
                                 "lr_scheduler_type",
                                 "warmup_steps",
                                 "warmup_ratio",
                                 "weight_decay",
                                 "max_grad_norm",
                                 "seed",
                                 "logging_steps",
                                 "eval_steps",
                                 "save_steps",
                                 "save_total_limit",
                                 "signal_at"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "\n  --%s ", names[i]);
        assert_said(flag);
    }
    for (const char *p = said.s; *p;) {
        const size_t n = strcspn(p, "\n");
        if (strncmp(p, "  --model ", 10))
            ck_assert_msg(n <= 110, "%zu columns: %.*s", n, (int)n,
                          p);  // its default is a long path here
        p += n + (p[n] == '\n');
    }
    const char *p = strstr(said.s, "--learning_rate ");
    ck_assert_ptr_nonnull(p);
    char value[32];
    ck_assert_int_eq(sscanf(p, "--learning_rate %31s", value), 1);
    ck_assert_str_eq(value, "5e-05");
}
END_TEST

/* What the echo prints, a shell reads as flags that give the same values. */
START_TEST(test_echo_repeats_the_run) {
    char *argv[] = {(char *)"prog",
                    (char *)"--text",
                    (char *)"it's {a}\\n $HOME \"b\" `c`",
                    (char *)"--learning_rate=0.1",
                    (char *)"--num_train_epochs",
                    (char *)"0.3333333",
                    (char *)"--train_on_prompt",
                    (char *)"--seed",
                    (char *)"77",
                    (char *)"--warmup_ratio=0.05"};
    Error e;
    ck_assert_int_eq(parse(10, argv, &e), 0);
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(at("echo.sh"), O_WRONLY | O_CREAT, 0666);
    ck_assert_int_ge(write(fd, "printf '%s\\n' \\\n", 16), 16);
    dup2(fd, STDOUT_FILENO);
    run_echo(&parsed);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(fd);
    char command[256], lines[64][256], *again[64] = {(char *)"prog"};
    int n = 1;
    snprintf(command, sizeof command, "sh %s", at("echo.sh"));
    FILE *f = popen(command, "r");
    while (n < 64 && fgets(lines[n], sizeof lines[n], f)) {
        lines[n][strcspn(lines[n], "\n")] = 0;
        again[n] = lines[n];
        n++;
    }
    ck_assert_int_eq(pclose(f), 0);
    ck_assert_int_gt(n, 20);
    ck_assert_int_eq(parse(n, again, &e), 0);
    ck_assert_str_eq(own_text, "it's {a}\\n $HOME \"b\" `c`");
    ck_assert_float_eq(parsed.learning_rate, 0.1f);
    ck_assert_float_eq(parsed.num_train_epochs, 0.3333333f);
    ck_assert(own_switch);
    ck_assert(parsed.seed == 77);
    ck_assert(!parsed.dry_run);
    ck_assert_float_eq(parsed.warmup_ratio, 0.05f);
    ck_assert_int_eq(parsed.warmup_steps, 0);
}
END_TEST

/* ---- schedule -------------------------------------------------------------------------------- */

/* Golden: transformers 5.23.0, get_scheduler(type, AdamW(lr), warm-up, total) on torch 2.15.0, the
   rate in force at the step. A float holds them to 6e-8 of their size; 1e-6 also allows for another
   cos() in the last digits of the cosine. */
START_TEST(test_learning_rate_is_transformers) {
    const struct {
        const char *type;
        float rate;
        int warmup, total, n, step[8];
        double expected[8];
    } row[] = {
        {"constant", 5e-5f, 100, 300, 3, {0, 37, 299}, {5e-5, 5e-5, 5e-5}},
        {"constant_with_warmup",
         5e-5f,
         100,
         300,
         6,
         {0, 1, 37, 99, 100, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 5.0000000000000002e-05}},
        {"linear",
         5e-5f,
         100,
         300,
         8,
         {0, 1, 37, 99, 100, 101, 200, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 4.9750000000000003e-05, 2.5000000000000001e-05,
          2.5000000000000004e-07}},
        {"linear",
         1e-3f,
         0,
         7,
         7,
         {0, 1, 2, 3, 4, 5, 6},
         {0.001, 0.0008571428571428571, 0.00071428571428571429, 0.00057142857142857136,
          0.00042857142857142855, 0.00028571428571428568, 0.00014285714285714284}},
        {"linear",
         3e-6f,
         30,
         20,
         3,
         {0, 1, 19},
         {0, 9.9999999999999995e-08, 1.9e-06}},  // the warm-up is longer than the run
        {"cosine",
         5e-5f,
         100,
         300,
         8,
         {0, 1, 37, 99, 100, 101, 200, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 4.9996915812041518e-05, 2.5000000000000001e-05,
          3.0841879584853073e-09}},
        {"cosine",
         1e-3f,
         0,
         7,
         7,
         {0, 1, 2, 3, 4, 5, 6},
         {0.001, 0.00095048443395120952, 0.00081174490092936679, 0.00061126046697815718,
          0.00038873953302184284, 0.00018825509907063325, 4.9515566048790485e-05}},
        {"cosine", 3e-6f, 30, 20, 3, {0, 1, 19}, {0, 9.9999999999999995e-08, 1.9e-06}},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Run run = run_defaults();
        run.lr_scheduler_type = row[i].type;
        run.learning_rate = row[i].rate;
        run.warmup_steps = row[i].warmup;
        run.total_steps = row[i].total;
        for (int j = 0; j < row[i].n; j++) {
            const double got = run_learning_rate(&run, row[i].step[j]),
                         expected = row[i].expected[j];
            ck_assert_msg(fabs(got - expected) <= 1e-6 * expected,
                          "%s, step %d: %.9g, expected %.9g", row[i].type, row[i].step[j], got,
                          expected);
        }
    }
}
END_TEST

/* By hand: 10 steps, 2 of warm-up, rate 8: 0, 4, then 8 (10 - step) / 8. */
START_TEST(test_learning_rate_by_hand) {
    Run run = run_defaults();
    run.learning_rate = 8;
    run.warmup_steps = 2;
    run.total_steps = 10;
    const float expected[] = {0, 4, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    for (int i = 0; i <= 10; i++) ck_assert_float_eq(run_learning_rate(&run, i), expected[i]);
    run.lr_scheduler_type = "cosine";  // half way: half the rate; at the end: none
    ck_assert_float_eq(run_learning_rate(&run, 2), 8);
    ck_assert_float_eq_tol(run_learning_rate(&run, 6), 4, 1e-6f);
    ck_assert_float_eq_tol(run_learning_rate(&run, 10), 0, 1e-6f);
}
END_TEST

/* Golden: Trainer of transformers 5.23.0, global_step after train() and get_warmup_steps(), with
 * these arguments. */
START_TEST(test_step_counts_are_transformers) {
    const struct {
        int examples, batch, accumulation;
        float epochs;
        int max_steps;
        bool drop_last;
        float warmup_ratio;
        int steps, warmup;
    } row[] = {{10, 4, 2, 3, -1, false, 0, 6, 0},          {17, 4, 2, 3, -1, false, 0, 9, 0},
               {17, 4, 2, 3, -1, true, 0, 6, 0},           {30, 1, 1, 0.1f, -1, false, 0, 3, 0},
               {100, 4, 2, 2.5f, -1, false, 0.03f, 33, 1}, {17, 4, 2, 3, 8, false, 0.1f, 8, 1},
               {1, 4, 2, 1, -1, false, 0, 1, 0},           {23, 4, 2, 0.5f, -1, true, 0.5f, 2, 1}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Run run = run_defaults();
        run.per_device_train_batch_size = row[i].batch;
        run.gradient_accumulation_steps = row[i].accumulation;
        run.num_train_epochs = row[i].epochs;
        run.max_steps = row[i].max_steps;
        run.dataloader_drop_last = row[i].drop_last;
        run.warmup_ratio = row[i].warmup_ratio;
        run.warmup_steps = 0;
        run_plan_steps(&run, row[i].examples);
        ck_assert_msg(run.total_steps == row[i].steps, "row %zu: %d steps, expected %d", i,
                      run.total_steps, row[i].steps);
        int warmup = 0;  // the first step at the full rate
        while (warmup < run.total_steps && run_learning_rate(&run, warmup) < run.learning_rate)
            warmup++;
        ck_assert_msg(warmup == row[i].warmup, "row %zu: warm-up %d, expected %d", i, warmup,
                      row[i].warmup);
        run_free(&run);
    }
}
END_TEST

/* Every epoch deals out every example once (with drop_last: all that fill whole batches), in an
   order of its own that depends on nothing but the seed and the epoch. */
START_TEST(test_examples_of_an_epoch) {
    const struct {
        int examples, batch, accumulation;
        bool drop_last;
    } row[] = {{1, 4, 2, false}, {7, 1, 1, false},   {17, 4, 2, false}, {17, 4, 2, true},
               {16, 4, 2, true}, {100, 3, 5, false}, {100, 3, 5, true}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Run run = run_defaults();
        const int per_step = row[i].batch * row[i].accumulation, examples = row[i].examples;
        const int used = row[i].drop_last ? examples / row[i].batch * row[i].batch : examples;
        run.per_device_train_batch_size = row[i].batch;
        run.gradient_accumulation_steps = row[i].accumulation;
        run.dataloader_drop_last = row[i].drop_last;
        run_plan_steps(&run, examples);
        int which[100], order[3][128], step = 0;
        for (int epoch = 0; epoch < 3; epoch++) {
            int seen[100] = {0}, dealt = 0;
            while (dealt < used) {
                const int n = run_examples(&run, step++, which);
                ck_assert_int_eq(n, used - dealt < per_step ? used - dealt : per_step);
                for (int j = 0; j < n; j++) {
                    ck_assert(which[j] >= 0 && which[j] < examples);
                    ck_assert_int_eq(seen[which[j]]++, 0);
                    order[epoch][dealt++] = which[j];
                }
            }
            ck_assert_int_eq(dealt, used);
            ck_assert_int_eq(step, (epoch + 1) * run.steps_per_epoch);
        }
        if (examples > 5) {
            ck_assert(memcmp(order[0], order[1], sizeof(int) * (size_t)used) != 0);
            ck_assert(memcmp(order[1], order[2], sizeof(int) * (size_t)used) != 0);
        }
        const int n = run_examples(&run, 0, which);  // back in time: a resumed run begins anywhere
        ck_assert_int_eq(memcmp(which, order[0], sizeof(int) * (size_t)n), 0);
        run_free(&run);
    }
}
END_TEST

START_TEST(test_examples_depend_on_the_seed) {
    int which[2][50];
    for (int i = 0; i < 2; i++) {
        Run run = run_defaults();
        run.per_device_train_batch_size = 50;
        run.gradient_accumulation_steps = 1;
        run.seed = 42 + i;
        run_plan_steps(&run, 50);
        ck_assert_int_eq(run_examples(&run, 0, which[i]), 50);
        run_free(&run);
    }
    ck_assert(memcmp(which[0], which[1], sizeof which[0]) != 0);
}
END_TEST

/* When to log, evaluate and save: on multiples of their flags, and at the last step whatever they
 * are. */
START_TEST(test_when) {
    accept(
        "--logging_steps 4 --save_steps 6 --output out --per_device_train_batch_size 5 "
        "--num_train_epochs 2.5");
    run_plan_steps(&parsed, 50);  // 5 steps an epoch, 13 in all
    ck_assert_int_eq(parsed.total_steps, 13);
    const struct {
        const char *logged, *evaluated, *saved;
    } expected[] = {{"0001000100011", "0000100001001", "0000010000011"},
                    {"0000000000001", "0010010010011", "0000000000001"}};
    for (int i = 0; i < 2; i++) {
        for (parsed.step = 1; parsed.step <= 13; parsed.step++) {
            ck_assert_msg(run_should_log(&parsed) == (expected[i].logged[parsed.step - 1] == '1'),
                          "log %d", parsed.step);
            ck_assert_msg(
                run_should_evaluate(&parsed) == (expected[i].evaluated[parsed.step - 1] == '1'),
                "eval %d", parsed.step);
            ck_assert_msg(run_should_save(&parsed) == (expected[i].saved[parsed.step - 1] == '1'),
                          "save %d", parsed.step);
        }
        parsed.step = 5;
        ck_assert_double_eq(run_epoch(&parsed), 1);
        parsed.logging_steps = parsed.save_steps = 0;
        parsed.eval_steps = 3;
    }
    parsed.step = 13;
    parsed.output = "";
    ck_assert(!run_should_save(&parsed));
}
END_TEST

START_TEST(test_settings_of_the_optimiser) {
    accept(
        "--warmup_steps 0 --num_train_epochs 1 --learning_rate 8 --weight_decay 0.1 "
        "--max_grad_norm 2 --adam_beta1 0.7 "
        "--adam_beta2 0.8");
    run_plan_steps(&parsed, 64);  // 8 steps: the rate falls by 1 a step
    const AdamW o = run_adamw(&parsed, 3);
    ck_assert_float_eq(o.learning_rate, 5);
    ck_assert_float_eq(o.weight_decay, 0.1f);
    ck_assert_float_eq(o.max_grad_norm, 2);
    ck_assert_float_eq(o.beta1, 0.7f);
    ck_assert_float_eq(o.beta2, 0.8f);
    ck_assert_float_eq(o.epsilon, 1e-8f);
    const GPT2Config config = {.embd_pdrop = 0.1f, .attn_pdrop = 0.2f, .resid_pdrop = 0.3f};
    GPT2Noise noise = {0};
    Error e = {""};
    ck_assert_int_eq(run_dropout(&noise, &config, "config", &e), 0);
    ck_assert(noise.embd_pdrop == 0.1f && noise.attn_pdrop == 0.2f && noise.resid_pdrop == 0.3f);
    ck_assert_int_eq(run_dropout(&noise, &config, "0.5", &e), 0);
    ck_assert(noise.embd_pdrop == 0.5f && noise.attn_pdrop == 0.5f && noise.resid_pdrop == 0.5f);
    const char *const bad[] = {"", "1", "-0.1", "nan", "half", "0.5x"};
    for (int i = 0; i < 6; i++) {
        ck_assert_msg(run_dropout(&noise, &config, bad[i], &e) == -1, "%s", bad[i]);
        ck_assert_ptr_nonnull(strstr(e.text, "probability"));
    }
    ck_assert_float_eq(noise.attn_pdrop, 0.5f);
}
END_TEST

START_TEST(test_nothing_to_train_on) {
    ck_toy(2, "--examples 0");
    assert_said("no example to train on");
    ck_toy(0, "--examples 0 --max_steps 0");
    ck_toy(2, "--examples 1 --dataloader_drop_last");
    assert_said("1 examples fill no batch of 2");
    ck_toy(2, "--examples 1000000 --num_train_epochs 1e6");
    assert_said("more steps than can be counted");
}
END_TEST

/* ---- log and progress ------------------------------------------------------------------------ */

START_TEST(test_log_lines) {
    Run run = run_defaults();
    Error e;
    char output[128], *argv[] = {(char *)"prog"};
    strcpy(output, at("out"));
    ck_assert_int_eq(run_parse(&run, "prog", NULL, 1, argv, &e), 0);
    run.output = output;
    run.total_steps = 3;
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(at("screen.txt"), O_WRONLY | O_CREAT, 0666);
    dup2(fd, STDOUT_FILENO);
    run.step = 1;
    run_log(&run, {"loss", 3.25}, {"rate", 0.1f}, {"third", 1.0 / 3}, {"num_tokens", 12345678901L},
            {"million", 1e6});
    run.step = 2;
    run_log(&run, {"loss", NAN}, {"up", INFINITY}, {"down", -INFINITY}, {"tiny", 1e-300},
            {"count", 7});
    run_log_first(&run, 1, {"shown", 1}, {"hidden", 2});  // in the file both are
    Str half = bytes_of("out/log.jsonl");  // a line is in the file as soon as it is logged
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(fd);
    run_free(&run);
    ck_assert_str_eq(half.s,
                     "{\"step\": 1, \"loss\": 3.25, \"rate\": 0.1, \"third\": 0.3333333333333333, "
                     "\"num_tokens\": 12345678901, "
                     "\"million\": 1000000}\n"
                     "{\"step\": 2, \"loss\": null, \"up\": null, \"down\": null, \"tiny\": "
                     "1e-300, \"count\": 7}\n"
                     "{\"step\": 2, \"shown\": 1, \"hidden\": 2}\n");
    Str screen = bytes_of("screen.txt");
    ck_assert_ptr_nonnull(strstr(screen.s, "step 1/3  loss 3.25  rate 0.1  third 0.33333"));
    ck_assert_ptr_nonnull(strstr(screen.s, "step 2/3  loss nan  up inf"));
    ck_assert_ptr_nonnull(strstr(screen.s, "shown 1"));
    ck_assert_ptr_null(strstr(screen.s, "hidden"));
    ck_assert_ptr_null(strchr(screen.s, '\r'));  // no terminal, no progress line
    free(half.s);
    free(screen.s);
}
END_TEST

START_TEST(test_no_output_writes_nothing) {
    const int before = count_entries("", "");
    ck_toy(0, "--max_steps 6");
    assert_said("step 6/6  loss ");
    assert_said(" tokens/s  ");
    ck_toy(130, "--max_steps 6 --signal_at 2");
    assert_said("stopped at step 2 of 6; nothing is kept");
    ck_assert_int_eq(count_entries("", ""), before);
    ck_toy(0, "--max_steps 6 --dry_run --output %s",
           at("out"));  // a dry run has an output but keeps its hands off it
    ck_assert(!exists("out"));
}
END_TEST

/* On a terminal the line is rewritten and gone before a line of the log; here the terminal is a
 * pseudo one. */
START_TEST(test_progress_on_a_terminal) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) {
        fprintf(stderr, "check_run: no pseudo terminal here, the progress line is not tested\n");
        return;
    }
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    ck_assert_int_ge(slave, 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        static Run run;
        dup2(slave, STDOUT_FILENO);
        run = run_defaults();
        run.total_steps = 100;
        run.step = 1;
        run_progress(&run, 4, 1000);  // the first step: its tokens and time do not count
        usleep(200000);
        run.step = 2;
        run_progress(&run, 3.5, 40);  // 40 tokens in 0.2 s, 98 steps to go: 200 tokens/s, 19.6 s
        run_log(&run, {"loss", 3.5});
        exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    close(slave);
    char text[1024];
    size_t n = 0;
    for (ssize_t got;
         n < sizeof text - 1 && (got = read(master, text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    text[n] = 0;
    close(master);
    int rate, left;
    const char *line = strstr(text, "step 2/100  loss 3.5000  ");
    ck_assert_msg(line != NULL, "%s", text);
    ck_assert_int_eq(sscanf(line, "step 2/100  loss 3.5000  %d tokens/s  %d s left", &rate, &left),
                     2);
    ck_assert_int_ge(rate, 20);  // a busy machine is late, never early
    ck_assert_int_le(rate, 201);
    ck_assert_int_ge(left, 19);
    const char *cleared = strstr(line, "\r   ");
    ck_assert_ptr_nonnull(cleared);
    ck_assert_ptr_nonnull(
        strstr(cleared, " \rstep 2/100  loss 3.5  "));  // the line of the log stands alone
}
END_TEST

/* ---- checkpoints ----------------------------------------------------------------------------- */

static void assert_metadata(const char *name, const char *key, const char *expected) {
    Error e;
    SafeTensors *st = st_open(at(name), &e);
    if (!st) ck_abort_msg("%s", e.text);
    const char *value = st_metadata(st, key);
    ck_assert_msg(value && !strcmp(value, expected), "%s: %s, expected %s", key,
                  value ? value : "absent", expected);
    st_close(st);
}

START_TEST(test_checkpoint_holds) {
    ck_toy(0, "--max_steps 7 --output %s --learning_rate 1e-3 --template {a}", at("deep/er/out"));
    assert_said("saved ");
    assert_said("from_pretrained(");
    ck_assert(exists("deep/er/out/checkpoint-5/model.safetensors"));
    ck_assert(exists("deep/er/out/checkpoint-5/config.json"));
    ck_assert(
        exists("deep/er/out/checkpoint-7/state.safetensors"));  // the last step is always saved
    ck_assert(exists("deep/er/out/model.safetensors"));
    ck_assert(!exists("deep/er/out/state.safetensors"));
    assert_same_file("deep/er/out/model.safetensors", "deep/er/out/checkpoint-7/model.safetensors");
    const char *state = "deep/er/out/checkpoint-5/state.safetensors";
    assert_metadata(state, "format_version", "1");
    assert_metadata(state, "program", "toy");
    assert_metadata(state, "step", "5");
    assert_metadata(state, "examples", "18");
    assert_metadata(state, "flag.seed", "42");
    assert_metadata(state, "flag.learning_rate", "0.001");
    assert_metadata(state, "flag.template", "{a}");
    assert_metadata(
        state, "data.data",
        "6 bytes, hash 85944171f73967e8");  // FNV-1a of "foobar", from its authors' test vectors
    Error e;
    SafeTensors *st = st_open(at(state), &e);
    ck_assert_ptr_null(st_metadata(st, "flag.output"));  // free to differ, so not remembered
    ck_assert_ptr_nonnull(st_find(st, "m.wte.weight"));
    ck_assert_ptr_nonnull(st_find(st, "v.h.0.mlp.c_fc.weight"));
    st_close(st);
    ck_assert_int_eq(count_entries("deep/er/out", ".tmp-"), 0);
    ck_assert_int_eq(count_entries("deep/er/out", ".old-"), 0);
}
END_TEST

START_TEST(test_rotation) {
    ck_toy(0, "--max_steps 10 --save_steps 1 --save_total_limit 3 --output %s", at("out"));
    ck_assert_int_eq(count_entries("out", "checkpoint-"), 3);
    ck_assert(exists("out/checkpoint-8") && exists("out/checkpoint-9") &&
              exists("out/checkpoint-10"));  // by number: 10 after 9
    ck_toy(0, "--max_steps 10 --save_steps 1 --save_total_limit 2 --resume --output %s",
           at("out"));  // as after a kill before the removal
    ck_assert_int_eq(count_entries("out", "checkpoint-"), 2);
    ck_assert(!exists("out/checkpoint-8") && exists("out/checkpoint-9/state.safetensors"));
    ck_toy(0, "--max_steps 6 --save_steps 1 --save_total_limit 0 --output %s", at("all"));
    ck_assert_int_eq(count_entries("all", "checkpoint-"), 6);
    ck_toy(0, "--max_steps 6 --save_steps 2 --save_total_limit 1 --output %s", at("one"));
    ck_assert_int_eq(count_entries("one", "checkpoint-"), 1);
    ck_toy(0, "--max_steps 6 --save_steps 0 --output %s", at("end"));
    ck_assert_int_eq(count_entries("end", "checkpoint-"), 1);
    ck_assert(exists("end/checkpoint-6"));
}
END_TEST

/* What is not a checkpoint of ours is not rotated away, whatever it is called. */
START_TEST(test_rotation_spares_others) {
    ck_toy(77, "--max_steps 20 --save_steps 4 --die_at 5 --output %s", at("out"));
    const char *const foreign[] = {"out/checkpoint-1", "out/checkpoint-2x",
                                   "out/checkpoint-",  "out/checkpoint-03-notes",
                                   "out/mine",         "out/checkpoint-19"};
    for (int i = 0; i < 6; i++) ck_assert_int_eq(mkdir(at(foreign[i]), 0777), 0);
    write_text("out/checkpoint-1/model.safetensors", "somebody's");
    write_text("out/checkpoint-2x/state.safetensors", "somebody's");
    write_text("out/notes.txt", "mine");
    ck_toy(0, "--max_steps 20 --save_steps 4 --save_total_limit 2 --resume --output %s", at("out"));
    ck_assert(!exists("out/checkpoint-12") && exists("out/checkpoint-16") &&
              exists("out/checkpoint-20"));  // 19 is not counted
    ck_assert(exists("out/checkpoint-1/model.safetensors") &&
              exists("out/checkpoint-2x/state.safetensors"));
    ck_assert(exists("out/mine") && exists("out/notes.txt") && exists("out/checkpoint-03-notes") &&
              exists("out/checkpoint-"));
}
END_TEST

/* A process number that is free: that of a child that has ended. */
static long dead_process(void) {
    pid_t child = fork();
    if (!child) _exit(0);
    waitpid(child, NULL, 0);
    return child;
}

START_TEST(test_unfinished_is_removed) {
    const long dead = dead_process(), alive = getpid();
    char name[8][64];
    ck_assert_int_eq(mkdir(at("out"), 0777), 0);
    snprintf(name[0], 64, "out/checkpoint-5.tmp-%ld", dead);
    snprintf(name[1], 64, "out/model.safetensors.tmp-%ld", dead);
    snprintf(name[2], 64, "out/checkpoint-6.tmp-%ld", alive);
    snprintf(name[3], 64, "out/log.jsonl.tmp-%ld", alive);
    ck_assert_int_eq(mkdir(at(name[0]), 0777), 0);
    ck_assert_int_eq(mkdir(at(name[2]), 0777), 0);
    write_text(name[1], "half");
    write_text(name[3], "half");
    char inside[128];
    snprintf(inside, sizeof inside, "%s/model.safetensors", name[0]);
    write_text(inside, "half");
    write_text("out/log.jsonl", "{\"step\": 99}\n");  // of a run that never came to a checkpoint:
                                                      // it does not stop a new one
    ck_toy(0, "--max_steps 2 --save_steps 1 --output %s", at("out"));
    ck_assert(!exists(name[0]) && !exists(name[1]));  // their writer is gone
    ck_assert(exists(name[2]) && exists(name[3]));    // theirs is not
    Str log = bytes_of("out/log.jsonl");
    ck_assert_ptr_null(strstr(log.s, "99"));
    free(log.s);
    // killed while one checkpoint took another's place: before the new one stood there, and before
    // the old one was removed
    snprintf(name[4], 64, "out/checkpoint-2.old-%ld", dead);
    ck_assert_int_eq(rename(at("out/checkpoint-2"), at(name[4])), 0);
    ck_toy(2, "--max_steps 1 --output %s --resume",
           at("out"));  // other steps: refused, and the checkpoint stands in its place again
    ck_assert(!exists(name[4]) && exists("out/checkpoint-2/state.safetensors"));
    ck_assert_int_eq(mkdir(at(name[4]), 0777), 0);
    snprintf(inside, sizeof inside, "%s/state.safetensors", name[4]);
    write_text(inside, "older");
    ck_toy(0, "--max_steps 2 --output %s --resume", at("out"));
    ck_assert(!exists(name[4]) && exists("out/checkpoint-2/model.safetensors"));
    snprintf(name[4], 64, "other/stuff.tmp-%ld", dead);
    snprintf(name[5], 64, "other/checkpoint-7.tmp-%ldx", dead);
    ck_assert_int_eq(mkdir(at("other"), 0777), 0);
    ck_assert_int_eq(mkdir(at(name[4]), 0777), 0);
    ck_assert_int_eq(mkdir(at(name[5]), 0777), 0);
    toy("--max_steps 2 --overwrite_output_dir --output %s", at("other"));
    ck_assert(exists(name[4]) && exists(name[5]));  // neither is a name that we give
}
END_TEST

/* ---- stopping and resuming ------------------------------------------------------------------- */

#define TRAIN "--max_steps 23 --lr_scheduler_type cosine --learning_rate 1e-3"

static void assert_same_run(const char *a, const char *b) {
    const char *const names[] = {"model.safetensors",
                                 "log.jsonl",
                                 "checkpoint-20/state.safetensors",
                                 "checkpoint-23/state.safetensors",
                                 "checkpoint-23/model.safetensors",
                                 "checkpoint-23/config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char x[128], y[128];
        snprintf(x, sizeof x, "%s/%s", a, names[i]);
        snprintf(y, sizeof y, "%s/%s", b, names[i]);
        assert_same_file(x, y);
    }
}

START_TEST(test_resume_gives_the_same_bits) {
    ck_toy(0, TRAIN " --output %s", at("whole"));
    ck_toy(77, TRAIN " --die_at 14 --output %s",
           at("killed"));  // its log goes to 13, its checkpoint is of 10
    Str log = bytes_of("killed/log.jsonl");
    ck_assert_ptr_nonnull(strstr(log.s, "{\"step\": 13,"));
    free(log.s);
    ck_toy(77, TRAIN " --die_at 12 --resume --output %s",
           at("killed"));  // killed again before the next checkpoint
    assert_said("going on from ");
    assert_said("checkpoint-10 at step 10 of 23");
    ck_toy(0, TRAIN " --resume --output %s", at("killed"));
    assert_same_run("whole", "killed");

    ck_toy(130, TRAIN " --signal_at 7 --output %s",
           at("stopped"));  // not on a multiple of save_steps, in the middle of an epoch
    assert_said("will save and stop");
    assert_said("stopped at step 7 of 23");
    ck_assert(exists("stopped/checkpoint-7/state.safetensors"));
    ck_assert(!exists("stopped/model.safetensors"));  // OUTPUT itself is for a finished model
    ck_toy(0, TRAIN " --resume latest --logging_steps 1 --save_total_limit 9 --output %s",
           at("stopped"));  // free to differ
    assert_same_run("whole", "stopped");

    ck_toy(0, TRAIN " --resume %s --output %s", at("killed/checkpoint-20"),
           at("elsewhere"));  // into another output
    assert_same_file("whole/model.safetensors", "elsewhere/model.safetensors");
    Str rest = bytes_of("elsewhere/log.jsonl");
    ck_assert_int_eq(strncmp(rest.s, "{\"step\": 21,", 12), 0);
    free(rest.s);
    ck_toy(0, TRAIN " --resume --output %s",
           at("whole"));  // nothing is left to do: it does nothing
    assert_same_run("whole", "killed");
}
END_TEST

/* The checkpoint that a run came from may be rotated away while it runs; tokenizer and
 * configuration come along. */
START_TEST(test_resume_outlives_its_checkpoint) {
    write_text("base/merges.txt", "#version: 0.2\n");
    write_text("base/vocab.json", "{}");
    ck_toy(77, TRAIN " --die_at 6 --save_total_limit 1 --output %s", at("out"));
    ck_assert_int_eq(rename(at("base"), at("base-is-gone")), 0);
    ck_toy(0, TRAIN " --resume --save_total_limit 1 --output %s", at("out"));
    ck_assert(!exists("out/checkpoint-5"));
    assert_same_file("out/merges.txt", "base-is-gone/merges.txt");
}
END_TEST

/* A second model has its own directory in every checkpoint and in OUTPUT, and its moments in the
 * state. */
START_TEST(test_a_second_model_is_saved_and_resumed) {
    ck_toy(0, TRAIN " --second --output %s", at("whole"));
    assert_said("the judge is in ");
    ck_toy(77, TRAIN " --second --die_at 14 --save_total_limit 1 --output %s", at("killed"));
    ck_toy(0, TRAIN " --second --resume --save_total_limit 1 --output %s",
           at("killed"));  // whose checkpoint-10 is gone at the end
    ck_assert(!exists("killed/checkpoint-10"));
    assert_same_file("whole/model.safetensors", "killed/model.safetensors");
    assert_same_file("whole/judge/model.safetensors", "killed/judge/model.safetensors");
    assert_same_file("whole/judge/config.json", "killed/judge/config.json");
    assert_same_file("whole/checkpoint-23/state.safetensors",
                     "killed/checkpoint-23/state.safetensors");
    assert_same_file("whole/checkpoint-23/judge/model.safetensors",
                     "whole/judge/model.safetensors");
    Str first = bytes_of("whole/model.safetensors"),
        other = bytes_of("whole/judge/model.safetensors");
    ck_assert_ptr_nonnull(memmem(other.s, other.n, "\"score.weight\"", 14));
    ck_assert_ptr_null(memmem(first.s, first.n, "\"score.weight\"", 14));
    free(first.s);
    free(other.s);
    // without it the state does not fit, nor with it a state that has none
    ck_toy(2, TRAIN " --resume --output %s", at("killed"));
    ck_toy(0, TRAIN " --output %s", at("plain"));
    ck_toy(2, TRAIN " --second --resume --output %s", at("plain"));
}
END_TEST

START_TEST(test_second_signal_ends_at_once) {
    ck_assert_int_eq(toy(TRAIN " --signal_at 3 --twice --output %s", at("out")), -SIGINT);
    ck_assert(!exists("out/checkpoint-3"));
}
END_TEST

START_TEST(test_other_signals) {
    ck_toy(128 + SIGTERM, TRAIN " --signal_at 3 --terminate --output %s", at("out"));
    ck_assert(exists("out/checkpoint-3"));
    ck_toy(0, TRAIN " --signal_at 23 --output %s",
           at("last"));  // in the last step: nothing is left to stop
    ck_assert(exists("last/model.safetensors"));
    ck_toy(130, TRAIN " --late_at 8 --output %s",
           at("late"));  // too late for this step's saving, and there is no next
    ck_assert(exists("late/checkpoint-8/state.safetensors"));
    ignoring = true;
    ck_toy(0, TRAIN " --signal_at 3 --output %s", at("background"));
    ignoring = false;
    ck_assert(exists("background/model.safetensors"));
}
END_TEST

START_TEST(test_resume_refusals) {
    ck_toy(77, TRAIN " --die_at 12 --output %s", at("out"));
    Str log = bytes_of("out/log.jsonl");
    const struct {
        const char *flags, *says[2];
    } row[] = {
        {"--learning_rate 2e-3", {"--learning_rate is \"0.002\" here and \"0.001\" there"}},
        {"--seed 43", {"--seed is \"43\" here and \"42\" there"}},
        {"--per_device_train_batch_size 4",
         {"--per_device_train_batch_size is \"4\" here and \"2\" there"}},
        {"--max_steps 24", {"--max_steps is \"24\" here and \"23\" there"}},
        {"--lr_scheduler_type linear", {"\"linear\" here and \"cosine\" there"}},
        {"--template x", {"--template is \"x\" here and \"\" there"}},
        {"--examples 17", {"the number of examples is \"17\" here and \"18\" there"}},
        {"--overwrite_output_dir", {"--overwrite_output_dir"}},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        ck_toy(2, TRAIN " --resume --output %s %s", at("out"), row[i].flags);
        assert_said(row[i].says[0]);
    }
    write_text("data.jsonl", "foobaz");
    ck_toy(2, TRAIN " --resume --output %s", at("out"));
    assert_said("the content of --data is \"6 bytes, hash ");
    assert_said("\"6 bytes, hash 85944171f73967e8\" there");
    write_text("data.jsonl", "foobar");
    char words[256];
    snprintf(words, sizeof words, TRAIN " --resume --output %s", at("out"));
    ck_assert_int_eq(run_program("other", words), 2);
    assert_said("the program is \"other\" here and \"toy\" there");

    ck_toy(2, TRAIN " --resume --output %s", at("nowhere"));
    assert_said("no checkpoint in");
    ck_assert(!exists("nowhere"));
    ck_toy(2, TRAIN " --resume");
    assert_said("needs the --output");
    ck_toy(2, TRAIN " --resume %s --output %s", at("out/checkpoint-6"), at("out"));
    assert_said("checkpoint-6");
    ck_toy(2, TRAIN " --resume %s", at("base"));  // a model, but no state
    assert_said("state.safetensors");
    ck_toy(2, TRAIN " --resume %s --output %s", at("out/checkpoint-10"),
           at("base"));  // into another's directory
    assert_said("already holds");

    Str after = bytes_of("out/log.jsonl");  // no refusal has cost a line
    ck_assert_str_eq(after.s, log.s);
    free(after.s);
    free(log.s);
    ck_toy(0, TRAIN " --resume --output %s", at("out"));
}
END_TEST

static void truncate_to(const char *name, off_t size) {
    ck_assert_int_eq(truncate(at(name), size), 0);
}

START_TEST(test_broken_checkpoint_is_passed_over) {
    ck_toy(0, TRAIN " --output %s", at("whole"));
    ck_toy(77, TRAIN " --die_at 18 --save_total_limit 0 --output %s", at("out"));
    truncate_to("out/checkpoint-15/state.safetensors", 3000);
    write_text("out/checkpoint-10/model.safetensors", "");
    char name[64];
    snprintf(name, sizeof name, "out/checkpoint-20.tmp-%ld",
             dead_process());  // killed while it was written
    ck_assert_int_eq(mkdir(at(name), 0777), 0);
    ck_toy(2, TRAIN " --resume %s --output %s", at("out/checkpoint-15"),
           at("out"));  // asked for by name: refused
    ck_toy(0, TRAIN " --resume --output %s", at("out"));
    assert_said("checkpoint-15 is not whole and is passed over");
    assert_said("checkpoint-10 is not whole and is passed over");
    assert_said("checkpoint-5 at step 5");
    ck_assert(!exists(name));
    assert_same_run("whole", "out");  // and the broken ones were written again, whole
    ck_toy(77, TRAIN " --die_at 6 --output %s", at("only"));
    truncate_to("only/checkpoint-5/state.safetensors", 100);
    ck_toy(2, TRAIN " --resume --output %s", at("only"));
    assert_said("no checkpoint in");
    assert_said("is whole");
}
END_TEST

/* A state file that is whole, but lies. */
START_TEST(test_hostile_state) {
    const struct {
        const char *from, *to, *says;
    } row[] = {
        {"\"step\":\"10\"", "\"step\":\"1x\"", "its step is \"1x\""},
        {"\"step\":\"10\"", "\"step\":\"-1\"", "its step is \"-1\""},
        {"\"step\":\"10\"", "\"step\":\"24\"",
         "its step is \"24\"; expected a number from 0 to 23"},
        {"\"step\":\"10\"", "\"stop\":\"10\"", "its step is \"\""},
        {"\"keep.best\"", "\"keep.bast\"", "holds no number keep.best"},
        {"\"format_version\":\"1\"", "\"format_version\":\"9\"", "format"},
        {"m.wte.weight", "m.wta.weight", "m.wte.weight"},
        {"\"flag.seed\"", "\"flag.seek\"", "--seed is \"42\" here and not known there"},
    };
    ck_toy(77, TRAIN " --die_at 12 --output %s", at("out"));
    Str good = bytes_of("out/checkpoint-10/state.safetensors");
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const size_t n = strlen(row[i].from);
        char *place = memmem(good.s, good.n, row[i].from, n);
        ck_assert_msg(place && strlen(row[i].to) == n, "%s", row[i].from);
        memcpy(place, row[i].to, n);
        FILE *f = fopen(at("out/checkpoint-10/state.safetensors"), "wb");
        fwrite(good.s, 1, good.n, f);
        fclose(f);
        memcpy(place, row[i].from, n);
        ck_toy(2, TRAIN " --resume --output %s", at("out"));
        assert_said(row[i].says);
    }
    free(good.s);
}
END_TEST

/* Lines of later steps go, and a line that a killed process left half written; what stands before
 * them stays as it is. */
START_TEST(test_log_is_cut) {
    ck_toy(77, TRAIN " --die_at 8 --output %s", at("out"));
    FILE *f = fopen(at("out/log.jsonl"), "ab");
    fputs("{\"step\": 3, \"cut", f);
    fclose(f);
    ck_toy(130, TRAIN " --signal_at 6 --resume --output %s", at("out"));
    Str log = bytes_of("out/log.jsonl");
    int lines = 0, step;
    for (char *p = log.s; *p; p = strchr(p, '\n') + 1) {
        ck_assert_int_eq(sscanf(p, "{\"step\": %d,", &step), 1);
        ck_assert_int_eq(step, ++lines);
        ck_assert_ptr_nonnull(strchr(p, '\n'));
    }
    ck_assert_int_eq(lines, 6);
    free(log.s);
}
END_TEST

/* ---- outputs that must not be lost, or cannot be written ------------------------------------- */

START_TEST(test_output_is_not_overwritten) {
    ck_toy(0, TRAIN " --output %s", at("out"));
    Str model = bytes_of("out/model.safetensors"), log = bytes_of("out/log.jsonl");
    ck_toy(2, TRAIN " --seed 5 --output %s", at("out"));
    assert_said("already holds");
    assert_said("--resume");
    assert_said("--overwrite_output_dir");
    ck_toy(2, TRAIN " --seed 5 --output %s --overwrite_output_dir --data %s", at("out"),
           at("missing.jsonl"));  // and then dies of something else
    assert_said("missing.jsonl");
    Str model_after = bytes_of("out/model.safetensors"), log_after = bytes_of("out/log.jsonl");
    ck_assert(model.n == model_after.n && !memcmp(model.s, model_after.s, model.n));
    ck_assert_str_eq(log.s, log_after.s);
    ck_assert(exists("out/checkpoint-20") && exists("out/checkpoint-23"));
    ck_toy(0, "--max_steps 3 --seed 5 --output %s --overwrite_output_dir", at("out"));
    ck_assert(!exists("out/checkpoint-20") && !exists("out/checkpoint-23") &&
              exists("out/checkpoint-3"));
    Str log_new = bytes_of("out/log.jsonl");
    ck_assert_ptr_null(strstr(log_new.s, "{\"step\": 4,"));
    ck_toy(2, "--max_steps 3 --output %s",
           at("base"));  // nor any other directory with something in it
    assert_said("already holds");
    /* the model may come out of the very checkpoint that would be replaced */
    ck_toy(0, "--max_steps 4 --seed 6 --model %s --output %s --overwrite_output_dir",
           at("out/checkpoint-3"), at("out"));
    ck_assert(exists("out/checkpoint-3") && exists("out/checkpoint-4"));
    free(model.s);
    free(log.s);
    free(model_after.s);
    free(log_after.s);
    free(log_new.s);
}
END_TEST

START_TEST(test_output_cannot_be_written) {
    write_text("file", "a file");
    ck_toy(2, TRAIN " --output %s", at("file"));
    assert_said("cannot make --output");
    ck_toy(2, TRAIN " --output %s", at("file/below"));
    ck_assert_int_eq(mkdir(at("closed"), 0777), 0);
    ck_assert_int_eq(chmod(at("closed"), 0555), 0);
    ck_assert_int_eq(chmod(directory, 0777), 0);
    fflush(stdout);
    pid_t child = fork();  // the superuser may write anywhere, so be somebody else
    if (!child) {
        if (!freopen(at("said.txt"), "w", stderr)) _exit(98);
        if (geteuid() == 0 && setuid(65534)) _exit(99);
        prctl(PR_SET_DUMPABLE,
              1);  // which the change of user took away, and the leak checker needs
        char output[128],
            *argv[] = {(char *)"toy", (char *)"--output", strcpy(output, at("closed"))};
        exit(toy_main("toy", 3, argv));
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    read_said();
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 2, "%s", said.s);
    assert_said("cannot write");
    ck_assert_int_eq(count_entries("closed", ""), 0);
}
END_TEST

START_TEST(test_full_disk) {
    ck_toy(0, TRAIN " --output %s", at("whole"));
    ck_toy(1, TRAIN " --full_at 9 --output %s", at("out"));
    assert_said("checkpoint-10 is not written");
    assert_said("File too large");
    assert_said("--resume");
    ck_assert_int_eq(count_entries("out", ".tmp-"), 0);
    ck_assert(!exists("out/checkpoint-10") && exists("out/checkpoint-5/state.safetensors"));
    struct stat model;  // the model fits, and the moments, twice its size, do not
    ck_assert_int_eq(stat(at("whole/model.safetensors"), &model), 0);
    ck_toy(1, TRAIN " --resume --full_at 9 --room %ld --output %s", (long)model.st_size + 100,
           at("out"));
    assert_said("state.safetensors: File too large");
    ck_assert(!exists("out/checkpoint-10"));
    ck_toy(0, TRAIN " --resume --output %s", at("out"));  // there is room again
    assert_same_run("whole", "out");
    ck_toy(1, TRAIN " --save_steps 0 --logging_steps 1000 --full_at 22 --output %s", at("late"));
    assert_said("is not written");
    ck_assert(!exists("late/model.safetensors"));
    ck_toy(1, "--max_steps 200 --save_steps 0 --full_at 1 --output %s",
           at("log"));  // the log is what does not fit
    assert_said("log.jsonl: File too large");
}
END_TEST

/* A checkpoint that is there already (here: one that an earlier run of the same flags left) is
 * replaced, whole by whole. */
START_TEST(test_checkpoint_is_replaced) {
    ck_toy(0, TRAIN " --output %s", at("out"));
    Str before = bytes_of("out/checkpoint-23/state.safetensors");
    ck_toy(0, TRAIN " --resume %s --output %s", at("out/checkpoint-20"), at("out"));
    Str after = bytes_of("out/checkpoint-23/state.safetensors");
    ck_assert(before.n == after.n && !memcmp(before.s, after.s, before.n));
    ck_assert_int_eq(count_entries("out", ".old-"), 0);
    ck_toy(77, TRAIN " --die_at 6 --output %s", at("mixed"));
    ck_assert_int_eq(mkdir(at("mixed/checkpoint-10"), 0777), 0);
    write_text("mixed/checkpoint-10/pytorch_model.bin", "another program's");
    ck_toy(0, TRAIN " --resume --output %s", at("mixed"));
    ck_assert_int_eq(count_entries("mixed", "checkpoint-10.old-"), 1);  // set aside, not lost
    assert_said("what stood at");
    free(before.s);
    free(after.s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("run");
    TCase *flags = tcase_create("flags"), *plan = tcase_create("schedule"),
          *files = tcase_create("log and checkpoints");
    const TTest *const of_flags[] = {test_accepts,
                                     test_switches,
                                     test_bare_value,
                                     test_refuses,
                                     test_warmup_ratio_replaces_steps,
                                     test_help,
                                     test_echo_repeats_the_run};
    const TTest *const of_plan[] = {test_learning_rate_is_transformers, test_learning_rate_by_hand,
                                    test_step_counts_are_transformers,  test_examples_of_an_epoch,
                                    test_examples_depend_on_the_seed,   test_when,
                                    test_settings_of_the_optimiser,     test_nothing_to_train_on};
    const TTest *const of_files[] = {test_log_lines,
                                     test_no_output_writes_nothing,
                                     test_progress_on_a_terminal,
                                     test_checkpoint_holds,
                                     test_rotation,
                                     test_rotation_spares_others,
                                     test_unfinished_is_removed,
                                     test_resume_gives_the_same_bits,
                                     test_resume_outlives_its_checkpoint,
                                     test_a_second_model_is_saved_and_resumed,
                                     test_second_signal_ends_at_once,
                                     test_other_signals,
                                     test_resume_refusals,
                                     test_broken_checkpoint_is_passed_over,
                                     test_hostile_state,
                                     test_log_is_cut,
                                     test_output_is_not_overwritten,
                                     test_output_cannot_be_written,
                                     test_full_disk,
                                     test_checkpoint_is_replaced};
#define ADD(tcase, tests)                                                                          \
    do {                                                                                           \
        tcase_set_timeout(tcase, 300);                                                             \
        tcase_add_checked_fixture(tcase, setup, teardown);                                         \
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) tcase_add_test(tcase, tests[i]); \
        suite_add_tcase(suite, tcase);                                                             \
    } while (0)
    ADD(flags, of_flags);
    ADD(plan, of_plan);
    ADD(files, of_files);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
