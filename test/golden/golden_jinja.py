"""Golden texts of chat templates, rendered by transformers (with Jinja2).
    python3 golden_jinja.py > golden_jinja.h
        (needs transformers; the test does not)
The templates are of the kinds that models have: ChatML, role and content in a loop, and what a
template of ours cannot say. Each renders each conversation, with and without the prompt of an
answer. A template that raises an exception has no text.
"""

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = [
    # ChatML, and with a system message of its own
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + "
    "'\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}",
    # a template on lines of its own: a block takes the line end after it and the blanks before it
    "{% for message in messages %}\n  {% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "  {% elif message.role == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "  {% else %}\nS {{ message.content }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}\n",
    # DialoGPT's
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
    # white space control, filters, ~
    "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- 'User: ' + "
    "m.content|trim + '\\n' }}\n    {%- else %}\n        {{- 'Bot: ' ~ m.content ~ '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- 'Bot: ' }}\n"
    "{%- endif %}\n",
    # set, slices, an exception
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set s = "
    "messages[0]['content'] %}{% else %}{% set rest = messages %}{% set s = false %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% if loop.index0 == 0 and s != false %}"
    "{% set c = '<<' + s + '>> ' + m['content'] %}{% else %}{% set c = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + c.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    # a namespace, a comment, a test, a conditional expression
    "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if m['role'] == 'system' "
    "-%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}{# a remark #}{{ 'S' if ns.found "
    "else '' }}{%- if tools is defined and tools is not none %}tools{% endif -%}"
    "{%- for m in messages %}"
    "{{- ('Q: ' if m.role == 'user' else 'A: ') + m['content'] + '\\n\\n' }}{%- endfor -%}",
    # Korean, and the first turn begins otherwise
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}"
    "{{ '질문: ' + m['content'] + '\n답변: ' }}{% endif %}{% endfor %}",
    # the last message, lengths, methods
    "{% for m in messages %}\n<{{ m['role'] | upper }}>{% if not loop.last and 'q' in m.content %}"
    "{{ messages | length }}{{ messages[-1]['role'] }}{% endif %}"
    "{{ m['content'] }}{% if m.content.startswith('a') and loop.index > 1 %}!{% endif %}"
    "{{ loop.index0 + 1 % 2 }}{{ 3 - 1 ~ 'x' if false else (loop.index0 + 1) % 2 }}\n"
    "{% endfor %}",
    # published: Qwen2.5 (without its tools), whose system message has a default
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + "
    "messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- "
    "'<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role "
    "== \"user\") or (message.role == \"system\" and not loop.first) or (message.role == "
    "\"assistant\" and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + "
    "'\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    # Zephyr
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
    "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}",
    # Llama 3: every message trimmed, a token before the first
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    # Vicuna: the system's message before the first turn, and a default of it
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = 'A chat.' %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 %}{{ system_message }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ ' USER: ' + message['content'].strip() }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ASSISTANT:' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
    # the system's message within the first turn
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set rest = "
    "messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first "
    "and s %}{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    # what transformers sets without tools
    "{% if tools is defined and not tools %}T{% endif %}{% if documents is none %}D{% endif %}"
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    # Gemma's: no system message, and a line feed after every turn but the last
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{% set role = 'model' if "
    "m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\n' + "
    "m['content'] | trim + '<end_of_turn>' }}{% if not loop.last or add_generation_prompt %}"
    "{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}",
]
TALKS = [
    [("user", "q1")],
    [("user", " q1 "), ("assistant", "a1\n")],
    [("system", "s0"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")],
    [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
    [("user", "q1"), ("user", "q2")],
    [("system", " s0\n"), ("user", "q1"), ("assistant", "\u3000a1 "), ("user", "\tq2"),
     ("assistant", "a2\n")],
]
END = "<|im_end|>"
BEGIN = "<|endoftext|>"


def literal(text):
    raw = text.encode()
    parts = [
        "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in chunk)
        for chunk in (raw[i : i + 22] for i in range(0, max(len(raw), 1), 22))
    ]
    return "\n     ".join(f'"{part}"' for part in parts)


def render(template, talk, prompt):
    messages = [{"role": role, "content": content} for role, content in talk]
    try:
        return render_jinja_template([messages], chat_template=template, eos_token=END,
                                     bos_token=BEGIN, add_generation_prompt=prompt)[0][0]
    except Exception:
        return None


def main():
    print(f"""\
// golden_jinja.h - texts of chat templates, according to transformers {transformers.__version__}.
// Made by golden_jinja.py: do not edit.

#ifndef GOLDEN_JINJA_H
#define GOLDEN_JINJA_H

#include "text/jinja.h"

#include <stdbool.h>

typedef struct {{
    int template, talk;
    bool prompt;
    const char *text;  // NULL: an exception
}} GoldenJinja;

// clang-format off
static const char *const golden_template[{len(TEMPLATES)}] = {{""")
    for template in TEMPLATES:
        print(f"    {literal(template)},")
    print(f"}};\n\nstatic const Message golden_talk[{len(TALKS)}][5] = {{")
    for talk in TALKS:
        turns = ", ".join(f'{{"{role}", {literal(content)}}}' for role, content in talk)
        print(f"    {{{turns}}},")
    print("};\n\nstatic const GoldenJinja golden_jinja[] = {")
    for i, template in enumerate(TEMPLATES):
        for k, talk in enumerate(TALKS):
            for prompt in (False, True):
                text = render(template, talk, prompt)
                shown = "NULL" if text is None else literal(text)
                print(f"    {{{i}, {k}, {str(prompt).lower()},\n     {shown}}},")
    print("};\n// clang-format on\n\n#endif")


main()
