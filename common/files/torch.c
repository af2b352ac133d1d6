/*
 * torch.c - pytorch_model.bin: a reader of the state dicts that torch.save writes.
 *
 * The data are outside of the pickle, as storages that it refers to by key. There are two container
 * formats:
 *
 *   ZIP, since PyTorch 1.6: ROOT/data.pkl is the pickle, ROOT/data/KEY is a storage. All entries
 *   are stored, none is compressed.
 *
 *   Older: pickles one after the other, namely a magic number, 1001, a description of the machine,
 *   the state dict, and [KEY, ..]. Then for each of these keys follow the number of elements (8
 *   bytes) and the elements.
 *
 * Not implemented: the CRC of ZIP entries (torch.save can write wrong ones; a download is checked
 * by its SHA-256), views and strides other than those of C order, big-endian files, quantised and
 * sparse tensors, and whole pickled modules, which are code.
 */
#include "files/torch.h"
#include "files/mapped.h"
#include "files/pickle.h"

/* ---- Storages -------------------------------------------------------------------------------- */

typedef struct {
    Bytes key;
    const PickleGlobal *type;
    size_t n;                   // elements
    const unsigned char *data;  // NULL until found
} Storage;

typedef struct {
    Storage *v;  // sorted by key
    size_t n;
} Storages;

static int by_key(const void *a, const void *b) {
    return bytes_compare(((const Storage *)a)->key, ((const Storage *)b)->key);
}

static Storage *find_storage(const Storages *s, Bytes key) {
    return s->n ? bsearch(&(Storage){.key = key}, s->v, s->n, sizeof *s->v, by_key) : NULL;
}

static Storage storage_of(const Pickle *m, const PickleValue *v) {
    return (Storage){.key = pickle_item(m, v, 2)->as.bytes,
                     .type = &pickle_globals[pickle_item(m, v, 1)->as.i],
                     .n = (size_t)pickle_item(m, v, 4)->as.i};
}

/* Fills s with every storage that the pickle refers to, once each. 0, or -1 with e filled. */
static int collect_storages(const Pickle *m, Storages *s, Error *e) {
    size_t n = m->storages.n, kept = 0;
    char key[PICKLE_SHOWN + 1];
    s->v = xcalloc(n, sizeof *s->v);
    for (size_t i = 0; i < n; i++) s->v[i] = storage_of(m, &m->value[m->storages.v[i]]);
    if (n) qsort(s->v, n, sizeof *s->v, by_key);
    for (size_t i = 0; i < n; i++) {
        const Storage *before = kept ? &s->v[kept - 1] : NULL, *now = &s->v[i];
        if (!before || !bytes_equal(before->key, now->key))
            s->v[kept++] = *now;
        else if (before->type != now->type || before->n != now->n)
            return fail(e, "%s: storage %s is declared as %zu of %s, and as %zu of %s", m->file,
                        bytes_shown(key, now->key), before->n, before->type->type_name, now->n,
                        now->type->type_name);
    }
    s->n = kept;
    return 0;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

/* Reads a tuple of ndim sizes of at least 0 into out. */
static bool read_sizes(const Pickle *m, const PickleValue *tuple, int ndim, size_t *out) {
    if (tuple->kind != V_TUPLE || tuple->as.items.n != ndim) return false;
    for (int i = 0; i < ndim; i++) {
        const PickleValue *size = pickle_item(m, tuple, i);
        if (size->kind != V_INT || size->as.i < 0) return false;
        out[i] = (size_t)size->as.i;
    }
    return true;
}

/* Fills t from _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks). t->name and
 * t->file are already set. 0, or -1 with e filled. */
static int read_tensor(const Pickle *m, const PickleValue *v, const Storages *storages, STTensor *t,
                       Error *e) {
    const PickleValue *storage = pickle_item(m, v, 0), *offset = pickle_item(m, v, 1),
                      *size = pickle_item(m, v, 2), *stride = pickle_item(m, v, 3);
    const int most = sizeof t->shape / sizeof *t->shape;
    size_t strides[sizeof t->shape / sizeof *t->shape];
    if (storage->kind != V_STORAGE || offset->kind != V_INT || offset->as.i < 0 ||
        size->kind != V_TUPLE)
        return fail(e,
                    "%s: tensor %s is rebuilt from %s, %s, %s, expected a storage, an offset of at "
                    "least 0 and a tuple of sizes",
                    t->file, t->name, pickle_kind_names[storage->kind],
                    pickle_kind_names[offset->kind], pickle_kind_names[size->kind]);
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
    size_t expected = 1;  // the stride of dimension i in C order
    for (int i = t->ndim - 1; i >= 0; expected *= t->shape[i--])
        if (t->n && t->shape[i] != 1 && strides[i] != expected)
            return fail(e,
                        "%s: tensor %s: dimension %d has stride %zu, expected %zu: only C order is "
                        "read; save it again after calling .contiguous()",
                        t->file, t->name, i, strides[i], expected);
    const Storage *from = find_storage(storages, pickle_item(m, storage, 2)->as.bytes);
    size_t begin = (size_t)offset->as.i;
    if (begin > from->n || t->n > from->n - begin)
        return fail(
            e,
            "%s: tensor %s has %zu elements at offset %zu, but its storage has %zu; the file "
            "is damaged: fetch it again",
            t->file, t->name, t->n, begin, from->n);
    t->type = from->type->type;
    snprintf(t->type_name, sizeof t->type_name, "%s", from->type->type_name);
    // these products do not overflow: the storage is inside the file
    t->data = from->data + begin * from->type->bytes;
    t->bytes = t->n * from->type->bytes;
    return 0;
}

/* Allocates t->tensor and sets the tensors' names to the keys of the state dict. 0, or -1 with e
 * filled. */
static int read_names(const Pickle *m, const PickleValue *dict, TorchTensors *t, Error *e) {
    char text[PICKLE_SHOWN + 1];
    size_t total = 0;
    t->count = 0;
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next, t->count++) {
        const PickleValue *name = &m->value[m->item[at].value],
                          *value = &m->value[m->item[m->item[at].next].value];
        if (name->kind != V_TEXT)
            return fail(e, "%s: a key of the state dict is %s, expected the name of a tensor",
                        m->file, pickle_kind_names[name->kind]);
        if (!name->as.bytes.n || name->as.bytes.n > PICKLE_MAX_NAME)
            return fail(e, "%s: a tensor's name has %zu bytes, expected 1 to %d", m->file,
                        name->as.bytes.n, PICKLE_MAX_NAME);
        for (size_t i = 0; i < name->as.bytes.n; i++)
            if (name->as.bytes.at[i] < 32 || name->as.bytes.at[i] == 127)
                return fail(e, "%s: tensor %s: its name has the control character 0x%02x", m->file,
                            bytes_shown(text, name->as.bytes), name->as.bytes.at[i]);
        if (value->kind != V_TENSOR)
            return fail(e,
                        "%s: %s is %s, expected a tensor: this is not a model's state dict; save "
                        "model.state_dict() alone",
                        m->file, bytes_shown(text, name->as.bytes), pickle_kind_names[value->kind]);
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
            status = fail(e, "%s: tensor %s occurs twice", t->tensor->file, names[i]);
    free(names);
    return status;
}

static int read_state_dict(const Pickle *m, const PickleValue *dict, const Storages *storages,
                           TorchTensors *t, Error *e) {
    if (read_names(m, dict, t, e) || check_names_differ(t, e)) return -1;
    int i = 0;
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next)
        if (read_tensor(m, &m->value[m->item[m->item[at].next].value], storages, &t->tensor[i++],
                        e))
            return -1;
    return 0;
}

/* Runs the pickle of the state dict. Returns the dict and fills storages. NULL with e filled. */
static const PickleValue *run_state_dict(Pickle *m, Storages *storages, Error *e) {
    const PickleValue *dict = pickle_run(m, e);
    if (!dict || collect_storages(m, storages, e)) return NULL;
    if (dict->kind == V_DICT) return dict;
    fail(e, "%s: holds %s, expected the dict of a model's tensors; save model.state_dict()",
         m->file, pickle_kind_names[dict->kind]);
    return NULL;
}

/* ---- The ZIP container ----------------------------------------------------------------------- */

typedef struct {
    Bytes name, data;
    unsigned flags, method;  // bit 0 of flags: encrypted; method 0: not compressed
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
 * Finds the central directory. The file ends with the directory; then, when sizes need 64 bits
 * (torch.save always writes these two), a 56-byte record with the directory's offset and a 20-byte
 * record with that record's offset; then a 22-byte record with the directory's offset in 32 bits,
 * and a comment.
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
        return fail(
            e,
            "%s: the ZIP's directory of %llu entries should take %llu bytes from byte %llu, "
            "but the file has room up to %zu; it is damaged: fetch it again",
            z->file, (unsigned long long)n, (unsigned long long)bytes, (unsigned long long)at, end);
    z->directory = (Bytes){begin + at, bytes};
    z->n = n;
    return 0;
}

/* A size or offset that is all ones in 32 bits has its 64-bit value in extra field 1, in this
 * order: (number, length, value) .. */
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

/* Reads the directory's next entry, at *rest, into out and advances *rest. The entry's data must be
 * before the directory. 0, or -1 with e filled. */
static int read_entry(const Zip *z, Bytes *rest, Entry *out, Error *e) {
    const unsigned char *at = rest->at, *begin = z->bytes.at;
    if (rest->n < 46 || !has_signature(at, "\1\2"))
        return fail(e,
                    "%s: byte %zu: expected an entry of the ZIP's directory; the file is damaged: "
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
    char text[PICKLE_SHOWN + 1];
    if (!read_wide((Bytes){at + 46 + name, extra}, (uint64_t *const[]){&size, &packed, &local}, 3))
        return fail(e, "%s: ZIP entry %s: its 64-bit sizes are missing", z->file,
                    bytes_shown(text, out->name));
    const size_t room = (size_t)(z->directory.at - begin);
    if (room < 30 || local > room - 30 || !has_signature(begin + local, "\3\4") ||
        little_endian(begin + local + 26, 2) != name)
        return fail(e,
                    "%s: ZIP entry %s should begin at byte %llu, and does not; the file is "
                    "damaged: fetch it again",
                    z->file, bytes_shown(text, out->name), (unsigned long long)local);
    // the extra field is padding that aligns the data
    const size_t data = local + 30 + name + little_endian(begin + local + 28, 2);
    if (data > room || packed > room - data)
        return fail(e,
                    "%s: ZIP entry %s takes %llu bytes from byte %zu, but the directory follows at "
                    "%zu; the file is damaged: fetch it again",
                    z->file, bytes_shown(text, out->name), (unsigned long long)packed, data, room);
    out->data = (Bytes){begin + data, packed};
    return 0;
}

static int by_entry_name(const void *a, const void *b) {
    return bytes_compare(((const Entry *)a)->name, ((const Entry *)b)->name);
}

static int read_entries(Zip *z, Error *e) {
    Bytes rest = z->directory;
    char text[PICKLE_SHOWN + 1];
    z->entry = xcalloc(z->n, sizeof *z->entry);
    for (size_t i = 0; i < z->n; i++)
        if (read_entry(z, &rest, &z->entry[i], e)) return -1;
    if (z->n) qsort(z->entry, z->n, sizeof *z->entry, by_entry_name);
    for (size_t i = 1; i < z->n; i++)
        if (bytes_equal(z->entry[i - 1].name, z->entry[i].name))
            return fail(e, "%s: ZIP entry %s occurs twice", z->file,
                        bytes_shown(text, z->entry[i].name));
    return 0;
}

/* Sets *out to the bytes of entry root + name + more. 0; 1 when there is no such entry; -1 with e
 * filled when it cannot be read. */
static int find_entry(const Zip *z, Bytes root, const char *name, Bytes more, Bytes *out,
                      Error *e) {
    Str full = {0};
    char text[PICKLE_SHOWN + 1];
    str_add(&full, (const char *)root.at, root.n);
    str_add(&full, name, strlen(name));
    str_add(&full, (const char *)more.at, more.n);
    const Entry key = {.name = {(const unsigned char *)full.s, full.n}};
    const Entry *found =
        z->n ? bsearch(&key, z->entry, z->n, sizeof *z->entry, by_entry_name) : NULL;
    free(full.s);
    if (!found) return 1;
    if (found->method || found->flags & 1)
        return fail(
            e,
            "%s: ZIP entry %s is %s, expected it stored without compression, as by torch.save; "
            "unpack and pack it again with zip -0",
            z->file, bytes_shown(text, found->name), found->flags & 1 ? "encrypted" : "compressed");
    *out = found->data;
    return 0;
}

/* Finds the one directory with a data.pkl. torch.save names it after the file it first wrote. */
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
    char key[PICKLE_SHOWN + 1];
    Bytes data;
    int status = find_entry(z, root, "/data/", s->key, &data, e);
    if (status > 0)
        return fail(e, "%s: ZIP entry data/%s is missing, a storage of %zu of %s", z->file,
                    bytes_shown(key, s->key), s->n, s->type->type_name);
    if (status) return -1;
    if (data.n % s->type->bytes || data.n / s->type->bytes != s->n)
        return fail(e,
                    "%s: ZIP entry data/%s has %zu bytes, expected %zu of %s; the file is damaged: "
                    "fetch it again",
                    z->file, bytes_shown(key, s->key), data.n, s->n, s->type->type_name);
    s->data = data.at;
    return 0;
}

static int parse_zip(Zip *z, Pickle *m, Storages *storages, TorchTensors *t, Error *e) {
    Bytes root, order;
    char text[PICKLE_SHOWN + 1];
    if (find_directory(z, e) || read_entries(z, e) || find_root(z, &root, e)) return -1;
    int status = find_entry(z, root, "/byteorder", (Bytes){0}, &order, e);
    if (!status && !bytes_are(order, "little"))
        return fail(e, "%s: its numbers are %s-endian, expected little-endian", z->file,
                    bytes_shown(text, order));
    if (status < 0 || find_entry(z, root, "/data.pkl", (Bytes){0}, &m->rest, e)) return -1;
    const PickleValue *dict = run_state_dict(m, storages, e);
    if (!dict) return -1;
    for (size_t i = 0; i < storages->n; i++)
        if (find_zip_storage(z, root, &storages->v[i], e)) return -1;
    return read_state_dict(m, dict, storages, t, e);
}

/* ---- The older container --------------------------------------------------------------------- */

static const unsigned char magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9,
                                        0x20, 0x6a, 0xa8, 0x50, 0x19};  // 0x1950a86a20f9469cfc6c

/* {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {..}} */
static int check_machine(const Pickle *m, const PickleValue *dict, Error *e) {
    if (dict->kind != V_DICT)
        return fail(e, "%s: %s in the third pickle, expected a dict", m->file,
                    pickle_kind_names[dict->kind]);
    for (int at = dict->as.items.first; at >= 0; at = m->item[m->item[at].next].next) {
        const PickleValue *key = &m->value[m->item[at].value],
                          *value = &m->value[m->item[m->item[at].next].value];
        if (key->kind == V_TEXT && bytes_are(key->as.bytes, "little_endian") &&
            !(value->kind == V_BOOL && value->as.i))
            return fail(e, "%s: its numbers are big-endian, expected little-endian", m->file);
    }
    return 0;
}

/* The storages follow the list of their keys, in its order: 8 bytes for the number of elements,
 * then the elements. */
static int find_legacy_storages(Pickle *m, const PickleValue *list, Storages *storages, Error *e) {
    char text[PICKLE_SHOWN + 1];
    if (list->kind != V_LIST)
        return fail(e, "%s: %s in the fifth pickle, expected the list of storages", m->file,
                    pickle_kind_names[list->kind]);
    for (int at = list->as.items.first; at >= 0; at = m->item[at].next) {
        const PickleValue *key = &m->value[m->item[at].value];
        m->at = (size_t)(m->rest.at - m->begin);
        if (key->kind != V_TEXT)
            return pickle_refuse(m, e, "the key of a storage is %s, expected a string",
                                 pickle_kind_names[key->kind]);
        Storage *s = find_storage(storages, key->as.bytes);
        if (!s || s->data)
            return pickle_refuse(m, e, "storage %s %s", bytes_shown(text, key->as.bytes),
                                 s ? "occurs twice" : "is not used by any tensor");
        const unsigned char *n = pickle_take(m, 8, e);
        if (!n) return -1;
        if (little_endian(n, 8) != s->n)
            return pickle_refuse(
                m, e,
                "storage %s has %llu elements, expected %zu; the file is damaged: fetch it again",
                bytes_shown(text, s->key), (unsigned long long)little_endian(n, 8), s->n);
        if (s->n > m->rest.n / s->type->bytes)
            return pickle_refuse(
                m, e,
                "storage %s takes %zu of %s, but only %zu bytes follow; the file was "
                "probably cut short: fetch it again",
                bytes_shown(text, s->key), s->n, s->type->type_name, m->rest.n);
        s->data = pickle_take(m, s->n * s->type->bytes, e);
    }
    for (size_t i = 0; i < storages->n; i++)
        if (!storages->v[i].data)
            return fail(e, "%s: storage %s is missing", m->file,
                        bytes_shown(text, storages->v[i].key));
    return 0;
}

static int parse_legacy(Pickle *m, Storages *storages, TorchTensors *t, Error *e) {
    const PickleValue *v = pickle_run(m, e);
    if (!v) return -1;
    if (v->kind != V_LONG || v->as.bytes.n != sizeof magic ||
        memcmp(v->as.bytes.at, magic, sizeof magic))
        return fail(e,
                    "%s: a pickle without the magic number of torch.save: it was written by "
                    "another program",
                    m->file);
    if (!(v = pickle_run(m, e))) return -1;
    if (v->kind != V_INT || v->as.i != 1001)
        return fail(e, "%s: protocol %lld, expected 1001", m->file,
                    v->kind == V_INT ? (long long)v->as.i : -1);
    if (!(v = pickle_run(m, e)) || check_machine(m, v, e)) return -1;
    const PickleValue *dict = run_state_dict(m, storages, e);
    if (!dict) return -1;
    int state_dict = (int)(dict - m->value);  // the next run may move the values
    if (!(v = pickle_run(m, e)) || find_legacy_storages(m, v, storages, e)) return -1;
    return read_state_dict(m, &m->value[state_dict], storages, t, e);
}

/* ---- Either container ------------------------------------------------------------------------ */

int torch_parse(TorchTensors *t, const void *bytes, size_t n, const char *name, Error *e) {
    const Bytes all = {bytes, n};
    Pickle m = {.file = name, .begin = bytes, .rest = all};
    Zip z = {.file = name, .bytes = all};
    Storages storages = {0};
    int status;
    *t = (TorchTensors){0};
    if (n >= 4 && has_signature(all.at, "\3\4"))
        status = parse_zip(&z, &m, &storages, t, e);
    else if (n && all.at[0] == PICKLE_PROTO)
        status = parse_legacy(&m, &storages, t, e);
    else
        status =
            fail(e,
                 "%s has %zu bytes and begins like neither container of torch.save; perhaps "
                 "it is a Git LFS pointer or the error page of a download: fetch the file itself",
                 name, n);
    if (status) torch_free(t);
    pickle_free(&m);
    free(z.entry);
    free(storages.v);
    return status;
}

void torch_free(TorchTensors *t) {
    free(t->tensor);
    free(t->names);
    *t = (TorchTensors){0};
}

SafeTensors *torch_open(const char *path, Error *e) {
    const void *bytes = NULL;
    size_t size = 0;
    TorchTensors t;
    if (map_file(path, &bytes, &size, e)) return NULL;
    if (!torch_parse(&t, bytes, size, path, e))
        return st_of_tensors(path, bytes, size, t.tensor, t.count, t.names);
    unmap_file(bytes, size);
    return NULL;
}
