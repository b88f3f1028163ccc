"""Steps on an accelerator as captured graphs: launched as one piece, not kernel by kernel.

A graph's shapes are fixed, so there is one for each of a few sizes: of batches that only decode
(`decode_graphs`), and of short prompts (`prompt_graphs`). What is smaller is padded.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.console.progress import bar
from gyrfalcon.device.protocol import CannotCapture, Device
from gyrfalcon.engine.decode_graphs import DecodeGraph, Following
from gyrfalcon.engine.prompt_graphs import PromptGraph, is_prompt
from gyrfalcon.engine.sampler import Choose
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.builder import Model
from gyrfalcon.parallel.heartbeat import Heartbeat

log = logging.getLogger(__name__)

Captured = TypeVar("Captured")

WARM = (1, 2, 4, 8, 16)  # sizes that are captured before the first request


class Graphs:
    """Runs a model on an accelerator: decoding steps and short prompts as graphs, all others kernel by
    kernel.
    """

    def __init__(
        self,
        model: Model,
        choose: Choose,
        max_len: int,
        device: Device,
        capturable: bool = True,
        heartbeat: Heartbeat | None = None,
        smallest: Callable[[int], int] = int,
    ) -> None:
        """`smallest` of the ranks' numbers: all of them replay a graph, or none does."""
        self.model = model
        self.choose = choose
        self.largest = max(device.graph_sizes) * capturable  # sequences of a graph
        self.longest = max(device.prompt_sizes, default=0) * capturable  # tokens of a prompt's
        self.max_len = max_len
        self.device = device
        self._graphs: dict[int, DecodeGraph] = {}
        self._prompts: dict[int, PromptGraph] = {}
        self._last: DecodeGraph | None = None  # that the last step replayed
        # Sizes of steps launched kernel by kernel, as powers of two.
        self._compiled: set[int] = set()
        self._heartbeat = heartbeat or Heartbeat()
        self._smallest = smallest

    def __call__(self, step: Batch | Following, pool: KVPool) -> Tensor:
        """As the model: this rank's logits float32 [rows, own tokens]."""
        graph = self._replayed(step, pool)
        if graph is None:
            return self._launched(step, pool)
        return graph.logits.clone()  # the next replay writes over them

    def greedy(self, step: Batch | Following, pool: KVPool) -> Tensor:
        """What `choose` finds in the step's logits, in the graph where there is one: the next replay writes
        over it.
        """
        graph = self._replayed(step, pool)
        if graph is None:
            return self.choose(self._launched(step, pool))
        return graph.chosen if self.device.chooses_in_graphs else self.choose(graph.logits)

    def can_follow(self, num_sequences: int) -> bool:
        """Whether the last step replayed a graph of this many sequences, so that one may be Following."""
        return self._last is not None and self._last.num_sequences == num_sequences

    def _replayed(self, step: Batch | Following, pool: KVPool) -> DecodeGraph | PromptGraph | None:
        """The graph of a step, launched; None where there is none."""
        if isinstance(step, Following):
            assert self._last is not None
            self._last.go_on(step)
            return self._last
        num_sequences = len(step.query_lens)
        decoding = set(step.query_lens) == {1} and len(step.rows) == num_sequences
        self._last = self._graph_for(num_sequences, pool) if decoding else None
        graph = self._prompt_graph_for(step, pool) if is_prompt(step) else self._last
        if graph is not None:
            graph.run(step)
            self._heartbeat.exempt = False
        return graph

    def _launched(self, step: Batch | Following, pool: KVPool) -> Tensor:
        """The logits of a step that is launched kernel by kernel. The first of its size compiles them."""
        assert isinstance(step, Batch)
        size = len(step.token_ids).bit_length()
        self._heartbeat.exempt = size not in self._compiled
        logits = self.model(step.on(self.device.torch_device), pool)
        self._heartbeat.exempt = False
        self._compiled.add(size)
        return logits

    def warm(self, pool: KVPool, most_sequences: int, shown: bool) -> None:
        """Captures the graphs of a few sequences, as many as may run, and of prompts, which compiles their
        kernels: no request waits for that. All ranks do it together.
        """
        sizes = self.device.graph_sizes
        largest = _size_for(min(most_sequences, WARM[-1], sizes[-1]), sizes)
        wanted = [size for size in sizes if size in WARM and size <= largest]
        lengths = [size for size in self.device.prompt_sizes if size < 2 * self.max_len]
        if not self.largest or self.device.emulated:  # whose times nobody is told
            return
        with bar(len(wanted) + len(lengths), "graphs", "warming up", shown=shown) as progress:
            for size in wanted:
                self._graph_for(size, pool)
                progress.update()
            for size in lengths:
                self._capture_prompts(size, pool)
                progress.update()

    def drop(self) -> None:
        """Forgets all graphs, with the collectives that they hold."""
        self._graphs.clear()
        self._prompts.clear()
        self._last = None

    def _graph_for(self, num_sequences: int, pool: KVPool) -> DecodeGraph | None:
        """The graph for this many sequences, captured when it is first wanted; None where there is none."""
        if num_sequences > self.largest:
            return None
        size = _size_for(num_sequences, self.device.graph_sizes)
        if size not in self._graphs and not self._capture_decoding(size, pool):
            self.largest = max((one for one in self._graphs if one < size), default=0)
            return self._graph_for(num_sequences, pool)
        return self._graphs[size]

    def _prompt_graph_for(self, batch: Batch, pool: KVPool) -> PromptGraph | None:
        """The same for a prompt's tokens."""
        num_tokens = len(batch.token_ids)
        if num_tokens > self.longest:
            return None
        size = _size_for(num_tokens, self.device.prompt_sizes)
        if size not in self._prompts and not self._capture_prompts(size, pool):
            self.longest = 0
        return self._prompts.get(size)

    def _capture_decoding(self, size: int, pool: KVPool) -> bool:
        """Whether all ranks have captured the graph of this many sequences."""
        choose = self.choose if self.device.chooses_in_graphs else None
        graph = self._captured(
            lambda: DecodeGraph.of(self.model, pool, size, self.max_len, self.device, choose),
            f"{size} sequences or more are decoded",
        )
        if graph is not None:
            self._graphs[size] = graph
        return graph is not None

    def _capture_prompts(self, size: int, pool: KVPool) -> bool:
        """Whether all ranks have captured the graph of prompts of this many tokens."""
        graph = self._captured(
            lambda: PromptGraph.of(self.model, pool, size, self.max_len, self.device, self.choose),
            "prompts are prefilled",
        )
        if graph is not None:
            self._prompts[size] = graph
        return graph is not None

    def _captured(self, make: Callable[[], Captured], what: str) -> Captured | None:
        """A graph, where all ranks have captured theirs."""
        heart, graph = self._heartbeat, None
        doing, exempt = heart.doing, heart.exempt
        heart.doing, heart.exempt = "capturing a graph", True
        try:
            graph = make()
        except CannotCapture as error:
            log.warning("%s without a graph: %s", what, error)
        captured = self._smallest(int(graph is not None))
        heart.doing, heart.exempt = doing, exempt
        return graph if captured else None


def _size_for(num_sequences: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= num_sequences)
