/*
 * gpt2.c - GPT-2: forward pass, heads, backward pass and the optimiser's step, computed with the
 * functions of kernels.h. One layer, with r the residual stream:
 *
 *     norm = ln_1(r);  qkv = c_attn(norm);  att = attention(qkv);  h  = r + attn.c_proj(att)
 *     norm = ln_2(h);  fc = c_fc(norm);     gelu(fc);              r' = h + mlp.c_proj(gelu(fc))
 *
 * For the backward pass each layer stores r, qkv, att, h and fc (10 C floats a token) and a few
 * numbers per row. The outputs of the norms and gelu(fc) would be another 6 C. They are cheap to
 * recompute, so they are not stored. With gradient checkpointing a layer stores only r, and its
 * forward pass runs again. A frozen model in bf16 computes fc again (gpt2_is_lean).
 */
#include "model/gpt2.h"

#include "model/kernels.h"
#include "model/private.h"
#include "model/tap.h"
#include "progress.h"
#include "ranks.h"
#include "util.h"

const GPT2Config *gpt2_config(const GPT2 *m) { return &m->config; }

/* ---- forward --------------------------------------------------------------------------------- */

/* Does a part of layer l have only the output rows? In the last layer that is all that comes after
   attention: the other tokens are read only by their keys and values. */
static bool of_outputs(const GPT2 *m, int l, bool after_attention) {
    return after_attention && l == m->config.n_layer - 1 && m->outputs < m->batch.N;
}

/* The rows of layer l after its attention. */
static int rows_after(const GPT2 *m, int l) {
    return of_outputs(m, l, true) ? m->outputs : m->batch.N;
}

/* The Noise of this purpose in a layer, for its rows. Without noise p becomes 0. */
static Noise noise_of(const GPT2 *m, float p, RandomPurpose purpose, int layer, bool outputs) {
    return (Noise){m->noisy ? p : 0,
                   m->noise.seed,
                   (uint32_t)purpose | (uint32_t)layer << 8,
                   m->noise.step,
                   outputs ? m->output_sequence : m->sequence,
                   outputs ? m->output_position : m->position};
}

/* The same for all tokens of the batch. */
static Noise noise_at(const GPT2 *m, float p, RandomPurpose purpose, int layer) {
    return noise_of(m, p, purpose, layer, false);
}

/* The same for the rows of a layer after its attention. */
static Noise noise_after(const GPT2 *m, RandomPurpose purpose, int layer) {
    return noise_of(m, m->noise.resid_pdrop, purpose, layer, of_outputs(m, layer, true));
}

/*
 * Chooses the output rows: those of the tokens whose output is needed, in the order of the batch.
 * Tokens 2k and 2k + 1 are chosen together, because a product of bf16 takes the terms of its
 * chain in such pairs (kernels.h). So the gradients of the last layer's weights have the bits that
 * they would have with all rows, whose other terms are 0.
 */
static void choose_outputs(GPT2 *m, const Batch *b) {
    const int *needed = b->needed;
    int n = 0, *token = m->host_int;
    for (int i = 0; i < b->N; i++) {
        const int other = (i ^ 1) < b->N ? i ^ 1 : i;
        const bool chosen = !needed || needed[i] >= 0 || needed[other] >= 0;
        m->host_output[i] = chosen ? n : -1;
        if (chosen) token[n++] = i;
    }
    if (!n) m->host_output[0] = token[n++] = 0;  // kernels get at least one row
    m->outputs = n;
    if (n < b->N) device_write(m->output, token, sizeof(int) * (size_t)n);
}

/* to (device) = the numbers of the output rows among those of all N tokens, in host_int, which it
   overwrites. */
static void write_of_outputs(GPT2 *m, int N, void *to) {
    if (m->outputs == N) return;
    for (int i = 0; i < N; i++)
        if (m->host_output[i] >= 0) m->host_int[m->host_output[i]] = m->host_int[i];
    device_write(to, m->host_int, sizeof(int) * (size_t)m->outputs);
}

/* Checks a batch and copies it to the device: tokens, positions, starts, parents, the ids of its
   sequences, and its output rows. */
static void upload(GPT2 *m, const Batch *b) {
    if (b->N < 1 || b->N > m->limits.tokens || b->S > m->limits.sequences)
        die("a batch of %d sequences and %d tokens, but gpt2_reserve allowed at most %d and %d, "
            "and at least 1 token is required",
            b->S, b->N, m->limits.sequences, m->limits.tokens);
    for (int i = 0; i < b->N; i++)
        if (b->tokens[i] < 0 || b->tokens[i] >= m->config.vocab_size)
            die_usage(
                "token %d does not exist in a model with a vocabulary of %d: the tokenizer does "
                "not match the model",
                b->tokens[i], m->config.vocab_size);
    choose_outputs(m, b);
    device_write(m->token, b->tokens, sizeof(int) * (size_t)b->N);
    device_write(m->start, b->start, sizeof(int) * ((size_t)b->S + 1));
    if (b->parent) device_write(m->parent, b->parent, sizeof(int) * (size_t)b->S);
    for (int s = 0; s < b->S; s++) {
        int parent = b->parent ? b->parent[s] : -1,
            before = parent < 0 ? 0 : b->start[parent + 1] - b->start[parent];
        if (parent >= s || (parent >= 0 && b->parent[parent] >= 0))
            die("sequence %d of a batch has sequence %d as its parent, which must come before it "
                "and must not have a parent",
                s, parent);
        if (before + b->start[s + 1] - b->start[s] > m->config.n_positions)
            die_usage("a sequence of %d tokens, but the model has %d positions; lower --max_length",
                      before + b->start[s + 1] - b->start[s], m->config.n_positions);
        for (int i = b->start[s]; i < b->start[s + 1]; i++)
            m->host_int[i] = before + i - b->start[s];
    }
    device_write(m->position, m->host_int, sizeof(int) * (size_t)b->N);
    write_of_outputs(m, b->N, m->output_position);
    for (int s = 0; s < b->S; s++)
        for (int i = b->start[s]; i < b->start[s + 1]; i++)
            m->host_int[i] = (int)(b->id ? b->id[s] : (uint32_t)s);
    device_write(m->sequence, m->host_int, sizeof(uint32_t) * (size_t)b->N);
    write_of_outputs(m, b->N, m->output_sequence);
}

/* r = wte[token] + wpe[position], then NEFTune's noise and dropout if they are in use. */
static void embed(GPT2 *m, real *r) {
    const int N = m->batch.N, C = m->config.n_embd;
    embed_forward(r, m->token, m->position, m->parts[WTE].w, m->parts[WPE].w, N, C);
    gpt2_tap(m, 0, TAP_WTE, N, 0, C, NULL, r, NULL);
    if (m->noisy && m->noise.neftune_alpha > 0) {
        for (int s = 0; s < m->batch.S; s++) {
            int T = m->batch.start[s + 1] - m->batch.start[s];
            for (int i = m->batch.start[s]; i < m->batch.start[s + 1]; i++)
                m->host_float[i] = m->noise.neftune_alpha / sqrtf((float)T * (float)C);
        }
        device_write(m->magnitude, m->host_float, sizeof(float) * (size_t)N);
        add_uniform_noise(r, m->magnitude, N, C, noise_at(m, 1, RANDOM_NEFTUNE, 0));
    }
    dropout(r, N, C, noise_at(m, m->noise.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
}

Noise tap_noise(const TapCall *call, float p, RandomPurpose purpose) {
    const bool after_attention = call->site != TAP_WTE && call->site != TAP_C_ATTN;
    return noise_of(call->m, p, (RandomPurpose)((uint32_t)purpose | (uint32_t)call->site << 24),
                    call->layer, of_outputs(call->m, call->layer, after_attention));
}

/* The arguments of a tap at a site of layer l, for both passes. */
static TapCall tap_call(const GPT2 *m, int l, TapSite site, int N, int IC, int OC,
                        const real *inp) {
    int save_at = m->decoding || !m->limits.train     ? -1
                  : !m->limits.gradient_checkpointing ? l
                  : m->recomputing                    ? 0
                                                      : -1;
    return (TapCall){.m = m,
                     .layer = l,
                     .site = site,
                     .N = N,
                     .IC = IC,
                     .OC = OC,
                     .inp = inp,
                     .token = site == TAP_WTE ? m->token : NULL,
                     .save_at = save_at};
}

void gpt2_tap(const GPT2 *m, int l, TapSite site, int N, int IC, int OC, const real *inp, real *out,
              const real *residual) {
    if (!m->tap.at[site]) return;
    TapCall call = tap_call(m, l, site, N, IC, OC, inp);
    call.out = out;
    call.residual = residual;
    m->tap.forward(m->tap.context, &call);
}

void gpt2_linear(real *out, const real *inp, const Parts *p, int N, int IC, int OC) {
    if (p[0].nf4)
        nf4_linear_forward(out, inp, p[0].nf4, p[1].w, N);
    else
        linear_forward(out, inp, p[0].w, p[1].w, N, IC, OC);
}

/* dinp (N,IC) = dout (N,OC) w^T. The weight may be quantised. */
static void linear_backward(real *dinp, const real *dout, const Parts *p, int N, int IC, int OC) {
    if (p->nf4)
        nf4_linear_backward_input(dinp, dout, p->nf4, N);
    else
        linear_backward_input(dinp, dout, p->w, N, IC, OC);
}

/* One kernel computes both, unless the weight is quantised or a tap comes in between. */
void gpt2_expand(GPT2 *m, int l, real *fc, int N) {
    const int C = m->config.n_embd, F = m->config.n_inner;
    const Parts *p = of_layer(m, l) + FC_W;
    if (!p[0].nf4 && !m->tap.at[TAP_C_FC]) {
        linear_gelu_forward(m->wide, fc, m->norm, p[0].w, p[1].w, N, C, F);
        return;
    }
    gpt2_linear(fc, m->norm, p, N, C, F);
    gpt2_tap(m, l, TAP_C_FC, N, C, F, m->norm, fc, NULL);
    gelu_forward(m->wide, fc, (size_t)N * (size_t)F);
}

/* Returns to (outputs,C) = the output rows of from (N,C). */
static const real *output_rows(const GPT2 *m, real *to, const real *from) {
    gather_rows(to, from, m->output, m->outputs, m->config.n_embd);
    return to;
}

/* Layer l from norm = ln_1(r) up to fc and wide = gelu(fc). This computes all that the layer's
   backward pass needs. h, fc and all that follows have only the rows of rows_after. */
static void layer_forward(GPT2 *m, int l) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd, rows = rows_after(m, l);
    const Parts *p = of_layer(m, l);
    Layer *y = &m->layer[l];
    const real *r = y->r, *att = y->att;
    gpt2_linear(y->qkv, m->norm, p + QKV_W, N, C, 3 * C);
    gpt2_tap(m, l, TAP_C_ATTN, N, C, 3 * C, m->norm, y->qkv, NULL);
    attention_forward(y->att, y->lse, y->qkv, m->start, m->batch.parent ? m->parent : NULL, N,
                      m->batch.S, c->n_head, C / c->n_head,
                      noise_at(m, m->noise.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
    if (rows < N) {
        att = output_rows(m, m->norm, y->att);
        r = output_rows(m, m->wide, y->r);
    }
    gpt2_linear(m->branch, att, p + PROJ_W, rows, C, C);
    gpt2_tap(m, l, TAP_ATTN_C_PROJ, rows, C, C, att, m->branch, NULL);
    dropout(m->branch, rows, C, noise_after(m, RANDOM_DROPOUT_ATTN_RESID, l));
    gpt2_tap(m, l, TAP_ATTN, rows, 0, C, NULL, m->branch, r);
    layernorm_forward(y->h, m->norm, y->mean2, y->rstd2, r, m->branch, p[LN2_W].w, p[LN2_B].w, rows,
                      C, c->layer_norm_epsilon);
    gpt2_expand(m, l, y->fc, rows);
}

/* branch = the output of layer l's MLP, from wide. */
static void layer_output(GPT2 *m, int l) {
    const int rows = rows_after(m, l), C = m->config.n_embd, F = m->config.n_inner;
    const Parts *p = of_layer(m, l);
    gpt2_linear(m->branch, m->wide, p + OUT_W, rows, F, C);
    gpt2_tap(m, l, TAP_MLP_C_PROJ, rows, F, C, m->wide, m->branch, NULL);
    dropout(m->branch, rows, C, noise_after(m, RANDOM_DROPOUT_MLP_RESID, l));
    gpt2_tap(m, l, TAP_MLP, rows, 0, C, NULL, m->branch, m->layer[l].h);
}

void gpt2_forward(GPT2 *m, const Batch *b, const GPT2Noise *noise) {
    const GPT2Config *c = &m->config;
    const int N = b->N, C = c->n_embd;
    progress_tick();
    m->batch = *b;
    m->noisy = noise != NULL;
    if (noise) m->noise = *noise;
    m->scored = m->logits_kept = 0;
    m->decoding = m->recomputing = m->recalled = m->head_in_is_grad = false;
    device_precision(m->precision);
    upload(m, b);
    embed(m, m->layer[0].r);
    for (int l = 0; l < c->n_layer; l++) {
        const Parts *p = of_layer(m, l);
        Layer *y = &m->layer[l], *below = y - 1;
        // r = output of the layer below;  norm = ln_1(r)
        layernorm_forward(y->r, m->norm, y->mean1, y->rstd1, l ? below->h : y->r,
                          l ? m->branch : NULL, p[LN1_W].w, p[LN1_B].w, N, C,
                          c->layer_norm_epsilon);
        layer_forward(m, l);
        layer_output(m, l);
    }
    const Parts *f = of_layer(m, c->n_layer);  // ln_f comes where the next layer's ln_1 would be
    layernorm_forward(m->r_final, m->norm, m->mean_f, m->rstd_f, m->layer[c->n_layer - 1].h,
                      m->branch, f[0].w, f[1].w, m->outputs, C, c->layer_norm_epsilon);
    m->in_memory = true;
}

void gpt2_recall(GPT2 *m, const Batch *b, const int *of) {
    if (b->N < 1 || b->N > m->limits.tokens)
        die("gpt2_recall: a batch of %d tokens, but gpt2_reserve allowed 1 to %d", b->N,
            m->limits.tokens);
    m->batch = *b;
    m->batch.needed = of;
    m->noisy = m->decoding = m->recomputing = m->head_in_is_grad = false;
    m->scored = m->logits_kept = 0;
    choose_outputs(m, &m->batch);
    for (int i = 0; i < b->N; i++) {
        if (m->host_output[i] < 0) continue;
        const int k = of[i] - m->kept_first;
        if (of[i] >= 0 && (k < 0 || k >= m->kept_n))
            die("gpt2_recall: sampled token %d, but the outputs of %d from %d on are kept", of[i],
                m->kept_n, m->kept_first);
        m->host_int[m->host_output[i]] = of[i] < 0 ? 0 : m->host_kept[k];
    }
    device_write(m->output, m->host_int, sizeof(int) * (size_t)m->outputs);
    gather_rows(m->norm, m->kept, m->output, m->outputs, m->config.n_embd);
    m->in_memory = m->recalled = true;
}

/* ---- the heads ------------------------------------------------------------------------------ */

/* Ends the program if the activations of a forward pass, which caller reads, are not in memory. */
static void check_in_memory(const GPT2 *m, const char *caller) {
    if (!m->in_memory)
        die("%s: first call gpt2_forward; gpt2_backward and gpt2_generate overwrite what the last "
            "forward pass left",
            caller);
}

/* Did the batch need the output of token i? */
static bool is_needed(const GPT2 *m, int i) { return !m->batch.needed || m->batch.needed[i] >= 0; }

/* Gathers the rows that have a target, and scores logit_rows of them at a time. It starts with the
   last rows, so that the logits of the first ones, rows [0,logits_kept), remain in memory for the
   backward pass.
   When training with a frozen embedding (noise is not NULL, even if its probabilities are 0), the
   backward pass needs logits only for d logp / d head_in. This is computed at once, while the
   logits are in memory, and replaces head_in. No logits are kept then. */
void gpt2_logprob(GPT2 *m, const int *target, float temperature, float *logp, float *entropy,
                  int *best) {
    const int N = m->batch.N, C = m->config.n_embd, V = m->config.vocab_size;
    int R = 0;
    check_in_memory(m, "gpt2_logprob");
    for (int i = 0; i < N; i++) {
        logp[i] = 0;
        if (entropy) entropy[i] = 0;
        if (best) best[i] = 0;
        if (target[i] < 0) continue;
        if (target[i] >= V)
            die_usage("target %d does not exist in a vocabulary of %d", target[i], V);
        if (R == m->limits.scored)
            die("more than %d scored tokens, but gpt2_reserve allowed at most that many", R);
        if (!is_needed(m, i))
            die("gpt2_logprob: token %d has a target, but its output is not needed", i);
        m->host_row[R++] = i;
    }
    if (!(temperature > 0))
        die("gpt2_logprob: a temperature of %g, but it must be above 0", (double)temperature);
    m->beta = 1.0f / temperature;
    m->scored = R;
    m->logits_kept = R < m->logit_rows ? R : m->logit_rows;
    m->with_entropy = entropy != NULL;
    device_precision(m->precision);
    m->head_in_is_grad = m->noisy && m->limits.train && !m->parts[WTE].g;
    if (!R) return;
    for (int r = 0; r < R; r++) m->host_int[r] = m->host_output[m->host_row[r]];
    device_write(m->row, m->host_int, sizeof(int) * (size_t)R);
    for (int r = 0; r < R; r++) m->host_int[r] = target[m->host_row[r]];
    device_write(m->target, m->host_int, sizeof(int) * (size_t)R);
    gather_rows(m->head_in, m->norm, m->row, R, C);
    if (m->head_in_is_grad) {
        for (int r = 0; r < R; r++) m->host_float[r] = 1;
        device_write(m->dlogp, m->host_float, sizeof(float) * (size_t)R);
    }
    for (int from = (R - 1) / m->logit_rows * m->logit_rows; from >= 0; from -= m->logit_rows) {
        int rows = R - from < m->logit_rows ? R - from : m->logit_rows;
        real *in = m->head_in + (size_t)from * (size_t)C;
        head_forward(m->logits, in, m->parts[WTE].w, rows, C, m->vocabulary, m->ldv);
        logprob_forward(m->logp + from, entropy ? m->entropy + from : NULL, m->lse + from,
                        best ? m->best + from : NULL, m->logits, m->target + from, m->beta, rows, V,
                        m->ldv);
        if (!m->head_in_is_grad) continue;
        logprob_backward(m->logits, m->lse + from, NULL, m->target + from, m->dlogp + from, NULL,
                         m->beta, rows, V, m->ldv);
        head_backward(in, NULL, m->logits, NULL, m->parts[WTE].w, rows, C, m->vocabulary, m->ldv);
    }
    if (m->head_in_is_grad) m->logits_kept = 0;
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

/* Returns the logits of scored rows [from, from + rows). If they are not in memory, they are
   computed again and overwrite the others. */
static real *logits_of(GPT2 *m, int from, int rows) {
    const int C = m->config.n_embd;
    if (m->head_in_is_grad) {
        gather_rows(m->head_in, m->norm, m->row, m->scored, C);
        m->head_in_is_grad = false;
    }
    if (from + rows <= m->logits_kept) return m->logits + (size_t)from * (size_t)m->ldv;
    m->logits_kept = 0;
    device_precision(m->precision);
    head_forward(m->logits, m->head_in + (size_t)from * (size_t)C, m->parts[WTE].w, rows, C,
                 m->vocabulary, m->ldv);
    return m->logits;
}

/* Checks that both models have just scored the same rows. Returns how many of them have room in
   both models' logits at a time. */
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
    // Start with the last rows, as gpt2_logprob does. If there is memory for the logits of all
    // rows, nothing is computed again, here or in the backward pass.
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

/* The scalar head's tensors, which follow those of ln_f. */
static Parts *scalar_head(const GPT2 *m) {
    if (m->config.head == LM_HEAD) die("gpt2_value: this model has no scalar head");
    return m->parts + m->own - (int)m->config.head;
}

void gpt2_value(GPT2 *m, float *value) {
    const Parts *p = scalar_head(m);
    check_in_memory(m, "gpt2_value");
    value_forward(m->value, m->norm, p[0].w, m->config.head == LM_AND_VALUE_HEAD ? p[1].w : NULL,
                  m->outputs, m->config.n_embd);
    device_read(m->host_float, m->value, sizeof(float) * (size_t)m->outputs);
    for (int i = 0; i < m->batch.N; i++)
        value[i] = is_needed(m, i) ? m->host_float[m->host_output[i]] : 0;
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

/* Scored rows of d_norm = gradient through the vocabulary's head. Adds to the gradient of wte. */
static void vocabulary_backward(GPT2 *m, const float *dlogp, const float *dentropy) {
    const int C = m->config.n_embd, V = m->config.vocab_size, R = m->scored;
    if (dentropy && !m->with_entropy)
        die("gpt2_backward: dentropy is given, but gpt2_logprob did not compute the entropy");
    for (int r = 0; r < R; r++) m->host_float[r] = dlogp ? dlogp[m->host_row[r]] : 0;
    device_write(m->dlogp, m->host_float, sizeof(float) * (size_t)R);
    if (dentropy) {
        for (int r = 0; r < R; r++) m->host_float[r] = dentropy[m->host_row[r]];
        device_write(m->dentropy, m->host_float, sizeof(float) * (size_t)R);
    }
    const bool is_grad = m->head_in_is_grad && !dentropy;
    if (is_grad) scale_rows(m->head_in, m->dlogp, R, C);  // which is d logp / d head_in already
    for (int from = 0; from < R && !is_grad; from += m->logit_rows) {
        int rows = R - from < m->logit_rows ? R - from : m->logit_rows;
        real *logits = logits_of(m, from, rows), *in = m->head_in + (size_t)from * (size_t)C;
        m->logits_kept = 0;  // logits become gradients
        logprob_backward(logits, m->lse + from, m->entropy + from, m->target + from,
                         m->dlogp + from, dentropy ? m->dentropy + from : NULL, m->beta, rows, V,
                         m->ldv);
        head_backward(NULL, m->parts[WTE].g, logits, in, m->parts[WTE].w, rows, C, m->vocabulary,
                      m->ldv);
        head_backward(in, NULL, logits, NULL, m->parts[WTE].w, rows, C, m->vocabulary,
                      m->ldv);  // in place: head_in is no longer needed
    }
    scatter_rows(m->d_norm, m->head_in, m->row, R, C);
}

/* d_norm (outputs,C) = gradient with respect to the output of ln_f, from both heads. */
static void heads_backward(GPT2 *m, const float *dlogp, const float *dentropy,
                           const float *dvalue) {
    const int C = m->config.n_embd;
    device_zero(m->d_norm, sizeof(real) * (size_t)m->outputs * (size_t)C);
    if (m->scored) vocabulary_backward(m, dlogp, dentropy);
    if (!dvalue) return;
    // value = norm w + b
    const Parts *p = scalar_head(m);
    for (int i = 0; i < m->batch.N; i++)
        if (m->host_output[i] >= 0)
            m->host_float[m->host_output[i]] = is_needed(m, i) ? dvalue[i] : 0;
    device_write(m->value, m->host_float, sizeof(float) * (size_t)m->outputs);
    value_backward(m->d_norm, p[0].g, m->config.head == LM_AND_VALUE_HEAD ? p[1].g : NULL, m->value,
                   m->norm, p[0].w, m->outputs, C);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Calls the tap at a linear layer out = inp w + b, after dinp = dout w^T is computed. dinp is NULL
   if nothing below trains. */
static void tap_backward(const GPT2 *m, int l, TapSite site, int N, int IC, int OC, const real *inp,
                         const real *dout, real *dinp) {
    if (!m->tap.at[site]) return;
    TapCall call = tap_call(m, l, site, N, IC, OC, inp);
    call.dout = (real *)dout;
    call.dinp = dinp;
    m->tap.backward(m->tap.context, &call);
}

/* Returns the gradient with respect to a branch's output, before dropout and its tap. d_r is the
   gradient with respect to the sum of branch and residual; the residual's part of it is d_r itself.
   Without dropout and tap the result is d_r, otherwise it is computed in m->branch. */
static const real *branch_gradient(GPT2 *m, RandomPurpose purpose, int l, TapSite site,
                                   const real *residual) {
    const int rows = rows_after(m, l), C = m->config.n_embd;
    Noise noise = noise_after(m, purpose, l);
    if (noise.p <= 0 && !m->tap.at[site]) return m->d_r;
    device_copy(m->branch, m->d_r, sizeof(real) * (size_t)rows * (size_t)C);
    if (m->tap.at[site]) {
        TapCall call = tap_call(m, l, site, rows, 0, C, NULL);
        call.residual = residual;
        call.dout = m->branch;
        call.dresidual = m->d_r;
        m->tap.backward(m->tap.context, &call);
    }
    dropout(m->branch, rows, C, noise);
    return m->branch;
}

/* Of the last layer: d_r and the gradient of att, whose output rows are in d_norm, of all tokens.
   They are 0 at tokens that are not output rows. Returns the second, in branch. Overwrites norm. */
static const real *gradients_of_all(GPT2 *m) {
    const int C = m->config.n_embd;
    const size_t all = sizeof(real) * (size_t)m->batch.N * (size_t)C;
    device_zero(m->branch, all);
    scatter_rows(m->branch, m->d_norm, m->output, m->outputs, C);
    device_copy(m->norm, m->d_r, sizeof(real) * (size_t)m->outputs * (size_t)C);
    device_zero(m->d_r, all);
    scatter_rows(m->d_r, m->norm, m->output, m->outputs, C);
    return m->branch;
}

/* On entry d_r is the gradient with respect to the layer's output, on return with respect to its
   input. Overwrites wide, d_norm and norm. */
static void layer_backward(GPT2 *m, int l) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd, F = c->n_inner, S = m->batch.S;
    const int rows = rows_after(m, l);
    const Parts *p = of_layer(m, l);
    Layer *y = &m->layer[l];
    // lowest: nothing below c_attn of layer 0 trains, and nothing in the layer but tensors that
    // taps added. Then no gradients are computed below the first tap.
    const bool *at = m->tap.at;
    const bool lowest = l == 0 && !p[LN1_W].g && !m->parts[WTE].g && !at[TAP_WTE];
    const bool attention_tapped = at[TAP_C_ATTN] || at[TAP_ATTN_C_PROJ];
    const bool below_output_tapped =
        attention_tapped || at[TAP_ATTN] || at[TAP_C_FC] || at[TAP_MLP_C_PROJ];
    if (m->limits.gradient_checkpointing) {
        m->recomputing = true;
        layernorm_forward(NULL, m->norm, y->mean1, y->rstd1, y->r, NULL, p[LN1_W].w, p[LN1_B].w, N,
                          C, c->layer_norm_epsilon);
        layer_forward(m, l);
        if (m->tap.at[TAP_MLP]) layer_output(m, l);
    }
    // r' = h + dropout(c_proj(gelu(fc)))
    const real *d = branch_gradient(m, RANDOM_DROPOUT_MLP_RESID, l, TAP_MLP, y->h);
    if (lowest && !below_output_tapped) return;
    if (gpt2_is_lean(&m->limits) && l < c->n_layer - 1) {
        layernorm_forward(NULL, m->norm, y->mean2, y->rstd2, y->h, NULL, p[LN2_W].w, p[LN2_B].w,
                          rows, C, c->layer_norm_epsilon);
        gpt2_expand(m, l, y->fc, rows);
    }
    if (m->tap.at[TAP_MLP_C_PROJ]) gelu_forward(m->act, y->fc, (size_t)rows * (size_t)F);
    linear_backward(m->wide, d, p + OUT_W, rows, F, C);
    tap_backward(m, l, TAP_MLP_C_PROJ, rows, F, C, m->act, d, m->wide);
    gelu_backward(m->wide, y->fc, (size_t)rows * (size_t)F);  // fc becomes gelu(fc)
    linear_backward_weight(p[OUT_W].g, p[OUT_B].g, y->fc, d, rows, F, C);
    // fc = c_fc(ln_2(h))
    if (p[FC_W].g || m->tap.at[TAP_C_FC])
        layernorm_forward(NULL, m->norm, y->mean2, y->rstd2, y->h, NULL, p[LN2_W].w, p[LN2_B].w,
                          rows, C, c->layer_norm_epsilon);
    linear_backward_weight(p[FC_W].g, p[FC_B].g, m->norm, m->wide, rows, C, F);
    linear_backward(m->d_norm, m->wide, p + FC_W, rows, C, F);
    tap_backward(m, l, TAP_C_FC, rows, C, F, m->norm, m->wide, m->d_norm);
    layernorm_backward(m->d_r, p[LN2_W].g, p[LN2_B].g, m->d_norm, y->h, y->mean2, y->rstd2,
                       p[LN2_W].w, rows, C);
    // h = r + dropout(c_proj(att))
    const real *r = y->r, *att = y->att, *d_att = m->d_norm;
    if (rows < N) r = output_rows(m, m->wide, y->r);
    d = branch_gradient(m, RANDOM_DROPOUT_ATTN_RESID, l, TAP_ATTN, r);
    if (lowest && !attention_tapped) return;
    if (rows < N) att = output_rows(m, m->norm, y->att);
    linear_backward_weight(p[PROJ_W].g, p[PROJ_B].g, att, d, rows, C, C);
    linear_backward(m->d_norm, d, p + PROJ_W, rows, C, C);
    tap_backward(m, l, TAP_ATTN_C_PROJ, rows, C, C, att, d, m->d_norm);
    if (rows < N) d_att = gradients_of_all(m);
    attention_backward(m->wide, d_att, y->qkv, y->att, y->lse, m->start,
                       m->batch.parent ? m->parent : NULL, N, S, c->n_head, C / c->n_head,
                       noise_at(m, m->noise.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
    // qkv = c_attn(ln_1(r))
    if (p[QKV_W].g || m->tap.at[TAP_C_ATTN])
        layernorm_forward(NULL, m->norm, y->mean1, y->rstd1, y->r, NULL, p[LN1_W].w, p[LN1_B].w, N,
                          C, c->layer_norm_epsilon);
    linear_backward_weight(p[QKV_W].g, p[QKV_B].g, m->norm, m->wide, N, C, 3 * C);
    if (!lowest) linear_backward(m->d_norm, m->wide, p + QKV_W, N, C, 3 * C);
    tap_backward(m, l, TAP_C_ATTN, N, C, 3 * C, m->norm, m->wide, lowest ? NULL : m->d_norm);
    if (!lowest)
        layernorm_backward(m->d_r, p[LN1_W].g, p[LN1_B].g, m->d_norm, y->r, y->mean1, y->rstd1,
                           p[LN1_W].w, N, C);
}

void gpt2_backward(GPT2 *m, const float *dlogp, const float *dentropy, const float *dvalue) {
    const GPT2Config *c = &m->config;
    const int N = m->batch.N, C = c->n_embd;
    if (!m->limits.train) die("gpt2_backward: this model was reserved without training");
    m->in_memory = m->in_memory && !m->recalled;
    check_in_memory(m, "gpt2_backward");
    m->in_memory = false;
    shards_open(m);
    device_precision(m->precision);
    heads_backward(m, dlogp, dentropy, dvalue);
    shards_final(m, c->n_layer);
    const Parts *f = of_layer(m, c->n_layer);
    device_zero(m->d_r, sizeof(real) * (size_t)m->outputs * (size_t)C);
    layernorm_backward(m->d_r, f[0].g, f[1].g, m->d_norm, m->r_final, m->mean_f, m->rstd_f, f[0].w,
                       m->outputs, C);
    for (int l = c->n_layer - 1; l >= 0; l--) {
        layer_backward(m, l);
        shards_final(m, l);
    }
    if (m->parts[WTE].g || m->tap.at[TAP_WTE]) {
        dropout(m->d_r, N, C, noise_at(m, m->noise.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
        tap_backward(m, 0, TAP_WTE, N, 0, C, NULL, m->d_r, NULL);
        embed_backward(m->parts[WTE].g, m->parts[WPE].g, m->d_r, m->token, m->position, N, C);
    }
    shards_final(m, -1);
}

/* ---- the optimiser's step -------------------------------------------------------------------- */

void gpt2_clear(GPT2 *m) {
    if (!m->gradients) return;
    shards_restart(m);
    device_zero(m->accumulator, sizeof(float) * m->arena);
}

/* Lists in x the weights of this process's piece of a band of the gradients: how many arrays. */
static int stepped(const GPT2 *m, const AdamW *o, int band, Stepped *x) {
    const Piece piece = shards_piece(m, band);
    const size_t from = piece.at, n = piece.n;
    int count = 0;
    for (int i = 0; i < m->tensors; i++) {
        const Parts *p = &m->parts[i];
        const size_t begin = p->at > from ? p->at : from;
        const size_t last = p->at + m->tensor[i].n, end = last < from + n ? last : from + n;
        if (!p->g || begin >= end) continue;
        const size_t k = begin - p->at;
        float *m1 = m->moments + piece.moments + (begin - from);
        x[count++] = (Stepped){.w = p->w + k,
                               .master = p->master ? p->master + k : NULL,
                               .g = p->g + k,
                               .m = m1,
                               .v = m1 + m->arena / (size_t)ranks(),
                               .n = end - begin,
                               .decay = m->tensor[i].ndim == 2 ? o->weight_decay : 0};
    }
    return count;
}

float gpt2_step(GPT2 *m, const AdamW *o, int t) {
    m->kept_n = 0;
    float norm = (float)sqrt(shards_count() > 1
                                 ? shards_sum(m)
                                 : sum_of_squares(m->trained, m->trained_n, m->trained_count));
    if (!isfinite(norm)) {
        gpt2_clear(m);
        return norm;
    }
    // clip as PyTorch does, with the same 1e-6
    float scale =
        o->max_grad_norm > 0 && norm > o->max_grad_norm ? o->max_grad_norm / (norm + 1e-6f) : 1.0f;
    // a tensor lies in one band
    Stepped *x = (Stepped *)xmalloc(sizeof *x * (size_t)m->tensors);
    int count = 0;
    for (int s = 0; s < m->bands; s++) count += stepped(m, o, s, x + count);
    adamw(x, count, scale, o->learning_rate, o->beta1, o->beta2, o->epsilon, t);
    free(x);
    shards_spread(m);
    shards_restart(m);
    return norm;
}
