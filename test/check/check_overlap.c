/*
 * check_overlap.c - common/model/shards.c: gradients leave while a backward pass goes on. The other
 * process is made up here, in the place of common/ranks.c: each of its gradients is 1. What is
 * tested is the order of events, never a time. check_ranks.c tests real processes.
 */
#include <sched.h>
#include <stdatomic.h>

#include "gpt2_fixture.h"
#include "ranks.h"

/* ---- the other process ----------------------------------------------------------------------- */

static int processes = 1;                        // 2: with the other one
static atomic_size_t received[LANE_BEHIND + 1];  // floats of its gradients

/* A vocabulary whose size is odd: so many bytes are no floats, but which rows of wte are late. */
static const GPT2Config config = CONFIG(24, 603, 3, 4, 32, 128, 1e-5f);
enum { LATE_THERE = 7 };  // a row of wte that is late in the other process

int ranks(void) { return processes; }
int rank(void) { return 0; }
const char *rank_host(void) { return "here"; }
void ranks_begin(void) {}
void ranks_end(void) {}

void ranks_exchange(void *in, size_t in_bytes, const void *out, size_t out_bytes, int peer,
                    Lane lane) {
    (void)out;
    (void)peer;
    if (in_bytes == (size_t)config.vocab_size && in_bytes == out_bytes) {
        memset(in, 0, in_bytes);
        ((uint8_t *)in)[LATE_THERE] = 1;
        return;
    }
    for (size_t i = 0; i < in_bytes / sizeof(float); i++) ((float *)in)[i] = 1;
    received[lane] += in_bytes / sizeof(float);
}

void ranks_gather(void *all, size_t bytes_each) {
    memcpy((char *)all + bytes_each, all, bytes_each);
}

void ranks_share(void *bytes, size_t n, int from) { die("%p %zu %d", bytes, n, from); }
void ranks_send_first(void *bytes, size_t n, int from) { die("%p %zu %d", bytes, n, from); }
void *ranks_join(const void *mine, size_t bytes, size_t *n) {
    die("%p %zu %p", mine, bytes, (void *)n);
}
void ranks_add(double *x, int n) { die("%p %d", (void *)x, n); }

/* ---- a step ---------------------------------------------------------------------------------- */

static Text *lesson(void) {
    const int length[] = {7, 1, 20, 3};
    return text(config.vocab_size, LENGTH(length), length);
}

/* The backward pass waits at the lowest layer until the gradients above it have been exchanged, and
   of wte those rows that are no token's. Without the overlap it would wait forever. */
static size_t awaited;
static bool waited;

static void wait_at_the_lowest(void *nothing, const TapCall *call) {
    (void)nothing;
    if (call->layer || !call->m->behind || !awaited) return;
    const double began = now_seconds();
    while (received[LANE_BEHIND] < awaited && now_seconds() - began < 60) sched_yield();
    waited = received[LANE_BEHIND] == awaited;
}

static void nothing_forward(void *nothing, const TapCall *call) {
    (void)nothing;
    (void)call;
}

/* A model that trains in `processes` processes, with 2 shards in each: 4 in all. */
static GPT2 *model_in(int in_processes, const Text *t) {
    static Tap tap = {.forward = nothing_forward, .backward = wait_at_the_lowest};
    tap.at[TAP_MLP] = true;
    received[LANE_MAIN] = received[LANE_BEHIND] = awaited = 0;
    waited = false;
    processes = in_processes;
    shards_use(2 * processes);
    GPT2Limits limits = fit(t, true, false);
    limits.tap = &tap;
    return model(&config, limits);
}

/* The floats of this process's piece that are exchanged before the lowest layer. */
static size_t before_the_lowest(const GPT2 *m, const Text *t) {
    const Piece p = shards_piece(m, m->bands - 1);
    const size_t C = (size_t)config.n_embd, wte = m->parts[WTE].at;
    bool *late = zeros((size_t)config.vocab_size, sizeof *late);
    size_t n = 0;
    for (int s = 0; s < m->bands; s++)
        if (m->band[s].lowest > 0) n += m->band[s].n / 2;
    const size_t of_layers = n;
    for (int i = 0; i < t->batch.N; i++) late[t->tokens[i]] = true;
    late[LATE_THERE] = true;
    for (size_t at = p.at; at < p.at + p.n; at++)
        if (at >= wte && at < wte + (size_t)config.vocab_size * C) n += !late[(at - wte) / C];
    ck_assert_uint_gt(n, of_layers);
    ck_assert_uint_lt(n - of_layers, p.n);
    return n;
}

/* This process learns the text in both of its shards, a micro-batch each. */
static void learn_twice(GPT2 *m, const Text *t, bool more) {
    int size[4] = {5, 5, 5, 5}, which[4] = {0, 1, 2, 3}, at = 0;
    Shards s;
    ck_assert_int_eq(shards_take(&s, size, which, 2 * processes), 2);
    for (int n; (n = shards_batch(&s, at, 4)); at += n) {
        ck_assert_int_eq(n, 1);
        if (more) shards_more();
        learn(m, t, NULL);
    }
    shards_enter(-1);
}

/* Twice the gradient of the text, and 1 in the pieces of two processes. */
static void expect_sums(const GPT2 *m, const Text *t) {
    GPT2 *alone = model_in(1, t);
    learn_twice(alone, t, false);
    shards_sum(alone);
    processes = 2;
    for (int s = 0; s < m->bands; s++) {
        const Piece p = shards_piece(m, s);
        for (int i = 0; i < gpt2_tensors(m); i++) {
            const float *one = read_tensor(alone, i, GPT2_GRADIENT);
            const float *got = read_tensor(m, i, GPT2_GRADIENT);
            for (size_t k = 0, at = m->parts[i].at; k < gpt2_tensor(m, i)->n; k++, at++)
                if (at >= p.at && at < p.at + p.n) {
                    const float want = one[k] + 1;
                    ck_bits(got + k, &want, 1);
                }
        }
    }
}

static size_t all_received(void) { return received[LANE_MAIN] + received[LANE_BEHIND]; }

/* ---- tests ----------------------------------------------------------------------------------- */

START_TEST(a_layer_leaves_while_those_below_are_computed) {
    const Text *t = lesson();
    GPT2 *m = model_in(2, t);
    ck_assert_int_eq(m->bands, config.n_layer + 1);
    awaited = before_the_lowest(m, t);
    learn_twice(m, t, false);
    shards_sum(m);
    ck_assert(waited);
    ck_assert_uint_eq(received[LANE_MAIN], 0);
    ck_assert_uint_eq(all_received(), m->arena / 2);
    expect_sums(m, t);
}
END_TEST

START_TEST(nothing_leaves_before_the_last_backward_pass) {
    const Text *t = lesson();
    GPT2 *m = model_in(2, t);
    learn_twice(m, t, true);
    ck_assert_uint_eq(all_received(), 0);
    shards_sum(m);
    ck_assert_uint_eq(received[LANE_BEHIND], 0);
    ck_assert_uint_eq(all_received(), m->arena / 2);
    expect_sums(m, t);
}
END_TEST

/* Where the last shard of one process is empty, no process begins. */
START_TEST(an_empty_shard_lets_all_wait) {
    const Text *t = lesson();
    int size[3] = {4, 5, 11}, which[3] = {0, 1, 2};
    GPT2 *m = model_in(2, t);
    Shards s;
    ck_assert_int_eq(shards_take(&s, size, which, 3), 2);
    for (int at = 0, n; (n = shards_batch(&s, at, 1)); at += n) learn(m, t, NULL);
    shards_enter(-1);
    ck_assert_uint_eq(all_received(), 0);
    shards_sum(m);
    ck_assert_uint_eq(received[LANE_BEHIND], 0);
    ck_assert_uint_eq(all_received(), m->arena / 2);
}
END_TEST

/* Two models learn from the same micro-batches, as policy and critic do. */
START_TEST(two_models_have_turns) {
    const Text *t = lesson();
    int size[4] = {5, 5, 5, 5}, which[4] = {0, 1, 2, 3};
    GPT2 *m = model_in(2, t), *other = model_in(2, t);
    Shards s;
    shards_take(&s, size, which, 4);
    for (int at = 0, n; (n = shards_batch(&s, at, 1)); at += n) {
        learn(m, t, NULL);
        learn(other, t, NULL);
    }
    shards_enter(-1);
    shards_sum(other);
    shards_sum(m);
    ck_assert_uint_eq(received[LANE_MAIN], 0);
    expect_sums(m, t);
    expect_sums(other, t);
}
END_TEST

START_TEST(sums_that_were_begun_can_be_cleared) {
    const Text *t = lesson();
    GPT2 *m = model_in(2, t);
    for (int i = 0; i < 3; i++) {
        learn_twice(m, t, false);
        gpt2_clear(m);
        ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
    }
    learn_twice(m, t, false);
    shards_sum(m);
    expect_sums(m, t);
}
END_TEST

int main(void) {
    omp_set_num_threads(1);
    Suite *suite = suite_create("overlap");
    ADD("overlap", a_layer_leaves_while_those_below_are_computed,
        nothing_leaves_before_the_last_backward_pass, an_empty_shard_lets_all_wait,
        two_models_have_turns, sums_that_were_begun_can_be_cleared);
    return run_suite(suite) != 0;
}
