"""Rules of scoring and selecting. A rule looks at a node with checked sources and gives what is wrong, or None."""

from __future__ import annotations

from typing import NamedTuple

from sparsec.ir.node import Node
from sparsec.ir.scores import ONE, clash, key_heads, unit_size


class Problem(NamedTuple):
    """A broken rule: the offending value, the rule, a fix."""

    value: str
    rule: str
    fix: str


def dims(node: Node) -> str:
    """A node's shape as it is written."""
    return f"{node.op.value} [{', '.join(str(dim) for dim in node.shape)}]"


def rank(node: Node, *ranks: int) -> Problem | None:
    """The number of dims of a tensor."""
    if len(node.shape) in ranks:
        return None
    wanted = " or ".join(str(r) for r in ranks)
    return Problem(
        dims(node),
        f"this source must have {wanted} dims",
        "declare it so, with 1 for a dim that it lacks, and reshape it",
    )


def score(node: Node) -> Problem | None:
    """Queries and keys have one head dim; the indexer has weights per head."""
    q, keys = node.positional
    if wrong := rank(q, 4) or (rank(keys, 3, 4) if keys.kind == "tensor" else None):
        return wrong
    key_dim = keys.shape[-1] if keys.kind == "tensor" else keys.shape[3]
    if clash(q.shape[-1], key_dim):
        return Problem(
            f"head dims {q.shape[-1]} and {key_dim}", "queries and keys have one head dim", "name it alike in both"
        )
    if wrong := grouped(q.shape[2], key_heads(node)):
        return wrong
    if (node["fn"] == "indexer") != ("head_weights" in node.operands):
        return Problem(
            f"fn = {node['fn']}", "fn = indexer, and it alone, sums heads by `head_weights`", "add or drop them"
        )
    if node["fn"] == "indexer" and key_heads(node) is not ONE:
        return Problem(f"keys of {key_heads(node)} heads", "an indexer has one key per token", "keys [B,N,1,D]")
    return None


def grouped(heads: object, kv_heads: object) -> Problem | None:
    """Query heads are a multiple of key/value heads; names are checked when dims bind."""
    from sparsec.scalar.expr import Expr

    assert isinstance(heads, Expr) and isinstance(kv_heads, Expr)
    if heads.head == kv_heads.head == "const" and int(heads.value or 0) % max(int(kv_heads.value or 0), 1):
        return Problem(
            f"H = {heads}, HKV = {kv_heads}", "H must be divisible by HKV", "share each key/value head evenly"
        )
    return None


_REDUCE_NEEDS = {"overlap": {"size", "stride", "block"}, "blocks": {"kernel", "stride"}}
_REDUCE_MAY = {"overlap": {"size", "stride", "block", "importance"}, "blocks": {"kernel", "stride", "padding"}}


def reduce(node: Node) -> Problem | None:
    """Pooling needs its sizes, and a block holds whole strides."""
    over = str(node["over"])
    stated = {name for name in ("size", "stride", "block", "kernel", "padding", "importance") if node[name] is not None}
    needs, may = _REDUCE_NEEDS.get(over, set()), _REDUCE_MAY.get(over, set())
    if needs - stated:
        return Problem(f"over = {over}", f"{', '.join(sorted(needs - stated))} must be given", "state it in tokens")
    if stated - may:
        return Problem(", ".join(sorted(stated - may)), f"means nothing for over = {over}", "leave it out")
    if over == "overlap" and node["op"] != "sum":
        return Problem(f"op = {node['op']}", "over = overlap is a sum over the summaries of a block", "op = sum")
    if node["visible"] is not None and node["pre"] != "softmax" and over != "blocks":
        rule = "it says what the softmax before the reduction sees, or a pool of blocks"
        return Problem(f"visible = {node['visible']}", rule, "pre = softmax")
    return _whole_strides(node) if over == "overlap" else None


def _whole_strides(node: Node) -> Problem | None:
    stride = node.integer("stride")
    for name in ("block", "size"):
        if node.integer(name) % stride:
            value = f"{name} = {node[name]}, stride = {stride}"
            return Problem(
                value, f"{name} must be divisible by the summary stride", f"{name} = {_round_up(node, name)}"
            )
    return None


def _round_up(node: Node, name: str) -> int:
    stride = node.integer("stride")
    return -(-node.integer(name) // stride) * stride


def topk(node: Node) -> Problem | None:
    """k fits what is fixed; the scope is what the scores have; a unit is what a column of the scores stands for."""
    scores, k, slots = node.src[0], node.integer("k"), node["slots"]
    columns = scores.shape[-1]
    if columns.head == "const" and k > int(columns.value or 0):
        return Problem(f"k = {k}", f"there are only {columns} to choose from", f"k = {columns} or less")
    if not isinstance(slots, int):
        return Problem(
            f"slots = {slots}", "with count_forced = false the list's length must be given", f"slots = {k} + forced"
        )
    if slots < k or (node["count_forced"] and slots != k):
        return Problem(
            f"slots = {slots}, k = {k}", "the list holds k and no more than the forced besides", f"slots = {k}"
        )
    if (node["fanout"] is None) != ("within" not in node.operands):
        return Problem(f"fanout = {node['fanout']}", "children are chosen `within` a selection of parents", "give both")
    return _scope(node) or _unit(node)


def _scope(node: Node) -> Problem | None:
    scores, scope = node.src[0], str(node["scope"])
    heads = scores.shape[2]
    if scope in ("token", "query_set") and heads is not ONE:
        return Problem(f"scope = {scope}", f"the scores still have {heads} heads", "reduce them over = heads first")
    if scope == "query_set" and scores.shape[1] is not ONE:
        return Problem(
            f"scope = {scope}", f"the scores still have {scores.shape[1]} queries", "reduce them over = queries first"
        )
    if scope == "kv_head" and key_heads(scores) is not ONE and clash(heads, key_heads(scores)):
        value = f"scope = {scope}, scores of {heads} heads, keys of {key_heads(scores)}"
        return Problem(value, "a key/value head has one list", "reduce the scores over = group, or scope = head")
    return None


def _unit(node: Node) -> Problem | None:
    size, stands_for = node.integer("size"), unit_size(node.src[0])
    if node["unit"] == "chunk" and stands_for not in (None, size):
        return Problem(
            f"size = {size}", f"a column of these scores stands for {stands_for} tokens", f"size = {stands_for}"
        )
    if node["unit"] != "chunk" and size != 1:
        return Problem(f"size = {size}", f"a {node['unit']} is one unit", "leave size out")
    return None


def members(node: Node) -> Problem | None:
    """Only a list that all queries share says for all of them which units are in it."""
    selection = node.src[0]
    if selection.op is selection.op.TOPK and selection["scope"] == "query_set":
        return None
    return Problem(selection.op.value, "the list is one that all queries share", "topk(scores) {scope = query_set}")


def given(node: Node) -> Problem | None:
    """Indices are int32 [B,TQ,HS,K], counts int32 [B,TQ,HS]."""
    for source, dims_wanted in zip(node.src, (4, 3), strict=False):
        if source.dtype != "int32":
            return Problem(
                f"{dims(source)} {source.dtype}", "indices and counts are int32", "declare the input as int32"
            )
        if wrong := rank(source, dims_wanted):
            return wrong
    return None


def weights(node: Node) -> Problem | None:
    """One weight per chosen unit; stick-breaking wants the newest first."""
    scores, selection = node.src
    if selection.op not in (selection.op.TOPK, selection.op.GIVEN):
        return Problem(selection.op.value, "weights belong to a list of chosen units", "select with topk or given")
    if not node["renormalise"] and (node["fn"] != "softmax" or selection.op is not selection.op.TOPK):
        value = f"renormalise = false, fn = {node['fn']}, a {selection.op.value}"
        return Problem(value, "only a softmax over what a topk may choose has a sum beyond the chosen", "fn = softmax")
    if node["fn"] == "stick" and selection["order"] != "newest":
        return Problem(f"order = {selection['order']}", "stick-breaking runs from the newest chunk", "order = newest")
    if clash(scores.shape[2], selection.shape[2]):
        value = f"scores of {scores.shape[2]} heads, a selection of {selection.shape[2]}"
        return Problem(value, "both have one scope", "use the scores that were selected from")
    return None
