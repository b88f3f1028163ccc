"""Chat templates as published fine-tunes have them, and checkpoints' folders with one."""

import json
from pathlib import Path

import tokenizers
from tokenizers_ import make_tokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
FALCON_180B = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ 'System: ' }}{% elif message['role'] == 'user' %}"
    "{{ 'User: ' }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' }}{% endif %}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n' + 'Falcon:' }}{% endif %}"
)
BLANK_LINES = (  # falcon-7b-instruct's
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message %}{{ system_message.strip() }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '\n\nUser: ' + message['content'].strip()"
    ".replace('\r\n', '\n').replace('\n\n', '\n') }}{% elif message['role'] == 'assistant' %}"
    "{{ '\n\nAssistant: ' + message['content'].strip().replace('\n\n', '\n') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
HUMAN = """{%- for message in messages %}
    {%- if message.role == 'system' -%}
        {{ message.content }}
    {%- else -%}
        {{ ('### Human: ' if message.role == 'user' else '### Assistant: ') ~ message.content }}
    {%- endif -%}
    {{- '\\n' if not loop.last }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\n### Assistant:' }}{% endif %}
"""
INST = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') !="
    " (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate"
    " user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
MARKS_OF_TURNS = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] }}
{% elif message['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\\n' + message['content'] }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
WITH_MACROS = """{%- macro turn(role, text, is_last=false) -%}
{{ role | upper }}:
{{ text | trim | indent(2) }}{% if caller %}{{ caller() }}{% endif %}
{%- endmacro -%}
{%- set ns = namespace(system='', count=0) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}
{{ {'system': ns.system, 'turns': messages | length} | tojson }}
{% for m in messages | rejectattr('role', 'equalto', 'system') %}
    {%- set ns.count = ns.count + 1 %}
{{ '%02d/%d ' % (ns.count, loop.length) }}{% call turn(m.role, m.content, loop.last) %}.{% endcall %}
    {%- if m.content is string and 'skip' in m.content %}{% continue %}{% endif %}

{%- endfor %}
{{ '{}{:>3}'.format(messages[-1]['content'][:2], ns.count) ~ '~' * 3 }}
ANSWER:
"""

ONE_TURN = [("user", " Name a bird.\n")]
WITH_SYSTEM = [("system", "Be brief.\n\nAlways."), ("user", "Name a bird.")]
MANY_TURNS = [
    ("user", "Name a bird.\r\n\r\nAny <|im_end|> will do: é, 隼, 🦅."),
    ("assistant", "A gyrfalcon.\n\n It nests on cliffs."),
    ("user", "skip: {{ messages }} {% endif %}"),
    ("assistant", ""),
    ("user", "And another?"),
]
MARKS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def make_chat_folder(folder: Path, template: object = None, **settings: object) -> Path:
    """A tokenizer that knows MARKS, with a chat template in its tokenizer_config.json."""
    make_tokenizer(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens(MARKS)
    library.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    given = {} if template is None else {"chat_template": template}
    path.write_text(json.dumps({**json.loads(path.read_text()), **given, **settings}))
    return folder
