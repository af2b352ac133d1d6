/*
 * torch.c - pytorch_model.bin: a reader of the state dicts that torch.save writes.
 *
 * A pickle is a program for a small stack machine, and PyTorch's files are pickles: to load one the
 * usual way is to run it, and what it runs is up to whoever wrote it. But the program that builds a
 * state dict only ever makes dicts, lists, tuples, numbers and strings, and calls three functions:
 * OrderedDict(), _rebuild_tensor_v2(storage, offset, size, stride, ..) and
 * _rebuild_parameter(tensor, ..). Here is a machine with those instructions and no others. A call
 * is recorded, never made, and whatever else a file asks for is refused by name.
 *
 * The data lie outside of the pickle, as storages that it refers to by key, in one of two
 * containers:
 *
 *   ZIP, since PyTorch 1.6       ROOT/data.pkl, the pickle;  ROOT/data/KEY, a storage;  all entries
 * stored, none compressed before                       pickles one after the other: a magic number,
 * 1001, what the machine was like, the state dict, [KEY, ..]; then for each of these keys the
 * number of elements (8 bytes) and the elements
 *
 * Nothing in the machine is recursive, so nesting costs no stack of ours; values, stack and memo
 * are bounded by the pickle's length and by MAX_VALUES. Left out: the CRC of ZIP entries
 * (torch.save can be told to leave it wrong; a download is checked by its SHA-256), views and
 * strides other than those of C order, big-endian files, quantised and sparse tensors, and whole
 * pickled modules: those are code.
 */
#include "files/torch.h"

enum {
    MAX_VALUES = 1 << 20,  // that a pickle may make; a tensor takes about 20
    MAX_NAME = 255,        // bytes of a tensor's name or a storage's key
    SHOWN = 80,            // characters out of a file that a message repeats
};

typedef struct {
    const unsigned char *at;
    size_t n;
} Bytes;

static bool same(Bytes a, Bytes b) { return a.n == b.n && (!a.n || !memcmp(a.at, b.at, a.n)); }

static bool is_text(Bytes a, const char *text) {
    return same(a, (Bytes){(const unsigned char *)text, strlen(text)});
}

static int compare(Bytes a, Bytes b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n ? memcmp(a.at, b.at, n) : 0;
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

/* The beginning of a as a message shows it, on one line. */
static const char *shown(char out[SHOWN + 1], Bytes a) {
    size_t n = a.n < SHOWN ? a.n : SHOWN;
    for (size_t i = 0; i < n; i++) out[i] = a.at[i] < 32 || a.at[i] == 127 ? '?' : (char)a.at[i];
    out[n] = 0;
    return out;
}

static uint64_t little_endian(const unsigned char *at, int bytes) {
    uint64_t x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | at[i];
    return x;
}

/* ---- what a pickle may name ------------------------------------------------------------------ */

typedef enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE_TYPE } GlobalKind;

static const struct Global {
    const char *module, *name;
    GlobalKind kind;
    STType type;  // of a storage's elements
    const char *type_name;
    size_t bytes;  // an element
} globals[] = {
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

/* The instructions of pickle protocols 0 to 5; the machine below has those that it has a case for.
 */
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
    PROTO = 0x80,
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

/* ---- the machine: values --------------------------------------------------------------------- */

typedef enum {
    V_NONE,
    V_BOOL,
    V_INT,
    V_LONG,
    V_FLOAT,
    V_TEXT,
    V_TUPLE,
    V_LIST,
    V_DICT,
    V_GLOBAL,
    V_STORAGE,
    V_TENSOR
} Kind;

static const char *const kind_names[] = {
    "None",    "a bool", "an int", "an int beyond 64 bits", "a float",   "a string",
    "a tuple", "a list", "a dict", "a function or type",    "a storage", "a tensor"};

typedef struct {
    Kind kind;
    union {
        int64_t i;    // V_BOOL, V_INT; V_GLOBAL: which of globals
        Bytes bytes;  // V_TEXT, and V_LONG's two's complement, in the file
        struct {
            int first, last, n;  // items; a dict's are key, value, key, value, ..; a storage's and
                                 // a tensor's are the arguments it came from
        } items;
    } as;
} Value;

typedef struct {
    int value, next;  // of the same container; -1: the last
} Item;

/* Values and items are numbered, and referred to by number. */
typedef struct {
    const char *file;            // for messages
    const unsigned char *begin;  // of the file; positions in messages count from here
    Bytes rest;                  // what is not yet read
    size_t at;                   // of the instruction that is being executed
    Value *value;
    Item *item;
    size_t values, values_room, items, items_room;
    Ints stack, marks;  // marks: heights of the stack
    Ints memo, storages;
} Machine;

/* Fills e with: file: byte N: (what is wrong there). Returns -1. */
__attribute__((format(printf, 3, 4))) static int refuse(const Machine *m, Error *e,
                                                        const char *format, ...) {
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

static int cut_short(const Machine *m, Error *e) {
    return refuse(
        m, e,
        "the pickle goes on past the end of the file; it was probably cut short: fetch it again");
}

/* The next n bytes, or NULL with e filled. */
static const unsigned char *take(Machine *m, size_t n, Error *e) {
    if (m->rest.n < n) {
        cut_short(m, e);
        return NULL;
    }
    const unsigned char *at = m->rest.at;
    m->rest = (Bytes){at + n, m->rest.n - n};
    return at;
}

static int push(Machine *m, int value, Error *e) {
    if (m->stack.n >= MAX_VALUES)
        return refuse(m, e, "more than %d values on the stack", MAX_VALUES);
    ints_push(&m->stack, value);
    return 0;
}

static int push_new(Machine *m, Value value, Error *e) {
    if (m->values >= MAX_VALUES)
        return refuse(m, e, "more than %d values, which is more than a state dict has", MAX_VALUES);
    if (m->values == m->values_room)
        m->value = xrealloc(m->value, m->values_room = 2 * m->values_room + 256, sizeof *m->value);
    m->value[m->values] = value;
    return push(m, (int)m->values++, e);
}

static int push_int(Machine *m, Kind kind, int64_t i, Error *e) {
    return push_new(m, (Value){.kind = kind, .as.i = i}, e);
}

static int push_bytes(Machine *m, Kind kind, size_t n, Error *e) {
    const unsigned char *at = take(m, n, e);
    return at ? push_new(m, (Value){.kind = kind, .as.bytes = {at, n}}, e) : -1;
}

static int push_items(Machine *m, Kind kind, Error *e) {
    return push_new(m, (Value){.kind = kind, .as.items = {-1, -1, 0}}, e);
}

/* How many values lie above the last mark: only they may be popped. */
static size_t height(const Machine *m) {
    return m->stack.n - (m->marks.n ? (size_t)m->marks.v[m->marks.n - 1] : 0);
}

/* The value on top, which must be there; pop takes it away. NULL with e filled. */
static Value *top(const Machine *m, Error *e) {
    if (height(m)) return &m->value[m->stack.v[m->stack.n - 1]];
    refuse(m, e,
           "the pickle takes a value from an empty stack; the file is damaged: fetch it again");
    return NULL;
}

static Value *pop(Machine *m, Error *e) {
    Value *value = top(m, e);
    if (value) m->stack.n--;
    return value;
}

/* Removes the last mark. -1 with e filled when there is none. */
static int pop_mark(Machine *m, size_t *above, Error *e) {
    if (!m->marks.n)
        return refuse(
            m, e,
            "the pickle looks for a mark, and there is none; the file is damaged: fetch it again");
    *above = height(m);
    m->marks.n--;
    return 0;
}

/* The last n values of the stack become items of container, in their order. */
static int pop_into(Machine *m, Value *container, size_t n, Error *e) {
    if (m->items + n > MAX_VALUES)
        return refuse(m, e, "more than %d items, which is more than a state dict has", MAX_VALUES);
    while (m->items + n > m->items_room)
        m->item = xrealloc(m->item, m->items_room = 2 * m->items_room + 256, sizeof *m->item);
    for (size_t i = m->stack.n - n; i < m->stack.n; i++) {
        int new = (int)m->items++;
        m->item[new] = (Item){m->stack.v[i], -1};
        if (container->as.items.n++)
            m->item[container->as.items.last].next = new;
        else
            container->as.items.first = new;
        container->as.items.last = new;
    }
    m->stack.n -= n;
    return 0;
}

static int make_tuple(Machine *m, size_t n, Error *e) {
    Value tuple = {.kind = V_TUPLE, .as.items = {-1, -1, 0}};
    if (height(m) < n)
        return top(m, e) ? refuse(m, e, "a tuple of %zu from a stack of %zu", n, height(m)) : -1;
    return pop_into(m, &tuple, n, e) ? -1 : push_new(m, tuple, e);
}

/* The last n values go into the list or dict below them. */
static int extend(Machine *m, Kind kind, size_t n, Error *e) {
    if (height(m) <= n)
        return refuse(
            m, e,
            "nothing on the stack to put %zu values into; the file is damaged: fetch it again", n);
    Value *container = &m->value[m->stack.v[m->stack.n - 1 - n]];
    if (container->kind != kind)
        return refuse(m, e, "values are put into %s, expected %s: " DO_INSTEAD,
                      kind_names[container->kind], kind_names[kind]);
    if (kind == V_DICT && n % 2)
        return refuse(m, e, "%zu keys and values for a dict, expected pairs", n);
    return pop_into(m, container, n, e);
}

/* Item i of a container that has so many. */
static const Value *item(const Machine *m, const Value *container, int i) {
    int at = container->as.items.first;
    while (i--) at = m->item[at].next;
    return &m->value[m->item[at].value];
}

/* ---- the machine: instructions --------------------------------------------------------------- */

static int push_global(Machine *m, Bytes module, Bytes name, Error *e) {
    char a[SHOWN + 1], b[SHOWN + 1];
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (is_text(module, globals[i].module) && is_text(name, globals[i].name))
            return push_int(m, V_GLOBAL, (int64_t)i, e);
    return refuse(m, e,
                  "it asks for %s.%s, which no state dict of float tensors needs; that is refused "
                  "and " DO_INSTEAD,
                  shown(a, module), shown(b, name));
}

/* Up to the end of the line, which is consumed. */
static int take_line(Machine *m, Bytes *line, Error *e) {
    const unsigned char *end = m->rest.n ? memchr(m->rest.at, '\n', m->rest.n) : NULL;
    if (!end) return cut_short(m, e);
    *line = (Bytes){m->rest.at, (size_t)(end - m->rest.at)};
    m->rest = (Bytes){end + 1, m->rest.n - line->n - 1};
    return 0;
}

static int do_global(Machine *m, Error *e) {
    Bytes module, name;
    return take_line(m, &module, e) || take_line(m, &name, e) ? -1
                                                              : push_global(m, module, name, e);
}

static int do_stack_global(Machine *m, Error *e) {
    const Value *name = pop(m, e), *module = name ? pop(m, e) : NULL;
    if (!module) return -1;
    if (name->kind != V_TEXT || module->kind != V_TEXT)
        return refuse(m, e, "STACK_GLOBAL of %s and %s, expected two strings",
                      kind_names[module->kind], kind_names[name->kind]);
    return push_global(m, module->as.bytes, name->as.bytes, e);
}

/* function(*arguments): what would be called is remembered by its arguments, which read_tensor
 * looks at once it knows the tensor's name. */
static int do_reduce(Machine *m, Error *e) {
    const Value *arguments = pop(m, e), *function = arguments ? pop(m, e) : NULL;
    if (!function) return -1;
    if (function->kind != V_GLOBAL || arguments->kind != V_TUPLE)
        return refuse(m, e,
                      "REDUCE calls %s with %s, expected a function with a tuple: " DO_INSTEAD,
                      kind_names[function->kind], kind_names[arguments->kind]);
    const struct Global *global = &globals[function->as.i];
    int n = arguments->as.items.n;
    if (global->kind == ORDERED_DICT && n == 0) return push_items(m, V_DICT, e);
    if (global->kind == REBUILD_TENSOR &&
        (n == 6 || (n == 7 && item(m, arguments, 6)->kind == V_NONE)))
        return push_new(m, (Value){.kind = V_TENSOR, .as = arguments->as}, e);
    if (global->kind == REBUILD_PARAMETER && n == 3 && item(m, arguments, 0)->kind == V_TENSOR)
        return push(m, m->item[arguments->as.items.first].value, e);
    return refuse(m, e,
                  "REDUCE calls %s.%s with %d arguments, which no state dict does; that is refused "
                  "and " DO_INSTEAD,
                  global->module, global->name, n);
}

/* object.__dict__.update(state): a state dict has the versions of its modules there, which say
 * nothing about the tensors. */
static int do_build(Machine *m, Error *e) {
    const Value *state = pop(m, e), *object = state ? top(m, e) : NULL;
    if (!object) return -1;
    if (object->kind != V_DICT || state->kind != V_DICT)
        return refuse(m, e, "BUILD gives %s the state %s, expected a dict and a dict: " DO_INSTEAD,
                      kind_names[object->kind], kind_names[state->kind]);
    return 0;
}

/* ('storage', TYPE, KEY, DEVICE, ELEMENTS[, None]) */
static int do_persistent_id(Machine *m, Error *e) {
    const Value *id = pop(m, e);
    if (!id) return -1;
    int n = id->kind == V_TUPLE ? id->as.items.n : 0;
    bool good = (n == 5 || n == 6) && item(m, id, 0)->kind == V_TEXT &&
                is_text(item(m, id, 0)->as.bytes, "storage") && item(m, id, 1)->kind == V_GLOBAL &&
                globals[item(m, id, 1)->as.i].kind == STORAGE_TYPE &&
                item(m, id, 2)->kind == V_TEXT && item(m, id, 3)->kind == V_TEXT &&
                item(m, id, 4)->kind == V_INT && item(m, id, 4)->as.i >= 0;
    if (!good)
        return refuse(m, e, "BINPERSID of %s, expected ('storage', TYPE, KEY, DEVICE, ELEMENTS)",
                      kind_names[id->kind]);
    if (n == 6 && item(m, id, 5)->kind != V_NONE)
        return refuse(m, e,
                      "a storage that is a view of another; such files are from before PyTorch "
                      "0.4: " DO_INSTEAD);
    if (item(m, id, 2)->as.bytes.n > MAX_NAME)
        return refuse(m, e, "a storage's key has %zu bytes, expected at most %d",
                      item(m, id, 2)->as.bytes.n, MAX_NAME);
    if (push_new(m, (Value){.kind = V_STORAGE, .as = id->as}, e)) return -1;
    ints_push(&m->storages, m->stack.v[m->stack.n - 1]);
    return 0;
}

/* Integers are little-endian two's complement of any length; longer than 64 bits is only the magic
 * number. */
static int do_long(Machine *m, Error *e) {
    const unsigned char *n = take(m, 1, e);
    if (!n || *n > 8) return n ? push_bytes(m, V_LONG, *n, e) : -1;
    const unsigned char *at = take(m, *n, e);
    if (!at) return -1;
    uint64_t x = little_endian(at, *n);
    if (*n && *n < 8 && at[*n - 1] & 0x80) x |= UINT64_MAX << 8 * *n;
    return push_int(m, V_INT, (int64_t)x, e);
}

/* Python numbers what it remembers 0, 1, 2, .. so the memo has no holes. */
static int memo_put(Machine *m, size_t i, Error *e) {
    if (!top(m, e)) return -1;
    int value = m->stack.v[m->stack.n - 1];
    if (i > m->memo.n || i >= MAX_VALUES)
        return refuse(m, e, "value %zu is remembered after %zu, expected them in order", i,
                      m->memo.n);
    if (i == m->memo.n)
        ints_push(&m->memo, value);
    else
        m->memo.v[i] = value;
    return 0;
}

static int memo_get(Machine *m, size_t i, Error *e) {
    if (i >= m->memo.n)
        return refuse(m, e, "value %zu is recalled, but %zu were remembered", i, m->memo.n);
    return push(m, m->memo.v[i], e);
}

/* Bytes of the number that follows an opcode. */
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

static int execute(Machine *m, unsigned char opcode, Error *e) {
    int bytes = operand_bytes(opcode);
    const unsigned char *at = take(m, (size_t)bytes, e);
    if (!at) return -1;
    uint64_t x = little_endian(at, bytes);
    size_t n = 1;
    switch (opcode) {
        case PROTO:
            return x > 5 ? refuse(m, e, "pickle protocol %d, expected at most 5", (int)x) : 0;
        case FRAME: return 0;  // how far to read ahead
        case NONE: return push_int(m, V_NONE, 0, e);
        case NEWTRUE: return push_int(m, V_BOOL, 1, e);
        case NEWFALSE: return push_int(m, V_BOOL, 0, e);
        case BININT: return push_int(m, V_INT, (int32_t)(uint32_t)x, e);
        case BININT1:
        case BININT2: return push_int(m, V_INT, (int64_t)x, e);
        case LONG1: return do_long(m, e);
        case BINFLOAT: return push_int(m, V_FLOAT, 0, e);  // nothing of a state dict is one
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
            if (m->marks.n >= MAX_VALUES) return refuse(m, e, "more than %d marks", MAX_VALUES);
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
            return refuse(
                m, e,
                "opcode 0x%02x (%s), which no state dict of tensors has, is refused; " DO_INSTEAD,
                opcode, opcode_name(opcode));
    }
}

/* One pickle, up to its STOP -> the value it leaves, which holds until the next is run. NULL with e
 * filled. */
static const Value *run(Machine *m, Error *e) {
    m->stack.n = m->marks.n = m->memo.n = 0;
    for (;;) {
        m->at = (size_t)(m->rest.at - m->begin);
        const unsigned char *opcode = take(m, 1, e);
        if (!opcode) return NULL;
        if (*opcode == STOP) break;
        if (execute(m, *opcode, e)) return NULL;
    }
    if (m->marks.n || m->stack.n != 1) {
        refuse(m, e,
               "the pickle ends with %zu values on the stack, expected 1; the file is damaged: "
               "fetch it again",
               m->stack.n);
        return NULL;
    }
    return top(m, e);
}

static void machine_free(Machine *m) {
    free(m->value);
    free(m->item);
    free(m->stack.v);
    free(m->marks.v);
    free(m->memo.v);
    free(m->storages.v);
}

/* ---- storages -------------------------------------------------------------------------------- */

typedef struct {
    Bytes key;
    const struct Global *type;
    size_t n;                   // elements
    const unsigned char *data;  // NULL until found
} Storage;

typedef struct {
    Storage *v;  // sorted by key
    size_t n;
} Storages;

static int by_key(const void *a, const void *b) {
    return compare(((const Storage *)a)->key, ((const Storage *)b)->key);
}

static Storage *find_storage(const Storages *s, Bytes key) {
    return s->n ? bsearch(&(Storage){.key = key}, s->v, s->n, sizeof *s->v, by_key) : NULL;
}

static Storage storage_of(const Machine *m, const Value *v) {
    return (Storage){.key = item(m, v, 2)->as.bytes,
                     .type = &globals[item(m, v, 1)->as.i],
                     .n = (size_t)item(m, v, 4)->as.i};
}

/* Every storage that the pickle refers to, once. */
static int collect_storages(const Machine *m, Storages *s, Error *e) {
    size_t n = m->storages.n, kept = 0;
    char key[SHOWN + 1];
    s->v = xcalloc(n, sizeof *s->v);
    for (size_t i = 0; i < n; i++) s->v[i] = storage_of(m, &m->value[m->storages.v[i]]);
    if (n) qsort(s->v, n, sizeof *s->v, by_key);
    for (size_t i = 0; i < n; i++) {
        const Storage *before = kept ? &s->v[kept - 1] : NULL, *now = &s->v[i];
        if (!before || !same(before->key, now->key))
            s->v[kept++] = *now;
        else if (before->type != now->type || before->n != now->n)
            return fail(e, "%s: storage %s is said to be %zu of %s, and %zu of %s", m->file,
                        shown(key, now->key), before->n, before->type->type_name, now->n,
                        now->type->type_name);
    }
    s->n = kept;
    return 0;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* A tuple of ndim sizes of at least 0 -> out. */
static bool read_sizes(const Machine *m, const Value *tuple, int ndim, size_t *out) {
    if (tuple->kind != V_TUPLE || tuple->as.items.n != ndim) return false;
    for (int i = 0; i < ndim; i++) {
        const Value *size = item(m, tuple, i);
        if (size->kind != V_INT || size->as.i < 0) return false;
        out[i] = (size_t)size->as.i;
    }
    return true;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks) -> t, whose name and file
 * are there already. */
static int read_tensor(const Machine *m, const Value *v, const Storages *storages, STTensor *t,
                       Error *e) {
    const Value *storage = item(m, v, 0), *offset = item(m, v, 1), *size = item(m, v, 2),
                *stride = item(m, v, 3);
    const int most = sizeof t->shape / sizeof *t->shape;
    size_t strides[sizeof t->shape / sizeof *t->shape];
    if (storage->kind != V_STORAGE || offset->kind != V_INT || offset->as.i < 0 ||
        size->kind != V_TUPLE)
        return fail(e,
                    "%s: tensor %s is rebuilt from %s, %s, %s, expected a storage, an offset of at "
                    "least 0 and a tuple of sizes",
                    t->file, t->name, kind_names[storage->kind], kind_names[offset->kind],
                    kind_names[size->kind]);
    t->ndim = size->as.items.n;
    if (t->ndim > most)
        return fail(e, "%s: tensor %s has %d dimensions, expected at most %d", t->file, t->name,
                    t->ndim, most);
    if (!read_sizes(m, size, t->ndim, t->shape) || !read_sizes(m, stride, t->ndim, strides))
        return fail(
            e,
            "%s: tensor %s: its sizes and its strides are not %d whole numbers of 0 or more each",
            t->file, t->name, t->ndim);
    t->n = 1;
    for (int i = 0; i < t->ndim; i++)
        if (__builtin_mul_overflow(t->n, t->shape[i], &t->n))
            return fail(e, "%s: tensor %s: its %d sizes multiply to more than 64 bits", t->file,
                        t->name, t->ndim);
    size_t expected =
        1;  // the last dimension is contiguous, and each one before spans those after it
    for (int i = t->ndim - 1; i >= 0; expected *= t->shape[i--])
        if (t->n && t->shape[i] != 1 && strides[i] != expected)
            return fail(e,
                        "%s: tensor %s: dimension %d has stride %zu, expected %zu: only C order is "
                        "read; save it again after "
                        "calling .contiguous()",
                        t->file, t->name, i, strides[i], expected);
    const Storage *from = find_storage(storages, item(m, storage, 2)->as.bytes);
    size_t begin = (size_t)offset->as.i;
    if (begin > from->n || t->n > from->n - begin)
        return fail(e,
                    "%s: tensor %s has %zu elements from %zu on, but its storage has %zu; the file "
                    "is damaged: fetch it again",
                    t->file, t->name, t->n, begin, from->n);
    t->type = from->type->type;
    snprintf(t->type_name, sizeof t->type_name, "%s", from->type->type_name);
    t->data =
        from->data +
        begin *
            from->type->bytes;  // these products are within the file: the storage was found there
    t->bytes = t->n * from->type->bytes;
    return 0;
}

/* The keys of the state dict become names. */
static int read_names(const Machine *m, const Value *dict, TorchTensors *t, Error *e) {
    char text[SHOWN + 1];
    size_t total = 0;
    t->count = 0;
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next, t->count++) {
        const Value *name = &m->value[m->item[at].value],
                    *value = &m->value[m->item[m->item[at].next].value];
        if (name->kind != V_TEXT)
            return fail(e, "%s: a key of the state dict is %s, expected the name of a tensor",
                        m->file, kind_names[name->kind]);
        if (!name->as.bytes.n || name->as.bytes.n > MAX_NAME)
            return fail(e, "%s: a tensor's name has %zu bytes, expected 1 to %d", m->file,
                        name->as.bytes.n, MAX_NAME);
        for (size_t i = 0; i < name->as.bytes.n; i++)
            if (name->as.bytes.at[i] < 32 || name->as.bytes.at[i] == 127)
                return fail(e, "%s: tensor %s: its name has the control character 0x%02x", m->file,
                            shown(text, name->as.bytes), name->as.bytes.at[i]);
        if (value->kind != V_TENSOR)
            return fail(e,
                        "%s: %s is %s, expected a tensor: this is not a model's state dict; save "
                        "model.state_dict() alone",
                        m->file, shown(text, name->as.bytes), kind_names[value->kind]);
        total += name->as.bytes.n + 1;
    }
    t->tensor = xcalloc((size_t)t->count, sizeof *t->tensor);
    char *put = t->names = xmalloc(total);
    STTensor *tensor = t->tensor;
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next, tensor++) {
        Bytes name = m->value[m->item[at].value].as.bytes;
        memcpy(put, name.at, name.n);
        put[name.n] = 0;
        tensor->name = put;
        tensor->file = m->file;
        put += name.n + 1;
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_names_differ(const TorchTensors *t, Error *e) {
    const char **names = xcalloc((size_t)t->count, sizeof *names);
    int status = 0;
    for (int i = 0; i < t->count; i++) names[i] = t->tensor[i].name;
    qsort(names, (size_t)t->count, sizeof *names, by_name);
    for (int i = 1; i < t->count && !status; i++)
        if (!strcmp(names[i], names[i - 1]))
            status = fail(e, "%s: tensor %s is there twice", t->tensor->file, names[i]);
    free(names);
    return status;
}

static int read_state_dict(const Machine *m, const Value *dict, const Storages *storages,
                           TorchTensors *t, Error *e) {
    if (read_names(m, dict, t, e) || check_names_differ(t, e)) return -1;
    int i = 0;
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next)
        if (read_tensor(m, &m->value[m->item[m->item[at].next].value], storages, &t->tensor[i++],
                        e))
            return -1;
    return 0;
}

/* The pickle of the state dict itself -> the dict, and the storages it refers to. NULL with e
 * filled. */
static const Value *run_state_dict(Machine *m, Storages *storages, Error *e) {
    const Value *dict = run(m, e);
    if (!dict || collect_storages(m, storages, e)) return NULL;
    if (dict->kind == V_DICT) return dict;
    fail(e, "%s: holds %s, expected the dict of a model's tensors; save model.state_dict()",
         m->file, kind_names[dict->kind]);
    return NULL;
}

/* ---- the ZIP container ----------------------------------------------------------------------- */

typedef struct {
    Bytes name, data;
    unsigned flags, method;  // bit 0 of flags: encrypted. method 0: stored as it is
} Entry;

typedef struct {
    const char *file;        // for messages
    Bytes bytes, directory;  // the whole file; the central directory
    Entry *entry;            // sorted by name
    size_t n;
} Zip;

static bool has_signature(const unsigned char *at, const char *two) {
    return at[0] == 'P' && at[1] == 'K' && !memcmp(at + 2, two, 2);
}

/*
 * The file ends with: the central directory; when sizes need 64 bits (torch.save always writes
 * these two) a 56-byte record with its place and a 20-byte record with that record's place; and a
 * 22-byte record with the directory's place in 32 bits, and a comment.
 */
static int find_directory(Zip *z, Error *e) {
    const unsigned char *begin = z->bytes.at;
    const size_t size = z->bytes.n;
    size_t end = SIZE_MAX;
    for (size_t comment = 0; comment <= 65535 && comment + 22 <= size && end == SIZE_MAX;
         comment++) {
        const unsigned char *at = begin + size - 22 - comment;
        if (has_signature(at, "\5\6") && little_endian(at + 20, 2) == comment)
            end = size - 22 - comment;
    }
    if (end == SIZE_MAX)
        return fail(e,
                    "%s: a ZIP file of %zu bytes without the directory at its end; it was probably "
                    "cut short: fetch it again",
                    z->file, size);
    uint64_t n = little_endian(begin + end + 10, 2), bytes = little_endian(begin + end + 12, 4),
             at = little_endian(begin + end + 16, 4);
    if (end >= 20 && has_signature(begin + end - 20, "\6\7")) {
        uint64_t record = little_endian(begin + end - 20 + 8, 8);
        end -= 20;
        if (end < 56 || record > end - 56 || !has_signature(begin + record, "\6\6"))
            return fail(e,
                        "%s: the ZIP's 64-bit record should be at byte %llu, and is not; the file "
                        "is damaged: fetch it again",
                        z->file, (unsigned long long)record);
        n = little_endian(begin + record + 32, 8);
        bytes = little_endian(begin + record + 40, 8);
        at = little_endian(begin + record + 48, 8);
        end = record;
    }
    if (at > end || bytes > end - at || n > bytes / 46)
        return fail(e,
                    "%s: the ZIP's directory of %llu entries should take %llu bytes from byte %llu "
                    "on, but the file has room up to %zu; "
                    "it is damaged: fetch it again",
                    z->file, (unsigned long long)n, (unsigned long long)bytes,
                    (unsigned long long)at, end);
    z->directory = (Bytes){begin + at, bytes};
    z->n = n;
    return 0;
}

/* Sizes and places that are all ones in 32 bits stand in 64, in this order, in extra field 1:
 * (number, length, value) .. */
static bool read_wide(Bytes extra, uint64_t *const wide[], int n) {
    bool needed = false, found = false;
    for (int i = 0; i < n; i++) needed = needed || *wide[i] == UINT32_MAX;
    while (needed && !found && extra.n >= 4) {
        size_t number = little_endian(extra.at, 2), length = little_endian(extra.at + 2, 2);
        if (length > extra.n - 4) return false;
        const unsigned char *at = extra.at + 4;
        if (number == 1) {
            found = true;
            for (int i = 0; i < n; i++) {
                if (*wide[i] != UINT32_MAX) continue;
                if (length < 8) return false;
                *wide[i] = little_endian(at, 8);
                at += 8;
                length -= 8;
            }
        } else {
            extra = (Bytes){at + length, extra.n - 4 - length};
        }
    }
    return !needed || found;
}

/* The directory's next entry, *rest on -> out. Its data must lie before the directory. */
static int read_entry(const Zip *z, Bytes *rest, Entry *out, Error *e) {
    const unsigned char *at = rest->at, *begin = z->bytes.at;
    if (rest->n < 46 || !has_signature(at, "\1\2"))
        return fail(e,
                    "%s: byte %zu: no entry of the ZIP's directory here; the file is damaged: "
                    "fetch it again",
                    z->file, (size_t)(at - begin));
    size_t name = little_endian(at + 28, 2), extra = little_endian(at + 30, 2),
           comment = little_endian(at + 32, 2);
    uint64_t packed = little_endian(at + 20, 4), size = little_endian(at + 24, 4),
             local = little_endian(at + 42, 4);
    if (name + extra + comment > rest->n - 46)
        return fail(e, "%s: byte %zu: an entry's name is longer than the ZIP's directory", z->file,
                    (size_t)(at - begin));
    *out = (Entry){{at + 46, name},
                   {0},
                   (unsigned)little_endian(at + 8, 2),
                   (unsigned)little_endian(at + 10, 2)};
    *rest = (Bytes){at + 46 + name + extra + comment, rest->n - 46 - name - extra - comment};
    char text[SHOWN + 1];
    if (!read_wide((Bytes){at + 46 + name, extra}, (uint64_t *const[]){&size, &packed, &local}, 3))
        return fail(e, "%s: ZIP entry %s: its 64-bit sizes are missing", z->file,
                    shown(text, out->name));
    const size_t room = (size_t)(z->directory.at - begin);
    if (room < 30 || local > room - 30 || !has_signature(begin + local, "\3\4") ||
        little_endian(begin + local + 26, 2) != name)
        return fail(e,
                    "%s: ZIP entry %s should begin at byte %llu, and does not; the file is "
                    "damaged: fetch it again",
                    z->file, shown(text, out->name), (unsigned long long)local);
    size_t data = local + 30 + name +
                  little_endian(begin + local + 28, 2);  // the padding in between aligns the data
    if (data > room || packed > room - data)
        return fail(e,
                    "%s: ZIP entry %s takes %llu bytes from byte %zu on, but the directory follows "
                    "at %zu; the file is damaged: fetch it "
                    "again",
                    z->file, shown(text, out->name), (unsigned long long)packed, data, room);
    out->data = (Bytes){begin + data, packed};
    return 0;
}

static int by_entry_name(const void *a, const void *b) {
    return compare(((const Entry *)a)->name, ((const Entry *)b)->name);
}

static int read_entries(Zip *z, Error *e) {
    Bytes rest = z->directory;
    char text[SHOWN + 1];
    z->entry = xcalloc(z->n, sizeof *z->entry);
    for (size_t i = 0; i < z->n; i++)
        if (read_entry(z, &rest, &z->entry[i], e)) return -1;
    if (z->n) qsort(z->entry, z->n, sizeof *z->entry, by_entry_name);
    for (size_t i = 1; i < z->n; i++)
        if (same(z->entry[i - 1].name, z->entry[i].name))
            return fail(e, "%s: ZIP entry %s is there twice", z->file,
                        shown(text, z->entry[i].name));
    return 0;
}

/* ROOT/name -> its bytes. 0; 1 when there is no such entry; -1 with e filled when it cannot be
 * read. */
static int find_entry(const Zip *z, Bytes root, const char *name, Bytes more, Bytes *out,
                      Error *e) {
    Str full = {0};
    char text[SHOWN + 1];
    str_add(&full, (const char *)root.at, root.n);
    str_add(&full, name, strlen(name));
    str_add(&full, (const char *)more.at, more.n);
    const Entry key = {.name = {(const unsigned char *)full.s, full.n}};
    const Entry *found =
        z->n ? bsearch(&key, z->entry, z->n, sizeof *z->entry, by_entry_name) : NULL;
    free(full.s);
    if (!found) return 1;
    if (found->method || found->flags & 1)
        return fail(e,
                    "%s: ZIP entry %s is %s, expected it stored as it is, as torch.save does; "
                    "unpack and pack it again with zip -0",
                    z->file, shown(text, found->name),
                    found->flags & 1 ? "encrypted" : "compressed");
    *out = found->data;
    return 0;
}

/* The one directory that has a data.pkl: torch.save names it after the file it first wrote. */
static int find_root(const Zip *z, Bytes *root, Error *e) {
    static const char wanted[] = "/data.pkl";
    const size_t n = sizeof wanted - 1;
    int found = 0;
    for (size_t i = 0; i < z->n; i++) {
        Bytes name = z->entry[i].name;
        if (name.n < n || memcmp(name.at + name.n - n, wanted, n) ||
            memchr(name.at, '/', name.n - n))
            continue;
        *root = (Bytes){name.at, name.n - n};
        found++;
    }
    return found == 1 ? 0
                      : fail(e,
                             "%s: a ZIP file with %d entries ROOT/data.pkl, expected 1: torch.save "
                             "did not write it",
                             z->file, found);
}

static int find_zip_storage(const Zip *z, Bytes root, Storage *s, Error *e) {
    char key[SHOWN + 1];
    Bytes data;
    int status = find_entry(z, root, "/data/", s->key, &data, e);
    if (status > 0)
        return fail(e, "%s: ZIP entry data/%s is missing, a storage of %zu of %s", z->file,
                    shown(key, s->key), s->n, s->type->type_name);
    if (status) return -1;
    if (data.n % s->type->bytes || data.n / s->type->bytes != s->n)
        return fail(e,
                    "%s: ZIP entry data/%s has %zu bytes, expected %zu of %s; the file is damaged: "
                    "fetch it again",
                    z->file, shown(key, s->key), data.n, s->n, s->type->type_name);
    s->data = data.at;
    return 0;
}

static int parse_zip(Zip *z, Machine *m, Storages *storages, TorchTensors *t, Error *e) {
    Bytes root, order;
    char text[SHOWN + 1];
    if (find_directory(z, e) || read_entries(z, e) || find_root(z, &root, e)) return -1;
    int status = find_entry(z, root, "/byteorder", (Bytes){0}, &order, e);
    if (!status && !is_text(order, "little"))
        return fail(e, "%s: its numbers are %s-endian, expected little-endian", z->file,
                    shown(text, order));
    if (status < 0 || find_entry(z, root, "/data.pkl", (Bytes){0}, &m->rest, e)) return -1;
    const Value *dict = run_state_dict(m, storages, e);
    if (!dict) return -1;
    for (size_t i = 0; i < storages->n; i++)
        if (find_zip_storage(z, root, &storages->v[i], e)) return -1;
    return read_state_dict(m, dict, storages, t, e);
}

/* ---- the older container --------------------------------------------------------------------- */

static const unsigned char magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9,
                                        0x20, 0x6a, 0xa8, 0x50, 0x19};  // 0x1950a86a20f9469cfc6c

/* {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {..}} */
static int check_machine(const Machine *m, const Value *dict, Error *e) {
    if (dict->kind != V_DICT)
        return fail(e, "%s: %s in the third pickle, expected a dict", m->file,
                    kind_names[dict->kind]);
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next) {
        const Value *key = &m->value[m->item[at].value],
                    *value = &m->value[m->item[m->item[at].next].value];
        if (key->kind == V_TEXT && is_text(key->as.bytes, "little_endian") &&
            !(value->kind == V_BOOL && value->as.i))
            return fail(e, "%s: its numbers are big-endian, expected little-endian", m->file);
    }
    return 0;
}

/* The storages follow the list of their keys, in its order: 8 bytes for the number of elements,
 * then the elements. */
static int find_legacy_storages(Machine *m, const Value *list, Storages *storages, Error *e) {
    char text[SHOWN + 1];
    if (list->kind != V_LIST)
        return fail(e, "%s: %s in the fifth pickle, expected the list of storages", m->file,
                    kind_names[list->kind]);
    for (int at = list->as.items.first; at >= 0; at = m->item[at].next) {
        const Value *key = &m->value[m->item[at].value];
        m->at = (size_t)(m->rest.at - m->begin);
        if (key->kind != V_TEXT)
            return refuse(m, e, "the key of a storage is %s, expected a string",
                          kind_names[key->kind]);
        Storage *s = find_storage(storages, key->as.bytes);
        if (!s || s->data)
            return refuse(m, e, "storage %s is there %s", shown(text, key->as.bytes),
                          s ? "twice" : "without a tensor that uses it");
        const unsigned char *n = take(m, 8, e);
        if (!n) return -1;
        if (little_endian(n, 8) != s->n)
            return refuse(
                m, e,
                "storage %s has %llu elements, expected %zu; the file is damaged: fetch it again",
                shown(text, s->key), (unsigned long long)little_endian(n, 8), s->n);
        if (s->n > m->rest.n / s->type->bytes)
            return refuse(m, e,
                          "storage %s takes %zu of %s, but only %zu bytes follow; the file was "
                          "probably cut short: fetch it again",
                          shown(text, s->key), s->n, s->type->type_name, m->rest.n);
        s->data = take(m, s->n * s->type->bytes, e);
    }
    for (size_t i = 0; i < storages->n; i++)
        if (!storages->v[i].data)
            return fail(e, "%s: storage %s is missing", m->file, shown(text, storages->v[i].key));
    return 0;
}

static int parse_legacy(Machine *m, Storages *storages, TorchTensors *t, Error *e) {
    const Value *v = run(m, e);
    if (!v) return -1;
    if (v->kind != V_LONG || v->as.bytes.n != sizeof magic ||
        memcmp(v->as.bytes.at, magic, sizeof magic))
        return fail(e,
                    "%s: a pickle without the magic number of torch.save: it was written by "
                    "another program",
                    m->file);
    if (!(v = run(m, e))) return -1;
    if (v->kind != V_INT || v->as.i != 1001)
        return fail(e, "%s: protocol %lld, expected 1001", m->file,
                    v->kind == V_INT ? (long long)v->as.i : -1);
    if (!(v = run(m, e)) || check_machine(m, v, e)) return -1;
    const Value *dict = run_state_dict(m, storages, e);
    if (!dict) return -1;
    int state_dict = (int)(dict - m->value);  // the next pickle may move the values
    if (!(v = run(m, e)) || find_legacy_storages(m, v, storages, e)) return -1;
    return read_state_dict(m, &m->value[state_dict], storages, t, e);
}

/* ---- either ---------------------------------------------------------------------------------- */

int torch_parse(TorchTensors *t, const void *bytes, size_t n, const char *name, Error *e) {
    const Bytes all = {bytes, n};
    Machine m = {.file = name, .begin = bytes, .rest = all};
    Zip z = {.file = name, .bytes = all};
    Storages storages = {0};
    int status;
    *t = (TorchTensors){0};
    if (n >= 4 && has_signature(all.at, "\3\4"))
        status = parse_zip(&z, &m, &storages, t, e);
    else if (n && all.at[0] == PROTO)
        status = parse_legacy(&m, &storages, t, e);
    else
        status = fail(e,
                      "%s has %zu bytes and begins like neither container of torch.save; perhaps "
                      "it is the pointer that Git LFS leaves, "
                      "or a page that says what went wrong: fetch the file itself",
                      name, n);
    if (status) torch_free(t);
    machine_free(&m);
    free(z.entry);
    free(storages.v);
    return status;
}

void torch_free(TorchTensors *t) {
    free(t->tensor);
    free(t->names);
    *t = (TorchTensors){0};
}
