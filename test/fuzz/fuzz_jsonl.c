/*
 * fuzz_jsonl.c - records, prompts, templates and datasets from arbitrary bytes, under libFuzzer
 * (`make fuzz`).
 *
 * If the first byte is odd, a template follows, up to the first newline. The rest is a JSONL file.
 * Nothing may crash. Each record must be whole, and the dataset and the pairs made of the records
 * must keep the promises of dataset.h.
 */
#define _GNU_SOURCE  // memfd_create
#include "text/dataset.h"
#include "text/records.h"

#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A path whose file has these bytes. The caller closes *file. */
static const char *path_of_bytes(const uint8_t *bytes, size_t n, int *file) {
    static char path[64];
    *file = memfd_create("fuzz", 0);
    if (*file < 0 || write(*file, bytes, n) != (ssize_t)n) die("memfd: %s", strerror(errno));
    snprintf(path, sizeof path, "/proc/self/fd/%d", *file);
    return path;
}

/* A tokenizer without merges: byte b is token b, and 256 is the end of text. */
static Tokenizer *byte_tokenizer(void) {
    char directory[] = "/tmp/fuzz_jsonl.XXXXXX", path[64];
    if (!mkdtemp(directory)) die("mkdtemp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/vocab.json", directory);
    FILE *f = fopen(path, "w");
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        bool itself = (b > 32 && b < 127) || (b > 160 && b != 173);
        fprintf(f, "%s\"\\u%04x\": %d", b ? ", " : "{", itself ? b : next++, b);
    }
    fprintf(f, ", \"<|endoftext|>\": 256}");
    fclose(f);
    snprintf(path, sizeof path, "%s/merges.txt", directory);
    fclose(fopen(path, "w"));
    Error e = {0};
    Tokenizer *t = tokenizer_load(directory, &e);
    if (!t) die("%s", e.text);
    unlink(path);
    snprintf(path, sizeof path, "%s/vocab.json", directory);
    unlink(path);
    rmdir(directory);
    return t;
}

static void check(bool fact) {
    if (!fact) abort();
}

static void check_dataset(const Records *r, const Tokenizer *t, int max_length,
                          bool train_on_prompt) {
    Dataset d;
    RaggedBatch rb = {0};
    dataset_build(&d, r, t, max_length, train_on_prompt);
    check(d.n + d.dropped == r->n && d.longest <= max_length);
    long scored = 0;
    for (int i = 0; i < d.n; i++) {
        size_t length = d.start[i + 1] - d.start[i];
        check(length >= 2 && length <= (size_t)max_length && !d.scored[d.start[i]]);
        ragged_fill(&rb, &d, &i, 1);
        check(rb.scored > 0);
        scored += rb.scored;
    }
    check(scored == d.scored_tokens);
    ragged_free(&rb);
    dataset_free(&d);
}

static void check_pairs(const Records *r, const Tokenizer *t, int max_length) {
    Pairs p;
    pairs_build(&p, r, t, max_length);
    check(p.n + p.empty + p.equal + p.too_long == r->n && p.longest <= max_length &&
          p.start[0] == 0);
    for (int i = 0; i < p.n; i++) {
        check(pair_part(&p, i, 1) > 0 && pair_part(&p, i, 2) > 0 && p.p_chosen[i] >= 0 &&
              p.p_chosen[i] <= 1 && isfinite(p.margin[i]));
        for (int k = 1; k <= 2; k++)
            check(pair_part(&p, i, 0) + pair_part(&p, i, k) <= max_length &&
                  p.tokens[p.start[3 * i + k + 1] - 1] != tokenizer_eos(t));
    }
    pairs_free(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *t;
    if (!t) t = byte_tokenizer();
    if (size < 1) return 0;
    const uint8_t *text = data + 1, *newline = data[0] & 1 ? memchr(text, '\n', size - 1) : NULL;
    char *template = newline ? strndup((const char *)text, (size_t)(newline - text)) : NULL;
    if (newline) text = newline + 1;

    int file;
    const char *path = path_of_bytes(text, (size_t)(data + size - text), &file);
    Records r;
    Error e = {0};
    if (records_read(path, template, false, &r, &e)) {
        check(e.text[0] && r.n == 0);
    } else {
        check(r.n > 0 && r.kind[0] &&
              (r.counts.skipped == 0) == (r.counts.first_skipped.text[0] == 0));
        for (int i = 0; i < r.n; i++)
            check(r.v[i].n > 0 && r.v[i].spans[r.v[i].n - 1].scored && r.v[i].line > 0);
        check_dataset(&r, t, 1 + data[0], false);
        check_dataset(&r, t, 1 << 20, true);
        records_free(&r);
    }
    if (records_read(path, template, true, &r, &e) == 0) records_free(&r);
    if (answers_read(path, template, false, &r, &e) == 0) records_free(&r);
    if (pairs_read(path, template, false, &r, &e) == 0) {
        check(r.n > 0 && r.kind[0]);
        for (int i = 0; i < r.n; i++)
            check(r.v[i].n >= 3 && !r.v[i].spans[r.v[i].n - 3].scored &&
                  r.v[i].spans[r.v[i].n - 1].n > 0);
        check_pairs(&r, t, 1 + data[0]);
        check_pairs(&r, t, 1 << 20);
        records_free(&r);
    }
    Prompts p;
    e.text[0] = 0;
    if (prompts_read(path, template, false, &p, &e)) {
        check(e.text[0] && p.n == 0 && !p.v);
    } else {
        check(p.n > 0 && (p.counts.skipped == 0) == (p.counts.first_skipped.text[0] == 0));
        for (int i = 0; i < p.n; i++) check(p.v[i].line > 0 && p.v[i].text[p.v[i].n] == 0);
        prompts_free(&p);
    }
    if (prompts_read(path, template, true, &p, &e) == 0) prompts_free(&p);
    close(file);
    free(template);
    return 0;
}
