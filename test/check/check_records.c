/*
 * check_records.c - templates, records, pairs, prompts and questions out of JSONL files, and JSON.
 */
#include "text_files.h"

#include "text/json.h"
#include "text/template.h"

/* ---- templates ------------------------------------------------------------------------------- */

static void check_prompt(const char *template, const char *instruction, const char *input,
                         const char *expected) {
    Error e = {""};
    char *prompt = template_prompt(template, instruction, input, &e);
    ck_assert_msg(prompt != NULL, "%s", e.text);
    ck_assert_str_eq(prompt, expected);
    free(prompt);
}

START_TEST(templates) {
    check_prompt(NULL, "Sum.", NULL, "### Instruction:\nSum.\n\n### Response:\n");
    check_prompt(NULL, "Sum.", "", "### Instruction:\nSum.\n\n### Response:\n");
    check_prompt(NULL, "Sum.", "1 2",
                 "### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n");
    check_prompt("Q: {instruction}\\nA:", "why", NULL, "Q: why\nA:");
    check_prompt("Q: {instruction}\\nA:", "why", "so",
                 "Q: why\nso\nA:");  // the template has no {input}: it is not lost
    check_prompt("{instruction}[[\\t{input}]]|{instruction}", "a", "b", "a\tb|a");
    check_prompt("{instruction}[[\\t{input}]]|{instruction}", "a", NULL, "a|a");
    check_prompt("{instruction}{input}.", "a", NULL, "a.");
    // the text of a record is not read as a template
    check_prompt("{instruction}", "{input} {response} [[", "{instruction}",
                 "{input} {response} [[\n{instruction}");
    check_prompt("{ {instruction} } \\\\n \\x ]] [", "a", NULL, "{ a } \\n \\x ]] [");
    check_prompt("{instruction}\n{response} tail", "a", NULL, "a\n");
    check_prompt("{instruction}", "", NULL, "");
}
END_TEST

/* Checks the template in one line, and that it means the same. */
static void check_line(const char *template, const char *expected) {
    Error e;
    char *line = template_line(template), *again = template_line(line);
    ck_assert_str_eq(line, expected);
    ck_assert_str_eq(again, expected);
    for (int input = 0; input < 2; input++) {
        char *a = template_prompt(template, "why", input ? "so" : NULL, &e),
             *b = template_prompt(line, "why", input ? "so" : NULL, &e);
        ck_assert_str_eq(a, b);
        free(a);
        free(b);
    }
    char *a = template_response(template, "because", &e),
         *b = template_response(line, "because", &e);
    ck_assert_str_eq(a, b);
    free(a);
    free(b);
    free(line);
    free(again);
}

START_TEST(a_template_in_one_line) {
    check_line(
        NULL,
        "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n");
    check_line("Q: {instruction}\n\tA:", "Q: {instruction}\\n\\tA:");
    check_line("Q: {instruction}\\n\\t\\\\A:",
               "Q: {instruction}\\n\\t\\\\A:");  // spelled out already
    check_line(
        "{instruction} a\\\nb \\x \\\\\nc",
        "{instruction} a\\\\\\nb \\x \\\\\\nc");  // a backslash before a line feed spells nothing
    check_line("{instruction}\n{response}\n---\n", "{instruction}\\n{response}\\n---\\n");
    Error e;
    char *response = template_response("{instruction}:{response}|\\n", "yes", &e);
    ck_assert_str_eq(response, "yes|\n");
    free(response);
    ck_assert_ptr_null(template_response("nothing", "yes", &e));
}
END_TEST

START_TEST(wrong_templates) {
    static const struct {
        const char *template, *word;
    } wrong[] = {
        {"", "{instruction} is missing"},
        {"Question:", "{instruction} is missing"},
        {"[[{instruction}]]", "only within"},
        {"{instruction} {ouput}", "column 15"},
        {"{instruction}[[{input}", "without ]]"},
        {"{instruction}[[ [[{input}]] ]]", "column 17"},
        {"{response}{instruction}", "column 11"},
        {"{instruction}{response}{response}", "column 24"},
        {"{instruction}[[{response}]]", "within"},
        {"{instruction}{response}{input}", "column 24"},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        Error e = {""};
        ck_assert_ptr_null(template_prompt(wrong[i].template, "a", "b", &e));
        ck_assert_msg(strstr(e.text, wrong[i].word) != NULL, "%s: \"%s\"", wrong[i].template,
                      e.text);
        Records r;
        write_file("records.jsonl", "{\"text\": \"a\"}", 13);
        ck_assert_int_eq(
            records_read(in_directory("records.jsonl"), wrong[i].template, false, &r, &e), -1);
    }
}
END_TEST

/* ---- records --------------------------------------------------------------------------------- */

START_TEST(records_say_what_their_prompts_were_put_into) {
    static const struct {
        const char *json, *template, *expected;
    } cases[] = {
        {"{\"instruction\": \"a\", \"output\": \"b\"}", NULL,
         "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n"},
        {"{\"question\": \"a\", \"answer\": \"b\"}", "Q {instruction}\n", "Q {instruction}\\n"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", NULL, "{instruction}"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", "Q {instruction}", "Q {instruction}"},
        {"{\"text\": \"a\", \"summary\": \"b\"}", NULL,
         "Summarize the following text.\\n\\n{instruction}\\n\\nSummary:\\n"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
         "\"content\": \"b\"}]}",
         "U {instruction} A", "U {instruction} A"},
        {"{\"text\": \"a\"}", "Q {instruction}", NULL},
        // of several kinds, the first with a template
        {"{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"a\", "
         "\"summary\": \"b\"}\n{\"question\": \"a\", \"answer\": \"b\"}",
         NULL, "Summarize the following text.\\n\\n{instruction}\\n\\nSummary:\\n"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Records r = must_read(cases[i].json, cases[i].template);
        if (cases[i].expected)
            ck_assert_str_eq(r.template ? r.template : "(none)", cases[i].expected);
        else
            ck_assert_ptr_null(r.template);
        if (cases[i].expected &&
            r.n == 1) {  // --prompt with this template gives the record's own prompt
            Error e;
            char *prompt = template_prompt(r.template, "a", NULL, &e);
            ck_assert_str_eq(prompt, r.v[0].spans[0].text);
            free(prompt);
        }
        records_free(&r);
    }
}
END_TEST

/* One record: the expected spans follow, each as text, with "+" before what is scored and "-"
   before what is not; then NULL. */
static void check_record(const char *json, const char *template, const char *kind, ...) {
    Records r = must_read(json, template);
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.skipped, 0);
    ck_assert_str_eq(r.kind, kind);
    va_list spans;
    va_start(spans, kind);
    int n = 0;
    for (const char *span; (span = va_arg(spans, const char *)) != NULL; n++) {
        ck_assert_msg(n < r.v[0].n, "%s: %d spans", json, r.v[0].n);
        ck_assert_str_eq(r.v[0].spans[n].text, span + 1);
        ck_assert_uint_eq(r.v[0].spans[n].n, strlen(span + 1));
        ck_assert_msg(r.v[0].spans[n].scored == (*span == '+'), "%s: span %d", json, n);
    }
    va_end(spans);
    ck_assert_int_eq(r.v[0].n, n);
    records_free(&r);
}

#define ALPACA(instruction) "### Instruction:\n" instruction "\n\n### Response:\n"

START_TEST(kinds) {
    static const char I[] = "-" ALPACA("I"), P[] = "-" ALPACA("P");
    static const char pair[] = "instruction/response", triple[] = "instruction/input/output";
    check_record("{\"instruction\": \"I\", \"response\": \"R\"}", NULL, pair, I, "+R", NULL);
    check_record("{\"output\": \"R\", \"instruction\": \"I\", \"input\": \"X\"}", NULL, triple,
                 "-### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n", "+R", NULL);
    check_record("{\"instruction\": \"I\", \"input\": \"\", \"output\": \"R\"}", NULL, triple, I,
                 "+R", NULL);
    check_record("{\"instruction\": \"I\", \"input\": null, \"output\": \"R\"}", NULL, triple, I,
                 "+R", NULL);
    check_record("{\"instruction\": \"I\", \"output\": \"R\", \"text\": \"T\"}", NULL,
                 "instruction/output", I, "+R", NULL);
    check_record("{\"prompt\": \"P\", \"completion\": \" R\"}", NULL, "prompt/completion", "-P",
                 "+ R", NULL);
    check_record("{\"prompt\": \"P\", \"completion\": \"R\"}", "<{instruction}>",
                 "prompt/completion", "-<P>", "+R", NULL);
    check_record("{\"prompt\": \"P\", \"response\": \"R\"}", NULL, "prompt/response", P, "+R",
                 NULL);
    check_record("{\"input\": \"P\", \"output\": \"R\"}", NULL, "input/output", P, "+R", NULL);
    check_record("{\"text\": \"P\", \"summary\": \"R\"}", NULL, "text/summary",
                 "-Summarize the following text.\n\nP\n\nSummary:\n", "+R", NULL);
    check_record("{\"text\": \"P\", \"summary\": \"R\"}", "{instruction}=", "text/summary",
                 "-P=", "+R", NULL);
    check_record("{\"question\": \"P\", \"answer\": \"\"}", NULL, "question/answer", P, "+", NULL);
    check_record("{\"text\": \"T\", \"id\": 12345678901234567890123}", "{instruction}{response}>",
                 "text", "+T", NULL);
    check_record("{\"instruction\": \"I\", \"response\": \"R\"}", "{instruction}|{response}\\n>",
                 pair, "-I|", "+R\n>", NULL);
    check_record("{\"instruction\": \"\\u0041\\ud83d\\ude00\", \"response\": \"\\\"\\n\"}",
                 "{instruction}", pair, "-A\xF0\x9F\x98\x80", "+\"\n", NULL);
}
END_TEST

START_TEST(conversations) {
    check_record("{\"messages\": [" TURN("user", "U") ", " TURN("assistant", "A") "]}", NULL,
                 "messages", "-" ALPACA("U"), "+A", NULL);
    check_record(
        "{\"prompt\": \"ignored\", \"messages\": [" TURN("system", "S") ", " TURN(
            "user", "U") ", " TURN("assistant",
                                   "A") ", " TURN("user", "V") ", " TURN("assistant",
                                                                         "B") ", " TURN("user",
                                                                                        "W") "]}",
        NULL, "messages", "-S\n\n" ALPACA("U"), "+A", "-" ALPACA("V"), "+B", NULL);
    check_record(
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"U\"}, {\"from\": \"gpt\", "
        "\"value\": \"A\"}]}",
        "<{instruction}>{response}!", "conversations", "-<U>", "+A!", NULL);
}
END_TEST

START_TEST(bad_lines) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"text\": \"a\"", 12, "expected"},
        {"{\"text\": \"a\"} x", 15, "end of file"},
        {"{\"text\": tru}", 12, "invalid token"},
        {"[1]", 1, "an array, expected a JSON object"},
        {"7", 1, "a number, expected a JSON object"},
        {"\"text\"", 1, "a string, expected a JSON object"},
        {"nul", 3, "invalid token"},
        {"{\"text\": \"a\", \"text\": \"b\"}", 20, "duplicate"},
        {"{}", 1, "found none"},
        {"{\"instruction\": \"a\", \"reply\": \"b\"}", 1,
         "found instruction, reply; expected instruction/response"},
        {"{\"text\": 7}", 2, "\"text\" is a number, expected a string"},
        {"{\"k\": {\"response\": \"\\\"\"}, \"instruction\": \"a\", \"response\": null}", 47,
         "\"response\" is null"},
        {"{\"\xED\x95\x9C\": \"\\\\\", \"prompt\" : [1], \"completion\": \"x\"}", 13,
         "belongs in a field \"messages\""},
        {"{\"instruction\": \"a\", \"input\": {}, \"output\": \"b\"}", 22,
         "\"input\" is an object"},
        {"{\"messages\": {}}", 2, "\"messages\" is an object, expected an array"},
        {"{\"messages\": []}", 2, "no assistant turn"},
        {"{\"messages\": [7]}", 2, "message 1"},
        {"{\"messages\": [" TURN("user", "a") "]}", 2, "no assistant turn"},
        {"{\"messages\": [" TURN("assistant", "a") "]}", 2, "must alternate"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("user", "b") "]}", 2, "message 2"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("system", "b") "]}", 2, "role \"system\""},
        {"{\"messages\": [" TURN("user", "a") "," TURN("tool", "b") "]}", 2, "role \"tool\""},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}", 2, "message 1"},
        {"{\"text\": \"\\ud800\"}", 17, "Unicode"},
        {"{\"text\": \"a\tb\"}", 11, "control character"},
        {"{\"text\": \"a\xFF\"}", 11, "unable to decode byte 0xff"},
        {"{\"text\": \"\xED\xA0\x80\"}", 10, "unable to decode byte 0xed"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        for (int strict = 0; strict < 2; strict++) {
            Str file = {0};
            char where[256];
            Records r;
            Error e = {""};
            str_printf(&file, "{\"text\": \"first\"}\n\n%s\n{\"text\": \"last\"}\n", bad[i].line);
            int status = read_bytes(file.s, file.n, NULL, strict, &r, &e);
            ck_assert_int_eq(status, strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(r.n, 2);
                ck_assert_int_eq(r.v[1].line, 4);
                ck_assert_int_eq(r.skipped, 1);
                e = r.first_skipped;
            }
            snprintf(where, sizeof where, "%s:3:%d: ", in_directory("records.jsonl"),
                     bad[i].column);
            ck_assert_msg(strncmp(e.text, where, strlen(where)) == 0,
                          "%s: \"%s\", expected column %d", bad[i].line, e.text, bad[i].column);
            ck_assert_msg(strstr(e.text, bad[i].word) != NULL, "%s: \"%s\"", bad[i].line, e.text);
            records_free(&r);
            free(file.s);
        }
    }
}
END_TEST

START_TEST(line_ends) {
    // a byte order mark, CRLF, blank lines, no newline at the end
    Records r = must_read(
        "\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n \t\n{\"text\": \"b\"}\r\n{\"text\": \"c\"}", NULL);
    ck_assert_int_eq(r.n, 3);
    ck_assert_int_eq(r.v[0].line, 1);
    ck_assert_int_eq(r.v[1].line, 4);
    ck_assert_int_eq(r.v[2].line, 5);
    ck_assert_str_eq(r.v[2].spans[0].text, "c");
    records_free(&r);
}
END_TEST

START_TEST(nul_bytes) {
    static const char file[] =
        "{\"text\": \"a\\u0000b\"}\n{\"text\": \"a\0b\"}\n\0\n{\"\\u0000\": 1, \"text\": \"a\"}\n";
    Records r;
    Error e = {""};
    ck_assert_int_eq(read_bytes(file, sizeof file - 1, NULL, false, &r, &e), 0);
    ck_assert_int_eq(r.n, 1);  // \u0000 is a character like any other; a raw NUL is not JSON
    ck_assert_int_eq(r.skipped, 3);
    ck_assert_uint_eq(r.v[0].spans[0].n, 3);
    ck_assert_mem_eq(r.v[0].spans[0].text, "a\0b", 4);
    records_free(&r);
}
END_TEST

START_TEST(nothing_to_read) {
    Records r;
    Error e = {""};
    ck_assert_int_eq(read_bytes("", 0, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_bytes("x\ny\n", 4, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "2 lines were skipped, the first: "));
    ck_assert_ptr_nonnull(strstr(e.text, "records.jsonl:1:1: "));
    ck_assert_int_eq(r.n, 0);
    ck_assert_int_eq(records_read(in_directory("absent.jsonl"), NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent.jsonl"));
    ck_assert_int_eq(records_read(directory, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, directory));
}
END_TEST

/* A message about a hostile line must not carry an escape sequence to the terminal. */
START_TEST(messages_are_printable) {
    Records r;
    Error e = {""};
    static const char file[] = "{\"\\u001b[31m\": 1}\n";
    ck_assert_int_eq(read_bytes(file, sizeof file - 1, NULL, true, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "[31m"));
    for (const char *c = e.text; *c; c++) ck_assert((unsigned char)*c >= ' ');
}
END_TEST

START_TEST(records_cut_short) {
    static const char file[] =
        "{\"prompt\": \"\xED\x95\x9C\", \"completion\": \"\\u00e9\"}\n"
        "{\"messages\": [" TURN("user", "a") ", " TURN("assistant", "b") "]}\n{\"text\": \"t\"}\n";
    for (size_t n = 1; n < sizeof file; n++) {
        Records r;
        Error e = {""};
        int whole = 0;
        for (size_t i = 1; i <= n; i++)
            whole += file[i] == '\n' || (i == n && i == sizeof file - 1 && file[i - 1] != '\n');
        bool rest = file[n - 1] != '\n' && file[n] != '\n';  // a line has begun and not ended
        int status = read_bytes(file, n, NULL, false, &r, &e);
        ck_assert_int_eq(status, whole ? 0 : -1);
        if (status) continue;
        ck_assert_int_eq(r.n, whole);
        ck_assert_int_eq(r.skipped, rest);
        records_free(&r);
    }
}
END_TEST

START_TEST(deep_nesting) {
    static const int depth[] = {1000, 3000, 1000000};
    for (int k = 0; k < COUNT(depth); k++) {
        Str file = {0};
        Records r;
        Error e = {""};
        str_printf(&file, "{\"text\": \"a\", \"other\": ");
        for (int i = 0; i < depth[k]; i++) str_add(&file, k % 2 ? "{\"a\":" : "[", k % 2 ? 5 : 1);
        if (k == 0)
            for (int i = 0; i < depth[k]; i++) str_add(&file, "]", 1);
        str_printf(&file, "}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.skipped, k > 0);
        if (k > 0) ck_assert_ptr_nonnull(strstr(r.first_skipped.text, "depth"));
        records_free(&r);
        free(file.s);
    }
}
END_TEST

START_TEST(huge_lines) {
    for (int k = 0; k < 2; k++) {
        Str file = {0};
        Records r;
        Error e = {""};
        size_t n = k ? (64u << 20) + 1 : 8u << 20;
        char *filler = xmalloc(n);
        memset(filler, 'a', n);
        str_printf(&file, "{\"text\": \"");
        str_add(&file, filler, n);
        str_printf(&file, "\"}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.n, k ? 1 : 2);
        ck_assert_int_eq(r.skipped, k);
        if (k)
            ck_assert_ptr_nonnull(
                strstr(r.first_skipped.text, "records.jsonl:1:1: the line is longer than"));
        else
            ck_assert_uint_eq(r.v[0].spans[0].n, n);
        ck_assert_int_eq(r.v[r.n - 1].line, 2);
        records_free(&r);
        free(filler);
        free(file.s);
    }
}
END_TEST

/* ---- prompts --------------------------------------------------------------------------------- */

static int read_prompts(const char *bytes, size_t n, const char *template, bool strict, Prompts *p,
                        Error *e) {
    write_file("prompts.jsonl", bytes, n);
    return prompts_read(in_directory("prompts.jsonl"), template, strict, p, e);
}

static void check_prompts(const char *json, const char *template, const char *expected) {
    Error e = {""};
    Prompts p;
    ck_assert_msg(read_prompts(json, strlen(json), template, true, &p, &e) == 0, "%s", e.text);
    ck_assert_int_eq(p.n, 1);
    ck_assert_int_eq(p.skipped, 0);
    ck_assert_int_eq(p.v[0].line, 1);
    ck_assert_str_eq(p.v[0].text, expected);
    ck_assert_uint_eq(p.v[0].n, strlen(expected));
    prompts_free(&p);
    ck_assert(p.v == NULL && p.n == 0);
}

START_TEST(prompts) {
    check_prompts("{\"prompt\": \"P\"}", NULL, "P");
    check_prompts("{\"prompt\": \"P\"}", "<{instruction}>", "<P>");
    check_prompts("{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": 7}", NULL, "P");
    check_prompts("{\"instruction\": \"I\"}", NULL, ALPACA("I"));
    check_prompts("{\"instruction\": \"I\", \"prompt\": \"P\", \"output\": \"O\"}", NULL,
                  ALPACA("I"));
    check_prompts("{\"instruction\": \"I\", \"input\": \"X\"}",
                  "{instruction}[[|{input}]]>{response}!", "I|X>");
    check_prompts("{\"instruction\": \"I\", \"input\": \"\"}", "{instruction}[[|{input}]]>", "I>");
    check_prompts("{\"instruction\": \"I\", \"input\": null}", "{instruction}[[|{input}]]>", "I>");
    // a dialogue is cut after its last "\n\nAssistant:" and is not put into a template
    check_prompts(
        "{\"chosen\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: I\\n\\nAssistant: B\"}",
        "<{instruction}>", "\n\nHuman: H\n\nAssistant: A\n\nHuman: I\n\nAssistant:");
    check_prompts("{\"chosen\": \"\\n\\nAssistant:\"}", NULL, "\n\nAssistant:");
    // a record's answer is kept
    Prompts p;
    Error e = {""};
    static const char file[] =
        "{\"prompt\": \"P\"}\n{\"prompt\": \"P\", \"answer\": \"A\"}\n{\"instruction\": \"I\", "
        "\"answer\": 1, \"output\": \"O\"}\n";
    ck_assert_int_eq(read_prompts(file, sizeof file - 1, NULL, true, &p, &e), 0);
    ck_assert(p.n == 3 && !p.v[0].answer && !strcmp(p.v[1].answer, "A") &&
              !strcmp(p.v[2].answer, "O"));
    prompts_free(&p);
}
END_TEST

START_TEST(bad_prompts) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"prompt\": 7}", 2, "\"prompt\" is a number, expected a string"},
        {"{\"prompt\": \"\"}", 2, "the prompt is empty"},
        {"{\"a\": 1, \"instruction\": null}", 10, "\"instruction\" is null"},
        {"{\"instruction\": \"a\", \"input\": {}}", 22, "\"input\" is an object"},
        {"{\"chosen\": \"no dialogue\"}", 2, "has no turn"},
        {"{\"chosen\": \"\\nAssistant:\"}", 2, "has no turn"},
        {"{\"chosen\": \"\"}", 2, "has no turn"},
        {"{\"text\": \"t\"}", 1, "found text; expected instruction[/input], prompt or chosen"},
        {"[]", 1, "an array, expected a JSON object"},
        {"{\"prompt\": \"a\"", 14, "expected"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        for (int strict = 0; strict < 2; strict++) {
            Str file = {0};
            char where[256];
            Prompts p;
            Error e = {""};
            str_printf(&file, "{\"prompt\": \"first\"}\n\n%s\n{\"prompt\": \"last\"}", bad[i].line);
            ck_assert_int_eq(read_prompts(file.s, file.n, NULL, strict, &p, &e), strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(p.n, 2);
                ck_assert_int_eq(p.v[1].line, 4);
                ck_assert_int_eq(p.skipped, 1);
                e = p.first_skipped;
            }
            snprintf(where, sizeof where, "%s:3:%d: ", in_directory("prompts.jsonl"),
                     bad[i].column);
            ck_assert_msg(strncmp(e.text, where, strlen(where)) == 0,
                          "%s: \"%s\", expected column %d", bad[i].line, e.text, bad[i].column);
            ck_assert_msg(strstr(e.text, bad[i].word) != NULL, "%s: \"%s\"", bad[i].line, e.text);
            prompts_free(&p);
            free(file.s);
        }
    }
    Prompts p;
    Error e = {""};
    ck_assert_int_eq(read_prompts("", 0, NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_prompts("{\"prompt\": \"a\"}", 15, "no field", false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "{instruction} is missing"));
    ck_assert_int_eq(prompts_read(in_directory("absent.jsonl"), NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent.jsonl"));
    ck_assert(p.v == NULL && p.n == 0);
}
END_TEST

/* ---- JSON ------------------------------------------------------------------------------------ */

static void check_string(const char *s, size_t n, const char *expected) {
    Str out = {0};
    json_add_string(&out, s, n);
    ck_assert_str_eq(out.s, expected);
    free(out.s);
}

START_TEST(json_strings) {
    check_string("", 0, "\"\"");
    check_string("a\"\\\n\t\0/\x7F", 8, "\"a\\\"\\\\\\n\\u0009\\u0000/\\u007f\"");
    check_string("\xED\x95\x9C", 3, "\"\xED\x95\x9C\"");
    check_string("\xED\x95", 2,
                 "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");  // half a character, as a token may end
}
END_TEST

START_TEST(numbers_in_json) {
    static const struct {
        const char *text;
        int count;
        double first;
        const char *word;
    } cases[] = {
        {"{\"x\": 2.5}", 1, 2.5, NULL},
        {" {\"y\": \"s\", \"x\": -3}\n", 1, -3, NULL},
        {"{\"x\": [1e-3, 2, 3]}", 3, 1e-3, NULL},
        {"{\"x\": []}", 0, 7, NULL},
        {"{\"x\": null}", -1, 7, "null"},
        {"{\"x\": \"1\"}", -1, 7, "a string, expected a number"},
        {"{\"y\": 1}", -1, 7, "no \"x\""},
        {"[1]", -1, 7, "an array, expected an object"},
        {"3", -1, 7, "a number, expected an object"},
        {"", -1, 7, "not JSON"},
        {"{\"x\": NaN}", -1, 7, "not JSON"},
        {"{\"x\": 1", -1, 7, "not JSON"},
        {"{\"x\": [1, {}]}", -1, 1, "element 1"},
        {"{\"x\": 1, \"x\": 2}", -1, 7, "not JSON"},
        {"{\"x\": 1} {}", -1, 7, "not JSON"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        double out[2] = {7, 7};
        Error e = {""};
        ck_assert_msg(
            json_numbers(cases[i].text, strlen(cases[i].text), "x", out, 2, &e) == cases[i].count,
            "%s", cases[i].text);
        ck_assert(out[0] == cases[i].first);
        if (cases[i].word)
            ck_assert_msg(strstr(e.text, cases[i].word) != NULL, "%s: \"%s\"", cases[i].text,
                          e.text);
    }
}
END_TEST

/* ---- pairs ----------------------------------------------------------------------------------- */

/* One pair: its prompt's spans joined by "|", then chosen and rejected. */
static void check_pair(const char *json, const char *template, const char *kind, const char *prompt,
                       const char *chosen, const char *rejected) {
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(json, template, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.mismatched, 0);
    ck_assert_str_eq(r.kind, kind);
    const Record *v = &r.v[0];
    ck_assert_int_ge(v->n, 3);
    Str got = {0};
    for (int i = 0; i < v->n - 2; i++) {
        ck_assert(!v->spans[i].scored && strlen(v->spans[i].text) == v->spans[i].n);
        str_printf(&got, "%s%s", i ? "|" : "", v->spans[i].text);
    }
    ck_assert_str_eq(got.s, prompt);
    ck_assert_str_eq(v->spans[v->n - 2].text, chosen);
    ck_assert_str_eq(v->spans[v->n - 1].text, rejected);
    ck_assert(v->spans[v->n - 2].scored && v->spans[v->n - 1].scored);
    free(got.s);
    records_free(&r);
}

#define TWO(a, b) a ", " b
#define CHOSEN_REJECTED(chosen, rejected) "\"chosen\": " chosen ", \"rejected\": " rejected
#define PAIR(chosen, rejected) "{" CHOSEN_REJECTED(chosen, rejected) "}\n"
#define ANSWERS "\"chosen\": \"C\", \"rejected\": \"R\""

START_TEST(kinds_of_pairs) {
    check_pair("{\"prompt\": \"P \", " ANSWERS "}", NULL, "prompt/chosen/rejected", "P ", "C",
               "R");  // complete: as it is
    check_pair("{\"prompt\": \"\", " ANSWERS "}", NULL, "prompt/chosen/rejected", "", "C", "R");
    check_pair("{\"prompt\": \"P\", " ANSWERS "}", "<{instruction}>{response}!",
               "prompt/chosen/rejected", "<P>", "C!", "R!");
    check_pair("{\"instruction\": \"I\", " ANSWERS "}", NULL, "instruction/chosen/rejected",
               ALPACA("I"), "C", "R");
    check_pair("{\"instruction\": \"I\", \"input\": \"X\", " ANSWERS "}", NULL,
               "instruction/chosen/rejected",
               "### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n", "C", "R");
    check_pair("{\"instruction\": \"I\", \"input\": null, " ANSWERS ", \"id\": 7}", NULL,
               "instruction/chosen/rejected", ALPACA("I"), "C", "R");
    // hh-rlhf: the prompt ends with the last "\n\nAssistant:", and any other "Assistant:"
    // does not matter
    check_pair(
        "{\"chosen\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: Assistant:?\\n\\nAssistant: "
        "C\", "
        "\"rejected\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: Assistant:?\\n\\nAssistant: "
        "R Assistant:\"}",
        "<{instruction}>", "chosen/rejected",
        "\n\nHuman: H\n\nAssistant: A\n\nHuman: Assistant:?\n\nAssistant:", " C", " R Assistant:");
    // messages: an earlier answer is part of the prompt and ends with <|endoftext|>
    check_pair("{\"prompt\": [" TWO(TURN("system", "S"), TURN("user", "U")) ", " TWO(
                   TURN("assistant", "A"),
                   TURN("user", "V")) "], " CHOSEN_REJECTED("[" TURN("assistant", "C") "]",
                                                            "[" TURN("assistant", "R") "]") "}",
               "<{instruction}>", "prompt/chosen/rejected messages", "S\n\n<U>|A<|endoftext|>|<V>",
               "C", "R");
    check_pair(
        "{\"chosen\": [" TURN("user", "U") ", " TURN("assistant", "C") "], \"rejected\": [" TURN(
            "user", "U") ", " TURN("assistant", "R") "]}",
        NULL, "chosen/rejected messages", ALPACA("U"), "C", "R");
}
END_TEST

START_TEST(margins_and_soft_labels) {
    static const char file[] = "{\"prompt\": \"P\", " ANSWERS "}\n{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": 2, \"p_chosen\": 0.25}\n"
                               "{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": null, \"p_chosen\": 0}\n{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": -0.5}\n";
    const float margin[] = {0, 2, 0, -0.5f}, p[] = {1, 0.25f, 0, 1};
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, 4);
    for (int i = 0; i < 4; i++)
        ck_assert_msg(r.v[i].margin == margin[i] && r.v[i].p_chosen == p[i], "pair %d", i);
    records_free(&r);
}
END_TEST

START_TEST(pairs_with_different_prompts_are_left_out) {
#define DIALOGUE(h, a) "\\n\\nHuman: " h "\\n\\nAssistant:" a
    static const char file[] = PAIR("\"" DIALOGUE("H", "C") "\"", "\"" DIALOGUE("G", "R") "\"")
        PAIR("\"" DIALOGUE("H", "C") "\"", "\"" DIALOGUE("H", "R") "\"")
            PAIR("\"" DIALOGUE("H", "C") "\"", "\"" DIALOGUE("H", "C") DIALOGUE("H", "R") "\"")
                PAIR("[" TWO(TURN("user", "U"), TURN("assistant", "C")) "]",
                     "[" TWO(TURN("user", "V"), TURN("assistant", "R")) "]")
                    PAIR("[" TWO(TURN("user", "U"), TURN("assistant", "C")) "]",
                         "[" TURN("assistant", "R") "]");
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s",
                  e.text);  // strict, too: such pairs are correct, only of no use
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.mismatched, 4);
    ck_assert_int_eq(r.skipped, 0);
    ck_assert_int_eq(r.v[0].line, 2);
    records_free(&r);
    ck_assert_int_eq(read_pairs("{\"chosen\": \"" DIALOGUE(
                                    "H", "C") "\", \"rejected\": \"" DIALOGUE("G", "R") "\"}\n",
                                NULL, true, &r, &e),
                     -1);
    ck_assert_msg(strstr(e.text, "in all 1 of them chosen and rejected answer different prompts"),
                  "%s", e.text);
}
END_TEST

START_TEST(bad_pairs) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"chosen\": \"\\n\\nAssistant: C\"}", 1, "found chosen; expected chosen and rejected"},
        {"{\"instruction\": \"a\", \"response\": \"b\"}", 1,
         "found instruction, response; expected chosen and rejected"},
        {"{\"prompt\": \"P\", \"chosen\": \"\", \"rejected\": \"R\"}", 17,
         "the answer in \"chosen\" is empty"},
        {"{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": \"\"}", 32,
         "the answer in \"rejected\" is empty"},
        {"{\"prompt\": 3, " ANSWERS "}", 2, "\"prompt\" is a number"},
        {"{\"prompt\": null, " ANSWERS "}", 2, "\"prompt\" is null"},
        {"{\"instruction\": \"I\", \"input\": [], " ANSWERS "}", 22, "\"input\" is an array"},
        {"{\"prompt\": \"P\", \"chosen\": null, \"rejected\": \"R\"}", 17, "\"chosen\" is null"},
        {"{" ANSWERS "}", 2, "no prompt, and \"chosen\" has no \"\\n\\nAssistant:\""},
        {"{\"chosen\": \"\\n\\nAssistant: C\", \"rejected\": \"R\"}", 32, "\"rejected\" has no"},
        {"{\"chosen\": \"\\n\\nAssistant:\", \"rejected\": \"\\n\\nAssistant:R\"}", 2,
         "the answer in \"chosen\" is empty"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": \"1\"}", 49,
         "\"margin\" is a string, expected a number"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": 1e7}", 49,
         "\"margin\" is 1e+07, expected a number from -1e+06 to 1e+06"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": 1e999}", 63, "real number overflow"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": 1.01}", 49,
         "\"p_chosen\" is 1.01, expected a number from 0 to 1"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": -1}", 49, "\"p_chosen\" is -1"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": true}", 49, "\"p_chosen\" is a boolean"},
        {"{\"prompt\": \"P\", \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         1, "must all be strings, or all be lists"},
        {"{\"prompt\": [" TURN("user", "U") "], \"chosen\": [" TURN("assistant",
                                                                    "C") "], \"rejected\": []}",
         99, "\"rejected\" has 0 messages, expected one"},
        {"{\"prompt\": [" TURN("user", "U") "], \"chosen\": [" TURN(
             "user", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
         48, "\"chosen\" does not end in {\"role\": \"assistant\""},
        {"{\"prompt\": [" TURN("user", "U") ", " TURN("assistant", "A") "], \"chosen\": [" TURN(
             "assistant", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
         2, "do not end with a user's"},
        {"{\"prompt\": [], \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         2, "do not end with a user's"},
        {"{\"prompt\": [3], \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         2, "message 1 of \"prompt\" is not"},
        {"{\"chosen\": [], \"rejected\": []}", 2, "\"chosen\" has 0 messages"},
        {"{\"chosen\": [" TURN("user", "U") ", {\"role\": \"assistant\"}], \"rejected\": [" TURN(
             "user", "U") ", " TURN("assistant", "R") "]}",
         2, "\"chosen\" does not end in"},
        {"[]", 1, "an array, expected a JSON object"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        Str file = {0};
        Records r;
        Error e = {""};
        str_printf(&file, "{\"prompt\": \"P\", " ANSWERS "}\n%s\n", bad[i].line);
        ck_assert_msg(read_pairs(file.s, NULL, false, &r, &e) == 0, "%s", e.text);
        ck_assert_msg(r.n == 1 && r.skipped == 1 && r.mismatched == 0, "%s", bad[i].line);
        ck_assert_msg(strstr(r.first_skipped.text, bad[i].word), "%s: %s", bad[i].line,
                      r.first_skipped.text);
        char where[160];
        snprintf(where, sizeof where, "%s:2:%d: ", in_directory("records.jsonl"), bad[i].column);
        ck_assert_msg(!strncmp(r.first_skipped.text, where, strlen(where)), "%s: %s, expected %s",
                      bad[i].line, r.first_skipped.text, where);
        records_free(&r);
        ck_assert_int_eq(read_pairs(file.s, NULL, true, &r, &e), -1);
        free(file.s);
    }
}
END_TEST

START_TEST(a_prompt_to_be_judged_is_complete) {
    static const struct {
        const char *json, *prompt;
    } one[] = {
        {"{\"prompt\": \"P\", \"response\": \"R\"}", "P"},
        {"{\"prompt\": \"P\", \"completion\": \"R\"}", "P"},
        {"{\"instruction\": \"P\", \"response\": \"R\"}", ALPACA("P")},
    };
    for (size_t i = 0; i < COUNT(one); i++) {
        Records r;
        Error e = {""};
        write_file("records.jsonl", one[i].json, strlen(one[i].json));
        ck_assert_msg(answers_read(in_directory("records.jsonl"), NULL, true, &r, &e) == 0, "%s",
                      e.text);
        ck_assert_str_eq(r.v[0].spans[0].text, one[i].prompt);
        ck_assert_str_eq(r.v[0].spans[1].text, "R");
        records_free(&r);
    }
}
END_TEST

/* ---- questions ------------------------------------------------------------------------------- */

START_TEST(questions_and_bad_questions) {
    static const char text[] =
        "{\"prompt\": \"P\", \"corrects\": [\"a\", \"b\"], \"incorrects\": [\"c\"], \"id\": 3}\n\n"
        "{\"prompt\": \"P\", \"corrects\": [], \"incorrects\": [\"c\"]}\n{\"prompt\": \"P\", "
        "\"corrects\": [\"a\"]}\n{\"prompt\": \"\", \"corrects\": [\"a\"], \"incorrects\": "
        "[\"c\"]}\n"
        "{\"prompt\": \"P\", \"corrects\": [\"a\"], \"incorrects\": [\"\"]}\n{\"prompt\": 1, "
        "\"corrects\": [\"a\"], \"incorrects\": [\"c\"]}\n{\"corrects\": [\"a\"]}\nno\n"
        "{\"prompt\": \"P\", \"corrects\": [\"a\"], \"incorrects\": \"c\"}\n{\"prompt\": \"Q\", "
        "\"corrects\": [\"가\"], \"incorrects\": [\"나\", \"다\"]}\n";
    Questions q;
    Error e;
    write_file("records.jsonl", text, strlen(text));
    ck_assert_msg(questions_read(in_directory("records.jsonl"), false, &q, &e) == 0, "%s", e.text);
    ck_assert_int_eq(q.n, 2);
    ck_assert_int_eq(q.skipped, 8);
    ck_assert_msg(strstr(q.first_skipped.text, "records.jsonl:3:17: \"corrects\""), "%s",
                  q.first_skipped.text);
    ck_assert(q.v[0].n == 3 && q.v[0].corrects == 2 && q.v[0].line == 1 &&
              !strcmp(q.v[0].option[2], "c") && !strcmp(q.v[0].prompt, "P"));
    ck_assert(q.v[1].n == 3 && q.v[1].corrects == 1 && q.v[1].line == 11 &&
              !strcmp(q.v[1].option[2], "다"));
    questions_free(&q);
    ck_assert_int_eq(questions_read(in_directory("records.jsonl"), true, &q, &e), -1);
    ck_assert(!q.v);
}
END_TEST

/* ---- skipped lines --------------------------------------------------------------------------- */

/* Checks what say_skipped prints on stdout. */
static void check_skipped(int skipped, const char *expected) {
    const Error first = {"data.jsonl:2:1: invalid token"};
    Str got = {0};
    Error e;
    fflush(stdout);
    const int terminal = dup(STDOUT_FILENO);
    ck_assert_ptr_nonnull(freopen(in_directory("records.jsonl"), "w", stdout));
    say_skipped("data.jsonl", skipped, "prompt", &first);
    fflush(stdout);
    dup2(terminal, STDOUT_FILENO);
    close(terminal);
    ck_assert_int_eq(read_file(in_directory("records.jsonl"), 1000, &got, &e), 0);
    ck_assert_str_eq(got.s, expected);
    free(got.s);
}

START_TEST(skipped_lines_are_reported_with_the_first_reason) {
    check_skipped(0, "");
    check_skipped(
        1,
        "data.jsonl: skipped 1 line that is no prompt; the first: data.jsonl:2:1: invalid "
        "token\n");
    check_skipped(3,
                  "data.jsonl: skipped 3 lines that are no prompt; the first: data.jsonl:2:1: "
                  "invalid token\n");
}
END_TEST

int main(void) {
    const TTest *const records[] = {templates,
                                    a_template_in_one_line,
                                    records_say_what_their_prompts_were_put_into,
                                    wrong_templates,
                                    kinds,
                                    conversations,
                                    bad_lines,
                                    line_ends,
                                    nul_bytes,
                                    nothing_to_read,
                                    messages_are_printable,
                                    records_cut_short,
                                    deep_nesting,
                                    huge_lines};
    const TTest *const prompt[] = {prompts, bad_prompts};
    const TTest *const json[] = {json_strings, numbers_in_json};
    const TTest *const pairs[] = {kinds_of_pairs, margins_and_soft_labels,
                                  pairs_with_different_prompts_are_left_out, bad_pairs,
                                  a_prompt_to_be_judged_is_complete};
    const TTest *const questions[] = {questions_and_bad_questions,
                                      skipped_lines_are_reported_with_the_first_reason};
    Suite *s = suite_create("records");
    add_case(s, "records", records, COUNT(records));
    add_case(s, "pairs", pairs, COUNT(pairs));
    add_case(s, "prompts", prompt, COUNT(prompt));
    add_case(s, "json", json, COUNT(json));
    add_case(s, "questions", questions, COUNT(questions));
    return run_cases(s);
}
