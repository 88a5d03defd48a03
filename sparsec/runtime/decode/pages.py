"""Pages of a cache: a pool that sequences share, and block tables in vLLM's convention.

A page holds ``page`` tokens of every input that grows, and the summaries and landmarks of those tokens. Sequence b's
tokens ``n * page …`` live in page ``table[b, n]``; all inputs and summaries of a sequence have the same page numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAGE = 64
"""Tokens of a page."""


class Pool:
    """Pages that several caches of one variant may share.

    Attributes:
        blocks: how many pages there are.
        page: tokens per page.
    """

    def __init__(self, blocks: int, page: int = PAGE) -> None:
        if blocks < 1 or page < 1:
            raise InputError("Pool", f"{blocks} pages of {page}", "a pool has pages of tokens", "1 or more of each")
        self.blocks, self.page = blocks, page
        self._free = list(range(blocks - 1, -1, -1))
        self._tensors: dict[str, Tensor] = {}

    @property
    def free(self) -> int:
        """Pages that no sequence has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many pages. Raises InputError where there are fewer."""
        if count > len(self._free):
            rule = f"the pool of {self.blocks} pages has {self.free} left"
            raise InputError("cache", f"{count} pages wanted", rule, "free sequences, or make a larger pool")
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Sequence[int]) -> None:
        """Take pages back."""
        self._free.extend(reversed(pages))

    def tensor(
        self, name: str, rows: int, row: Sequence[int], dtype: torch.dtype, device: torch.device, cold: bool = False
    ) -> Tensor:
        """The memory ``[blocks, rows, …]`` of an input or summary, made at first use; zeros, so that no NaN is read.

        ``cold`` memory is the host's, pinned, so that a GPU reads and writes it in place.
        """
        import torch

        shape = (self.blocks, rows, *row)
        pinned = cold and device.type == "cuda"
        device = torch.device("cpu") if cold else device
        if name not in self._tensors:
            self._tensors[name] = torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
        found = self._tensors[name]
        if found.shape != shape or found.dtype is not dtype or found.device != device:
            rule = f"the pool holds {found.dtype} {tuple(found.shape)} on {found.device}"
            raise InputError(name, f"{dtype} {shape} on {device}", rule, "use a pool of its own")
        return found


def ring_table(length: int, page: int, window: int, sinks: int, step: int) -> tuple[list[int], int]:
    """The pages of each block of a ring, and how many pages it has: pinned ones first, then those that come round.

    ``step`` new tokens at a time are written before the oldest that they see is no longer read.
    """
    pinned = -(-sinks // page)
    turning = (window + step - 2) // page + 2
    blocks = -(-length // page)
    table = [n if n < pinned else pinned + (n - pinned) % turning for n in range(blocks)]
    return table, min(pinned + turning, blocks)
