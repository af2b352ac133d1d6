/*
 * check_checkpoint.c - checkpoints: what they hold, their rotation, runs that are interrupted and
 * resumed to the same bits, what is refused, and outputs that must not be lost.
 *
 * All of it runs the stage in toy.h, each time as a process of its own.
 */
#define _GNU_SOURCE  // defines: memmem

#include "run/run.c"  // for a look inside

#include "files/safetensors.h"
#include "program.h"
#include "toy.h"

#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/time.h>

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
    assert_metadata(state, "format_version", "7");
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
    ck_assert_int_eq(count_entries("deep/er/out", ".posttrain-"), 0);
    ck_assert_int_eq(count_entries("deep/er/out", ".posttrain-old-"), 0);
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

/* OUTPUT belongs to one run, so what another has left there is of a run that has ended, whichever
   process has its number now. A file of a flag may be in work by a process that has no OUTPUT. */
START_TEST(test_unfinished_is_removed) {
    const long dead = dead_process(), alive = getpid();
    char name[8][64];
    ck_assert_int_eq(mkdir(at("out"), 0777), 0);
    snprintf(name[0], 64, "out/checkpoint-5.posttrain-%ld", dead);
    snprintf(name[1], 64, "out/model.safetensors.posttrain-%ld", dead);
    snprintf(name[2], 64, "out/checkpoint-6.posttrain-%ld", alive);
    snprintf(name[3], 64, "out/log.jsonl.posttrain-%ld", alive);
    snprintf(name[6], 64, "out/scores.posttrain-%ld", dead);
    snprintf(name[7], 64, "out/scores.posttrain-%ld", alive);
    ck_assert_int_eq(mkdir(at(name[0]), 0777), 0);
    ck_assert_int_eq(mkdir(at(name[2]), 0777), 0);
    write_text(name[1], "half");
    write_text(name[3], "half");
    write_text(name[6], "half");
    write_text(name[7], "half");
    char inside[128];
    snprintf(inside, sizeof inside, "%s/model.safetensors", name[0]);
    write_text(inside, "half");
    write_text("out/log.jsonl", "{\"step\": 99}\n");  // of a run that never came to a checkpoint:
                                                      // it does not stop a new one
    ck_toy(0, "--max_steps 2 --save_steps 1 --output %s", at("out"));
    ck_assert(!exists(name[0]) && !exists(name[1]) && !exists(name[2]) && !exists(name[3]));
    ck_assert(!exists(name[6]));  // its writer is gone
    ck_assert(exists(name[7]));   // its writer is not
    Str log = bytes_of("out/log.jsonl");
    ck_assert_ptr_null(strstr(log.s, "99"));
    free(log.s);
    // killed while one checkpoint replaced another: before the new one had its name, and before the
    // old one was removed
    snprintf(name[4], 64, "out/checkpoint-2.posttrain-old-%ld", alive);
    ck_assert_int_eq(rename(at("out/checkpoint-2"), at(name[4])), 0);
    ck_toy(2, "--max_steps 1 --output %s --resume",
           at("out"));  // other steps: refused, and the checkpoint has its name again
    ck_assert(!exists(name[4]) && exists("out/checkpoint-2/state.safetensors"));
    ck_assert_int_eq(mkdir(at(name[4]), 0777), 0);
    snprintf(inside, sizeof inside, "%s/state.safetensors", name[4]);
    write_text(inside, "older");
    ck_toy(0, "--max_steps 2 --output %s --resume", at("out"));
    ck_assert(!exists(name[4]) && exists("out/checkpoint-2/model.safetensors"));
    snprintf(name[4], 64, "other/stuff.posttrain-%ld", dead);
    snprintf(name[5], 64, "other/checkpoint-7.posttrain-%ldx", dead);
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
    for (int i = 0; i < COUNT(names); i++) {
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
    assert_said("resuming ");
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
    ck_toy(77, TRAIN " --die_at 6 --save_total_limit 1 --output %s", at("out"));
    ck_assert_int_eq(rename(at("base"), at("base-is-gone")), 0);
    ck_toy(0, TRAIN " --resume --save_total_limit 1 --output %s", at("out"));
    ck_assert(!exists("out/checkpoint-5"));
    assert_same_file("out/merges.txt", "base-is-gone/merges.txt");
    assert_same_file("out/vocab.json", "base-is-gone/vocab.json");
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

/* A signal before the first step: the run promises that --resume continues, so there is a
 * checkpoint-0. */
/* There is nothing to save yet: the signal ends the program at once. */
START_TEST(test_signal_before_the_first_step) {
    ck_toy(0, TRAIN " --output %s", at("whole"));
    ck_toy(-SIGINT, TRAIN " --signal_at 0 --output %s", at("out"));
    assert_not_said("will save");
    ck_assert(!exists("out"));
    ck_toy(0, TRAIN " --output %s", at("out"));
    assert_same_file("whole/model.safetensors", "out/model.safetensors");
    assert_same_file("whole/log.jsonl", "out/log.jsonl");
}
END_TEST

START_TEST(test_other_signals) {
    ck_toy(128 + SIGTERM, TRAIN " --signal_at 3 --terminate --output %s", at("out"));
    ck_assert(exists("out/checkpoint-3"));
    // in the last step: its evaluation is left out, and made by the resumed run
    ck_toy(130, TRAIN " --signal_at 23 --output %s", at("last"));
    ck_assert(exists("last/checkpoint-23") && !exists("last/model.safetensors"));
    ck_toy(0, TRAIN " --resume --output %s", at("last"));
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
        {"--learning_rate 2e-3",
         {"--learning_rate is \"0.002\" now and \"0.001\" in the checkpoint"}},
        {"--seed 43", {"--seed is \"43\" now and \"42\" in the checkpoint"}},
        {"--per_device_train_batch_size 4",
         {"--per_device_train_batch_size is \"4\" now and \"2\" in the checkpoint"}},
        {"--max_steps 24", {"--max_steps is \"24\" now and \"23\" in the checkpoint"}},
        {"--lr_scheduler_type linear", {"\"linear\" now and \"cosine\" in the checkpoint"}},
        {"--template x", {"--template is \"x\" now and \"\" in the checkpoint"}},
        {"--examples 17", {"the number of examples is \"17\" now and \"18\" in the checkpoint"}},
        {"--overwrite_output_dir", {"--overwrite_output_dir"}},
    };
    for (int i = 0; i < COUNT(row); i++) {
        ck_toy(2, TRAIN " --resume --output %s %s", at("out"), row[i].flags);
        assert_said(row[i].says[0]);
    }
    write_text("data.jsonl", "foobaz");
    ck_toy(2, TRAIN " --resume --output %s", at("out"));
    assert_said("the content of --data is \"6 bytes, hash ");
    assert_said("\"6 bytes, hash 85944171f73967e8\" in the checkpoint");
    write_text("data.jsonl", "foobar");
    char words[256];
    snprintf(words, sizeof words, TRAIN " --resume --output %s", at("out"));
    ck_assert_int_eq(run_process(toy_main, "other", words), 2);
    assert_said("the program is \"other\" now and \"toy\" in the checkpoint");

    ck_toy(2, TRAIN " --resume --output %s", at("nowhere"));
    assert_said("no checkpoint in");
    ck_assert(!exists("nowhere"));
    ck_toy(2, TRAIN " --resume");
    assert_said("needs an --output");
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
    snprintf(name, sizeof name, "out/checkpoint-20.posttrain-%ld",
             dead_process());  // killed while it was written
    ck_assert_int_eq(mkdir(at(name), 0777), 0);
    ck_toy(2, TRAIN " --resume %s --output %s", at("out/checkpoint-15"),
           at("out"));  // asked for by name: refused
    ck_toy(0, TRAIN " --resume --output %s", at("out"));
    assert_said("checkpoint-15 is incomplete and is skipped");
    assert_said("checkpoint-10 is incomplete and is skipped");
    assert_said("checkpoint-5 at step 5 of 23");
    ck_assert(!exists(name));
    assert_same_run("whole", "out");  // and the broken ones were written again, whole
    ck_toy(77, TRAIN " --die_at 6 --output %s", at("only"));
    truncate_to("only/checkpoint-5/state.safetensors", 100);
    ck_toy(2, TRAIN " --resume --output %s", at("only"));
    assert_said("no checkpoint in");
    assert_said("is complete");
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
        {"\"format_version\":\"7\"", "\"format_version\":\"6\"", "format"},
        {"m.wte.weight", "m.wta.weight", "m.wte.weight"},
        {"\"flag.seed\"", "\"flag.seek\"", "--seed is \"42\" now and missing in the checkpoint"},
        {"\"figures\":\"last loss", "\"figures\":\"lost loss", "its figures are \"lost loss"},
        {"\"figures\":\"last", "\"figured\":\"last", "its figures are \"\""},
        {";last best ", ";last loss ", "its figures are \"last loss"},
    };
    ck_toy(77, TRAIN " --die_at 12 --output %s", at("out"));
    Str good = bytes_of("out/checkpoint-10/state.safetensors");
    for (int i = 0; i < COUNT(row); i++) {
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

/* A bit of the state that turned, wherever it is: in the length, the metadata, the shapes, the
   blanks, the moments. */
START_TEST(test_a_turned_bit_is_found) {
    ck_toy(77, TRAIN " --die_at 12 --output %s", at("out"));
    ck_assert_int_eq(shell("rm -r %s/out/checkpoint-5", directory), 0);
    Str good = bytes_of("out/checkpoint-10/state.safetensors");
    uint64_t header;
    memcpy(&header, good.s, sizeof header);
    enum { TIMES = 40 };
    for (size_t i = 0; i < TIMES; i++) {
        const size_t within = i < 30 ? 8 + (size_t)header : good.n;
        const uint32_t draw = random4(1, RANDOM_DATA, 0, 0, (uint32_t)i, 0).v[0];
        const size_t byte = i < 2    ? i
                            : i == 2 ? 7 + (size_t)header
                            : i == 3 ? good.n - 1
                                     : draw % within;
        good.s[byte] = (char)(good.s[byte] ^ 1 << i % 8);
        FILE *f = fopen(at("out/checkpoint-10/state.safetensors"), "wb");
        fwrite(good.s, 1, good.n, f);
        fclose(f);
        good.s[byte] = (char)(good.s[byte] ^ 1 << i % 8);
        const int status = toy(TRAIN " --resume --output %s", at("out"));
        ck_assert_msg(status == 2, "bit %zu of byte %zu: status %d\n%s", i % 8, byte, status,
                      said.s);
    }
    free(good.s);
}
END_TEST

/* Lines of later steps are removed, and a line that a killed process left half written. The lines
 * before them stay as they are. */
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

/* Are all files of older/ in out/, with their bytes? */
static bool older_is_whole(void) {
    return !shell(
        "cd %s && for f in $(cd older && find . -type f); do cmp older/$f out/$f || "
        "exit 1; done",
        directory);
}

/* Makes out/ a copy of older/. */
static void copy_older(void) {
    ck_assert_int_eq(shell("cd %s && rm -rf out && cp -r older out", directory), 0);
}

#define OVER TRAIN " --seed 5 --overwrite_output_dir --output %s "

/* With --overwrite_output_dir an older result stays while nothing of the new run is whole, whether
   that is first a checkpoint, best/ or the result. Then nothing of it is left. */
START_TEST(test_an_older_result_stays_until_the_new_is_whole) {
    static const char *const whole[] = {
        "--save_steps 1", "--save_steps 0 --eval_steps 1 --losses 9,5,6", "--save_strategy no"};
    static const char *const ends[] = {"--full_at 1", "--full_at 1", "--full_at 22"};
    ck_toy(0, TRAIN " --eval_steps 20 --losses 9,5,3 --output %s", at("older"));
    write_text("older/transcripts.jsonl", "older\n");
    for (int i = 0; i < 3; i++) {
        copy_older();
        ck_toy(1, OVER "%s %s", at("out"), whole[i], ends[i]);
        assert_said("there is no checkpoint yet, and the older result is unchanged");
        ck_assert(older_is_whole());
        ck_toy(77, OVER "%s --die_at 1", at("out"), whole[i]);
        ck_assert(older_is_whole());
        ck_toy(0, TRAIN " --seed 5 --output %s %s", at("new"), whole[i]);
        ck_toy(0, OVER "%s", at("out"), whole[i]);
        ck_assert_int_eq(
            shell("cd %s && diff -r -x run.json new out && cmp new/run.json out/run.json | grep -q "
                  "differ && rm -rf new",
                  directory),
            0);
    }
    // a killed run has written lines of its log, and the best model of another run comes along
    copy_older();
    ck_toy(77, OVER "--save_steps 9 --die_at 4", at("out"));
    ck_assert(older_is_whole());
    ck_toy(77, TRAIN " --seed 5 --eval_steps 2 --losses 9,5,6 --die_at 7 --output %s", at("new"));
    ck_toy(77, OVER "--eval_steps 2 --losses 9,7 --resume %s --die_at 6", at("out"),
           at("new/checkpoint-5"));
    ck_assert(older_is_whole());
    ck_toy(77, OVER "--eval_steps 2 --losses 9,7 --resume %s --die_at 7", at("out"),
           at("new/checkpoint-5"));
    ck_assert_int_eq(shell("cd %s && diff -r new/best out/best && [ \"$(ls out | tr '\\n' ' ')\" = "
                           "'best log.jsonl ' ]",
                           directory),
                     0);
}
END_TEST

/* A run was killed when its first checkpoint took the place of an older result, before or after the
   config of that was removed. */
START_TEST(test_the_change_of_a_killed_run_is_completed) {
    const long writer[] = {dead_process(), getpid()};  // another program has its number, too
    ck_toy(0, TRAIN " --output %s", at("older"));
    ck_toy(0, TRAIN " --seed 5 --output %s", at("whole"));
    for (int i = 0; i < 2; i++) {
        copy_older();
        ck_toy(77, TRAIN " --seed 5 --die_at 7 --output %s", at("new"));
        ck_assert_int_eq(
            shell("cd %s && mv new/checkpoint-5 out/checkpoint-5.posttrain-new-%ld && mv "
                  "new/log.jsonl out/log.jsonl.posttrain-%ld && rmdir new && rm out/%s",
                  directory, writer[i], writer[i], i ? "config.json" : "log.jsonl"),
            0);
        ck_toy(0, TRAIN " --seed 5 --resume --output %s", at("out"));
        assert_said("checkpoint-5 at step 5 of 23");
        ck_assert_int_eq(shell("cd %s && diff -r -x run.json whole out", directory), 0);
    }
}
END_TEST

static int held;
static void let_go(int number) {
    (void)number;
    close(held);
}

/* A process that was killed has its lock for a moment after its parent knows of it. */
START_TEST(test_a_lock_that_goes_soon_is_waited_for) {
    Error e;
    const struct itimerval soon = {.it_value = {.tv_usec = 100000}};
    ck_assert_int_eq(mkdir(at("out"), 0777), 0);
    held = open(at("out"), O_RDONLY | O_DIRECTORY);
    ck_assert_int_eq(flock(held, LOCK_EX), 0);
    ck_assert_int_eq(lock_directory("output", at("out"), &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "belongs to a run that has not ended"));
    signal(SIGALRM, let_go);
    ck_assert_int_eq(setitimer(ITIMER_REAL, &soon, NULL), 0);
    if (lock_directory("output", at("out"), &e)) ck_abort_msg("%s", e.text);
    lock_release();
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
    int from;
    const pid_t child = start(&from);
    if (!child) {  // the superuser may write anywhere, so be somebody else
        if (geteuid() == 0 && setuid(65534)) _exit(99);
        // the change of user took away what the leak checker needs
        prctl(PR_SET_DUMPABLE, 1);
        Words w;
        char words[256];
        snprintf(words, sizeof words, "--output %s", at("closed"));
        split_words(&w, "toy", words);
        exit(toy_main("toy", w.argc, w.argv));
    }
    const int status = hear_child(child, from);
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
    ck_assert_int_eq(count_entries("out", ".posttrain-"), 0);
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
    ck_assert_int_eq(count_entries("out", ".posttrain-old-"), 0);
    ck_toy(77, TRAIN " --die_at 6 --output %s", at("mixed"));
    ck_assert_int_eq(mkdir(at("mixed/checkpoint-10"), 0777), 0);
    write_text("mixed/checkpoint-10/pytorch_model.bin", "another program's");
    ck_toy(0, TRAIN " --resume --output %s", at("mixed"));
    ck_assert_int_eq(count_entries("mixed", "checkpoint-10.posttrain-old-"),
                     1);  // set aside, not lost
    assert_said("note: the former ");
    free(before.s);
    free(after.s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("checkpoint");
    const TTest *const written[] = {test_checkpoint_holds, test_rotation,
                                    test_rotation_spares_others, test_unfinished_is_removed};
    const TTest *const resumed[] = {test_resume_gives_the_same_bits,
                                    test_resume_outlives_its_checkpoint,
                                    test_a_second_model_is_saved_and_resumed,
                                    test_second_signal_ends_at_once,
                                    test_signal_before_the_first_step,
                                    test_other_signals,
                                    test_resume_refusals,
                                    test_broken_checkpoint_is_passed_over,
                                    test_hostile_state,
                                    test_a_turned_bit_is_found,
                                    test_log_is_cut};
    const TTest *const outputs[] = {test_output_is_not_overwritten,
                                    test_an_older_result_stays_until_the_new_is_whole,
                                    test_the_change_of_a_killed_run_is_completed,
                                    test_a_lock_that_goes_soon_is_waited_for,
                                    test_output_cannot_be_written,
                                    test_full_disk,
                                    test_checkpoint_is_replaced};
    add_tests(suite, "written", make_toy, written, COUNT(written));
    add_tests(suite, "resumed", make_toy, resumed, COUNT(resumed));
    add_tests(suite, "outputs", make_toy, outputs, COUNT(outputs));
    return finish_suite(suite);
}
