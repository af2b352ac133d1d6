/*
 * check_best.c - what a run keeps: the best model and early stopping, the figures before training,
 * when and how much is saved, and run.json.
 *
 * All of it runs the stage in toy.h, whose held-out losses are those of --losses.
 */
#include "run/run.c"  // for a look inside

#include "toy.h"

#include <jansson.h>

/* Steps of 4 examples; 5 steps an epoch. Every checkpoint is kept. */
#define RUN "--max_steps 6 --eval_steps 2 --save_steps 2 --save_total_limit 0 --learning_rate 1e-3 "

/* ---- the best model -------------------------------------------------------------------------- */

START_TEST(the_best_model_is_kept_and_named) {
    ck_toy(0, RUN "--losses 9,5,3,4 --output %s", at("out"));
    assert_same_file("out/best/model.safetensors", "out/checkpoint-4/model.safetensors");
    assert_same_file("out/model.safetensors", "out/checkpoint-6/model.safetensors");
    assert_said("the held-out loss was lowest at step 4, 3.0000; at the end it is 4.0000\n");
    char place[256];
    snprintf(place, sizeof place, "that model is in %s; --load_best_model_at_end makes it the",
             at("out/best"));
    assert_said(place);
    assert_not_said("worse than before");
    // it says so also where nothing is written, and where the best model is not
    ck_toy(0, "--max_steps 6 --eval_steps 2 --losses 9,5,3,4");
    assert_said("lowest at step 4");
    assert_said("that model is lost: with --output it is kept");
    ck_toy(0, "--max_steps 6 --eval_steps 2 --save_strategy no --losses 9,5,3,4 --output %s",
           at("no"));
    assert_said("that model is lost: --save_strategy no");
    ck_assert(!exists("no/best") && exists("no/model.safetensors"));
}
END_TEST

START_TEST(nothing_is_said_where_the_last_is_the_best) {
    ck_toy(0, RUN "--losses 9,5,4,3 --output %s", at("out"));
    assert_not_said("lowest");
    assert_not_said("worse");
    assert_same_file("out/best/model.safetensors", "out/model.safetensors");
    ck_toy(0, RUN "--output %s", at("none"));  // nothing is held out
    assert_not_said("lowest");
    ck_assert(!exists("none/best"));
}
END_TEST

START_TEST(an_end_worse_than_the_beginning_is_named) {
    ck_toy(0, RUN "--losses 1,5,4,3 --output %s", at("out"));
    assert_not_said("lowest");
    assert_said("the result is worse than before training: held-out loss 1.0000 -> 3.0000\n");
    assert_said("the better model is the one that the run started from: ");
    // the best of the steps is no better than the beginning
    ck_toy(0, RUN "--losses 3,3,5,4 --output %s", at("same"));
    assert_not_said("lowest");
    assert_not_said("lost");
    assert_said(
        "the result is worse than before training: held-out loss 3.0000 -> 4.0000\n"
        "the better model is the one that the run started from: ");
    // a step between was better than the beginning
    ck_toy(0, RUN "--losses 2,1,4,3 --output %s", at("between"));
    assert_said("lowest at step 2, 1.0000; at the end it is 3.0000\n");
    assert_said("worse than before training: held-out loss 2.0000 -> 3.0000\n");
    assert_not_said("started from");
}
END_TEST

START_TEST(the_best_model_is_the_result_where_asked) {
#define BEST RUN "--losses 9,5,3,4 --load_best_model_at_end --output %s "
    ck_toy(0, BEST, at("out"));
    assert_said("the result is the best model, of step 4: held-out loss 3.0000, at the end 4.0000");
    assert_same_file("out/model.safetensors", "out/checkpoint-4/model.safetensors");
    ck_assert(exists("out/checkpoint-6"));
    // a run that was killed after its best step, and one that has ended, come to the same
    ck_toy(77, BEST "--die_at 6", at("killed"));
    ck_toy(0, BEST "--resume", at("killed"));
    assert_same_file("out/model.safetensors", "killed/model.safetensors");
    assert_same_file("out/log.jsonl", "killed/log.jsonl");
    ck_toy(0, BEST "--resume", at("out"));
    assert_same_file("out/model.safetensors", "killed/model.safetensors");
    // where the last one is the best, there is nothing to say
    ck_toy(0, RUN "--losses 9,5,4,3 --load_best_model_at_end --output %s", at("last"));
    assert_not_said("the result is");
    assert_same_file("last/model.safetensors", "last/checkpoint-6/model.safetensors");
    // a best model that was changed is not taken for it
    ck_toy(77, BEST "--die_at 6", at("changed"));
    Str other = bytes_of("base/model.safetensors");
    FILE *f = fopen(at("changed/best/model.safetensors"), "wb");
    fwrite(other.s, 1, other.n, f);
    fclose(f);
    free(other.s);
    ck_toy(0, BEST "--resume", at("changed"));
    assert_said("is not the one of step 4");
    assert_said("the result is the last model, of step 6");
    assert_said("that model is lost: it is not in ");
    assert_same_file("changed/model.safetensors", "out/checkpoint-6/model.safetensors");
}
END_TEST

/* A run that is resumed into another output has the best model of the first one, or says at once
   that it is lost. */
START_TEST(the_best_model_comes_along) {
    ck_toy(0, RUN "--losses 9,3,5,4 --output %s", at("out"));
    for (int step = 4; step <= 6; step += 2) {
        char from[64], to[64];
        snprintf(from, sizeof from, "out/checkpoint-%d", step);
        snprintf(to, 32, "from%d", step);
        ck_toy(0, RUN "--losses 9,3,5,4 --resume %s --output %s", at(from), at(to));
        assert_said("lowest at step 2, 3.0000; at the end it is 4.0000");
        snprintf(from, sizeof from, "from%d/best;", step);
        assert_said(at(from));
        snprintf(to, sizeof to, "from%d/best/model.safetensors", step);
        assert_same_file("out/best/model.safetensors", to);
    }
    ck_assert_int_eq(count_entries("from4", ".posttrain-"), 0);
    ck_toy(0, BEST "--losses 9,3,5,4 --resume %s", at("loaded"), at("out/checkpoint-4"));
    assert_same_file("loaded/model.safetensors", "out/best/model.safetensors");
    ck_toy(0, BEST "--losses 9,3,5,4 --resume %s", at("ended"), at("out/checkpoint-6"));
    assert_same_file("ended/model.safetensors", "out/best/model.safetensors");
    // it was removed
    ck_assert_int_eq(rename(at("out/best"), at("elsewhere")), 0);
    ck_toy(2, BEST "--losses 9,3,5,4 --resume %s", at("on"), at("out/checkpoint-4"));
    assert_said("that of step 2, and it is not kept: there is no ");
    assert_said("out/best; put it there, or leave out that flag");
    ck_assert(!exists("on/log.jsonl"));
    ck_toy(2, BEST "--losses 9,3,5,4 --resume", at("out"));
    ck_toy(0, RUN "--losses 9,3,5,4 --resume %s --output %s", at("out/checkpoint-4"), at("on"));
    assert_said("of step 2, is lost: there is no ");
    assert_said("that model is lost: it is not in ");
    ck_assert(!exists("on/best"));
    assert_same_file("on/model.safetensors", "out/model.safetensors");
    // a later evaluation may be the best one
    ck_toy(0, RUN "--losses 9,3,5,2 --resume %s --output %s", at("out/checkpoint-4"), at("later"));
    assert_not_said("at the end");
    assert_same_file("later/best/model.safetensors", "later/model.safetensors");
}
END_TEST

/* A kill may come after a better model was written and before the next checkpoint. */
START_TEST(a_best_model_newer_than_the_checkpoint_comes_again) {
#define RARE                                                                                     \
    "--max_steps 9 --eval_steps 2 --save_steps 5 --learning_rate 1e-3 --load_best_model_at_end " \
    "--losses 9,5,6,4,7,8 --output %s "
    ck_toy(0, RARE, at("whole"));
    ck_toy(77, RARE "--die_at 8", at("killed"));
    ck_toy(0, RARE "--resume", at("killed"));
    assert_said("of step 2, is lost: the model in ");
    assert_said("the result is the best model, of step 6");
    assert_same_file("whole/model.safetensors", "killed/model.safetensors");
    assert_same_file("whole/log.jsonl", "killed/log.jsonl");
    // it does not come again with other --eval_steps: the result is the last model
    ck_toy(77, RARE "--die_at 8", at("other"));
    ck_toy(0, RARE "--eval_steps 9 --losses 9,7 --resume", at("other"));
    assert_said("the result is the last model, of step 9");
    ck_assert(exists("other/model.safetensors") && exists("other/run.json"));
}
END_TEST

/* By hand, as EarlyStoppingCallback counts: an evaluation that is lower than the lowest before it,
   by more than the threshold, begins the count anew. */
START_TEST(patience_ends_a_run) {
    const struct {
        const char *flags;
        int stops;
    } row[] = {
        {"--losses 9,5,6,7,1 --early_stopping_patience 2", 6},
        {"--losses 9,5,6,4,7,4,1 --early_stopping_patience 2", 10},  // equal is not lower
        {"--losses 1,5,6,3 --early_stopping_patience 1", 4},  // before training does not count
        {"--losses 9,5,4.95,4.9,1 --early_stopping_patience 2 --early_stopping_threshold 0.2", 6},
        {"--losses 9,6,5,4,3,2,1 --early_stopping_patience 1", 12},
        {"--losses 9,5,6,7,8 --early_stopping_patience 0", 12},
    };
    for (int i = 0; i < COUNT(row); i++) {
        char out[32], last[64], stopped[64];
        snprintf(out, sizeof out, "out%d", i);
        ck_toy(0,
               "--max_steps 12 --eval_steps 2 --save_steps 3 --save_total_limit 0 %s "
               "--output %s",
               row[i].flags, at(out));
        snprintf(last, sizeof last, "%s/checkpoint-%d/state.safetensors", out, row[i].stops);
        ck_assert_msg(exists(last), "%s: no %s\n%s", row[i].flags, last, said.s);
        snprintf(last, sizeof last, "%s/checkpoint-12", out);
        ck_assert_int_eq(exists(last), row[i].stops == 12);
        snprintf(stopped, sizeof stopped, "stopped at step %d of 12", row[i].stops);
        if (row[i].stops < 12)
            assert_said(stopped);
        else
            assert_not_said("stopped");
        snprintf(last, sizeof last, "%s/model.safetensors", out);
        ck_assert(exists(last));
    }
}
END_TEST

START_TEST(a_run_that_stopped_early_is_resumed_to_the_same) {
#define EARLY                                                                               \
    "--max_steps 20 --eval_steps 2 --save_steps 3 --save_total_limit 0 --losses 9,5,6,7,1 " \
    "--early_stopping_patience 2 --output %s "
    ck_toy(0, EARLY, at("whole"));
    ck_toy(77, EARLY "--die_at 5", at("killed"));
    ck_toy(0, EARLY "--resume", at("killed"));
    assert_said("stopped at step 6 of 20");
    assert_same_file("whole/model.safetensors", "killed/model.safetensors");
    assert_same_file("whole/log.jsonl", "killed/log.jsonl");
    ck_toy(0, EARLY "--resume", at("killed"));  // it has ended, and does nothing
    assert_said("at step 6 of 20");
    assert_same_file("whole/model.safetensors", "killed/model.safetensors");
    assert_same_file("whole/log.jsonl", "killed/log.jsonl");
    ck_assert(!exists("killed/checkpoint-8"));
}
END_TEST

/* ---- before training ------------------------------------------------------------------------- */

static void assert_begins(const char *name, const char *text) {
    Str s = bytes_of(name);
    ck_assert_msg(!strncmp(s.s, text, strlen(text)), "%s begins %.100s", name, s.s);
    free(s.s);
}

START_TEST(the_log_begins_before_training) {
    const char *begins = "{\"step\": 0, \"eval_loss\": 9}\n{\"step\": 1, ";
    ck_toy(0, RUN "--losses 9,5,3,4 --output %s", at("whole"));
    assert_begins("whole/log.jsonl", begins);
    ck_toy(77, RUN "--losses 9,5,3,4 --die_at 5 --output %s", at("killed"));
    ck_toy(0, RUN "--losses 9,5,3,4 --resume --output %s", at("killed"));
    assert_same_file("whole/log.jsonl", "killed/log.jsonl");
    // a resumed run does not measure again, and knows it in another output, too
    ck_toy(0, RUN "--losses 77,5,3,4 --resume %s --output %s", at("killed/checkpoint-4"),
           at("elsewhere"));
    assert_begins("elsewhere/log.jsonl", "{\"step\": 0, \"eval_loss\": 9}\n{\"step\": 5, ");
    // a run that only evaluates
    ck_toy(0, "--max_steps 0 --losses 9 --output %s", at("only"));
    assert_begins("only/log.jsonl", "{\"step\": 0, \"eval_loss\": 9}\n");
    // an older result stays until there is something to take its place
    ck_toy(77, RUN "--losses 9 --die_at 1 --overwrite_output_dir --output %s", at("whole"));
    ck_assert(exists("whole/model.safetensors"));
}
END_TEST

/* Means are of what a line holds: the last line, of 1 step after one of 4, is that of its step. */
START_TEST(a_short_last_line_is_a_mean_of_its_own) {
    ck_toy(0, "--max_steps 5 --logging_steps 4 --output %s", at("out"));
    ck_toy(0, "--max_steps 5 --logging_steps 1 --output %s", at("each"));
    double part[2][8];
    const char *const names[] = {"out", "each"};
    int n[2] = {0};
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/log.jsonl", names[i]);
        Str log = bytes_of(path);
        for (const char *p = log.s; (p = strstr(p, "\"mean\": ")); p++)
            part[i][n[i]++] = atof(p + 8);
        free(log.s);
    }
    ck_assert_int_eq(n[0], 2);
    ck_assert_int_eq(n[1], 5);
    ck_assert_double_eq_tol(part[0][0], (part[1][0] + part[1][1] + part[1][2] + part[1][3]) / 4,
                            1e-9);
    ck_assert_double_eq(part[0][1], part[1][4]);
}
END_TEST

/* ---- when and how much is saved -------------------------------------------------------------- */

START_TEST(a_strategy_says_when) {
    ck_toy(0, "--max_steps 12 --save_strategy epoch --save_total_limit 0 --output %s", at("epoch"));
    ck_assert_int_eq(count_entries("epoch", "checkpoint-"), 3);
    ck_assert(exists("epoch/checkpoint-5") && exists("epoch/checkpoint-10") &&
              exists("epoch/checkpoint-12"));
    ck_toy(0, "--max_steps 12 --save_strategy no --output %s", at("no"));
    ck_assert_int_eq(count_entries("no", "checkpoint-"), 0);
    ck_assert(exists("no/model.safetensors"));
    ck_toy(130, "--max_steps 12 --save_strategy no --signal_at 7 --output %s", at("stopped"));
    ck_assert(exists("stopped/checkpoint-7/state.safetensors"));
    ck_toy(0, "--max_steps 12 --save_strategy no --resume --output %s", at("stopped"));
    assert_same_file("no/model.safetensors", "stopped/model.safetensors");
    ck_toy(0,
           "--max_steps 8 --save_strategy best --eval_steps 2 --save_total_limit 0 "
           "--losses 9,5,6,4,7 --output %s",
           at("best"));
    ck_assert_int_eq(count_entries("best", "checkpoint-"), 2);
    ck_assert(exists("best/checkpoint-2") && exists("best/checkpoint-6"));
    ck_toy(0, "--max_steps 2 --save_strategy no");  // what happens anyway
}
END_TEST

START_TEST(flags_without_effect_are_refused) {
    const struct {
        const char *flags, *says;
    } row[] = {
        {"--save_strategy epoch", "--save_strategy epoch has no effect without --output"},
        {"--load_best_model_at_end", "--load_best_model_at_end has no effect without --output"},
        {"--save_only_model", "--save_only_model has no effect without --output"},
        {"--early_stopping_threshold 1", "no effect without --early_stopping_patience"},
        {"--output o --save_strategy no --load_best_model_at_end", "needs OUTPUT/best"},
        {"--output o --save_only_model --keep_moments", "are both given"},
        {"--output o --save_strategy never", "no|steps|epoch|best"},
        {"--metric_for_best_model eval_accuracy", "eval_loss|loss"},
    };
    for (int i = 0; i < COUNT(row); i++) {
        ck_toy(2, "%s", row[i].flags);
        assert_said(row[i].says);
    }
    ck_toy(0, "--max_steps 1 --save_strategy epoch --save_steps 5 --output %s", at("both"));
    assert_said("note: --save_steps 5 has no effect with --save_strategy epoch");
    ck_toy(0, "--max_steps 1 --metric_for_best_model loss --greater_is_better False");
}
END_TEST

static bool has_moments(const char *name) {
    Error e;
    SafeTensors *st = st_open(at(name), &e);
    if (!st) ck_abort_msg("%s", e.text);
    const bool has = st_find(st, "m.wte.weight") && st_find(st, "v.wte.weight");
    ck_assert_int_eq(has, st_count(st) > 0);
    st_close(st);
    return has;
}

START_TEST(a_run_that_has_ended_keeps_no_moments) {
    ck_toy(77, RUN "--no_keep_moments --die_at 6 --output %s", at("out"));
    ck_assert(has_moments("out/checkpoint-4/state.safetensors"));
    ck_toy(0, RUN "--no_keep_moments --resume --output %s", at("out"));
    for (int step = 2; step <= 6; step += 2) {
        char name[64];
        snprintf(name, sizeof name, "out/checkpoint-%d/state.safetensors", step);
        ck_assert(!has_moments(name));
    }
    ck_toy(0, RUN "--no_keep_moments --resume --output %s", at("out"));  // no step follows
    ck_toy(2, RUN "--resume %s --output %s", at("out/checkpoint-4"), at("on"));
    assert_said("the model of step 4 without AdamW's moments, because the run has ended");
    ck_toy(2, RUN "--max_steps 9 --resume --output %s", at("out"));
    assert_said("--max_steps is \"9\" now and \"6\" in the checkpoint");
    ck_toy(0, RUN "--keep_moments --output %s", at("kept"));
    ck_assert(has_moments("kept/checkpoint-4/state.safetensors"));
    ck_assert(has_moments("kept/checkpoint-6/state.safetensors"));
    assert_same_file("out/model.safetensors", "kept/model.safetensors");
    ck_assert_int_eq(count_entries("out/checkpoint-4", ".posttrain-"), 0);
    // a second model is as complete without them
    ck_toy(0, RUN "--no_keep_moments --second --output %s", at("two"));
    ck_assert(!has_moments("two/checkpoint-6/state.safetensors"));
    ck_assert_int_eq(unlink(at("two/checkpoint-6/judge/model.safetensors")), 0);
    ck_toy(0, RUN "--no_keep_moments --second --resume --output %s", at("two"));
    assert_said("checkpoint-6 is incomplete and is skipped");
    assert_said("this run has ended, and its result is in ");
}
END_TEST

/* With --save_strategy best the newest checkpoint may be older than the end. */
START_TEST(a_run_that_has_ended_is_not_resumed_from_its_best_step) {
#define KEEPS_BEST RUN "--save_strategy best --losses 9,3,5,4 --no_keep_moments --output %s "
    ck_toy(0, KEEPS_BEST, at("out"));
    ck_assert(!exists("out/checkpoint-6"));
    Str log = bytes_of("out/log.jsonl");
    ck_toy(0, KEEPS_BEST "--resume", at("out"));
    assert_said("this run has ended, and its result is in ");
    Str after = bytes_of("out/log.jsonl");
    ck_assert_str_eq(log.s, after.s);
    free(log.s);
    free(after.s);
    ck_toy(2, KEEPS_BEST "--resume %s", at("on"), at("out/checkpoint-2"));
    assert_said("without AdamW's moments");
    // a run that was killed continues
    ck_toy(77, KEEPS_BEST "--die_at 5", at("killed"));
    ck_toy(0, KEEPS_BEST "--resume", at("killed"));
    assert_same_file("out/model.safetensors", "killed/model.safetensors");
}
END_TEST

/* What is said of a file that does not fit is true. */
START_TEST(a_best_model_that_does_not_fit_is_named) {
    ck_toy(1, RUN "--save_steps 6 --logging_steps 9 --losses 9,3,5,4 --full_at 2 --output %s",
           at("out"));
    assert_said("best is not written: cannot write ");
    assert_said(
        "model.safetensors: File too large; there is no checkpoint yet: raise the limit on the "
        "size of a file (ulimit -f), and start anew with --overwrite_output_dir");
    ck_toy(1, RUN "--save_steps 3 --logging_steps 9 --losses 9,3,2,1 --full_at 4 --output %s",
           at("second"));
    assert_said(
        "model.safetensors: File too large; the old file is unchanged; checkpoint-3 is "
        "complete: raise the limit on the size of a file (ulimit -f), and use --resume");
}
END_TEST

START_TEST(only_the_model_is_saved_where_asked) {
    ck_toy(77, RUN "--save_only_model --die_at 5 --output %s", at("out"));
    ck_assert(!has_moments("out/checkpoint-4/state.safetensors"));
    ck_toy(2, RUN "--save_only_model --resume --output %s", at("out"));
    assert_said("the model of step 4 without AdamW's moments");
    assert_said("or had --save_only_model");
    assert_said("checkpoint-4, with another --output");
    ck_toy(130, RUN "--save_only_model --signal_at 3 --output %s", at("stopped"));
    assert_said("cannot be resumed");
    assert_not_said("--resume continues");
    ck_toy(0, RUN "--model %s --output %s", at("out/checkpoint-4"), at("on"));
}
END_TEST

/* ---- run.json -------------------------------------------------------------------------------- */

static json_t *read_run(const char *name) {
    json_error_t error;
    json_t *json = json_load_file(at(name), 0, &error);
    ck_assert_msg(json != NULL, "%s: %s", name, error.text);
    return json;
}

static const char *text_at(json_t *json, const char *a, const char *b) {
    const char *text = json_string_value(json_object_get(json_object_get(json, a), b));
    ck_assert_msg(text != NULL, "%s.%s is no text", a, b);
    return text;
}

static double number_at(json_t *json, const char *a, const char *b) {
    json_t *number = json_object_get(json_object_get(json, a), b);
    ck_assert_msg(json_is_number(number), "%s.%s is no number", a, b);
    return json_number_value(number);
}

START_TEST(run_json_says_how_the_model_was_made) {
    ck_toy(0, RUN "--losses 9,5,3,4 --template a\"b --output %s", at("out"));
    json_t *run = read_run("out/run.json");
    ck_assert_str_eq(json_string_value(json_object_get(run, "program")), "toy");
    ck_assert_ptr_nonnull(json_string_value(json_object_get(run, "version")));
    json_t *command = json_object_get(run, "command");
    ck_assert_str_eq(json_string_value(json_array_get(command, 0)), "toy");
    ck_assert_str_eq(json_string_value(json_array_get(command, 1)), "--max_steps");
    ck_assert_str_eq(json_string_value(json_array_get(command, 2)), "6");
    ck_assert_str_eq(text_at(run, "flags", "template"), "a\"b");
    ck_assert_str_eq(text_at(run, "flags", "lr_scheduler_type"), "linear");  // a default
    ck_assert_double_eq(number_at(run, "flags", "learning_rate"), 0.001);
    ck_assert(json_is_false(json_object_get(json_object_get(run, "flags"), "bf16")));
    ck_assert(json_is_null(json_object_get(json_object_get(run, "flags"), "eval")));
    // FNV-1a of "foobar", from its authors' test vectors
    ck_assert_str_eq(text_at(run, "inputs", "data"), "6 bytes, hash 85944171f73967e8");
    ck_assert_int_eq(strncmp(text_at(run, "inputs", "tokenizer"), "257 tokens, hash ", 17), 0);
    ck_assert_int_eq(strncmp(text_at(run, "models", "model"), "hash ", 5), 0);
    ck_assert_ptr_nonnull(json_string_value(json_object_get(run, "device")));
    ck_assert_double_eq(number_at(run, "before", "eval_loss"), 9);
    ck_assert_double_eq(number_at(run, "after", "eval_loss"), 4);
    ck_assert_double_eq(number_at(run, "best", "step"), 4);
    ck_assert(json_is_false(json_object_get(json_object_get(run, "best"), "is_result")));
    ck_assert_int_eq(count_entries("out", ".posttrain-"), 0);
    // a resumed run says the same of what it began with
    ck_toy(77, RUN "--losses 9,5,3,4 --template a\"b --die_at 5 --output %s", at("killed"));
    ck_assert(!exists("killed/run.json"));
    ck_toy(0, RUN "--losses 9,5,3,4 --template a\"b --resume --output %s", at("killed"));
    json_t *resumed = read_run("killed/run.json");
    static const char *const same[] = {"inputs", "models", "before", "after", "best", "steps"};
    for (int i = 0; i < COUNT(same); i++)
        ck_assert_msg(json_equal(json_object_get(run, same[i]), json_object_get(resumed, same[i])),
                      "%s", same[i]);
    json_decref(run);
    json_decref(resumed);
}
END_TEST

static void assert_after(const char *name, double step, double loss) {
    char path[64];
    snprintf(path, sizeof path, "%s/run.json", name);
    json_t *run = read_run(path);
    ck_assert_double_eq(number_at(run, "after", "step"), step);
    ck_assert_double_eq(number_at(run, "after", "eval_loss"), loss);
    json_decref(run);
}

START_TEST(run_json_has_the_figures_of_the_result) {
    ck_toy(0, BEST, at("best"));
    assert_after("best", 4, 3);
    ck_toy(77, BEST "--die_at 6", at("killed"));
    ck_toy(0, BEST "--resume", at("killed"));
    assert_after("killed", 4, 3);
    ck_toy(0, RUN "--losses 9,5,3,4 --output %s", at("last"));
    assert_after("last", 6, 4);
    ck_toy(0, "--max_steps 0 --losses 9 --output %s", at("only"));
    assert_after("only", 0, 9);
    ck_toy(0, RUN "--output %s", at("none"));  // nothing is held out
    json_t *run = read_run("none/run.json");
    ck_assert(json_is_null(json_object_get(run, "after")));
    json_decref(run);
}
END_TEST

START_TEST(run_json_is_part_of_a_result) {
    ck_toy(0, RUN "--output %s", at("out"));
    ck_toy(0, RUN "--model %s --output %s", at("out"), at("second"));  // it is no model's file
    ck_assert(exists("second/run.json"));
    // alone it is something to lose
    ck_assert_int_eq(mkdir(at("alone"), 0777), 0);
    write_text("alone/run.json", "{}\n");
    ck_toy(2, RUN "--output %s", at("alone"));
    assert_said("already holds run.json");
    // it is not written over what the run reads
    ck_toy(2, RUN "--data %s --overwrite_output_dir --output %s", at("alone/run.json"),
           at("alone"));
    assert_said("the run writes there itself");
    // it goes with the result that it describes
    ck_toy(77, RUN "--die_at 3 --overwrite_output_dir --output %s", at("out"));
    ck_assert(!exists("out/run.json") && !exists("out/model.safetensors"));
}
END_TEST

int main(void) {
    Suite *suite = suite_create("best");
    const TTest *const best[] = {the_best_model_is_kept_and_named,
                                 nothing_is_said_where_the_last_is_the_best,
                                 an_end_worse_than_the_beginning_is_named,
                                 the_best_model_is_the_result_where_asked,
                                 the_best_model_comes_along,
                                 a_best_model_newer_than_the_checkpoint_comes_again,
                                 patience_ends_a_run,
                                 a_run_that_stopped_early_is_resumed_to_the_same};
    const TTest *const before[] = {the_log_begins_before_training,
                                   a_short_last_line_is_a_mean_of_its_own};
    const TTest *const saved[] = {a_strategy_says_when,
                                  flags_without_effect_are_refused,
                                  a_run_that_has_ended_keeps_no_moments,
                                  a_run_that_has_ended_is_not_resumed_from_its_best_step,
                                  a_best_model_that_does_not_fit_is_named,
                                  only_the_model_is_saved_where_asked};
    const TTest *const made[] = {run_json_says_how_the_model_was_made,
                                 run_json_has_the_figures_of_the_result,
                                 run_json_is_part_of_a_result};
    add_tests(suite, "best", make_toy, best, COUNT(best));
    add_tests(suite, "before", make_toy, before, COUNT(before));
    add_tests(suite, "saved", make_toy, saved, COUNT(saved));
    add_tests(suite, "made", make_toy, made, COUNT(made));
    return finish_suite(suite);
}
