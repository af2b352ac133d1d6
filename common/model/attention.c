/*
 * attention.c - causal self-attention on a CPU, for training and for decoding.
 */
#include "model/simd.h"
#include "model/tile.h"

/* ---- Attention ------------------------------------------------------------------------------- */

/* Threads divide the pairs of sequence and head. The keys of a head are stored in transposed blocks
   of 64: keys[block][d][64]. Its values are stored as rows: values[key][hsp], hsp being hs rounded
   up to 16, with zeros. The cache for decoding has the same layout, and both use attend(), so a
   decoded row has the same bits as in training: a masked key contributes fma(0, v, o) = o, and a
   block of masked keys is skipped, which gives the same result. */

enum { KB = 64 };

static inline int padded_head(int hs) { return round_up(hs, 16); }

/* C (rows,columns) = start + A B, for any number of columns that is a multiple of 16. start NULL:
   from C. */
static inline __attribute__((always_inline)) void tiles(int rows, int columns, int K,
                                                        const float *a, size_t a_row, size_t a_k,
                                                        const float *b, size_t b_k, bool from_zero,
                                                        float *c, size_t c_row) {
    for (int j = 0; j < columns; j += NR) {
        const Operands o = {
            a,     a_row, a_k, b + j, b_k, from_zero ? zeros : c + j, from_zero ? 0 : c_row,
            c + j, c_row};
        if (columns - j >= NR)
            tile_of(rows, NR, false, K, o, NULL);
        else
            tile_of(rows, 16, false, K, o, NULL);
    }
}

/* Stores the key and value of position t (hs floats each) in a head's arrays. */
static inline void put_key_value(float *keys, float *values, const float *k, const float *v, int t,
                                 int hs) {
    int hsp = padded_head(hs);
    float *column = keys + (size_t)(t / KB) * (size_t)hs * (size_t)KB + t % KB,
          *row = values + (size_t)t * (size_t)hsp;
    for (int d = 0; d < hs; d++) column[(size_t)d * KB] = k[d];
    for (int d = 0; d < hs; d++) row[d] = v[d];
    for (int d = hs; d < hsp; d++) row[d] = 0;
}

/* keep[j] = the dropout factor, 0 or 1 / (1-p), of a query and key k0 + j in a head, for j below
   `keys`, rounded up to a multiple of 4. k0 is a multiple of 4, and n the query's row in the batch.
 */
static inline void attention_dropout(float *keep, const Noise *z, int n, int k0, int keys, int h,
                                     int NH) {
    const float kept = 1.0f / (1.0f - z->p);
    for (int j = 0; j < keys; j += 4) {
        const Random4 word =
            random4(z->seed, z->purpose, z->step, z->sequence[n], (uint32_t)z->position[n],
                    (uint32_t)((k0 + j) / 4) * (uint32_t)NH + (uint32_t)h);
        for (int i = 0; i < 4; i++) keep[j + i] = random_uniform(word.v[i]) >= z->p ? kept : 0.0f;
    }
}

/* s (columns) = q (hs) times a block of keys. */
static void scores_of_row(int columns, int hs, const float *q, const float *block, float *s,
                          ptrdiff_t ahead) {
    switch (columns) {
        case 16: tile_wide(16, hs, q, block, KB, NULL, s, ahead); break;
        case 32: tile_wide(32, hs, q, block, KB, NULL, s, ahead); break;
        case 48: tile_wide(48, hs, q, block, KB, NULL, s, ahead); break;
        default: tile_wide(64, hs, q, block, KB, NULL, s, ahead);
    }
}

/*
 * Attention of `rows` (at most MR) consecutive queries at positions q0, q0+1, ... to keys 0 ..
 * their own position. The softmax is computed online, one block of keys after the other (Milakov &
 * Gimelshein 2018): m is the largest score so far, l the sum of e^(score - m), o the weighted sum
 * of values. l and o are rescaled when m grows. noise NULL: no dropout. n0 is the batch row of q0.
 * The keys and values that are needed next are `ahead` bytes further; a single row prefetches them.
 */
static void attend(float *out, size_t out_row, float *lse, size_t lse_row, const float *q,
                   size_t q_row, int rows, int q0, const float *keys, const float *values, int hs,
                   const Noise *noise, int n0, int h, int NH, ptrdiff_t ahead) {
    const int hsp = padded_head(hs);
    const Vec scale = all(1.0f / sqrtf((float)hs));
    float m[MR], l[MR] = {0}, o[MR * hsp], s[MR * KB], keep[KB];
    for (int i = 0; i < rows; i++) m[i] = -INFINITY;
    memset(o, 0, sizeof o);
    for (int k0 = 0; k0 < q0 + rows; k0 += KB) {
        const float *block = keys + (size_t)k0 * (size_t)hs;
        int seen = min_int(KB, q0 + rows - k0);  // keys of this block that the last row sees
        if (rows == 1)
            scores_of_row(round_up(seen, 16), hs, q, block, s, ahead);
        else
            tiles(rows, round_up(seen, 16), hs, q, q_row, 1, block, KB, true, s, KB);
        for (int i = 0; i < rows; i++) {
            float *row = s + (size_t)i * KB;
            int visible = min_int(seen, q0 + i + 1 - k0);
            Vec top = all(-INFINITY);
            Vec8 total = _mm256_setzero_ps();
            for (int j = 0; j < visible; j += W) {
                Vec x = load(row + j, W) * scale;
                if (visible - j < W) x = choose(first(visible - j), x, all(-INFINITY));
                store(row + j, x, W);
                top = larger(top, x);
            }
            float m_new = fmaxf(m[i], max_lane(top));
            for (int j = 0; j < visible; j += W) {
                const Vec p = vexp(load(row + j, W) - all(m_new));
                store(row + j, p, W);
                total = add_lanes(total, p);
            }
            for (int j = visible > 0 ? round_up(visible, W) : 0; j < seen; j++) row[j] = 0;
            if (m_new > m[i]) {
                Vec shrink = vexp(all(m[i] - m_new));
                l[i] *= shrink[0];
                for (int d = 0; d < hsp; d += W)
                    store(o + (size_t)i * (size_t)hsp + d,
                          load(o + (size_t)i * (size_t)hsp + d, W) * shrink, W);
                m[i] = m_new;
            }
            l[i] += sum8(total);
            if (noise) {
                attention_dropout(keep, noise, n0 + i, k0, visible, h, NH);
                for (int j = 0; j < visible; j++) row[j] *= keep[j];
            }
        }
        int d = 0;
        for (; rows == 1 && d + WIDE <= hsp; d += WIDE)
            tile_wide(WIDE, seen, s, values + (size_t)k0 * (size_t)hsp + d, (size_t)hsp, o + d,
                      o + d, ahead);
        tiles(rows, hsp - d, seen, s, KB, 1, values + (size_t)k0 * (size_t)hsp + d, (size_t)hsp,
              false, o + d, (size_t)hsp);
    }
    for (int i = 0; i < rows; i++) {
        float inverse = 1.0f / l[i];
        for (int d = 0; d < hs; d++)
            out[(size_t)i * out_row + (size_t)d] = o[i * hsp + d] * inverse;
        if (lse) lse[(size_t)i * lse_row] = m[i] + logf(l[i]);
    }
}

/* The batch rows of a sequence: P rows of its parent from row `prefix` on, then T rows of its own
   from row `own` on. */
typedef struct {
    int prefix, P, own, T;
} Rows;

static inline Rows rows_of(const int *start, const int *parent, int s) {
    int p = parent ? parent[s] : -1;
    return (Rows){p < 0 ? 0 : start[p], p < 0 ? 0 : start[p + 1] - start[p], start[s],
                  start[s + 1] - start[s]};
}

/* The batch row of the token at position t. */
static inline size_t row_at(Rows r, int t) {
    return (size_t)(t < r.P ? r.prefix + t : r.own + t - r.P);
}

void attention_forward(real *out, float *lse, const real *qkv, const int *start, const int *parent,
                       int N, int S, int NH, int hs, Noise noise) {
    (void)N;
    const int hsp = padded_head(hs);
    const size_t C = (size_t)NH * (size_t)hs;
#pragma omp parallel for schedule(monotonic : dynamic, 1)
    for (int item = 0; item < S * NH; item++) {
        Rows r = rows_of(start, parent, item / NH);
        int h = item % NH, end = r.P + r.T, blocks = (end + KB - 1) / KB;
        float *keys = workspace((size_t)blocks * KB * (size_t)(hs + hsp)),
              *values = keys + (size_t)blocks * KB * (size_t)hs;
        for (int t = 0; t < end; t++) {
            const float *q = qkv + row_at(r, t) * 3 * C + (size_t)h * (size_t)hs;
            put_key_value(keys, values, q + C, q + 2 * C, t, hs);
        }
        for (int t = r.P; t < end; t += MR) {
            size_t n = row_at(r, t);
            attend(out + n * C + (size_t)h * (size_t)hs, C, lse + n * (size_t)NH + h, (size_t)NH,
                   qkv + n * 3 * C + (size_t)h * (size_t)hs, 3 * C, min_int(MR, end - t), t, keys,
                   values, hs, noise.p > 0 ? &noise : NULL, (int)n, h, NH, 0);
        }
    }
}

/* C (M,hsp) += A (M,K) B (K,hsp), for the small products of attention's backward pass. */
static inline __attribute__((always_inline)) void small_product(int M, int K, int hsp,
                                                                const float *a, size_t a_row,
                                                                size_t a_k, const float *b,
                                                                float *c) {
    for (int i = 0; i < M; i += MR)
        tiles(min_int(MR, M - i), hsp, K, a + (size_t)i * a_row, a_row, a_k, b, (size_t)hsp, false,
              c + (size_t)i * (size_t)hsp, (size_t)hsp);
}

/* The arrays of one head for the backward pass of a sequence. They have a row for every position,
   including those of the parent. */
typedef struct {
    float *q, *k, *dO, *keys, *values;  // rows padded to hsp; keys, values: transposed blocks
    float *dq, *dk, *dv, *delta;
} HeadArrays;

static inline size_t head_array_rows(int positions, int hsp) {
    return (size_t)round_up(positions, KB) * (size_t)hsp;
}

/* Computes dq of a sequence's own queries, and dk and dv of all keys and values that they attend
   to. q, dO and delta are 0 at the parent's positions, so that these contribute nothing to a block
   of queries that contains some of them. */
static void head_backward_sequence(HeadArrays a, const real *dout, const real *qkv, const real *out,
                                   const float *lse, Rows r, int h, int NH, int hs,
                                   const Noise *noise) {
    const int hsp = padded_head(hs), T = r.P + r.T;
    const size_t C = (size_t)NH * (size_t)hs, rows = head_array_rows(T, hsp);
    const float scale = 1.0f / sqrtf((float)hs);
    float *const q = a.q, *const k = a.k, *const dO = a.dO, *const delta = a.delta;
    memset(q, 0, sizeof(float) * 8 * rows);
    for (int t = 0; t < T; t++) {
        const size_t n = row_at(r, t);
        const float *from = qkv + n * 3 * C + (size_t)h * (size_t)hs,
                    *o = out + n * C + (size_t)h * (size_t)hs,
                    *d = dout + n * C + (size_t)h * (size_t)hs;
        size_t column = (size_t)(t / KB) * (size_t)hs * (size_t)KB + (size_t)(t % KB),
               row = (size_t)t * (size_t)hsp;
        delta[t] = 0;
        for (int i = 0; i < hs; i++) {
            k[row + (size_t)i] = a.keys[column + (size_t)i * KB] = from[C + (size_t)i];
            a.values[column + (size_t)i * KB] = from[2 * C + (size_t)i];
            if (t < r.P) continue;
            q[row + (size_t)i] = from[i];
            dO[row + (size_t)i] = d[i];
            delta[t] = fmaf(o[i], d[i], delta[t]);
        }
    }
    float p[KB * KB], ds[KB * KB], keep[KB];
    for (int j = 0; j < KB; j++) keep[j] = 1;
    for (int q0 = r.P / KB * KB; q0 < T; q0 += KB)
        for (int k0 = 0; k0 <= q0; k0 += KB) {
            int queries = min_int(KB, T - q0), columns = min_int(KB, T - k0);
            size_t block = (size_t)k0 * (size_t)hs, qrow = (size_t)q0 * (size_t)hsp,
                   krow = (size_t)k0 * (size_t)hsp;
            for (int i = 0; i < queries; i += MR) {
                int n = min_int(MR, queries - i), seen = min_int(KB, q0 + i + n - k0);
                tiles(n, round_up(seen, 16), hs, q + qrow + (size_t)i * (size_t)hsp, (size_t)hsp, 1,
                      a.keys + block, KB, true, p + (size_t)i * KB, KB);
                tiles(n, round_up(seen, 16), hs, dO + qrow + (size_t)i * (size_t)hsp, (size_t)hsp,
                      1, a.values + block, KB, true, ds + (size_t)i * KB, KB);
            }
            for (int i = 0; i < queries; i++) {
                int visible = q0 + i < r.P ? 0 : min_int(columns, q0 + i + 1 - k0),
                    n = (int)row_at(r, q0 + i), j = 0;
                if (noise) attention_dropout(keep, noise, n, k0, visible, h, NH);
                const Vec minus_lse = all(-lse[(size_t)n * (size_t)NH + (size_t)h]);
                for (; j < visible; j += W) {
                    // p = softmax(scale q k^T);  o = p v  =>  dv += p^T do,  dp = do v^T
                    // ds = p (dp - sum_j p dp) scale, and sum_j p dp = do . o = delta
                    const Vec factor = load(keep + j, W);
                    const Vec x = cut(vexp(fma_(load(p + (size_t)i * KB + j, W), all(scale),
                                                minus_lse)),
                                      visible - j),
                              d = load(ds + (size_t)i * KB + j, W) * factor - all(delta[q0 + i]);
                    store(p + (size_t)i * KB + j, x * factor, W);
                    store(ds + (size_t)i * KB + j, cut(x * d * all(scale), visible - j), W);
                }
                for (; j < KB; j++) p[i * KB + j] = ds[i * KB + j] = 0;
            }
            // s = scale q k^T:  dq += ds k,  dk += ds^T q.  On the diagonal, only queries from i on
            // attend to keys from i on
            for (int i = 0; i < columns; i += MR) {
                int n = min_int(MR, columns - i), from = k0 == q0 ? i : 0;
                size_t fromrow = qrow + (size_t)from * (size_t)hsp;
                small_product(n, queries - from, hsp, p + (size_t)from * KB + i, 1, KB,
                              dO + fromrow, a.dv + krow + (size_t)i * (size_t)hsp);
                small_product(n, queries - from, hsp, ds + (size_t)from * KB + i, 1, KB,
                              q + fromrow, a.dk + krow + (size_t)i * (size_t)hsp);
            }
            for (int i = 0; i < queries; i += MR) {
                int n = min_int(MR, queries - i);
                small_product(n, min_int(columns, q0 + i + n - k0), hsp, ds + (size_t)i * KB, KB, 1,
                              k + krow, a.dq + qrow + (size_t)i * (size_t)hsp);
            }
        }
}

/* Writes dq, dk and dv of the sequence's own positions to dqkv. With parents, instead adds dk and
   dv to the rows of its parent, which have been written before. */
static void put_head_gradients(real *dqkv, HeadArrays a, Rows r, int h, int NH, int hs,
                               bool parents) {
    const int hsp = padded_head(hs);
    const size_t C = (size_t)NH * (size_t)hs;
    for (int t = parents ? 0 : r.P; t < (parents ? r.P : r.P + r.T); t++) {
        float *to = dqkv + row_at(r, t) * 3 * C + (size_t)h * (size_t)hs;
        const size_t row = (size_t)t * (size_t)hsp;
        if (!parents) memcpy(to, a.dq + row, sizeof(float) * (size_t)hs);
        for (int i = 0; i < hs; i++) {
            to[C + (size_t)i] =
                parents ? to[C + (size_t)i] + a.dk[row + (size_t)i] : a.dk[row + (size_t)i];
            to[2 * C + (size_t)i] =
                parents ? to[2 * C + (size_t)i] + a.dv[row + (size_t)i] : a.dv[row + (size_t)i];
        }
    }
}

/* Threads divide the pairs of head and sequence without a parent. One thread processes such a
   sequence and then its continuations in order. So the gradients of the shared keys and values are
   added in a fixed order. */
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const float *lse, const int *start, const int *parent, int N, int S, int NH,
                        int hs, Noise noise) {
    (void)N;
    const int hsp = padded_head(hs);
#pragma omp parallel for schedule(monotonic : dynamic, 1)
    for (int item = 0; item < S * NH; item++) {
        int h = item % NH, first = item / NH;
        if (parent && parent[first] >= 0) continue;
        for (int s = first; s < (parent ? S : first + 1); s++) {
            if (s != first && parent[s] != first) continue;
            Rows r = rows_of(start, parent, s);
            size_t rows = head_array_rows(r.P + r.T, hsp);
            float *q = workspace(8 * rows + (size_t)round_up(r.P + r.T, KB)), *k = q + rows,
                  *dO = k + rows, *keys = dO + rows, *values = keys + rows;
            HeadArrays a = {q,
                            k,
                            dO,
                            keys,
                            values,
                            values + rows,
                            values + 2 * rows,
                            values + 3 * rows,
                            values + 4 * rows};
            head_backward_sequence(a, dout, qkv, out, lse, r, h, NH, hs,
                                   noise.p > 0 ? &noise : NULL);
            put_head_gradients(dqkv, a, r, h, NH, hs, false);
            if (r.P) put_head_gradients(dqkv, a, r, h, NH, hs, true);
        }
    }
}

size_t cache_bytes(int slots, int positions, int NH, int hs) {
    return (size_t)slots * (size_t)NH * (size_t)round_up(positions, KB) *
           (size_t)(hs + padded_head(hs)) * sizeof(real);
}

void attention_cached(real *out, real *cache, const real *qkv, const int *start, const int *slot,
                      const int *position, int N, int S, int positions, int NH, int hs) {
    const size_t C = (size_t)NH * (size_t)hs,
                 keys_size = (size_t)round_up(positions, KB) * (size_t)hs;
    const size_t head_size = keys_size + (size_t)round_up(positions, KB) * (size_t)padded_head(hs);
    // threads divide the heads; each stores the new keys and values and attends, up to MR
    // consecutive rows at a time
#pragma omp parallel for schedule(static)
    for (int h = 0; h < NH; h++)
        for (int n = 0, s = 0, rows; n < N; n += rows) {
            while (s < S && start[s + 1] <= n) s++;
            rows = min_int(MR, start[s + 1] - n);
            float *keys = cache + ((size_t)slot[n] * (size_t)NH + (size_t)h) * head_size;
            const float *row = qkv + (size_t)n * 3 * C + (size_t)h * (size_t)hs;
            for (int i = 0; i < rows; i++)
                put_key_value(keys, keys + keys_size, row + (size_t)i * 3 * C + C,
                              row + (size_t)i * 3 * C + 2 * C, position[n] + i, hs);
            // the next row's, or the next head's of the first row
            const ptrdiff_t next = n + rows < N
                                       ? (ptrdiff_t)(slot[n + rows] - slot[n]) * NH
                                       : (ptrdiff_t)(slot[0] - slot[n]) * NH + (h + 1 < NH);
            attend(out + (size_t)n * C + (size_t)h * (size_t)hs, C, NULL, 0, row, 3 * C, rows,
                   position[n], keys, keys + keys_size, hs, NULL, 0, h, NH,
                   next * (ptrdiff_t)(head_size * sizeof(float)));
        }
}
