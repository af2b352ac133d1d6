/*
 * shards.c - the sums of a step's gradients over shards and processes: see shards.h.
 */
#include "model/shards.h"

#include "model/exchange.h"
#include "model/private.h"
#include "ranks.h"
#include "util.h"

#include <omp.h>
#include <pthread.h>

static int count = 1;     // G
static int current = -1;  // the shard of the micro-batch
static bool last_batch;   // it is this process's last one of the step

void shards_use(int G) { count = G; }
int shards_count(void) { return count; }
int shards_own(void) { return count / ranks(); }
int shards_first(void) { return rank() * shards_own(); }

/* ---- the sequences of a step ----------------------------------------------------------------- */

void shards_cut(Shards *s, const int *size, int n) {
    int64_t total = 0, before = 0;
    int shard = 0;
    for (int i = 0; i < n; i++) total += size[i];
    for (int i = 0; i < n; i++) {
        const int64_t middle = 2 * before + size[i];  // of 2 total
        const int of = total ? (int)(middle * count / (2 * total)) : 0;
        for (; shard < min_int(of, count - 1); shard++) s->end[shard] = i;
        before += size[i];
    }
    for (; shard < count; shard++) s->end[shard] = n;
    s->all_end = true;
    for (int g = shards_own() - 1; g < count; g += shards_own())
        s->all_end = s->all_end && s->end[g] > (g ? s->end[g - 1] : 0);
}

int shards_most(int64_t step, int longest, int batch) {
    // the middles of a shard's sequences lie in one G-th of the step
    const int64_t shard = step / count + longest;
    return count > 1 && shard < batch ? (int)shard : batch;
}

int shards_begin(const Shards *s) { return shards_first() ? s->end[shards_first() - 1] : 0; }

int shards_take(Shards *s, const int *size, int *which, int n) {
    shards_cut(s, size, n);
    const int first = shards_begin(s), mine = s->end[shards_first() + shards_own() - 1] - first;
    if (mine) memmove(which, which + first, sizeof *which * (size_t)mine);
    for (int g = 0; g < count; g++) s->end[g] -= first;
    return mine;
}

int shards_batch(const Shards *s, int from, int most) {
    const int last = shards_first() + shards_own();
    int shard = shards_first();
    while (shard < last && s->end[shard] <= from) shard++;
    if (shard == last) return 0;
    shards_enter(shard);
    const int n = min_int(most, s->end[shard] - from);
    last_batch = s->all_end && shard == last - 1 && from + n == s->end[shard];
    return n;
}

void shards_more(void) { last_batch = false; }

int shards_now(void) { return current; }

void shards_enter(int shard) {
    current = count > 1 ? shard : -1;
    last_batch = false;
}

/* ---- the arena of a model's gradients -------------------------------------------------------- */

enum {
    LINE = 16,    // floats of a cache line
    LEAST = 128,  // a band has at least so many times what it is rounded up to
};

/* Which gradients a backward pass ends first: 0 those of the heads and of the top layer, then a
   group for each layer, and last what is in no layer: the embeddings, since wte is also the
   vocabulary's head, and a technique's tensors. */
static int group_of(const GPT2 *m, int tensor) {
    const int layers = m->config.n_layer, layer = (tensor - FIRST_LAYER) / PER_LAYER;
    if (tensor < FIRST_LAYER || tensor >= m->own) return layers;
    return layer < layers ? layers - 1 - layer : 0;
}

static size_t rounded_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static size_t whole_lines(size_t n) { return rounded_up(n, LINE); }

size_t shards_lay_out(GPT2 *m, const GPT2Tensor *t) {
    const int groups = m->config.n_layer + 1;
    const size_t unit = LINE * (size_t)count;
    size_t *size = (size_t *)xcalloc((size_t)groups, sizeof *size), left = 0, arena = 0;
    for (int i = 0; i < m->tensors; i++) {
        const size_t n = t[i].trains ? whole_lines(gpt2_room(t + i)) : 0;
        size[group_of(m, i)] += n;
        left += n;
    }
    m->band = (Band *)xcalloc((size_t)groups, sizeof *m->band);
    m->bands = 1;
    for (int g = 0; g < groups; g++) {
        Band *s = &m->band[m->bands - 1];
        const size_t n = size[g];
        size[g] = arena + s->n;  // from now on: where the group begins
        s->at = arena;
        s->n += n;
        s->lowest = groups - 2 - g;
        left -= n;
        if (g < groups - 1 && (s->n < LEAST * unit || left < LEAST * unit)) continue;
        s->n = rounded_up(s->n, unit);
        arena += s->n;
        m->bands += g < groups - 1;
    }
    for (int i = 0; i < m->tensors && m->parts; i++) {
        if (!t[i].trains) continue;
        m->parts[i].at = size[group_of(m, i)];
        size[group_of(m, i)] += whole_lines(gpt2_room(t + i));
    }
    free(size);
    return arena;
}

/* How many sums of shards a process keeps while it computes the next shard: log2(G / R). */
int shards_levels(void) {
    int levels = 0;
    while (1 << levels < shards_own()) levels++;
    return levels;
}

/* The piece of each band's sum that a process has in the end. Its number is the process's with the
   bits in reverse: the first exchange, with the neighbour, decides the first half of the band. */
static int piece_of(int process) {
    int piece = 0;
    for (int bit = 1; bit < ranks(); bit *= 2) piece = 2 * piece + ((process & bit) != 0);
    return piece;
}

static int owner_of(int piece) { return piece_of(piece); }  // reversing twice changes nothing

Piece shards_piece(const GPT2 *m, int band) {
    const Band *s = &m->band[band];
    const size_t n = s->n / (size_t)ranks();
    return (Piece){s->at + n * (size_t)piece_of(rank()), n, s->at / (size_t)ranks()};
}

/* ---- sums within a process ------------------------------------------------------------------- */

/* Gradients are accumulated in `to` from now on. */
static void accumulate_in(GPT2 *m, float *to) {
    for (int i = 0; i < m->tensors; i++)
        if (m->parts[i].g) m->parts[i].g = to + m->parts[i].at;
    m->accumulator = to;
}

/* Shard m->shard has its whole gradient, and there are more to come: adds the sums of as many
   shards to its left, keeps the sum, and begins the next one with zero. */
static void close_shard(GPT2 *m) {
    const int closed = m->shard++ - shards_first();
    int level = 0;
    for (; closed >> level & 1; level++) add_floats(m->accumulator, m->sum[level], m->arena);
    float *next = m->sum[level];
    m->sum[level] = m->accumulator;
    accumulate_in(m, next);
    device_zero(next, sizeof(float) * m->arena);
}

/* ---- turns ----------------------------------------------------------------------------------- */

/*
 * The sums of the last shard with those to its left, and over processes, are taken in turns, in all
 * processes the same. Turn 1 + s is of band s. wte is both the head, whose gradient is there
 * first, and the embedding, whose gradient is there last, but only in the rows of the batch's
 * tokens. So turn 0 is of all other rows of wte, and the last turn of the rest of its band. Which
 * rows these are, the processes tell each other first.
 */
typedef enum { TAKE_ALL, TAKE_EARLY, TAKE_LATE } Taken;

static size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

static Taken taken_by(const GPT2 *m, int turn) {
    return turn == 0 ? TAKE_EARLY : turn == m->bands && m->late ? TAKE_LATE : TAKE_ALL;
}

/* How many of the arena's floats [at, end) are of one kind, and whether this turn takes them. */
static size_t run_of(const GPT2 *m, Taken what, size_t at, size_t end, bool *taken) {
    const size_t C = (size_t)m->config.n_embd, V = (size_t)m->config.vocab_size;
    const size_t wte = m->parts[WTE].at;
    bool late = true;
    if (what == TAKE_ALL) {
        *taken = true;
        return end - at;
    }
    size_t to = at < wte ? wte : end;
    if (at >= wte && at < wte + V * C) {
        size_t row = (at - wte) / C;
        for (late = m->late[row]; row < V && m->late[row] == late;) row++;
        to = wte + row * C;
    }
    *taken = late == (what == TAKE_LATE);
    return at_most(to, end) - at;
}

/* How many of the floats [at, end) the turn takes. */
static size_t count_taken(const GPT2 *m, Taken what, size_t at, size_t end) {
    size_t taken = 0;
    bool is_taken;
    for (size_t n; at < end; at += n) {
        n = run_of(m, what, at, end, &is_taken);
        if (is_taken) taken += n;
    }
    return taken;
}

/* Copies the next n floats that the turn takes, from *at on and before end, to block; or adds those
   of block to them. Moves *at behind them. */
static void move_taken(GPT2 *m, Taken what, size_t *at, size_t end, float *block, size_t n,
                       bool add) {
    bool taken;
    while (n) {
        size_t k = run_of(m, what, *at, end, &taken);
        if (taken) {
            k = at_most(k, n);
            if (add)
                add_floats(m->accumulator + *at, block, k);
            else
                memcpy(block, m->accumulator + *at, sizeof *block * k);
            block += k;
            n -= k;
        }
        *at += k;
    }
}

/* Adds the sums of all shards to the left of this process's last one. */
static void add_own(GPT2 *m, Taken what, const Band *s) {
    const int levels = shards_levels();
    bool taken;
    for (size_t at = s->at, end = s->at + s->n, n; at < end && levels; at += n) {
        n = run_of(m, what, at, end, &taken);
        for (int k = 0; k < levels && taken; k++)
            add_floats(m->accumulator + at, m->sum[k] + at, n);
    }
}

/* ---- sums over processes --------------------------------------------------------------------- */

enum { BLOCK = EXCHANGED };

static struct {
    double sent[LANE_BEHIND + 1];  // bytes
    double least;                  // 2 (R-1)/R of the bytes of what trains
    double after;    // seconds after a backward pass, in the process that waited the least
    double weights;  // seconds
    int steps;
} exchanged;

static bool in_host_memory(const GPT2 *m) { return device_map(m->accumulator, m->arena) != NULL; }

/* Sends what the turn takes of the floats [give, give + n) of the accumulator to a process, and
   adds what it receives to [take, take + n). */
static void exchange_sums(GPT2 *m, Taken what, size_t give, size_t take, size_t n, int peer,
                          Lane lane) {
    float *in = m->received;
    size_t from = give, to = take, outs = count_taken(m, what, give, give + n),
           ins = count_taken(m, what, take, take + n);
    while (outs || ins) {
        const size_t o = at_most(outs, BLOCK), i = at_most(ins, BLOCK);
        float *out = in + BLOCK;
        if (what == TAKE_ALL) {
            out = m->accumulator + from;
            from += o;
        } else {
            move_taken(m, what, &from, give + n, out, o, false);
        }
        exchange_floats(in, i, out, o, peer, lane);
        exchanged.sent[lane] += (double)(sizeof(float) * o);
        move_taken(m, what, &to, take + n, in, i, true);
        outs -= o;
        ins -= i;
    }
}

/* A row that is late in one process becomes late in all. */
static void share_late(GPT2 *m, Lane lane) {
    const size_t V = (size_t)m->config.vocab_size, most = sizeof(float) * BLOCK;
    uint8_t *other = (uint8_t *)m->received;
    for (int bit = 1; bit < ranks(); bit *= 2)
        for (size_t at = 0, n; at < V; at += n) {
            n = at_most(V - at, most);
            ranks_exchange(other, n, m->late + at, n, rank() ^ bit, lane);
            exchanged.sent[lane] += (double)n;
            for (size_t i = 0; i < n; i++) m->late[at + i] |= other[i];
        }
}

/* The piece of what the turn takes becomes the sum over all shards. */
static void reduce_turn(GPT2 *m, int turn, Lane lane) {
    const Taken what = taken_by(m, turn);
    if (what == TAKE_EARLY && !m->late) return;
    if (what == TAKE_EARLY) share_late(m, lane);
    const Band *s = &m->band[turn ? turn - 1 : m->bands - 1];
    size_t from = s->at, n = s->n;
    add_own(m, what, s);
    for (int bit = 1; bit < ranks(); bit *= 2) {
        const bool upper = (rank() & bit) != 0;
        n /= 2;
        exchange_sums(m, what, from + (upper ? 0 : n), from + (upper ? n : 0), n, rank() ^ bit,
                      lane);
        from += upper ? n : 0;
    }
}

/* ---- sums behind the backward pass ----------------------------------------------------------- */

/*
 * A process's last backward pass of a step leaves the gradients of a layer as they will be, and
 * goes on to the layer below. A thread of its own takes the turns meanwhile. A thread, and not
 * calls of MPI between the layers: MPI moves data only within its calls, and a layer takes longer
 * than a message. The thread sleeps while it waits, and adds with one thread, so it takes little
 * from those that compute.
 *
 * All processes do this in the same steps: those in which the last shard of each has sequences. So
 * the thread takes the turns of two models in the order of their backward passes, and the main
 * thread those of other steps in the order of the steps.
 *
 * A device that exchanges by itself (exchange.h) needs no thread. The main thread queues the turns
 * while it queues the backward pass, and the device takes them beside it. Where the host's memory
 * lies between two devices, the main thread takes all turns after the backward pass.
 */
enum { MOST_MODELS = 4 };
static struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    GPT2 *model[MOST_MODELS];  // (models) whose turns are not all taken
    int models;
    bool runs;
} behind = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

static int turns(const GPT2 *m) { return m->bands + 1; }

static void *take_turns_behind(void *nothing) {
    omp_set_num_threads(1);  // in this thread
    pthread_mutex_lock(&behind.lock);
    for (;;) {
        GPT2 *m = behind.models ? behind.model[0] : NULL;
        if (!m || m->done == m->ready) {
            pthread_cond_wait(&behind.news, &behind.lock);
            continue;
        }
        pthread_mutex_unlock(&behind.lock);
        reduce_turn(m, m->done, LANE_BEHIND);
        pthread_mutex_lock(&behind.lock);
        if (++m->done == turns(m))
            memmove(behind.model, behind.model + 1, sizeof *behind.model * (size_t)--behind.models);
        pthread_cond_broadcast(&behind.news);
    }
    return nothing;
}

/* The rows of wte that the embedding's backward pass will change. */
static void note_late(GPT2 *m) {
    memset(m->late, 0, (size_t)m->config.vocab_size);
    for (int i = 0; i < m->batch.N; i++) m->late[m->batch.tokens[i]] = 1;
}

static void begin_behind(GPT2 *m) {
    pthread_t thread;
    if (m->behind) die("shards_open: a backward pass after the last one of a step");
    if (exchange_is_queued()) {
        m->behind = true;
        return;
    }
    if (m->late) note_late(m);
    pthread_mutex_lock(&behind.lock);
    if (behind.models == MOST_MODELS) die("more than %d models train", MOST_MODELS);
    behind.model[behind.models++] = m;
    m->behind = true;
    if (!behind.runs &&
        (pthread_create(&thread, NULL, take_turns_behind, NULL) || pthread_detach(thread)))
        die("cannot start a thread");
    behind.runs = true;
    pthread_mutex_unlock(&behind.lock);
}

/* May the next turn be taken, when layer l and those above it are final? */
static bool next_is_final(const GPT2 *m, int l) {
    return m->ready < turns(m) && (!m->ready || m->band[m->ready - 1].lowest >= l);
}

static void queue_turns(GPT2 *m, int l) {
    if (!next_is_final(m, l)) return;
    device_beside(true);
    while (next_is_final(m, l)) reduce_turn(m, m->ready++, LANE_BEHIND);
    device_beside(false);
}

void shards_final(GPT2 *m, int l) {
    if (!m->behind) return;
    if (exchange_is_queued()) {
        queue_turns(m, l);
        return;
    }
    pthread_mutex_lock(&behind.lock);
    while (next_is_final(m, l)) m->ready++;
    pthread_cond_broadcast(&behind.news);
    pthread_mutex_unlock(&behind.lock);
}

static void wait_beside(void) {
    device_beside(true);
    exchange_wait();
    device_beside(false);
}

static void wait_for_turns(GPT2 *m) {
    if (!m->behind) return;
    m->behind = false;
    if (exchange_is_queued()) {
        wait_beside();
        return;
    }
    pthread_mutex_lock(&behind.lock);
    while (m->done < turns(m)) pthread_cond_wait(&behind.news, &behind.lock);
    pthread_mutex_unlock(&behind.lock);
}

void shards_open(GPT2 *m) {
    while (m->shard < current) close_shard(m);
    if (last_batch && ranks() > 1 && (exchange_is_queued() || in_host_memory(m))) begin_behind(m);
}

void shards_restart(GPT2 *m) {
    wait_for_turns(m);
    m->shard = shards_first();
    m->ready = m->done = 0;
}

/* ---- the whole sum --------------------------------------------------------------------------- */

/* The sum of the squares of the whole gradient: of G chunks of every band, each by the process
   that has it, added in the order of the chunks. seconds: becomes the least of all processes. */
static double squares(const GPT2 *m, double *seconds) {
    const int own = shards_own(), first = own * piece_of(rank()), each = own + 1;
    const float *chunk[m->bands];
    size_t n[m->bands];
    double part[2 * MOST_SHARDS], sum = 0, *mine = part + (size_t)each * (size_t)rank();
    for (int k = 0; k < own; k++) {
        for (int s = 0; s < m->bands; s++) {
            n[s] = m->band[s].n / (size_t)count;
            chunk[s] = m->accumulator + m->band[s].at + n[s] * (size_t)(first + k);
        }
        mine[k] = sum_of_squares(chunk, n, m->bands);
    }
    mine[own] = *seconds;
    ranks_gather(part, sizeof *part * (size_t)each);
    for (int r = 0; r < ranks(); r++) *seconds = fmin(*seconds, part[each * r + own]);
    for (int k = 0; k < count; k++) sum += part[each * owner_of(k / own) + k % own];
    return sum;
}

/* Bytes of 2 (R-1)/R of the numbers that train. */
static double least_bytes(const GPT2 *m) {
    double n = 0;
    for (int i = 0; i < m->trained_count; i++) n += (double)m->trained_n[i];
    return 2 * sizeof(float) * n * (ranks() - 1) / ranks();
}

static void take_turns(GPT2 *m) {
    device_beside(true);
    for (int turn = 0; turn < turns(m); turn++) reduce_turn(m, turn, LANE_MAIN);
    exchange_wait();
    device_beside(false);
}

double shards_sum(GPT2 *m) {
    device_wait();  // for the backward pass
    double seconds = now_seconds();
    while (m->shard < shards_first() + shards_own() - 1) close_shard(m);
    if (m->behind)
        wait_for_turns(m);
    else
        take_turns(m);
    seconds = now_seconds() - seconds;
    const double sum = squares(m, &seconds);
    exchanged.after += seconds;
    exchanged.least += least_bytes(m);
    exchanged.steps++;
    return sum;
}

void shards_print_exchanges(void) {
    const double sent = exchanged.sent[LANE_MAIN] + exchanged.sent[LANE_BEHIND];
    if (ranks() == 1 || !exchanged.steps) return;
    printf("sent: %.1f MB a step and process, %.3f of 2 (R-1)/R of what trains%s\n",
           sent / exchanged.steps / 1e6, sent / exchanged.least,
           exchange_is_queued() ? ", from GPU to GPU by NCCL" : "");
    printf("waits of a step: %.4f s for gradients, %.4f s for weights\n",
           exchanged.after / exchanged.steps, exchanged.weights / exchanged.steps);
}

/* ---- weights, after the step ----------------------------------------------------------------- */

/* Copies the weights of the arena's floats [from, from + n) to block (device), or back. Between
   tensors there is nothing to copy. */
static void copy_weights(GPT2 *m, size_t from, size_t n, float *block, bool back) {
    for (int i = 0; i < m->tensors; i++) {
        const Parts *p = &m->parts[i];
        const size_t begin = from > p->at ? from : p->at;
        const size_t last = p->at + m->tensor[i].n, end = at_most(last, from + n);
        if (!p->g || begin >= end) continue;
        const size_t k = begin - p->at, bytes = sizeof(float) * (end - begin);
        void *weight = p->master ? (void *)(p->master + k) : (void *)(p->w + k);
        float *here = block + (begin - from);
        if (back) {
            device_copy(weight, here, bytes);
            if (p->master) real_round(p->w + k, here, end - begin);
        } else {
            device_copy(here, weight, bytes);
        }
    }
}

/* Sends the weights of the arena's floats [give, give + n) to a process, and receives as many,
   those of [take, take + n). */
static void exchange_weights(GPT2 *m, size_t give, size_t take, size_t n, int peer) {
    float *in = m->received, *out = in + BLOCK;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t k = at_most(n - at, BLOCK);
        copy_weights(m, give + at, k, out, false);
        exchange_floats(in, k, out, k, peer, LANE_MAIN);
        exchanged.sent[LANE_MAIN] += (double)(sizeof(float) * k);
        copy_weights(m, take + at, k, in, true);
    }
}

/* All processes get a band's weights, and its gradients become 0. */
static void spread(GPT2 *m, int band) {
    const Band *s = &m->band[band];
    const Piece p = shards_piece(m, band);
    const size_t before = p.at - s->at;
    device_zero(m->accumulator + s->at, sizeof(float) * before);
    device_zero(m->accumulator + p.at + p.n, sizeof(float) * (s->n - before - p.n));
    size_t from = p.at, n = p.n;
    for (int bit = ranks() / 2; bit; bit /= 2) {
        const size_t other = (rank() & bit) ? from - n : from + n;
        exchange_weights(m, from, other, n, rank() ^ bit);
        from = from < other ? from : other;
        n *= 2;
    }
}

void shards_spread(GPT2 *m) {
    if (ranks() == 1) return;
    device_wait();  // for the step
    const double began = now_seconds();
    device_beside(true);
    for (int s = 0; s < m->bands; s++) spread(m, s);
    exchange_wait();
    device_beside(false);
    exchanged.weights += now_seconds() - began;
}

void shards_share_weights(GPT2 *m) {
    float *host = (float *)xmalloc(sizeof *host * BLOCK);
    for (size_t at = 0; ranks() > 1 && at < m->arena; at += BLOCK) {
        const size_t n = at_most(m->arena - at, BLOCK);
        copy_weights(m, at, n, m->received, false);
        device_read(host, m->received, sizeof *host * n);
        ranks_share(host, sizeof *host * n, 0);
        device_write(m->received, host, sizeof *host * n);
        copy_weights(m, at, n, m->received, true);
    }
    free(host);
}

/* ---- moments of other processes -------------------------------------------------------------- */

/* What process 0 wants to read. n = 0: nothing more. */
typedef struct {
    int model, second;
    size_t from, n;  // floats of the arena
} Wish;

static GPT2 *trained[MOST_MODELS];  // the models that train, in the order of gpt2_reserve
static int models;

void shards_enlist(GPT2 *m) {
    int i = 0;
    if (ranks() == 1) return;
    while (i < models && trained[i]) i++;
    if (i == MOST_MODELS) die("more than %d models train", MOST_MODELS);
    models += i == models;
    trained[i] = m;
}

void shards_delist(const GPT2 *m) {
    for (int i = 0; i < models; i++)
        if (trained[i] == m) trained[i] = NULL;
}

/* Sends process 0 what it wishes and this process has. In process 0: receives it in host. */
static void fulfil(const Wish *w, float *host) {
    const GPT2 *m = trained[w->model];
    const size_t R = (size_t)ranks(), end = w->from + w->n;
    int s = 0;
    for (size_t at = w->from, n; at < end; at += n, host += n) {
        while (at >= m->band[s].at + m->band[s].n) s++;
        const size_t piece = m->band[s].n / R, in_band = at - m->band[s].at;
        const int owner = owner_of((int)(in_band / piece));
        const size_t here = m->band[s].at / R + in_band % piece;
        n = at_most(end - at, piece - in_band % piece);
        if (owner == rank())
            device_read(host, m->moments + (w->second ? m->arena / R : 0) + here,
                        sizeof(float) * n);
        ranks_send_first(host, sizeof(float) * n, owner);
    }
}

void shards_read_moments(const GPT2 *m, bool second, size_t from, size_t n, float *host) {
    Wish w = {.second = second, .from = from, .n = n};
    if (ranks() == 1) {
        device_read(host, m->moments + (second ? m->arena : 0) + from, sizeof(float) * n);
        return;
    }
    if (rank()) die("the moments of a model are read by the first process alone");
    while (w.model < models && trained[w.model] != m) w.model++;
    if (w.model == models) die("shards_read_moments: this model does not train");
    ranks_share(&w, sizeof w, 0);
    fulfil(&w, host);
}

void shards_serve(void) {
    Wish w = {0};
    while (ranks() > 1) {
        ranks_share(&w, sizeof w, 0);
        if (!w.n) return;
        float *host = (float *)xmalloc(sizeof(float) * w.n);
        fulfil(&w, host);
        free(host);
    }
}

void shards_served(void) {
    Wish w = {0};
    ranks_share(&w, sizeof w, 0);
}

void shards_write_moments(GPT2 *m, bool second, size_t from, size_t n, const float *host) {
    for (int s = 0; s < m->bands; s++) {
        const Piece p = shards_piece(m, s);
        const size_t begin = from > p.at ? from : p.at;
        const size_t end = at_most(from + n, p.at + p.n);
        float *to = m->moments + (second ? m->arena / (size_t)ranks() : 0) + p.moments;
        if (begin < end)
            device_write(to + (begin - p.at), host + (begin - from), sizeof(float) * (end - begin));
    }
}
