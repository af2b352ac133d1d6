/*
 * records.c - records, pairs of answers, prompts and questions out of JSONL files: see records.h.
 */
#include "text/records.h"

#include "text/jsonl.h"
#include "text/template.h"
#include "text/tokenizer.h"

/* ---- Records --------------------------------------------------------------------------------- */

/* The fields of a kind of record with one prompt and one response. A record is of the first kind
   whose prompt and response it has. */
typedef struct {
    const char *prompt, *input, *response;  // input: an optional field
    const char *before, *after;  // the text around the prompt without a --template; NULL: the
                                 // default template
} Fields;

static const Fields known_fields[] = {
    {"instruction", "input", "output", NULL, NULL},
    {"instruction", "input", "response", NULL, NULL},
    {"prompt", NULL, "completion", "", ""},
    {"prompt", NULL, "response", NULL, NULL},
    {"input", NULL, "output", NULL, NULL},
    {"text", NULL, "summary", "Summarize the following text.\n\n", "\n\nSummary:\n"},
    {"question", NULL, "answer", NULL, NULL},
};

/* The names in a kind of conversation: of its list, of a turn's fields, and of the roles. */
typedef struct {
    const char *list, *role, *content;
    const char *user, *assistant;
} Conversation;

static const Conversation known_conversations[] = {
    {"messages", "role", "content", "user", "assistant"},
    {"conversations", "from", "value", "human", "gpt"},
};

static const char EXPECTED[] =
    "instruction/response, instruction[/input]/output, prompt/completion, prompt/response, "
    "input/output, text/summary, question/answer, messages, conversations or text";

typedef enum { LEARNED, JUDGED, PAIRED } Purpose;

/* How records become text. */
typedef struct {
    Template template;
    const char *given;  // the user's template; NULL: the default
    Purpose purpose;    // of records_read, answers_read, pairs_read
} Style;

/* What add_record and add_prompt need: how to render, and the Records or Prompts to append to. */
typedef struct {
    Style style;
    void *out;
} Adding;

/* Adds a span, which then owns the text. */
static void add_span(Record *r, Str *text, bool scored) {
    str_add(text, "", 0);
    r->spans = xrealloc(r->spans, (size_t)r->n + 1, sizeof *r->spans);
    r->spans[r->n++] = (Span){text->s, text->n, scored};
    *text = (Str){0};
}

static void add_response(Record *r, const Template *t, Slice response) {
    Str text = {0};
    str_add(&text, response.s, response.n);
    str_add(&text, t->tail.s, t->tail.n);
    add_span(r, &text, true);
}

static int read_pair(const json_t *object, const Fields *fields, const Style *style, Record *r,
                     Fault *f) {
    Slice prompt, response, input = {0};
    if (jsonl_text(object, fields->prompt, &prompt, f) ||
        jsonl_text(object, fields->response, &response, f))
        return -1;
    if (fields->input && jsonl_optional_text(object, fields->input, &input, f)) return -1;
    Str text = {0};
    bool complete = style->purpose == JUDGED && !strcmp(fields->prompt, "prompt");
    if ((fields->before || complete) && !style->given) {
        if (!complete) str_add(&text, fields->before, strlen(fields->before));
        str_add(&text, prompt.s, prompt.n);
        if (!complete) str_add(&text, fields->after, strlen(fields->after));
    } else {
        template_render(&style->template, prompt, input, &text);
    }
    add_span(r, &text, false);
    add_response(r, &style->template, response);
    return 0;
}

/* Reads one message of a conversation. prompt collects the text before the assistant's next answer.
   asked: that text ends with a user's turn. */
static int read_turn(const json_t *turn, size_t number, const Conversation *c, const Style *style,
                     Str *prompt, bool *asked, Record *r, Fault *f) {
    const json_t *role = json_object_get(turn, c->role),
                 *content = json_object_get(turn, c->content);
    if (!json_is_string(role) || !json_is_string(content))
        return fault(f, c->list, "message %zu of \"%s\" is not {\"%s\": string, \"%s\": string}",
                     number, c->list, c->role, c->content);
    Slice text = {json_string_value(content), json_string_length(content)};
    bool user = json_string_is(role, c->user) || json_string_is(role, "user");
    bool assistant = json_string_is(role, c->assistant) || json_string_is(role, "assistant");
    if (json_string_is(role, "system") && number == 1) {
        str_add(prompt, text.s, text.n);
        str_add(prompt, "\n\n", 2);
    } else if (user && !*asked) {
        template_render(&style->template, text, (Slice){0}, prompt);
        *asked = true;
    } else if (assistant && *asked) {
        add_span(r, prompt, false);
        add_response(r, &style->template, text);
        *asked = false;
    } else if (user || assistant) {
        return fault(
            f, c->list,
            "message %zu of \"%s\" is by \"%s\" out of turn: user and assistant must alternate",
            number, c->list, json_string_value(role));
    } else {
        return fault(
            f, c->list,
            "message %zu of \"%s\" has role \"%.40s\", expected %s or %s, or system in the first",
            number, c->list, json_string_value(role), c->user, c->assistant);
    }
    return 0;
}

static int read_conversation(const json_t *turns, const Conversation *c, const Style *style,
                             Record *r, Fault *f) {
    if (!json_is_array(turns))
        return fault(f, c->list, "\"%s\" is %s, expected an array", c->list, json_type_name(turns));
    Str prompt = {0};
    bool asked = false;
    int status = 0;
    for (size_t i = 0; status == 0 && i < json_array_size(turns); i++)
        status = read_turn(json_array_get(turns, i), i + 1, c, style, &prompt, &asked, r, f);
    free(prompt.s);  // of a last question without an answer: there is nothing to learn
    if (status == 0 && r->n == 0)
        return fault(f, c->list, "\"%s\" has no assistant turn, so there is nothing to learn",
                     c->list);
    return status;
}

/* The kind of a record with one prompt and one response; NULL for any other record. */
static const Fields *fields_of(const json_t *object) {
    for (size_t i = 0; i < sizeof known_fields / sizeof *known_fields; i++)
        if (json_object_get(object, known_fields[i].prompt) &&
            json_object_get(object, known_fields[i].response))
            return &known_fields[i];
    return NULL;
}

/* Recognises a record by its fields and renders it. Writes its kind. */
static int read_record(const json_t *object, const Style *style, Record *r, char kind[32],
                       Fault *f) {
    const Fields *k = fields_of(object);
    if (k) {
        bool input = k->input && json_object_get(object, k->input);
        snprintf(kind, 32, "%s%s%s/%s", k->prompt, input ? "/" : "", input ? k->input : "",
                 k->response);
        return read_pair(object, k, style, r, f);
    }
    for (size_t i = 0; i < sizeof known_conversations / sizeof *known_conversations; i++) {
        const Conversation *c = &known_conversations[i];
        const json_t *turns = json_object_get(object, c->list);
        if (!turns) continue;
        snprintf(kind, 32, "%s", c->list);
        return read_conversation(turns, c, style, r, f);
    }
    if (!json_object_get(object, "text")) return jsonl_unknown_fields(object, EXPECTED, f);
    snprintf(kind, 32, "text");
    Slice text;
    if (jsonl_text(object, "text", &text, f)) return -1;
    Str copy = {0};
    str_add(&copy, text.s, text.n);
    add_span(r, &copy, true);
    return 0;
}

static const char AS_IT_IS[] = "{instruction}";  // the template of a complete prompt

/* The template of a record's prompt in one line; NULL if the record is plain text. */
static char *template_of(const json_t *object, const Style *style, const char *kind) {
    const Fields *k = fields_of(object);
    if (!k && !strcmp(kind, "text")) return NULL;
    if (style->given || !k || !k->before) return template_line(style->given);
    Str own = {0};
    str_printf(&own, "%s%s%s", k->before, AS_IT_IS, k->after);
    char *line = template_line(own.s);
    free(own.s);
    return line;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

static const char EXPECTED_PAIR[] =
    "chosen and rejected, together with instruction[/input], or prompt, or nothing if both begin "
    "with the prompt";

/* A prompt of hh-rlhf ends after the last of these. */
static const char ASSISTANT[] = "\n\nAssistant:";

/* Gets a number from low to high, if the object has this field. */
static int get_number(const json_t *object, const char *name, double low, double high, float *out,
                      Fault *f) {
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value)) return 0;
    if (!json_is_number(value))
        return fault(f, name, "\"%s\" is %s, expected a number", name, json_type_name(value));
    double x = json_number_value(value);
    if (!(x >= low && x <= high))
        return fault(f, name, "\"%s\" is %g, expected a number from %g to %g", name, x, low, high);
    *out = (float)x;
    return 0;
}

/* The length of the prompt at the beginning of an hh-rlhf dialogue; 0: it has no ASSISTANT. */
static size_t prompt_end(Slice text) {
    const size_t n = sizeof ASSISTANT - 1;
    for (size_t end = text.n; end >= n; end--)
        if (!memcmp(text.s + end - n, ASSISTANT, n)) return end;
    return 0;
}

static int add_answer(Record *r, const char *name, const Style *style, Slice answer, Fault *f) {
    if (answer.n == 0)
        return fault(f, name, "the answer in \"%s\" is empty, so there is nothing to judge", name);
    add_response(r, &style->template, answer);
    return 0;
}

/* Reads a pair of texts. The prompt is a field, or both texts begin with it. */
static int read_pair_of_texts(const json_t *object, const Style *style, Record *r, char kind[32],
                              Fault *f) {
    Slice chosen, rejected, prompt;
    if (jsonl_text(object, "chosen", &chosen, f) || jsonl_text(object, "rejected", &rejected, f))
        return -1;
    const bool instruction = json_object_get(object, "instruction");
    Str text = {0};
    if (instruction || json_object_get(object, "prompt")) {
        Slice input = {0};
        if (jsonl_text(object, instruction ? "instruction" : "prompt", &prompt, f)) return -1;
        if (instruction && jsonl_optional_text(object, "input", &input, f)) return -1;
        if (instruction || style->given)
            template_render(&style->template, prompt, input, &text);
        else
            str_add(&text, prompt.s, prompt.n);
        snprintf(kind, 32, "%s/chosen/rejected", instruction ? "instruction" : "prompt");
    } else {
        const size_t n = prompt_end(chosen), m = prompt_end(rejected);
        const char *without = n ? "rejected" : "chosen";
        if (!n || !m)
            return fault(f, without,
                         "there is no prompt, and \"%s\" has no \"\\n\\nAssistant:\" to end one",
                         without);
        if (n != m || memcmp(chosen.s, rejected.s, n)) return JSONL_LEFT_OUT;
        str_add(&text, chosen.s, n);
        chosen = (Slice){chosen.s + n, chosen.n - n};
        rejected = (Slice){rejected.s + n, rejected.n - n};
        snprintf(kind, 32, "chosen/rejected");
    }
    add_span(r, &text, false);
    if (add_answer(r, "chosen", style, chosen, f)) return -1;
    return add_answer(r, "rejected", style, rejected, f);
}

/* Gets the answer in `turn`, the last message of field `name`. */
static int get_answer(const json_t *turn, const char *name, Slice *out, Fault *f) {
    const json_t *content = json_object_get(turn, "content");
    if (!json_string_is(json_object_get(turn, "role"), "assistant") || !json_is_string(content))
        return fault(f, name,
                     "\"%s\" does not end in {\"role\": \"assistant\", \"content\": string}", name);
    *out = (Slice){json_string_value(content), json_string_length(content)};
    return 0;
}

/* Reads a pair of lists of messages. An earlier answer of the conversation belongs to the prompt
   and ends with <|endoftext|>. */
static int read_pair_of_messages(const json_t *object, const Style *style, Record *r, char kind[32],
                                 Fault *f) {
    const json_t *history = json_object_get(object, "prompt"),
                 *chosen = json_object_get(object, "chosen"),
                 *rejected = json_object_get(object, "rejected");
    const bool implicit = !history;
    const Conversation c = {implicit ? "chosen" : "prompt", "role", "content", "user", "assistant"};
    if (implicit) history = chosen;
    if (!json_is_array(history) || !json_is_array(chosen) || !json_is_array(rejected))
        return fault(
            f, NULL,
            "prompt, chosen and rejected must all be strings, or all be lists of messages");
    size_t n = json_array_size(history), m = json_array_size(chosen), k = json_array_size(rejected);
    if (m < 1 || k < 1 || (!implicit && (m > 1 || k > 1)))
        return fault(f, m == 1 ? "rejected" : "chosen", "\"%s\" has %zu messages, expected %s",
                     m == 1 ? "rejected" : "chosen", m == 1 ? k : m,
                     implicit ? "at least one" : "one, the answer to \"prompt\"");
    if (implicit && m != k) return JSONL_LEFT_OUT;
    if (implicit) n--;
    Str prompt = {0};
    Slice better, worse;
    bool asked = false;
    int status = get_answer(json_array_get(chosen, m - 1), "chosen", &better, f) ||
                         get_answer(json_array_get(rejected, k - 1), "rejected", &worse, f)
                     ? -1
                     : 0;
    for (size_t i = 0; status == 0 && i < n; i++) {
        if (implicit && !json_equal(json_array_get(chosen, i), json_array_get(rejected, i)))
            status = JSONL_LEFT_OUT;
        else
            status = read_turn(json_array_get(history, i), i + 1, &c, style, &prompt, &asked, r, f);
    }
    if (status == 0 && !asked)
        status = fault(f, c.list,
                       "the messages before the answer do not end with a user's, so there is "
                       "nothing to answer");
    if (status) {
        free(prompt.s);
        return status;
    }
    for (int i = 0; i < r->n; i++) {
        Span *span = &r->spans[i];
        if (!span->scored) continue;
        Str ended = {0};
        str_add(&ended, span->text, span->n);
        str_add(&ended, END_OF_TEXT, strlen(END_OF_TEXT));
        free(span->text);
        *span = (Span){ended.s, ended.n, false};
    }
    add_span(r, &prompt, false);
    snprintf(kind, 32, "%schosen/rejected messages", implicit ? "" : "prompt/");
    return add_answer(r, "chosen", style, better, f) || add_answer(r, "rejected", style, worse, f)
               ? -1
               : 0;
}

/* 0, -1 with f filled, or JSONL_LEFT_OUT: the two answers follow different prompts. */
static int read_pair_of_answers(const json_t *object, const Style *style, Record *r, char kind[32],
                                Fault *f) {
    const json_t *chosen = json_object_get(object, "chosen"),
                 *rejected = json_object_get(object, "rejected");
    if (!chosen || !rejected) return jsonl_unknown_fields(object, EXPECTED_PAIR, f);
    r->margin = 0;
    r->p_chosen = 1;
    if (get_number(object, "margin", -1e6, 1e6, &r->margin, f) ||
        get_number(object, "p_chosen", 0, 1, &r->p_chosen, f))
        return -1;
    return json_is_array(chosen) ? read_pair_of_messages(object, style, r, kind, f)
                                 : read_pair_of_texts(object, style, r, kind, f);
}

static void record_free(Record *r) {
    for (int i = 0; i < r->n; i++) free(r->spans[i].text);
    free(r->spans);
    *r = (Record){0};
}

/* Reads the objects of a file as `purpose` says. */
static int read_objects(const char *path, Purpose purpose, const char *template, bool strict,
                        AddObject *add, void *out, JsonlCounts *counts, Error *e) {
    Adding a = {.style = {.given = template, .purpose = purpose}, .out = out};
    *counts = (JsonlCounts){0};
    int status = template_parse(template, &a.style.template, e);
    if (status == 0) status = jsonl_read(path, strict, add, &a, counts, e);
    template_free(&a.style.template);
    return status;
}

static int add_record(void *context, const json_t *object, int line, Fault *f) {
    const Adding *a = context;
    const Style *style = &a->style;
    Records *out = a->out;
    Record r = {.line = line};
    char kind[32];
    int status =
        (style->purpose == PAIRED ? read_pair_of_answers : read_record)(object, style, &r, kind, f);
    if (status) {
        record_free(&r);
        return status;
    }
    if (out->n == 0) memcpy(out->kind, kind, sizeof out->kind);
    if (style->purpose == LEARNED && (!out->template || !strcmp(out->template, AS_IT_IS))) {
        char *template = template_of(object, style, kind);
        if (template) {
            free(out->template);
            out->template = template;
        }
    }
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = r;
    return 0;
}

static int read_as(Purpose purpose, const char *path, const char *template, bool strict,
                   Records *out, Error *e) {
    *out = (Records){0};
    JsonlCounts counts;
    int status = read_objects(path, purpose, template, strict, add_record, out, &counts, e);
    if (!status && !out->n)
        status = fail(e,
                      "%s holds no usable pair: in all %d of them chosen and rejected answer "
                      "different prompts",
                      path, counts.left_out);
    out->skipped = counts.skipped;
    out->first_skipped = counts.first_skipped;
    out->mismatched = counts.left_out;
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
    *r = (Records){0};
}

/* ---- Prompts --------------------------------------------------------------------------------- */

/* A record's prompt is the first of these fields that it has; its answer likewise. */
static const char *const prompt_fields[] = {"instruction", "prompt", "chosen"};
static const char *const answer_fields[] = {"answer", "response", "output", "completion"};

static int add_prompt(void *context, const json_t *object, int line, Fault *f) {
    const Adding *a = context;
    const Style *style = &a->style;
    Prompts *out = a->out;
    Slice prompt, input = {0};
    const char *field = NULL;
    for (int i = 0; i < 3 && !field; i++)
        if (json_object_get(object, prompt_fields[i])) field = prompt_fields[i];
    if (!field) return jsonl_unknown_fields(object, "instruction[/input], prompt or chosen", f);
    if (jsonl_text(object, field, &prompt, f)) return -1;
    bool instruction = field == prompt_fields[0], dialogue = field == prompt_fields[2];
    if (instruction && jsonl_optional_text(object, "input", &input, f)) return -1;
    if (dialogue) prompt.n = prompt_end(prompt);
    if (dialogue && !prompt.n)
        return fault(f, field,
                     "\"chosen\" has no turn \"\\n\\nAssistant:\" to end a prompt, and the record "
                     "has no \"prompt\"");
    Str text = {0};
    str_add(&text, "", 0);
    if (instruction || (style->given && !dialogue))
        template_render(&style->template, prompt, input, &text);
    else
        str_add(&text, prompt.s, prompt.n);
    if (text.n == 0) {
        free(text.s);
        return fault(f, field, "the prompt is empty: there is nothing to continue");
    }
    const json_t *answer = NULL;
    for (int i = 0; i < 4 && !json_is_string(answer); i++)
        answer = json_object_get(object, answer_fields[i]);
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = (Prompt){line, text.s, text.n,
                                json_is_string(answer) ? xstrdup(json_string_value(answer)) : NULL};
    return 0;
}

int prompts_read(const char *path, const char *template, bool strict, Prompts *out, Error *e) {
    *out = (Prompts){0};
    JsonlCounts counts;
    int status = read_objects(path, LEARNED, template, strict, add_prompt, out, &counts, e);
    out->skipped = counts.skipped;
    out->first_skipped = counts.first_skipped;
    if (status) prompts_free(out);
    return status;
}

void prompts_free(Prompts *p) {
    for (int i = 0; i < p->n; i++) {
        free(p->v[i].text);
        free(p->v[i].answer);
    }
    free(p->v);
    *p = (Prompts){0};
}

/* ---- Questions ------------------------------------------------------------------------------- */

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
    JsonlCounts counts;
    int status = jsonl_read(path, strict, add_question, out, &counts, e);
    out->skipped = counts.skipped;
    out->first_skipped = counts.first_skipped;
    if (status) questions_free(out);
    return status;
}

void questions_free(Questions *q) {
    for (int i = 0; i < q->n; i++) question_free(&q->v[i]);
    free(q->v);
    *q = (Questions){0};
}

/* ---- skipped lines --------------------------------------------------------------------------- */

void say_skipped(const char *path, int skipped, const char *what, const Error *first) {
    if (!skipped) return;
    printf("%s: skipped %d line%s no %s; the first: %s\n", path, skipped,
           skipped == 1 ? " that is" : "s that are", what, first->text);
}
