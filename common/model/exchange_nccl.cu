/*
 * exchange_nccl.cu - memory of the device between two processes, from GPU to GPU: see exchange.h.
 *
 * MPI starts the processes, passes NCCL's id to them and watches them (ranks_mpi.c). NCCL only
 * moves the floats. An exchange is work of the GPU like a kernel: it begins when the kernels before
 * it in its queue have ended, and the kernel after it finds what was received. So no thread waits
 * for it, and one communicator is enough. Of a process that dies, MPI's watching thread hears; of a
 * link between GPUs that is cut, exchange_wait.
 *
 * test/emu/nccl_emu.h runs it without a GPU.
 */
#ifdef __CUDACC__
#    include <cuda_runtime.h>
#    include <nccl.h>
#endif

#include "model/exchange.h"
#include "model/kernels.h"
#include "util.h"

#include <time.h>

static ncclComm_t comm;  // all processes; it lives as long as this one

static void check(ncclResult_t status, const char *what) {
    if (status == ncclSuccess || status == ncclInProgress) return;
    const char *why = ncclGetLastError(comm);
    die("NCCL cannot %s: %s%s%s; see whether the other processes and the links between GPUs work "
        "(NCCL_DEBUG=WARN says more), and use --resume. A program that was built with "
        "NCCL_HOME=none does without NCCL",
        what, ncclGetErrorString(status), why && *why ? ": " : "", why && *why ? why : "");
}

void exchange_begin(void) {
    ncclUniqueId id;
    if (comm) return;
    if (rank() == 0) check(ncclGetUniqueId(&id), "begin");
    ranks_share(&id, sizeof id, 0);
    const ncclResult_t status = ncclCommInitRank(&comm, ranks(), id, rank());
    if (status == ncclInvalidUsage)
        die_usage(
            "NCCL cannot connect the GPUs of %d processes: %s; each process needs a GPU of its "
            "own, so start no more processes on a machine than it has GPUs (mpirun -n), or build "
            "with NCCL_HOME=none",
            ranks(), ncclGetLastError(NULL));
    check(status, "connect the GPUs");
}

bool exchange_is_queued(void) { return true; }

void exchange_floats(float *in, size_t in_n, const float *out, size_t out_n, int peer, Lane lane) {
    const cudaStream_t stream = (cudaStream_t)device_stream();
    (void)lane;
    check(ncclGroupStart(), "begin an exchange");
    check(ncclSend(out, out_n, ncclFloat, peer, comm, stream), "send");
    check(ncclRecv(in, in_n, ncclFloat, peer, comm, stream), "receive");
    check(ncclGroupEnd(), "exchange");
}

void exchange_wait(void) {
    static const struct timespec pause = {0, 20 * 1000};
    ncclResult_t status = ncclSuccess;
    for (;;) {
        if (comm) check(ncclCommGetAsyncError(comm, &status), "be asked for errors");
        check(status, "exchange");
        const cudaError_t queue = cudaStreamQuery((cudaStream_t)device_stream());
        if (queue != cudaErrorNotReady) break;  // device_wait() reports other errors
        cudaGetLastError();                     // clears this one
        nanosleep(&pause, NULL);
    }
    device_wait();
}
