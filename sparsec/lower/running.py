"""Running sums over tokens and their adjoint: sums of tiles first, then each tile from the sum of those before it.

Forward sums run from the first token on, those of gradients from the last one back. No two programs add to one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, emit, mul, sub
from sparsec.plan.maps.prefix_specs import Prefix, PrefixGrad
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

X = var("x0", "float")
TILES = "PT"
"""The launch parameter with the number of tiles of tokens."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is added up, in which direction, and what each sum is multiplied with.

    Attributes:
        fn: of a term; None takes it as it is.
        factor: of x, for the result; None for 1.
    """

    own: Prefix
    name: str
    term: Tensor
    out: Tensor
    fn: Expr | None
    factor: Expr | None
    backwards: bool


def lower(spec: Prefix, schedule: Schedule) -> Lowered:
    """x ``[B,N,heads]`` -> out ``[B,N,heads]`` fp32."""
    shape = ("B", spec.length, spec.heads)
    term, out = Tensor(spec.x, spec.dtype, shape), Tensor(spec.out, "float32", shape)
    return _lowered(Sweep(spec, spec.name, term, out, spec.fn, None, False), schedule)


def lower_grad(spec: PrefixGrad, schedule: Schedule) -> Lowered:
    """grad ``[B,N,heads]`` fp32, x -> grad_x ``[B,N,heads]``."""
    own = spec.forward
    shape = ("B", own.length, own.heads)
    term, out = Tensor(spec.grad, "float32", shape), Tensor(spec.grad_x, spec.out_dtype, shape)
    return _lowered(Sweep(own, spec.name, term, out, None, derivative(own.fn, X), True), schedule)


def _lowered(s: Sweep, schedule: Schedule) -> Lowered:
    if schedule.block & (schedule.block - 1):
        raise ScheduleError(f"block {schedule.block} is not a power of two; tokens are read in tiles of 1, 2, 4, …")
    sums = Tensor(f"{s.name}_sums", "float32", ("B", TILES, s.own.heads))
    steps = tuple(Step(program, schedule) for program in (_tiles(s, sums, schedule), _tokens(s, sums, schedule)))
    tiles = (var(s.own.length) + (schedule.block - 1)) // schedule.block
    return Lowered(steps, (as_scratch(sums),), ((TILES, tiles),))


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of tokens of some heads."""

    batch: Node
    token: Node
    head: Node
    tokens: Axis
    bounds: dict[int, tile.Value]


def _tile(builder: tile.Builder, s: Sweep, schedule: Schedule) -> Tile:
    tokens, heads = builder.axis("n", schedule.block), builder.axis("h", _heads(s.own))
    first, length = mul(tile.program_id(0), schedule.block), tile.param(s.own.length)
    at = tile.iota(tokens)
    token = add(first, sub(tile.const(schedule.block - 1), at) if s.backwards else at)
    head = add(mul(tile.program_id(1), heads.size), tile.iota(heads))
    return Tile(tile.program_id(2), token, head, tokens, {1: length, 2: s.own.heads})


def _heads(spec: Prefix) -> int:
    return min(16, 1 << (spec.heads - 1).bit_length())


def _terms(s: Sweep, at: Tile) -> Node:
    """The terms of the tile's tokens; 0 past the last one."""
    read = tile.cast(tile.load(s.term, at.batch, at.token, at.head, bounds=dict(at.bounds)), "float32")
    found = read if s.fn is None else emit(s.fn, {"x0": read})
    return tile.apply(Fn.WHERE, tile.apply(Fn.LT, at.token, tile.param(s.own.length)), found, 0.0)


def _program(s: Sweep, schedule: Schedule, name: str, body: Callable[[Tile], Sequence[Tensor]]) -> Program:
    """One (tile of tokens, tile of heads, batch) per grid point; ``body`` gives the tensors that it touched."""
    with tile.Builder() as builder:
        tensors = body(_tile(builder, s, schedule))
        names = dict.fromkeys(["B", "TQ", "TK", "q_offset", s.own.length, TILES])
        grid = (tile.param(TILES), tile.const(-(-s.own.heads // _heads(s.own))), tile.param("B"))
        return builder.program(name, list(tensors), [(n, "int32") for n in names], grid)


def _tiles(s: Sweep, sums: Tensor, schedule: Schedule) -> Program:
    def body(at: Tile) -> Sequence[Tensor]:
        total = tile.reduce("sum", _terms(s, at), at.tokens)
        tile.store(sums, at.batch, tile.program_id(0), at.head, value=total, bounds={2: s.own.heads})
        return [s.term, sums]

    return _program(s, schedule, f"{s.name}_tiles", body)


def _tokens(s: Sweep, sums: Tensor, schedule: Schedule) -> Program:
    def body(at: Tile) -> Sequence[Tensor]:
        mine, tiles = tile.program_id(0), tile.param(TILES)
        lo, hi = (add(mine, 1), tiles) if s.backwards else (tile.const(0), mine)

        def visit(n: Node, total: Node) -> Sequence[Node]:
            return [add(total, tile.load(sums, at.batch, n, at.head, bounds={2: s.own.heads}))]

        (before,) = tile.loop(lo, hi, 1, [tile.cast(mul(at.head, 0), "float32")], visit)
        found = add(tile.scan(_terms(s, at), at.tokens), before)
        tensors = [s.term, sums, s.out]
        if s.factor is not None:
            x = Tensor(s.own.x, s.own.dtype, s.out.shape)
            own = tile.cast(tile.load(x, at.batch, at.token, at.head, bounds=dict(at.bounds)), "float32")
            found, tensors = mul(found, emit(s.factor, {"x0": own})), [*tensors, x]
        place = (at.batch, at.token, at.head)
        tile.store(s.out, *place, value=tile.cast(found, s.out.dtype), bounds=dict(at.bounds))
        return tensors

    return _program(s, schedule, s.name, body)


def default(spec: Prefix | PrefixGrad, target: str) -> Schedule:
    """Tiles of 256 tokens: the kernel only moves memory."""
    triton = target.startswith("triton")
    return Schedule(block=256 if triton else 64, warps=4, stages=1, lanes=("h",), split_dims=triton)


def space(spec: Prefix | PrefixGrad, target: str) -> dict[str, tuple[object, ...]]:
    """Tokens per tile, and warps."""
    blocks = (64, 128, 256, 512)
    return {"block": blocks, "warps": (2, 4, 8)} if target.startswith("triton") else {"block": blocks}
