"""What the gradients of a joint graph share: adjoints grouped by the softmax or merge that they differentiate."""

from __future__ import annotations

from functools import reduce as fold

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.attention.attend import joinable, lists
from sparsec.plan.attention.merge import branches_of
from sparsec.plan.pull import Pull, own_pull
from sparsec.scalar.expr import Expr, var


def fused(merge: Node) -> bool:
    """Whether a merge by log-sum-exp is planned as one softmax over its branches."""
    return merge.op is Op.MERGE and merge.word("fn") == "lse" and joinable(branches_of(merge)) is None


def pull(vjp: Node) -> Pull:
    """What an adjoint of an attend or a merge pulls back; through branches of one softmax, that softmax's own."""
    found = own_pull(vjp)
    while found.grad.op is Op.VJP and fused(found.grad.src[0]):
        found = own_pull(found.grad)
    return found


def branches(owner: Node) -> list[Node]:
    """The attends that one softmax covers, in the order of its pieces."""
    return branches_of(owner) if owner.op is Op.MERGE else [owner]


def is_sum(node: Node) -> bool:
    """Whether a map adds its sources up."""
    if node.op is not Op.MAP or node["row"] != "none":
        return False
    names: list[Expr] = [var(f"x{n}", "float") for n in range(len(node.src))]
    total: Expr = fold(lambda a, b: a + b, names)
    return len(names) > 1 and node.expr("fn") is total


def is_total(node: Node) -> bool:
    """Whether a node is the sum of gradients."""
    parts = terms(node) if is_sum(node) else []
    return any(t.op is Op.VJP for t in parts) and all(t.op in (Op.VJP, Op.INPUT) for t in parts)


def terms(node: Node) -> list[Node]:
    """What a gradient is the sum of; nested sums are flattened."""
    return [t for source in node.src for t in terms(source)] if is_sum(node) else [node]


def through_lists(vjp: Node) -> bool:
    """Whether an attend's adjoint is that of gathered attention."""
    return vjp.src[0].op is Op.ATTEND and bool(lists(vjp.src[0]))


def shared(vjp: Node) -> bool:
    """Whether one kernel computes this gradient for all branches of a softmax together."""
    return vjp.op is Op.VJP and vjp.src[0].op is Op.ATTEND and vjp["of"] in ("q", "capture")


def alike(one: Node, other: Node) -> bool:
    """Whether two shared gradients are parts of one kernel's result."""
    if not (shared(one) and shared(other)):
        return False
    return (one["of"], one["capture"], pull(one)) == (other["of"], other["capture"], pull(other))
