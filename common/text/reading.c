/*
 * reading.c - the fields and spans of one object: see reading.h.
 */
#include "text/reading.h"

/* ---- fields ---------------------------------------------------------------------------------- */

static void mark_used(Reading *x, const char *name) {
    const int most = sizeof x->used / sizeof *x->used;
    if (x->used_n < most) x->used[x->used_n++] = name;
}

/* The value of a field; NULL: the object does not have it, or it is null. */
static const json_t *value_of(const Reading *x, const char *name) {
    const json_t *value = json_object_get(x->object, name);
    return json_is_null(value) ? NULL : value;
}

bool reading_has(const Reading *x, const char *name) { return value_of(x, name); }

const json_t *reading_field(Reading *x, const char *name) {
    const json_t *value = value_of(x, name);
    if (value) mark_used(x, name);
    return value;
}

int reading_text(Reading *x, const char *name, Slice *out) {
    mark_used(x, name);
    return jsonl_text(x->object, name, out, x->fault);
}

int reading_optional_text(Reading *x, const char *name, Slice *out) {
    mark_used(x, name);
    return jsonl_optional_text(x->object, name, out, x->fault);
}

int reading_unknown(Reading *x, const char *expected) {
    static const char *const name[] = {
        "instruction", "prompt",   "response", "output",  "completion", "question", "answer",
        "chosen",      "rejected", "text",     "summary", "problem",    "solution"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        if (json_is_null(json_object_get(x->object, name[i])))
            return fault(x->fault, name[i],
                         "\"%s\" is null, so there is nothing to read; "
                         "expected %s",
                         name[i], expected);
    return jsonl_unknown_fields(x->object, expected, x->fault);
}

/* Does the value hold nothing: null, "", [], {}? */
static bool is_empty(const json_t *value) {
    if (json_is_string(value)) return !json_string_length(value);
    if (json_is_array(value)) return !json_array_size(value);
    if (json_is_object(value)) return !json_object_size(value);
    return json_is_null(value);
}

/* Is name one of the words of list, which are separated by ", "? */
static bool listed(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = list; p && *p;) {
        const size_t word = strcspn(p, ",");
        if (word == n && !memcmp(p, name, n)) return true;
        p += word;
        p += strspn(p, ", ");
    }
    return false;
}

/* Appends a name to the list. */
static void add_unused(char **unused, const char *name) {
    const size_t n = *unused ? strlen(*unused) : 0;
    Str list = {*unused, n, *unused ? n + 1 : 0};
    str_printf(&list, "%s%.100s", n ? ", " : "", name);
    *unused = list.s;
}

void reading_collect_unused(Reading *x, char **unused) {
    enum { MOST = 300 };  // bytes of the list, which is for a note
    const char *name;
    json_t *value;
    char *more = x->inner.s;
    for (char *one; more && (one = strsep(&more, ",")) != NULL;) {
        one += strspn(one, " ");
        if (*one && !listed(*unused, one)) add_unused(unused, one);
    }
    free(x->inner.s);
    x->inner = (Str){0};
    json_object_foreach((json_t *)x->object, name, value) {
        bool used = is_empty(value) || listed(*unused, name);
        for (int i = 0; i < x->used_n; i++) used |= !strcmp(x->used[i], name);
        const size_t n = *unused ? strlen(*unused) : 0;
        if (!used && n <= MOST && *name && !strchr(name, ',')) add_unused(unused, name);
    }
}

/* ---- spans ----------------------------------------------------------------------------------- */

void reading_add_span(Reading *x, Str *text, bool scored) {
    Record *r = x->record;
    str_add(text, "", 0);
    r->spans = xrealloc(r->spans, (size_t)r->n + 1, sizeof *r->spans);
    r->spans[r->n++] = (Span){text->s, text->n, scored};
    *text = (Str){0};
}

void reading_add_response(Reading *x, Slice response) {
    Str text = {0};
    if (x->bare)
        str_add(&text, response.s, response.n);
    else
        template_render_response(&x->style->template, response, &text);
    reading_add_span(x, &text, true);
}

void reading_close_history(Reading *x) {
    for (int i = 0; i < x->record->n; i++) {
        Span *span = &x->record->spans[i];
        if (!span->scored) continue;
        Str ended = {span->text, span->n, span->n + 1};
        str_add(&ended, template_end(), strlen(template_end()));
        *span = (Span){ended.s, ended.n, false};
    }
}

void record_free(Record *r) {
    for (int i = 0; i < r->n; i++) free(r->spans[i].text);
    free(r->spans);
    *r = (Record){0};
}

/* ---- conversations --------------------------------------------------------------------------- */

static bool is_one_of(const json_t *value, const char *const *names) {
    while (*names && !json_string_is(value, *names)) names++;
    return *names;
}

const json_t *message_role(const json_t *turn) {
    const json_t *role = json_object_get(turn, "role");
    return role ? role : json_object_get(turn, "from");
}

const json_t *message_content(const json_t *turn) {
    const json_t *content = json_object_get(turn, "content");
    return content ? content : json_object_get(turn, "value");
}

/* The text of a message: a string, or a list of {"type": "text", "text": string}. Appends it to
   out. False: it is neither. */
static bool message_text(const json_t *content, Str *out) {
    str_add(out, "", 0);
    if (json_is_string(content)) {
        str_add(out, json_string_value(content), json_string_length(content));
        return true;
    }
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i), *text = json_object_get(part, "text");
        if (!json_string_is(json_object_get(part, "type"), "text") || !json_is_string(text))
            return false;
        str_add(out, json_string_value(text), json_string_length(text));
    }
    return json_array_size(content) > 0;
}

/* Sets *context where an answer is not to be learned: "weight": 0 in OpenAI's files of
   conversations, "train", "training" or "loss": false in those of other tools. Each may be a number
   or a boolean. -1 with the fault filled: another value. */
static int read_weight(Reading *x, const json_t *turn, const char *list, size_t number,
                       bool *context) {
    static const char *const switches[] = {"weight", "train", "training", "loss"};
    *context = false;
    for (int i = 0; i < 4; i++) {
        const json_t *value = json_object_get(turn, switches[i]);
        if (!value || json_is_null(value)) continue;
        const double w = json_is_true(value)     ? 1
                         : json_is_false(value)  ? 0
                         : json_is_number(value) ? json_number_value(value)
                                                 : NAN;
        *context |= w == 0;
        if (w == 0 || w == 1 || x->style->purpose != LEARNED) continue;
        char *said = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        fault(x->fault, list, "message %zu of \"%s\" has %s %.40s, expected 0 (not learned) or 1",
              number, list, switches[i], said ? said : "without a value");
        free(said);
        return -1;
    }
    return 0;
}

/* Appends a question in the template. answered: an answer comes before it; first: nothing does. */
static void render_turn(Reading *x, bool first, Slice system, Slice question, Slice input,
                        bool answered, Str *out) {
    const Template *t = &x->style->template;
    if (answered) str_add(out, t->between.s, t->between.n);
    template_render(t, first, system, question, input, out);
    x->templated = true;
}

/* The system's message of a conversation, which is then said. */
static Slice take_system(const Talk *talk) { return (Slice){talk->system.s, talk->system.n}; }

/* Reads an answer of the assistant. */
static int read_answer(Reading *x, const json_t *turn, const char *list, size_t number, Slice text,
                       Talk *talk) {
    const Template *t = &x->style->template;
    bool context;
    if (read_weight(x, turn, list, number, &context)) return -1;
    if (!talk->begun) template_render_system(t, take_system(talk), &talk->pending);
    if (context && x->style->purpose == LEARNED) {
        template_render_response(t, text, &talk->pending);
        str_add(&talk->pending, template_end(), strlen(template_end()));
    } else {
        if (talk->pending.n) reading_add_span(x, &talk->pending, false);
        reading_add_response(x, text);
    }
    talk->asked = false;
    talk->begun = true;
    const json_t *content = message_content(turn);
    if (json_is_string(content)) talk->answer = json_slice(content);
    return 0;
}

/* Reads one message, whose text is given. */
static int read_turn(Reading *x, const json_t *turn, const char *list, size_t number, Slice text,
                     Talk *talk) {
    static const char *const users[] = {"user", "human", NULL};
    static const char *const assistants[] = {"assistant", "gpt", "chatgpt", "model", "bot", NULL};
    static const char *const systems[] = {"system", "developer", NULL};
    const json_t *role = message_role(turn);
    const bool user = is_one_of(role, users), assistant = is_one_of(role, assistants);
    if (is_one_of(role, systems) && number == 1) {
        // an empty one says nothing, unless the template has a part for it
        if (!text.n && !x->style->template.has_system) return 0;
        talk->system.n = 0;
        str_add(&talk->system, text.s, text.n);
        return 0;
    }
    if (user && !talk->asked) {
        render_turn(x, !talk->begun, take_system(talk), text, (Slice){0}, talk->begun,
                    &talk->pending);
        talk->asked = talk->begun = true;
        talk->answer = (Slice){0};
        return 0;
    }
    if (assistant && (talk->asked || !talk->begun))
        return read_answer(x, turn, list, number, text, talk);
    if (user || assistant)
        return fault(x->fault, list,
                     "message %zu of \"%s\" is by \"%s\" out of turn: user and assistant must "
                     "alternate; join its text to the message before it, or leave one of them out",
                     number, list, json_string_value(role));
    const char *name = json_string_value(role);
    bool capital = false;
    for (const char *c = name; *c; c++) capital |= *c >= 'A' && *c <= 'Z';
    return fault(x->fault, list,
                 "message %zu of \"%s\" has role \"%.40s\", expected user or assistant, human or "
                 "gpt, or system in the first%s%s%s",
                 number, list, name, capital ? "; in lower case: jq -c '." : "",
                 capital ? list : "", capital ? "[].role |= ascii_downcase'" : "");
}

void talk_free(Talk *talk) {
    free(talk->pending.s);
    free(talk->system.s);
    talk->pending = talk->system = (Str){0};
}

/* Notes the fields of a message that are not read. */
static void note_unread(Reading *x, const json_t *turn, const char *list) {
    static const char *const read[] = {"role",   "from",  "content",  "value",
                                       "weight", "train", "training", "loss"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)turn, name, value) {
        bool known = is_empty(value);
        for (size_t i = 0; i < sizeof read / sizeof *read; i++) known |= !strcmp(name, read[i]);
        if (known || x->inner.n > 200) continue;
        Str full = {0};
        str_printf(&full, "%s.%.60s", list, name);
        if (!listed(x->inner.s, full.s))
            str_printf(&x->inner, "%s%s", x->inner.n ? ", " : "", full.s);
        free(full.s);
    }
}

/* The fault of a field that should be a list of messages. */
static int no_messages(Reading *x, const char *name, const json_t *turns) {
    const char *text = json_string_value(turns);
    fault(x->fault, name, "\"%s\" is %s, expected an array", name,
          turns ? json_type_name(turns) : "null");
    if (!text || (text[strspn(text, " \n")] != '[')) return -1;
    const size_t n = strlen(x->fault->why.text), room = sizeof x->fault->why.text - n;
    snprintf(x->fault->why.text + n, room,
             ". If it is JSON inside a string, take it out: jq -c '.%.40s |= fromjson'", name);
    return -1;
}

int reading_messages(Reading *x, const char *name, Talk *talk) {
    const json_t *turns = reading_field(x, name);
    if (!json_is_array(turns)) return no_messages(x, name, turns);
    Slice system = {0};
    for (int i = 0; i < 2 && !talk->begun && !system.s; i++) {
        static const char *const names[] = {"system", "system_prompt"};
        if (json_is_string(json_object_get(x->object, names[i])) &&
            reading_optional_text(x, names[i], &system))
            return -1;
    }
    // a system's message of the conversation replaces it
    if (system.s && !talk->begun) str_add(&talk->system, system.s, system.n);
    int status = 0;
    for (size_t i = 0; status == 0 && i < json_array_size(turns); i++) {
        const json_t *turn = json_array_get(turns, i);
        Str text = {0};
        if (!json_is_string(message_role(turn)) || !message_text(message_content(turn), &text))
            status = fault(x->fault, name,
                           "message %zu of \"%s\" is not {\"role\": string, \"content\": string} "
                           "or {\"from\": string, \"value\": string}",
                           i + 1, name);
        else
            status = read_turn(x, turn, name, i + 1, (Slice){text.s, text.n}, talk);
        if (!status) note_unread(x, turn, name);
        free(text.s);
    }
    return status;
}

const char *reading_conversation(const Reading *x) {
    static const char *const names[] = {"messages", "conversations", "conversation"};
    for (int i = 0; i < 3; i++)
        if (reading_has(x, names[i])) return names[i];
    return NULL;
}

/* ---- prompts --------------------------------------------------------------------------------- */

/* Gets the system's message of the object; s NULL: it has none. */
static int get_system(Reading *x, Slice *system) {
    *system = (Slice){0};
    if (reading_has(x, "system") && reading_optional_text(x, "system", system)) return -1;
    if (!system->s && reading_has(x, "system_prompt") &&
        reading_optional_text(x, "system_prompt", system))
        return -1;
    return 0;
}

/* Reads the earlier turns in "history", [[question, answer], ...], if the object has them so. Each
   answer is a scored span. The first turn takes the system's message, which is then none. */
static int add_history(Reading *x, Slice *system) {
    const json_t *history = json_object_get(x->object, "history");
    if (!json_is_array(history) || !json_is_array(json_array_get(history, 0))) return 0;
    reading_field(x, "history");
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *turn = json_array_get(history, i), *question = json_array_get(turn, 0),
                     *answer = json_array_get(turn, 1);
        Str text = {0};
        if (json_array_size(turn) != 2 || !json_is_string(question) || !json_is_string(answer))
            return fault(x->fault, "history", "turn %zu of \"history\" is not [question, answer]",
                         i + 1);
        render_turn(x, i == 0, *system, json_slice(question), (Slice){0}, i > 0, &text);
        *system = (Slice){0};
        reading_add_span(x, &text, false);
        reading_add_response(x, json_slice(answer));
    }
    return 0;
}

/* Gets the input of an instruction, or the context of a question; *part: how the kind names it. */
static int get_input(Reading *x, const char *name, Slice *input, const char **part) {
    static const char *const context[][2] = {{"context", "/context"}, {"passage", "/passage"}};
    if (!strcmp(name, "instruction") && json_object_get(x->object, "input")) {
        *part = "/input";
        if (reading_optional_text(x, "input", input)) return -1;
    }
    for (int i = 0; i < 2 && !input->s; i++) {
        if (!reading_has(x, context[i][0])) continue;
        if (reading_optional_text(x, context[i][0], input)) return -1;
        if (input->s) *part = context[i][1];
    }
    return 0;
}

int reading_prompt(Reading *x, const char *name, bool complete, const char *before,
                   const char *after) {
    Slice prompt, input = {0}, system = {0};
    Str text = {0};
    const char *part = "";
    const bool given = x->style->given;
    if (reading_text(x, name, &prompt)) return -1;
    x->bare = !given && (complete || before);
    if (complete && !given) {
        str_add(&text, prompt.s, prompt.n);
    } else if (before && !given) {
        str_printf(&text, "%s", before);
        str_add(&text, prompt.s, prompt.n);
        str_add(&text, after, strlen(after));
    } else {
        const bool whole = complete || before;  // such a prompt has no other parts
        if (!whole && (get_input(x, name, &input, &part) || get_system(x, &system) ||
                       add_history(x, &system)))
            return -1;
        const bool first = x->record->n == 0;
        render_turn(x, first, system, prompt, input, !first, &text);
    }
    snprintf(x->kind, sizeof x->kind, "%.20s%s", name, part);
    reading_add_span(x, &text, false);
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

int reading_objects(const char *path, Purpose purpose, const char *template, bool strict,
                    AddObject *add, void *out, JsonlCounts *counts, Error *e) {
    Adding a = {.style = {.given = template, .purpose = purpose}, .out = out};
    int status = template_parse(template, &a.style.template, e);
    if (status == 0) status = jsonl_read(path, strict, add, &a, counts, e);
    template_free(&a.style.template);
    return status;
}
