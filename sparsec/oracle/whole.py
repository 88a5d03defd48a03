"""The ops that are computed once for all query rows: inputs, memories, maps of inputs; one row of the table per op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from sparsec.ir.align import lifted
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle.adjoint import vjp
from sparsec.oracle.aux import aux, transfer
from sparsec.oracle.evict import evict
from sparsec.oracle.state_ops import STATES
from sparsec.oracle.summary import summarise
from sparsec.oracle.values import Chosen, Memory, OracleError, Value

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation

L2_EPSILON = 1e-6


def absent(ev: Evaluation, node: Node) -> Value:
    """Inputs are given; one that is computed is missing."""
    raise OracleError(f"input `{node['name']}` is missing; give a tensor of shape [{', '.join(map(str, node.shape))}]")


def tokens(ev: Evaluation, node: Node) -> Memory:
    """Keys and, where there are any, values of a sequence."""
    k, *v = (ev.tensor(source) for source in node.src)
    return Memory(k, v[0] if v else None)


def slots(ev: Evaluation, node: Node) -> Memory:
    """Persistent vectors; learned ones serve every batch entry."""
    k, v = (ev.tensor(source) for source in node.src)
    return Memory(*(x[None] if x.ndim == 3 else x for x in (k, v)))


def summary(ev: Evaluation, node: Node) -> Memory:
    """One key, and one value where asked, per window of tokens."""
    memory, fn, windows = ev.whole(node.src[0]), node.word("fn"), (node.integer("size"), node.integer("stride"))
    assert isinstance(memory, Memory)
    pooling = cast(Literal["mean", "max"], "mean" if fn == "given" else fn)
    keys = ev.tensor(node.src[1]) if fn == "given" else summarise(memory.k, *windows, pooling)
    if node.word("fields") == "k":
        return Memory(keys, None)
    assert memory.v is not None
    return Memory(keys, summarise(memory.v, *windows, pooling))


def mapped(ev: Evaluation, node: Node) -> Tensor:
    """A traced function of whole tensors."""
    return map_function(ev, node, [ev.tensor(source) for source in node.src])


def map_function(ev: Evaluation, node: Node, sources: Sequence[Tensor]) -> Tensor:
    """The row function of each source, then the traced function of all, broadcast from the last dim."""
    found = [x[..., None] if lifted(node, s) else x for x, s in zip(sources, node.src, strict=True)]
    env = {f"x{n}": _row(node, x) for n, x in enumerate(found)}
    fn = node.expr("fn")
    assert fn is not None
    shape = torch.broadcast_shapes(*(x.shape for x in found))
    return ev.expression(fn, env).expand(shape)


def _row(node: Node, x: Tensor) -> Tensor:
    """The row function of one source; of equal elements the lower index is chosen first."""
    top, row = node["top"], node.word("row")
    if not isinstance(top, int):
        return _ROW[row](x)
    best = x.detach().sort(dim=-1, descending=True, stable=True).indices[..., :top]
    chosen = torch.zeros_like(x).scatter(-1, best, 1.0)
    return chosen if row == "chosen" else torch.softmax(torch.where(chosen > 0, x, -torch.inf), dim=-1)


def prefix(ev: Evaluation, node: Node) -> Tensor:
    """The running sum over tokens of a traced function."""
    fn = node.expr("fn")
    assert fn is not None
    x = ev.tensor(node.src[0])
    return ev.expression(fn, {"x0": x}).expand(x.shape).cumsum(1)


def members(ev: Evaluation, node: Node) -> Tensor:
    """1 for every unit in a list that all queries share, 0 for the others."""
    chosen, count = ev.whole(node.src[0]), ev.dim(node.shape[1])
    assert isinstance(chosen, Chosen)
    return (chosen.ids.flatten(1)[..., None] == torch.arange(count, device=ev.device)).any(1).to(torch.int32)


_ROW: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "l2norm": lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPSILON),
}

WHOLE: dict[Op, Callable[[Evaluation, Node], Value]] = {
    Op.INPUT: absent,
    Op.TOKENS: tokens,
    Op.SLOTS: slots,
    Op.SUMMARY: summary,
    Op.MAP: mapped,
    Op.MEMBERS: members,
    Op.EVICT: evict,
    Op.PREFIX: prefix,
    **STATES,
    Op.TRANSFER: transfer,
    Op.AUX: aux,
    Op.VJP: vjp,
}
