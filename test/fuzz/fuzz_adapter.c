/*
 * fuzz_adapter.c - libFuzzer on adapter_config.json, as PEFT's and as AdapterHub's. A config that
 * is accepted must be read again, as the same, from the text that is written for it.
 *
 *   make fuzz-fuzz_adapter
 */
#define _GNU_SOURCE
#include "files/peft.h"

#include <unistd.h>

static char dir[] = "/tmp/fuzz_adapter.XXXXXX", config[64];

static void put(const void *bytes, size_t n) {
    FILE *f = fopen(config, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
}

static void clean(void) {
    unlink(config);
    rmdir(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    const GPT2Config base = {.n_embd = 24, .n_head = 2, .n_layer = 1, .n_inner = 96};
    LoraConfig lora, again;
    Bottleneck b, back;
    Error e;
    if (!*config) {
        if (!mkdtemp(dir)) abort();
        snprintf(config, sizeof config, "%s/adapter_config.json", dir);
        atexit(clean);
    }
    put(bytes, n);
    const bool is_lora = !hf_lora_config(dir, &lora, &e);
    const bool is_bottleneck = !hf_bottleneck(dir, &base, &b, &e);
    if (is_lora && is_bottleneck) abort();
    if (is_lora) {
        if (lora.r < 1 || !isfinite(lora.alpha) || !(lora.dropout >= 0 && lora.dropout < 1) ||
            !lora.targets[0] || hf_check_lora(&lora, &e))
            abort();
        char *text = hf_lora_text(&lora, dir);
        put(text, strlen(text));
        free(text);
        if (hf_lora_config(dir, &again, &e) || again.r != lora.r || again.alpha != lora.alpha ||
            again.rslora != lora.rslora || again.dropout != lora.dropout)
            abort();
    }
    if (is_bottleneck) {
        if (b.dim < 1 || b.dim > 65536 || hf_check_bottleneck(&b, &base, &e)) abort();
        char *text = hf_bottleneck_text(&b, &base, dir);
        put(text, strlen(text));
        free(text);
        if (hf_bottleneck(dir, &base, &back, &e) || back.dim != b.dim ||
            back.placement != b.placement || back.activation != b.activation)
            abort();
    }
    return 0;
}
