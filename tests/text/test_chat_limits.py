"""A chat template from a stranger neither gets out of its sandbox nor costs more than a few seconds and
megabytes: each of these asks for far more.
"""

import sys
import threading
from pathlib import Path

import pytest
from chat_templates import make_chat_folder
from jinja2.exceptions import SecurityError

from gyrfalcon.errors import CheckpointError
from gyrfalcon.text.chat import Message
from gyrfalcon.text.chat_limits import MAX_SIZE, TooMuch
from gyrfalcon.text.chat_sandbox import compile_template, render
from gyrfalcon.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Name a bird."}]
LONG = "{% set x = 'a'.ljust(900000) %}"  # nearly as long as a value may be


def rendered(template: str, **variables: object) -> str:
    return render(compile_template(template), {"messages": MESSAGES, **variables}, given_len=16)


def growing(start: str, step: str) -> str:
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(1000) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
    )


def repeated(statement: str, times: str = "10**5") -> str:
    return f"{{% for i in range({times}) %}}{statement}{{% endfor %}}"


NOTHING = "{% for i in range(10**5) if false %}{% endfor %}"
MACRO_F = "{% macro f(n) %}"
STEPS = {
    "nested loops without output": repeated(repeated(repeated(""))),
    "loops whose filter lets nothing through": NOTHING * 11,
    "a loop with much in a pass": repeated("{% set y = i %}" * 3000),
    "a macro with much in it": MACRO_F + "{% set y = n %}" * 3000 + "{% endmacro %}" + repeated("{{ f(i) }}"),
    "a loop with a long filter": NOTHING.replace("false", "i is string and " * 99 + "false"),
    "a loop over a loop's items": repeated("{% for c in x %}{% endfor %}"),
    "macros calling macros": MACRO_F
    + "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "work on long strings": LONG + repeated("{% set y = x|title %}"),
    "looking into long strings": LONG + repeated("{% if 'b' in x or x == 'b' %}{% endif %}"),
    "equal lists": "{% set x = range(10**5)|list %}" + repeated("{% set y = x == x|list %}"),
    "sorting": "{% set x = range(10**5)|list %}" + repeated("{% set y = x|sort %}"),
    "lists by the thousand": repeated(repeated("{% set y = [i] %}")),
    "empty slices": "{{ [1]|slice(10**6)|list|length }}",
    "lookups by long keys": "{% set k = (1,) * 99999 %}" + repeated("{% set y = messages[k] %}"),
    "looking from the right": LONG.replace("900000", "99999") + repeated("{% set y = x.rfind('a ' ~ x) %}"),
    "stripping many characters": LONG.replace("900000", "99999") + repeated("{% set y = x.strip(x) %}"),
    "trimming many characters": LONG.replace("900000", "99999") + repeated("{% set y = x|trim(x) %}"),
    "arguments by the thousand": "{% macro f() %}{{ varargs|length }}{% endmacro %}"
    + repeated("{% set y = f(*range(10**5)) %}"),
    "tuples that share a hash": "{{ ([(1,)] * 90000)|unique|list|length }}",
    "keys that share a hash": "{{ dict.fromkeys([(1,)] * 90000)|length }}",
    "many long strings": "{% set ns = namespace() %}" + "{% set ns.x = '隼' * 900000 %}" * 99,
    "a filter that calls a filter": repeated("{% set y = range(1000)|map('string')|list %}"),
    "tests by the thousand": repeated("{% set y = range(1000)|select('in', [7])|list %}"),
}  # fmt: skip
SIZES = {
    "a repeated string": "{{ 'a' * 10**9 }}",
    "a repeated list": "{{ ([0] * 10**9)|length }}",
    "a repeated list, from the left": "{{ (10**9 * [0])|length }}",
    "a power": "{{ 10 ** 100000000 }}",
    "numbers that share a hash": "{{ range(0, (2**61 - 1) * 99999, 2**61 - 1)|unique|list }}",
    "a number by its text": "{{ ('9' * 999)|int }}",
    "a number by its bytes": "{{ (1).from_bytes('a'.encode() * 999, 'big') }}",
    "a slow encoding": "{{ 'é'.encode('punycode') }}",
    "a slow decoding": "{{ ''.encode().decode(encoding='idna') }}",
    "HTML's tags": "{{ ('<!---->'|safe).striptags() }}",
    "a negative power": "{{ 10 ** -100000000 }}",
    "products": growing("3", "ns.x * ns.x"),
    "doubled by ~": growing("'ab'", "ns.x ~ ns.x"),
    "doubled by +": growing("'ab'", "ns.x + ns.x"),
    "doubled lists": growing("[1]", "ns.x + ns.x"),
    "lists of lists": growing("[1]", "[ns.x, ns.x]"),
    "tuples of tuples": growing("(1,)", "(ns.x, ns.x)"),
    "dicts of dicts": growing("{}", "{'a': ns.x, 'b': ns.x}"),
    "dicts by call": growing("{}", "dict(a=ns.x, b=ns.x)"),
    "deep lists": growing("[]", "[ns.x]"),
    "a deep key": growing("(1,)", "(ns.x,)") + "{{ {ns.x: 1} }}",
    "doubled by join": growing("'ab'", "[ns.x, ns.x]|join"),
    "doubled by format": growing("'ab'", "'%s%s'|format(ns.x, ns.x)"),
    "doubled by str.format": growing("'ab'", "'{0}{0}'.format(ns.x)"),
    "doubled by replace": growing("'ab'", "ns.x|replace('a', 'aa')"),
    "doubled by a set block": "{% set ns = namespace(x='ab') %}"
    + repeated("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + growing("'ab'", "f(ns.x)"),
    "doubled by JSON": growing("'\"'", "ns.x|tojson"),
    "a range": "{{ range(10**9)|list }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a precision": "{{ '%.1000000000f' % 1 }}",
    "a width as an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a width after a name in parentheses": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "a width after a doubled %": "{{ '%%(a%999999999d)' % 1 }}",
    "a width after a % with a width": "{{ '%5%(a%999999999d)' % 1 }}",
    "a width by a filter": "{{ '%1000000000d'|format(1) }}",
    "a width in str.format": "{{ '{:>1000000000}'.format(1) }}",
    "a width as an argument of str.format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a width in format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "many widths": "{{ ('%999999d' * 1000) % ((1,) * 1000) }}",
    "one argument many times": "{{ ('{0}' * 9999).format('a' * 9999) }}",
    "one named argument many times": "{{ ('%(a)s' * 9999) % {'a': 'b' * 9999} }}",
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "indent": "{{ 'a\n'|indent(10**9) }}",
    "indented lines": "{{ ('a\n' * 9999)|indent(9999) }}",
    "indented lines by a string": "{{ ('a\n' * 9999)|indent('a' * 9999) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(9999) }}",
    "translate": "{{ ('a' * 9999).translate({97: 'x' * 9999}) }}",
    "JSON's indent": "{{ messages|tojson(indent=10**9) }}",
    "JSON's separators": "{{ messages|tojson(separators=('a' * 9999, 'b')) }}",
    "a batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slices": "{{ [1]|slice(10**9)|list }}",
    "replace": LONG + "{{ x|replace('a', x) }}",
    "str.replace": LONG + "{{ x.replace(' ', x) }}",
    "join": LONG + "{{ x|list|join(x) }}",
    "str.join": LONG + "{{ x.join([''] * 9999) }}",
    "join of an iterator": LONG + "{{ x.join(([''] * 9999)|map('string')) }}",
    "round": "{{ 3.5|round(10**9) }}",
    "round up": "{{ 3.5|round(9999, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "sums of lists": "{{ ([[1]] * 9999)|sum(start=[]) }}",
    "a constant's filter": "{% autoescape 'a'|center(10**9) %}{% endautoescape %}",
    "the time's format": "{{ strftime_now('%Y' * 9999) }}",
}  # fmt: skip
TEXTS = {
    "much output": repeated("{{ 'x' * 1000 }}"),
    "much text": repeated("x" * 1000),
    "much text in a set block": "{% set y %}" + repeated("x" * 1000) + "{% endset %}",
    "much output in a macro": "{% macro f() %}" + repeated("{{ 'x' * 1000 }}") + "{% endmacro %}{{ f() }}",
    "much output in a filter block": "{% filter upper %}" + repeated("x" * 1000) + "{% endfilter %}",
}  # fmt: skip
DEPTHS = {
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a caller that calls itself": "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}"
    "{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a block within itself": "{% block a %}{{ self.a() }}{% endblock %}",
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_bounded(name: str) -> None:
    with pytest.raises(TooMuch, match="loop passes and operations"):
        rendered(STEPS[name], x=list(range(1000)))


@pytest.mark.parametrize("name", SIZES)
def test_values_are_bounded(name: str) -> None:
    with pytest.raises(TooMuch):
        rendered(SIZES[name])


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_bounded(name: str) -> None:
    with pytest.raises(TooMuch, match="a text of more than"):
        rendered(TEXTS[name])


@pytest.mark.parametrize("name", DEPTHS)
def test_calls_are_bounded(name: str) -> None:
    with pytest.raises(TooMuch, match="calls more than 64 deep"):
        rendered(DEPTHS[name])


def test_what_is_within_the_bounds_is_rendered() -> None:
    assert rendered("{{ 'a' * 999999 }}") == "a" * 999999
    assert rendered("{{ x }}{{ x }}", x="a" * (MAX_SIZE // 2)) == "a" * MAX_SIZE
    assert rendered(repeated("{% set y = i %}") + "end") == "end"
    assert rendered("{{ 2 ** 29 * 2 ** 30 // 3 }}") == str(2**59 // 3)
    assert rendered("{{ [[[[1]]]] ~ 2 ** 59 }}") == "[[[[1]]]]576460752303423488"
    assert len(rendered("{{ ('a b ' * 9999).split()|join(', ') }}")) == 2 * 9999 * 3 - 2


def test_long_messages_may_be_read_many_times(tmp_path: Path) -> None:
    turns = repeated("{% if '</think>' in m.content %}{% endif %}{{ m.content|trim }}", "1")
    template = f"{{% for m in messages %}}{turns}{{% endfor %}}"
    tokenizer = Tokenizer.load(make_chat_folder(tmp_path, template))
    talk = [Message("user", "0123456789" * 1000)] * 400
    assert tokenizer.chat_prompt(talk) == "0123456789" * 400000


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.mro() }}",
    "{{ namespace.__init__.__globals__.sys }}",
    "{{ dict.__call__.__globals__.sys }}",
    "{{ raise_exception.__globals__.sys }}",
    "{{ strftime_now.__code__.co_code }}",
    "{{ 'x'.format.__globals__.sys }}",
    "{{ 'x'.format.func.__globals__ }}",
    "{{ messages[0].items.__self__.role }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0[__class__][__name__]}'.format('') }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}'|safe).format(1) }}",
    "{{ 'x'.format.args[0] }}",
    "{{ (messages|map(attribute='__class__')|first).mro() }}",
    "{{ messages|sort(attribute='__class__.__mro__')|first + 1 }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{% for m in messages %}{{ loop._iterable.gi_frame.f_globals }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._environment.meter }}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].pop('role') }}",
    "{{ environment.meter }}",
    "{{ lipsum.__globals__.os }}",
    "{{ range.__self__.x }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_leads_out_of_the_sandbox(template: str) -> None:
    with pytest.raises(Exception, match=r"unsafe|undefined|no name|plain string|has no"):
        rendered(template)
    assert MESSAGES == [{"role": "user", "content": "Name a bird."}]


def test_a_namespace_that_holds_itself_is_not_written() -> None:
    with pytest.raises(SecurityError):
        rendered("{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns.x }}")


@pytest.mark.parametrize(
    "template",
    [
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ " + "not " * 9000 + "1 }}",
        "{{ " + "[" * 9000 + "]" * 9000 + " }}",
        "{{ a" + ".b" * 30000 + " }}",
        "{{ a" + "|e" * 30000 + " }}",
        "{{ 1" + "+1" * 30000 + " }}",
        "{{ 0x" + "f" * 60000 + " }}",
        "{{ " + "9" * 60000 + " }}",
        "{% for a in b %}" * 2000 + "{% endfor %}" * 2000,
    ],
    ids=lambda template: template[:12],
)
def test_templates_nested_beyond_reason_are_refused_in_one_line(
    template: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(make_chat_folder(tmp_path, template))
    with pytest.raises(CheckpointError) as caught:
        tokenizer.chat_prompt([Message("user", "a")])
    assert "\n" not in str(caught.value)


def test_bounds_hold_on_any_thread(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_chat_folder(tmp_path, STEPS["nested loops without output"]))
    caught: list[str] = []

    def ask() -> None:
        try:
            tokenizer.chat_prompt([Message("user", "a")])
        except CheckpointError as error:
            caught.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caught) == 2
    assert all("more than 1000000 loop passes" in line for line in caught)
    assert sys.gettrace() is None
