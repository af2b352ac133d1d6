/*
 * constitutional.c - Constitutional AI: a model that revises its own answers by written principles,
 * and learns from what it wrote.
 *
 * Bai et al. 2022 at GPT-2's scale, both stages. The first is supervised (section 3.1). To a prompt
 * x the model writes an answer y_0. By a principle of the constitution it then writes a critique of
 * y_0 and a revision y_1, and so on until a critique finds no fault. It is fine-tuned on the prompt
 * and the revision alone, as if that had been its answer:
 *
 *     L = -1/M  sum over tokens i of the revisions of  log p(y_i | x, y_<i)
 *
 * where M is the number of these tokens in the whole optimiser step.
 *
 * The second stage labels preferences (section 4.1, --feedback). The model reads a principle and
 * two answers to a prompt, (A) and (B), and is asked which is better. The label is its own
 * probability of (A) among the two. A small model answers (A) regardless of content, so it is asked
 * in both orders:
 *
 *     p(a is better than b) = 1/2 (p("A" | a, b) + 1 - p("A" | b, a))      mean over principles
 *
 * A constant preference for the first option cancels. The result is the soft label p_chosen that
 * ./reward --data learns from; its model is then the reward of ./ppo.
 *
 * Left out: chain of thought before a label (--clamp limits overconfident labels instead), human
 * preferences for helpfulness (append them to the file), and red teaming. A model of this size
 * criticises only what it was trained to criticise: the procedure is exact, the judgement is the
 * model's, and --breaches and --evaluate measure it.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

static struct {
    const char *prompts, *constitution, *stop_phrases, *feedback, *pairs, *labels, *clamp;
    const char *breaches, *evaluate, *dump_dialogues;
    PrincipleOrder principles;
    enum { REVISIONS_LAST, REVISIONS_ALL } revisions;
    float critique_temperature, revision_temperature;
    int max_iterations, keep_rounds, max_length, generation_batch_size, eval_samples;
    bool regenerate, strict, gradient_checkpointing;
} args;

static Chat chat;

static const Flag flags[] = {
    TITLE("Critique and revision"),
    {"prompts", TEXT(args.prompts, NULL),
     "Answer the prompts in this JSONL file, and learn the revised answers. --eval holds held-out "
     "prompts, and --data records to mix in.",
     .may_change_on_resume = true},
    {"constitution", TEXT(args.constitution, NULL),
     "Read principles, or pairs of requests, from this JSON file; without it there are seven "
     "principles in English and Korean.",
     .may_change_on_resume = true, .only_with = "prompts pairs"},
    {"principles", CHOICE(args.principles, "random", "random|all"),
     "The choice of principles: random draws one for each round and each comparison; all takes "
     "them in turn in the rounds, and averages comparisons over them.",
     .only_with = "prompts pairs"},
    {"max_iterations", NUMBER(args.max_iterations, "3", 0, 100),
     "The most rounds of critique and revision.", .only_with = "prompts"},
    {"stop_phrases",
     TEXT(args.stop_phrases,
          "no problem|no issue|nothing to change|nothing to improve|no revision "
          "is needed|문제없음|문제 없음|적절함"),
     "A critique that says one of these phrases, separated by |, finds no fault and is the last.",
     .only_with = "prompts"},
    {"keep_rounds", NUMBER(args.keep_rounds, "0", 0, 100),
     "The number of earlier rounds that the model still reads; with 0 it reads the latest revision "
     "in the place of the answer.",
     .only_with = "prompts"},
    {"temperature", NUMBER(chat.temperature, "0.7", 0, 100),
     "The sampling temperature of answers; 0 always takes the likeliest token."},
    {"critique_temperature", NUMBER(args.critique_temperature, "0.3", 0, 100),
     "The sampling temperature of critiques.", .only_with = "prompts"},
    {"revision_temperature", NUMBER(args.revision_temperature, "0.5", 0, 100),
     "The sampling temperature of revisions.", .only_with = "prompts"},
    {"max_new_tokens", NUMBER(chat.max_new_tokens, "128", 1, 1 << 20),
     "The longest answer, critique or revision, in tokens."},
    {"max_length", NUMBER(args.max_length, "512", 2, 1 << 20),
     "The most tokens of a training example, of a comparison, and of a dialogue together with its "
     "next text."},
    {"generation_batch_size", NUMBER(args.generation_batch_size, "16", 1, 4096),
     "The number of texts that are generated at the same time.", .may_change_on_resume = true},
    TEMPLATE_FLAG(chat),
    {"strict", SWITCH(args.strict, "false"),
     "Stop at the first bad line of a data file instead of skipping it."},
    TITLE("Learning from revisions"),
    {"revisions", CHOICE(args.revisions, "last", "last|all"),
     "Learn the last revision of a dialogue, or the revisions of all its rounds.",
     .only_with = "prompts"},
    {"regenerate", SWITCH(args.regenerate, "false"),
     "Write new dialogues before every epoch, not only before the first.", .only_with = "prompts"},
    GRADIENT_CHECKPOINTING_FLAG(args.gradient_checkpointing, "false"),
    TITLE("AI feedback"),
    {"feedback", TEXT(args.feedback, NULL),
     "Do not train: label two answers to each prompt, and write the pairs to this JSONL file.",
     .may_change_on_resume = true,
     .conflicts = "data eval output resume max_iterations stop_phrases keep_rounds "
                  "critique_temperature revision_temperature revisions regenerate "
                  "gradient_checkpointing eval_samples",
     .uses = "overwrite_output_dir prompts pairs labels clamp breaches evaluate constitution "
             "principles temperature max_new_tokens max_length generation_batch_size "
             "per_device_train_batch_size template strict model dry_run seed bf16 fp16 cpu quiet"},
    {"pairs", TEXT(args.pairs, NULL),
     "Label the pairs of chosen and rejected in this JSONL file instead of sampled answers, and "
     "count how often the labels agree with the file.",
     .may_change_on_resume = true, .only_with = "feedback",
     .conflicts = "prompts temperature max_new_tokens generation_batch_size breaches"},
    {"labels", TEXT(args.labels, NULL),
     "Take labels (p_chosen) from this JSONL file of pairs; the model labels the other pairs.",
     .may_change_on_resume = true, .only_with = "feedback"},
    {"clamp", TEXT(args.clamp, "0,1"), "Move labels into this range, LOW,HIGH, which includes 0.5.",
     .may_change_on_resume = true, .only_with = "feedback"},
    TITLE("Evaluation"),
    {"eval_samples", NUMBER(args.eval_samples, "64", 0, 1e6),
     "The number of held-out prompts answered before, during and after training; two are shown.",
     .only_with = "eval"},
    {"breaches", TEXT(args.breaches, NULL),
     "Count the answers that say one of these phrases, separated by |, as breaking the principles.",
     .may_be_empty = true, .only_with = "eval feedback"},
    {"evaluate", TEXT(args.evaluate, NULL),
     "Measure how often the model prefers a right option, on this JSONL file of prompt, corrects "
     "and incorrects.",
     .may_change_on_resume = true},
    {"dump_dialogues", TEXT(args.dump_dialogues, NULL),
     "Write the held-out dialogues, before, during and after training, to this JSONL file.",
     .may_change_on_resume = true, .only_with = "eval", .conflicts = "feedback"},
    CHAT_PROMPT_FLAGS(chat, "prompts evaluate feedback pairs labels"),
    CHAT_TOP_FLAGS(chat),
    {0},
};

static const Program constitutional = {
    .name = "constitutional",
    .about =
        "Constitutional AI: critique and revision by written principles, and fine-tuning on "
        "the revisions; with --feedback, preferences labelled by the model.",
    .flags = flags,
    .lines.program = COMMAND_LINE("--learning_rate=1e-5", "--warmup_steps=0", "--weight_decay=0"),
    // the built-in example learns manners in half a minute
    .lines.example = COMMAND_LINE(
        "--model=test/tiny/chat", "--prompts=test/tiny/prompts.jsonl",
        "--eval=test/tiny/prompts-eval.jsonl", "--constitution=test/tiny/constitution.json",
        "--evaluate=test/tiny/multiple-choice.jsonl", "--stop_phrases=answer is good",
        "--breaches=silly you!|get lost.|stop bugging.|how boring.|now leave.|never ask again.|"
        "you are so dumb.|what a fool.",
        "--max_new_tokens=64", "--eval_samples=72", "--per_device_train_batch_size=16",
        "--gradient_accumulation_steps=1", "--max_steps=60", "--learning_rate=3e-4",
        "--adam_beta2=0.99", "--lr_scheduler_type=cosine", "--warmup_steps=10", "--eval_steps=30"),
    .lines.example_unless = "model prompts evaluate pairs prompt chat",
    .lines.uses =
        "  ./constitutional --model tuned --prompts prompts.jsonl --output mended\n"
        "      trains on the model's own revisions\n"
        "  ./constitutional --model tuned --prompts prompts.jsonl --feedback pairs.jsonl\n"
        "      writes preferences for ./reward\n",
    .without = BEST_FLAGS,
    .needs = "model",
    .usage =
        "Give --model DIR with --prompts FILE, with --evaluate FILE, or with --feedback FILE "
        "and --pairs FILE. Without arguments the built-in example runs.",
    .chat = &chat,
};

/* What the flags name */
static Constitution constitution;  // every principle with its requests
static Headings headings;          // a text that the model writes ends before one of them
static Prompts prompts, held_out;  // of --prompts and --eval
static Records records;            // of --data
static Questions questions;        // of --evaluate
static Range label_range;          // of --clamp

/* ---- critique and revision ------------------------------------------------------------------- */

/* Epochs that no training has, for the random numbers of other dialogues */
enum { HELD_OUT = 1 << 20, FEEDBACK = 1 << 21 };

/* Writes one turn of every unfinished dialogue. Turn 0 is the answer, turns 1, 3, ... are
   critiques, turns 2, 4, ... revisions. */
static void speak(const Voice *v, Dialogue *d, int n, uint32_t epoch, int turn, float temperature,
                  Dropped *dropped) {
    char **prompt = (char **)xcalloc((size_t)n, sizeof *prompt);
    char **text = (char **)xcalloc((size_t)n, sizeof *text);
    uint32_t *id = (uint32_t *)xmalloc(sizeof *id * (size_t)n);
    Dialogue **speaker = (Dialogue **)xmalloc(sizeof *speaker * (size_t)n);
    int speakers = 0;
    for (int i = 0; i < n; i++) {
        if (d[i].ending != UNFINISHED) continue;
        char *so_far = dialogue_so_far(&d[i], &constitution, v, args.keep_rounds, dropped);
        if (!so_far) {
            d[i].ending = NO_ROOM;
            continue;
        }
        prompt[speakers] = so_far;
        id[speakers] = (uint32_t)d[i].id;
        speaker[speakers++] = &d[i];
    }
    if (speakers)
        v->say(v->context, speakers, prompt, id, epoch << 10 | (uint32_t)turn, temperature, text);
    for (int k = 0; k < speakers; k++) {
        Dialogue *x = speaker[k];
        Round *round = turn ? &x->round[x->rounds - 1] : NULL;
        headings_cut(&headings, text[k]);
        *(turn == 0 ? &x->answer : turn % 2 ? &round->critique : &round->revision) = text[k];
        free(prompt[k]);
    }
    free(prompt);
    free(text);
    free(id);
    free(speaker);
}

/* Whether a dialogue ends with its last critique. An empty critique finds no fault, but it is not
   praise. Neither is one that repeats the question or the answer. A stop phrase in a repeated
   question does not count. */
static Ending after_critique(const Dialogue *d) {
    char *question = prompt_question(d->prompt, true);
    const char *own = d->round[d->rounds - 1].critique;
    const char *copy = *question ? strstr(own, question) : NULL;
    if (copy) own = copy + strlen(question);
    own += strspn(own, " \t\n");
    free(question);
    if (!*own) return copy ? ECHOED : SILENT;
    if (strstr(d->prompt, own) || strstr(dialogue_answer(d), own)) return ECHOED;
    return text_says(own, args.stop_phrases) ? PRAISED : UNFINISHED;
}

/* The procedure of section 3.1 on n dialogues at once. Each leaves when it ends. False:
   interrupted; the dialogues are incomplete. */
static bool converse(const Voice *v, Dialogue *d, int n, uint32_t epoch, int64_t seed,
                     Dropped *dropped) {
    // 1. An answer to each prompt
    speak(v, d, n, epoch, 0, chat.temperature, dropped);
    for (int r = 0; r < args.max_iterations && !run_interrupted(); r++) {
        // 2. A principle, and a critique of the answer by it
        for (int i = 0; i < n; i++) {
            if (d[i].ending != UNFINISHED) continue;
            dialogue_open_round(&d[i], draw_principle(&constitution, args.principles, d[i].prompt,
                                                      epoch, (uint32_t)d[i].id, (uint32_t)r, seed));
        }
        speak(v, d, n, epoch, 1 + 2 * r, args.critique_temperature, dropped);
        for (int i = 0; i < n; i++) {
            if (d[i].rounds == r + 1 && !d[i].round[r].critique) dialogue_drop_round(&d[i]);
            if (d[i].ending == UNFINISHED) d[i].ending = after_critique(&d[i]);
        }
        // 3. A revision, if the critique found fault; it is the answer of the next round
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

/* ---- learning from revisions ----------------------------------------------------------------- */

/* What is learned from a dialogue: its revisions, or, if the first critique found no fault, the
   answer as it is. */
static void learn(Records *r, const Dialogue *d) {
    const int before = r->n;
    for (int k = d->rounds - 1; k >= 0; k--) {
        if (!d->round[k].revision) continue;
        add_example(r, d, d->round[k].revision);
        if (args.revisions == REVISIONS_LAST) break;
    }
    if (r->n == before && d->ending == PRAISED) add_example(r, d, d->answer);
}

/* Holds the dialogues of an epoch, and makes training examples of them. False: interrupted. */
static bool hold_dialogues(Transcripts *t, TrainingSet *set, const Run *run, const Voice *v,
                           int epoch, int together) {
    Dropped dropped = {0};
    Dialogue *part;
    bool finished = true;
    transcripts_begin(t, epoch);
    for (int n; finished && (n = transcripts_next(t, together, &part)) > 0;) {
        finished = converse(v, part, n, (uint32_t)epoch, run->seed, &dropped);
        transcripts_add(t, n, finished);
    }
    transcripts_report(t, finished, &dropped);
    if (!finished || !run->total_steps) return finished;
    transcripts_complete(t);
    Records learned = {0};
    for (int i = 0; i < prompts.n; i++) learn(&learned, &t->v[i]);
    training_set_build(set, &learned, prompts.n, &records, run->tokenizer, args.max_length);
    records_free(&learned);
    return true;
}

/* Runs the step's training examples in micro-batches: log p of every scored token, the loss, its
   gradient. Gradients add up. *loss: the mean over the step's M scored tokens. False: a signal has
   come, and a resumed run begins the step anew. */
static bool add_gradients(GPT2 *model, TrainingSet *set, Run *run, double M, double *loss) {
    const RaggedBatch *r = &set->ragged;
    *loss = 0;
    watch_mean(run, "loss", 0, 0);  // in the log even if there is nothing to learn
    watch_mean(run, "mean_token_accuracy", 0, 0);
    for (int i = 0, n; (n = training_set_batch(set, i, run->per_device_train_batch_size)); i += n) {
        if (run_interrupted()) return false;
        gpt2_forward(model, &r->batch, NULL);
        gpt2_logprob(model, r->target, 1, set->logp, NULL, set->best);  // at temperature 1
        const double part = cross_entropy(r->batch.N, r->target, set->logp, M, set->dlogp);
        gpt2_backward(model, set->dlogp, NULL, NULL);  // L has no entropy and no scalar head
        *loss += part;
        watch_mean(run, "loss", part * M, r->scored);
        watch_mean(run, "mean_token_accuracy", training_set_correct(set), r->scored);
    }
    return true;
}

/* What is measured before training. A resumed run has it from its checkpoint. */
static struct {
    Conduct conduct;
    Choices choices;
    double shown[2];  // the two dialogues that are shown before and after; -1: none yet
} before = {.shown = {-1, -1}};

static void keep_before(Run *run, Transcripts *t) {
    run_keep(run, "breaches_before", &before.conduct.breaches);
    run_keep(run, "criticised_before", &before.conduct.criticised);
    run_keep(run, "choices_before", &before.choices.raw);
    run_keep(run, "choices_debiased_before", &before.choices.debiased);
    run_keep(run, "choices_first_before", &before.choices.first);
    run_keep(run, "shown1", &before.shown[0]);
    run_keep(run, "shown2", &before.shown[1]);
    transcripts_keep(t, run);
}

static int answered(void) { return min_int(held_out.n, args.eval_samples); }

/* Answers the held-out prompts. step: the dialogues go to --dump_dialogues as those of this step;
   -1: they do not. Returns the dialogues, or NULL if a signal has ended them. */
static Dialogue *evaluate(const Voice *v, int64_t seed, int step, Conduct *c) {
    const int n = answered();
    Dropped dropped = {0};
    Dialogue *d = dialogues_begin(&held_out, n, 0);
    *c = (Conduct){0};
    if (!converse(v, d, n, HELD_OUT, seed, &dropped)) {
        dialogues_end(d, n);
        return NULL;
    }
    *c = dialogues_conduct(d, n, args.breaches);
    if (args.dump_dialogues && step >= 0) dialogues_dump(args.dump_dialogues, d, n, step);
    return d;
}

/* Prints two of the dialogues and the figures, and frees the dialogues. d NULL: there are none. */
static void show_held_out(Dialogue *d, const char *when, const Conduct *c) {
    int shown[2] = {(int)before.shown[0], (int)before.shown[1]};
    if (!d) return;
    dialogues_show(d, answered(), when, c, shown);
    for (int k = 0; k < 2; k++) before.shown[k] = shown[k];
    dialogues_end(d, answered());
}

/* Gives the figures to the log. --breaches not given: there is no such figure. */
static void watch_conduct(Run *run, const Conduct *c) {
    if (!isnan(c->breaches)) watch_held_out(run, "eval_breaches", c->breaches);
    watch_held_out(run, "eval_criticised", c->criticised);
}

/* Answers the held-out prompts and the questions before training. */
static void measure_before(Run *run, const Voice *v, Chooser *judge) {
    const bool dump = dump_begin(run, args.dump_dialogues, "dump_dialogues");
    const bool resumed = run_checkpoint_dir(run) != NULL;
    if (questions.n && !resumed) before.choices = chooser_report(judge, &questions, "before");
    if (questions.n && resumed) choices_print(&before.choices, questions.n, "before");
    Conduct c;
    Dialogue *d = NULL;
    if (!resumed || dump) d = evaluate(v, run->seed, dump ? run->step : -1, &c);
    if (!resumed) {
        before.conduct = c;
        show_held_out(d, "before", &c);
        if (answered()) watch_conduct(run, &c);
    } else if (d) {
        dialogues_end(d, answered());
    }
    if (resumed) conduct_print(answered(), "before", &before.conduct);
}

/* Of the last step, for the end of the run. d NULL: it was not measured */
static struct {
    Dialogue *d;
    Conduct conduct;
} after;

/* Answers the held-out prompts after a step. */
static void measure_after(Run *run, const Voice *v) {
    Conduct c;
    Dialogue *d = evaluate(v, run->seed, run->step + 1, &c);
    const bool measured = !run_postpones(run);
    if (measured) watch_conduct(run, &c);
    if (measured && run_is_last(run)) {
        after.d = d;
        after.conduct = c;
    } else if (d) {
        dialogues_end(d, answered());
    }
}

/* ---- AI feedback ----------------------------------------------------------------------------- */

/* p = 1/2 (p_AB + 1 - p_BA) */
static double debiased(double p_ab, double p_ba) { return 0.5 * (p_ab + 1 - p_ba); }

/* The text that shows two answers and asks which is better by principle p. An answer that writes
   the headings of others is cut there. */
static char *comparison(const char *prompt, const Principle *p, const char *a, const char *b) {
    char *question = prompt_question(prompt, false), *x = xstrdup(a), *y = xstrdup(b);
    headings_cut(&headings, x);
    headings_cut(&headings, y);
    char *principle = principle_text(p);
    const Hole holes[] = {
        {"{prompt}", question}, {"{principle}", principle}, {"{a}", x}, {"{b}", y}, {0}};
    char *filled = text_fill(comparison_layout(&constitution, p), holes);
    free(question);
    free(principle);
    free(x);
    free(y);
    return filled;
}

/* Labels the pairs whose label is not given. */
static void label(Chooser *judge, Labelled *pairs, int n, int64_t seed) {
    Questions q = {0};
    char **labels = comparison_labels(&constitution);
    // 1. Each pair in both orders, by one principle or by all
    for (int i = 0; i < n; i++) {
        Labelled *x = &pairs[i];
        principle_for(&constitution, x->prompt, 0, &x->asked);
        if (args.principles == PRINCIPLES_RANDOM) x->asked = 1;
        if (x->given) x->asked = 0;
        for (int k = 0; k < x->asked; k++) {
            const Principle *p = draw_principle(&constitution, args.principles, x->prompt, FEEDBACK,
                                                (uint32_t)i, (uint32_t)k, seed);
            questions_add(&q, comparison(x->prompt, p, x->a, x->b), labels);
            questions_add(&q, comparison(x->prompt, p, x->b, x->a), labels);
        }
    }
    // 2. The model's probability of the first option
    double *first = chooser_first(judge, &q), *next = first;
    // 3. Its mean over principles; a constant preference for the first option cancels
    for (int i = 0; i < n; i++) {
        Labelled *x = &pairs[i];
        for (int k = 0; k < x->asked; k++) {
            x->p_ab += *next++ / x->asked;
            x->p_ba += *next++ / x->asked;
        }
        if (!x->given) x->p = debiased(x->p_ab, x->p_ba);
    }
    free(first);
}

/* Two answers to each prompt, as pairs. */
static int sample_pairs(const Voice *v, Labelled **pairs) {
    Dialogue *d[2];
    Dropped dropped = {0};
    for (uint32_t k = 0; k < 2; k++) {
        d[k] = dialogues_begin(&prompts, prompts.n, 0);
        speak(v, d[k], prompts.n, FEEDBACK + k, 0, chat.temperature, &dropped);
    }
    const int n = pair_answers(d[0], d[1], prompts.n, pairs);
    dialogues_end(d[0], prompts.n);
    dialogues_end(d[1], prompts.n);
    return n;
}

/* The procedure of section 4.1: pairs, labels, and a file for ./reward --data. */
static void feedback(const Voice *v, Chooser *judge, int64_t seed) {
    Error e;
    Labelled *pairs;
    // 1. Two answers to each prompt
    const int n = args.pairs ? labelled_read(args.pairs, chat.template, args.strict, &pairs)
                             : sample_pairs(v, &pairs);
    // 2. Which is better, by the constitution?
    if (args.labels) labelled_take(pairs, n, args.labels, chat.template, args.strict);
    label(judge, pairs, n, seed);
    if (judge->cut)
        printf("cut the beginning of %ld comparison%s, longer than --max_length %d\n", judge->cut,
               plural(judge->cut), args.max_length);
    labelled_report(pairs, n, args.pairs != NULL, args.breaches);
    // 3. The better answer as chosen, with the probability that it is the better one
    for (int i = 0; i < n; i++)
        pairs[i].p = fmin(fmax(pairs[i].p, label_range.low), label_range.high);
    if (labelled_write(args.feedback, pairs, n, &e)) die("--feedback: %s", e.text);
    printf("%d labelled pair%s in %s: give it to ./reward --data\n", n, plural(n), args.feedback);
    labelled_free(pairs, n);
}

/* ---- the run's files and memory -------------------------------------------------------------- */

/* Does the run train, or only label pairs or measure? */
static bool trains(void) { return args.prompts && !args.feedback; }

static void check_flags(const Run *run) {
    if (!args.prompts && !args.pairs && (args.feedback || !args.evaluate))
        die_usage("There is nothing to do. %s", constitutional.usage);
    if ((run->data || run->eval) && !args.prompts)
        die_usage("--data and --eval have no effect without --prompts");
    if (args.feedback) run_check_output(run, "feedback", NULL);
    if (!args.prompts && !args.feedback)
        run_only(run, "evaluate",
                 "model output overwrite_output_dir dry_run max_length per_device_train_batch_size "
                 "strict bf16 fp16 cpu quiet");
    label_range = range_read("clamp", args.clamp);
    args.max_length = min_int(args.max_length, run->config.n_positions + 1);
    if (chat.max_new_tokens >= args.max_length)
        die_usage(
            "--max_new_tokens %d leaves no room for a prompt: a dialogue has %d tokens, by "
            "--max_length and the model's positions",
            chat.max_new_tokens, args.max_length);
}

/* Reads the files that the flags name, says what they hold, and plans the steps. */
static void read_files(Run *run) {
    constitution_open(args.constitution, &constitution, &headings);
    printf("%s: %d principle%s, %d few-shot conversation%s\n",
           args.constitution ? args.constitution : "built-in constitution", constitution.n,
           plural(constitution.n), constitution.few_shot_n, plural(constitution.few_shot_n));
    if (args.feedback) comparisons_check(&constitution);
    if (args.prompts) prompts_load(args.prompts, chat.template, args.strict, &prompts);
    if (run->eval && trains() && args.eval_samples)
        prompts_load(run->eval, chat.template, args.strict, &held_out);
    if (run->data && trains()) records_load(run->data, chat.template, args.strict, &records);
    if (args.evaluate) questions_load(args.evaluate, args.strict, &questions);
    run_fingerprint(run, "prompts", args.prompts);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", trains() ? run->eval : NULL);
    run_fingerprint(run, "constitution", args.constitution);
    run_fingerprint(run, "evaluate", args.evaluate);
    run_template_used(run, chat.template, prompts.templated || records.templated);
    if (!trains()) return;
    if (!held_out.n) {
        run_refuse(run, "eval_steps", "because there are no held-out prompts: see --eval");
        printf(run->eval ? "note: --eval_samples is 0, so no answers are shown\n"
                         : "note: there are no held-out prompts (--eval), so no answers are "
                           "shown\n");
    }
    if (!held_out.n || !args.breaches || !*args.breaches) run_without_figure(run, "eval_breaches");
    if (!held_out.n) run_without_figure(run, "eval_criticised");
    run_plan(run, prompts.n + records.n,
             (int64_t)run->per_device_train_batch_size * run->gradient_accumulation_steps, 0);
    run_print_plan(run, "prompt", prompts.n + records.n, held_out.n);
}

static GPT2Limits limits_of(const Run *run) {
    const int positions = args.max_length - 1, batch = run->per_device_train_batch_size;
    GPT2Limits l = {.positions = positions,
                    .slots = min_int(args.generation_batch_size, max_int(prompts.n, held_out.n)),
                    .sequences = batch,
                    .gradient_checkpointing = args.gradient_checkpointing};
    // of a prompt's training examples; a micro-batch of longer ones is divided
    int longest = longest_prompt(&prompts, run->tokenizer) + chat.max_new_tokens;
    longest = min_int(positions, longest);
    const int most = batch_tokens((int64_t)batch * longest);
    const int rows = shards_most((int64_t)most * run->gradient_accumulation_steps, longest, most);
    l.tokens = run->total_steps > 0 ? max_int(positions, rows) : l.slots;
    l.tokens = max_int(l.tokens, l.slots);  // decoding reads a token of each slot
    l.scored = l.tokens;
    if (args.feedback) comparison_limits(&l, &constitution, run->tokenizer, positions);
    chooser_ceilings(&l, &questions, run->tokenizer, positions);
    return l;
}

static void free_files(void) {
    constitution_free(&constitution);
    headings_free(&headings);
    prompts_free(&prompts);
    prompts_free(&held_out);
    records_free(&records);
    questions_free(&questions);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Prints the comparison of each of the first n pairs, as it will be asked. Without --pairs the
   answers are not written yet. */
static void show_comparisons(int n, int64_t seed) {
    Labelled *pairs = NULL;
    int known = prompts.n;
    if (args.pairs) known = labelled_read(args.pairs, chat.template, args.strict, &pairs);
    for (int i = 0; i < min_int(n, known); i++) {
        const char *prompt = pairs ? pairs[i].prompt : prompts.v[i].text;
        const Principle *p =
            draw_principle(&constitution, args.principles, prompt, FEEDBACK, (uint32_t)i, 0, seed);
        char *asked = comparison(prompt, p, pairs ? pairs[i].a : "«one answer»",
                                 pairs ? pairs[i].b : "«another»");
        printf(
            "--- comparison %d, asked in both orders; the model chooses between « and »\n"
            "%s«%s or %s»\n",
            i + 1, asked, comparison_labels(&constitution)[0], comparison_labels(&constitution)[1]);
        free(asked);
    }
    if (pairs) labelled_free(pairs, known);
}

/* Opens the transcripts and the training set. */
static void begin_training(Transcripts *t, TrainingSet *set, Run *run, int per_epoch, int tokens) {
    const bool complete = run->step < run->total_steps && run->step % per_epoch != 0;
    transcripts_open(t, &prompts, run, run_checkpoint_dir(run), run->step / per_epoch, complete);
    training_set_open(set, prompts.n + records.n, tokens);
}

/* Prints what training has changed. */
static void report(void) {
    const bool measured = after.d != NULL;
    show_held_out(after.d, "after", &after.conduct);
    if (measured && !isnan(after.conduct.breaches))
        conducts_compare(answered(), &before.conduct, &after.conduct);
}

int main(int argc, char **argv) {
    Run run = run_begin(&constitutional, argc, argv);
    check_flags(&run);
    read_files(&run);
    if (!args.feedback)
        show_layout(&prompts, run.dry_run ? 3 : 1, &constitution, args.principles, run.seed);
    else if (run.dry_run || !args.pairs)
        show_comparisons(run.dry_run ? 3 : 1, run.seed);
    Network network = {.role = "model", .trains = true, .limits = limits_of(&run)};
    Transcripts transcripts = {0};
    keep_before(&run, &transcripts);
    networks_open(&run, (Network *[]){&network, NULL});
    GPT2 *model = network.model;
    const int positions = args.max_length - 1, together = 4 * network.limits.slots + 1;
    Speaker speaker = {model, run.tokenizer, positions, chat.max_new_tokens, (uint64_t)run.seed,
                       NULL};
    Speaker hurried = speaker;  // a signal ends what it says
    hurried.stopped = run_interrupted;
    const Voice voice = speaker_voice(&speaker), training = speaker_voice(&hurried);
    Chooser judge = {model, run.tokenizer, network.limits, positions, 0};
    if (args.feedback) feedback(&voice, &judge, run.seed);

    const int per_epoch = args.regenerate ? max_int(1, run.steps_per_epoch) : INT32_MAX;
    TrainingSet set = {0};
    if (trains()) begin_training(&transcripts, &set, &run, per_epoch, network.limits.tokens);
    measure_before(&run, &voice, &judge);
    // Dialogues take long: a run that is interrupted in the first ones resumes checkpoint-0
    if (trains() && !run_checkpoint_dir(&run) && run.save_strategy != SAVE_NO) run_checkpoint(&run);
    if (trains() && transcripts.run && !run.total_steps)
        hold_dialogues(&transcripts, &set, &run, &voice, 0, together);

    if (run_measures_again(&run) && held_out.n) measure_after(&run, &training);
    int epoch = -1;  // of the dialogues that are learned from
    while (run_next(&run)) {
        // 1. In the beginning, or before every epoch: dialogues, and what is learned from them
        if (run.step / per_epoch != epoch) {
            epoch = run.step / per_epoch;
            if (!hold_dialogues(&transcripts, &set, &run, &training, epoch, together)) break;
        }
        // 2. The training examples of this step, and M, the number of tokens it scores. A prompt
        // without a revision has none
        const double M = training_set_draw(&set, run_examples(&run, set.which));
        // 3. The loss and its gradient
        double loss;
        if (!add_gradients(model, &set, &run, M, &loss)) break;
        // 4. Clip the gradient, AdamW. A step without an example leaves the model as it is
        run_optimise(&run, model, loss, set.trained, 0);
        watch(&run, "revised", transcripts_revised(&transcripts));
        // 5. Answer the held-out prompts
        if (run_should_evaluate(&run) && held_out.n) measure_after(&run, &training);
    }

    report();
    if (questions.n && run.total_steps > 0 && run_completed(&run))
        chooser_report(&judge, &questions, "after");
    transcripts_free(&transcripts);
    training_set_free(&set);
    free_files();
    return run_finish(&run);
}
