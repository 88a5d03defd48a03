"""The normal form of selections: no predicate that says nothing, no order that nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.passes.alter import altered
from sparsec.passes.disjoint import conjuncts, disjoint
from sparsec.scalar.expr import Expr, constant


def normalise_selections(variant: Variant) -> Variant:
    """Predicates that hold everywhere or nowhere become none; lists that are only summed over stay in rank order.

    topk(s){eligible = true, forced = false}  ->  topk(s)
    topk(s){eligible = e, forced = e & f}  ->  topk(s){eligible = e, forced = f}
    attend(q, m, topk(s){order = newest})  ->  attend(q, m, topk(s){order = score})      unless stick-breaking reads it
    """
    said = rewrite(variant.outputs, (always, never, forced_within))
    free = _in_any_order(said)
    return variant.with_outputs(rewrite(said, (lambda node: rank_order(node) if node in free else None,)))


def rank_order(node: Node) -> Node | None:
    """{order = newest}  ->  {order = score}: the order in which the list is found anyway."""
    return altered(node, order="score") if node["order"] != "score" else None


def always(node: Node) -> Node | None:
    """{eligible = true} and {visible = true} say nothing."""
    names = {Op.TOPK: "eligible", Op.REDUCE: "visible"}
    return _without(node, names[node.op], True) if node.op in names else None


def never(node: Node) -> Node | None:
    """{forced = false} says nothing."""
    return _without(node, "forced", False) if node.op is Op.TOPK else None


def _without(node: Node, attr: str, silent: bool) -> Node | None:
    found = node.expr(attr)
    return altered(node, **{attr: None}) if found is constant(silent) else None


def forced_within(node: Node) -> Node | None:
    """Only what is eligible can be forced, so `forced` need not repeat what `eligible` asks; nor ask the opposite."""
    if node.op is not Op.TOPK or node.expr("forced") is None or node.expr("eligible") is None:
        return None
    forced, eligible = _two(node)
    if disjoint(forced, eligible):
        return altered(node, forced=None)
    asked = set(conjuncts(eligible))
    rest = [part for part in conjuncts(forced) if part not in asked]
    if len(rest) == len(conjuncts(forced)):
        return None
    return altered(node, forced=_all(rest))


def _two(node: Node) -> tuple[Expr, Expr]:
    forced, eligible = node.expr("forced"), node.expr("eligible")
    assert forced is not None and eligible is not None
    return forced, eligible


def _all(parts: Sequence[Expr]) -> Expr:
    total = constant(True)
    for part in parts:
        total = total & part
    return total


def _read_in_order(attend: Node) -> list[Node]:
    """The lists whose order an attend reads, because the weights that go with them slot by slot are not their own."""
    weights = attend.operands.get("weights")
    if weights is None:
        return []
    lists = list(attend.positional[2:])
    if weights.op is not Op.WEIGHTS:
        return lists
    own = weights.src[1]
    return [] if own in lists else [own, *lists]


def _in_any_order(outputs: Sequence[Node]) -> frozenset[Node]:
    """The lists that attends only sum over: not returned, not broken like a stick, not read by anything else.

    Weights follow the order of their list: what reads them along another list, or returns them, reads that order too.
    """
    read = set(outputs)
    for node in topological(outputs):
        if node.op is Op.WEIGHTS and (node["fn"] == "stick" or node in read):
            read.update(node.src)
        elif node.op is Op.ATTEND:
            read.update(_read_in_order(node))
        elif node.op is not Op.WEIGHTS:
            read.update(node.src)
            read.update(source.src[1] for source in node.src if source.op is Op.WEIGHTS)
    return frozenset(node for node in topological(outputs) if node.op is Op.TOPK and node not in read)
