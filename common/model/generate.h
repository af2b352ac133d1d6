/*
 * generate.h - sampling text from a model, with a cache of keys and values.
 */
#ifndef POSTTRAIN_GENERATE_H
#define POSTTRAIN_GENERATE_H

#include "model/gpt2.h"

typedef struct {
    float temperature;  // 0 = always the most likely token
    int top_k;          // 0 = no limit
    float top_p;        // 1 = no limit
    int max_new_tokens;
    int stop_token;  // ends a response and is part of it; < 0 = none
    uint64_t seed;
    uint32_t step;          // with seed, the batch's ids and the position it determines every draw
    bool (*stopped)(void);  // is asked before each token: must the answers end where they are?
                            // NULL = never
} Sampler;

typedef struct {
    int *start;  // (S+1) response s is tokens[start[s] .. start[s+1])
    int *tokens;
    float *logp;  // each token's log-probability under softmax(logits / temperature)
    bool *ended;  // (S) the response ends with the stop token
} Generation;

/* Is called with each token as soon as it is sampled. */
typedef void TokenSink(void *context, int sequence, int token);

/* Samples a response to every prompt of the batch. There may be more prompts than decoding slots:
   when a response ends, the next prompt takes its slot. A prompt may fill all of the model's
   positions. The token sampled at the last position is part of the response, but the model does
   not read it. So prompt and response together have at most one token more than there are
   positions. sink may be NULL. Several processes share the prompts out (parts.h), and each gets all
   responses. Free the result with generation_free. */
void gpt2_generate(GPT2 *m, const Batch *prompts, const Sampler *s, Generation *out,
                   TokenSink *sink, void *context);
void generation_free(Generation *g);

#endif
