/*
 * check_choices.c - a model's replies, labelled pairs, and multiple choice: which option a model
 * prefers, against each whole text scored alone.
 */
#include "files/hf.h"
#include "rl/choices.h"
#include "program.h"

#include <stdlib.h>

#undef fail
#include <check.h>

static char work[64] = "/tmp/check_choices.XXXXXX";

/* A path in the working directory. */
static const char *at(const char *name) {
    static char path[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof *path, "%s/%s", work, name);
    return path[next];
}

/* ---- labelled pairs -------------------------------------------------------------------------- */

START_TEST(labels_come_back_as_they_were_written) {
    Error e;
    char *P = (char *)"P\n", *x = (char *)"가\"", *y = (char *)"y";
    Labelled pairs[] = {{.prompt = P, .a = x, .b = y, .p = 0.7},
                        {.prompt = P, .a = y, .b = x, .p = 0.1},
                        {.prompt = (char *)"Q", .a = x, .b = y, .p = 0.5}},
             *back;
    ck_assert(labelled_write(at("pairs.jsonl"), pairs, 3, &e) == 0);
    ck_assert_int_eq(labelled_read(at("pairs.jsonl"), NULL, true, &back), 3);
    ck_assert(!strcmp(back[0].a, x) && back[0].p == (double)0.7f);
    ck_assert(!strcmp(back[1].a, x) && !strcmp(back[1].b, y) &&
              back[1].p == (double)0.9f);  // the better one first
    ck_assert(back[2].p == 0.5);
    labelled_free(back, 3);
    // for pairs in another order, with answers swapped, and one that is not in the file
    Labelled ours[] = {{.prompt = (char *)"Q", .a = y, .b = x},
                       {.prompt = P, .a = y, .b = x},
                       {.prompt = P, .a = y, .b = y}};
    labelled_take(ours, 3, at("pairs.jsonl"), NULL, true);
    ck_assert(ours[0].given && ours[0].p == 0.5);
    ck_assert(ours[1].given && fabs(ours[1].p - 0.3) < 1e-7);
    ck_assert(!ours[2].given);
}
END_TEST

/* ---- multiple choice ------------------------------------------------------------------------- */

static GPT2 *model;
static Tokenizer *tokenizer;
static const GPT2Limits limits = {
    .tokens = 400, .sequences = 9, .scored = 40, .slots = 3, .positions = 60};

START_TEST(an_options_probability_is_that_of_the_whole_text) {
    char *o1[] = {(char *)" Oslo.", (char *)" Paris.", (char *)" L"},
         *o2[] = {(char *)"x", (char *)"yz"};
    Question v[] = {{.n = 3, .prompt = (char *)"Anna lives in", .option = o1},
                    {.n = 2, .prompt = (char *)"A", .option = o2},
                    {.n = 3, .prompt = (char *)"안나는", .option = o1},
                    {.n = 2, .prompt = (char *)"Bruno lives in", .option = o2}};
    Questions q = {.n = 4, .v = v};
    double room[4][3], *logp[4] = {room[0], room[1], room[2], room[3]};
    Chooser j = {.model = model, .tokenizer = tokenizer, .limits = limits, .positions = 60};
    chooser_ask(&j, &q, logp);
    ck_assert_int_eq(j.cut, 0);
    for (int k = 0; k < q.n; k++)
        for (int o = 0; o < v[k].n; o++) {  // score each whole text alone, without a parent
            Ints t = {0}, target = {0};
            tokenizer_encode(tokenizer, v[k].prompt, strlen(v[k].prompt), true, &t);
            const size_t prompt = t.n;
            tokenizer_encode(tokenizer, v[k].option[o], strlen(v[k].option[o]), true, &t);
            for (size_t i = 1; i < t.n; i++) ints_push(&target, i >= prompt ? t.v[i] : -1);
            const int start[] = {0, (int)t.n - 1};
            float one[64];
            double sum = 0;
            gpt2_forward(model, &(Batch){.S = 1, .N = (int)t.n - 1, .start = start, .tokens = t.v},
                         NULL);
            gpt2_logprob(model, target.v, 1, one, NULL, NULL);
            for (size_t i = 0; i + 1 < t.n; i++) sum += (double)one[i];
            ck_assert_msg(logp[k][o] == sum, "question %d, option %d: %.17g, alone %.17g", k, o,
                          logp[k][o], sum);  // to the bit
            free(t.v);
            free(target.v);
        }
    // a question that is too long loses its beginning and is counted
    Questions last = {.n = 1, .v = &v[3]};
    double *whole = logp[3], shorter[2], *cut = shorter;
    Chooser narrow = {.model = model, .tokenizer = tokenizer, .limits = limits, .positions = 9};
    v[3].prompt = (char *)"a very long story. no lives in";
    chooser_ask(&narrow, &last, &cut);
    ck_assert_int_eq(narrow.cut, 1);
    v[3].prompt = (char *)"lives in";
    chooser_ask(&narrow, &last, &whole);
    ck_assert_int_eq(narrow.cut, 1);
    ck_assert(cut[0] == whole[0] && cut[1] == whole[1]);
}
END_TEST

START_TEST(choices_by_hand) {
    // two options A and B, five questions; the model prefers A by 2 in log-odds, for any
    // question
    char *AB[] = {(char *)"(A)", (char *)"(B)"}, *BA[] = {(char *)"(B)", (char *)"(A)"};
    Question v[5];
    const double truth[5] = {1, -1, 1.5, -0.5, -1};  // log-odds of A without the preference
    for (int prefers_a = 0; prefers_a < 2; prefers_a++) {
        double room[5][2], *logp[5];
        for (int i = 0; i < 5; i++) {
            const bool a_right =
                i != 4 ? truth[i] > 0 : true;  // in the last one the model is wrong
            v[i] = (Question){.n = 2, .corrects = 1, .option = a_right ? AB : BA};
            const double a = -3 + truth[i] + 2 * prefers_a, b = -3;
            logp[i] = room[i];
            room[i][0] = a_right ? a : b;
            room[i][1] = a_right ? b : a;
        }
        const Choices c = chooser_choose(&(Questions){.n = 5, .v = v}, logp);
        ck_assert_double_eq(c.first, 0.6);
        ck_assert_double_eq(
            c.raw, prefers_a ? 0.6 : 0.8);  // with the preference it chooses A in all but one
        ck_assert_double_eq(c.debiased, 0.8);
        for (int i = 0; i < 5; i++) {  // the debiased values: log-odds less the mean of the other
                                       // questions', with the preference or without
            const double others =
                             (truth[0] + truth[1] + truth[2] + truth[3] + truth[4] - truth[i]) / 4,
                         sign = v[i].option == AB ? 1 : -1;
            ck_assert_double_eq_tol(sign * (room[i][0] - room[i][1]), truth[i] - others, 1e-12);
        }
    }
    // options that occur once do not change; two right ones of three
    char *once[] = {(char *)"p", (char *)"q", (char *)"r"};
    Question w = {.n = 3, .corrects = 2, .option = once};
    double x[] = {-5, -1, -2}, *y = x;
    const Choices c = chooser_choose(&(Questions){.n = 1, .v = &w}, &y);
    ck_assert(c.raw == 1 && c.debiased == 1 && c.first == 1);
    ck_assert_double_eq_tol(exp(x[0]) + exp(x[1]) + exp(x[2]), 1, 1e-12);
    ck_assert_double_eq_tol(x[1] - x[2], 1, 1e-12);
}
END_TEST

START_TEST(a_model_speaks_the_same_alone_and_in_company) {
    Speaker s = {model, tokenizer, 60, 20, 5, NULL};
    Voice v = speaker_voice(&s);
    char *const prompts[] = {(char *)"Anna lives", (char *)"안나는", (char *)"The coat of Bruno is",
                             (char *)"A", (char *)"Lena said:"};
    const uint32_t ids[] = {4, 9, 0, 2, 7};
    char *together[5], *alone, *other;
    v.say(v.context, 5, prompts, ids, 3, 1, together);
    for (int i = 0; i < 5; i++) {
        v.say(v.context, 1, &prompts[i], &ids[i], 3, 1, &alone);
        v.say(v.context, 1, &prompts[i], &ids[i], 4, 1, &other);
        ck_assert_str_eq(alone, together[i]);
        ck_assert_str_ne(alone, other);  // another turn, other draws
        free(alone);
        free(other);
        free(together[i]);
    }
    // fits: the 61st token may be the last, because it is drawn and never fed
    char text[64];
    memset(text, 'a', sizeof text);
    text[41] = 0;
    ck_assert(v.fits(v.context, text));
    text[41] = 'a';
    text[42] = 0;
    ck_assert(!v.fits(v.context, text));
    ck_assert(!v.fits(v.context, ""));
}
END_TEST

int main(void) {
    Error e;
    if (!mkdtemp(work) || !(model = hf_load("test/tiny", true, &e)) ||
        !(tokenizer = tokenizer_load("test/tiny", &e)))
        return 1;
    gpt2_reserve(model, &limits);
    const TTest *const tests[] = {labels_come_back_as_they_were_written,
                                  an_options_probability_is_that_of_the_whole_text, choices_by_hand,
                                  a_model_speaks_the_same_alone_and_in_company};
    const int failed = run_tests("choices", NULL, tests, sizeof tests / sizeof *tests);
    gpt2_free(model);
    tokenizer_free(tokenizer);
    return shell("rm -rf %s", work) || failed != 0;
}
