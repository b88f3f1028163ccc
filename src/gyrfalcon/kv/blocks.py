"""Hands out cache blocks to sequences and remembers what full ones hold: pure bookkeeping, no tensors.

A full block is known by the tokens in it and before it, so a prompt that begins like an earlier one
takes over its blocks instead of computing them. A block that nobody uses any more keeps its content
until it is needed for something else, the one unused longest first. With the content goes the note
that its tokens have scores, which are kept elsewhere.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile


class BlockAllocator:
    """The blocks of a cache of `num_blocks` blocks of `block_size` tokens.

    With `reuse`, tables given to publish() can be shared by sequences with the same beginning.
    """

    def __init__(self, num_blocks: int, block_size: int, reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reuse = reuse
        self._num_fresh = num_blocks  # never given away: the last ones, and the first to go
        # Unused again, in the order in which they are given away. (A dict that loses its first item again and
        # again searches ever longer for the next one.)
        self._free: OrderedDict[int, None] = OrderedDict()
        self._users = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}  # digest of all tokens up to its end → full block
        self._digest_of: dict[int, bytes] = {}
        # Block → digest of what precedes it, and those of its first tokens that have scores.
        self._scored: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._newest_after: dict[bytes, int] = {}  # digest → block after it that got scores last

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses."""
        return self._num_fresh + len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Appends blocks to `table` until it holds `num_tokens`; False, and nothing taken, when too
        few are free.
        """
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > self._num_fresh + len(self._free):
            return False
        for _ in range(missing):
            block = self._next()
            self._forget(block)
            self._use(block)
            table.append(block)
        return True

    def digests(
        self, tokens: Sequence[int], num_tokens: int, known: list[bytes], root: bytes = b""
    ) -> list[bytes]:
        """For each block that the first `num_tokens` of `tokens` fill, a digest of `root` and the tokens
        from the very first to the block's last; none without `reuse`. Those of a sequence are kept in
        `known`, so that each is computed once.
        """
        num_blocks = num_tokens // self.block_size if self.reuse else 0
        for start in range(
            len(known) * self.block_size, num_blocks * self.block_size, self.block_size
        ):
            block = ",".join(map(str, tokens[start : start + self.block_size]))
            before = known[-1] if known else root
            known.append(blake2b(before + block.encode(), digest_size=16).digest())
        return known[:num_blocks]

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks known by the first of these digests. Nothing is taken yet."""
        found = []
        for digest in digests:
            if digest not in self._block_of:
                break
            found.append(self._block_of[digest])
        return found

    def find_scored(
        self, digests: Sequence[bytes], prompt: Sequence[int], root: bytes = b""
    ) -> tuple[list[int], int]:
        """Blocks that hold the beginning of a prompt with scores, and its length in tokens. The last may
        go on otherwise than the prompt, and is to be copied, not shared.
        """
        found = list(takewhile(self._is_scored, self.find(digests)))
        before = digests[len(found) - 1] if found else root
        start = len(found) * self.block_size
        last = self._newest_after.get(before)
        if last is None:
            return found, start
        pairs = zip(prompt[start:], self._scored[last][1], strict=False)
        num = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return ([*found, last] if num else found), start + num

    def _is_scored(self, block: int) -> bool:
        return block in self._scored and len(self._scored[block][1]) == self.block_size

    def num_unused(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` count as free as long as they are not taken."""
        return sum(block in self._free for block in blocks)

    def released_with(self, kept: Sequence[int]) -> Callable[[Sequence[int]], int]:
        """Counts, table after table, how many more blocks would be free if these users left, `kept` aside."""
        users = {block: self._users[block] + 1 for block in kept}

        def released(table: Sequence[int]) -> int:
            for block in table:
                users[block] = users.get(block, self._users[block]) - 1
            return sum(not users[block] for block in table)

        return released

    def take(self, blocks: Sequence[int]) -> None:
        """Makes a sequence one more user of each of `blocks`."""
        for block in blocks:
            self._use(block)

    def publish(self, table: Sequence[int], digests: Sequence[bytes], first: int = 0) -> None:
        """Notes that the blocks of `table` hold the tokens of `digests`, from the `first` on: they can be
        found from now on.
        """
        for block, digest in zip(table[first:], digests[first:], strict=False):
            if digest not in self._block_of:
                self._block_of[digest], self._digest_of[block] = block, digest

    def add_scores(
        self,
        table: Sequence[int],
        digests: Sequence[bytes],
        tokens: Sequence[int],
        root: bytes = b"",
        first: int = 0,
    ) -> Iterator[tuple[int, range]]:
        """Notes that `tokens`, the first of `table`, have scores, from the `first` block on; yields the
        blocks that get some now, and of which tokens. Full blocks are published, and keep the scores
        that they have.
        """
        stop = len(tokens) if self.reuse else 0
        for start in range(first * self.block_size, stop, self.block_size):
            index, own = start // self.block_size, tuple(tokens[start : start + self.block_size])
            is_full = len(own) == self.block_size
            block = self._block_of[digests[index]] if is_full else table[index]
            before = digests[index - 1] if index else root
            if self._scored.get(block) != (before, own):
                self._scored[block] = before, own
                self._newest_after[before] = block
                yield block, range(start, start + len(own))

    def forget(self, table: Sequence[int]) -> None:
        """Lets nobody find the blocks of `table` any more; who has them keeps them."""
        for block in table:
            self._forget(block)

    def release(self, table: list[int]) -> None:
        """Takes every block of `table` back from one user and empties the table."""
        for block in reversed(table):  # the end of a text is worth less than its beginning
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None
        table.clear()

    def _next(self) -> int:
        """The block that is given away next."""
        if not self._num_fresh:
            return next(iter(self._free))
        self._num_fresh -= 1
        return self.num_blocks - 1 - self._num_fresh

    def _use(self, block: int) -> None:
        self._users[block] += 1
        self._free.pop(block, None)

    def _forget(self, block: int) -> None:
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        before, _ = self._scored.pop(block, (b"", ()))
        if self._newest_after.get(before) == block:
            del self._newest_after[before]
