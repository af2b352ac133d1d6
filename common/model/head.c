/*
 * head.c - the loss head, the scalar head and sampling, on a CPU.
 */
#include "model/kernels.h"
#include "model/cpu.h"
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
    product(R, V, C, (Matrix){inp, (size_t)C, false, NULL}, (Matrix){wte, (size_t)C, true, NULL},
            logits, (size_t)ldv, NULL, false);
}

void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv) {
    // logits = inp wte^T:  dinp = dlogits wte,  dwte = dlogits^T inp
    if (dinp)
        product(R, C, V, (Matrix){dlogits, (size_t)ldv, false, NULL},
                (Matrix){wte, (size_t)C, false, NULL}, dinp, (size_t)C, NULL, false);
    if (dwte)
        product(V, C, R, (Matrix){dlogits, (size_t)ldv, true, NULL},
                (Matrix){inp, (size_t)C, false, NULL}, dwte, (size_t)C, NULL, true);
}

/* The largest element of a row, and its lowest index. A NaN is never the largest, but makes the
   sums below NaN. */
static float row_max(const float *x, int V, int *where) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    __m256 index = _mm256_setzero_ps();  // as floats, which are exact below 2^24
    __m256 here = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    int j = 0;
    for (; j + 8 <= V; j += 8, here = _mm256_add_ps(here, _mm256_set1_ps(8))) {
        __m256 v = _mm256_loadu_ps(x + j), more = _mm256_cmp_ps(v, top, _CMP_GT_OQ);
        top = _mm256_blendv_ps(top, v, more);
        index = _mm256_blendv_ps(index, here, more);
    }
    float tops[8], indices[8], best = -INFINITY;
    _mm256_storeu_ps(tops, top);
    _mm256_storeu_ps(indices, index);
    *where = 0;
    for (int i = 0; i < 8 && j; i++)
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
        __m256 s = _mm256_setzero_ps(), w = _mm256_setzero_ps();
        int end = min_int(j0 + 512, V);
        for (int j = j0; j < end; j += 8) {
            __m256 d = _mm256_mul_ps(_mm256_sub_ps(load(x + j, end - j), _mm256_set1_ps(top)),
                                     _mm256_set1_ps(beta)),
                   e = exp8(d);
            if (end - j < 8) e = _mm256_and_ps(e, _mm256_castsi256_ps(lanes(end - j)));
            s = _mm256_add_ps(s, e);
            if (weighted)
                // bounded, because 0 * -infinity would be NaN
                w = _mm256_fmadd_ps(e, _mm256_max_ps(_mm256_set1_ps(-1e4f), d), w);
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
        __m256 lse8 = _mm256_set1_ps(lse[r]), minus_dlogp = _mm256_set1_ps(-dlogp[r]),
               beta8 = _mm256_set1_ps(beta);
        bool with_entropy = dentropy && dentropy[r] != 0;
        for (int j = 0; j < V; j += 8) {
            // log p_j = beta x_j - lse:   d log p[target] / d x_j = beta (1[j = target] - p_j)
            // entropy = -sum p log p:   d entropy / d x_j = -beta p_j (log p_j + entropy)
            __m256 log_p = _mm256_sub_ps(_mm256_mul_ps(beta8, load(x + j, V - j)), lse8),
                   p = exp8(log_p), factor = minus_dlogp;
            if (with_entropy)
                factor = _mm256_fnmadd_ps(_mm256_set1_ps(dentropy[r]),
                                          _mm256_add_ps(_mm256_max_ps(_mm256_set1_ps(-1e4f), log_p),
                                                        _mm256_set1_ps(entropy[r])),
                                          factor);
            store(x + j, _mm256_mul_ps(beta8, _mm256_mul_ps(p, factor)), V - j);
        }
        x[target[r]] += beta * dlogp[r];
    }
}

void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits_p + (size_t)r * (size_t)ldv,
                    *y = logits_q + (size_t)r * (size_t)ldv;
        const __m256 beta8 = _mm256_set1_ps(beta), lse_x = _mm256_set1_ps(lse_p[r]),
                     lse_y = _mm256_set1_ps(lse_q[r]);
        double sum = 0;  // in blocks of 512, as in row_sum
        for (int j0 = 0; j0 < V; j0 += 512) {
            __m256 s = _mm256_setzero_ps();
            for (int j = j0, end = min_int(j0 + 512, V); j < end; j += 8) {
                __m256 log_p = _mm256_sub_ps(_mm256_mul_ps(beta8, load(x + j, end - j)), lse_x);
                __m256 log_q = _mm256_sub_ps(_mm256_mul_ps(beta8, load(y + j, end - j)), lse_y),
                       p = exp8(log_p);
                if (end - j < 8) p = _mm256_and_ps(p, _mm256_castsi256_ps(lanes(end - j)));
                // the term is 0 where p is 0, even if a logit of -infinity makes the difference NaN
                __m256 term = _mm256_mul_ps(p, _mm256_sub_ps(log_p, log_q));
                s = _mm256_add_ps(
                    s, _mm256_andnot_ps(_mm256_cmp_ps(p, _mm256_setzero_ps(), _CMP_EQ_OQ), term));
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
        __m256 sum = _mm256_setzero_ps();
        for (int c = 0; c < C; c += 8)
            sum = _mm256_fmadd_ps(load(inp + (size_t)n * (size_t)C + c, C - c),
                                  load(weight + c, C - c), sum);
        value[n] = sum8(sum) + (bias ? *bias : 0);
    }
}

void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C) {
    // value[n] = sum_c inp[n][c] weight[c] + bias
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const __m256 d = _mm256_set1_ps(dvalue[n]);
        float *to = dinp + (size_t)n * (size_t)C;
        if (dvalue[n] == 0) continue;
        for (int c = 0; c < C; c += 8)
            store(to + c, _mm256_fmadd_ps(d, load(weight + c, C - c), load(to + c, C - c)), C - c);
    }
    if (dweight) {
#pragma omp parallel for
        for (int c0 = 0; c0 < C; c0 += 32)  // threads divide the columns; each adds tokens in order
            for (int n = 0; n < N; n++)
                for (int c = c0; c < min_int(c0 + 32, C) && dvalue[n] != 0; c += 8)
                    store(dweight + c,
                          _mm256_fmadd_ps(_mm256_set1_ps(dvalue[n]),
                                          load(inp + (size_t)n * (size_t)C + c, C - c),
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
    for (int j = 0; j < V; j += 8)
        store(weight + j,
              exp8(_mm256_mul_ps(_mm256_sub_ps(load(x + j, V - j), _mm256_set1_ps(top)),
                                 _mm256_set1_ps(beta))),
              V - j);
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
