/*
 * hf.c - Hugging Face directories.
 *
 * safetensors (reading, writing), config.json, the weights of a GPT-2 in one file or in shards, and
 * the moments of a training state. The older pytorch_model.bin is read by torch.c, and from there
 * on its tensors are like any others. Left out: writing shards, and every tensor type but F32, F16
 * and BF16 (others are understood as far as their size, so that they can be skipped or refused by
 * name).
 *
 * Whatever a file says is believed only after it was checked against the file's size, so memory is
 * asked for in proportion to what is really there. JSON text is bounded before it is parsed: its
 * tree takes far more room.
 */
#include "files/hf.h"
#include "files/torch.h"

#include <jansson.h>
#include <sys/mman.h>

enum {
    PIECE = 1 << 18,  // floats copied at a time: 1 MiB stays in the L2 cache between its two copies
    MAX_HEADER = 100000000,  // bytes, the format's own limit
    MAX_JSON_VALUES =
        1000000,           // in a header: at most 115 MB once parsed, and room for 100,000 tensors
    MAX_CONFIG = 4 << 20,  // bytes of config.json
    MAX_INDEX = 16 << 20,  // bytes of model.safetensors.index.json
    MAX_TEMPLATE = 64 << 10,  // bytes of template.txt
    SHOWN = 120,              // characters of a name out of a file that a message repeats
};

/* jansson passes over some allocations that fail, and a text then lacks a letter. Every program
   that links this file gives it memory that is never NULL. */
static void *json_memory(size_t bytes) { return xmalloc(bytes); }
__attribute__((constructor)) static void json_gets_checked_memory(void) {
    json_set_alloc_funcs(json_memory, free);
}

static char *path_of(const char *dir, const char *name) {
    Str path = {0};
    str_printf(&path, "%s/%s", dir, name);
    return path.s;
}

/* "[50257,768]" */
static const char *shape_text(char out[192], int ndim, const size_t *shape) {
    size_t n = (size_t)snprintf(out, 192, "[");
    for (int i = 0; i < ndim; i++)
        n += (size_t)snprintf(out + n, 192 - n, "%s%zu", i ? "," : "", shape[i]);
    snprintf(out + n, 192 - n, "]");
    return out;
}

/* ---- safetensors: reading -------------------------------------------------------------------- */

/*
 *   offset 0     N, the length of the header: 8 bytes, little-endian
 *   offset 8     N bytes of JSON: {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [BEGIN,
 * END]}, ..} and perhaps "__metadata__": {KEY: STRING, ..} offset 8+N   the data. BEGIN and END
 * count from here, and the tensors tile it: no hole, no overlap, nothing behind.
 */
struct SafeTensors {
    char *name;
    const unsigned char *bytes;
    size_t size;
    bool mapped;
    json_t *header;      // owns the tensors' names and the metadata
    TorchTensors torch;  // instead of a header, when the file is a pytorch_model.bin: owns the
                         // tensors and their names
    STTensor *tensor;    // in the order of the data, or of the state dict
    const STTensor **by_name;  // the same, sorted by name
    int count;
};

static const struct {
    const char *name;
    STType type;
    unsigned bits;
} types[] = {
    {"F32", ST_F32, 32},          {"F16", ST_F16, 16},      {"BF16", ST_BF16, 16},
    {"F64", ST_F64, 64},          {"I64", ST_I64, 64},      {"I32", ST_I32, 32},
    {"I16", ST_I16, 16},          {"I8", ST_I8, 8},         {"U8", ST_U8, 8},
    {"BOOL", ST_BOOL, 8},         {"U16", ST_OTHER, 16},    {"U32", ST_OTHER, 32},
    {"U64", ST_OTHER, 64},        {"C64", ST_OTHER, 64},    {"F8_E4M3", ST_OTHER, 8},
    {"F8_E5M2", ST_OTHER, 8},     {"F8_E8M0", ST_OTHER, 8}, {"F4", ST_OTHER, 4},
    {"F6_E2M3", ST_OTHER, 6},     {"F6_E3M2", ST_OTHER, 6}, {"F8_E4M3FNUZ", ST_OTHER, 8},
    {"F8_E5M2FNUZ", ST_OTHER, 8},
};

/* dtype -> t->type, t->type_name; returns the bits of an element, or 0 with e filled. */
static unsigned read_type(STTensor *t, json_t *dtype, Error *e) {
    const char *text = json_string_value(dtype);
    for (size_t i = 0; text && i < sizeof types / sizeof *types; i++) {
        if (strcmp(text, types[i].name)) continue;
        t->type = types[i].type;
        snprintf(t->type_name, sizeof t->type_name, "%s", text);
        return types[i].bits;
    }
    fail(e,
         "%s: tensor %.*s: dtype is %.*s, expected one that safetensors defines, such as F32, F16 "
         "or BF16",
         t->file, SHOWN, t->name, SHOWN, text ? text : "not a string");
    return 0;
}

/* shape -> t->ndim, t->shape, t->n, t->bytes. 0, or -1 with e filled. */
static int read_shape(STTensor *t, json_t *shape, unsigned bits, Error *e) {
    const size_t most = sizeof t->shape / sizeof *t->shape;
    if (!json_is_array(shape))
        return fail(e, "%s: tensor %.*s: shape is not an array of sizes", t->file, SHOWN, t->name);
    if (json_array_size(shape) > most)
        return fail(e, "%s: tensor %.*s has %zu dimensions, expected at most %zu", t->file, SHOWN,
                    t->name, json_array_size(shape), most);
    t->ndim = (int)json_array_size(shape);
    t->n = 1;
    size_t all_bits;
    for (int i = 0; i < t->ndim; i++) {
        json_t *size = json_array_get(shape, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return fail(e,
                        "%s: tensor %.*s: size %d of its shape is not a whole number of 0 or more",
                        t->file, SHOWN, t->name, i);
        t->shape[i] = (size_t)json_integer_value(size);
        if (__builtin_mul_overflow(t->n, t->shape[i], &t->n)) t->n = SIZE_MAX;
    }
    char text[192];
    if (t->n == SIZE_MAX || __builtin_mul_overflow(t->n, (size_t)bits, &all_bits))
        return fail(e, "%s: tensor %.*s: shape %s of %s overflows 64 bits", t->file, SHOWN, t->name,
                    shape_text(text, t->ndim, t->shape), t->type_name);
    if (all_bits % 8)
        return fail(e, "%s: tensor %.*s: shape %s of %s is %zu bits, expected whole bytes", t->file,
                    SHOWN, t->name, shape_text(text, t->ndim, t->shape), t->type_name, all_bits);
    t->bytes = all_bits / 8;
    return 0;
}

/* data_offsets -> t->data, inside the `size` bytes at data. 0, or -1 with e filled. */
static int read_offsets(STTensor *t, json_t *offsets, const unsigned char *data, size_t size,
                        Error *e) {
    json_t *b = json_array_get(offsets, 0), *d = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(d))
        return fail(e, "%s: tensor %.*s: data_offsets is not a pair of whole numbers", t->file,
                    SHOWN, t->name);
    json_int_t begin = json_integer_value(b), end = json_integer_value(d);
    if (begin < 0 || end < begin)
        return fail(e, "%s: tensor %.*s: data_offsets [%lld,%lld] do not go forward", t->file,
                    SHOWN, t->name, (long long)begin, (long long)end);
    if ((size_t)end > size)
        return fail(e,
                    "%s: tensor %.*s ends at byte %lld of the data, but the file has %zu; it was "
                    "probably cut short: "
                    "fetch it again",
                    t->file, SHOWN, t->name, (long long)end, size);
    char text[192];
    if ((size_t)(end - begin) != t->bytes)
        return fail(e,
                    "%s: tensor %.*s: data_offsets [%lld,%lld] span %lld bytes, expected %zu for "
                    "%s of shape %s",
                    t->file, SHOWN, t->name, (long long)begin, (long long)end,
                    (long long)(end - begin), t->bytes, t->type_name,
                    shape_text(text, t->ndim, t->shape));
    t->data = data + begin;
    return 0;
}

static int by_position(const void *a, const void *b) {
    const STTensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;  // of several in one place, the empty ones come first
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const STTensor *const *)a)->name, (*(const STTensor *const *)b)->name);
}

static void sort_names(SafeTensors *st) {
    st->by_name = xcalloc((size_t)st->count, sizeof *st->by_name);
    for (int i = 0; i < st->count; i++) st->by_name[i] = &st->tensor[i];
    qsort(st->by_name, (size_t)st->count, sizeof *st->by_name, by_name);
}

/* The tensors, sorted, must tile the `size` bytes at data. */
static int check_tiling(const SafeTensors *st, const unsigned char *data, size_t size, Error *e) {
    size_t covered = 0;
    for (int i = 0; i < st->count; i++) {
        const STTensor *t = &st->tensor[i];
        size_t begin = (size_t)(t->data - data);
        if (begin > covered)
            return fail(
                e, "%s: tensor %.*s begins at byte %zu of the data, expected %zu: a hole before it",
                st->name, SHOWN, t->name, begin, covered);
        if (begin < covered)
            return fail(e,
                        "%s: tensor %.*s begins at byte %zu of the data, expected %zu: it overlaps "
                        "tensor %.*s",
                        st->name, SHOWN, t->name, begin, covered, SHOWN, st->tensor[i - 1].name);
        covered += t->bytes;
    }
    if (covered != size)
        return fail(e, "%s: the tensors take %zu bytes of data, but the file has %zu", st->name,
                    covered, size);
    return 0;
}

/* __metadata__ must be strings by name. */
static int check_metadata(const SafeTensors *st, json_t *metadata, Error *e) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return fail(e, "%s: __metadata__ is not a JSON object of strings", st->name);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return fail(e, "%s: __metadata__: %.*s is not a string", st->name, SHOWN, key);
    }
    return 0;
}

/* Every value but the first follows one of , [ { so their number bounds the tree that the text can
 * make. */
static int check_json_size(const char *name, const char *text, size_t n, Error *e) {
    size_t values = 1;
    for (size_t i = 0; i < n; i++) values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (values > MAX_JSON_VALUES)
        return fail(e, "%s: the header has up to %zu JSON values, the most that is read is %d",
                    name, values, MAX_JSON_VALUES);
    return 0;
}

/* The header's text -> st->header. */
static int read_header(SafeTensors *st, const char *text, size_t n, Error *e) {
    if (!n || text[0] != '{')
        return fail(e, "%s: the header does not begin with '{': this is not a safetensors file",
                    st->name);
    if (check_json_size(st->name, text, n, e)) return -1;
    json_error_t error;
    st->header = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!st->header)
        return fail(e, "%s: byte %d of the header: %s", st->name, error.position, error.text);
    return 0;
}

/* st->header -> st->tensor. */
static int read_tensors(SafeTensors *st, const unsigned char *data, size_t size, Error *e) {
    const char *name;
    json_t *value;
    st->tensor = xcalloc(json_object_size(st->header), sizeof *st->tensor);
    json_object_foreach(st->header, name, value) {
        if (!strcmp(name, "__metadata__")) {
            if (check_metadata(st, value, e)) return -1;
            continue;
        }
        STTensor *t = &st->tensor[st->count++];
        t->name = name;
        t->file = st->name;
        if (!json_is_object(value))
            return fail(e, "%s: tensor %.*s is not a JSON object", st->name, SHOWN, name);
        unsigned bits = read_type(t, json_object_get(value, "dtype"), e);
        if (!bits || read_shape(t, json_object_get(value, "shape"), bits, e) ||
            read_offsets(t, json_object_get(value, "data_offsets"), data, size, e))
            return -1;
    }
    qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_position);
    sort_names(st);
    return check_tiling(st, data, size, e);
}

/* Takes over bytes, also when it fails: mapped ones are unmapped by st_close. */
static SafeTensors *st_read(const void *bytes, size_t size, bool mapped, const char *name,
                            Error *e) {
    SafeTensors *st = xcalloc(1, sizeof *st);
    *st = (SafeTensors){.name = xstrdup(name), .bytes = bytes, .size = size, .mapped = mapped};
    uint64_t n = 0;
    int status = 0;
    if (size < 8) {
        status = fail(e, "%s has %zu bytes, a safetensors file at least 10", name, size);
    } else {
        for (int i = 7; i >= 0; i--) n = n << 8 | st->bytes[i];
        if (n > MAX_HEADER)
            status = fail(e,
                          "%s: the header's length is %llu, the format's limit %d: this is not a "
                          "safetensors file; perhaps it is the pointer that "
                          "Git LFS leaves: fetch the file itself",
                          name, (unsigned long long)n, MAX_HEADER);
        else if (n > size - 8)
            status = fail(e,
                          "%s: the header's length is %llu, but only %zu bytes follow; the file "
                          "was probably cut short: "
                          "fetch it again",
                          name, (unsigned long long)n, size - 8);
    }
    if (!status) status = read_header(st, (const char *)st->bytes + 8, (size_t)n, e);
    if (!status) status = read_tensors(st, st->bytes + 8 + n, size - 8 - (size_t)n, e);
    if (status) {
        st_close(st);
        return NULL;
    }
    return st;
}

SafeTensors *st_parse(const void *bytes, size_t n, const char *name, Error *e) {
    return st_read(bytes, n, false, name, e);
}

/* The bytes of a file, read-only; NULL when it is empty. 0, or -1 with e filled. */
static int map_file(const char *path, const void **bytes, size_t *size, Error *e) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_NONBLOCK |
                            O_CLOEXEC);  // O_NONBLOCK: a pipe of that name must not hang us
    if (fd < 0) return fail(e, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        close(fd);
        return fail(e, "%s is not a regular file", path);
    }
    *size = (size_t)info.st_size;
    void *mapped = *size ? mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    int error = errno;
    close(fd);
    if (mapped == MAP_FAILED)
        return fail(e, "cannot map the %zu bytes of %s: %s", *size, path, strerror(error));
    *bytes = mapped;
    return 0;
}

SafeTensors *st_open(const char *path, Error *e) {
    const void *bytes = NULL;
    size_t size = 0;
    return map_file(path, &bytes, &size, e) ? NULL : st_read(bytes, size, size > 0, path, e);
}

/* The same of a pytorch_model.bin: a state dict has no metadata, and its tensors may share
 * elements. */
static SafeTensors *open_torch(const char *path, Error *e) {
    const void *bytes = NULL;
    size_t size = 0;
    if (map_file(path, &bytes, &size, e)) return NULL;
    SafeTensors *st = xcalloc(1, sizeof *st);
    *st = (SafeTensors){.name = xstrdup(path), .bytes = bytes, .size = size, .mapped = size > 0};
    if (torch_parse(&st->torch, bytes, size, st->name, e)) {
        st_close(st);
        return NULL;
    }
    st->tensor = st->torch.tensor;
    st->count = st->torch.count;
    sort_names(st);
    return st;
}

void st_close(SafeTensors *st) {
    if (!st) return;
    if (st->mapped) munmap((void *)st->bytes, st->size);
    json_decref(st->header);
    if (st->tensor != st->torch.tensor) free(st->tensor);
    torch_free(&st->torch);
    free(st->by_name);
    free(st->name);
    free(st);
}

int st_count(const SafeTensors *st) { return st->count; }

const STTensor *st_at(const SafeTensors *st, int i) { return &st->tensor[i]; }

const STTensor *st_find(const SafeTensors *st, const char *name) {
    const STTensor wanted = {.name = name}, *key = &wanted;
    const STTensor **found =
        bsearch(&key, st->by_name, (size_t)st->count, sizeof *st->by_name, by_name);
    return found ? *found : NULL;
}

const char *st_metadata(const SafeTensors *st, const char *key) {
    return json_string_value(json_object_get(json_object_get(st->header, "__metadata__"), key));
}

/* IEEE half: 1 sign, 5 exponent (bias 15), 10 fraction bits; every value is a float. */
static float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float x;
    if (rest < 0x400) {  // zero and subnormals: a multiple of 2^-24
        x = (float)rest * 0x1p-24f;
        memcpy(&bits, &x, 4);
    } else if (rest < 0x7c00) {
        bits = (rest << 13) + ((127u - 15u) << 23);  // the other bias
    } else {
        bits = 0x7f800000u | (rest & 0x3ff) << 13;  // infinity and NaN
    }
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

/* bfloat16 is the upper half of a float. */
static float float_of_bfloat16(uint16_t upper) {
    uint32_t bits = (uint32_t)upper << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

int st_floats(const STTensor *t, size_t offset, size_t n, float *out, Error *e) {
    if (t->type != ST_F32 && t->type != ST_F16 && t->type != ST_BF16)
        return fail(e, "%s: tensor %.*s has type %s, expected F32, F16 or BF16", t->file, SHOWN,
                    t->name, t->type_name);
    if (offset > t->n || n > t->n - offset)
        return fail(e, "%s: tensor %.*s has %zu elements, asked for %zu from %zu on", t->file,
                    SHOWN, t->name, t->n, n, offset);
    if (!n) return 0;
    if (t->type == ST_F32) {
        memcpy(out, t->data + 4 * offset, 4 * n);
        return 0;
    }
    const unsigned char *from = t->data + 2 * offset;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, from + 2 * i, 2);
        out[i] = t->type == ST_F16 ? float_of_half(bits) : float_of_bfloat16(bits);
    }
    return 0;
}

/* ---- safetensors: writing -------------------------------------------------------------------- */

struct STWriter {
    json_t *header;
    NewFile file;              // file.f is NULL until st_begin
    size_t declared, written;  // bytes of data
};

STWriter *st_new(void) {
    STWriter *w = xcalloc(1, sizeof *w);
    w->header = json_object();
    json_object_set_new(w->header, "__metadata__", json_object());
    st_note(w, "format", "pt");  // transformers refuses files that do not say what wrote them
    return w;
}

void st_note(STWriter *w, const char *key, const char *value) {
    if (json_object_set_new(json_object_get(w->header, "__metadata__"), key, json_string(value)))
        die("metadata %s cannot be written as JSON: it is not UTF-8", key);
}

void st_declare(STWriter *w, const char *name, int ndim, const size_t *shape) {
    if (json_object_get(w->header, name)) die("tensor %s is declared twice", name);
    json_t *sizes = json_array();
    size_t bytes = sizeof(float), begin = w->declared;
    for (int i = 0; i < ndim; i++) {
        json_array_append_new(sizes, json_integer((json_int_t)shape[i]));
        bytes *= shape[i];
    }
    w->declared += bytes;
    json_t *tensor = json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", sizes,
                               "data_offsets", (json_int_t)begin, (json_int_t)w->declared);
    if (json_object_set_new(w->header, name, tensor))
        die("tensor name %s cannot be written as JSON: it is not UTF-8", name);
}

int st_begin(STWriter *w, const char *path, Error *e) {
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) die("out of memory for the header of %s", path);
    Str header = {0};
    str_add(&header, "12345678", 8);  // the length goes here
    str_add(&header, text, strlen(text));
    while (header.n % 64)
        str_add(&header, " ", 1);  // so that the data can be used where it is mapped
    for (int i = 0; i < 8; i++) header.s[i] = (char)((header.n - 8) >> 8 * i);
    free(text);
    int status = newfile_open(&w->file, path, e);
    if (!status && fwrite(header.s, 1, header.n, w->file.f) != header.n)
        status = fail(e, "cannot write %s: %s; what stood there before is unchanged", path,
                      strerror(errno));
    free(header.s);
    return status;
}

int st_write(STWriter *w, const float *data, size_t n, Error *e) {
    w->written += n * sizeof *data;
    if (w->written > w->declared)
        return fail(e, "%s: %zu bytes of data handed over, %zu declared", w->file.path, w->written,
                    w->declared);
    bool bad = fwrite(data, sizeof *data, n, w->file.f) != n;
    if (!bad && w->written == w->declared)
        bad = fflush(w->file.f);  // the caller learns now whether all of it fits
    if (bad)
        return fail(e, "cannot write %s: %s; what stood there before is unchanged", w->file.path,
                    strerror(errno));
    return 0;
}

int st_end(STWriter *w, bool keep, Error *e) {
    int status = 0;
    if (keep && w->written != w->declared)
        status = fail(e, "%s: %zu bytes of data handed over, %zu declared", w->file.path,
                      w->written, w->declared);
    if (w->file.f && newfile_close(&w->file, keep && !status, e)) status = -1;
    json_decref(w->header);
    free(w);
    return status;
}

/* ---- config.json ----------------------------------------------------------------------------- */

/* A JSON object of at most `limit` bytes, or NULL with e filled. */
static json_t *read_json(const char *path, size_t limit, Error *e) {
    Str text = {0};
    json_error_t error;
    json_t *json = NULL;
    if (!read_file(path, limit, &text, e)) {
        json = json_loadb(text.s, text.n, JSON_REJECT_DUPLICATES, &error);
        if (!json) fail(e, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    }
    free(text.s);
    if (json && !json_is_object(json)) {
        fail(e, "%s: not a JSON object", path);
        json_decref(json);
        return NULL;
    }
    return json;
}

/* The sizes of a model. The limits are far above any GPT-2, and low enough that no product of two,
   times the layers, times four bytes, leaves 63 bits. */
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

/* A value as a message shows it; free it. */
static char *shown(json_t *value) {
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (text && strlen(text) > SHOWN) text[SHOWN] = 0;
    return text ? text : xstrdup("absent");
}

/* Fills e with: path: key is (what stands there), expected (what). Returns -1. */
__attribute__((format(printf, 5, 6))) static int refuse(Error *e, const char *path, json_t *config,
                                                        const char *key, const char *expected,
                                                        ...) {
    char reason[256], *found = shown(json_object_get(config, key));
    va_list args;
    va_start(args, expected);
    vsnprintf(reason, sizeof reason, expected, args);
    va_end(args);
    fail(e, "%s: %s is %s, expected %s", path, key, found, reason);
    free(found);
    return -1;
}

static int read_size(json_t *config, const char *path, const struct Size *size, int *out,
                     Error *e) {
    json_t *value = json_object_get(config, size->name),
           *other = size->alias ? json_object_get(config, size->alias) : NULL;
    const char *key = value || !other ? size->name : size->alias;
    if (value && other && !json_equal(value, other)) {
        char *text = shown(other);
        refuse(e, path, config, key, "%s, which is what its other name %s says", text, size->alias);
        free(text);
        return -1;
    }
    if (!value) value = other;
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > size->limit)
        return refuse(e, path, config, key, "a whole number from 1 to %d", size->limit);
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
        return refuse(e, path, config, "n_embd", "a multiple of n_head, which is %d", c->n_head);
    return 0;
}

/* A probability or the like, low <= x < 1; `otherwise` (the library's default) when absent. */
static int read_fraction(json_t *config, const char *path, const char *key, double low,
                         float otherwise, float *out, Error *e) {
    json_t *value = json_object_get(config, key);
    double x = value ? json_number_value(value) : otherwise;
    if ((value && !json_is_number(value)) || !(x >= low && x < 1))
        return refuse(e, path, config, key, "a number of at least %g and less than 1", low);
    *out = (float)x;
    return 0;
}

/* Switches that change the mathematics; each absent means its usual value. reorder_and_upcast_attn
   is not among them: it orders a computation in half precision, and in float32 changes nothing. */
static int check_switches(json_t *config, const char *path, Error *e) {
    static const struct {
        const char *name;
        bool usual;
        const char *why;
    } switches[] = {
        {"tie_word_embeddings", true, "the head is the token embedding"},
        {"scale_attn_weights", true, "attention is scaled by 1/sqrt(head size)"},
        {"scale_attn_by_inverse_layer_idx", false, "attention is scaled alike in every layer"},
        {"add_cross_attention", false, "there is no encoder to attend to"},
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        json_t *value = json_object_get(config, switches[i].name);
        if (value && !(json_is_boolean(value) && json_is_true(value) == switches[i].usual))
            return refuse(e, path, config, switches[i].name, "%s: here %s",
                          switches[i].usual ? "true" : "false", switches[i].why);
    }
    return 0;
}

static int check_kind(json_t *config, const char *path, Error *e) {
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (!type || strcmp(type, "gpt2"))
        return refuse(e, path, config, "model_type",
                      "\"gpt2\": other architectures are not implemented");
    json_t *value = json_object_get(
        config, "activation_function");  // both names mean the tanh approximation of GELU
    const char *activation = value ? json_string_value(value) : "gelu_new";
    if (!activation || (strcmp(activation, "gelu_new") && strcmp(activation, "gelu_pytorch_tanh")))
        return refuse(e, path, config, "activation_function",
                      "\"gelu_new\" or \"gelu_pytorch_tanh\"");
    return 0;
}

/* A GPT2ForSequenceClassification has a scalar head, and may have no more labels than that. Any
   other architecture counts as a language model: of a reward model in TRL's older form only its
   weights tell. */
static int read_head(json_t *config, const char *path, GPT2Config *c, Error *e) {
    const char *kind =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    if (!kind || strcmp(kind, "GPT2ForSequenceClassification")) return 0;
    c->head = SCORE_HEAD;
    json_t *labels = json_object_get(
        config, "id2label");  // num_labels is not stored; without id2label there are two
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

static bool exists(const char *dir, const char *name) {
    char *path = path_of(dir, name);
    bool yes = !access(path, F_OK);
    free(path);
    return yes;
}

int hf_config(const char *dir, GPT2Config *config, Error *e) {
    char *path = path_of(dir, "config.json");
    json_t *json = NULL;
    if (!access(path, F_OK) || errno != ENOENT)
        json = read_json(path, MAX_CONFIG, e);
    else if (exists(dir, "adapter_config.json"))
        fail(e,
             "%s holds an adapter, not a model: ./lora or ./adapter takes it, by --model BASE "
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

/* ---- the form of a prompt -------------------------------------------------------------------- */

static const char TEMPLATE_FILE[] = "template.txt";

/* Is dir/config.json DialoGPT's, or that of a model which was made from it? A directory without one
 * is not. */
static bool is_dialogpt(const char *dir) {
    char *path = path_of(dir, "config.json");
    json_t *config = read_json(path, MAX_CONFIG, NULL);
    const bool is = json_is_object(
        json_object_get(json_object_get(config, "task_specific_params"), "conversational"));
    json_decref(config);
    free(path);
    return is;
}

int hf_template(const char *dir, char **template, Error *e) {
    char *path = path_of(dir, TEMPLATE_FILE);
    Str text = {0};
    int status = 0;
    if (!access(path, F_OK)) {
        status = read_file(path, MAX_TEMPLATE, &text, e);
        if (!status && memchr(text.s, 0, text.n))
            status = fail(e, "%s: a byte of 0, where a line of text is expected", path);
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

/* ---- weights: one file or several ------------------------------------------------------------ */

typedef struct {
    char *path;          // of the file that has or lists all tensors, for messages
    const char *prefix;  // "" or "transformer.": both are in use, the second since 2020
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
        n > 4 && !strcmp(path + n - 4, ".bin") ? open_torch(path, e) : st_open(path, e);
    if (!st) return -1;
    w->file = xrealloc(w->file, (size_t)w->files + 1, sizeof *w->file);
    w->file[w->files++] = st;
    return 0;
}

/* The shard of that name in dir, opened when it is not yet. NULL with e filled. */
static SafeTensors *shard(Weights *w, const char *dir, const char *name, Error *e) {
    if (!*name || *name == '.' ||
        strchr(name, '/')) {  // an index must not lead out of its directory
        fail(e, "%s: \"%.*s\" is not the name of a file beside it", w->path, SHOWN, name);
        return NULL;
    }
    for (int i = 0; i < w->files; i++)
        if (!strcmp(strrchr(w->file[i]->name, '/') + 1, name)) return w->file[i];
    char *path = path_of(dir, name);
    int status = open_file(w, path, e);
    free(path);
    return status ? NULL : w->file[w->files - 1];
}

/* model.safetensors.index.json, pytorch_model.bin.index.json: {"weight_map": {TENSOR: FILE, ...}}
 */
static int open_shards(Weights *w, const char *dir, Error *e) {
    json_t *index = read_json(w->path, MAX_INDEX, e), *map = json_object_get(index, "weight_map"),
           *file;
    const char *name;
    int status = index ? 0 : -1;
    if (index && !json_object_size(map))
        status = fail(e, "%s: no weight_map, or an empty one", w->path);
    if (!status) json_object_foreach(map, name, file) {
            if (!json_is_string(file)) {
                status = fail(e, "%s: weight_map: %.*s has no file name", w->path, SHOWN, name);
                break;
            }
            SafeTensors *st = shard(w, dir, json_string_value(file), e);
            if (st && !st_find(st, name))
                status = fail(e, "%s: tensor %.*s should be in %s, and is not", w->path, SHOWN,
                              name, st->name);
            if (!st || status) {
                status = -1;
                break;
            }
        }
    json_decref(index);
    return status;
}

/* The first of these that is there: other programs choose alike. */
static Weights *weights_open(const char *dir, Error *e) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    const size_t n = sizeof names / sizeof *names;
    size_t i = 0;
    while (i < n && !exists(dir, names[i])) i++;
    if (i == n) {
        fail(e,
             "%s has no weights, neither model.safetensors nor pytorch_model.bin; if a download "
             "was cut short, the same command goes on with it",
             dir);
        return NULL;
    }
    Weights *w = xcalloc(1, sizeof *w);
    w->prefix = "";
    w->path = path_of(dir, names[i]);
    if (!(i % 2 ? open_shards(w, dir, e) : open_file(w, w->path, e))) return w;
    weights_close(w);
    return NULL;
}

/* prefix + name in any of the files, NULL when absent. */
static const STTensor *find_prefixed(const Weights *w, const char *prefix, const char *name) {
    Str full = {0};
    const STTensor *t = NULL;
    str_printf(&full, "%s%s", prefix, name);
    for (int i = 0; i < w->files && !t; i++) t = st_find(w->file[i], full.s);
    free(full.s);
    return t;
}

/* The scalar heads stand outside "transformer."; the names of the model's other tensors all begin
 * within it. */
static bool is_head(const char *name) {
    return !strcmp(name, "score.weight") || !strncmp(name, "v_head.", 7);
}

static const STTensor *find_weight(const Weights *w, const char *name) {
    return find_prefixed(w, is_head(name) ? "" : w->prefix, name);
}

static int find_prefix(Weights *w, Error *e) {
    bool bare = find_prefixed(w, "", "wte.weight"),
         prefixed = find_prefixed(w, "transformer.", "wte.weight");
    if (bare && prefixed)
        return fail(
            e, "%s: both wte.weight and transformer.wte.weight are there, expected one of them",
            w->path);
    if (!bare && !prefixed)
        return fail(e,
                    "%s: tensor wte.weight (or transformer.wte.weight) is missing; of the %d "
                    "tensors in %s the first is "
                    "%.*s",
                    w->path, w->file[0]->count, w->file[0]->name, SHOWN,
                    w->file[0]->count ? w->file[0]->tensor[0].name : "none");
    w->prefix = prefixed ? "transformer." : "";
    return 0;
}

/* A causal mask that older versions of transformers stored among the weights: h.N.attn.bias,
 * h.N.attn.masked_bias. */
static bool is_mask(const char *name) {
    if (strncmp(name, "h.", 2)) return false;
    name += 2;
    size_t digits = strspn(name, "0123456789");
    return digits &&
           (!strcmp(name + digits, ".attn.bias") || !strcmp(name + digits, ".attn.masked_bias"));
}

static bool same_shape(const STTensor *t, int ndim, const size_t *shape) {
    return t->ndim == ndim && !memcmp(t->shape, shape, (size_t)ndim * sizeof *shape);
}

/* A head stored beside the embedding it is tied to must equal it. */
static int check_head(const Weights *w, Error *e) {
    const STTensor *head = find_prefixed(w, "", "lm_head.weight"),
                   *wte = find_weight(w, "wte.weight");
    char a[192], b[192];
    if (!head) return 0;
    if (!same_shape(head, wte->ndim, wte->shape))
        return fail(e,
                    "%s: tensor lm_head.weight has shape %s, expected %s, that of %s: the head is "
                    "tied to it",
                    head->file, shape_text(a, head->ndim, head->shape),
                    shape_text(b, wte->ndim, wte->shape), wte->name);
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
                              "%.9g as in %s; "
                              "only models whose head is the token embedding are implemented",
                              head->file, at + i, (double)x[i], (double)y[i], wte->name);
    }
    free(x);
    return status;
}

/* What the files have for a tensor of the model. Of a scalar head that may be the other form's, or
 * nothing: NULL. */
static const STTensor *find_source(const Weights *w, const char *name) {
    static const char *const other[][2] = {{"score.weight", "v_head.summary.weight"},
                                           {"v_head.summary.weight", "score.weight"}};
    const STTensor *t = find_weight(w, name);
    for (int i = 0; i < 2 && !t; i++)
        if (!strcmp(name, other[i][0])) t = find_weight(w, other[i][1]);
    return t;
}

/* A tensor of the model must be there, in its shape. (Its type is looked at by whoever reads it.)
 */
static int check_weight(const Weights *w, const GPT2Tensor *wanted, Error *e) {
    const STTensor *t = find_source(w, wanted->name);
    size_t shape[2] = {(size_t)wanted->shape[0], (size_t)wanted->shape[1]};
    char a[192], b[192];
    if (!t && is_head(wanted->name)) return 0;
    if (!t)
        return fail(e, "%s: tensor %s%s is missing, expected with shape %s by config.json", w->path,
                    w->prefix, wanted->name, shape_text(b, wanted->ndim, shape));
    if (!same_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s by config.json", t->file, t->name,
                    shape_text(a, t->ndim, t->shape), shape_text(b, wanted->ndim, shape));
    return 0;
}

/* A tensor of file number `file` must be one of the model's (wanted), or one that is known to be
   superfluous: the head of the vocabulary, masks, and for a model with a scalar head the other
   form's bias, which hf_load_head reads. */
static int check_place(const Weights *w, int file, const STTensor *t, bool wanted, GPT2Head head,
                       Error *e) {
    size_t prefix = strlen(w->prefix);
    for (int i = 0; i < file; i++)
        if (st_find(w->file[i], t->name))
            return fail(e, "%s: tensor %.*s is also in %s", t->file, SHOWN, t->name,
                        w->file[i]->name);
    if (wanted || !strcmp(t->name, "lm_head.weight")) return 0;
    if (!strncmp(t->name, w->prefix, prefix) && is_mask(t->name + prefix)) return 0;
    if (head == SCORE_HEAD && !strcmp(t->name, "v_head.summary.bias")) return 0;
    if (head == LM_HEAD && is_head(t->name))
        return fail(e,
                    "%s: tensor %.*s makes this a reward or value model, not a language model; "
                    "give it where one is asked for",
                    t->file, SHOWN, t->name);
    return fail(e,
                "%s: tensor %.*s is none of the model that config.json describes, whose names are "
                "like %swte.weight",
                t->file, SHOWN, t->name, w->prefix);
}

/* plan is a model without weights: its list of tensors is what the files must have. */
static int check_weights(Weights *w, const GPT2 *plan, Error *e) {
    if (find_prefix(w, e) || check_head(w, e)) return -1;
    int status = 0;
    for (int i = 0; i < gpt2_tensors(plan) && !status; i++)
        status = check_weight(w, gpt2_tensor(plan, i), e);
    for (int f = 0; f < w->files && !status; f++) {
        SafeTensors *st = w->file[f];
        bool *wanted = xcalloc((size_t)st->count, sizeof *wanted);
        for (int i = 0; i < gpt2_tensors(plan); i++) {
            const STTensor *t = find_source(w, gpt2_tensor(plan, i)->name);
            if (t && t->file == st->name) wanted[t - st->tensor] = true;
        }
        for (int i = 0; i < st->count && !status; i++)
            status = check_place(w, f, &st->tensor[i], wanted[i], gpt2_config(plan)->head, e);
        free(wanted);
    }
    return status;
}

/* ---- loading --------------------------------------------------------------------------------- */

static int copy_tensor(GPT2 *m, int i, GPT2Part part, const STTensor *t, float *piece, Error *e) {
    for (size_t at = 0; at < t->n; at += PIECE) {
        size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        if (st_floats(t, at, n, piece, e)) return -1;
        gpt2_write(m, i, part, at, n, piece);
    }
    return 0;
}

/* The pages of a mapped tensor leave this process, not the page cache: a model that is copied is
 * never resident twice. */
static void let_go(const STTensor *t) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)t->data,
              end = begin + t->bytes;
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

/* A frozen model's tensors stay in the file where they are floats there and the backend can use
 * them; all others are copied. */
static int fill(GPT2 *m, const Weights *w, bool frozen, Error *e) {
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (int i = 0; i < gpt2_tensors(m) && !status; i++) {
        const STTensor *t = find_source(w, gpt2_tensor(m, i)->name);
        if (!t) {  // a scalar head that is not there yet
            if (frozen) gpt2_map(m, i, NULL);
            continue;
        }
        if (frozen && gpt2_map(m, i, t->type == ST_F32 ? t->data : NULL)) continue;
        status = copy_tensor(m, i, GPT2_WEIGHT, t, piece, e);
        let_go(t);
    }
    free(piece);
    return status;
}

/* The bias of a v_head, for a head that has none. */
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
             "%s holds a reward model (GPT2ForSequenceClassification), not a language model; give "
             "it where a reward model is asked for",
             dir);
        return NULL;
    }
    config.head = head;
    Weights *w = weights_open(dir, e);
    if (!w) return NULL;
    GPT2 *m = gpt2_create(
        &config,
        true);  // takes no room for weights: config.json may promise more than the files have
    if (check_weights(w, m, e)) {
        gpt2_free(m);
        weights_close(w);
        return NULL;
    }
    if (found)
        *found = find_source(w, head == SCORE_HEAD ? "score.weight" : "v_head.summary.weight");
    if (head == SCORE_HEAD && find_prefixed(w, "", "v_head.summary.bias"))
        frozen = false;  // ln_f.bias will differ from the file's
    if (!frozen) {
        gpt2_free(m);
        m = gpt2_create(&config, false);
    }
    int status = fill(m, w, frozen, e) || fold_bias(m, w, e) ? -1 : 0;
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

/* ---- saving ---------------------------------------------------------------------------------- */

/* Makes dir and what is missing above it. */
static int make_directory(const char *dir, Error *e) {
    char *path = xstrdup(dir);
    struct stat info;
    for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        if (slash == path) continue;
        *slash = 0;
        mkdir(path, 0777);  // whether it worked shows at the last one
        *slash = '/';
    }
    free(path);
    if (mkdir(dir, 0777) && errno != EEXIST)
        return fail(e, "cannot make the directory %s: %s", dir, strerror(errno));
    if (stat(dir, &info) || !S_ISDIR(info.st_mode)) return fail(e, "%s is not a directory", dir);
    return 0;
}

/* The double nearest to the shortest decimal that reads back as x: 1e-05 instead
 * of 9.9999997473787516e-06. */
static double decimal(float x) {
    char text[32];
    for (int digits = 1;; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (digits == 9 || strtof(text, NULL) == x) return strtod(text, NULL);
    }
}

/* The config of a model that came from no directory. */
static json_t *new_config(const GPT2Config *c) {
    json_t *end = c->vocab_size > 50256 ? json_integer(50256)
                                        : json_null();  // <|endoftext|> of GPT-2's own vocabulary
    return json_pack(
        "{s:s, s:s, s:f, s:O, s:f, s:o, s:f, s:f, s:i, s:i, s:i, s:i, s:i, s:f, s:i}", "model_type",
        "gpt2", "activation_function", "gelu_new", "attn_pdrop", decimal(c->attn_pdrop),
        "bos_token_id", end, "embd_pdrop", decimal(c->embd_pdrop), "eos_token_id", end,
        "initializer_range", 0.02, "layer_norm_epsilon", decimal(c->layer_norm_epsilon), "n_embd",
        c->n_embd, "n_head", c->n_head, "n_inner", c->n_inner, "n_layer", c->n_layer, "n_positions",
        c->n_positions, "resid_pdrop", decimal(c->resid_pdrop), "vocab_size", c->vocab_size);
}

/* What must change in a config so that it describes the model as it is saved: float32, not
 * quantised, these sizes. */
static void patch_config(json_t *config, const GPT2Config *c) {
    json_object_set_new(config, "architectures",
                        json_pack("[s]", c->head == SCORE_HEAD ? "GPT2ForSequenceClassification"
                                                               : "GPT2LMHeadModel"));
    if (c->head == SCORE_HEAD) {  // one label; and the library asks for a pad token, which only its
                                  // batches of several texts use
        json_object_set_new(config, "id2label", json_pack("{s:s}", "0", "LABEL_0"));
        json_object_set_new(config, "label2id", json_pack("{s:i}", "LABEL_0", 0));
        json_t *pad = json_object_get(config, "pad_token_id"),
               *end = json_object_get(config, "eos_token_id");
        if ((!pad || json_is_null(pad)) && end) json_object_set(config, "pad_token_id", end);
    }
    bool newer = json_object_get(
        config, "dtype");  // the name since transformers 5, which still reads the older one
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

/* The shortest text that reads back as the same numbers: jansson prints them all with one
 * precision. */
static char *config_text(json_t *config) {
    char *text = NULL;
    bool same = false;
    for (int digits = 15; digits <= 17 && !same; digits++) {
        free(text);
        text =
            json_dumps(config, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        same = json_equal(config, back);
        json_decref(back);
    }
    return text;
}

static int write_text(const char *path, const char *text, Error *e) {
    NewFile file;
    if (newfile_open(&file, path, e)) return -1;
    fprintf(file.f, "%s\n", text);
    return newfile_close(&file, true, e);
}

int hf_save_template(const char *dir, const char *template, Error *e) {
    char *path = path_of(dir, TEMPLATE_FILE);
    int status = write_text(path, template, e);
    free(path);
    return status;
}

/* from/config.json, patched, or a new one -> its text, or NULL with e filled. */
static char *make_config(const GPT2Config *c, const char *from, Error *e) {
    json_t *config;
    if (from) {
        GPT2Config before;
        char *path = path_of(from, "config.json");
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
    char *text = config_text(config);
    json_decref(config);
    if (!text) fail(e, "out of memory for config.json");
    return text;
}

/* Copies from/name to dir/name as it is; a file that is not there, or is the same file, needs no
 * copy. */
static int copy_file(const char *from, const char *dir, const char *name, Error *e) {
    char *source = path_of(from, name), *target = path_of(dir, name), block[65536];
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

/* Everything beside the weights that from_pretrained wants to find. */
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

static int write_tensor(STWriter *w, const GPT2 *m, int i, GPT2Part part, float *piece, Error *e) {
    size_t total = gpt2_tensor(m, i)->n;
    for (size_t at = 0; at < total; at += PIECE) {
        size_t n = total - at < PIECE ? total - at : PIECE;
        gpt2_read(m, i, part, at, n, piece);
        if (st_write(w, piece, n, e)) return -1;
    }
    return 0;
}

static void declare(STWriter *w, const GPT2Tensor *t, const char *before) {
    Str name = {0};
    size_t shape[2] = {(size_t)t->shape[0], (size_t)t->shape[1]};
    str_printf(&name, "%s%s", before, t->name);
    st_declare(w, name.s, t->ndim, shape);
    free(name.s);
}

static int write_weights(STWriter *w, const GPT2 *m, const char *path, Error *e) {
    for (int i = 0; i < gpt2_own_tensors(m); i++)
        declare(w, gpt2_tensor(m, i), is_head(gpt2_tensor(m, i)->name) ? "" : "transformer.");
    if (st_begin(w, path, e)) return -1;
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (int i = 0; i < gpt2_own_tensors(m) && !status; i++)
        status = write_tensor(w, m, i, GPT2_WEIGHT, piece, e);
    free(piece);
    return status;
}

static int write_config(const char *dir, const char *text, Error *e) {
    char *path = path_of(dir, "config.json");
    int status = write_text(path, text, e);
    free(path);
    return status;
}

/* The weights are what may not fit: they are written aside first, and take their place last. */
int hf_save(const GPT2 *m, const char *dir, const char *from, Error *e) {
    char *config = make_config(gpt2_config(m), from, e);
    if (!config) return -1;
    int status = make_directory(dir, e);
    if (!status) {
        char *path = path_of(dir, "model.safetensors");
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

/* ---- adapters -------------------------------------------------------------------------------- */

/* dir/adapter_config.json, and whose it is; NULL with e filled when it is neither library's. *path,
 * to be freed, is its name for messages. */
static json_t *read_adapter_config(const char *dir, char **path, AdapterFormat *format, Error *e) {
    *path = path_of(dir, "adapter_config.json");
    json_t *config = read_json(*path, MAX_CONFIG, e);
    json_t *version =
        json_object_get(config, "version");  // absent before the library was called adapters
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

int hf_adapter_format(const char *dir, AdapterFormat *format, Error *e) {
    char *path;
    json_t *config = read_adapter_config(dir, &path, format, e);
    int status = config ? 0 : -1;
    json_decref(config);
    free(path);
    return status;
}

/* Keys of PEFT's adapter_config.json that change nothing here: what a file says of itself, and what
   says only how training began. Conv1D or not (fan_in_fan_out) is known from the model. */
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

/* Says nothing: null, false, or an empty array, object or text. */
static bool is_nothing(json_t *value) {
    return json_is_null(value) || json_is_false(value) ||
           (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value)) ||
           (json_is_string(value) && !*json_string_value(value));
}

/* An absent key or one of these texts (NULL ends them). */
static int expect_text(json_t *config, const char *path, const char *key,
                       const char *const *allowed, const char *expected, Error *e) {
    json_t *value = json_object_get(config, key);
    const char *text = json_string_value(value);
    if (!value || json_is_null(value) || (text && among(allowed, text))) return 0;
    return refuse(e, path, config, key, "%s", expected);
}

/* target_modules: an array of names, or the word for all of them. */
static int read_targets(json_t *config, const char *path, LoraConfig *lora, Error *e) {
    json_t *value = json_object_get(config, "target_modules"), *name;
    const char *all = json_string_value(value);
    size_t i, n = 0;
    if (all && !strcmp(all, "all-linear")) return strcpy(lora->targets, all), 0;
    if (!json_array_size(value))
        return refuse(e, path, config, "target_modules",
                      "an array of names, or \"all-linear\" (patterns are not implemented)");
    json_array_foreach(value, i, name) {
        const char *text = json_string_value(name);
        if (!text || !*text || strchr(text, ','))
            return refuse(e, path, config, "target_modules",
                          "names of modules, such as \"c_attn\"");
        if (n + strlen(text) + 2 > sizeof lora->targets)
            return refuse(e, path, config, "target_modules", "at most %zu characters",
                          sizeof lora->targets);
        n += (size_t)snprintf(lora->targets + n, sizeof lora->targets - n, "%s%s", n ? "," : "",
                              text);
    }
    return 0;
}

static int read_lora(json_t *config, const char *path, LoraConfig *lora, Error *e) {
    static const char *const type[] = {"LORA", NULL}, *const task[] = {"CAUSAL_LM", NULL},
                             *const bias[] = {"none", NULL};
    static const char *const init[] = {"gaussian", "orthogonal", "eva",
                                       NULL};  // the others start from another base than the model
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
                    "true: otherwise the base model was changed, too", e))
        return -1;
    json_object_foreach(config, key, value) {
        if (among(harmless, key) || among(understood, key) || is_nothing(value)) continue;
        return refuse(e, path, config, key,
                      "nothing: it is not implemented, and the adapter would not be what it was "
                      "trained to be");
    }
    value = json_object_get(config, "r");
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > 65536)
        return refuse(e, path, config, "r", "a whole number from 1 to 65536");
    lora->r = (int)json_integer_value(value);
    value = json_object_get(config, "lora_alpha");
    lora->alpha = (float)(value ? json_number_value(value) : 8);  // the library's default
    if ((value && !json_is_number(value)) || !isfinite(lora->alpha))
        return refuse(e, path, config, "lora_alpha", "a number");
    value = json_object_get(config, "use_rslora");
    if (value && !json_is_boolean(value) && !json_is_null(value))
        return refuse(e, path, config, "use_rslora", "true or false");
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
    int status =
        !config ? -1
        : format != ADAPTER_PEFT
            ? fail(e, "%s is AdapterHub's, a bottleneck adapter: it belongs to adapter.c", path)
            : read_lora(config, path, lora, e);
    json_decref(config);
    free(path);
    return status;
}

/* -1, 0 or 1 as strcmp, for an array of texts. */
static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

char *hf_lora_text(const LoraConfig *lora, const char *base) {
    char *names = xstrdup(lora->targets), *rest = names;
    const char *target[sizeof lora->targets];
    size_t n = 0;
    for (char *name; (name = strsep(&rest, ","));) target[n++] = name;
    qsort(target, n, sizeof *target, by_text);  // PEFT's is a set
    json_t *targets = json_array(), *alpha = json_real(decimal(lora->alpha));
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
        "layers_to_transform", "lora_alpha", alpha, "lora_dropout", decimal(lora->dropout),
        "modules_to_save", "peft_type", "LORA", "r", lora->r, "revision", "target_modules", targets,
        "task_type", "CAUSAL_LM");
    if (!config)
        die("the name of the base model or of a target is not UTF-8, and JSON cannot hold it");
    if (lora->rslora)
        json_object_set_new(config, "use_rslora",
                            json_true());  // older versions do not know the key
    char *text = config_text(config);
    json_decref(config);
    free(names);
    return text;
}

/* Does tensor i go into the file of an adapter: it was added, or it is a norm that trains with what
 * was. */
static bool is_added(const GPT2 *m, int i) {
    return i >= gpt2_own_tensors(m) ||
           (gpt2_trains(m) == TRAIN_NORMS && strstr(gpt2_tensor(m, i)->name, "ln_"));
}

/* What stands before its name there. */
static const char *added_prefix(const GPT2 *m, int i) {
    return i < gpt2_own_tensors(m) ? "transformer." : "";
}

int hf_save_added(const GPT2 *m, const char *dir, const char *weights, const char *config,
                  Error *e) {
    if (make_directory(dir, e)) return -1;
    char *path = path_of(dir, weights), *config_path = path_of(dir, "adapter_config.json");
    STWriter *w = st_new();
    for (int i = 0; i < gpt2_tensors(m); i++)
        if (is_added(m, i)) declare(w, gpt2_tensor(m, i), added_prefix(m, i));
    int status = st_begin(w, path, e);
    float *piece = xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i)) status = write_tensor(w, m, i, GPT2_WEIGHT, piece, e);
    if (!status) status = write_text(config_path, config, e);
    if (st_end(w, !status, e)) status = -1;
    free(piece);
    free(path);
    free(config_path);
    return status;
}

/* Tensor i of m in st, under its name, or when bare under its name without the "transformer." in
 * it. NULL when absent. */
static const STTensor *find_added(const SafeTensors *st, const GPT2 *m, int i, bool bare) {
    Str full = {0};
    str_printf(&full, "%s%s", added_prefix(m, i), gpt2_tensor(m, i)->name);
    char *cut = bare ? strstr(full.s, "transformer.") : NULL;
    if (cut) memmove(cut, cut + strlen("transformer."), strlen(cut) - strlen("transformer.") + 1);
    const STTensor *t = st_find(st, full.s);
    free(full.s);
    return t;
}

/* Every added tensor is in st, in its shape, and nothing else is. *bare: how they are called there.
 */
static int check_added(const SafeTensors *st, const GPT2 *m, bool *bare, Error *e) {
    const int all = gpt2_tensors(m);
    char a[192], b[192];
    int count = 0, first = all;
    *bare = false;
    for (int i = 0; i < all && !*bare; i++)  // one name tells: all of them are checked below
        *bare = is_added(m, i) && !find_added(st, m, i, false) && find_added(st, m, i, true);
    bool *wanted = xcalloc((size_t)st->count, sizeof *wanted);
    int status = 0;
    for (int i = 0; i < all && !status; i++) {
        if (!is_added(m, i)) continue;
        const GPT2Tensor *x = gpt2_tensor(m, i);
        const STTensor *t = find_added(st, m, i, *bare);
        size_t shape[2] = {(size_t)x->shape[0], (size_t)x->shape[1]};
        count++;
        if (i >= gpt2_own_tensors(m) && i < first) first = i;
        if (!t)
            status = fail(e,
                          "%s: tensor %s%s is missing, expected with shape %s by "
                          "adapter_config.json and the model",
                          st->name, added_prefix(m, i), x->name, shape_text(b, x->ndim, shape));
        else if (!same_shape(t, x->ndim, shape))
            status = fail(
                e, "%s: tensor %s has shape %s, expected %s by adapter_config.json and the model",
                st->name, t->name, shape_text(a, t->ndim, t->shape), shape_text(b, x->ndim, shape));
        else if (t->type != ST_F32 && t->type != ST_F16 && t->type != ST_BF16)
            status = fail(e, "%s: tensor %s has type %s, expected F32, F16 or BF16", st->name,
                          t->name, t->type_name);
        else
            wanted[t - st->tensor] = true;
    }
    for (int i = 0; i < st->count && !status; i++)
        if (!wanted[i])
            status = fail(e,
                          "%s: tensor %.*s is none of the %d that adapter_config.json and the "
                          "model ask for, whose names are like %s",
                          st->name, SHOWN, st->tensor[i].name, count,
                          first < all ? gpt2_tensor(m, first)->name : "(none)");
    free(wanted);
    return status;
}

int hf_load_added(GPT2 *m, const char *dir, const char *weights, Error *e) {
    char *path = path_of(dir, weights);
    bool bare;
    SafeTensors *st = st_open(path, e);
    if (!st && !exists(dir, weights) &&
        (exists(dir, "adapter_model.bin") || exists(dir, "pytorch_adapter.bin")))
        fail(e,
             "%s is missing, and the .bin beside it, a pickle, is not read; save the adapter again "
             "as safetensors",
             path);
    int status = st ? check_added(st, m, &bare, e) : -1;
    float *piece = xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_tensors(m) && !status; i++)
        if (is_added(m, i))
            status = copy_tensor(m, i, GPT2_WEIGHT, find_added(st, m, i, bare), piece, e);
    free(piece);
    st_close(st);
    free(path);
    return status;
}

/* ---- bottleneck adapters --------------------------------------------------------------------- */

/* What a BnConfig may ask for beyond what is implemented; a key that is absent has the value that
   does nothing. leave_out and reduction_factor are looked at apart. */
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
            return refuse(e, path, config, key, "%s: only double_seq_bn and seq_bn are implemented",
                          plain_bottleneck[i].nothing);
    }
    return 0;
}

/* The library's word for an activation, or NULL. Before its version 1 files had no version, and
 * "gelu" was another function. */
static const char *activation_of(const char *name, bool versioned) {
    static const char *const names[][2] = {{"relu", "relu"},
                                           {"swish", "swish"},
                                           {"silu", "swish"},
                                           {"gelu_new", "gelu_new"},
                                           {"gelu_pytorch_tanh", "gelu_new"}};
    if (!versioned && name && !strcmp(name, "gelu")) return "gelu_new";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (name && !strcmp(name, names[i][0])) return names[i][1];
    return NULL;
}

/* Python's x // y for positive numbers, exact where x / y rounds up to a whole number: 24 // 0.1 is
 * 239. */
static double floor_division(double x, double y) { return rint((x - fmod(x, y)) / y); }

/* whole: adapter_config.json. */
static int parse_bottleneck(json_t *whole, const char *path, const GPT2Config *base, Bottleneck *b,
                            Error *e) {
    json_t *config = json_object_get(whole, "config"),
           *factor = json_object_get(config, "reduction_factor"),
           *size = json_object_get(whole, "hidden_size");
    const char *name = json_string_value(json_object_get(whole, "name")),
               *init = json_string_value(json_object_get(config, "init_weights"));
    *b = (Bottleneck){.bert = !init || !strcmp(init, "bert"),
                      .norms = json_is_true(json_object_get(whole, "train_layernorm"))};
    if (json_object_get(whole, "model_type") &&
        strcmp(json_string_value(json_object_get(whole, "model_type")) ?: "", "gpt2"))
        return refuse(e, path, whole, "model_type",
                      "\"gpt2\": the adapter was made for another kind of model");
    if (size && !(json_is_integer(size) && json_integer_value(size) == base->n_embd))
        return refuse(e, path, whole, "hidden_size",
                      "%d, that of the model: the adapter was made for another one", base->n_embd);
    if (!name || !*name || strlen(name) >= sizeof b->name || strchr(name, '.'))
        return refuse(e, path, whole, "name", "a name of 1 to %zu bytes without a dot",
                      sizeof b->name - 1);
    strcpy(b->name, name);
    if (check_plain(config, path, e)) return -1;
    if (!json_is_number(factor) || !(json_number_value(factor) > 0) ||
        !(base->n_embd / json_number_value(factor) < 65537))
        return refuse(
            e, path, config, "reduction_factor",
            "one number above 0, for all layers, that leaves at most 65536 of %d channels",
            base->n_embd);
    b->dim = (int)floor_division(base->n_embd, json_number_value(factor));
    if (b->dim < 1) b->dim = 1;
    if (!json_is_boolean(json_object_get(config, "mh_adapter")))
        return refuse(e, path, config, "mh_adapter", "true or false");
    b->mh_adapter = json_is_true(json_object_get(config, "mh_adapter"));
    b->original_ln_before = json_is_true(json_object_get(config, "original_ln_before"));
    if (b->original_ln_before == b->mh_adapter)
        return refuse(e, path, config, "original_ln_before",
                      "%s with this mh_adapter: only double_seq_bn and seq_bn are implemented",
                      b->mh_adapter ? "false" : "true");
    b->non_linearity = activation_of(json_string_value(json_object_get(config, "non_linearity")),
                                     json_object_get(whole, "version"));
    if (!b->non_linearity)
        return refuse(e, path, config, "non_linearity",
                      "\"relu\", \"swish\" or \"gelu_new\" (GELU is here the tanh form; \"gelu\" "
                      "is the one with erf)");
    return read_fraction(config, path, "dropout", 0, 0, &b->dropout, e);
}

int hf_bottleneck(const char *dir, const GPT2Config *base, Bottleneck *b, Error *e) {
    AdapterFormat format;
    char *path;
    json_t *config = read_adapter_config(dir, &path, &format, e);
    int status = !config ? -1
                 : format != ADAPTER_HUB
                     ? fail(e, "%s is PEFT's, of a LoRA or the like: it belongs to lora.c", path)
                     : parse_bottleneck(config, path, base, b, e);
    json_decref(config);
    free(path);
    return status;
}

char *hf_bottleneck_text(const Bottleneck *b, const GPT2Config *base, const char *base_name) {
    // the library's dim is hidden_size // factor: where that is not exact, a factor in the middle
    // of those that give this dim
    json_t *factor = base->n_embd % b->dim ? json_real(base->n_embd / (b->dim + 0.5))
                                           : json_integer(base->n_embd / b->dim);
    json_t *config = json_pack(
        "{s:b, s:b, s:f, s:b, s:b, s:s, s:s, s:n, s:n, s:n, s:b, s:b, s:[], s:b, s:b, s:b, s:s, "
        "s:b, s:b, s:b}",
        "adapter_residual_before_ln", 0, "cross_adapter", 0, "dropout", decimal(b->dropout),
        "factorized_phm_W", 1, "factorized_phm_rule", 0, "hypercomplex_nonlinearity",
        "glorot-uniform", "init_weights", b->bert ? "bert" : "mam_adapter", "init_weights_seed",
        "inv_adapter", "inv_adapter_reduction_factor", "is_parallel", 0, "learn_phm", 1,
        "leave_out", "ln_after", 0, "ln_before", 0, "mh_adapter", b->mh_adapter, "non_linearity",
        b->non_linearity, "original_ln_after", 1, "original_ln_before", b->original_ln_before,
        "output_adapter", 1);
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
    char *text = config_text(whole);
    json_decref(whole);
    return text;
}

/* ---- the moments of a training state --------------------------------------------------------- */

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
            if (gpt2_tensor(m, i)->trains) declare(w, gpt2_tensor(m, i), before);
        free(before);
    }
}

int hf_write_moments(STWriter *w, const GPT2 *m, Error *e) {
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            if (gpt2_tensor(m, i)->trains)
                status = write_tensor(w, m, i, moments[which].part, piece, e);
    free(piece);
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
        return fail(e, "%s: tensor %s%s is missing, but %s trains now", st->name, before,
                    wanted->name, wanted->name);
    if (!wanted->trains)
        return fail(e, "%s: tensor %s is there, but %s does not train now", st->name, t->name,
                    wanted->name);
    if (!same_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s, that of %s", st->name, t->name,
                    shape_text(a, t->ndim, t->shape), shape_text(b, wanted->ndim, shape),
                    wanted->name);
    if (t->type != ST_F32)
        return fail(e, "%s: tensor %s has type %s, expected F32", st->name, t->name, t->type_name);
    return 0;
}

int hf_read_moments(const SafeTensors *st, GPT2 *m, const char *prefix, Error *e) {
    char *before[2] = {moment_prefix(prefix, 0), moment_prefix(prefix, 1)};
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            status = check_moment(st, before[which], gpt2_tensor(m, i), e);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++) {
            const GPT2Tensor *t = gpt2_tensor(m, i);
            const STTensor *moment = find_moment(st, before[which], t->name);
            if (t->trains) status = copy_tensor(m, i, moments[which].part, moment, piece, e);
        }
    free(piece);
    free(before[0]);
    free(before[1]);
    return status;
}
