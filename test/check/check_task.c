/*
 * check_task.c - what the supervised stages share: ROUGE-L against cases worked by hand, and
 * the last sentence of a run.
 */
#include "run/task.c"  // for a look inside
#include "program.h"

#include <check.h>

static double rouge(const char *a, const char *b) { return rouge_l(a, strlen(a), b, strlen(b)); }

START_TEST(rouge_is_the_f_measure_of_the_longest_common_subsequence) {
    // Lin 2004, section 3.1: against "police killed the gunman", "police kill the gunman" shares 3
    // of 4 words in order ("police the gunman"), and "the gunman kill police" 2 ("the gunman")
    ck_assert_double_eq_tol(rouge("police killed the gunman", "police kill the gunman"), 0.75,
                            1e-12);
    ck_assert_double_eq_tol(rouge("police killed the gunman", "the gunman kill police"), 0.5,
                            1e-12);
    // different lengths: common 2, words 3 and 5: 2 * 2 / 8
    ck_assert_double_eq_tol(rouge("a b c", "x a y b z"), 0.5, 1e-12);
    // the longest common subsequence is not the greedy one: a c (2), b c d (3)
    ck_assert_double_eq_tol(rouge("b c d a", "a b c d"), 0.75, 1e-12);
}
END_TEST

START_TEST(words_are_runs_of_letters_and_digits) {
    ck_assert_double_eq_tol(rouge("The cat, sat!", "the CAT sat"), 1, 1e-12);
    ck_assert_double_eq_tol(rouge("안나는 밥을 먹어요", "안나는 국을 먹어요."), 2.0 / 3, 1e-12);
    ck_assert_double_eq_tol(rouge("", ""), 1, 1e-12);
    ck_assert_double_eq_tol(rouge("a", ""), 0, 1e-12);
    ck_assert_double_eq_tol(rouge("...", "a"), 0, 1e-12);
    ck_assert_double_eq_tol(rouge("ab", "a b"), 0, 1e-12);
}
END_TEST

/* The sentence that a run ends with, of 1000 held-out tokens. */
static char *sentence(double loss_before, double loss_after, double right_before,
                      double right_after) {
    const Task t = {.before = {1000 * loss_before, right_before, 1000},
                    .after = {1000 * loss_after, right_after, 1000}};
    hear();
    conclude(&t);
    return heard();
}

START_TEST(the_last_sentence_praises_no_falling_accuracy) {
    static const struct {
        double loss[2], right[2];
        const char *says, *says_not;
    } cases[] = {
        {{2, 1}, {756, 860}, "now predicts 86.0 % of the scored tokens, and 75.6 %", "not rise"},
        {{2, 1}, {860, 756}, "did not rise: the model now predicts 75.6 %", "not trained on"},
        {{2, 1}, {860, 860.2}, "the accuracy stayed at 86.0 %", "now predicts"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text =
            sentence(cases[i].loss[0], cases[i].loss[1], cases[i].right[0], cases[i].right[1]);
        ck_assert_msg(strstr(text, cases[i].says) && !strstr(text, cases[i].says_not), "%s", text);
        ck_assert(strstr(text, "fell from 2.0000 to 1.0000") != NULL);
        free(text);
    }
    // a loss that does not fall, as it is printed, is not said to fall
    char *text = sentence(1.00001, 1, 756, 860);
    ck_assert_str_eq(text, "");
    free(text);
}
END_TEST

int main(void) {
    Suite *s = suite_create("task");
    TCase *c = tcase_create("rouge");
    tcase_add_test(c, rouge_is_the_f_measure_of_the_longest_common_subsequence);
    tcase_add_test(c, words_are_runs_of_letters_and_digits);
    tcase_add_test(c, the_last_sentence_praises_no_falling_accuracy);
    suite_add_tcase(s, c);
    int failed = run_suite(s);
    return failed != 0;
}
