"""Proof that a kernel may leave new values where it found the old ones: nobody reads what was already written over.

A grid point reads the elements that it stores and no others, before its loops, and every element that
it stores is made of the one that was there; so it has been read when it is written. Grid points do not store
each other's elements (a rule of the tile language), and no other program touches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from sparsec.lower.lowered import Step
from sparsec.tile.language import Node, TileOp, access_of
from sparsec.tile.regions import body_of
from sparsec.tile.rewrite import accesses

THREADS = 32
"""Of a warp."""
VECTOR = 4
"""Elements of fp32 in a load of 16 bytes."""


def in_place(steps: Sequence[Step], old: str, new: str) -> bool:
    """Whether the tensors ``old``, which is read, and ``new``, which is stored, may be the same memory."""
    touched = [(s, n, a) for s in steps for n, a in accesses(s.program) if a.tensor.name in (old, new)]
    reads = [n for _, n, a in touched if a.tensor.name == old]
    stores = [n for _, n, a in touched if a.tensor.name == new]
    return len({id(s) for s, _, _ in touched}) == 1 and _own(touched[0][0], reads, stores)


def _own(step: Step, reads: Sequence[Node], stores: Sequence[Node]) -> bool:
    """Whether every grid point of a program turns its own elements into new ones."""
    if len(stores) != 1 or any(n.op is not TileOp.LOAD for n in reads):
        return False
    (store,) = stores
    access = access_of(store)
    place, value = store.args[:-1], store.args[-1]
    same = all(n.args == place and access_of(n).bounded == access.bounded for n in reads)
    outside = not any(n.free for n in (store, *reads)) and not access.atomic
    return same and outside and all(_made_of(value, n) and _once(step, n) for n in reads)


def _made_of(value: Node, read: Node) -> bool:
    """Whether each element of a value is worked out from the same element of what is read."""
    if value is read:
        return True
    if value.op in (TileOp.MAP, TileOp.CAST):
        return any(a.axes == value.axes and _made_of(a, read) for a in value.args)
    if value.op is not TileOp.RESULT:
        return False
    loop, place = value.args[0], int(str(value.attrs[0]))
    body = body_of(loop)
    return _made_of(body.yields[place], body.carries[place]) and _made_of(loop.args[2 + place], read)


def _once(step: Step, read: Node) -> bool:
    """Whether no other warp reads an element again: each lane has its own, or one warp has all, which reads at once."""
    tile, warps = prod(axis.size for axis in read.axes), step.schedule.warps
    return not step.schedule.split_dims or tile >= THREADS * warps * (VECTOR if warps > 1 else 1)
