/*
 * spelling.h - flags as people know them from transformers, PEFT, TRL and bitsandbytes: other names
 * of flags here, settings that are what happens anyway, and flags without a counterpart.
 */
#ifndef POSTTRAIN_SPELLING_H
#define POSTTRAIN_SPELLING_H

#include "util.h"

/* The name here of a flag that is called `name` elsewhere: "output" for "output_dir". NULL: there
   is none. */
const char *spelling_alias(const char *name);
/* The flag that was probably meant by a name which is too short for comparing letters: "lr". NULL:
   there is none. */
const char *spelling_meant(const char *name);
/* Is `name` a flag of those libraries that has no counterpart here? Then *values gets those of its
   values that are what happens here anyway, "a|b" ("": there are none), and *why a sentence about
   all others. */
bool spelling_foreign(const char *name, const char **values, const char **why);

#endif
