"""The ops that a query row goes through, each on the rows in hand; one row of the table per op."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from sparsec.ir.adjoint import passes_straight
from sparsec.ir.align import lifted
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle import merge
from sparsec.oracle.attends import attend, kl, lse, modified
from sparsec.oracle.selection import Choice, Order, Reduction, reduce_queries
from sparsec.oracle.values import Chosen, Mask, Memory, OracleError, Output, Value
from sparsec.oracle.weights import WeightFn
from sparsec.oracle.whole import map_function

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def score(ev: Evaluation, node: Node) -> Tensor:
    """scale · fn(q, key) -> ``[B,R,H,N]``."""
    q, fn = ev.rows(node.src[0]), node.word("fn")
    keys = _keys(ev, node.src[1], q.shape[0])
    if node["rounding"] == "storage" and ev.storage is not None and node.src[1].op is Op.SUMMARY:
        keys = keys.to(ev.storage).to(keys.dtype)
    if node.flag("detach"):
        q, keys = q.detach(), keys.detach()
    if fn == "cosine":
        found = ev.form.cosine(q, keys)
    elif fn == "indexer":
        head_weights = ev.rows(node.operands["head_weights"])
        found = ev.form.indexer(q, keys, head_weights.detach() if node.flag("detach") else head_weights)
    elif fn in ("dot", "router"):
        found = ev.form.dot(q, keys)
    else:
        raise OracleError(f"score fn = {fn}: the oracle has no meaning for it yet; use dot, cosine, indexer or router")
    return found * ev.number(node.expr("scale"))


def _keys(ev: Evaluation, node: Node, batch: int) -> Tensor:
    value = ev.whole(node)
    keys = value.k if isinstance(value, Memory) else ev.tensor(node)
    return keys.expand(batch, *keys.shape[-3:])


def bias(ev: Evaluation, node: Node) -> Tensor:
    """A traced function of the scores and of b, h, i, j."""
    return modified(ev, node, "fn", ev.rows(node.src[0]))


def reduce(ev: Evaluation, node: Node) -> Tensor:
    """Fewer heads or fewer columns, after a softmax per head where the node asks for it."""
    if node.word("over") == "queries":
        return reduce_queries(ev.tensor(node.src[0]), cast(Reduction, node.word("op")))
    value, op = ev.rows(node.src[0]), cast(Reduction, node.word("op"))
    if node.word("pre") == "softmax":
        value = ev.form.softmax(value, ev.predicate(node, "visible", value.shape, True))
    columns = ev.dim(node.shape[3])
    if node.word("over") in ("group", "heads"):
        return ev.form.reduce_heads(value, ev.dim(node.shape[2]), op)
    if node.word("over") == "overlap":
        size, stride, block = (node.integer(name) for name in ("size", "stride", "block"))
        return ev.form.overlap(value, columns, size, stride, block, node.word("importance") == "paper_literal")
    if node.word("over") == "blocks":
        if node["pre"] == "none":
            value = torch.where(ev.predicate(node, "visible", value.shape, True), value, -torch.inf)
        padding = node.integer("padding") if node["padding"] is not None else 0
        return ev.form.pool(value, columns, node.integer("kernel"), node.integer("stride"), padding, op)
    raise AssertionError(node.word("over"))


def mask(ev: Evaluation, node: Node) -> Mask:
    """The predicate over b, h, i, j, evaluated for as many heads as its reader has."""
    where = node.expr("where")
    assert where is not None
    columns, captured, i = _length(ev, node.src[0]), ev.captured(node), ev.positions[:, None, None]

    def visible(heads: int) -> Tensor:
        value = ev.expression(where, {**ev.places(heads, columns, ev.batch), "i": i, **captured})
        return value.expand(ev.batch, i.shape[0], heads, columns)

    return Mask(visible)


def _length(ev: Evaluation, memory: Node) -> int:
    value = ev.whole(memory)
    assert isinstance(value, Memory)
    return value.k.shape[1]


def topk(ev: Evaluation, node: Node) -> Chosen:
    """The best k of the eligible, forced members first; runs on detached scores.

    Queries of a block (rows, counted from row 0) share the list of its first one.
    """
    first = ev.index // node.integer("query_block") * node.integer("query_block")
    if not torch.equal(first, ev.index):
        shared = ev.at([node], first)[0]
        assert isinstance(shared, Chosen)
        return shared
    value = ev.rows(node.src[0]).detach()
    eligible = ev.predicate(node, "eligible", value.shape, True)
    if "within" in node.operands:
        eligible = eligible & _children(ev, node, value)
    forced = ev.predicate(node, "forced", value.shape, False) & eligible
    rule = node.flag("count_forced"), cast(Order, node["order"])
    ids = ev.form.choose(value, eligible, forced, Choice(node.integer("k"), node.integer("slots"), *rule))
    passed = _straight(ev.rows(node.src[0]), ids) if passes_straight(node) else None
    return Chosen(ids, node.integer("size"), value, eligible, forced, passed)


def _straight(score: Tensor, ids: Tensor) -> Tensor:
    """1 for every slot, with the slope of the slot's score (the straight-through estimator, arXiv 1308.3432)."""
    if not score.shape[-1]:
        return score.new_ones(ids.shape)
    own = torch.where(ids < 0, 0.0, score.gather(-1, ids.clamp(min=0)))
    return 1 + torch.where(own.detach().isfinite(), own - own.detach(), 0.0)


def _children(ev: Evaluation, node: Node, scores: Tensor) -> Tensor:
    """Units whose parent, unit // fanout, is in the list above, which lists of several heads may share."""
    parents = ev.part(node.operands["within"])
    assert isinstance(parents, Chosen)
    parent = torch.arange(scores.shape[-1], device=ev.device) // node.integer("fanout")
    ids = parents.ids.repeat_interleave(scores.shape[2] // parents.ids.shape[2], 2)
    return (ids[..., None] == parent).any(-2)


def given(ev: Evaluation, node: Node) -> Chosen:
    """Indices from outside, a row for every block of queries; slots from `counts` on hold nothing."""
    row = ev.index // node.integer("query_block")
    ids = ev.tensor(node.src[0]).index_select(1, row).to(torch.int64)
    if "counts" in node.operands:
        counts = ev.tensor(node.operands["counts"]).index_select(1, row)
        ids = torch.where(torch.arange(ids.shape[-1], device=ids.device) < counts[..., None], ids, -1)
    ordered = ids.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise OracleError(f"{ev.name(node.src[0])}: a list names a unit twice; a list is a set, so name each unit once")
    return Chosen(ids, node.integer("size"))


def weights(ev: Evaluation, node: Node) -> Tensor:
    """Weights ``[B,R,HS,K]`` of the chosen; the selection says whether their gradient reaches the scores."""
    value, chosen = ev.rows(node.src[0]), ev.part(node.src[1])
    assert isinstance(chosen, Chosen)
    straight = passes_straight(node.src[1])
    if not straight and dict(node.src[1].attrs).get("selector_gradient", "through_weights") != "through_weights":
        value = value.detach()
    fn = cast(WeightFn, node.word("fn"))
    if fn.startswith("softmax") and not node.flag("renormalise"):
        assert fn == "softmax" and node.src[1].op is Op.TOPK, (
            "only a softmax over what could be chosen has no sum of its own"
        )
        value, fn = ev.form.softmax(value, ev.predicate(node.src[1], "eligible", value.shape, True)), "raw"
    found = ev.form.weigh(value, chosen.ids, fn)
    if not straight:
        return found
    return (chosen.ids >= 0) + torch.where(found.detach().isfinite(), found - found.detach(), 0.0)


def merged(ev: Evaluation, node: Node) -> Output:
    """Branches merged row by row; gates follow the outputs among the sources."""
    fn, count = node.word("fn"), len(node.src)
    outputs = {"gated": count // 2, "convex": 2, "weighted": count - 1}.get(fn, count)
    values = [ev.rows(source) for source in node.src]
    values, gates = values[:outputs], values[outputs:]
    if fn == "lse":
        parts = [ev.part(source) for source in node.src]
        return Output(*merge.merge_lse(values, [p.lse for p in parts if isinstance(p, Output) and p.lse is not None]))
    if fn == "weighted":
        gates = list(gates[0].unbind(-1))
    if fn in ("gated", "weighted"):
        return Output(merge.merge_gated(values, gates), None)
    if fn == "convex":
        return Output(merge.merge_convex(values, gates[0]), None)
    if fn == "sum":
        return Output(merge.sum_of(values), None)
    raise OracleError(f"merge fn = {fn}: the oracle has no meaning for it yet")


def mapped(ev: Evaluation, node: Node) -> Tensor:
    """A map of which some sources are rows in hand; the others are broadcast against them from the last dim."""
    sources = []
    for source in node.src:
        ahead = len(node.shape) - len(source.shape) - lifted(node, source)
        x = ev.rows(source) if ahead == 0 else ev.tensor(source)
        sources.append(x.index_select(0, ev.index) if ahead == 1 and x.shape[0] > 1 else x)
    return map_function(ev, node, sources)


ROWS: dict[Op, Callable[[Evaluation, Node], Value]] = {
    Op.SCORE: score,
    Op.BIAS: bias,
    Op.REDUCE: reduce,
    Op.MASK: mask,
    Op.TOPK: topk,
    Op.GIVEN: given,
    Op.WEIGHTS: weights,
    Op.ATTEND: attend,
    Op.LSE: lse,
    Op.MERGE: merged,
    Op.MAP: mapped,
    Op.AUX: kl,
}
