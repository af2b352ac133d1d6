/*
 * principles.c - built-in principles and layouts, and which principle is used: see principles.h.
 */
#include "rl/principles.h"

/* ---- built-in texts -------------------------------------------------------------------------- */

/* What follows an answer when a principle is a plain sentence, in English and in Korean; and how
   two answers are compared. A constitution's own texts replace these. */
typedef struct {
    const char *critique_request, *revision_request, *comparison;
} Layout;

static const Layout layouts[2] = {
    {"\n\n### Critique request:\n{principle} Say where the response falls short of this. If it "
     "does not, say: no problems.\n\n### Critique:\n",
     "\n\n### Revision request:\n{principle} Rewrite the response so that it is like that.\n\n### "
     "Revision:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### Question:\n{principle} "
     "Which of the two is better?\n\n### Answer:\n"},
    {"\n\n### 비평 요청:\n{principle} 답변이 여기에 어긋나는 점을 말하세요. 없으면 문제없음이라고 "
     "하세요.\n\n### 비평:\n",
     "\n\n### 수정 요청:\n{principle} 답변을 그렇게 고쳐 쓰세요.\n\n### 수정:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### 질문:\n{principle} 둘 중 "
     "어느 답변이 더 나은가요?\n\n### Answer:\n"},
};

static char *const labels[2] = {"(A)", "(B)"};

/* Headings of the usual dialogue formats. A model's text ends before a line that begins with one of
   them or with a heading of a layout. */
static const char *const dialogue_headings[] = {
    "### Instruction:", "### Response:", "Human:", "Assistant:"};

static const char *const built_in[] = {
    "A good response is polite, and treats whoever asks as a person to be respected.",
    "A good response answers the question frankly, or says as frankly that it cannot.",
    "A good response helps nobody to do harm, and says kindly why.",
    "A good response claims no more than its author can know.",
    "좋은 답변은 공손하며 묻는 사람을 존중합니다.",
    "좋은 답변은 질문을 피하지 않고 솔직하게 답합니다.",
    "좋은 답변은 남에게 해를 끼치는 일을 돕지 않습니다.",
};

/* ---- reading --------------------------------------------------------------------------------- */

static Constitution built_in_constitution(void) {
    Constitution c = {.n = sizeof built_in / sizeof *built_in};
    c.v = (Principle *)xcalloc((size_t)c.n, sizeof *c.v);
    for (int i = 0; i < c.n; i++) {
        c.v[i].name = xstrdup(built_in[i]);
        c.v[i].text = xstrdup(built_in[i]);
    }
    return c;
}

static const Layout *layout_of(const Principle *p) {
    return &layouts[text_is_korean(p->text ? p->text : p->critique_request)];
}

/* Replaces *request, the principle's own text or NULL, by the first of own, file's and built-in
   text, with the principle filled in. Adds the headings of that text. */
static void fill_request(char **request, const char *of_file, const char *of_layout,
                         const char *principle, Headings *h) {
    const char *template = *request ? *request : of_file ? of_file : of_layout;
    const Hole holes[] = {{"{principle}", principle ? principle : ""}, {0}};
    headings_add(h, template);
    char *filled = text_fill(template, holes);
    free(*request);
    *request = filled;
}

void constitution_open(const char *path, Constitution *c, Headings *h) {
    Error e;
    if (!path)
        *c = built_in_constitution();
    else if (constitution_read(path, c, &e))
        die_usage("--constitution: %s", e.text);
    for (size_t i = 0; i < sizeof dialogue_headings / sizeof *dialogue_headings; i++)
        headings_add(h, dialogue_headings[i]);
    for (int i = 0; i < c->n; i++) {
        Principle *p = &c->v[i];
        const Layout *layout = layout_of(p);
        fill_request(&p->critique_request, c->critique_request, layout->critique_request, p->text,
                     h);
        fill_request(&p->revision_request, c->revision_request, layout->revision_request, p->text,
                     h);
        headings_add(h, comparison_layout(c, p));
    }
}

const char *comparison_layout(const Constitution *c, const Principle *p) {
    return c->comparison ? c->comparison : layout_of(p)->comparison;
}

/* The length of the heading of a request or critique that a line begins with, up to its colon: it
   follows #, or says so. 0: the line has none. */
static size_t heading_length(const char *line) {
    const size_t n = strcspn(line, ":\n");
    if (line[n] != ':') return 0;
    char *heading = xstrndup(line, n);
    const bool names = text_says(heading, "critique|비평|요청") || *line == '#';
    free(heading);
    return names ? n + 1 : 0;
}

char *principle_text(const Principle *p) {
    if (p->comparison || p->text) return xstrdup(p->comparison ? p->comparison : p->text);
    const char *text = p->critique_request + strspn(p->critique_request, " \n");
    text += heading_length(text);
    text += strspn(text, " \n");
    size_t n = text_trimmed(text, strlen(text), " \n");
    size_t last = n;  // where the last line begins, which may be the heading of the critique
    while (last && text[last - 1] != '\n') last--;
    if (last && heading_length(text + last) == n - last) n = last;
    n = text_trimmed(text, n, " \n");
    return xstrndup(text, n);
}

void comparisons_check(const Constitution *c) {
    for (int i = 0; i < c->n; i++) {
        const Principle *p = &c->v[i];
        char *text = principle_text(p);
        if (!*text && strstr(comparison_layout(c, p), "{principle}"))
            die_usage("%s has no text to compare two answers by; give it a \"comparison\"",
                      p->name);
        free(text);
    }
}

char **comparison_labels(const Constitution *c) {
    return (char **)(c->option[0] ? c->option : labels);
}

/* ---- which principle ------------------------------------------------------------------------- */

static bool same_language(const Principle *p, const char *prompt) {
    return text_is_korean(p->critique_request) == text_is_korean(prompt);
}

const Principle *principle_for(const Constitution *c, const char *prompt, uint32_t k, int *n) {
    *n = 0;
    for (int i = 0; i < c->n; i++) *n += same_language(&c->v[i], prompt);
    const bool all = *n == 0;
    if (all) *n = c->n;
    uint32_t left = k % (uint32_t)*n;
    for (int i = 0; i < c->n; i++) {
        if (!all && !same_language(&c->v[i], prompt)) continue;
        if (left-- == 0) return &c->v[i];
    }
    return NULL;  // never: left < n
}

const Principle *draw_principle(const Constitution *c, PrincipleOrder order, const char *prompt,
                                uint32_t epoch, uint32_t id, uint32_t round, int64_t seed) {
    int n;
    if (order == PRINCIPLES_ALL) return principle_for(c, prompt, round, &n);
    principle_for(c, prompt, 0, &n);
    const uint32_t x = random4((uint64_t)seed, RANDOM_DATA, epoch, id, round, 0).v[0];
    return principle_for(c, prompt, (uint32_t)((uint64_t)x * (uint64_t)n >> 32), &n);
}
