"""Runs a chat template with jinja2, configured as in transformers, within limits that hold on any
thread.

The environment is jinja2's immutable sandbox; code generated from a template counts its loop
passes, and every filter, call and operator pays a Meter. Knows no checkpoint and no messages.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial, update_wrapper
from types import CodeType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_context

from gyrfalcon.text.chat_limits import (
    FILTER_CHECKS,
    METHOD_CHECKS,
    Meter,
    TooMuch,
    check_keys,
    check_numbers,
    check_percent,
    check_power,
    check_product,
)

# Useless in a prompt; their cost cannot be predicted, or their result is random.
LEFT_OUT = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that do not consume their iterator.
LAZY = ("default", "d", "first", "string")
# Tests that look at what a value is, not into it.
CHEAP_TESTS = frozenset(
    "boolean callable defined escaped false filter float integer iterable mapping none number sameas "
    "sequence string test true undefined".split()
)
# Of a template's syntax tree: names, constants and assignments have a price, too.
NODES_PER_STEP = 16
LOOP_VARIABLES = ("_loop_vars", "_block_vars")  # what jinja2 passes on with every call
MAX_INDENT = 100  # of JSON: characters a level, and of a separator
MAX_TIME_FORMAT = 1000


def compile_template(source: str) -> CodeType:
    """Compiles a template once, for any number of renderings; raises what jinja2 and Python raise."""
    return _Sandbox(Meter(0)).compile(source)


def render(code: CodeType, variables: Mapping[str, object], given_len: int) -> str:
    """The output of a compiled template. Raises TemplateError for the template's own
    raise_exception, TooMuch beyond a limit, and whatever else a broken template raises.
    `given_len`: the number of characters of the messages.
    """
    meter = Meter(given_len)
    sandbox = _Sandbox(meter)
    template = Template.from_code(sandbox, code, sandbox.globals)
    text: list[str] = []
    total = 0
    for part in template.root_render_func(template.new_context(dict(variables))):
        total += len(part)
        if total > meter.max_size:
            raise TooMuch(f"a text of more than {meter.max_size} characters")
        text.append(part)
    return "".join(text)


class _MeteredCode(CodeGenerator):
    """jinja2's Python code for a template, with a call of the sandbox around everything that has a
    cost.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wrapped: dict[int, tuple[str, str]] = {}  # by id of the node: a method, its arguments

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        method, arguments = self._wrapped.pop(id(node), (_maker(node), ""))
        if method is None:
            return super().visit(node, *args, **kwargs)
        self.write(f"environment.{method}(")
        super().visit(node, *args, **kwargs)
        self.write(f"{arguments})")
        return None

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        steps = 1 + (_num_nodes(node.test) // NODES_PER_STEP if node.test else 0)
        self._wrapped[id(node.iter)] = "passes", f", {steps}"
        super().visit_For(node, frame)

    def blockvisit(self, statements: Iterable[nodes.Node], frame: Frame) -> None:
        listed = list(statements)
        steps = sum(map(_num_nodes, listed)) // NODES_PER_STEP
        if steps:
            self.writeline(f"environment.meter.step({steps})")
        super().blockvisit(listed, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        for part in (node.expr, *(operand.expr for operand in node.ops)):
            self._wrapped[id(part)] = "compared", ""
        super().visit_Compare(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        data = [child.data for child in node.nodes if isinstance(child, nodes.TemplateData)]
        if data:
            self.writeline(f"environment.wrote({sum(map(len, data))})")
        super().visit_Output(node, frame)


def _num_nodes(node: nodes.Node) -> int:
    """The size of a statement, without the statements inside it."""
    return 1 + sum(map(_num_nodes, node.iter_child_nodes(exclude=("body", "else_"))))


def _maker(node: nodes.Node) -> str | None:
    """The sandbox method that the value of an expression passes through."""
    if isinstance(node, nodes.Tuple):
        return "made" if node.ctx == "load" else None
    is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    return "made" if is_slice or isinstance(node, nodes.Concat | nodes.List | nodes.Dict) else None


class _GenerationTag(Extension):
    """{% generation %}, with which transformers marks the assistant's words; here its body is
    rendered as it is.
    """

    tags = {"generation"}  # noqa: RUF012  # as its base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_passed_on")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _passed_on(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """jinja2's namespace, without names that lead into Python, and never printed: it may contain
    itself.
    """

    def __init__(*args: Any, **attributes: object) -> None:
        self, *mappings = args
        attributes = dict(*mappings, **attributes)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        raise SecurityError("a namespace cannot be written")


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r} is no name for an attribute of a namespace")


class _Dict:
    """`dict` as templates may use it: to call, not to inspect."""

    def __call__(self, *args: Any, **kwargs: object) -> dict[object, object]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[object, object]:
        return dict.fromkeys(*args)


class _Formatter(SandboxedFormatter):
    """str.format within limits."""

    def __init__(self, sandbox: "_Sandbox") -> None:
        super().__init__(sandbox)
        self._meter = sandbox.meter
        self._len = 0

    def format_field(self, value: object, format_spec: str) -> str:
        self._meter.pay(value)
        digits = "".join(c if c.isdigit() else " " for c in format_spec).split()
        if any(len(number) > 7 for number in digits):
            raise TooMuch("a huge width of a formatted value")
        check_numbers(self._meter, *map(int, digits))
        text = str(super().format_field(value, format_spec))
        self._len += len(text)
        self._meter.fits(self._len)
        return text


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering: everything its template does is charged to one meter."""

    code_generator_class = _MeteredCode
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, meter: Meter) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            optimized=False,  # nothing is computed before it can be paid for
            finalize=self._finalize,
        )
        self.meter = meter
        self.passes, self.made, self.wrote = meter.passes, meter.made, meter.wrote
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
        )
        self.filters["tojson"] = self._tojson
        self.filters = {
            name: self._metered_filter(name, function)
            for name, function in self.filters.items()
            if name not in LEFT_OUT
        }
        self.tests = {
            name: function if name in CHEAP_TESTS else self._metered_test(function)
            for name, function in self.tests.items()
        }

    def compared(self, value: object) -> object:
        """One side of a comparison."""
        self.meter.pay(value)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; a key may be a tuple, which is hashed."""
        self.meter.pay(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and str.format_map, within limits."""
        if super().wrap_str_format(value) is None:
            return None
        if type(value.__self__) is not str:
            raise SecurityError("only a plain string has a format method")
        formatter, text, is_map = _Formatter(self), value.__self__, value.__name__ == "format_map"

        def bounded(*args: Any, **kwargs: Any) -> str:  # a template cannot look into a function
            if is_map:
                (kwargs,), args = args, ()
            return formatter.vformat(text, args, kwargs)

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left operator right, unless its result is large."""
        self.meter.pay(left, right)
        if operator == "*":
            check_product(self.meter, left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%":
            check_percent(self.meter, left, right)
        return self.meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a macro, a loop, a method or one of the functions that templates have."""
        meter = __self.meter
        meter.pay()
        meter.step(len(args) + len(kwargs))
        if isinstance(__obj, LoopContext) and args:
            args = (meter.passes(args[0]), *args[1:])
        elif not isinstance(__obj, Macro):
            named = {name: kwargs[name] for name in kwargs if name not in LOOP_VARIABLES}
            args = __self._checked(__obj, args, named)
        work = partial(super().call, __context, __obj, *args, **kwargs)
        return meter.made(meter.within(work))

    def _checked(
        self, function: Any, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, ...]:
        """The arguments of a call once it is known that it costs little."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        args = tuple(list(self.passes(arg)) if isinstance(arg, Iterator) else arg for arg in args)
        self.meter.pay(owner, *args, *named.values())
        check_numbers(self.meter, *args, *named.values())
        if isinstance(owner, str | bytes) and name in METHOD_CHECKS:
            METHOD_CHECKS[name](self.meter, owner, *args, **named)
        if isinstance(function, _Dict) or name == "fromkeys":
            check_keys(self.meter, *args)
        return args

    @pass_context
    def _finalize(self, context: Context, value: object) -> object:
        """A value on its way into the text."""
        self.meter.pay(value)
        self.wrote(self.meter.size(value))
        return value

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        check, num_passed = FILTER_CHECKS.get(name), _num_passed(function)

        def metered(*args: Any, **kwargs: Any) -> Any:
            passed, (value, *given) = args[:num_passed], args[num_passed:]
            if isinstance(value, Iterator) and name not in LAZY:
                value = list(self.passes(value))
            self.meter.pay(value, *given, *kwargs.values())
            check_numbers(self.meter, *given, *kwargs.values())
            if check is not None:
                check(self.meter, value, *given, **kwargs)
            return self.made(function(*passed, value, *given, **kwargs))

        return update_wrapper(metered, function)

    def _metered_test(self, function: Any) -> Callable[..., Any]:
        num_passed = _num_passed(function)

        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.pay(*args[num_passed:], *kwargs.values())
            return function(*args, **kwargs)

        return update_wrapper(metered, function)

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers' filter writes it, counted while it is written."""
        lens = [len(part) for part in (indent, *(separators or ())) if isinstance(part, str)]
        if max([*lens, indent if isinstance(indent, int) else 0]) > MAX_INDENT:
            raise TooMuch(f"JSON indented by more than {MAX_INDENT}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        text: list[str] = []
        total = 0
        for part in encoder.iterencode(value):
            total += len(part)
            self.meter.fits(total)
            text.append(part)
        return "".join(text)


def _num_passed(function: Callable[..., Any]) -> int:
    """1 where jinja2 passes its context, environment or settings before the value, else 0."""
    return int(hasattr(function, "jinja_pass_arg"))


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > MAX_TIME_FORMAT:
        raise TooMuch("a long format of the time")
    return datetime.now().strftime(format)
