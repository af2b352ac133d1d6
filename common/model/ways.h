/*
 * ways.h - the functions of kernels.h that a CPU computes in several ways (simd.h).
 *
 * Each file of kernels defines them under their names in kernels.h. In the object file the name
 * gets the way's ending: linear_forward_avx2, linear_forward_avx512. device.c defines
 * linear_forward itself, as a jump to the way that was chosen.
 */
#ifndef POSTTRAIN_WAYS_H
#define POSTTRAIN_WAYS_H

#include "model/cpu.h"
#include "model/kernels.h"

// clang-format off
#define KERNELS(X)                                                                               \
    X(embed_forward)                                                                             \
    X(embed_backward)                                                                            \
    X(linear_forward)                                                                            \
    X(linear_backward_input) X(linear_backward_weight) X(projection_forward)                     \
        X(projection_backward_input) X(projection_backward_weight) X(add_activations) X(scale)   \
            X(nf4_bytes) X(nf4_quantize) X(nf4_read) X(nf4_linear_forward)                       \
                X(nf4_linear_backward_input) X(layernorm_forward) X(layernorm_backward)          \
                    X(gelu_forward) X(linear_gelu_forward) X(gelu_backward) X(relu_forward)      \
                        X(relu_backward) X(silu_forward) X(silu_backward) X(dropout)             \
                            X(dropout_add) X(add_uniform_noise) X(attention_forward)             \
                                X(attention_backward) X(cache_bytes) X(attention_cached)         \
                                    X(gather_rows) X(scatter_rows) X(scale_rows) X(head_forward) \
                                        X(head_backward) X(logprob_forward) X(logprob_backward)  \
                                            X(kl_forward) X(largest_difference) X(value_forward) \
                                                X(value_backward) X(sample) X(sum_of_squares)    \
                                                    X(add_floats) X(adamw) X(round_weights)
// clang-format on

#ifdef WAY
#    define WAY_TEXT(way) #    way
#    define WAY_NAME(way) WAY_TEXT(way)
#    define RENAME(f) extern __typeof__(f) f __asm__(#    f "_" WAY_NAME(WAY));
KERNELS(RENAME)
RENAME(product)
RENAME(product_one)
RENAME(workspace)
#endif

#endif
