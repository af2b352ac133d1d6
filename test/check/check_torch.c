/*
 * check_torch.c - pytorch_model.bin: real files by torch.save, files made here byte by byte, and
 * hostile ones.
 *
 * The contents of the real files are known from numpy and transformers (golden_torch.h). The
 * builders here share no code with common/files/.
 */
#include "files/torch.h"
#include "files/hf.h"
#include "../golden/golden_torch.h"
#include "program.h"

#include <sys/stat.h>
#include <unistd.h>

#undef fail
#include <check.h>

static const int files = sizeof golden_files / sizeof *golden_files;

/* Parses a copy of exactly n bytes, so that AddressSanitizer detects a read past their end. Free
 * *copy after the tensors. */
static int parse_copy(TorchTensors *t, const void *bytes, size_t n, void **copy, Error *e) {
    *copy = xmalloc(n);
    if (n) memcpy(*copy, bytes, n);
    e->text[0] = 0;
    return torch_parse(t, *copy, n, "x.bin", e);
}

/* Reads every byte of the accepted tensors. They must be inside the n bytes at from, and as large
 * as their shapes. */
static void ck_readable(const TorchTensors *t, const unsigned char *from, size_t n) {
    static const size_t sizes[] = {[ST_F32] = 4, [ST_F16] = 2, [ST_BF16] = 2, [ST_F64] = 8,
                                   [ST_I64] = 8, [ST_I32] = 4, [ST_U8] = 1,   [ST_BOOL] = 1};
    for (int i = 0; i < t->count; i++) {
        const STTensor *x = &t->tensor[i];
        size_t elements = 1, zeros = 0;
        ck_assert(x->ndim >= 0 && x->ndim <= 8);
        for (int k = 0; k < x->ndim; k++) elements *= x->shape[k];
        ck_assert(x->n == elements && x->bytes == elements * sizes[x->type]);
        ck_assert(x->data >= from && x->data <= from + n &&
                  x->bytes <= (size_t)(from + n - x->data));
        for (size_t k = 0; k < x->bytes; k++) zeros += !x->data[k];
        ck_assert(zeros <= x->bytes && strlen(x->name) > 0 && strlen(x->name) < 256);
    }
}

/* The file must be accepted, or refused with one line that names it. Returns whether it was
 * accepted. */
static bool survives(const void *bytes, size_t n) {
    TorchTensors t;
    Error e;
    void *copy;
    bool accepted = !parse_copy(&t, bytes, n, &copy, &e);
    if (accepted)
        ck_readable(&t, copy, n);
    else
        ck_assert(strstr(e.text, "x.bin") && !strchr(e.text, '\n') && !t.tensor && !t.names &&
                  !t.count);
    torch_free(&t);
    free(copy);
    return accepted;
}

/* The file must be refused, and the message must contain every one of the parts (NULL ends them).
 */
static void ck_refused(const void *bytes, size_t n, ...) {
    TorchTensors t;
    Error e;
    void *copy;
    va_list parts;
    ck_assert_int_eq(parse_copy(&t, bytes, n, &copy, &e), -1);
    va_start(parts, n);
    for (const char *part; (part = va_arg(parts, const char *));)
        ck_assert_msg(strstr(e.text, part) != NULL, "\"%s\" is not in: %s", part, e.text);
    va_end(parts);
    ck_assert(!strchr(e.text, '\n') && strstr(e.text, "x.bin"));
    free(copy);
}

/* ---- what torch.save wrote ------------------------------------------------------------------- */

static double element(const STTensor *t, int i) {
    float f;
    double d;
    int64_t l;
    int32_t w;
    Error e;
    switch (t->type) {
        case ST_F64: return memcpy(&d, t->data + 8 * i, 8), d;
        case ST_I64: return memcpy(&l, t->data + 8 * i, 8), (double)l;
        case ST_I32: return memcpy(&w, t->data + 4 * i, 4), (double)w;
        case ST_U8:
        case ST_BOOL: return t->data[i];
        default: ck_assert_msg(!st_floats(t, (size_t)i, 1, &f, &e), "%s", e.text); return (double)f;
    }
}

START_TEST(reads_what_torch_saved) {
    int g = 0;
    for (int file = 0; file < files; file++) {
        TorchTensors t;
        Error e;
        void *copy;
        ck_assert_msg(!parse_copy(&t, golden_files[file].bytes, golden_files[file].n, &copy, &e),
                      "%s: %s", golden_files[file].name, e.text);
        ck_readable(&t, copy, golden_files[file].n);
        if (file != GOLDEN_GPT2) ck_assert_int_eq(t.count, golden_files[file].tensors);
        for (int i = 0; i < golden_files[file].tensors;
             i++, g++) {  // in the order of the state dict
            const STTensor *x = &t.tensor[i];
            ck_assert_int_eq(golden_tensors[g].file, file);
            ck_assert_str_eq(x->name, golden_tensors[g].name);
            ck_assert_str_eq(x->type_name, golden_tensors[g].type);
            ck_assert_str_eq(x->file, "x.bin");
            ck_assert_int_eq(x->ndim, golden_tensors[g].ndim);
            for (int k = 0; k < x->ndim; k++)
                ck_assert_uint_eq(x->shape[k], (size_t)golden_tensors[g].shape[k]);
            ck_assert_uint_eq(x->n, (size_t)golden_tensors[g].n);
            for (int k = 0; k < golden_tensors[g].n; k++)
                ck_assert(element(x, k) == golden_tensors[g].value[k]);
        }
        torch_free(&t);
        free(copy);
    }
    ck_assert_uint_eq((size_t)g, sizeof golden_tensors / sizeof *golden_tensors);
}
END_TEST

START_TEST(refuses_every_truncation) {
    for (int file = 0; file < files; file++)
        for (size_t n = 0; n < golden_files[file].n; n++)
            ck_assert(!survives(golden_files[file].bytes, n));
}
END_TEST

START_TEST(survives_every_changed_byte) {
    int accepted = 0, refused = 0;
    for (int file = 0; file < files; file++) {
        size_t n = golden_files[file].n;
        char *bytes = xmalloc(n);
        memcpy(bytes, golden_files[file].bytes, n);
        for (size_t i = 0; i < n; i++) {
            static const unsigned char to[] = {0x00, 0x01, 0x7f, 0x80, 0xff, '.', '(', 'h'};
            for (size_t k = 0; k < sizeof to + 8; k++) {
                bytes[i] = k < sizeof to
                               ? (char)to[k]
                               : (char)(golden_files[file].bytes[i] ^ 1 << (k - sizeof to));
                if (survives(bytes, n))
                    accepted++;
                else
                    refused++;
            }
            bytes[i] = golden_files[file].bytes[i];
        }
        free(bytes);
    }
    ck_assert(accepted > 1000 &&
              refused > 1000);  // numbers and padding may change; structure may not
}
END_TEST

/* ---- building files -------------------------------------------------------------------------- */

static void add_byte(Str *s, int byte) { str_add(s, &(char){(char)byte}, 1); }

static void add_number(Str *s, uint64_t x, int bytes) {
    for (int i = 0; i < bytes; i++) add_byte(s, i < 8 ? (int)(x >> 8 * i & 0xff) : 0);
}

static void add_text(Str *s, const char *text) { str_add(s, text, strlen(text)); }

/* BINUNICODE */
static void add_string(Str *p, const char *text) {
    add_byte(p, 'X');
    add_number(p, strlen(text), 4);
    add_text(p, text);
}

/* LONG1 of 8 bytes */
static void add_int(Str *p, int64_t x) {
    add_byte(p, 0x8a);
    add_byte(p, 8);
    add_number(p, (uint64_t)x, 8);
}

static void add_ints(Str *p, const int64_t *x, int n) {
    add_byte(p, '(');
    for (int i = 0; i < n; i++) add_int(p, x[i]);
    add_byte(p, 't');
}

/* A tensor as a pickle rebuilds it. {.name = "t"} is 6 floats in one dimension; view: also the
 * storage of other versions. */
typedef struct {
    const char *name, *type, *key;
    int64_t elements, offset;
    int ndim, strides;  // 0: 1 and as many as ndim
    int64_t shape[9], stride[9];
    const char *view;  // opcodes of a sixth member of the storage
} Spec;

static Spec with_defaults(Spec t) {
    if (!t.type) t.type = "FloatStorage";
    if (!t.key) t.key = "0";
    if (!t.elements) t.elements = 6;
    if (!t.ndim) {
        t.ndim = 1;
        t.shape[0] = 6;
        t.stride[0] = 1;
    }
    if (!t.strides) t.strides = t.ndim;
    return t;
}

static void add_storage(Str *p, const Spec *t) {
    add_byte(p, '(');
    add_string(p, "storage");
    add_text(p, "ctorch\n");
    add_text(p, t->type);
    add_byte(p, '\n');
    add_string(p, t->key);
    add_string(p, "cuda:0");
    add_int(p, t->elements);
    if (t->view) add_text(p, t->view);
    add_text(p, "tQ");
}

static void add_tensor(Str *p, Spec t) {
    t = with_defaults(t);
    add_text(p, "ctorch._utils\n_rebuild_tensor_v2\n(");
    add_storage(p, &t);
    add_int(p, t.offset);
    add_ints(p, t.shape, t.ndim);
    add_ints(p, t.stride, t.strides);
    add_text(p,
             "\x89"
             "ccollections\nOrderedDict\n)RtR");
}

/* PROTO 2, then the opcodes, then STOP. */
static Str pickle(const char *opcodes) {
    Str p = {0};
    add_text(&p, "\x80\x02");
    add_text(&p, opcodes);
    add_byte(&p, '.');
    return p;
}

/* A plain dict of these tensors. */
static Str state_dict(const Spec *t, int n) {
    Str p = {0};
    add_text(&p, "\x80\x02}(");
    for (int i = 0; i < n; i++) {
        add_string(&p, t[i].name);
        add_tensor(&p, t[i]);
    }
    add_text(&p, "u.");
    return p;
}

typedef struct {
    const char *name;
    const void *bytes;
    size_t n;
    int method, flags;
} File;

/* A ZIP file as simple as can be: no padding, no 64-bit records. */
static Str zip(const File *f, int n) {
    Str z = {0}, directory = {0};
    for (int i = 0; i < n; i++) {
        size_t at = z.n;
        for (int central = 0; central < 2; central++) {
            Str *s = central ? &directory : &z;
            add_text(s, central ? "PK\1\2" : "PK\3\4");
            if (central) add_number(s, 0, 2);
            add_number(s, 0, 2);
            add_number(s, (uint64_t)f[i].flags, 2);
            add_number(s, (uint64_t)f[i].method, 2);
            add_number(s, 0, 8);  // time, CRC
            add_number(s, f[i].n, 4);
            add_number(s, f[i].n, 4);
            add_number(s, strlen(f[i].name), 2);
            add_number(s, 0, 2);
            if (central) add_number(s, 0, 10);
            if (central) add_number(s, at, 4);
            add_text(s, f[i].name);
            if (!central) str_add(s, f[i].bytes, f[i].n);
        }
    }
    size_t at = z.n;
    str_add(&z, directory.s, directory.n);
    add_text(&z, "PK\5\6");
    add_number(&z, 0, 4);
    add_number(&z, (uint64_t)n, 2);
    add_number(&z, (uint64_t)n, 2);
    add_number(&z, directory.n, 4);
    add_number(&z, at, 4);
    add_number(&z, 0, 2);
    free(directory.s);
    return z;
}

enum { SIX = 6 * sizeof(float) };

static const float numbers[7] = {1,  -2, 3.5f,
                                 -4, 5,  6};  // one more, to detect a reader that takes too many

/* The pickle and the storage 0 of six floats, in a ZIP file. Frees the pickle. */
static Str zip_of(Str p) {
    Str z =
        zip((const File[]){{"r/data.pkl", p.s, p.n, 0, 0}, {"r/data/0", numbers, SIX, 0, 0}}, 2);
    free(p.s);
    return z;
}

/* The same in the older container. The list of keys and the bytes after it may be replaced. */
static Str legacy_of(Str p, const char *before, const char *list, uint64_t elements) {
    Str s = {0};
    add_text(&s, before ? before
                        : "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19."
                          "\x80\x02M\xe9\x03."
                          "\x80\x02}X\x0d");
    if (!before) {
        add_number(&s, 0, 3);
        add_text(&s, "little_endian\x88s.");
    }
    str_add(&s, p.s, p.n);
    add_text(&s, "\x80\x02](");
    if (list)
        add_text(&s, list);
    else
        add_string(&s, "0");
    add_text(&s, "e.");
    add_number(&s, elements, 8);
    str_add(&s, (const char *)numbers, SIX);
    free(p.s);
    return s;
}

/* These two free the file. */
#define refused_file(made, ...)                          \
    do {                                                 \
        Str file_ = (made);                              \
        ck_refused(file_.s, file_.n, __VA_ARGS__, NULL); \
        free(file_.s);                                   \
    } while (0)

static void accepted_file(Str made) {
    ck_assert(survives(made.s, made.n));
    free(made.s);
}

/* ---- files made by hand ---------------------------------------------------------------------- */

START_TEST(reads_files_made_by_hand) {
    for (int legacy = 0; legacy < 2; legacy++) {
        Str p = state_dict(
            (const Spec[]){{.name = "a", .ndim = 2, .shape = {2, 3}, .stride = {3, 1}},
                           {.name = "b", .offset = 4, .ndim = 1, .shape = {2}, .stride = {1}}},
            2);
        Str s = legacy ? legacy_of(p, NULL, NULL, 6) : zip_of(p);
        TorchTensors t;
        Error e;
        void *copy;
        ck_assert_msg(!parse_copy(&t, s.s, s.n, &copy, &e), "%s", e.text);
        ck_readable(&t, copy, s.n);
        ck_assert_int_eq(t.count, 2);
        ck_assert_str_eq(t.tensor[0].name, "a");
        ck_assert(t.tensor[0].ndim == 2 && t.tensor[0].shape[0] == 2 && t.tensor[0].shape[1] == 3 &&
                  t.tensor[0].type == ST_F32);
        ck_assert(!memcmp(t.tensor[0].data, numbers, SIX));
        ck_assert_str_eq(t.tensor[1].name, "b");
        ck_assert(t.tensor[1].n == 2 && element(&t.tensor[1], 0) == 5 &&
                  element(&t.tensor[1], 1) == 6);
        torch_free(&t);
        free(copy);
        for (size_t n = 0; n < s.n; n++) ck_assert(!survives(s.s, n));
        free(s.s);
    }
}
END_TEST

START_TEST(accepts_what_the_format_allows) {
    const int64_t odd = 12345;
    // a dimension of size 1 and a tensor without elements may have any strides
    accepted_file(zip_of(state_dict(
        &(Spec){.name = "t", .ndim = 3, .shape = {1, 6, 1}, .stride = {odd, 1, odd}}, 1)));
    accepted_file(zip_of(state_dict(
        &(Spec){.name = "t", .ndim = 2, .shape = {0, 4}, .stride = {odd, odd}, .offset = 6}, 1)));
    accepted_file(zip_of(
        state_dict(&(Spec){.name = "t", .ndim = 2, .shape = {INT64_MAX, 0}, .stride = {0, 0}}, 1)));
    accepted_file(zip_of(state_dict(&(Spec){.name = "t", .view = "N"}, 1)));
    accepted_file(
        zip_of(state_dict(&(Spec){.name = "t", .type = "HalfStorage", .elements = 12}, 1)));
    accepted_file(zip_of(state_dict(NULL, 0)));
    // among the metadata: integers of every length, negative ones, a float, tuples, lists, and a
    // list that contains itself
    accepted_file(
        zip_of(pickle("}\x94}\x8c\1k]\x94K\1aM\1\1aJ\1\1\1\1a\x8a\2\1\xff"
                      "aG12345678aN\x85"
                      "aNN\x86"
                      "aNNN\x87"
                      "a)a(NNta(NNe"
                      "h\1a"
                      "sb")));
    // a comment at the end of the ZIP file, which itself contains an end record
    Str s = zip_of(state_dict(&(Spec){.name = "t"}, 1));
    s.s[s.n - 2] = 31;
    add_text(&s, "PK\5\6 comments may have anything");
    accepted_file(s);
}
END_TEST

/* ---- hostile pickles ------------------------------------------------------------------------- */

START_TEST(refuses_whatever_would_run_code) {
    static const struct {
        const char *opcodes, *names;
    } attacks[] = {
        {"cos\nsystem\n(\x8c\x09touch pwnt"
         "R",
         "os.system"},
        {"cposix\nsystem\n\x8c\x09touch pwn\x85R", "posix.system"},
        {"\x8c\x08"
         "builtins\x8c\x04"
         "eval\x93",
         "builtins.eval"},
        {"c__builtin__\nexec\n", "__builtin__.exec"},
        {"ctorch\nload\n", "torch.load"},
        {"ctorch._utils\n_rebuild_tensor_v3\n", "torch._utils._rebuild_tensor_v3"},
        {"ctorch.nn.modules.linear\nLinear\n", "torch.nn.modules.linear.Linear"},
        {"ccollections\nOrderedDict.update\n", "collections.OrderedDict.update"},
        {"ccollections.OrderedDict\n\n", "collections.OrderedDict"},
        {"cevil\nOrderedDict\n", "evil.OrderedDict"},
        {"ctorch\n_rebuild_parameter\n", "torch._rebuild_parameter"},
        {"ctorch\nFloatStorag\n", "torch.FloatStorag"},
        {"cos\x1b[2J\nsystem\n", "os?[2J.system"},
        {"ios\nsystem\n", "INST"},
        {"(cos\nsystem\n", "os.system"},
        {"\x8c\1a\x8c\1b\x81", "NEWOBJ"},
    };
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
        refused_file(zip_of(pickle(attacks[i].opcodes)), attacks[i].names, "refused",
                     "nothing was executed");
        refused_file(legacy_of(pickle(attacks[i].opcodes), NULL, NULL, 6), attacks[i].names,
                     "refused");
    }
    // an allowed function with other arguments
    static const struct {
        const char *opcodes, *says;
    } calls[] = {
        {"ctorch\nFloatStorage\nN\x85R", "torch.FloatStorage with 1 arguments"},
        {"ccollections\nOrderedDict\n]\x85R", "collections.OrderedDict with 1 arguments"},
        {"ctorch._utils\n_rebuild_tensor_v2\nNNN\x87R",
         "torch._utils._rebuild_tensor_v2 with 3 arguments"},
        {"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNN}tR",
         "torch._utils._rebuild_tensor_v2 with 7 arguments"},
        {"ctorch._utils\n_rebuild_parameter\nNNN\x87R",
         "torch._utils._rebuild_parameter with 3 arguments"},
        {"ccollections\nOrderedDict\n]R", "a list"},
        {"})R", "REDUCE calls a dict"},
        {"\x8c\x09os.system)R", "REDUCE calls a string"},
        {"ccollections\nOrderedDict\n}b", "BUILD gives a function"},
        {"}Nb", "the state None"},
        {"]}b", "BUILD gives a list"},
        {"NQ", "BINPERSID of None"},
        {"\x8c\7storage\x85Q", "BINPERSID of a tuple"},
        {"(\x8c\7storage"
         "ccollections\nOrderedDict\n\x8c\1"
         "0\x8c\3"
         "cpuK\6tQ",
         "BINPERSID of a tuple"},
        {"(\x8c\6module"
         "ctorch\nFloatStorage\n\x8c\1"
         "0\x8c\3"
         "cpuK\6tQ",
         "BINPERSID of a tuple"},
        {"(\x8c\7storage"
         "ctorch\nFloatStorage\n\x8c\1"
         "0\x8c\3"
         "cpuJ\xff\xff\xff\xfftQ",
         "BINPERSID of a tuple"},
        {"(\x8c\7storage"
         "ctorch\nFloatStorage\n\x8c\1"
         "0\x8c\3"
         "cpu\x8a\1\xfftQ",
         "BINPERSID of a tuple"},
        {"NN\x93", "STACK_GLOBAL of None and None"},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        refused_file(zip_of(pickle(calls[i].opcodes)), calls[i].says, "byte ");
}
END_TEST

START_TEST(refuses_every_other_opcode_by_name) {
    bool allowed[256] = {false};
    for (size_t i = 0; i < sizeof golden_allowed; i++) allowed[golden_allowed[i]] = true;
    for (int opcode = 0; opcode < 256; opcode++) {
        Str p = {0};
        char code[8];
        snprintf(code, sizeof code, "0x%02x", opcode);
        add_text(&p, "\x80\x02}");
        add_byte(&p, opcode);
        add_text(&p, "12345678.");
        Str s = zip_of(p);
        if (allowed[opcode])
            survives(s.s, s.n);
        else
            ck_refused(s.s, s.n, "opcode", code,
                       golden_refused[opcode] ? golden_refused[opcode] : "that no pickle has",
                       NULL);
        free(s.s);
    }
}
END_TEST

START_TEST(refuses_damaged_pickles) {
    static const struct {
        const char *opcodes, *says;
    } damaged[] = {
        {"R", "empty stack"},
        {"NR", "empty stack"},
        {"s", "no list or dict on the stack"},
        {"}Ns", "no list or dict on the stack"},
        {"Na", "no list or dict on the stack"},
        {"\x85", "empty stack"},
        {"N\x87", "a tuple of 3 from a stack of 1"},
        {"t", "a mark, and there is none"},
        {"u", "a mark"},
        {"e", "a mark"},
        {"(u", "no list or dict on the stack"},
        {"](NNu", "put into a list, expected a dict"},
        {"}(NNe", "put into a dict, expected a list"},
        {"}(NNNu", "3 keys and values"},
        {"NNNs", "put into None"},
        {"h\1", "memo entry 1 is used, but there are 0"},
        {"j\1\1\1\1", "is used, but there are"},
        {"q\1", "empty stack"},
        {"Nq\1", "memo entry 1 follows 0 entries"},
        {"Nr\xff\xff\xff\xff", "memo entry 4294967295 follows 0 entries"},
        {"\x94", "empty stack"},
        {"", "0 values on the stack"},
        {"NN", "2 values on the stack"},
        {"(", "0 values on the stack"},
        {"(}", "1 values on the stack"},
        {"}(N", "2 values on the stack"},
        {"N(\x93", "empty stack"},
        {"N(R", "empty stack"},
        {"N(\x94", "empty stack"},
        {"}(b", "empty stack"},
        {"N(Q", "empty stack"},
        {"](Na", "no list or dict on the stack"},
        {"\x80\6", "protocol 6"},
        {"c", "continues past the end"},
        {"cos\n", "continues past the end"},
        {"X\xff\xff\xff\xff"
         "abc",
         "continues past the end"},
        {"\x8c\xffxyz", "continues past the end"},
        {"\x8a\xffxyz", "continues past the end"},
        {"J\1\1", "continues past the end"},
        {"N", "holds None"},
        {"]", "holds a list"},
        {"K\1", "holds an int"},
        {"\x8a\x09"
         "123456789",
         "holds an int beyond 64 bits"},
        {"ccollections\nOrderedDict\n", "holds a function"},
        {"\x8c\1k", "holds a string"},
        {"\x88", "holds a bool"},
        {"N\x85", "holds a tuple"},
        {"}K\1Ns", "a key of the state dict is an int"},
        {"}\x8c\5epochK\3s", "epoch is an int, expected a tensor"},
        {"}\x8c\5model}s", "model is a dict, expected a tensor"},
        {"}\x8c\1wG12345678s", "w is a float"},
    };
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        Str p = {0};  // without a STOP, which would be read as an operand of some of these
        add_text(&p, "\x80\x02");
        add_text(&p, damaged[i].opcodes);
        if (!strstr(damaged[i].says, "past the end")) add_byte(&p, '.');
        refused_file(zip_of(p), damaged[i].says);
    }
}
END_TEST

/* A pickle of first, then opcodes n times. */
static Str repeated(const char *first, const char *opcodes, int n, const char *last) {
    Str p = {0};
    add_text(&p, "\x80\x02");
    add_text(&p, first);
    for (int i = 0; i < n; i++) add_text(&p, opcodes);
    add_text(&p, last);
    return p;
}

START_TEST(survives_depth_and_size) {
    refused_file(zip_of(repeated("}", "\x85", 1000000, ".")),
                 "holds a tuple");  // a million tuples, each in the next
    refused_file(zip_of(repeated("}", "\x85", 1100000, ".")), "more than 1048576 values");
    refused_file(zip_of(repeated("", "(", 1000000, "}.")), "1 values on the stack");
    refused_file(zip_of(repeated("", "(", 1100000, "}.")), "more than 1048576 marks");
    refused_file(zip_of(repeated("N\x94}\x94", "h\1", 1100000, ".")),
                 "more than 1048576 values on the stack");
    refused_file(zip_of(repeated("N\x94]\x94", "(h\1h\1h\1e", 100000, ".")),
                 "2 values on the stack");  // a list that contains itself many times
    refused_file(zip_of(repeated("N\x94]\x94", "(h\1h\1h\1e", 400000, ".")),
                 "more than 1048576 items");
}
END_TEST

/* ---- hostile tensors ------------------------------------------------------------------------- */

START_TEST(refuses_tensors_that_are_not_there) {
    static const int64_t huge = (int64_t)1 << 32;
    static char long_name[300];
    memset(long_name, 'x', sizeof long_name - 1);
    const struct {
        Spec t;
        const char *says[3];
    } bad[] = {
        // the transpose of (2, 3); one row for all; every other element
        {{.name = "t", .ndim = 2, .shape = {3, 2}, .stride = {1, 3}},
         {"tensor t", "dimension 1 has stride 3, expected 1", ".contiguous()"}},
        {{.name = "t", .ndim = 2, .shape = {2, 3}, .stride = {0, 1}},
         {"tensor t", "dimension 0 has stride 0, expected 3"}},
        {{.name = "t", .ndim = 1, .shape = {3}, .stride = {2}},
         {"dimension 0 has stride 2, expected 1"}},
        {{.name = "t", .ndim = 1, .shape = {7}, .stride = {1}},
         {"tensor t has 7 elements at offset 0", "storage has 6", "fetch it again"}},
        {{.name = "t", .offset = 1, .ndim = 1, .shape = {6}, .stride = {1}},
         {"6 elements at offset 1"}},
        {{.name = "t", .offset = 7, .ndim = 1, .shape = {0}, .stride = {1}},
         {"0 elements at offset 7"}},
        {{.name = "t", .offset = INT64_MAX, .ndim = 1, .shape = {1}, .stride = {1}},
         {"at offset 9223372036854775807"}},
        {{.name = "t", .offset = -1, .ndim = 1, .shape = {1}, .stride = {1}},
         {"an offset of at least 0"}},
        {{.name = "t", .ndim = 1, .shape = {-1}, .stride = {1}}, {"1 whole numbers of 0 or more"}},
        {{.name = "t", .ndim = 1, .shape = {1}, .stride = {-1}}, {"1 whole numbers of 0 or more"}},
        {{.name = "t", .ndim = 2, .strides = 1, .shape = {2, 3}, .stride = {1}},
         {"2 whole numbers"}},
        {{.name = "t", .ndim = 2, .shape = {huge, huge}, .stride = {huge, 1}},
         {"tensor t", "more than 64 bits"}},
        {{.name = "t", .ndim = 2, .shape = {huge, huge / 4}, .stride = {huge / 4, 1}},
         {"4611686018427387904 elements", "storage has 6"}},
        {{.name = "t", .ndim = 9, .shape = {1, 1, 1, 1, 1, 1, 1, 1, 1}},
         {"9 dimensions, expected at most 8"}},
        {{.name = "t", .elements = 7}, {"data/0 has 24 bytes, expected 7 of F32"}},
        {{.name = "t", .elements = 5, .ndim = 1, .shape = {5}, .stride = {1}},
         {"data/0 has 24 bytes, expected 5 of F32"}},
        {{.name = "t", .elements = INT64_MAX, .ndim = 1, .shape = {INT64_MAX}, .stride = {1}},
         {"data/0 has 24 bytes", "9223372036854775807"}},
        {{.name = "t", .elements = -6}, {"BINPERSID"}},
        {{.name = "t", .type = "LongStorage", .elements = 6},
         {"data/0 has 24 bytes, expected 6 of I64"}},
        {{.name = "t", .type = "QInt8Storage"}, {"torch.QInt8Storage", "refused"}},
        {{.name = "t", .key = "1"}, {"data/1 is missing", "6 of F32"}},
        {{.name = "t", .key = "../data.pkl"}, {"data/../data.pkl is missing"}},
        {{.name = "t", .key = long_name}, {"key has 299 bytes"}},
        {{.name = "t", .view = "NNN\x87"}, {"a view of another"}},
        {{.name = "t", .view = "NN"}, {"BINPERSID"}},
        {{.name = ""}, {"name has 0 bytes"}},
        {{.name = long_name}, {"name has 299 bytes"}},
        {{.name = "a\nb"}, {"tensor a?b: its name has the control character 0x0a"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused_file(zip_of(state_dict(&bad[i].t, 1)), bad[i].says[0], bad[i].says[1],
                     bad[i].says[2]);
    refused_file(zip_of(state_dict((const Spec[]){{.name = "t"}, {.name = "u"}, {.name = "t"}}, 3)),
                 "tensor t occurs twice");
    refused_file(
        zip_of(state_dict((const Spec[]){{.name = "t"}, {.name = "u", .type = "IntStorage"}}, 2)),
        "storage 0", "6 of F32", "6 of I32");
    refused_file(zip_of(state_dict((const Spec[]){{.name = "t"}, {.name = "u", .elements = 5}}, 2)),
                 "storage 0", "6 of F32", "5 of F32");
}
END_TEST

/* ---- hostile containers ---------------------------------------------------------------------- */

START_TEST(refuses_damaged_zip_files) {
    Str p = state_dict(&(Spec){.name = "t"}, 1);
    const File data = {"r/data.pkl", p.s, p.n, 0, 0}, zero = {"r/data/0", numbers, SIX, 0, 0};
    File odd = zero, deflated = zero, encrypted = zero, packed = data,
         order = {"r/byteorder", "big", 3, 0, 0}, other = data, inner = data;
    deflated.method = packed.method = 8;
    encrypted.flags = 1;
    odd.n++;
    other.name = "s/data.pkl";
    inner.name = "r/s/data.pkl";
    const struct {
        File f[3];
        int n;
        const char *says;
    } bad[] = {
        {{data, deflated}, 2, "r/data/0 is compressed"},
        {{packed, zero}, 2, "r/data.pkl is compressed"},
        {{data, odd}, 2, "data/0 has 25 bytes, expected 6 of F32"},
        {{data, encrypted}, 2, "r/data/0 is encrypted"},
        {{data}, 1, "data/0 is missing"},
        {{zero}, 1, "0 entries ROOT/data.pkl"},
        {{inner, zero}, 2, "0 entries ROOT/data.pkl"},
        {{data, zero, other}, 3, "2 entries ROOT/data.pkl"},
        {{data, zero, zero}, 3, "r/data/0 occurs twice"},
        {{data, zero, order}, 3, "big-endian"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused_file(zip(bad[i].f, bad[i].n), bad[i].says);
    order.bytes = "little";
    order.n = 6;
    accepted_file(zip((const File[]){zero, order, data}, 3));

    // numbers in the directory and in the end record: offset, value, size in bytes, message
    Str good = zip((const File[]){data, zero}, 2);
    const size_t end = good.n - 22, at = (size_t)good.s[end + 16] & 0xff,
                 directory = at + ((size_t)good.s[end + 17] & 0xff) * 256;
    const struct {
        size_t at;
        uint64_t value;
        int bytes;
        const char *says;
    } changed[] = {
        {end + 10, 3, 2, "3 entries"},
        {end + 10, 65535, 2, "65535 entries"},
        {end + 12, UINT32_MAX, 4, "4294967295 bytes"},
        {end + 16, UINT32_MAX, 4, "from byte 4294967295"},
        {end + 16, directory + 1, 4, "directory"},
        {end + 16, 1, 4, "expected an entry of the ZIP's"},
        {end, 0, 1, "without the directory"},
        {end + 20, 1, 2, "without the directory"},
        {directory + 20, 1 << 20, 4, "takes 1048576 bytes"},
        {directory + 20, UINT32_MAX, 4, "64-bit sizes are missing"},
        {directory + 42, 1, 4, "should begin at byte 1"},
        {directory + 42, UINT32_MAX - 1, 4, "should begin at byte 4294967294"},
        {directory + 28, 65535, 2, "longer than the ZIP's directory"},
        {directory + 30, 65535, 2, "longer than"},
        {directory + 32, 65535, 2, "longer than"},
        {26, 9, 2, "should begin at byte 0"},
        {28, 65535, 2, "directory follows"},
        {directory, 'Q', 1, "expected an entry of the ZIP's"},
    };
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
        Str s = {0};
        str_add(&s, good.s, good.n);
        for (int k = 0; k < changed[i].bytes; k++)
            s.s[changed[i].at + (size_t)k] = (char)(changed[i].value >> 8 * k);
        refused_file(s, changed[i].says);
    }
    free(good.s);
    free(p.s);

    // the 64-bit record of a real file: its offset, the directory's offset and size, the
    // number of entries
    const size_t n = golden_files[0].n, locator = n - 42, record = n - 98;
    for (size_t i = 0; i < 4; i++) {
        Str s = {0};
        const size_t where[] = {locator + 8, record + 48, record + 40, record + 32};
        str_add(&s, golden_files[0].bytes, n);
        ck_assert(!memcmp(s.s + locator, "PK\6\7", 4) && !memcmp(s.s + record, "PK\6\6", 4));
        s.s[where[i] + 7] = 0x7f;
        refused_file(s, i ? "directory" : "64-bit record");
    }
}
END_TEST

/* Sizes that are all ones in 32 bits have their value in 64 bits, as torch.save writes them beyond
 * 4 GB. This file is small. */
START_TEST(reads_64_bit_sizes) {
    Str p = state_dict(&(Spec){.name = "t"}, 1),
        z = zip((const File[]){{"r/data.pkl", p.s, p.n, 0, 0}, {"r/data/0", numbers, SIX, 0, 0}},
                2);
    Str s = {0}, extra = {0};
    size_t end = z.n - 22,
           directory = ((size_t)z.s[end + 16] & 0xff) + ((size_t)z.s[end + 17] & 0xff) * 256,
           second = directory + 46 + 10;
    size_t local = ((size_t)z.s[second + 42] & 0xff) + ((size_t)z.s[second + 43] & 0xff) * 256;
    add_text(&extra, "FB\3");  // an extra field of another kind first
    add_number(&extra, 0, 1);
    add_text(&extra, "ZZZ\1");
    add_number(&extra, 0, 1);
    add_number(&extra, 24, 2);
    add_number(&extra, SIX, 8);
    add_number(&extra, SIX, 8);
    add_number(&extra, local, 8);
    str_add(&s, z.s, end);
    str_add(&s, extra.s, extra.n);
    str_add(&s, z.s + end, 22);
    memset(s.s + second + 20, 0xff, 8);
    memset(s.s + second + 42, 0xff, 4);
    s.s[second + 30] = (char)extra.n;
    size_t bytes = end - directory + extra.n;
    for (int i = 0; i < 2; i++) s.s[s.n - 10 + (size_t)i] = (char)(bytes >> 8 * i);
    for (int wrong = 0; wrong < 4;
         wrong++) {  // unchanged; then each of the three numbers too large
        Str copy = {0};
        str_add(&copy, s.s, s.n);
        if (wrong) copy.s[end + 11 + 8 * (size_t)wrong - 8 + 7] = 0x7f;
        if (wrong == 1)
            accepted_file(copy);  // the unpacked size: nothing is unpacked
        else if (wrong)
            refused_file(copy, "r/data/0", "fetch it again");
        else
            accepted_file(copy);
    }
    s.s[end + 9] = 16;  // the field is too short for three numbers
    refused_file(s, "64-bit sizes are missing");
    free(extra.s);
    free(z.s);
    free(p.s);
}
END_TEST

START_TEST(refuses_damaged_legacy_files) {
    static const char magic[] = "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.",
                      protocol[] = "\x80\x02M\xe9\x03.";
    const struct {
        const char *before, *list;
        uint64_t elements;
        const char *says;
    } bad[] = {
        {NULL, NULL, 5, "storage 0 has 5 elements, expected 6"},
        {NULL, NULL, UINT64_MAX, "storage 0 has 18446744073709551615 elements"},
        {NULL, "", 6, "storage 0 is missing"},
        {NULL,
         "\x8c\1"
         "1",
         6, "storage 1 is not used by any tensor"},
        {NULL, "K\1", 6, "the key of a storage is an int"},
        {NULL,
         "\x8c\1"
         "0\x8c\1"
         "0",
         6, "storage 0 occurs twice"},
        {"\x80\x02K\1.", NULL, 6, "without the magic number"},
        {"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x18.", NULL, 6, "without the magic number"},
        {"\x80\x02}.", NULL, 6, "without the magic number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused_file(legacy_of(state_dict(&(Spec){.name = "t"}, 1), bad[i].before, bad[i].list,
                               bad[i].elements),
                     bad[i].says);
    const struct {
        const char *pickles, *says;
    } heads[] = {{"\x80\x02K\7.", "protocol 7, expected 1001"},
                 {"\x80\x02N.", "protocol -1, expected 1001"},
                 {protocol, "third pickle"},
                 {"\x80\x02M\xe9\x03.\x80\x02N.", "None in the third pickle"}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        Str before = {0};
        add_text(&before, magic);
        add_text(&before, heads[i].pickles);
        if (i == 2) add_text(&before, "\x80\x02].");
        refused_file(legacy_of(state_dict(&(Spec){.name = "t"}, 1), before.s, NULL, 6),
                     heads[i].says);
        free(before.s);
    }
    for (int kind = 0; kind < 3; kind++) {
        Str before = {0};
        add_text(&before, magic);
        add_text(&before, protocol);
        add_text(&before, "\x80\x02}\x8c\x0dlittle_endian");
        add_text(&before, kind == 0 ? "\x89s." : kind == 1 ? "Ns." : "\x88s.");
        Str p = state_dict(&(Spec){.name = "t"}, 1);
        if (kind < 2)
            refused_file(legacy_of(p, before.s, NULL, 6), "big-endian");
        else
            accepted_file(legacy_of(p, before.s, NULL, 6));
        free(before.s);
    }
    refused_file(legacy_of(state_dict(&(Spec){.name = "t", .elements = 7}, 1), NULL, NULL, 7),
                 "storage 0 takes 7 of F32, but only 24 bytes follow");
    refused_file(legacy_of(state_dict(&(Spec){.name = "t", .elements = INT64_MAX}, 1), NULL, NULL,
                           INT64_MAX),
                 "only 24 bytes follow");
}
END_TEST

START_TEST(refuses_other_files) {
    static const char *const others[] = {
        "",   "P",      "PK\3", "version https://git-lfs.github.com/spec/v1", "<!DOCTYPE html>",
        "{}", "(dp0\n."};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        ck_refused(others[i], strlen(others[i]), "neither container", "Git LFS", NULL);
    ck_refused("PK\3\4", 4, "without the directory", "cut short", NULL);
    ck_refused("\x80", 1, "continues past the end", "cut short", NULL);
}
END_TEST

/* ---- directories ----------------------------------------------------------------------------- */

static char here[] = "/tmp/check_torch.XXXXXX";

static const char *in(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", here, name);
    return path;
}

static void put(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in(name), "wb");
    ck_assert(f && fwrite(bytes, 1, n, f) == n && !fclose(f));
}

static void setup(void) {
    snprintf(here, sizeof here, "/tmp/check_torch.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(here));
    put("config.json", golden_config, sizeof golden_config - 1);
    put("pytorch_model.bin", golden_files[GOLDEN_GPT2].bytes, golden_files[GOLDEN_GPT2].n);
}

static void teardown(void) {
    static const char *const names[] = {"config.json",       "pytorch_model.bin",
                                        "model.safetensors", "pytorch_model.bin.index.json",
                                        "part-1.bin",        "part-2.bin"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in(names[i]));
    rmdir(here);
}

/* Loads the directory and compares its predictions with those of transformers. */
static GPT2 *ck_predicts(bool frozen) {
    Error e = {0};
    GPT2 *m = hf_load(here, frozen, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    const int n = sizeof golden_ids / sizeof *golden_ids, start[2] = {0, n};
    int target[8];
    float logp[8];
    GPT2Limits limits = {.tokens = n, .sequences = 1, .scored = n};
    gpt2_reserve(m, &limits);
    for (int i = 0; i < n; i++) target[i] = i + 1 < n ? golden_ids[i + 1] : -1;
    gpt2_forward(m, &(Batch){.S = 1, .N = n, .tokens = golden_ids, .start = start}, NULL);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
    for (int i = 0; i + 1 < n; i++)
        ck_assert_double_eq_tol((double)logp[i], golden_logp[i], 2e-6);  // float32 against double
    return m;
}

/* Half precision, masks, a stored copy of the head, trained and frozen. A saved model.safetensors
 * then takes precedence. */
START_TEST(loads_a_real_model) {
    Error e;
    gpt2_free(ck_predicts(true));
    GPT2 *m = ck_predicts(false);
    ck_assert_msg(!hf_save(m, here, here, &e), "%s", e.text);
    gpt2_free(m);
    put("pytorch_model.bin", "", 0);
    gpt2_free(ck_predicts(false));
}
END_TEST

START_TEST(refuses_another_head) {
    Str s = {0};
    Error e;
    const char *bytes = golden_files[GOLDEN_GPT2].bytes;
    const size_t n = golden_files[GOLDEN_GPT2].n, table = 7 * 4 * 2;  // bytes of wte: V C halves
    TorchTensors t;
    ck_assert(!torch_parse(&t, bytes, n, "x.bin", &e));
    size_t head = 0;
    for (int i = 0; i < t.count; i++)
        if (!strcmp(t.tensor[i].name, "lm_head.weight"))
            head = (size_t)(t.tensor[i].data - (const unsigned char *)bytes);
    torch_free(&t);
    str_add(&s, bytes, n);
    s.s[head + table - 1] ^= 0x80;  // the sign of the last element
    put("pytorch_model.bin", s.s, s.n);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_assert_msg(strstr(e.text, "untied head: element 27") && strstr(e.text, "pytorch_model.bin"),
                  "%s", e.text);
    free(s.s);
}
END_TEST

START_TEST(names_the_file_and_the_tensor) {
    Error e;
    Str s = zip_of(state_dict(&(Spec){.name = "wte.weight",
                                      .type = "LongStorage",
                                      .elements = 3,
                                      .ndim = 2,
                                      .shape = {3, 1},
                                      .stride = {1, 1}},
                              1));
    put("pytorch_model.bin", s.s, s.n);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_assert_msg(
        strstr(e.text, "/pytorch_model.bin: tensor wte.weight has shape [3,1], expected [7,4]"),
        "%s", e.text);
    free(s.s);
    unlink(in("pytorch_model.bin"));
    ck_assert(!mkfifo(in("pytorch_model.bin"), 0600));
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_assert_msg(strstr(e.text, "not a regular file"), "%s", e.text);
}
END_TEST

/* Writes two files and an index. The second file has one more tensor: a mask, or one that no GPT-2
 * has. */
START_TEST(reads_shards) {
    static const char *const more[2] = {"transformer.h.0.attn.bias2", "transformer.h.9.attn.bias"};
    rename(in("pytorch_model.bin"), in("part-1.bin"));
    for (int good = 0; good < 2; good++) {
        Error e;
        char index[256];
        int n = snprintf(index, sizeof index,
                         "{\"weight_map\": {\"transformer.wte.weight\": \"part-1.bin\", \"%s\": "
                         "\"part-2.bin\"}}",
                         more[good]);
        Str s = zip_of(state_dict(&(Spec){.name = more[good]}, 1));
        put("pytorch_model.bin.index.json", index, (size_t)n);
        put("part-2.bin", s.s, s.n);
        free(s.s);
        if (good)
            gpt2_free(ck_predicts(true));
        else
            ck_assert_ptr_null(hf_load(here, false, &e));
        ck_assert(
            good ||
            strstr(e.text,
                   "part-2.bin: tensor transformer.h.0.attn.bias2 does not belong to the model"));
    }
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

int main(void) {
    Suite *suite = suite_create("torch");
    TCase *tc = tcase_create("torch");
    tcase_set_timeout(tc, 300);  // for sanitizers and busy machines
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, reads_what_torch_saved);
    tcase_add_test(tc, refuses_every_truncation);
    tcase_add_test(tc, survives_every_changed_byte);
    tcase_add_test(tc, reads_files_made_by_hand);
    tcase_add_test(tc, accepts_what_the_format_allows);
    tcase_add_test(tc, refuses_whatever_would_run_code);
    tcase_add_test(tc, refuses_every_other_opcode_by_name);
    tcase_add_test(tc, refuses_damaged_pickles);
    tcase_add_test(tc, survives_depth_and_size);
    tcase_add_test(tc, refuses_tensors_that_are_not_there);
    tcase_add_test(tc, refuses_damaged_zip_files);
    tcase_add_test(tc, reads_64_bit_sizes);
    tcase_add_test(tc, refuses_damaged_legacy_files);
    tcase_add_test(tc, refuses_other_files);
    tcase_add_test(tc, loads_a_real_model);
    tcase_add_test(tc, refuses_another_head);
    tcase_add_test(tc, names_the_file_and_the_tensor);
    tcase_add_test(tc, reads_shards);
    suite_add_tcase(suite, tc);
    int failed = run_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
