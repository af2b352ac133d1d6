/*
 * jsonl.h - JSONL files: one JSON object a line, or an array of objects, and for each bad line a
 * message with file, line, column and reason.
 *
 * Readers of records, prompts, questions and transcripts give jsonl_read a function that takes one
 * object.
 */
#ifndef POSTTRAIN_JSONL_H
#define POSTTRAIN_JSONL_H

#include "text/json.h"
#include "util.h"

enum { LINE_LIMIT = 64 << 20 };  // bytes of one line or element

/* What is wrong with an object, and in which of its fields (NULL: in the whole object). */
typedef struct {
    const char *field;
    Error why;
} Fault;

/* Fills f and returns -1. */
__attribute__((format(printf, 3, 4))) int fault(Fault *f, const char *field, const char *format,
                                                ...);

/* What an AddObject returns for an object that is correct but of no use. */
enum { JSONL_LEFT_OUT = 1 };

/* Appends the object of this line to whatever out is. 0; -1 with f filled, or JSONL_LEFT_OUT, and
   then out is unchanged. */
typedef int AddObject(void *out, const json_t *object, int line, Fault *f);

/* What became of a file's lines. Blank lines are not counted. */
typedef struct {
    int lines;                 // of the file; n + skipped + left_out
    int n, skipped, left_out;  // lines added; bad lines; lines that were JSONL_LEFT_OUT
    Error first_skipped;       // why the first bad line is bad: "file:line:column: reason"
} JsonlCounts;

/*
 * Calls add for each object of a file: one a line, or the elements of one JSON array, or objects
 * that are written over several lines, of which the first has { alone on its line. A byte order
 * mark is ignored. NaN, which Python writes for a missing value, is null.
 *
 * path may be a list of files, "a.jsonl,b.jsonl". Lines are counted through all of them, but a
 * message names the line in its file.
 *
 * A line that is bad (not a JSON object, longer than 64 MiB, or refused by add) is skipped; with
 * strict it ends the reading. So does a mistake in the JSON of an array or of objects over several
 * lines, in any case.
 *
 * Returns 0, or -1 with e filled: strict and a bad line; a file that cannot be read, or is empty;
 * more bad lines than others in a file; or a file of another format, which the message names
 * together with a command that converts it. The objects added before are then still in out. If each
 * line was added or left out, the result is 0 even when all were left out.
 *
 * A column counts characters from 1. It is that of the field that is wrong; of a line that is not
 * JSON, that of the last correct character, as jansson counts.
 */
int jsonl_read(const char *path, bool strict, AddObject *add, void *out, JsonlCounts *counts,
               Error *e);

/* Takes the first path of a list "a,b", which the caller frees, and moves *list behind it. If the
   whole list is the name of a file, that is one path. NULL: nothing is left. */
char *take_path(const char **list);

/* Gets a field that must be a string. The text belongs to the object. */
int jsonl_text(const json_t *object, const char *name, Slice *out, Fault *f);
/* The same for a field that may be absent, null or empty: out->s is then NULL. */
int jsonl_optional_text(const json_t *object, const char *name, Slice *out, Fault *f);
/* Fills f with the names of the fields that the object has, and those expected. Returns -1. */
int jsonl_unknown_fields(const json_t *object, const char *expected, Fault *f);

/* Replaces the control characters of a message by '?', so that a hostile file cannot send escape
   sequences to the terminal. */
void make_printable(Error *e);

#endif
