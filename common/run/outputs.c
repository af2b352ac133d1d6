/*
 * outputs.c - files that a flag names to be written: none of them may cost the user another file.
 */
#include "files/bundle.h"
#include "ranks.h"
#include "run/lock.h"
#include "run/private.h"
#include "run/streams.h"
#include "text/jsonl.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <libgen.h>
#include <sys/stat.h>
#include <unistd.h>

/* The flags that name what a run writes, and not what it reads. */
static const char written[] =
    "output merge score_output feedback dump_rollouts dump_tokens dump_dialogues";

/* Is the file one of a list of paths? */
static bool in_list(const char *file, const char *list) {
    bool found = false;
    for (char *path; (path = take_path(&list)); free(path)) found |= same_file(file, path);
    return found;
}

/* Does a file of this name belong to a run's OUTPUT, whichever program writes it? */
static bool is_result(const char *name) {
    static const char *const ends[] = {".safetensors", ".json",     ".txt",
                                       ".jinja",       "log.jsonl", "transcripts.jsonl"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (n >= strlen(ends[i]) && !strcmp(name + n - strlen(ends[i]), ends[i])) return true;
    return false;
}

static bool same_path(const char *a, const char *b) {
    char *x = resolve_path(a), *y = resolve_path(b);
    const bool same = !strcmp(x, y);
    free(x);
    free(y);
    return same;
}

/* Ends the program if another flag names the same file or pipe. */
static void refuse_same(const Run *run, const Flag *f, const char *path) {
    const Flag *g;
    for (int i = 0; (g = flags_at(run->state->flags, i)); i++) {
        const char *other = g->type == FLAG_TEXT ? *(const char **)g->value : NULL;
        if (g == f || !other || !*other || !in_list(path, other)) continue;
        die_usage(word_in(written, g->name)
                      ? "--%s %s is the file of --%s, too; choose another"
                      : "--%s %s is the file of --%s, which is read and never written; choose "
                        "another",
                  f->name, path, g->name);
    }
}

/* Does a model's directory hold files of this name, by whichever library? */
static bool is_of_model(const char *name) {
    static const char *const patterns[] = {
        "*.safetensors", "*.bin",         "*.pt",         "*.pth",   "*.h5",     "*.msgpack",
        "*.index.json",  "*_config.json", "*_state.json", "*.model", "vocab.txt"};
    bool is = bundle_owns(name);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        is |= !fnmatch(patterns[i], name, 0);
    return is;
}

/* Is it a directory that some run has written its log into? */
static bool has_run(const char *dir) {
    struct dirent **list;
    const int n = checkpoint_list(dir, &list);
    free_entries(list, n);
    return n || bundle_loads(dir) || exists_in(dir, RUN_FILE);
}

/* Ends the program if the file is part of a model or of a run that is there already: another model
   would be ruined by it. */
static void refuse_models(const Flag *f, const char *path) {
    char *copy = xstrdup(path), *tail = xstrdup(path);
    const char *dir = dirname(copy), *name = basename(tail);
    const bool model = is_of_model(name) && (bundle_loads(dir) || bundle_found(dir));
    if (model || (run_records(name) && has_run(dir)))
        die_usage(
            "--%s %s has the name of a file of the %s in %s, which would be lost; choose "
            "another",
            f->name, path, model ? "model" : "run", dir);
    free(copy);
    free(tail);
}

/* Ends the program if the file is in a directory that another flag names and the run reads, or one
   that the run writes itself. */
static void refuse_input(const Run *run, const Flag *f, const char *path) {
    const Flag *g;
    char *copy = xstrdup(path), *tail = xstrdup(path), *real = resolve_path(path);
    const char *directory = dirname(copy), *name = basename(tail);
    for (int i = 0; (g = flags_at(run->state->flags, i)); i++) {
        const char *other = g->type == FLAG_TEXT ? *(const char **)g->value : NULL;
        if (g == f || !other || !*other || !same_path(directory, other)) continue;
        if (!word_in(written, g->name))
            die_usage("--%s %s is a file of --%s %s, which is never written; choose another",
                      f->name, path, g->name, other);
        if (is_result(name) || run_owns(name))
            die_usage("--%s %s has the name of a file that the run itself writes; choose another",
                      f->name, path);
    }
    refuse_models(f, path);
    refuse_models(f, real);  // what a link leads to
    free(copy);
    free(tail);
    free(real);
}

/* Does the run write or remove OUTPUT/name, a file or directory directly in it? */
static bool writes(const Run *run, const char *name) {
    const bool transcripts = flags_find(run->state->flags, "constitution") != NULL;
    return run_owns(name) || bundle_owns(name) || !strcmp(name, "log.jsonl") ||
           !strcmp(name, RUN_FILE) || (transcripts && !strcmp(name, "transcripts.jsonl"));
}

/* output: OUTPUT's own path, which has no links. */
static int check_input(const Run *run, const char *output, const Flag *f, const char *path,
                       Error *e) {
    const bool model = !strcmp(f->name, "model"), resume = !strcmp(f->name, "resume");
    const bool stays =
        !model || run->state->program->technique;  // it is not replaced by its result
    const size_t n = strlen(output);
    char *real = real_path(path), name[256] = "";
    int status = 0;
    if (real && !strncmp(real, output, n) && real[n] == '/')
        snprintf(name, sizeof name, "%.*s", (int)strcspn(real + n + 1, "/"), real + n + 1);
    if (real && stays && !strcmp(real, output))
        status = fail(e,
                      "--output %s is the directory of --%s, which is read and never written; "
                      "choose another --output",
                      run->output, f->name);
    else if (*name && stays && !resume && writes(run, name))
        status = fail(e,
                      "--%s %s is in --output, and the run writes there itself; choose another "
                      "--output, or copy it",
                      f->name, path);
    free(real);
    return status;
}

/* Is the value of a flag a word with a meaning of its own, such as the data of --normalize? */
static bool is_word(const Flag *f, const char *value) {
    return value &&
           ((f->bare && !strcmp(value, f->bare)) || (f->initial && !strcmp(value, f->initial)));
}

/* What a run writes into OUTPUT under a name that does not change must be there itself, not by a
   link: what a link leads to would be written to, or removed. 0, or -1 with e filled. */
static int check_names(const char *output, Error *e) {
    static const char *const names[] = {"log.jsonl", "transcripts.jsonl", "run.json", "best",
                                        "critic"};
    int status = 0;
    for (int i = 0; i < 5 && !status; i++) {
        struct stat s;
        char *path = path_join(output, names[i]);
        const bool there = !lstat(path, &s), directory = i >= 3;
        const bool others = there && directory && exists_in(path, "log.jsonl");
        if (others || (there && (directory ? !S_ISDIR(s.st_mode) : !S_ISREG(s.st_mode))))
            status = fail(e,
                          "%s is %s, and the run would write there; remove it, or choose another "
                          "--output",
                          path,
                          S_ISLNK(s.st_mode) ? "a link"
                          : others           ? "the --output of another run"
                          : directory        ? "no directory"
                                             : "no regular file");
        free(path);
    }
    return status;
}

int outputs_check(const Run *run, Error *e) {
    char *output = real_path(run->output);
    const Flag *f;
    int status = 0;
    for (int i = 0; output && !status && (f = flags_at(run->state->flags, i)); i++) {
        if (f->type != FLAG_TEXT || word_in(written, f->name)) continue;
        const char *list = *(const char **)f->value;
        if (is_word(f, list)) continue;
        for (char *one; !status && (one = take_path(&list)); free(one))
            status = check_input(run, output, f, one, e);
    }
    free(output);
    return status ? status : check_names(run->output, e);
}

/* Is dir the OUTPUT of this run, or of one that has written its log? */
static bool is_output(const Run *run, const char *dir) {
    return exists_in(dir, "log.jsonl") || exists_in(dir, RUN_FILE) ||
           (run->output && *run->output && same_path(dir, run->output));
}

int outputs_check_place(const Run *run, const char *flag, const char *path, Error *e) {
    char *above = resolve_path(path), *slash;
    int status = 0;
    while (!status && (slash = strrchr(above, '/')) && slash > above) {
        const bool checkpoint = exists_in(above, STATE_FILE), named = run_owns(slash + 1);
        *slash = 0;
        if (checkpoint || (named && is_output(run, above)))
            status =
                fail(e,
                     "--%s %s is part of a run: %s/%s is %s; choose another --%s, outside of "
                     "it",
                     flag, path, above, slash + 1,
                     checkpoint ? "a checkpoint" : "a directory that the run writes itself", flag);
        else if (named && !run->dry_run)
            status = lock_share(flag, above, e);
    }
    free(above);
    return status;
}

int outputs_check_link(const Run *run, Error *e) {
    const char *path = run->state->checkpoint;
    struct stat s;
    if (!run_writes(run) || lstat(path, &s) || !S_ISLNK(s.st_mode)) return 0;
    char *copy = xstrdup(path), *real = resolve_path(path);
    const int status =
        same_file(dirname(copy), run->output)
            ? fail(e,
                   "--resume: %s is a link to %s, of another --output; replace the link by a copy, "
                   "or resume that run there",
                   path, real)
            : 0;
    free(copy);
    free(real);
    return status;
}

/* Opens a pipe, and leaves it open, so that its reader stays until the run writes to it. A reader
   that is being started is given a second. */
static void hold_pipe(const char *flag, const char *path) {
    int file = -1;
    for (int tries = 0; tries < 100 && file < 0; tries++) {
        if (tries) usleep(10000);
        file = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        if (file < 0 && errno != ENXIO) break;
    }
    if (file < 0 && errno == ENXIO)
        die_usage("--%s %s is a pipe that nobody reads; start its reader first, or give a file",
                  flag, path);
    if (file < 0)
        die_usage("cannot write %s (--%s): %s; %s", path, flag, strerror(errno),
                  error_remedy(errno));
}

/* Is the path another name of an open file, such as /dev/stdout, which leads to one in /proc? */
static bool is_open_file(const char *path) {
    char *at = xstrdup(path), to[4096];
    bool found = false;
    for (int links = 0; at && !found && links < 40; links++) {
        char *copy = xstrdup(at), *above = resolve_path(dirname(copy));
        const ssize_t n = readlink(at, to, sizeof to - 1);
        found = !strncmp(above, "/proc/", 6);
        free(at);
        to[n > 0 ? n : 0] = 0;
        at = n <= 0 ? NULL : *to == '/' ? xstrdup(to) : path_join(above, to);
        free(copy);
        free(above);
    }
    free(at);
    return found;
}

void run_check_output(const Run *run, const char *flag, const char *ours) {
    const Flag *f = flags_find(run->state->flags, flag);
    const char *path = *(const char **)f->value;
    struct stat s;
    if (!path || rank()) return;
    const bool exists = !stat(path, &s);
    Error e;
    if (exists && S_ISDIR(s.st_mode)) die_usage("--%s %s is a directory; give a file", flag, path);
    if (exists && S_ISREG(s.st_mode) && is_open_file(path))
        die_usage("--%s %s is the name of a file that is open already; give the file's own name",
                  flag, path);
    // another flag may name a device, too: /dev/null
    if (!exists || S_ISREG(s.st_mode) || S_ISFIFO(s.st_mode)) refuse_same(run, f, path);
    if (!run->dry_run) streams_outlive();
    if (exists && S_ISFIFO(s.st_mode) && !run->dry_run) hold_pipe(flag, path);
    if (exists && !S_ISREG(s.st_mode)) return;  // a pipe, a terminal, /dev/null
    refuse_input(run, f, path);
    if (outputs_check_place(run, flag, path, &e)) die_usage("%s", e.text);
    if (!run->dry_run && lock_file(flag, path, &e)) die_usage("%s", e.text);
    // another run may have written it before it was kept
    const bool holds = !stat(path, &s) && s.st_size;
    if (!holds || (run->overwrite_output_dir && !ours)) return;
    if (ours) {
        char begins[64] = "";
        FILE *file = fopen(path, "rb");
        if (!file || (!fgets(begins, sizeof begins, file) && ferror(file)))
            die_usage("cannot read %s (--%s): %s", path, flag, strerror(errno));
        fclose(file);
        if (strncmp(begins, ours, strlen(ours)))
            die_usage("--%s %s is not a file of --%s; choose another", flag, path, flag);
        return;
    }
    die_usage(
        "--%s %s exists already; choose another file, or replace it with --overwrite_output_dir",
        flag, path);
}
