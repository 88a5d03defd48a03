"""Equivalences of the variants used as rewrites, each in the direction that costs less."""

from __future__ import annotations

from itertools import combinations

from sparsec.ir.build import merge
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.scores import is_list
from sparsec.ir.variant import Variant
from sparsec.passes.alter import altered, mask_after, with_selections
from sparsec.passes.canonicalise import one_mask, open_mask, predicate, single_branch
from sparsec.passes.disjoint import disjoint
from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.walk import substitute


def simplify(variant: Variant) -> Variant:
    """Drops what costs time and changes nothing.

    merge(attend(q, m, mask p), attend(q, m, mask r)){lse}  ->  attend(q, m, mask p | r)      p and r exclude each other
    attend(q, m, topk(s){k = all of N, eligible})  ->  attend(q, m, mask eligible)            MoBA with k = every block
    attend(…, sink=map(x){0.0})  ->  attend(…){sink = zero}                                   off-by-one softmax
    reduce(s){over = overlap, size = stride = block}  ->  s        summary(m){size = stride = 1}  ->  m
    """
    return variant.with_outputs(rewrite(variant.outputs, RULES))


def one_softmax(node: Node) -> Node | None:
    """The log-sum-exp merge of attends to disjoint parts of one memory is one softmax over both parts."""
    if node.op is not Op.MERGE or node["fn"] != "lse":
        return None
    for one, two in combinations(range(len(node.src)), 2):
        if (both := _joined(node.src[one], node.src[two])) is not None:
            # By position: a branch that is named twice counts twice.
            rest = [both if at == one else source for at, source in enumerate(node.src) if at != two]
            return merge(*rest, fn="lse") if len(rest) > 1 else both
    return None


def _joined(first: Node, other: Node) -> Node | None:
    """One attend for two that differ in their masks alone, if no key is in both."""
    masks = _only_mask(first), _only_mask(other)
    if masks[0] is None or masks[1] is None or first is other:
        return None
    if with_selections(first, []) is not with_selections(other, []) or masks[0].captures or masks[1].captures:
        return None
    one, two = (predicate(m) for m in masks if m is not None)
    if not disjoint(one, two) or not banded(one | two):
        return None
    return with_selections(first, [mask_after(masks[0], first.src[1], one | two)])


def banded(where: Expr) -> bool:
    """Whether a mask is read by the bounds of its bands; one that is not needs a block list, and is left alone."""
    found = key_ranges(where)
    return isinstance(found, Bounded) and not any(r.sparse_residual for r in found.ranges)


def _only_mask(node: Node) -> Node | None:
    """The single mask of a dense joint attend without a sink."""
    if node.op is not Op.ATTEND or node["per"] != "joint" or node["sink"] != "none" or node.captures:
        return None
    selections = node.positional[2:]
    return selections[0] if len(selections) == 1 and not is_list(selections[0]) else None


def everything_chosen(node: Node) -> Node | None:
    """A list with a slot for every unit admits what is eligible: a mask, and no scores."""
    if node.op is not Op.ATTEND or node["per"] != "joint":
        return None
    for selection in node.positional[2:]:
        if selection.op is Op.TOPK and _chooses_all(selection):
            where = eligible_tokens(selection)
            kept = [s for s in node.positional[2:] if s is not selection]
            return with_selections(node, [*kept, mask_after(selection, node.src[1], where)])
    return None


def _chooses_all(topk: Node) -> bool:
    units = topk.src[0].shape[3]
    fixed = units.head == "const" and topk.integer("k") >= int(units.value or 0)
    return fixed and not topk.operands and topk.integer("query_block") == 1


def eligible_tokens(topk: Node) -> Expr:
    """The eligibility of units as a predicate over tokens: token j is in unit j // size."""
    eligible = topk.expr("eligible")
    return constant(True) if eligible is None else substitute(eligible, {"c": var("j") // topk.integer("size")})


def zero_sink(node: Node) -> Node | None:
    """A sink whose logits are the constant 0 is the off-by-one softmax."""
    sink = node.operands.get("sink") if node.op is Op.ATTEND else None
    if sink is None or sink.op is not Op.MAP:
        return None
    fn = sink.expr("fn")
    return (
        altered(node, {"sink": None}, sink="zero") if fn is not None and fn.head == "const" and fn.value == 0 else None
    )


def same_blocks(node: Node) -> Node | None:
    """Pooling whose blocks are the columns themselves."""
    if node.op is not Op.REDUCE or node["pre"] != "none":
        return None
    sizes = {name: node[name] for name in ("size", "stride", "block", "kernel", "padding")}
    overlap = node["over"] == "overlap" and sizes["size"] == sizes["stride"] == sizes["block"]
    blocks = node["over"] == "blocks" and sizes["kernel"] == sizes["stride"] == 1 and not sizes["padding"]
    return node.src[0] if overlap or blocks else None


def single_tokens(node: Node) -> Node | None:
    """score(q, summary(m){size = stride = 1})  ->  score(q, m): a window of one token is the token."""
    if node.op is not Op.SCORE:
        return None
    keys = node.src[1]
    if keys.op is not Op.SUMMARY or keys["size"] != 1 or keys["fn"] == "given":
        return None
    return altered(node, positional=(node.src[0], keys.src[0]))


# A rewrite here may leave two masks, an open mask or a merge of one behind: what canonicalise removes.
TIDY = (open_mask, one_mask, single_branch)
RULES = (one_softmax, everything_chosen, zero_sink, same_blocks, single_tokens, *TIDY)
