/*
 * signals.h - SIGINT (Ctrl-C), SIGTERM, SIGUSR1, SIGXCPU and SIGHUP: when they end a program at
 * once, and when they only ask a run to save and stop.
 *
 * Until the first step of training there is nothing to save, and so it is in a program that does
 * not train: the signal ends it at once. From the first step on all but SIGHUP are noted, and a
 * second one, unless it is SIGXCPU, ends the program. After the last step and its evaluation the
 * run goes to its end; a signal ends the program at once again, as the checkpoint of that step is
 * written. However it ends, it leaves no file half written and no judge behind.
 *
 * SIGPIPE never ends a program by itself: writing to a pipe that nobody reads only fails, and what
 * was writing decides.
 */
#ifndef POSTTRAIN_SIGNALS_H
#define POSTTRAIN_SIGNALS_H

/* From now on the signals end the program at once. A signal that was ignored when the program
   started (nohup, a job in the background) stays ignored. */
void signals_catch(void);
/* From now on the first of them, unless it is SIGHUP, is only noted. */
void signals_note(void);
/* From now on a signal ends the program at once again; one that was noted is forgotten. */
void signals_end(void);
/* With several processes, which must all stop after the same step: asks the others what they have
   noted. signals_noted changes here alone. */
void signals_agree(void);
/* The number of the signal that was noted, or 0. */
int signals_noted(void);
/* From now on writing to a pipe that nobody reads only fails, with EPIPE. A program that is started
   from here has the default of SIGPIPE again. signals_catch does so, too. */
void signals_survive_pipes(void);
/* Ends the program as the signal does. Returns only if that is ignored. */
void signals_leave(int number);
/* Calls f when a signal ends the program. f may call only what a signal handler may. NULL: none. */
void signals_at_end(void (*f)(void));

#endif
