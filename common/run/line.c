/*
 * line.c - a line that a person types: see line.h.
 *
 * LINE_EDITOR and LINE_HISTORY are headers of a library (see the Makefile): libedit has the
 * functions of GNU readline.
 */
#include "run/line.h"

#include "run/streams.h"
#include "text/utf8.h"

#include <unistd.h>

enum { LONGEST = 1 << 20 };  // bytes of a line that is not typed

#ifdef LINE_EDITOR
#    include LINE_EDITOR
#    include LINE_HISTORY

bool line_edits(void) { return true; }

/* A line from the terminal. The editor writes past the filter of streams.h. */
static char *edited(void) {
    static FILE *screen;
    if (!screen) {
        const int file = dup(STDOUT_FILENO);
        screen = file < 0 ? NULL : fdopen(file, "w");
        if (screen) rl_outstream = screen;
        rl_readline_name = (char *)"posttrain";
        rl_initialize();
#    ifdef RL_VERSION_MAJOR  // GNU readline rings on stderr, which shows control characters
        rl_variable_bind("bell-style", "none");
#    endif
        rl_bind_key('\t', rl_insert);  // a turn has no file names to complete
    }
    fflush(stdout);
    char *line = readline("> ");
    if (line && *line) add_history(line);
    return line;
}
#else
bool line_edits(void) { return false; }

static char *edited(void) { return NULL; }
#endif

/* The number of bytes of the escape sequence at s, which begins with ESC or with the two bytes of
   U+009B, or 0. */
static size_t sequence(const char *s, size_t n) {
    size_t at = 1;
    bool control = false, text = false;
    if (n >= 2 && !memcmp(s, "\xC2\x9B", 2)) {
        at = 2;
        control = true;
    } else if (n < 1 || *s != '\033') {
        return 0;
    } else if (n >= 2) {
        control = s[1] == '[';
        text = strchr("]PX^_", s[1]) != NULL;  // up to BEL or ESC \, such as a title
        at = 2;
    }
    if (control) {
        while (at < n && s[at] >= ' ' && s[at] <= '?') at++;
        return at + (at < n && s[at] >= '@' && s[at] <= '~');
    }
    if (text) {
        while (at < n && s[at] != '\a' && s[at] != '\033') at++;
        return at + (at < n && s[at] == '\a' ? 1 : at + 1 < n && s[at + 1] == '\\' ? 2 : 0);
    }
    // ESC O x, of a function key; ESC and intermediate bytes before a final one; ESC x
    if (n >= 3 && s[1] == 'O') return 3;
    for (at = 1; at < n && s[at] >= ' ' && s[at] <= '/';) at++;
    return at + (at < n && s[at] >= '0' && s[at] <= '~');
}

void line_clean(Str *text) {
    size_t to = 0;
    for (size_t at = 0; at < text->n;) {
        const size_t skipped = sequence(text->s + at, text->n - at);
        at += skipped;
        if (!skipped) text->s[to++] = text->s[at++];
    }
    text->n = to;
    if (text->s) text->s[to] = 0;
}

/* Reads a line of stdin, with its end if it has one. False: there is no more. */
static bool take(Str *line) {
    const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    Error e;
    int got;
    line->n = 0;
    str_add(line, "", 0);
    if (terminal && line_edits()) {
        char *typed = edited();
        if (typed) str_add(line, typed, strlen(typed));
        got = typed != NULL;
        free(typed);
    } else {
        if (terminal) streams_draw("> ");
        got = read_line(stdin, LONGEST, line, &e);
    }
    if (got < 0) {
        free(line->s);
        die_usage("cannot read a turn from stdin: %s; give one turn a line", e.text);
    }
    if (!got && terminal) putchar('\n');
    return got > 0;
}

char *line_read(void) {
    Str line = {0};
    while (take(&line)) {
        while (line.n && (line.s[line.n - 1] == '\n' || line.s[line.n - 1] == '\r')) line.n--;
        line.s[line.n] = 0;
        const bool empty = !line.n;
        line_clean(&line);
        text_repair(&line, 0);
        if (*line.s || empty) return line.s;  // else there were only keys that are no text
    }
    free(line.s);
    return NULL;
}
