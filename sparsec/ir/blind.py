"""Reads that can be proved to see nothing at any length: a window of no tokens, a predicate that is never true."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import origin_of
from sparsec.ir.rules_read import branches
from sparsec.scalar.bounds import never
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.walk import substitute

Reason = tuple[Node, Expr]
"""A selection and its predicate, which never holds; of several masks the last, and all that they demand."""


def check_seen(nodes: Sequence[Node]) -> None:
    """Refuses a read that is 0 for every query; a branch may be, where it is merged with one that is not.

    Raises:
        DeclarationError: names the mask or the choice that shows no key to any query.
    """
    blind = {node: reason for node in nodes if node.op is Op.ATTEND and (reason := _reason(node)) is not None}
    for node in nodes:
        if node.op is Op.MERGE and all(branch in blind for branch in branches(node)[0]):
            blind[node] = blind[node.src[0]]
    helped = {branch for node in nodes if node.op is Op.MERGE and node not in blind for branch in branches(node)[0]}
    for node, reason in blind.items():
        if node not in helped:
            raise _error(*reason)


def _reason(attend: Node) -> Reason | None:
    """Why an attend sees nothing, if that is proved."""
    selections = attend.positional[2:]
    masks = [(node, where) for node in selections if node.op is Op.MASK and (where := node.expr("where")) is not None]
    chosen = [(node, _eligible(node)) for node in selections if node.op is Op.TOPK]
    for node, predicate in (*masks, *chosen):
        if never(predicate):
            return node, predicate
    if len(masks) < 2 or not _alike([node for node, _ in masks]):
        return None
    together = reduce(lambda a, b: a & b, (where for _, where in masks))
    return (masks[-1][0], together) if never(together) else None


def _eligible(node: Node) -> Expr:
    """Which units a topk may list, as a predicate over i and j."""
    forced, eligible = node.expr("forced"), node.expr("eligible")
    either = constant(True) if eligible is None else eligible if forced is None else eligible | forced
    return substitute(either, {"c": var("j")})


def _alike(masks: Sequence[Node]) -> bool:
    """Whether a captured name means one tensor in all of them."""
    met: dict[str, Node] = {}
    return all(met.setdefault(name, node) is node for mask in masks for name, node in mask.captures.items())


def _error(node: Node, predicate: Expr) -> DeclarationError:
    origin, attr = origin_of(node), "where" if node.op is Op.MASK else "eligible"
    name = f" `{origin.name}`" if origin and origin.name else ""
    rule = "no query sees any key, at any length: the read would be 0 everywhere"
    fix = "show some keys to some query, as `(j <= i) & (i - j < 512)` does, or leave the read out"
    return DeclarationError(f"{node.op.value}{name}", f"{attr} = {predicate}", rule, fix, origin)
