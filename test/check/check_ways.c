/*
 * check_ways.c - whole programs write the same files, to the bit, in every way of computing that a
 * CPU has (common/model/simd.h), with float32 and with --bf16: models of 20 steps, and logs.
 */
#include "model/kernels.h"
#include "util.h"

#undef fail  // check.h has a macro of this name
#include "program.h"

#include <unistd.h>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
#define TINY "test/tiny"
#define STEPS                                            \
    "--max_steps 20 --logging_steps 1 --warmup_steps 5 " \
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 "

static const char *const runs[] = {
    "sft " STEPS "--model " TINY "/chat --data " TINY "/sft.jsonl --eval " TINY
    "/sft-eval.jsonl --eval_samples 2 --max_length 64 --dropout 0.1",
    "full_ft " STEPS "--model " TINY " --data " TINY "/domain.jsonl --max_length 64",
    "lora " STEPS "--model " TINY "/chat --data " TINY "/sft.jsonl --max_length 64",
    "lora " STEPS "--model " TINY "/chat --data " TINY "/sft.jsonl --max_length 64 --load_in_4bit",
    "adapter " STEPS "--model " TINY "/chat --data " TINY "/sft.jsonl --max_length 64",
    "reward " STEPS "--model " TINY "/chat --data " TINY "/preferences.jsonl",
    "ppo --max_steps 20 --logging_steps 1 --model " TINY "/chat --reward_model " TINY
    "/reward --data " TINY "/prompts.jsonl --batch_size 4 --num_ppo_epochs 2 --response_length 12",
    "constitutional " STEPS "--model " TINY "/chat --prompts " TINY
    "/prompts.jsonl --max_iterations 1 --max_new_tokens 12 --constitution " TINY
    "/constitution.json",
};

static char directory[] = "/tmp/check_ways.XXXXXX";

/* The exit status of a run whose files go to directory/way. */
static int run(const char *command, const char *way, const char *precision) {
    return shell(
        "%s/%s --cpu %s %s --output %s/%s >%s/text 2>&1 || { s=$?; cat %s/text; exit $s; }",
        build(), command, way, precision, directory, way, directory, directory);
}

static void compare(const char *command, const char *precision) {
    static const char *const others[] = {"avx512", "avx512bf16"};
    ck_assert_int_eq(run(command, "avx2", precision), 0);
    for (int i = 0; i < LENGTH(others); i++) {
        if (device_choose(others[i], NULL)) continue;  // the machine lacks it
        ck_assert_int_eq(run(command, others[i], precision), 0);
        ck_assert_msg(!shell("diff -r -x run.json %s/avx2 %s/%s", directory, directory, others[i]),
                      "%s %s: avx2 and %s differ", command, precision, others[i]);
    }
    // what was compared is a trained model, and the log of all 20 steps
    ck_assert_msg(!shell("cd %s/avx2 && ls *.safetensors && grep -q '\"step\": 20,' log.jsonl && "
                         "! cmp -s model.safetensors \"$OLDPWD/" TINY "/model.safetensors\" && "
                         "! cmp -s model.safetensors \"$OLDPWD/" TINY "/chat/model.safetensors\"",
                         directory),
                  "%s %s: no model of 20 steps", command, precision);
    shell("rm -rf %s/*", directory);
}

START_TEST(every_program_in_float32) { compare(runs[_i], ""); }
END_TEST

START_TEST(every_program_in_bf16) { compare(runs[_i], "--bf16"); }
END_TEST

START_TEST(flags_of_the_machine) {
    ck_assert_int_eq(shell("%s/sft --cpu avx1024 >/dev/null 2>%s/text", build(), directory), 2);
    ck_assert_int_eq(shell("grep -q 'no way to compute' %s/text", directory), 0);
    ck_assert_int_eq(shell("%s/sft --fp16 >/dev/null 2>%s/text", build(), directory), 2);
    ck_assert_int_eq(shell("grep -q 'use --bf16' %s/text", directory), 0);
    ck_assert_int_eq(shell("%s/sft --max_steps 0 --eval_samples 1 --cpu avx2 --bf16 "
                           "| grep -q '^machine: CPU, .*AVX2, products in bf16$'",
                           build()),
                     0);
}
END_TEST

int main(void) {
    if (!mkdtemp(directory)) die("cannot make %s", directory);
    Suite *s = suite_create("ways");
    TCase *c = tcase_create("ways");
    tcase_set_timeout(c, 600);
    tcase_add_test(c, flags_of_the_machine);
    tcase_add_loop_test(c, every_program_in_float32, 0, LENGTH(runs));
    tcase_add_loop_test(c, every_program_in_bf16, 0, LENGTH(runs));
    suite_add_tcase(s, c);
    const int failed = run_suite(s);
    shell("rm -rf %s", directory);
    return failed != 0;
}
