/*
 * weights.h - all numbers of a model: a hash of them, and whether they are finite.
 */
#ifndef POSTTRAIN_WEIGHTS_H
#define POSTTRAIN_WEIGHTS_H

#include "model/memory.h"
#include "util.h"

/* The hash of n more numbers, after those that gave `hash` (HASH_START at first). It is fast: about
   as fast as memory is read. It depends on how the numbers are divided into calls. */
uint64_t hash_floats(uint64_t hash, const float *x, size_t n);
/* The hash of a model's own weights, with their shapes. The format of the file that they came from
   does not matter. Call it before gpt2_reserve, which may quantise them. */
uint64_t gpt2_hash_own(const GPT2 *m);
/* The hash of all weights as they are used, those of limits.more too, after gpt2_reserve. */
uint64_t gpt2_hash_weights(const GPT2 *m);
/* The hash of what an optimiser changes: the weights of the tensors that train, and (moments) their
   moments. */
uint64_t gpt2_hash_trained(const GPT2 *m, bool moments);
/* What gpt2_hash_trained would say of `as` without moments, if it had the weights of m, another
   model of its configuration. */
uint64_t gpt2_hash_as(const GPT2 *m, const GPT2 *as);

/* The first of n numbers that is not finite; n: all are. */
size_t first_not_finite(const float *x, size_t n);
/* -1 with e filled if a weight of a tensor that trains is not finite: "wte.weight[17] is nan". */
int gpt2_check_trained(const GPT2 *m, Error *e);

#endif
