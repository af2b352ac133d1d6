/*
 * rollout_task.h - the task of a policy that learns from its own answers: prompts, a judge, answers
 * with the numbers of their tokens, and the answers to held-out prompts.
 *
 * run/task.h is the counterpart for supervised learning. The algorithm is in the stage.
 */
#ifndef POSTTRAIN_ROLLOUT_TASK_H
#define POSTTRAIN_ROLLOUT_TASK_H

#include "model/shards.h"
#include "rl/figures.h"
#include "rl/judge.h"
#include "rl/rollouts.h"
#include "run/chat.h"
#include "run/network.h"
#include "run/run.h"
#include "text/dataset.h"

enum { SHOWN_ANSWERS = 3 };  // held-out answers that are printed as text

typedef struct {
    /* flags */
    const char *reward_model, *reward_cmd, *critic_model, *dump_rollouts, *replay, *ptx_data;
    float reward_timeout, missing_eos_penalty, penalty_reward_value, score_clip, ptx_coef;
    bool strict, non_eos_penalty;
    int max_prompt_length, response_length, rollout_slots, eval_samples, ptx_batch_size;
    int total_episodes, batch_size, num_generations;
    /* the rest is filled in by the functions below */
    Queries train, held_out;
    int prompts;                            // of an iteration
    int longest;                            // most tokens of a prompt with its answer
    int answers;                            // the number of held-out prompts that are answered
    Network network[4];                     // policy, reference, reward model, critic
    GPT2 *policy, *reference, *critic;      // critic: NULL, a separate model, or the policy
    double beta;                            // of the KL penalty; the stage sets it
    double policy_updates, critic_updates;  // optimiser steps, counted by the stage in
                                            // doubles, which run_keep needs
    Judge judge;
    Rollouts r;  // the answers of this iteration
    Rows rows;   // the micro-batch of them that is in the network
    /* of a minibatch, while it is learned from */
    Shards shards;
    bool begun;        // it has
    int first, n;      // the micro-batch: its first answer in the minibatch, and their number
    Sums *shard_sums;  // (shards) of each shard that is complete
    Dataset ptx;       // of --ptx_data
    RaggedBatch ptx_batch;
    /* held-out answers, before training and after; a resumed run has those before training from
       its checkpoint */
    bool measured;  // before training
    Figures before, after;
    double correct_before, correct_after;  // share that contain the data's answer; NAN: no such
    Str shown_before[SHOWN_ANSWERS], shown_after[SHOWN_ANSWERS];
} RolloutTask;

/* For --help: what the numbers in brackets are. */
#define PPO_DETAILS                                                               \
    "A number in brackets is that of a detail which decides whether PPO learns\n" \
    "(Huang et al. 2024). Code and comments of ppo.c have the same numbers:\n"    \
    "   1 one temperature everywhere        12 clipping the ratio\n"              \
    "   2 answers without end of text       13 clipping the value\n"              \
    "   3 clipping the score                14 the value coefficient\n"           \
    "   4 the KL penalty, fixed or adaptive 15 the entropy bonus\n"               \
    "   5 the estimator of the KL           16 clamping the log-ratio\n"          \
    "   6 whitening the rewards             17 skipping and stopping updates\n"   \
    "   7 discount and lambda               18 where Adam adds epsilon\n"         \
    "   8 the estimator of the advantages   19 learning rate decay\n"             \
    "   9 whitening the advantages          20 pre-training mix (PPO-ptx)\n"      \
    "  10 the variance of whitening         21 the first critic, warm-up\n"       \
    "  11 epochs and minibatches\n\n"

/* For --help: a program for --reward_cmd. */
#define REWARD_CMD_NOTES                                                                      \
    "A judge for --reward_cmd 'python3 judge.py', which rewards the right answer of GSM8K:\n" \
    "    import json, sys\n"                                                                  \
    "    for line in sys.stdin:\n"                                                            \
    "        x = json.loads(line)  # prompt, response, and the record's own answer\n"         \
    "        right = x[\"answer\"].split(\"####\")[-1].strip()\n"                             \
    "        score = 1 if right in x[\"response\"] else 0\n"                                  \
    "        print(json.dumps({\"score\": score}), flush=True)  # at once\n"

/* Rows of a stage's table of flags, for task, a RolloutTask in static storage. */
#define ROLLOUT_FLAGS(task)                                                                       \
    {"reward_model", TEXT((task).reward_model, NULL),                                             \
     "The directory of the reward model, as reward.c writes it."},                                \
        {"reward_cmd", TEXT((task).reward_cmd, NULL),                                             \
         "A program that judges instead of a reward model. It reads lines {\"prompt\", "          \
         "\"response\"}, "                                                                        \
         "with the record's own \"answer\" if it has one, and answers each at once with a line "  \
         "{\"score\": number}.",                                                                  \
         .conflicts = "reward_model"},                                                            \
        {"reward_timeout", NUMBER((task).reward_timeout, "60", 0.1, 1e6),                         \
         "End the run after this many seconds without output from --reward_cmd.",                 \
         .may_change_on_resume = true, .only_with = "reward_cmd"},                                \
        {"critic_model", TEXT((task).critic_model, NULL),                                         \
         "(21) The directory of the model that the critic is initialised from; without it, the "  \
         "reward model, or else the policy with a value head of zeros.",                          \
         .only_with = "advantage=gae"},                                                           \
        {"strict", SWITCH((task).strict, "false"),                                                \
         "Stop at the first bad line of a data file instead of skipping it."},                    \
        {"max_prompt_length", NUMBER((task).max_prompt_length, "512", 1, 1 << 20),                \
         "The most tokens of a prompt; a longer one loses its beginning."},                       \
        {"response_length", NUMBER((task).response_length, "53", 1, 1 << 20),                     \
         "The most tokens of an answer in training."},                                            \
        {"total_episodes", NUMBER((task).total_episodes, "0", 0, 2e9),                            \
         "The number of answers in the run; 0 makes --num_train_epochs passes over the prompts.", \
         .conflicts = "num_train_epochs"},                                                        \
        {"batch_size", NUMBER((task).batch_size, "64", 1, 1 << 20),                               \
         "The number of answers in an iteration, which is one step of the run."},                 \
        {"num_generations", NUMBER((task).num_generations, "1", 1, 1 << 16),                      \
         "The number of answers to each prompt of an iteration."},                                \
        {"rollout_slots", NUMBER((task).rollout_slots, "32", 1, 4096),                            \
         "The number of answers that are sampled at the same time.",                              \
         .may_change_on_resume = true},                                                           \
        {"eval_samples", NUMBER((task).eval_samples, "64", 0, 1e6),                               \
         "The number of held-out prompts that are answered before, during and after training.",   \
         .only_with = "eval"},                                                                    \
        {"dump_rollouts", TEXT((task).dump_rollouts, NULL),                                       \
         "Write every answer, also to held-out prompts, with the numbers of its tokens to this "  \
         "file, one JSON line each.",                                                             \
         .may_change_on_resume = true},                                                           \
    {                                                                                             \
        "replay", TEXT((task).replay, NULL),                                                      \
            "Read the answers and their numbers from a file of --dump_rollouts instead of "       \
            "sampling and judging.",                                                              \
            .may_change_on_resume = true                                                          \
    }

/* What a score becomes. The numbers are those of ppo.c's list of details. */
#define SCORE_FLAGS(task)                                                            \
    {"missing_eos_penalty", NUMBER((task).missing_eos_penalty, "0", 0, 1e6),         \
     "(2) Subtract this from the score of an answer without end of text."},          \
        {"non_eos_penalty", SWITCH((task).non_eos_penalty, "false"),                 \
         "(2) Give an answer without end of text the score --penalty_reward_value.", \
         .conflicts = "missing_eos_penalty"},                                        \
        {"penalty_reward_value", NUMBER((task).penalty_reward_value, "-1", 0, 0),    \
         "(2) The score of an answer without end of text, with --non_eos_penalty.",  \
         .only_with = "non_eos_penalty"},                                            \
    {                                                                                \
        "score_clip", NUMBER((task).score_clip, "0", 0, 1e6),                        \
            "(3) Clip scores to ± this; 0 never clips."                             \
    }

/* Records of supervised learning, mixed into reinforcement learning */
#define PTX_FLAGS(task)                                                                         \
    {"ptx_data", TEXT((task).ptx_data, NULL),                                                   \
     "(20) A JSONL file of records as for sft --data, the pre-training mix of PPO-ptx."},       \
        {"ptx_coef", NUMBER((task).ptx_coef, "27.8", 0, 1e6),                                   \
         "(20) The coefficient c_ptx of the loss on --ptx_data.", .only_with = "ptx_data"},     \
    {                                                                                           \
        "ptx_batch_size", NUMBER((task).ptx_batch_size, "8", 1, 1 << 16),                       \
            "(20) The number of --ptx_data records in each minibatch.", .only_with = "ptx_data" \
    }

/* Reads the prompts of --data and --eval and the records of --ptx_data, remembers their content and
   the template for the checkpoints, and plans the run: a step is an iteration. chat: its template,
   and the temperature of all sampling. Wrong input ends the program with 2. */
void rollout_task_load(RolloutTask *t, Run *run, const Chat *chat);
/* Opens the models (networks_open): the policy, its reference, which is --model as it was, the
   reward model and, with a critic, a model for it or (shared) a head on the policy. exact_kl: the
   policy keeps what gpt2_kl needs, as it does for a shared critic (gpt2_recall). Resumes, and so
   sets the numbers of run_keep, which comes before. Starts --reward_cmd, makes room for the
   answers, and begins the file of --dump_rollouts. */
void rollout_task_open(RolloutTask *t, Run *run, bool has_critic, bool shared, bool exact_kl);

/* Sets r.query to the prompts of this step, each num_generations times in a row. An epoch goes
   through all prompts in an order of its own. */
void rollout_task_choose(RolloutTask *t, const Run *run);
/* Samples an answer to each of r.query from the policy alone (no top-k, no top-p), so that the
   log-probabilities are those of the distribution that was sampled. False: a signal asked the run
   to stop; the step has not begun, and a resumed run begins it again. */
bool rollout_task_sample(RolloutTask *t, const Run *run, float temperature);
/* Fills in r.score, what the judge says, and r.shaped, what the policy learns from. False: as
   above. */
bool rollout_task_judge(RolloutTask *t, const Run *run);
/* Reads the answers of this step with all of their numbers from --replay instead. */
void rollout_task_replay(RolloutTask *t, const Run *run);
/* The score that the policy learns from, of an answer that ended or not. */
double shaped_score(const RolloutTask *t, float score, bool ended);
/* Adds the answers of this step to the file of --dump_rollouts, if there is one. After the updates,
   whose last ratios are among the numbers. */
void rollout_task_dump(const RolloutTask *t, const Run *run);

/* Ends the program with 1 if a loss of a minibatch or the gradient's norm is not finite. e: the
   first answer of the minibatch, which the message shows. --dump_rollouts gets the answers first.
 */
void rollout_task_check(const RolloutTask *t, const Run *run, int epoch, int e, const Sums *s,
                        double norm);

/* Answers the held-out prompts as in training, always from the same random numbers, and judges the
   answers. False: there are none, or a signal asks the run to stop (run_postpones). */
bool rollout_task_answer(RolloutTask *t, Run *run, float temperature);
/* Takes the figures of those answers, and watches eval/reward, eval/kl and so on. The first call of
   a run that is not resumed is that before training. */
void rollout_task_measured(RolloutTask *t, Run *run, const Figures *f);
/* After training: the first held-out answers and the figures, before training and after. */
void rollout_task_report(const RolloutTask *t);
void rollout_task_free(RolloutTask *t);

/* Fills t->rows with the next B answers of the minibatch which[0..n), or with those up to the end
   of the shard (shards.h). False: there are no more. s: the sums over the rows so far; at the end,
   over those of all processes, whose r.new_logp it has collected. */
bool rollout_task_rows(RolloutTask *t, const int *which, int n, int B, Sums *s);

/* Adds to the policy's gradient that of c_ptx times the mean cross-entropy of the next records of
   --ptx_data. policy_updates is the number of batches that were taken before. Adds to s. */
void rollout_task_mix_in(RolloutTask *t, Sums *s);

#endif
