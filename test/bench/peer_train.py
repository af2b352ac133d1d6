"""TRL, transformers and PEFT, used as their documentation shows. peers.py compares our programs with
them.

    python peer_train.py WORK models DATA
        the models both sides start from, into WORK
    python peer_train.py WORK train PROGRAM DATA SETTINGS PADDING
        prints "step I loss L rate R" after each optimiser step

SETTINGS is JSON, in the names of transformers' TrainingArguments; PADDING is longest (of the batch)
or max_length (128). The records come in the order of WORK/order.json, one after the other. Nothing
else of the libraries is changed, but for what would make it another computation: no dropout,
float32 in place of TRL's bfloat16, and gradient checkpointing only where SETTINGS say so.
"""

import json
import os
import shutil
import sys

import datasets
import peft
import torch
import transformers
import trl

MAX_LENGTH = 128
work, what = sys.argv[1], sys.argv[2]
no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def models(data):
    """gpt2: random weights of GPT-2 124M's size. reward: the same and a random head. lora: an
    adapter for gpt2, B zero."""
    transformers.set_seed(1)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    gpt2.save_pretrained(os.path.join(work, "gpt2"))
    reward = transformers.GPT2ForSequenceClassification.from_pretrained(
        os.path.join(work, "gpt2"), num_labels=1, pad_token_id=50256
    )
    reward.save_pretrained(os.path.join(work, "reward"))
    config = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(gpt2, config).save_pretrained(os.path.join(work, "lora"))
    for name in ("gpt2", "reward"):
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(os.path.join(data, "gpt2-vocab", file), os.path.join(work, name))
    with open(os.path.join(work, "versions"), "w") as f:
        f.write(
            ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft, trl))
        )


class InOrder:
    """Added to a trainer: the records as they come, and a line after each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss = 0.0
        self.add_callback(Line(self))

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)  # a micro-batch's share of the step's loss
        self.loss += loss.item()
        return loss


class Line(transformers.TrainerCallback):
    def __init__(self, trainer):
        self.trainer, self.rate = trainer, 0.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.rate = self.trainer.optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, **kwargs):
        print(
            f"step {state.global_step} loss {self.trainer.loss:.7f} rate {self.rate:.9g}",
            flush=True,
        )
        self.trainer.loss = 0.0


class SFT(InOrder, trl.SFTTrainer):
    pass


class Reward(InOrder, trl.RewardTrainer):
    pass


class Trainer(InOrder, transformers.Trainer):
    pass


def train(program, data, settings, padding):
    tokenizer = transformers.GPT2TokenizerFast(
        os.path.join(work, "gpt2", "vocab.json"), os.path.join(work, "gpt2", "merges.txt")
    )
    tokenizer.pad_token = tokenizer.eos_token  # as everybody does with GPT-2
    with open(data) as f, open(os.path.join(work, "order.json")) as g:
        lines = f.readlines()
        records = datasets.Dataset.from_list([json.loads(lines[i]) for i in json.load(g)])
    common = dict(
        settings,
        output_dir=os.path.join(work, "unused"),
        use_cpu=True,
        bf16=settings.get("bf16", False),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trl_common = dict(
        common,
        max_length=MAX_LENGTH,
        pad_to_multiple_of=MAX_LENGTH if padding == "max_length" else None,
    )
    if program == "sft":
        model = transformers.GPT2LMHeadModel.from_pretrained(
            os.path.join(work, "gpt2"), **no_dropout
        )
        trainer = SFT(
            model, trl.SFTConfig(**trl_common), train_dataset=records, processing_class=tokenizer
        )
    elif program == "reward":
        model = transformers.GPT2ForSequenceClassification.from_pretrained(
            os.path.join(work, "reward"), **no_dropout
        )
        trainer = Reward(
            model, trl.RewardConfig(**trl_common), train_dataset=records, processing_class=tokenizer
        )
    else:
        model = transformers.GPT2LMHeadModel.from_pretrained(
            os.path.join(work, "gpt2"), **no_dropout
        )
        if program == "lora":
            model = peft.PeftModel.from_pretrained(
                model, os.path.join(work, "lora"), is_trainable=True
            )

        # The loss is on the completion, or on all of a text but its first token. Nothing predicts
        # that one, yet the trainer would count it among the
        # tokens it divides by if it had a label: the loss of texts of 43 tokens came out 2.3 %
        # smaller.
        def tokenise(r):
            prompt = tokenizer(r.get("prompt") or "")["input_ids"]
            answer = tokenizer(r.get("completion") or r["text"])["input_ids"] + [
                tokenizer.eos_token_id
            ]
            first = len(prompt) or 1
            return {
                "input_ids": prompt + answer,
                "labels": [-100] * first + (prompt + answer)[first:],
            }

        collator = transformers.DataCollatorForSeq2Seq(
            tokenizer, padding=padding, max_length=MAX_LENGTH
        )  # pads labels with -100
        trainer = Trainer(
            model,
            transformers.TrainingArguments(**common),
            collator,
            records.map(tokenise, remove_columns=records.column_names),
        )
    trainer.train()


if what == "models":
    models(sys.argv[3])
else:
    train(sys.argv[3], sys.argv[4], json.loads(sys.argv[5]), sys.argv[6])
