/*
 * fuzz_replay.c - libFuzzer on a file of --replay. What is accepted must be answers that a model
 * can read: tokens of the vocabulary, at least one of each answer, finite numbers.
 *
 *   make fuzz-fuzz_replay
 */
#define _GNU_SOURCE  // fmemopen
#include "rl/rollouts.h"

enum { E = 2, PROMPT = 3, ANSWER = 4, VOCABULARY = 300 };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    int line[] = {1, 2}, start[] = {0, 2, 5}, tokens[] = {1, 2, 3, 4, 5};
    Queries q = {.n = 2, .line = line, .start = start, .tokens = tokens, .longest = PROMPT};
    Rollouts r = rollouts_new(E, PROMPT, ANSWER);
    Error e = {0};
    FILE *f = n ? fmemopen((void *)bytes, n, "rb") : NULL;
    if (f && !rollouts_read(&r, E, &q, VOCABULARY, 1, f, &e)) {
        if (r.E != E) abort();
        for (int i = 0; i < E; i++) {
            const int T = r.start[i + 1] - r.start[i], length = r.begin[i + 1] - r.begin[i];
            if (T < 1 || T > ANSWER || length <= T || r.query[i] < 0 || r.query[i] >= q.n ||
                !isfinite(r.score[i]))
                abort();
            for (int k = r.begin[i]; k < r.begin[i + 1]; k++)
                if (r.tokens[k] < 0 || r.tokens[k] >= VOCABULARY) abort();
            for (int t = r.start[i]; t < r.start[i + 1]; t++)
                if (!isfinite(r.logp[t]) || !isfinite(r.ret[t]) || !isfinite(r.advantage[t]))
                    abort();
        }
    } else if (f && !e.text[0]) {
        abort();
    }
    if (f) fclose(f);
    rollouts_free(&r);
    return 0;
}

/* Starts from two lines as --dump_rollouts writes them. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed) {
    if (n < 16 || seed % 64 == 0) {
        Str lines = {0};
        for (int e = 0; e < E; e++)
            str_printf(&lines,
                       "{\"step\": 1, \"episode\": %d, \"line\": 1, \"prompt\": \"a\", "
                       "\"response\": \"b\", \"query\": 1, \"ended\": 0, \"score\": 0.5, "
                       "\"tokens\": [5, 6, 7], \"logp\": [-1, -2], \"ref_logp\": [-1, -2], "
                       "\"kl\": [0, 0.1], \"value\": [0, 0], \"reward\": [0, 1], "
                       "\"advantage\": [1, 1], \"return\": [1, 1]}\n",
                       e);
        n = lines.n < room ? lines.n : room;
        memcpy(bytes, lines.s, n);
        free(lines.s);
    }
    return LLVMFuzzerMutate(bytes, n, room);
}
