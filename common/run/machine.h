/*
 * machine.h - limits of a process that would end it without a word, and are refused with one.
 */
#ifndef POSTTRAIN_RUN_MACHINE_H
#define POSTTRAIN_RUN_MACHINE_H

/* Ends the program with 2 when its stack (ulimit -s), the stacks of its threads (OMP_STACKSIZE) or
   the number of threads (OMP_NUM_THREADS) is one with which it would crash, or when the threads
   cannot be made. A file that grows
   beyond its limit (ulimit -f) is from now on an error of writing. */
void machine_check(void);

#endif
