/*
 * loss.h - the loss of a language model, on the numbers that gpt2_logprob returns.
 */
#ifndef POSTTRAIN_LOSS_H
#define POSTTRAIN_LOSS_H

/*
 * Cross-entropy of the scored tokens (target >= 0) of one batch, as its part of the mean over all
 * M scored tokens of the optimiser's step:
 *
 *     L = -1/M sum_i log p(target_i)        dL/dlogp_i = -1/M
 *
 * Returns the batch's part of L and writes the gradient dlogp (N), which is 0 for tokens that are
 * not scored. target (N) and logp (N) are those of gpt2_logprob.
 */
double cross_entropy(int N, const int *target, const float *logp, double M, float *dlogp);

#endif
