"""Decoding on an accelerator as captured graphs: a step is launched as one piece, not kernel by kernel.

A graph's shapes are fixed, so there is one for each of a few batch sizes; a batch is padded to the
next of them with sequences that attend to nothing and are cached nowhere, or where no sequence is.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.console.progress import bar
from gyrfalcon.device.protocol import CannotCapture, Device, Replay
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.builder import Model
from gyrfalcon.parallel.heartbeat import Heartbeat

log = logging.getLogger(__name__)

WARM = (1, 2, 4, 8, 16)  # sizes that are captured before the first request
RUN = 2  # numbers of 8 bytes: kernels are compiled for runs that begin at multiples of 16
COLUMNS = ("token_ids", "positions", "rope_lengths", "slots", "contexts")  # one of each a sequence


class Graphs:
    """Runs a model on an accelerator: decoding steps as graphs, all others kernel by kernel."""

    def __init__(
        self,
        model: Model,
        max_len: int,
        device: Device,
        capturable: bool = True,
        heartbeat: Heartbeat | None = None,
        smallest: Callable[[int], int] = int,
    ) -> None:
        """`smallest` of the ranks' numbers: all of them replay a graph, or none does."""
        self.model = model
        self.largest = device.graph_sizes[-1] if capturable else 0
        self.max_len = max_len
        self.device = device
        self._graphs: dict[int, _Graph] = {}
        self._heartbeat = heartbeat or Heartbeat()
        self._smallest = smallest

    def __call__(self, batch: Batch, pool: KVPool) -> Tensor:
        """As the model: this rank's logits float32 [rows, own tokens]."""
        num_sequences = len(batch.query_lens)
        decoding = set(batch.query_lens) == {1} and len(batch.rows) == num_sequences
        graph = self._graph_for(num_sequences, pool) if decoding else None
        if graph is not None:
            return graph.run(batch)
        logits = self.model(batch.on(self.device.torch_device), pool)
        self._heartbeat.exempt = False  # its kernels are compiled
        return logits

    def warm(self, pool: KVPool, most_sequences: int, shown: bool) -> None:
        """Captures the graphs of a few sequences, as many as may run, which compiles their kernels: no
        request waits for that. All ranks do it together.
        """
        sizes = self.device.graph_sizes
        largest = _size_for(min(most_sequences, WARM[-1], sizes[-1]), sizes)
        wanted = [size for size in sizes if size in WARM and size <= largest]
        if not self.largest or self.device.emulated:  # whose times nobody is told
            return
        with bar(len(wanted), "graphs", "warming up", shown=shown) as progress:
            for size in wanted:
                self._graph_for(size, pool)
                progress.update()

    def drop(self) -> None:
        """Forgets all graphs, with the collectives that they hold."""
        self._graphs.clear()

    def _graph_for(self, num_sequences: int, pool: KVPool) -> "_Graph | None":
        """The graph for this many sequences, captured when it is first wanted; None where there is none."""
        if num_sequences > self.largest:
            return None
        size = _size_for(num_sequences, self.device.graph_sizes)
        if size not in self._graphs and not self._capture(size, pool):
            self.largest = max((one for one in self._graphs if one < size), default=0)
            return self._graph_for(num_sequences, pool)
        return self._graphs[size]

    def _capture(self, size: int, pool: KVPool) -> bool:
        """Whether all ranks have captured the graph of a size."""
        heart, graph = self._heartbeat, None
        doing, exempt = heart.doing, heart.exempt
        heart.doing, heart.exempt = "capturing a graph", True
        try:
            graph = _Graph.of(self.model, pool, size, self.max_len, self.device)
        except CannotCapture as error:
            log.warning("%d sequences or more are decoded without a graph: %s", size, error)
        captured = bool(self._smallest(int(graph is not None)))
        if captured and graph is not None:
            self._graphs[size] = graph
        heart.doing, heart.exempt = doing, exempt
        return captured


def _size_for(num_sequences: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= num_sequences)


@dataclass(frozen=True, slots=True)
class _Graph:
    """One size of batch: its numbers on the device, and what replays it."""

    device: Device
    numbers: "_BatchBuffer"
    nowhere: Tensor  # int64 [sequences] on the host, the slots of those that only pad
    replay: Replay

    @classmethod
    def of(cls, model: Model, pool: KVPool, size: int, max_len: int, device: Device) -> "_Graph":
        """Captures a step of `size` sequences of any length up to max_len."""
        num_blocks = -(-max_len // pool.block_size)
        length = len(COLUMNS) * _aligned(size) + size * num_blocks
        flat = torch.zeros(length, dtype=torch.int64, device=device.torch_device)
        nowhere = pool.padding_slots(size)
        numbers = _BatchBuffer(flat, nowhere.to(flat.device))
        numbers.fill_up(0)
        batch = numbers.batch()

        def step() -> Tensor:
            """With a batch of its own: operators keep for all layers what they made of one."""
            return model(replace(batch), pool)

        return cls(device, numbers, nowhere, device.capture(step))

    def run(self, batch: Batch) -> Tensor:
        """Copies to the device, one launch; the logits of the batch's own rows."""
        num_sequences = len(batch.query_lens)
        on_device = self.numbers
        # Anew for each step: the copy for the one before may still have to be made.
        on_host = _BatchBuffer(torch.zeros_like(on_device.flat, device="cpu"), self.nowhere)
        on_host.take(batch)
        on_host.fill_up(num_sequences)
        on_device.flat.copy_(self.device.pinned(on_host.flat), non_blocking=True)
        on_device.token_ids[:num_sequences].copy_(batch.token_ids, non_blocking=True)
        padding = (0,) * (len(self.nowhere) - num_sequences)
        logits = self.replay((*batch.context_lens, *padding))
        return logits[:num_sequences].clone()  # the next replay writes over them


def _aligned(size: int) -> int:
    return -(-size // RUN) * RUN


class _BatchBuffer:
    """All numbers of a decoding batch in one tensor: a run for each of COLUMNS, then the block
    tables row by row. Kernels read each as a run of its own.
    """

    def __init__(self, flat: Tensor, nowhere: Tensor) -> None:
        size = len(nowhere)
        self.flat = flat  # int64
        self._nowhere = nowhere  # the slots of padding
        end = len(COLUMNS) * _aligned(size)
        self.columns = flat[:end].view(len(COLUMNS), -1)[:, :size]
        self.token_ids = self.columns[COLUMNS.index("token_ids")]
        self.tables = flat[end:].view(size, -1)

    def take(self, batch: Batch) -> None:
        """Writes a batch's numbers to the first places, but for token_ids: the device may have them
        already, and the host not yet.
        """
        num_sequences, num_blocks = batch.block_tables.shape
        columns = [getattr(batch, name) for name in COLUMNS[1:]]
        torch.stack(columns, out=self.columns[1:, :num_sequences])
        self.tables[:num_sequences, :num_blocks] = batch.block_tables

    def fill_up(self, first: int) -> None:
        """Sequences from `first` on attend to nothing and are cached where no other is."""
        self.columns[:, first:] = 0
        self.columns[COLUMNS.index("slots"), first:] = self._nowhere[first:]

    def batch(self) -> Batch:
        """The batch whose tensors these are. The host does not know its contexts: ()."""
        size = self.columns.shape[1]
        steps = torch.arange(size + 1, device=self.flat.device)
        return Batch(
            query_lens=(1,) * size,
            context_lens=(),
            block_tables=self.tables,
            starts=steps,
            rows=steps[:-1],
            **dict(zip(COLUMNS, self.columns, strict=True)),
        )
