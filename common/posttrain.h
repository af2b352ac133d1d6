/*
 * posttrain.h - the one header of a stage, and a tour of what it includes.
 *
 * A stage is a table of flags, the mathematics of its technique, and a loop. The mathematics works
 * on small host arrays with one number per token. Every array with channels or a vocabulary in its
 * shape stays inside the model, behind model/gpt2.h. The words and letters are the same everywhere:
 *
 *   sequence     a prompt and its response as tokens; plain text is one response
 *   batch        S sequences laid end to end: N tokens and S+1 offsets; no padding, no mask
 *   row          one of the N tokens of a batch. Row i reads tokens[i]; its log-probability is that
 *                of target[i], the token that follows. target[i] = -1: the row is not scored
 *   micro-batch  the batch of one forward and one backward pass; its gradients add up
 *   step         an optimiser step: some micro-batches, then clipping and AdamW, once
 *   iteration    a step of a run of ppo.c: answers are sampled and judged, then the models take
 *                several optimiser steps on them (epochs of minibatches)
 *
 *   S  sequences of a batch       V   vocabulary            M  scored tokens (reward.c: pairs) of a
 *   N  tokens of a batch          L   layers                   step, over all of its micro-batches
 *   C  channels                   NH  heads                 E  answers of an iteration
 *   OC output channels of a       hs  channels of a head    T  tokens of one answer; in gpt2.h, the
 *      linear layer                                            model's positions
 *
 * An array's shape is in its comment: "(N)" has a number per row. NULL is allowed only where a
 * comment says so. Below, each include is preceded by the functions and types that stages use, in
 * the order in which a stage calls them. The headers have the details.
 *
 * lora.c and adapter.c compute inside the network, so they also include model/tap.h,
 * model/kernels.h, run/technique.h and files/peft.h.
 */
#ifndef POSTTRAIN_H
#define POSTTRAIN_H

/* ---- what a program is, and the life of a run ------------------------------------------------ */

/*
 *  Flag           a row of the table: name, variable, default, range, help
 *  NUMBER SWITCH TEXT CHOICE TITLE    the macros that write such a row
 *  COMMAND_LINE   a command line as a constant: a program's defaults, its built-in example
 *  Preset         a named command line: --preset NAME
 */
#include "run/flags.h"

/*
 *  Program        name, flags, defaults, example: all that run_begin needs
 *  Run            the values of the flags that all programs have; step, total_steps
 *  run_begin      takes the Program and the command line, gives the Run; answers --help, --prompt
 *                 and --chat, finds the checkpoint of --resume, makes OUTPUT
 *  run_plan       takes the number of examples and how many a step takes, gives total_steps
 *  run_print_plan prints what a run learns from, and its steps
 *  run_next       ends the previous step (log line, checkpoint); is there another one?
 *  run_examples   gives the examples of this step, in the order of its epoch
 *  run_adamw      gives the optimiser's settings for this step
 *  run_optimise   takes model, loss and tokens of the step: clips, AdamW; gives the gradient's norm
 *  run_should_evaluate   is it time to measure held-out data?
 *  run_held_out_loss     takes a held-out loss: keeps the best model, may stop early
 *  run_interrupted       has a signal come? Then a step is left between two micro-batches
 *  run_postpones, run_measures_again   an evaluation that a signal ended, and its repetition
 *  run_completed  has the run reached its end? False after Ctrl-C
 *  run_finish     writes the model into OUTPUT, frees what the run holds, gives the exit status
 */
#include "run/run.h"

/*
 *  watch          the last value of a figure (a metric) in each log line
 *  watch_mean     its mean since the last log line: takes a sum and a count
 *  watch_combined, watch_min, watch_max   a weighted sum of two means, and extremes
 *  watch_held_out a figure of held-out data, on a log line of its own
 *  watch_phase    the time from here on belongs to this phase of a step
 */
#include "run/watch.h"

/* dump_begin     begins the file of a flag --dump_tokens or the like; is it still empty? */
#include "run/dump.h"

/*
 *  Network        a model of the run: role, directory, head, memory limits; does it train?
 *  networks_open  takes a list of them, which ends with NULL; reads, checks and allocates the
 *                 models; ends a dry run
 */
#include "run/network.h"

/* ---- the model ------------------------------------------------------------------------------- */

/*
 *  Batch, GPT2    S sequences laid end to end; a model
 *  GPT2Noise      dropout and NEFTune of a forward pass in training
 *  gpt2_forward   takes a batch and a GPT2Noise (NULL: none), runs up to the final norm
 *  gpt2_logprob   takes target (N) and a temperature, gives logp, entropy, best (N)
 *  gpt2_value     gives the scalar head's value of every row (N)
 *  gpt2_kl        gives the exact KL divergence of two models per row (N)
 *  gpt2_backward  takes dL/dlogp, dL/dentropy, dL/dvalue (N or NULL); adds to the gradients
 *  gpt2_step      takes an AdamW: clips, updates, clears; gives the norm. gpt2_clear only clears
 */
#include "model/gpt2.h"

/*
 *  GPT2Limits     the largest batch that a model gets, and whether it trains
 *  gpt2_create, gpt2_init_weights   a model with random weights, for full_ft --init
 *  gpt2_read, gpt2_write            copy a tensor to or from host memory
 */
#include "model/memory.h"
/* part_first, part_end   the items that this process computes, of n that processes share out */
#include "parts.h"
/* Sampling, which run/chat.h, rl/rollouts.h and rl/choices.h do for a stage. */
#include "model/generate.h"
/* cross_entropy  takes target, logp (N) and M, gives the loss of these rows and dlogp (N) */
#include "model/loss.h"

/* ---- supervised tasks: sft, full_ft, lora, adapter ------------------------------------------- */

/*
 *  Chat           the flags of --prompt and --chat (CHAT_FLAGS and its parts)
 *  TEMPLATE_FLAG  the row of --template
 */
#include "run/chat.h"

/*
 *  Task           the flags (TASK_FLAGS), the records, the arrays of a micro-batch
 *  task_load      reads --data and --eval, and plans the run
 *  task_limits    gives the limits of the largest batch, for Network.limits
 *  task_begin     allocates the arrays, measures the held-out records for the first time
 *  task_examples  draws the examples of a step; gives their number, and M
 *  task_batch     takes a range of them, gives the micro-batch
 *  task_watch     adds its figures to the log line
 *  task_optimise  run_optimise for this step
 *  task_evaluate  measures the held-out records, keeps the model with the lowest loss
 *  task_report    prints held-out answers and figures, before training and after
 */
#include "run/task.h"

/* ---- preference pairs: reward ---------------------------------------------------------------- */

/*
 *  Preferences    the flags (PREFERENCE_FLAGS), and the pairs to train on and held out
 *  preferences_load, preferences_examples   read them and plan the run; draw the pairs of a step
 *  PairBatch      a micro-batch of pairs: pair_batch_new, pair_batch_add
 *  pairs_largest  the most tokens of any P pairs, for Network.limits
 *  pairs_show, pairs_print_calibration      print a pair; print how good its probabilities are
 *  pairs_conclude     says what the accuracy means
 */
#include "rl/pairs.h"

/*
 *  Scoring        the flags of --score, --prompt and --chat in reward (SCORING_FLAGS)
 *  scoring_asked  scores instead of training, if the flags ask for it
 *  Texts, texts_read, texts_score   answers in a file, and their rewards by a model
 */
#include "rl/judge.h"

/* ---- reinforcement learning: ppo ------------------------------------------------------------- */

/*
 *  Rollouts       E answers and a number for each of their tokens: logp, reward, advantage, ...
 *  Rows           a batch of them: rows_fill, rows_range; rows_keep takes numbers (N) back
 *  rollouts_gather, rollouts_scatter   the numbers of some answers, one after another, and back
 */
#include "rl/rollouts.h"

/* Figures of a set of answers: figures_measure. Sums of minibatches: sums_add. figures_watch logs
   both. */
#include "rl/figures.h"

/*
 *  RolloutTask    the flags (ROLLOUT_FLAGS, SCORE_FLAGS, PTX_FLAGS), models, prompts, answers
 *  rollout_task_load, rollout_task_open   read the prompts and plan the run; open the models
 *  rollout_task_choose    the prompts of an iteration
 *  rollout_task_sample    an answer to each: tokens and logp
 *  rollout_task_judge     a score for each answer
 *  rollout_task_answer, rollout_task_measured   answer the held-out prompts; take their figures
 *  rollout_task_report    prints held-out answers, before training and after
 */
#include "rl/rollout_task.h"

/* ---- AI feedback: constitutional ------------------------------------------------------------- */

/*
 *  Constitution, Principle   the content of a constitution's file
 *  Dialogue, Round, Ending   an answer, its critiques and revisions; why it ended
 *  headings_cut, text_says, prompt_question     parts of a text that a model wrote
 */
#include "rl/constitution.h"
/* constitution_open, draw_principle, comparison_layout   principles with their requests */
#include "rl/principles.h"
/*
 *  Voice, Speaker     something that replies to prompts; a model that does
 *  Labelled           two answers, and the probability that the first is better
 *  Chooser            a model that answers multiple-choice questions: chooser_report */
#include "rl/choices.h"
/*
 *  dialogue_so_far    the text that the model reads before its next turn
 *  Transcripts, transcripts_next, transcripts_add   the dialogues of an epoch, and their file
 *  TrainingSet, training_set_draw, training_set_batch   the examples made of them
 */
#include "rl/dialogues.h"
/* pair_answers, questions_add, chooser_first, labelled_report   pairs and their labels */
#include "rl/feedback.h"

/* ---- all of them ----------------------------------------------------------------------------- */

/* progress_begin, progress   what a long computation is, and how far it has come */
#include "progress.h"
/*
 *  die, die_usage     print a message and exit: 1 when a run failed, 2 when the input is wrong
 *  xmalloc, xcalloc   memory that is never NULL; min_int, max_int, plural
 *  random4, random_uniform, random_normal, random_permutation   random numbers that are a function
 *                     of the seed and of where they are used
 */
#include "util.h"

#endif
