/*
 * peft.c - adapter directories of PEFT and of AdapterHub.
 */
#include "files/peft.h"
#include "files/hf.h"
#include "files/json_file.h"
#include "files/safetensors.h"

/* ---- The two libraries ----------------------------------------------------------------------- */

typedef enum { ADAPTER_PEFT, ADAPTER_HUB } AdapterFormat;

/* Reads dir/adapter_config.json and finds out which library wrote it. Sets *path, to be freed, to
 * the file's path for messages. NULL with e filled when neither wrote it. */
static json_t *read_adapter_config(const char *dir, char **path, AdapterFormat *format, Error *e) {
    *path = path_join(dir, "adapter_config.json");
    json_t *config = read_json(*path, MAX_CONFIG, e);
    // absent before the library was called adapters
    json_t *version = json_object_get(config, "version");
    const bool known = version ? !strncmp(json_string_value(version) ?: "", "adapters.", 9)
                               : json_is_string(json_object_get(config, "name"));
    if (!config) return NULL;
    if (json_object_get(config, "peft_type")) {
        *format = ADAPTER_PEFT;
    } else if (known && json_is_object(json_object_get(config, "config"))) {
        *format = ADAPTER_HUB;
    } else {
        fail(e,
             "%s: neither PEFT's (it has no peft_type) nor AdapterHub's (config, and a version "
             "like \"adapters.1.2.0\")",
             *path);
        json_decref(config);
        return NULL;
    }
    return config;
}

/* ---- PEFT ------------------------------------------------------------------------------------ */

/* Keys of PEFT's adapter_config.json that change nothing here: they describe the file, or only the
   start of training. The model itself shows whether it has Conv1D layers (fan_in_fan_out). */
static const char *const harmless[] = {"base_model_name_or_path",
                                       "revision",
                                       "peft_version",
                                       "auto_mapping",
                                       "inference_mode",
                                       "fan_in_fan_out",
                                       "megatron_core",
                                       "qalora_group_size",
                                       "runtime_config",
                                       NULL};
static const char *const understood[] = {
    "peft_type",  "task_type",      "r",    "lora_alpha",        "lora_dropout",
    "use_rslora", "target_modules", "bias", "init_lora_weights", NULL};

static bool among(const char *const *names, const char *name) {
    while (*names && strcmp(*names, name)) names++;
    return *names;
}

/* True for null, false, and an empty array, object or text: the key then has no effect. */
static bool is_nothing(json_t *value) {
    return json_is_null(value) || json_is_false(value) ||
           (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value)) ||
           (json_is_string(value) && !*json_string_value(value));
}

/* The key must be absent, null, or one of the allowed texts (NULL ends them). */
static int expect_text(json_t *config, const char *path, const char *key,
                       const char *const *allowed, const char *expected, Error *e) {
    json_t *value = json_object_get(config, key);
    const char *text = json_string_value(value);
    if (!value || json_is_null(value) || (text && among(allowed, text))) return 0;
    return refuse_value(e, path, config, key, "%s", expected);
}

/* Reads target_modules: an array of names, or "all-linear". */
static int read_targets(json_t *config, const char *path, LoraConfig *lora, Error *e) {
    json_t *value = json_object_get(config, "target_modules"), *name;
    const char *all = json_string_value(value);
    size_t i, n = 0;
    if (all && !strcmp(all, "all-linear")) {
        strcpy(lora->targets, all);
        return 0;
    }
    if (!json_array_size(value))
        return refuse_value(e, path, config, "target_modules",
                            "an array of names, or \"all-linear\" (patterns are not implemented)");
    json_array_foreach(value, i, name) {
        const char *text = json_string_value(name);
        if (!text || !*text || strchr(text, ','))
            return refuse_value(e, path, config, "target_modules",
                                "names of modules, such as \"c_attn\"");
        if (n + strlen(text) + 2 > sizeof lora->targets)
            return refuse_value(e, path, config, "target_modules", "at most %zu characters",
                                sizeof lora->targets);
        n += (size_t)snprintf(lora->targets + n, sizeof lora->targets - n, "%s%s", n ? "," : "",
                              text);
    }
    return 0;
}

static int read_lora(json_t *config, const char *path, LoraConfig *lora, Error *e) {
    static const char *const type[] = {"LORA", NULL};
    static const char *const task[] = {"CAUSAL_LM", NULL};
    static const char *const bias[] = {"none", NULL};
    // the other methods of initialisation change the base model
    static const char *const init[] = {"gaussian", "orthogonal", "eva", NULL};
    json_t *value;
    const char *key;
    *lora = (LoraConfig){0};
    if (expect_text(config, path, "peft_type", type,
                    "\"LORA\": PEFT's other techniques are not implemented", e) ||
        expect_text(config, path, "task_type", task, "\"CAUSAL_LM\" or null: a language model",
                    e) ||
        expect_text(config, path, "bias", bias, "\"none\": trained biases are not implemented", e))
        return -1;
    if (!json_is_boolean(json_object_get(config, "init_lora_weights")) &&
        expect_text(config, path, "init_lora_weights", init,
                    "true: the other methods also change the base model", e))
        return -1;
    json_object_foreach(config, key, value) {
        if (among(harmless, key) || among(understood, key) || is_nothing(value)) continue;
        return refuse_value(
            e, path, config, key,
            "nothing: it is not implemented, and the adapter would compute something else "
            "than in training");
    }
    value = json_object_get(config, "r");
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > 65536)
        return refuse_value(e, path, config, "r", "a whole number from 1 to 65536");
    lora->r = (int)json_integer_value(value);
    value = json_object_get(config, "lora_alpha");
    lora->alpha = (float)(value ? json_number_value(value) : 8);  // the library's default
    if ((value && !json_is_number(value)) || !isfinite(lora->alpha))
        return refuse_value(e, path, config, "lora_alpha", "a number");
    value = json_object_get(config, "use_rslora");
    if (value && !json_is_boolean(value) && !json_is_null(value))
        return refuse_value(e, path, config, "use_rslora", "true or false");
    lora->rslora = json_is_true(value);
    return read_fraction(config, path, "lora_dropout", 0, 0, &lora->dropout, e) ||
                   read_targets(config, path, lora, e)
               ? -1
               : 0;
}

int hf_lora_config(const char *dir, LoraConfig *lora, Error *e) {
    AdapterFormat format;
    char *path;
    json_t *config = read_adapter_config(dir, &path, &format, e);
    int status = config ? 0 : -1;
    if (config && format != ADAPTER_PEFT)
        status = fail(e, "%s is AdapterHub's, a bottleneck adapter; give it to ./adapter", path);
    if (!status) status = read_lora(config, path, lora, e);
    json_decref(config);
    free(path);
    return status;
}

/* Compares two elements of an array of strings, for qsort. */
static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

char *hf_lora_text(const LoraConfig *lora, const char *base) {
    char *names = xstrdup(lora->targets), *rest = names;
    const char *target[sizeof lora->targets];
    size_t n = 0;
    for (char *name; (name = strsep(&rest, ","));) target[n++] = name;
    qsort(target, n, sizeof *target, by_text);  // to PEFT it is a set
    json_t *targets = json_array(), *alpha = json_real(shortest_decimal(lora->alpha));
    for (size_t i = 0; i < n; i++) json_array_append_new(targets, json_string(target[i]));
    if (lora->alpha == floorf(lora->alpha) && fabsf(lora->alpha) < 1e9f) {
        json_decref(alpha);
        alpha = json_integer((json_int_t)lora->alpha);
    }
    if (n == 1 && !strcmp(target[0], "all-linear")) {
        json_decref(targets);
        targets = json_string("all-linear");
    }
    json_t *config = json_pack(
        "{s:n, s:s, s:s, s:b, s:b, s:b, s:n, s:n, s:o, s:f, s:n, s:s, s:i, s:n, s:o, s:s}",
        "auto_mapping", "base_model_name_or_path", base ? base : "", "bias", "none",
        "fan_in_fan_out", 1, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
        "layers_to_transform", "lora_alpha", alpha, "lora_dropout", shortest_decimal(lora->dropout),
        "modules_to_save", "peft_type", "LORA", "r", lora->r, "revision", "target_modules", targets,
        "task_type", "CAUSAL_LM");
    if (!config) die("the name of the base model or of a target is not UTF-8, as JSON requires");
    // older versions do not know the key
    if (lora->rslora) json_object_set_new(config, "use_rslora", json_true());
    char *text = json_text(config);
    json_decref(config);
    free(names);
    return text;
}

/* ---- AdapterHub ------------------------------------------------------------------------------ */

/* Options of a BnConfig that are not implemented, each with the value that has no effect, which an
   absent key has, too. reduction_factor is checked separately. */
static const struct {
    const char *key, *nothing;  // JSON
} plain_bottleneck[] = {
    {"architecture", "null"},    {"output_adapter", "true"},    {"ln_before", "false"},
    {"ln_after", "false"},       {"original_ln_after", "true"}, {"residual_before_ln", "true"},
    {"is_parallel", "false"},    {"use_gating", "false"},       {"scaling", "1.0"},
    {"phm_layer", "false"},      {"inv_adapter", "null"},       {"leave_out", "[]"},
    {"stochastic_depth", "0.0"},
};

static int check_plain(json_t *config, const char *path, Error *e) {
    for (size_t i = 0; i < sizeof plain_bottleneck / sizeof *plain_bottleneck; i++) {
        const char *key = plain_bottleneck[i].key;
        json_t *value = json_object_get(config, key),
               *nothing = json_loads(plain_bottleneck[i].nothing, JSON_DECODE_ANY, NULL);
        bool same = !value || json_equal(value, nothing) ||
                    (json_is_number(value) && json_is_real(nothing) &&
                     json_number_value(value) == json_real_value(nothing));
        json_decref(nothing);
        if (!same)
            return refuse_value(e, path, config, key,
                                "%s: only double_seq_bn and seq_bn are implemented",
                                plain_bottleneck[i].nothing);
    }
    return 0;
}

/* The library's names of the activations. */
static const char *const activation_names[] = {
    [RELU] = "relu", [GELU] = "gelu_new", [SILU] = "swish"};

/* The activation that the library means by a name, or -1. Before version 1 of the library, files
   had no version, and "gelu" meant gelu_new. */
static int activation_of(const char *name, bool versioned) {
    static const struct {
        const char *name;
        int activation;
    } all[] = {{"relu", RELU},
               {"swish", SILU},
               {"silu", SILU},
               {"gelu_new", GELU},
               {"gelu_pytorch_tanh", GELU},
               {"gelu", GELU}};
    const size_t n = sizeof all / sizeof *all - (versioned ? 1 : 0);
    for (size_t i = 0; i < n; i++)
        if (name && !strcmp(name, all[i].name)) return all[i].activation;
    return -1;
}

/* Python's x // y for positive numbers. It is exact even where x / y rounds up to a whole number:
 * 24 // 0.1 is 239. */
static double floor_division(double x, double y) { return rint((x - fmod(x, y)) / y); }

/* whole is all of adapter_config.json. 0, or -1 with e filled. */
static int parse_bottleneck(json_t *whole, const char *path, const GPT2Config *base, Bottleneck *b,
                            Error *e) {
    json_t *config = json_object_get(whole, "config"),
           *factor = json_object_get(config, "reduction_factor"),
           *size = json_object_get(whole, "hidden_size");
    const char *name = json_string_value(json_object_get(whole, "name")),
               *init = json_string_value(json_object_get(config, "init_weights"));
    *b = (Bottleneck){.init = !init || !strcmp(init, "bert") ? BERT : XAVIER,
                      .norms = json_is_true(json_object_get(whole, "train_layernorm"))};
    if (json_object_get(whole, "model_type") &&
        strcmp(json_string_value(json_object_get(whole, "model_type")) ?: "", "gpt2"))
        return refuse_value(e, path, whole, "model_type",
                            "\"gpt2\": the adapter is for another kind of model");
    if (size && !(json_is_integer(size) && json_integer_value(size) == base->n_embd))
        return refuse_value(e, path, whole, "hidden_size",
                            "%d, that of the model: the adapter is for another one", base->n_embd);
    if (!name || !*name || strlen(name) >= sizeof b->name || strchr(name, '.'))
        return refuse_value(e, path, whole, "name", "a name of 1 to %zu bytes without a dot",
                            sizeof b->name - 1);
    strcpy(b->name, name);
    if (check_plain(config, path, e)) return -1;
    if (!json_is_number(factor) || !(json_number_value(factor) > 0) ||
        !(base->n_embd / json_number_value(factor) < 65537))
        return refuse_value(
            e, path, config, "reduction_factor",
            "one number above 0, for all layers, that leaves at most 65536 of %d channels",
            base->n_embd);
    b->dim = (int)floor_division(base->n_embd, json_number_value(factor));
    if (b->dim < 1) b->dim = 1;
    if (!json_is_boolean(json_object_get(config, "mh_adapter")))
        return refuse_value(e, path, config, "mh_adapter", "true or false");
    const bool houlsby = json_is_true(json_object_get(config, "mh_adapter"));
    if (json_is_true(json_object_get(config, "original_ln_before")) == houlsby)
        return refuse_value(
            e, path, config, "original_ln_before",
            "%s with this mh_adapter: only double_seq_bn and seq_bn are implemented",
            houlsby ? "false" : "true");
    b->placement = houlsby ? HOULSBY : PFEIFFER;
    const int activation =
        activation_of(json_string_value(json_object_get(config, "non_linearity")),
                      json_object_get(whole, "version"));
    if (activation < 0)
        return refuse_value(e, path, config, "non_linearity",
                            "\"relu\", \"swish\" or \"gelu_new\" (of GELU only the tanh form is "
                            "implemented; \"gelu\" is the erf form)");
    b->activation = (unsigned)activation;
    return read_fraction(config, path, "dropout", 0, 0, &b->dropout, e);
}

int hf_bottleneck(const char *dir, const GPT2Config *base, Bottleneck *b, Error *e) {
    AdapterFormat format;
    char *path;
    json_t *config = read_adapter_config(dir, &path, &format, e);
    int status = config ? 0 : -1;
    if (config && format != ADAPTER_HUB)
        status = fail(e, "%s is PEFT's, of a LoRA or the like; give it to ./lora", path);
    if (!status) status = parse_bottleneck(config, path, base, b, e);
    json_decref(config);
    free(path);
    return status;
}

char *hf_bottleneck_text(const Bottleneck *b, const GPT2Config *base, const char *base_name) {
    // the library computes dim as hidden_size // factor; without an exact factor, take the middle
    // of the factors that give this dim
    json_t *factor = base->n_embd % b->dim ? json_real(base->n_embd / (b->dim + 0.5))
                                           : json_integer(base->n_embd / b->dim);
    json_t *config = json_pack(
        "{s:b, s:b, s:f, s:b, s:b, s:s, s:s, s:n, s:n, s:n, s:b, s:b, s:[], s:b, s:b, s:b, s:s, "
        "s:b, s:b, s:b}",
        "adapter_residual_before_ln", 0, "cross_adapter", 0, "dropout",
        shortest_decimal(b->dropout), "factorized_phm_W", 1, "factorized_phm_rule", 0,
        "hypercomplex_nonlinearity", "glorot-uniform", "init_weights",
        b->init == BERT ? "bert" : "mam_adapter", "init_weights_seed", "inv_adapter",
        "inv_adapter_reduction_factor", "is_parallel", 0, "learn_phm", 1, "leave_out", "ln_after",
        0, "ln_before", 0, "mh_adapter", b->placement == HOULSBY, "non_linearity",
        activation_names[b->activation], "original_ln_after", 1, "original_ln_before",
        b->placement == PFEIFFER, "output_adapter", 1);
    json_t *more = json_pack("{s:b, s:s, s:i, s:f, s:b, s:i, s:o, s:b, s:f, s:b, s:b, s:f, s:b}",
                             "phm_bias", 1, "phm_c_init", "normal", "phm_dim", 4, "phm_init_range",
                             0.0001, "phm_layer", 0, "phm_rank", 1, "reduction_factor", factor,
                             "residual_before_ln", 1, "scaling", 1.0, "shared_W_phm", 0,
                             "shared_phm_rule", 1, "stochastic_depth", 0.0, "use_gating", 0);
    json_object_update(config, more);
    json_decref(more);
    json_t *base_text = json_string(base_name);  // NULL when it is not UTF-8
    json_t *whole =
        json_pack("{s:o, s:i, s:s, s:o, s:s, s:s, s:b, s:s}", "config", config, "hidden_size",
                  base->n_embd, "model_class", "GPT2LMHeadModel", "model_name",
                  base_text ? base_text : json_string(""), "model_type", "gpt2", "name", b->name,
                  "train_layernorm", b->norms, "version", "adapters.1.2.0");
    char *text = json_text(whole);
    json_decref(whole);
    return text;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

/* True when tensor i belongs in an adapter's file: it was added, or it is a layer norm that trains
 * with the added tensors. */
static bool is_added(const GPT2 *m, int i) {
    return i >= gpt2_own_tensors(m) ||
           (gpt2_trains(m) == TRAIN_NORMS && strstr(gpt2_tensor(m, i)->name, "ln_"));
}

/* The prefix of its name in an adapter's file. */
static const char *added_prefix(const GPT2 *m, int i) {
    return i < gpt2_own_tensors(m) ? "transformer." : "";
}

int hf_save_added(const GPT2 *m, const char *dir, const char *weights, const char *config,
                  Error *e) {
    if (hf_make_directory(dir, e)) return -1;
    char *path = path_join(dir, weights), *config_path = path_join(dir, "adapter_config.json");
    STWriter *w = st_new();
    for (int i = 0; i < gpt2_tensors(m); i++)
        if (is_added(m, i)) hf_declare_tensor(w, gpt2_tensor(m, i), added_prefix(m, i));
    int status = st_begin(w, path, e);
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i)) status = hf_write_tensor(w, m, i, GPT2_WEIGHT, e);
    if (!status) status = write_text_file(config_path, config, e);
    if (st_end(w, !status, e)) status = -1;
    free(path);
    free(config_path);
    return status;
}

/* Finds tensor i of m in st under its name; when bare, under its name without "transformer.". NULL
 * when absent. */
static const STTensor *find_added(const SafeTensors *st, const GPT2 *m, int i, bool bare) {
    Str full = {0};
    str_printf(&full, "%s%s", added_prefix(m, i), gpt2_tensor(m, i)->name);
    const size_t n = strlen("transformer.");
    char *cut = bare ? strstr(full.s, "transformer.") : NULL;
    if (cut) memmove(cut, cut + n, strlen(cut) - n + 1);
    const STTensor *t = st_find(st, full.s);
    free(full.s);
    return t;
}

/* Checks t, which should be tensor x of a model with this prefix. 0, or -1 with e filled. */
static int check_added_tensor(const SafeTensors *st, const STTensor *t, const GPT2Tensor *x,
                              const char *prefix, Error *e) {
    const size_t shape[2] = {(size_t)x->shape[0], (size_t)x->shape[1]};
    char a[192], b[192];
    if (!t)
        return fail(e,
                    "%s: tensor %s%s is missing, expected with shape %s by adapter_config.json and "
                    "the model",
                    st_path(st), prefix, x->name, st_shape_text(b, x->ndim, shape));
    if (!st_has_shape(t, x->ndim, shape))
        return fail(e,
                    "%s: tensor %s has shape %s, expected %s by adapter_config.json and the model",
                    st_path(st), t->name, st_shape_text(a, t->ndim, t->shape),
                    st_shape_text(b, x->ndim, shape));
    if (t->type != ST_F32 && t->type != ST_F16 && t->type != ST_BF16)
        return fail(e, "%s: tensor %s has type %s, expected F32, F16 or BF16", st_path(st), t->name,
                    t->type_name);
    return 0;
}

/* st must have every added tensor in its shape, and no other tensor. Sets *bare when the names lack
 * "transformer.". 0, or -1 with e filled. */
static int check_added(const SafeTensors *st, const GPT2 *m, bool *bare, Error *e) {
    const int all = gpt2_tensors(m);
    int count = 0, first = all;
    *bare = false;
    for (int i = 0; i < all && !*bare; i++)  // one name is enough: all of them are checked below
        *bare = is_added(m, i) && !find_added(st, m, i, false) && find_added(st, m, i, true);
    bool *wanted = xcalloc((size_t)st_count(st), sizeof *wanted);
    int status = 0;
    for (int i = 0; i < all && !status; i++) {
        if (!is_added(m, i)) continue;
        const STTensor *t = find_added(st, m, i, *bare);
        count++;
        if (i >= gpt2_own_tensors(m) && i < first) first = i;
        status = check_added_tensor(st, t, gpt2_tensor(m, i), added_prefix(m, i), e);
        if (!status) wanted[st_index(st, t)] = true;
    }
    for (int i = 0; i < st_count(st) && !status; i++)
        if (!wanted[i])
            status = fail(e,
                          "%s: tensor %.*s is not one of the %d that adapter_config.json and the "
                          "model define, whose names are like %s",
                          st_path(st), SHOWN, st_at(st, i)->name, count,
                          first < all ? gpt2_tensor(m, first)->name : "(none)");
    free(wanted);
    return status;
}

int hf_load_added(GPT2 *m, const char *dir, const char *weights, Error *e) {
    char *path = path_join(dir, weights);
    bool bare;
    SafeTensors *st = st_open(path, e);
    if (!st && !exists_in(dir, weights) &&
        (exists_in(dir, "adapter_model.bin") || exists_in(dir, "pytorch_adapter.bin")))
        fail(
            e,
            "%s is missing, and the directory's .bin file, a pickle, is not read; save the adapter "
            "again as safetensors",
            path);
    int status = st ? check_added(st, m, &bare, e) : -1;
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i))
            status = hf_read_tensor(find_added(st, m, i, bare), m, i, GPT2_WEIGHT, e);
    st_close(st);
    free(path);
    return status;
}
