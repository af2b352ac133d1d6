/*
 * check_limits.c - the memory that is left under the limits of control groups, and the hash of a
 * model's numbers.
 */
#include "model/limits.h"
#include "model/weights.h"

#include "run_files.h"

#define MIB ((size_t)1 << 20)

/* ---- memory ---------------------------------------------------------------------------------- */

/* A system with 1,000 MiB that are free, in this test's directory. */
static void make_system(void) {
    make_directory();
    const char *const made[] = {"proc", "proc/self", "sys", "sys/fs", "sys/fs/cgroup"};
    for (int i = 0; i < COUNT(made); i++) ck_assert_int_eq(mkdir(at(made[i]), 0777), 0);
    write_text("proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable: 1024000 kB\n");
    write_text("proc/self/status", "Name:\tx\nVmSize:\t  1024 kB\n");
}

/* A group of version 2: its limit, what it uses, and how much of that can be dropped, in MiB. */
static void make_group(const char *name, const char *limit, size_t used, size_t droppable) {
    char path[256], text[64];
    snprintf(path, sizeof path, "sys/fs/cgroup%s", name);
    mkdir(at(path), 0777);
    snprintf(path, sizeof path, "sys/fs/cgroup%s/memory.max", name);
    write_text(path, limit);
    snprintf(path, sizeof path, "sys/fs/cgroup%s/memory.current", name);
    snprintf(text, sizeof text, "%zu\n", used * MIB);
    write_text(path, text);
    snprintf(path, sizeof path, "sys/fs/cgroup%s/memory.stat", name);
    snprintf(text, sizeof text, "anon 5\ninactive_file %zu\n", droppable * MIB);
    write_text(path, text);
}

START_TEST(without_limits_it_is_what_the_machine_has) {
    ck_assert_uint_eq(memory_left(directory), 1000 * MIB);
    write_text("proc/self/cgroup", "0::/\n");
    ck_assert_uint_eq(memory_left(directory), 1000 * MIB);
    make_group("", "max\n", 10, 0);
    ck_assert_uint_eq(memory_left(directory), 1000 * MIB);
    write_text("proc/meminfo", "nothing\n");
    ck_assert_uint_eq(memory_left(directory), SIZE_MAX);
}
END_TEST

/* 300 MiB less 200 in use, of which 50 are pages of files that can be dropped. */
START_TEST(a_group_of_version_2_limits_it) {
    write_text("proc/self/cgroup", "0::/outer/inner\n");
    make_group("/outer", "314572800\n", 200, 50);
    make_group("/outer/inner", "max\n", 100, 0);
    ck_assert_uint_eq(memory_left(directory), 150 * MIB);
    make_group("/outer/inner", "104857600\n", 60, 0);  // the inner one leaves less
    ck_assert_uint_eq(memory_left(directory), 40 * MIB);
    make_group("/outer/inner", "104857600\n", 101, 0);
    ck_assert_uint_eq(memory_left(directory), 0);
}
END_TEST

/* In a container the group has the name of the machine outside, and its files are at the top. */
START_TEST(a_container_limits_it) {
    write_text("proc/self/cgroup", "0::/docker/0123456789abcdef\n");
    make_group("", "314572800\n", 200, 0);
    ck_assert_uint_eq(memory_left(directory), 100 * MIB);
}
END_TEST

START_TEST(a_group_of_version_1_limits_it) {
    write_text("proc/self/cgroup", "12:pids:/a\n4:cpu,memory:/a\n1:name=systemd:/a\n");
    ck_assert_int_eq(mkdir(at("sys/fs/cgroup/memory"), 0777), 0);
    ck_assert_int_eq(mkdir(at("sys/fs/cgroup/memory/a"), 0777), 0);
    write_text("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    write_text("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
    write_text("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "104857600\n");
    write_text("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "52428800\n");
    write_text("sys/fs/cgroup/memory/a/memory.stat",
               "inactive_file 7\ntotal_inactive_file 1048576");
    ck_assert_uint_eq(memory_left(directory), 51 * MIB);
}
END_TEST

/* ---- hashes ---------------------------------------------------------------------------------- */

/* Every bit of every number counts, also changes that a sum would not see. */
START_TEST(a_hash_sees_every_bit) {
    enum { N = 1000 };
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = (float)i * 0.25f - 7;
    const uint64_t hash = hash_floats(HASH_START, x, N);
    ck_assert(hash == hash_floats(HASH_START, x, N));
    for (int i = 0; i < N; i += 37)
        for (int bit = 0; bit < 32; bit++) {
            uint32_t bits;
            const float before = x[i];
            memcpy(&bits, &x[i], sizeof bits);
            bits ^= (uint32_t)1 << bit;
            memcpy(&x[i], &bits, sizeof bits);
            ck_assert(hash != hash_floats(HASH_START, x, N));
            x[i] = before;
        }
    for (int i = 0; i + 33 < N; i += 29)  // two signs; and two numbers exchanged
        for (int far = 1; far < 33; far++) {
            float *a = &x[i], *b = &x[i + far], swap = *a;
            *a = -*a;
            *b = -*b;
            ck_assert((*a == 0 || *b == 0) || hash != hash_floats(HASH_START, x, N));
            *a = *b;
            *b = -swap;
            *a = -*a;
            *b = -*b;
            ck_assert(hash != hash_floats(HASH_START, x, N));
            *a = swap;
            *b = (float)(i + far) * 0.25f - 7;
        }
    ck_assert(hash == hash_floats(HASH_START, x, N));
    ck_assert(hash_floats(HASH_START, x, 16) != hash_floats(HASH_START, x, 17));
    const float zeros[3] = {0};
    ck_assert(hash_floats(HASH_START, zeros, 2) != hash_floats(HASH_START, zeros, 3));
}
END_TEST

START_TEST(the_first_number_that_is_not_finite) {
    float x[100];
    for (int i = 0; i < 100; i++) x[i] = i % 2 ? -3e38f : 1e-45f;
    ck_assert_uint_eq(first_not_finite(x, 100), 100);
    ck_assert_uint_eq(first_not_finite(x, 0), 0);
    x[99] = NAN;
    ck_assert_uint_eq(first_not_finite(x, 100), 99);
    x[3] = -INFINITY;
    ck_assert_uint_eq(first_not_finite(x, 100), 3);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("limits");
    const TTest *const memory[] = {without_limits_it_is_what_the_machine_has,
                                   a_group_of_version_2_limits_it, a_container_limits_it,
                                   a_group_of_version_1_limits_it};
    const TTest *const numbers[] = {a_hash_sees_every_bit, the_first_number_that_is_not_finite};
    add_tests(suite, "memory", make_system, memory, COUNT(memory));
    add_tests(suite, "numbers", make_system, numbers, COUNT(numbers));
    return finish_suite(suite);
}
