"""Hands out cache blocks to sequences: pure bookkeeping, no tensors."""

from collections import deque


class BlockAllocator:
    """The free blocks of a cache of `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
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
        table.extend(self._free.popleft() for _ in range(missing))
        return True

    def release(self, table: list[int]) -> None:
        """Takes every block of `table` back and empties it."""
        self._free.extend(table)
        table.clear()
