/*
 * safetensors.c - reads and writes safetensors files.
 *
 * Nothing that a file says is believed before it is checked against the file's size, so memory use
 * is proportional to the real size of the file. JSON text is bounded before it is parsed, because
 * its tree takes far more memory than the text.
 *
 * F32, F16, BF16 and F64 tensors can be read, F32 tensors can be written. Of other types only the
 * size is known, so that they can be skipped or refused by name. There is no writing of shards.
 */
#include "files/safetensors.h"
#include "files/json_file.h"
#include "files/mapped.h"

#include <jansson.h>

enum {
    MAX_HEADER = 100000000,     // bytes, the format's own limit
    MAX_JSON_VALUES = 1000000,  // in a header: at most 115 MB once parsed; fits 100,000 tensors
};

/* jansson ignores some failed allocations, and a text then lacks a letter. So every program that
   links this file gives jansson memory that is never NULL. */
static void *json_memory(size_t bytes) { return xmalloc(bytes); }
__attribute__((constructor)) static void json_gets_checked_memory(void) {
    json_set_alloc_funcs(json_memory, free);
}

const char *st_shape_text(char out[192], int ndim, const size_t *shape) {
    size_t n = (size_t)snprintf(out, 192, "[");
    for (int i = 0; i < ndim; i++)
        n += (size_t)snprintf(out + n, 192 - n, "%s%zu", i ? "," : "", shape[i]);
    snprintf(out + n, 192 - n, "]");
    return out;
}

/* ---- Reading --------------------------------------------------------------------------------- */

/*
 * The format:
 *
 *   offset 0     N, the length of the header: 8 bytes, little-endian
 *   offset 8     the header, N bytes of JSON:
 *                    {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [BEGIN, END]}, ..}
 *                and perhaps "__metadata__": {KEY: STRING, ..}
 *   offset 8+N   the data, from where BEGIN and END count
 *
 * The tensors cover the data exactly: without holes, without overlaps, to the end of the file.
 */
struct SafeTensors {
    char *path;
    const unsigned char *bytes;
    size_t size;
    bool mapped;
    json_t *header;            // owns the tensors' names and the metadata
    char *names;               // st_of_tensors: owns the tensors' names
    STTensor *tensor;          // in the order of the data; st_of_tensors: in the given order
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

/* Sets t->type and t->type_name. Returns the bits per element, or 0 with e filled. */
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

/* Sets t->ndim, t->shape, t->n and t->bytes. 0, or -1 with e filled. */
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
                    st_shape_text(text, t->ndim, t->shape), t->type_name);
    if (all_bits % 8)
        return fail(e, "%s: tensor %.*s: shape %s of %s is %zu bits, expected whole bytes", t->file,
                    SHOWN, t->name, st_shape_text(text, t->ndim, t->shape), t->type_name, all_bits);
    t->bytes = all_bits / 8;
    return 0;
}

/* Sets t->data, which must be inside the size bytes at data. 0, or -1 with e filled. */
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
                    "probably cut short: fetch it again",
                    t->file, SHOWN, t->name, (long long)end, size);
    char text[192];
    if ((size_t)(end - begin) != t->bytes)
        return fail(e,
                    "%s: tensor %.*s: data_offsets [%lld,%lld] span %lld bytes, expected %zu for "
                    "%s of shape %s",
                    t->file, SHOWN, t->name, (long long)begin, (long long)end,
                    (long long)(end - begin), t->bytes, t->type_name,
                    st_shape_text(text, t->ndim, t->shape));
    t->data = data + begin;
    return 0;
}

static int by_position(const void *a, const void *b) {
    const STTensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    // of tensors at one offset, the empty ones come first
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
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

/* The tensors, sorted by position, must cover the size bytes at data exactly. */
static int check_tiling(const SafeTensors *st, const unsigned char *data, size_t size, Error *e) {
    size_t covered = 0;
    for (int i = 0; i < st->count; i++) {
        const STTensor *t = &st->tensor[i];
        size_t begin = (size_t)(t->data - data);
        if (begin > covered)
            return fail(
                e, "%s: tensor %.*s begins at byte %zu of the data, expected %zu: a hole before it",
                st->path, SHOWN, t->name, begin, covered);
        if (begin < covered)
            return fail(e,
                        "%s: tensor %.*s begins at byte %zu of the data, expected %zu: it overlaps "
                        "tensor %.*s",
                        st->path, SHOWN, t->name, begin, covered, SHOWN, st->tensor[i - 1].name);
        covered += t->bytes;
    }
    if (covered != size)
        return fail(e, "%s: the tensors take %zu bytes of data, but the file has %zu", st->path,
                    covered, size);
    return 0;
}

/* __metadata__ must be an object of strings. */
static int check_metadata(const SafeTensors *st, json_t *metadata, Error *e) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return fail(e, "%s: __metadata__ is not a JSON object of strings", st->path);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return fail(e, "%s: __metadata__: %.*s is not a string", st->path, SHOWN, key);
    }
    return 0;
}

/* Every value but the first follows one of , [ {, so their number bounds the number of values. */
static int check_json_size(const char *name, const char *text, size_t n, Error *e) {
    size_t values = 1;
    for (size_t i = 0; i < n; i++) values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (values > MAX_JSON_VALUES)
        return fail(e, "%s: the header has up to %zu JSON values, the limit is %d", name, values,
                    MAX_JSON_VALUES);
    return 0;
}

/* Parses the header's text into st->header. */
static int read_header(SafeTensors *st, const char *text, size_t n, Error *e) {
    if (!n || text[0] != '{')
        return fail(e, "%s: the header does not begin with '{': this is not a safetensors file",
                    st->path);
    if (check_json_size(st->path, text, n, e)) return -1;
    json_error_t error;
    st->header = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    if (!st->header)
        return fail(e, "%s: byte %d of the header: %s", st->path, error.position, error.text);
    return 0;
}

/* Fills st->tensor from st->header. */
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
        t->file = st->path;
        if (!json_is_object(value))
            return fail(e, "%s: tensor %.*s is not a JSON object", st->path, SHOWN, name);
        unsigned bits = read_type(t, json_object_get(value, "dtype"), e);
        if (!bits || read_shape(t, json_object_get(value, "shape"), bits, e) ||
            read_offsets(t, json_object_get(value, "data_offsets"), data, size, e))
            return -1;
    }
    qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_position);
    sort_names(st);
    return check_tiling(st, data, size, e);
}

/* Takes over bytes, also when it fails: st_close unmaps mapped ones. */
static SafeTensors *st_read(const void *bytes, size_t size, bool mapped, const char *name,
                            Error *e) {
    SafeTensors *st = xcalloc(1, sizeof *st);
    *st = (SafeTensors){.path = xstrdup(name), .bytes = bytes, .size = size, .mapped = mapped};
    uint64_t n = 0;
    int status = 0;
    if (size < 8) {
        status = fail(e, "%s has %zu bytes, a safetensors file at least 10", name, size);
    } else {
        for (int i = 7; i >= 0; i--) n = n << 8 | st->bytes[i];
        if (n > MAX_HEADER)
            status =
                fail(e,
                     "%s: the header's length is %llu, the format's limit %d: this is not a "
                     "safetensors file; perhaps it is a Git LFS pointer: fetch the file itself",
                     name, (unsigned long long)n, MAX_HEADER);
        else if (n > size - 8)
            status = fail(e,
                          "%s: the header's length is %llu, but only %zu bytes follow; the file "
                          "was probably cut short: fetch it again",
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

SafeTensors *st_open(const char *path, Error *e) {
    const void *bytes = NULL;
    size_t size = 0;
    return map_file(path, &bytes, &size, e) ? NULL : st_read(bytes, size, size > 0, path, e);
}

SafeTensors *st_of_tensors(const char *path, const void *bytes, size_t size, STTensor *tensor,
                           int count, char *names) {
    SafeTensors *st = xcalloc(1, sizeof *st);
    *st = (SafeTensors){.path = xstrdup(path),
                        .bytes = bytes,
                        .size = size,
                        .mapped = size > 0,
                        .names = names,
                        .tensor = tensor,
                        .count = count};
    for (int i = 0; i < count; i++) tensor[i].file = st->path;
    sort_names(st);
    return st;
}

void st_close(SafeTensors *st) {
    if (!st) return;
    if (st->mapped) unmap_file(st->bytes, st->size);
    json_decref(st->header);
    free(st->names);
    free(st->tensor);
    free(st->by_name);
    free(st->path);
    free(st);
}

const char *st_path(const SafeTensors *st) { return st->path; }

int st_count(const SafeTensors *st) { return st->count; }

const STTensor *st_at(const SafeTensors *st, int i) { return &st->tensor[i]; }

const STTensor *st_find(const SafeTensors *st, const char *name) {
    const STTensor wanted = {.name = name}, *key = &wanted;
    const STTensor **found =
        bsearch(&key, st->by_name, (size_t)st->count, sizeof *st->by_name, by_name);
    return found ? *found : NULL;
}

int st_index(const SafeTensors *st, const STTensor *t) {
    return t >= st->tensor && t < st->tensor + st->count ? (int)(t - st->tensor) : -1;
}

const char *st_metadata(const SafeTensors *st, const char *key) {
    return json_string_value(json_object_get(json_object_get(st->header, "__metadata__"), key));
}

/* The sum of the hashes of all keys with their values, which are strings. */
static uint64_t hash_of_strings(json_t *object, const char *except) {
    const char *key;
    json_t *value;
    uint64_t sum = 0;
    json_object_foreach(object, key, value) {
        const char *text = json_string_value(value);
        if (!strcmp(key, except)) continue;
        const uint64_t hash = hash_bytes(HASH_START, key, strlen(key) + 1);
        sum += hash_bytes(hash, text, strlen(text));
    }
    return sum;
}

uint64_t st_metadata_hash(const SafeTensors *st, const char *except) {
    return hash_of_strings(json_object_get(st->header, "__metadata__"), except);
}

/* IEEE half: 1 sign bit, 5 exponent bits (bias 15), 10 fraction bits. The result is exact. */
static float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float x;
    if (rest < 0x400) {  // zero and subnormals: a multiple of 2^-24
        x = (float)rest * 0x1p-24f;
        memcpy(&bits, &x, 4);
    } else if (rest < 0x7c00) {
        bits = (rest << 13) + ((127u - 15u) << 23);  // another bias
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

bool st_has_shape(const STTensor *t, int ndim, const size_t *shape) {
    return t->ndim == ndim && !memcmp(t->shape, shape, (size_t)ndim * sizeof *shape);
}

bool st_is_real(const STTensor *t) {
    return t->type == ST_F32 || t->type == ST_F16 || t->type == ST_BF16 || t->type == ST_F64;
}

int st_floats(const STTensor *t, size_t offset, size_t n, float *out, Error *e) {
    if (!st_is_real(t))
        return fail(e, "%s: tensor %.*s has type %s, expected " ST_REALS, t->file, SHOWN, t->name,
                    t->type_name);
    if (offset > t->n || n > t->n - offset)
        return fail(e, "%s: tensor %.*s has %zu elements, but %zu are asked for from offset %zu",
                    t->file, SHOWN, t->name, t->n, n, offset);
    if (!n) return 0;
    if (t->type == ST_F32) {
        memcpy(out, t->data + 4 * offset, 4 * n);
        return 0;
    }
    for (size_t i = 0; i < n && t->type == ST_F64; i++) {
        double x;
        memcpy(&x, t->data + 8 * (offset + i), 8);
        out[i] = (float)x;
    }
    const unsigned char *from = t->data + 2 * offset;
    for (size_t i = 0; i < n && t->type != ST_F64; i++) {
        uint16_t bits;
        memcpy(&bits, from + 2 * i, 2);
        out[i] = t->type == ST_F16 ? float_of_half(bits) : float_of_bfloat16(bits);
    }
    return 0;
}

/* ---- Writing --------------------------------------------------------------------------------- */

struct STWriter {
    json_t *header;            // a JSON object, as the file will have it
    NewFile file;              // file.f is NULL until st_begin
    size_t declared, written;  // bytes of data
};

STWriter *st_new(void) {
    STWriter *w = xcalloc(1, sizeof *w);
    w->header = json_object();
    json_object_set_new(w->header, "__metadata__", json_object());
    st_note(w, "format", "pt");  // transformers refuses files without it
    return w;
}

void st_note(STWriter *w, const char *key, const char *value) {
    if (json_object_set_new(json_object_get(w->header, "__metadata__"), key, json_string(value)))
        die("metadata %s cannot be written as JSON: it is not UTF-8", key);
}

void st_note_all(STWriter *w, const SafeTensors *st, const char *except) {
    json_t *notes = json_object_get(w->header, "__metadata__");
    json_object_update(notes, json_object_get(st->header, "__metadata__"));
    json_object_del(notes, except);
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

uint64_t st_noted_hash(const STWriter *w) {
    return hash_of_strings(json_object_get(w->header, "__metadata__"), "");
}

int st_begin(STWriter *w, const char *path, Error *e) {
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) die("out of memory for the header of %s", path);
    Str header = {0};
    str_add(&header, "12345678", 8);  // the length goes here
    str_add(&header, text, strlen(text));
    while (header.n % 64) str_add(&header, " ", 1);  // so that mapped data is aligned
    for (int i = 0; i < 8; i++) header.s[i] = (char)((header.n - 8) >> 8 * i);
    free(text);
    int status = newfile_open(&w->file, path, e);
    if (!status && fwrite(header.s, 1, header.n, w->file.f) != header.n)
        status =
            fail_errno(e, errno, "cannot write %s: %s%s", path, strerror(errno), newfile_old(path));
    free(header.s);
    return status;
}

int st_write(STWriter *w, const float *data, size_t n, Error *e) {
    w->written += n * sizeof *data;
    if (w->written > w->declared)
        return fail(e, "%s: %zu bytes of data written, %zu declared", w->file.path, w->written,
                    w->declared);
    bool bad = fwrite(data, sizeof *data, n, w->file.f) != n;
    if (!bad && w->written == w->declared)
        bad = fflush(w->file.f);  // reports a full disk now rather than in st_end
    if (bad)
        return fail_errno(e, errno, "cannot write %s: %s%s", w->file.path, strerror(errno),
                          newfile_old(w->file.path));
    return 0;
}

int st_end(STWriter *w, bool keep, Error *e) {
    NewFile file;
    if (keep) return st_finish(w, &file, e) ? -1 : newfile_place(&file, true, e);
    if (w->file.f) newfile_close(&w->file, false, e);
    json_decref(w->header);
    free(w);
    return 0;
}

int st_finish(STWriter *w, NewFile *file, Error *e) {
    if (w->written != w->declared) {
        fail(e, "%s: %zu bytes of data written, %zu declared", w->file.path, w->written,
             w->declared);
        st_end(w, false, NULL);
        return -1;
    }
    *file = w->file;
    json_decref(w->header);
    free(w);
    return newfile_finish(file, e);
}
