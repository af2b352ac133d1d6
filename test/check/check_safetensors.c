/*
 * check_safetensors.c - safetensors files, read and written.
 */
#include "files/safetensors.h"
#include "hf_files.h"
#include "program.h"

#include <check.h>

/* ---- Reading --------------------------------------------------------------------------------- */

/* Parses a copy of exactly n bytes, so that AddressSanitizer detects a read past their end. */
static SafeTensors *parse_copy(const void *bytes, size_t n, void **copy, Error *e) {
    *copy = xmalloc(n);
    memcpy(*copy, bytes, n);
    return st_parse(*copy, n, "x.safetensors", e);
}

/* Members in another order than the data, an odd header length, metadata, a scalar, an empty
 * tensor, and a type that we do not use. */
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
        Error e = {0};
        SafeTensors *st = parse_copy(file.s, file.n, &copy, &e);
        ck_assert_msg(st == NULL, "accepted: %s", hostile[i].header);
        ck_says(&e, "x.safetensors", NULL);
        for (int k = 0; k < 4 && hostile[i].says[k]; k++) ck_says(&e, hostile[i].says[k], NULL);
        free(copy);
        free(file.s);
    }
}
END_TEST

/* Valid variants of the headers above: the reader refuses the fault and not the form. */
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
        Error e = {0};
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

/* After any change of one byte, an accepted file can be read to its last element. A sanitizer would
 * report a bad read. */
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

/* A wrong length, one beyond the limit, very deep nesting, and text whose tree would take
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

/* ---- Writing --------------------------------------------------------------------------------- */

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
    ck_assert_int_eq(st_write(w, x, 1, &e), 0);  // in pieces that cross the tensors' borders
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

/* Declares one float and writes this many to path. True when nothing failed. */
static bool write_one(const char *path, bool keep, size_t floats, Error *e) {
    STWriter *w = st_new();
    st_declare(w, "t", 1, (size_t[]){1});
    int status = st_begin(w, path, e);
    if (!status) status = st_write(w, (const float[2]){5, 6}, floats, e);
    if (st_end(w, keep && !status, status ? NULL : e)) status = -1;
    return !status;
}

START_TEST(a_failed_write_costs_nothing) {
    Error e;
    put_text("x", "precious");
    ck_assert(write_one(in("x"), false, 1, &e));  // not kept
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

/* ---- Suite ----------------------------------------------------------------------------------- */

int main(void) {
    Suite *suite = suite_create("safetensors");
    TCase *tc = tcase_create("safetensors");
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
    suite_add_tcase(suite, tc);
    int failed = run_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
