"""The findings of gpu-gate as a short table."""

from collections.abc import Iterator, Mapping
from typing import Any


def table(document: Mapping[str, Any]) -> str:
    """What a reader wants to see first."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    versions = f"torch {document['torch']}, triton {document['triton']}"
    yield f"{document['device']}, {versions}, {document['commit']}"
    for name in ("kernels", "laws", "layers", "nestling", "full_sweep"):
        if (found := document.get(name)) is not None:
            yield f"{name:<10} {_verdict(found)}"
    for name, found in document.items():
        if name.startswith("walk "):
            yield f"{name:<10} {_verdict(found)}"
    if "steps" in document.get("counts", {}):
        yield from _count_lines(document["counts"])
    limits = document.get("limits", {})
    if "bandwidth_bytes_per_second" in limits:
        bandwidth = limits["bandwidth_bytes_per_second"] / 1e12
        yield f"limits     {bandwidth:.3f} TB/s, {limits['matrix_flops_per_second'] / 1e12:.3f} TFLOP/s"
    for name, found in document.items():
        if name.startswith("speed "):
            yield from model_lines(name.removeprefix("speed "), found)
    yield from _peer_lines(document.get("peers", {}))
    if (found := document.get("gemlite")) is not None:
        yield from _gemlite_lines(found)


def _verdict(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f"skipped: {found['skipped']}"
    word = "holds" if found.get("passed") else "FAILS"
    return " ".join([word, str(found.get("error") or found.get("summary") or "")]).strip()


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


def model_lines(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    if "skipped" in found or "error" in found:
        yield f"{name:<10} {_verdict(found)}"
        return
    for row in found["decode"]:
        yield (
            f"{name:<10} decode  batch {row['batch']:>3} context {row['context']:>4}"
            f"{row['ms_per_token']:>10.3f} ms{row['tokens_per_second']:>10.1f} tokens/s"
            f"{row['percent_of_bandwidth']:>7.1f} % of bandwidth"
        )
    for row in found["prefill"]:
        yield (
            f"{name:<10} prefill {row['tokens']:>4} tokens{row['first_token_ms']:>20.3f} ms"
            f"{row['percent_of_peak']:>26.1f} % of peak"
        )
    shares, sweep = found["shares"], found["guide_sweep_computed"]
    yield (
        f"{name:<10} a token's products {shares['products_ms']:.3f} ms, attention "
        f"{shares['attention_ms']:.3f} ms, outside both {shares['outside_percent']:.1f} %; "
        f"through the engine {found['engine']['ms_per_token']:.3f} ms"
    )
    yield (
        f"{name:<10} the guide's mean, computed: first token {sweep['first_token_ms']:.2f} ms, "
        f"{sweep['time_per_token_ms']:.3f} ms/token, {sweep['tokens_per_second']:.1f} tokens/s"
    )


def _peer_lines(peers: Mapping[str, Any]) -> Iterator[str]:
    """Of those that torch brings."""
    if "skipped" in peers:
        yield f"peers      {_verdict(peers)}"
        return
    for name, found in peers.items():
        if name == "seconds":
            continue
        if "error" in found:
            yield f"{name:<10} by torch: {found['error']}"
        for row in found.get("rows", []):
            yield (
                f"{name:<10} a block's products, batch {row['tokens']:>3}: "
                f"ours {row['ours_ms']:.3f} ms, by torch {row['theirs_ms']:.3f} ms"
            )
        if "layers" in found:
            yield (
                f"{name:<10} {found['layers']} layers, context {found['context']}: "
                f"ours {found['ours_ms']:.3f} ms, torch.compile {found['theirs_ms']:.3f} ms"
            )


def _gemlite_lines(found: Mapping[str, Any]) -> Iterator[str]:
    if "version" not in found:
        yield f"gemlite: {found.get('skipped') or found['error']}"
        return
    version = found["version"]
    for name, measured in found.items():
        if name in ("version", "seconds"):
            continue
        if "error" in measured:
            yield f"{name:<10} gemlite {version}: {measured['error']}"
            continue
        for row in measured["rows"]:
            yield (
                f"{name:<10} a block's products, batch {row['tokens']:>3}: "
                f"ours {row['ours_ms']:.3f} ms, gemlite {version} {row['gemlite_ms']:.3f} ms"
            )
