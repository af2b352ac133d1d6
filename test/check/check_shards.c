/*
 * check_shards.c - common/model/shards.h: how the sequences of a step are cut, in which order the
 * gradients of the shards are added, and the step. check_ranks.c tests several processes.
 */
#include "gpt2_fixture.h"

/* ---- cutting --------------------------------------------------------------------------------- */

/* Sequence i of these belongs to the shard in which its middle token is. */
static void expect_cut(const int *size, int n, int G) {
    Shards s;
    double total = 0, before = 0;
    shards_use(G);
    shards_cut(&s, size, n);
    ck_assert_int_eq(s.end[G - 1], n);
    for (int i = 0; i < n; i++) total += size[i];
    for (int i = 0, shard = 0; i < n; before += size[i++]) {
        while (s.end[shard] <= i) shard++;
        const double middle = (before + size[i] / 2.0) / total * G;  // exact: small powers of two
        ck_assert_msg(middle >= shard && middle < shard + 1, "%d of %d is in shard %d of %d", i, n,
                      shard, G);
    }
    for (int g = 0; g < G; g++) {
        int tokens = 0, longest = 0;
        for (int i = g ? s.end[g - 1] : 0; i < s.end[g]; i++) {
            tokens += size[i];
            longest = max_int(longest, size[i]);
        }
        ck_assert_double_le(tokens, total / G + longest);
    }
    shards_use(1);
}

START_TEST(a_sequence_is_where_its_middle_is) {
    int size[64];
    for (int G = 1; G <= 32; G *= 2)
        for (uint32_t n = 1; n <= 64; n++) {
            int total = 0;
            // a total of 1024 tokens, so that the double above is exact
            for (uint32_t i = 0; i < n; i++)
                total += size[i] = 1 + (int)below(1024 / n - 1 + (n == 1), (uint32_t)G, i + 64 * n);
            size[n / 2] += 1024 - total;
            expect_cut(size, (int)n, G);
        }
}
END_TEST

/* The micro-batches are those of the sequences, in their order, and none has two shards. */
START_TEST(a_micro_batch_is_of_one_shard) {
    const int size[] = {5, 1, 1, 9, 2, 2, 30, 1, 1, 1, 8};
    const int n = LENGTH(size);
    int which[LENGTH(size)], from = 0;
    Shards s;
    shards_use(4);
    for (int i = 0; i < n; i++) which[i] = 100 + i;
    ck_assert_int_eq(shards_take(&s, size, which, n), n);
    for (int k; (k = shards_batch(&s, from, 3)); from += k) {
        ck_assert_int_le(k, 3);
        const int shard = shards_now();
        ck_assert_int_ge(from, shard ? s.end[shard - 1] : 0);
        ck_assert_int_le(from + k, s.end[shard]);
    }
    ck_assert_int_eq(from, n);
    for (int i = 0; i < n; i++) ck_assert_int_eq(which[i], 100 + i);
    shards_enter(-1);
    shards_use(1);
    shards_cut(&s, size, n);
    ck_assert_int_eq(shards_batch(&s, 0, 3), 3);
    ck_assert_int_eq(shards_now(), -1);
}
END_TEST

/* ---- adding ---------------------------------------------------------------------------------- */

/* Gives a shard normal numbers as its gradient, as a backward pass would, and adds them to x. */
static void give(GPT2 *m, int shard, float *x) {
    shards_enter(shard);
    shards_open(m);
    for (int i = 0; i < gpt2_tensors(m); x += gpt2_tensor(m, i++)->n) {
        for (size_t k = 0; k < gpt2_tensor(m, i)->n; k++)
            x[k] = normal((uint32_t)(shard * gpt2_tensors(m) + i), (uint32_t)k);
        gpt2_write(m, i, GPT2_GRADIENT, 0, gpt2_tensor(m, i)->n, x);
    }
}

/* x[from] += the others of x[from .. to), as a binary tree. */
static void add_tree(float *const *x, int from, int to, size_t n) {
    const int middle = (from + to) / 2;
    if (to - from == 1) return;
    add_tree(x, from, middle, n);
    add_tree(x, middle, to, n);
    for (size_t k = 0; k < n; k++) x[from][k] += x[middle][k];
}

START_TEST(shards_are_added_as_a_tree) {
    for (int G = 2; G <= 16; G *= 2)
        for (int empty = 0; empty <= 1; empty++) {
            AT("%d shards%s", G, empty ? ", some without sequences" : "");
            shards_use(G);
            GPT2 *m = model(&MIDDLING->config, fit(text_of(MIDDLING), true, false));
            const size_t n = elements(m);
            float *x[16];
            for (int g = 0; g < G; g++) x[g] = floats(n);
            for (int g = 0; g < G; g++)
                if (!empty || (g % 3 == 1 && g < G - 1)) give(m, g, x[g]);
            shards_enter(-1);
            const double squares = shards_sum(m);
            add_tree(x, 0, G, n);
            ck_bits(read_all(m, GPT2_GRADIENT), x[0], n);
            const double want = ref_sum_of_squares(widen(x[0], n), n);
            ck_assert_double_eq_tol(squares, want, 1e-12 * want + 1e-30);  // in another order
            shards_use(1);
        }
}
END_TEST

/* ---- steps ----------------------------------------------------------------------------------- */

/* Learns the text once in each of G shards. */
static void learn_in_shards(GPT2 *m, const Text *t, int G) {
    for (int g = 0; g < G; g++) {
        shards_enter(g);
        learn(m, t, NULL);
    }
    shards_enter(-1);
}

/* The gradient of G equal shards is G times that of one, without rounding. */
START_TEST(a_step_is_that_of_the_sum) {
    enum { G = 4 };
    Text *t = text_of(MIDDLING);
    const AdamW o = ADAMW(0.02f, 0.1f, 0.5f);
    GPT2 *alone = model(&MIDDLING->config, fit(t, true, false));
    shards_use(G);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    for (int step = 1; step <= 3; step++) {
        AT("step %d", step);
        learn_in_shards(m, t, G);
        shards_use(1);
        learn(alone, t, NULL);
        for (int i = 0; i < gpt2_tensors(alone); i++) {
            float *g = read_tensor(alone, i, GPT2_GRADIENT);
            for (size_t k = 0; k < gpt2_tensor(alone, i)->n; k++) g[k] *= G;
            gpt2_write(alone, i, GPT2_GRADIENT, 0, gpt2_tensor(alone, i)->n, g);
        }
        const float want = gpt2_step(alone, &o, step);
        shards_use(G);
        const float norm = gpt2_step(m, &o, step);
        // the squares are added in another order, in double, so the float may be its neighbour
        ck_assert_float_eq_tol(norm, want, 2e-7f * want);
        const size_t n = elements(m);
        ck_close(read_all(m, GPT2_WEIGHT), widen(read_all(alone, GPT2_WEIGHT), n), n, 1e-6);
        ck_close(read_all(m, GPT2_MOMENT1), widen(read_all(alone, GPT2_MOMENT1), n), n, 1e-6);
        ck_zero(read_all(m, GPT2_GRADIENT), n);
    }
    shards_use(1);
}
END_TEST

START_TEST(a_step_that_was_cleared_is_forgotten) {
    enum { G = 4 };
    Text *t = text_of(MIDDLING);
    const AdamW o = ADAMW(0.02f, 0, 1);
    shards_use(G);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    GPT2 *other = model(&MIDDLING->config, fit(t, true, false));
    learn_in_shards(m, t, G - 1);
    gpt2_clear(m);
    learn_in_shards(m, t, G);
    learn_in_shards(other, t, G);
    gpt2_step(m, &o, 1);
    gpt2_step(other, &o, 1);
    ck_bits(read_all(m, GPT2_WEIGHT), read_all(other, GPT2_WEIGHT), elements(m));
    shards_use(1);
}
END_TEST

/* log2(G) sums are kept besides the gradient, each of whole cache lines for each shard. Bands need
   a hundredth more than the gradient, and one line for each shard. */
START_TEST(memory_for_sums_is_planned) {
    const Text *t = text_of(MIDDLING);
    const GPT2Limits limits = fit(t, true, false);
    const size_t one = gpt2_memory(&MIDDLING->config, &limits).gradients;
    for (int G = 2, levels = 1; G <= 64; G *= 2, levels++) {
        shards_use(G);
        const GPT2Memory memory = gpt2_memory(&MIDDLING->config, &limits);
        const size_t lines = 64 * (size_t)G, arena = memory.gradients / (size_t)(1 + levels);
        ck_assert_uint_eq(memory.gradients, (size_t)(1 + levels) * arena);
        ck_assert_uint_eq(arena % lines, 0);
        ck_assert_uint_ge(arena, one);
        ck_assert_uint_le(arena, one + one / 100 + lines);
        ck_assert_uint_eq(memory.moments, (SHORT ? 3 : 2) * arena);
        shards_use(1);
    }
}
END_TEST

int main(void) {
    omp_set_num_threads(1);
    Suite *suite = suite_create("shards");
    ADD("cutting", a_sequence_is_where_its_middle_is, a_micro_batch_is_of_one_shard);
    ADD("adding", shards_are_added_as_a_tree);
    ADD("steps", a_step_is_that_of_the_sum, a_step_that_was_cleared_is_forgotten,
        memory_for_sums_is_planned);
    return run_suite(suite) != 0;
}
