/*
 * bundle.c - the small files of a model directory: see bundle.h.
 */
#include "files/bundle.h"
#include "files/json_file.h"

#include <dirent.h>
#include <fnmatch.h>
#include <unistd.h>

/* ---- a list of files ------------------------------------------------------------------------- */

static BundleFile *find(const Bundle *b, const char *name) {
    for (int i = 0; i < b->n; i++)
        if (!strcmp(b->v[i].name, name)) return &b->v[i];
    return NULL;
}

void bundle_set(Bundle *b, const char *name, const char *bytes, size_t n) {
    BundleFile *file = find(b, name);
    if (!file) {
        b->v = xrealloc(b->v, (size_t)b->n + 1, sizeof *b->v);
        file = &b->v[b->n++];
        *file = (BundleFile){.name = xstrdup(name)};
    }
    Str text = {0};
    str_add(&text, bytes, n);
    free(file->text.s);
    file->text = text;
}

void bundle_set_line(Bundle *b, const char *name, const char *line) {
    Str text = {0};
    str_printf(&text, "%s\n", line);
    bundle_set(b, name, text.s, text.n);
    free(text.s);
}

void bundle_remove_chat_templates(Bundle *b) {
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        if (fnmatch("chat_template*.jinja", b->v[i].name, 0)) {
            b->v[n++] = b->v[i];
            continue;
        }
        free(b->v[i].name);
        free(b->v[i].text.s);
    }
    b->n = n;
}

const Str *bundle_get(const Bundle *b, const char *name) {
    const BundleFile *file = find(b, name);
    return file ? &file->text : NULL;
}

void bundle_add(Bundle *b, const Bundle *more) {
    for (int i = 0; i < more->n; i++)
        bundle_set(b, more->v[i].name, more->v[i].text.s, more->v[i].text.n);
}

void bundle_free(Bundle *b) {
    for (int i = 0; i < b->n; i++) {
        free(b->v[i].name);
        free(b->v[i].text.s);
    }
    free(b->v);
    *b = (Bundle){0};
}

/* ---- reading --------------------------------------------------------------------------------- */

enum {
    MAX_TOKENIZER = 256 << 20,  // bytes of a tokenizer's file, as in tokenizer_files.c
    MAX_TEXT = 1 << 20,         // bytes of a chat template
    MAX_TEMPLATES = 64,         // files chat_template*.jinja
};

/* The files that from_pretrained looks for. */
static const struct {
    const char *name;
    size_t limit;
} companions[] = {
    {"config.json", MAX_CONFIG},           {"vocab.json", MAX_TOKENIZER},
    {"merges.txt", MAX_TOKENIZER},         {"tokenizer.json", MAX_TOKENIZER},
    {"tokenizer_config.json", MAX_CONFIG}, {"special_tokens_map.json", MAX_CONFIG},
    {"added_tokens.json", MAX_CONFIG},     {"generation_config.json", MAX_CONFIG},
    {"template.txt", MAX_TEMPLATE},
};

enum { COMPANIONS = sizeof companions / sizeof *companions };

/* Does a file of the resolved directory `dir`, whose own resolved path is `path`, belong to it? In
   Hugging Face's cache MODEL/snapshots/REVISION/FILE is a link to MODEL/blobs/HASH. */
static bool belongs(const char *dir, const char *path) {
    static const char blobs[] = "/blobs/";
    const size_t n = strlen(dir);
    if (!strncmp(path, dir, n) && (path[n] == '/' || (n && path[n - 1] == '/'))) return true;
    const char *snapshots = strstr(dir, "/snapshots/");
    const size_t model = snapshots ? (size_t)(snapshots - dir) : 0;
    return snapshots && !strncmp(path, dir, model) &&
           !strncmp(path + model, blobs, sizeof blobs - 1);
}

bool bundle_leads_out(const char *dir, const char *path) {
    char *resolved = real_path(dir), *real = real_path(path);
    const bool out = resolved && real && !belongs(resolved, real);
    free(resolved);
    free(real);
    return out;
}

/* Reads dir/name if it exists. 0, or -1 with e filled. */
static int read_companion(Bundle *b, const char *dir, const char *resolved, const char *name,
                          size_t limit, Error *e) {
    char *path = path_join(dir, name), *real = real_path(path);
    const size_t n = strlen(name);
    Str text = {0};
    int status = 0;
    if (!real && (errno == ENOENT || errno == ENOTDIR)) goto done;  // or a link to nothing
    if (!real)
        status = fail_errno(e, errno, "cannot reach %s: %s", path, strerror(errno));
    else if (!belongs(resolved, real))
        status = fail(e,
                      "%s is a link to %s, outside the model's directory, and its content would be "
                      "copied into the output; if you want that, replace the link by a copy",
                      path, real);
    else
        status = read_regular_file(path, limit, &text, e);
    if (!status && n > 5 && !strcmp(name + n - 5, ".json")) {
        // as reals: the model_max_length of a tokenizer_config.json may not fit an integer
        json_t *json = parse_json(text.s, text.n, JSON_DECODE_INT_AS_REAL, path, e);
        if (!json) status = -1;
        json_decref(json);
    }
    if (!status) bundle_set(b, name, text.s, text.n);
done:
    free(text.s);
    free(real);
    free(path);
    return status;
}

static int is_chat_template(const struct dirent *entry) {
    return !fnmatch("chat_template*.jinja", entry->d_name, 0);
}

int bundle_read(const char *dir, Bundle *b, Error *e) {
    char *resolved = real_path(dir);
    struct dirent **list = NULL;
    int status = 0, n = resolved ? scandir(dir, &list, is_chat_template, alphasort) : -1;
    if (n < 0) status = fail_errno(e, errno, "cannot list %s: %s", dir, strerror(errno));
    if (n > MAX_TEMPLATES)
        status =
            fail(e, "%s has %d files chat_template*.jinja, the limit is %d", dir, n, MAX_TEMPLATES);
    for (int i = 0; i < COMPANIONS && !status; i++)
        status = read_companion(b, dir, resolved, companions[i].name, companions[i].limit, e);
    for (int i = 0; i < n && !status; i++)
        status = read_companion(b, dir, resolved, list[i]->d_name, MAX_TEXT, e);
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
    free(resolved);
    if (status) bundle_free(b);
    return status;
}

/* ---- a directory that a program of ours has written ------------------------------------------ */

/* A directory with neither of these does not load. */
static const char *const configs[] = {"config.json", "adapter_config.json"};

static const char *const weight_files[] = {"model.safetensors", "adapter_model.safetensors",
                                           "adapter.safetensors"};

enum { CONFIGS = 2, WEIGHTS = 3, KNOWN = CONFIGS + WEIGHTS + COMPANIONS - 1 };

/* The names of the files that our programs write as a result, the configs first. */
static const char *known_name(int i) {
    if (i < CONFIGS) return configs[i];
    if (i < CONFIGS + WEIGHTS) return weight_files[i - CONFIGS];
    return companions[1 + i - CONFIGS - WEIGHTS].name;
}

bool bundle_owns(const char *name) {
    bool owns = !fnmatch("chat_template*.jinja", name, 0);
    for (int i = 0; i < KNOWN; i++) owns |= !strcmp(name, known_name(i));
    return owns;
}

const char *bundle_found(const char *dir) {
    for (int i = 0; i < KNOWN; i++)
        if (exists_in(dir, known_name(i))) return known_name(i);
    return NULL;
}

bool bundle_loads(const char *dir) {
    return exists_in(dir, configs[0]) || exists_in(dir, configs[1]);
}

/* Removes dir/name. 0, also when there is none; or -1 with e filled. */
static int remove_file(const char *dir, const char *name, Error *e) {
    char *path = path_join(dir, name);
    const bool bad = unlink(path) && errno != ENOENT && errno != ENOTDIR;
    const int status =
        bad ? fail_errno(e, errno, "cannot remove %s: %s", path, strerror(errno)) : 0;
    free(path);
    return status;
}

/* Removes what makes dir load. */
static int invalidate(const char *dir, Error *e) {
    for (int i = 0; i < CONFIGS; i++)
        if (remove_file(dir, configs[i], e)) return -1;
    char *path = path_join(dir, configs[0]);
    sync_directory_of(path);
    free(path);
    return 0;
}

/* What dir may hold of a result: the known names, the configs first, and its chat templates. */
typedef struct {
    struct dirent **templates;
    int n;
} Results;

static Results results_in(const char *dir) {
    Results r = {0};
    r.n = KNOWN + list_directory(dir, is_chat_template, NULL, &r.templates);
    return r;
}

static const char *result_name(const Results *r, int i) {
    return i < KNOWN ? known_name(i) : r->templates[i - KNOWN]->d_name;
}

static void results_free(Results *r) {
    for (int i = KNOWN; i < r->n; i++) free(r->templates[i - KNOWN]);
    free(r->templates);
}

void bundle_clear(const char *dir, bool (*keep)(const void *context, const char *path),
                  const void *context) {
    Results r = results_in(dir);
    for (int i = 0; i <= r.n; i++) {
        char *path = path_join(dir, i < r.n ? result_name(&r, i) : RUN_FILE);
        if (!keep || !keep(context, path)) unlink(path);
        free(path);
    }
    results_free(&r);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Does dir/name hold exactly this text? */
static bool is_there(const char *dir, const BundleFile *file) {
    char *path = path_join(dir, file->name);
    Str old = {0};
    const bool same = !read_regular_file(path, file->text.n, &old, NULL) && old.n == file->text.n &&
                      !memcmp(old.s, file->text.s, old.n);
    free(old.s);
    free(path);
    return same;
}

static bool is_config(const char *name) {
    return !strcmp(name, configs[0]) || !strcmp(name, configs[1]);
}

/* Writes a file of the bundle under its temporary name. 0, or -1 with e filled. */
static int write_aside(const char *dir, const BundleFile *file, NewFile *out, Error *e) {
    char *path = path_join(dir, file->name);
    int status = newfile_open(out, path, e);
    if (!status) {
        fwrite(file->text.s, 1, file->text.n, out->f);
        status = newfile_finish(out, e);
    }
    free(path);
    return status;
}

/* A name that a result may have, and the new one does not. */
static bool is_stale(const Bundle *b, const char *name, const char *weights) {
    return !find(b, name) && strcmp(name, weights);
}

/* Does dir hold a file of an earlier result that the new one does not have? */
static bool has_stale(const Bundle *b, const char *dir, const char *weights, const Results *old) {
    bool stale = false;
    for (int i = 0; i < old->n && !stale; i++)
        stale = is_stale(b, result_name(old, i), weights) &&
                (i >= KNOWN || exists_in(dir, known_name(i)));
    return stale;
}

/* Removes these files. The configs are gone already. */
static int remove_stale(const Bundle *b, const char *dir, const char *weights, const Results *old,
                        Error *e) {
    int status = 0;
    for (int i = CONFIGS; i < old->n && !status; i++)
        if (is_stale(b, result_name(old, i), weights))
            status = remove_file(dir, result_name(old, i), e);
    return status;
}

/* Renames the finished files into place, the configs last. A failure leaves no config. */
static int place(const Bundle *b, NewFile *aside, Error *e) {
    int status = 0;
    for (int last = 0; last < 2; last++)
        for (int i = 0; i < b->n; i++)
            if (aside[i].path && is_config(b->v[i].name) == (last == 1))
                status |= newfile_place(&aside[i], !status, e);
    return status;
}

int bundle_write(const Bundle *b, const char *dir, NewFile *weights, Error *e) {
    NewFile *aside = xcalloc((size_t)b->n, sizeof *aside);
    bool *same = xcalloc((size_t)b->n, sizeof *same);
    const char *name = strrchr(weights->path, '/') + 1;
    Results old = results_in(dir);
    bool changes = has_stale(b, dir, name, &old);
    int status = 0;
    for (int i = 0; i < b->n; i++) {
        same[i] = is_there(dir, &b->v[i]);
        changes |= !same[i];
    }
    for (int i = 0; i < b->n && !status; i++)
        if (changes && (is_config(b->v[i].name) || !same[i]))
            status = write_aside(dir, &b->v[i], &aside[i], e);
    if (!status) status = remove_file(dir, RUN_FILE, e);  // it would describe another model
    const bool written = !status;
    if (!status && changes) status = invalidate(dir, e);
    if (!status && changes) status = remove_stale(b, dir, name, &old, e);
    if (newfile_place(weights, !status, status ? NULL : e)) status = -1;
    if (status)
        for (int i = 0; i < b->n; i++) newfile_place(&aside[i], false, NULL);
    else
        status = place(b, aside, e);
    if (status && written && changes && e) {
        Error why = *e;
        fail(e, "%.900s; %s has no config now and does not load", why.text, dir);
    }
    results_free(&old);
    free(same);
    free(aside);
    return status;
}
