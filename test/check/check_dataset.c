/*
 * check_dataset.c - records and pairs as tokens: what is scored, what is cut, and ragged batches.
 */
#include "text/dataset.h"

#include "text_files.h"

/* ---- datasets -------------------------------------------------------------------------------- */

static Dataset build(const Tokenizer *t, const char *file, int max_length, bool train_on_prompt) {
    Records r = must_read(file, NULL);
    Dataset d;
    dataset_build(&d, &r, t, max_length, train_on_prompt);
    records_free(&r);
    return d;
}

/* Example i, with "_" before each token that is not scored, and "$" for the end of text (tokens are
 * bytes). */
static void check_example(const Dataset *d, int i, const char *expected) {
    Str got = {0};
    ck_assert_int_lt(i, d->n);
    str_add(&got, "", 0);
    for (size_t k = d->start[i]; k < d->start[i + 1]; k++)
        str_printf(&got, "%s%c", d->scored[k] ? "" : "_", d->tokens[k] == 256 ? '$' : d->tokens[k]);
    ck_assert_str_eq(got.s, expected);
    free(got.s);
}

/* The one example of a file of one line, and how it was counted. */
static void check_fit(const char *line, int max_length, const char *expected, long prompts_cut,
                      long responses_cut) {
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t, line, max_length, false);
    ck_assert_int_eq(d.n, expected != NULL);
    ck_assert_int_eq(d.dropped, expected == NULL);
    if (expected) check_example(&d, 0, expected);
    ck_assert_int_eq(d.prompts_cut, prompts_cut);
    ck_assert_int_eq(d.responses_cut, responses_cut);
    ck_assert_int_eq(d.longest, (int)d.start[d.n]);
    long scored = 0;
    for (size_t i = 0; i < d.start[d.n]; i++) scored += d.scored[i];
    ck_assert_int_eq(d.scored_tokens, scored);
    dataset_free(&d);
    tokenizer_free(t);
}

START_TEST(what_is_scored) {
    static const char pair[] = "{\"prompt\": \"ab\", \"completion\": \"cd\"}";
    check_fit(pair, 100, "_a_bcd$", 0, 0);
    check_fit("{\"prompt\": \"ab\", \"completion\": \"\"}", 100, "_a_b$", 0, 0);
    check_fit("{\"prompt\": \"\", \"completion\": \"cd\"}", 100, "_cd$", 0,
              0);  // no token comes before the c
    check_fit("{\"prompt\": \"\", \"completion\": \"\"}", 100, NULL, 0, 0);
    check_fit("{\"text\": \"abc\"}", 100, "_abc$", 0, 0);
    check_fit("{\"text\": \"\"}", 100, NULL, 0, 0);
    check_fit("{\"prompt\": \"ab\", \"completion\": \"cd<|endoftext|>\"}", 100, "_a_bcd$", 0,
              0);  // ended already
    check_fit("{\"prompt\": \"a<|endoftext|>\", \"completion\": \"\"}", 100, "_a_$$", 0, 0);
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t, pair, 100, true);
    check_example(&d, 0, "_abcd$");
    ck_assert_int_eq(d.scored_tokens, 4);
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

START_TEST(too_long) {
    static const char pair[] = "{\"prompt\": \"abcdef\", \"completion\": \"xy\"}";
    check_fit(pair, 9, "_a_b_c_d_e_fxy$", 0, 0);
    check_fit(pair, 8, "_b_c_d_e_fxy$", 1, 0);
    check_fit(pair, 5, "_e_fxy$", 1, 0);
    check_fit(pair, 3, "_xy$", 1, 0);
    check_fit(pair, 2, "_xy", 1, 1);
    check_fit(pair, 1, NULL, 0, 0);
    check_fit(pair, 0, NULL, 0, 0);
    check_fit(pair, -1, NULL, 0, 0);
    check_fit("{\"text\": \"abcdef\"}", 3, "_abc", 0, 1);
}
END_TEST

START_TEST(conversations_are_cut) {
    Tokenizer *t = byte_tokenizer();
    static const char file[] = "{\"messages\": [" TURN("user", "ab") ", " TURN(
        "assistant", "X") ", " TURN("user", "cd") ", " TURN("assistant", "YZ") "]}";
    static const struct {
        int max_length;
        const char *expected;
        long prompts_cut, responses_cut;
    } fits[] = {
        {100, "_a_b_;X$_c_d_;YZ$", 0, 0},
        {10, "_b_;X$_c_d_;YZ$", 1, 0},  // ab; X$ cd; YZ$ are 11
        {8, "_X$_c_d_;YZ$", 1, 0},
        {7, "_X$_c_d_;YZ", 1, 1},
        {5, "_X$", 1, 1},  // the question cd lost its answer, so it is cut too
    };
    for (int i = 0; i < COUNT(fits); i++) {
        Error e = {0};
        Records r;
        Dataset d;
        ck_assert_int_eq(read_bytes(file, sizeof file - 1, "{instruction};", true, &r, &e), 0);
        dataset_build(&d, &r, t, fits[i].max_length, false);
        check_example(&d, 0, fits[i].expected);
        ck_assert_int_eq(d.prompts_cut, fits[i].prompts_cut);
        ck_assert_int_eq(d.responses_cut, fits[i].responses_cut);
        dataset_free(&d);
        records_free(&r);
    }
    tokenizer_free(t);
}
END_TEST

/* "hel" + "lo" is never tokenised as hello: the boundary stays where the record has it. */
START_TEST(boundary_is_of_bytes) {
    Tokenizer *t = hand_tokenizer();
    Dataset d = build(t, "{\"prompt\": \"hel\", \"completion\": \"lo\"}", 100, false);
    static const int tokens[] = {256, 'l', 'l', 'o', HAND_EOS}, scored[] = {0, 0, 1, 1, 1};
    ck_assert_int_eq(d.n, 1);
    ck_assert_uint_eq(d.start[1], 5);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(d.tokens[i], tokens[i]);
        ck_assert_int_eq(d.scored[i], scored[i]);
    }
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

START_TEST(ragged_batches) {
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t,
                      "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"\"}\n"
                      "{\"prompt\": \"cd\", \"completion\": \"e\"}\n\n{\"text\": \"fg\"}\n",
                      100, false);
    ck_assert_int_eq(d.n, 3);
    ck_assert_int_eq(d.dropped, 1);
    ck_assert_int_eq(d.longest, 4);
    ck_assert_int_eq(d.scored_tokens, 2 + 2 + 2);
    static const int line[] = {1, 3, 5};
    for (int i = 0; i < 3; i++) ck_assert_int_eq(d.line[i], line[i]);

    RaggedBatch rb = {0};
    ragged_fill(&rb, &d, (const int[]){0}, 1);
    ck_assert_int_eq(rb.batch.N, 2);
    ragged_fill(&rb, &d, (const int[]){2, 0, 1}, 3);
    static const int start[] = {0, 2, 4, 7}, tokens[] = {'f', 'g', 'a', 'b', 'c', 'd', 'e'};
    static const int target[] = {'g', 256, 'b', 256, -1, 'e', 256};
    static const uint32_t id[] = {2, 0, 1};
    ck_assert_int_eq(rb.batch.S, 3);
    ck_assert_int_eq(rb.batch.N, 7);
    ck_assert_int_eq(rb.scored, 6);
    for (int i = 0; i < 4; i++) ck_assert_int_eq(rb.batch.start[i], start[i]);
    for (int i = 0; i < 3; i++) ck_assert_uint_eq(rb.batch.id[i], id[i]);
    for (int i = 0; i < 7; i++) {
        ck_assert_int_eq(rb.batch.tokens[i], tokens[i]);
        ck_assert_int_eq(rb.target[i], target[i]);
    }
    ragged_fill(&rb, &d, (const int[]){1}, 1);
    ck_assert_int_eq(rb.batch.S, 1);
    ck_assert_int_eq(rb.batch.N, 3);
    ck_assert_int_eq(rb.scored, 2);
    ragged_free(&rb);
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

/* Every record of the real files decodes to its spans, each response followed by one end of text.
 */
START_TEST(real_records) {
    static const struct {
        const char *file, *kind;
        int n;
    } real[] = {{"korean/chat.jsonl", "instruction/response", 8000},
                {"instructions/alpaca-style.jsonl", "instruction/input/output", 1000},
                {"summaries/news.jsonl", "prompt/completion", 200},
                {"e2e-nlg/valid.jsonl", "prompt/completion", 4672}};
    Tokenizer *t = real_tokenizer();
    for (int k = 0; t && k < COUNT(real); k++) {
        Error e = {0};
        Records r;
        Dataset d;
        ck_assert_msg(records_read(shared(real[k].file), NULL, true, &r, &e) == 0, "%s", e.text);
        ck_assert_int_eq(r.n, real[k].n);
        ck_assert_str_eq(r.kind, real[k].kind);
        dataset_build(&d, &r, t, INT32_MAX, false);
        ck_assert_int_eq(d.n, r.n);
        for (int i = 0; i < d.n; i++) {
            Str got = {0}, expected = {0};
            tokenizer_decode(t, d.tokens + d.start[i], d.start[i + 1] - d.start[i], &got);
            for (int s = 0; s < r.v[i].n; s++) {
                str_add(&expected, r.v[i].spans[s].text, r.v[i].spans[s].n);
                // a response that already ends with it (summaries/) gets no second one
                bool ended =
                    expected.n >= 13 && !strcmp(expected.s + expected.n - 13, "<|endoftext|>");
                if (r.v[i].spans[s].scored && !ended) str_printf(&expected, "<|endoftext|>");
            }
            ck_assert_msg(got.n == expected.n && !memcmp(got.s, expected.s, got.n), "%s: record %d",
                          real[k].file, i);
            free(got.s);
            free(expected.s);
        }
        dataset_free(&d);
        records_free(&r);
    }
    tokenizer_free(t);
}
END_TEST

/* ---- pairs ----------------------------------------------------------------------------------- */

/* The parts of pair i of a file, "prompt|chosen|rejected" (tokens are bytes), and the counts of
 * what was left out. */
static void check_parts(const char *file, int max_length, const char *expected, long prompts_cut,
                        long empty, long equal, long too_long) {
    Tokenizer *t = byte_tokenizer();
    Records r;
    Error e = {0};
    Pairs p;
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s", e.text);
    pairs_build(&p, &r, t, max_length);
    Str got = {0};
    str_add(&got, "", 0);
    int longest = 0;
    for (int i = 0; i < p.n; i++) {
        for (int k = 0; k < 3; k++) {
            if (i || k) str_add(&got, k ? "|" : ";", 1);
            ck_assert_int_eq(pair_part(&p, i, k),
                             (int)(p.start[3 * i + k + 1] - p.start[3 * i + k]));
            for (size_t j = p.start[3 * i + k]; j < p.start[3 * i + k + 1]; j++)
                str_printf(&got, "%c", p.tokens[j] == 256 ? '$' : p.tokens[j]);
        }
        for (int k = 1; k <= 2; k++)
            longest = pair_part(&p, i, 0) + pair_part(&p, i, k) > longest
                          ? pair_part(&p, i, 0) + pair_part(&p, i, k)
                          : longest;
    }
    ck_assert_str_eq(got.s, expected);
    ck_assert_int_eq(p.longest, longest);
    ck_assert_msg(p.prompts_cut == prompts_cut && p.empty == empty && p.equal == equal &&
                      p.too_long == too_long,
                  "%ld prompts cut, %ld empty, %ld equal, %ld too long", p.prompts_cut, p.empty,
                  p.equal, p.too_long);
    free(got.s);
    pairs_free(&p);
    records_free(&r);
    tokenizer_free(t);
}

START_TEST(pairs_as_tokens) {
    static const char pair[] = "{\"prompt\": \"abcd\", \"chosen\": \"xyz\", \"rejected\": \"uv\"}";
    check_parts(pair, 100, "abcd|xyz|uv", 0, 0, 0, 0);
    check_parts(pair, 7, "abcd|xyz|uv", 0, 0, 0, 0);
    check_parts(pair, 6, "bcd|xyz|uv", 1, 0, 0, 0);  // one cut for both
    check_parts(pair, 4, "d|xyz|uv", 1, 0, 0, 0);
    check_parts(pair, 3, "", 0, 0, 0, 1);  // an answer is never cut
    check_parts(pair, 0, "", 0, 0, 0, 1);
    check_parts(pair, -1, "", 0, 0, 0, 1);
    check_parts("{\"prompt\": \"\", \"chosen\": \"xyz\", \"rejected\": \"uv\"}", 3, "|xyz|uv", 0, 0,
                0, 0);
    // The end of text is not judged. An answer of nothing else is empty, and answers that differ
    // only by it are equal.
    check_parts(
        "{\"prompt\": \"a\", \"chosen\": \"x<|endoftext|>\", \"rejected\": "
        "\"u<|endoftext|>v<|endoftext|><|endoftext|>\"}",
        100, "a|x|u$v", 0, 0, 0, 0);
    check_parts("{\"prompt\": \"a\", \"chosen\": \"<|endoftext|>\", \"rejected\": \"u\"}", 100, "",
                0, 1, 0, 0);
    check_parts("{\"prompt\": \"a\", \"chosen\": \"u\", \"rejected\": \"u<|endoftext|>\"}", 100, "",
                0, 0, 1, 0);
    check_parts(
        "{\"prompt\": \"a\", \"chosen\": \"u\", \"rejected\": \"ux\"}\n{\"prompt\": \"a\", "
        "\"chosen\": \"x\", \"rejected\": \"x\"}\n"
        "{\"prompt\": \"bc\", \"chosen\": \"xx\", \"rejected\": \"v\"}\n",
        3, "a|u|ux;c|xx|v", 1, 0, 1, 0);
    const int tokens[] = {256, 5, 256, 256};
    for (int n = 0; n <= 4; n++) ck_assert_int_eq(judged_tokens(tokens, n, 256), n < 2 ? 0 : 2);
    ck_assert_int_eq(judged_tokens(tokens, 4, 7), 4);
}
END_TEST

START_TEST(what_was_cut_is_said_without_zeros) {
    static const struct {
        long prompts, responses;
        const char *path, *says;
    } cases[] = {
        {0, 0, "a.jsonl", ""},
        {40, 0, "a.jsonl",
         "a.jsonl: cut the beginning of 40 prompts, longer than --max_length 8\n"},
        {0, 1, "a.jsonl", "a.jsonl: cut the end of 1 response, longer than --max_length 8\n"},
        {1, 2, NULL,
         "cut the beginning of 1 prompt and the end of 2 responses, longer than --max_length 8\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Dataset d = {.prompts_cut = cases[i].prompts, .responses_cut = cases[i].responses};
        char *text = NULL;
        size_t n;
        FILE *before = stdout;
        stdout = open_memstream(&text, &n);
        say_cut(&d, cases[i].path, 8);
        fclose(stdout);
        stdout = before;
        ck_assert_str_eq(text, cases[i].says);
        free(text);
    }
}
END_TEST

int main(void) {
    const TTest *const datasets[] = {what_was_cut_is_said_without_zeros,
                                     what_is_scored,
                                     too_long,
                                     conversations_are_cut,
                                     boundary_is_of_bytes,
                                     ragged_batches,
                                     real_records};
    const TTest *const pairs[] = {pairs_as_tokens};
    Suite *s = suite_create("dataset");
    add_case(s, "datasets", datasets, COUNT(datasets));
    add_case(s, "pairs", pairs, COUNT(pairs));
    return run_cases(s);
}
