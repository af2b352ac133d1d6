/*
 * golden_bits.h - hashes of the outputs of the CPU's kernels, for check_bits.c.
 * Made by `.build/cc/check_bits print`, with avx2.
 */
#ifndef POSTTRAIN_GOLDEN_BITS_H
#define POSTTRAIN_GOLDEN_BITS_H

#include <stdint.h>

// clang-format off
static const struct {
    const char *name;
    uint64_t hash;
} golden_bits[] = {
    {"linear", 0x9992944e1163547au},
    {"linear in bf16", 0xa4bd57139df966fcu},
    {"projection", 0x315f1590b0a51bb0u},
    {"projection in bf16", 0x63d2b290c138b831u},
    {"nf4", 0xd77a48173436d9e6u},
    {"nf4 in bf16", 0x4d55c67f17a34b87u},
    {"head", 0x16622c52709e048du},
    {"head in bf16", 0xf9733b412cadd079u},
    {"loss", 0xf6160588f431cba6u},
    {"norm", 0x6b0f91b249329fa9u},
    {"elements", 0xf9f74495aaec5f2du},
    {"noise", 0x1335d57b8ce43522u},
    {"attention", 0xe298bb9d6447e02fu},
    {"optimiser", 0x5b6aac5405b1ccd6u},
};

#endif
