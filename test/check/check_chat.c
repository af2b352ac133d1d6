/*
 * check_chat.c - answers from a model: characters as they come, the template that is chosen,
 * conversations that grow too long, and every program's --prompt and --chat as people use them, on
 * the built-in models.
 */
#include "run/chat.c"  // for a look inside

#include "terminal.h"

#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#undef fail
#include <check.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static char work[64] = "/tmp/check_chat.XXXXXX";  // where the runs write

/* ---- characters ------------------------------------------------------------------------------ */

/* The n bytes at s one at a time, as tokens bring them; after[i], unless NULL: how much text is
 * shown after i bytes. */
static char *stream(const char *s, size_t n, size_t *after) {
    Str bytes = {0}, text = {0};
    str_add(&text, "", 0);
    for (size_t i = 0; i < n; i++) {
        if (after) after[i] = text.n;
        str_add(&bytes, s + i, 1);
        utf8_stream(&bytes, false, &text);
    }
    if (after) after[n] = text.n;
    utf8_stream(&bytes, true, &text);
    ck_assert_uint_eq(bytes.n, 0);
    free(bytes.s);
    return text.s;
}

START_TEST(half_a_character_waits) {
    // a; e acute in 2 bytes; a syllable of Hangul in 3; a face in 4; z
    const char text[] = "a\xc3\xa9\xec\x95\x88\xf0\x9f\x98\x80z";
    const size_t shown[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11};
    size_t after[sizeof text];
    char *all = stream(text, sizeof text - 1, after);
    for (size_t n = 0; n < sizeof text; n++) ck_assert_uint_eq(after[n], shown[n]);
    ck_assert_str_eq(all, text);
    free(all);
}
END_TEST

START_TEST(tokens_that_split_a_character_show_it_whole) {
    // the built-in tokenizer has a token a byte: each of these characters is split into three or
    // four
    Error e;
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    const char *const text = "\xec\x95\x88\xeb\x85\x95 \xf0\x9f\x98\x80!";
    Ints tokens = {0};
    tokenizer_encode(t, text, strlen(text), true, &tokens);
    ck_assert_uint_eq(tokens.n, strlen(text));
    char path[128], got[64] = "";
    snprintf(path, sizeof path, "%s/shown", work);
    fflush(stdout);
    int keep = dup(STDOUT_FILENO), file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    dup2(file, STDOUT_FILENO);
    Stream s = {.tokenizer = t};
    long length[16];
    for (size_t i = 0; i < tokens.n; i++) {
        show_token(&s, 0, tokens.v[i]);
        length[i] = lseek(file, 0, SEEK_END);
    }
    show_token(&s, 0, tokenizer_eos(t));  // which is not shown
    show(&s, true);
    dup2(keep, STDOUT_FILENO);
    const long wanted[] = {0, 0, 3, 3, 3, 6, 7, 7, 7, 7, 11, 12};
    for (size_t i = 0; i < tokens.n; i++) ck_assert_int_eq(length[i], wanted[i]);
    ck_assert_int_eq(pread(file, got, sizeof got - 1, 0), (ssize_t)strlen(text));
    ck_assert_str_eq(got, text);
    close(keep);
    close(file);
    free(tokens.v);
    free(s.bytes.s);
    tokenizer_free(t);
}
END_TEST

START_TEST(bytes_that_are_no_character_are_shown_as_the_libraries_show_them) {
    // Python's bytes.decode("utf8", "replace"), and the tokenizers library's ByteLevel decoder,
    // which agrees; ? is U+FFFD here
    static const struct {
        const char *bytes, *text;
    } golden[] = {
        {"\x80", "?"},
        {"a\xbf"
         "b",
         "a?b"},
        {"\xc0\x80", "??"},
        {"\xc3", "?"},
        {"\xc3"
         "a",
         "?a"},
        {"\xe2\x82", "?"},
        {"\xe2\x82"
         "a",
         "?a"},
        {"\xe2\x28\xa1", "?(?"},
        {"\xe0\x80\x80", "???"},
        {"\xed\xa0\x80", "???"},
        {"\xf0\x9f\x98", "?"},
        {"\xf0\x9f\x98z", "?z"},
        {"\xf0\x80\x80\x80", "????"},
        {"\xf4\x90\x80\x80", "????"},
        {"\xf5\x80", "??"},
        {"\xff\xfe", "??"},
        {"\xf0\x9f\x98\xf0\x9f\x98\x80", "?\xf0\x9f\x98\x80"},
        {"\xea\xb0\xea\xb0\x80", "?\xea\xb0\x80"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
         "A",
         "????A"},
    };
    for (int i = 0; i < COUNT(golden); i++) {
        Str wanted = {0}, bytes = {0}, at_once = {0};
        for (const char *c = golden[i].text; *c; c++)
            *c == '?' ? str_add(&wanted, "\xEF\xBF\xBD", 3) : str_add(&wanted, c, 1);
        char *streamed = stream(golden[i].bytes, strlen(golden[i].bytes), NULL);
        ck_assert_str_eq(streamed, wanted.s);
        str_add(&bytes, golden[i].bytes, strlen(golden[i].bytes));
        utf8_stream(&bytes, true, &at_once);
        ck_assert_str_eq(at_once.s, wanted.s);
        free(wanted.s);
        free(bytes.s);
        free(at_once.s);
        free(streamed);
    }
}
END_TEST

START_TEST(what_is_shown_does_not_depend_on_how_the_bytes_come) {
    for (uint32_t k = 0; k < 2000; k++) {  // bytes around the edges of UTF-8, in pieces of 1 to 4
        static const unsigned char edges[] = {0x7F, 0x80, 0xBF, 0x8F, 0x90, 0x9F, 0xA0, 0xC1, 0xC2,
                                              0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5};
        char s[12];
        for (uint32_t i = 0; i < sizeof s; i++)
            s[i] = (char)edges[random4(3, RANDOM_DATA, k, 0, i, 0).v[0] % sizeof edges];
        char *one = stream(s, sizeof s, NULL);
        Str bytes = {0}, text = {0}, repaired = {0};
        for (size_t at = 0, n; at < sizeof s; at += n) {
            n = 1 + random4(3, RANDOM_DATA, k, 1, (uint32_t)at, 0).v[0] % 4;
            if (n > sizeof s - at) n = sizeof s - at;
            str_add(&bytes, s + at, n);
            utf8_stream(&bytes, false, &text);
        }
        utf8_stream(&bytes, true, &text);
        ck_assert_str_eq(text.s, one);
        str_add(&repaired, text.s, text.n);
        text_repair(&repaired, 0);  // it is UTF-8: there is nothing to repair
        ck_assert_str_eq(repaired.s, text.s);
        free(one);
        free(bytes.s);
        free(text.s);
        free(repaired.s);
    }
}
END_TEST

/* ---- the template ---------------------------------------------------------------------------- */

static const char *in_work(const char *name) {
    static char path[4][160];
    static int next;
    snprintf(path[next = (next + 1) % 4], sizeof path[0], "%s/%s", work, name);
    return path[next];
}

static void put(const char *name, const char *text) {
    FILE *f = fopen(in_work(name), "w");
    ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

static void is_template(const char *given, const char *adapter, const char *dir,
                        const char *wanted) {
    char *t = chat_template(given, adapter, dir, NULL);
    if (wanted)
        ck_assert_str_eq(t ? t : "(none)", wanted);
    else
        ck_assert(!t);
    free(t);
}

START_TEST(the_template_is_the_first_that_is_named) {
    Error e;
    ck_assert_int_eq(shell("mkdir -p %s/none %s/own %s/adapter %s/dialogpt %s/tuned", work, work,
                           work, work, work),
                     0);
    ck_assert_int_eq(
        shell(
            "cp test/tiny/chat/config.json %s/none/ && sed 's/\"n_ctx\"/\"task_specific_params\": "
            "{\"conversational\": {\"max_length\": 1000}}, \"n_ctx\"/' "
            "test/tiny/chat/config.json >%s/dialogpt/config.json && cp %s/dialogpt/config.json "
            "%s/tuned/",
            work, work, work, work),
        0);
    // gpt2's own config.json has task_specific_params, too, and is no DialoGPT's
    ck_assert_int_eq(
        shell("sed 's/\"n_ctx\"/\"task_specific_params\": {\"text-generation\": {\"max_length\": "
              "50}}, \"n_ctx\"/' test/tiny/chat/config.json >%s/own/config.json",
              work),
        0);
    is_template(NULL, NULL, in_work("own"), NULL);
    put("own/template.txt", "Q: {instruction}\\nA:\n");
    put("tuned/template.txt", "T: {instruction}\n");
    put("adapter/template.txt", "[{instruction}]\n");
    is_template(NULL, NULL, in_work("none"), NULL);
    is_template(NULL, NULL, in_work("own"), "Q: {instruction}\\nA:");
    is_template(NULL, in_work("adapter"), in_work("own"), "[{instruction}]");
    is_template(NULL, in_work("none"), in_work("own"), "Q: {instruction}\\nA:");
    is_template("{instruction}!", in_work("adapter"), in_work("own"), "{instruction}!");
    is_template(NULL, NULL, in_work("dialogpt"), "{instruction}<|endoftext|>");
    is_template(NULL, NULL, in_work("tuned"),
                "T: {instruction}");  // what it was tuned to afterwards
    char *unread;
    const char *from;
    ck_assert_int_eq(shell("printf 'a\\0b {instruction}' >%s/none/template.txt", work), 0);
    ck_assert_int_eq(usage_template(in_work("none"), END_OF_TEXT, &unread, &from, NULL, &e), -1);
    ck_assert(strstr(e.text, "none/template.txt") && !unread);
}
END_TEST

/* ---- a conversation that grows too long ------------------------------------------------------ */

static Chat conversation(int positions, int max_new_tokens, int asked, int n, const int *lengths) {
    Chat t = {.positions = positions, .max_new_tokens = max_new_tokens};
    for (int i = 0; i < n; i++) {
        ints_push(&t.turns, (int)t.said.n);
        for (int k = 0; k < lengths[i]; k++) ints_push(&t.said, 100 * i + k);
    }
    for (int k = 0; k < asked; k++) ints_push(&t.next, -1);
    return t;
}

START_TEST(whole_turns_go_from_the_front) {
    // room for 40 tokens and the one that is only written: 10 + 10 + 10 said, asked 5, an answer of
    // 6 takes 41: it fits; one token more does not
    static const struct {
        int asked, max_new_tokens, cut;
    } cases[] = {{5, 6, 0},  {6, 6, 1},    {15, 6, 1}, {16, 6, 2}, {26, 6, 3},
                 {40, 6, 3}, {5, 1000, 1}, {1, 20, 0}, {2, 20, 2}};
    const int lengths[] = {10, 10, 10};
    for (int i = 0; i < COUNT(cases); i++) {
        const int reserve = cases[i].max_new_tokens < 20 ? cases[i].max_new_tokens
                                                         : 20;  // at most half of the positions
        Chat t = conversation(40, cases[i].max_new_tokens, cases[i].asked, 3, lengths);
        int cut = 0;  // by definition: the fewest turns that make it fit
        while (cut < 3 && (3 - cut) * 10 + cases[i].asked + reserve > 41) cut++;
        const int keep = dup(STDERR_FILENO),
                  file = open(in_work("notes"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        dup2(file, STDERR_FILENO);
        forget(&t);
        dup2(keep, STDERR_FILENO);
        close(keep);
        close(file);
        ck_assert_int_eq(t.forgotten, cut);
        ck_assert_uint_eq(t.turns.n, (size_t)(3 - cut));
        ck_assert_uint_eq(t.said.n, (size_t)(3 - cut) * 10);
        for (int k = 0; k < (int)t.turns.n; k++) {
            ck_assert_int_eq(t.turns.v[k], 10 * k);
            ck_assert_int_eq(t.said.v[10 * k], 100 * (k + cut));
        }
        ck_assert_int_eq(
            shell("grep -q 'first %d turns\\? [ia][sr]e\\? forgotten' %s", cut, in_work("notes")),
            cut ? 0 : 1);
        free(t.said.v);
        free(t.turns.v);
        free(t.next.v);
    }
}
END_TEST

/* What the template has before the first turn stays, unless the next turn needs its room. */
START_TEST(the_head_of_a_conversation_stays) {
    static const struct {
        int asked, turns, said;
    } cases[] = {{5, 3, 30}, {6, 2, 24}, {12, 1, 14}, {26, 0, 4}, {32, 0, 0}};
    const int lengths[] = {10, 10, 10};
    for (int i = 0; i < COUNT(cases); i++) {
        Chat t = conversation(40, 6, cases[i].asked, 3, lengths);
        t.head = 4;
        forget(&t);
        ck_assert_uint_eq(t.turns.n, (size_t)cases[i].turns);
        ck_assert_uint_eq(t.said.n, (size_t)cases[i].said);
        for (int k = 0; k < 4 && t.said.n; k++) ck_assert_int_eq(t.said.v[k], k);
        for (int k = 3 - cases[i].turns; k < 3 && cases[i].turns < 3; k++)
            ck_assert_int_eq(t.said.v[t.turns.v[k - 3 + cases[i].turns]], 100 * k);
        free(t.said.v);
        free(t.turns.v);
        free(t.next.v);
    }
}
END_TEST

/* ---- the programs ---------------------------------------------------------------------------- */

/* Runs a stage with flags and an input; NAME.out and NAME.err are what it wrote. Returns its exit
 * status. */
__attribute__((format(printf, 4, 5))) static int talk(const char *name, const char *stage,
                                                      const char *input, const char *format, ...) {
    char flags[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(flags, sizeof flags, format, list);
    va_end(list);
    put("input", input);
    return shell("%s/%s %s <%s/input >%s/%s.out 2>%s/%s.err", build(), stage, flags, work, work,
                 name, work, name);
}

/* What a run wrote on stdout. To be freed. */
static char *output(const char *name) {
    char path[160];
    Str text = {0};
    Error e;
    snprintf(path, sizeof path, "%s/%s.out", work, name);
    ck_assert_int_eq(read_file(path, 1 << 20, &text, &e), 0);
    return text.s;
}

static bool same(const char *a, const char *b) {
    return shell("cmp -s %s/%s.out %s/%s.out", work, a, work, b) == 0;
}
static bool notes(const char *name, const char *text) {
    return shell("grep -q -- '%s' %s/%s.err", text, work, name) == 0;
}

static void is_text(const char *name) {  // whole characters only
    char *text = output(name);
    Str repaired = {0};
    str_add(&repaired, text, strlen(text));
    text_repair(&repaired, 0);
    ck_assert_str_eq(text, repaired.s);
    free(text);
    free(repaired.s);
}

static const char *const talkers[] = {"sft", "full_ft", "ppo", "constitutional"};
static const char *const adapters[] = {"lora", "adapter"};

/* The model flags that a stage needs with --prompt. */
static const char *model_of(const char *stage) {
    static char flags[512];
    snprintf(flags, sizeof flags, "--model test/tiny/chat");
    if (!strcmp(stage, "lora") || !strcmp(stage, "adapter"))
        snprintf(flags, sizeof flags, "--model test/tiny --adapter %s/%s.trained", work, stage);
    return flags;
}

/* The answer by its definition: the whole text forward, its likeliest next token, again. */
static char *greedy(const char *dir, const char *rendered, int max_new_tokens) {
    Error e;
    Tokenizer *t = tokenizer_load(dir, &e);
    GPT2 *m = hf_load(dir, true, &e);
    ck_assert_msg(t && m, "%s", e.text);
    Ints tokens = {0};
    tokenizer_encode(t, rendered, strlen(rendered), true, &tokens);
    const GPT2Limits limits = {
        .tokens = (int)tokens.n + max_new_tokens, .sequences = 1, .scored = 1};
    gpt2_reserve(m, &limits);
    Str text = {0};
    str_add(&text, "", 0);
    for (int i = 0; i < max_new_tokens; i++) {
        const int N = (int)tokens.n, start[] = {0, N};
        const Batch batch = {.S = 1, .N = N, .start = start, .tokens = tokens.v};
        int *target = xmalloc(sizeof(int) * (size_t)N * 2), *best = target + N;
        float *logp = xmalloc(sizeof(float) * (size_t)N * 2);
        for (int k = 0; k < N; k++) target[k] = k == N - 1 ? 0 : -1;
        gpt2_forward(m, &batch, NULL);
        gpt2_logprob(m, target, 1, logp, logp + N, best);
        const int next = best[N - 1];
        free(target);
        free(logp);
        if (next == tokenizer_eos(t)) break;
        ints_push(&tokens, next);
        tokenizer_decode(t, &next, 1, &text);
    }
    str_add(&text, "\n", 1);
    free(tokens.v);
    gpt2_free(m);
    tokenizer_free(t);
    return text.s;
}

START_TEST(every_program_answers) {
    const char *question = "--prompt 'What pet does Anna have?'";
    char *wanted = greedy("test/tiny/chat",
                          "### Instruction:\nWhat pet does Anna have?\n\n### Response:\n", 40);
    ck_assert_uint_gt(strlen(wanted), 10);
    for (int i = 0; i < COUNT(talkers) + COUNT(adapters); i++) {
        const char *stage = i < COUNT(talkers) ? talkers[i] : adapters[i - COUNT(talkers)],
                   *model = model_of(stage);
        ck_assert_int_eq(
            talk("greedy", stage, "", "%s %s --temperature 0 --max_new_tokens 40", model, question),
            0);
        ck_assert_int_eq(
            talk("likeliest", stage, "",
                 "%s %s --temperature 3 --top_k 1 --max_new_tokens 40 --seed 9", model, question),
            0);
        ck_assert_int_eq(talk("nucleus", stage, "",
                              "%s %s --temperature 3 --top_p 1e-6 --max_new_tokens 40 --seed 9",
                              model, question),
                         0);
        ck_assert_msg(same("greedy", "likeliest") && same("greedy", "nucleus"), "%s", stage);
        ck_assert_int_eq(talk("chat", stage, "What pet does Anna have?\n",
                              "%s --chat --temperature 0 --max_new_tokens 40", model),
                         0);
        ck_assert_msg(same("greedy", "chat"), "%s", stage);
        if (i < COUNT(talkers)) {
            char *said = output("greedy");
            ck_assert_str_eq(said, wanted);
            free(said);
        }
        // one seed, one answer; another seed another, the text being a long one at a high
        // temperature
        ck_assert_int_eq(talk("one", stage, "", "%s %s --temperature 2 --seed 5", model, question),
                         0);
        ck_assert_int_eq(
            talk("again", stage, "", "%s %s --temperature 2 --seed 5", model, question), 0);
        ck_assert_int_eq(
            talk("other", stage, "", "%s %s --temperature 2 --seed 6", model, question), 0);
        ck_assert_msg(same("one", "again") && !same("one", "other"), "%s", stage);
        is_text("one");
        is_text("other");
    }
    free(wanted);
}
END_TEST

START_TEST(an_adapter_answers_like_the_model_it_is_merged_into) {
    const char *ask = "--prompt 'What is the job of Nora?' --temperature 0 --max_new_tokens 40";
    ck_assert_int_eq(talk("added", "lora", "", "%s %s", model_of("lora"), ask), 0);
    ck_assert_int_eq(talk("merge", "lora", "", "%s --merge %s/merged", model_of("lora"), work), 0);
    ck_assert_int_eq(talk("merged", "sft", "", "--model %s/merged %s", work, ask), 0);
    ck_assert(same("added", "merged"));
    ck_assert(!notes("merged", "template"));  // the merged directory says in which one
    ck_assert_int_eq(talk("base", "sft", "",
                          "--model test/tiny --template '### Instruction:\\n{instruction}\\n\\n### "
                          "Response:\\n' %s",
                          ask),
                     0);
    ck_assert(!same("added", "base"));
}
END_TEST

START_TEST(a_run_writes_the_template_with_its_model) {
    ck_assert_int_eq(shell("cmp %s/lora.trained/template.txt test/tiny/chat/template.txt", work),
                     0);
    ck_assert_int_eq(shell("cmp %s/adapter.trained/template.txt test/tiny/chat/template.txt", work),
                     0);
    // by the kind of the records: a template that is given; a summary's own; complete prompts;
    // plain text, which leaves what the model had
    static const char *const said[][3] = {
        {"test/tiny/sft.jsonl", "--template 'Q: {instruction}\n\\tA:'", "Q: {instruction}\\n\\tA:"},
        {"test/tiny/summaries.jsonl", "",
         "Summarize the following text.\\n\\n{instruction}\\n\\nSummary:\\n"},
        {"complete.jsonl", "", "{instruction}"},
        {"plain.jsonl", "",
         "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n"},
    };
    ck_assert_int_eq(shell("echo '{\"prompt\": \"a\", \"completion\": \"b\"}' >%s/complete.jsonl; "
                           "echo '{\"text\": \"abc\"}' >%s/plain.jsonl",
                           work, work),
                     0);
    for (int i = 0; i < COUNT(said); i++) {
        ck_assert_int_eq(
            shell("rm -rf %s/made; %s/sft --model test/tiny/chat --data %s --max_steps 1 "
                  "--eval_samples 0 "
                  "--validation_split_percentage 0 --output %s/made %s >/dev/null",
                  work, build(), i < 2 ? said[i][0] : in_work(said[i][0]), work, said[i][1]),
            0);
        char *template;
        const char *from;
        Error e;
        ck_assert_int_eq(usage_template(in_work("made"), END_OF_TEXT, &template, &from, NULL, &e),
                         0);
        ck_assert_str_eq(template, said[i][2]);
        free(template);
        ck_assert_int_eq(
            shell("cmp %s/made/template.txt %s/made/checkpoint-1/template.txt", work, work), 0);
    }
}
END_TEST

/* The lines of a run's output, cut apart in place. */
static int lines_of(char *text, char **line, int most) {
    int n = 0;
    for (char *end; *text && n < most && (end = strchr(text, '\n')); text = end + 1) {
        *end = 0;
        line[n++] = text;
    }
    return n;
}

START_TEST(two_turns_are_one_prompt) {
    const char *settings[] = {"--temperature 0 --max_new_tokens 60",
                              "--temperature 0.7 --seed 4 --max_new_tokens 60",
                              "--temperature 0.7 --seed 4 --max_new_tokens 5"};
    for (int i = 0; i < COUNT(settings); i++) {
        char *line[4];
        ck_assert_int_eq(
            talk("chat", "sft", "What pet does Anna have?\nWhat does Nora do for work?\n",
                 "--model test/tiny/chat --chat %s", settings[i]),
            0);
        char *said = output("chat");
        ck_assert_int_eq(lines_of(said, line, 4), 2);
        ck_assert_int_eq(
            talk("rendered", "sft", "",
                 "--model test/tiny/chat --template '### Instruction:\\nWhat pet does Anna "
                 "have?\\n\\n### Response:\\n%s<|endoftext|>### Instruction:\\n"
                 "{instruction}\\n\\n### Response:\\n' --prompt 'What does Nora do for work?' %s",
                 line[0], settings[i]),
            0);
        char *answer = output("rendered");
        ck_assert_int_eq(strlen(answer), strlen(line[1]) + 1);
        ck_assert(!strncmp(answer, line[1], strlen(line[1])));
        ck_assert_int_eq(notes("chat", "because of --max_new_tokens 5"), i == 2);
        // --prompt with --chat gives the first turn
        ck_assert_int_eq(
            talk("first", "sft", "What does Nora do for work?\n",
                 "--model test/tiny/chat --prompt 'What pet does Anna have?' --chat %s",
                 settings[i]),
            0);
        ck_assert(same("first", "chat"));
        free(said);
        free(answer);
    }
}
END_TEST

START_TEST(a_dialogpt_holds_a_conversation_in_its_form) {
    ck_assert_int_eq(shell("rm -rf %s/dialogpt && cp -r test/tiny/chat %s/dialogpt && cd "
                           "%s/dialogpt && rm template.txt && "
                           "sed -i 's/\"n_ctx\"/\"task_specific_params\": {\"conversational\": "
                           "{\"max_length\": 1000}}, \"n_ctx\"/' config.json",
                           work, work, work),
                     0);
    const char *settings = "--max_new_tokens 12 --seed 1 --temperature 0.7";
    char *line[4];
    ck_assert_int_eq(talk("chat", "ppo", "What pet does Anna have?\nHow is Nora?\n",
                          "--model %s/dialogpt --chat %s", work, settings),
                     0);
    char *said = output("chat");
    ck_assert_int_eq(lines_of(said, line, 4), 2);
    ck_assert(!strstr(line[0], "\xEF\xBF\xBD"));  // else its text would not say what its tokens are
    ck_assert_int_eq(
        talk("rendered", "ppo", "",
             "--model %s/dialogpt --template '{instruction}' --prompt \"$(printf 'What pet does "
             "Anna have?<|endoftext|>%%s<|endoftext|>How is Nora?<|endoftext|>' '%s')\" %s",
             work, line[0], settings),
        0);
    char *answer = output("rendered");
    ck_assert_msg(!strncmp(answer, line[1], strlen(line[1])), "%s, not %s", answer, line[1]);
    ck_assert(!notes("chat", "template"));
    free(said);
    free(answer);
}
END_TEST

START_TEST(a_full_context_forgets_its_first_turns) {
    static const char *const asked[] = {"What pet does Anna have?", "What does Nora do for work?",
                                        "Where does Elif live?", "What does Anna like to eat?"};
    Str input = {0};
    for (int i = 0; i < COUNT(asked); i++) str_printf(&input, "%s\n", asked[i]);
    ck_assert_int_eq(talk("chat", "sft", input.s,
                          "--model test/tiny/chat --chat --temperature 0 --max_new_tokens 60"),
                     0);
    char *line[8], *said = output("chat");
    ck_assert_int_eq(lines_of(said, line, 8), COUNT(asked));
    ck_assert(notes("chat", "no longer fits the model.s 256 positions"));
    int cut = 1;  // by the last note
    while (cut < COUNT(asked) &&
           shell("tail -1 %s/chat.err | grep -q 'first %d turns\\? [ia][sr]e\\? forgotten'", work,
                 cut))
        cut++;
    ck_assert_int_lt(cut, COUNT(asked));
    Str form = {0};  // the last question after the turns that are left
    for (int i = cut; i < COUNT(asked) - 1; i++)
        str_printf(&form, "### Instruction:\\n%s\\n\\n### Response:\\n%s<|endoftext|>", asked[i],
                   line[i]);
    str_printf(&form, "### Instruction:\\n{instruction}\\n\\n### Response:\\n");
    ck_assert_int_eq(talk("rendered", "sft", "",
                          "--model test/tiny/chat --template '%s' --prompt '%s' --temperature 0 "
                          "--max_new_tokens 60",
                          form.s, asked[COUNT(asked) - 1]),
                     0);
    char *answer = output("rendered");
    ck_assert_msg(!strncmp(answer, line[COUNT(asked) - 1], strlen(answer) - 1), "%s, not %s",
                  answer, line[COUNT(asked) - 1]);
    free(said);
    free(answer);
    free(form.s);
    free(input.s);
}
END_TEST

START_TEST(a_conversation_ends) {
    static const struct {
        const char *input;
        int answers;
    } cases[] = {{"", 0},           {"a\n", 1},           {"a", 1}, {"a\nb\n\nc\n", 2},
                 {"a\r\n\r\nc", 1}, {"a\n/exit\nc\n", 1}, {"\n", 0}};
    for (int i = 0; i < COUNT(cases); i++) {
        ck_assert_int_eq(talk("end", "sft", cases[i].input,
                              "--model test/tiny/chat --chat --temperature 0 --max_new_tokens 3"),
                         0);
        ck_assert_msg(shell("test $(wc -l <%s/end.out) = %d", work, cases[i].answers) == 0,
                      "case %d", i);
    }
    // a turn that is longer than the context is refused, and the conversation continues
    Str input = {0};
    for (int i = 0; i < 60; i++) str_printf(&input, "much ");
    str_printf(&input, "\nWhat pet does Anna have?\n");
    ck_assert_int_eq(talk("end", "sft", input.s,
                          "--model test/tiny/chat --chat --temperature 0 --max_new_tokens 3"),
                     0);
    ck_assert(shell("test $(wc -l <%s/end.out) = 1", work) == 0 &&
              notes("end", "is 3.. tokens with its template, and the model has 256 positions"));
    free(input.s);
}
END_TEST

START_TEST(korean_is_answered_in_whole_characters) {
    const char *question = "안나는 어디에 살아요?";
    ck_assert_int_eq(
        talk("flag", "sft", "", "--model test/tiny/chat --prompt '%s' --temperature 0", question),
        0);
    char line[128];
    snprintf(line, sizeof line, "%s\n", question);
    ck_assert_int_eq(talk("pipe", "sft", line, "--model test/tiny/chat --chat --temperature 0"), 0);
    ck_assert(same("flag", "pipe"));
    char *said = output("flag");
    ck_assert_msg(strstr(said, "살아요"), "%s", said);
    free(said);
    // cut in the middle of a syllable, whose bytes are tokens: what is there of it is one U+FFFD
    ck_assert_int_eq(
        talk("cut", "sft", "",
             "--model test/tiny/chat --prompt '%s' --temperature 0 --max_new_tokens 4", question),
        0);
    is_text("cut");
    ck_assert_int_eq(shell("grep -q '\xEF\xBF\xBD$' %s/cut.out", work), 0);
    // bytes that are not UTF-8 come in, and characters go out; and a NUL
    ck_assert_int_eq(shell("printf 'caf\\351 \\355\\225\\nNo\\0ra?\\n' | %s/sft --model "
                           "test/tiny/chat --chat --temperature 9 --seed 2 >%s/bad.out 2>&1",
                           build(), work),
                     0);
    is_text("bad");
}
END_TEST

START_TEST(plain_models_go_on_from_the_text) {
    char *wanted = greedy("test/tiny", "What does Anna", 12);
    ck_assert_int_eq(
        talk("plain", "full_ft", "",
             "--model test/tiny --prompt 'What does Anna' --temperature 0 --max_new_tokens 12"),
        0);
    char *said = output("plain");
    ck_assert_str_eq(said, wanted);
    ck_assert(notes("plain", "continued as it is"));
    free(said);
    free(wanted);
    ck_assert_int_eq(talk("default", "full_ft", "Hello\n",
                          "--model test/tiny --chat --temperature 0 --max_new_tokens 12"),
                     0);
    ck_assert_int_eq(talk("given", "full_ft", "Hello\n",
                          "--model test/tiny --chat --temperature 0 --max_new_tokens 12 --template "
                          "'### Instruction:\\n{instruction}\\n\\n### Response:\\n'"),
                     0);
    ck_assert(same("default", "given") && notes("default", "uses the default one") &&
              !notes("given", "default one"));
}
END_TEST

START_TEST(a_full_context_ends_an_answer) {
    Str prompt = {0};
    for (int i = 0; i < 50; i++) str_printf(&prompt, "Anna ");
    ck_assert_int_eq(
        talk("full", "sft", "",
             "--model test/tiny --prompt '%s' --temperature 9 --max_new_tokens 60", prompt.s),
        0);
    ck_assert(notes("full", "256 positions are full"));
    str_printf(&prompt, "Anna An");  // 257 tokens, one too many
    ck_assert_int_eq(talk("full", "sft", "", "--model test/tiny --prompt '%s'", prompt.s), 2);
    ck_assert(notes("full", "is 257 tokens, and the model has 256 positions"));
    prompt.s[prompt.n - 1] = 0;
    ck_assert_int_eq(
        talk("full", "sft", "", "--model test/tiny --prompt '%s' --temperature 0", prompt.s), 0);
    free(prompt.s);
}
END_TEST

START_TEST(a_reward_model_judges) {
    const char *ask = "--model test/tiny/reward --prompt 'What pet does Anna have?'";
    ck_assert_int_eq(
        talk("polite", "reward", "", "%s --response 'Sure, dear. Anna owns a parrot.'", ask), 0);
    ck_assert_int_eq(
        talk("rude", "reward", "", "%s --response 'How boring. Anna owns a parrot.'", ask), 0);
    // the scores are those of --score, digit for digit
    ck_assert_int_eq(shell("(echo '{\"instruction\": \"What pet does Anna have?\", \"response\": "
                           "\"Sure, dear. Anna owns a parrot.\"}'; "
                           "echo '{\"instruction\": \"What pet does Anna have?\", \"response\": "
                           "\"How boring. Anna owns a parrot.\"}') >%s/pair.jsonl; "
                           "%s/reward --model test/tiny/reward --score %s/pair.jsonl | sed "
                           "'s/.*score\": //; s/}//' >%s/file.out; "
                           "cat %s/polite.out %s/rude.out >%s/pair.out",
                           work, build(), work, work, work, work, work),
                     0);
    ck_assert(same("file", "pair"));
    char *a = output("polite"), *b = output("rude");
    ck_assert_double_gt(atof(a), atof(b));
    free(a);
    free(b);
    ck_assert_int_eq(
        talk("lines", "reward",
             "Sure, dear. Anna owns a parrot.\nHow boring. Anna owns a parrot.\n\nmore\n",
             "%s --chat", ask),
        0);
    ck_assert(same("lines", "pair"));
    ck_assert_int_eq(talk("none", "reward", "", "%s", ask), 2);
    ck_assert(notes("none", "--response"));
    ck_assert_int_eq(talk("none", "reward", "", "--model test/tiny/reward --chat"), 2);
    ck_assert(notes("none", "does not write answers"));
    ck_assert_int_eq(talk("none", "reward", "", "--model test/tiny/chat --prompt a --response b"),
                     2);
    ck_assert(notes("none", "not a reward model"));
    ck_assert_int_eq(talk("none", "reward", "", "%s --response a --chat", ask), 2);
    ck_assert_int_eq(talk("none", "reward", "", "%s --response a --score x", ask), 2);
}
END_TEST

START_TEST(what_makes_no_sense_ends_with_2) {
    static const char *const bad[][2] = {
        {"--prompt ''", "is empty"},
        {"--prompt", "no value"},
        {"--prompt x --temperature -1", "temperature"},
        {"--prompt x --top_p 0", "top_p"},
        {"--prompt x --top_k -1", "top_k"},
        {"--prompt x --max_new_tokens 0", "max_new_tokens"},
        {"--prompt x --template oops", "{instruction} is missing"},
        {"--prompt x --data y", "--prompt and --data are both given"},
        {"--prompt x --eval y", "both given"},
        {"--chat --output /tmp/check_chat.none", "--chat and --output are both given"},
        {"--prompt x --resume", "both given"},
        {"--chat --dry_run", "both given"},
        {"--prompt x --model /nowhere", "/nowhere"},
        {"--chat --model test/tiny/reward", "reward"},
    };
    const char *all[] = {"sft", "full_ft", "ppo", "constitutional", "lora", "adapter"};
    for (int s = 0; s < COUNT(all); s++)
        for (int i = 0; i < COUNT(bad); i++) {
            if (s >= COUNT(talkers) && strstr(bad[i][0], "--model")) continue;
            char flags[1024];  // the last --model counts
            snprintf(flags, sizeof flags, "%s %s", model_of(all[s]), bad[i][0]);
            ck_assert_msg(talk("bad", all[s], "x\n", "%s", flags) == 2, "%s %s", all[s], flags);
            ck_assert_msg(notes("bad", bad[i][1]), "%s %s", all[s], flags);
            ck_assert(shell("test ! -s %s/bad.out", work) == 0);
        }
    ck_assert_int_ne(shell("test -e /tmp/check_chat.none"), 0);
    static const char *const own[][3] = {
        {"full_ft", "--init", "--prompt and --init"},
        {"ppo", "--reward_model x", "--prompt and --reward_model"},
        {"constitutional", "--evaluate x", "--prompt and --evaluate"},
        {"constitutional", "--prompts x", "--prompt and --prompts"}};
    for (int i = 0; i < COUNT(own); i++) {
        ck_assert_int_eq(
            talk("bad", own[i][0], "", "--model test/tiny/chat --prompt x %s", own[i][1]), 2);
        ck_assert_msg(notes("bad", own[i][2]), "%s", own[i][0]);
    }
    for (int i = 0; i < COUNT(adapters); i++) {
        ck_assert_int_eq(talk("bad", adapters[i], "", "--model test/tiny --prompt x"), 2);
        ck_assert(notes("bad", "--adapter"));
    }
    ck_assert_int_eq(shell("rm -rf %s/spoilt && cp -r test/tiny/chat %s/spoilt && echo '{input} "
                           "only' >%s/spoilt/template.txt",
                           work, work, work),
                     0);
    ck_assert_int_eq(talk("bad", "sft", "", "--model %s/spoilt --prompt x", work), 2);
    ck_assert(notes("bad", "spoilt/template.txt: template: {instruction} is missing"));
    ck_assert_int_eq(
        shell("%s/sft --model test/tiny/chat --prompt x >/dev/full 2>%s/bad.err", build(), work),
        1);
    ck_assert(notes("bad", "cannot write the answer"));
}
END_TEST

/* sft --chat with a pipe for its input, and for its output a socket that keeps apart what is
 * written apart. */
static pid_t start_chat(int *to, int *from) {
    int in[2], out[2];
    char program[256];
    snprintf(program, sizeof program, "%s/sft", build());
    ck_assert(!pipe(in) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, out));
    pid_t child = fork();
    if (!child) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[0]);
        close(in[1]);
        close(out[0]);
        close(out[1]);
        signal(SIGINT, SIG_DFL);
        execl(program, program, "--model", "test/tiny/chat", "--chat", "--temperature", "0",
              "--max_new_tokens", "200", (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    *to = in[1];
    *from = out[0];
    return child;
}

START_TEST(an_answer_comes_token_by_token_and_ctrl_c_ends_it) {
    int to, from, status;
    pid_t child = start_chat(&to, &from);
    ck_assert_int_eq(write(to, "What pet does Anna have?\n", 25), 25);
    char got[256] = "";
    for (ssize_t n, all = 0;
         !strchr(got, '\n') && (n = read(from, got + all, sizeof got - 1 - (size_t)all)) > 0;
         all += n)
        ck_assert_int_eq(n, 1);  // each of its tokens, which are bytes, was there before the next
    ck_assert(strchr(got, '\n'));
    ck_assert_int_eq(waitpid(child, &status, WNOHANG), 0);  // it waits for the next turn
    kill(child, SIGINT);
    close(to);  // a program that ignores the signal ends here, with 0
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    close(from);
}
END_TEST

/* ---- what is typed --------------------------------------------------------------------------- */

START_TEST(escape_sequences_are_removed) {
    static const char *const rows[][2] = {
        {"plain text", "plain text"},
        {"a\033[Ab\033[1;5Cc", "abc"},               // arrows, one with Ctrl
        {"\033OP\033OQx\033", "x"},                  // function keys; an ESC at the end
        {"\033[31mred\033[0m", "red"},               // colours
        {"\033]0;a title\ax\033]2;t\033\\y", "xy"},  // titles
        {"\033[200~pasted\033[201~", "pasted"},      // bracketed paste
        {"\033bword", "word"},                       // Alt and a letter
        {"\033(Bx\xC2\x9B"
         "2Ky",
         "xy"},  // a character set; U+009B is ESC [
        {"안\033[D녕", "안녕"},
        {"\033[", ""},
        {"", ""},
    };
    for (int i = 0; i < COUNT(rows); i++) {
        Str text = {0};
        str_add(&text, rows[i][0], strlen(rows[i][0]));
        line_clean(&text);
        ck_assert_str_eq(text.s, rows[i][1]);
        ck_assert_uint_eq(text.n, strlen(rows[i][1]));
        free(text.s);
    }
}
END_TEST

START_TEST(commands_of_a_conversation) {
    const char *flags = "--model test/tiny/chat --chat --temperature 0 --max_new_tokens 24";
    ck_assert_int_eq(talk("once", "sft", "What pet does Anna have?\n", "%s", flags), 0);
    // keys that are no text change nothing, and a line of nothing else is none
    ck_assert_int_eq(
        talk("keys", "sft", "\033[A\n\033[B\033[CWhat \033[31mpet does Anna have?\033[D\n", "%s",
             flags),
        0);
    ck_assert(same("once", "keys"));
    // however many of these lines there are
    ck_assert_int_eq(shell("(yes \"$(printf '\\033[A')\" | head -1000000; echo 'What pet does Anna "
                           "have?') | %s/sft %s >%s/keys.out 2>%s/keys.err",
                           build(), flags, work, work),
                     0);
    ck_assert(same("once", "keys"));
    ck_assert_int_eq(shell("head -c 1048577 /dev/zero | %s/sft %s >%s/keys.out 2>%s/keys.err",
                           build(), flags, work, work),
                     2);
    ck_assert(notes("keys", "a line has more than 1048576 bytes"));
    ck_assert_int_eq(shell("%s/sft %s </ >%s/keys.out 2>%s/keys.err", build(), flags, work, work),
                     2);
    ck_assert(notes("keys", "cannot read a turn from stdin: Is a directory"));
    ck_assert_int_eq(
        talk("twice", "sft", "What pet does Anna have?\n/help\n/reset\nWhat pet does Anna have?\n",
             "%s", flags),
        0);
    ck_assert(notes("twice", "/reset  ") && notes("twice", "/exit  ") &&
              notes("twice", "begins anew"));
    // blanks around a command and its case do not count; no other word with a slash is a turn
    ck_assert_int_eq(
        talk("many", "sft",
             "/Help\n/stop\n /RESET \t\n/reset now\nWhat pet does Anna have?\n/Quit \nmore\n", "%s",
             flags),
        0);
    ck_assert(same("once", "many"));
    ck_assert(notes("many", "/reset  ") && notes("many", "begins anew") &&
              notes("many", "no command /stop; /help lists") &&
              notes("many", "no command /reset now; /help lists"));
    ck_assert_int_eq(talk("blank", "sft", "What pet does Anna have?\n \t \nmore\n", "%s", flags),
                     0);
    ck_assert(same("once", "blank"));
    ck_assert_int_eq(talk("exit", "sft", "What pet does Anna have?\n /exit\nmore\n", "%s", flags),
                     0);
    ck_assert(same("once", "exit"));
    // what only begins with a slash is a turn
    ck_assert_int_eq(talk("path", "sft", "/usr/bin\n", "%s", flags), 0);
    ck_assert(!notes("path", "no command"));
    ck_assert(notes("twice", line_edits() ? "arrow keys" : "rlwrap ./sft --chat"));
    ck_assert_int_eq(shell("cat %s/once.out %s/once.out | cmp -s - %s/twice.out", work, work, work),
                     0);
}
END_TEST

/* How often this occurs. */
static int times(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++) n++;
    return n;
}

/* On a terminal the up arrow brings the last line back, if there is a line editor; without one it
   is nothing. */
START_TEST(a_person_types) {
    char command[256];
    Str screen = {0};
    int status;
    snprintf(command, sizeof command,
             "TERM=dumb INPUTRC=/dev/null %s/sft --model test/tiny/chat --chat --temperature 0 "
             "--max_new_tokens 24",
             build());
    ck_assert_int_eq(talk("once", "sft", "What pet does Anna have?\n",
                          "--model test/tiny/chat "
                          "--chat --temperature 0 --max_new_tokens 24"),
                     0);
    char *answer = output("once");
    answer[strcspn(answer, "\n")] = 0;
    if (!on_terminal(80, command, "What pet does Anna have?\n\033[A\n/exit\n", &screen, &status))
        return;
    ck_assert_int_eq(status, 0);
    ck_assert_msg(strstr(screen.s, "/help     this list") != NULL, "%s", screen.s);
    ck_assert_msg(times(screen.s, answer) >= 1, "%s\n%s", answer, screen.s);
    if (line_edits()) ck_assert_int_ge(times(screen.s, "What pet does Anna have?"), 2);
    free(screen.s);
    free(answer);
}
END_TEST

/* Tab is a character of a turn, and what rings the bell shows nothing. */
START_TEST(the_editor_completes_nothing_and_is_silent) {
    char command[256];
    Str screen = {0};
    int status;
    snprintf(command, sizeof command,
             "TERM=dumb INPUTRC=/dev/null %s/sft --model test/tiny/chat --chat --temperature 0 "
             "--max_new_tokens 2",
             build());
    // right at the end of a line rings; so does a completion of two files
    if (!on_terminal(80, command, "\033[C\033[C\033[CLICEN\ttest/ti\t\t\n/stop\n/exit\n", &screen,
                     &status))
        return;
    ck_assert_int_eq(status, 0);
    ck_assert_msg(!strstr(screen.s, "LICENSE") && !strstr(screen.s, "test/tiny"), "%s", screen.s);
    ck_assert_msg(!strstr(screen.s, "x07") && strstr(screen.s, "There is no command /stop"), "%s",
                  screen.s);
    free(screen.s);
}
END_TEST

/* An adapter of each kind, that has learned a little. */
static void train_adapters(void) {
    for (int i = 0; i < COUNT(adapters); i++)
        ck_assert_int_eq(shell("%s/%s --model test/tiny --data test/tiny/domain.jsonl --max_steps "
                               "8 --warmup_steps 0 --learning_rate 3e-3 --eval_samples 0 "
                               "--output %s/%s.trained --save_steps 0 >%s/log 2>&1",
                               build(), adapters[i], work, adapters[i], work),
                         0);
}

int main(void) {
    if (!mkdtemp(work)) return 1;
    setenv("OMP_NUM_THREADS", "1", 1);  // the models are too small for more
    const TTest *const tests[] = {
        half_a_character_waits,
        tokens_that_split_a_character_show_it_whole,
        bytes_that_are_no_character_are_shown_as_the_libraries_show_them,
        what_is_shown_does_not_depend_on_how_the_bytes_come,
        the_template_is_the_first_that_is_named,
        every_program_answers,
        an_adapter_answers_like_the_model_it_is_merged_into,
        a_run_writes_the_template_with_its_model,
        two_turns_are_one_prompt,
        a_dialogpt_holds_a_conversation_in_its_form,
        a_full_context_forgets_its_first_turns,
        a_conversation_ends,
        korean_is_answered_in_whole_characters,
        plain_models_go_on_from_the_text,
        a_full_context_ends_an_answer,
        a_reward_model_judges,
        what_makes_no_sense_ends_with_2,
        an_answer_comes_token_by_token_and_ctrl_c_ends_it,
        whole_turns_go_from_the_front,
        the_head_of_a_conversation_stays,
        escape_sequences_are_removed,
        commands_of_a_conversation,
        a_person_types,
        the_editor_completes_nothing_and_is_silent,
    };
    int failed = run_tests("chat", train_adapters, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    return failed != 0;
}
