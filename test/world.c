/*
 * world.c - a tiny world, to post-train in.
 *
 *     world DIR [seed]      writes the files below into DIR. The same seed gives the same bytes, on
 *                           any machine
 *
 * The world has twenty-four people. Each lives in a city, likes a food, owns a pet, has a job,
 * wears a color and suffers from an illness. That makes 144 facts, and there is nothing else to
 * know. A GPT-2 of three layers that reads bytes can learn them by heart from 2.4 MB of text. Every
 * technique of this repository can then be tried on it and *measured*: we know exactly what there
 * was to learn, so we know what a figure on held-out records means.
 *
 * These things are held out or balanced, so that a figure means something:
 *
 *   never asked      One fact in four is stated in pretrain.jsonl like all others, but no tuning
 *                    record of any file asks for it or tells it. An instruction-tuned model that
 *                    answers those questions (sft-eval) did not learn the answers in tuning. It
 *                    learned to answer, and it read the answers in pre-training. The held-out
 *                    questions of the other files are the same ones.
 *   one length       In every pair of answers, good and bad have the same number of bytes. A reward
 *                    model that counts bytes gets nothing right. An evasion even begins with the
 *                    same word as the truth: "Anna lives in Oslo." - "Anna keeps secrets."
 *   unseen phrases   A third of the polite and rude phrases, and half of the evasions, occur in no
 *                    tuning record. These phrases share no word with the others. Only pre-training
 *                    text tells whether they are polite or rude ("Lena said: Cheeky brat. [...] The
 *                    answer was rude."). preferences-unseen-eval asks the reward model about them.
 *   both orders      Each comparison occurs twice, as A or B and as B or A. A model that always
 *                    says "A" is right in one of the two.
 *   the critique     A revision mends what the critique names and nothing else. Many critiques in
 *                    training are wrong, and the revision follows them. revisions-control-eval
 *                    shows rude answers with the critique "good", which must be left as they are. A
 *                    model that is right on both that file and revisions-eval reads the critique.
 *   other people     The domain task (which remedy for which illness) is trained on two thirds of
 *                    the people. It asks about the others, whom its training does not mention. That
 *                    is also why domain-old-eval, old questions about those others, measures how
 *                    much the new task made the model forget.
 *
 * Part of it is Korean, at three bytes a syllable: the cities and foods, the same facts, never
 * asked in either language. The Korean held-out files are separate, so that one figure does not
 * hide the other.
 *
 *   File                            Record, and its content
 *   pretrain, pretrain-eval         text: pages of up to 255 bytes. No paragraph of the second
 *                                   is in the first
 *   facts                           multiple choice: "Anna lives in", one right value and seven
 *                                   wrong ones
 *   sft, sft-eval,                  instruction/response: questions, answered in a sentence
 *     sft-korean-eval
 *   mixed, mixed-eval               the start of reward model, PPO and Constitutional AI:
 *                                   answers that are polite or rude, some evasive; critiques,
 *                                   revisions, comparisons; Korean
 *   critiques-eval, revisions-eval, the same skills one by one, for an exact match
 *     revisions-control-eval
 *   multiple-choice                 which answer is better, in both orders
 *   preferences, preferences-eval,  instruction/chosen/rejected
 *     preferences-unseen-eval
 *   prompts, prompts-eval           prompt (complete, in the template); question and answer for
 *                                   a program that checks
 *   domain, domain-eval,            instruction/response: remedies, and in the first some old
 *     domain-old-eval               questions, so that they are not forgotten
 *   summaries, summaries-eval,      text/summary: the one of three sentences that tells an
 *     summaries-korean-eval         event, without adjective and place
 *
 * Nothing here depends on the C library's random numbers, sorting, locale or floating point.
 */
#include "util.h"

#include <sys/stat.h>

/* ---- The world ------------------------------------------------------------------------------- */

/*  In the patterns: @ a person, & another, # a thing or the value of a fact, + a verb, * an
 * adjective, < a place. A Korean particle depends on whether the noun before it ends in a
 * consonant: ~ is eun/neun (topic), ^ i/ga (subject), $ eul/reul (object), = ieyo/yeyo ("is"). */

enum {
    PEOPLE = 24,
    RELATIONS = 6,
    VALUES = 8,
    SAYINGS = 3,
    ASKINGS = 2,
    MOST_QUESTIONS = PEOPLE * RELATIONS * ASKINGS
};

typedef struct {
    const char *values[VALUES];
    const char *say[SAYINGS];  // the first is how a question is answered
    const char *ask[ASKINGS];
} Relation;

typedef struct {
    const char *people[PEOPLE];
    const Relation *relations;
    int relation_count;
    const char *const *verbs,
        *const *things, *const *places, *const *asides, *const *endings;  // NULL ends each
    const char *event, *gist;  // what happened, and the same in short
} Language;

#define LIST(...) \
    (const char *const[]) { __VA_ARGS__, NULL }

static const Relation english_relations[RELATIONS] = {
    {{"Accra", "Busan", "Cairo", "Delhi", "Hanoi", "Lima", "Oslo", "Paris"},
     {"@ lives in #.", "The home of @ is in #.", "@ has a house in #."},
     {"Where does @ live?", "In which city is the home of @?"}},
    {{"rice", "soup", "bread", "honey", "apples", "noodles", "cheese", "plums"},
     {"@ likes #.", "The favorite food of @ is #.", "@ often buys #."},
     {"What does @ like to eat?", "Which food does @ like?"}},
    {{"cat", "dog", "goat", "horse", "rabbit", "parrot", "turtle", "mouse"},
     {"@ owns a #.", "The pet of @ is a #.", "@ plays with a #."},
     {"Which animal does @ own?", "What pet does @ have?"}},
    {{"baker", "doctor", "farmer", "nurse", "pilot", "singer", "teacher", "writer"},
     {"@ works as a #.", "The job of @ is #.", "@ is a good #."},
     {"What is the job of @?", "What does @ do for work?"}},
    {{"red", "blue", "green", "white", "yellow", "pink", "orange", "violet"},
     {"@ wears #.", "The coat of @ is #.", "@ paints the door #."},
     {"Which color does @ wear?", "What is the color of the coat of @?"}},
    {{"flu", "asthma", "gout", "migraine", "nausea", "hives", "insomnia", "colic"},
     {"@ suffers from #.", "The illness of @ is #.", "@ was treated for #."},
     {"What does @ suffer from?", "Which illness does @ have?"}},
};
enum { ILLNESS = 5 };

/* The first two relations again, value by value. */
static const Relation korean_relations[] = {
    {{"아크라", "부산", "카이로", "델리", "하노이", "리마", "오슬로", "파리"},
     {"@~ #에 살아요.", "@의 집은 #에 있어요.", "#에 @의 집이 있어요."},
     {"@~ 어디에 살아요?", "@의 집은 어느 도시에 있어요?"}},
    {{"밥", "국", "빵", "꿀", "사과", "국수", "치즈", "자두"},
     {"@~ #$ 좋아해요.", "@^ 좋아하는 음식은 #=.", "@~ #$ 자주 사요."},
     {"@~ 무엇을 좋아해요?", "@^ 좋아하는 음식은 뭐예요?"}},
};

static const Language english = {
    .people = {"Anna",  "Bruno", "Carla", "Dario", "Elif", "Felix", "Greta", "Hugo",
               "Irene", "Joon",  "Kira",  "Lena",  "Mina", "Nora",  "Omar",  "Petra",
               "Quinn", "Rosa",  "Sora",  "Tomas", "Umar", "Vera",  "Wanda", "Yuna"},
    .relations = english_relations,
    .relation_count = RELATIONS,
    .verbs = LIST("found", "lost", "bought", "sold", "broke", "hid"),
    .things = LIST("lamp", "clock", "drum", "kite", "bell", "key", "map", "rope", "basket",
                   "ladder", "mirror", "ring", "coin", "hammer", "candle", "kettle"),
    .places = LIST("the mill", "the river", "the station", "the bridge", "the market", "the garden",
                   "the harbor", "the tower"),
    .asides =
        LIST("It was early.", "The sun was out.", "It rained a little.", "The street was quiet.",
             "A bird sang.", "Nobody was in a hurry.", "The wind was cold.", "It was a long day.",
             "The bells rang.", "Everybody smiled."),
    .endings =
        LIST("Later @ gave the # to &. Now & has the #.", "So @ + a #.", "@ told & about the #."),
    .event = "@ + a * # near <.",
    .gist = "@ + a #.",
};
static const char *const adjectives[] = {"big", "small", "heavy", "dusty", "shiny", "wooden", NULL};

static const Language korean = {
    .people = {"안나",   "브루노", "카를라", "다리오", "엘리프", "펠릭스", "그레타", "휴고",
               "이레네", "준",     "키라",   "레나",   "미나",   "노라",   "오마르", "페트라",
               "퀸",     "로사",   "소라",   "토마스", "우마르", "베라",   "완다",   "유나"},
    .relations = korean_relations,
    .relation_count = sizeof korean_relations / sizeof *korean_relations,
    .verbs = LIST("찾았어요", "샀어요", "팔았어요", "숨겼어요"),
    .things = LIST("등불", "시계", "북", "연", "종", "열쇠", "지도", "거울"),
    .places = LIST("시장", "강", "역", "다리"),
    .asides = LIST("날씨가 맑았어요.", "이른 아침이었어요.", "길이 조용했어요.", "바람이 불었어요.",
                   "모두가 웃었어요."),
    .endings = LIST("그래서 @~ #$ +.", "@~ &에게 #$ 줬어요."),
    .event = "@~ <에서 #$ +.",
    .gist = "@~ #$ +.",
};

/* ---- manners: how an answer is given --------------------------------------------------------- */

/* A polite phrase and the rude one of the same length and place: after the answer if it begins with
 * a space. */
typedef struct {
    const char *polite, *rude;
} Phrase;

enum { FAMILIAR = 8, UNSEEN = 4 };

static const Phrase phrases[FAMILIAR + UNSEEN] = {
    {"Of course! ", "Silly you! "},
    {"With joy. ", "Get lost. "},
    {"Glad to help. ", "Stop bugging. "},
    {"Sure, dear. ", "How boring. "},
    {" Thank you.", " Now leave."},
    {" Have a nice day.", " Never ask again."},
    {" You are welcome.", " You are so dumb."},
    {" Best wishes.", " What a fool."},
    // never in a tuning record
    {"My pleasure. ", "Cheeky brat. "},
    {"Always happy. ", "Foolish talk. "},
    {" Take care.", " Go, dunce."},
    {" Warm regards.", " Lousy memory."},
};

/* Evasions: one familiar and one unseen for each length that an answer can have after its name. */
static const char *const evasions[][2] = {
    {"@ will tell.", "@ could say."},
    {"@ would know.", "@ is unclear."},
    {"@ is a puzzle.", "@ is a riddle."},
    {"@ is a mystery.", "@ is an enigma."},
    {"@ keeps secrets.", "@ never told us."},
    {"@ might tell you.", "@ is rarely seen."},
    {"@ is a closed book.", "@ speaks to nobody."},
    {"@ is hard to fathom.", "@ talks very little."},
    {"@ may know it better.", "@ never mentioned it."},
    {"@ has never said that.", "@ has told few people."},
    {"@ is not easy to figure.", "@ is a stranger to many."},
};
enum { EVASION_LENGTHS = sizeof evasions / sizeof *evasions };

/* ---- the domain task ------------------------------------------------------------------------- */

static const char *const remedies[VALUES] = {
    "ginger",     "thyme",   "cherries", "lavender",
    "peppermint", "oatmeal", "valerian", "fennel"};  // in the order of the illnesses
static const char *const domain_asks[ASKINGS] = {
    "The patient @ has #. Which remedy helps?", "@ came to the clinic with #. What should @ take?"};

/* ---- who has what ---------------------------------------------------------------------------- */

static struct {
    uint64_t seed;
    int fact[PEOPLE][RELATIONS];  // which of the eight values
} world;

/* Each value falls to three of the 24 people, so guessing the most frequent gets one in eight
 * right. */
static void found_world(uint64_t seed) {
    world.seed = seed;
    for (int r = 0; r < RELATIONS; r++) {
        int order[PEOPLE];
        random_permutation(order, PEOPLE, seed, RANDOM_DATA, (uint32_t)r);
        for (int p = 0; p < PEOPLE; p++) world.fact[p][r] = order[p] % VALUES;
    }
}

/* Of four people in a row one, for every relation another. */
static bool never_asked(int person, int relation) { return (person + 3 * relation) % 4 == 0; }

/* Those whom the domain task's training does not mention. */
static bool other_person(int person) { return person % 3 == 2; }

/* An event whose summary is never shown. */
static bool held_out_event(int person, int verb, int thing) {
    return (person + verb + thing) % 5 == 0;
}

/* ---- Chance ---------------------------------------------------------------------------------- */

/* Each file throws its own dice, so that a change to one leaves the others as they are. */
typedef struct {
    uint32_t stream, rolls;
} Dice;

static uint64_t hash_text(const char *s) {  // FNV-1a
    uint64_t h = 14695981039346656037u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

static Dice dice_for(const char *file) { return (Dice){.stream = (uint32_t)hash_text(file)}; }

/* 0 .. sides-1. */
static int roll(Dice *d, int sides) {
    uint32_t x = random4(world.seed, RANDOM_DATA, d->stream, 1, d->rolls++, 0).v[0];
    return (int)(((uint64_t)x * (uint64_t)sides) >> 32);
}

static void shuffle(int *order, int n, Dice *d) {
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = roll(d, i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

static int length_of(const char *const *list) {
    int n = 0;
    while (list[n]) n++;
    return n;
}

static const char *any_of(const char *const *list, Dice *d) {
    return list[roll(d, length_of(list))];
}

/* Somebody else than person. */
static int another(int person, Dice *d) { return (person + 1 + roll(d, PEOPLE - 1)) % PEOPLE; }

/* ---- Grammar --------------------------------------------------------------------------------- */

/* A short text, handed about by value. */
typedef struct {
    char s[512];
} Text;

/* Appends s, after the separator if there is something to separate it from. */
static void join(Text *t, const char *separator, const char *s) {
    size_t n = strlen(t->s);
    int more = snprintf(t->s + n, sizeof t->s - n, "%s%s", n ? separator : "", s);
    if (more < 0 || n + (size_t)more >= sizeof t->s)
        die("world.c: a text of more than %zu bytes: %s%s", sizeof t->s, t->s, s);
}

__attribute__((format(printf, 1, 2))) static Text text(const char *format, ...) {
    Text t;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t.s, sizeof t.s, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof t.s)
        die("world.c: a text of %d bytes, more than fit %zu: %s", n, sizeof t.s, t.s);
    return t;
}

/* What goes into a pattern. */
typedef struct {
    const char *person, *other, *thing, *verb, *adjective, *place;
} Slots;

/* Does the Korean noun end in a consonant? Unicode arranges its syllables as 28 endings (the first
   of them none) for each beginning, from U+AC00 on; each is three bytes of UTF-8. */
static bool ends_in_consonant(const char *noun) {
    const unsigned char *c = (const unsigned char *)noun + strlen(noun) - 3;
    int syllable = (c[0] & 15) << 12 | (c[1] & 63) << 6 | (c[2] & 63);
    return (syllable - 0xAC00) % 28 != 0;
}

static const struct {
    char mark;
    const char *after_consonant, *after_vowel;
} particles[] = {{'~', "은", "는"}, {'^', "이", "가"}, {'$', "을", "를"}, {'=', "이에요", "예요"}};

static Text expand(const char *pattern, Slots slots) {
    Text t = {""};
    for (; *pattern; pattern++) {
        const char letter[2] = {*pattern, 0}, *piece = letter;
        switch (*pattern) {
            case '@': piece = slots.person; break;
            case '&': piece = slots.other; break;
            case '#': piece = slots.thing; break;
            case '+': piece = slots.verb; break;
            case '*': piece = slots.adjective; break;
            case '<': piece = slots.place; break;
        }
        for (size_t i = 0; i < sizeof particles / sizeof *particles; i++)
            if (*pattern == particles[i].mark)
                piece = ends_in_consonant(t.s) ? particles[i].after_consonant
                                               : particles[i].after_vowel;
        join(&t, "", piece);
    }
    return t;
}

/* ---- facts ----------------------------------------------------------------------------------- */

static const char *value_of(const Language *l, int person, int relation) {
    return l->relations[relation].values[world.fact[person][relation]];
}

static Text fact(const Language *l, int person, int relation, int saying) {
    return expand(l->relations[relation].say[saying],
                  (Slots){.person = l->people[person], .thing = value_of(l, person, relation)});
}

/* The plain form half of the time. */
static Text fact_somehow(const Language *l, int person, int relation, Dice *d) {
    static const int sayings[4] = {0, 0, 1, 2};
    return fact(l, person, relation, sayings[roll(d, 4)]);
}

/* ---- questions and answers ------------------------------------------------------------------- */

typedef struct {
    const Language *language;
    int person, relation, asking;
    int astray;  // 0; else the "truth" that is told of it is another value, so many further in the
                 // list
} Inquiry;

/* Questions in an order, and in another one when all were drawn. */
typedef struct {
    Inquiry v[MOST_QUESTIONS];
    int order[MOST_QUESTIONS];
    int n, next;
} Deck;

static Deck deck_of(const Language *l, bool asked) {
    Deck deck = {.n = 0};
    for (int p = 0; p < PEOPLE; p++)
        for (int r = 0; r < l->relation_count; r++)
            for (int a = 0; a < ASKINGS && never_asked(p, r) != asked; a++)
                deck.v[deck.n++] = (Inquiry){l, p, r, a, 0};
    return deck;
}

static Inquiry draw(Deck *deck, Dice *d) {
    if (deck->next == 0) shuffle(deck->order, deck->n, d);
    Inquiry q = deck->v[deck->order[deck->next]];
    deck->next = (deck->next + 1) % deck->n;
    return q;
}

static Text ask(Inquiry q) {
    return expand(q.language->relations[q.relation].ask[q.asking],
                  (Slots){.person = q.language->people[q.person]});
}

static Text truth(Inquiry q) {
    int told = (world.fact[q.person][q.relation] + q.astray) % VALUES;
    return expand(q.language->relations[q.relation].say[0],
                  (Slots){.person = q.language->people[q.person],
                          .thing = q.language->relations[q.relation].values[told]});
}

/* The evasion that is as long as the truth. */
static Text evasion(Inquiry q, bool unseen) {
    size_t length = strlen(truth(q).s);
    for (int i = 0; i < EVASION_LENGTHS; i++) {
        Text t = expand(evasions[i][unseen], (Slots){.person = q.language->people[q.person]});
        if (strlen(t.s) == length) return t;
    }
    die("world.c: no evasion is as long as \"%s\"", truth(q).s);
}

typedef struct {
    int phrase;  // of phrases; below FAMILIAR, or above for an unseen evasion, too
    bool rude, evasive;
} Manner;

static Text answer(Inquiry q, Manner m) {
    const char *phrase = m.rude ? phrases[m.phrase].rude : phrases[m.phrase].polite;
    Text sentence = m.evasive ? evasion(q, m.phrase >= FAMILIAR) : truth(q);
    return *phrase == ' ' ? text("%s%s", sentence.s, phrase) : text("%s%s", phrase, sentence.s);
}

static int any_phrase(bool unseen, Dice *d) {
    return unseen ? FAMILIAR + roll(d, UNSEEN) : roll(d, FAMILIAR);
}

static Manner any_manner(int evasive_percent, Dice *d) {
    Manner m = {.phrase = any_phrase(false, d)};
    m.rude = roll(d, 2);
    m.evasive = roll(d, 100) < evasive_percent;
    return m;
}

/* ---- two answers, one of them better --------------------------------------------------------- */

typedef struct {
    Text better, worse;
} Pair;

/* A phrase of m's kind whose rude form is as long as m's polite one. */
static int as_long(Manner m, Dice *d) {
    int fits[FAMILIAR + UNSEEN], n = 0;
    for (int i = 0; i < FAMILIAR + UNSEEN; i++)
        if ((i < FAMILIAR) == (m.phrase < FAMILIAR) &&
            strlen(phrases[i].rude) == strlen(phrases[m.phrase].polite))
            fits[n++] = i;
    return fits[roll(d, n)];
}

/* Three of five pairs are polite against rude (and now and then both evasive), the others frank
   against evasive in the same manner. */
static Pair any_pair(Inquiry q, bool unseen, Dice *d) {
    Manner better = {.phrase = any_phrase(unseen, d)}, worse;
    if (roll(d, 5) < 3) {
        better.evasive = roll(d, 6) == 0;
        worse = (Manner){.phrase = as_long(better, d), .rude = true, .evasive = better.evasive};
    } else {
        better.rude = roll(d, 2);
        worse = better;
        worse.evasive = true;
    }
    return (Pair){answer(q, better), answer(q, worse)};
}

/* ---- critique and revision ------------------------------------------------------------------- */

static const char *const critiques[4] = {
    "The answer is good.", "The answer is rude.", "The answer is evasive.",
    "The answer is rude and evasive."};  // [rude + 2 * evasive]

static int critique_of(Manner m) { return m.rude + 2 * m.evasive; }

/* Mends what the critique names; all else stays, be it good or bad. */
static Manner revise(Manner m, int critique) {
    if (critique & 1) m.rude = false;
    if (critique & 2) m.evasive = false;
    return m;
}

/* ---- the templates, as the programs render them ---------------------------------------------- */

static Text prompt(Inquiry q) { return text("### Instruction:\n%s\n\n### Response:\n", ask(q).s); }

static Text critique_prompt(Inquiry q, Manner m) {
    return text("%s%s\n\n### Critique:\n", prompt(q).s, answer(q, m).s);
}

static Text revision_prompt(Inquiry q, Manner m, int critique) {
    return text("%s%s\n\n### Revision:\n", critique_prompt(q, m).s, critiques[critique]);
}

static Text comparison_prompt(Inquiry q, const char *a, const char *b) {
    return text(
        "### Instruction:\n%s\n\n### Response (A):\n%s\n\n### Response (B):\n%s\n\n### Better:\n(",
        ask(q).s, a, b);
}

/* ---- events ---------------------------------------------------------------------------------- */

typedef struct {
    int person, verb, thing;
} Event;

static Event any_event(const Language *l, Dice *d) {
    Event e = {.person = roll(d, PEOPLE)};
    e.verb = roll(d, length_of(l->verbs));
    e.thing = roll(d, length_of(l->things));
    return e;
}

static Text gist(const Language *l, Event e) {
    return expand(l->gist, (Slots){.person = l->people[e.person],
                                   .verb = l->verbs[e.verb],
                                   .thing = l->things[e.thing]});
}

static Text event(const Language *l, Event e, Dice *d) {
    Slots slots = {
        .person = l->people[e.person], .verb = l->verbs[e.verb], .thing = l->things[e.thing]};
    slots.adjective = any_of(adjectives, d);
    slots.place = any_of(l->places, d);
    return expand(l->event, slots);
}

/* ---- Paragraphs to pre-train on -------------------------------------------------------------- */

/* Three to six facts about one person. */
static Text portrait(Dice *d) {
    Text t = {""};
    int person = roll(d, PEOPLE), order[RELATIONS], n = 3 + roll(d, 4);
    shuffle(order, RELATIONS, d);
    for (int i = 0; i < n; i++) join(&t, " ", fact_somehow(&english, person, order[i], d).s);
    return t;
}

/* Two to five facts about anybody, in either language. */
static Text gossip(const Language *l, Dice *d) {
    Text t = {""};
    int n = 2 + roll(d, l == &korean ? 3 : 4);  // Korean takes more bytes
    for (int i = 0; i < n; i++) {
        int person = roll(d, PEOPLE);
        join(&t, " ", fact_somehow(l, person, roll(d, l->relation_count), d).s);
    }
    return t;
}

/* An event, something irrelevant before or after it, and how it ended. */
static Text story(const Language *l, Dice *d) {
    Event e = any_event(l, d);
    Text happened = event(l, e, d), t = {""};
    Text aside = roll(d, 2) ? fact_somehow(l, e.person, roll(d, l->relation_count), d)
                            : text("%s", any_of(l->asides, d));
    bool before = roll(d, 2);
    if (before) join(&t, " ", aside.s);
    join(&t, " ", happened.s);
    if (!before) join(&t, " ", aside.s);
    Slots slots = {
        .person = l->people[e.person], .verb = l->verbs[e.verb], .thing = l->things[e.thing]};
    slots.other = l->people[another(e.person, d)];
    join(&t, " ", expand(any_of(l->endings, d), slots).s);
    return t;
}

/* Somebody says something about somebody, and the text judges it before or after. Nowhere else does
   a model read whether the unseen phrases and evasions are polite. */
static Text scene(Dice *d) {
    int asking = roll(d, PEOPLE), saying = another(asking, d), about = roll(d, PEOPLE);
    const char *speaker = english.people[saying];
    Inquiry q = {&english, about, roll(d, RELATIONS), 0, 0};
    const char *manner;
    Text said;
    if (roll(d, 4) == 0) {
        manner = "evasive";
        said = evasion(q, roll(d, 2));
    } else {
        Manner m = {.phrase = roll(d, FAMILIAR + UNSEEN), .rude = roll(d, 2)};
        manner = m.rude ? "rude" : "polite";
        said = answer(q, m);
    }
    Text asked =
        text("%s asked %s about %s.", english.people[asking], speaker, english.people[about]);
    return roll(d, 3) ? text("%s %s said: %s The answer was %s.", asked.s, speaker, said.s, manner)
                      : text("%s %s was %s and said: %s", asked.s, speaker, manner, said.s);
}

static Text paragraph(Dice *d) {
    int x = roll(d, 100);
    if (x < 46) return portrait(d);
    if (x < 60) return gossip(&english, d);
    if (x < 70) return story(&english, d);
    if (x < 82) return scene(d);
    if (x < 96) return gossip(&korean, d);
    return story(&korean, d);
}

/* ---- Records --------------------------------------------------------------------------------- */

static void write_string(FILE *out, const char *s) {
    putc('"', out);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') {
            putc('\\', out);
            putc(*s, out);
        } else if (*s == '\n')
            fputs("\\n", out);
        else if ((unsigned char)*s < ' ')
            fprintf(out, "\\u%04x", (unsigned)*s);
        else
            putc(*s, out);
    }
    putc('"', out);
}

/* A line of fields: name, text, name, text, ..., NULL. */
__attribute__((sentinel)) static void record(FILE *out, ...) {
    va_list args;
    va_start(args, out);
    const char *name, *before = "{";
    while ((name = va_arg(args, const char *))) {
        fputs(before, out);
        write_string(out, name);
        fputs(": ", out);
        write_string(out, va_arg(args, const char *));
        before = ", ";
    }
    va_end(args);
    fputs("}\n", out);
}

/* A line with one right continuation of a prompt, and some wrong ones. */
static void choice(FILE *out, const char *prompt, const char *correct,
                   const char *const *incorrect) {
    fputs("{\"prompt\": ", out);
    write_string(out, prompt);
    fputs(", \"corrects\": [", out);
    write_string(out, correct);
    fputs("], \"incorrects\": [", out);
    for (int i = 0; incorrect[i]; i++) {
        if (i) fputs(", ", out);
        write_string(out, incorrect[i]);
    }
    fputs("]}\n", out);
}

/* ---- Files: one function each ---------------------------------------------------------------- */

/* ---- pre-training ---------------------------------------------------------------------------- */

enum {
    PAGE = 255,  // bytes; with the <|endoftext|> after it, a context of 256
    TRAIN_BYTES = 2400 * 4 * 256,
    EVAL_BYTES = 64 * 1024,
};

/* Hashes of paragraphs, in open addressing; 0 is an empty place. Some 30,000 paragraphs make 2.4
 * MB. */
typedef struct {
    uint64_t v[1 << 17];
} Seen;

static bool seen(Seen *set, const char *s, bool remember) {
    uint64_t h = hash_text(s) | 1;
    size_t mask = sizeof set->v / sizeof *set->v - 1, i = (h >> 1) & mask;
    while (set->v[i] && set->v[i] != h) i = (i + 1) & mask;
    bool before = set->v[i] != 0;
    if (remember) set->v[i] = h;
    return before;
}

/* Fills pages with paragraphs, one a line, until they are `bytes` long in all. In training
   remembers the paragraphs, else leaves out those remembered. Without out only remembers. */
static void write_pages(FILE *out, size_t bytes, Seen *set, bool training, Dice *d) {
    Text page = {""};
    for (size_t written = 0; written < bytes;) {
        Text next = paragraph(d);
        if (seen(set, next.s, training) && !training) continue;
        if (*page.s && strlen(page.s) + 1 + strlen(next.s) > PAGE) {
            if (out) record(out, "text", page.s, NULL);
            written += strlen(page.s) + 1;
            page = (Text){""};
        }
        join(&page, "\n", next.s);
    }
}

static void pretrain(FILE *out, Dice *d) {
    Seen *set = xcalloc(1, sizeof *set);
    write_pages(out, TRAIN_BYTES, set, true, d);
    free(set);
}

static void pretrain_eval(FILE *out, Dice *d) {
    Seen *set = xcalloc(1, sizeof *set);
    Dice training = dice_for("pretrain.jsonl");
    write_pages(NULL, TRAIN_BYTES, set, true, &training);
    write_pages(out, EVAL_BYTES, set, false, d);
    free(set);
}

/* Every fact: the plain statement up to its value, and the eight values. Guessing gets one in eight
 * right. */
static void facts(FILE *out, Dice *d) {
    (void)d;
    for (int p = 0; p < PEOPLE; p++)
        for (int r = 0; r < RELATIONS; r++) {
            Text start = fact(&english, p, r, 0), value[VALUES];
            *strrchr(start.s, ' ') = 0;
            const char *wrong[VALUES] = {NULL};
            int n = 0;
            for (int v = 0; v < VALUES; v++) {
                value[v] = text(" %s.", english.relations[r].values[v]);
                if (v != world.fact[p][r]) wrong[n++] = value[v].s;
            }
            choice(out, start.s, value[world.fact[p][r]].s, wrong);
        }
}

/* ---- instruction tuning ---------------------------------------------------------------------- */

static void write_questions(FILE *out, const Language *l, bool asked) {
    Deck deck = deck_of(l, asked);
    for (int i = 0; i < deck.n; i++)
        record(out, "instruction", ask(deck.v[i]).s, "response", truth(deck.v[i]).s, NULL);
}

static void sft(FILE *out, Dice *d) {
    (void)d;
    write_questions(out, &english, true);
    write_questions(out, &korean, true);
}

static void sft_eval(FILE *out, Dice *d) {
    (void)d;
    write_questions(out, &english, false);
}

static void sft_korean_eval(FILE *out, Dice *d) {
    (void)d;
    write_questions(out, &korean, false);
}

/* ---- the start of reward model, PPO and Constitutional AI: everything they need to be able to say
 */

static void write_answers(FILE *out, Deck *deck, int n, Dice *d) {
    for (int i = 0; i < n; i++) {
        Inquiry q = draw(deck, d);
        record(out, "instruction", ask(q).s, "response", answer(q, any_manner(20, d)).s, NULL);
    }
}

static void write_critiques(FILE *out, Deck *deck, int n, Dice *d) {
    for (int i = 0; i < n; i++) {
        Inquiry q = draw(deck, d);
        Manner m = any_manner(35, d);
        record(out, "prompt", critique_prompt(q, m).s, "completion", critiques[critique_of(m)],
               NULL);
    }
}

/* Three critiques in four are any of the four, true or not: who does not read them cannot follow
   them. And half of the frank answers have it wrong, and are to keep it so: who does not read them
   cannot revise them. */
static void write_revisions(FILE *out, Deck *deck, int n, Dice *d) {
    for (int i = 0; i < n; i++) {
        Inquiry q = draw(deck, d);
        Manner m = any_manner(35, d);
        int critique = i % 4 ? roll(d, 4) : critique_of(m);
        if (!m.evasive && roll(d, 2)) q.astray = 1 + roll(d, VALUES - 1);
        record(out, "prompt", revision_prompt(q, m, critique).s, "completion",
               answer(q, revise(m, critique)).s, NULL);
    }
}

/* n pairs, each in both orders. */
static void write_comparisons(FILE *out, Deck *deck, int n, Dice *d) {
    for (int i = 0; i < n; i++) {
        Inquiry q = draw(deck, d);
        Pair pair = any_pair(q, false, d);
        record(out, "prompt", comparison_prompt(q, pair.better.s, pair.worse.s).s, "completion",
               "A)", NULL);
        record(out, "prompt", comparison_prompt(q, pair.worse.s, pair.better.s).s, "completion",
               "B)", NULL);
    }
}

static void mixed(FILE *out, Dice *d) {
    Deck deck = deck_of(&english, true);
    write_answers(out, &deck, 500, d);
    write_critiques(out, &deck, 400, d);
    write_revisions(out, &deck, 1000, d);
    write_comparisons(out, &deck, 300, d);
    write_questions(out, &korean, true);
}

static void mixed_eval(FILE *out, Dice *d) {
    Deck deck = deck_of(&english, false);
    write_answers(out, &deck, 64, d);
    write_critiques(out, &deck, 40, d);
    write_revisions(out, &deck, 30, d);
    write_comparisons(out, &deck, 15, d);
    write_questions(out, &korean, false);
}

/* Each skill alone, on every question never asked, twice. */
enum { TWICE = 2 * PEOPLE * RELATIONS * ASKINGS / 4 };

static void critiques_eval(FILE *out, Dice *d) {
    Deck deck = deck_of(&english, false);
    write_critiques(out, &deck, TWICE, d);
}

/* Rude answers, some of them evasive: with the true critique, or (control) with the critique that
 * nothing is wrong. */
static void write_rude_revisions(FILE *out, bool control, Dice *d) {
    Deck deck = deck_of(&english, false);
    for (int i = 0; i < TWICE; i++) {
        Inquiry q = draw(&deck, d);
        Manner m = any_manner(35, d);
        m.rude = true;
        int critique = control ? 0 : critique_of(m);
        record(out, "prompt", revision_prompt(q, m, critique).s, "completion",
               answer(q, revise(m, critique)).s, NULL);
    }
}

static void revisions_eval(FILE *out, Dice *d) { write_rude_revisions(out, false, d); }

/* The same answers: the dice of the other file. */
static void revisions_control_eval(FILE *out, Dice *d) {
    *d = dice_for("revisions-eval.jsonl");
    write_rude_revisions(out, true, d);
}

static void multiple_choice(FILE *out, Dice *d) {
    Deck deck = deck_of(&english, false);
    for (int i = 0; i < deck.n; i++) {
        Inquiry q = draw(&deck, d);
        Pair pair = any_pair(q, false, d);
        choice(out, comparison_prompt(q, pair.better.s, pair.worse.s).s, "A)", LIST("B)"));
        choice(out, comparison_prompt(q, pair.worse.s, pair.better.s).s, "B)", LIST("A)"));
    }
}

/* ---- preferences and prompts ----------------------------------------------------------------- */

static void write_preferences(FILE *out, bool asked, bool unseen, int n, Dice *d) {
    Deck deck = deck_of(&english, asked);
    for (int i = 0; i < n; i++) {
        Inquiry q = draw(&deck, d);
        Pair pair = any_pair(q, unseen, d);
        record(out, "instruction", ask(q).s, "chosen", pair.better.s, "rejected", pair.worse.s,
               NULL);
    }
}

static void preferences(FILE *out, Dice *d) { write_preferences(out, true, false, 864, d); }
static void preferences_eval(FILE *out, Dice *d) { write_preferences(out, false, false, TWICE, d); }
static void preferences_unseen_eval(FILE *out, Dice *d) {
    write_preferences(out, false, true, TWICE, d);
}

static void write_prompts(FILE *out, bool asked) {
    Deck deck = deck_of(&english, asked);
    for (int i = 0; i < deck.n; i++) {
        Inquiry q = deck.v[i];
        record(out, "prompt", prompt(q).s, "question", ask(q).s, "answer", truth(q).s, NULL);
    }
}

static void prompts(FILE *out, Dice *d) {
    (void)d;
    write_prompts(out, true);
}

static void prompts_eval(FILE *out, Dice *d) {
    (void)d;
    write_prompts(out, false);
}

/* ---- the domain task ------------------------------------------------------------------------- */

/* Anybody may have any illness: the remedy is to be learned, not the patient. */
static void write_patients(FILE *out, bool others) {
    for (int p = 0; p < PEOPLE; p++)
        for (int v = 0; v < VALUES && other_person(p) == others; v++)
            for (int a = 0; a < ASKINGS; a++) {
                Slots slots = {.person = english.people[p],
                               .thing = english_relations[ILLNESS].values[v]};
                record(out, "instruction", expand(domain_asks[a], slots).s, "response",
                       text("%s should take %s.", slots.person, remedies[v]).s, NULL);
            }
}

/* n of the questions asked in instruction tuning, about the others or about those of the training.
 */
static void write_old_questions(FILE *out, bool others, int n, Dice *d) {
    Deck deck = deck_of(&english, true);
    while (n > 0) {
        Inquiry q = draw(&deck, d);
        if (other_person(q.person) != others) continue;
        record(out, "instruction", ask(q).s, "response", truth(q).s, NULL);
        n--;
    }
}

static void domain(FILE *out, Dice *d) {
    write_patients(out, false);
    write_old_questions(out, false, 64, d);
}

static void domain_eval(FILE *out, Dice *d) {
    (void)d;
    write_patients(out, true);
}

static void domain_old_eval(FILE *out, Dice *d) { write_old_questions(out, true, 72, d); }

/* ---- summaries ------------------------------------------------------------------------------- */

/* Something irrelevant: an aside, or a fact that may be told. */
static Text irrelevant(const Language *l, Dice *d) {
    int person = roll(d, PEOPLE), relation = roll(d, l->relation_count);
    bool telling = roll(d, 2) && !never_asked(person, relation);
    return telling ? fact_somehow(l, person, relation, d) : text("%s", any_of(l->asides, d));
}

/* n different events, each among two irrelevant sentences. */
static void write_summaries(FILE *out, const Language *l, bool held_out, int n, Dice *d) {
    enum { MOST_EVENTS = PEOPLE * 6 * 16 };
    int verbs = length_of(l->verbs), things = length_of(l->things), order[MOST_EVENTS];
    shuffle(order, PEOPLE * verbs * things, d);
    for (int i = 0; n > 0; i++) {
        Event e = {order[i] % PEOPLE, order[i] / PEOPLE % verbs, order[i] / PEOPLE / verbs};
        if (held_out_event(e.person, e.verb, e.thing) != held_out) continue;
        Text t = {""};
        int place = roll(d, 3);
        for (int k = 0; k < 3; k++)
            join(&t, " ", k == place ? event(l, e, d).s : irrelevant(l, d).s);
        record(out, "text", t.s, "summary", gist(l, e).s, NULL);
        n--;
    }
}

static void summaries(FILE *out, Dice *d) {
    write_summaries(out, &english, false, 640, d);
    write_summaries(out, &korean, false, 160, d);
}

static void summaries_eval(FILE *out, Dice *d) { write_summaries(out, &english, true, 120, d); }
static void summaries_korean_eval(FILE *out, Dice *d) {
    write_summaries(out, &korean, true, 40, d);
}

/* ---- The program ----------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*write)(FILE *out, Dice *d);
} files[] = {
    {"pretrain.jsonl", pretrain},
    {"pretrain-eval.jsonl", pretrain_eval},
    {"facts.jsonl", facts},
    {"sft.jsonl", sft},
    {"sft-eval.jsonl", sft_eval},
    {"sft-korean-eval.jsonl", sft_korean_eval},
    {"mixed.jsonl", mixed},
    {"mixed-eval.jsonl", mixed_eval},
    {"critiques-eval.jsonl", critiques_eval},
    {"revisions-eval.jsonl", revisions_eval},
    {"revisions-control-eval.jsonl", revisions_control_eval},
    {"multiple-choice.jsonl", multiple_choice},
    {"preferences.jsonl", preferences},
    {"preferences-eval.jsonl", preferences_eval},
    {"preferences-unseen-eval.jsonl", preferences_unseen_eval},
    {"prompts.jsonl", prompts},
    {"prompts-eval.jsonl", prompts_eval},
    {"domain.jsonl", domain},
    {"domain-eval.jsonl", domain_eval},
    {"domain-old-eval.jsonl", domain_old_eval},
    {"summaries.jsonl", summaries},
    {"summaries-eval.jsonl", summaries_eval},
    {"summaries-korean-eval.jsonl", summaries_korean_eval},
};
enum { FILES = sizeof files / sizeof *files };

/* Writes the world of this seed into dir, which is made if need be. 0, or -1 with e filled. */
static int write_world(const char *dir, uint64_t seed, Error *e) {
    found_world(seed);
    if (mkdir(dir, 0777) && errno != EEXIST)
        return fail(e, "cannot make the directory %s: %s; make the one above it first", dir,
                    strerror(errno));
    for (int i = 0; i < FILES; i++) {
        Str path = {0};
        str_printf(&path, "%s/%s", dir, files[i].name);
        NewFile file;
        int status = newfile_open(&file, path.s, e);
        free(path.s);
        if (status) return -1;
        Dice dice = dice_for(files[i].name);
        files[i].write(file.f, &dice);
        if (newfile_close(&file, true, e)) return -1;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3 || argv[1][0] == '-') die_usage("usage: world DIR [seed]");
    uint64_t seed = 1;
    if (argc == 3) {
        char *end;
        errno = 0;
        seed = strtoull(argv[2], &end, 10);
        if (argv[2][0] < '0' || argv[2][0] > '9' || *end || errno)
            die_usage("the seed is \"%s\", expected a number from 0 to 18446744073709551615",
                      argv[2]);
    }
    Error e;
    if (write_world(argv[1], seed, &e)) die("%s", e.text);
    return 0;
}
