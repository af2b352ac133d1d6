/*
 * hf.c - config.json of a model directory, as Hugging Face's transformers reads and writes it.
 * hf_load.c reads the weights, hf_save.c writes a directory.
 *
 * Nothing that a file says is believed before it is checked against the file's size, so memory use
 * is proportional to the real size of the files.
 */
#include "files/hf.h"
#include "files/json_file.h"
#include "model/gpt2.h"
#include "util.h"

#include <jansson.h>
#include <stddef.h>

/* ---- config.json ----------------------------------------------------------------------------- */

/* The sizes of a model. The limits are far above any GPT-2, and low enough that the product of two
   sizes, the layers and four bytes fits in 63 bits. */
static const struct Size {
    const char *name, *alias;  // transformers accepts both
    size_t field;
    int limit;
} sizes[] = {
    {"n_positions", "max_position_embeddings", offsetof(GPT2Config, n_positions), 1000000},
    {"vocab_size", NULL, offsetof(GPT2Config, vocab_size), 10000000},
    {"n_layer", "num_hidden_layers", offsetof(GPT2Config, n_layer), 1000},
    {"n_head", "num_attention_heads", offsetof(GPT2Config, n_head), 65536},
    {"n_embd", "hidden_size", offsetof(GPT2Config, n_embd), 65536},
    {"n_inner", NULL, offsetof(GPT2Config, n_inner), 1000000},
};

static int *size_in(GPT2Config *c, const struct Size *size) {
    return (int *)((char *)c + size->field);
}

static int read_size(json_t *config, const char *path, const struct Size *size, int *out,
                     Error *e) {
    json_t *value = json_object_get(config, size->name),
           *other = size->alias ? json_object_get(config, size->alias) : NULL;
    const char *key = value || !other ? size->name : size->alias;
    if (value && other && !json_equal(value, other)) {
        char *text = shown_value(other);
        refuse_value(e, path, config, key, "%s, the value of its other name %s", text, size->alias);
        free(text);
        return -1;
    }
    if (!value) value = other;
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > size->limit)
        return refuse_value(e, path, config, key, "a whole number from 1 to %d", size->limit);
    *out = (int)json_integer_value(value);
    return 0;
}

static int read_sizes(json_t *config, const char *path, GPT2Config *c, Error *e) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        json_t *value = json_object_get(config, sizes[i].name);
        if (!strcmp(sizes[i].name, "n_inner") && (!value || json_is_null(value)))
            c->n_inner = 4 * c->n_embd;
        else if (read_size(config, path, &sizes[i], size_in(c, &sizes[i]), e))
            return -1;
    }
    if (c->n_embd % c->n_head)
        return refuse_value(e, path, config, "n_embd", "a multiple of n_head, which is %d",
                            c->n_head);
    return 0;
}

/* Switches that change the mathematics. An absent key has its usual value. reorder_and_upcast_attn
   is not listed: it reorders a computation in half precision, and changes nothing in float32. */
static int check_switches(json_t *config, const char *path, Error *e) {
    static const struct {
        const char *name;
        bool usual;
        const char *why;
    } switches[] = {
        {"scale_attn_weights", true, "attention is scaled by 1/sqrt(head size)"},
        {"scale_attn_by_inverse_layer_idx", false, "attention is scaled equally in every layer"},
        {"add_cross_attention", false, "there is no encoder to attend to"},
    };
    // bits other than those of plain weights, and heads that are missing in some layers
    static const char *const absent[] = {"quantization_config", "pruned_heads"};
    for (int i = 0; i < 2; i++) {
        json_t *value = json_object_get(config, absent[i]);
        if (json_is_null(value) || !value || (json_is_object(value) && !json_object_size(value)))
            continue;
        return refuse_value(e, path, config, absent[i],
                            "nothing: save the model without it (in transformers: dequantize(), or "
                            "from_pretrained of the base)");
    }
    json_t *tied = json_object_get(config, "tie_word_embeddings");
    if (tied && !json_is_boolean(tied))  // false: the weights must show a head that is equal
        return refuse_value(e, path, config, "tie_word_embeddings", "true or false");
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        json_t *value = json_object_get(config, switches[i].name);
        if (value && !(json_is_boolean(value) && json_is_true(value) == switches[i].usual))
            return refuse_value(e, path, config, switches[i].name, "%s: here %s",
                                switches[i].usual ? "true" : "false", switches[i].why);
    }
    return 0;
}

bool hf_is_untied(const char *dir) {
    char *path = path_join(dir, "config.json");
    json_t *config = read_json(path, MAX_CONFIG, NULL);
    const bool untied = json_is_false(json_object_get(config, "tie_word_embeddings"));
    json_decref(config);
    free(path);
    return untied;
}

static int check_kind(json_t *config, const char *path, Error *e) {
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (!type || strcmp(type, "gpt2"))
        return refuse_value(e, path, config, "model_type",
                            "\"gpt2\": other architectures are not implemented");
    // both names mean the tanh approximation of GELU
    json_t *value = json_object_get(config, "activation_function");
    const char *activation = value ? json_string_value(value) : "gelu_new";
    if (!activation || (strcmp(activation, "gelu_new") && strcmp(activation, "gelu_pytorch_tanh")))
        return refuse_value(e, path, config, "activation_function",
                            "\"gelu_new\" or \"gelu_pytorch_tanh\"");
    return 0;
}

/* A GPT2ForSequenceClassification has a scalar head if it has one label, and is refused otherwise.
   Any other architecture counts as a language model: config.json does not mention the head of a
   reward model in TRL's older form, only its weights show it. */
static int read_head(json_t *config, const char *path, GPT2Config *c, Error *e) {
    const char *kind =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    if (!kind || strcmp(kind, "GPT2ForSequenceClassification")) return 0;
    c->head = SCORE_HEAD;
    // num_labels is not stored; without id2label there are two
    json_t *labels = json_object_get(config, "id2label");
    size_t n = labels ? json_object_size(labels) : 2;
    if (n != 1)
        return fail(e, "%s: a classifier with %zu labels (id2label), expected 1: a score", path, n);
    return 0;
}

static int parse_config(json_t *config, const char *path, GPT2Config *c, Error *e) {
    *c = (GPT2Config){0};
    if (check_kind(config, path, e) || check_switches(config, path, e) ||
        read_sizes(config, path, c, e) ||
        read_fraction(config, path, "layer_norm_epsilon", 1e-12, 1e-5f, &c->layer_norm_epsilon,
                      e) ||
        read_fraction(config, path, "embd_pdrop", 0, 0.1f, &c->embd_pdrop, e) ||
        read_fraction(config, path, "attn_pdrop", 0, 0.1f, &c->attn_pdrop, e) ||
        read_fraction(config, path, "resid_pdrop", 0, 0.1f, &c->resid_pdrop, e) ||
        read_head(config, path, c, e))
        return -1;
    return 0;
}

int hf_config(const char *dir, GPT2Config *config, Error *e) {
    char *path = path_join(dir, "config.json");
    json_t *json = NULL;
    if (file_exists(path) || (errno != ENOENT && errno != ENOTDIR))
        json = read_json(path, MAX_CONFIG, e);
    else if (!exists_in(dir, ".") && file_exists(dir))
        fail(e, "%s is a file; --model takes the directory that holds it and its config.json", dir);
    else if (exists_in(dir, "hparams.json") || exists_in(dir, "encoder.json"))
        fail(e,
             "%s holds OpenAI's own TensorFlow files of GPT-2; make gpt2 fetches the same weights "
             "in Hugging Face's form",
             dir);
    else if (exists_in(dir, "adapter_config.json"))
        fail(e,
             "%s holds an adapter, not a model; give it to ./lora or ./adapter, with --model BASE "
             "--adapter %s",
             dir, dir);
    else
        fail(e,
             "%s does not exist; a model is a directory of Hugging Face's files, not a name of the "
             "hub: make gpt2 fetches one into models/gpt2",
             path);
    int status = json ? parse_config(json, path, config, e) : -1;
    json_decref(json);
    free(path);
    return status;
}

/* ---- config.json of a model that is saved ---------------------------------------------------- */

/* The config of a model that was not loaded from a directory. */
static json_t *new_config(const GPT2Config *c) {
    // 50256 is <|endoftext|> of GPT-2's own vocabulary
    json_t *end = c->vocab_size > 50256 ? json_integer(50256) : json_null();
    return json_pack("{s:s, s:s, s:f, s:O, s:f, s:o, s:f, s:f, s:i, s:i, s:i, s:i, s:i, s:f, s:i}",
                     "model_type", "gpt2", "activation_function", "gelu_new", "attn_pdrop",
                     shortest_decimal(c->attn_pdrop), "bos_token_id", end, "embd_pdrop",
                     shortest_decimal(c->embd_pdrop), "eos_token_id", end, "initializer_range",
                     0.02, "layer_norm_epsilon", shortest_decimal(c->layer_norm_epsilon), "n_embd",
                     c->n_embd, "n_head", c->n_head, "n_inner", c->n_inner, "n_layer", c->n_layer,
                     "n_positions", c->n_positions, "resid_pdrop", shortest_decimal(c->resid_pdrop),
                     "vocab_size", c->vocab_size);
}

/* Makes a config describe the model as it is saved: float32, not quantised, with these sizes. */
static void patch_config(json_t *config, const GPT2Config *c) {
    json_object_set_new(config, "architectures",
                        json_pack("[s]", c->head == SCORE_HEAD ? "GPT2ForSequenceClassification"
                                                               : "GPT2LMHeadModel"));
    if (c->head == SCORE_HEAD) {
        // one label; transformers needs a pad token to batch several texts
        json_object_set_new(config, "id2label", json_pack("{s:s}", "0", "LABEL_0"));
        json_object_set_new(config, "label2id", json_pack("{s:i}", "LABEL_0", 0));
        json_t *pad = json_object_get(config, "pad_token_id"),
               *end = json_object_get(config, "eos_token_id");
        if ((!pad || json_is_null(pad)) && end) json_object_set(config, "pad_token_id", end);
    }
    // transformers 5 renamed torch_dtype to dtype, and still reads the older name
    const bool newer = json_object_get(config, "dtype");
    if (newer) json_object_set_new(config, "dtype", json_string("float32"));
    if (!newer || json_object_get(config, "torch_dtype"))
        json_object_set_new(config, "torch_dtype", json_string("float32"));
    if (json_object_get(config, "tie_word_embeddings"))
        json_object_set_new(config, "tie_word_embeddings", json_true());
    json_object_del(config, "quantization_config");
    json_object_del(config, "_pre_quantization_dtype");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *alias = sizes[i].alias;
        json_t *value = json_object_get(config, sizes[i].name);
        int now = *size_in((GPT2Config *)c, &sizes[i]);
        if (!strcmp(sizes[i].name, "n_inner") && !json_is_integer(value) && now == 4 * c->n_embd)
            continue;
        if (value || !alias || !json_object_get(config, alias))
            json_object_set_new(config, sizes[i].name, json_integer(now));
        if (alias && json_object_get(config, alias))
            json_object_set_new(config, alias, json_integer(now));
    }
}

char *hf_config_text(const GPT2Config *c, const Str *before, Error *e) {
    json_t *config = before ? parse_json(before->s, before->n, 0, "config.json", e) : new_config(c);
    if (!config) return NULL;
    patch_config(config, c);
    char *text = json_text(config);
    json_decref(config);
    if (!text) fail(e, "out of memory for config.json");
    return text;
}

int hf_check_config(const GPT2Config *c, Error *e) {
    GPT2Config back;
    char *text = hf_config_text(c, NULL, e);
    json_t *config = text ? parse_json(text, strlen(text), 0, "config.json", e) : NULL;
    const int status = config ? parse_config(config, "config.json", &back, e) : -1;
    json_decref(config);
    free(text);
    return status;
}
