/*
 * records.c - records and answers out of JSONL files: see records.h.
 */
#include "text/reading.h"

/* ---- kinds ----------------------------------------------------------------------------------- */

#define SUMMARIZE "Summarize the following text.\n\n", "\n\nSummary:\n"

static const Kind kinds[] = {
    {"instruction", "output", NULL, NULL}, {"instruction", "response", NULL, NULL},
    {"prompt", "completion", "", ""},      {"prompt", "response", NULL, NULL},
    {"input", "output", NULL, NULL},       {"text", "summary", SUMMARIZE},
    {"question", "answer", NULL, NULL},    {"question", "answers", NULL, NULL},
    {"question", "response", NULL, NULL},  {"query", "response", NULL, NULL},
    {"problem", "solution", NULL, NULL},   {"problem", "answer", NULL, NULL},
    {"document", "summary", SUMMARIZE},    {"dialogue", "summary", SUMMARIZE},
    {"article", "summary", SUMMARIZE},     {"article", "highlights", SUMMARIZE},
};

static const char EXPECTED[] =
    "instruction/response, instruction[/input]/output, prompt/completion, prompt/response, "
    "input/output, text/summary, question/answer, problem/solution, messages, conversations or "
    "text";

const Kind *reading_kind(const Reading *x) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (reading_has(x, kinds[i].prompt) && reading_has(x, kinds[i].response)) return &kinds[i];
    return NULL;
}

bool reading_complete(const Reading *x, const Kind *k) {
    if (strcmp(k->prompt, "prompt")) return false;
    return k->before || x->style->purpose == JUDGED;
}

/* ---- one record ------------------------------------------------------------------------------ */

const json_t *reading_first_answer(const json_t *value) {
    if (json_is_object(value)) {
        const json_t *texts = json_object_get(value, "text");
        value = texts ? texts : json_object_get(value, "value");
    }
    return json_is_array(value) ? json_array_get(value, 0) : value;
}

/* Gets the response. Of several answers the first is taken. */
static int get_response(Reading *x, const char *name, Slice *out) {
    const json_t *value = json_object_get(x->object, name), *first = reading_first_answer(value);
    const bool several = !strncmp(name, "answer", 6) && !json_is_string(value);
    if (!several || !json_is_string(first)) return reading_text(x, name, out);
    reading_field(x, name);
    *out = json_slice(first);
    return 0;
}

/* Reads a prompt that is a list of messages, and its completion, messages or a string. */
static int read_prompt_and_completion(Reading *x, const Kind *k) {
    Talk talk = {0};
    int status = reading_messages(x, k->prompt, &talk);
    if (!status && !talk.asked)
        status = fault(x->fault, k->prompt,
                       "\"%s\" does not end with a user's message, so there is nothing to answer",
                       k->prompt);
    if (!status) {
        reading_close_history(x);
        const json_t *answer = json_object_get(x->object, k->response);
        Slice response;
        if (!json_is_string(answer)) {
            status = reading_messages(x, k->response, &talk);
        } else if (!(status = reading_text(x, k->response, &response))) {
            reading_add_span(x, &talk.pending, false);
            reading_add_response(x, response);
        }
    }
    talk_free(&talk);
    snprintf(x->kind, sizeof x->kind, "%.20s/%.20s messages", k->prompt, k->response);
    return status;
}

static int read_pair(Reading *x, const Kind *k) {
    if (json_is_array(json_object_get(x->object, k->prompt)) && !strcmp(k->prompt, "prompt"))
        return read_prompt_and_completion(x, k);
    Slice response;
    if (reading_prompt(x, k->prompt, reading_complete(x, k), k->before, k->after) ||
        get_response(x, k->response, &response))
        return -1;
    snprintf(x->kind + strlen(x->kind), sizeof x->kind - strlen(x->kind), "/%s", k->response);
    reading_add_response(x, response);
    return 0;
}

static int read_conversation(Reading *x, const char *list) {
    Talk talk = {0};
    int status = reading_messages(x, list, &talk);
    talk_free(&talk);  // with a last question that has no answer
    bool scored = false;
    for (int i = 0; i < x->record->n; i++) scored |= x->record->spans[i].scored;
    snprintf(x->kind, sizeof x->kind, "%s", list);
    if (!status && !scored)
        return fault(x->fault, list, "\"%s\" has no assistant turn, so there is nothing to learn",
                     list);
    return status;
}

/* Is it one message of a conversation that is stored message by message, as in oasst? */
static bool is_message(const Reading *x) {
    return json_is_string(json_object_get(x->object, "role")) || reading_has(x, "parent_id") ||
           reading_has(x, "message_id");
}

int reading_record(Reading *x) {
    const Kind *k = reading_kind(x);
    if (k) return read_pair(x, k);
    const char *list = reading_conversation(x);
    if (list) return read_conversation(x, list);
    if (!reading_has(x, "text") || is_message(x)) return reading_unknown(x, EXPECTED);
    snprintf(x->kind, sizeof x->kind, "text");
    Slice text;
    if (reading_text(x, "text", &text)) return -1;
    Str copy = {0};
    str_add(&copy, text.s, text.n);
    reading_add_span(x, &copy, true);
    return 0;
}

static const char AS_IT_IS[] = "{instruction}";  // the template of a complete prompt

/* The template of a record's prompt in one line; NULL if the record is plain text. */
static char *template_of(const Reading *x) {
    const Kind *k = reading_kind(x);
    if (!k && !strcmp(x->kind, "text")) return NULL;
    const bool list = k && json_is_array(json_object_get(x->object, k->prompt));
    if (x->style->given || !k || !k->before || list) return template_line(x->style->given);
    Str own = {0};
    str_printf(&own, "%s%s%s", k->before, AS_IT_IS, k->after);
    char *line = template_line(own.s);
    free(own.s);
    return line;
}

/* Data of KTO: an answer whose label is false is an example of a bad one. */
static int check_label(const Reading *x) {
    static const char *const names[] = {"label", "kto_tag"};
    for (int i = 0; i < 2 && strcmp(x->kind, "text") != 0; i++) {
        const json_t *label = json_object_get(x->object, names[i]);
        const char *word = json_string_value(label);
        if (!json_is_false(label) && !(word && !strcasecmp(word, "false"))) continue;
        return fault(
            x->fault, names[i],
            "\"%s\" is false: the answer is an example of a bad one; to leave such records "
            "out: jq -c 'select(.%s != false)'",
            names[i], names[i]);
    }
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int add_record(void *context, const json_t *object, int line, Fault *f) {
    const Adding *a = context;
    const Purpose purpose = a->style.purpose;
    Records *out = a->out;
    Record r = {.line = line};
    Reading x = {.object = object, .style = &a->style, .record = &r, .fault = f};
    int status = purpose == PAIRED ? reading_pair(&x) : reading_record(&x);
    if (!status && purpose == LEARNED) status = check_label(&x);
    if (status) {
        record_free(&r);
        free(x.inner.s);
        return status;
    }
    if (out->n == 0) memcpy(out->kind, x.kind, sizeof out->kind);
    if (purpose == LEARNED && (!out->template || !strcmp(out->template, AS_IT_IS))) {
        char *template = template_of(&x);
        if (template) {
            free(out->template);
            out->template = template;
        }
    }
    out->templated |= x.templated;
    reading_collect_unused(&x, &out->unused);
    const Span *last = &r.spans[r.n - 1];
    if (purpose == LEARNED && last->n == a->style.template.tail.n && r.n > 1 && !out->empty++)
        out->first_empty = line;
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = r;
    return 0;
}

static int read_as(Purpose purpose, const char *path, const char *template, bool strict,
                   Records *out, Error *e) {
    *out = (Records){0};
    int status = reading_objects(path, purpose, template, strict, add_record, out, &out->counts, e);
    if (!status && !out->n)
        status = fail(e,
                      "%s holds no usable pair: in all %d of them chosen and rejected answer "
                      "different prompts",
                      path, out->counts.left_out);
    if (status) records_free(out);
    return status;
}

int records_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(LEARNED, path, template, strict, out, e);
}

int answers_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(JUDGED, path, template, strict, out, e);
}

int pairs_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(PAIRED, path, template, strict, out, e);
}

void records_free(Records *r) {
    for (int i = 0; i < r->n; i++) record_free(&r->v[i]);
    free(r->v);
    free(r->template);
    free(r->unused);
    *r = (Records){0};
}

/* ---- what is said about a file --------------------------------------------------------------- */

void say_skipped(const char *path, const JsonlCounts *counts, const char *what) {
    if (!counts->skipped) return;
    printf("%s: skipped %d of %d lines, because %s no %s; the first: %s\n", path, counts->skipped,
           counts->lines, counts->skipped == 1 ? "it is" : "they are", what,
           counts->first_skipped.text);
}

void say_empty(const char *path, const Records *r) {
    if (r->empty)
        printf(
            "%s: %d of %d records have an empty response, the first on line %d; each teaches to "
            "answer nothing\n",
            path, r->empty, r->n, r->first_empty);
}

void say_unused(const char *path, const char *unused) {
    static char said[256];  // the files of a run often have the same fields: once is enough
    if (!unused || !strcmp(unused, said)) return;
    snprintf(said, sizeof said, "%s", unused);
    printf("%s: not used: the field%s %s\n", path, plural(strchr(unused, ',') ? 2 : 1), unused);
}
