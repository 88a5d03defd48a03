"""Gradients that several programs hold shares of, each for some of a state's columns: the sum, rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.cell import padded, parameters, tiles
from sparsec.plan.scan_specs import Operand, ScanGrad
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

ROWS = 16
"""Tokens of a program."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gradient ``[B,N,heads]`` or, with ``rows``, ``[B,N,heads,D]``.

    Attributes:
        sharers: states that each have a share of it.
    """

    operand: Operand
    heads: int
    rows: bool
    sharers: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """The gradients that are sums over columns; None is not asked for."""

    q: tuple[Target | None, ...]
    k: Target | None
    beta: Target | None
    decay: Target | None
    erase_a: Target | None
    erase_b: Target | None


def found(spec: ScanGrad) -> Found:
    """The gradients by what they are of."""
    w = spec.forward.writes

    def target(operand: Operand | None, rows: bool, sharers: int = 1) -> Target | None:
        return None if operand is None else Target(operand, w.heads // sharers, rows, sharers)

    reads = [
        None if q is None else Target(q, r.heads // r.sharers, True, r.sharers)
        for q, r in zip(spec.grad_q, spec.forward.reads, strict=True)
    ]
    a, b = (target(erase, True) for erase in spec.grad_erase)
    decay = target(spec.grad_decay, w.decay_kind == "key")
    return Found(tuple(reads), target(spec.grad_k, True, w.sharers), target(spec.grad_beta, False), decay, a, b)


def targets(spec: ScanGrad) -> list[Target]:
    """All of them."""
    own = found(spec)
    return [t for t in (*own.q, own.k, own.beta, own.decay, own.erase_a, own.erase_b) if t is not None]


def count(spec: ScanGrad, target: Target, schedule: Schedule) -> int:
    """The programs that have a share of one element."""
    return tiles(spec.forward.writes, schedule) * target.sharers


def shares(spec: ScanGrad, target: Target, schedule: Schedule) -> Tensor:
    """fp32 ``[count,B,N,heads]``, with ``rows`` also D."""
    w = spec.forward.writes
    last = (w.rows,) if target.rows else ()
    shape = (count(spec, target, schedule), "B", w.length, target.heads, *last)
    return Tensor(f"{target.operand.name}_shares", "float32", shape)


def program(spec: ScanGrad, target: Target, schedule: Schedule) -> Program:
    """One (tile of tokens, head, batch) per grid point."""
    with tile.Builder() as builder:
        w = spec.forward.writes
        made = shares(spec, target, schedule)
        out = Tensor(target.operand.name, target.operand.dtype, made.shape[1:])
        tokens = builder.axis("m", ROWS)
        limits: dict[int, tile.Value] = {1: tile.param(w.length)}
        at = add(mul(tile.program_id(0), ROWS), tile.iota(tokens))
        place: tuple[Node, ...] = (tile.program_id(2), at, tile.program_id(1))
        if target.rows:
            size = padded(w.rows) if schedule.split_dims else w.rows
            place = (*place, tile.iota(builder.axis("d", size)))
            limits |= {3: w.rows} if size != w.rows else {}
        total = _total(made, place, limits)
        tile.store(out, *place, value=tile.cast(total, out.dtype), bounds=limits)
        grid = (ceil_div(tile.param(w.length), ROWS), tile.const(target.heads), tile.param("B"))
        return builder.program(f"{spec.name}_{target.operand.name}", [made, out], parameters(w), grid)


def _total(made: Tensor, place: Sequence[Node], limits: dict[int, tile.Value]) -> Node:
    ahead = {dim + 1: limit for dim, limit in limits.items()}
    count = int(made.shape[0])
    total = tile.load(made, 0, *place, bounds=ahead)
    for n in range(1, count):
        total = add(total, tile.load(made, n, *place, bounds=ahead))
    return total
