/*
 * hf_save.c - writes a model directory, and the moments of a training state. There is no writing of
 * shards.
 */
#include "files/hf.h"
#include "files/bundle.h"
#include "files/safetensors.h"
#include "model/gpt2.h"
#include "util.h"

enum { PIECE = 1 << 18 };  // floats copied at a time: 1 MiB stays in the L2 cache

/* ---- A directory ----------------------------------------------------------------------------- */

int hf_make_directory(const char *dir, Error *e) {
    if (!make_directories(dir)) return 0;
    return fail_errno(e, errno, "cannot make the directory %s: %s", dir, strerror(errno));
}

/* ---- A model --------------------------------------------------------------------------------- */

void hf_declare_tensor(STWriter *w, const GPT2Tensor *t, const char *prefix) {
    Str name = {0};
    const size_t shape[2] = {(size_t)t->shape[0], (size_t)t->shape[1]};
    str_printf(&name, "%s%s", prefix, t->name);
    st_declare(w, name.s, t->ndim, shape);
    free(name.s);
}

int hf_write_tensor(STWriter *w, const GPT2 *m, int i, GPT2Part part, Error *e) {
    const size_t total = gpt2_tensor(m, i)->n;
    float *piece = xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (size_t at = 0; at < total && !status; at += PIECE) {
        const size_t n = total - at < PIECE ? total - at : PIECE;
        gpt2_read(m, i, part, at, n, piece);
        status = st_write(w, piece, n, e);
    }
    free(piece);
    return status;
}

static int write_weights(STWriter *w, const GPT2 *m, const char *path, Error *e) {
    for (int i = 0; i < gpt2_own_tensors(m); i++)
        hf_declare_tensor(w, gpt2_tensor(m, i),
                          hf_is_head(gpt2_tensor(m, i)->name) ? "" : "transformer.");
    if (st_begin(w, path, e)) return -1;
    int status = 0;
    for (int i = 0; i < gpt2_own_tensors(m) && !status; i++)
        status = hf_write_tensor(w, m, i, GPT2_WEIGHT, e);
    return status;
}

int hf_save_bundle(const GPT2 *m, const char *dir, const Bundle *from, const Usage *usage,
                   Error *e) {
    const Str *before = from ? bundle_get(from, "config.json") : NULL;
    char *config = hf_config_text(gpt2_config(m), before, e), *path = NULL;
    if (!config) return -1;
    int status = hf_make_directory(dir, e);
    if (!status) {
        Bundle files = {0};
        NewFile weights;
        STWriter *w = st_new();
        path = path_join(dir, "model.safetensors");
        if (from) bundle_add(&files, from);
        bundle_set_line(&files, "config.json", config);
        status = usage ? usage_apply(&files, usage, e) : 0;
        if (!status) status = write_weights(w, m, path, e);
        if (status)
            st_end(w, false, NULL);
        else
            status = st_finish(w, &weights, e) || bundle_write(&files, dir, &weights, e) ? -1 : 0;
        bundle_free(&files);
    }
    free(path);
    free(config);
    return status;
}

int hf_save(const GPT2 *m, const char *dir, const char *from, Error *e) {
    Bundle files = {0};
    int status = from ? bundle_read(from, &files, e) : 0;
    if (!status) status = hf_save_bundle(m, dir, &files, NULL, e);
    bundle_free(&files);
    return status;
}

/* ---- Moments of a training state ------------------------------------------------------------- */

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
            if (gpt2_tensor(m, i)->trains) hf_declare_tensor(w, gpt2_tensor(m, i), before);
        free(before);
    }
}

int hf_write_moments(STWriter *w, const GPT2 *m, Error *e) {
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            if (gpt2_tensor(m, i)->trains)
                status = hf_write_tensor(w, m, i, moments[which].part, e);
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
        return fail(e, "%s: tensor %s%s is missing, but this run trains %s", st_path(st), before,
                    wanted->name, wanted->name);
    if (!wanted->trains)
        return fail(e, "%s: has tensor %s, but this run does not train %s", st_path(st), t->name,
                    wanted->name);
    if (!st_has_shape(t, wanted->ndim, shape))
        return fail(e, "%s: tensor %s has shape %s, expected %s, that of %s", st_path(st), t->name,
                    st_shape_text(a, t->ndim, t->shape), st_shape_text(b, wanted->ndim, shape),
                    wanted->name);
    if (t->type != ST_F32)
        return fail(e, "%s: tensor %s has type %s, expected F32", st_path(st), t->name,
                    t->type_name);
    return 0;
}

int hf_read_moments(const SafeTensors *st, GPT2 *m, const char *prefix, Error *e) {
    char *before[2] = {moment_prefix(prefix, 0), moment_prefix(prefix, 1)};
    int status = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++)
            status = check_moment(st, before[which], gpt2_tensor(m, i), e);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < gpt2_tensors(m) && !status; i++) {
            const GPT2Tensor *t = gpt2_tensor(m, i);
            const STTensor *moment = find_moment(st, before[which], t->name);
            if (t->trains) status = hf_read_tensor(moment, m, i, moments[which].part, e);
        }
    free(before[0]);
    free(before[1]);
    return status;
}
