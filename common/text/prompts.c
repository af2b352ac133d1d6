/*
 * prompts.c - prompts out of JSONL files: see prompts_read in records.h.
 */
#include "text/reading.h"

static const char EXPECTED[] =
    "instruction[/input], prompt, question, problem, messages, conversations, input/output, "
    "text/summary or chosen";

/* ---- the kinds of prompts -------------------------------------------------------------------- */

/* Reads a conversation up to its last answer, which is *answer if the conversation ends with one.
 */
static int read_conversation(Reading *x, const char *list, Slice *answer) {
    Talk talk = {0};
    const int status = reading_messages(x, list, &talk);
    Record *r = x->record;
    if (!status && talk.asked) reading_add_span(x, &talk.pending, false);
    talk_free(&talk);
    if (status || talk.asked) return status;
    if (!r->n || !r->spans[r->n - 1].scored)
        return fault(x->fault, list, "\"%s\" has no question to answer", list);
    free(r->spans[--r->n].text);
    *answer = talk.answer;
    return 0;
}

/* Reads the prompt of a pair: what its readers make of both answers' common beginning. */
static int read_prompt_of_pair(Reading *x) {
    if (json_is_array(json_object_get(x->object, "chosen"))) {
        Slice answer;
        return read_conversation(x, "chosen", &answer);
    }
    Slice dialogue;
    Str text = {0};
    if (reading_text(x, "chosen", &dialogue)) return -1;
    const size_t n = dialogue_prompt_end(dialogue);
    if (!n)
        return fault(x->fault, "chosen",
                     "\"chosen\" has no turn \"\\n\\nAssistant:\" to end a prompt, and the record "
                     "has no \"prompt\"");
    str_add(&text, dialogue.s, n);
    reading_add_span(x, &text, false);
    return 0;
}

/* Reads the prompt of any record. */
static int read_prompt(Reading *x, Slice *answer) {
    const Kind *k = reading_kind(x);
    const char *list = reading_conversation(x), *name = reading_prompt_field(x);
    const bool is_list = name && json_is_array(json_object_get(x->object, name));
    const bool is_prompt = name && !strcmp(name, "prompt");
    // a complete prompt comes before a question and its answer
    if (k && is_prompt && strcmp(k->prompt, "prompt")) k = NULL;
    if (is_list && is_prompt) return read_conversation(x, name, answer);
    if (k) return reading_prompt(x, k->prompt, reading_complete(x, k), k->before, k->after);
    if (list && !(name && !strcmp(name, "instruction"))) return read_conversation(x, list, answer);
    // a pair of conversations repeats its prompt
    const bool pair = json_array_size(json_object_get(x->object, "chosen")) > 1;
    if (name && !pair) return reading_prompt(x, name, is_prompt, NULL, NULL);
    if (reading_has(x, "chosen")) return read_prompt_of_pair(x);
    return reading_unknown(x, EXPECTED);
}

/* ---- the record's own answer ----------------------------------------------------------------- */

/* A copy of a number or a boolean as text. */
static char *shown_number(const json_t *value) {
    const double number = json_number_value(value);
    if (json_is_boolean(value)) return xstrdup(json_is_true(value) ? "true" : "false");
    Str text = {0};
    str_printf(&text, "%.15g", number);
    if (strtod(text.s, NULL) == number) return text.s;
    text.n = 0;
    str_printf(&text, "%.17g", number);
    return text.s;
}

/* A copy of the record's own answer, or NULL. */
static char *own_answer(Reading *x, Slice last) {
    static const char *const names[] = {"answer",     "response", "output",
                                        "completion", "solution", "ground_truth",
                                        "summary",    "answers",  "highlights"};
    enum { NAMES = sizeof names / sizeof *names };
    // verl's data: {"reward_model": {"ground_truth": ...}}
    const json_t *truth =
        json_object_get(json_object_get(x->object, "reward_model"), "ground_truth");
    for (int i = 0; i < NAMES; i++) {
        const json_t *value = reading_first_answer(json_object_get(x->object, names[i]));
        if (!json_is_string(value)) continue;
        reading_field(x, names[i]);
        return xstrdup(json_string_value(value));
    }
    if (truth) reading_field(x, "reward_model");
    truth = reading_first_answer(truth);
    if (json_is_string(truth)) return xstrdup(json_string_value(truth));
    if (json_is_number(truth)) return shown_number(truth);
    for (int i = 0; i < NAMES; i++) {
        const json_t *value = json_object_get(x->object, names[i]);
        if (!json_is_number(value) && !json_is_boolean(value)) continue;
        return shown_number(reading_field(x, names[i]));
    }
    const json_t *completion = json_array_get(json_object_get(x->object, "completion"), 0),
                 *content = json_object_get(completion, "content");
    if (json_is_string(content)) {
        reading_field(x, "completion");
        return xstrdup(json_string_value(content));
    }
    return last.s ? xstrdup(last.s) : NULL;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int add_prompt(void *context, const json_t *object, int line, Fault *f) {
    const Adding *a = context;
    Prompts *out = a->out;
    Record r = {.line = line};
    Reading x = {.object = object, .style = &a->style, .record = &r, .fault = f};
    Slice last = {0};
    Str text = {0};
    int status = read_prompt(&x, &last);
    reading_close_history(&x);
    str_add(&text, "", 0);
    for (int i = 0; i < r.n && !status; i++) str_add(&text, r.spans[i].text, r.spans[i].n);
    record_free(&r);
    if (!status && !text.n)
        status = fault(f, x.used_n ? x.used[0] : NULL,
                       "the prompt is empty: there is nothing to continue");
    if (status) {
        free(text.s);
        free(x.inner.s);
        return status;
    }
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = (Prompt){line, text.s, text.n, own_answer(&x, last)};
    out->templated |= x.templated;
    reading_collect_unused(&x, &out->unused);
    return 0;
}

int prompts_read(const char *path, const char *template, bool strict, Prompts *out, Error *e) {
    *out = (Prompts){0};
    const int status =
        reading_objects(path, PROMPTED, template, strict, add_prompt, out, &out->counts, e);
    if (status) prompts_free(out);
    return status;
}

void prompts_free(Prompts *p) {
    for (int i = 0; i < p->n; i++) {
        free(p->v[i].text);
        free(p->v[i].answer);
    }
    free(p->v);
    free(p->unused);
    *p = (Prompts){0};
}
