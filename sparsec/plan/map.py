"""Maps: a kernel of their own where something reads one."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.ir.node import Node
from sparsec.ir.scores import ONE
from sparsec.plan.map_specs import Map, MapSource, Shape, symbol
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
    fn = node.expr("fn")
    assert fn is not None
    read = [k for k in range(len(node.src)) if f"x{k}" in variables(fn)]
    names = [planner.input(node.src[k]) for k in read]
    dtype = "float32" if node in planner.exact else planner.sizes.dtype_of(node)
    out = planner.fresh(name or planner.name(node), node.shape, dtype)
    planner.places[node, "tensor"] = out
    fn = substitute(fn, {f"x{k}": symbol(n) for n, k in enumerate(read)})
    plan_map(planner, node, out, [(b, node.src[k]) for b, k in zip(names, read, strict=True)], fn, node.word("row"))
    return out


def plan_map(
    planner: Planner, node: Node, out: str, sources: Sequence[tuple[str, Node]], fn: Expr, row: str = "none"
) -> None:
    """Add the kernel of a function of buffers, each shaped like a node; its result is that of ``node``."""
    dims: dict[str, Expr] = {}
    shape = extents(planner, node, node.shape, dims)
    read = tuple(_source(planner, node, name, source, dims) for name, source in sources)
    dims |= {"TQ": dims.get(LENGTH, ONE), "TK": planner.token_length}
    closed = planner.close(fn, dims)
    assert closed is not None
    spec = Map(f"map_{out}", read, out, shape, planner.buffers[out].dtype, closed, row)
    planner.specs[node] = spec
    planner.add(spec, [s.name for s in read], [out], [node], dims)


def _source(planner: Planner, node: Node, name: str, source: Node, dims: dict[str, Expr]) -> MapSource:
    dtype = planner.buffers[name].dtype
    if not dtype.startswith(("float", "bfloat")):
        raise planner.refuse(node, f"`{name}` is {dtype}; kernels map floats: convert it before the call")
    return MapSource(name, dtype, extents(planner, node, source.shape, dims))


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
