/*
 * added.c - looking for added tokens in a text: a tree of their bytes.
 *
 * A byte of text costs one bit test where no token begins, however many tokens there are.
 */
#include "text/private.h"

/* ---- building -------------------------------------------------------------------------------- */

static bool has_child(const TrieNode *node, unsigned char byte) {
    return node->has[byte / 64] >> (byte % 64) & 1;
}

/* The child of a node by this byte, which it must have. */
static int child(const TrieNode *node, unsigned char byte) {
    int before = __builtin_popcountll(node->has[byte / 64] & (((uint64_t)1 << (byte % 64)) - 1));
    for (int i = 0; i < byte / 64; i++) before += __builtin_popcountll(node->has[i]);
    return node->first + before;
}

typedef struct {
    const char *content;
    int added;
} Entry;

static int by_bytes(const void *a, const void *b) {
    return strcmp(((const Entry *)a)->content, ((const Entry *)b)->content);
}

/* The entries below a node: sorted[from .. to), which all begin with the same depth bytes. */
typedef struct {
    int from, to, depth;
} Below;

/* Nodes are made in the order of their depth, so the children of one node are neighbours. */
static void add_children(Trie *trie, Below **below, int i, const Entry *sorted) {
    Below b = (*below)[i];
    TrieNode node = {.first = trie->n, .added = -1};
    if (!sorted[b.from].content[b.depth]) node.added = sorted[b.from++].added;
    while (b.from < b.to) {
        const unsigned char byte = (unsigned char)sorted[b.from].content[b.depth];
        int end = b.from;
        while (end < b.to && (unsigned char)sorted[end].content[b.depth] == byte) end++;
        node.has[byte / 64] |= (uint64_t)1 << (byte % 64);
        trie->node = grow(trie->node, trie->n, sizeof *trie->node);
        *below = grow(*below, trie->n, sizeof **below);
        (*below)[trie->n++] = (Below){b.from, end, b.depth + 1};
        b.from = end;
    }
    trie->node[i] = node;
}

void trie_build(Trie *trie, const AddedToken *added, int n, bool normalized) {
    *trie = (Trie){0};
    Entry *sorted = xcalloc((size_t)n, sizeof *sorted);
    int chosen = 0;
    for (int i = 0; i < n; i++)
        if (added[i].normalized == normalized && *added[i].content)
            sorted[chosen++] = (Entry){added[i].content, i};
    qsort(sorted, (size_t)chosen, sizeof *sorted, by_bytes);
    if (chosen) {
        Below *below = grow(NULL, 0, sizeof *below);
        below[0] = (Below){0, chosen, 0};
        trie->node = grow(NULL, 0, sizeof *trie->node);
        trie->n = 1;
        for (int i = 0; i < trie->n; i++) add_children(trie, &below, i, sorted);
        free(below);
    }
    free(sorted);
}

/* ---- searching ------------------------------------------------------------------------------- */

int trie_find(const Trie *trie, const unsigned char *s, size_t n, size_t *length) {
    int found = -1, at = 0;
    if (!trie->node) return -1;
    for (size_t i = 0; i < n && has_child(&trie->node[at], s[i]); i++) {
        at = child(&trie->node[at], s[i]);
        if (trie->node[at].added < 0) continue;
        found = trie->node[at].added;
        *length = i + 1;
    }
    return found;
}
