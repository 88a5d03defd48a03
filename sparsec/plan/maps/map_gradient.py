"""The adjoint of a map: the gradients of all its sources that are asked for, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.maps.map import Read, mapped, sources
from sparsec.plan.maps.map_specs import Map, MapGrad, needed
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source

ROUNDED = (Op.ATTEND, Op.MERGE)
"""Ops whose adjoints read the gradient of their output in the dtype of the inputs."""


def map_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel that computes all asked adjoints of one map; each gets its buffer."""
    node, cotangent = vjp.positional[:2]
    if node in planner.inlined:
        node, cotangent = cotangent.positional[:2]
    mapped(planner, node)
    forward = planner.specs[node]
    assert isinstance(forward, Map)
    exact = len(node.shape) < 4 or node in planner.exact or cotangent in planner.inner
    grad = source(cotangent, "float32" if exact else planner.sizes.dtype_of(node))
    asked = [_asked(planner, node, cotangent, read) for read in sources(planner, node)]
    grads = tuple(None if found is None else _buffer(planner, found[-1]) for found in asked)
    outs = [g[0] for g in grads if g is not None]
    spec = MapGrad(f"grad_{'_'.join(outs)}", forward, grad, planner.buffers[grad].dtype, grads)
    covers = [v for found in asked if found is not None for v in found]
    planner.follow(node, spec, [*(s.name for s in needed(spec)), grad], outs, covers)


def _asked(planner: Planner, node: Node, cotangent: Node, read: Read) -> Sequence[Node] | None:
    """The adjoint of one source, and that of a map on the way to it, whose result is what is asked for."""
    own = _adjoint(planner, node, cotangent, read.variable)
    if own is None or read.through is None:
        return None if own is None else [own]
    inner = _adjoint(planner, read.through, own, "x0")
    return None if inner is None else [own, inner]


def _adjoint(planner: Planner, node: Node, cotangent: Node, of: str) -> Node | None:
    found = (v for v in planner.vjps if v.src[0] is node and v.positional[1] is cotangent and v["of"] == of)
    return next(found, None)


def _buffer(planner: Planner, vjp: Node) -> tuple[str, str]:
    """The result of an adjoint, with the dtype of the source, or with that of the kernel that reads it."""
    dtype = planner.sizes.dtype_of(vjp)
    if vjp in planner.inner:
        readers = [v for v in planner.vjps if v.positional[1] is vjp]
        dtype = planner.sizes.dtype if any(v.src[0].op in ROUNDED for v in readers) else "float32"
    return planner.temporary(vjp, "tensor", vjp.shape, dtype), dtype
