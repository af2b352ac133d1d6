/*
 * chat.c - a prompt or a conversation, answered as the tokens come. See chat.h.
 */
#include "run/chat.h"

#include "files/hf.h"
#include "run/technique.h"
#include "text/template.h"
#include "text/utf8.h"

#include <signal.h>
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

/* ---- Ctrl-C ---------------------------------------------------------------------------------- */

/* Ends the program at once, with the shell's own prompt on a line of its own. */
static void leave(int number) {
    signal(number, SIG_DFL);
    if (isatty(STDERR_FILENO) && write(STDERR_FILENO, "\n", 1) < 0) _exit(128 + number);
    raise(number);
}

static void leave_at(int number) {
    struct sigaction old, action = {.sa_handler = leave};
    sigemptyset(&action.sa_mask);
    if (!sigaction(number, NULL, &old) && old.sa_handler != SIG_IGN)
        sigaction(number, &action, NULL);
}

void chat_interrupts(void) {
    leave_at(SIGINT);
    leave_at(SIGTERM);
}

/* ---- the template ---------------------------------------------------------------------------- */

char *chat_template(const char *template, const char *adapter, const char *dir) {
    Error e;
    const char *from[] = {adapter, dir}, *found = template ? "--template" : NULL;
    char *text = template ? xstrdup(template) : NULL;
    for (int i = 0; i < 2 && !text; i++) {
        if (from[i] && hf_template(from[i], &text, &e)) die_usage("%s", e.text);
        if (text) found = from[i];
    }
    char *tried = text ? template_prompt(text, "", NULL, &e) : NULL;
    if (text && !tried) die_usage("%s%s: %s", found, template ? "" : "/template.txt", e.text);
    free(tried);
    return text;
}

/* ---- the next turn --------------------------------------------------------------------------- */

/* Makes text the next turn: in its template, as tokens. -1 with e filled: it is empty, or too long.
 */
static int take_turn(Chat *c, const char *text, Error *e) {
    char *prompt = c->plain ? xstrdup(text) : template_prompt(c->form, text, NULL, e);
    c->next.n = 0;
    tokenizer_encode(c->tokenizer, prompt, strlen(prompt), true, &c->next);
    free(prompt);
    if (!c->next.n) return fail(e, "is empty");
    if (c->next.n > (size_t)c->positions)
        return fail(e, "is %zu tokens%s, and the model has %d positions; ask for less", c->next.n,
                    c->plain ? "" : " with its template", c->positions);
    return 0;
}

GPT2Limits chat_prepare(Chat *c, const char *adapter, const char *dir, const GPT2Config *config) {
    Error e;
    chat_interrupts();
    if (c->prompt && !*c->prompt) die_usage("--prompt is empty; give it a text");
    c->tokenizer = run_load_tokenizer(dir, config);
    c->positions = config->n_positions;
    c->form = chat_template(c->template, adapter, dir);
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
   positions when that is less. */
static void forget(Chat *c) {
    const int answer = min_int(c->max_new_tokens, max_int(c->positions / 2, 1));
    const size_t need = c->next.n + (size_t)answer;
    const size_t room = (size_t)c->positions + 1;  // the last token is never read
    size_t turns = 0, from = 0;
    while (turns < c->turns.n && c->said.n - from + need > room) {
        turns++;
        from = turns < c->turns.n ? (size_t)c->turns.v[turns] : c->said.n;
    }
    if (!turns) return;
    c->said.n -= from;
    memmove(c->said.v, c->said.v + from, sizeof(int) * c->said.n);
    c->turns.n -= turns;
    for (size_t i = 0; i < c->turns.n; i++) c->turns.v[i] = c->turns.v[i + turns] - (int)from;
    c->forgotten += (int)turns;
    fprintf(
        stderr,
        "note: the conversation no longer fits the model's %d positions; its first %d turns are "
        "forgotten\n",
        c->positions, c->forgotten);
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
    if (fflush(stdout) || ferror(stdout)) die("cannot write the answer: %s", strerror(errno));
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

char *chat_line(void) {
    const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    char *s = NULL;
    size_t room = 0;
    if (terminal) fputs("> ", stdout);
    if (terminal) fflush(stdout);
    ssize_t n = getline(&s, &room, stdin);
    if (n < 0 && terminal) putchar('\n');
    Str line = {0};
    while (n > 0 && strchr("\r\n", s[n - 1])) n--;
    if (n > 0) {
        str_add(&line, s, (size_t)n);
        text_repair(&line, 0);
    }
    free(s);
    if (line.s && !strcmp(line.s, "/exit")) {
        free(line.s);
        line.s = NULL;
    }
    return line.s;
}

void chat_hold(Chat *c, GPT2 *model, uint64_t seed) {
    Error e;
    if (c->prompt) answer(c, model, seed);
    if (c->chat && isatty(STDIN_FILENO))
        fputs("Each line is a turn. An empty line, /exit or Ctrl-D ends the conversation.\n",
              stderr);
    for (char *line; c->chat && (line = chat_line()); free(line))
        if (take_turn(c, line, &e))
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
}

void chat_answer(Chat *c, Run *run, const Technique *technique, const char *adapter) {
    Error e;
    GPT2Config config;
    const char *dir = run->model ? run->model : example_file("tiny/chat");
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
