"""The value of a scalar node of launch parameters, as the grid of a program is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sparsec.scalar.fn import Fn
from sparsec.tile.language import Node, Program, TileOp

_INTEGER: dict[Fn, Callable[[int, int], int]] = {
    Fn.ADD: lambda a, b: a + b,
    Fn.SUB: lambda a, b: a - b,
    Fn.MUL: lambda a, b: a * b,
    Fn.TRUNCDIV: lambda a, b: int(a / b),
    Fn.TRUNCMOD: lambda a, b: a - int(a / b) * b,
    Fn.MINIMUM: min,
    Fn.MAXIMUM: max,
}


def scalar_value(node: Node, params: Mapping[str, int]) -> int:
    """An integer scalar node under given launch parameters."""
    if node.op is TileOp.CONST:
        return int(node.attrs[0])  # type: ignore[call-overload, no-any-return]
    if node.op is TileOp.PARAM:
        return params[str(node.attrs[0])]
    assert node.op is TileOp.MAP and isinstance(node.attrs[0], Fn), node
    return _INTEGER[node.attrs[0]](*(scalar_value(a, params) for a in node.args))


def grid_of(program: Program, params: Mapping[str, int]) -> tuple[int, ...]:
    """How many programs run along each grid dimension."""
    return tuple(scalar_value(g, params) for g in program.grid)
