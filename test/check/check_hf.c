/*
 * check_hf.c - Hugging Face directories, read and written.
 *
 * Files to be read are built here byte by byte, and files that were written are taken apart here
 * again, by code that shares nothing with common/files/hf.c: the two could otherwise agree on the
 * same mistake.
 */
#include "files/hf.h"
#include "program.h"

#include <check.h>
#include <dirent.h>

/* ---- a directory to work in, and files in it ------------------------------------------------- */

static char here[256];  // fresh for every test

static void remove_tree(const char *path) {
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char inner[600];
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (unlink(inner)) remove_tree(inner);
    }
    if (entries) closedir(entries);
    rmdir(path);
}

static void setup(void) {
    const char *base = getenv("TMPDIR");
    snprintf(here, sizeof here, "%.200s/check_hf.XXXXXX", base ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(here));
}

static void teardown(void) { remove_tree(here); }

/* here/name; good until the eighth call after this one. */
static const char *in(const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", here, name);
    return path;
}

static void put(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

static Str get(const char *name) {
    Str s = {0};
    Error e;
    ck_assert_msg(!read_file(in(name), 1 << 28, &s, &e), "%s", e.text);
    return s;
}

static void ck_same(Str a, Str b) {
    ck_assert_uint_eq(a.n, b.n);
    ck_assert_int_eq(memcmp(a.s, b.s, a.n), 0);
    free(a.s);
    free(b.s);
}

static Str text(const char *s) { return (Str){.s = xstrdup(s), .n = strlen(s)}; }

static int files_in(const char *name) {
    int n = 0;
    DIR *entries = opendir(in(name));
    for (struct dirent *entry; entries && (entry = readdir(entries));) n += entry->d_name[0] != '.';
    if (entries) closedir(entries);
    return n;
}

/* Fails unless the message has every one of the parts (NULL ends them). */
static void ck_says(const Error *e, ...) {
    va_list parts;
    va_start(parts, e);
    for (const char *part; (part = va_arg(parts, const char *));)
        ck_assert_msg(strstr(e->text, part) != NULL, "\"%s\" is not in: %s", part, e->text);
    va_end(parts);
    ck_assert_ptr_null(strchr(e->text, '\n'));
}

/* ---- building safetensors files -------------------------------------------------------------- */

/* length, header, data. The length is what is said; normally strlen(header). */
static Str file_of(size_t length, const char *header, const void *data, size_t n) {
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
static void build_add(Build *b, const char *name, const char *type, const char *shape,
                      const void *data, size_t n) {
    str_printf(&b->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
               b->header.n ? "," : "", name, type, shape, b->data.n, b->data.n + n);
    str_add(&b->data, data, n);
}

/* Writes what was built; the data begin at an address that is `misaligned` past a multiple of 8. */
static void build_end(Build *b, const char *name, size_t misaligned) {
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

/* A copy of exactly n bytes, so that AddressSanitizer sees the first one read behind them. */
static SafeTensors *parse_copy(const void *bytes, size_t n, void **copy, Error *e) {
    *copy = xmalloc(n);
    memcpy(*copy, bytes, n);
    return st_parse(*copy, n, "x.safetensors", e);
}

/* ---- safetensors: reading -------------------------------------------------------------------- */

/* Members in another order than the data, an odd header length, metadata, a scalar, an empty
 * tensor, a type we do not use. */
static const char good_header[] =
    "{\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[14,26]},"
    "\"__metadata__\":{\"format\":\"pt\",\"step\":\"7\"},"
    "\"a\":{\"shape\":[2,3],\"data_offsets\":[0,12],\"dtype\":\"F16\"},"
    "\"scalar\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[12,14]},"
    "\"none\":{\"dtype\":\"F32\",\"shape\":[5,0],\"data_offsets\":[26,26]},"
    "\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[26,34]}}   ";

/* 0.5 1 1.5 2 -2 0 as halves; 1 as bfloat16; 1 2 -3 as floats; -1 as I64 */
static const unsigned char good_data[34] = {0x00, 0x38, 0x00, 0x3c, 0x00, 0x3e, 0x00, 0x40,
                                            0x00, 0xc0, 0x00, 0x00, 0x80, 0x3f,  // a, scalar
                                            0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x00, 0x40,
                                            0x00, 0x00, 0x40, 0xc0,                           // b
                                            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};  // i

static Str good_file(void) {
    return file_of(strlen(good_header), good_header, good_data, sizeof good_data);
}

START_TEST(reads_a_file_made_by_hand) {
    Str file = good_file();
    put("x.safetensors", file.s, file.n);
    Error e;
    SafeTensors *st = st_open(in("x.safetensors"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    const char *order[] = {"a", "scalar", "b", "none", "i"};
    ck_assert_int_eq(st_count(st), 5);
    for (int i = 0; i < 5; i++) {
        ck_assert_str_eq(st_at(st, i)->name, order[i]);
        ck_assert_ptr_eq(st_find(st, order[i]), st_at(st, i));
    }
    ck_assert_ptr_null(st_find(st, "c"));
    ck_assert_ptr_null(st_find(st, "__metadata__"));
    ck_assert_str_eq(st_metadata(st, "step"), "7");
    ck_assert_ptr_null(st_metadata(st, "steps"));

    const STTensor *a = st_find(st, "a"), *b = st_find(st, "b"), *i = st_find(st, "i"),
                   *none = st_find(st, "none");
    ck_assert(a->type == ST_F16 && a->ndim == 2 && a->shape[0] == 2 && a->shape[1] == 3 &&
              a->n == 6 && a->bytes == 12);
    ck_assert(none->ndim == 2 && none->n == 0 && none->bytes == 0);
    ck_assert(i->type == ST_I64 && st_find(st, "scalar")->ndim == 0 &&
              st_find(st, "scalar")->n == 1);
    float x[6];
    ck_assert_int_eq(st_floats(a, 0, 6, x, &e), 0);
    const float expected_a[6] = {0.5f, 1, 1.5f, 2, -2, 0};
    ck_assert_mem_eq(x, expected_a, sizeof x);
    ck_assert_int_eq(st_floats(b, 1, 2, x, &e), 0);
    ck_assert(x[0] == 2 && x[1] == -3);
    ck_assert_int_eq(st_floats(st_find(st, "scalar"), 0, 1, x, &e), 0);
    ck_assert(x[0] == 1);
    ck_assert_int_eq(st_floats(i, 0, 1, x, &e), -1);
    ck_says(&e, "x.safetensors", "tensor i ", "I64", "F32", NULL);
    ck_assert_int_eq(st_floats(b, 2, 2, x, &e), -1);  // one too many
    ck_says(&e, "tensor b ", "3", "2", NULL);
    st_close(st);
    free(file.s);
}
END_TEST

/* All 65,536 halves and bfloat16s against their definitions, in double. */
START_TEST(converts_every_half_and_bfloat16) {
    uint16_t *all = xmalloc(65536 * sizeof *all);
    float *x = xmalloc(65536 * sizeof *x);
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    for (int brain = 0; brain < 2; brain++) {
        Build b = {0};
        build_add(&b, "all", brain ? "BF16" : "F16", "[65536]", all, 65536 * sizeof *all);
        build_end(&b, "x.safetensors", 3);
        Error e;
        SafeTensors *st = st_open(in("x.safetensors"), &e);
        ck_assert_msg(st != NULL, "%s", e.text);
        ck_assert_int_eq(st_floats(st_at(st, 0), 0, 65536, x, &e), 0);
        st_close(st);
        const int bits = brain ? 7 : 10, top = brain ? 255 : 31, bias = brain ? 127 : 15;
        for (int i = 0; i < 65536; i++) {
            int fraction = i & ((1 << bits) - 1), exponent = (i & 0x7fff) >> bits;
            double value = exponent ? ldexp(fraction + (1 << bits), exponent - bias - bits)
                                    : ldexp(fraction, 1 - bias - bits);
            if (exponent == top) value = fraction ? (double)NAN : (double)INFINITY;
            if (i & 0x8000) value = -value;
            if (isnan(value))
                ck_assert_msg(isnan(x[i]), "%04x", i);
            else
                ck_assert_msg((double)x[i] == value && !signbit(x[i]) == !signbit(value),
                              "%04x: %a is not %a", i, (double)x[i], value);
        }
    }
    free(all);
    free(x);
}
END_TEST

/* One tensor "t" of `dtype`, `shape`, `offsets` before `bytes` of data. */
#define T(dtype, shape, offsets) \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TU(begin1, end1, begin2, end2)                                          \
    "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" begin1 "," end1 \
    "]},"                                                                       \
    "\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" begin2 "," end2 "]}}"

static const struct {
    const char *header;
    size_t bytes;  // of data
    const char *says[4];
} hostile[] = {
    {"", 0, {"does not begin with '{'"}},
    {" {}", 0, {"does not begin with '{'"}},
    {"[]", 0, {"does not begin with '{'"}},
    {"{", 0, {"byte"}},
    {"{}}", 0, {"end of file expected"}},
    {"{} x", 0, {"end of file expected"}},
    {"{}", 1, {"take 0 bytes", "the file has 1"}},
    {"{\"t\":1}", 0, {"tensor t ", "JSON object"}},
    {"{\"t\":{}}", 0, {"tensor t", "dtype"}},
    {"{\"__metadata__\":3}", 0, {"__metadata__"}},
    {"{\"__metadata__\":{\"step\":3}}", 0, {"__metadata__", "step"}},
    {"{\"__metadata__\":{\"s\":\"a\",\"s\":\"b\"}}", 0, {"duplicate"}},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     0,
     {"duplicate"}},
    {"{\"t\\u0000\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     0,
     {"byte", "\\u0000"}},
    {"{\"t\377\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, {"decode", "0xff"}},
    {T("\"F31\"", "[1]", "[0,4]"), 4, {"tensor t", "F31", "F32"}},
    {T("32", "[1]", "[0,4]"), 4, {"tensor t", "dtype"}},
    {T("\"F32\"", "1", "[0,4]"), 4, {"tensor t", "shape"}},
    {T("\"F32\"", "[-1]", "[0,4]"), 4, {"tensor t", "shape"}},
    {T("\"F32\"", "[1.0]", "[0,4]"), 4, {"tensor t", "shape"}},
    {T("\"F32\"", "[\"1\"]", "[0,4]"), 4, {"tensor t", "shape"}},
    {T("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, {"tensor t", "9 dimensions", "8"}},
    {T("\"F32\"", "[4611686018427387904,4]", "[0,0]"),
     0,
     {"tensor t", "overflow", "[4611686018427387904,4]"}},
    {T("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0, {"tensor t", "overflow"}},
    {T("\"F32\"", "[4611686018427387904]", "[0,0]"), 0, {"tensor t", "overflow"}},
    {T("\"F32\"", "[18446744073709551616]", "[0,0]"), 0, {"integer"}},
    {T("\"F4\"", "[3]", "[0,2]"), 2, {"tensor t", "12 bits"}},
    {T("\"F32\"", "[1]", "[0]"), 4, {"tensor t", "data_offsets"}},
    {T("\"F32\"", "[1]", "[0,4,8]"), 4, {"tensor t", "data_offsets"}},
    {T("\"F32\"", "[1]", "[0.0,4]"), 4, {"tensor t", "data_offsets"}},
    {T("\"F32\"", "[1]", "null"), 4, {"tensor t", "data_offsets"}},
    {T("\"F32\"", "[1]", "[-4,0]"), 4, {"tensor t", "[-4,0]"}},
    {T("\"F32\"", "[1]", "[4,0]"), 4, {"tensor t", "[4,0]"}},
    {T("\"F32\"", "[2]", "[0,8]"), 4, {"tensor t", "byte 8", "has 4"}},
    {T("\"F32\"", "[1]", "[9223372036854775803,9223372036854775807]"),
     4,
     {"tensor t", "9223372036854775807", "has 4"}},
    {T("\"F32\"", "[1]", "[0,8]"),
     8,
     {"tensor t", "[0,8] span 8 bytes", "expected 4", "F32 of shape [1]"}},
    {T("\"F16\"", "[2,2]", "[0,4]"), 4, {"tensor t", "span 4 bytes", "expected 8", "[2,2]"}},
    {T("\"F32\"", "[1]", "[0,4]"), 6, {"take 4 bytes", "has 6"}},
    {T("\"F32\"", "[1]", "[2,6]"), 6, {"tensor t", "byte 2", "expected 0", "hole"}},
    {TU("0", "4", "6", "10"), 10, {"tensor u", "byte 6", "expected 4", "hole"}},
    {TU("6", "10", "0", "4"), 10, {"tensor t", "byte 6", "expected 4", "hole"}},
    {TU("0", "4", "2", "6"), 6, {"tensor u", "byte 2", "expected 4", "overlaps tensor t"}},
    {TU("0", "4", "0", "4"), 4, {"tensor u", "byte 0", "expected 4", "overlaps tensor t"}},
};

START_TEST(refuses_hostile_headers) {
    unsigned char data[16] = {0};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        Str file = file_of(strlen(hostile[i].header), hostile[i].header, data, hostile[i].bytes);
        void *copy;
        Error e = {""};
        SafeTensors *st = parse_copy(file.s, file.n, &copy, &e);
        ck_assert_msg(st == NULL, "accepted: %s", hostile[i].header);
        ck_says(&e, "x.safetensors", NULL);
        for (int k = 0; k < 4 && hostile[i].says[k]; k++) ck_says(&e, hostile[i].says[k], NULL);
        free(copy);
        free(file.s);
    }
}
END_TEST

/* Neighbours of the above that are right, so that it is the fault and not the form that is refused.
 */
START_TEST(accepts_what_the_format_allows) {
    static const struct {
        const char *header;
        size_t bytes;
    } fine[] = {{"{}", 0},
                {"{}    ", 0},
                {"{\"__metadata__\":{}}", 0},
                {T("\"F32\"", "[1]", "[0,4]"), 4},
                {T("\"F4\"", "[4]", "[0,2]"), 2},
                {T("\"F32\"", "[1,1,1,1,1,1,1,1]", "[0,4]"), 4},
                {TU("0", "4", "4", "8"), 8},
                {TU("4", "8", "0", "4"), 8}};
    unsigned char data[8] = {0};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        Str file = file_of(strlen(fine[i].header), fine[i].header, data, fine[i].bytes);
        void *copy;
        Error e;
        SafeTensors *st = parse_copy(file.s, file.n, &copy, &e);
        ck_assert_msg(st != NULL, "%s: %s", fine[i].header, e.text);
        st_close(st);
        free(copy);
        free(file.s);
    }
}
END_TEST

START_TEST(refuses_every_truncation) {
    Str file = good_file();
    for (size_t n = 0; n < file.n; n++) {
        void *copy;
        Error e = {""};
        ck_assert_msg(!parse_copy(file.s, n, &copy, &e), "%zu of %zu bytes accepted", n, file.n);
        ck_says(&e, "x.safetensors", NULL);
        free(copy);
    }
    put("empty", "", 0);
    Error e;
    ck_assert_ptr_null(st_open(in("empty"), &e));
    ck_says(&e, "empty", "0 bytes", NULL);
    ck_assert_ptr_null(st_open(here, &e));
    ck_says(&e, here, "regular", NULL);
    ck_assert_ptr_null(st_open(in("absent"), &e));
    ck_says(&e, "absent", "No such file", NULL);
    free(file.s);
}
END_TEST

/* Whatever a changed byte makes of the file, what is accepted can be read to its last element; a
 * sanitizer would object. */
START_TEST(survives_every_changed_byte) {
    static const unsigned char changes[] = {0x00, 0x01, 0x80, 0xff, '"', '{', '}', '[',
                                            ']',  ',',  ':',  '0',  '9', '-', ' '};
    Str file = good_file();
    float x[64];
    for (size_t at = 0; at < file.n - sizeof good_data; at++)
        for (size_t c = 0; c < sizeof changes; c++) {
            char before = file.s[at];
            file.s[at] = (char)changes[c];
            void *copy;
            SafeTensors *st = parse_copy(file.s, file.n, &copy, NULL);
            for (int i = 0; st && i < st_count(st); i++) {
                const STTensor *t = st_at(st, i);
                ck_assert_uint_le(t->bytes, sizeof good_data);
                if (t->type <= ST_BF16) ck_assert_int_eq(st_floats(t, 0, t->n, x, NULL), 0);
            }
            st_close(st);
            free(copy);
            file.s[at] = before;
        }
    free(file.s);
}
END_TEST

/* A length that is a lie, one beyond the limit, nesting without end, and text whose tree would take
 * gigabytes. */
START_TEST(refuses_absurd_headers) {
    Error e;
    void *copy;
    static const struct {
        size_t length;
        const char *says;
    } lies[] = {{100000000, "100000000"},
                {100000001, "100000001"},
                {SIZE_MAX, "18446744073709551615"},
                {SIZE_MAX - 7, "limit"},
                {3, "only 2 bytes follow"}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        Str file = file_of(lies[i].length, "{}", NULL, 0);
        ck_assert_ptr_null(parse_copy(file.s, file.n, &copy, &e));
        ck_says(&e, "x.safetensors", "length", lies[i].says, NULL);
        free(copy);
        free(file.s);
    }
    for (int bomb = 0; bomb < 2; bomb++) {
        Str header = {0};
        str_printf(&header, "{\"t\":[");
        for (int i = 0; i < (bomb ? 1500000 : 100000); i++)
            str_add(&header, bomb ? "0," : "[", bomb ? 2 : 1);
        Str file = file_of(header.n, header.s, NULL, 0);
        ck_assert_ptr_null(parse_copy(file.s, file.n, &copy, &e));
        ck_says(&e, "x.safetensors", bomb ? "JSON values" : "depth", NULL);
        free(copy);
        free(file.s);
        free(header.s);
    }
}
END_TEST

/* ---- safetensors: writing -------------------------------------------------------------------- */

/* One tensor as the strict parser below finds it. */
typedef struct {
    char name[96];
    int ndim;
    size_t shape[2], begin, end;
} Found;

/* Takes a file apart by the rules, accepting only the spelling a compact writer uses: metadata
   first, then the tensors in the order of their data, which tile it. Names are taken as they are
   spelled. Returns their number. */
static int take_apart(Str file, const char *metadata, Found *found, int most, const char **data) {
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

START_TEST(writes_what_it_was_told) {
    const float x[7] = {1, -2, 3.5f, 0x1p-149f, INFINITY, -0.0f, 7};
    STWriter *w = st_new();
    Error e;
    st_declare(w, "odd", 2, (size_t[]){1, 3});
    st_declare(w, "scalar", 0, NULL);
    st_declare(w, "empty", 1, (size_t[]){0});
    st_declare(w, "last", 1, (size_t[]){3});
    st_note(w, "step", "12");
    st_note(w, "quoted", "a \"b\"\n");
    ck_assert_msg(!st_begin(w, in("x.safetensors"), &e), "%s", e.text);
    ck_assert_int_eq(st_write(w, x, 1, &e), 0);  // in pieces that ignore the tensors' borders
    ck_assert_int_eq(st_write(w, x + 1, 5, &e), 0);
    ck_assert_int_eq(st_write(w, x + 6, 1, &e), 0);
    ck_assert_msg(!st_end(w, true, &e), "%s", e.text);
    ck_assert_int_eq(files_in(""), 1);

    Found f[4];
    const char *data;
    Str file = get("x.safetensors");
    ck_assert_int_eq(
        take_apart(file, "\"format\":\"pt\",\"step\":\"12\",\"quoted\":\"a \\\"b\\\"\\n\"", f, 4,
                   &data),
        4);
    ck_assert_str_eq(f[0].name, "odd");
    ck_assert(f[0].ndim == 2 && f[0].shape[0] == 1 && f[0].shape[1] == 3 && f[1].ndim == 0);
    ck_assert_str_eq(f[3].name, "last");
    ck_assert_mem_eq(data, x, sizeof x);
    free(file.s);

    SafeTensors *st = st_open(in("x.safetensors"), &e);  // and what was written is read
    ck_assert_msg(st != NULL, "%s", e.text);
    ck_assert_str_eq(st_metadata(st, "quoted"), "a \"b\"\n");
    st_close(st);
}
END_TEST

/* Writes one float under `path`; true when all went well. */
static bool write_one(const char *path, bool keep, size_t floats, Error *e) {
    STWriter *w = st_new();
    st_declare(w, "t", 1, (size_t[]){1});
    int status = st_begin(w, path, e);
    if (!status) status = st_write(w, (const float[2]){5, 6}, floats, e);
    if (st_end(w, keep && !status, status ? NULL : e)) status = -1;
    return !status;
}

/* newfile_open writes to PATH.tmp-PID: when that is a link to /dev/full, the disk is full. */
static void fill_disk_for(const char *name) {
    char aside[600];
    snprintf(aside, sizeof aside, "%s.tmp-%ld", in(name), (long)getpid());
    ck_assert_int_eq(symlink("/dev/full", aside), 0);
}

START_TEST(a_failed_write_costs_nothing) {
    Error e;
    put_text("x", "precious");
    ck_assert(write_one(in("x"), false, 1, &e));  // thought better of it
    ck_assert(!write_one(in("x"), true, 0, &e));  // too little
    ck_says(&e, "/x", "0 bytes", "4 declared", NULL);
    ck_assert(!write_one(in("x"), false, 2, &e));  // too much
    ck_says(&e, "/x", "8 bytes", "4 declared", NULL);
    fill_disk_for("x");
    ck_assert(!write_one(in("x"), true, 1, &e));
    ck_says(&e, "/x", "No space left", "unchanged", NULL);
    ck_assert(!write_one(in("no/x"), true, 1, &e));
    ck_says(&e, "no/x", "No such file", NULL);
    ck_same(get("x"), text("precious"));
    ck_assert_int_eq(files_in(""), 1);
    ck_assert(write_one(in("x"), true, 1, &e));
    SafeTensors *st = st_open(in("x"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    st_close(st);
}
END_TEST

/* ---- config.json ----------------------------------------------------------------------------- */

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

static int config_of(const char *text, GPT2Config *c, Error *e) {
    put_text("config.json", text);
    return hf_config(here, c, e);
}

START_TEST(reads_configs) {
    Error e;
    GPT2Config c;
    ck_assert_msg(!config_of(CONFIG, &c, &e), "%s", e.text);
    ck_assert(c.n_positions == 7 && c.vocab_size == 11 && c.n_layer == 2 && c.n_head == 2 &&
              c.n_embd == 6 && c.n_inner == 24);
    ck_assert(c.layer_norm_epsilon == 1e-5f && c.attn_pdrop == 0.1f && c.embd_pdrop == 0.2f &&
              c.resid_pdrop == 0.3f);
    ck_assert_msg(
        !config_of(
            "{\"model_type\": \"gpt2\", \"activation_function\": \"gelu_pytorch_tanh\", "
            "\"hidden_size\": 8, "
            "\"num_attention_heads\": 4, \"n_head\": 4, \"num_hidden_layers\": 3, \"n_inner\": 5, "
            "\"max_position_embeddings\": 13, \"vocab_size\": 17, \"tie_word_embeddings\": true, "
            "\"reorder_and_upcast_attn\": true, \"scale_attn_weights\": true, \"unknown\": [1, "
            "{}]}",
            &c, &e),
        "%s", e.text);
    ck_assert(c.n_positions == 13 && c.vocab_size == 17 && c.n_layer == 3 && c.n_head == 4 &&
              c.n_embd == 8 && c.n_inner == 5);
    ck_assert(c.layer_norm_epsilon == 1e-5f && c.attn_pdrop == 0.1f && c.embd_pdrop == 0.1f &&
              c.resid_pdrop == 0.1f);
    ck_assert_msg(!config_of("{" CONFIG_REST ", " CONFIG_SIZES
                             ", \"n_inner\": null, \"add_cross_attention\": false}",
                             &c, &e),
                  "%s", e.text);
    ck_assert_int_eq(c.n_inner, 24);
}
END_TEST

#define SIZES_BUT(member) \
    "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 2, \"vocab_size\": 11, " member
#define KIND "\"model_type\": \"gpt2\", "

static const struct {
    const char *text, *says[3];  // the key, what was found, what was expected
} bad_configs[] = {
    {"{" CONFIG_SIZES "}", {"model_type", "absent", "\"gpt2\""}},
    {"{\"model_type\": \"llama\", " CONFIG_SIZES "}", {"model_type", "\"llama\"", "\"gpt2\""}},
    {"{\"model_type\": 3, " CONFIG_SIZES "}", {"model_type", "3", "\"gpt2\""}},
    {"{" KIND "\"activation_function\": \"relu\", " CONFIG_SIZES "}",
     {"activation_function", "\"relu\"", "\"gelu_new\""}},
    {"{" KIND "\"activation_function\": null, " CONFIG_SIZES "}",
     {"activation_function", "null", "\"gelu_new\""}},
    {"{" KIND "\"tie_word_embeddings\": false, " CONFIG_SIZES "}",
     {"tie_word_embeddings", "false", "true"}},
    {"{" KIND "\"scale_attn_weights\": false, " CONFIG_SIZES "}",
     {"scale_attn_weights", "false", "true"}},
    {"{" KIND "\"scale_attn_by_inverse_layer_idx\": true, " CONFIG_SIZES "}",
     {"scale_attn_by_inverse_layer_idx", "true", "false"}},
    {"{" KIND "\"add_cross_attention\": true, " CONFIG_SIZES "}",
     {"add_cross_attention", "true", "false"}},
    {"{" KIND "\"add_cross_attention\": 0, " CONFIG_SIZES "}",
     {"add_cross_attention", "0", "false"}},
    {"{" KIND SIZES_BUT("\"n_ctx\": 7") "}", {"n_positions", "absent", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 0") "}", {"n_positions", "0", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": -7") "}", {"n_positions", "-7", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 7.0") "}", {"n_positions", "7.0", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": \"7\"") "}", {"n_positions", "\"7\"", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 4294967303") "}",
     {"n_positions", "4294967303", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 7, \"max_position_embeddings\": 8") "}",
     {"n_positions", "7", "8"}},
    {"{" KIND
     "\"n_embd\": 7, \"n_head\": 2, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_embd", "7", "n_head, which is 2"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 1001, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_layer", "1001", "1000"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 10000001}",
     {"vocab_size", "10000001", "10000000"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 0, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_head", "0", "1 to"}},
    {"{" KIND CONFIG_SIZES ", \"n_inner\": 0}", {"n_inner", "0", "1 to"}},
    {"{" KIND CONFIG_SIZES ", \"layer_norm_epsilon\": 0}", {"layer_norm_epsilon", "0", "1e-12"}},
    {"{" KIND CONFIG_SIZES ", \"layer_norm_epsilon\": \"1e-5\"}",
     {"layer_norm_epsilon", "\"1e-5\"", "number"}},
    {"{" KIND CONFIG_SIZES ", \"attn_pdrop\": 1.0}", {"attn_pdrop", "1.0", "less than 1"}},
    {"{" KIND CONFIG_SIZES ", \"embd_pdrop\": -0.5}", {"embd_pdrop", "-0.5", "at least 0"}},
    {"{" KIND CONFIG_SIZES ", \"resid_pdrop\": null}", {"resid_pdrop", "null", "number"}},
    {"{" KIND CONFIG_SIZES ", \"n_embd\": 6}", {":1:", "duplicate", ""}},
    {"[]", {"JSON object", "", ""}},
    {"{\"model_type\": \"gpt2\"\n\"x\": 1}", {":2:", "'}' expected", ""}},
};

START_TEST(refuses_configs) {
    GPT2Config c;
    for (size_t i = 0; i < sizeof bad_configs / sizeof *bad_configs; i++) {
        Error e;
        ck_assert_msg(config_of(bad_configs[i].text, &c, &e) == -1, "accepted: %s",
                      bad_configs[i].text);
        ck_says(&e, "config.json", bad_configs[i].says[0], bad_configs[i].says[1],
                bad_configs[i].says[2], NULL);
    }
    Error e;
    for (size_t n = 0; n < strlen(CONFIG); n++) {
        char *part = strndup(CONFIG, n);
        ck_assert_msg(config_of(part, &c, &e) == -1, "%zu bytes accepted", n);
        free(part);
    }
    ck_assert_int_eq(hf_config(in("nowhere"), &c, &e), -1);
    ck_says(&e, "nowhere/config.json", "does not exist", "make gpt2", NULL);
}
END_TEST

/* ---- models ---------------------------------------------------------------------------------- */

enum { V = 11, P = 7, C = 6, L = 2, F = 24 };  // as CONFIG says

typedef struct {
    char name[48];
    int ndim, shape[2];
} Spec;

/* What a GPT-2 of these sizes has, after the format's description. */
static int specification(Spec *s) {
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

static int elements(const Spec *s) { return s->shape[0] * (s->ndim == 2 ? s->shape[1] : 1); }

/* Element k of tensor i: one of the 67 multiples of 1/16 up to 33/16, which F16 and BF16 hold
 * exactly. */
static float value(int i, int k) { return (float)((i * 29 + k * 13) % 67 - 33) / 16; }

/* How a model's file is written; all zero is openai-community/gpt2's way without its masks. */
typedef struct {
    const char *prefix, *type;  // NULL: "", "F32"
    bool masks;
    int head;  // lm_head.weight: 0 none, 1 as wte, 2 differs in element 40, 3 is another shape
    int misaligned;
    const char *without, *reshaped, *retyped,
        *extra;  // a tensor left out, with its sizes swapped, of type I32, added
    int scalar;  // a scalar head: 0 none, 1 score.weight, 2 v_head.summary.weight and .bias
} Style;

static Str encoded(const char *type, int i, int n) {
    Str s = {0};
    for (int k = 0; k < n; k++) {
        float x = value(i, k);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (!strcmp(type, "BF16")) bits >>= 16;
        if (!strcmp(type, "F16") && x != 0)  // no subnormals among the values
            bits = (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - ((127 - 15) << 10));
        str_add(&s, (const char *)&bits,
                type[0] == 'F' && type[1] == '3' ? 4 : 2);  // little-endian
    }
    return s;
}

static void build_tensor(Build *b, const Style *style, const Spec *s, int i) {
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

static void build_model(const char *file, const Style *style, int first, int last) {
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
    if (style->head)
        build_add(&b, "lm_head.weight", "F32", style->head == 3 ? "[6,11]" : "[11,6]", head,
                  sizeof head);
    float scalar[C + 1];
    for (int k = 0; k <= C; k++) scalar[k] = value(99, k);
    if (style->scalar)
        build_add(&b, style->scalar == 1 ? "score.weight" : "v_head.summary.weight", "F32", "[1,6]",
                  scalar, 4 * C);
    if (style->scalar == 2) build_add(&b, "v_head.summary.bias", "F32", "[1]", scalar + C, 4);
    if (style->extra) build_add(&b, style->extra, "F32", "[1]", head, 4);
    build_end(&b, file, (size_t)style->misaligned);
}

/* here/config.json and here/model.safetensors */
static void build_directory(const Style *style) {
    put_text("config.json", CONFIG);
    build_model("model.safetensors", style, 0, TENSORS);
}

static void ck_model(const GPT2 *m) {
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

static GPT2 *ck_load(const char *dir, bool frozen) {
    Error e;
    GPT2 *m = hf_load(dir, frozen, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    return m;
}

/* Every layout that is about: prefix or none, three types, masks, a tied head, alignment; to be
 * trained or frozen. */
START_TEST(loads_every_layout) {
    static const char *const types[] = {"F32", "F16", "BF16"};
    for (int i = 0; i < 3 * 2 * 2 * 2 * 2 * 2; i++) {
        build_directory(&(Style){.type = types[i % 3],
                                 .prefix = i / 3 & 1 ? "transformer." : "",
                                 .masks = i / 6 & 1,
                                 .head = i / 12 & 1,
                                 .misaligned = i / 24 & 1 ? 3 : 0});
        GPT2 *m = ck_load(here, i / 48 & 1);
        ck_model(m);
        gpt2_free(m);
    }
}
END_TEST

/* Writes x over the last float of here/model.safetensors, in place: the last element of the model's
 * first tensor. */
static void overwrite_last(float x) {
    FILE *f = fopen(in("model.safetensors"), "r+b");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, -4, SEEK_END), 0);
    ck_assert_uint_eq(fwrite(&x, 4, 1, f), 1);
    ck_assert_int_eq(fclose(f), 0);
}

/* A frozen model lives in the file: a change of the file in place shows (on Linux, also in a
   private mapping), its removal does not. Where floats would stand at odd addresses, it is a copy.
 */
START_TEST(maps_a_frozen_model) {
    for (int misaligned = 0; misaligned < 2; misaligned++)
        for (int frozen = 0; frozen < 2; frozen++) {
            build_directory(&(Style){.misaligned = misaligned});
            GPT2 *m = ck_load(here, frozen);
            float x, before = value(0, V * C - 1);
            overwrite_last(42);
            gpt2_read(m, 0, GPT2_WEIGHT, V * C - 1, 1, &x);
            ck_assert(x == (frozen && !misaligned ? 42 : before));
            overwrite_last(before);
            ck_assert_int_eq(unlink(in("model.safetensors")), 0);
            ck_model(m);
            gpt2_free(m);
        }
}
END_TEST

/* Everything is copied in pieces of 262,144 floats: a tensor of more than one, saved, loaded, and
   compared with a head that differs in its second piece and stands in a file of its own. */
START_TEST(large_tensors_cross_pieces) {
    enum { rows = 50001, n = rows * C, differs = n - 7 };
    const GPT2Config c = {.n_positions = P,
                          .vocab_size = rows,
                          .n_layer = L,
                          .n_head = 2,
                          .n_embd = C,
                          .n_inner = F,
                          .layer_norm_epsilon = 1e-5f};
    float *x = xmalloc(2 * n * sizeof *x), *y = x + n;
    for (int k = 0; k < n; k++) x[k] = (float)k;
    GPT2 *m = gpt2_create(&c, false);
    for (int i = 1; i < TENSORS; i++) gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, x);
    gpt2_write(m, 0, GPT2_WEIGHT, 0, n, x);
    Error e;
    ck_assert_msg(!hf_save(m, here, NULL, &e), "%s", e.text);
    gpt2_free(m);
    m = ck_load(here, false);
    gpt2_read(m, 0, GPT2_WEIGHT, 0, n, y);
    ck_assert_mem_eq(x, y, n * sizeof *x);
    gpt2_free(m);

    for (int wrong = 0; wrong < 2; wrong++) {
        if (wrong) x[differs] = -1;
        Build b = {0};
        build_add(&b, "lm_head.weight", "F32", "[50001,6]", x, n * sizeof *x);
        build_end(&b, "head.safetensors", 0);
        if (!wrong) ck_assert_int_eq(rename(in("model.safetensors"), in("rest.safetensors")), 0);
        put_text("model.safetensors.index.json",
                 "{\"weight_map\": {\"transformer.wte.weight\": \"rest.safetensors\", "
                 "\"lm_head.weight\": \"head.safetensors\"}}");
        m = hf_load(here, false, &e);
        ck_assert_msg((m == NULL) == wrong, "%s", e.text);
        if (wrong)
            ck_says(&e, "head.safetensors",
                    "element 299999 of lm_head.weight is -1, expected 299999", NULL);
        else
            gpt2_free(m);
    }
    free(x);
}
END_TEST

START_TEST(refuses_models) {
    static const struct {
        Style style;
        const char *says[4];
    } bad[] = {
        {{.head = 2}, {"untied head", "element 40 of lm_head.weight", "0.75", "wte.weight"}},
        {{.head = 2, .prefix = "transformer."},
         {"untied head", "element 40 of lm_head", "0.75", "transformer.wte.weight"}},
        {{.head = 2, .without = "h.1.attn.c_attn.bias"}, {"untied head"}},
        {{.head = 3}, {"lm_head.weight", "[6,11]", "[11,6]"}},
        {{.without = "wte.weight"}, {"wte.weight", "missing"}},
        {{.without = "h.1.attn.c_attn.bias"}, {"h.1.attn.c_attn.bias is missing", "[18]"}},
        {{.without = "ln_f.bias", .prefix = "transformer."},
         {"transformer.ln_f.bias is missing", "[6]"}},
        {{.without = "wpe.weight", .head = 1}, {"wpe.weight is missing", "[7,6]"}},
        {{.reshaped = "h.0.mlp.c_fc.weight"}, {"h.0.mlp.c_fc.weight", "[24,6]", "[6,24]"}},
        {{.reshaped = "wte.weight"}, {"wte.weight", "[6,11]", "[11,6]"}},
        {{.reshaped = "h.1.ln_2.bias"}, {"h.1.ln_2.bias", "[6,1]", "[6]"}},
        {{.retyped = "h.0.ln_1.weight"}, {"h.0.ln_1.weight", "I32", "F32"}},
        {{.retyped = "wte.weight", .head = 1}, {"wte.weight", "I32", "F32"}},
        {{.extra = "h.2.ln_1.weight"}, {"h.2.ln_1.weight", "none of the model"}},
        {{.extra = "score.weight"}, {"score.weight", "reward or value model"}},
        {{.extra = "h.0.crossattention.c_attn.weight"},
         {"h.0.crossattention.c_attn.weight", "none of the model"}},
        {{.extra = "h..attn.bias"}, {"h..attn.bias", "none of the model"}},
        {{.extra = "h.0.attn.bias", .prefix = "transformer."},
         {"h.0.attn.bias", "transformer.wte.weight"}},
        {{.extra = "transformer.h.0.ln_1.weight"},
         {"transformer.h.0.ln_1.weight", "none of the model"}},
        {{.extra = "transformer.wte.weight"}, {"both wte.weight and transformer.wte.weight"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int frozen = 0; frozen < 2; frozen++) {
            build_directory(&bad[i].style);
            Error e = {""};
            ck_assert_msg(!hf_load(here, frozen, &e), "case %zu accepted", i);
            ck_says(&e, "model.safetensors", NULL);
            for (int k = 0; k < 4 && bad[i].says[k]; k++) ck_says(&e, bad[i].says[k], NULL);
        }
}
END_TEST

/* What config.json promises is taken on trust by nobody: no memory is asked for before the file was
 * seen to have it. */
START_TEST(refuses_a_config_that_promises_too_much) {
    Error e;
    build_directory(&(Style){0});
    put_text("config.json",
             "{" KIND
             "\"n_embd\": 65536, \"n_head\": 65536, \"n_layer\": 1000, \"n_positions\": 1000000, "
             "\"n_inner\": 1000000, \"vocab_size\": 10000000}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "wte.weight", "[11,6]", "[10000000,65536]", NULL);
}
END_TEST

START_TEST(refuses_directories_without_a_model) {
    Error e;
    put_text("adapter_config.json", "{}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "holds an adapter", "--adapter", NULL);
    put_text("config.json", CONFIG);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "has no weights", "model.safetensors", "pytorch_model.bin", NULL);
    put_text("pytorch_model.bin", "");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "pytorch_model.bin", "0 bytes", "fetch", NULL);
    build_model("model.safetensors", &(Style){0}, 0, TENSORS);
    Str file = get("model.safetensors");
    put("model.safetensors", file.s, file.n - 1);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "model.safetensors", "wte.weight", "cut short", NULL);
    free(file.s);
}
END_TEST

/* The model in two files. The index maps the first `listed` tensors, after `more`. */
static void build_shards(const char *more, int listed) {
    Spec s[TENSORS];
    Str index = {0};
    specification(s);
    put_text("config.json", CONFIG);
    build_model("one.safetensors", &(Style){.prefix = "transformer.", .type = "F16"}, 0, 10);
    build_model("two.safetensors",
                &(Style){.prefix = "transformer.", .masks = true, .misaligned = 5}, 10, TENSORS);
    str_printf(&index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {%s", more);
    for (int i = 0; i < listed; i++)
        str_printf(&index, "%s\"transformer.%s\": \"%s.safetensors\"", i || *more ? ", " : "",
                   s[i].name, i < 10 ? "one" : "two");
    str_printf(&index, "}}");
    put("model.safetensors.index.json", index.s, index.n);
    free(index.s);
}

START_TEST(loads_shards) {
    build_shards("", TENSORS);
    for (int frozen = 0; frozen < 2; frozen++) {
        GPT2 *m = ck_load(here, frozen);
        ck_model(m);
        gpt2_free(m);
    }
    build_model("one.safetensors", &(Style){.prefix = "transformer."}, 0,
                10);  // all F32 and aligned: two mappings
    build_model("two.safetensors", &(Style){.prefix = "transformer."}, 10, TENSORS);
    GPT2 *m = ck_load(here, true);
    ck_assert_int_eq(unlink(in("one.safetensors")), 0);
    ck_model(m);
    gpt2_free(m);
}
END_TEST

START_TEST(refuses_shards) {
    static const struct {
        const char *more;
        int listed;
        const char *says[3];
    } bad[] = {
        {"", 0, {"index.json", "weight_map"}},
        {"", 10, {"transformer.h.0.mlp.c_fc.weight", "missing"}},
        {"\"a\": \"../one.safetensors\"", TENSORS, {"index.json", "../one.safetensors"}},
        {"\"a\": \"/etc/passwd\"", TENSORS, {"index.json", "/etc/passwd"}},
        {"\"a\": \"\"", TENSORS, {"index.json", "\"\""}},
        {"\"a\": 1", TENSORS, {"index.json", " a "}},
        {"\"a\": \"three.safetensors\"", TENSORS, {"three.safetensors", "No such file"}},
        {"\"a\": \"one.safetensors\"", TENSORS, {"tensor a ", "one.safetensors"}},
        {"\"transformer.ln_f.bias\": \"one.safetensors\"",
         10,
         {"transformer.ln_f.bias", "one.safetensors"}},
    };
    Error e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        build_shards(bad[i].more, bad[i].listed);
        ck_assert_msg(!hf_load(here, false, &e), "case %zu accepted", i);
        for (int k = 0; k < 3 && bad[i].says[k]; k++) ck_says(&e, bad[i].says[k], NULL);
    }
    build_shards("", TENSORS);
    build_model("one.safetensors", &(Style){.prefix = "transformer."}, 0,
                11);  // one tensor in both
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "two.safetensors", "transformer.h.0.mlp.c_fc.weight", "one.safetensors", NULL);
    build_shards("", TENSORS);
    put_text("model.safetensors.index.json", "{\"weight_map\": {");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "index.json:1:", NULL);
}
END_TEST

/* A real, small model that is not GPT-2 as we mean it: its head is its own. */
START_TEST(refuses_the_untied_head_of_a_real_model) {
    const char *shared = getenv("SHARED");
    char path[512];
    Str file = {0};
    Error e;
    snprintf(path, sizeof path, "%s/data/gpt-nano-sort/model.safetensors",
             shared ? shared : "../shared");
    if (access(path, R_OK)) {
        printf("skipped: %s is not there\n", path);
        return;
    }
    ck_assert_int_eq(read_file(path, 1 << 24, &file, &e), 0);
    put("model.safetensors", file.s, file.n);
    free(file.s);
    put_text(
        "config.json",
        "{" KIND
        "\"n_embd\": 48, \"n_head\": 3, \"n_layer\": 3, \"n_positions\": 11, \"vocab_size\": 3}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "model.safetensors", "untied head", "element 0 of lm_head.weight", "wte.weight",
            NULL);
}
END_TEST

/* ---- saving ---------------------------------------------------------------------------------- */

/* here/NAME/model.safetensors is the model of value(): every tensor with its full name, nothing
 * else. */
static void ck_saved(const char *name) {
    Spec s[TENSORS];
    Found f[TENSORS + 1];
    const char *data;
    char path[64];
    snprintf(path, sizeof path, "%s/model.safetensors", name);
    Str file = get(path);
    ck_assert_int_eq(take_apart(file, "\"format\":\"pt\"", f, TENSORS + 1, &data),
                     specification(s));
    for (int i = 0; i < TENSORS; i++) {
        int k = 0;
        while (k < TENSORS && strcmp(f[k].name + strlen("transformer."), s[i].name)) k++;
        ck_assert_msg(k < TENSORS && !strncmp(f[k].name, "transformer.", 12), "%s is not there",
                      s[i].name);
        ck_assert_int_eq(f[k].ndim, s[i].ndim);
        for (int d = 0; d < s[i].ndim; d++) ck_assert_uint_eq(f[k].shape[d], (size_t)s[i].shape[d]);
        Str expected = encoded("F32", i, elements(&s[i]));
        ck_assert_uint_eq(expected.n, f[k].end - f[k].begin);
        ck_assert_mem_eq(data + f[k].begin, expected.s, expected.n);
        free(expected.s);
    }
    free(file.s);
}

static void ck_save(const GPT2 *m, const char *dir, const char *from) {
    Error e;
    ck_assert_msg(!hf_save(m, dir, from, &e), "%s", e.text);
}

START_TEST(saves_what_it_loaded) {
    static const char *const copied[] = {"vocab.json",
                                         "merges.txt",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "added_tokens.json",
                                         "generation_config.json",
                                         "chat_template.jinja",
                                         "chat_template_b.jinja"};
    build_directory(&(Style){.type = "BF16", .masks = true, .head = 1});
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++) {
        char content[100];
        int n = snprintf(content, sizeof content, "what %s says,\r\n%c and not more", copied[i], 0);
        put(copied[i], content, (size_t)n);
    }
    put_text("pytorch_model.bin", "weights of another time");
    GPT2 *m = ck_load(here, false);
    ck_save(m, in("a/b"), here);  // neither exists yet
    ck_saved("a/b");
    ck_assert_int_eq(files_in("a/b"), 2 + (int)(sizeof copied / sizeof *copied));
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++) {
        char path[64];
        snprintf(path, sizeof path, "a/b/%s", copied[i]);
        ck_same(get(path), get(copied[i]));
    }
    gpt2_free(m);
    m = ck_load(in("a/b"), true);
    ck_model(m);
    ck_save(m, in("a/b"), in("a/b"));  // onto the files it is mapped from
    ck_model(m);
    gpt2_free(m);
    ck_saved("a/b");
    ck_assert_int_eq(files_in("a/b"), 2 + (int)(sizeof copied / sizeof *copied));
    ck_same(get("a/b/vocab.json"), get("vocab.json"));
}
END_TEST

/* Only what must change of a config changes; the rest keeps its order and its digits. */
START_TEST(patches_the_config) {
    build_directory(&(Style){0});
    GPT2 *m = ck_load(here, false);
    put_text("config.json",
             "{\"zebra\": [1, null, \"\\u00e9\"], \"architectures\": [\"GPT2Model\"],\n"
             "\"model_type\": \"gpt2\", \"layer_norm_epsilon\": 1e-05, \"third\": 0.1, \"long\": "
             "9.999999747378752e-06,\n"
             "\"quantization_config\": {\"bits\": 4}, \"n_embd\": 6, \"num_attention_heads\": 2, "
             "\"n_layer\": 2,\n"
             "\"n_positions\": 7, \"vocab_size\": 3, \"dtype\": \"float16\"}");
    ck_save(m, in("out"), here);
    ck_same(get("out/config.json"),
            text("{\n"
                 "  \"zebra\": [\n    1,\n    null,\n    \"\303\251\"\n  ],\n"
                 "  \"architectures\": [\n    \"GPT2LMHeadModel\"\n  ],\n"
                 "  \"model_type\": \"gpt2\",\n  \"layer_norm_epsilon\": 1e-5,\n  \"third\": "
                 "0.1,\n  \"long\": 9.999999747378752e-6,\n"
                 "  \"n_embd\": 6,\n  \"num_attention_heads\": 2,\n  \"n_layer\": 2,\n  "
                 "\"n_positions\": 7,\n  \"vocab_size\": 11,\n"
                 "  \"dtype\": \"float32\"\n}\n"));
    put_text("config.json",
             "{" KIND CONFIG_SIZES
             ", \"torch_dtype\": \"float16\", \"n_inner\": null}");  // dtype's older name
    ck_save(m, in("out"), here);
    Str config = get("out/config.json");
    ck_assert_ptr_nonnull(strstr(config.s, "\"torch_dtype\": \"float32\""));
    ck_assert_ptr_null(strstr(config.s, "\"dtype\""));
    ck_assert_ptr_nonnull(strstr(config.s, "\"n_inner\": null"));
    free(config.s);
    gpt2_free(m);
}
END_TEST

START_TEST(saves_a_model_that_came_from_nowhere) {
    const GPT2Config c = {.n_positions = P,
                          .vocab_size = V,
                          .n_layer = L,
                          .n_head = 3,
                          .n_embd = C,
                          .n_inner = F,
                          .layer_norm_epsilon = 1e-5f,
                          .embd_pdrop = 0.1f,
                          .attn_pdrop = 0,
                          .resid_pdrop = 0.12345679f};
    GPT2 *m = gpt2_create(&c, false);
    for (int i = 0; i < TENSORS; i++)
        for (int k = 0; k < (int)gpt2_tensor(m, i)->n; k++)
            gpt2_write(m, i, GPT2_WEIGHT, (size_t)k, 1, &(float){value(i, k)});
    ck_save(m, in("out"), NULL);
    gpt2_free(m);
    ck_saved("out");
    ck_assert_int_eq(files_in("out"), 2);
    GPT2Config back;
    Error e;
    ck_assert_msg(!hf_config(in("out"), &back, &e), "%s", e.text);
    ck_assert(back.n_positions == P && back.vocab_size == V && back.n_layer == L &&
              back.n_head == 3 && back.n_embd == C && back.n_inner == F &&
              back.layer_norm_epsilon == 1e-5f && back.embd_pdrop == 0.1f && back.attn_pdrop == 0 &&
              back.resid_pdrop == 0.12345679f);
    Str config = get("out/config.json");
    ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2LMHeadModel\""));
    ck_assert_ptr_nonnull(strstr(config.s, "\"layer_norm_epsilon\": 1e-5"));
    ck_assert_ptr_nonnull(
        strstr(config.s, "\"bos_token_id\": null"));  // 50256 is none of 11 tokens
    free(config.s);
}
END_TEST

/* ---- scalar heads ---------------------------------------------------------------------------- */

#define CLASSIFIER                                                                    \
    ", \"architectures\": [\"GPT2ForSequenceClassification\"], \"eos_token_id\": 7, " \
    "\"id2label\": {\"0\": \"LABEL_0\"}}"

static GPT2 *ck_load_head(const char *dir, GPT2Head head, bool frozen, bool expected) {
    Error e;
    bool found = !expected;
    GPT2 *m = hf_load_head(dir, head, frozen, &found, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    ck_assert(found == expected);
    ck_assert_int_eq(gpt2_tensors(m), TENSORS + (int)head);
    return m;
}

static void ck_tensor(const GPT2 *m, int i, const char *name, const float *want, size_t n) {
    float x[V * C];
    ck_assert_str_eq(gpt2_tensor(m, i)->name, name);
    ck_assert_uint_eq(gpt2_tensor(m, i)->n, n);
    gpt2_read(m, i, GPT2_WEIGHT, 0, n, x);
    for (size_t k = 0; k < n; k++)
        ck_assert_msg(x[k] == want[k], "%s[%zu] is %g, expected %g", name, k, (double)x[k],
                      (double)want[k]);
}

START_TEST(reads_and_writes_scalar_heads) {
    float w[C + 1], none[C + 1] = {0};
    Found f[TENSORS + 3];
    const char *data;
    for (int k = 0; k <= C; k++) w[k] = value(99, k);
    for (int frozen = 0; frozen <= 1; frozen++) {
        // a sequence classification model, prefixed as the library writes it
        build_directory(&(Style){.prefix = "transformer.", .scalar = 1});
        put_text("config.json", "{" KIND CONFIG_SIZES CLASSIFIER);
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        ck_save(m, in("score"), here);
        Str file = get("score/model.safetensors"), config = get("score/config.json");
        ck_assert_int_eq(take_apart(file, "\"format\":\"pt\"", f, TENSORS + 3, &data), TENSORS + 1);
        int at = 0;
        while (at <= TENSORS && strcmp(f[at].name, "score.weight")) at++;
        ck_assert(at <= TENSORS && f[at].ndim == 2 && f[at].shape[0] == 1 && f[at].shape[1] == C);
        ck_assert_mem_eq(data + f[at].begin, w, 4 * C);
        ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2ForSequenceClassification\""));
        ck_assert_ptr_nonnull(strstr(config.s, "\"pad_token_id\": 7"));
        free(file.s);
        free(config.s);
        gpt2_free(m);
        m = ck_load_head(in("score"), SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        gpt2_free(m);
        // the same weights as a language model with a value beside: its bias is 0; saved in the
        // form of TRL's value head
        m = ck_load_head(in("score"), LM_AND_VALUE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "v_head.summary.weight", w, C);
        ck_tensor(m, TENSORS + 1, "v_head.summary.bias", none, 1);
        ck_save(m, in("value"), here);
        gpt2_free(m);
        config = get("value/config.json");
        ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2LMHeadModel\""));
        free(config.s);
        m = ck_load_head(in("value"), LM_AND_VALUE_HEAD, frozen, true);
        gpt2_free(m);
    }
}
END_TEST

/* Of the older form the bias goes into ln_f.bias, so that w . ln_f(h) grows by it whatever h is. */
START_TEST(folds_the_bias_of_a_value_head) {
    float w[C + 1], ln_f[C], folded[C];
    for (int k = 0; k <= C; k++) w[k] = value(99, k);
    for (int k = 0; k < C; k++) ln_f[k] = value(TENSORS - 1, k);
    build_directory(&(Style){.scalar = 2});
    for (int frozen = 0; frozen <= 1; frozen++) {
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        gpt2_read(m, TENSORS - 1, GPT2_WEIGHT, 0, C, folded);
        double more = 0;
        for (int k = 0; k < C; k++) more += (double)w[k] * ((double)folded[k] - (double)ln_f[k]);
        ck_assert_double_eq_tol(more, (double)w[C], 1e-5);
        ck_assert_double_gt(fabs((double)w[C]), 0.05);
        gpt2_free(m);
    }
    GPT2 *m = ck_load_head(here, LM_AND_VALUE_HEAD, true, true);  // which has a bias of its own
    ck_tensor(m, TENSORS + 1, "v_head.summary.bias", w + C, 1);
    ck_tensor(m, TENSORS - 1, "ln_f.bias", ln_f, C);
    gpt2_free(m);
}
END_TEST

START_TEST(a_language_model_has_no_scalar_head_and_a_reward_model_is_no_language_model) {
    Error e;
    float none[C] = {0};
    build_directory(&(Style){0});
    for (int frozen = 0; frozen <= 1; frozen++) {
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, false);
        ck_tensor(m, TENSORS, "score.weight", none, C);
        gpt2_free(m);
    }
    for (int form = 1; form <= 2; form++) {
        build_directory(&(Style){.scalar = form});
        ck_assert_ptr_null(hf_load(here, false, &e));
        ck_says(&e, "reward or value model", NULL);
    }
    put_text("config.json", "{" KIND CONFIG_SIZES CLASSIFIER);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "GPT2ForSequenceClassification", "not a language model", NULL);
    put_text("config.json",
             "{" KIND CONFIG_SIZES ", \"architectures\": [\"GPT2ForSequenceClassification\"]}");
    ck_assert_ptr_null(hf_load_head(here, SCORE_HEAD, false, NULL, &e));
    ck_says(&e, "config.json", "2 labels", "expected 1", NULL);
}
END_TEST

/* A full disk, a name in the way, a source that is not there: whatever fails, the model that stood
 * there still does. */
START_TEST(a_failed_save_costs_nothing) {
    static const char *const full[] = {"out/model.safetensors", "out/config.json",
                                       "out/vocab.json"};
    Error e;
    build_directory(&(Style){.head = 1});
    put_text("vocab.json", "{\"old\": 1}");
    GPT2 *m = ck_load(here, false);
    ck_save(m, in("out"), here);
    gpt2_write(m, 0, GPT2_WEIGHT, 0, 1, &(float){99});
    put_text("vocab.json", "{\"new\": 1}");
    for (int i = 0; i < 3; i++) {
        fill_disk_for(full[i]);
        ck_assert_int_eq(hf_save(m, in("out"), here, &e), -1);
        ck_says(&e, full[i], "No space left", "unchanged", NULL);
        ck_saved("out");
        ck_same(get("out/vocab.json"), text("{\"old\": 1}"));
        ck_assert_int_eq(files_in("out"), 3);
    }
    ck_assert_int_eq(hf_save(m, in("vocab.json"), here, &e), -1);
    ck_says(&e, "vocab.json", "not a directory", NULL);
    ck_assert_int_eq(hf_save(m, in("vocab.json/x"), here, &e), -1);
    ck_says(&e, "vocab.json/x", "Not a directory", NULL);
    ck_assert_int_eq(hf_save(m, "", here, &e), -1);
    ck_assert_int_eq(hf_save(m, in("out"), in("nowhere"), &e), -1);
    ck_says(&e, "nowhere/config.json", NULL);
    ck_saved("out");
    gpt2_free(m);
}
END_TEST

/* ---- adapters -------------------------------------------------------------------------------- */

static const GPT2Tensor added[] = {
    {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", 2, {2, C}, 2 * C, false},
    {"base_model.model.transformer.h.0.attn.c_attn.lora_B.weight", 2, {3 * C, 2}, 6 * C, false},
    {"transformer.h.1.output_adapters.adapters.x.adapter_up.bias", 1, {C, 1}, C, false}};
enum { ADDED = sizeof added / sizeof *added };

static GPT2 *with_added(void) {
    GPT2 *m = ck_load(here, true);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4,
                                  .sequences = 1,
                                  .scored = 4,
                                  .train = true,
                                  .trains = TRAIN_NONE,
                                  .more = added,
                                  .more_n = ADDED});
    return m;
}

static float added_value(int i, int k) {
    return (float)(100 * i) + (float)k / 4 + 1;
}  // exact as F16, too

static void fill_added(GPT2 *m) {
    for (int i = 0; i < ADDED; i++)
        for (int k = 0; k < (int)added[i].n; k++)
            gpt2_write(m, TENSORS + i, GPT2_WEIGHT, (size_t)k, 1, &(float){added_value(i, k)});
}

static void ck_added(const GPT2 *m, bool there) {
    float x;
    for (int i = 0; i < ADDED; i++)
        for (int k = 0; k < (int)added[i].n; k++) {
            gpt2_read(m, TENSORS + i, GPT2_WEIGHT, (size_t)k, 1, &x);
            ck_assert_msg(x == (there ? added_value(i, k) : 0), "%s[%d] is %g", added[i].name, k,
                          (double)x);
        }
}

START_TEST(saves_and_loads_what_a_technique_added) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *m = with_added(), *other = with_added();
    fill_added(m);
    ck_assert_msg(!hf_save_added(m, in("a/b"), "w.safetensors", "{\"peft_type\": \"LORA\"}", &e),
                  "%s", e.text);
    ck_assert_int_eq(files_in("a/b"), 2);
    ck_same(get("a/b/adapter_config.json"), text("{\"peft_type\": \"LORA\"}\n"));
    SafeTensors *st = st_open(in("a/b/w.safetensors"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    ck_assert_int_eq(st_count(st), ADDED);
    ck_assert_str_eq(st_metadata(st, "format"), "pt");
    for (int i = 0; i < ADDED; i++) {
        const STTensor *t = st_find(st, added[i].name);
        ck_assert(t && t->type == ST_F32 && t->ndim == added[i].ndim && t->n == added[i].n &&
                  t->shape[0] == (size_t)added[i].shape[0]);
    }
    st_close(st);
    ck_added(other, false);
    ck_assert_msg(!hf_load_added(other, in("a/b"), "w.safetensors", &e), "%s", e.text);
    ck_added(other, true);
    // where nothing can be written, nothing is
    ck_assert_int_eq(hf_save_added(m, in("a/b/w.safetensors"), "w", "{}", &e), -1);
    ck_assert_int_eq(hf_save_added(m, in("a/b"), "none/w", "{}", &e), -1);
    ck_same(get("a/b/adapter_config.json"), text("{\"peft_type\": \"LORA\"}\n"));
    gpt2_free(m);
    gpt2_free(other);
}
END_TEST

/* One tensor of an adapter's file; how: what is wrong with it. */
enum { RIGHT, MISSING, TURNED, BARE, HALF, INTEGER };

static void build_added(const int how[ADDED], const char *extra) {
    Build b = {0};
    for (int i = 0; i < ADDED; i++) {
        unsigned char data[8 * 6 * C];
        char name[96], shape[64];
        size_t n = added[i].n;
        if (how[i] == MISSING) continue;
        for (size_t k = 0; k < n; k++) {
            float x = added_value(i, (int)k);
            uint32_t bits;
            memcpy(&bits, &x, 4);
            uint16_t half = (uint16_t)((bits >> 13) - ((127u - 15u) << 10));
            if (how[i] == HALF)
                memcpy(data + 2 * k, &half, 2);
            else
                memcpy(data + 4 * k, &x, 4);
        }
        const char *cut = strstr(added[i].name, "transformer.");
        snprintf(name, sizeof name, "%.*s%s", (int)(cut - added[i].name), added[i].name,
                 how[i] == BARE ? cut + 12 : cut);
        if (added[i].ndim == 1)
            snprintf(shape, sizeof shape, "[%d]", added[i].shape[0]);
        else if (how[i] == TURNED)
            snprintf(shape, sizeof shape, "[%d,%d]", added[i].shape[1], added[i].shape[0]);
        else
            snprintf(shape, sizeof shape, "[%d,%d]", added[i].shape[0], added[i].shape[1]);
        build_add(&b, name,
                  how[i] == HALF      ? "F16"
                  : how[i] == INTEGER ? "I32"
                                      : "F32",
                  shape, data, (how[i] == HALF ? 2 : 4) * n);
    }
    if (extra) build_add(&b, extra, "F32", "[1]", &(float){0}, 4);
    build_end(&b, "w.safetensors", 1);
}

START_TEST(loads_an_adapter_strictly) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *m = with_added();
    const struct {
        int how[ADDED];
        const char *extra, *says[3];
    } bad[] = {
        {{RIGHT, MISSING, RIGHT},
         NULL,
         {"c_attn.lora_B.weight is missing", "[18,2]", "w.safetensors"}},
        {{RIGHT, TURNED, RIGHT}, NULL, {"c_attn.lora_B.weight", "[2,18]", "[18,2]"}},
        {{RIGHT, RIGHT, INTEGER}, NULL, {"adapter_up.bias", "I32", "F32, F16 or BF16"}},
        {{RIGHT, RIGHT, RIGHT},
         "base_model.model.lm_head.lora_A.weight",
         {"lm_head.lora_A.weight is none of the 3", "c_attn.lora_A", ""}},
        {{BARE, BARE, RIGHT}, NULL, {"adapter_up.bias is missing", "", ""}},  // all of them or none
        {{RIGHT, BARE, RIGHT}, NULL, {"c_attn.lora_A.weight is missing", "", ""}},
    };
    ck_assert_int_eq(C, 6);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        build_added(bad[i].how, bad[i].extra);
        ck_assert_msg(hf_load_added(m, here, "w.safetensors", &e) == -1, "case %zu", i);
        ck_says(&e, "w.safetensors", bad[i].says[0], bad[i].says[1], bad[i].says[2], NULL);
        ck_added(m, false);
    }
    ck_assert_int_eq(hf_load_added(m, here, "none.safetensors", &e), -1);
    put_text("adapter_model.bin", "x");
    ck_assert_int_eq(hf_load_added(m, here, "none.safetensors", &e), -1);
    ck_says(&e, "none.safetensors", ".bin", "save the adapter again", NULL);
    static const int good[][ADDED] = {
        {RIGHT, RIGHT, RIGHT}, {BARE, BARE, BARE}, {HALF, RIGHT, HALF}};
    for (int i = 0; i < 3; i++) {
        GPT2 *fresh = with_added();
        build_added(good[i], NULL);
        ck_assert_msg(!hf_load_added(fresh, here, "w.safetensors", &e), "%s", e.text);
        ck_added(fresh, true);
        gpt2_free(fresh);
    }
    gpt2_free(m);
}
END_TEST

START_TEST(tells_whose_adapter_it_is) {
    Error e;
    AdapterFormat format;
    ck_assert_int_eq(hf_adapter_format(here, &format, &e), -1);
    ck_says(&e, "adapter_config.json", NULL);
    put_text("adapter_config.json",
             "{\"peft_type\": \"IA3\", \"config\": {}, \"version\": \"adapters.1.2.0\"}");
    ck_assert(!hf_adapter_format(here, &format, &e) && format == ADAPTER_PEFT);
    put_text("adapter_config.json",
             "{\"config\": {\"reduction_factor\": 16}, \"version\": \"adapters.1.2.0\"}");
    ck_assert(!hf_adapter_format(here, &format, &e) && format == ADAPTER_HUB);
    LoraConfig l;
    ck_assert_int_eq(hf_lora_config(here, &l, &e), -1);
    ck_says(&e, "adapter_config.json", "AdapterHub", "adapter.c", NULL);
    const char *neither[] = {"{}",
                             "{\"config\": {}}",
                             "{\"version\": \"adapters.1\"}",
                             "{\"config\": 1, \"version\": \"adapters.1\"}",
                             "[]",
                             "{\"config\": {}, \"version\": \"1.2\"}",
                             "{",
                             ""};
    for (size_t i = 0; i < sizeof neither / sizeof *neither; i++) {
        put_text("adapter_config.json", neither[i]);
        ck_assert_msg(hf_adapter_format(here, &format, &e) == -1, "%s", neither[i]);
        ck_says(&e, "adapter_config.json", NULL);
    }
}
END_TEST

/* Every key that PEFT 0.20 writes, with the values it has for a plain LoRA. */
static const char peft_config[] =
    "{\"alora_invocation_tokens\": null, \"alpha_pattern\": {}, \"arrow_config\": null, "
    "\"auto_mapping\": null, "
    "\"base_model_name_or_path\": \"openai-community/gpt2\", \"bias\": \"none\", \"corda_config\": "
    "null, \"ensure_weight_tying\": false, "
    "\"eva_config\": null, \"exclude_modules\": null, \"fan_in_fan_out\": true, "
    "\"inference_mode\": true, \"init_lora_weights\": true, "
    "\"kasa_config\": null, \"layer_replication\": null, \"layers_pattern\": null, "
    "\"layers_to_transform\": null, \"loftq_config\": {}, "
    "\"lora_alpha\": 32, \"lora_bias\": false, \"lora_dropout\": 0.05, \"lora_ga_config\": null, "
    "\"megatron_config\": null, "
    "\"megatron_core\": \"megatron.core\", \"modules_to_save\": null, \"peft_type\": \"LORA\", "
    "\"peft_version\": \"0.20.1.dev0\", "
    "\"qalora_group_size\": 16, \"r\": 8, \"rank_pattern\": {}, \"revision\": null, "
    "\"target_modules\": [\"c_proj\", \"c_attn\"], "
    "\"target_parameters\": null, \"task_type\": \"CAUSAL_LM\", \"trainable_token_indices\": null, "
    "\"use_dora\": false, \"use_qalora\": false, "
    "\"use_rslora\": false%s}";

static void put_lora(const char *more) {
    Str s = {0};
    char old[64] = "";
    str_printf(&s, peft_config, "");
    // a key given again replaces what stands there
    sscanf(more, "%63[^:]", old);
    char *at = *old ? strstr(s.s, old) : NULL;
    if (at) {
        char *end = at + strlen(old);
        int depth = 0;
        while (*end && (depth || (*end != ',' && *end != '}'))) {
            depth += (*end == '{') + (*end == '[') - (*end == '}') - (*end == ']');
            end++;
        }
        memmove(at, *end == ',' ? end + 2 : end, strlen(*end == ',' ? end + 2 : end) + 1);
        size_t n = strlen(s.s);
        if (s.s[n - 2] == ' ') memcpy(s.s + n - 3, "}", 2);  // it was the last
    }
    s.n = strlen(s.s);
    s.s[--s.n] = 0;
    if (*more) str_printf(&s, ", %s", more);
    str_printf(&s, "}");
    put("adapter_config.json", s.s, s.n);
    free(s.s);
}

START_TEST(reads_and_writes_the_config_of_a_lora) {
    Error e;
    LoraConfig l;
    put_lora("");
    ck_assert_msg(!hf_lora_config(here, &l, &e), "%s", e.text);
    ck_assert(l.r == 8 && l.alpha == 32 && l.dropout == 0.05f && !l.rslora);
    ck_assert_str_eq(l.targets, "c_proj,c_attn");
    put_lora("\"use_rslora\": true");
    ck_assert(!hf_lora_config(here, &l, &e) && l.rslora);
    put_lora("\"target_modules\": \"all-linear\"");
    ck_assert(!hf_lora_config(here, &l, &e) && !strcmp(l.targets, "all-linear"));
    put_text(
        "adapter_config.json",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"c_attn\"]}");  // PEFT 0.3 and
                                                                                   // its defaults
    ck_assert_msg(!hf_lora_config(here, &l, &e), "%s", e.text);
    ck_assert(l.r == 4 && l.alpha == 8 && l.dropout == 0 && !l.rslora);

    l = (LoraConfig){16, 32, 0.1f, false, "mlp.c_fc,c_attn"};
    char *written = hf_lora_text(&l, "openai-community/gpt2");
    ck_assert_str_eq(written,
                     "{\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": "
                     "\"openai-community/gpt2\",\n  \"bias\": \"none\",\n"
                     "  \"fan_in_fan_out\": true,\n  \"inference_mode\": true,\n  "
                     "\"init_lora_weights\": true,\n  \"layers_pattern\": null,\n"
                     "  \"layers_to_transform\": null,\n  \"lora_alpha\": 32,\n  \"lora_dropout\": "
                     "0.1,\n  \"modules_to_save\": null,\n"
                     "  \"peft_type\": \"LORA\",\n  \"r\": 16,\n  \"revision\": null,\n  "
                     "\"target_modules\": [\n    \"c_attn\",\n    \"mlp.c_fc\"\n"
                     "  ],\n  \"task_type\": \"CAUSAL_LM\"\n}");
    free(written);
    l = (LoraConfig){3, 4.5f, 0, true, "all-linear"};
    written = hf_lora_text(&l, NULL);
    put_text("adapter_config.json", written);
    free(written);
    LoraConfig back;
    ck_assert_msg(!hf_lora_config(here, &back, &e), "%s", e.text);
    ck_assert(back.r == 3 && back.alpha == 4.5f && back.dropout == 0 && back.rslora &&
              !strcmp(back.targets, "all-linear"));
}
END_TEST

START_TEST(refuses_what_is_more_than_a_lora) {
    Error e;
    LoraConfig l;
    const char *bad[][2] = {
        {"\"use_dora\": true", "use_dora is true"},
        {"\"lora_bias\": true", "lora_bias"},
        {"\"rank_pattern\": {\"c_attn\": 4}", "rank_pattern"},
        {"\"alpha_pattern\": {\"c_attn\": 4}", "alpha_pattern"},
        {"\"modules_to_save\": [\"score\"]", "modules_to_save"},
        {"\"bias\": \"all\"", "bias"},
        {"\"bias\": \"lora_only\"", "bias"},
        {"\"layers_to_transform\": [0]", "layers_to_transform"},
        {"\"exclude_modules\": [\"c_fc\"]", "exclude_modules"},
        {"\"peft_type\": \"IA3\"", "peft_type"},
        {"\"peft_type\": 3", "peft_type"},
        {"\"task_type\": \"SEQ_CLS\"", "task_type"},
        {"\"init_lora_weights\": \"pissa\"", "init_lora_weights"},
        {"\"init_lora_weights\": \"olora\"", "init_lora_weights"},
        {"\"target_parameters\": [\"x\"]", "target_parameters"},
        {"\"tomorrows_config\": {\"x\": 1}", "tomorrows_config"},
        {"\"r\": 0", "r is 0"},
        {"\"r\": -4", "r is -4"},
        {"\"r\": 1.5", "r is 1.5"},
        {"\"r\": \"8\"", "r is"},
        {"\"r\": 99999999999", "r is"},
        {"\"lora_alpha\": \"8\"", "lora_alpha"},
        {"\"lora_dropout\": 1", "lora_dropout"},
        {"\"lora_dropout\": -0.1", "lora_dropout"},
        {"\"use_rslora\": 1", "use_rslora"},
        {"\"target_modules\": \".*c_attn\"", "target_modules"},
        {"\"target_modules\": []", "target_modules"},
        {"\"target_modules\": null", "target_modules"},
        {"\"target_modules\": [1]", "target_modules"},
        {"\"target_modules\": [\"a,b\"]", "target_modules"},
        {"\"target_modules\": [\"\"]", "target_modules"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_lora(bad[i][0]);
        ck_assert_msg(hf_lora_config(here, &l, &e) == -1, "accepted: %s", bad[i][0]);
        ck_says(&e, "adapter_config.json", bad[i][1], NULL);
    }
    Str long_name = {0};
    str_printf(&long_name, "\"target_modules\": [\"%0*d\"]", 1100, 0);
    put_lora(long_name.s);
    ck_assert_int_eq(hf_lora_config(here, &l, &e), -1);
    ck_says(&e, "target_modules", "characters", NULL);
    free(long_name.s);
}
END_TEST

/* ---- moments --------------------------------------------------------------------------------- */

static GPT2 *reserved(bool train) {
    GPT2 *m = ck_load(here, false);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4, .sequences = 1, .scored = 4, .train = train});
    return m;
}

static SafeTensors *save_moments(const GPT2 *m, const char *prefix) {
    Error e;
    STWriter *w = st_new();
    st_note(w, "step", "3");
    st_declare(w, "own", 1, (size_t[]){1});
    hf_declare_moments(w, m, prefix);
    ck_assert_msg(!st_begin(w, in("state.safetensors"), &e), "%s", e.text);
    ck_assert_int_eq(st_write(w, &(float){8}, 1, &e), 0);
    ck_assert_msg(!hf_write_moments(w, m, &e), "%s", e.text);
    ck_assert_msg(!st_end(w, true, &e), "%s", e.text);
    SafeTensors *st = st_open(in("state.safetensors"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    return st;
}

/* Moment 1 or 2 of element k of tensor i. */
static float moment(int i, int k, int which) {
    return (float)(1000 * which + 10 * i) + (float)k / 1024;
}

START_TEST(restores_moments) {
    static const GPT2Part parts[2] = {GPT2_MOMENT1, GPT2_MOMENT2};
    build_directory(&(Style){0});
    GPT2 *m = reserved(true), *other = reserved(true);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < TENSORS; i++)
            for (int k = 0; k < (int)gpt2_tensor(m, i)->n; k++)
                gpt2_write(m, i, parts[which], (size_t)k, 1, &(float){moment(i, k, 1 + which)});
    SafeTensors *st = save_moments(m, "value.");
    gpt2_free(m);
    Error e;
    float x;
    ck_assert_int_eq(st_count(st), 1 + 2 * TENSORS);
    ck_assert_uint_eq(st_find(st, "value.m.h.1.mlp.c_proj.weight")->shape[0], F);
    ck_assert_int_eq(st_floats(st_find(st, "value.v.ln_f.bias"), 2, 1, &x, &e), 0);
    ck_assert(x == moment(TENSORS - 1, 2, 2));
    ck_assert_msg(!hf_read_moments(st, other, "value.", &e), "%s", e.text);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < TENSORS; i++)
            for (int k = 0; k < (int)gpt2_tensor(other, i)->n; k++) {
                gpt2_read(other, i, parts[which], (size_t)k, 1, &x);
                ck_assert(x == moment(i, k, 1 + which));
            }
    ck_model(other);
    ck_assert_int_eq(hf_read_moments(st, other, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "missing", NULL);
    st_close(st);
    gpt2_free(other);
}
END_TEST

/* A state in which other tensors trained, or one of another shape or type, is refused before
 * anything is changed. */
START_TEST(refuses_moments_of_another_run) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *all = reserved(true), *none = reserved(false);
    gpt2_write(all, 0, GPT2_MOMENT1, 0, 1, &(float){5});
    SafeTensors *st = save_moments(all, "");
    ck_assert_int_eq(hf_read_moments(st, none, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "does not train", NULL);
    st_close(st);
    st = save_moments(none, "");
    ck_assert_int_eq(st_count(st), 1);
    ck_assert_int_eq(hf_read_moments(st, all, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "missing", NULL);
    st_close(st);

    for (int fault = 0; fault < 3;
         fault++) {  // the last that is looked at has another shape, another type, or is missing
        Spec s[TENSORS];
        Build b = {0};
        float zeros[V * C + C * F] = {0};
        specification(s);
        for (int i = 0; i < 2 * TENSORS; i++) {
            const Spec *t = &s[i % TENSORS];
            char name[96], shape[48];
            bool last = i == 2 * TENSORS - 1;
            if (last && fault == 2) break;
            snprintf(name, sizeof name, "%s%s", i < TENSORS ? "m." : "v.", t->name);
            if (t->ndim == 2)
                snprintf(shape, sizeof shape, "[%d,%d]", t->shape[0], t->shape[1]);
            else
                snprintf(shape, sizeof shape, last && fault == 0 ? "[1,%d]" : "[%d]", t->shape[0]);
            build_add(&b, name, last && fault == 1 ? "I32" : "F32", shape, zeros,
                      4 * (size_t)elements(t));
        }
        build_end(&b, "state.safetensors", 0);
        st = st_open(in("state.safetensors"), &e);
        ck_assert_msg(st != NULL, "%s", e.text);
        ck_assert_int_eq(hf_read_moments(st, all, "", &e), -1);
        ck_says(&e, "v.ln_f.bias",
                fault == 0   ? "[1,6]"
                : fault == 1 ? "I32"
                             : "missing",
                fault == 0   ? "[6]"
                : fault == 1 ? "F32"
                             : "trains",
                NULL);
        st_close(st);
    }
    float x;
    gpt2_read(all, 0, GPT2_MOMENT1, 0, 1, &x);
    ck_assert(x == 5);
    gpt2_free(all);
    gpt2_free(none);
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

int main(void) {
    Suite *suite = suite_create("hf");
    TCase *tc = tcase_create("hf");
    tcase_set_timeout(tc, 300);  // for sanitizers and busy machines
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, reads_a_file_made_by_hand);
    tcase_add_test(tc, converts_every_half_and_bfloat16);
    tcase_add_test(tc, refuses_hostile_headers);
    tcase_add_test(tc, accepts_what_the_format_allows);
    tcase_add_test(tc, refuses_every_truncation);
    tcase_add_test(tc, survives_every_changed_byte);
    tcase_add_test(tc, refuses_absurd_headers);
    tcase_add_test(tc, writes_what_it_was_told);
    tcase_add_test(tc, a_failed_write_costs_nothing);
    tcase_add_test(tc, reads_configs);
    tcase_add_test(tc, refuses_configs);
    tcase_add_test(tc, loads_every_layout);
    tcase_add_test(tc, maps_a_frozen_model);
    tcase_add_test(tc, large_tensors_cross_pieces);
    tcase_add_test(tc, refuses_models);
    tcase_add_test(tc, refuses_a_config_that_promises_too_much);
    tcase_add_test(tc, refuses_directories_without_a_model);
    tcase_add_test(tc, loads_shards);
    tcase_add_test(tc, refuses_shards);
    tcase_add_test(tc, refuses_the_untied_head_of_a_real_model);
    tcase_add_test(tc, saves_what_it_loaded);
    tcase_add_test(tc, patches_the_config);
    tcase_add_test(tc, saves_a_model_that_came_from_nowhere);
    tcase_add_test(tc, a_failed_save_costs_nothing);
    tcase_add_test(tc, reads_and_writes_scalar_heads);
    tcase_add_test(tc, folds_the_bias_of_a_value_head);
    tcase_add_test(tc, a_language_model_has_no_scalar_head_and_a_reward_model_is_no_language_model);
    tcase_add_test(tc, saves_and_loads_what_a_technique_added);
    tcase_add_test(tc, loads_an_adapter_strictly);
    tcase_add_test(tc, tells_whose_adapter_it_is);
    tcase_add_test(tc, reads_and_writes_the_config_of_a_lora);
    tcase_add_test(tc, refuses_what_is_more_than_a_lora);
    tcase_add_test(tc, restores_moments);
    tcase_add_test(tc, refuses_moments_of_another_run);
    suite_add_tcase(suite, tc);
    int failed = run_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
