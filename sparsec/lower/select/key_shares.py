"""Gradients of keys by shares of the queries: partial sums that are kept apart, and the program that adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.pieces import spans
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.select.unit import through
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class KeyShares:
    """The gradient of the keys that ``index`` scored, ``out`` ``[B,N,HKV,D]`` of ``dtype``, in shares."""

    name: str
    index: Selector
    out: str
    dtype: str


def parts(spec: KeyShares, schedule: Schedule) -> Tensor:
    """The partial sums, ``[B, HKV, splits, N, D]`` fp32."""
    own = spec.index
    shape = ("B", own.kv_heads, schedule.splits, own.key_length, own.dim)
    return Tensor(f"{spec.name}_parts", "float32", shape)


def params(own: Selector) -> list[tuple[str, str]]:
    """Launch parameters of both programs."""
    names = dict.fromkeys(["B", "TQ", "TK", "q_offset", own.key_length, own.block_length])
    return [(name, "int32") for name in names]


def tile_number(splits: int) -> tuple[Node, Node]:
    """The tile of keys and the share of the queries of a program."""
    number = tile.program_id(0)
    return tile.apply(Fn.TRUNCDIV, number, splits), tile.apply(Fn.TRUNCMOD, number, splits)


def total(spec: KeyShares, schedule: Schedule) -> Program:
    """The shares of a tile of keys, added up and rounded."""
    own, read_from = spec.index, parts(spec, schedule)
    with tile.Builder() as builder:
        keys, dims = builder.axis("n", schedule.block), spans(builder, "f", own.dim, schedule)
        at = (tile.program_id(2), tile.program_id(1))
        key = add(mul(tile.program_id(0), schedule.block), tile.iota(keys))
        limit = tile.param(own.key_length)
        out = Tensor(spec.out, spec.dtype, ("B", own.key_length, own.kv_heads, own.dim))

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            mine = (tile.load(read_from, *at, n, key, d.index(), bounds={3: limit}) for d in dims)
            return [add(x, y) for x, y in zip(sums, mine, strict=True)]

        inits = [tile.full(0.0, keys, d.axis) for d in dims]
        sums, read = tile.loop(0, schedule.splits, 1, inits, visit), [read_from]
        if own.cosine:
            keys_in = Tensor(own.keys, own.key_dtype or own.dtype, ("B", own.key_length, own.kv_heads, own.dim))
            held = [tile.load(keys_in, at[0], key, at[1], d.index(), bounds={1: limit}, other=0.0) for d in dims]
            sums, read = through(held, sums, dims), [read_from, keys_in]
        for d, found in zip(dims, sums, strict=True):
            value = tile.cast(found, spec.dtype)
            tile.store(out, at[0], key, at[1], d.index(), value=value, bounds={1: limit})
        grid = (ceil_div(limit, schedule.block), tile.const(own.kv_heads), tile.param("B"))
        return builder.program(f"{spec.name}_sum", [*read, out], params(own), grid)
