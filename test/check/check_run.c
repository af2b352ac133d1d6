/*
 * check_run.c - the life of a run: schedule, order of the examples, when to log and evaluate, the
 * optimiser's settings, progress, and a loop that runs to its end.
 *
 * What computes a number is called directly. What writes or ends the program runs as a process of
 * its own, the stage in toy.h.
 */
#define _GNU_SOURCE  // defines: posix_openpt, ptsname

#include "run/run.c"  // for a look inside

#include "toy.h"

#include <sys/ioctl.h>

static const Flag no_flags[] = {{0}};
static const Program bare = {.name = "prog", .about = "A toy.", .flags = no_flags};

static void accept(Run *run, const char *words) {
    Error e;
    static Words w;
    split_words(&w, "prog", words);
    if (run_parse(run, &bare, w.argc, w.argv, &e)) ck_abort_msg("%s: refused: %s", words, e.text);
}

static void plan(Run *run, int examples) {
    run_plan(run, examples, run->per_device_train_batch_size * run->gradient_accumulation_steps, 0);
}

static float rate_at(Run *run, int step) {
    run->step = step;
    return run_adamw(run).learning_rate;
}

/* ---- schedule -------------------------------------------------------------------------------- */

START_TEST(test_warmup_ratio) {
    Run run = {0};
    accept(&run, "--warmup_ratio 0.1");
    plan(&run, 80);  // 30 steps, 3 of warm-up
    ck_assert_int_eq(run.total_steps, 30);
    ck_assert_float_eq_tol(rate_at(&run, 1), 5e-5f / 3, 1e-11f);
    accept(&run, "--warmup_ratio 0 --warmup_steps 6");
    plan(&run, 80);
    ck_assert_float_eq_tol(rate_at(&run, 3), 2.5e-5f, 1e-11f);
    run_free(&run);
}
END_TEST

/* Golden: transformers 5.23.0, get_scheduler(type, AdamW(lr), warm-up, total) on torch 2.15.0, the
   rate in force at the step. A float holds them to 6e-8 of their size; 1e-6 also allows for another
   cos() in the last digits of the cosine. */
START_TEST(test_learning_rate_is_transformers) {
    const struct {
        unsigned type;
        float rate;
        int warmup, total, n, step[8];
        double expected[8];
    } row[] = {
        {CONSTANT, 5e-5f, 100, 300, 3, {0, 37, 299}, {5e-5, 5e-5, 5e-5}},
        {CONSTANT_WITH_WARMUP,
         5e-5f,
         100,
         300,
         6,
         {0, 1, 37, 99, 100, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 5.0000000000000002e-05}},
        {LINEAR,
         5e-5f,
         100,
         300,
         8,
         {0, 1, 37, 99, 100, 101, 200, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 4.9750000000000003e-05, 2.5000000000000001e-05,
          2.5000000000000004e-07}},
        {LINEAR,
         1e-3f,
         0,
         7,
         7,
         {0, 1, 2, 3, 4, 5, 6},
         {0.001, 0.0008571428571428571, 0.00071428571428571429, 0.00057142857142857136,
          0.00042857142857142855, 0.00028571428571428568, 0.00014285714285714284}},
        {LINEAR,
         3e-6f,
         30,
         20,
         3,
         {0, 1, 19},
         {0, 9.9999999999999995e-08, 1.9e-06}},  // the warm-up is longer than the run
        {COSINE,
         5e-5f,
         100,
         300,
         8,
         {0, 1, 37, 99, 100, 101, 200, 299},
         {0, 5.0000000000000008e-07, 1.8499999999999999e-05, 4.9500000000000004e-05,
          5.0000000000000002e-05, 4.9996915812041518e-05, 2.5000000000000001e-05,
          3.0841879584853073e-09}},
        {COSINE,
         1e-3f,
         0,
         7,
         7,
         {0, 1, 2, 3, 4, 5, 6},
         {0.001, 0.00095048443395120952, 0.00081174490092936679, 0.00061126046697815718,
          0.00038873953302184284, 0.00018825509907063325, 4.9515566048790485e-05}},
        {COSINE, 3e-6f, 30, 20, 3, {0, 1, 19}, {0, 9.9999999999999995e-08, 1.9e-06}},
    };
    for (int i = 0; i < COUNT(row); i++) {
        Run run = {0};
        accept(&run, "");
        run.lr_scheduler_type = row[i].type;
        run.learning_rate = row[i].rate;
        run.warmup_steps = row[i].warmup;
        run.total_steps = row[i].total;
        for (int j = 0; j < row[i].n; j++) {
            const double got = (double)rate_at(&run, row[i].step[j]);
            const double expected = row[i].expected[j];
            ck_assert_msg(fabs(got - expected) <= 1e-6 * expected,
                          "row %d, step %d: %.9g, expected %.9g", i, row[i].step[j], got, expected);
        }
        run_free(&run);
    }
}
END_TEST

/* By hand: 10 steps, 2 of warm-up, rate 8: 0, 4, then 8 (10 - step) / 8. */
START_TEST(test_learning_rate_by_hand) {
    Run run = {0};
    accept(&run, "--learning_rate 8 --warmup_steps 2");
    run.total_steps = 10;
    const float expected[] = {0, 4, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    for (int i = 0; i <= 10; i++) ck_assert_float_eq(rate_at(&run, i), expected[i]);
    run.lr_scheduler_type = COSINE;  // half way: half the rate; at the end: none
    ck_assert_float_eq(rate_at(&run, 2), 8);
    ck_assert_float_eq_tol(rate_at(&run, 6), 4, 1e-6f);
    ck_assert_float_eq_tol(rate_at(&run, 10), 0, 1e-6f);
    run_free(&run);
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
    for (int i = 0; i < COUNT(row); i++) {
        Run run = {0};
        accept(&run, "");
        run.per_device_train_batch_size = row[i].batch;
        run.gradient_accumulation_steps = row[i].accumulation;
        run.num_train_epochs = row[i].epochs;
        run.max_steps = row[i].max_steps;
        run.dataloader_drop_last = row[i].drop_last;
        run.warmup_ratio = row[i].warmup_ratio;
        run.warmup_steps = 0;
        plan(&run, row[i].examples);
        ck_assert_msg(run.total_steps == row[i].steps, "row %d: %d steps, expected %d", i,
                      run.total_steps, row[i].steps);
        int warmup = 0;  // the first step at the full rate
        while (warmup < run.total_steps && rate_at(&run, warmup) < run.learning_rate) warmup++;
        ck_assert_msg(warmup == row[i].warmup, "row %d: warm-up %d, expected %d", i, warmup,
                      row[i].warmup);
        run_free(&run);
    }
}
END_TEST

/* A stage may have a number of steps of its own, which is rounded up and gives way to --max_steps.
 */
START_TEST(test_steps_of_the_stage) {
    Run run = {0};
    accept(&run, "");
    run_plan(&run, 10, 4, 6.25);
    ck_assert_int_eq(run.total_steps, 7);
    ck_assert_int_eq(run.steps_per_epoch, 3);
    run.max_steps = 5;
    run_plan(&run, 10, 4, 6.25);
    ck_assert_int_eq(run.total_steps, 5);
    run.max_steps = 0;
    run_plan(&run, 0, 4, 6.25);
    ck_assert_int_eq(run.total_steps, 0);
    run_free(&run);
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
    for (int i = 0; i < COUNT(row); i++) {
        Run run = {0};
        const int per_step = row[i].batch * row[i].accumulation, examples = row[i].examples;
        const int used = row[i].drop_last ? examples / row[i].batch * row[i].batch : examples;
        accept(&run, "");
        run.per_device_train_batch_size = row[i].batch;
        run.gradient_accumulation_steps = row[i].accumulation;
        run.dataloader_drop_last = row[i].drop_last;
        plan(&run, examples);
        int which[100], order[3][128], step = 0;
        for (int epoch = 0; epoch < 3; epoch++) {
            int seen[100] = {0}, dealt = 0;
            while (dealt < used) {
                run.step = step++;
                const int n = run_examples(&run, which);
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
        run.step = 0;  // back in time: a resumed run begins anywhere
        const int n = run_examples(&run, which);
        ck_assert_int_eq(memcmp(which, order[0], sizeof(int) * (size_t)n), 0);
        run_free(&run);
    }
}
END_TEST

START_TEST(test_examples_depend_on_the_seed) {
    int which[2][50];
    for (int i = 0; i < 2; i++) {
        Run run = {0};
        accept(&run, "--per_device_train_batch_size 50 --gradient_accumulation_steps 1");
        run.seed = 42 + i;
        plan(&run, 50);
        ck_assert_int_eq(run_examples(&run, which[i]), 50);
        run_free(&run);
    }
    ck_assert(memcmp(which[0], which[1], sizeof which[0]) != 0);
}
END_TEST

/* When to log, evaluate and save: on multiples of their flags, and at the last step whatever they
 * are. */
START_TEST(test_when) {
    Run run = {0};
    accept(&run,
           "--logging_steps 4 --save_steps 6 --output out --per_device_train_batch_size 5 "
           "--num_train_epochs 2.5");
    plan(&run, 50);  // 5 steps an epoch, 13 in all
    ck_assert_int_eq(run.total_steps, 13);
    const struct {
        const char *logged, *evaluated, *saved;
    } expected[] = {{"0001000100011", "0000100001001", "0000010000011"},
                    {"0000000000001", "0010010010011", "0000000000001"}};
    for (int i = 0; i < 2; i++) {
        for (run.step = 0; run.step < 13; run.step++) {
            ck_assert_msg(is_time(&run, run.step + 1, run.logging_steps) ==
                              (expected[i].logged[run.step] == '1'),
                          "log %d", run.step + 1);
            ck_assert_msg(run_should_evaluate(&run) == (expected[i].evaluated[run.step] == '1'),
                          "eval %d", run.step + 1);
            ck_assert_msg(
                is_time(&run, run.step + 1, run.save_steps) == (expected[i].saved[run.step] == '1'),
                "save %d", run.step + 1);
            ck_assert(run_is_last(&run) == (run.step == 12));
        }
        run.logging_steps = run.save_steps = 0;
        run.eval_steps = 3;
    }
    ck_assert(run_writes(&run));
    run.dry_run = true;
    ck_assert(!run_writes(&run));
    run.dry_run = false;
    run.output = "";
    ck_assert(!run_writes(&run));
    run.step = run.total_steps;
    ck_assert(run_completed(&run));
    run.step--;
    ck_assert(!run_completed(&run));
    run.step = run.total_steps = 0;
    ck_assert(run_completed(&run));  // it has only evaluated
    run_free(&run);
}
END_TEST

START_TEST(test_settings_of_the_optimiser) {
    Run run = {0};
    accept(&run,
           "--warmup_steps 0 --num_train_epochs 1 --learning_rate 8 --weight_decay 0.1 "
           "--max_grad_norm 2 --adam_beta1 0.7 "
           "--adam_beta2 0.8");
    plan(&run, 64);  // 8 steps: the rate falls by 1 a step
    run.step = 3;
    const AdamW o = run_adamw(&run);
    ck_assert_float_eq(o.learning_rate, 5);
    ck_assert_float_eq(o.weight_decay, 0.1f);
    ck_assert_float_eq(o.max_grad_norm, 2);
    ck_assert_float_eq(o.beta1, 0.7f);
    ck_assert_float_eq(o.beta2, 0.8f);
    ck_assert_float_eq(o.epsilon, 1e-8f);
    run_free(&run);
}
END_TEST

static const GPT2Config with_dropout = {
    .embd_pdrop = 0.1f, .attn_pdrop = 0.2f, .resid_pdrop = 0.3f};

static int dropout_main(const char *name, int argc, char **argv) {
    (void)name;
    (void)argc;
    GPT2Noise noise = {0};
    run_dropout(&noise, &with_dropout, argv[1]);
    return 0;
}

START_TEST(test_dropout) {
    GPT2Noise noise = {0};
    run_dropout(&noise, &with_dropout, "config");
    ck_assert(noise.embd_pdrop == 0.1f && noise.attn_pdrop == 0.2f && noise.resid_pdrop == 0.3f);
    run_dropout(&noise, &with_dropout, "0.5");
    ck_assert(noise.embd_pdrop == 0.5f && noise.attn_pdrop == 0.5f && noise.resid_pdrop == 0.5f);
    const char *const bad[] = {"_", "1", "-0.1", "nan", "half", "0.5x"};
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_msg(run_process(dropout_main, "prog", bad[i]) == 2, "%s", bad[i]);
        assert_said("probability");
    }
    ck_assert_int_eq(run_process(dropout_main, "prog", "0.999"), 0);
}
END_TEST

START_TEST(test_nothing_to_train_on) {
    ck_toy(2, "--examples 0");
    assert_said("no example to train on");
    ck_toy(0, "--examples 0 --max_steps 0");
    ck_toy(2, "--examples 1 --dataloader_drop_last");
    assert_said("the data has 1 example, which is less than a batch of 2");
    ck_toy(2, "--examples 1000000 --num_train_epochs 1e6");
    assert_said("more steps than can be counted");
}
END_TEST

/* ---- the loop -------------------------------------------------------------------------------- */

/* The steps that a log names, as text: "1 2 3 ". */
static void assert_steps(const char *name, const char *expected) {
    Str log = bytes_of(name), steps = {0};
    str_add(&steps, "", 0);
    int step;
    for (char *p = log.s; *p; p = strchr(p, '\n') + 1) {
        ck_assert_int_eq(sscanf(p, "{\"step\": %d,", &step), 1);
        str_printf(&steps, "%d ", step);
    }
    ck_assert_str_eq(steps.s, expected);
    free(log.s);
    free(steps.s);
}

START_TEST(test_a_run_to_its_end) {
    ck_toy(0,
           "--num_train_epochs 2.5 --logging_steps 4 --save_steps 6 --save_total_limit 0 "
           "--output %s",
           at("out"));
    assert_steps("out/log.jsonl", "4 8 12 13 ");
    ck_assert_int_eq(count_entries("out", "checkpoint-"), 3);
    ck_assert(exists("out/checkpoint-6") && exists("out/checkpoint-12") &&
              exists("out/checkpoint-13"));
    ck_assert(exists("out/model.safetensors"));
    Str log = bytes_of("out/log.jsonl");
    ck_assert_ptr_nonnull(strstr(log.s, "\"epoch\": 2.6}"));  // 13 steps of 5
    free(log.s);
    ck_toy(0, "--max_steps 5 --logging_steps 0 --save_steps 0 --output %s", at("end"));
    assert_steps("end/log.jsonl", "5 ");  // the last step always
    log = bytes_of("end/log.jsonl");
    ck_assert_ptr_nonnull(strstr(log.s, "\"epoch\": 1}"));
    free(log.s);
}
END_TEST

START_TEST(test_no_output_writes_nothing) {
    const int before = count_entries("", "");
    ck_toy(0, "--max_steps 6");
    assert_said("\n     6/6  ");
    assert_said("  tokens      time\n    step      loss  accuracy");
    ck_toy(130, "--max_steps 6 --signal_at 2");
    assert_said("stopped at step 2 of 6; nothing is saved");
    ck_assert_int_eq(count_entries("", ""), before);
    // a dry run has an output and does not touch it
    ck_toy(0, "--max_steps 6 --dry_run --output %s", at("out"));
    ck_assert(!exists("out"));
}
END_TEST

static int optimise_main(const char *name, int argc, char **argv) {
    (void)name;
    (void)argc;
    Run run = {0};
    GPT2 *m = gpt2_create(&toy_config, false);
    gpt2_init_weights(m, 7);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4, .sequences = 1, .scored = 4, .train = true});
    accept(&run, "--data d.jsonl");
    plan(&run, 80);
    run_next(&run);
    const int tokens = atoi(argv[2]), line = atoi(argv[3]);
    const double norm = run_optimise(&run, m, strtod(argv[1], NULL), tokens, line);
    char *figures = watch_text(&run);
    printf("norm %g; %s", norm, figures);
    free(figures);
    gpt2_free(m);
    run_free(&run);
    return 0;
}

/* A loss that is not finite ends the program, and says which records to look at. */
START_TEST(test_optimise) {
    ck_assert_int_eq(run_process(optimise_main, "prog", "2.5 0 17"), 0);
    assert_said("norm 0; last grad_norm 0 0;last learning_rate 0 0;total num_tokens 0 0;");
    ck_assert_int_eq(run_process(optimise_main, "prog", "2.5 30 17"), 0);
    assert_said("total num_tokens 30 0;");
    ck_assert_int_eq(run_process(optimise_main, "prog", "nan 30 17"), 1);
    assert_said("step 1: the loss is nan");
    assert_said("the first on line 17 of d.jsonl");
    ck_assert_int_eq(run_process(optimise_main, "prog", "inf 30 0"), 1);
    assert_said("lower --learning_rate");
    assert_not_said("line");
}
END_TEST

START_TEST(test_texts) {
    char text[32];
    ck_assert_str_eq(with_commas(0, text), "0");
    ck_assert_str_eq(with_commas(999, text), "999");
    ck_assert_str_eq(with_commas(1000, text), "1,000");
    ck_assert_str_eq(with_commas(1234567, text), "1,234,567");
    begin_capture("line.txt");
    run_print_parameters(1024, 4096);
    end_capture();
    Str line = bytes_of("line.txt");
    ck_assert_str_eq(line.s, "parameters: 1,024 of 4,096 are trained, 25.0000 %\n");
    free(line.s);
}
END_TEST

/* A pseudo terminal, whose other side is *slave; or -1, which it says. */
static int open_terminal(int *slave) {
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) {
        fprintf(stderr, "check_run: no pseudo terminal here, the progress line is not tested\n");
        return -1;
    }
    *slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    ck_assert_int_ge(*slave, 0);
    return master;
}

/* What the child has written to the terminal when it has ended, as it must, with 0. Closes both
   sides. */
static void read_terminal(pid_t child, int master, int slave, char *text, size_t size) {
    int status;
    size_t n = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    close(slave);
    for (ssize_t got; n < size - 1 && (got = read(master, text + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    text[n] = 0;
    close(master);
}

/* It is cut and erased by its columns: a character of Korean has two, and three bytes. */
START_TEST(test_progress_is_as_wide_as_the_terminal) {
    int slave, master = open_terminal(&slave);
    if (master < 0) return;
    const struct winsize size = {.ws_row = 24, .ws_col = 40};
    ck_assert_int_eq(ioctl(master, TIOCSWINSZ, &size), 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        dup2(slave, STDOUT_FILENO);
        streams_begin();
        streams_progress("가나다라마바사아자차카타파하가나다라마바사아자차카타파하");
        streams_progress("가나");
        streams_progress("");
        exit(0);
    }
    char text[1024], expected[256];
    read_terminal(child, master, slave, text, sizeof text);
    snprintf(expected, sizeof expected, "가나다라마바사아자차카타파하가나다라마\r%38s\r가나\r%4s\r",
             "", "");
    ck_assert_str_eq(text, expected);
}
END_TEST

/* On a terminal the line of progress is rewritten, and erased before a line of the log. The
 * terminal here is a pseudo one. */
START_TEST(test_progress_on_a_terminal) {
    int slave, master = open_terminal(&slave);
    if (master < 0) return;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        static Run run;
        dup2(slave, STDOUT_FILENO);
        accept(&run, "--max_steps 100 --logging_steps 2");
        plan(&run, 800);
        run_next(&run);
        run_progress(&run, 4, 1000);  // the first step: its tokens and time do not count
        run_next(&run);
        usleep(200000);
        run_progress(&run, 3.5, 40);  // 40 tokens in 0.2 s, 98 steps to go: 200 tokens/s, 19.6 s
        watch(&run, "loss", 3.5);
        run_next(&run);
        exit(0);
    }
    char text[2048];
    read_terminal(child, master, slave, text, sizeof text);
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
    // the row of the table is alone on its line, below the heading
    const char *heading = strstr(cleared, "    step      loss  accuracy");
    ck_assert_msg(heading != NULL, "%s", cleared);
    ck_assert_ptr_nonnull(strstr(heading, "\r\n   2/100    3.5000  "));
    ck_assert_ptr_nonnull(strstr(text, "\rtime: about "));
}
END_TEST

/* As --early_stopping_patience ends it: 98 steps are left out, which would take ten seconds. */
START_TEST(test_no_time_is_left_of_a_run_that_stops) {
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        static Run run;
        begin_capture("row");
        accept(&run, "--max_steps 100 --logging_steps 1");
        plan(&run, 800);
        for (int step = 0; step < 2; step++) {
            run_next(&run);
            usleep(100000);
            watch(&run, "loss", 3.5);
            run_progress(&run, 3.5, 40);
        }
        run.state->stopped_at = 2;
        run_next(&run);
        exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    Str text = bytes_of("row");
    const char *row = strstr(text.s, " 2/100 "), *end = row ? strchr(row, '\n') : NULL;
    ck_assert_msg(end && !strncmp(end - 4, " 0 s", 4), "%s", text.s);
    free(text.s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("run");
    const TTest *const schedule[] = {test_warmup_ratio,
                                     test_learning_rate_is_transformers,
                                     test_learning_rate_by_hand,
                                     test_step_counts_are_transformers,
                                     test_steps_of_the_stage,
                                     test_examples_of_an_epoch,
                                     test_examples_depend_on_the_seed,
                                     test_when,
                                     test_settings_of_the_optimiser,
                                     test_dropout,
                                     test_nothing_to_train_on};
    const TTest *const loop[] = {test_a_run_to_its_end,
                                 test_no_output_writes_nothing,
                                 test_optimise,
                                 test_texts,
                                 test_progress_is_as_wide_as_the_terminal,
                                 test_progress_on_a_terminal,
                                 test_no_time_is_left_of_a_run_that_stops};
    add_tests(suite, "schedule", make_toy, schedule, COUNT(schedule));
    add_tests(suite, "loop", make_toy, loop, COUNT(loop));
    return finish_suite(suite);
}
