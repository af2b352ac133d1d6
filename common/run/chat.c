/*
 * talk.c - a prompt or a conversation, answered as the tokens come: see talk.h.
 */
#include "run/chat.h"

#include "text/template.h"
#include "text/utf8.h"

#include <signal.h>

Talk talk_defaults(void) { return (Talk){.temperature = 0.7f, .top_p = 1, .max_new_tokens = 64}; }

bool talk_asked(const Talk *t) { return t->prompt || t->chat; }

/* ---- characters ------------------------------------------------------------------------------ */

typedef struct {
    const Tokenizer *tokenizer;
    Str bytes;  // that are still to become characters
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

/* Ctrl-C ends the program at once, the shell's own prompt on a line of its own. Nothing else was
 * changed in the terminal. */
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

void talk_interrupts(void) {
    leave_at(SIGINT);
    leave_at(SIGTERM);
}

/* ---- the form -------------------------------------------------------------------------------- */

char *talk_template(const char *template, const char *adapter, const char *dir) {
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

/* What is asked next, in its form, as tokens. -1 with e filled: there is nothing to read, or no
 * room to read it. */
static int ask(Talk *t, const char *text, Error *e) {
    char *prompt = t->plain ? xstrdup(text) : template_prompt(t->template, text, NULL, e);
    t->asked.n = 0;
    tokenizer_encode(t->tokenizer, prompt, strlen(prompt), true, &t->asked);
    free(prompt);
    if (!t->asked.n) return fail(e, "is empty");
    if (t->asked.n > (size_t)t->positions)
        return fail(e, "is %zu tokens%s, and the model has %d positions; ask for less", t->asked.n,
                    t->plain ? "" : " with its template", t->positions);
    return 0;
}

GPT2Limits talk_prepare(Talk *t, const char *adapter, const char *dir, const char *template,
                        const GPT2Config *config) {
    Error e;
    talk_interrupts();
    if (t->prompt && !*t->prompt) die_usage("--prompt is empty; say something");
    if (!(t->tokenizer = tokenizer_load(dir, &e))) die_usage("%s", e.text);
    if (tokenizer_size(t->tokenizer) > config->vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  dir, tokenizer_size(t->tokenizer), config->vocab_size);
    t->positions = config->n_positions;
    t->template = talk_template(template, adapter, dir);
    t->plain = !t->template && !t->chat;
    if (!t->template)
        fprintf(stderr,
                "note: nothing in %s says in which template it was trained; %s. --template says "
                "otherwise\n",
                dir,
                t->plain ? "the text is gone on from as it is"
                         : "this conversation has the default one");
    if (t->prompt) {
        Str text = {0};
        str_add(&text, t->prompt, strlen(t->prompt));
        text_repair(&text, 0);
        if (ask(t, text.s, &e)) die_usage("--prompt %s", e.text);
        free(text.s);
    }
    const int n = (int)t->asked.n, most = t->positions;
    return (GPT2Limits){.tokens = min_int(t->chat ? most : n, 256),
                        .sequences = 1,
                        .slots = 1,  // what is longer is read in several rounds
                        .positions = t->chat ? most : n + min_int(t->max_new_tokens, most - n)};
}

/* ---- the conversation ------------------------------------------------------------------------ */

/* Cuts turns from the front until what is asked has room for its answer: max_new_tokens, or half
 * the positions when that is less. */
static void forget(Talk *t) {
    const size_t need =
                     t->asked.n + (size_t)min_int(t->max_new_tokens, max_int(t->positions / 2, 1)),
                 room = (size_t)t->positions + 1;  // the last is never read
    size_t turns = 0, from = 0;
    while (turns < t->turns.n && t->said.n - from + need > room)
        from = ++turns < t->turns.n ? (size_t)t->turns.v[turns] : t->said.n;
    if (!turns) return;
    memmove(t->said.v, t->said.v + from, sizeof(int) * (t->said.n -= from));
    t->turns.n -= turns;
    for (size_t i = 0; i < t->turns.n; i++) t->turns.v[i] = t->turns.v[i + turns] - (int)from;
    t->forgotten += (int)turns;
    fprintf(stderr,
            "note: the conversation no longer fits the model's %d positions; from here on its "
            "first %d turns are forgotten\n",
            t->positions, t->forgotten);
}

/* Answers what was asked; both are then part of the conversation. */
static void answer(Talk *t, GPT2 *model, uint64_t seed) {
    forget(t);
    ints_push(&t->turns, (int)t->said.n);
    for (size_t i = 0; i < t->asked.n; i++) ints_push(&t->said, t->asked.v[i]);
    const int start[2] = {0, (int)t->said.n}, eos = tokenizer_eos(t->tokenizer);
    const Batch prompt = {.S = 1, .N = start[1], .start = start, .tokens = t->said.v};
    const Sampler sampler = {
        .temperature = t->temperature,
        .top_k = t->top_k,
        .top_p = t->top_p,
        .max_new_tokens = t->max_new_tokens,
        .stop_token = eos,
        .seed = seed,
        .step = (uint32_t)t->forgotten};  // a position that comes again after a cut draws anew
    Stream stream = {.tokenizer = t->tokenizer};
    Generation g;
    gpt2_generate(model, &prompt, &sampler, &g, show_token, &stream);
    show(&stream, true);
    putchar('\n');
    if (fflush(stdout) || ferror(stdout)) die("cannot write the answer: %s", strerror(errno));
    const int n = g.start[1];
    if (!g.ended[0] && n < t->max_new_tokens)
        fprintf(stderr, "note: the answer ends here because the model's %d positions are full\n",
                t->positions);
    else if (!g.ended[0] && !t->plain)
        fprintf(stderr, "note: the answer ends here because of --max_new_tokens %d\n",
                t->max_new_tokens);
    for (int i = 0; i < n; i++) ints_push(&t->said, g.tokens[i]);
    if (!g.ended[0]) ints_push(&t->said, eos);  // as in training: an answer is over
    generation_free(&g);
    free(stream.bytes.s);
}

char *talk_line(void) {
    const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    char *s = NULL;
    size_t room = 0;
    if (terminal) {
        fputs("> ", stdout);
        fflush(stdout);
    }
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

void talk_hold(Talk *t, GPT2 *model, uint64_t seed) {
    Error e;
    if (t->prompt) answer(t, model, seed);
    if (t->chat && isatty(STDIN_FILENO))
        fputs("a line is a turn; an empty line, /exit or Ctrl-D ends it\n", stderr);
    for (char *line; t->chat && (line = talk_line()); free(line))
        if (ask(t, line, &e))
            fprintf(stderr, "note: that %s\n", e.text);
        else
            answer(t, model, seed);
}

void talk_free(Talk *t) {
    tokenizer_free(t->tokenizer);
    free(t->template);
    free(t->said.v);
    free(t->turns.v);
    free(t->asked.v);
    t->tokenizer = NULL;
    t->template = NULL;
    t->said = t->turns = t->asked = (Ints){0};
}

int talk_to_model(Talk *t, Run *run, const char *template) {
    Error e;
    GPT2Config config;
    const char *dir = run->model ? run->model : run_example_file("tiny/chat");
    if (hf_config(dir, &config, &e)) die_usage("%s", e.text);
    GPT2Limits limits = talk_prepare(t, NULL, dir, template, &config);
    GPT2 *model = hf_load(dir, true, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    talk_hold(t, model, (uint64_t)run->seed);
    gpt2_free(model);
    talk_free(t);
    run_free(run);
    return 0;
}
