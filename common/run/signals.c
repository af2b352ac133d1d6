/*
 * signals.c - when a signal ends a program, and when it only stops a run: see signals.h.
 */
#include "run/signals.h"

#include "ranks.h"
#include "run/lock.h"
#include "util.h"

#include <signal.h>
#include <stdbool.h>
#include <unistd.h>

static volatile sig_atomic_t noting, noted;
static void (*volatile at_end)(void);

/* Ends the program by the signal, with the shell's own prompt on a line of its own. */
static void leave(int number) {
    newfile_abandon();
    lock_abandon();
    if (at_end) at_end();
    if (number != SIGPIPE && isatty(STDERR_FILENO) && write(STDERR_FILENO, "\n", 1) < 0)
        _exit(128 + number);
    signal(number, SIG_DFL);
    raise(number);
}

static void on_signal(int number) {
    static const char text[] = "\nThe run will save and stop. Another signal stops it at once.\n";
    // the kernel repeats this one every second until the run has saved, or has used up its time
    if (noted && number == SIGXCPU) return;
    if (!noting || noted || number == SIGHUP) {
        leave(number);
        return;
    }
    noted = number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) return;  // it stops anyway
}

static bool is_ignored(int number) {
    struct sigaction now;
    return !sigaction(number, NULL, &now) && now.sa_handler == SIG_IGN;
}

static void catch_signal(int number, void (*f)(int number)) {
    struct sigaction action = {.sa_handler = f, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    // ignored: the program was started with nohup or in the background
    if (!is_ignored(number)) sigaction(number, &action, NULL);
}

/* A handler, as programs that are started inherit SIG_IGN. */
static void do_nothing(int number) { (void)number; }

void signals_survive_pipes(void) { catch_signal(SIGPIPE, do_nothing); }

void signals_leave(int number) {
    if (!is_ignored(number)) leave(number);
}

void signals_catch(void) {
    catch_signal(SIGINT, on_signal);
    catch_signal(SIGTERM, on_signal);
    catch_signal(SIGHUP, on_signal);
    catch_signal(SIGUSR1, on_signal);  // which mpirun passes on to all processes
    catch_signal(SIGXCPU, on_signal);  // of ulimit -t and of batch systems, before they kill
    signals_survive_pipes();
}

void signals_note(void) { noting = 1; }

/* The signal that some process had noted when they last asked each other. */
static int agreed;

void signals_end(void) {
    noting = 0;
    noted = 0;
    agreed = 0;
}

void signals_agree(void) {
    if (ranks() == 1) return;
    int *all = (int *)xcalloc((size_t)ranks(), sizeof *all);
    all[rank()] = noted;
    ranks_gather(all, sizeof *all);
    for (int i = 0; i < ranks() && !agreed; i++) agreed = all[i];
    free(all);
}

int signals_noted(void) { return ranks() > 1 ? agreed : noted; }

void signals_at_end(void (*f)(void)) { at_end = f; }
