"""Unit vectors that are made as they are read: products take rows as they are given, and a factor per token the rest.

With r = rsqrt(Σ x² + ε) of each row, scores of rows and columns are r_i (x_i·y_j) r_j, and what a key writes, r_j
times what is written beside it as it is given. So unit vectors are neither stored nor rounded.
"""

from __future__ import annotations

from sparsec.lower.scalars import mul
from sparsec.lower.scan.cell import inverse_length
from sparsec.lower.scan.chunk.parts import CHUNKS, PADDED, Chunk, Chunked, column_limit, power
from sparsec.plan.states.scan_specs import Operand, Read
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def tensor(own: Chunked, operand: Operand, heads: int) -> Tensor:
    """r; fp32 ``[B,heads,tokens]``."""
    return Tensor(f"{own.name}_unit_{operand.name}", "float32", ("B", heads, PADDED))


def tensors(own: Chunked, operand: Operand, heads: int) -> list[Tensor]:
    """Where r is read; nothing where rows are taken as they are given."""
    return [tensor(own, operand, heads)] if operand.unit else []


def factor(chunk: Chunk, operand: Operand, heads: int, head: Node, token: Node) -> Node | None:
    """r of some tokens; None where rows are taken as they are given."""
    return tile.load(tensor(chunk.own, operand, heads), chunk.batch, head, token) if operand.unit else None


def of_keys(chunk: Chunk, token: Node) -> Node | None:
    """r of the keys of some tokens."""
    w = chunk.own.writes
    return factor(chunk, w.k, w.heads, chunk.head, token)


def wanted(own: Chunked, reads: tuple[Read, ...]) -> dict[str, tuple[Operand, int]]:
    """The operands with r, and their heads, by name."""
    w = own.writes
    given = [(w.k, w.heads), *((read.q, read.heads) for read in reads)]
    return {operand.name: (operand, heads) for operand, heads in given if operand.unit}


def scratch(own: Chunked, reads: tuple[Read, ...]) -> list[Tensor]:
    """r of all operands that have it."""
    return [tensor(own, operand, heads) for operand, heads in wanted(own, reads).values()]


def lower(own: Chunked, operand: Operand, heads: int) -> Program:
    """x ``[B,N,heads,D]`` -> r; one (chunk, head, batch) per grid point."""
    rows = own.writes.rows
    with tile.Builder() as builder:
        tokens, dims = builder.axis("n", own.chunk), builder.axis("d", power(rows))
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        given, made = own.tensor(operand, heads, rows), tensor(own, operand, heads)
        x = chunk.rows(given, chunk.head, tokens, tile.iota(dims), column_limit(rows, dims.size))
        value = inverse_length(tile.cast(x, "float32"), dims)
        tile.store(made, chunk.batch, chunk.head, chunk.token(tokens), value=value)
        return own.program(builder, f"unit_{operand.name}", [given, made], (tile.param(CHUNKS), heads, tile.param("B")))


def scaled(x: Node, unit: Node | None) -> Node:
    """x times r, if there is one."""
    return x if unit is None else mul(x, unit)
