/*
 * layers.c - the layers that are no product, on a CPU: embedding, norms, activation functions,
 * random noise; and the optimiser.
 */
#include "model/simd.h"

/* ---- Embedding ------------------------------------------------------------------------------- */

/* Row t of wte: with bf16, rounded (kernels.h). */
static inline Vec embedding(const real *wte, size_t at, int n) {
    if (cpu_precision == FLOAT32) return load(wte + at, n);
    if (cpu_precision == BF16) return rounded(load(wte + at, n));
    const uint16_t *half = (const uint16_t *)(const void *)wte + at;
    UVec x = {0};
    for (int i = 0; i < n && i < W; i++) x[i] = (uint32_t)half[i] << 16;
    return (Vec)x;
}

void embed_forward(real *out, const int *token, const int *position, const real *wte,
                   const real *wpe, int N, int C) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const size_t t = (size_t)token[n] * (size_t)C;
        const float *p = wpe ? wpe + (size_t)position[n] * (size_t)C : NULL;
        float *o = out + (size_t)n * (size_t)C;
        for (int c = 0; c < C; c += W) {
            Vec x = embedding(wte, t + (size_t)c, C - c);
            if (p) x = x + load(p + c, C - c);
            store(o + c, x, C - c);
        }
    }
}

/* A token may occur several times, so threads divide the channels, not the tokens. */
void embed_backward(float *dwte, float *dwpe, const real *dout, const int *token,
                    const int *position, int N, int C) {
#pragma omp parallel for
    for (int c0 = 0; c0 < C; c0 += 64)
        for (int n = 0; n < N; n++)
            for (int c = c0; c < min_int(c0 + 64, C); c++) {
                // out[n][c] = wte[token[n]][c] + wpe[position[n]][c]
                float d = dout[(size_t)n * (size_t)C + (size_t)c];
                if (dwte) dwte[(size_t)token[n] * (size_t)C + (size_t)c] += d;
                if (dwpe) dwpe[(size_t)position[n] * (size_t)C + (size_t)c] += d;
            }
}

/* ---- Sums and factors of activations --------------------------------------------------------- */

void add_activations(real *out, const real *x, const real *y, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        store(out + i, load(x + i, left) + load(y + i, left), left);
    }
}

void scale(real *x, float factor, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

/* ---- Residual and layer norm ----------------------------------------------------------------- */

void layernorm_forward(real *sum, real *out, float *mean, float *rstd, const real *x, const real *y,
                       const real *weight, const real *bias, int N, int C, float epsilon) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *row = x + (size_t)n * (size_t)C;
        Vec8 total = _mm256_setzero_ps();
        if (y) {
            const float *more = y + (size_t)n * (size_t)C;
            float *to = sum + (size_t)n * (size_t)C;
            for (int c = 0; c < C; c += W) {
                Vec s = load(row + c, C - c) + load(more + c, C - c);
                store(to + c, s, C - c);
                total = add_lanes(total, s);
            }
            row = to;
        } else {
            for (int c = 0; c < C; c += W) total = add_lanes(total, load(row + c, C - c));
        }
        float m = sum8(total) / (float)C;
        const Vec mean_ = all(m);
        Vec8 square = _mm256_setzero_ps();
        // the variance in a second pass, to avoid cancellation when the mean is large
        for (int c = 0; c < C; c += W) {
            const Vec d = cut(load(row + c, C - c) - mean_, C - c);
            square = fma_lanes(d, d, square);
        }
        float r = 1.0f / sqrtf(sum8(square) / (float)C + epsilon);
        Vec rstd_ = all(r);
        for (int c = 0; c < C; c += W) {
            Vec normed = (load(row + c, C - c) - mean_) * rstd_;
            store(out + (size_t)n * (size_t)C + c,
                  fma_(normed, load(weight + c, C - c), load(bias + c, C - c)), C - c);
        }
        mean[n] = m;
        rstd[n] = r;
    }
}

void layernorm_backward(real *dsum, float *dweight, float *dbias, const real *dout, const real *sum,
                        const float *mean, const float *rstd, const real *weight, int N, int C) {
    // out = xhat * weight + bias, xhat = (sum - mean) * rstd:
    // with g = dout * weight,  dsum += rstd * (g - mean(g) - xhat * mean(g * xhat))
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *dy = dout + (size_t)n * (size_t)C, *x = sum + (size_t)n * (size_t)C;
        float *dx = dsum + (size_t)n * (size_t)C;
        Vec mean_ = all(mean[n]), rstd_ = all(rstd[n]);
        Vec8 g_total = _mm256_setzero_ps(), gx_total = g_total;
        for (int c = 0; c < C; c += W) {
            Vec g = load(dy + c, C - c) * load(weight + c, C - c);
            Vec xhat = (load(x + c, C - c) - mean_) * rstd_;
            g_total = add_lanes(g_total, g);
            gx_total = fma_lanes(g, xhat, gx_total);
        }
        Vec g_mean = all(sum8(g_total) / (float)C), gx_mean = all(sum8(gx_total) / (float)C);
        for (int c = 0; c < C; c += W) {
            Vec g = load(dy + c, C - c) * load(weight + c, C - c);
            Vec xhat = (load(x + c, C - c) - mean_) * rstd_;
            Vec d = g - g_mean - xhat * gx_mean;
            store(dx + c, fma_(rstd_, d, load(dx + c, C - c)), C - c);
        }
    }
    if (!dweight && !dbias) return;
#pragma omp parallel for
    for (int c0 = 0; c0 < C; c0 += 32)  // threads divide the columns; each adds tokens in order
        for (int n = 0; n < N; n++)
            for (int c = c0; c < min_int(c0 + 32, C); c += W) {
                Vec dy = load(dout + (size_t)n * (size_t)C + c, C - c);
                Vec xhat =
                    (load(sum + (size_t)n * (size_t)C + c, C - c) - all(mean[n])) * all(rstd[n]);
                if (dweight) store(dweight + c, fma_(dy, xhat, load(dweight + c, C - c)), C - c);
                if (dbias) store(dbias + c, dy + load(dbias + c, C - c), C - c);
            }
}

/* ---- GELU ------------------------------------------------------------------------------------ */

/* 0.5 x (1 + tanh(u)) = x s(2u) with the logistic function s(z) = 1 / (1 + e^-z), which needs one
   exponential and no tanh. */

static const float GELU_A = 0.7978845608f;  // sqrt(2 / pi)
static const float GELU_B = 0.044715f;      // coefficient of the cubic term

/* s(2u), u = A (x + B x^3) */
static inline Vec gelu_gate(Vec x) {
    Vec xx = x * x;
    Vec u = x * fma_(xx, all(GELU_A * GELU_B), all(GELU_A));
    Vec e = vexp(u * all(-2.0f));
    return all(1.0f) / (all(1.0f) + e);
}

void gelu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        Vec x = load(inp + i, left);
        store(out + i, x * gelu_gate(x), left);
    }
}

void linear_gelu_forward(real *out, real *pre, const real *inp, const real *weight,
                         const real *bias, int N, int IC, int OC) {
    linear_forward(pre, inp, weight, bias, N, IC, OC);
    gelu_forward(out, pre, (size_t)N * (size_t)OC);
}

void gelu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        Vec x = load(inp + i, left), s = gelu_gate(x), one = all(1.0f);
        // out = x s(2u):  d = s + x s (1 - s) 2 u',  u' = A (1 + 3 B x^2).  x s (1 - s) is
        // computed first, because it reaches 0 before u' becomes large
        Vec du = fma_(x * x, all(6 * GELU_A * GELU_B), all(2 * GELU_A));
        Vec y = x * s;
        Vec d = fma_(y * (one - s), du, s);
        store(dout + i, load(dout + i, left) * d, left);
        store(inp + i, y, left);
    }
}

/* ---- ReLU and SiLU --------------------------------------------------------------------------- */

void relu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        // this order of operands preserves NaN
        store(out + i, larger(none(), load(inp + i, left)), left);
    }
}

void relu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        const Vec x = load(inp + i, left);
        // out = max(x, 0):  d = 1 above 0, else 0
        store(dout + i, zero_where(at_most(x, none()), load(dout + i, left)), left);
        store(inp + i, larger(none(), x), left);
    }
}

/* s(x) = 1 / (1 + e^-x) */
static inline Vec silu_gate(Vec x) {
    const Vec one = all(1.0f);
    return one / (one + vexp(none() - x));
}

void silu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        Vec x = load(inp + i, left);
        store(out + i, x * silu_gate(x), left);
    }
}

void silu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        Vec x = load(inp + i, left), s = silu_gate(x), y = x * s;
        // out = x s(x):  d = s + x s (1 - s)
        Vec d = fma_(y, all(1.0f) - s, s);
        store(dout + i, load(dout + i, left) * d, left);
        store(inp + i, y, left);
    }
}

/* ---- Random noise ---------------------------------------------------------------------------- */

/* The lower and the upper 32 bits of x m, for 8 lanes x of 32 bits. */
static inline void multiply_wide(__m256i x, uint32_t m, __m256i *low, __m256i *high) {
    __m256i m8 = _mm256_set1_epi32((int)m), even = _mm256_mul_epu32(x, m8),
            odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), m8);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

/* The dropout mask of channels c .. c+31 of the token in row n, c being a multiple of 4: all bits
   set where the channel is not dropped. Computes eight Philox draws (util.h) at once, in a seventh
   of the time of eight single ones. */
static inline void mask32(__m256 mask[4], const Noise *z, int n, int c) {
    const uint64_t key = random_key(z->seed, z->purpose);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    __m256i v0 =
        _mm256_add_epi32(_mm256_set1_epi32(c / 4), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i v1 = _mm256_set1_epi32(z->position[n]), v2 = _mm256_set1_epi32((int)z->sequence[n]),
            v3 = _mm256_set1_epi32((int)z->step);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        __m256i low0, high0, low1, high1;
        multiply_wide(v0, 0xD2511F53u, &low0, &high0);
        multiply_wide(v2, 0xCD9E8D57u, &low1, &high1);
        v0 = _mm256_xor_si256(_mm256_xor_si256(high1, v1), _mm256_set1_epi32((int)k0));
        v2 = _mm256_xor_si256(_mm256_xor_si256(high0, v3), _mm256_set1_epi32((int)k1));
        v1 = low1;
        v3 = low0;
    }
    // lane i of v0 .. v3 has the words of channels 4i .. 4i+3: transpose into the order of channels
    __m256i a = _mm256_unpacklo_epi32(v0, v1), b = _mm256_unpackhi_epi32(v0, v1),
            d = _mm256_unpacklo_epi32(v2, v3), e = _mm256_unpackhi_epi32(v2, v3);
    __m256i w0 = _mm256_unpacklo_epi64(a, d), w1 = _mm256_unpackhi_epi64(a, d),
            w2 = _mm256_unpacklo_epi64(b, e), w3 = _mm256_unpackhi_epi64(b, e);
    __m256i word[4] = {
        _mm256_permute2x128_si256(w0, w1, 0x20), _mm256_permute2x128_si256(w2, w3, 0x20),
        _mm256_permute2x128_si256(w0, w1, 0x31), _mm256_permute2x128_si256(w2, w3, 0x31)};
    for (int i = 0; i < 4; i++) {
        __m256 uniform = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(word[i], 8)),
                                       _mm256_set1_ps(0x1p-24f));
        mask[i] = _mm256_cmp_ps(uniform, _mm256_set1_ps(z->p), _CMP_GE_OQ);
    }
}

void dropout(real *x, int N, int C, Noise noise) {
    if (noise.p <= 0) return;
    const __m256 scale = _mm256_set1_ps(1.0f / (1.0f - noise.p));
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        float *row = x + (size_t)n * (size_t)C;
        __m256 mask[4];
        for (int c = 0; c < C; c += 8) {
            if (c % 32 == 0) mask32(mask, &noise, n, c);
            store8(row + c,
                   _mm256_and_ps(mask[c % 32 / 8], _mm256_mul_ps(load8(row + c, C - c), scale)),
                   C - c);
        }
    }
}

void dropout_add(real *out, const real *x, int N, int C, Noise noise) {
    const __m256 scale = _mm256_set1_ps(1.0f / (1.0f - noise.p));
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *row = x + (size_t)n * (size_t)C;
        float *to = out + (size_t)n * (size_t)C;
        __m256 mask[4];
        for (int c = 0; c < C; c += 8) {
            __m256 v = load8(row + c, C - c);
            if (noise.p > 0 && c % 32 == 0) mask32(mask, &noise, n, c);
            if (noise.p > 0) v = _mm256_and_ps(mask[c % 32 / 8], _mm256_mul_ps(v, scale));
            store8(to + c, _mm256_add_ps(load8(to + c, C - c), v), C - c);
        }
    }
}

void add_uniform_noise(real *x, const float *magnitude, int N, int C, Noise noise) {
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            x[(size_t)n * (size_t)C + (size_t)c] +=
                magnitude[n] * (2.0f * noise_uniform(&noise, n, (uint32_t)c) - 1.0f);
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

void round_weights(uint16_t *out, const real *x, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        const UVec half = (UVec)rounded(load(x + i, left)) >> 16;
        for (int k = 0; k < left; k++) out[i + (size_t)k] = (uint16_t)half[k];
    }
}

/* ---- The optimiser --------------------------------------------------------------------------- */

static double sum_of_squares_of(const float *x, size_t n) {
    enum { PARTS = 1024 };  // fixed, so that the order of the sum does not depend on the threads
    double part[PARTS];
    size_t step = (n / PARTS + 8) / 8 * 8;
#pragma omp parallel for
    for (int i = 0; i < PARTS; i++) {
        size_t from = (size_t)i * step < n ? (size_t)i * step : n,
               to = from + step < n ? from + step : n;
        __m256d a = _mm256_setzero_pd(), b = a;
        for (size_t j = from; j < to; j += 8) {
            __m256 v = load8(x + j, to - j < 8 ? (int)(to - j) : 8);
            __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                    high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
            a = _mm256_fmadd_pd(low, low, a);
            b = _mm256_fmadd_pd(high, high, b);
        }
        double s[4];
        _mm256_storeu_pd(s, _mm256_add_pd(a, b));
        part[i] = (s[0] + s[1]) + (s[2] + s[3]);
    }
    double sum = 0;
    for (int i = 0; i < PARTS; i++) sum += part[i];
    return sum;
}

double sum_of_squares(const float *const *x, const size_t *n, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += sum_of_squares_of(x[i], n[i]);
    return sum;
}

void add_floats(float *a, const float *b, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += W) {
        const int left = LEFT(n, i);
        store(a + i, load(a + i, left) + load(b + i, left), left);
    }
}

void adamw(const Stepped *x, int count, float scale, float lr, float beta1, float beta2,
           float epsilon, int t) {
    // m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t); the powers in double, once
    const float m_correct = (float)(1 / (1 - pow((double)beta1, t))),
                v_correct = (float)(1 / (1 - pow((double)beta2, t)));
    const Vec b1 = all(beta1), c1 = all(1 - beta1), b2 = all(beta2), c2 = all(1 - beta2);
    const Vec rate = all(lr), mc = all(m_correct), vc = all(v_correct);
    for (int k = 0; k < count; k++) {
        const Stepped a = x[k];  // its w are floats, so it has no master
#pragma omp parallel for
        for (size_t i = 0; i < a.n; i += W) {
            const int left = LEFT(a.n, i);
            Vec grad = load(a.g + i, left) * all(scale), weight = load(a.w + i, left);
            Vec m1 = fma_(b1, load(a.m + i, left), c1 * grad);
            Vec v1 = fma_(b2, load(a.v + i, left), c2 * (grad * grad));
            Vec root = SIMD(sqrt_ps)(v1 * vc) + all(epsilon);
            Vec step = fma_(all(a.decay), weight, m1 * mc / root);
            store(a.w + i, fnma_(rate, step, weight), left);
            store(a.m + i, m1, left);
            store(a.v + i, v1, left);
            store(a.g + i, none(), left);
        }
    }
}
