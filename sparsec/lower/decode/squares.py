"""Squares of rows, worked out by programs that have the rows: a launch less.

load(square[b, n, h])  ->  Σ_d load(x[b, n, h, d])²
"""

from __future__ import annotations

from typing import TypeGuard

from sparsec.lower.scalars import mul
from sparsec.plan.grad_specs import AnySpec, RowDot
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accesses, rewrite


def squares(spec: AnySpec) -> TypeGuard[RowDot]:
    """Whether a kernel finds the squares of rows and nothing else."""
    return isinstance(spec, RowDot) and spec.out == spec.grad and spec.lse_grad is None and spec.sink_grad is None


def has_rows(program: Program, spec: RowDot) -> bool:
    """Whether a program that reads squares reads rows of what they are squares of."""
    return _rows(program, spec) is not None


def with_squares(program: Program, spec: RowDot) -> Program:
    """The program with the sums in place of what it read."""
    found = _rows(program, spec)
    assert found is not None
    tensor, axis = found

    def rule(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op is not TileOp.LOAD or access_of(node).tensor.name != spec.delta:
            return None
        access = access_of(node)
        rank = access.tensor.rank
        bounds: dict[int, tile.Value] = dict(zip(access.bounded, args[rank:], strict=True))
        x = tile.cast(tile.load(tensor, *args[:rank], tile.iota(axis), bounds=bounds), "float32")
        return tile.reduce("sum", mul(x, x), axis)

    return rewrite(program, rule, [t for t in program.tensors if t.name != spec.delta])


def _rows(program: Program, spec: RowDot) -> tuple[Tensor, Axis] | None:
    """The tensor of the rows in a program, and the axis along which it has them."""
    for node, access in accesses(program):
        *place, last = node.args[: access.tensor.rank]
        of_rows = node.op is TileOp.LOAD and access.tensor.name == spec.out and not any(n.axes for n in place)
        if of_rows and last.op is TileOp.IOTA and last.axes[0].size == spec.value_dim:
            return access.tensor, last.axes[0]
    return None
