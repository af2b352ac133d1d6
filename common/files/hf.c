/*
 * hf.c - model directories as Hugging Face's transformers reads and writes them.
 *
 * config.json, the weights of a GPT-2 in one file or in shards, the tokenizer's files,
 * template.txt, and AdamW's moments. torch.c reads the older pytorch_model.bin as a SafeTensors, so
 * that the code here makes no difference between the two. There is no writing of shards.
 *
 * Nothing that a file says is believed before it is checked against the file's size, so memory use
 * is proportional to the real size of the files.
 */
#include "files/hf.h"
#include "files/json_file.h"
#include "files/safetensors.h"
#include "files/torch.h"
#include "model/gpt2.h"
#include "util.h"

#include <dirent.h>
#include <jansson.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PIECE = 1 << 18,          // floats copied at a time: 1 MiB stays in the L2 cache
    MAX_INDEX = 16 << 20,     // bytes of model.safetensors.index.json
    MAX_TEMPLATE = 64 << 10,  // bytes of template.txt
};

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
        {"tie_word_embeddings", true, "the head is the token embedding"},
        {"scale_attn_weights", true, "attention is scaled by 1/sqrt(head size)"},
        {"scale_attn_by_inverse_layer_idx", false, "attention is scaled equally in every layer"},
        {"add_cross_attention", false, "there is no encoder to attend to"},
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        json_t *value = json_object_get(config, switches[i].name);
        if (value && !(json_is_boolean(value) && json_is_true(value) == switches[i].usual))
            return refuse_value(e, path, config, switches[i].name, "%s: here %s",
                                switches[i].usual ? "true" : "false", switches[i].why);
    }
    return 0;
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
    if (file_exists(path) || errno != ENOENT)
        json = read_json(path, MAX_CONFIG, e);
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

/* ---- Prompt template ------------------------------------------------------------------------- */

static const char TEMPLATE_FILE[] = "template.txt";

/* True when dir/config.json belongs to DialoGPT or to a model made from it. */
static bool is_dialogpt(const char *dir) {
    char *path = path_join(dir, "config.json");
    json_t *config = read_json(path, MAX_CONFIG, NULL);
    const bool is = json_is_object(
        json_object_get(json_object_get(config, "task_specific_params"), "conversational"));
    json_decref(config);
    free(path);
    return is;
}

int hf_template(const char *dir, char **template, Error *e) {
    char *path = path_join(dir, TEMPLATE_FILE);
    Str text = {0};
    int status = 0;
    if (file_exists(path)) {
        status = read_file(path, MAX_TEMPLATE, &text, e);
        if (!status && memchr(text.s, 0, text.n))
            status = fail(e, "%s: a NUL byte, expected a line of text", path);
        if (text.n && text.s[text.n - 1] == '\n') text.s[--text.n] = 0;
    } else if (is_dialogpt(dir)) {
        str_printf(&text, "{instruction}<|endoftext|>");
    }
    if (status) {
        free(text.s);
        text.s = NULL;
    }
    *template = text.s;
    free(path);
    return status;
}

/* ---- Weights: one file or several ------------------------------------------------------------ */

typedef struct {
    char *path;          // the file that has or lists all tensors, for messages
    const char *prefix;  // "" or "transformer.", which is in use since 2020
    SafeTensors **file;
    int files;
} Weights;

static void weights_close(void *context) {
    Weights *w = context;
    for (int i = 0; i < w->files; i++) st_close(w->file[i]);
    free(w->file);
    free(w->path);
    free(w);
}

static int open_file(Weights *w, const char *path, Error *e) {
    size_t n = strlen(path);
    SafeTensors *st =
        n > 4 && !strcmp(path + n - 4, ".bin") ? torch_open(path, e) : st_open(path, e);
    if (!st) return -1;
    w->file = xrealloc(w->file, (size_t)w->files + 1, sizeof *w->file);
    w->file[w->files++] = st;
    return 0;
}

/* Returns the shard of that name in dir, and opens it when first asked for. NULL with e filled. */
static SafeTensors *shard(Weights *w, const char *dir, const char *name, Error *e) {
    // an index must not point outside its directory
    if (!*name || *name == '.' || strchr(name, '/')) {
        fail(e, "%s: \"%.*s\" is not the name of a file in its directory", w->path, SHOWN, name);
        return NULL;
    }
    for (int i = 0; i < w->files; i++)
        if (!strcmp(strrchr(st_path(w->file[i]), '/') + 1, name)) return w->file[i];
    char *path = path_join(dir, name);
    int status = open_file(w, path, e);
    free(path);
    return status ? NULL : w->file[w->files - 1];
}

/* Opens every shard that an index names: {"weight_map": {TENSOR: FILE, ...}}. 0, or -1 with e
 * filled. */
static int open_shards(Weights *w, const char *dir, Error *e) {
    json_t *index = read_json(w->path, MAX_INDEX, e), *map = json_object_get(index, "weight_map");
    json_t *file;
    const char *name;
    int status = index ? 0 : -1;
    if (index && !json_object_size(map))
        status = fail(e, "%s: no weight_map, or an empty one", w->path);
    json_object_foreach(map, name, file) {
        if (status) break;
        if (!json_is_string(file)) {
            status = fail(e, "%s: weight_map: %.*s has no file name", w->path, SHOWN, name);
            break;
        }
        SafeTensors *st = shard(w, dir, json_string_value(file), e);
        if (!st)
            status = -1;
        else if (!st_find(st, name))
            status = fail(e, "%s: tensor %.*s should be in %s, and is not", w->path, SHOWN, name,
                          st_path(st));
    }
    json_decref(index);
    return status;
}

/* Opens the first of these names that exists, as transformers does. NULL with e filled. */
static Weights *weights_open(const char *dir, Error *e) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    const size_t n = sizeof names / sizeof *names;
    size_t i = 0;
    while (i < n && !exists_in(dir, names[i])) i++;
    if (i == n) {
        fail(e,
             "%s has no weights, neither model.safetensors nor pytorch_model.bin; if a download "
             "was cut short, repeat the command to continue it",
             dir);
        return NULL;
    }
    Weights *w = xcalloc(1, sizeof *w);
    w->prefix = "";
    w->path = path_join(dir, names[i]);
    if (!(i % 2 ? open_shards(w, dir, e) : open_file(w, w->path, e))) return w;
    weights_close(w);
    return NULL;
}

/* Looks for prefix + name in all files. NULL when absent. */
static const STTensor *find_prefixed(const Weights *w, const char *prefix, const char *name) {
    Str full = {0};
    const STTensor *t = NULL;
    str_printf(&full, "%s%s", prefix, name);
    for (int i = 0; i < w->files && !t; i++) t = st_find(w->file[i], full.s);
    free(full.s);
    return t;
}

/* The names of the scalar heads have no prefix "transformer.", unlike the model's other tensors. */
static bool is_head(const char *name) {
    return !strcmp(name, "score.weight") || !strncmp(name, "v_head.", 7);
}

static const STTensor *find_weight(const Weights *w, const char *name) {
    return find_prefixed(w, is_head(name) ? "" : w->prefix, name);
}

static int find_prefix(Weights *w, Error *e) {
    const SafeTensors *first = w->file[0];
    bool bare = find_prefixed(w, "", "wte.weight"),
         prefixed = find_prefixed(w, "transformer.", "wte.weight");
    if (bare && prefixed)
        return fail(e, "%s: has both wte.weight and transformer.wte.weight, expected one of them",
                    w->path);
    if (!bare && !prefixed)
        return fail(e,
                    "%s: tensor wte.weight (or transformer.wte.weight) is missing; of the %d "
                    "tensors in %s the first is %.*s",
                    w->path, st_count(first), st_path(first), SHOWN,
                    st_count(first) ? st_at(first, 0)->name : "none");
    w->prefix = prefixed ? "transformer." : "";
    return 0;
}

/* Older versions of transformers stored the causal mask with the weights: h.N.attn.bias and
 * h.N.attn.masked_bias. */
static bool is_mask(const char *name) {
    if (strncmp(name, "h.", 2)) return false;
    name += 2;
    size_t digits = strspn(name, "0123456789");
    return digits &&
           (!strcmp(name + digits, ".attn.bias") || !strcmp(name + digits, ".attn.masked_bias"));
}

/* If the file has the head of the vocabulary, it must equal the token embedding. */
static int check_head(const Weights *w, Error *e) {
    const STTensor *head = find_prefixed(w, "", "lm_head.weight"),
                   *wte = find_weight(w, "wte.weight");
    char a[192], b[192];
    if (!head) return 0;
    if (!st_has_shape(head, wte->ndim, wte->shape))
        return fail(e,
                    "%s: tensor lm_head.weight has shape %s, expected %s, that of %s: the head is "
                    "tied to it",
                    head->file, st_shape_text(a, head->ndim, head->shape),
                    st_shape_text(b, wte->ndim, wte->shape), wte->name);
    float *x = xmalloc(2 * PIECE * sizeof *x), *y = x + PIECE;
    int status = 0;
    for (size_t at = 0; at < head->n && !status; at += PIECE) {
        size_t n = head->n - at < PIECE ? head->n - at : PIECE;
        if (st_floats(head, at, n, x, e) || st_floats(wte, at, n, y, e)) {
            status = -1;
            break;
        }
        for (size_t i = 0; i < n && !status; i++)
            if (x[i] != y[i] && !(isnan(x[i]) && isnan(y[i])))
                status = fail(e,
                              "%s: untied head: element %zu of lm_head.weight is %.9g, expected "
                              "%.9g as in %s; only models whose head is the token embedding are "
                              "implemented",
                              head->file, at + i, (double)x[i], (double)y[i], wte->name);
    }
    free(x);
    return status;
}

/* The tensor in the files for a tensor of the model. A scalar head may have the name of the other
 * form. NULL when absent. */
static const STTensor *find_source(const Weights *w, const char *name) {
    static const char *const other[][2] = {{"score.weight", "v_head.summary.weight"},
                                           {"v_head.summary.weight", "score.weight"}};
    const STTensor *t = find_weight(w, name);
    for (int i = 0; i < 2 && !t; i++)
        if (!strcmp(name, other[i][0])) t = find_weight(w, other[i][1]);
    return t;
}

/* The files must have the tensor in its shape. Only a scalar head may be absent. st_floats checks
 * the type. */
static int check_weight(const Weights *w, const GPT2Tensor *wanted, Error *e) {
    const STTensor *t = find_source(w, wanted->name);
    size_t shape[2] = {(size_t)wanted->shape[0], (size_t)wanted->shape[1]};
    char a[192], b[192];
    if (!t && is_head(wanted->name)) return 0;
    if (!t)
        return fail(e, "%s: tensor %s%s is missing, expected with shape %s by config.json", w->path,
                    w->prefix, wanted->name, st_shape_text(b, wanted->ndim, shape));
    if (!st_has_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s by config.json", t->file, t->name,
                    st_shape_text(a, t->ndim, t->shape), st_shape_text(b, wanted->ndim, shape));
    return 0;
}

/* A tensor of file number file must belong to the model (wanted), or be one that is known to be
   superfluous: the head of the vocabulary, a mask, or, with a scalar head, the bias of the other
   form, which fold_bias reads. */
static int check_place(const Weights *w, int file, const STTensor *t, bool wanted, GPT2Head head,
                       Error *e) {
    size_t prefix = strlen(w->prefix);
    for (int i = 0; i < file; i++)
        if (st_find(w->file[i], t->name))
            return fail(e, "%s: tensor %.*s is also in %s", t->file, SHOWN, t->name,
                        st_path(w->file[i]));
    if (wanted || !strcmp(t->name, "lm_head.weight")) return 0;
    if (!strncmp(t->name, w->prefix, prefix) && is_mask(t->name + prefix)) return 0;
    if (head == SCORE_HEAD && !strcmp(t->name, "v_head.summary.bias")) return 0;
    if (head == LM_HEAD && is_head(t->name))
        return fail(e,
                    "%s: tensor %.*s makes this a reward or value model, expected a language "
                    "model",
                    t->file, SHOWN, t->name);
    return fail(e,
                "%s: tensor %.*s does not belong to the model that config.json describes, whose "
                "names are like %swte.weight",
                t->file, SHOWN, t->name, w->prefix);
}

/* The files must have exactly the tensors of plan, a model without weights. 0, or -1 with e filled.
 */
static int check_weights(Weights *w, const GPT2 *plan, Error *e) {
    if (find_prefix(w, e) || check_head(w, e)) return -1;
    int status = 0;
    for (int i = 0; i < gpt2_tensors(plan) && !status; i++)
        status = check_weight(w, gpt2_tensor(plan, i), e);
    for (int f = 0; f < w->files && !status; f++) {
        const SafeTensors *st = w->file[f];
        bool *wanted = xcalloc((size_t)st_count(st), sizeof *wanted);
        for (int i = 0; i < gpt2_tensors(plan); i++) {
            const STTensor *t = find_source(w, gpt2_tensor(plan, i)->name);
            const int at = t ? st_index(st, t) : -1;
            if (at >= 0) wanted[at] = true;
        }
        for (int i = 0; i < st_count(st) && !status; i++)
            status = check_place(w, f, st_at(st, i), wanted[i], gpt2_config(plan)->head, e);
        free(wanted);
    }
    return status;
}

/* ---- Loading --------------------------------------------------------------------------------- */

int hf_read_tensor(const STTensor *t, GPT2 *m, int i, GPT2Part part, Error *e) {
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (size_t at = 0; at < t->n && !status; at += PIECE) {
        const size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        status = st_floats(t, at, n, piece, e);
        if (!status) gpt2_write(m, i, part, at, n, piece);
    }
    free(piece);
    return status;
}

/* Drops a mapped tensor's pages from this process, not from the page cache, so that a copied model
 * is never resident twice. */
static void drop_pages(const STTensor *t) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)t->data,
              end = begin + t->bytes;
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

/* Copies the weights into m. A frozen model's tensors stay in the file if they are F32 and the
 * backend can use them there. */
static int load_weights(GPT2 *m, const Weights *w, bool frozen, Error *e) {
    int status = 0;
    for (int i = 0; i < gpt2_tensors(m) && !status; i++) {
        const STTensor *t = find_source(w, gpt2_tensor(m, i)->name);
        if (!t) {  // a scalar head that the file lacks
            if (frozen) gpt2_map(m, i, NULL);
            continue;
        }
        if (frozen && t->type == ST_BF16 && gpt2_map_bf16(m, i, t->data)) continue;
        if (frozen && gpt2_map(m, i, t->type == ST_F32 ? t->data : NULL)) continue;
        status = hf_read_tensor(t, m, i, GPT2_WEIGHT, e);
        drop_pages(t);
    }
    return status;
}

/* Adds the bias of a v_head to a SCORE_HEAD, which has none: see hf_load_head. */
static int fold_bias(GPT2 *m, const Weights *w, Error *e) {
    const STTensor *t = find_prefixed(w, "", "v_head.summary.bias");
    float bias = 0;
    if (gpt2_config(m)->head != SCORE_HEAD || !t) return 0;
    if (t->n != 1)
        return fail(e, "%s: tensor %s has %zu elements, expected 1", t->file, t->name, t->n);
    if (st_floats(t, 0, 1, &bias, e)) return -1;
    if (bias != 0) gpt2_scale_value(m, 1, (double)bias);
    return 0;
}

GPT2 *hf_load_head(const char *dir, GPT2Head head, bool frozen, bool *found, Error *e) {
    GPT2Config config;
    if (hf_config(dir, &config, e)) return NULL;
    if (head == LM_HEAD && config.head != LM_HEAD) {
        fail(e,
             "%s holds a reward model (GPT2ForSequenceClassification), expected a language model",
             dir);
        return NULL;
    }
    config.head = head;
    Weights *w = weights_open(dir, e);
    if (!w) return NULL;
    // a frozen model allocates no weights: config.json may promise more than the files have
    GPT2 *m = gpt2_create(&config, true);
    if (check_weights(w, m, e)) {
        gpt2_free(m);
        weights_close(w);
        return NULL;
    }
    if (found)
        *found = find_source(w, head == SCORE_HEAD ? "score.weight" : "v_head.summary.weight");
    // fold_bias will change ln_f.bias
    if (head == SCORE_HEAD && find_prefixed(w, "", "v_head.summary.bias")) frozen = false;
    if (!frozen) {
        gpt2_free(m);
        m = gpt2_create(&config, false);
    }
    int status = load_weights(m, w, frozen, e) || fold_bias(m, w, e) ? -1 : 0;
    if (frozen)
        gpt2_at_free(m, weights_close, w);
    else
        weights_close(w);
    if (!status) return m;
    gpt2_free(m);
    return NULL;
}

GPT2 *hf_load(const char *dir, bool frozen, Error *e) {
    return hf_load_head(dir, LM_HEAD, frozen, NULL, e);
}

/* ---- Saving ---------------------------------------------------------------------------------- */

int hf_make_directory(const char *dir, Error *e) {
    if (!make_directories(dir)) return 0;
    return fail(e, "cannot make the directory %s: %s", dir, strerror(errno));
}

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

int hf_save_template(const char *dir, const char *template, Error *e) {
    char *path = path_join(dir, TEMPLATE_FILE);
    int status = write_text_file(path, template, e);
    free(path);
    return status;
}

/* The text of from/config.json, patched, or of a new config when from is NULL. NULL with e filled.
 */
static char *make_config(const GPT2Config *c, const char *from, Error *e) {
    json_t *config;
    if (from) {
        GPT2Config before;
        char *path = path_join(from, "config.json");
        config = read_json(path, MAX_CONFIG, e);
        if (config && parse_config(config, path, &before, e)) {
            json_decref(config);
            config = NULL;
        }
        free(path);
    } else {
        config = new_config(c);
    }
    if (!config) return NULL;
    patch_config(config, c);
    char *text = json_text(config);
    json_decref(config);
    if (!text) fail(e, "out of memory for config.json");
    return text;
}

/* Copies from/name to dir/name. Does nothing when from/name does not exist or is the same file. 0,
 * or -1 with e filled. */
static int copy_file(const char *from, const char *dir, const char *name, Error *e) {
    char *source = path_join(from, name), *target = path_join(dir, name), block[65536];
    struct stat a, b;
    size_t n;
    int status = 0;
    NewFile file;
    FILE *f = NULL;
    if (stat(source, &a) || (!stat(target, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino))
        goto done;
    f = fopen(source, "rb");
    if (!f) status = fail(e, "cannot open %s: %s", source, strerror(errno));
    if (status || (status = newfile_open(&file, target, e))) goto done;
    while ((n = fread(block, 1, sizeof block, f)) > 0) fwrite(block, 1, n, file.f);
    bool bad = ferror(f);
    if (bad) status = fail(e, "cannot read %s: %s", source, strerror(errno));
    if (newfile_close(&file, !bad, e)) status = -1;
done:
    if (f) fclose(f);
    free(source);
    free(target);
    return status;
}

/* Copies the other files that from_pretrained looks for. 0, or -1 with e filled. */
static int copy_companions(const char *from, const char *dir, Error *e) {
    static const char *const names[] = {"vocab.json",
                                        "merges.txt",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "generation_config.json",
                                        TEMPLATE_FILE};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (copy_file(from, dir, names[i], e)) return -1;
    DIR *entries = opendir(from);
    if (!entries) return fail(e, "cannot list %s: %s", from, strerror(errno));
    int status = 0;
    for (struct dirent *entry; !status && (entry = readdir(entries));) {
        size_t n = strlen(entry->d_name);
        if (!strncmp(entry->d_name, "chat_template", 13) && n > 6 &&
            !strcmp(entry->d_name + n - 6, ".jinja"))
            status = copy_file(from, dir, entry->d_name, e);
    }
    closedir(entries);
    return status;
}

void hf_declare_tensor(STWriter *w, const GPT2Tensor *t, const char *prefix) {
    Str name = {0};
    const size_t shape[2] = {(size_t)t->shape[0], (size_t)t->shape[1]};
    str_printf(&name, "%s%s", prefix, t->name);
    st_declare(w, name.s, t->ndim, shape);
    free(name.s);
}

int hf_write_tensor(STWriter *w, const GPT2 *m, int i, GPT2Part part, Error *e) {
    const size_t total = gpt2_tensor(m, i)->n;
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (size_t at = 0; at < total && !status; at += PIECE) {
        const size_t n = total - at < PIECE ? total - at : PIECE;
        gpt2_read(m, i, part, at, n, piece);
        status = st_write(w, piece, n, e);
    }
    free(piece);
    return status;
}

static int write_weights(STWriter *w, const GPT2 *m, const char *path, Error *e) {
    for (int i = 0; i < gpt2_own_tensors(m); i++)
        hf_declare_tensor(w, gpt2_tensor(m, i),
                          is_head(gpt2_tensor(m, i)->name) ? "" : "transformer.");
    if (st_begin(w, path, e)) return -1;
    int status = 0;
    for (int i = 0; i < gpt2_own_tensors(m) && !status; i++)
        status = hf_write_tensor(w, m, i, GPT2_WEIGHT, e);
    return status;
}

static int write_config(const char *dir, const char *text, Error *e) {
    char *path = path_join(dir, "config.json");
    int status = write_text_file(path, text, e);
    free(path);
    return status;
}

/* The weights are the file most likely to fill the disk. They are written first, under a temporary
 * name, and renamed last. */
int hf_save(const GPT2 *m, const char *dir, const char *from, Error *e) {
    char *config = make_config(gpt2_config(m), from, e);
    if (!config) return -1;
    int status = hf_make_directory(dir, e);
    if (!status) {
        char *path = path_join(dir, "model.safetensors");
        STWriter *w = st_new();
        status = write_weights(w, m, path, e);
        if (!status) status = write_config(dir, config, e);
        if (!status && from) status = copy_companions(from, dir, e);
        if (st_end(w, !status, e)) status = -1;
        free(path);
    }
    free(config);
    return status;
}

/* ---- Moments of a training state ------------------------------------------------------------- */

static const struct {
    GPT2Part part;
    const char *name;
} moments[2] = {{GPT2_MOMENT1, "m."}, {GPT2_MOMENT2, "v."}};

static char *moment_prefix(const char *prefix, int which) {
    Str s = {0};
    str_printf(&s, "%s%s", prefix, moments[which].name);
    return s.s;
}

void hf_declare_moments(STWriter *w, const GPT2 *m, const char *prefix) {
    for (int which = 0; which < 2; which++) {
        char *before = moment_prefix(prefix, which);
        for (int i = 0; i < gpt2_tensors(m); i++)
            if (gpt2_tensor(m, i)->trains) hf_declare_tensor(w, gpt2_tensor(m, i), before);
        free(before);
    }
}

int hf_write_moments(STWriter *w, const GPT2 *m, Error *e) {
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            if (gpt2_tensor(m, i)->trains)
                status = hf_write_tensor(w, m, i, moments[which].part, e);
    return status;
}

static const STTensor *find_moment(const SafeTensors *st, const char *before, const char *name) {
    Str full = {0};
    str_printf(&full, "%s%s", before, name);
    const STTensor *t = st_find(st, full.s);
    free(full.s);
    return t;
}

static int check_moment(const SafeTensors *st, const char *before, const GPT2Tensor *wanted,
                        Error *e) {
    const STTensor *t = find_moment(st, before, wanted->name);
    size_t shape[2] = {(size_t)wanted->shape[0], (size_t)wanted->shape[1]};
    char a[192], b[192];
    if (!t && !wanted->trains) return 0;
    if (!t)
        return fail(e, "%s: tensor %s%s is missing, but this run trains %s", st_path(st), before,
                    wanted->name, wanted->name);
    if (!wanted->trains)
        return fail(e, "%s: has tensor %s, but this run does not train %s", st_path(st), t->name,
                    wanted->name);
    if (!st_has_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s, that of %s", st_path(st), t->name,
                    st_shape_text(a, t->ndim, t->shape), st_shape_text(b, wanted->ndim, shape),
                    wanted->name);
    if (t->type != ST_F32)
        return fail(e, "%s: tensor %s has type %s, expected F32", st_path(st), t->name,
                    t->type_name);
    return 0;
}

int hf_read_moments(const SafeTensors *st, GPT2 *m, const char *prefix, Error *e) {
    char *before[2] = {moment_prefix(prefix, 0), moment_prefix(prefix, 1)};
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            status = check_moment(st, before[which], gpt2_tensor(m, i), e);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++) {
            const GPT2Tensor *t = gpt2_tensor(m, i);
            const STTensor *moment = find_moment(st, before[which], t->name);
            if (t->trains) status = hf_read_tensor(moment, m, i, moments[which].part, e);
        }
    free(before[0]);
    free(before[1]);
    return status;
}
