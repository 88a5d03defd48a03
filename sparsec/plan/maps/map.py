"""Maps: a kernel of their own where something reads one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.ir.align import lifted
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import ONE
from sparsec.plan.maps.map_specs import Map, MapSource, Row, Shape, symbol
from sparsec.plan.planner import Planner
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import substitute, variables

LENGTH = "N"
"""The launch parameter with the number of tokens."""
MOST_DIMS = 4


def mapped(planner: Planner, node: Node, name: str | None = None) -> str:
    """The buffer of a map, planned on first use; by default it is called as the node."""
    if (node, "tensor") in planner.places:
        return planner.places[node, "tensor"]
    read = sources(planner, node)
    names = [planner.input(s.node) for s in read]
    dtype = "float32" if node in planner.exact else planner.sizes.dtype_of(node)
    out = planner.fresh(name or planner.name(node), node.shape, dtype)
    planner.places[node, "tensor"] = out
    inner = [s.through for s in read if s.through is not None]
    planner.inlined |= dict.fromkeys(inner, node)
    fn = substitute(_fn(node), {s.variable: _inside(s, n) for n, s in enumerate(read)})
    plan_map(planner, node, out, [(b, s.node, s.row) for b, s in zip(names, read, strict=True)], fn, inner)
    return out


@dataclass(frozen=True, slots=True)
class Read:
    """What a map reads for one of its variables.

    Attributes:
        variable: x0, x1, …
        node: the tensor.
        row: the row function that it goes through.
        through: the map of the tensor that is computed on the way, whose value the variable has; None for none.
    """

    variable: str
    node: Node
    row: Row
    through: Node | None = None


def sources(planner: Planner, node: Node) -> list[Read]:
    """What the kernel of a map reads, in order: a map of one tensor with a row function that nobody else reads is
    computed on the way."""
    return [_read(planner, node, k) for k in range(len(node.src)) if f"x{k}" in variables(_fn(node))]


def _read(planner: Planner, node: Node, number: int) -> Read:
    source, name = node.src[number], f"x{number}"
    alone = source.op is Op.MAP and len(source.src) == 1 and planner.readers[source] == 1
    if alone and node["row"] == "none" and (source, "tensor") not in planner.places:
        return Read(name, source.src[0], _row(source), source)
    return Read(name, source, _row(node))


def _row(node: Node) -> Row:
    top = node["top"]
    return Row(node.word("row"), top if isinstance(top, int) else 0)


def _inside(read: Read, number: int) -> Expr:
    """The value of a variable over that of the tensor that is read for it."""
    return symbol(number) if read.through is None else substitute(_fn(read.through), {"x0": symbol(number)})


def _fn(node: Node) -> Expr:
    fn = node.expr("fn")
    assert fn is not None
    return fn


def plan_map(
    planner: Planner,
    node: Node,
    out: str,
    read: Sequence[tuple[str, Node, Row]],
    fn: Expr,
    inner: Sequence[Node] = (),
    align: str = "none",
) -> None:
    """Add the kernel of a function of buffers, each shaped like a node and with its row function, to a buffer.

    ``inner`` are the maps that it computes on the way to ``node``; ``align`` is as that of a map, which has its own.
    """
    dims: dict[str, Expr] = {}
    shape = extents(planner, node, node.shape, dims)
    heads = align == "heads"
    found = tuple(
        _source(planner, node, name, source, row, dims, heads and len(source.shape) < len(node.shape))
        for name, source, row in read
    )
    dims |= {"TQ": dims.get(LENGTH, ONE), "TK": planner.token_length}
    closed = planner.close(fn, dims)
    assert closed is not None
    spec = Map(f"map_{out}", found, out, shape, planner.buffers[out].dtype, closed)
    planner.specs[node] = spec
    planner.add(spec, [s.name for s in found], [out], [*inner, node], dims)


def _source(
    planner: Planner, node: Node, name: str, source: Node, row: Row, dims: dict[str, Expr], alone: bool
) -> MapSource:
    dtype = planner.buffers[name].dtype
    if not dtype.startswith(("float", "bfloat")):
        raise planner.refuse(node, f"`{name}` is {dtype}; kernels map floats: convert it before the call")
    alone = alone or lifted(node, source)
    shape = extents(planner, node, (*source.shape, ONE) if alone else source.shape, dims)
    return MapSource(name, dtype, shape, row.fn, alone, row.top)


def extents(planner: Planner, node: Node, shape: Sequence[Expr], dims: dict[str, Expr]) -> Shape:
    """A shape as numbers, "B" and the one length, which joins ``dims``."""
    if not 1 <= len(shape) <= MOST_DIMS:
        raise planner.refuse(node, f"has {len(shape)} dims; a kernel maps tensors of 1 to {MOST_DIMS}: reshape it")
    return tuple(_extent(planner, node, dim, d == len(shape) - 1, dims) for d, dim in enumerate(shape))


def _extent(planner: Planner, node: Node, dim: Expr, last: bool, dims: dict[str, Expr]) -> int | str:
    closed = planner.sizes.close(dim)
    assert closed is not None
    if closed.head == "const":
        return int(closed.value or 0)
    if last:
        raise planner.refuse(node, f"has {dim} as its last dim, a length; give it heads or columns after it (1, say)")
    if str(closed) == "B":
        return "B"
    if dims.setdefault(LENGTH, dim) is not dim:
        raise planner.refuse(node, f"has two lengths, {dims[LENGTH]} and {dim}; a kernel maps along one")
    return LENGTH
