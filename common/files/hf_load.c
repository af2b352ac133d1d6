/*
 * hf_load.c - the weights of a model directory: one file or shards, under the names and wrappers
 * that people's tools give them.
 *
 * torch.c reads the older pytorch_model.bin as a SafeTensors, so that the code here makes no
 * difference between the two.
 */
#include "files/hf.h"
#include "files/json_file.h"
#include "files/safetensors.h"
#include "files/torch.h"
#include "model/gpt2.h"
#include "model/weights.h"
#include "util.h"

#include <jansson.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    PIECE = 1 << 18,       // floats copied at a time: 1 MiB stays in the L2 cache
    MAX_INDEX = 16 << 20,  // bytes of model.safetensors.index.json
};

/* ---- Weights: one file or several ------------------------------------------------------------ */

typedef struct {
    char *path;               // the file that has or lists all tensors, for messages
    char *wrapper, *outside;  // what wrappers put before all names; before those of a scalar head
    char *prefix;             // wrapper, then "" or "transformer.", which is in use since 2020
    bool untied;              // config.json denies that the head of the vocabulary is wte
    SafeTensors **file;
    int files;
} Weights;

static void weights_close(void *context) {
    Weights *w = context;
    for (int i = 0; i < w->files; i++) st_close(w->file[i]);
    free(w->file);
    free(w->wrapper);
    free(w->outside);
    free(w->prefix);
    free(w->path);
    free(w);
}

SafeTensors *hf_open_tensors(const char *path, Error *e) {
    const size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".bin") ? torch_open(path, e) : st_open(path, e);
}

static int open_file(Weights *w, const char *path, Error *e) {
    SafeTensors *st = hf_open_tensors(path, e);
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

/* Weights of another framework are named. */
static bool foreign_weights(const char *dir, Error *e) {
    static const char *const names[] = {"tf_model.h5",      "flax_model.msgpack", "rust_model.ot",
                                        "model.ckpt.index", "model.onnx",         "model.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (exists_in(dir, names[i])) {
            fail(e,
                 "%s holds the weights of another framework, %s; get model.safetensors or "
                 "pytorch_model.bin of the same model, or write it in Python: "
                 "GPT2LMHeadModel.from_pretrained(..., from_tf=True or from_flax=True)"
                 ".save_pretrained(...), by transformers 4",
                 dir, names[i]);
            return true;
        }
    return false;
}

/* Opens the first of these names that exists, as transformers does. NULL with e filled. */
static Weights *weights_open(const char *dir, Error *e) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    const size_t n = sizeof names / sizeof *names;
    size_t i = 0;
    while (i < n && !exists_in(dir, names[i])) i++;
    if (i == n && foreign_weights(dir, e)) return NULL;
    if (i == n) {
        fail(e,
             "%s has no weights, neither model.safetensors nor pytorch_model.bin; if a download "
             "was cut short, repeat the command to continue it",
             dir);
        return NULL;
    }
    Weights *w = xcalloc(1, sizeof *w);
    w->path = path_join(dir, names[i]);
    w->untied = hf_is_untied(dir);
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
bool hf_is_head(const char *name) {
    return !strcmp(name, "score.weight") || !strncmp(name, "v_head.", 7);
}

/* The head of the vocabulary, or NULL. */
static const STTensor *find_lm_head(const Weights *w) {
    return find_prefixed(w, w->wrapper, "lm_head.weight");
}

/* A tied wte may be kept under its other name: safetensors' save_model keeps one of the two. */
static const STTensor *find_weight(const Weights *w, const char *name) {
    if (hf_is_head(name)) {
        const STTensor *t = find_prefixed(w, w->wrapper, name);
        return t ? t : find_prefixed(w, w->outside, name);
    }
    const STTensor *t = find_prefixed(w, w->prefix, name);
    return !t && !w->untied && !strcmp(name, "wte.weight") ? find_lm_head(w) : t;
}

/* A name without the words of wrappers. */
static const char *unwrapped(const Weights *w, const char *name) {
    const size_t all = strlen(w->wrapper), n = strlen(w->outside);
    if (!strncmp(name, w->wrapper, all)) return name + all;
    return !strncmp(name, w->outside, n) ? name + n : name;
}

/* What wrappers put before every name: torch.compile, DistributedDataParallel and the value head
   of TRL, whose own tensors lack that last word. */
static const char *const wrappers[] = {"_orig_mod.", "module.", "pretrained_model."};

/* The length of the words of wrappers at the beginning of a name. */
static size_t wrapped(const char *name) {
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        const size_t length = strlen(wrappers[i]);
        if (strncmp(name + n, wrappers[i], length)) continue;
        n += length;
        i = -1;
    }
    return n;
}

static char *copy_of(const char *s, size_t n) {
    Str copy = {0};
    str_add(&copy, s, n);
    return copy.s;
}

/* Finds the wrappers by the name of the final norm, which every model has once. */
static void find_wrappers(Weights *w) {
    static const char last[] = "ln_f.weight";
    const size_t tail = sizeof last - 1, word = strlen(wrappers[2]);
    const char *found = NULL;
    for (int f = 0; f < w->files && !found; f++)
        for (int i = 0; i < st_count(w->file[f]) && !found; i++) {
            const char *name = st_at(w->file[f], i)->name;
            const size_t n = strlen(name);
            if (n >= tail && !strcmp(name + n - tail, last)) found = name;
        }
    const size_t n = found ? wrapped(found) : 0;
    const bool valued = n >= word && !strncmp(found + n - word, wrappers[2], word);
    w->wrapper = copy_of(found, n);
    w->outside = copy_of(found, valued ? n - word : n);
}

static int find_prefix(Weights *w, Error *e) {
    const SafeTensors *first = w->file[0];
    Str inner = {0};
    find_wrappers(w);
    str_printf(&inner, "%stransformer.", w->wrapper);
    const bool bare = find_prefixed(w, w->wrapper, "wte.weight"),
               prefixed = find_prefixed(w, inner.s, "wte.weight"),
               by_norm = find_prefixed(w, inner.s, "ln_f.weight");
    const bool inside = prefixed || (!bare && by_norm);
    w->prefix = inside ? inner.s : xstrdup(w->wrapper);
    if (!inside) free(inner.s);
    if (bare && prefixed)
        return fail(e, "%s: has both wte.weight and transformer.wte.weight, expected one of them",
                    w->path);
    if (find_weight(w, "wte.weight")) return 0;
    return fail(e,
                "%s: tensor wte.weight (or transformer.wte.weight) is missing%s; of the %d "
                "tensors in %s the first is %.*s",
                w->path,
                w->untied ? ", and config.json says with tie_word_embeddings false that the head "
                            "is not the embedding"
                          : "",
                st_count(first), st_path(first), SHOWN,
                st_count(first) ? st_at(first, 0)->name : "none");
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
static int check_head(const Weights *w, GPT2Head plan, Error *e) {
    const STTensor *head = find_lm_head(w), *wte = find_weight(w, "wte.weight");
    char a[192], b[192];
    if (!head && w->untied && plan == LM_HEAD)
        return fail(e,
                    "%s: lm_head.weight is missing, and config.json says with tie_word_embeddings "
                    "false that it is not the embedding; save the model again with its head",
                    w->path);
    if (!head || head == wte) return 0;
    if (!st_has_shape(head, wte->ndim, wte->shape))
        return fail(e,
                    "%s: tensor lm_head.weight has shape %s, expected %s, that of %s: the head is "
                    "tied to it",
                    head->file, st_shape_text(a, head->ndim, head->shape),
                    st_shape_text(b, wte->ndim, wte->shape), wte->name);
    float *x = xmalloc(2 * sizeof *x * PIECE), *y = x + PIECE;
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
    if (!t && hf_is_head(wanted->name)) return 0;
    if (!t)
        return fail(e, "%s: tensor %s%s is missing, expected with shape %s by config.json", w->path,
                    w->prefix, wanted->name, st_shape_text(b, wanted->ndim, shape));
    if (!st_has_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s by config.json", t->file, t->name,
                    st_shape_text(a, t->ndim, t->shape), st_shape_text(b, wanted->ndim, shape));
    return 0;
}

/* A tensor of another head beside a language model: the value head of a policy of TRL, or the
   second head of a GPT2DoubleHeadsModel. NULL: it is none. */
static const char *other_head(const char *name, GPT2Head head) {
    if (head == LM_HEAD && !strncmp(name, "v_head.", 7)) return "v_head";
    if (!strncmp(name, "multiple_choice_head.", 21)) return "multiple_choice_head";
    return NULL;
}

/* Notes what is done with the tensors of a model that can be loaded. */
static void say_notes(const Weights *w, GPT2Head head) {
    for (int f = 0; f < w->files; f++)
        for (int i = 0; i < st_count(w->file[f]); i++) {
            const STTensor *t = st_at(w->file[f], i);
            const char *other = other_head(unwrapped(w, t->name), head);
            if (other)
                note_once("%s: the tensors of %s belong to another head and are not used", w->path,
                          other);
            if (t->type == ST_F64)
                note_once("%s: tensors of type F64 are rounded to float32", w->path);
        }
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
    const char *name = unwrapped(w, t->name);
    if (wanted || t == find_lm_head(w)) return 0;
    if (!strncmp(t->name, w->prefix, prefix) && is_mask(t->name + prefix)) return 0;
    if (head == SCORE_HEAD && !strcmp(name, "v_head.summary.bias")) return 0;
    if (other_head(name, head)) return 0;
    if (head == LM_HEAD && hf_is_head(name))
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
    if (find_prefix(w, e) || check_head(w, gpt2_config(plan)->head, e)) return -1;
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
    if (!status) say_notes(w, gpt2_config(plan)->head);
    return status;
}

/* ---- Loading --------------------------------------------------------------------------------- */

/* The n values of a tensor from element `at` on must be finite. 0, or -1 with e filled. */
static int check_finite(const STTensor *t, size_t at, const float *x, size_t n, Error *e) {
    const size_t i = first_not_finite(x, n);
    if (i == n) return 0;
    return fail(
        e,
        "%s: tensor %.*s: element %zu is %g; the file is damaged, or the training that made "
        "it diverged: use an earlier one",
        t->file, SHOWN, t->name, at + i, (double)x[i]);
}

int hf_read_tensor(const STTensor *t, GPT2 *m, int i, GPT2Part part, Error *e) {
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (size_t at = 0; at < t->n && !status; at += PIECE) {
        const size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        status = st_floats(t, at, n, piece, e);
        if (!status) status = check_finite(t, at, piece, n, e);
        if (!status && m) gpt2_write(m, i, part, at, n, piece);
    }
    free(piece);
    return status;
}

/* Drops a mapped tensor's pages from this process, not from the page cache, so that a copied model
 * is never resident twice, and of a mapped one only what is used. */
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
        if (frozen && ((t->type == ST_BF16 && gpt2_map_bf16(m, i, t->data)) ||
                       gpt2_map(m, i, t->type == ST_F32 ? t->data : NULL)))
            status = hf_read_tensor(t, NULL, i, GPT2_WEIGHT, e);
        else
            status = hf_read_tensor(t, m, i, GPT2_WEIGHT, e);
        drop_pages(t);
    }
    return status;
}

/* Adds the bias of a v_head to a SCORE_HEAD, which has none: see hf_load_head. */
static int fold_bias(GPT2 *m, const Weights *w, Error *e) {
    const STTensor *t = find_weight(w, "v_head.summary.bias");
    float bias = 0;
    if (gpt2_config(m)->head != SCORE_HEAD || !t) return 0;
    if (t->n != 1)
        return fail(e, "%s: tensor %s has %zu elements, expected 1", t->file, t->name, t->n);
    if (st_floats(t, 0, 1, &bias, e) || check_finite(t, 0, &bias, 1, e)) return -1;
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
    if (exists_in(dir, "adapter_config.json"))
        note_once("%s also holds an adapter, which is not applied: that needs --adapter", dir);
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
    if (head == SCORE_HEAD && find_weight(w, "v_head.summary.bias")) frozen = false;
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
