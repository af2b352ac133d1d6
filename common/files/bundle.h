/*
 * bundle.h - the small files of a model directory, in memory: what goes along with the weights into
 * every directory that a run writes. They are read once, when a run begins, so that a save needs
 * nothing but the directory that it writes.
 *
 * A directory changes so that at no moment it is a mixture of an old and a new model that loads.
 */
#ifndef POSTTRAIN_BUNDLE_H
#define POSTTRAIN_BUNDLE_H

#include "util.h"

enum { MAX_TEMPLATE = 64 << 10 };  // bytes of template.txt

#define RUN_FILE "run.json"  // how the model was made; it goes when its model does

typedef struct {
    char *name;
    Str text;
} BundleFile;

/* Start from {0}. */
typedef struct {
    BundleFile *v;
    int n;
} Bundle;

/* Adds a file of n bytes, or replaces the one of that name. */
void bundle_set(Bundle *b, const char *name, const char *bytes, size_t n);
/* The same for a text and a newline. */
void bundle_set_line(Bundle *b, const char *name, const char *line);
/* Removes the files chat_template*.jinja. */
void bundle_remove_chat_templates(Bundle *b);
/* The bytes of a file, or NULL when the bundle has none of that name. */
const Str *bundle_get(const Bundle *b, const char *name);
/* Adds the files of another bundle. */
void bundle_add(Bundle *b, const Bundle *more);
void bundle_free(Bundle *b);

/* Reads from dir config.json, the tokenizer's files, generation_config.json, template.txt and
   chat_template*.jinja, those that exist. 0, or -1 with e filled: a file is no regular one, too
   large, no JSON object though its name says so, or a link that leads out of the directory (and out
   of the blobs of Hugging Face's cache), because its content would be published with the result. */
int bundle_read(const char *dir, Bundle *b, Error *e);

/* Is path, a file of dir, a link out of it? */
bool bundle_leads_out(const char *dir, const char *path);

/* Makes dir, and in it exactly these files and the weights, a file of dir that newfile_finish has
   finished. What an earlier program of ours wrote there under other names is removed, and RUN_FILE.
   The config, without which nothing loads, is removed before the first other file changes and comes
   back last.
   When a file cannot be written, nothing in dir has changed. Takes over weights. 0, or -1 with e
   filled. */
int bundle_write(const Bundle *b, const char *dir, NewFile *weights, Error *e);

/* Does dir hold a config? Without one nothing in it loads. */
bool bundle_loads(const char *dir);

/* Removes from dir every file that a program of ours may have written as a result, the config
   first and RUN_FILE last. keep: files that must stay, or NULL. */
void bundle_clear(const char *dir, bool (*keep)(const void *context, const char *path),
                  const void *context);
/* Does bundle_write write, or remove, a file of this name? RUN_FILE is left out. */
bool bundle_owns(const char *name);
/* Does dir hold such a file? Its name, or NULL. */
const char *bundle_found(const char *dir);

#endif
