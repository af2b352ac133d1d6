"""What golden_reward.h holds: scores of texts by the library, from the built-in reward model.

    python golden_reward.py > golden_reward.h
        (transformers, torch; `make test` needs neither)

Each text goes in alone, as its tokens without the end of text, so no padding is involved.
"""

import json
import os

import torch
import transformers

here = os.path.dirname(os.path.abspath(__file__))
model_dir = os.path.join(here, "..", "tiny", "reward")
model = transformers.AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
tokenizer = transformers.GPT2Tokenizer(
    os.path.join(model_dir, "vocab.json"), os.path.join(model_dir, "merges.txt")
)

records = []
with open(os.path.join(here, "..", "tiny", "preferences-eval.jsonl")) as f:
    for line in list(f)[:4]:
        r = json.loads(line)
        prompt = "### Instruction:\n%s\n\n### Response:\n" % r["instruction"]
        records += [
            {"prompt": prompt, "response": r["chosen"]},
            {"prompt": prompt, "response": r["rejected"]},
        ]
records += [{"text": "a"}, {"text": "안나는 오슬로에 살아요."}, {"text": "Get lost. " * 24}]

print(
    "/* golden_reward.h - made by golden_reward.py with transformers %s: records, and the scores "
    "the library gives them. */"
    % transformers.__version__
)
print("enum { GOLDEN_TEXTS = %d };" % len(records))
print("static const char *const golden_text[GOLDEN_TEXTS] = {")
for r in records:
    print("    %s," % json.dumps(json.dumps(r)))
print("};")
print("static const double golden_score[GOLDEN_TEXTS] = {")
for r in records:
    ids = tokenizer(r.get("text") or r["prompt"] + r["response"])["input_ids"]
    with torch.no_grad():
        score = model(input_ids=torch.tensor([ids])).logits
    assert score.shape == (1, 1)
    print("    %.9g," % score.item())
print("};")
