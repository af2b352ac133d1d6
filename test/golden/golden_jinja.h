// golden_jinja.h - texts of chat templates, according to transformers 4.57.6.
// Made by golden_jinja.py: do not edit.

#ifndef GOLDEN_JINJA_H
#define GOLDEN_JINJA_H

#include "text/jinja.h"

#include <stdbool.h>

typedef struct {
    int template, talk;
    bool prompt;
    const char *text;  // NULL: an exception
} GoldenJinja;

// clang-format off
static const char *const golden_template[16] = {
    "{% for message in mess"
     "ages %}{{'<|im_start|>"
     "' + message['role'] + "
     "'\012' + message['content"
     "'] + '<|im_end|>' + '\012"
     "'}}{% endfor %}{% if a"
     "dd_generation_prompt %"
     "}{{ '<|im_start|>assis"
     "tant\012' }}{% endif %}",
    "{% for m in messages %"
     "}{% if loop.first and "
     "messages[0]['role'] !="
     " 'system' %}{{ '<|im_s"
     "tart|>system\012Be kind.<"
     "|im_end|>\012' }}{% endif"
     " %}{{'<|im_start|>' + "
     "m['role'] + '\012' + m['c"
     "ontent'] + '<|im_end|>"
     "' + '\012'}}{% endfor %}",
    "{% for message in mess"
     "ages %}\012  {% if messag"
     "e['role'] == 'user' %}"
     "\012{{ '<|user|>\012' + mess"
     "age['content'] + eos_t"
     "oken }}\012  {% elif mess"
     "age.role == 'assistant"
     "' %}\012{{ '<|assistant|>"
     "\012'  + message['content"
     "'] + eos_token }}\012  {%"
     " else %}\012S {{ message."
     "content }}\012{% endif %}"
     "\012{% if loop.last and a"
     "dd_generation_prompt %"
     "}\012{{ '<|assistant|>' }"
     "}\012{% endif %}\012{% endfo"
     "r %}\012",
    "{% for message in mess"
     "ages %}{{ message.cont"
     "ent }}{{ eos_token }}{"
     "% endfor %}",
    "{%- for m in messages "
     "%}\012    {%- if m.role ="
     "= 'user' %}\012        {{"
     "- 'User: ' + m.content"
     "|trim + '\134n' }}\012    {%"
     "- else %}\012        {{- "
     "'Bot: ' ~ m.content ~ "
     "'\134n' }}\012    {%- endif "
     "%}\012{%- endfor %}\012{%- i"
     "f add_generation_promp"
     "t %}\012    {{- 'Bot: ' }"
     "}\012{%- endif %}\012",
    "{% if messages[0]['rol"
     "e'] == 'system' %}{% s"
     "et rest = messages[1:]"
     " %}{% set s = messages"
     "[0]['content'] %}{% el"
     "se %}{% set rest = mes"
     "sages %}{% set s = fal"
     "se %}{% endif %}{% for"
     " m in rest %}{% if (m["
     "'role'] == 'user') != "
     "(loop.index0 % 2 == 0)"
     " %}{{ raise_exception("
     "'alternate') }}{% endi"
     "f %}{% if loop.index0 "
     "== 0 and s != false %}"
     "{% set c = '<<' + s + "
     "'>> ' + m['content'] %"
     "}{% else %}{% set c = "
     "m['content'] %}{% endi"
     "f %}{% if m['role'] =="
     " 'user' %}{{ '[INST] '"
     " + c.strip() + ' [/INS"
     "T]' }}{% else %}{{ ' '"
     " + c.strip() + ' ' + e"
     "os_token }}{% endif %}"
     "{% endfor %}",
    "{%- set ns = namespace"
     "(found=false) -%}{%- f"
     "or m in messages -%}{%"
     "- if m['role'] == 'sys"
     "tem' -%}{%- set ns.fou"
     "nd = true -%}{%- endif"
     " -%}{%- endfor -%}{# a"
     " remark #}{{ 'S' if ns"
     ".found else '' }}{%- i"
     "f tools is defined and"
     " tools is not none %}t"
     "ools{% endif -%}{%- fo"
     "r m in messages %}{{- "
     "('Q: ' if m.role == 'u"
     "ser' else 'A: ') + m['"
     "content'] + '\134n\134n' }}{"
     "%- endfor -%}",
    "{{ bos_token }}{% for "
     "m in messages %}{% if "
     "m['role'] == 'assistan"
     "t' %}{% generation %}{"
     "{ m['content'] + eos_t"
     "oken }}{% endgeneratio"
     "n %}{% else %}{{ '\354\247\210\353"
     "\254\270: ' + m['content'] +"
     " '\012\353\213\265\353\263\200: ' }}{% endi"
     "f %}{% endfor %}",
    "{% for m in messages %"
     "}\012<{{ m['role'] | uppe"
     "r }}>{% if not loop.la"
     "st and 'q' in m.conten"
     "t %}{{ messages | leng"
     "th }}{{ messages[-1]['"
     "role'] }}{% endif %}{{"
     " m['content'] }}{% if "
     "m.content.startswith('"
     "a') and loop.index > 1"
     " %}!{% endif %}{{ loop"
     ".index0 + 1 % 2 }}{{ 3"
     " - 1 ~ 'x' if false el"
     "se (loop.index0 + 1) %"
     " 2 }}\012{% endfor %}",
    "{%- if messages[0]['ro"
     "le'] == 'system' %}\012  "
     "  {{- '<|im_start|>sys"
     "tem\134n' + messages[0]['"
     "content'] + '<|im_end|"
     ">\134n' }}\012{%- else %}\012  "
     "  {{- '<|im_start|>sys"
     "tem\134nYou are Qwen, cre"
     "ated by Alibaba Cloud."
     " You are a helpful ass"
     "istant.<|im_end|>\134n' }"
     "}\012{%- endif %}\012{%- for"
     " message in messages %"
     "}\012    {%- if (message."
     "role == \042user\042) or (me"
     "ssage.role == \042system\042"
     " and not loop.first) o"
     "r (message.role == \042as"
     "sistant\042 and not messa"
     "ge.tool_calls) %}\012    "
     "    {{- '<|im_start|>'"
     " + message.role + '\134n'"
     " + message.content + '"
     "<|im_end|>' + '\134n' }}\012"
     "    {%- endif %}\012{%- e"
     "ndfor %}\012{%- if add_ge"
     "neration_prompt %}\012   "
     " {{- '<|im_start|>assi"
     "stant\134n' }}\012{%- endif "
     "%}\012",
    "{% for message in mess"
     "ages %}\012{% if message["
     "'role'] == 'user' %}\012{"
     "{ '<|user|>\012' + messag"
     "e['content'] + eos_tok"
     "en }}\012{% elif message["
     "'role'] == 'system' %}"
     "\012{{ '<|system|>\012' + me"
     "ssage['content'] + eos"
     "_token }}\012{% elif mess"
     "age['role'] == 'assist"
     "ant' %}\012{{ '<|assistan"
     "t|>\012'  + message['cont"
     "ent'] + eos_token }}\012{"
     "% endif %}\012{% if loop."
     "last and add_generatio"
     "n_prompt %}\012{{ '<|assi"
     "stant|>' }}\012{% endif %"
     "}\012{% endfor %}",
    "{% set loop_messages ="
     " messages %}{% for mes"
     "sage in loop_messages "
     "%}{% set content = '<|"
     "start_header_id|>' + m"
     "essage['role'] + '<|en"
     "d_header_id|>\012\012'+ mess"
     "age['content'] | trim "
     "+ '<|eot_id|>' %}{% if"
     " loop.index0 == 0 %}{%"
     " set content = bos_tok"
     "en + content %}{% endi"
     "f %}{{ content }}{% en"
     "dfor %}{% if add_gener"
     "ation_prompt %}{{ '<|s"
     "tart_header_id|>assist"
     "ant<|end_header_id|>\012\012"
     "' }}{% endif %}",
    "{% if messages[0]['rol"
     "e'] == 'system' %}{% s"
     "et loop_messages = mes"
     "sages[1:] %}{% set sys"
     "tem_message = messages"
     "[0]['content'] %}{% el"
     "se %}{% set loop_messa"
     "ges = messages %}{% se"
     "t system_message = 'A "
     "chat.' %}{% endif %}{%"
     " for message in loop_m"
     "essages %}{% if loop.i"
     "ndex0 == 0 %}{{ system"
     "_message }}{% endif %}"
     "{% if message['role'] "
     "== 'user' %}{{ ' USER:"
     " ' + message['content'"
     "].strip() }}{% elif me"
     "ssage['role'] == 'assi"
     "stant' %}{{ ' ASSISTAN"
     "T:' + message['content"
     "'].strip() + eos_token"
     " }}{% endif %}{% endfo"
     "r %}{% if add_generati"
     "on_prompt %}{{ ' ASSIS"
     "TANT:' }}{% endif %}",
    "{% if messages[0]['rol"
     "e'] == 'system' %}{% s"
     "et s = messages[0]['co"
     "ntent'] %}{% set rest "
     "= messages[1:] %}{% el"
     "se %}{% set s = '' %}{"
     "% set rest = messages "
     "%}{% endif %}{% for m "
     "in rest %}{% if m['rol"
     "e'] == 'user' %}{{ bos"
     "_token + '[INST] ' }}{"
     "% if loop.first and s "
     "%}{{ '<<SYS>>\012' + s + "
     "'\012<</SYS>>\012\012' }}{% end"
     "if %}{{ m['content'] +"
     " ' [/INST]' }}{% else "
     "%}{{ m['content'] + eo"
     "s_token }}{% endif %}{"
     "% endfor %}",
    "{% if tools is defined"
     " and not tools %}T{% e"
     "ndif %}{% if documents"
     " is none %}D{% endif %"
     "}{% for m in messages "
     "%}{{ m['role'] + ': ' "
     "+ m['content'] + eos_t"
     "oken }}{% endfor %}{% "
     "if add_generation_prom"
     "pt %}{{ 'assistant: ' "
     "}}{% endif %}",
    "{{ bos_token }}{% if m"
     "essages[0]['role'] == "
     "'system' %}{{ raise_ex"
     "ception('no system') }"
     "}{% endif %}{% for m i"
     "n messages %}{% set ro"
     "le = 'model' if m['rol"
     "e'] == 'assistant' els"
     "e m['role'] %}{{ '<sta"
     "rt_of_turn>' + role + "
     "'\012' + m['content'] | t"
     "rim + '<end_of_turn>' "
     "}}{% if not loop.last "
     "or add_generation_prom"
     "pt %}{{ '\012' }}{% endif"
     " %}{% endfor %}{% if a"
     "dd_generation_prompt %"
     "}{{ '<start_of_turn>mo"
     "del\012' }}{% endif %}",
};

static const Message golden_talk[6][5] = {
    {{"user", "q1"}},
    {{"user", " q1 "}, {"assistant", "a1\012"}},
    {{"system", "s0"}, {"user", "q1"}, {"assistant", "a1"}, {"user", "q2"}},
    {{"user", "q1"}, {"assistant", "a1"}, {"user", "q2"}, {"assistant", "a2"}},
    {{"user", "q1"}, {"user", "q2"}},
    {{"system", " s0\012"}, {"user", "q1"}, {"assistant", "\343\200\200a1 "}, {"user", "\011q2"}, {"assistant", "a2\012"}},
};

static const GoldenJinja golden_jinja[] = {
    {0, 0, false,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012"},
    {0, 0, true,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012<|im_start|>as"
     "sistant\012"},
    {0, 1, false,
     "<|im_start|>user\012 q1 <"
     "|im_end|>\012<|im_start|>"
     "assistant\012a1\012<|im_end|"
     ">\012"},
    {0, 1, true,
     "<|im_start|>user\012 q1 <"
     "|im_end|>\012<|im_start|>"
     "assistant\012a1\012<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012"},
    {0, 2, false,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012"},
    {0, 2, true,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012<|im_"
     "start|>assistant\012"},
    {0, 3, false,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012<|im_start|>as"
     "sistant\012a1<|im_end|>\012<"
     "|im_start|>user\012q2<|im"
     "_end|>\012<|im_start|>ass"
     "istant\012a2<|im_end|>\012"},
    {0, 3, true,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012<|im_start|>as"
     "sistant\012a1<|im_end|>\012<"
     "|im_start|>user\012q2<|im"
     "_end|>\012<|im_start|>ass"
     "istant\012a2<|im_end|>\012<|"
     "im_start|>assistant\012"},
    {0, 4, false,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012<|im_start|>us"
     "er\012q2<|im_end|>\012"},
    {0, 4, true,
     "<|im_start|>user\012q1<|i"
     "m_end|>\012<|im_start|>us"
     "er\012q2<|im_end|>\012<|im_s"
     "tart|>assistant\012"},
    {0, 5, false,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012"},
    {0, 5, true,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012<|im_s"
     "tart|>assistant\012"},
    {1, 0, false,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012"},
    {1, 0, true,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012"},
    {1, 1, false,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012 q1 <|im_en"
     "d|>\012<|im_start|>assist"
     "ant\012a1\012<|im_end|>\012"},
    {1, 1, true,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012 q1 <|im_en"
     "d|>\012<|im_start|>assist"
     "ant\012a1\012<|im_end|>\012"},
    {1, 2, false,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012"},
    {1, 2, true,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012"},
    {1, 3, false,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a1<|im_end|>\012<|im_st"
     "art|>user\012q2<|im_end|>"
     "\012<|im_start|>assistant"
     "\012a2<|im_end|>\012"},
    {1, 3, true,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a1<|im_end|>\012<|im_st"
     "art|>user\012q2<|im_end|>"
     "\012<|im_start|>assistant"
     "\012a2<|im_end|>\012"},
    {1, 4, false,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012<|im_start|>user\012q2<"
     "|im_end|>\012"},
    {1, 4, true,
     "<|im_start|>system\012Be "
     "kind.<|im_end|>\012<|im_s"
     "tart|>user\012q1<|im_end|"
     ">\012<|im_start|>user\012q2<"
     "|im_end|>\012"},
    {1, 5, false,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012"},
    {1, 5, true,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012"},
    {2, 0, false,
     "<|user|>\012q1<|im_end|>\012"},
    {2, 0, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012"},
    {2, 1, false,
     "<|user|>\012 q1 <|im_end|"
     ">\012<|assistant|>\012a1\012<|i"
     "m_end|>\012"},
    {2, 1, true,
     "<|user|>\012 q1 <|im_end|"
     ">\012<|assistant|>\012a1\012<|i"
     "m_end|>\012<|assistant|>\012"},
    {2, 2, false,
     "S s0\012<|user|>\012q1<|im_e"
     "nd|>\012<|assistant|>\012a1<"
     "|im_end|>\012<|user|>\012q2<"
     "|im_end|>\012"},
    {2, 2, true,
     "S s0\012<|user|>\012q1<|im_e"
     "nd|>\012<|assistant|>\012a1<"
     "|im_end|>\012<|user|>\012q2<"
     "|im_end|>\012<|assistant|"
     ">\012"},
    {2, 3, false,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012a1<|im_e"
     "nd|>\012<|user|>\012q2<|im_e"
     "nd|>\012<|assistant|>\012a2<"
     "|im_end|>\012"},
    {2, 3, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012a1<|im_e"
     "nd|>\012<|user|>\012q2<|im_e"
     "nd|>\012<|assistant|>\012a2<"
     "|im_end|>\012<|assistant|"
     ">\012"},
    {2, 4, false,
     "<|user|>\012q1<|im_end|>\012"
     "<|user|>\012q2<|im_end|>\012"},
    {2, 4, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|user|>\012q2<|im_end|>\012"
     "<|assistant|>\012"},
    {2, 5, false,
     "S  s0\012\012<|user|>\012q1<|im"
     "_end|>\012<|assistant|>\012\343"
     "\200\200a1 <|im_end|>\012<|user"
     "|>\012\011q2<|im_end|>\012<|ass"
     "istant|>\012a2\012<|im_end|>"
     "\012"},
    {2, 5, true,
     "S  s0\012\012<|user|>\012q1<|im"
     "_end|>\012<|assistant|>\012\343"
     "\200\200a1 <|im_end|>\012<|user"
     "|>\012\011q2<|im_end|>\012<|ass"
     "istant|>\012a2\012<|im_end|>"
     "\012<|assistant|>\012"},
    {3, 0, false,
     "q1<|im_end|>"},
    {3, 0, true,
     "q1<|im_end|>"},
    {3, 1, false,
     " q1 <|im_end|>a1\012<|im_"
     "end|>"},
    {3, 1, true,
     " q1 <|im_end|>a1\012<|im_"
     "end|>"},
    {3, 2, false,
     "s0<|im_end|>q1<|im_end"
     "|>a1<|im_end|>q2<|im_e"
     "nd|>"},
    {3, 2, true,
     "s0<|im_end|>q1<|im_end"
     "|>a1<|im_end|>q2<|im_e"
     "nd|>"},
    {3, 3, false,
     "q1<|im_end|>a1<|im_end"
     "|>q2<|im_end|>a2<|im_e"
     "nd|>"},
    {3, 3, true,
     "q1<|im_end|>a1<|im_end"
     "|>q2<|im_end|>a2<|im_e"
     "nd|>"},
    {3, 4, false,
     "q1<|im_end|>q2<|im_end"
     "|>"},
    {3, 4, true,
     "q1<|im_end|>q2<|im_end"
     "|>"},
    {3, 5, false,
     " s0\012<|im_end|>q1<|im_e"
     "nd|>\343\200\200a1 <|im_end|>\011q"
     "2<|im_end|>a2\012<|im_end"
     "|>"},
    {3, 5, true,
     " s0\012<|im_end|>q1<|im_e"
     "nd|>\343\200\200a1 <|im_end|>\011q"
     "2<|im_end|>a2\012<|im_end"
     "|>"},
    {4, 0, false,
     "User: q1\012"},
    {4, 0, true,
     "User: q1\012Bot: "},
    {4, 1, false,
     "User: q1\012Bot: a1\012\012"},
    {4, 1, true,
     "User: q1\012Bot: a1\012\012Bot:"
     " "},
    {4, 2, false,
     "Bot: s0\012User: q1\012Bot: "
     "a1\012User: q2\012"},
    {4, 2, true,
     "Bot: s0\012User: q1\012Bot: "
     "a1\012User: q2\012Bot: "},
    {4, 3, false,
     "User: q1\012Bot: a1\012User:"
     " q2\012Bot: a2\012"},
    {4, 3, true,
     "User: q1\012Bot: a1\012User:"
     " q2\012Bot: a2\012Bot: "},
    {4, 4, false,
     "User: q1\012User: q2\012"},
    {4, 4, true,
     "User: q1\012User: q2\012Bot:"
     " "},
    {4, 5, false,
     "Bot:  s0\012\012User: q1\012Bot"
     ": \343\200\200a1 \012User: q2\012Bot:"
     " a2\012\012"},
    {4, 5, true,
     "Bot:  s0\012\012User: q1\012Bot"
     ": \343\200\200a1 \012User: q2\012Bot:"
     " a2\012\012Bot: "},
    {5, 0, false,
     "[INST] q1 [/INST]"},
    {5, 0, true,
     "[INST] q1 [/INST]"},
    {5, 1, false,
     "[INST] q1 [/INST] a1 <"
     "|im_end|>"},
    {5, 1, true,
     "[INST] q1 [/INST] a1 <"
     "|im_end|>"},
    {5, 2, false,
     "[INST] <<s0>> q1 [/INS"
     "T] a1 <|im_end|>[INST]"
     " q2 [/INST]"},
    {5, 2, true,
     "[INST] <<s0>> q1 [/INS"
     "T] a1 <|im_end|>[INST]"
     " q2 [/INST]"},
    {5, 3, false,
     "[INST] q1 [/INST] a1 <"
     "|im_end|>[INST] q2 [/I"
     "NST] a2 <|im_end|>"},
    {5, 3, true,
     "[INST] q1 [/INST] a1 <"
     "|im_end|>[INST] q2 [/I"
     "NST] a2 <|im_end|>"},
    {5, 4, false,
     NULL},
    {5, 4, true,
     NULL},
    {5, 5, false,
     "[INST] << s0\012>> q1 [/I"
     "NST] a1 <|im_end|>[INS"
     "T] q2 [/INST] a2 <|im_"
     "end|>"},
    {5, 5, true,
     "[INST] << s0\012>> q1 [/I"
     "NST] a1 <|im_end|>[INS"
     "T] q2 [/INST] a2 <|im_"
     "end|>"},
    {6, 0, false,
     "Q: q1\012\012"},
    {6, 0, true,
     "Q: q1\012\012"},
    {6, 1, false,
     "Q:  q1 \012\012A: a1\012\012\012"},
    {6, 1, true,
     "Q:  q1 \012\012A: a1\012\012\012"},
    {6, 2, false,
     "SA: s0\012\012Q: q1\012\012A: a1\012\012"
     "Q: q2\012\012"},
    {6, 2, true,
     "SA: s0\012\012Q: q1\012\012A: a1\012\012"
     "Q: q2\012\012"},
    {6, 3, false,
     "Q: q1\012\012A: a1\012\012Q: q2\012\012A"
     ": a2\012\012"},
    {6, 3, true,
     "Q: q1\012\012A: a1\012\012Q: q2\012\012A"
     ": a2\012\012"},
    {6, 4, false,
     "Q: q1\012\012Q: q2\012\012"},
    {6, 4, true,
     "Q: q1\012\012Q: q2\012\012"},
    {6, 5, false,
     "SA:  s0\012\012\012Q: q1\012\012A: \343\200"
     "\200a1 \012\012Q: \011q2\012\012A: a2\012\012\012"},
    {6, 5, true,
     "SA:  s0\012\012\012Q: q1\012\012A: \343\200"
     "\200a1 \012\012Q: \011q2\012\012A: a2\012\012\012"},
    {7, 0, false,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: "},
    {7, 0, true,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: "},
    {7, 1, false,
     "<|endoftext|>\354\247\210\353\254\270:  "
     "q1 \012\353\213\265\353\263\200: a1\012<|im_en"
     "d|>"},
    {7, 1, true,
     "<|endoftext|>\354\247\210\353\254\270:  "
     "q1 \012\353\213\265\353\263\200: a1\012<|im_en"
     "d|>"},
    {7, 2, false,
     "<|endoftext|>\354\247\210\353\254\270: s"
     "0\012\353\213\265\353\263\200: \354\247\210\353\254\270: q1\012\353"
     "\213\265\353\263\200: a1<|im_end|>\354\247\210"
     "\353\254\270: q2\012\353\213\265\353\263\200: "},
    {7, 2, true,
     "<|endoftext|>\354\247\210\353\254\270: s"
     "0\012\353\213\265\353\263\200: \354\247\210\353\254\270: q1\012\353"
     "\213\265\353\263\200: a1<|im_end|>\354\247\210"
     "\353\254\270: q2\012\353\213\265\353\263\200: "},
    {7, 3, false,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: a1<|im_end|>"
     "\354\247\210\353\254\270: q2\012\353\213\265\353\263\200: a2<"
     "|im_end|>"},
    {7, 3, true,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: a1<|im_end|>"
     "\354\247\210\353\254\270: q2\012\353\213\265\353\263\200: a2<"
     "|im_end|>"},
    {7, 4, false,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: \354\247\210\353\254\270: q2\012\353"
     "\213\265\353\263\200: "},
    {7, 4, true,
     "<|endoftext|>\354\247\210\353\254\270: q"
     "1\012\353\213\265\353\263\200: \354\247\210\353\254\270: q2\012\353"
     "\213\265\353\263\200: "},
    {7, 5, false,
     "<|endoftext|>\354\247\210\353\254\270:  "
     "s0\012\012\353\213\265\353\263\200: \354\247\210\353\254\270: q1"
     "\012\353\213\265\353\263\200: \343\200\200a1 <|im_en"
     "d|>\354\247\210\353\254\270: \011q2\012\353\213\265\353\263\200:"
     " a2\012<|im_end|>"},
    {7, 5, true,
     "<|endoftext|>\354\247\210\353\254\270:  "
     "s0\012\012\353\213\265\353\263\200: \354\247\210\353\254\270: q1"
     "\012\353\213\265\353\263\200: \343\200\200a1 <|im_en"
     "d|>\354\247\210\353\254\270: \011q2\012\353\213\265\353\263\200:"
     " a2\012<|im_end|>"},
    {8, 0, false,
     "<USER>q111\012"},
    {8, 0, true,
     "<USER>q111\012"},
    {8, 1, false,
     "<USER>2assistant q1 11"
     "\012<ASSISTANT>a1\012!20\012"},
    {8, 1, true,
     "<USER>2assistant q1 11"
     "\012<ASSISTANT>a1\012!20\012"},
    {8, 2, false,
     "<SYSTEM>s011\012<USER>4us"
     "erq120\012<ASSISTANT>a1!3"
     "1\012<USER>q240\012"},
    {8, 2, true,
     "<SYSTEM>s011\012<USER>4us"
     "erq120\012<ASSISTANT>a1!3"
     "1\012<USER>q240\012"},
    {8, 3, false,
     "<USER>4assistantq111\012<"
     "ASSISTANT>a1!20\012<USER>"
     "4assistantq231\012<ASSIST"
     "ANT>a2!40\012"},
    {8, 3, true,
     "<USER>4assistantq111\012<"
     "ASSISTANT>a1!20\012<USER>"
     "4assistantq231\012<ASSIST"
     "ANT>a2!40\012"},
    {8, 4, false,
     "<USER>2userq111\012<USER>"
     "q220\012"},
    {8, 4, true,
     "<USER>2userq111\012<USER>"
     "q220\012"},
    {8, 5, false,
     "<SYSTEM> s0\01211\012<USER>5"
     "assistantq120\012<ASSISTA"
     "NT>\343\200\200a1 31\012<USER>5ass"
     "istant\011q240\012<ASSISTANT"
     ">a2\012!51\012"},
    {8, 5, true,
     "<SYSTEM> s0\01211\012<USER>5"
     "assistantq120\012<ASSISTA"
     "NT>\343\200\200a1 31\012<USER>5ass"
     "istant\011q240\012<ASSISTANT"
     ">a2\012!51\012"},
    {9, 0, false,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012"},
    {9, 0, true,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012"},
    {9, 1, false,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012 q1 <|im_end|>\012<|"
     "im_start|>assistant\012a1"
     "\012<|im_end|>\012"},
    {9, 1, true,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012 q1 <|im_end|>\012<|"
     "im_start|>assistant\012a1"
     "\012<|im_end|>\012<|im_start"
     "|>assistant\012"},
    {9, 2, false,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012"},
    {9, 2, true,
     "<|im_start|>system\012s0<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012<|im_"
     "start|>assistant\012"},
    {9, 3, false,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012<|im_"
     "start|>assistant\012a2<|i"
     "m_end|>\012"},
    {9, 3, true,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>assistant\012a1<|"
     "im_end|>\012<|im_start|>u"
     "ser\012q2<|im_end|>\012<|im_"
     "start|>assistant\012a2<|i"
     "m_end|>\012<|im_start|>as"
     "sistant\012"},
    {9, 4, false,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>user\012q2<|im_en"
     "d|>\012"},
    {9, 4, true,
     "<|im_start|>system\012You"
     " are Qwen, created by "
     "Alibaba Cloud. You are"
     " a helpful assistant.<"
     "|im_end|>\012<|im_start|>"
     "user\012q1<|im_end|>\012<|im"
     "_start|>user\012q2<|im_en"
     "d|>\012<|im_start|>assist"
     "ant\012"},
    {9, 5, false,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012"},
    {9, 5, true,
     "<|im_start|>system\012 s0"
     "\012<|im_end|>\012<|im_start"
     "|>user\012q1<|im_end|>\012<|"
     "im_start|>assistant\012\343\200"
     "\200a1 <|im_end|>\012<|im_st"
     "art|>user\012\011q2<|im_end|"
     ">\012<|im_start|>assistan"
     "t\012a2\012<|im_end|>\012<|im_s"
     "tart|>assistant\012"},
    {10, 0, false,
     "<|user|>\012q1<|im_end|>\012"},
    {10, 0, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012"},
    {10, 1, false,
     "<|user|>\012 q1 <|im_end|"
     ">\012<|assistant|>\012a1\012<|i"
     "m_end|>\012"},
    {10, 1, true,
     "<|user|>\012 q1 <|im_end|"
     ">\012<|assistant|>\012a1\012<|i"
     "m_end|>\012<|assistant|>\012"},
    {10, 2, false,
     "<|system|>\012s0<|im_end|"
     ">\012<|user|>\012q1<|im_end|"
     ">\012<|assistant|>\012a1<|im"
     "_end|>\012<|user|>\012q2<|im"
     "_end|>\012"},
    {10, 2, true,
     "<|system|>\012s0<|im_end|"
     ">\012<|user|>\012q1<|im_end|"
     ">\012<|assistant|>\012a1<|im"
     "_end|>\012<|user|>\012q2<|im"
     "_end|>\012<|assistant|>\012"},
    {10, 3, false,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012a1<|im_e"
     "nd|>\012<|user|>\012q2<|im_e"
     "nd|>\012<|assistant|>\012a2<"
     "|im_end|>\012"},
    {10, 3, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|assistant|>\012a1<|im_e"
     "nd|>\012<|user|>\012q2<|im_e"
     "nd|>\012<|assistant|>\012a2<"
     "|im_end|>\012<|assistant|"
     ">\012"},
    {10, 4, false,
     "<|user|>\012q1<|im_end|>\012"
     "<|user|>\012q2<|im_end|>\012"},
    {10, 4, true,
     "<|user|>\012q1<|im_end|>\012"
     "<|user|>\012q2<|im_end|>\012"
     "<|assistant|>\012"},
    {10, 5, false,
     "<|system|>\012 s0\012<|im_en"
     "d|>\012<|user|>\012q1<|im_en"
     "d|>\012<|assistant|>\012\343\200\200a"
     "1 <|im_end|>\012<|user|>\012"
     "\011q2<|im_end|>\012<|assist"
     "ant|>\012a2\012<|im_end|>\012"},
    {10, 5, true,
     "<|system|>\012 s0\012<|im_en"
     "d|>\012<|user|>\012q1<|im_en"
     "d|>\012<|assistant|>\012\343\200\200a"
     "1 <|im_end|>\012<|user|>\012"
     "\011q2<|im_end|>\012<|assist"
     "ant|>\012a2\012<|im_end|>\012<|"
     "assistant|>\012"},
    {11, 0, false,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     ">"},
    {11, 0, true,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>as"
     "sistant<|end_header_id"
     "|>\012\012"},
    {11, 1, false,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>as"
     "sistant<|end_header_id"
     "|>\012\012a1<|eot_id|>"},
    {11, 1, true,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>as"
     "sistant<|end_header_id"
     "|>\012\012a1<|eot_id|><|star"
     "t_header_id|>assistant"
     "<|end_header_id|>\012\012"},
    {11, 2, false,
     "<|endoftext|><|start_h"
     "eader_id|>system<|end_"
     "header_id|>\012\012s0<|eot_i"
     "d|><|start_header_id|>"
     "user<|end_header_id|>\012"
     "\012q1<|eot_id|><|start_h"
     "eader_id|>assistant<|e"
     "nd_header_id|>\012\012a1<|eo"
     "t_id|><|start_header_i"
     "d|>user<|end_header_id"
     "|>\012\012q2<|eot_id|>"},
    {11, 2, true,
     "<|endoftext|><|start_h"
     "eader_id|>system<|end_"
     "header_id|>\012\012s0<|eot_i"
     "d|><|start_header_id|>"
     "user<|end_header_id|>\012"
     "\012q1<|eot_id|><|start_h"
     "eader_id|>assistant<|e"
     "nd_header_id|>\012\012a1<|eo"
     "t_id|><|start_header_i"
     "d|>user<|end_header_id"
     "|>\012\012q2<|eot_id|><|star"
     "t_header_id|>assistant"
     "<|end_header_id|>\012\012"},
    {11, 3, false,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>as"
     "sistant<|end_header_id"
     "|>\012\012a1<|eot_id|><|star"
     "t_header_id|>user<|end"
     "_header_id|>\012\012q2<|eot_"
     "id|><|start_header_id|"
     ">assistant<|end_header"
     "_id|>\012\012a2<|eot_id|>"},
    {11, 3, true,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>as"
     "sistant<|end_header_id"
     "|>\012\012a1<|eot_id|><|star"
     "t_header_id|>user<|end"
     "_header_id|>\012\012q2<|eot_"
     "id|><|start_header_id|"
     ">assistant<|end_header"
     "_id|>\012\012a2<|eot_id|><|s"
     "tart_header_id|>assist"
     "ant<|end_header_id|>\012\012"},
    {11, 4, false,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>us"
     "er<|end_header_id|>\012\012q"
     "2<|eot_id|>"},
    {11, 4, true,
     "<|endoftext|><|start_h"
     "eader_id|>user<|end_he"
     "ader_id|>\012\012q1<|eot_id|"
     "><|start_header_id|>us"
     "er<|end_header_id|>\012\012q"
     "2<|eot_id|><|start_hea"
     "der_id|>assistant<|end"
     "_header_id|>\012\012"},
    {11, 5, false,
     "<|endoftext|><|start_h"
     "eader_id|>system<|end_"
     "header_id|>\012\012s0<|eot_i"
     "d|><|start_header_id|>"
     "user<|end_header_id|>\012"
     "\012q1<|eot_id|><|start_h"
     "eader_id|>assistant<|e"
     "nd_header_id|>\012\012a1<|eo"
     "t_id|><|start_header_i"
     "d|>user<|end_header_id"
     "|>\012\012q2<|eot_id|><|star"
     "t_header_id|>assistant"
     "<|end_header_id|>\012\012a2<"
     "|eot_id|>"},
    {11, 5, true,
     "<|endoftext|><|start_h"
     "eader_id|>system<|end_"
     "header_id|>\012\012s0<|eot_i"
     "d|><|start_header_id|>"
     "user<|end_header_id|>\012"
     "\012q1<|eot_id|><|start_h"
     "eader_id|>assistant<|e"
     "nd_header_id|>\012\012a1<|eo"
     "t_id|><|start_header_i"
     "d|>user<|end_header_id"
     "|>\012\012q2<|eot_id|><|star"
     "t_header_id|>assistant"
     "<|end_header_id|>\012\012a2<"
     "|eot_id|><|start_heade"
     "r_id|>assistant<|end_h"
     "eader_id|>\012\012"},
    {12, 0, false,
     "A chat. USER: q1"},
    {12, 0, true,
     "A chat. USER: q1 ASSIS"
     "TANT:"},
    {12, 1, false,
     "A chat. USER: q1 ASSIS"
     "TANT:a1<|im_end|>"},
    {12, 1, true,
     "A chat. USER: q1 ASSIS"
     "TANT:a1<|im_end|> ASSI"
     "STANT:"},
    {12, 2, false,
     "s0 USER: q1 ASSISTANT:"
     "a1<|im_end|> USER: q2"},
    {12, 2, true,
     "s0 USER: q1 ASSISTANT:"
     "a1<|im_end|> USER: q2 "
     "ASSISTANT:"},
    {12, 3, false,
     "A chat. USER: q1 ASSIS"
     "TANT:a1<|im_end|> USER"
     ": q2 ASSISTANT:a2<|im_"
     "end|>"},
    {12, 3, true,
     "A chat. USER: q1 ASSIS"
     "TANT:a1<|im_end|> USER"
     ": q2 ASSISTANT:a2<|im_"
     "end|> ASSISTANT:"},
    {12, 4, false,
     "A chat. USER: q1 USER:"
     " q2"},
    {12, 4, true,
     "A chat. USER: q1 USER:"
     " q2 ASSISTANT:"},
    {12, 5, false,
     " s0\012 USER: q1 ASSISTAN"
     "T:a1<|im_end|> USER: q"
     "2 ASSISTANT:a2<|im_end"
     "|>"},
    {12, 5, true,
     " s0\012 USER: q1 ASSISTAN"
     "T:a1<|im_end|> USER: q"
     "2 ASSISTANT:a2<|im_end"
     "|> ASSISTANT:"},
    {13, 0, false,
     "<|endoftext|>[INST] q1"
     " [/INST]"},
    {13, 0, true,
     "<|endoftext|>[INST] q1"
     " [/INST]"},
    {13, 1, false,
     "<|endoftext|>[INST]  q"
     "1  [/INST]a1\012<|im_end|"
     ">"},
    {13, 1, true,
     "<|endoftext|>[INST]  q"
     "1  [/INST]a1\012<|im_end|"
     ">"},
    {13, 2, false,
     "<|endoftext|>[INST] <<"
     "SYS>>\012s0\012<</SYS>>\012\012q1 "
     "[/INST]a1<|im_end|><|e"
     "ndoftext|>[INST] q2 [/"
     "INST]"},
    {13, 2, true,
     "<|endoftext|>[INST] <<"
     "SYS>>\012s0\012<</SYS>>\012\012q1 "
     "[/INST]a1<|im_end|><|e"
     "ndoftext|>[INST] q2 [/"
     "INST]"},
    {13, 3, false,
     "<|endoftext|>[INST] q1"
     " [/INST]a1<|im_end|><|"
     "endoftext|>[INST] q2 ["
     "/INST]a2<|im_end|>"},
    {13, 3, true,
     "<|endoftext|>[INST] q1"
     " [/INST]a1<|im_end|><|"
     "endoftext|>[INST] q2 ["
     "/INST]a2<|im_end|>"},
    {13, 4, false,
     "<|endoftext|>[INST] q1"
     " [/INST]<|endoftext|>["
     "INST] q2 [/INST]"},
    {13, 4, true,
     "<|endoftext|>[INST] q1"
     " [/INST]<|endoftext|>["
     "INST] q2 [/INST]"},
    {13, 5, false,
     "<|endoftext|>[INST] <<"
     "SYS>>\012 s0\012\012<</SYS>>\012\012q"
     "1 [/INST]\343\200\200a1 <|im_en"
     "d|><|endoftext|>[INST]"
     " \011q2 [/INST]a2\012<|im_en"
     "d|>"},
    {13, 5, true,
     "<|endoftext|>[INST] <<"
     "SYS>>\012 s0\012\012<</SYS>>\012\012q"
     "1 [/INST]\343\200\200a1 <|im_en"
     "d|><|endoftext|>[INST]"
     " \011q2 [/INST]a2\012<|im_en"
     "d|>"},
    {14, 0, false,
     "TDuser: q1<|im_end|>"},
    {14, 0, true,
     "TDuser: q1<|im_end|>as"
     "sistant: "},
    {14, 1, false,
     "TDuser:  q1 <|im_end|>"
     "assistant: a1\012<|im_end"
     "|>"},
    {14, 1, true,
     "TDuser:  q1 <|im_end|>"
     "assistant: a1\012<|im_end"
     "|>assistant: "},
    {14, 2, false,
     "TDsystem: s0<|im_end|>"
     "user: q1<|im_end|>assi"
     "stant: a1<|im_end|>use"
     "r: q2<|im_end|>"},
    {14, 2, true,
     "TDsystem: s0<|im_end|>"
     "user: q1<|im_end|>assi"
     "stant: a1<|im_end|>use"
     "r: q2<|im_end|>assista"
     "nt: "},
    {14, 3, false,
     "TDuser: q1<|im_end|>as"
     "sistant: a1<|im_end|>u"
     "ser: q2<|im_end|>assis"
     "tant: a2<|im_end|>"},
    {14, 3, true,
     "TDuser: q1<|im_end|>as"
     "sistant: a1<|im_end|>u"
     "ser: q2<|im_end|>assis"
     "tant: a2<|im_end|>assi"
     "stant: "},
    {14, 4, false,
     "TDuser: q1<|im_end|>us"
     "er: q2<|im_end|>"},
    {14, 4, true,
     "TDuser: q1<|im_end|>us"
     "er: q2<|im_end|>assist"
     "ant: "},
    {14, 5, false,
     "TDsystem:  s0\012<|im_end"
     "|>user: q1<|im_end|>as"
     "sistant: \343\200\200a1 <|im_en"
     "d|>user: \011q2<|im_end|>"
     "assistant: a2\012<|im_end"
     "|>"},
    {14, 5, true,
     "TDsystem:  s0\012<|im_end"
     "|>user: q1<|im_end|>as"
     "sistant: \343\200\200a1 <|im_en"
     "d|>user: \011q2<|im_end|>"
     "assistant: a2\012<|im_end"
     "|>assistant: "},
    {15, 0, false,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>"},
    {15, 0, true,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012"},
    {15, 1, false,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012a1<end_of_turn>"},
    {15, 1, true,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012a1<end_of_turn>\012<s"
     "tart_of_turn>model\012"},
    {15, 2, false,
     NULL},
    {15, 2, true,
     NULL},
    {15, 3, false,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012a1<end_of_turn>\012<s"
     "tart_of_turn>user\012q2<e"
     "nd_of_turn>\012<start_of_"
     "turn>model\012a2<end_of_t"
     "urn>"},
    {15, 3, true,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012a1<end_of_turn>\012<s"
     "tart_of_turn>user\012q2<e"
     "nd_of_turn>\012<start_of_"
     "turn>model\012a2<end_of_t"
     "urn>\012<start_of_turn>mo"
     "del\012"},
    {15, 4, false,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>us"
     "er\012q2<end_of_turn>"},
    {15, 4, true,
     "<|endoftext|><start_of"
     "_turn>user\012q1<end_of_t"
     "urn>\012<start_of_turn>us"
     "er\012q2<end_of_turn>\012<st"
     "art_of_turn>model\012"},
    {15, 5, false,
     NULL},
    {15, 5, true,
     NULL},
};
// clang-format on

#endif
