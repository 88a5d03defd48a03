"""e^Γ of every token, and what lasts of its write till its chunk ends, beta e^{Γ_C − Γ}, as factors in memory.

Walks of delta rules over segments read them. Made of sums of decays in a walk, each would be as many exponentials in
every thread as a tile of columns has.
"""

from __future__ import annotations

from sparsec.lower.scalars import mul, sub
from sparsec.lower.scan.chunk.parts import CHUNKS, Chunk, Chunked, power_of_two
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Tensor


def tensors(own: Chunked) -> list[Tensor]:
    """Both, if there are such; fp32 ``[B,HKV,chunks,chunk]``: rows of a known length, which are read as vectors."""
    names = ("faded", "lasting") if own.decays and own.writes.beta is not None else ()
    return [Tensor(f"{own.name}_{name}", "float32", ("B", own.writes.heads, CHUNKS, own.chunk)) for name in names]


def read(own: Chunked) -> bool:
    """Whether walks that only states come of read them."""
    return own.delta and bool(tensors(own))


def faded(chunk: Chunk, token: Node | int) -> Node:
    """e^Γ of some of the chunk's tokens; that of the last one is the whole chunk's."""
    return tile.load(tensors(chunk.own)[0], chunk.batch, chunk.head, chunk.number, token)


def lasting(chunk: Chunk, token: Node) -> Node:
    """What lasts of the writes of some of the chunk's tokens."""
    return tile.load(tensors(chunk.own)[1], chunk.batch, chunk.head, chunk.number, token)


def store(chunk: Chunk, head: Node, tokens: Axis, sums: Node, rates: Node) -> list[Tensor]:
    """Both of some heads, of sums of decays and write strengths ``[n,h]``; the tensors that have them."""
    last = tile.apply(Fn.EQ, tile.iota(tokens), chunk.own.chunk - 1)
    total = tile.reduce("sum", tile.apply(Fn.WHERE, last, sums, 0.0), tokens)
    values = power_of_two(sums), mul(rates, power_of_two(sub(total, sums)))
    for tensor, value in zip(made := tensors(chunk.own), values, strict=True):
        place = (chunk.batch, head, chunk.number, tile.iota(tokens))
        tile.store(tensor, *place, value=value, bounds={1: chunk.own.writes.heads})
    return made
