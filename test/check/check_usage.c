/*
 * check_usage.c - what a model directory says about its use: templates, chat templates in Jinja,
 * the token that ends a text and the token that pads.
 *
 * transformers rendered the chat templates of golden_jinja.h.
 */
#include "../golden/golden_jinja.h"
#include "files/usage.h"
#include "text/template.h"
#include "text/utf8.h"
#include "text_files.h"

#include "program.h"

#include <jansson.h>

/* ---- Jinja ----------------------------------------------------------------------------------- */

static const char IM_END[] = "<|im_end|>";
static const Marks marks = {IM_END, END_OF_TEXT};

static int messages_of(const Message *talk) {
    int n = 0;
    while (n < 5 && talk[n].role) n++;
    return n;
}

START_TEST(chat_templates_as_in_transformers) {
    for (int i = 0; i < COUNT(golden_jinja); i++) {
        const GoldenJinja *g = &golden_jinja[i];
        const Message *talk = golden_talk[g->talk];
        char *text =
            jinja_render(golden_template[g->template], talk, messages_of(talk), g->prompt, marks);
        if (g->text)
            ck_assert_msg(text && !strcmp(text, g->text), "template %d, talk %d: \"%s\"",
                          g->template, g->talk, text ? text : "none");
        else
            ck_assert_ptr_null(text);
        free(text);
    }
}
END_TEST

/* A template as jinja_to_template finds it, "-" before it if it does not say the system's message.
   To be freed. */
static char *found_template(const char *jinja) {
    bool system_said;
    char *template = jinja_to_template(jinja, marks, &system_said);
    if (!template || system_said) return template;
    Str out = {0};
    str_printf(&out, "-%s", template);
    free(template);
    return out.s;
}

#define CHATML_TURN                                                                             \
    "<|im_start|>user\\n{instruction}<|im_end|>\\n<|im_start|>assistant\\n{response}<|im_end|>" \
    "\\n"

/* Which of them a template of ours can say, by hand. */
START_TEST(chat_templates_that_can_be_said) {
    static const char *const said[COUNT(golden_template)] = {
        "[[<|im_start|>system\\n{system}<|im_end|>\\n]]" CHATML_TURN,
        ("[[<|im_start|>system\\n{system}<|im_end|>\\n||<|im_start|>system\\nBe kind.<|im_end|>\\n]"
         "]" CHATML_TURN),
        ("[[S {system}\\n]]<|user|>\\n{instruction}<|im_end|>\\n<|assistant|>\\n{response}<|im_"
         "end|>\\n"),
        "[[{system}<|im_end|>]]{instruction}<|im_end|>",
        "[[Bot: {system}\\n]]User: {instruction|trim}\\nBot: {response}\\n",
        NULL,  // a space that only an answer has comes before it
        "[[SA: {system}\\n\\n]]Q: {instruction}\\n\\nA: {response}\\n\\n",
        ("[[<|endoftext|>질문: {system}\\n답변: ||<|endoftext|>]]질문: {instruction}\\n답변: "),
        NULL,  // it counts the messages
        ("[[<|im_start|>system\\n{system}<|im_end|>\\n||<|im_start|>system\\nYou are Qwen, created "
         "by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n]]" CHATML_TURN),
        ("[[<|system|>\\n{system}<|im_end|>\\n]]<|user|>\\n{instruction}<|im_end|>\\n<|assistant|>"
         "\\n{response}<|im_end|>\\n"),
        ("[[<|endoftext|><|start_header_id|>system<|end_header_id|>\\n\\n{system|trim}<|eot_id|>||<"
         "|endoftext|>]]<|start_header_id|>user<|end_header_id|>\\n\\n{instruction|trim}<|eot_id|><"
         "|start_header_id|>assistant<|end_header_id|>\\n\\n{response|trim}<|eot_id|>"),
        "[[{system}||A chat.]] USER: {instruction|trim} ASSISTANT:{response|trim}<|im_end|>",
        "<|endoftext|>[INST] [[<<SYS>>\\n{system}\\n<</SYS>>\\n\\n]]{instruction} [/INST]",
        "[[TDsystem: {system}<|im_end|>||TD]]user: {instruction}<|im_end|>assistant: ",
        ("-[[<|endoftext|>{system}\\n\\n||<|endoftext|>]]<start_of_turn>user\\n{instruction|trim}<"
         "end_of_turn>\\n<start_of_turn>model\\n{response|trim}<end_of_turn>\\n"),
    };
    for (int i = 0; i < COUNT(said); i++) {
        char *template = found_template(golden_template[i]);
        ck_assert_msg(said[i] ? template && !strcmp(template, said[i]) : !template,
                      "template %d is \"%s\"", i, template ? template : "none");
        free(template);
    }
}
END_TEST

/* A system's message that comes first with an empty line needs no part, unless it is trimmed. */
START_TEST(system_messages_with_an_empty_line) {
    static const char *const form[][2] = {
        {"", "Q: {instruction|trim}\\nA: {response|trim}<|im_end|>\\n"},
        {"|trim",
         "[[{system|trim}\\n\\n]]Q: {instruction|trim}\\nA: {response|trim}<|im_end|>\\n"}};
    for (int i = 0; i < COUNT(form); i++) {
        char jinja[400];
        snprintf(
            jinja, sizeof jinja,
            "{%% for m in messages %%}{%% if m.role == 'system' %%}{{ m.content%s + '\n\n' }}{%% "
            "elif m.role == 'user' %%}{{ 'Q: ' + m.content|trim + '\nA: ' }}{%% else %%}{{ "
            "m.content|trim + eos_token + '\n' }}{%% endif %%}{%% endfor %%}",
            form[i][0]);
        char *template = found_template(jinja);
        ck_assert_str_eq(template ? template : "none", form[i][1]);
        free(template);
    }
}
END_TEST

/* The text of a conversation as it is trained, or of its last question as a prompt. To be freed. */
static char *trained(const Message *talk, int n, const char *template) {
    Str record = {0}, out = {0};
    Error e;
    str_printf(&record, "{\"messages\": [");
    for (int i = 0; i < n; i++) {
        str_printf(&record, "%s{\"role\": \"%s\", \"content\": ", i ? ", " : "", talk[i].role);
        json_add_string(&record, talk[i].content, strlen(talk[i].content));
        str_printf(&record, "}");
    }
    str_printf(&record, "]}");
    if (!strcmp(talk[n - 1].role, "user")) {
        Prompts p;
        write_text("prompts.jsonl", record.s);
        ck_assert_msg(!prompts_read(in_directory("prompts.jsonl"), template, true, &p, &e), "%s",
                      e.text);
        str_add(&out, p.v[0].text, p.v[0].n);
        prompts_free(&p);
    } else {
        Records r = must_read(record.s, template);
        for (int k = 0; k < r.v[0].n; k++) {
            str_add(&out, r.v[0].spans[k].text, r.v[0].spans[k].n);
            if (r.v[0].spans[k].scored) str_printf(&out, "%s", template_end());
        }
        records_free(&r);
    }
    free(record.s);
    return out.s;
}

/* What is trained is what transformers renders, for each template that is read. The text that a
   template has after an answer's end comes before the next turn. */
START_TEST(what_is_trained_is_what_transformers_renders) {
    int checked = 0;
    for (int i = 0; i < COUNT(golden_jinja); i++) {
        const GoldenJinja *g = &golden_jinja[i];
        const Message *talk = golden_talk[g->talk];
        const int n = messages_of(talk);
        const bool asks = !strcmp(talk[n - 1].role, "user"),
                   alternates =
                       strcmp(talk[0].role, "user") || n == 1 || strcmp(talk[1].role, "user");
        bool system_said;
        char *template = jinja_to_template(golden_template[g->template], marks, &system_said);
        if (!template || !g->text || g->prompt != asks || !alternates) {
            free(template);
            continue;
        }
        // the last token of a turn, as a program that has it in its vocabulary takes it
        const char *end = strstr(template, "<|eot_id|>")      ? "<|eot_id|>"
                          : strstr(template, "<end_of_turn>") ? "<end_of_turn>"
                                                              : IM_END;
        const bool none = strstr(template, "Bot: ") || strstr(template, "A: {response}");
        template_set_end(end);
        char *text = trained(talk, n, template);
        // two of them end no answer, so the end is ours
        for (char *at; none && (at = strstr(text, IM_END));)
            memmove(at, at + strlen(IM_END), strlen(at + strlen(IM_END)) + 1);
        const size_t same = strlen(text), whole = strlen(g->text);
        ck_assert_msg(!strncmp(text, g->text, same < whole ? same : whole),
                      "template %d, talk %d: \"%s\"", g->template, g->talk, text);
        // a rest after the last end is that between turns
        if (whole > same) ck_assert_str_eq(g->text + same, "\n");
        // older templates know no prompt of an answer
        ck_assert_msg(whole >= same || (asks && (g->template == 1 || g->template == 6)),
                      "template %d, talk %d: \"%s\", \"%s\"", g->template, g->talk, text, g->text);
        checked++;
        free(text);
        free(template);
    }
    template_set_end(NULL);
    ck_assert_int_ge(checked, 40);
}
END_TEST

START_TEST(what_is_no_jinja) {
    static const char *const wrong[] = {
        "{% for m in messages %}",
        "{{ m",
        "{% if %}{% endif %}",
        "{% endif %}",
        "{{ 'a }}",
        "{{ strftime_now('x') }}",
        "{{ 'a' if strftime_now is defined else 'b' }}",
        "{{ unk_token }}",
        "{% macro f() %}{% endmacro %}",
        "{{ messages }}",
        "{% for",
        "{{ 1 + 'a' }}",
        "{% set x %}y{% endset %}",
        "{{ ((((1 }}",
        "{{ x.y }}",
        "{{ 'a' | nope }}",
    };
    const Message one = {"user", "x"};
    for (int i = 0; i < COUNT(wrong); i++) {
        ck_assert_ptr_null(jinja_render(wrong[i], &one, 1, true, marks));
        ck_assert_ptr_null(found_template(wrong[i]));
    }
    Str deep = {0};
    for (int i = 0; i < 100000; i++) str_add(&deep, i ? "(" : "{{", i ? 1 : 2);
    ck_assert_ptr_null(jinja_render(deep.s, &one, 1, true, marks));
    free(deep.s);
    // texts that grow without end
    Str doubled = {0}, loops = {0};
    str_printf(&doubled, "{%% set x = 'xxxxxxxxxxxxxxxx' %%}");
    for (int i = 0; i < 60; i++) str_printf(&doubled, "{%% set x = x + x %%}");
    for (int i = 0; i < 12; i++) str_printf(&loops, "{%% for a%d in messages %%}", i);
    for (int i = 0; i < 1000; i++) str_printf(&loops, "0123456789012345678901234567890123456789");
    for (int i = 0; i < 12; i++) str_printf(&loops, "{%% endfor %%}");
    const Message many[] = {one, one, one, one};
    ck_assert_ptr_null(jinja_render(doubled.s, &one, 1, true, marks));
    ck_assert_ptr_null(jinja_render(loops.s, many, 4, true, marks));
    Str sum = {0};  // a number beyond an int
    str_printf(&sum, "{%% set x = 99999 %%}");
    for (int i = 0; i < 40; i++) str_printf(&sum, "{%% set x = x + x %%}");
    ck_assert_ptr_null(jinja_render(sum.s, &one, 1, true, marks));
    free(sum.s);
    free(doubled.s);
    free(loops.s);
}
END_TEST

/* The chat template that is written makes of a conversation what the records' reader makes of it.
 */
START_TEST(a_written_chat_template_is_the_training_form) {
    static const char *const form[] = {
        "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n",
        "Q: {instruction}\\n\\tA: {response}\\n",
        CHATML_TURN,
        "it's \\\\ {instruction} \\\\n",
        "[[<|im_start|>system\\n{system}<|im_end|>\\n||No \\\\ 'system'.\\n]]" CHATML_TURN,
        "[INST] [[<{system|trim}>||none ]]{instruction|trim} [/INST]{response|trim}!",
    };
    static const Message talk[] = {{"system", " Be kind.\n"}, {"user", "\tq1 "},
                                   {"assistant", "\na1 "},    {"user", "q2"},
                                   {"assistant", "a2 "},      {"user", "q3"}};
    template_set_end(IM_END);
    for (int i = 0; i < COUNT(form); i++) {
        char *jinja = jinja_of_template(form[i], IM_END);
        // with and without a system's message; the user or the assistant begins and ends
        for (int from = 0; from < 3; from++)
            for (int to = from + 2; to <= 6; to++) {
                const int n = to - from;
                char *text = jinja_render(jinja, talk + from, n, false, marks),
                     *expected = trained(talk + from, n, form[i]);
                ck_assert_msg(text != NULL, "%s", jinja);
                ck_assert_str_eq(text, expected);
                free(text);
                free(expected);
            }
        // the assistant begins after a system's message
        const Message opened[] = {talk[0], talk[2], talk[3], talk[4]};
        char *text = jinja_render(jinja, opened, 4, false, marks),
             *expected = trained(opened, 4, form[i]);
        ck_assert_str_eq(text, expected);
        free(text);
        free(expected);
        free(jinja);
    }
    template_set_end(NULL);
}
END_TEST

/* ---- a directory ----------------------------------------------------------------------------- */

static void write_config(const char *more) {
    Str text = {0};
    str_printf(&text, "{\"model_type\": \"gpt2\", \"vocab_size\": 300%s}", more);
    write_str("config.json", text);
}

static void clean_usage(void) {
    static const char *const name[] = {"template.txt", "chat_template.jinja",
                                       "chat_template_rag.jinja", "generation_config.json"};
    clean_directory();
    for (int i = 0; i < COUNT(name); i++) unlink(in_directory(name[i]));
}

/* A member of a file: a number or a text as JSON; "none" if file or member is absent. */
static const char *found(const char *name, const char *key) {
    static char text[2][256];
    static int next;
    json_t *json = json_load_file(in_directory(name), 0, NULL);
    char *dumped = json_dumps(json_object_get(json, key), JSON_ENCODE_ANY);
    next = !next;
    snprintf(text[next], sizeof text[0], "%s", dumped ? dumped : "none");
    free(dumped);
    json_decref(json);
    return text[next];
}

static void save(const Usage *u) {
    Error e = {0};
    Bundle files = {0};
    ck_assert_msg(!bundle_read(directory, &files, &e), "%s", e.text);
    ck_assert_msg(usage_apply(&files, u, &e) == 0, "%s", e.text);
    bundle_clear(directory, NULL, NULL);
    for (int i = 0; i < files.n; i++) {
        char *path = path_join(directory, files.v[i].name);
        FILE *f = fopen(path, "wb");
        ck_assert_uint_eq(fwrite(files.v[i].text.s, 1, files.v[i].text.n, f), files.v[i].text.n);
        fclose(f);
        free(path);
    }
    bundle_free(&files);
}

/* A file that cannot be reached is not an absent one: the result would lack it without a word. */
START_TEST(a_file_that_cannot_be_reached_is_an_error) {
    Error e = {0};
    Bundle files = {0};
    clean_usage();
    write_config("");
    const char *link = in_directory("generation_config.json");
    ck_assert(!symlink("nothing", link));
    ck_assert_msg(!bundle_read(directory, &files, &e), "%s", e.text);
    ck_assert(bundle_get(&files, "config.json") && !bundle_get(&files, "generation_config.json"));
    bundle_free(&files);
    ck_assert(!unlink(link) && !symlink("generation_config.json", link));
    ck_assert_int_eq(bundle_read(directory, &files, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "generation_config.json: Too many levels"));
    ck_assert(!unlink(link));
}
END_TEST

START_TEST(the_trained_end_is_declared) {
    const Usage u = {.end = 256, .end_text = "<|endoftext|>"};
    clean_usage();
    // transformers' default for gpt2, which a small vocabulary does not have
    write_config(", \"eos_token_id\": 50256, \"bos_token_id\": 50256");
    write_text("generation_config.json", "{\"eos_token_id\": [258, 256], \"pad_token_id\": 258}");
    save(&u);
    ck_assert_str_eq(found("config.json", "eos_token_id"), "256");
    ck_assert_str_eq(found("config.json", "bos_token_id"), "256");
    ck_assert_str_eq(found("config.json", "pad_token_id"), "none");
    ck_assert_str_eq(found("generation_config.json", "eos_token_id"), "256");
    ck_assert_str_eq(found("generation_config.json", "pad_token_id"), "258");
    ck_assert_str_eq(found("tokenizer_config.json", "eos_token"), "none");  // it need not exist
    ck_assert_int_eq(usage_end(directory), 256);
    // an end of another name must be declared; what is not changed stays
    const Usage s = {.end = 257, .end_text = "</s>"};
    save(&s);
    ck_assert_str_eq(found("tokenizer_config.json", "eos_token"), "\"</s>\"");
    write_text("tokenizer_config.json",
               "{\"eos_token\": {\"content\": \"x\"}, \"pad_token\": "
               "\"[PAD]\", \"model_max_length\": 1024, \"add_prefix_space\": "
               "false}");
    write_text("special_tokens_map.json", "{\"eos_token\": \"x\", \"pad_token\": \"[PAD]\"}");
    save(&s);
    ck_assert_str_eq(found("tokenizer_config.json", "eos_token"), "\"</s>\"");
    ck_assert_str_eq(found("tokenizer_config.json", "pad_token"), "\"[PAD]\"");
    ck_assert_str_eq(found("tokenizer_config.json", "model_max_length"), "1024");
    ck_assert_str_eq(found("special_tokens_map.json", "eos_token"), "\"</s>\"");
    // null is the usual class, whose end has the usual name
    ck_assert_int_eq(unlink(in_directory("special_tokens_map.json")), 0);
    write_text("tokenizer_config.json", "{\"tokenizer_class\": null}");
    save(&u);
    ck_assert_str_eq(found("tokenizer_config.json", "eos_token"), "none");
    save(&s);
    ck_assert_str_eq(found("tokenizer_config.json", "eos_token"), "\"</s>\"");
    ck_assert_int_eq(unlink(in_directory("generation_config.json")), 0);
    ck_assert_int_eq(usage_end(directory), 257);
    clean_usage();
}
END_TEST

START_TEST(a_reward_model_is_padded_with_its_end) {
    const Usage u = {.end = 256, .end_text = "<|endoftext|>", .scores = true};
    clean_usage();
    write_config(", \"eos_token_id\": 256, \"pad_token_id\": 257");
    write_text("tokenizer_config.json",
               "{\"eos_token\": \"<|endoftext|>\", \"pad_token\": \"[PAD]\"}");
    write_text("special_tokens_map.json", "{\"pad_token\": {\"content\": \"[PAD]\"}}");
    ck_assert_int_eq(usage_pad(directory), 257);
    save(&u);
    ck_assert_int_eq(usage_pad(directory), 256);
    ck_assert_str_eq(found("tokenizer_config.json", "pad_token"), "\"<|endoftext|>\"");
    ck_assert_str_eq(found("special_tokens_map.json", "pad_token"), "\"<|endoftext|>\"");
    clean_usage();
}
END_TEST

static void is_template(const char *wanted, const char *file) {
    Error e;
    char *template;
    const char *from;
    ck_assert_int_eq(usage_template(directory, IM_END, &template, &from, NULL, &e), 0);
    ck_assert_msg(wanted ? template && !strcmp(template, wanted) : !template, "\"%s\"",
                  template ? template : "none");
    ck_assert_str_eq(from ? from : "none", file);
    free(template);
}

START_TEST(the_template_of_a_directory) {
    clean_usage();
    write_config("");
    is_template(NULL, "none");
    write_text(
        "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"}, {\"name\": "
        "\"default\", \"template\": \"{% for m in messages %}{% if m.role == 'user' %}Q: {{ "
        "m.content }} A: {% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}\"}]}");
    is_template("[[{system}<|im_end|>]]Q: {instruction} A: ", "tokenizer_config.json");
    write_text("chat_template.jinja", golden_template[0]);
    is_template("[[<|im_start|>system\\n{system}<|im_end|>\\n]]" CHATML_TURN,
                "chat_template.jinja");
    write_text("chat_template.jinja", golden_template[8]);
    is_template(NULL, "chat_template.jinja");
    write_text("template.txt", "{instruction} ->\n");
    is_template("{instruction} ->", "template.txt");
    // what is written contradicts nothing
    write_text("chat_template_rag.jinja", "x");
    const Usage u = {.template = "{instruction}: ", .end = 256, .end_text = IM_END};
    save(&u);
    is_template("{instruction}: ", "template.txt");
    ck_assert_str_eq(found("tokenizer_config.json", "chat_template"), "none");
    ck_assert_int_eq(access(in_directory("chat_template_rag.jinja"), F_OK), -1);
    ck_assert_int_eq(unlink(in_directory("template.txt")), 0);
    is_template("{instruction}: ", "chat_template.jinja");
    clean_usage();
}
END_TEST

/* ---- the programs ---------------------------------------------------------------------------- */

/* Every program puts records into the template of its model's directory. */
START_TEST(the_programs_use_the_template_of_the_directory) {
    static const char *const command[][2] = {
        {"sft --data test/tiny/sft.jsonl --dry_run", "Q: .*"},
        {"lora --data test/tiny/sft.jsonl --dry_run", "Q: .*"},
        {"adapter --data test/tiny/sft.jsonl --dry_run", "Q: .*"},
        {"full_ft --data test/tiny/sft.jsonl --dry_run", "Q: .*"},
        {"reward --data test/tiny/preferences.jsonl --dry_run", "Q: .*"},
        {"constitutional --prompts test/tiny/sft.jsonl --dry_run", "Q: .*"},
    };
    for (int i = 0; i < COUNT(command); i++) {
        const int status = shell(
            "set -e; cp -r test/tiny/chat %s/model; printf 'Q: {instruction}\\\\nA: \\n' "
            ">%s/model/template.txt; %s/%s --model %s/model >%s/said 2>&1; rm -r %s/model; grep "
            "-q '%s' %s/said; ! grep -q '### Instruction' %s/said; rm %s/said",
            directory, directory, build(), command[i][0], directory, directory, directory,
            command[i][1], directory, directory, directory);
        ck_assert_msg(status == 0, "%s", command[i][0]);
    }
}
END_TEST

/* --score and --prompt/--response agree, and what is written is what was used. */
START_TEST(a_judge_reads_one_template) {
    const int status = shell(
        "set -e; cd %s; b='%s'; case $b in /*) ;; *) b=$OLDPWD/$b;; esac; r=$OLDPWD; "
        "cp -r $r/test/tiny/chat base; printf 'Q: {instruction}\\\\nA: {response} !\\n' "
        ">base/template.txt; head -20 $r/test/tiny/preferences.jsonl >pairs; "
        "$b/reward --model base --data pairs --max_steps 2 --warmup_steps 0 --output judge "
        ">/dev/null "
        "2>&1; cmp base/template.txt judge/template.txt; "
        "echo '{\"instruction\": \"Name a colour.\", \"output\": \"Blue.\"}' >answers; "
        "$b/reward --model judge --score answers 2>/dev/null | sed 's/.*: //; s/}//' >one; "
        "$b/reward --model judge --prompt 'Name a colour.' --response Blue. 2>/dev/null >two; "
        "cmp one two; test -s one; rm -r base judge pairs answers one two",
        directory, build());
    ck_assert_int_eq(status, 0);
}
END_TEST

/* Runs a shell command in a copy of the tiny model without weights; its output. To be freed. */
static Str said(const char *command) {
    Str line = {0}, out = {0};
    str_printf(&line,
               "b=%s; m=%s/m; d=%s; mkdir $m; cp test/tiny/vocab.json test/tiny/merges.txt $m;"
               "(%s) 2>&1; rm -r $m",
               build(), directory, directory, command);
    FILE *f = popen(line.s, "r");
    ck_assert_ptr_nonnull(f);
    char block[4096];
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) str_add(&out, block, n);
    pclose(f);
    free(line.s);
    str_add(&out, "", 0);
    return out;
}

#define BESIDE                                                                     \
    "cp test/tiny/config.json test/tiny/model.safetensors $m; printf '{}' "        \
    ">$m/adapter_config.json; "                                                    \
    "printf '{\"repetition_penalty\": 1.3, \"top_p\": 0.9, \"do_sample\": false, " \
    "\"eos_token_id\": "                                                           \
    "[256, 10]}' >$m/generation_config.json; $b/sft --model $m --prompt Hi --max_new_tokens 1"

START_TEST(directories_of_other_kinds) {
    static const char *const kind[][2] = {
        {"$b/sft --model test/tiny/model.safetensors --data test/tiny/sft.jsonl",
         "is a file; --model"},
        {"touch $m/hparams.json; $b/sft --model $m --data test/tiny/sft.jsonl", "OpenAI's own"},
        {"cp test/tiny/config.json $m; touch $m/tf_model.h5; $b/sft --model $m --data "
         "test/tiny/sft.jsonl --max_steps 1",
         "another framework, tf_model.h5"},
        {"cp test/tiny/config.json $m; rm $m/merges.txt; touch $m/vocab.txt; $b/sft --model $m "
         "--data test/tiny/sft.jsonl --max_steps 1",
         "another kind, vocab.txt"},
        {"cp test/tiny/config.json $m; printf '{\"[PAD]\": 257}' >$m/added_tokens.json; $b/sft "
         "--model $m --data test/tiny/sft.jsonl --max_steps 1",
         "\"[PAD]\" has id 257 in the tokenizer (added_tokens.json), and the model has 257 tokens"},
        {"$b/full_ft --init d1-c8-h2-t64 --model $m --data test/tiny/domain.jsonl --max_steps 1 "
         "--eval_samples 0 --warmup_steps 0 --output $m/o && grep '\"vocab_size\": 257' "
         "$m/o/config.json && $b/sft --model $m/o --prompt Hi --max_new_tokens 1 && echo fine",
         "fine"},
        {"sed 's/\"vocab_size\": 257/\"vocab_size\": 300/' test/tiny/config.json >$m/config.json; "
         "$b/full_ft --init d1-c8-h2-t64 --model $m --data test/tiny/domain.jsonl --max_steps 0 "
         "--eval_samples 0",
         "is 300, and the tokenizer has 257 tokens; the new model has 300"},
        {BESIDE, "m also holds an adapter, which is not applied"},
        {BESIDE, "m/generation_config.json: not used: repetition_penalty, top_p; flags here say"},
        {BESIDE, "is a list with 10 in it; here \"<|endoftext|>\" alone ends a text"},
    };
    for (int i = 0; i < COUNT(kind); i++) {
        Str out = said(kind[i][0]);
        ck_assert_msg(strstr(out.s, kind[i][1]) != NULL, "%s: %s", kind[i][0], out.s);
        free(out.s);
    }
}
END_TEST

/* A chat template may end the turns with a token that is not the tokenizer's end, which then stays
   out of the text; the written directory declares the token that was trained. */
START_TEST(the_token_that_ends_the_turns_ends_every_text) {
    static const char made[] =
        "printf '{\"<|im_start|>\": 257, \"<|im_end|>\": 258}' >$m/added_tokens.json; $b/full_ft "
        "--init d1-c8-h2-t128 --model $m --data test/tiny/domain.jsonl --max_steps 0 "
        "--eval_samples 0 --output $m/base >/dev/null; rm -f $m/base/template.txt "
        "$m/base/chat_template.jinja; cp $d/chatml $m/base/chat_template.jinja; printf "
        "'{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", "
        "\"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}, {\"role\": \"user\", "
        "\"content\": \"r\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\\n' >$m/r; ";
    static const char *const run[][2] = {
        {"$b/sft --model $m/base --data $m/r --eval_samples 0 --dry_run",
         "note: the template ends an answer with <|im_end|>, so that token ends every text, and "
         "not "
         "<|endoftext|>"},
        {"$b/sft --model $m/base --data $m/r --eval_samples 0 --dry_run | tr '\\n' '/'",
         "<|im_start|>system/s<|im_end|>/<|im_start|>user/q<|im_end|>/<|im_start|>assistant/"
         "«a<|im_end|>»/<|im_start|>user/r<|im_end|>/<|im_start|>assistant/«b<|im_end|>»"},
        {"$b/sft --model $m/base --data $m/r --eval_samples 0 --max_steps 1 --warmup_steps 0 "
         "--output $m/o >/dev/null 2>&1; grep -h eos_token $m/o/config.json "
         "$m/o/tokenizer_config.json | tr -d '\\n'",
         "\"eos_token_id\": 258,  \"eos_token\": \"<|im_end|>\""},
        {"$b/lora --model $m/base --data $m/r --eval_samples 0 --max_steps 1 --warmup_steps 0 "
         "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --output $m/l >/dev/null "
         "2>&1; $b/lora --model $m/base --adapter $m/l --merge $m/o "
         ">/dev/null 2>&1; grep -h eos_token $m/o/config.json $m/o/tokenizer_config.json | tr -d "
         "'\\n'",
         "\"eos_token_id\": 258,  \"eos_token\": \"<|im_end|>\""},
        {"$b/sft --model $m/base --prompt q --max_new_tokens 1", "ends every text, and not"},
        {"$b/sft --model $m/base --template 'Q {instruction} A' --data $m/r --eval_samples 0 "
         "--dry_run",
         "a<|endoftext|>»"},
        // plain text has no turns
        {"printf '{\"text\": \"abc\"}\\n' >$m/t; $b/full_ft --model $m/base --data $m/t "
         "--eval_samples 0 --dry_run",
         "a«bc<|endoftext|>»"},
    };
    write_text("chatml", golden_template[0]);
    for (int i = 0; i < COUNT(run); i++) {
        Str command = {0};
        str_printf(&command, "%s%s", made, run[i][0]);
        Str out = said(command.s);
        ck_assert_msg(strstr(out.s, run[i][1]) != NULL, "%s: %s", run[i][0], out.s);
        free(out.s);
        free(command.s);
    }
    ck_assert_int_eq(unlink(in_directory("chatml")), 0);
}
END_TEST

/* A prompt that lost its beginning may begin inside a character. */
START_TEST(prompts_cut_inside_a_character_are_printed_whole) {
    for (int length = 30; length < 33; length++) {
        char command[512];
        snprintf(command, sizeof command,
                 "printf '{\"instruction\": \"한국의 수도는 어디인가요 정말 궁금합니다\", "
                 "\"output\": \"서울\"}' >$d/records.jsonl; $b/sft --model test/tiny/chat --data "
                 "$d/records.jsonl --eval $d/records.jsonl --max_length %d --dry_run",
                 length);
        Str out = said(command);
        ck_assert(strstr(out.s, "--- line 1: ") != NULL);
        ck_assert(utf8_valid(out.s, out.n));
        free(out.s);
    }
}
END_TEST

int main(void) {
    const TTest *const jinja[] = {chat_templates_as_in_transformers,
                                  chat_templates_that_can_be_said,
                                  system_messages_with_an_empty_line,
                                  what_is_trained_is_what_transformers_renders,
                                  what_is_no_jinja,
                                  a_written_chat_template_is_the_training_form};
    const TTest *const usage[] = {
        a_file_that_cannot_be_reached_is_an_error, the_trained_end_is_declared,
        a_reward_model_is_padded_with_its_end, the_template_of_a_directory};
    const TTest *const programs[] = {the_programs_use_the_template_of_the_directory,
                                     a_judge_reads_one_template, directories_of_other_kinds,
                                     the_token_that_ends_the_turns_ends_every_text,
                                     prompts_cut_inside_a_character_are_printed_whole};
    Suite *s = suite_create("usage");
    add_case(s, "jinja", jinja, COUNT(jinja));
    add_case(s, "usage", usage, COUNT(usage));
    add_case(s, "programs", programs, COUNT(programs));
    return run_cases(s);
}
