"""Compares our programs with the libraries that people use: TRL, PEFT, transformers, PyTorch.
At GPT-2 124M's size, on the CPU, in float32.

    make && python test/bench/peers.py curves [sft full_ft lora reward]
        50 steps of each, ours and theirs: the losses, step by step
    make && python test/bench/peers.py tokens
        one iteration of PPO on the same answers: the numbers of every token
    make && python test/bench/peers.py speed [sft full_ft lora reward]
        seconds and peak memory in turns, on padded data and on ours
    make && python test/bench/peers.py ppo
        one iteration of PPO by ./ppo and by peer_ppo.py, in turns
    make && python test/bench/peers.py bf16 [sft full_ft lora reward]
        200 steps in float32 and in bf16 (theirs: autocast): the losses
    make && make .build/cc/bench && python test/bench/peers.py steps [--realtime]
        a step on 4 x 256 tokens by bench and by peer_step.py, in turns
    make && python test/bench/peers.py ppo --bf16
        the same with --bf16 and with autocast
    make && python test/bench/peers.py measure
        speed and ppo, for a quiet machine

(python: one with torch, transformers, peft and trl; `make test` needs none of this.) --rounds N
turns of speed and ppo, --steps N timed steps of speed, --threads N, --quick only to see that it
runs. The vocabulary and the records come from SHARED (../shared); models and files are in
.build/peers. Nothing is downloaded.

The weights are random, made and saved by transformers, so that nobody's checkpoint is needed. Both
sides get the same file of records, the same starting weights (also of the reward's head and of
LoRA's A and B, which PEFT draws) and the same hyper-parameters, without dropout; each tokenises and
batches by itself. The order of the records is a function of the seed: it is computed here from its
definition (Philox, util.h) and theirs get the records in that order. This process loads nothing
large, so that its children's peak memory is their own.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WORK = os.path.join(ROOT, ".build", "peers")
DATA = os.path.join(os.environ.get("SHARED", os.path.join(ROOT, "..", "shared")), "data")
PROGRAMS = ["sft", "full_ft", "lora", "reward"]
PEER = {
    "sft": "TRL's SFTTrainer",
    "full_ft": "transformers' Trainer",
    "lora": "transformers' Trainer with PEFT",
    "reward": "TRL's RewardTrainer",
}
TEMPLATE = "### Instruction:\n%s\n\n%s### Response:\n"
MAX_LENGTH = 128  # of the records timed, and what "to max_length" pads to

# ---- what both sides get -------------------------------------------------------------------------


def prompt_of(record):
    return TEMPLATE % (
        record["instruction"],
        "### Input:\n%s\n\n" % record["input"] if record["input"] else "",
    )


def read(name):
    with open(os.path.join(DATA, name)) as f:
        return [json.loads(line) for line in f]


def records(program, speed):
    """As a prompt's last character is a newline and an answer's first is none, no token reaches
    across their border: one tokenisation for all."""
    clean = lambda *texts: all(t and t == t.strip() for t in texts)
    if program == "reward":
        return [
            {"prompt": prompt_of(r), "chosen": r["chosen"], "rejected": r["rejected"]}
            for r in read("instructions/preferences.jsonl")
            if clean(r["chosen"], r["rejected"]) and r["chosen"] != r["rejected"]
        ]
    if speed or program == "sft":
        return [
            {"prompt": prompt_of(r), "completion": r["output"]}
            for r in read("instructions/alpaca-style.jsonl")
            if clean(r["output"])
        ]
    if program == "lora":
        return [
            {"prompt": r["prompt"] + "\n", "completion": r["completion"]}
            for r in read("e2e-nlg/valid.jsonl")
            if clean(r["completion"])
        ]
    return [
        {"text": r["instruction"] + "\n" + r["response"]} for r in read("korean/chat.jsonl")
    ]  # full_ft: plain text, and not in ASCII


def prepare(program, n, longest, speed):
    """Writes n records of at most `longest` tokens, ending included. Returns the file, and how many
    tokens each text of each record has."""
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer(
        os.path.join(WORK, "gpt2", "vocab.json"), os.path.join(WORK, "gpt2", "merges.txt")
    )
    count = lambda text: len(tokenizer.encode(text).ids)
    path, kept, lengths = (
        os.path.join(WORK, f"{program}-{'speed' if speed else 'curves'}.jsonl"),
        [],
        [],
    )
    for r in records(program, speed):
        texts = [
            r.get("prompt", "") + r[part]
            for part in ("chosen", "rejected", "completion", "text")
            if part in r
        ]
        tokens = [count(t) + 1 for t in texts]  # and the end of text
        if max(tokens) > longest or len(kept) == n:
            continue
        kept.append(r)
        lengths.append(tokens)
    assert len(kept) == n
    with open(path, "w") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
    return path, lengths


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011)."""
    c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def permutation(n, seed, purpose, epoch):
    """As random_permutation in util.h."""
    order, key = list(range(n)), seed ^ (purpose * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    for i in range(n - 1, 0, -1):
        j = philox([0, i, 0, epoch], key)[0] * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return order


def in_our_order(n, total, seed):
    """The records that our programs train on, one after another: n in the file, `total` in all.
    First the split (nothing is held out), then epochs."""
    SHUFFLE, SPLIT = 2, 3
    split, order = permutation(n, seed, SPLIT, 0), []
    for epoch in range(-(-total // n)):
        order += [split[i] for i in permutation(n, seed, SHUFFLE, epoch)]
    return order[:total]


# ---- running one of them -------------------------------------------------------------------------


def run(command, threads, log):
    """Runs a program that prints "step I ..." or, in a table, "I/N ..." as it goes; log gets all
    that it prints. Returns the seconds at which each such line came, all lines of stdout, and its
    peak memory, bytes."""
    environment = dict(
        os.environ,
        OMP_NUM_THREADS=str(threads),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=os.path.join(WORK, "cache"),
        TOKENIZERS_PARALLELISM="false",
    )
    with open(log, "w") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT
        )
        at, lines = [], []
        for line in child.stdout:
            if re.match(r"step \d| *\d+/\d+ ", line):
                at.append(time.monotonic())
            lines.append(line)
            print(line, end="", file=errors, flush=True)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status  # it is waited for
    if status:
        sys.exit(
            f"failed ({os.waitstatus_to_exitcode(status)}): {' '.join(command)}\n"
            + "".join(lines[-5:])
            + f"see {log}"
        )
    return at, lines, usage.ru_maxrss * 1024


def say(text):
    print("# " + text, file=sys.stderr, flush=True)


def theirs(*arguments):
    return [sys.executable, os.path.join(HERE, "peer_train.py"), WORK] + [str(a) for a in arguments]


def models():
    """The models, once."""
    if not os.path.exists(os.path.join(WORK, "done")):
        shutil.rmtree(WORK, ignore_errors=True)
        os.makedirs(WORK)
        run(theirs("models", DATA), 1, os.path.join(WORK, "models.log"))
        open(os.path.join(WORK, "done"), "w").close()


def ours(program, data, settings, output):
    model = os.path.join(WORK, "reward" if program == "reward" else "gpt2")
    command = [
        os.path.join(ROOT, program),
        "--model",
        model,
        "--data",
        data,
        "--validation_split_percentage",
        "0",
        "--logging_steps",
        "1",
        "--dropout",
        "0",
        "--max_length",
        str(MAX_LENGTH),
    ]
    command += [] if program == "reward" else ["--eval_samples", "0"]
    command += ["--adapter", os.path.join(WORK, "lora")] if program == "lora" else []
    for name, value in settings.items():
        command += [f"--{name}={str(value).lower()}"]
    return command + (
        ["--output", output, "--overwrite_output_dir", "--save_steps", "0"] if output else []
    )


# ---- A: the losses -------------------------------------------------------------------------------


def steps_of(program, data, settings, who, threads):
    """The loss and the learning rate of each step of a run."""
    if who == "ours":
        output = os.path.join(WORK, "out")
        run(ours(program, data, settings, output), threads, os.path.join(WORK, "ours.log"))
        with open(os.path.join(output, "log.jsonl")) as f:
            lines = [json.loads(line) for line in f if '"loss"' in line]
        shutil.rmtree(output)
        return [(line["loss"], line["learning_rate"]) for line in lines]
    command = theirs("train", program, data, json.dumps(settings), "longest")
    _, lines, _ = run(command, threads, os.path.join(WORK, "theirs.log"))
    return [
        tuple(float(x) for x in re.findall(r"(?:loss|rate) (\S+)", line))
        for line in lines
        if line.startswith("step ")
    ]


def curves(programs, threads):
    """50 steps of 2 x 2 records, two epochs, so that accumulation, warm-up, decay and the end of an
    epoch are all in it."""
    steps, batch, accumulation, seed = 50, 2, 2, 42
    print(
        "| | peer | records | loss, first and last step, ours | theirs | largest difference | at "
        "step |\n|---|---|---|---|---|---|---|"
    )
    worst = 0
    for program in programs:
        settings = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": steps,
            "seed": seed,
            "learning_rate": 1e-3 if program == "lora" else 2e-5 if program == "reward" else 1e-4,
            "warmup_steps": 10,
            "lr_scheduler_type": "linear",
            "weight_decay": 0.01,
            "max_grad_norm": 1,
            "gradient_checkpointing": program == "full_ft",
        }
        n = steps * batch * accumulation // 2
        data, _ = prepare(program, n, 80, False)
        with open(os.path.join(WORK, "order.json"), "w") as f:
            json.dump(in_our_order(n, 2 * n, seed), f)
        a = steps_of(program, data, settings, "ours", threads)
        b = steps_of(program, data, settings, "theirs", threads)
        assert len(a) == len(b) == steps
        difference = [abs(x[0] - y[0]) for x, y in zip(a, b)]
        assert all(
            abs(x[1] - y[1]) <= 1e-6 * settings["learning_rate"] for x, y in zip(a, b)
        ), "another learning rate"
        with open(os.path.join(WORK, f"{program}-losses.txt"), "w") as f:
            f.writelines(
                f"{i + 1} {x[0]:.7f} {y[0]:.7f} {d:.1e}\n"
                for i, (x, y, d) in enumerate(zip(a, b, difference))
            )
        most = max(difference)
        worst = max(worst, most)
        print(
            f"| {program} | {PEER[program]} | {n} | {a[0][0]:.5f}, {a[-1][0]:.5f} | "
            f"{b[0][0]:.5f}, {b[-1][0]:.5f} | {most:.1e} | "
            f"{difference.index(most) + 1} |",
            flush=True,
        )
    print(
        f"\nlargest difference {worst:.1e}: {'within' if worst <= 1e-3 else 'NOT within'} 1e-3 "
        f"(each step's losses: {WORK}/*-losses.txt)"
    )
    return worst <= 1e-3


def curves_bf16(programs, threads):
    """200 steps of the same records in the same order, in float32 and in bf16, by our program and
    by the library's (autocast)."""
    steps, batch, seed, part = 200, 2, 42, 20
    for program in programs:
        settings = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "max_steps": steps,
            "seed": seed,
            "learning_rate": 1e-3 if program == "lora" else 2e-5 if program == "reward" else 1e-4,
            "warmup_steps": 20,
            "lr_scheduler_type": "linear",
            "weight_decay": 0.01,
            "max_grad_norm": 1,
            "gradient_checkpointing": False,
        }
        n = steps * batch // 4  # four epochs
        data, _ = prepare(program, n, 80, False)
        with open(os.path.join(WORK, "order.json"), "w") as f:
            json.dump(in_our_order(n, 4 * n, seed), f)
        curve = {}
        for who in ("ours", "theirs"):
            for bf16 in (False, True):
                run_settings = dict(settings, bf16=bf16)
                curve[who, bf16] = [
                    loss for loss, _ in steps_of(program, data, run_settings, who, threads)
                ]
                assert len(curve[who, bf16]) == steps
        names = [("ours", False), ("ours", True), ("theirs", False), ("theirs", True)]
        with open(os.path.join(WORK, f"{program}-bf16.txt"), "w") as f:
            for i in range(steps):
                f.write(f"{i + 1} " + " ".join(f"{curve[k][i]:.6f}" for k in names) + "\n")
        print(f"| {program}, mean of the steps | ours, float32 | ours, bf16 | {PEER[program]}, "
              "float32 | the same, autocast |\n|---|---|---|---|---|")
        for at in range(0, steps, part):
            cells = " | ".join(f"{statistics.mean(curve[k][at : at + part]):.4f}" for k in names)
            print(f"| {at + 1} to {at + part} | {cells} |")
        for a, b in ((names[0], names[1]), (names[2], names[3]), (names[0], names[2])):
            apart = [abs(x - y) for x, y in zip(curve[a], curve[b])]
            print(f"\n{a} and {b}: a step's losses differ by {statistics.mean(apart):.1e} in the "
                  f"mean, at most by {max(apart):.1e}", flush=True)


# ---- B: speed and memory -------------------------------------------------------------------------


def middle(values):
    return statistics.median(values)


def speed(programs, rounds, steps, threads):
    """Steps of 16 sequences of natural length (of pairs: 8), in turns. A rate counts the real
    tokens (of a pair, prompt and answer twice), no matter how many tokens a program computes. The
    first step does not count."""
    seed, result, share = 42, {}, {}
    for k in range(rounds):
        for program in programs:
            batch = 8 if program == "reward" else 16
            settings = {
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 1,
                "max_steps": steps + 1,
                "seed": seed,
                "learning_rate": 1e-5,
                "warmup_steps": 0,
                "lr_scheduler_type": "constant",
                "weight_decay": 0.01,
                "max_grad_norm": 1,
                "gradient_checkpointing": program == "full_ft",
            }
            n = batch * (steps + 1)
            data, lengths = prepare(program, n, MAX_LENGTH, True)
            order = in_our_order(n, n, seed)
            with open(os.path.join(WORK, "order.json"), "w") as f:
                json.dump(order, f)
            batches = [
                [t for i in order[at : at + batch] for t in lengths[i]]
                for at in range(batch, n, batch)
            ]
            real = sum(map(sum, batches))
            share[program] = [
                100 * real / sum(len(b) * longest for b, longest in padded)
                for padded in ([(b, max(b)) for b in batches], [(b, MAX_LENGTH) for b in batches])
            ]
            for who in ("ours", "longest", "max_length"):
                command = (
                    ours(program, data, settings, None)
                    if who == "ours"
                    else theirs("train", program, data, json.dumps(settings), who)
                )
                at, _, memory = run(command, threads, os.path.join(WORK, "speed.log"))
                assert len(at) == steps + 1
                result.setdefault((program, who), []).append(
                    (real / (at[-1] - at[0]), memory / 1e9)
                )
                say(
                    f"round {k + 1} {program} {who}: {real / (at[-1] - at[0]):.1f} tokens/s, "
                    f"{memory / 1e9:.3f} GB"
                )
    print(
        f"| {rounds} rounds | ours: tokens/s (range), peak | padded to the longest of the batch | "
        f"real | ours by that | "
        f"padded to {MAX_LENGTH} | real | ours by that |"
    )
    print("|" + "---|" * 8)
    for program in programs:
        rates, peaks = (
            {who: [r[k] for r in result[program, who]] for who in ("ours", "longest", "max_length")}
            for k in (0, 1)
        )
        cell = (
            lambda who: f"{middle(rates[who]):.0f} ({min(rates[who]):.0f} to {max(rates[who]):.0f}), {middle(peaks[who]):.2f} GB"
        )
        by = lambda who: "%.2f times, %.0f %% of the memory" % (
            middle([a / b for a, b in zip(rates["ours"], rates[who])]),
            100 * middle([a / b for a, b in zip(peaks["ours"], peaks[who])]),
        )
        print(
            f"| {program}; {PEER[program]} | {cell('ours')} | "
            + " | ".join(
                f"{cell(who)} | {real:.0f} % | {by(who)}"
                for who, real in zip(("longest", "max_length"), share[program])
            )
            + " |",
            flush=True,
        )


# ---- C: PPO --------------------------------------------------------------------------------------

SETTINGS = {
    "batch_size": 32,
    "response_length": 48,
    "max_prompt_length": 64,
    "num_ppo_epochs": 4,
    "num_mini_batches": 1,
    "per_device_train_batch_size": 8,
    "temperature": 0.7,
    "learning_rate": 3e-6,
    "adam_epsilon": 1e-5,
    "weight_decay": 0,
    "max_grad_norm": 1,
    "kl_coef": 0.05,
    "vf_coef": 0.1,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "gamma": 1,
    "lam": 0.95,
    "seed": 42,
}


def ppo_commands(settings, *more):
    """./ppo and peer_ppo.py for one iteration. The prompts are longer than max_prompt_length: both
    keep their last tokens, so that all have one length."""
    prompts = os.path.join(WORK, "prompts.jsonl")
    with open(prompts, "w") as f:
        texts = [r["prompt"] for r in read("summaries/news.jsonl") if len(r["prompt"]) > 1000]
        f.writelines(
            json.dumps({"prompt": text[:1000]}) + "\n" for text in texts[: settings["batch_size"]]
        )
    mine = [
        os.path.join(ROOT, "ppo"),
        "--model",
        os.path.join(WORK, "gpt2"),
        "--reward_model",
        os.path.join(WORK, "reward"),
        "--data",
        prompts,
        "--max_steps",
        "1",
        "--no_exact_kl",
        *more,
    ] + [f"--{name}={str(value).lower()}" for name, value in settings.items()]
    return mine, [
        sys.executable,
        os.path.join(HERE, "peer_ppo.py"),
        WORK,
        prompts,
        json.dumps(settings),
    ]


def tokens(threads):
    """A small iteration by ./ppo; then PyTorch, given its answers, computes everything else of
    it."""
    rollouts, output = os.path.join(WORK, "rollouts.jsonl"), os.path.join(WORK, "out")
    settings = dict(
        SETTINGS,
        batch_size=8,
        per_device_train_batch_size=4,
        max_prompt_length=32,
        response_length=24,
    )
    mine, peer = ppo_commands(
        settings,
        "--dump_rollouts",
        rollouts,
        "--output",
        output,
        "--overwrite_output_dir",
        "--save_steps",
        "0",
    )
    run(mine, threads, os.path.join(WORK, "ours.log"))
    with open(os.path.join(output, "log.jsonl")) as f:
        log = json.loads(f.readline())
    shutil.rmtree(output)
    _, lines, _ = run(peer + [rollouts], threads, os.path.join(WORK, "theirs.log"))
    result = json.loads(lines[-1])
    print(
        "largest difference over 8 answers of 24 tokens: "
        + ", ".join(f"{name} {d:.1e}" for name, d in result["apart"].items())
    )
    print(
        "after 4 epochs, ours and theirs: "
        + ", ".join(
            f"{name} {log[name]:.6g} {value:.6g}" for name, value in result["update"].items()
        )
    )
    return (
        max(
            list(result["apart"].values())
            + [abs(log[name] - value) for name, value in result["update"].items()]
        )
        <= 1e-3
    )


def ppo(rounds, threads, settings):
    """One iteration: 32 prompts of 64 tokens, answers of 48, 4 epochs of one minibatch, 8 sequences
    at a time. No answer ends early, none is padded."""
    mine, peer = ppo_commands(settings, "--rollout_slots", "32")
    parts = ("rollout", "scoring", "update")
    result = {"ours": [], "theirs": []}
    for k in range(rounds):
        for who, command in (("ours", mine), ("theirs", peer)):
            _, lines, memory = run(command, threads, os.path.join(WORK, "ppo.log"))
            text = "".join(lines)
            seconds = [float(re.search(part + r" ([\d.]+) s", text).group(1)) for part in parts]
            length = re.search(r"lengths/mean (\S+)|^ *1/1 +\S+ +\S+ +(\S+)", text, re.M)
            if float(length.group(1) or length.group(2)) != settings["response_length"]:
                sys.exit(
                    "an answer ended early: the two did not do the same work; use another seed"
                )
            result[who].append(seconds + [sum(seconds), memory / 1e9])
            say(
                f"round {k + 1} ppo {who}: "
                + ", ".join(f"{p} {s:.1f} s" for p, s in zip(parts, seconds))
                + f", {memory / 1e9:.3f} GB"
            )
    print(
        f"| one iteration of PPO, {rounds} rounds | ours (range) | PyTorch (range) | PyTorch by "
        f"ours |\n|---|---|---|---|"
    )
    for i, name in enumerate(parts + ("in all", "peak memory")):
        a, b = [r[i] for r in result["ours"]], [r[i] for r in result["theirs"]]
        show = lambda x: f"{middle(x):.2f} ({min(x):.2f} to {max(x):.2f}) {'GB' if i == 4 else 's'}"
        print(
            f"| {name} | {show(a)} | {show(b)} | {middle([y / x for x, y in zip(a, b)]):.2f} |",
            flush=True,
        )


# ---- D: steps ------------------------------------------------------------------------------------

FORMS = [
    # ours, theirs, MKL's AVX-512 kernels, compiled or not
    ("", "float32", True, "eager"),
    ("--bf16", "autocast", False, "eager"),
    ("--bf16", "autocast", False, "compiled"),
    ("", "float32", True, "compiled"),
    ("--bf16", "bfloat16", False, "compiled"),
    ("", "float32", False, "eager"),
]


def intel_cpu():
    """A library that makes MKL use its AVX-512 kernels on CPUs of other makers."""
    path = os.path.join(WORK, "intel_cpu.so")
    source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True
    )
    return path


def ahead(pid):
    """Moves a process before all others of this machine."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(10))


def behind(pid):
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def our_step(flag, shape, threads, realtime):
    """The better of two steps, in seconds."""
    number = ["4x256", "4x256 checkpointing", "2x512", "4x64", "1x1024"].index(shape)
    command = [] if not realtime else ["chrt", "-f", "10"]
    command += [os.path.join(ROOT, ".build", os.environ.get("FLAVOUR", "cc"), "bench"), "--quick"]
    command += ["--threads", str(threads), "--step", str(number)] + flag.split()
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout
    row = [line.split("\t") for line in out.splitlines() if line.startswith(f"step\t{shape}\t")]
    return float(row[0][2]) / 1000


def steps_in_turns(rounds, threads, realtime, shape):
    """A step of ours and of each form of PyTorch, in turns. Each of theirs is one process, which
    waits while others run."""
    S, T = shape.split("x")
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    print(
        "| | theirs, seconds a step (range) | ours (range) | ours is faster by |\n|---|---|---|---|"
    )
    for flag, precision, avx512, form in FORMS:
        child = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "peer_step.py"), precision, form, S, T],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment, LD_PRELOAD=intel_cpu()) if avx512 else environment,
        )
        name = f"{precision}{', AVX-512 of MKL' if avx512 else ''}, {form}"
        if child.stdout.readline() != "ready\n":
            sys.exit(f"{name} failed")
        a, b = [], []
        for k in range(rounds):
            best = None
            if realtime:
                ahead(child.pid)
            for _ in range(2):
                child.stdin.write("\n")
                child.stdin.flush()
                t = float(child.stdout.readline())
                best = t if best is None else min(best, t)
            if realtime:
                behind(child.pid)
            b.append(best)
            a.append(our_step(flag, shape, threads, realtime))
            say(f"round {k + 1} {name}: {b[-1]:.3f} s, ours {a[-1]:.3f} s")
        child.stdin.close()
        child.wait()
        show = lambda x: f"{middle(x):.2f} ({min(x):.2f} to {max(x):.2f})"
        print(
            f"| {name} | {show(b)} | {show(a)} | {middle([y / x for x, y in zip(a, b)]):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["curves", "tokens", "speed", "ppo", "measure", "steps", "bf16"]
    )
    parser.add_argument("programs", nargs="*", help="of " + ", ".join(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="of ppo: --bf16, and autocast")
    parser.add_argument(
        "--realtime", action="store_true", help="of steps: ahead of all other processes"
    )
    parser.add_argument("--shape", default="4x256", help="of steps")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of one step, a smaller PPO: to see that it runs, not for a page",
    )
    args = parser.parse_args()
    programs = args.programs or PROGRAMS
    rounds, steps = (1, 1) if args.quick else (args.rounds, args.steps)
    models()
    with open(os.path.join(WORK, "versions")) as f:
        print(
            f"# {args.what}, {args.threads} threads, load average {os.getloadavg()[0]:.2f}; "
            f"{f.read().strip()}",
            flush=True,
        )
    good = (
        curves(programs, args.threads)
        if args.what == "curves"
        else tokens(args.threads) if args.what == "tokens" else True
    )
    if args.what == "bf16":
        curves_bf16(programs, args.threads)
    if args.what == "steps":
        steps_in_turns(rounds, args.threads, args.realtime, args.shape)
    if args.what in ("speed", "measure"):
        speed(programs, rounds, steps, args.threads)
        print()
    if args.what in ("ppo", "measure"):
        ppo(
            rounds,
            args.threads,
            dict(
                SETTINGS,
                bf16=args.bf16,
                **(
                    {"batch_size": 8, "per_device_train_batch_size": 4, "num_ppo_epochs": 1}
                    if args.quick
                    else {}
                ),
            ),
        )
    sys.exit(0 if good else 1)
