/*
 * run_json.c - OUTPUT/run.json: how the model was made. Program, command line, every flag, what was
 * read and with which hash, the machine, and the held-out figures before and after.
 */
#include "model/kernels.h"  // device_name
#include "run/private.h"
#include "text/json.h"
#include "version.h"

/* Appends a member, of an object that is not empty, and its text. NULL becomes null. */
static void add_text(Str *s, const char *indent, const char *name, const char *text) {
    str_printf(s, ",\n%s\"%s\": ", indent, name);
    if (text)
        json_add_string(s, text, strlen(text));
    else
        str_printf(s, "null");
}

/* The command line, a word each. */
static void add_command(Str *s, const struct RunState *state) {
    str_printf(s, ",\n  \"command\": [");
    for (int i = 0; i < state->argc; i++) {
        if (i) str_printf(s, ", ");
        json_add_string(s, state->argv[i], strlen(state->argv[i]));
    }
    str_printf(s, "]");
}

static void add_flags(Str *s, const FlagTable *flags) {
    const Flag *f;
    const char *before = "";
    str_printf(s, ",\n  \"flags\": {");
    for (int i = 0; (f = flags_at(flags, i)); i++) {
        char text[64];
        if (f->type == FLAG_TITLE) continue;
        const char *value = flag_text(f, text);
        str_printf(s, "%s\n    \"%s\": ", before, f->name);
        before = ",";
        if (!value)
            str_printf(s, "null");
        else if (f->type == FLAG_TEXT || f->type == FLAG_CHOICE)
            json_add_string(s, value, strlen(value));
        else
            str_printf(s, "%s", value);
    }
    str_printf(s, "\n  }");
}

/* The contents of one kind: the files of flags, or models that the run only reads. */
static void add_contents(Str *s, const struct RunState *state, const char *kind) {
    for (int i = 0; i < state->contents; i++) {
        const Content *c = &state->content[i];
        if (!strcmp(c->kind, kind)) add_text(s, "    ", c->name, c->text);
    }
}

/* What was read. The hashes are those that the checkpoints compare. */
static void add_inputs(Str *s, const struct RunState *state) {
    add_text(s, "  ", "hashes", "64 bits: FNV-1a of files; of tokenizers and weights, our own");
    const char *tokenizer = NULL;
    for (int i = 0; i < state->contents; i++)
        if (!strcmp(state->content[i].kind, "tokenizer")) tokenizer = state->content[i].text;
    str_printf(s, ",\n  \"inputs\": {\n    \"tokenizer\": \"%s\"", tokenizer ? tokenizer : "");
    add_contents(s, state, "data");
    str_printf(s, "\n  },\n  \"models\": {\n    \"result\": \"%s\"", state->network[0]->role);
    add_contents(s, state, "model");
    for (int i = 0; i < state->networks; i++) {
        const Network *n = state->network[i];
        Str text = {0};
        if (!n->origin) continue;
        str_printf(&text, "hash %s", n->origin);
        add_text(s, "    ", n->role, text.s);
        free(text.s);
    }
    str_printf(s, "\n  }");
}

/* The name of the processor, from /proc/cpuinfo. */
static void add_machine(Str *s) {
    char line[512], name[512] = "";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && !*name && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %511[^\n]", name) != 1) *name = 0;
    if (f) fclose(f);
    add_text(s, "  ", "cpu", *name ? name : NULL);
    add_text(s, "  ", "device", device_name());
}

/* The held-out figures before training, or null. */
static void add_before(Str *s, const struct RunState *state) {
    if (state->first_line.n)
        str_add(s, state->first_line.s, state->first_line.n - 1);  // without its newline
    else
        str_printf(s, "null");
}

/* Those of the result, with the step that it is of, or null. */
static void add_after(Str *s, const Run *run) {
    const Best *b = &run->state->best;
    Str figures = {0};
    if (run->total_steps == 0) {
        add_before(s, run->state);
        return;
    }
    if (b->loaded)
        str_add(&figures, b->figures.s, b->figures.n);
    else
        watch_add_held_out(run, &figures);
    if (figures.n)
        str_printf(s, "{\"step\": %d%s}", b->loaded ? (int)b->step : run->step, figures.s);
    else
        str_printf(s, "null");
    free(figures.s);
}

static void add_figures(Str *s, const Run *run) {
    const struct RunState *state = run->state;
    const Best *b = &state->best;
    char text[64];
    str_printf(s, ",\n  \"steps\": %d,\n  \"before\": ", run->step);
    add_before(s, state);
    str_printf(s, ",\n  \"after\": ");
    add_after(s, run);
    str_printf(s, ",\n  \"best\": ");
    if (b->step < 1)
        str_printf(s, "null");
    else
        str_printf(s, "{\"step\": %.0f, \"eval_loss\": %s, \"is_result\": %s}", b->step,
                   number_text(b->lowest, text),
                   b->loaded || b->step == b->last_step ? "true" : "false");
}

int run_json_write(const Run *run, Error *e) {
    const struct RunState *state = run->state;
    char *path = path_join(run->output, RUN_FILE);
    NewFile file;
    Str s = {0};
    str_printf(&s, "{\n  \"program\": \"%s\"", state->program->name);
    add_text(&s, "  ", "version", POSTTRAIN_VERSION);
    add_command(&s, state);
    add_flags(&s, state->flags);
    add_inputs(&s, state);
    add_machine(&s);
    add_figures(&s, run);
    str_printf(&s, "\n}\n");
    int status = newfile_open(&file, path, e);
    if (!status) {
        fwrite(s.s, 1, s.n, file.f);
        status = newfile_close(&file, true, e);
    }
    free(s.s);
    free(path);
    return status;
}
