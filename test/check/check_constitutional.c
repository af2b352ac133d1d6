/*
 * check_constitutional.c - constitutional.c: the procedure with a scripted voice in the place of
 * the model, its texts byte for byte, and the program as people run it, on the built-in model.
 *
 * The program under test is $BUILD/constitutional (the Makefile says which build); its runs are
 * short.
 */
#define main program_main  // this file has its own
#include "../../constitutional.c"
#undef main

#include "files/hf.h"  // hf_load

#include "program.h"

#undef fail
#include <check.h>

static char work[64] = "/tmp/check_constitutional.XXXXXX";  // where the runs write

/* ---- a voice that reads from a script -------------------------------------------------------- */

enum { SAID = 256 };
static struct {
    const char *(*line)(uint32_t id, int turn);  // what to say
    size_t room;                                 // bytes of a prompt that fit
    char *prompt[SAID];                          // every prompt it was given, in order
    uint32_t id[SAID], turn[SAID];
    int n, calls;
} script;

static void script_say(void *context, int n, char *const *prompt, const uint32_t *id, uint32_t turn,
                       float temperature, char **text) {
    ck_assert(context == &script);
    const float wanted = turn % 1024 == 0 ? chat.temperature
                         : turn % 2       ? args.critique_temperature
                                          : args.revision_temperature;
    ck_assert(temperature == wanted);
    script.calls++;
    for (int i = 0; i < n; i++) {
        ck_assert_int_lt(script.n, SAID);
        script.prompt[script.n] = strdup(prompt[i]);
        script.id[script.n] = id[i];
        script.turn[script.n++] = turn;
        text[i] = strdup(script.line(id[i], (int)(turn % 1024)));
    }
}

static bool script_fits(void *context, const char *prompt) {
    (void)context;
    return strlen(prompt) <= script.room;
}

static const Voice voice = {script_say, script_fits, &script};

/* Gives the flags their values: the program's defaults. */
static void reset_flags(Run *run) {
    Error e;
    char *argv[] = {"constitutional", "--model=none", NULL};
    ck_assert_msg(run_parse(run, &constitutional, 2, argv, &e) == 0, "%s", e.text);
}

static void forget(void) {
    for (int i = 0; i < script.n; i++) free(script.prompt[i]);
    memset(&script, 0, sizeof script);
    script.room = 1 << 20;
    constitution_free(&constitution);
    headings_free(&headings);
    Run run = {0};
    reset_flags(&run);
    run_free(&run);
}

/* Writes text into a file and loads it as the constitution. */
static void with_constitution(const char *text) {
    static char path[128];
    snprintf(path, sizeof path, "%s/constitution.json", work);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    forget();
    args.constitution = path;
    constitution_open(args.constitution, &constitution, &headings);
}

static const char tiny[] =
    "[{\"critique_request\": \"\\n\\n### Critique:\\n\", \"revision_request\": \"\\n\\n### "
    "Revision:\\n\"}]";
#define Q "### Instruction:\nWhy?\n\n### Response:\n"

/* One dialogue about Why?, as the script goes. */
static Dialogue hold(const char *(*line)(uint32_t id, int turn)) {
    Dialogue d = {0};
    Dropped dropped = {0};
    script.line = line;
    dialogue_begin(&d, 0, 7, Q);
    ck_assert(converse(&voice, &d, 1, 0, 1, &dropped));
    return d;
}

/* How many training examples the dialogue has, and the first of them. */
static int examples_of(const Dialogue *d, char *first) {
    Records r = {0};
    learn(&r, d);
    const int n = r.n;
    *first = 0;
    if (n) strcpy(first, r.v[0].spans[1].text);
    if (n) ck_assert_str_eq(r.v[0].spans[0].text, d->prompt);
    for (int i = 0; i < n; i++)
        ck_assert(!r.v[i].spans[0].scored && r.v[i].spans[1].scored && r.v[i].n == 2);
    records_free(&r);
    return n;
}

/* ---- the control flow ------------------------------------------------------------------------ */

static const char *at_once(uint32_t id, int turn) {
    (void)id;
    return turn == 0 ? "Because." : turn == 1 ? "There are no problems here." : "NEVER ASKED";
}

START_TEST(a_critique_that_finds_nothing_ends_it_at_once) {
    char learned[256];
    with_constitution(tiny);
    Dialogue d = hold(at_once);
    ck_assert_int_eq(d.ending, PRAISED);
    ck_assert_int_eq(d.rounds, 1);
    ck_assert_ptr_null(d.round[0].revision);
    ck_assert_int_eq(script.calls, 2);  // an answer, a critique, and no revision
    ck_assert_str_eq(dialogue_answer(&d), "Because.");
    ck_assert_int_eq(examples_of(&d, learned), 1);  // a good answer is learned as it is
    ck_assert_str_eq(learned, "Because.");
    dialogue_free(&d);
}
END_TEST

static const char *second_round(uint32_t id, int turn) {
    (void)id;
    static const char *const lines[] = {"Get lost.", "That is rude.", "Because, dear.",
                                        "이제 문제없음.", "NEVER ASKED"};
    return lines[turn];
}

START_TEST(it_ends_in_round_two) {
    char learned[256];
    with_constitution(tiny);
    Dialogue d = hold(second_round);
    ck_assert_int_eq(d.ending, PRAISED);
    ck_assert_int_eq(d.rounds, 2);
    ck_assert_int_eq(script.calls, 4);
    ck_assert_str_eq(dialogue_answer(&d), "Because, dear.");
    ck_assert_int_eq(examples_of(&d, learned), 1);
    ck_assert_str_eq(learned, "Because, dear.");
    // the second round is about the revision, which has taken the answer's place
    ck_assert_str_eq(script.prompt[0], Q);
    ck_assert_str_eq(script.prompt[1], Q "Get lost.\n\n### Critique:\n");
    ck_assert_str_eq(script.prompt[2],
                     Q "Get lost.\n\n### Critique:\nThat is rude.\n\n### Revision:\n");
    ck_assert_str_eq(script.prompt[3], Q "Because, dear.\n\n### Critique:\n");
    dialogue_free(&d);
}
END_TEST

static const char *never(uint32_t id, int turn) {
    static char text[64];
    snprintf(text, sizeof text, turn % 2 ? "Fault %d.%u" : "Answer %d.%u", turn, id);
    return text;
}

START_TEST(it_ends_when_the_rounds_are_used) {
    char learned[256];
    with_constitution(tiny);
    Dialogue d = hold(never);
    ck_assert_int_eq(d.ending, ROUNDS_USED);
    ck_assert_int_eq(d.rounds, 3);
    ck_assert_int_eq(script.calls, 7);
    ck_assert_str_eq(dialogue_answer(&d), "Answer 6.7");
    ck_assert_int_eq(examples_of(&d, learned), 1);
    ck_assert_str_eq(learned, "Answer 6.7");
    args.revisions = REVISIONS_ALL;
    ck_assert_int_eq(examples_of(&d, learned), 3);
    dialogue_free(&d);
    args.max_iterations = 0;
    d = hold(never);
    ck_assert(d.ending == ROUNDS_USED && d.rounds == 0);
    ck_assert_int_eq(examples_of(&d, learned), 0);  // nobody has judged it
    dialogue_free(&d);
}
END_TEST

static const char *silent(uint32_t id, int turn) {
    return turn == 0 ? "Get lost." : turn == 1 ? id ? " \n " : "" : "NEVER ASKED";
}

START_TEST(an_empty_critique_is_no_praise) {
    char learned[256];
    with_constitution(tiny);
    Dialogue d = hold(silent);
    ck_assert_int_eq(d.ending, SILENT);
    ck_assert_int_eq(script.calls, 2);
    ck_assert_int_eq(examples_of(&d, learned), 0);
    dialogue_free(&d);
}
END_TEST

static const char *echo_question(uint32_t id, int turn) {
    (void)id;
    return turn == 0 ? "Get lost." : turn == 1 ? " Why?" : "NEVER ASKED";
}
static const char *echo_answer(uint32_t id, int turn) {
    (void)id;
    return turn == 0 ? "You fool, get lost." : turn == 1 ? "get lost." : "NEVER ASKED";
}
static const char *echo_heading(uint32_t id, int turn) {
    (void)id;
    return turn == 0 ? "Get lost." : turn == 1 ? Q : "NEVER ASKED";
}
static const char *echo_and_more(uint32_t id, int turn) {
    (void)id;
    return turn == 1 ? "Why? That is rude." : turn == 3 ? "Why? No problem." : "Get lost.";
}

START_TEST(a_critique_that_repeats_what_it_was_given_is_none) {
    const struct {
        const char *(*line)(uint32_t, int);
        Ending ending;
        int calls;
    } cases[] = {{echo_question, ECHOED, 2},
                 {echo_answer, ECHOED, 2},
                 {echo_heading, SILENT, 2},
                 {echo_and_more, PRAISED, 4}};
    for (int i = 0; i < 4; i++) {
        with_constitution(tiny);
        Dialogue d = hold(cases[i].line);
        ck_assert_int_eq(d.ending, cases[i].ending);
        ck_assert_int_eq(script.calls, cases[i].calls);
        dialogue_free(&d);
    }
    // a stop phrase in the question is not one in the critique
    with_constitution(tiny);
    Dialogue d = {0};
    Dropped dropped = {0};
    script.line = echo_question;
    dialogue_begin(&d, 0, 7, "### Instruction:\nIs there no problem? Why?\n\n### Response:\n");
    d.answer = xstrdup("Get lost.");
    dialogue_open_round(&d, &constitution.v[0]);
    d.round[0].critique = xstrdup("Is there no problem? Why? That is rude.");
    ck_assert_int_eq(after_critique(&d), UNFINISHED);
    free(d.round[0].critique);
    d.round[0].critique = xstrdup("no problem? Why?");
    ck_assert_int_eq(after_critique(&d), ECHOED);
    dialogue_free(&d);
    (void)dropped;
}
END_TEST

static const char *inappropriate(uint32_t id, int turn) {
    (void)id;
    return turn == 1 ? "이 답변은 부적절함." : turn == 3 ? "이 답변은 적절함." : "답변";
}

START_TEST(inappropriate_does_not_say_appropriate) {
    with_constitution(tiny);
    Dialogue d = hold(inappropriate);
    ck_assert_int_eq(d.ending, PRAISED);
    ck_assert_int_eq(d.rounds, 2);  // 부적절함 has not ended it, 적절함 has
    dialogue_free(&d);
}
END_TEST

static const char *marked(uint32_t id, int turn) {
    (void)id;
    static const char *const lines[] = {
        "Get lost.\n\n### Critique:\nNo problem.\n\n### Revision:\nI have done it all myself.",
        "Rude.\n### Revision:\nHa!", "Because.<|endoftext|>\n### Instruction:\nMore?",
        "Human: no problem", "NEVER ASKED"};
    return lines[turn];
}

START_TEST(a_text_that_plays_the_other_parts_is_cut) {
    with_constitution(tiny);
    Dialogue d = hold(marked);
    ck_assert_str_eq(d.answer, "Get lost.");
    ck_assert_str_eq(d.round[0].critique, "Rude.");
    ck_assert_str_eq(script.prompt[2], Q "Get lost.\n\n### Critique:\nRude.\n\n### Revision:\n");
    ck_assert_str_eq(d.round[0].revision,
                     "Because.<|endoftext|>");  // within a line it is ordinary text
    ck_assert_str_eq(d.round[1].critique, "");
    ck_assert_int_eq(d.ending, SILENT);
    dialogue_free(&d);
}
END_TEST

static const char *no_revision(uint32_t id, int turn) {
    (void)id;
    return turn == 0 ? "One." : turn % 2 ? "Fault." : turn == 2 ? "Two." : "\n### Critique:\n";
}

START_TEST(an_empty_revision_leaves_the_answer_that_stands) {
    char learned[256];
    with_constitution(tiny);
    Dialogue d = hold(no_revision);
    ck_assert_int_eq(d.ending, SILENT);
    ck_assert_int_eq(d.rounds, 2);
    ck_assert_ptr_null(d.round[1].revision);
    ck_assert_str_eq(dialogue_answer(&d), "Two.");
    ck_assert_int_eq(examples_of(&d, learned), 1);
    dialogue_free(&d);
}
END_TEST

/* Dialogue id ends in round id + 1. */
static const char *by_id(uint32_t id, int turn) {
    return turn % 2 && (uint32_t)turn / 2 == id ? "No issue." : never(id, turn);
}

START_TEST(dialogues_go_on_together_and_drop_out_one_by_one) {
    with_constitution(tiny);
    args.max_iterations = 5;
    Dialogue d[4] = {{0}}, alone = {0};
    Dropped dropped = {0};
    script.line = by_id;
    for (int i = 0; i < 4; i++) dialogue_begin(&d[i], 0, i, Q);
    ck_assert(converse(&voice, d, 4, 0, 1, &dropped));
    ck_assert_int_eq(
        script.calls,
        1 + 4 + 3);  // an answer, four critiques and three revisions: together, not one by one
    int asked[4] = {0};
    for (int i = 0; i < script.n; i++) asked[script.id[i]]++;
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(d[i].ending, PRAISED);
        ck_assert_int_eq(asked[i], 2 + 2 * i);
        dialogue_begin(&alone, 0, i, Q);
        ck_assert(converse(&voice, &alone, 1, 0, 1, &dropped));
        ck_assert_int_eq(alone.rounds, d[i].rounds);
        ck_assert_str_eq(dialogue_answer(&alone), dialogue_answer(&d[i]));
        dialogue_free(&d[i]);
    }
    dialogue_free(&alone);
}
END_TEST

/* ---- what stays in sight --------------------------------------------------------------------- */

START_TEST(earlier_rounds_stay_in_sight_on_request) {
    for (int keep = 0; keep < 4; keep++) {
        with_constitution(tiny);
        args.keep_rounds = keep;
        Dialogue d = hold(never);
        const char *wanted[] = {
            Q "Answer 4.7\n\n### Critique:\n",
            Q
            "Answer 2.7\n\n### Critique:\nFault 3.7\n\n### Revision:\nAnswer 4.7\n\n### "
            "Critique:\n",
            Q
            "Answer 0.7\n\n### Critique:\nFault 1.7\n\n### Revision:\nAnswer 2.7\n\n### "
            "Critique:\nFault 3.7\n\n### Revision:\nAnswer 4.7\n\n### Critique:\n",
        };
        ck_assert_str_eq(script.prompt[5], wanted[keep < 2 ? keep : 2]);
        dialogue_free(&d);
    }
}
END_TEST

START_TEST(few_shot_dialogues_go_first_then_the_oldest_rounds) {
    static const char text[] =
        "{\"principles\": [{\"critique_request\": \"\\n\\n### Critique:\\n\", "
        "\"revision_request\": \"\\n\\n### Revision:\\n\"}],"
        " \"few_shot\": [\"[first]\\n\\nHuman:\", \"[second]\"]}";
    static const char *const before[] = {"[first][second]", "[second]", "", "", ""};
    for (int i = 0; i < 5; i++) {  // 4: not even the last round fits
        with_constitution(text);
        args.keep_rounds = 1;
        Dialogue d = {0};
        Dropped dropped = {0};
        dialogue_begin(&d, 0, 7, Q);
        d.answer = xstrdup("Answer zero.");
        dialogue_open_round(&d, &constitution.v[0]);
        d.round[0].critique = xstrdup("Fault.");
        d.round[0].revision = xstrdup("Answer one.");
        dialogue_open_round(&d, &constitution.v[0]);
        Str wanted = {0};
        str_printf(&wanted, "%s%s%s\n\n### Critique:\n", before[i], Q,
                   i < 3 ? "Answer zero.\n\n### Critique:\nFault.\n\n### Revision:\nAnswer one."
                         : "Answer one.");
        script.room = wanted.n - (i == 4);
        char *s = dialogue_so_far(&d, &constitution, &voice, args.keep_rounds, &dropped);
        ck_assert_int_eq(s != NULL, i < 4);
        if (s) ck_assert_str_eq(s, wanted.s);
        ck_assert_int_eq(dropped.few_shot, i < 3 ? i : 2);
        ck_assert_int_eq(dropped.rounds, i > 2);
        ck_assert_int_eq(dropped.turns, i == 4);
        free(s);
        free(wanted.s);
        dialogue_free(&d);
    }
}
END_TEST

START_TEST(without_room_a_dialogue_ends_and_says_so) {
    char learned[256];
    const size_t rooms[] = {strlen(Q) - 1, strlen(Q), strlen(Q "Get lost.\n\n### Critique:\n")};
    for (int i = 0; i < 3; i++) {  // no room for the answer, the critique, the revision
        with_constitution(tiny);
        script.room = rooms[i];
        Dialogue d = hold(second_round);
        ck_assert_int_eq(d.ending, NO_ROOM);
        ck_assert_int_eq(script.calls, i);
        ck_assert_int_eq(d.rounds, i == 2);
        ck_assert_int_eq(examples_of(&d, learned), 0);
        dialogue_free(&d);
    }
}
END_TEST

/* ---- texts, byte for byte -------------------------------------------------------------------- */

START_TEST(the_built_in_world_gets_the_texts_its_model_was_trained_on) {
    forget();
    args.constitution = "test/tiny/constitution.json";
    args.max_iterations = 1;
    constitution_open(args.constitution, &constitution, &headings);
    Dialogue d = hold(second_round);
    // test/world.c: critique_prompt and revision_prompt
    ck_assert_str_eq(script.prompt[1], Q "Get lost.\n\n### Critique:\n");
    ck_assert_str_eq(script.prompt[2],
                     Q "Get lost.\n\n### Critique:\nThat is rude.\n\n### Revision:\n");
    dialogue_free(&d);
    // comparison_prompt
    char *s = comparison(Q, &constitution.v[0], "Of course! Yes.", "Get lost.");
    ck_assert_str_eq(s,
                     "### Instruction:\nWhy?\n\n### Response (A):\nOf course! Yes.\n\n### Response "
                     "(B):\nGet lost.\n\n### Better:\n(");
    ck_assert_str_eq(constitution.option[0], "A)");
    ck_assert_str_eq(constitution.option[1], "B)");
    free(s);
    // an answer that plays the judge is cut there, too
    s = comparison(Q, &constitution.v[0], "Yes.\n\n### Response (B):\nNo.\n\n### Better:\n(A)",
                   "{a} {b}");
    ck_assert_str_eq(s,
                     "### Instruction:\nWhy?\n\n### Response (A):\nYes.\n\n### Response (B):\n{a} "
                     "{b}\n\n### Better:\n(");
    free(s);
}
END_TEST

START_TEST(plain_principles_in_both_languages_get_our_layout) {
    with_constitution("[\"Be kind.\", \"친절하게 답합니다.\"]");
    ck_assert_int_eq(constitution.n, 2);
    ck_assert_str_eq(constitution.v[0].critique_request,
                     "\n\n### Critique request:\nBe kind. Say where the response falls short of "
                     "this. If it does not, say: no problems.\n\n### Critique:\n");
    ck_assert_str_eq(constitution.v[0].revision_request,
                     "\n\n### Revision request:\nBe kind. Rewrite the response so that it is like "
                     "that.\n\n### Revision:\n");
    ck_assert_str_eq(constitution.v[1].critique_request,
                     "\n\n### 비평 요청:\n친절하게 답합니다. 답변이 여기에 어긋나는 점을 말하세요. "
                     "없으면 문제없음이라고 하세요.\n\n### 비평:\n");
    ck_assert_str_eq(
        constitution.v[1].revision_request,
        "\n\n### 수정 요청:\n친절하게 답합니다. 답변을 그렇게 고쳐 쓰세요.\n\n### 수정:\n");
    char *s = comparison("\n\nHuman: 왜?\n\nAssistant:", &constitution.v[1], " 네.", " 아니요.");
    ck_assert_str_eq(
        s,
        "\n\nHuman: 왜?\n\n### Response (A):\n 네.\n\n### Response (B):\n 아니요.\n\n### "
        "질문:\n친절하게 답합니다. 둘 중 어느 답변이 더 나은가요?\n\n### Answer:\n");
    free(s);
    // each prompt is held against the principles in its language
    int n;
    for (uint32_t k = 0; k < 5; k++) {
        ck_assert_ptr_eq(principle_for(&constitution, "Why?", k, &n), &constitution.v[0]);
        ck_assert_int_eq(n, 1);
        ck_assert_ptr_eq(principle_for(&constitution, "왜?", k, &n), &constitution.v[1]);
    }
    // whose texts end at the Korean headings
    char text[] = "네.\n### 수정:\n아니요.";
    headings_cut(&headings, text);
    ck_assert_str_eq(text, "네.");
    with_constitution("[\"Be kind.\", \"Be frank.\"]");  // none in Korean: then all
    principle_for(&constitution, "왜?", 0, &n);
    ck_assert_int_eq(n, 2);
}
END_TEST

START_TEST(principles_are_drawn_or_taken_in_turn) {
    forget();
    constitution_open(args.constitution, &constitution,
                      &headings);  // our own: four in English, three in Korean
    int count[7] = {0}, n;
    for (uint32_t id = 0; id < 400; id++)
        for (uint32_t round = 0; round < 2; round++) {
            const Principle *p = draw_principle(&constitution, args.principles,
                                                id % 2 ? "왜?" : "Why?", 3, id, round, 1);
            ck_assert_ptr_eq(p, draw_principle(&constitution, args.principles,
                                               id % 2 ? "왜?" : "Why?", 3, id, round,
                                               1));  // a function of where it is asked
            count[p - constitution.v]++;
        }
    for (int i = 0; i < 4; i++)
        ck_assert_int_ge(count[i], 70);  // 100 each; 70 is 3.5 standard deviations down
    for (int i = 4; i < 7; i++) ck_assert_int_ge(count[i], 100);  // 133 each
    args.principles = PRINCIPLES_ALL;
    for (uint32_t round = 0; round < 9; round++)
        ck_assert_ptr_eq(draw_principle(&constitution, args.principles, "Why?", 0, 5, round, 1),
                         &constitution.v[round % 4]);
    ck_assert_ptr_eq(principle_for(&constitution, "왜?", 4, &n), &constitution.v[5]);
    ck_assert_int_eq(n, 3);
}
END_TEST

/* A principle that is a pair of requests is compared by the request's text, and each by its own. */
START_TEST(requests_are_compared_by_their_text) {
    static const struct {
        const char *file, *text;
    } cases[] = {
        {"{\"h\": {\"prompt\": [\"\\n\\nCritiqueRequest: Find harm.\\n\\nCritique:\"], "
         "\"edit_request\": \"\\n\\nRevisionRequest: Mend.\\n\\nRevision:\"}}",
         "Find harm."},
        {"[{\"critique_request\": \"\\n\\n### Critique request:\\nFind harm.\\n\\n### "
         "Critique:\\n\", \"revision_request\": \"R\"}]",
         "Find harm."},
        {"[{\"critique_request\": \"Find harm: any.\", \"revision_request\": \"R\"}]",
         "Find harm: any."},
        {"[{\"critique_request\": \"Say what is wrong with it\", \"revision_request\": \"R\"}]",
         "Say what is wrong with it"},
        {"[{\"critique_request\": \"C\", \"revision_request\": \"R\", \"comparison\": \"By "
         "this.\"}]",
         "By this."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        with_constitution(cases[i].file);
        char *text = principle_text(&constitution.v[0]), expected[256];
        ck_assert_str_eq(text, cases[i].text);
        char *s = comparison("Q", &constitution.v[0], "a", "b");
        snprintf(
            expected, sizeof expected,
            "Q\n\n### Response (A):\na\n\n### Response (B):\nb\n\n### Question:\n%s Which of the "
            "two is better?\n\n### Answer:\n",
            cases[i].text);
        ck_assert_str_eq(s, expected);
        free(s);
        free(text);
    }
}
END_TEST

START_TEST(the_published_form_is_laid_out_as_published) {
    with_constitution(
        "{\"harmful0\": {\"prompt\": [\"\\n\\nCritiqueRequest: Look.\\n\\nCritique:\"], "
        "\"edit_request\": \"\\n\\nRevisionRequest: Mend.\\n\\nRevision:\"}}");
    Dialogue d = {0};
    Dropped dropped = {0};
    script.line = marked;
    dialogue_begin(&d, 0, 0, "\n\nHuman: Why?\n\nAssistant:");
    converse(&voice, &d, 1, 0, 1, &dropped);
    ck_assert_str_eq(script.prompt[2],
                     "\n\nHuman: Why?\n\nAssistant:Get lost.\n\n### Critique:\nNo problem.\n\n### "
                     "Revision:\nI have done it all myself."
                     "\n\nCritiqueRequest: Look.\n\nCritique:Rude.\n### "
                     "Revision:\nHa!\n\nRevisionRequest: Mend.\n\nRevision:");
    ck_assert_str_eq(d.round[0].principle, "harmful0");
    char text[] = " Well.\nRevisionRequest: more";
    headings_cut(&headings, text);
    ck_assert_str_eq(text, " Well.");
    dialogue_free(&d);
}
END_TEST

/* ---- numbers --------------------------------------------------------------------------------- */

START_TEST(the_loss_is_the_mean_over_all_scored_tokens) {
    // M = 5 tokens in the step, of which this micro-batch has 3: L = (1 + 2 + 0.5) / 5
    const int target[] = {-1, 7, 0, -1, 3};
    const float logp[] = {-9, -1, -2, -9, -0.5f};
    float d[5], unused[5];
    ck_assert_double_eq_tol(cross_entropy(5, target, logp, 5, d), 0.7, 1e-12);
    for (int i = 0; i < 5; i++) {
        float moved[5];
        memcpy(moved, logp, sizeof moved);
        moved[i] += 0.5f;
        const double slope = (cross_entropy(5, target, moved, 5, unused) -
                              cross_entropy(5, target, logp, 5, unused)) /
                             0.5;
        ck_assert_double_eq_tol((double)d[i], slope, 1e-7);
        if (target[i] < 0) ck_assert(d[i] == 0);
    }
}
END_TEST

START_TEST(a_constant_liking_for_the_first_cancels) {
    // p_AB = q + bias, p_BA = (1 - q) + bias: exact in binary fractions
    for (int q = 16; q <= 48; q++)
        for (int bias = -16; bias <= 16; bias++)
            ck_assert(debiased((q + bias) / 64.0, (64 - q + bias) / 64.0) == q / 64.0);
    // and a liking in log-odds never turns the verdict
    for (double d = -3; d <= 3; d += 0.25)
        for (double b = -5; b <= 5; b += 0.5) {
            const double p = debiased(1 / (1 + exp(-(d + b))), 1 / (1 + exp(-(-d + b))));
            ck_assert(d > 0 ? p > 0.5 : d < 0 ? p < 0.5 : fabs(p - 0.5) < 1e-15);
        }
}
END_TEST

START_TEST(labels_sum_to_one_and_mirror) {
    forget();
    args.constitution = "test/tiny/constitution.json";
    constitution_open(args.constitution, &constitution, &headings);
    Error e;
    GPT2 *m = hf_load("test/tiny/chat", true, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    GPT2Limits limits = {.tokens = 600, .sequences = 12, .scored = 64};
    gpt2_reserve(m, &limits);
    Chooser j = {.model = m, .tokenizer = t, .limits = limits, .positions = 256};
    Labelled x[2] = {
        {.prompt = Q, .a = "Of course! Anna likes rice.", .b = "Get lost. Anna likes rice."},
        {.prompt = Q, .a = "Get lost. Anna likes rice.", .b = "Of course! Anna likes rice."}};
    label(&j, x, 2, 1);
    ck_assert(x[0].p_ab > 0 && x[0].p_ab < 1 && x[0].asked == 1);
    ck_assert(x[0].p_ab == x[1].p_ba && x[0].p_ba == x[1].p_ab);  // the same text, so the same bits
    ck_assert_double_eq_tol(x[0].p + x[1].p, 1, 1e-15);
    ck_assert(x[0].p > 0.5);
    // p("A") and p("B") alone share the probability: asked with the labels exchanged, the two sum
    // to one
    char *old[2] = {constitution.option[0], constitution.option[1]};
    constitution.option[0] = old[1];
    constitution.option[1] = old[0];
    Labelled y = {.prompt = Q, .a = x[0].a, .b = x[0].b};
    label(&j, &y, 1, 1);
    ck_assert_double_eq_tol(x[0].p_ab + y.p_ab, 1, 1e-12);
    constitution.option[0] = old[0];
    constitution.option[1] = old[1];
    // all principles: the mean of each alone
    with_constitution(
        "{\"principles\": [{\"critique_request\": \"c\", \"revision_request\": \"r\", "
        "\"comparison\": \"One\"}, {\"critique_request\": \"c\", \"revision_request\": \"r\","
        " \"comparison\": \"Two\"}], \"comparison\": \"{principle}: {prompt} A: {a} B: {b} (\", "
        "\"options\": [\"A)\", \"B)\"]}");
    args.principles = PRINCIPLES_ALL;
    Labelled both = {.prompt = Q, .a = "Yes.", .b = "No."}, one = both, two = both;
    label(&j, &both, 1, 1);
    ck_assert_int_eq(both.asked, 2);
    Constitution whole = constitution;
    constitution.n = 1;
    label(&j, &one, 1, 1);
    constitution.v++;
    label(&j, &two, 1, 1);
    constitution = whole;
    ck_assert(one.p_ab != two.p_ab);
    ck_assert_double_eq_tol(both.p_ab, (one.p_ab + two.p_ab) / 2, 1e-15);
    ck_assert_double_eq_tol(both.p, (one.p + two.p) / 2, 1e-15);
    tokenizer_free(t);
    gpt2_free(m);
}
END_TEST

START_TEST(the_defaults_are_the_published_ones) {
    Run run = {0};
    reset_flags(&run);
    ck_assert(run.learning_rate == 1e-5f && run.num_train_epochs == 3);
    ck_assert(run.warmup_steps == 0 && run.weight_decay == 0);
    ck_assert(run.per_device_train_batch_size == 4 && run.gradient_accumulation_steps == 2);
    ck_assert(chat.temperature == 0.7f && args.critique_temperature == 0.3f &&
              args.revision_temperature == 0.5f);
    ck_assert_int_eq(args.max_iterations, 3);
    ck_assert(strstr(args.stop_phrases, "문제없음") && strstr(args.stop_phrases, "적절함") &&
              strstr(args.stop_phrases, "no problem"));
    ck_assert(!args.regenerate && args.revisions == REVISIONS_LAST &&
              args.principles == PRINCIPLES_RANDOM);
    Error e;
    char *argv[] = {"constitutional",  "--prompts",        "p", "--model", "m", "--regenerate",
                    "--revisions=all", "--max-iterations", "5", NULL};
    ck_assert_msg(run_parse(&run, &constitutional, 9, argv, &e) == 0, "%s", e.text);
    ck_assert(args.regenerate && args.max_iterations == 5 && args.revisions == REVISIONS_ALL);
    ck_assert(strlen(constitutional.about) > 20);
    // without a model and anything to do, the built-in example
    ck_assert_msg(run_parse(&run, &constitutional, 1, argv, &e) == 0, "%s", e.text);
    ck_assert(run.max_steps == 60 && args.prompts && args.breaches && args.evaluate && run.eval);
    run_free(&run);
}
END_TEST

START_TEST(a_flag_without_effect_is_refused) {
    static const struct {
        const char *flags[6];
        bool taken;
    } cases[] = {
        {{"--model=m", "--prompts=p", "--clamp=0.1,0.9"}, false},
        {{"--model=m", "--prompts=p", "--pairs=q"}, false},
        {{"--model=m", "--prompts=p", "--labels=q"}, false},
        {{"--model=m", "--prompts=p", "--breaches=no"}, false},
        {{"--model=m", "--prompts=p", "--eval_samples=2"}, false},
        {{"--model=m", "--evaluate=q", "--max_iterations=2"}, false},
        {{"--model=m", "--prompts=p", "--feedback=f", "--regenerate"}, false},
        {{"--model=m", "--prompts=p", "--feedback=f", "--output=o"}, false},
        {{"--model=m", "--prompts=p", "--feedback=f", "--pairs=q"}, false},
        {{"--model=m", "--feedback=f", "--pairs=q", "--breaches=no"}, false},
        {{"--model=m", "--prompts=p", "--feedback=f", "--clamp=0.1,0.9", "--labels=q"}, true},
        {{"--model=m", "--prompts=p", "--eval=e", "--breaches=no", "--eval_samples=2"}, true},
        {{"--feedback=f", "--clamp=0.1,0.9"}, true},  // of the example's prompts
        {{"--max_iterations=2", "--breaches=no"}, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *argv[8] = {"constitutional"};
        int argc = 1;
        for (; cases[i].flags[argc - 1]; argc++) argv[argc] = (char *)cases[i].flags[argc - 1];
        Run run = {0};
        Error e = {0};
        const int status = run_parse(&run, &constitutional, argc, argv, &e);
        ck_assert_msg((status == 0) == cases[i].taken, "case %zu: %s", i, e.text);
        run_free(&run);
    }
}
END_TEST

/* ---- the program ----------------------------------------------------------------------------- */

/* The program on the built-in model and constitution; what it prints goes to work/NAME.txt. */
static int program(const char *name, const char *more) {
    return shell(
        "%s/constitutional --model test/tiny/chat --constitution test/tiny/constitution.json %s "
        ">%s/%s.txt 2>&1",
        build(), more, work, name);
}

/* Labels two answers to some prompts of the built-in world, into work/FILE. */
static int labelled(const char *name, const char *file, const char *more) {
    char flags_[1024];
    snprintf(flags_, sizeof flags_,
             "--prompts %s/prompts.jsonl --max_new_tokens 48 --generation_batch_size 3 "
             "--feedback %s/%s %s",
             work, work, file, more);
    return program(name, flags_);
}

static int trained(const char *name, const char *more) {
    char flags_[1024];
    snprintf(flags_, sizeof flags_,
             "--prompts %s/prompts.jsonl --stop_phrases 'answer is good' --max_new_tokens 48 "
             "--learning_rate 1e-3 --per_device_train_batch_size 3 --generation_batch_size 3 "
             "--output %s/%s --logging_steps 1 %s",
             work, work, name, more);
    return program(name, flags_);
}

static int same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}

/* The number after the last occurrence of `before` in work/NAME.txt. */
static double printed(const char *name, const char *before) {
    char path[128];
    Str text = {0};
    Error e;
    snprintf(path, sizeof path, "%s/%s.txt", work, name);
    ck_assert(read_file(path, 1 << 20, &text, &e) == 0);
    const char *last = NULL;
    for (const char *p = text.s; (p = strstr(p, before)); p++) last = p;
    ck_assert_msg(last != NULL, "\"%s\" is not in %s:\n%s", before, path, text.s);
    const double x = atof(last + strlen(before));
    free(text.s);
    return x;
}

START_TEST(end_to_end_manners_improve) {
    ck_assert_int_eq(
        shell("%s/constitutional --output %s/example >%s/example.txt 2>&1", build(), work, work),
        0);
    const double before = printed("example", "held-out answers that say one of --breaches  "),
                 after = printed("example", " % -> ");
    ck_assert_msg(before >= 30 && after <= 12,
                  "%g %% of held-out answers were rude before, %g %% after", before, after);
    ck_assert_double_ge(printed("example", "right one is preferred in "), 50);
    // every dialogue is there, and others can read it: as conversations to learn from
    ck_assert_int_eq(
        shell("test $(wc -l <%s/example/transcripts.jsonl) = $(wc -l <test/tiny/prompts.jsonl)",
              work),
        0);
    ck_assert_int_eq(shell("%s/sft --model test/tiny --data %s/example/transcripts.jsonl --strict "
                           "--dry_run | grep -q 'records of kind messages'",
                           build(), work),
                     0);
}
END_TEST

START_TEST(end_to_end_labels_agree_with_the_truth) {
    ck_assert_int_eq(
        shell("%s/constitutional --model test/tiny/chat --constitution test/tiny/constitution.json "
              "--prompts test/tiny/prompts.jsonl --max_new_tokens 48 "
              "--breaches 'silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask "
              "again.|you are so dumb.|what a fool.' "
              "--feedback %s/labels.jsonl >%s/labels.txt 2>&1",
              build(), work, work),
        0);
    ck_assert_double_ge(printed("labels", "agreement with --breaches on "), 40);
    ck_assert_double_ge(printed("labels", "pairs  debiased "), 65);
    // prompt, chosen, rejected, p_chosen from a half to one and in both orders, one pair a line,
    // and no margin
    ck_assert_int_eq(
        shell("! grep -v '^{\"prompt\": \"### Instruction:.*Response:.n\", \"chosen\": \".*\", "
              "\"rejected\": \".*\", \"p_chosen\": [01][.0-9e-]*, "
              "\"p_chosen_first\": [01][.0-9e-]*, \"p_chosen_second\": [01][.0-9e-]*}$' "
              "%s/labels.jsonl",
              work),
        0);
    ck_assert_int_eq(
        shell("awk -F'p_chosen\": ' '{ if ($2 + 0 < 0.5 || $2 + 0 > 1) exit 1 }' %s/labels.jsonl",
              work),
        0);
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    const char *more =
        "--regenerate --num_train_epochs 3 --save_steps 2 --save_total_limit 0 "
        "--keep_moments";  // 3 epochs of 2
                           // steps
    ck_assert_int_eq(trained("whole", more), 0);
    const struct {
        const char *name, *after;  // what is left of it: up to this checkpoint, and this many lines
                                   // of transcripts.jsonl
        int lines;
    } cuts[] = {{"first", "0", 0},       // nothing but the beginning
                {"in_first", "0", 5},    // in the middle of the first dialogues
                {"between", "2", 12},    // a new epoch's dialogues have not begun
                {"in_second", "2", 17},  // in the middle of the second
                {"after", "2",
                 36}};  // the run went on to the third epoch, and all after the checkpoint is lost
    char flags_[512];
    snprintf(flags_, sizeof flags_, "%s --resume", more);
    for (int i = 0; i < 5; i++) {
        const char *name = cuts[i].name;
        ck_assert_int_eq(shell("cp -r %s/whole %s/%s && cd %s/%s && rm -r model.safetensors && for "
                               "c in checkpoint-*; do [ ${c#*-} -le %s ] || rm -r $c; done && "
                               "head -n %d transcripts.jsonl >t && mv t transcripts.jsonl && "
                               "printf '{\"epoch\": 0, \"id\"' >>transcripts.jsonl",
                               work, work, name, work, name, cuts[i].after, cuts[i].lines),
                         0);
        ck_assert_int_eq(trained(name, flags_), 0);
        const char *files[] = {"model.safetensors", "checkpoint-6/state.safetensors", "log.jsonl",
                               "transcripts.jsonl"};
        for (int k = 0; k < 4; k++) {
            char a[128], b[128];
            snprintf(a, sizeof a, "whole/%s", files[k]);
            snprintf(b, sizeof b, "%s/%s", name, files[k]);
            ck_assert_msg(same(a, b), "%s differs", b);
        }
    }
    // without the dialogues that the model of this checkpoint no longer holds, it says so
    ck_assert_int_eq(
        trained("odd", "--num_train_epochs 3 --save_steps 1 --save_total_limit 0 --keep_moments"),
        0);
    ck_assert_int_eq(shell("cd %s/odd && rm -r checkpoint-[3-6] model.safetensors && head -n 3 "
                           "transcripts.jsonl >t && mv t transcripts.jsonl && "
                           "printf '{\"epoch\": 0, \"id\"' >>transcripts.jsonl && "
                           "cp transcripts.jsonl ../odd-transcripts.jsonl",
                           work),
                     0);
    ck_assert_int_eq(
        trained("odd", "--num_train_epochs 3 --save_steps 1 --save_total_limit 0 --resume"), 2);
    ck_assert_int_eq(shell("grep -q 'not in .*transcripts.jsonl' %s/odd.txt", work), 0);
    ck_assert(same("odd/transcripts.jsonl", "odd-transcripts.jsonl"));  // and changes nothing
    ck_assert_int_eq(trained("odd",
                             "--num_train_epochs 3 --save_steps 1 --save_total_limit 0 --resume "
                             "--learning_rate 1e-4"),
                     2);
    ck_assert(same("odd/transcripts.jsonl", "odd-transcripts.jsonl"));
}
END_TEST

START_TEST(an_interrupted_run_goes_on_to_the_same_bits) {
    // a signal while the dialogues are held: it ends with 143, and a resume continues. Not SIGINT,
    // which a shell makes its background processes ignore
    ck_assert_int_eq(trained("calm", "--num_train_epochs 1"), 0);
    const int status = shell(
        "(%s/constitutional --model test/tiny/chat --constitution test/tiny/constitution.json "
        "--prompts %s/prompts.jsonl --stop_phrases 'answer is good' "
        "--max_new_tokens 48 --learning_rate 1e-3 --per_device_train_batch_size 3 "
        "--generation_batch_size 1 --output %s/signal --logging_steps 1 "
        "--num_train_epochs 1 >%s/signal.txt 2>&1 & p=$!; while [ ! -s %s/signal/transcripts.jsonl "
        "] && kill -0 $p; do sleep 0.02; done; kill -TERM $p; wait $p)",
        build(), work, work, work, work);
    ck_assert_msg(status == 143 || status == 0, "it ended with %d",
                  status);  // 0: the signal came too late
    if (status)
        ck_assert_int_eq(
            trained("signal", "--num_train_epochs 1 --generation_batch_size 1 --resume"), 0);
    ck_assert(same("calm/model.safetensors", "signal/model.safetensors"));
    ck_assert(same("calm/transcripts.jsonl", "signal/transcripts.jsonl"));
}
END_TEST

START_TEST(neither_threads_nor_batches_change_a_bit) {
    setenv("OMP_NUM_THREADS", "1", 1);
    ck_assert_int_eq(trained("one", "--num_train_epochs 1 --revisions all"), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    ck_assert_int_eq(
        trained("three", "--num_train_epochs 1 --revisions all --generation_batch_size 7"), 0);
    unsetenv("OMP_NUM_THREADS");
    ck_assert(same("one/model.safetensors", "three/model.safetensors"));
    ck_assert(same("one/transcripts.jsonl", "three/transcripts.jsonl"));
    // the labels, too
    ck_assert_int_eq(labelled("one", "one.jsonl", ""), 0);
    ck_assert_int_eq(labelled("two", "two.jsonl", "--generation_batch_size 5"), 0);
    ck_assert(same("one.jsonl", "two.jsonl"));
}
END_TEST

START_TEST(helpful_records_are_mixed_in) {
    ck_assert_int_eq(trained("mixed", "--num_train_epochs 1 --data test/tiny/sft-eval.jsonl"), 0);
    ck_assert_int_eq(shell("grep -q '72 records to mix in' %s/mixed.txt && ! cmp -s "
                           "%s/mixed/model.safetensors %s/one/model.safetensors",
                           work, work, work),
                     0);
}
END_TEST

START_TEST(the_clamp_and_the_wrong_clamp) {
    ck_assert_int_eq(labelled("clamped", "clamped.jsonl", "--clamp 0.45,0.55"), 0);
    ck_assert_int_eq(shell("test -s %s/clamped.jsonl && awk -F'p_chosen\": ' '{ if ($2 + 0 < 0.5 "
                           "|| $2 + 0 > 0.5500001) exit 1 }' %s/clamped.jsonl",
                           work, work),
                     0);
    // the wrong one, before the prompts are read
    ck_assert_int_eq(labelled("wrong", "wrong.jsonl", "--clamp 0.6,0.9 --prompts /nowhere"), 2);
    ck_assert_int_eq(shell("grep -q -- '--clamp 0.6,0.9' %s/wrong.txt", work), 0);
    ck_assert_int_ne(shell("test -e %s/wrong.jsonl", work), 0);
}
END_TEST

START_TEST(labels_from_elsewhere_arrive_as_soft_labels) {
    char more[512];
    ck_assert_int_eq(labelled("own", "own.jsonl", ""), 0);
    // somebody else labels the same pairs, in another order, the answers turned round
    ck_assert_int_eq(
        shell("sed 's/\"chosen\": \\(.*\\), \"rejected\": \\(.*\\), \"p_chosen\": .*}/\"chosen\": "
              "\\2, \"rejected\": \\1, \"p_chosen\": 0.3125}/' %s/own.jsonl | tac >%s/given.jsonl",
              work, work),
        0);
    snprintf(more, sizeof more, "--labels %s/given.jsonl", work);
    ck_assert_int_eq(labelled("labelled", "labelled.jsonl", more), 0);
    Records own, r;
    Error e;
    char path[128];
    snprintf(path, sizeof path, "%s/own.jsonl", work);
    ck_assert_msg(pairs_read(path, NULL, true, &own, &e) == 0, "%s", e.text);
    snprintf(path, sizeof path, "%s/labelled.jsonl", work);
    ck_assert_msg(pairs_read(path, NULL, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, own.n);
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    Pairs pairs;  // what reward.c trains on
    pairs_build(&pairs, &r, t, 257);
    ck_assert_int_eq(pairs.n, r.n);
    for (int i = 0; i < r.n; i++) {
        ck_assert(own.v[i].p_chosen >= 0.5f && own.v[i].p_chosen < 1);
        ck_assert(pairs.p_chosen[i] == 0.6875f && pairs.margin[i] == 0);
        ck_assert_str_eq(r.v[i].spans[1].text, own.v[i].spans[1].text);
    }
    pairs_free(&pairs);
    records_free(&own);
    records_free(&r);
    tokenizer_free(t);
    // pairs of known order: the labels agree with it
    snprintf(more, sizeof more,
             "--feedback %s/pairs.jsonl --pairs test/tiny/preferences-eval.jsonl", work);
    ck_assert_int_eq(program("pairs", more), 0);
    ck_assert_double_ge(printed("pairs", "pairs  debiased "), 65);
}
END_TEST

START_TEST(bad_input_ends_with_2_and_leaves_no_output) {
    ck_assert_int_eq(trained("bad", "--constitution /nowhere"), 2);
    ck_assert_int_eq(trained("bad", "--constitution test/tiny/prompts.jsonl"), 2);
    ck_assert_int_eq(trained("bad", "--prompts /nowhere"), 2);
    ck_assert_int_eq(
        trained("bad",
                "--prompts test/tiny/multiple-choice.jsonl --evaluate test/tiny/prompts.jsonl"),
        2);
    ck_assert_int_eq(trained("bad", "--model /nowhere"), 2);
    ck_assert_int_eq(trained("bad", "--principles some"), 2);
    ck_assert_int_eq(trained("bad", "--max_iterations -1"), 2);
    ck_assert_int_eq(trained("bad", "--pairs test/tiny/prompts.jsonl"), 2);
    ck_assert_int_ne(shell("test -e %s/bad/model.safetensors", work), 0);
    ck_assert_int_eq(
        shell("%s/constitutional --model test/tiny/chat >%s/bad.txt 2>&1", build(), work), 2);
    // nothing to learn from: no dialogue has room for a critique
    ck_assert_int_eq(shell("head -2 test/tiny/prompts.jsonl >%s/two.jsonl && %s/constitutional "
                           "--model test/tiny/chat --prompts %s/two.jsonl --max_length 60 "
                           "--max_new_tokens 20 --max_steps 1 --output %s/bad >%s/bad.txt 2>&1",
                           work, build(), work, work, work),
                     1);
    ck_assert_int_eq(shell("grep -q 'no dialogue produced a revision to train on' %s/bad.txt && ! "
                           "test -e %s/bad/model.safetensors",
                           work, work),
                     0);
}
END_TEST

START_TEST(a_dry_run_writes_nothing_and_shows_the_layout) {
    ck_assert_int_eq(trained("dry", "--dry_run"), 0);
    ck_assert_int_ne(shell("test -e %s/dry", work), 0);
    ck_assert_int_eq(
        shell("grep -q '«critique»' %s/dry.txt && grep -q moments %s/dry.txt", work, work), 0);
}
END_TEST

START_TEST(a_dry_run_of_feedback_shows_the_comparison) {
    char more[512];
    ck_assert_int_eq(
        shell("echo '[{\"critique_request\": \"CritiqueRequest: Find harm.\", "
              "\"revision_request\": \"R\"}]' >%s/requests.json && echo '{\"prompt\": \"Why?\", "
              "\"chosen\": \"So.\", \"rejected\": \"No.\"}' >%s/pairs.jsonl",
              work, work),
        0);
    snprintf(more, sizeof more,
             "--pairs %s/pairs.jsonl --constitution %s/requests.json --feedback %s/none --dry_run",
             work, work, work);
    ck_assert_int_eq(program("compare", more), 0);
    ck_assert_int_eq(
        shell("tr '\\n' '|' <%s/compare.txt | grep -q 'Why?||### Response (A):|So.||### Response "
              "(B):|No.||### Question:|Find harm. Which of the two is better?||### "
              "Answer:|«(A) or (B)»' && test ! -e %s/none",
              work, work),
        0);
    snprintf(more, sizeof more, "--pairs %s/pairs.jsonl --feedback %s/none --learning_rate 1e-4",
             work, work);
    ck_assert_int_eq(program("compare", more), 2);
    ck_assert_int_eq(
        shell("grep -q -e '--learning_rate has no effect with --feedback' %s/compare.txt", work),
        0);
}
END_TEST

START_TEST(a_skipped_line_is_reported_with_its_reason) {
    ck_assert_int_eq(shell("(head -n 1 test/tiny/prompts.jsonl; echo '{\"prompt\": 1}') "
                           ">%s/skipped.jsonl",
                           work),
                     0);
    char more[256];
    snprintf(more, sizeof more, "--prompts %s/skipped.jsonl --dry_run", work);
    ck_assert_int_eq(program("skipped", more), 0);
    ck_assert_int_eq(
        shell("grep -q 'skipped.jsonl: 1 prompt$' %s/skipped.txt && "
              "grep -q 'skipped 1 of 2 lines, because it is no prompt' %s/skipped.txt && "
              "grep -q 'skipped.jsonl:2:' %s/skipped.txt",
              work, work, work),
        0);
}
END_TEST

START_TEST(evaluation_alone_needs_no_prompts) {
    ck_assert_int_eq(shell("%s/constitutional --model test/tiny/chat --evaluate "
                           "test/tiny/multiple-choice.jsonl >%s/choice.txt 2>&1",
                           build(), work),
                     0);
    ck_assert_double_ge(printed("choice", "right one is preferred in "), 55);
    ck_assert_double_eq(printed("choice", "always the first option: "), 50);
}
END_TEST

int main(void) {
    // the program's own; tested in it
    (void)check_flags;
    (void)read_files;
    (void)limits_of;
    (void)hold_dialogues;
    (void)add_gradients;
    (void)keep_before;
    (void)measure_before;
    (void)measure_after;
    (void)feedback;
    (void)free_files;
    if (!mkdtemp(work) || shell("head -n 12 test/tiny/prompts.jsonl >%s/prompts.jsonl", work))
        return 1;
    Suite *s = suite_create("constitutional");
    TCase *c = tcase_create("procedure");
    tcase_add_test(c, a_critique_that_finds_nothing_ends_it_at_once);
    tcase_add_test(c, it_ends_in_round_two);
    tcase_add_test(c, it_ends_when_the_rounds_are_used);
    tcase_add_test(c, an_empty_critique_is_no_praise);
    tcase_add_test(c, a_critique_that_repeats_what_it_was_given_is_none);
    tcase_add_test(c, inappropriate_does_not_say_appropriate);
    tcase_add_test(c, a_text_that_plays_the_other_parts_is_cut);
    tcase_add_test(c, an_empty_revision_leaves_the_answer_that_stands);
    tcase_add_test(c, dialogues_go_on_together_and_drop_out_one_by_one);
    tcase_add_test(c, earlier_rounds_stay_in_sight_on_request);
    tcase_add_test(c, few_shot_dialogues_go_first_then_the_oldest_rounds);
    tcase_add_test(c, without_room_a_dialogue_ends_and_says_so);
    tcase_add_test(c, the_built_in_world_gets_the_texts_its_model_was_trained_on);
    tcase_add_test(c, plain_principles_in_both_languages_get_our_layout);
    tcase_add_test(c, principles_are_drawn_or_taken_in_turn);
    tcase_add_test(c, requests_are_compared_by_their_text);
    tcase_add_test(c, the_published_form_is_laid_out_as_published);
    tcase_add_test(c, the_loss_is_the_mean_over_all_scored_tokens);
    tcase_add_test(c, a_constant_liking_for_the_first_cancels);
    tcase_add_test(c, labels_sum_to_one_and_mirror);
    tcase_add_test(c, the_defaults_are_the_published_ones);
    tcase_add_test(c, a_flag_without_effect_is_refused);
    suite_add_tcase(s, c);
    c = tcase_create("program");
    tcase_set_timeout(c, 1200);
    tcase_add_test(c, end_to_end_manners_improve);
    tcase_add_test(c, end_to_end_labels_agree_with_the_truth);
    tcase_add_test(c, a_resumed_run_has_the_bits_of_an_uninterrupted_one);
    tcase_add_test(c, an_interrupted_run_goes_on_to_the_same_bits);
    tcase_add_test(c, neither_threads_nor_batches_change_a_bit);
    tcase_add_test(c, helpful_records_are_mixed_in);
    tcase_add_test(c, the_clamp_and_the_wrong_clamp);
    tcase_add_test(c, labels_from_elsewhere_arrive_as_soft_labels);
    tcase_add_test(c, bad_input_ends_with_2_and_leaves_no_output);
    tcase_add_test(c, a_dry_run_writes_nothing_and_shows_the_layout);
    tcase_add_test(c, a_dry_run_of_feedback_shows_the_comparison);
    tcase_add_test(c, a_skipped_line_is_reported_with_its_reason);
    tcase_add_test(c, evaluation_alone_needs_no_prompts);
    suite_add_tcase(s, c);
    const int failed = run_suite(s);
    for (int i = 0; i < script.n; i++) free(script.prompt[i]);
    constitution_free(&constitution);
    headings_free(&headings);
    shell("rm -rf %s", work);
    return failed != 0;
}
