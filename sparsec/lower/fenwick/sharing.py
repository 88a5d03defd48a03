"""Gradients of ladders whose queries, keys or states are shared: a state per query head, and sums over who shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, mul
from sparsec.lower.scan.cell import padded
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Operand
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

TOKENS = 32
"""Tokens of a program."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor per token and head, and the same with a head per query head.

    Attributes:
        heads: of the former; ``last`` is the extent of the last dim, 0 where it has none.
    """

    given: Operand
    apart: Operand
    heads: int
    last: int = 0


def apart(spec: LadderGrad) -> LadderGrad:
    """The same adjoint of as many states, keys and queries as query heads; itself where nothing is shared."""
    f, w = spec.forward, spec.forward.writes
    if {w.heads, w.key_heads or w.heads, f.read.query_heads or f.read.heads} == {f.read.heads}:
        return spec
    others = {x.given: x.apart for x in (*brought(spec), *made(spec))}

    def other(operand: Operand | None) -> Operand | None:
        return others.get(operand, operand) if operand is not None else None

    k, v, q = (others.get(x, x) for x in (w.k, w.v, f.read.q))
    writes = replace(w, k=k, v=v, beta=other(w.beta), decay=other(w.decay), heads=f.read.heads, key_heads=None)
    return replace(
        spec,
        forward=replace(f, writes=writes, read=replace(f.read, q=q, query_heads=None)),
        grad_q=other(spec.grad_q),
        grad_k=other(spec.grad_k),
        grad_v=other(spec.grad_v),
        grad_beta=other(spec.grad_beta),
        grad_decay=other(spec.grad_decay),
    )


def _sizes(f: Ladder) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Heads and last dims of q, k, v, beta and decay."""
    w, asking = f.writes, f.read.query_heads or f.read.heads
    one = (w.heads, 0)
    return (asking, w.rows), (w.key_heads or w.heads, w.rows), (w.heads, w.cols), one, one


def _fewer(spec: LadderGrad, operands: Sequence[Operand | None], to: Callable[[Operand], Operand]) -> list[Shared]:
    pairs = zip(operands, _sizes(spec.forward), strict=True)
    count = spec.forward.read.heads
    return [Shared(x, to(x), heads, last) for x, (heads, last) in pairs if x is not None and heads < count]


def brought(spec: LadderGrad) -> list[Shared]:
    """What is repeated for every query head."""
    w = spec.forward.writes
    given = (spec.forward.read.q, w.k, w.v, w.beta, w.decay)
    return _fewer(spec, given, lambda x: Operand(f"{spec.name}_each_{x.name}", x.dtype))


def made(spec: LadderGrad) -> list[Shared]:
    """What is a sum of shares of query heads, which are fp32."""
    asked = (spec.grad_q, spec.grad_k, spec.grad_v, spec.grad_beta, spec.grad_decay)
    return _fewer(spec, asked, lambda x: Operand(f"{spec.name}_share_{x.name}", "float32"))


def around(spec: LadderGrad, inner: Lowered, schedule: Schedule) -> Lowered:
    """The programs of the adjoint with a state per query head, between repeating and adding up."""
    small = replace(schedule, warps=4, stages=1, descriptors=False, registers=0)
    before = [Step(lower_repeated(spec, x, small), small) for x in brought(spec)]
    after = [Step(lower_sum(spec, x, small), small) for x in made(spec)]
    held = tuple(as_scratch(_tensors(spec, x)[1]) for x in (*brought(spec), *made(spec)))
    return replace(inner, steps=(*before, *inner.steps, *after), scratch=(*held, *inner.scratch))


def _tensors(spec: LadderGrad, shared: Shared) -> tuple[Tensor, Tensor]:
    f, last = spec.forward, (shared.last,) * bool(shared.last)
    few = Tensor(shared.given.name, shared.given.dtype, ("B", f.writes.length, shared.heads, *last))
    return few, Tensor(shared.apart.name, shared.apart.dtype, ("B", f.writes.length, f.read.heads, *last))


class _Rows:
    """A tile of tokens of the head that is written: one (tile, head, batch) per grid point."""

    def __init__(self, builder: tile.Builder, spec: LadderGrad, shared: Shared, schedule: Schedule) -> None:
        self.builder, self.length = builder, spec.forward.writes.length
        self.group = spec.forward.read.heads // shared.heads
        self.token = add(mul(tile.program_id(0), TOKENS), tile.iota(builder.axis("m", TOKENS)))
        size = padded(shared.last) if schedule.split_dims else shared.last
        self.column = (tile.iota(builder.axis("d", size)),) if shared.last else ()
        self.bounds: dict[int, tile.Value] = {1: tile.param(self.length)}
        if shared.last and size > shared.last:
            self.bounds[3] = shared.last

    def read(self, tensor: Tensor, head: Node) -> Node:
        return tile.load(tensor, tile.program_id(2), self.token, head, *self.column, bounds=dict(self.bounds))

    def write(self, tensor: Tensor, value: Node) -> None:
        place = (tile.program_id(2), self.token, tile.program_id(1), *self.column)
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=dict(self.bounds))

    def program(self, name: str, read: Tensor, written: Tensor) -> Program:
        names = dict.fromkeys(["B", "TQ", "TK", "q_offset", self.length])
        grid = (ceil_div(tile.param(self.length), TOKENS), tile.const(int(written.shape[2])), tile.param("B"))
        return self.builder.program(name, [read, written], [(n, "int32") for n in names], grid)


def lower_repeated(spec: LadderGrad, shared: Shared, schedule: Schedule) -> Program:
    """What a head has, for every query head that shares it."""
    with tile.Builder() as builder:
        (few, many), at = _tensors(spec, shared), _Rows(builder, spec, shared, schedule)
        at.write(many, at.read(few, tile.apply(Fn.TRUNCDIV, tile.program_id(1), at.group)))
        return at.program(f"{spec.name}_repeat_{shared.given.name}", few, many)


def lower_sum(spec: LadderGrad, shared: Shared, schedule: Schedule) -> Program:
    """The sum of the shares of all query heads that share a head, rounded once."""
    with tile.Builder() as builder:
        (few, many), at = _tensors(spec, shared), _Rows(builder, spec, shared, schedule)
        first = mul(tile.program_id(1), at.group)
        at.write(few, reduce(add, (at.read(many, add(first, n)) for n in range(at.group))))
        return at.program(f"{spec.name}_sum_{shared.given.name}", many, few)
