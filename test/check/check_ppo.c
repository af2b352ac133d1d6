/*
 * check_ppo.c - ppo.c: its mathematics against definitions and hand-computed values, and the
 * program as people run it.
 *
 * The program under test is $BUILD/ppo. Its runs are on a random model of 257 x 16 embeddings and
 * one layer, made here, whose answers are noise until a reward shapes them; a shell script that
 * knows the right answer gives the reward.
 */
#define main program_main  // this file has its own
#include "../../ppo.c"
#undef main

#include "files/hf.h"
#include "text/json.h"

#include "program.h"

#undef fail
#include <check.h>
#include <sys/prctl.h>
#include <unistd.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static char work[64] = "/tmp/check_ppo.XXXXXX";  // where the runs write
static char policy_dir[96], reward_dir[96], nan_dir[96];

/* ppo on the random model; what it prints goes to work/NAME.txt, what it makes to work/NAME. */
__attribute__((format(printf, 2, 3))) static int ppo(const char *name, const char *more, ...) {
    char flags_given[2048];
    va_list list;
    va_start(list, more);
    vsnprintf(flags_given, sizeof flags_given, more, list);
    va_end(list);
    return shell(
        "%s/ppo --model %s --data %s/prompts.jsonl --output %s/%s --batch_size 12 "
        "--response_length 6 --temperature 1 --learning_rate 3e-3 "
        "--lr_scheduler_type constant --max_steps 3 %s >%s/%s.txt 2>&1",
        build(), policy_dir, work, work, name, flags_given, work, name);
}

static bool same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}
static bool says(const char *name, const char *text) {
    return shell("grep -q -- '%s' %s/%s.txt", text, work, name) == 0;
}

/* A metric of the last line of work/NAME/log.jsonl that has it, or of the line of `step`; NAN: none
 * has it. */
static double logged(const char *name, const char *metric, int step) {
    char path[160], line[8192], last[8192] = "", want[32], key[64];
    snprintf(path, sizeof path, "%s/%s/log.jsonl", work, name);
    snprintf(want, sizeof want, "{\"step\": %d,", step);
    snprintf(key, sizeof key, "\"%s\": ", metric);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    while (fgets(line, sizeof line, f))
        if (strstr(line, key) && (step < 0 || !strncmp(line, want, strlen(want))))
            strcpy(last, line);
    fclose(f);
    const char *at = strstr(last, key);
    return at ? atof(at + strlen(key)) : NAN;
}

/* ---- the mathematics ------------------------------------------------------------------------- */

static Run run;  // the flags' values

/* Gives the flags the program's defaults, then the value that `flag` sets (NULL: none). */
static void set_flags(const char *flag) {
    Error e;
    char *argv[] = {"ppo", "--model=m", "--data=d", (char *)flag, NULL};
    run_free(&run);
    ck_assert_msg(run_parse(&run, &program, flag ? 4 : 3, argv, &e) == 0, "%s", e.text);
}

static double noise(int i) {
    return (double)random_normal(random4(1, 1, 0, 0, 0, (uint32_t)i).v[0],
                                 random4(1, 1, 0, 0, 0, (uint32_t)i).v[1]);
}

START_TEST(kl_estimators) {
    ck_assert_double_eq_tol(kl_estimate(K1, -1, -1.5), 0.5, 1e-15);
    ck_assert_double_eq_tol(kl_estimate(K2, -1, -1.5), 0.125, 1e-15);
    ck_assert_double_eq_tol(kl_estimate(K3, -1, -1.5), 0.6065306597126334 - 1 + 0.5, 1e-15);
    for (KLEstimator k = K1; k <= K3; k++)
        ck_assert(kl_estimate(k, -2.25, -2.25) == 0);  // of a policy with itself: exactly 0
    // over all draws k1 and k3 have the divergence itself as their mean: sum p log(p/q)
    const double p[] = {0.1, 0.2, 0.3, 0.4}, q[] = {0.4, 0.1, 0.2, 0.3};
    double exact = 0, mean[3] = {0};
    for (int i = 0; i < 4; i++) {
        exact += p[i] * log(p[i] / q[i]);
        for (KLEstimator k = K1; k <= K3; k++)
            mean[k] += p[i] * kl_estimate(k, log(p[i]), log(q[i]));
    }
    ck_assert_double_eq_tol(mean[0], exact, 1e-12);
    ck_assert_double_eq_tol(mean[2], exact, 1e-12);
    ck_assert_double_gt(mean[1], 0);
}
END_TEST

START_TEST(the_score_lies_on_the_last_token) {
    const float logp[] = {-1, -2, -3}, ref[] = {-1.5f, -2, -2};
    float r[3];
    rewards(3, logp, ref, 10, 0.5, K1, r);  // kl = 0.5, 0, -1
    ck_assert(r[0] == -0.25f && r[1] == 0 && r[2] == 10.5f);
    rewards(1, logp, ref, -1, 0, K3, r);  // an answer of one token: the end of text alone
    ck_assert(r[0] == -1);
}
END_TEST

START_TEST(scores_are_clipped_and_endless_answers_punished) {
    set_flags(NULL);
    ck_assert(shaped_score(&task, 7, true) == 7 && shaped_score(&task, 7, false) == 7);
    task.score_clip = 4;
    ck_assert(shaped_score(&task, 7, true) == 4 && shaped_score(&task, -7, true) == -4 &&
              shaped_score(&task, 1, true) == 1);
    task.missing_eos_penalty = 1;
    ck_assert(shaped_score(&task, 7, true) == 4 && shaped_score(&task, 7, false) == 3);
    task.non_eos_penalty = true;
    ck_assert(shaped_score(&task, 7, true) == 4 && shaped_score(&task, 7, false) == -1);
}
END_TEST

START_TEST(gae_of_three_tokens) {
    // γ = 0.9, λ = 0.5:  δ = 1 + 0.9 - 0.5 = 1.4,  0 - 0.9 - 1 = -1.9,  2 + 0 + 1 = 3;  A_3 = 3,
    // A_2 = -1.9 + 0.45 x 3,  A_1 = 1.4 + 0.45 x -0.55
    const float r[] = {1, 0, 2}, V[] = {0.5f, 1, -1};
    float A[3], R[3];
    gae(3, r, V, 0.9, 0.5, A, R);
    const double expected[] = {1.1525, -0.55, 3};
    for (int t = 0; t < 3; t++) {
        ck_assert_double_eq_tol((double)A[t], expected[t], 1e-6);
        ck_assert_double_eq_tol((double)R[t], expected[t] + (double)V[t], 1e-6);
    }
}
END_TEST

START_TEST(gae_as_defined_on_ragged_answers) {
    // A_t = sum_l (γ λ)^l δ_{t+l}, in O(T²), for answers of 1, 7 and 17 tokens end to end
    const int length[] = {1, 7, 17}, start[] = {0, 1, 8, 25};
    const double gamma = 0.97, lambda = 0.9;
    float r[25], V[25], A[25], R[25];
    for (int i = 0; i < 25; i++) {
        r[i] = (float)noise(i);
        V[i] = (float)noise(100 + i);
    }
    set_flags(NULL);
    args.gamma = (float)gamma;
    args.lam = (float)lambda;
    args.whiten_advantages = WHITEN_NONE;
    Rollouts all = {.E = 3,
                    .n_tokens = 25,
                    .start = (int *)start,
                    .reward = r,
                    .value = V,
                    .advantage = A,
                    .ret = R};
    advantages(&all);
    for (int e = 0; e < 3; e++)
        for (int t = 0; t < length[e]; t++) {
            double sum = 0, factor = 1;
            for (int l = t; l < length[e]; l++, factor *= (double)args.gamma * (double)args.lam) {
                double next = l + 1 < length[e] ? (double)V[start[e] + l + 1] : 0;
                sum += factor * ((double)r[start[e] + l] + (double)args.gamma * next -
                                 (double)V[start[e] + l]);
            }
            ck_assert_double_eq_tol((double)A[start[e] + t], sum, 1e-6 * (1 + fabs(sum)));
            ck_assert_double_eq_tol((double)R[start[e] + t], sum + (double)V[start[e] + t],
                                    1e-6 * (1 + fabs(sum)));
        }
    // γ = λ = 1 without a critic: what is left of the reward
    memset(V, 0, sizeof V);
    gae(7, r + 1, V, 1, 1, A, R);
    double left = 0;
    for (int t = 6; t >= 0; t--)
        ck_assert_double_eq_tol((double)A[t], left += (double)r[1 + t], 1e-6);
}
END_TEST

START_TEST(whitening) {
    // 1 2 3 4: mean 2.5, squares 5, so variance 5/4 of the population and 5/3 unbiased
    for (int unbiased = 0; unbiased < 2; unbiased++)
        for (int shift = 0; shift < 2; shift++) {
            float v[] = {1, 2, 3, 4};
            whiten(4, v, unbiased, !shift);
            for (int i = 0; i < 4; i++)
                ck_assert_double_eq_tol(
                    (double)v[i], (i - 1.5) / sqrt(unbiased ? 5.0 / 3 : 1.25) + (shift ? 0 : 2.5),
                    1e-6);
        }
    float equal[] = {3, 3, 3}, one[] = {7};
    whiten(3, equal, true, false);
    whiten(1, one, true, false);
    ck_assert(equal[0] == 0 && equal[2] == 0 && one[0] == 0);
    one[0] = 7;
    whiten(1, one, true, true);
    ck_assert(one[0] == 7);
}
END_TEST

START_TEST(baselines) {
    const double R[] = {1, 2, 3, 6};
    double A[4];
    baseline(BATCH_MEAN, 4, 2, R, A);
    ck_assert(A[0] == -2 && A[1] == -1 && A[2] == 0 && A[3] == 3);
    baseline(RLOO, 4, 2, R, A);  // each less the other one of its pair
    ck_assert(A[0] == -1 && A[1] == 1 && A[2] == -3 && A[3] == 3);
    baseline(RLOO, 4, 4, R, A);  // 1 - (2+3+6)/3, ...
    ck_assert_double_eq_tol(A[0], 1 - 11.0 / 3, 1e-12);
    ck_assert_double_eq_tol(A[3], 6 - 2, 1e-12);
    baseline(GRPO, 4, 2, R, A);  // deviations of 1,2 and 3,6: sqrt(1/2), sqrt(9/2)
    ck_assert_double_eq_tol(A[1], 0.5 / (sqrt(0.5) + 1e-4), 1e-12);
    ck_assert_double_eq_tol(A[2], -1.5 / (sqrt(4.5) + 1e-4), 1e-12);
    const double equal[] = {2, 2, 2, 2};
    for (Advantage kind = BATCH_MEAN; kind <= GRPO; kind++) {
        baseline(kind, 4, 2, equal, A);
        for (int i = 0; i < 4; i++) ck_assert(A[i] == 0);
    }
}
END_TEST

/* ½-sided checks at kinks make no sense: the points below are away from them by more than the step
 * of the difference. */
START_TEST(the_surrogate_and_its_gradient) {
    //                 inside  above, A>0  above, A<0  below, A>0  below, A<0  masked  clamped
    //                 clamped
    const float ratio[] = {1.1f, 1.5f, 1.5f, 0.5f, 0.5f, 1.1f, 3e9f, 1e-10f},
                advantage[] = {2, 1, -1, 1, -3, 1, -1, 1};
    const int target[] = {5, 0, 1, 2, 3, -1, 4, 9};
    const bool zero[] = {false, true, false, false, true, true, true, true};
    // max(-A ρ, -A clip(ρ, 0.8, 1.2)), ρ at most e^20 and at least e^-20
    const double loss[] = {-2.2, -1.2, 1.5, -0.5, 2.4, 0, 485165195.40979, -2.061153622e-9};
    float logp[8], old[8], d[8], unused[8];
    for (int i = 0; i < 8; i++) {
        old[i] = -3 - 0.25f * (float)i;
        logp[i] = old[i] + (float)log((double)ratio[i]);
    }
    Sums s = {0};
    surrogate(8, target, logp, old, advantage, 0.2, 20, 7, d, &s);
    double sum = 0;
    for (int i = 0; i < 8; i++) sum += loss[i];
    ck_assert_double_eq_tol(s.policy / sum, 1, 1e-6);
    ck_assert(s.tokens == 7 && s.clipped == 2);
    for (int i = 0; i < 8; i++) {
        ck_assert_msg((d[i] == 0) == zero[i], "row %d: %g", i, (double)d[i]);
        Sums at[2];
        memset(at, 0, sizeof at);
        for (int side = 0; side < 2; side++) {
            float moved = logp[i] + (side ? 1e-3f : -1e-3f);
            surrogate(1, target + i, &moved, old + i, advantage + i, 0.2, 20, 1, unused, &at[side]);
        }
        double slope =
            (at[1].policy - at[0].policy) / (double)((logp[i] + 1e-3f) - (logp[i] - 1e-3f)) / 7;
        ck_assert_double_eq_tol((double)d[i], slope, 1e-4 * (1 + fabs(slope)));
    }
    // equal log-probabilities: ρ is exactly 1, and everything that measures the distance exactly 0
    Sums first = {0};
    surrogate(5, target, old, old, advantage, 0.2, 20, 5, d, &first);
    ck_assert(first.ratio == 5 && first.ratio_squared == 5 && first.approxkl == 0 &&
              first.clipped == 0);
    for (int i = 0; i < 5; i++) ck_assert(d[i] == -advantage[i] / 5);
}
END_TEST

START_TEST(the_value_loss_and_its_gradient) {
    //                 within  moved away  moved towards  masked  beyond, R between
    const float V[] = {0.1f, 0.5f, 0.5f, 9, -0.9f}, old[] = {0, 0, 0, 0, 0},
                R[] = {1, -1, 1, 1, -0.4f};
    const int target[] = {1, 1, 1, -1, 1};
    const bool zero[] = {false, false, true, true, false};
    // ½ max((V - R)², (clip(V, ±0.2) - R)²)
    const double loss[] = {0.405, 1.125, 0.32, 0, 0.125};
    float d[5], unused;
    Sums s = {0};
    value_loss(5, target, V, old, R, 0.2, 0.1, 4, d, &s);
    double sum = 0;
    for (int i = 0; i < 5; i++) sum += loss[i];
    ck_assert_double_eq_tol(s.value, sum, 1e-6);
    ck_assert(s.value_tokens == 4 && s.value_clipped == 1);
    for (int i = 0; i < 5; i++) {
        ck_assert((d[i] == 0) == zero[i]);
        Sums at[2];
        memset(at, 0, sizeof at);
        for (int side = 0; side < 2; side++) {
            float moved = V[i] + (side ? 1e-3f : -1e-3f);
            value_loss(1, target + i, &moved, old + i, R + i, 0.2, 1, 1, &unused, &at[side]);
        }
        double slope = 0.1 * (at[1].value - at[0].value) / 2e-3 / 4;
        ck_assert_double_eq_tol((double)d[i], slope, 1e-5);
    }
    Sums never = {0};  // ε_v 0
    value_loss(5, target, V, old, R, 0, 0.1, 4, d, &never);
    ck_assert(never.value_clipped == 0 && d[2] != 0);
}
END_TEST

START_TEST(beta_adapts) {
    ck_assert_double_eq_tol(adapt(0.15, 12, 6, 10000, 512), 0.15 * (1 + 0.2 * 0.0512),
                            1e-12);  // far above: by a fifth of n / horizon
    ck_assert_double_eq_tol(adapt(0.15, 0, 6, 10000, 512), 0.15 * (1 - 0.2 * 0.0512), 1e-12);
    ck_assert_double_eq_tol(adapt(0.15, 6.6, 6, 10000, 512), 0.15 * (1 + 0.1 * 0.0512), 1e-12);
    ck_assert(adapt(0.15, 6, 6, 10000, 512) == 0.15);
}
END_TEST

START_TEST(adam_as_tensorflow_writes_it) {
    // lr sqrt(1-β2^t)/(1-β1^t) m / (sqrt(v) + ε)  is what gpt2_step does with ε / sqrt(1-β2^t)
    set_flags("--preset=lmhp");
    run.total_steps = 1;
    const double g = 3e-4, lr = (double)run.learning_rate;
    for (int t = 1; t < 4; t++) {
        AdamW o = adam(&run, run.learning_rate, t);
        const double b1 = (double)o.beta1, b2 = (double)o.beta2, c1 = 1 - pow(b1, t),
                     c2 = 1 - pow(b2, t);
        const double m = g * c1, v = g * g * c2;  // of a gradient that stays the same
        const double theirs = lr * sqrt(c2) / c1 * m / (sqrt(v) + (double)run.adam_epsilon),
                     ours = lr * (m / c1) / (sqrt(v / c2) + (double)o.epsilon);
        ck_assert_double_eq_tol(ours / theirs, 1, 1e-6);
        if (t == 1) ck_assert_double_eq_tol((double)(o.epsilon / run.adam_epsilon), 31.6228, 0.01);
    }
    args.adam_eps_convention = PYTORCH;
    ck_assert(adam(&run, run.learning_rate, 1).epsilon == run.adam_epsilon);
    ck_assert(adam(&run, 2 * run.learning_rate, 1).learning_rate == 2 * run.learning_rate);
}
END_TEST

START_TEST(rows_of_answers) {
    // "ab" -> "xy$", "c" -> "$": the row before a token predicts it
    int begin[] = {0, 5, 7}, tokens[] = {'a', 'b', 'x', 'y', 256, 'c', 256}, start[] = {0, 3, 4};
    float logp[] = {-1, -2, -3, -4}, A[] = {1, 2, 3, 4}, value[] = {5, 6, 7, 8},
          ret[] = {9, 10, 11, 12}, kept[4] = {0};
    Rollouts r = {.E = 2,
                  .n_tokens = 4,
                  .begin = begin,
                  .tokens = tokens,
                  .start = start,
                  .logp = logp,
                  .A = A,
                  .value = value,
                  .ret = ret};
    Rows b = rows_new(2, 8);
    rows_fill(&b, &r, (const int[]){1, 0}, 2);
    const int read[] = {'c', 'a', 'b', 'x', 'y'}, target[] = {256, -1, 'x', 'y', 256},
              of[] = {3, -1, 0, 1, 2};
    ck_assert(b.batch.S == 2 && b.batch.N == 5 && b.start[1] == 1 && b.start[2] == 5);
    for (int i = 0; i < 5; i++) {
        ck_assert(b.tokens[i] == read[i] && b.target[i] == target[i] && b.of[i] == of[i]);
        if (of[i] >= 0)
            ck_assert(b.old_logp[i] == logp[of[i]] && b.A[i] == A[of[i]] &&
                      b.old_value[i] == value[of[i]] && b.ret[i] == ret[of[i]]);
        b.kl[i] = (float)i;
    }
    rows_keep(&b, b.kl, kept);
    ck_assert(kept[0] == 2 && kept[1] == 3 && kept[2] == 4 && kept[3] == 0);
    rows_free(&b);
}
END_TEST

START_TEST(answers_share_their_prompt) {
    // "ab" -> "x$", "ab" -> "$", "c" -> "y", "c" -> "z", "d" -> "$": a prompt of one token is not
    // shared, because its only row is the one that predicts an answer
    int begin[] = {0, 4, 7, 9, 11, 13}, start[] = {0, 2, 3, 4, 5, 6}, query[] = {0, 0, 1, 1, 2},
        tokens[] = {'a', 'b', 'x', 256, 'a', 'b', 256, 'c', 'y', 'c', 'z', 'd', 256};
    float numbers[6] = {0};
    Rollouts r = {.E = 5,
                  .begin = begin,
                  .tokens = tokens,
                  .start = start,
                  .query = query,
                  .logp = numbers,
                  .A = numbers,
                  .value = numbers,
                  .ret = numbers};
    Rows b = rows_new(7, 16);
    rows_range(&b, &r, 0, 5);
    const int read[] = {'a', 'b', 'x', 'b', 'c', 'c', 'd'}, of[] = {-1, 0, 1, 2, 3, 4, 5},
              first[] = {0, 1, 3, 4, 5, 6, 7}, parent[] = {-1, 0, 0, -1, -1, -1};
    ck_assert(b.batch.S == 6 && b.batch.N == 7 && b.batch.parent);
    for (int i = 0; i < 7; i++)
        ck_assert(b.tokens[i] == read[i] && b.of[i] == of[i] && b.batch.start[i] == first[i]);
    for (int i = 0; i < 6; i++) ck_assert_int_eq(b.batch.parent[i], parent[i]);
    rows_fill(&b, &r, (const int[]){0, 1}, 2);  // for a gradient, each with its prompt
    ck_assert(b.batch.S == 2 && b.batch.N == 5 && !b.batch.parent);
    rows_free(&b);
}
END_TEST

START_TEST(what_is_measured) {
    // two answers, of 1 and 3 tokens, scores 1 and 5; by hand
    int start[] = {0, 1, 4};
    bool ended[] = {true, false};
    float score[] = {1, 5}, logp[] = {-1, -1, -2, -3}, ref[] = {-2, -1, -1, -4},
          kl[] = {0.5f, 0, 0, 1}, value[] = {0, 0, 0, 0}, ret[] = {1, 2, 3, 4};
    double shaped[2];
    set_flags(NULL);
    task.missing_eos_penalty = 1;
    Rollouts r = {.E = 2,
                  .n_tokens = 4,
                  .start = start,
                  .ended = ended,
                  .score = score,
                  .shaped = shaped,
                  .logp = logp,
                  .ref_logp = ref,
                  .kl = kl,
                  .value = value,
                  .ret = ret};
    for (int e = 0; e < 2; e++) shaped[e] = shaped_score(&task, score[e], ended[e]);
    Figures o = measure(&r, 0.5);
    ck_assert_double_eq_tol(o.kl, 0.5, 1e-12);  // (1 + (0 - 1 + 1)) / 2
    ck_assert_double_eq_tol(o.kl_exact, 0.75, 1e-12);
    ck_assert_double_eq_tol(o.entropy, 3.5, 1e-12);
    ck_assert_double_eq_tol(o.score, 2.5, 1e-12);  // 1 and 5 - 1
    ck_assert_double_eq_tol(o.raw, 3, 1e-12);
    ck_assert_double_eq_tol(o.non_score, -0.25, 1e-12);
    ck_assert(o.ended == 1 && o.length == 2 && o.shortest == 1 && o.longest == 3);
    ck_assert_double_eq_tol(o.correlation, 1, 1e-9);  // two points
    ck_assert_double_eq_tol(o.returns, 2.5, 1e-12);
    ck_assert_double_eq_tol(o.explained, 0, 1e-12);  // a critic that says nothing explains nothing
    score[1] = 2;                                    // shaped: 1 and 1
    shaped[1] = shaped_score(&task, score[1], ended[1]);
    ck_assert(isnan(measure(&r, 0.5).correlation));
}
END_TEST

START_TEST(presets_are_the_published_ones) {
    set_flags("--preset=lmhp");
    ck_assert(run.learning_rate == 1e-5f && run.lr_scheduler_type == LINEAR &&
              run.adam_epsilon == 1e-5f && args.adam_eps_convention == TENSORFLOW);
    ck_assert(task.batch_size == 512 && args.num_ppo_epochs == 4 && args.num_mini_batches == 1 &&
              task.max_prompt_length == 64 && task.response_length == 24);
    ck_assert(chat.temperature == 0.7f && args.kl_coef == 0.15f && args.adap_kl_ctrl &&
              args.desired_kl == 6 && args.horizon == 10000);
    ck_assert(args.gamma == 1 && args.lam == 0.95f && args.cliprange == 0.2f &&
              args.cliprange_value == 0.2f && args.vf_coef == 0.1f);
    ck_assert(args.whiten_rewards && args.shared_value_head && task.non_eos_penalty &&
              task.penalty_reward_value == -1 && task.total_episodes == 1000000);
    set_flags("--preset=nplus");
    ck_assert(run.learning_rate == 3e-6f && run.adam_epsilon == 1e-5f &&
              args.adam_eps_convention == PYTORCH && task.batch_size == 512);
    ck_assert(task.max_prompt_length == 512 && task.response_length == 53 &&
              args.kl_coef == 0.05f && !args.adap_kl_ctrl && !args.whiten_rewards);
    ck_assert(!args.shared_value_head && task.non_eos_penalty);
    set_flags("--preset=textbook");
    ck_assert(run.learning_rate == 1e-5f && run.max_steps == 5 && args.cliprange == 0.2f &&
              chat.temperature == 0.7f && task.response_length == 100);
    ck_assert(args.advantage == BATCH_MEAN && args.kl_coef == 0 &&
              args.whiten_advantages == WHITEN_NONE);
    ck_assert(strlen(program.about) > 20);
}
END_TEST

/* ---- the program ----------------------------------------------------------------------------- */

#define JUDGE "--reward_cmd 'sh %s/judge.sh'"
#define MODEL "--reward_model %s"

START_TEST(the_first_ratio_is_exactly_one) {
    ck_assert_int_eq(
        ppo("first", MODEL " --max_steps 2 --num_ppo_epochs 1 --per_device_train_batch_size 5",
            reward_dir),
        0);
    for (int step = 1; step <= 2; step++) {  // the one minibatch of each iteration
        ck_assert(logged("first", "val/ratio", step) == 1);
        ck_assert(logged("first", "val/ratio_var", step) == 0);
        ck_assert(logged("first", "policy/approxkl_avg", step) == 0);
        ck_assert(logged("first", "policy/clipfrac_avg", step) == 0);
    }
    // and the policy that has not moved yet is at no distance from its reference
    ck_assert(logged("first", "objective/kl", 1) == 0 &&
              logged("first", "objective/kl_exact", 1) == 0 &&
              logged("first", "objective/kl_k3", 1) == 0);
    ck_assert(logged("first", "objective/kl_exact", 2) > 0);
}
END_TEST

/* Reads the numbers of one member of each line of a dump into out, line after line; returns how
 * many. */
static int dumped_values(const char *name, const char *member, double *out, int room) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s.jsonl", work, name);
    FILE *f = fopen(path, "r");
    ck_assert(f);
    char *line = NULL;
    size_t size = 0;
    int n = 0;
    for (ssize_t length; (length = getline(&line, &size, f)) > 0;) {
        Error e = {0};
        int count = json_numbers(line, (size_t)length, member, out + n, room - n, &e);
        ck_assert_msg(count >= 0 && count <= room - n, "%s", e.text);
        n += count;
    }
    free(line);
    fclose(f);
    return n;
}

START_TEST(the_reward_lies_on_the_last_token) {
    ck_assert_int_eq(
        ppo("dump", MODEL " --max_steps 1 --missing_eos_penalty 2 --dump_rollouts %s/dump.jsonl",
            reward_dir, work),
        0);
    double score[12], ended[12], reward[12 * 6], tokens[512];
    ck_assert_int_eq(dumped_values("dump", "score", score, 12), 12);
    ck_assert_int_eq(dumped_values("dump", "ended", ended, 12), 12);
    int T = dumped_values("dump", "reward", reward, 12 * 6),
        N = dumped_values("dump", "tokens", tokens, 512), at = 0, from = 0;
    ck_assert_int_gt(N, T);
    // an answer ends after six tokens or with the end of text; KL is still 0, so all tokens but the
    // last have none
    char path[160], *line = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/dump.jsonl", work);
    FILE *f = fopen(path, "r");
    for (int e = 0; e < 12; e++) {
        double own[6], text[64];
        Error error;
        ssize_t length = getline(&line, &size, f);
        int n = json_numbers(line, (size_t)length, "reward", own, 6, &error),
            m = json_numbers(line, (size_t)length, "tokens", text, 64, &error);
        for (int t = 0; t < n - 1; t++) ck_assert(reward[at + t] == 0);
        ck_assert_double_eq_tol(reward[at + n - 1], score[e] - (ended[e] ? 0 : 2), 1e-6);
        ck_assert((text[m - 1] == 256) == (ended[e] == 1) && (ended[e] || n == 6));
        at += n;
        from += m;
    }
    ck_assert(at == T && from == N);
    free(line);
    fclose(f);
}
END_TEST

/* The reward model's value of one text by itself, read at its last token. */
static float value_alone(GPT2 *m, const int *tokens, int n) {
    const int start[] = {0, n};
    float value[64];
    gpt2_forward(m, &(Batch){.S = 1, .N = n, .start = start, .tokens = tokens}, NULL);
    gpt2_value(m, value);
    return value[n - 1];
}

START_TEST(a_score_is_that_of_the_text_alone) {
    // three texts: one that ends, one that does not, and an empty answer: the end of text right
    // after the prompt
    int begin[] = {0, 5, 8, 11}, start[] = {0, 3, 4, 5},
        tokens[] = {'a', 'b', 'x', 'y', 256, 'c', 'd', 'z', 'e', 'f', 256};
    bool ended[] = {true, false, true};
    float given[3];
    Error e;
    Tokenizer *t = tokenizer_load(policy_dir, &e);
    GPT2 *model = hf_load_head(reward_dir, SCORE_HEAD, true, NULL, &e);
    ck_assert(t && model);
    Judge judge = {.model = model, .tokenizer = t};
    gpt2_reserve(model, &(GPT2Limits){.tokens = 32, .sequences = 3});
    Rollouts r = {.E = 3,
                  .n_tokens = 5,
                  .begin = begin,
                  .start = start,
                  .tokens = tokens,
                  .ended = ended,
                  .score = given};
    const float alone[] = {value_alone(model, tokens, 4), value_alone(model, tokens + 5, 3),
                           value_alone(model, tokens + 8, 2)};
    for (int B = 1; B <= 3; B++) {
        memset(given, 0, sizeof given);
        judge_score(&judge, &r, NULL, B, NULL);
        for (int i = 0; i < 3; i++)
            ck_assert_msg(given[i] == alone[i], "batch of %d, text %d", B, i);
    }
    Str text = {0};
    rollouts_text(&r, 2, true, t, &text);
    ck_assert_str_eq(text.s, "");
    free(text.s);
    gpt2_free(model);
    tokenizer_free(t);
}
END_TEST

START_TEST(a_rollout_has_the_bits_of_training) {
    Error e;
    set_flags(NULL);
    task.batch_size = 9;
    task.prompts = 9;
    task.response_length = 20;
    chat.temperature = 0.6f;
    task.rows = rows_new(6, 4 * 32);
    task.train = (Queries){.n = 3,
                           .longest = 5,
                           .line = (int[]){1, 2, 3},
                           .start = (int[]){0, 1, 6, 9},
                           .tokens = (int[]){'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'}};
    ck_assert((run.tokenizer = tokenizer_load(policy_dir, &e)));
    ck_assert((task.policy = hf_load(policy_dir, true, &e)) &&
              (task.reference = hf_load(policy_dir, true, &e)));
    GPT2Limits limits = {.tokens = 4 * 32, .sequences = 6, .scored = 4 * 20};
    gpt2_reserve(task.reference, &limits);
    limits.slots = 5;
    limits.positions = 25;
    limits.kept = 9 * 20;
    gpt2_reserve(task.policy, &limits);
    Rollouts again = rollouts_new(9, 5, 20), *r = &task.r;
    task.r = rollouts_new(9, 5, 20);
    rollout_task_choose(&task, &run);
    for (int i = 0; i < 9; i++) ck_assert(r->query[i] >= 0 && r->query[i] < 3);
    for (int i = 0; i < 3; i++)  // three epochs of three prompts: each once in every three
        ck_assert(r->query[3 * i] + r->query[3 * i + 1] + r->query[3 * i + 2] == 3 &&
                  r->query[3 * i] != r->query[3 * i + 1]);
    run.step = 3;
    rollout_task_sample(&task, &run, chat.temperature);
    ck_assert_int_gt(r->n_tokens, 9);
    // the reference has the policy's weights: reading whole answers gives the bits of sampling them
    reference_and_values(r, 4, false);
    for (int t = 0; t < r->n_tokens; t++) ck_assert(r->ref_logp[t] == r->logp[t] && r->kl[t] == 0);
    const Rollouts first = *r;
    *r = again;
    r->E = 9;
    memcpy(r->query, first.query, 9 * sizeof(int));
    rollout_task_sample(&task, &run, chat.temperature);
    ck_assert(r->n_tokens == first.n_tokens &&
              !memcmp(r->tokens, first.tokens, sizeof(int) * (size_t)first.begin[9]) &&
              !memcmp(r->logp, first.logp, sizeof(float) * (size_t)first.n_tokens));
    run.step = 4;
    rollout_task_sample(&task, &run, chat.temperature);
    ck_assert(r->n_tokens != first.n_tokens ||
              memcmp(r->logp, first.logp, sizeof(float) * (size_t)first.n_tokens));
    rollouts_free(r);
    rollouts_free((Rollouts *)&first);
    rows_free(&task.rows);
    gpt2_free(task.policy);
    gpt2_free(task.reference);
    tokenizer_free(run.tokenizer);
}
END_TEST

START_TEST(accumulation_changes_nothing) {
    const char *const batch[] = {"1", "5", "12"};
    char name[3][8];
    for (int i = 0; i < 3; i++) {
        snprintf(name[i], sizeof name[i], "batch%s", batch[i]);
        ck_assert_int_eq(
            ppo(name[i],
                MODEL " --num_mini_batches 1 --entropy_coef 0.01 --per_device_train_batch_size %s",
                reward_dir, batch[i]),
            0);
    }
    // not to the bit: in the tied embedding the contributions of head and input interleave in
    // another order
    const char *const metrics[] = {"policy/approxkl_avg", "loss/value_avg", "policy/entropy_avg",
                                   "val/ratio",           "grad_norm",      "objective/kl_exact"};
    for (int i = 1; i < 3; i++)
        for (int k = 0; k < COUNT(metrics); k++)
            for (int step = 1; step <= 2; step++) {
                const double one = logged(name[0], metrics[k], step),
                             other = logged(name[i], metrics[k], step);
                ck_assert_msg(fabs(other - one) <= 2e-3 * fabs(one),
                              "%s, step %d: %g by ones, %g by %s", metrics[k], step, one, other,
                              batch[i]);
            }
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    const char *const settings[] = {
        "--adap_kl_ctrl --critic_warmup_steps 1 --whiten_rewards",
        "--shared_value_head --adam_eps_convention tensorflow --lr_scheduler_type linear"};
    for (int i = 0; i < 2; i++) {
        char whole[16], cut[16], a[64], b[64];
        snprintf(whole, sizeof whole, "whole%d", i);
        snprintf(cut, sizeof cut, "cut%d", i);
        const char *common =
            "--eval %s/prompts.jsonl --max_steps 4 --save_steps 2 --save_total_limit 0 "
            "--keep_moments --eval_steps 2 --num_mini_batches 3 " MODEL " %s";
        char given[1024];
        snprintf(given, sizeof given, common, work, reward_dir, settings[i]);
        ck_assert_int_eq(ppo(whole, "%s", given), 0);
        ck_assert_int_eq(
            shell("cp -r %s/%s %s/%s && rm -r %s/%s/checkpoint-4 %s/%s/model.safetensors", work,
                  whole, work, cut, work, cut, work, cut),
            0);
        ck_assert_int_eq(ppo(cut, "%s --resume", given), 0);
        const char *const files[] = {"model.safetensors", "checkpoint-4/state.safetensors",
                                     "log.jsonl", "critic/model.safetensors"};
        for (int k = 0; k < 4 - i; k++) {
            snprintf(a, sizeof a, "%s/%s", whole, files[k]);
            snprintf(b, sizeof b, "%s/%s", cut, files[k]);
            ck_assert_msg(same(a, b), "%s", a);
        }
    }
    ck_assert_int_eq(shell("grep -q v_head.summary.weight %s/whole1/model.safetensors", work), 0);
    ck_assert_int_eq(shell("grep -q score.weight %s/whole0/critic/model.safetensors", work), 0);
}
END_TEST

START_TEST(threads_change_no_bit) {
    setenv("OMP_NUM_THREADS", "1", 1);
    ck_assert_int_eq(ppo("one", MODEL, reward_dir), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    ck_assert_int_eq(ppo("three", MODEL " --rollout_slots 5", reward_dir), 0);  // nor do the slots
    unsetenv("OMP_NUM_THREADS");
    ck_assert(same("one/model.safetensors", "three/model.safetensors"));
    ck_assert(same("one/critic/model.safetensors", "three/critic/model.safetensors"));
    ck_assert(same("one/log.jsonl", "three/log.jsonl"));
}
END_TEST

START_TEST(a_replayed_run_has_the_same_bits) {
    ck_assert_int_eq(
        ppo("lived", MODEL " --adap_kl_ctrl --num_mini_batches 2 --dump_rollouts %s/lived.jsonl",
            reward_dir, work),
        0);
    // a judge that would answer otherwise is not asked
    ck_assert_int_eq(ppo("relived",
                         JUDGE " --critic_model %s --adap_kl_ctrl --num_mini_batches 2 --replay "
                               "%s/lived.jsonl --dump_rollouts %s/relived.jsonl",
                         work, reward_dir, work, work),
                     0);
    ck_assert(same("lived/model.safetensors", "relived/model.safetensors"));
    ck_assert(same("lived/critic/model.safetensors", "relived/critic/model.safetensors"));
    ck_assert(same("lived/log.jsonl", "relived/log.jsonl"));
    ck_assert(same("lived.jsonl", "relived.jsonl"));
    // answers that are missing or out of order are reported
    ck_assert_int_eq(ppo("bad1", MODEL " --max_steps 4 --replay %s/lived.jsonl", reward_dir, work),
                     2);
    ck_assert(says("bad1", "holds 0 answers of step 4"));
    ck_assert_int_eq(
        shell("sed 's/\"ref_logp\": \\[/&0, /' %s/lived.jsonl >%s/wrong.jsonl", work, work), 0);
    ck_assert_int_eq(ppo("bad2", MODEL " --replay %s/wrong.jsonl", reward_dir, work), 2);
    ck_assert(says("bad2", "ref_logp"));
}
END_TEST

START_TEST(the_place_of_adams_epsilon_matters) {
    // alignment.md 2.1: in the first two epochs PyTorch's Adam moves the policy further: more
    // approxkl, more clipping
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(
            ppo(i ? "tf" : "torch",
                MODEL " --batch_size 48 --max_steps 1 --num_ppo_epochs 2 --adam_epsilon 1e-3 "
                      "--learning_rate 0.02 --max_grad_norm 0 --adam_eps_convention %s",
                reward_dir, i ? "tensorflow" : "pytorch"),
            0);
    double torch = logged("torch", "policy/approxkl_avg", 1),
           tf = logged("tf", "policy/approxkl_avg", 1);
    ck_assert_msg(torch > 1.2 * tf && tf > 0, "approxkl %g by PyTorch's, %g by TensorFlow's", torch,
                  tf);
    ck_assert_double_gt(logged("torch", "policy/clipfrac_avg", 1),
                        logged("tf", "policy/clipfrac_avg", 1));
    ck_assert_double_gt(logged("torch", "val/ratio_var", 1), logged("tf", "val/ratio_var", 1));
}
END_TEST

START_TEST(a_bandit_is_learned) {
    // one token, right when it is a letter from a to m: 13 of 257 by chance
    static const char *const estimator[] = {"gae", "batch_mean", "rloo", "grpo"};
    const char *kind = estimator[_i];
    ck_assert_int_eq(
        ppo(kind,
            JUDGE " --advantage %s --num_generations %d --response_length 1 --batch_size 64 "
                  "--max_steps 25 --learning_rate 0.02 --adam_beta2 0.99 "
                  "--kl_coef 0 --whiten_advantages %s %s --save_steps 0",
            work, kind, _i < 2 ? 1 : 8, _i < 2 ? "batch" : "none", _i ? "" : "--vf_coef 1"),
        0);
    double first = logged(kind, "objective/scores", 1), last = logged(kind, "objective/scores", -1);
    ck_assert_msg(first < 0.2 && last > 0.9, "%s: %g, then %g", kind, first, last);
}
END_TEST

START_TEST(equal_rewards_change_nothing) {
    ck_assert_int_eq(ppo("equal",
                         "--reward_cmd 'while read line; do echo \"{\\\"score\\\": 2}\"; done' "
                         "--advantage batch_mean --kl_coef 0"),
                     0);
    ck_assert_int_eq(
        shell("cmp -s %s/model.safetensors %s/equal/model.safetensors", policy_dir, work), 0);
    ck_assert(isnan(logged("equal", "lengths/score_correlation", 1)));
}
END_TEST

START_TEST(updates_are_skipped_and_stopped) {
    ck_assert_int_eq(ppo("skip", MODEL " --max_steps 1 --ratio_threshold 0.5", reward_dir),
                     0);  // even 1 is too much
    ck_assert(logged("skip", "val/skipped", 1) == 4);
    ck_assert_int_eq(
        shell("cmp -s %s/model.safetensors %s/skip/model.safetensors", policy_dir, work), 0);
    ck_assert_int_eq(
        shell("cmp -s %s/model.safetensors %s/skip/critic/model.safetensors", reward_dir, work), 0);
    ck_assert_int_eq(ppo("stop", MODEL " --max_steps 1 --target_kl 1e-9", reward_dir),
                     0);  // the second epoch is too far
    ck_assert(logged("stop", "val/skipped", 1) == 1);
    ck_assert_int_eq(ppo("once", MODEL " --max_steps 1 --num_ppo_epochs 1", reward_dir), 0);
    ck_assert(same("stop/model.safetensors", "once/model.safetensors"));
}
END_TEST

START_TEST(pretraining_text_is_mixed_in) {
    ck_assert_int_eq(ppo("ptx",
                         MODEL " --ptx_data %s/ptx.jsonl --ptx_coef 1 --ptx_batch_size 3 "
                               "--max_steps 8 --learning_rate 1e-2",
                         reward_dir, work),
                     0);
    double first = logged("ptx", "loss/ptx_avg", 1), last = logged("ptx", "loss/ptx_avg", 8);
    ck_assert_msg(first > 4 && last < 0.7 * first, "%g, then %g", first, last);
}
END_TEST

START_TEST(a_prompt_longer_than_the_context_is_cut) {
    ck_assert_int_eq(shell("(printf '{\"prompt\": \"'; printf 'x%%.0s' $(seq 200); printf "
                           "'\"}\\n') >%s/long.jsonl",
                           work),
                     0);
    ck_assert_int_eq(
        ppo("long", MODEL " --data %s/long.jsonl --dump_rollouts %s/longdump.jsonl --max_steps 1",
            reward_dir, work, work),
        0);
    ck_assert(says("long",
                   "cut the beginning of 1 prompt, longer than 58 tokens"));  // 64 positions, 6
                                                                              // for the answer
    ck_assert_int_eq(ppo("nowhere", MODEL " --response_length 64", reward_dir), 2);
    ck_assert(says("nowhere", "leaves no room"));
}
END_TEST

START_TEST(a_score_that_is_no_number_stops_the_run) {
    ck_assert_int_eq(ppo("nonumber", MODEL, nan_dir), 1);
    ck_assert(says("nonumber",
                   "the score of an answer to the prompt on line [0-9] is -\\?\\(nan\\|inf\\)"));
}
END_TEST

START_TEST(a_reward_program_that_fails_is_named) {
    static const struct {
        const char *program, *word;
    } bad[] = {
        {"exit 3", "ended with status 3"},
        {"read line; echo good night; exit 0", "good night"},
        {"echo hello; while read line; do echo \"{\\\"score\\\": 1}\"; done", "hello"},
        {"while read line; do echo \"{\\\"score\\\": \\\"high\\\"}\"; done",
         "a string, expected a number"},
        {"while read line; do echo \"{\\\"score\\\": NaN}\"; done", "answered"},
        {"while read line; do echo \"{\\\"score\\\": 1}\"; echo \"{\\\"score\\\": 1}\"; done; "
         "sleep 1",
         "wrote more\\|before it was asked"},
        {"read line; printf half; kill -9 $$", "signal 9.*half"},
        {"sleep 60", "was silent for 0.5 seconds: 0 of 12"},
        {"/nowhere/judge", "ended with status 127"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        char name[16];
        snprintf(name, sizeof name, "judge%d", i);
        double began = now_seconds();
        ck_assert_int_eq(ppo(name, "--reward_timeout %s --max_steps 2 --reward_cmd '%s'",
                             i == 7 ? "0.5" : "30", bad[i].program),
                         1);
        ck_assert_msg(says(name, bad[i].word), "'%s' is not named: see %s/%s.txt", bad[i].program,
                      work, name);
        ck_assert(now_seconds() - began < 60);
    }
}
END_TEST

START_TEST(a_child_is_served_both_ways) {
    // both pipes fill many times over: answers of 3 kB to questions of 3 kB, at once or all at the
    // end
    const char *const programs[] = {"while read -r line; do echo \"$line\"; done", "cat",
                                    "head -n 400 | sort"};
    for (int i = 0; i < 3; i++) {
        Error e = {0};
        Child *c = child_start(programs[i], &e);
        ck_assert_msg(c != NULL, "%s", e.text);
        Str question = {0}, answer = {0};
        for (int k = 0; k < 400; k++) {
            str_printf(&question, "%03d ", k);
            for (int j = 0; j < 300; j++) str_add(&question, "0123456789", 10);
            str_add(&question, "\n", 1);
        }
        ck_assert_msg(child_ask(c, &question, 400, 60, NULL, &answer, &e) == 0, "%s: %s",
                      programs[i], e.text);
        const char *line = answer.s;
        for (int k = 0; k < 400; k++, line += strlen(line) + 1) {
            char number[8];
            snprintf(number, sizeof number, "%03d ", k);
            ck_assert(!strncmp(line, number, 4) && strlen(line) == 3004);
        }
        ck_assert(line == answer.s + answer.n);
        child_end(c);
        ck_assert(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);  // no zombie
        free(question.s);
        free(answer.s);
    }
    // one that ignores the end of its input is ended
    Error e;
    Child *c = child_start("trap '' TERM; while :; do sleep 0.1; done", &e);
    child_end(c);
    ck_assert(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    child_end(NULL);
    // what it leaves behind has ended when nobody waits for it, too: here this process is to do so.
    // The quickest of several, because the machine may be busy; a second is what a living one gets
    double least = 60;
    ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    for (int i = 0; i < 5 && least > 0.8; i++) {
        c = child_start("sleep 600 & while read x; do :; done", &e);
        const double began = now_seconds();
        child_end(c);
        least = fmin(least, now_seconds() - began);
    }
    ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
    ck_assert_msg(least < 0.8, "%g s", least);
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
}
END_TEST

START_TEST(bad_flags_end_with_2) {
    static const struct {
        const char *given, *word;
    } bad[] = {
        {"--top_k 50", "--top_k"},
        {"--top_p 0.9", "--top_p"},
        {"--max_new_tokens 7", "--max_new_tokens"},
        {"--target 5", "--target"},
        {"--num_generations 5", "not a multiple"},
        {"--num_mini_batches 5", "not a multiple"},
        {"--advantage rloo", "need --num_generations 2 or more"},
        {"--reward_cmd cat", "--reward_model"},
        {"--preset gpt4", "none, lmhp"},
        {"--shared_value_head --critic_warmup_steps 1", "shared_value_head and --critic_warmup"},
        {"--preset lmhp --critic_warmup_steps 1", "has no effect with it"},
        {"--preset lmhp --critic_model x", "has no effect with it"},
        {"--advantage batch_mean --gamma 1", "--gamma has no effect without --advantage=gae"},
        {"--advantage rloo --num_generations 2 --lam 1", "--lam has no effect"},
        {"--advantage grpo --num_generations 2 --vf_coef 1", "--vf_coef has no effect"},
        {"--preset textbook --cliprange_value 1", "--cliprange_value has no effect"},
        {"--advantage batch_mean --shared_value_head", "--shared_value_head has no effect"},
        {"--advantage batch_mean --critic_model x", "--critic_model has no effect"},
        {"--advantage batch_mean --critic_learning_rate 1", "--critic_learning_rate has no effect"},
        {"--advantage batch_mean --critic_warmup_steps 1", "--critic_warmup_steps has no effect"},
        {"--data /nowhere", "/nowhere"},
        {"--temperature 0", "temperature"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(ppo("bad", MODEL " %s", reward_dir, bad[i].given), 2);
        ck_assert_msg(says("bad", bad[i].word), "%s", bad[i].given);
        ck_assert_int_ne(shell("test -e %s/bad/model.safetensors", work), 0);
    }
    ck_assert_int_eq(ppo("bad", "--reward_model %s", policy_dir),
                     2);  // a language model judges nothing
    ck_assert(says("bad", "holds no reward model"));
    ck_assert_int_eq(ppo("bad", "%s", ""), 2);
    ck_assert(says("bad", "is needed"));
}
END_TEST

/* The example gives the critic's flags. They do not apply where there is no separate critic, and
   the policy then trains from the first step. */
START_TEST(the_example_has_every_advantage) {
    static const char *const more[] = {
        "--advantage batch_mean", "--advantage rloo --num_generations 4",
        "--advantage grpo --num_generations 4", "--shared_value_head", "--preset textbook"};
    for (int i = 0; i < COUNT(more); i++) {
        ck_assert_int_eq(shell("%s/ppo %s --max_steps 1 --logging_steps 1 --batch_size 8 "
                               "--response_length 8 --eval_samples 0 --output %s/example%d "
                               ">%s/example%d.txt 2>&1",
                               build(), more[i], work, i, work, i),
                         0);
        char name[16];
        snprintf(name, sizeof name, "example%d", i);
        ck_assert(isfinite(logged(name, "loss/policy_avg", 1)));
        ck_assert(!says(name, "--critic_"));  // the flags that are printed would repeat the run
        ck_assert(!says(name, "nan"));
        ck_assert_int_ne(shell("test -e %s/example%d/critic", work, i), 0);
    }
    // while a separate critic trains alone, the policy has no loss, ratio or approxkl: the log has
    // none of them
    ck_assert_int_eq(ppo("alone", MODEL " --max_steps 1 --critic_warmup_steps 1", reward_dir), 0);
    ck_assert(isnan(logged("alone", "loss/policy_avg", 1)) &&
              isfinite(logged("alone", "loss/value_avg", 1)));
    ck_assert(!says("alone", "nan") && says("alone", "step  reward      KL  length"));
    ck_assert_int_eq(shell("! grep -E 'null|approxkl|clipfrac_avg\": n' %s/alone/log.jsonl", work),
                     0);
}
END_TEST

/* 20 answers that are asked for do not become 24 without a word. */
START_TEST(a_rounded_number_of_answers_is_named) {
    for (int answers = 20; answers <= 24; answers += 4) {
        ck_assert_int_eq(shell("%s/ppo --model test/tiny/chat --reward_model test/tiny/reward "
                               "--data test/tiny/prompts.jsonl --batch_size 8 --total_episodes %d "
                               "--dry_run >%s/rounded.txt",
                               build(), answers, work),
                         0);
        ck_assert_int_eq(says("rounded",
                              "note: --total_episodes 20 is no multiple of --batch_size "
                              "8, the answers of an iteration: the run samples 24"),
                         answers == 20);
    }
}
END_TEST

START_TEST(a_dry_run_writes_nothing) {
    ck_assert_int_eq(ppo("dry", MODEL " --preset nplus --batch_size 8 --dry_run", reward_dir), 0);
    ck_assert_int_ne(shell("test -e %s/dry", work), 0);
    ck_assert(says("dry", ", critic ") && says("dry", "memory: ") &&
              says("dry", "max_grad_norm=0") && says("dry", "batch_size=8"));
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

/* The random models, made in a process of their own: this one must not have run OpenMP when it
 * forks. */
static void make_models(void) {
    Error e;
    GPT2Config config;
    if (hf_config("test/tiny", &config, &e)) die("%s", e.text);
    config.n_layer = 1;
    config.n_head = 2;
    config.n_embd = 16;
    config.n_inner = 64;
    config.n_positions = 64;
    for (int i = 0; i < 3; i++) {
        config.head = i ? SCORE_HEAD : LM_HEAD;
        GPT2 *m = gpt2_create(&config, false);
        gpt2_init_weights(m, 5);
        float w[16];
        for (int c = 0; c < 16; c++) w[c] = i == 1 ? (float)noise(c) : 3e38f;
        if (i) gpt2_write(m, gpt2_own_tensors(m) - 1, GPT2_WEIGHT, 0, 16, w);
        if (hf_save(m, i == 0 ? policy_dir : i == 1 ? reward_dir : nan_dir, "test/tiny", &e))
            die("%s", e.text);
        gpt2_free(m);
    }
    exit(0);
}

static void write_text(const char *name, const char *text) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", work, name);
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) die("%s", path);
}

int main(void) {
    if (!mkdtemp(work)) return 1;
    snprintf(policy_dir, sizeof policy_dir, "%s/policy", work);
    snprintf(reward_dir, sizeof reward_dir, "%s/reward", work);
    snprintf(nan_dir, sizeof nan_dir, "%s/nan", work);
    write_text(
        "prompts.jsonl",
        "{\"prompt\": \"ab\"}\n{\"prompt\": \"c\"}\n{\"prompt\": \"defg\"}\n{\"prompt\": \"h\"}\n");
    write_text("ptx.jsonl",
               "{\"text\": \"the cat sat on the mat\"}\n{\"prompt\": \"a\", \"completion\": "
               "\"b\"}\n{\"text\": \"the dog sat on the mat\"}\n");
    write_text("judge.sh",
               "while read -r line; do\n    case ${line##*'\"response\": \"'} in\n        "
               "[abcdefghijklm]*) echo '{\"score\": 1}';;\n        *) echo '{\"score\": 0}';;\n    "
               "esac\ndone\n");
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) make_models();
    int status;
    if (waitpid(child, &status, 0) < 0 || status) return 1;

    const TTest *const mathematics[] = {kl_estimators,
                                        the_score_lies_on_the_last_token,
                                        scores_are_clipped_and_endless_answers_punished,
                                        gae_of_three_tokens,
                                        gae_as_defined_on_ragged_answers,
                                        whitening,
                                        baselines,
                                        the_surrogate_and_its_gradient,
                                        the_value_loss_and_its_gradient,
                                        beta_adapts,
                                        adam_as_tensorflow_writes_it,
                                        rows_of_answers,
                                        answers_share_their_prompt,
                                        what_is_measured,
                                        presets_are_the_published_ones};
    const TTest *const program[] = {the_first_ratio_is_exactly_one,
                                    the_reward_lies_on_the_last_token,
                                    a_score_is_that_of_the_text_alone,
                                    a_rollout_has_the_bits_of_training,
                                    accumulation_changes_nothing,
                                    a_resumed_run_has_the_bits_of_an_uninterrupted_one,
                                    threads_change_no_bit,
                                    a_replayed_run_has_the_same_bits,
                                    the_place_of_adams_epsilon_matters,
                                    equal_rewards_change_nothing,
                                    updates_are_skipped_and_stopped,
                                    pretraining_text_is_mixed_in,
                                    a_prompt_longer_than_the_context_is_cut,
                                    a_score_that_is_no_number_stops_the_run,
                                    a_reward_program_that_fails_is_named,
                                    a_child_is_served_both_ways,
                                    bad_flags_end_with_2,
                                    the_example_has_every_advantage,
                                    a_rounded_number_of_answers_is_named,
                                    a_dry_run_writes_nothing};
    Suite *s = suite_create("ppo");
    TCase *c = tcase_create("mathematics");
    for (int i = 0; i < COUNT(mathematics); i++) tcase_add_test(c, mathematics[i]);
    suite_add_tcase(s, c);
    c = tcase_create("program");
    tcase_set_timeout(c, 600);
    for (int i = 0; i < COUNT(program); i++) tcase_add_test(c, program[i]);
    tcase_add_loop_test(c, a_bandit_is_learned, 0, 4);
    suite_add_tcase(s, c);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (!failed)
        shell("rm -r %s", work);
    else
        printf("the runs are in %s\n", work);
    return failed ? 1 : 0;
}
