"""Golden ids of GPT-2's byte-level BPE, from an independent implementation: Hugging Face's
tokenizers library.
    python3 golden_text.py vocab.json merges.txt > golden_text.h
        (needs only tokenizers; the test does not)
The strings are chosen for what goes wrong in byte-level BPE: where the pattern cuts, and where
merges must not reach across.
"""

import sys
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

STRINGS = [
    "",
    "a",
    " ",
    "hello world",
    "Hello, World!",
    " the",
    "The quick brown fox jumps over the lazy dog.",
    # contractions: lower case only, ASCII apostrophe only, and greedily before the rest of the word
    "I'm sure they'll say it's what we'd've wanted, don't they're",
    "IT'S DON'T",
    "it’s",
    "'sand 'tis 'remember",
    "rock'n'roll",
    "''s",
    # white space: one blank belongs to the next piece, the blanks before it do not; line ends,
    # tabs, ends of text
    "a  b",
    "a   b",
    "  a",
    "a  ",
    "   ",
    "\n",
    "\n\n",
    "a\nb",
    "a \n b",
    "a\n\n\nb",
    "\r\n\r\nx",
    "\t\tx\t",
    " \t \n ",
    "x \n",
    "\v\f x",
    # white space that is not ASCII, and what only looks like it (U+180E, U+200B, U+FEFF are not)
    "a\u00a0b",
    "a\u0085b",
    "a\u3000\u3000b",
    "a\u1680 \u2003 b",
    "\u2028\u2029x",
    "a \u180e b",
    "a\u200bb",
    "\ufeffa",
    "\u001c\u001dx",
    # numbers, of which there are more than ten; letters and numbers do not share a piece
    "2024-06-07 3.14159 1,000,000",
    "abc123def",
    " ½ ² Ⅷ ٣٤ 四",
    "0x1F 1e-9",
    # punctuation and code
    "#include <stdio.h>\nint main(void) {\n    return 0;\n}\n",
    "!!!???...---",
    "=" * 70,
    "foo_bar(baz)->qux[3] += *p++; // ok?",
    # Korean, Chinese, Japanese, Arabic, Hindi with combining signs, Greek with and without
    # composition
    "안녕하세요, 만나서 반갑습니다.",
    "12시 땡!",
    "하루가 또 가네요.",
    "你好，世界！",
    "吾輩は猫である。",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "é e\u0301 ά α\u0301",
    # beyond the first plane: emoji, joined and flagged; mathematical letters; the last code points
    # there are
    "😀",
    "👩\u200d👩\u200d👧\u200d👦 🇰🇷 👍🏽",
    "𝔊𝔓𝔗-𝟚",
    "\U00020000\U0002a6d6",
    "\U0001f9ff\U0010fffd",
    "\U0010ffff\ufffe\uffff",
    # letters and numbers that came with Unicode 15 and 16
    "a\u1c89b a\U00010d40b 1\U00010d41 \U0001e4d0\U0001e4d1 \U00031350",
    # control characters, a NUL among them
    "\x00",
    "a\x00b\x01\x7f",
    "\x1b[31mred\x1b[0m",
    # the end of a text, written out; and almost
    "one<|endoftext|>two",
    "<|endoftext|>",
    " <|endoftext|> <|endoftext|>\n",
    "<|endoftext|<|endoftext|>|>",
    "<|endoftext|",
    # long pieces
    "a" * 100,
    " " * 33 + "x",
    "ab" * 50,
    "Donaudampfschifffahrtsgesellschaftskapitän",
]


def literal(raw):
    """A C string of the bytes; three octal digits never swallow what follows. Lines are cut so that
    they stay readable."""
    parts = [
        "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in chunk)
        for chunk in (raw[i : i + 30] for i in range(0, max(len(raw), 1), 30))
    ]
    return "\n     ".join(f'"{part}"' for part in parts)


def main(vocab, merges):
    oracle = Tokenizer(models.BPE.from_file(vocab, merges))
    oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    oracle.decoder = decoders.ByteLevel()
    oracle.add_special_tokens(["<|endoftext|>"])
    print(f"""\
// golden_text.h - ids of GPT-2's tokenizer, according to Hugging Face's tokenizers
// {tokenizers.__version__}.
// Made by golden_text.py: do not edit.

#ifndef GOLDEN_TEXT_H
#define GOLDEN_TEXT_H

#include <stddef.h>

typedef struct {{
    const char *text;
    size_t bytes;
    int n;
    int ids[72];
}} GoldenText;

static const GoldenText golden_text[{len(STRINGS)}] = {{""")
    for text in STRINGS:
        ids, raw = oracle.encode(text).ids, text.encode()
        assert oracle.decode(ids, skip_special_tokens=False) == text and len(ids) <= 72, text
        rows = ",\n      ".join(
            ", ".join(map(str, ids[i : i + 16])) for i in range(0, max(len(ids), 1), 16)
        )
        print(f"    {{{literal(raw)},\n     {len(raw)}, {len(ids)},\n     {{{rows or 0}}}}},")
    print("};\n\n#endif")


main(*sys.argv[1:])
