/*
 * chat.c - a prompt or a conversation, answered as the tokens come. See chat.h.
 */
#define _GNU_SOURCE  // defines: program_invocation_short_name

#include "run/chat.h"

#include "files/hf.h"
#include "files/usage.h"
#include "run/line.h"
#include "run/streams.h"
#include "run/technique.h"
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <strings.h>
#include <unistd.h>

bool chat_asked(const Chat *c) { return c->prompt || c->chat; }

/* ---- showing text ---------------------------------------------------------------------------- */

typedef struct {
    const Tokenizer *tokenizer;
    Str bytes;  // the beginning of a character whose other bytes are still to come
} Stream;

static void show(Stream *s, bool end) {
    Str text = {0};
    utf8_stream(&s->bytes, end, &text);
    if (text.n) fwrite(text.s, 1, text.n, stdout);
    fflush(stdout);
    free(text.s);
}

static void show_token(void *context, int sequence, int token) {
    Stream *s = (Stream *)context;
    (void)sequence;
    if (token == tokenizer_eos(s->tokenizer)) return;
    tokenizer_decode(s->tokenizer, &token, 1, &s->bytes);
    show(s, false);
}

/* ---- the template ---------------------------------------------------------------------------- */

/* Says so if a chat template ends its answers with a text that is no token: the model could not
   tell where an answer ends. */
static void say_no_end(const char *text, const Tokenizer *t) {
    Template parsed;
    const bool right = !template_parse(text, &parsed, NULL);
    const Slice end = utf8_trimmed((Slice){parsed.tail.s, parsed.tail.n});
    if (right && !parsed.ends && end.n && tokenizer_first_added(t, parsed.tail.s) < 0)
        fprintf(stderr,
                "note: it ends an answer with \"%.*s\", which is no token of the tokenizer, so %s "
                "follows, in the chat template of the output, too\n",
                (int)strcspn(end.s, "\n"), end.s, template_end());
    template_free(&parsed);
}

/* Says what was made of a chat template. text: the template; NULL: there is none that says it. */
static void say_chat_template(const char *dir, const char *from, const char *text, bool system_said,
                              const Tokenizer *t) {
    if (!text) {
        fprintf(stderr,
                "note: the chat template of %s/%s is not used, because it makes a form that no "
                "template here can say; --template sets the form of the prompts\n",
                dir, from);
        return;
    }
    fprintf(stderr, "note: the chat template of %s/%s is the template '%s'\n", dir, from, text);
    if (!system_said)
        fprintf(
            stderr,
            "note: how it writes a system message is not used; here that comes before the first "
            "turn as it is, with an empty line after it\n");
    if (t) say_no_end(text, t);
}

/* The template of a directory, to be freed, or NULL. */
static char *directory_template(const char *dir, const Tokenizer *t) {
    Error e;
    char *text;
    const char *from;
    bool system_said;
    if (usage_template(dir, template_end(), &text, &from, &system_said, &e))
        die_usage("%s", e.text);
    char *tried = text ? template_prompt(text, "", NULL, &e) : NULL;
    if (text && !tried) die_usage("%s/%s: %s", dir, from, e.text);
    free(tried);
    const bool chat = from && (strstr(from, ".jinja") || strstr(from, "tokenizer_config"));
    if (chat) say_chat_template(dir, from, text, system_said, t);
    return text;
}

char *chat_template(const char *template, const char *adapter, const char *dir,
                    const Tokenizer *t) {
    Error e;
    char *tried = template ? template_prompt(template, "", NULL, &e) : NULL;
    if (template && !tried) die_usage("--template: %s", e.text);
    free(tried);
    char *text = template ? xstrdup(template) : adapter ? directory_template(adapter, t) : NULL;
    return text || !dir ? text : directory_template(dir, t);
}

/* ---- the next turn --------------------------------------------------------------------------- */

/* Finds what the template has before the first turn, such as a system's message, at the front of
   the first one. */
static void find_head(Chat *c) {
    Template t;
    Str text = {0};
    Ints head = {0};
    c->head = 0;
    if (!template_parse(c->form, &t, NULL)) template_render_system(&t, (Slice){0}, &text);
    template_free(&t);
    if (text.n) tokenizer_encode(c->tokenizer, text.s, text.n, true, &head);
    if (head.n && head.n <= c->next.n && !memcmp(head.v, c->next.v, head.n * sizeof *head.v))
        c->head = (int)head.n;
    free(text.s);
    free(head.v);
}

/* Makes text the next turn: in its template, as tokens. -1 with e filled: it is empty, or too long.
 */
static int take_turn(Chat *c, const char *text, Error *e) {
    char *prompt = c->plain ? xstrdup(text) : template_turn(c->form, text, c->said.n > 0);
    c->next.n = 0;
    tokenizer_encode(c->tokenizer, prompt, strlen(prompt), true, &c->next);
    free(prompt);
    if (!c->plain && !c->said.n) find_head(c);
    if (!c->next.n) return fail(e, "is empty");
    if (c->next.n > (size_t)c->positions)
        return fail(e, "is %zu tokens%s, and the model has %d positions; ask for less", c->next.n,
                    c->plain ? "" : " with its template", c->positions);
    return 0;
}

GPT2Limits chat_prepare(Chat *c, const char *adapter, const char *dir, const GPT2Config *config) {
    Error e;
    if (c->prompt && !*c->prompt) die_usage("--prompt is empty; give it a text");
    c->tokenizer = run_load_tokenizer(dir, config);
    c->positions = config->n_positions;
    char *unused = usage_generation(dir);
    if (unused)
        fprintf(stderr,
                "note: %s/generation_config.json: not used: %s; flags here say how answers are "
                "sampled\n",
                dir, unused);
    free(unused);
    c->form = chat_template(c->template, adapter, dir, c->tokenizer);
    char *before = xstrdup(template_end());
    if (c->form && run_end_by_template(c->tokenizer, c->form)) run_say_end(before);
    free(before);
    c->plain = !c->form && !c->chat;
    if (!c->form)
        fprintf(
            stderr,
            "note: %s does not say in which template it was trained; %s. --template sets one\n",
            dir,
            c->plain ? "the text is continued as it is" : "this conversation uses the default one");
    if (c->prompt) {
        Str text = {0};
        str_add(&text, c->prompt, strlen(c->prompt));
        text_repair(&text, 0);
        if (take_turn(c, text.s, &e)) die_usage("--prompt %s", e.text);
        free(text.s);
    }
    const int n = (int)c->next.n, most = c->positions;
    const int positions = c->chat ? most : n + min_int(c->max_new_tokens, most - n);
    // A longer prompt is read in several passes of 256 tokens
    return (GPT2Limits){.tokens = min_int(c->chat ? most : n, 256),
                        .sequences = 1,
                        .slots = 1,
                        .positions = positions};
}

/* ---- the conversation ------------------------------------------------------------------------ */

/* Cuts turns from the front until the next one has room for its answer: max_new_tokens, or half the
   positions when that is less. The head stays if there is room for it. */
static void forget(Chat *c) {
    const int answer = min_int(c->max_new_tokens, max_int(c->positions / 2, 1));
    const size_t need = c->next.n + (size_t)answer;
    const size_t room = (size_t)c->positions + 1;  // the last token is never read
    size_t turns = 0, from = 0, head = c->said.n ? (size_t)c->head : 0;
    while (turns < c->turns.n && c->said.n - from + (turns ? head : 0) + need > room) {
        turns++;
        from = turns < c->turns.n ? (size_t)c->turns.v[turns] : c->said.n;
    }
    if (!turns) return;
    if (c->said.n - from + head + need > room) head = 0;
    const size_t cut = from - head;
    c->said.n -= cut;
    memmove(c->said.v + head, c->said.v + from, sizeof(int) * (c->said.n - head));
    c->turns.n -= turns;
    for (size_t i = 0; i < c->turns.n; i++) c->turns.v[i] = c->turns.v[i + turns] - (int)cut;
    c->head = (int)head;
    c->forgotten += (int)turns;
    fprintf(
        stderr,
        "note: the conversation no longer fits the model's %d positions; its first %d turn%s %s "
        "forgotten\n",
        c->positions, c->forgotten, plural(c->forgotten), are(c->forgotten));
}

/* Answers the next turn. Both become part of the conversation. */
static void answer(Chat *c, GPT2 *model, uint64_t seed) {
    forget(c);
    ints_push(&c->turns, (int)c->said.n);
    for (size_t i = 0; i < c->next.n; i++) ints_push(&c->said, c->next.v[i]);
    const int start[2] = {0, (int)c->said.n}, eos = tokenizer_eos(c->tokenizer);
    const Batch prompt = {.S = 1, .N = start[1], .start = start, .tokens = c->said.v};
    const Sampler sampler = {
        .temperature = c->temperature,
        .top_k = c->top_k,
        .top_p = c->top_p,
        .max_new_tokens = c->max_new_tokens,
        .stop_token = eos,
        .seed = seed,
        .step = (uint32_t)c->forgotten,  // a position that comes again after a cut draws anew
    };
    Stream stream = {.tokenizer = c->tokenizer};
    Generation g;
    gpt2_generate(model, &prompt, &sampler, &g, show_token, &stream);
    show(&stream, true);
    putchar('\n');
    if (fflush(stdout) || ferror(stdout))
        die("cannot write the answer: %s; %s", strerror(errno), error_remedy(errno));
    const int n = g.start[1];
    if (!g.ended[0] && n < c->max_new_tokens)
        fprintf(stderr, "note: the answer ends here because the model's %d positions are full\n",
                c->positions);
    else if (!g.ended[0] && !c->plain)
        fprintf(stderr, "note: the answer ends here because of --max_new_tokens %d\n",
                c->max_new_tokens);
    for (int i = 0; i < n; i++) ints_push(&c->said, g.tokens[i]);
    if (!g.ended[0]) ints_push(&c->said, eos);  // as in training: an answer ends with it
    generation_free(&g);
    free(stream.bytes.s);
}

/* Forgets the conversation. */
static void reset(Chat *c) {
    c->said.n = c->turns.n = 0;
    c->forgotten = 0;
    if (!streams_are_quiet()) fprintf(stderr, "The conversation begins anew.\n");
}

static void print_commands(void) {
    fprintf(stderr,
            "Each line is a turn.\n"
            "  /reset    begin a new conversation\n"
            "  /help     this list\n"
            "  /exit     end, as /quit, an empty line and Ctrl-D do\n");
    if (line_edits())
        fprintf(stderr, "The arrow keys edit a line, and bring back earlier ones.\n");
    else
        fprintf(stderr,
                "This program was built without a line editor: rlwrap ./%s --chat adds one.\n",
                program_invocation_short_name);
}

/* Is a line, without the blanks around it, a slash and a word, such as "/reset now"? */
static bool has_command(Slice line) {
    size_t n = 1;
    if (!line.n || *line.s != '/') return false;
    while (n < line.n && isalpha((unsigned char)line.s[n])) n++;
    return n > 1 && (n == line.n || line.s[n] == ' ' || line.s[n] == '\t');
}

static bool is_command(Slice line, const char *command) {
    return line.n == strlen(command) && !strncasecmp(line.s, command, line.n);
}

char *chat_line(void) {
    for (char *line; (line = line_read()); free(line)) {
        const Slice said = utf8_trimmed((Slice){line, strlen(line)});
        if (!said.n || is_command(said, "/exit") || is_command(said, "/quit")) {
            free(line);
            return NULL;
        }
        if (is_command(said, "/help")) {
            print_commands();
        } else if (is_command(said, "/reset")) {
            strcpy(line, "/reset");
            return line;
        } else if (has_command(said)) {
            fprintf(stderr, "There is no command %.*s; /help lists the commands.\n", (int)said.n,
                    said.s);
        } else {
            return line;
        }
    }
    return NULL;
}

void chat_hold(Chat *c, GPT2 *model, uint64_t seed) {
    Error e;
    streams_say();
    if (c->prompt) answer(c, model, seed);
    if (c->chat && isatty(STDIN_FILENO) && !streams_are_quiet()) print_commands();
    for (char *line; c->chat && (line = chat_line()); free(line))
        if (!strcmp(line, "/reset"))
            reset(c);
        else if (take_turn(c, line, &e))
            fprintf(stderr, "note: the turn %s\n", e.text);
        else
            answer(c, model, seed);
}

void chat_free(Chat *c) {
    tokenizer_free(c->tokenizer);
    free(c->form);
    free(c->said.v);
    free(c->turns.v);
    free(c->next.v);
    c->tokenizer = NULL;
    c->form = NULL;
    c->said = c->turns = c->next = (Ints){0};
    c->head = 0;
}

void chat_answer(Chat *c, Run *run, const Technique *technique, const char *adapter) {
    Error e;
    GPT2Config config;
    const char *dir = run->model ? run->model : example_file("tiny/chat");
    if (!run->model && example_check(dir, &e)) die_usage("%s", e.text);
    if (hf_config(dir, &config, &e)) die_usage("%s", e.text);
    GPT2Limits limits = chat_prepare(c, adapter, dir, &config);
    GPT2 *model;
    gpt2_use_bf16(&limits, run->bf16, !technique);
    if (technique) {
        model = technique_open(technique, run, adapter, limits);
    } else {
        if (!(model = hf_load(dir, true, &e))) die_usage("%s", e.text);
        gpt2_reserve(model, &limits);
    }
    chat_hold(c, model, (uint64_t)run->seed);
    gpt2_free(model);
    if (technique) added_free(technique->added);
    chat_free(c);
}
