/*
 * jinja_form.c - chat templates as templates of ours, and back: see jinja.h.
 *
 * A chat template is a program, so it is not translated but tried: it renders a few conversations,
 * a template is guessed from the texts between their messages, and must then make the same texts of
 * all of them.
 */
#include "text/jinja.h"
#include "text/template.h"

/* ---- spelling -------------------------------------------------------------------------------- */

/* Appends text with a backslash and to[i] for each character from[i]. */
static void escape(Str *out, const char *text, size_t n, const char *from, const char *to) {
    for (size_t i = 0; i < n; i++) {
        const char *at = strchr(from, text[i]);
        if (at) str_add(out, "\\", 1);
        str_add(out, at ? &to[at - from] : &text[i], 1);
    }
}

/* Appends text as a template spells it. */
static void spell(Str *out, Slice text) { escape(out, text.s, text.n, "\n\t\\", "nt\\"); }

/* Appends text as a string of Jinja. */
static void quote(Str *out, const char *text, size_t n) {
    str_add(out, "'", 1);
    escape(out, text, n, "\n\\'", "n\\'");
    str_add(out, "'", 1);
}

/* ---- guessing -------------------------------------------------------------------------------- */

static const char S[] = "systemS0w", X[] = "questionQ1x", Y[] = "answerA2y", Z[] = "questionQ3z",
                  W[] = "answerA4w";

/* A conversation that is tried: its messages, from the system's or from the first question on. */
static const Message plain[] = {
    {"system", S}, {"user", X}, {"assistant", Y}, {"user", Z}, {"assistant", W}};
static const Message padded[] = {{"system",
                                  " \t"
                                  "systemS0w\n\n"},
                                 {"user", "\n questionQ1x \n"},
                                 {"assistant", "  answerA2y\n "},
                                 {"user", " \xE3\x80\x80questionQ3z\xC2\xA0"},
                                 {"assistant", "\n\nanswerA4w\t"}};
enum { MESSAGES = 5 };

/* What a chat template writes around the messages. */
typedef struct {
    char *turns, *with_system;  // X Y Z W, and S X Y Z W, as it renders them; NULL: it fails
    Slice prefix, infix, tail;  // of every turn: before the question, before and after the
                                // answer
    Slice last;                 // after the last answer: tail, or its beginning
    Slice begin;                // before the first question, without a system's message
    Slice before_system, after_system;  // the same with one
} Pieces;

static void pieces_free(Pieces *p) {
    free(p->turns);
    free(p->with_system);
}

static Slice between(const char *from, const char *to) {
    return (Slice){from, (size_t)(to - from)};
}

static bool ends_with(Slice text, Slice end) {
    return text.n >= end.n && !memcmp(text.s + text.n - end.n, end.s, end.n);
}

static bool starts_with(Slice text, Slice start) {
    return text.n >= start.n && !memcmp(text.s, start.s, start.n);
}

/* Finds the texts between X, Y, Z and W. False: a message is missing. */
static bool cut_turns(Pieces *p) {
    const char *x = strstr(p->turns, X), *y = x ? strstr(x, Y) : NULL, *z = y ? strstr(y, Z) : NULL,
               *w = z ? strstr(z, W) : NULL;
    if (!w) return false;
    const Slice behind = between(y + strlen(Y), z);  // the tail, and the prefix of the next turn
    p->last = between(w + strlen(W), w + strlen(w));
    p->infix = between(x + strlen(X), y);
    p->begin = between(p->turns, x);
    if (!starts_with(behind, p->last)) return false;
    // what the first turn does not begin with belongs to the turn before: a line feed
    for (size_t n = p->last.n; n <= behind.n; n++) {
        p->tail = (Slice){behind.s, n};
        p->prefix = (Slice){behind.s + n, behind.n - n};
        if (ends_with(p->begin, p->prefix)) break;
    }
    return true;
}

/* Finds the texts around S. False: the chat template does not write it, or not before X. */
static bool cut_system(Pieces *p) {
    const char *text = p->with_system, *s = text ? strstr(text, S) : NULL,
               *x = s ? strstr(s, X) : NULL;
    if (!x || strstr(text, X) < s) return false;
    p->before_system = between(text, s);
    p->after_system = between(s + strlen(S), x);
    return true;
}

/* How many bytes two texts have in common at their beginning. */
static size_t common(Slice a, Slice b) {
    size_t n = 0;
    while (n < a.n && n < b.n && a.s[n] == b.s[n]) n++;
    return n;
}

/*
 * Appends the text before the question, with the part of the system's message. That part comes
 * before the prefix, or else within it: the first `head` bytes of the prefix come before the part.
 * False: the first turn has another prefix.
 */
static bool add_prefix(const Pieces *p, bool system, bool trim, Str *out) {
    const Slice A = p->prefix, before = p->before_system, after = p->after_system;
    size_t head = 0;
    if (system && !(ends_with(after, A) && ends_with(p->begin, A)))
        head = common((Slice){A.s, common(A, before)}, p->begin);
    const Slice first = {A.s, head}, rest = {A.s + head, A.n - head};
    if (p->begin.n < A.n || !starts_with(p->begin, first) || !ends_with(p->begin, rest))
        return false;
    const Slice instead = {p->begin.s + head, p->begin.n - A.n};
    spell(out, first);
    if (system) {
        if (!ends_with(after, rest)) return false;
        str_add(out, "[[", 2);
        spell(out, (Slice){before.s + head, before.n - head});
        str_printf(out, "{system%s}", trim ? "|trim" : "");
        spell(out, (Slice){after.s, after.n - rest.n});
        if (instead.n) str_add(out, "||", 2);
        spell(out, instead);
        str_add(out, "]]", 2);
    } else if (instead.n) {  // a system's message comes behind it
        str_add(out, "[[", 2);
        spell(out, instead);
        str_printf(out, "{system}\\n\\n||");
        spell(out, instead);
        str_add(out, "]]", 2);
    }
    spell(out, rest);
    return true;
}

enum { TRIM_SYSTEM = 1, TRIM_QUESTION = 2, TRIM_ANSWER = 4, TRIMS = 8 };

/* The template of these pieces; NULL: it cannot be said. */
static char *guess(const Pieces *p, bool system, int trims, const char *end_text) {
    Str out = {0};
    str_add(&out, "", 0);
    if (!add_prefix(p, system, trims & TRIM_SYSTEM, &out)) {
        free(out.s);
        return NULL;
    }
    str_printf(&out, "{instruction%s}", trims & TRIM_QUESTION ? "|trim" : "");
    spell(&out, p->infix);
    const bool usual =
        !p->tail.n || (p->tail.n == strlen(end_text) && !memcmp(p->tail.s, end_text, p->tail.n));
    if (!usual || trims & TRIM_ANSWER) {
        str_printf(&out, "{response%s}", trims & TRIM_ANSWER ? "|trim" : "");
        if (p->tail.n) spell(&out, p->tail);
    }
    return out.s;
}

/* ---- trying ---------------------------------------------------------------------------------- */

static Slice slice_of(const char *s) { return (Slice){s, strlen(s)}; }

/* What a template makes of messages, the first of which may be the system's, with the texts after
   the answers of these pieces. */
static char *rendered(const Template *t, const Message *message, int n, const Pieces *p) {
    Str out = {0};
    Slice system = {0};
    bool first = true;
    str_add(&out, "", 0);
    for (int i = 0; i < n; i++) {
        const Slice content = slice_of(message[i].content);
        if (!strcmp(message[i].role, "system")) {
            system = content;
        } else if (!strcmp(message[i].role, "user")) {
            template_render(t, first, system, content, (Slice){0}, &out);
            first = false;
        } else {
            template_render_response(t, content, &out);
            out.n -= t->tail.n;
            const Slice tail = i + 1 < n ? p->tail : p->last;
            str_add(&out, tail.s, tail.n);
        }
    }
    return out.s;
}

/* Does the template make the same of one conversation as the chat template? A prompt of the chat
   template may lack the text that comes before every answer, if that is not just white space: older
   chat templates know no add_generation_prompt. */
static bool agrees(const char *jinja, Marks marks, const Template *t, const Message *message, int n,
                   const Pieces *p) {
    const bool asks = !strcmp(message[n - 1].role, "user");
    char *theirs = jinja_render(jinja, message, n, asks, marks), *ours = rendered(t, message, n, p);
    bool same = theirs && !strcmp(theirs, ours);
    if (theirs && !same && asks && !strncmp(theirs, ours, strlen(theirs))) {
        const char *rest = ours + strlen(theirs);
        same = rest[strspn(rest, " \n\t")] != 0;
    }
    free(theirs);
    free(ours);
    return same;
}

/* Does it for all of them? */
static bool agrees_on_all(const char *jinja, Marks marks, const char *template, bool system,
                          const Pieces *p) {
    Template t;
    bool same = !template_parse(template, &t, NULL);
    for (int from = system ? 0 : 1; from < 2 && same; from++)
        for (int to = 2; to <= MESSAGES && same; to++)
            same = agrees(jinja, marks, &t, plain + from, to - from, p) &&
                   agrees(jinja, marks, &t, padded + from, to - from, p);
    template_free(&t);
    return same;
}

/* The first of the guesses that agrees with the chat template. part: with a part for the system's
   message; system: it must agree on conversations with such a message, too. */
static char *best_guess(const char *jinja, Marks marks, const Pieces *p, bool part, bool system) {
    for (int trims = 0; trims < TRIMS; trims++) {
        if (trims & TRIM_SYSTEM && !part) continue;
        char *template = guess(p, part, trims, marks.end);
        if (!template) return NULL;
        if (agrees_on_all(jinja, marks, template, system, p)) return template;
        free(template);
    }
    return NULL;
}

/* Is the system's message written as a template without a part for it has it? */
static bool is_usual_system(const Pieces *p) {
    const Slice empty_line = {"\n\n", 2};
    return !p->before_system.n && p->begin.n == p->prefix.n &&
           p->after_system.n == 2 + p->prefix.n && starts_with(p->after_system, empty_line) &&
           ends_with(p->after_system, p->prefix);
}

char *jinja_to_template(const char *jinja, Marks marks, bool *system_said) {
    Pieces p = {.turns = jinja_render(jinja, plain + 1, MESSAGES - 1, false, marks),
                .with_system = jinja_render(jinja, plain, MESSAGES, false, marks)};
    char *template = NULL;
    *system_said = false;
    if (p.turns && cut_turns(&p)) {
        const bool system = cut_system(&p), usual = system && is_usual_system(&p);
        if (usual) template = best_guess(jinja, marks, &p, false, true);
        if (system && !template) template = best_guess(jinja, marks, &p, true, true);
        *system_said = template;
        if (!template) template = best_guess(jinja, marks, &p, false, false);
    }
    pieces_free(&p);
    return template;
}

/* ---- and back -------------------------------------------------------------------------------- */

/* Appends a field of a message. */
static void add_content(Str *out, const char *message, bool trim) {
    str_printf(out, "%s['content']%s", message, trim ? " | trim" : "");
}

/* Appends the part of the system's message, for a turn that may be the first; NULL: the template
   has none, and the message comes with an empty line. */
static void add_system(Str *out, const TemplatePart *part) {
    str_printf(out, "{%% if loop.index0 == 1 and messages[0]['role'] == 'system' %%}{{ ");
    if (part) quote(out, part->literal.s, part->literal.n);
    if (part) str_add(out, " + ", 3);
    add_content(out, "messages[0]", part && part->trim);
    str_add(out, " + ", 3);
    quote(out, part ? part->after.s : "\n\n", part ? part->after.n : 2);
    str_printf(out, " }}");
    if (part && part->instead.n) {
        str_printf(out, "{%% elif loop.first %%}{{ ");
        quote(out, part->instead.s, part->instead.n);
        str_printf(out, " }}");
    }
    str_printf(out, "{%% endif %%}");
}

static const TemplatePart *system_part(const Template *t) {
    for (int i = 0; i < t->n; i++)
        if (t->part[i].kind == PART_SYSTEM) return &t->part[i];
    return NULL;
}

/* Appends a question in the template. */
static void add_question(Str *out, const Template *t) {
    if (t->between.n) {
        str_printf(out,
                   "{%% if not loop.first and messages[loop.index0 - 1]['role'] == "
                   "'assistant' %%}{{ ");
        quote(out, t->between.s, t->between.n);
        str_printf(out, " }}{%% endif %%}");
    }
    if (!system_part(t)) add_system(out, NULL);
    for (int i = 0; i < t->n; i++) {
        const TemplatePart *part = &t->part[i];
        if (part->needs_input || part->kind == PART_INPUT) continue;  // a message has no input
        if (part->kind == PART_SYSTEM) {
            add_system(out, part);
            continue;
        }
        str_printf(out, "{{ ");
        if (part->kind == PART_LITERAL)
            quote(out, part->literal.s, part->literal.n);
        else
            add_content(out, "m", part->trim);
        str_printf(out, " }}");
    }
}

char *jinja_of_template(const char *template, const char *end_text) {
    Template t;
    Str out = {0};
    if (template_parse(template, &t, NULL)) {
        template_free(&t);
        return NULL;
    }
    str_printf(&out, "{%% for m in messages %%}{%% if m['role'] == 'user' %%}");
    add_question(&out, &t);
    str_printf(&out, "{%% elif m['role'] == 'assistant' %%}");
    add_system(&out, system_part(&t));
    str_printf(&out, "{{ ");
    add_content(&out, "m", t.trim_response);
    str_add(&out, " + ", 3);
    if (t.tail.n) {
        quote(&out, t.tail.s, t.tail.n);
        str_add(&out, " + ", 3);
    }
    quote(&out, end_text, strlen(end_text));
    str_printf(&out, " }}{%% endif %%}{%% endfor %%}");
    template_free(&t);
    return out.s;
}
