/*
 * loss.c - the cross-entropy of a language model.
 */
#include "model/loss.h"

double cross_entropy(int N, const int *target, const float *logp, double M, float *dlogp) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        loss -= target[i] >= 0 ? (double)logp[i] / M : 0;
        dlogp[i] = target[i] >= 0 ? (float)(-1 / M) : 0.0f;
    }
    return loss;
}
