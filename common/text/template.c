/*
 * template.c - the text around an instruction: see template.h.
 */
#include "text/template.h"

#include "text/tokenizer.h"
#include "text/utf8.h"

static const char default_text[] =
    "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n";

/* What the model's directory says. Both are set before the first record is read. */
static char *own_default, *own_end;

static void replace_text(char **text, const char *by) {
    free(*text);
    *text = by ? xstrdup(by) : NULL;
}

void template_set_default(const char *template) { replace_text(&own_default, template); }
void template_set_end(const char *text) { replace_text(&own_end, text); }
const char *template_end(void) { return own_end ? own_end : END_OF_TEXT; }

static const char *text_of(const char *template) {
    if (template) return template;
    return own_default ? own_default : default_text;
}

void template_free(Template *t) {
    for (int i = 0; i < t->n; i++) {
        free(t->part[i].literal.s);
        free(t->part[i].after.s);
        free(t->part[i].instead.s);
    }
    free(t->part);
    free(t->tail.s);
    free(t->between.s);
}

static TemplatePart *add_part(Template *t, TemplatePartKind kind, bool needs_input) {
    t->part = xrealloc(t->part, (size_t)t->n + 1, sizeof *t->part);
    t->part[t->n] = (TemplatePart){.kind = kind, .needs_input = needs_input};
    t->has_input |= kind == PART_INPUT;
    t->has_system |= kind == PART_SYSTEM;
    return &t->part[t->n++];
}

static void add_literal(Template *t, bool needs_input, char c) {
    bool same = t->n > 0 && t->part[t->n - 1].kind == PART_LITERAL &&
                t->part[t->n - 1].needs_input == needs_input;
    if (!same) add_part(t, PART_LITERAL, needs_input);
    str_add(&t->part[t->n - 1].literal, &c, 1);
}

/* If *p begins with word, moves *p behind it and returns true. */
static bool accept(const char **p, const char *word) {
    size_t n = strlen(word);
    if (strncmp(*p, word, n)) return false;
    *p += n;
    return true;
}

/* Returns the character at *p, where \n, \t and \\ spell one, and moves *p behind it. */
static char unescape(const char **p) {
    if (accept(p, "\\n")) return '\n';
    if (accept(p, "\\t")) return '\t';
    if (accept(p, "\\\\")) return '\\';
    return *(*p)++;
}

/* The fields, by the kind of their part. {response} has none of its own. */
static const char *const fields[] = {
    [PART_LITERAL] = "response",
    [PART_INSTRUCTION] = "instruction",
    [PART_INPUT] = "input",
    [PART_SYSTEM] = "system",
};
enum { FIELD_RESPONSE = PART_LITERAL, FIELDS = PART_SYSTEM + 1 };

/* Moves *p behind a field, {name} or {name|trim}. Returns which one it is, or -1. */
static int accept_field(const char **p, bool *trim) {
    for (int i = 0; i < FIELDS; i++) {
        const size_t n = strlen(fields[i]);
        if (**p != '{' || strncmp(*p + 1, fields[i], n)) continue;
        const char *rest = *p + 1 + n;
        *trim = accept(&rest, "|trim");
        if (*rest != '}') continue;
        *p = rest + 1;
        return i;
    }
    return -1;
}

/* True at a lower-case word in braces, perhaps with a filter, which is meant as a field. */
static bool looks_like_field(const char *p) {
    size_t n = *p == '{' ? strspn(p + 1, "abcdefghijklmnopqrstuvwxyz_") : 0;
    if (n && p[1 + n] == '|') n += 1 + strspn(p + 2 + n, "abcdefghijklmnopqrstuvwxyz_");
    return n > 0 && p[1 + n] == '}';
}

/* Does the part in [[ ]] that begins at p contain {system}? */
static bool is_system_part(const char *p) {
    bool trim;
    for (; *p && strncmp(p, "]]", 2); p++) {
        const char *field = p;
        if (accept_field(&field, &trim) == PART_SYSTEM) return true;
    }
    return false;
}

/* Reads the part of the system's message behind "[[". at: its column. */
static int parse_system(Template *t, const char **p, int at, Error *e) {
    if (t->has_system) return fail(e, "template, column %d: a second {system}", at);
    TemplatePart *part = add_part(t, PART_SYSTEM, false);
    Str *text = &part->literal;
    str_add(&part->literal, "", 0);
    str_add(&part->after, "", 0);
    str_add(&part->instead, "", 0);
    while (!accept(p, "]]")) {
        const char *field = *p;
        bool trim;
        const int which = accept_field(&field, &trim);
        if (!*field) return fail(e, "template: [[ without ]]");
        if (which == PART_SYSTEM && text == &part->literal) {
            part->trim = trim;
            text = &part->after;
            *p = field;
        } else if (which >= 0 || accept(&field, "[[")) {
            return fail(e,
                        "template, column %d: besides one {system}, [[ ]] around it can hold only "
                        "text",
                        at);
        } else if (text == &part->after && accept(p, "||")) {
            text = &part->instead;
        } else {
            str_add(text, &(char){unescape(p)}, 1);
        }
    }
    return 0;
}

/* Cuts the text after {response} at the token that ends an answer. */
static void cut_tail(Template *t) {
    const char *end = template_end();
    char *at = strstr(t->tail.s, end);
    str_add(&t->between, "", 0);
    t->ends = at != NULL;
    if (!at) return;
    const char *rest = at + strlen(end);
    str_add(&t->between, rest, strlen(rest));
    t->tail.n = (size_t)(at - t->tail.s);
    *at = 0;
}

int template_parse(const char *template, Template *t, Error *e) {
    const char *text = text_of(template);
    *t = (Template){0};
    bool has_instruction = false, optional = false, ended = false;
    str_add(&t->tail, "", 0);
    for (const char *p = text; *p;) {
        const int at = (int)(p - text) + 1;
        const char *begin = p;
        bool trim = false;
        const int field = accept_field(&p, &trim);
        if (field < 0 && looks_like_field(p))
            return fail(e,
                        "template, column %d: \"%.40s\" is none of {instruction}, {input}, "
                        "{response}, and {system} in [[ ]]",
                        at, p);
        if (ended && field >= 0)
            return fail(e, "template, column %d: no field may follow {response}", at);
        if (field == PART_SYSTEM)
            return fail(e, "template, column %d: {system} must be within [[ ]]: \"%.40s\"", at,
                        begin);
        if (field == PART_INSTRUCTION || field == PART_INPUT) {
            add_part(t, (TemplatePartKind)field, optional)->trim = trim;
            has_instruction |= field == PART_INSTRUCTION && !optional;
        } else if (field == FIELD_RESPONSE) {
            if (optional)
                return fail(e, "template, column %d: {response} cannot be within [[ ]]", at);
            ended = true;
            t->trim_response = trim;
        } else if (!ended && !optional && !strncmp(p, "[[", 2) && is_system_part(p + 2)) {
            p += 2;
            if (parse_system(t, &p, at, e)) return -1;
        } else if (!ended && accept(&p, "[[")) {
            if (optional) return fail(e, "template, column %d: [[ within [[ ]]", at);
            optional = true;
        } else if (optional && accept(&p, "]]")) {
            optional = false;
        } else if (ended) {
            str_add(&t->tail, &(char){unescape(&p)}, 1);
        } else {
            add_literal(t, optional, unescape(&p));
        }
    }
    if (optional) return fail(e, "template: [[ without ]]");
    if (!has_instruction)
        return fail(e, "template: {instruction} is missing, or only within [[ ]]");
    cut_tail(t);
    return 0;
}

/* ---- rendering ------------------------------------------------------------------------------- */

static void add_field(Str *out, Slice text, bool trim) {
    if (trim) text = utf8_trimmed(text);
    str_add(out, text.s, text.n);
}

/* The part of the system's message in the first turn. */
static void render_system(const TemplatePart *part, Slice system, Str *out) {
    if (system.s) {
        str_add(out, part->literal.s, part->literal.n);
        add_field(out, system, part->trim);
        str_add(out, part->after.s, part->after.n);
    } else {
        str_add(out, part->instead.s, part->instead.n);
    }
}

/* Appends the system's message of a template that has no part for it. */
static void add_plain_system(Slice system, Str *out) {
    str_add(out, system.s, system.n);
    str_add(out, "\n\n", 2);
}

/* Appends the instruction, and the input if the template has no place for it. */
static void render_instruction(const Template *t, bool trim, Slice instruction, Slice input,
                               Str *out) {
    if (!input.s || t->has_input) {
        add_field(out, instruction, trim);
        return;
    }
    Str both = {0};
    str_add(&both, instruction.s, instruction.n);
    str_add(&both, "\n", 1);
    str_add(&both, input.s, input.n);
    add_field(out, (Slice){both.s, both.n}, trim);
    free(both.s);
}

void template_render(const Template *t, bool first, Slice system, Slice instruction, Slice input,
                     Str *out) {
    str_add(out, "", 0);
    if (first && system.s && !t->has_system) add_plain_system(system, out);
    for (int i = 0; i < t->n; i++) {
        const TemplatePart *part = &t->part[i];
        if (part->needs_input && !input.s) continue;
        if (part->kind == PART_LITERAL) str_add(out, part->literal.s, part->literal.n);
        if (part->kind == PART_SYSTEM && first) render_system(part, system, out);
        if (part->kind == PART_INPUT && input.s) add_field(out, input, part->trim);
        if (part->kind == PART_INSTRUCTION)
            render_instruction(t, part->trim, instruction, input, out);
    }
}

void template_render_system(const Template *t, Slice system, Str *out) {
    if (system.s && !t->has_system) add_plain_system(system, out);
    for (int i = 0; i < t->n; i++)
        if (t->part[i].kind == PART_SYSTEM) render_system(&t->part[i], system, out);
}

void template_render_response(const Template *t, Slice response, Str *out) {
    add_field(out, response, t->trim_response);
    str_add(out, t->tail.s, t->tail.n);
}

char *template_after_answer(const Template *t) {
    Str all = {0};
    str_add(&all, t->tail.s, t->tail.n);
    if (t->ends) str_printf(&all, "%s%s", template_end(), t->between.s);
    return all.s;
}

char *template_prompt(const char *template, const char *instruction, const char *input, Error *e) {
    Template t;
    Str out = {0};
    Slice second = {input && *input ? input : NULL, input ? strlen(input) : 0};
    if (template_parse(template, &t, e) == 0)
        template_render(&t, true, (Slice){0}, (Slice){instruction, strlen(instruction)}, second,
                        &out);
    template_free(&t);
    return out.s;
}

char *template_turn(const char *template, const char *instruction, bool answered) {
    Template t;
    Str out = {0};
    if (template_parse(template, &t, NULL)) die("the template is wrong: %s", template);
    if (answered) str_add(&out, t.between.s, t.between.n);
    template_render(&t, !answered, (Slice){0}, (Slice){instruction, strlen(instruction)},
                    (Slice){0}, &out);
    template_free(&t);
    return out.s;
}

char *template_response(const char *template, const char *response, Error *e) {
    Template t;
    Str out = {0};
    if (template_parse(template, &t, e) == 0)
        template_render_response(&t, (Slice){response, strlen(response)}, &out);
    template_free(&t);
    return out.s;
}

char *template_line(const char *template) {
    Str out = {0};
    str_add(&out, "", 0);
    for (const char *p = text_of(template); *p;) {
        const char *from = p;
        const char c = unescape(&p);
        if (p - from == 2)
            str_add(&out, from, 2);  // it was spelled already
        else if (c == '\n')
            str_add(&out, "\\n", 2);
        else if (c == '\t')
            str_add(&out, "\\t", 2);
        else if (c == '\\' && (*p == '\n' || *p == '\t'))
            str_add(&out, "\\\\", 2);  // "\" before a spelled "\n" would read as a backslash and n
        else
            str_add(&out, &c, 1);
    }
    return out.s;
}
