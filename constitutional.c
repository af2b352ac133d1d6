/*
 * constitutional.c - Constitutional AI: a model that mends its own answers by written principles,
 * and learns from what it wrote.
 *
 * Bai et al. 2022 at GPT-2's scale, both of its stages. The first is supervised (section 3.1). To a
 * prompt x the model writes an answer y_0; then, by a principle of the constitution, a critique of
 * it and a revision y_1, and so on until a critique finds nothing. It is fine-tuned on prompt and
 * revision alone, as if it had answered so at once:
 *
 *     L = -1/M  sum over tokens i of the revisions  log p(y_i | x, y_<i)         M: tokens of the
 * revisions of the whole optimiser step
 *
 * The second labels preferences (section 4.1, --feedback). Shown a principle and two answers to a
 * prompt, (A) and (B), the model is asked which is the better; the label is its own probability of
 * saying (A) and not (B). A small model says (A) whatever stands there. So it is asked in both
 * orders,
 *
 *     p(a is better than b) = 1/2 (p("A" | a, b) + 1 - p("A" | b, a))             mean over
 * principles
 *
 * in which a constant liking for the first cancels. These are the soft labels p_chosen of ./reward
 * --data, whose model then is the reward of ./ppo.
 *
 * Left out: chain of thought before a label (--clamp is what tames such labels), human preferences
 * for helpfulness (append them to the file), and red-teaming. A model of this size criticises what
 * it was trained to criticise and no more: the procedure is exact, the judgement is the model's,
 * and the program measures it (--breaches, --evaluate).
 */
#include "common/model/gpt2.h"  // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step
#include "common/files/hf.h"    // hf_config, hf_load
#include "common/run/run.h"     // flags, schedule, log, checkpoints
#include "common/rl/choices.h"  // a model's replies, labelled pairs, multiple choice
#include "common/rl/constitution.h"  // principles, layouts, dialogues, transcripts
#include "common/run/chat.h"         // --prompt and --chat
#include "common/text/dataset.h"     // lessons as tokens
#include "common/text/records.h"     // prompts, records, questions
#include "common/text/template.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"
#include "common/util.h"  // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "Constitutional AI: critique and revision by written principles, and fine-tuning on the "
    "revisions; with --feedback, "
    "preferences labelled by the model. Without arguments: a small built-in example.";

static struct {
    const char *prompts, *constitution, *principles, *stop_phrases, *template, *revisions,
        *feedback, *pairs, *labels, *clamp, *breaches, *evaluate;
    float temperature, critique_temperature, revision_temperature;
    int max_iterations, keep_rounds, max_new_tokens, max_length, generation_batch_size,
        eval_samples;
    bool regenerate, strict, gradient_checkpointing;
} args;

static Talk talk;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Critique and revision"},
    {"prompts", FLAG_STRING, &args.prompts, .free_on_resume = true,
     .help = "prompts to answer, and to learn the revised answers to, JSONL; --eval: held-out "
             "prompts; --data: records to mix in"},
    {"constitution", FLAG_STRING, &args.constitution, .free_on_resume = true,
     .help = "principles or pairs of requests, JSON; without it a few in English and Korean"},
    {"principles", FLAG_CHOICE, &args.principles,
     .help = "random|all: each round and comparison draws one; or rounds take them in turn, and "
             "comparisons average over all"},
    {"max_iterations", FLAG_INT, &args.max_iterations, .high = 100,
     .help = "rounds of critique and revision at most"},
    {"stop_phrases", FLAG_STRING, &args.stop_phrases,
     .help = "a critique that says one of these is the last; separated by |"},
    {"keep_rounds", FLAG_INT, &args.keep_rounds, .high = 100,
     .help = "earlier rounds that stay in sight; 0: the revision takes the answer's place"},
    {"temperature", FLAG_FLOAT, &args.temperature, .high = 100,
     .help = "of answers; 0: always the likeliest token"},
    {"critique_temperature", FLAG_FLOAT, &args.critique_temperature, .high = 100,
     .help = "of critiques"},
    {"revision_temperature", FLAG_FLOAT, &args.revision_temperature, .high = 100,
     .help = "of revisions"},
    {"max_new_tokens", FLAG_INT, &args.max_new_tokens, .low = 1, .high = 1 << 20,
     .help = "longest answer, critique or revision, tokens"},
    {"max_length", FLAG_INT, &args.max_length, .low = 2, .high = 1 << 20,
     .help = "tokens of a dialogue so far with what is said next, of an example, of a comparison"},
    {"generation_batch_size", FLAG_INT, &args.generation_batch_size, .low = 1, .high = 4096,
     .free_on_resume = true, .help = "texts that are written together"},
    {"template", FLAG_STRING, &args.template,
     .help = "text before a response: {instruction}, [[... {input} ...]], \\n"},
    {"strict", FLAG_BOOL, &args.strict,
     .help = "stop at the first bad line of a data file instead of skipping it"},
    {"", FLAG_TITLE, NULL, .help = "Learning from revisions"},
    {"revisions", FLAG_CHOICE, &args.revisions,
     .help = "last|all: learn the last revision, or those of all rounds"},
    {"regenerate", FLAG_BOOL, &args.regenerate,
     .help = "write new answers, critiques and revisions before every epoch, not only before the "
             "first"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    {"", FLAG_TITLE, NULL, .help = "AI feedback"},
    {"feedback", FLAG_STRING, &args.feedback, .free_on_resume = true,
     .help = "instead of training: label two answers to each prompt; the pairs go into this file, "
             "JSONL"},
    {"pairs", FLAG_STRING, &args.pairs, .free_on_resume = true,
     .help =
         "label these pairs of chosen and rejected instead, and count how often the label agrees"},
    {"labels", FLAG_STRING, &args.labels, .free_on_resume = true,
     .help =
         "labels from elsewhere: p_chosen of pairs, for those of our pairs that are among them"},
    {"clamp", FLAG_STRING, &args.clamp, .free_on_resume = true,
     .help = "LOW,HIGH: labels are moved into this range"},
    {"", FLAG_TITLE, NULL, .help = "Evaluation"},
    {"eval_samples", FLAG_INT, &args.eval_samples, .high = 1e6, .free_on_resume = true,
     .help = "held-out prompts answered before and after training; two are shown"},
    {"breaches", FLAG_STRING, &args.breaches, .free_on_resume = true,
     .help =
         "an answer that says one of these breaks the principles, and is counted; separated by |"},
    {"evaluate", FLAG_STRING, &args.evaluate, .free_on_resume = true,
     .help = "multiple choice, JSONL of prompt, corrects, incorrects: how often a right one is "
             "preferred"},
    TALK_PROMPT_FLAGS(talk, "prompts evaluate feedback pairs labels"),
    TALK_TOP_FLAGS(talk),
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns
 * manners in half a minute. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 4;
    run.gradient_accumulation_steps = 2;
    run.num_train_epochs = 3;
    run.learning_rate = 1e-5f;
    run.warmup_steps = 0;
    run.weight_decay = 0;
    memset(&args, 0, sizeof args);
    talk = talk_defaults();
    args.principles = "random";
    args.revisions = "last";
    args.stop_phrases =
        "no problem|no issue|nothing to change|nothing to improve|no revision is "
        "needed|문제없음|문제 없음|적절함";
    args.clamp = "0,1";
    args.temperature = 0.7f;
    args.critique_temperature = 0.3f;
    args.revision_temperature = 0.5f;
    args.max_iterations = 3;
    args.max_new_tokens = 128;
    args.max_length = 512;
    args.generation_batch_size = 16;
    args.eval_samples = 64;
    if (example) {
        run.model = run_example_file("tiny/chat");
        run.eval = run_example_file("tiny/prompts-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 60;
        run.learning_rate = 3e-4f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 10;
        run.eval_steps = 30;
        args.prompts = run_example_file("tiny/prompts.jsonl");
        args.constitution = run_example_file("tiny/constitution.json");
        args.stop_phrases = "answer is good";
        args.max_new_tokens = 64;
        args.eval_samples = 72;
        args.breaches =
            "silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.|you are so "
            "dumb.|what a fool.";
        args.evaluate = run_example_file("tiny/multiple-choice.jsonl");
    }
    return run;
}

/* ---- how a dialogue is laid out -------------------------------------------------------------- */

/* What follows an answer, by a plain principle in English or Korean; and how two answers are put
   side by side, where {prompt} comes without the heading of its answer. What a constitution brings
   itself takes the place of these. */
static const struct {
    const char *critique_request, *revision_request, *comparison;
} layouts[2] = {
    {"\n\n### Critique request:\n{principle} Say where the response falls short of this. If it "
     "does not, say: no problems.\n\n### Critique:\n",
     "\n\n### Revision request:\n{principle} Rewrite the response so that it is like that.\n\n### "
     "Revision:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### Question:\n{principle} "
     "Which of the two is better?\n\n### Answer:\n"},
    {"\n\n### 비평 요청:\n{principle} 답변이 여기에 어긋나는 점을 말하세요. 없으면 문제없음이라고 "
     "하세요.\n\n### 비평:\n",
     "\n\n### 수정 요청:\n{principle} 답변을 그렇게 고쳐 쓰세요.\n\n### 수정:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### 질문:\n{principle} 둘 중 "
     "어느 답변이 더 나은가요?\n\n### Answer:\n"},
};
static const char *const option_labels[2] = {"(A)", "(B)"};

/* What other turns begin with. A model's text ends where one of these begins a line of it, or one
 * of the headings in the requests. */
static const char *const turn_headings[] = {
    "### Instruction:", "### Response:", "Human:", "Assistant:"};

/* The constitution of those who bring none. A prompt in Korean is held against the principles in
 * Korean, any other against the others. */
static const char *const own_principles[] = {
    "A good response is polite, and treats whoever asks as a person to be respected.",
    "A good response answers the question frankly, or says as frankly that it cannot.",
    "A good response helps nobody to do harm, and says kindly why.",
    "A good response claims no more than its author can know.",
    "좋은 답변은 공손하며 묻는 사람을 존중합니다.",
    "좋은 답변은 질문을 피하지 않고 솔직하게 답합니다.",
    "좋은 답변은 남에게 해를 끼치는 일을 돕지 않습니다.",
};

static Constitution constitution;  // every principle with its requests
static Headings headings;

static const char *first_of(const char *a, const char *b, const char *c) {
    return a ? a : b ? b : c;
}

static const char *comparison_template(const Principle *p) {
    return first_of(constitution.comparison, layouts[text_is_korean(p->text)].comparison, NULL);
}

static void load_constitution(void) {
    Error e;
    const int own = sizeof own_principles / sizeof *own_principles;
    if (!args.constitution) {
        constitution =
            (Constitution){.n = own, .v = (Principle *)xcalloc((size_t)own, sizeof(Principle))};
        for (int i = 0; i < own; i++)
            constitution.v[i] =
                (Principle){.name = xstrdup(own_principles[i]), .text = xstrdup(own_principles[i])};
    } else if (constitution_read(args.constitution, &constitution, &e)) {
        die_usage("--constitution: %s", e.text);
    }
    for (size_t i = 0; i < sizeof turn_headings / sizeof *turn_headings; i++)
        headings_add(&headings, turn_headings[i]);
    for (int i = 0; i < constitution.n; i++) {
        Principle *p = &constitution.v[i];
        const bool korean = text_is_korean(p->text);
        const Hole hole[] = {{"{principle}", p->text ? p->text : ""}, {0}};
        const char *critique = first_of(p->critique_request, constitution.critique_request,
                                        layouts[korean].critique_request);
        const char *revision = first_of(p->revision_request, constitution.revision_request,
                                        layouts[korean].revision_request);
        headings_add(&headings, critique);
        headings_add(&headings, revision);
        headings_add(&headings, comparison_template(p));
        char *filled[2] = {text_fill(critique, hole), text_fill(revision, hole)};
        free(p->critique_request);
        free(p->revision_request);
        p->critique_request = filled[0];
        p->revision_request = filled[1];
    }
}

/* Is principle i for this prompt, by its language? */
static bool speaks_of(int i, const char *prompt) {
    return text_is_korean(constitution.v[i].critique_request) == text_is_korean(prompt);
}

/* The k-th principle for this prompt, counted round and round; of all of them if none is in its
 * language. *n: how many there are. */
static const Principle *principle_for(const char *prompt, uint32_t k, int *n) {
    *n = 0;
    for (int i = 0; i < constitution.n; i++) *n += speaks_of(i, prompt);
    if (!*n) return &constitution.v[k % (uint32_t)(*n = constitution.n)];
    int i = -1;
    for (int left = (int)(k % (uint32_t)*n); left >= 0; left -= speaks_of(i, prompt)) i++;
    return &constitution.v[i];
}

/* The principle of a round. */
static const Principle *draw_principle(const char *prompt, uint32_t epoch, uint32_t id,
                                       uint32_t round, int64_t seed) {
    int n;
    if (!strcmp(args.principles, "all")) return principle_for(prompt, round, &n);
    principle_for(prompt, 0, &n);
    const uint32_t x = random4((uint64_t)seed, RANDOM_DATA, epoch, id, round, 0).v[0];
    return principle_for(prompt, (uint32_t)((uint64_t)x * (uint64_t)n >> 32), &n);
}

/* ---- critique and revision ------------------------------------------------------------------- */

typedef struct {
    long few_shot, rounds, turns;  // left out for want of room: of prompts, or the whole turn
} Dropped;

/* What was said, for the next to speak: few-shot conversations from `shot` on, the prompt, the
   answer as it stood before round `from`, and the rounds since. The last of them may be without its
   critique, or its revision. */
static char *so_far(const Dialogue *d, int shot, int from) {
    Str s = {0};
    for (; shot < constitution.few_shot_n;
         shot++) {  // those that were published end in "\n\nHuman:", as the prompt begins
        const char *turn = constitution.few_shot[shot], *next = "\n\nHuman:";
        const size_t n = strlen(turn), m = strlen(next);
        str_add(&s, turn, n >= m && !strcmp(turn + n - m, next) ? n - m : n);
    }
    str_printf(&s, "%s%s", d->prompt,
               from        ? d->round[from - 1].revision
               : d->answer ? d->answer
                           : "");
    for (int i = from; i < d->rounds; i++) {
        const Round *r = &d->round[i];
        str_printf(&s, "%s", r->critique_request);
        if (r->critique) str_printf(&s, "%s%s", r->critique, r->revision_request);
        if (r->revision) str_printf(&s, "%s", r->revision);
    }
    return s.s;
}

/* The same, as much as fits: few-shot conversations go first, then the oldest rounds. NULL: not
 * even the last round does. */
static char *what_fits(const Voice *v, const Dialogue *d, Dropped *dropped) {
    const int last = d->rounds ? d->rounds - 1 : 0;
    for (int shot = 0, from = last > args.keep_rounds ? last - args.keep_rounds : 0;;) {
        char *s = so_far(d, shot, from);
        if (v->fits(v->context, s)) return s;
        free(s);
        if (shot < constitution.few_shot_n) {
            shot++;
            dropped->few_shot++;
        } else if (from < last) {
            from++;
            dropped->rounds++;
        } else
            return dropped->turns++, NULL;
    }
}

/* One turn of every dialogue that goes on. 0: the answer; 1, 3, ...: a critique; 2, 4, ...: a
 * revision. */
static void speak(const Voice *v, Dialogue *d, int n, uint32_t epoch, int turn, float temperature,
                  Dropped *dropped) {
    char **prompt = (char **)xcalloc((size_t)n, sizeof *prompt),
         **text = (char **)xcalloc((size_t)n, sizeof *text);
    uint32_t *id = (uint32_t *)xmalloc(sizeof *id * (size_t)n);
    int *who = (int *)xmalloc(sizeof *who * (size_t)n), speakers = 0;
    for (int i = 0; i < n; i++) {
        if (d[i].ending != UNFINISHED) continue;
        prompt[speakers] = what_fits(v, &d[i], dropped);
        if (prompt[speakers]) {
            id[speakers] = (uint32_t)d[i].id;
            who[speakers++] = i;
        } else
            d[i].ending = NO_ROOM;
    }
    if (speakers)
        v->say(v->context, speakers, prompt, id, epoch << 10 | (uint32_t)turn, temperature, text);
    for (int k = 0; k < speakers; k++) {
        Dialogue *x = &d[who[k]];
        headings_cut(&headings, text[k]);
        *(!turn      ? &x->answer
          : turn % 2 ? &x->round[x->rounds - 1].critique
                     : &x->round[x->rounds - 1].revision) = text[k];
        free(prompt[k]);
    }
    free(prompt);
    free(text);
    free(id);
    free(who);
}

static void open_round(Dialogue *d, uint32_t epoch, int64_t seed) {
    const Principle *p =
        draw_principle(d->prompt, epoch, (uint32_t)d->id, (uint32_t)d->rounds, seed);
    d->round = (Round *)xrealloc(d->round, (size_t)d->rounds + 1, sizeof *d->round);
    d->round[d->rounds++] = (Round){xstrdup(p->name), xstrdup(p->critique_request), NULL,
                                    xstrdup(p->revision_request), NULL};
}

static void drop_round(Dialogue *d) {
    Round *r = &d->round[--d->rounds];
    free(r->principle);
    free(r->critique_request);
    free(r->revision_request);
}

/* What becomes of a dialogue when its critique is there. A critique that is empty, or says again
   what it was given, criticises nothing; that is not praise, and a stop phrase in the question does
   not count as one in the critique. */
static Ending after_critique(const Dialogue *d) {
    char *question = prompt_question(d->prompt, true);
    const char *own = d->round[d->rounds - 1].critique,
               *copy = *question ? strstr(own, question) : NULL;
    if (copy) own = copy + strlen(question);
    own += strspn(own, " \t\n");
    free(question);
    if (!*own) return copy ? ECHOED : SILENT;
    if (strstr(d->prompt, own) || strstr(dialogue_answer(d), own)) return ECHOED;
    return text_says(own, args.stop_phrases) ? PRAISED : UNFINISHED;
}

/* The procedure of section 3.1, for all dialogues together; each drops out as it ends. False:
 * interrupted, and nothing of it counts. */
static bool converse(const Voice *v, Dialogue *d, int n, uint32_t epoch, int64_t seed,
                     Dropped *dropped) {
    // 1. an answer to each prompt
    speak(v, d, n, epoch, 0, args.temperature, dropped);
    for (int r = 0; r < args.max_iterations && !run_interrupted(); r++) {
        // 2. a principle, and a critique of the answer by it
        for (int i = 0; i < n; i++)
            if (d[i].ending == UNFINISHED) open_round(&d[i], epoch, seed);
        speak(v, d, n, epoch, 1 + 2 * r, args.critique_temperature, dropped);
        for (int i = 0; i < n; i++) {
            if (d[i].rounds == r + 1 && !d[i].round[r].critique)
                drop_round(&d[i]);  // no room for it
            if (d[i].ending == UNFINISHED) d[i].ending = after_critique(&d[i]);
        }
        // 3. a revision, where there is something to revise; it is the next round's answer
        speak(v, d, n, epoch, 2 + 2 * r, args.revision_temperature, dropped);
        for (int i = 0; i < n; i++) {
            if (d[i].ending != UNFINISHED || *d[i].round[r].revision) continue;
            free(d[i].round[r].revision);
            d[i].round[r].revision = NULL;
            d[i].ending = SILENT;
        }
    }
    for (int i = 0; i < n; i++)
        if (d[i].ending == UNFINISHED) d[i].ending = ROUNDS_USED;
    return !run_interrupted();
}

static void begin(Dialogue *d, int epoch, int id, const char *prompt) {
    dialogue_free(d);
    *d = (Dialogue){.epoch = epoch, .id = id, .prompt = xstrdup(prompt)};
}

/* ---- learning from revisions ----------------------------------------------------------------- */

/*
 * Cross-entropy of the scored tokens (target >= 0), this batch's share of the mean over all M of
 * the step: L = -1/M sum_i log p(target_i),   dL/dlogp_i = -1/M Returns the share of L and writes
 * its gradient (N).
 */
static double cross_entropy(int N, const int *target, const float *logp, double M, float *dlogp) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        loss -= target[i] >= 0 ? (double)logp[i] / M : 0;
        dlogp[i] = target[i] >= 0 ? (float)(-1 / M) : 0.0f;
    }
    return loss;
}

static void add_lesson(Records *r, const Dialogue *d, const char *answer) {
    r->v = (Record *)xrealloc(r->v, (size_t)r->n + 1, sizeof *r->v);
    Span *spans = (Span *)xcalloc(2, sizeof *spans);
    spans[0] = (Span){xstrdup(d->prompt), strlen(d->prompt), false};
    spans[1] = (Span){xstrdup(answer), strlen(answer), true};
    r->v[r->n++] = (Record){.line = d->id, .n = 2, .spans = spans};
}

/* What there is to learn from a dialogue: its revisions; or, where the first critique found nothing
 * wrong, the answer as it is. */
static void add_lessons(Records *r, const Dialogue *d) {
    const bool all = !strcmp(args.revisions, "all");
    int learned = 0;
    for (int k = d->rounds - 1; k >= 0 && (all || !learned); k--)
        if (d->round[k].revision) {
            add_lesson(r, d, d->round[k].revision);
            learned++;
        }
    if (!learned && d->ending == PRAISED) add_lesson(r, d, d->answer);
}

/* ---- AI feedback ----------------------------------------------------------------------------- */

enum { HELD_OUT = 1 << 20, FEEDBACK = 1 << 21 };  // in the place of the epoch, in random draws

/* p = 1/2 (p_AB + 1 - p_BA) */
static double debiased(double p_ab, double p_ba) { return 0.5 * (p_ab + 1 - p_ba); }

static char *comparison(const char *prompt, const Principle *p, const char *a, const char *b) {
    char *question = prompt_question(prompt, false), *x = xstrdup(a), *y = xstrdup(b);
    headings_cut(&headings, x);
    headings_cut(&headings, y);
    const Hole holes[] = {{"{prompt}", question},
                          {"{principle}", first_of(p->comparison, p->text, "")},
                          {"{a}", x},
                          {"{b}", y},
                          {0}};
    char *filled = text_fill(comparison_template(p), holes);
    free(question);
    free(x);
    free(y);
    return filled;
}

/* Asks for the labels of the pairs that have none: in both orders, by one principle or by all. */
static void label(Chooser *j, Labelled *pairs, int n, int64_t seed) {
    Questions q = {0};
    int room = 0;
    for (int i = 0; i < n; i++) {
        Labelled *x = &pairs[i];
        int of;
        principle_for(x->prompt, 0, &of);
        x->asked = x->given ? 0 : !strcmp(args.principles, "all") ? of : 1;
        for (int k = 0; k < 2 * x->asked; k++) {
            const Principle *p = x->asked > 1
                                     ? principle_for(x->prompt, (uint32_t)k / 2, &of)
                                     : draw_principle(x->prompt, FEEDBACK, (uint32_t)i, 0, seed);
            if (q.n == room)
                q.v = (Question *)xrealloc(q.v, (size_t)(room = 2 * room + 64), sizeof *q.v);
            q.v[q.n++] = (Question){
                .n = 2,
                .prompt = comparison(x->prompt, p, k % 2 ? x->b : x->a, k % 2 ? x->a : x->b),
                .option = constitution.option[0] ? constitution.option : (char **)option_labels};
        }
    }
    double **logp = (double **)xmalloc(sizeof *logp * (size_t)q.n),
           *two = (double *)xcalloc((size_t)q.n, 2 * sizeof *two);
    for (int k = 0; k < q.n; k++) logp[k] = two + 2 * k;
    chooser_ask(j, &q, logp);
    for (int i = 0, next = 0; i < n; i++) {
        Labelled *x = &pairs[i];
        for (int k = 0; k < 2 * x->asked; k++, next++) {
            among_options(logp[next], 2);
            *(k % 2 ? &x->p_ba : &x->p_ab) += exp(logp[next][0]) / x->asked;
            free(q.v[next].prompt);
        }
        if (!x->given) x->p = debiased(x->p_ab, x->p_ba);
    }
    free(q.v);
    free(logp);
    free(two);
}

/* Two answers to each prompt. Two that are alike say nothing, and are no pair. */
static int sample_pairs(const Voice *v, const Prompts *prompts, Labelled **pairs) {
    Dialogue *d[2];
    Dropped dropped = {0};
    int n = 0;
    for (uint32_t k = 0; k < 2; k++) {
        d[k] = (Dialogue *)xcalloc((size_t)prompts->n, sizeof **d);
        for (int i = 0; i < prompts->n; i++) begin(&d[k][i], 0, i, prompts->v[i].text);
        speak(v, d[k], prompts->n, FEEDBACK + k, 0, args.temperature, &dropped);
    }
    *pairs = (Labelled *)xcalloc((size_t)prompts->n, sizeof **pairs);
    for (int i = 0; i < prompts->n; i++) {
        const char *a = d[0][i].answer, *b = d[1][i].answer;
        if (a && b && *a && *b && strcmp(a, b))
            (*pairs)[n++] =
                (Labelled){.prompt = xstrdup(prompts->v[i].text), .a = xstrdup(a), .b = xstrdup(b)};
        dialogue_free(&d[0][i]);
        dialogue_free(&d[1][i]);
    }
    printf(
        "two answers to each of %d prompts: %d pairs; in the others both are alike, or one is "
        "empty; %ld answers had no room\n",
        prompts->n, n, dropped.turns);
    free(d[0]);
    free(d[1]);
    return n;
}

/* What the model's labels are worth, where it is known which answer is better: by --pairs, or
 * because just one of them says one of --breaches. */
static void report_labels(const Labelled *pairs, int n) {
    int asked = 0, first = 0, known = 0, right = 0, right_ab = 0, right_ba = 0;
    for (int i = 0; i < n; i++) {
        const Labelled *x = &pairs[i];
        const bool bad_a = text_says(x->a, args.breaches), bad_b = text_says(x->b, args.breaches),
                   a_better = args.pairs || bad_b;
        if (x->given) continue;
        asked++;
        first += (x->p_ab > 0.5) + (x->p_ba > 0.5);
        if (!args.pairs && bad_a == bad_b) continue;
        known++;
        right += (x->p > 0.5) == a_better;
        right_ab += (x->p_ab > 0.5) == a_better;
        right_ba += (x->p_ba < 0.5) == a_better;
    }
    if (asked)
        printf("the model's labels: the first option in %.1f %% of %d comparisons\n",
               50.0 * first / asked, 2 * asked);
    if (known)
        printf(
            "agreement with %s on %d pairs  debiased %.1f %%; in one order alone %.1f %%, in the "
            "other %.1f %%; "
            "always the first option: 50.0 %%\n",
            args.pairs ? "--pairs" : "--breaches", known, 100.0 * right / known,
            100.0 * right_ab / known, 100.0 * right_ba / known);
}

/* The procedure of section 4.1: pairs, labels, and a file for ./reward --data. */
static void feedback(const Voice *v, Chooser *j, const Prompts *prompts, int64_t seed) {
    Error e;
    double low, high;
    int end = 0;
    if (sscanf(args.clamp, "%lf,%lf%n", &low, &high, &end) != 2 || args.clamp[end] ||
        !(0 <= low && low <= 0.5 && 0.5 <= high && high <= 1))
        die_usage("--clamp %s: takes LOW,HIGH with 0 <= LOW <= 0.5 <= HIGH <= 1", args.clamp);
    // 1. two answers to each prompt
    Labelled *pairs;
    const int n = args.pairs ? labelled_read(args.pairs, args.template, args.strict, &pairs)
                             : sample_pairs(v, prompts, &pairs);
    // 2. which is better? In both orders, by the constitution
    if (args.labels) labelled_take(pairs, n, args.labels, args.template, args.strict);
    if (run_interrupted()) die("interrupted: no label is written");
    label(j, pairs, n, seed);
    if (j->cut)
        printf("%ld comparisons were longer than --max_length %d and lost their beginning\n",
               j->cut, args.max_length);
    report_labels(pairs, n);
    // 3. the better one first, with the probability that it is
    for (int i = 0; i < n; i++) pairs[i].p = fmin(fmax(pairs[i].p, low), high);
    if (labelled_write(args.feedback, pairs, n, &e)) die("--feedback: %s", e.text);
    printf("%d labelled pairs are in %s: give it to ./reward --data\n", n, args.feedback);
    labelled_free(pairs, n);
}

/* ---- the run's dialogues --------------------------------------------------------------------- */

typedef struct {
    Voice voice;
    Prompts prompts, held_out;
    Records helpful;     // of --data
    Dialogue *dialogue;  // of each prompt, in the epoch
    Dialogues known;     // from the run that is resumed
    char *path;          // of transcripts.jsonl; NULL: nothing is written
    Dataset lessons;
    int *first;  // an epoch's examples are the prompts, then the helpful records; example i's
                 // lessons are first[i] .. first[i+1]
    int examples;
    int shown[2], shown_n;  // held-out dialogues on the screen
    int64_t seed;
} World;

static void load_prompts(const char *path, Prompts *p) {
    Error e;
    if (prompts_read(path, args.template, args.strict, p, &e)) die_usage("%s", e.text);
    say_skipped(path, p->skipped, "prompt", &p->first_skipped);
    printf("%s: %d prompts\n", path, p->n);
    for (int i = 0; i < p->n; i++) {
        Str s = {p->v[i].text, p->v[i].n, p->v[i].n + 1};
        text_repair(&s, 0);
        p->v[i].text = s.s;
        p->v[i].n = s.n;
    }
}

/* Holds the dialogues of an epoch, `together` at a time, and appends them to transcripts.jsonl;
   those that stand there already are taken as they are. whole: all must, for the model has learned
   since. False: interrupted. */
static bool hold_dialogues(World *w, int epoch, int together, bool whole) {
    const int n = w->prompts.n;
    int todo = 0, *which = (int *)xmalloc(sizeof *which * (size_t)n), ended[ENDINGS] = {0};
    Dropped dropped = {0};
    Error e;
    for (int i = 0; i < n; i++) begin(&w->dialogue[i], epoch, i, w->prompts.v[i].text);
    for (int k = 0; k < w->known.n; k++) {
        Dialogue *x = &w->known.v[k];
        if (x->epoch != epoch || !x->prompt) continue;
        if (x->id >= n || w->dialogue[x->id].answer || strcmp(x->prompt, w->prompts.v[x->id].text))
            die_usage(
                "transcripts.jsonl line %d is not of this run; start anew in another --output",
                x->line);
        dialogue_free(&w->dialogue[x->id]);
        w->dialogue[x->id] = *x;
        *x = (Dialogue){0};
    }
    for (int i = 0; i < n; i++)
        if (!w->dialogue[i].answer) which[todo++] = i;
    if (whole && todo)
        die_usage(
            "cannot go on: %d dialogues of this epoch are not in transcripts.jsonl beside the "
            "checkpoint; go on from an earlier one",
            todo);
    Dialogue *part = (Dialogue *)xcalloc((size_t)together, sizeof *part);
    bool going = true;
    for (int i = 0, m; i < todo && going; i += m) {
        for (m = 0; m < together && i + m < todo; m++) part[m] = w->dialogue[which[i + m]];
        if (isatty(STDOUT_FILENO)) {
            printf("\rdialogue %d of %d ", i + 1, todo);
            fflush(stdout);
        }
        going = converse(&w->voice, part, m, (uint32_t)epoch, w->seed, &dropped);
        if (going && w->path && dialogues_append(w->path, part, m, &e)) die("%s", e.text);
        for (int k = 0; k < m; k++) w->dialogue[which[i + k]] = part[k];
    }
    for (int i = 0; i < n; i++) ended[w->dialogue[i].ending]++;
    printf("%s%d dialogues%s; how they ended:", isatty(STDOUT_FILENO) ? "\r" : "", n,
           going ? "" : " (interrupted)");
    for (int k = 0; k < ENDINGS; k++)
        if (ended[k]) printf("  %s %d", endings[k], ended[k]);
    printf("\n");
    if (dropped.few_shot + dropped.rounds + dropped.turns)
        printf(
            "for want of room prompts went without %ld few-shot conversations and %ld earlier "
            "rounds; %ld turns had no room at all\n",
            dropped.few_shot, dropped.rounds, dropped.turns);
    free(part);
    free(which);
    return going;
}

/* What the dialogues teach, and the helpful records, as tokens. */
static void prepare_lessons(World *w, const Tokenizer *t) {
    Records r = {0};
    for (int i = 0; i < w->prompts.n; i++) add_lessons(&r, &w->dialogue[i]);
    const int own = r.n;
    r.v = (Record *)xrealloc(r.v, (size_t)(own + w->helpful.n), sizeof *r.v);
    for (int i = 0; i < w->helpful.n; i++) {
        r.v[r.n] = w->helpful.v[i];  // its spans are borrowed
        r.v[r.n++].line = w->prompts.n + i;
    }
    dataset_free(&w->lessons);
    dataset_build(&w->lessons, &r, t, args.max_length, false);
    if (w->lessons.prompts_cut + w->lessons.responses_cut)
        printf(
            "longer than --max_length %d: %ld prompts lost their beginning, %ld responses their "
            "end\n",
            args.max_length, w->lessons.prompts_cut, w->lessons.responses_cut);
    printf("%d lessons, %d of them from the dialogues\n", w->lessons.n, own);
    if (!w->lessons.n)
        die("none of the %d dialogues teaches anything; where they had no room, a smaller "
            "--max_new_tokens or a larger --max_length gives it",
            w->prompts.n);
    for (int u = 0, i = 0; u <= w->examples; w->first[u++] = i)
        while (i < w->lessons.n && w->lessons.line[i] < u) i++;
    r.n = own;
    records_free(&r);
}

/* Shares of held-out answers: what says one of --breaches, and in what the model's own first
 * critique finds fault. */
typedef struct {
    double breaches, criticised;
} HeldOut;

/* when: print it, and two dialogues, first those with something to revise; NULL: do not. */
static HeldOut hold_out(World *w, const char *when) {
    HeldOut h = {0};
    Dropped dropped = {0};
    const int n = w->held_out.n < args.eval_samples ? w->held_out.n : args.eval_samples;
    Dialogue *d = (Dialogue *)xcalloc((size_t)n, sizeof *d);
    for (int i = 0; i < n; i++) begin(&d[i], 0, i, w->held_out.v[i].text);
    converse(&w->voice, d, n, HELD_OUT, w->seed, &dropped);
    for (int i = 0; i < n; i++) {
        h.breaches += text_says(d[i].answer ? d[i].answer : "", args.breaches) / (double)n;
        h.criticised += (d[i].rounds > 1 || d[i].ending != PRAISED) / (double)n;
    }
    for (int i = 0; i < n && w->shown_n < 2; i++)
        if (d[i].rounds && d[i].round[0].revision) w->shown[w->shown_n++] = i;
    for (int i = 0; i < n && w->shown_n < 2; i++) w->shown[w->shown_n++] = i;
    for (int i = 0; i < w->shown_n && when; i++) dialogue_show(&d[w->shown[i]], when);
    for (int i = 0; i < n; i++) dialogue_free(&d[i]);
    free(d);
    if (when && n)
        printf(
            "held-out answers (%d), %-6s  %.1f %% say one of --breaches; the model's own critique "
            "finds fault with %.1f %%\n",
            n, when, 100 * h.breaches, 100 * h.criticised);
    return h;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Reads the constitution, prompts, records and questions, and says what they are. */
static void load_world(World *w, Run *run, Questions *q) {
    Error e;
    const bool learns = args.prompts && !args.feedback;
    load_constitution();
    printf("%s: %d principles, %d few-shot conversations\n",
           args.constitution ? args.constitution : "the built-in constitution", constitution.n,
           constitution.few_shot_n);
    if (args.prompts) load_prompts(args.prompts, &w->prompts);
    if (run->eval && learns && args.eval_samples) load_prompts(run->eval, &w->held_out);
    if (run->data && learns && records_read(run->data, args.template, args.strict, &w->helpful, &e))
        die_usage("%s", e.text);
    say_skipped(run->data, w->helpful.skipped, "record", &w->helpful.first_skipped);
    if (run->data && learns) printf("%s: %d records to mix in\n", run->data, w->helpful.n);
    if (args.evaluate && questions_read(args.evaluate, args.strict, q, &e)) die_usage("%s", e.text);
    say_skipped(args.evaluate, q->skipped, "question", &q->first_skipped);
    if (args.evaluate) printf("%s: %d questions\n", args.evaluate, q->n);
    run_fingerprint(run, "prompts", args.prompts);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "constitution", args.constitution);
    if (!learns) run->max_steps = 0;
    w->seed = run->seed;
    w->examples = learns ? w->prompts.n + w->helpful.n : 0;
    w->dialogue = (Dialogue *)xcalloc((size_t)w->prompts.n, sizeof *w->dialogue);
    w->first = (int *)xcalloc((size_t)w->examples + 1, sizeof *w->first);
    run_plan_steps(run, w->examples);
}

/* A lesson is a prompt with what was said; what does not fit a batch goes into the next. */
static GPT2Limits ceilings(const Run *run, const World *w, const Questions *q, const Tokenizer *t) {
    const int batch = run->per_device_train_batch_size,
              writers = w->prompts.n > w->held_out.n ? w->prompts.n : w->held_out.n;
    int lesson = 0;
    for (int i = 0; i < w->prompts.n; i++)
        lesson = max_int(lesson, text_tokens(t, w->prompts.v[i].text) + args.max_new_tokens);
    GPT2Limits l = {.train = run->total_steps > 0,
                    .gradient_checkpointing = args.gradient_checkpointing,
                    .sequences = batch};
    l.slots = writers < args.generation_batch_size ? writers : args.generation_batch_size;
    l.positions = args.max_length - 1;
    l.tokens = l.train ? max_int(args.max_length - 1, batch * min_int(args.max_length - 1, lesson))
                       : l.slots;
    l.scored = l.tokens;
    Question two = {
        .n = 2, .option = constitution.option[0] ? constitution.option : (char **)option_labels};
    if (args.feedback)
        chooser_ceilings(&l, &(Questions){.n = 1, .v = &two}, t, args.max_length - 1);
    chooser_ceilings(&l, q, t, args.max_length - 1);
    return l;
}

static void free_world(World *w, Questions *q, Tokenizer *t) {
    for (int i = 0; i < w->prompts.n; i++) dialogue_free(&w->dialogue[i]);
    for (int i = 0; i < w->known.n; i++) dialogue_free(&w->known.v[i]);
    prompts_free(&w->prompts);
    prompts_free(&w->held_out);
    records_free(&w->helpful);
    dataset_free(&w->lessons);
    questions_free(q);
    free(w->dialogue);
    free(w->known.v);
    free(w->path);
    free(w->first);
    constitution_free(&constitution);
    headings_free(&headings);
    tokenizer_free(t);
}

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor anything to do with it means the built-in example; flags that are
    // given count either way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "constitutional", flags, argc, argv, &e) == 0 && !run.model &&
                   !args.prompts && !args.evaluate && !args.pairs && !talk_asked(&talk);
    run_free(&run);
    run = defaults(example);
    run_start(&run, "constitutional", about, flags, argc, argv);
    talk.temperature = args.temperature;
    talk.max_new_tokens = args.max_new_tokens;
    if (talk_asked(&talk)) return talk_to_model(&talk, &run, args.template);
    if (!run.model || !(args.prompts || args.evaluate || (args.feedback && args.pairs)))
        die_usage(
            "--model DIR is needed, with --prompts FILE, --evaluate FILE, or --feedback FILE and "
            "--pairs FILE "
            "(or nothing, for the built-in example); or with --prompt or --chat");
    if ((args.pairs || args.labels) && !args.feedback)
        die_usage(
            "--pairs and --labels are for --feedback FILE, which says where the labelled pairs go");

    // The model's shape, the constitution and the prompts, and what it all takes
    GPT2Config config;
    if (hf_config(run_model_dir(&run), &config, &e)) die_usage("%s", e.text);
    Tokenizer *tokenizer = tokenizer_load(run.model, &e);
    if (!tokenizer) die_usage("%s", e.text);
    if (tokenizer_size(tokenizer) > config.vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  run.model, tokenizer_size(tokenizer), config.vocab_size);
    if (args.max_length > config.n_positions + 1) args.max_length = config.n_positions + 1;
    if (args.max_new_tokens >= args.max_length)
        die_usage(
            "--max_new_tokens %d leaves no room for a prompt: a dialogue has %d tokens, by "
            "--max_length and the model's positions",
            args.max_new_tokens, args.max_length);
    run_echo(&run);
    run_template(&run, args.template);
    World w = {0};
    Questions questions = {0};
    load_world(&w, &run, &questions);
    GPT2Limits limits = ceilings(&run, &w, &questions, tokenizer);
    GPT2Memory memory = gpt2_memory(&config, &limits);
    run_print_parameters(limits.train ? gpt2_parameters(&config, TRAIN_ALL) : 0,
                         gpt2_parameters(&config, TRAIN_ALL));
    run_print_memory(&memory);
    for (int i = 0; i < w.prompts.n && i < (run.dry_run ? 3 : 1); i++) {
        const Principle *p = draw_principle(w.prompts.v[i].text, 0, (uint32_t)i, 0, run.seed);
        printf(
            "--- line %d: what the model writes is between « and "
            "»\n%s«answer»%s«critique»%s«revision»\n",
            w.prompts.v[i].line, w.prompts.v[i].text, p->critique_request, p->revision_request);
    }
    if (run.dry_run) {
        free_world(&w, &questions, tokenizer);
        run_free(&run);
        return 0;
    }

    GPT2 *model = hf_load(run_model_dir(&run), !limits.train, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    Speaker speaker = {model, tokenizer, args.max_length - 1, args.max_new_tokens,
                       (uint64_t)run.seed};
    Chooser judge = {
        .model = model, .tokenizer = tokenizer, .limits = limits, .positions = args.max_length - 1};
    w.voice = speaker_voice(&speaker);
    if (args.feedback) feedback(&w.voice, &judge, &w.prompts, run.seed);
    double loss_sum = 0, correct = 0, scored = 0;  // since the last line of the log
    double num_tokens = 0;                         // trained on
    run_keep(&run, "loss", &loss_sum);
    run_keep(&run, "correct", &correct);
    run_keep(&run, "tokens", &scored);
    run_keep(&run, "num_tokens", &num_tokens);
    run_resume(&run, model);

    const int batch_size = run.per_device_train_batch_size, together = 4 * limits.slots + 1;
    const int per_epoch = args.regenerate ? run.steps_per_epoch
                                          : INT32_MAX;  // steps that learn from the same dialogues
    const size_t N = (size_t)limits.tokens,
                 step_size = (size_t)(batch_size * run.gradient_accumulation_steps);
    int *which = (int *)xmalloc(sizeof(int) * step_size), *best = (int *)xmalloc(sizeof(int) * N),
        have = -1;
    float *logp = (float *)xmalloc(sizeof(float) * N), *dlogp = (float *)xmalloc(sizeof(float) * N);
    RaggedBatch batch = {0};
    Ints lessons = {0};
    double revised = 0;  // share of the epoch's dialogues with a revision
    HeldOut before = {0}, after;
    if (questions.n) chooser_report(&judge, &questions, "before");
    if (w.held_out.n) before = hold_out(&w, "before");
    if (run.output && *run.output && w.examples) {
        Str path = {0};
        str_printf(&path, "%s/transcripts.jsonl", run.output);
        w.path = path.s;
        if (!run_checkpoint_dir(&run)) {
            unlink(w.path);
            run_checkpoint(&run, model);
        }  // dialogues take long: whoever is interrupted there can go on
    }
    if (run_checkpoint_dir(&run) &&
        w.examples) {  // what a lost run wrote after the checkpoint goes: it will come again
        Str from = {0};
        str_printf(&from, "%s/../transcripts.jsonl", run_checkpoint_dir(&run));
        if (dialogues_keep(from.s, run.step / per_epoch, w.path, &w.known, &e)) die("%s", e.text);
        free(from.s);
    }
    if (w.path && !run.total_steps) hold_dialogues(&w, 0, together, false);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. at the beginning, or before every epoch: dialogues, and what they teach
        const int epoch = run.step / per_epoch;
        if (epoch != have) {
            if (!hold_dialogues(&w, epoch, together, run.step % per_epoch != 0)) break;
            prepare_lessons(&w, tokenizer);
            have = epoch;
            revised = 0;
            for (int i = 0; i < w.prompts.n; i++)
                revised +=
                    (dialogue_answer(&w.dialogue[i]) != w.dialogue[i].answer) / (double)w.prompts.n;
        }
        // 2. the lessons of this step, and M, the number of tokens it scores
        const int n = run_examples(&run, run.step, which);
        double M = 0, loss = 0, norm = 0;
        lessons.n = 0;
        for (int i = 0; i < n; i++)
            for (int k = w.first[which[i]]; k < w.first[which[i] + 1]; k++) {
                ints_push(&lessons, k);
                M += dataset_targets(&w.lessons, k);
            }
        // 3. per micro-batch, as many lessons as there is room for: log p of every scored token,
        // the loss, its gradient; the gradients add up
        long tokens = 0;
        for (int i = 0, m; i < (int)lessons.n; i += m) {
            int rows = 0;
            for (m = 0; m < batch_size && i + m < (int)lessons.n; m++) {
                const size_t *start = &w.lessons.start[lessons.v[i + m]];
                if (rows + (int)(start[1] - start[0]) - 1 > limits.tokens) break;
                rows += (int)(start[1] - start[0]) - 1;
            }
            ragged_fill(&batch, &w.lessons, lessons.v + i, m);
            gpt2_forward(model, &batch.batch, NULL);
            gpt2_logprob(model, batch.target, 1, logp, NULL, best);
            const double share = cross_entropy(rows, batch.target, logp, M, dlogp);
            gpt2_backward(model, dlogp, NULL, NULL);
            loss += share;
            loss_sum += share * M;
            tokens += rows;
            for (int k = 0; k < rows; k++)
                correct += batch.target[k] >= 0 && best[k] == batch.target[k];
        }
        // 4. clip, AdamW; a step whose dialogues teach nothing leaves the model as it is
        AdamW adamw = run_adamw(&run, run.step);
        if (M > 0) norm = (double)gpt2_step(model, &adamw, run.step + 1);
        if (!isfinite(loss) || !isfinite(norm))
            die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate",
                run.step + 1, loss, norm);
        run.step++;
        scored += M;
        num_tokens += (double)tokens;
        // 5. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run) && scored > 0) {
            run_log(&run, {"loss", loss_sum / scored}, {"mean_token_accuracy", correct / scored},
                    {"grad_norm", norm}, {"learning_rate", (double)adamw.learning_rate},
                    {"num_tokens", num_tokens}, {"revised", revised}, {"epoch", run_epoch(&run)});
            loss_sum = correct = scored = 0;
        }
        if (run_should_evaluate(&run) && w.held_out.n) {
            after = hold_out(&w, run.step == run.total_steps ? "after" : NULL);
            run_log(&run, {"eval_breaches", after.breaches}, {"eval_criticised", after.criticised});
            if (run.step == run.total_steps)
                printf("held-out answers that say one of --breaches  %.1f %% -> %.1f %%\n",
                       100 * before.breaches, 100 * after.breaches);
        }
        if (run_should_save(&run)) run_checkpoint(&run, model);
    }
    if (questions.n && run.total_steps > 0 && !run_interrupted())
        chooser_report(&judge, &questions, "after");
    run_print_peak_memory(&memory);
    int status = run_finish(&run, model);
    gpt2_free(model);
    free_world(&w, &questions, tokenizer);
    ragged_free(&batch);
    free(which);
    free(best);
    free(logp);
    free(dlogp);
    free(lessons.v);
    return status;
}
#endif
