/*
 * progress.c - how far a long computation has come: see progress.h.
 */
#include "progress.h"

static struct {
    char doing[128];
    long done, all;
    ProgressShow *show;
} now;

void progress_begin(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(now.doing, sizeof now.doing, format, args);
    va_end(args);
    progress(0, 0);
}

void progress_end(void) {
    now.done = now.all = 0;
    now.doing[0] = 0;
}

void progress(long done, long all) {
    now.done = done;
    now.all = all;
    progress_tick();
}

void progress_tick(void) {
    if (now.show) now.show(now.doing, now.done, now.all);
}

void progress_show(ProgressShow *show) { now.show = show; }
