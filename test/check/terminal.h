/*
 * terminal.h - a program on a pseudo terminal of a given width, and what it shows there.
 */
#ifndef POSTTRAIN_TEST_TERMINAL_H
#define POSTTRAIN_TEST_TERMINAL_H

#include "run/streams.h"
#include "text/utf8.h"
#include "util.h"

#undef fail  // check.h has a macro of this name
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs a command of the shell on a terminal of so many columns. What it writes there, stdout and
   stderr, goes to *screen, as it is; *status gets its exit status. input: what is typed, or NULL.
   False: there is no pseudo terminal here. */
static inline bool on_terminal(int columns, const char *command, const char *input, Str *screen,
                               int *status) {
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) {
        fprintf(stderr, "no pseudo terminal here: %s is not tested\n", command);
        return false;
    }
    const struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    ck_assert_int_eq(ioctl(master, TIOCSWINSZ, &size), 0);
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        setsid();
        const int slave = open(ptsname(master), O_RDWR);  // becomes the controlling terminal
        for (int i = 0; i < 3; i++) dup2(slave, i);
        close(slave);
        close(master);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    size_t typed = 0;
    char block[4096];
    str_add(screen, "", 0);
    for (;;) {
        struct pollfd p = {.fd = master, .events = POLLIN};
        if (poll(&p, 1, 300000) <= 0) break;
        const ssize_t n = read(master, block, sizeof block);
        if (n <= 0) break;
        str_add(screen, block, (size_t)n);
        // a line is typed when the program asks for one
        const bool asks = screen->n >= 2 && !memcmp(screen->s + screen->n - 2, "> ", 2);
        if (!input || !input[typed] || !asks) continue;
        const size_t line = strcspn(input + typed, "\n") + 1;
        ck_assert_int_eq(write(master, input + typed, line), (ssize_t)line);
        typed += line;
    }
    ck_assert_int_eq(waitpid(child, status, 0), child);
    *status = WIFEXITED(*status) ? WEXITSTATUS(*status) : -1;
    close(master);
    return true;
}

/* The columns of the widest thing that is drawn between two ends of a line or returns to its
   beginning. *where: it. */
static inline int widest(const Str *screen, const char **where) {
    int columns = 0, most = 0;
    const char *line = screen->s;
    for (size_t at = 0; at < screen->n;) {
        const Utf8 c = utf8_decode(screen->s + at, screen->n - at);
        at += c.n;
        if (c.code == '\n' || c.code == '\r') {
            columns = 0;
            line = screen->s + at;
            continue;
        }
        if (c.code == 033) {  // ESC [ ... m takes no room
            while (at < screen->n && screen->s[at++] != 'm') continue;
            continue;
        }
        columns += character_columns(c.code);
        if (columns > most) {
            most = columns;
            *where = line;
        }
    }
    return most;
}

#endif
