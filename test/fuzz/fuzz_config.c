/*
 * fuzz_config.c - libFuzzer on the JSON files of a directory. The input is a config.json, then an
 * index of shards. No model is ever loaded, because there are no weights. An accepted config must
 * be one that a model can have.
 *
 *   make fuzz-fuzz_config
 */
#include "files/hf.h"

#include <unistd.h>

static const char good[] =
    "{\"model_type\":\"gpt2\",\"n_embd\":6,\"n_head\":2,\"n_layer\":1,\"n_positions\":7,\"vocab_"
    "size\":11}";

static char dir[] = "/tmp/fuzz_config.XXXXXX", config[64], index_file[64];

static void put(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
}

static void clean(void) {
    unlink(config);
    unlink(index_file);
    rmdir(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    GPT2Config c;
    Error e;
    if (!*config) {
        if (!mkdtemp(dir)) abort();
        snprintf(config, sizeof config, "%s/config.json", dir);
        snprintf(index_file, sizeof index_file, "%s/model.safetensors.index.json", dir);
        atexit(clean);
    }
    unlink(index_file);
    put(config, bytes, n);
    if (!hf_config(dir, &c, &e) &&
        (c.n_embd < 1 || c.n_head < 1 || c.n_embd % c.n_head || c.n_layer < 1 || c.n_layer > 1000 ||
         c.n_positions < 1 || c.vocab_size < 1 || c.n_inner < 1 || !(c.layer_norm_epsilon > 0) ||
         !(c.attn_pdrop >= 0 && c.attn_pdrop <= 1)))
        abort();
    put(config, good, sizeof good - 1);
    put(index_file, bytes, n);
    if (hf_load(dir, true, &e)) abort();
    return 0;
}
