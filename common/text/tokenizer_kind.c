/*
 * tokenizer_kind.c - is the tokenizer of a tokenizer.json of GPT-2's kind?
 *
 * The file can describe many kinds of tokenizers. The reader here would read any other than GPT-2's
 * wrongly, so it refuses them.
 */
#include "text/json.h"
#include "text/private.h"

static int refuse(const char *path, Error *e, const char *what) {
    return fail(e, "%s: %s", path, what);
}

/* The members of a Sequence in `list`, those within a member put in its place; or the object alone.
   null has none. To be released. */
static json_t *members_of(const json_t *j, const char *list) {
    json_t *all = json_array();
    const json_t *members = json_object_get(j, list);
    if (!j || json_is_null(j)) return all;
    if (!json_string_is(json_object_get(j, "type"), "Sequence") || !json_is_array(members)) {
        json_array_append(all, (json_t *)j);
        return all;
    }
    for (size_t i = 0; i < json_array_size(members); i++) {
        json_t *inner = members_of(json_array_get(members, i), list);
        json_array_extend(all, inner);
        json_decref(inner);
    }
    return all;
}

/* Does it cut a text into the pieces of GPT-2's pattern, as ByteLevel does by itself? */
static bool is_gpt2_split(const json_t *pre) {
    static const char *const patterns[] = {
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        "(?:'(?:[sdmt]|ll|ve|re))| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"};
    const json_t *regex = json_object_get(json_object_get(pre, "pattern"), "Regex"),
                 *behavior = json_object_get(pre, "behavior"),
                 *invert = json_object_get(pre, "invert");
    bool known = false;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        known |= json_string_is(regex, patterns[i]);
    // the pattern matches everywhere, so nothing is left between its matches
    return known && json_string_is(json_object_get(pre, "type"), "Split") &&
           ((json_string_is(behavior, "Isolated") && !json_is_true(invert)) ||
            (json_string_is(behavior, "Removed") && json_is_true(invert)));
}

/* The pre-tokenizer is ByteLevel with its pattern, or Split by that pattern and ByteLevel without
   one. */
static int check_pre_tokenizer(const json_t *top, const char *path, Error *e) {
    json_t *all = members_of(json_object_get(top, "pre_tokenizer"), "pretokenizers");
    const size_t n = json_array_size(all);
    const json_t *first = json_array_get(all, 0), *last = json_array_get(all, n ? n - 1 : 0);
    const json_t *type = json_object_get(first, "type");
    const bool byte_level = json_string_is(json_object_get(last, "type"), "ByteLevel"),
               own_pattern = !json_is_false(json_object_get(last, "use_regex")),
               space = !json_is_false(json_object_get(last, "add_prefix_space"));
    const bool metaspace = json_string_is(type, "Metaspace");
    const bool split = n == 2 && byte_level && !own_pattern && !space && is_gpt2_split(first);
    json_decref(all);
    if (metaspace)
        return refuse(
            path, e,
            "pre_tokenizer is of type Metaspace, as in KoGPT2: only GPT-2s with GPT-2's "
            "own byte-level tokenizer can be read, such as gpt2, distilgpt2 and DialoGPT");
    if (split || (n == 1 && byte_level && own_pattern)) return 0;
    return fail(e, "%s: pre_tokenizer is not GPT-2's: expected type ByteLevel, found %.40s%s", path,
                json_is_string(type) ? json_string_value(type) : "none",
                byte_level ? " with another pattern" : "");
}

/* Refuses a post-processor that adds tokens. ByteLevel only moves offsets, and a template of the
   text alone changes nothing. */
static int check_post_processor(const json_t *top, const char *path, Error *e) {
    json_t *all = members_of(json_object_get(top, "post_processor"), "processors");
    const json_t *post, *bad = NULL;
    size_t i;
    json_array_foreach(all, i, post) {
        const json_t *single = json_object_get(post, "single");
        const bool text = json_string_is(json_object_get(post, "type"), "TemplateProcessing") &&
                          json_array_size(single) == 1 &&
                          json_object_get(json_array_get(single, 0), "Sequence");
        if (!text && !json_string_is(json_object_get(post, "type"), "ByteLevel")) bad = post;
    }
    const json_t *type = json_object_get(bad, "type");
    json_decref(all);
    if (!bad) return 0;
    return fail(e,
                "%s: post_processor %.40s adds tokens to every text, which is not implemented; set "
                "\"post_processor\" to null, and if the model was trained with a token at the "
                "beginning, write it there in --template",
                path, json_is_string(type) ? json_string_value(type) : "");
}

/* Is it null, or a Sequence of none? */
static bool is_nothing(const json_t *normalizer) {
    json_t *all = members_of(normalizer, "normalizers");
    const bool nothing = !json_array_size(all);
    json_decref(all);
    return nothing;
}

int tokenizer_check_kind(const json_t *top, const char *path, Error *e) {
    const json_t *model = json_object_get(top, "model"), *type = json_object_get(model, "type");
    if (!json_is_object(model)) return refuse(path, e, "\"model\" is missing or not an object");
    if (type && !json_string_is(type, "BPE"))
        return refuse(path, e, "model.type is not \"BPE\", as in GPT-2");
    if (check_pre_tokenizer(top, path, e)) return -1;
    if (!is_nothing(json_object_get(top, "normalizer")))
        return refuse(path, e, "has a normalizer; GPT-2 has none");
    if (json_is_true(json_object_get(model, "ignore_merges")))
        return refuse(path, e, "model.ignore_merges is true; GPT-2 always merges");
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return refuse(path, e, "model.dropout makes the tokens of a text random; set it to null");
    static const char *affix[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(model, affix[i]);
        if (value && !json_is_null(value) && !json_string_is(value, ""))
            return fail(e, "%s: model.%s is set; GPT-2 has none", path, affix[i]);
    }
    return check_post_processor(top, path, e);
}

const json_t *tokenizer_prefix_space(const json_t *top) {
    json_t *all = members_of(json_object_get(top, "pre_tokenizer"), "pretokenizers");
    const size_t n = json_array_size(all);
    const json_t *space = json_object_get(json_array_get(all, n ? n - 1 : 0), "add_prefix_space");
    json_decref(all);
    return space;
}
