/*
 * pickle.h - the pickles of torch.save, read without executing them.
 *
 * A pickle is a program for a small stack machine. Python loads it by running it, and a hostile
 * pickle can run anything. But the pickle of a state dict only makes dicts, lists, tuples, numbers
 * and strings, and calls three functions: OrderedDict(), _rebuild_tensor_v2(storage, offset, size,
 * stride, ..) and _rebuild_parameter(tensor, ..). The machine here has those instructions and no
 * others. It records calls and never makes them, and it refuses every other name.
 */
#ifndef POSTTRAIN_PICKLE_H
#define POSTTRAIN_PICKLE_H

#include "files/safetensors.h"
#include "util.h"

enum {
    PICKLE_MAX_NAME = 255,  // bytes of a tensor's name or a storage's key
    PICKLE_PROTO = 0x80,    // the first byte of a pickle of protocol 2 or newer
    PICKLE_SHOWN = 80,      // characters from a file that a message repeats
};

#define DO_INSTEAD                                                                               \
    "nothing was executed. If you trust the file, load it with PyTorch and save the model with " \
    "save_pretrained"

/* ---- Bytes of a file ------------------------------------------------------------------------- */

typedef struct {
    const unsigned char *at;
    size_t n;
} Bytes;

bool bytes_equal(Bytes a, Bytes b);
bool bytes_are(Bytes a, const char *text);
int bytes_compare(Bytes a, Bytes b);  // as memcmp; a prefix comes first
/* Writes the beginning of a to out as a message shows it, on one line, and returns out. */
const char *bytes_shown(char out[PICKLE_SHOWN + 1], Bytes a);
uint64_t little_endian(const unsigned char *at, int bytes);

/* ---- Values ---------------------------------------------------------------------------------- */

typedef enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE_TYPE } GlobalKind;

/* A function or type that a pickle may name. */
typedef struct {
    const char *module, *name;
    GlobalKind kind;
    STType type;  // of a storage's elements
    const char *type_name;
    size_t bytes;  // per element
} PickleGlobal;

extern const PickleGlobal pickle_globals[];

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
} PickleKind;

extern const char *const pickle_kind_names[];  // "a tuple", by PickleKind

typedef struct {
    PickleKind kind;
    union {
        int64_t i;    // V_BOOL, V_INT; V_GLOBAL: index into pickle_globals
        Bytes bytes;  // V_TEXT, and the two's complement of V_LONG, in the file
        struct {
            int first, last, n;  // items. A dict's are key, value, key, value, ..; a storage's and
                                 // a tensor's are the arguments that it was made from
        } items;
    } as;
} PickleValue;

typedef struct {
    int value, next;  // of the same container; -1: the last
} PickleItem;

/* ---- The machine ----------------------------------------------------------------------------- */

/* Values and items are referred to by their index. Start with file, begin and rest set and all else
 * zero. */
typedef struct {
    const char *file;            // for messages
    const unsigned char *begin;  // of the file; positions in messages count from here
    Bytes rest;                  // not yet read
    size_t at;                   // position of the instruction that is being executed
    PickleValue *value;
    PickleItem *item;
    size_t values, values_room, items, items_room;
    Ints stack, marks;    // marks: heights of the stack
    Ints memo, storages;  // values
} Pickle;

/* Runs one pickle of m->rest, up to its STOP. Returns its value, which is valid until the next run,
 * or NULL with e filled. */
const PickleValue *pickle_run(Pickle *m, Error *e);
void pickle_free(Pickle *m);
/* Item i of a container that has more than i items. */
const PickleValue *pickle_item(const Pickle *m, const PickleValue *container, int i);
/* Takes the next n bytes of m->rest, or returns NULL with e filled. */
const unsigned char *pickle_take(Pickle *m, size_t n, Error *e);
/* Fills e with "file: byte N: " and the reason, where N is m->at. Returns -1. */
PRINTF_LIKE(3, 4) int pickle_refuse(const Pickle *m, Error *e, const char *format, ...);

#endif
