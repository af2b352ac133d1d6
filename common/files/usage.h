/*
 * usage.h - what a model directory says about its use: the template of its prompts, the token that
 * ends a text, and the token that pads.
 *
 * transformers reads this in config.json, generation_config.json, tokenizer_config.json,
 * special_tokens_map.json and a chat template. The functions here write them so that they agree
 * with how the model was trained.
 */
#ifndef POSTTRAIN_USAGE_H
#define POSTTRAIN_USAGE_H

#include "files/bundle.h"
#include "util.h"

typedef struct {
    const char *template;  // in one line, in the form of --template; NULL: as in the directory
    int end;               // the id of the token that ended every text
    const char *end_text;  // how it is written
    bool scores;           // a reward model, whose score is read before the end
} Usage;

/*
 * Sets *template to the prompt template of a model or adapter directory, to be freed, or to NULL if
 * it has none. The first of these counts:
 *
 *     template.txt        one line in the form of --template
 *     a chat template     chat_template.jinja, or chat_template in tokenizer_config.json, if a
 *                         template of ours can say the same (jinja.h). end_text: the text of the
 *                         tokenizer's end
 *     config.json         of DialoGPT (task_specific_params.conversational): its
 *                         "{instruction}<|endoftext|>" (Zhang et al. 2020, section 3.1)
 *
 * *from, which is not to be freed, is the file that said it; it is also set when that file is a
 * chat template that cannot be said. *system_said (or NULL) is false if a chat template writes the
 * system's message in a way that the template does not say. 0, or -1 with e filled.
 */
int usage_template(const char *dir, const char *end_text, char **template, const char **from,
                   bool *system_said, Error *e);
/* Would usage_template read this line again from template.txt? 0, or -1 with e filled. */
int usage_check_template(const char *line, Error *e);

/*
 * Makes the files of a model directory, in memory, say how the model is used.
 *
 *     template.txt, chat_template.jinja    the template
 *     config.json, generation_config.json  eos_token_id; of a reward model pad_token_id, too
 *     tokenizer_config.json,               eos_token; of a reward model pad_token, too
 *     special_tokens_map.json
 *
 * A reward model is padded with its end, so that transformers reads the score at the last token
 * before the padding, as judged_tokens does. A file that agrees already does not change. 0, or -1
 * with e filled.
 */
int usage_apply(Bundle *files, const Usage *u, Error *e);

/* pad_token_id in dir/config.json, or -1. */
int usage_pad(const char *dir);
/* eos_token_id that generate would take from dir: in generation_config.json, else in config.json.
   -1: there is none, or several. */
int usage_end(const char *dir);
/* The first of several such ids that is not `end`; -1: there is no list, or no other in it. */
int usage_other_end(const char *dir, int end);
/* The members of generation_config.json that say how transformers' generate samples, which nothing
   here uses: "do_sample, top_p", to be freed. NULL: there are none. */
char *usage_generation(const char *dir);

#endif
