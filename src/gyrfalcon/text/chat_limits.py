"""Meter: the budget of a chat template. Templates come from strangers and run in this process, so
every operation pays for its operands and its result before the next one starts. Knows values, not
templates.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import TypeVar

T = TypeVar("T")

MAX_STEPS = 1_000_000  # a loop pass is one, an operation several
MAX_SIZE = 1_000_000  # characters and items of one value, beyond the messages
MAX_DEPTH = 64  # calls within calls, containers within containers
MAX_INT_BITS = 60  # below 2**61 - 1, the modulus of hashes: larger numbers share them
STEPS_PER_OPERATION = 4  # a filter, a call, an operator: each takes longer than a pass
SIZE_PER_STEP = 64  # characters or items of a large value that cost one step
STEPS_PER_MESSAGE_CHARACTER = 32  # so that a template may read long messages two thousand times
COMPARISONS_PER_STEP = 4096  # of two characters, where Python compares all pairs
WRITTEN_PER_SIZE = 16  # text may be captured by macros and set blocks and written again

# One value of a % format, with all that belongs to it: key, flags, width, precision, letter.
SPEC = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+)?)?[hlL]?.", re.DOTALL)
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS = (dict, list, tuple, set, frozenset, *VIEWS)


class TooMuch(Exception):
    """A chat template exceeds its budget."""


class Meter:
    """What one rendering has used: steps, characters written, and the sizes of its values. The size
    of a value is its number of characters and items when written out, however often parts of it are
    shared: what `str` or `==` would walk through.
    """

    def __init__(self, given_len: int) -> None:
        """`given_len`: the number of characters of the messages."""
        self.max_size = MAX_SIZE + given_len
        self._steps_left = MAX_STEPS + STEPS_PER_MESSAGE_CHARACTER * given_len
        self._written_left = WRITTEN_PER_SIZE * self.max_size
        self._depth = 0
        # By id, with the value itself so that its id stays its own. Templates change no container.
        self._known: dict[int, tuple[object, int, int]] = {}

    def step(self, count: int = 1) -> None:
        """Spends this many steps."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise TooMuch(f"more than {MAX_STEPS} loop passes and operations")

    def pay(self, *operands: object) -> None:
        """Spends the steps of an operation that may walk through all of its operands."""
        size = sum(map(self.size, operands))
        self.step(STEPS_PER_OPERATION + len(operands) + size // SIZE_PER_STEP)

    def made(self, value: T) -> T:
        """The result of an operation; an iterator is consumed, since reading it later has a cost."""
        if isinstance(value, Iterator):
            items = list(self.passes(value, STEPS_PER_OPERATION))
            self.made(items)
            return iter(items)  # type: ignore[return-value]  # an iterator for an iterator
        self.fits(self.size(value))
        self.pay(value)
        return value

    def fits(self, size: int) -> None:
        """Raises where a value of this size would be too large."""
        if size > self.max_size:
            raise TooMuch(f"a value of more than {self.max_size} characters and items")

    def wrote(self, count: int) -> None:
        """Counts characters written, into the prompt or a captured block."""
        self._written_left -= count
        if self._written_left < 0:
            most = WRITTEN_PER_SIZE * self.max_size
            raise TooMuch(f"a text of more than {most} characters, with all that was captured")

    def passes(self, items: Iterable[T], steps: int = 1) -> Iterator[T]:
        """The items of a loop; each spends this many steps."""
        for item in items:
            self.step(steps)
            yield item

    def within(self, function: Callable[[], T]) -> T:
        """A call that may nest others."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooMuch(f"calls more than {MAX_DEPTH} deep")
        try:
            return function()
        finally:
            self._depth -= 1

    def size(self, value: object) -> int:
        """The number of characters and items of a value."""
        return self._measure(value, 0)[0]

    def _measure(self, value: object, depth: int) -> tuple[int, int]:
        """The size of a value and how deep containers lie in it."""
        if isinstance(value, str | bytes | range):
            return 1 + len(value), 0
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise TooMuch(f"a number of more than {MAX_INT_BITS} bits")
            return 1 + value.bit_length() // 8, 0
        if not isinstance(value, CONTAINERS):
            return 1, 0
        assert isinstance(value, Collection)
        known = self._known.get(id(value))
        if known is None:
            # It is walked through, and kept for as long as the rendering lasts.
            self.step(STEPS_PER_OPERATION * (1 + len(value)))
            known = self._known[id(value)] = (value, *self._parts(value, depth + 1))
        return known[1:]

    def _parts(self, value: Iterable[object], depth: int) -> tuple[int, int]:
        if depth > MAX_DEPTH:
            raise TooMuch(f"lists more than {MAX_DEPTH} deep")
        keys_too = chain(value, value.values()) if isinstance(value, dict) else value
        size, deepest = 1, 0
        for item in keys_too:
            item_size, item_depth = self._measure(item, depth)
            size, deepest = size + item_size, max(deepest, item_depth)
            self.fits(size)
        if deepest >= MAX_DEPTH:
            raise TooMuch(f"lists more than {MAX_DEPTH} deep")
        return size, deepest + 1


def check_numbers(meter: Meter, *arguments: object) -> None:
    """Refuses widths, counts and the like that are larger than a value may be."""
    for argument in arguments:
        if isinstance(argument, int):
            meter.fits(abs(argument))


def check_product(meter: Meter, left: object, right: object) -> None:
    """Refuses a left * right that is large; two numbers are fine."""
    if isinstance(left, int) and isinstance(right, int):
        return
    if isinstance(left, int):
        meter.fits((meter.size(right) - 1) * left)
    elif isinstance(right, int):
        meter.fits((meter.size(left) - 1) * right)


def check_power(left: object, right: object) -> None:
    """Refuses a left ** right that is slow."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    if abs(left) > 1 and abs(right) > MAX_INT_BITS:
        raise TooMuch(f"a number of more than {MAX_INT_BITS} bits")


def check_percent(meter: Meter, text: object, arguments: object) -> None:
    """Refuses a text % arguments that may be large: every width has to be written in the text."""
    if not isinstance(text, str | bytes):
        return
    plain = text if isinstance(text, str) else text.decode("latin-1")
    if re.search(r"%\([^)]*\(", plain):
        raise TooMuch("parentheses within the name of a formatted value")
    specs = SPEC.findall(plain)
    widths = [number for spec in specs for number in spec if number]
    if "*" in widths or any(len(width) > 7 for width in widths):
        raise TooMuch("the width of a formatted value in its arguments, or a huge one")
    total = sum(map(int, widths)) + len(specs) * meter.size(arguments)
    meter.fits(len(plain) + total)


def check_replace(
    meter: Meter, text: object, old: object, new: object, count: object = None
) -> None:
    """Refuses a text.replace(old, new, count) that is large."""
    if not isinstance(text, bytes):
        text, old, new = str(text), str(old), str(new)
    if isinstance(text, bytes) and not (isinstance(old, bytes) and isinstance(new, bytes)):
        return  # the method itself refuses it
    places = text.count(old)  # type: ignore[arg-type]  # the three are of one kind
    if isinstance(count, int) and count >= 0:
        places = min(places, count)
    meter.fits(len(text) + places * max(0, len(new) - len(old)))  # type: ignore[arg-type]


def check_join(meter: Meter, items: object, separator: object = "") -> None:
    """Refuses a separator.join(items) that is large."""
    num_items = len(items) if isinstance(items, Collection) else 0
    meter.fits(meter.size(items) + num_items * meter.size(separator))


def check_indent(meter: Meter, text: object, width: object = 4, *_: object, **__: object) -> None:
    """Refuses an indented text that is large."""
    by = len(width) if isinstance(width, str) else width
    if isinstance(by, int):
        meter.fits(len(str(text)) + (len(str(text).splitlines()) + 1) * abs(by))


def check_tabs(meter: Meter, text: object, tabsize: object = 8) -> None:
    """Refuses a text.expandtabs(tabsize) that is large."""
    if isinstance(tabsize, int) and isinstance(text, str | bytes):
        tabs = text.count("\t") if isinstance(text, str) else text.count(b"\t")
        meter.fits(len(text) + tabs * abs(tabsize))


def check_translate(meter: Meter, text: object, table: object, *_: object) -> None:
    """Refuses a text.translate(table) that is large."""
    meter.fits(meter.size(text) * meter.size(table))


def check_pairs(meter: Meter, text: object, *others: object, **named: object) -> None:
    """Charges searches from the right, and stripping characters: both compare all pairs."""
    for other in (*others, *named.values()):
        meter.step(meter.size(text) * meter.size(other) // COMPARISONS_PER_STEP)


def check_keys(meter: Meter, keys: object = (), *_: object, **__: object) -> None:
    """Charges keys that are tuples: they can be made to share a hash and are compared pair by pair."""
    if isinstance(keys, CONTAINERS):
        assert isinstance(keys, Collection)
        num_tuples = sum(isinstance(key, tuple) for key in keys)
        meter.step(num_tuples * num_tuples // SIZE_PER_STEP)


def check_encoding(
    _: Meter, text: object, encoding: object = "utf-8", errors: object = "strict"
) -> None:
    """Refuses other encodings: some take quadratic time, and no prompt needs one."""
    if encoding not in ("utf-8", "utf8", "ascii"):
        raise TooMuch("an encoding other than UTF-8")


def check_markup(_: Meter, *operands: object) -> None:
    """Refuses methods for HTML: they take quadratic time, and no prompt needs them."""
    raise TooMuch("a method for HTML")


def check_round(_: Meter, value: object, precision: object = 0, method: object = "") -> None:
    """Refuses a 10 ** precision that is slow."""
    check_power(10, precision)


def check_sum(_: Meter, items: object, attribute: object = None, start: object = 0) -> None:
    """Refuses sums of anything but numbers: lists are copied again for each item."""
    if not isinstance(start, int | float):
        raise TooMuch("a sum of what are not numbers")


Check = Callable[..., None]  # (meter, *operands): raises where the result would be too large

FILTER_CHECKS: dict[str, Check] = {
    "format": lambda meter, text, *args, **names: check_percent(meter, text, [args, names]),
    "replace": check_replace,
    "join": lambda meter, items, d="", attribute=None: check_join(meter, items, d),
    "indent": check_indent,
    "trim": check_pairs,
    "unique": check_keys,
    "round": check_round,
    "sum": check_sum,
}
METHOD_CHECKS: dict[str, Check] = {
    "replace": check_replace,
    "join": lambda meter, separator, items: check_join(meter, items, separator),
    "expandtabs": check_tabs,
    "translate": check_translate,
    "encode": check_encoding,
    "decode": check_encoding,
    **dict.fromkeys(("strip", "lstrip", "rstrip"), check_pairs),
    **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), check_pairs),
    **dict.fromkeys(("striptags", "unescape"), check_markup),
}
