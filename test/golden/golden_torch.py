"""Files by PyTorch's own torch.save in both containers, and what is in them according to numpy.
    python3 golden_torch.py > golden_torch.h
        (needs torch, numpy, transformers; the test needs none of them)
Legacy files name storages by their addresses, so each run gives other bytes with the same content.
"""

import io
import pickletools
from collections import OrderedDict

import numpy as np
import torch
import transformers

TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
}
# What common/files/torch.c says it executes. Every other byte must be refused by the name that
# Python's own pickletools gives it.
ALLOWED = """PROTO FRAME EMPTY_DICT EMPTY_TUPLE EMPTY_LIST MARK TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT
LONG_BINPUT MEMOIZE BINGET LONG_BINGET
BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2 LONG1 NEWTRUE NEWFALSE NONE BINFLOAT GLOBAL
STACK_GLOBAL REDUCE BUILD SETITEM
SETITEMS APPEND APPENDS BINPERSID STOP""".split()


def mixed(kind):
    """A storage that two tensors share, one of them from an offset on; a Parameter; a scalar;
    nothing at all; every type."""
    base = torch.arange(10, dtype=torch.float32) / 8 - 0.5
    d = kind()
    d["shared.a"] = base[2:8].view(2, 3)
    d["shared.b"] = base[7:]
    d["parameter"] = torch.nn.Parameter(torch.tensor([[1.0, -65504.0], [2.0**-24, 1 / 3]]).half())
    d["scalar"] = torch.tensor(-1e4)
    d["bfloat16"] = torch.tensor([1.5, -3e38, 1e-39]).bfloat16()
    d["double"] = torch.tensor([np.pi], dtype=torch.float64)
    d["mask"] = torch.tril(torch.ones(2, 2, dtype=torch.uint8)).view(1, 1, 2, 2)
    d["bool"] = torch.tensor([True, False, True])
    d["long"] = torch.tensor([-(2**40), 7])
    d["int"] = torch.tensor([[-5], [6]], dtype=torch.int32)
    d["empty"] = torch.zeros(0, 3)
    return d


def small(kind):
    return kind(w=torch.tensor([[0.5, -2.0]]), h=torch.tensor([0.25]).half())


def module():
    """OrderedDict with the attribute _metadata: the pickle has a BUILD."""
    torch.manual_seed(1)
    return torch.nn.Linear(2, 3).state_dict()


def gpt2():
    """As microsoft/DialoGPT-medium is stored: half precision, an untied copy of the head, masks."""
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=4, n_positions=5, vocab_size=7, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, p in model.named_parameters():
        p.data = (
            (1.0 * ("ln_" in name and name.endswith("weight")) + 0.5 * torch.randn(p.shape))
            .half()
            .float()
        )
    model.tie_weights()
    d = OrderedDict(
        (k, v.half()) for k, v in model.state_dict().items() if not k.endswith(".attn.bias")
    )
    d["transformer.h.0.attn.bias"] = torch.tril(torch.ones(5, 5)).view(1, 1, 5, 5).half()
    d["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4).half()
    assert d["lm_head.weight"].data_ptr() != d["transformer.wte.weight"].data_ptr()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        logp = model.double()(ids).logits[0].log_softmax(-1)
    return d, ids[0].tolist(), [logp[i, ids[0, i + 1]].item() for i in range(4)]


def save(value, legacy=False, protocol=2):
    f = io.BytesIO()
    torch.save(value, f, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return f.getvalue()


def literal(raw):
    """A C string of the bytes, in octal as short as what follows allows."""
    out, line = [], ""
    for i, b in enumerate(raw):
        digit_follows = i + 1 < len(raw) and 48 <= raw[i + 1] < 56
        line += (
            chr(b)
            if 32 <= b < 127 and b not in b'"\\?'
            else f"\\{b:03o}" if digit_follows else f"\\{b:o}"
        )
        if len(line) > 114 or (len(line) > 60 and b == 10):
            out.append(line)
            line = ""
    return "\n".join(f'    "{line}"' for line in out + [line])


def main():
    logits, ids, logp = gpt2()
    files = [
        ("zip", save(mixed(OrderedDict)), mixed(OrderedDict)),
        ("legacy", save(mixed(OrderedDict), legacy=True), mixed(OrderedDict)),
        ("plain dict", save(small(dict)), small(dict)),
        ("plain dict, legacy", save(small(dict), legacy=True), small(dict)),
        ("protocol 4", save(small(OrderedDict), protocol=4), small(OrderedDict)),
        ("module", save(module()), module()),
        ("GPT-2, legacy", save(logits, legacy=True), {}),
    ]
    print(f"""\
// golden_torch.h - files by torch.save of PyTorch {torch.__version__.split('+')[0]}, and what is in
// them.
// Made by golden_torch.py: do not edit.

#ifndef GOLDEN_TORCH_H
#define GOLDEN_TORCH_H

#include <stddef.h>
""")
    for i, (name, raw, _) in enumerate(files):
        print(f"static const char golden_bytes_{i}[] =   // {name}\n{literal(raw)};\n")
    print(
        "static const struct "
        "{\n    const char *name, *bytes;\n    size_t n;\n    int tensors;   // 0: see GOLDEN_GPT2\n"
        f"}} golden_files[{len(files)}] = {{"
    )
    for i, (name, raw, tensors) in enumerate(files):
        print(f'    {{"{name}", golden_bytes_{i}, {len(raw)}, {len(tensors)}}},')
    print(
        "};\n\nstatic const struct {\n    int file;\n    const char *name, *type;\n    int ndim, "
        "shape[4], n;\n    double value[6];\n"
        "} golden_tensors[] = {"
    )
    for i, (_, _, tensors) in enumerate(files):
        for name, t in tensors.items():
            shape = ", ".join(map(str, t.shape)) or "0"
            value = t.detach().double().numpy().ravel()
            print(
                f'    {{{i}, "{name}", "{TYPES[t.dtype]}", {t.dim()}, {{{shape}}}, {t.numel()}, '
                f'{{{", ".join(map(repr, map(float, value))) or 0}}}}},'
            )
    print(
        "};\n\n// The last file, as transformers computes it in double precision: log p of each next token."
    )
    print(f"enum {{ GOLDEN_GPT2 = {len(files) - 1} }};")
    print(
        'static const char golden_config[] = '
        '"{\\"model_type\\": \\"gpt2\\", \\"n_layer\\": 1, \\"n_head\\": 2, \\"n_embd\\": 4, '
        '\\"n_positions\\": 5, \\"vocab_size\\": 7}";'
    )
    print(f"static const int golden_ids[{len(ids)}] = {{{', '.join(map(str, ids))}}};")
    print(f"static const double golden_logp[{len(logp)}] = {{{', '.join(map(repr, logp))}}};\n")
    print(
        "// What a byte means as an opcode, according to pickletools; NULL: allowed, or none at "
        "all."
    )
    print("static const char *const golden_refused[256] = {")
    for o in pickletools.opcodes:
        if o.name not in ALLOWED:
            print(f'    [0x{ord(o.code):02x}] = "{o.name}",')
    codes = [f"0x{ord(o.code):02x}" for o in pickletools.opcodes if o.name in ALLOWED]
    assert len(codes) == len(ALLOWED)
    print(
        f"}};\nstatic const unsigned char golden_allowed[{len(codes)}] = {{\n    "
        f"{', '.join(codes[:20])},\n    {', '.join(codes[20:])}}};"
        "\n\n#endif"
    )


main()
