/*
 * check_constitution.c - constitutions, layouts and their headings, dialogues and transcripts.
 */
#define _GNU_SOURCE  // strcasestr
#include "rl/constitution.h"
#include "text/records.h"
#include "text/utf8.h"
#include "program.h"

#include <stdlib.h>

#undef fail
#include <check.h>

static char work[64] = "/tmp/check_constitution.XXXXXX";

/* A path in the working directory. The second function also writes these bytes to the file. */
static const char *at(const char *name) {
    static char path[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof *path, "%s/%s", work, name);
    return path[next];
}

static const char *file_of(const char *bytes, size_t n) {
    const char *path = at("file");
    FILE *f = fopen(path, "wb");
    fwrite(bytes, 1, n, f);
    fclose(f);
    return path;
}

/* ---- texts ----------------------------------------------------------------------------------- */

START_TEST(a_phrase_is_said_from_the_beginning_of_a_word) {
    static const struct {
        const char *text, *list;
        bool says;
    } cases[] = {
        {"There are no problems.", "no problem", true},
        {"NO PROBLEM", "no problem", true},
        {"no proble", "no problem", false},
        {"inappropriate", "appropriate", false},
        {"(appropriate)", "appropriate", true},
        {"a3b", "b", false},
        {"부적절함", "적절함", false},
        {"적절함", "문제없음|적절함", true},
        {"답변은 적절함.", "적절함", true},
        {"“적절함”", "적절함", true},
        {"「문제없음」", "문제없음", true},
        {"이문제없음", "문제없음", false},
        {"é적절함", "적절함", false},
        {"anything", "", false},
        {"anything", "|", false},
        {"", "a", false},
        {"bad apple, apple", "||apple|", true},
        {"xapple apple", "apple", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(text_says(cases[i].text, cases[i].list) == cases[i].says, "\"%s\" and \"%s\"",
                      cases[i].text, cases[i].list);
    ck_assert(!text_says("anything", NULL));
}
END_TEST

START_TEST(holes_are_filled_once) {
    const Hole holes[] = {{"{a}", "{b} 가"}, {"{b}", "{a}"}, {0}};
    char *s = text_fill("{a}{b}{c}{a", holes);
    ck_assert_str_eq(s, "{b} 가{a}{c}{a");
    free(s);
    s = text_fill("", holes);
    ck_assert_str_eq(s, "");
    free(s);
}
END_TEST

START_TEST(korean_is_what_has_a_syllable) {
    ck_assert(text_is_korean("a 가"));
    ck_assert(text_is_korean("힣"));
    ck_assert(
        !text_is_korean("é 日本 ꀀ ㄱ \xED\x9F\xBF"));  // Latin, Han, Yi, a single letter, U+D7FF
    ck_assert(!text_is_korean(""));
    ck_assert(!text_is_korean(NULL));
    ck_assert(!text_is_korean("\xEA"));
    ck_assert(!text_is_korean("\xEA\xB0"));
}
END_TEST

START_TEST(headings_are_the_ends_of_a_template) {
    Headings h = {0};
    headings_add(
        &h, "\n\nCritiqueRequest: Look at it: closely.\nNot this: one.\n# But: this\n\nCritique:");
    headings_add(&h, "\n\n### Critique:\n");
    headings_add(&h, "no heading here");
    headings_add(&h, "");
    headings_add(&h, "\n\n### Critique:\n");  // known
    ck_assert_int_eq(h.n, 4);
    ck_assert_str_eq(h.v[0], "CritiqueRequest:");
    ck_assert_str_eq(h.v[1], "# But:");
    ck_assert_str_eq(h.v[2], "Critique:");
    ck_assert_str_eq(h.v[3], "### Critique:");
    static const char *const cases[][2] = {
        {"Yes. Critique: no\n", "Yes. Critique: no"},
        {"Yes.\n\n### Critique:\nGood.", "Yes."},
        {"### Critique:", ""},
        {"", ""},
        {"\n \t\n", ""},
        {"Yes.\nNot this: one.\nCritiqueRequest:", "Yes.\nNot this: one."},
        {"a\n<|endoftext|>b", "a"},
        {" a b ", " a b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *s = xstrdup(cases[i][0]);
        headings_cut(&h, s);
        ck_assert_str_eq(s, cases[i][1]);
        headings_cut(&h, s);  // a second cut changes nothing
        ck_assert_str_eq(s, cases[i][1]);
        free(s);
    }
    headings_free(&h);
}
END_TEST

START_TEST(questions_without_their_headings) {
    static const char *const cases[][3] = {
        {"### Instruction:\nWhy?\n\n### Response:\n", "### Instruction:\nWhy?", "Why?"},
        {"\n\nHuman: Why?\n\nAssistant:", "\n\nHuman: Why?", " Why?"},
        {"### Instruction:\n\n\n### Response:\n", "### Instruction:\n", ""},
        {"Why?", "Why?", "Why?"},
        {"### Instruction:\nWhy?", "### Instruction:\nWhy?", "### Instruction:\nWhy?"},
        {"", "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int bare = 0; bare < 2; bare++) {
            char *s = prompt_question(cases[i][0], bare);
            ck_assert_str_eq(s, cases[i][1 + bare]);
            free(s);
        }
}
END_TEST

START_TEST(any_bytes_can_be_written_and_read_again) {
    Str s = {0};
    str_add(&s, "keep\xFF", 5);
    for (int c = 0; c < 256; c++) str_add(&s, &(char){(char)c}, 1);
    str_add(&s, "가\xED\xA0\x80\xF4\x90\x80\x80", 10);  // a syllable, a surrogate, beyond Unicode
    text_repair(&s, 5);
    ck_assert(!memcmp(s.s, "keep\xFF", 5));  // before `from` nothing changes
    ck_assert_uint_eq(strlen(s.s), s.n);     // no NUL is left
    text_repair(&s, 0);
    Dialogue d = {.epoch = 1, .id = 2, .prompt = s.s, .answer = s.s}, *back;
    Dialogues all;
    Error e;
    ck_assert_msg(dialogues_append(at("bytes.jsonl"), &d, 1, &e) == 0, "%s", e.text);
    ck_assert_msg(dialogues_keep(at("bytes.jsonl"), 1, NULL, &all, &e) == 0, "%s", e.text);
    ck_assert_int_eq(all.n, 1);
    back = &all.v[0];
    ck_assert_str_eq(back->prompt, s.s);
    ck_assert_str_eq(back->answer, s.s);
    dialogue_free(back);
    free(all.v);
    free(s.s);
}
END_TEST

/* ---- files ----------------------------------------------------------------------------------- */

static int read_text(const char *text, Constitution *c, Error *e) {
    return constitution_read(file_of(text, strlen(text)), c, e);
}

START_TEST(constitutions_of_every_form) {
    Constitution c;
    Error e;
    ck_assert_msg(
        read_text("\xEF\xBB\xBF[\"Be kind.\", {\"critique_request\": \"C\", \"revision_request\": "
                  "\"R\", \"comparison\": \"X\", \"name\": \"N\"}, \"친절\"]",
                  &c, &e) == 0,
        "%s", e.text);
    ck_assert_int_eq(c.n, 3);
    ck_assert_str_eq(c.v[0].text, "Be kind.");
    ck_assert_str_eq(c.v[0].name, "principle 1");
    ck_assert_ptr_null(c.v[0].critique_request);
    ck_assert(!strcmp(c.v[1].critique_request, "C") && !strcmp(c.v[1].revision_request, "R") &&
              !strcmp(c.v[1].comparison, "X") && !strcmp(c.v[1].name, "N") && !c.v[1].text);
    ck_assert_str_eq(c.v[2].text, "친절");
    constitution_free(&c);
    // as published for comparisons: the heading of the two answers is not part of the principle
    ck_assert_int_eq(read_text("[\"\\nPlease choose the kind one.\\nOptions:\", \"Be kind. "
                               "Options: few.\"]",
                               &c, &e),
                     0);
    ck_assert_str_eq(c.v[0].text, "Please choose the kind one.");
    ck_assert_str_eq(c.v[1].text, "Be kind. Options: few.");
    constitution_free(&c);
    ck_assert_msg(read_text("[{\"principle\": \"Be kind.\"}, {\"id\": 2, \"name\": \"N\", "
                            "\"principle\": \"Be brief.\"}]",
                            &c, &e) == 0,
                  "%s", e.text);
    ck_assert_int_eq(c.n, 2);
    ck_assert(!strcmp(c.v[0].text, "Be kind.") && !strcmp(c.v[0].name, "principle 1"));
    ck_assert(!strcmp(c.v[1].text, "Be brief.") && !strcmp(c.v[1].name, "N"));
    constitution_free(&c);
    ck_assert_msg(read_text("{\"constitutions\": [{\"critic\": \"C\", \"revision\": \"R\"}], "
                            "\"system_chat\": []}",
                            &c, &e) == 0,
                  "%s", e.text);
    ck_assert_int_eq(c.n, 1);
    ck_assert(!strcmp(c.v[0].critique_request, "C") && !strcmp(c.v[0].revision_request, "R"));
    constitution_free(&c);
    // as published: a prompt that is a list of two texts gives two principles
    ck_assert_msg(
        read_text("{\"harmful0\": {\"prompt\": [\"\\n\\nCritiqueRequest: A\\n\\nCritique:\"], "
                  "\"edit_request\": \"\\n\\nRevisionRequest: B\\n\\nRevision:\"},"
                  " \"harmful1\": {\"prompt\": [\"P\", \"Q\"], \"edit_request\": \"E\"}, "
                  "\"other\": {\"prompt\": \"S\", \"edit_request\": \"F\"}}",
                  &c, &e) == 0,
        "%s", e.text);
    ck_assert_int_eq(c.n, 4);
    ck_assert_str_eq(c.v[0].name, "harmful0");
    ck_assert_str_eq(c.v[0].critique_request, "\n\nCritiqueRequest: A\n\nCritique:");
    ck_assert_str_eq(c.v[0].revision_request, "\n\nRevisionRequest: B\n\nRevision:");
    ck_assert(!strcmp(c.v[2].name, "harmful1") && !strcmp(c.v[2].critique_request, "Q") &&
              !strcmp(c.v[2].revision_request, "E"));
    ck_assert_str_eq(c.v[3].critique_request, "S");
    constitution_free(&c);
    // with templates and few-shot conversations
    ck_assert_msg(read_text("{\"few_shot\": [\"F\", \"G\"], \"options\": [\"1\", \"2\"], "
                            "\"comparison\": \"{a}{b}\", \"critique_request\": \"c\", "
                            "\"revision_request\": \"r\", \"principles\": [\"P\"]}",
                            &c, &e) == 0,
                  "%s", e.text);
    ck_assert(c.n == 1 && c.few_shot_n == 2 && !strcmp(c.few_shot[1], "G") &&
              !strcmp(c.option[0], "1") && !strcmp(c.option[1], "2"));
    ck_assert(!strcmp(c.comparison, "{a}{b}") && !strcmp(c.critique_request, "c") &&
              !strcmp(c.revision_request, "r"));
    constitution_free(&c);
    ck_assert(!c.v && !c.n && !c.option[0]);
    // many
    Str many = {0};
    str_printf(&many, "[\"first\"");
    for (int i = 1; i < 100000; i++) str_printf(&many, ",\"principle %d\"", i);
    str_printf(&many, "]");
    ck_assert_int_eq(read_text(many.s, &c, &e), 0);
    ck_assert_int_eq(c.n, 100000);
    ck_assert_str_eq(c.v[99999].text, "principle 99999");
    constitution_free(&c);
    free(many.s);
}
END_TEST

START_TEST(bad_constitutions_are_refused_with_a_reason) {
    static const char *const cases[][2] = {
        {"", "line 1"},
        {"[", "line 1"},
        {"[\"a\",\n oops]", "line 2, column"},
        {"[]", "no principle"},
        {"{}", "no principle"},
        {"3", "a number, expected an array or an object"},
        {"[\"\"]", "principle 1 is empty"},
        {"[\"a\", \" \\n\"]", "principle 2 is empty"},
        {"[\"a\", 3]", "principle 2 is a number"},
        {"[\"\\n\\nHuman: Hi.\\n\\nAssistant: Get lost.\\n\\nCritiqueRequest: x\"]",
         "principle 1 is a conversation; few-shot conversations belong in"},
        {"[\"a\", null]", "principle 2 is null"},
        {"[{\"principle\": \"\"}]", "principle 1 is empty"},
        {"[{\"critic\": \"a\"}]", "needs both \"critique_request\" and \"revision_request\""},
        {"[{\"principle\": 7}]", "\"principle\" of principle 1 is a number"},
        {"[{\"principle\": \"a\", \"weight\": 2}]", "unknown field \"weight\""},
        {"[{\"critique_request\": \"C\"}]", "needs both"},
        {"[{\"critique_request\": \"C\", \"revision_request\": \"\"}]",
         "\"revision_request\" of principle 1 is empty"},
        {"[{\"critique_request\": \"C\", \"revision_request\": []}]",
         "is an array, expected a text"},
        {"[{\"critique_request\": \"C\", \"revision_request\": \"R\", \"critque\": \"x\"}]",
         "unknown field \"critque\""},
        {"[{\"name\": \"N\", \"critique_request\": \"C\"}]", "needs both"},
        {"{\"a\": 3}", "\"a\" is no"},
        {"{\"a\": {\"prompt\": [], \"edit_request\": \"E\"}}", "\"a\" is no"},
        {"{\"a\": {\"prompt\": [3], \"edit_request\": \"E\"}}", "holds a value that is not a text"},
        {"{\"a\": {\"prompt\": [\"P\"], \"edit_request\": \"\"}}", "\"a\" is no"},
        {"{\"principles\": []}", "no principle"},
        {"{\"principles\": [\"a\"], \"few_shots\": []}", "unknown field \"few_shots\""},
        {"{\"principles\": [\"a\"], \"few_shot\": \"x\"}", "\"few_shot\" is a string"},
        {"{\"principles\": [\"a\"], \"few_shot\": [1]}", "few_shot[0] is not a text"},
        {"{\"principles\": [\"a\"], \"options\": [\"A\"]}", "two texts"},
        {"{\"principles\": [\"a\"], \"options\": [\"A\", 2]}", "two texts"},
        {"{\"principles\": [\"a\"], \"options\": \"AB\"}", "two texts"},
        {"{\"principles\": [\"a\"], \"options\": [\"A\", \"A\"]}", "the same text"},
        {"{\"principles\": [\"a\"], \"comparison\": 1}",
         "\"comparison\" of the constitution is a number"},
        {"{\"principles\": [\"a\"], \"principles\": [\"a\"]}", "duplicate"},
        {"[\"a\\u0000b\"]", "NUL"},
        {"[\"a\xFF\"]", "unable to decode"},
        {"[\"a\"] trailing", "end of file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Constitution c;
        Error e = {0};
        ck_assert_msg(read_text(cases[i][0], &c, &e) == -1, "%s was read", cases[i][0]);
        ck_assert_msg(strstr(e.text, "/file: ") && strcasestr(e.text, cases[i][1]),
                      "%s: \"%s\" does not say \"%s\"", cases[i][0], e.text, cases[i][1]);
        ck_assert(!c.v && !c.few_shot);
    }
    Constitution c;
    Error e;
    ck_assert_int_eq(constitution_read("/nowhere", &c, &e), -1);
    // one byte more than the limit; and nested too deep
    Str huge = {0};
    str_add(&huge, "[\"", 2);
    char block[4096];
    memset(block, 'a', sizeof block);
    while (huge.n <= 16 << 20) str_add(&huge, block, sizeof block);
    str_add(&huge, "\"]", 2);
    ck_assert_int_eq(read_text(huge.s, &c, &e), -1);
    ck_assert_msg(strstr(e.text, "larger than 16777216 bytes"), "%s", e.text);
    memset(huge.s, '[', huge.n);
    huge.s[1 << 20] = 0;
    ck_assert_int_eq(read_text(huge.s, &c, &e), -1);
    ck_assert_msg(strstr(e.text, "depth"), "%s", e.text);
    free(huge.s);
}
END_TEST

static Dialogue dialogue(int epoch, int id, int rounds) {
    Dialogue d = {.epoch = epoch,
                  .id = id,
                  .prompt = xstrdup("P\n\"가\""),
                  .answer = xstrdup("A"),
                  .rounds = rounds,
                  .ending = PRAISED};
    d.round = (Round *)xcalloc((size_t)rounds + 1, sizeof *d.round);
    for (int r = 0; r < rounds; r++)
        d.round[r] = (Round){xstrdup("N"), xstrdup("CR"), xstrdup("C"), xstrdup("RR"),
                             r + 1 < rounds ? xstrdup("R") : NULL};
    return d;
}

START_TEST(transcripts_are_kept_up_to_an_epoch) {
    Error e;
    Str before = {0}, after = {0}, cut = {0};
    const char *path = at("transcripts.jsonl");
    for (int i = 0; i < 4; i++) {
        Dialogue d = dialogue(i / 2, i % 2, i);
        ck_assert(dialogues_append(path, &d, 1, &e) == 0);
        if (i == 1) ck_assert(read_file(path, 1 << 20, &before, &e) == 0);
        dialogue_free(&d);
    }
    ck_assert(read_file(path, 1 << 20, &after, &e) == 0);
    FILE *f = fopen(path, "ab");
    fputs("{\"epoch\": 1, \"id\": 2, \"init", f);  // cut off while it was written
    fclose(f);
    Dialogues all;
    ck_assert(dialogues_keep(path, 1, path, &all, &e) == 0);
    ck_assert_int_eq(all.n, 4);
    ck_assert(all.v[3].epoch == 1 && all.v[3].id == 1 && all.v[3].rounds == 3 &&
              all.v[3].ending == PRAISED && all.v[3].line == 4);
    ck_assert_str_eq(all.v[3].round[1].revision, "R");
    ck_assert_ptr_null(all.v[3].round[2].revision);
    ck_assert_str_eq(dialogue_answer(&all.v[3]), "R");
    ck_assert_str_eq(dialogue_answer(&all.v[1]), "A");
    for (int i = 0; i < all.n; i++) dialogue_free(&all.v[i]);
    free(all.v);
    ck_assert(read_file(path, 1 << 20, &cut, &e) == 0);
    ck_assert_str_eq(cut.s, after.s);  // the same bytes, without the broken line
    ck_assert(dialogues_keep(path, 0, path, &all, &e) == 0);
    ck_assert_int_eq(all.n, 2);
    for (int i = 0; i < all.n; i++) dialogue_free(&all.v[i]);
    free(all.v);
    cut.n = 0;
    ck_assert(read_file(path, 1 << 20, &cut, &e) == 0);
    ck_assert_str_eq(cut.s, before.s);
    ck_assert(dialogues_keep(at("absent"), 0, at("new"), &all, &e) == 0);  // none: an empty file
    ck_assert_int_eq(all.n, 0);
    free(before.s);
    free(after.s);
    free(cut.s);
    // lines that are no dialogues
    static const char *const bad[] = {
        "{}",
        "{\"epoch\": -1, \"id\": 0, \"init_prompt\": \"P\", \"init_response\": \"\", \"rounds\": "
        "[], \"ended\": \"no room\"}",
        "{\"epoch\": 0, \"id\": 0, \"init_prompt\": \"P\", \"init_response\": \"\", \"rounds\": "
        "[], \"ended\": \"tired\"}",
        "{\"epoch\": 0, \"id\": 0, \"init_prompt\": \"P\", \"init_response\": \"\", \"rounds\": "
        "[3], \"ended\": \"no room\"}",
        "{\"epoch\": 0, \"id\": 1e99, \"init_prompt\": \"P\", \"init_response\": \"\", \"rounds\": "
        "[], \"ended\": \"no room\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert(dialogues_keep(file_of(bad[i], strlen(bad[i])), 0, NULL, &all, &e) == 0);
        ck_assert_int_eq(all.n, 0);
        free(all.v);
    }
}
END_TEST

START_TEST(a_line_of_a_transcript_is_what_others_read) {
    Error e;
    Str text = {0};
    Dialogue d = dialogue(0, 7, 2);
    free(d.prompt);
    d.prompt = xstrdup("### Instruction:\nWhy?\n\n### Response:\n");
    ck_assert(dialogues_append(at("line.jsonl"), &d, 1, &e) == 0);
    ck_assert(read_file(at("line.jsonl"), 1 << 20, &text, &e) == 0);
    ck_assert_str_eq(
        text.s,
        "{\"epoch\": 0, \"id\": 7, \"init_prompt\": \"### Instruction:\\nWhy?\\n\\n### "
        "Response:\\n\", \"init_response\": \"A\", "
        "\"rounds\": [{\"principle\": \"N\", \"critic_prompt\": \"CR\", \"critic_response\": "
        "\"C\", \"revision_prompt\": \"RR\", \"revision_response\": \"R\"}, "
        "{\"principle\": \"N\", \"critic_prompt\": \"CR\", \"critic_response\": \"C\", "
        "\"revision_prompt\": \"RR\"}], "
        "\"ended\": \"no fault found\", "
        "\"messages\": [{\"role\": \"user\", \"content\": \"Why?\"}, {\"role\": \"assistant\", "
        "\"content\": \"R\"}], "
        "\"prompt\": \"### Instruction:\\nWhy?\\n\\n### Response:\\n\", \"chosen\": \"R\", "
        "\"rejected\": \"A\"}\n");
    Records r;  // sft.c reads it as a conversation, reward.c as a pair
    ck_assert_msg(records_read(at("line.jsonl"), NULL, true, &r, &e) == 0, "%s", e.text);
    ck_assert_str_eq(r.v[0].spans[0].text, d.prompt);
    ck_assert_str_eq(r.v[0].spans[1].text, "R");
    records_free(&r);
    ck_assert_msg(pairs_read(at("line.jsonl"), NULL, true, &r, &e) == 0, "%s", e.text);
    ck_assert(!strcmp(r.v[0].spans[0].text, d.prompt) && !strcmp(r.v[0].spans[1].text, "R") &&
              !strcmp(r.v[0].spans[2].text, "A"));
    records_free(&r);
    dialogue_free(&d);
    free(text.s);
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    Suite *s = suite_create("constitution");
    TCase *c = tcase_create("constitution");
    tcase_set_timeout(c, 300);
    tcase_add_test(c, a_phrase_is_said_from_the_beginning_of_a_word);
    tcase_add_test(c, holes_are_filled_once);
    tcase_add_test(c, korean_is_what_has_a_syllable);
    tcase_add_test(c, headings_are_the_ends_of_a_template);
    tcase_add_test(c, questions_without_their_headings);
    tcase_add_test(c, any_bytes_can_be_written_and_read_again);
    tcase_add_test(c, bad_constitutions_are_refused_with_a_reason);
    tcase_add_test(c, transcripts_are_kept_up_to_an_epoch);
    tcase_add_test(c, a_line_of_a_transcript_is_what_others_read);
    suite_add_tcase(s, c);
    const TTest *const slow[] = {constitutions_of_every_form};
    add_tagged(s, "forms", SLOW, NULL, slow, 1);
    const int failed = run_suite(s);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", work);
    return system(command) || failed != 0;
}
