/*
 * ppo.c - proximal policy optimisation: raise the reward of answers, stay near the initial model.
 *
 * A policy π, the language model, answers prompts by sampling. A reward model (or a program) gives
 * each answer one score. Per token y_t of an answer of T tokens
 *
 *     kl_t = log π_old(y_t) - log π_ref(y_t)         π_old sampled y_t; π_ref: the initial model
 *     r_t  = -β kl_t + 1[t = T] score                the reward
 *     δ_t  = r_t + γ V_{t+1} - V_t                   V: the critic; V_{T+1} = 0
 *     A_t  = δ_t + γ λ A_{t+1},    R_t = A_t + V_t   the advantage, the return; A_{T+1} = 0
 *     ρ_t  = π(y_t) / π_old(y_t)
 *     L    = mean_t max(-A ρ, -A clip(ρ, 1-ε, 1+ε))                          the policy's loss
 *          + c_v ½ mean_t max((V-R)², (clip(V, V_old ± ε_v) - R)²)           the critic's loss
 *          - c_e mean_t H(π)  +  c_ptx L_lm       entropy bonus; cross-entropy of other text
 *
 * One iteration is one step of the run:
 *
 *     a  choose prompts              d  log π_ref and V per token    g  epochs of minibatches:
 *     b  sample an answer to each    e  rewards r per token             L, its gradient, AdamW
 *     c  score each answer           f  advantages A and returns R   h  log, adapt β, evaluate
 *
 * Schulman et al. 2016 (GAE), 2017 (PPO); with language models: Ziegler et al. 2019, Stiennon et
 * al. 2020, Ouyang et al. 2022. Details outside these formulas decide whether training succeeds
 * (Huang et al. 2024, "The N implementation details of RLHF with PPO"). Each is a flag, and has its
 * number in --help and in the code (2, 3, 20 and 21 also in common/rl/rollout_task.c):
 *
 *      1 one temperature everywhere     8 the estimator of A        15 the entropy bonus
 *      2 answers without end of text    9 whitening the advantages  16 clamping the log-ratio
 *      3 clipping the score            10 whitening's variance      17 skipping, stopping updates
 *      4 β, fixed or adaptive          11 epochs and minibatches    18 where Adam adds its ε
 *      5 the estimator of kl_t         12 clipping the ratio        19 learning rate decay
 *      6 whitening the rewards         13 clipping the value        20 pre-training mix (PPO-ptx)
 *      7 γ and λ                       14 the value coefficient     21 the first critic, warm-up
 *
 * Nothing is padded: means are over real tokens. The log-probabilities of sampling and of training
 * are bitwise identical (rows_check), so the first ratio is exactly 1. common/rl/rollouts.h counts
 * the passes of an iteration.
 *
 * Left out: top-k and top-p in rollouts (they sample from another distribution than π, and the KL
 * can be negative); a reward after the end of text (a known bug of padded implementations); cutting
 * at a full stop (lm-human-preferences, stylistic continuation); dropout (it would make ρ noisy).
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

typedef enum { K1, K2, K3 } KLEstimator;  // an enum has the order of its flag's choices
typedef enum { GAE, BATCH_MEAN, RLOO, GRPO } Advantage;

static RolloutTask task;
static Chat chat;

static struct {
    KLEstimator kl_estimator;
    Advantage advantage;
    enum { WHITEN_BATCH, WHITEN_MINIBATCH, WHITEN_NONE } whiten_advantages;
    enum { UNBIASED, POPULATION } whitening_variance;
    enum { PYTORCH, TENSORFLOW } adam_eps_convention;
    int num_mini_batches, num_ppo_epochs, critic_warmup_steps;
    float kl_coef, desired_kl, horizon, gamma, lam, cliprange, cliprange_value, vf_coef;
    float entropy_coef, log_ratio_clamp, ratio_threshold, target_kl, critic_learning_rate;
    bool adap_kl_ctrl, exact_kl, whiten_rewards, shared_value_head;
} args;

#define ONLY_GAE .only_with = "advantage=gae"
static const Flag flags[] = {
    TITLE("Prompts and rollouts"),
    ROLLOUT_FLAGS(task),
    TEMPLATE_FLAG(chat),
    {"temperature", NUMBER(chat.temperature, "0.7", 0, 100),
     "(1) The temperature of all sampling and log-probabilities; 0.01 or more in training."},
    TITLE("Reward"),
    SCORE_FLAGS(task),
    {"kl_coef", NUMBER(args.kl_coef, "0.05", 0, 1e6),
     "(4) The coefficient β of the KL penalty; with --adap_kl_ctrl, its initial value."},
    {"adap_kl_ctrl", SWITCH(args.adap_kl_ctrl, "false"),
     "(4) Adapt β to keep the KL per answer near --target."},
    {"target", NUMBER(args.desired_kl, "6", 1e-6, 1e6),
     "(4) The KL per answer that β adapts to, in nats.", .only_with = "adap_kl_ctrl"},
    {"horizon", NUMBER(args.horizon, "10000", 1, 1e12),
     "(4) The time constant of the adaptation of β, in answers.", .only_with = "adap_kl_ctrl"},
    {"kl_estimator", CHOICE(args.kl_estimator, "k1", "k1|k2|k3"),
     "(5) The KL per token: k1 log-ratio, k2 half its square, k3 exp(-k1) - 1 + k1."},
    {"exact_kl", SWITCH(args.exact_kl, "true"),
     "Also measure the KL over the whole vocabulary, by one more forward pass of the policy."},
    {"whiten_rewards", SWITCH(args.whiten_rewards, "false"),
     "(6) Scale the rewards of an iteration to standard deviation 1 around their mean."},
    TITLE("Advantages"),
    {"gamma", NUMBER(args.gamma, "1", 0, 1), "(7) The discount γ of GAE.", ONLY_GAE},
    {"lam", NUMBER(args.lam, "0.95", 0, 1), "(7) The λ of GAE.", ONLY_GAE},
    {"advantage", CHOICE(args.advantage, "gae", "gae|batch_mean|rloo|grpo"),
     "(8) gae estimates advantages with a critic. batch_mean subtracts the batch's mean from an "
     "answer's reward, rloo the mean of the prompt's other answers. grpo subtracts the mean of all "
     "the prompt's answers and divides by their standard deviation."},
    {"whiten_advantages", CHOICE(args.whiten_advantages, "batch", "batch|minibatch|none"),
     "(9) Scale advantages to mean 0, standard deviation 1 over a batch or minibatch."},
    {"whitening_variance", CHOICE(args.whitening_variance, "unbiased", "unbiased|population"),
     "(10) Whitening divides the sum of n squares by n - 1 (unbiased) or by n (population).",
     .only_with = "whiten_rewards whiten_advantages=batch whiten_advantages=minibatch"},
    TITLE("Updates"),
    {"num_ppo_epochs", NUMBER(args.num_ppo_epochs, "4", 1, 1000),
     "(11) The number of epochs over the answers of an iteration."},
    {"num_mini_batches", NUMBER(args.num_mini_batches, "1", 1, 1 << 20),
     "(11) The number of minibatches of an epoch; each is one optimiser step."},
    {"cliprange", NUMBER(args.cliprange, "0.2", 1e-6, 1e6), "(12) The clip range ε of the ratio."},
    {"cliprange_value", NUMBER(args.cliprange_value, "0.2", 0, 1e6),
     "(13) The clip range ε_v of the value; 0 never clips.", ONLY_GAE},
    {"vf_coef", NUMBER(args.vf_coef, "0.1", 0, 1e6),
     "(14) The value coefficient c_v; Adam nearly cancels it in a separate critic.", ONLY_GAE},
    {"shared_value_head", SWITCH(args.shared_value_head, "false"),
     "(14) Make the critic a scalar head on the policy instead of a separate model.", ONLY_GAE,
     .conflicts = "critic_model critic_learning_rate critic_warmup_steps"},
    {"entropy_coef", NUMBER(args.entropy_coef, "0", 0, 1e6), "(15) The entropy coefficient c_e."},
    {"log_ratio_clamp", NUMBER(args.log_ratio_clamp, "20", 0, 80),
     "(16) Clamp log ρ to ± this; 0 never clamps."},
    {"ratio_threshold", NUMBER(args.ratio_threshold, "10", 0, 1e30),
     "(17) Skip the update of a minibatch whose mean ρ exceeds this; 0 skips none."},
    {"target_kl", NUMBER(args.target_kl, "0", 0, 1e6),
     "(17) End an iteration's updates when approxkl exceeds 1.5 times this; 0 never does."},
    {"adam_eps_convention", CHOICE(args.adam_eps_convention, "pytorch", "pytorch|tensorflow"),
     "(18) Adam adds ε to sqrt(v / (1 - β2^t)) (pytorch) or to sqrt(v) (tensorflow)."},
    {"critic_learning_rate", NUMBER(args.critic_learning_rate, "0", 0, 10),
     "(21) The learning rate of a separate critic; 0 uses --learning_rate.", ONLY_GAE},
    {"critic_warmup_steps", NUMBER(args.critic_warmup_steps, "0", 0, 1e9),
     "(21) Train only the separate critic for this many iterations first.", ONLY_GAE},
    PTX_FLAGS(task),
    CHAT_ONLY_FLAGS(chat, "reward_model reward_cmd critic_model ptx_data dump_rollouts replay"),
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

static const Program program = {
    .name = "ppo",
    .about = "PPO: reinforcement learning of a GPT-2 from a reward model or a program.",
    .flags = flags,
    .lines.program =
        COMMAND_LINE("--per_device_train_batch_size=8", "--num_train_epochs=1",
                     "--learning_rate=3e-6", "--adam_epsilon=1e-5", "--weight_decay=0",
                     "--warmup_steps=0", "--logging_steps=1", "--eval_steps=10", "--save_steps=50"),
    .lines.presets = presets,
    .lines.notes = PPO_DETAILS REWARD_CMD_NOTES,
    .lines.example = COMMAND_LINE(
        "--model=test/tiny/chat", "--reward_model=test/tiny/reward",
        "--data=test/tiny/prompts.jsonl", "--eval=test/tiny/prompts-eval.jsonl",
        "--per_device_train_batch_size=16", "--max_steps=20", "--learning_rate=1e-4",
        "--adam_beta2=0.99", "--lr_scheduler_type=constant", "--logging_steps=5",
        "--critic_learning_rate=2e-4", "--critic_warmup_steps=2", "--eval_samples=72",
        "--num_ppo_epochs=2", "--num_mini_batches=2", "--response_length=64", "--temperature=1",
        "--kl_coef=0.15", "--score_clip=4", "--non_eos_penalty", "--penalty_reward_value=-4"),
    .lines.example_unless = "model data prompt chat",
    .lines.uses =
        "  ./ppo --model tuned --reward_model judge --data prompts.jsonl --output rl\n"
        "      trains on prompts alone; --reward_cmd PROGRAM takes any judge\n"
        "  ./ppo --model rl --chat\n"
        "      talks to the result\n",
    .without = "gradient_accumulation_steps dataloader_drop_last " BEST_FLAGS,
    .needs = "model data",
    .chat = &chat,
};

/* Refuses what .conflicts and .only_with of the table cannot. */
static void check_flags(void) {
    if (task.batch_size % args.num_mini_batches)
        die_usage("--batch_size %d is not a multiple of --num_mini_batches %d", task.batch_size,
                  args.num_mini_batches);
    if ((args.advantage == RLOO || args.advantage == GRPO) && task.num_generations < 2)
        die_usage("rloo and grpo compare a prompt's answers and need --num_generations 2 or more");
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

/* v (n) <- (v - μ) / sqrt(σ² + 1e-8), and then + μ if keep_mean. σ² is 0 if n < 2. */
static void whiten(int n, float *v, bool unbiased, bool keep_mean) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += (double)v[i] / n;
    for (int i = 0; i < n; i++) squares += ((double)v[i] - mean) * ((double)v[i] - mean);
    const double variance = n > 1 ? squares / (unbiased ? n - 1 : n) : 0;  // (10)
    const double deviation = sqrt(variance + 1e-8);
    for (int i = 0; i < n; i++)
        v[i] = (float)(((double)v[i] - mean) / deviation + (keep_mean ? mean : 0));
}

/* δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γ λ A_{t+1};  R_t = A_t + V_t;  V_{T+1} = A_{T+1} = 0.
   All arrays are (T), of one answer. */
static void gae(int T, const float *reward, const float *V, double gamma, double lambda, float *A,
                float *R) {
    double A_next = 0, V_next = 0;
    for (int t = T - 1; t >= 0; t--) {
        const double delta = (double)reward[t] + gamma * V_next - (double)V[t];
        A_next = delta + gamma * lambda * A_next;  // from here on A_t and V_t
        V_next = (double)V[t];
        A[t] = (float)A_next;
        R[t] = (float)(A_next + V_next);
    }
}

/* Advantages without a critic, one per answer. total (E): the sum of r_t over each answer. Answers
   k group to (k+1) group - 1 share a prompt; m is their mean, σ their standard deviation.
       batch_mean  A_i = total_i - m, where all answers are one group
       rloo        A_i = total_i - mean of the others in the group       Ahmadian et al. 2024
       grpo        A_i = (total_i - m) / (σ + 1e-4)                      Shao et al. 2024 */
static void baseline(Advantage kind, int E, int group, const double *total, double *A) {
    if (kind == BATCH_MEAN) group = E;
    for (int from = 0; from < E; from += group) {
        double mean = 0, squares = 0;
        for (int i = from; i < from + group; i++) mean += total[i] / group;
        for (int i = from; i < from + group; i++) squares += (total[i] - mean) * (total[i] - mean);
        const double sigma = group > 1 ? sqrt(squares / (group - 1)) : 0;
        const double others = group > 1 ? (double)group / (group - 1) : 0;  // n / (n - 1)
        for (int i = from; i < from + group; i++) {
            A[i] = total[i] - mean;
            if (kind == RLOO) A[i] *= others;
            if (kind == GRPO) A[i] /= sigma + 1e-4;
        }
    }
}

/* L = 1/M sum_i max(-A ρ, -A clip(ρ, 1-ε, 1+ε)),  ρ = exp(logp - old_logp), over the answer tokens,
   target[i] >= 0, of N positions. dL/dlogp = -A ρ / M; it is 0 where the clipped term is larger or
   log ρ is clamped, but NaN where A ρ is (hence the !). Arrays are (N). Adds to s. */
static void surrogate(int N, const int *target, const float *logp, const float *old_logp,
                      const float *A, double epsilon, double clamp, double M, float *dlogp,
                      Sums *s) {
    for (int i = 0; i < N; i++) {
        dlogp[i] = 0;
        if (target[i] < 0) continue;
        const double d = (double)logp[i] - (double)old_logp[i];
        const double log_ratio = clamp > 0 ? fmin(fmax(d, -clamp), clamp) : d;  // (16)
        const double ratio = exp(log_ratio), a = (double)A[i];
        const double plain = -a * ratio;
        const double clipped = -a * fmin(fmax(ratio, 1 - epsilon), 1 + epsilon);  // (12)
        if (!(clipped > plain) && log_ratio == d) dlogp[i] = (float)(plain / M);
        s->policy += fmax(plain, clipped);
        s->clipped += clipped > plain;
        s->ratio += ratio;
        s->ratio_squared += ratio * ratio;
        s->approxkl += d * d / 2;
        s->tokens++;
    }
}

/* L = c_v / M sum_i ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²) over the same tokens; ε_v = 0: no
   clip. dL/dV = c_v (V - R) / M; it is 0 where the clipped term is the larger. Arrays are (N). */
static void value_loss(int N, const int *target, const float *V, const float *V_old, const float *R,
                       double epsilon, double coefficient, double M, float *dvalue, Sums *s) {
    for (int i = 0; i < N; i++) {
        dvalue[i] = 0;
        if (target[i] < 0) continue;
        const double v = (double)V[i], old = (double)V_old[i], ret = (double)R[i];
        const double v_clip = epsilon > 0 ? fmin(fmax(v, old - epsilon), old + epsilon) : v;
        const double plain = (v - ret) * (v - ret),
                     clipped = (v_clip - ret) * (v_clip - ret);                    // (13)
        if (!(clipped > plain)) dvalue[i] = (float)(coefficient * (v - ret) / M);  // (14)
        s->value += fmax(plain, clipped) / 2;
        s->value_clipped += clipped > plain;
        s->value_tokens++;
    }
}

/* β (1 + clip(kl / desired - 1, ±0.2) n / horizon), after n answers (Ziegler et al. 2019, 2.2). */
static double adapt(double beta, double kl, double desired, double horizon, int n) {
    return beta * (1 + fmin(fmax(kl / desired - 1, -0.2), 0.2) * n / horizon);  // (4)
}

/* AdamW's settings for step t at the scheduled share of learning_rate (0 if --learning_rate is 0).
   TensorFlow adds ε to sqrt(v); PyTorch and gpt2_step add it to sqrt(v / (1-β2^t)). Dividing ε by
   sqrt(1-β2^t) gives TensorFlow's update. */
static AdamW adam(const Run *run, float learning_rate, int t) {
    AdamW o = run_adamw(run);  // (19)
    if (run->learning_rate > 0) o.learning_rate *= learning_rate / run->learning_rate;
    if (args.adam_eps_convention == TENSORFLOW)
        o.epsilon = (float)((double)o.epsilon / sqrt(1 - pow((double)o.beta2, t)));  // (18)
    return o;
}

/* ---- steps d to f: rewards and advantages ------------------------------------------------------
   Rollouts *r: E answers, as concatenated per-token arrays; answer e has [start[e], start[e+1]).
   Rows *b: the micro-batch now in the network, answers with their prompts, one row per position.
   The token after row i's is target[i], or < 0 where it is not an answer's. rows_fill, rows_range
   copy numbers from r to the rows. rows_keep copies the rows with a target back to r.
   gpt2_logprob, _kl and _value read the last gpt2_forward (NULL: no dropout); gpt2_backward adds
   to the gradients; gpt2_step uses and then clears them; gpt2_clear clears them. */

static bool separate_critic(void) { return task.critic && task.critic != task.policy; }

/* Step d: log π_ref, the exact KL and, with_values, the critic's V of every token. The policy does
   not read the answers again: its outputs are those that their tokens were sampled from. False: a
   signal asks the run to stop. */
static bool reference_and_values(Rollouts *r, int B, bool with_values) {
    Rows *b = &task.rows;
    const int end = part_end(r->E);  // processes share the answers out
    for (int from = part_first(r->E); from < end && !run_interrupted(); from += B) {
        rows_range(b, r, from, min_int(B, end - from));
        gpt2_forward(task.reference, &b->batch, NULL);
        gpt2_logprob(task.reference, b->target, chat.temperature, b->logp, NULL, NULL);
        rows_keep(b, b->logp, r->ref_logp);
        if (args.exact_kl || (with_values && !separate_critic()))
            gpt2_recall(task.policy, &b->batch, b->of);
        if (args.exact_kl) {
            gpt2_logprob(task.policy, b->target, chat.temperature, b->logp, NULL, NULL);  // (1)
            gpt2_kl(task.policy, task.reference, b->kl);
            rows_keep(b, b->kl, r->kl);
        }
        if (with_values) {
            if (separate_critic()) gpt2_forward(task.critic, &b->batch, NULL);
            gpt2_value(task.critic, b->value);
            rows_keep(b, b->value, r->value);
        }
    }
    rollouts_collect(r);
    return !run_interrupted();
}

/* Step e: the reward of every token. */
static void reward_tokens(Rollouts *r, double beta) {
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], T = r->start[e + 1] - at;
        rewards(T, r->logp + at, r->ref_logp + at, r->shaped[e], beta, args.kl_estimator,
                r->reward + at);
    }
    if (args.whiten_rewards)
        whiten(r->n_tokens, r->reward, args.whitening_variance == UNBIASED, true);  // (6)
}

/* Step f: the advantage and the return of every token. Without a critic, all tokens of an answer
   share the answer's advantage, and its total as the return. */
static void advantages(Rollouts *r) {
    double *total = (double *)xcalloc((size_t)r->E, 2 * sizeof *total), *A = total + r->E;
    for (int e = 0; e < r->E; e++)
        for (int t = r->start[e]; t < r->start[e + 1]; t++) total[e] += (double)r->reward[t];
    if (args.advantage != GAE)
        baseline(args.advantage, r->E, task.num_generations, total, A);  // (8)
    for (int e = 0; e < r->E; e++) {
        const int at = r->start[e], T = r->start[e + 1] - at;
        if (args.advantage == GAE)
            gae(T, r->reward + at, r->value + at, args.gamma, args.lam, r->advantage + at,
                r->ret + at);  // (7)
        for (int t = at; t < at + T && args.advantage != GAE; t++) {
            r->advantage[t] = (float)A[e];
            r->ret[t] = (float)total[e];
        }
    }
    if (args.whiten_advantages == WHITEN_BATCH)
        whiten(r->n_tokens, r->advantage, args.whitening_variance == UNBIASED, false);  // (9)
    free(total);
}

/* ---- step g: learning ------------------------------------------------------------------------ */

/* The loss of the answers which[0..n) and its gradients, B answers at a time. M counts the tokens
   of all n, so B does not change the loss. r->A: the advantages as this minibatch uses them. first:
   the policy is still the one that sampled the answers. */
static Sums minibatch(Rollouts *r, const int *which, int n, int B, bool policy_trains, bool first) {
    Rows *b = &task.rows;
    Sums s = {0};
    const int M = rollouts_gather(r, r->advantage, which, n, r->gathered);
    if (args.whiten_advantages == WHITEN_MINIBATCH)
        whiten(M, r->gathered, args.whitening_variance == UNBIASED, false);  // (9)
    rollouts_scatter(r, r->gathered, which, n, r->A);
    while (rollout_task_rows(&task, which, n, B, &s)) {
        const int N = b->batch.N;
        if (policy_trains) {
            gpt2_forward(task.policy, &b->batch, NULL);
            gpt2_logprob(task.policy, b->target, chat.temperature, b->logp, b->entropy, NULL);
            if (first) rows_check(b);  // ρ = 1
            rows_keep(b, b->logp, r->new_logp);
            surrogate(N, b->target, b->logp, b->old_logp, b->A, args.cliprange,
                      args.log_ratio_clamp, M, b->dlogp, &s);
            for (int i = 0; i < N; i++) {
                s.entropy += (double)b->entropy[i];
                b->dentropy[i] = b->target[i] < 0 ? 0 : -args.entropy_coef / (float)M;  // (15)
            }
        }
        if (task.critic) {
            if (separate_critic()) gpt2_forward(task.critic, &b->batch, NULL);
            gpt2_value(task.critic, b->value);
            value_loss(N, b->target, b->value, b->old_value, b->ret, args.cliprange_value,
                       args.vf_coef, M, b->dvalue, &s);
        }
        if (policy_trains)
            gpt2_backward(task.policy, b->dlogp, args.entropy_coef > 0 ? b->dentropy : NULL,
                          task.critic == task.policy ? b->dvalue : NULL);
        if (separate_critic()) gpt2_backward(task.critic, NULL, NULL, b->dvalue);
    }
    if (task.ptx_data && policy_trains) rollout_task_mix_in(&task, &s);  // (20)
    return s;
}

/* Steps a separate critic, then, if its norm is finite, the policy. Returns the last norm. */
static double optimise(const Run *run, bool policy_trains) {
    const float rate = run->learning_rate, own = args.critic_learning_rate;
    double norm = 0;
    if (separate_critic()) {
        const AdamW o = adam(run, own > 0 ? own : rate, (int)++task.critic_updates);
        norm = gpt2_step(task.critic, &o, (int)task.critic_updates);
    }
    if (policy_trains && isfinite(norm)) {
        const AdamW o = adam(run, rate, (int)++task.policy_updates);
        norm = gpt2_step(task.policy, &o, (int)task.policy_updates);
    }
    return norm;
}

/* Step g: epochs of minibatches, each epoch in another order. Returns sums over all (figures.h). */
static Sums update(Rollouts *r, const Run *run) {
    Sums all = {0};
    const bool policy_trains = !separate_critic() || run->step >= args.critic_warmup_steps;  // (21)
    const double threshold = args.ratio_threshold, limit = 1.5 * (double)args.target_kl;
    const int n = r->E / args.num_mini_batches, B = run->per_device_train_batch_size;
    bool stop = false;
    for (int epoch = 0; epoch < args.num_ppo_epochs && !stop; epoch++) {  // (11)
        const uint32_t pass = (uint32_t)run->step * (uint32_t)args.num_ppo_epochs + (uint32_t)epoch;
        random_permutation(r->order, r->E, (uint64_t)run->seed, RANDOM_DATA, pass);
        for (int from = 0; from < r->E && !stop; from += n) {
            const bool first = epoch == 0 && from == 0 && !task.replay;
            Sums s = minibatch(r, r->order + from, n, B, policy_trains, first);
            stop = limit > 0 && s.approxkl > limit * s.tokens;                      // (17)
            s.skipped = stop || (threshold > 0 && s.ratio > threshold * s.tokens);  // (17)
            if (s.skipped) {
                gpt2_clear(task.policy);
                if (separate_critic()) gpt2_clear(task.critic);
            } else {
                all.grad_norm = optimise(run, policy_trains);
            }
            sums_add(&all, &s);  // all but grad_norm
            rollout_task_check(&task, run, epoch, r->order[from], &s, all.grad_norm);
        }
    }
    return all;
}

/* ---- step h: metrics ------------------------------------------------------------------------- */

static Figures measure(const Rollouts *r, double beta) {
    Figures f = figures_measure(r);
    for (int t = 0; t < r->n_tokens; t++) {  // KL: summed over an answer, averaged over the answers
        f.kl += kl_estimate(args.kl_estimator, r->logp[t], r->ref_logp[t]) / r->E;
        f.k1 += kl_estimate(K1, r->logp[t], r->ref_logp[t]) / r->E;
        f.k3 += kl_estimate(K3, r->logp[t], r->ref_logp[t]) / r->E;
    }
    f.non_score = 0 - beta * f.kl;  // 0 - 0 is logged as 0, -0 as -0
    if (!args.exact_kl) f.kl_exact = NAN;
    if (args.advantage != GAE) f.explained = NAN;
    return f;
}

/* Evaluates on the held-out prompts. None of the metrics that are logged depends on β. */
static void evaluate(Run *run) {
    if (!rollout_task_answer(&task, run, chat.temperature)) return;
    if (!reference_and_values(&task.r, run->per_device_train_batch_size, false)) {
        run_postpones(run);
        return;
    }
    const Figures f = measure(&task.r, task.beta);
    rollout_task_measured(&task, run, &f);
}

/* ---- the loop -------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    check_flags();
    rollout_task_load(&task, &run, &chat);
    task.beta = args.kl_coef;
    // Checkpoints keep these besides the models. rollout_task_open resumes and sets them.
    run_keep(&run, "beta", &task.beta);
    run_keep(&run, "policy_updates", &task.policy_updates);
    run_keep(&run, "critic_updates", &task.critic_updates);
    rollout_task_open(&task, &run, args.advantage == GAE, args.shared_value_head, args.exact_kl);
    const int B = run.per_device_train_batch_size;
    Rollouts *r = &task.r;
    if (!task.measured) evaluate(&run);  // a resumed run has it from its checkpoint
    if (run_measures_again(&run)) evaluate(&run);

    while (run_next(&run)) {
        watch_phase(&run, "rollout");
        if (task.replay) {
            rollout_task_replay(&task, &run);  // instead of steps a to f
        } else {
            rollout_task_choose(&task, &run);  // a. prompts
            // b. an answer to each, sampled; c. scores. false: a signal asked the run to stop
            if (!rollout_task_sample(&task, &run, chat.temperature)) break;
            watch_phase(&run, "scoring");
            if (!rollout_task_judge(&task, &run)) break;
            // d. the reference and the critic
            if (!reference_and_values(r, B, task.critic != NULL)) break;
            reward_tokens(r, task.beta);  // e. rewards
            advantages(r);                // f. advantages and returns
        }
        watch_phase(&run, "update");
        const Sums s = update(r, &run);  // g. epochs of minibatches: loss, gradient, AdamW
        watch_phase(&run, NULL);
        rollout_task_dump(&task, &run);
        run_progress(&run, s.tokens > 0 ? s.policy / s.tokens : NAN, r->n_tokens);
        const Figures f = measure(r, task.beta);  // h. metrics; β adapts; evaluation
        figures_watch(&run, &f, &s, task.beta, (double)(run.step + 1) * task.batch_size);
        if (args.adap_kl_ctrl)
            task.beta = adapt(task.beta, f.kl, args.desired_kl, args.horizon, task.batch_size);
        if (run_should_evaluate(&run)) evaluate(&run);
    }

    rollout_task_report(&task);
    rollout_task_free(&task);
    return run_finish(&run);
}
