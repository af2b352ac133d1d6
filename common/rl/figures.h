/*
 * figures.h - the figures (metrics) of reinforcement learning: of a set of answers, and of an
 * iteration's updates.
 */
#ifndef POSTTRAIN_FIGURES_H
#define POSTTRAIN_FIGURES_H

#include "rl/rollouts.h"
#include "run/run.h"

/* Figures of a set of answers. "Per answer": summed over its tokens, then averaged over the
   answers. NAN: not measured. */
typedef struct {
    double kl, k1, k3;  // the stage's estimates of KL(policy || reference) per answer, in nats
    double kl_exact;    // the same over the whole vocabulary
    double entropy;     // -log π_old per answer
    double raw, score;  // mean score as the judge gave it, and as the policy learns from it
    double non_score;   // the KL penalty's part of the reward, per answer; the stage sets it
    double ended;       // the number of answers that end with the end of text
    double length, shortest, longest;  // tokens of an answer
    double correlation;                // of length and score; NAN when either is constant
    double returns;                    // mean of R over the tokens
    double explained;                  // 1 - Var(R - V) / Var(R); NAN when R is constant
} Figures;

/* All of them but kl, k1, k3 and non_score, which stay 0. */
Figures figures_measure(const Rollouts *r);

/* Sums over the tokens of minibatches. Divided by a number of tokens they are means. All are 0
   where nothing was computed, such as the policy's while only the critic trains. */
typedef struct {
    double tokens, policy, clipped;             // of the policy's loss; how many tokens are clipped
    double ratio, ratio_squared;                // ρ, ρ²
    double approxkl;                            // ½ (log ρ)²
    double entropy;                             // of the policy's distribution
    double value_tokens, value, value_clipped;  // the same of the critic's loss
    double ptx_tokens, ptx;                     // cross-entropy of the records of --ptx_data
    double skipped;                             // minibatches without an update; 0 or 1 for one
    double grad_norm;                           // no sum: of the last optimiser step
} Sums;

/* Adds the sums of s to those of all. all->grad_norm stays. */
void sums_add(Sums *all, const Sums *s);
/* Watches the figures of an iteration: of its answers (objective/, lengths/), and means over the
   tokens of its minibatches (policy/, loss/, val/). beta: the weight of the KL penalty; episode:
   the number of answers since the run began. */
void figures_watch(Run *run, const Figures *f, const Sums *s, double beta, double episode);

#endif
