/*
 * fuzz_tokenizer.c - the tokenizer on arbitrary files and arbitrary text, under libFuzzer
 * (`make fuzz`).
 *
 * The first byte chooses what the rest is: a tokenizer.json; a vocab.json and a merges.txt with a
 * NUL between them; or merges for a good vocabulary and a text, again with a NUL between them. A
 * tokenizer that loads must give any text back.
 */
#include "text/tokenizer.h"

#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[32];

static void write_file(const char *name, const void *bytes, size_t n) {
    char path[64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f))
        die("cannot write %s: %s", path, strerror(errno));
}

static void clean_directory(void) {
    static const char *name[] = {"vocab.json", "merges.txt", "tokenizer.json"};
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/%s", directory, name[i]);
        unlink(path);
    }
}

static void clean_up(void) {
    clean_directory();
    rmdir(directory);
}

/* A vocabulary of the bytes, all pairs and triples of a, b and c (so that merges can name them),
   and the end of text. */
static Str good_vocabulary(void) {
    Str out = {0};
    int next = 0x100, id = 256;
    for (int b = 0; b < 256; b++) {
        bool itself = (b > 32 && b < 127) || (b > 160 && b != 173);
        str_printf(&out, "%s\"\\u%04x\": %d", b ? ", " : "{", itself ? b : next++, b);
    }
    for (int i = 0; i < 9; i++) str_printf(&out, ", \"%c%c\": %d", 'a' + i / 3, 'a' + i % 3, id++);
    for (int i = 0; i < 27; i++)
        str_printf(&out, ", \"%c%c%c\": %d", 'a' + i / 9, 'a' + i / 3 % 3, 'a' + i % 3, id++);
    str_printf(&out, ", \"<|endoftext|>\": %d}", id);
    return out;
}

static void check_round_trip(const Tokenizer *t, const uint8_t *text, size_t n, bool specials) {
    Ints ids = {0};
    Str back = {0};
    tokenizer_encode(t, (const char *)text, n, specials, &ids);
    tokenizer_decode(t, ids.v, ids.n, &back);
    const bool keeps = tokenizer_keeps_text(t);
    if (keeps && (back.n != n || (n && memcmp(back.s, text, n)))) abort();
    for (size_t i = 0; i < ids.n; i++)
        if (ids.v[i] < 0 || ids.v[i] >= tokenizer_size(t)) abort();
    free(ids.v);
    free(back.s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!directory[0]) {
        strcpy(directory, "/tmp/fuzz_tokenizer.XXXXXX");
        if (!mkdtemp(directory)) die("mkdtemp: %s", strerror(errno));
        atexit(clean_up);
    }
    if (size < 1) return 0;
    const uint8_t *rest = data + 1, *end = data + size, *cut = memchr(rest, 0, size - 1);
    if (!cut) cut = end;
    const uint8_t *second = cut < end ? cut + 1 : end;
    clean_directory();
    if (data[0] % 3 == 0) {
        write_file("tokenizer.json", rest, size - 1);
    } else if (data[0] % 3 == 1) {
        write_file("vocab.json", rest, (size_t)(cut - rest));
        write_file("merges.txt", second, (size_t)(end - second));
    } else {
        Str vocabulary = good_vocabulary();
        write_file("vocab.json", vocabulary.s, vocabulary.n);
        write_file("merges.txt", rest, (size_t)(cut - rest));
        free(vocabulary.s);
    }
    Error e = {0};
    Tokenizer *t = tokenizer_load(directory, &e);
    if (!t && !e.text[0]) abort();
    if (t) {
        check_round_trip(t, second, (size_t)(end - second), true);
        check_round_trip(t, data, size, false);
        tokenizer_free(t);
    }
    return 0;
}
