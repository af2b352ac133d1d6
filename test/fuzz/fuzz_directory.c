/*
 * fuzz_directory.c - libFuzzer on the small files of a model directory: template.txt,
 * chat_template.jinja, added_tokens.json, tokenizer_config.json, special_tokens_map.json,
 * generation_config.json. The first byte chooses which. A tokenizer that loads must give any text
 * back; what bundle_read reads must be written unchanged.
 *
 *   make fuzz-fuzz_directory
 */
#include "files/bundle.h"
#include "files/hf.h"
#include "text/jinja.h"
#include "text/template.h"
#include "text/tokenizer.h"

#include <sys/stat.h>
#include <unistd.h>

static const char *const names[] = {"template.txt",           "added_tokens.json",
                                    "tokenizer_config.json",  "special_tokens_map.json",
                                    "generation_config.json", "chat_template.jinja"};
enum { NAMES = 6 };

static char dir[] = "/tmp/fuzz_directory.XXXXXX", copy[64];

static void put(const char *in, const char *name, const void *bytes, size_t n) {
    char *path = path_join(in, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
    free(path);
}

static void clean_up(void) {
    bundle_clear(dir, NULL, NULL);
    bundle_clear(copy, NULL, NULL);
    rmdir(copy);
    rmdir(dir);
}

/* A tokenizer without merges: byte b is token b, and 256 is the end of text. */
static void put_tokenizer(void) {
    Str vocab = {0};
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        const bool itself = (b > 32 && b < 127) || (b > 160 && b != 173);
        str_printf(&vocab, "%s\"\\u%04x\": %d", b ? ", " : "{", itself ? b : next++, b);
    }
    str_printf(&vocab, ", \"<|endoftext|>\": 256}");
    put(dir, "vocab.json", vocab.s, vocab.n);
    put(dir, "merges.txt", "", 0);
    free(vocab.s);
}

static void check_tokenizer(const uint8_t *text, size_t n) {
    Error e = {0};
    Tokenizer *t = tokenizer_load(dir, &e);
    if (!t && !e.text[0]) abort();
    if (!t) return;
    Ints ids = {0};
    tokenizer_encode(t, (const char *)text, n, true, &ids);
    for (size_t i = 0; i < ids.n; i++)
        if (ids.v[i] < 0 || ids.v[i] >= tokenizer_size(t)) abort();
    free(ids.v);
    tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Error e;
    if (!*copy) {
        if (!mkdtemp(dir)) abort();
        snprintf(copy, sizeof copy, "%s/copy", dir);
        atexit(clean_up);
        put_tokenizer();
    }
    if (!n) return 0;
    const char *name = names[bytes[0] % NAMES];
    for (int i = 0; i < NAMES; i++) {
        char *path = path_join(dir, names[i]);
        unlink(path);
        free(path);
    }
    put(dir, name, bytes + 1, n - 1);
    char *line;
    const char *from;
    Template t;
    if (!usage_template(dir, "<|endoftext|>", &line, &from, NULL, &e) && line) {
        if (from == NULL) abort();
        char *jinja = jinja_of_template(line, "<|endoftext|>");
        if (!template_parse(line, &t, &e) != (jinja != NULL)) abort();
        free(jinja);
        template_free(&t);
        free(line);
    }
    check_tokenizer(bytes, n);
    Bundle files = {0}, again = {0};
    if (bundle_read(dir, &files, &e)) return 0;
    NewFile weights;
    char *path = path_join(copy, "model.safetensors");
    if (make_directories(copy) || newfile_open(&weights, path, &e) ||
        newfile_finish(&weights, &e) || bundle_write(&files, copy, &weights, &e) ||
        bundle_read(copy, &again, &e) || again.n != files.n)
        abort();
    for (int i = 0; i < files.n; i++) {
        const Str *same = bundle_get(&again, files.v[i].name);
        if (!same || same->n != files.v[i].text.n ||
            memcmp(same->s, files.v[i].text.s, same->n) != 0)
            abort();
    }
    free(path);
    bundle_free(&files);
    bundle_free(&again);
    return 0;
}
