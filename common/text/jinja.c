/*
 * jinja.c - a part of Jinja, enough for the usual chat templates: see jinja.h.
 *
 * A template is cut into items: text, {{ expression }}, {% statement %}. Statements are carried out
 * while they are read, so the body of a loop is read once for each message.
 */
#include "text/jinja.h"

#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>

/* ---- values ---------------------------------------------------------------------------------- */

typedef enum { UNDEFINED, NOTHING, BOOLEAN, NUMBER, TEXT, LIST, MESSAGE, LOOP, SPACE } Type;

typedef struct {
    Type type;
    int i;          // of BOOLEAN, NUMBER; of MESSAGE and LIST where it begins
    int end;        // of LIST
    const char *s;  // of TEXT; of SPACE, a namespace, its name
} Value;

typedef struct {
    char name[136];
    Value value;
} Variable;

typedef enum { ITEM_TEXT, ITEM_EXPRESSION, ITEM_STATEMENT } ItemType;

typedef struct {
    ItemType type;
    const char *s;
    size_t n;
} Item;

enum {
    MAX_VARIABLES = 64,
    MAX_DEPTH = 64,
    MAX_STEPS = 100000,
    MAX_TEXT = 16 << 20,
    MAX_NUMBER = 1000000
};

typedef struct {
    Item *item;
    int items;
    const char *p, *end;  // what is read of the current expression
    const Message *message;
    int n;
    bool prompt;  // add_generation_prompt
    Marks marks;
    Variable variable[MAX_VARIABLES];
    int variables, scope;           // variables from `scope` on were set in the innermost loop
    int index, loop_from, loop_to;  // of the innermost loop; index -1: there is none
    char **owned;                   // texts made on the way
    int owned_n;
    size_t made;  // their bytes
    Str out;
    int depth, steps;
    bool failed;
} Jinja;

static Value fail_value(Jinja *j) {
    j->failed = true;
    return (Value){.type = UNDEFINED};
}

static Value text_value(const char *s) { return (Value){.type = TEXT, .s = s}; }
static Value boolean(bool b) { return (Value){.type = BOOLEAN, .i = b}; }
static Value number(int i) { return (Value){.type = NUMBER, .i = i}; }

/* A text of its own, which lives as long as j. */
static Value own(Jinja *j, const char *s, size_t n) {
    Str copy = {0};
    j->made += n;
    if (j->made > MAX_TEXT) j->failed = true;  // such as a text that is doubled again and again
    str_add(&copy, s, j->failed ? 0 : n);
    j->owned = grow(j->owned, j->owned_n, sizeof *j->owned);
    j->owned[j->owned_n++] = copy.s;
    return text_value(copy.s);
}

static bool is_true(Value v) {
    switch (v.type) {
        case BOOLEAN:
        case NUMBER: return v.i != 0;
        case TEXT: return *v.s;
        case LIST: return v.end > v.i;
        case MESSAGE:
        case LOOP:
        case SPACE: return true;
        default: return false;
    }
}

static bool equal(Value a, Value b) {
    if (a.type == TEXT && b.type == TEXT) return !strcmp(a.s, b.s);
    const bool numbers =
        (a.type == NUMBER || a.type == BOOLEAN) && (b.type == NUMBER || b.type == BOOLEAN);
    if (numbers || (a.type == MESSAGE && b.type == MESSAGE)) return a.i == b.i;
    return a.type == b.type && (a.type == UNDEFINED || a.type == NOTHING);
}

/* What {{ }} prints of a value. */
static const char *shown(Jinja *j, Value v) {
    char figures[24];
    if (v.type == TEXT) return v.s;
    if (v.type == UNDEFINED) return "";
    if (v.type == NOTHING) return "None";
    if (v.type == BOOLEAN) return v.i ? "True" : "False";
    if (v.type != NUMBER) {
        j->failed = true;
        return "";
    }
    snprintf(figures, sizeof figures, "%d", v.i);
    return own(j, figures, strlen(figures)).s;
}

/* ---- variables ------------------------------------------------------------------------------- */

static Variable *find_variable(Jinja *j, const char *name, int from) {
    for (int i = j->variables - 1; i >= from; i--)
        if (!strcmp(j->variable[i].name, name)) return &j->variable[i];
    return NULL;
}

static void set_variable(Jinja *j, const char *name, Value value, int from) {
    Variable *v = find_variable(j, name, from);
    if (!v && j->variables == MAX_VARIABLES) {
        j->failed = true;
        return;
    }
    if (!v) v = &j->variable[j->variables++];
    snprintf(v->name, sizeof v->name, "%s", name);
    v->value = value;
}

/* A variable that transformers sets and that is not known here: the date, and other tokens. */
static bool is_unknown(const char *name) {
    static const char *const names[] = {
        "raise_exception", "strftime_now", "unk_token",  "pad_token",
        "sep_token",       "cls_token",    "mask_token", "additional_special_tokens"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

static Value get_variable(Jinja *j, const char *name) {
    const Variable *v = find_variable(j, name, 0);
    if (v) return v->value;
    if (is_unknown(name)) return fail_value(j);
    if (!strcmp(name, "tools") || !strcmp(name, "documents")) return (Value){.type = NOTHING};
    if (!strcmp(name, "messages")) return (Value){.type = LIST, .i = 0, .end = j->n};
    if (!strcmp(name, "add_generation_prompt")) return boolean(j->prompt);
    const bool end = !strcmp(name, "eos_token"), begin = !strcmp(name, "bos_token");
    const char *mark = end ? j->marks.end : begin ? j->marks.begin : NULL;
    if (mark) return text_value(mark);
    if (!strcmp(name, "loop") && j->index >= 0) return (Value){.type = LOOP};
    return (Value){.type = UNDEFINED};
}

/* ---- reading an expression ------------------------------------------------------------------- */

static void skip_space(Jinja *j) {
    while (j->p < j->end && isspace((unsigned char)*j->p)) j->p++;
}

static bool is_name(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* Reads this mark or word, if it comes next. */
static bool accept(Jinja *j, const char *word) {
    skip_space(j);
    const size_t n = strlen(word);
    if ((size_t)(j->end - j->p) < n || memcmp(j->p, word, n)) return false;
    if (is_name(word[n - 1]) && j->p + n < j->end && is_name(j->p[n])) return false;
    j->p += n;
    return true;
}

static bool read_name(Jinja *j, char name[64]) {
    skip_space(j);
    size_t n = 0;
    while (j->p + n < j->end && is_name(j->p[n])) n++;
    if (n == 0 || n > 40 || isdigit((unsigned char)*j->p)) return false;
    snprintf(name, 64, "%.*s", (int)n, j->p);
    j->p += n;
    return true;
}

static Value read_expression(Jinja *j);

static Value read_quoted(Jinja *j, char quote) {
    Str s = {0};
    str_add(&s, "", 0);
    while (j->p < j->end && *j->p != quote) {
        char c = *j->p++;
        if (c == '\\' && j->p < j->end) {
            static const char from[] = "nrt\\'\"", to[] = "\n\r\t\\'\"";
            const char *at = strchr(from, *j->p);
            if (!at || !*j->p) j->failed = true;
            c = at ? to[at - from] : c;
            j->p++;
        }
        str_add(&s, &c, 1);
    }
    if (j->p == j->end) j->failed = true;
    j->p += j->p < j->end;
    const Value v = own(j, s.s, s.n);
    free(s.s);
    return v;
}

/* namespace(a=1, b=2): its members become variables "NAME.a". */
static Value read_namespace(Jinja *j, const char *name) {
    char member[64], full[136];
    while (!j->failed && !accept(j, ")")) {
        if (!read_name(j, member) || !accept(j, "=")) return fail_value(j);
        snprintf(full, sizeof full, "%.64s.%.64s", name, member);
        set_variable(j, full, read_expression(j), 0);
        accept(j, ",");
    }
    return (Value){.type = SPACE, .s = own(j, name, strlen(name)).s};
}

static Value message_at(const Jinja *j, int i) {
    return i >= 0 && i < j->n ? (Value){.type = MESSAGE, .i = i} : (Value){.type = UNDEFINED};
}

/* The member `name` of a value. */
static Value member(Jinja *j, Value v, const char *name) {
    char full[136];
    if (v.type == MESSAGE && !strcmp(name, "role")) return text_value(j->message[v.i].role);
    if (v.type == MESSAGE && !strcmp(name, "content")) return text_value(j->message[v.i].content);
    if (v.type == MESSAGE) return (Value){.type = UNDEFINED};
    if (v.type == SPACE) {
        snprintf(full, sizeof full, "%.64s.%.64s", v.s, name);
        return get_variable(j, full);
    }
    if (v.type != LOOP) return fail_value(j);
    const int at = j->index - j->loop_from;
    if (!strcmp(name, "index0")) return number(at);
    if (!strcmp(name, "index")) return number(at + 1);
    if (!strcmp(name, "first")) return boolean(at == 0);
    if (!strcmp(name, "last")) return boolean(j->index + 1 == j->loop_to);
    if (!strcmp(name, "length")) return number(j->loop_to - j->loop_from);
    if (!strcmp(name, "previtem"))
        return at ? message_at(j, j->index - 1) : (Value){.type = UNDEFINED};
    if (!strcmp(name, "nextitem"))
        return j->index + 1 < j->loop_to ? message_at(j, j->index + 1) : (Value){.type = UNDEFINED};
    return fail_value(j);
}

static Value stripped(Jinja *j, Value v, bool left, bool right) {
    const Slice text = utf8_trimmed_at((Slice){v.s, strlen(v.s)}, left, right);
    return own(j, text.s, text.n);
}

/* upper, lower, capitalize, title. */
static Value in_case(Jinja *j, Value v, const char *name) {
    const Value copy = own(j, v.s, strlen(v.s));
    char *s = j->owned[j->owned_n - 1];
    const bool upper = !strcmp(name, "upper"), lower = !strcmp(name, "lower");
    for (size_t i = 0; s[i]; i++) {
        if ((unsigned char)s[i] >= 0x80) return fail_value(j);
        const bool first = i == 0 || (!strcmp(name, "title") && !isalpha((unsigned char)s[i - 1]));
        s[i] = (char)(upper || (!lower && first) ? toupper(s[i]) : tolower(s[i]));
    }
    return copy;
}

/* A function of a value: v|name, or v.name() with an argument. */
static Value apply(Jinja *j, Value v, const char *name, Value argument) {
    if (!strcmp(name, "length") && v.type == LIST) return number(v.end - v.i);
    if (!strcmp(name, "get") && v.type == MESSAGE && argument.type == TEXT)
        return member(j, v, argument.s);
    if (v.type != TEXT) return fail_value(j);
    if (!strcmp(name, "trim") || !strcmp(name, "strip")) return stripped(j, v, true, true);
    if (!strcmp(name, "lstrip")) return stripped(j, v, true, false);
    if (!strcmp(name, "rstrip")) return stripped(j, v, false, true);
    if (!strcmp(name, "string") || !strcmp(name, "safe")) return v;
    if (!strcmp(name, "length")) return number((int)strlen(v.s));
    if (!strcmp(name, "upper") || !strcmp(name, "lower") || !strcmp(name, "capitalize") ||
        !strcmp(name, "title"))
        return in_case(j, v, name);
    if (argument.type != TEXT) return fail_value(j);
    const size_t n = strlen(v.s), m = strlen(argument.s);
    if (!strcmp(name, "startswith")) return boolean(!strncmp(v.s, argument.s, m));
    if (!strcmp(name, "endswith")) return boolean(n >= m && !strcmp(v.s + n - m, argument.s));
    return fail_value(j);
}

/* The arguments of a call up to ")": none, or one. */
static Value read_argument(Jinja *j) {
    if (accept(j, ")")) return (Value){.type = UNDEFINED};
    const Value v = read_expression(j);
    if (!accept(j, ")")) return fail_value(j);
    return v;
}

/* [i], ["name"], [from:to]. */
static Value read_index(Jinja *j, Value v) {
    Value from = number(0), to = number(v.end - v.i);
    const bool open = accept(j, ":");
    if (!open) from = read_expression(j);
    const bool slice = open || accept(j, ":");
    if (slice && !accept(j, "]")) {
        to = read_expression(j);
        if (!accept(j, "]")) return fail_value(j);
    } else if (!slice && !accept(j, "]")) {
        return fail_value(j);
    }
    if (!slice && from.type == TEXT) return member(j, v, from.s);
    if (v.type != LIST || from.type != NUMBER || to.type != NUMBER) return fail_value(j);
    const int n = v.end - v.i;
    if (from.i < 0) from.i += n;
    if (to.i < 0) to.i += n;
    if (!slice)
        return from.i < n ? message_at(j, from.i < 0 ? -1 : v.i + from.i)
                          : (Value){.type = UNDEFINED};
    from.i = min_int(max_int(from.i, 0), n);
    to.i = min_int(max_int(to.i, from.i), n);
    return (Value){.type = LIST, .i = v.i + from.i, .end = v.i + to.i};
}

static Value read_atom(Jinja *j) {
    char name[64];
    skip_space(j);
    if (j->p == j->end) return fail_value(j);
    if (*j->p == '\'' || *j->p == '"') return read_quoted(j, *j->p++);
    if (isdigit((unsigned char)*j->p)) {
        int i = 0;
        while (j->p < j->end && isdigit((unsigned char)*j->p) && i < 100000)
            i = 10 * i + *j->p++ - '0';
        return number(i);
    }
    if (accept(j, "-")) {
        const Value v = read_atom(j);
        return v.type == NUMBER ? number(-v.i) : fail_value(j);
    }
    if (accept(j, "(")) {
        const Value v = read_expression(j);
        return accept(j, ")") ? v : fail_value(j);
    }
    if (!read_name(j, name)) return fail_value(j);
    if (!strcasecmp(name, "true")) return boolean(true);
    if (!strcasecmp(name, "false")) return boolean(false);
    if (!strcasecmp(name, "none")) return (Value){.type = NOTHING};
    skip_space(j);
    if (j->p < j->end && *j->p == '(') return fail_value(j);  // raise_exception, strftime_now, ...
    return get_variable(j, name);
}

static Value read_postfix(Jinja *j) {
    char name[64];
    Value v = read_atom(j);
    while (!j->failed) {
        if (accept(j, "[")) {
            v = read_index(j, v);
        } else if (accept(j, "|")) {
            if (!read_name(j, name)) return fail_value(j);
            v = apply(j, v, name, accept(j, "(") ? read_argument(j) : (Value){.type = UNDEFINED});
        } else if (accept(j, ".")) {
            if (!read_name(j, name)) return fail_value(j);
            v = accept(j, "(") ? apply(j, v, name, read_argument(j)) : member(j, v, name);
        } else {
            break;
        }
    }
    return v;
}

static Value read_remainder(Jinja *j) {
    Value a = read_postfix(j);
    while (!j->failed && accept(j, "%")) {
        const Value b = read_postfix(j);
        if (a.type != NUMBER || b.type != NUMBER || b.i <= 0 || a.i < 0) return fail_value(j);
        a.i %= b.i;
    }
    return a;
}

static Value read_sum(Jinja *j) {
    Value a = read_remainder(j);
    while (!j->failed) {
        skip_space(j);
        if (j->p == j->end || !strchr("+-~", *j->p)) break;
        const char mark = *j->p++;
        const Value b = read_remainder(j);
        if (j->failed) break;
        if (mark == '~' || (mark == '+' && a.type == TEXT && b.type == TEXT)) {
            Str s = {0};
            str_printf(&s, "%s%s", shown(j, a), shown(j, b));
            a = own(j, s.s, s.n);
            free(s.s);
        } else if (a.type != NUMBER || b.type != NUMBER) {
            return fail_value(j);
        } else {
            a.i = mark == '+' ? a.i + b.i : a.i - b.i;
            if (abs(a.i) > MAX_NUMBER) return fail_value(j);
        }
    }
    return a;
}

/* What follows `is`. */
static Value read_test(Jinja *j, Value v) {
    const bool negated = accept(j, "not");
    bool is;
    if (accept(j, "defined"))
        is = v.type != UNDEFINED;
    else if (accept(j, "undefined"))
        is = v.type == UNDEFINED;
    else if (accept(j, "none"))
        is = v.type == NOTHING;
    else if (accept(j, "string"))
        is = v.type == TEXT;
    else if (accept(j, "true"))
        is = v.type == BOOLEAN && v.i;
    else if (accept(j, "false"))
        is = v.type == BOOLEAN && !v.i;
    else
        return fail_value(j);
    return boolean(is != negated);
}

static Value read_comparison(Jinja *j) {
    const Value a = read_sum(j);
    if (accept(j, "is")) return read_test(j, a);
    if (accept(j, "==")) return boolean(equal(a, read_sum(j)));
    if (accept(j, "!=")) return boolean(!equal(a, read_sum(j)));
    const bool not_in = accept(j, "not in");
    if (not_in || accept(j, "in")) {
        const Value b = read_sum(j);
        if (a.type != TEXT || b.type != TEXT) return fail_value(j);
        return boolean(!strstr(b.s, a.s) == not_in);
    }
    static const char *const orders[] = {"<=", ">=", "<", ">"};
    for (int i = 0; i < 4; i++) {
        if (!accept(j, orders[i])) continue;
        const Value b = read_sum(j);
        if (a.type != NUMBER || b.type != NUMBER) return fail_value(j);
        return boolean(i == 0 ? a.i <= b.i : i == 1 ? a.i >= b.i : i == 2 ? a.i < b.i : a.i > b.i);
    }
    return a;
}

static Value read_not(Jinja *j) {
    return accept(j, "not") ? boolean(!is_true(read_not(j))) : read_comparison(j);
}

static Value read_and(Jinja *j) {
    Value a = read_not(j);
    while (!j->failed && accept(j, "and")) {
        const Value b = read_not(j);
        a = is_true(a) ? b : a;
    }
    return a;
}

static Value read_or(Jinja *j) {
    Value a = read_and(j);
    while (!j->failed && accept(j, "or")) {
        const Value b = read_and(j);
        a = is_true(a) ? a : b;
    }
    return a;
}

static Value read_expression(Jinja *j) {
    if (j->failed || j->depth == MAX_DEPTH || j->steps++ > MAX_STEPS) return fail_value(j);
    j->depth++;
    Value v = read_or(j);
    if (accept(j, "if")) {
        const Value condition = read_or(j);
        const Value other = accept(j, "else") ? read_expression(j) : (Value){.type = UNDEFINED};
        if (!is_true(condition)) v = other;
    }
    j->depth--;
    return v;
}

/* ---- statements ------------------------------------------------------------------------------ */

static void start_item(Jinja *j, int i) {
    j->p = j->item[i].s;
    j->end = j->p + j->item[i].n;
}

/* The rest of the current item is one expression. */
static Value whole_expression(Jinja *j) {
    const Value v = read_expression(j);
    skip_space(j);
    if (j->p != j->end) j->failed = true;
    return v;
}

static int run_block(Jinja *j, int i, bool active);

/* {% for NAME in LIST %} ... {% endfor %}. Returns the item after it. */
static int run_for(Jinja *j, int i, bool active) {
    char name[64];
    Value list = {.type = LIST};
    if (!read_name(j, name) || !accept(j, "in")) j->failed = true;
    if (active && !j->failed) list = whole_expression(j);
    if (list.type != LIST) j->failed = true;
    const int index = j->index, from = j->loop_from, to = j->loop_to, scope = j->scope;
    const int variables = j->variables;
    int end = i + 1;
    j->scope = variables;
    for (int k = list.i; k < list.end && !j->failed; k++) {
        j->index = k;
        j->loop_from = list.i;
        j->loop_to = list.end;
        set_variable(j, name, message_at(j, k), j->scope);
        end = run_block(j, i + 1, true);
        j->variables = variables;
    }
    if (list.i == list.end) end = run_block(j, i + 1, false);
    j->scope = scope;
    j->index = index;
    j->loop_from = from;
    j->loop_to = to;
    if (end == j->items) j->failed = true;
    if (j->failed) return j->items;
    start_item(j, end);
    if (!accept(j, "endfor")) j->failed = true;
    return end + 1;
}

/* {% if %} ... {% elif %} ... {% else %} ... {% endif %}. Returns the item after it. */
static int run_if(Jinja *j, int i, bool active) {
    bool open = active;  // no branch was taken yet
    bool take = open && is_true(whole_expression(j));
    while (!j->failed) {
        open = open && !take;
        i = run_block(j, i + 1, take);
        if (i == j->items) break;
        start_item(j, i);
        if (accept(j, "endif")) return i + 1;
        if (accept(j, "elif"))
            take = open && is_true(whole_expression(j));
        else if (accept(j, "else"))
            take = open;
        else
            break;
    }
    j->failed = true;
    return j->items;
}

static void run_set(Jinja *j) {
    char first[64] = "", part[64] = "", name[136];
    if (!read_name(j, first)) j->failed = true;
    const bool dotted = accept(j, ".");
    if (dotted && !read_name(j, part)) j->failed = true;
    snprintf(name, sizeof name, "%s%s%s", first, dotted ? "." : "", part);
    if (j->failed || !accept(j, "=")) {
        j->failed = true;
        return;
    }
    const bool space = accept(j, "namespace") && accept(j, "(");
    const Value v = space ? read_namespace(j, name) : whole_expression(j);
    set_variable(j, name, v, dotted ? 0 : j->scope);
}

/* Carries out items from i on, up to a statement that ends a block. Returns its number, or that
   after the last. Without active it is only read. */
static int run_block(Jinja *j, int i, bool active) {
    if (j->depth++ == MAX_DEPTH) j->failed = true;
    while (i < j->items && !j->failed && j->steps++ < MAX_STEPS) {
        if (j->out.n > MAX_TEXT) j->failed = true;
        const Item *item = &j->item[i];
        start_item(j, i);
        if (item->type == ITEM_TEXT) {
            if (active) str_add(&j->out, item->s, item->n);
            i++;
        } else if (item->type == ITEM_EXPRESSION) {
            const char *text = active ? shown(j, whole_expression(j)) : "";
            str_add(&j->out, text, strlen(text));
            i++;
        } else if (accept(j, "for")) {
            i = run_for(j, i, active);
        } else if (accept(j, "if")) {
            i = run_if(j, i, active);
        } else if (accept(j, "set")) {
            if (active) run_set(j);
            i++;
        } else if (accept(j, "generation") || accept(j, "endgeneration")) {
            i++;  // marks what the assistant said
        } else {
            break;
        }
    }
    j->depth--;
    return i;
}

/* ---- cutting into items ---------------------------------------------------------------------- */

static void add_item(Jinja *j, ItemType type, const char *s, const char *end) {
    if (type == ITEM_TEXT && s == end) return;
    j->item = grow(j->item, j->items, sizeof *j->item);
    j->item[j->items++] = (Item){type, s, (size_t)(end - s)};
}

/* The end of a tag that begins at p: where its mark ("%}", "}}", "#}") is, outside of quotes. */
static const char *find_mark(const char *p, const char *end, const char *mark) {
    char quote = 0;
    for (; p + 1 < end; p++) {
        if (quote && *p == '\\')
            p++;
        else if (quote)
            quote = *p == quote ? 0 : quote;
        else if (p[0] == mark[0] && p[1] == mark[1])
            return p;
        else if ((*p == '\'' || *p == '"') && mark[0] != '#')
            quote = *p;
    }
    return NULL;
}

/* The text before a tag ends here: a tag with "-" takes all white space, and a block that is alone
   at the beginning of a line what is before it in the line. */
static const char *trim_before(const char *from, const char *tag, bool line_start) {
    const char *end = tag;
    if (tag[2] == '-') {
        while (end > from && isspace((unsigned char)end[-1])) end--;
        return end;
    }
    if (tag[1] == '{' || tag[2] == '+') return end;
    while (end > from && (end[-1] == ' ' || end[-1] == '\t')) end--;
    const bool alone = end > from ? end[-1] == '\n' : line_start;
    return alone ? end : tag;
}

static void cut(Jinja *j, const char *s) {
    const char *end = s + strlen(s), *p = s;
    if (end > s && end[-1] == '\n') end--;  // Jinja drops the last newline of a template
    bool line_start = true;
    for (const char *from = s; !j->failed;) {
        while (p + 1 < end && !(p[0] == '{' && strchr("{%#", p[1]))) p++;
        if (p + 1 >= end) {
            add_item(j, ITEM_TEXT, from, end);
            return;
        }
        add_item(j, ITEM_TEXT, from, trim_before(from, p, line_start));
        const char kind = p[1], mark[2] = {kind == '{' ? '}' : kind, '}'};
        const char *inside = p + 2, *close = find_mark(inside, end, mark);
        if (!close) {
            j->failed = true;
            return;
        }
        inside += *inside == '-' || *inside == '+';
        const bool trims = close > inside && close[-1] == '-';
        if (kind != '#')
            add_item(j, kind == '{' ? ITEM_EXPRESSION : ITEM_STATEMENT, inside, close - trims);
        from = close + 2;
        line_start = false;
        if (trims) {
            while (from < end && isspace((unsigned char)*from)) from++;
        } else if (kind != '{' && from < end && *from == '\n') {
            from++;
            line_start = true;
        }
        p = from;
    }
}

char *jinja_render(const char *jinja, const Message *message, int n, bool add_generation_prompt,
                   Marks marks) {
    Jinja j = {
        .message = message, .n = n, .prompt = add_generation_prompt, .marks = marks, .index = -1};
    str_add(&j.out, "", 0);
    cut(&j, jinja);
    if (!j.failed && run_block(&j, 0, true) < j.items) j.failed = true;
    for (int i = 0; i < j.owned_n; i++) free(j.owned[i]);
    free(j.owned);
    free(j.item);
    if (!j.failed) return j.out.s;
    free(j.out.s);
    return NULL;
}
