/*
 * child.c - another program that keeps running and answers each line with a line: see child.h.
 */
#define _GNU_SOURCE  // defines: pipe2

#include "rl/child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ANSWER_LIMIT = 1 << 20 };  // bytes of one line of an answer

struct Child {
    char *command;
    pid_t pid;
    int to, from;  // its standard input and output
    Str rest;      // bytes read that are not yet part of an answer
};

extern char **environ;

static pid_t living;  // the child, which is ended when this program exits

static void at_exit(void) {
    if (living) kill(-living, SIGTERM);
}

Child *child_start(const char *command, Error *e) {
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) {
        fail(e, "cannot make a pipe: %s", strerror(errno));
        if (to[0] >= 0) {
            close(to[0]);
            close(to[1]);
        }
        return NULL;
    }
    signal(SIGPIPE, SIG_IGN);  // writing to a program that has ended must only fail
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t ours;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, from[1], STDOUT_FILENO);
    posix_spawnattr_init(&how);
    sigemptyset(&ours);
    sigaddset(&ours, SIGPIPE);
    posix_spawnattr_setsigdefault(&how, &ours);
    posix_spawnattr_setpgroup(
        &how, 0);  // a process group of its own, so that Ctrl-C stops us first, in order
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    char *const argv[] = {"sh", "-c", (char *)command, NULL};
    pid_t pid = 0;
    int error = posix_spawn(&pid, "/bin/sh", &files, &how, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    close(to[0]);
    close(from[1]);
    if (error) {
        close(to[1]);
        close(from[0]);
        fail(e, "cannot start /bin/sh -c '%s': %s", command, strerror(error));
        return NULL;
    }
    fcntl(to[1], F_SETFL, O_NONBLOCK);
    static bool registered;
    if (!registered) registered = !atexit(at_exit);
    living = pid;
    Child *c = (Child *)xcalloc(1, sizeof *c);
    *c = (Child){xstrdup(command), pid, to[1], from[0], {0}};
    str_add(&c->rest, "", 0);
    return c;
}

/* Its unread output for a message: at most 200 bytes, printable. */
static const char *last_words(const Child *c, char text[256]) {
    if (!c->rest.n) return strcpy(text, "");
    snprintf(text, 256, "; it wrote \"%.200s\"", c->rest.s);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7F) *p = ' ';
    return text;
}

/* It has closed its output: fills e with the reason, its exit status or signal. */
static int died(Child *c, Error *e) {
    char words[256];
    int status = 0;
    for (int i = 0; i < 100 && c->pid; i++) {  // it may exit a moment later
        pid_t got = waitpid(c->pid, &status, WNOHANG);
        if (got == c->pid || (got < 0 && errno != EINTR))
            c->pid = 0;
        else
            usleep(10000);
    }
    last_words(c, words);
    if (c->pid) return fail(e, "'%s' closed its output%s", c->command, words);
    if (WIFSIGNALED(status))
        return fail(e, "'%s' was ended by signal %d, %s%s", c->command, WTERMSIG(status),
                    strsignal(WTERMSIG(status)), words);
    return fail(e, "'%s' ended with status %d%s", c->command, WEXITSTATUS(status), words);
}

/* Bytes of the first `lines` lines of text, newlines included; 0: text has fewer lines. */
static size_t whole_lines(const Str *text, int lines) {
    const char *p = text->s;
    for (int i = 0; i < lines; i++) {
        p = memchr(p, '\n', text->n - (size_t)(p - text->s));
        if (!p++) return 0;
    }
    return (size_t)(p - text->s);
}

int child_ask(Child *c, const Str *question, int lines, double patience, Str *answer, Error *e) {
    size_t written = 0, counted = 0,
           line = 0;  // of rest: bytes looked at, and where its last line begins
    int seen = 0;
    double last = now_seconds();
    char block[65536], words[256];
    // output before the question, such as a greeting, would be taken for the first answer
    if (poll(&(struct pollfd){.fd = c->from, .events = POLLIN}, 1, 0) > 0) {
        ssize_t n = read(c->from, block, sizeof block);
        if (n == 0) return died(c, e);
        str_add(&c->rest, block, n > 0 ? (size_t)n : 0);
        return fail(e, "'%s' wrote something before it was asked%s", c->command,
                    last_words(c, words));
    }
    while (seen < lines || written < question->n) {
        struct pollfd p[2] = {{.fd = c->from, .events = POLLIN},
                              {.fd = written < question->n ? c->to : -1, .events = POLLOUT}};
        double left = last + patience - now_seconds();
        int ready = left > 0 ? poll(p, 2, (int)(left * 1000) + 1) : 0;
        if (ready < 0 && errno != EINTR)
            return fail(e, "cannot wait for '%s': %s", c->command, strerror(errno));
        if (ready == 0)
            return fail(e, "'%s' was silent for %g seconds: %d of %d lines are answered%s",
                        c->command, patience, seen, lines, last_words(c, words));
        if (ready < 0) continue;
        if (p[1].revents) {
            ssize_t n = write(c->to, question->s + written, question->n - written);
            if (n > 0) {
                written += (size_t)n;
                last = now_seconds();
            } else if (n < 0 && errno == EPIPE)
                written = question->n;  // it no longer reads; its last output is read below
            else if (n < 0 && errno != EAGAIN && errno != EINTR)
                return fail(e, "cannot write to '%s': %s", c->command, strerror(errno));
        }
        if (!p[0].revents) continue;
        ssize_t n = read(c->from, block, sizeof block);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0) return fail(e, "cannot read from '%s': %s", c->command, strerror(errno));
        if (n == 0) return died(c, e);
        str_add(&c->rest, block, (size_t)n);
        last = now_seconds();
        for (; counted < c->rest.n; counted++)
            if (c->rest.s[counted] == '\n') {
                seen++;
                line = counted + 1;
            }
        if (c->rest.n - line > ANSWER_LIMIT)
            return fail(e, "'%s' answered with a line of more than %d bytes", c->command,
                        ANSWER_LIMIT);
    }
    size_t n = whole_lines(&c->rest, lines);
    if (seen > lines || n < c->rest.n)
        return fail(e, "'%s' wrote more than the %d lines it was asked for%s", c->command, lines,
                    last_words(c, words));
    answer->n = 0;
    str_add(answer, c->rest.s, n);
    for (size_t i = 0; i < n; i++)
        if (answer->s[i] == '\n') answer->s[i] = 0;
    c->rest.n = 0;
    c->rest.s[0] = 0;
    return 0;
}

void child_end(Child *c) {
    if (!c) return;
    close(c->to);
    close(c->from);
    for (int i = 0; i < 100 && c->pid; i++) {
        if (waitpid(c->pid, NULL, WNOHANG) == c->pid)
            c->pid = 0;
        else
            usleep(10000);
        if (c->pid && i == 50) kill(-c->pid, SIGTERM);
    }
    if (c->pid) {
        kill(-c->pid, SIGKILL);
        waitpid(c->pid, NULL, 0);
    }
    living = 0;
    free(c->command);
    free(c->rest.s);
    free(c);
}
