/*
 * pickle.c - the pickles of torch.save, read without executing them.
 *
 * Nothing in the machine is recursive, so nesting does not use our stack. The pickle's length and
 * MAX_VALUES bound the values, the stack and the memo.
 */
#include "files/pickle.h"

enum {
    MAX_VALUES = 1 << 20,  // that a pickle may make; a tensor takes about 20
};

bool bytes_equal(Bytes a, Bytes b) { return a.n == b.n && (!a.n || !memcmp(a.at, b.at, a.n)); }

bool bytes_are(Bytes a, const char *text) {
    return bytes_equal(a, (Bytes){(const unsigned char *)text, strlen(text)});
}

int bytes_compare(Bytes a, Bytes b) {
    const size_t n = a.n < b.n ? a.n : b.n;
    const int order = n ? memcmp(a.at, b.at, n) : 0;
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

const char *bytes_shown(char out[PICKLE_SHOWN + 1], Bytes a) {
    const size_t n = a.n < PICKLE_SHOWN ? a.n : PICKLE_SHOWN;
    for (size_t i = 0; i < n; i++) out[i] = a.at[i] < 32 || a.at[i] == 127 ? '?' : (char)a.at[i];
    out[n] = 0;
    return out;
}

uint64_t little_endian(const unsigned char *at, int bytes) {
    uint64_t x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | at[i];
    return x;
}

/* ---- What a pickle may name ------------------------------------------------------------------ */

const PickleGlobal pickle_globals[] = {
    {"collections", "OrderedDict", ORDERED_DICT, ST_OTHER, "", 0},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, ST_OTHER, "", 0},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, ST_OTHER, "", 0},
    {"torch", "FloatStorage", STORAGE_TYPE, ST_F32, "F32", 4},
    {"torch", "HalfStorage", STORAGE_TYPE, ST_F16, "F16", 2},
    {"torch", "BFloat16Storage", STORAGE_TYPE, ST_BF16, "BF16", 2},
    {"torch", "DoubleStorage", STORAGE_TYPE, ST_F64, "F64", 8},
    {"torch", "ByteStorage", STORAGE_TYPE, ST_U8, "U8", 1},
    {"torch", "BoolStorage", STORAGE_TYPE, ST_BOOL, "BOOL", 1},
    {"torch", "LongStorage", STORAGE_TYPE, ST_I64, "I64", 8},
    {"torch", "IntStorage", STORAGE_TYPE, ST_I32, "I32", 4},
};

/* The instructions that are implemented, out of those of pickle protocols 0 to 5. */
typedef enum {
    MARK = '(',
    STOP = '.',
    REDUCE = 'R',
    BUILD = 'b',
    GLOBAL = 'c',
    BINPERSID = 'Q',
    APPEND = 'a',
    APPENDS = 'e',
    SETITEM = 's',
    SETITEMS = 'u',
    EMPTY_TUPLE = ')',
    TUPLE = 't',
    EMPTY_LIST = ']',
    EMPTY_DICT = '}',
    NONE = 'N',
    BININT = 'J',
    BININT1 = 'K',
    BININT2 = 'M',
    BINFLOAT = 'G',
    BINUNICODE = 'X',
    BINGET = 'h',
    LONG_BINGET = 'j',
    BINPUT = 'q',
    LONG_BINPUT = 'r',
    PROTO = PICKLE_PROTO,
    TUPLE1 = 0x85,
    TUPLE2 = 0x86,
    TUPLE3 = 0x87,
    NEWTRUE = 0x88,
    NEWFALSE = 0x89,
    LONG1 = 0x8a,
    SHORT_BINUNICODE = 0x8c,
    STACK_GLOBAL = 0x93,
    MEMOIZE = 0x94,
    FRAME = 0x95,
} Opcode;

static const char *opcode_name(unsigned char opcode) {
    static const struct {
        unsigned char opcode;
        const char *name;
    } refused[] = {
        {'0', "POP"},
        {'1', "POP_MARK"},
        {'2', "DUP"},
        {'F', "FLOAT"},
        {'I', "INT"},
        {'L', "LONG"},
        {'P', "PERSID"},
        {'S', "STRING"},
        {'T', "BINSTRING"},
        {'U', "SHORT_BINSTRING"},
        {'V', "UNICODE"},
        {'d', "DICT"},
        {'g', "GET"},
        {'i', "INST"},
        {'l', "LIST"},
        {'o', "OBJ"},
        {'p', "PUT"},
        {'B', "BINBYTES"},
        {'C', "SHORT_BINBYTES"},
        {0x81, "NEWOBJ"},
        {0x82, "EXT1"},
        {0x83, "EXT2"},
        {0x84, "EXT4"},
        {0x8b, "LONG4"},
        {0x8d, "BINUNICODE8"},
        {0x8e, "BINBYTES8"},
        {0x8f, "EMPTY_SET"},
        {0x90, "ADDITEMS"},
        {0x91, "FROZENSET"},
        {0x92, "NEWOBJ_EX"},
        {0x96, "BYTEARRAY8"},
        {0x97, "NEXT_BUFFER"},
        {0x98, "READONLY_BUFFER"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].opcode == opcode) return refused[i].name;
    return "that no pickle has";
}

/* ---- The machine: values --------------------------------------------------------------------- */

const char *const pickle_kind_names[] = {
    "None",    "a bool", "an int", "an int beyond 64 bits", "a float",   "a string",
    "a tuple", "a list", "a dict", "a function or type",    "a storage", "a tensor"};

int pickle_refuse(const Pickle *m, Error *e, const char *format, ...) {
    char reason[768];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return fail(e, "%s: byte %zu: %s", m->file, m->at, reason);
}

#define DO_INSTEAD                                                                               \
    "nothing was executed. If you trust the file, load it with PyTorch and save the model with " \
    "save_pretrained"

static int cut_short(const Pickle *m, Error *e) {
    return pickle_refuse(
        m, e,
        "the pickle continues past the end of the file; it was probably cut short: fetch it again");
}

const unsigned char *pickle_take(Pickle *m, size_t n, Error *e) {
    if (m->rest.n < n) {
        cut_short(m, e);
        return NULL;
    }
    const unsigned char *at = m->rest.at;
    m->rest = (Bytes){at + n, m->rest.n - n};
    return at;
}

static int push(Pickle *m, int value, Error *e) {
    if (m->stack.n >= MAX_VALUES)
        return pickle_refuse(m, e, "more than %d values on the stack", MAX_VALUES);
    ints_push(&m->stack, value);
    return 0;
}

static int push_new(Pickle *m, PickleValue value, Error *e) {
    if (m->values >= MAX_VALUES)
        return pickle_refuse(m, e, "more than %d values, which is more than a state dict has",
                             MAX_VALUES);
    if (m->values == m->values_room) {
        m->values_room = 2 * m->values_room + 256;
        m->value = xrealloc(m->value, m->values_room, sizeof *m->value);
    }
    m->value[m->values] = value;
    return push(m, (int)m->values++, e);
}

static int push_int(Pickle *m, PickleKind kind, int64_t i, Error *e) {
    return push_new(m, (PickleValue){.kind = kind, .as.i = i}, e);
}

static int push_bytes(Pickle *m, PickleKind kind, size_t n, Error *e) {
    const unsigned char *at = pickle_take(m, n, e);
    return at ? push_new(m, (PickleValue){.kind = kind, .as.bytes = {at, n}}, e) : -1;
}

static int push_items(Pickle *m, PickleKind kind, Error *e) {
    return push_new(m, (PickleValue){.kind = kind, .as.items = {-1, -1, 0}}, e);
}

/* The number of values above the last mark. Only these may be popped. */
static size_t height(const Pickle *m) {
    return m->stack.n - (m->marks.n ? (size_t)m->marks.v[m->marks.n - 1] : 0);
}

/* The value on top of the stack, or NULL with e filled when there is none. pop also removes it. */
static PickleValue *top(const Pickle *m, Error *e) {
    if (height(m)) return &m->value[m->stack.v[m->stack.n - 1]];
    pickle_refuse(
        m, e, "the pickle takes a value from an empty stack; the file is damaged: fetch it again");
    return NULL;
}

static PickleValue *pop(Pickle *m, Error *e) {
    PickleValue *value = top(m, e);
    if (value) m->stack.n--;
    return value;
}

/* Removes the last mark and sets *above to the number of values above it. -1 with e filled when
 * there is no mark. */
static int pop_mark(Pickle *m, size_t *above, Error *e) {
    if (!m->marks.n)
        return pickle_refuse(
            m, e,
            "the pickle looks for a mark, and there is none; the file is damaged: fetch it again");
    *above = height(m);
    m->marks.n--;
    return 0;
}

/* Moves the last n values of the stack into container, in their order. */
static int pop_into(Pickle *m, PickleValue *container, size_t n, Error *e) {
    if (m->items + n > MAX_VALUES)
        return pickle_refuse(m, e, "more than %d items, which is more than a state dict has",
                             MAX_VALUES);
    while (m->items + n > m->items_room) {
        m->items_room = 2 * m->items_room + 256;
        m->item = xrealloc(m->item, m->items_room, sizeof *m->item);
    }
    for (size_t i = m->stack.n - n; i < m->stack.n; i++) {
        int new = (int)m->items++;
        m->item[new] = (PickleItem){m->stack.v[i], -1};
        if (container->as.items.n++)
            m->item[container->as.items.last].next = new;
        else
            container->as.items.first = new;
        container->as.items.last = new;
    }
    m->stack.n -= n;
    return 0;
}

static int make_tuple(Pickle *m, size_t n, Error *e) {
    PickleValue tuple = {.kind = V_TUPLE, .as.items = {-1, -1, 0}};
    if (height(m) < n)
        return top(m, e) ? pickle_refuse(m, e, "a tuple of %zu from a stack of %zu", n, height(m))
                         : -1;
    return pop_into(m, &tuple, n, e) ? -1 : push_new(m, tuple, e);
}

/* Moves the last n values of the stack into the list or dict below them. */
static int extend(Pickle *m, PickleKind kind, size_t n, Error *e) {
    if (height(m) <= n)
        return pickle_refuse(
            m, e,
            "no list or dict on the stack for %zu values; the file is damaged: fetch it again", n);
    PickleValue *container = &m->value[m->stack.v[m->stack.n - 1 - n]];
    if (container->kind != kind)
        return pickle_refuse(m, e, "values are put into %s, expected %s: " DO_INSTEAD,
                             pickle_kind_names[container->kind], pickle_kind_names[kind]);
    if (kind == V_DICT && n % 2)
        return pickle_refuse(m, e, "%zu keys and values for a dict, expected pairs", n);
    return pop_into(m, container, n, e);
}

const PickleValue *pickle_item(const Pickle *m, const PickleValue *container, int i) {
    int at = container->as.items.first;
    while (i--) at = m->item[at].next;
    return &m->value[m->item[at].value];
}

/* ---- The machine: instructions --------------------------------------------------------------- */

static int push_global(Pickle *m, Bytes module, Bytes name, Error *e) {
    char a[PICKLE_SHOWN + 1], b[PICKLE_SHOWN + 1];
    for (size_t i = 0; i < sizeof pickle_globals / sizeof *pickle_globals; i++)
        if (bytes_are(module, pickle_globals[i].module) && bytes_are(name, pickle_globals[i].name))
            return push_int(m, V_GLOBAL, (int64_t)i, e);
    return pickle_refuse(
        m, e,
        "it asks for %s.%s, which no state dict of float tensors needs; that is refused "
        "and " DO_INSTEAD,
        bytes_shown(a, module), bytes_shown(b, name));
}

/* Takes the rest of the line and its newline. */
static int take_line(Pickle *m, Bytes *line, Error *e) {
    const unsigned char *end = m->rest.n ? memchr(m->rest.at, '\n', m->rest.n) : NULL;
    if (!end) return cut_short(m, e);
    *line = (Bytes){m->rest.at, (size_t)(end - m->rest.at)};
    m->rest = (Bytes){end + 1, m->rest.n - line->n - 1};
    return 0;
}

static int do_global(Pickle *m, Error *e) {
    Bytes module, name;
    return take_line(m, &module, e) || take_line(m, &name, e) ? -1
                                                              : push_global(m, module, name, e);
}

static int do_stack_global(Pickle *m, Error *e) {
    const PickleValue *name = pop(m, e), *module = name ? pop(m, e) : NULL;
    if (!module) return -1;
    if (name->kind != V_TEXT || module->kind != V_TEXT)
        return pickle_refuse(m, e, "STACK_GLOBAL of %s and %s, expected two strings",
                             pickle_kind_names[module->kind], pickle_kind_names[name->kind]);
    return push_global(m, module->as.bytes, name->as.bytes, e);
}

/* function(*arguments). The call is recorded by its arguments and not made. read_tensor checks
 * them, because it knows the tensor's name for its messages. */
static int do_reduce(Pickle *m, Error *e) {
    const PickleValue *arguments = pop(m, e), *function = arguments ? pop(m, e) : NULL;
    if (!function) return -1;
    if (function->kind != V_GLOBAL || arguments->kind != V_TUPLE)
        return pickle_refuse(
            m, e, "REDUCE calls %s with %s, expected a function with a tuple: " DO_INSTEAD,
            pickle_kind_names[function->kind], pickle_kind_names[arguments->kind]);
    const PickleGlobal *global = &pickle_globals[function->as.i];
    int n = arguments->as.items.n;
    if (global->kind == ORDERED_DICT && n == 0) return push_items(m, V_DICT, e);
    if (global->kind == REBUILD_TENSOR &&
        (n == 6 || (n == 7 && pickle_item(m, arguments, 6)->kind == V_NONE)))
        return push_new(m, (PickleValue){.kind = V_TENSOR, .as = arguments->as}, e);
    if (global->kind == REBUILD_PARAMETER && n == 3 &&
        pickle_item(m, arguments, 0)->kind == V_TENSOR)
        return push(m, m->item[arguments->as.items.first].value, e);
    return pickle_refuse(
        m, e,
        "REDUCE calls %s.%s with %d arguments, which no state dict does; that is refused "
        "and " DO_INSTEAD,
        global->module, global->name, n);
}

/* object.__dict__.update(state). In a state dict, state has the versions of the modules, which do
 * not concern the tensors. */
static int do_build(Pickle *m, Error *e) {
    const PickleValue *state = pop(m, e), *object = state ? top(m, e) : NULL;
    if (!object) return -1;
    if (object->kind != V_DICT || state->kind != V_DICT)
        return pickle_refuse(m, e,
                             "BUILD gives %s the state %s, expected a dict and a dict: " DO_INSTEAD,
                             pickle_kind_names[object->kind], pickle_kind_names[state->kind]);
    return 0;
}

/* ('storage', TYPE, KEY, DEVICE, ELEMENTS[, None]) */
static int do_persistent_id(Pickle *m, Error *e) {
    const PickleValue *id = pop(m, e);
    if (!id) return -1;
    int n = id->kind == V_TUPLE ? id->as.items.n : 0;
    bool good = (n == 5 || n == 6) && pickle_item(m, id, 0)->kind == V_TEXT &&
                bytes_are(pickle_item(m, id, 0)->as.bytes, "storage") &&
                pickle_item(m, id, 1)->kind == V_GLOBAL &&
                pickle_globals[pickle_item(m, id, 1)->as.i].kind == STORAGE_TYPE &&
                pickle_item(m, id, 2)->kind == V_TEXT && pickle_item(m, id, 3)->kind == V_TEXT &&
                pickle_item(m, id, 4)->kind == V_INT && pickle_item(m, id, 4)->as.i >= 0;
    if (!good)
        return pickle_refuse(m, e,
                             "BINPERSID of %s, expected ('storage', TYPE, KEY, DEVICE, ELEMENTS)",
                             pickle_kind_names[id->kind]);
    if (n == 6 && pickle_item(m, id, 5)->kind != V_NONE)
        return pickle_refuse(
            m, e,
            "a storage that is a view of another; such files are from before PyTorch "
            "0.4: " DO_INSTEAD);
    if (pickle_item(m, id, 2)->as.bytes.n > PICKLE_MAX_NAME)
        return pickle_refuse(m, e, "a storage's key has %zu bytes, expected at most %d",
                             pickle_item(m, id, 2)->as.bytes.n, PICKLE_MAX_NAME);
    if (push_new(m, (PickleValue){.kind = V_STORAGE, .as = id->as}, e)) return -1;
    ints_push(&m->storages, m->stack.v[m->stack.n - 1]);
    return 0;
}

/* Integers are little-endian two's complement of any length. Only the magic number is longer than
 * 64 bits. */
static int do_long(Pickle *m, Error *e) {
    const unsigned char *n = pickle_take(m, 1, e);
    if (!n || *n > 8) return n ? push_bytes(m, V_LONG, *n, e) : -1;
    const unsigned char *at = pickle_take(m, *n, e);
    if (!at) return -1;
    uint64_t x = little_endian(at, *n);
    if (*n && *n < 8 && at[*n - 1] & 0x80) x |= UINT64_MAX << 8 * *n;
    return push_int(m, V_INT, (int64_t)x, e);
}

/* Python numbers the values in the memo 0, 1, 2, .., so the memo has no holes. */
static int memo_put(Pickle *m, size_t i, Error *e) {
    if (!top(m, e)) return -1;
    int value = m->stack.v[m->stack.n - 1];
    if (i > m->memo.n || i >= MAX_VALUES)
        return pickle_refuse(m, e, "memo entry %zu follows %zu entries, expected them in order", i,
                             m->memo.n);
    if (i == m->memo.n)
        ints_push(&m->memo, value);
    else
        m->memo.v[i] = value;
    return 0;
}

static int memo_get(Pickle *m, size_t i, Error *e) {
    if (i >= m->memo.n)
        return pickle_refuse(m, e, "memo entry %zu is used, but there are %zu", i, m->memo.n);
    return push(m, m->memo.v[i], e);
}

/* The size in bytes of the number that follows an opcode. */
static int operand_bytes(unsigned char opcode) {
    switch (opcode) {
        case PROTO:
        case BININT1:
        case BINPUT:
        case BINGET:
        case SHORT_BINUNICODE: return 1;
        case BININT2: return 2;
        case BININT:
        case LONG_BINPUT:
        case LONG_BINGET:
        case BINUNICODE: return 4;
        case BINFLOAT:
        case FRAME: return 8;
        default: return 0;
    }
}

static int execute(Pickle *m, unsigned char opcode, Error *e) {
    int bytes = operand_bytes(opcode);
    const unsigned char *at = pickle_take(m, (size_t)bytes, e);
    if (!at) return -1;
    uint64_t x = little_endian(at, bytes);
    size_t n = 1;
    switch (opcode) {
        case PROTO:
            return x > 5 ? pickle_refuse(m, e, "pickle protocol %d, expected at most 5", (int)x)
                         : 0;
        case FRAME: return 0;  // how far to read ahead
        case NONE: return push_int(m, V_NONE, 0, e);
        case NEWTRUE: return push_int(m, V_BOOL, 1, e);
        case NEWFALSE: return push_int(m, V_BOOL, 0, e);
        case BININT: return push_int(m, V_INT, (int32_t)(uint32_t)x, e);
        case BININT1:
        case BININT2: return push_int(m, V_INT, (int64_t)x, e);
        case LONG1: return do_long(m, e);
        case BINFLOAT: return push_int(m, V_FLOAT, 0, e);  // its value is not used
        case BINUNICODE:
        case SHORT_BINUNICODE: return push_bytes(m, V_TEXT, (size_t)x, e);
        case EMPTY_LIST: return push_items(m, V_LIST, e);
        case EMPTY_DICT: return push_items(m, V_DICT, e);
        case EMPTY_TUPLE: return push_items(m, V_TUPLE, e);
        case TUPLE1: return make_tuple(m, 1, e);
        case TUPLE2: return make_tuple(m, 2, e);
        case TUPLE3: return make_tuple(m, 3, e);
        case TUPLE: return pop_mark(m, &n, e) ? -1 : make_tuple(m, n, e);
        case APPENDS: return pop_mark(m, &n, e) ? -1 : extend(m, V_LIST, n, e);
        case SETITEMS: return pop_mark(m, &n, e) ? -1 : extend(m, V_DICT, n, e);
        case APPEND: return extend(m, V_LIST, 1, e);
        case SETITEM: return extend(m, V_DICT, 2, e);
        case MARK:
            if (m->marks.n >= MAX_VALUES)
                return pickle_refuse(m, e, "more than %d marks", MAX_VALUES);
            ints_push(&m->marks, (int)m->stack.n);
            return 0;
        case BINPUT:
        case LONG_BINPUT: return memo_put(m, (size_t)x, e);
        case MEMOIZE: return memo_put(m, m->memo.n, e);
        case BINGET:
        case LONG_BINGET: return memo_get(m, (size_t)x, e);
        case GLOBAL: return do_global(m, e);
        case STACK_GLOBAL: return do_stack_global(m, e);
        case REDUCE: return do_reduce(m, e);
        case BUILD: return do_build(m, e);
        case BINPERSID: return do_persistent_id(m, e);
        default:
            return pickle_refuse(
                m, e,
                "opcode 0x%02x (%s), which no state dict of tensors has, is refused; " DO_INSTEAD,
                opcode, opcode_name(opcode));
    }
}

const PickleValue *pickle_run(Pickle *m, Error *e) {
    m->stack.n = m->marks.n = m->memo.n = 0;
    for (;;) {
        m->at = (size_t)(m->rest.at - m->begin);
        const unsigned char *opcode = pickle_take(m, 1, e);
        if (!opcode) return NULL;
        if (*opcode == STOP) break;
        if (execute(m, *opcode, e)) return NULL;
    }
    if (m->marks.n || m->stack.n != 1) {
        pickle_refuse(
            m, e,
            "the pickle ends with %zu values on the stack, expected 1; the file is damaged: "
            "fetch it again",
            m->stack.n);
        return NULL;
    }
    return top(m, e);
}

void pickle_free(Pickle *m) {
    free(m->value);
    free(m->item);
    free(m->stack.v);
    free(m->marks.v);
    free(m->memo.v);
    free(m->storages.v);
}
