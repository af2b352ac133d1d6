/*
 * spelling.c - flags of other libraries: see spelling.h.
 */
#include "run/spelling.h"

static const char *const aliases[][2] = {
    {"output_dir", "output"},
    {"model_name_or_path", "model"},
    {"base_model", "model"},
    {"train_file", "data"},
    {"validation_file", "eval"},
    {"eval_file", "eval"},
    {"resume_from_checkpoint", "resume"},
    {"drop_last", "dataloader_drop_last"},
    {"lora_r", "r"},
    {"lora_target_modules", "target_modules"},
    {"max_seq_length", "max_length"},
    {"train_batch_size", "per_device_train_batch_size"},
    {"reward_model_path", "reward_model"},
    {"sft_model_path", "model"},
    {NULL, NULL},
};

static const char *const meant[][2] = {
    {"lr", "learning_rate"},
    {"bs", "per_device_train_batch_size"},
    {"wd", "weight_decay"},
    {"epochs", "num_train_epochs"},
    {"steps", "max_steps"},
    {"dataset", "data"},
    {"checkpoint", "resume"},
    {"warmup", "warmup_steps"},
    {"alpha", "lora_alpha"},
    {"rank", "r"},
    {"beta", "kl_coef"},
    {"init_kl_coef", "kl_coef"},
    {"scheduler", "lr_scheduler_type"},
    {"gradient_clipping", "max_grad_norm"},
    {"rollout_batch_size", "batch_size"},
    {NULL, NULL},
};

#define NO_TRACKER "log.jsonl in --output is the only log; make plots draws it"
#define NO_HUB "nothing here talks to a hub; upload the directory of --output yourself"
#define ONE_DEVICE "the model runs on the CPU, or on the one GPU that ./sft_cuda was built for"
#define ONE_TYPE "the numbers are float32; --bf16 and --load_in_4bit are the other formats"
#define IN_MEMORY "the records are read once, before training, and stay in memory"
#define NO_BEAMS "answers are sampled, by --temperature, --top_k and --top_p"

static const struct {
    const char *name, *values, *why;
} foreign[] = {
    // the value is what happens anyway
    {"report_to", "none|[]", NO_TRACKER},
    {"eval_strategy", "no|steps|epoch", "held-out records are measured every --eval_steps"},
    {"evaluation_strategy", "no|steps|epoch", "held-out records are measured every --eval_steps"},
    {"greater_is_better", "false|none", "the model with the lowest held-out loss is the best"},
    {"save_safetensors", "true", "models are written as safetensors"},
    {"logging_strategy", "steps", "a line is logged every --logging_steps"},
    {"bias", "none", "the biases of the base model stay frozen"},
    {"lora_bias", "none|false", "the biases of the base model stay frozen"},
    {"task_type", "causal_lm", "a LoRA changes a language model"},
    {"fan_in_fan_out", "true", "GPT-2's matrices have their inputs in rows"},
    {"bnb_4bit_quant_type", "nf4", "four bits are NF4"},
    {"bnb_4bit_compute_dtype", "float32|torch.float32", "NF4 is multiplied in float32"},
    {"load_in_8bit", "false", "the base model can have four bits: --load_in_4bit"},
    {"optim", "adamw_torch|adamw_torch_fused|adamw_hf|adamw", "the optimiser is AdamW"},
    {"do_train", "true", "--max_steps 0 only evaluates"},
    {"do_eval", "true", "held-out records are measured if there are any"},
    {"use_peft", "true", "./lora and ./adapter train adapters, ./full_ft the whole model"},
    {"packing", "false", "nothing is padded, so packing would save nothing"},
    {"group_by_length", "false", "nothing is padded, so grouping would save nothing"},
    {"completion_only_loss", "true", "--train_on_prompt scores the prompt, too"},
    {"assistant_only_loss", "true", "--train_on_prompt scores the prompt, too"},
    {"dataset_text_field", "text", "plain text is in the field text"},
    {"remove_unused_columns", "true|false", "fields that are not used are named"},
    {"label_smoothing_factor", "0|0.0", "the loss has no label smoothing"},
    {"torch_dtype", "float32|torch.float32|auto", ONE_TYPE},
    {"dtype", "float32|torch.float32|auto", ONE_TYPE},
    {"tf32", "false", ONE_TYPE},
    {"device_map", "cpu|auto|none", ONE_DEVICE},
    {"device", "cpu", ONE_DEVICE},
    {"use_cpu", "true", ONE_DEVICE},
    {"no_cuda", "true", ONE_DEVICE},
    {"fsdp", "", ONE_DEVICE},
    {"deepspeed", "", ONE_DEVICE},
    {"ddp_find_unused_parameters", "true|false", ONE_DEVICE},
    {"local_rank", "-1|0", ONE_DEVICE},
    {"torch_compile", "false", "nothing is compiled at run time"},
    {"attn_implementation", "eager|sdpa", "there is one implementation of attention"},
    {"trust_remote_code", "false", "no code of a model is executed"},
    {"push_to_hub", "false", NO_HUB},
    {"disable_tqdm", "true|false", "progress is shown on a terminal only"},
    {"do_sample", "true", "--temperature 0 takes the likeliest token"},
    {"num_beams", "1", NO_BEAMS},
    {"repetition_penalty", "1|1.0", NO_BEAMS},
    {"no_repeat_ngram_size", "0", NO_BEAMS},
    {"length_penalty", "1|1.0", NO_BEAMS},
    // no value has a counterpart
    {"logging_dir", "", NO_TRACKER},
    {"run_name", "", NO_TRACKER},
    {"hub_model_id", "", NO_HUB},
    {"hub_token", "", NO_HUB},
    {"dataset_name", "", "data are files: --data FILE, JSON lines"},
    {"data_seed", "", "--seed is the seed of everything"},
    {"dataloader_num_workers", "0", IN_MEMORY},
    {"dataloader_pin_memory", "true|false", IN_MEMORY},
    {"preprocessing_num_workers", "1", IN_MEMORY},
    {"streaming", "false", IN_MEMORY},
    {"per_device_eval_batch_size", "",
     "held-out records are measured in batches of --per_device_train_batch_size, which changes no "
     "figure"},
    {"auto_find_batch_size", "false", "--dry_run prints the memory that a batch needs"},
    {"modules_to_save", "none|null", "only the LoRA is trained"},
};

static const char *look_up(const char *const (*table)[2], const char *name) {
    while ((*table)[0] && strcmp((*table)[0], name)) table++;
    return (*table)[1];
}

const char *spelling_alias(const char *name) { return look_up(aliases, name); }

const char *spelling_meant(const char *name) { return look_up(meant, name); }

bool spelling_foreign(const char *name, const char **values, const char **why) {
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        if (strcmp(foreign[i].name, name)) continue;
        *values = foreign[i].values;
        *why = foreign[i].why;
        return true;
    }
    return false;
}
