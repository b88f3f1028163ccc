"""Which blocks running sequences are computing, and who waits for them instead of computing them again. Knows
blocks by their digests alone.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import product

from gyrfalcon.request import Sequence

_Block = tuple[bytes, bool]  # its digest, and whether it is about the scores of its tokens


class PrefixesInProgress:
    """Full blocks of prompts that are being read, each computed by one sequence, unless another that would
    wait is read earlier or faster.

    Who waits for a block waits for a running sequence, and who runs waits for nobody: there is no cycle. When
    that sequence has computed the block, or is preempted or ends, the waiting ones are let go.
    """

    def __init__(self) -> None:
        self._owners: dict[_Block, dict[Sequence, None]] = {}
        self._waiting: dict[_Block, dict[Sequence, None]] = {}
        self._awaited: dict[Sequence, _Block] = {}

    @property
    def any_waits(self) -> bool:
        return bool(self._awaited)

    def compute(self, sequence: Sequence, digests: Iterable[bytes], scored: bool) -> None:
        """A sequence that was admitted computes the blocks of these digests, or their tokens' scores."""
        for digest in digests:
            self._owners.setdefault((digest, scored), {})[sequence] = None

    def awaited(self, sequence: Sequence, digests: Seq[bytes]) -> _Block | None:
        """Of blocks, or scores, that a prompt lacks, in order, the last one up to which all are being
        computed by sequences that are read no later than it would be; None where the first is not.
        """
        last = None
        for digest in digests:
            block = digest, sequence.shares_scores
            if all(_is_slower(owner, sequence) for owner in self._owners.get(block, ())):
                break
            last = block
        return last

    def wait(self, sequence: Sequence, block: _Block) -> None:
        """Has a sequence wait for what awaited() returned."""
        self._waiting.setdefault(block, {})[sequence] = None
        self._awaited[sequence] = block

    def give_up(self, sequence: Sequence) -> None:
        """A sequence that may be waiting has ended."""
        block = self._awaited.pop(sequence, None)
        if block is not None:
            del self._waiting[block][sequence]

    def done(self, sequence: Sequence, digests: Iterable[bytes]) -> list[Sequence]:
        """A sequence has computed these blocks, or will not compute them; returns who waited for them."""
        woken: list[Sequence] = []
        for block in product(digests, (False, True)):
            owners = self._owners.get(block, {})
            if sequence in owners:
                del owners[sequence]
                if not owners:
                    del self._owners[block]
                woken += self._waiting.pop(block, ())
        for one in woken:
            del self._awaited[one]
        return woken


def _is_slower(owner: Sequence, other: Sequence) -> bool:
    """Whether a sequence is read later than another, or token by token."""
    return owner.priority > other.priority or owner.request.single_steps > 0
