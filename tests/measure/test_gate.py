"""The logits gate: every figure equals its definition, and what one flattened cosine would hide
turns it red."""

import math

import pytest
import torch
from torch import Tensor

from gyrfalcon.measure.precision.gate import LIMITS, SENSE, Figure, compare, figures, joined

POSITIONS, VOCAB = 100, 300


def logits(seed: int = 0, positions: int = POSITIONS) -> Tensor:
    return 3 * torch.randn(positions, VOCAB, generator=torch.Generator().manual_seed(seed))


def noisy(reference: Tensor, relative_l2: float) -> Tensor:
    """The reference with noise of just this size on each position."""
    noise = logits(seed=1, positions=len(reference))
    return reference + noise / noise.norm(dim=1, keepdim=True) * relative_l2 * reference.norm(
        dim=1, keepdim=True
    )


def by_name(ours: Tensor, reference: Tensor, precision: str = "bf16") -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(compare(ours, reference), precision)}


def failed(ours: Tensor, reference: Tensor, precision: str = "bf16") -> list[str]:
    return [
        figure.name for figure in figures(compare(ours, reference), precision) if not figure.held
    ]


@pytest.mark.parametrize("precision", LIMITS)
def test_equal_logits_hold_at_every_precision(precision: str) -> None:
    assert failed(logits(), logits(), precision) == []


def test_every_figure_equals_its_definition() -> None:
    reference, ours = logits(), noisy(logits(), 0.2)
    got = {name: figure.value for name, figure in by_name(ours, reference).items()}
    a, b = ours.double(), reference.double()
    centred = [
        float(torch.dot(x - x.mean(), y - y.mean()) / (x - x.mean()).norm() / (y - y.mean()).norm())
        for x, y in zip(a, b, strict=True)
    ]
    relative = [float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True)]
    kl = torch.nn.functional.kl_div(
        a.log_softmax(1), b.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    best = b.sort(dim=1, descending=True)
    clear = best.values[:, 0] - best.values[:, 1] >= 0.1
    assert 0 < clear.sum() < POSITIONS
    tops = a.argmax(1)
    agree = (tops == best.indices[:, 0])[clear].double().mean()
    among = (tops[:, None] == best.indices[:, :5]).any(1)[~clear].double().mean()
    assert got == pytest.approx(
        {
            "cosine": float(torch.dot(a.flatten(), b.flatten()) / a.norm() / b.norm()),
            "centred_cosine_p5": float(torch.tensor(centred).double().quantile(0.05)),
            "relative_l2_p95": float(torch.tensor(relative).double().quantile(0.95)),
            "kl_mean": float(kl.mean()),
            "kl_p99": float(kl.quantile(0.99)),
            "top1_agreement": float(agree),
            "top1_in_top5": float(among),
            "non_finite": 0.0,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(
    ("precision", "holds", "breaks"),
    [
        ("fp32", 0.9e-4, 1.1e-4),
        ("bf16", 0.01, 0.06),
        ("fp16", 0.01, 0.06),
        ("int8", 0.02, 0.06),
        ("fp8", 0.11, 0.13),
        ("int4", 0.3, 0.36),
        ("int4-32", 0.3, 0.36),
        ("int4-128", 0.3, 0.36),
    ],
)
def test_each_precision_has_its_own_limit(precision: str, holds: float, breaks: float) -> None:
    assert failed(noisy(logits(), holds), logits(), precision) == []
    assert "relative_l2_p95" in failed(noisy(logits(), breaks), logits(), precision)


def test_a_tenth_of_broken_positions_is_seen_where_the_flattened_cosine_holds() -> None:
    reference = logits()
    reference[::10] /= 50  # small logits weigh nothing in the flattened cosine
    ours = reference.clone()
    ours[::10] = logits(seed=2)[::10] / 50
    assert by_name(ours, reference)["cosine"].held
    assert {"centred_cosine_p5", "relative_l2_p95"} <= set(failed(ours, reference))


def test_an_offset_that_all_logits_share_does_not_hide_what_lies_above_it() -> None:
    reference, ours = logits() + 300, logits(seed=2) + 300
    figure = by_name(ours, reference)
    assert figure["cosine"].held
    assert figure["relative_l2_p95"].held
    assert not figure["centred_cosine_p5"].held


def test_probabilities_that_move_are_seen_where_the_angles_hold() -> None:
    reference = logits()
    figure = by_name(reference * 1.045, reference)
    assert figure["centred_cosine_p5"].held
    assert figure["relative_l2_p95"].held
    assert not figure["kl_mean"].held


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["ours", "reference"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_single_logit_that_is_no_number_fails(value: float, side: str, precision: str) -> None:
    pair = {"ours": logits(), "reference": logits()}
    pair[side][7, 11] = value
    assert "non_finite" in failed(pair["ours"], pair["reference"], precision)
    shown = [figure.value for figure in by_name(pair["ours"], pair["reference"]).values()]
    assert all(number is None or math.isfinite(number) for number in shown)


def rows_with_margin(margin: float) -> Tensor:
    """Logits 0 for all but the first two tokens, which are `margin` apart."""
    rows = torch.zeros(40, VOCAB)
    rows[:, 0], rows[:, 1] = 5.0, 5.0 - margin
    rows[:, 2:6] = 4.0
    return rows


def test_another_favourite_counts_only_where_the_reference_has_a_clear_one() -> None:
    ours = rows_with_margin(0.0)
    ours[:, 1] += 0.05
    clear, unclear = by_name(ours, rows_with_margin(0.11)), by_name(ours, rows_with_margin(0.09))
    assert (clear["top1_agreement"].value, clear["top1_agreement"].held) == (0.0, False)
    assert (clear["top1_in_top5"].value, clear["top1_in_top5"].held) == (None, True)
    assert (unclear["top1_agreement"].value, unclear["top1_agreement"].held) == (None, True)
    assert (unclear["top1_in_top5"].value, unclear["top1_in_top5"].held) == (1.0, True)


def test_a_favourite_outside_of_the_five_counts_where_none_is_clear() -> None:
    ours = rows_with_margin(0.0)
    ours[:10, 9] = 6.0  # 30 of 40 remain: under the 0.8 that is asked
    figure = by_name(ours, rows_with_margin(0.05))["top1_in_top5"]
    assert (figure.value, figure.held) == (0.75, False)


@pytest.mark.parametrize(("factor", "held"), [(1.15, True), (1.25, False)])
def test_half_precision_may_err_little_more_than_transformers(factor: float, held: bool) -> None:
    reference = logits()
    transformers = compare(noisy(reference, 0.01), reference)
    ours = compare(noisy(reference, 0.01 * factor), reference)
    rows = {figure.name: figure for figure in figures(ours, "bf16", transformers)}
    figure = rows["relative_l2_to_transformers"]
    assert figure.value == pytest.approx(factor, rel=1e-3)
    assert figure.held is held
    assert rows["relative_l2_p95"].held


def test_comparing_in_parts_equals_comparing_at_once() -> None:
    reference, ours = logits(), noisy(logits(), 0.01)
    parts = [
        compare(a, b)
        for a, b in zip(ours.split([1, 66, 33]), reference.split([1, 66, 33]), strict=True)
    ]
    whole, put_together = (
        figures(one, "bf16") for one in (compare(ours, reference), joined(parts))
    )
    for one, other in zip(whole, put_together, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)


@pytest.mark.parametrize("precision", LIMITS)
def test_a_figure_exactly_at_its_limit_holds_unless_it_has_to_be_above(precision: str) -> None:
    for name, limit in {**LIMITS[precision], "non_finite": 0.0}.items():
        at_limit = Figure.of(name, limit, SENSE[name], limit)
        beyond = math.nextafter(limit, math.inf if SENSE[name] == "<=" else -math.inf)
        assert at_limit.held is (name != "cosine"), name
        assert not Figure.of(name, beyond, SENSE[name], limit).held, name


def test_a_figure_that_is_not_finite_never_holds() -> None:
    for value in (math.nan, math.inf, -math.inf):
        for sense in (">", ">=", "<="):
            assert not Figure.of("kl_mean", value, sense, 0.5).held


@pytest.mark.parametrize(("margin", "counts"), [(0.1, True), (0.09, False)])
def test_a_favourite_is_clear_from_the_margin_itself_on(margin: float, counts: bool) -> None:
    reference = torch.zeros(1, VOCAB)
    reference[0, 7] = margin
    assert compare(reference, reference).clear.tolist() == [counts]


def test_the_limits_are_those_that_the_project_stands_for() -> None:
    half = {
        "cosine": 0.999,  # the guide's
        "centred_cosine_p5": 0.99,
        "relative_l2_p95": 0.05,
        "relative_l2_to_transformers": 1.2,
        "kl_mean": 0.001,
        "top1_agreement": 0.9,
        "top1_in_top5": 0.8,
    }
    int4 = {"cosine": 0.95, "relative_l2_p95": 0.35}
    assert {
        "fp32": {**half, "relative_l2_p95": 0.0001},
        "bf16": half,
        "fp16": half,
        "int8": {"cosine": 0.999, "relative_l2_p95": 0.05, "kl_mean": 0.005},
        "fp8": {"cosine": 0.99, "relative_l2_p95": 0.12},
        "int4": int4,
        "int4-32": int4,
        "int4-128": int4,
    } == LIMITS


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("cosine", 0.99987654, "0.999877"),
        ("kl_mean", 0.000123456, "0.000123"),
        ("non_finite", 3.0, "3"),
        ("top1_agreement", None, "-"),
        ("kl_mean", math.nan, "-"),
    ],
)
def test_a_figure_is_shown_as_precisely_as_it_is_judged(
    name: str, value: float | None, shown: str
) -> None:
    assert Figure.of(name, value, SENSE[name], None).shown == shown


@pytest.mark.parametrize(("rank", "counts"), [(5, True), (6, False)])
def test_the_fifth_favourite_of_the_reference_is_among_its_five(rank: int, counts: bool) -> None:
    reference = torch.arange(VOCAB, 0, -1.0)[None] / 100  # no clear favourite
    ours = reference.clone()
    ours[0, rank - 1] = 10.0
    assert compare(ours, reference).in_top5.tolist() == [counts]


def test_logits_that_are_all_zero_hold_nothing() -> None:
    zero = torch.zeros(2, VOCAB)
    assert "cosine" in failed(zero, zero)
