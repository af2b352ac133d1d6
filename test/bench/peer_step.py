"""Training steps of GPT-2 124M's size in PyTorch, on random tokens. peers.py steps compares bench's
rows "step" with it.

    python peer_step.py float32|autocast|bfloat16 eager|compiled SEQUENCES LENGTH

autocast: parameters in float32, products in bf16. bfloat16: the whole model in bf16. It prints
"ready" after two steps. Then each line of standard input asks for a step, and the answer is its
seconds. A step is forward, loss, backward, clipping to norm 1, AdamW(fused=True); no dropout.
"""

import sys
import time

import torch
import transformers

precision, form, S, T = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(1)
config = transformers.GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False)
model = transformers.GPT2LMHeadModel(config).train()
if precision == "bfloat16":
    model = model.to(torch.bfloat16)
parameters = list(model.parameters())
optimiser = torch.optim.AdamW(
    parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
)
x = torch.randint(config.vocab_size, (S, T))


def loss_of(x):
    return model(x, labels=x).loss


if form == "compiled":
    loss_of = torch.compile(loss_of)


def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = loss_of(x)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


step()
step()
print("ready", flush=True)
for _ in sys.stdin:
    t = time.monotonic()
    step()
    print(f"{time.monotonic() - t:.4f}", flush=True)
