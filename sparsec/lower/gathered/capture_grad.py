"""The gradient of a tensor that the bias of attention over chosen chunks reads: zeros, and a walk that adds to them.

A program per token and tile of heads walks the token's list. What pairs of a row share is summed over the row first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.lower.gathered import chunk_grad, chunks, grad, grad_schedules
from sparsec.lower.gathered.chunk_grad import Scored
from sparsec.lower.gathered.query_outer import chunk_at, count, row_tile, scores_at, tiles
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, clamped, emit, mul
from sparsec.lower.tiled import zeros
from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import depends_on, postorder
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

Adding = Callable[[Node, Node, Sequence[Node]], list[Node]]
"""What keys, their ds and rows' totals so far make of the totals."""


@dataclass(frozen=True, slots=True)
class Use:
    """An element that the bias reads, and the bias's derivative by it."""

    element: Expr
    change: Expr

    def by(self, name: str) -> bool:
        """Whether pairs that differ in a variable read different elements."""
        return any(depends_on(x, name) for x in self.element.args)


def lower(spec: GatheredGradCapture, schedule: Schedule) -> Lowered:
    """grad ``[B,TQ,H,DV]`` -> grad_capture, fp32 of the capture's shape."""
    grad_schedules.check(spec.forward, schedule, ("query_outer",))
    out = Tensor(spec.grad_capture, "float32", spec.shape)
    cleared = zeros.program(f"{spec.name}_zeros", out, _params(spec))
    return Lowered((Step(cleared, schedule, flat=True), Step(_walk(spec, schedule, out), schedule)))


def _params(spec: GatheredGradCapture) -> list[tuple[str, str]]:
    names = dict.fromkeys([*chunks.PARAMS, *(n for n in spec.shape if isinstance(n, str))])
    return [(name, "int32") for name in names]


def _uses(spec: GatheredGradCapture) -> list[Use]:
    bias = spec.forward.bias
    assert bias is not None, "a bias reads the capture"
    elements = [x for x in postorder(bias) if x.head == "element" and x.value == spec.capture]
    return [Use(x, derivative(bias, x)) for x in elements]


def _walk(spec: GatheredGradCapture, schedule: Schedule, out: Tensor) -> Program:
    """One (token, tile of heads, batch) per grid point."""
    forward = spec.forward
    own = GatheredGradQ(spec.name, forward, spec.grad, spec.delta, None, None, spec.grad_dtype, "float32")
    with tile.Builder() as builder:
        rows, at = row_tile(builder, forward, schedule, tile.program_id(1))
        pull, tensors = grad.begin(builder, own, schedule, rows, at, None)
        _add_list(pull, _uses(spec), out)
        grid = (tile.param("TQ"), tile.const(tiles(forward, schedule)), tile.param("B"))
        return builder.program(spec.name, [*tensors.values(), out], _params(spec), grid)


def _add_list(pull: grad.Pull, uses: Sequence[Use], out: Tensor) -> None:
    """All pairs of a token: additions on the way where keys read elements of their own, else rows' totals."""
    f = pull.f
    kept = [use for use in uses if not use.by("j")]

    def adding(key: Node, ds: Node, totals: Sequence[Node]) -> list[Node]:
        for use in (use for use in uses if use.by("j")):
            value, env = chunk_grad.by_change(f, key, ds, use.change)
            _add(pull, use, env, value, out)
        values = [chunk_grad.by_change(f, key, ds, use.change)[0] for use in kept]
        return [add(t, tile.reduce("sum", x, f.keys)) for t, x in zip(totals, values, strict=True)]

    start = [tile.full(0.0, f.rows.axis) for _ in kept]
    totals = (_joint if f.spec.per == "joint" else _per_chunk)(pull, start, adding)
    for use, total in zip(kept, totals, strict=True):
        _add(pull, use, f.env, total, out)


def _joint(pull: grad.Pull, start: list[Node], adding: Adding) -> list[Node]:
    """Under one softmax of all chosen chunks."""
    f, parts = pull.f, chunks.parts(pull.f)

    def visit(n: Node, *totals: Node) -> Sequence[Node]:
        part = tile.apply(Fn.TRUNCMOD, n, parts) if parts > 1 else tile.const(0)
        scored = scores_at(f, chunk_at(f, tile.apply(Fn.TRUNCDIV, n, parts)), part)
        return adding(scored[0], chunk_grad.joint(f, pull.a, scored)[1], totals)

    return tile.loop(0, mul(count(f), parts), 1, start, visit, f.schedule.stages)


def _per_chunk(pull: grad.Pull, start: list[Node], adding: Adding) -> list[Node]:
    """Under a softmax inside each chunk."""
    f = pull.f
    assert f.spec.weights is not None, "a softmax per chunk needs weights"
    weights = f.tensors[f.spec.weights]

    def visit(slot: Node, *totals: Node) -> Sequence[Node]:
        chunk = chunk_at(f, slot)
        listed = tile.load(weights, f.batch, f.rows.token, f.listed, slot)
        weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chunk), listed, 0.0)
        found = chunk_grad.own_softmax(f, pull.a, lambda part: scores_at(f, chunk, part))

        def part_step(part: Node, *inner: Node) -> Sequence[Node]:
            scored: Scored = scores_at(f, chunk, part)
            return adding(scored[0], chunk_grad.own(f, pull.a, found, scored, weight)[1], inner)

        if chunks.parts(f) == 1:
            return part_step(tile.const(0), *totals)
        return tile.loop(0, chunks.parts(f), 1, list(totals), part_step, f.schedule.stages)

    stages = f.schedule.stages if chunks.parts(f) == 1 else None
    return tile.loop(0, count(f), 1, start, visit, stages)


def _add(pull: grad.Pull, use: Use, env: dict[str, Node], value: Node, out: Tensor) -> None:
    """Add to the element that was read: the nearest, where an index lies outside. What is hidden has nothing to add."""
    f = pull.f
    if not use.by("h"):
        value = tile.reduce("sum", value, f.rows.axis)
    index = clamped(out, [emit(x, env, f.tensors) for x in use.element.args])
    bounds: dict[int, tile.Value] = dict(enumerate(zeros.extents(out)))
    tile.store(out, *index, value=value, bounds=bounds, atomic=True)
