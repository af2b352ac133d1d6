/*
 * check_gpt2.c - gpt2.c against its contract, gpt2.h.
 *
 * The witnesses: golden numbers by another implementation (golden_gpt2.h); the same model in
 * double, chained from ref.h, and its central differences; the activations of a small learned model
 * by its original implementation, where shared data is there; and the promises that need no second
 * opinion: the same bits for any number of threads, for a sequence alone and in company, with and
 * without gradient checkpointing, for a token decoded or trained on.
 *
 * What needs a process of its own (a refusal, the peak of its memory) is this program started again
 * with an argument: see children at the end. The same file tests gpt2.c on a device; what lies in
 * its memory is copied before it is looked at.
 */
#include "model/generate.h"
#include "model/private.h"  // to look inside a model

#include "files/safetensors.h"
#include "../golden/golden_gpt2.h"
#include "ref.h"
#include "program.h"

#include <check.h>  // after util.h, whose fail() it hides behind a macro of its own
#include <jansson.h>
#include <omp.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- What a test makes is released after it, also when it failed ----------------------------- */

enum { OWNED = 4096 };

static void *owned[OWNED];
static GPT2 *models[OWNED];
static Generation generations[OWNED];
static int owned_count, model_count, generation_count;
static char where[256];  // what is under test, for messages

#define AT(...) snprintf(where, sizeof where, __VA_ARGS__)

static void forget(void) {
    for (int i = 0; i < owned_count; i++) free(owned[i]);
    for (int i = 0; i < model_count; i++) gpt2_free(models[i]);
    for (int i = 0; i < generation_count; i++) generation_free(&generations[i]);
    owned_count = model_count = generation_count = 0;
}

static void begin(void) {
    forget();
    AT("(nothing)");
    omp_set_num_threads(1);  // the cores may be busy, and waiting threads spin: several only where
                             // they are what is tested
}

static void *zeros(size_t count, size_t size) {
    ck_assert_int_lt(owned_count, OWNED);
    return owned[owned_count++] = xcalloc(count, size);
}

static float *floats(size_t n) { return zeros(n, sizeof(float)); }
static double *doubles(size_t n) { return zeros(n, sizeof(double)); }

static double *widen(const float *x, size_t n) {
    double *wide = doubles(n);
    for (size_t i = 0; i < n; i++) wide[i] = x[i];
    return wide;
}

static double norm(const double *x, size_t n) { return sqrt(ref_sum_of_squares(x, n)); }

/* The i-th of a stream of normal numbers. */
static float normal(uint32_t stream, uint32_t i) {
    Random4 r = random4(20, RANDOM_DATA, stream, 0, 0, i);
    return random_normal(r.v[0], r.v[1]);
}

static uint32_t below(uint32_t n, uint32_t stream, uint32_t i) {
    return random4(20, RANDOM_DATA, stream, 1, 0, i).v[0] % n;
}

/* ---- Comparisons ----------------------------------------------------------------------------- */

/* Each returns NULL or the complaint, so that Check reports the line of the test. */

/* The same tests run on kernels.cu (make test_emu, make test_cuda), in float and in bf16. Promises
 * of equal bits hold there to the bit. */
static bool on_cpu(void) { return !strncmp(device_name(), "CPU", 3); }

/* A value's tolerance; the second where numbers are stored as bf16: about three times what was
   measured on the emulated device. A number is rounded there by up to 2^-9 of itself, weights and
   some ten activations on the way, so what moves a few thousandths is right. */
#define WITHIN(in_float, in_bf16) (SHORT ? (in_bf16) : (in_float))

#define ck_complaint(complaint)           \
    do {                                  \
        const char *said = (complaint);   \
        ck_assert_msg(!said, "%s", said); \
    } while (0)
#define ck_close(got, want, n, tolerance) \
    ck_complaint(compare(#got, (got), (want), (n), (tolerance)))
#define ck_bits(got, want, n) ck_complaint(compare_bits(#got, (got), (want), (n)))
/* Of sums that go on from a part of the batch to the next: on a CPU they are one chain (kernels.h)
 */
#define ck_chain(got, want, n)                          \
    do {                                                \
        if (on_cpu())                                   \
            ck_bits(got, want, n);                      \
        else                                            \
            ck_close(got, widen((want), (n)), n, 1e-5); \
    } while (0)
#define ck_zero(got, n) ck_complaint(compare_zero(#got, (got), (n)))

static char complaint[512];

/* The error of an element is relative to its own size plus the root mean square of them all. */
static const char *compare(const char *what, const float *got, const double *want, size_t n,
                           double tolerance) {
    double scale = n ? norm(want, n) / sqrt((double)n) : 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)got[i] - want[i]) / (fabs(want[i]) + scale);
        if ((double)got[i] == want[i] || error <= tolerance) continue;
        snprintf(complaint, sizeof complaint,
                 "%s: %s[%zu of %zu] is %.9g, not %.9g; relative error %.3g, tolerance %.3g", where,
                 what, i, n, (double)got[i], want[i], error, tolerance);
        return complaint;
    }
    return NULL;
}

static const char *compare_bits(const char *what, const float *got, const float *want, size_t n) {
    if (!memcmp(got, want, n * sizeof *got)) return NULL;
    size_t at = 0;
    while (!memcmp(got + at, want + at, sizeof *got)) at++;
    snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %.9g (%a), not exactly %.9g (%a)",
             where, what, at, n, (double)got[at], (double)got[at], (double)want[at],
             (double)want[at]);
    return complaint;
}

static const char *compare_zero(const char *what, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0) {
            snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %.9g, not 0", where, what,
                     i, n, (double)x[i]);
            return complaint;
        }
    return NULL;
}

/* ---- Models and batches to try --------------------------------------------------------------- */

#define CONFIG(T, V, L, NH, C, F, norm_epsilon)                                               \
    {                                                                                         \
        .n_positions = (T), .vocab_size = (V), .n_layer = (L), .n_head = (NH), .n_embd = (C), \
        .n_inner = (F), .layer_norm_epsilon = (norm_epsilon)                                  \
    }
#define ADAMW(rate, decay, norm)                                                   \
    {                                                                              \
        .learning_rate = (rate), .beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 1e-8f, \
        .weight_decay = (decay), .max_grad_norm = (norm)                           \
    }

/* A batch that owns what it points at. Rows have a random target, or none: an API of single tokens
   need not score the next one. Derivatives of unscored rows are NaN: they do not count, whatever
   they are. */
enum { MAX_N = 512, MAX_S = 12 };

typedef struct {
    Batch batch;
    int start[MAX_S + 1], tokens[MAX_N], target[MAX_N], scored;
    uint32_t id[MAX_S];
    float dlogp[MAX_N], dentropy[MAX_N];
} Text;

static void derivatives(Text *t) {
    t->scored = 0;
    for (int i = 0; i < t->batch.N; i++) {
        bool scored = t->target[i] >= 0;
        t->scored += scored;
        t->dlogp[i] = scored ? normal(101, (uint32_t)i) : NAN;
        t->dentropy[i] = scored ? normal(102, (uint32_t)i) : NAN;
    }
}

/* S sequences of these lengths over a vocabulary of V; ids 10, 7, 4, ... (wrapping: any 32 bits
 * name a sequence) */
static Text *text(int V, int S, const int *length) {
    Text *t = zeros(1, sizeof *t);
    int N = 0;
    for (int s = 0; s < S; s++) {
        t->start[s + 1] = N += length[s];
        t->id[s] = 10 - 3 * (uint32_t)s;
    }
    ck_assert(N <= MAX_N && S <= MAX_S);
    for (int i = 0; i < N; i++) {
        t->tokens[i] = (int)below((uint32_t)V, 103, (uint32_t)i);
        t->target[i] = below(4, 104, (uint32_t)i) ? (int)below((uint32_t)V, 105, (uint32_t)i) : -1;
    }
    t->batch = (Batch){.S = S, .N = N, .start = t->start, .tokens = t->tokens, .id = t->id};
    derivatives(t);
    ck_assert_int_gt(t->scored, 0);
    return t;
}

/* Sequences s, s + 1, ..., s + S - 1 of another text, with their ids, targets and derivatives. */
static Text *part_of(const Text *all, int s, int S) {
    Text *t = zeros(1, sizeof *t);
    int first = all->start[s], N = all->start[s + S] - first;
    for (int i = 0; i <= S; i++) t->start[i] = all->start[s + i] - first;
    for (int i = 0; i < S; i++) t->id[i] = all->id[s + i];
    memcpy(t->tokens, all->tokens + first, sizeof(int) * (size_t)N);
    memcpy(t->target, all->target + first, sizeof(int) * (size_t)N);
    memcpy(t->dlogp, all->dlogp + first, sizeof(float) * (size_t)N);
    memcpy(t->dentropy, all->dentropy + first, sizeof(float) * (size_t)N);
    for (int i = 0; i < N; i++) t->scored += t->target[i] >= 0;
    t->batch = (Batch){.S = S, .N = N, .start = t->start, .tokens = t->tokens, .id = t->id};
    return t;
}

/* Exactly what a text needs: whatever is too small by one shows. */
static GPT2Limits fit(const Text *t, bool train, bool checkpointing) {
    return (GPT2Limits){.tokens = t->batch.N,
                        .sequences = t->batch.S,
                        .scored = t->scored,
                        .train = train,
                        .gradient_checkpointing = checkpointing};
}

typedef struct {
    const char *name;
    GPT2Config config;  // T V L NH C F, then epsilon
    int S, length[MAX_S];
} Shape;

static const Shape shapes[] = {
    {"one layer, one head, two tokens", CONFIG(9, 2, 1, 1, 8, 32, 1e-5f), 3, {1, 4, 9}},
    {"heads of 5, inner of 33", CONFIG(24, 37, 2, 4, 20, 33, 1e-5f), 4, {7, 1, 24, 3}},
    {"inner narrower than 3C", CONFIG(17, 48, 3, 2, 16, 7, 1e-3f), 2, {17, 2}},
    {"more positions than a block of keys", CONFIG(150, 51, 1, 3, 12, 48, 1e-5f), 2, {5, 131}},
};

#define FOR_SHAPES(s)             \
    for (const Shape *s = shapes; \
         AT("%s", s < shapes + LENGTH(shapes) ? s->name : "?"), s < shapes + LENGTH(shapes); s++)

static Text *text_of(const Shape *s) { return text(s->config.vocab_size, s->S, s->length); }

/* The shape that most properties are tried on. */
#define MIDDLING (&shapes[1])

static const GPT2Noise all_noise = {.embd_pdrop = 0.1f,
                                    .attn_pdrop = 0.2f,
                                    .resid_pdrop = 0.15f,
                                    .neftune_alpha = 5,
                                    .seed = 7,
                                    .step = 3};

static bool is_gain(const char *name) { return strstr(name, "ln_") && strstr(name, ".weight"); }

/* Weights large enough that attention is uneven, GELU bends, and no tensor's gradient is small. */
static void randomise(GPT2 *m) {
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        float *w = xmalloc(t->n * sizeof *w);
        for (size_t j = 0; j < t->n; j++)
            w[j] = (is_gain(t->name) ? 1 : 0) + 0.25f * normal((uint32_t)i, (uint32_t)j);
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        free(w);
    }
}

static GPT2 *adopt(GPT2 *m) {
    ck_assert_int_lt(model_count, OWNED);
    return models[model_count++] = m;
}

/* Always the same weights for the same shape. */
static GPT2 *model(const GPT2Config *config, GPT2Limits limits) {
    GPT2 *m = adopt(gpt2_create(config, false));
    randomise(m);
    gpt2_reserve(m, &limits);
    return m;
}

/* ---- What a model gives ---------------------------------------------------------------------- */

static size_t elements(const GPT2 *m) {
    size_t n = 0;
    for (int i = 0; i < gpt2_tensors(m); i++) n += gpt2_tensor(m, i)->n;
    return n;
}

static float *read_tensor(const GPT2 *m, int i, GPT2Part part) {
    float *x = floats(gpt2_tensor(m, i)->n);
    gpt2_read(m, i, part, 0, gpt2_tensor(m, i)->n, x);
    return x;
}

/* A part of every tensor, one after the other. */
static float *read_all(const GPT2 *m, GPT2Part part) {
    float *all = floats(elements(m)), *x = all;
    for (int i = 0; i < gpt2_tensors(m); x += gpt2_tensor(m, i++)->n)
        gpt2_read(m, i, part, 0, gpt2_tensor(m, i)->n, x);
    return all;
}

static void clear_gradients(GPT2 *m) {
    for (int i = 0; i < gpt2_tensors(m); i++)
        gpt2_write(m, i, GPT2_GRADIENT, 0, gpt2_tensor(m, i)->n, floats(gpt2_tensor(m, i)->n));
}

typedef struct {
    float *logp, *entropy, *best;  // best as float, to be compared like the others
} Scores;

static Scores score(GPT2 *m, const Text *t, const GPT2Noise *noise) {
    size_t N = (size_t)t->batch.N;
    int *best = zeros(N, sizeof(int));
    Scores s = {floats(N), floats(N), floats(N)};
    for (size_t i = 0; i < N; i++) {
        s.logp[i] = s.entropy[i] = s.best[i] = NAN;
        best[i] = -1;
    }  // every one is to be written
    gpt2_forward(m, &t->batch, noise);
    gpt2_logprob(m, t->target, 1, s.logp, s.entropy, best);
    for (size_t i = 0; i < N; i++) s.best[i] = (float)best[i];
    return s;
}

#define ck_same_scores(got, want, n)                 \
    do {                                             \
        ck_bits((got).logp, (want).logp, (n));       \
        ck_bits((got).entropy, (want).entropy, (n)); \
        ck_bits((got).best, (want).best, (n));       \
    } while (0)

/* Adds a text's gradient to what is there. */
static Scores learn(GPT2 *m, const Text *t, const GPT2Noise *noise) {
    Scores s = score(m, t, noise);
    gpt2_backward(m, t->dlogp, t->dentropy, NULL);
    return s;
}

/* ---- Golden numbers: what PyTorch computes --------------------------------------------------- */

enum { GOLDEN_N = 20 };
static const GPT2Config golden_config = CONFIG(32, 61, 2, 3, 24, 96, 1e-5f);

static GPT2 *golden_model(void) {
    GPT2 *m = adopt(gpt2_create(&golden_config, false));
    ck_assert_int_eq(gpt2_tensors(m), LENGTH(golden_grad));
    for (int t = 0; t < gpt2_tensors(m); t++) {
        const GPT2Tensor *x = gpt2_tensor(m, t);
        ck_assert_str_eq(x->name, golden_grad[t].name);
        ck_assert_uint_eq(x->n, (size_t)golden_grad[t].n);
        float *w = floats(x->n);
        for (uint32_t i = 0; i < x->n; i++) {
            uint32_t h = (uint32_t)t * 1000003u + i * 7919u + 12345u;
            h ^= h >> 16;
            h *= 0x7feb352du;
            h ^= h >> 15;
            h *= 0x846ca68bu;
            h ^= h >> 16;
            double v = (h / 4294967296.0 - 0.5) * 0.4;
            w[i] = (float)(is_gain(x->name) ? 1.0 + v : v);
        }
        gpt2_write(m, t, GPT2_WEIGHT, 0, x->n, w);
    }
    gpt2_reserve(m, &(GPT2Limits){.tokens = GOLDEN_N,
                                  .sequences = 3,
                                  .scored = GOLDEN_N,
                                  .train = true,
                                  .slots = 1,
                                  .positions = 32});
    return m;
}

static Text *golden_text(void) {
    Text *t = zeros(1, sizeof *t);
    for (int s = 0; s < 3; s++) {
        t->start[s + 1] = t->start[s] + golden_length[s];
        for (int p = 0; p < golden_length[s]; p++)
            t->tokens[t->start[s] + p] = (5 * p * p + 3 * p + 11 * s + 2) % 61;
        for (int p = 0; p < golden_length[s]; p++) {
            bool scored = p >= golden_first_scored[s] && p + 1 < golden_length[s];
            t->target[t->start[s] + p] = scored ? t->tokens[t->start[s] + p + 1] : -1;
            t->dlogp[t->start[s] + p] = scored ? -1.0f / LENGTH(golden_logp) : 0;
            t->scored += scored;
        }
    }
    t->batch = (Batch){.S = 3, .N = t->start[3], .start = t->start, .tokens = t->tokens};
    ck_assert_int_eq(t->batch.N, GOLDEN_N);
    ck_assert_int_eq(t->scored, LENGTH(golden_logp));
    return t;
}

static double mean_loss(const Text *t, const float *logp) {
    double sum = 0;
    for (int i = 0; i < t->batch.N; i++) sum -= logp[i];
    return sum / t->scored;
}

START_TEST(golden_scores) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    Scores s = score(m, t, NULL);
    for (int i = 0, k = 0; i < GOLDEN_N; i++) {
        // Sums of 24 to 96 terms of size 1 in float: PyTorch's own float32 strays by 6e-7 from
        // these, four times that is allowed.
        if (t->target[i] >= 0) {
            ck_assert_double_eq_tol((double)s.logp[i], golden_logp[k], WITHIN(2.4e-6, 0.04));
            ck_assert_double_eq_tol((double)s.entropy[i], golden_entropy[k], WITHIN(2.4e-6, 0.04));
            k++;
        } else {
            ck_assert(s.logp[i] == 0 && s.entropy[i] == 0 && s.best[i] == 0);
        }
    }
    // the logits of each sequence's last row
    for (int i = 0; i < GOLDEN_N; i++) t->target[i] = -1;
    for (int q = 0; q < 3; q++) t->target[t->start[q + 1] - 1] = 0;
    score(m, t, NULL);
    for (int q = 0; q < 3; q++) {
        float logits[61];
        real_read(logits, m->logits + q * m->ldv, 61);
        for (int v = 0; v < 61; v++)
            ck_assert_double_eq_tol((double)logits[v], golden_logits[q * 61 + v],
                                    WITHIN(2.4e-6, 0.04));
    }
}
END_TEST

/* PyTorch's float32 is off by f32_l2 in the L2 norm. Four times as much is allowed here, plus the
   rounding of the numbers themselves, 2^-24 of them: an error of norm e moves the norm and each
   element by at most e, and a sum with factors up to 1 by e sqrt(n). */
static const char *compare_golden(const GoldenTensor *g, const float *x, double in_bf16) {
    double sum = 0, squares = 0, dot = 0;
    for (int i = 0; i < g->n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
        dot += (double)x[i] * cos(0.1 * i);
    }
    double e = WITHIN(4 * g->f32_l2 + 0x1p-24 * g->l2, in_bf16 * g->l2),
           got[] = {sum, dot, sqrt(squares), x[0], x[1], x[2], x[g->n - 1]};
    const double want[] = {g->sum,      g->dot_cos,  g->l2,  g->first[0],
                           g->first[1], g->first[2], g->last};
    static const char *const what[] = {
        "sum", "dot_cos", "norm", "element 0", "element 1", "element 2", "the last element"};
    for (int i = 0; i < LENGTH(want); i++) {
        if (fabs(got[i] - want[i]) <= (i < 2 ? e * sqrt(g->n) : e)) continue;
        snprintf(complaint, sizeof complaint,
                 "%s: %s is %.9g, not %.9g (error of all allowed: %.2g)", g->name, what[i], got[i],
                 want[i], e);
        return complaint;
    }
    return NULL;
}

START_TEST(golden_gradient) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    score(m, t, NULL);
    gpt2_backward(m, t->dlogp, NULL, NULL);
    for (int i = 0; i < gpt2_tensors(m); i++)
        ck_complaint(compare_golden(&golden_grad[i], read_tensor(m, i, GPT2_GRADIENT), 0.03));
}
END_TEST

START_TEST(golden_steps) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    const AdamW o = ADAMW(0.01f, 0.1f, 1);
    for (int step = 0; step <= 3; step++) {
        // PyTorch's float32 strays by 3.4e-7 (loss) and 5e-7 (norm)
        ck_assert_double_eq_tol(mean_loss(t, score(m, t, NULL).logp), golden_loss[step],
                                WITHIN(1.4e-6, 0.02));
        if (step == 3) break;
        gpt2_backward(m, t->dlogp, NULL, NULL);
        ck_assert_double_eq_tol((double)gpt2_step(m, &o, step + 1), golden_norm[step],
                                WITHIN(2e-6, 0.02));
    }
    for (int i = 0; i < gpt2_tensors(m); i++) {
        float *w = read_tensor(m, i, GPT2_WEIGHT);
        if (strstr(golden_after[i].name, "c_attn.bias"))
            memset(w + 24, 0, sizeof *w * 24);  // KEY BIAS in golden_gpt2.h
        ck_complaint(compare_golden(&golden_after[i], w, 0.1));
    }
}
END_TEST

static const Generation *generate(GPT2 *m, const Batch *prompts, Sampler s) {
    ck_assert_int_lt(generation_count, OWNED);
    Generation *g = &generations[generation_count++];
    gpt2_generate(m, prompts, &s, g, NULL, NULL);
    return g;
}

START_TEST(golden_continuation) {
    const Batch prompt = {.S = 1,
                          .N = LENGTH(golden_start),
                          .start = (int[]){0, LENGTH(golden_start)},
                          .tokens = golden_start};
    const Generation *g =
        generate(golden_model(), &prompt,
                 (Sampler){.top_p = 1, .max_new_tokens = LENGTH(golden_greedy), .stop_token = -1});
    ck_assert_int_eq(g->start[1], LENGTH(golden_greedy));
    for (int i = 0; i < LENGTH(golden_greedy) && !SHORT; i++)
        ck_assert_int_eq(g->tokens[i], golden_greedy[i]);  // bf16 decides a near tie otherwise
    ck_assert(!g->ended[0]);
}
END_TEST

/* ---- The same model in double ---------------------------------------------------------------- */

/* All weights in double, in one piece; w[i] is tensor i. */
typedef struct {
    double *all, **w;
} Wide;

static Wide widen_weights(const GPT2 *m) {
    Wide x = {widen(read_all(m, GPT2_WEIGHT), elements(m)),
              zeros((size_t)gpt2_tensors(m), sizeof(double *))};
    double *w = x.all;
    for (int i = 0; i < gpt2_tensors(m); w += gpt2_tensor(m, i++)->n) x.w[i] = w;
    return x;
}

static void ref_add(double *x, const double *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

/* GPT-2, out loud: logp, entropy (N) of the rows with a target; the others are left alone. noise
 * may be NULL. */
static void ref_gpt2(const GPT2Config *c, double *const *w, const Batch *b, const int *target,
                     const GPT2Noise *noise, double *logp, double *entropy, int *best) {
    const int N = b->N, C = c->n_embd, F = c->n_inner, V = c->vocab_size;
    const size_t NC = (size_t)N * (size_t)C;
    const GPT2Noise z = noise ? *noise : (GPT2Noise){0};
    uint32_t *sequence = xcalloc((size_t)N, sizeof *sequence);
    int *position = xcalloc((size_t)N, sizeof *position);
    double *memory =
        xcalloc(NC * 6 + (size_t)N * (size_t)(2 * F + c->n_head + 3 + V), sizeof *memory);
    double *r = memory, *x = r + NC, *branch = x + NC, *qkv = branch + NC, *fc = qkv + 3 * NC,
           *act = fc + (size_t)N * (size_t)F;
    double *lse = act + (size_t)N * (size_t)F, *mean = lse + (size_t)N * (size_t)c->n_head,
           *rstd = mean + N, *magnitude = rstd + N, *logits = magnitude + N;
    for (int s = 0; s < b->S; s++)
        for (int i = b->start[s]; i < b->start[s + 1]; i++) {
            sequence[i] = b->id ? b->id[s] : (uint32_t)s;
            position[i] = i - b->start[s];
            magnitude[i] =
                (double)z.neftune_alpha / sqrt((double)(b->start[s + 1] - b->start[s]) * C);
        }
#define SITE(probability, what, layer)                                                            \
    ((Noise){(probability), z.seed, (uint32_t)(what) + 256 * (uint32_t)(layer), z.step, sequence, \
             position})

    ref_embed_forward(r, b->tokens, position, w[0], w[1], N, C);
    ref_add_uniform_noise(r, magnitude, N, C, SITE(1, RANDOM_NEFTUNE, 0));
    ref_dropout(r, N, C, SITE(z.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
    double *const *p = w + 2;
    for (int l = 0; l < c->n_layer; l++, p += 12) {
        ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[0], p[1], N, C,
                              (double)c->layer_norm_epsilon);
        ref_linear_forward(qkv, x, p[2], p[3], N, C, 3 * C);
        ref_attention_forward(x, lse, qkv, b->start, b->S, c->n_head, C / c->n_head,
                              SITE(z.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
        ref_linear_forward(branch, x, p[4], p[5], N, C, C);
        ref_dropout(branch, N, C, SITE(z.resid_pdrop, RANDOM_DROPOUT_ATTN_RESID, l));
        ref_add(r, branch, NC);
        ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[6], p[7], N, C,
                              (double)c->layer_norm_epsilon);
        ref_linear_forward(fc, x, p[8], p[9], N, C, F);
        ref_gelu_forward(act, fc, (size_t)N * (size_t)F);
        ref_linear_forward(branch, act, p[10], p[11], N, F, C);
        ref_dropout(branch, N, C, SITE(z.resid_pdrop, RANDOM_DROPOUT_MLP_RESID, l));
        ref_add(r, branch, NC);
    }
    ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[0], p[1], N, C,
                          (double)c->layer_norm_epsilon);
    ref_head_forward(logits, x, w[0], N, C, V, V);
    for (int i = 0; i < N; i++)
        if (target[i] >= 0)
            ref_logprob_forward(logp + i, entropy + i, lse, best + i,
                                logits + (size_t)i * (size_t)V, target + i, 1, V, V);
    free(memory);
    free(position);
    free(sequence);
}

START_TEST(scores_are_those_of_the_reference) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++) {
        const GPT2Noise *noise = noisy ? &all_noise : NULL;
        Text *t = text_of(s);
        GPT2 *m = model(&s->config, fit(t, false, false));
        size_t N = (size_t)t->batch.N;
        double *logp = doubles(N), *entropy = doubles(N);
        int *best = zeros(N, sizeof(int));
        ref_gpt2(&s->config, widen_weights(m).w, &t->batch, t->target, noise, logp, entropy, best);
        Scores got = score(m, t, noise);
        // Some ten sums in a row, of up to 60 terms: each errs by 2^-24 times the root of their
        // number, 5e-7, and the errors add up like random steps. Allowed is that sum, 2e-6;
        // measured is an eighth of it.
        ck_close(got.logp, logp, N, WITHIN(2e-6, 0.01));
        ck_close(got.entropy, entropy, N, WITHIN(2e-6, 0.01));
        for (size_t i = 0; i < N && !SHORT; i++) ck_assert_int_eq((int)got.best[i], best[i]);
    }
}
END_TEST

START_TEST(each_kind_of_noise_is_that_of_the_reference_alone) {
    const GPT2Noise kinds[] = {{.embd_pdrop = 0.5f, .seed = 1},
                               {.attn_pdrop = 0.5f, .seed = 1},
                               {.resid_pdrop = 0.5f, .seed = 1},
                               {.neftune_alpha = 15, .seed = 1},
                               {.embd_pdrop = 0.5f, .seed = 1ull << 40, .step = 4000000000u}};
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, false, false));
    size_t N = (size_t)t->batch.N;
    Scores silent = score(m, t, NULL);
    for (int k = 0; k < LENGTH(kinds); k++)
        for (int named = 0; named <= 1; named++) {
            AT("noise %d, ids %s", k, named ? "given" : "counted");
            t->batch.id = named ? t->id : NULL;
            double *logp = doubles(N), *entropy = doubles(N);
            ref_gpt2(&MIDDLING->config, widen_weights(m).w, &t->batch, t->target, &kinds[k], logp,
                     entropy, zeros(N, sizeof(int)));
            Scores noisy = score(m, t, &kinds[k]);
            ck_close(noisy.logp, logp, N, WITHIN(2e-6, 0.01));  // as above
            ck_assert(memcmp(noisy.logp, silent.logp, N * sizeof(float)));
        }
    AT("after noise");
    score(m, t, &all_noise);
    ck_same_scores(score(m, t, NULL), silent, N);
    ck_same_scores(score(m, t, &(GPT2Noise){.seed = 9}), silent,
                   N);  // all 0 by default: nothing is random
}
END_TEST

/* The loss whose derivatives by logp and entropy are the text's. */
static double ref_loss(const GPT2Config *c, double *const *w, const Text *t,
                       const GPT2Noise *noise) {
    double logp[MAX_N] = {0}, entropy[MAX_N] = {0}, loss = 0;
    int best[MAX_N];
    ref_gpt2(c, w, &t->batch, t->target, noise, logp, entropy, best);
    for (int i = 0; i < t->batch.N; i++)
        if (t->target[i] >= 0)
            loss += (double)t->dlogp[i] * logp[i] + (double)t->dentropy[i] * entropy[i];
    return loss;
}

/* Tensor by tensor, along random directions of +-1/sqrt(n) in every element (so that none is passed
   over): the slope of the double reference by central differences, and the product of the direction
   with the gradient. */
static const char *compare_slopes(GPT2 *m, const Text *t, const GPT2Noise *noise,
                                  double tolerance) {
    enum { DIRECTIONS = 3 };
    Wide wide = widen_weights(m);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        size_t n = gpt2_tensor(m, i)->n;
        const double *g = widen(read_tensor(m, i, GPT2_GRADIENT), n),
                     *here = memcpy(doubles(n), wide.w[i], n * sizeof *here);
        double size = norm(g, n),
               step = 1e-4;  // the formula errs by step^2, 1e-8; rounding by 1e-16 / step
        for (int k = 0; k < DIRECTIONS; k++) {
            double product = 0, up, slope, unit = 1 / sqrt((double)n);
#define SIGN(j) (below(2, 200 + (uint32_t)k, (uint32_t)(j)) ? unit : -unit)
            for (size_t j = 0; j < n; j++) product += g[j] * SIGN(j);
            for (size_t j = 0; j < n; j++) wide.w[i][j] = here[j] + step * SIGN(j);
            up = ref_loss(&m->config, wide.w, t, noise);
            for (size_t j = 0; j < n; j++) wide.w[i][j] = here[j] - step * SIGN(j);
            slope = (up - ref_loss(&m->config, wide.w, t, noise)) / (2 * step);
            memcpy(wide.w[i], here, n * sizeof *here);
            if (size > 0 && fabs(product - slope) <= tolerance * size) continue;
            snprintf(complaint, sizeof complaint,
                     "%s: gradient of %s: slope %.9g, not %.9g; error %.3g of its norm %.3g", where,
                     gpt2_tensor(m, i)->name, product, slope, fabs(product - slope) / size, size);
            return complaint;
        }
    }
    return NULL;
}

START_TEST(gradients_are_slopes_of_the_reference) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++)
        for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
            const GPT2Noise *noise = noisy ? &all_noise : NULL;
            AT("%s%s%s", s->name, noisy ? ", noise" : "",
               checkpointing ? ", gradient checkpointing" : "");
            Text *t = text_of(s);
            GPT2 *m = model(&s->config, fit(t, true, checkpointing));
            learn(m, t, noise);
            // The gradient is float: relative to its norm it errs like the scores, with twice as
            // many sums on the way. Measured: 8e-7. One wrong element of n changes the slope by its
            // error / sqrt(n): of 1,200 elements, one that is wrong by 1 % shows.
            ck_complaint(compare_slopes(m, t, noise, WITHIN(5e-6, 0.04)));
        }
}
END_TEST

/* ---- The same bits by another way ------------------------------------------------------------ */

START_TEST(gradient_checkpointing_changes_no_bit) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++) {
        const GPT2Noise *noise = noisy ? &all_noise : NULL;
        Text *t = text_of(s);
        GPT2 *keeps = model(&s->config, fit(t, true, false)),
             *forgets = model(&s->config, fit(t, true, true));
        Scores want = learn(keeps, t, noise), got = learn(forgets, t, noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(forgets, GPT2_GRADIENT), read_all(keeps, GPT2_GRADIENT), elements(keeps));
    }
}
END_TEST

START_TEST(a_model_without_gradients_gives_the_same_scores) {
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        Scores want = score(model(&s->config, fit(t, true, false)), t, &all_noise),
               got = score(model(&s->config, fit(t, false, false)), t, &all_noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
    }
}
END_TEST

/* Arrays that overlap by an element, or ceilings mistaken for sizes, would show. */
START_TEST(room_to_spare_changes_no_bit) {
    FOR_SHAPES(s)
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *t = text_of(s);
        GPT2 *tight = model(&s->config, fit(t, true, checkpointing));
        GPT2 *roomy = model(&s->config, (GPT2Limits){.tokens = 3 * t->batch.N + 5,
                                                     .sequences = 50,
                                                     .scored = 2 * t->batch.N + 3,
                                                     .train = true,
                                                     .gradient_checkpointing = checkpointing,
                                                     .slots = 3,
                                                     .positions = 7});
        Scores want = learn(tight, t, &all_noise), got = learn(roomy, t, &all_noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(roomy, GPT2_GRADIENT), read_all(tight, GPT2_GRADIENT), elements(tight));
    }
}
END_TEST

START_TEST(a_second_batch_does_not_see_the_first) {
    Text *t = text_of(MIDDLING),
         *other = text(MIDDLING->config.vocab_size, 5, (int[]){9, 12, 2, 5, 7});
    GPT2 *fresh = model(&MIDDLING->config, fit(t, true, false));
    GPT2 *used = model(&MIDDLING->config,
                       (GPT2Limits){.tokens = 64, .sequences = 5, .scored = 64, .train = true});
    Scores want = learn(fresh, t, &all_noise);
    learn(used, other, &all_noise);
    score(used, other, NULL);  // and a forward pass that no backward pass follows
    clear_gradients(used);
    Scores got = learn(used, t, &all_noise);
    ck_same_scores(got, want, (size_t)t->batch.N);
    ck_bits(read_all(used, GPT2_GRADIENT), read_all(fresh, GPT2_GRADIENT), elements(fresh));
}
END_TEST

START_TEST(logits_scored_in_turns_give_the_same_bits) {
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        GPT2 *whole = model(&s->config, fit(t, true, false));
        ck_assert_int_eq(whole->logit_rows, t->scored);
        Scores want = learn(whole, t, NULL);
        for (int k = 0; k < 4; k++) {
            GPT2 *turns = model(&s->config, fit(t, true, k % 2));
            turns->logit_rows = (int[]){1, 3, (t->scored + 1) / 2, t->scored - 1}[k];
            AT("%s, %d rows in turns of %d", s->name, t->scored, turns->logit_rows);
            if (turns->logit_rows < 1 || turns->logit_rows >= t->scored) continue;
            Scores got = learn(turns, t, NULL);
            ck_same_scores(got, want, (size_t)t->batch.N);
            // the chains of the vocabulary's gradient go on from turn to turn, and a row's own
            // gradient is its own
            ck_chain(read_all(turns, GPT2_GRADIENT), read_all(whole, GPT2_GRADIENT),
                     elements(whole));
        }
    }
}
END_TEST

START_TEST(logits_keep_to_their_budget) {
    const GPT2Config c = CONFIG(8, 50257, 1, 1, 4, 4, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false));
    gpt2_reserve(m,
                 &(GPT2Limits){.tokens = 18000, .sequences = 2250, .scored = 17000, .train = true});
    size_t row = (size_t)m->ldv * sizeof(real);
    ck_assert_int_ge(m->ldv, c.vocab_size);
    ck_assert_uint_le((size_t)m->logit_rows * row, LOGIT_BYTES);
    ck_assert_uint_gt(((size_t)m->logit_rows + 1) * row, LOGIT_BYTES);
    ck_assert_uint_le(m->memory.logits, LOGIT_BYTES + 64);
    ck_assert_uint_ge(m->memory.logits, (size_t)m->logit_rows * row);
}
END_TEST

/* Everything a model does with a text, as numbers: scores, gradients, norms, weights and moments
   after steps, and what it writes. */
static float *everything(size_t *n) {
    const GPT2Config c = CONFIG(80, 301, 2, 3, 72, 200, 1e-5f);
    Text *t = text(c.vocab_size, 5, (int[]){33, 70, 1, 12, 50});
    GPT2Limits limits = fit(t, true, false);
    limits.slots = 3;
    limits.positions = 80;
    GPT2 *m = model(&c, limits);
    const AdamW o = ADAMW(0.01f, 0.1f, 1);
    size_t N = (size_t)t->batch.N, all = elements(m), generated = 5 * 10;
    float *x = floats(2 * (3 * N + all + 1) + 3 * all + 2 * generated + 5), *to = x;
    for (int step = 1; step <= 2; step++) {
        GPT2Noise noise = all_noise;
        noise.step = (uint32_t)step;
        Scores s = learn(m, t, &noise);
        memcpy(to, s.logp, N * sizeof *to);
        to += N;
        memcpy(to, s.entropy, N * sizeof *to);
        to += N;
        memcpy(to, s.best, N * sizeof *to);
        to += N;
        memcpy(to, read_all(m, GPT2_GRADIENT), all * sizeof *to);
        to += all;
        *to++ = gpt2_step(m, &o, step);
    }
    memcpy(to, read_all(m, GPT2_WEIGHT), all * sizeof *to);
    to += all;
    memcpy(to, read_all(m, GPT2_MOMENT1), all * sizeof *to);
    to += all;
    memcpy(to, read_all(m, GPT2_MOMENT2), all * sizeof *to);
    to += all;
    const Generation *g = generate(
        m, &t->batch,
        (Sampler){
            .temperature = 1, .top_p = 0.9f, .max_new_tokens = 10, .stop_token = -1, .seed = 5});
    ck_assert_int_eq(g->start[5], (int)generated);
    for (int i = 0; i < g->start[5]; i++) {
        *to++ = (float)g->tokens[i];
        *to++ = g->logp[i];
    }
    *n = (size_t)(to - x);
    return x;
}

START_TEST(threads_change_no_bit) {
    size_t n;
    omp_set_num_threads(1);
    const float *one = everything(&n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(one[i])) ck_abort_msg("number %zu of %zu is not finite", i, n);
    for (int threads = 2; threads <= 3; threads++) {
        AT("%d threads", threads);
        omp_set_num_threads(threads);
        ck_bits(everything(&n), one, n);
    }
}
END_TEST

START_TEST(a_sequence_alone_has_the_bits_it_has_in_company) {
    FOR_SHAPES(s) {
        Text *all = text_of(s);
        GPT2 *m = model(&s->config, fit(all, false, false));
        Scores together = score(m, all, &all_noise);
        for (int q = 0; q < s->S; q++)
            for (int S = 1; q + S <= s->S;
                 S++) {  // first, in the middle, last, alone, with one neighbour, with two, ...
                AT("%s: sequences %d to %d", s->name, q, q + S - 1);
                Text *some = part_of(all, q, S);
                Scores alone = score(m, some, &all_noise), want = together;
                want.logp += all->start[q];
                want.entropy += all->start[q];
                want.best += all->start[q];
                ck_same_scores(alone, want, (size_t)some->batch.N);
            }
    }
}
END_TEST

START_TEST(an_empty_sequence_changes_no_bit) {
    Text *t = text(MIDDLING->config.vocab_size, 2, (int[]){7, 5}),
         *gap = text(MIDDLING->config.vocab_size, 4, (int[]){7, 0, 5, 0});
    gap->id[0] = t->id[0];
    gap->id[2] = t->id[1];
    GPT2 *a = model(&MIDDLING->config, fit(t, true, false)),
         *b = model(&MIDDLING->config, fit(gap, true, false));
    Scores want = learn(a, t, &all_noise), got = learn(b, gap, &all_noise);
    ck_same_scores(got, want, 12);
    ck_bits(read_all(b, GPT2_GRADIENT), read_all(a, GPT2_GRADIENT), elements(a));
}
END_TEST

START_TEST(entropy_and_best_are_optional) {
    Text *t = text_of(MIDDLING);
    GPT2 *with = model(&MIDDLING->config, fit(t, true, false)),
         *without = model(&MIDDLING->config, fit(t, true, false));
    Scores want = score(with, t, NULL), got = {.logp = floats((size_t)t->batch.N)};
    gpt2_backward(with, t->dlogp, NULL, NULL);
    gpt2_forward(without, &t->batch, NULL);
    gpt2_logprob(without, t->target, 1, got.logp, NULL, NULL);
    gpt2_backward(without, t->dlogp, NULL, NULL);
    ck_bits(got.logp, want.logp, (size_t)t->batch.N);
    ck_bits(read_all(without, GPT2_GRADIENT), read_all(with, GPT2_GRADIENT), elements(with));
    // a loss by the entropy alone
    GPT2 *by_entropy = model(&MIDDLING->config, fit(t, true, false)),
         *by_zero = model(&MIDDLING->config, fit(t, true, false));
    const float *none = floats((size_t)t->batch.N);
    score(by_entropy, t, NULL);
    gpt2_backward(by_entropy, NULL, t->dentropy, NULL);
    score(by_zero, t, NULL);
    gpt2_backward(by_zero, none, t->dentropy, NULL);
    ck_bits(read_all(by_entropy, GPT2_GRADIENT), read_all(by_zero, GPT2_GRADIENT), elements(with));
    double *g = widen(read_all(by_entropy, GPT2_GRADIENT), elements(with));
    ck_assert_double_gt(norm(g, elements(with)), 0.1);
}
END_TEST

START_TEST(the_last_scores_count) {
    Text *t = text_of(MIDDLING);
    GPT2 *once = model(&MIDDLING->config, fit(t, true, false)),
         *twice = model(&MIDDLING->config, fit(t, true, false));
    Scores want = learn(once, t, NULL);
    Text *shifted = memcpy(zeros(1, sizeof *shifted), t, sizeof *t);
    for (int i = 0; i < t->batch.N; i++) shifted->target[i] = t->target[t->batch.N - 1 - i];
    score(twice, shifted, NULL);
    Scores got = {floats((size_t)t->batch.N), floats((size_t)t->batch.N), want.best};
    gpt2_logprob(twice, t->target, 1, got.logp, got.entropy,
                 NULL);  // again, without another forward pass
    gpt2_backward(twice, t->dlogp, t->dentropy, NULL);
    ck_same_scores(got, want, (size_t)t->batch.N);
    ck_bits(read_all(twice, GPT2_GRADIENT), read_all(once, GPT2_GRADIENT), elements(once));
}
END_TEST

/* ---- Accumulation, rows without a target ----------------------------------------------------- */

/* A gradient's chain over tokens goes on from what is there. So two micro-batches give the bits of
   one batch with both: except in the tied matrix, where one batch adds both heads' shares and then
   both embeddings', and two batches head, embedding, head, embedding; there the order of the
   additions differs, and each may round by 2^-24. */
START_TEST(micro_batches_accumulate_to_the_bits_of_one_batch) {
    FOR_SHAPES(s)
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *all = text_of(s), *first = part_of(all, 0, 1), *rest = part_of(all, 1, s->S - 1);
        GPT2 *whole = model(&s->config, fit(all, true, checkpointing)),
             *parts = model(&s->config, fit(all, true, checkpointing));
        learn(whole, all, &all_noise);
        learn(parts, first, &all_noise);
        learn(parts, rest, &all_noise);
        size_t n = gpt2_tensor(whole, 0)->n;
        ck_close(read_tensor(parts, 0, GPT2_GRADIENT),
                 widen(read_tensor(whole, 0, GPT2_GRADIENT), n), n, 1e-6);
        for (int i = 1; i < gpt2_tensors(whole); i++) {
            AT("%s: %s", s->name, gpt2_tensor(whole, i)->name);
            ck_chain(read_tensor(parts, i, GPT2_GRADIENT), read_tensor(whole, i, GPT2_GRADIENT),
                     gpt2_tensor(whole, i)->n);
        }
    }
}
END_TEST

START_TEST(rows_without_a_target_have_no_score_and_no_gradient) {
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    for (int i = 0; i < t->batch.N; i++) t->target[i] = -1 - i;
    derivatives(t);  // all NaN
    Scores s = learn(m, t, NULL);
    for (int i = 0; i < t->batch.N; i++)
        ck_assert(s.logp[i] == 0 && s.entropy[i] == 0 && s.best[i] == 0);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
    // nor has a forward pass that was not scored at all
    score(m, text_of(MIDDLING), NULL);
    gpt2_forward(m, &t->batch, NULL);
    gpt2_backward(m, t->dlogp, t->dentropy, NULL);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
}
END_TEST

/* What comes after a row cannot touch it: when only one row is scored, the gradients of later
 * positions are 0. */
START_TEST(gradients_do_not_come_from_the_future) {
    Text *t = text(MIDDLING->config.vocab_size, 1, (int[]){20});
    for (int i = 0; i < 20; i++) t->target[i] = i == 11 ? 3 : -1;
    derivatives(t);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    learn(m, t, NULL);
    const float *wpe = read_tensor(m, 1, GPT2_GRADIENT);
    size_t C = (size_t)MIDDLING->config.n_embd;
    for (size_t p = 0; p < 24; p++)
        ck_assert(p <= 11 ? norm(widen(wpe + p * C, C), C) > 0
                          : norm(widen(wpe + p * C, C), C) == 0);
}
END_TEST

/* ---- The optimiser's step -------------------------------------------------------------------- */

START_TEST(a_step_is_that_of_the_reference) {
    for (int clipped = 0; clipped <= 1; clipped++) {
        AT("%s", clipped ? "clipped" : "not clipped");
        Text *t = text_of(MIDDLING);
        GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
        AdamW o = {.learning_rate = 0.02f,
                   .beta1 = 0.8f,
                   .beta2 = 0.99f,
                   .epsilon = 1e-6f,
                   .weight_decay = 0.3f};
        o.max_grad_norm = clipped ? 0.5f : 0;
        size_t all = elements(m);
        double *w = widen_weights(m).all, *m1 = doubles(all), *m2 = doubles(all);
        for (int step = 1; step <= 3; step++) {
            learn(m, t, NULL);
            double *g = widen(read_all(m, GPT2_GRADIENT), all), size = norm(g, all),
                   scale = clipped ? 0.5 / (size + 1e-6) : 1;
            ck_assert_double_gt(size, 1);  // so that there is something to clip
            // the norm before clipping; a float of a sum in double
            ck_assert_double_eq_tol((double)gpt2_step(m, &o, step), size, 1e-7 * size);
            size_t from = 0;
            for (int i = 0; i < gpt2_tensors(m); from += gpt2_tensor(m, i++)->n)
                ref_adamw(w + from, g + from, m1 + from, m2 + from, gpt2_tensor(m, i)->n, scale,
                          (double)o.learning_rate, (double)o.beta1, (double)o.beta2,
                          (double)o.epsilon,
                          gpt2_tensor(m, i)->ndim == 2 ? (double)o.weight_decay : 0, step);
            // the moments and weights go on in float from step to step: a few roundings of 2^-24
            // each
            ck_close(read_all(m, GPT2_MOMENT1), m1, all, 1e-6);
            ck_close(read_all(m, GPT2_MOMENT2), m2, all, 1e-6);
            ck_close(read_all(m, GPT2_WEIGHT), w, all, 1e-6);
            ck_zero(read_all(m, GPT2_GRADIENT), all);
        }
    }
}
END_TEST

START_TEST(a_small_gradient_is_not_clipped) {
    Text *t = text_of(MIDDLING);
    GPT2 *limited = model(&MIDDLING->config, fit(t, true, false)),
         *free_ = model(&MIDDLING->config, fit(t, true, false));
    AdamW o = ADAMW(0.02f, 0, 1e6f);
    o.epsilon = 1;  // with a small one the scale of a gradient hardly matters
    learn(limited, t, NULL);
    gpt2_step(limited, &o, 1);
    o.max_grad_norm = 0;
    learn(free_, t, NULL);
    gpt2_step(free_, &o, 1);
    ck_bits(read_all(limited, GPT2_WEIGHT), read_all(free_, GPT2_WEIGHT), elements(limited));
}
END_TEST

START_TEST(cleared_gradients_are_forgotten) {
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false)),
         *other = model(&MIDDLING->config, fit(t, true, false));
    const AdamW o = ADAMW(0.02f, 0, 1);
    learn(m, t, NULL);
    gpt2_clear(m);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
    learn(m, t, NULL);
    gpt2_step(m, &o, 1);  // as if the first time had never been
    learn(other, t, NULL);
    gpt2_step(other, &o, 1);
    ck_bits(read_all(m, GPT2_WEIGHT), read_all(other, GPT2_WEIGHT), elements(m));
}
END_TEST

START_TEST(a_gradient_that_is_not_finite_changes_nothing) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const AdamW o = ADAMW(0.02f, 0.1f, 1);
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    learn(m, t, NULL);
    gpt2_step(m, &o, 1);
    const float *w = read_all(m, GPT2_WEIGHT), *m1 = read_all(m, GPT2_MOMENT1),
                *m2 = read_all(m, GPT2_MOMENT2);
    for (int k = 0; k < LENGTH(bad); k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            AT("%f in %s", (double)bad[k], gpt2_tensor(m, i)->name);
            if (i == 5) learn(m, t, NULL);  // beside finite numbers, or zeros
            gpt2_write(m, i, GPT2_GRADIENT, gpt2_tensor(m, i)->n - 1, 1, &bad[k]);
            ck_assert(!isfinite(gpt2_step(m, &o, 2)));
            ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
        }
    ck_bits(read_all(m, GPT2_WEIGHT), w, elements(m));
    ck_bits(read_all(m, GPT2_MOMENT1), m1, elements(m));
    ck_bits(read_all(m, GPT2_MOMENT2), m2, elements(m));
}
END_TEST

/* ---- Slopes: what a gradient promises -------------------------------------------------------- */

/* Along the gradient g of a tensor the loss rises by |g|^2 a unit: central differences in float
 * show that to a few thousandths, for any loss, tensor and model, without a second implementation.
 */

typedef double Loss(GPT2 *m, const void *what);

/* NULL, or the complaint about the first tensor whose gradient is not the loss's slope. */
static const char *compare_gradients_with_slopes(GPT2 *m, Loss *loss, const void *what) {
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        if (!t->trains) continue;
        float *w = read_tensor(m, i, GPT2_WEIGHT), *g = read_tensor(m, i, GPT2_GRADIENT),
              *moved = floats(t->n);
        double square = norm(widen(g, t->n), t->n) * norm(widen(g, t->n), t->n), value[2],
               size = norm(widen(w, t->n), t->n) + 1;
        if (square == 0)
            return snprintf(complaint, sizeof complaint, "%s: the gradient of %s is nothing", where,
                            t->name),
                   complaint;
        const double step = WITHIN(0.002, 0.015) * size /
                            sqrt(square);  // small beside the weights, large beside rounding
        double rise = 0;  // of the loss, as the gradient promises it: g . (w at the one side - w at
                          // the other), as they are stored
        for (int side = 0; side < 2; side++) {
            for (size_t j = 0; j < t->n; j++)
                moved[j] = (float)((double)w[j] + (side ? step : -step) * (double)g[j]);
            gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, moved);
            real_read(moved, m->parts[i].w, t->n);
            for (size_t j = 0; j < t->n; j++)
                rise += (side ? 1 : -1) * (double)g[j] * (double)moved[j];
            value[side] = loss(m, what);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        const double rounding = WITHIN(1e-6, 6e-3) *
                                (fabs(value[0]) + 10);  // in bf16 it hides what a small tensor does
        if (fabs(value[1] - value[0] - rise) > WITHIN(0.01, 0.12) * rise + rounding)
            return snprintf(complaint, sizeof complaint,
                            "%s: along the gradient of %s the loss rises by %.6g, not by %.6g "
                            "(rounding: %.2g)",
                            where, t->name, value[1] - value[0], rise, rounding),
                   complaint;
    }
    return NULL;
}

/* ---- The scalar head ------------------------------------------------------------------------- */

static const GPT2Head scalar_heads[] = {SCORE_HEAD, LM_AND_VALUE_HEAD};

static GPT2Config with_head(const Shape *s, GPT2Head head) {
    GPT2Config c = s->config;
    c.head = head;
    return c;
}

/* sum of dentropy_i value_i, and where there is a vocabulary's head of dlogp_i logp_i */
static double value_loss(GPT2 *m, const void *what) {
    const Text *t = what;
    double sum = 0;
    float *value = floats((size_t)t->batch.N), *logp = floats((size_t)t->batch.N);
    gpt2_forward(m, &t->batch, NULL);
    if (gpt2_config(m)->head == LM_AND_VALUE_HEAD)
        gpt2_logprob(m, t->target, 0.8f, logp, NULL, NULL);
    gpt2_value(m, value);
    for (int i = 0; i < t->batch.N; i++) {
        sum += 0.5 * cos(i) * (double)value[i];
        if (gpt2_config(m)->head == LM_AND_VALUE_HEAD && t->target[i] >= 0)
            sum += (double)t->dlogp[i] * (double)logp[i];
    }
    return sum;
}

START_TEST(a_scalar_head_reads_the_final_norm_and_trains) {
    for (int k = 0; k < LENGTH(scalar_heads); k++) {
        AT("head %d", (int)scalar_heads[k]);
        const GPT2Config c = with_head(MIDDLING, scalar_heads[k]);
        Text *t = text_of(MIDDLING);
        GPT2Limits limits = fit(t, true, k > 0);
        if (c.head == SCORE_HEAD) limits.scored = 0;
        GPT2 *m = model(&c, limits);
        ck_assert_int_eq(gpt2_own_tensors(m), gpt2_tensors(m));
        const int N = t->batch.N, C = c.n_embd, head = gpt2_tensors(m) - (int)c.head;
        float *value = floats((size_t)N), *w = read_tensor(m, head, GPT2_WEIGHT),
              *dvalue = floats((size_t)N), *last = floats((size_t)(N * C));
        value_loss(m, t);
        gpt2_value(m, value);
        real_read(last, m->norm, (size_t)(N * C));
        double *want = doubles((size_t)N);
        for (int i = 0; i < N; i++) {
            want[i] = c.head == SCORE_HEAD ? 0 : (double)*read_tensor(m, head + 1, GPT2_WEIGHT);
            for (int j = 0; j < C; j++) want[i] += (double)w[j] * (double)last[i * C + j];
            dvalue[i] = (float)(0.5 * cos(i));
        }
        ck_close(value, want, (size_t)N, WITHIN(1e-6, 0.01));
        gpt2_backward(m, c.head == SCORE_HEAD ? NULL : t->dlogp, NULL, dvalue);
        ck_complaint(compare_gradients_with_slopes(m, value_loss, t));
        for (int q = 0; q < t->batch.S; q++) {  // a score is the same bits in any company
            Text *one = part_of(t, q, 1);
            float *alone = floats((size_t)one->batch.N);
            gpt2_forward(m, &one->batch, NULL);
            gpt2_value(m, alone);
            ck_bits(alone, value + t->start[q], (size_t)one->batch.N);
        }
    }
}
END_TEST

/* ---- Sequences that go on from a common beginning -------------------------------------------- */

/* Beginnings of 7 and 3 tokens, continuations of the first (5, 1) and of the second (9), and a
 * sequence by itself. */
enum { FAMILY = 6 };
static const int family_lengths[FAMILY] = {7, 5, 1, 3, 9, 4},
                 family_parent[FAMILY] = {-1, 0, 0, -1, 3, -1};

START_TEST(continuations_have_the_bits_of_whole_sequences) {
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *t = text(MIDDLING->config.vocab_size, FAMILY, family_lengths),
             *whole = zeros(1, sizeof *whole);
        t->batch.parent = family_parent;
        // the same laid out whole: a beginning counts where it stands alone, not again before its
        // continuations
        int N = 0;
        for (int q = 0; q < FAMILY; q++) {
            const int p = family_parent[q];
            for (int part = p < 0; part < 2; part++)
                for (int i = t->start[part ? q : p]; i < t->start[(part ? q : p) + 1]; i++, N++) {
                    whole->tokens[N] = t->tokens[i];
                    whole->target[N] = part ? t->target[i] : -1;
                    whole->dlogp[N] = part ? t->dlogp[i] : 0;
                    whole->dentropy[N] = part ? t->dentropy[i] : 0;
                }
            whole->start[q + 1] = N;
            whole->id[q] = t->id[q];
        }
        whole->scored = t->scored;
        whole->batch = (Batch){
            .S = FAMILY, .N = N, .start = whole->start, .tokens = whole->tokens, .id = whole->id};
        GPT2 *shared = model(&MIDDLING->config, fit(t, true, checkpointing)),
             *apart = model(&MIDDLING->config, fit(whole, true, checkpointing));
        Scores got = learn(shared, t, NULL), want = learn(apart, whole, NULL);
        for (int q = 0; q < FAMILY; q++) {
            AT("sequence %d%s", q, checkpointing ? ", checkpointing" : "");
            int own = t->start[q + 1] - t->start[q], at = whole->start[q + 1] - own;
            Scores a = {got.logp + t->start[q], got.entropy + t->start[q], got.best + t->start[q]};
            Scores b = {want.logp + at, want.entropy + at, want.best + at};
            ck_same_scores(a, b, (size_t)own);
        }
        // the gradient: the same sum in another order
        for (int i = 0; i < gpt2_tensors(shared); i++) {
            AT("%s%s", gpt2_tensor(shared, i)->name, checkpointing ? ", checkpointing" : "");
            size_t n = gpt2_tensor(shared, i)->n;
            ck_close(read_tensor(shared, i, GPT2_GRADIENT),
                     widen(read_tensor(apart, i, GPT2_GRADIENT), n), n, WITHIN(2e-5, 0.12));
        }
    }
}
END_TEST

/* ---- Divergence of two models ---------------------------------------------------------------- */

START_TEST(divergence_is_that_of_the_two_distributions) {
    Text *t = text_of(MIDDLING);
    const int N = t->batch.N, V = MIDDLING->config.vocab_size;
    const float temperature = 0.7f;
    GPT2Limits limits = fit(t, true, false);
    GPT2 *p = model(&MIDDLING->config, limits), *q = model(&MIDDLING->config, fit(t, false, false));
    float *w = read_tensor(q, 0, GPT2_WEIGHT), *logp = floats((size_t)N), *kl = floats((size_t)N);
    for (size_t j = 0; j < gpt2_tensor(q, 0)->n; j++) w[j] += 0.1f * normal(77, (uint32_t)j);
    gpt2_write(q, 0, GPT2_WEIGHT, 0, gpt2_tensor(q, 0)->n, w);
    double *rows[2];
    for (int k = 0; k < 2; k++) {
        GPT2 *m = k ? q : p;
        gpt2_forward(m, &t->batch, NULL);
        gpt2_logprob(m, t->target, temperature, logp, NULL, NULL);
        float *logits = floats((size_t)(t->scored * V));
        for (int r = 0; r < t->scored; r++)
            real_read(logits + r * V, m->logits + r * m->ldv, (size_t)V);
        rows[k] = widen(logits, (size_t)(t->scored * V));
        for (int j = 0; j < t->scored * V; j++) rows[k][j] /= (double)temperature;
    }
    gpt2_kl(p, q, kl);
    for (int i = 0, r = 0; i < N; i++) {
        if (t->target[i] < 0) {
            ck_assert(kl[i] == 0);
            continue;
        }
        ck_assert_double_eq_tol((double)kl[i], ref_kl(rows[0] + r * V, rows[1] + r * V, V),
                                1e-5 * (1 + (double)kl[i]));
        ck_assert_double_gt((double)kl[i], 1e-4);
        r++;
    }
    gpt2_kl(p, p, kl);
    ck_zero(kl, (size_t)N);
    // asking changes nothing for the backward pass; and logits scored in turns give the same bits
    GPT2 *fresh = model(&MIDDLING->config, limits);
    learn(fresh, t, NULL);
    Scores s = score(p, t, NULL);
    gpt2_forward(q, &t->batch, NULL);
    gpt2_logprob(q, t->target, 1, logp, NULL, NULL);
    gpt2_kl(p, q, kl);
    float *few = floats((size_t)N);
    p->logit_rows = 3;
    gpt2_forward(p, &t->batch, NULL);
    gpt2_logprob(p, t->target, 1, s.logp, s.entropy, NULL);
    gpt2_kl(p, q, few);
    ck_bits(few, kl, (size_t)N);
    gpt2_backward(p, t->dlogp, t->dentropy, NULL);
    ck_chain(read_all(p, GPT2_GRADIENT), read_all(fresh, GPT2_GRADIENT), elements(p));
}
END_TEST

/* ---- Freezing, and a technique inside the network -------------------------------------------- */

/*  The technique of these tests has one number a for each place of each layer. At a linear layer
 * out[j] += a inp[j mod IC]; at the two branches f becomes f + a (f + residual), for which it keeps
 * f + residual where it is told to. */

typedef struct {
    GPT2Tensor tensor[64];
    int n, first, places;  // tensors; the first one's index; places to keep
    float *kept[2][8];     // [TAP_ATTN, TAP_MLP][place] (N,C)
    float *host[3];        // (N,4C) each: what a call has fetched from the device
    int calls[2];
} Trick;

static int trick_tensor(const Trick *k, const TapCall *c) {
    return k->first + c->layer * TAP_SITES + (int)c->site;
}

/* (N,channels) of the device, for the host to read, or to change and send back. */
static void fetch(float *into, const real *from, int N, int channels) {
    real_read(into, from, (size_t)N * (size_t)channels);
}

static void trick_forward(void *context, const TapCall *c) {
    Trick *k = context;
    const int N = c->N, OC = c->OC, IC = c->inp ? c->IC : OC;
    float a, *outs = k->host[0], *inps = k->host[1];
    k->calls[0]++;
    ck_assert((c->inp != NULL) == (c->residual == NULL));
    ck_assert_int_lt(c->save_at, k->places);
    fetch(&a, gpt2_weight(c->m, trick_tensor(k, c)), 1, 1);
    fetch(outs, c->out, N, OC);
    fetch(inps, c->inp ? c->inp : c->residual, N, IC);
    for (int n = 0; n < N; n++)
        for (int j = 0; j < OC; j++) {
            float *out = outs + n * OC + j;
            const float inp = inps[n * IC + j % IC];
            if (c->inp) {
                *out += a * inp;
                continue;
            }
            float x = *out + inp;
            if (c->save_at >= 0) k->kept[c->site == TAP_MLP][c->save_at][n * OC + j] = x;
            *out += a * x;
        }
    real_write(c->out, outs, (size_t)N * (size_t)OC);
}

static void trick_backward(void *context, const TapCall *c) {
    Trick *k = context;
    const int N = c->N, OC = c->OC, IC = c->inp ? c->IC : OC;
    real *below = c->inp ? c->dinp : c->dresidual;
    float a, da, *gradient = gpt2_gradient(c->m, trick_tensor(k, c)), *douts = k->host[0],
                 *inps = k->host[1], *dinps = k->host[2];
    k->calls[1]++;
    ck_assert_int_ge(c->save_at, 0);
    fetch(&a, gpt2_weight(c->m, trick_tensor(k, c)), 1, 1);
    fetch(douts, c->dout, N, OC);
    device_read(&da, gradient, sizeof da);
    if (c->inp) fetch(inps, c->inp, N, IC);
    if (below) fetch(dinps, below, N, IC);
    for (int n = 0; n < N; n++)
        for (int j = 0; j < OC; j++) {
            float *dout = douts + n * OC + j;
            const int i = n * IC + j % IC;
            if (c->inp) {
                // out[j] += a inp[j mod IC]
                da += *dout * inps[i];
                dinps[i] += a * *dout;
            } else {
                // f += a (f + residual)
                da += *dout * k->kept[c->site == TAP_MLP][c->save_at][n * OC + j];
                dinps[i] += a * *dout;
                *dout += a * *dout;
            }
        }
    device_write(gradient, &da, sizeof da);
    if (below) real_write(below, dinps, (size_t)N * (size_t)IC);
    if (!c->inp) real_write(c->dout, douts, (size_t)N * (size_t)OC);
}

/* The technique for a model, at all places or only at those of mask. */
static Trick *trick(const GPT2Config *c, Tap *tap, unsigned mask, bool checkpointing, int N) {
    Trick *k = zeros(1, sizeof *k);
    k->places = checkpointing ? 1 : c->n_layer;
    for (int l = 0; l < c->n_layer; l++)
        for (int place = 0; place < TAP_SITES; place++) {
            GPT2Tensor *t = &k->tensor[k->n++];
            snprintf(t->name, sizeof t->name, "h.%d.trick.%d", l, place);
            t->ndim = 1;
            t->shape[0] = 1;
        }
    for (int i = 0; i < 2 * k->places; i++) k->kept[i % 2][i / 2] = floats((size_t)(N * c->n_embd));
    for (int i = 0; i < 3; i++) k->host[i] = floats((size_t)(N * 4 * c->n_embd));
    *tap = (Tap){.forward = trick_forward, .backward = trick_backward, .context = k};
    for (int place = 0; place < TAP_SITES; place++) tap->at[place] = mask >> place & 1;
    return k;
}

static GPT2 *tricked(const GPT2Config *c, GPT2Limits limits, GPT2Trains trains, unsigned mask,
                     float a, Trick **made) {
    Tap tap;
    Trick *k = trick(c, &tap, mask, limits.gradient_checkpointing, limits.tokens);
    limits.trains = trains;
    limits.more = k->tensor;
    limits.more_n = k->n;
    limits.tap = &tap;
    GPT2 *m = adopt(gpt2_create(c, false));
    randomise(m);
    gpt2_reserve(m, &limits);
    k->first = gpt2_own_tensors(m);
    for (int i = 0; i < k->n; i++) {
        float value = a * (1 + 0.3f * normal(55, (uint32_t)i));
        gpt2_write(m, k->first + i, GPT2_WEIGHT, 0, 1, &value);
    }
    *made = k;
    return m;
}

static double score_loss(GPT2 *m, const void *what) {
    const Text *t = what;
    double sum = 0;
    Scores s = score(m, t, NULL);
    for (int i = 0; i < t->batch.N; i++)
        if (t->target[i] >= 0)
            sum += (double)t->dlogp[i] * (double)s.logp[i] +
                   (double)t->dentropy[i] * (double)s.entropy[i];
    return sum;
}

START_TEST(a_technique_inside_the_network_gets_its_gradient) {
    for (int trains = TRAIN_ALL; trains <= TRAIN_NONE; trains++) {
        Text *t = text_of(MIDDLING);
        float *plainly = NULL;
        for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
            Trick *k;
            AT("trains %d%s", trains, checkpointing ? ", checkpointing" : "");
            GPT2 *m = tricked(&MIDDLING->config, fit(t, true, checkpointing), (GPT2Trains)trains,
                              0x3f, 0.3f, &k);
            learn(m, t, NULL);
            for (int i = 0; i < gpt2_tensors(m); i++) {
                const char *name = gpt2_tensor(m, i)->name;
                bool should = i >= gpt2_own_tensors(m) || trains == TRAIN_ALL ||
                              (trains == TRAIN_NORMS && strstr(name, "ln_"));
                ck_assert_msg(
                    gpt2_tensor(m, i)->trains == should && (m->parts[i].g != NULL) == should,
                    "%s: %s", where, name);
            }
            ck_complaint(compare_gradients_with_slopes(m, score_loss, t));
            // checkpointing changes no bit of the gradient
            float *all = floats(elements(m)), *x = all;
            for (int i = 0; i < gpt2_tensors(m); i++)
                if (gpt2_tensor(m, i)->trains) {
                    memcpy(x, read_tensor(m, i, GPT2_GRADIENT), gpt2_tensor(m, i)->n * sizeof *x);
                    x += gpt2_tensor(m, i)->n;
                }
            if (checkpointing) ck_bits(all, plainly, elements(m));
            plainly = all;
        }
    }
}
END_TEST

START_TEST(a_technique_that_adds_nothing_changes_no_bit_and_places_are_its_own) {
    Text *t = text_of(MIDDLING);
    GPT2 *without = model(&MIDDLING->config, fit(t, true, false));
    Scores want = learn(without, t, NULL);
    for (unsigned mask = 1; mask <= 0x20; mask <<= 1) {
        Trick *k;
        AT("places %x", mask);
        GPT2 *m = tricked(&MIDDLING->config, fit(t, true, false), TRAIN_ALL, mask, 0, &k);
        Scores got = learn(m, t, NULL);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(m, GPT2_GRADIENT), read_all(without, GPT2_GRADIENT), elements(without));
        ck_assert(k->calls[0] == m->config.n_layer && k->calls[1] == m->config.n_layer);
        for (int i = 0; i < k->n; i++)
            ck_assert((*read_tensor(m, k->first + i, GPT2_GRADIENT) != 0) ==
                      (mask >> i % TAP_SITES & 1));
    }
}
END_TEST

/* A step of training with a frozen embedding keeps each row's slope instead of its logits: the same
   gradient but for rounding, the same bits however many rows are scored at a time, and logits that
   are asked for all the same are computed again. */
START_TEST(slopes_stand_for_logits_where_the_embedding_is_frozen) {
    const GPT2Noise none = {.seed = 1};
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        GPT2Limits limits = fit(t, true, false);
        limits.trains = TRAIN_NORMS;
        float *want = NULL;
        for (int k = 0; k < 5;
             k++) {  // evaluated and then trained on; then as a step of training, in turns
            GPT2 *m = model(&s->config, limits), *other = model(&s->config, fit(t, false, false));
            if (k > 1) m->logit_rows = (int[]){1, 3, t->scored / 2 + 1}[k - 2];
            if (m->logit_rows > t->scored) continue;
            AT("%s, %s, %d rows at a time", s->name, k ? "training" : "evaluation", m->logit_rows);
            Scores got = score(m, t, k ? &none : NULL), plainly = score(other, t, NULL);
            ck_assert(m->head_in_is_grad == (k > 0));
            ck_same_scores(got, plainly, (size_t)t->batch.N);
            gpt2_backward(m, t->dlogp, NULL, NULL);
            size_t n = 0;
            for (int i = 0; i < gpt2_tensors(m); i++)
                n += gpt2_tensor(m, i)->trains ? gpt2_tensor(m, i)->n : 0;
            float *all = floats(n), *x = all;
            for (int i = 0; i < gpt2_tensors(m); i++)
                if (gpt2_tensor(m, i)->trains) {
                    memcpy(x, read_tensor(m, i, GPT2_GRADIENT), gpt2_tensor(m, i)->n * sizeof *x);
                    x += gpt2_tensor(m, i)->n;
                }
            if (k == 1) ck_close(all, widen(want, n), n, WITHIN(1e-4, 0.08));
            if (k > 1) ck_bits(all, want, n);
            want = all;
            // the divergence from itself is 0 only if the right logits are found; and with the
            // entropy's gradient it is as in evaluation
            float kl[MAX_N];
            score(m, t, k ? &none : NULL);
            score(other, t, NULL);
            gpt2_kl(m, other, kl);
            for (int i = 0; i < t->batch.N; i++)
                ck_assert_msg(kl[i] == 0, "%s: kl[%d] is %g", where, i, (double)kl[i]);
            score(m, t, k ? &none : NULL);
            ck_assert(gpt2_logit_difference(m, other, NULL) == 0);
        }
        GPT2 *a = model(&s->config, limits), *b = model(&s->config, limits);
        learn(a, t, NULL);
        learn(b, t, &none);
        for (int i = 0; i < gpt2_tensors(a); i++)
            if (gpt2_tensor(a, i)->trains)
                ck_bits(read_tensor(b, i, GPT2_GRADIENT), read_tensor(a, i, GPT2_GRADIENT),
                        gpt2_tensor(a, i)->n);
    }
}
END_TEST

/* Tensor i lives at w, or, on a device with memory of its own, is a copy. */
static void map_tensor(GPT2 *m, int i, const float *w) {
    if (gpt2_map(m, i, w)) return;
    ck_assert(!on_cpu());
    gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, w);
}

START_TEST(a_frozen_model_may_be_mapped_and_does_not_change) {
    Text *t = text_of(MIDDLING);
    Tap tap;
    Trick *k = trick(&MIDDLING->config, &tap, 0x3f, false, t->batch.N);
    GPT2Limits limits = fit(t, true, false);
    limits.trains = TRAIN_NONE;
    limits.more = k->tensor;
    limits.more_n = k->n;
    limits.tap = &tap;
    GPT2 *own = model(&MIDDLING->config, fit(t, false, false)),
         *m = adopt(gpt2_create(&MIDDLING->config, true));
    const size_t n = elements(own);
    float *file = read_all(own, GPT2_WEIGHT), *kept = memcpy(floats(n), file, n * sizeof *kept),
          *w = file;
    for (int i = 0; i < gpt2_tensors(m); w += gpt2_tensor(m, i++)->n) map_tensor(m, i, w);
    gpt2_reserve(m, &limits);
    k->first = gpt2_own_tensors(m);
    GPT2Memory memory = gpt2_memory(&MIDDLING->config, &limits);
    ck_assert_uint_eq(memory.gradients,
                      16 * sizeof(float) * (size_t)k->n);  // each of one number begins a cache line
    ck_assert_uint_eq(
        memory.moments,
        (SHORT ? 3 : 2) * memory.gradients);  // the masters of bf16 are counted with them
    const AdamW o = ADAMW(0.02f, 0.1f, 1);
    const double first = score_loss(m, t);
    for (int step = 1; step <= 5; step++) {
        learn(m, t, NULL);
        gpt2_step(m, &o, step);
    }
    const double last = score_loss(m, t);
    ck_assert_msg(last < first - 0.1, "five steps moved the loss from %g to %g", first, last);
    ck_bits(file, kept, n);
}
END_TEST

/* ---- Generation ------------------------------------------------------------------------------ */

static const Sampler greedy = {.top_p = 1, .max_new_tokens = 12, .stop_token = -1};
static const Sampler plain = {
    .temperature = 1, .top_p = 1, .max_new_tokens = 12, .stop_token = -1, .seed = 11, .step = 2};

static const int prompt_lengths[] = {3, 1, 9, 2, 6, 4, 1};
enum { PROMPTS = LENGTH(prompt_lengths) };

/* A model for decoding with room for prompt and response. */
static GPT2 *writer(int slots, int tokens) {
    return model(&MIDDLING->config, (GPT2Limits){.tokens = tokens,
                                                 .sequences = PROMPTS,
                                                 .scored = tokens,
                                                 .slots = slots,
                                                 .positions = 24});
}

static Text *prompts(void) { return text(MIDDLING->config.vocab_size, PROMPTS, prompt_lengths); }

/* Prompt q and the first n tokens of its response, as a batch of one with prompt q's id. */
static Text *continued(const Text *t, const Generation *g, int q, int n) {
    Text *one = part_of(t, q, 1);
    memcpy(one->tokens + one->batch.N, g->tokens + g->start[q], sizeof(int) * (size_t)n);
    one->batch.N = one->start[1] += n;
    return one;
}

/* The logits of the last row of a batch of one. */
static double *last_logits(GPT2 *m, Text *one) {
    int V = gpt2_config(m)->vocab_size, last = one->batch.N - 1;
    for (int i = 0; i <= last; i++) one->target[i] = i == last ? 0 : -1;
    score(m, one, NULL);
    float *logits = floats((size_t)V);
    real_read(logits, m->logits, (size_t)V);
    return widen(logits, (size_t)V);
}

/* The same texts, to the bit: tokens, log-probabilities, and how they ended. */
static const char *compare_texts(const Generation *got, const Generation *want, int S) {
    int n = want->start[S];
    bool same = !memcmp(got->start, want->start, sizeof(int) * (size_t)(S + 1)) &&
                !memcmp(got->ended, want->ended, sizeof(bool) * (size_t)S) &&
                !memcmp(got->tokens, want->tokens, sizeof(int) * (size_t)n);
    if (same) return compare_bits("logp", got->logp, want->logp, (size_t)n);
    snprintf(complaint, sizeof complaint, "%s: other texts", where);
    return complaint;
}

START_TEST(greedy_texts_are_those_of_full_forward_passes) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *g = generate(m, &t->batch, greedy);
    for (int q = 0; q < PROMPTS; q++) {
        AT("prompt %d", q);
        ck_assert_int_eq(g->start[q + 1] - g->start[q], 12);
        for (int n = 0; n < 12; n++) {
            Text *one = continued(t, g, q, n);
            int V = m->config.vocab_size, at = g->start[q] + n,
                next = ref_argmax(last_logits(m, one), V);
            ck_assert_int_eq(g->tokens[at], next);
            // greedy texts come with log-probabilities of temperature 1
            one->target[one->batch.N - 1] = next;
            Scores s = score(m, one, NULL);
            ck_bits(&g->logp[at], &s.logp[one->batch.N - 1], 1);
            ck_assert_int_eq((int)s.best[one->batch.N - 1], next);
        }
    }
}
END_TEST

/* Decoding and scoring run the same chains of multiply-adds and the same sum over the vocabulary:
   at temperature 1 the two log-probabilities are the same bits, so that the first ratio of PPO is
   exactly 1. */
START_TEST(sampled_log_probabilities_are_those_of_logprob_to_the_bit) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    for (int k = 0; k < 4; k++) {
        Sampler s = plain;
        if (k == 1) {
            s.top_k = 5;
            s.top_p = 0.8f;
        }  // they narrow the choice, not the log-probability
        if (k > 1) s.temperature = k == 2 ? 0.7f : 1.9f;
        const Generation *g = generate(m, &t->batch, s);
        for (int q = 0; q < PROMPTS; q++) {
            AT("prompt %d, sampler %d", q, k);
            int prompt = prompt_lengths[q], n = g->start[q + 1] - g->start[q];
            Text *one = continued(t, g, q, n);
            for (int i = 0; i < one->batch.N; i++)
                one->target[i] = i + 1 < one->batch.N && i + 1 >= prompt ? one->tokens[i + 1] : -1;
            Scores again = score(m, one, NULL);
            gpt2_logprob(m, one->target, s.temperature, again.logp, NULL, NULL);
            ck_bits(g->logp + g->start[q], again.logp + prompt - 1, (size_t)n);
        }
    }
}
END_TEST

START_TEST(a_technique_is_there_in_generation) {
    Trick *k;
    Text *t = prompts();
    GPT2 *m = tricked(
        &MIDDLING->config,
        (GPT2Limits){.tokens = 64, .sequences = PROMPTS, .scored = 64, .slots = 2, .positions = 24},
        TRAIN_ALL, 0x3f, 0.3f, &k);
    const Generation *g = generate(m, &t->batch, plain);
    for (int q = 0; q < PROMPTS; q++) {
        AT("prompt %d", q);
        int prompt = prompt_lengths[q], n = g->start[q + 1] - g->start[q];
        Text *one = continued(t, g, q, n);
        for (int i = 0; i < one->batch.N; i++)
            one->target[i] = i + 1 < one->batch.N && i + 1 >= prompt ? one->tokens[i + 1] : -1;
        ck_bits(g->logp + g->start[q], score(m, one, NULL).logp + prompt - 1, (size_t)n);
    }
}
END_TEST

/* Which draw decides is part of the contract: the uniform number of (seed, step, id, position of
 * the token drawn). */
START_TEST(sampled_tokens_are_those_of_the_reference) {
    const Sampler samplers[] = {
        {.temperature = 1, .top_p = 1, .seed = 3, .step = 1},
        {.temperature = 0.6f, .top_p = 1, .seed = 4, .step = 0},
        {.temperature = 1.7f, .top_k = 4, .top_p = 1, .seed = 5, .step = 9},
        {.temperature = 1.2f, .top_k = 9, .top_p = 0.7f, .seed = 1ull << 50, .step = 1u << 31},
    };
    Text *t = prompts();
    GPT2 *m = writer(2, 64);
    int V = m->config.vocab_size;
    for (int k = 0; k < LENGTH(samplers); k++)
        for (int named = 0; named <= 1; named++) {
            Sampler sampler = samplers[k], *s = &sampler;
            s->max_new_tokens = 8;
            s->stop_token = -1;
            t->batch.id = named ? t->id : NULL;
            const Generation *g = generate(m, &t->batch, *s);
            for (int q = 0; q < PROMPTS; q++)
                for (int n = 0; n < 8; n++) {
                    AT("sampler %d, prompt %d, token %d", k, q, n);
                    double *logits = last_logits(m, continued(t, g, q, n)), *p = doubles((size_t)V);
                    ref_sample_distribution(p, logits, V, (double)s->temperature, s->top_k,
                                            (double)s->top_p);
                    uint32_t id = named ? t->id[q] : (uint32_t)q;
                    double u = random_uniform(random4(s->seed, RANDOM_SAMPLE, s->step, id,
                                                      (uint32_t)(prompt_lengths[q] + n), 0)
                                                  .v[0]);
                    int at = g->start[q] + n, token = ref_sample(p, V, u);
                    ck_assert_msg(g->tokens[at] == token, "%s is %d, not %d", where, g->tokens[at],
                                  token);
                    // logp: of softmax(logits / temperature), uncut; exponentials and their sum in
                    // float blocks: 1e-6
                    for (int v = 0; v < V; v++) logits[v] /= (double)s->temperature;
                    ck_assert_double_eq_tol((double)g->logp[at],
                                            logits[token] - ref_log_sum_exp(logits, V), 2e-6);
                }
        }
}
END_TEST

START_TEST(texts_do_not_depend_on_slots_or_room) {
    Text *t = prompts();
    for (int k = 0; k < 2; k++) {
        Sampler s = k ? plain : greedy;
        if (k) s.stop_token = 7;  // texts of uneven length: slots change hands at uneven times
        const Generation *want = generate(writer(1, 64), &t->batch, s);
        const int rooms[][2] = {{1, 1}, {1, 2}, {2, 2},  {2, 5},  {3, 64},
                                {5, 5}, {5, 7}, {5, 64}, {7, 26}, {20, 64}};
        for (int r = 0; r < LENGTH(rooms); r++) {
            AT("%d slots, %d tokens", rooms[r][0], rooms[r][1]);
            ck_complaint(compare_texts(generate(writer(rooms[r][0], rooms[r][1]), &t->batch, s),
                                       want, PROMPTS));
        }
    }
}
END_TEST

START_TEST(texts_do_not_depend_on_what_the_model_did_before_or_on_training) {
    Text *t = prompts();
    GPT2 *fresh = writer(3, 64), *trained;
    const Generation *want = generate(fresh, &t->batch, plain);
    AT("twice");
    ck_complaint(compare_texts(generate(fresh, &t->batch, plain), want, PROMPTS));
    AT("after a forward pass");
    score(fresh, text_of(MIDDLING), &all_noise);
    ck_complaint(compare_texts(generate(fresh, &t->batch, plain), want, PROMPTS));
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        AT("in a model that trains, checkpointing %d", checkpointing);
        GPT2Limits limits = {.tokens = 64,
                             .sequences = PROMPTS,
                             .scored = 64,
                             .train = true,
                             .slots = 3,
                             .positions = 24};
        limits.gradient_checkpointing = checkpointing;
        trained = model(&MIDDLING->config, limits);
        learn(trained, text_of(MIDDLING), &all_noise);
        ck_complaint(compare_texts(generate(trained, &t->batch, plain), want, PROMPTS));
    }
    AT("and back to training");  // what generation leaves behind is not seen
    Text *batch = text_of(MIDDLING);
    clear_gradients(trained);
    learn(trained, batch, &all_noise);
    GPT2 *never = model(&MIDDLING->config, fit(batch, true, false));
    learn(never, batch, &all_noise);
    ck_bits(read_all(trained, GPT2_GRADIENT), read_all(never, GPT2_GRADIENT), elements(never));
}
END_TEST

START_TEST(texts_follow_their_ids_not_their_order) {
    Text *t = prompts(), *back = zeros(1, sizeof *back);
    for (int q = 0, n = 0; q < PROMPTS; q++) {
        int from = PROMPTS - 1 - q;
        memcpy(back->tokens + n, t->tokens + t->start[from],
               sizeof(int) * (size_t)prompt_lengths[from]);
        back->start[q + 1] = n += prompt_lengths[from];
        back->id[q] = t->id[from];
    }
    back->batch = (Batch){.S = PROMPTS,
                          .N = t->batch.N,
                          .start = back->start,
                          .tokens = back->tokens,
                          .id = back->id};
    GPT2 *m = writer(3, 16);
    const Generation *a = generate(m, &t->batch, plain), *b = generate(m, &back->batch, plain);
    for (int q = 0; q < PROMPTS; q++) {
        int n = a->start[q + 1] - a->start[q], other = PROMPTS - 1 - q;
        ck_assert_int_eq(b->start[other + 1] - b->start[other], n);
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(b->tokens[b->start[other] + i], a->tokens[a->start[q] + i]);
        ck_bits(b->logp + b->start[other], a->logp + a->start[q], (size_t)n);
    }
}
END_TEST

START_TEST(a_text_ends_with_the_stop_token) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *free_ = generate(m, &t->batch, plain);
    Sampler s = plain;
    s.stop_token =
        free_->tokens[free_->start[2] + 4];  // one that at least one text meets on its way
    const Generation *g = generate(m, &t->batch, s);
    for (int q = 0; q < PROMPTS; q++) {
        const int *whole = free_->tokens + free_->start[q];
        int n = 0;
        while (n < 12 && whole[n++] != s.stop_token) {
        }
        ck_assert_int_eq(g->start[q + 1] - g->start[q], n);
        ck_assert(!memcmp(g->tokens + g->start[q], whole, sizeof(int) * (size_t)n));
        ck_assert_int_eq(g->ended[q], whole[n - 1] == s.stop_token);
    }
    ck_assert(g->ended[2]);
}
END_TEST

START_TEST(a_stop_token_in_the_prompt_does_not_stop) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    Sampler s = plain;
    s.max_new_tokens = 1;
    s.stop_token = t->tokens[t->start[3] - 1];  // the last token of prompt 2
    const Generation *g = generate(m, &t->batch, s);
    ck_assert_int_eq(g->start[3] - g->start[2], 1);
}
END_TEST

START_TEST(max_new_tokens_is_kept) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *whole = generate(m, &t->batch, plain);
    for (int max = 0; max <= 3; max++) {
        AT("max_new_tokens %d", max);
        Sampler s = plain;
        s.max_new_tokens = max;
        const Generation *g = generate(m, &t->batch, s);
        for (int q = 0; q < PROMPTS; q++) {
            ck_assert_int_eq(g->start[q + 1] - g->start[q], max);
            ck_assert(!memcmp(g->tokens + g->start[q], whole->tokens + whole->start[q],
                              sizeof(int) * (size_t)max));
            ck_assert(!g->ended[q]);
        }
    }
    AT("no prompt");
    const Generation *none =
        generate(m, &(Batch){.S = 0, .N = 0, .start = (int[]){0}, .tokens = NULL}, plain);
    ck_assert_int_eq(none->start[0], 0);
}
END_TEST

/* The token after the last position can be drawn, but not fed again: a text has one token more than
 * positions. */
START_TEST(a_text_stops_at_the_last_position) {
    const int T = MIDDLING->config.n_positions;
    for (int positions = T - 4; positions <= T + 4; positions += 4) {
        int end = positions < T ? positions : T;
        AT("%d positions to decode, %d in the model", positions, T);
        Text *t = text(MIDDLING->config.vocab_size, 4, (int[]){end, end - 1, 2, end - 3});
        for (int tokens = 2; tokens <= 80; tokens += 78) {  // in pieces, and at once
            GPT2 *m = model(&MIDDLING->config,
                            (GPT2Limits){.tokens = tokens, .slots = 2, .positions = positions});
            Sampler s = plain;
            s.max_new_tokens = 1000;
            const Generation *g = generate(m, &t->batch, s);
            for (int q = 0; q < 4; q++)
                ck_assert_int_eq(g->start[q + 1] - g->start[q],
                                 end + 1 - (t->start[q + 1] - t->start[q]));
            GPT2 *full =
                model(&MIDDLING->config, (GPT2Limits){.tokens = T, .sequences = 1, .scored = 1});
            for (int q = 0; q < 4; q++) {  // the last token drawn has the log-probability that the
                                           // last position gives it
                int n = g->start[q + 1] - g->start[q];
                Text *one = continued(t, g, q, n - 1);
                for (int i = 0; i < end; i++)
                    one->target[i] = i == end - 1 ? g->tokens[g->start[q] + n - 1] : -1;
                ck_bits(&g->logp[g->start[q] + n - 1], &score(full, one, NULL).logp[end - 1], 1);
            }
        }
    }
}
END_TEST

START_TEST(seed_and_step_choose_the_text) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    Sampler seeds = plain, steps = plain, cut = plain;
    const Generation *g = generate(m, &t->batch, plain);
    seeds.seed++;
    steps.step++;
    ck_assert_ptr_nonnull(compare_texts(generate(m, &t->batch, seeds), g, PROMPTS));
    ck_assert_ptr_nonnull(compare_texts(generate(m, &t->batch, steps), g, PROMPTS));
    const Generation *likeliest = generate(m, &t->batch, greedy);
    ck_assert_ptr_nonnull(compare_texts(likeliest, g, PROMPTS));
    AT("top_k 1");
    cut.top_k = 1;
    ck_complaint(compare_texts(generate(m, &t->batch, cut), likeliest, PROMPTS));
    cut.top_k = 0;
    cut.top_p = 1e-6f;
    AT("top_p 0.000001");
    ck_complaint(compare_texts(generate(m, &t->batch, cut), likeliest, PROMPTS));
}
END_TEST

typedef struct {
    int count[PROMPTS], token[PROMPTS][16];
} Heard;

static void hear(void *context, int sequence, int token) {
    Heard *h = context;
    h->token[sequence][h->count[sequence]++] = token;
}

START_TEST(every_token_is_told_as_it_is_drawn) {
    Text *t = prompts();
    Sampler s = plain;
    s.stop_token = 7;
    Heard heard = {0};
    Generation *g = &generations[generation_count++];
    gpt2_generate(writer(2, 5), &t->batch, &s, g, hear, &heard);
    for (int q = 0; q < PROMPTS; q++) {
        ck_assert_int_eq(heard.count[q], g->start[q + 1] - g->start[q]);
        ck_assert(
            !memcmp(heard.token[q], g->tokens + g->start[q], sizeof(int) * (size_t)heard.count[q]));
    }
}
END_TEST

/* ---- Tensors, mapping, initial weights, figures of memory ------------------------------------ */

START_TEST(tensors_have_the_shapes_of_the_files) {
    const GPT2Config *c = &MIDDLING->config;
    const struct {
        const char *name;
        int ndim, rows, columns;
    } want[] = {
        {"wte.weight", 2, 37, 20},
        {"wpe.weight", 2, 24, 20},
        {"h.1.ln_1.weight", 1, 20, 1},
        {"h.1.ln_1.bias", 1, 20, 1},
        {"h.1.attn.c_attn.weight", 2, 20, 60},
        {"h.1.attn.c_attn.bias", 1, 60, 1},
        {"h.1.attn.c_proj.weight", 2, 20, 20},
        {"h.1.attn.c_proj.bias", 1, 20, 1},
        {"h.1.ln_2.weight", 1, 20, 1},
        {"h.1.ln_2.bias", 1, 20, 1},
        {"h.1.mlp.c_fc.weight", 2, 20, 33},
        {"h.1.mlp.c_fc.bias", 1, 33, 1},
        {"h.1.mlp.c_proj.weight", 2, 33, 20},
        {"h.1.mlp.c_proj.bias", 1, 20, 1},
        {"ln_f.weight", 1, 20, 1},
        {"ln_f.bias", 1, 20, 1},
    };
    for (int train = 0; train <= 1; train++) {
        GPT2 *m = model(c, (GPT2Limits){.tokens = 1, .sequences = 1, .scored = 1, .train = train});
        ck_assert(!memcmp(gpt2_config(m), c, sizeof *c));
        ck_assert_int_eq(gpt2_tensors(m), 2 + 2 * 12 + 2);
        for (int k = 0; k < LENGTH(want); k++) {
            const GPT2Tensor *t = gpt2_tensor(m, k < 2 ? k : k + 12);  // layer 0 is passed over
            ck_assert_str_eq(t->name, want[k].name);
            ck_assert_int_eq(t->ndim, want[k].ndim);
            ck_assert_int_eq(t->shape[0], want[k].rows);
            if (t->ndim == 2) ck_assert_int_eq(t->shape[1], want[k].columns);
            ck_assert_uint_eq(t->n, (size_t)want[k].rows * (size_t)want[k].columns);
            ck_assert_int_eq(t->trains, train);
        }
    }
}
END_TEST

START_TEST(a_part_of_a_tensor_is_read_and_written) {
    GPT2 *m = model(&MIDDLING->config,
                    (GPT2Limits){.tokens = 1, .sequences = 1, .scored = 1, .train = true});
    const GPT2Part kinds[] = {GPT2_WEIGHT, GPT2_GRADIENT, GPT2_MOMENT1, GPT2_MOMENT2};
    // every part of every tensor is a place of its own
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            float *x = floats(gpt2_tensor(m, i)->n);
            for (size_t j = 0; j < gpt2_tensor(m, i)->n; j++)
                x[j] = (float)(k * 1000000 + i * 10000) + (float)j;
            gpt2_write(m, i, kinds[k], 0, gpt2_tensor(m, i)->n, x);
        }
    gpt2_write(m, 4, GPT2_MOMENT1, 100, 3, (float[]){-1, -2, -3});
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            const float *x = read_tensor(m, i, kinds[k]);
            for (size_t j = 0; j < gpt2_tensor(m, i)->n; j++) {
                bool piece = kinds[k] == GPT2_MOMENT1 && i == 4 && j >= 100 && j < 103;
                if (x[j] != (piece ? 99 - (float)j : (float)(k * 1000000 + i * 10000) + (float)j))
                    ck_abort_msg("part %d of tensor %d: element %zu", k, i, j);
            }
        }
    float piece[4];
    gpt2_read(m, 4, GPT2_MOMENT1, 99, 4, piece);
    ck_bits(piece, ((float[]){2040099, -1, -2, -3}), 4);
}
END_TEST

static int released;
static void count_release(void *context) { released += *(int *)context; }

START_TEST(a_mapped_model_gives_the_same_bits) {
    Text *t = text_of(MIDDLING), *p = prompts();
    const GPT2Limits limits = {
        .tokens = 64, .sequences = PROMPTS, .scored = 64, .slots = 2, .positions = 24};
    GPT2 *own = model(&MIDDLING->config, limits), *mapped = gpt2_create(&MIDDLING->config, true);
    float *file = read_all(own, GPT2_WEIGHT),
          *kept = memcpy(floats(elements(own)), file, elements(own) * sizeof *kept), *w = file;
    for (int i = 0; i < gpt2_tensors(mapped); w += gpt2_tensor(mapped, i++)->n)
        map_tensor(mapped, i, w);
    gpt2_at_free(mapped, count_release, &(int){1});
    gpt2_reserve(mapped, &limits);
    ck_assert_ptr_eq(mapped->weights, NULL);  // nothing is held twice
    ck_bits(read_all(mapped, GPT2_WEIGHT), file, elements(own));
    ck_same_scores(score(mapped, t, NULL), score(own, t, NULL), (size_t)t->batch.N);
    ck_complaint(compare_texts(generate(mapped, &p->batch, plain), generate(own, &p->batch, plain),
                               PROMPTS));
    released = 0;
    gpt2_free(mapped);
    ck_assert_int_eq(released, 1);
    ck_bits(file, kept, elements(own));  // the mapping was only read
}
END_TEST

START_TEST(unaligned_weights_are_copied) {
    Text *t = text_of(MIDDLING);
    const GPT2Limits limits = fit(t, false, false);
    GPT2 *own = model(&MIDDLING->config, limits), *mapped = gpt2_create(&MIDDLING->config, true);
    const float *all = read_all(own, GPT2_WEIGHT), *w = all;
    char *file = zeros(elements(own) + 1, sizeof(float));
    for (int i = 0; i < gpt2_tensors(mapped); w += gpt2_tensor(mapped, i++)->n) {
        const GPT2Tensor *x = gpt2_tensor(mapped, i);
        char *unaligned = file + 1 + (size_t)(w - all) * sizeof *w;
        if (i % 2) memcpy(unaligned, w, x->n * sizeof *w);
        if (i % 2)
            ck_assert(!gpt2_map(mapped, i, unaligned));
        else
            map_tensor(mapped, i, w);
        if (i % 2) gpt2_write(mapped, i, GPT2_WEIGHT, 0, x->n, w);
    }
    memset(file, 0xff, (elements(own) + 1) * sizeof(float));  // no longer needed
    gpt2_at_free(mapped, count_release, &(int){1});
    gpt2_reserve(mapped, &limits);
    ck_same_scores(score(mapped, t, NULL), score(own, t, NULL), (size_t)t->batch.N);
    released = 0;
    gpt2_free(mapped);
    ck_assert_int_eq(released, 1);
}
END_TEST

START_TEST(initial_weights_have_the_documented_distribution) {
    // wte and c_fc are longer than any block they may be drawn in
    const GPT2Config c = CONFIG(100, 1100, 2, 2, 160, 640, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false)), *again = adopt(gpt2_create(&c, false)),
         *other = adopt(gpt2_create(&c, false));
    gpt2_init_weights(m, 42);
    omp_set_num_threads(1);
    gpt2_init_weights(again, 42);
    gpt2_init_weights(other, 43);
    ck_bits(read_all(again, GPT2_WEIGHT), read_all(m, GPT2_WEIGHT), elements(m));
    const double *longest = widen(read_tensor(m, 0, GPT2_WEIGHT), gpt2_tensor(m, 0)->n);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        AT("%s", t->name);
        const double *w = widen(read_tensor(m, i, GPT2_WEIGHT), t->n),
                     *x = widen(read_tensor(other, i, GPT2_WEIGHT), t->n), n = (double)t->n;
        if (t->ndim == 1) {
            for (size_t j = 0; j < t->n; j++)
                if (w[j] != (is_gain(t->name) ? 1 : 0))
                    ck_abort_msg("%s[%zu] is %g", where, j, w[j]);
            continue;
        }
        double deviation = strstr(t->name, "c_proj") ? 0.02 / sqrt(2 * 2) : 0.02, sum = 0,
               fourth = 0, seeds = 0, rows = 0, tensors = 0;
        for (size_t j = 0; j < t->n; j++) {
            double z = w[j] / deviation;
            sum += z;
            fourth += z * z * z * z;
            seeds += z * x[j] / deviation;
            rows += j ? z * w[j - 1] / deviation : 0;
            tensors += z * longest[j % 65536] /
                       0.02;  // the same draws in another tensor, or in the next 65,536
        }
        if (i == 0)  // that is itself: only from 65,536 on is it another
            for (size_t j = 0; j < 65536; j++) tensors -= w[j] * w[j] / (0.02 * 0.02);
        // five standard errors of each: 1 for a normal number and for the product of two, 2 and 96
        // the variance of its square and fourth power
        ck_assert_double_eq_tol(sum / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(norm(w, t->n) * norm(w, t->n) / (deviation * deviation) / n, 1,
                                5 * sqrt(2 / n));
        ck_assert_double_eq_tol(fourth / n, 3, 5 * sqrt(96 / n));
        ck_assert_double_eq_tol(seeds / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(rows / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(tensors / n, 0, 5 / sqrt(n));
    }
}
END_TEST

START_TEST(memory_is_what_was_foretold) {
    FOR_SHAPES(s)
    for (int k = 0; k < 8; k++) {
        const GPT2Limits limits = {.tokens = 40 + k,
                                   .sequences = 5,
                                   .scored = 3 * k,
                                   .train = k & 1,
                                   .gradient_checkpointing = k & 2,
                                   .slots = k & 4 ? 6 : 0,
                                   .positions = k & 4 ? 70 : 0};
        GPT2Memory told = gpt2_memory(&s->config, &limits);
        GPT2 *m = model(&s->config, limits);
        ck_assert(!memcmp(&told, &m->memory, sizeof told));
        ck_assert_uint_eq(told.total, told.weights + told.gradients + told.moments +
                                          told.activations + told.logits + told.cache +
                                          told.workspace);
        // from below: what must be held at the least
        const GPT2Config *c = &s->config;
        size_t C = (size_t)c->n_embd, N = (size_t)limits.tokens, n = elements(m),
               layers = limits.train && !limits.gradient_checkpointing ? (size_t)c->n_layer : 1;
        ck_assert_uint_ge(told.weights, n * sizeof(real));
        ck_assert_uint_ge(told.gradients, limits.train ? n * sizeof(float) : 0);
        ck_assert_uint_ge(told.moments, limits.train ? 2 * n * sizeof(float) : 0);
        ck_assert_uint_ge(told.activations,
                          layers * N * (5 * C + (size_t)c->n_inner) * sizeof(real));
        ck_assert_uint_ge(told.logits,
                          (size_t)limits.scored * (size_t)c->vocab_size * sizeof(real));
        ck_assert_uint_ge(told.cache, (size_t)limits.slots * (size_t)limits.positions * 2 * C *
                                          (size_t)c->n_layer * sizeof(real));
        if (!limits.train) ck_assert_uint_eq(told.gradients + told.moments, 0);
        if (!limits.slots) ck_assert_uint_eq(told.cache, 0);
    }
}
END_TEST

/* ---- A learned model ------------------------------------------------------------------------- */

/* Gpt-nano-sort and its activations, by its original implementation */

static const char *shared_path(const char *file) {
    static char path[1024];
    const char *shared = getenv("SHARED");
    snprintf(path, sizeof path, "%s/data/gpt-nano-sort/%s",
             shared && *shared ? shared : "../shared", file);
    return path;
}

/* The n floats of an activation: base64 of little-endian float32. */
static float *activation(const json_t *root, const char *name, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *text = json_string_value(json_object_get(json_object_get(root, name), "data"));
    ck_assert_msg(text && strlen(text) == (4 * n + 2) / 3 * 4, "%s: not %zu numbers", name, n);
    unsigned char *bytes = zeros(4 * n + 3, 1), *to = bytes;
    for (; *text; text += 4, to += 3) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++)
            word = word << 6 | (text[i] == '=' ? 0 : (uint32_t)(strchr(digits, text[i]) - digits));
        to[0] = (unsigned char)(word >> 16);
        to[1] = (unsigned char)(word >> 8);
        to[2] = (unsigned char)word;
    }
    return (float *)(void *)bytes;
}

/* What the qkv (N,3C) of block 0 has that ln1 (N,C) weight has not, on average: the bias. */
static void missing_bias(const json_t *root, const float *weight, float *bias, int N, int C) {
    size_t rows = (size_t)N, columns = 3 * (size_t)C;
    const double *qkv = widen(activation(root, "qkv", rows * columns), rows * columns);
    double *product = doubles(rows * columns);
    ref_linear_forward(product, widen(activation(root, "ln1", rows * (size_t)C), rows * (size_t)C),
                       widen(weight, (size_t)C * columns), NULL, N, C, 3 * C);
    for (size_t j = 0; j < columns; j++) {
        double sum = 0;
        for (size_t i = 0; i < rows; i++) sum += qkv[i * columns + j] - product[i * columns + j];
        bias[j] = (float)(sum / (double)rows);
    }
}

START_TEST(activations_of_a_learned_model) {
    Error e;
    SafeTensors *file = st_open(shared_path("model.safetensors"), &e);
    json_t *root = json_load_file(shared_path("reference-activations.json"), 0, NULL);
    if (!file || !root) {
        printf("skipped: activations_of_a_learned_model, for want of %s\n", shared_path(""));
        if (file) st_close(file);
        json_decref(root);
        return;
    }
    enum { T = 11, V = 3, C = 48, F = 192, S = 3, N = S * T };
    const GPT2Config c = CONFIG(T, V, 3, 3, C, F, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false));
    bool complete = true;
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        const STTensor *from = st_find(file, t->name);
        float *w = floats(t->n);
        if (!from &&
            strstr(t->name,
                   "attn.c_attn.bias")) {  // there is a copy of the model about without these three
            complete = false;
            if (i == FIRST_LAYER + QKV_B)
                missing_bias(root, read_tensor(m, i - 1, GPT2_WEIGHT), w, N, C);
        } else {
            ck_assert_msg(from && from->n == t->n && from->ndim == t->ndim &&
                              from->shape[0] == (size_t)t->shape[0],
                          "%s", t->name);
            ck_assert_int_eq(st_floats(from, 0, t->n, w, &e), 0);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
    }
    if (!complete)
        printf(
            "skipped in part: activations_of_a_learned_model, blocks 1 and 2, for want of "
            "h.*.attn.c_attn.bias in %s\n",
            shared_path("model.safetensors"));
    float head[V * C];
    ck_assert_int_eq(st_floats(st_find(file, "lm_head.weight"), 0, V * C, head, &e), 0);
    st_close(file);

    int tokens[N];
    const float *idx = activation(root, "idx", N);
    for (int i = 0; i < N; i++) tokens[i] = (int)idx[i];
    const Batch b = {.S = S, .N = N, .start = (int[]){0, T, 2 * T, 3 * T}, .tokens = tokens};
    gpt2_reserve(m, &(GPT2Limits){.tokens = N, .sequences = S, .scored = 1, .train = true});
    gpt2_forward(m, &b, NULL);
    const struct {
        const char *name;  // of block 0, where no block is named
        const real *at;
        size_t n;
        bool later;  // what blocks 1 and 2 have a part in
    } kept[] = {{"x", m->layer[0].r, N * C, false},     {"qkv", m->layer[0].qkv, N * 3 * C, false},
                {"y", m->layer[0].att, N * C, false},   {"attnResid", m->layer[0].h, N * C, false},
                {"fc", m->layer[0].fc, N * F, false},   {"block0", m->layer[1].r, N * C, false},
                {"block1", m->layer[2].r, N * C, true}, {"block2", m->r_final, N * C, true},
                {"ln_f", m->norm, N * C, true}};
    for (int k = 0; k < LENGTH(kept); k++) {
        if (kept[k].later && !complete) continue;
        AT("%s", kept[k].name);
        float *got = floats(kept[k].n);
        real_read(got, kept[k].at, kept[k].n);
        // both sides are float32, and err like the scores above. Measured: 9e-7.
        ck_close(got, widen(activation(root, kept[k].name, kept[k].n), kept[k].n), kept[k].n,
                 WITHIN(5e-6, 0.03));
    }
    if (complete) {  // its head is not tied, so it is applied here
        AT("lm_head");
        double *logits = doubles(N * V);
        float *normed = floats(N * C), *narrow = floats(N * V);
        real_read(normed, m->norm, N * C);
        ref_head_forward(logits, widen(normed, N * C), widen(head, V * C), N, C, V, V);
        for (int i = 0; i < N * V; i++) narrow[i] = (float)logits[i];
        ck_close(narrow, widen(activation(root, "lm_head", N * V), N * V), N * V,
                 WITHIN(5e-6, 0.03));
    }
    json_decref(root);
}
END_TEST

/* ---- Children -------------------------------------------------------------------------------- */

/* This program again, with an argument, for what ends a process or measures one */

/* Runs `this-program argument`; its output, both kinds, is in out. Returns the exit status. */
static int child(const char *argument, char *out, size_t size) {
    char self[512] = {0}, command[600];
    ck_assert_int_gt(readlink("/proc/self/exe", self, sizeof self - 1), 0);
    snprintf(command, sizeof command, "'%s' '%s' 2>&1", self, argument);
    FILE *f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    size_t n = fread(out, 1, size - 1, f);
    out[n] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

typedef struct {
    const char *name, *says;
    int status;  // 2: wrong input; 1: the run failed, or the program is wrong
    void (*run)(GPT2 *m);
} Refusal;

static const GPT2Config small = CONFIG(4, 5, 1, 1, 8, 32, 1e-5f);
static const GPT2Limits small_limits = {
    .tokens = 8, .sequences = 2, .scored = 2, .slots = 1, .positions = 4};

static void forward_of(GPT2 *m, int n, int token) {
    int tokens[16];
    for (int i = 0; i < 16; i++) tokens[i] = token;
    gpt2_forward(m, &(Batch){.S = 1, .N = n, .start = (int[]){0, n}, .tokens = tokens}, NULL);
}

static void logprob_of(GPT2 *m, int target) {
    forward_of(m, 3, 0);
    float logp[3];
    gpt2_logprob(m, (int[]){target, target, target}, 1, logp, NULL, NULL);
}

static void generate_from(GPT2 *m, int n, int token) {
    Generation g;
    gpt2_generate(m,
                  &(Batch){.S = 1,
                           .N = n,
                           .start = (int[]){0, n},
                           .tokens = (int[]){token, token, token, token, token}},
                  &greedy, &g, NULL, NULL);
}

static GPT2 *reserved(bool mapped, GPT2Limits limits) {
    GPT2 *m = gpt2_create(&small, mapped);
    gpt2_reserve(m, &limits);
    return m;
}

static void too_large_token(GPT2 *m) { forward_of(m, 3, 5); }
static void negative_token(GPT2 *m) { forward_of(m, 3, -1); }
static void too_long_sequence(GPT2 *m) { forward_of(m, 5, 0); }
static void too_many_tokens(GPT2 *m) { forward_of(m, 9, 0); }
static void no_tokens(GPT2 *m) { forward_of(m, 0, 0); }
static void too_many_sequences(GPT2 *m) {
    gpt2_forward(m,
                 &(Batch){.S = 3, .N = 3, .start = (int[]){0, 1, 2, 3}, .tokens = (int[]){0, 0, 0}},
                 NULL);
}
static void too_large_target(GPT2 *m) { logprob_of(m, 5); }
static void too_many_targets(GPT2 *m) { logprob_of(m, 1); }
static void too_large_prompt_token(GPT2 *m) { generate_from(m, 2, 5); }
static void negative_prompt_token(GPT2 *m) { generate_from(m, 2, -7); }
static void too_long_prompt(GPT2 *m) { generate_from(m, 5, 0); }
static void empty_prompt(GPT2 *m) { generate_from(m, 0, 0); }
static void no_slots(GPT2 *m) {
    (void)m;
    generate_from(reserved(false, (GPT2Limits){.tokens = 8, .sequences = 1, .scored = 1}), 2, 0);
}
static void more_slots_than_tokens(GPT2 *m) {
    (void)m;
    generate_from(
        reserved(false, (GPT2Limits){.tokens = 2, .sequences = 1, .slots = 3, .positions = 4}), 2,
        0);
}
static void damaged_weights(GPT2 *m) {
    gpt2_write(m, 0, GPT2_WEIGHT, 0, 1, &(float){NAN});
    generate_from(m, 2, 0);
}
static void reserved_twice(GPT2 *m) { gpt2_reserve(m, &small_limits); }
static void mapped_and_trained(GPT2 *m) {
    (void)m;
    reserved(true, (GPT2Limits){.tokens = 8, .sequences = 1, .train = true});
}
static void backward_without_training(GPT2 *m) {
    forward_of(m, 3, 0);
    gpt2_backward(m, NULL, NULL, NULL);
}
static void entropy_not_asked_for(GPT2 *m) {
    (void)m;
    GPT2 *trains =
        reserved(false, (GPT2Limits){.tokens = 8, .sequences = 1, .scored = 3, .train = true});
    logprob_of(trains, 1);
    gpt2_backward(trains, NULL, (float[]){1, 1, 1}, NULL);
}
static void too_large_a_run(GPT2 *m) {
    (void)m;
    reserved(false, (GPT2Limits){.tokens = 2000000000, .sequences = 1, .scored = 1, .train = true});
}
static void too_large_a_model(GPT2 *m) {
    (void)m;
    GPT2Config huge = small;
    huge.n_layer = 4000;
    huge.n_embd = 32768;
    huge.n_inner = 131072;
    gpt2_create(&huge, false);
}

static const Refusal refusals[] = {
    {"too large a token", "token 5 does not exist in a model with a vocabulary of 5", 2,
     too_large_token},
    {"a negative token", "token -1 does not exist", 2, negative_token},
    {"too long a sequence", "a sequence of 5 tokens, but the model has 4 positions", 2,
     too_long_sequence},
    {"too many tokens", "a batch of 1 sequences and 9 tokens", 1, too_many_tokens},
    {"no tokens", "a batch of 1 sequences and 0 tokens", 1, no_tokens},
    {"too many sequences", "a batch of 3 sequences and 3 tokens", 1, too_many_sequences},
    {"too large a target", "target 5 does not exist", 2, too_large_target},
    {"too many targets", "more than 2 scored tokens", 1, too_many_targets},
    {"too large a token in a prompt", "token 5 does not exist", 2, too_large_prompt_token},
    {"a negative token in a prompt", "token -7 does not exist", 2, negative_prompt_token},
    {"too long a prompt", "a prompt of 5 tokens, but it must have 1 to 4", 2, too_long_prompt},
    {"an empty prompt", "a prompt of 0 tokens", 2, empty_prompt},
    {"no slots", "0 slots and 8 tokens", 1, no_slots},
    {"more slots than tokens", "3 slots and 2 tokens", 1, more_slots_than_tokens},
    {"damaged weights", "not finite", 1, damaged_weights},
    {"reserved twice", "once", 1, reserved_twice},
    {"mapped and trained", "cannot train", 1, mapped_and_trained},
    {"backward without training", "reserved without training", 1, backward_without_training},
    {"entropy not asked for", "gpt2_logprob did not compute the entropy", 1, entropy_not_asked_for},
    {"too large a run", "MB are free", 1, too_large_a_run},
    {"too large a model", "the model needs", 1, too_large_a_model},
};

START_TEST(refusals_say_why_and_end_the_program) {
    const Refusal *r = &refusals[_i];
    char out[4096];
    int status = child(r->name, out, sizeof out);
    ck_assert_msg(status == r->status && strstr(out, r->says) && !strncmp(out, "error: ", 7),
                  "%s: status %d, %s", r->name, status, out);
}
END_TEST

/* Pages of this process in memory, in bytes, by their name in /proc: VmRSS now, VmHWM at the most.
 */
static double resident(const char *name) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    double kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name))) kb = atof(line + strlen(name) + 1);
    if (f) fclose(f);
    return kb * 1024;
}

/* A whole step of a model large enough that code and libraries do not count. Prints what was
   foretold and how far memory grew. */
static int measure_memory(bool checkpointing) {
    const GPT2Config c = CONFIG(128, 5000, 8, 4, 256, 1024, 1e-5f);
    const GPT2Limits limits = {.tokens = 512,
                               .sequences = 4,
                               .scored = 512,
                               .train = true,
                               .gradient_checkpointing = checkpointing};
    int start[] = {0, 128, 256, 384, 512}, tokens[512], target[512];
    static float logp[512], dlogp[512];
    for (int i = 0; i < 512; i++) {
        tokens[i] = i % 5000;
        target[i] = (i + 1) % 5000;
        dlogp[i] = -1.0f / 512;
    }
    device_init();
    // the kernels' own workspace is not the model's: touch all of it first, with a product as large
    // as their largest block
    real *a = device_alloc(sizeof(real) * 1536 * 384), *b = device_alloc(sizeof(real) * 384 * 3072),
         *out = device_alloc(sizeof(real) * 1536 * 3072);
    linear_forward(out, a, b, NULL, 1536, 384, 3072);
    device_free(a, sizeof(real) * 1536 * 384);
    device_free(b, sizeof(real) * 384 * 3072);
    device_free(out, sizeof(real) * 1536 * 3072);
    double before = resident("VmRSS");
    GPT2 *m = gpt2_create(&c, false);
    gpt2_init_weights(m, 1);
    gpt2_reserve(m, &limits);
    gpt2_forward(m, &(Batch){.S = 4, .N = 512, .start = start, .tokens = tokens}, NULL);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
    gpt2_backward(m, dlogp, NULL, NULL);
    gpt2_step(m,
              &(AdamW){.learning_rate = 1e-3f,
                       .beta1 = 0.9f,
                       .beta2 = 0.999f,
                       .epsilon = 1e-8f,
                       .max_grad_norm = 1},
              1);
    printf("%.0f %.0f\n", (double)gpt2_memory(&c, &limits).total, resident("VmHWM") - before);
    gpt2_free(m);
    return 0;
}

extern void __tsan_init(void) __attribute__((
    weak));  // there under ThreadSanitizer, whose own records of memory are resident as well

START_TEST(memory_used_is_memory_foretold) {
    double told[2], grown[2];
    if (__tsan_init || !on_cpu()) return;  // the memory of a GPU is not the process's
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        char out[4096];
        ck_assert_int_eq(child(checkpointing ? "memory, checkpointing" : "memory", out, sizeof out),
                         0);
        ck_assert_msg(sscanf(out, "%lf %lf", &told[checkpointing], &grown[checkpointing]) == 2,
                      "%s", out);
        // 5 %: attention's workspace, what the host stages, the ends of huge pages
        ck_assert_msg(fabs(grown[checkpointing] / told[checkpointing] - 1) < 0.05,
                      "%.1f MB foretold, %.1f MB used", told[checkpointing] / 1e6,
                      grown[checkpointing] / 1e6);
    }
    ck_assert_double_gt(told[1], 100e6);
    ck_assert_double_lt(
        grown[1],
        grown[0] - 25e6);  // seven layers of 512 tokens, 9 C floats each, are not kept: 33 MB
}
END_TEST

static int run_as_child(const char *what) {
    if (!strcmp(what, "memory")) return measure_memory(false);
    if (!strcmp(what, "memory, checkpointing")) return measure_memory(true);
    for (int i = 0; i < LENGTH(refusals); i++)
        if (!strcmp(what, refusals[i].name)) refusals[i].run(reserved(false, small_limits));
    printf("it did not refuse\n");
    return 0;
}

/* ----  ---------------------------------------------------------------------------------------- */

static void add(Suite *suite, const char *name, const TTest *const *tests, int n) {
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 600);
    tcase_add_checked_fixture(tcase, begin, forget);
    for (int i = 0; i < n; i++) tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
}

#define ADD(name, ...)                                    \
    add(suite, name, (const TTest *const[]){__VA_ARGS__}, \
        LENGTH(((const TTest *const[]){__VA_ARGS__})))

int main(int argc, char **argv) {
    omp_set_num_threads(1);
    if (argc > 1) return run_as_child(argv[1]);
    Suite *suite = suite_create("gpt2");
    ADD("golden", golden_scores, golden_gradient, golden_steps, golden_continuation);
    ADD("reference", scores_are_those_of_the_reference,
        each_kind_of_noise_is_that_of_the_reference_alone, gradients_are_slopes_of_the_reference);
    ADD("same bits", gradient_checkpointing_changes_no_bit,
        a_model_without_gradients_gives_the_same_scores, room_to_spare_changes_no_bit,
        a_second_batch_does_not_see_the_first, logits_scored_in_turns_give_the_same_bits,
        logits_keep_to_their_budget, threads_change_no_bit,
        a_sequence_alone_has_the_bits_it_has_in_company, an_empty_sequence_changes_no_bit,
        entropy_and_best_are_optional, the_last_scores_count);
    ADD("scalar head", a_scalar_head_reads_the_final_norm_and_trains);
    ADD("shared beginnings", continuations_have_the_bits_of_whole_sequences);
    ADD("divergence", divergence_is_that_of_the_two_distributions);
    ADD("technique", a_technique_inside_the_network_gets_its_gradient,
        a_technique_that_adds_nothing_changes_no_bit_and_places_are_its_own,
        slopes_stand_for_logits_where_the_embedding_is_frozen,
        a_frozen_model_may_be_mapped_and_does_not_change);
    ADD("accumulation", micro_batches_accumulate_to_the_bits_of_one_batch,
        rows_without_a_target_have_no_score_and_no_gradient, gradients_do_not_come_from_the_future);
    ADD("step", a_step_is_that_of_the_reference, a_small_gradient_is_not_clipped,
        cleared_gradients_are_forgotten, a_gradient_that_is_not_finite_changes_nothing);
    ADD("generation", greedy_texts_are_those_of_full_forward_passes,
        sampled_log_probabilities_are_those_of_logprob_to_the_bit,
        a_technique_is_there_in_generation, sampled_tokens_are_those_of_the_reference,
        texts_do_not_depend_on_slots_or_room,
        texts_do_not_depend_on_what_the_model_did_before_or_on_training,
        texts_follow_their_ids_not_their_order, a_text_ends_with_the_stop_token,
        a_stop_token_in_the_prompt_does_not_stop, max_new_tokens_is_kept,
        a_text_stops_at_the_last_position, seed_and_step_choose_the_text,
        every_token_is_told_as_it_is_drawn);
    ADD("tensors", tensors_have_the_shapes_of_the_files, a_part_of_a_tensor_is_read_and_written,
        a_mapped_model_gives_the_same_bits, unaligned_weights_are_copied,
        initial_weights_have_the_documented_distribution, memory_is_what_was_foretold);
    ADD("learned model", activations_of_a_learned_model);
    TCase *children = tcase_create("children");
    tcase_set_timeout(children, 600);
    tcase_add_checked_fixture(children, begin, forget);
    tcase_add_loop_test(children, refusals_say_why_and_end_the_program, 0, LENGTH(refusals));
    tcase_add_test(children, memory_used_is_memory_foretold);
    suite_add_tcase(suite, children);
    int failed = run_suite(suite);
    return failed != 0;
}
