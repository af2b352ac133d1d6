/*
 * ref.h - the meaning of every function of kernels.h, in double precision and without a trick.
 *
 * It is the specification to read first, and the tests compare the fast kernels with it. Names,
 * argument order and array shapes are those of kernels.h, with ref_ in front. Every float array is
 * an array of double, so that references can be chained into a whole model, and perturbed by 1e-5
 * for central differences without drowning in rounding. Arrays are plain memory. A backward pass
 * follows its forward pass and quotes the line that it differentiates.
 *
 * Double precision cannot express the order of the additions, which is part of the contract, too:
 * ref_chain() at the end is the exact single precision meaning of a product.
 *
 *   S sequences   N tokens   C channels   V vocabulary   NH heads   hs head size   R rows
 *   IC, OC channels in and out
 */
#ifndef POSTTRAIN_REF_H
#define POSTTRAIN_REF_H

#include "model/kernels.h"
#include "util.h"

/* ---- Embedding ------------------------------------------------------------------------------- */

/* out (N,C), wte (V,C), wpe (positions,C) */
static inline void ref_embed_forward(double *out, const int *token, const int *position,
                                     const double *wte, const double *wpe, int N, int C) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            out[(size_t)n * C + c] =
                wte[(size_t)token[n] * C + c] + wpe[(size_t)position[n] * C + c];
}

static inline void ref_embed_backward(double *dwte, double *dwpe, const double *dout,
                                      const int *token, const int *position, int N, int C) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            // out[n][c] = wte[token[n]][c] + wpe[position[n]][c]
            if (dwte) dwte[(size_t)token[n] * C + c] += dout[(size_t)n * C + c];
            if (dwpe) dwpe[(size_t)position[n] * C + c] += dout[(size_t)n * C + c];
        }
}

/* ---- Linear layer ---------------------------------------------------------------------------- */

/* out (N,OC), inp (N,IC), weight (IC,OC), bias (OC) or NULL */
static inline void ref_linear_forward(double *out, const double *inp, const double *weight,
                                      const double *bias, int N, int IC, int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double sum = bias ? bias[o] : 0;
            for (int i = 0; i < IC; i++)
                sum += inp[(size_t)n * IC + i] * weight[(size_t)i * OC + o];
            out[(size_t)n * OC + o] = sum;
        }
}

static inline void ref_linear_backward_input(double *dinp, const double *dout, const double *weight,
                                             int N, int IC, int OC) {
    for (int n = 0; n < N; n++)
        for (int i = 0; i < IC; i++) {
            // out[n][o] += inp[n][i] * weight[i][o]
            double sum = 0;
            for (int o = 0; o < OC; o++)
                sum += dout[(size_t)n * OC + o] * weight[(size_t)i * OC + o];
            dinp[(size_t)n * IC + i] = sum;
        }
}

static inline void ref_linear_backward_weight(double *dweight, double *dbias, const double *inp,
                                              const double *dout, int N, int IC, int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            // out[n][o] = bias[o];  out[n][o] += inp[n][i] * weight[i][o]
            if (dbias) dbias[o] += dout[(size_t)n * OC + o];
            for (int i = 0; i < IC; i++)
                dweight[(size_t)i * OC + o] += inp[(size_t)n * IC + i] * dout[(size_t)n * OC + o];
        }
}

/* ---- Projection: the same layer with weight (OC,IC) ------------------------------------------ */

/* out = (add ? out : 0) + bias + inp weight^T; bias may be NULL */
static inline void ref_projection_forward(double *out, const double *inp, const double *weight,
                                          const double *bias, bool add, int N, int IC, int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double sum = (add ? out[(size_t)n * OC + o] : 0) + (bias ? bias[o] : 0);
            for (int i = 0; i < IC; i++)
                sum += inp[(size_t)n * IC + i] * weight[(size_t)o * IC + i];
            out[(size_t)n * OC + o] = sum;
        }
}

static inline void ref_projection_backward_input(double *dinp, const double *dout,
                                                 const double *weight, bool add, int N, int IC,
                                                 int OC) {
    for (int n = 0; n < N; n++)
        for (int i = 0; i < IC; i++) {
            // out[n][o] += inp[n][i] * weight[o][i]
            double sum = add ? dinp[(size_t)n * IC + i] : 0;
            for (int o = 0; o < OC; o++)
                sum += dout[(size_t)n * OC + o] * weight[(size_t)o * IC + i];
            dinp[(size_t)n * IC + i] = sum;
        }
}

static inline void ref_projection_backward_weight(double *dweight, double *dbias, const double *inp,
                                                  const double *dout, int N, int IC, int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            // out[n][o] = bias[o];  out[n][o] += inp[n][i] * weight[o][i]
            if (dbias) dbias[o] += dout[(size_t)n * OC + o];
            for (int i = 0; i < IC; i++)
                dweight[(size_t)o * IC + i] += inp[(size_t)n * IC + i] * dout[(size_t)n * OC + o];
        }
}

/* ---- A weight of four bits a number ---------------------------------------------------------- */

/* The 16 values, as bitsandbytes lists them. */
static const double ref_nf4_values[16] = {-1.0,
                                          -0.6961928009986877,
                                          -0.5250730514526367,
                                          -0.39491748809814453,
                                          -0.28444138169288635,
                                          -0.18477343022823334,
                                          -0.09105003625154495,
                                          0.0,
                                          0.07958029955625534,
                                          0.16093020141124725,
                                          0.24611230194568634,
                                          0.33791524171829224,
                                          0.44070982933044434,
                                          0.5626170039176941,
                                          0.7229568362236023,
                                          1.0};

/* The code of a number, between -1 and 1: the nearest value's. */
static inline int ref_nf4_code(double x) {
    int nearest = 0;
    for (int c = 1; c < 16; c++)
        if (fabs(x - ref_nf4_values[c]) < fabs(x - ref_nf4_values[nearest])) nearest = c;
    return nearest;
}

/* Rounds weight (IC,OC) to NF4: weight^T (OC,IC) in blocks of 64 in the order of memory, each
 * scaled by its largest magnitude. */
static inline void ref_nf4_round(double *weight, int IC, int OC) {
    const int n = IC * OC;
    for (int from = 0; from < n; from += 64) {
        double top = 0;
        for (int k = from; k < from + 64 && k < n; k++)
            top = fmax(top, fabs(weight[k % IC * OC + k / IC]));
        for (int k = from; k < from + 64 && k < n; k++) {
            double *w = &weight[k % IC * OC + k / IC];
            *w = top > 0 ? ref_nf4_values[ref_nf4_code(*w / top)] * top : 0;
        }
    }
}

/* ---- Residual and layer norm ----------------------------------------------------------------- */

/* sum, out, x, y (N,C); mean, rstd (N); weight, bias (C). The variance is the biased one, over C.
 */
static inline void ref_layernorm_forward(double *sum, double *out, double *mean, double *rstd,
                                         const double *x, const double *y, const double *weight,
                                         const double *bias, int N, int C, double epsilon) {
    for (int n = 0; n < N; n++) {
        const double *x_n = x + (size_t)n * C;
        if (y) {
            for (int c = 0; c < C; c++) sum[(size_t)n * C + c] = x_n[c] + y[(size_t)n * C + c];
            x_n = sum + (size_t)n * C;
        }
        double m = 0, variance = 0;
        for (int c = 0; c < C; c++) m += x_n[c] / C;
        for (int c = 0; c < C; c++) variance += (x_n[c] - m) * (x_n[c] - m) / C;
        mean[n] = m;
        rstd[n] = 1 / sqrt(variance + epsilon);
        for (int c = 0; c < C; c++)
            out[(size_t)n * C + c] = (x_n[c] - m) * rstd[n] * weight[c] + bias[c];
    }
}

static inline void ref_layernorm_backward(double *dsum, double *dweight, double *dbias,
                                          const double *dout, const double *sum, const double *mean,
                                          const double *rstd, const double *weight, int N, int C) {
    for (int n = 0; n < N; n++) {
        const double *dout_n = dout + (size_t)n * C, *sum_n = sum + (size_t)n * C;
        double dnorm_mean = 0, dnorm_norm_mean = 0;
        for (int c = 0; c < C; c++) {
            // out = norm * weight + bias,  norm = (sum - mean) * rstd
            double norm = (sum_n[c] - mean[n]) * rstd[n], dnorm = dout_n[c] * weight[c];
            if (dweight) dweight[c] += dout_n[c] * norm;
            if (dbias) dbias[c] += dout_n[c];
            dnorm_mean += dnorm / C;
            dnorm_norm_mean += dnorm * norm / C;
        }
        // norm moves with sum three ways: directly, through the mean, and through rstd
        for (int c = 0; c < C; c++) {
            double norm = (sum_n[c] - mean[n]) * rstd[n], dnorm = dout_n[c] * weight[c];
            dsum[(size_t)n * C + c] += rstd[n] * (dnorm - dnorm_mean - norm * dnorm_norm_mean);
        }
    }
}

/* ---- GELU, tanh form ------------------------------------------------------------------------- */

static inline double ref_gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static inline double ref_gelu_derivative(double x) {
    double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    double slope = sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    // 0.5 * x * (1 + t): the product rule, and dtanh(u) = (1 - tanh(u)^2) du; 1 - t^2 reaches 0
    // before slope overflows
    return 0.5 * (1 + t) + (fabs(t) < 1 ? 0.5 * x * (1 - t * t) * slope : 0);
}

static inline void ref_gelu_forward(double *out, const double *inp, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = ref_gelu(inp[i]);
}

static inline void ref_gelu_backward(double *dout, double *inp, size_t n) {
    for (size_t i = 0; i < n; i++) {
        dout[i] *= ref_gelu_derivative(inp[i]);
        inp[i] = ref_gelu(inp[i]);
    }
}

/* ---- ReLU and SiLU --------------------------------------------------------------------------- */

static inline double ref_relu(double x) { return x > 0 ? x : 0; }
static inline double ref_relu_derivative(double x) { return x > 0; }
static inline double ref_silu(double x) { return x / (1 + exp(-x)); }

static inline double ref_silu_derivative(double x) {
    double s = 1 / (1 + exp(-x));
    return s + x * s * (1 - s);  // x s, and ds/dx = s (1 - s)
}

/* ---- Random noise on activations ------------------------------------------------------------- */

/* The uniform number that element c of row n draws. */
static inline float ref_uniform(const Noise *noise, int n, uint32_t c) {
    Random4 words = random4(noise->seed, noise->purpose, noise->step, noise->sequence[n],
                            (uint32_t)noise->position[n], c / 4);
    return random_uniform(words.v[c % 4]);
}

/* What dropout multiplies element c of row n with: 0, or 1 / (1 - p). */
static inline double ref_keep(const Noise *noise, int n, uint32_t c) {
    if (noise->p == 0) return 1;
    return ref_uniform(noise, n, c) >= noise->p ? 1 / (1 - (double)noise->p) : 0;
}

/* x (N,C). dx = keep * dout: the same function applied to the gradient. */
static inline void ref_dropout(double *x, int N, int C, Noise noise) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) x[(size_t)n * C + c] *= ref_keep(&noise, n, (uint32_t)c);
}

/* x (N,C), magnitude (N). The gradient passes through unchanged. */
static inline void ref_add_uniform_noise(double *x, const double *magnitude, int N, int C,
                                         Noise noise) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            x[(size_t)n * C + c] +=
                magnitude[n] * (2.0 * (double)ref_uniform(&noise, n, (uint32_t)c) - 1);
}

/* ---- Causal self-attention, with the explicit T x T matrix of probabilities of one head of one
 * sequence  */

/* P (T,T), lse (T) with stride NH; q and k are the head's first query and key, rows 3C apart.
 * P[t][u] = 0 for u > t. */
static inline void ref_attention_probabilities(double *P, double *lse, const double *q,
                                               const double *k, int T, int NH, int hs) {
    size_t row = 3 * (size_t)NH * hs;
    for (int t = 0; t < T; t++) {
        double *score = P + (size_t)t * T, largest = -INFINITY, sum = 0;
        for (int u = 0; u < T; u++) {
            score[u] = 0;
            for (int i = 0; i < hs; i++) score[u] += q[t * row + i] * k[u * row + i] / sqrt(hs);
            if (u <= t) largest = fmax(largest, score[u]);
        }
        for (int u = 0; u <= t; u++) sum += exp(score[u] - largest);
        lse[(size_t)t * NH] = largest + log(sum);
        for (int u = 0; u < T; u++) score[u] = u <= t ? exp(score[u] - lse[(size_t)t * NH]) : 0;
    }
}

/* What dropout multiplies the probability of key u, for the query in row n, with in head h. */
static inline double ref_attention_keep(const Noise *noise, int n, int u, int h, int NH) {
    return ref_keep(noise, n, (uint32_t)(4 * (u / 4 * NH + h) + u % 4));
}

/* out (N,C), lse (N,NH), qkv (N,3C), start (S+1) */
static inline void ref_attention_forward(double *out, double *lse, const double *qkv,
                                         const int *start, int S, int NH, int hs, Noise noise) {
    int C = NH * hs;
    for (int s = 0; s < S; s++)
        for (int h = 0; h < NH; h++) {
            int first = start[s], T = start[s + 1] - start[s];
            size_t row = 3 * (size_t)C, square = (size_t)T * T;
            const double *q = qkv + first * row + h * hs, *v = q + 2 * C;
            double *P = xcalloc(square, sizeof *P);
            ref_attention_probabilities(P, lse + (size_t)first * NH + h, q, q + C, T, NH, hs);
            for (int t = 0; t < T; t++)
                for (int i = 0; i < hs; i++) {
                    double sum = 0;
                    for (int u = 0; u <= t; u++)
                        sum += ref_attention_keep(&noise, first + t, u, h, NH) *
                               P[(size_t)t * T + u] * v[u * row + i];
                    out[(size_t)(first + t) * C + h * hs + i] = sum;
                }
            free(P);
        }
}

/* dqkv (N,3C) =, dout (N,C). out and lse, which the fast kernel is given to save work, are not
 * needed here. */
static inline void ref_attention_backward(double *dqkv, const double *dout, const double *qkv,
                                          const int *start, int S, int NH, int hs, Noise noise) {
    int C = NH * hs;
    size_t row = 3 * (size_t)C;
    memset(dqkv, 0, (size_t)start[S] * row * sizeof *dqkv);
    for (int s = 0; s < S; s++)
        for (int h = 0; h < NH; h++) {
            int first = start[s], T = start[s + 1] - start[s];
            const double *q = qkv + first * row + h * hs, *k = q + C, *v = k + C;
            double *dq = dqkv + first * row + h * hs, *dk = dq + C, *dv = dk + C;
            size_t square = (size_t)T * T, head_rows = (size_t)T * NH;
            double *P = xcalloc(square, sizeof *P), *lse = xcalloc(head_rows, sizeof *lse),
                   *dP = xcalloc((size_t)T, sizeof *dP);
            ref_attention_probabilities(P, lse, q, k, T, NH, hs);
            for (int t = 0; t < T; t++) {
                const double *P_t = P + (size_t)t * T,
                             *dout_t = dout + (size_t)(first + t) * C + h * hs;
                double P_dP = 0;
                for (int u = 0; u <= t; u++) {
                    // out[t] += keep * P[t][u] * v[u]
                    double keep = ref_attention_keep(&noise, first + t, u, h, NH);
                    dP[u] = 0;
                    for (int i = 0; i < hs; i++) {
                        dv[u * row + i] += keep * P_t[u] * dout_t[i];
                        dP[u] += keep * dout_t[i] * v[u * row + i];
                    }
                    P_dP += P_t[u] * dP[u];
                }
                for (int u = 0; u <= t; u++) {
                    // P[t] = softmax(score[t]);  score[t][u] = q[t] . k[u] / sqrt(hs)
                    double dscore = P_t[u] * (dP[u] - P_dP);
                    for (int i = 0; i < hs; i++) {
                        dq[t * row + i] += dscore * k[u * row + i] / sqrt(hs);
                        dk[u * row + i] += dscore * q[t * row + i] / sqrt(hs);
                    }
                }
            }
            free(P);
            free(lse);
            free(dP);
        }
}

/* ---- The loss head --------------------------------------------------------------------------- */

/* logits (R,V) rows ldv apart, inp (R,C), wte (V,C) */
static inline void ref_head_forward(double *logits, const double *inp, const double *wte, int R,
                                    int C, int V, int ldv) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            double sum = 0;
            for (int c = 0; c < C; c++) sum += inp[(size_t)r * C + c] * wte[(size_t)v * C + c];
            logits[(size_t)r * ldv + v] = sum;
        }
}

static inline void ref_head_backward(double *dinp, double *dwte, const double *dlogits,
                                     const double *inp, const double *wte, int R, int C, int V,
                                     int ldv) {
    if (dinp) memset(dinp, 0, (size_t)R * C * sizeof *dinp);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            for (int c = 0; c < C; c++) {
                // logits[r][v] += inp[r][c] * wte[v][c]
                double dlogit = dlogits[(size_t)r * ldv + v];
                if (dinp) dinp[(size_t)r * C + c] += dlogit * wte[(size_t)v * C + c];
                if (dwte) dwte[(size_t)v * C + c] += dlogit * inp[(size_t)r * C + c];
            }
}

static inline int ref_argmax(const double *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static inline double ref_log_sum_exp(const double *x, int n) {
    double largest = x[ref_argmax(x, n)], sum = 0;
    for (int i = 0; i < n; i++) sum += exp(x[i] - largest);
    return largest + log(sum);
}

/* logp, entropy, lse, best, target (R) */
static inline void ref_logprob_forward(double *logp, double *entropy, double *lse, int *best,
                                       const double *logits, const int *target, int R, int V,
                                       int ldv) {
    for (int r = 0; r < R; r++) {
        const double *logit = logits + (size_t)r * ldv;
        lse[r] = ref_log_sum_exp(logit, V);
        logp[r] = logit[target[r]] - lse[r];
        best[r] = ref_argmax(logit, V);
        entropy[r] = 0;
        for (int v = 0; v < V; v++) entropy[r] -= exp(logit[v] - lse[r]) * (logit[v] - lse[r]);
    }
}

/* logits become their own gradient; dentropy may be NULL, and then entropy, too */
static inline void ref_logprob_backward(double *logits, const double *lse, const double *entropy,
                                        const int *target, const double *dlogp,
                                        const double *dentropy, int R, int V, int ldv) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            double *logit = logits + (size_t)r * ldv + v, log_p = *logit - lse[r], p = exp(log_p);
            // logp = logits[target] - lse,  and dlse/dlogits[v] = p[v]
            double dlogit = dlogp[r] * ((v == target[r]) - p);
            // entropy = -sum p log p,  and dp[w]/dlogits[v] = p[w] (1[v = w] - p[v])
            if (dentropy) dlogit -= dentropy[r] * p * (log_p + entropy[r]);
            *logit = dlogit;
        }
}

/* KL(p || q) of softmax(x) and softmax(y), V of each */
static inline double ref_kl(const double *x, const double *y, int V) {
    double lse_x = ref_log_sum_exp(x, V), lse_y = ref_log_sum_exp(y, V), sum = 0;
    for (int v = 0; v < V; v++) sum += exp(x[v] - lse_x) * ((x[v] - lse_x) - (y[v] - lse_y));
    return sum;
}

/* ---- Sampling, one row ----------------------------------------------------------------------- */

typedef struct {
    double p;
    int token;
} RefCandidate;

/* The likelier first; of equals the lower token. */
static inline int ref_likelier(const void *a, const void *b) {
    const RefCandidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

/* p (V) becomes the distribution drawn from: softmax(logits / temperature), cut to the top_k
   likeliest (0: all) and then to the smallest set of probability top_p (1: all) of the rest. */
static inline void ref_sample_distribution(double *p, const double *logits, int V,
                                           double temperature, int top_k, double top_p) {
    RefCandidate *candidate = xcalloc((size_t)V, sizeof *candidate);
    double largest = logits[ref_argmax(logits, V)], total = 0, sum = 0;
    for (int v = 0; v < V; v++) {
        candidate[v] = (RefCandidate){exp((logits[v] - largest) / temperature), v};
        p[v] = 0;
    }
    qsort(candidate, (size_t)V, sizeof *candidate, ref_likelier);
    int limit = top_k > 0 && top_k < V ? top_k : V, kept = 0;
    for (int i = 0; i < limit; i++) total += candidate[i].p;
    while (kept < limit && (top_p >= 1 || sum < top_p * total)) sum += candidate[kept++].p;
    for (int i = 0; i < kept; i++) p[candidate[i].token] = candidate[i].p / sum;
    free(candidate);
}

/* The first token, in ascending order, whose cumulative probability exceeds uniform. */
static inline int ref_sample(const double *p, int V, double uniform) {
    double sum = 0;
    int last = 0;
    for (int v = 0; v < V; v++) {
        if (p[v] == 0) continue;
        last = v;
        sum += p[v];
        if (sum > uniform) break;
    }
    return last;
}

/* ---- The optimiser --------------------------------------------------------------------------- */

static inline double ref_sum_of_squares(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

static inline void ref_adamw(double *w, double *g, double *m, double *v, size_t n, double scale,
                             double lr, double beta1, double beta2, double epsilon, double decay,
                             int t) {
    for (size_t i = 0; i < n; i++) {
        double gradient = g[i] * scale;
        m[i] = beta1 * m[i] + (1 - beta1) * gradient;
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        double m_hat = m[i] / (1 - pow(beta1, t)), v_hat = v[i] / (1 - pow(beta2, t));
        w[i] -= lr * (m_hat / (sqrt(v_hat) + epsilon) + decay * w[i]);
        g[i] = 0;
    }
}

/* ---- The exact meaning of a product, in single precision: fused multiply-adds from a starting
 * value, k ascending  */

/* The kernels must give these bits, whatever their blocking. */

/* a and b are K numbers each, a_stride and b_stride apart */
static inline float ref_chain(float start, const float *a, size_t a_stride, const float *b,
                              size_t b_stride, int K) {
    float sum = start;
    for (int k = 0; k < K; k++) sum = fmaf(a[k * a_stride], b[k * b_stride], sum);
    return sum;
}

/* x rounded to bf16, the upper half of a float: to nearest, ties to even. NaN stays NaN, and a
   denormal becomes 0. */
static inline float ref_flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

static inline float ref_bf16(float x) {
    union {
        float f;
        uint32_t w;
    } u = {ref_flushed(x)};
    if (isnan(x)) return x;
    const uint32_t lower = u.w & 0xffff, odd = u.w >> 16 & 1;
    u.w -= lower;
    if (lower > 0x8000 || (lower == 0x8000 && odd)) u.w += 0x10000;
    return u.f;
}

/* x y + z. A result that is below the smallest normal number when it is rounded to 24 bits, as if
   there were no smallest exponent, becomes 0. */
static inline float ref_fma_flushed(float x, float y, float z) {
    const double exact = (double)x * (double)y + (double)z;  // near 2^-126, where it matters
    const float sum = fmaf(x, y, z);
    const bool tiny = fabsf(sum) <= 0x1p-126f && fabs(exact) < 0x1p-126 * (1 - 0x1p-25);
    return tiny ? copysignf(0, sum) : sum;
}

/* The chain of a product of bf16: two terms at a time, the odd one first, with denormals as 0. */
static inline float ref_chain_bf16(float start, const float *a, size_t a_stride, const float *b,
                                   size_t b_stride, int K) {
    float sum = ref_flushed(start);
    for (int pair = 0; pair < K; pair += 2)
        for (int k = pair + 1; k >= pair; k--) {
            const float x = k < K ? ref_bf16(a[(size_t)k * a_stride]) : 0,
                        y = k < K ? ref_bf16(b[(size_t)k * b_stride]) : 0;
            sum = ref_fma_flushed(x, y, sum);
        }
    return sum;
}

/* The bias gradient is a chain without a product: plain additions, k ascending. */
static inline float ref_sum_chain(float start, const float *a, size_t a_stride, int K) {
    float sum = start;
    for (int k = 0; k < K; k++) sum += a[k * a_stride];
    return sum;
}

#endif
