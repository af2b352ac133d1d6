/*
 * ranks_mpi.c - processes that MPI starts and connects: see ranks.h.
 *
 * A process waits for another one by asking again and again, and sleeps in between: so it leaves
 * the processor to others. A thread of its own tells process 0, or as process 0 all others, that it
 * lives, and sees whether they do: a process that was killed and a machine that was cut off from
 * the network send no message.
 */
#define _GNU_SOURCE  // defines: on_exit

#include "ranks.h"

#include "util.h"

#include <limits.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum {
    TAG_DATA = 1,
    TAG_BEHIND,         // data of LANE_BEHIND
    TAG_DEATH,          // an int: the status that the sender ends with
    TAG_LIFE,           // nothing: the sender lives
    SPINS = 20000,      // questions before the first sleep: some milliseconds
    SLEEP = 20 * 1000,  // nanoseconds
    LONGEST_SLEEP = 250 * 1000,
    PATIENCE = 2,   // seconds that process 0 has to print an error that all processes have
    LIFETIME = 10,  // seconds without a sign of life after which a process is dead
};
static const double beat = 0.5;  // seconds between two signs of life

static int size = 1, number;
static bool joined;
typedef char Name[MPI_MAX_PROCESSOR_NAME + 1];
static Name host = "this machine", *hosts;  // hosts: (size)
static MPI_Comm life;                       // for signs of life and messages of death
static pthread_t watcher;
static volatile bool watching, ended;
static int errors = STDERR_FILENO;  // where the last message goes

int ranks(void) { return size; }
int rank(void) { return number; }
const char *rank_host(void) { return host; }

/* ---- the end --------------------------------------------------------------------------------- */

static void pause_for(long nanoseconds) {
    const struct timespec t = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    nanosleep(&t, NULL);
}

/* Sends a message that nobody waits to have been sent. */
static void send_and_forget(const int *x, int to, int tag) {
    MPI_Request request;
    if (MPI_Isend(x, 1, MPI_INT, to, tag, life, &request) == MPI_SUCCESS)
        MPI_Request_free(&request);
}

/* Another process has ended with a message, and this one ends without. */
static void look_for_death(void) {
    int found = 0, status = 1;
    MPI_Status of;
    MPI_Iprobe(MPI_ANY_SOURCE, TAG_DEATH, life, &found, &of);
    if (!found) return;
    MPI_Recv(&status, 1, MPI_INT, of.MPI_SOURCE, TAG_DEATH, life, MPI_STATUS_IGNORE);
    newfile_abandon();
    _exit(status);
}

/* Ends all processes, this one after the others. */
__attribute__((noreturn)) static void end_all(int status) {
    static int sent;
    sent = status;
    for (int i = 0; i < size; i++)
        if (i != number) send_and_forget(&sent, i, TAG_DEATH);
    const double began = now_seconds();
    for (int found; now_seconds() - began < 1; pause_for(SLEEP))  // lets the messages leave
        MPI_Iprobe(MPI_ANY_SOURCE, TAG_DEATH, life, &found, MPI_STATUS_IGNORE);
    _exit(status);
}

/* What ends a line of progress, which may be on the terminal; mpirun gives process 0 one. */
static const char *line_end(void) { return !number && isatty(STDOUT_FILENO) ? "\n" : ""; }

/* Of die(): prints the message, once, and ends all processes. An error that all processes have,
   such as a flag that does not exist, is the message of process 0. */
static void at_death(int status, const char *message) {
    static bool dying;
    if (dying) _exit(status);
    dying = true;
    newfile_abandon();
    const double began = now_seconds();
    while (number && size > 1 && now_seconds() - began < PATIENCE) {
        look_for_death();
        pause_for(SLEEP);
    }
    if (size > 1)
        dprintf(errors, "%serror: rank %d on %s: %s\n", line_end(), number, host, message);
    else
        dprintf(errors, "error: %s\n", message);
    end_all(status);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Process r gives no sign of life. */
__attribute__((noreturn)) static void lose(int r) {
    dprintf(
        errors,
        "%serror: rank %d on %s has given no sign of life for %d seconds; rank %d on %s and all "
        "others end. See whether that machine runs and can be reached, and use --resume\n",
        line_end(), r, hosts[r], LIFETIME, number, host);
    newfile_abandon();
    end_all(1);
}

/* Does this process watch that one? */
static bool is_watched(int r) { return r != number && (number == 0 || r == 0); }

static void hear(double *heard) {
    MPI_Status of;
    for (int found = 1, x; found;) {
        MPI_Iprobe(MPI_ANY_SOURCE, TAG_LIFE, life, &found, &of);
        if (!found) return;
        MPI_Recv(&x, 1, MPI_INT, of.MPI_SOURCE, TAG_LIFE, life, MPI_STATUS_IGNORE);
        heard[of.MPI_SOURCE] = now_seconds();
    }
}

static void *watch_others(void *nothing) {
    static const int alive = 1;
    double *heard = (double *)xcalloc((size_t)size, sizeof *heard);
    double looked = now_seconds(), sent = 0;
    for (int r = 0; r < size; r++) heard[r] = looked;
    while (watching) {
        const double now = now_seconds(), gap = now - looked;
        looked = now;
        for (int r = 0; r < size && gap > LIFETIME / 4.0; r++) heard[r] += gap;  // was it stopped?
        hear(heard);
        look_for_death();
        for (int r = 0; r < size && now - sent > beat; r++)
            if (is_watched(r)) send_and_forget(&alive, r, TAG_LIFE);
        if (now - sent > beat) sent = now;
        for (int r = 0; r < size; r++)
            if (is_watched(r) && now - heard[r] > LIFETIME) lose(r);
        pause_for(100 * 1000 * 1000);
    }
    free(heard);
    return nothing;
}

/* Of exit(): --help and --dry_run end a program before ranks_end. */
static void at_exit(int status, void *nothing) {
    (void)nothing;
    if (!joined) return;
    if (status) end_all(status);
    ranks_end();
}

/* ---- the beginning --------------------------------------------------------------------------- */

/* What this process prints goes nowhere; errors is where stderr was. */
static void be_silent(void) {
    FILE *nowhere = fopen("/dev/null", "r+");
    errors = dup(STDERR_FILENO);
    if (!nowhere || errors < 0) return;
    dup2(fileno(nowhere), STDOUT_FILENO);
    dup2(fileno(nowhere), STDERR_FILENO);
    fclose(nowhere);
}

void ranks_begin(void) {
    int length, provided;
    if (joined || ended) return;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS)
        die("MPI cannot be started");
    joined = true;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &number);
    MPI_Comm_dup(MPI_COMM_WORLD, &life);
    MPI_Get_processor_name(host, &length);
    hosts = (Name *)xcalloc((size_t)size, sizeof *hosts);
    memcpy(hosts[number], host, sizeof host);
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, hosts, sizeof *hosts, MPI_BYTE, MPI_COMM_WORLD);
    if (number) be_silent();
    die_through(at_death);
    on_exit(at_exit, NULL);
    if (size == 1) return;
    if (provided != MPI_THREAD_MULTIPLE)
        die("this MPI cannot be used by two threads (MPI_THREAD_MULTIPLE); use Open MPI 4 or "
            "MPICH 4");
    watching = true;
    if (pthread_create(&watcher, NULL, watch_others, NULL)) die("cannot start a thread");
}

/* ---- exchanges ------------------------------------------------------------------------------- */

static void check(int status, const char *what) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (status == MPI_SUCCESS) return;
    MPI_Error_string(status, text, &length);
    die("MPI cannot %s: %s; see whether all machines are reachable, and use --resume", what, text);
}

static void wait_for(MPI_Request *request, const char *what) {
    int done = 0;
    for (int i = 0;; i++) {
        check(MPI_Test(request, &done, MPI_STATUS_IGNORE), what);
        if (done) return;
        if (i >= SPINS) pause_for(SLEEP);
    }
}

/* The same for a thread beside those that compute: sleeps from the beginning, a quarter longer each
   time. MPI moves some 100 KB of a message in a call, so there are several of them in a row. */
static void wait_behind(MPI_Request *request, const char *what) {
    enum { CALLS = 8 };
    int done = 0;
    for (long sleep = SLEEP;; sleep = sleep < LONGEST_SLEEP ? sleep + sleep / 4 : sleep) {
        for (int i = 0; i < CALLS; i++) {
            check(MPI_Test(request, &done, MPI_STATUS_IGNORE), what);
            if (done) return;
        }
        pause_for(sleep);
    }
}

static int count_of(size_t bytes) {
    if (bytes > INT_MAX) die("%zu bytes at once are more than MPI can send", bytes);
    return (int)bytes;
}

void ranks_end(void) {
    MPI_Request request;
    if (!joined) return;
    check(MPI_Ibarrier(MPI_COMM_WORLD, &request), "wait");
    wait_for(&request, "wait");
    joined = false;
    ended = true;
    if (watching) {
        watching = false;
        pthread_join(watcher, NULL);
    }
    int found = 1, x;
    for (MPI_Status of; found;) {  // signs of life that nobody has received
        MPI_Iprobe(MPI_ANY_SOURCE, TAG_LIFE, life, &found, &of);
        if (found) MPI_Recv(&x, 1, MPI_INT, of.MPI_SOURCE, TAG_LIFE, life, MPI_STATUS_IGNORE);
    }
    free(hosts);
    hosts = NULL;
    MPI_Finalize();
}

void ranks_exchange(void *in, size_t in_bytes, const void *out, size_t out_bytes, int peer,
                    Lane lane) {
    MPI_Request receive, send;
    const int tag = lane == LANE_BEHIND ? TAG_BEHIND : TAG_DATA;
    void (*const wait)(MPI_Request *, const char *) = lane == LANE_BEHIND ? wait_behind : wait_for;
    check(MPI_Irecv(in, count_of(in_bytes), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &receive),
          "receive");
    check(MPI_Isend(out, count_of(out_bytes), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &send), "send");
    wait(&receive, "receive");
    wait(&send, "send");
}

void ranks_gather(void *all, size_t bytes_each) {
    MPI_Request request;
    const int n = count_of(bytes_each);
    check(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_BYTE, all, n, MPI_BYTE, MPI_COMM_WORLD, &request),
          "gather");
    wait_for(&request, "gather");
}

void ranks_share(void *bytes, size_t n, int from) {
    MPI_Request request;
    check(MPI_Ibcast(bytes, count_of(n), MPI_BYTE, from, MPI_COMM_WORLD, &request), "share");
    wait_for(&request, "share");
}

void ranks_send_first(void *bytes, size_t n, int from) {
    MPI_Request request;
    const int count = count_of(n);
    if (from == 0 || (number != 0 && number != from)) return;
    if (number)
        check(MPI_Isend(bytes, count, MPI_BYTE, 0, TAG_DATA, MPI_COMM_WORLD, &request), "send");
    else
        check(MPI_Irecv(bytes, count, MPI_BYTE, from, TAG_DATA, MPI_COMM_WORLD, &request),
              "receive");
    wait_for(&request, "send");
}

void *ranks_join(const void *mine, size_t bytes, size_t *n) {
    MPI_Request request;
    int *count = (int *)xmalloc(sizeof(int) * 2 * (size_t)size), *at = count + size;
    count[number] = count_of(bytes);
    ranks_gather(count, sizeof *count);
    *n = 0;
    for (int i = 0; i < size; i++) {
        at[i] = count_of(*n);
        *n += (size_t)count[i];
    }
    char *all = (char *)xcalloc(*n + 1, 1);
    check(MPI_Iallgatherv(mine, count[number], MPI_BYTE, all, count, at, MPI_BYTE, MPI_COMM_WORLD,
                          &request),
          "gather");
    wait_for(&request, "gather");
    free(count);
    return all;
}

void ranks_add(double *x, int n) {
    const size_t each = (size_t)n;
    double *all = (double *)xmalloc(sizeof *all * each * (size_t)size);
    memcpy(all + each * (size_t)number, x, sizeof *x * each);
    ranks_gather(all, sizeof *all * each);
    for (int k = 0; k < n; k++) {
        x[k] = 0;
        for (int i = 0; i < size; i++) x[k] += all[each * (size_t)i + (size_t)k];
    }
    free(all);
}
