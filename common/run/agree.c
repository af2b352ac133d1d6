/*
 * agree.c - what a resumed run must have in common with the run that it continues: its flags, and
 * the content of the data, of the tokenizer and of the models that the checkpoint does not hold.
 *
 * Content is compared by a hash of what was read, which every checkpoint records.
 */
#include "input.h"
#include "model/weights.h"
#include "ranks.h"
#include "run/private.h"
#include "run/technique.h"
#include "text/jsonl.h"

/* ---- content --------------------------------------------------------------------------------- */

/* Notes a content for the checkpoints. shown: its name in messages. Takes over shown and text. */
static void note_content(Run *run, const char *kind, const char *name, char *shown, char *text) {
    struct RunState *s = run->state;
    s->content = (Content *)xrealloc(s->content, (size_t)s->contents + 1, sizeof *s->content);
    s->content[s->contents++] = (Content){kind, xstrdup(name), shown, text};
}

/* What was read of a file. One that nobody has read yet is read now. */
static char *content_of_one(const char *flag, const char *path) {
    Error e;
    char *text = input_read(path), block[8192];
    if (text) return text;
    FILE *f = input_open(path, &e);
    if (!f) die_usage("--%s: %s", flag, e.text);
    while (fread(block, 1, sizeof block, f) > 0) continue;
    if (ferror(f)) die_usage("cannot read %s (--%s): %s", path, flag, strerror(errno));
    fclose(f);
    return input_read(path);
}

/* The same for a list of files. */
static char *content_of(const char *flag, const char *list) {
    Str all = {0};
    for (char *path; (path = take_path(&list)); free(path)) {
        char *one = content_of_one(flag, path);
        str_printf(&all, "%s%s", all.n ? "; " : "", one);
        free(one);
    }
    str_add(&all, "", 0);
    return all.s;
}

void run_fingerprint(Run *run, const char *flag, const char *path) {
    Str shown = {0};
    str_printf(&shown, "the content of --%s", flag);
    note_content(run, "data", flag, shown.s, path ? content_of(flag, path) : xstrdup("no file"));
}

/* The bytes of every token, and which tokens a tokenizer makes of them. */
static uint64_t hash_tokenizer(const Tokenizer *t) {
    uint64_t hash = HASH_START;
    const int eos = tokenizer_eos(t);
    hash = hash_bytes(hash, &eos, sizeof eos);
    Str text = {0};
    Ints back = {0};
    for (int i = 0; i < tokenizer_size(t); i++) {
        text.n = 0;
        back.n = 0;
        tokenizer_decode(t, &i, 1, &text);
        tokenizer_encode(t, text.s ? text.s : "", text.n, true, &back);
        hash = hash_bytes(hash, text.s, text.n);
        hash = hash_bytes(hash, back.v, back.n * sizeof *back.v);
    }
    free(text.s);
    free(back.v);
    return hash;
}

/* Has the content to be known: for a checkpoint, or for other processes? */
static bool is_compared(const Run *run) {
    return run_writes(run) || run->state->checkpoint || ranks() > 1;
}

void agree_note_tokenizer(Run *run) {
    Str text = {0};
    if (!is_compared(run)) return;
    str_printf(&text, "%d tokens, hash %016llx", tokenizer_size(run->tokenizer),
               (unsigned long long)hash_tokenizer(run->tokenizer));
    note_content(run, "tokenizer", "content", xstrdup("the tokenizer"), text.s);
}

void agree_note_model(Run *run, const Network *n) {
    Str shown = {0}, text = {0};
    if (!is_compared(run)) return;
    str_printf(&shown, "the content of the %s %s", n->role, n->from);
    const GPT2Config *c = gpt2_config(n->model);
    str_printf(&text, "hash %016llx, %d heads, layer_norm_epsilon %.9g",
               (unsigned long long)gpt2_hash_own(n->model), c->n_head,
               (double)c->layer_norm_epsilon);
    note_content(run, "model", n->role, shown.s, text.s);
}

void agree_note_config(Run *run, const Network *n, const Technique *technique) {
    Str shown = {0}, text = {0};
    if (!is_compared(run)) return;
    const GPT2Config *c = &n->config;
    str_printf(&shown, "the configuration of the %s %s", n->role, n->from);
    str_printf(&text, "%d heads, layer_norm_epsilon %.9g, dropout %.9g %.9g %.9g", c->n_head,
               (double)c->layer_norm_epsilon, (double)c->embd_pdrop, (double)c->attn_pdrop,
               (double)c->resid_pdrop);
    if (technique) {  // of the adapter: the base may have another path
        char *config = technique->config_text(c, "");
        str_printf(&text, ", adapter_config.json %016llx",
                   (unsigned long long)hash_bytes(HASH_START, config, strlen(config)));
        free(config);
    }
    note_content(run, "config", n->role, shown.s, text.s);
}

void agree_note_origin(Run *run, Network *n) {
    const char *checkpoint = run->state->checkpoint;
    if (!run_writes(run)) return;
    Str text = {0};
    SafeTensors *st = checkpoint ? checkpoint_open_state(checkpoint) : NULL;
    const char *noted = st ? checkpoint_noted(st, "origin", n->role) : NULL;
    if (noted)
        str_printf(&text, "%s", noted);
    else
        str_printf(&text, "%016llx", (unsigned long long)gpt2_hash_own(n->model));
    st_close(st);
    n->origin = text.s;
}

/* ---- comparing ------------------------------------------------------------------------------- */

/* Ends the program unless the checkpoint's value, `then` or NULL, is `now`. what: its name in
   messages. */
static void must_agree(const Run *run, const char *what, const char *then, const char *now) {
    if (then && !strcmp(then, now)) return;
    const char *quote = then ? "\"" : "";
    die_usage(
        "cannot resume %s: %s is \"%s\" now and %s%s%s in the checkpoint; use the same, or start "
        "anew in another --output",
        run->state->checkpoint, what, now, quote, then ? then : "missing", quote);
}

static void compare_flags(const Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    char text[64];
    const Flag *f;
    for (int i = 0; (f = flags_at(s->flags, i)); i++) {
        if (f->type == FLAG_TITLE || f->may_change_on_resume) continue;
        const char *value = flag_text(f, text);
        Str shown = {0};
        str_printf(&shown, "--%s", f->name);
        must_agree(run, shown.s, checkpoint_noted(st, "flag", f->name), value ? value : "");
        free(shown.s);
    }
}

void agree_check(Run *run) {
    struct RunState *s = run->state;
    char text[16];
    if (!s->checkpoint) return;
    SafeTensors *st = checkpoint_open_state(s->checkpoint);
    if (!s->agreed) compare_flags(run, st);
    for (; s->agreed < s->contents; s->agreed++) {
        const Content *c = &s->content[s->agreed];
        must_agree(run, c->shown, checkpoint_noted(st, c->kind, c->name), c->text);
    }
    snprintf(text, sizeof text, "%d", s->examples);
    must_agree(run, "the number of examples", st_metadata(st, "examples"), text);
    st_close(st);
}

void agree_on_program(const Run *run) {
    const struct RunState *s = run->state;
    if (!s->checkpoint) return;
    SafeTensors *st = checkpoint_open_state(s->checkpoint);
    must_agree(run, "the format of " STATE_FILE, st_metadata(st, "format_version"), STATE_VERSION);
    must_agree(run, "the program", st_metadata(st, "program"), s->program->name);
    st_close(st);
}

/* ---- processes ------------------------------------------------------------------------------- */

/* A hash of the program's file: other versions of it may compute other bits. */
static uint64_t hash_program(void) {
    uint64_t hash = HASH_START;
    char block[8192];
    FILE *f = fopen("/proc/self/exe", "rb");
    for (size_t n; f && (n = fread(block, 1, sizeof block, f)) > 0;)
        hash = hash_bytes(hash, block, n);
    if (f) fclose(f);
    return hash;
}

static uint64_t hash_flags(const Run *run) {
    uint64_t hash = HASH_START;
    char text[64];
    const Flag *f;
    for (int i = 0; (f = flags_at(run->state->flags, i)); i++) {
        const char *value = f->type == FLAG_TITLE ? NULL : flag_text(f, text);
        if (value) hash = hash_bytes(hash, value, strlen(value) + 1);
    }
    return hash;
}

/* The line of text that begins at *at, which becomes the beginning of the next one. To be freed. */
static char *take_line(const char **at) {
    const size_t n = strcspn(*at, "\n");
    char *line = xstrndup(*at, n);
    *at += n + ((*at)[n] != 0);
    return line;
}

/* Compares the lines "what: value" of all processes. mine: those of this one. It ends with 2 where
   they differ. */
static void compare_over_ranks(const char *mine) {
    size_t n;
    Str text = {0};
    str_printf(&text, "%s\n%s", rank_host(), mine);
    char *all = (char *)ranks_join(text.s, text.n + 1, &n), *of = all;
    for (int r = 0; r < ranks(); r++, of += strlen(of) + 1) {
        const char *first = all, *here = of;
        char *first_host = take_line(&first), *host = take_line(&here);
        while (*first) {
            char *a = take_line(&first), *b = take_line(&here), *value = strstr(a, ": ");
            if (strcmp(a, b))
                die_usage(
                    "%.*s of rank %d on %s is not that of rank 0 on %s; start all processes "
                    "with the same program, flags, data and models",
                    (int)(value ? value - a : 0), a, r, host, first_host);
            free(a);
            free(b);
        }
        free(first_host);
        free(host);
    }
    free(all);
    free(text.s);
}

void agree_over_ranks(const Run *run) {
    const struct RunState *s = run->state;
    Str text = {0};
    if (ranks() == 1) return;
    str_printf(&text, "the program: %s %016llx\n", s->program->name,
               (unsigned long long)hash_program());
    str_printf(&text, "the command line: %016llx\n", (unsigned long long)hash_flags(run));
    for (int i = 0; i < s->contents; i++)
        str_printf(&text, "%s: %s\n", s->content[i].shown, s->content[i].text);
    str_printf(&text, "the number of examples: %d\n", s->examples);
    compare_over_ranks(text.s);
    free(text.s);
}

void agree_on_weights(const Run *run) {
    const struct RunState *s = run->state;
    Str text = {0};
    if (ranks() == 1) return;
    for (int i = 0; i < s->networks; i++)
        str_printf(&text, "the %s: %016llx\n", s->network[i]->role,
                   (unsigned long long)gpt2_hash_weights(s->network[i]->model));
    compare_over_ranks(text.s);
    free(text.s);
}
