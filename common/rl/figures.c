/*
 * figures.c - the figures of reinforcement learning: see figures.h.
 */
#include "rl/figures.h"

/* ---- of a set of answers --------------------------------------------------------------------- */

/* Lengths, scores, and their correlation. */
static void measure_answers(const Rollouts *r, Figures *f) {
    const double E = r->E;
    double length_squared = 0, score_squared = 0, product = 0;
    f->shortest = INFINITY;
    for (int e = 0; e < r->E; e++) {
        const double n = r->start[e + 1] - r->start[e], s = r->shaped[e];
        f->score += s / E;
        f->raw += (double)r->score[e] / E;
        f->ended += r->ended[e];
        f->length += n / E;
        f->shortest = fmin(f->shortest, n);
        f->longest = fmax(f->longest, n);
        length_squared += n * n / E;
        score_squared += s * s / E;
        product += n * s / E;
    }
    // A variance that is only rounding error counts as 0.
    const double lengths = length_squared - f->length * f->length;
    const double scores = score_squared - f->score * f->score;
    const bool both_vary = lengths > 1e-12 * length_squared && scores > 1e-12 * score_squared;
    f->correlation = both_vary ? (product - f->length * f->score) / sqrt(lengths * scores) : NAN;
}

/* KL, entropy, and how much of the return's variance the critic explains. */
static void measure_tokens(const Rollouts *r, Figures *f) {
    const double E = r->E, n = r->n_tokens;
    double squared = 0, error = 0, error_squared = 0;
    for (int t = 0; t < r->n_tokens; t++) {
        const double ret = (double)r->ret[t], d = ret - (double)r->value[t];
        f->kl_exact += (double)r->kl[t] / E;
        f->entropy -= (double)r->logp[t] / E;
        f->returns += ret / n;
        squared += ret * ret / n;
        error += d / n;
        error_squared += d * d / n;
    }
    const double variance = squared - f->returns * f->returns;
    const double unexplained = error_squared - error * error;
    f->explained = variance > 1e-12 * squared ? 1 - unexplained / variance : NAN;
}

Figures figures_measure(const Rollouts *r) {
    Figures f = {0};
    measure_answers(r, &f);
    measure_tokens(r, &f);
    return f;
}

/* ---- of an iteration's updates --------------------------------------------------------------- */

void sums_add(Sums *all, const Sums *s) {
    all->tokens += s->tokens;
    all->policy += s->policy;
    all->clipped += s->clipped;
    all->ratio += s->ratio;
    all->ratio_squared += s->ratio_squared;
    all->approxkl += s->approxkl;
    all->entropy += s->entropy;
    all->value_tokens += s->value_tokens;
    all->value += s->value;
    all->value_clipped += s->value_clipped;
    all->ptx_tokens += s->ptx_tokens;
    all->ptx += s->ptx;
    all->skipped += s->skipped;
}

static double mean(double sum, double n) { return n > 0 ? sum / n : NAN; }

void figures_watch(Run *run, const Figures *f, const Sums *s, double beta, double episode) {
    const double ratio = mean(s->ratio, s->tokens);
    watch(run, "objective/scores", f->score);
    watch(run, "objective/kl", f->kl);
    watch(run, "objective/kl_exact", f->kl_exact);
    watch(run, "objective/kl_coef", beta);
    watch(run, "objective/entropy", f->entropy);
    watch(run, "lengths/mean", f->length);
    watch(run, "policy/approxkl_avg", mean(s->approxkl, s->tokens));
    watch(run, "policy/clipfrac_avg", mean(s->clipped, s->tokens));
    watch(run, "loss/value_avg", mean(s->value, s->value_tokens));
    watch(run, "objective/non_score_reward", f->non_score);
    watch(run, "objective/rlhf_reward", f->score + f->non_score);
    watch(run, "objective/raw_scores", f->raw);
    watch(run, "objective/kl_k1", f->k1);
    watch(run, "objective/kl_k3", f->k3);
    watch(run, "policy/entropy_avg", mean(s->entropy, s->tokens));
    watch(run, "loss/policy_avg", mean(s->policy, s->tokens));
    watch(run, "loss/ptx_avg", mean(s->ptx, s->ptx_tokens));
    watch(run, "val/ratio", ratio);
    watch(run, "val/ratio_var", fmax(0, mean(s->ratio_squared, s->tokens) - pow(ratio, 2)));
    watch(run, "val/clipfrac_avg", mean(s->value_clipped, s->value_tokens));
    watch(run, "val/explained_variance", f->explained);
    watch(run, "val/num_eos_tokens", f->ended);
    watch(run, "val/returns_mean", f->returns);
    watch(run, "val/skipped", s->skipped);
    watch(run, "lengths/min", f->shortest);
    watch(run, "lengths/max", f->longest);
    watch(run, "lengths/score_correlation", f->correlation);
    watch(run, "grad_norm", s->grad_norm);
    watch(run, "lr", (double)run_adamw(run).learning_rate);
    watch(run, "episode", episode);
}
