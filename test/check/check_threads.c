/*
 * check_threads.c - threads that wait for others let other processes run, unless the user's
 * environment says otherwise (common/model/device.c).
 */
#include <omp.h>
#include <string.h>
#include <unistd.h>

#include "model/kernels.h"
#include "program.h"

extern void kmp_set_blocktime(int) __attribute__((weak));  // only clang's libomp has it

static char directory[] = "/tmp/check_threads.XXXXXX";

/* Runs sft (before: words before its name, such as NAME=VALUE) and fails unless this is the last
   value of GOMP_SPINCOUNT that the runtime prints. */
static void expect_spins(const char *before, const char *value) {
    ck_assert_int_eq(shell("env OMP_DISPLAY_ENV=verbose OMP_NUM_THREADS=2 %s %s/sft --dry_run "
                           "--model test/tiny/chat --data test/tiny/sft.jsonl >%s/text 2>&1",
                           before, build(), directory),
                     0);
    ck_assert_msg(!shell("grep ' GOMP_SPINCOUNT *=' %s/text | tail -1 | grep -q \"= *'%s'\"",
                         directory, value),
                  "with '%s' GOMP_SPINCOUNT is not %s", before, value);
}

START_TEST(libgomp_spins_briefly) {
    if (kmp_set_blocktime) return;
    expect_spins("", "2000");
    expect_spins("env -i OMP_DISPLAY_ENV=verbose OMP_NUM_THREADS=2", "2000");
}
END_TEST

START_TEST(the_users_spins_are_kept) {
    if (kmp_set_blocktime) return;
    expect_spins("GOMP_SPINCOUNT=300000", "300000");
    expect_spins("GOMP_SPINCOUNT=777", "777");
    expect_spins("OMP_WAIT_POLICY=passive", "0");
}
END_TEST

/* One thread waits for nobody. A program behind ld.so cannot start itself again: the file that is
   executed is ld.so. */
START_TEST(programs_that_do_not_start_again) {
    if (kmp_set_blocktime) return;
    char loader[512];
    snprintf(loader, sizeof loader,
             "$(ldd %s/sft | sed -n 's/^[[:space:]]*\\(\\/[^ ]*ld-linux[^ ]*\\).*/\\1/p')",
             build());
    expect_spins(loader, "300000");
    expect_spins("OMP_NUM_THREADS=1", "300000");
}
END_TEST

/* libomp uses fewer threads while others run; this program, called with an argument, says whether
   it would. libgomp's choice by the load of 15 minutes is not used. */
static int dynamic(const char *environment) {
    return shell("env -u OMP_DYNAMIC -u OMP_NUM_THREADS %s %s/check_threads dynamic", environment,
                 build());
}

START_TEST(libomp_shares_the_machine) {
    ck_assert_int_eq(dynamic(""), kmp_set_blocktime != NULL);
    ck_assert_int_eq(dynamic("OMP_DYNAMIC=false"), 0);
    ck_assert_int_eq(dynamic("OMP_NUM_THREADS=2"), 0);
    ck_assert_int_eq(dynamic("OMP_WAIT_POLICY=active"), 0);
    ck_assert_int_eq(dynamic("KMP_BLOCKTIME=200"), 0);
}
END_TEST

/* The program is the same process with the same name, arguments and standard input. */
START_TEST(nothing_else_changes) {
    ck_assert_int_eq(shell("cd %s && mkfifo in && { OMP_NUM_THREADS=2 %s%s/sft --model "
                           "\"$OLDPWD/test/tiny/chat\" --temperature 0 --max_new_tokens 8 --chat "
                           "<in >out 2>err & } && exec 3>in && echo 'Where is  Anna?' >&3 && "
                           "while ! [ -s out ] && kill -0 $!; do sleep 0.1; done && "
                           "cat /proc/$!/comm >name && tr '\\0' '\\n' </proc/$!/cmdline >words && "
                           "exec 3>&- && wait $!",
                           directory, *build() == '/' ? "" : "$OLDPWD/", build()),
                     0);
    ck_assert_int_eq(shell("cd %s && test \"$(cat name)\" = sft && sed -n 8p words | "
                           "grep -qx -e --chat && tail -n +2 words | head -n 1 | "
                           "grep -qx -e --model",
                           directory),
                     0);
    ck_assert_int_eq(shell("echo 'Where is  Anna?' | GOMP_SPINCOUNT=300000 OMP_NUM_THREADS=2 "
                           "%s/sft --model test/tiny/chat --temperature 0 --max_new_tokens 8 "
                           "--chat 2>%s/err | cmp - %s/out",
                           build(), directory, directory),
                     0);
}
END_TEST

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        device_init();
        return omp_get_dynamic();
    }
    // people and Makefiles set these for all tests
    unsetenv("GOMP_SPINCOUNT");
    unsetenv("KMP_BLOCKTIME");
    unsetenv("OMP_WAIT_POLICY");
    if (!mkdtemp(directory)) return 1;
    const TTest *const tests[] = {libgomp_spins_briefly, the_users_spins_are_kept,
                                  programs_that_do_not_start_again, libomp_shares_the_machine,
                                  nothing_else_changes};
    const int failed = run_tests("threads", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", directory);
    return failed != 0;
}
