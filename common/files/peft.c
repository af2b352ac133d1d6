/*
 * peft.c - adapter directories of PEFT and of AdapterHub.
 */
#include "files/peft.h"
#include "files/hf.h"
#include "files/json_file.h"
#include "files/safetensors.h"

#include <dirent.h>

/* ---- The two libraries ----------------------------------------------------------------------- */

typedef enum { ADAPTER_PEFT, ADAPTER_HUB } AdapterFormat;

/* Fills e: dir holds no adapter_config.json. An adapter with a name is in a directory below. */
static void refuse_directory(const char *dir, const char *path, Error *e) {
    DIR *list = opendir(dir);
    Str below = {0};
    str_add(&below, "", 0);
    for (struct dirent *entry; list && (entry = readdir(list));) {
        char *inner = path_join(dir, entry->d_name);
        if (entry->d_name[0] != '.' && exists_in(inner, "adapter_config.json"))
            str_printf(&below, "%s%.80s", below.n ? " or " : "", inner);
        free(inner);
    }
    if (list) closedir(list);
    if (below.n)
        fail(e, "%s does not exist; an adapter that was saved under a name is below: give %.500s",
             path, below.s);
    else if (list && exists_in(dir, "config.json"))
        fail(e, "%s does not exist; %s holds a model, not an adapter: give it to --model", path,
             dir);
    else
        fail(e, "cannot open %s: %s", path, strerror(list ? ENOENT : errno));
    free(below.s);
}

/* Reads dir/adapter_config.json and finds out which library wrote it. Sets *path, to be freed, to
 * the file's path for messages. NULL with e filled when neither wrote it. */
static json_t *read_adapter_config(const char *dir, char **path, AdapterFormat *format, Error *e) {
    *path = path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    if (file_exists(*path))
        config = read_json(*path, MAX_CONFIG, e);
    else
        refuse_directory(dir, *path, e);
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
static const char *const harmless[] = {"base_model_name_or_path", "revision", "peft_version",
                                       "auto_mapping", "inference_mode", "fan_in_fan_out",
                                       "megatron_core", "qalora_group_size", "runtime_config",
                                       // how EVA chose ranks; the ranks are in rank_pattern
                                       "eva_config", NULL};
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
        // PEFT takes "all-linear" in an array for the name of a module, which no model has
        if (!text || !*text || strchr(text, ',') || !strcmp(text, "all-linear"))
            return refuse_value(e, path, config, "target_modules",
                                "names of modules, such as \"c_attn\", or \"all-linear\" alone");
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
    json_t *base_text = json_string(base);  // NULL when it is not UTF-8
    json_t *config = json_pack(
        "{s:n, s:o, s:s, s:b, s:b, s:b, s:n, s:n, s:o, s:f, s:n, s:s, s:i, s:n, s:o, s:s}",
        "auto_mapping", "base_model_name_or_path", base_text ? base_text : json_string(""), "bias",
        "none", "fan_in_fan_out", 1, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
        "layers_to_transform", "lora_alpha", alpha, "lora_dropout", shortest_decimal(lora->dropout),
        "modules_to_save", "peft_type", "LORA", "r", lora->r, "revision", "target_modules", targets,
        "task_type", "CAUSAL_LM");
    if (!config) die("the name of a target is not UTF-8, as JSON requires");
    // older versions do not know the key
    if (lora->rslora) json_object_set_new(config, "use_rslora", json_true());
    char *text = json_text(config);
    json_decref(config);
    free(names);
    return text;
}

int hf_check_lora(const LoraConfig *lora, Error *e) {
    LoraConfig back;
    char *text = hf_lora_text(lora, "");
    json_t *config = parse_json(text, strlen(text), 0, "adapter_config.json", e);
    const int status = config ? read_lora(config, "adapter_config.json", &back, e) : -1;
    json_decref(config);
    free(text);
    return status;
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

int hf_check_bottleneck(const Bottleneck *b, const GPT2Config *base, Error *e) {
    Bottleneck back;
    char *text = hf_bottleneck_text(b, base, "");
    json_t *config = parse_json(text, strlen(text), 0, "adapter_config.json", e);
    int status = config ? parse_bottleneck(config, "adapter_config.json", base, &back, e) : -1;
    if (!status && back.dim != b->dim)
        status = fail(e, "a bottleneck of %d would be read again as one of %d", b->dim, back.dim);
    json_decref(config);
    free(text);
    return status;
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
                  const char *template, Error *e) {
    if (hf_make_directory(dir, e)) return -1;
    char *path = path_join(dir, weights);
    STWriter *w = st_new();
    NewFile file;
    Bundle files = {0};
    bundle_set_line(&files, "adapter_config.json", config);
    if (template) bundle_set_line(&files, "template.txt", template);
    for (int i = 0; i < gpt2_tensors(m); i++)
        if (is_added(m, i)) hf_declare_tensor(w, gpt2_tensor(m, i), added_prefix(m, i));
    int status = st_begin(w, path, e);
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i)) status = hf_write_tensor(w, m, i, GPT2_WEIGHT, e);
    if (status)
        st_end(w, false, NULL);
    else
        status = st_finish(w, &file, e) || bundle_write(&files, dir, &file, e) ? -1 : 0;
    bundle_free(&files);
    free(path);
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
    if (!st_is_real(t))
        return fail(e, "%s: tensor %s has type %s, expected " ST_REALS, st_path(st), t->name,
                    t->type_name);
    return 0;
}

static bool ends_with(const char *name, const char *end) {
    const size_t n = strlen(name), tail = strlen(end);
    return n >= tail && !strcmp(name + n - tail, end);
}

/* Is it the base's embedding, or its head, which is tied to it? */
static bool is_embedding(const char *name) {
    return ends_with(name, "wte.weight") || ends_with(name, "lm_head.weight");
}

/* The float nearest to x that bf16 has. */
static float rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x7fff + (bits >> 16 & 1);
    bits &= 0xffff0000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* Is t, of the shape of m's embedding, equal to it? In a frozen model that computes in bf16 the
   embedding has been rounded. */
static int equals_embedding(const GPT2 *m, int wte, const STTensor *t, bool *equal, Error *e) {
    enum { PIECE = 1 << 16 };
    float *x = xmalloc(2 * sizeof *x * PIECE), *y = x + PIECE;
    int status = 0;
    *equal = true;
    for (size_t at = 0; at < t->n && *equal && !status; at += PIECE) {
        const size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        status = st_floats(t, at, n, x, e);
        if (!status) gpt2_read(m, wte, GPT2_WEIGHT, at, n, y);
        for (size_t i = 0; i < n && !status && *equal; i++)
            *equal = x[i] == y[i] || rounded(x[i]) == y[i];
    }
    free(x);
    return status;
}

/* An adapter may bring the embedding or the head of its base. 0 if they are those of m, whose
   numbers then change nothing; -1 with e filled if not. */
static int check_embedding(const GPT2 *m, const STTensor *t, Error *e) {
    int wte = 0;
    while (strcmp(gpt2_tensor(m, wte)->name, "wte.weight")) wte++;
    const int *own = gpt2_tensor(m, wte)->shape;
    const size_t shape[2] = {(size_t)own[0], (size_t)own[1]};
    bool equal;
    if (t->ndim == 2 && t->shape[1] == shape[1] && t->shape[0] != shape[0])
        return fail(e,
                    "%s: the adapter brings embeddings of %zu tokens (%.*s), and the model has "
                    "%zu: tokens were added before training. Resize and save the base in Python "
                    "(resize_token_embeddings(%zu), save_pretrained) and give that to --model; "
                    "save the adapter with save_embedding_layers=False if it did not train them",
                    t->file, t->shape[0], SHOWN, t->name, shape[0], t->shape[0]);
    if (!st_has_shape(t, 2, shape))
        return fail(e, "%s: tensor %.*s has not the shape of the model's wte.weight", t->file,
                    SHOWN, t->name);
    if (equals_embedding(m, wte, t, &equal, e)) return -1;
    return equal ? 0
                 : fail(e,
                        "%s: tensor %.*s is another than the model's wte.weight: the adapter was "
                        "saved with a head or embeddings that were trained, and these are not "
                        "implemented; save them into the base model, or train with the base's",
                        t->file, SHOWN, t->name);
}

/* AdapterHub saves a model's prediction head in a file of its own. It must be the tied head of m,
   because any other would change what the adapter computes. 0, or -1 with e filled. */
static int check_saved_head(const GPT2 *m, const char *dir, Error *e) {
    static const char *const names[] = {"model_head.safetensors", "pytorch_model_head.bin"};
    int status = 0;
    for (int k = 0; k < 2 && !status; k++) {
        if (!exists_in(dir, names[k])) continue;
        char *path = path_join(dir, names[k]);
        SafeTensors *st = hf_open_tensors(path, e);
        status = st ? 0 : -1;
        for (int i = 0; st && i < st_count(st) && !status; i++) {
            const STTensor *t = st_at(st, i);
            status =
                is_embedding(t->name)
                    ? check_embedding(m, t, e)
                    : fail(e,
                           "%s: the adapter was saved with a trained head (tensor %.*s), which "
                           "is not implemented; save it without one (with_head=False)",
                           path, SHOWN, t->name);
        }
        st_close(st);
        free(path);
    }
    return status;
}

/* Opens the file of an adapter's tensors: dir/weights, or the pickle that older versions of the two
   libraries write. NULL with e filled. */
static SafeTensors *open_added(const char *dir, const char *weights, Error *e) {
    static const char *const older[][2] = {{"adapter_model.safetensors", "adapter_model.bin"},
                                           {"adapter.safetensors", "pytorch_adapter.bin"}};
    const char *name = weights;
    for (int i = 0; i < 2; i++)
        if (!strcmp(weights, older[i][0]) && !exists_in(dir, weights) &&
            exists_in(dir, older[i][1]))
            name = older[i][1];
    char *path = path_join(dir, name);
    SafeTensors *st = hf_open_tensors(path, e);
    free(path);
    return st;
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
        if (!wanted[i] && is_embedding(st_at(st, i)->name))
            status = check_embedding(m, st_at(st, i), e);
        else if (!wanted[i])
            status = fail(e,
                          "%s: tensor %.*s is not one of the %d that adapter_config.json and the "
                          "model define, whose names are like %s",
                          st_path(st), SHOWN, st_at(st, i)->name, count,
                          first < all ? gpt2_tensor(m, first)->name : "(none)");
    free(wanted);
    return status;
}

int hf_load_added(GPT2 *m, const char *dir, const char *weights, Error *e) {
    bool bare;
    SafeTensors *st = open_added(dir, weights, e);
    int status = st ? check_added(st, m, &bare, e) : -1;
    if (!status) status = check_saved_head(m, dir, e);
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i))
            status = hf_read_tensor(find_added(st, m, i, bare), m, i, GPT2_WEIGHT, e);
    st_close(st);
    return status;
}
