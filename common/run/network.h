/*
 * network.h - the models of a run: each has a role, a directory, a head, limits, and trains or not.
 */
#ifndef POSTTRAIN_NETWORK_H
#define POSTTRAIN_NETWORK_H

#include "files/bundle.h"
#include "run/run.h"

typedef struct {
    const char *role;  // "policy": its name in messages and in the table of memory
    const char *dir;   // where it is read from; NULL: the first is --model, or the checkpoint
    GPT2Head head;
    GPT2Limits limits;  // limits.train is networks_open's
    bool trains;        // if the run has steps; a further network that trains is saved as well.
                        // With a Technique, what it adds trains, and the model is frozen
    int longest;   // tokens of the longest sequence, checked against its positions; 0 = unchecked
    bool judges;   // it must hold a scalar head, and have the vocabulary of --model
    bool changes;  // its weights change though nothing trains
    GPT2 *(*create)(const GPT2Config *config, uint64_t seed);  // instead of reading it; NULL = read
    /* networks_open fills in the rest */
    GPT2Config config;
    GPT2 *model;
    bool has_head;  // the directory holds the scalar head; if not, it is zeros
    char *from;     // the directory that was read
    char *origin;   // hash of the weights that the run began with; NULL: nothing is written
    Bundle files;   // its small files, which go with the weights wherever they are written
} Network;

/* Is the score of the reward model in dir read at an end of text after each text? True if it is
   padded with another token than its end, as TRL trains it; a note says so. */
bool network_scores_at_end(const char *dir, const GPT2Config *config, const Tokenizer *t);

/*
 * Opens the models of a run; list ends with NULL. The first is the one that the run makes: its
 * checkpoints and OUTPUT hold it. A further one that trains is saved in them as a directory of its
 * role. Reads each config.json, checks vocabularies and positions, prints parameters and memory,
 * ends a dry run (exit 0), loads, reserves, applies the program's Technique to the first, and
 * resumes. Whatever is wrong ends the program with 2. The Networks must live until run_finish,
 * which frees the models.
 */
void networks_open(Run *run, Network *const list[]);

#endif
