/*
 * fuzz_torch.c - libFuzzer on the reader of pytorch_model.bin. The input is a file. An accepted
 * file is then read completely. An empty corpus finds nothing here, so the mutator starts from
 * files of torch.save.
 *
 *   make fuzz-fuzz_torch
 */
#include "files/torch.h"
#include "../golden/golden_torch.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Error e;
    TorchTensors t;
    size_t zeros = 0, covered = 0;
    if (torch_parse(&t, bytes, n, "fuzz", &e)) {
        if (t.tensor || t.names || !e.text[0]) abort();
        return 0;
    }
    for (int i = 0; i < t.count; i++) {
        const STTensor *x = &t.tensor[i];
        if (x->bytes > n || x->data < bytes || x->data > bytes + n - x->bytes || !x->name[0])
            abort();
        for (size_t k = 0; k < x->bytes && k < 4096; k++) {
            zeros += !x->data[k];
            covered++;
        }  // AddressSanitizer checks every byte
    }
    if (zeros > covered) abort();
    torch_free(&t);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed) {
    size_t which = seed / 16 % (sizeof golden_files / sizeof *golden_files);
    if ((n < 16 || seed % 256 == 0) && golden_files[which].n <= room) {
        n = golden_files[which].n;
        memcpy(bytes, golden_files[which].bytes, n);
    }
    return LLVMFuzzerMutate(bytes, n, room);
}
