/*
 * check_sft.c - sft.c: its loss against its own definition, and the program as people run it, on
 * the built-in model.
 *
 * The program under test is $BUILD/sft (the Makefile says which build); its runs are short.
 */
#define main program_main  // this file has its own
#include "../../sft.c"
#undef main

#include "program.h"

#undef fail
#include <check.h>

static char work[64] = "/tmp/check_sft.XXXXXX";  // where the runs write

/* sft with the built-in model and data, few steps, and `more` flags; what it prints goes to
 * work/NAME.txt. */
static int sft(const char *name, const char *more) {
    return shell(
        "%s/sft --model test/tiny --data test/tiny/sft.jsonl --eval test/tiny/sft-eval.jsonl "
        "--output %s/%s --eval_samples 2 "
        "--max_new_tokens 8 --logging_steps 3 --warmup_steps 2 --learning_rate 1e-3 %s >%s/%s.txt "
        "2>&1",
        build(), work, name, more, work, name);
}

static int same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}

START_TEST(the_loss_is_the_mean_over_all_scored_tokens) {
    // M = 5 tokens in the step, of which this micro-batch has 3: L = (1 + 2 + 0.5) / 5
    const int target[] = {-1, 7, 0, -1, 3};
    const float logp[] = {-9, -1, -2, -9, -0.5f};
    float d[5];
    ck_assert_double_eq_tol(cross_entropy(5, target, logp, 5, d), 0.7, 1e-12);
    for (int i = 0; i < 5;
         i++) {  // the gradient is the loss's slope, exactly 0 where nothing is scored
        float moved[5];
        memcpy(moved, logp, sizeof moved);
        moved[i] += 0.5f;
        float unused[5];
        double slope = (cross_entropy(5, target, moved, 5, unused) -
                        cross_entropy(5, target, logp, 5, unused)) /
                       0.5;
        ck_assert_double_eq_tol((double)d[i], slope, 1e-7);
        if (target[i] < 0) ck_assert(d[i] == 0);
    }
}
END_TEST

START_TEST(the_defaults_are_the_published_ones) {
    Run run = {0};
    Error e;
    char *none[] = {"sft", "--model=m", NULL};
    ck_assert_msg(run_parse(&run, &program, 2, none, &e) == 0, "%s", e.text);
    ck_assert_int_eq(run.per_device_train_batch_size, 4);
    ck_assert_int_eq(run.gradient_accumulation_steps, 2);
    ck_assert(run.num_train_epochs == 3);
    ck_assert(run.learning_rate == 5e-5f);
    ck_assert_int_eq(run.warmup_steps, 100);
    ck_assert(run.weight_decay == 0.01f);
    ck_assert_int_eq(task.max_length, 512);
    ck_assert(!task.train_on_prompt && !strcmp(task.dropout, "0") &&
              task.noise.neftune_alpha == 0 && !task.gradient_checkpointing);
    run_free(&run);
    char *argv[] = {"sft", "--dropout", "--train-on-prompt", "--neftune_noise_alpha=5", NULL};
    ck_assert_msg(run_parse(&run, &program, 4, argv, &e) == 0, "%s", e.text);
    ck_assert(!strcmp(task.dropout, "config") && task.train_on_prompt &&
              task.noise.neftune_alpha == 5);
    run_free(&run);
    ck_assert(strlen(program.about) > 20);
}
END_TEST

START_TEST(it_learns_and_stops) {
    ck_assert_int_eq(
        sft("learn",
            "--max_steps 12 --per_device_train_batch_size 8 --gradient_accumulation_steps 1"),
        0);
    // the last loss in the log is well below the first
    char path[128], line[4096];
    snprintf(path, sizeof path, "%s/learn/log.jsonl", work);
    FILE *f = fopen(path, "r");
    ck_assert(f);
    double first = 0, last = 0;
    while (fgets(line, sizeof line, f)) {
        char *loss = strstr(line, "\"loss\": ");
        if (!loss) continue;
        last = atof(loss + 8);
        if (!first) first = last;
    }
    fclose(f);
    ck_assert_msg(last > 0 && last < 0.8 * first, "loss %g at first, %g at last", first, last);
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    const char *flags =
        "--max_steps 10 --per_device_train_batch_size 3 --gradient_accumulation_steps 2 --dropout "
        "0.1 --neftune_noise_alpha 5 --save_steps 5 --save_total_limit 0 --keep_moments";
    ck_assert_int_eq(sft("whole", flags), 0);
    // the same, but everything after step 5 is lost: the checkpoint of step 5 is all that is left,
    // as after a crash
    ck_assert_int_eq(
        shell("cp -r %s/whole %s/cut && rm -r %s/cut/checkpoint-10 %s/cut/model.safetensors", work,
              work, work, work),
        0);
    char more[512];
    snprintf(more, sizeof more, "%s --resume", flags);
    ck_assert_int_eq(sft("cut", more), 0);
    ck_assert(same("whole/model.safetensors", "cut/model.safetensors"));
    ck_assert(same("whole/checkpoint-10/state.safetensors", "cut/checkpoint-10/state.safetensors"));
    ck_assert(same("whole/log.jsonl", "cut/log.jsonl"));
}
END_TEST

/* Without a stdout the log's file must not take its number, and with it what is printed. */
START_TEST(a_closed_stdout_leaves_the_log_clean) {
    ck_assert_int_eq(sft("open", "--max_steps 3"), 0);
    ck_assert_int_eq(shell("%s/sft --model test/tiny --data test/tiny/sft.jsonl --eval "
                           "test/tiny/sft-eval.jsonl --output %s/closed --eval_samples 2 "
                           "--max_new_tokens 8 --logging_steps 3 --warmup_steps 2 --learning_rate "
                           "1e-3 --max_steps 3 <&- >&- 2>&-",
                           build(), work),
                     0);
    ck_assert(same("open/log.jsonl", "closed/log.jsonl"));
    ck_assert(same("open/model.safetensors", "closed/model.safetensors"));
}
END_TEST

START_TEST(threads_change_no_bit) {
    const char *flags =
        "--max_steps 3 --per_device_train_batch_size 5 --gradient_accumulation_steps 1";
    setenv("OMP_NUM_THREADS", "1", 1);
    ck_assert_int_eq(sft("one", flags), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    ck_assert_int_eq(sft("three", flags), 0);
    unsetenv("OMP_NUM_THREADS");
    ck_assert(same("one/model.safetensors", "three/model.safetensors"));
}
END_TEST

START_TEST(accumulation_gives_the_large_batch) {
    // equal to 1e-6, not to the bit: in the tied embedding the contributions of head and input
    // interleave in another order
    ck_assert_int_eq(sft("large",
                         "--max_steps 4 --per_device_train_batch_size 6 "
                         "--gradient_accumulation_steps 1 --logging_steps 1"),
                     0);
    ck_assert_int_eq(sft("small",
                         "--max_steps 4 --per_device_train_batch_size 2 "
                         "--gradient_accumulation_steps 3 --logging_steps 1"),
                     0);
    char path[2][128], line[2][4096];
    FILE *f[2];
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s/log.jsonl", work, i ? "small" : "large");
        ck_assert((f[i] = fopen(path[i], "r")));
    }
    int lines = 0;
    while (fgets(line[0], sizeof line[0], f[0]) && fgets(line[1], sizeof line[1], f[1])) {
        char *a = strstr(line[0], "\"loss\": "), *b = strstr(line[1], "\"loss\": ");
        ck_assert((a != NULL) == (b != NULL));
        if (!a || !b) continue;
        ck_assert_double_eq_tol(atof(a + 8) / atof(b + 8), 1, 1e-5);  // four steps of AdamW apart
        lines++;
    }
    ck_assert_int_ge(lines, 4);
    fclose(f[0]);
    fclose(f[1]);
}
END_TEST

START_TEST(bad_input_ends_with_2_and_leaves_no_output) {
    ck_assert_int_eq(sft("bad", "--max_length one"), 2);
    ck_assert_int_eq(sft("bad", "--no_such_flag 1"), 2);
    ck_assert_int_eq(sft("bad", "--dropout 1.5"), 2);
    ck_assert_int_eq(sft("bad", "--model /nowhere"), 2);
    ck_assert_int_eq(sft("bad", "--data /nowhere"), 2);
    ck_assert_int_ne(shell("test -e %s/bad/model.safetensors", work), 0);
}
END_TEST

START_TEST(a_dry_run_writes_nothing_and_shows_the_mask) {
    ck_assert_int_eq(sft("dry", "--dry_run"), 0);
    ck_assert_int_ne(shell("test -e %s/dry", work), 0);
    ck_assert_int_eq(shell("grep -q '«.*<|endoftext|>»' %s/dry.txt", work), 0);
    ck_assert_int_eq(shell("grep -q 'moments' %s/dry.txt", work), 0);
    // Plain text is scored from its second token, which may be within its first character. The mark
    // follows that character
    ck_assert_int_eq(shell("echo '{\"text\": \"한국어\"}' > %s/korean.jsonl", work), 0);
    char flags[256];
    snprintf(flags, sizeof flags, "--dry_run --data %s/korean.jsonl", work);
    ck_assert_int_eq(sft("korean", flags), 0);
    ck_assert_int_eq(shell("grep -q '^한«국어<|endoftext|>»' %s/korean.txt", work), 0);
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    const TTest *const tests[] = {
        the_loss_is_the_mean_over_all_scored_tokens,
        the_defaults_are_the_published_ones,
        it_learns_and_stops,
        a_resumed_run_has_the_bits_of_an_uninterrupted_one,
        a_closed_stdout_leaves_the_log_clean,
        threads_change_no_bit,
        accumulation_gives_the_large_batch,
        bad_input_ends_with_2_and_leaves_no_output,
        a_dry_run_writes_nothing_and_shows_the_mask,
    };
    int failed = run_tests("sft", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    return failed != 0;
}
