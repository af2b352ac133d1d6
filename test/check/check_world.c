/*
 * check_world.c - what world.c promises about its files: the same bytes for the same seed, and
 * nothing held out that leaks into training.
 *
 * The files are written once, into a directory of their own, and read back as anybody would read
 * them. The tests search the text for leaks. They fill in the patterns of the world's tables
 * themselves, not by world.c. The rules for the pairs that are never asked, the other people and
 * the held-out events are written here a second time, independently of world.c.
 */
#define main program_main  // this file has its own
#include "../world.c"
#undef main

#include "text/records.h"
#include "text/template.h"
#include "program.h"

#include <check.h>  // after util.h, whose fail() it hides behind a macro of its own
#include <jansson.h>
#include <unistd.h>

enum { CONTEXT = 256, LARGEST_FILE = 150 * 1024 };

/* ---- The files, written and read ------------------------------------------------------------- */

static char base[512];  // a directory for this run, removed at its end

/* The path of a name below base. The text lasts until the fourth call after. */
static const char *below(const char *directory, const char *name) {
    static char paths[4][1024];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s/%s", base, directory, name);
    return path;
}

static Str load(const char *path) {
    Str s = {0};
    Error e;
    ck_assert_msg(read_file(path, 64 << 20, &s, &e) == 0, "%s", e.text);
    return s;
}

static void write_into(const char *directory, uint64_t seed) {
    Error e;
    ck_assert_msg(write_world(below(directory, ""), seed, &e) == 0, "%s", e.text);
}

static void remove_world(const char *directory) {
    for (int i = 0; i < FILES; i++) unlink(below(directory, files[i].name));
    rmdir(below(directory, ""));
}

/* The lines of a file of the world of seed 1, as JSON. */
typedef struct {
    const char *name;
    json_t **v;
    int n;
} Rows;

static Rows rows_of(const char *name) {
    Rows rows = {.name = name};
    Str s = load(below("one", name));
    for (char *line = s.s, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        ck_assert_msg(end != NULL, "%s: the last line does not end", name);
        json_error_t e;
        json_t *row =
            json_loadb(line, (size_t)(end - line), JSON_REJECT_DUPLICATES, &e);  // takes UTF-8 only
        ck_assert_msg(row != NULL, "%s:%d: %s: %.*s", name, rows.n + 1, e.text, (int)(end - line),
                      line);
        rows.v = xrealloc(rows.v, (size_t)rows.n + 1, sizeof *rows.v);
        rows.v[rows.n++] = row;
    }
    free(s.s);
    return rows;
}

static void free_rows(Rows *rows) {
    for (int i = 0; i < rows->n; i++) json_decref(rows->v[i]);
    free(rows->v);
}

static const char *get(const Rows *rows, int i, const char *field) {
    const char *s = json_string_value(json_object_get(rows->v[i], field));
    ck_assert_msg(s != NULL, "%s:%d: no string \"%s\"", rows->name, i + 1, field);
    return s;
}

/* What the model is given: the text of the first of these fields that is there. */
static const char *given(const Rows *rows, int i) {
    static const char *const fields[] = {"prompt", "instruction", "text"};
    for (int k = 0; k < 3; k++)
        if (json_object_get(rows->v[i], fields[k])) return get(rows, i, fields[k]);
    ck_abort_msg("%s:%d: nothing is given", rows->name, i + 1);
}

/* ---- the rules, again ------------------------------------------------------------------------ */

static const char *const tuning[] = {"sft.jsonl",     "mixed.jsonl",  "preferences.jsonl",
                                     "prompts.jsonl", "domain.jsonl", "summaries.jsonl"};
enum { TUNING = sizeof tuning / sizeof *tuning };

static bool is_tuning(const char *name) {
    for (int i = 0; i < TUNING; i++)
        if (!strcmp(name, tuning[i])) return true;
    return false;
}

/* One person of four, and with each relation the one three further on. */
static bool hidden(int person, int relation) {
    int first = (4 - 3 * relation % 4) % 4;  // the first of them, counted from Anna
    return person >= first && (person - first) % 4 == 0;
}

static int count_in(const char *text, const char *what) {
    int n = 0;
    for (const char *s = text; (s = strstr(s, what)); s += strlen(what)) n++;
    return n;
}

/* pattern with every @ and # replaced. (An assertion costs a system call even if it holds, so there
 * is none in here.) */
static void fill(char *out, size_t room, const char *pattern, const char *person,
                 const char *thing) {
    out[0] = 0;
    for (; *pattern; pattern++) {
        const char one[2] = {*pattern, 0};
        const char *piece = *pattern == '@' ? person : *pattern == '#' ? thing : one;
        if (strlen(out) + strlen(piece) >= room) ck_abort_msg("no room for %s", pattern);
        strcat(out, piece);
    }
}

/* How often text holds the pattern, with any Korean particle at a mark. */
static int count_pattern(const char *text, const char *pattern, const char *person,
                         const char *thing) {
    static const struct {
        char mark;
        const char *either[2];
    } marks[] = {
        {'~', {"은", "는"}}, {'^', {"이", "가"}}, {'$', {"을", "를"}}, {'=', {"이에요", "예요"}}};
    for (int i = 0; i < 4; i++) {
        const char *at = strchr(pattern, marks[i].mark);
        if (!at) continue;
        int n = 0;
        for (int k = 0; k < 2; k++) {
            char with[512];
            snprintf(with, sizeof with, "%.*s%s%s", (int)(at - pattern), pattern,
                     marks[i].either[k], at + 1);
            n += count_pattern(text, with, person, thing);
        }
        return n;
    }
    char filled[512];
    fill(filled, sizeof filled, pattern, person, thing);
    return count_in(text, filled);
}

/* ---- a set of texts, for searching ----------------------------------------------------------- */

typedef struct {
    char **v;
    int n;
} Texts;

static void add_text(Texts *t, const char *s) {
    if ((t->n & (t->n - 1)) == 0) t->v = xrealloc(t->v, t->n ? 2 * (size_t)t->n : 1, sizeof *t->v);
    t->v[t->n++] = xstrdup(s);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}
static void sort_texts(Texts *t) { qsort(t->v, (size_t)t->n, sizeof *t->v, by_text); }
static bool has_text(const Texts *t, const char *s) {
    return bsearch(&s, t->v, (size_t)t->n, sizeof *t->v, by_text);
}

/* How many of them are `word`. */
static int times(const Texts *t, const char *word) {
    int low = 0, high = t->n, first;
    while (low < high) {
        int middle = (low + high) / 2;
        if (strcmp(t->v[middle], word) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (first = low; low < t->n && !strcmp(t->v[low], word); low++) continue;
    return low - first;
}

static void free_texts(Texts *t) {
    for (int i = 0; i < t->n; i++) free(t->v[i]);
    free(t->v);
}

/* ---- The generator --------------------------------------------------------------------------- */

START_TEST(same_seed_same_bytes) {
    write_into("two", 2);  // another world in between: nothing of it may stay behind
    write_into("again", 1);
    for (int i = 0; i < FILES; i++) {
        Str a = load(below("one", files[i].name)), b = load(below("again", files[i].name));
        Str c = load(below("two", files[i].name));
        ck_assert_msg(a.n == b.n && !memcmp(a.s, b.s, a.n), "%s differs when it is written again",
                      files[i].name);
        bool same = a.n == c.n && !memcmp(a.s, c.s, a.n);
        // domain-eval asks of all illnesses, and which remedy helps is the same in all worlds
        bool must_differ = strcmp(files[i].name, "domain-eval.jsonl") != 0;
        ck_assert_msg(!same || !must_differ, "%s is the same for seeds 1 and 2", files[i].name);
        free(a.s);
        free(b.s);
        free(c.s);
    }
    remove_world("two");
    remove_world("again");
    // not the facts alone are others, but also what is made of them
    int rolls[2][32];
    for (uint64_t seed = 2; seed >= 1; seed--) {  // ends in the world of seed 1
        found_world(seed);
        Dice dice = dice_for("sft.jsonl");
        for (int i = 0; i < 32; i++) rolls[seed - 1][i] = roll(&dice, 1000);
    }
    ck_assert_int_ne(memcmp(rolls[0], rolls[1], sizeof rolls[0]), 0);
}
END_TEST

/* One file, written alone, is what it is among the others. */
START_TEST(files_do_not_depend_on_each_other) {
    for (int i = 0; i < FILES; i++)
        for (int k = 0; k < i; k++)
            ck_assert_msg(dice_for(files[i].name).stream != dice_for(files[k].name).stream,
                          "%s and %s throw the same dice", files[i].name, files[k].name);
    for (int i = FILES - 1; i >= 0; i--) {
        FILE *f = tmpfile();
        ck_assert_ptr_nonnull(f);
        Dice dice = dice_for(files[i].name);
        files[i].write(f, &dice);
        Str a = load(below("one", files[i].name));
        long n = ftell(f);
        char *b = xmalloc((size_t)n);
        rewind(f);
        ck_assert_uint_eq(fread(b, 1, (size_t)n, f), (size_t)n);
        ck_assert_msg(a.n == (size_t)n && !memcmp(a.s, b, a.n),
                      "%s differs when it is written alone", files[i].name);
        fclose(f);
        free(b);
        free(a.s);
    }
}
END_TEST

START_TEST(committed_files_are_what_the_generator_writes) {
    int found = 0;
    for (int i = 0; i < FILES; i++) {
        Str path = {0};
        str_printf(&path, "test/tiny/%s", files[i].name);
        if (access(path.s, R_OK) == 0) {
            Str a = load(path.s), b = load(below("one", files[i].name));
            ck_assert_msg(a.n == b.n && !memcmp(a.s, b.s, a.n),
                          "%s is not what world writes; run: world test/tiny", path.s);
            free(a.s);
            free(b.s);
            found++;
        }
        free(path.s);
    }
    if (!found) puts("skipped: no test/tiny/*.jsonl to compare with");
}
END_TEST

START_TEST(failures_are_reported) {
    Error e = {0};
    ck_assert_int_eq(write_world(below("no/such", "place"), 1, &e), -1);
    ck_assert_msg(strstr(e.text, "no/such/place") && strstr(e.text, "make the one above it"), "%s",
                  e.text);
    ck_assert_int_eq(write_world(below("one", "sft.jsonl"), 1, &e), -1);  // a file is no directory
    ck_assert_ptr_nonnull(strstr(e.text, "sft.jsonl/pretrain.jsonl"));
}
END_TEST

/* A noun ends in a consonant or in a vowel, and in Korean every particle knows. */
START_TEST(particles_fit) {
    static const char *const pairs[][3] = {
        {"@~ #에 살아요.", "준", "준은 밥에 살아요."},
        {"@~ #에 살아요.", "안나", "안나는 밥에 살아요."},
        {"@^ 좋아하는 음식은 #=.", "퀸", "퀸이 좋아하는 음식은 밥이에요."},
        {"@^ #$ 사요.", "휴고", "휴고가 밥을 사요."},
        {"#와 @=.", "치즈", "밥와 치즈예요."},
        {"@$ 사요.", "꿀", "꿀을 사요."},
        {"@$ 사요.", "국수", "국수를 사요."},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        ck_assert_str_eq(expand(pairs[i][0], (Slots){.person = pairs[i][1], .thing = "밥"}).s,
                         pairs[i][2]);
}
END_TEST

/* ---- Form ------------------------------------------------------------------------------------ */

START_TEST(every_line_is_a_record) {
    for (int i = 0; i < FILES; i++) {
        Rows rows = rows_of(files[i].name);
        ck_assert_msg(rows.n >= 24, "%s: %d records", files[i].name, rows.n);
        for (int k = 0; k < rows.n; k++) {
            ck_assert_msg(json_is_object(rows.v[k]), "%s:%d: no object", files[i].name, k + 1);
            const char *name;
            json_t *value;
            json_object_foreach(rows.v[k], name, value) {
                bool empty = !json_is_array(value) && json_string_length(value) == 0;
                ck_assert_msg(!empty, "%s:%d: %s is empty", files[i].name, k + 1, name);
                // a slot left open or a mark left standing would show
                const char *s = json_string_value(value);
                ck_assert_msg(!s || !strpbrk(s, "@&+*<~^$=%\t\r"), "%s:%d: %s", files[i].name,
                              k + 1, s);
            }
        }
        Str s = load(below("one", files[i].name));
        if (strcmp(files[i].name, "pretrain.jsonl") &&
            strcmp(files[i].name, "mixed.jsonl"))  // these two are made for `make tiny` alone
            ck_assert_msg(s.n < LARGEST_FILE, "%s: %zu bytes are too many to commit", files[i].name,
                          s.n);
        free(s.s);
        free_rows(&rows);
    }
}
END_TEST

static const struct {
    const char *name, *kind;
} kinds[] = {
    {"pretrain.jsonl", "text"},
    {"pretrain-eval.jsonl", "text"},
    {"sft.jsonl", "instruction/response"},
    {"sft-eval.jsonl", "instruction/response"},
    {"sft-korean-eval.jsonl", "instruction/response"},
    {"mixed.jsonl", "instruction/response"},
    {"mixed-eval.jsonl", "instruction/response"},
    {"critiques-eval.jsonl", "prompt/completion"},
    {"revisions-eval.jsonl", "prompt/completion"},
    {"revisions-control-eval.jsonl", "prompt/completion"},
    {"prompts.jsonl", "question/answer"},
    {"prompts-eval.jsonl", "question/answer"},
    {"domain.jsonl", "instruction/response"},
    {"domain-eval.jsonl", "instruction/response"},
    {"domain-old-eval.jsonl", "instruction/response"},
    {"summaries.jsonl", "text/summary"},
    {"summaries-eval.jsonl", "text/summary"},
    {"summaries-korean-eval.jsonl", "text/summary"},
};

/* Our programs take every line, and with its template and the <|endoftext|> it fits the context,
 * byte by byte. */
START_TEST(programs_read_the_records) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        Records r;
        Error e;
        Rows rows = rows_of(kinds[i].name);
        ck_assert_msg(
            records_read(below("one", kinds[i].name), TEMPLATE_DEFAULT, true, &r, &e) == 0, "%s",
            e.text);
        ck_assert_int_eq(r.n, rows.n);
        ck_assert_str_eq(r.kind, kinds[i].kind);
        for (int k = 0; k < r.n; k++) {
            size_t n = 1;
            for (int s = 0; s < r.v[k].n; s++) n += r.v[k].spans[s].n;
            ck_assert_msg(n <= CONTEXT, "%s:%d: %zu tokens", kinds[i].name, k + 1, n);
        }
        records_free(&r);
        free_rows(&rows);
    }
}
END_TEST

/* The prompts that are written out whole are what the template makes of the question. */
START_TEST(whole_prompts_are_in_the_template) {
    static const char *const names[] = {"prompts.jsonl", "prompts-eval.jsonl"};
    for (int i = 0; i < 2; i++) {
        Rows rows = rows_of(names[i]);
        for (int k = 0; k < rows.n; k++) {
            Error e;
            char *rendered = template_prompt(TEMPLATE_DEFAULT, get(&rows, k, "question"), NULL, &e);
            ck_assert_msg(rendered != NULL, "%s", e.text);
            ck_assert_str_eq(get(&rows, k, "prompt"), rendered);
            free(rendered);
        }
        free_rows(&rows);
    }
    static const char *const others[] = {"mixed.jsonl", "mixed-eval.jsonl", "critiques-eval.jsonl",
                                         "multiple-choice.jsonl"};
    for (int i = 0; i < 4; i++) {
        Rows rows = rows_of(others[i]);
        for (int k = 0; k < rows.n; k++)
            if (json_object_get(rows.v[k], "prompt"))
                ck_assert_msg(!strncmp(get(&rows, k, "prompt"), "### Instruction:\n", 17), "%s:%d",
                              others[i], k + 1);
        free_rows(&rows);
    }
}
END_TEST

START_TEST(pairs_and_choices_fit) {
    static const char *const pairs[] = {"preferences.jsonl", "preferences-eval.jsonl",
                                        "preferences-unseen-eval.jsonl"};
    for (int i = 0; i < 3; i++) {
        Rows rows = rows_of(pairs[i]);
        for (int k = 0; k < rows.n; k++) {
            size_t template = strlen("### Instruction:\n\n\n### Response:\n");
            ck_assert_uint_le(
                template + strlen(given(&rows, k)) + strlen(get(&rows, k, "chosen")) + 1, CONTEXT);
        }
        free_rows(&rows);
    }
    static const char *const choices[] = {"multiple-choice.jsonl", "facts.jsonl"};
    static const size_t wrong[] = {1, 7};
    for (int i = 0; i < 2; i++) {
        Rows rows = rows_of(choices[i]);
        for (int k = 0; k < rows.n; k++) {
            const json_t *corrects = json_object_get(rows.v[k], "corrects");
            const json_t *incorrects = json_object_get(rows.v[k], "incorrects");
            ck_assert_uint_eq(json_array_size(corrects), 1);
            ck_assert_uint_eq(json_array_size(incorrects), wrong[i]);
            for (size_t c = 0; c <= wrong[i]; c++) {
                const json_t *choice =
                    c ? json_array_get(incorrects, c - 1) : json_array_get(corrects, 0);
                ck_assert_uint_gt(json_string_length(choice), 0);
                ck_assert_uint_le(strlen(given(&rows, k)) + json_string_length(choice) + 1,
                                  CONTEXT);
                if (c)
                    ck_assert_str_ne(json_string_value(choice),
                                     json_string_value(json_array_get(corrects, 0)));
            }
        }
        free_rows(&rows);
    }
}
END_TEST

/* ---- Facts ----------------------------------------------------------------------------------- */

/* Every value is held by three people: no value is a better guess than another. */
START_TEST(values_are_balanced) {
    Rows rows = rows_of("facts.jsonl");
    ck_assert_int_eq(rows.n, 144);
    Texts values = {0};
    for (int i = 0; i < rows.n; i++)
        add_text(&values,
                 json_string_value(json_array_get(json_object_get(rows.v[i], "corrects"), 0)));
    sort_texts(&values);
    for (int i = 0; i < values.n; i += 3) {
        ck_assert_str_eq(values.v[i], values.v[i + 2]);
        if (i) ck_assert_str_ne(values.v[i - 1], values.v[i]);
    }
    free_texts(&values);
    free_rows(&rows);
}
END_TEST

/* The sentences of a text, sorted: the parts between full stops, colons and line ends. */
static Texts sentences_of(const char *text) {
    Texts t = {0};
    char *copy = xstrdup(text), *rest = copy, *sentence;
    while ((sentence = strsep(&rest, ".:!\n"))) {
        sentence += strspn(sentence, " ");
        if (*sentence) add_text(&t, sentence);
    }
    free(copy);
    sort_texts(&t);
    return t;
}

/* Facts are stated, often enough to be learned; none is ever stated otherwise; and nothing is asked
 * before tuning. */
START_TEST(pretraining_states_every_fact_and_asks_nothing) {
    Str all = {0};
    Rows rows = rows_of("pretrain.jsonl");
    for (int i = 0; i < rows.n; i++) {
        const char *page = get(&rows, i, "text");
        str_add(&all, page, strlen(page));
        str_add(&all, "\n", 1);
    }
    Texts sentences = sentences_of(all.s);
    static const Language *const languages[] = {&english, &korean};
    static const int often[] = {
        100, 40};  // times the plain form is read; the others a third as often, at least
    for (int l = 0; l < 2; l++)
        for (int p = 0; p < PEOPLE; p++)
            for (int r = 0; r < languages[l]->relation_count; r++)
                for (int v = 0; v < VALUES; v++)
                    for (int s = 0; s < SAYINGS; s++) {
                        Slots slots = {.person = languages[l]->people[p],
                                       .thing = languages[l]->relations[r].values[v]};
                        Text said = expand(languages[l]->relations[r].say[s], slots);
                        *strrchr(said.s, '.') = 0;
                        int n = times(&sentences, said.s), least = s ? often[l] / 3 : often[l];
                        ck_assert_msg(world.fact[p][r] == v ? n >= least : n == 0,
                                      "\"%s\": %d times", said.s, n);
                    }
    ck_assert_ptr_null(strchr(all.s, '?'));
    ck_assert_ptr_null(strstr(all.s, "###"));
    free(all.s);
    free_texts(&sentences);
    free_rows(&rows);
}
END_TEST

/* The leak search: no tuning file asks a question that is never asked, or tells its answer, in any
   form or language; the held-out files ask every one of them, and only them. */
START_TEST(never_asked_is_never_asked) {
    static const Language *const languages[] = {&english, &korean};
    static const char *const asking[] = {"sft-eval.jsonl", "sft-korean-eval.jsonl"};
    for (int l = 0; l < 2; l++) {
        int pairs = 0;
        Str eval = load(below("one", asking[l]));
        for (int p = 0; p < PEOPLE; p++)
            for (int r = 0; r < languages[l]->relation_count; r++) {
                const Relation *relation = &languages[l]->relations[r];
                const char *person = languages[l]->people[p],
                           *value = relation->values[world.fact[p][r]];
                pairs += hidden(p, r);
                for (int a = 0; a < ASKINGS; a++)
                    ck_assert_msg(
                        count_pattern(eval.s, relation->ask[a], person, "") == hidden(p, r),
                        "%s: \"%s\" about %s", asking[l], relation->ask[a], person);
                for (int t = 0; t < TUNING; t++) {
                    Str s = load(below("one", tuning[t]));
                    for (int a = 0; a < ASKINGS; a++) {
                        int n = count_pattern(s.s, relation->ask[a], person, "");
                        ck_assert_msg(!hidden(p, r) || n == 0, "%s asks \"%s\" about %s", tuning[t],
                                      relation->ask[a], person);
                        // and every other fact is asked for
                        if (!hidden(p, r) && t == 0) ck_assert_int_eq(n, 1);
                    }
                    for (int f = 0; f < SAYINGS && hidden(p, r); f++)
                        ck_assert_msg(count_pattern(s.s, relation->say[f], person, value) == 0,
                                      "%s tells \"%s\" about %s", tuning[t], relation->say[f],
                                      person);
                    free(s.s);
                }
            }
        ck_assert_int_eq(pairs, languages[l]->relation_count * PEOPLE / 4);
        free(eval.s);
    }
}
END_TEST

/* ---- Held out -------------------------------------------------------------------------------- */

START_TEST(validation_text_is_not_in_training) {
    Texts paragraphs = {0}, pages = {0};
    Rows train = rows_of("pretrain.jsonl"), eval = rows_of("pretrain-eval.jsonl");
    size_t bytes = 0;
    for (int i = 0; i < train.n; i++) {
        const char *text = get(&train, i, "text");
        bytes += strlen(text) + 1;
        add_text(&pages, text);
        char *copy = xstrdup(text), *rest = copy, *line;
        while ((line = strsep(&rest, "\n"))) add_text(&paragraphs, line);
        free(copy);
    }
    ck_assert_uint_ge(bytes, 2400 * 4 * 256);
    sort_texts(&paragraphs);
    sort_texts(&pages);
    for (int i = 1; i < pages.n; i++)
        ck_assert_str_ne(pages.v[i - 1], pages.v[i]);  // enough to say without repetition
    int searched = 0;
    for (int i = 0; i < eval.n; i++) {
        char *copy = xstrdup(get(&eval, i, "text")), *rest = copy, *line;
        for (; (line = strsep(&rest, "\n")); searched++)
            ck_assert_msg(!has_text(&paragraphs, line),
                          "pretrain.jsonl holds \"%s\" of pretrain-eval.jsonl:%d", line, i + 1);
        free(copy);
    }
    ck_assert_int_ge(searched, 300);
    free_texts(&paragraphs);
    free_texts(&pages);
    free_rows(&train);
    free_rows(&eval);
}
END_TEST

/* Nothing given in a held-out record is given in a record of its training, or of any tuning file
   but one: the old questions of the domain task were asked before, of course, in sft.jsonl and what
   is made from it. */
START_TEST(held_out_prompts_are_not_in_training) {
    for (int t = 0; t < TUNING; t++) {
        Texts seen_before = {0};
        Rows train = rows_of(tuning[t]);
        for (int i = 0; i < train.n; i++) add_text(&seen_before, given(&train, i));
        sort_texts(&seen_before);
        for (int f = 0; f < FILES; f++) {
            bool old = !strcmp(files[f].name, "domain-old-eval.jsonl") &&
                       strcmp(tuning[t], "domain.jsonl");
            if (is_tuning(files[f].name) || !strncmp(files[f].name, "pretrain", 8) || old) continue;
            Rows eval = rows_of(files[f].name);
            for (int i = 0; i < eval.n; i++)
                ck_assert_msg(!has_text(&seen_before, given(&eval, i)), "%s:%d is in %s: %s",
                              files[f].name, i + 1, tuning[t], given(&eval, i));
            free_rows(&eval);
        }
        free_texts(&seen_before);
        free_rows(&train);
    }
}
END_TEST

/* The training of the domain task has not a word about those it is tested on; and each illness has
 * its remedy. */
START_TEST(other_people_are_other_people) {
    static const char *const names[] = {"domain.jsonl", "domain-eval.jsonl",
                                        "domain-old-eval.jsonl"};
    for (int i = 0; i < 3; i++) {
        Str s = load(below("one", names[i]));
        for (int p = 0; p < PEOPLE; p++) {
            bool other = p % 3 == 2;  // Carla, Felix, ...
            bool mentioned = count_in(s.s, english.people[p]) > 0;
            ck_assert_msg(mentioned == (other == (i > 0)), "%s and %s", names[i],
                          english.people[p]);
        }
        free(s.s);
    }
    Rows eval = rows_of("domain-eval.jsonl");
    ck_assert_int_eq(eval.n, 128);
    for (int i = 0; i < eval.n; i++) {
        int found = 0;
        for (int v = 0; v < VALUES; v++) {
            char illness[64], remedy[64];
            snprintf(illness, sizeof illness, " %s.", english_relations[ILLNESS].values[v]);
            snprintf(remedy, sizeof remedy, " %s.", remedies[v]);
            if (!strstr(given(&eval, i), illness)) continue;
            ck_assert_ptr_nonnull(strstr(get(&eval, i, "response"), remedy));
            found++;
        }
        ck_assert_int_eq(found, 1);
    }
    free_rows(&eval);
}
END_TEST

/* Which event a summary tells: "@ + a #." with the numbers of its words; false when it is none. */
static bool read_gist(const Language *l, const char *summary, int *person, int *verb, int *thing) {
    for (*person = 0; *person < PEOPLE; ++*person)
        for (*verb = 0; l->verbs[*verb] && strstr(summary, l->people[*person]); ++*verb)
            for (*thing = 0; l->things[*thing]; ++*thing) {
                char pattern[256] = "";
                for (const char *c = l->gist; *c; c++) {
                    const char one[2] = {*c, 0};
                    strcat(pattern, *c == '+' ? l->verbs[*verb] : one);
                }
                if (count_pattern(summary, pattern, l->people[*person], l->things[*thing]))
                    return true;
            }
    return false;
}

START_TEST(events_of_held_out_summaries_are_new) {
    static const struct {
        const char *name;
        bool held_out;
    } list[] = {{"summaries.jsonl", false},
                {"summaries-eval.jsonl", true},
                {"summaries-korean-eval.jsonl", true}};
    int first = 0, total = 0;
    for (int i = 0; i < 3; i++) {
        Rows rows = rows_of(list[i].name);
        for (int k = 0; k < rows.n; k++) {
            int person, verb, thing;
            const char *summary = get(&rows, k, "summary"), *text = get(&rows, k, "text");
            bool in_english = (unsigned char)*summary < 128;
            ck_assert_msg(
                read_gist(in_english ? &english : &korean, summary, &person, &verb, &thing), "%s",
                summary);
            ck_assert_msg(((person + verb + thing) % 5 == 0) == list[i].held_out, "%s:%d: %s",
                          list[i].name, k + 1, summary);
            ck_assert_ptr_null(strstr(text, summary));  // it must be made, not found
            char start[64];
            snprintf(start, sizeof start, "%.*s", (int)(strchr(summary, ' ') - summary + 1),
                     summary);
            ck_assert_ptr_nonnull(strstr(text, start));  // the name, as the summary has it
            first += !strncmp(text, start, strlen(start));
            total++;
        }
        free_rows(&rows);
    }
    ck_assert_int_lt(2 * first, total);  // the first sentence is no summary
}
END_TEST

/* ---- Better and worse ------------------------------------------------------------------------ */

START_TEST(phrases_are_of_one_length) {
    for (int i = 0; i < FAMILIAR + UNSEEN; i++) {
        const char *polite = phrases[i].polite, *rude = phrases[i].rude;
        ck_assert_msg(strlen(polite) == strlen(rude), "\"%s\" and \"%s\"", polite, rude);
        ck_assert_msg((*polite == ' ') == (*rude == ' '),
                      "\"%s\" and \"%s\" are in different places", polite, rude);
    }
}
END_TEST

/* Calls `see` for each word of a text, in small letters. */
static void each_word(const char *s, void (*see)(const char *word, void *context), void *context) {
    while (*s) {
        size_t n = strcspn(s, " .,!?\n");
        char word[64];
        snprintf(word, sizeof word, "%.*s", (int)n, s);
        for (char *c = word; *c; c++)
            if (*c >= 'A' && *c <= 'Z') *c = (char)(*c - 'A' + 'a');
        if (n) see(word, context);
        s += n + (s[n] != 0);
    }
}

static void collect(const char *word, void *texts) { add_text(texts, word); }

static void find_none(const char *word, void *texts) {
    ck_assert_msg(!has_text(texts, word), "\"%s\" is in a familiar phrase, too", word);
}

/* An unseen phrase or evasion is unseen: in no tuning file, and without a word of a familiar
   phrase; and it is in the text to pre-train on, with what it is worth. */
START_TEST(unseen_is_unseen) {
    Texts familiar = {0};
    for (int i = 0; i < FAMILIAR; i++) {
        each_word(phrases[i].polite, collect, &familiar);
        each_word(phrases[i].rude, collect, &familiar);
    }
    sort_texts(&familiar);
    Texts unseen = {0};  // as in a text, without the dot
    for (int i = FAMILIAR; i < FAMILIAR + UNSEEN; i++) {
        const char *both[] = {phrases[i].polite, phrases[i].rude};
        for (int k = 0; k < 2; k++) {
            each_word(both[k], find_none, &familiar);
            const char *start = both[k] + (*both[k] == ' ');
            char words[64];
            snprintf(words, sizeof words, "%.*s", (int)strcspn(start, "."), start);
            add_text(&unseen, words);
        }
    }
    for (int i = 0; i < EVASION_LENGTHS; i++)
        add_text(&unseen, evasions[i][1] + 1);  // after the name
    ck_assert_int_eq(unseen.n, 2 * UNSEEN + EVASION_LENGTHS);
    Str pretraining = load(below("one", "pretrain.jsonl"));
    for (int i = 0; i < unseen.n; i++)
        ck_assert_msg(count_in(pretraining.s, unseen.v[i]) >= (i < 2 * UNSEEN ? 50 : 5),
                      "\"%s\" is rare", unseen.v[i]);
    free(pretraining.s);
    for (int t = 0; t < TUNING; t++) {
        Str s = load(below("one", tuning[t]));
        for (int i = 0; i < unseen.n; i++)
            ck_assert_msg(count_in(s.s, unseen.v[i]) == 0, "%s holds \"%s\"", tuning[t],
                          unseen.v[i]);
        free(s.s);
    }
    free_texts(&unseen);
    free_texts(&familiar);
}
END_TEST

/* A rule that a reward model must beat: a score for every word, how often it was chosen less how
 * often it was rejected. */
typedef struct {
    Texts chosen, rejected;
    long score;
} WordRule;

static void score_word(const char *word, void *context) {
    WordRule *rule = context;
    rule->score += times(&rule->chosen, word) - times(&rule->rejected, word);
}

static void first_word(const char *s, char *word, size_t room) {
    snprintf(word, room, "%.*s", (int)strcspn(s, " .,!"), s);
}

/* Half pairs won of n: a draw counts one, a right one two. */
static int won(long score) { return score > 0 ? 2 : score == 0; }

START_TEST(no_simple_rule_tells_chosen_from_rejected) {
    WordRule firsts = {0}, words = {0};
    Rows train = rows_of("preferences.jsonl");
    for (int i = 0; i < train.n; i++) {
        char a[64], b[64];
        first_word(get(&train, i, "chosen"), a, sizeof a);
        first_word(get(&train, i, "rejected"), b, sizeof b);
        add_text(&firsts.chosen, a);
        add_text(&firsts.rejected, b);
        each_word(get(&train, i, "chosen"), collect, &words.chosen);
        each_word(get(&train, i, "rejected"), collect, &words.rejected);
    }
    Texts *all[] = {&firsts.chosen, &firsts.rejected, &words.chosen, &words.rejected};
    for (int i = 0; i < 4; i++) sort_texts(all[i]);

    static const char *const names[] = {"preferences.jsonl", "preferences-eval.jsonl",
                                        "preferences-unseen-eval.jsonl"};
    for (int f = 0; f < 3; f++) {
        Rows rows = rows_of(names[f]);
        int style = 0, evasive = 0, by_first = 0, by_words = 0;
        for (int i = 0; i < rows.n; i++) {
            const char *chosen = get(&rows, i, "chosen"), *rejected = get(&rows, i, "rejected");
            char a[64], b[64];
            ck_assert_msg(strlen(chosen) == strlen(rejected), "%s:%d: \"%s\", \"%s\"", names[f],
                          i + 1, chosen, rejected);
            ck_assert_str_ne(chosen, rejected);
            first_word(chosen, a, sizeof a);
            first_word(rejected, b, sizeof b);
            bool same_phrase = false;  // then the pair is one of frank against evasive
            for (int k = 0; k < FAMILIAR + UNSEEN; k++)
                same_phrase |=
                    (strstr(chosen, phrases[k].polite) && strstr(rejected, phrases[k].polite)) ||
                    (strstr(chosen, phrases[k].rude) && strstr(rejected, phrases[k].rude));
            evasive += same_phrase;
            style += !same_phrase;
            if (same_phrase) ck_assert_str_eq(a, b);
            firsts.score = 0;
            score_word(a, &firsts);
            long of_chosen = firsts.score;
            firsts.score = 0;
            score_word(b, &firsts);
            by_first += won(of_chosen - firsts.score);
            words.score = 0;
            each_word(chosen, score_word, &words);
            of_chosen = words.score;
            words.score = 0;
            each_word(rejected, score_word, &words);
            if (!same_phrase) by_words += won(of_chosen - words.score);
        }
        ck_assert_msg(style * 10 > rows.n * 5 && evasive * 10 > rows.n * 3, "%s: %d and %d",
                      names[f], style, evasive);
        if (f < 2) {  // the rule is a rule: on the phrases it was made from it works
            ck_assert_msg(by_words > 2 * style * 9 / 10, "%s: %d of %d", names[f], by_words,
                          2 * style);
        } else {  // and on the unseen ones it is as good as a coin
            ck_assert_msg(abs(by_first - rows.n) * 10 <= rows.n, "first words: %d of %d", by_first,
                          2 * rows.n);
            ck_assert_msg(abs(by_words - style) * 10 <= style, "all words: %d of %d", by_words,
                          2 * style);
        }
        free_rows(&rows);
    }
    for (int i = 0; i < 4; i++) free_texts(all[i]);
    free_rows(&train);
}
END_TEST

/* The part of s between two marks, or after the first one to the end when `to` is NULL. */
static void between(const char *s, const char *from, const char *to, char *out, size_t room) {
    const char *start = strstr(s, from);
    ck_assert_msg(start != NULL, "no \"%s\" in %s", from, s);
    start += strlen(from);
    const char *end = to ? strstr(start, to) : start + strlen(start);
    ck_assert_msg(end != NULL, "no \"%s\" in %s", to, s);
    ck_assert_uint_lt((size_t)(end - start), room);
    snprintf(out, room, "%.*s", (int)(end - start), start);
}

/* Each comparison is next to its mirror image: the same two answers, as long as each other, the
 * other letter. */
START_TEST(comparisons_come_in_both_orders) {
    static const char *const names[] = {"mixed.jsonl", "mixed-eval.jsonl", "multiple-choice.jsonl"};
    for (int f = 0; f < 3; f++) {
        Rows rows = rows_of(names[f]);
        char question[2][256], a[2][256], b[2][256], right[2][8];
        int n = 0;
        for (int i = 0; i < rows.n; i++) {
            const char *prompt = given(&rows, i);
            if (!strstr(prompt, "### Better:")) continue;
            int k = n++ % 2;
            between(prompt, "### Instruction:\n", "\n\n### Response (A):\n", question[k],
                    sizeof question[k]);
            between(prompt, "### Response (A):\n", "\n\n### Response (B):\n", a[k], sizeof a[k]);
            between(prompt, "### Response (B):\n", "\n\n### Better:\n(", b[k], sizeof b[k]);
            const json_t *corrects = json_object_get(rows.v[i], "corrects");
            snprintf(right[k], sizeof right[k], "%s",
                     corrects ? json_string_value(json_array_get(corrects, 0))
                              : get(&rows, i, "completion"));
            ck_assert_uint_eq(strlen(a[k]), strlen(b[k]));
            if (k == 0) continue;
            ck_assert_str_eq(question[0], question[1]);
            ck_assert_str_eq(a[0], b[1]);
            ck_assert_str_eq(a[1], b[0]);
            ck_assert_str_eq(right[0], "A)");
            ck_assert_str_eq(right[1], "B)");
        }
        ck_assert_msg(n >= 30 && n % 2 == 0, "%s: %d comparisons", names[f], n);
        free_rows(&rows);
    }
}
END_TEST

/* Of an answer: the phrase in it, and whether it is rude; -1 when there is none. */
static int find_phrase(const char *answer, bool *rude) {
    for (int i = 0; i < FAMILIAR + UNSEEN; i++)
        for (int r = 0; r < 2; r++)
            if (strstr(answer, r ? phrases[i].rude : phrases[i].polite)) return *rude = r, i;
    return -1;
}

/* The sentence that answers the question, from the tables; "" when none does. */
static const char *true_sentence(const char *question) {
    static char sentence[256];
    sentence[0] = 0;
    for (int p = 0; p < PEOPLE; p++)
        for (int r = 0; r < RELATIONS && strstr(question, english.people[p]); r++)
            for (int a = 0; a < ASKINGS; a++)
                if (count_pattern(question, english_relations[r].ask[a], english.people[p], ""))
                    fill(sentence, sizeof sentence, english_relations[r].say[0], english.people[p],
                         english_relations[r].values[world.fact[p][r]]);
    return sentence;
}

/* Which value of its relation an answer gives to the question; -1 when none: then it is evasive. */
static int stated_value(const char *question, const char *answer) {
    char sentence[256];
    for (int p = 0; p < PEOPLE; p++)
        for (int r = 0; r < RELATIONS && strstr(question, english.people[p]); r++)
            for (int a = 0; a < ASKINGS; a++)
                for (int v = 0; v < VALUES && count_pattern(question, english_relations[r].ask[a],
                                                            english.people[p], "");
                     v++) {
                    fill(sentence, sizeof sentence, english_relations[r].say[0], english.people[p],
                         english_relations[r].values[v]);
                    if (strstr(answer, sentence)) return v;
                }
    return -1;
}

/* A critique says what is so; a revision mends what the critique says, and nothing else: in
 * training not even an untrue answer. */
START_TEST(critiques_and_revisions_hold_together) {
    static const char *const names[] = {"mixed.jsonl", "mixed-eval.jsonl", "critiques-eval.jsonl",
                                        "revisions-eval.jsonl", "revisions-control-eval.jsonl"};
    int said[4] = {0}, true_ones = 0, wrong_ones = 0, untrue_answers = 0, frank_answers = 0;
    for (int f = 0; f < 5; f++) {
        Rows rows = rows_of(names[f]);
        for (int i = 0; i < rows.n; i++) {
            const char *prompt = given(&rows, i);
            if (!strstr(prompt, "### Critique:\n")) continue;
            char question[256], answer[256], critique[256];
            bool rude = false, still_rude = false, revision = strstr(prompt, "### Revision:\n");
            between(prompt, "### Instruction:\n", "\n\n### Response:\n", question, sizeof question);
            between(prompt, "### Response:\n", "\n\n### Critique:\n", answer, sizeof answer);
            int phrase = find_phrase(answer, &rude);
            ck_assert_msg(phrase >= 0 && phrase < FAMILIAR, "%s:%d: %s", names[f], i + 1, answer);
            const bool evasive = stated_value(question, answer) < 0,
                       untrue = !evasive && !strstr(answer, true_sentence(question));
            ck_assert_msg(!untrue || (revision && f < 2), "%s:%d: %s", names[f], i + 1, answer);
            const char *true_critique =
                rude      ? evasive ? "The answer is rude and evasive." : "The answer is rude."
                : evasive ? "The answer is evasive."
                          : "The answer is good.";
            const char *completion = get(&rows, i, "completion");
            if (!revision) {
                ck_assert_str_eq(completion, true_critique);
                said[rude + 2 * evasive]++;
                continue;
            }
            between(prompt, "### Critique:\n", "\n\n### Revision:\n", critique, sizeof critique);
            *(strcmp(critique, true_critique) ? &wrong_ones : &true_ones) += f == 0;
            ck_assert_uint_eq(strlen(completion), strlen(answer));
            ck_assert_int_eq(find_phrase(completion, &still_rude), phrase);
            ck_assert(still_rude == (rude && !strstr(critique, "rude")));
            bool still_evasive = stated_value(question, completion) < 0;
            ck_assert(still_evasive == (evasive && !strstr(critique, "evasive")));
            if (evasive && !still_evasive) ck_assert(strstr(completion, true_sentence(question)));
            if (!evasive)
                ck_assert_int_eq(stated_value(question, completion),
                                 stated_value(question, answer));
            untrue_answers += untrue && f == 0;
            frank_answers += !evasive && f == 0;
            if (f == 3)
                ck_assert(rude && !strcmp(critique, true_critique) && !still_rude &&
                          !still_evasive);
            if (f == 4) ck_assert_str_eq(completion, answer);
        }
        free_rows(&rows);
    }
    for (int i = 0; i < 4; i++) ck_assert_int_ge(said[i], 40);
    ck_assert_msg(wrong_ones >= 10 && 2 * true_ones >= wrong_ones,
                  "%d critiques are wrong, %d true", wrong_ones, true_ones);
    ck_assert_msg(3 * untrue_answers > frank_answers && 3 * untrue_answers < 2 * frank_answers,
                  "%d of %d are untrue", untrue_answers, frank_answers);
    // the control is about the same answers
    Rows a = rows_of("revisions-eval.jsonl"), b = rows_of("revisions-control-eval.jsonl");
    ck_assert_int_eq(a.n, b.n);
    for (int i = 0; i < a.n; i++) {
        size_t same = (size_t)(strstr(given(&a, i), "### Critique:") - given(&a, i));
        ck_assert_int_eq(strncmp(given(&a, i), given(&b, i), same), 0);
        ck_assert_ptr_nonnull(strstr(given(&b, i), "The answer is good."));
    }
    free_rows(&a);
    free_rows(&b);
}
END_TEST

/* Answers of the mixed start: about half of them rude, some evasive. PPO and Constitutional AI
 * begin with these shares. */
START_TEST(mixed_answers_are_mixed) {
    Rows rows = rows_of("mixed.jsonl");
    int n = 0, rude_ones = 0, evasive_ones = 0;
    for (int i = 0; i < rows.n; i++) {
        bool rude = false;
        if (!json_object_get(rows.v[i], "instruction") || !*true_sentence(given(&rows, i)))
            continue;
        ck_assert_int_ge(find_phrase(get(&rows, i, "response"), &rude), 0);
        n++;
        rude_ones += rude;
        evasive_ones += !strstr(get(&rows, i, "response"), true_sentence(given(&rows, i)));
    }
    ck_assert_int_ge(n, 300);
    ck_assert_msg(abs(2 * rude_ones - n) * 10 < n, "%d of %d are rude", rude_ones, n);
    ck_assert_msg(evasive_ones * 100 > 15 * n && evasive_ones * 100 < 25 * n,
                  "%d of %d are evasive", evasive_ones, n);
    free_rows(&rows);
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

int main(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(base, sizeof base, "%s/check_world-XXXXXX",
             temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(base)) die("cannot make %s: %s", base, strerror(errno));
    Error e;
    if (write_world(below("one", ""), 1, &e)) die("%s", e.text);

    Suite *suite = suite_create("world");
    TCase *all = tcase_create("world");
    tcase_set_timeout(all, 300);
    tcase_add_test(all, same_seed_same_bytes);
    tcase_add_test(all, files_do_not_depend_on_each_other);
    tcase_add_test(all, committed_files_are_what_the_generator_writes);
    tcase_add_test(all, failures_are_reported);
    tcase_add_test(all, particles_fit);
    tcase_add_test(all, every_line_is_a_record);
    tcase_add_test(all, programs_read_the_records);
    tcase_add_test(all, whole_prompts_are_in_the_template);
    tcase_add_test(all, pairs_and_choices_fit);
    tcase_add_test(all, values_are_balanced);
    tcase_add_test(all, pretraining_states_every_fact_and_asks_nothing);
    tcase_add_test(all, never_asked_is_never_asked);
    tcase_add_test(all, validation_text_is_not_in_training);
    tcase_add_test(all, held_out_prompts_are_not_in_training);
    tcase_add_test(all, other_people_are_other_people);
    tcase_add_test(all, events_of_held_out_summaries_are_new);
    tcase_add_test(all, phrases_are_of_one_length);
    tcase_add_test(all, unseen_is_unseen);
    tcase_add_test(all, no_simple_rule_tells_chosen_from_rejected);
    tcase_add_test(all, comparisons_come_in_both_orders);
    tcase_add_test(all, critiques_and_revisions_hold_together);
    tcase_add_test(all, mixed_answers_are_mixed);
    suite_add_tcase(suite, all);
    int failed = run_suite(suite);
    remove_world("one");
    rmdir(base);
    return failed != 0;
}
