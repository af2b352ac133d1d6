/*
 * constitutional.c - Constitutional AI: a model that mends its own answers by written principles, and learns from what it wrote.
 *
 * Bai et al. 2022, at GPT-2's scale, and both of its stages. The first is supervised: to a prompt x the model writes an answer y_0; then, for a
 * principle of the constitution, a critique c_k of the answer and a revision y_k of it, until a critique finds nothing; and it is fine-tuned on
 *
 *     L = -1/M  sum over tokens i of the revisions  log p(y_i | x, y_<i)         M: tokens of the revisions of the whole optimiser step
 *
 * that is, on prompt and revision alone, as if it had answered so at once (section 3.1). The second labels preferences (section 4.1, --feedback): shown
 * two answers to a prompt as (A) and (B) and a principle, the model is asked which is better, and the label is its own probability of saying (A) and not (B).
 * A small model says (A) whatever stands there, so it is asked in both orders,
 *
 *     p(a is better than b) = 1/2 (p("A" | a, b) + 1 - p("A" | b, a))                      mean over principles
 *
 * in which a constant liking for the first cancels. These are soft labels p_chosen for ./reward --data, whose model then is the reward of ./ppo.
 *
 * What the paper says and is not here: chain of thought before the label (--clamp is what tames such labels), the human preferences for helpfulness that
 * it mixes in (append them to the file), and red-teaming. A model of this size criticises what it was trained to criticise and no more: the procedure
 * is exact, the judgement is the model's, and the program measures it (--evaluate, --breaches) instead of claiming it.
 */
#include "common/gpt2.h"   // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step, gpt2_generate
#include "common/hf.h"     // hf_config, hf_load
#include "common/run.h"    // flags, schedule, log, checkpoints
#include "common/text.h"   // tokenizer, prompts, constitutions, transcripts
#include "common/util.h"   // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------------------------- */

static const char about[] =
    "Constitutional AI: critique and revision by written principles, fine-tuning on the revisions; with --feedback, preferences labelled by the "
    "model. Without arguments: a small built-in example.";

static struct {
    const char *prompts, *constitution, *few_shot, *principles, *stop_phrases, *revisions, *feedback, *pairs, *labels, *clamp, *evaluate, *breaches, *template;
    float temperature, critique_temperature, revision_temperature;
    int max_iterations, keep_rounds, max_new_tokens, max_length, eval_samples, generation_batch_size;
    bool regenerate, strict, gradient_checkpointing;
} args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Critique and revision"},
    {"prompts", FLAG_STRING, &args.prompts, .free_on_resume = true, .help = "prompts to answer and to learn on, JSONL; --eval holds others, --data records to mix in"},
    {"constitution", FLAG_STRING, &args.constitution, .free_on_resume = true, .help = "principles, or pairs of requests, JSON; without it, a few in English and Korean"},
    {"principles", FLAG_CHOICE, &args.principles, .help = "random|all: one drawn for each round and comparison; or rounds take them in turn, and comparisons average over them"},
    {"few_shot", FLAG_STRING, &args.few_shot, .free_on_resume = true, .help = "whole conversations to show before each, a JSON list of texts"},
    {"max_iterations", FLAG_INT, &args.max_iterations, .high = 100, .help = "rounds of critique and revision at most"},
    {"keep_rounds", FLAG_INT, &args.keep_rounds, .high = 100, .help = "earlier rounds that stay in sight; 0: the revision takes the answer's place"},
    {"stop_phrases", FLAG_STRING, &args.stop_phrases, .help = "a critique that says one of these ends the rounds; separated by |"},
    {"temperature", FLAG_FLOAT, &args.temperature, .high = 100, .help = "of answers; 0: always the likeliest token"},
    {"critique_temperature", FLAG_FLOAT, &args.critique_temperature, .high = 100, .help = "of critiques"},
    {"revision_temperature", FLAG_FLOAT, &args.revision_temperature, .high = 100, .help = "of revisions"},
    {"max_new_tokens", FLAG_INT, &args.max_new_tokens, .low = 1, .high = 1 << 20, .help = "longest answer, critique or revision, tokens"},
    {"generation_batch_size", FLAG_INT, &args.generation_batch_size, .low = 1, .high = 4096, .free_on_resume = true, .help = "texts that are written together"},
    {"template", FLAG_STRING, &args.template, .help = "text before a response: {instruction}, [[... {input} ...]], \\n"},
    {"strict", FLAG_BOOL, &args.strict, .help = "stop at the first bad line of a data file instead of skipping it"},
    {"", FLAG_TITLE, NULL, .help = "Learning from revisions"},
    {"revisions", FLAG_CHOICE, &args.revisions, .help = "last|all: learn the final revision, or those of all rounds"},
    {"regenerate", FLAG_BOOL, &args.regenerate, .help = "write new answers, critiques and revisions before each epoch, not only before the first"},
    {"max_length", FLAG_INT, &args.max_length, .low = 2, .high = 1 << 20, .help = "tokens of an example; a longer one loses the beginning of its prompt"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing, .help = "keep one activation a layer and compute the others again: less memory, more time"},
    {"", FLAG_TITLE, NULL, .help = "AI feedback"},
    {"feedback", FLAG_STRING, &args.feedback, .free_on_resume = true, .help = "instead of training: label two answers to each prompt, and write the pairs to this file, JSONL"},
    {"pairs", FLAG_STRING, &args.pairs, .free_on_resume = true, .help = "label these pairs (chosen, rejected), and count how often the label agrees with them"},
    {"labels", FLAG_STRING, &args.labels, .free_on_resume = true, .help = "labels from elsewhere: pairs with p_chosen, used where they are the same pairs"},
    {"clamp", FLAG_STRING, &args.clamp, .help = "LOW,HIGH: labels are moved into this range"},
    {"", FLAG_TITLE, NULL, .help = "Evaluation"},
    {"eval_samples", FLAG_INT, &args.eval_samples, .high = 1e6, .free_on_resume = true, .help = "prompts of --eval answered before and after; two are shown"},
    {"breaches", FLAG_STRING, &args.breaches, .free_on_resume = true, .help = "an answer that holds one of these breaks the principles, and is counted; separated by |"},
    {"evaluate", FLAG_STRING, &args.evaluate, .free_on_resume = true, .help = "multiple choice, JSONL of prompt, corrects, incorrects: how often the model prefers a right one"},
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 4;
    run.gradient_accumulation_steps = 2;
    run.num_train_epochs = 3;
    run.learning_rate = 1e-5f;
    run.warmup_steps = 0;
    run.weight_decay = 0;
    memset(&args, 0, sizeof args);
    args.principles = "random";
    args.revisions = "last";
    args.stop_phrases = "no problem|no issue|nothing to change|nothing to improve|no revision is needed|문제없음|문제 없음|적절함";
    args.clamp = "0,1";
    args.temperature = 0.7f;
    args.critique_temperature = 0.3f;
    args.revision_temperature = 0.5f;
    args.max_iterations = 3;
    args.max_new_tokens = 128;
    args.max_length = 512;
    args.eval_samples = 64;
    args.generation_batch_size = 16;
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
        args.prompts = run_example_file("tiny/prompts.jsonl");
        args.constitution = run_example_file("tiny/constitution.json");
        args.stop_phrases = "answer is good";
        args.max_new_tokens = 64;
        args.eval_samples = 72;
        args.evaluate = run_example_file("tiny/multiple-choice.jsonl");
        args.breaches = "silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.|you are so dumb.|what a fool.|"
                        "cheeky brat.|foolish talk.|go, dunce.|lousy memory.";
    }
    return run;
}

/* ---- how a conversation is laid out ---------------------------------------------------------------------------- */

/* What follows an answer, for a plain principle; and how two answers are put side by side, where {prompt} is the prompt without the heading of its
   answer. A constitution's own take their place. Each text of a model is cut where one of these headings would begin a line of it. */
static const struct {
    const char *critique_request, *revision_request, *comparison;
} layouts[2] = {
    {"\n\n### Critique request:\n{principle} Say where the response falls short of this. If it does not, say: no problems.\n\n### Critique:\n",
     "\n\n### Revision request:\n{principle} Rewrite the response so that it is like that.\n\n### Revision:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### Question:\n{principle} Which of the two is better?\n\n### Answer:\n"},
    {"\n\n### 비평 요청:\n{principle} 답변이 여기에 어긋나는 점을 말하세요. 없으면 문제없음이라고 하세요.\n\n### 비평:\n",
     "\n\n### 수정 요청:\n{principle} 답변을 그렇게 고쳐 쓰세요.\n\n### 수정:\n",
     "{prompt}\n\n### Response (A):\n{a}\n\n### Response (B):\n{b}\n\n### 질문:\n{principle} 둘 중 어느 답변이 더 나은가요?\n\n### Answer:\n"},
};
static const char *const option_labels[2] = {"(A)", "(B)"};

/* How a prompt begins and ends, in the two usual forms; a turn of the few-shot conversations may end as the next one begins. */
static const char *const forms[][2] = {{"### Instruction:\n", "\n\n### Response:\n"}, {"\n\nHuman:", "\n\nAssistant:"}};

/* The constitution of those who bring none. A prompt in Korean is held against the principles in Korean, any other against the others. */
static const char *const own_principles[] = {
    "A good response is polite, and treats whoever asks as a person to be respected.",
    "A good response answers the question frankly, or says as frankly that it cannot.",
    "A good response helps nobody to do harm, and says kindly why.",
    "A good response claims no more than its author can know.",
    "좋은 답변은 공손하며 묻는 사람을 존중합니다.",
    "좋은 답변은 질문을 피하지 않고 솔직하게 답합니다.",
    "좋은 답변은 남에게 해를 끼치는 일을 돕지 않습니다.",
};

static Constitution constitution;
static struct {
    char *v[4096];
    int n;
} headings;

/* ---- texts ----------------------------------------------------------------------------------------------------- */

static const char *first_of(const char *a, const char *b) { return a ? a : b; }

static bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static bool ends(const char *text, const char *with) {
    size_t n = strlen(text), m = strlen(with);
    return n >= m && !strcmp(text + n - m, with);
}

/* Bytes 0xEA to 0xED begin the Hangul syllables, U+A000 to U+DFFF. */
static bool korean(const char *text) { return text && strpbrk(text, "\xEA\xEB\xEC\xED"); }

/* Does a word begin at text[i]? Not after a letter: 부적절함 does not say 적절함. */
static bool word_begins(const char *text, size_t i) {
    if (!i) return true;
    size_t lead = i - 1;
    while (lead > 0 && ((unsigned char)text[lead] & 0xC0) == 0x80) lead--;
    const unsigned char c = (unsigned char)text[lead];
    const bool ascii_letter = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return !(ascii_letter || (c >= 0xC3 && c <= 0xE1) || (c >= 0xE4 && c <= 0xED));   // 0xC2, 0xE2, 0xE3, 0xEF: punctuation, mostly
}

/* Does text say one of the phrases of a list "a|b|c"? From the beginning of a word on; ASCII letters in either case. */
static bool says(const char *text, const char *list) {
    for (size_t n; list && *list; list += n + (list[n] == '|')) {
        n = strcspn(list, "|");
        for (size_t i = 0; n && text[i]; i++)
            if (!strncasecmp(text + i, list, n) && word_begins(text, i)) return true;
    }
    return false;
}

typedef struct {
    const char *name, *text;
} Hole;

/* template with each {name} replaced by its text. What is put in is not looked at again. */
static char *fill(const char *template, const Hole *holes) {
    Str out = {0};
    str_add(&out, "", 0);
    for (const char *p = template; *p;) {
        const Hole *h = holes;
        while (h->name && !begins(p, h->name)) h++;
        if (h->name) str_add(&out, h->text, strlen(h->text));
        else str_add(&out, p, 1);
        p += h->name ? strlen(h->name) : 1;
    }
    return out.s;
}

/* Of a template: its first and last line that say something, and lines that begin with #, up to their first colon. */
static void add_headings(const char *template) {
    const char *end = template + strlen(template);
    while (end > template && strchr("\n ", end[-1])) end--;
    bool first = true;
    for (const char *line = template; line < end; line += strcspn(line, "\n") + 1) {
        const size_t n = strcspn(line, ":\n");
        if (!n) continue;
        const bool last = line + strcspn(line, "\n") >= end;
        if (line[n] == ':' && (first || last || *line == '#')) {
            if (headings.n == (int)(sizeof headings.v / sizeof *headings.v)) die_usage("--constitution: more than %d different headings", headings.n);
            char *heading = xstrdup(line);
            heading[n + 1] = 0;
            bool known = false;
            for (int i = 0; i < headings.n; i++) known |= !strcmp(headings.v[i], heading);
            if (known) free(heading);
            else headings.v[headings.n++] = heading;
        }
        first = false;
    }
}

/* Ends a model's text where a line of it begins like one of the headings: from there on it plays somebody else's part. Then takes the white space
   off its end. */
static void cut(char *text) {
    for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        for (int i = 0; i < headings.n; i++)
            if (begins(line, headings.v[i]) || begins(line, "<|endoftext|>")) *line = 0;
    size_t n = strlen(text);
    while (n && strchr(" \t\r\n", text[n - 1])) text[--n] = 0;
}

/* The prompt without the heading of its answer; bare: without that of its question, too. To be freed. */
static char *question_of(const char *prompt, bool bare) {
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (!ends(prompt, forms[i][1])) continue;
        const size_t from = bare && begins(prompt, forms[i][0]) ? strlen(forms[i][0]) : 0, to = strlen(prompt) - strlen(forms[i][1]);
        return to > from ? strndup(prompt + from, to - from) : xstrdup("");
    }
    return xstrdup(prompt);
}

/* ---- the constitution ------------------------------------------------------------------------------------------ */

/* Reads it, or takes our own; a template is the principle's, the file's or our layout's, in this order. */
static void load_constitution(void) {
    Error e;
    Constitution shots = {0};
    if (args.constitution && constitution_read(args.constitution, &constitution, &e)) die_usage("--constitution: %s", e.text);
    if (args.few_shot && constitution_read(args.few_shot, &shots, &e)) die_usage("--few_shot: %s", e.text);
    const int own = sizeof own_principles / sizeof *own_principles;
    if (!args.constitution) {
        constitution = (Constitution){.n = own, .v = (Principle *)xcalloc((size_t)own, sizeof(Principle))};
        for (int i = 0; i < own; i++) constitution.v[i] = (Principle){.name = xstrdup(own_principles[i]), .text = xstrdup(own_principles[i])};
    }
    constitution.few_shot = (char **)xrealloc(constitution.few_shot, (size_t)(constitution.few_shot_n + shots.n), sizeof(char *));
    for (int i = 0; i < shots.n; i++) {
        if (!shots.v[i].text) die_usage("--few_shot %s: takes a JSON list of texts", args.few_shot);
        constitution.few_shot[constitution.few_shot_n++] = xstrdup(shots.v[i].text);
    }
    constitution_free(&shots);
    for (int i = 0; i < constitution.few_shot_n; i++) {   // "...\n\nHuman:" before a prompt that begins so
        char *turn = constitution.few_shot[i];
        if (ends(turn, forms[1][0])) turn[strlen(turn) - strlen(forms[1][0])] = 0;
    }
    for (int i = 0; i < constitution.n; i++) {
        Principle *p = &constitution.v[i];
        const bool k = korean(p->text);
        const Hole holes[] = {{"{principle}", p->text ? p->text : ""}, {0}};
        const char *critique = first_of(p->critique_request, first_of(constitution.critique_request, layouts[k].critique_request));
        const char *revision = first_of(p->revision_request, first_of(constitution.revision_request, layouts[k].revision_request));
        add_headings(critique), add_headings(revision), add_headings(first_of(constitution.comparison, layouts[k].comparison));
        char *filled[2] = {fill(critique, holes), fill(revision, holes)};
        free(p->critique_request), free(p->revision_request);
        p->critique_request = filled[0], p->revision_request = filled[1];
    }
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) add_headings(forms[i][0]), add_headings(forms[i][1]);
}

/* The k-th principle for this prompt, counted round and round among those in its language, or among all when none is; *n: how many those are. */
static const Principle *principle_for(const char *prompt, uint32_t k, int *n) {
    const bool language = korean(prompt);
    *n = 0;
    for (int i = 0; i < constitution.n; i++) *n += korean(constitution.v[i].critique_request) == language;
    const bool any = !*n;
    if (any) *n = constitution.n;
    int skip = (int)(k % (uint32_t)*n);
    for (int i = 0;; i++)
        if ((any || korean(constitution.v[i].critique_request) == language) && !skip--) return &constitution.v[i];
}

/* The principle of a round of a conversation. */
static const Principle *draw_principle(const char *prompt, uint32_t epoch, uint32_t id, uint32_t round, int64_t seed) {
    int n;
    if (!strcmp(args.principles, "all")) return principle_for(prompt, round, &n);
    principle_for(prompt, 0, &n);
    const uint32_t x = random4((uint64_t)seed, RANDOM_DATA, epoch, id, round, 0).v[0];
    return principle_for(prompt, (uint32_t)((uint64_t)x * (uint64_t)n >> 32), &n);
}

/* ---- critique and revision ------------------------------------------------------------------------------------- */

/* Who writes. generate continues n prompts, and makes text[i] what follows prompt[i] (to be freed); id and turn name it in the random streams.
   fits says whether a prompt leaves room for an answer. The model below is one such voice, the tests' script another. */
typedef struct {
    void (*generate)(void *context, int n, char *const *prompt, const uint32_t *id, uint32_t turn, float temperature, char **text);
    bool (*fits)(void *context, const char *prompt);
    void *context;
} Voice;

typedef struct {
    const Principle *principle;
    char *critique, *revision;   // NULL: not written (yet)
} Round;

typedef enum { GOES_ON, PRAISED, SILENT, ECHOED, ROUNDS_USED, TOO_LONG, ENDINGS } Ending;
static const char *const endings[ENDINGS] = {"unfinished", "nothing left to criticise", "nothing said", "the text given said again", "all rounds used", "no room"};

typedef struct {
    uint32_t id;
    const char *prompt;
    char *answer;
    Round *round;                // (max_iterations)
    int rounds;                  // begun
    Ending ending;
} Conversation;

typedef struct {
    long few_shot, rounds, conversations;   // dropped for want of room
} Dropped;

/* The answer as it stands. */
static const char *final_answer(const Conversation *c) {
    for (int r = c->rounds - 1; r >= 0; r--)
        if (c->round[r].revision) return c->round[r].revision;
    return c->answer;
}

/* What is said so far, ready for the next to speak: few-shot conversations from the given one on, the prompt, the answer as it stood when round
   `from` began, and that round and the later ones. */
static char *so_far(const Conversation *c, int shot, int from) {
    Str s = {0};
    for (; shot < constitution.few_shot_n; shot++) str_printf(&s, "%s", constitution.few_shot[shot]);
    str_printf(&s, "%s%s", c->prompt, from ? c->round[from - 1].revision : c->answer ? c->answer : "");
    for (int r = from; r < c->rounds; r++) {
        const Round *round = &c->round[r];
        str_printf(&s, "%s", round->principle->critique_request);
        if (round->critique) str_printf(&s, "%s%s", round->critique, round->principle->revision_request);
        if (round->revision) str_printf(&s, "%s", round->revision);
    }
    return s.s;
}

/* The same, with as much as fits: few-shot conversations go first, then the oldest rounds. NULL: not even the last round fits. */
static char *prompt_that_fits(const Voice *v, const Conversation *c, Dropped *dropped) {
    const int last = c->rounds ? c->rounds - 1 : 0;
    int from = last > args.keep_rounds ? last - args.keep_rounds : 0, shot = 0;
    for (;;) {
        char *s = so_far(c, shot, from);
        if (v->fits(v->context, s)) return s;
        free(s);
        if (shot < constitution.few_shot_n) shot++, dropped->few_shot++;
        else if (from < last) from++, dropped->rounds++;
        else return dropped->conversations++, NULL;
    }
}

/* One turn of every conversation that goes on. 0: the answer; 1, 3, ...: a critique; 2, 4, ...: a revision. */
static void speak(const Voice *v, Conversation *c, int n, uint32_t epoch, int turn, float temperature, Dropped *dropped) {
    char **prompt = (char **)xcalloc((size_t)n, sizeof *prompt), **text = (char **)xcalloc((size_t)n, sizeof *text);
    uint32_t *id = (uint32_t *)xmalloc(sizeof *id * (size_t)n);
    int *who = (int *)xmalloc(sizeof *who * (size_t)n), speakers = 0;
    for (int i = 0; i < n; i++) {
        if (c[i].ending != GOES_ON) continue;
        prompt[speakers] = prompt_that_fits(v, &c[i], dropped);
        if (prompt[speakers]) id[speakers] = c[i].id, who[speakers++] = i;
        else c[i].ending = TOO_LONG;
    }
    if (speakers) v->generate(v->context, speakers, prompt, id, epoch << 10 | (uint32_t)turn, temperature, text);
    for (int k = 0; k < speakers; k++) {
        Conversation *x = &c[who[k]];
        cut(text[k]);
        *(!turn ? &x->answer : turn % 2 ? &x->round[x->rounds - 1].critique : &x->round[x->rounds - 1].revision) = text[k];
        free(prompt[k]);
    }
    free(prompt), free(text), free(id), free(who);
}

/* What becomes of a conversation when its critique is there. A critique that is empty, or says again what it was given, criticises nothing; that is
   not praise, and a stop phrase in the question does not count as one in the critique. */
static Ending after_critique(const Conversation *c) {
    char *question = question_of(c->prompt, true);
    const char *own = c->round[c->rounds - 1].critique, *copy = *question ? strstr(own, question) : NULL;
    if (copy) own = copy + strlen(question);
    own += strspn(own, " \t\n");
    free(question);
    if (!*own) return copy ? ECHOED : SILENT;
    if (strstr(c->prompt, own) || strstr(final_answer(c), own)) return ECHOED;
    return says(own, args.stop_phrases) ? PRAISED : GOES_ON;
}

/* The procedure of section 3.1, for all conversations together; each drops out as it ends. False: interrupted, and nothing of it counts. */
static bool converse(const Voice *v, Conversation *c, int n, uint32_t epoch, int64_t seed, Dropped *dropped) {
    // 1. an answer to each prompt
    speak(v, c, n, epoch, 0, args.temperature, dropped);
    for (int r = 0; r < args.max_iterations && !run_interrupted(); r++) {
        // 2. a principle, and a critique of the answer by it
        for (int i = 0; i < n; i++)
            if (c[i].ending == GOES_ON) c[i].round[c[i].rounds++] = (Round){.principle = draw_principle(c[i].prompt, epoch, c[i].id, (uint32_t)r, seed)};
        speak(v, c, n, epoch, 1 + 2 * r, args.critique_temperature, dropped);
        // 3. is there anything to revise?
        for (int i = 0; i < n; i++) {
            if (c[i].rounds == r + 1 && !c[i].round[r].critique) c[i].rounds--;   // there was no room for it
            if (c[i].ending == GOES_ON) c[i].ending = after_critique(&c[i]);
        }
        // 4. a revision, which is the next round's answer
        speak(v, c, n, epoch, 2 + 2 * r, args.revision_temperature, dropped);
        for (int i = 0; i < n; i++) {
            if (c[i].ending != GOES_ON || *c[i].round[r].revision) continue;
            free(c[i].round[r].revision);
            c[i].round[r].revision = NULL;
            c[i].ending = SILENT;
        }
    }
    for (int i = 0; i < n; i++)
        if (c[i].ending == GOES_ON) c[i].ending = ROUNDS_USED;
    return !run_interrupted();
}

static void begin_conversation(Conversation *c, uint32_t id, const char *prompt) {
    *c = (Conversation){.id = id, .prompt = prompt, .round = (Round *)xcalloc((size_t)args.max_iterations + 1, sizeof(Round))};
}

static void end_conversation(Conversation *c) {
    for (int r = 0; r < c->rounds; r++) free(c->round[r].critique), free(c->round[r].revision);
    free(c->round), free(c->answer);
    *c = (Conversation){0};
}

/* ---- the model's voice ----------------------------------------------------------------------------------------- */

typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    int positions;
    int64_t seed;
} Speaker;

static bool model_fits(void *context, const char *prompt) {
    const Speaker *s = context;
    Ints tokens = {0};
    tokenizer_encode(s->tokenizer, prompt, strlen(prompt), true, &tokens);
    free(tokens.v);
    return tokens.n > 0 && tokens.n + (size_t)args.max_new_tokens <= (size_t)s->positions + 1;
}

static void model_generate(void *context, int n, char *const *prompt, const uint32_t *id, uint32_t turn, float temperature, char **text) {
    const Speaker *s = context;
    const int eos = tokenizer_eos(s->tokenizer);
    int *start = (int *)xcalloc((size_t)n + 1, sizeof *start);
    Ints tokens = {0};
    for (int i = 0; i < n; i++) {
        tokenizer_encode(s->tokenizer, prompt[i], strlen(prompt[i]), true, &tokens);
        start[i + 1] = (int)tokens.n;
    }
    Batch batch = {.S = n, .N = (int)tokens.n, .start = start, .tokens = tokens.v, .id = id};
    Sampler sampler = {.temperature = temperature, .top_p = 1, .max_new_tokens = args.max_new_tokens, .stop_token = eos, .seed = (uint64_t)s->seed, .step = turn};
    Generation g;
    gpt2_generate(s->model, &batch, &sampler, &g, NULL, NULL);
    for (int i = 0; i < n; i++) {
        Str out = {0};
        tokenizer_decode(s->tokenizer, g.tokens + g.start[i], (size_t)(g.start[i + 1] - g.start[i] - g.ended[i]), &out);
        text_repair(&out, 0);
        text[i] = out.s;
    }
    generation_free(&g);
    free(start), free(tokens.v);
}

/* ---- transcripts ----------------------------------------------------------------------------------------------- */

static void field(Str *line, const char *name, const char *text) {
    str_printf(line, "%s\"%s\": ", line->s[line->n - 1] == '{' ? "" : ", ", name);
    json_quote(line, text);
}

/* A conversation as a line of JSON, in the columns that others use; chosen and rejected are there when something was revised. */
static void add_transcript(Str *line, const Conversation *c, int epoch) {
    str_printf(line, "{\"epoch\": %d, \"id\": %u", epoch, c->id);
    field(line, "init_prompt", c->prompt);
    field(line, "init_response", c->answer ? c->answer : "");
    str_printf(line, ", \"rounds\": [");
    for (int r = 0; r < c->rounds; r++) {
        str_printf(line, "%s{", r ? ", " : "");
        field(line, "principle", c->round[r].principle->name);
        field(line, "critic_prompt", c->round[r].principle->critique_request);
        field(line, "critic_response", c->round[r].critique);
        if (c->round[r].revision) field(line, "revision_prompt", c->round[r].principle->revision_request), field(line, "revision_response", c->round[r].revision);
        str_printf(line, "}");
    }
    str_printf(line, "]");
    field(line, "ended", endings[c->ending]);
    const char *final = c->answer ? final_answer(c) : "";
    char *bare = question_of(c->prompt, true);
    str_printf(line, ", \"messages\": [{\"role\": \"user\", \"content\": "), json_quote(line, bare);
    str_printf(line, "}, {\"role\": \"assistant\", \"content\": "), json_quote(line, final), str_printf(line, "}]");
    if (final != c->answer && c->answer) field(line, "prompt", c->prompt), field(line, "chosen", final), field(line, "rejected", c->answer);
    str_printf(line, "}\n");
    free(bare);
}

/* Fills a conversation of this epoch from its line. False: it is not its line. */
static bool take_transcript(Conversation *c, Transcript *t, int epoch, int64_t seed) {
    int ending = 0;
    while (ending < ENDINGS && strcmp(endings[ending], t->ended)) ending++;
    if (ending == ENDINGS || t->rounds > args.max_iterations) return false;
    c->answer = t->answer, t->answer = NULL;
    c->ending = (Ending)ending;
    for (c->rounds = 0; c->rounds < t->rounds; c->rounds++) {
        const int r = c->rounds;
        c->round[r] = (Round){draw_principle(c->prompt, (uint32_t)epoch, c->id, (uint32_t)r, seed), t->critique[r], t->revision[r]};
        t->critique[r] = t->revision[r] = NULL;
    }
    return true;
}

static void show_text(const char *label, const char *text) {
    printf("  %-8s | ", label);
    for (; *text; text++)
        if (*text == '\n') printf("\n           | ");
        else putchar(*text);
    putchar('\n');
}

static void show(const Conversation *c, const char *when) {
    printf("held-out prompt %u, %s (%s)\n", c->id + 1, when, endings[c->ending]);
    show_text("prompt", c->prompt);
    show_text("answer", c->answer ? c->answer : "");
    for (int r = 0; r < c->rounds; r++) {
        show_text("critique", c->round[r].critique);
        if (c->round[r].revision) show_text("revision", c->round[r].revision);
    }
}

/* ---- learning from revisions ----------------------------------------------------------------------------------- */

/*
 * Cross-entropy of the scored tokens (target >= 0), this batch's share of the mean over all M of the step:
 *     L = -1/M sum_i log p(target_i),   dL/dlogp_i = -1/M
 * Returns the share of L and writes its gradient (N).
 */
static double cross_entropy(int N, const int *target, const float *logp, double M, float *dlogp) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        loss -= target[i] >= 0 ? (double)logp[i] / M : 0;
        dlogp[i] = target[i] >= 0 ? (float)(-1 / M) : 0.0f;
    }
    return loss;
}

static void add_lesson(Records *r, int unit, const char *prompt, const char *answer) {
    r->v = (Record *)xrealloc(r->v, (size_t)r->n + 1, sizeof *r->v);
    Span *spans = (Span *)xcalloc(2, sizeof *spans);
    spans[0] = (Span){xstrdup(prompt), strlen(prompt), false};
    spans[1] = (Span){xstrdup(answer), strlen(answer), true};
    r->v[r->n++] = (Record){.line = unit + 1, .n = 2, .spans = spans};
}

/* What there is to learn from conversation `unit`: its revisions, or, if the first critique found nothing wrong, the answer as it is. */
static void add_lessons(Records *r, int unit, const Conversation *c) {
    const bool all = !strcmp(args.revisions, "all");
    int learned = 0;
    for (int k = c->rounds - 1; k >= 0 && (all || !learned); k--)
        if (c->round[k].revision) add_lesson(r, unit, c->prompt, c->round[k].revision), learned++;
    if (!learned && c->ending == PRAISED) add_lesson(r, unit, c->prompt, c->answer);
}

/* ---- which of the options? ------------------------------------------------------------------------------------- */

/* Room for scoring: the most tokens, sequences and scored tokens of a batch. */
typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    GPT2Limits limits;
    long cut;                    // questions that lost their beginning
} Judge;

/* Scores the batch collected in start, tokens, target and parent; sums[s] is the place for sequence s's log-probability, or NULL. */
static void score(const Judge *j, Ints *start, Ints *tokens, const Ints *target, const Ints *parent, double **sums) {
    const int S = (int)parent->n, N = (int)tokens->n;
    ints_push(start, N);
    Batch batch = {.S = S, .N = N, .start = start->v, .tokens = tokens->v, .parent = parent->v};
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)N);
    gpt2_forward(j->model, &batch, NULL);
    gpt2_logprob(j->model, target->v, 1, logp, NULL, NULL);
    for (int s = 0; s < S; s++)
        for (int i = start->v[s]; sums[s] && i < start->v[s + 1]; i++)
            if (target->v[i] >= 0) *sums[s] += (double)logp[i];
    free(logp);
}

/* logp[q][o] = log p(option o | prompt) of every question. The prompt is computed once for all its options, which go on from its last token. */
static void ask(Judge *j, const Question *questions, int n, double **logp) {
    Ints start = {0}, tokens = {0}, target = {0}, parent = {0}, prompt = {0}, option = {0};
    double **sums = (double **)xmalloc(sizeof *sums * (size_t)j->limits.sequences);
    const int T = gpt2_config(j->model)->n_positions;
    for (int q = 0, scored = 0; q < n; q++) {
        const Question *x = &questions[q];
        prompt.n = option.n = 0;
        int *length = (int *)xmalloc(sizeof *length * (size_t)x->n), longest = 0;
        tokenizer_encode(j->tokenizer, x->prompt, strlen(x->prompt), true, &prompt);
        for (int o = 0, before = 0; o < x->n; o++, before = (int)option.n) {
            tokenizer_encode(j->tokenizer, x->option[o], strlen(x->option[o]), true, &option);
            length[o] = (int)option.n - before;
            if (length[o] > longest) longest = length[o];
        }
        int from = (int)prompt.n + longest - 1 - T;   // of what does not fit, the beginning goes
        if (from > 0) j->cut++;
        if (from < 0) from = 0;
        if (longest > T || (int)option.n > j->limits.scored || from >= (int)prompt.n) die_usage("%s line %d: its options alone are too long for the model", args.evaluate, x->line);
        const int shared = (int)prompt.n - 1 - from;
        if ((int)tokens.n + shared + (int)option.n > j->limits.tokens || (int)parent.n + 1 + x->n > j->limits.sequences || scored + (int)option.n > j->limits.scored) {
            score(j, &start, &tokens, &target, &parent, sums);
            start.n = tokens.n = target.n = parent.n = 0, scored = 0;
        }
        const int mother = shared ? (int)parent.n : -1;
        if (shared) {
            ints_push(&start, (int)tokens.n), sums[parent.n] = NULL, ints_push(&parent, -1);
            for (int i = 0; i < shared; i++) ints_push(&tokens, prompt.v[from + i]), ints_push(&target, -1);
        }
        for (int o = 0, k = 0; o < x->n; o++) {
            logp[q][o] = 0;
            ints_push(&start, (int)tokens.n), sums[parent.n] = &logp[q][o], ints_push(&parent, mother);
            for (int i = 0; i < length[o]; i++, k++) ints_push(&tokens, i ? option.v[k - 1] : prompt.v[prompt.n - 1]), ints_push(&target, option.v[k]);
        }
        scored += (int)option.n;
        free(length);
    }
    if (parent.n) score(j, &start, &tokens, &target, &parent, sums);
    free(start.v), free(tokens.v), free(target.v), free(parent.v), free(prompt.v), free(option.v), free(sums);
}

/* x[o] = log(p[o] / sum over the n options of p): the options alone share the probability. */
static void among_options(double *x, int n) {
    double top = x[0], sum = 0;
    for (int o = 1; o < n; o++) top = fmax(top, x[o]);
    for (int o = 0; o < n; o++) sum += exp(x[o] - top);
    for (int o = 0; o < n; o++) x[o] -= top + log(sum);
}

/* ---- AI feedback ----------------------------------------------------------------------------------------------- */

enum { HELD_OUT = 1 << 20, FEEDBACK = 1 << 21 };   // where the epoch stands in random draws

typedef struct {
    char *prompt, *a, *b;
    double p;                    // that a is better than b
    double p_ab, p_ba;           // of the option label "A" when a, and when b, stands there; means over principles
    int asked;                   // of how many
    bool given;                  // p is from elsewhere
} Pair;

static char *comparison(const char *prompt, const Principle *p, const char *a, const char *b) {
    char *question = question_of(prompt, false), *x = xstrdup(a), *y = xstrdup(b);
    cut(x), cut(y);
    const Hole holes[] = {{"{prompt}", question}, {"{principle}", first_of(p->comparison, p->text ? p->text : "")}, {"{a}", x}, {"{b}", y}, {0}};
    char *filled = fill(first_of(constitution.comparison, layouts[korean(p->critique_request)].comparison), holes);
    free(question), free(x), free(y);
    return filled;
}

/* p = 1/2 (p_AB + 1 - p_BA): the mean of both orders. */
static double debiased(double p_ab, double p_ba) { return 0.5 * (p_ab + 1 - p_ba); }

/* Asks for the labels of the pairs that have none: in both orders, by one principle or by all. */
static void label(Judge *j, Pair *pairs, int n, int64_t seed) {
    Question *q = NULL;
    int Q = 0, room = 0;
    for (int i = 0; i < n; i++) {
        Pair *x = &pairs[i];
        int of;
        principle_for(x->prompt, 0, &of);
        x->asked = x->given ? 0 : !strcmp(args.principles, "all") ? of : 1;
        for (int k = 0; k < 2 * x->asked; k++) {
            const Principle *p = x->asked > 1 ? principle_for(x->prompt, (uint32_t)k / 2, &of) : draw_principle(x->prompt, FEEDBACK, (uint32_t)i, 0, seed);
            if (Q == room) q = (Question *)xrealloc(q, (size_t)(room = 2 * room + 64), sizeof *q);
            q[Q++] = (Question){.n = 2, .prompt = comparison(x->prompt, p, k % 2 ? x->b : x->a, k % 2 ? x->a : x->b),
                                .option = constitution.option[0] ? constitution.option : (char **)option_labels};
        }
    }
    double **logp = (double **)xmalloc(sizeof *logp * (size_t)Q), *of_label = (double *)xcalloc((size_t)Q, 2 * sizeof *of_label);
    for (int k = 0; k < Q; k++) logp[k] = of_label + 2 * k;
    ask(j, q, Q, logp);
    for (int i = 0, next = 0; i < n; i++) {
        Pair *x = &pairs[i];
        for (int k = 0; k < 2 * x->asked; k++, next++) {
            among_options(logp[next], 2);
            *(k % 2 ? &x->p_ba : &x->p_ab) += exp(logp[next][0]) / x->asked;
            free(q[next].prompt);
        }
        if (!x->given) x->p = debiased(x->p_ab, x->p_ba);
    }
    free(q), free(logp), free(of_label);
}

/* Two answers to each prompt; or the pairs of --pairs, whose first is known to be the better. Pairs of one and the same answer say nothing. */
static int make_pairs(const Voice *v, const Prompts *prompts, Pair *pairs, Dropped *dropped) {
    int n = 0;
    Conversation *c[2];
    for (uint32_t k = 0; k < 2; k++) {
        c[k] = (Conversation *)xcalloc((size_t)prompts->n, sizeof **c);
        for (int i = 0; i < prompts->n; i++) begin_conversation(&c[k][i], (uint32_t)i, prompts->v[i].text);
        speak(v, c[k], prompts->n, FEEDBACK + k, 0, args.temperature, dropped);
    }
    for (int i = 0; i < prompts->n; i++) {
        const char *a = c[0][i].answer, *b = c[1][i].answer;
        if (a && b && *a && *b && strcmp(a, b)) pairs[n++] = (Pair){.prompt = xstrdup(prompts->v[i].text), .a = xstrdup(a), .b = xstrdup(b)};
        for (int k = 0; k < 2; k++) end_conversation(&c[k][i]);
    }
    free(c[0]), free(c[1]);
    return n;
}

static char *record_prompt(const Record *r) {
    Str s = {0};
    str_add(&s, "", 0);
    for (int i = 0; i < r->n - 2; i++) str_add(&s, r->spans[i].text, r->spans[i].n);
    text_repair(&s, 0);
    return s.s;
}

static int read_pairs(const char *path, Pair **pairs) {
    Error e;
    Records r;
    if (pairs_read(path, args.template, args.strict, &r, &e)) die_usage("%s", e.text);
    *pairs = (Pair *)xcalloc((size_t)r.n, sizeof **pairs);
    for (int i = 0; i < r.n; i++) {
        const Span *answers = r.v[i].spans + r.v[i].n - 2;
        (*pairs)[i] = (Pair){.prompt = record_prompt(&r.v[i]), .a = xstrdup(answers[0].text), .b = xstrdup(answers[1].text), .p = (double)r.v[i].p_chosen};
    }
    if (r.skipped) printf("%s: skipped %d lines that are no pair; the first: %s\n", path, r.skipped, r.first_skipped.text);
    const int n = r.n;
    records_free(&r);
    return n;
}

/* By prompt and by the two answers, whichever stands first. */
static int compare_pairs(const void *p, const void *q) {
    const Pair *x = p, *y = q;
    const bool sx = strcmp(x->a, x->b) > 0, sy = strcmp(y->a, y->b) > 0;
    int order = strcmp(x->prompt, y->prompt);
    if (!order) order = strcmp(sx ? x->b : x->a, sy ? y->b : y->a);
    return order ? order : strcmp(sx ? x->a : x->b, sy ? y->a : y->b);
}

/* Takes the labels of a file for the pairs that are in it. */
static int take_labels(Pair *pairs, int n) {
    Pair *known;
    int taken = 0, K = read_pairs(args.labels, &known);
    qsort(known, (size_t)K, sizeof *known, compare_pairs);
    for (int i = 0; i < n; i++) {
        const Pair *same = (const Pair *)bsearch(&pairs[i], known, (size_t)K, sizeof *known, compare_pairs);
        if (!same) continue;
        pairs[i].p = strcmp(same->a, pairs[i].a) ? 1 - same->p : same->p;
        pairs[i].given = true;
        taken++;
    }
    for (int i = 0; i < K; i++) free(known[i].prompt), free(known[i].a), free(known[i].b);
    free(known);
    return taken;
}

/* What the labels are worth, where it is known which answer is better: by --pairs, or because one of the two holds one of --breaches. */
static void report_labels(const Pair *pairs, int n) {
    int known = 0, right = 0, right_ab = 0, right_ba = 0, first = 0, asked = 0;
    for (int i = 0; i < n; i++) {
        const Pair *x = &pairs[i];
        if (x->given) continue;
        asked++;
        first += (x->p_ab > 0.5) + (x->p_ba > 0.5);
        const bool bad_a = says(x->a, args.breaches), bad_b = says(x->b, args.breaches);
        if (!args.pairs && bad_a == bad_b) continue;
        const bool a_better = args.pairs || bad_b;
        known++;
        right += (x->p > 0.5) == a_better, right_ab += (x->p_ab > 0.5) == a_better, right_ba += (x->p_ba < 0.5) == a_better;
    }
    if (asked) printf("the model says the first option in %.1f %% of %d comparisons\n", 50.0 * first / asked, 2 * asked);
    if (known)
        printf("labels agree with %s in %.1f %% of %d pairs (debiased); asked in one order only: %.1f %% and %.1f %%; always the first: 50.0 %%\n",
               args.pairs ? "--pairs" : "--breaches", 100.0 * right / known, known, 100.0 * right_ab / known, 100.0 * right_ba / known);
}

/* The procedure of section 4.1: pairs, labels, a file for ./reward --data. */
static void feedback(const Voice *v, Judge *j, const Prompts *prompts, int64_t seed) {
    double low, high;
    int end = 0;
    if (sscanf(args.clamp, "%lf,%lf%n", &low, &high, &end) != 2 || args.clamp[end] || !(0 <= low && low <= 0.5 && 0.5 <= high && high <= 1))
        die_usage("--clamp %s: takes LOW,HIGH with 0 <= LOW <= 0.5 <= HIGH <= 1", args.clamp);
    // 1. two answers to each prompt
    Dropped dropped = {0};
    Pair *pairs = args.pairs ? NULL : (Pair *)xcalloc((size_t)prompts->n, sizeof *pairs);
    const int n = args.pairs ? read_pairs(args.pairs, &pairs) : make_pairs(v, prompts, pairs, &dropped);
    if (!args.pairs) printf("%d pairs of answers to %d prompts; %ld prompts leave no room, the others' two answers were alike or empty\n", n, prompts->n, dropped.conversations);
    // 2. which is better? In both orders, by the constitution
    if (args.labels) printf("%s: labels for %d of the pairs\n", args.labels, take_labels(pairs, n));
    if (!run_interrupted()) label(j, pairs, n, seed);
    if (j->cut) printf("%ld comparisons were longer than the model's positions and lost their beginning\n", j->cut);
    report_labels(pairs, n);
    // 3. the better one first, with the probability that it is
    Error e;
    NewFile file;
    Str line = {0};
    if (newfile_open(&file, args.feedback, &e)) die_usage("--feedback: %s", e.text);
    for (int i = 0; i < n; i++) {
        const Pair *x = &pairs[i];
        const double p = fmin(fmax(x->p, low), high);
        line.n = 0;
        str_printf(&line, "{");
        field(&line, "prompt", x->prompt), field(&line, "chosen", p >= 0.5 ? x->a : x->b), field(&line, "rejected", p >= 0.5 ? x->b : x->a);
        fprintf(file.f, "%s, \"p_chosen\": %.9g}\n", line.s, fmax(p, 1 - p));
        free(x->prompt), free(x->a), free(x->b);
    }
    if (newfile_close(&file, !run_interrupted(), &e)) die("%s", e.text);
    if (!run_interrupted()) printf("%d labelled pairs are in %s: give it to ./reward --data\n", n, args.feedback);
    free(line.s), free(pairs);
}

/* ---- multiple choice ------------------------------------------------------------------------------------------- */

typedef struct {
    const char *text;
    int question, option;
} Place;

static int compare_places(const void *p, const void *q) {
    const Place *x = p, *y = q;
    const int order = strcmp(x->text, y->text);
    return order ? order : x->question - y->question;
}

static int best_of(const double *x, int n) {
    int best = 0;
    for (int o = 1; o < n; o++)
        if (x[o] > x[best]) best = o;
    return best;
}

typedef struct {
    double raw, debiased, first; // accuracies
} Choices;

/*
 * Which option does the model prefer? raw: the likeliest. debiased: the likeliest compared with how likely its text is after the file's other
 * questions,     log p(o | x) - mean over x' of log p(o | x')
 * so that a liking for "(A)" as such cancels; an option that occurs once stays as it is. first: what one gets by always saying the first of the options
 * in the alphabet. logp[q][o] is log p(o | x), and comes back as what decides.
 */
static Choices choose(const Questions *q, double **logp) {
    Choices c = {0};
    int places = 0, k = 0;
    for (int i = 0; i < q->n; i++) {
        among_options(logp[i], q->v[i].n);
        c.raw += best_of(logp[i], q->v[i].n) < q->v[i].corrects;
        places += q->v[i].n;
    }
    Place *place = (Place *)xmalloc(sizeof *place * (size_t)places);
    for (int i = 0; i < q->n; i++) {
        int first = 0;
        for (int o = 0; o < q->v[i].n; o++) {
            place[k++] = (Place){q->v[i].option[o], i, o};
            if (strcmp(q->v[i].option[o], q->v[i].option[first]) < 0) first = o;
        }
        c.first += first < q->v[i].corrects;
    }
    qsort(place, (size_t)places, sizeof *place, compare_places);
    for (int from = 0, to; from < places; from = to) {   // places of one text
        double sum = 0;
        for (to = from; to < places && !strcmp(place[to].text, place[from].text); to++) sum += logp[place[to].question][place[to].option];
        for (k = from; k < to && to - from > 1; k++) {
            double *x = &logp[place[k].question][place[k].option];
            *x -= (sum - *x) / (to - from - 1);
        }
    }
    for (int i = 0; i < q->n; i++) c.debiased += best_of(logp[i], q->v[i].n) < q->v[i].corrects;
    free(place);
    c.raw /= q->n, c.debiased /= q->n, c.first /= q->n;
    return c;
}

static Choices evaluate(Judge *j, const Questions *q, const char *when) {
    double **logp = (double **)xmalloc(sizeof *logp * (size_t)q->n);
    for (int i = 0; i < q->n; i++) logp[i] = (double *)xcalloc((size_t)q->v[i].n, sizeof **logp);
    j->cut = 0;
    ask(j, q->v, q->n, logp);
    const Choices c = choose(q, logp);
    for (int i = 0; i < q->n; i++) free(logp[i]);
    free(logp);
    if (j->cut) printf("%ld questions of %s are longer than the model's positions and lost their beginning\n", j->cut, args.evaluate);
    printf("multiple choice, %-6s  right in %.1f %% of %d questions, debiased %.1f %%; always the first option: %.1f %%\n", when, 100 * c.raw, q->n,
           100 * c.debiased, 100 * c.first);
    return c;
}

/* ---- the run's conversations ----------------------------------------------------------------------------------- */

typedef struct {
    Voice voice;
    Prompts prompts;
    Conversation *c;             // one for each prompt
    Records helpful;             // of --data
    Transcripts before;          // of the run that is resumed
    char *path;                  // of transcripts.jsonl; NULL: nothing is written
    Dataset lessons;
    int *first;                  // (units + 1) unit u's lessons are first[u] .. first[u+1]; the units: prompts, then helpful records
    int units;
} World;

static void load_prompts(const char *path, Prompts *p) {
    Error e;
    if (prompts_read(path, args.template, args.strict, p, &e)) die_usage("%s", e.text);
    if (p->skipped) printf("%s: skipped %d lines that are no prompt; the first: %s\n", path, p->skipped, p->first_skipped.text);
    for (int i = 0; i < p->n; i++) {
        Str s = {p->v[i].text, p->v[i].n, p->v[i].n};
        text_repair(&s, 0);
        p->v[i].text = s.s, p->v[i].n = s.n;
    }
    printf("%s: %d prompts\n", path, p->n);
}

/* Of the transcripts beside the checkpoint, those up to this epoch: they stay, and the conversations in them are not held again. What a lost run wrote
   after the checkpoint goes; it will come again. */
static void reload_transcripts(World *w, const char *checkpoint, int epoch) {
    Error e;
    NewFile new;
    Str from = {0};
    str_printf(&from, "%s/../transcripts.jsonl", checkpoint);
    transcripts_read(from.s, &w->before, &e);   // none at all: then there are none
    int keep = 0;
    while (keep < w->before.n && w->before.v[keep].epoch <= epoch) keep++;
    FILE *old = fopen(from.s, "rb");
    if (w->path && newfile_open(&new, w->path, &e)) die("%s", e.text);
    char *line = NULL;
    size_t room = 0;
    for (int i = 0; w->path && old && i < keep; i++) {
        const ssize_t n = getline(&line, &room, old);
        if (n > 0) fwrite(line, 1, (size_t)n, new.f);
    }
    if (w->path && newfile_close(&new, true, &e)) die("%s", e.text);
    if (old) fclose(old);
    free(line), free(from.s);
    w->before.n = keep;
}

/* Holds the conversations of an epoch, `together` at a time, and appends each to transcripts.jsonl; some of them may stand there already. whole: they
   all must, for the model is no longer the one that held them. False: interrupted. */
static bool hold_conversations(World *w, Run *run, int epoch, int together, bool whole) {
    const int n = w->prompts.n;
    int known = 0;
    bool *done = (bool *)xcalloc((size_t)n, sizeof *done);
    for (int i = 0; i < n; i++) end_conversation(&w->c[i]), begin_conversation(&w->c[i], (uint32_t)i, w->prompts.v[i].text);
    for (int k = 0; k < w->before.n; k++) {
        Transcript *t = &w->before.v[k];
        if (t->epoch != epoch) continue;
        if (t->id >= n || done[t->id] || !take_transcript(&w->c[t->id], t, epoch, run->seed))
            die_usage("transcripts.jsonl line %d is not of this run; start anew in another --output", t->line);
        known += done[t->id] = true;
    }
    if (whole && known < n) die_usage("cannot go on: transcripts.jsonl beside the checkpoint holds %d of the %d conversations of this epoch; go on from an earlier checkpoint", known, n);
    FILE *f = w->path && known < n ? fopen(w->path, "ab") : NULL;
    if (w->path && known < n && !f) die("cannot write %s: %s", w->path, strerror(errno));
    Conversation *part = (Conversation *)xcalloc((size_t)together, sizeof *part);
    Dropped dropped = {0};
    Str line = {0};
    bool going = true;
    for (int i = 0; i < n && going;) {
        int m = 0, which[together];
        for (; i < n && m < together; i++)
            if (!done[i]) part[m] = w->c[i], which[m++] = i;
        if (m) going = converse(&w->voice, part, m, (uint32_t)epoch, run->seed, &dropped);
        line.n = 0;
        for (int k = 0; k < m; k++) {
            w->c[which[k]] = part[k];
            if (going && f) add_transcript(&line, &part[k], epoch);
        }
        if (f && (fwrite(line.s ? line.s : "", 1, line.n, f) != line.n || fflush(f) || fsync(fileno(f)))) die("cannot write %s: %s", w->path, strerror(errno));
    }
    if (f) fclose(f);
    int ended[ENDINGS] = {0};
    for (int i = 0; i < n; i++) ended[w->c[i].ending]++;
    printf("%d conversations%s:", n, going ? "" : " (interrupted)");
    for (int k = 0, some = 0; k < ENDINGS; k++)
        if (ended[k]) printf("%s %d ended with %s", some++ ? "," : "", ended[k], endings[k]);
    printf("\n");
    if (dropped.few_shot + dropped.rounds + dropped.conversations)
        printf("for want of room: %ld few-shot conversations and %ld earlier rounds were left out of prompts, %ld prompts had no room at all\n", dropped.few_shot, dropped.rounds,
               dropped.conversations);
    fflush(stdout);
    free(part), free(done), free(line.s);
    return going;
}

/* The lessons of the conversations and of the helpful records, as tokens. */
static void prepare_lessons(World *w, const Tokenizer *t) {
    Records r = {0};
    for (int i = 0; i < w->prompts.n; i++) add_lessons(&r, i, &w->c[i]);
    const int own = r.n;
    r.v = (Record *)xrealloc(r.v, (size_t)(own + w->helpful.n), sizeof *r.v);
    for (int i = 0; i < w->helpful.n; i++) {
        r.v[r.n] = w->helpful.v[i];   // borrowed
        r.v[r.n++].line = w->prompts.n + i + 1;
    }
    dataset_free(&w->lessons);
    dataset_build(&w->lessons, &r, t, args.max_length, false);
    for (int u = 0, i = 0; u <= w->units; u++) {
        while (i < w->lessons.n && w->lessons.line[i] <= u) i++;
        w->first[u] = i;
    }
    if (w->lessons.prompts_cut + w->lessons.responses_cut)
        printf("longer than --max_length %d: %ld prompts lost their beginning, %ld responses their end\n", args.max_length, w->lessons.prompts_cut, w->lessons.responses_cut);
    r.n = own;
    records_free(&r);
}

/* Shares of held-out prompts: whose answer breaks the principles by --breaches, and in whose answer the model's own first critique finds fault. */
typedef struct {
    double breaches, criticised;
} HeldOut;

static HeldOut hold_out(const Voice *v, const Prompts *p, int64_t seed, const char *when) {
    HeldOut h = {0};
    Dropped dropped = {0};
    const int n = p->n < args.eval_samples ? p->n : args.eval_samples;
    Conversation *c = (Conversation *)xcalloc((size_t)n + 1, sizeof *c);
    for (int i = 0; i < n; i++) begin_conversation(&c[i], (uint32_t)i, p->v[i].text);
    converse(v, c, n, HELD_OUT, seed, &dropped);
    for (int i = 0; i < n; i++) {
        h.breaches += says(c[i].answer, args.breaches) / (double)n;
        h.criticised += (c[i].rounds > 1 || c[i].ending != PRAISED) / (double)n;
        if (when && i < 2) show(&c[i], when);
        end_conversation(&c[i]);
    }
    free(c);
    if (n && when) {
        printf("held-out answers (%d), %-6s  the model's own critique finds fault with %.1f %%", n, when, 100 * h.criticised);
        if (args.breaches) printf("; %.1f %% hold one of --breaches", 100 * h.breaches);
        printf("\n");
    }
    return h;
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

static int tokens_of(const Tokenizer *t, const char *text) {
    Ints tokens = {0};
    tokenizer_encode(t, text, strlen(text), true, &tokens);
    free(tokens.v);
    return (int)tokens.n;
}

static int max_int(int a, int b) { return a > b ? a : b; }
static int min_int(int a, int b) { return a < b ? a : b; }

/* Ceilings. A lesson is a prompt with a revision; the longest text to go on from is everything that may stay in sight. */
static GPT2Limits ceilings(const Run *run, const World *w, const Prompts *held_out, const Questions *questions, const Tokenizer *t, int T, int *positions) {
    int prompt = 1, request = 0, shots = 0, options = 0, most = 2;
    for (int i = 0; i < w->prompts.n; i++) prompt = max_int(prompt, tokens_of(t, w->prompts.v[i].text));
    for (int i = 0; i < held_out->n; i++) prompt = max_int(prompt, tokens_of(t, held_out->v[i].text));
    for (int i = 0; i < constitution.n; i++)
        request = max_int(request, tokens_of(t, constitution.v[i].critique_request) + tokens_of(t, constitution.v[i].revision_request));
    for (int i = 0; i < constitution.few_shot_n; i++) shots += tokens_of(t, constitution.few_shot[i]);
    for (int k = 0; k < 2; k++) options += tokens_of(t, constitution.option[0] ? constitution.option[k] : option_labels[k]);
    for (int i = 0; i < questions->n; i++) {
        int of_question = 0;
        for (int o = 0; o < questions->v[i].n; o++) of_question += tokens_of(t, questions->v[i].option[o]);
        options = max_int(options, of_question), most = max_int(most, questions->v[i].n);
    }
    const int said = args.max_new_tokens;
    *positions = (int)fmin(T, (double)shots + prompt + said + (args.keep_rounds + 1.0) * (request + 2.0 * said));
    GPT2Limits l = {.train = run->total_steps > 0, .gradient_checkpointing = args.gradient_checkpointing};
    l.slots = min_int(args.generation_batch_size, max_int(w->prompts.n, held_out->n));
    l.positions = *positions;
    l.sequences = max_int(run->per_device_train_batch_size, 32 * (most + 1));
    l.tokens = max_int(l.slots, 1);
    if (l.train) l.tokens = max_int(args.max_length - 1, run->per_device_train_batch_size * min_int(args.max_length - 1, prompt + said));
    if (questions->n || args.feedback) l.tokens = max_int(l.tokens, T + options);
    l.scored = l.tokens;
    return l;
}

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor prompts means the built-in example; flags that are given count either way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "constitutional", flags, argc, argv, &e) == 0 && !run.model && !args.prompts && !args.evaluate && !args.pairs;
    run_free(&run);
    run = defaults(example);
    run_start(&run, "constitutional", about, flags, argc, argv);
    const bool learns = args.prompts && !args.feedback;
    if (!run.model || (!args.prompts && !args.evaluate && !(args.feedback && args.pairs)))
        die_usage("--model DIR is needed, and --prompts FILE, or --evaluate FILE (or none of them, for the built-in example)");
    if ((args.pairs || args.labels) && !args.feedback) die_usage("--pairs and --labels are for --feedback FILE, which says where the labelled pairs go");

    // The model's shape, the constitution, the prompts as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    if (hf_config(run_model_dir(&run), &config, &e)) die_usage("%s", e.text);
    Tokenizer *tokenizer = tokenizer_load(run.model, &e);
    if (!tokenizer) die_usage("%s", e.text);
    if (tokenizer_size(tokenizer) > config.vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together", run.model, tokenizer_size(tokenizer), config.vocab_size);
    if (!learns) run.max_steps = 0;
    if (args.max_length > config.n_positions + 1) args.max_length = config.n_positions + 1;
    run_echo(&run);
    load_constitution();
    printf("%s: %d principles, %d few-shot conversations\n", args.constitution ? args.constitution : "the built-in constitution", constitution.n, constitution.few_shot_n);
    World w = {0};
    Prompts held_out = {0};
    Questions questions = {0};
    if (args.prompts) load_prompts(args.prompts, &w.prompts);
    if (run.eval && !args.feedback) load_prompts(run.eval, &held_out);
    if (run.data && learns && records_read(run.data, args.template, args.strict, &w.helpful, &e)) die_usage("%s", e.text);
    if (run.data && learns) printf("%s: %d records to mix in, %d lines skipped\n", run.data, w.helpful.n, w.helpful.skipped);
    if (args.evaluate && questions_read(args.evaluate, args.strict, &questions, &e)) die_usage("%s", e.text);
    if (questions.skipped) printf("%s: skipped %d lines that are no question; the first: %s\n", args.evaluate, questions.skipped, questions.first_skipped.text);
    w.c = (Conversation *)xcalloc((size_t)w.prompts.n, sizeof *w.c);
    w.units = learns ? w.prompts.n + w.helpful.n : 0;
    w.first = (int *)xcalloc((size_t)w.units + 1, sizeof *w.first);
    run_fingerprint(&run, "prompts", args.prompts);
    run_fingerprint(&run, "data", run.data);
    run_fingerprint(&run, "constitution", args.constitution);
    run_fingerprint(&run, "few_shot", args.few_shot);
    run_plan_steps(&run, w.units);
    Speaker speaker = {.tokenizer = tokenizer, .seed = run.seed};
    GPT2Limits limits = ceilings(&run, &w, &held_out, &questions, tokenizer, config.n_positions, &speaker.positions);
    GPT2Memory memory = gpt2_memory(&config, &limits);
    run_print_memory(&memory);
    if (run.dry_run) {
        for (int i = 0; i < min_int(w.prompts.n, 2); i++) {
            const Principle *p = draw_principle(w.prompts.v[i].text, 0, (uint32_t)i, 0, run.seed);
            printf("--- line %d: %d tokens, then «answer», then critique and revision are asked for (%s)\n%s«answer»%s«critique»%s«revision»\n", w.prompts.v[i].line,
                   tokens_of(tokenizer, w.prompts.v[i].text), p->name, w.prompts.v[i].text, p->critique_request, p->revision_request);
        }
        return 0;
    }

    GPT2 *model = hf_load(run_model_dir(&run), !limits.train, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    speaker.model = model;
    w.voice = (Voice){model_generate, model_fits, &speaker};
    Judge judge = {.model = model, .tokenizer = tokenizer, .limits = limits};
    if (args.feedback) feedback(&w.voice, &judge, &w.prompts, run.seed);
    double interval_loss = 0, interval_correct = 0, interval_tokens = 0, num_tokens = 0;   // since the last line of the log; trained on
    run_keep(&run, "loss", &interval_loss);
    run_keep(&run, "correct", &interval_correct);
    run_keep(&run, "tokens", &interval_tokens);
    run_keep(&run, "num_tokens", &num_tokens);
    run_resume(&run, model);
    const bool writes = learns && run.output && *run.output;
    if (writes) {
        Str path = {0};
        str_printf(&path, "%s/transcripts.jsonl", run.output);
        w.path = path.s;
    }
    const int together = 4 * max_int(limits.slots, 1), per_epoch = args.regenerate ? max_int(run.steps_per_epoch, 1) : INT32_MAX;
    if (run_checkpoint_dir(&run)) reload_transcripts(&w, run_checkpoint_dir(&run), run.step / per_epoch);
    else if (w.path) unlink(w.path);

    const int batch_size = run.per_device_train_batch_size;
    int *which = (int *)xmalloc(sizeof(int) * (size_t)(batch_size * run.gradient_accumulation_steps)), have = -1;
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)limits.tokens), *dlogp = (float *)xmalloc(sizeof(float) * (size_t)limits.tokens);
    int *best = (int *)xmalloc(sizeof(int) * (size_t)limits.tokens);
    RaggedBatch batch = {0};
    Ints lesson = {0};
    double revised = 0, rounds = 0;   // of this epoch's conversations: the share that was revised, and revisions in the mean
    if (questions.n) evaluate(&judge, &questions, "before");
    HeldOut before = hold_out(&w.voice, &held_out, run.seed, "before"), after = before;
    if (run.step == 0 && writes && !run_checkpoint_dir(&run)) run_checkpoint(&run, model);   // holding conversations is long: an interrupted run goes on from here
    if (!run.total_steps && writes) hold_conversations(&w, &run, 0, together, false);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. before the first step, or each epoch: conversations, and the lessons in them
        const int epoch = run.step / per_epoch;
        if (epoch != have) {
            if (!hold_conversations(&w, &run, epoch, together, run.step % per_epoch != 0)) break;
            prepare_lessons(&w, tokenizer);
            have = epoch, revised = rounds = 0;
            for (int i = 0; i < w.prompts.n; i++) {
                int k = 0;
                for (int r = 0; r < w.c[i].rounds; r++) k += w.c[i].round[r].revision != NULL;
                revised += (k > 0) / (double)w.prompts.n, rounds += k / (double)w.prompts.n;
            }
        }
        // 2. the lessons of this step, and M, the number of tokens it scores
        const int n = run_examples(&run, run.step, which);
        double M = 0, loss = 0, norm = 0;
        lesson.n = 0;
        for (int i = 0; i < n; i++)
            for (int k = w.first[which[i]]; k < w.first[which[i] + 1]; k++) ints_push(&lesson, k), M += dataset_targets(&w.lessons, k);
        // 3. per micro-batch, as many lessons as have room: log p of every scored token, the loss, its gradient; the gradients add up
        noise.step = (uint32_t)run.step;
        long tokens = 0;
        for (int i = 0, m; i < (int)lesson.n; i += m) {
            int N = 0;
            for (m = 0; m < batch_size && i + m < (int)lesson.n; m++) {
                const int k = lesson.v[i + m], rows = (int)(w.lessons.start[k + 1] - w.lessons.start[k]) - 1;
                if (m && N + rows > limits.tokens) break;
                N += rows;
            }
            ragged_fill(&batch, &w.lessons, lesson.v + i, m);
            gpt2_forward(model, &batch.batch, &noise);
            gpt2_logprob(model, batch.target, 1, logp, NULL, best);
            const double share = cross_entropy(N, batch.target, logp, M, dlogp);
            gpt2_backward(model, dlogp, NULL, NULL);
            loss += share, interval_loss += share * M, tokens += N;
            for (int k = 0; k < N; k++) interval_correct += batch.target[k] >= 0 && best[k] == batch.target[k];
        }
        // 4. clip, AdamW; a step whose conversations taught nothing leaves the model as it is
        AdamW adamw = run_adamw(&run, run.step);
        if (M > 0) norm = (double)gpt2_step(model, &adamw, run.step + 1);
        if (!isfinite(loss) || !isfinite(norm)) die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate", run.step + 1, loss, norm);
        run.step++;
        interval_tokens += M, num_tokens += (double)tokens;
        // 5. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run)) {
            run_log(&run, {"loss", interval_loss / interval_tokens}, {"mean_token_accuracy", interval_correct / interval_tokens}, {"grad_norm", norm},
                    {"learning_rate", (double)adamw.learning_rate}, {"num_tokens", num_tokens}, {"revised", revised}, {"revisions", rounds}, {"epoch", run_epoch(&run)});
            interval_loss = interval_correct = interval_tokens = 0;
        }
        if (run_should_evaluate(&run) && held_out.n && args.eval_samples) {
            after = hold_out(&w.voice, &held_out, run.seed, run.step == run.total_steps ? "after" : NULL);
            run_log(&run, {"eval_criticised", after.criticised}, {"eval_breaches", after.breaches});
        }
        if (run_should_save(&run)) run_checkpoint(&run, model);
    }

    // What it has learned
    if (!run_interrupted() && run.total_steps > 0) {
        if (questions.n) evaluate(&judge, &questions, "after");
        if (held_out.n && args.breaches) printf("held-out answers that break the principles (--breaches)  %.1f %% -> %.1f %%\n", 100 * before.breaches, 100 * after.breaches);
    }
    printf("peak memory %.0f MB, planned %.0f MB\n", (double)run_peak_memory() / 1e6, (double)memory.total / 1e6);
    return run_finish(&run, model);
}
#endif
