/*
 * nccl_emu.h - the calls of NCCL that exchange_nccl.cu makes, over MPI, for processes on emulated
 * GPUs (cuda_runtime_emu.h). An exchange is work of its stream like a kernel. It is made to find
 * mistakes, and it names each in one sentence and aborts:
 *
 *   - A send and the receive that it meets have different counts.
 *   - Two processes send to each other outside of a group, and neither receives. Other deadlocks
 * end after two minutes; a send never ends before it is received.
 *   - What is sent or received is not memory of the device, or not all of one allocation.
 *   - The processes have different ids, or ranks that are not those of MPI.
 *
 * As there, a GPU that two processes use is an error that ncclCommInitRank returns. CUDA_EMU_NCCL=6
 * makes a link fail: ncclCommGetAsyncError gives this error after the first exchange.
 */
#ifndef POSTTRAIN_NCCL_EMU_H
#define POSTTRAIN_NCCL_EMU_H

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <time.h>

#include "cuda_runtime_emu.h"

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7
};
enum ncclDataType_t { ncclFloat = 7 };
struct ncclUniqueId {
    char internal[128];
};
typedef struct ncclComm {
    MPI_Comm mpi;
    int rank, size;
    long exchanges;
} * ncclComm_t;

namespace cuda_emu {

enum { ALONE = 1, IN_GROUP };  // tags: of a send outside of a group, or in a group that only sends

struct Transfer {
    bool sends;
    unsigned char *at;
    size_t bytes;
    int peer;
    ncclComm_t comm;
    cudaStream_t stream;
};

inline std::vector<Transfer> group;
inline int groups;  // that are open
inline char nccl_error[256];

/* Ends the program if it is called for two minutes. Sleeps a little. */
inline void be_patient(time_t began, const char *what, int me, int peer) {
    static const struct timespec little = {0, 50 * 1000};
    if (time(NULL) - began > 120)
        fail("rank %d waits to %s rank %d, which does not", me, what, peer);
    nanosleep(&little, NULL);
}

inline void receive(const Transfer &t) {
    MPI_Message message;
    MPI_Status status;
    const time_t began = time(NULL);
    int found = 0, bytes;
    while (MPI_Improbe(t.peer, MPI_ANY_TAG, t.comm->mpi, &found, &message, &status), !found)
        be_patient(began, "receive from", t.comm->rank, t.peer);
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if ((size_t)bytes != t.bytes)
        fail("rank %d receives %zu bytes, and rank %d sends it %d", t.comm->rank, t.bytes, t.peer,
             bytes);
    MPI_Mrecv(t.at, bytes, MPI_BYTE, &message, &status);
}

/* Waits until the peer has received. */
inline void wait_for_send(const Transfer &t, MPI_Request *request, bool alone) {
    const time_t began = time(NULL);
    int done = 0, met = 0;
    while (MPI_Test(request, &done, MPI_STATUS_IGNORE), !done) {
        int found = 0;
        if (alone) MPI_Iprobe(t.peer, ALONE, t.comm->mpi, &found, MPI_STATUS_IGNORE);
        if ((met += found) > 10000)  // not only because the answer is still on its way
            fail(
                "ranks %d and %d send to each other, and neither receives: both belong between "
                "ncclGroupStart and ncclGroupEnd",
                t.comm->rank, t.peer);
        be_patient(began, "send to", t.comm->rank, t.peer);
    }
}

inline void transfer(const std::vector<Transfer> &all) {
    Open open;
    std::vector<MPI_Request> request(all.size(), MPI_REQUEST_NULL);
    bool alone = true;
    for (const Transfer &t : all) {
        device_memory(t.at, t.bytes, t.sends ? "ncclSend" : "ncclRecv");
        alone = alone && t.sends;
    }
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].sends)
            MPI_Issend(all[i].at, (int)all[i].bytes, MPI_BYTE, all[i].peer,
                       alone ? ALONE : IN_GROUP, all[i].comm->mpi, &request[i]);
    for (const Transfer &t : all)
        if (!t.sends) receive(t);
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].sends) wait_for_send(all[i], &request[i], alone);
}

inline ncclResult_t add(const Transfer &t) {
    if (t.peer < 0 || t.peer >= t.comm->size || t.peer == t.comm->rank)
        fail("rank %d of %d exchanges with rank %d", t.comm->rank, t.comm->size, t.peer);
    group.push_back(t);
    if (groups) return ncclSuccess;
    std::vector<Transfer> one;
    one.swap(group);
    enqueue(t.stream, {NULL, [=] { transfer(one); }, NULL});
    return ncclSuccess;
}

}  // namespace cuda_emu

inline const char *ncclGetErrorString(ncclResult_t r) {
    return r == ncclSuccess        ? "no error"
           : r == ncclInvalidUsage ? "invalid usage (run with NCCL_DEBUG=WARN for details)"
           : r == ncclRemoteError  ? "remote process exited or there was a network error"
                                   : "unknown result code";
}
inline const char *ncclGetLastError(ncclComm_t) { return cuda_emu::nccl_error; }

inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    memset(id, 1, sizeof *id);
    memcpy(id, &t, sizeof t);
    return ncclSuccess;
}

inline ncclResult_t ncclCommInitRank(ncclComm_t *comm, int n, ncclUniqueId id, int rank) {
    struct Process {
        ncclUniqueId id;
        int device;
        char host[MPI_MAX_PROCESSOR_NAME];
    };
    ncclComm_t c = new ncclComm();
    int length;
    MPI_Comm_dup(MPI_COMM_WORLD, &c->mpi);
    MPI_Comm_size(c->mpi, &c->size);
    MPI_Comm_rank(c->mpi, &c->rank);
    if (n != c->size || rank != c->rank)
        cuda_emu::fail("rank %d of %d begins as rank %d of %d", c->rank, c->size, rank, n);
    std::vector<Process> all((size_t)n);
    Process &mine = all[(size_t)rank];
    mine.id = id;
    cudaGetDevice(&mine.device);
    MPI_Get_processor_name(mine.host, &length);
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, c->mpi);
    *comm = NULL;
    for (int r = 0; r < n; r++) {
        const Process &other = all[(size_t)r];
        if (memcmp(&other.id, &id, sizeof id))
            cuda_emu::fail("ranks %d and %d have different ids", rank, r);
        if (r == rank || other.device != mine.device || strcmp(other.host, mine.host)) continue;
        snprintf(cuda_emu::nccl_error, sizeof cuda_emu::nccl_error,
                 "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", rank, r,
                 mine.device);
        return ncclInvalidUsage;
    }
    *comm = c;
    return ncclSuccess;
}

inline ncclResult_t ncclGroupStart() { return cuda_emu::groups++, ncclSuccess; }

inline ncclResult_t ncclGroupEnd() {
    using namespace cuda_emu;
    if (!groups) fail("ncclGroupEnd without ncclGroupStart");
    if (--groups || group.empty()) return ncclSuccess;
    std::vector<Transfer> all;
    all.swap(group);
    for (const Transfer &t : all)
        if (t.stream != all[0].stream) fail("a group with two streams is not emulated");
    all[0].comm->exchanges++;
    enqueue(all[0].stream, {NULL, [=] { transfer(all); }, NULL});
    return ncclSuccess;
}

inline ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t, int peer,
                             ncclComm_t comm, cudaStream_t stream) {
    return cuda_emu::add({true, (unsigned char *)const_cast<void *>(from), count * sizeof(float),
                          peer, comm, stream});
}

inline ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                             cudaStream_t stream) {
    return cuda_emu::add({false, (unsigned char *)to, count * sizeof(float), peer, comm, stream});
}

inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    const long given = cuda_emu::setting("CUDA_EMU_NCCL", ncclSuccess);
    *error = comm->exchanges ? (ncclResult_t)given : ncclSuccess;
    return ncclSuccess;
}

#endif
