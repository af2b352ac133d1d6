/*
 * usage.c - what a model directory says about its use: see usage.h.
 */
#include "files/usage.h"

#include "files/json_file.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

static const char TEMPLATE_FILE[] = "template.txt", JINJA_FILE[] = "chat_template.jinja";
static const char CONFIG[] = "config.json", GENERATION[] = "generation_config.json",
                  TOKENIZER[] = "tokenizer_config.json", SPECIAL[] = "special_tokens_map.json";

/* ---- JSON files ------------------------------------------------------------------------------ */

/* Turns whole numbers that were read as reals back into integers. model_max_length is too large for
   one and stays a real. */
static json_t *with_integers(json_t *j) {
    const char *key;
    json_t *value, *copy;
    size_t i;
    const double x = json_is_real(j) ? json_real_value(j) : 0.5;
    if (x == rint(x) && fabs(x) < 1e15) return json_integer((json_int_t)x);
    if (json_is_object(j)) {
        copy = json_object();
        json_object_foreach(j, key, value) json_object_set_new(copy, key, with_integers(value));
        return copy;
    }
    if (!json_is_array(j)) return json_incref(j);
    copy = json_array();
    json_array_foreach(j, i, value) json_array_append_new(copy, with_integers(value));
    return copy;
}

/* The text of a file as a JSON object. NULL with e filled if it is none. */
static json_t *parse_object(const Str *text, const char *name, Error *e) {
    json_error_t where;
    if (refuse_mark(name, text->s, text->n, e)) return NULL;
    json_t *read = json_loadb(text->s, text->n, JSON_DECODE_INT_AS_REAL, &where);
    json_t *json = json_is_object(read) ? with_integers(read) : NULL;
    if (!json) fail(e, "%s: not a JSON object", name);
    json_decref(read);
    return json;
}

/* dir/name as a JSON object. NULL if it does not exist; also if it is damaged, with e filled. */
static json_t *read_object(const char *dir, const char *name, Error *e) {
    char *path = path_join(dir, name);
    Str text = {0};
    json_t *json = NULL;
    if (file_exists(path) && !read_regular_file(path, MAX_CONFIG, &text, e))
        json = parse_object(&text, path, e);
    free(text.s);
    free(path);
    return json;
}

/* The same of a file in memory. */
static json_t *object_of(const Bundle *files, const char *name, Error *e) {
    const Str *text = bundle_get(files, name);
    return text ? parse_object(text, name, e) : NULL;
}

static int set_object(Bundle *files, const char *name, json_t *json, Error *e) {
    char *text = json_text(json);
    const int status = text ? 0 : fail(e, "%s: bad text", name);
    if (text) bundle_set_line(files, name, text);
    free(text);
    return status;
}

/* ---- templates ------------------------------------------------------------------------------- */

/* What a link out of the directory leads to would be published with the result. */
static int check_link(const char *dir, const char *name, Error *e) {
    char *path = path_join(dir, name);
    const int status =
        bundle_leads_out(dir, path)
            ? fail(e, "%s is a link out of its directory; replace it by a copy", path)
            : 0;
    free(path);
    return status;
}

static int read_small_file(const char *dir, const char *name, Str *text, Error *e) {
    char *path = path_join(dir, name);
    int status = check_link(dir, name, e);
    if (!status) status = read_regular_file(path, MAX_TEMPLATE, text, e);
    if (!status && memchr(text->s, 0, text->n))
        status = fail(e, "%s: a NUL byte, expected a text", path);
    if (!status) status = refuse_mark(path, text->s, text->n, e);
    free(path);
    return status;
}

/* The chat template of a tokenizer_config.json: a text, or the one named "default" in a list. */
static const char *config_chat_template(const json_t *config) {
    const json_t *value = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (json_is_string(value)) return json_string_value(value);
    json_array_foreach(value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && !strcmp(name, "default"))
            return json_string_value(json_object_get(item, "template"));
    }
    return NULL;
}

/* Reads the chat template that transformers would use. *from: its file; NULL: there is none. */
static int read_chat_template(const char *dir, Str *out, const char **from, Error *e) {
    char *path = path_join(dir, JINJA_FILE);
    int status = 0;
    *from = NULL;
    if (file_exists(path)) {
        *from = JINJA_FILE;
        status = read_small_file(dir, JINJA_FILE, out, e);
    } else if (exists_in(dir, TOKENIZER)) {
        status = check_link(dir, TOKENIZER, e);
        json_t *config = status ? NULL : read_object(dir, TOKENIZER, e);
        const char *text = config_chat_template(config);
        if (text) *from = TOKENIZER;
        if (text) str_add(out, text, strlen(text));
        json_decref(config);
    }
    free(path);
    return status;
}

/* True when dir/config.json belongs to DialoGPT or to a model made from it. */
static bool is_dialogpt(const char *dir) {
    json_t *config = read_object(dir, CONFIG, NULL);
    const bool is = json_is_object(
        json_object_get(json_object_get(config, "task_specific_params"), "conversational"));
    json_decref(config);
    return is;
}

/* A token of the tokenizer by its use, to be freed; NULL: it has none. GPT-2's own class has
   <|endoftext|>. */
static char *token_of_use(const char *dir, const char *use) {
    static const char *const names[] = {TOKENIZER, SPECIAL};
    char *text = NULL;
    bool named = false;
    const char *class = NULL;
    json_t *json[2];
    for (int i = 0; i < 2; i++) {
        json[i] = read_object(dir, names[i], NULL);
        const json_t *value = json_object_get(json[i], use);
        const char *content =
            json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
        if (content && !text) text = xstrdup(content);
        named |= value != NULL;
    }
    class = json_string_value(json_object_get(json[0], "tokenizer_class"));
    if (!named && (!class || !strncmp(class, "GPT2Tokenizer", 13))) text = xstrdup(END_OF_TEXT);
    json_decref(json[0]);
    json_decref(json[1]);
    return text;
}

int usage_template(const char *dir, const char *end_text, char **template, const char **from,
                   bool *system_said, Error *e) {
    char *path = path_join(dir, TEMPLATE_FILE);
    Str text = {0};
    int status = 0;
    bool said = true;
    *from = NULL;
    *template = NULL;
    if (file_exists(path)) {
        *from = TEMPLATE_FILE;
        status = read_small_file(dir, TEMPLATE_FILE, &text, e);
        if (text.n && text.s[text.n - 1] == '\n') text.s[--text.n] = 0;
        if (!status) *template = xstrdup(text.s);
    } else if (!(status = read_chat_template(dir, &text, from, e)) && *from) {
        char *begin = token_of_use(dir, "bos_token");
        *template = jinja_to_template(text.s, (Marks){end_text, begin}, &said);
        free(begin);
    }
    if (system_said) *system_said = said;
    if (!status && !*template && is_dialogpt(dir)) {
        *template = xstrdup("{instruction}<|endoftext|>");
        *from = CONFIG;
    }
    free(text.s);
    free(path);
    return status;
}

int usage_check_template(const char *line, Error *e) {
    if (strlen(line) + 1 <= MAX_TEMPLATE) return 0;
    return fail(e, "a template of %zu bytes; template.txt has at most %d", strlen(line),
                MAX_TEMPLATE - 1);
}

/* The template's own files replace what another template left behind: chat templates of all names,
   and the one inside tokenizer_config.json. */
static void set_templates(Bundle *files, const Usage *u) {
    if (!u->template) return;
    bundle_set_line(files, TEMPLATE_FILE, u->template);
    bundle_remove_chat_templates(files);
    char *jinja = jinja_of_template(u->template, u->end_text);
    if (jinja) bundle_set_line(files, JINJA_FILE, jinja);
    free(jinja);
}

/* ---- the end and the padding ----------------------------------------------------------------- */

/* Sets a member to a number or, where text is not NULL, to a text. Returns whether that changed
   anything. A text may be an object with its content. */
static bool set_number(json_t *json, const char *key, int number) {
    const json_t *old = json_object_get(json, key);
    if (json_is_integer(old) && json_integer_value(old) == number) return false;
    json_object_set_new(json, key, json_integer(number));
    return true;
}

static bool set_token(json_t *json, const char *key, const char *text) {
    json_t *old = json_object_get(json, key);
    const char *content =
        json_string_value(json_is_object(old) ? json_object_get(old, "content") : old);
    if (content && !strcmp(content, text)) return false;
    json_object_set_new(json, key, json_string(text));
    return true;
}

/* config.json and generation_config.json. An id that the model does not have is mended, too. */
static int set_ids(Bundle *files, const char *name, const Usage *u, long long vocab_size,
                   Error *e) {
    static const char *const others[] = {"bos_token_id", "pad_token_id"};
    if (!bundle_get(files, name)) return 0;
    json_t *json = object_of(files, name, e);
    if (!json) return -1;
    bool changed = set_number(json, "eos_token_id", u->end);
    if (u->scores) changed |= set_number(json, "pad_token_id", u->end);
    for (int i = 0; i < 2; i++) {
        const json_t *id = json_object_get(json, others[i]);
        if (json_is_integer(id) &&
            (json_integer_value(id) < 0 || json_integer_value(id) >= vocab_size))
            changed |= set_number(json, others[i], u->end);
    }
    const int status = changed ? set_object(files, name, json, e) : 0;
    json_decref(json);
    return status;
}

/* tokenizer_config.json and special_tokens_map.json. A token that no file names is <|endoftext|>,
   by GPT-2's own class of tokenizers. */
static int set_tokens(Bundle *files, const Usage *u, Error *e) {
    const bool usual = !strcmp(u->end_text, END_OF_TEXT);
    json_t *config = object_of(files, TOKENIZER, e), *special = object_of(files, SPECIAL, e);
    int status =
        (!config && bundle_get(files, TOKENIZER)) || (!special && bundle_get(files, SPECIAL)) ? -1
                                                                                              : 0;
    bool changed = false, changed_special = false;
    const bool named =
        json_object_get(config, "eos_token") || json_object_get(special, "eos_token");
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    const bool by_class = !class || !strncmp(class, "GPT2Tokenizer", 13);  // null: as if absent
    if (json_object_get(special, "eos_token"))
        changed_special |= set_token(special, "eos_token", u->end_text);
    if (u->scores && json_object_get(special, "pad_token"))
        changed_special |= set_token(special, "pad_token", u->end_text);
    if (!config && !named && !usual) config = json_object();
    if (json_object_get(config, "eos_token") || (config && !named && !(usual && by_class)))
        changed |= set_token(config, "eos_token", u->end_text);
    const json_t *pad = json_object_get(config, "pad_token");
    if (u->scores && pad && !json_is_null(pad))
        changed |= set_token(config, "pad_token", u->end_text);
    // chat_template.jinja says it
    if (u->template && json_object_get(config, "chat_template"))
        changed |= !json_object_del(config, "chat_template");
    if (!status && changed) status = set_object(files, TOKENIZER, config, e);
    if (!status && changed_special) status = set_object(files, SPECIAL, special, e);
    json_decref(config);
    json_decref(special);
    return status;
}

int usage_apply(Bundle *files, const Usage *u, Error *e) {
    json_t *config = object_of(files, CONFIG, e);
    const long long vocab_size = json_integer_value(json_object_get(config, "vocab_size"));
    json_decref(config);
    if (!config || set_ids(files, CONFIG, u, vocab_size, e) ||
        set_ids(files, GENERATION, u, vocab_size, e) || set_tokens(files, u, e))
        return -1;
    set_templates(files, u);
    return 0;
}

static int read_id(const char *dir, const char *name, const char *key) {
    json_t *json = read_object(dir, name, NULL);
    const json_t *id = json_object_get(json, key);
    const json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    json_decref(json);
    return value >= 0 && value < 10000000 ? (int)value : -1;
}

int usage_pad(const char *dir) { return read_id(dir, CONFIG, "pad_token_id"); }

/* The members of generation_config.json that change what transformers' generate answers. */
static const char *const generation_keys[] = {"repetition_penalty",
                                              "no_repeat_ngram_size",
                                              "bad_words_ids",
                                              "suppress_tokens",
                                              "num_beams",
                                              "length_penalty",
                                              "min_length",
                                              "min_new_tokens",
                                              "forced_bos_token_id",
                                              "forced_eos_token_id",
                                              "do_sample",
                                              "temperature",
                                              "top_k",
                                              "top_p",
                                              "typical_p",
                                              "begin_suppress_tokens"};

char *usage_generation(const char *dir) {
    json_t *json = read_object(dir, GENERATION, NULL);
    Str list = {0};
    for (size_t i = 0; i < sizeof generation_keys / sizeof *generation_keys; i++) {
        const json_t *value = json_object_get(json, generation_keys[i]);
        const bool off = !value || json_is_null(value) || json_is_false(value) ||
                         (json_is_array(value) && !json_array_size(value));
        if (!off) str_printf(&list, "%s%s", list.n ? ", " : "", generation_keys[i]);
    }
    json_decref(json);
    return list.s;
}

int usage_other_end(const char *dir, int end) {
    json_t *json = read_object(dir, exists_in(dir, GENERATION) ? GENERATION : CONFIG, NULL);
    const json_t *ids = json_object_get(json, "eos_token_id");
    json_int_t other = -1;
    for (size_t i = 0; i < json_array_size(ids) && other < 0; i++) {
        const json_t *id = json_array_get(ids, i);
        if (json_is_integer(id) && json_integer_value(id) != end) other = json_integer_value(id);
    }
    json_decref(json);
    return other >= 0 && other < 10000000 ? (int)other : -1;
}

int usage_end(const char *dir) {
    return read_id(dir, exists_in(dir, GENERATION) ? GENERATION : CONFIG, "eos_token_id");
}
