/*
 * check_data.c - the programs on data as people have it: what they say about a file, and what a
 * judge is given.
 */
#include "run_files.h"

#include "program.h"

/* Writes a file of the directory: the line, `times` times. */
static void write_lines(const char *name, const char *line, int times) {
    FILE *f = fopen(at(name), "w");
    ck_assert(f);
    for (int i = 0; i < times; i++) fprintf(f, "%s\n", line);
    ck_assert_int_eq(fclose(f), 0);
}

/* Runs a program on the small model. flags: as for printf, with the directory for each %s. Its exit
   status; what it prints is in `said`. */
__attribute__((format(printf, 2, 3))) static int program(const char *name, const char *flags, ...) {
    char more[2048];
    va_list list;
    va_start(list, flags);
    vsnprintf(more, sizeof more, flags, list);
    va_end(list);
    const int status =
        shell("%s/%s --model test/tiny %s >%s/said 2>&1", build(), name, more, directory);
    read_said();
    return status;
}

/* ---- files ----------------------------------------------------------------------------------- */

START_TEST(a_file_of_bad_lines_does_not_train) {
    static const char *const commands[][2] = {
        {"sft", "--data %s/bad.jsonl --max_steps 1"},
        {"full_ft", "--data %s/bad.jsonl --max_steps 1"},
        {"lora", "--data %s/bad.jsonl --max_steps 1"},
        {"adapter", "--data %s/bad.jsonl --max_steps 1"},
        {"reward", "--data %s/bad.jsonl --max_steps 1"},
        {"ppo", "--data %s/bad.jsonl --reward_model test/tiny/reward --max_steps 1"},
        {"constitutional", "--prompts %s/bad.jsonl --max_steps 1"},
    };
    ck_assert_int_eq(
        shell("{ echo '{\"prompt\": \"P\", \"completion\": \"C\", \"chosen\": \"a\", \"rejected\": "
              "\"b\"}'; yes '{\"title\": \"t\"}' | head -n 2; } >%s/bad.jsonl",
              directory),
        0);
    for (int i = 0; i < COUNT(commands); i++) {
        ck_assert_int_eq(program(commands[i][0], commands[i][1], directory), 2);
        assert_said("bad.jsonl: 2 of 3 lines cannot be used; the first: ");
        assert_said(
            "bad.jsonl:2:1: the fields are not those of a known kind: found title; expected ");
    }
}
END_TEST

START_TEST(records_that_teach_nothing_do_not_train) {
    ck_assert_int_eq(shell("{ head -n 1 test/tiny/sft.jsonl; yes '{\"text\": \"\"}' | head -n 2; } "
                           ">%s/none.jsonl",
                           directory),
                     0);
    ck_assert_int_eq(program("sft", "--data %s/none.jsonl --max_steps 1", directory), 2);
    assert_said("in 2 of 3 records, which is more than half");
    write_lines("same.jsonl", "{\"prompt\": \"P\", \"chosen\": \"a\", \"rejected\": \"a\"}", 2);
    ck_assert_int_eq(shell("echo '{\"prompt\": \"P\", \"chosen\": \"a\", \"rejected\": \"b\"}' "
                           ">>%s/same.jsonl",
                           directory),
                     0);
    ck_assert_int_eq(program("reward", "--data %s/same.jsonl --max_steps 1", directory), 2);
    assert_said("2 pairs are left out and 1 is kept");
}
END_TEST

START_TEST(fields_that_are_not_used_are_named) {
    write_lines("title.jsonl",
                "{\"text\": \"a b c\", \"summary\": \"a\", \"title\": \"T\", \"chosen\": \"x\", "
                "\"rejected\": \"y\", \"prompt\": \"p\"}",
                3);
    ck_assert_int_eq(program("sft", "--data %s/title.jsonl --dry_run", directory), 0);
    assert_said("title.jsonl: not used: the fields title, chosen, rejected, prompt");
    ck_assert_int_eq(program("reward", "--data %s/title.jsonl --dry_run", directory), 0);
    assert_said("title.jsonl: not used: the fields text, summary, title");
    ck_assert_int_eq(
        program("ppo", "--data %s/title.jsonl --reward_model test/tiny/reward --dry_run",
                directory),
        0);
    assert_said("title.jsonl: not used: the fields ");
    write_lines("empty.jsonl", "{\"instruction\": \"a\", \"output\": \"\", \"id\": \"x\"}", 3);
    ck_assert_int_eq(program("sft", "--data %s/empty.jsonl --dry_run", directory), 0);
    assert_said("empty.jsonl: not used: the field id");
    assert_said("empty.jsonl: 3 of 3 records have an empty response, the first on line 1");
}
END_TEST

/* ---- what is said at the start --------------------------------------------------------------- */

START_TEST(a_warm_up_that_is_too_long_is_said) {
    ck_assert_int_eq(shell("head -n 100 test/tiny/sft.jsonl >%s/few.jsonl", directory), 0);
    ck_assert_int_eq(program("sft", "--data %s/few.jsonl --dry_run", directory), 0);
    assert_said(
        "note: this run has 36 steps and the warm-up (--warmup_steps) takes 100: --learning_rate "
        "5e-05 is not reached, the last step has 1.8e-05");
    ck_assert_int_eq(program("sft", "--data %s/few.jsonl --dry_run --max_steps 1", directory), 0);
    assert_said("note: this run has 1 step and the warm-up (--warmup_steps) takes 100: ");
    ck_assert_int_eq(program("sft", "--data %s/few.jsonl --dry_run --warmup_steps 20", directory),
                     0);
    assert_said("note: the warm-up (--warmup_steps) takes 20 of the 36 steps of this run");
    ck_assert_int_eq(program("sft", "--data %s/few.jsonl --dry_run --warmup_ratio 0.9", directory),
                     0);
    assert_said("note: the warm-up (--warmup_ratio) takes 33 of the 36 steps of this run");
    ck_assert_int_eq(program("sft", "--data %s/few.jsonl --dry_run --warmup_steps 18", directory),
                     0);
    assert_not_said("note: the warm-up");
}
END_TEST

START_TEST(nothing_held_out_is_said) {
    ck_assert_int_eq(shell("head -n 10 test/tiny/sft.jsonl >%s/ten.jsonl", directory), 0);
    ck_assert_int_eq(program("sft", "--data %s/ten.jsonl --dry_run", directory), 0);
    assert_said("note: nothing is held out, so nothing is measured but the training loss");
    ck_assert_int_eq(program("sft",
                             "--data %s/ten.jsonl --eval %s/ten.jsonl --eval_samples 0 "
                             "--dry_run",
                             directory, directory),
                     0);
    assert_said("note: --eval_samples is 0, so no answers are shown");
    assert_not_said("nothing is held out");
    static const char *const without[][2] = {
        {"--eval_steps 5", "--eval_steps has no effect, because nothing is held out"},
        {"--eval_samples 8", "--eval_samples has no effect, because nothing is held out"},
        {"--max_new_tokens 7", "--max_new_tokens has no effect, because no held-out prompt is"},
    };
    for (int i = 0; i < COUNT(without); i++) {
        ck_assert_int_eq(
            program("sft", "--data %s/ten.jsonl --dry_run %s", directory, without[i][0]), 2);
        assert_said(without[i][1]);
    }
    write_lines("plain.jsonl", "{\"text\": \"one two\"}", 3);
    ck_assert_int_eq(
        program("full_ft", "--data %s/plain.jsonl --template '{instruction}'", directory), 2);
    assert_said("--template has no effect, because the records are plain text");
}
END_TEST

/* Flags of training are refused where a program is asked for something else. */
START_TEST(flags_without_effect_are_refused) {
    write_lines("pair.jsonl", "{\"prompt\": \"P\", \"response\": \"a\"}", 1);
    write_lines("choice.jsonl",
                "{\"prompt\": \"P\", \"corrects\": [\"a\"], \"incorrects\": [\"b\"]}", 1);
    static const char *const refused[][3] = {
        {"sft", "--prompt hi --learning_rate 1e-4", "--learning_rate has no effect with --prompt"},
        {"full_ft", "--chat --max_length 64", "--max_length has no effect with --chat"},
        {"ppo", "--prompt hi --kl_coef 0.1", "--kl_coef has no effect with --prompt"},
        {"constitutional", "--prompt hi --max_length 64",
         "--max_length has no effect with --prompt"},
        {"lora", "--prompt hi --adapter none --num_train_epochs 2",
         "--num_train_epochs has no effect with --prompt"},
        {"lora", "--model test/tiny --merge none --adapter mine --weight_decay 0.1",
         "--weight_decay has no effect with --merge"},
        {"adapter", "--prompt hi --adapter none --adam_beta2 0.9",
         "--adam_beta2 has no effect with --prompt"},
        {"reward", "--prompt hi --response a --seed 3", "--seed has no effect with --prompt"},
        {"reward", "--score pair.jsonl --max_steps 3", "--max_steps has no effect with --score"},
        {"constitutional", "--evaluate choice.jsonl --seed 3",
         "--seed has no effect with --evaluate"},
        {"ppo", "--data x --reward_cmd cat --eval_samples 3",
         "--eval_samples has no effect without"},
        {"ppo", "--data x --reward_cmd cat --non_eos_penalty --missing_eos_penalty 2",
         "are both given"},
        {"sft", "--data x --eval x --validation_split_percentage 10", "are both given"},
        {"sft", "--data x --temperature 0.5", "--temperature has no effect without"},
    };
    for (int i = 0; i < COUNT(refused); i++) {
        ck_assert_msg(program(refused[i][0], "%s", refused[i][1]) == 2, "%s %s", refused[i][0],
                      refused[i][1]);
        assert_said(refused[i][2]);
    }
}
END_TEST

START_TEST(a_copied_program_says_what_is_missing) {
    ck_assert_int_eq(shell("cp %s/sft %s/alone && %s/alone >%s/said 2>&1", build(), directory,
                           directory, directory),
                     2);
    read_said();
    assert_said("the built-in example is not there");
    assert_said("to use your own, give --model");
    char tried[1024];  // the directory is one in /tmp
    snprintf(tried, sizeof tried, "none of these exists: %s/test/tiny, /tmp/test/tiny, /test/tiny;",
             directory);
    assert_said(tried);
    ck_assert_int_eq(shell("%s/alone --prompt hi >%s/said 2>&1", directory, directory), 2);
    read_said();
    assert_said("the built-in example is not there");
}
END_TEST

START_TEST(several_files_are_one) {
    ck_assert_int_eq(
        shell("head -n 40 test/tiny/sft.jsonl >%s/all.jsonl && head -n 15 %s/all.jsonl >%s/a.jsonl "
              "&& tail -n 25 %s/all.jsonl >%s/b.jsonl",
              directory, directory, directory, directory, directory),
        0);
    for (int i = 0; i < 2; i++) {
        char files[200];
        if (i)
            snprintf(files, sizeof files, "%s/a.jsonl %s/b.jsonl", directory, directory);
        else
            snprintf(files, sizeof files, "%s/all.jsonl", directory);
        ck_assert_int_eq(program("sft",
                                 "--data %s --max_steps 2 --warmup_steps 0 --eval_samples 0 "
                                 "--output %s/out%d",
                                 files, directory, i),
                         0);
    }
    ck_assert_int_eq(
        shell("cmp %s/out0/model.safetensors %s/out1/model.safetensors", directory, directory), 0);
}
END_TEST

/* ---- judges ---------------------------------------------------------------------------------- */

#define PPO                                                                                \
    "--per_device_train_batch_size 2 --batch_size 2 --response_length 4 --eval_samples 0 " \
    "--max_steps 1 "

START_TEST(a_judge_gets_the_own_answer_of_the_record) {
    write_lines("gsm8k.jsonl", "{\"question\": \"2+2?\", \"answer\": \"2+2=4 #### 4\"}", 4);
    write_lines("bare.jsonl", "{\"prompt\": \"2+2?\"}", 4);
    ck_assert_int_eq(
        program("ppo",
                PPO
                "--data %s/gsm8k.jsonl --reward_cmd 'while read -r x; do printf \"%%s\\n\" \"$x\" "
                ">>%s/lines; echo \"{\\\"score\\\": 1}\"; done'",
                directory, directory),
        0);
    ck_assert_int_eq(shell("test $(grep -c -F '\", \"answer\": \"2+2=4 #### 4\"}' %s/lines) = 2 && "
                           "test $(grep -c -F '{\"prompt\": \"### Instruction:\\n2+2?' %s/lines) = "
                           "2 && rm %s/lines",
                           directory, directory, directory),
                     0);
    ck_assert_int_eq(
        program("ppo",
                PPO
                "--data %s/bare.jsonl --reward_cmd 'while read -r x; do printf \"%%s\\n\" \"$x\" "
                ">>%s/lines; echo \"{\\\"score\\\": 1}\"; done'",
                directory, directory),
        0);
    ck_assert_int_eq(shell("grep -q -F '\"answer\"' %s/lines", directory), 1);
}
END_TEST

/* A judge whose answers wait in a buffer: cat's, until its input ends. */
START_TEST(a_silent_judge_is_told_to_flush) {
    write_lines("bare.jsonl", "{\"prompt\": \"2+2?\"}", 4);
    ck_assert_int_eq(
        program("ppo", PPO "--data %s/bare.jsonl --reward_timeout 1 --reward_cmd 'sort'",
                directory),
        1);
    assert_said("was silent for 1 seconds: 0 of 2 lines are answered");
    assert_said("in Python by print(..., flush=True)");
}
END_TEST

START_TEST(the_judge_of_the_readme_is_that_of_the_help) {
    ck_assert_int_eq(
        shell("%s/ppo --help | sed -n '/import json, sys/,/flush=True/p' >%s/help.py && "
              "sed -n '/import json, sys/,/flush=True/p' README.md >%s/readme.py && "
              "test $(wc -l <%s/help.py) = 6 && cmp %s/help.py %s/readme.py",
              build(), directory, directory, directory, directory, directory),
        0);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {
        a_file_of_bad_lines_does_not_train,         records_that_teach_nothing_do_not_train,
        fields_that_are_not_used_are_named,         several_files_are_one,
        a_warm_up_that_is_too_long_is_said,         nothing_held_out_is_said,
        flags_without_effect_are_refused,           a_copied_program_says_what_is_missing,
        a_judge_gets_the_own_answer_of_the_record,  a_silent_judge_is_told_to_flush,
        the_judge_of_the_readme_is_that_of_the_help};
    const int failed = run_tests("data", make_directory, tests, COUNT(tests));
    if (!failed) shell("rm -r %s", directory);
    return failed != 0;
}
