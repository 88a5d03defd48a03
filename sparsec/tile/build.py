"""Constructors of tile nodes: shapes (axis sets) and dtypes are inferred and checked here and nowhere else.

Usage: ``with Builder() as b: …; program = b.program(...)``. Nodes are interned per builder, so that equal values are
one node and the same lowering gives the same program, node for node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.scalar.fn import ARITY, COMPARISONS, LOGIC, Fn
from sparsec.tile.builder import FLOATS, Builder, TileError, Value, const, lift
from sparsec.tile.language import Access, Axis, LoopBody, Node, Tensor, TileOp

__all__ = [
    "FLOATS",
    "Builder",
    "TileError",
    "Value",
    "apply",
    "cast",
    "children",
    "const",
    "dot",
    "full",
    "iota",
    "lift",
    "load",
    "loop",
    "mask_if",
    "param",
    "program_id",
    "reachable",
    "reduce",
    "region",
    "rename",
    "scan",
    "store",
    "top_insert",
    "union",
]

_WIDTH = {"bool": 0, "int32": 1, "int64": 2, "bfloat16": 3, "float16": 3, "float32": 4}


def union(*values: Node) -> tuple[Axis, ...]:
    """The axes of all values, in printed order."""
    return tuple(sorted({axis for v in values for axis in v.axes}, key=lambda axis: axis.rank))


def param(name: str, dtype: str = "int32", declare: bool = False) -> Node:
    """A scalar launch argument; ``declare`` adds it to the program's own, where those do not name it."""
    if declare:
        Builder.current().declared.setdefault(name, dtype)
    return Builder.current().node(TileOp.PARAM, attrs=(name,), dtype=dtype)


def program_id(dimension: int) -> Node:
    """The position in the grid."""
    return Builder.current().node(TileOp.PROGRAM_ID, attrs=(dimension,), dtype="int32")


def iota(axis: Axis) -> Node:
    """0, 1, … along an axis."""
    return Builder.current().node(TileOp.IOTA, dtype="int32", axes=(axis,))


def full(value: float, *axes: Axis, dtype: str = "float32") -> Node:
    """A constant tile."""
    ordered = tuple(sorted(axes, key=lambda axis: axis.rank))
    return Builder.current().node(TileOp.FULL, attrs=(value,), dtype=dtype, axes=ordered)


def _result_dtype(fn: Fn, xs: Sequence[Node]) -> str:
    if fn in COMPARISONS or (fn in LOGIC and xs[0].dtype == "bool"):
        return "bool"
    if fn in (Fn.RANK, Fn.RANK_ID, Fn.RANK_SCORE):
        return {Fn.RANK: "int64", Fn.RANK_ID: "int32", Fn.RANK_SCORE: "float32"}[fn]
    operands = xs[1:] if fn is Fn.WHERE else xs
    return max((x.dtype for x in operands), key=lambda d: _WIDTH[d])


def apply(fn: Fn, *values: Value) -> Node:
    """An elementwise function over the union of the operands' axes."""
    if len(values) != ARITY[fn]:
        raise TileError(f"{fn.value} takes {ARITY[fn]} operands, not {len(values)}")
    operands = values[1:] if fn is Fn.WHERE else values
    nodes = [v for v in operands if isinstance(v, Node)] or [v for v in values if isinstance(v, Node)]
    like = max(nodes, key=lambda n: _WIDTH[n.dtype]) if nodes else None
    xs = [lift(v, None if fn is Fn.WHERE and k == 0 else like) for k, v in enumerate(values)]
    simple = _fold(fn, xs)
    return simple or Builder.current().node(TileOp.MAP, xs, (fn,), _result_dtype(fn, xs), union(*xs))


_FOLDS: dict[Fn, Callable[[int, int], int]] = {
    Fn.ADD: lambda x, y: x + y,
    Fn.SUB: lambda x, y: x - y,
    Fn.MUL: lambda x, y: x * y,
    Fn.MINIMUM: min,
    Fn.MAXIMUM: max,
    Fn.TRUNCDIV: lambda x, y: int(x / y),
    Fn.TRUNCMOD: lambda x, y: x - int(x / y) * y,
}


def _fold(fn: Fn, xs: Sequence[Node]) -> Node | None:
    """Integer constant folding and neutral elements; floats are left as written."""
    if not all(x.dtype in ("int32", "int64") for x in xs) or len(xs) != 2:
        return None
    a, b = (x.attrs[0] if x.op is TileOp.CONST else None for x in xs)
    if isinstance(a, int) and isinstance(b, int):
        return const(_FOLDS[fn](a, b), xs[0].dtype) if fn in _FOLDS else None
    if (b == 0 and fn in (Fn.ADD, Fn.SUB)) or (b == 1 and fn in (Fn.MUL, Fn.TRUNCDIV)):
        return xs[0]
    if (a == 0 and fn is Fn.ADD) or (a == 1 and fn is Fn.MUL):
        return xs[1]
    return None


def mask_if(condition: Node, mask: Node, x: Node, other: float) -> Node:
    """``x``, with ``other`` where ``mask`` is false, if the scalar ``condition`` holds; back ends may branch on it."""
    if condition.axes:
        raise TileError(f"mask_if: the condition must be a scalar, not {condition!r}")
    args = (condition, mask, x, lift(other, x))
    return Builder.current().node(TileOp.MASK_IF, args, (), x.dtype, union(mask, x))


def load(
    tensor: Tensor, *index: Value, bounds: dict[int, Value] | None = None, other: float | None = 0.0, evict: str = ""
) -> Node:
    """Elements of a tensor; see ``Access`` for indices, bounds (dimension -> limit) and what lies outside."""
    args, access = _access(tensor, index, bounds, other, False, evict)
    return Builder.current().node(TileOp.LOAD, args, (access,), tensor.dtype, union(*args))


def store(
    tensor: Tensor, *index: Value, value: Node, bounds: dict[int, Value] | None = None, atomic: bool = False,
    evict: str = "",
) -> None:  # fmt: skip
    """Write a tile of the tensor's dtype; ``atomic`` adds instead."""
    args, access = _access(tensor, index, bounds, None, atomic, evict)
    if value.dtype != tensor.dtype:
        raise TileError(f"store to {tensor.name}: the value is {value.dtype}, the tensor {tensor.dtype}; cast it first")
    builder = Builder.current()
    builder.effect(
        builder.node(TileOp.STORE, (*args, value), (access, builder._serial), tensor.dtype, union(*args, value))
    )


def _access(
    tensor: Tensor, index: Sequence[Value], bounds: dict[int, Value] | None, other: float | None, atomic: bool,
    evict: str,
) -> tuple[tuple[Node, ...], Access]:  # fmt: skip
    if len(index) != tensor.rank:
        raise TileError(f"{tensor.name} has {tensor.rank} dimensions, {len(index)} indices given")
    limits = bounds or {}
    args = (*(lift(i) for i in index), *(lift(limits[d]) for d in sorted(limits)))
    return args, Access(tensor, tuple(sorted(limits)), other, atomic, evict)


def dot(a: Node, b: Node, over: Axis, acc: Node | None = None, precision: str = "ieee") -> Node:
    """Products summed over ``over`` in fp32 (plus ``acc``); precision of fp32 operands: ieee, tf32 or tf32x3."""
    shared = set(a.axes) & set(b.axes)
    if shared != {over}:
        raise TileError(f"dot over {over.name}: {a!r} and {b!r} must share exactly that axis")
    axes = tuple(x for x in union(a, b) if x != over)
    if acc is not None and acc.axes != axes:
        raise TileError(f"dot over {over.name}: the accumulator has axes {acc!r}")
    args = (a, b) if acc is None else (a, b, acc)
    return Builder.current().node(TileOp.DOT, args, (over, precision), "float32", axes)


def reduce(kind: str, x: Node, over: Axis) -> Node:
    """Sum, max or min along an axis."""
    if over not in x.axes or kind not in ("sum", "max", "min"):
        raise TileError(f"reduce {kind} over {over.name} of {x!r}")
    return Builder.current().node(TileOp.REDUCE, (x,), (kind, over), x.dtype, tuple(a for a in x.axes if a != over))


def scan(x: Node, over: Axis) -> Node:
    """Inclusive running sum along an axis."""
    if over not in x.axes:
        raise TileError(f"scan over {over.name} of {x!r}")
    return Builder.current().node(TileOp.SCAN, (x,), (over,), x.dtype, x.axes)


def rename(x: Node, old: Axis, new: Axis) -> Node:
    """The same tile under another axis of equal size."""
    if old not in x.axes or old.size != new.size or new in x.axes:
        raise TileError(f"rename {old} -> {new} of {x!r}")
    axes = tuple(sorted((new if a == old else a for a in x.axes), key=lambda a: a.rank))
    return Builder.current().node(TileOp.RENAME, (x,), (old, new), x.dtype, axes)


def cast(x: Node, dtype: str) -> Node:
    """Round to another dtype (nearest even)."""
    return x if x.dtype == dtype else Builder.current().node(TileOp.CAST, (x,), (dtype,), dtype, x.axes)


def top_insert(keys: Node, new: Node, slots: Axis, candidates: Axis) -> Node:
    """The ``slots.size`` largest of the kept and the new int64 rank keys, descending along ``slots``."""
    if slots not in keys.axes or candidates not in new.axes or keys.dtype != "int64" or new.dtype != "int64":
        raise TileError(f"top_insert: keys {keys!r} {keys.dtype}, new {new!r} {new.dtype}")
    return Builder.current().node(TileOp.TOP_INSERT, (keys, new), (slots, candidates), "int64", keys.axes)


def loop(
    lo: Value,
    hi: Value,
    step: int,
    inits: Sequence[Node],
    body: Callable[..., Sequence[Node]],
    stages: int | None = None,
) -> list[Node]:
    """A counted loop with carried values; see ``Builder.loop``."""
    return Builder.current().loop(lo, hi, step, inits, body, stages)


def children(node: Node) -> tuple[Node, ...]:
    """Everything a node reads, a loop's body included."""
    if node.op is not TileOp.LOOP:
        return node.args
    body = node.attrs[0]
    assert isinstance(body, LoopBody)
    return (*node.args, body.index, *body.carries, *body.yields, *body.effects)


def reachable(roots: Sequence[Node]) -> list[Node]:
    """All nodes that the roots need, in order of creation."""
    seen: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.serial not in seen:
            seen[node.serial] = node
            stack.extend(children(node))
    return [seen[k] for k in sorted(seen)]


def region(node: Node) -> int:
    """The innermost loop on which a node depends; -1 outside all loops."""
    return max(node.free, default=-1)
