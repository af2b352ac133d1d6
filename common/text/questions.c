/*
 * questions.c - multiple-choice questions out of JSONL files: see records.h.
 */
#include "text/records.h"

/* Appends the texts of field `name`, an array, to the options. */
static int add_options(Question *q, const json_t *object, const char *name, Fault *f) {
    const json_t *list = json_object_get(object, name), *item;
    size_t i;
    if (!json_is_array(list) || !json_array_size(list))
        return fault(f, name, "\"%s\" is not an array of at least one text", name);
    json_array_foreach(list, i, item) {
        if (!json_is_string(item) || !json_string_length(item) ||
            strlen(json_string_value(item)) != json_string_length(item))
            return fault(f, name, "\"%s\" contains a value that is not a text, or an empty text",
                         name);
        q->option = grow(q->option, q->n, sizeof *q->option);
        q->option[q->n++] = xstrdup(json_string_value(item));
    }
    return 0;
}

static void question_free(Question *q) {
    for (int i = 0; i < q->n; i++) free(q->option[i]);
    free(q->option);
    free(q->prompt);
}

static int add_question(void *context, const json_t *object, int line, Fault *f) {
    Questions *out = context;
    Question q = {.line = line};
    Slice prompt;
    if (!json_object_get(object, "prompt"))
        return jsonl_unknown_fields(object, "prompt, corrects and incorrects", f);
    if (jsonl_text(object, "prompt", &prompt, f)) return -1;
    if (!prompt.n || strlen(prompt.s) != prompt.n)
        return fault(f, "prompt", "\"prompt\" is empty or holds a NUL");
    bool bad = add_options(&q, object, "corrects", f);
    q.corrects = q.n;
    if (bad || add_options(&q, object, "incorrects", f)) {
        question_free(&q);
        return -1;
    }
    q.prompt = xstrdup(prompt.s);
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = q;
    return 0;
}

int questions_read(const char *path, bool strict, Questions *out, Error *e) {
    *out = (Questions){0};
    const int status = jsonl_read(path, strict, add_question, out, &out->counts, e);
    if (status) questions_free(out);
    return status;
}

void questions_free(Questions *q) {
    for (int i = 0; i < q->n; i++) question_free(&q->v[i]);
    free(q->v);
    *q = (Questions){0};
}
