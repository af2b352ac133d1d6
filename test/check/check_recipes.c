/*
 * check_recipes.c - seven recipes in the flags of transformers, TRL, PEFT and bitsandbytes, as
 * tutorials write them, one for each program, run here as they are, on few records.
 */
#include "program.h"

#include <string.h>
#include <unistd.h>

static char work[64] = "/tmp/check_recipes.XXXXXX";

/* W: the directory of the data and the outputs. */
static const struct {
    const char *program, *flags, *made;
} recipes[] = {
    {"sft",
     "--model_name_or_path test/tiny --train_file $W/sft.jsonl --validation_file $W/sft.jsonl "
     "--output_dir $W/sft --num_train_epochs 3 --per_device_train_batch_size 4 "
     "--gradient_accumulation_steps 2 --learning_rate 5e-5 --warmup_steps 1 --weight_decay 0.01 "
     "--max_seq_length 512 --logging_steps 10 --save_steps 500 --evaluation_strategy steps "
     "--eval_steps 100 --fp16 False --report_to none --packing False --seed 42",
     "model.safetensors"},
    {"full_ft",
     "--model_name_or_path=test/tiny --train_file=$W/text.jsonl --validation_file=$W/text.jsonl "
     "--output_dir=$W/full_ft --do_train --do_eval --num_train_epochs=5 "
     "--per_device_train_batch_size=2 --gradient_accumulation_steps=4 --learning_rate=2e-5 "
     "--lr_scheduler_type=cosine --warmup_ratio=0.1 --max_grad_norm=1.0 --gradient_checkpointing "
     "--eval_strategy=epoch --optim=adamw_torch --save_total_limit=2 --drop_last=True "
     "--dataloader_num_workers=0 --remove_unused_columns=False --report_to=none",
     "model.safetensors"},
    {"lora",
     "--model_name_or_path test/tiny --train_file $W/sft.jsonl --output_dir $W/lora --use_peft "
     "True --lora_r 16 --lora_alpha 32 --lora_dropout 0.1 --lora_target_modules c_attn --bias none "
     "--task_type CAUSAL_LM --fan_in_fan_out True --num_train_epochs 5 "
     "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --learning_rate 2e-4 "
     "--warmup_steps 1 --logging_steps 10 --eval_strategy no --report_to none",
     "adapter_model.safetensors"},
    {"lora",
     "--model_name_or_path test/tiny --train_file $W/sft.jsonl --output_dir $W/qlora "
     "--load_in_4bit True --bnb_4bit_quant_type nf4 --bnb_4bit_use_double_quant True "
     "--bnb_4bit_compute_dtype float32 --device_map auto --lora_r 8 --lora_alpha 16 --lora_dropout "
     "0.05 --lora_target_modules c_attn,c_proj --bias none --task_type CAUSAL_LM --max_steps 2 "
     "--learning_rate 2e-4 --warmup_steps 0 --optim adamw_torch --report_to none",
     "adapter_model.safetensors"},
    {"adapter",
     "--model_name_or_path test/tiny --train_file $W/sft.jsonl --output_dir $W/adapter "
     "--adapter_dim 64 --num_train_epochs 6 --per_device_train_batch_size 2 "
     "--gradient_accumulation_steps 4 --learning_rate 1e-4 --warmup_steps 1 --logging_steps 10 "
     "--evaluation_strategy no --report_to none --disable_tqdm True",
     "adapter.safetensors"},
    {"reward",
     "--model_name_or_path test/tiny/chat --train_file $W/pairs.jsonl --output_dir $W/reward "
     "--num_train_epochs 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
     "--learning_rate 1e-5 --warmup_steps 1 --max_length 256 --center_rewards_coefficient 0.01 "
     "--eval_strategy steps --logging_steps 10 --report_to none",
     "model.safetensors"},
    {"ppo",
     "--sft_model_path test/tiny/chat --reward_model_path test/tiny/reward --train_file "
     "$W/prompts.jsonl --output_dir $W/ppo --learning_rate 1e-5 --total_episodes 16 --batch_size 8 "
     "--per_device_train_batch_size 4 --num_ppo_epochs 4 --num_mini_batches 2 --kl_coef 0.05 "
     "--cliprange 0.2 --vf_coef 0.1 --gamma 1.0 --lam 0.95 --response_length 16 --temperature 0.7 "
     "--missing_eos_penalty 1.0 --report_to none",
     "model.safetensors"},
    {"constitutional",
     "--model_name_or_path test/tiny/chat --prompts $W/prompts.jsonl --output_dir "
     "$W/constitutional --constitution test/tiny/constitution.json --stop_phrases 'answer is good' "
     "--max_iterations 3 --temperature 0.7 --max_new_tokens 64 --num_train_epochs 3 "
     "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 1e-5 "
     "--warmup_steps 0 --logging_steps 10 --report_to none",
     "model.safetensors"},
};
enum { RECIPES = sizeof recipes / sizeof *recipes };

START_TEST(the_recipe_runs) {
    const char *program = recipes[_i].program;
    const int status = shell("W=%s; export W; %s/%s %s >%s/said 2>&1", work, build(), program,
                             recipes[_i].flags, work);
    if (status) shell("cat %s/said >&2", work);
    ck_assert_msg(status == 0, "%s: exit status %d", program, status);
    ck_assert_int_eq(shell("d=$(ls -td %s/*/ | head -n 1); test -s $d/%s && test -s $d/log.jsonl",
                           work, recipes[_i].made),
                     0);
}
END_TEST

/* Fewer examples than a batch: the default is off and a line says so; one that was given is named.
 */
START_TEST(a_default_does_not_leave_out_all_examples) {
    ck_assert_int_eq(shell("head -n 1 %s/sft.jsonl >%s/one.jsonl; %s/lora --model test/tiny --data "
                           "%s/one.jsonl --max_steps 1 --per_device_train_batch_size 2 >%s/said && "
                           "grep -q 'note: .* --dataloader_drop_last is off' %s/said",
                           work, work, build(), work, work, work),
                     0);
    ck_assert_int_eq(shell("%s/lora --model test/tiny --data %s/one.jsonl --max_steps 1 "
                           "--per_device_train_batch_size 2 --dataloader_drop_last >%s/said 2>&1",
                           build(), work, work),
                     2);
    ck_assert_int_eq(shell("grep -q -- --dataloader_drop_last %s/said", work), 0);
}
END_TEST

/* The table of defaults in common/README.md is what --help says. */
START_TEST(the_defaults_that_differ_are_listed) {
    static const char *const columns[] = {"sft",     "full_ft", "lora",
                                          "adapter", "reward",  "constitutional"};
    int rows = 0;
    FILE *f = fopen("common/README.md", "r");
    char line[512];
    ck_assert(f != NULL);
    while (fgets(line, sizeof line, f)) {
        char flag[64], trainer[32], value[6][32];
        if (sscanf(line, "| --%63s | %31s | %31s | %31s | %31s | %31s | %31s | %31s |", flag,
                   trainer, value[0], value[1], value[2], value[3], value[4], value[5]) != 8)
            continue;
        rows++;
        int differing = 0;
        for (int i = 0; i < 6; i++) {
            ck_assert_msg(shell("test \"$(%s/%s --help | awk '$1 == \"--%s\" { print $2 }')\" = "
                                "%s",
                                build(), columns[i], flag, value[i]) == 0,
                          "%s of %s is not %s", flag, columns[i], value[i]);
            differing += strcmp(value[i], trainer) != 0;
        }
        ck_assert_msg(differing > 0, "%s does not differ", flag);
    }
    fclose(f);
    ck_assert_int_ge(rows, 10);
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    setenv("OMP_NUM_THREADS", "1", 1);
    if (shell("head -n 24 test/tiny/sft.jsonl >%s/sft.jsonl && head -n 8 test/tiny/prompts.jsonl "
              ">%s/prompts.jsonl && head -n 12 test/tiny/preferences.jsonl >%s/pairs.jsonl && "
              "sed 's/.*\"response\": \\(\".*\"\\)[^\"]*/{\"text\": \\1}/' %s/sft.jsonl "
              ">%s/text.jsonl",
              work, work, work, work, work))
        return 1;
    Suite *s = suite_create("recipes");
    TCase *c = tcase_create("recipes");
    tcase_set_timeout(c, 600);
    tcase_add_loop_test(c, the_recipe_runs, 0, RECIPES);
    tcase_add_test(c, a_default_does_not_leave_out_all_examples);
    tcase_add_test(c, the_defaults_that_differ_are_listed);
    suite_add_tcase(s, c);
    const int failed = run_suite(s);
    shell("rm -rf %s", work);
    return failed != 0;
}
