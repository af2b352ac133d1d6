/*
 * generate.c - sampling with a cache of keys and values.
 *
 * Each round runs the model once on all tokens that it has not read yet: a prompt's tokens, or the
 * token that was sampled last. Then every sequence whose tokens have all been read samples one
 * token. A prompt that another slot reads or has read is not read again: the slot copies the keys
 * and values of all tokens but the last.
 *
 * A round makes one copy to the device, of all that it needs there, and one from the device, of the
 * tokens it has sampled. It waits only for the second. For this the random numbers are drawn before
 * the model runs.
 */
#include "model/generate.h"

#include "model/kernels.h"
#include "model/private.h"
#include "parts.h"
#include "progress.h"
#include "ranks.h"
#include "util.h"

/* A place in the cache, and the sequence that uses it. */
typedef struct {
    int sequence;  // index in the batch; -1 = the slot is free
    int *text;     // (positions + 1) tokens of the prompt, then of the response
    int length;    // tokens in text
    int fed;       // of these, tokens that the model has read and the cache contains
    int rows;      // the next tokens, which the model reads in this round
    int same;      // the slot that reads the same prompt for this one, too; -1 = none
} Slot;

/* A round reads N tokens of S slots, and of these slots R sample a token. */
typedef struct {
    int N, S, R;
    int *token, *position, *slot;  // (N)
    int *start;                    // (S+1) the first row of each slot
    int *row;                      // (R) the last row of each slot that samples
    int *kept;                     // (R) where the output of that row is kept
    float *uniform;                // (R) its random number
} Round;

/* A round's arrays, one behind the other in memory of the host or the device, which has room for
   round_room() ints (private.h). */
static Round round_in(int *memory, int N, int S, int R) {
    int *start = memory + 3 * (size_t)N, *row = start + S + 1;
    return (Round){.N = N,
                   .S = S,
                   .R = R,
                   .token = memory,
                   .position = memory + N,
                   .slot = memory + 2 * (size_t)N,
                   .start = start,
                   .row = row,
                   .kept = row + R,
                   .uniform = (float *)(void *)(row + 2 * (size_t)R)};
}

/* Runs the model on the rows of a round, whose arrays are on the device. The result is norm (R,C),
   the input of the head for the rows t.row. Of the other rows, the last layer computes only keys
   and values. All layers use the arrays of layer 0. */
static void forward_cached(GPT2 *m, Round t) {
    const GPT2Config *c = &m->config;
    const int C = c->n_embd, F = c->n_inner, T = m->limits.positions, R = t.R;
    const size_t bytes = cache_bytes(m->limits.slots, T, c->n_head, C / c->n_head);
    Layer *y = &m->layer[0];
    int N = t.N;
    embed_forward(y->r, t.token, t.position, m->parts[WTE].w, m->parts[WPE].w, N, C);
    gpt2_tap(m, 0, TAP_WTE, N, 0, C, NULL, y->r, NULL);
    for (int l = 0; l <= c->n_layer; l++) {
        const Parts *p = of_layer(m, l);
        layernorm_forward(y->r, m->norm, y->mean1, y->rstd1, y->r, l ? m->branch : NULL, p[LN1_W].w,
                          p[LN1_B].w, N, C, c->layer_norm_epsilon);
        if (l == c->n_layer) break;  // that was ln_f
        gpt2_linear(y->qkv, m->norm, p + QKV_W, N, C, 3 * C);
        gpt2_tap(m, l, TAP_C_ATTN, N, C, 3 * C, m->norm, y->qkv, NULL);
        attention_cached(y->att, (real *)(m->cache + (size_t)l * bytes), y->qkv, t.start, t.slot,
                         t.position, N, t.S, T, c->n_head, C / c->n_head);
        const real *r = y->r, *att = y->att;
        if (l == c->n_layer - 1 && R < N) {
            gather_rows(m->norm, y->att, t.row, R, C);
            gather_rows(m->wide, y->r, t.row, R, C);
            att = m->norm;
            r = m->wide;
            N = R;
            if (!R) return;
        }
        gpt2_linear(m->branch, att, p + PROJ_W, N, C, C);
        gpt2_tap(m, l, TAP_ATTN_C_PROJ, N, C, C, att, m->branch, NULL);
        gpt2_tap(m, l, TAP_ATTN, N, 0, C, NULL, m->branch, r);
        layernorm_forward(y->r, m->norm, y->mean2, y->rstd2, r, m->branch, p[LN2_W].w, p[LN2_B].w,
                          N, C, c->layer_norm_epsilon);
        gpt2_expand(m, l, y->fc, N);
        gpt2_linear(m->branch, m->wide, p + OUT_W, N, F, C);
        gpt2_tap(m, l, TAP_MLP_C_PROJ, N, F, C, m->wide, m->branch, NULL);
        gpt2_tap(m, l, TAP_MLP, N, 0, C, NULL, m->branch, y->r);
    }
}

/* A slot that reads these n tokens, or has read them and still has their keys and values; -1 =
   none. */
static int slot_with(const Slot *slot, int slots, const int *tokens, int n) {
    for (int j = 0; j < slots; j++)
        if (slot[j].same < 0 && slot[j].length >= n &&
            !memcmp(slot[j].text, tokens, sizeof(int) * (size_t)n))
            return j;
    return -1;
}

/* Slots that wait for the slot that reads the same prompt copy its keys and values, if it has read
   all of it but the last token. */
static void share_prompts(GPT2 *m, Slot *slot) {
    const GPT2Limits *lim = &m->limits;
    const int NH = m->config.n_head, hs = m->config.n_embd / NH;
    const size_t all = cache_bytes(lim->slots, lim->positions, NH, hs),
                 one = cache_bytes(1, lim->positions, NH, hs);
    for (int i = 0; i < lim->slots; i++) {
        const int from = slot[i].same, but_last = slot[i].length - 1;
        if (from < 0 || slot[from].fed < but_last) continue;
        for (int l = 0; l < m->config.n_layer && from != i; l++) {
            char *layer = m->cache + (size_t)l * all;
            device_copy(layer + (size_t)i * one, layer + (size_t)from * one, one);
        }
        slot[i].fed = but_last;
        slot[i].same = -1;
    }
}

/* gpt2_generate in this process alone. */
static void generate(GPT2 *m, const Batch *prompts, const Sampler *s, Generation *out,
                     TokenSink *sink, void *context) {
    const int slots = m->limits.slots, T = m->limits.positions < m->config.n_positions
                                               ? m->limits.positions
                                               : m->config.n_positions;
    const int N_max = m->limits.tokens, V = m->config.vocab_size, S = prompts->S;
    if (slots < 1 || N_max < slots)
        die("gpt2_generate: limits of %d slots and %d tokens, but at least 1 slot and as many "
            "tokens as slots are required",
            slots, N_max);
    m->scored = m->logits_kept = 0;
    m->decoding = true;
    m->noisy = m->head_in_is_grad = m->in_memory = false;
    m->kept_n = 0;
    Slot *slot = (Slot *)xcalloc((size_t)slots, sizeof *slot);
    for (int i = 0; i < slots; i++)
        slot[i] = (Slot){
            .sequence = -1, .text = (int *)xmalloc(sizeof(int) * ((size_t)T + 1)), .same = -1};
    int *round_memory = (int *)xmalloc(sizeof(int) * round_room(&m->limits));
    int *drawing = (int *)xmalloc(sizeof(int) * (size_t)slots * 2),
        *drawn = drawing + slots;  // the slots that sample a token now, and the tokens
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)slots);
    // the responses so far, at most `room` tokens each
    int room = s->max_new_tokens < T + 1 ? s->max_new_tokens : T + 1, next = 0, running = 0;
    if (room < 0) room = 0;
    int *tokens = (int *)xmalloc(sizeof(int) * (size_t)S * (size_t)room),
        *count = (int *)xcalloc((size_t)S, sizeof(int));
    float *logps = (float *)xmalloc(sizeof(float) * (size_t)S * (size_t)room);
    const bool keeps = (size_t)S * (size_t)room <= (size_t)m->limits.kept;
    *out = (Generation){.start = (int *)xcalloc((size_t)S + 1, sizeof(int)),
                        .ended = (bool *)xcalloc((size_t)S, sizeof(bool))};

    // a copy of the weights in bf16 pays off after a few tokens
    enum { FEW_TOKENS = 4 };
    const bool shortens = m->short_weights && s->max_new_tokens > FEW_TOKENS;
    Parts *before = (Parts *)xmalloc(sizeof *before * (size_t)m->own);
    memcpy(before, m->parts, sizeof *before * (size_t)m->own);
    if (shortens) gpt2_shorten(m);
    device_precision(m->precision);

    for (;;) {
        // 1. free slots take the next prompts
        for (int i = 0; i < slots && next < S && room; i++) {
            if (slot[i].sequence >= 0) continue;
            int n = prompts->start[next + 1] - prompts->start[next];
            if (n < 1 || n > T) die_usage("a prompt of %d tokens, but it must have 1 to %d", n, T);
            const int *prompt = prompts->tokens + prompts->start[next];
            slot[i].same = n > 1 ? slot_with(slot, slots, prompt, n) : -1;
            slot[i].sequence = next;
            if (slot[i].same != i) slot[i].fed = 0;
            slot[i].length = n;
            memcpy(slot[i].text, prompt, sizeof(int) * (size_t)n);
            share_prompts(m, slot);
            next++;
            running++;
        }
        if (!running || (s->stopped && s->stopped())) break;
        progress(next - running, S);
        // 2. how many tokens of each slot the model reads; a long prompt may take several rounds
        int N = 0, reading = 0, R = 0, waiting = running;
        for (int i = 0; i < slots; i++) {
            slot[i].rows = 0;
            if (slot[i].sequence < 0) continue;
            waiting--;
            if (slot[i].same >= 0) continue;
            const int left = slot[i].length - slot[i].fed,
                      most = N_max - N - waiting;  // leave one row for each other slot
            N += slot[i].rows = min_int(left, most);
            reading++;
            if (slot[i].rows == left) drawing[R++] = i;
        }
        // 3. the rows; and of the slots that sample, where the output is kept, and the sequence's
        // own random number
        const Round t = round_in(round_memory, N, reading, R),
                    there = round_in(m->token, N, reading, R);
        for (int i = 0, n = 0, k = 0, r = 0; i < slots; i++) {
            if (!slot[i].rows) continue;
            t.start[k++] = n;
            for (int j = 0; j < slot[i].rows; j++, n++) {
                t.slot[n] = i;
                t.position[n] = slot[i].fed++;
                t.token[n] = slot[i].text[t.position[n]];
                if (t.token[n] < 0 || t.token[n] >= V)
                    die_usage(
                        "token %d does not exist in a model with a vocabulary of %d: the tokenizer "
                        "does not match the model",
                        t.token[n], V);
            }
            if (r < R && drawing[r] == i) t.row[r++] = n - 1;
        }
        t.start[reading] = N;
        for (int r = 0; r < R; r++) {
            const int q = slot[drawing[r]].sequence, length = slot[drawing[r]].length;
            const uint32_t id = prompts->id ? prompts->id[q] : (uint32_t)q;
            t.kept[r] = keeps ? q * room + count[q] : 0;
            t.uniform[r] = random_uniform(
                random4(s->seed, RANDOM_SAMPLE, s->step, id, (uint32_t)length, 0).v[0]);
        }
        // 4. the model, the logits of the last row of each text, and one token for each
        device_write(m->token, round_memory, sizeof(int) * round_ints(N, reading, R));
        forward_cached(m, there);
        share_prompts(m, slot);
        if (!R) continue;
        if (keeps) scatter_rows(m->kept, m->norm, there.kept, R, m->config.n_embd);
        head_forward(m->logits, m->norm, m->parts[WTE].w, R, m->config.n_embd, m->vocabulary,
                     m->ldv);
        sample(drawn, logp, m->logits, R, V, m->ldv, s->temperature, s->top_k, s->top_p,
               there.uniform);
        // 5. free the slots of texts that have ended
        for (int r = 0; r < R; r++) {
            Slot *t = &slot[drawing[r]];
            int q = t->sequence, k = count[q]++;
            if (!isfinite(logp[r]))
                die("the model's output for prompt %d is not finite: its weights are damaged or "
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
    if (shortens) gpt2_lengthen(m, before);
    free(before);
    for (int q = 0; q < S; q++) out->start[q + 1] = out->start[q] + count[q];
    out->tokens = (int *)xmalloc(sizeof(int) * (size_t)out->start[S]);
    out->logp = (float *)xmalloc(sizeof(float) * (size_t)out->start[S]);
    for (int q = 0; q < S; q++) {
        memcpy(out->tokens + out->start[q], tokens + (size_t)q * (size_t)room,
               sizeof(int) * (size_t)count[q]);
        memcpy(out->logp + out->start[q], logps + (size_t)q * (size_t)room,
               sizeof(float) * (size_t)count[q]);
        for (int k = 0; k < count[q] && keeps; k++) m->host_kept[out->start[q] + k] = q * room + k;
    }
    if (keeps) m->kept_n = out->start[S];
    for (int i = 0; i < slots; i++) free(slot[i].text);
    free(slot);
    free(round_memory);
    free(drawing);
    free(logp);
    free(tokens);
    free(logps);
    free(count);
}

/* Each process has the responses of its part of S prompts: all get all of them. */
static void collect(GPT2 *m, Generation *g, int S) {
    const int first = part_first(S), own = part_end(S) - first;
    Generation all = {.start = (int *)xcalloc((size_t)S + 1, sizeof(int)),
                      .ended = (bool *)xcalloc((size_t)S, sizeof(bool))};
    for (int q = 0; q < own; q++) all.start[first + q + 1] = g->start[q + 1] - g->start[q];
    memcpy(all.ended + first, g->ended, sizeof(bool) * (size_t)own);
    parts_collect(all.start + 1, sizeof(int), S, NULL);  // lengths, which become starts
    parts_collect(all.ended, sizeof(bool), S, NULL);
    for (int q = 0; q < S; q++) all.start[q + 1] += all.start[q];
    const size_t n = (size_t)all.start[S];
    all.tokens = (int *)xmalloc(sizeof(int) * n);
    all.logp = (float *)xmalloc(sizeof(float) * n);
    m->kept_first = all.start[first];
    memcpy(all.tokens + m->kept_first, g->tokens, sizeof(int) * (size_t)g->start[own]);
    memcpy(all.logp + m->kept_first, g->logp, sizeof(float) * (size_t)g->start[own]);
    parts_collect(all.tokens, sizeof(int), S, all.start);
    parts_collect(all.logp, sizeof(float), S, all.start);
    generation_free(g);
    *g = all;
}

void gpt2_generate(GPT2 *m, const Batch *prompts, const Sampler *s, Generation *out,
                   TokenSink *sink, void *context) {
    const int S = prompts->S, first = part_first(S), own = part_end(S) - first;
    m->kept_first = 0;
    if (ranks() == 1) {
        generate(m, prompts, s, out, sink, context);
        return;
    }
    const int from = prompts->start[first];
    int *start = (int *)xcalloc((size_t)own + 1, sizeof(int));
    uint32_t *id = (uint32_t *)xcalloc((size_t)own, sizeof *id);
    for (int q = 0; q < own; q++) {
        start[q + 1] = prompts->start[first + q + 1] - from;
        id[q] = prompts->id ? prompts->id[first + q] : (uint32_t)(first + q);
    }
    const Batch part = {
        .S = own, .N = start[own], .start = start, .tokens = prompts->tokens + from, .id = id};
    generate(m, &part, s, out, NULL, NULL);
    collect(m, out, S);
    free(start);
    free(id);
}

void generation_free(Generation *g) {
    free(g->start);
    free(g->tokens);
    free(g->logp);
    free(g->ended);
    *g = (Generation){0};
}
