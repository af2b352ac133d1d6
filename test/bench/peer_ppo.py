"""One iteration of PPO in PyTorch and transformers, as a careful reader of ppo.c would write it.
peers.py compares ./ppo with it.

    python peer_ppo.py WORK PROMPTS SETTINGS
        an iteration of its own answers; prints the seconds of rollout, scoring, update
    python peer_ppo.py WORK PROMPTS SETTINGS ROLLOUTS
        with the answers of a file that ./ppo --dump_rollouts wrote: prints how far the numbers of
                                                         their tokens are apart, and what the
                                                         updates gave

SETTINGS is JSON, in the names of ppo's flags; with bf16 everything runs under autocast. Policy,
reference, reward model and critic are four models of GPT-2's size in float32. What makes such a
loop fast is there: a cache of keys and values in generation, log-probabilities of the answers kept
from it, logits only of the rows that are scored, a fused AdamW, no dropout. All prompts have one
length and so have all answers, so nothing is padded.
"""

import json
import os
import sys
import time

import torch
import transformers

work, prompts, s = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
P, A, B, E = (
    s["max_prompt_length"],
    s["response_length"],
    s["per_device_train_batch_size"],
    s["batch_size"],
)
torch.manual_seed(s["seed"])
torch.autocast("cpu", torch.bfloat16, enabled=bool(s.get("bf16"))).__enter__()  # to the end
no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
lm = lambda: transformers.GPT2LMHeadModel.from_pretrained(os.path.join(work, "gpt2"), **no_dropout)
scores = lambda: transformers.GPT2ForSequenceClassification.from_pretrained(
    os.path.join(work, "reward"), **no_dropout
)
policy, reference, reward_model, critic = (
    lm(),
    lm().requires_grad_(False),
    scores().requires_grad_(False),
    scores(),
)
adamw = lambda m: torch.optim.AdamW(
    m.parameters(),
    lr=s["learning_rate"],
    eps=s["adam_epsilon"],
    weight_decay=s["weight_decay"],
    fused=True,
)
optimisers = [(m, adamw(m)) for m in (policy, critic)]


def logprobs(model, x):
    """log p of the A last tokens of x (S, P+A) at the one temperature, and the entropy before each:
    (S, A)."""
    logp = (
        model(x[:, :-1], logits_to_keep=A, use_cache=False).logits.float() / s["temperature"]
    ).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, x[:, P:, None])[..., 0], entropy


def values(x):
    """V where each of the A last tokens is about to be drawn: (S, A)."""
    return critic.score(
        critic.transformer(x[:, :-1], use_cache=False).last_hidden_state[:, P - 1 :]
    )[..., 0].float()


def whiten(x):
    return (x - x.mean()) / (x.var() + 1e-8).sqrt()


def rollout(query):
    """Answers (E, P+A) with their prompts, and log π_old (E, A), from the logits they were drawn
    from."""
    policy.generation_config.eos_token_id = None  # all answers have one length
    out = policy.generate(
        query,
        attention_mask=torch.ones_like(query),
        max_new_tokens=A,
        do_sample=True,
        temperature=s["temperature"],
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    drawn = out.sequences[:, P:]
    logp = [
        (l.float() / s["temperature"]).log_softmax(-1).gather(-1, drawn[:, t, None])
        for t, l in enumerate(out.logits)
    ]
    return out.sequences, torch.cat(logp, 1)


@torch.no_grad()
def score(x, logp):
    """Everything of each token that the updates need: (E, A) each; and the answers' scores (E)."""
    parts = [
        (
            reward_model(b, use_cache=False).logits[:, 0].float(),
            logprobs(reference, b)[0],
            values(b),
        )
        for b in x.split(B)
    ]
    judged, ref_logp, V = (torch.cat(p) for p in zip(*parts))
    reward = -s["kl_coef"] * (logp - ref_logp)
    reward[:, -1] += judged
    advantage, last = torch.zeros_like(reward), torch.zeros(len(x))
    for t in reversed(range(A)):
        delta = reward[:, t] + (s["gamma"] * V[:, t + 1] if t + 1 < A else 0) - V[:, t]
        advantage[:, t] = last = delta + s["gamma"] * s["lam"] * last
    return (
        dict(logp=logp, ref_logp=ref_logp, value=V, reward=reward, advantage=whiten(advantage))
        | {"return": advantage + V},
        judged,
    )


def update(x, old):
    """Epochs of one minibatch each, B answers at a time. Returns sums over all tokens of all
    epochs."""
    sums, M = torch.zeros(5), E * A
    for _ in range(s["num_ppo_epochs"]):
        for part in torch.randperm(E).split(B):
            b, o = x[part], {name: v[part] for name, v in old.items()}
            logp, entropy = logprobs(policy, b)
            ratio = (logp - o["logp"]).exp()
            plain, clipped = -o["advantage"] * ratio, -o["advantage"] * ratio.clamp(
                1 - s["cliprange"], 1 + s["cliprange"]
            )
            policy_loss = torch.max(plain, clipped).sum()
            (policy_loss / M).backward()
            V = values(b)
            bounded = o["value"] + (V - o["value"]).clamp(
                -s["cliprange_value"], s["cliprange_value"]
            )
            value_loss = torch.max((V - o["return"]) ** 2, (bounded - o["return"]) ** 2).sum() / 2
            (s["vf_coef"] * value_loss / M).backward()
            with torch.no_grad():
                sums += torch.stack(
                    [
                        policy_loss,
                        value_loss,
                        ((logp - o["logp"]) ** 2).sum() / 2,
                        (clipped > plain).sum(),
                        entropy.sum(),
                    ]
                )
        for model, optimiser in optimisers:
            torch.nn.utils.clip_grad_norm_(model.parameters(), s["max_grad_norm"])
            optimiser.step()
            optimiser.zero_grad()
    return dict(
        zip(
            (
                "loss/policy_avg",
                "loss/value_avg",
                "policy/approxkl_avg",
                "policy/clipfrac_avg",
                "policy/entropy_avg",
            ),
            (sums / (M * s["num_ppo_epochs"])).tolist(),
        )
    )


if len(sys.argv) > 4:
    with open(sys.argv[4]) as f:
        lines = [json.loads(line) for line in f if '"episode"' in line]
    x = torch.tensor([line["tokens"] for line in lines])
    with torch.no_grad():
        logp = torch.cat([logprobs(policy, b)[0] for b in x.split(B)])
    mine, judged = score(x, logp)
    apart = {
        name: (v - torch.tensor([line[name] for line in lines])).abs().max().item()
        for name, v in mine.items()
    }
    apart["score"] = (judged - torch.tensor([line["score"] for line in lines])).abs().max().item()
    print(json.dumps({"apart": apart, "update": update(x, mine)}))
else:
    tokenizer = transformers.GPT2TokenizerFast(
        os.path.join(work, "gpt2", "vocab.json"), os.path.join(work, "gpt2", "merges.txt")
    )
    with open(prompts) as f:
        query = torch.tensor(
            [tokenizer(json.loads(line)["prompt"])["input_ids"][-P:] for line in f]
        )
    t = [time.monotonic()]
    with torch.no_grad():
        x, logp = rollout(query)
    t.append(time.monotonic())
    old, judged = score(x, logp)
    t.append(time.monotonic())
    averages = update(x, old)
    t.append(time.monotonic())
    print(
        "  ".join(f"{name} {value:.6g}" for name, value in averages.items()),
        f" lengths/mean {x.shape[1] - P}",
    )
    print("rollout %.2f s  scoring %.2f s  update %.2f s" % tuple(b - a for a, b in zip(t, t[1:])))
