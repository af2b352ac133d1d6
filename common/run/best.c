/*
 * best.c - the model with the lowest held-out loss, early stopping, and the last lines of a run,
 * which say where the better model is. As transformers' Trainer with EarlyStoppingCallback: only
 * the evaluations of steps compete, not the one before training.
 */
#include "files/bundle.h"
#include "files/hf.h"
#include "files/peft.h"
#include "model/shards.h"
#include "model/weights.h"
#include "ranks.h"
#include "run/private.h"
#include "run/technique.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

void best_keep(Run *run) {
    Best *b = &run->state->best;
    *b = (Best){.before = NAN, .lowest = INFINITY, .last = NAN};
    run_keep(run, "loss_before", &b->before);
    run_keep(run, "lowest_loss", &b->lowest);
    run_keep(run, "lowest_step", &b->step);
    run_keep(run, "last_loss", &b->last);
    run_keep(run, "last_step", &b->last_step);
    run_keep(run, "waited", &b->waited);
    run_keep(run, "best_hash_upper", &b->hash[0]);
    run_keep(run, "best_hash_lower", &b->hash[1]);
    run_keep_text(run, "best_figures", &b->figures);
}

/* ---- an evaluation --------------------------------------------------------------------------- */

/* A hash in two parts that a double holds. */
static void split_hash(uint64_t all, double hash[2]) {
    hash[0] = (double)(all >> 32);
    hash[1] = (double)(all & 0xffffffffu);
}

static bool is_used_up(const Run *run) {
    return run->early_stopping_patience > 0 &&
           run->state->best.waited >= run->early_stopping_patience;
}

void run_held_out_loss(Run *run, double loss) {
    struct RunState *s = run->state;
    Best *b = &s->best;
    if (!s->in_step) {
        b->before = loss;
        return;
    }
    b->last = loss;
    b->last_step = run->step + 1;
    b->waited = b->lowest - loss > (double)run->early_stopping_threshold ? 0 : b->waited + 1;
    if (is_used_up(run) && !run_is_last(run)) s->stopped_at = run->step + 1;
    if (!(loss < b->lowest)) return;
    b->lowest = loss;
    b->step = b->last_step;
    b->figures.n = 0;
    watch_add_held_out(run, &b->figures);
    b->hash[0] = b->hash[1] = 0;
    b->lost = false;
    if (run->save_strategy == SAVE_NO || !run_saves(run)) return;
    split_hash(gpt2_hash_trained(s->network[0]->model, false), b->hash);
    run_save(run, "best");
}

void best_resume(Run *run) {
    const Best *b = &run->state->best;
    if (is_used_up(run) && run->step == (int)b->last_step && run->step < run->total_steps)
        run->state->stopped_at = run->step;
}

/* ---- reading it ------------------------------------------------------------------------------ */

/* Copies the model's own weights. The two have one configuration. */
static void copy_weights(GPT2 *to, const GPT2 *from) {
    enum { PIECE = 1 << 16 };  // floats
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_own_tensors(to); i++) {
        const size_t all = gpt2_tensor(to, i)->n;
        for (size_t at = 0; at < all; at += PIECE) {
            const size_t n = all - at < PIECE ? all - at : PIECE;
            gpt2_read(from, i, GPT2_WEIGHT, at, n, piece);
            gpt2_write(to, i, GPT2_WEIGHT, at, n, piece);
        }
    }
    free(piece);
}

/* The weights of the tensors that train, one after another. To be freed. */
static float *trained_weights(const GPT2 *m) {
    size_t all = 0, at = 0;
    for (int i = 0; i < gpt2_tensors(m); i++)
        if (gpt2_tensor(m, i)->trains) all += gpt2_tensor(m, i)->n;
    float *weights = (float *)xmalloc((all + 1) * sizeof *weights);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        if (!gpt2_tensor(m, i)->trains) continue;
        gpt2_read(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, weights + at);
        at += gpt2_tensor(m, i)->n;
    }
    return weights;
}

static void set_trained_weights(GPT2 *m, const float *weights) {
    size_t at = 0;
    for (int i = 0; i < gpt2_tensors(m); i++) {
        if (!gpt2_tensor(m, i)->trains) continue;
        gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, weights + at);
        at += gpt2_tensor(m, i)->n;
    }
}

/* Is a model with this hash the best one? 0, or -1 with e filled. */
static int check_hash(const Best *b, const char *dir, uint64_t all, Error *e) {
    double hash[2];
    split_hash(all, hash);
    if (hash[0] == b->hash[0] && hash[1] == b->hash[1]) return 0;
    return fail(e, "the model in %s is not the one of step %.0f", dir, b->step);
}

/* Is the best model in dir? 0, or -1 with e filled. take: then it becomes the model of the run,
   which otherwise stays as it is. */
static int read_best(const Run *run, const char *dir, bool take, Error *e) {
    const struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    GPT2 *model = s->network[0]->model;
    int status;
    if (technique) {  // its tensors can be read only into the model
        float *before = trained_weights(model);
        status = hf_load_added(model, dir, technique->weights, e);
        if (!status) status = check_hash(&s->best, dir, gpt2_hash_trained(model, false), e);
        if (status || !take) set_trained_weights(model, before);
        free(before);
        return status;
    }
    GPT2 *best = hf_load_head(dir, s->network[0]->head, true, NULL, e);
    if (!best) return -1;
    status = check_hash(&s->best, dir, gpt2_hash_as(best, model), e);
    if (!status && gpt2_own_tensors(best) != gpt2_own_tensors(model))
        status = fail(e, "%s holds a model of another shape", dir);
    if (!status && take) copy_weights(model, best);
    gpt2_free(best);
    return status;
}

/* ---- a resumed run --------------------------------------------------------------------------- */

/* OUTPUT/best of the run that wrote the checkpoint. To be freed. */
static char *best_of_checkpoint(const Run *run) {
    if (run->state->continues) return path_join(run->output, "best");
    char *parent = path_join(run->state->checkpoint, ".."), *real = real_path(parent);
    char *dir = path_join(real ? real : parent, "best");
    free(real);
    free(parent);
    return dir;
}

void best_find(Run *run) {
    struct RunState *s = run->state;
    Best *b = &s->best;
    Error e;
    if (b->step < 1 || !run_writes(run)) return;
    char *dir = best_of_checkpoint(run);
    const bool there = file_exists(dir);
    if (!there)
        fail(&e, "there is no %s", dir);
    else if (!read_best(run, dir, false, &e)) {
        if (!s->continues) b->from = xstrdup(dir);
        free(dir);
        return;
    }
    // another model may be that of a later step, which comes again
    if (!there && run->load_best_model_at_end)
        die_usage(
            "--load_best_model_at_end: the model with the lowest held-out loss so far is that of "
            "step %.0f, and it is not kept: %s; put it there, or leave out that flag",
            b->step, e.text);
    if (run->save_strategy != SAVE_NO)
        fprintf(stderr,
                "note: the model with the lowest held-out loss so far, of step %.0f, is lost: %s\n",
                b->step, e.text);
    b->lost = true;
    free(dir);
}

/* Copies one file. */
static int copy_file(const char *from, const char *to, Error *e) {
    char block[1 << 16];
    NewFile file;
    FILE *f = fopen(from, "rbe");
    if (!f) return fail(e, "cannot read %s: %s", from, strerror(errno));
    int status = newfile_open(&file, to, e);
    if (status) {
        fclose(f);
        return status;
    }
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) fwrite(block, 1, n, file.f);
    const bool read = !ferror(f);
    fclose(f);
    if (!read) fail(e, "cannot read %s: %s", from, strerror(errno));
    status = newfile_close(&file, read, read ? e : NULL);
    return read ? status : -1;
}

/* Copies the files of a model into the new directory `to`. */
static int copy_model(const char *from, const char *to, Error *e) {
    if (mkdir(to, 0777)) return fail_errno(e, errno, "cannot make %s: %s", to, strerror(errno));
    DIR *list = opendir(from);
    if (!list) return fail(e, "cannot list %s: %s", from, strerror(errno));
    int status = 0;
    for (struct dirent *entry; !status && (entry = readdir(list));) {
        if (!bundle_owns(entry->d_name)) continue;
        char *old = path_join(from, entry->d_name), *new = path_join(to, entry->d_name);
        status = copy_file(old, new, e);
        free(old);
        free(new);
    }
    closedir(list);
    return status;
}

void best_bring(Run *run) {
    Best *b = &run->state->best;
    Error e;
    if (!b->from) return;
    char *dir = path_join(run->output, "best"),
         *aside = newfile_name(dir, UNFINISHED_MARK, getpid());
    int status = copy_model(b->from, aside, &e);
    if (!status) status = checkpoint_place(run, aside, dir, &e);
    if (status) {
        fprintf(stderr, "note: the model of step %.0f, the best so far, is not copied: %s\n",
                b->step, e.text);
        bundle_clear(aside, NULL, NULL);
        rmdir(aside);
        b->lost = true;
    }
    free(b->from);
    b->from = NULL;
    free(aside);
    free(dir);
}

/* ---- the end of training --------------------------------------------------------------------- */

void best_load(Run *run) {
    struct RunState *s = run->state;
    Best *b = &s->best;
    Error e;
    if (!run->load_best_model_at_end || b->loaded || b->step < 1) return;
    run_begin_writing(run);  // which may copy it into OUTPUT
    int status = 0;
    if (!rank()) {  // it has written it, perhaps on a disk of its own, and shares it
        char *dir = path_join(run->output, "best");
        status = read_best(run, dir, true, &e);
        free(dir);
    }
    ranks_share(&status, sizeof status, 0);
    if (!status) {
        shards_share_weights(s->network[0]->model);
        b->loaded = true;
        return;
    }
    b->lost = b->step < b->last_step;
    if (b->lost && !rank())
        fprintf(stderr,
                "note: --load_best_model_at_end: %s; it was changed since, or another run wrote "
                "it; the result is the last model, of step %d\n",
                e.text, run->step);
}

bool run_has_best(const Run *run) { return run->state->best.loaded; }

/* Where the model with the lowest loss of a step is. */
static void print_place(const Run *run) {
    if (!run_saves(run))
        printf("that model is lost: with --output it is kept, in OUTPUT/best\n");
    else if (run->save_strategy == SAVE_NO)
        printf("that model is lost: --save_strategy no keeps the last one only\n");
    else if (run->state->best.lost)
        printf("that model is lost: it is not in %s/best\n", run->output);
    else
        printf("that model is in %s/best; --load_best_model_at_end makes it the result\n",
               run->output);
}

void best_report(const Run *run) {
    const struct RunState *s = run->state;
    const Best *b = &s->best;
    if (b->step < 1) return;
    if (s->stopped_at)
        printf("stopped at step %d of %d: %d evaluation%s in a row without a lower loss\n",
               s->stopped_at, run->total_steps, run->early_stopping_patience,
               plural(run->early_stopping_patience));
    const double result = b->loaded ? b->lowest : b->last;
    const bool earlier = b->lowest < b->last;
    const bool learned = !(b->before <= b->lowest);  // some step is better than the beginning
    if (b->loaded && earlier)
        printf("the result is the best model, of step %.0f: held-out loss %.4f, at the end %.4f\n",
               b->step, b->lowest, b->last);
    else if (earlier && learned)
        printf("the held-out loss was lowest at step %.0f, %.4f; at the end it is %.4f\n", b->step,
               b->lowest, b->last);
    if (!b->loaded && earlier && learned) print_place(run);
    if (result > b->before)
        printf("the result is worse than before training: held-out loss %.4f -> %.4f\n", b->before,
               result);
    if (!(result > b->before) || learned) return;
    const Technique *technique = s->program->technique;
    const char *adapter = technique ? technique->flags->adapter : NULL;
    const char *from = s->network[0]->create ? NULL : adapter ? adapter : run->model;
    printf("the better model is the one that the run started from%s%s\n", from ? ": " : "",
           from ? from : "");
}
