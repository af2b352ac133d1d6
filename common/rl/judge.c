/*
 * judge.c - gives texts a score: see judge.h.
 */
#include "rl/judge.h"

#include "files/hf.h"
#include "run/chat.h"
#include "text/dataset.h"
#include "text/json.h"
#include "text/template.h"

/* ---- texts and their rewards ----------------------------------------------------------------- */

/* The tokens of a record. Returns how many of them are the prompt. An answer given earlier in a
   conversation is ended by <|endoftext|>. */
static size_t record_tokens(const Record *r, const Tokenizer *t, Ints *out) {
    size_t prompt = 0;
    out->n = 0;
    for (int s = 0; s < r->n; s++) {
        if (s && r->spans[s - 1].scored) ints_push(out, tokenizer_eos(t));
        tokenizer_encode(t, r->spans[s].text, r->spans[s].n, true, out);
        if (s == 0 && !r->spans[s].scored) prompt = out->n;
    }
    return prompt;
}

Texts texts_read(const char *path, const char *template, int max_length, const Tokenizer *t) {
    Error e;
    Records records;
    Ints tokens = {0}, one = {0};
    long cut = 0, cut_short = 0;  // texts that lost tokens; of them, texts that lost their end
    if (answers_read(path, template, true, &records, &e)) die_usage("%s", e.text);
    Texts x = {.line = (int *)xmalloc(sizeof(int) * (size_t)records.n),
               .start = (size_t *)xcalloc((size_t)records.n + 1, sizeof(size_t))};
    for (int i = 0; i < records.n; i++) {
        const size_t prompt = record_tokens(&records.v[i], t, &one);
        const int n = judged_tokens(one.v, (int)one.n, tokenizer_eos(t));
        if (n == 0) die_usage("%s:%d: there is no token to judge", path, records.v[i].line);
        const int excess = max_int(0, n - max_length), left = min_int(excess, (int)prompt);
        cut += excess > 0;
        cut_short += excess > left;
        for (int k = left; k < n - (excess - left); k++) ints_push(&tokens, one.v[k]);
        x.line[i] = records.v[i].line;
        x.start[++x.n] = tokens.n;
        x.longest = max_int(x.longest, n - excess);
    }
    x.tokens = tokens.v;
    if (cut)
        fprintf(stderr,
                "note: %s: %ld texts are longer than --max_length %d; they lost the beginning of "
                "their prompt, and %ld of them also their end\n",
                path, cut, max_length, cut_short);
    free(one.v);
    records_free(&records);
    return x;
}

void texts_free(Texts *x) {
    free(x->line);
    free(x->start);
    free(x->tokens);
    *x = (Texts){0};
}

void texts_score(GPT2 *model, const GPT2Limits *limits, const Texts *x, float *score) {
    int *start = (int *)xcalloc((size_t)limits->sequences + 1, sizeof(int));
    float *value = (float *)xmalloc(sizeof(float) * (size_t)limits->tokens);
    for (int first = 0; first < x->n;) {
        // as many texts as there is room for
        int S = 0;
        while (first + S < x->n && S < limits->sequences) {
            const size_t N = x->start[first + S + 1] - x->start[first];
            if (N > (size_t)limits->tokens) break;
            start[++S] = (int)N;
        }
        const int *tokens = x->tokens + x->start[first];
        gpt2_forward(model, &(Batch){.S = S, .N = start[S], .start = start, .tokens = tokens},
                     NULL);
        gpt2_value(model, value);
        for (int s = 0; s < S; s++) score[first + s] = value[start[s + 1] - 1];
        first += S;
    }
    free(start);
    free(value);
}

/* ---- the judge of a policy's answers --------------------------------------------------------- */

/* r->score by the program: a line {"prompt", "response"} for each answer, a line {"score"} back. */
static void ask_program(const Judge *j, Rollouts *r) {
    Str question = {0}, answers = {0}, text = {0};
    Error e;
    for (int i = 0; i < r->E; i++) {
        for (int answer = 0; answer < 2; answer++) {
            text.n = 0;
            rollouts_text(r, i, answer, j->tokenizer, &text);
            str_printf(&question, answer ? ", \"response\": " : "{\"prompt\": ");
            json_add_string(&question, text.s, text.n);
        }
        str_add(&question, "}\n", 2);
    }
    if (child_ask(j->program, &question, r->E, j->patience, &answers, &e))
        die("--reward_cmd: %s; it must answer each line with one line {\"score\": number}", e.text);
    const char *line = answers.s;
    for (int i = 0; i < r->E; i++, line += strlen(line) + 1) {
        double score = 0;
        const int n = json_numbers(line, strlen(line), "score", &score, 1, &e);
        if (n != 1)
            die("--reward_cmd answered \"%.200s\": %s; it must answer each line with one line "
                "{\"score\": number}",
                line, n < 0 ? e.text : "one number is expected");
        r->score[i] = (float)score;
    }
    free(question.s);
    free(answers.s);
    free(text.s);
}

/* r->score by the model. A text of nothing but <|endoftext|> is judged at its first token. */
static void ask_model(const Judge *j, Rollouts *r, int B) {
    const int eos = tokenizer_eos(j->tokenizer);
    Texts x = {.n = r->E,
               .start = (size_t *)xcalloc((size_t)r->E + 1, sizeof(size_t)),
               .tokens = (int *)xmalloc(sizeof(int) * (size_t)(r->begin[r->E] - r->begin[0]))};
    for (int i = 0; i < r->E; i++) {
        const int *tokens = r->tokens + r->begin[i];
        const int n = max_int(1, judged_tokens(tokens, r->begin[i + 1] - r->begin[i], eos));
        memcpy(x.tokens + x.start[i], tokens, sizeof(int) * (size_t)n);
        x.start[i + 1] = x.start[i] + (size_t)n;
        x.longest = max_int(x.longest, n);
    }
    const GPT2Limits limits = {.sequences = B, .tokens = B * x.longest};
    texts_score(j->model, &limits, &x, r->score);
    texts_free(&x);
}

void judge_score(const Judge *j, Rollouts *r, const Queries *q, int B) {
    if (j->program) ask_program(j, r);
    if (j->model) ask_model(j, r, B);
    for (int i = 0; i < r->E; i++) {
        if (isfinite(r->score[i])) continue;
        Str text = {0};
        rollouts_text(r, i, true, j->tokenizer, &text);
        die("the score of an answer to the prompt on line %d is %g, where a finite number is "
            "needed; the answer: \"%.300s\"",
            q->line[r->query[i]], (double)r->score[i], text.s);
    }
}

/* ---- scores instead of training -------------------------------------------------------------- */

/* The reward model in dir, with room for limits. */
static GPT2 *load_reward_model(const char *dir, const GPT2Limits *limits) {
    Error e;
    bool found;
    GPT2 *model = hf_load_head(dir, SCORE_HEAD, true, &found, &e);
    if (!model) die_usage("%s", e.text);
    if (!found)
        die_usage(
            "%s has neither score.weight nor v_head.summary.weight: it is not a reward model; "
            "train one from it with ./reward",
            dir);
    gpt2_reserve(model, limits);
    return model;
}

/* --score: the answers of a file. */
static void score_file(const Scoring *s, const Run *run, const char *template, int max_length) {
    Error e;
    GPT2Config config;
    if (!run->model) die_usage("--score needs a --model");
    if (hf_config(run->model, &config, &e)) die_usage("%s", e.text);
    Tokenizer *t = tokenizer_load(run->model, &e);
    if (!t) die_usage("%s", e.text);
    Texts x = texts_read(s->score, template, min_int(max_length, config.n_positions), t);
    const int B = run->per_device_train_batch_size;
    GPT2Limits limits = {.tokens = B * x.longest, .sequences = B};
    gpt2_use_bf16(&limits, run->bf16, true);
    GPT2 *model = load_reward_model(run->model, &limits);
    float *score = (float *)xmalloc(sizeof(float) * (size_t)x.n);
    texts_score(model, &limits, &x, score);
    NewFile file = {.f = stdout};
    if (s->score_output && newfile_open(&file, s->score_output, &e)) die_usage("%s", e.text);
    for (int i = 0; i < x.n; i++)
        if (isfinite(score[i]))
            fprintf(file.f, "{\"line\": %d, \"score\": %.9g}\n", x.line[i], (double)score[i]);
        else
            fprintf(file.f, "{\"line\": %d, \"score\": null}\n", x.line[i]);
    if (s->score_output && newfile_close(&file, true, &e)) die("%s", e.text);
    if (fflush(stdout) || ferror(stdout)) die("cannot write the scores: %s", strerror(errno));
    free(score);
    gpt2_free(model);
    texts_free(&x);
    tokenizer_free(t);
}

/* Prints the reward of one answer, prompt and response both in the template. An answer that does
   not fit the model ends the program with 2; with skip a note says so instead. */
static void score_answer(GPT2 *model, const GPT2Limits *limits, const Tokenizer *t,
                         const char *prompt, const char *response, bool skip) {
    Ints tokens = {0};
    tokenizer_encode(t, prompt, strlen(prompt), true, &tokens);
    tokenizer_encode(t, response, strlen(response), true, &tokens);
    const int n = judged_tokens(tokens.v, (int)tokens.n, tokenizer_eos(t));
    const Texts x = {.n = 1, .start = (size_t[]){0, (size_t)n}, .tokens = tokens.v};
    float score;
    if (!n) die_usage("--prompt and --response are empty: there is no token to judge");
    if (n <= limits->tokens) {
        texts_score(model, limits, &x, &score);
        printf("%.9g\n", (double)score);
        fflush(stdout);
    } else if (skip) {
        fprintf(stderr,
                "note: with --prompt that is %d tokens, and the model has %d positions; it has no "
                "score\n",
                n, limits->tokens);
    } else {
        die_usage("--prompt with --response is %d tokens, and the model has %d positions", n,
                  limits->tokens);
    }
    free(tokens.v);
}

/* --prompt with --response or --chat: one answer, or each line of the input. */
static void score_answers(const Scoring *s, const Run *run, const char *template) {
    Error e;
    GPT2Config config;
    const char *dir = run->model ? run->model : example_file("tiny/reward");
    if (!*s->prompt) die_usage("--prompt is empty; the reward is of an answer to a prompt");
    if (!s->response && !s->chat)
        die_usage(
            "--prompt needs an answer to score: --response, or --chat for one answer a line. A "
            "reward model does not write answers; to get one, use ./sft --prompt");
    if (hf_config(dir, &config, &e)) die_usage("%s", e.text);
    chat_interrupts();
    Tokenizer *t = tokenizer_load(dir, &e);
    if (!t) die_usage("%s", e.text);
    char *form = chat_template(template, NULL, dir);
    char *prompt = form ? template_prompt(form, s->prompt, NULL, &e) : xstrdup(s->prompt);
    if (!form)
        fprintf(stderr,
                "note: %s does not say in which template it was trained, so --prompt is read as it "
                "is; --template sets one\n",
                dir);
    GPT2Limits limits = {.tokens = config.n_positions, .sequences = 1};
    gpt2_use_bf16(&limits, run->bf16, true);
    GPT2 *model = load_reward_model(dir, &limits);
    char *answer = s->chat ? chat_line() : xstrdup(s->response);
    while (answer) {
        char *response = form ? template_response(form, answer, &e) : xstrdup(answer);
        score_answer(model, &limits, t, prompt, response, s->chat);
        free(response);
        free(answer);
        answer = s->chat ? chat_line() : NULL;
    }
    if (fflush(stdout) || ferror(stdout)) die("cannot write the score: %s", strerror(errno));
    gpt2_free(model);
    tokenizer_free(t);
    free(form);
    free(prompt);
}

bool scoring_asked(const Scoring *s, const Run *run, const char *template, int max_length) {
    if (!s->prompt && (s->response || s->chat))
        die_usage(
            "--response and --chat give answers to a --prompt, which is missing; a reward model "
            "does not write answers, it scores them");
    if (s->score) score_file(s, run, template, max_length);
    if (s->prompt) score_answers(s, run, template);
    return s->score || s->prompt;
}
