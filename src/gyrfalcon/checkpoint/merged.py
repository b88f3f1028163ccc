"""A model's tensors with an adapter merged: W + scale · left · right in float32, by ranges, rounded once.

Where embedding and head are tied, a change of one leaves the other as it is, as peft computes: the model then
has a head of its own. Tensors that replace the weights below an adapter replace them in both.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gyrfalcon.checkpoint.adapter import Adapter, LowRank, refused
from gyrfalcon.checkpoint.manifest import dtype_name
from gyrfalcon.checkpoint.tensors import TensorLocation, TensorSource, listed, take
from gyrfalcon.console.format import counted
from gyrfalcon.errors import UsageError
from gyrfalcon.model.layout import Layout, TensorScheme

TILE_ELEMENTS = 1 << 22  # of a change in memory at a time

Shape = tuple[int, ...]


class MergedSource:
    """A source whose changed tensors are read with their changes; the others are read as they are."""

    def __init__(
        self,
        base: TensorSource,
        origins: Mapping[str, TensorLocation],
        low_rank: Mapping[str, LowRank],
        embedding: str,
        dtype: torch.dtype | None,
    ) -> None:
        """`origins`: of replaced tensors, and of a head that `base` has not. Changed tensors are rounded to
        `dtype`; without one to their own or the embedding's, whichever is wider.
        """
        self.changed = frozenset((*origins, *low_rank))
        self._base = base
        self._origins = origins
        self._low_rank = low_rank
        table = base.dtype(embedding)
        self._dtypes = {name: dtype or table for name in self.changed}
        for name in self.changed.intersection(base.names()):
            self._dtypes[name] = dtype or torch.promote_types(base.dtype(name), table)
        self._last: tuple[str, int, Tensor] | None = None

    def names(self) -> Collection[str]:
        return {*self._base.names(), *self._origins}

    def shape(self, name: str) -> Shape:
        origin = self._origin(name)
        return origin.source.shape(origin.name)

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name] if name in self._dtypes else self._base.dtype(name)

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        origin = self._origin(name)
        before = origin.source.read(origin.name, dim, ranges)
        if name not in self._dtypes:
            return before
        merged = torch.empty(before.shape, dtype=self._dtypes[name])
        if (change := self._low_rank.get(name)) is None:
            merged.copy_(before)
        else:
            self._add(name, change, before, dim, ranges, merged)
        if not merged.isfinite().all():
            kept = dtype_name(merged.dtype)
            wanted = f"values of {name} that {kept} can hold, with the adapter merged"
            raise UsageError(wanted, "infinity or NaN", "use `dtype=bf16` or fp32")
        return merged

    def _add(
        self,
        name: str,
        change: LowRank,
        before: Tensor,
        dim: int | None,
        ranges: Sequence[range],
        out: Tensor,
    ) -> None:
        """`before` and its change into `out`, rows by rows."""
        wide = torch.promote_types(before.dtype, torch.float32)
        start = 0
        for part in ranges if dim == 0 else (range(change.shape[0]),):
            for rows in self._rows(name, change, part):
                stop = start + len(rows)
                delta = take(rows, dim, ranges) if dim == 1 else rows
                out[start:stop] = before[start:stop].to(wide) + delta
                start = stop

    def _rows(self, name: str, change: LowRank, part: range) -> Iterator[Tensor]:
        """The rows of a change, from tiles that lie the same whoever reads: so do the roundings in them."""
        num_rows, num_columns = change.shape
        size = max(1, TILE_ELEMENTS // num_columns)
        for first in range(part.start - part.start % size, part.stop, size):
            if self._last is None or self._last[:2] != (name, first):
                tile = change.rows(range(first, min(first + size, num_rows)))
                self._last = name, first, tile
            yield self._last[2][max(part.start - first, 0) : part.stop - first]

    def _origin(self, name: str) -> TensorLocation:
        return self._origins.get(name) or TensorLocation(self._base, name)


def merged(
    base: TensorSource, adapter: Adapter, layout: Layout, dtype: torch.dtype | None
) -> MergedSource:
    """`base` with the adapter, for a model of that layout; CheckpointError where the adapter does not fit."""
    scheme = layout.scheme
    shapes = {spec.name: spec.shape for spec in layout.with_head(True).tensors}
    low_rank = _fitting(
        adapter,
        {_found(n, shapes, scheme): c for n, c in adapter.low_rank.items()},
        shapes,
        scheme,
    )
    own = {_found(name, shapes, scheme): stored for name, stored in adapter.own.items()}
    shared = {_found(name, shapes, scheme): stored for name, stored in adapter.shared.items()}
    _check(adapter, low_rank, {**shared, **own}, shapes, layout)
    below = {name: TensorLocation(adapter.source, stored) for name, stored in shared.items()}
    _settle_head(base, below, own.keys() | low_rank.keys(), layout)
    origins = below | {name: TensorLocation(adapter.source, stored) for name, stored in own.items()}
    return MergedSource(base, origins, low_rank, scheme.embedding, dtype)


def notes_on(adapter: Adapter) -> list[str]:
    """What to tell of an adapter that is merged."""
    config = adapter.config
    num_changed = len({*adapter.low_rank, *adapter.own, *adapter.shared})
    what = f"{counted(num_changed, 'tensor')}, rank {config.rank}, alpha {config.alpha:g}"
    base = f", trained on {config.base_model}" if config.base_model else ""
    notes = [f"the adapter {adapter.name} is merged ({what}{base})", *adapter.notes]
    nothing = not any(change.left.any() for change in adapter.low_rank.values())
    if nothing and not adapter.own and not adapter.shared:
        notes.append(f"the adapter {adapter.name} changes nothing: its matrices B are all zero")
    return notes


def _found(name: str, shapes: Mapping[str, Shape], scheme: TensorScheme) -> str:
    """The model's name for an adapter's; those of a model without its head lack the beginning."""
    longer = scheme.base + name
    return longer if name not in shapes and longer in shapes else name


def _fitting(
    adapter: Adapter,
    changes: Mapping[str, LowRank],
    shapes: Mapping[str, Shape],
    scheme: TensorScheme,
) -> dict[str, LowRank]:
    """The changes the way their matrices lie. Linear layers lie as B · A does, and peft drops
    fan_in_fan_out there; it holds only where the shapes fit no other way.
    """
    transposed = adapter.config.fan_in_fan_out and any(
        change.shape != shapes.get(name) == change.shape[::-1] for name, change in changes.items()
    )
    return {
        name: change.transposed() if transposed and name != scheme.embedding else change
        for name, change in changes.items()
    }


def _settle_head(
    base: TensorSource, below: dict[str, TensorLocation], changed: Collection[str], layout: Layout
) -> None:
    """Adds to `below` what embedding and head are under changes of their own: one and the same where they are
    tied. A head that `base` has not is one where it parts from the embedding.
    """
    embedding, head = tables = layout.scheme.embedding, layout.scheme.head
    given = [below[name] for name in tables if name in below]
    if layout.config.tied and len(given) == 1:
        below |= dict.fromkeys(tables, given[0])
    if head in base.names():
        return
    parts = below.get(head) != below.get(embedding) or any(name in changed for name in tables)
    if parts:
        below.setdefault(head, TensorLocation(base, embedding))
    else:
        below.pop(head, None)


def _check(
    adapter: Adapter,
    low_rank: Mapping[str, LowRank],
    replaced: Mapping[str, str],
    shapes: Mapping[str, Shape],
    layout: Layout,
) -> None:
    tables = layout.scheme.embedding, layout.scheme.head
    got = {name: change.shape for name, change in low_rank.items()} | {
        name: adapter.source.shape(stored) for name, stored in replaced.items()
    }
    unknown = sorted(name for name in got if name not in shapes)
    wrong = [
        f"{name} {list(shape)} for {list(shapes[name])}"
        + (_resized(shape, shapes[name]) if name in tables else "")
        for name, shape in got.items()
        if name in shapes and shape != shapes[name]
    ]
    saved = {name for name in shapes if adapter.config.saves(name.rpartition(".")[0])}
    missing = sorted(saved - replaced.keys())
    kinds = {"unknown": unknown, "wrong": wrong, "missing of modules_to_save": missing}
    problems = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if layout.config.tied and adapter.config.ties_weights and any(t in got for t in tables):
        problems.append("ensure_weight_tying for a tied embedding")
    if problems:
        raise refused(adapter, "; ".join(problems))


def _resized(shape: Shape, wanted: Shape) -> str:
    grown = shape[1:] == wanted[1:]
    return (
        " (another vocabulary: tokens were added to the model it was trained on)" if grown else ""
    )
