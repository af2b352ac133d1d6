/*
 * check_bundle.c - directories that other people made, and directories that are written over
 * others.
 *
 * A model directory may hold pipes, devices and links: it is refused, and nothing waits or fills
 * the disk. What a save needs is read when the run begins. At every moment the output is an old
 * result, a new one, or nothing that loads.
 */
#include "files/bundle.h"
#include "files/hf.h"

#include "program.h"

#undef fail
#include <sys/stat.h>
#include <unistd.h>

static char work[64] = "/tmp/check_bundle.XXXXXX";

/* Runs a shell command in work, with M the model, D the data, and the program's path before its
   name. */
__attribute__((format(printf, 1, 2))) static int in_work(const char *format, ...) {
    char command[2048], *here = getcwd(NULL, 0), *path = resolve_path(build());
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof command, format, list);
    va_end(list);
    const int status = shell(
        "T=%s/test/tiny; B=%s; S=\"--eval_samples 0 --warmup_steps 0 --save_steps 0 "
        "--max_steps 1 --no_dataloader_drop_last --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 1\"; export OMP_NUM_THREADS=1; cd %s && { %s; } "
        ">>out.txt 2>&1",
        here, path, work, command);
    free(here);
    free(path);
    return status;
}

static bool says(const char *words) { return in_work("grep -q '%s' out.txt", words) == 0; }

static void setup(void) {
    ck_assert_ptr_nonnull(mkdtemp(work));
    ck_assert_int_eq(in_work("head -20 $T/sft.jsonl >sft.jsonl; head -20 $T/domain.jsonl >d.jsonl"),
                     0);
}

static void teardown(void) { shell("rm -rf %s", work); }

/* ---- hostile directories --------------------------------------------------------------------- */

/* Every file that is read, as something that is no file. Status 124: it had to be killed. */
START_TEST(pipes_devices_and_directories_are_refused) {
    static const char *const names[] = {
        "config.json",           "vocab.json",        "merges.txt",
        "template.txt",          "added_tokens.json", "special_tokens_map.json",
        "tokenizer_config.json", "model.safetensors", "generation_config.json",
        "chat_template.jinja"};
    static const char *const what[] = {"mkfifo m/%s", "ln -s /dev/zero m/%s", "mkdir m/%s"};
    for (int i = 0; i < 10; i++)
        for (int k = 0; k < 3; k++) {
            char make[64];
            snprintf(make, sizeof make, what[k], names[i]);
            ck_assert_int_eq(
                in_work("rm -rf m o out.txt; cp -r $T/chat m; rm -f m/%s; %s", names[i], make), 0);
            const int status = in_work(
                "timeout -s KILL 20 $B/sft --model m --data sft.jsonl $S "
                "--output o");
            ck_assert_msg(status == 2, "%s: %d", make, status);
            ck_assert_int_eq(in_work("test -e o/model.safetensors"), 1);
        }
}
END_TEST

/* A link out of the directory is never copied, whatever it leads to. The weights are only read. */
START_TEST(what_a_link_leads_to_is_not_published) {
    static const char *const names[] = {"generation_config.json", "special_tokens_map.json",
                                        "chat_template.jinja", "tokenizer_config.json"};
    ck_assert_int_eq(in_work("echo '{\"token\": \"SECRET\"}' >secret"), 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(
            in_work("rm -rf m o out.txt; cp -r $T/chat m; ln -s ../secret m/%s", names[i]), 0);
        ck_assert_int_eq(in_work("$B/sft --model m --data sft.jsonl $S --output o"), 2);
        ck_assert(says("a link to .*/secret, outside"));
        ck_assert_int_eq(in_work("! grep -rqs SECRET o"), 0);
    }
    // a text that is no JSON
    ck_assert_int_eq(in_work("rm -rf m o out.txt; cp -r $T/chat m; echo SECRET >m/k; ln -s k "
                             "m/generation_config.json"),
                     0);
    ck_assert_int_eq(in_work("$B/sft --model m --data sft.jsonl $S --output o"), 2);
    ck_assert(says("m/generation_config.json:1:"));
    // weights and links to nothing
    ck_assert_int_eq(in_work("rm -rf m o; cp -r $T/chat m; mv m/model.safetensors w; ln -s ../w "
                             "m/model.safetensors; ln -s nothing m/added_tokens.json; "
                             "$B/sft --model m --data sft.jsonl $S --output o && "
                             "test ! -e o/added_tokens.json -a ! -L o/model.safetensors"),
                     0);
}
END_TEST

/* MODEL/snapshots/REVISION/FILE -> ../../blobs/HASH */
START_TEST(the_cache_of_hugging_face_loads) {
    ck_assert_int_eq(in_work("rm -rf models--a--b o; mkdir -p models--a--b/blobs "
                             "models--a--b/snapshots/5f; cd models--a--b/snapshots/5f; "
                             "for f in $T/chat/*; do n=$(basename $f); cp $f ../../blobs/h-$n; "
                             "ln -s ../../blobs/h-$n $n; done; cd ../../..; "
                             "$B/sft --model models--a--b/snapshots/5f --data sft.jsonl $S "
                             "--output o && cmp o/vocab.json $T/chat/vocab.json"),
                     0);
    // another model's blobs are none of its files
    ck_assert_int_eq(in_work("rm -rf o; mkdir -p models--c/blobs; echo '{}' >models--c/blobs/x; "
                             "ln -s ../../../models--c/blobs/x "
                             "models--a--b/snapshots/5f/generation_config.json; "
                             "$B/sft --model models--a--b/snapshots/5f --data sft.jsonl $S "
                             "--output o"),
                     2);
}
END_TEST

/* ---- a save needs nothing but OUTPUT --------------------------------------------------------- */

START_TEST(the_model_directory_may_go_away_during_the_run) {
    ck_assert_int_eq(
        in_work("rm -rf m o out.txt; cp -r $T/chat m; echo '{\"a\": 1}' "
                ">m/generation_config.json; mkfifo p; "
                "$B/sft --model m --data sft.jsonl $S --max_steps 30 --save_steps 10 "
                "--logging_steps 1 --output o >p & "
                "while read l; do case $l in *checkpoint-10*) rm -rf m;; esac; done <p; wait $!; "
                "test ! -e m"),
        0);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(in_work("cmp $T/chat/vocab.json o/%svocab.json && "
                                 "grep -q '\"a\": 1' o/%sgeneration_config.json",
                                 i ? "checkpoint-30/" : "", i ? "checkpoint-30/" : ""),
                         0);
}
END_TEST

/* transformers writes this model_max_length when none was given: no integer of C holds it. */
START_TEST(a_number_of_any_size_is_kept) {
    ck_assert_int_eq(in_work("rm -rf m o out.txt; cp -r $T/chat m; echo '{\"model_max_length\": "
                             "1000000000000000019884624838656}' >m/tokenizer_config.json; $B/sft "
                             "--model m --data sft.jsonl $S --output o"),
                     0);
    ck_assert_int_eq(in_work("grep 1000000000000000019884624838656 o/tokenizer_config.json"), 0);
}
END_TEST

/* A template is published with the result as well, whichever directory brings it. */
START_TEST(a_template_that_is_a_link_is_refused) {
    static const char *const names[] = {"template.txt", "chat_template.jinja",
                                        "tokenizer_config.json"};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(
            in_work("rm -rf a o out.txt; echo '{\"chat_template\": \"key\"}' >key; $B/lora "
                    "--model $T --data d.jsonl $S --output a && rm -f a/*template* "
                    "a/tokenizer_config.json && ln -s ../key a/%s",
                    names[i]),
            0);
        ck_assert_int_eq(in_work("$B/lora --model $T --adapter a --merge o"), 2);
        ck_assert_msg(says("is a link out of its directory") && in_work("test -e o") != 0, "%s",
                      names[i]);
    }
}
END_TEST

/* ---- at no moment a mixture ------------------------------------------------------------------ */

/* Fails if o loads as anything but one model: with both kinds of config a library puts the adapter
   on the other model; with a config of other weights it does not load at all. */
static void ck_no_mixture(const char *when) {
    const bool model = !in_work("test -e o/config.json"),
               adapter = !in_work("test -e o/adapter_config.json"),
               weights = !in_work("test -e o/model.safetensors");
    ck_assert_msg(!(adapter && (model || weights)), "%s: an adapter and a model", when);
    if (model)
        ck_assert_msg(!in_work("$B/sft --model o --prompt a --max_new_tokens 1 </dev/null"),
                      "%s: config.json belongs to other weights", when);
}

/* Kills a run at each of its last operations on files. before: what makes the old result in o. */
static void kill_everywhere(const char *before, int last) {
    if (SANITIZED) {
        printf("  killed at operations on files: left out, this build has a sanitizer\n");
        return;
    }
    static const char run[] =
        "$B/sft --model $T/chat --data sft.jsonl $S --validation_split_"
        "percentage 0 --output o --overwrite_output_dir";
    ck_assert_int_eq(in_work("rm -rf o old; %s && mv o old && cp -r old o", before), 0);
    ck_assert_int_eq(in_work("FAULT=count FAULTS=$PWD/count LD_PRELOAD=$B/faults.so %s", run), 0);
    ck_assert_int_eq(in_work("test ! -e o/adapter_config.json -a ! -e o/best -a ! -e o/critic"), 0);
    ck_no_mixture("after the run");
    for (int k = 0; k < last; k++) {
        char when[32];
        ck_assert_int_eq(in_work("rm -rf o; cp -r old o"), 0);
        in_work("n=$(cut -d' ' -f3 count); FAULT=\"kill $((n - %d))\" LD_PRELOAD=$B/faults.so %s",
                k, run);
        snprintf(when, sizeof when, "killed at %d from the end", k);
        ck_no_mixture(when);
    }
}

START_TEST(a_model_replaces_an_adapter) {
    kill_everywhere(
        "$B/lora --model $T --data d.jsonl --eval d.jsonl $S --output o && test -e "
        "o/best/adapter_config.json",
        45);
}
END_TEST

START_TEST(a_model_replaces_one_of_another_shape) {
    kill_everywhere(
        "$B/full_ft --init d1-c16-h1-t64 --model $T --data d.jsonl $S --max_length 60 "
        "--output o && mkdir o/critic && cp o/config.json o/critic",
        45);
}
END_TEST

/* What the run reads is not removed, nor what is nobody's. */
START_TEST(inputs_and_notes_stay) {
    ck_assert_int_eq(
        in_work("rm -rf o; $B/lora --model $T --data d.jsonl --eval d.jsonl $S --output "
                "o; cp sft.jsonl o/transcripts.jsonl; mkdir o/critic; echo mine "
                ">o/critic/notes; echo mine >o/notes; rm -rf before; cp -r o before; "
                "$B/lora --model $T --adapter o/best --data d.jsonl $S --output o "
                "--overwrite_output_dir --allow_untrained; test $? = 2 && diff -r before o"),
        0);
    ck_assert(says("the run writes there itself"));
    ck_assert_int_eq(
        in_work("$B/lora --model $T --data d.jsonl $S --output o --overwrite_output_dir && "
                "test -e o/critic/notes -a -e o/notes -a -e o/adapter_config.json"),
        0);
    ck_assert_int_eq(in_work("cp sft.jsonl o/transcripts.jsonl; $B/sft --model $T/chat --data "
                             "o/transcripts.jsonl $S --output o --overwrite_output_dir && "
                             "cmp sft.jsonl o/transcripts.jsonl && "
                             "test ! -e o/best/adapter_config.json"),
                     0);
    ck_assert_int_eq(in_work("$B/sft --model $T/chat --data sft.jsonl,o/transcripts.jsonl $S "
                             "--output o --overwrite_output_dir && "
                             "cmp sft.jsonl o/transcripts.jsonl"),
                     0);
}
END_TEST

START_TEST(a_model_and_an_adapter_never_share_a_directory) {
    static const char *const flags[] = {"--output o --merge o",
                                        "--output o --merge x/../o/",
                                        "--output o --merge o/best",
                                        "--output o --merge o/checkpoint-1",
                                        "--output m",
                                        "--output o --merge m"};
    ck_assert_int_eq(in_work("rm -rf m x; cp -r $T/chat m; mkdir x"), 0);
    for (int i = 0; i < 6; i++) {
        ck_assert_msg(
            in_work("rm -rf o; $B/lora --model m --data d.jsonl $S --overwrite_output_dir "
                    "%s",
                    flags[i]) == 2,
            "%s", flags[i]);
        ck_assert_int_eq(in_work("test -e o/adapter_config.json"), 1);
    }
    ck_assert_int_eq(in_work("$B/lora --model m --data d.jsonl $S --output o --merge x/merged"), 0);
    ck_assert_int_eq(in_work("$B/lora --model m --adapter o --merge o --overwrite_output_dir "
                             "--allow_untrained"),
                     2);
    ck_assert_int_eq(in_work("$B/sft --model x/merged --prompt a --max_new_tokens 1"), 0);
}
END_TEST

/* ---- checkpoints, and a base that changes ---------------------------------------------------- */

/* A checkpoint without one of the files that the run needs is passed over. */
START_TEST(a_checkpoint_is_whole_or_passed_over) {
    static const struct {
        const char *run, *damage;
    } row[] = {
        {"sft --model $T/chat --data sft.jsonl", "rm o/checkpoint-2/config.json"},
        {"sft --model $T/chat --data sft.jsonl", "rm o/checkpoint-2/model.safetensors"},
        {"sft --model $T/chat --data sft.jsonl", "rm o/checkpoint-2/vocab.json"},
        {"sft --model $T/chat --data sft.jsonl", "echo {} >o/checkpoint-2/config.json"},
        {"lora --model $T --data d.jsonl", "rm o/checkpoint-2/adapter_config.json"},
        {"lora --model $T --data d.jsonl", "rm o/checkpoint-2/adapter_model.safetensors"},
        {"adapter --model $T --data d.jsonl", "truncate -s 999 o/checkpoint-2/adapter.safetensors"},
        {"ppo", "rm o/checkpoint-2/critic/model.safetensors"},
        {"ppo", "truncate -s 9999 o/checkpoint-2/critic/model.safetensors"},
        {"ppo", "rm -r o/checkpoint-2/critic"},
    };
    static const char ppo[] =
        "ppo --model $T/chat --reward_model $T/reward --data $T/prompts.jsonl "
        "--max_steps 2 --batch_size 4 --response_length 4 --eval_samples 0 "
        "--warmup_steps 0";
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char run[512];
        if (strcmp(row[i].run, "ppo"))
            snprintf(run, sizeof run, "$B/%s $S", row[i].run);
        else
            snprintf(run, sizeof run, "$B/%s", ppo);
        ck_assert_int_eq(
            in_work("rm -rf o out.txt; %s --max_steps 2 --save_steps 1 "
                    "--save_total_limit 0 --keep_moments --output o && cp -r o whole && %s",
                    run, row[i].damage),
            0);
        ck_assert_msg(in_work("%s --max_steps 2 --save_steps 1 --save_total_limit 0 --output o "
                              "--resume o/checkpoint-2",
                              run) == 2,
                      "%s", row[i].damage);
        ck_assert_msg(!in_work("%s --max_steps 2 --save_steps 1 --save_total_limit 0 --output o "
                               "--resume && cmp whole/log.jsonl o/log.jsonl && rm -rf whole",
                               run),
                      "%s", row[i].damage);
        ck_assert_msg(says("checkpoint-2 is incomplete and is skipped") &&
                          says("checkpoint-1 at step 1 of 2"),
                      "%s", row[i].damage);
    }
}
END_TEST

/* The base of a LoRA stays in its file. While it trains, the file becomes shorter, or its bytes
   change. */
START_TEST(a_base_that_changes_ends_the_run_with_a_sentence) {
    static const struct {
        const char *damage, *says;
    } row[] = {{"truncate -s 100000 m/model.safetensors",
                "m/model.safetensors \\(became shorter\\|has been written to\\)"},
               {"printf x | dd of=m/model.safetensors conv=notrunc bs=1 seek=200000",
                "m/model.safetensors has been written to"},
               {"truncate -s +1 m/model.safetensors", "m/model.safetensors has been written to"}};
    static const char run[] =
        "$B/lora --model m --data d.jsonl $S --max_steps 40 --save_steps 5 "
        "--logging_steps 1 --output o";
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(in_work("rm -rf m o p out.txt; cp -r $T m"), 0);
        ck_assert_int_eq(in_work("mkfifo p; %s >p & "
                                 "while read l; do case $l in *checkpoint-10*) %s;; esac; done <p; "
                                 "wait $!",
                                 run, row[i].damage),
                         1);
        ck_assert_msg(says(row[i].says), "%s", row[i].says);
        ck_assert_msg(says("use --resume"), "%s", row[i].says);
        ck_assert_int_eq(
            in_work("cp $T/model.safetensors m && test -e o/checkpoint-10 && %s --resume", run), 0);
    }
    // replaced by a rename, as programs should
    ck_assert_int_eq(
        in_work("rm -rf m o p out.txt; cp -r $T m; mkfifo p; cp $T/chat/model.safetensors "
                "new; %s >p & while read l; do case $l in *checkpoint-10*) "
                "mv new m/model.safetensors;; esac; done <p; wait $!",
                run),
        0);
}
END_TEST

/* ---- what is written can be read again ------------------------------------------------------- */

START_TEST(what_could_not_be_read_again_is_refused_before_training) {
    static const char *const flags[] = {
        "lora --target_modules c_attn,",
        "lora --target_modules ,c_attn",
        "lora --target_modules all-linear,c_attn",
        "adapter --reduction_factor 1e-3",
        "adapter --reduction_factor 1e-38",
        "full_ft --init d1-c1-h1-t1048576",
        "sft --template \"{instruction}$(head -c 65536 /dev/zero | tr '\\0' x)\"",
        "full_ft --template \"{instruction}$(yes '' | head -c 40000; echo x)\""};
    for (int i = 0; i < 8; i++) {
        ck_assert_msg(
            in_work("rm -rf o; $B/%s --model $T --data d.jsonl $S --output o", flags[i]) == 2, "%s",
            flags[i]);
        ck_assert_int_eq(in_work("test -e o/log.jsonl"), 1);
    }
    // the longest that can be read
    ck_assert_int_eq(
        in_work("rm -rf o; $B/sft --model $T --data d.jsonl $S --output o --template "
                "\"{instruction}$(head -c 65522 /dev/zero | tr '\\0' x)\" --max_steps 0"),
        0);
    char *o = path_join(work, "o"), *line;
    const char *from;
    Error e;
    ck_assert_int_eq(usage_template(o, "<|endoftext|>", &line, &from, NULL, &e), 0);
    ck_assert_uint_eq(strlen(line), MAX_TEMPLATE - 1);
    free(line);
    free(o);
    ck_assert_int_eq(in_work("rm -rf o; $B/adapter --model $T --data d.jsonl $S --output o "
                             "--adapter_dim 100 && $B/adapter --model $T --adapter o --prompt a "
                             "--allow_untrained --max_new_tokens 1"),
                     0);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {
        pipes_devices_and_directories_are_refused,
        what_a_link_leads_to_is_not_published,
        the_cache_of_hugging_face_loads,
        a_number_of_any_size_is_kept,
        a_template_that_is_a_link_is_refused,
        the_model_directory_may_go_away_during_the_run,
        a_model_replaces_an_adapter,
        a_model_replaces_one_of_another_shape,
        inputs_and_notes_stay,
        a_model_and_an_adapter_never_share_a_directory,
        a_checkpoint_is_whole_or_passed_over,
        a_base_that_changes_ends_the_run_with_a_sentence,
        what_could_not_be_read_again_is_refused_before_training,
    };
    const int failed = run_tests("bundle", setup, tests, sizeof tests / sizeof *tests);
    teardown();
    return failed > 0;
}
