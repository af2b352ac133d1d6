/*
 * child.c - another program that keeps running and answers each line with a line: see child.h.
 */
#define _GNU_SOURCE  // defines: pipe2

#include "rl/child.h"

#include "progress.h"
#include "run/signals.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ANSWER_LIMIT = 1 << 20,  // bytes of one line of an answer
    LOOK = 500,              // milliseconds after which we look whether a signal has come
};

struct Child {
    char *command;
    pid_t pid;
    int to, from;   // its standard input and output
    pid_t watcher;  // -1: there is none
    int life;       // its standard input
    Str rest;       // bytes read that are not yet part of an answer
};

static volatile pid_t living;  // the child, which is ended when this program ends

static void end_living(void) {
    if (living) kill(-living, SIGTERM);
}

/* ---- the watcher ----------------------------------------------------------------------------- */

/* The kernel can end the shell when we end, but not the other programs of a pipeline. So a second
   shell is a member of the child's process group. It waits at a pipe that only we hold open. When
   we end, however that happens, it ends all members of the group, and at last itself. */
static const char watcher[] =
    "trap '' TERM INT HUP PIPE; read nothing; kill -s TERM 0; sleep 1; kill -s KILL 0";

/* In the new process: becomes the watcher. It keeps no file of ours open but the pipe. */
__attribute__((noreturn)) static void watch(int pipe, pid_t group) {
    const int nothing = open("/dev/null", O_RDWR);
    setpgid(0, group);
    if (getpgrp() != group) _exit(127);  // it would end our own group
    if (nothing < 0 || dup2(pipe, STDIN_FILENO) < 0 || dup2(nothing, STDOUT_FILENO) < 0 ||
        dup2(nothing, STDERR_FILENO) < 0)
        _exit(127);
    for (int file = STDERR_FILENO + 1; file < 1024; file++) close(file);
    execl("/bin/sh", "sh", "-c", watcher, (char *)NULL);
    _exit(127);
}

static void start_watcher(Child *c) {
    int pair[2];
    c->watcher = -1;
    if (pipe2(pair, O_CLOEXEC)) return;
    c->watcher = fork();
    if (!c->watcher) watch(pair[0], c->pid);
    if (c->watcher > 0) setpgid(c->watcher, c->pid);
    close(pair[0]);
    c->life = pair[1];
    if (c->watcher < 0) close(pair[1]);
}

/* Is a process of the group alive? kill(-group, 0) also finds those that have ended and that nobody
   has waited for. */
static bool group_lives(pid_t group) {
    if (kill(-group, 0)) return false;
    DIR *all = opendir("/proc");
    bool lives = false, shown = false;
    for (struct dirent *d; !lives && all && (d = readdir(all));) {
        const long process = strtol(d->d_name, NULL, 10);
        shown |= process > 0;
        lives = process > 0 && getpgid((pid_t)process) == group && !process_ended(process);
    }
    if (all) closedir(all);
    return lives || !shown;  // where /proc shows no process there is no more to know
}

/* Ends it, and what the child has left behind in its group. */
static void end_group(Child *c, pid_t group) {
    if (c->watcher < 0) return;
    kill(-group, SIGTERM);
    kill(c->watcher, SIGKILL);
    waitpid(c->watcher, NULL, 0);
    close(c->life);
    for (int i = 0; i < 100 && group_lives(group); i++) usleep(10000);
    kill(-group, SIGKILL);
}

/* ---- the child ------------------------------------------------------------------------------- */

/* In the new process: becomes the shell. It has a process group of its own, so that Ctrl-C stops us
   first, in order. The kernel ends it when we end, however that happens; parent is our process,
   which may have ended before the kernel was told. */
__attribute__((noreturn)) static void become(const char *command, const int to[2],
                                             const int from[2], pid_t parent) {
    static const int ours[] = {SIGPIPE, SIGXFSZ, SIGINT, SIGTERM, SIGHUP, SIGXCPU};
    setpgid(0, 0);
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        struct sigaction now;
        const bool default_again =
            i < 2 || sigaction(ours[i], NULL, &now) || now.sa_handler != SIG_IGN;
        if (default_again) signal(ours[i], SIG_DFL);
    }
    if (dup2(to[0], STDIN_FILENO) < 0 || dup2(from[1], STDOUT_FILENO) < 0) _exit(127);
    if (!prctl(PR_SET_PDEATHSIG, SIGTERM) && getppid() != parent) _exit(127);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

static void close_both(const int pair[2]) {
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0) close(pair[i]);
}

Child *child_start(const char *command, Error *e) {
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    const pid_t parent = getpid();
    pid_t pid = -1;
    signals_survive_pipes();  // writing to a program that has ended must only fail
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) {
        fail(e, "cannot make a pipe: %s", strerror(errno));
    } else {
        fflush(stdout);
        pid = fork();
        if (!pid) become(command, to, from, parent);
        if (pid < 0) fail(e, "cannot start /bin/sh -c '%s': %s", command, strerror(errno));
    }
    if (pid < 0) {
        close_both(to);
        close_both(from);
        return NULL;
    }
    setpgid(pid, pid);  // here too: whichever of us comes first
    close(to[0]);
    close(from[1]);
    fcntl(to[1], F_SETFL, O_NONBLOCK);
    static bool registered;
    if (!registered) registered = !atexit(end_living);
    living = pid;
    signals_at_end(end_living);
    Child *c = (Child *)xcalloc(1, sizeof *c);
    *c = (Child){.command = xstrdup(command), .pid = pid, .to = to[1], .from = from[0]};
    start_watcher(c);
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

int child_ask(Child *c, const Str *question, int lines, double patience, bool (*stopped)(void),
              Str *answer, Error *e) {
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
        progress(seen, lines);
        if (stopped && stopped()) return CHILD_STOPPED;
        if (left <= 0)
            return fail(e, "'%s' was silent for %g seconds: %d of %d lines are answered%s%s",
                        c->command, patience, seen, lines, last_words(c, words),
                        seen ? ""
                             : ". Most likely its answers wait in a buffer: write each at once, in "
                               "Python by print(..., flush=True)");
        int ready = poll(p, 2, (int)fmin(left * 1000 + 1, LOOK));
        if (ready < 0 && errno != EINTR)
            return fail(e, "cannot wait for '%s': %s", c->command, strerror(errno));
        if (ready <= 0) continue;
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
    end_group(c, living);
    living = 0;
    signals_at_end(NULL);
    free(c->command);
    free(c->rest.s);
    free(c);
}
