/*
 * check_task.c - what the supervised stages share: ROUGE-L against cases worked by hand.
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

int main(void) {
    Suite *s = suite_create("task");
    TCase *c = tcase_create("rouge");
    tcase_add_test(c, rouge_is_the_f_measure_of_the_longest_common_subsequence);
    tcase_add_test(c, words_are_runs_of_letters_and_digits);
    suite_add_tcase(s, c);
    int failed = run_suite(s);
    return failed != 0;
}
