/*
 * simd.h - vectors of floats for the CPU's kernels: what depends on the width of a register.
 *
 * The files of the kernels (product.c, row.c, layers.c, attention.c, head.c, nf4.c) are compiled
 * once for each way of computing, and a program that starts chooses one (device.c):
 *
 *     avx2        W = 8 floats in a vector; every CPU that we support
 *     avx512      W = 16
 *     avx512bf16  the same, with the instruction for products of bf16, VDPBF16PS (tile.h)
 *
 * All ways give the same bits. For that, a sum over the elements of a row always has eight lanes:
 * lane i adds elements i, i + 8, i + 16, ... in this order (add_lanes(), fma_lanes()), and sum8()
 * adds the lanes. All other arithmetic treats each element alone, so the width cannot matter.
 *
 * To read one way only, read W = 8. Vec is a vector of the compiler, so +, -, * and / work on it;
 * the compiler may not fuse * and + into one operation (-ffp-contract=off).
 */
#ifndef POSTTRAIN_SIMD_H
#define POSTTRAIN_SIMD_H

#include <immintrin.h>

#include "model/ways.h"
#include "util.h"

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

/* The number of elements from i to n, at most W; for the loop  for (i = 0; i < n; i += W). */
#define LEFT(n, i) ((n) - (i) < W ? (int)((n) - (i)) : W)

/* ---- eight lanes ----------------------------------------------------------------------------- */

typedef __m256 Vec8;

/* The mask of the first n of 8 lanes. */
static inline __m256i lanes8(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Loads 8 floats from p. Only the first n are read; the others are 0. */
static inline Vec8 load8(const float *p, int n) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes8(n));
}

static inline void store8(float *p, Vec8 x, int n) {
    if (n >= 8)
        _mm256_storeu_ps(p, x);
    else
        _mm256_maskstore_ps(p, lanes8(n), x);
}

/* The sum of the lanes in a fixed order: ((0+4)+(2+6)) + ((1+5)+(3+7)). */
static inline float sum8(Vec8 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float max8(Vec8 x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Transposes 8 x 8 floats. */
static inline void transpose8(__m256 r[8]) {
    __m256 t0 = _mm256_unpacklo_ps(r[0], r[1]), t1 = _mm256_unpackhi_ps(r[0], r[1]);
    __m256 t2 = _mm256_unpacklo_ps(r[2], r[3]), t3 = _mm256_unpackhi_ps(r[2], r[3]);
    __m256 t4 = _mm256_unpacklo_ps(r[4], r[5]), t5 = _mm256_unpackhi_ps(r[4], r[5]);
    __m256 t6 = _mm256_unpacklo_ps(r[6], r[7]), t7 = _mm256_unpackhi_ps(r[6], r[7]);
    __m256 s0 = _mm256_shuffle_ps(t0, t2, 0x44), s1 = _mm256_shuffle_ps(t0, t2, 0xEE);
    __m256 s2 = _mm256_shuffle_ps(t1, t3, 0x44), s3 = _mm256_shuffle_ps(t1, t3, 0xEE);
    __m256 s4 = _mm256_shuffle_ps(t4, t6, 0x44), s5 = _mm256_shuffle_ps(t4, t6, 0xEE);
    __m256 s6 = _mm256_shuffle_ps(t5, t7, 0x44), s7 = _mm256_shuffle_ps(t5, t7, 0xEE);
    r[0] = _mm256_permute2f128_ps(s0, s4, 0x20);
    r[4] = _mm256_permute2f128_ps(s0, s4, 0x31);
    r[1] = _mm256_permute2f128_ps(s1, s5, 0x20);
    r[5] = _mm256_permute2f128_ps(s1, s5, 0x31);
    r[2] = _mm256_permute2f128_ps(s2, s6, 0x20);
    r[6] = _mm256_permute2f128_ps(s2, s6, 0x31);
    r[3] = _mm256_permute2f128_ps(s3, s7, 0x20);
    r[7] = _mm256_permute2f128_ps(s3, s7, 0x31);
}

/* ---- W lanes --------------------------------------------------------------------------------- */

/* SIMD(f) is the intrinsic f of this width. */
#ifdef __AVX512F__
enum { W = 16 };
typedef __m512 Vec;
typedef __mmask16 Mask;
#    define SIMD(f) _mm512_##f

static inline Mask first(int n) { return n >= W ? (Mask)0xffff : (Mask)((1u << n) - 1); }
static inline Vec load(const float *p, int n) {
    return n >= W ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first(n), p);
}
static inline void store(float *p, Vec x, int n) {
    if (n >= W)
        _mm512_storeu_ps(p, x);
    else
        _mm512_mask_storeu_ps(p, first(n), x);
}
static inline Vec vround(Vec x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Mask greater(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
static inline Mask at_most(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_LE_OQ); }
static inline Mask equal(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ); }
static inline Mask unordered(Vec x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
static inline Vec choose(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
static inline Vec zero_where(Mask m, Vec x) { return _mm512_maskz_mov_ps((Mask)~m, x); }
static inline Vec8 half(Vec x, int i) {
    return i ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x);
}
static inline Vec join(Vec8 low, Vec8 high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
/* s plus the lanes of x, eight at a time */
static inline Vec8 add_lanes(Vec8 s, Vec x) { return (s + half(x, 0)) + half(x, 1); }
/* the same of x y, fused */
static inline Vec8 fma_lanes(Vec x, Vec y, Vec8 s) {
    s = _mm256_fmadd_ps(half(x, 0), half(y, 0), s);
    return _mm256_fmadd_ps(half(x, 1), half(y, 1), s);
}
static inline float max_lane(Vec x) { return max8(_mm256_max_ps(half(x, 0), half(x, 1))); }
#else
enum { W = 8 };
typedef __m256 Vec;
typedef __m256 Mask;
#    define SIMD(f) _mm256_##f

static inline Mask first(int n) { return _mm256_castsi256_ps(lanes8(n)); }
static inline Vec load(const float *p, int n) { return load8(p, n); }
static inline void store(float *p, Vec x, int n) { store8(p, x, n); }
static inline Vec vround(Vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Mask greater(Vec x, Vec y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); }
static inline Mask at_most(Vec x, Vec y) { return _mm256_cmp_ps(x, y, _CMP_LE_OQ); }
static inline Mask equal(Vec x, Vec y) { return _mm256_cmp_ps(x, y, _CMP_EQ_OQ); }
static inline Mask unordered(Vec x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
static inline Vec choose(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
static inline Vec zero_where(Mask m, Vec x) { return _mm256_andnot_ps(m, x); }
static inline Vec join(Vec8 low, Vec8 high) {
    (void)high;
    return low;
}
/* s plus the lanes of x, eight at a time */
static inline Vec8 add_lanes(Vec8 s, Vec x) { return s + x; }
/* the same of x y, fused */
static inline Vec8 fma_lanes(Vec x, Vec y, Vec8 s) { return _mm256_fmadd_ps(x, y, s); }
static inline float max_lane(Vec x) { return max8(x); }
#endif

typedef uint32_t UVec __attribute__((vector_size(4 * W)));
typedef int32_t IVec __attribute__((vector_size(4 * W)));

static inline Vec all(float x) { return SIMD(set1_ps)(x); }
static inline Vec none(void) { return SIMD(setzero_ps)(); }
/* x y + z, rounded once; z - x y, rounded once */
static inline Vec fma_(Vec x, Vec y, Vec z) { return SIMD(fmadd_ps)(x, y, z); }
static inline Vec fnma_(Vec x, Vec y, Vec z) { return SIMD(fnmadd_ps)(x, y, z); }
/* If one operand is NaN, the result is y. */
static inline Vec larger(Vec x, Vec y) { return SIMD(max_ps)(x, y); }
static inline Vec smaller(Vec x, Vec y) { return SIMD(min_ps)(x, y); }
/* x with zeros from lane n on */
static inline Vec cut(Vec x, int n) { return n >= W ? x : choose(first(n), x, none()); }

/* e^x = 2^n e^r with x = n log 2 + r and |r| <= log(2)/2: a polynomial in r, and 2^n by shifting
   the exponent. The error is at most 2 units in the last place. e^0 = 1 exactly; e^x = 0 below
   -87.3 and infinity above 88.7; NaN stays NaN. */
static inline Vec vexp(Vec x) {
    const Vec low = all(-87.33654f), high = all(88.72283f);
    const Vec z = smaller(high, larger(low, x));  // this order of operands preserves NaN
    const Vec n = vround(z * all(1.44269504f));
    Vec r = fnma_(n, all(0.693359375f), z);  // log 2 in two parts: n times the first is exact
    r = fnma_(n, all(-2.12194440e-4f), r);
    Vec p = all(1.0f / 5040);  // Taylor series to r^7: error below 2^-26
    p = fma_(p, r, all(1.0f / 720));
    p = fma_(p, r, all(1.0f / 120));
    p = fma_(p, r, all(1.0f / 24));
    p = fma_(p, r, all(1.0f / 6));
    p = fma_(p, r, all(0.5f));
    p = fma_(p, r, all(1.0f));
    p = fma_(p, r, all(1.0f));
    // 2^n in two factors, because 2^128 is not a float
    const IVec whole = (IVec)SIMD(cvtps_epi32)(n), part = whole >> 1;
    p = p * (Vec)((part + 127) << 23);
    p = p * (Vec)((whole - part + 127) << 23);
    p = zero_where(greater(low, x), p);
    return choose(greater(x, high), all(INFINITY), p);
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

/* x rounded to bf16, the upper half of a float: to nearest, ties to even. NaN stays NaN. A denormal
   becomes 0, as in the CPU's own instruction. */
static inline Vec rounded(Vec x) {
    const UVec u = (UVec)x;
    const Vec magnitude = (Vec)(u & 0x7fffffffu);
    Vec y = (Vec)((u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u);
    y = choose(greater(all(0x1p-126f), magnitude), (Vec)(u & 0x80000000u), y);
    return choose(unordered(x), (Vec)((u | 0x00400000u) & 0xffff0000u), y);
}

/* The same of eight lanes. */
static inline Vec8 rounded8(Vec8 x) {
#ifdef __AVX512F__
    return half(rounded(_mm512_castps256_ps512(x)), 0);
#else
    return rounded(x);
#endif
}

/* If flush: from now on this thread treats denormal operands and results as 0, as VDPBF16PS does.
   Returns the state to restore with _mm_setcsr(). */
static inline unsigned flush_denormals(bool flush) {
    const unsigned before = _mm_getcsr();
    if (flush) _mm_setcsr(before | 0x8040);
    return before;
}

#endif
