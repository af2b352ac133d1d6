/*
 * contents.c - the directory OUTPUT: what an earlier run left there, and what takes its place.
 *
 * With --overwrite_output_dir the result of an earlier run stays until the first checkpoint of this
 * one, or best/, is whole. Then that is called NAME.posttrain-new-PID, the older result is removed,
 * and it gets its name. A killed run leaves one of the two, and the next run completes the change.
 * Until then log.jsonl and transcripts.jsonl have the names of unfinished files.
 */
#define _GNU_SOURCE  // defines: nftw

#include "files/bundle.h"
#include "run/lock.h"
#include "run/private.h"
#include "text/jsonl.h"

#include <dirent.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#define REPLACED_MARK ".posttrain-old-"
#define FIRST_MARK ".posttrain-new-"

/* ---- directories ----------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *found, int type, struct FTW *where) {
    (void)found;
    (void)type;
    (void)where;
    return remove(path);
}

int remove_tree(const char *path) { return nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

/* N of a name that is exactly checkpoint-N with 1 to 9 digits, or -1. */
static long checkpoint_number(const char *name) {
    if (strncmp(name, "checkpoint-", 11)) return -1;
    const char *text = name + 11;
    const size_t n = strlen(text);
    return n >= 1 && n <= 9 && strspn(text, "0123456789") == n ? strtol(text, NULL, 10) : -1;
}

static int is_checkpoint(const struct dirent *d) { return checkpoint_number(d->d_name) >= 0; }

static int is_unfinished(const struct dirent *d) {
    return newfile_writer(d->d_name, UNFINISHED_MARK) >= 0;
}

static int is_replaced(const struct dirent *d) {
    return !strncmp(d->d_name, "checkpoint-", 11) && newfile_writer(d->d_name, REPLACED_MARK) >= 0;
}

static int is_first(const struct dirent *d) { return newfile_writer(d->d_name, FIRST_MARK) >= 0; }

/* What a run makes, and a later one replaces. */
static int is_replaceable(const struct dirent *d) {
    return run_owns(d->d_name) || bundle_owns(d->d_name) || !strcmp(d->d_name, RUN_FILE) ||
           !strcmp(d->d_name, "transcripts.jsonl");
}

/* Anything in OUTPUT that a new run would lose: all but a log and unfinished files. */
static int is_content(const struct dirent *d) {
    return strcmp(d->d_name, ".") && strcmp(d->d_name, "..") && strcmp(d->d_name, "log.jsonl") &&
           !is_unfinished(d);
}

/* For a list of checkpoints: 9 before 10. */
static int by_number(const struct dirent **a, const struct dirent **b) {
    const long x = checkpoint_number((*a)->d_name), y = checkpoint_number((*b)->d_name);
    return (x > y) - (x < y);
}

void free_entries(struct dirent **list, int n) {
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
}

int checkpoint_list(const char *dir, struct dirent ***list) {
    return list_directory(dir, is_checkpoint, by_number, list);
}

/* Is this the number of no other living process? Our own counts as free: this process has written
   nothing yet, and in a container every run may be process 1. */
static bool is_free(long process) { return process == getpid() || process_ended(process); }

/* Has the run ended that wrote a file or directory in OUTPUT? A living one would keep OUTPUT, so
   where this process has its lock the answer is yes, whoever has that number now. Where the file
   system has no locks the number must be free. */
static bool has_ended(const char *output, long writer) {
    return lock_holds(output) || is_free(writer);
}

/* Removes one of our checkpoints, never the directory that the model came from. It is renamed
   first, since half of one must not look complete. */
static void remove_checkpoint(const struct RunState *s, const char *path) {
    if (!exists_in(path, STATE_FILE) || same_file(path, s->model_dir)) return;
    char *aside = newfile_name(path, UNFINISHED_MARK, getpid());
    if (rename(path, aside) || remove_tree(aside))
        fprintf(stderr, "note: cannot remove %s: %s\n", path, strerror(errno));
    free(aside);
}

static int rename_directory(const char *from, const char *to, Error *e) {
    if (!rename(from, to)) return 0;
    return fail_errno(e, errno, "cannot rename %s to %s: %s", from, to, strerror(errno));
}

/* Renames aside to path. An older path is renamed in its turn, and removed if it is one of our
   checkpoints. */
static int put_in_place(const char *aside, const char *path, Error *e) {
    char *old = newfile_name(path, REPLACED_MARK, getpid());
    bool replaces = !rename(path, old);
    const int status = rename_directory(aside, path, e);
    if (status && replaces && !rename(old, path)) replaces = false;
    sync_directory_of(path);
    if (!status && replaces && exists_in(old, STATE_FILE))
        remove_tree(old);
    else if (replaces)
        fprintf(stderr, "note: the former %s is now %s\n", path, old);
    free(old);
    return status;
}

/* ---- the result of an earlier run in OUTPUT -------------------------------------------------- */

/* The directories that a run may write into OUTPUT besides checkpoints. */
static const char *const parts[] = {"best", "critic"};

bool run_owns(const char *name) {
    return !strcmp(name, parts[0]) || !strcmp(name, parts[1]) || checkpoint_number(name) >= 0;
}

bool run_records(const char *name) {
    return !strcmp(name, RUN_FILE) || !strcmp(name, "log.jsonl") ||
           !strcmp(name, "transcripts.jsonl");
}

/* Is path this file or directory, whose path has no links, or something in it? */
static bool is_within(const char *wanted, const char *path) {
    char *real = real_path(path);
    const size_t n = strlen(wanted);
    const bool within = real && !strncmp(real, wanted, n) && (!real[n] || real[n] == '/');
    free(real);
    return within;
}

/* Does a flag of the run, other than --output, name this file or directory or something in it, or
   do so in a list of paths? */
static bool is_in_use(const void *context, const char *path) {
    const Run *run = context;
    char *wanted = real_path(path);
    bool used = false;
    const Flag *f;
    for (int i = 0; wanted && !used && (f = flags_at(run->state->flags, i)); i++) {
        if (f->type != FLAG_TEXT || !strcmp(f->name, "output")) continue;
        const char *list = *(const char **)f->value;
        for (char *one; !used && (one = take_path(&list)); free(one)) used = is_within(wanted, one);
    }
    free(wanted);
    return used;
}

/* Removes the result of an earlier run, of whichever program, with its checkpoints. model: also
   that in OUTPUT itself. What this run reads stays: a --model in OUTPUT is replaced as a whole when
   the new one is complete. */
static void remove_result(const Run *run, bool model) {
    struct dirent **list;
    if (model && !same_file(run->output, run->model)) bundle_clear(run->output, is_in_use, run);
    for (int i = 0; i < 2; i++) {
        char *part = path_join(run->output, parts[i]);
        if (!is_in_use(run, part)) {
            bundle_clear(part, NULL, NULL);
            rmdir(part);  // a directory with files that are not ours stays
        }
        free(part);
    }
    char *transcripts = path_join(run->output, "transcripts.jsonl");
    if (!is_in_use(run, transcripts)) unlink(transcripts);
    free(transcripts);
    const int n = checkpoint_list(run->output, &list);
    for (int i = 0; i < n; i++) {
        char *path = path_join(run->output, list[i]->d_name);
        if (!is_in_use(run, path)) remove_checkpoint(run->state, path);
        free(path);
    }
    free_entries(list, n);
}

/* The same; and the files that the process `writer` has written from its beginning on get their
   names. */
static void replace_result(const Run *run, bool model, long writer) {
    static const char *const names[] = {"log.jsonl", "transcripts.jsonl"};
    remove_result(run, model);
    for (int i = 0; i < 2; i++) {
        char *path = path_join(run->output, names[i]);
        char *aside = newfile_name(path, UNFINISHED_MARK, writer);
        if (rename(aside, path) && errno != ENOENT)
            fprintf(stderr, "note: cannot rename %s to %s: %s\n", aside, path, strerror(errno));
        free(aside);
        free(path);
    }
}

void older_end(const Run *run, bool model) {
    replace_result(run, model, getpid());
    run->state->older = false;
}

int checkpoint_place(const Run *run, const char *aside, const char *path, Error *e) {
    if (!run->state->older) return put_in_place(aside, path, e);
    char *first = newfile_name(path, FIRST_MARK, getpid());
    int status = rename_directory(aside, first, e);
    sync_directory_of(path);
    if (!status) older_end(run, true);
    if (!status) status = put_in_place(first, path, e);
    free(first);
    return status;
}

char *run_path(const Run *run, const char *name) {
    char *path = path_join(run->output, name);
    if (!run->state->older) return path;
    char *aside = newfile_name(path, UNFINISHED_MARK, getpid());
    free(path);
    return aside;
}

/* ---- after a run that was killed ------------------------------------------------------------- */

/* Completes the change of a run that was killed when its first checkpoint or best/ took the place
   of an older result. With a config the older model is whole, or one that the killed run reads. */
static void finish_overwriting(const Run *run) {
    struct dirent **list;
    Error e;
    const int n = list_directory(run->output, is_first, by_number, &list);
    for (int i = 0; i < n; i++) {
        char *first = path_join(run->output, list[i]->d_name), *path = xstrdup(first);
        const long writer = newfile_writer(first, FIRST_MARK);
        *strrchr(path, '.') = 0;
        if (has_ended(run->output, writer)) {
            replace_result(run, !bundle_loads(run->output), writer);
            if (put_in_place(first, path, &e)) fprintf(stderr, "note: %s\n", e.text);
        }
        free(first);
        free(path);
    }
    free_entries(list, n);
}

/* Repairs OUTPUT after a run that was killed between the two renames of put_in_place, or before it
   removed the checkpoint that it had replaced. checkpoint-N.posttrain-old-PID becomes checkpoint-N
   again, or is removed if there is a new checkpoint-N. */
static void finish_replacing(const Run *run) {
    struct dirent **list;
    const char *model = run->state->checkpoint ? run->state->checkpoint : run->model;
    const int n = list_directory(run->output, is_replaced, by_number, &list);
    for (int i = 0; i < n; i++) {
        char *old = path_join(run->output, list[i]->d_name), *path = xstrdup(old);
        *strrchr(path, '.') = 0;
        const bool ours = exists_in(old, STATE_FILE) && !same_file(old, model);
        if (ours && has_ended(run->output, newfile_writer(old, REPLACED_MARK)) &&
            (access(path, F_OK) ? rename(old, path) : remove_tree(old)))
            fprintf(stderr, "note: cannot clean up %s: %s\n", old, strerror(errno));
        free(old);
        free(path);
    }
    free_entries(list, n);
}

/* Is it the name of an unfinished directory of a run? */
static bool is_part_of_run(const char *name) {
    return !strncmp(name, "checkpoint-", 11) || !strncmp(name, "best" UNFINISHED_MARK, 15);
}

/* Was the unfinished file or directory made by a run in `output`? Another file may be one that a
   flag names, and a process may be writing it that does not keep `output`. */
static bool is_of_run(const char *name) {
    char *whole = xstrndup(name, (size_t)(strrchr(name, '.') - name));
    const bool is = is_part_of_run(name) || bundle_owns(whole) || run_records(whole);
    free(whole);
    return is;
}

/* Removes unfinished files of processes that have ended: checkpoint-N.posttrain-PID/,
 * best.posttrain-PID/ and FILE.posttrain-PID. */
static void remove_unfinished(const char *output) {
    struct dirent **list;
    const int n = list_directory(output, is_unfinished, by_number, &list);
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        const long writer = newfile_writer(name, UNFINISHED_MARK);
        const bool ended = is_of_run(name) ? has_ended(output, writer) : is_free(writer);
        struct stat found;
        char *path = path_join(output, name);
        if (ended && !lstat(path, &found)) {
            if (S_ISREG(found.st_mode)) unlink(path);
            if (S_ISDIR(found.st_mode) && is_part_of_run(name)) remove_tree(path);
        }
        free(path);
    }
    free_entries(list, n);
}

void older_repair(const Run *run) {
    finish_overwriting(run);
    finish_replacing(run);
    remove_unfinished(run->output);
}

void checkpoint_rotate(const Run *run, int newest, int keep) {
    struct dirent **list;
    const int n = checkpoint_list(run->output, &list);
    for (int i = n - 1, older = 0; i >= 0; i--) {
        char *path = path_join(run->output, list[i]->d_name);
        if (checkpoint_number(list[i]->d_name) < newest && exists_in(path, STATE_FILE) &&
            ++older >= keep)
            remove_checkpoint(run->state, path);
        free(path);
    }
    free_entries(list, n);
}

void checkpoint_each(const Run *run, void (*f)(const char *dir)) {
    struct dirent **list;
    const int n = checkpoint_list(run->output, &list);
    for (int i = 0; i < n; i++) {
        char *path = path_join(run->output, list[i]->d_name);
        if (exists_in(path, STATE_FILE)) f(path);
        free(path);
    }
    free_entries(list, n);
}

/* A new run begins in OUTPUT: does it hold an older result? */
static void begin_older(const Run *run) {
    struct dirent **list = NULL;
    const int n =
        run->state->continues ? 0 : list_directory(run->output, is_replaceable, by_number, &list);
    free_entries(list, n);
    if (!n) return;
    run->state->older = true;
    printf(
        "the older result in %s stays until a checkpoint, best/ or the result of this run is "
        "whole; until then the log is %s/log.jsonl" UNFINISHED_MARK "%ld\n",
        run->output, run->output, (long)getpid());
}

int checkpoint_prepare_output(Run *run, Error *e) {
    const struct RunState *s = run->state;
    if (s->continues && run->overwrite_output_dir)
        return fail(e, "--resume continues what --overwrite_output_dir removes; give one of them");
    if (s->program->technique && same_file(run->output, run->model))
        return fail(e,
                    "--output %s is the directory of --model; a directory with a model and an "
                    "adapter is read as the model with the adapter on top; choose another --output",
                    run->output);
    if (!run_writes(run)) return 0;
    if (outputs_check(run, e) || outputs_check_place(run, "output", run->output, e) ||
        lock_directory("output", run->output, e))
        return -1;
    if (!s->continues && !run->overwrite_output_dir) {
        struct dirent **list;
        const int n = list_directory(run->output, is_content, by_number, &list);
        const char *model = exists_in(run->output, MODEL_FILE) ? MODEL_FILE : NULL;
        if (n)
            fail(e,
                 "--output %s already holds %s; choose another --output, continue that run with "
                 "--resume, or start anew there with --overwrite_output_dir",
                 run->output, model ? model : list[0]->d_name);
        free_entries(list, n);
        if (n) return -1;
    }
    older_repair(run);
    begin_older(run);
    char *path = path_join(run->output, "log.jsonl");
    NewFile probe;
    int status = newfile_open(&probe, path, e);
    if (!status) status = newfile_close(&probe, false, e);
    free(path);
    return status;
}
