/*
 * memory.c - a model's tensors and its memory: the table of tensors, what gpt2_create and
 * gpt2_reserve allocate, and copies to and from files.
 */
#include "model/memory.h"

#include "model/exchange.h"
#include "model/kernels.h"
#include "model/private.h"
#include "ranks.h"
#include "util.h"

#include <limits.h>

/* ---- the table of tensors -------------------------------------------------------------------- */

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

/* Returns the table of the model's own tensors, with room for `more` others, and their count. The
   shapes are {ndim, rows, columns}; a vector has 1 column. */
static GPT2Tensor *tensor_table(const GPT2Config *c, int more, int *count) {
    const int C = c->n_embd, F = c->n_inner,
              shapes[PER_LAYER][3] = {{1, C, 1}, {1, C, 1}, {2, C, 3 * C}, {1, 3 * C, 1},
                                      {2, C, C}, {1, C, 1}, {1, C, 1},     {1, C, 1},
                                      {2, C, F}, {1, F, 1}, {2, F, C},     {1, C, 1}};
    *count = FIRST_LAYER + PER_LAYER * c->n_layer + 2 +
             (int)c->head;  // a score head has one tensor, a value head two
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

/* Sets which tensors train, and appends those of limits.more. */
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

size_t gpt2_room(const GPT2Tensor *t) {
    return strcmp(t->name, "wte.weight") != 0
               ? t->n
               : (size_t)vocabulary_rows(t->shape[0]) * (size_t)t->shape[1];
}

/* The room of these tensors, each rounded up so that the next one starts on a cache
   line. */
static size_t parameters(const GPT2Tensor *t, int count) {
    size_t n = 0;
    for (int i = 0; i < count; i++) n += (gpt2_room(t + i) + 15) / 16 * 16;
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

static bool in_block(const GPT2Tensor *t) { return t->ndim == 2 && !strncmp(t->name, "h.", 2); }

bool gpt2_is_factor(const GPT2Tensor *t) { return in_block(t) || !strcmp(t->name, "wte.weight"); }

/* Bytes of a tensor's weight in this format. Only the matrices of the blocks can be in NF4. */
static size_t weight_bytes(const GPT2Tensor *t, GPT2Format format) {
    const bool matrix = in_block(t);
    if (format == FORMAT_BF16 && gpt2_is_factor(t)) return parameters(t, 1) * sizeof(uint16_t);
    if (format == FORMAT_BF16) format = FORMAT_FLOAT;
    return matrix && format
               ? (nf4_bytes(t->shape[0], t->shape[1], format == FORMAT_NF4_DOUBLE) + 63) / 64 * 64
               : parameters(t, 1) * sizeof(real);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Hands out parts of one allocation. With base NULL it only adds up their sizes. */
typedef struct {
    char *base;
    size_t used;
} Arena;

static void *take(Arena *a, size_t count, size_t size) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used = size_sum(a->used, size_sum(size_product(count, size), 63) / 64 * 64);
    return p;
}

/* Sets the address of every activation, and memory's figures about them. With a->base NULL it only
   adds up their sizes. */
static void assign_addresses(GPT2 *m, Arena *a, GPT2Memory *memory) {
    const GPT2Config *c = &m->config;
    const GPT2Limits *lim = &m->limits;
    const size_t N = (size_t)lim->tokens, C = (size_t)c->n_embd, F = (size_t)c->n_inner,
                 R = (size_t)lim->scored, f = sizeof(float);
    size_t mark = a->used;
    for (int l = 0; l < c->n_layer; l++) {
        Layer *y = &m->layer[l], *first = &m->layer[0];
        bool has_arrays = l == 0 || (lim->train && !lim->gradient_checkpointing);
        *y = *first;
        if (l == 0 || lim->train) y->r = take(a, N * C, sizeof(real));
        if (!has_arrays) continue;
        y->h = lim->train ? take(a, N * C, sizeof(real)) : y->r;
        y->qkv = take(a, N * 3 * C, sizeof(real));
        y->att = take(a, N * C, sizeof(real));
        if (l == 0 || !gpt2_is_lean(lim)) y->fc = take(a, N * F, sizeof(real));
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
    m->vocabulary = vocabulary_rows(c->vocab_size);
    m->ldv = (m->vocabulary + 15) / 16 * 16;
    const bool frozen = lim->train && lim->trains != TRAIN_ALL;
    const int bytes = gpt2_is_lean(lim) ? LOGIT_BYTES_LEAN
                      : frozen          ? LOGIT_BYTES_FROZEN
                                        : LOGIT_BYTES;
    size_t most = (size_t)bytes / ((size_t)m->ldv * sizeof(real));
    m->logit_rows = (int)(R < most ? R : most > 1 ? most : 1);
    m->logit_rows = max_int(m->logit_rows, lim->slots);
    Arena layer = *a;  // shares memory with the logits
    m->logits = take(a, (size_t)m->logit_rows * (size_t)m->ldv, sizeof(real));
    m->branch = take(&layer, N * C, sizeof(real));
    m->wide = take(&layer, N * (F > 3 * C ? F : 3 * C), sizeof(real));
    if (lim->train && lim->tap && lim->tap->at[TAP_MLP_C_PROJ])
        m->act = take(&layer, N * F, sizeof(real));
    if (layer.used > a->used) a->used = layer.used;
    memory->logits = a->used - mark;

    mark = a->used;
    const size_t rows = (size_t)lim->scored;
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
    m->token = take(a, round_room(lim), sizeof(int));
    m->position = take(a, N, sizeof(int));
    m->sequence = take(a, N, sizeof(uint32_t));
    m->output = take(a, N, sizeof(int));
    m->output_position = take(a, N, sizeof(int));
    m->output_sequence = take(a, N, sizeof(uint32_t));
    m->magnitude = take(a, N, f);
    m->value = take(a, N, f);
    memory->workspace = a->used - mark;

    mark = a->used;
    size_t cache =
        lim->slots ? cache_bytes(lim->slots, lim->positions, c->n_head, c->n_embd / c->n_head) : 0;
    m->cache = take(a, (size_t)c->n_layer, cache);
    m->kept = take(a, (size_t)lim->kept * C, sizeof(real));
    memory->cache = a->used - mark;
}

int batch_tokens(int64_t tokens) {
    if (tokens > INT_MAX)
        die_usage(
            "a batch of up to %lld tokens is more than can be counted, %d; use a smaller "
            "--per_device_train_batch_size or shorter texts",
            (long long)tokens, INT_MAX);
    return (int)tokens;
}

void gpt2_use_bf16(GPT2Limits *limits, bool bf16, bool frozen) {
    limits->bf16 = bf16 && !SHORT;
    if (limits->bf16 && frozen && limits->format == FORMAT_FLOAT) limits->format = FORMAT_BF16;
}

/* Bytes for a copy in bf16 of the matrices, with which a model that trains decodes: every token
   reads every weight once. */
static size_t short_bytes(const GPT2Tensor *t, int own, const GPT2Limits *limits) {
    size_t n = 0;
    for (int i = 0; i < own; i++) n += gpt2_is_factor(t + i) ? weight_bytes(t + i, FORMAT_BF16) : 0;
    return limits->bf16 && limits->format == FORMAT_FLOAT && limits->slots ? n : 0;
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
        memory.weights += weight_bytes(table + i, i < m.own ? limits->format : FORMAT_FLOAT);
    memory.weights += short_bytes(table, m.own, limits);
    const size_t arena = shards_lay_out(&m, table) * sizeof(float);
    const size_t received = arena && ranks() > 1 ? sizeof(float) * 2 * EXCHANGED : 0;
    memory.gradients = (1 + (size_t)shards_levels()) * arena + received;
    memory.moments = 2 * (arena / (size_t)ranks()) + SHORT * arena;
    Arena count = {0};
    assign_addresses(&m, &count, &memory);
    memory.total = size_sum(memory.weights + memory.gradients + memory.moments, count.used);
    free(table);
    free(m.layer);
    free(m.band);
    return memory;
}

/* out (n) = elements [offset, offset + n) of a weight in bf16. */
static void lengthen(float *out, const Parts *p, size_t offset, size_t n) {
    const uint16_t *half = (const uint16_t *)(const void *)p->w + offset;
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

static void no_memory(const char *what, size_t bytes) {
    die("%s needs %.0f MB and %.0f MB are free on %s; use a smaller "
        "--per_device_train_batch_size "
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
    // full precision for all weights, until gpt2_reserve knows which of them train
    if (n * sizeof(float) > device_memory_free() || !(m->masters = device_alloc(n * sizeof(float))))
        no_memory("the model", n * sizeof(float));
    for (int i = 0; i < m->tensors; i++)
        m->parts[i].master = m->masters + (m->parts[i].w - m->weights);
    return m;
}

/* Releases a weight of a mapped model: a copy, or the pages of the file. */
static void release_weight(Parts *p, const GPT2Tensor *t) {
    if (p->owns_w)
        device_free(p->w, gpt2_room(t) * (p->half ? sizeof(uint16_t) : sizeof(real)));
    else if (p->half)
        device_unmap(p->w, t->n / 2);
    else
        device_unmap(p->w, t->n);
    p->w = NULL;
    p->owns_w = p->half = false;
}

/* Stores the matrices of a mapped model in bf16, or as floats those that its file has in bf16. */
static void convert(GPT2 *m, bool to_bf16) {
    for (int i = 0; i < m->own; i++) {
        const GPT2Tensor *t = &m->tensor[i];
        Parts *p = &m->parts[i];
        if (!gpt2_is_factor(t) || p->half == to_bf16) continue;
        const size_t bytes = gpt2_room(t) * (to_bf16 ? sizeof(uint16_t) : sizeof(float));
        void *memory = bytes > device_memory_free() ? NULL : device_alloc(bytes);
        if (!memory) no_memory("the model", bytes);
        if (to_bf16)
            round_weights(memory, p->w, t->n);
        else
            lengthen(memory, p, 0, t->n);
        release_weight(p, t);
        *p = (Parts){.w = memory, .owns_w = true, .half = to_bf16};
    }
}

void gpt2_shorten(GPT2 *m) {
    uint16_t *to = m->short_weights;
    for (int i = 0; i < m->own; i++) {
        if (!gpt2_is_factor(&m->tensor[i])) continue;
        round_weights(to, m->parts[i].w, m->tensor[i].n);
        m->parts[i].w = (real *)(void *)to;
        to += parameters(&m->tensor[i], 1);
    }
    m->precision = BF16_WEIGHTS;
}

void gpt2_lengthen(GPT2 *m, Parts *before) {
    memcpy(m->parts, before, sizeof *before * (size_t)m->own);
    m->precision = BF16;
}

/* Quantises the matrices of the blocks to NF4, one at a time. Each releases its original, a copy or
   the file's pages, before the next one is read. */
static void quantize(GPT2 *m) {
    for (int l = 0; l < m->config.n_layer; l++)
        for (int k = 0; k < PER_LAYER; k++) {
            const int i = FIRST_LAYER + PER_LAYER * l + k;
            const GPT2Tensor *t = &m->tensor[i];
            Parts *p = &m->parts[i];
            if (t->ndim != 2) continue;
            const size_t bytes = weight_bytes(t, m->limits.format);
            void *memory = bytes > device_memory_free() ? NULL : device_alloc(bytes);
            if (!memory) no_memory("the quantised model", bytes);
            p->nf4 = (NF4 *)xcalloc(1, sizeof *p->nf4);
            nf4_quantize(p->nf4, memory, p->w, t->shape[0], t->shape[1],
                         m->limits.format == FORMAT_NF4_DOUBLE);
            release_weight(p, t);
        }
}

static void free_masters(GPT2 *m) {
    if (m->masters) device_free(m->masters, parameters(m->tensor, m->own) * sizeof(float));
    m->masters = NULL;
}

/* The parts of the memory for gradients, for shards.c. */
static void divide_gradients(GPT2 *m) {
    const int levels = shards_levels();
    m->arena = shards_lay_out(m, m->tensor);
    m->accumulator = m->gradients;
    m->sum = (float **)xcalloc((size_t)levels, sizeof *m->sum);
    for (int k = 0; k < levels; k++) m->sum[k] = m->gradients + (size_t)(1 + k) * m->arena;
    m->received = m->gradients + (size_t)(1 + levels) * m->arena;
    if (ranks() > 1 && m->tensor[WTE].trains && device_map(m->gradients, m->arena))
        m->late = (uint8_t *)xcalloc((size_t)m->config.vocab_size, sizeof *m->late);
    shards_restart(m);
    shards_enlist(m);
}

void gpt2_reserve(GPT2 *m, const GPT2Limits *limits) {
    if (m->reserved) die("gpt2_reserve may be called once per model");
    if (m->mapped && limits->train && (limits->trains != TRAIN_NONE || m->config.head != LM_HEAD))
        die("gpt2_reserve: weights that are mapped from a file cannot train");
    if (!m->mapped && (limits->format == FORMAT_NF4 || limits->format == FORMAT_NF4_DOUBLE))
        die("gpt2_reserve: only a model that is mapped from a file can be quantised");
    m->limits = *limits;
    if (limits->format == FORMAT_BF16 && (SHORT || !limits->bf16 || !m->mapped))
        m->limits.format = FORMAT_FLOAT;
    m->limits.bf16 = limits->bf16 && !SHORT;
    limits = &m->limits;
    if (limits->tap) m->tap = *limits->tap;
    m->reserved = true;
    m->memory = gpt2_memory(&m->config, limits);
    free(m->tensor);
    m->tensor = tensor_table(&m->config, limits->more_n, &m->own);
    plan_tensors(m->tensor, m->own, &m->config, limits);
    m->tensors = m->own + limits->more_n;
    m->parts = (Parts *)xrealloc(m->parts, (size_t)m->tensors, sizeof *m->parts);
    m->precision = !limits->bf16 ? FLOAT32 : limits->format == FORMAT_BF16 ? BF16_WEIGHTS : BF16;
    if (m->mapped && !SHORT) convert(m, limits->format == FORMAT_BF16);
    if (limits->format == FORMAT_NF4 || limits->format == FORMAT_NF4_DOUBLE) quantize(m);
    size_t added = parameters(m->tensor + m->own, limits->more_n);
    if (m->memory.gradients && ranks() > 1) exchange_begin();  // NCCL takes memory of its own
    size_t scratch =
        m->memory.activations + m->memory.logits + m->memory.cache + m->memory.workspace;
    size_t needed = scratch + m->memory.gradients + m->memory.moments + added * sizeof(real);
    if (needed > device_memory_free()) no_memory("this run", needed);
    if (!(m->scratch = device_alloc(scratch))) no_memory("this run", needed);
    Arena a = {m->scratch, 0};
    assign_addresses(m, &a, &m->memory);
    if (added && !(m->more = device_alloc(added * sizeof(real)))) no_memory("this run", needed);
    const size_t copies = short_bytes(m->tensor, m->own, limits);
    if (copies && !(m->short_weights = device_alloc(copies))) no_memory("this run", needed);
    size_t at = 0;
    for (int i = m->own; i < m->tensors; at += parameters(m->tensor + i++, 1))
        m->parts[i] = (Parts){.w = m->more + at};
    if (m->memory.gradients) {
        m->gradients = device_alloc(m->memory.gradients);
        m->moments = device_alloc(m->memory.moments);
        if (!m->gradients || !m->moments) no_memory("this run", needed);
        m->trained = (const float **)xcalloc((size_t)m->tensors, sizeof *m->trained);
        m->trained_n = (size_t *)xcalloc((size_t)m->tensors, sizeof *m->trained_n);
        divide_gradients(m);
        for (int i = 0; i < m->tensors; i++) {
            if (!m->tensor[i].trains) continue;
            m->parts[i].g = m->gradients + m->parts[i].at;
            if (SHORT) {
                float *master = m->moments + 2 * (m->arena / (size_t)ranks()) + m->parts[i].at;
                if (i < m->own)
                    device_copy(master, m->parts[i].master, m->tensor[i].n * sizeof(float));
                m->parts[i].master = master;
            }
            m->trained[m->trained_count] = m->parts[i].g;
            m->trained_n[m->trained_count++] = m->tensor[i].n;
        }
    }
    for (int i = 0; i < m->own; i++)
        if (!m->tensor[i].trains) m->parts[i].master = NULL;
    free_masters(m);
    size_t N = (size_t)limits->tokens, S = (size_t)limits->sequences;
    m->host_int = (int *)xmalloc(sizeof(int) * (N > S ? N + 1 : S + 1));
    m->host_float = (float *)xmalloc(sizeof(float) * (N + 1));
    m->host_row = (int *)xmalloc(sizeof(int) * ((size_t)limits->scored + 1));
    m->host_output = (int *)xmalloc(sizeof(int) * (N + 1));
    m->host_kept = (int *)xmalloc(sizeof(int) * ((size_t)limits->kept + 1));
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    for (int i = 0; i < m->tensors; i++) {
        if (m->parts[i].owns_w) release_weight(&m->parts[i], m->tensor + i);
        if (m->parts[i].nf4)
            device_free(m->parts[i].nf4->code, weight_bytes(m->tensor + i, m->limits.format));
        free(m->parts[i].nf4);
    }
    if (m->weights) device_free(m->weights, parameters(m->tensor, m->own) * sizeof(real));
    free_masters(m);
    if (m->more)
        device_free(m->more, parameters(m->tensor + m->own, m->tensors - m->own) * sizeof(real));
    shards_delist(m);
    free(m->sum);
    free(m->band);
    free(m->late);
    if (m->gradients) device_free(m->gradients, m->memory.gradients);
    if (m->moments) device_free(m->moments, m->memory.moments);
    if (m->short_weights) device_free(m->short_weights, short_bytes(m->tensor, m->own, &m->limits));
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
    free(m->host_output);
    free(m->host_kept);
    free(m);
}

int gpt2_tensors(const GPT2 *m) { return m->tensors; }
int gpt2_own_tensors(const GPT2 *m) { return m->own; }
const GPT2Tensor *gpt2_tensor(const GPT2 *m, int i) { return &m->tensor[i]; }
GPT2Trains gpt2_trains(const GPT2 *m) { return m->limits.trains; }

void gpt2_read(const GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, float *host) {
    const Parts *p = &m->parts[i];
    if (part == GPT2_WEIGHT && p->nf4)
        nf4_read(host, p->nf4, offset, n);
    else if (part == GPT2_WEIGHT && p->half)
        lengthen(host, p, offset, n);
    else if (part == GPT2_WEIGHT && p->master)
        device_read(host, p->master + offset, n * sizeof(float));
    else if (part == GPT2_WEIGHT)
        real_read(host, p->w + offset, n);
    else if (part == GPT2_GRADIENT)
        device_read(host, p->g + offset, n * sizeof(float));
    else
        shards_read_moments(m, part == GPT2_MOMENT2, p->at + offset, n, host);
}

void gpt2_write(GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, const float *host) {
    Parts *p = &m->parts[i];
    if (p->nf4 || p->half)
        die("gpt2_write: %s is quantised and cannot be written", m->tensor[i].name);
    if (part == GPT2_WEIGHT && p->master) device_write(p->master + offset, host, n * sizeof(float));
    if (part == GPT2_WEIGHT)
        real_write(p->w + offset, host, n);
    else if (part == GPT2_GRADIENT)
        device_write(p->g + offset, host, n * sizeof(float));
    else
        shards_write_moments(m, part == GPT2_MOMENT2, p->at + offset, n, host);
}

bool gpt2_map(GPT2 *m, int i, const void *data) {
    if ((m->parts[i].w = device_map(data, m->tensor[i].n))) return true;
    size_t bytes = gpt2_room(&m->tensor[i]) * sizeof(real);
    if (bytes > device_memory_free() || !(m->parts[i].w = device_alloc(bytes)))
        no_memory("the model", bytes);
    m->parts[i].owns_w = true;
    return false;
}

bool gpt2_map_bf16(GPT2 *m, int i, const void *data) {
    if (SHORT || !gpt2_is_factor(&m->tensor[i]) || (uintptr_t)data % _Alignof(uint16_t))
        return false;
    if (!(m->parts[i].w = device_map(data, 1))) return false;
    return m->parts[i].half = true;
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
