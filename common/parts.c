/*
 * parts.c - work that processes share out: see parts.h.
 */
#include "parts.h"

#include "ranks.h"
#include "util.h"

int part_of(int n, int r) { return (int)((int64_t)n * r / ranks()); }
int part_first(int n) { return part_of(n, rank()); }
int part_end(int n) { return part_of(n, rank() + 1); }
int part_most(int n) { return n / ranks() + (n % ranks() > 0); }

void parts_collect(void *rows, size_t size, int n, const int *start) {
    if (ranks() == 1) return;
    const int first = part_first(n), end = part_end(n);
    const size_t from = (size_t)(start ? start[first] : first);
    const size_t to = (size_t)(start ? start[end] : end);
    size_t bytes;
    char *all = (char *)ranks_join((char *)rows + from * size, (to - from) * size, &bytes);
    const size_t before = (size_t)(start ? start[0] : 0) * size;
    memcpy((char *)rows + before, all, bytes);
    free(all);
}
