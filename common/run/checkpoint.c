/*
 * checkpoint.c - checkpoints, resume, and the contents of the directory OUTPUT.
 *
 * OUTPUT/checkpoint-N is a model directory with one file more, state.safetensors: the moments, the
 * step, the flags that shape the run (the seed is one), fingerprints of the data, the figures of
 * the current log line and the stage's own numbers. It is written as OUTPUT/checkpoint-N.tmp-PID,
 * synced and renamed. Then all but the newest --save_total_limit are removed. When a checkpoint
 * cannot be written the program ends with 1, and the older ones stay.
 *
 * Left out on purpose: two processes sharing one OUTPUT.
 */
#define _GNU_SOURCE  // defines: nftw

#include "files/hf.h"
#include "run/private.h"
#include "run/technique.h"

#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_FILE "state.safetensors"
#define STATE_VERSION "2"

/* ---- directories ----------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *found, int type, struct FTW *where) {
    (void)found;
    (void)type;
    (void)where;
    return remove(path);
}

/* Removes a directory and everything in it. Links are removed, not followed. */
static int remove_tree(const char *path) {
    return nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool same_directory(const char *a, const char *b) {
    struct stat x, y;
    return a && b && !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* N of a name that is exactly checkpoint-N with 1 to 9 digits, or -1. */
static long checkpoint_number(const char *name) {
    if (strncmp(name, "checkpoint-", 11)) return -1;
    const char *text = name + 11;
    const size_t n = strlen(text);
    return n >= 1 && n <= 9 && strspn(text, "0123456789") == n ? strtol(text, NULL, 10) : -1;
}

static int is_checkpoint(const struct dirent *d) { return checkpoint_number(d->d_name) >= 0; }

static int is_unfinished(const struct dirent *d) { return newfile_writer(d->d_name, ".tmp-") >= 0; }

static int is_replaced(const struct dirent *d) {
    return !strncmp(d->d_name, "checkpoint-", 11) && newfile_writer(d->d_name, ".old-") >= 0;
}

/* Anything in OUTPUT that a new run would lose: all but a log and unfinished files. */
static int is_content(const struct dirent *d) {
    return strcmp(d->d_name, ".") && strcmp(d->d_name, "..") && strcmp(d->d_name, "log.jsonl") &&
           !is_unfinished(d);
}

/* For a scandir of checkpoints: 9 before 10. */
static int by_number(const struct dirent **a, const struct dirent **b) {
    const long x = checkpoint_number((*a)->d_name), y = checkpoint_number((*b)->d_name);
    return (x > y) - (x < y);
}

/* A scandir of a directory that may be absent. One that cannot be read ends the program: it must
   not be taken for an empty one. Released with free_list. */
static int list_directory(const char *dir, int (*wanted)(const struct dirent *),
                          struct dirent ***list) {
    const int n = scandir(dir, list, wanted, by_number);
    if (n >= 0) return n;
    if (errno != ENOENT && errno != ENOTDIR)
        die("cannot list %s: %s; nothing in it has been changed", dir, strerror(errno));
    *list = NULL;
    return 0;
}

static void free_list(struct dirent **list, int n) {
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
}

/* Has the process that wrote a file ended? One with our own id has: this process has written
   nothing yet, and in a container every run may be process 1. */
static bool has_ended(long writer) {
    return writer == getpid() || (kill((pid_t)writer, 0) && errno == ESRCH);
}

/* Repairs OUTPUT after a run that was killed between the two renames of put_in_place, or before it
   removed the checkpoint that it had replaced. checkpoint-N.old-PID becomes checkpoint-N again, or
   is removed if there is a new checkpoint-N. */
static void finish_replacing(const Run *run) {
    struct dirent **list;
    const char *model = run->state->checkpoint ? run->state->checkpoint : run->model;
    const int n = list_directory(run->output, is_replaced, &list);
    for (int i = 0; i < n; i++) {
        char *old = path_join(run->output, list[i]->d_name), *path = xstrdup(old);
        *strrchr(path, '.') = 0;
        const bool ours = exists_in(old, STATE_FILE) && !same_directory(old, model);
        if (ours && has_ended(newfile_writer(old, ".old-")) &&
            (access(path, F_OK) ? rename(old, path) : remove_tree(old)))
            fprintf(stderr, "note: cannot clean up %s: %s\n", old, strerror(errno));
        free(old);
        free(path);
    }
    free_list(list, n);
}

/* Removes unfinished files of processes that have ended: checkpoint-N.tmp-PID/ and FILE.tmp-PID. */
static void remove_unfinished(const char *output) {
    struct dirent **list;
    const int n = list_directory(output, is_unfinished, &list);
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        struct stat found;
        char *path = path_join(output, name);
        if (has_ended(newfile_writer(name, ".tmp-")) && !lstat(path, &found)) {
            if (S_ISREG(found.st_mode)) unlink(path);
            if (S_ISDIR(found.st_mode) && !strncmp(name, "checkpoint-", 11)) remove_tree(path);
        }
        free(path);
    }
    free_list(list, n);
}

/* Removes one of our checkpoints, never the directory that the model came from. It is renamed
   first, since half of one must not look complete. */
static void remove_checkpoint(const struct RunState *s, const char *path) {
    if (!exists_in(path, STATE_FILE) || same_directory(path, s->model_dir)) return;
    Str aside = {0};
    str_printf(&aside, "%s.tmp-%ld", path, (long)getpid());
    if (rename(path, aside.s) || remove_tree(aside.s))
        fprintf(stderr, "note: cannot remove %s: %s\n", path, strerror(errno));
    free(aside.s);
}

void checkpoint_rotate(const Run *run, int newest, int keep) {
    struct dirent **list;
    const int n = list_directory(run->output, is_checkpoint, &list);
    for (int i = n - 1, older = 0; i >= 0; i--) {
        char *path = path_join(run->output, list[i]->d_name);
        if (checkpoint_number(list[i]->d_name) < newest && exists_in(path, STATE_FILE) &&
            ++older >= keep)
            remove_checkpoint(run->state, path);
        free(path);
    }
    free_list(list, n);
}

int checkpoint_prepare_output(Run *run, Error *e) {
    const struct RunState *s = run->state;
    if (s->continues && run->overwrite_output_dir)
        return fail(e, "--resume continues what --overwrite_output_dir removes; give one of them");
    if (!run_writes(run)) return 0;
    if (make_directories(run->output))
        return fail(e, "cannot make --output %s: %s; choose a directory that you may write",
                    run->output, strerror(errno));
    if (!s->continues && !run->overwrite_output_dir) {
        struct dirent **list;
        const int n = list_directory(run->output, is_content, &list);
        if (n)
            fail(e,
                 "--output %s already holds %s; choose another --output, continue that run with "
                 "--resume, or start anew there with --overwrite_output_dir",
                 run->output, list[0]->d_name);
        free_list(list, n);
        if (n) return -1;
    }
    remove_unfinished(run->output);
    finish_replacing(run);
    char *path = path_join(run->output, "log.jsonl");
    NewFile probe;
    int status = newfile_open(&probe, path, e);
    if (!status) status = newfile_close(&probe, false, e);
    free(path);
    return status;
}

/* ---- what a checkpoint keeps ----------------------------------------------------------------- */

void run_fingerprint(Run *run, const char *flag, const char *path) {
    struct RunState *s = run->state;
    Str text = {0};
    if (path) {
        FILE *f = fopen(path, "rb");
        if (!f) die_usage("cannot open %s (--%s): %s", path, flag, strerror(errno));
        static unsigned char block[1 << 16];
        uint64_t hash = HASH_START, size = 0;
        for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0; size += n)
            hash = hash_bytes(hash, block, n);
        if (ferror(f)) die_usage("cannot read %s (--%s): %s", path, flag, strerror(errno));
        fclose(f);
        str_printf(&text, "%llu bytes, hash %016llx", (unsigned long long)size,
                   (unsigned long long)hash);
    } else {
        str_printf(&text, "no file");
    }
    s->fingerprint = (Fingerprint *)xrealloc(s->fingerprint, (size_t)s->fingerprint_n + 1,
                                             sizeof *s->fingerprint);
    s->fingerprint[s->fingerprint_n++] = (Fingerprint){flag, text.s};
}

void run_keep(Run *run, const char *name, double *value) {
    struct RunState *s = run->state;
    s->kept = (Kept *)xrealloc(s->kept, (size_t)s->kept_n + 1, sizeof *s->kept);
    s->kept[s->kept_n++] = (Kept){name, value};
}

/* The prefix of a network's moments in the state. To be freed. */
static char *moments_prefix(const Network *n, bool first) {
    Str prefix = {0};
    str_add(&prefix, "", 0);
    if (!first) str_printf(&prefix, "%s.", n->role);
    return prefix.s;
}

/* Notes one thing under "kind.name". */
static void note(STWriter *w, const char *kind, const char *name, const char *value) {
    Str key = {0};
    str_printf(&key, "%s.%s", kind, name);
    st_note(w, key.s, value);
    free(key.s);
}

static void note_number(STWriter *w, const char *key, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    st_note(w, key, text);
}

/* Is the network part of what the run makes? */
static bool is_saved(const struct RunState *s, int i) { return i == 0 || s->network[i]->trains; }

static int write_state(const Run *run, const char *path, Error *e) {
    const struct RunState *s = run->state;
    STWriter *w = st_new();
    char text[64], *figures = watch_text(run);
    st_note(w, "format_version", STATE_VERSION);
    st_note(w, "program", s->program->name);
    note_number(w, "step", run->step);
    note_number(w, "examples", s->examples);
    st_note(w, "figures", figures);
    free(figures);
    const Flag *f;
    for (int i = 0; (f = flags_at(s->flags, i)); i++) {
        if (f->type == FLAG_TITLE || f->may_change_on_resume) continue;
        const char *value = flag_text(f, text);
        note(w, "flag", f->name, value ? value : "");
    }
    for (int i = 0; i < s->fingerprint_n; i++)
        note(w, "data", s->fingerprint[i].flag, s->fingerprint[i].text);
    for (int i = 0; i < s->kept_n; i++) {
        snprintf(text, sizeof text, "%.17g", *s->kept[i].value);
        note(w, "keep", s->kept[i].name, text);
    }
    for (int i = 0; i < s->networks; i++) {
        if (!is_saved(s, i)) continue;
        char *prefix = moments_prefix(s->network[i], i == 0);
        hf_declare_moments(w, s->network[i]->model, prefix);
        free(prefix);
    }
    bool written = !st_begin(w, path, e);
    for (int i = 0; i < s->networks; i++)
        if (is_saved(s, i)) written = written && !hf_write_moments(w, s->network[i]->model, e);
    return st_end(w, written, written ? e : NULL) || !written ? -1 : 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

int checkpoint_save_models(const Run *run, const char *dir, bool all, Error *e) {
    const struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    const GPT2 *m = s->network[0]->model;
    int status = technique ? technique_save(technique, m, dir, run->model, e)
                           : hf_save(m, dir, s->model_dir, e);
    if (!status && s->template) status = hf_save_template(dir, s->template, e);
    for (int i = 1; i < s->networks && all && !status; i++) {
        const Network *n = s->network[i];
        if (!is_saved(s, i)) continue;
        char *path = path_join(dir, n->role);
        status = hf_save(n->model, path, n->from, e);
        free(path);
    }
    return status;
}

/* Writes the whole checkpoint into dir. */
static int write_checkpoint(const Run *run, const char *dir, Error *e) {
    if (mkdir(dir, 0777)) return fail(e, "cannot make %s: %s", dir, strerror(errno));
    char *state = path_join(dir, STATE_FILE);
    const bool written = !checkpoint_save_models(run, dir, true, e) && !write_state(run, state, e);
    if (written) sync_directory_of(state);
    free(state);
    return written ? 0 : -1;
}

/* Renames aside to path. An older path is renamed in its turn, and removed if it is one of our
   checkpoints. */
static int put_in_place(const char *aside, const char *path, Error *e) {
    Str old = {0};
    str_printf(&old, "%s.old-%ld", path, (long)getpid());
    bool replaces = !rename(path, old.s);
    int status = 0;
    if (rename(aside, path))
        status = fail(e, "cannot rename %s to %s: %s", aside, path, strerror(errno));
    if (status && replaces && !rename(old.s, path)) replaces = false;
    sync_directory_of(path);
    if (!status && replaces && exists_in(old.s, STATE_FILE))
        remove_tree(old.s);
    else if (replaces)
        fprintf(stderr, "note: the former %s is now %s\n", path, old.s);
    free(old.s);
    return status;
}

void run_begin_writing(Run *run) {
    struct RunState *s = run->state;
    if (s->begun || !run_writes(run)) return;
    s->begun = true;
    if (!s->continues) checkpoint_rotate(run, INT_MAX, 1);
    char *path = path_join(run->output, "log.jsonl");
    if (make_directories(run->output) || !(s->log = fopen(path, s->continues ? "ab" : "wb")))
        die("cannot write %s: %s; choose an --output that you may write", path, strerror(errno));
    free(path);
}

void run_save(Run *run, const char *name) {
    if (!run_writes(run)) return;
    Error e;
    run_begin_writing(run);
    char *dir = path_join(run->output, name);
    if (checkpoint_save_models(run, dir, false, &e)) die("%s", e.text);
    free(dir);
}

/* From now on tokenizer and configuration are copied from the new checkpoint, because the resumed
   one may be removed. */
static void forget_resumed_checkpoint(struct RunState *s, const char *path) {
    if (!s->checkpoint) return;
    free(s->model_dir);
    s->model_dir = xstrdup(path);
    for (int i = 1; i < s->networks; i++) {
        if (!is_saved(s, i)) continue;
        free(s->network[i]->from);
        s->network[i]->from = path_join(path, s->network[i]->role);
    }
}

void run_checkpoint(Run *run) {
    if (!run_writes(run)) return;
    struct RunState *s = run->state;
    run_begin_writing(run);
    if (fsync(fileno(s->log))) die("cannot write %s/log.jsonl: %s", run->output, strerror(errno));
    Error e;
    Str path = {0}, aside = {0};
    str_printf(&path, "%s/checkpoint-%d", run->output, run->step);
    str_printf(&aside, "%s.tmp-%ld", path.s, (long)getpid());
    if (write_checkpoint(run, aside.s, &e) || put_in_place(aside.s, path.s, &e)) {
        remove_tree(aside.s);
        die("%s is not written: %s; earlier checkpoints are complete: free some space and use "
            "--resume",
            path.s, e.text);
    }
    s->saved_step = run->step;
    forget_resumed_checkpoint(s, path.s);
    if (run->save_total_limit > 0) checkpoint_rotate(run, run->step, run->save_total_limit);
    run_clear_progress(run);
    printf("saved %s\n", path.s);
    fflush(stdout);
    free(path.s);
    free(aside.s);
}

/* ---- finding --------------------------------------------------------------------------------- */

/* Is every safetensors file of the checkpoint complete? */
static int check_checkpoint(const char *dir, Error *e) {
    const char *const names[] = {STATE_FILE, "model.safetensors", "adapter_model.safetensors",
                                 "adapter.safetensors"};
    for (int i = 0; i < 4; i++) {
        if (i && !exists_in(dir, names[i])) continue;  // hf_load checks a large model's shards
        char *path = path_join(dir, names[i]);
        SafeTensors *st = st_open(path, e);
        free(path);
        if (!st) return -1;
        st_close(st);
    }
    return 0;
}

/* The newest complete checkpoint of OUTPUT, to be freed; NULL with e filled. */
static char *newest_checkpoint(const char *output, Error *e) {
    struct dirent **list;
    const int n = list_directory(output, is_checkpoint, &list);
    char *found = NULL;
    fail(e, "--resume: there is no checkpoint in %s; leave out --resume to start a run there",
         output);
    for (int i = n - 1; i >= 0 && !found; i--) {
        Error broken;
        char *dir = path_join(output, list[i]->d_name);
        if (!check_checkpoint(dir, &broken)) {
            found = dir;
        } else {
            fprintf(stderr, "note: %s is incomplete and is skipped: %s\n", dir, broken.text);
            fail(e, "--resume: no checkpoint in %s is complete; of the last one tried: %s", output,
                 broken.text);
            free(dir);
        }
    }
    free_list(list, n);
    return found;
}

int checkpoint_find(Run *run, Error *e) {
    struct RunState *s = run->state;
    if (!run->resume || !*run->resume) return 0;
    if (!strcmp(run->resume, "latest")) {
        if (!run->output || !*run->output)
            return fail(e,
                        "--resume without a directory needs an --output, whose newest checkpoint "
                        "it resumes");
        s->checkpoint = newest_checkpoint(run->output, e);
    } else if (!check_checkpoint(run->resume, e)) {
        s->checkpoint = xstrdup(run->resume);
    }
    if (!s->checkpoint) return -1;
    char *parent = path_join(s->checkpoint, "..");
    s->continues = same_directory(parent, run->output);
    free(parent);
    return 0;
}

char *checkpoint_model_dir(const Run *run, const char *role) {
    return run->state->checkpoint ? path_join(run->state->checkpoint, role) : NULL;
}

/* ---- resume ---------------------------------------------------------------------------------- */

/* Ends the program unless the checkpoint's value of `key` is `now`. what: its name in messages. */
static void must_agree(const Run *run, const SafeTensors *st, const char *key, const char *what,
                       const char *now) {
    const char *then = st_metadata(st, key);
    if (then && !strcmp(then, now)) return;
    const char *quote = then ? "\"" : "";
    die_usage(
        "cannot resume %s: %s is \"%s\" now and %s%s%s in the checkpoint; use the same, or start "
        "anew in another --output",
        run->state->checkpoint, what, now, quote, then ? then : "missing", quote);
}

static void must_agree_on(const Run *run, const SafeTensors *st, const char *kind, const char *name,
                          const char *shown, const char *now) {
    Str key = {0}, what = {0};
    str_printf(&key, "%s.%s", kind, name);
    str_printf(&what, "%s%s", shown, name);
    must_agree(run, st, key.s, what.s, now);
    free(key.s);
    free(what.s);
}

static void check_agreement(const Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    char text[64];
    must_agree(run, st, "format_version", "the format of " STATE_FILE, STATE_VERSION);
    must_agree(run, st, "program", "the program", s->program->name);
    const Flag *f;
    for (int i = 0; (f = flags_at(s->flags, i)); i++) {
        if (f->type == FLAG_TITLE || f->may_change_on_resume) continue;
        const char *value = flag_text(f, text);
        must_agree_on(run, st, "flag", f->name, "--", value ? value : "");
    }
    for (int i = 0; i < s->fingerprint_n; i++)
        must_agree_on(run, st, "data", s->fingerprint[i].flag, "the content of --",
                      s->fingerprint[i].text);
    snprintf(text, sizeof text, "%d", s->examples);
    must_agree(run, st, "examples", "the number of examples", text);
}

static void restore_numbers(Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    for (int i = 0; i < s->kept_n; i++) {
        Str key = {0};
        str_printf(&key, "keep.%s", s->kept[i].name);
        const char *text = st_metadata(st, key.s);
        char *end = NULL;
        const double value = text ? strtod(text, &end) : 0;
        if (!text || end == text || *end)
            die_usage("cannot resume %s: it holds no number %s", s->checkpoint, key.s);
        *s->kept[i].value = value;
        free(key.s);
    }
    const char *figures = st_metadata(st, "figures");
    if (!figures || watch_restore(run, figures))
        die_usage(
            "cannot resume %s: it is damaged, its figures are \"%.200s\"; resume from an earlier "
            "checkpoint",
            s->checkpoint, figures ? figures : "");
}

void run_cut_lines(const Run *run, const char *path) {
    char *line = NULL;
    size_t room = 0;
    FILE *old = fopen(path, "rb");
    if (!old && errno != ENOENT) die("cannot open %s: %s", path, strerror(errno));
    if (old) {
        NewFile new;
        Error e;
        if (newfile_open(&new, path, &e)) die("%s", e.text);
        for (ssize_t n; (n = getline(&line, &room, old)) > 0;) {
            int step;
            if (line[n - 1] == '\n' && sscanf(line, "{\"step\": %d", &step) == 1 &&
                step <= run->step)
                fwrite(line, 1, (size_t)n, new.f);
        }
        if (!feof(old)) {
            newfile_close(&new, false, &e);
            die("cannot read %s: %s", path, strerror(errno));
        }
        fclose(old);
        if (newfile_close(&new, true, &e)) die("%s", e.text);
    }
    free(line);
}

void checkpoint_resume(Run *run) {
    struct RunState *s = run->state;
    if (!s->checkpoint) return;
    Error e;
    char *path = path_join(s->checkpoint, STATE_FILE);
    SafeTensors *st = st_open(path, &e);
    if (!st) die_usage("cannot resume: %s", e.text);
    check_agreement(run, st);
    const char *text = st_metadata(st, "step");
    long long step = 0;
    if (!text || !read_whole(text, &step) || step < 0 || step > run->total_steps)
        die_usage("%s: its step is \"%s\"; expected a number from 0 to %d", path, text ? text : "",
                  run->total_steps);
    for (int i = 0; i < s->networks; i++) {
        if (!is_saved(s, i)) continue;
        char *prefix = moments_prefix(s->network[i], i == 0);
        if (hf_read_moments(st, s->network[i]->model, prefix, &e))
            die_usage("cannot resume %s: %s", s->checkpoint, e.text);
        free(prefix);
    }
    restore_numbers(run, st);
    st_close(st);
    run->step = s->saved_step = (int)step;
    if (s->continues && run_writes(run)) {
        char *log = path_join(run->output, "log.jsonl");
        run_cut_lines(run, log);
        free(log);
        // a kill may have come before the last rotation
        if (run->save_total_limit > 0) checkpoint_rotate(run, run->step, run->save_total_limit);
    }
    printf("resuming %s at step %d of %d\n", s->checkpoint, run->step, run->total_steps);
    fflush(stdout);
    free(path);
}
