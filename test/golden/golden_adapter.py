"""Golden numbers for bottleneck adapters in a tiny GPT-2, from an independent implementation: the
adapters library on PyTorch.

    python3 golden_adapter.py > golden_adapter.h
        (needs adapters, transformers and torch; the tests need none of them)
The base and the batch are those of golden_gpt2.py. Everything is computed in float64, and once more
in float32 only to show
how far single precision strays.
"""

import adapters
import torch
import transformers

LAYERS, HEADS, WIDTH, POSITIONS, VOCAB, FACTOR = 2, 3, 24, 32, 61, 4
LENGTHS, FIRST_SCORED = [7, 1, 12], [0, 0, 4]
CASES = [(p, a) for p in ("double_seq_bn", "seq_bn") for a in ("relu", "swish", "gelu_new")]


def tensor(t, shape, is_gain):
    h = (t * 1000003 + torch.arange(shape.numel()) * 7919 + 12345) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    v = (h.double() / 4294967296.0 - 0.5) * 0.4
    return (1.0 + v if is_gain else v).float().view(shape)


def run(placement, activation, dtype):
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
    base = {k: p for k, p in model.named_parameters()}
    adapters.init(model)
    model.add_adapter(
        "adapter",
        config=adapters.AdapterConfig.load(
            placement, reduction_factor=FACTOR, non_linearity=activation
        ),
        set_active=True,
    )
    added = {k: p for k, p in model.named_parameters() if ".adapters.adapter." in k}
    with torch.no_grad():
        for t, (name, p) in enumerate(base.items()):
            p.copy_(tensor(t, p.shape, "ln_" in name and name.endswith("weight")))
        order = [
            f"transformer.h.{l}.{s}_adapters.adapters.adapter.{k}"
            for l in range(LAYERS)
            for s in ("attention", "output")
            for k in (
                "adapter_down.0.weight",
                "adapter_down.0.bias",
                "adapter_up.weight",
                "adapter_up.bias",
            )
        ]
        order = [k for k in order if k in added]
        assert len(order) == len(added)
        for t, name in enumerate(order):
            added[name].copy_(tensor(1000 + t, added[name].shape, False))
    model.to(dtype).eval()
    wanted = order + [k for k in base if "ln_" in k]
    logp = []
    for s, (length, first) in enumerate(zip(LENGTHS, FIRST_SCORED)):
        tokens = torch.tensor([(5 * p * p + 3 * p + 11 * s + 2) % VOCAB for p in range(length)])
        rows = model(input_ids=tokens[None], use_cache=False).logits[0][first:-1].log_softmax(-1)
        logp.append(rows.gather(-1, tokens[first + 1 :, None])[:, 0])
    logp = torch.cat(logp)
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(-logp.mean(), [params[k] for k in wanted])
    return logp.detach(), dict(zip(wanted, grads))


print(f"""\
// golden_adapter.h - what bottleneck adapters in a tiny GPT-2 compute, according to an independent
// implementation. Made by golden_adapter.py:
// do not edit. adapters {adapters.__version__} on transformers {transformers.__version__} and torch
// {torch.__version__.split("+")[0]}, float64 throughout, each sequence run alone.
// MODEL, WEIGHTS, BATCH and loss are those of golden_gpt2.h; element i of the adapters' tensor k
// (0-based, layer after layer; in each the
// attention's before the MLP's, and of each down, its bias, up, its bias) is that of WEIGHTS with t
// = 1000 + k. The bottleneck has {WIDTH // FACTOR} channels.

#ifndef GOLDEN_ADAPTER_H
#define GOLDEN_ADAPTER_H

typedef struct {{
    const char *name;                  // of a tensor g, the gradient of the loss
    double l2, dot_cos;                // the roots of the sum of g*g, and the sum of g[i] * cos(0.1 * i)
    double f32_l2;                     // how far PyTorch's float32 strays from g: L2 norm of the difference
}} GoldenGradient;

typedef struct {{
    const char *placement, *activation;
    double logp[13];                   // of each scored row, sequence by sequence
    int gradients;
    GoldenGradient gradient[26];       // of the adapters' tensors, and then of the model's norms
}} GoldenAdapter;

static const GoldenAdapter golden_adapter[{len(CASES)}] = {{""")
for placement, activation in CASES:
    (logp, wide), (logp32, single) = (
        run(placement, activation, d) for d in (torch.float64, torch.float32)
    )
    print(
        f'    '
        f'{{"{placement}", "{activation}",  // float32 strays by {(logp32 - logp).abs().max():.1e}'
    )
    x = [repr(v) for v in logp.tolist()]
    for i in range(0, len(x), 5):
        print(
            ("     {" if i == 0 else "      ")
            + ", ".join(x[i : i + 5])
            + ("}," if i + 5 >= len(x) else ",")
        )
    print(f"     {len(wide)},")
    rows = []
    for k, g in wide.items():
        g, stray = g.flatten(), (single[k].double() - g).flatten().norm()
        rows.append(
            f'{{"{k}", {g.norm().item()!r}, {(g @ torch.cos(0.1 * torch.arange(len(g), dtype=g.dtype))).item()!r}, {stray:.1e}}}'
        )
    print("     {" + ",\n      ".join(rows) + "}},")
print("};\n\n#endif")
