/*
 * gpt2_fixture.h - what the tests of common/model/ share: models and batches of small shapes,
 * comparisons, and a technique for tap.h.
 *
 * The same tests run on a CPU and on a device, whose memory is copied before it is compared.
 */
#ifndef POSTTRAIN_GPT2_FIXTURE_H
#define POSTTRAIN_GPT2_FIXTURE_H

#include "model/generate.h"
#include "model/private.h"  // to look inside a model
#include "ref.h"
#include "program.h"

#include <check.h>  // after util.h, whose fail() it hides behind a macro of its own
#include <omp.h>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- Memory of a test, which is freed after it, also if it failed ---------------------------- */

enum { OWNED = 4096 };

static void *owned[OWNED];
static GPT2 *models[OWNED];
static Generation generations[OWNED];
static int owned_count, model_count, generation_count;
static char where[256];  // what is being tested, for messages

#define AT(...) snprintf(where, sizeof where, __VA_ARGS__)

static inline void forget(void) {
    for (int i = 0; i < owned_count; i++) free(owned[i]);
    for (int i = 0; i < model_count; i++) gpt2_free(models[i]);
    for (int i = 0; i < generation_count; i++) generation_free(&generations[i]);
    owned_count = model_count = generation_count = 0;
}

static inline void begin(void) {
    forget();
    AT("(nothing)");
    omp_set_num_threads(1);  // the cores may be busy, and waiting threads spin; only tests of
                             // threads use several
}

static inline void *zeros(size_t count, size_t size) {
    ck_assert_int_lt(owned_count, OWNED);
    return owned[owned_count++] = xcalloc(count, size);
}

static inline float *floats(size_t n) { return zeros(n, sizeof(float)); }
static inline double *doubles(size_t n) { return zeros(n, sizeof(double)); }

static inline double *widen(const float *x, size_t n) {
    double *wide = doubles(n);
    for (size_t i = 0; i < n; i++) wide[i] = x[i];
    return wide;
}

static inline double norm(const double *x, size_t n) { return sqrt(ref_sum_of_squares(x, n)); }

/* The i-th of a stream of normal numbers. */
static inline float normal(uint32_t stream, uint32_t i) {
    Random4 r = random4(20, RANDOM_DATA, stream, 0, 0, i);
    return random_normal(r.v[0], r.v[1]);
}

static inline uint32_t below(uint32_t n, uint32_t stream, uint32_t i) {
    return random4(20, RANDOM_DATA, stream, 1, 0, i).v[0] % n;
}

/* ---- Comparisons ----------------------------------------------------------------------------- */

/* Each returns NULL or an error message, so that Check reports the line of the test. */

/* The same tests run on kernels.cu (make test_emu, make test_cuda), in float and in bf16. Promises
 * of equal bits hold there to the bit. */
static inline bool on_cpu(void) { return !strncmp(device_name(), "CPU", 3); }

/* A tolerance; the second one is for numbers stored as bf16, about three times the error measured
   on the emulated device. There each number, the weights and some ten activations one after the
   other, is rounded by up to 2^-9 of itself, so errors of a few thousandths are normal. */
#define WITHIN(in_float, in_bf16) (SHORT ? (in_bf16) : (in_float))

#define ck_complaint(complaint)           \
    do {                                  \
        const char *said = (complaint);   \
        ck_assert_msg(!said, "%s", said); \
    } while (0)
#define ck_close(got, want, n, tolerance) \
    ck_complaint(compare(#got, (got), (want), (n), (tolerance)))
#define ck_bits(got, want, n) ck_complaint(compare_bits(#got, (got), (want), (n)))
/* For sums that continue from one part of the batch to the next. On a CPU they are one chain
   (kernels.h). */
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
static inline const char *compare(const char *what, const float *got, const double *want, size_t n,
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

static inline const char *compare_bits(const char *what, const float *got, const float *want,
                                       size_t n) {
    if (!memcmp(got, want, n * sizeof *got)) return NULL;
    size_t at = 0;
    while (!memcmp(got + at, want + at, sizeof *got)) at++;
    snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %.9g (%a), not exactly %.9g (%a)",
             where, what, at, n, (double)got[at], (double)got[at], (double)want[at],
             (double)want[at]);
    return complaint;
}

static inline const char *compare_zero(const char *what, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0) {
            snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %.9g, not 0", where, what,
                     i, n, (double)x[i]);
            return complaint;
        }
    return NULL;
}

/* ---- Models and batches ---------------------------------------------------------------------- */

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

/* A batch with its arrays. Each row has a random target, not necessarily the next token, or none.
   The derivatives of rows without a target are NaN, because they must not be used. */
enum { MAX_N = 512, MAX_S = 12 };

typedef struct {
    Batch batch;
    int start[MAX_S + 1], tokens[MAX_N], target[MAX_N], scored;
    uint32_t id[MAX_S];
    float dlogp[MAX_N], dentropy[MAX_N];
} Text;

static inline void derivatives(Text *t) {
    t->scored = 0;
    for (int i = 0; i < t->batch.N; i++) {
        bool scored = t->target[i] >= 0;
        t->scored += scored;
        t->dlogp[i] = scored ? normal(101, (uint32_t)i) : NAN;
        t->dentropy[i] = scored ? normal(102, (uint32_t)i) : NAN;
    }
}

/* S sequences of these lengths over a vocabulary of V, with ids 10, 7, 4, ... (wrapping around: an
   id may be any 32 bits). */
static inline Text *text(int V, int S, const int *length) {
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
static inline Text *part_of(const Text *all, int s, int S) {
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

/* The smallest limits for a text, so that an array that is too small by one is noticed. */
static inline GPT2Limits fit(const Text *t, bool train, bool checkpointing) {
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

static inline Text *text_of(const Shape *s) { return text(s->config.vocab_size, s->S, s->length); }

/* The shape for most tests. */
#define MIDDLING (&shapes[1])

static const GPT2Noise all_noise = {.embd_pdrop = 0.1f,
                                    .attn_pdrop = 0.2f,
                                    .resid_pdrop = 0.15f,
                                    .neftune_alpha = 5,
                                    .seed = 7,
                                    .step = 3};

static inline bool is_gain(const char *name) {
    return strstr(name, "ln_") && strstr(name, ".weight");
}

/* Sets weights so large that attention is uneven, GELU is not linear, and no gradient is small. */
static inline void randomise(GPT2 *m) {
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        float *w = xmalloc(t->n * sizeof *w);
        for (size_t j = 0; j < t->n; j++)
            w[j] = (is_gain(t->name) ? 1 : 0) + 0.25f * normal((uint32_t)i, (uint32_t)j);
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        free(w);
    }
}

static inline GPT2 *adopt(GPT2 *m) {
    ck_assert_int_lt(model_count, OWNED);
    return models[model_count++] = m;
}

/* Always the same weights for the same shape. */
static inline GPT2 *model(const GPT2Config *config, GPT2Limits limits) {
    GPT2 *m = adopt(gpt2_create(config, false));
    randomise(m);
    gpt2_reserve(m, &limits);
    return m;
}

/* ---- Results of a model ---------------------------------------------------------------------- */

static inline size_t elements(const GPT2 *m) {
    size_t n = 0;
    for (int i = 0; i < gpt2_tensors(m); i++) n += gpt2_tensor(m, i)->n;
    return n;
}

static inline float *read_tensor(const GPT2 *m, int i, GPT2Part part) {
    float *x = floats(gpt2_tensor(m, i)->n);
    gpt2_read(m, i, part, 0, gpt2_tensor(m, i)->n, x);
    return x;
}

/* A part of every tensor, one after the other. */
static inline float *read_all(const GPT2 *m, GPT2Part part) {
    float *all = floats(elements(m)), *x = all;
    for (int i = 0; i < gpt2_tensors(m); x += gpt2_tensor(m, i++)->n)
        gpt2_read(m, i, part, 0, gpt2_tensor(m, i)->n, x);
    return all;
}

static inline void clear_gradients(GPT2 *m) {
    for (int i = 0; i < gpt2_tensors(m); i++)
        gpt2_write(m, i, GPT2_GRADIENT, 0, gpt2_tensor(m, i)->n, floats(gpt2_tensor(m, i)->n));
}

typedef struct {
    float *logp, *entropy, *best;  // best as float, to be compared like the others
} Scores;

static inline Scores score(GPT2 *m, const Text *t, const GPT2Noise *noise) {
    size_t N = (size_t)t->batch.N;
    int *best = zeros(N, sizeof(int));
    Scores s = {floats(N), floats(N), floats(N)};
    for (size_t i = 0; i < N; i++) {
        s.logp[i] = s.entropy[i] = s.best[i] = NAN;
        best[i] = -1;
    }
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

/* Adds the gradient of a text. */
static inline Scores learn(GPT2 *m, const Text *t, const GPT2Noise *noise) {
    Scores s = score(m, t, noise);
    gpt2_backward(m, t->dlogp, t->dentropy, NULL);
    return s;
}

/* All weights in double, in one array; w[i] is tensor i. */
typedef struct {
    double *all, **w;
} Wide;

static inline Wide widen_weights(const GPT2 *m) {
    Wide x = {widen(read_all(m, GPT2_WEIGHT), elements(m)),
              zeros((size_t)gpt2_tensors(m), sizeof(double *))};
    double *w = x.all;
    for (int i = 0; i < gpt2_tensors(m); w += gpt2_tensor(m, i++)->n) x.w[i] = w;
    return x;
}

/* ---- Generated texts ------------------------------------------------------------------------- */

static inline const Generation *generate(GPT2 *m, const Batch *prompts, Sampler s) {
    ck_assert_int_lt(generation_count, OWNED);
    Generation *g = &generations[generation_count++];
    gpt2_generate(m, prompts, &s, g, NULL, NULL);
    return g;
}

static const Sampler greedy = {.top_p = 1, .max_new_tokens = 12, .stop_token = -1};
static const Sampler plain = {
    .temperature = 1, .top_p = 1, .max_new_tokens = 12, .stop_token = -1, .seed = 11, .step = 2};

static const int prompt_lengths[] = {3, 1, 9, 2, 6, 4, 1};
enum { PROMPTS = LENGTH(prompt_lengths) };

static inline Text *prompts(void) {
    return text(MIDDLING->config.vocab_size, PROMPTS, prompt_lengths);
}

/* Compares texts bit for bit: tokens, log-probabilities, and whether they ended. */
static inline const char *compare_texts(const Generation *got, const Generation *want, int S) {
    int n = want->start[S];
    bool same = !memcmp(got->start, want->start, sizeof(int) * (size_t)(S + 1)) &&
                !memcmp(got->ended, want->ended, sizeof(bool) * (size_t)S) &&
                !memcmp(got->tokens, want->tokens, sizeof(int) * (size_t)n);
    if (same) return compare_bits("logp", got->logp, want->logp, (size_t)n);
    snprintf(complaint, sizeof complaint, "%s: the texts differ", where);
    return complaint;
}

/* ---- A technique for tap.h ------------------------------------------------------------------- */

/* It has one parameter a for each site of each layer, and one for TAP_WTE, where a token adds -a, 0
   or a to each channel. At a linear layer, out[j] += a inp[j mod IC]. At TAP_ATTN and TAP_MLP, f
   becomes f + a (f + residual), and f + residual is saved for the backward pass. */

typedef struct {
    GPT2Tensor tensor[64];
    int n, first;        // number of tensors; index of the first one
    int saves;           // save_at is below this
    float *saved[2][8];  // [TAP_ATTN, TAP_MLP][save_at] (N,C)
    float *host[3];      // (N,4C) each, copies from the device
    int calls[2];
} Trick;

static inline int trick_tensor(const Trick *k, const TapCall *c) {
    return k->first + (c->site == TAP_WTE ? k->n - 1 : c->layer * TAP_WTE + (int)c->site);
}

/* Copies (N,channels) from the device to the host. */
static inline void fetch(float *into, const real *from, int N, int channels) {
    real_read(into, from, (size_t)N * (size_t)channels);
}

/* What a token adds at the embedding: -1, 0 or 1, times a */
static inline float trick_of(int token) { return (float)(token % 3 - 1); }

/* After the embedding: out[j] += a trick_of(token). */
static inline void trick_embedding(Trick *k, const TapCall *c, bool forward) {
    int *token = (int *)zeros((size_t)c->N, sizeof *token);
    float a, da, *x = k->host[0];
    ck_assert(!c->inp && !c->residual && !c->dinp && !c->dresidual && c->layer == 0);
    device_read(token, c->token, sizeof *token * (size_t)c->N);
    fetch(&a, gpt2_weight(c->m, trick_tensor(k, c)), 1, 1);
    fetch(x, forward ? c->out : c->dout, c->N, c->OC);
    if (!forward) device_read(&da, gpt2_gradient(c->m, trick_tensor(k, c)), sizeof da);
    for (int n = 0; n < c->N; n++)
        for (int j = 0; j < c->OC; j++)
            if (forward)
                x[n * c->OC + j] += a * trick_of(token[n]);
            else
                da += x[n * c->OC + j] * trick_of(token[n]);
    if (forward)
        real_write(c->out, x, (size_t)c->N * (size_t)c->OC);
    else
        device_write(gpt2_gradient(c->m, trick_tensor(k, c)), &da, sizeof da);
}

static inline void trick_forward(void *context, const TapCall *c) {
    Trick *k = context;
    const int N = c->N, OC = c->OC, IC = c->inp ? c->IC : OC;
    float a, *outs = k->host[0], *inps = k->host[1];
    k->calls[0]++;
    if (c->site == TAP_WTE) {
        trick_embedding(k, c, true);
        return;
    }
    ck_assert((c->inp != NULL) == (c->residual == NULL));
    ck_assert_int_lt(c->save_at, k->saves);
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
            if (c->save_at >= 0) k->saved[c->site == TAP_MLP][c->save_at][n * OC + j] = x;
            *out += a * x;
        }
    real_write(c->out, outs, (size_t)N * (size_t)OC);
}

static inline void trick_backward(void *context, const TapCall *c) {
    Trick *k = context;
    const int N = c->N, OC = c->OC, IC = c->inp ? c->IC : OC;
    real *below = c->inp ? c->dinp : c->dresidual;
    float a, da, *gradient = gpt2_gradient(c->m, trick_tensor(k, c)), *douts = k->host[0],
                 *inps = k->host[1], *dinps = k->host[2];
    k->calls[1]++;
    if (c->site == TAP_WTE) {
        trick_embedding(k, c, false);
        return;
    }
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
                da += *dout * k->saved[c->site == TAP_MLP][c->save_at][n * OC + j];
                dinps[i] += a * *dout;
                *dout += a * *dout;
            }
        }
    device_write(gradient, &da, sizeof da);
    if (below) real_write(below, dinps, (size_t)N * (size_t)IC);
    if (!c->inp) real_write(c->dout, douts, (size_t)N * (size_t)OC);
}

/* The technique for a model, at the sites of mask. */
static inline Trick *trick(const GPT2Config *c, Tap *tap, unsigned mask, bool checkpointing,
                           int N) {
    Trick *k = zeros(1, sizeof *k);
    k->saves = checkpointing ? 1 : c->n_layer;
    for (int i = 0; i < c->n_layer * TAP_WTE + 1; i++) {  // the last is the embedding's
        GPT2Tensor *t = &k->tensor[k->n++];
        snprintf(t->name, sizeof t->name, "h.%d.trick.%d", i / TAP_WTE, i % TAP_WTE);
        t->ndim = 1;
        t->shape[0] = 1;
    }
    for (int i = 0; i < 2 * k->saves; i++) k->saved[i % 2][i / 2] = floats((size_t)(N * c->n_embd));
    for (int i = 0; i < 3; i++) k->host[i] = floats((size_t)(N * 4 * c->n_embd));
    *tap = (Tap){.forward = trick_forward, .backward = trick_backward, .context = k};
    for (int site = 0; site < TAP_SITES; site++) tap->at[site] = mask >> site & 1;
    return k;
}

static inline GPT2 *tricked(const GPT2Config *c, GPT2Limits limits, GPT2Trains trains,
                            unsigned mask, float a, Trick **made) {
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

static inline double score_loss(GPT2 *m, const void *what) {
    const Text *t = what;
    double sum = 0;
    Scores s = score(m, t, NULL);
    for (int i = 0; i < t->batch.N; i++)
        if (t->target[i] >= 0)
            sum += (double)t->dlogp[i] * (double)s.logp[i] +
                   (double)t->dentropy[i] * (double)s.entropy[i];
    return sum;
}

/* Maps w as tensor i, or copies it on a device with its own memory. */
static inline void map_tensor(GPT2 *m, int i, const float *w) {
    if (gpt2_map(m, i, w)) return;
    ck_assert(!on_cpu());
    gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, w);
}

/* ---- Suites ---------------------------------------------------------------------------------- */

static inline void add(Suite *suite, const char *name, const TTest *const *tests, int n) {
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 3600);  // with sanitizers on an emulated GPU
    tcase_add_checked_fixture(tcase, begin, forget);
    for (int i = 0; i < n; i++) tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
}

#define ADD(name, ...)                                    \
    add(suite, name, (const TTest *const[]){__VA_ARGS__}, \
        LENGTH(((const TTest *const[]){__VA_ARGS__})))

#endif
