/*
 * ppo.c - proximal policy optimisation: raise a reward that judges whole answers, without straying
 * far from where the model started.
 *
 * A policy π, the language model, answers prompts by sampling. A reward model (or a program) judges
 * each answer with one score. Per token
 *
 *     kl_t = log π_old(y_t) - log π_ref(y_t)                            how far the answer is from
 * the frozen start, π_ref r_t  = -β kl_t + 1[t = T] score δ_t  = r_t + γ V_{t+1} - V_t,    A_t =
 * δ_t + γ λ A_{t+1},    R_t = A_t + V_t                V: the critic; V_{T+1} = 0 ρ_t  = π(y_t) /
 * π_old(y_t) L    = mean_t max(-A ρ, -A clip(ρ, 1-ε, 1+ε))                     the policy's loss
 *          + c_v ½ mean_t max((V-R)², (clip(V, V_old ± ε_v) - R)²)      the critic's
 *          - c_e mean_t H(π)  +  c_ptx L_lm                             an entropy bonus; text that
 * must not be forgotten
 *
 * Schulman et al. 2017 (PPO), 2016 (GAE); with language models: Ziegler et al. 2019, Stiennon et
 * al. 2020, Ouyang et al. 2022. What those programs do beyond the formulas decides whether they
 * learn (Huang et al. 2024, "The N implementation details of RLHF with PPO"). Here each is a flag,
 * numbered in --help and where it acts:
 *
 *      1 one temperature, in rollouts and in the loss      9 whitening the advantages            17
 * skipping and stopping updates 2 answers that do not end                          10 the variance
 * whitening divides by   18 the place of Adam's epsilon 3 clipping the score 11 epochs and
 * minibatches              19 decay of the learning rate 4 β, fixed or adaptive 12 clipping the
 * ratio                  20 mixing in pre-training text 5 the estimator of kl_t 13 clipping the
 * value                  21 where the critic starts, and 6 whitening the rewards 14 the value's
 * weight, its trunk          how it goes ahead 7 γ and λ 15 the entropy bonus 8 the estimator of A
 * 16 clamping the log-ratio
 *
 * Nothing is padded, so every mean is over real tokens, the score lies on the answer's last token,
 * and V is not read behind it. The log-probabilities of a rollout are those of training to the bit:
 * the first ratio of an iteration is exactly 1.
 *
 * Left out: rollouts by top-k or top-p (their log-probabilities are another policy's, and KL turns
 * negative), a reward on the token after the end (an old slip of padded programs), the 24-token
 * style task's truncation at a full stop, and dropout, which would make ρ noise.
 */
#include "common/model/gpt2.h"  // the models: gpt2_generate, gpt2_forward, gpt2_logprob, gpt2_value, gpt2_backward, gpt2_step
#include "common/files/hf.h"      // hf_config, hf_load_head
#include "common/rl/rollouts.h"   // prompts, answers, the numbers of their tokens, the judge
#include "common/run/run.h"       // flags, schedule, log, checkpoints
#include "common/run/chat.h"      // --prompt and --chat
#include "common/text/dataset.h"  // records as tokens
#include "common/text/tokenizer.h"
#include "common/util.h"  // die, xmalloc, random_permutation

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "PPO: reinforcement learning of a GPT-2 from a reward model or a program. Without arguments: a "
    "small built-in example.";

static struct {
    const char *preset, *template, *reward_model, *reward_cmd, *critic_model, *ptx_data,
        *dump_rollouts, *replay;
    const char *kl_estimator, *advantage, *whiten_advantages, *whitening_variance,
        *adam_eps_convention;
    int total_episodes, batch_size, num_generations, num_mini_batches, num_ppo_epochs,
        max_prompt_length, response_length, rollout_slots;
    int critic_warmup_steps, ptx_batch_size, eval_samples;
    float temperature, missing_eos_penalty, penalty_reward_value, score_clip, kl_coef, target,
        horizon, gamma, lam, cliprange;
    float cliprange_value, vf_coef, entropy_coef, log_ratio_clamp, ratio_threshold, target_kl,
        critic_learning_rate, ptx_coef, reward_timeout;
    bool strict, non_eos_penalty, adap_kl_ctrl, whiten_rewards, shared_value_head, exact_kl;
} args;

static Talk talk;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Models, prompts, rollouts"},
    {"preset", FLAG_CHOICE, &args.preset,
     .help = "none|lmhp|nplus|textbook: published settings (Ziegler et al. 2019; Huang et al. "
             "2024; tutorials); flags beside it win"},
    {"reward_model", FLAG_STRING, &args.reward_model,
     .help = "directory of the reward model, as reward.c writes it"},
    {"reward_cmd", FLAG_STRING, &args.reward_cmd,
     .help = "instead: a program that reads {\"prompt\", \"response\"} lines and answers "
             "{\"score\"} lines"},
    {"reward_timeout", FLAG_FLOAT, &args.reward_timeout, .low = 0.1, .high = 1e6,
     .free_on_resume = true, .help = "seconds of silence after which that program is given up"},
    {"template", FLAG_STRING, &args.template,
     .help = "text around an instruction: {instruction}, [[... {input} ...]], \\n"},
    {"strict", FLAG_BOOL, &args.strict,
     .help = "stop at the first bad line of a data file instead of skipping it"},
    {"max_prompt_length", FLAG_INT, &args.max_prompt_length, .low = 1, .high = 1 << 20,
     .help = "tokens; a longer prompt loses its beginning"},
    {"response_length", FLAG_INT, &args.response_length, .low = 1, .high = 1 << 20,
     .help = "most tokens of an answer"},
    {"total_episodes", FLAG_INT, &args.total_episodes, .high = 2e9,
     .help = "answers in all; 0: --num_train_epochs times through the prompts"},
    {"batch_size", FLAG_INT, &args.batch_size, .low = 1, .high = 1 << 20,
     .help = "answers of one iteration, which is a step of this run"},
    {"num_generations", FLAG_INT, &args.num_generations, .low = 1, .high = 1 << 16,
     .help = "answers to each prompt"},
    {"rollout_slots", FLAG_INT, &args.rollout_slots, .low = 1, .high = 4096, .free_on_resume = true,
     .help = "answers written at the same time"},
    {"temperature", FLAG_FLOAT, &args.temperature, .high = 100,
     .help = "(1) of rollouts and of every log-probability"},
    {"eval_samples", FLAG_INT, &args.eval_samples, .high = 1e6,
     .help = "held-out prompts answered before, during and after training"},
    {"dump_rollouts", FLAG_STRING, &args.dump_rollouts, .free_on_resume = true,
     .help = "file for one JSON line an answer, with the numbers of every token"},
    {"replay", FLAG_STRING, &args.replay, .free_on_resume = true,
     .help = "such a file, whose answers and numbers replace steps 2 to 6"},
    {"", FLAG_TITLE, NULL, .help = "Reward"},
    {"missing_eos_penalty", FLAG_FLOAT, &args.missing_eos_penalty, .high = 1e6,
     .help = "(2) taken off the score of an answer that does not end"},
    {"non_eos_penalty", FLAG_BOOL, &args.non_eos_penalty,
     .help = "(2) or such an answer's score is instead"},
    {"penalty_reward_value", FLAG_FLOAT, &args.penalty_reward_value, .help = "(2) this number"},
    {"score_clip", FLAG_FLOAT, &args.score_clip, .high = 1e6,
     .help = "(3) scores beyond +- this are clipped; 0: never"},
    {"kl_coef", FLAG_FLOAT, &args.kl_coef, .high = 1e6, .help = "(4) β, or where it starts"},
    {"adap_kl_ctrl", FLAG_BOOL, &args.adap_kl_ctrl,
     .help = "(4) adapt β so that an answer's KL comes to"},
    {"target", FLAG_FLOAT, &args.target, .low = 1e-6, .high = 1e6, .help = "(4) this many nats"},
    {"horizon", FLAG_FLOAT, &args.horizon, .low = 1, .high = 1e12,
     .help = "(4) within about this many episodes"},
    {"kl_estimator", FLAG_CHOICE, &args.kl_estimator,
     .help = "k1|k2|k3: (5) log-ratio, half its square, exp(-k1) - 1 + k1 (Schulman 2020)"},
    {"exact_kl", FLAG_BOOL, &args.exact_kl,
     .help = "also measure KL over the whole vocabulary: one forward pass of the policy more"},
    {"whiten_rewards", FLAG_BOOL, &args.whiten_rewards,
     .help = "(6) divide rewards by their deviation"},
    {"", FLAG_TITLE, NULL, .help = "Advantages"},
    {"gamma", FLAG_FLOAT, &args.gamma, .high = 1, .help = "(7) γ, discount"},
    {"lam", FLAG_FLOAT, &args.lam, .high = 1, .help = "(7) λ of GAE"},
    {"advantage", FLAG_CHOICE, &args.advantage,
     .help = "gae|batch_mean|rloo|grpo: (8) from a critic; or an answer's reward less the batch's "
             "mean, less the mean of the prompt's other answers, in "
             "standard deviations of the prompt's answers"},
    {"whiten_advantages", FLAG_CHOICE, &args.whiten_advantages,
     .help = "batch|minibatch|none: (9) to mean 0 and deviation 1 over the tokens of"},
    {"whitening_variance", FLAG_CHOICE, &args.whitening_variance,
     .help = "unbiased|population: (10) sum of squares by n - 1, or by n"},
    {"", FLAG_TITLE, NULL, .help = "Updates"},
    {"num_ppo_epochs", FLAG_INT, &args.num_ppo_epochs, .low = 1, .high = 1000,
     .help = "(11) times through an iteration's answers"},
    {"num_mini_batches", FLAG_INT, &args.num_mini_batches, .low = 1, .high = 1 << 20,
     .help = "(11) optimiser steps each time"},
    {"cliprange", FLAG_FLOAT, &args.cliprange, .low = 1e-6, .high = 1e6, .help = "(12) ε"},
    {"cliprange_value", FLAG_FLOAT, &args.cliprange_value, .high = 1e6,
     .help = "(13) ε_v; 0: no clipping"},
    {"vf_coef", FLAG_FLOAT, &args.vf_coef, .high = 1e6, .help = "(14) c_v"},
    {"shared_value_head", FLAG_BOOL, &args.shared_value_head,
     .help = "(14) the critic is a head on the policy instead of a model"},
    {"entropy_coef", FLAG_FLOAT, &args.entropy_coef, .high = 1e6, .help = "(15) c_e"},
    {"log_ratio_clamp", FLAG_FLOAT, &args.log_ratio_clamp, .high = 80,
     .help = "(16) log ρ beyond +- this is clamped; 0: never"},
    {"ratio_threshold", FLAG_FLOAT, &args.ratio_threshold, .high = 1e30,
     .help = "(17) a minibatch whose mean ρ exceeds this changes nothing; 0: none"},
    {"target_kl", FLAG_FLOAT, &args.target_kl, .high = 1e6,
     .help = "(17) approxkl above 1.5 times this ends an iteration's updates; 0: never"},
    {"adam_eps_convention", FLAG_CHOICE, &args.adam_eps_convention,
     .help = "pytorch|tensorflow: (18) beside sqrt(v / (1-β2^t)), or beside sqrt(v)"},
    {"critic_model", FLAG_STRING, &args.critic_model,
     .help =
         "(21) where the critic starts; else the reward model, or the policy and a head of zeros"},
    {"critic_learning_rate", FLAG_FLOAT, &args.critic_learning_rate, .high = 10,
     .help = "(21) 0: --learning_rate"},
    {"critic_warmup_steps", FLAG_INT, &args.critic_warmup_steps, .high = 1e9,
     .help = "(21) first iterations that train the critic alone"},
    {"ptx_data", FLAG_STRING, &args.ptx_data,
     .help = "(20) JSONL records or text to go on learning from, as for sft"},
    {"ptx_coef", FLAG_FLOAT, &args.ptx_coef, .high = 1e6, .help = "(20) c_ptx"},
    {"ptx_batch_size", FLAG_INT, &args.ptx_batch_size, .low = 1, .high = 1 << 16,
     .help = "(20) records mixed into each minibatch"},
    TALK_PROMPT_FLAGS(talk, "reward_model reward_cmd critic_model ptx_data dump_rollouts replay"),
    TALK_LENGTH_FLAG(talk),
    TALK_TOP_FLAGS(talk),
    {0},
};

static bool is(const char *choice, const char *name) { return !strcmp(choice, name); }

/* The defaults; those of a preset; or those of the built-in example, which learns something in
 * under a minute. (19) is lr_scheduler_type. */
static Run defaults(bool example, const char *preset) {
    Run run = run_defaults();
    memset(&args, 0, sizeof args);
    talk = talk_defaults();
    run.without = "gradient_accumulation_steps dataloader_drop_last";
    run.per_device_train_batch_size = 8;
    run.num_train_epochs = 1;
    run.learning_rate = 3e-6f;
    run.adam_epsilon = 1e-5f;
    run.weight_decay = 0;
    run.warmup_steps = 0;
    run.lr_scheduler_type = "linear";
    run.logging_steps = 1;
    run.eval_steps = 10;
    run.save_steps = 50;
    args.preset = preset;
    args.batch_size = 64;
    args.num_generations = 1;
    args.num_mini_batches = 1;
    args.num_ppo_epochs = 4;
    args.max_prompt_length = 512;
    args.response_length = 53;
    args.rollout_slots = 32;
    args.temperature = 0.7f;
    args.eval_samples = 64;
    args.reward_timeout = 60;
    args.exact_kl = true;
    args.penalty_reward_value = -1;
    args.kl_coef = 0.05f;
    args.target = 6;
    args.horizon = 10000;
    args.kl_estimator = "k1";
    args.gamma = 1;
    args.lam = 0.95f;
    args.advantage = "gae";
    args.whiten_advantages = "batch";
    args.whitening_variance = "unbiased";
    args.cliprange = 0.2f;
    args.cliprange_value = 0.2f;
    args.vf_coef = 0.1f;
    args.log_ratio_clamp = 20;
    args.ratio_threshold = 10;
    args.adam_eps_convention = "pytorch";
    args.ptx_coef = 27.8f;
    args.ptx_batch_size = 8;
    if (is(preset, "lmhp")) {  // Ziegler et al. 2019, the style tasks
        run.learning_rate = 1e-5f;
        run.max_grad_norm = 0;
        args.total_episodes = 1000000;
        args.batch_size = 512;
        args.max_prompt_length = 64;
        args.response_length = 24;
        args.kl_coef = 0.15f;
        args.adap_kl_ctrl = true;
        args.non_eos_penalty = true;
        args.whiten_rewards = true;
        args.whiten_advantages = "minibatch";
        args.whitening_variance = "population";
        args.shared_value_head = true;
        args.adam_eps_convention = "tensorflow";
    }
    if (is(preset, "nplus")) {  // Huang et al. 2024, TL;DR
        run.max_grad_norm = 0;
        args.total_episodes = 1000000;
        args.batch_size = 512;
        args.non_eos_penalty = true;
    }
    if (is(preset, "textbook")) {  // what tutorials show
        run.learning_rate = 1e-5f;
        run.lr_scheduler_type = "constant";
        run.max_steps = 5;
        args.response_length = 100;
        args.advantage = "batch_mean";
        args.whiten_advantages = "none";
        args.kl_coef = 0;
    }
    if (example) {
        run.model = run_example_file("tiny/chat");
        args.reward_model = run_example_file("tiny/reward");
        run.data = run_example_file("tiny/prompts.jsonl");
        run.eval = run_example_file("tiny/prompts-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.max_steps = 20;
        run.learning_rate = 1e-4f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "constant";
        run.logging_steps = 5;
        args.critic_learning_rate = 2e-4f;
        args.critic_warmup_steps = 2;
        args.eval_samples = 72;
        args.num_ppo_epochs = 2;
        args.num_mini_batches = 2;
        args.response_length = 64;
        args.temperature = 1;
        args.kl_coef = 0.15f;
        args.score_clip = 4;
        args.non_eos_penalty = true;
        args.penalty_reward_value = -4;
    }
    return run;
}

/* ---- the mathematics, one number per token --------------------------------------------------- */

/* kl_t, from log π_old and log π_ref of the token that was drawn; each has KL(π_old || π_ref) as
 * its mean over draws, k2 nearly so. */
static double kl_estimate(const char *estimator, double logp, double ref_logp) {
    double k1 = logp - ref_logp;
    return is(estimator, "k1") ? k1 : is(estimator, "k2") ? k1 * k1 / 2 : exp(-k1) - 1 + k1;  // (5)
}

/* r_t = -β kl_t + 1[t = T] score, for the T tokens of one answer. */
static void rewards(int T, const float *logp, const float *ref_logp, double score, double beta,
                    const char *estimator, float *reward) {
    for (int t = 0; t < T; t++) {
        double kl = kl_estimate(estimator, (double)logp[t], (double)ref_logp[t]);
        reward[t] = (float)(-beta * kl + (t == T - 1 ? score : 0));
    }
}

/* v <- (v - μ) / sqrt(σ² + 1e-8), and + μ again unless shift_mean. σ² is 0 of fewer than two
 * numbers. */
static void whiten(int n, float *v, bool unbiased, bool shift_mean) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += (double)v[i] / n;
    for (int i = 0; i < n; i++) squares += ((double)v[i] - mean) * ((double)v[i] - mean);
    double deviation = sqrt((n > 1 ? squares / (unbiased ? n - 1 : n) : 0) + 1e-8);  // (10)
    for (int i = 0; i < n; i++)
        v[i] = (float)(((double)v[i] - mean) / deviation + (shift_mean ? 0 : mean));
}

/* δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γ λ A_{t+1};  R_t = A_t + V_t;  V_{T+1} = A_{T+1} = 0
 */
static void gae(int T, const float *r, const float *V, double gamma, double lambda, float *A,
                float *R) {
    double next = 0, value = 0;
    for (int t = T - 1; t >= 0; t--) {
        double delta = (double)r[t] + gamma * value - (double)V[t];
        next = delta + gamma * lambda * next;
        value = (double)V[t];
        A[t] = (float)next;
        R[t] = (float)(next + value);
    }
}

/* Without a critic all tokens of an answer have one advantage. R (E) holds the answers' rewards,
 * those to one prompt side by side, `group` of them: batch_mean  A_i = R_i - mean of all the
 * textbook's rloo        A_i = R_i - mean of the group's others               Ahmadian et al. 2024
 *     grpo        A_i = (R_i - mean of the group) / (σ + 1e-4)         Shao et al. 2024; σ with
 * group - 1, 0 for one alone */
static void baseline(const char *kind, int E, int group, const double *R, double *A) {
    if (is(kind, "batch_mean")) group = E;
    for (int from = 0; from < E; from += group) {
        double mean = 0, squares = 0;
        for (int i = from; i < from + group; i++) mean += R[i] / group;
        for (int i = from; i < from + group; i++) squares += (R[i] - mean) * (R[i] - mean);
        double sigma = group > 1 ? sqrt(squares / (group - 1)) : 0;
        for (int i = from; i < from + group; i++) {
            A[i] = R[i] - mean;
            if (is(kind, "rloo"))
                A[i] *=
                    group > 1 ? (double)group / (group - 1) : 0;  // R_i - (sum - R_i) / (group - 1)
            if (is(kind, "grpo")) A[i] /= sigma + 1e-4;
        }
    }
}

/* Sums over the tokens of minibatches; divided by tokens they are what is logged. */
typedef struct {
    double tokens, policy, clipped, ratio, ratio_squared, approxkl, entropy;
    double value_tokens, value, value_clipped;
    double skipped, ptx, ptx_tokens;
} Sums;

/* L = 1/M sum_i max(-A ρ, -A clip(ρ, 1-ε, 1+ε)) over the rows with a target,  ρ = exp(logp -
   old_logp). dL/dlogp = -A ρ / M, and 0 where the clipped side is the larger or log ρ is clamped.
   Adds to s, and writes the gradient (N). */
static void surrogate(int N, const int *target, const float *logp, const float *old_logp,
                      const float *A, double epsilon, double clamp, double M, float *dlogp,
                      Sums *s) {
    for (int i = 0; i < N; i++) {
        dlogp[i] = 0;
        if (target[i] < 0) continue;
        double difference = (double)logp[i] - (double)old_logp[i], log_ratio = difference;
        if (clamp > 0) log_ratio = fmin(fmax(difference, -clamp), clamp);  // (16)
        double ratio = exp(log_ratio), a = (double)A[i];
        double plain = -a * ratio,
               clipped = -a * fmin(fmax(ratio, 1 - epsilon), 1 + epsilon);  // (12)
        if (!(clipped > plain) && log_ratio == difference) dlogp[i] = (float)(plain / M);
        s->policy += fmax(plain, clipped);
        s->clipped += clipped > plain;
        s->ratio += ratio;
        s->ratio_squared += ratio * ratio;
        s->approxkl += difference * difference / 2;
        s->tokens++;
    }
}

/* L = c_v / M sum_i ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²);  ε_v 0: no clip.
   dL/dV = c_v (V - R) / M, and 0 where the clipped side is the larger. */
static void value_loss(int N, const int *target, const float *V, const float *V_old, const float *R,
                       double epsilon, double coefficient, double M, float *dvalue, Sums *s) {
    for (int i = 0; i < N; i++) {
        dvalue[i] = 0;
        if (target[i] < 0) continue;
        double v = (double)V[i], old = (double)V_old[i], r = (double)R[i];
        double bounded = epsilon > 0 ? fmin(fmax(v, old - epsilon), old + epsilon) : v;  // (13)
        double plain = (v - r) * (v - r), clipped = (bounded - r) * (bounded - r);
        if (!(clipped > plain)) dvalue[i] = (float)(coefficient * (v - r) / M);  // (14)
        s->value += fmax(plain, clipped) / 2;
        s->value_clipped += clipped > plain;
        s->value_tokens++;
    }
}

/* e = clip(KL/target - 1, -0.2, 0.2);  β <- β (1 + e n / horizon), after n episodes of mean KL
 * (Ziegler et al. 2019, section 2.2) */
static double adapt(double beta, double kl, double target, double horizon, int n) {
    return beta * (1 + fmin(fmax(kl / target - 1, -0.2), 0.2) * n / horizon);  // (4)
}

/* AdamW's settings for its step t. TensorFlow adds ε to sqrt(v), PyTorch and gpt2_step to sqrt(v /
   (1-β2^t)): the same where ε is divided likewise. */
static AdamW adam(const Run *run, float learning_rate, int t) {
    AdamW o = run_adamw(run, run->step);
    if (run->learning_rate > 0) o.learning_rate *= learning_rate / run->learning_rate;
    if (is(args.adam_eps_convention, "tensorflow"))
        o.epsilon = (float)((double)o.epsilon / sqrt(1 - pow((double)o.beta2, t)));  // (18)
    return o;
}

/* ---- the trainer, and steps 1 to 4 ----------------------------------------------------------- */

typedef struct {
    GPT2 *policy, *reference, *critic;  // critic NULL: its head is the policy's, or there is none
    Judge judge;
    Tokenizer *tokenizer;
    Queries train, held_out;
    Rollouts r;
    Rows rows;
    Dataset ptx;
    RaggedBatch ptx_batch;
    double beta, policy_updates, critic_updates;
} Trainer;

static void trainer_free(Trainer *p) {
    child_end(p->judge.program);
    gpt2_free(p->policy);
    gpt2_free(p->reference);
    gpt2_free(p->critic);
    gpt2_free(p->judge.model);
    rollouts_free(&p->r);
    rows_free(&p->rows);
    queries_free(&p->train);
    queries_free(&p->held_out);
    dataset_free(&p->ptx);
    ragged_free(&p->ptx_batch);
    tokenizer_free(p->tokenizer);
}

/* 1. The prompts of iteration `step`: each epoch goes through all of them in an order of its own.
 */
static void choose(const Run *run, const Queries *q, Rollouts *r) {
    int *order = (int *)xmalloc(sizeof(int) * (size_t)q->n);
    const int P = args.batch_size / args.num_generations;
    for (int64_t k = (int64_t)run->step * P, end = k + P, epoch = -1; k < end; k++) {
        if (k / q->n != epoch)
            random_permutation(order, q->n, (uint64_t)run->seed, RANDOM_SHUFFLE,
                               (uint32_t)(epoch = k / q->n));
        for (int g = 0; g < args.num_generations; g++)
            r->query[(int)(k + P - end) * args.num_generations + g] = order[k % q->n];
    }
    r->E = args.batch_size;
    free(order);
}

/* 2. Rollouts: pure samples of the policy, at the temperature of its log-probabilities. */
static Sampler sampler(const Trainer *p, const Run *run, uint32_t step) {
    return (Sampler){.temperature = args.temperature,
                     .top_p = 1,
                     .max_new_tokens = args.response_length,  // (1)
                     .stop_token = tokenizer_eos(p->tokenizer),
                     .seed = (uint64_t)run->seed,
                     .step = step};
}

/* 3. Scores: judge_score of rollouts.h. */

/* 4. The reference's log-probabilities, the exact KL, and with values the critic's. */
static void passes(Trainer *p, Rollouts *r, int B, bool values) {
    Rows *b = &p->rows;
    for (int from = 0; from < r->E; from += B) {
        int S = min_int(B, r->E - from), which[S];
        for (int k = 0; k < S; k++) which[k] = from + k;
        rows_fill(b, r, which, S);
        gpt2_forward(p->reference, &b->batch, NULL);
        gpt2_logprob(p->reference, b->target, args.temperature, b->logp, NULL, NULL);
        rows_keep(b, b->logp, r->ref_logp);
        if (args.exact_kl || (values && args.shared_value_head)) {
            gpt2_forward(p->policy, &b->batch, NULL);
            gpt2_logprob(p->policy, b->target, args.temperature, b->logp, NULL, NULL);
            for (int i = 0; i < b->batch.N; i++)
                if (b->of[i] >= 0 && b->logp[i] != b->old_logp[i])
                    die("a token's log-probability is %.9g in the rollout and %.9g in training; "
                        "they must be one number",
                        (double)b->old_logp[i], (double)b->logp[i]);
        }
        if (args.exact_kl) {
            gpt2_kl(p->policy, p->reference, b->kl);
            rows_keep(b, b->kl, r->kl);
        }
        if (!values) continue;
        if (p->critic) gpt2_forward(p->critic, &b->batch, NULL);
        gpt2_value(p->critic ? p->critic : p->policy, b->value);
        rows_keep(b, b->value, r->value);
    }
}

/* ---- steps 5 to 7 ---------------------------------------------------------------------------- */

/* The score that is learned from. */
static double shaped(float score, bool ended) {
    double s = (double)score, c = (double)args.score_clip;
    if (c > 0) s = fmin(fmax(s, -c), c);  // (3)
    return ended                  ? s
           : args.non_eos_penalty ? (double)args.penalty_reward_value
                                  : s - (double)args.missing_eos_penalty;  // (2)
}

/* 5. The reward of every token. */
static void reward_tokens(Rollouts *r, double beta) {
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], T = r->start[e + 1] - at;
        rewards(T, r->logp + at, r->ref_logp + at, shaped(r->score[e], r->ended[e]), beta,
                args.kl_estimator, r->reward + at);
    }
    if (args.whiten_rewards)
        whiten(r->T, r->reward, is(args.whitening_variance, "unbiased"), false);  // (6)
}

/* 6. The advantage and the return of every token. */
static void advantages(Rollouts *r) {
    double *R = (double *)xcalloc((size_t)r->E, 2 * sizeof(double)), *A = R + r->E;
    for (int e = 0; e < r->E; e++)
        for (int t = r->start[e]; t < r->start[e + 1]; t++) R[e] += (double)r->reward[t];
    if (!is(args.advantage, "gae"))
        baseline(args.advantage, r->E, args.num_generations, R, A);  // (8)
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], T = r->start[e + 1] - at;
        for (int t = at; t < at + T; t++) {
            r->advantage[t] = (float)A[e];
            r->ret[t] = (float)R[e];
        }
        if (is(args.advantage, "gae"))
            gae(T, r->reward + at, r->value + at, (double)args.gamma, (double)args.lam,
                r->advantage + at, r->ret + at);  // (7)
    }
    if (is(args.whiten_advantages, "batch"))
        whiten(r->T, r->advantage, is(args.whitening_variance, "unbiased"), true);  // (9)
    free(R);
}

/* A for the answers which[0..n): the advantages, whitened among them where that is asked for.
 * Returns M, the number of their tokens. */
static int minibatch_advantages(Rollouts *r, const int *which, int n) {
    float *all = (float *)xmalloc(sizeof(float) * (size_t)(r->T + 1));
    int M = 0, at = 0;
    for (int k = 0; k < n; k++)
        for (int t = r->start[which[k]]; t < r->start[which[k] + 1]; t++)
            all[M++] = r->advantage[t];
    if (is(args.whiten_advantages, "minibatch"))
        whiten(M, all, is(args.whitening_variance, "unbiased"), true);  // (9)
    for (int k = 0; k < n; k++)
        for (int t = r->start[which[k]]; t < r->start[which[k] + 1]; t++) r->A[t] = all[at++];
    free(all);
    return M;
}

/* Adds to the policy's gradient that of c_ptx times the mean cross-entropy of the next records of
 * --ptx_data. */
static void mix_in_pretraining(Trainer *p, Sums *s) {
    Rows *b = &p->rows;
    int which[args.ptx_batch_size], M = 0;
    for (int i = 0; i < args.ptx_batch_size; i++) {
        which[i] = (int)(((int64_t)p->policy_updates * args.ptx_batch_size + i) % p->ptx.n);
        M += dataset_targets(&p->ptx, which[i]);
    }
    ragged_fill(&p->ptx_batch, &p->ptx, which, args.ptx_batch_size);
    const int *target = p->ptx_batch.target, N = p->ptx_batch.batch.N;
    gpt2_forward(p->policy, &p->ptx_batch.batch, NULL);
    gpt2_logprob(p->policy, target, 1, b->logp, NULL, NULL);
    for (int i = 0; i < N; i++) {
        b->dlogp[i] = target[i] < 0 ? 0 : -args.ptx_coef / (float)M;  // (20)
        s->ptx -= (double)b->logp[i];
    }
    s->ptx_tokens += M;
    gpt2_backward(p->policy, b->dlogp, NULL, NULL);
}

/* The loss of the answers which[0..n), B at a time, and its gradients. M counts all their tokens,
 * so that B changes nothing. */
static Sums minibatch(Trainer *p, Rollouts *r, const int *which, int n, int B, bool policy_trains) {
    Rows *b = &p->rows;
    Sums s = {0};
    const int M = minibatch_advantages(r, which, n);
    const bool values = is(args.advantage, "gae");
    for (int from = 0; from < n; from += B) {
        rows_fill(b, r, which + from, min_int(B, n - from));
        const int N = b->batch.N;
        if (policy_trains) {
            gpt2_forward(p->policy, &b->batch, NULL);
            gpt2_logprob(p->policy, b->target, args.temperature, b->logp, b->entropy, NULL);
            surrogate(N, b->target, b->logp, b->old_logp, b->A, (double)args.cliprange,
                      (double)args.log_ratio_clamp, M, b->dlogp, &s);
            for (int i = 0; i < N; i++) {
                s.entropy += (double)b->entropy[i];
                b->dentropy[i] = b->target[i] < 0 ? 0 : -args.entropy_coef / (float)M;  // (15)
            }
        }
        if (values) {
            if (p->critic) gpt2_forward(p->critic, &b->batch, NULL);
            gpt2_value(p->critic ? p->critic : p->policy, b->value);
            value_loss(N, b->target, b->value, b->old_value, b->ret, (double)args.cliprange_value,
                       (double)args.vf_coef, M, b->dvalue, &s);
        }
        if (policy_trains)
            gpt2_backward(p->policy, b->dlogp, args.entropy_coef > 0 ? b->dentropy : NULL,
                          values && !p->critic ? b->dvalue : NULL);
        if (p->critic) gpt2_backward(p->critic, NULL, NULL, b->dvalue);
    }
    if (args.ptx_data && policy_trains) mix_in_pretraining(p, &s);
    return s;
}

/* One optimiser step of the policy and one of the critic. Returns the policy's gradient norm, or
 * that of the critic when it goes alone. */
static double optimise(Trainer *p, const Run *run, bool policy_trains) {
    double norm = 0;
    if (p->critic) {
        float rate = args.critic_learning_rate > 0 ? args.critic_learning_rate : run->learning_rate;
        AdamW o = adam(run, rate, (int)p->critic_updates + 1);
        norm = (double)gpt2_step(p->critic, &o, (int)p->critic_updates + 1);
        if (!isfinite(norm)) return norm;
        p->critic_updates++;
    }
    if (!policy_trains) return norm;
    AdamW o = adam(run, run->learning_rate, (int)p->policy_updates + 1);
    norm = (double)gpt2_step(p->policy, &o, (int)p->policy_updates + 1);
    p->policy_updates++;
    return norm;
}

/* 7. Epochs over the answers in minibatches, each time in another order. norm: the last step's
 * gradient. */
static Sums update(Trainer *p, Rollouts *r, const Run *run, double *norm) {
    Sums all = {0};
    const bool policy_trains = run->step >= args.critic_warmup_steps;  // (21)
    const int n = r->E / args.num_mini_batches;
    int *order = (int *)xmalloc(sizeof(int) * (size_t)r->E);
    bool stop = false;
    *norm = 0;
    for (int epoch = 0; epoch < args.num_ppo_epochs && !stop; epoch++) {  // (11)
        random_permutation(order, r->E, (uint64_t)run->seed, RANDOM_DATA,
                           (uint32_t)(run->step * args.num_ppo_epochs + epoch));
        for (int from = 0; from < r->E && !stop; from += n) {
            Sums s =
                minibatch(p, r, order + from, n, run->per_device_train_batch_size, policy_trains);
            stop = args.target_kl > 0 && s.approxkl > 1.5 * (double)args.target_kl * s.tokens;
            if (stop || (args.ratio_threshold > 0 &&
                         s.ratio > (double)args.ratio_threshold * s.tokens)) {  // (17)
                gpt2_clear(p->policy);
                if (p->critic) gpt2_clear(p->critic);
                s.skipped = 1;
            } else {
                *norm = optimise(p, run, policy_trains);
            }
            const double *from_s = (const double *)&s;
            for (size_t i = 0; i < sizeof all / sizeof(double); i++)
                ((double *)&all)[i] += from_s[i];
            if (!isfinite(s.policy) || !isfinite(s.value) || !isfinite(*norm)) {
                Str text = {0};
                rollouts_text(r, order[from], true, p->tokenizer, &text);
                die("step %d, epoch %d: the policy's loss is %g, the critic's %g, the gradient's "
                    "norm %g; lower --learning_rate. The first "
                    "answer of the minibatch: \"%.300s\"",
                    run->step + 1, epoch + 1, s.policy / s.tokens, s.value / s.value_tokens, *norm,
                    text.s);
            }
        }
    }
    free(order);
    return all;
}

/* ---- what is measured ------------------------------------------------------------------------ */

static double mean(double sum, double n) { return n > 0 ? sum / n : NAN; }

/* Of one set of answers. "An answer's" is a sum over its tokens, and what is given is the mean over
 * answers. */
typedef struct {
    double kl, k1, k3, kl_exact;  // an answer's KL: by --kl_estimator, by two of them, and over the
                                  // whole vocabulary
    double entropy;               // an answer's -log π_old
    double score, raw, non_score;      // an answer's score as learned from, as given; its -β kl
    double ended;                      // how many answers end
    double length, shortest, longest;  // tokens of an answer, the end of text among them
    double correlation;                // of length and score; not a number when either is constant
    double ret, explained;             // mean of R over tokens; 1 - Var(R - V) / Var(R)
    double correct;  // share of held-out answers that hold the data's; not a number without such
} Objective;

static Objective measure(const Rollouts *r, double beta) {
    const double E = r->E, T = r->T;
    Objective o = {.shortest = INFINITY};
    double n2 = 0, s2 = 0, ns = 0, r2 = 0, d = 0, d2 = 0;
    for (int e = 0; e < r->E; e++) {
        const double n = r->start[e + 1] - r->start[e], s = shaped(r->score[e], r->ended[e]);
        for (int t = r->start[e]; t < r->start[e + 1]; t++) {
            const double p = (double)r->logp[t], q = (double)r->ref_logp[t],
                         error = (double)r->ret[t] - (double)r->value[t];
            o.kl += kl_estimate(args.kl_estimator, p, q) / E;
            o.k1 += kl_estimate("k1", p, q) / E;
            o.k3 += kl_estimate("k3", p, q) / E;
            o.kl_exact += (double)r->kl[t] / E;
            o.entropy -= p / E;
            o.ret += (double)r->ret[t] / T;
            r2 += (double)r->ret[t] * (double)r->ret[t] / T;
            d += error / T;
            d2 += error * error / T;
        }
        o.score += s / E;
        o.raw += (double)r->score[e] / E;
        o.ended += r->ended[e];
        o.length += n / E;
        o.shortest = fmin(o.shortest, n);
        o.longest = fmax(o.longest, n);
        n2 += n * n / E;
        s2 += s * s / E;
        ns += n * s / E;
    }
    o.non_score = 0 - beta * o.kl;
    const double lengths = n2 - o.length * o.length, scores = s2 - o.score * o.score,
                 returns = r2 - o.ret * o.ret;  // variances, above rounding
    o.correlation = lengths > 1e-12 * n2 && scores > 1e-12 * s2
                        ? (ns - o.length * o.score) / sqrt(lengths * scores)
                        : NAN;
    o.explained = returns > 1e-12 * r2 ? 1 - (d2 - d * d) / returns : NAN;
    return o;
}

/* Answers to the held-out prompts, sampled as in training, always from the same random numbers. */
static Objective evaluate(Trainer *p, const Run *run, Rollouts *r) {
    r->E = min_int(p->held_out.n, args.eval_samples);
    for (int e = 0; e < r->E; e++) r->query[e] = e;
    const Sampler s = sampler(p, run, UINT32_MAX);
    rollouts_sample(r, p->policy, &p->held_out, &s);
    judge_score(&p->judge, r, &p->held_out, &p->rows, run->per_device_train_batch_size);
    passes(p, r, run->per_device_train_batch_size, false);
    Objective o = measure(r, p->beta);
    int known = 0, correct = 0;
    for (int e = 0; e < r->E; e++) {
        Str text = {0};
        rollouts_text(r, e, true, p->tokenizer, &text);
        known += p->held_out.answer[e] != NULL;
        correct += p->held_out.answer[e] && strstr(text.s, p->held_out.answer[e]);
        free(text.s);
    }
    o.correct = known ? (double)correct / known : NAN;
    return o;
}

static void print_figures(const char *when, int n, const Objective *o) {
    printf("held-out, %-6s  %d answers  reward %.3f  KL %.3f  length %.1f  ended %.1f %%", when, n,
           o->raw, args.exact_kl ? o->kl_exact : o->k1, o->length, 100 * o->ended / n);
    printf(isnan(o->correct) ? "\n" : "  hold the right answer %.1f %%\n", 100 * o->correct);
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void add_memory(GPT2Memory *sum, GPT2Memory m, const char *name) {
    size_t *to = (size_t *)sum, *from = (size_t *)&m;
    for (size_t i = 0; i < sizeof m / sizeof *to; i++) to[i] += from[i];
    printf("  %-12s %10.1f MiB\n", name, (double)m.total / (1 << 20));
}

static void must_hold(const char *dir, const GPT2Config *config, int longest) {
    if (config->n_positions < longest)
        die_usage("%s has %d positions, where prompt and answer take up to %d", dir,
                  config->n_positions, longest);
}

/* Reads --ptx_data, and raises the policy's ceilings to what a batch of it can take. */
static void load_pretraining(Trainer *p, const GPT2Config *config, GPT2Limits *policy) {
    Error e;
    Records records;
    if (records_read(args.ptx_data, args.template, args.strict, &records, &e))
        die_usage("%s", e.text);
    dataset_build(&p->ptx, &records, p->tokenizer, min_int(512, config->n_positions + 1), false);
    records_free(&records);
    if (!p->ptx.n) die_usage("%s (--ptx_data): no record has a token to score", args.ptx_data);
    int *all = (int *)xmalloc(sizeof(int) * (size_t)p->ptx.n), scored;
    for (int i = 0; i < p->ptx.n; i++) all[i] = i;
    policy->tokens = max_int(policy->tokens,
                             ragged_largest(&p->ptx, all, p->ptx.n, args.ptx_batch_size, &scored));
    policy->scored = max_int(policy->scored, scored);
    policy->sequences = max_int(policy->sequences, args.ptx_batch_size);
    free(all);
}

/* The first three held-out answers and their scores, as text. */
static void keep_answers(const Trainer *p, const Rollouts *r, Str *shown) {
    for (int i = 0; i < 3 && i < r->E; i++) {
        rollouts_text(r, i, true, p->tokenizer, &shown[i]);
        str_printf(&shown[i], "  (%.2f)", (double)r->score[i]);
    }
}

/* What the flags alone can say. */
static void check_flags(const Run *run) {
    if (!run->model || !run->data)
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example)");
    if (!args.reward_model == !args.reward_cmd)
        die_usage("one of --reward_model DIR and --reward_cmd 'program' is needed");
    if (args.temperature < 0.01f)
        die_usage("--temperature %g: a rollout is a sample; 0.01 is the least",
                  (double)args.temperature);
    if (talk.top_k != 0 || talk.top_p != 1)
        die_usage(
            "--top_k and --top_p: a rollout must be a sample of the policy whose log-probabilities "
            "the loss uses, else KL turns negative; "
            "leave them away");
    if (args.batch_size % args.num_generations)
        die_usage("--batch_size %d is not a multiple of --num_generations %d", args.batch_size,
                  args.num_generations);
    if (args.batch_size % args.num_mini_batches)
        die_usage("--batch_size %d is not a multiple of --num_mini_batches %d", args.batch_size,
                  args.num_mini_batches);
    if ((is(args.advantage, "rloo") || is(args.advantage, "grpo")) && args.num_generations < 2)
        die_usage(
            "--advantage %s compares the answers to one prompt: --num_generations must be 2 or "
            "more",
            args.advantage);
    if (args.critic_warmup_steps && (args.shared_value_head || !is(args.advantage, "gae")))
        die_usage("--critic_warmup_steps is for a critic that is a model of its own");
}

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either
    // way, also beside a preset.
    Error e;
    Run run = defaults(false, "none");
    bool parsed = run_parse(&run, "ppo", flags, argc, argv, &e) == 0,
         example = parsed && !run.model && !run.data && !talk_asked(&talk);
    const char *preset = parsed ? args.preset : "none",
               *judges[] = {args.reward_model, args.reward_cmd};
    run_free(&run);
    run = defaults(example, preset);
    if (example && parsed && judges[1]) args.reward_model = judges[0];
    run_start(&run, "ppo", about, flags, argc, argv);
    talk.temperature = args.temperature;
    if (talk_asked(&talk)) return talk_to_model(&talk, &run, args.template);
    check_flags(&run);
    const bool values = is(args.advantage, "gae"),
               shared = args.shared_value_head = values && args.shared_value_head;

    // The prompts, the plan, and what it all takes
    static Trainer trainer;
    Trainer *p = &trainer;
    GPT2Config config, reward_config, critic_config;
    const char *critic_from = args.critic_model   ? args.critic_model
                              : args.reward_model ? args.reward_model
                                                  : run.model;
    char *critic_dir = run_also_dir(&run, "critic", critic_from);
    if (hf_config(run_model_dir(&run), &config, &e) ||
        (args.reward_model && hf_config(args.reward_model, &reward_config, &e)) ||
        (values && !shared && hf_config(critic_dir, &critic_config, &e)))
        die_usage("%s", e.text);
    run_echo(&run);
    if (args.response_length >= config.n_positions)
        die_usage("--response_length %d leaves no room for a prompt in the model's %d positions",
                  args.response_length, config.n_positions);
    args.max_prompt_length =
        min_int(args.max_prompt_length, config.n_positions - args.response_length);
    if (!(p->tokenizer = tokenizer_load(run.model, &e))) die_usage("%s", e.text);
    if (tokenizer_size(p->tokenizer) > config.vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  run.model, tokenizer_size(p->tokenizer), config.vocab_size);
    p->train =
        queries_read(run.data, args.template, args.strict, p->tokenizer, args.max_prompt_length);
    if (run.eval)
        p->held_out = queries_read(run.eval, args.template, args.strict, p->tokenizer,
                                   args.max_prompt_length);
    run_fingerprint(&run, "data", run.data);
    run_fingerprint(&run, "eval", run.eval);
    run_fingerprint(&run, "ptx_data", args.ptx_data);
    run_template(&run, args.template);
    const int P = args.batch_size / args.num_generations, B = run.per_device_train_batch_size;
    const int eval_n = min_int(p->held_out.n, args.eval_samples);
    run.gradient_accumulation_steps = 1;
    run_plan_steps(&run, p->train.n);
    run.steps_per_epoch = (p->train.n + P - 1) / P;  // of this run, a step is an iteration
    double steps = args.total_episodes ? ceil((double)args.total_episodes / args.batch_size)
                                       : ceil((double)run.num_train_epochs * p->train.n / P);
    run.total_steps = run.max_steps >= 0 ? run.max_steps : (int)fmin(steps, 1e9);
    printf("%d iterations of %d answers, %d to each of %d prompts; %d epochs of %d minibatches\n",
           run.total_steps, args.batch_size, args.num_generations, P, args.num_ppo_epochs,
           args.num_mini_batches);

    const int longest = max_int(p->train.longest, p->held_out.longest) + args.response_length;
    if (args.reward_model) must_hold(args.reward_model, &reward_config, longest);
    if (values && !shared) must_hold(critic_dir, &critic_config, longest);
    GPT2Limits frozen = {.tokens = B * longest, .sequences = B, .scored = B * args.response_length},
               scores = frozen, policy, critic;
    scores.scored = 0;
    policy = critic = frozen;
    policy.train = critic.train = run.total_steps > 0;
    critic.scored = 0;
    policy.slots = min_int(args.rollout_slots, max_int(args.batch_size, eval_n));
    policy.positions = longest;
    policy.tokens = max_int(policy.tokens, policy.slots);
    if (args.ptx_data) load_pretraining(p, &config, &policy);
    config.head = shared ? LM_AND_VALUE_HEAD : LM_HEAD;
    GPT2Memory memory = {0};
    size_t trained = gpt2_parameters(&config, TRAIN_ALL), all = trained;
    printf("memory, by model\n");
    add_memory(&memory, gpt2_memory(&config, &policy), "policy");
    config.head = LM_HEAD;
    add_memory(&memory, gpt2_memory(&config, &frozen), "reference");
    all += gpt2_parameters(&config, TRAIN_ALL);
    reward_config.head = critic_config.head = SCORE_HEAD;
    if (args.reward_model) {
        add_memory(&memory, gpt2_memory(&reward_config, &scores), "reward");
        all += gpt2_parameters(&reward_config, TRAIN_ALL);
    }
    if (values && !shared) {
        add_memory(&memory, gpt2_memory(&critic_config, &critic), "critic");
        trained += gpt2_parameters(&critic_config, TRAIN_ALL);
        all += gpt2_parameters(&critic_config, TRAIN_ALL);
    }
    run_print_parameters(policy.train ? trained : 0, all);
    run_print_memory(&memory);
    if (args.reward_model) judge_reads(p->tokenizer, args.reward_model);
    if (run.dry_run) {
        trainer_free(p);
        run_free(&run);
        free(critic_dir);
        return 0;
    }

    bool found = true;
    if (!(p->policy = hf_load_head(run_model_dir(&run), shared ? LM_AND_VALUE_HEAD : LM_HEAD,
                                   !policy.train, NULL, &e)))
        die_usage("%s", e.text);
    if (!(p->reference = hf_load_head(run.model, LM_HEAD, true, NULL, &e))) die_usage("%s", e.text);
    if (args.reward_model &&
        !(p->judge.model = hf_load_head(args.reward_model, SCORE_HEAD, true, &found, &e)))
        die_usage("%s", e.text);
    if (!found)
        die_usage("%s holds no reward model: it has neither score.weight nor v_head.summary.weight",
                  args.reward_model);
    if (args.reward_cmd && !(p->judge.program = child_start(args.reward_cmd, &e)))
        die("%s", e.text);
    if (values && !shared) {
        if (!(p->critic = hf_load_head(critic_dir, SCORE_HEAD, !critic.train, &found, &e)))
            die_usage("%s", e.text);
        if (!found) printf("the critic starts from %s and a head of zeros\n", critic_dir);
        gpt2_reserve(p->critic, &critic);
        run_also(&run, "critic", p->critic, critic_dir);
    }
    gpt2_reserve(p->policy, &policy);
    gpt2_reserve(p->reference, &frozen);
    if (p->judge.model) gpt2_reserve(p->judge.model, &scores);
    p->judge.patience = (double)args.reward_timeout;
    p->judge.tokenizer = p->tokenizer;
    p->r = rollouts_new(max_int(args.batch_size, eval_n), longest - args.response_length,
                        args.response_length);
    p->rows = rows_new(policy.sequences, policy.tokens);
    p->beta = (double)args.kl_coef;
    run_keep(&run, "beta", &p->beta);
    run_keep(&run, "policy_updates", &p->policy_updates);
    run_keep(&run, "critic_updates", &p->critic_updates);
    run_resume(&run, p->policy);
    if (args.dump_rollouts && run.step) {
        run_cut_lines(&run, args.dump_rollouts);
    } else if (args.dump_rollouts) {
        FILE *f = fopen(args.dump_rollouts, "w");
        if (!f || fclose(f))
            die_usage("cannot write %s (--dump_rollouts): %s", args.dump_rollouts, strerror(errno));
    }

    Rollouts *r = &p->r;
    Objective before = {0}, after = {0};
    Str shown[6] = {{0}};  // three answers before training, then after it, with their scores
    if (eval_n) {
        before = after = evaluate(p, &run, r);
        print_figures("before", eval_n, &before);
        keep_answers(p, r, shown);
    }
    double seconds[3] = {0};  // rollout, scoring, update since the last line of the log

    while (run.step < run.total_steps && !run_interrupted()) {
        double t0 = now_seconds(), norm;
        // 1. the prompts of this iteration;  2. an answer to each, sampled
        if (args.replay) {
            rollouts_replay(r, args.batch_size, &p->train, run.step + 1, args.replay);
        } else {
            const Sampler s = sampler(p, &run, (uint32_t)run.step);
            choose(&run, &p->train, r);
            rollouts_sample(r, p->policy, &p->train, &s);
        }
        double t1 = now_seconds();
        if (!args.replay) {
            // 3. scores;  4. the reference's and the critic's view of every token;  5. rewards;  6.
            // advantages and returns
            judge_score(&p->judge, r, &p->train, &p->rows, B);
            passes(p, r, B, values);
            reward_tokens(r, p->beta);
            advantages(r);
        }
        const Objective o = measure(r, p->beta);
        if (args.dump_rollouts)
            rollouts_dump(r, &p->train, p->tokenizer, run.step + 1, args.dump_rollouts);
        double t2 = now_seconds();
        // 7. epochs of minibatches: loss, gradient, AdamW
        const AdamW adamw = run_adamw(&run, run.step);
        const Sums s = update(p, r, &run, &norm);
        seconds[0] += t1 - t0;
        seconds[1] += t2 - t1;
        seconds[2] += now_seconds() - t2;
        run.step++;
        // 8. log, adapt β, evaluate, save. Means are over answers (objective/, lengths/) or over
        // the tokens of all minibatches (policy/, loss/, val/)
        run_progress(&run, mean(s.policy, s.tokens), r->T);
        if (run_should_log(&run)) {
            run_log_first(
                &run, 9, {"objective/scores", o.score}, {"objective/kl", o.kl},
                {"objective/kl_exact", args.exact_kl ? o.kl_exact : NAN},
                {"objective/kl_coef", p->beta}, {"objective/entropy", o.entropy},
                {"lengths/mean", o.length}, {"policy/approxkl_avg", mean(s.approxkl, s.tokens)},
                {"policy/clipfrac_avg", mean(s.clipped, s.tokens)},
                {"loss/value_avg",
                 mean(s.value,
                      s.value_tokens)},  // so far on the screen, the others in the file alone
                {"objective/non_score_reward", o.non_score},
                {"objective/rlhf_reward", o.score + o.non_score}, {"objective/raw_scores", o.raw},
                {"objective/kl_k1", o.k1}, {"objective/kl_k3", o.k3},
                {"policy/entropy_avg", mean(s.entropy, s.tokens)},
                {"loss/policy_avg", mean(s.policy, s.tokens)},
                {"loss/ptx_avg", mean(s.ptx, s.ptx_tokens)}, {"val/ratio", mean(s.ratio, s.tokens)},
                {"val/ratio_var",
                 fmax(0, mean(s.ratio_squared, s.tokens) - pow(mean(s.ratio, s.tokens), 2))},
                {"val/clipfrac_avg", mean(s.value_clipped, s.value_tokens)},
                {"val/explained_variance", values ? o.explained : NAN},
                {"val/num_eos_tokens", o.ended}, {"val/returns_mean", o.ret},
                {"val/skipped", s.skipped}, {"lengths/min", o.shortest}, {"lengths/max", o.longest},
                {"lengths/score_correlation", o.correlation}, {"grad_norm", norm},
                {"lr", (double)adamw.learning_rate},
                {"episode", (double)run.step * args.batch_size}, {"epoch", run_epoch(&run)});
            double all = seconds[0] + seconds[1] + seconds[2];
            printf(
                "  rollout %.1f s (%.0f %%)  scoring %.1f s (%.0f %%)  update %.1f s (%.0f %%)\n",
                seconds[0], 100 * seconds[0] / all, seconds[1], 100 * seconds[1] / all, seconds[2],
                100 * seconds[2] / all);
            memset(seconds, 0, sizeof seconds);
        }
        if (args.adap_kl_ctrl)
            p->beta =
                adapt(p->beta, o.kl, (double)args.target, (double)args.horizon, args.batch_size);
        if (eval_n && run_should_evaluate(&run)) {
            after = evaluate(p, &run, r);
            run_log(&run, {"eval/reward", after.raw}, {"eval/kl", after.k1},
                    {"eval/kl_exact", args.exact_kl ? after.kl_exact : NAN},
                    {"eval/length", after.length}, {"eval/ended", after.ended / eval_n},
                    {"eval/correct", after.correct});
            if (run.step == run.total_steps) keep_answers(p, r, shown + 3);
        }
        if (run_should_save(&run)) run_checkpoint(&run, p->policy);
    }

    // What it has learned
    for (int i = 0; i < 3 && shown[3 + i].s; i++)
        printf("held-out prompt, line %d\n  before | %s\n  after  | %s\n", p->held_out.line[i],
               shown[i].s, shown[3 + i].s);
    if (eval_n && !run_interrupted()) {
        print_figures("before", eval_n, &before);
        print_figures("after", eval_n, &after);
    }
    run_print_peak_memory(&memory);
    int status = run_finish(&run, p->policy);
    for (int i = 0; i < 6; i++) free(shown[i].s);
    trainer_free(p);
    free(critic_dir);
    return status;
}
#endif
