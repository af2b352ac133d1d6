/*
 * check_torture.c - reliability by experiment: what happens to the programs, happens here, and
 * nothing may be lost by it.
 *
 * SIGKILL at random moments and at every operation on files, a disk that fills up, a directory that
 * cannot be written, an allocation that fails at every place that allocates, valgrind; signals,
 * closed descriptors, limits on the size of files, and two runs in one output. The programs under
 * test are those of $BUILD, on the built-in models, one thread each; runs take less than a second
 * and write a checkpoint after every step.
 *
 * `make test` runs a short form. `make torture` says "whole": TORTURE_KILLS=100 random moments per
 * program, every operation, every place, valgrind. TORTURE_SEED draws other moments. What the
 * machine does not allow is left out, and says so.
 *
 *     check_torture [whole [PART]]      PART: kill, operations, ... as in the table of main()
 */
#define _GNU_SOURCE  // defines: unshare, nftw

#include "util.h"

#include "program.h"

#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#undef fail
#include <check.h>

/* ---- the runs -------------------------------------------------------------------------------- */

/* In flags, W/ is this test's directory and O/ the run's output. The first STAGES train; the others
   use their results, or resume the first checkpoint of that program's training. */
typedef struct {
    const char *name, *program, *flags;
} Job;

#define TRAINING                                                                             \
    "--output O/ --seed 7 --save_steps 1 --logging_steps 1 --eval_steps 2 --warmup_steps 1 " \
    "--per_device_train_batch_size 4 "
#define ONE_BATCH "--gradient_accumulation_steps 1 "
#define ANSWERS "--eval_samples 2 --max_new_tokens 4 "

enum { STAGES = 7, JOBS = 14 };
static const Job jobs[JOBS] = {
    {"sft", "sft", TRAINING ONE_BATCH ANSWERS "--model test/tiny --data W/sft --eval W/sft-eval"},
    {"full_ft", "full_ft",
     TRAINING ONE_BATCH ANSWERS "--model test/tiny --data W/summaries --eval W/summaries-eval"},
    {"lora", "lora",
     TRAINING ONE_BATCH ANSWERS
     "--model test/tiny --data W/domain --eval W/domain-eval --merge W/merged"},
    {"adapter", "adapter",
     TRAINING ONE_BATCH ANSWERS "--model test/tiny --data W/domain --eval W/domain-eval"},
    {"reward", "reward",
     TRAINING ONE_BATCH "--model test/tiny/chat --data W/preferences --eval W/preferences-eval"},
    {"ppo", "ppo",
     TRAINING
     "--model test/tiny/chat --reward_model test/tiny/reward --data W/prompts --eval "
     "W/prompts-eval --batch_size 8 "
     "--response_length 8 --num_ppo_epochs 1 --num_mini_batches 1 --dump_rollouts W/rollouts"},
    {"constitutional", "constitutional",
     TRAINING ONE_BATCH
     "--model test/tiny/chat --prompts W/prompts --eval W/prompts-eval --max_new_tokens 12 "
     "--constitution test/tiny/constitution.json --max_iterations 1 --regenerate"},
    {"lora, four bits", "lora",
     TRAINING ONE_BATCH ANSWERS
     "--model test/tiny --data W/domain --eval W/domain-eval --load_in_4bit"},
    {"reward --score", "reward", "--model test/tiny/reward --score W/sft --score_output O/scores"},
    {"--feedback", "constitutional",
     "--model test/tiny/chat --prompts W/prompts --constitution test/tiny/constitution.json "
     "--max_new_tokens 12 "
     "--feedback O/pairs"},
    {"--evaluate", "constitutional", "--model test/tiny/chat --evaluate W/multiple-choice"},
    {"--prompt", "sft",
     "--model test/tiny/chat --prompt 'Which animal does Nora own?' --max_new_tokens 12"},
    {"full_ft, resumed", "full_ft",
     TRAINING ONE_BATCH ANSWERS
     "--model test/tiny --data W/summaries --eval W/summaries-eval --resume"},
    {"ppo, resumed", "ppo",
     TRAINING "--model test/tiny/chat --reward_model test/tiny/reward --data W/prompts --eval "
              "W/prompts-eval --batch_size 8 "
              "--response_length 8 --num_ppo_epochs 1 --num_mini_batches 1 --dump_rollouts "
              "W/rollouts --resume"},
};

static char work[] = "/tmp/check_torture.XXXXXX";
static bool whole;
static uint64_t seed;

static const char *in_work(const char *name) {
    static char *path[32];
    Str p = {0};
    str_printf(&p, "%s/%s", work, name);
    for (int i = 0; i < 32; i++) {  // each once
        if (!path[i]) return path[i] = p.s;
        if (strcmp(path[i], p.s)) continue;
        free(p.s);
        return path[i];
    }
    die("more than 32 paths");
}

/* The shell command of a job, after `before`: variables, or another program that runs it. */
static Str command_of(const Job *j, const char *output, const char *before, const char *more) {
    Str line = {0};
    str_printf(&line, "exec env OMP_NUM_THREADS=1 %s %s/%s ", before, build(), j->program);
    for (const char *p = j->flags; *p; p++)
        if ((*p == 'W' || *p == 'O') && p[1] == '/') {
            str_printf(&line, "%s/", *p == 'W' ? work : output);
            p++;
        } else
            str_add(&line, p, 1);
    str_printf(&line, " %s >%s/text 2>%s/errors", more, work, work);
    return line;
}

static pid_t start(const Job *j, const char *output, const char *before, const char *more) {
    Str line = command_of(j, output, before, more);
    fflush(stdout);
    const pid_t pid = fork();
    if (!pid) {
        execl("/bin/sh", "sh", "-c", line.s, NULL);
        _exit(127);
    }
    ck_assert_int_gt(pid, 0);  // kill(-1) would be everybody's end
    free(line.s);
    return pid;
}

/* Waits until the process has ended or `seconds` have passed: its status as waitpid's, or -1. */
static int wait_for(pid_t pid, double seconds) {
    const double until = now_seconds() + seconds;
    for (int status;;) {
        if (waitpid(pid, &status, WNOHANG) == pid) return status;
        const double left = until - now_seconds();
        if (left <= 0) return -1;
        usleep((useconds_t)(1e6 * fmin(left, 0.002)) + 1);
    }
}

/* Runs a job to its end: the exit status, or 128 + the signal that ended it. */
static int run(const Job *j, const char *output, const char *before, const char *more) {
    const pid_t pid = start(j, output, before, more);
    const int status = wait_for(pid, 600);
    if (status == -1) {
        kill(pid, SIGKILL);
        ck_abort_msg("%s %s %s does not end", before, j->name, more);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* What the last program said when it went wrong. */
static const char *errors(void) {
    static Str text;
    Error e;
    text.n = 0;
    str_add(&text, "", 0);
    if (read_file(in_work("errors"), 1 << 20, &text, &e)) ck_abort_msg("%s", e.text);
    return text.s;
}

/* Did it end by itself, and say why? The OpenMP libraries have sentences of their own, and clang's
 * ends with abort() after it. */
static bool gave_up_in_words(int status) {
    const char *text = errors();
    if (strstr(text, "OMP: Error #")) return status == 1 || status == 128 + SIGABRT;
    return (status == 1 || status == 2) && (strstr(text, "error: ") || strstr(text, "libgomp: "));
}

static bool has_checkpoint(const char *output) {
    return shell("ls -d %s/checkpoint-* 2>/dev/null | grep -q 'checkpoint-[0-9]*$'", output) == 0;
}

/* As a person would after a failure: the same command with --resume, or from the beginning where
 * there is nothing to resume. */
static const char *again(const char *output) {
    return has_checkpoint(output) ? "--resume" : "--overwrite_output_dir";
}

/* What a run writes beside its output, because the flag that says where is part of the run:
 * W/rollouts and W/merged. */
static void begin_anew(const char *output) {
    ck_assert_int_eq(
        shell("rm -rf %s %s/rollouts %s/merged && mkdir -p %s", output, work, work, output), 0);
}

static void gather(const char *output) {
    ck_assert_int_eq(
        shell("for f in rollouts merged; do if test -e %s/$f; then mv %s/$f %s || exit 1; fi; done",
              work, work, output),
        0);
}

/* Makes output what the job starts from: nothing, or a run that ended after its first step. */
static void prepare(const Job *j, const char *output) {
    begin_anew(output);
    if (!strstr(j->flags, "--resume")) return;
    const char *first = in_work(j->program);
    if (access(first, F_OK)) {
        int training = 0;
        while (strcmp(jobs[training].program, j->program)) training++;
        begin_anew(first);
        ck_assert_int_eq(
            run(&jobs[training], first, "", "--max_steps 2 --save_total_limit 0 --keep_moments"),
            0);
        gather(first);
        ck_assert_int_eq(
            shell("rm -rf %s/checkpoint-2 %s/model.safetensors %s/critic", first, first, first), 0);
    }
    ck_assert_int_eq(shell("cp -r %s/. %s && if test -e %s/rollouts; then mv %s/rollouts %s; fi",
                           first, output, output, output, work),
                     0);
}

/* The uninterrupted run, at W/NAME: its seconds. */
static double reference(const Job *j, const char *name, const char *more) {
    prepare(j, in_work(name));
    const double began = now_seconds();
    const int status = run(j, in_work(name), "", more);
    ck_assert_msg(status == 0, "%s ends with %d: %s", j->name, status, errors());
    gather(in_work(name));
    return now_seconds() - began;
}

/* Every file of the output, and no other, has the bytes of the reference. Only run.json, which
   names the command line, is another; and the state of a checkpoint of which the run has said that
   it keeps the moments, which a run that has ended removes. */
static void assert_same_output(const Job *j, const char *name, const char *output,
                               const char *after) {
    gather(output);
    const int differ = shell(
        "diff -r -x run.json %s %s %s >%s/differences 2>&1 && "
        "test $(ls %s | grep -c run.json) = $(ls %s | grep -c run.json)",
        strstr(errors(), "keeps its moments: ") ? "-x state.safetensors" : "", in_work(name),
        output, work, in_work(name), output);
    if (differ) shell("cut -c1-200 %s/differences | head -20", work);
    ck_assert_msg(!differ, "%s after %s: %s differs from %s", j->name, after, output, name);
}

/* ---- killed ---------------------------------------------------------------------------------- */

static char unfinished[32];
static enum { NOTHING, CHECKPOINT, FILE_ALONE } found_unfinished;

static int look(const char *path, const struct stat *s, int type, struct FTW *where) {
    (void)s;
    (void)type;
    (void)where;
    if (strstr(path, "/checkpoint-") && strstr(path, unfinished))
        found_unfinished = CHECKPOINT;
    else if (strstr(path, unfinished) && found_unfinished == NOTHING)
        found_unfinished = FILE_ALONE;
    return 0;
}

typedef struct {
    int before, between, checkpoint, file;
} Moments;

/* What a process was doing when it was killed, by what it has left. */
static void note_moment(Moments *m, const char *output, pid_t pid) {
    snprintf(unfinished, sizeof unfinished, ".posttrain-%ld", (long)pid);
    found_unfinished = NOTHING;
    nftw(output, look, 16, FTW_PHYS);
    if (found_unfinished == CHECKPOINT)
        m->checkpoint++;
    else if (found_unfinished == FILE_ALONE)
        m->file++;
    else if (has_checkpoint(output))
        m->between++;
    else
        m->before++;
}

static void print_moments(const char *what, const Moments *m, int finished) {
    printf(
        "  %s: %d kills, %d before the first checkpoint, %d while one was written or removed, %d "
        "while a single file was, %d between; "
        "%d runs finished with the same bytes\n",
        what, m->before + m->between + m->checkpoint + m->file, m->before, m->checkpoint, m->file,
        m->between, finished);
}

START_TEST(killed_at_random_moments_and_resumed) {
    const Job *j = &jobs[_i];
    const char *most = getenv("TORTURE_KILLS");
    const int kills = most ? atoi(most) : whole ? 100 : 3;
    const double seconds = reference(j, "whole", "--max_steps 4");
    const char *output = in_work("killed");
    Moments m = {0};
    int finished = 0, killed = 0;
    for (int status = 1; killed < kills || status; finished += !status) {
        if (!status || !killed) begin_anew(output);
        const pid_t pid = start(j, output, "",
                                has_checkpoint(output) ? "--max_steps 4 --resume"
                                                       : "--max_steps 4 --overwrite_output_dir");
        const double delay = (double)random_uniform(random4(seed, RANDOM_DATA, (uint32_t)_i, 0,
                                                            (uint32_t)killed, (uint32_t)finished)
                                                        .v[0]) *
                             seconds;
        status = wait_for(pid, killed < kills ? delay : 600);
        if (status == -1) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
        }
        if (WIFSIGNALED(status)) {
            ck_assert_msg(WTERMSIG(status) == SIGKILL, "%s: signal %d", j->name, WTERMSIG(status));
            killed++;
            note_moment(&m, output, pid);
            status = 1;
        } else {
            ck_assert_msg(status == 0, "%s ends with %d: %s", j->name, WEXITSTATUS(status),
                          errors());
            assert_same_output(j, "whole", output, "kills");
        }
    }
    char what[64];
    snprintf(what, sizeof what, "%s, random moments", j->name);
    print_moments(what, &m, finished);
}
END_TEST

START_TEST(killed_at_every_operation_on_files_and_resumed) {
    const Job *j = &jobs[_i];
    if (SANITIZED) {
        printf("  %s, killed at operations on files: left out, this build has a sanitizer\n",
               j->name);
        return;
    }
    const char *flags = "--max_steps 2 --save_total_limit 1", *output = in_work("killed");
    reference(j, "whole", flags);
    Moments m = {0};
    int finished = 0;
    char before[512], more[128];
    for (int n = whole ? 1 : 29;; n += whole ? 1 : 61) {
        begin_anew(output);
        snprintf(before, sizeof before, "FAULT='kill %d' LD_PRELOAD=%s/faults.so", n, build());
        const pid_t pid = start(j, output, before, flags);
        const int status = wait_for(pid, 600);
        if (WIFEXITED(status) && !WEXITSTATUS(status)) break;
        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
                      "%s, operation %d: status %x", j->name, n, status);
        note_moment(&m, output, pid);
        snprintf(more, sizeof more, "%s %s", flags, again(output));
        const int then = run(j, output, "", more);
        ck_assert_msg(then == 0, "%s, killed at operation %d on files, ends with %d: %s", j->name,
                      n, then, errors());
        snprintf(more, sizeof more, "a kill at operation %d on files", n);
        assert_same_output(j, "whole", output, more);
        finished++;
    }
    ck_assert_int_gt(finished, 0);
    char what[64];
    snprintf(what, sizeof what, "%s, operations on files", j->name);
    print_moments(what, &m, finished);
}
END_TEST

/* Are all files of W/older in output, with their bytes? */
static bool older_is_whole(const char *output) {
    return !shell(
        "cd %s/older && find . -type f | while read f; do cmp -s $f %s/$f || exit 1; done", work,
        output);
}

/* Does output hold a checkpoint of W/all or W/whole, or the result of W/whole? */
static bool newer_is_whole(const char *output) {
    return !shell(
        "cd %s && for c in $(ls | grep '^checkpoint-[0-9]*$\\|-new-[0-9]*$'); do for d in all "
        "whole; "
        "do diff -r $c %s/$d/${c%%%%.*} >/dev/null 2>&1 && exit; done; done; for f in "
        "*.safetensors; do cmp -s $f %s/whole/$f && exit; done; exit 1",
        output, work, work);
}

/* Where there is a config, are all weights beside it those of one of the two? */
static bool is_no_mixture(const char *output) {
    return !shell(
        "cd %s && if test -e config.json -o -e adapter_config.json; then for d in %s/older "
        "%s/whole; do ok=1; for f in *.safetensors; do cmp -s $f $d/$f || ok=0; done; test $ok = 1 "
        "&& exit 0; done; exit 1; fi",
        output, work, work);
}

/* --overwrite_output_dir, killed at each operation: at every moment the older result is whole, or a
   checkpoint or the result of the new run is, and the repetition has the bytes of a run alone. */
START_TEST(killed_over_an_older_result_and_repeated) {
    const Job *j = &jobs[_i];
    if (SANITIZED) {
        printf("  %s, killed over an older result: left out, this build has a sanitizer\n",
               j->name);
        return;
    }
    const char *flags = "--max_steps 2 --save_total_limit 1", *output = in_work("killed");
    reference(j, "older", "--max_steps 3 --seed 8");
    ck_assert_int_eq(shell("rm -rf %s/older/rollouts %s/older/merged", work, work), 0);
    reference(j, "all", "--max_steps 2 --save_total_limit 0 --keep_moments");
    reference(j, "whole", flags);
    char before[512], more[128];
    int kept = 0, replaced = 0;
    for (int n = whole ? 1 : 29;; n += whole ? 1 : 61) {
        begin_anew(output);
        ck_assert_int_eq(shell("cp -r %s/older/. %s", work, output), 0);
        snprintf(before, sizeof before, "FAULT='kill %d' LD_PRELOAD=%s/faults.so", n, build());
        snprintf(more, sizeof more, "%s --overwrite_output_dir", flags);
        const int status = run(j, output, before, more);
        if (!status) break;
        ck_assert_msg(status == 128 + SIGKILL, "%s, operation %d: status %d", j->name, n, status);
        const bool older = older_is_whole(output), newer = newer_is_whole(output);
        ck_assert_msg(older || newer, "%s, operation %d: nothing is whole", j->name, n);
        ck_assert_msg(is_no_mixture(output), "%s, operation %d: a mixture", j->name, n);
        kept += older;
        replaced += !older;
        snprintf(more, sizeof more, "%s %s", flags, older ? "--overwrite_output_dir" : "--resume");
        const int then = run(j, output, "", more);
        ck_assert_msg(then == 0, "%s, killed at operation %d on files, ends with %d: %s", j->name,
                      n, then, errors());
        snprintf(more, sizeof more, "a kill at operation %d over an older result", n);
        assert_same_output(j, "whole", output, more);
    }
    ck_assert_msg(kept > 0 && replaced > 0, "kept %d times, replaced %d times", kept, replaced);
    printf("  %s over an older result: of %d kills %d left that and %d the new one\n", j->name,
           kept + replaced, kept, replaced);
}
END_TEST

/* ---- signals, closed descriptors, limits, two runs ------------------------------------------- */

/* A program with the SIGINT or SIGTERM of a moment ends by itself, soon, and then continues to the
   same bytes. */
START_TEST(signalled_at_random_moments_and_resumed) {
    const Job *j = &jobs[_i];
    const int signals = whole ? 40 : 3;
    const double seconds = reference(j, "whole", "--max_steps 4");
    const char *output = in_work("signalled");
    double longest = 0;
    int sent = 0, finished = 0;
    for (int status = 1; sent < signals || status; finished += !status) {
        if (!status || !sent) begin_anew(output);
        const pid_t pid = start(j, output, "",
                                has_checkpoint(output) ? "--max_steps 4 --resume"
                                                       : "--max_steps 4 --overwrite_output_dir");
        const uint32_t draw = random4(seed, RANDOM_DATA, 2, (uint32_t)_i, (uint32_t)sent, 0).v[0];
        status = wait_for(pid, sent < signals ? (double)random_uniform(draw) * seconds : 600);
        const int number = sent % 2 ? SIGTERM : SIGINT;
        if (status == -1) {
            const double began = now_seconds();
            kill(pid, number);
            status = wait_for(pid, 600);
            longest = fmax(longest, now_seconds() - began);
            sent++;
        }
        const int end = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        ck_assert_msg(status != -1 && (end == 0 || end == 128 + number),
                      "%s after signal %d ends with %d: %s", j->name, number, end, errors());
        status = end;
        if (!status) assert_same_output(j, "whole", output, "signals");
    }
    printf("  %s: %d signals, the last to end took %.1f s; %d runs finished with the same bytes\n",
           j->name, sent, longest, finished);
}
END_TEST

START_TEST(closed_descriptors_change_nothing) {
    static const char *const closed[] = {"<&-",      ">&-",      "2>&-",        "<&- >&-",
                                         "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"};
    const Job *j = &jobs[_i];
    const char *output = in_work("closed");
    char before[128];
    reference(j, "whole", "--max_steps 2");
    for (int i = 0; i < 7; i++) {
        begin_anew(output);
        snprintf(before, sizeof before, "sh -c 'exec \"$0\" \"$@\" %s'", closed[i]);
        const int status = run(j, output, before, "--max_steps 2");
        ck_assert_msg(status == 0, "%s %s ends with %d: %s", j->name, closed[i], status, errors());
        assert_same_output(j, "whole", output, closed[i]);
    }
}
END_TEST

/* Files of at most n KiB: the run ends in words, and a repetition without the limit completes it.
 */
START_TEST(a_limit_on_files_ends_in_words) {
    const Job *j = &jobs[_i];
    const char *output = in_work("limited");
    char before[128], more[128];
    int ended = 0, fitted = 0;
    reference(j, "whole", "--max_steps 2");
    for (int n = 1; n < 1 << 15; n *= whole ? 2 : 16) {
        begin_anew(output);
        snprintf(before, sizeof before, "bash -c 'ulimit -f %d; exec \"$0\" \"$@\"'", n);
        int status = run(j, output, before, "--max_steps 2");
        // text and errors are files, too, so the words may be missing
        ck_assert_msg(status <= 2, "%s with files of %d KiB ends with %d", j->name, n, status);
        ended += status != 0;
        fitted += status == 0;
        snprintf(more, sizeof more, "--max_steps 2 %s", again(output));
        if (status) status = run(j, output, "", more);
        ck_assert_msg(status == 0, "%s after files of %d KiB ends with %d: %s", j->name, n, status,
                      errors());
        assert_same_output(j, "whole", output, "a limit on files");
    }
    ck_assert_int_gt(ended, 0);
    printf("  %s: of the limits on the size of a file, %d ended the run and %d did not\n", j->name,
           ended, fitted);
}
END_TEST

/* Of two runs in one output one is refused, or, where the first ends within the second for which a
   lock is waited for, they come one after the other. The output has the bytes of a run alone. */
START_TEST(two_runs_in_one_output) {
    const Job *j = &jobs[_i];
    const char *output = in_work("shared");
    reference(j, "whole", "--max_steps 3");
    for (int i = 0; i < (whole ? 10 : 2); i++) {
        begin_anew(output);
        const pid_t first = start(j, output, "", "--max_steps 3");
        usleep((useconds_t)(i * 20000));
        const pid_t second = start(j, output, "", "--max_steps 3 --overwrite_output_dir");
        const int a = wait_for(first, 600), b = wait_for(second, 600);
        const int refused = a ? a : b;
        ck_assert_msg((!a || !b) && WIFEXITED(refused) && (!refused || WEXITSTATUS(refused) == 2),
                      "%s: status %x and %x: %s", j->name, a, b, errors());
        assert_same_output(j, "whole", output, "two runs at once");
    }
}
END_TEST

/* ---- a full disk, a read-only disk ----------------------------------------------------------- */

static void write_line(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

/* A small disk of this process alone, at W/disk; it is gone with the process. False, and it says
 * so, where that is not allowed. */
static bool small_disk(const char *what) {
    char map[64];
    const long user = getuid(), group = getgid();
    const char *disk = in_work("disk");
    bool allowed = !unshare(CLONE_NEWNS);
    if (!allowed && !unshare(CLONE_NEWUSER | CLONE_NEWNS)) {
        allowed = true;
        write_line("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %ld 1", user);
        write_line("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %ld 1", group);
        write_line("/proc/self/gid_map", map);
    }
    mkdir(disk, 0777);
    allowed = allowed && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
              !mount("tmpfs", disk, "tmpfs", 0, "size=96m");
    if (!allowed)
        printf("  %s: left out, mounting is not permitted here (%s)\n", what, strerror(errno));
    return allowed;
}

/* Leaves `room` bytes of W/disk. */
static void fill_disk(size_t room) {
    struct statvfs s;
    const char *disk = in_work("disk");
    ck_assert_int_eq(statvfs(disk, &s), 0);
    const size_t left = s.f_bavail * s.f_frsize;
    ck_assert_uint_ge(left, room);
    ck_assert_int_eq(shell("head -c %zu /dev/zero >%s/filler", left - room, disk), 0);
}

static size_t bytes_used(const char *path) {
    char command[512];
    size_t kib = 0;
    snprintf(command, sizeof command, "du -sk %s", path);
    FILE *f = popen(command, "r");
    if (!f || fscanf(f, "%zu", &kib) != 1) ck_abort_msg("%s", command);
    pclose(f);
    return kib << 10;
}

/* The checkpoints of output are those of W/all, or of W/ended, without moments. */
static void assert_whole_checkpoints(const Job *j, const char *output, size_t room) {
    const int differ = shell(
        "cd %s && for c in $(ls -d checkpoint-* 2>/dev/null | grep 'checkpoint-[0-9]*$'); do "
        "diff -r $c %s/all/$c || diff -r $c %s/ended/$c || exit 1; done",
        output, work, work);
    ck_assert_msg(!differ, "%s with %zu bytes of room: a checkpoint is not whole", j->name, room);
}

START_TEST(a_disk_that_fills_up_costs_nothing) {
    const Job *j = &jobs[_i];
    if (!small_disk(j->name)) return;
    const char *output = in_work("disk/out");
    reference(j, "all", "--max_steps 3 --save_total_limit 0 --keep_moments");
    reference(j, "ended", "--max_steps 3 --save_total_limit 0");
    reference(j, "whole", "--max_steps 3");
    const size_t most = bytes_used(in_work("all")) * 3 / 2;
    const int sizes = whole ? 40 : 4;
    int full = 0, fitted = 0, resumed = 0;
    for (int i = 0; i <= sizes; i++) {
        size_t room = most / (size_t)sizes * (size_t)i +
                      random4(seed, RANDOM_DATA, 1, (uint32_t)_i, (uint32_t)i, 0).v[0] % 65536;
        char more[128] = "--max_steps 3";
        begin_anew(output);
        fill_disk(room);
        int status = run(j, output, "", more);
        if (status == 0) {
            fitted++;
        } else {
            ck_assert_msg(gave_up_in_words(status), "%s with %zu bytes of room ends with %d: %s",
                          j->name, room, status, errors());
            ck_assert_msg(strstr(errors(), "No space left"), "%s with %zu bytes of room: %s",
                          j->name, room, errors());
            ck_assert_msg(status == 1 || !has_checkpoint(output),
                          "%s with %zu bytes of room ends with %d: %s", j->name, room, status,
                          errors());
            full++;
            assert_whole_checkpoints(j, output, room);
            ck_assert_int_eq(shell("rm %s/disk/filler", work), 0);
            resumed += has_checkpoint(output);
            snprintf(more, sizeof more, "--max_steps 3 %s", again(output));
            status = run(j, output, "", more);
            ck_assert_msg(status == 0, "%s, after %zu bytes of room, ends with %d: %s", j->name,
                          room, status, errors());
        }
        ck_assert_int_eq(shell("rm -f %s/disk/filler", work), 0);
        assert_same_output(j, "whole", output, "a full disk");
    }
    ck_assert_msg(full > 0 && fitted > 0, "%s: full %d times, fitted %d times", j->name, full,
                  fitted);
    printf(
        "  %s: full at %d of %d sizes from 0 to %.1f MB; %d of them were resumed, the others begun "
        "anew, all to the same bytes\n",
        j->name, full, sizes + 1, 1e-6 * (double)most, resumed);
}
END_TEST

/* Over an older result, OUTPUT holds that, or the new one, or a checkpoint of the new run, and
   never a part of a model. */
START_TEST(a_disk_that_fills_up_leaves_no_part_of_a_model) {
    if (!small_disk("an older model on a full disk")) return;
    const Job *j = &jobs[0];
    const char *output = in_work("disk/out");
    reference(j, "older", "--max_steps 2 --seed 8");
    reference(j, "newer", "--max_steps 2");
    ck_assert_int_eq(shell("rm -rf %s/older/checkpoint-*", work), 0);
    const size_t most = bytes_used(in_work("newer"));
    int failed = 0, replaced = 0;
    for (int i = 0, n = whole ? 40 : 4; i <= n; i++) {
        begin_anew(output);
        ck_assert_int_eq(shell("cp -r %s/older/. %s", work, output), 0);
        fill_disk(most / (size_t)n * (size_t)i);
        const int status = run(j, output, "", "--max_steps 2 --overwrite_output_dir");
        ck_assert_msg(status == 0 || gave_up_in_words(status), "status %d: %s", status, errors());
        const bool newer =
            !shell("cmp -s %s/newer/model.safetensors %s/model.safetensors", work, output);
        const bool none = shell("ls %s/model.safetensors >/dev/null 2>&1", output);
        const bool left = older_is_whole(output) || (none && has_checkpoint(output));
        ck_assert_msg(newer || (status && left), "status %d: nothing is whole in OUTPUT", status);
        failed += status != 0;
        replaced += newer;
        ck_assert_int_eq(shell("rm %s/disk/filler", work), 0);
    }
    ck_assert_msg(failed > 0 && replaced > 0, "failed %d times, replaced %d times", failed,
                  replaced);
    printf("  sft over an older model: failed %d times, replaced %d times, broken never\n", failed,
           replaced);
}
END_TEST

START_TEST(a_directory_that_cannot_be_written_is_refused) {
    const Job *j = &jobs[_i];
    if (!small_disk(j->name)) return;
    const char *output = in_work("disk/out"), *disk = in_work("disk");
    begin_anew(output);
    ck_assert_int_eq(run(j, output, "", "--max_steps 2"), 0);
    ck_assert_int_eq(shell("rm -rf %s/copy && cp -r %s %s/copy", work, output, work), 0);
    ck_assert_int_eq(mount("tmpfs", disk, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=96m"), 0);
    const char *more[] = {"--max_steps 2", "--max_steps 2 --resume",
                          "--max_steps 2 --overwrite_output_dir"};
    for (int i = 0; i < 4; i++) {
        const int status =
            i < 3 ? run(j, output, "", more[i]) : run(j, in_work("disk/new"), "", more[0]);
        ck_assert_msg(gave_up_in_words(status), "%s %s ends with %d: %s", j->name, more[i % 3],
                      status, errors());
        if (i)
            ck_assert_msg(strstr(errors(), "Read-only"), "%s %s: %s", j->name, more[i % 3],
                          errors());
        ck_assert_int_eq(shell("diff -r %s/copy %s", work, output), 0);
    }
}
END_TEST

/* ---- no memory ------------------------------------------------------------------------------- */

/* One run with a fault: it ends in words, or as if nothing had happened. 1 when it went on. */
static int survives(const Job *j, const char *kind, long n, const char *more) {
    char before[512], after[64];
    const char *output = in_work("faulty");
    snprintf(before, sizeof before, "FAULT='%s %ld' LD_PRELOAD=%s/faults.so", kind, n, build());
    snprintf(after, sizeof after, "%s %ld", kind, n);
    prepare(j, output);
    const int status = run(j, output, before, more);
    ck_assert_msg(status == 0 || gave_up_in_words(status), "%s with %s ends with %d: %s", j->name,
                  before, status, errors());
    if (!status) assert_same_output(j, "whole", output, after);
    return !status;
}

START_TEST(an_allocation_that_fails_is_survived_or_said) {
    const Job *j = &jobs[_i];
    if (SANITIZED) {
        printf("  %s without memory: left out, this build has a sanitizer\n", j->name);
        return;
    }
    const char *more = strstr(j->flags, "--output")
                           ? strstr(j->flags, "--resume") ? "--max_steps 2" : "--max_steps 1"
                           : "";
    char before[512];
    long calls, sites;
    reference(j, "whole", more);
    prepare(j, in_work("counted"));
    snprintf(before, sizeof before, "FAULT=count FAULTS=%s/count LD_PRELOAD=%s/faults.so", work,
             build());
    ck_assert_int_eq(run(j, in_work("counted"), before, more), 0);
    FILE *f = fopen(in_work("count"), "r");
    ck_assert(f && fscanf(f, "%ld %ld", &calls, &sites) == 2 && calls > sites && sites > 100);
    fclose(f);
    // every place; of all calls, some: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, ...
    int tried = 0, went_on = 0;
    for (long n = 1 + (whole ? 0 : _i); n <= sites; n += whole ? 1 : sites / 6) {
        went_on += survives(j, "site", n, more);
        tried++;
    }
    for (long n = 1; n <= calls; n = whole ? n + 1 + n / 8 : 12 * n) {
        went_on += survives(j, "call", n, more);
        tried++;
    }
    printf(
        "  %s: %ld allocations at %ld places; %d failed, one a run: %d runs ended in words, %d "
        "went on to the same bytes\n",
        j->name, calls, sites, tried, tried - went_on, went_on);
}
END_TEST

/* ---- valgrind -------------------------------------------------------------------------------- */

START_TEST(valgrind_finds_nothing) {
    const Job *j = &jobs[_i];
    if (!whole) return;
    if (SANITIZED || shell("command -v valgrind >/dev/null")) {
        printf("  %s under valgrind: left out, %s\n", j->name,
               SANITIZED ? "this build has a sanitizer" : "it is not installed");
        return;
    }
    prepare(j, in_work("valgrind"));
    const double began = now_seconds();
    const int status = run(j, in_work("valgrind"),
                           "valgrind -q --error-exitcode=99 --leak-check=full "
                           "--show-leak-kinds=definite --errors-for-leak-kinds=definite",
                           strstr(j->flags, "--resume")   ? "--max_steps 2"
                           : strstr(j->flags, "--output") ? "--max_steps 1"
                                                          : "");
    ck_assert_msg(status == 0, "%s under valgrind ends with %d: %s", j->name, status, errors());
    printf("  %s: valgrind finds no error and no definite leak, %.0f s\n", j->name,
           now_seconds() - began);
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    const char *number = getenv("TORTURE_SEED"), *only = argc > 2 ? argv[2] : NULL;
    whole = argc > 1 && !strcmp(argv[1], "whole");
    seed = number ? strtoull(number, NULL, 10) : 1;
    setlinebuf(stdout);
    if (!mkdtemp(work)) die("cannot make %s: %s", work, strerror(errno));
    const char *const data[] = {"sft", "summaries", "domain", "preferences", "prompts"};
    for (int i = 0; i < 5; i++)
        if (shell(
                "head -16 test/tiny/%s.jsonl >%s/%s && head -4 test/tiny/%s-eval.jsonl >%s/%s-eval",
                data[i], work, data[i], data[i], work, data[i]))
            die("the records of the built-in world are not here");
    if (shell("head -4 test/tiny/multiple-choice.jsonl >%s/multiple-choice", work))
        die("the records of the built-in world are not here");
    printf("check_torture: %s; random moments are drawn from TORTURE_SEED=%llu\n",
           whole ? "the whole" : "the short form, `make torture` is the whole",
           (unsigned long long)seed);
    Suite *s = suite_create("torture");
    TCase *c = tcase_create("torture");
    tcase_set_timeout(c, 36000);
    const struct {
        const char *name;
        const TTest *test;
        int jobs;
    } tests[] = {{"kill", killed_at_random_moments_and_resumed, STAGES},
                 {"operations", killed_at_every_operation_on_files_and_resumed, STAGES},
                 {"over", killed_over_an_older_result_and_repeated, STAGES},
                 {"signals", signalled_at_random_moments_and_resumed, whole ? STAGES : 2},
                 {"descriptors", closed_descriptors_change_nothing, whole ? STAGES : 1},
                 {"limits", a_limit_on_files_ends_in_words, whole ? STAGES : 1},
                 {"two", two_runs_in_one_output, whole ? STAGES : 1},
                 {"disk", a_disk_that_fills_up_costs_nothing, whole ? STAGES : 1},
                 {"older", a_disk_that_fills_up_leaves_no_part_of_a_model, 1},
                 {"read-only", a_directory_that_cannot_be_written_is_refused, whole ? STAGES : 1},
                 {"memory", an_allocation_that_fails_is_survived_or_said, JOBS},
                 {"valgrind", valgrind_finds_nothing, JOBS}};
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (!only || !strcmp(only, tests[i].name))
            tcase_add_loop_test(c, tests[i].test, 0, tests[i].jobs);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    shell("rm -rf %s", work);
    return failed != 0;
}
