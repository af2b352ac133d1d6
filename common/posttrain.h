/*
 * posttrain.h - the one header of a stage. It is also the tour of what a stage stands on.
 *
 * A stage is a table of flags, the mathematics of its technique on small host arrays, and a loop.
 * Everything with a C (channels) or a V (vocabulary) in its shape stays behind gpt2.h: a stage sees
 * one number per token. The letters are the same everywhere:
 *
 *     S sequences   N tokens of a batch   C channels   V vocabulary   L layers   NH heads
 *     hs head size   OC output channels   M scored tokens of an optimiser step
 *
 * A batch is S sequences laid end to end, N tokens and S+1 offsets. There is no padding and no
 * attention mask.
 */
#ifndef POSTTRAIN_H
#define POSTTRAIN_H

/* The model: Batch, GPT2, GPT2Noise. A training step is
       gpt2_forward (m, batch, noise)                 the transformer, up to the final norm
       gpt2_logprob (m, target, 1, logp, entropy, best)   numbers of each token (N), or
       gpt2_value   (m, value)                        a scalar head's
       ... the loss on these arrays, and its derivatives dlogp, dentropy, dvalue ...
       gpt2_backward(m, dlogp, dentropy, dvalue)      gradients add up
       gpt2_step    (m, adamw, t)                     clip, AdamW, clear */
#include "model/gpt2.h"
#include "model/loss.h"  // cross_entropy
/* The run: flags, run_begin, run_next, run_finish; figures: watch, watch_mean; the models: Network
 */
#include "run/flags.h"
#include "run/run.h"
#include "run/watch.h"
#include "run/network.h"
/* --prompt and --chat; a supervised task: records, held-out figures */
#include "run/chat.h"
#include "run/task.h"
/* Preference pairs; reinforcement learning and AI feedback: answers of a policy, the judge, the
   task of a policy that learns from its answers; constitutions, dialogues */
#include "rl/pairs.h"
#include "rl/rollouts.h"
#include "rl/judge.h"
#include "rl/rollout_task.h"
#include "rl/choices.h"
#include "rl/constitution.h"
#include "rl/principles.h"
#include "rl/dialogues.h"
#include "rl/feedback.h"
/* Errors (die, die_usage), checked memory, files, random numbers */
#include "util.h"

#endif
