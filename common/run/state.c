/*
 * state.c - small questions about a run, and the lines about it on stdout that several files print.
 */
#include "run/private.h"

#include "files/usage.h"
#include "ranks.h"
#include "text/template.h"

#include <limits.h>

bool run_given(const Run *run, const char *flag) {
    const Flag *f = flags_find(run->state->flags, flag);
    return f && f->given;
}

const char *run_checkpoint_dir(const Run *run) { return run->state->checkpoint; }

const char *run_weights_dir(const Run *run) {
    return run->state->holds == HOLDS_START ? NULL : run->state->checkpoint;
}

bool run_saves(const Run *run) { return run->output && *run->output && !run->dry_run; }

bool run_writes(const Run *run) { return run_saves(run) && !rank(); }

/* Ends the program: token id is not one of the model's. */
__attribute__((noreturn)) static void refuse_token(const char *dir, const Tokenizer *t, int id,
                                                   int vocab_size) {
    const char *files = tokenizer_added_in(t, id);
    Str token = {0};
    if (!files)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  dir, tokenizer_size(t), vocab_size);
    tokenizer_decode(t, &id, 1, &token);
    die_usage(
        "%s: \"%.80s\" has id %d in the tokenizer (%s), and the model has %d tokens: the token was "
        "added and the model not resized; take it out of these files, as nothing here pads, or "
        "resize the model in Python with resize_token_embeddings",
        dir, token.s, id, files, vocab_size);
}

Tokenizer *run_load_tokenizer(const char *dir, const GPT2Config *config) {
    Error e;
    Tokenizer *t = tokenizer_load(dir, &e);
    if (!t) die_usage("%s", e.text);
    if (tokenizer_size(t) > config->vocab_size)
        refuse_token(dir, t, config->vocab_size, config->vocab_size);
    for (const char *line = tokenizer_notes(t); *line; line += strcspn(line, "\n") + 1)
        fprintf(stderr, "note: %.*s\n", (int)strcspn(line, "\n"), line);
    Str end = {0};
    int eos = tokenizer_eos(t), other = usage_end(dir);
    tokenizer_decode(t, &eos, 1, &end);
    template_set_end(end.s);
    if (other >= 0 && other < config->vocab_size && config->vocab_size < INT_MAX && other != eos)
        fprintf(stderr,
                "note: %s: eos_token_id of its config is %d, and eos_token of its tokenizer is "
                "\"%.40s\", id %d; the latter ends every text\n",
                dir, other, end.s, eos);
    const int also = usage_other_end(dir, eos);
    if (also >= 0)
        fprintf(
            stderr,
            "note: %s: eos_token_id of its config is a list with %d in it; here \"%.40s\" alone "
            "ends a text\n",
            dir, also, end.s);
    free(end.s);
    return t;
}

bool run_end_by_template(Tokenizer *t, const char *form) {
    Template parsed;
    int id = -1;
    if (!template_parse(form, &parsed, NULL) && !parsed.ends)
        id = tokenizer_first_added(t, parsed.tail.s);
    template_free(&parsed);
    if (id < 0 || id == tokenizer_eos(t)) return false;
    tokenizer_set_eos(t, id);
    Str text = {0};
    tokenizer_decode(t, &id, 1, &text);
    template_set_end(text.s);
    free(text.s);
    return true;
}

void run_say_end(const char *before) {
    fprintf(
        stderr,
        "note: the template ends an answer with %s, so that token ends every text, and not %s\n",
        template_end(), before);
}

const char *with_commas(size_t n, char text[32]) {
    char figures[24];
    const int length = snprintf(figures, sizeof figures, "%zu", n);
    int at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = figures[i];
    }
    text[at] = 0;
    return text;
}

void run_print_parameters(size_t trained, size_t all) {
    char a[32], b[32];
    printf("parameters: %s of %s are trained, %.4f %%\n", with_commas(trained, a),
           with_commas(all, b), 100 * (double)trained / (double)all);
}
