"""The gradient of a tensor that biases of tiled attention read: zeros, to which every query tile adds what it finds.

What an element gets is summed over a tile first, as far as the tile's pairs share the element: one addition per
program where its index reads heads and batch only, one per row where it reads no keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, clamped, emit, mul
from sparsec.lower.tiled import grad as tiled_grad
from sparsec.lower.tiled import query_walk, zeros
from sparsec.lower.tiled.query_walk import Meeting, Walk
from sparsec.lower.tiled.score import bias_change, pair_env
from sparsec.plan.grad_specs import TiledGradCapture
from sparsec.plan.specs import Piece
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import depends_on, postorder
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Use:
    """An element that a bias reads, and the bias's derivative by it."""

    element: Expr
    change: Expr

    @property
    def by_row(self) -> bool:
        """Whether queries read different elements."""
        return any(depends_on(x, "i") for x in self.element.args)

    @property
    def by_key(self) -> bool:
        """Whether keys read different elements."""
        return any(depends_on(x, "j") for x in self.element.args)


def lower(spec: TiledGradCapture, schedule: Schedule) -> Lowered:
    """Zeros, then one (query tile, head, batch) per grid point."""
    out = Tensor(spec.grad_capture, "float32", spec.shape)
    cleared = zeros.program(f"{spec.name}_zeros", out, _params(spec))
    return Lowered((Step(cleared, schedule, flat=True), Step(_main(spec, schedule, out), schedule)))


def _params(spec: TiledGradCapture) -> list[tuple[str, str]]:
    known = [name for name, _ in tiled_grad.params(spec.forward)]
    return [(name, "int32") for name in dict.fromkeys([*known, *(n for n in spec.shape if isinstance(n, str))])]


def _uses(piece: Piece, capture: str) -> list[Use]:
    bias = piece.bias
    if bias is None:
        return []
    elements = [x for x in postorder(bias) if x.head == "element" and x.value == capture]
    return [Use(x, derivative(bias, x)) for x in elements]


def _main(spec: TiledGradCapture, schedule: Schedule, out: Tensor) -> Program:
    forward = spec.forward
    pieces = [p for p in forward.pieces if _uses(p, spec.capture)]
    with tile.Builder() as builder:
        at = query_walk.begin(builder, spec, pieces, schedule)
        for piece in pieces:
            _read(at, piece, _uses(piece, spec.capture), out)
        grid = query_walk.grid(spec, schedule)
        return builder.program(spec.name, [*at.w.tensors.values(), out], _params(spec), grid)


def _read(at: Walk, piece: Piece, uses: Sequence[Use], out: Tensor) -> None:
    """All keys of one piece: rows' totals where keys share an element, additions on the way where they do not."""
    kept = [use for use in uses if not use.by_key]

    def consume(met: Meeting, totals: Sequence[Node]) -> list[Node]:
        for use in uses:
            if use.by_key:
                value = _found(at, piece, met, use)
                _add(at, out, use, met.pairs.env, value if use.by_row else tile.reduce("sum", value, at.w.rows))
        values = [_found(at, piece, met, use) for use in kept]
        return [add(t, tile.reduce("sum", x, at.w.keys)) for t, x in zip(totals, values, strict=True)]

    totals = query_walk.walk(at, piece, [tile.full(0.0, at.w.rows) for _ in kept], consume)
    for use, total in zip(kept, totals, strict=True):
        env = pair_env(piece, at.queries.env, tile.const(0))
        _add(at, out, use, env, total if use.by_row else tile.reduce("sum", total, at.w.rows))


def _found(at: Walk, piece: Piece, met: Meeting, use: Use) -> Node:
    """What the pairs of a tile add to their elements."""
    pairs = met.pairs
    assert pairs.logit is not None
    change = bias_change(at.w.forward, piece, use.change, pairs.product, pairs.env, at.w.tensors)
    return mul(pairs.logit, pairs.seen(change))


def _add(at: Walk, out: Tensor, use: Use, env: dict[str, Node], value: Node) -> None:
    """Add to the element that was read: the nearest, where an index lies outside. What is hidden has nothing to add."""
    index = clamped(out, [emit(x, env, at.w.tensors) for x in use.element.args])
    bounds: dict[int, tile.Value] = dict(enumerate(zeros.extents(out)))
    tile.store(out, *index, value=value, bounds=bounds, atomic=True)
