"""The result of each op from its sources and attributes: shape, kind, dtype. One row per op."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.ir.adjoint import handed_back, key_of, targets
from sparsec.ir.align import aligned
from sparsec.ir.node import Kind, Node, Shape
from sparsec.ir.op import Op
from sparsec.ir.scores import ONE, ceil_div, key_heads, read_heads, unit_size, units
from sparsec.scalar.expr import Expr, constant, var

Result = tuple[Shape, Kind, str]

ZERO = constant(0)
B = var("B")


def _input(node: Node) -> Result:
    shape = node["shape"]
    assert isinstance(shape, tuple)
    return tuple(dim for dim in shape if isinstance(dim, Expr)), "tensor", str(node["dtype"])


def _map(node: Node) -> Result:
    shape: Shape = ()
    for other in aligned(node):
        shape = _broadcast(shape, other)
    return shape, "tensor", node.src[0].dtype


def _broadcast(one: Shape, other: Shape) -> Shape:
    """The shape of two tensors aligned at their last dims."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    ahead = len(longer) - len(shorter)
    return (*longer[:ahead], *(b if a is ONE else a for a, b in zip(longer[ahead:], shorter, strict=True)))


def _aux(node: Node) -> Result:
    """KL has one number per list, so that the caller weighs queries; other signals are scalars."""
    return (node.src[0].shape[:3] if node["fn"] == "kl" else ()), "tensor", "float32"


def _memory(node: Node) -> Result:
    k = node.src[0]
    batched = k.shape if len(k.shape) == 4 else (ONE, *k.shape)
    return (*batched, node.src[1].shape[-1] if len(node.src) > 1 else ZERO), "memory", k.dtype


def _summary(node: Node) -> Result:
    b, length, heads, d, dv = node.src[0].shape
    values = dv if node["fields"] == "kv" else ZERO
    return (b, ceil_div(length, node.integer("stride")), heads, d, values), "memory", node.src[0].dtype


def _state(node: Node) -> Result:
    b = node.src[0].shape[0] if node.src and len(node.src[0].shape) == 5 else B
    dims = [ONE if (dim := node.expr(name)) is None else dim for name in ("heads", "rows", "cols")]
    return (b, constant(node.integer("parts")), *dims), "state", "float32"


def _score(node: Node) -> Result:
    q, keys = node.src[:2]
    heads = ONE if node["fn"] == "indexer" else q.shape[2]
    columns = {"state": ONE, "memory": keys.shape[1], "tensor": keys.shape[-3]}[keys.kind]
    return (*q.shape[:2], heads, columns), "scores", "float32"


def _reduce(node: Node) -> Result:
    scores, over = node.src[0], node["over"]
    b, queries, heads, columns = scores.shape
    if over == "overlap":
        block, stride = node.integer("block"), node.integer("stride")
        columns = units(scores, block, block // stride)
    if over == "blocks":
        stride = node.integer("stride")
        columns = units(scores, (unit_size(scores) or 1) * stride, stride)
    if over in ("group", "heads"):
        heads = key_heads(scores) if over == "group" else ONE
    return (b, ONE if over == "queries" else queries, heads, columns), "scores", "float32"


def _topk(node: Node) -> Result:
    return (*node.src[0].shape[:3], constant(node.integer("slots"))), "selection", "int32"


def _attend(node: Node) -> Result:
    q, memory = node.src[:2]
    return (*q.shape[:3], memory.shape[4]), "tensor", q.dtype


def _recall(node: Node) -> Result:
    q, state = node.src[:2]
    return (*q.shape[:2], read_heads(q, state), state.shape[3 if node["turned"] else 4]), "tensor", q.dtype


def _vjp(node: Node) -> Result:
    target = targets(node.src[0])[key_of(node)]
    return target.shape, "cotangent" if handed_back(node) else "tensor", target.dtype


def _first(node: Node) -> Result:
    return node.src[0].shape, node.src[0].kind, node.src[0].dtype


def _second(node: Node) -> Result:
    return node.src[1].shape, node.src[1].kind, node.src[1].dtype


INFER: dict[Op, Callable[[Node], Result]] = {
    Op.INPUT: _input,
    Op.MAP: _map,
    Op.PREFIX: lambda node: (node.src[0].shape, "tensor", "float32"),
    Op.TOKENS: _memory,
    Op.SLOTS: _memory,
    Op.SUMMARY: _summary,
    Op.STATE: _state,
    Op.WRITE: _first,
    Op.RESIDUAL: _first,
    Op.SURPRISE: lambda node: ((*node.src[0].src[1].shape[:2], *node.src[0].shape[2::2]), "tensor", "float32"),
    Op.NORM2: lambda node: (node.src[0].shape[:-1], "tensor", "float32"),
    Op.ROW_LSE: lambda node: (node.src[0].shape[:-1], "tensor", "float32"),
    Op.MASS: lambda node: (node.src[0].shape, "tensor", "float32"),
    Op.EVICT: lambda node: (node.src[0].shape[:3], "tensor", "int32"),
    Op.TRANSFER: _second,
    Op.SCORE: _score,
    Op.BIAS: _first,
    Op.REDUCE: _reduce,
    Op.MASK: lambda node: ((), "selection", "int32"),
    Op.TOPK: _topk,
    Op.MEMBERS: lambda node: ((node.src[0].shape[0], node.src[0].src[0].shape[3]), "tensor", "int32"),
    Op.GIVEN: lambda node: (node.src[0].shape, "selection", "int32"),
    Op.WEIGHTS: lambda node: (node.src[1].shape, "tensor", "float32"),
    Op.ATTEND: _attend,
    Op.RECALL: _recall,
    Op.MIXTURE: lambda node: ((*node.src[0].shape[:3], constant(len(node.positional) - 1)), "tensor", "float32"),
    Op.LSE: lambda node: (node.src[0].shape[:3], "tensor", "float32"),
    Op.MERGE: _first,
    Op.AUX: _aux,
    Op.VJP: _vjp,
}
"""Called on a node whose sources and attributes are already checked."""
