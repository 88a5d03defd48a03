"""Write strengths as they are given, without the lengths of keys, where loads that run ahead must not take room.

A number of two bytes is loaded when it is wanted. One of four is loaded ahead, into the room without which two programs
no longer fit a processor: so strengths in fp32 are stored as sums of two numbers of the keys' precision too.
"""

from __future__ import annotations

from sparsec.lower.scalars import add
from sparsec.lower.scan.chunk.operands import halves
from sparsec.lower.scan.chunk.parts import PADDED, Chunk, Chunked
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def halves_of(own: Chunked) -> list[Tensor]:
    """Both ``[B,tokens,HKV]``, if there are such."""
    w = own.writes
    if own.keyed or w.beta is None or w.beta.dtype != "float32" or w.half == "float32":
        return []
    return [Tensor(f"{own.name}_{part}_rates", w.half, ("B", PADDED, w.heads)) for part in ("high", "low")]


def tensors(own: Chunked) -> list[Tensor]:
    """Where strengths are read."""
    w = own.writes
    return halves_of(own) or ([own.tensor(w.beta, w.heads)] if w.beta is not None else [])


def given(chunk: Chunk, token: Node) -> Node | None:
    """Those of some tokens in fp32; None where all are 1."""
    if not (parts := halves_of(chunk.own)):
        return chunk.given_beta(token)
    high, low = (tile.cast(tile.load(t, chunk.batch, token, chunk.head), "float32") for t in parts)
    return add(high, low)


def store(chunk: Chunk, place: tuple[Node, Node], value: Node) -> list[Tensor]:
    """Both halves of some tokens and heads, in fp32; the tensors that have them."""
    parts, w = halves_of(chunk.own), chunk.own.writes
    for tensor, part in zip(parts, halves(value, w.half), strict=False):
        tile.store(tensor, chunk.batch, *place, value=part, bounds={2: w.heads})
    return parts
