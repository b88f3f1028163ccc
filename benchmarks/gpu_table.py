"""The findings of gpu-gate as a short table."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_sweep import LENGTHS, computed_sweep

Rows = Mapping[str, Mapping[str, Any]]
TOLD_ROW_BY_ROW = ("counts", "limits", "peers", "gemlite", "tuner")  # but for their errors


def table(document: Mapping[str, Any]) -> str:
    """What a reader wants to see first."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    versions = f"torch {document['torch']}, triton {document['triton']}"
    yield f"{document['device']}, {versions}, {document['commit']}"
    rows = document["rows"]
    for step, found in rows.items():
        by_row = step in TOLD_ROW_BY_ROW or step.startswith("speed ")
        if not by_row or any(row.get("passed") is False for row in found.values()):
            yield f"{step:<10} {verdict(found)}"
    counts = rows.get("counts", {}).get("all", {})
    if "steps" in counts:
        yield from _count_lines(counts)
    limits = rows.get("limits", {}).get("card", {})
    if "skipped" in limits:
        yield f"limits     {verdict(rows['limits'])}"
    if "bandwidth_bytes_per_second" in limits:
        bandwidth = limits["bandwidth_bytes_per_second"] / 1e12
        yield f"limits     {bandwidth:.3f} TB/s, {limits['matrix_flops_per_second'] / 1e12:.3f} TFLOP/s"
    for step, found in rows.items():
        if step == "speed shard":
            yield from _shard_lines(found, limits)
        elif step.startswith("speed "):
            yield from speed_lines(step.removeprefix("speed "), found, limits)
    yield from _peer_lines(rows.get("peers", {}))
    yield from _gemlite_lines(rows.get("gemlite", {}))
    yield from _tuner_lines(rows.get("tuner", {}))


def verdict(rows: Rows) -> str:
    """Of a step: whether all its rows hold, and what those say that do not."""
    failed = {name: row for name, row in rows.items() if row.get("passed") is False}
    skipped = {str(row["skipped"]) for row in rows.values() if "skipped" in row}
    if failed:
        said = "; ".join(f"{name}: {_why(row)}" for name, row in failed.items())
        return f"FAILS {len(failed)} of {len(rows)}: {said}"
    if skipped and all("skipped" in row for row in rows.values()):
        return f"skipped: {'; '.join(sorted(skipped))}"
    summaries = [str(row["summary"]) for row in rows.values() if row.get("summary")]
    return " ".join([f"holds {len(rows)} of {len(rows)}", *summaries])


def _why(row: Mapping[str, Any]) -> str:
    """An error, or the names of what does not hold."""
    if "error" in row or "summary" in row:
        return str(row.get("error") or row["summary"])
    return ", ".join(
        name
        for name, one in row.items()
        if name != "passed"
        and (one is False or (isinstance(one, dict) and one.get("held") is False))
    ) or str({name: one for name, one in row.items() if name not in ("passed", "seconds")})


def _count_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Of the card's plan, counted without one."""
    each = ", ".join(f"{name} {number}" for name, number in sorted(found["by_name"].items()))
    yield f"counts     a card would compile {found['kernels']} kernels for its models: {each}"
    for row in found["steps"]:
        word = "batch" if "batch" in row else "prompt"
        yield (
            f"{row['shape']} {row['precision']:<6} {word:<6}{row[word]:>5}: {row['triton']:>4} launches"
            f" of Triton's kernels, {row['torch']:>4} of torch's"
        )


def speed_lines(name: str, rows: Rows, limits: Mapping[str, Any]) -> Iterator[str]:
    """Of one shape and precision; times without the limits are told alone."""
    for why in dict.fromkeys(row["skipped"] for row in rows.values() if "skipped" in row):
        yield f"{name:<10} skipped: {why}"
    found = {row: one for row, one in rows.items() if not {"skipped", "error"} & set(one)}
    decoded = {row["batch"]: row["contexts"] for row in found.values() if "contexts" in row}
    for batch, contexts in decoded.items():
        for row in contexts:
            yield (
                f"{name:<10} decode  batch {batch:>3} context {row['context']:>4}"
                f"{row['ms_per_token']:>10.3f} ms{row['tokens_per_second']:>10.1f} tokens/s"
                f"{_percent_of_bandwidth(row, limits)}"
            )
    firsts = {row["tokens"]: row for row in found.values() if "first_token_ms" in row}
    for tokens, row in firsts.items():
        percent = _percent(
            row["flops"], row["first_token_ms"], limits.get("matrix_flops_per_second")
        )
        yield (
            f"{name:<10} prefill {tokens:>4} tokens{row['first_token_ms']:>20.3f} ms"
            f"{percent:>26.1f} % of peak"
        )
    if "shares" in found:
        yield _shares_line(name, found["shares"])
    if "engine" in found:
        yield f"{name:<10} through the engine {found['engine']['ms_per_token']:.3f} ms a token"
    if 1 in decoded and set(LENGTHS) <= set(firsts):
        yield _sweep_line(name, decoded[1], firsts)


def _left_out(row: Mapping[str, Any]) -> str:
    """Why a row has no figures; nothing where it has."""
    return str(row.get("skipped") or row.get("error") or "")


def _percent(work: float, ms: float, limit: float | None) -> float:
    """Of what a device does in a second; not a number without its limit."""
    return 100 * work / limit / (ms / 1000) if limit else float("nan")


def _percent_of_bandwidth(row: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    limit = limits.get("bandwidth_bytes_per_second")
    return f"{_percent(row['bytes'], row['ms_per_token'], limit):>7.1f} % of bandwidth"


def _shares_line(name: str, shares: Mapping[str, Any]) -> str:
    return (
        f"{name:<10} a token's products {shares['products_ms']:.3f} ms, attention "
        f"{shares['attention_ms']:.3f} ms, outside both {shares['outside_percent']:.1f} %"
    )


def _sweep_line(name: str, steps: Any, firsts: Mapping[int, Mapping[str, Any]]) -> str:
    first_ms = {tokens: row["first_token_ms"] for tokens, row in firsts.items()}
    sweep = computed_sweep(steps, first_ms, LENGTHS)
    return (
        f"{name:<10} the guide's mean, computed: first token {sweep['first_token_ms']:.2f} ms, "
        f"{sweep['time_per_token_ms']:.3f} ms/token, {sweep['tokens_per_second']:.1f} tokens/s"
    )


def _shard_lines(rows: Rows, limits: Mapping[str, Any]) -> Iterator[str]:
    for name, row in rows.items():
        said = _left_out(row) or (
            f"{row['ms_per_token']:.3f} ms a token at context {row['context']}"
            f"{_percent_of_bandwidth(row, limits)}"
        )
        yield f"{name:<10} one of four ranks: {said}"


def _peer_lines(rows: Rows) -> Iterator[str]:
    """Of those that torch brings."""
    if rows and all("skipped" in row for row in rows.values()):
        yield f"peers      {verdict(rows)}"
        return
    for name, found in rows.items():
        if left_out := _left_out(found):
            yield f"{name:<10} by torch: {left_out}"
        for row in found.get("rows", []):
            yield (
                f"{name:<10} a block's products, batch {row['tokens']:>3}: "
                f"ours {row['ours_ms']:.3f} ms, by torch {row['theirs_ms']:.3f} ms"
            )
        if "layers" in found:
            yield (
                f"{name:<10} {found['layers']} layers, context {found['context']}: "
                f"ours {found['ours_ms']:.3f} ms, {found['peer']} {found['theirs_ms']:.3f} ms"
            )


def _gemlite_lines(rows: Rows) -> Iterator[str]:
    if rows and all("skipped" in row for row in rows.values()):
        yield f"gemlite    {verdict(rows)}"
        return
    for name, found in rows.items():
        if left_out := _left_out(found):
            yield f"{name:<10} gemlite: {left_out}"
        for row in found.get("rows", []):
            yield (
                f"{name:<10} a block's products, batch {row['tokens']:>3}: "
                f"ours {row['ours_ms']:.3f} ms, gemlite {found['version']} {row['gemlite_ms']:.3f} ms"
            )


def _tuner_lines(rows: Rows) -> Iterator[str]:
    if rows and all("skipped" in row for row in rows.values()):
        yield f"tuner      {verdict(rows)}"
        return
    for name, row in rows.items():
        if left_out := _left_out(row):
            yield f"{name:<10} tuner: {left_out}"
        else:
            yield (
                f"{name:<10} with {len(row['tiles'])} of its tiles tuned {row['after_ms']:.3f} ms a "
                f"token, {row['before_ms']:.3f} without"
            )
