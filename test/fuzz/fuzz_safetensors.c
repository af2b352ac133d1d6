/*
 * fuzz_safetensors.c - libFuzzer on the safetensors reader. The input is a file. An accepted file
 * is then read completely.
 *
 *   make fuzz-fuzz_safetensors
 */
#include "files/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Error e;
    SafeTensors *st = st_parse(bytes, n, "fuzz", &e);
    if (!st) return 0;
    size_t covered = 0, zeros = 0;
    for (int i = 0; i < st_count(st); i++) {
        const STTensor *t = st_at(st, i);
        if (st_find(st, t->name) != t) abort();
        float x[64];
        for (size_t at = 0; t->type <= ST_BF16 && at < t->n; at += 64)
            if (st_floats(t, at, t->n - at < 64 ? t->n - at : 64, x, &e)) abort();
        for (size_t k = 0; k < t->bytes; k++)
            zeros += !t->data[k];  // AddressSanitizer checks every byte
        covered += t->bytes;
    }
    if (covered > n || zeros > covered) abort();
    st_metadata(st, "format");
    st_close(st);
    return 0;
}
