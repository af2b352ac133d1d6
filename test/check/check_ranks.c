/*
 * check_ranks.c - several processes (common/ranks.h): the model, the log and the checkpoints of all
 * seven programs are those of one process with the same --shards, byte for byte. Without mpirun the
 * tests have nothing to run.
 */
#include <string.h>
#include <unistd.h>

#include "program.h"

static char directory[] = "/tmp/check_ranks.XXXXXX";

/* Open MPI refuses root, and more processes than processors, unless it is told not to. It does not
   free all of its own memory. */
#define MPIRUN                                                                               \
    "ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " \
    "OMP_NUM_THREADS=1 "                                                                     \
    "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none "           \
    "${MPIRUN-mpirun} -n"

/* mpirun may be there and yet be unable to start anything, as in a container without a network. */
static bool has_mpirun(void) {
    static int failed = -1;  // not known yet
    if (failed < 0)
        failed = shell("test -x %s/sft_mpi && " MPIRUN " 2 true >/dev/null 2>&1", build()) != 0;
    return !failed;
}

#define TINY "--model test/tiny "
#define TRAINED                                          \
    "--per_device_train_batch_size 3 --logging_steps 1 " \
    "--warmup_steps 1 --save_total_limit 0 "
#define DOMAIN "--data test/tiny/domain.jsonl --eval test/tiny/domain-eval.jsonl --eval_samples 2 "

/* One short run of each program, and of kinds of them that add up their gradients or figures in
   other ways. */
static const struct Case {
    const char *program, *flags;
} cases[] = {
    {"sft",
     "--model test/tiny/chat --data test/tiny/sft.jsonl --validation_split_percentage 5 "
     "--eval_samples 2 --max_new_tokens 4 --neftune_noise_alpha 5 --dropout 0.1 " TRAINED},
    {"full_ft", TINY DOMAIN
     "--max_new_tokens 4 --eval_steps 2 --learning_rate 0.3 --load_best_model_at_end " TRAINED},
    {"full_ft", "--init d2-c32-h2-t64 --bf16 " TINY DOMAIN "--max_new_tokens 4 " TRAINED},
    {"lora", TINY DOMAIN "--max_new_tokens 4 --lora_dropout 0.1 " TRAINED},
    {"lora", TINY DOMAIN "--max_new_tokens 4 --load_in_4bit " TRAINED},
    {"adapter", TINY DOMAIN "--max_new_tokens 4 --train_layernorm " TRAINED},
    {"reward", "--model test/tiny/chat --data test/tiny/preferences.jsonl --dropout 0.1 " TRAINED},
    {"ppo",
     "--model test/tiny/chat --reward_model test/tiny/reward --data "
     "test/tiny/prompts.jsonl --batch_size 12 --response_length 12 --eval "
     "test/tiny/prompts-eval.jsonl --eval_samples 3 --whiten_rewards --entropy_coef 0.01 "
     "--num_ppo_epochs 2 --ptx_data test/tiny/sft.jsonl --dump_rollouts %s.dump " TRAINED},
    {"ppo",
     "--model test/tiny/chat --reward_cmd 'sed -u \"s/.*/{\\\"score\\\": 1}/\"' --data "
     "test/tiny/prompts.jsonl --batch_size 8 --num_mini_batches 2 --response_length 12 "
     "--num_generations 2 --advantage rloo --target_kl 1e-4 " TRAINED},
    {"constitutional",
     "--model test/tiny/chat --prompts test/tiny/prompts.jsonl --eval "
     "test/tiny/prompts-eval.jsonl --eval_samples 3 --max_iterations 1 "
     "--max_new_tokens 12 --data test/tiny/sft.jsonl " TRAINED},
};
enum { CASES = sizeof cases / sizeof *cases };

/* Runs a case in `processes` processes (0: the program without MPI) with --output NAME, and fails
   unless it ends with 0. */
static void run_case(const struct Case *c, int processes, const char *name, const char *more) {
    char output[256], flags[2048], start[512] = "OMP_NUM_THREADS=1";
    snprintf(output, sizeof output, "%s/%s", directory, name);
    snprintf(flags, sizeof flags, c->flags, output);
    if (processes) snprintf(start, sizeof start, MPIRUN " %d", processes);
    const int status = shell("%s %s/%s%s %s %s --output %s >%s.txt 2>&1 </dev/null", start, build(),
                             c->program, processes ? "_mpi" : "", flags, more, output, output);
    if (status) shell("cat %s.txt", output);
    ck_assert_msg(!status, "%s in %d processes ended with %d", c->program, processes, status);
}

/* Both outputs have the same files with the same bytes. run.json names the command line. */
static void expect_same(const char *a, const char *b) {
    ck_assert_msg(
        !shell(
            "cd %s && diff -r -x run.json %s %s && if test -e %s.dump; then cmp %s.dump %s.dump; "
            "fi",
            directory, a, b, a, a, b),
        "%s and %s differ", a, b);
}

static void clear(void) { ck_assert_int_eq(shell("rm -rf %s/*", directory), 0); }

START_TEST(any_number_of_processes_gives_the_same_bytes) {
    const struct Case *c = &cases[_i];
    if (!has_mpirun()) return;
    run_case(c, 0, "alone", "--max_steps 3 --save_steps 2 --shards 4");
    for (int processes = 2; processes <= 4; processes *= 2) {
        run_case(c, processes, "many", "--max_steps 3 --save_steps 2 --shards 4");
        expect_same("alone", "many");
        ck_assert_int_eq(shell("rm -rf %s/many*", directory), 0);
    }
    clear();
}
END_TEST

/* A checkpoint of four processes is continued by two, and by one or by the program without MPI. */
START_TEST(a_run_resumes_in_another_number_of_processes) {
    const struct Case *c = &cases[_i];
    const char *flags = "--max_steps 4 --save_steps 2 --keep_moments --shards 4";
    if (!has_mpirun()) return;
    run_case(c, 4, "whole", flags);
    for (int processes = _i % 2; processes <= 2; processes += 2 - _i % 2) {
        ck_assert_int_eq(shell("cd %s && cp -r whole part && rm -rf part/checkpoint-4 && if test "
                               "-e whole.dump; then cp whole.dump part.dump; fi",
                               directory),
                         0);
        run_case(c, processes, "part",
                 "--max_steps 4 --save_steps 2 --keep_moments --shards 4 --resume");
        expect_same("whole", "part");
        ck_assert_int_eq(shell("rm -rf %s/part*", directory), 0);
    }
    clear();
}
END_TEST

/* Some shards have no sequence, and some processes have none. */
START_TEST(fewer_sequences_than_shards) {
    const char *flags =
        "--max_steps 3 --shards 8 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 3";
    static const int which[] = {0, 3, 6, 9};
    if (!has_mpirun()) return;
    run_case(&cases[which[_i]], 0, "alone", flags);
    for (int processes = 2; processes <= 8; processes *= 4) {
        run_case(&cases[which[_i]], processes, "many", flags);
        expect_same("alone", "many");
        ck_assert_int_eq(shell("rm -rf %s/many*", directory), 0);
    }
    clear();
}
END_TEST

/* MB of activations that the plan in the file NAME.txt has, of all models. mpirun breaks its lines.
 */
static double planned(const char *name) {
    char command[512];
    double mb = 0;
    snprintf(command, sizeof command,
             "tr '\\r\\n' '  ' <%s/%s.txt | grep -o 'activations *[0-9.]*'", directory, name);
    FILE *f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fscanf(f, "activations %lf", &mb), 1);
    pclose(f);
    return mb;
}

/* Of a step of one micro-batch of 16, a process of four computes about a quarter. Its plan counts
   that, and is enough: a longer batch would end the run. (constitutional cuts its batches by the
   plan.) */
START_TEST(a_plan_counts_what_a_process_computes) {
    static const struct Case wide[] = {
        {"reward",
         "--model test/tiny/chat --data test/tiny/preferences.jsonl --validation_split_percentage "
         "0 "
         "--per_device_train_batch_size 16 --gradient_accumulation_steps 1"},
        {"ppo",
         "--model test/tiny/chat --reward_model test/tiny/reward --data test/tiny/prompts.jsonl "
         "--batch_size 16 --per_device_train_batch_size 16 --response_length 12"},
        {"constitutional",
         "--model test/tiny/chat --prompts test/tiny/prompts.jsonl --max_new_tokens 12 "
         "--max_length "
         "64 --dry_run --per_device_train_batch_size 16 --gradient_accumulation_steps 1"},
    };
    if (!has_mpirun()) return;
    run_case(&wide[_i], 0, "alone", "--max_steps 2 --dry_run");
    run_case(&wide[_i], 4, "many", "--max_steps 2 --shards 4");
    const double alone = planned("alone"), many = planned("many");
    ck_assert_msg(many < 0.45 * alone, "%s: %g MB of %g", wide[_i].program, many, alone);
    clear();
}
END_TEST

/* ---- faults ---------------------------------------------------------------------------------- */

/* Starts two processes of sft through a script, which runs in the directory host0 or host1 of the
   test, writes its number to `pid`, and runs `own`, which knows $rank, before it becomes sft.
   Returns the exit status of the command line `meanwhile`, which knows mpirun as $!, and 255 if
   mpirun has still not ended after 20 seconds. Its status is in the file `status`, and what was
   printed in `text`. */
static int run_hosts(const char *own, const char *flags, const char *meanwhile) {
    char script[512];
    snprintf(script, sizeof script, "%s/start", directory);
    FILE *f = fopen(script, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f,
            "#!/bin/sh\nrank=${OMPI_COMM_WORLD_RANK-$PMI_RANK}\nprogram=$1\nshift\n"
            "cd %s/host$rank || exit 3\necho $$ >pid\n%s\n"
            "exec $program \"$@\"\n",
            directory, own);
    fclose(f);
    ck_assert_int_eq(shell("chmod +x %s && cd %s && mkdir -p host0 host1 && for r in 0 1; do "
                           "cp $OLDPWD/test/tiny/sft.jsonl host$r/data.jsonl; done; ln -sfn "
                           "../host0/out host1/out",
                           script, directory),
                     0);
    return shell("program=$(realpath %s/sft_mpi); tiny=$(realpath test/tiny); cd %s && " MPIRUN
                 " 2 ./start $program --model $tiny/chat --data data.jsonl --eval_samples 0 "
                 "--logging_steps 1 --shards 2 %s >text 2>&1 </dev/null & "
                 "cd %s; { %s; } && i=0 && while kill -0 $! 2>/dev/null && [ $i -lt 200 ]; do "
                 "sleep 0.1; i=$((i + 1)); done; kill -0 $! 2>/dev/null && exit 255; wait $!; "
                 "echo $? >status",
                 build(), directory, flags, directory, meanwhile);
}

/* Exactly one line of what was printed is an error, and it contains this. */
static void expect_error(const char *what) {
    if (shell("cd %s && test $(grep -c '^error: ' text) = 1 && grep '^error: ' text | grep -q -- "
              "\"%s\" && test $(cat status) != 0",
              directory, what))
        ck_abort_msg("not one error with \"%s\": %d", what, shell("cat %s/text", directory));
}

START_TEST(an_error_of_all_is_printed_once) {
    if (!has_mpirun()) return;
    ck_assert_int_eq(run_hosts("", "--no_such_flag", "true"), 0);
    expect_error("rank 0 on .*: there is no flag --no_such_flag");
    clear();
}
END_TEST

START_TEST(other_data_and_other_programs_are_noticed) {
    if (!has_mpirun()) return;
    ck_assert_int_eq(
        run_hosts("[ $rank = 0 ] || sed -i 's/Anna/Bert/' data.jsonl", "--max_steps 2", "true"), 0);
    expect_error("the content of --data of rank 1 on .* is not that of rank 0");
    clear();
    ck_assert_int_eq(run_hosts("cp $program other; program=./other; echo $rank >>other",
                               "--max_steps 2", "true"),
                     0);
    expect_error("the program of rank 1 on .* is not that of rank 0");
    clear();
    ck_assert_int_eq(run_hosts("set -- \"$@\" --seed $rank", "--max_steps 2", "true"), 0);
    expect_error("the command line of rank 1 on .* is not that of rank 0");
    clear();
    ck_assert_int_eq(
        run_hosts("[ $rank = 0 ] || sed -i 1s/^./x/ data.jsonl", "--max_steps 2 --strict", "true"),
        0);
    expect_error("rank 1 on .*data.jsonl:1");
    clear();
}
END_TEST

#define WAIT_FOR(file) "while ! [ -e " file " ] && kill -0 $!; do sleep 0.05; done"
#define LONG "--max_steps 40 --save_steps 2 --output out"

/* The same command with --resume finishes the run, with the bytes of a run that was not disturbed.
   It may take as long as it does: with sanitizers, 40 steps take more than 20 seconds. */
static void expect_resumed(void) {
    const char *flags =
        "--model test/tiny/chat --data test/tiny/sft.jsonl --eval_samples 0 "
        "--logging_steps 1 --shards 2 --max_steps 40 --save_steps 2";
    ck_assert_int_eq(run_hosts("", LONG " --resume", "while kill -0 $!; do sleep 0.05; done"), 0);
    ck_assert_int_eq(shell("test $(cat %s/status) = 0", directory), 0);
    ck_assert_int_eq(shell("OMP_NUM_THREADS=1 %s/sft %s --output %s/whole >%s/text 2>&1", build(),
                           flags, directory, directory),
                     0);
    expect_same("whole", "host0/out");
}

START_TEST(a_process_that_dies_ends_all) {
    static const char *const signals[] = {"KILL", "STOP"};
    if (!has_mpirun()) return;
    for (int i = 0; i < 2; i++) {
        char meanwhile[256];
        snprintf(meanwhile, sizeof meanwhile,
                 WAIT_FOR("host0/out/checkpoint-2") "; kill -%s $(cat host1/pid)", signals[i]);
        ck_assert_int_eq(run_hosts("", LONG, meanwhile), 0);
        ck_assert_int_eq(shell("test $(cat %s/status) != 0", directory), 0);
        if (i == 1) expect_error("rank 1 on .* has given no sign of life for 10 seconds");
        expect_resumed();
        clear();
    }
}
END_TEST

START_TEST(a_full_disk_ends_all) {
    if (!has_mpirun()) return;
    ck_assert_int_eq(
        run_hosts("", LONG,
                  WAIT_FOR("host0/out/checkpoint-2") "; prlimit --pid "
                                                     "$(cat host0/pid) --fsize=200000"),
        0);
    expect_error("rank 0 on .*checkpoint-[0-9]* is not written");
    expect_resumed();
    clear();
}
END_TEST

/* mpirun passes SIGUSR1 on to all processes, and SIGTERM is sent to one of them alone: all stop
   after the same step. */
START_TEST(a_signal_saves_and_stops) {
    static const char *const kills[] = {"-USR1 $!", "-TERM $(cat host1/pid)"};
    if (!has_mpirun()) return;
    for (int i = 0; i < 2; i++) {
        char meanwhile[256];
        snprintf(meanwhile, sizeof meanwhile, WAIT_FOR("host0/out/checkpoint-2") "; kill %s",
                 kills[i]);
        ck_assert_int_eq(run_hosts("", LONG, meanwhile), 0);
        ck_assert_int_eq(
            shell("grep -q '^stopped at step .*--resume continues' %s/text", directory), 0);
        expect_resumed();
        clear();
    }
}
END_TEST

/* An output that is moved gets a last checkpoint, of all processes together. */
START_TEST(a_moved_output_gets_a_last_checkpoint) {
    if (!has_mpirun()) return;
    ck_assert_int_eq(run_hosts("", LONG " --save_steps 30",
                               WAIT_FOR("host0/out/log.jsonl") "; mv host0/out host0/moved"),
                     0);
    expect_error("--output out was moved to .*/host0/moved .* is complete: continue with");
    ck_assert_int_eq(shell("cd %s/host0 && ! ls out && ls moved/checkpoint-*/state.safetensors && "
                           "mv moved out",
                           directory),
                     0);
    expect_resumed();
    clear();
}
END_TEST

static void setup(void) {
    if (!mkdtemp(directory)) exit(1);
    if (!has_mpirun()) printf("note: mpirun starts nothing here, so nothing was run\n");
}

int main(void) {
    Suite *s = suite_create("ranks");
    TCase *bytes = tcase_create("bytes"), *plans = tcase_create("plans"),
          *faults = tcase_create("faults");
    setup();
    tcase_set_timeout(bytes, 600);
    tcase_set_timeout(plans, 600);
    tcase_set_timeout(faults, 600);
    tcase_add_checked_fixture(bytes, clear, NULL);  // also after a test that failed
    tcase_add_checked_fixture(plans, clear, NULL);
    tcase_add_checked_fixture(faults, clear, NULL);
    tcase_add_loop_test(bytes, any_number_of_processes_gives_the_same_bytes, 0, CASES);
    tcase_add_loop_test(bytes, a_run_resumes_in_another_number_of_processes, 0, CASES);
    tcase_add_loop_test(bytes, fewer_sequences_than_shards, 0, 4);
    tcase_add_loop_test(plans, a_plan_counts_what_a_process_computes, 0, 3);
    tcase_add_test(faults, an_error_of_all_is_printed_once);
    tcase_add_test(faults, other_data_and_other_programs_are_noticed);
    tcase_add_test(faults, a_process_that_dies_ends_all);
    tcase_add_test(faults, a_full_disk_ends_all);
    tcase_add_test(faults, a_signal_saves_and_stops);
    tcase_add_test(faults, a_moved_output_gets_a_last_checkpoint);
    suite_add_tcase(s, bytes);
    suite_add_tcase(s, plans);
    suite_add_tcase(s, faults);
    const int failed = run_suite(s);
    shell("rm -rf %s", directory);
    return failed;
}
