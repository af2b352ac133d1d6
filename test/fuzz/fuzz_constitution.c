/*
 * fuzz_constitution.c - constitutions, questions, transcripts and headings from arbitrary bytes,
 * under libFuzzer (`make fuzz`).
 *
 * Nothing may crash. A file that is read must give whole objects, and a file that is refused must
 * give none. Cutting a text at its headings twice must give the same as cutting it once.
 */
#define _GNU_SOURCE  // memfd_create
#include "rl/constitution.h"
#include "text/records.h"
#include "text/utf8.h"

#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool fact) {
    if (!fact) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    const int file = memfd_create("fuzz", 0);
    if (file < 0 || write(file, data, size) != (ssize_t)size) die("memfd: %s", strerror(errno));
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    Error e = {0};
    Headings h = {0};
    Constitution c;
    if (constitution_read(path, &c, &e)) {
        check(e.text[0] && !c.n && !c.v && !c.few_shot);
    } else {
        check(c.n > 0);
        for (int i = 0; i < c.n; i++) {
            const Principle *p = &c.v[i];
            check(p->name &&
                  (p->text ? !p->critique_request : p->critique_request && p->revision_request));
            if (p->critique_request) headings_add(&h, p->critique_request);
        }
        constitution_free(&c);
    }
    Questions q;
    e.text[0] = 0;
    if (questions_read(path, false, &q, &e)) {
        check(e.text[0] && !q.v);
    } else {
        for (int i = 0; i < q.n; i++)
            check(q.v[i].corrects > 0 && q.v[i].n > q.v[i].corrects && q.v[i].prompt[0]);
        questions_free(&q);
    }
    Dialogues d;
    check(dialogues_keep(path, 7, NULL, &d, &e) == 0);
    for (int i = 0; i < d.n; i++) {
        check(d.v[i].prompt && d.v[i].answer && d.v[i].epoch <= 7 && d.v[i].ending < ENDINGS);
        dialogue_free(&d.v[i]);
    }
    free(d.v);
    // the same bytes as a text
    Str text = {0};
    str_add(&text, (const char *)data, size);
    text_repair(&text, 0);
    check(strlen(text.s) == text.n);
    headings_add(&h, text.s);
    const bool said = text_says(text.s, "ab|가");
    char *question = prompt_question(text.s, size & 1);
    headings_cut(&h, text.s);
    char *again = xstrdup(text.s);
    headings_cut(&h, again);
    check(!strcmp(again, text.s) && (said || !text_says(text.s, "ab|가")));
    free(question);
    free(again);
    free(text.s);
    headings_free(&h);
    close(file);
    return 0;
}
