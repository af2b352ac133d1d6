/*
 * head.c - the loss head, the scalar head and sampling, on a CPU.
 */
#include "model/simd.h"

/* ---- The loss head --------------------------------------------------------------------------- */

void gather_rows(real *out, const real *inp, const int *row, int R, int C) {
    for (int r = 0; r < R; r++)
        memcpy(out + (size_t)r * (size_t)C, inp + (size_t)row[r] * (size_t)C,
               sizeof(real) * (size_t)C);
}

void scatter_rows(real *out, const real *inp, const int *row, int R, int C) {
    for (int r = 0; r < R; r++)
        memcpy(out + (size_t)row[r] * (size_t)C, inp + (size_t)r * (size_t)C,
               sizeof(real) * (size_t)C);
}

void scale_rows(real *x, const float *factor, int R, int C) {
#pragma omp parallel for
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) x[(size_t)r * (size_t)C + (size_t)c] *= factor[r];
}

void head_forward(real *logits, const real *inp, const real *wte, int R, int C, int V, int ldv) {
    product(R, V, C, matrix(inp, C), transposed(weight_matrix(wte, C)), logits, (size_t)ldv, NULL,
            false);
}

void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv) {
    // logits = inp wte^T:  dinp = dlogits wte,  dwte = dlogits^T inp
    if (dinp)
        product(R, C, V, matrix(dlogits, ldv), weight_matrix(wte, C), dinp, (size_t)C, NULL, false);
    if (dwte)
        product(V, C, R, transposed(matrix(dlogits, ldv)), matrix(inp, C), dwte, (size_t)C, NULL,
                true);
}

/* The largest element of a row, and its lowest index. A NaN is never the largest, but makes the
   sums below NaN. */
static float row_max(const float *x, int V, int *where) {
    Vec top = all(-INFINITY);
    Vec index = none(), here = none();  // as floats, which are exact below 2^24
    for (int i = 0; i < W; i++) here[i] = (float)i;
    int j = 0;
    for (; j + W <= V; j += W, here = here + all(W)) {
        const Vec v = load(x + j, W);
        const Mask more = greater(v, top);
        top = choose(more, v, top);
        index = choose(more, here, index);
    }
    float tops[W], indices[W], best = -INFINITY;
    store(tops, top, W);
    store(indices, index, W);
    *where = 0;
    for (int i = 0; i < W && j; i++)
        if (tops[i] > best || (tops[i] == best && (int)indices[i] < *where)) {
            best = tops[i];
            *where = (int)indices[i];
        }
    for (; j < V; j++)
        if (x[j] > best) {
            best = x[j];
            *where = j;
        }
    return best;
}

/* Returns sum_j e^((x_j - top) beta). *weighted, unless NULL, becomes sum_j e^(..) (x_j - top)
   beta. Each block of 512 is summed in eight lanes of float, and the blocks in double, because a
   sum of 50,257 terms in float would lose four digits. */
static double row_sum(const float *x, int V, float top, float beta, double *weighted) {
    double sum = 0, more = 0;
    for (int j0 = 0; j0 < V; j0 += 512) {
        Vec8 s = _mm256_setzero_ps(), w = s;
        int end = min_int(j0 + 512, V);
        for (int j = j0; j < end; j += W) {
            const Vec d = (load(x + j, end - j) - all(top)) * all(beta), e = cut(vexp(d), end - j);
            s = add_lanes(s, e);
            if (weighted)
                // bounded, because 0 * -infinity would be NaN
                w = fma_lanes(e, larger(all(-1e4f), d), w);
        }
        sum += (double)sum8(s);
        more += (double)sum8(w);
    }
    if (weighted) *weighted = more;
    return sum;
}

void logprob_forward(float *logp, float *entropy, float *lse, int *best, const real *logits,
                     const int *target, float beta, int R, int V, int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits + (size_t)r * (size_t)ldv;
        int where;
        double weighted;
        float top = row_max(x, V, &where);
        double sum = row_sum(x, V, top, beta, entropy ? &weighted : NULL), log_sum = log(sum);
        lse[r] = (float)((double)top * (double)beta + log_sum);
        // the same bits as in sample()
        logp[r] = (float)((double)(x[target[r]] - top) * (double)beta - log_sum);
        // -sum p log p with log p = (x - top) beta - log_sum
        if (entropy) entropy[r] = (float)(log_sum - weighted / sum);
        if (best) best[r] = where;
    }
}

void logprob_backward(real *logits, const float *lse, const float *entropy, const int *target,
                      const float *dlogp, const float *dentropy, float beta, int R, int V,
                      int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        float *x = logits + (size_t)r * (size_t)ldv;
        Vec lse_ = all(lse[r]), minus_dlogp = all(-dlogp[r]), beta_ = all(beta);
        bool with_entropy = dentropy && dentropy[r] != 0;
        for (int j = 0; j < V; j += W) {
            // log p_j = beta x_j - lse:   d log p[target] / d x_j = beta (1[j = target] - p_j)
            // entropy = -sum p log p:   d entropy / d x_j = -beta p_j (log p_j + entropy)
            Vec log_p = beta_ * load(x + j, V - j) - lse_, p = vexp(log_p), factor = minus_dlogp;
            if (with_entropy)
                factor =
                    fnma_(all(dentropy[r]), larger(all(-1e4f), log_p) + all(entropy[r]), factor);
            store(x + j, beta_ * (p * factor), V - j);
        }
        x[target[r]] += beta * dlogp[r];
        for (int j = V; j < ldv; j++) x[j] = 0;
    }
}

void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits_p + (size_t)r * (size_t)ldv,
                    *y = logits_q + (size_t)r * (size_t)ldv;
        const Vec beta_ = all(beta), lse_x = all(lse_p[r]), lse_y = all(lse_q[r]);
        double sum = 0;  // in blocks of 512, as in row_sum
        for (int j0 = 0; j0 < V; j0 += 512) {
            Vec8 s = _mm256_setzero_ps();
            for (int j = j0, end = min_int(j0 + 512, V); j < end; j += W) {
                Vec log_p = beta_ * load(x + j, end - j) - lse_x;
                Vec log_q = beta_ * load(y + j, end - j) - lse_y, p = cut(vexp(log_p), end - j);
                // the term is 0 where p is 0, even if a logit of -infinity makes the difference NaN
                Vec term = p * (log_p - log_q);
                s = add_lanes(s, zero_where(equal(p, none()), term));
            }
            sum += (double)sum8(s);
        }
        kl[r] = (float)sum;
    }
}

float largest_difference(const real *a, const real *b, int R, int V, int ldv) {
    float top = 0;
#pragma omp parallel for reduction(max : top)
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) {
            const size_t at = (size_t)r * (size_t)ldv + (size_t)j;
            float d = fabsf(a[at] - (b ? b[at] : 0));
            if (isnan(d)) d = INFINITY;
            if (d > top) top = d;
        }
    return top;
}

/* ---- The scalar head ------------------------------------------------------------------------- */

void value_forward(float *value, const real *inp, const real *weight, const real *bias, int N,
                   int C) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        Vec8 sum = _mm256_setzero_ps();
        for (int c = 0; c < C; c += W)
            sum = fma_lanes(load(inp + (size_t)n * (size_t)C + c, C - c), load(weight + c, C - c),
                            sum);
        value[n] = sum8(sum) + (bias ? *bias : 0);
    }
}

void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C) {
    // value[n] = sum_c inp[n][c] weight[c] + bias
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const Vec d = all(dvalue[n]);
        float *to = dinp + (size_t)n * (size_t)C;
        if (dvalue[n] == 0) continue;
        for (int c = 0; c < C; c += W)
            store(to + c, fma_(d, load(weight + c, C - c), load(to + c, C - c)), C - c);
    }
    if (dweight) {
#pragma omp parallel for
        for (int c0 = 0; c0 < C; c0 += 32)  // threads divide the columns; each adds tokens in order
            for (int n = 0; n < N; n++)
                for (int c = c0; c < min_int(c0 + 32, C) && dvalue[n] != 0; c += W)
                    store(dweight + c,
                          fma_(all(dvalue[n]), load(inp + (size_t)n * (size_t)C + c, C - c),
                               load(dweight + c, C - c)),
                          C - c);
    }
    if (dbias)
        for (int n = 0; n < N; n++) *dbias += dvalue[n];
}

/* ---- Sampling -------------------------------------------------------------------------------- */

typedef struct {
    float logit;
    int id;
} Candidate;

/* The order in which top_k and top_p select tokens: the more likely first; of two that are equally
   likely, the one with the lower id. */
static inline bool before(Candidate a, Candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Moves the first elements of c (n), in the order of before(), to its front: `most` of them, or
   fewer if the sum of their weights reaches `enough`. Returns how many. A quickselect (Hoare 1961)
   by count and by weight: only the part that contains the end is partitioned again. */
static int first_of(Candidate *c, int n, const float *weight, int most, double enough) {
    int low = 0, high = n;  // elements before low are selected, from high on they are not
    double sum = 0;         // of the weights of elements before low
    while (low < high) {
        Candidate *pivot = &c[low + (high - low) / 2], p = *pivot;
        *pivot = c[high - 1];
        c[high - 1] = p;
        int m = low;
        double more = 0;
        for (int i = low; i < high - 1; i++)
            if (before(c[i], p)) {
                Candidate t = c[i];
                c[i] = c[m];
                c[m++] = t;
                more += (double)weight[t.id];
            }
        c[high - 1] = c[m];
        c[m] = p;
        if (m >= most || sum + more >= enough) {
            high = m;
            continue;
        }
        sum += more + (double)weight[p.id];
        low = m + 1;
        if (sum >= enough) break;
    }
    return low;
}

/* Samples with top_k and top_p. 32 rows of 50,257 logits take 6 ms with top_k 50, and 29 ms with
   top_p 0.9 and nearly uniform probabilities. Sorting the vocabulary took 48 and 100 ms. */
static int sample_restricted(const float *x, int V, float top, float beta, int top_k, float top_p,
                             double u) {
    float *weight = workspace(3 * (size_t)V + 16);
    Candidate *c = (Candidate *)(weight + round_up(V, 16));
    for (int j = 0; j < V; j++) c[j] = (Candidate){x[j], j};
    for (int j = 0; j < V; j += W)
        store(weight + j, vexp((load(x + j, V - j) - all(top)) * all(beta)), V - j);
    int n = top_k > 0 && top_k < V ? first_of(c, V, weight, top_k, INFINITY) : V;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += (double)weight[c[i].id];
    if (top_p < 1) {
        n = max_int(1, first_of(c, n, weight, n, (double)top_p * total));
        total = 0;
        for (int i = 0; i < n; i++) total += (double)weight[c[i].id];
    }
    Candidate last = c[0];
    for (int i = 1; i < n; i++)
        if (before(last, c[i])) last = c[i];
    int token = c[0].id;
    for (int j = 0; j < V; j++) {
        if (weight[j] == 0 || before(last, (Candidate){x[j], j})) continue;
        token = j;
        sum += (double)weight[j];
        if (sum > u * total) break;
    }
    return token;
}

/* Samples from the whole vocabulary: finds the block of 512 in which the cumulative sum exceeds
   u * total, then the token in this block. */
static int sample_all(const float *x, int V, float top, float beta, double total, double u) {
    double sum = 0;
    int last = 0;
    for (int j0 = 0; j0 < V; j0 += 512) {
        int n = min_int(512, V - j0);
        double block = row_sum(x + j0, n, top, beta, NULL);
        if (block > 0) last = j0;
        if (sum + block > u * total) break;
        sum += block;
    }
    int token = last;
    for (int j = last; j < min_int(last + 512, V); j++) {
        double p = exp((double)(x[j] - top) * (double)beta);
        if (p > 0) token = j;
        sum += p;
        if (p > 0 && sum > u * total) break;
    }
    return token;
}

void sample(int *token, float *logp, const real *logits, int R, int V, int ldv, float temperature,
            int top_k, float top_p, const float *uniform) {
    const float beta = temperature > 0 ? 1.0f / temperature : 1.0f;
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits + (size_t)r * (size_t)ldv;
        int where;
        float top = row_max(x, V, &where);
        double total = row_sum(x, V, top, beta, NULL);
        if (temperature <= 0 || top_k == 1)
            token[r] = where;
        else if (top_k > 0 || top_p < 1)
            token[r] = sample_restricted(x, V, top, beta, top_k, top_p, (double)uniform[r]);
        else
            token[r] = sample_all(x, V, top, beta, total, (double)uniform[r]);
        if (logp) logp[r] = (float)((double)(x[token[r]] - top) * (double)beta - log(total));
    }
}
