"""What chat templates may do is done in our sandbox as in that of transformers."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gyrfalcon.text.chat_sandbox import compile_template, render

USES = [
    "{{ messages|tojson }}{{ messages|tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    "{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}{% else %}none{% endfor %}",
    "{% for m in messages recursive %}{{ m if m is string else m.role }}"
    "{% if m is mapping %}{{ loop('ab') }}{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}"
    "{% endif %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}{% endfor %}",
    "{% set xs = messages|map(attribute='role') %}{% for x in xs %}{{ x }}{% endfor %}|"
    "{% for x in xs %}{{ x }}{% endfor %}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|map('length')|list }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='content')|map('upper')|list }}",
    "{{ messages|groupby('role')|list|length }}{{ [3, 1, 2]|sort(reverse=true)|join }}",
    "{{ 'a b'.split()|reverse|list }}{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2, 3]|slice(2)|list }}",
    "{{ 3.14159|round(2) }}{{ 3.7|round(method='floor') }}{{ 'a\nb'|indent(3, first=true) }}",
    "{{ [1, 2]|sum }}{{ {'b': 1, 'a': 2}|dictsort }}{{ {'b': 1}|items|list }}{{ 'x'|center(9) }}",
    "{{ [1, 1, 2]|unique|list }}{{ 'aXbX'|replace('X', 'yy', 1) }}{{ 'aXbX'.replace('X', 'yy') }}",
    "{{ 'a-b-c'.rsplit(sep='-', maxsplit=1) }}{{ 'a-b-c'.rpartition('-') }}{{ 'xax'.strip('x') }}",
    "{{ ' a '|trim }}{{ 'xax'|trim(chars='x') }}{{ 'a'.encode().decode('utf-8') }}",
    "{{ '%s-%5.2f%%|%-4d|%(x)s'|replace('%(x)s', '') % ('a', 1.5, 7) }}{{ '%(a)s' % {'a': 1} }}",
    "{{ '{:>5}{}{a!r}'.format(1, 'b', a='c') }}{{ '{0[0].role}'.format(messages) }}",
    "{{ 'tab\tx'.expandtabs(4) }}{{ 'abc'.translate({97: 'zz'}) }}{{ 'x'.ljust(3) ~ '|' }}",
    "{{ messages[1:] }}{{ messages[::-1][0].role }}{{ 'role' in messages[0] }}{{ 'x' not in 'abc' }}",
    "{{ 3 ** 4 }}{{ 'ab' * 3 }}{{ [1] * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ -3 }}{{ 1 / 4 }}{{ 1 < 2 < 3 }}",
    "{{ range(5)|list }}{{ dict(a=1) }}{{ [1, [2, (3,)]] }}{{ none }}{{ true }}{{ nothing }}{{ 1.0 }}",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
    "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner() %}{{ j() }}{{ j() }}",
    "{% macro f(x, n=2) %}[{{ x }}{{ n }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f('a', 1, 2, k=3) }}",
    "{% macro f(x) %}{{ caller(x) }}{% endmacro %}{% call(y) f(2) %}in {{ y }}{% endcall %}",
    "{% block a %}x{% endblock %}{{ self.a() }}{% with b = 1 %}{{ b }}{% endwith %}",
    "{% filter upper %}abc{{ 'd' }}{% endfilter %}",
    "{% set x %} e {% endset %}{{ x|trim }}{% raw %}{{{% endraw %}{# not written #}",
    "{% generation %}x{% set q = 1 %}{% endgeneration %}{{ q }}",
    "  {% if true %}\n  x\n  {% endif %}\n y \n",
    "{% autoescape true %}{{ '<' }}<{% endautoescape %}{{ '<'|escape }}{{ 'é a'|urlencode }}",
    "{{ messages[99] }}{{ messages[0].nope }}{{ ''.__class__ }}{{ 'x' if false }}{{ nothing|default('d') }}",
    "{{ strftime_now('%Y')|length }}{{ 5 is divisibleby 5 }}{{ 2 is in [1, 2] }}{{ 'A' is upper }}",
    "{{ 'ab'|first }}{{ [1, 2]|last }}{{ [2, 1]|min }}{{ '7'|int + 1 }}{{ 'z'|int(5) }}{{ '1.5'|float }}",
    "{{ 'one two'|wordcount }}{{ 'one two three'|truncate(8, end='…') }}{{ 'a b'|title|string }}",
]  # fmt: skip


@pytest.mark.parametrize("template", USES)
def test_what_templates_do_is_done_as_in_transformers(template: str) -> None:
    turns = [("user", "Name a bird."), ("assistant", "A gyrfalcon\n é 隼."), ("user", "Why?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    (wanted,), _ = render_jinja_template([talk], chat_template=template)
    assert render(compile_template(template), {"messages": talk}, given_len=99) == wanted
