/*
 * preferences.c - pairs of answers to one prompt: see pairs_read in records.h.
 */
#include "text/reading.h"

static const char EXPECTED[] =
    "chosen and rejected, together with instruction[/input], prompt, question or messages, or "
    "nothing if both begin with the prompt";

/* A prompt of hh-rlhf ends after the last of these. */
static const char ASSISTANT[] = "\n\nAssistant:";

size_t dialogue_prompt_end(Slice text) {
    const size_t n = sizeof ASSISTANT - 1;
    for (size_t end = text.n; end >= n; end--)
        if (!memcmp(text.s + end - n, ASSISTANT, n)) return end;
    return 0;
}

/* Gets a number from low to high, if the object has this field. */
static int get_number(Reading *x, const char *name, double low, double high, float *out) {
    const json_t *value = reading_field(x, name);
    if (!value) return 0;
    if (!json_is_number(value))
        return fault(x->fault, name, "\"%s\" is %s, expected a number", name,
                     json_type_name(value));
    const double number = json_number_value(value);
    if (!(number >= low && number <= high))
        return fault(x->fault, name, "\"%s\" is %g, expected a number from %g to %g", name, number,
                     low, high);
    *out = (float)number;
    return 0;
}

static int add_answer(Reading *x, const char *name, Slice answer) {
    if (answer.n == 0)
        return fault(x->fault, name, "the answer in \"%s\" is empty, so there is nothing to judge",
                     name);
    reading_add_response(x, answer);
    return 0;
}

static int add_answers(Reading *x, Slice chosen, Slice rejected) {
    return add_answer(x, "chosen", chosen) || add_answer(x, "rejected", rejected) ? -1 : 0;
}

const char *reading_prompt_field(const Reading *x) {
    static const char *const names[] = {"instruction", "prompt", "question",
                                        "query",       "input",  "problem"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (reading_has(x, names[i])) return names[i];
    return NULL;
}

/* ---- answers that are texts ------------------------------------------------------------------ */

/* Reads the prompt of both texts, which begin with it, if they are dialogues of hh-rlhf. Else the
   prompt is empty, and each text is judged as a whole. */
static int read_shared_prompt(Reading *x, Slice *chosen, Slice *rejected) {
    const size_t n = dialogue_prompt_end(*chosen), m = dialogue_prompt_end(*rejected);
    const char *without = n ? "rejected" : "chosen";
    if (!n != !m)
        return fault(x->fault, without,
                     "there is no prompt, and \"%s\" has no \"\\n\\nAssistant:\" to end one, which "
                     "the other text has",
                     without);
    if (n != m || memcmp(chosen->s, rejected->s, n)) return JSONL_LEFT_OUT;
    Str text = {0};
    x->bare = !x->style->given;
    str_add(&text, chosen->s, n);
    reading_add_span(x, &text, false);
    *chosen = (Slice){chosen->s + n, chosen->n - n};
    *rejected = (Slice){rejected->s + n, rejected->n - n};
    return 0;
}

static int nothing_to_answer(Reading *x, const char *field) {
    return fault(x->fault, field,
                 "the messages before the answer do not end with a user's, so there is nothing to "
                 "answer");
}

/* Reads the conversation in field `list` up to the question that both answers follow. */
static int read_history(Reading *x, const char *list) {
    Talk talk = {0};
    int status = reading_messages(x, list, &talk);
    if (!status && !talk.asked) status = nothing_to_answer(x, list);
    if (status) {
        talk_free(&talk);
        return status;
    }
    reading_close_history(x);
    reading_add_span(x, &talk.pending, false);
    talk_free(&talk);
    return 0;
}

/* Both answers may repeat the prompt, as in the texts that hh-rlhf's were cut from: they begin
   behind it. A few characters can be the beginning of two answers by chance. */
static void cut_repeated_prompt(const Reading *x, Slice *chosen, Slice *rejected) {
    enum { BY_CHANCE = 16 };
    const json_t *value = json_object_get(x->object, "prompt");
    const Slice prompt = json_is_string(value) ? json_slice(value) : (Slice){0};
    Slice *const answer[] = {chosen, rejected};
    if (prompt.n < BY_CHANCE) return;
    for (int i = 0; i < 2; i++)
        if (answer[i]->n <= prompt.n || memcmp(answer[i]->s, prompt.s, prompt.n)) return;
    for (int i = 0; i < 2; i++)
        *answer[i] = (Slice){answer[i]->s + prompt.n, answer[i]->n - prompt.n};
}

static int read_texts(Reading *x) {
    Slice chosen, rejected;
    if (reading_text(x, "chosen", &chosen) || reading_text(x, "rejected", &rejected)) return -1;
    const char *name = reading_prompt_field(x);
    int status;
    if (name && json_is_array(json_object_get(x->object, name)))
        status = read_history(x, name);
    else if (name)
        status = reading_prompt(x, name, !strcmp(name, "prompt"), NULL, NULL);
    else
        status = read_shared_prompt(x, &chosen, &rejected);
    if (status) return status;
    cut_repeated_prompt(x, &chosen, &rejected);
    reading_close_history(x);
    snprintf(x->kind, sizeof x->kind, "%.20s%schosen/rejected", name ? name : "", name ? "/" : "");
    return add_answers(x, chosen, rejected);
}

/* ---- answers that are messages --------------------------------------------------------------- */

/* The last message of a field, which is a list of messages or one message. */
static const json_t *last_message(const json_t *value) {
    return json_is_object(value) ? value : json_array_get(value, json_array_size(value) - 1);
}

/* Gets the assistant's answer that ends field `name`. */
static int get_answer(Reading *x, const char *name, Slice *out) {
    const json_t *turn = last_message(reading_field(x, name)), *role = message_role(turn),
                 *content = message_content(turn);
    if ((!json_string_is(role, "assistant") && !json_string_is(role, "gpt")) ||
        !json_is_string(content))
        return fault(x->fault, name,
                     "\"%s\" does not end in {\"role\": \"assistant\", \"content\": string}", name);
    *out = json_slice(content);
    return 0;
}

static size_t messages_in(const json_t *value) {
    return json_is_object(value) ? 1 : json_array_size(value);
}

/* Do two whole conversations differ only in their last message? */
static bool same_before_last(const json_t *a, const json_t *b) {
    const size_t n = json_array_size(a);
    bool same = n == json_array_size(b);
    for (size_t i = 0; same && i + 1 < n; i++)
        same = json_equal(json_array_get(a, i), json_array_get(b, i));
    return same;
}

/* Is this text a message of the conversation? */
static bool is_said(const json_t *turns, const json_t *text) {
    bool said = false;
    for (size_t i = 0; i < json_array_size(turns); i++)
        said |= json_equal(json_object_get(json_array_get(turns, i), "content"), text);
    return said;
}

/* Reads chosen and rejected as whole conversations: their messages before the last are the prompt,
   which a field "prompt" may repeat. */
static int read_whole_conversations(Reading *x, Slice better, Slice worse) {
    const json_t *chosen = json_object_get(x->object, "chosen"),
                 *rejected = json_object_get(x->object, "rejected");
    if (!same_before_last(chosen, rejected)) return JSONL_LEFT_OUT;
    const char *name = reading_prompt_field(x);
    if (name && is_said(chosen, json_object_get(x->object, name))) reading_field(x, name);
    // the conversation without its last message, in an object of its own
    const json_t *whole = x->object;
    json_t *history = json_copy((json_t *)chosen), *object = json_object();
    json_array_remove(history, json_array_size(history) - 1);
    json_object_set_new(object, "chosen", history);
    if (json_object_get(whole, "system"))
        json_object_set(object, "system", json_object_get(whole, "system"));
    x->object = object;
    int status = read_history(x, "chosen");
    x->object = whole;
    json_decref(object);
    snprintf(x->kind, sizeof x->kind, "chosen/rejected messages");
    return status ? -1 : add_answers(x, better, worse);
}

static int read_messages(Reading *x) {
    const json_t *chosen = json_object_get(x->object, "chosen"),
                 *rejected = json_object_get(x->object, "rejected");
    const size_t m = messages_in(chosen), k = messages_in(rejected);
    const char *name = reading_prompt_field(x), *list = reading_conversation(x);
    const bool prompt_is_list = name && json_is_array(json_object_get(x->object, name));
    const char *more = m == 1 ? "rejected" : "chosen";
    if (!m || !k || (prompt_is_list && (m > 1 || k > 1)))
        return fault(x->fault, more, "\"%s\" has %zu messages, expected %s", more, m == 1 ? k : m,
                     prompt_is_list ? "one, the answer to \"prompt\"" : "at least one");
    Slice better, worse;
    if (get_answer(x, "chosen", &better) || get_answer(x, "rejected", &worse)) return -1;
    if (m > 1 || k > 1) return read_whole_conversations(x, better, worse);
    int status;
    if (prompt_is_list)
        status = read_history(x, name);
    else if (name)
        status = reading_prompt(x, name, false, NULL, NULL);
    else if (list)
        status = read_history(x, name = list);
    else
        status = nothing_to_answer(x, "chosen");
    if (status) return status;
    reading_close_history(x);
    snprintf(x->kind, sizeof x->kind, "%.20s/chosen/rejected messages", name);
    return add_answers(x, better, worse);
}

/* ---- a pair ---------------------------------------------------------------------------------- */

/* Other names of a pair, as they are known: StackExchange's answers, of which j is preferred;
   OpenAI's preferences; those of ms-swift; and others. */
static const char *const other_names[][2] = {
    {"response_j", "response_k"},
    {"chosen_response", "rejected_response"},
    {"preferred_output", "non_preferred_output"},
    {"response", "rejected_response"},
};

/* Gives a copy of the object the names of a pair: *copy, to be freed with json_decref. NULL: it has
   them, or no known others. */
static json_t *renamed_pair(Reading *x) {
    const char *better = NULL, *worse = NULL;
    const json_t *object = x->object, *id = json_object_get(object, "better_response_id");
    if (reading_has(x, "chosen") || reading_has(x, "rejected")) return NULL;
    for (size_t i = 0; i < sizeof other_names / sizeof *other_names && !better; i++)
        if (reading_has(x, other_names[i][0]) && reading_has(x, other_names[i][1])) {
            better = other_names[i][0];
            worse = other_names[i][1];
        }
    // PKU-SafeRLHF: two responses, and the number of the better one
    const double number = json_is_number(id) ? json_number_value(id) : NAN;
    if (!better && (number == 0 || number == 1) && reading_has(x, "response_0") &&
        reading_has(x, "response_1")) {
        const bool second = json_number_value(reading_field(x, "better_response_id")) == 1;
        better = second ? "response_1" : "response_0";
        worse = second ? "response_0" : "response_1";
    }
    if (!better) return NULL;
    json_t *copy = json_copy((json_t *)object);
    json_object_set(copy, "chosen", (json_t *)reading_field(x, better));
    json_object_set(copy, "rejected", (json_t *)reading_field(x, worse));
    json_object_del(copy, better);
    json_object_del(copy, worse);
    json_t *messages = json_object_get(json_object_get(object, "input"), "messages");
    if (messages) {  // OpenAI's prompt
        reading_field(x, "input");
        json_object_set(copy, "prompt", messages);
        json_object_del(copy, "input");
    }
    return copy;
}

static int read_named_pair(Reading *x) {
    if (!reading_has(x, "chosen") || !reading_has(x, "rejected"))
        return reading_unknown(x, EXPECTED);
    x->record->margin = 0;
    x->record->p_chosen = 1;
    if (get_number(x, "margin", -1e6, 1e6, &x->record->margin) ||
        get_number(x, "p_chosen", 0, 1, &x->record->p_chosen))
        return -1;
    const json_t *chosen = json_object_get(x->object, "chosen"),
                 *rejected = json_object_get(x->object, "rejected");
    const bool a = json_is_array(chosen) || json_is_object(chosen),
               b = json_is_array(rejected) || json_is_object(rejected);
    if (a != b)
        return fault(x->fault, NULL,
                     "chosen and rejected must both be strings, or both be lists of messages");
    return a ? read_messages(x) : read_texts(x);
}

int reading_pair(Reading *x) {
    const json_t *object = x->object;
    json_t *copy = renamed_pair(x);
    if (copy) x->object = copy;
    const int status = read_named_pair(x);
    x->object = object;
    json_decref(copy);
    return status;
}
