/*
 * reward.c - a reward model: learn from pairs of answers, of which people preferred one, to give
 * every answer a number.
 *
 * A pair is a prompt x, a chosen answer y_c and a rejected one y_r. The model is a GPT-2 whose head
 * is one vector w; the reward of an answer is r(x, y) = w . ln_f(h), h being the last layer's
 * output at the last token of the text. Bradley and Terry (1952) say how probable it is that chosen
 * wins over rejected, and the loss is how surprising it is that it did:
 *
 *     P(y_c beats y_r) = sigmoid(r_c - r_r - m)            m: the margin by which it should, 0
 * where the record names none L = -1/M  sum over pairs of  log sigmoid(r_c - r_r - m) M: pairs of
 * the whole optimiser step
 *
 * This is the second stage of InstructGPT (Ouyang et al. 2022, section 3.5); margins are Llama 2's
 * (Touvron et al. 2023, section 3.2.2), soft labels Constitutional AI's (Bai et al. 2022,
 * section 4.1), the pull of the rewards towards 0 Eisenstein et al.'s (2023, equation 2).
 *
 * Two things go wrong in other implementations and cannot here. Nothing is padded, so a reward does
 * not depend on what else is in the batch, and no end-of-text token is taken for padding: where a
 * reward is read is said once, in dataset.h (judged_tokens), and ppo.c reads it there. And a prompt
 * that chosen and rejected share goes through the model once, not twice, with the same rewards to
 * the bit.
 *
 * Left out: rankings of more than two answers (write them as pairs), scalar ratings, and a bias of
 * the head, which no difference can see; what --normalize needs of one goes into ln_f.bias.
 */
#include "common/model/gpt2.h"    // the model: gpt2_forward, gpt2_value, gpt2_backward, gpt2_step
#include "common/files/hf.h"      // hf_config, hf_load_head
#include "common/run/run.h"       // flags, schedule, log, checkpoints
#include "common/run/chat.h"      // the template a model was trained in, lines of answers
#include "common/text/dataset.h"  // pairs of answers, as tokens
#include "common/text/template.h"
#include "common/util.h"  // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "a reward model from pairs of answers, chosen and rejected. Without arguments: a small "
    "built-in example.";

static struct {
    const char *template, *dropout, *normalize, *score, *score_output, *prompt, *response;
    int max_length, validation_split_percentage;
    float center_rewards_coefficient;
    bool strict, gradient_checkpointing, chat;
} args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Reward model"},
    {"template", FLAG_STRING, &args.template,
     .help = "text before an answer: {instruction}, [[... {input} ...]], \\n"},
    {"max_length", FLAG_INT, &args.max_length, .low = 2, .high = 1 << 20,
     .help = "tokens of a prompt with its longer answer; a longer pair loses the beginning of its "
             "prompt, the same for both answers"},
    {"strict", FLAG_BOOL, &args.strict,
     .help = "stop at the first bad line of a data file instead of skipping it"},
    {"validation_split_percentage", FLAG_INT, &args.validation_split_percentage, .high = 50,
     .help = "share of --data held out when there is no --eval, percent"},
    {"center_rewards_coefficient", FLAG_FLOAT, &args.center_rewards_coefficient, .high = 1000,
     .help = "weight of (chosen + rejected)^2 in the loss, which keeps rewards about 0 (0.01 is "
             "usual); 0: none"},
    {"dropout", FLAG_STRING, &args.dropout, .bare = "config",
     .help = "probability on embeddings, attention and residuals; without a value: those of "
             "config.json"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    {"normalize", FLAG_STRING, &args.normalize, .bare = "data",
     .help = "in the end, scale and shift the rewards to mean 0 and deviation 1 on these answers "
             "(JSONL, as for --score); without a value: on those of --data"},
    {"score", FLAG_STRING, &args.score, .free_on_resume = true,
     .help = "only score the answers of this JSONL file (prompt and response, prompt and "
             "completion, text, ...) with --model"},
    {"score_output", FLAG_STRING, &args.score_output, .free_on_resume = true,
     .help = "file for those scores, JSONL; without it they are printed"},
    {"prompt", FLAG_STRING, &args.prompt, .free_on_resume = true,
     .apart = "data eval output resume dry_run score normalize",
     .help =
         "print the score of one answer to this, in the template that --model was trained in: of"},
    {"response", FLAG_STRING, &args.response, .free_on_resume = true, .apart = "chat",
     .help = "this answer"},
    {"chat", FLAG_BOOL, &args.chat, .free_on_resume = true,
     .help = "or of each line of the input, until an empty one or /exit"},
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns
 * something in some seconds. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 4;
    run.gradient_accumulation_steps = 2;
    run.num_train_epochs = 3;
    run.learning_rate = 1e-5f;
    run.warmup_steps = 100;
    run.weight_decay = 0.01f;
    memset(&args, 0, sizeof args);
    args.max_length = 512;
    args.validation_split_percentage = 5;
    args.dropout = "0";
    if (example) {
        run.model = run_example_file("tiny/chat");
        run.data = run_example_file("tiny/preferences.jsonl");
        run.eval = run_example_file("tiny/preferences-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 40;
        run.learning_rate = 3e-4f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.logging_steps = 10;
        run.eval_steps = 20;
    }
    return run;
}

/* ---- the loss -------------------------------------------------------------------------------- */

/* log(1 + e^x) = -log sigmoid(-x), without overflow, and without losing a small one to the 1. */
static double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

static double sigmoid(double x) { return exp(-softplus(-x)); }

/*
 * Of P pairs, this batch's share of the mean over all M of the step, D = r_c - r_r - m being the
 * margin-corrected difference and p the probability that chosen is the better one (1 without soft
 * labels): L = 1/M sum  -[p log sigmoid(D) + (1-p) log sigmoid(-D)]  +  c (r_c + r_r)^2 dL/dD = 1/M
 * (sigmoid(D) - p),   dL/dr_c = dL/dD + 2c/M (r_c + r_r),   dL/dr_r = -dL/dD + 2c/M (r_c + r_r)
 * Returns the share of L and writes its gradients (P).
 */
static double bradley_terry(int P, const float *chosen, const float *rejected, const float *margin,
                            const float *p_chosen, double c, double M, float *dchosen,
                            float *drejected) {
    double loss = 0;
    for (int i = 0; i < P; i++) {
        double D = (double)chosen[i] - (double)rejected[i] - (double)margin[i],
               p = (double)p_chosen[i], sum = (double)chosen[i] + (double)rejected[i];
        loss += (p * softplus(-D) + (1 - p) * softplus(D) + c * sum * sum) / M;
        // sigmoid(D) - p, of a hard label as -sigmoid(-D): it does not vanish before D is some
        // hundred
        double dD = p == 1 ? -sigmoid(-D) : sigmoid(D) - p;
        dchosen[i] = (float)((dD + 2 * c * sum) / M);
        drejected[i] = (float)((-dD + 2 * c * sum) / M);
    }
    return loss;
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Some pairs: all of a file, or one side of a split. */
typedef struct {
    Pairs *data;
    int n, *which;
} Examples;

static Pairs *read_pairs(const char *path, const Tokenizer *t) {
    Error e;
    Records records;
    if (pairs_read(path, args.template, args.strict, &records, &e)) die_usage("%s", e.text);
    say_skipped(path, records.skipped, "record", &records.first_skipped);
    if (records.mismatched)
        printf("%s: left out %d pairs whose chosen and rejected answer different prompts\n", path,
               records.mismatched);
    Pairs *p = (Pairs *)xcalloc(1, sizeof *p);
    pairs_build(p, &records, t, args.max_length);
    printf("%s: %d pairs of kind %s; the longest has %d tokens with its prompt\n", path, records.n,
           records.kind, p->longest);
    if (p->prompts_cut)
        printf(
            "%s: %ld prompts lost their beginning, being longer than --max_length %d with their "
            "answer\n",
            path, p->prompts_cut, args.max_length);
    if (p->too_long)
        printf(
            "%s: left out %ld pairs with an answer that is longer than --max_length %d by itself\n",
            path, p->too_long, args.max_length);
    if (p->empty)
        printf("%s: left out %ld pairs with an answer that has no token\n", path, p->empty);
    if (p->equal) printf("%s: left out %ld pairs whose answers are the same\n", path, p->equal);
    if (!p->n) die_usage("%s: no pair is left to learn from", path);
    records_free(&records);
    return p;
}

/* Is chosen better? A soft label may say that rejected is, or (0) that neither is. */
static int preferred(const Pairs *p, int i) {
    return (p->p_chosen[i] > 0.5f) - (p->p_chosen[i] < 0.5f);
}

/* What a reader should compare an accuracy with. Pairs of equal length count half. */
static void print_baselines(const char *what, const Examples *x) {
    double longer = 0, ties = 0, judged = 0;
    for (int k = 0; k < x->n; k++) {
        int i = x->which[k], sign = preferred(x->data, i),
            difference = sign * (pair_part(x->data, i, 1) - pair_part(x->data, i, 2));
        if (!sign) continue;
        judged++;
        longer += difference > 0 ? 1 : difference == 0 ? 0.5 : 0;
        ties += difference == 0;
    }
    if (judged > 0)
        printf(
            "%s: of %d pairs the longer answer wins in %.1f %%, the shorter in %.1f %% (equally "
            "long: %.1f %%, counted half); at random: 50 %%\n",
            what, (int)judged, 100 * longer / judged, 100 - 100 * longer / judged,
            100 * ties / judged);
}

/* The most tokens any P of the pairs can have. */
static int largest_batch(const Examples *x, int P) {
    int *size = (int *)xmalloc(sizeof(int) * (size_t)(x->n + 1)), total = 0;
    for (int k = 0; k < x->n; k++)
        size[k] = (int)(x->data->start[3 * x->which[k] + 3] - x->data->start[3 * x->which[k]]);
    qsort(size, (size_t)x->n, sizeof(int), largest_first);
    for (int k = 0; k < x->n && k < P; k++) total += size[k];
    free(size);
    return total;
}

/* ---- pairs in a batch ------------------------------------------------------------------------ */

/* Room for a batch of pairs, and the numbers that belong to it. */
typedef struct {
    Batch batch;
    int *start, *tokens, *parent;
    uint32_t *id;
    int P, *last;  // (2P) the row where the reward of pair i is read, chosen's at 2i, rejected's at
                   // 2i+1
    float *value, *dvalue;                                               // (N)
    float *chosen, *rejected, *margin, *p_chosen, *dchosen, *drejected;  // (P)
} PairBatch;

static void batch_reserve(PairBatch *b, int P, int N) {
    const size_t n = (size_t)N, p = (size_t)P, s = 3 * p;
    *b = (PairBatch){.start = (int *)xmalloc(sizeof(int) * (s + 1)),
                     .tokens = (int *)xmalloc(sizeof(int) * n),
                     .parent = (int *)xmalloc(sizeof(int) * s),
                     .id = (uint32_t *)xmalloc(sizeof(uint32_t) * s),
                     .last = (int *)xmalloc(sizeof(int) * 2 * p)};
    b->value = (float *)xmalloc(sizeof(float) * (2 * n + 6 * p));
    b->dvalue = b->value + n;
    b->chosen = b->dvalue + n;
    b->rejected = b->chosen + p;
    b->margin = b->rejected + p;
    b->p_chosen = b->margin + p;
    b->dchosen = b->p_chosen + p;
    b->drejected = b->dchosen + p;
}

static void batch_free(PairBatch *b) {
    free(b->start);
    free(b->tokens);
    free(b->parent);
    free(b->id);
    free(b->last);
    free(b->value);
    *b = (PairBatch){0};
}

/* Appends a sequence of the given pieces of p; names it id. */
static void add_sequence(PairBatch *b, const int *tokens, int n, const int *more, int more_n,
                         int parent, uint32_t id) {
    int s = b->batch.S++, *to = b->tokens + b->batch.N;
    memcpy(to, tokens, sizeof(int) * (size_t)n);
    if (more_n) memcpy(to + n, more, sizeof(int) * (size_t)more_n);
    b->start[s] = b->batch.N;
    b->start[s + 1] = b->batch.N += n + more_n;
    b->parent[s] = parent;
    b->id[s] = id;
}

/* Pairs which[0..P): each as its prompt, and the two answers that go on from it; or, to compare
 * with, each answer with its own prompt. */
static void batch_fill(PairBatch *b, const Pairs *p, const int *which, int P, bool shared) {
    b->batch = (Batch){.start = b->start, .tokens = b->tokens, .parent = b->parent, .id = b->id};
    b->P = P;
    for (int i = 0; i < P; i++) {
        const int pair = which[i], prompt = pair_part(p, pair, 0),
                  *tokens = p->tokens + p->start[3 * pair];
        const bool parent = shared && prompt > 0;
        if (parent) add_sequence(b, tokens, prompt, NULL, 0, -1, 3 * (uint32_t)pair);
        const int from = b->batch.S - 1;
        for (int k = 1; k <= 2; k++) {
            const int *answer = p->tokens + p->start[3 * pair + k], n = pair_part(p, pair, k);
            if (parent)
                add_sequence(b, answer, n, NULL, 0, from, 3 * (uint32_t)pair + (uint32_t)k);
            else
                add_sequence(b, tokens, prompt, answer, n, -1, 3 * (uint32_t)pair + (uint32_t)k);
            b->last[2 * i + k - 1] = b->batch.N - 1;
        }
        b->margin[i] = p->margin[pair];
        b->p_chosen[i] = p->p_chosen[pair];
    }
}

/* Forward, and the rewards of the batch's pairs. */
static void batch_rewards(PairBatch *b, GPT2 *model, const GPT2Noise *noise) {
    gpt2_forward(model, &b->batch, noise);
    gpt2_value(model, b->value);
    for (int i = 0; i < b->P; i++) {
        b->chosen[i] = b->value[b->last[2 * i]];
        b->rejected[i] = b->value[b->last[2 * i + 1]];
    }
}

/* Backward from the gradients by the rewards: no other row has one. */
static void batch_backward(PairBatch *b, GPT2 *model) {
    memset(b->dvalue, 0, sizeof(float) * (size_t)b->batch.N);
    for (int i = 0; i < b->P; i++) {
        b->dvalue[b->last[2 * i]] = b->dchosen[i];
        b->dvalue[b->last[2 * i + 1]] = b->drejected[i];
    }
    gpt2_backward(model, NULL, NULL, b->dvalue);
}

/* ---- figures --------------------------------------------------------------------------------- */

/* Sums over pairs. correct: of those with a preference (judged), where it is the higher reward. */
typedef struct {
    double loss, pairs, correct, judged, chosen, rejected, min, max;
} Totals;

static const Totals nothing = {.min = INFINITY, .max = -INFINITY};

/* Adds the batch to the totals; loss: its share, times M. */
static void totals_add(Totals *t, const PairBatch *b, double loss) {
    t->loss += loss;
    t->pairs += b->P;
    for (int i = 0; i < b->P; i++) {
        double c = (double)b->chosen[i], r = (double)b->rejected[i];
        t->chosen += c;
        t->rejected += r;
        t->min = fmin(t->min, fmin(c, r));
        t->max = fmax(t->max, fmax(c, r));
        if (b->p_chosen[i] == 0.5f) continue;
        t->judged++;
        t->correct += b->p_chosen[i] > 0.5f ? c > r : r > c;
    }
}

static double accuracy(const Totals *t) { return t->correct / t->judged; }
static double margin(const Totals *t) { return (t->chosen - t->rejected) / t->pairs; }
static double mean_reward(const Totals *t) { return (t->chosen + t->rejected) / (2 * t->pairs); }

static void print_totals(const char *when, const Totals *t) {
    printf(
        "held-out, %-6s  loss %.4f  accuracy %.1f %%  margin %.3f  reward min %.3f mean %.3f max "
        "%.3f\n",
        when, t->loss / t->pairs, 100 * accuracy(t), margin(t), t->min, mean_reward(t), t->max);
}

/* The held-out pairs without noise, P at a time (which changes no bit of any reward). rewards (2n),
 * or NULL: chosen's and rejected's. */
static Totals evaluate(PairBatch *b, GPT2 *model, const Examples *x, int P, float *rewards) {
    Totals t = nothing;
    for (int i = 0; i < x->n; i += P) {
        batch_fill(b, x->data, x->which + i, x->n - i < P ? x->n - i : P, true);
        batch_rewards(b, model, NULL);
        double loss =
            bradley_terry(b->P, b->chosen, b->rejected, b->margin, b->p_chosen,
                          (double)args.center_rewards_coefficient, 1, b->dchosen, b->drejected);
        totals_add(&t, b, loss);
        for (int k = 0; rewards && k < b->P; k++) {
            rewards[2 * (i + k)] = b->chosen[k];
            rewards[2 * (i + k) + 1] = b->rejected[k];
        }
    }
    return t;
}

/* One pair's difference of rewards, by what was preferred. */
typedef struct {
    double size;
    bool correct;
} Verdict;

static int by_size(const void *a, const void *b) {
    double x = ((const Verdict *)a)->size, y = ((const Verdict *)b)->size;
    return (x > y) - (x < y);
}

/* Is the model right where it is sure? The pairs in four buckets by the difference of their
 * rewards, with the accuracy that it claims: sigmoid of it. */
static void print_buckets(const Examples *x, const float *rewards) {
    enum { BUCKETS = 4 };
    Verdict *v = (Verdict *)xmalloc(sizeof *v * (size_t)(x->n + 1));
    int n = 0;
    for (int k = 0; k < x->n; k++) {
        int sign = preferred(x->data, x->which[k]);
        double difference = sign * ((double)rewards[2 * k] - (double)rewards[2 * k + 1]);
        if (sign) v[n++] = (Verdict){fabs(difference), difference > 0};
    }
    qsort(v, (size_t)n, sizeof *v, by_size);
    printf("held-out accuracy by margin\n");
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        int from = (int)((long)n * bucket / BUCKETS), to = (int)((long)n * (bucket + 1) / BUCKETS);
        double correct = 0, claimed = 0;
        for (int i = from; i < to; i++) {
            correct += v[i].correct;
            claimed += sigmoid(v[i].size);
        }
        if (to > from)
            printf(
                "  |chosen - rejected| from %7.3f to %7.3f  %5d pairs  accuracy %5.1f %%  claimed "
                "%5.1f %%\n",
                v[from].size, v[to - 1].size, to - from, 100 * correct / (to - from),
                100 * claimed / (to - from));
    }
    free(v);
}

/* How probable the model, as a language model, finds <|endoftext|> after chosen answers: one that
   was fine-tuned to answer in this form knows where an answer ends. The mean over (up to) the first
   32 pairs. */
static double probability_of_the_end(PairBatch *b, GPT2 *model, const Examples *x, int P, int eos) {
    double sum = 0;
    int n = x->n < 32 ? x->n : 32;
    for (int i = 0; i < n; i += P) {
        batch_fill(b, x->data, x->which + i, n - i < P ? n - i : P, true);
        int *target = (int *)xmalloc(sizeof(int) * (size_t)b->batch.N);
        for (int j = 0; j < b->batch.N; j++) target[j] = -1;
        for (int k = 0; k < b->P; k++) target[b->last[2 * k]] = eos;
        gpt2_forward(model, &b->batch, NULL);
        gpt2_logprob(model, target, 1, b->value, NULL, NULL);
        for (int k = 0; k < b->P; k++) sum += exp((double)b->value[b->last[2 * k]]);
        free(target);
    }
    return sum / n;
}

/* ---- scores of single answers ---------------------------------------------------------------- */

/* Texts to be judged, as tokens: text i is tokens[start[i] .. start[i+1]), its judged tokens. */
typedef struct {
    int n, longest;
    int *line;
    size_t *start;
    int *tokens;
    long cut, cut_short;  // texts longer than max_length: that lost the beginning of their prompt,
                          // or also their end
} Texts;

/* Reads a file of answers; a line that is no record, or without a token, ends the program with 2: a
 * score must not go missing. */
static Texts read_texts(const char *path, const Tokenizer *t) {
    Error e;
    Records records;
    Texts x = {0};
    Ints tokens = {0}, one = {0};
    if (answers_read(path, args.template, true, &records, &e)) die_usage("%s", e.text);
    x.line = (int *)xmalloc(sizeof(int) * (size_t)records.n);
    x.start = (size_t *)xcalloc((size_t)records.n + 1, sizeof *x.start);
    for (int i = 0; i < records.n; i++) {
        const Record *r = &records.v[i];
        size_t prompt = 0;
        one.n = 0;
        for (int s = 0; s < r->n; s++) {
            if (s && r->spans[s - 1].scored)
                ints_push(&one,
                          tokenizer_eos(t));  // an answer given earlier in a conversation has ended
            tokenizer_encode(t, r->spans[s].text, r->spans[s].n, true, &one);
            if (s == 0 && !r->spans[s].scored) prompt = one.n;
        }
        size_t n = (size_t)judged_tokens(one.v, (int)one.n, tokenizer_eos(t)),
               excess = n > (size_t)args.max_length ? n - (size_t)args.max_length : 0;
        if (n == 0) die_usage("%s:%d: there is no token to judge", path, r->line);
        size_t left = excess < prompt ? excess : prompt;
        x.cut += excess > 0;
        x.cut_short += excess > left;
        for (size_t k = left; k < n - (excess - left); k++) ints_push(&tokens, one.v[k]);
        x.line[i] = r->line;
        x.start[++x.n] = tokens.n;
        if (x.longest < (int)(n - excess)) x.longest = (int)(n - excess);
    }
    x.tokens = tokens.v;
    if (x.cut)
        fprintf(stderr,
                "note: %s: %ld texts are longer than --max_length %d; they lost the beginning of "
                "their prompt, and %ld of them also their end\n",
                path, x.cut, args.max_length, x.cut_short);
    free(one.v);
    records_free(&records);
    return x;
}

static void texts_free(Texts *x) {
    free(x->line);
    free(x->start);
    free(x->tokens);
}

/* The score of each text (n), as many at a time as there is room for. */
static void score_texts(PairBatch *b, GPT2 *model, const Texts *x, const GPT2Limits *limits,
                        float *score) {
    for (int i = 0; i < x->n;) {
        int first = i;
        b->batch = (Batch){.start = b->start, .tokens = b->tokens, .id = b->id};
        for (; i < x->n && b->batch.S < limits->sequences; i++) {
            int n = (int)(x->start[i + 1] - x->start[i]);
            if (b->batch.N + n > limits->tokens) break;
            add_sequence(b, x->tokens + x->start[i], n, NULL, 0, -1, (uint32_t)i);
        }
        gpt2_forward(model, &b->batch, NULL);
        gpt2_value(model, b->value);
        for (int s = 0; s < b->batch.S; s++) score[first + s] = b->value[b->start[s + 1] - 1];
    }
}

/* The model in dir, which must be a reward model, with room for limits. */
static GPT2 *load_judge(const char *dir, const GPT2Limits *limits) {
    Error e;
    bool found;
    GPT2 *model = hf_load_head(dir, SCORE_HEAD, true, &found, &e);
    if (!model) die_usage("%s", e.text);
    if (!found)
        die_usage(
            "%s has neither score.weight nor v_head.summary.weight: it is no reward model, and "
            "reward.c can make it one",
            dir);
    gpt2_reserve(model, limits);
    return model;
}

/* --score: a model, a file of answers, and a line {"line": 1, "score": 0.25} for each. */
static int score_file(Run *run) {
    Error e;
    GPT2Config config;
    if (!run->model) die_usage("--score needs a --model");
    if (hf_config(run->model, &config, &e)) die_usage("%s", e.text);
    if (args.max_length > config.n_positions) args.max_length = config.n_positions;
    Tokenizer *t = tokenizer_load(run->model, &e);
    if (!t) die_usage("%s", e.text);
    Texts x = read_texts(args.score, t);
    const int P = run->per_device_train_batch_size;
    GPT2Limits limits = {.tokens = P * x.longest, .sequences = P};
    GPT2 *model = load_judge(run->model, &limits);
    PairBatch batch;
    batch_reserve(&batch, P, limits.tokens);
    float *score = (float *)xmalloc(sizeof(float) * (size_t)x.n);
    score_texts(&batch, model, &x, &limits, score);
    NewFile file = {.f = stdout};
    if (args.score_output && newfile_open(&file, args.score_output, &e)) die_usage("%s", e.text);
    for (int i = 0; i < x.n; i++)
        if (isfinite(score[i]))
            fprintf(file.f, "{\"line\": %d, \"score\": %.9g}\n", x.line[i], (double)score[i]);
        else
            fprintf(file.f, "{\"line\": %d, \"score\": null}\n", x.line[i]);
    if (args.score_output && newfile_close(&file, true, &e)) die("%s", e.text);
    free(score);
    batch_free(&batch);
    gpt2_free(model);
    texts_free(&x);
    tokenizer_free(t);
    run_free(run);
    return 0;
}

/* --prompt, with --response or --chat: the score of that answer, or of each line of the input, on a
 * line by itself. */
static int score_answers(Run *run) {
    Error e;
    GPT2Config config;
    const char *dir = run->model ? run->model : run_example_file("tiny/reward");
    if (!*args.prompt) die_usage("--prompt is empty; an answer is judged by what it answers");
    if (!args.response == !args.chat)
        die_usage(
            "--prompt is what an answer is judged by: give one by --response, or one a line with "
            "--chat. A reward model has no words of its own; "
            "a model that answers is for ./sft --prompt");
    if (hf_config(dir, &config, &e)) die_usage("%s", e.text);
    talk_interrupts();
    Tokenizer *t = tokenizer_load(dir, &e);
    if (!t) die_usage("%s", e.text);
    char *form = talk_template(args.template, NULL, dir),
         *prompt = form ? template_prompt(form, args.prompt, NULL, &e) : xstrdup(args.prompt);
    if (!form)
        fprintf(stderr,
                "note: nothing in %s says in which template it was trained; --prompt is taken as "
                "it is. --template says otherwise\n",
                dir);
    GPT2Limits limits = {.tokens = config.n_positions, .sequences = 1};
    GPT2 *model = load_judge(dir, &limits);
    PairBatch batch;
    batch_reserve(&batch, 1, limits.tokens);
    for (char *answer; (answer = args.chat ? talk_line() : xstrdup(args.response)); free(answer)) {
        Ints tokens = {0};
        char *response = form ? template_response(form, answer, &e) : xstrdup(answer);
        tokenizer_encode(t, prompt, strlen(prompt), true, &tokens);
        tokenizer_encode(t, response, strlen(response), true, &tokens);
        const int n = judged_tokens(tokens.v, (int)tokens.n, tokenizer_eos(t));
        const Texts x = {.n = 1, .start = (size_t[]){0, (size_t)n}, .tokens = tokens.v};
        float score;
        if (!n) die_usage("--prompt and --response are empty: there is no token to judge");
        if (n > limits.tokens && !args.chat)
            die_usage("--prompt with --response is %d tokens, and the model has %d positions", n,
                      limits.tokens);
        if (n > limits.tokens)
            fprintf(stderr,
                    "note: with --prompt that is %d tokens, and the model has %d positions; it has "
                    "no score\n",
                    n, limits.tokens);
        else {
            score_texts(&batch, model, &x, &limits, &score);
            printf("%.9g\n", (double)score);
            fflush(stdout);
        }
        free(tokens.v);
        free(response);
        if (args.response) {
            free(answer);
            break;
        }
    }
    if (fflush(stdout) || ferror(stdout)) die("cannot write the score: %s", strerror(errno));
    batch_free(&batch);
    gpt2_free(model);
    tokenizer_free(t);
    free(form);
    free(prompt);
    run_free(run);
    return 0;
}

/* Mean and (population) deviation of n numbers. */
static void moments(const float *x, int n, double *mean, double *deviation) {
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++) square += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *deviation = sqrt(square / n);
}

/* --normalize: r' = (r - mean) / deviation over the reference answers, so that a coefficient of
 * PPO's means the same for any reward model. */
static void normalize(PairBatch *b, GPT2 *model, const Examples *train, const Texts *reference,
                      const GPT2Limits *limits, int P) {
    int n = reference->n ? reference->n : 2 * train->n;
    float *score = (float *)xmalloc(sizeof(float) * (size_t)n);
    double mean[2], deviation[2];
    for (int k = 0; k < 2; k++) {
        if (reference->n)
            score_texts(b, model, reference, limits, score);
        else
            evaluate(b, model, train, P, score);
        moments(score, n, &mean[k], &deviation[k]);
        if (k == 0 && (!isfinite(mean[0]) || !isfinite(deviation[0]) || deviation[0] < 1e-12)) {
            fprintf(stderr,
                    "note: not normalized: the reference answers' rewards have mean %g and "
                    "deviation %g\n",
                    mean[0], deviation[0]);
            break;
        }
        if (k == 0)
            gpt2_scale_value(model, 1 / deviation[0], -mean[0] / deviation[0]);
        else
            printf("normalized on %d answers: mean %.4f -> %.4f, deviation %.4f -> %.4f\n", n,
                   mean[0], mean[1], deviation[0], deviation[1]);
    }
    free(score);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* A new head: N(0, 1/sqrt(C+1)) (Stiennon et al. 2020), so that rewards begin at about the size of
 * one. */
static void init_head(GPT2 *model, uint64_t seed) {
    const int C = gpt2_config(model)->n_embd, score = gpt2_own_tensors(model) - 1;
    float *w = (float *)xmalloc(sizeof(float) * (size_t)C);
    for (int c = 0; c < C; c++) {
        Random4 x = random4(seed, RANDOM_INIT, (uint32_t)score, 0, (uint32_t)c, 0);
        w[c] = random_normal(x.v[0], x.v[1]) / sqrtf((float)C + 1);
    }
    gpt2_write(model, score, GPT2_WEIGHT, 0, (size_t)C, w);
    free(w);
}

static void show_pair(const Tokenizer *t, const Examples *x, int k, const float *was,
                      const float *is) {
    static const char *const label[] = {"prompt", "chosen", "rejected"};
    const int i = x->which[k];
    printf("%s, line %d\n", was ? "held-out pair" : "pair", x->data->line[i]);
    for (int part = 0; part < 3; part++) {
        Str text = {0};
        tokenizer_decode(t, x->data->tokens + x->data->start[3 * i + part],
                         (size_t)pair_part(x->data, i, part), &text);
        printf("  %-9s | ", label[part]);
        for (size_t j = 0; j < text.n; j++)
            if (text.s[j] == '\n')
                printf(j + 1 < text.n ? "\n            | " : "");
            else
                putchar(text.s[j]);
        if (was && part)
            printf("   (reward %.3f -> %.3f)", (double)was[2 * k + part - 1],
                   (double)is[2 * k + part - 1]);
        putchar('\n');
        free(text.s);
    }
}

int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either
    // way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "reward", flags, argc, argv, &e) == 0 && !run.model &&
                   !run.data && !args.score && !args.prompt;
    run_free(&run);
    run = defaults(example);
    run_start(&run, "reward", about, flags, argc, argv);
    if (args.score) return score_file(&run);
    if (args.prompt) return score_answers(&run);
    if (args.response || args.chat)
        die_usage(
            "--response and --chat are answers to a --prompt: a reward model has no words of its "
            "own, it judges");
    if (!run.model || !run.data)
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model with --score, or --prompt and --response");

    // The model's shape, the pairs as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    if (hf_config(run_model_dir(&run), &config, &e)) die_usage("%s", e.text);
    if (run_dropout(&noise, &config, args.dropout, &e))
        die_usage("--dropout %s: it %s", args.dropout, e.text);
    config.head = SCORE_HEAD;
    run_echo(&run);
    if (args.max_length > config.n_positions) {
        printf("--max_length %d is more than the model's %d positions; using %d\n", args.max_length,
               config.n_positions, config.n_positions);
        args.max_length = config.n_positions;
    }
    Tokenizer *tokenizer = tokenizer_load(run.model, &e);
    if (!tokenizer) die_usage("%s", e.text);
    if (tokenizer_size(tokenizer) > config.vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  run.model, tokenizer_size(tokenizer), config.vocab_size);
    Pairs *data = read_pairs(run.data, tokenizer),
          *apart = run.eval ? read_pairs(run.eval, tokenizer) : NULL;
    const int share = run.eval ? 0 : (int)((long)data->n * args.validation_split_percentage / 100);
    int *order = (int *)xmalloc(sizeof(int) * (size_t)(data->n + (apart ? apart->n : 0)));
    random_permutation(order, data->n, (uint64_t)run.seed, RANDOM_SPLIT, 0);
    Examples held_out = {data, share, order}, train = {data, data->n - share, order + share};
    if (apart) {
        held_out = (Examples){apart, apart->n, order + data->n};
        for (int i = 0; i < apart->n; i++) held_out.which[i] = i;
    }
    Texts reference = {0};
    if (args.normalize && strcmp(args.normalize, "data"))
        reference = read_texts(args.normalize, tokenizer);
    run_fingerprint(&run, "data", run.data);
    run_fingerprint(&run, "eval", run.eval);
    run_fingerprint(&run, "normalize", reference.n ? args.normalize : NULL);
    run_template(&run, args.template);
    run_plan_steps(&run, train.n);
    printf("%d pairs to train on, %d held out; %d steps of %d x %d pairs\n", train.n, held_out.n,
           run.total_steps, run.gradient_accumulation_steps, run.per_device_train_batch_size);
    const int P = run.per_device_train_batch_size;
    GPT2Limits limits = {.sequences = 3 * P,
                         .scored = P,
                         .train = run.total_steps > 0,
                         .gradient_checkpointing = args.gradient_checkpointing};
    int most[] = {largest_batch(&train, P), largest_batch(&held_out, P), reference.longest};
    for (int i = 0; i < 3; i++) limits.tokens = limits.tokens > most[i] ? limits.tokens : most[i];
    GPT2Memory memory = gpt2_memory(&config, &limits);
    run_print_parameters(limits.train ? gpt2_parameters(&config, TRAIN_ALL) : 0,
                         gpt2_parameters(&config, TRAIN_ALL));
    run_print_memory(&memory);
    for (int k = 0; k < (run.dry_run ? 3 : 1) && k < train.n; k++)
        show_pair(tokenizer, &train, k, NULL, NULL);
    print_baselines("training", &train);
    print_baselines("held-out", &held_out);
    GPT2 *model = NULL;
    PairBatch batch = {0};
    float *was = NULL, *is = NULL;
    int *which = NULL, status = 0;
    if (run.dry_run) goto done;

    bool found;
    if (!(model = hf_load_head(run_model_dir(&run), SCORE_HEAD, !limits.train && !args.normalize,
                               &found, &e)))
        die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    batch_reserve(&batch, P, limits.tokens);
    if (!found) {
        if (run.total_steps == 0)
            die_usage(
                "%s has no score.weight: it is no reward model, and with --max_steps 0 it does not "
                "become one",
                run.model);
        double end = probability_of_the_end(&batch, model, &train, P, tokenizer_eos(tokenizer));
        printf(
            "%s has no score.weight: a new head. It gives the end of text after chosen answers a "
            "probability of %.3f\n",
            run.model, end);
        if (end < 0.1)
            printf(
                "note: that does not look like a model that was fine-tuned to answer in this form; "
                "a reward model from such a start may stay at 50 %%. "
                "Give --model one from sft.c, or, if it was tuned in another form, --template\n");
        init_head(model, (uint64_t)run.seed);
    }
    Totals interval = nothing;  // since the last line of the log
    double num_tokens =
        0;  // that went through the model in training; a shared prompt goes through once
    run_keep(&run, "loss", &interval.loss);
    run_keep(&run, "pairs", &interval.pairs);
    run_keep(&run, "correct", &interval.correct);
    run_keep(&run, "judged", &interval.judged);
    run_keep(&run, "chosen", &interval.chosen);
    run_keep(&run, "rejected", &interval.rejected);
    run_keep(&run, "min", &interval.min);
    run_keep(&run, "max", &interval.max);
    run_keep(&run, "num_tokens", &num_tokens);
    run_resume(&run, model);

    const double c = (double)args.center_rewards_coefficient;
    which = (int *)xmalloc(sizeof(int) * (size_t)(P * run.gradient_accumulation_steps));
    was = (float *)xmalloc(sizeof(float) * 2 * (size_t)(held_out.n + 1));
    is = (float *)xmalloc(sizeof(float) * 2 * (size_t)(held_out.n + 1));
    Totals before = evaluate(&batch, model, &held_out, P, was), after = before;
    if (held_out.n) print_totals("before", &before);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. the pairs of this step, and M, their number
        int n = run_examples(&run, run.step, which);
        for (int i = 0; i < n; i++) which[i] = train.which[which[i]];
        double M = n, loss = 0;
        // 2. per micro-batch: the rewards of chosen and rejected, the loss, its gradient; the
        // gradients add up
        noise.step = (uint32_t)run.step;
        long tokens = 0;
        for (int i = 0; i < n; i += P) {
            batch_fill(&batch, data, which + i, n - i < P ? n - i : P, true);
            batch_rewards(&batch, model, &noise);
            double part = bradley_terry(batch.P, batch.chosen, batch.rejected, batch.margin,
                                        batch.p_chosen, c, M, batch.dchosen, batch.drejected);
            batch_backward(&batch, model);
            totals_add(&interval, &batch, part * M);
            loss += part;
            tokens += batch.batch.N;
        }
        // 3. clip, AdamW
        AdamW adamw = run_adamw(&run, run.step);
        double norm = (double)gpt2_step(model, &adamw, run.step + 1);
        if (!isfinite(loss) || !isfinite(norm))
            die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate, or "
                "look at the pairs of this step, the first on line %d of %s",
                run.step + 1, loss, norm, data->line[which[0]], run.data);
        run.step++;
        num_tokens += (double)tokens;
        // 4. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run)) {
            run_log(&run, {"loss", interval.loss / interval.pairs},
                    {"accuracy", accuracy(&interval)}, {"margin", margin(&interval)},
                    {"rewards/chosen", interval.chosen / interval.pairs},
                    {"rewards/rejected", interval.rejected / interval.pairs},
                    {"min_reward", interval.min}, {"mean_reward", mean_reward(&interval)},
                    {"max_reward", interval.max}, {"grad_norm", norm},
                    {"learning_rate", (double)adamw.learning_rate}, {"num_tokens", num_tokens},
                    {"epoch", run_epoch(&run)});
            interval = nothing;
        }
        if (run_should_evaluate(&run) && held_out.n) {
            after = evaluate(&batch, model, &held_out, P, is);
            run_log(&run, {"eval_loss", after.loss / after.pairs},
                    {"eval_accuracy", accuracy(&after)}, {"eval_margin", margin(&after)},
                    {"eval_min_reward", after.min}, {"eval_mean_reward", mean_reward(&after)},
                    {"eval_max_reward", after.max});
        }
        if (run_should_save(&run)) run_checkpoint(&run, model);
    }

    // What it has learned
    if (!run_interrupted() && held_out.n) {
        after = evaluate(&batch, model, &held_out, P, is);
        for (int k = 0; k < 3 && k < held_out.n && run.total_steps > 0; k++)
            show_pair(tokenizer, &held_out, k, was, is);
        print_buckets(&held_out, is);
        if (run.total_steps > 0) print_totals("after", &after);
        printf("held-out pairs (%d)  accuracy %.1f %% -> %.1f %%\n", held_out.n,
               100 * accuracy(&before), 100 * accuracy(&after));
    }
    if (!run_interrupted() && args.normalize)
        normalize(&batch, model, &train, &reference, &limits, P);
    run_print_peak_memory(&memory);
    status = run_finish(&run, model);
done:
    free(was), free(is), free(which), free(order);
    batch_free(&batch);
    gpt2_free(model);
    texts_free(&reference);
    pairs_free(data);
    free(data);
    if (apart) {
        pairs_free(apart);
        free(apart);
    }
    tokenizer_free(tokenizer);
    run_free(&run);
    return status;
}
