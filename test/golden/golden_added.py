"""Golden ids of texts with added tokens, from Hugging Face's tokenizers library.
    python3 golden_added.py > golden_added.h
        (needs only tokenizers; the test does not)
The vocabulary has the 256 bytes, <|endoftext|> (256) and then the added tokens of a setting, so no
merge hides where a text was cut. Settings differ in the flags of the added tokens, and in whether a
text gets a space in front.
"""

import json
import random
import tokenizers
from tokenizers import Tokenizer

SETTINGS = [
    # content, flags: l(strip) r(strip) w(single_word) n(ormalized)
    (False, [("<sep>", "l"), ("<pad>", "r")]),
    (False, [("<sep>", "lr"), ("한", "w")]),
    (False, [("ab", "n"), ("bc", ""), ("abc", "n"), ("<|endoftext|>x", "n")]),
    (False, [("ab", "wn"), ("bb", "w"), (" c", "lr")]),
    (True, []),
    (True, [("<sep>", ""), ("<pad>", "lrn")]),
]
PARTS = ["a", "b", "c", " ", "  ", "\n", "\t", "\u3000", "_", "1", ".", "é", "\u0301", "한", "국"]
PARTS += ["<sep>", "<pad>", "<|endoftext|>", "ab", "bc", "\u200b", "\u24b6", "½", "Ⅷ", "٣"]


def alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return {chr(b if b in printable else next(others)): b for b in range(256)}


def tokens(added):
    yield {"id": 256, "content": "<|endoftext|>", "special": True, **flags("")}
    for i, (content, letters) in enumerate(added):
        yield {"id": 257 + i, "content": content, "special": False, **flags(letters)}


def flags(letters):
    names = {"l": "lstrip", "r": "rstrip", "w": "single_word", "n": "normalized"}
    return {name: letter in letters for letter, name in names.items()}


def literal(raw):
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in raw)


def main():
    random.seed(1)
    vocabulary = {**alphabet(), "<|endoftext|>": 256}
    print(f"""\
// golden_added.h - ids of texts with added tokens, according to Hugging Face's tokenizers
// {tokenizers.__version__}.
// Made by golden_added.py: do not edit.

#ifndef GOLDEN_ADDED_H
#define GOLDEN_ADDED_H

typedef struct {{
    int setting;
    const char *text;
    int n;
    int ids[48];
}} GoldenAdded;

typedef struct {{
    const char *add_prefix_space;
    struct {{
        const char *content, *flags;  // flags: lstrip, rstrip, single_word, normalized
    }} added[4];
}} GoldenSetting;

// clang-format off
static const GoldenSetting golden_setting[{len(SETTINGS)}] = {{""")
    for prefix, added in SETTINGS:
        listed = ", ".join(f'{{"{literal(c.encode())}", "{letters}"}}' for c, letters in added)
        print(f'    {{"{str(prefix).lower()}", {{{listed}}}}},')
    print("};\n\nstatic const GoldenAdded golden_added[] = {")
    for k, (prefix, added) in enumerate(SETTINGS):
        oracle = Tokenizer.from_str(json.dumps({
            "version": "1.0", "added_tokens": list(tokens(added)), "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": prefix,
                              "trim_offsets": True, "use_regex": True},
            "post_processor": None, "decoder": None, "truncation": None, "padding": None,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "dropout": None,
                      "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False},
        }))
        for _ in range(30):
            parts = PARTS + [content for content, _ in added] * 3
            text = "".join(random.choice(parts) for _ in range(random.randrange(1, 9)))
            ids = oracle.encode(text).ids
            if len(ids) <= 48:
                rows = ",\n      ".join(
                    ", ".join(map(str, ids[i : i + 18])) for i in range(0, len(ids), 18)
                )
                print(f'    {{{k},\n     "{literal(text.encode())}",\n     {len(ids)},\n'
                      f"     {{{rows}}}}},")
    print("};\n// clang-format on\n\n#endif")


main()
