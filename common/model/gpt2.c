/*
 * gpt2.c - GPT-2, forward and backward, on the kernels of kernels.h.
 *
 * Read it from the top: tensors, memory, the forward pass, the loss head, the backward pass, the
 * optimiser's step, generation. One layer, with r the residual stream:
 *
 *     norm = ln_1(r);  qkv = c_attn(norm);  att = attention(qkv);  h  = r + attn.c_proj(att)
 *     norm = ln_2(h);  fc = c_fc(norm);     gelu(fc);              r' = h + mlp.c_proj(gelu(fc))
 *
 * What backward needs of a layer is kept: r, qkv, att, h, fc (10 C floats a token) and a few
 * numbers a row. The norms' outputs and gelu(fc), 6 C more, are cheap to compute again and are.
 * With gradient checkpointing only r is kept, and the layer runs again.
 */
#include "model/gpt2.h"

#include "model/kernels.h"
#include "model/tap.h"
#include "util.h"

/* ---- tensors --------------------------------------------------------------------------------- */

/* Order of the tensors: wte, wpe, then these twelve for each layer, then ln_f's two, the scalar
 * head's, and those that were added. */
enum {
    LN1_W,
    LN1_B,
    QKV_W,
    QKV_B,
    PROJ_W,
    PROJ_B,
    LN2_W,
    LN2_B,
    FC_W,
    FC_B,
    OUT_W,
    OUT_B,
    PER_LAYER
};
enum { WTE, WPE, FIRST_LAYER };

/* Where a tensor's parts lie on the device; g, m1, m2 are NULL when it does not train. master is
   what w is the rounding of, where real is too short for the steps of training to add up in
   (kernels.h, adamw); else NULL. */
typedef struct {
    real *w;
    float *master, *g, *m1, *m2;
    bool own;  // w was allocated for this tensor alone (a mapped model's exception)
    NF4 *nf4;  // what stands here instead of w, or NULL
} Parts;

/* Activations of one layer, all with N rows. Without training, and for all but r with
 * checkpointing, layers share one set. */
typedef struct {
    real *r, *qkv, *att, *h, *fc;                // (N,C) (N,3C) (N,C) (N,C) (N,F)
    float *lse, *mean1, *rstd1, *mean2, *rstd2;  // (N,NH), then (N)
} Layer;

struct GPT2 {
    GPT2Config config;
    GPT2Limits limits;
    GPT2Memory memory;
    bool mapped, reserved;
    Tap tap;
    int tensors, own;  // all, and the model's own
    GPT2Tensor *tensor;
    Parts *parts;
    real *weights,
        *more;  // one block each for weights, added weights, gradients, moments, and the rest
    float *masters, *gradients, *moments;  // masters: until gpt2_reserve, which puts those that are
                                           // needed beside the moments
    const float **trained;  // (trained_count) the gradients, and how many numbers each has
    size_t *trained_n;
    int trained_count;
    char *scratch;
    void (*release)(void *context);
    void *release_context;
    // activations; what stands in brackets shares memory with the logits, which are never alive at
    // the same time
    Layer *layer;                         // (L)
    real *r_final, *norm, *d_r, *d_norm;  // (N,C)
    float *mean_f, *rstd_f;               // (N)
    real *branch, *wide;                  // [(N,C)] a layer's branch, [(N,max(F,3C))]
    real *act;                            // [(N,F)] gelu(fc) beside fc, for a tap at mlp.c_proj
    real *logits, *head_in;               // (logit_rows,ldv), (scored,C)
    int logit_rows, ldv;
    float *logp, *entropy, *lse;             // (scored)
    float *dlogp, *dentropy;                 // (scored)
    int *best, *target, *row;                // (scored)
    int *start, *parent, *token, *position;  // (S+1) (S) (N) (N)
    uint32_t *sequence;                      // (N) id of each token's sequence
    float *magnitude,
        *value;   // (N) of NEFTune's noise; (N) the scalar head's output or its gradient
    char *cache;  // keys and values: L layers
    // host memory, for what is staged on its way to or from the device
    int *host_int;      // (max(N, S+1))
    float *host_float;  // (N)
    int *host_row;      // (scored) rows of the last gpt2_logprob
    // the last forward
    Batch batch;  // start, tokens, id are the caller's
    GPT2Noise noise;
    bool noisy;
    bool again,
        decoding;      // a layer's second run, with gradient checkpointing; a run from the cache
    int scored, kept;  // rows with a target; rows [0,kept) have their logits in memory
    float beta;        // 1 / temperature of their distributions
    bool with_entropy;
    bool sloped;  // head_in holds d logp / d head_in instead
};

static const char *const layer_names[PER_LAYER] = {
    "ln_1.weight",        "ln_1.bias",        "attn.c_attn.weight", "attn.c_attn.bias",
    "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight",        "ln_2.bias",
    "mlp.c_fc.weight",    "mlp.c_fc.bias",    "mlp.c_proj.weight",  "mlp.c_proj.bias"};

static void add_tensor(GPT2Tensor *t, int ndim, int rows, int columns) {
    t->ndim = ndim;
    t->shape[0] = rows;
    t->shape[1] = columns;
    t->n = (size_t)rows * (size_t)columns;
}

/* The table of the model's own tensors, with room for `more`; columns is 1 for vectors. */
static GPT2Tensor *tensor_table(const GPT2Config *c, int more, int *count) {
    const int C = c->n_embd, F = c->n_inner,
              shapes[PER_LAYER][3] = {{1, C, 1}, {1, C, 1}, {2, C, 3 * C}, {1, 3 * C, 1},
                                      {2, C, C}, {1, C, 1}, {1, C, 1},     {1, C, 1},
                                      {2, C, F}, {1, F, 1}, {2, F, C},     {1, C, 1}};
    *count = FIRST_LAYER + PER_LAYER * c->n_layer + 2 +
             (int)c->head;  // a score has one tensor, a value head two
    GPT2Tensor *table = (GPT2Tensor *)xcalloc((size_t)(*count + more), sizeof *table), *t = table;
    strcpy(t->name, "wte.weight");
    add_tensor(t++, 2, c->vocab_size, C);
    strcpy(t->name, "wpe.weight");
    add_tensor(t++, 2, c->n_positions, C);
    for (int l = 0; l < c->n_layer; l++)
        for (int k = 0; k < PER_LAYER; k++, t++) {
            snprintf(t->name, sizeof t->name, "h.%d.%s", l, layer_names[k]);
            add_tensor(t, shapes[k][0], shapes[k][1], shapes[k][2]);
        }
    strcpy(t->name, "ln_f.weight");
    add_tensor(t++, 1, C, 1);
    strcpy(t->name, "ln_f.bias");
    add_tensor(t++, 1, C, 1);
    if (c->head == SCORE_HEAD) {
        strcpy(t->name, "score.weight");
        add_tensor(t++, 2, 1, C);
    }
    if (c->head == LM_AND_VALUE_HEAD) {
        strcpy(t->name, "v_head.summary.weight");
        add_tensor(t++, 2, 1, C);
        strcpy(t->name, "v_head.summary.bias");
        add_tensor(t++, 1, 1, 1);
    }
    return table;
}

/* Fills in which tensors train, and appends the added ones. */
static void plan_tensors(GPT2Tensor *table, int own, const GPT2Config *c,
                         const GPT2Limits *limits) {
    const int body = own - (int)c->head;
    for (int i = 0; i < own; i++) {
        bool norm = strstr(table[i].name, "ln_") != NULL;
        table[i].trains = limits->train && (i >= body || limits->trains == TRAIN_ALL ||
                                            (limits->trains == TRAIN_NORMS && norm));
    }
    for (int i = 0; i < limits->more_n; i++) {
        table[own + i] = limits->more[i];
        table[own + i].trains = limits->train;
        table[own + i].n = (size_t)limits->more[i].shape[0] *
                           (size_t)(limits->more[i].ndim == 2 ? limits->more[i].shape[1] : 1);
    }
}

static size_t parameters(const GPT2Tensor *t, int count) {
    size_t n = 0;
    for (int i = 0; i < count; i++) n += (t[i].n + 15) / 16 * 16;  // each starts on a cache line
    return n;
}

/* The same of those that train. */
static size_t trained_parameters(const GPT2Tensor *t, int count) {
    size_t n = 0;
    for (int i = 0; i < count; i++) n += t[i].trains ? parameters(t + i, 1) : 0;
    return n;
}

size_t gpt2_parameters(const GPT2Config *config, GPT2Trains trains) {
    int own;
    size_t n = 0;
    GPT2Tensor *table = tensor_table(config, 0, &own);
    plan_tensors(table, own, config, &(GPT2Limits){.train = true, .trains = trains});
    for (int i = 0; i < own; i++) n += table[i].trains ? table[i].n : 0;
    free(table);
    return n;
}

/* Bytes of a tensor's weight. */
static size_t weight_bytes(const GPT2Tensor *t, GPT2Keep keep) {
    const bool matrix = t->ndim == 2 && !strncmp(t->name, "h.", 2);
    return matrix && keep
               ? (nf4_bytes(t->shape[0], t->shape[1], keep == KEEP_NF4_DOUBLE) + 63) / 64 * 64
               : parameters(t, 1) * sizeof(real);
}

/* Short weights that train have masters; they count as moments, being a part of the optimiser's
 * state. */
enum { SHORT = sizeof(real) < sizeof(float) };

static inline Parts *of_layer(const GPT2 *m, int l) {
    return m->parts + FIRST_LAYER + PER_LAYER * l;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* The most memory the logits may take. Rows beyond it are scored in turns, and computed twice when
   trained on (a tenth of a step, at GPT-2's size). 200 MB hold 994 rows of GPT-2's vocabulary.
   Where the embedding is frozen the logits would be the largest thing beside the weights, and
   nothing has to be computed twice (gpt2_logprob): 52 MB hold 258 rows. A GPU in bf16 is given
   more, as it takes many rows to keep it busy: 1,650 MB hold 16,410, and 400 MB 3,978. */
enum {
    LOGIT_BYTES = (SHORT ? 1650 : 200) * 1000 * 1000,
    LOGIT_BYTES_FROZEN = (SHORT ? 400 : 52) * 1000 * 1000
};

/* Hands out pieces of one block. With base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
} Arena;

static void *take(Arena *a, size_t count, size_t size) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (count * size + 63) / 64 * 64;
    return p;
}

/* Gives every activation its place, or with a->base NULL finds how much they take; fills memory's
 * figures. */
static void place(GPT2 *m, Arena *a, GPT2Memory *memory) {
    const GPT2Config *c = &m->config;
    const GPT2Limits *lim = &m->limits;
    const size_t N = (size_t)lim->tokens, C = (size_t)c->n_embd, F = (size_t)c->n_inner,
                 R = (size_t)lim->scored, f = sizeof(float);
    size_t mark = a->used;
    for (int l = 0; l < c->n_layer; l++) {
        Layer *y = &m->layer[l], *first = &m->layer[0];
        bool own = l == 0 || (lim->train && !lim->gradient_checkpointing);
        *y = *first;
        if (l == 0 || lim->train) y->r = take(a, N * C, sizeof(real));
        if (!own) continue;
        y->h = lim->train ? take(a, N * C, sizeof(real)) : y->r;
        y->qkv = take(a, N * 3 * C, sizeof(real));
        y->att = take(a, N * C, sizeof(real));
        y->fc = take(a, N * F, sizeof(real));
        y->lse = take(a, N * (size_t)c->n_head, f);
        y->mean1 = take(a, N, f);
        y->rstd1 = take(a, N, f);
        y->mean2 = take(a, N, f);
        y->rstd2 = take(a, N, f);
    }
    m->r_final = lim->train ? take(a, N * C, sizeof(real)) : m->layer[0].r;
    m->norm = take(a, N * C, sizeof(real));
    if (lim->train) {
        m->d_r = take(a, N * C, sizeof(real));
        m->d_norm = take(a, N * C, sizeof(real));
    }
    m->mean_f = take(a, N, f);
    m->rstd_f = take(a, N, f);
    m->head_in = take(a, R > (size_t)lim->slots ? R * C : (size_t)lim->slots * C, sizeof(real));
    memory->activations = a->used - mark;

    mark = a->used;
    m->ldv = (c->vocab_size + 15) / 16 * 16;
    const bool frozen = lim->train && lim->trains != TRAIN_ALL;
    size_t fit = (frozen ? LOGIT_BYTES_FROZEN : LOGIT_BYTES) / ((size_t)m->ldv * sizeof(real));
    m->logit_rows = (int)(R < fit ? R : fit > 1 ? fit : 1);
    m->logit_rows = max_int(m->logit_rows, lim->slots);
    Arena layer = *a;
    m->logits = take(a, (size_t)m->logit_rows * (size_t)m->ldv, sizeof(real));
    m->branch = take(&layer, N * C, sizeof(real));
    m->wide = take(&layer, N * (F > 3 * C ? F : 3 * C), sizeof(real));
    if (lim->train && lim->tap && lim->tap->at[TAP_MLP_C_PROJ])
        m->act = take(&layer, N * F, sizeof(real));
    if (layer.used > a->used) a->used = layer.used;
    memory->logits = a->used - mark;

    mark = a->used;
    size_t rows = (size_t)max_int(lim->scored, lim->slots);
    m->logp = take(a, rows, f);
    m->entropy = take(a, rows, f);
    m->lse = take(a, rows, f);
    m->dlogp = take(a, rows, f);
    m->dentropy = take(a, rows, f);
    m->best = take(a, rows, sizeof(int));
    m->target = take(a, rows, sizeof(int));
    m->row = take(a, rows, sizeof(int));
    m->start = take(a, (size_t)lim->sequences + 1, sizeof(int));
    m->parent = take(a, (size_t)lim->sequences, sizeof(int));
    m->token = take(a, N, sizeof(int));
    m->position = take(a, N, sizeof(int));
    m->sequence = take(a, N, sizeof(uint32_t));
    m->magnitude = take(a, N, f);
    m->value = take(a, N, f);
    memory->workspace = a->used - mark;

    mark = a->used;
    size_t cache =
        lim->slots ? cache_bytes(lim->slots, lim->positions, c->n_head, c->n_embd / c->n_head) : 0;
    m->cache = take(a, (size_t)c->n_layer, cache);
    memory->cache = a->used - mark;
}

GPT2Memory gpt2_memory(const GPT2Config *config, const GPT2Limits *limits) {
    GPT2 m = {.config = *config,
              .limits = *limits,
              .layer = (Layer *)xcalloc((size_t)config->n_layer, sizeof(Layer))};
    GPT2Memory memory = {0};
    GPT2Tensor *table = tensor_table(config, limits->more_n, &m.own);
    plan_tensors(table, m.own, config, limits);
    m.tensors = m.own + limits->more_n;
    for (int i = 0; i < m.tensors; i++)
        memory.weights += weight_bytes(table + i, i < m.own ? limits->keep : KEEP_FLOAT);
    memory.gradients = trained_parameters(table, m.tensors) * sizeof(float);
    memory.moments = (2 + SHORT) * memory.gradients;
    Arena count = {0};
    place(&m, &count, &memory);
    memory.total = memory.weights + memory.gradients + memory.moments + count.used;
    free(table);
    free(m.layer);
    return memory;
}

static void no_memory(const char *what, size_t bytes) {
    die("%s needs %.0f MB and %.0f MB are free on %s; use a smaller --per_device_train_batch_size "
        "or --max_length, "
        "--gradient_checkpointing, or a smaller model",
        what, (double)bytes / 1e6, (double)device_memory_free() / 1e6, device_name());
}

GPT2 *gpt2_create(const GPT2Config *config, bool mapped) {
    device_init();
    GPT2 *m = (GPT2 *)xcalloc(1, sizeof *m);
    m->config = *config;
    m->mapped = mapped;
    m->tensor = tensor_table(config, 0, &m->own);
    m->tensors = m->own;
    m->parts = (Parts *)xcalloc((size_t)m->tensors, sizeof *m->parts);
    m->layer = (Layer *)xcalloc((size_t)config->n_layer, sizeof *m->layer);
    if (mapped) return m;
    size_t n = parameters(m->tensor, m->tensors);
    if (n * sizeof(real) > device_memory_free() || !(m->weights = device_alloc(n * sizeof(real))))
        no_memory("the model", n * sizeof(real));
    n = 0;
    for (int i = 0; i < m->tensors; i++) {
        m->parts[i].w = m->weights + n;
        n += parameters(m->tensor + i, 1);
    }
    if (!SHORT) return m;
    // every digit of the file, until gpt2_reserve learns that the model does not train
    if (n * sizeof(float) > device_memory_free() || !(m->masters = device_alloc(n * sizeof(float))))
        no_memory("the model", n * sizeof(float));
    for (int i = 0; i < m->tensors; i++)
        m->parts[i].master = m->masters + (m->parts[i].w - m->weights);
    return m;
}

/* Puts the matrices of the blocks into four bits, one after the other: what the file has of them is
 * needed only while it is read. */
static void quantize(GPT2 *m) {
    for (int l = 0; l < m->config.n_layer; l++)
        for (int k = 0; k < PER_LAYER; k++) {
            const int i = FIRST_LAYER + PER_LAYER * l + k;
            const GPT2Tensor *t = &m->tensor[i];
            Parts *p = &m->parts[i];
            if (t->ndim != 2) continue;
            const size_t bytes = weight_bytes(t, m->limits.keep);
            void *memory = bytes > device_memory_free() ? NULL : device_alloc(bytes);
            if (!memory) no_memory("the quantised model", bytes);
            p->nf4 = (NF4 *)xcalloc(1, sizeof *p->nf4);
            nf4_quantize(p->nf4, memory, p->w, t->shape[0], t->shape[1],
                         m->limits.keep == KEEP_NF4_DOUBLE);
            if (p->own)
                device_free(p->w, t->n * sizeof(real));
            else
                device_unmap(p->w, t->n);
            p->w = NULL;
            p->own = false;
        }
}

static void free_masters(GPT2 *m) {
    if (m->masters) device_free(m->masters, parameters(m->tensor, m->own) * sizeof(float));
    m->masters = NULL;
}

void gpt2_reserve(GPT2 *m, const GPT2Limits *limits) {
    if (m->reserved) die("gpt2_reserve: a model is given its memory once");
    if (m->mapped && limits->train && (limits->trains != TRAIN_NONE || m->config.head != LM_HEAD))
        die("gpt2_reserve: weights mapped from their file cannot train");
    if (!m->mapped && limits->keep)
        die("gpt2_reserve: only a model mapped from its file can be quantised");
    m->limits = *limits;
    if (limits->tap) m->tap = *limits->tap;
    m->reserved = true;
    m->memory = gpt2_memory(&m->config, limits);
    free(m->tensor);
    m->tensor = tensor_table(&m->config, limits->more_n, &m->own);
    plan_tensors(m->tensor, m->own, &m->config, limits);
    m->tensors = m->own + limits->more_n;
    m->parts = (Parts *)xrealloc(m->parts, (size_t)m->tensors, sizeof *m->parts);
    if (limits->keep) quantize(m);
    size_t added = parameters(m->tensor + m->own, limits->more_n);
    size_t scratch =
        m->memory.activations + m->memory.logits + m->memory.cache + m->memory.workspace;
    size_t more = scratch + m->memory.gradients + m->memory.moments + added * sizeof(real);
    if (more > device_memory_free()) no_memory("this run", more);
    if (!(m->scratch = device_alloc(scratch))) no_memory("this run", more);
    Arena a = {m->scratch, 0};
    place(m, &a, &m->memory);
    if (added && !(m->more = device_alloc(added * sizeof(real)))) no_memory("this run", more);
    size_t at = 0;
    for (int i = m->own; i < m->tensors; at += parameters(m->tensor + i++, 1))
        m->parts[i] = (Parts){.w = m->more + at};
    if (m->memory.gradients) {
        m->gradients = device_alloc(m->memory.gradients);
        m->moments = device_alloc(m->memory.moments);
        if (!m->gradients || !m->moments) no_memory("this run", more);
        m->trained = (const float **)xcalloc((size_t)m->tensors, sizeof *m->trained);
        m->trained_n = (size_t *)xcalloc((size_t)m->tensors, sizeof *m->trained_n);
        size_t n = 0, all = m->memory.gradients / sizeof(float);
        for (int i = 0; i < m->tensors; i++) {
            if (!m->tensor[i].trains) continue;
            m->parts[i].g = m->gradients + n;
            m->parts[i].m1 = m->moments + n;
            m->parts[i].m2 = m->moments + all + n;
            if (SHORT) {
                float *master = m->moments + 2 * all + n;
                if (i < m->own)
                    device_copy(master, m->parts[i].master, m->tensor[i].n * sizeof(float));
                m->parts[i].master = master;
            }
            m->trained[m->trained_count] = m->parts[i].g;
            m->trained_n[m->trained_count++] = m->tensor[i].n;
            n += parameters(m->tensor + i, 1);
        }
    }
    for (int i = 0; i < m->own; i++)
        if (!m->tensor[i].trains) m->parts[i].master = NULL;
    free_masters(m);
    size_t N = (size_t)limits->tokens, S = (size_t)limits->sequences;
    m->host_int = (int *)xmalloc(sizeof(int) * (N > S ? N + 1 : S + 1));
    m->host_float = (float *)xmalloc(sizeof(float) * (N + 1));
    m->host_row =
        (int *)xmalloc(sizeof(int) * ((size_t)max_int(limits->scored, limits->slots) + 1));
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    for (int i = 0; i < m->tensors; i++) {
        if (m->parts[i].own) device_free(m->parts[i].w, m->tensor[i].n * sizeof(real));
        if (m->parts[i].nf4)
            device_free(m->parts[i].nf4->code, weight_bytes(m->tensor + i, m->limits.keep));
        free(m->parts[i].nf4);
    }
    if (m->weights) device_free(m->weights, parameters(m->tensor, m->own) * sizeof(real));
    free_masters(m);
    if (m->more)
        device_free(m->more, parameters(m->tensor + m->own, m->tensors - m->own) * sizeof(real));
    if (m->gradients) device_free(m->gradients, m->memory.gradients);
    if (m->moments) device_free(m->moments, m->memory.moments);
    if (m->scratch)
        device_free(m->scratch, m->memory.activations + m->memory.logits + m->memory.cache +
                                    m->memory.workspace);
    if (m->release) m->release(m->release_context);
    free(m->tensor);
    free(m->parts);
    free(m->layer);
    free(m->trained);
    free(m->trained_n);
    free(m->host_int);
    free(m->host_float);
    free(m->host_row);
    free(m);
}

const GPT2Config *gpt2_config(const GPT2 *m) { return &m->config; }
int gpt2_tensors(const GPT2 *m) { return m->tensors; }
int gpt2_own_tensors(const GPT2 *m) { return m->own; }
const GPT2Tensor *gpt2_tensor(const GPT2 *m, int i) { return &m->tensor[i]; }
GPT2Trains gpt2_trains(const GPT2 *m) { return m->limits.trains; }

void gpt2_read(const GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, float *host) {
    const Parts *p = &m->parts[i];
    if (part == GPT2_WEIGHT && p->nf4)
        nf4_read(host, p->nf4, offset, n);
    else if (part == GPT2_WEIGHT && p->master)
        device_read(host, p->master + offset, n * sizeof(float));
    else if (part == GPT2_WEIGHT)
        real_read(host, p->w + offset, n);
    else
        device_read(host,
                    (part == GPT2_GRADIENT  ? p->g
                     : part == GPT2_MOMENT1 ? p->m1
                                            : p->m2) +
                        offset,
                    n * sizeof(float));
}

void gpt2_write(GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, const float *host) {
    Parts *p = &m->parts[i];
    if (p->nf4) die("gpt2_write: %s is quantised", m->tensor[i].name);
    if (part == GPT2_WEIGHT && p->master) device_write(p->master + offset, host, n * sizeof(float));
    if (part == GPT2_WEIGHT)
        real_write(p->w + offset, host, n);
    else
        device_write((part == GPT2_GRADIENT  ? p->g
                      : part == GPT2_MOMENT1 ? p->m1
                                             : p->m2) +
                         offset,
                     host, n * sizeof(float));
}

bool gpt2_map(GPT2 *m, int i, const void *data) {
    if ((m->parts[i].w = device_map(data, m->tensor[i].n))) return true;
    size_t bytes = m->tensor[i].n * sizeof(real);
    if (bytes > device_memory_free() || !(m->parts[i].w = device_alloc(bytes)))
        no_memory("the model", bytes);
    m->parts[i].own = true;
    return false;
}

real *gpt2_weight(const GPT2 *m, int i) { return m->parts[i].w; }
float *gpt2_gradient(const GPT2 *m, int i) { return m->parts[i].g; }

void gpt2_at_free(GPT2 *m, void (*release)(void *context), void *context) {
    m->release = release;
    m->release_context = context;
}

void gpt2_init_weights(GPT2 *m, uint64_t seed) {
    const float residual = 0.02f / sqrtf(2.0f * (float)m->config.n_layer);
    enum { BLOCK = 1 << 16 };
    float *block = (float *)xmalloc(sizeof(float) * BLOCK);
    for (int i = 0; i < m->own; i++) {
        const GPT2Tensor *t = &m->tensor[i];
        size_t length = strlen(t->name);
        bool norm = !strncmp(t->name, "ln_f.w", 6) || strstr(t->name, "ln_1.w") ||
                    strstr(t->name, "ln_2.w");
        bool projection = length > 13 && !strcmp(t->name + length - 13, "c_proj.weight");
        float deviation = t->ndim == 1 ? 0 : projection ? residual : 0.02f;
        for (size_t from = 0; from < t->n; from += BLOCK) {
            size_t n = t->n - from < BLOCK ? t->n - from : BLOCK;
#pragma omp parallel for
            for (size_t j = 0; j < n; j++) {
                Random4 r = random4(seed, RANDOM_INIT, (uint32_t)i, 0, (uint32_t)((from + j) >> 32),
                                    (uint32_t)(from + j));
                block[j] =
                    t->ndim == 1 ? (norm ? 1.0f : 0.0f) : deviation * random_normal(r.v[0], r.v[1]);
            }
            gpt2_write(m, i, GPT2_WEIGHT, from, n, block);
        }
    }
    free(block);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* Noise of one site for the tokens of the current batch; with p = 0 it does nothing. */
static Noise site(const GPT2 *m, float p, RandomPurpose purpose, int layer) {
    return (Noise){m->noisy ? p : 0, m->noise.seed, (uint32_t)purpose | (uint32_t)layer << 8,
                   m->noise.step,    m->sequence,   m->position};
}

/* Checks a batch and puts it on the device: tokens, positions, starts, and the ids of the
 * sequences. */
static void upload(GPT2 *m, const Batch *b) {
    if (b->N < 1 || b->N > m->limits.tokens || b->S > m->limits.sequences)
        die("a batch of %d sequences and %d tokens, where gpt2_reserve was told at most %d and %d "
            "(and at least 1 token)",
            b->S, b->N, m->limits.sequences, m->limits.tokens);
    for (int i = 0; i < b->N; i++)
        if (b->tokens[i] < 0 || b->tokens[i] >= m->config.vocab_size)
            die_usage(
                "token %d does not exist in a model with a vocabulary of %d: the tokenizer and the "
                "model do not belong together",
                b->tokens[i], m->config.vocab_size);
    device_write(m->token, b->tokens, sizeof(int) * (size_t)b->N);
    device_write(m->start, b->start, sizeof(int) * ((size_t)b->S + 1));
    if (b->parent) device_write(m->parent, b->parent, sizeof(int) * (size_t)b->S);
    for (int s = 0; s < b->S; s++) {
        int parent = b->parent ? b->parent[s] : -1,
            before = parent < 0 ? 0 : b->start[parent + 1] - b->start[parent];
        if (parent >= s || (parent >= 0 && b->parent[parent] >= 0))
            die("sequence %d of a batch goes on from sequence %d, which must stand before it and "
                "have no parent itself",
                s, parent);
        if (before + b->start[s + 1] - b->start[s] > m->config.n_positions)
            die_usage("a sequence of %d tokens, and the model has %d positions; lower --max_length",
                      before + b->start[s + 1] - b->start[s], m->config.n_positions);
        for (int i = b->start[s]; i < b->start[s + 1]; i++)
            m->host_int[i] = before + i - b->start[s];
    }
    device_write(m->position, m->host_int, sizeof(int) * (size_t)b->N);
    for (int s = 0; s < b->S; s++)
        for (int i = b->start[s]; i < b->start[s + 1]; i++)
            m->host_int[i] = (int)(b->id ? b->id[s] : (uint32_t)s);
    device_write(m->sequence, m->host_int, sizeof(uint32_t) * (size_t)b->N);
}

/* r = wte[token] + wpe[position], with NEFTune's noise and dropout where asked. */
static void embed(GPT2 *m, real *r) {
    const int N = m->batch.N, C = m->config.n_embd;
    embed_forward(r, m->token, m->position, m->parts[WTE].w, m->parts[WPE].w, N, C);
    if (m->noisy && m->noise.neftune_alpha > 0) {
        for (int s = 0; s < m->batch.S; s++) {
            int T = m->batch.start[s + 1] - m->batch.start[s];
            for (int i = m->batch.start[s]; i < m->batch.start[s + 1]; i++)
                m->host_float[i] = m->noise.neftune_alpha / sqrtf((float)T * (float)C);
        }
        device_write(m->magnitude, m->host_float, sizeof(float) * (size_t)N);
        add_uniform_noise(r, m->magnitude, N, C, site(m, 1, RANDOM_NEFTUNE, 0));
    }
    dropout(r, N, C, site(m, m->noise.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
}

Noise tap_noise(const TapCall *call, float p, RandomPurpose purpose) {
    return site(call->m, p, (RandomPurpose)((uint32_t)purpose | (uint32_t)call->site << 24),
                call->layer);
}

/* What a tap gets to know of a call at a place of layer l. */
static TapCall tap_call(const GPT2 *m, int l, TapSite place, int N, int IC, int OC,
                        const real *inp) {
    int keep = m->decoding || !m->limits.train     ? -1
               : !m->limits.gradient_checkpointing ? l
               : m->again                          ? 0
                                                   : -1;
    return (TapCall){
        .m = m, .layer = l, .site = place, .N = N, .IC = IC, .OC = OC, .inp = inp, .keep = keep};
}

static void tap_forward(const GPT2 *m, int l, TapSite place, int N, int IC, int OC, const real *inp,
                        real *out, const real *residual) {
    if (!m->tap.at[place]) return;
    TapCall call = tap_call(m, l, place, N, IC, OC, inp);
    call.out = out;
    call.residual = residual;
    m->tap.forward(m->tap.context, &call);
}

/* out (N,OC) = inp (N,IC) w + b: p is the weight's parts, the bias's follow. */
static void linear(real *out, const real *inp, const Parts *p, int N, int IC, int OC) {
    if (p[0].nf4)
        nf4_linear_forward(out, inp, p[0].nf4, p[1].w, N);
    else
        linear_forward(out, inp, p[0].w, p[1].w, N, IC, OC);
}

/* dinp (N,IC) = dout (N,OC) w^T */
static void linear_input(real *dinp, const real *dout, const Parts *p, int N, int IC, int OC) {
    if (p->nf4)
        nf4_linear_backward_input(dinp, dout, p->nf4, N);
    else
        linear_backward_input(dinp, dout, p->w, N, IC, OC);
}

/* fc = c_fc(norm), which backward needs, and wide = gelu(fc): at once, unless something comes
 * between the two. */
static void expand(GPT2 *m, int l, real *fc, int N) {
    const int C = m->config.n_embd, F = m->config.n_inner;
    const Parts *p = of_layer(m, l) + FC_W;
    if (!p[0].nf4 && !m->tap.at[TAP_C_FC]) {
        linear_gelu_forward(m->wide, fc, m->norm, p[0].w, p[1].w, N, C, F);
        return;
    }
    linear(fc, m->norm, p, N, C, F);
    tap_forward(m, l, TAP_C_FC, N, C, F, m->norm, fc, NULL);
    gelu_forward(m->wide, fc, (size_t)N * (size_t)F);
}

/* Layer l from norm = ln_1(r) to fc, all that its backward pass needs, and to wide = gelu(fc). */
static void layer_forward(GPT2 *m, int l) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd;
    const Parts *p = of_layer(m, l);
    Layer *y = &m->layer[l];
    linear(y->qkv, m->norm, p + QKV_W, N, C, 3 * C);
    tap_forward(m, l, TAP_C_ATTN, N, C, 3 * C, m->norm, y->qkv, NULL);
    attention_forward(y->att, y->lse, y->qkv, m->start, m->batch.parent ? m->parent : NULL, N,
                      m->batch.S, c->n_head, C / c->n_head,
                      site(m, m->noise.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
    linear(m->branch, y->att, p + PROJ_W, N, C, C);
    tap_forward(m, l, TAP_ATTN_C_PROJ, N, C, C, y->att, m->branch, NULL);
    dropout(m->branch, N, C, site(m, m->noise.resid_pdrop, RANDOM_DROPOUT_ATTN_RESID, l));
    tap_forward(m, l, TAP_ATTN, N, 0, C, NULL, m->branch, y->r);
    layernorm_forward(y->h, m->norm, y->mean2, y->rstd2, y->r, m->branch, p[LN2_W].w, p[LN2_B].w, N,
                      C, c->layer_norm_epsilon);
    expand(m, l, y->fc, N);
}

/* branch = what layer l's MLP adds to h, from wide. */
static void layer_output(GPT2 *m, int l) {
    const int N = m->batch.N, C = m->config.n_embd, F = m->config.n_inner;
    const Parts *p = of_layer(m, l);
    linear(m->branch, m->wide, p + OUT_W, N, F, C);
    tap_forward(m, l, TAP_MLP_C_PROJ, N, F, C, m->wide, m->branch, NULL);
    dropout(m->branch, N, C, site(m, m->noise.resid_pdrop, RANDOM_DROPOUT_MLP_RESID, l));
    tap_forward(m, l, TAP_MLP, N, 0, C, NULL, m->branch, m->layer[l].h);
}

void gpt2_forward(GPT2 *m, const Batch *b, const GPT2Noise *noise) {
    const GPT2Config *c = &m->config;
    const int N = b->N, C = c->n_embd;
    m->batch = *b;
    m->noisy = noise != NULL;
    if (noise) m->noise = *noise;
    m->scored = m->kept = 0;
    m->decoding = m->again = m->sloped = false;
    upload(m, b);
    embed(m, m->layer[0].r);
    for (int l = 0; l < c->n_layer; l++) {
        const Parts *p = of_layer(m, l);
        Layer *y = &m->layer[l], *below = y - 1;
        // r = (what the layer below made of it) ; norm = ln_1(r)
        layernorm_forward(y->r, m->norm, y->mean1, y->rstd1, l ? below->h : y->r,
                          l ? m->branch : NULL, p[LN1_W].w, p[LN1_B].w, N, C,
                          c->layer_norm_epsilon);
        layer_forward(m, l);
        layer_output(m, l);
    }
    const Parts *f = of_layer(m, c->n_layer);  // ln_f stands where the next layer's ln_1 would
    layernorm_forward(m->r_final, m->norm, m->mean_f, m->rstd_f, m->layer[c->n_layer - 1].h,
                      m->branch, f[0].w, f[1].w, N, C, c->layer_norm_epsilon);
}

/* ---- the loss head --------------------------------------------------------------------------- */

/* Rows with a target are gathered, and scored logit_rows at a time: the last rows first, so that
   the rows [0,kept) whose logits are left in memory for backward are as many as fit. Where the
   embedding is frozen and this is a step of training (there is noise, be it of probability 0), none
   are left: all that backward will need of a row's logits is its slope, which is computed while
   they are there. */
void gpt2_logprob(GPT2 *m, const int *target, float temperature, float *logp, float *entropy,
                  int *best) {
    const int N = m->batch.N, C = m->config.n_embd, V = m->config.vocab_size;
    int R = 0;
    for (int i = 0; i < N; i++) {
        logp[i] = 0;
        if (entropy) entropy[i] = 0;
        if (best) best[i] = 0;
        if (target[i] < 0) continue;
        if (target[i] >= V)
            die_usage("target %d does not exist in a vocabulary of %d", target[i], V);
        if (R == m->limits.scored)
            die("more than %d scored tokens, where gpt2_reserve was told at most that", R);
        m->host_row[R] = i;
        m->host_int[R++] = target[i];
    }
    if (!(temperature > 0))
        die("gpt2_logprob: a temperature of %g, where it must be above 0", (double)temperature);
    m->beta = 1.0f / temperature;
    m->scored = R;
    m->kept = R < m->logit_rows ? R : m->logit_rows;
    m->with_entropy = entropy != NULL;
    m->sloped = m->noisy && m->limits.train && !m->parts[WTE].g;
    if (!R) return;
    device_write(m->row, m->host_row, sizeof(int) * (size_t)R);
    device_write(m->target, m->host_int, sizeof(int) * (size_t)R);
    gather_rows(m->head_in, m->norm, m->row, R, C);
    if (m->sloped) {
        for (int r = 0; r < R; r++) m->host_float[r] = 1;
        device_write(m->dlogp, m->host_float, sizeof(float) * (size_t)R);
    }
    for (int from = (R - 1) / m->logit_rows * m->logit_rows; from >= 0; from -= m->logit_rows) {
        int rows = R - from < m->logit_rows ? R - from : m->logit_rows;
        real *in = m->head_in + (size_t)from * (size_t)C;
        head_forward(m->logits, in, m->parts[WTE].w, rows, C, V, m->ldv);
        logprob_forward(m->logp + from, entropy ? m->entropy + from : NULL, m->lse + from,
                        best ? m->best + from : NULL, m->logits, m->target + from, m->beta, rows, V,
                        m->ldv);
        if (!m->sloped) continue;
        logprob_backward(m->logits, m->lse + from, NULL, m->target + from, m->dlogp + from, NULL,
                         m->beta, rows, V, m->ldv);
        head_backward(in, NULL, m->logits, NULL, m->parts[WTE].w, rows, C, V, m->ldv);
    }
    if (m->sloped) m->kept = 0;
    device_read(m->host_float, m->logp, sizeof(float) * (size_t)R);
    for (int r = 0; r < R; r++) logp[m->host_row[r]] = m->host_float[r];
    if (entropy) {
        device_read(m->host_float, m->entropy, sizeof(float) * (size_t)R);
        for (int r = 0; r < R; r++) entropy[m->host_row[r]] = m->host_float[r];
    }
    if (best) {
        device_read(m->host_int, m->best, sizeof(int) * (size_t)R);
        for (int r = 0; r < R; r++) best[m->host_row[r]] = m->host_int[r];
    }
}

/* Logits of the scored rows [from, from + rows): those in memory, or computed again in their place.
 */
static real *logits_of(GPT2 *m, int from, int rows) {
    const int C = m->config.n_embd;
    if (m->sloped) {
        gather_rows(m->head_in, m->norm, m->row, m->scored, C);
        m->sloped = false;
    }
    if (from + rows <= m->kept) return m->logits + (size_t)from * (size_t)m->ldv;
    m->kept = 0;
    head_forward(m->logits, m->head_in + (size_t)from * (size_t)C, m->parts[WTE].w, rows, C,
                 m->config.vocab_size, m->ldv);
    return m->logits;
}

/* Both must just have scored the same rows; returns how many of them fit into memory at a time. */
static int rows_of_both(const GPT2 *m, const GPT2 *other, const char *caller) {
    if (other->scored != m->scored || other->config.vocab_size != m->config.vocab_size ||
        other->ldv != m->ldv || other->beta != m->beta ||
        memcmp(other->host_row, m->host_row, sizeof(int) * (size_t)m->scored))
        die("%s: the two models must just have scored the same rows at the same temperature",
            caller);
    return m->logit_rows < other->logit_rows ? m->logit_rows : other->logit_rows;
}

void gpt2_kl(GPT2 *m, GPT2 *reference, float *kl) {
    const int R = m->scored, V = m->config.vocab_size, most = rows_of_both(m, reference, "gpt2_kl");
    for (int i = 0; i < m->batch.N; i++) kl[i] = 0;
    if (!R) return;
    // the last rows first: then, where the logits of all rows fit, both models keep theirs, and
    // backward finds them
    for (int from = (R - 1) / most * most; from >= 0; from -= most) {
        int rows = R - from < most ? R - from : most;
        const real *p = logits_of(m, from, rows), *q = logits_of(reference, from, rows);
        kl_forward(m->dlogp + from, p, m->lse + from, q, reference->lse + from, m->beta, rows, V,
                   m->ldv);
    }
    device_read(m->host_float, m->dlogp, sizeof(float) * (size_t)R);
    for (int r = 0; r < R; r++) kl[m->host_row[r]] = m->host_float[r];
}

float gpt2_logit_difference(GPT2 *m, GPT2 *other, float *largest) {
    const int R = m->scored, V = m->config.vocab_size,
              most = rows_of_both(m, other, "gpt2_logit_difference");
    float difference = 0, size = 0;
    for (int from = 0; from < R; from += most) {
        int rows = R - from < most ? R - from : most;
        const real *a = logits_of(m, from, rows), *b = logits_of(other, from, rows);
        difference = fmaxf(difference, largest_difference(a, b, rows, V, m->ldv));
        size = fmaxf(size, largest_difference(a, NULL, rows, V, m->ldv));
    }
    if (largest) *largest = size;
    return difference;
}

/* The scalar head's tensors stand after ln_f's. */
static Parts *scalar_head(const GPT2 *m) {
    if (m->config.head == LM_HEAD) die("gpt2_value: this model has no scalar head");
    return m->parts + m->own - (int)m->config.head;
}

void gpt2_value(GPT2 *m, float *value) {
    const Parts *p = scalar_head(m);
    value_forward(m->value, m->norm, p[0].w, m->config.head == LM_AND_VALUE_HEAD ? p[1].w : NULL,
                  m->batch.N, m->config.n_embd);
    device_read(value, m->value, sizeof(float) * (size_t)m->batch.N);
}

void gpt2_scale_value(GPT2 *m, double gain, double bias) {
    const int C = m->config.n_embd, ln_f_bias = m->own - (int)m->config.head - 1,
              head = ln_f_bias + 1;
    float *w = (float *)xmalloc(2 * sizeof(float) * (size_t)C), *b = w + C;
    double square = 0;
    scalar_head(m);
    gpt2_read(m, head, GPT2_WEIGHT, 0, (size_t)C, w);
    for (int c = 0; c < C; c++) {
        w[c] = (float)(gain * (double)w[c]);
        square += (double)w[c] * (double)w[c];
    }
    if (gain != 1) gpt2_write(m, head, GPT2_WEIGHT, 0, (size_t)C, w);
    if (m->config.head == LM_AND_VALUE_HEAD) {
        gpt2_read(m, head + 1, GPT2_WEIGHT, 0, 1, b);
        b[0] = (float)(gain * (double)b[0] + bias);
        gpt2_write(m, head + 1, GPT2_WEIGHT, 0, 1, b);
    } else if (bias != 0) {
        gpt2_read(m, ln_f_bias, GPT2_WEIGHT, 0, (size_t)C, b);
        for (int c = 0; c < C && square > 0; c++) b[c] += (float)(bias * (double)w[c] / square);
        gpt2_write(m, ln_f_bias, GPT2_WEIGHT, 0, (size_t)C, b);
    }
    free(w);
}

/* d_norm's scored rows = gradient of the vocabulary's head; wte's share goes to its gradient. */
static void vocabulary_backward(GPT2 *m, const float *dlogp, const float *dentropy) {
    const int C = m->config.n_embd, V = m->config.vocab_size, R = m->scored;
    if (dentropy && !m->with_entropy)
        die("gpt2_backward: a gradient by the entropy, which gpt2_logprob was not asked for");
    for (int r = 0; r < R; r++) m->host_float[r] = dlogp ? dlogp[m->host_row[r]] : 0;
    device_write(m->dlogp, m->host_float, sizeof(float) * (size_t)R);
    if (dentropy) {
        for (int r = 0; r < R; r++) m->host_float[r] = dentropy[m->host_row[r]];
        device_write(m->dentropy, m->host_float, sizeof(float) * (size_t)R);
    }
    const bool sloped = m->sloped && !dentropy;
    if (sloped) scale_rows(m->head_in, m->dlogp, R, C);  // the slope by logp is there
    for (int from = 0; from < R && !sloped; from += m->logit_rows) {
        int rows = R - from < m->logit_rows ? R - from : m->logit_rows;
        real *logits = logits_of(m, from, rows), *in = m->head_in + (size_t)from * (size_t)C;
        m->kept = 0;  // they become gradients
        logprob_backward(logits, m->lse + from, m->entropy + from, m->target + from,
                         m->dlogp + from, dentropy ? m->dentropy + from : NULL, m->beta, rows, V,
                         m->ldv);
        head_backward(NULL, m->parts[WTE].g, logits, in, m->parts[WTE].w, rows, C, V, m->ldv);
        head_backward(in, NULL, logits, NULL, m->parts[WTE].w, rows, C, V,
                      m->ldv);  // in place: these rows have done their duty
    }
    scatter_rows(m->d_norm, m->head_in, m->row, R, C);
}

/* d_norm (N,C) = gradient with respect to ln_f's output, of both heads. */
static void heads_backward(GPT2 *m, const float *dlogp, const float *dentropy,
                           const float *dvalue) {
    const int N = m->batch.N, C = m->config.n_embd;
    device_zero(m->d_norm, sizeof(real) * (size_t)N * (size_t)C);
    if (m->scored) vocabulary_backward(m, dlogp, dentropy);
    if (!dvalue) return;
    // value = norm w + b
    const Parts *p = scalar_head(m);
    device_write(m->value, dvalue, sizeof(float) * (size_t)N);
    value_backward(m->d_norm, p[0].g, m->config.head == LM_AND_VALUE_HEAD ? p[1].g : NULL, m->value,
                   m->norm, p[0].w, N, C);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Calls the tap at a linear layer out = inp w + b, when dinp = dout w^T is there; dinp NULL:
 * nothing below trains. */
static void tap_backward(const GPT2 *m, int l, TapSite place, int IC, int OC, const real *inp,
                         const real *dout, real *dinp) {
    if (!m->tap.at[place]) return;
    TapCall call = tap_call(m, l, place, m->batch.N, IC, OC, inp);
    call.dout = (real *)dout;
    call.dinp = dinp;
    m->tap.backward(m->tap.context, &call);
}

/* d_r has passed the residual connection untouched; the branch beside it sees d_r through its tap
 * and its dropout. */
static const real *branch_gradient(GPT2 *m, RandomPurpose purpose, int l, TapSite place,
                                   const real *residual) {
    const int N = m->batch.N, C = m->config.n_embd;
    Noise noise = site(m, m->noise.resid_pdrop, purpose, l);
    if (noise.p <= 0 && !m->tap.at[place]) return m->d_r;
    device_copy(m->branch, m->d_r, sizeof(real) * (size_t)N * (size_t)C);
    if (m->tap.at[place]) {
        TapCall call = tap_call(m, l, place, N, 0, C, NULL);
        call.residual = residual;
        call.dout = m->branch;
        call.dresidual = m->d_r;
        m->tap.backward(m->tap.context, &call);
    }
    dropout(m->branch, N, C, noise);
    return m->branch;
}

/* d_r: gradient by the layer's output on entry, by its input on return. wide, d_norm and norm are
 * free to use. */
static void layer_backward(GPT2 *m, int l) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd, F = c->n_inner, S = m->batch.S;
    const Parts *p = of_layer(m, l);
    Layer *y = &m->layer[l];
    const bool norms = p[LN1_W].g,
               lowest = l == 0 && !norms &&
                        !m->parts[WTE].g;  // lowest: nothing below c_attn of layer 0 trains,
    // and nothing in the layer but what taps brought: below the first of them nothing is computed
    const bool *at = m->tap.at, attention_tapped = at[TAP_C_ATTN] || at[TAP_ATTN_C_PROJ];
    const bool below_output_tapped =
        attention_tapped || at[TAP_ATTN] || at[TAP_C_FC] || at[TAP_MLP_C_PROJ];
    if (m->limits.gradient_checkpointing) {
        m->again = true;
        layernorm_forward(NULL, m->norm, y->mean1, y->rstd1, y->r, NULL, p[LN1_W].w, p[LN1_B].w, N,
                          C, c->layer_norm_epsilon);
        layer_forward(m, l);
        if (m->tap.at[TAP_MLP]) layer_output(m, l);
    }
    // r' = h + dropout(c_proj(gelu(fc)))
    const real *d = branch_gradient(m, RANDOM_DROPOUT_MLP_RESID, l, TAP_MLP, y->h);
    if (lowest && !below_output_tapped) return;
    if (m->tap.at[TAP_MLP_C_PROJ]) gelu_forward(m->act, y->fc, (size_t)N * (size_t)F);
    linear_input(m->wide, d, p + OUT_W, N, F, C);
    tap_backward(m, l, TAP_MLP_C_PROJ, F, C, m->act, d, m->wide);
    gelu_backward(m->wide, y->fc, (size_t)N * (size_t)F);  // fc becomes gelu(fc)
    linear_backward_weight(p[OUT_W].g, p[OUT_B].g, y->fc, d, N, F, C);
    // fc = c_fc(ln_2(h))
    if (p[FC_W].g || m->tap.at[TAP_C_FC])
        layernorm_forward(NULL, m->norm, y->mean2, y->rstd2, y->h, NULL, p[LN2_W].w, p[LN2_B].w, N,
                          C, c->layer_norm_epsilon);
    linear_backward_weight(p[FC_W].g, p[FC_B].g, m->norm, m->wide, N, C, F);
    linear_input(m->d_norm, m->wide, p + FC_W, N, C, F);
    tap_backward(m, l, TAP_C_FC, C, F, m->norm, m->wide, m->d_norm);
    layernorm_backward(m->d_r, p[LN2_W].g, p[LN2_B].g, m->d_norm, y->h, y->mean2, y->rstd2,
                       p[LN2_W].w, N, C);
    // h = r + dropout(c_proj(att))
    d = branch_gradient(m, RANDOM_DROPOUT_ATTN_RESID, l, TAP_ATTN, y->r);
    if (lowest && !attention_tapped) return;
    linear_backward_weight(p[PROJ_W].g, p[PROJ_B].g, y->att, d, N, C, C);
    linear_input(m->d_norm, d, p + PROJ_W, N, C, C);
    tap_backward(m, l, TAP_ATTN_C_PROJ, C, C, y->att, d, m->d_norm);
    attention_backward(m->wide, m->d_norm, y->qkv, y->att, y->lse, m->start,
                       m->batch.parent ? m->parent : NULL, N, S, c->n_head, C / c->n_head,
                       site(m, m->noise.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
    // qkv = c_attn(ln_1(r))
    if (p[QKV_W].g || m->tap.at[TAP_C_ATTN])
        layernorm_forward(NULL, m->norm, y->mean1, y->rstd1, y->r, NULL, p[LN1_W].w, p[LN1_B].w, N,
                          C, c->layer_norm_epsilon);
    linear_backward_weight(p[QKV_W].g, p[QKV_B].g, m->norm, m->wide, N, C, 3 * C);
    if (!lowest) linear_input(m->d_norm, m->wide, p + QKV_W, N, C, 3 * C);
    tap_backward(m, l, TAP_C_ATTN, C, 3 * C, m->norm, m->wide, lowest ? NULL : m->d_norm);
    if (!lowest)
        layernorm_backward(m->d_r, p[LN1_W].g, p[LN1_B].g, m->d_norm, y->r, y->mean1, y->rstd1,
                           p[LN1_W].w, N, C);
}

void gpt2_backward(GPT2 *m, const float *dlogp, const float *dentropy, const float *dvalue) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd;
    if (!m->limits.train) die("gpt2_backward: this model was reserved without training");
    heads_backward(m, dlogp, dentropy, dvalue);
    const Parts *f = of_layer(m, c->n_layer);
    device_zero(m->d_r, sizeof(real) * (size_t)N * (size_t)C);
    layernorm_backward(m->d_r, f[0].g, f[1].g, m->d_norm, m->r_final, m->mean_f, m->rstd_f, f[0].w,
                       N, C);
    for (int l = c->n_layer - 1; l >= 0; l--) layer_backward(m, l);
    if (!m->parts[WTE].g) return;
    dropout(m->d_r, N, C, site(m, m->noise.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
    embed_backward(m->parts[WTE].g, m->parts[WPE].g, m->d_r, m->token, m->position, N, C);
}

/* ---- the optimiser's step -------------------------------------------------------------------- */

void gpt2_clear(GPT2 *m) {
    if (m->gradients) device_zero(m->gradients, m->memory.gradients);
}

float gpt2_step(GPT2 *m, const AdamW *o, int t) {
    float norm = (float)sqrt(sum_of_squares(m->trained, m->trained_n, m->trained_count));
    if (!isfinite(norm)) {
        gpt2_clear(m);
        return norm;
    }
    // clip as PyTorch does, with its 1e-6
    float scale =
        o->max_grad_norm > 0 && norm > o->max_grad_norm ? o->max_grad_norm / (norm + 1e-6f) : 1.0f;
    for (int i = 0; i < m->tensors; i++) {
        const Parts *p = &m->parts[i];
        if (p->g)
            adamw(p->w, p->master, p->g, p->m1, p->m2, m->tensor[i].n, scale, o->learning_rate,
                  o->beta1, o->beta2, o->epsilon, m->tensor[i].ndim == 2 ? o->weight_decay : 0, t);
    }
    return norm;
}

/* ---- generation ------------------------------------------------------------------------------ */

/* One sequence being written. fed tokens are in the cache; of text, prompt then response, `length`
 * are known. */
typedef struct {
    int sequence;  // in the batch; -1 = the slot is free
    int fed, length, prompt;
    int *text;  // (positions + 1)
} Slot;

/* The model on N rows of token, position and slot: norm = what the head reads. Layers share the
 * memory of the first. */
static void forward_cached(GPT2 *m, int N, const int *slot, const int *position) {
    const GPT2Config *c = &m->config;
    const int C = c->n_embd, F = c->n_inner, slots = m->limits.slots, T = m->limits.positions;
    const size_t bytes = cache_bytes(slots, T, c->n_head, C / c->n_head);
    Layer *y = &m->layer[0];
    embed_forward(y->r, m->token, m->position, m->parts[WTE].w, m->parts[WPE].w, N, C);
    for (int l = 0; l <= c->n_layer; l++) {
        const Parts *p = of_layer(m, l);
        layernorm_forward(y->r, m->norm, y->mean1, y->rstd1, y->r, l ? m->branch : NULL, p[LN1_W].w,
                          p[LN1_B].w, N, C, c->layer_norm_epsilon);
        if (l == c->n_layer) break;  // that was ln_f
        linear(y->qkv, m->norm, p + QKV_W, N, C, 3 * C);
        tap_forward(m, l, TAP_C_ATTN, N, C, 3 * C, m->norm, y->qkv, NULL);
        attention_cached(y->att, (real *)(m->cache + (size_t)l * bytes), y->qkv, slot, position, N,
                         slots, T, c->n_head, C / c->n_head);
        linear(m->branch, y->att, p + PROJ_W, N, C, C);
        tap_forward(m, l, TAP_ATTN_C_PROJ, N, C, C, y->att, m->branch, NULL);
        tap_forward(m, l, TAP_ATTN, N, 0, C, NULL, m->branch, y->r);
        layernorm_forward(y->r, m->norm, y->mean2, y->rstd2, y->r, m->branch, p[LN2_W].w,
                          p[LN2_B].w, N, C, c->layer_norm_epsilon);
        expand(m, l, y->fc, N);
        linear(m->branch, m->wide, p + OUT_W, N, F, C);
        tap_forward(m, l, TAP_MLP_C_PROJ, N, F, C, m->wide, m->branch, NULL);
        tap_forward(m, l, TAP_MLP, N, 0, C, NULL, m->branch, y->r);
    }
}

void gpt2_generate(GPT2 *m, const Batch *prompts, const Sampler *s, Generation *out,
                   TokenSink *sink, void *context) {
    const int slots = m->limits.slots, T = m->limits.positions < m->config.n_positions
                                               ? m->limits.positions
                                               : m->config.n_positions;
    const int N_max = m->limits.tokens, V = m->config.vocab_size, S = prompts->S;
    if (slots < 1 || N_max < slots)
        die("gpt2_generate: gpt2_reserve was told of %d slots and %d tokens; it takes 1 and as "
            "many tokens as slots",
            slots, N_max);
    m->scored = m->kept = 0;
    m->decoding = true;
    m->noisy = m->sloped = false;
    Slot *slot = (Slot *)xcalloc((size_t)slots, sizeof *slot);
    for (int i = 0; i < slots; i++)
        slot[i] = (Slot){.sequence = -1, .text = (int *)xmalloc(sizeof(int) * ((size_t)T + 1))};
    int *row_slot = (int *)xmalloc(sizeof(int) * (size_t)N_max * 3),
        *row_position = row_slot + N_max, *row_token = row_position + N_max;
    int *drawing = (int *)xmalloc(sizeof(int) * (size_t)slots * 2),
        *drawn = drawing + slots;  // slots that draw a token now, and what
    float *uniform = (float *)xmalloc(sizeof(float) * (size_t)slots * 2), *logp = uniform + slots;
    // responses as they grow: at most `room` tokens each
    int room = s->max_new_tokens < T + 1 ? s->max_new_tokens : T + 1, next = 0, running = 0;
    if (room < 0) room = 0;
    int *tokens = (int *)xmalloc(sizeof(int) * (size_t)S * (size_t)room),
        *count = (int *)xcalloc((size_t)S, sizeof(int));
    float *logps = (float *)xmalloc(sizeof(float) * (size_t)S * (size_t)room);
    *out = (Generation){.start = (int *)xcalloc((size_t)S + 1, sizeof(int)),
                        .ended = (bool *)xcalloc((size_t)S, sizeof(bool))};

    for (;;) {
        // 1. free slots take the next prompts
        for (int i = 0; i < slots && next < S && room; i++) {
            if (slot[i].sequence >= 0) continue;
            int n = prompts->start[next + 1] - prompts->start[next];
            if (n < 1 || n > T)
                die_usage("a prompt of %d tokens, where 1 to %d are possible", n, T);
            slot[i].sequence = next;
            slot[i].fed = 0;
            slot[i].length = slot[i].prompt = n;
            memcpy(slot[i].text, prompts->tokens + prompts->start[next], sizeof(int) * (size_t)n);
            next++;
            running++;
        }
        if (!running) break;
        // 2. rows: what each slot has not fed yet; a long prompt may take several rounds
        int N = 0, R = 0, waiting = running;
        for (int i = 0; i < slots; i++) {
            if (slot[i].sequence < 0) continue;
            int n = slot[i].length - slot[i].fed;
            waiting--;
            if (n > N_max - N - waiting) n = N_max - N - waiting;  // leave the others a row each
            for (int j = 0; j < n; j++, N++) {
                row_slot[N] = i;
                row_position[N] = slot[i].fed++;
                row_token[N] = slot[i].text[row_position[N]];
                if (row_token[N] < 0 || row_token[N] >= V)
                    die_usage(
                        "token %d does not exist in a model with a vocabulary of %d: the tokenizer "
                        "and the model do not belong together",
                        row_token[N], V);
            }
            if (slot[i].fed == slot[i].length) {
                m->host_row[R] = N - 1;
                drawing[R++] = i;
            }
        }
        // 3. the model, and the logits of the rows that end a slot's text
        device_write(m->token, row_token, sizeof(int) * (size_t)N);
        device_write(m->position, row_position, sizeof(int) * (size_t)N);
        forward_cached(m, N, row_slot, row_position);
        if (!R) continue;
        device_write(m->row, m->host_row, sizeof(int) * (size_t)R);
        gather_rows(m->head_in, m->norm, m->row, R, m->config.n_embd);
        head_forward(m->logits, m->head_in, m->parts[WTE].w, R, m->config.n_embd, V, m->ldv);
        // 4. a token each, drawn by the sequence's own random number
        for (int r = 0; r < R; r++) {
            const Slot *t = &slot[drawing[r]];
            uint32_t id = prompts->id ? prompts->id[t->sequence] : (uint32_t)t->sequence;
            uniform[r] = random_uniform(
                random4(s->seed, RANDOM_SAMPLE, s->step, id, (uint32_t)t->length, 0).v[0]);
        }
        sample(drawn, logp, m->logits, R, V, m->ldv, s->temperature, s->top_k, s->top_p, uniform);
        // 5. a slot whose text has ended is free again
        for (int r = 0; r < R; r++) {
            Slot *t = &slot[drawing[r]];
            int q = t->sequence, k = count[q]++;
            if (!isfinite(logp[r]))
                die("the model's output for prompt %d is not finite; its weights are damaged or "
                    "training has diverged",
                    q);
            tokens[(size_t)q * (size_t)room + (size_t)k] = t->text[t->length] = drawn[r];
            logps[(size_t)q * (size_t)room + (size_t)k] = logp[r];
            t->length++;
            out->ended[q] = drawn[r] == s->stop_token;
            if (sink) sink(context, q, drawn[r]);
            if (out->ended[q] || k + 1 == room || t->length > T) {
                t->sequence = -1;
                running--;
            }
        }
    }
    for (int q = 0; q < S; q++) out->start[q + 1] = out->start[q] + count[q];
    out->tokens = (int *)xmalloc(sizeof(int) * (size_t)out->start[S]);
    out->logp = (float *)xmalloc(sizeof(float) * (size_t)out->start[S]);
    for (int q = 0; q < S; q++) {
        memcpy(out->tokens + out->start[q], tokens + (size_t)q * (size_t)room,
               sizeof(int) * (size_t)count[q]);
        memcpy(out->logp + out->start[q], logps + (size_t)q * (size_t)room,
               sizeof(float) * (size_t)count[q]);
    }
    for (int i = 0; i < slots; i++) free(slot[i].text);
    free(slot);
    free(row_slot);
    free(drawing);
    free(uniform);
    free(tokens);
    free(logps);
    free(count);
}

void generation_free(Generation *g) {
    free(g->start);
    free(g->tokens);
    free(g->logp);
    free(g->ended);
    *g = (Generation){0};
}
