"""Reads the rows of a speed result. Checks every value, and that derived values follow from the
others: a row that was edited is not a measurement.
"""

from collections.abc import Iterator
from math import isclose
from statistics import median

from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.speed.cases import OOM, Case, Figures, Row

DO = "name another file, or measure again"
ROUNDED = 1e-6  # relative: figures are stored as they were computed
MEASURED = "measured"


def read_row(raw: Fields, repeats: int, has_limits: bool) -> Row:
    """The row that Row.to_json() wrote; ConfigError or UsageError for anything else.

    repeats: how often each case was timed. has_limits: whether the sweep measured limits.
    """
    case = Case(*(raw.positive(name) for name in ("batch", "input_len", "output_len")))
    if case.output_len < 2:  # a time per token takes two
        raise UsageError(f"output_len of 2 or more in {raw.where}", str(case.output_len), DO)
    longest = raw.positive("max_seq_len")
    if raw.one_of((MEASURED, OOM), "status") == OOM:
        return Row(case, longest, None, raw.need(str, "reason"))
    figures = _figures(raw, has_limits)
    for name, each, number in (
        ("inter_token_ms", figures.inter_token_ms, case.output_len - 1),
        ("response_ms_of_each", figures.response_ms_of_each, repeats),
        ("first_token_ms_of_each", figures.first_token_ms_of_each, repeats),
    ):
        if len(each or ()) != number:
            raise UsageError(f"{number} numbers in {name} of {raw.where}", str(len(each or ())), DO)
        if any(ms < 0 for ms in each or ()):
            raise UsageError(f"no number below 0 in {name} of {raw.where}", "some", DO)
    for name, stated, follows in _derived(case, figures):
        if not isclose(stated, follows, rel_tol=ROUNDED):
            wanted = f"{name} {follows:g}, as the other figures say, in {raw.where}"
            raise UsageError(wanted, f"{stated:g}", DO)
    return Row(case, longest, figures)


def _figures(raw: Fields, has_limits: bool) -> Figures:
    p50, p90, p99 = (_at_least_zero(raw, f"inter_token_p{n}_ms") for n in (50, 90, 99))
    if not p50 <= p90 <= p99:
        wanted = f"p50, p90 and p99 in rising order in {raw.where}"
        raise UsageError(wanted, f"{p50:g}, {p90:g}, {p99:g}", DO)
    return Figures(
        response_ms=above_zero(raw, "response_ms"),
        first_token_ms=above_zero(raw, "first_token_ms"),
        time_per_token_ms=above_zero(raw, "time_per_token_ms"),
        tokens_per_second=above_zero(raw, "tokens_per_second"),
        tokens_per_second_of_batch=above_zero(raw, "tokens_per_second_of_batch"),
        tokens_per_second_per_device=above_zero(raw, "tokens_per_second_per_device"),
        inter_token_p50_ms=p50,
        inter_token_p90_ms=p90,
        inter_token_p99_ms=p99,
        peak_memory_bytes=[each.count("bytes") for each in _memory(raw)],
        decode_percent_of_limit=_percent(raw, "decode", has_limits),
        prefill_percent_of_limit=_percent(raw, "prefill", has_limits),
        response_ms_of_each=raw.list_of(float, "response_ms_of_each"),
        first_token_ms_of_each=raw.list_of(float, "first_token_ms_of_each"),
        inter_token_ms=raw.list_of(float, "inter_token_ms"),
    )


def _derived(case: Case, found: Figures) -> Iterator[tuple[str, float, float]]:
    """Derived figures: name, stated value, computed value."""
    yield "tokens_per_second", found.tokens_per_second, 1000 / found.time_per_token_ms
    yield (
        "tokens_per_second_of_batch",
        found.tokens_per_second_of_batch,
        case.batch * found.tokens_per_second,
    )
    for name, stated, each in (
        ("response_ms", found.response_ms, found.response_ms_of_each),
        ("first_token_ms", found.first_token_ms, found.first_token_ms_of_each),
    ):
        yield name, stated, median(each) if each else 0.0
    formula = (found.response_ms - found.first_token_ms) / (case.output_len - 1)
    stated = found.time_per_token_ms  # the shortest gap where that is longer than the formula's
    is_gap = formula < stated <= found.inter_token_p50_ms
    yield "time_per_token_ms", stated, stated if is_gap else formula


def _memory(raw: Fields) -> Iterator[Fields]:
    for value in raw.list_of(int, "peak_memory_bytes"):
        yield Fields({"bytes": value}, f"peak_memory_bytes of {raw.where}")


def above_zero(raw: Fields, name: str) -> float:
    """A required number above zero."""
    value = raw.need(float, name)
    if value <= 0:
        raise UsageError(f"{name} above 0 in {raw.where}", f"{value:g}", DO)
    return value


def _percent(raw: Fields, phase: str, has_limits: bool) -> float | None:
    """Percent of the limit: required where the sweep measured limits, refused elsewhere."""
    name = f"{phase}_percent_of_limit"
    if has_limits:
        return above_zero(raw, name)
    if raw.raw.get(name) is not None:
        raise UsageError(f"limits that {name} in {raw.where} is of", "none", DO)
    return None


def _at_least_zero(raw: Fields, name: str) -> float:
    value = raw.need(float, name)
    if value < 0:
        raise UsageError(f"{name} of 0 or more in {raw.where}", f"{value:g}", DO)
    return value
