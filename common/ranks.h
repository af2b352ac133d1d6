/*
 * ranks.h - the processes that train one model together, on one machine or on many.
 *
 * A program is linked with one of two implementations: ranks.c, where it is alone, and ranks_mpi.c,
 * where `mpirun -n R` starts R processes of it. Every process calls each function below that takes
 * part in an exchange, in the same order. All memory is the host's.
 */
#ifndef POSTTRAIN_RANKS_H
#define POSTTRAIN_RANKS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The number of processes, and the number of this one, from 0. Only process 0 prints and writes. */
int ranks(void);
int rank(void);
/* The name of this process's machine. */
const char *rank_host(void);

/* Joins the other processes; the first call of a program. From here on die() ends all of them, with
   one sentence that names the process and its machine, and what processes other than 0 print goes
   nowhere. */
void ranks_begin(void);
/* Waits for the other processes, and leaves them: the last exchange of a program. */
void ranks_end(void);

/* Two threads may exchange at the same time, each in a lane of its own. Whoever waits in the lane
   behind leaves the processor to the threads that compute. */
typedef enum { LANE_MAIN, LANE_BEHIND } Lane;
/* Sends out_bytes bytes of out to the process peer, and receives in_bytes from it in `in`. */
void ranks_exchange(void *in, size_t in_bytes, const void *out, size_t out_bytes, int peer,
                    Lane lane);
/* all: bytes_each bytes of every process, in their order. A process fills in its own part, at
   rank() * bytes_each, and gets the others. */
void ranks_gather(void *all, size_t bytes_each);
/* The bytes of process `from` become those of all. */
void ranks_share(void *bytes, size_t n, int from);
/* The same for process 0 alone. Other processes than 0 and `from` need not call it. */
void ranks_send_first(void *bytes, size_t n, int from);
/* The bytes of all processes, of any number each, one after another in the processes' order. *n:
   how many; a zero follows them. To be freed. */
void *ranks_join(const void *mine, size_t bytes, size_t *n);
/* x (n) becomes the sum of the arrays x of all processes, added in their order. */
void ranks_add(double *x, int n);

#ifdef __cplusplus
}
#endif

#endif
