"""Tiles that divide those of block lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from sparsec.plan.specs import BlockList
from sparsec.tile.schedule import Schedule


def sides(lists: Sequence[BlockList]) -> tuple[int, int]:
    """The rows and the keys that tiles must divide; 0 where there are no lists."""
    return gcd(*(x.block_q for x in lists)), gcd(*(x.block_k for x in lists))


def within(made: Schedule, lists: Sequence[BlockList]) -> Schedule:
    """The schedule with tiles that divide those of the lists, which are walked in one loop."""
    if not lists:
        return made
    rows, keys = sides(lists)
    block = gcd(made.block, keys)
    warps = min(made.warps, 4) if block < made.block else made.warps
    return replace(made, rows=gcd(made.rows, rows), block=block, phases="branch", warps=warps)


def choices(sizes: Sequence[int], side: int) -> tuple[int, ...]:
    """The sizes that divide a side of a list's tiles; its own divisor where none does."""
    found = tuple(n for n in sizes if side % n == 0)
    return found or (gcd(sizes[0], side),)
