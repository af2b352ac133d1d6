/*
 * check_promises.c - what test/README.md promises, on the programs as people run them: nothing is
 * lost, and nothing goes wrong without a word.
 *
 * Each test runs the programs of $BUILD by the shell. They are small runs on the built-in models.
 */
#include "run_files.h"

#include "program.h"

#define QUICK                                                                           \
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --eval_samples 0 " \
    "--warmup_steps 0 --learning_rate 1e-3 --validation_split_percentage 0 "
#define SAVED QUICK "--save_steps 2 --keep_moments "
#define MEASURED                                                                   \
    "--max_steps 4 --save_steps 2 --eval_steps 2 --gradient_accumulation_steps 1 " \
    "--warmup_steps 0 --learning_rate 1e-3 --keep_moments "
#define PPO                                                                                   \
    "--model test/tiny/chat --data pr --batch_size 4 --response_length 8 --num_ppo_epochs 1 " \
    "--per_device_train_batch_size 4 "

/* Runs a shell script in the test's directory, where P/ is the directory of the programs and
   test/tiny that of the models. What it prints is in `said`. Its exit status; 128 + a signal's
   number. */
__attribute__((format(printf, 1, 2))) static int sh(const char *format, ...) {
    char script[8192];
    va_list list;
    va_start(list, format);
    vsnprintf(script, sizeof script, format, list);
    va_end(list);
    write_text("script", script);
    const int status = shell("cd %s && bash script >said 2>&1 </dev/null", directory);
    read_said();
    return status;
}

/* Removes what other tests have left, and this one leaves. */
static void clean(void) {
    sh("ls | grep -vx -e test -e P -e sft -e pr -e dom -e script -e said | xargs rm -rf");
}

#define ck_sh(status, ...)                                                                         \
    do {                                                                                           \
        const int got = sh(__VA_ARGS__);                                                           \
        ck_assert_msg(got == (status), "status %d, expected %d:\n%s", got, (int)(status), said.s); \
    } while (0)

static void setup(void) {
    char here[4096];
    make_directory();
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    ck_assert_int_eq(shell("mkdir %s/test && ln -s %s/test/tiny %s/test/tiny && ln -s %s/%s %s/P",
                           directory, here, directory, here, build(), directory),
                     0);
    ck_sh(0,
          "head -40 test/tiny/sft.jsonl >sft; head -16 test/tiny/prompts.jsonl >pr; "
          "head -40 test/tiny/domain.jsonl >dom");
}

/* ---- a resume compares what was read --------------------------------------------------------- */

START_TEST(another_base_is_refused) {
    ck_sh(0, "P/lora --model test/tiny --data dom " SAVED
             "--max_steps 4 --output lora; "
             "rm -r lora/checkpoint-4");
    ck_sh(2, "P/lora --model test/tiny/chat --data dom " SAVED
             "--max_steps 4 --output lora "
             "--resume");
    assert_said("the content of the model test/tiny/chat is");
    assert_not_said("memory");  // it is refused before memory is planned
    ck_sh(2, "P/lora --model test/tiny/chat --data dom " SAVED
             "--max_steps 4 --output lora "
             "--resume --dry_run");
    ck_sh(0, "P/lora --model test/tiny --data dom " SAVED "--max_steps 4 --output lora --resume");
}
END_TEST

START_TEST(another_reference_is_refused) {
    ck_sh(0, "P/ppo " PPO
             "--reward_model test/tiny/reward --max_steps 2 --save_steps 1 "
             "--keep_moments --output ppo; rm -r ppo/checkpoint-2; cp -rL test/tiny/reward judge");
    ck_sh(2, "P/ppo " PPO
             "--model test/tiny --reward_model test/tiny/reward --max_steps 2 "
             "--save_steps 1 --output ppo --resume");
    assert_said("the content of the reference test/tiny is");
}
END_TEST

START_TEST(other_data_through_a_pipe_is_refused) {
    const char *run = "P/sft --model test/tiny " SAVED "--max_steps 4 --output pipe --data ";
    ck_sh(0, "%s <(cat sft); rm -r pipe/checkpoint-4", run);
    ck_sh(2, "%s <(sed s/bread/BREAD/ sft) --resume", run);
    assert_said("the content of --data is");
    ck_sh(0, "%s <(cat sft) --resume", run);
    ck_sh(2, "%s /dev/zero --overwrite_output_dir", run);
    assert_said("is a device");
}
END_TEST

/* A state that was changed, though each of its values could be right, and weights that are not
   those of the state. */
START_TEST(a_changed_checkpoint_is_refused) {
    const char *run = "P/sft --model test/tiny --data sft " SAVED "--max_steps 4 --output state ";
    ck_sh(0, "%s; rm -r state/checkpoint-4; cp -r state/checkpoint-2 good", run);
    ck_sh(2,
          "sed -i 's/\"step\":\"2\"/\"step\":\"1\"/' state/checkpoint-2/state.safetensors; "
          "%s --resume",
          run);
    assert_said("state.safetensors was changed since");
    ck_sh(2,
          "cp good/state.safetensors state/checkpoint-2; cp state/model.safetensors "
          "state/checkpoint-2/; %s --resume",
          run);
    assert_said("the weights or the moments of the model were changed since");
    ck_sh(2, "P/lora --model test/tiny --data dom --resume state/checkpoint-2");
    assert_said("the program is \"lora\" now and \"sft\" in the checkpoint");
    ck_sh(2, "%s --resume state", run);
    assert_said("give --resume state/checkpoint-2");
    ck_sh(2, "%s --resume test/tiny", run);
    assert_said("This is a model");
}
END_TEST

/* What a checkpoint's configurations say besides the shapes of tensors, and the dialogues that the
   run learns from. */
START_TEST(a_changed_file_beside_the_state_is_refused) {
    static const char *const says[] = {"the configuration of the model ",
                                       "the configuration of the model ",
                                       "template.txt was changed since the checkpoint was written",
                                       "was changed since the run learned from it"};
    clean();
    const char *const runs[][3] = {
        {"sft --model test/tiny --data sft " SAVED, "s/\"n_head\": 4/\"n_head\": 8/",
         "out/checkpoint-2/config.json"},
        {"lora --model test/tiny --data dom " SAVED, "s/\"lora_alpha\": [0-9.]*/\"lora_alpha\": 7/",
         "out/checkpoint-2/adapter_config.json"},
        {"sft --model test/tiny --data sft " SAVED, "s/instruction/instructiom/",
         "out/checkpoint-2/template.txt"},
        {"constitutional --model test/tiny/chat --prompts pr --max_new_tokens 8 --max_iterations 1 "
         "--max_length 256 --constitution test/tiny/constitution.json --save_steps 2 "
         "--keep_moments "
         "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 ",
         "s/\"revision_response\": \"./\"revision_response\": \"x/", "out/transcripts.jsonl"}};
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(0, "rm -rf out; P/%s --max_steps 4 --output out; rm -r out/checkpoint-4", runs[i][0]);
        ck_sh(0, "cp %s kept; sed -i '%s' %s; ! cmp kept %s", runs[i][2], runs[i][1], runs[i][2],
              runs[i][2]);
        ck_sh(2, "P/%s --max_steps 4 --output out --resume", runs[i][0]);
        assert_said(says[i]);
    }
    ck_sh(0, "cp kept %s; P/%s --max_steps 4 --output out --resume", runs[3][2], runs[3][0]);
    clean();
}
END_TEST

/* The run of a checkpoint is the one in whose output it is. */
START_TEST(a_checkpoint_by_a_link_is_refused) {
    clean();
    const char *run = "P/sft --model test/tiny --data sft " SAVED "--max_steps 4 --output out";
    ck_sh(0,
          "%s; rm -r out/checkpoint-4; mkdir other; mv out/checkpoint-2 other; ln -s "
          "../other/checkpoint-2 out/checkpoint-2; cp out/log.jsonl log",
          run);
    const char *const resumes[] = {"--resume", "--resume out/checkpoint-2"};
    for (int i = 0; i < 2; i++) {
        ck_sh(2, "%s %s", run, resumes[i]);
        assert_said("out/checkpoint-2 is a link to ");
        ck_sh(0, "cmp log out/log.jsonl && ls other/checkpoint-2/state.safetensors");
    }
    ck_sh(0, "rm out/checkpoint-2; cp -r other/checkpoint-2 out; %s --resume", run);
    clean();
}
END_TEST

/* What is measured before training is measured once: a run that was stopped and resumed reports the
   same as one that was not. Its log begins with the same figures. */
START_TEST(a_resumed_run_reports_the_same) {
    static const char *const runs[] = {
        "sft --model test/tiny --data sft --eval sft-eval " MEASURED
        "--eval_samples 3 "
        "--load_best_model_at_end",
        "full_ft --model test/tiny --data sft --eval sft-eval " MEASURED "--eval_samples 2",
        "lora --model test/tiny --data dom --eval dom-eval " MEASURED
        "--eval_samples 2 "
        "--load_best_model_at_end",
        "adapter --model test/tiny --data dom --eval dom-eval " MEASURED "--eval_samples 2",
        "reward --model test/tiny/chat --data pairs --eval pairs-eval " MEASURED
        "--load_best_model_at_end",
        "ppo " PPO
        "--eval pr-eval --reward_model test/tiny/reward --max_steps 4 --save_steps 2 "
        "--eval_steps 2 --keep_moments",
        "constitutional --model test/tiny/chat --prompts pr --eval pr-eval --constitution "
        "test/tiny/constitution.json --evaluate mc --max_new_tokens 8 --max_iterations 1 "
        "--max_length 256 --per_device_train_batch_size 4 --breaches 'a|b' " MEASURED,
    };
    ck_sh(0,
          "head -6 test/tiny/sft-eval.jsonl >sft-eval; head -6 test/tiny/domain-eval.jsonl "
          ">dom-eval; head -40 test/tiny/preferences.jsonl >pairs; head -6 "
          "test/tiny/preferences-eval.jsonl >pairs-eval; head -4 test/tiny/prompts-eval.jsonl "
          ">pr-eval; head -2 test/tiny/multiple-choice.jsonl >mc");
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(
            0,
            "said() { grep '^held-out\\|^  before\\|^  after\\|^  chosen\\|^  rejected\\|"
            "^multiple\\|the result\\|that model\\|the held-out loss was' $1 | grep -v dialogue | "
            "sort -u; }\n"
            "rm -rf o kept; P/%s --output o >whole && cp -r o kept && rm -r o/checkpoint-4 && "
            "rm -f o/*.safetensors && P/%s --output o --resume >resumed && "
            "diff <(said whole) <(said resumed) && cmp o/log.jsonl kept/log.jsonl && "
            "for f in kept/*.safetensors; do cmp $f o/${f#kept/} || exit 3; done && "
            "head -1 o/log.jsonl | grep '\"step\": 0, \"eval' && grep before resumed",
            runs[i], runs[i]);
    }
}
END_TEST

/* A run that ends before it has learned anything leaves no copy of its model, and can be resumed
   all the same. Figures that nobody asked for are not reported. */
START_TEST(a_run_that_fails_early_leaves_little) {
    const char *run =
        "P/constitutional --model test/tiny/chat --prompts pr --eval pr --eval_samples 2 "
        "--max_length 48 --max_new_tokens 8 --max_steps 2 --output early";
    ck_sh(1, "%s", run);
    assert_said("no dialogue produced a revision");
    assert_said("the model's own critique finds fault");
    assert_not_said("say one of");
    ck_sh(0, "test -e early/checkpoint-0/state.safetensors; ! find early -size +64k | grep .");
    ck_sh(1, "%s --resume", run);
    assert_said("resuming early/checkpoint-0 at step 0 of 2");
    ck_sh(0,
          "! grep breaches early/log.jsonl && grep -c '\"step\": 0, \"eval_criticised' "
          "early/log.jsonl");
    ck_sh(2, "%s --resume --model test/tiny", run);
    assert_said("the weights of the model were changed since");
    ck_sh(1, "%s --overwrite_output_dir --eval_samples 0", run);
    assert_said("note: --eval_samples is 0, so no answers are shown");
}
END_TEST

/* ---- nothing of a user's is overwritten ------------------------------------------------------ */

START_TEST(no_reader_writes) {
    const char *run =
        "P/constitutional --model test/tiny/chat --prompts pr --constitution "
        "test/tiny/constitution.json --max_new_tokens 8 --max_iterations 1 --max_length 256 "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps 3 "
        "--save_steps 1 --keep_moments --output ca ";
    ck_sh(0,
          "%s; rm -r ca/checkpoint-3; sed -i '3s/{/[/' ca/transcripts.jsonl; "
          "cp ca/transcripts.jsonl before",
          run);
    ck_sh(1, "%s --resume", run);
    assert_said("transcripts.jsonl:3:");
    ck_sh(0, "cmp before ca/transcripts.jsonl");
}
END_TEST

START_TEST(one_run_in_one_output) {
    const char *run = "P/ppo " PPO "--reward_cmd 'read x; sleep 60' --output lock";
    ck_sh(0,
          "%s & first=$!\n"
          "for i in $(seq 600); do [ -e lock/log.jsonl ] && break; sleep 0.1; [ -d lock ] && sleep "
          "0.5 && break; done\n"
          "%s; [ $? = 2 ] || exit 1\n"
          "%s --overwrite_output_dir | grep -a nothing; [ ${PIPESTATUS[0]} = 2 ] || exit 2\n"
          "echo the first is $first; kill -9 $first; wait $first; exit 0",
          run, run, run);
    assert_said("--output lock belongs to a run that has not ended, process");
    char first[64];
    const char *number = strstr(said.s, "the first is ");
    snprintf(first, sizeof first, "process %d (ppo)", atoi(number + 13));
    assert_said(first);
}
END_TEST

/* The same for a merged model, and for a file that a flag names. flock(1) is the other run. */
START_TEST(one_run_at_everything_that_is_written) {
    clean();
    ck_sh(0, "P/lora --model test/tiny --data dom " QUICK "--max_steps 1 --output mine");
    const char *const runs[][2] = {
        {"merged", "P/lora --model test/tiny --adapter mine --merge merged"},
        {"merged", "P/lora --model test/tiny --data dom " QUICK
                   "--max_steps 1 --output other --overwrite_output_dir --merge merged"},
        {"scores", "P/reward --model test/tiny/reward --score sft --score_output scores"},
        {"pairs",
         "P/constitutional --model test/tiny/chat --prompts pr --max_new_tokens 4 "
         "--feedback pairs"},
        {"dump",
         "P/sft --model test/tiny --data sft --eval sft " QUICK "--max_steps 1 --dump_tokens dump"},
        {"dump",
         "P/ppo " PPO "--max_steps 1 --reward_model test/tiny/reward --dump_rollouts dump"}};
    ck_sh(0, "mkdir merged; touch scores pairs dump");
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(0, "flock %s sh -c '%s; [ $? = 2 ]'", runs[i][0], runs[i][1]);
        assert_said("belongs to a run that has not ended, process");
        ck_sh(0,
              "! [ -e merged/config.json ] && ! [ -s scores ] && ! [ -s pairs ] && ! [ -s dump ]");
    }
    // a file or directory that the run made itself is not left behind empty
    ck_sh(2, "P/sft --model test/tiny --data sft --output new --eval no --dump_tokens newer");
    ck_sh(2, "ls new newer");
    for (int i = 0; i < 5; i++) {
        ck_sh(0,
              "rm -rf merged; P/lora --model test/tiny --adapter mine --merge merged & x=$!; "
              "P/lora --model test/tiny --adapter mine --merge merged & y=$!; "
              "wait $x; a=$?; wait $y; b=$?; echo $a $b; [ $((a + b)) = 2 ] && [ $a != $b ] && "
              "P/sft --model merged --prompt a --max_new_tokens 1");
    }
    clean();
}
END_TEST

/* What a killed run has left is removed, though a living process, here the shell, has its number.
 */
START_TEST(what_a_killed_run_left_goes) {
    clean();
    ck_sh(
        0,
        "mkdir -p merged out/critic; for f in merged/model.safetensors merged/config.json scores "
        "out/model.safetensors out/critic/config.json; do echo x >$f.posttrain-$$; done; "
        "P/lora --model test/tiny --data dom " QUICK
        "--max_steps 1 --output mine && P/lora --model test/tiny --adapter mine --merge merged && "
        "P/reward --model test/tiny/reward --score sft --score_output scores && P/ppo " PPO
        "--reward_model test/tiny/reward --max_steps 1 --output out --overwrite_output_dir");
    ck_sh(1, "find . -name '*.posttrain-*' | grep .");
    clean();
}
END_TEST

/* A checkpoint, best/ and critic/ belong to the run in whose output they are. */
START_TEST(a_part_of_a_run_is_no_output) {
    clean();
    ck_sh(0, "P/lora --model test/tiny --data dom --eval dom " SAVED
             "--max_steps 2 --eval_steps 2 --output ad; cp -r ad/checkpoint-2 saved; cp -r ad "
             "before; ln -s ad/best link");
    static const char sft[] = "sft --model test/tiny --data sft " QUICK "--max_steps 1 --output";
    static const char *const places[] = {"ad/best",
                                         "ad/checkpoint-2",
                                         "ad/checkpoint-2/deeper",
                                         "ad/./best",
                                         "ad/critic/x",
                                         "ad/checkpoint-7",
                                         "saved",
                                         "link"};
    for (int i = 0; i < COUNT(places); i++) {
        ck_sh(2, "P/%s %s --overwrite_output_dir", sft, places[i]);
        assert_said("is part of a run: ");
        ck_sh(2, "P/lora --model test/tiny --adapter ad --merge %s --overwrite_output_dir",
              places[i]);
        assert_said("is part of a run: ");
        ck_sh(2, "P/reward --model test/tiny/reward --score sft --score_output %s/scores",
              places[i]);
        assert_said("is part of a run: ");
    }
    ck_sh(2, "P/%s new --eval sft --dump_tokens new/best/dump", sft);
    assert_said("is part of a run: ");
    ck_sh(0, "diff -r ad before && diff -r ad/checkpoint-2 saved && ! ls new");
    // a run that has not written its log yet; flock(1) is that run
    ck_sh(0, "mkdir live; flock live sh -c 'P/%s live/best; [ $? = 2 ]'", sft);
    assert_said("live belongs to a run that has not ended, process");
    ck_sh(0, "! ls live/best");
    // the other way round: such a directory was made an output, where there was no run
    ck_sh(2,
          "mkfifo p; P/sft --model test/tiny --data sft " SAVED
          "--max_steps 60 --output live/checkpoint-9 >p & run=$!\n"
          "while read l; do case $l in *checkpoint-2) kill -STOP $run; P/%s live "
          "--overwrite_output_dir >second 2>&1; s=$?; kill -CONT $run;; esac; done <p; "
          "wait $run || exit 1; cat second; exit $s",
          sft);
    assert_said("--output live belongs to a run that has not ended, process");
    ck_sh(2, "mv live/checkpoint-9 live/best; P/%s live --overwrite_output_dir", sft);
    assert_said("live/best is the --output of another run");
    ck_sh(0, "P/sft --model live/best --prompt a --max_new_tokens 1");
    clean();
}
END_TEST

/* Runs sft in `out`, and a command of the shell when checkpoint-2 is there. It must end with 1. */
static void disturb(const char *command) {
    ck_sh(1,
          "rm -rf out moved p; mkfifo p; P/sft --model test/tiny --data sft " SAVED
          "--max_steps 60 --output out >p & run=$!\n"
          "while read l; do echo \"$l\"; case $l in *checkpoint-2) %s;; esac; done <p; wait $run",
          command);
}

/* An output that is moved or removed while the run writes it: nothing goes into another directory
   of its name. */
START_TEST(an_output_that_goes_away_ends_the_run) {
    clean();
    disturb("mv out moved; mkdir out; echo mine >out/notes");
    assert_said("--output out was moved to ");
    assert_said("continue with --output");
    ck_sh(0, "[ \"$(ls out)\" = notes ] && ! ls moved/config.json");
    ck_sh(0, "P/sft --model test/tiny --data sft " SAVED
             "--max_steps 60 --output moved --resume && ls moved/config.json");
    disturb("until rm -rf out; do :; done; mkdir out; echo mine >out/notes");
    assert_said("--output out was removed while this run used it");
    ck_sh(0, "[ \"$(ls out)\" = notes ]");
    // a second run takes the name
    disturb("until rm -rf out; do :; done; P/sft --model test/tiny --data sft " QUICK
            "--max_steps 1 --output out >second");
    ck_sh(0, "[ $(wc -l <out/log.jsonl) = 1 ] && ls out/checkpoint-1 && ! ls out/checkpoint-4");
    clean();
}
END_TEST

/* What OUTPUT already holds under the names of a run's own files. */
START_TEST(links_and_pipes_in_an_output_are_not_written_to) {
    clean();
    const char *run = "timeout 60 P/full_ft --model test/tiny --data sft --eval sft " QUICK
                      "--max_steps 1 --overwrite_output_dir --output out";
    const char *const made[] = {"ln -s ../precious out/log.jsonl", "mkfifo out/log.jsonl",
                                "ln -s ../model out/best",         "ln -s ../model out/critic",
                                "ln -s ../no out/log.jsonl",       "touch out/best",
                                "ln -s /dev/full out/log.jsonl"};
    for (int i = 0; i < COUNT(made); i++) {
        ck_sh(0,
              "rm -rf out model; cp -rL test/tiny/chat model; echo mine >precious; mkdir out; %s",
              made[i]);
        ck_sh(2, "%s", run);
        assert_said("and the run would write there; remove it");
        ck_sh(0, "grep mine precious && ! ls no && diff -r model test/tiny/chat");
    }
    // all else is replaced by a rename, or removed: a second name of a file, a link, a pipe
    ck_sh(0,
          "rm -rf out; mkdir out; ln precious out/log.jsonl; ln -s ../precious out/config.json; "
          "mkfifo out/model.safetensors; ln -s ../model out/checkpoint-1; "
          "cp model/config.json model/state.safetensors; %s && grep mine precious && "
          "ls -ld out/checkpoint-1 | grep ^d && cmp model/config.json test/tiny/chat/config.json",
          run);
    ck_sh(0,
          "P/lora --model test/tiny --data dom " QUICK
          "--max_steps 1 --output a; mkdir -p merged; "
          "mkfifo merged/config.json merged/model.safetensors; ln -s /dev/full merged/vocab.json; "
          "timeout 60 P/lora --model test/tiny --adapter a --merge merged --overwrite_output_dir "
          "&& P/sft --model merged --prompt a --max_new_tokens 1");
    clean();
}
END_TEST

/* The runs with a file of a flag, which follows. */
static const char *const file_runs[] = {
    "reward --model test/tiny/reward --score sft --score_output",
    "constitutional --model test/tiny/chat --prompts pr --max_new_tokens 4 --feedback",
    "sft --model test/tiny --data sft --eval sft " QUICK "--max_steps 1 --dump_tokens",
    "ppo " PPO "--max_steps 1 --reward_model test/tiny/reward --dump_rollouts"};

/* A link stays, and the file that it leads to is written. The name of an open file would be
   replaced as such a link (/dev/stdout for root), or be written where what is printed goes. */
START_TEST(a_file_of_a_flag_may_be_a_link_to_one) {
    clean();
    for (int i = 0; i < COUNT(file_runs); i++) {
        ck_sh(0, "rm -f link given; touch given; ln -s given link; P/%s link", file_runs[i]);
        ck_sh(0, "[ -L link ] && [ -s given ] && ! ls | grep posttrain");
        ck_sh(2, "rm -f link; ln -s /dev/fd/4 link; P/%s /dev/fd/4 4>given", file_runs[i]);
        assert_said("/dev/fd/4 is the name of a file that is open already; give the file's own");
        ck_sh(2, "P/%s link 4>given", file_runs[i]);
        assert_said("link is the name of a file that is open already");
        ck_sh(0, "[ -L link ] && [ ! -s given ]");
    }
    clean();
}
END_TEST

/* A pipe that nobody reads is not waited for, and no link is taken for the file that it names. */
START_TEST(a_file_of_a_flag_may_be_a_pipe_with_a_reader) {
    clean();
    ck_sh(0, "mkfifo p; ln -s nowhere/x link");
    for (int i = 0; i < COUNT(file_runs); i++) {
        ck_sh(2, "timeout 60 P/%s p", file_runs[i]);
        assert_said("p is a pipe that nobody reads; start its reader first");
        ck_sh(2, "P/%s link", file_runs[i]);
        assert_said("link is a link to nowhere/x, which is not there; make that, or remove the");
        // descriptor 4 keeps the pipe open until the program has ended
        ck_sh(0, "exec 4<>p; cat <p >got 4<&- & P/%s p 4<&- && exec 4<&- && wait $! && [ -s got ]",
              file_runs[i]);
    }
    // a pipe that is read and written would wait for itself
    ck_sh(2, "timeout 60 P/reward --model test/tiny/reward --score p --score_output p");
    assert_said("is the file of --score, which is read and never written");
    ck_sh(2, "ln -s circle circle; P/%s circle", file_runs[0]);
    assert_said("circle is a link to circle, which leads back to the link");
    const char *const directories[] = {
        "sft --model test/tiny --data sft " QUICK "--max_steps 1 --output link",
        "sft --model test/tiny --data sft " QUICK "--max_steps 1 --output link/",
        "sft --model test/tiny --data sft " QUICK "--max_steps 1 --output link/below",
        "lora --model test/tiny --data dom " QUICK "--max_steps 1 --merge link"};
    for (int i = 0; i < COUNT(directories); i++) {
        ck_sh(2, "P/%s", directories[i]);
        assert_said("link is a link to nowhere/x, which is not there");
    }
    clean();
}
END_TEST

/* Everything that a run reads, with --overwrite_output_dir. */
START_TEST(an_output_is_never_an_input) {
    clean();
    ck_sh(
        0,
        "cp -rL test/tiny/reward m; P/lora --model test/tiny --data dom " SAVED
        "--max_steps 2 --output a; mkdir out data; cp sft out/log.jsonl; cp sft "
        "out/config.json; cp pr out/transcripts.jsonl; cp sft out/mine.jsonl; cp -rL test/tiny "
        "out/critic; cp -r a out/checkpoint-7; rm -rf before; mkdir before; cp -r m a out before");
    const char *const runs[] = {
        "ppo " PPO "--reward_model m --output m",
        "ppo " PPO "--reward_model m/../m --output ./m/",
        "ppo " PPO "--reward_model test/tiny/reward --critic_model m --output m",
        "ppo " PPO "--reward_model out/critic --output out",
        "lora --model test/tiny --data dom --adapter a --output a",
        "lora --model test/tiny --data dom --adapter out/checkpoint-7 --output out",
        "lora --model out/critic --data dom --output out",
        "sft --model test/tiny --data out/log.jsonl --output out",
        "sft --model test/tiny --data sft,out/config.json --output out",
        "sft --model test/tiny --data sft --eval out/log.jsonl --output out",
        "constitutional --model test/tiny/chat --prompts out/transcripts.jsonl --output out",
        ("constitutional --model test/tiny/chat --prompts pr --constitution out/config.json "
         "--output out"),
        "reward --model test/tiny/chat --data sft --normalize out/log.jsonl --output out",
        "lora --model test/tiny --data dom --resume a/checkpoint-2 --output a/checkpoint-2"};
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(2, "P/%s --max_steps 1 --overwrite_output_dir", runs[i]);
        ck_assert_msg(strstr(said.s, "which is read and never written") ||
                          strstr(said.s, "the run writes there itself"),
                      "%s: %s", runs[i], said.s);
    }
    ck_sh(0, "for d in m a out; do diff -r $d before/$d || exit 1; done");
    // other names in OUTPUT, and words that are no paths
    ck_sh(0, "P/sft --model test/tiny --data out/mine.jsonl --output out " QUICK
             "--max_steps 1 --overwrite_output_dir && cmp out/mine.jsonl sft");
    ck_sh(0,
          "head -20 test/tiny/preferences.jsonl >pairs; P/reward --model test/tiny/chat --data "
          "pairs "
          "--per_device_train_batch_size 4 --max_steps 1 --normalize --output data");
    clean();
}
END_TEST

START_TEST(inputs_are_not_overwritten) {
    ck_sh(0, "cp sft v; cp sft w; ln v hard; ln -s v soft; cp pr p");
    const char *score = "P/reward --model test/tiny/reward --score v --score_output";
    for (int i = 0; i < 3; i++) {
        const char *const names[] = {"v", "hard", "soft"};
        ck_sh(2, "%s %s --overwrite_output_dir", score, names[i]);
        assert_said("is the file of --score, which is read and never written");
    }
    ck_sh(2, "%s w", score);
    assert_said("exists already");
    ck_sh(0, "cmp v sft && cmp w sft && %s w --overwrite_output_dir && ! cmp -s w sft", score);
    ck_sh(2, "P/constitutional --model test/tiny/chat --prompts p --feedback p");
    ck_sh(2, "P/ppo " PPO
             "--data p --reward_model test/tiny/reward --max_steps 1 --dump_rollouts "
             "p");
    ck_sh(2,
          "cp -rL test/tiny/reward m; P/reward --model m --score v --score_output "
          "m/config.json --overwrite_output_dir");
    assert_said("is a file of --model m");
    ck_sh(2, "P/reward --model m --score v --score_output m/generation_config.json");
    assert_said("is a file of --model m");
    ck_sh(2, "P/sft --model test/tiny --data sft --eval sft " QUICK
             "--max_steps 1 --output dumped --dump_tokens dumped/log.jsonl");
    assert_said("has the name of a file that the run itself writes");
    ck_sh(0, "cmp p pr && cmp m/config.json test/tiny/reward/config.json");
    ck_sh(0,
          "mkdir notes; echo mine >notes/notes.tmp-123; P/sft --model test/tiny --data sft " QUICK
          "--max_steps 1 --output notes --overwrite_output_dir && grep mine notes/notes.tmp-123");
}
END_TEST

/* A model or a run that no flag names: no file of it is replaced, and none that its directory could
   have is added. */
START_TEST(other_models_are_not_overwritten) {
    clean();
    ck_sh(0,
          "cp -rL test/tiny/reward m; mkdir weights ran; cp m/model.safetensors weights; echo "
          "'{\"step\": 1}' >ran/log.jsonl; echo {} >ran/run.json; ln -s m/config.json link; rm -rf "
          "before; mkdir before; cp -rP m weights ran link before");
    const char *const names[] = {"m/config.json",
                                 "m/model.safetensors",
                                 "m/merges.txt",
                                 "m/generation_config.json",
                                 "./m/../m/optimizer.pt",
                                 "m/pytorch_model-00001-of-00002.bin",
                                 "weights/model.safetensors",
                                 "link",
                                 "ran/log.jsonl",
                                 "ran/run.json"};
    for (int i = 0; i < COUNT(names); i++) {
        ck_sh(2, "P/%s %s --overwrite_output_dir", file_runs[i % COUNT(file_runs)], names[i]);
        assert_said(i < 8 ? "has the name of a file of the model in " : "of the run in ran");
    }
    ck_sh(0, "for d in m weights ran link; do diff -r $d before/$d || exit 1; done");
    ck_sh(0, "P/%s m/mine.jsonl && [ -s m/mine.jsonl ]", file_runs[0]);  // any other name
    clean();
}
END_TEST

START_TEST(merged_models_have_a_place_of_their_own) {
    ck_sh(0, "P/lora --model test/tiny --data dom " QUICK "--max_steps 1 --output mine");
    const char *const places[][2] = {
        {"test/tiny", "--model"}, {"mine/", "--adapter"}, {"sft", "is no directory"}};
    for (int i = 0; i < 3; i++) {
        ck_sh(2, "P/lora --model test/tiny --adapter mine --merge %s --overwrite_output_dir",
              places[i][0]);
        assert_said(places[i][1]);
    }
    ck_sh(2, "P/lora --model test/tiny --data dom " QUICK "--max_steps 1 --output o --merge o/");
    assert_said("the directory of --output");
    ck_sh(0, "P/lora --model test/tiny --adapter mine --merge merged --verify");
    assert_said("verified on");
}
END_TEST

/* ---- numbers that are not finite ------------------------------------------------------------- */

/* m: test/tiny with a NaN as the first number of its first tensor. */
static void make_nan(void) {
    ck_sh(0, "rm -rf m; cp -rL test/tiny m");
    FILE *f = fopen(at("m/model.safetensors"), "r+b");
    unsigned char n[8];
    const float nan = NAN;
    ck_assert_uint_eq(fread(n, 1, 8, f), 8);
    fseek(f, 8 + n[0] + 256 * n[1] + 65536 * n[2] + 16, SEEK_SET);
    ck_assert_uint_eq(fwrite(&nan, sizeof nan, 1, f), 1);
    fclose(f);
}

START_TEST(weights_that_are_not_finite_are_named) {
    make_nan();
    ck_sh(0, "P/lora --model test/tiny --data dom " QUICK "--max_steps 1 --output a");
    const char *const runs[] = {"sft --max_steps 0 --data sft " QUICK,
                                "full_ft --max_steps 0 --data dom " QUICK,
                                "lora --max_steps 0 --data dom " QUICK,
                                "adapter --max_steps 0 --data dom " QUICK,
                                "sft --prompt x",
                                "lora --adapter a --merge never --verify",
                                "lora --adapter a --prompt x",
                                "constitutional --evaluate test/tiny/multiple-choice.jsonl"};
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(2, "P/%s --model m", runs[i]);
        assert_said("m/model.safetensors: tensor transformer.");
        assert_said("element 4 is nan");
    }
    ck_sh(2, "ls never");
}
END_TEST

/* The last step ruins the model: the checkpoint before it stays, and nothing takes its place. */
START_TEST(a_ruined_model_is_not_saved) {
    const char *run =
        "P/sft --model test/tiny --data sft " QUICK
        "--max_steps 2 --save_steps 1 --save_total_limit 1 --learning_rate 10 "
        "--lr_scheduler_type constant --adam_epsilon 1e-20 --adam_beta2 0 --output ruined";
    ck_sh(1, "%s", run);
    assert_said("is ruined");
    ck_sh(0,
          "ls ruined/checkpoint-1/model.safetensors && ! ls ruined/model.safetensors "
          "ruined/checkpoint-2");
    ck_sh(1, "%s --eval sft --overwrite_output_dir", run);
    assert_said("the loss of the held-out records is nan");
}
END_TEST

/* ---- what is printed ------------------------------------------------------------------------- */

START_TEST(control_characters_are_not_printed) {
    clean();
    ck_sh(0,
          "printf '{\"instruction\": \"a\\\\u001b[31mRED\\\\u009b\\\\r\", \"output\": \"b\"}\\n' "
          ">d; P/sft --model test/tiny --data d " QUICK "--dry_run");
    assert_said("a\\x1b[31mRED\\x9b\\x0d");
    // what turns the direction of a text, separates lines or marks a byte order; U+200D joins
    ck_sh(0,
          "printf '{\"instruction\": "
          "\"\\\\u061c\\\\u200d\\\\u200e\\\\u200f\\\\u2028\\\\u2029\\\\u202a"
          "\\\\u202e\\\\u2066\\\\u2069\\\\ufeff\\\\u0085.\", \"output\": \"b\"}\\n' >d; P/sft "
          "--model "
          "test/tiny --data d " QUICK "--dry_run");
    assert_said(
        "\\u061c\xE2\x80\x8D\\u200e\\u200f\\u2028\\u2029\\u202a\\u202e\\u2066\\u2069\\ufeff\\x85.");
    ck_sh(1, "P/ppo " PPO
             "--max_steps 1 --reward_cmd \"while read x; do printf "
             "'\\033[31mEVIL\\n'; done\"");
    assert_said("\\x1b[31mEVIL");
    ck_sh(2, "P/sft --model $'no\\033[31m' --data d");
    assert_said("no\\x1b[31m");
    ck_sh(2, "P/sft --model test/tiny --data $'no\\377'");
    assert_said("no\xEF\xBF\xBD");
    for (size_t i = 0; i < said.n; i++)
        ck_assert(said.s[i] == '\n' || (unsigned char)said.s[i] >= ' ');
    // a signal handler prints this path
    ck_sh(1,
          "mkfifo p; m=$'m\\033[31m\\302\\233\\rx'; cp -rL test/tiny \"$m\"; P/lora --model \"$m\" "
          "--data dom " SAVED
          "--max_steps 40 --output out >p & while read l; do case $l in *checkpoint-4) truncate -s "
          "100000 \"$m\"/model.safetensors;; esac; done <p; wait $!");
    assert_said("m?[31m??x/model.safetensors");
    for (size_t i = 0; i < said.n; i++)
        ck_assert(said.s[i] == '\n' || (unsigned char)said.s[i] >= ' ');
    clean();
}
END_TEST

START_TEST(output_that_does_not_arrive_is_an_error) {
    const char *const runs[] = {
        "sft --help",
        "sft --model test/tiny --data sft --dry_run",
        "sft --prompt x --max_new_tokens 2",
        "reward --model test/tiny/reward --score sft",
        "reward --prompt x --response y",
        "constitutional --model test/tiny/chat --evaluate mc",
        "sft --model test/tiny --data sft --max_steps 1 --output full_disk " QUICK};
    ck_sh(0, "head -4 test/tiny/multiple-choice.jsonl >mc");
    for (int i = 0; i < COUNT(runs); i++) {
        ck_sh(1, "P/%s >/dev/full", runs[i]);
        assert_said("No space left");
    }
    ck_sh(0, "ls full_disk/model.safetensors");  // the files are whole
    ck_sh(1,
          "trap '' PIPE; set -o pipefail; P/constitutional --model test/tiny/chat --evaluate mc "
          "| true");
    assert_said("Broken pipe");
}
END_TEST

/* A program whose product is what it prints. One that trains, or writes files, needs no stdout. */
START_TEST(what_a_closed_stdout_loses_is_an_error) {
    const char *const lost[] = {
        "sft --version",
        "sft --help",
        "ppo -h",
        "sft --model test/tiny --data sft --dry_run",
        "sft --model test/tiny --data sft --dry_run --output never",
        "sft --model test/tiny --data sft --eval sft --max_steps 0 --eval_samples 2",
        "sft --prompt x --max_new_tokens 2",
        "lora --model test/tiny --adapter a --prompt x --max_new_tokens 2",
        "reward --model test/tiny/reward --score sft",
        "reward --prompt x --response y",
        "constitutional --model test/tiny/chat --evaluate mc"};
    const char *const kept[] = {
        "reward --model test/tiny/reward --score sft --score_output scores",
        "constitutional --model test/tiny/chat --prompts pr --max_new_tokens 4 --feedback pairs",
        "lora --model test/tiny --adapter a --merge merged --verify",
        "sft --model test/tiny --data sft --max_steps 0 --output evaluated",
        "sft --model test/tiny --data sft --quiet --dry_run"};
    clean();
    ck_sh(0,
          "head -4 test/tiny/multiple-choice.jsonl >mc; P/lora --model test/tiny --data dom " QUICK
          "--max_steps 1 --output a");
    for (int i = 0; i < COUNT(lost); i++) {
        ck_sh(1, "P/%s >&-", lost[i]);
        assert_said("Bad file descriptor");
        assert_said("keep stdout open");
        ck_sh(0, "P/%s >/dev/null", lost[i]);
    }
    for (int i = 0; i < COUNT(kept); i++) ck_sh(0, "P/%s >&-", kept[i]);
    ck_sh(0, "[ -s scores ] && [ -s pairs ] && ls merged/model.safetensors evaluated/config.json");
    clean();
}
END_TEST

/* Only what writes files goes on. The reader has left before the program begins. */
START_TEST(a_reader_that_leaves_costs_no_training) {
    const char *alone = "exec 3> >(true); wait $!; env --default-signal=PIPE P/";
    clean();
    ck_sh(1, "%ssft --model test/tiny --data sft " SAVED "--max_steps 4 --output left >&3", alone);
    assert_said("note: nobody reads what is printed any more; the program goes on");
    assert_said("did not all arrive: cannot write to stdout: Broken pipe; all else is done");
    ck_sh(0, "P/sft --model test/tiny --data sft " SAVED
             "--max_steps 4 --output whole && for f in "
             "log.jsonl model.safetensors checkpoint-4/state.safetensors; do cmp left/$f whole/$f "
             "|| exit 1; done");
    ck_sh(1,
          "%sppo " PPO
          "--max_steps 1 --output ppo --reward_cmd 'yes | head -1 >judged; while "
          "read x; do echo {\\\"score\\\": 1}; done' >&3; s=$?; ls ppo/model.safetensors && "
          "grep y judged && exit $s",
          alone);
    ck_sh(128 + SIGPIPE, "%ssft --model test/tiny --data sft " QUICK "--max_steps 4 >&3", alone);
    ck_sh(128 + SIGPIPE, "%ssft --prompt x --max_new_tokens 2 >&3", alone);
    ck_sh(128 + SIGPIPE, "%ssft --help >&3", alone);
    clean();
}
END_TEST

START_TEST(closed_descriptors_cost_nothing) {
    ck_sh(0, "P/sft --model test/tiny --data sft " QUICK
             "--max_steps 2 --output closed <&- >&- "
             "2>&-; ! grep -v '^{\"step\"' closed/log.jsonl");
    ck_sh(0, "P/ppo " PPO
             "--max_steps 1 --reward_cmd 'while read x; do case $x in {*) ;; *) echo "
             "no >asked;; esac; echo {\\\"score\\\": 1}; done' <&- >&- && ! ls asked");
}
END_TEST

/* ---- signals --------------------------------------------------------------------------------- */

/* Runs a command, and sends it a signal when the file `ready` exists, or, if the command makes
   none, after half a second. It must end with this status. Returns the tenths of a second that it
   took to end. */
static int interrupt(const char *command, const char *signal, int status) {
    const bool tells = strstr(command, "touch ready") || strstr(command, "member");
    ck_sh(status,
          "rm -f ready; set -m; %s >out 2>err & p=$!\n"  // -m: SIGINT is not ignored
          "%s\n"
          "a=$(date +%%s%%N); kill -%s $p; wait $p; s=$?; b=$(date +%%s%%N)\n"
          "echo $(( (b - a) / 100000000 )) tenths of a second; cat out err; exit $s",
          command,
          tells ? "for i in $(seq 2400); do [ -e ready ] && break; sleep 0.05; done; [ -e ready ] "
                  "|| { cat out err; kill -KILL $p; exit 99; }"
                : "sleep 0.5",
          signal);
    return atoi(said.s);
}

START_TEST(signals_end_what_has_nothing_to_save) {
    ck_sh(0, "for i in $(seq 60); do cat test/tiny/sft.jsonl; done >many; mkfifo fifo");
    const char *const runs[] = {
        "P/reward --model test/tiny/reward --score many",
        "P/sft --model test/tiny --data sft --eval many --max_steps 2 --eval_samples 0",
        "P/sft --model test/tiny --data fifo --max_steps 2",
        "P/constitutional --model test/tiny/chat --prompts many --feedback made"};
    for (int i = 0; i < COUNT(runs); i++) {
        const char *const names[] = {"INT", "TERM"};
        const int number[] = {SIGINT, SIGTERM};
        const int tenths = interrupt(runs[i], names[i % 2], 128 + number[i % 2]);
        ck_assert_msg(tenths <= 100, "%s: %s", runs[i], said.s);
    }
}
END_TEST

/* A judge that sleeps, whom the run would otherwise wait 60 s for: the run stops soon, saves a
 * checkpoint, and the judge ends with it. */
START_TEST(a_signal_does_not_wait_for_the_judge) {
    const char *run = "P/ppo " PPO
                      "--max_steps 2 --save_steps 1 --output judged --reward_cmd 'read x; read x; "
                      "read x; read x; "
                      "for i in 1 2 3 4; do echo \"{\\\"score\\\": 1}\"; done; read x; touch "
                      "ready; echo $$ >judge; "
                      "exec sleep 600'";
    const int tenths = interrupt(run, "INT", 128 + SIGINT);
    // half a second on an idle machine; far less than --reward_timeout on a busy one
    ck_assert_msg(tenths <= 200, "%s", said.s);
    ck_sh(0, "ls judged/checkpoint-1/state.safetensors");
    ck_sh(0, "sleep 0.5; ! grep sleep /proc/$(cat judge)/cmdline");
    ck_sh(0, "rm -rf judged judge");
    interrupt(run, "KILL", 128 + SIGKILL);
    ck_sh(0, "sleep 0.5; ! grep sleep /proc/$(cat judge)/cmdline");
}
END_TEST

/* A signal in the first step leaves nothing that could take the place of an older result. */
START_TEST(a_signal_in_the_first_step_costs_no_older_result) {
    clean();
    const char *run = "P/ppo " PPO "--max_steps 1 --output older --overwrite_output_dir ";
    ck_sh(0, "%s --reward_model test/tiny/reward; cp -r older before", run);
    ck_sh(128 + SIGINT,
          "set -m; %s --reward_cmd 'read x; touch ready; exec sleep 600' >out 2>err & p=$!\n"
          "for i in $(seq 1200); do [ -e ready ] && break; sleep 0.05; done; kill -INT $p; wait $p",
          run);
    ck_sh(0,
          "grep 'stopped at step 0 of 1; nothing is saved, and the older result is unchanged' out "
          "&& diff -r older before");
    clean();
}
END_TEST

/* No member of a pipeline outlives the run, also not one that ignores SIGTERM. */
START_TEST(a_pipeline_of_judges_ends_with_its_run) {
    clean();
    ck_sh(0,
          "echo 'echo $$ >judge; touch ready; exec sleep 600' >member0; echo 'trap \"\" TERM; echo "
          "$$ >judge; touch ready; while :; do sleep 1; done' >member1");
    for (int i = 0; i < 2; i++) {
        char run[1024];
        snprintf(run, sizeof run,
                 "P/ppo " PPO "--max_steps 2 --output judged%d --reward_cmd 'sh member%d | cat'", i,
                 i);
        ck_sh(0, "rm -f judge");
        interrupt(run, "KILL", 128 + SIGKILL);
        ck_sh(0, "[ -s judge ] && sleep 3 && ! grep -q . /proc/$(cat judge)/cmdline");
    }
    clean();
}
END_TEST

/* An evaluation, and a step of many micro-batches, do not wait to their end; the resumed run makes
   them again, and has the bytes of one that was never interrupted. A whole run has three
   evaluations, or two such steps. */
START_TEST(a_signal_leaves_an_evaluation_and_a_step) {
    clean();
    const char *const flags[] = {"--eval many --eval_steps 1 --gradient_accumulation_steps 1",
                                 "--eval sft --eval_steps 1 --gradient_accumulation_steps 300"};
    ck_sh(0, "for i in $(seq 5); do cat test/tiny/sft.jsonl; done >many");
    for (int i = 0; i < 2; i++) {
        char run[1024];
        snprintf(run, sizeof run,
                 "P/sft --model test/tiny --data many " SAVED
                 "%s --logging_steps 1 --max_steps 2 --output ",
                 flags[i]);
        ck_sh(0,
              "rm -rf whole left; a=$(date +%%s%%N); %s whole >out || cat out; b=$(date +%%s%%N); "
              "echo whole $(( (b - a) / 10000000 ))",
              run);
        const int whole = atoi(strstr(said.s, "whole ") + 6);
        ck_sh(128 + SIGINT,
              "set -m; %s left >out 2>err & p=$!\n"
              "for i in $(seq 6000); do grep -q step left/log.jsonl && break; sleep 0.05; done\n"
              "sleep 0.2; a=$(date +%%s%%N); kill -INT $p; wait $p; s=$?; b=$(date +%%s%%N)\n"
              "echo took $(( (b - a) / 10000000 )); cat out err; exit $s",
              run);
        const char *took = strstr(said.s, "took ");
        ck_assert_msg(took && atoi(took + 5) <= whole / 5, "%d: of %d hundredths of a second %s", i,
                      whole, said.s);
        ck_sh(0,
              "ls left/checkpoint-%d && %s left --resume && cmp whole/log.jsonl left/log.jsonl && "
              "cmp whole/model.safetensors left/model.safetensors",
              i ? 1 : 2, run);
    }
    clean();
}
END_TEST

/* The kernel sends SIGXCPU every second from the limit on (ulimit -t), so a second one must not end
   what the first has begun. */
START_TEST(a_limit_on_time_saves_a_checkpoint) {
    clean();
    const char *run = "P/sft --model test/tiny --data sft " SAVED
                      "--logging_steps 1 --save_steps 0 --max_steps 100000 --output out";
    ck_sh(128 + SIGXCPU,
          "set -m; %s >text 2>&1 & p=$!\n"
          "for i in $(seq 6000); do grep -qs step out/log.jsonl && break; sleep 0.05; done\n"
          "kill -XCPU $p; kill -XCPU $p; wait $p; s=$?; cat text; exit $s",
          run);
    assert_said("The run will save and stop");
    ck_sh(0, "ls out/checkpoint-*/state.safetensors");
    clean();
}
END_TEST

/* ---- limits ---------------------------------------------------------------------------------- */

START_TEST(limits_end_in_a_sentence) {
    const char *run = "P/sft --model test/tiny --data sft " QUICK "--max_steps 2 --output limit ";
    ck_sh(1, "ulimit -f 1000; %s", run);
    assert_said("File too large");
    if (!SANITIZED) {  // AddressSanitizer needs terabytes of addresses
        // 2: already the model cannot be mapped
        ck_sh(0, "ulimit -v 20000; OMP_NUM_THREADS=1 P/sft --model test/tiny --data sft " QUICK
                 "; s=$?; [ $s = 1 ] || [ $s = 2 ]");
        assert_said("error: ");
    }
    ck_sh(2, "head -c 67108865 /dev/zero | tr '\\0' x >long; P/ppo " PPO
             "--reward_model test/tiny/reward --max_steps 1 --replay long");
    assert_said("--replay long: a line has more than 67108864 bytes");
    ck_sh(2, "ulimit -s 64; %s", run);
    assert_said("the stack is limited to 64 KiB");
    ck_sh(2, "OMP_STACKSIZE=64k %s", run);
    assert_said("OMP_STACKSIZE is \"64k\"");
    ck_sh(2, "OMP_NUM_THREADS=100000 %s", run);
    assert_said("asks for 100000 threads");
    if (!SANITIZED) {
        ck_sh(2, "ulimit -v 4000000; OMP_NUM_THREADS=8 OMP_STACKSIZE=1G %s", run);
        assert_said("threads can be made");
    }
    if (getuid()) {
        ck_sh(2, "OMP_NUM_THREADS=2 exec sh -c 'ulimit -u 1; exec \"$@\"' sh %s", run);
        assert_said("only 1 of 2 threads can be made");
    }
    ck_sh(1,
          "for i in $(seq 16); do echo \"{\\\"prompt\\\": \\\"a$i\\\"}\"; done >q; "
          "P/constitutional --model test/tiny/chat --prompts q --max_length 16 --max_new_tokens "
          "2 --per_device_train_batch_size 1 --max_steps 1");
    assert_said("no dialogue produced a revision");  // and not a word about slots
}
END_TEST

int main(void) {
    const TTest *const tests[] = {a_resumed_run_reports_the_same,
                                  a_run_that_fails_early_leaves_little,
                                  another_base_is_refused,
                                  another_reference_is_refused,
                                  other_data_through_a_pipe_is_refused,
                                  a_changed_checkpoint_is_refused,
                                  a_changed_file_beside_the_state_is_refused,
                                  a_checkpoint_by_a_link_is_refused,
                                  no_reader_writes,
                                  one_run_in_one_output,
                                  one_run_at_everything_that_is_written,
                                  what_a_killed_run_left_goes,
                                  a_part_of_a_run_is_no_output,
                                  an_output_that_goes_away_ends_the_run,
                                  links_and_pipes_in_an_output_are_not_written_to,
                                  a_file_of_a_flag_may_be_a_link_to_one,
                                  a_file_of_a_flag_may_be_a_pipe_with_a_reader,
                                  an_output_is_never_an_input,
                                  inputs_are_not_overwritten,
                                  other_models_are_not_overwritten,
                                  merged_models_have_a_place_of_their_own,
                                  weights_that_are_not_finite_are_named,
                                  a_ruined_model_is_not_saved,
                                  control_characters_are_not_printed,
                                  output_that_does_not_arrive_is_an_error,
                                  what_a_closed_stdout_loses_is_an_error,
                                  a_reader_that_leaves_costs_no_training,
                                  closed_descriptors_cost_nothing,
                                  signals_end_what_has_nothing_to_save,
                                  a_signal_does_not_wait_for_the_judge,
                                  a_signal_in_the_first_step_costs_no_older_result,
                                  a_pipeline_of_judges_ends_with_its_run,
                                  a_signal_leaves_an_evaluation_and_a_step,
                                  a_limit_on_time_saves_a_checkpoint,
                                  limits_end_in_a_sentence};
    const int failed = run_tests("promises", setup, tests, COUNT(tests));
    shell("rm -rf %s", directory);
    return failed != 0;
}
