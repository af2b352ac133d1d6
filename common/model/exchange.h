/*
 * exchange.h - memory of the device between two processes.
 *
 * A program is linked with one of two implementations. exchange.c goes through the host's memory
 * and ranks_exchange; on a CPU there is no other memory. exchange_nccl.cu sends from GPU to GPU
 * with NCCL's ncclSend and ncclRecv. NCCL's own sums (ncclAllReduce) are never used: their order is
 * that of the machine's links, and here it is that of shards.h.
 */
#ifndef POSTTRAIN_EXCHANGE_H
#define POSTTRAIN_EXCHANGE_H

#include "ranks.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Connects the devices of all processes. All call it, before the first exchange; it may be called
   again. */
void exchange_begin(void);
/* Sends out_n floats of out to the process peer, and receives in_n from it in `in`. Both are
   (device), and do not overlap. What the device's queue holds so far is done before, and what it
   gets from now on after (kernels.h, device_beside). All exchanges of device memory are in one
   queue. lane: as in ranks.h. */
void exchange_floats(float *in, size_t in_n, const float *out, size_t out_n, int peer, Lane lane);
/* Does exchange_floats return at once, and leave the exchange to the device? */
bool exchange_is_queued(void);
/* Waits for all that is in the queue in use. Ends all processes if an exchange cannot be done. */
void exchange_wait(void);

#ifdef __cplusplus
}
#endif

#endif
