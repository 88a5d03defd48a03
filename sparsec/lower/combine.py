"""Merging branches row by row: gated, summed, convex, or as the joint softmax of disjoint sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

from sparsec.lower.pieces import Span, spans
from sparsec.lower.scalars import add, ceil_div, emit, most, mul, sub
from sparsec.plan.specs import Combine
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: Combine, schedule: Schedule) -> Program:
    """Branches ``[B,TQ,H,DV]`` -> out of the same shape, and for ``lse`` the joint log-sum-exp ``[B,TQ,H]``."""
    with tile.Builder() as builder:
        rows = builder.axis("m", schedule.rows)
        values = spans(builder, "e", spec.value_dim, schedule)
        buffers = tensors(spec)
        first, length = mul(tile.program_id(0), schedule.rows), tile.param("TQ")
        place = (tile.program_id(2), add(first, tile.iota(rows)), tile.program_id(1))

        def row(name: str, *last: int) -> Node:
            return tile.cast(tile.load(buffers[name], *place, *last, bounds={1: length}), "float32")

        shares, lse = factors(spec, numbers(spec, row))
        for span in values:
            branches = [_read(buffers[name], place, span, length) for name in spec.branches]
            total = reduce(add, (mul(f, o) if f is not None else o for f, o in zip(shares, branches, strict=True)))
            tile.store(buffers[spec.out], *place, span.index(), value=tile.cast(total, spec.dtype), bounds={1: length})
        if spec.lse is not None:
            assert lse is not None, "only fn = lse defines a log-sum-exp"
            tile.store(buffers[spec.lse], *place, value=lse, bounds={1: length})
        params = [(name, "int32") for name in ("B", "TQ", "TK", "q_offset")]
        grid = (ceil_div(length, schedule.rows), tile.const(spec.heads), tile.param("B"))
        return builder.program(spec.name, list(buffers.values()), params, grid)


def numbers(spec: Combine, read: Callable[..., Node]) -> list[Node]:
    """What the factors of a row are made of; ``read(name, *last)`` gives one number of a tensor."""
    if spec.fn == "weighted":
        return [read(spec.gates[0], n) for n in range(len(spec.branches))]
    return [read(name) for name in (spec.lses if spec.fn == "lse" else spec.gates)]


def tensors(spec: Combine) -> dict[str, Tensor]:
    """Buffers in launch order: branches, gates, log-sum-exps, outputs."""
    wide: tuple[str | int, ...] = ("B", "TQ", spec.heads, spec.value_dim)
    found = {name: Tensor(name, dtype, wide) for name, dtype in spec.typed}
    dtypes = spec.gate_dtypes or (spec.dtype,) * len(spec.gates)
    each = (len(spec.branches),) * (spec.fn == "weighted")
    found |= {name: Tensor(name, dtype, (*wide[:3], *each)) for name, dtype in zip(spec.gates, dtypes, strict=True)}
    found |= {name: Tensor(name, "float32", wide[:3]) for name in spec.lses}
    found[spec.out] = Tensor(spec.out, spec.dtype, wide)
    if spec.lse is not None:
        found[spec.lse] = Tensor(spec.lse, "float32", wide[:3])
    return found


def _read(tensor: Tensor, place: tuple[Node, ...], span: Span, length: Node) -> Node:
    return tile.cast(tile.load(tensor, *place, span.index(), bounds={1: length}), "float32")


def factors(spec: Combine, read: Sequence[Node]) -> tuple[list[Node | None], Node | None]:
    """What each branch is multiplied with (None: one), and the joint log-sum-exp where there is one."""
    if spec.fn == "lse":
        return _joint(read)
    gates = [g if spec.gate_fn is None else emit(spec.gate_fn, {"x0": g}) for g in read]
    if spec.fn == "convex":
        return [gates[0], sub(tile.const(1.0), gates[0])], None
    return [*gates] if spec.fn in ("gated", "weighted") else [None] * len(spec.branches), None


def _joint(lses: Sequence[Node]) -> tuple[list[Node | None], Node]:
    """Shares of the joint softmax; a row that is empty in all branches gives zeros and minus infinity."""
    top = reduce(most, lses)
    empty = tile.apply(Fn.LE, top, -math.inf)
    top = tile.apply(Fn.WHERE, empty, 0.0, top)
    masses = [tile.apply(Fn.EXP, sub(lse, top)) for lse in lses]
    total = reduce(add, masses)
    safe = tile.apply(Fn.WHERE, empty, 1.0, total)
    return [tile.apply(Fn.DIV, mass, safe) for mass in masses], add(top, tile.apply(Fn.LOG, total))


def default(spec: Combine, target: str) -> Schedule:
    """A few rows per program: the kernel only moves memory."""
    triton = target.startswith("triton")
    return Schedule(rows=32 if triton else 16, warps=4, stages=2, lanes=("e",), split_dims=triton)


def space(spec: Combine, target: str) -> dict[str, tuple[object, ...]]:
    """Rows per program, and warps."""
    rows = (8, 16, 32, 64)
    return {"rows": rows, "warps": (1, 2, 4, 8)} if target.startswith("triton") else {"rows": rows}
