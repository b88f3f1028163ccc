"""Hands out cache blocks to sequences and remembers what full ones hold: pure bookkeeping, no tensors.

A full block is known by the tokens in it and before it, so a prompt that begins like an earlier one
takes over its blocks instead of computing them. A block that nobody uses any more keeps its content
until it is needed for something else, the one unused longest first. With the content goes the note
that its tokens have scores, which are kept elsewhere.
"""

from collections.abc import Sequence
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
        self._free = dict.fromkeys(range(num_blocks))  # in the order in which they are given away
        self._users = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}  # digest of all tokens up to its end → full block
        self._digest_of: dict[int, bytes] = {}
        # Block whose tokens have scores → the token after it that has one, too, if any.
        self._scored: dict[int, int | None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Appends blocks to `table` until it holds `num_tokens`; False, and nothing taken, when too
        few are free.
        """
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = next(iter(self._free))
            self._forget(block)
            self._use(block)
            table.append(block)
        return True

    def digests(self, tokens: Sequence[int], num_tokens: int, known: list[bytes]) -> list[bytes]:
        """For each block that the first `num_tokens` of `tokens` fill, a digest of the tokens from the
        very first to the block's last; none without `reuse`. Those of a sequence are kept in
        `known`, so that each is computed once.
        """
        num_blocks = num_tokens // self.block_size if self.reuse else 0
        for start in range(
            len(known) * self.block_size, num_blocks * self.block_size, self.block_size
        ):
            block = ",".join(map(str, tokens[start : start + self.block_size]))
            before = known[-1] if known else b""
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
        self, digests: Sequence[bytes], prompt: Sequence[int]
    ) -> tuple[list[int], bool]:
        """The same of blocks whose tokens have scores, and whether the prompt's token after them has
        one, or there is none: it follows from the last token of a block, but is no part of it.
        """
        found = list(takewhile(self._scored.__contains__, self.find(digests)))
        stop = len(found) * self.block_size
        if not found or stop >= len(prompt):
            return found, True
        return found, self._scored[found[-1]] == prompt[stop]

    def num_unused(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` count as free as long as they are not taken."""
        return sum(block in self._free for block in blocks)

    def take(self, blocks: Sequence[int]) -> None:
        """Makes a sequence one more user of each of `blocks`."""
        for block in blocks:
            self._use(block)

    def publish(self, table: Sequence[int], digests: Sequence[bytes]) -> None:
        """Notes that the first blocks of `table` hold the tokens of `digests`: they can be found from
        now on.
        """
        for block, digest in zip(table, digests, strict=False):
            if digest not in self._block_of:
                self._block_of[digest], self._digest_of[block] = block, digest

    def add_scores(self, digest: bytes, following: int | None) -> tuple[int, range]:
        """Notes that the tokens of a published block have scores, and so has the token `following` it.
        What has scores keeps them, so this returns the block and the places in it that get some now:
        `block_size` stands for the token after it.
        """
        block = self._block_of[digest]
        start = 0 if block not in self._scored else self.block_size
        if self._scored.get(block) is not None:
            return block, range(0)
        self._scored[block] = following
        return block, range(start, self.block_size + (following is not None))

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

    def _use(self, block: int) -> None:
        self._users[block] += 1
        self._free.pop(block, None)

    def _forget(self, block: int) -> None:
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
            self._scored.pop(block, None)
