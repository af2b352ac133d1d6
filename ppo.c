/*
 * ppo.c - proximal policy optimisation: raise a reward that judges whole answers, without straying
 * far from where the model started.
 *
 * A policy π, the language model, answers prompts by sampling. A reward model (or a program) gives
 * each answer one score. Per token y_t of an answer of T tokens
 *
 *     kl_t = log π_old(y_t) - log π_ref(y_t)               the distance from the frozen start π_ref
 *     r_t  = -β kl_t + 1[t = T] score
 *     δ_t  = r_t + γ V_{t+1} - V_t                         V: the critic; V_{T+1} = 0
 *     A_t  = δ_t + γ λ A_{t+1},    R_t = A_t + V_t
 *     ρ_t  = π(y_t) / π_old(y_t)
 *     L    = mean_t max(-A ρ, -A clip(ρ, 1-ε, 1+ε))                          the policy's loss
 *          + c_v ½ mean_t max((V-R)², (clip(V, V_old ± ε_v) - R)²)           the critic's loss
 *          - c_e mean_t H(π)  +  c_ptx L_lm                entropy bonus, pre-training text
 *
 * Schulman et al. 2016 (GAE), 2017 (PPO); with language models: Ziegler et al. 2019, Stiennon et
 * al. 2020, Ouyang et al. 2022. What those programs do beyond the formulas decides whether they
 * learn (Huang et al. 2024, "The N implementation details of RLHF with PPO"). Here each detail is a
 * flag, and has a number in --help and in the code:
 *
 *      1 one temperature everywhere     8 the estimator of A        15 the entropy bonus
 *      2 answers that do not end        9 whitening the advantages  16 clamping the log-ratio
 *      3 clipping the score            10 whitening's variance      17 skipping, stopping updates
 *      4 β, fixed or adaptive          11 epochs and minibatches    18 the place of Adam's epsilon
 *      5 the estimator of kl_t         12 clipping the ratio        19 decay of the learning rate
 *      6 whitening the rewards         13 clipping the value        20 mixing in pre-training text
 *      7 γ and λ                       14 the value's weight        21 the critic's start, warm-up
 *
 * Nothing is padded: every mean is over real tokens, and the score is on an answer's last token.
 * The log-probabilities of a rollout equal those of training to the bit: the first ratio is
 * exactly 1.
 *
 * Left out: rollouts by top-k or top-p (they sample another policy, and KL turns negative), a
 * reward on the token after the end (a known slip of padded programs), truncation at a full stop
 * (the style task of 24 tokens), and dropout, which would make ρ noise.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

typedef enum { K1, K2, K3 } KLEstimator;
typedef enum { GAE, BATCH_MEAN, RLOO, GRPO } Advantage;

static RolloutTask task;
static Chat chat;

static struct {
    KLEstimator kl_estimator;
    Advantage advantage;
    enum { WHITEN_BATCH, WHITEN_MINIBATCH, WHITEN_NONE } whiten_advantages;
    enum { UNBIASED, POPULATION } whitening_variance;
    enum { PYTORCH, TENSORFLOW } adam_eps_convention;
    int num_mini_batches, num_ppo_epochs, critic_warmup_steps, ptx_batch_size;
    float missing_eos_penalty, penalty_reward_value, score_clip, kl_coef, target, horizon;
    float gamma, lam, cliprange, cliprange_value, vf_coef, entropy_coef, log_ratio_clamp;
    float ratio_threshold, target_kl, critic_learning_rate, ptx_coef;
    bool non_eos_penalty, adap_kl_ctrl, exact_kl, whiten_rewards, shared_value_head;
    const char *critic_model, *ptx_data;
} args;

static const Flag flags[] = {
    TITLE("Prompts and rollouts"),
    ROLLOUT_FLAGS(task),
    TEMPLATE_FLAG(chat),
    {"temperature", NUMBER(chat.temperature, "0.7", 0, 100),
     "(1) The temperature of all sampling and of every log-probability."},
    TITLE("Reward"),
    {"missing_eos_penalty", NUMBER(args.missing_eos_penalty, "0", 0, 1e6),
     "(2) Subtract this from the score of an answer that does not end."},
    {"non_eos_penalty", SWITCH(args.non_eos_penalty, "false"),
     "(2) Replace the score of an answer that does not end by --penalty_reward_value."},
    {"penalty_reward_value", NUMBER(args.penalty_reward_value, "-1", 0, 0),
     "(2) The score of an answer that does not end.", .only_with = "non_eos_penalty"},
    {"score_clip", NUMBER(args.score_clip, "0", 0, 1e6),
     "(3) Clip scores to ± this; 0 never clips."},
    {"kl_coef", NUMBER(args.kl_coef, "0.05", 0, 1e6),
     "(4) The weight β of the KL penalty, or its start with --adap_kl_ctrl."},
    {"adap_kl_ctrl", SWITCH(args.adap_kl_ctrl, "false"),
     "(4) Adapt β to keep the KL per answer near --target."},
    {"target", NUMBER(args.target, "6", 1e-6, 1e6),
     "(4) The KL per answer that β adapts to, in nats.", .only_with = "adap_kl_ctrl"},
    {"horizon", NUMBER(args.horizon, "10000", 1, 1e12),
     "(4) The time constant of that adaptation, in answers.", .only_with = "adap_kl_ctrl"},
    {"kl_estimator", CHOICE(args.kl_estimator, "k1", "k1|k2|k3"),
     "(5) The KL per token: k1 log-ratio, k2 half its square, k3 exp(-k1) - 1 + k1."},
    {"exact_kl", SWITCH(args.exact_kl, "true"),
     "Also measure the KL over the whole vocabulary, by one more forward pass of the policy."},
    {"whiten_rewards", SWITCH(args.whiten_rewards, "false"),
     "(6) Divide the rewards of an iteration by their standard deviation."},
    TITLE("Advantages"),
    {"gamma", NUMBER(args.gamma, "1", 0, 1), "(7) The discount γ of GAE."},
    {"lam", NUMBER(args.lam, "0.95", 0, 1), "(7) The λ of GAE."},
    {"advantage", CHOICE(args.advantage, "gae", "gae|batch_mean|rloo|grpo"),
     "(8) The advantage: gae uses a critic; the others take an answer's reward minus the mean of "
     "the batch (batch_mean) or of the prompt's other answers (rloo), or standardise it among the "
     "prompt's answers (grpo)."},
    {"whiten_advantages", CHOICE(args.whiten_advantages, "batch", "batch|minibatch|none"),
     "(9) Bring the advantages to mean 0 and deviation 1 over the tokens of an iteration (batch) "
     "or "
     "a minibatch."},
    {"whitening_variance", CHOICE(args.whitening_variance, "unbiased", "unbiased|population"),
     "(10) The variance of whitening divides n squares by n - 1 (unbiased) or by n (population)."},
    TITLE("Updates"),
    {"num_ppo_epochs", NUMBER(args.num_ppo_epochs, "4", 1, 1000),
     "(11) The number of passes over the answers of an iteration."},
    {"num_mini_batches", NUMBER(args.num_mini_batches, "1", 1, 1 << 20),
     "(11) The number of optimiser steps of each such pass."},
    {"cliprange", NUMBER(args.cliprange, "0.2", 1e-6, 1e6), "(12) The clip range ε of the ratio."},
    {"cliprange_value", NUMBER(args.cliprange_value, "0.2", 0, 1e6),
     "(13) The clip range ε_v of the value; 0 never clips."},
    {"vf_coef", NUMBER(args.vf_coef, "0.1", 0, 1e6), "(14) The weight c_v of the value's loss."},
    {"shared_value_head", SWITCH(args.shared_value_head, "false"),
     "(14) Make the critic a head on the policy instead of a model of its own."},
    {"entropy_coef", NUMBER(args.entropy_coef, "0", 0, 1e6),
     "(15) The weight c_e of the entropy bonus."},
    {"log_ratio_clamp", NUMBER(args.log_ratio_clamp, "20", 0, 80),
     "(16) Clamp log ρ to ± this; 0 never clamps."},
    {"ratio_threshold", NUMBER(args.ratio_threshold, "10", 0, 1e30),
     "(17) Skip the update of a minibatch whose mean ρ exceeds this; 0 skips none."},
    {"target_kl", NUMBER(args.target_kl, "0", 0, 1e6),
     "(17) End an iteration's updates when approxkl exceeds 1.5 times this; 0 never does."},
    {"adam_eps_convention", CHOICE(args.adam_eps_convention, "pytorch", "pytorch|tensorflow"),
     "(18) Adam adds ε to sqrt(v / (1 - β2^t)) (pytorch) or to sqrt(v) (tensorflow)."},
    {"critic_model", TEXT(args.critic_model, NULL),
     "(21) The directory of the critic's start; default: the reward model, or else the policy with "
     "a value head of zeros."},
    {"critic_learning_rate", NUMBER(args.critic_learning_rate, "0", 0, 10),
     "(21) The critic's learning rate; 0 uses --learning_rate."},
    {"critic_warmup_steps", NUMBER(args.critic_warmup_steps, "0", 0, 1e9),
     "(21) The number of first iterations that train the critic alone."},
    {"ptx_data", TEXT(args.ptx_data, NULL),
     "(20) Records of supervised learning to mix in, in the formats of sft."},
    {"ptx_coef", NUMBER(args.ptx_coef, "27.8", 0, 1e6), "(20) The weight c_ptx of their loss.",
     .only_with = "ptx_data"},
    {"ptx_batch_size", NUMBER(args.ptx_batch_size, "8", 1, 1 << 16),
     "(20) The number of these records in each minibatch.", .only_with = "ptx_data"},
    CHAT_PROMPT_FLAGS(chat, "reward_model reward_cmd critic_model ptx_data dump_rollouts replay"),
    {"max_new_tokens", NUMBER(chat.max_new_tokens, "64", 1, 1 << 20),
     "The longest answer, in tokens.", .may_change_on_resume = true, .only_with = "prompt chat"},
    CHAT_TOP_FLAGS(chat),
    {0},
};

static const Preset presets[] = {
    {"lmhp", "Ziegler et al. 2019, the style tasks",
     COMMAND_LINE("--learning_rate=1e-5", "--max_grad_norm=0", "--total_episodes=1000000",
                  "--batch_size=512", "--max_prompt_length=64", "--response_length=24",
                  "--kl_coef=0.15", "--adap_kl_ctrl", "--non_eos_penalty", "--whiten_rewards",
                  "--whiten_advantages=minibatch", "--whitening_variance=population",
                  "--shared_value_head", "--adam_eps_convention=tensorflow")},
    {"nplus", "Huang et al. 2024, summaries of TL;DR",
     COMMAND_LINE("--max_grad_norm=0", "--total_episodes=1000000", "--batch_size=512",
                  "--non_eos_penalty")},
    {"textbook", "what tutorials show",
     COMMAND_LINE("--learning_rate=1e-5", "--lr_scheduler_type=constant", "--max_steps=5",
                  "--response_length=100", "--advantage=batch_mean", "--whiten_advantages=none",
                  "--kl_coef=0")},
    {0},
};

/* The built-in example learns something in under a minute. */
static const Program ppo = {
    .name = "ppo",
    .about = "PPO: reinforcement learning of a GPT-2 from a reward model or a program.",
    .flags = flags,
    .lines.program =
        COMMAND_LINE("--per_device_train_batch_size=8", "--num_train_epochs=1",
                     "--learning_rate=3e-6", "--adam_epsilon=1e-5", "--weight_decay=0",
                     "--warmup_steps=0", "--logging_steps=1", "--eval_steps=10", "--save_steps=50"),
    .lines.presets = presets,
    .lines.example = COMMAND_LINE(
        "--model=test/tiny/chat", "--reward_model=test/tiny/reward",
        "--data=test/tiny/prompts.jsonl", "--eval=test/tiny/prompts-eval.jsonl",
        "--per_device_train_batch_size=16", "--max_steps=20", "--learning_rate=1e-4",
        "--adam_beta2=0.99", "--lr_scheduler_type=constant", "--logging_steps=5",
        "--critic_learning_rate=2e-4", "--critic_warmup_steps=2", "--eval_samples=72",
        "--num_ppo_epochs=2", "--num_mini_batches=2", "--response_length=64", "--temperature=1",
        "--kl_coef=0.15", "--score_clip=4", "--non_eos_penalty", "--penalty_reward_value=-4"),
    .lines.example_unless = "model data prompt chat",
    .without = "gradient_accumulation_steps dataloader_drop_last",
    .needs = "model data",
    .usage = "--model DIR and --data FILE are both needed (or neither, for the built-in example)",
    .shown = 9,
    .chat = &chat,
};

/* Refuses flags that contradict each other or have no effect. */
static void check_flags(const Run *run) {
    const bool shared = args.shared_value_head, own_critic = args.advantage == GAE && !shared;
    if (chat.temperature < 0.01f)
        die_usage("--temperature %g: rollouts are samples; the least is 0.01", chat.temperature);
    if (task.batch_size % args.num_mini_batches)
        die_usage("--batch_size %d is not a multiple of --num_mini_batches %d", task.batch_size,
                  args.num_mini_batches);
    if ((args.advantage == RLOO || args.advantage == GRPO) && task.num_generations < 2)
        die_usage(
            "--advantage rloo and grpo compare answers to one prompt: --num_generations must "
            "be 2 or more");
    if (!own_critic && (args.critic_warmup_steps || run_given(run, "critic_model") ||
                        run_given(run, "critic_learning_rate")))
        die_usage(
            "--critic_model, --critic_learning_rate and --critic_warmup_steps need a critic "
            "that is a model of its own: --advantage gae without --shared_value_head");
}

/* ---- the mathematics, one number per token --------------------------------------------------- */

/* Estimates KL(π_old || π_ref) from one sampled token (Schulman 2020). k1 = log π_old - log π_ref
   and k3 = exp(-k1) - 1 + k1 have the KL as their mean, k2 = k1² / 2 approximately. */
static double kl_estimate(KLEstimator estimator, double logp, double ref_logp) {
    const double k1 = logp - ref_logp;
    return estimator == K1 ? k1 : estimator == K2 ? k1 * k1 / 2 : exp(-k1) - 1 + k1;  // (5)
}

/* r_t = -β kl_t + 1[t = T] score, for the T tokens of one answer. */
static void rewards(int T, const float *logp, const float *ref_logp, double score, double beta,
                    KLEstimator estimator, float *reward) {
    for (int t = 0; t < T; t++) {
        const double kl = kl_estimate(estimator, (double)logp[t], (double)ref_logp[t]);
        reward[t] = (float)(-beta * kl + (t == T - 1 ? score : 0));
    }
}

/* v <- (v - μ) / sqrt(σ² + 1e-8), and + μ again unless shift_mean. v is (n); σ² of fewer than two
   numbers is 0. */
static void whiten(int n, float *v, bool unbiased, bool shift_mean) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += (double)v[i] / n;
    for (int i = 0; i < n; i++) squares += ((double)v[i] - mean) * ((double)v[i] - mean);
    const double variance = n > 1 ? squares / (unbiased ? n - 1 : n) : 0;  // (10)
    const double deviation = sqrt(variance + 1e-8);
    for (int i = 0; i < n; i++)
        v[i] = (float)(((double)v[i] - mean) / deviation + (shift_mean ? 0 : mean));
}

/* δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γ λ A_{t+1};  R_t = A_t + V_t;  V_{T+1} = A_{T+1} = 0.
   All arrays are (T), of one answer. */
static void gae(int T, const float *r, const float *V, double gamma, double lambda, float *A,
                float *R) {
    double next = 0, value = 0;
    for (int t = T - 1; t >= 0; t--) {
        const double delta = (double)r[t] + gamma * value - (double)V[t];
        next = delta + gamma * lambda * next;
        value = (double)V[t];
        A[t] = (float)next;
        R[t] = (float)(next + value);
    }
}

/* Advantages without a critic, one per answer. R (E) are the answers' rewards; the answers to one
   prompt are `group` neighbours.
       batch_mean  A_i = R_i - mean of all                              the textbook's
       rloo        A_i = R_i - mean of the group's others               Ahmadian et al. 2024
       grpo        A_i = (R_i - mean of the group) / (σ + 1e-4)         Shao et al. 2024
   σ divides by group - 1, and is 0 in a group of one. */
static void baseline(Advantage kind, int E, int group, const double *R, double *A) {
    if (kind == BATCH_MEAN) group = E;
    for (int from = 0; from < E; from += group) {
        double mean = 0, squares = 0;
        for (int i = from; i < from + group; i++) mean += R[i] / group;
        for (int i = from; i < from + group; i++) squares += (R[i] - mean) * (R[i] - mean);
        const double sigma = group > 1 ? sqrt(squares / (group - 1)) : 0;
        // R_i - mean of the others = (R_i - mean) group / (group - 1)
        const double others = group > 1 ? (double)group / (group - 1) : 0;
        for (int i = from; i < from + group; i++) {
            A[i] = R[i] - mean;
            if (kind == RLOO) A[i] *= others;
            if (kind == GRPO) A[i] /= sigma + 1e-4;
        }
    }
}

/* L = 1/M sum_i max(-A ρ, -A clip(ρ, 1-ε, 1+ε)) over the rows with a target,  ρ = exp(logp -
   old_logp). dL/dlogp = -A ρ / M; it is 0 where the clipped side is larger or log ρ is clamped.
   Arrays are (N). Adds to s. */
static void surrogate(int N, const int *target, const float *logp, const float *old_logp,
                      const float *A, double epsilon, double clamp, double M, float *dlogp,
                      Sums *s) {
    for (int i = 0; i < N; i++) {
        dlogp[i] = 0;
        if (target[i] < 0) continue;
        const double difference = (double)logp[i] - (double)old_logp[i];
        const double log_ratio =
            clamp > 0 ? fmin(fmax(difference, -clamp), clamp) : difference;  // (16)
        const double ratio = exp(log_ratio), a = (double)A[i];
        const double plain = -a * ratio;
        const double clipped = -a * fmin(fmax(ratio, 1 - epsilon), 1 + epsilon);  // (12)
        if (!(clipped > plain) && log_ratio == difference) dlogp[i] = (float)(plain / M);
        s->policy += fmax(plain, clipped);
        s->clipped += clipped > plain;
        s->ratio += ratio;
        s->ratio_squared += ratio * ratio;
        s->approxkl += difference * difference / 2;
        s->tokens++;
    }
}

/* L = c_v / M sum_i ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²) over the rows with a target; ε_v
   0: no clip. dL/dV = c_v (V - R) / M; it is 0 where the clipped side is larger. Arrays are (N). */
static void value_loss(int N, const int *target, const float *V, const float *V_old, const float *R,
                       double epsilon, double coefficient, double M, float *dvalue, Sums *s) {
    for (int i = 0; i < N; i++) {
        dvalue[i] = 0;
        if (target[i] < 0) continue;
        const double v = (double)V[i], old = (double)V_old[i], r = (double)R[i];
        const double bounded =
            epsilon > 0 ? fmin(fmax(v, old - epsilon), old + epsilon) : v;  // (13)
        const double plain = (v - r) * (v - r), clipped = (bounded - r) * (bounded - r);
        if (!(clipped > plain)) dvalue[i] = (float)(coefficient * (v - r) / M);  // (14)
        s->value += fmax(plain, clipped) / 2;
        s->value_clipped += clipped > plain;
        s->value_tokens++;
    }
}

/* e = clip(KL/target - 1, -0.2, 0.2);  β <- β (1 + e n / horizon), after n answers of mean KL
   (Ziegler et al. 2019, section 2.2). */
static double adapt(double beta, double kl, double target, double horizon, int n) {
    return beta * (1 + fmin(fmax(kl / target - 1, -0.2), 0.2) * n / horizon);  // (4)
}

/* AdamW's settings for its step t. TensorFlow adds ε to sqrt(v); PyTorch and gpt2_step add it to
   sqrt(v / (1-β2^t)). Dividing ε by sqrt(1-β2^t) gives TensorFlow's update. */
static AdamW adam(const Run *run, float learning_rate, int t) {
    AdamW o = run_adamw(run);  // (19)
    if (run->learning_rate > 0) o.learning_rate *= learning_rate / run->learning_rate;
    if (args.adam_eps_convention == TENSORFLOW)
        o.epsilon = (float)((double)o.epsilon / sqrt(1 - pow((double)o.beta2, t)));  // (18)
    return o;
}

/* ---- steps 3 to 6: from scores to advantages ------------------------------------------------- */

typedef struct {
    GPT2 *policy, *reference, *critic;  // critic NULL: none, or the head on the policy
    Mixture ptx;
    double beta, policy_updates, critic_updates;  // kept in checkpoints
} Trainer;

/* 3. The score that the policy learns from. */
static double shaped(float given, bool ended) {
    const double c = args.score_clip, score = c > 0 ? fmin(fmax(given, -c), c) : given;  // (3)
    if (ended) return score;
    return args.non_eos_penalty ? args.penalty_reward_value
                                : score - (double)args.missing_eos_penalty;  // (2)
}

static void shape_scores(Rollouts *r) {
    for (int e = 0; e < r->E; e++) r->shaped[e] = shaped(r->score[e], r->ended[e]);
}

/* V of the batch b, which the policy has just read. */
static void values(Trainer *p, Rows *b) {
    if (p->critic) gpt2_forward(p->critic, &b->batch, NULL);
    gpt2_value(p->critic ? p->critic : p->policy, b->value);
}

/* 4. log π_ref and the exact KL of every token; with_values, the critic's V as well. */
static void passes(Trainer *p, Rollouts *r, int B, bool with_values) {
    Rows *b = &task.rows;
    for (int from = 0; from < r->E; from += B) {
        rows_range(b, r, from, B);
        gpt2_forward(p->reference, &b->batch, NULL);
        gpt2_logprob(p->reference, b->target, chat.temperature, b->logp, NULL, NULL);
        rows_keep(b, b->logp, r->ref_logp);
        if (args.exact_kl || (with_values && !p->critic)) {
            gpt2_forward(p->policy, &b->batch, NULL);
            gpt2_logprob(p->policy, b->target, chat.temperature, b->logp, NULL, NULL);  // (1)
            rows_check(b);
        }
        if (args.exact_kl) {
            gpt2_kl(p->policy, p->reference, b->kl);
            rows_keep(b, b->kl, r->kl);
        }
        if (with_values) {
            values(p, b);
            rows_keep(b, b->value, r->value);
        }
    }
}

/* 5. The reward of every token. */
static void reward_tokens(Rollouts *r, double beta) {
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], T = r->start[e + 1] - at;
        rewards(T, r->logp + at, r->ref_logp + at, r->shaped[e], beta, args.kl_estimator,
                r->reward + at);
    }
    if (args.whiten_rewards)
        whiten(r->T, r->reward, args.whitening_variance == UNBIASED, false);  // (6)
}

/* 6. The advantage and the return of every token. Without a critic, all tokens of an answer have
   the answer's. */
static void advantages(Rollouts *r) {
    double R[r->E], A[r->E];
    memset(R, 0, sizeof R);
    for (int e = 0; e < r->E; e++)
        for (int t = r->start[e]; t < r->start[e + 1]; t++) R[e] += (double)r->reward[t];
    if (args.advantage != GAE) baseline(args.advantage, r->E, task.num_generations, R, A);  // (8)
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], end = r->start[e + 1];
        if (args.advantage == GAE)
            gae(end - at, r->reward + at, r->value + at, args.gamma, args.lam, r->advantage + at,
                r->ret + at);  // (7)
        else
            for (int t = at; t < end; t++) {
                r->advantage[t] = (float)A[e];
                r->ret[t] = (float)R[e];
            }
    }
    if (args.whiten_advantages == WHITEN_BATCH)
        whiten(r->T, r->advantage, args.whitening_variance == UNBIASED, true);  // (9)
}

/* ---- step 7: learning from the advantages ---------------------------------------------------- */

/* Sets r->A for the answers which[0..n): their advantages, whitened among them where that is asked
   for. Returns M, the number of their tokens. */
static int minibatch_advantages(Rollouts *r, const int *which, int n) {
    const int M = rollouts_gather(r, r->advantage, which, n, r->gathered);
    if (args.whiten_advantages == WHITEN_MINIBATCH)
        whiten(M, r->gathered, args.whitening_variance == UNBIASED, true);  // (9)
    rollouts_scatter(r, r->gathered, which, n, r->A);
    return M;
}

/* Adds to the policy's gradient that of c_ptx times the mean cross-entropy of the next records of
   --ptx_data. */
static void mix_in_pretraining(Trainer *p, Sums *s) {
    Rows *b = &task.rows;
    const int M = mixture_fill(&p->ptx, (int64_t)p->policy_updates, args.ptx_batch_size);
    const Batch *batch = &p->ptx.batch.batch;
    const int *target = p->ptx.batch.target;
    gpt2_forward(p->policy, batch, NULL);
    gpt2_logprob(p->policy, target, 1, b->logp, NULL, NULL);
    for (int i = 0; i < batch->N; i++) {
        b->dlogp[i] = target[i] < 0 ? 0 : -args.ptx_coef / (float)M;  // (20)
        s->ptx -= (double)b->logp[i];
    }
    s->ptx_tokens += M;
    gpt2_backward(p->policy, b->dlogp, NULL, NULL);
}

/* The loss of the answers which[0..n) and its gradients, B answers at a time. M counts the tokens
   of all n, so B does not change the loss. */
static Sums minibatch(Trainer *p, Rollouts *r, const int *which, int n, int B, bool policy_trains) {
    Rows *b = &task.rows;
    Sums s = {0};
    const int M = minibatch_advantages(r, which, n);
    const bool shared = args.advantage == GAE && !p->critic;
    for (int from = 0; from < n; from += B) {
        rows_fill(b, r, which + from, min_int(B, n - from));
        const int N = b->batch.N;
        if (policy_trains) {
            gpt2_forward(p->policy, &b->batch, NULL);
            gpt2_logprob(p->policy, b->target, chat.temperature, b->logp, b->entropy, NULL);
            surrogate(N, b->target, b->logp, b->old_logp, b->A, args.cliprange,
                      args.log_ratio_clamp, M, b->dlogp, &s);
            for (int i = 0; i < N; i++) {
                s.entropy += (double)b->entropy[i];
                b->dentropy[i] = b->target[i] < 0 ? 0 : -args.entropy_coef / (float)M;  // (15)
            }
        }
        if (args.advantage == GAE) {
            values(p, b);
            value_loss(N, b->target, b->value, b->old_value, b->ret, args.cliprange_value,
                       args.vf_coef, M, b->dvalue, &s);
        }
        if (policy_trains)
            gpt2_backward(p->policy, b->dlogp, args.entropy_coef > 0 ? b->dentropy : NULL,
                          shared ? b->dvalue : NULL);
        if (p->critic) gpt2_backward(p->critic, NULL, NULL, b->dvalue);
    }
    if (args.ptx_data && policy_trains) mix_in_pretraining(p, &s);
    return s;
}

/* One optimiser step of the critic and one of the policy. Returns the policy's gradient norm, or
   the critic's when only the critic trains. */
static double optimise(Trainer *p, const Run *run, bool policy_trains) {
    double norm = 0;
    if (p->critic) {
        const float rate = args.critic_learning_rate;
        const int t = (int)p->critic_updates + 1;
        const AdamW o = adam(run, rate > 0 ? rate : run->learning_rate, t);
        norm = gpt2_step(p->critic, &o, t);
        if (!isfinite(norm)) return norm;
        p->critic_updates++;
    }
    if (policy_trains) {
        const int t = (int)p->policy_updates + 1;
        const AdamW o = adam(run, run->learning_rate, t);
        norm = gpt2_step(p->policy, &o, t);
        p->policy_updates++;
    }
    return norm;
}

/* 7. Epochs over the answers in minibatches, each epoch in another order. */
static Sums update(Trainer *p, Rollouts *r, const Run *run) {
    Sums all = {0};
    const bool policy_trains = run->step >= args.critic_warmup_steps;  // (21)
    const int n = r->E / args.num_mini_batches, B = run->per_device_train_batch_size;
    int order[r->E];
    bool stop = false;
    for (int epoch = 0; epoch < args.num_ppo_epochs && !stop; epoch++) {  // (11)
        const int pass = run->step * args.num_ppo_epochs + epoch;
        random_permutation(order, r->E, (uint64_t)run->seed, RANDOM_DATA, (uint32_t)pass);
        for (int from = 0; from < r->E && !stop; from += n) {
            Sums s = minibatch(p, r, order + from, n, B, policy_trains);
            const double threshold = args.ratio_threshold, target = args.target_kl;
            const bool skip = threshold > 0 && s.ratio > threshold * s.tokens;  // (17)
            stop = target > 0 && s.approxkl > 1.5 * target * s.tokens;          // (17)
            if (stop || skip) {
                gpt2_clear(p->policy);
                if (p->critic) gpt2_clear(p->critic);
                s.skipped = 1;
            } else {
                all.grad_norm = optimise(p, run, policy_trains);
            }
            sums_add(&all, &s);
            if (!isfinite(s.policy) || !isfinite(s.value) || !isfinite(all.grad_norm))
                rollout_task_diverged(&task, run, epoch, order[from], &s, all.grad_norm);
        }
    }
    return all;
}

/* ---- figures --------------------------------------------------------------------------------- */

/* The sum of kl_t over an answer, averaged over the answers. */
static double kl_per_answer(const Rollouts *r, KLEstimator estimator) {
    double kl = 0;
    for (int t = 0; t < r->T; t++) kl += kl_estimate(estimator, r->logp[t], r->ref_logp[t]) / r->E;
    return kl;
}

static Figures measure(const Rollouts *r, double beta) {
    Figures f = figures_measure(r);
    f.kl = kl_per_answer(r, args.kl_estimator);
    f.k1 = kl_per_answer(r, K1);
    f.k3 = kl_per_answer(r, K3);
    f.non_score = 0 - beta * f.kl;
    if (!args.exact_kl) f.kl_exact = NAN;
    if (args.advantage != GAE) f.explained = NAN;
    return f;
}

/* Answers the held-out prompts and measures the answers. */
static void evaluate(Trainer *p, Run *run) {
    if (!rollout_task_answer(&task, run, p->policy, chat.temperature)) return;
    shape_scores(&task.r);
    passes(p, &task.r, run->per_device_train_batch_size, false);
    const Figures f = measure(&task.r, p->beta);
    rollout_task_measured(&task, run, &f);
}

/* ---- the loop -------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    Run run = run_begin(&ppo, argc, argv);
    check_flags(&run);
    rollout_task_load(&task, &run, chat.template);
    printf("%d iterations of %d answers, %d to each of %d prompts; %d epochs of %d minibatches\n",
           run.total_steps, task.batch_size, task.num_generations, task.prompts,
           args.num_ppo_epochs, args.num_mini_batches);

    // The models: the policy and the critic learn, the reference and the reward model do not
    Trainer trainer = {.beta = args.kl_coef}, *p = &trainer;
    const bool values = args.advantage == GAE, shared = values && args.shared_value_head;
    const GPT2Limits answers = rollout_task_limits(&task, &run);
    GPT2Limits texts = answers, sampling = rollout_task_policy_limits(&task, &run);
    texts.scored = 0;
    mixture_load(&p->ptx, &run, "ptx_data", args.ptx_data, chat.template, task.strict,
                 args.ptx_batch_size, &sampling);
    Network policy = {.role = "policy", .limits = sampling, .trains = true},
            reference = {.role = "reference", .dir = run.model, .limits = answers},
            reward = {.role = "reward", .dir = task.reward_model, .limits = texts},
            critic = {.role = "critic", .dir = args.critic_model, .limits = texts, .trains = true};
    policy.head = shared ? LM_AND_VALUE_HEAD : LM_HEAD;
    reward.head = critic.head = SCORE_HEAD;
    reward.longest = critic.longest = task.longest;
    reward.judges = true;
    if (!critic.dir) critic.dir = reward.dir ? reward.dir : run.model;
    Network *models[5] = {&policy, &reference};
    int n = 2;
    if (task.reward_model) models[n++] = &reward;
    if (values && !shared) models[n++] = &critic;
    run_keep(&run, "beta", &p->beta);
    run_keep(&run, "policy_updates", &p->policy_updates);
    run_keep(&run, "critic_updates", &p->critic_updates);
    networks_open(&run, models);
    p->policy = policy.model;
    p->reference = reference.model;
    p->critic = critic.model;
    if (p->critic && !critic.has_head)
        printf("the critic starts from %s and a head of zeros\n", critic.from);
    rollout_task_begin(&task, &run, reward.model, &sampling);
    Rollouts *r = &task.r;
    evaluate(p, &run);

    while (run_next(&run)) {
        watch_phase(&run, "rollout");
        if (task.replay) {
            rollout_task_replay(&task, &run);
            shape_scores(r);
        } else {
            // 1. The prompts of this iteration
            rollout_task_choose(&task, &run);
            // 2. An answer to each, sampled
            rollout_task_sample(&task, &run, p->policy, chat.temperature);
            // 3. Scores
            watch_phase(&run, "scoring");
            rollout_task_judge(&task, &run);
            shape_scores(r);
            // 4. What the reference and the critic say to every token
            passes(p, r, run.per_device_train_batch_size, values);
            // 5. Rewards
            reward_tokens(r, p->beta);
            // 6. Advantages and returns
            advantages(r);
        }
        rollout_task_dump(&task, &run);
        // 7. Epochs of minibatches: loss, gradient, AdamW
        watch_phase(&run, "update");
        const Sums s = update(p, r, &run);
        watch_phase(&run, NULL);
        run_progress(&run, s.policy / s.tokens, r->T);
        // 8. Figures; β adapts; held-out answers
        const Figures f = measure(r, p->beta);
        figures_watch(&run, &f, &s, p->beta, (double)(run.step + 1) * task.batch_size);
        if (args.adap_kl_ctrl)
            p->beta = adapt(p->beta, f.kl, args.target, args.horizon, task.batch_size);
        if (run_should_evaluate(&run)) evaluate(p, &run);
    }

    rollout_task_report(&task, &run);
    rollout_task_free(&task);
    mixture_free(&p->ptx);
    return run_finish(&run);
}
#endif
