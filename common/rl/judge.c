/*
 * judge.c - gives texts a score: see judge.h.
 */
#include "rl/judge.h"

#include "files/hf.h"
#include "parts.h"
#include "progress.h"
#include "run/chat.h"
#include "run/network.h"
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

Texts texts_read(const char *path, const char *template, int max_length, const Tokenizer *t,
                 bool at_end) {
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
        const int excess = max_int(0, n + at_end - max_length), left = min_int(excess, (int)prompt);
        cut += excess > 0;
        cut_short += excess > left;
        for (int k = left; k < n - (excess - left); k++) ints_push(&tokens, one.v[k]);
        if (at_end) ints_push(&tokens, tokenizer_eos(t));
        x.line[i] = records.v[i].line;
        x.start[++x.n] = tokens.n;
        x.longest = max_int(x.longest, n + at_end - excess);
    }
    x.tokens = tokens.v;
    if (cut)
        fprintf(stderr,
                "note: %s: cut the beginning of the prompt of %ld text%s, longer than --max_length "
                "%d, and the end of %ld\n",
                path, cut, plural(cut), max_length, cut_short);
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

bool texts_score(GPT2 *model, const GPT2Limits *limits, const Texts *x, float *score) {
    int *start = (int *)xcalloc((size_t)limits->sequences + 1, sizeof(int));
    int *needed = (int *)xmalloc(sizeof(int) * (size_t)limits->tokens);
    float *value = (float *)xmalloc(sizeof(float) * (size_t)limits->tokens);
    const int end = part_end(x->n);
    for (int first = part_first(x->n); first < end && !run_interrupted();) {
        progress(first, x->n);
        // as many texts as there is room for
        int S = 0;
        while (first + S < end && S < limits->sequences) {
            const size_t N = x->start[first + S + 1] - x->start[first];
            if (N > (size_t)limits->tokens) break;
            start[++S] = (int)N;
        }
        const int *tokens = x->tokens + x->start[first];
        for (int i = 0; i < start[S]; i++) needed[i] = -1;
        for (int s = 0; s < S; s++) needed[start[s + 1] - 1] = 0;  // the last token of each
        const Batch batch = {
            .S = S, .N = start[S], .start = start, .tokens = tokens, .needed = needed};
        gpt2_forward(model, &batch, NULL);
        gpt2_value(model, value);
        for (int s = 0; s < S; s++) score[first + s] = value[start[s + 1] - 1];
        first += S;
    }
    parts_collect(score, sizeof *score, x->n, NULL);
    free(start);
    free(needed);
    free(value);
    return !run_interrupted();
}

/* ---- the judge of a policy's answers --------------------------------------------------------- */

/* r->score by the program: a line {"prompt", "response"} for each answer, with the "answer" of the
   record if it has one; a line {"score"} back. False: stopped() is true. */
static bool ask_program(const Judge *j, Rollouts *r, const Queries *q, bool (*stopped)(void)) {
    Str question = {0}, answers = {0}, text = {0};
    Error e;
    const int first = part_first(r->E), end = part_end(r->E);
    for (int i = first; i < end; i++) {
        for (int answer = 0; answer < 2; answer++) {
            text.n = 0;
            rollouts_text(r, i, answer, j->tokenizer, &text);
            str_printf(&question, answer ? ", \"response\": " : "{\"prompt\": ");
            json_add_string(&question, text.s, text.n);
        }
        const char *own = q->answer[r->query[i]];
        if (own) {
            str_printf(&question, ", \"answer\": ");
            json_add_string(&question, own, strlen(own));
        }
        str_add(&question, "}\n", 2);
    }
    const int status = first < end ? child_ask(j->program, &question, end - first, j->patience,
                                               stopped, &answers, &e)
                                   : 0;
    if (status < 0)
        die("--reward_cmd: %s; it must answer each line with one line {\"score\": number}", e.text);
    const char *line = answers.s;
    for (int i = first; i < end && !status; i++, line += strlen(line) + 1) {
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
    return !status;
}

/* r->score by the model. False: a signal asks the run to stop. A text of nothing but <|endoftext|>
 * is judged at its first token. */
static bool ask_model(const Judge *j, Rollouts *r, int B) {
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
    const GPT2Limits limits = {.sequences = B, .tokens = batch_tokens((int64_t)B * x.longest)};
    const bool scored = texts_score(j->model, &limits, &x, r->score);
    texts_free(&x);
    return scored;
}

bool judge_score(const Judge *j, Rollouts *r, const Queries *q, int B, bool (*stopped)(void)) {
    if (j->program && !ask_program(j, r, q, stopped)) return false;
    if (j->program) parts_collect(r->score, sizeof *r->score, r->E, NULL);
    if (j->model && !ask_model(j, r, B)) return false;
    for (int i = 0; i < r->E; i++) {
        if (isfinite(r->score[i])) continue;
        Str text = {0};
        rollouts_text(r, i, true, j->tokenizer, &text);
        die("the score of an answer to the prompt on line %d is %g, where a finite number is "
            "needed; the answer: \"%.300s\"",
            q->line[r->query[i]], (double)r->score[i], text.s);
    }
    return true;
}

/* ---- scores instead of training -------------------------------------------------------------- */

/* Reads the config and the tokenizer of the reward model in dir. at_end: as in texts_read. */
static Tokenizer *read_reward_model(const char *dir, GPT2Config *config, bool *at_end) {
    Error e;
    if (hf_config(dir, config, &e)) die_usage("%s", e.text);
    Tokenizer *t = run_load_tokenizer(dir, config);
    *at_end = network_scores_at_end(dir, config, t);
    return t;
}

/* The reward model in dir, with room for limits. */
static GPT2 *load_reward_model(const Run *run, const char *dir, GPT2Limits *limits) {
    Error e;
    bool found;
    GPT2 *model = hf_load_head(dir, SCORE_HEAD, true, &found, &e);
    if (!model) die_usage("%s", e.text);
    if (!found)
        die_usage(
            "%s has neither score.weight nor v_head.summary.weight: it is not a reward model; "
            "train one from it with ./reward",
            dir);
    gpt2_use_bf16(limits, run->bf16, true);
    gpt2_reserve(model, limits);
    return model;
}

/* --score: the answers of a file. */
static void score_file(const Scoring *s, const Run *run, const char *template, int max_length) {
    Error e;
    GPT2Config config;
    bool at_end;
    if (!run->model) die_usage("--score needs a --model");
    run_check_output(run, "score_output", NULL);
    Tokenizer *t = read_reward_model(run->model, &config, &at_end);
    char *form = template ? NULL : chat_template(NULL, NULL, run->model, NULL);
    if (!template) template_set_default(form);
    free(form);
    Texts x = texts_read(s->score, template, min_int(max_length, config.n_positions), t, at_end);
    const int B = min_int(run->per_device_train_batch_size, x.n);
    GPT2Limits limits = {.tokens = batch_tokens((int64_t)B * x.longest), .sequences = B};
    GPT2 *model = load_reward_model(run, run->model, &limits);
    float *score = (float *)xmalloc(sizeof(float) * (size_t)x.n);
    texts_score(model, &limits, &x, score);
    for (int i = 0; i < x.n; i++) {
        char what[64];
        snprintf(what, sizeof what, "the score of the text on line %d", x.line[i]);
        run_check_finite(run, what, (double)score[i]);
    }
    NewFile file = {.f = stdout};
    if (s->score_output && newfile_open_named(&file, s->score_output, &e)) die_usage("%s", e.text);
    for (int i = 0; i < x.n; i++)
        fprintf(file.f, "{\"line\": %d, \"score\": %.9g}\n", x.line[i], (double)score[i]);
    if (s->score_output && newfile_close(&file, true, &e)) die("%s", e.text);
    if (fflush(stdout) || ferror(stdout))
        die("cannot write the scores: %s; %s", strerror(errno), error_remedy(errno));
    free(score);
    gpt2_free(model);
    texts_free(&x);
    tokenizer_free(t);
}

/* Prints the reward of one answer, prompt and response both in the template. An answer that does
   not fit the model ends the program with 2; with skip a note says so instead. */
static void score_answer(const Run *run, GPT2 *model, const GPT2Limits *limits, const Tokenizer *t,
                         const char *prompt, const char *response, bool at_end, bool skip) {
    Ints tokens = {0};
    tokenizer_encode(t, prompt, strlen(prompt), true, &tokens);
    tokenizer_encode(t, response, strlen(response), true, &tokens);
    tokens.n = (size_t)judged_tokens(tokens.v, (int)tokens.n, tokenizer_eos(t));
    if (at_end) ints_push(&tokens, tokenizer_eos(t));
    const int n = (int)tokens.n;
    const Texts x = {.n = 1, .start = (size_t[]){0, (size_t)n}, .tokens = tokens.v};
    float score;
    if (!n) die_usage("--prompt and --response are empty: there is no token to judge");
    if (n <= limits->tokens) {
        texts_score(model, limits, &x, &score);
        run_check_finite(run, "the reward", (double)score);
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
    bool at_end;
    const char *dir = run->model ? run->model : example_file("tiny/reward");
    if (!run->model && example_check(dir, &e)) die_usage("%s", e.text);
    if (!*s->prompt) die_usage("--prompt is empty; the reward is of an answer to a prompt");
    if (!s->response && !s->chat)
        die_usage(
            "--prompt needs an answer to score: --response, or --chat for one answer a line. A "
            "reward model does not write answers; to get one, use ./sft --prompt");
    Tokenizer *t = read_reward_model(dir, &config, &at_end);
    char *form = chat_template(template, NULL, dir, NULL);
    char *prompt = form ? template_prompt(form, s->prompt, NULL, &e) : xstrdup(s->prompt);
    if (!form)
        fprintf(stderr,
                "note: %s does not say in which template it was trained, so --prompt is read as it "
                "is; --template sets one\n",
                dir);
    GPT2Limits limits = {.tokens = config.n_positions, .sequences = 1};
    GPT2 *model = load_reward_model(run, dir, &limits);
    char *answer = s->chat ? chat_line() : xstrdup(s->response);
    while (answer) {
        char *response = form ? template_response(form, answer, &e) : xstrdup(answer);
        score_answer(run, model, &limits, t, prompt, response, at_end, s->chat);
        free(response);
        free(answer);
        answer = s->chat ? chat_line() : NULL;
    }
    if (fflush(stdout) || ferror(stdout))
        die("cannot write the score: %s; %s", strerror(errno), error_remedy(errno));
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
