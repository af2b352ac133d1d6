/*
 * constitution.c - principles, layouts, dialogues and their transcripts: see constitution.h.
 */
#include "rl/constitution.h"

#include "text/json.h"
#include "text/jsonl.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <limits.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- constitutions --------------------------------------------------------------------------- */

enum { CONSTITUTION_LIMIT = 16 << 20 };  // bytes

/* Copies field `name` of object into *out, if the object has it. It must be a string that is not
   empty. what: the object's name in messages. */
static int take_string(const json_t *object, const char *name, const char *what, char **out,
                       Error *e) {
    const json_t *value = json_object_get(object, name);
    if (!value) return 0;
    if (!json_is_string(value) || !json_string_length(value))
        return fail(e, "\"%s\" of %s is %s, expected a text", name, what,
                    json_is_string(value) ? "empty" : json_type_name(value));
    *out = xstrdup(json_string_value(value));
    return 0;
}

static int refuse_other_fields(const json_t *object, const char *const *known, const char *what,
                               Error *e) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value) {
        int i = 0;
        while (known[i] && strcmp(known[i], name)) i++;
        if (!known[i]) return fail(e, "%s has an unknown field \"%.40s\"", what, name);
    }
    return 0;
}

static Principle *add_principle(Constitution *c, const char *name) {
    c->v = grow(c->v, c->n, sizeof *c->v);
    Principle *p = &c->v[c->n++];
    *p = (Principle){0};
    Str numbered = {0};
    str_printf(&numbered, "principle %d", c->n);
    p->name = name ? xstrdup(name) : xstrdup(numbered.s);
    free(numbered.s);
    return p;
}

/* Reads a principle that is a sentence. The published ones for comparisons end with a heading for
   the two answers, "Options:", which the layouts of comparisons write themselves. */
static int read_sentence(const char *text, Principle *p, Error *e) {
    static const char options[] = "Options:";
    const size_t m = sizeof options - 1;
    text += strspn(text, " \t\r\n");
    size_t n = text_trimmed(text, strlen(text), " \t\r\n");
    if (n > m && !strncmp(text + n - m, options, m)) n = text_trimmed(text, n - m, " \t\r\n");
    if (!n) return fail(e, "%s is empty, expected a text or an object", p->name);
    p->text = xstrndup(text, n);
    if (strstr(p->text, "\n\nHuman:") || strstr(p->text, "\n\nAssistant:"))
        return fail(
            e,
            "%s is a conversation; few-shot conversations belong in {\"principles\": [...], "
            "\"few_shot\": [...]}",
            p->name);
    return 0;
}

/* Gives a principle the name that the file has for it, if there is one. */
static int take_name(const json_t *item, Principle *p, Error *e) {
    char *name = NULL;
    if (take_string(item, "name", p->name, &name, e)) return -1;
    if (!name) return 0;
    free(p->name);
    p->name = name;
    return 0;
}

static int read_principle(const json_t *item, Constitution *c, Error *e) {
    static const char *const requests[] = {
        "name", "critique_request", "revision_request", "comparison", "critic", "revision", NULL};
    static const char *const sentence[] = {"name", "principle", "id", NULL};
    const json_t *text = json_object_get(item, "principle");
    Principle *p = add_principle(c, NULL);
    if (json_is_string(item)) return read_sentence(json_string_value(item), p, e);
    if (!json_is_object(item))
        return fail(e, "%s is %s, expected a text or an object", p->name, json_type_name(item));
    if (refuse_other_fields(item, text ? sentence : requests, p->name, e)) return -1;
    if (text && !json_is_string(text))
        return fail(e, "\"principle\" of %s is %s, expected a text", p->name, json_type_name(text));
    if (text) return read_sentence(json_string_value(text), p, e) || take_name(item, p, e) ? -1 : 0;
    if (take_string(item, "critique_request", p->name, &p->critique_request, e) ||
        take_string(item, "revision_request", p->name, &p->revision_request, e) ||
        take_string(item, "comparison", p->name, &p->comparison, e))
        return -1;
    // the names in Hugging Face's constitution
    if ((!p->critique_request && take_string(item, "critic", p->name, &p->critique_request, e)) ||
        (!p->revision_request && take_string(item, "revision", p->name, &p->revision_request, e)))
        return -1;
    if (!p->critique_request || !p->revision_request)
        return fail(e, "%s needs both \"critique_request\" and \"revision_request\"", p->name);
    return take_name(item, p, e);
}

/* Reads {"name": {"prompt": [...], "edit_request": "..."}}: one principle for each text of prompt.
 */
static int read_published(const json_t *top, Constitution *c, Error *e) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)top, name, value) {
        const json_t *prompt = json_object_get(value, "prompt"),
                     *edit = json_object_get(value, "edit_request");
        const size_t n = json_is_array(prompt) ? json_array_size(prompt) : json_is_string(prompt);
        if (!n || !json_is_string(edit) || !json_string_length(edit))
            return fail(
                e,
                "\"%.40s\" is not {\"prompt\": [...], \"edit_request\": \"...\"}, and there "
                "is no list \"principles\"",
                name);
        for (size_t i = 0; i < n; i++) {
            const json_t *text = json_is_array(prompt) ? json_array_get(prompt, i) : prompt;
            if (!json_is_string(text) || !json_string_length(text))
                return fail(
                    e, "\"prompt\" of \"%.40s\" holds a value that is not a text, or an empty text",
                    name);
            Principle *p = add_principle(c, name);
            p->critique_request = xstrdup(json_string_value(text));
            p->revision_request = xstrdup(json_string_value(edit));
        }
    }
    return 0;
}

static int read_principles(const json_t *list, Constitution *c, Error *e) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (read_principle(json_array_get(list, i), c, e)) return -1;
    return 0;
}

static int read_own_form(const json_t *top, Constitution *c, Error *e) {
    static const char *const known[] = {
        "principles", "few_shot", "critique_request", "revision_request", "comparison",
        "options",    NULL};
    static const char what[] = "the constitution";
    if (refuse_other_fields(top, known, what, e) ||
        take_string(top, "critique_request", what, &c->critique_request, e) ||
        take_string(top, "revision_request", what, &c->revision_request, e) ||
        take_string(top, "comparison", what, &c->comparison, e))
        return -1;
    const json_t *few = json_object_get(top, "few_shot"),
                 *options = json_object_get(top, "options"), *item;
    if (few && !json_is_array(few))
        return fail(e, "\"few_shot\" is %s, expected an array of texts", json_type_name(few));
    size_t i;
    json_array_foreach(few, i, item) {
        if (!json_is_string(item) || !json_string_length(item))
            return fail(e, "few_shot[%zu] is not a text", i);
        c->few_shot = grow(c->few_shot, c->few_shot_n, sizeof *c->few_shot);
        c->few_shot[c->few_shot_n++] = xstrdup(json_string_value(item));
    }
    for (i = 0; options && i < 2; i++) {
        item = json_array_get(options, i);
        if (json_array_size(options) != 2 || !json_is_string(item) || !json_string_length(item))
            return fail(e, "\"options\" is not an array of two texts");
        c->option[i] = xstrdup(json_string_value(item));
    }
    if (options && !strcmp(c->option[0], c->option[1]))
        return fail(e, "the two \"options\" are the same text");
    return read_principles(json_object_get(top, "principles"), c, e);
}

/* Reads {"constitutions": [{"critic": "...", "revision": "..."}], ...}, as Hugging Face published
   one. Its few-shot conversation is one of a chat model and not used. */
static int read_constitutions(const json_t *top, Constitution *c, Error *e) {
    if (json_object_get(top, "system_chat"))
        note_once(
            "the conversation \"system_chat\" of the constitution is not used; few-shot "
            "conversations belong in {\"principles\": [...], \"few_shot\": [\"...\"]}");
    return read_principles(json_object_get(top, "constitutions"), c, e);
}

static int read_constitution(const json_t *top, Constitution *c, Error *e) {
    if (!json_is_array(top) && !json_is_object(top))
        return fail(e, "the file is %s, expected an array or an object", json_type_name(top));
    int status;
    if (json_is_array(top))
        status = read_principles(top, c, e);
    else if (json_is_array(json_object_get(top, "principles")))
        status = read_own_form(top, c, e);
    else if (json_is_array(json_object_get(top, "constitutions")))
        status = read_constitutions(top, c, e);
    else
        status = read_published(top, c, e);
    if (status) return -1;
    return c->n ? 0 : fail(e, "it holds no principle");
}

int constitution_read(const char *path, Constitution *out, Error *e) {
    *out = (Constitution){0};
    Str text = {0};
    json_error_t where;
    Error why;
    if (read_file(path, CONSTITUTION_LIMIT, &text, e)) {
        free(text.s);
        return -1;
    }
    const size_t mark = text.n >= 3 && !memcmp(text.s, "\xEF\xBB\xBF", 3) ? 3 : 0;
    json_t *top =
        json_loadb(text.s + mark, text.n - mark,
                   JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &where);
    int status =
        top ? 0 : fail(&why, "line %d, column %d: %s", where.line, where.column, where.text);
    if (!status) status = read_constitution(top, out, &why);
    if (status) {
        make_printable(&why);
        fail(e, "%s: %s", path, why.text);
        constitution_free(out);
    }
    json_decref(top);
    free(text.s);
    return status;
}

void constitution_free(Constitution *c) {
    for (int i = 0; i < c->n; i++) {
        Principle *p = &c->v[i];
        free(p->name);
        free(p->text);
        free(p->critique_request);
        free(p->revision_request);
        free(p->comparison);
    }
    for (int i = 0; i < c->few_shot_n; i++) free(c->few_shot[i]);
    free(c->v);
    free(c->few_shot);
    free(c->critique_request);
    free(c->revision_request);
    free(c->comparison);
    free(c->option[0]);
    free(c->option[1]);
    *c = (Constitution){0};
}

/* ---- layouts --------------------------------------------------------------------------------- */

static bool begins(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

char *text_fill(const char *template, const Hole *holes) {
    Str out = {0};
    str_add(&out, "", 0);
    for (const char *p = template; *p;) {
        const Hole *h = holes;
        while (h->name && !begins(p, h->name)) h++;
        if (h->name)
            str_add(&out, h->text, strlen(h->text));
        else
            str_add(&out, p, 1);
        p += h->name ? strlen(h->name) : 1;
    }
    return out.s;
}

bool text_is_korean(const char *text) {
    const size_t n = text ? strlen(text) : 0;
    for (size_t i = 0; i < n;) {
        const Utf8 c = utf8_decode(text + i, n - i);
        if (c.code >= 0xAC00 && c.code <= 0xD7A3) return true;
        i += c.n;
    }
    return false;
}

/* True if a word can begin at text[i]: not after a letter or digit. Beyond ASCII a character counts
   as a letter unless it begins with byte C2, E2, E3 or EF, which is mostly punctuation. */
static bool word_begins(const char *text, size_t i) {
    if (!i) return true;
    size_t lead = i - 1;
    while (lead > 0 && ((unsigned char)text[lead] & 0xC0) == 0x80) lead--;
    const unsigned char c = (unsigned char)text[lead];
    const bool ascii_letter =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return !(ascii_letter || (c >= 0xC3 && c <= 0xE1) || (c >= 0xE4 && c <= 0xED));
}

bool text_says(const char *text, const char *list) {
    for (size_t n; list && *list; list += n + (list[n] == '|')) {
        n = strcspn(list, "|");
        for (size_t i = 0; n && text[i]; i++)
            if (!strncasecmp(text + i, list, n) && word_begins(text, i)) return true;
    }
    return false;
}

size_t text_trimmed(const char *text, size_t n, const char *blanks) {
    while (n && strchr(blanks, text[n - 1])) n--;
    return n;
}

void headings_add(Headings *h, const char *template) {
    const char *end = template + text_trimmed(template, strlen(template), " \n");
    bool first = true;
    for (const char *line = template; line < end; line += strcspn(line, "\n") + 1) {
        const size_t n = strcspn(line, ":\n");
        if (*line == '\n') continue;
        if (n && line[n] == ':' && (first || *line == '#' || line + strcspn(line, "\n") >= end)) {
            char *heading = xstrndup(line, n + 1);
            int i = 0;
            while (i < h->n && strcmp(h->v[i], heading)) i++;
            if (i < h->n) {
                free(heading);
            } else {
                h->v = (char **)xrealloc(h->v, (size_t)h->n + 1, sizeof *h->v);
                h->v[h->n++] = heading;
            }
        }
        first = false;
    }
}

void headings_free(Headings *h) {
    for (int i = 0; i < h->n; i++) free(h->v[i]);
    free(h->v);
    *h = (Headings){0};
}

void headings_cut(const Headings *h, char *text) {
    for (char *line = text; *line; line += *line == '\n') {
        bool foreign = begins(line, END_OF_TEXT);
        for (int i = 0; i < h->n; i++) foreign |= begins(line, h->v[i]);
        if (foreign) *line = 0;
        line += strcspn(line, "\n");
    }
    text[text_trimmed(text, strlen(text), " \t\r\n")] = 0;
}

/* ---- dialogues ------------------------------------------------------------------------------- */

const char *const endings[ENDINGS] = {"unfinished", "no fault found",  "empty",
                                      "repeated",   "all rounds used", "no room"};

const char *const ending_words[ENDINGS] = {
    "unfinished",
    "the critique found no fault",
    "the critique or the revision was empty",
    "the critique repeated the prompt or the answer",
    "all rounds were used",
    "the text did not fit",
};

char *prompt_question(const char *prompt, bool bare) {
    static const char *const forms[][2] = {{"### Instruction:\n", "\n\n### Response:\n"},
                                           {"\n\nHuman:", "\n\nAssistant:"}};
    const size_t n = strlen(prompt);
    for (int i = 0; i < 2; i++) {
        const size_t head = strlen(forms[i][0]), tail = strlen(forms[i][1]);
        if (n < head + tail || strncmp(prompt, forms[i][0], head) ||
            strcmp(prompt + n - tail, forms[i][1]))
            continue;
        return bare ? xstrndup(prompt + head, n - head - tail) : xstrndup(prompt, n - tail);
    }
    return xstrdup(prompt);
}

const char *dialogue_answer(const Dialogue *d) {
    for (int r = d->rounds - 1; r >= 0; r--)
        if (d->round[r].revision) return d->round[r].revision;
    return d->answer;
}

void dialogue_free(Dialogue *d) {
    for (int i = 0; i < d->rounds; i++) {
        Round *r = &d->round[i];
        free(r->principle);
        free(r->critique_request);
        free(r->critique);
        free(r->revision_request);
        free(r->revision);
    }
    free(d->prompt);
    free(d->answer);
    free(d->round);
    *d = (Dialogue){0};
}

/* Appends "name": "text", after a comma unless it is the first field. text NULL: nothing. */
static void write_field(Str *line, const char *name, const char *text) {
    if (!text) return;
    str_printf(line, "%s\"%s\": ", line->s[line->n - 1] == '{' ? "" : ", ", name);
    json_add_string(line, text, strlen(text));
}

static void write_dialogue(const Dialogue *d, Str *line) {
    const char *answer = d->answer ? d->answer : "", *final = dialogue_answer(d);
    char *question = prompt_question(d->prompt, true);
    str_printf(line, "{\"epoch\": %d, \"id\": %d", d->epoch, d->id);
    write_field(line, "init_prompt", d->prompt);
    write_field(line, "init_response", answer);
    str_printf(line, ", \"rounds\": [");
    for (int i = 0; i < d->rounds; i++) {
        const Round *r = &d->round[i];
        str_printf(line, "%s{", i ? ", " : "");
        write_field(line, "principle", r->principle);
        write_field(line, "critic_prompt", r->critique_request);
        write_field(line, "critic_response", r->critique);
        write_field(line, "revision_prompt", r->revision_request);
        write_field(line, "revision_response", r->revision);
        str_printf(line, "}");
    }
    str_printf(line, "]");
    write_field(line, "ended", endings[d->ending]);
    str_printf(line, ", \"messages\": [{");
    write_field(line, "role", "user");
    write_field(line, "content", question);
    str_printf(line, "}, {");
    write_field(line, "role", "assistant");
    write_field(line, "content", final ? final : "");
    str_printf(line, "}]");
    if (final && final != d->answer) {
        write_field(line, "prompt", d->prompt);
        write_field(line, "chosen", final);
        write_field(line, "rejected", answer);
    }
    str_printf(line, "}\n");
    free(question);
}

/* A copy of a field if it is a string, else NULL. */
static char *copy_field(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? xstrdup(text) : NULL;
}

/* A field that is an integer >= 0, or -1. */
static int count_field(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    const double x = json_number_value(value);
    return json_is_number(value) && x >= 0 && x <= INT_MAX ? (int)x : -1;
}

static int add_dialogue(void *context, const json_t *object, int line, Fault *f) {
    Dialogues *out = context;
    Dialogue d = {
        .line = line, .epoch = count_field(object, "epoch"), .id = count_field(object, "id")};
    const json_t *rounds = json_object_get(object, "rounds"), *item;
    size_t i;
    d.prompt = copy_field(object, "init_prompt");
    d.answer = copy_field(object, "init_response");
    char *ended = copy_field(object, "ended");
    while (d.ending < ENDINGS && ended && strcmp(endings[d.ending], ended)) d.ending++;
    bool whole = d.epoch >= 0 && d.id >= 0 && d.prompt && d.answer && ended && d.ending < ENDINGS &&
                 json_is_array(rounds);
    json_array_foreach(rounds, i, item) {
        d.round = grow(d.round, d.rounds, sizeof *d.round);
        Round *r = &d.round[d.rounds++];
        *r = (Round){copy_field(item, "principle"), copy_field(item, "critic_prompt"),
                     copy_field(item, "critic_response"), copy_field(item, "revision_prompt"),
                     copy_field(item, "revision_response")};
        whole = whole && r->critique && r->critique_request;
    }
    free(ended);
    if (!whole) {
        dialogue_free(&d);
        return fault(f, NULL, "the line is not a dialogue of constitutional.c");
    }
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = d;
    return 0;
}

void dialogue_add_line(const Dialogue *d, int step, Str *lines) {
    Str line = {0};
    write_dialogue(d, &line);
    str_printf(lines, "{\"step\": %d, ", step);
    str_add(lines, line.s + 1, line.n - 1);
    free(line.s);
}

int dialogues_append(const char *path, const Dialogue *d, int n, Error *e) {
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int i = 0; i < n; i++) write_dialogue(&d[i], &lines);
    FILE *f = append_file(path, e);
    bool bad = f && (fwrite(lines.s, 1, lines.n, f) != lines.n || fflush(f) || fsync(fileno(f)));
    if (bad) fail(e, "cannot write %s: %s", path, strerror(errno));
    bad |= !f;
    if (f) fclose(f);
    free(lines.s);
    return bad ? -1 : 0;
}

/* Are there dialogues after the first bad line? A process that was killed leaves a bad line only at
   the end. */
static bool goes_on(const char *path, int before) {
    Dialogues all = {0};
    JsonlCounts counts;
    jsonl_read(path, false, add_dialogue, &all, &counts, NULL);
    for (int i = 0; i < all.n; i++) dialogue_free(&all.v[i]);
    free(all.v);
    return all.n > before;
}

int dialogues_keep(const char *from, int epoch, const char *to, Dialogues *out, Error *e) {
    *out = (Dialogues){0};
    struct stat there;
    JsonlCounts counts;
    e->text[0] = 0;
    if (access(from, R_OK) && errno != ENOENT)
        return fail(e, "cannot read %s: %s", from, strerror(errno));
    if (!stat(from, &there) && !S_ISREG(there.st_mode))
        return fail(e, "%s is not a regular file; remove it", from);
    // strict: it stops at the first bad line, and the dialogues before that line are in out
    if (!jsonl_read(from, true, add_dialogue, out, &counts, e)) e->text[0] = 0;
    if (counts.skipped && goes_on(from, out->n)) return -1;
    int keep = 0;
    while (keep < out->n && out->v[keep].epoch <= epoch) keep++;
    for (int i = keep; i < out->n; i++) dialogue_free(&out->v[i]);
    out->n = keep;
    if (!to) return 0;
    NewFile file;
    if (newfile_open(&file, to, e)) return -1;
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int i = 0; i < keep; i++) write_dialogue(&out->v[i], &lines);
    fwrite(lines.s, 1, lines.n, file.f);
    free(lines.s);
    return newfile_close(&file, true, e);
}

static void show_text(const char *label, const char *text) {
    printf("  %-8s | ", label);
    for (; text && *text; text++)
        if (*text == '\n')
            printf("\n           | ");
        else
            putchar(*text);
    putchar('\n');
}

void dialogue_show(const Dialogue *d, const char *when) {
    printf("prompt %d, %s: %s\n", d->id + 1, when, ending_words[d->ending]);
    show_text("prompt", d->prompt);
    show_text("answer", d->answer);
    for (int r = 0; r < d->rounds; r++) {
        show_text("critique", d->round[r].critique);
        if (d->round[r].revision) show_text("revision", d->round[r].revision);
    }
}
