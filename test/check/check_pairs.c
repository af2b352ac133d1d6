/*
 * check_pairs.c - pairs of answers, prompts and questions out of JSONL files.
 */
#include "text_files.h"

#define ALPACA(instruction) "### Instruction:\n" instruction "\n\n### Response:\n"

/* ---- pairs ----------------------------------------------------------------------------------- */

/* One pair: its prompt's spans joined by "|", then chosen and rejected. */
static void check_pair(const char *json, const char *template, const char *kind, const char *prompt,
                       const char *chosen, const char *rejected) {
    Records r;
    Error e = {0};
    ck_assert_msg(read_pairs(json, template, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.counts.left_out, 0);
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

START_TEST(pairs_as_people_have_them) {
    // TRL's implicit prompt: each text is judged as a whole
    check_pair("{" ANSWERS "}", NULL, "chosen/rejected", "", "C", "R");
    check_pair("{\"prompt\": null, " ANSWERS "}", NULL, "chosen/rejected", "", "C", "R");
    // ultrafeedback_binarized: the prompt repeats the first message
    check_pair("{\"prompt\": \"U\", \"chosen\": [" TURN("user", "U") ", " TURN(
                   "assistant", "C") "], \"rejected\": [" TURN("user", "U") ", " TURN("assistant",
                                                                                      "R") "]}",
               NULL, "chosen/rejected messages", ALPACA("U"), "C", "R");
    // a prompt that is a text, with answers that are messages
    check_pair("{\"prompt\": \"P\", \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
                   "assistant", "R") "]}",
               NULL, "prompt/chosen/rejected messages", ALPACA("P"), "C", "R");
    // messages with answers that are texts
    check_pair("{\"prompt\": [" TURN("user", "U") "], " ANSWERS "}", NULL, "prompt/chosen/rejected",
               ALPACA("U"), "C", "R");
    // orca_dpo_pairs
    check_pair("{\"system\": \"S\", \"question\": \"Q\", " ANSWERS "}", NULL,
               "question/chosen/rejected", "S\n\n" ALPACA("Q"), "C", "R");
    check_pair("{\"system\": \"\", \"question\": \"Q\", " ANSWERS "}", NULL,
               "question/chosen/rejected", ALPACA("Q"), "C", "R");
    // LLaMA-Factory: conversations, and one message each
    check_pair(
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"U\"}], \"chosen\": "
        "{\"from\": \"gpt\", \"value\": \"C\"}, \"rejected\": {\"from\": \"gpt\", "
        "\"value\": \"R\"}}",
        NULL, "conversations/chosen/rejected messages", ALPACA("U"), "C", "R");
    // earlier turns belong to the prompt
    check_pair("{\"instruction\": \"I\", \"history\": [[\"Q\", \"A\"]], " ANSWERS "}", NULL,
               "instruction/chosen/rejected", ALPACA("Q") "|A<|endoftext|>|" ALPACA("I"), "C", "R");
    // a prompt that the conversations do not contain is not used, and is named
    Records r;
    Error e;
    ck_assert_int_eq(
        read_pairs(
            "{\"prompt\": \"X\", \"chosen\": [" TURN("user", "U") ", " TURN(
                "assistant",
                "C") "], \"rejected\": [" TURN("user",
                                               "U") ", " TURN("assistant",
                                                              "R") "], \"score_chosen\": 8.0}\n",
            NULL, true, &r, &e),
        0);
    ck_assert_str_eq(r.unused, "prompt, score_chosen");
    records_free(&r);
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
    Error e = {0};
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
    Error e = {0};
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s",
                  e.text);  // strict, too: such pairs are correct, only of no use
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.counts.left_out, 4);
    ck_assert_int_eq(r.counts.skipped, 0);
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
        {"{\"instruction\": \"I\", \"input\": [], " ANSWERS "}", 22, "\"input\" is an array"},
        {"{\"prompt\": \"P\", \"chosen\": null, \"rejected\": \"R\"}", 17, "\"chosen\" is null"},
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
        {"{\"prompt\": \"P\", \"chosen\": [" TURN("assistant", "C") "], \"rejected\": \"R\"}", 1,
         "must both be strings, or both be lists"},
        {"{\"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
         2, "do not end with a user's"},
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
        {"{\"prompt\": \"P\", \"response_0\": \"C\", \"response_1\": \"R\", "
         "\"better_response_id\": 2}",
         1, "the fields are not those of a known kind"},
        {"{\"chosen\": [" TURN("user", "U") ", {\"role\": \"assistant\"}], \"rejected\": [" TURN(
             "user", "U") ", " TURN("assistant", "R") "]}",
         2, "\"chosen\" does not end in"},
        {"[]", 1, "an array, expected a JSON object"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        Str file = {0};
        Records r;
        Error e = {0};
        str_printf(&file, "{\"prompt\": \"P\", " ANSWERS "}\n%s\n", bad[i].line);
        ck_assert_msg(read_pairs(file.s, NULL, false, &r, &e) == 0, "%s", e.text);
        ck_assert_msg(r.n == 1 && r.counts.skipped == 1 && r.counts.left_out == 0, "%s",
                      bad[i].line);
        ck_assert_msg(strstr(r.counts.first_skipped.text, bad[i].word), "%s: %s", bad[i].line,
                      r.counts.first_skipped.text);
        char where[160];
        snprintf(where, sizeof where, "%s:2:%d: ", in_directory("records.jsonl"), bad[i].column);
        ck_assert_msg(!strncmp(r.counts.first_skipped.text, where, strlen(where)),
                      "%s: %s, expected %s", bad[i].line, r.counts.first_skipped.text, where);
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
        Error e = {0};
        write_text("records.jsonl", one[i].json);
        ck_assert_msg(answers_read(in_directory("records.jsonl"), NULL, true, &r, &e) == 0, "%s",
                      e.text);
        ck_assert_str_eq(r.v[0].spans[0].text, one[i].prompt);
        ck_assert_str_eq(r.v[0].spans[1].text, "R");
        records_free(&r);
    }
}
END_TEST

/* Other names of a pair whose meaning is known. */
START_TEST(pairs_under_other_names) {
    // StackExchange: j is preferred
    check_pair("{\"qid\": 1, \"question\": \"P\", \"response_k\": \"R\", \"response_j\": \"C\"}",
               NULL, "question/chosen/rejected", ALPACA("P"), "C", "R");
    check_pair("{\"prompt\": \"P\", \"chosen_response\": \"C\", \"rejected_response\": \"R\"}",
               NULL, "prompt/chosen/rejected", "P", "C", "R");
    check_pair("{\"query\": \"P\", \"response\": \"C\", \"rejected_response\": \"R\"}", NULL,
               "query/chosen/rejected", ALPACA("P"), "C", "R");
    // both answers repeat the prompt; a short beginning is no repetition
    check_pair(
        "{\"prompt\": \"\\n\\nHuman: H\\n\\nAssistant:\", \"chosen\": \"\\n\\nHuman: "
        "H\\n\\nAssistant: C\", \"rejected\": \"\\n\\nHuman: H\\n\\nAssistant: R\"}",
        NULL, "prompt/chosen/rejected", "\n\nHuman: H\n\nAssistant:", " C", " R");
    check_pair("{\"prompt\": \"Say yes\", \"chosen\": \"Say yes C\", \"rejected\": \"Say yes R\"}",
               NULL, "prompt/chosen/rejected", "Say yes", "Say yes C", "Say yes R");
    // PKU-SafeRLHF
    check_pair(
        "{\"prompt\": \"P\", \"response_0\": \"C\", \"response_1\": \"R\", "
        "\"better_response_id\": 0}",
        NULL, "prompt/chosen/rejected", "P", "C", "R");
    check_pair(
        "{\"prompt\": \"P\", \"response_0\": \"R\", \"response_1\": \"C\", "
        "\"better_response_id\": 1}",
        NULL, "prompt/chosen/rejected", "P", "C", "R");
    // OpenAI's files of preferences
    check_pair("{\"input\": {\"messages\": [" TURN("user", "P") "]}, \"preferred_output\": [" TURN(
                   "assistant", "C") "], \"non_preferred_output\": [" TURN("assistant", "R") "]}",
               NULL, "prompt/chosen/rejected messages", ALPACA("P"), "C", "R");
    check_pair("{\"problem\": \"P\", \"chosen\": \"C\", \"rejected\": \"R\"}", NULL,
               "problem/chosen/rejected", ALPACA("P"), "C", "R");
    // the whole name of a kind
    check_pair(
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"P\"}], \"chosen\": "
        "{\"from\": \"gpt\", \"value\": \"C\"}, \"rejected\": {\"from\": \"gpt\", "
        "\"value\": \"R\"}}",
        NULL, "conversations/chosen/rejected messages", ALPACA("P"), "C", "R");
    Records r;
    Error e;
    ck_assert_int_eq(read_pairs("{\"qid\": 1, \"question\": \"P\", \"response_j\": \"C\", "
                                "\"response_k\": \"R\"}",
                                NULL, true, &r, &e),
                     0);
    ck_assert_str_eq(r.unused, "qid");
    records_free(&r);
}
END_TEST

/* ---- prompts --------------------------------------------------------------------------------- */

static int read_prompts(const char *bytes, size_t n, const char *template, bool strict, Prompts *p,
                        Error *e) {
    write_file("prompts.jsonl", bytes, n);
    return prompts_read(in_directory("prompts.jsonl"), template, strict, p, e);
}

static void check_prompts(const char *json, const char *template, const char *expected) {
    Error e = {0};
    Prompts p;
    ck_assert_msg(read_prompts(json, strlen(json), template, true, &p, &e) == 0, "%s", e.text);
    ck_assert_int_eq(p.n, 1);
    ck_assert_int_eq(p.counts.skipped, 0);
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
    Error e = {0};
    static const char file[] =
        "{\"prompt\": \"P\"}\n{\"prompt\": \"P\", \"answer\": \"A\"}\n{\"instruction\": \"I\", "
        "\"answer\": 1, \"output\": \"O\"}\n";
    ck_assert_int_eq(read_prompts(file, sizeof file - 1, NULL, true, &p, &e), 0);
    ck_assert(p.n == 3 && !p.v[0].answer && !strcmp(p.v[1].answer, "A") &&
              !strcmp(p.v[2].answer, "O"));
    prompts_free(&p);
}
END_TEST

/* What sft learns from is a prompt for ppo and constitutional: the same text up to the answer. */
START_TEST(what_is_learned_from_is_a_prompt) {
    static const struct {
        const char *json, *answer;
    } one[] = {
        {"{\"instruction\": \"I\", \"input\": \"X\", \"output\": \"R\"}", "R"},
        {"{\"instruction\": \"I\", \"context\": \"X\", \"response\": \"R\"}", "R"},
        {"{\"prompt\": \"P \", \"completion\": \"R\"}", "R"},
        {"{\"prompt\": \"P\", \"response\": \"R\"}", "R"},
        {"{\"input\": \"P\", \"output\": \"R\"}", "R"},
        {"{\"problem\": \"P\", \"solution\": \"R\"}", "R"},
        {"{\"document\": \"P\", \"summary\": \"R\"}", "R"},
        {"{\"article\": \"P\", \"highlights\": \"R\"}", "R"},
        {"{\"question\": \"Q\", \"passage\": \"X\", \"answer\": [\"R\", \"S\"]}", "R"},
        {"{\"text\": \"P\", \"summary\": \"R\"}", "R"},
        {"{\"question\": \"2+2?\", \"answer\": \"so #### 4\"}", "so #### 4"},
        {"{\"question\": \"Q\", \"context\": \"X\", \"answers\": {\"text\": [\"R\"]}}", "R"},
        {"{\"system\": \"S\", \"query\": \"Q\", \"response\": \"R\"}", "R"},
        {"{\"messages\": [" TURN("system", "S") ", " TURN("user", "U") ", " TURN("assistant",
                                                                                 "A") "]}",
         "A"},
        {"{\"conversations\": [{\"from\": \"human\", \"value\": \"U\"}, {\"from\": \"gpt\", "
         "\"value\": \"A\"}]}",
         "A"},
        {"{\"prompt\": [" TURN("user", "U") "], \"completion\": [" TURN("assistant", "A") "]}",
         "A"},
    };
    static const char *const templates[] = {NULL, "<{instruction}[[|{input}]]>{response}!"};
    for (int i = 0; i < COUNT(one) * 2; i++) {
        const char *json = one[i / 2].json, *template = templates[i % 2];
        Records r = must_read(json, template);
        Prompts p;
        Error e = {0};
        ck_assert_msg(read_prompts(json, strlen(json), template, true, &p, &e) == 0, "%s: %s", json,
                      e.text);
        ck_assert_int_eq(r.v[0].n, 2);
        ck_assert_str_eq(p.v[0].text, r.v[0].spans[0].text);
        ck_assert_str_eq(p.v[0].answer ? p.v[0].answer : "(none)", one[i / 2].answer);
        ck_assert_msg(!p.unused, "%s: %s", json, p.unused);
        prompts_free(&p);
        records_free(&r);
    }
    // a conversation up to its last answer; earlier ones end
    check_prompts("{\"messages\": [" TURN("user", "U") ", " TURN("assistant", "A") ", " TURN(
                      "user", "V") ", " TURN("assistant", "B") "]}",
                  "<{instruction}>", "<U>A<|endoftext|><V>");
    // TRL's lists of messages; a conversation that waits for its answer
    check_prompts("{\"prompt\": [" TURN("user", "hi") "]}", NULL, ALPACA("hi"));
    check_prompts("{\"messages\": [" TURN("user", "hi") "]}", NULL, ALPACA("hi"));
    // a complete prompt comes before the question that it was made of
    check_prompts("{\"prompt\": \"P\", \"question\": \"Q\", \"answer\": \"A\"}", NULL, "P");
    check_prompts("{\"question\": \"Q\"}", NULL, ALPACA("Q"));
    // pairs
    check_prompts("{\"chosen\": [" TURN("user", "U") ", " TURN("assistant", "C") "], \"rejected\": "
                  "[" TURN("user", "U") ", " TURN("assistant", "R") "], \"prompt\": \"U\"}",
                  NULL, ALPACA("U"));
    check_prompts("{\"system\": \"S\", \"question\": \"Q\", " ANSWERS "}", NULL,
                  "S\n\n" ALPACA("Q"));
    // an answer that is a number, or a boolean; verl's, which is nested
    static const char *const answers[][2] = {
        {"{\"question\": \"2+2?\", \"ground_truth\": 4}\n", "4"},
        {"{\"question\": \"Q\", \"passage\": \"X\", \"answer\": true}\n", "true"},
        {"{\"prompt\": [" TURN("user", "Q") "], \"reward_model\": {\"style\": \"rule\", "
                                            "\"ground_truth\": \"72\"}}\n",
         "72"},
        {"{\"prompt\": \"Q\", \"reward_model\": {\"ground_truth\": 7}}\n", "7"},
        {"{\"prompt\": \"Q\", \"reward_model\": {\"ground_truth\": [\"a\", \"b\"]}}\n", "a"}};
    for (int i = 0; i < COUNT(answers); i++) {
        Prompts p;
        Error e = {0};
        const char *json = answers[i][0];
        ck_assert_msg(!read_prompts(json, strlen(json), NULL, true, &p, &e), "%s", e.text);
        ck_assert_str_eq(p.v[0].answer ? p.v[0].answer : "(none)", answers[i][1]);
        prompts_free(&p);
    }
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
        {"{\"text\": \"t\"}", 1, "found text; expected instruction[/input], prompt, question"},
        {"[]", 1, "an array, expected a JSON object"},
        {"{\"prompt\": \"a\"", 14, "expected"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        for (int strict = 0; strict < 2; strict++) {
            Str file = {0};
            char where[256];
            Prompts p;
            Error e = {0};
            str_printf(&file, "{\"prompt\": \"first\"}\n\n%s\n{\"prompt\": \"last\"}", bad[i].line);
            ck_assert_int_eq(read_prompts(file.s, file.n, NULL, strict, &p, &e), strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(p.n, 2);
                ck_assert_int_eq(p.v[1].line, 4);
                ck_assert_int_eq(p.counts.skipped, 1);
                e = p.counts.first_skipped;
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
    Error e = {0};
    ck_assert_int_eq(read_prompts("", 0, NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_prompts("{\"prompt\": \"a\"}", 15, "no field", false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "{instruction} is missing"));
    ck_assert_int_eq(prompts_read(in_directory("absent.jsonl"), NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent.jsonl"));
    ck_assert(p.v == NULL && p.n == 0);
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
    static const char good[] =
        "{\"prompt\": \"P\", \"corrects\": [\"a\"], \"incorrects\": [\"c\"]}\n";
    Questions q;
    Error e;
    Str file = {0};
    str_printf(&file, "%s", text);
    for (int i = 0; i < 6; i++) str_printf(&file, "%s", good);  // as many as there are bad ones
    write_file("records.jsonl", file.s, file.n);
    free(file.s);
    ck_assert_msg(questions_read(in_directory("records.jsonl"), false, &q, &e) == 0, "%s", e.text);
    ck_assert_int_eq(q.n, 8);
    ck_assert_int_eq(q.counts.skipped, 8);
    ck_assert_msg(strstr(q.counts.first_skipped.text, "records.jsonl:3:17: \"corrects\""), "%s",
                  q.counts.first_skipped.text);
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
static void check_skipped(int skipped, int lines, const char *expected) {
    const JsonlCounts counts = {.lines = lines,
                                .skipped = skipped,
                                .first_skipped = {.text = "data.jsonl:2:1: invalid token"}};
    Str got = {0};
    Error e;
    fflush(stdout);
    const int terminal = dup(STDOUT_FILENO);
    ck_assert_ptr_nonnull(freopen(in_directory("records.jsonl"), "w", stdout));
    say_skipped("data.jsonl", &counts, "prompt");
    fflush(stdout);
    dup2(terminal, STDOUT_FILENO);
    close(terminal);
    ck_assert_int_eq(read_file(in_directory("records.jsonl"), 1000, &got, &e), 0);
    ck_assert_str_eq(got.s, expected);
    free(got.s);
}

START_TEST(skipped_lines_are_reported_with_the_first_reason) {
    check_skipped(0, 3, "");
    check_skipped(1, 3,
                  "data.jsonl: skipped 1 of 3 lines, because it is no prompt; the first: "
                  "data.jsonl:2:1: invalid token\n");
    check_skipped(3, 12,
                  "data.jsonl: skipped 3 of 12 lines, because they are no prompt; the first: "
                  "data.jsonl:2:1: invalid token\n");
}
END_TEST

int main(void) {
    const TTest *const pairs[] = {kinds_of_pairs,
                                  pairs_as_people_have_them,
                                  pairs_under_other_names,
                                  margins_and_soft_labels,
                                  pairs_with_different_prompts_are_left_out,
                                  bad_pairs,
                                  a_prompt_to_be_judged_is_complete};
    const TTest *const prompt[] = {prompts, what_is_learned_from_is_a_prompt, bad_prompts};
    const TTest *const questions[] = {questions_and_bad_questions,
                                      skipped_lines_are_reported_with_the_first_reason};
    Suite *s = suite_create("pairs");
    add_case(s, "pairs", pairs, COUNT(pairs));
    add_case(s, "prompts", prompt, COUNT(prompt));
    add_case(s, "questions", questions, COUNT(questions));
    return run_cases(s);
}
