/*
 * private.h - the inside of a model, for gpt2.c, memory.c, generate.c and their tests only.
 */
#ifndef POSTTRAIN_PRIVATE_H
#define POSTTRAIN_PRIVATE_H

#include "model/gpt2.h"
#include "model/kernels.h"
#include "model/memory.h"
#include "model/shards.h"
#include "model/tap.h"
#include "util.h"

/* Order of the tensors: wte, wpe, then these twelve for each layer, then weight and bias of ln_f,
   then the scalar head's, then those of limits.more. */
enum {
    LN1_W,
    LN1_B,
    QKV_W,
    QKV_B,
    PROJ_W,
    PROJ_B,
    LN2_W,
    LN2_B,
    FC_W,
    FC_B,
    OUT_W,
    OUT_B,
    PER_LAYER
};
enum { WTE, WPE, FIRST_LAYER };

/* 1 where `real` is shorter than a float. Then weights that train have masters: floats that add up
   the optimiser's steps, most of which are too small for `real` (kernels.h, adamw). A weight is its
   master rounded. Masters are part of the optimiser's state and count as moments. */
enum { SHORT = sizeof(real) < sizeof(float) };

/* The most memory for logits, in bytes. If the logits of a batch need more, they are computed in
   turns, and when training most of them twice, which costs a tenth of a step at the size of GPT-2
   124M. 200 MB hold 994 rows of GPT-2's vocabulary.
   With a frozen embedding, logits would be the largest array after the weights, and need not be
   computed twice (gpt2_logprob), so they get less: 52 MB hold 258 rows. A GPU in bf16 gets more,
   because it needs many rows at once to be fast: 1,650 MB hold 16,400 rows, and 400 MB 3,975. */
enum {
    LOGIT_BYTES = (SHORT ? 1650 : 200) * 1000 * 1000,
    LOGIT_BYTES_FROZEN = (SHORT ? 400 : 52) * 1000 * 1000,
    LOGIT_BYTES_LEAN = 28 * 1000 * 1000
};

/* The numbers that a tensor, or its gradient, takes in memory: wte may have more rows there than
   the vocabulary (kernels.h, vocabulary_rows). */
size_t gpt2_room(const GPT2Tensor *t);

/* Device addresses of a tensor's parts. g is NULL if it does not train, master also unless SHORT.
 */
typedef struct {
    real *w;
    float *master, *g;
    size_t at;    // of a tensor that trains: where it begins in the arena of gradients
    bool owns_w;  // w was allocated for this tensor alone, because a mapped model needed a copy
    bool half;    // w points to numbers of bf16
    NF4 *nf4;     // the quantised weight, which replaces w; or NULL
} Parts;

/* A part of the arena of gradients: those of some layers, the top ones first. Processes share out
   each band among them (shards.c). */
typedef struct {
    size_t at, n;  // floats of the arena; n is a multiple of the number of shards
    int lowest;    // its lowest layer; -1: it has all that is in no layer, but the heads
} Band;

/* Activations of one layer, all with N rows. Without training all layers share the arrays of layer
   0. With gradient checkpointing they share all but r, and in a lean model they share fc. */
typedef struct {
    real *r, *qkv, *att, *h, *fc;                // (N,C) (N,3C) (N,C) (N,C) (N,F)
    float *lse, *mean1, *rstd1, *mean2, *rstd2;  // (N,NH), then (N)
} Layer;

struct GPT2 {
    GPT2Config config;
    GPT2Limits limits;
    GPT2Memory memory;
    bool mapped, reserved;
    Precision precision;  // of the model's products
    Tap tap;
    int tensors, own;    // all tensors, and the model's own
    GPT2Tensor *tensor;  // (tensors)
    Parts *parts;        // (tensors)

    // memory of the device, one allocation each
    real *weights;     // of the model's own tensors, unless it is mapped
    real *more;        // weights of the tensors of limits.more
    float *masters;    // of all own tensors, until gpt2_reserve copies the needed ones to moments
    float *gradients;  // accumulator, sums, received
    float *moments;    // first moments, second moments, masters; of this process's pieces of
                       // the bands, one after the other, but masters of all of the arena
    char *scratch;     // activations, logits, workspace and cache: all arrays below
    uint16_t *short_weights;  // room for the matrices in bf16, while a model that trains decodes

    // (trained_count) the gradients, and how many elements each has
    const float **trained;
    size_t *trained_n;
    int trained_count;

    // sums of gradients over shards and processes (shards.c)
    size_t arena;        // floats of all gradients together
    float *accumulator;  // (arena) gradients of the shard that is computed
    float **sum;         // (levels) (arena) sum[k]: of 2^k shards
    float *received;     // two blocks: of another process's sums, and of those that it gets
    int shard;           // whose gradients are in the accumulator
    Band *band;          // (bands) in the order of the arena, which is that of the backward pass
    int bands;
    uint8_t *late;    // (V) rows of wte whose gradient is final only at the end of a backward pass
    bool behind;      // the sums over processes are taken behind the backward pass
    int ready, done;  // turns that may be taken, and those that have been

    void (*release)(void *context);  // unmaps the file
    void *release_context;

    // Activations. Arrays in brackets share memory with the logits, because they are never in use
    // at the same time.
    Layer *layer;            // (L)
    real *r_final;           // (N,C) the residual stream that ln_f reads
    real *norm;              // (N,C) output of the last layer norm; of the final norm (outputs,C)
    real *d_r, *d_norm;      // (N,C) their gradients
    float *mean_f, *rstd_f;  // (N) of ln_f
    real *branch;            // [(N,C)] output of a layer's attention or MLP
    real *wide;              // [(N,max(F,3C))]
    real *act;               // [(N,F)] gelu(fc), for a tap at mlp.c_proj, which needs both
    real *head_in;           // (scored,C) rows of norm that have a target
    real *logits;            // (logit_rows,ldv)
    int logit_rows, ldv;
    int vocabulary;                 // rows of wte in memory, and columns of logits' products
    float *logp, *entropy, *lse;    // (scored)
    float *dlogp, *dentropy;        // (scored)
    int *best, *target, *row;       // (scored) row: index of the token in the batch
    int *start, *parent;            // (S+1) (S)
    int *token;                     // (N); in decoding, (round_room) all that a round needs
    int *position;                  // (N)
    uint32_t *sequence;             // (N) id of each token's sequence
    int *output, *output_position;  // (N) of each output row: its token in the batch, position
    uint32_t *output_sequence;      // (N) and sequence
    float *magnitude;               // (N) of NEFTune's noise
    float *value;                   // (N) the scalar head's output, or its gradient
    char *cache;                    // keys and values of L layers
    real *kept;                     // (limits.kept,C) output rows of the last gpt2_generate

    // memory of the host, for copies to and from the device
    int *host_int;      // (max(N, S+1))
    float *host_float;  // (N)
    int *host_row;      // (scored) tokens of the last gpt2_logprob
    int *host_output;   // (N) the output row of each token; -1 = none
    int *host_kept;     // (limits.kept) where each sampled token's row is in kept

    // state of the last forward pass
    Batch batch;  // its arrays belong to the caller
    GPT2Noise noise;
    bool noisy;            // noise is in use
    bool in_memory;        // its outputs: until the backward pass or decoding overwrites them
    bool recalled;         // only its outputs, by gpt2_recall
    int outputs;           // rows that leave the last layer, which are those of the final norm
    int kept_n;            // sampled tokens whose rows are in kept; 0 after a step
    int kept_first;        // the first of them; other processes sampled those before it
    bool recomputing;      // a layer's second forward pass, with gradient checkpointing
    bool decoding;         // a forward pass with the cache
    int scored;            // rows with a target
    int logits_kept;       // the logits of rows [0,logits_kept) are in memory
    float beta;            // 1 / temperature
    bool with_entropy;     // gpt2_logprob computed entropies
    bool head_in_is_grad;  // head_in contains d logp / d head_in instead of its own rows
};

static inline Parts *of_layer(const GPT2 *m, int l) {
    return m->parts + FIRST_LAYER + PER_LAYER * (size_t)l;
}

/* In bf16, a model whose matrices are frozen uses most of its memory for activations. So it does
   not store fc, the largest of them, which the backward pass computes again, and it keeps fewer
   logits. lora.c on GPT-2 124M with 4 x 256 tokens then needs 598 MB and not 760 MB; one thread
   computes 260 tokens/s and not 298. */
static inline bool gpt2_is_lean(const GPT2Limits *limits) {
    return limits->train && limits->bf16 && limits->trains != TRAIN_ALL &&
           !limits->gradient_checkpointing;
}

/* Can tensor t be stored in bf16? */
bool gpt2_is_factor(const GPT2Tensor *t);
/* Replaces the matrices of a model by copies in bf16, and back. The products of the model have the
   same bits. */
void gpt2_shorten(GPT2 *m);
void gpt2_lengthen(GPT2 *m, Parts *before);

/* The ints of the arrays of a round of decoding that reads N tokens of S slots, of which R sample a
   token (Round in generate.c). */
static inline size_t round_ints(int N, int S, int R) {
    return 3 * (size_t)N + (size_t)S + 1 + 3 * (size_t)R;
}
/* The ints that m->token has room for: those of the tokens or, in a model that decodes, of the
   largest round. */
static inline size_t round_room(const GPT2Limits *limits) {
    const int N = limits->tokens, slots = limits->slots;
    return slots ? round_ints(N, slots, slots) : (size_t)N;
}

/* ---- sums of gradients, in shards.c ---------------------------------------------------------- */

enum { EXCHANGED = 1 << 19 };  // floats that two processes exchange at a time

/* Lays out the gradients of those tensors t (m->tensors) that train: allocates m->band, and sets
   where each tensor begins in m->parts, unless there are none yet. Returns the floats of the
   arena. */
size_t shards_lay_out(GPT2 *m, const GPT2Tensor *t);
/* How many sums of shards are kept at a time. */
int shards_levels(void);
/* The piece of a band on which this process steps: floats of the arena, and where its moments
   begin among the process's. One process alone has all of it. */
typedef struct {
    size_t at, n, moments;
} Piece;
Piece shards_piece(const GPT2 *m, int band);
/* Lists a model that trains, for shards_serve. */
void shards_enlist(GPT2 *m);
void shards_delist(const GPT2 *m);
/* Before a backward pass of shard shards_now(): closes those before it. */
void shards_open(GPT2 *m);
/* In the backward pass: the gradients of layer l and of those above it will not change any more; l
   = L: those of the heads, and l = -1: all. */
void shards_final(GPT2 *m, int l);
/* Before the step, with more than one shard: this process's piece of the accumulator becomes the
   sum over all shards. Returns the sum of the squares of the whole gradient. */
double shards_sum(GPT2 *m);
/* After the step: all processes get the weights of all pieces. */
void shards_spread(GPT2 *m);
/* The next step begins; its gradients will be 0. Waits for sums that were begun. */
void shards_restart(GPT2 *m);
/* Copies the first or the second moments of the arena's floats [from, from + n) to host memory.
   With several processes: in process 0, while the others are in shards_serve. */
void shards_read_moments(const GPT2 *m, bool second, size_t from, size_t n, float *host);
/* Copies them from host memory, as far as they are this process's. */
void shards_write_moments(GPT2 *m, bool second, size_t from, size_t n, const float *host);

/* ---- parts of a forward pass, in gpt2.c, which decoding uses as well ------------------------- */

/* out (N,OC) = inp (N,IC) w + b. p[0] is the weight, which may be quantised, and p[1] the bias. */
void gpt2_linear(real *out, const real *inp, const Parts *p, int N, int IC, int OC);
/* fc (N,F) = c_fc(norm), which the backward pass needs, and wide (N,F) = gelu(fc), with the tap at
   c_fc in between. */
void gpt2_expand(GPT2 *m, int l, real *fc, int N);
/* Calls the tap, if there is one at this site of layer l, on out (N,OC). */
void gpt2_tap(const GPT2 *m, int l, TapSite site, int N, int IC, int OC, const real *inp, real *out,
              const real *residual);

#endif
