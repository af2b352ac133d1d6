/*
 * check_full_ft.c - full_ft.c: its defaults, random initialisation, and the best and the last
 * model.
 *
 * The program under test is $BUILD/full_ft, on the built-in model.
 */
#define main program_main  // this file has its own
#include "../../full_ft.c"
#undef main

#include "program.h"

#undef fail
#include <check.h>

START_TEST(the_loss_is_the_mean_over_all_scored_tokens) {
    const int target[] = {-1, 7, 0};
    const float logp[] = {-9, -1, -2};
    float d[3];
    ck_assert_double_eq_tol(cross_entropy(3, target, logp, 4, d), 0.75, 1e-12);  // (1 + 2) / 4
    ck_assert(d[0] == 0 && d[1] == -0.25f && d[2] == -0.25f);
}
END_TEST

START_TEST(the_defaults_are_the_published_ones) {
    Run run = {0};
    Error e;
    char *none[] = {"full_ft", "--model=m", NULL};
    ck_assert_msg(run_parse(&run, &program, 2, none, &e) == 0, "%s", e.text);
    ck_assert_int_eq(run.per_device_train_batch_size, 2);
    ck_assert_int_eq(run.gradient_accumulation_steps, 4);
    ck_assert(run.num_train_epochs == 5);
    ck_assert(run.learning_rate == 2e-5f);
    ck_assert_int_eq(run.warmup_steps, 50);
    ck_assert(run.weight_decay == 0.01f);
    ck_assert_int_eq(run.save_total_limit, 2);
    ck_assert(run.dataloader_drop_last && task.gradient_checkpointing);
    run_free(&run);
    char *argv[] = {"full_ft", "--init", "--no_gradient_checkpointing", NULL};
    ck_assert_msg(run_parse(&run, &program, 3, argv, &e) == 0, "%s", e.text);
    ck_assert(!strcmp(args.init, "d12-c768-h12-t1024") && !task.gradient_checkpointing);
    run_free(&run);
    ck_assert(strlen(program.about) > 20);
    (void)init_shape;
    (void)random_model;  // main's, tested through the program
}
END_TEST

START_TEST(a_shape_is_read_or_refused) {
    Error e;
    GPT2Config c = {.vocab_size = 257};
    ck_assert_int_eq(read_shape("d4-c128-h8-t256", &c, &e), 0);
    ck_assert(c.n_layer == 4 && c.n_embd == 128 && c.n_inner == 512 && c.n_head == 8 &&
              c.n_positions == 256 && c.vocab_size == 257);
    const char *bad[] = {"",
                         "d4",
                         "d4-c128-h8",
                         "d4-c128-h8-t256x",
                         "d0-c128-h8-t256",
                         "d4-c128-h7-t256",
                         "d4-c-8-h8-t256",
                         "d4-c128-h0-t256",
                         "d4-c128-h8-t1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(read_shape(bad[i], &c, &e) == -1, "%s", bad[i]);
}
END_TEST

/* The held-out losses that the log holds; returns how many. */
static int held_out_losses(const char *path, double *loss, int room) {
    FILE *f = fopen(path, "r");
    char line[4096];
    int n = 0;
    while (f && fgets(line, sizeof line, f) && n < room) {
        char *at = strstr(line, "\"eval_loss\": ");
        if (at) loss[n++] = atof(at + 13);
    }
    if (f) fclose(f);
    return n;
}

START_TEST(the_best_model_is_the_one_with_the_lowest_held_out_loss) {
    // the rate is so high that the held-out loss goes up again: the best is not the last
    char work[] = "/tmp/check_full_ft.XXXXXX", command[2048], path[256];
    ck_assert(mkdtemp(work));
    snprintf(command, sizeof command,
             "%s/full_ft --model test/tiny --data test/tiny/summaries.jsonl --eval "
             "test/tiny/summaries-eval.jsonl --output %s/out --max_steps 12 "
             "--warmup_steps 4 --learning_rate 0.05 --lr_scheduler_type constant_with_warmup "
             "--eval_steps 2 --eval_samples 1 --max_new_tokens 4 >%s/text 2>&1",
             build(), work, work);
    ck_assert_int_eq(system(command), 0);
    double loss[16], best = INFINITY;
    snprintf(path, sizeof path, "%s/out/log.jsonl", work);
    int n = held_out_losses(path, loss, 16);
    ck_assert_int_eq(n, 7);  // the first is that before training
    for (int i = 1; i < n; i++) best = fmin(best, loss[i]);
    ck_assert_msg(best < loss[n - 1], "the run was to end worse than it began");
    // evaluate OUTPUT/best and OUTPUT alone: they give the lowest and the last of the losses
    for (int last = 0; last < 2; last++) {
        snprintf(command, sizeof command,
                 "%s/full_ft --model %s/out%s --data test/tiny/summaries.jsonl --eval "
                 "test/tiny/summaries-eval.jsonl --max_steps 0 --eval_samples 0 >%s/eval 2>&1 "
                 "&& grep 'held-out, before' %s/eval | grep -q 'loss %.4f'",
                 build(), work, last ? "" : "/best", work, work, last ? loss[n - 1] : best);
        ck_assert_msg(system(command) == 0, "%s", command);
    }
    snprintf(command, sizeof command, "rm -rf %s", work);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {
        the_loss_is_the_mean_over_all_scored_tokens,
        the_defaults_are_the_published_ones,
        a_shape_is_read_or_refused,
        the_best_model_is_the_one_with_the_lowest_held_out_loss,
    };
    int failed = run_tests("full_ft", NULL, tests, sizeof tests / sizeof *tests);
    return failed != 0;
}
