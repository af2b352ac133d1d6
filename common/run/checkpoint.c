/*
 * checkpoint.c - checkpoints and resume.
 *
 * OUTPUT/checkpoint-N is a model directory with one file more, state.safetensors: the moments, the
 * step, the flags that shape the run (the seed is one), fingerprints of the data, the figures of
 * the current log line and the stage's own numbers; and hashes of weights and moments, of each
 * small file beside them, and of all this. It is written as
 * OUTPUT/checkpoint-N.posttrain-PID, synced and renamed. Then all but the newest --save_total_limit
 * are removed. When a checkpoint cannot be written the program ends with 1, and the older ones
 * stay.
 *
 * That of the last step has no moments, because no step follows, and a run that has ended removes
 * those of the others (ended.c). That of step 0 has no weights either, because they are those of
 * --model: a run that fails early leaves nothing large.
 */
#include "files/bundle.h"
#include "files/hf.h"
#include "files/json_file.h"
#include "files/mapped.h"
#include "files/usage.h"
#include "model/shards.h"
#include "model/weights.h"
#include "ranks.h"
#include "run/lock.h"
#include "run/private.h"
#include "run/technique.h"
#include "text/jsonl.h"
#include "text/template.h"

#include <dirent.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SMALL_FILE = 256 << 20 };  // bytes: a tokenizer's file, as in bundle.c

/* ---- what a checkpoint keeps ----------------------------------------------------------------- */

void run_keep(Run *run, const char *name, double *value) {
    struct RunState *s = run->state;
    s->kept = (Kept *)xrealloc(s->kept, (size_t)s->kept_n + 1, sizeof *s->kept);
    s->kept[s->kept_n++] = (Kept){name, value};
}

void run_keep_text(Run *run, const char *name, Str *text) {
    struct RunState *s = run->state;
    s->text = (KeptText *)xrealloc(s->text, (size_t)s->texts + 1, sizeof *s->text);
    s->text[s->texts++] = (KeptText){name, text};
}

static const char *const holds_words[] = {
    [HOLDS_START] = "start", [HOLDS_WEIGHTS] = "weights", [HOLDS_MOMENTS] = "moments"};

/* What a checkpoint of this moment holds. */
static Holds holds_now(const Run *run) {
    if (run->step == 0) return HOLDS_START;
    const bool ended = run->step == run_end(run) && !run->keep_moments;
    return ended || run->save_only_model ? HOLDS_WEIGHTS : HOLDS_MOMENTS;
}

/* The prefix of a network's moments in the state. To be freed. */
static char *moments_prefix(const Network *n, bool first) {
    Str prefix = {0};
    str_add(&prefix, "", 0);
    if (!first) str_printf(&prefix, "%s.", n->role);
    return prefix.s;
}

static const char *hash_text(uint64_t hash, char text[32]) {
    snprintf(text, 32, "%016llx", (unsigned long long)hash);
    return text;
}

/* Notes one thing under "kind.name". */
static void note(STWriter *w, const char *kind, const char *name, const char *value) {
    Str key = {0};
    str_printf(&key, "%s.%s", kind, name);
    st_note(w, key.s, value);
    free(key.s);
}

const char *checkpoint_noted(const SafeTensors *st, const char *kind, const char *name) {
    Str key = {0};
    str_printf(&key, "%s.%s", kind, name);
    const char *value = st_metadata(st, key.s);
    free(key.s);
    return value;
}

static void note_number(STWriter *w, const char *key, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    st_note(w, key, text);
}

static void note_hash(STWriter *w, const char *kind, const char *name, uint64_t hash) {
    char text[32];
    note(w, kind, name, hash_text(hash, text));
}

/* Is the network part of what the run makes? */
static bool is_saved(const struct RunState *s, int i) { return i == 0 || s->network[i]->trains; }

/* Notes which further networks a checkpoint has, "critic". */
static void note_roles(STWriter *w, const struct RunState *s) {
    Str roles = {0};
    str_add(&roles, "", 0);
    for (int i = 1; i < s->networks; i++)
        if (is_saved(s, i)) str_printf(&roles, "%s%s", roles.n ? " " : "", s->network[i]->role);
    st_note(w, "roles", roles.s);
    free(roles.s);
}

/* ---- the small files beside the weights ------------------------------------------------------ */

/* For a scandir: the files of a model directory that are no weights. */
static int is_small_file(const struct dirent *d) {
    return bundle_owns(d->d_name) && fnmatch("*.safetensors", d->d_name, 0);
}

/* Calls f for each of them in a checkpoint, with its name, "config.json" or "critic/config.json",
   and the hash of its bytes. Returns how many there are, or -1 with e filled. */
static int each_small_file(const struct RunState *s, const char *dir,
                           void (*f)(void *context, const char *name, uint64_t hash), void *context,
                           Error *e) {
    int all = 0;
    for (int i = 0; i < s->networks && all >= 0; i++) {
        struct dirent **list = NULL;
        if (!is_saved(s, i)) continue;
        char *prefix = moments_prefix(s->network[i], i == 0), *inner = path_join(dir, prefix);
        if (*prefix) prefix[strlen(prefix) - 1] = inner[strlen(inner) - 1] = '/';  // "critic."
        const int n = scandir(inner, &list, is_small_file, alphasort);
        if (n < 0) all = fail_errno(e, errno, "cannot list %s: %s", inner, strerror(errno));
        for (int k = 0; k < n && all >= 0; k++) {
            Str name = {0}, text = {0};
            str_printf(&name, "%s%s", prefix, list[k]->d_name);
            char *path = path_join(dir, name.s);
            const int status = read_regular_file(path, MAX_SMALL_FILE, &text, e);
            if (!status) f(context, name.s, hash_bytes(HASH_START, text.s, text.n));
            all = status ? -1 : all + 1;
            free(path);
            free(name.s);
            free(text.s);
        }
        free_entries(list, max_int(n, 0));
        free(prefix);
        free(inner);
    }
    return all;
}

static void note_file(void *context, const char *name, uint64_t hash) {
    note_hash((STWriter *)context, "file", name, hash);
}

static int write_state(const Run *run, const char *path, Error *e) {
    const struct RunState *s = run->state;
    const Holds holds = holds_now(run);
    STWriter *w = st_new();
    char text[64], *figures = watch_text(run);
    st_note(w, "format_version", STATE_VERSION);
    st_note(w, "program", s->program->name);
    st_note(w, "holds", holds_words[holds]);
    note_number(w, "step", run->step);
    if (s->first_line.n) st_note(w, "first_line", s->first_line.s);
    note_number(w, "examples", s->examples);
    st_note(w, "figures", figures);
    if (s->default_template) st_note(w, "template", s->default_template);
    if (s->postponed) st_note(w, "evaluation", "postponed");
    free(figures);
    const Flag *f;
    for (int i = 0; (f = flags_at(s->flags, i)); i++) {
        if (f->type == FLAG_TITLE || f->may_change_on_resume) continue;
        const char *value = flag_text(f, text);
        note(w, "flag", f->name, value ? value : "");
    }
    for (int i = 0; i < s->contents; i++)
        note(w, s->content[i].kind, s->content[i].name, s->content[i].text);
    for (int i = 0; i < s->kept_n; i++) {
        snprintf(text, sizeof text, "%.17g", *s->kept[i].value);
        note(w, "keep", s->kept[i].name, text);
    }
    note_roles(w, s);
    for (int i = 0; i < s->texts; i++)
        note(w, "text", s->text[i].name, s->text[i].value->n ? s->text[i].value->s : "");
    for (int i = 0; i < s->networks; i++) {
        const Network *n = s->network[i];
        if (n->origin) note(w, "origin", n->role, n->origin);
        if (!is_saved(s, i)) continue;
        char *prefix = moments_prefix(n, i == 0);
        if (holds == HOLDS_MOMENTS) hf_declare_moments(w, n->model, prefix);
        free(prefix);
        note_hash(w, "saved", n->role, gpt2_hash_trained(n->model, holds == HOLDS_MOMENTS));
    }
    char *dir = xstrndup(path, strlen(path) - strlen("/" STATE_FILE));
    const int files = holds == HOLDS_START ? 0 : each_small_file(s, dir, note_file, w, e);
    note_number(w, "files", files);
    note_hash(w, "checksum", "all", st_noted_hash(w));
    bool written = files >= 0 && !st_begin(w, path, e);
    free(dir);
    for (int i = 0; i < s->networks; i++)
        if (is_saved(s, i) && holds == HOLDS_MOMENTS)
            written = written && !hf_write_moments(w, s->network[i]->model, e);
    return st_end(w, written, written ? e : NULL) || !written ? -1 : 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

int checkpoint_save_models(const Run *run, const char *dir, bool all, Error *e) {
    const struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    const GPT2 *m = s->network[0]->model;
    Usage u = {s->template, tokenizer_eos(run->tokenizer), template_end(),
               s->network[0]->head == SCORE_HEAD};
    int status = technique ? technique_save(technique, m, dir, run->model, s->template, e)
                           : hf_save_bundle(m, dir, &s->network[0]->files, &u, e);
    if (!status && s->older && same_file(dir, run->output)) older_end(run, false);
    for (int i = 1; i < s->networks && all && !status; i++) {
        const Network *n = s->network[i];
        if (!is_saved(s, i)) continue;
        char *path = path_join(dir, n->role);
        u.scores = n->head == SCORE_HEAD;
        status = hf_save_bundle(n->model, path, &n->files, &u, e);
        free(path);
    }
    return status;
}

/* Writes the whole checkpoint into dir. */
static int write_checkpoint(const Run *run, const char *dir, Error *e) {
    if (mkdir(dir, 0777)) return fail_errno(e, errno, "cannot make %s: %s", dir, strerror(errno));
    char *state = path_join(dir, STATE_FILE);
    const bool saved = holds_now(run) == HOLDS_START || !checkpoint_save_models(run, dir, true, e);
    const bool written = saved && !write_state(run, state, e);
    if (written) sync_directory_of(state);
    free(state);
    return written ? 0 : -1;
}

/* OUTPUT must be the directory that the run began in. If it was moved, the run saves where it is
   now, and then ends. */
static void follow_output(Run *run) {
    struct RunState *s = run->state;
    Error e;
    char *now;
    if (s->moved || !run_writes(run) || !lock_check("output", &now, &e)) return;
    if (!now)
        die("%s; what it learned since its last checkpoint is lost with it, and nothing is written "
            "into another directory of that name",
            e.text);
    s->moved = xstrdup(e.text);
    run->output = now;
}

void run_begin_writing(Run *run) {
    struct RunState *s = run->state;
    if (s->begun || !run_writes(run)) return;
    follow_output(run);
    s->begun = true;
    Error e;
    char *path = run_path(run, "log.jsonl");
    s->log = s->continues ? append_file(path, &e) : replace_file(path, &e);
    if (!s->log) die("%s", e.text);
    free(path);
    watch_write_first(run);
    best_bring(run);
}

void checkpoint_check_moved(Run *run) {
    if (!run_saves(run)) return;
    follow_output(run);
    bool moved = run->state->moved != NULL;
    ranks_share(&moved, sizeof moved, 0);
    if (!moved) return;
    if (run->step != run->state->saved_step) run_checkpoint(run);
    if (rank()) return;  // process 0 ends all
    if (run->state->saved_step < 0) die("%s, so the run ends; nothing is saved", run->state->moved);
    die("%s, so the run ends; %s/checkpoint-%d is complete: continue with --output %s --resume",
        run->state->moved, run->output, run->state->saved_step, run->output);
}

const char *checkpoint_remedy(const Run *run, const char *first) {
    static char text[256];
    const int step = run->state->saved_step;
    if (step < 0)
        snprintf(text, sizeof text,
                 "there is no checkpoint yet%s: %s, and start anew with --overwrite_output_dir",
                 run->state->older ? ", and the older result is unchanged" : "", first);
    else if (run->save_only_model && step > 0 && step < run_end(run))
        snprintf(text, sizeof text,
                 "checkpoint-%d is complete, and is a model: %s, and give it to --model, with "
                 "another --output",
                 step, first);
    else
        snprintf(text, sizeof text, "checkpoint-%d is complete: %s, and use --resume", step, first);
    return text;
}

void checkpoint_begin_saving(Run *run) {
    Error e;
    if (mapped_check(&e))
        die("%s; the run stops, because its numbers would be those of two models; %s", e.text,
            checkpoint_remedy(run, "restore the file"));
    networks_check(run);
    follow_output(run);
    run_begin_writing(run);
}

void run_save(Run *run, const char *name) {
    if (!run_writes(run)) return;
    Error e;
    checkpoint_begin_saving(run);
    char *dir = path_join(run->output, name);
    char *aside = run->state->older ? newfile_name(dir, UNFINISHED_MARK, getpid()) : NULL;
    int status = checkpoint_save_models(run, aside ? aside : dir, false, &e);
    if (!status && aside) status = checkpoint_place(run, aside, dir, &e);
    if (status) {
        if (aside) remove_tree(aside);
        free(aside);
        die("%s is not written: %s; %s", dir, e.text,
            checkpoint_remedy(run, error_remedy(e.error)));
    }
    free(aside);
    free(dir);
}

/* From now on the resumed checkpoint may be removed. */
static void forget_resumed_checkpoint(struct RunState *s, const char *path) {
    if (!s->checkpoint || s->holds == HOLDS_START) return;
    free(s->model_dir);
    s->model_dir = xstrdup(path);
}

void run_checkpoint(Run *run) {
    struct RunState *s = run->state;
    if (run->step == 0) watch_log_before(run);  // the checkpoint keeps that line
    if (run->step == 0 && s->older) return;     // it has no weights, so it takes no result's place
    if (run_saves(run) && rank()) {  // process 0 writes it, and reads moments that are here
        shards_serve();
        s->saved_step = run->step;
    }
    if (!run_writes(run)) return;
    checkpoint_begin_saving(run);
    if (fsync(fileno(s->log))) watch_cannot_write(run);
    Error e;
    Str path = {0};
    str_printf(&path, "%s/checkpoint-%d", run->output, run->step);
    char *aside = newfile_name(path.s, UNFINISHED_MARK, getpid());
    if (write_checkpoint(run, aside, &e) || checkpoint_place(run, aside, path.s, &e)) {
        remove_tree(aside);
        follow_output(run);  // if it was removed, this says so
        die("%s is not written: %s; %s", path.s, e.text,
            checkpoint_remedy(run, error_remedy(e.error)));
    }
    shards_served();
    s->saved_step = run->step;
    forget_resumed_checkpoint(s, path.s);
    if (run->save_total_limit > 0) checkpoint_rotate(run, run->step, run->save_total_limit);
    printf("saved %s\n", path.s);
    fflush(stdout);
    free(path.s);
    free(aside);
}

/* ---- finding --------------------------------------------------------------------------------- */

/* Is dir/name a complete safetensors file? 0, or -1 with e filled. */
static int check_tensors(const char *dir, const char *name, Error *e) {
    char *path = path_join(dir, name);
    SafeTensors *st = st_open(path, e);
    free(path);
    if (!st) return -1;
    st_close(st);
    return 0;
}

/* Does dir hold a config and whole weights? */
static int check_model(const char *dir, Error *e) {
    GPT2Config config;
    return hf_config(dir, &config, e) || check_tensors(dir, MODEL_FILE, e) ? -1 : 0;
}

/* The same of each further network that the state names. */
static int check_roles(const char *dir, Error *e) {
    char *path = path_join(dir, STATE_FILE);
    SafeTensors *st = st_open(path, e);
    const char *roles = st ? st_metadata(st, "roles") : NULL;
    int status = st ? 0 : -1;
    for (const char *p = roles; p && *p && !status; p += *p == ' ') {
        char role[64];
        const size_t n = strcspn(p, " ");
        snprintf(role, sizeof role, "%.*s", (int)n, p);
        p += n;
        char *inner = path_join(dir, role);
        status = strchr(role, '/') ? fail(e, "%s: no role is called %s", path, role)
                                   : check_model(inner, e);
        free(inner);
    }
    st_close(st);
    free(path);
    return status;
}

/* What a checkpoint holds by its state; HOLDS_MOMENTS if that says nothing else. */
static Holds holds_of(const SafeTensors *st) {
    const char *word = st_metadata(st, "holds");
    for (int i = 0; word && i < HOLDS_MOMENTS; i++)
        if (!strcmp(word, holds_words[i])) return (Holds)i;
    return HOLDS_MOMENTS;
}

/* Does a checkpoint hold every file that the run needs, each of them complete? */
static int check_checkpoint(const Run *run, const char *dir, Error *e) {
    const Technique *technique = run->state->program->technique;
    char *state = path_join(dir, STATE_FILE);
    SafeTensors *st = st_open(state, e);
    free(state);
    if (!st) return -1;
    const Holds holds = holds_of(st);
    st_close(st);
    if (holds == HOLDS_START) return 0;
    if (check_roles(dir, e)) return -1;
    if (technique) {
        char *path = path_join(dir, "adapter_config.json");
        json_t *config = read_json(path, MAX_CONFIG, e);
        free(path);
        json_decref(config);
        return config ? check_tensors(dir, technique->weights, e) : -1;
    }
    Tokenizer *t = check_model(dir, e) ? NULL : tokenizer_load(dir, e);
    tokenizer_free(t);
    return t ? 0 : -1;
}

/* The newest complete checkpoint of OUTPUT, to be freed; NULL with e filled. */
static char *newest_checkpoint(const Run *run, Error *e) {
    const char *output = run->output;
    struct dirent **list;
    const int n = checkpoint_list(output, &list);
    char *found = NULL;
    fail(e, "--resume: there is no checkpoint in %s; leave out --resume to start a run there",
         output);
    for (int i = n - 1; i >= 0 && !found; i--) {
        Error broken;
        char *dir = path_join(output, list[i]->d_name);
        if (!check_checkpoint(run, dir, &broken)) {
            found = dir;
        } else {
            fprintf(stderr, "note: %s is incomplete and is skipped: %s\n", dir, broken.text);
            fail(e, "--resume: no checkpoint in %s is complete; of the last one tried: %s", output,
                 broken.text);
            free(dir);
        }
    }
    free_entries(list, n);
    return found;
}

/* Fills e: there is no checkpoint in the directory that --resume names; what is there? */
static void no_checkpoint(const char *dir, Error *e) {
    struct dirent **list;
    const int n = file_exists(dir) ? checkpoint_list(dir, &list) : 0;
    if (n)
        fail(e,
             "--resume %s: this is the --output of a run, without a %s; give --resume %s/%s, or "
             "--resume alone with --output %s",
             dir, STATE_FILE, dir, list[n - 1]->d_name, dir);
    else
        fail(e,
             "--resume %s: %s; a checkpoint is a directory checkpoint-N of an --output, with "
             "a " STATE_FILE "%s",
             dir, file_exists(dir) ? "it holds no checkpoint" : strerror(errno),
             exists_in(dir, "config.json") ? ". This is a model: give it to --model" : "");
    if (n) free_entries(list, n);
}

/* The checkpoint that process 0 has found is that of all. Each process reads it. */
static int share_checkpoint(Run *run, Error *e) {
    struct RunState *s = run->state;
    size_t n;
    const char *mine = !rank() && s->checkpoint ? s->checkpoint : "";
    char *found = (char *)ranks_join(mine, strlen(mine), &n);
    if (rank() && n) s->checkpoint = xstrdup(found);
    free(found);
    if (!rank() || !n) return 0;
    if (exists_in(s->checkpoint, STATE_FILE)) return check_checkpoint(run, s->checkpoint, e);
    return fail(e,
                "%s, which the first process resumes, is not here; put --output on a disk that "
                "all machines share, or copy the checkpoint to this one",
                s->checkpoint);
}

static int find_checkpoint(Run *run, Error *e) {
    struct RunState *s = run->state;
    if (!run->resume || !*run->resume) return 0;
    if (!strcmp(run->resume, "latest")) {
        if (!run->output || !*run->output)
            return fail(e,
                        "--resume without a directory needs an --output, whose newest checkpoint "
                        "it resumes");
        // a run that has not ended may write another checkpoint, and remove this one
        if (run_writes(run) && file_exists(run->output)) {
            if (lock_directory("output", run->output, e)) return -1;
            older_repair(run);
        }
        s->checkpoint = newest_checkpoint(run, e);
        if (!s->checkpoint) return -1;
        agree_on_program(run);
    } else if (!exists_in(run->resume, STATE_FILE)) {
        no_checkpoint(run->resume, e);
        return -1;
    } else {
        s->checkpoint = xstrdup(run->resume);
        agree_on_program(run);  // another program's checkpoint lacks files that this one needs
        if (check_checkpoint(run, run->resume, e)) return -1;
    }
    char *parent = path_join(s->checkpoint, "..");
    s->continues = same_file(parent, run->output);
    free(parent);
    return s->continues ? 0 : outputs_check_link(run, e);
}

int checkpoint_find(Run *run, Error *e) {
    if (!rank() && find_checkpoint(run, e)) return -1;
    if (share_checkpoint(run, e)) return -1;
    if (!run->state->checkpoint) return 0;
    SafeTensors *st = checkpoint_open_state(run->state->checkpoint);
    run->state->holds = holds_of(st);
    st_close(st);
    return 0;
}

char *checkpoint_model_dir(const Run *run, const char *role) {
    const char *dir = run_weights_dir(run);
    return dir ? path_join(dir, role) : NULL;
}

char *checkpoint_template(const Run *run) {
    SafeTensors *st = checkpoint_open_state(run->state->checkpoint);
    const char *text = st_metadata(st, "template");
    char *copy = text ? xstrdup(text) : NULL;
    st_close(st);
    return copy;
}

/* ---- resume ---------------------------------------------------------------------------------- */

static void restore_numbers(Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    for (int i = 0; i < s->kept_n; i++) {
        const char *text = checkpoint_noted(st, "keep", s->kept[i].name);
        char *end = NULL;
        const double value = text ? strtod(text, &end) : 0;
        if (!text || end == text || *end)
            die_usage("cannot resume %s: it holds no number keep.%s", s->checkpoint,
                      s->kept[i].name);
        *s->kept[i].value = value;
    }
    for (int i = 0; i < s->texts; i++) {
        const char *text = checkpoint_noted(st, "text", s->text[i].name);
        if (!text)
            die_usage("cannot resume %s: it holds no text.%s", s->checkpoint, s->text[i].name);
        s->text[i].value->n = 0;
        str_add(s->text[i].value, text, strlen(text));
    }
    const char *figures = st_metadata(st, "figures");
    if (!figures || watch_restore(run, figures))
        die_usage(
            "cannot resume %s: it is damaged, its figures are \"%.200s\"; resume from an earlier "
            "checkpoint",
            s->checkpoint, figures ? figures : "");
}

SafeTensors *checkpoint_open_state(const char *dir) {
    Error e;
    char *path = path_join(dir, STATE_FILE);
    SafeTensors *st = st_open(path, &e);
    if (!st) die_usage("cannot resume: %s", e.text);
    free(path);
    return st;
}

/* Ends the program unless the state records this hash. what: of what it is, in the message. */
static void check_hash(const struct RunState *s, const SafeTensors *st, const char *kind,
                       const char *name, uint64_t hash, const char *what) {
    char text[32];
    const char *then = checkpoint_noted(st, kind, name);
    if (!then || strcmp(then, hash_text(hash, text)))
        die_usage(
            "cannot resume %s: %s changed since the checkpoint was written, or the file is "
            "damaged; resume from an earlier checkpoint",
            s->checkpoint, what);
}

typedef struct {
    const struct RunState *s;
    const SafeTensors *st;
} Noted;

static void check_file(void *context, const char *name, uint64_t hash) {
    const Noted *n = (const Noted *)context;
    Str what = {0};
    str_printf(&what, "%s was", name);
    check_hash(n->s, n->st, "file", name, hash, what.s);
    free(what.s);
}

/* Ends the program unless the small files of the checkpoint, which become those of the result, are
   as they were written. */
static void check_files(const struct RunState *s, const SafeTensors *st) {
    Error e;
    Noted noted = {s, st};
    long long then;
    const char *text = st_metadata(st, "files");
    if (s->holds == HOLDS_START) return;
    const int now = each_small_file(s, s->checkpoint, check_file, &noted, &e);
    if (now < 0) die_usage("cannot resume %s: %s", s->checkpoint, e.text);
    if (!text || !read_whole(text, &then) || then != now)
        die_usage(
            "cannot resume %s: it has %d of the %s files that were written beside its weights; "
            "resume from an earlier checkpoint",
            s->checkpoint, now, text ? text : "");
}

static void restore_models(const Run *run, const SafeTensors *st) {
    const struct RunState *s = run->state;
    Error e;
    for (int i = 0; i < s->networks; i++) {
        const Network *n = s->network[i];
        if (!is_saved(s, i)) continue;
        char *prefix = moments_prefix(n, i == 0);
        if (s->holds == HOLDS_MOMENTS && hf_read_moments(st, n->model, prefix, &e))
            die_usage("cannot resume %s: %s", s->checkpoint, e.text);
        free(prefix);
    }
    if (rank()) {
        shards_serve();
        return;
    }
    for (int i = 0; i < s->networks; i++) {
        const Network *n = s->network[i];
        if (!is_saved(s, i)) continue;
        Str what = {0};
        str_printf(&what, "the weights%s of the %s were",
                   s->holds == HOLDS_MOMENTS ? " or the moments" : "", n->role);
        check_hash(s, st, "saved", n->role, gpt2_hash_trained(n->model, s->holds == HOLDS_MOMENTS),
                   what.s);
        free(what.s);
    }
    shards_served();
}

/* Has the run in OUTPUT, whose newest checkpoint is resumed, written its result? */
static bool has_ended_already(const Run *run) {
    bool ended =
        run->state->continues && !strcmp(run->resume, "latest") && exists_in(run->output, RUN_FILE);
    ranks_share(&ended, sizeof ended, 0);
    return ended;
}

/* A checkpoint without moments can be resumed only where no step follows. That of a run that has
   ended may be older than its result: there is nothing to do then, and the program ends. */
static void check_moments(const Run *run) {
    const struct RunState *s = run->state;
    if (s->holds != HOLDS_WEIGHTS || run->step == run_end(run)) return;
    if (has_ended_already(run)) {
        printf(
            "this run has ended, and its result is in %s; its newest complete checkpoint is of "
            "step %d of %d\n",
            run->output, run->step, run->total_steps);
        fflush(stdout);
        ranks_end();
        exit(0);
    }
    die_usage(
        "cannot resume %s: it holds the model of step %d without AdamW's moments, because the run "
        "has ended (--keep_moments keeps them) or had --save_only_model; to train on, start from "
        "that model: --model %s, with another --output",
        s->checkpoint, run->step, s->checkpoint);
}

/* The step that a state was saved at. */
static int step_of(const Run *run, const SafeTensors *st) {
    const char *text = st_metadata(st, "step");
    long long step = 0;
    if (!text || !read_whole(text, &step) || step < 0 || step > run->total_steps)
        die_usage("%s: its step is \"%s\"; expected a number from 0 to %d", st_path(st),
                  text ? text : "", run->total_steps);
    return (int)step;
}

void checkpoint_resume(Run *run) {
    struct RunState *s = run->state;
    if (!s->checkpoint) return;
    SafeTensors *st = checkpoint_open_state(s->checkpoint);
    const int step = step_of(run, st);
    const char *first_line = st_metadata(st, "first_line");
    if (first_line) str_add(&s->first_line, first_line, strlen(first_line));
    restore_numbers(run, st);
    check_hash(s, st, "checksum", "all", st_metadata_hash(st, "checksum.all"), STATE_FILE " was");
    check_files(s, st);
    run->step = s->saved_step = step;
    best_resume(run);
    check_moments(run);
    restore_models(run, st);
    s->postponed = st_metadata(st, "evaluation") != NULL;
    best_find(run);
    if (s->continues && run_writes(run)) {
        char *log = path_join(run->output, "log.jsonl");
        run_cut_lines(run, log);
        free(log);
        // a kill may have come before the last rotation
        if (run->save_total_limit > 0) checkpoint_rotate(run, run->step, run->save_total_limit);
    }
    st_close(st);
    printf("resuming %s at step %d of %d\n", s->checkpoint, run->step, run->total_steps);
    fflush(stdout);
}
