/*
 * check_watch.c - the figures of a run: how each kind accumulates, what a log line holds, and how
 * figures survive a checkpoint. The lines are read back from log.jsonl.
 */
#include "run/private.h"

#include "run_files.h"

static const Flag no_flags[] = {{0}};
static const Program program = {.name = "prog", .about = "A toy.", .flags = no_flags};

/* A run that logs into the directory out/, with 10 steps, 4 of them an epoch. */
static void begin(Run *run) {
    static char output[128];
    snprintf(output, sizeof output, "--output=%s", at("out"));
    char *argv[] = {(char *)"prog", output, NULL};
    Error e;
    ck_assert_int_eq(make_directories(at("out")), 0);  // as lock.c does for a program
    ck_assert_int_eq(run_parse(run, &program, 2, argv, &e), 0);
    run->total_steps = 10;
    run->steps_per_epoch = 4;
    run->step = 1;
}

/* The lines of the log, to be freed. */
static char *log_text(void) { return bytes_of("out/log.jsonl").s; }

/* Writes a log line, and compares all that the log holds. */
static void assert_log(Run *run, const char *expected) {
    begin_capture("screen.txt");
    watch_log(run);
    watch_log_held_out(run);
    end_capture();
    char *text = log_text();
    ck_assert_str_eq(text, expected);
    free(text);
}

/* ---- kinds ----------------------------------------------------------------------------------- */

START_TEST(a_mean_is_a_sum_over_a_count) {
    Run run = {0};
    begin(&run);
    watch_mean(&run, "loss", 6, 2);
    watch_mean(&run, "loss", 1, 2);
    watch_mean(&run, "empty", 0, 0);
    assert_log(&run, "{\"step\": 1, \"loss\": 1.75, \"epoch\": 0.25}\n");
    run.step = 4;  // the next line starts anew
    watch_mean(&run, "loss", 3, 1);
    watch_mean(&run, "empty", 5, 2);
    assert_log(&run,
               "{\"step\": 1, \"loss\": 1.75, \"epoch\": 0.25}\n"
               "{\"step\": 4, \"loss\": 3, \"empty\": 2.5, \"epoch\": 1}\n");
    run_free(&run);
}
END_TEST

START_TEST(a_combined_figure_adds_two_sums_over_one_count) {
    Run run = {0};
    begin(&run);
    watch_combined(&run, "both", "a", 2, "b", -0.5);  // before either of them
    watch_combined(&run, "lost", "a", 1, "nothing", 1);
    watch_mean(&run, "a", 6, 4);
    watch_mean(&run, "b", 8, 5);
    assert_log(&run,  // (2 * 6 - 0.5 * 8) / 4
               "{\"step\": 1, \"both\": 2, \"a\": 1.5, \"b\": 1.6, \"epoch\": 0.25}\n");
    run_free(&run);
}
END_TEST

START_TEST(least_and_largest_since_the_last_line) {
    Run run = {0};
    begin(&run);
    for (int i = 0; i < 3; i++) {
        watch_min(&run, "least", (double)(const int[]){3, -2, 5}[i]);
        watch_max(&run, "largest", (double)(const int[]){-3, -7, -5}[i]);
    }
    begin_capture("screen.txt");
    watch_log(&run);
    watch_min(&run, "least", 4);
    watch_max(&run, "largest", -9);
    watch_log(&run);
    end_capture();
    // nothing was given since: there is no least value
    assert_log(&run,
               "{\"step\": 1, \"least\": -2, \"largest\": -3, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"least\": 4, \"largest\": -9, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"epoch\": 0.25}\n");
    run_free(&run);
}
END_TEST

START_TEST(a_total_is_never_started_anew) {
    Run run = {0};
    begin(&run);
    watch_total(&run, "num_tokens", 12345678900.0);
    watch_total(&run, "num_tokens", 1);
    watch(&run, "rate", 3);
    watch(&run, "rate", 4);  // the last value counts
    begin_capture("screen.txt");
    watch_log(&run);
    end_capture();
    watch_total(&run, "num_tokens", 2);
    watch(&run, "rate", 5);
    assert_log(&run,
               "{\"step\": 1, \"num_tokens\": 12345678901, \"rate\": 4, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"num_tokens\": 12345678903, \"rate\": 5, \"epoch\": 0.25}\n");
    run_free(&run);
}
END_TEST

/* They get a line of their own, after that of the step, and only in the steps that gave them. */
START_TEST(held_out_figures_have_a_line_of_their_own) {
    Run run = {0};
    begin(&run);
    watch_held_out(&run, "eval_loss", 2);
    watch(&run, "loss", 1);
    watch_held_out(&run, "eval_accuracy", 0.5);
    assert_log(&run,
               "{\"step\": 1, \"loss\": 1, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"eval_loss\": 2, \"eval_accuracy\": 0.5}\n");
    run.step = 2;
    watch(&run, "loss", 3);
    watch_held_out(&run, "eval_accuracy", 0.25);
    begin_capture("screen.txt");
    watch_log(&run);
    watch_log_held_out(&run);
    watch_log_held_out(&run);  // nothing new: no line
    end_capture();
    char *text = log_text();
    ck_assert_str_eq(text,
                     "{\"step\": 1, \"loss\": 1, \"epoch\": 0.25}\n"
                     "{\"step\": 1, \"eval_loss\": 2, \"eval_accuracy\": 0.5}\n"
                     "{\"step\": 2, \"loss\": 3, \"epoch\": 0.5}\n"
                     "{\"step\": 2, \"eval_accuracy\": 0.25}\n");
    free(text);
    run_free(&run);
}
END_TEST

/* What is measured before training is the first line, however late the log begins. */
START_TEST(figures_before_training_are_the_first_line) {
    Run run = {0};
    begin(&run);
    run.step = 0;
    watch_held_out(&run, "eval_loss", 2);
    watch_held_out(&run, "eval_accuracy", NAN);
    watch_log_before(&run);
    watch_log_before(&run);  // once
    ck_assert(!exists("out/log.jsonl"));
    run.step = 3;
    watch_held_out(&run, "eval_loss", 1);
    watch(&run, "rate", 5);
    assert_log(&run,
               "{\"step\": 0, \"eval_loss\": 2}\n"
               "{\"step\": 3, \"rate\": 5, \"epoch\": 0.75}\n"
               "{\"step\": 3, \"eval_loss\": 1}\n");
    run_free(&run);
}
END_TEST

/* A step in which nothing was trained on has no line: the counts of all means are empty. */
START_TEST(no_line_without_anything_trained_on) {
    Run run = {0};
    begin(&run);
    watch_mean(&run, "loss", 0, 0);
    watch_mean(&run, "entropy", 0, 0);
    watch(&run, "rate", 1);
    begin_capture("screen.txt");
    watch_log(&run);
    end_capture();
    ck_assert(!exists("out/log.jsonl"));
    watch_mean(&run, "entropy", 4, 2);
    assert_log(&run, "{\"step\": 1, \"entropy\": 2, \"rate\": 1, \"epoch\": 0.25}\n");
    run_free(&run);
}
END_TEST

/* ---- the line -------------------------------------------------------------------------------- */

START_TEST(lines_are_json_and_readable) {
    Run run = {0};
    begin(&run);
    begin_capture("screen.txt");
    watch(&run, "loss", 3.25);
    watch(&run, "rate", (double)0.1f);
    watch(&run, "third", 1.0 / 3);
    watch_total(&run, "num_tokens", 12345678901.0);
    watch(&run, "million", 1e6);
    watch_log(&run);
    char *first = log_text();  // a line is in the file as soon as it is logged
    end_capture();
    run_free(&run);
    ck_assert_str_eq(first,
                     "{\"step\": 1, \"loss\": 3.25, \"rate\": 0.1, \"third\": 0.3333333333333333, "
                     "\"num_tokens\": 12345678901, \"million\": 1000000, \"epoch\": 0.25}\n");
    Str screen = bytes_of("screen.txt");
    ck_assert_ptr_nonnull(strstr(screen.s, "\n    step      loss  accuracy  "));
    ck_assert_ptr_nonnull(strstr(screen.s, "\n    1/10    3.2500         -  "));
    ck_assert_ptr_null(strchr(screen.s, '\r'));  // no terminal, no progress line
    free(first);
    free(screen.s);
}
END_TEST

START_TEST(numbers_that_are_not_finite_are_left_out) {
    Run run = {0};
    begin(&run);
    watch(&run, "loss", NAN);
    watch(&run, "up", INFINITY);
    watch(&run, "down", -INFINITY);
    watch(&run, "tiny", 1e-300);
    watch(&run, "count", 7);
    run.step = 2;
    assert_log(&run, "{\"step\": 2, \"tiny\": 1e-300, \"count\": 7, \"epoch\": 0.5}\n");
    Str screen = bytes_of("screen.txt");
    ck_assert_ptr_nonnull(strstr(screen.s, "\n    2/10         -         -  "));
    free(screen.s);
    run_free(&run);
}
END_TEST

START_TEST(the_table_shows_some_figures) {
    Run run = {0};
    begin(&run);
    watch(&run, "hidden", 2);
    watch(&run, "learning_rate", 0.125);
    watch(&run, "mean_token_accuracy", 0.75);
    watch_held_out(&run, "eval_loss", 3);
    watch_held_out(&run, "eval_b", 4);
    assert_log(&run,  // the file holds all of them
               "{\"step\": 1, \"hidden\": 2, \"learning_rate\": 0.125, "
               "\"mean_token_accuracy\": 0.75, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"eval_loss\": 3, \"eval_b\": 4}\n");
    Str screen = bytes_of("screen.txt");
    ck_assert_ptr_nonnull(strstr(
        screen.s, "\n    1/10         -    75.0 %         -     0.125        -         -\n"));
    ck_assert_ptr_nonnull(strstr(screen.s, "\nheld out    3.0000\n"));
    ck_assert_ptr_null(strstr(screen.s, "hidden"));
    free(screen.s);
    // the heading is not printed again, and a held-out figure is shown once
    assert_log(&run,
               "{\"step\": 1, \"hidden\": 2, \"learning_rate\": 0.125, "
               "\"mean_token_accuracy\": 0.75, \"epoch\": 0.25}\n"
               "{\"step\": 1, \"eval_loss\": 3, \"eval_b\": 4}\n"
               "{\"step\": 1, \"hidden\": 0, \"learning_rate\": 0, \"mean_token_accuracy\": 0, "
               "\"epoch\": 0.25}\n");
    screen = bytes_of("screen.txt");
    ck_assert_ptr_null(strstr(screen.s, "accuracy"));
    ck_assert_ptr_null(strstr(screen.s, "held out"));
    free(screen.s);
    run_free(&run);
}
END_TEST

/* ---- checkpoints ----------------------------------------------------------------------------- */

/* Gives a figure of every kind a part of its value. */
static void watch_some(Run *run, double x) {
    watch_held_out(run, "eval_loss", x);
    watch_mean(run, "loss", x / 3, 2);
    watch(run, "rate", x / 7);
    watch_combined(run, "both", "loss", 1, "reward", -x);
    watch_min(run, "least", x);
    watch_max(run, "largest", x);
    watch_mean(run, "reward", -x, 1);
    watch_total(run, "num_tokens", x);
}

START_TEST(figures_survive_a_checkpoint) {
    Run whole = {0}, resumed = {0};
    begin(&whole);
    watch_some(&whole, 0.1);
    watch_some(&whole, -5);
    char *text = watch_text(&whole);
    begin(&resumed);
    ck_assert_int_eq(watch_restore(&resumed, text), 0);
    char *again = watch_text(&resumed);
    ck_assert_str_eq(text, again);
    free(again);
    // the same values follow, in another order: that of the figures is the old one
    watch_some(&whole, 3);
    watch_total(&resumed, "num_tokens", 3);
    watch_mean(&resumed, "reward", -3, 1);
    watch_max(&resumed, "largest", 3);
    watch_min(&resumed, "least", 3);
    watch_combined(&resumed, "both", "loss", 1, "reward", -3);
    watch(&resumed, "rate", 3.0 / 7);
    watch_mean(&resumed, "loss", 3.0 / 3, 2);
    watch_held_out(&resumed, "eval_loss", 3);
    begin_capture("screen.txt");
    watch_log(&whole);
    watch_log_held_out(&whole);
    char *expected = log_text();
    end_capture();
    run_free(&whole);
    assert_log(&resumed, expected);
    ck_assert_ptr_nonnull(strstr(expected, "\"num_tokens\": -1.9"));
    free(expected);
    free(text);
    run_free(&resumed);
}
END_TEST

START_TEST(extremes_that_are_still_empty_survive) {
    Run run = {0}, resumed = {0};
    begin(&run);
    watch_min(&run, "least", 1);
    watch_max(&run, "largest", NAN);
    begin_capture("screen.txt");
    watch_log(&run);
    end_capture();
    char *text = watch_text(&run);  // both are infinite now
    begin(&resumed);
    ck_assert_int_eq(watch_restore(&resumed, text), 0);
    watch_min(&resumed, "least", 2);
    watch_max(&resumed, "largest", -2);
    assert_log(&resumed, "{\"step\": 1, \"least\": 2, \"largest\": -2, \"epoch\": 0.25}\n");
    free(text);
    run_free(&run);
    run_free(&resumed);
}
END_TEST

/* A held-out figure that was in the log already does not come again. */
START_TEST(old_held_out_figures_are_not_logged_again) {
    Run run = {0};
    begin(&run);
    ck_assert_int_eq(watch_restore(&run, "held-out eval_loss 2 0;last loss 1 0;"), 0);
    assert_log(&run, "{\"step\": 1, \"loss\": 1, \"epoch\": 0.25}\n");
    run_free(&run);
}
END_TEST

START_TEST(damaged_figures_are_refused) {
    const char *const bad[] = {
        "x",
        ";",
        "mean",
        "mean loss 1 2",                 // no end
        "mean loss 1;",                  // no count
        "mean loss one 2;",              // no number
        "mean loss 1 2x;",               // more than a number
        "meen loss 1 2;",                // no such kind
        "mean loss 1 2;mean",            // the second is cut short
        "mean loss 1 2;last rate 3",     // likewise
        "mean loss 1 2;last loss 3 0;",  // twice
        "held-out-and-more-than-that loss 1 2;",
    };
    for (int i = 0; i < COUNT(bad); i++) {
        Run run = {0};
        begin(&run);
        ck_assert_msg(watch_restore(&run, bad[i]) == -1, "accepted: %s", bad[i]);
        run_free(&run);
    }
    Run run = {0};
    begin(&run);
    ck_assert_int_eq(watch_restore(&run, ""), 0);  // of a run without figures
    char *text = watch_text(&run);
    ck_assert_str_eq(text, "");
    free(text);
    run_free(&run);
}
END_TEST

/* ---- phases ---------------------------------------------------------------------------------- */

START_TEST(phases_are_added_up) {
    Run run = {0};
    begin(&run);
    watch(&run, "loss", 1);
    run.state->started = now_seconds();
    watch_phase(&run, "sleep");
    usleep(150000);
    watch_phase(&run, "work");
    watch_phase(&run, "sleep");
    usleep(150000);
    watch_phase(&run, NULL);
    assert_log(&run, "{\"step\": 1, \"loss\": 1, \"epoch\": 0.25}\n");  // not in the file
    begin_capture("screen.txt");
    screen_times(&run);
    end_capture();
    Str screen = bytes_of("screen.txt");
    double slept, worked;
    int sleep_share, work_share;
    ck_assert_int_eq(sscanf(screen.s, "time %*f s, sleep %lf s (%d %%), work %lf s (%d %%)\n",
                            &slept, &sleep_share, &worked, &work_share),
                     4);
    ck_assert_double_ge(slept, 0.3 - 0.05);
    ck_assert_double_ge(slept, worked);
    ck_assert_int_ge(sleep_share, work_share);
    ck_assert_int_ge(sleep_share + work_share, 99);
    ck_assert_int_le(sleep_share + work_share, 101);
    free(screen.s);
    run_free(&run);
    begin(&run);  // without phases nothing is printed
    begin_capture("screen.txt");
    screen_times(&run);
    end_capture();
    screen = bytes_of("screen.txt");
    ck_assert_uint_eq(screen.n, 0);
    free(screen.s);
    run_free(&run);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("watch");
    const TTest *const tests[] = {a_mean_is_a_sum_over_a_count,
                                  a_combined_figure_adds_two_sums_over_one_count,
                                  least_and_largest_since_the_last_line,
                                  a_total_is_never_started_anew,
                                  held_out_figures_have_a_line_of_their_own,
                                  figures_before_training_are_the_first_line,
                                  no_line_without_anything_trained_on,
                                  lines_are_json_and_readable,
                                  numbers_that_are_not_finite_are_left_out,
                                  the_table_shows_some_figures,
                                  figures_survive_a_checkpoint,
                                  extremes_that_are_still_empty_survive,
                                  old_held_out_figures_are_not_logged_again,
                                  damaged_figures_are_refused,
                                  phases_are_added_up};
    add_tests(suite, "figures", make_directory, tests, COUNT(tests));
    return finish_suite(suite);
}
