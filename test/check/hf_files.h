/*
 * hf_files.h - for tests of common/files/: a directory to work in, safetensors files built byte by
 * byte and taken apart again, and a small model in every layout.
 *
 * It shares no code with common/files/: the two could otherwise agree on the same mistake.
 */
#ifndef POSTTRAIN_HF_FILES_H
#define POSTTRAIN_HF_FILES_H

#include "files/hf.h"
#include "util.h"

#include <check.h>
#include <dirent.h>
#include <unistd.h>

/* ---- A directory to work in ------------------------------------------------------------------ */

static char here[256];  // fresh for every test

static inline void remove_tree(const char *path) {
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char *inner = path_join(path, entry->d_name);
        if (unlink(inner)) remove_tree(inner);
        free(inner);
    }
    if (entries) closedir(entries);
    rmdir(path);
}

static inline void setup(void) {
    const char *base = getenv("TMPDIR");
    snprintf(here, sizeof here, "%.200s/check_hf.XXXXXX", base ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(here));
}

static inline void teardown(void) { remove_tree(here); }

/* The path here/name. It is valid until the eighth call after this one. */
static const char *in(const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", here, name);
    return path;
}

static inline void put(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static inline void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

static inline Str get(const char *name) {
    Str s = {0};
    Error e;
    ck_assert_msg(!read_file(in(name), 1 << 28, &s, &e), "%s", e.text);
    return s;
}

static inline void ck_same(Str a, Str b) {
    ck_assert_uint_eq(a.n, b.n);
    ck_assert_int_eq(memcmp(a.s, b.s, a.n), 0);
    free(a.s);
    free(b.s);
}

static inline Str text(const char *s) { return (Str){.s = xstrdup(s), .n = strlen(s)}; }

static inline int files_in(const char *name) {
    int n = 0;
    DIR *entries = opendir(in(name));
    for (struct dirent *entry; entries && (entry = readdir(entries));) n += entry->d_name[0] != '.';
    if (entries) closedir(entries);
    return n;
}

/* Fails unless the message has every one of the parts (NULL ends them). */
static inline void ck_says(const Error *e, ...) {
    va_list parts;
    va_start(parts, e);
    for (const char *part; (part = va_arg(parts, const char *));)
        ck_assert_msg(strstr(e->text, part) != NULL, "\"%s\" is not in: %s", part, e->text);
    va_end(parts);
    ck_assert_ptr_null(strchr(e->text, '\n'));
}

static char full_for[600];  // a file for which the disk is full, or ""

/* In the place of the C library's: the temporary file of full_for finds a full disk. */
int fflush(FILE *f) {
    char link[64], path[700];
    if (!f || !*full_for) return fflush_unlocked(f);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fileno(f));
    const ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    if (strncmp(path, full_for, strlen(full_for))) return fflush_unlocked(f);
    *full_for = 0;
    errno = ENOSPC;
    return EOF;
}

/* Makes the next writing of here/name fail with a full disk. */
static inline void fill_disk_for(const char *name) {
    snprintf(full_for, sizeof full_for, "%s" UNFINISHED_MARK, in(name));
}

/* ---- Building safetensors files -------------------------------------------------------------- */

/* A file of length, header and data. The length is normally strlen(header). */
static inline Str file_of(size_t length, const char *header, const void *data, size_t n) {
    Str s = {0};
    for (int i = 0; i < 8; i++) str_add(&s, &(char){(char)(length >> 8 * i)}, 1);
    str_add(&s, header, strlen(header));
    str_add(&s, data, n);
    return s;
}

typedef struct {
    Str header, data;
} Build;

/* Adds a tensor whose data are n bytes; shape as JSON text. */
static inline void build_add(Build *b, const char *name, const char *type, const char *shape,
                             const void *data, size_t n) {
    str_printf(&b->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
               b->header.n ? "," : "", name, type, shape, b->data.n, b->data.n + n);
    str_add(&b->data, data, n);
}

/* Writes the file and empties b. The data begin misaligned bytes past a multiple of 8. */
static inline void build_end(Build *b, const char *name, size_t misaligned) {
    Str header = {0};
    str_printf(&header, "{%s}", b->header.s);
    while (header.n % 8 != misaligned) str_add(&header, " ", 1);
    Str file = file_of(header.n, header.s, b->data.s, b->data.n);
    put(name, file.s, file.n);
    free(file.s);
    free(header.s);
    free(b->header.s);
    free(b->data.s);
    *b = (Build){0};
}

/* ---- Taking them apart ----------------------------------------------------------------------- */

/* One tensor, as take_apart finds it. */
typedef struct {
    char name[96];
    int ndim;
    size_t shape[2], begin, end;
} Found;

/* A strict parser that accepts only the form of a compact writer: metadata first, then the tensors
   in the order of their data, without holes. It does not decode escapes in names. Returns the
   number of tensors. */
static inline int take_apart(Str file, const char *metadata, Found *found, int most,
                             const char **data) {
    size_t n = 0, at = 0;
    ck_assert_uint_ge(file.n, 8);
    for (int i = 7; i >= 0; i--) n = n << 8 | (unsigned char)file.s[i];
    ck_assert_uint_le(n, file.n - 8);
    ck_assert_uint_eq((8 + n) % 64, 0);
    char *header = strndup(file.s + 8, n), *p = header;
    Str start = {0};
    str_printf(&start, "{\"__metadata__\":{%s}", metadata);
    ck_assert_msg(!strncmp(p, start.s, start.n), "%.200s does not begin with %s", p, start.s);
    p += start.n;
    free(start.s);
    int count = 0;
    while (*p == ',') {
        ck_assert_int_lt(count, most);
        Found *f = &found[count++];
        int used = 0;
        ck_assert_int_eq(
            sscanf(p, ",\"%95[^\"]\":{\"dtype\":\"F32\",\"shape\":[%n", f->name, &used), 1);
        ck_assert_msg(used > 0, "%.100s", p);
        p += used;
        size_t elements = 1;
        for (f->ndim = 0; *p != ']'; f->ndim++) {
            ck_assert_int_lt(f->ndim, 2);
            if (f->ndim) ck_assert_int_eq(*p++, ',');
            f->shape[f->ndim] = strtoull(p, &p, 10);
            elements *= f->shape[f->ndim];
        }
        used = 0;
        ck_assert_int_eq(sscanf(p, "],\"data_offsets\":[%zu,%zu]}%n", &f->begin, &f->end, &used),
                         2);
        ck_assert_msg(used > 0, "%.100s", p);
        p += used;
        ck_assert_uint_eq(f->begin, at);
        ck_assert_uint_eq(f->end - f->begin, 4 * elements);
        at = f->end;
    }
    ck_assert_int_eq(*p++, '}');
    ck_assert_uint_eq(strspn(p, " "), strlen(p));
    ck_assert_uint_eq((size_t)(p - header) + strlen(p), n);  // no NUL inside
    ck_assert_uint_eq(8 + n + at, file.n);
    free(header);
    *data = file.s + 8 + n;
    return count;
}

/* ---- A model and its files ------------------------------------------------------------------- */

/* The members of the config of openai-community/gpt2, with other sizes. */
#define CONFIG_SIZES                                                                   \
    "\"n_ctx\": 9, \"n_embd\": 6, \"n_head\": 2, \"n_layer\": 2, \"n_positions\": 7, " \
    "\"vocab_size\": 11"
#define CONFIG_REST                                                                            \
    "\"activation_function\": \"gelu_new\", \"architectures\": [\"GPT2LMHeadModel\"], "        \
    "\"attn_pdrop\": 0.1, "                                                                    \
    "\"bos_token_id\": 10, \"embd_pdrop\": 0.2, \"eos_token_id\": 10, \"initializer_range\": " \
    "0.02, "                                                                                   \
    "\"layer_norm_epsilon\": 1e-05, \"model_type\": \"gpt2\", \"resid_pdrop\": 0.3"
#define CONFIG "{" CONFIG_REST ", " CONFIG_SIZES "}"

enum { V = 11, P = 7, C = 6, L = 2, F = 24 };  // as in CONFIG

typedef struct {
    char name[48];
    int ndim, shape[2];
} Spec;

/* The tensors of a GPT-2 of these sizes, after the format's description. */
static inline int specification(Spec *s) {
    static const struct {
        const char *name;
        int ndim, a, b;
    } layer[] = {{"ln_1.weight", 1, C, 1},
                 {"ln_1.bias", 1, C, 1},
                 {"attn.c_attn.weight", 2, C, 3 * C},
                 {"attn.c_attn.bias", 1, 3 * C, 1},
                 {"attn.c_proj.weight", 2, C, C},
                 {"attn.c_proj.bias", 1, C, 1},
                 {"ln_2.weight", 1, C, 1},
                 {"ln_2.bias", 1, C, 1},
                 {"mlp.c_fc.weight", 2, C, F},
                 {"mlp.c_fc.bias", 1, F, 1},
                 {"mlp.c_proj.weight", 2, F, C},
                 {"mlp.c_proj.bias", 1, C, 1}};
    int n = 0;
    s[n++] = (Spec){"wte.weight", 2, {V, C}};
    s[n++] = (Spec){"wpe.weight", 2, {P, C}};
    for (int l = 0; l < L; l++)
        for (int i = 0; i < 12; i++) {
            s[n] = (Spec){"", layer[i].ndim, {layer[i].a, layer[i].b}};
            snprintf(s[n++].name, sizeof s->name, "h.%d.%s", l, layer[i].name);
        }
    s[n++] = (Spec){"ln_f.weight", 1, {C, 1}};
    s[n++] = (Spec){"ln_f.bias", 1, {C, 1}};
    return n;
}
enum { TENSORS = 4 + 12 * L };

static inline int elements(const Spec *s) { return s->shape[0] * (s->ndim == 2 ? s->shape[1] : 1); }

/* Element k of tensor i: one of the 67 multiples of 1/16 up to 33/16, which are exact in F16 and
 * BF16. */
static inline float value(int i, int k) { return (float)((i * 29 + k * 13) % 67 - 33) / 16; }

/* How a model's file is written. All zero is the form of openai-community/gpt2 without its masks.
 */
typedef struct {
    const char *prefix, *type;  // NULL: "", "F32"
    bool masks;
    int head;  // lm_head.weight: 0 none, 1 as wte, 2 differs in element 40, 3 is another shape
    int misaligned;
    const char *without, *reshaped, *retyped,
        *extra;         // a tensor left out, with its sizes swapped, of type I32, added
    const char *outer;  // before the names of the two heads; NULL: ""
    int scalar;         // a scalar head: 0 none, 1 score.weight, 2 v_head.summary.weight and .bias
} Style;

static inline Str encoded(const char *type, int i, int n) {
    Str s = {0};
    for (int k = 0; k < n; k++) {
        float x = value(i, k);
        uint32_t bits;
        const double wide = (double)x;
        memcpy(&bits, &x, 4);
        if (!strcmp(type, "F64")) {
            str_add(&s, (const char *)&wide, 8);
            continue;
        }
        if (!strcmp(type, "BF16")) bits >>= 16;
        if (!strcmp(type, "F16") && x != 0)  // no subnormals among the values
            bits = (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - ((127 - 15) << 10));
        str_add(&s, (const char *)&bits,
                type[0] == 'F' && type[1] == '3' ? 4 : 2);  // little-endian
    }
    return s;
}

static inline void build_tensor(Build *b, const Style *style, const Spec *s, int i) {
    char name[96], shape[48];
    const char *type = style->type ? style->type : "F32";
    int n = elements(s), swapped = style->reshaped && !strcmp(style->reshaped, s->name);
    snprintf(name, sizeof name, "%s%s", style->prefix ? style->prefix : "", s->name);
    if (s->ndim == 2)
        snprintf(shape, sizeof shape, "[%d,%d]", s->shape[swapped], s->shape[!swapped]);
    else
        snprintf(shape, sizeof shape, swapped ? "[%d,1]" : "[%d]", s->shape[0]);
    Str data = encoded(type, i, n);
    build_add(b, name, style->retyped && !strcmp(style->retyped, s->name) ? "I32" : type, shape,
              data.s, data.n);
    free(data.s);
}

static inline void build_model(const char *file, const Style *style, int first, int last) {
    Spec s[TENSORS];
    Build b = {0};
    unsigned char mask[P * P] = {0};
    float head[V * C];
    specification(s);
    for (int i = last - 1; i >= first; i--)  // not in the model's order
        if (!style->without || strcmp(style->without, s[i].name)) build_tensor(&b, style, &s[i], i);
    for (int l = 0; l < L && style->masks; l++) {
        char name[96];
        snprintf(name, sizeof name, "%sh.%d.attn.bias", style->prefix ? style->prefix : "", l);
        build_add(&b, name, "BOOL", "[1,1,7,7]", mask, sizeof mask);
        snprintf(name, sizeof name, "%sh.%d.attn.masked_bias", style->prefix ? style->prefix : "",
                 l);
        build_add(&b, name, "F32", "[]", mask, 4);
    }
    for (int k = 0; k < V * C; k++) head[k] = value(0, k);
    if (style->head == 2) head[40] = 0.75f;
    char lm_head[64], score[64];
    const char *outer = style->outer ? style->outer : "";
    snprintf(lm_head, sizeof lm_head, "%slm_head.weight", outer);
    snprintf(score, sizeof score, "%s%s", outer,
             style->scalar == 1 ? "score.weight" : "v_head.summary.weight");
    if (style->head)
        build_add(&b, lm_head, "F32", style->head == 3 ? "[6,11]" : "[11,6]", head, sizeof head);
    float scalar[C + 1];
    for (int k = 0; k <= C; k++) scalar[k] = value(99, k);
    if (style->scalar) build_add(&b, score, "F32", "[1,6]", scalar, 4 * C);
    snprintf(score, sizeof score, "%sv_head.summary.bias", outer);
    if (style->scalar == 2) build_add(&b, score, "F32", "[1]", scalar + C, 4);
    if (style->extra) build_add(&b, style->extra, "F32", "[1]", head, 4);
    build_end(&b, file, (size_t)style->misaligned);
}

/* here/config.json and here/model.safetensors */
static inline void build_directory(const Style *style) {
    put_text("config.json", CONFIG);
    build_model("model.safetensors", style, 0, TENSORS);
}

static inline void ck_model(const GPT2 *m) {
    Spec s[TENSORS];
    ck_assert_int_eq(gpt2_tensors(m), specification(s));
    for (int i = 0; i < TENSORS; i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        float x[V * C + C * F];
        ck_assert_str_eq(t->name, s[i].name);
        ck_assert_uint_eq(t->n, (size_t)elements(&s[i]));
        gpt2_read(m, i, GPT2_WEIGHT, 0, t->n, x);
        for (int k = 0; k < (int)t->n; k++)
            ck_assert_msg(x[k] == value(i, k), "%s[%d] is %g, expected %g", t->name, k,
                          (double)x[k], (double)value(i, k));
    }
}

static inline GPT2 *ck_load(const char *dir, bool frozen) {
    Error e;
    GPT2 *m = hf_load(dir, frozen, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    return m;
}

#endif
