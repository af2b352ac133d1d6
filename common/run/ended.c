/*
 * ended.c - what a run that has ended does not keep: AdamW's moments, two thirds of a checkpoint.
 */
#include "run/private.h"

/* Writes the state once more, without its tensors. */
static int write_notes(const char *path, const SafeTensors *st, Error *e) {
    static const char checksum[] = "checksum.all";
    char text[32];
    STWriter *w = st_new();
    st_note_all(w, st, checksum);
    st_note(w, "holds", "weights");
    snprintf(text, sizeof text, "%016llx", (unsigned long long)st_noted_hash(w));
    st_note(w, checksum, text);
    const bool begun = !st_begin(w, path, e);
    return st_end(w, begun, begun ? e : NULL) || !begun ? -1 : 0;
}

static void remove_moments(const char *dir) {
    Error e;
    char *path = path_join(dir, STATE_FILE);
    SafeTensors *st = st_open(path, &e);
    if (!st || (st_count(st) && write_notes(path, st, &e)))
        fprintf(stderr, "note: %s keeps its moments: %s\n", dir, e.text);
    st_close(st);
    free(path);
}

void run_remove_moments(const Run *run) { checkpoint_each(run, remove_moments); }
