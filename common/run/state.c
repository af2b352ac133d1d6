/*
 * state.c - small questions about a run, and the lines about it on stdout that several files print.
 */
#include "run/private.h"

bool run_given(const Run *run, const char *flag) {
    const Flag *f = flags_find(run->state->flags, flag);
    return f && f->given;
}

const char *run_checkpoint_dir(const Run *run) { return run->state->checkpoint; }

bool run_writes(const Run *run) { return run->output && *run->output && !run->dry_run; }

Tokenizer *run_load_tokenizer(const char *dir, const GPT2Config *config) {
    Error e;
    Tokenizer *t = tokenizer_load(dir, &e);
    if (!t) die_usage("%s", e.text);
    if (tokenizer_size(t) > config->vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  dir, tokenizer_size(t), config->vocab_size);
    return t;
}

void run_clear_progress(Run *run) {
    if (run->state->shown) printf("\r%*s\r", run->state->shown, "");
    run->state->shown = 0;
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
    printf("trainable params: %s || all params: %s || trainable%%: %.4f\n", with_commas(trained, a),
           with_commas(all, b), 100 * (double)trained / (double)all);
}
