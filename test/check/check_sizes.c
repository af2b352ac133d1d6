/*
 * check_sizes.c - products of two flags: batches, accumulation, lengths and plans of memory.
 *
 * Two flags that are each within their bounds may together ask for more than an int counts. The
 * program then does what they say, or ends with 2 and a remedy. It never computes with a product
 * that wrapped around.
 */
#include "model/memory.h"
#include "util.h"

#include "program.h"

#undef fail
#include <limits.h>

static char work[64] = "/tmp/check_sizes.XXXXXX";

static void setup(void) {
    ck_assert(mkdtemp(work) != NULL);
    shell("head -20 test/tiny/domain.jsonl >%s/records.jsonl", work);
    shell("head -20 test/tiny/preferences.jsonl >%s/pairs.jsonl", work);
    shell("head -6 test/tiny/prompts.jsonl >%s/prompts.jsonl", work);
}

/* 65536 x 65536 examples are 0 in 32 bits, and 65536 x 32768 a negative number. A step then has all
   examples, as many as there are. */
START_TEST(a_step_may_ask_for_more_examples_than_there_are) {
    static const char *const stage[] = {"sft", "full_ft", "lora", "adapter", "reward"};
    static const int accumulation[] = {65536, 32768};
    for (int i = 0; i < 10; i++) {
        const bool pairs = i / 2 == 4;
        ck_assert_int_eq(
            shell("%s/%s --model test/tiny%s --data %s/%s.jsonl --max_steps 2 --no_dataloader_drop_"
                  "last --per_device_train_batch_size 65536 --gradient_accumulation_steps %d"
                  "%s >%s/out.txt 2>&1",
                  build(), stage[i / 2], pairs ? "/chat" : "", work, pairs ? "pairs" : "records",
                  accumulation[i % 2], pairs ? "" : " --eval_samples 0", work),
            0);
        ck_assert_int_eq(shell("grep -q '^steps: 2 of .*%d batches of 65536' %s/out.txt",
                               accumulation[i % 2], work),
                         0);
    }
}
END_TEST

/* The same steps with a batch that is just large enough give the same model. */
START_TEST(a_batch_larger_than_the_data_is_all_of_it) {
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(shell("%s/sft --model test/tiny --data %s/records.jsonl --max_steps 2 "
                               "--eval_samples 0 --validation_split_percentage 0 --output %s/%d "
                               "--per_device_train_batch_size %d --gradient_accumulation_steps %d "
                               ">/dev/null",
                               build(), work, work, i, i ? 65536 : 20, i ? 65536 : 1),
                         0);
    ck_assert_int_eq(shell("cmp %s/0/model.safetensors %s/1/model.safetensors", work, work), 0);
}
END_TEST

START_TEST(the_largest_flags_can_be_planned) {
    static const char *const flags[] = {
        "ppo --per_device_train_batch_size 65536 --batch_size 1048576 --response_length 200",
        "ppo --batch_size 1048576 --num_generations 1024 --rollout_slots 4096",
        "constitutional --per_device_train_batch_size 65536 --gradient_accumulation_steps 65536",
    };
    for (int i = 0; i < 3; i++)
        ck_assert_msg(!shell("%s/%s --dry_run >%s/out.txt 2>&1", build(), flags[i], work), "%s",
                      flags[i]);
    ck_assert_int_eq(batch_tokens(INT_MAX), INT_MAX);
    ck_assert_int_eq(batch_tokens(0), 0);
}
END_TEST

START_TEST(a_batch_of_too_many_tokens_ends_the_program) { batch_tokens((int64_t)INT_MAX + 1); }
END_TEST

/* A plan is monotonous: a larger batch never needs less. The largest has more bytes than a size_t
   counts, and says so. */
START_TEST(a_plan_of_memory_never_wraps) {
    const GPT2Config c = {.n_positions = 1000000,
                          .vocab_size = 10000000,
                          .n_layer = 1000,
                          .n_head = 65536,
                          .n_embd = 65536,
                          .n_inner = 1000000};
    size_t before = 0;
    for (int64_t tokens = 1; tokens <= INT_MAX; tokens *= 32) {
        const int n = (int)tokens;
        const GPT2Limits limits = {.tokens = n,
                                   .sequences = n,
                                   .scored = n,
                                   .slots = n,
                                   .positions = 1000000,
                                   .train = true};
        const GPT2Memory m = gpt2_memory(&c, &limits);
        ck_assert(m.total >= before && m.total >= m.cache && m.total >= m.activations);
        before = m.total;
    }
    ck_assert(before == SIZE_MAX);
    ck_assert(size_product(SIZE_MAX / 2 + 1, 2) == SIZE_MAX &&
              size_product(1u << 31, 2) == 1ul << 32);
    ck_assert(size_sum(SIZE_MAX - 1, 2) == SIZE_MAX && size_sum(SIZE_MAX - 1, 1) == SIZE_MAX);
    ck_assert(size_product(0, SIZE_MAX) == 0 && size_sum(3, 4) == 7);
}
END_TEST

int main(void) {
    Suite *s = suite_create("sizes");
    TCase *c = tcase_create("sizes");
    tcase_set_timeout(c, 600);
    tcase_add_unchecked_fixture(c, setup, NULL);
    tcase_add_test(c, a_step_may_ask_for_more_examples_than_there_are);
    tcase_add_test(c, a_batch_larger_than_the_data_is_all_of_it);
    tcase_add_test(c, the_largest_flags_can_be_planned);
    tcase_add_test(c, a_plan_of_memory_never_wraps);
    tcase_add_exit_test(c, a_batch_of_too_many_tokens_ends_the_program, 2);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    shell("rm -rf %s", work);
    return failed > 0;
}
