/*
 * check_records.c - templates, and records out of JSONL files.
 */
#include "text_files.h"

#include "text/template.h"

/* ---- templates ------------------------------------------------------------------------------- */

static void check_prompt(const char *template, const char *instruction, const char *input,
                         const char *expected) {
    Error e = {0};
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
    check_line("[[<{system|trim}>\n||none\t]]{instruction|trim}\n{response|trim}",
               "[[<{system|trim}>\\n||none\\t]]{instruction|trim}\\n{response|trim}");
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
        {"{system} {instruction}", "column 1: {system} must be within [[ ]]"},
        {"[[{system}{input}]]{instruction}", "column 1: besides one {system}"},
        {"[[{system}{system}]]{instruction}", "column 1: besides one {system}"},
        {"[[a{system}]] [[{system}]]{instruction}", "column 15: a second {system}"},
        {"{instruction}[[a{system}b||c", "without ]]"},
        {"{instruction|trim}{response|strip}", "column 19: \"{response|strip}\" is none of"},
        {"[[{system}]]{response}", "{instruction} is missing"},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        Error e = {0};
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
    ck_assert_int_eq(r.counts.skipped, 0);
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
    // an empty system's message is none, and does not replace the field "system"
    check_record("{\"messages\": [" TURN("system", "") ", " TURN("user", "U") ", " TURN("assistant",
                                                                                        "A") "]}",
                 NULL, "messages", "-" ALPACA("U"), "+A", NULL);
    check_record("{\"system\": \"S\", \"messages\": [" TURN("system", "") ", " TURN(
                     "user", "U") ", " TURN("assistant", "A") "]}",
                 NULL, "messages", "-S\n\n" ALPACA("U"), "+A", NULL);
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

START_TEST(kinds_with_more_parts) {
    static const char P[] = "-" ALPACA("P");
    static const char with_input[] = "-### Instruction:\nP\n\n### Input:\nX\n\n### Response:\n";
    // dolly, KorQuAD, SQuAD: the context is the input
    check_record("{\"instruction\": \"P\", \"context\": \"X\", \"response\": \"R\"}", NULL,
                 "instruction/context/response", with_input, "+R", NULL);
    check_record("{\"instruction\": \"P\", \"context\": \"\", \"response\": \"R\"}", NULL,
                 "instruction/response", P, "+R", NULL);
    check_record("{\"context\": \"X\", \"question\": \"P\", \"answer\": \"R\"}", NULL,
                 "question/context/answer", with_input, "+R", NULL);
    check_record(
        "{\"context\": \"X\", \"question\": \"P\", \"answers\": {\"text\": [\"R\", \"S\"], "
        "\"answer_start\": [3, 4]}}",
        NULL, "question/context/answers", with_input, "+R", NULL);
    check_record(
        "{\"instruction\": \"P\", \"input\": \"X\", \"context\": \"Y\", \"output\": \"R\"}", NULL,
        "instruction/input/output", with_input, "+R", NULL);
    // OpenOrca, LLaMA-Factory: the system's message comes first, then earlier turns
    check_record("{\"system_prompt\": \"S\", \"question\": \"P\", \"response\": \"R\"}", NULL,
                 "question/response", "-S\n\n" ALPACA("P"), "+R", NULL);
    check_record("{\"system\": \"\", \"query\": \"P\", \"response\": \"R\"}", NULL,
                 "query/response", P, "+R", NULL);
    check_record(
        "{\"instruction\": \"P\", \"output\": \"R\", \"system\": \"S\", \"history\": "
        "[[\"Q\", \"A\"], [\"O\", \"B\"]]}",
        NULL, "instruction/output", "-S\n\n" ALPACA("Q"), "+A", "-" ALPACA("O"), "+B", P, "+R",
        NULL);
    check_record("{\"instruction\": \"P\", \"output\": \"R\", \"history\": []}", NULL,
                 "instruction/output", P, "+R", NULL);
    // null is no field: the columns of several files in one
    check_record("{\"prompt\": null, \"completion\": null, \"question\": \"P\", \"answer\": \"R\"}",
                 NULL, "question/answer", P, "+R", NULL);
    // TRL's conversational prompt and completion: only the completion is scored
    check_record("{\"prompt\": [" TURN("user", "U") ", " TURN("assistant", "A") ", " TURN(
                     "user", "V") "], \"completion\": [" TURN("assistant", "B") "]}",
                 NULL, "prompt/completion messages", "-" ALPACA("U"), "-A<|endoftext|>",
                 "-" ALPACA("V"), "+B", NULL);
    check_record("{\"prompt\": [" TURN("user", "U") "], \"completion\": \"B\"}", NULL,
                 "prompt/completion messages", "-" ALPACA("U"), "+B", NULL);
}
END_TEST

START_TEST(conversations_as_people_have_them) {
    // the assistant begins
    check_record(
        "{\"conversations\": [{\"from\": \"gpt\", \"value\": \"hello\"}, {\"from\": "
        "\"human\", \"value\": \"U\"}, {\"from\": \"gpt\", \"value\": \"A\"}]}",
        NULL, "conversations", "+hello", "-" ALPACA("U"), "+A", NULL);
    check_record("{\"messages\": [" TURN("system", "S") ", " TURN("assistant", "hello") ", " TURN(
                     "user", "U") ", " TURN("assistant", "A") "]}",
                 NULL, "messages", "-S\n\n", "+hello", "-" ALPACA("U"), "+A", NULL);
    // role and content under the other name; a system's message beside the list
    check_record("{\"system\": \"S\", \"conversations\": [" TURN("user", "U") ", " TURN("assistant",
                                                                                        "A") "]}",
                 NULL, "conversations", "-S\n\n" ALPACA("U"), "+A", NULL);
    // content in parts
    check_record(
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", "
        "\"text\": \"U\"}, {\"type\": \"text\", \"text\": \"V\"}]}, " TURN("assistant", "A") "]}",
        NULL, "messages", "-" ALPACA("UV"), "+A", NULL);
    // an answer that is not to be learned
    check_record("{\"messages\": [" TURN("user", "U") ", {\"role\": \"assistant\", \"content\": "
                 "\"A\", \"weight\": 0}, " TURN("user", "V") ", " TURN("assistant", "B") "]}",
                 NULL, "messages", "-" ALPACA("U") "A<|endoftext|>" ALPACA("V"), "+B", NULL);
    static const char *const switches[] = {"weight", "train", "training", "loss"};
    for (int i = 0; i < COUNT(switches); i++) {
        char json[400];
        snprintf(json, sizeof json,
                 "{\"messages\": [" TURN("user", "U") ", {\"role\": \"assistant\", \"content\": "
                 "\"A\", \"%s\": false}, " TURN("user", "V") ", {\"role\": \"assistant\", "
                 "\"content\": \"B\", \"%s\": true}]}",
                 switches[i], switches[i]);
        check_record(json, NULL, "messages", "-" ALPACA("U") "A<|endoftext|>" ALPACA("V"), "+B",
                     NULL);
    }
}
END_TEST

/* Fields whose use is known: which is the prompt, which the answer. */
START_TEST(fields_of_known_data) {
    static const char P[] = "-" ALPACA("P"),
                      D[] = "-Summarize the following text.\n\nP\n\nSummary:\n";
    static const char with_input[] = "-### Instruction:\nP\n\n### Input:\nX\n\n### Response:\n";
    // MATH, NuminaMath, AIME
    check_record("{\"problem\": \"P\", \"solution\": \"R\", \"answer\": \"7\"}", NULL,
                 "problem/solution", P, "+R", NULL);
    check_record("{\"problem\": \"P\", \"answer\": \"R\"}", NULL, "problem/answer", P, "+R", NULL);
    // BoolQ, DROP
    check_record("{\"passage\": \"X\", \"question\": \"P\", \"answer\": \"R\"}", NULL,
                 "question/passage/answer", with_input, "+R", NULL);
    // XSum, SAMSum, arXiv, CNN/DailyMail
    check_record("{\"document\": \"P\", \"summary\": \"R\"}", NULL, "document/summary", D, "+R",
                 NULL);
    check_record("{\"dialogue\": \"P\", \"summary\": \"R\"}", NULL, "dialogue/summary", D, "+R",
                 NULL);
    check_record("{\"article\": \"P\", \"summary\": \"R\"}", NULL, "article/summary", D, "+R",
                 NULL);
    check_record("{\"article\": \"P\", \"highlights\": \"R\"}", NULL, "article/highlights", D, "+R",
                 NULL);
    check_record("{\"article\": \"P\", \"highlights\": \"R\"}",
                 "{instruction}=", "article/highlights", "-P=", "+R", NULL);
    // several answers, of which the first is taken: NQ open, WebQuestions, TriviaQA
    check_record("{\"question\": \"P\", \"answer\": [\"R\", \"S\"]}", NULL, "question/answer", P,
                 "+R", NULL);
    check_record("{\"question\": \"P\", \"answers\": [\"R\"]}", NULL, "question/answers", P, "+R",
                 NULL);
    check_record("{\"question\": \"P\", \"answer\": {\"value\": \"R\", \"aliases\": [\"S\"]}}",
                 NULL, "question/answer", P, "+R", NULL);
}
END_TEST

/* How a template writes the system's message, and fields without the white space around them. */
START_TEST(a_template_says_the_system_message) {
    static const char form[] = "[[<{system|trim}>||none ]]U {instruction|trim} A {response|trim}.";
    check_record("{\"messages\": [" TURN("system", " S ") ", " TURN("user", " P\\n") ", " TURN(
                     "assistant", " R ") ", " TURN("user", "Q") ", " TURN("assistant", "B") "]}",
                 form, "messages", "-<S>U P A ", "+R.", "-U Q A ", "+B.", NULL);
    check_record("{\"messages\": [" TURN("user", "P") ", " TURN("assistant", "R") "]}", form,
                 "messages", "-none U P A ", "+R.", NULL);
    check_record("{\"messages\": [" TURN("assistant", "R") ", " TURN("user", "P") ", " TURN(
                     "assistant", "B") "]}",
                 form, "messages", "-none ", "+R.", "-U P A ", "+B.", NULL);
    check_record(
        "{\"system\": \"S\", \"question\": \"P \", \"response\": \"R\", \"history\": "
        "[[\"H\", \"A\"]]}",
        form, "question/response", "-<S>U H A ", "+A.", "-U P A ", "+R.", NULL);
    check_record("{\"system\": \"S\", \"question\": \"P\", \"response\": \"R\"}", form,
                 "question/response", "-<S>U P A ", "+R.", NULL);
    check_record("{\"instruction\": \"P\", \"input\": \"X \", \"output\": \"R\"}", form,
                 "instruction/input/output", "-none U P\nX A ", "+R.", NULL);
    check_record("{\"instruction\": \"P\", \"output\": \"\\u3000R\\u00a0\"}",
                 "{instruction}: {response|trim}", "instruction/output", "-P: ", "+R", NULL);
}
END_TEST

START_TEST(unused_fields_are_named) {
    static const struct {
        const char *json, *unused;
    } one[] = {
        {"{\"instruction\": \"a\", \"input\": \"x\", \"output\": \"b\"}", NULL},
        {"{\"instruction\": \"a\", \"context\": \"x\", \"response\": \"b\", \"category\": \"q\"}",
         "category"},
        {"{\"text\": \"a\", \"summary\": \"b\", \"title\": \"t\", \"id\": 3}", "title, id"},
        {"{\"text\": \"a\", \"note\": \"\", \"more\": null, \"list\": []}", NULL},
        {"{\"prompt\": \"a\", \"completion\": \"b\", \"context\": \"c\", \"label\": true}",
         "context, label"},
        {"{\"text\": \"a\", \"x\": 1}\n{\"text\": \"b\", \"x\": 2, \"y\": 3}\n", "x, y"},
        {"{\"instruction\": \"a\", \"input\": \"x\", \"context\": \"c\", \"output\": \"b\"}",
         "context"},
        {"{\"id\": 1, \"messages\": [{\"role\": \"user\", \"content\": \"a\", \"name\": \"N\"}, "
         "{\"role\": \"assistant\", \"content\": \"b\", \"weight\": 1, \"reasoning_content\": "
         "\"c\", \"tool_calls\": []}, " TURN("user", "a") "]}",
         "messages.name, messages.reasoning_content, id"},
    };
    for (int i = 0; i < COUNT(one); i++) {
        Records r = must_read(one[i].json, NULL);
        ck_assert_msg((r.unused == NULL) == (one[i].unused == NULL), "%s: %s", one[i].json,
                      r.unused ? r.unused : "none");
        if (one[i].unused) ck_assert_str_eq(r.unused, one[i].unused);
        records_free(&r);
    }
    // an empty response is counted
    Records r = must_read(
        "{\"prompt\": \"a\", \"completion\": \"\"}\n{\"prompt\": \"a\", "
        "\"completion\": \"b\"}\n{\"text\": \"\"}\n",
        NULL);
    ck_assert_int_eq(r.empty, 1);
    records_free(&r);
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
         "message 1 of \"prompt\" is not"},
        {"{\"instruction\": \"a\", \"input\": {}, \"output\": \"b\"}", 22,
         "\"input\" is an object"},
        {"{\"messages\": {}}", 2, "\"messages\" is an object, expected an array"},
        {"{\"messages\": []}", 2, "no assistant turn"},
        {"{\"messages\": [7]}", 2, "message 1"},
        {"{\"messages\": [" TURN("user", "a") "]}", 2, "no assistant turn"},
        {"{\"messages\": [" TURN("assistant", "a") "," TURN("assistant", "b") "]}", 2,
         "message 2 of \"messages\" is by \"assistant\" out of turn: user and assistant must "
         "alternate"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("user", "b") "]}", 2, "message 2"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("system", "b") "]}", 2, "role \"system\""},
        {"{\"messages\": [" TURN("user", "a") "," TURN("tool", "b") "]}", 2, "role \"tool\""},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}", 2, "message 1"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("user", "b") "]}", 2,
         "join its text to the message before it"},
        {"{\"messages\": \"[{\\\"role\\\": \\\"user\\\"}]\"}", 2,
         "\"messages\" is a string, expected an array. If it is JSON inside a string, take it out: "
         "jq "
         "-c '.messages |= fromjson'"},
        {"{\"messages\": [" TURN("user", "a") ",{\"role\": \"assistant\", \"content\": \"b\", "
                                              "\"weight\": 0.5}]}",
         2, "message 2 of \"messages\" has weight 0.5, expected 0 (not learned) or 1"},
        {"{\"messages\": [" TURN("user", "a") ",{\"role\": \"assistant\", \"content\": \"b\", "
                                              "\"loss\": \"false\"}]}",
         2, "message 2 of \"messages\" has loss \"false\", expected 0 (not learned) or 1"},
        {"{\"messages\": [" TURN("User", "a") "]}", 2,
         "in lower case: jq -c '.messages[].role |= ascii_downcase'"},
        {"{\"prompt\": \"a\", \"completion\": \"b\", \"label\": false}", 36,
         "\"label\" is false: the answer is an example of a bad one"},
        {"{\"prompt\": \"a\", \"completion\": \"b\", \"kto_tag\": \"False\"}", 36,
         "\"kto_tag\" is false: the answer is an example of a bad one"},
        {"{\"message_id\": \"1\", \"text\": \"a\", \"role\": \"prompter\"}", 1,
         "A message by itself is no record"},
        {"{\"Instruction\": \"a\", \"Output\": \"b\"}", 1, "with_entries(.key |= ascii_downcase)"},
        {"{\"dialog\": [" TURN("user", "a") "]}", 1,
         "If \"dialog\" is a conversation, rename it: jq -c '.messages = .[\"dialog\"]'"},
        {"{\"instruction\": [\"a\", \"b\"], \"output\": [\"c\", \"d\"]}", 2,
         "If the file has columns in place of records, turn it: python3 -c 'import pandas"},
        {"{\"instruction\": {\"0\": \"a\"}, \"output\": {\"0\": \"c\"}}", 2, "pandas.read_json"},
        {"\"a text\"", 1, "to learn it as a text: jq -c '{text: .}'"},
        {"{\"question\": \"a\", \"answer\": true}", 19,
         "\"answer\" is a boolean, expected a string; to make it one: jq -c '.answer |= tostring'"},
        {"{\"question\": \"a\", \"answer\": []}", 19, "\"answer\" is an array"},
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
            Error e = {0};
            str_printf(&file, "{\"text\": \"first\"}\n\n%s\n{\"text\": \"last\"}\n", bad[i].line);
            int status = read_bytes(file.s, file.n, NULL, strict, &r, &e);
            ck_assert_int_eq(status, strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(r.n, 2);
                ck_assert_int_eq(r.v[1].line, 4);
                ck_assert_int_eq(r.counts.skipped, 1);
                e = r.counts.first_skipped;
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
        "{\"text\": \"a\\u0000b\"}\n{\"text\": \"a\0b\"}\n\0\n{\"\\u0000\": 1, \"text\": \"a\"}\n"
        "{\"text\": \"c\"}\n{\"text\": \"d\"}\n";
    Records r;
    Error e = {0};
    ck_assert_int_eq(read_bytes(file, sizeof file - 1, NULL, false, &r, &e), 0);
    ck_assert_int_eq(r.n, 3);  // \u0000 is a character like any other; a raw NUL is not JSON
    ck_assert_int_eq(r.counts.skipped, 3);
    ck_assert_uint_eq(r.v[0].spans[0].n, 3);
    ck_assert_mem_eq(r.v[0].spans[0].text, "a\0b", 4);
    records_free(&r);
}
END_TEST

START_TEST(nothing_to_read) {
    Records r;
    Error e = {0};
    ck_assert_int_eq(read_bytes("", 0, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_bytes("x\ny\n", 4, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "2 of 2 lines cannot be used; the first: "));
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
    Error e = {0};
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
        Error e = {0};
        int whole = 0;
        for (size_t i = 1; i <= n; i++)
            whole += file[i] == '\n' || (i == n && i == sizeof file - 1 && file[i - 1] != '\n');
        bool rest = file[n - 1] != '\n' && file[n] != '\n';  // a line has begun and not ended
        int status = read_bytes(file, n, NULL, false, &r, &e);
        ck_assert_int_eq(status, whole ? 0 : -1);
        if (status) continue;
        ck_assert_int_eq(r.n, whole);
        ck_assert_int_eq(r.counts.skipped, rest);
        records_free(&r);
    }
}
END_TEST

START_TEST(deep_nesting) {
    static const int depth[] = {1000, 3000, 1000000};
    for (int k = 0; k < COUNT(depth); k++) {
        Str file = {0};
        Records r;
        Error e = {0};
        str_printf(&file, "{\"text\": \"a\", \"other\": ");
        for (int i = 0; i < depth[k]; i++) str_add(&file, k % 2 ? "{\"a\":" : "[", k % 2 ? 5 : 1);
        if (k == 0)
            for (int i = 0; i < depth[k]; i++) str_add(&file, "]", 1);
        str_printf(&file, "}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.counts.skipped, k > 0);
        if (k > 0) ck_assert_ptr_nonnull(strstr(r.counts.first_skipped.text, "depth"));
        records_free(&r);
        free(file.s);
    }
}
END_TEST

START_TEST(huge_lines) {
    for (int k = 0; k < 2; k++) {
        Str file = {0};
        Records r;
        Error e = {0};
        size_t n = k ? (64u << 20) + 1 : 8u << 20;
        char *filler = xmalloc(n);
        memset(filler, 'a', n);
        str_printf(&file, "{\"text\": \"");
        str_add(&file, filler, n);
        str_printf(&file, "\"}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.n, k ? 1 : 2);
        ck_assert_int_eq(r.counts.skipped, k);
        if (k)
            ck_assert_ptr_nonnull(
                strstr(r.counts.first_skipped.text, "records.jsonl:1:1: the line is longer than"));
        else
            ck_assert_uint_eq(r.v[0].spans[0].n, n);
        ck_assert_int_eq(r.v[r.n - 1].line, 2);
        records_free(&r);
        free(filler);
        free(file.s);
    }
}
END_TEST

int main(void) {
    const TTest *const records[] = {templates,
                                    a_template_in_one_line,
                                    records_say_what_their_prompts_were_put_into,
                                    wrong_templates,
                                    kinds,
                                    kinds_with_more_parts,
                                    conversations,
                                    conversations_as_people_have_them,
                                    fields_of_known_data,
                                    a_template_says_the_system_message,
                                    bad_lines,
                                    line_ends,
                                    nul_bytes,
                                    nothing_to_read,
                                    messages_are_printable,
                                    records_cut_short,
                                    deep_nesting,
                                    huge_lines,
                                    unused_fields_are_named};
    Suite *s = suite_create("records");
    add_case(s, "records", records, COUNT(records));
    return run_cases(s);
}
