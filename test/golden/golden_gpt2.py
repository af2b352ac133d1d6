"""Golden numbers for a tiny GPT-2, from an independent implementation: Hugging Face transformers on
PyTorch.

    python3 golden_gpt2.py > golden_gpt2.h
        (needs only torch and transformers; the tests need neither)
Everything is computed in float64, and once more in float32 only to show how far single precision
strays.
"""

import torch
import transformers

LAYERS, HEADS, WIDTH, POSITIONS, VOCAB = 2, 3, 24, 32, 61
LENGTHS, FIRST_SCORED = [7, 1, 12], [
    0,
    0,
    4,
]  # three ragged sequences; rows before FIRST_SCORED have no target
STEPS, LR, BETAS, EPS, DECAY, CLIP = 3, 1e-2, (0.9, 0.999), 1e-8, 0.1, 1.0
START, CONTINUE = [3, 14, 15], 10


def tensor(t, shape, is_gain):
    """The weights by formula (see WEIGHTS below). int64 may wrap: only the low 32 bits count."""
    h = (t * 1000003 + torch.arange(shape.numel()) * 7919 + 12345) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    v = (h.double() / 4294967296.0 - 0.5) * 0.4
    return (1.0 + v if is_gain else v).float().view(shape)


def build(dtype):
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            n_positions=POSITIONS,
            vocab_size=VOCAB,
            bos_token_id=0,
            eos_token_id=0,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_implementation="eager",
        )
    )
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    order = [f"h.{l}.{b}" for l in range(LAYERS) for b in block] + ["ln_f"]
    order = ["wte.weight", "wpe.weight"] + [f"{m}.{k}" for m in order for k in ("weight", "bias")]
    params = {k.removeprefix("transformer."): p for k, p in model.named_parameters()}
    assert list(params) == order  # the head is tied to wte and is not listed again
    with torch.no_grad():
        for t, (name, p) in enumerate(params.items()):
            p.copy_(tensor(t, p.shape, "ln_" in name and name.endswith("weight")))
    return model.to(dtype).eval(), params


def forward(model):
    """The mean loss; logp and entropy of the scored rows; the logits of every sequence's last row.
    Each sequence runs alone."""
    logp, entropy, last = [], [], []
    for s, (length, first) in enumerate(zip(LENGTHS, FIRST_SCORED)):
        tokens = torch.tensor([(5 * p * p + 3 * p + 11 * s + 2) % VOCAB for p in range(length)])
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        rows = logits[first:-1].log_softmax(-1)
        logp.append(rows.gather(-1, tokens[first + 1 :, None])[:, 0])
        entropy.append(-(rows.exp() * rows).sum(-1))
        last.append(logits[-1])
    logp = torch.cat(logp)
    return -logp.mean(), logp, torch.cat(entropy), torch.cat(last)


@torch.no_grad()
def greedy(model):
    tokens, gap = list(START), float("inf")
    for _ in range(CONTINUE):
        top = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].topk(2)
        gap = min(gap, (top.values[0] - top.values[1]).item())
        tokens.append(top.indices[0].item())
    assert gap > 1e-3, gap  # else a float32 implementation might choose the other one
    return tokens[len(START) :], gap


def run(dtype):
    model, params = build(dtype)
    decay = [
        {"params": [p for p in params.values() if p.dim() == d], "weight_decay": w}
        for d, w in ((2, DECAY), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(decay, lr=LR, betas=BETAS, eps=EPS)
    out, losses, norms = {"greedy": greedy(model)}, [], []
    for step in range(STEPS):
        loss, *rows = forward(model)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            out |= zip(("logp", "entropy", "logits"), (x.detach() for x in rows))
            out["grad"] = {k: p.grad.clone() for k, p in params.items()}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), CLIP).item())
        optimizer.step()
    losses.append(forward(model)[0].item())
    after = {k: p.detach().clone() for k, p in params.items()}
    for l in range(LAYERS):
        after[f"h.{l}.attn.c_attn.bias"][WIDTH : 2 * WIDTH] = 0  # see KEY BIAS below
    return out | {
        "loss": torch.tensor(losses, dtype=torch.float64),
        "norm": torch.tensor(norms, dtype=torch.float64),
        "after": after,
    }


def array(key):
    stray, x = (single[key].double() - wide[key]).abs().max(), [repr(v) for v in wide[key].tolist()]
    rows = ["    " + ", ".join(x[i : i + 4]) + ",\n" for i in range(0, len(x), 4)]
    return f"static const double golden_{key}[{len(x)}] = {{  // float32 strays by {stray:.1e}\n{''.join(rows)}}};"


def table(key):
    rows = []
    for name, x in wide[key].items():
        x, stray = x.flatten(), (single[key][name].double() - x).flatten()
        whole = [
            x.sum(),
            x.abs().sum(),
            x.norm(),
            x @ torch.cos(0.1 * torch.arange(len(x), dtype=x.dtype)),
        ]
        whole, first, last = (
            ", ".join(repr(v.item()) for v in part) for part in (whole, x[:3], x[-1:])
        )
        rows.append(
            f'    {{"{name}", {len(x)}, {whole},\n'
            f"     {{{first}}}, {last}, {stray.norm():.1e}, {stray.abs().max():.1e}}},\n"
        )
    return f"static const GoldenTensor golden_{key}[{len(rows)}] = {{\n{''.join(rows)}}};"


wide, single = run(torch.float64), run(torch.float32)
assert wide["greedy"][0] == single["greedy"][0]
print(f"""\
// golden_gpt2.h - what a tiny GPT-2 computes, according to an independent implementation. Made by
// golden_gpt2.py: do not edit.
// transformers {transformers.__version__} on torch {torch.__version__.split("+")[0]}, float64
// throughout, each sequence run alone.
// MODEL. n_layer {LAYERS}, n_head {HEADS}, n_embd {WIDTH}, n_positions {POSITIONS}, vocab_size
// {VOCAB}, gelu_new, layernorm eps 1e-5, tied head, no dropout.
// WEIGHTS. Element i (flat, row-major, in the layout of the file: linear layers are (in,out)) of
// tensor t (0-based, in the
// order of golden_grad below), in uint32_t arithmetic, which wraps:
//     h = t*1000003 + i*7919 + 12345;  h ^= h>>16;  h *= 0x7feb352d;  h ^= h>>15;  h *= 0x846ca68b;
// h ^= h>>16;
//     v = (h / 4294967296.0 - 0.5) * 0.4  in double;  the weight is (float)v, or (float)(1.0 + v)
// for the gain of a layernorm.
// BATCH. Sequence s has tokens (5*p*p + 3*p + 11*s + 2) % {VOCAB} at p = 0, 1, ... The target of a
// token is its successor in the
// same sequence; a last token has none, nor have the first {FIRST_SCORED[2]} of sequence 2. Loss =
// sum of -logp over scored rows / their number.
// STEPS. {STEPS} times on this same batch: the gradient is clipped to norm 1 (times min(1, 1 /
// (norm + 1e-6))), then AdamW with lr {LR},
// betas {BETAS[0]} and {BETAS[1]}, eps {EPS} (outside the root), decay {DECAY} on the 2-d tensors
// (wte and wpe too), none on the 1-d ones.
// KEY BIAS. The middle third of attn.c_attn.bias adds one number to all scores of a query, and
// softmax does not see it: its true
// gradient is zero, and what rounding leaves of it Adam blows up towards a whole step. No output
// depends on it, so leave it
// out when comparing weights after steps: golden_after counts it as zero.
// SUMS. Other sums are zero in exact arithmetic too (the rows of a c_proj's gradient): compare sum
// and dot_cos relative to abs_sum.

#ifndef GOLDEN_GPT2_H
#define GOLDEN_GPT2_H

typedef struct {{
    const char *name; int n;           // a tensor x of n elements
    double sum, abs_sum, l2, dot_cos;  // sums of x, of |x|, of x*x (its square root), of x[i] * cos(0.1 * i)
    double first[3], last;             // x[0], x[1], x[2] and x[n-1]
    double f32_l2, f32_max;            // how far PyTorch's float32 strays from x: L2 norm and largest element of the difference
}} GoldenTensor;

static const int golden_length[{len(LENGTHS)}] = {{{str(LENGTHS)[1:-1]}}};  // of each sequence, in tokens
static const int golden_first_scored[{len(FIRST_SCORED)}] = {{{str(FIRST_SCORED)[1:-1]}}};  // the first row with a target; the last is length - 2
// Each scored row, sequence by sequence (entropy in nats); then the logits of each sequence's last
// row, {len(LENGTHS)} x {VOCAB}.
{array("logp")}
{array("entropy")}
{array("logits")}
// The loss before each step and after the last; the global norm of each step's gradient before
// clipping.
{array("loss")}
{array("norm")}
// The gradient of the first loss, before clipping; then the weights after {STEPS} steps.
{table("grad")}
{table("after")}
// A greedy continuation under the initial weights; best and second-best logit are never closer than
// {wide["greedy"][1]:.4f}.
static const int golden_start[{len(START)}] = {{{str(START)[1:-1]}}};
static const int golden_greedy[{CONTINUE}] = {{{str(wide["greedy"][0])[1:-1]}}};

#endif""")
