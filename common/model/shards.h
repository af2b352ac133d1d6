/*
 * shards.h - the shards of a step: groups of its sequences, whose gradients are added up in one
 * order whatever the number of processes is.
 *
 * The sequences of a step, in their order, are cut into G shards of nearly equal numbers of tokens,
 * G a power of two. The gradient of a shard is accumulated from zero. The shards are the leaves of
 * a binary tree, and every sum in it is that of two neighbours:
 *
 *     ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
 *
 * R processes compute G/R neighbouring shards each. A process adds its own ones, and the processes
 * add theirs with each other. In the first exchange a process and its neighbour send each other
 * half of their sums, and each adds one half; then a quarter, and so on (recursive halving). In the
 * end a process has one piece of the whole sum, 1/R. It keeps the moments of this piece alone,
 * steps on it (ZeRO-1, Rajbhandari et al. 2020), and gives the others its weights. Each number is
 * the result of the same additions for every R, so the bits do not depend on R.
 *
 * The exchange is that of one band after the other, each of a layer or of a few small ones, the
 * top layer first. So the gradients of a layer leave while the layers below are still computed.
 *
 * With G = 1, the default of one process, there is no tree: gradients accumulate from micro-batch
 * to micro-batch.
 */
#ifndef POSTTRAIN_SHARDS_H
#define POSTTRAIN_SHARDS_H

#include "model/gpt2.h"

enum { MOST_SHARDS = 1024 };

/* The number of shards of every step, G. Models that are reserved from now on have memory for their
   sums. */
void shards_use(int G);
int shards_count(void);
/* The shards of this process are first ... first + shards_own() - 1. */
int shards_own(void);
int shards_first(void);

/* ---- the sequences of a step ----------------------------------------------------------------- */

/* Where each shard ends. Shard g has the sequences end[g-1] to end[g]-1, and may be empty. */
typedef struct {
    int end[MOST_SHARDS];
    bool all_end;  // the last shard of every process has sequences
} Shards;

/* Cuts n sequences of size[i] tokens each. A sequence belongs to the shard in which its middle
   token is. */
void shards_cut(Shards *s, const int *size, int n);
/* Cuts n sequences, and moves those of this process to the beginning of which (n), the numbers of
   the sequences. Returns how many they are; the ends count these. With one process: all. */
int shards_take(Shards *s, const int *size, int *which, int n);
/* The most tokens of a micro-batch, if the sequences of a step have at most `step` tokens, each at
   most `longest`, and those of a micro-batch within one shard at most `batch`. */
int shards_most(int64_t step, int longest, int batch);
/* The first sequence of this process, of those that shards_cut has cut. */
int shards_begin(const Shards *s);
/* How many sequences the micro-batch from sequence `from` on has: at most `most`, all of one shard
   of this process; 0: there are no more. Backward passes from now on are of this shard. Those of
   the last micro-batch are taken for the last ones of a step, one of each model. Then processes
   exchange gradients while others are still computed. */
int shards_batch(const Shards *s, int from, int most);
/* There will be more backward passes than those of the last micro-batch. */
void shards_more(void);
/* The shard of the micro-batch; -1: none, because there is only one or the step has ended. */
int shards_now(void);
/* Backward passes from now on are of this shard; -1: the step has ended. */
void shards_enter(int shard);

/* ---- models ---------------------------------------------------------------------------------- */

/* The weights that train become those of process 0 in all processes. */
void shards_share_weights(GPT2 *m);
/* While process 0 reads moments of models, which other processes may have: sends them. It returns
   when process 0 calls shards_served. One process alone needs neither. */
void shards_serve(void);
void shards_served(void);
/* Prints what the steps so far have exchanged, if there are several processes. */
void shards_print_exchanges(void);

#endif
