"""Traced expressions as tile nodes: the same arithmetic, on whole tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsec.lower.widths import may_be_zero, narrow, whole, wide
from sparsec.plan.specs import DIM, Capture
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.ranges import INT32
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor

NONNEGATIVE = frozenset({"j", "c", "b", "h", "TQ", "TK", "B"})
"""Variables that are never negative, so that rounding down is truncation."""


def captured(captures: tuple[Capture, ...]) -> dict[str, Tensor]:
    """The tensors that expressions may read, by name."""
    return {c.name: Tensor(c.name, c.dtype, c.shape or _unstated(c.name, c.rank)) for c in captures}


def _unstated(name: str, rank: int) -> tuple[str, ...]:
    """Extents that no launch parameter has."""
    return tuple(f"{name}_n{d}" for d in range(rank))


def emit(expr: Expr, env: Mapping[str, Node], tensors: Mapping[str, Tensor] | None = None) -> Node:
    """``expr`` with its variables replaced by tiles; elements of captured tensors become loads."""
    if expr.head == "const":
        assert isinstance(expr.value, (int, float))
        dtype = "int64" if expr.kind == "int" and not narrow(whole(expr)) else None
        return tile.const(int(expr.value) if expr.kind == "bool" else expr.value, dtype)
    if expr.head == "var":
        name = str(expr.value)
        return tile.param(name, declare=True) if name.startswith(DIM) else env[name]
    args = [emit(a, env, tensors) for a in expr.args]
    if expr.head == "element":
        assert tensors is not None
        return _element(tensors[str(expr.value)], args)
    assert isinstance(expr.head, Fn)
    args = _of_one_width(expr, args)
    if expr.head in (Fn.FLOORDIV, Fn.MOD) and expr.kind == "int":
        if may_be_zero(expr.args[1]):  # by zero is by one, as in the oracle
            args[1] = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, args[1], 0), 1, args[1])
        found = _floor(expr.head, args[0], args[1], nonnegative(expr.args[0]) and nonnegative(expr.args[1]))
    else:
        found = tile.apply(expr.head, *args)
    return tile.cast(found, "int32") if found.dtype == "int64" and narrow(whole(expr)) else found


def _of_one_width(expr: Expr, args: list[Node]) -> list[Node]:
    """Integer operands in 64 bits where the result or one of them needs them; as fp32 among floats."""
    if expr.kind == "int" and wide(expr):
        return [tile.cast(a, "int64") if a.dtype == "int32" else a for a in args]
    if all(a.dtype != "int64" for a in args):
        return args
    other = "float32" if any(a.dtype == "float32" for a in args) else "int64"
    return [tile.cast(a, other) if a.dtype in ("int32", "int64") else a for a in args]


def emit_int32(expr: Expr, env: Mapping[str, Node], tensors: Mapping[str, Tensor] | None = None) -> Node:
    """As ``emit``, for a bound: what leaves int32 is the nearest that does not."""
    found = emit(expr, env, tensors)
    if found.dtype != "int64":
        return found
    low, high = (tile.const(limit, "int64") for limit in (-INT32, INT32 - 1))
    return tile.cast(tile.apply(Fn.MINIMUM, tile.apply(Fn.MAXIMUM, found, low), high), "int32")


def emit_scores(expr: Expr, env: Mapping[str, Node], tensors: Mapping[str, Tensor] | None, like: Node) -> Node:
    """As ``emit``, in fp32 over every axis of ``like``, also where the expression is a whole number or reads less."""
    value = tile.cast(emit(expr, env, tensors), "float32")
    everywhere = all(axis in value.axes for axis in like.axes)
    return value if everywhere else tile.apply(Fn.ADD, value, tile.full(0.0, *like.axes))


def _element(tensor: Tensor, index: list[Node]) -> Node:
    """One element per point, floats as fp32. An index outside reads the nearest element, or 0 where there is none."""
    inside = clamped(tensor, index)
    bounds: dict[int, tile.Value] = {d: tile.param(str(n), declare=True) for d, n in _lengths(tensor)}
    value = tile.load(tensor, *inside, bounds=bounds, other=0.0 if bounds else None)
    return tile.cast(value, "float32") if value.dtype in ("float16", "bfloat16") else value


def clamped(tensor: Tensor, index: list[Node]) -> list[Node]:
    """The nearest indices that a captured tensor has, as far as its extents are stated."""
    inside: list[Node] = []
    for i, extent, open_ in zip(index, tensor.shape, _unstated(tensor.name, tensor.rank), strict=True):
        if extent != open_:
            size = tile.const(extent) if isinstance(extent, int) else tile.param(extent, declare=True)
            i = tile.apply(Fn.MINIMUM, i, tile.apply(Fn.SUB, size, 1))
        inside.append(tile.apply(Fn.MAXIMUM, i, 0))
    return inside


def _lengths(tensor: Tensor) -> list[tuple[int, str]]:
    """The extents of a captured tensor that may be 0: all that a launch parameter has, but for the batch."""
    stated = zip(tensor.shape, _unstated(tensor.name, tensor.rank), strict=True)
    return [(d, n) for d, (n, open_) in enumerate(stated) if isinstance(n, str) and n not in (open_, "B")]


def _floor(fn: Fn, a: Node, b: Node, exact: bool) -> Node:
    """Division and remainder that round down, from the truncating ones."""
    if exact:
        return tile.apply(Fn.TRUNCDIV if fn is Fn.FLOORDIV else Fn.TRUNCMOD, a, b)
    remainder = tile.apply(Fn.TRUNCMOD, tile.apply(Fn.ADD, tile.apply(Fn.TRUNCMOD, a, b), b), b)
    if fn is Fn.MOD:
        return remainder
    return tile.apply(Fn.TRUNCDIV, tile.apply(Fn.SUB, a, remainder), b)


def nonnegative(expr: Expr) -> bool:
    """True where the expression can be seen to be at least zero."""
    if expr.head == "const":
        return not isinstance(expr.value, str) and expr.value is not None and expr.value >= 0
    if expr.head == "var":
        return expr.value in NONNEGATIVE or str(expr.value).startswith(DIM)
    if expr.head in (Fn.ADD, Fn.MUL, Fn.FLOORDIV, Fn.MINIMUM):
        return all(nonnegative(a) for a in expr.args)
    return expr.head is Fn.MOD or (expr.head is Fn.MAXIMUM and any(nonnegative(a) for a in expr.args))


def add(a: Node | int, b: Node | int) -> Node:
    """a + b."""
    return tile.apply(Fn.ADD, a, b)


def sub(a: Node | int, b: Node | int) -> Node:
    """a - b."""
    return tile.apply(Fn.SUB, a, b)


def mul(a: Node | float, b: Node | float) -> Node:
    """a * b."""
    return tile.apply(Fn.MUL, a, b)


def least(a: Node | int, b: Node | int) -> Node:
    """min(a, b)."""
    return tile.apply(Fn.MINIMUM, a, b)


def most(a: Node | float, b: Node | float) -> Node:
    """max(a, b)."""
    return tile.apply(Fn.MAXIMUM, a, b)


def ceil_div(a: Node, b: int) -> Node:
    """ceil(a / b) of a non-negative a."""
    return tile.apply(Fn.TRUNCDIV, add(a, b - 1), b)


def nan_highest(x: Node) -> Node:
    """Numbers that can be compared, a NaN as infinity: it ranks highest, is chosen and shows."""
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, x, x), x, math.inf)


def both(a: Node, b: Node | None) -> Node:
    """a & b; a alone where b is None."""
    return a if b is None else tile.apply(Fn.AND, a, b)
