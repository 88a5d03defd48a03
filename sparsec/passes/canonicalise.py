"""One way to say it: merges and masks in the form that the planner's matchers look for."""

from __future__ import annotations

from functools import reduce

from sparsec.ir.build import merge
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.scores import is_list
from sparsec.ir.variant import Variant
from sparsec.passes.alter import mask_after, with_selections
from sparsec.scalar.expr import Expr

FLAT = ("lse", "sum")


def canonicalise(variant: Variant) -> Variant:
    """Merges are flat, an attend has its list first and at most one mask, and masks that hide nothing are gone.

    merge(merge(a, b){lse}, c){lse}  ->  merge(a, b, c){lse}        merge(a){lse}  ->  a
    attend(q, m, mask(m){p}, mask(m){r})  ->  attend(q, m, mask(m){p & r})
    """
    return variant.with_outputs(rewrite(variant.outputs, RULES))


def flat_merge(node: Node) -> Node | None:
    """merge(merge(a, b){f}, c){f}  ->  merge(a, b, c){f} for f = lse or sum, which may be taken in any grouping."""
    if node.op is not Op.MERGE or node["fn"] not in FLAT:
        return None
    branches: list[Node] = []
    for source in node.src:
        inner = source.op is Op.MERGE and source["fn"] == node["fn"]
        branches.extend(source.src if inner else (source,))
    return merge(*branches, fn=str(node["fn"])) if len(branches) != len(node.src) else None


def single_branch(node: Node) -> Node | None:
    """merge(a){lse}  ->  a, whose log-sum-exp is the merge's."""
    if node.op is Op.MERGE and node["fn"] in FLAT and len(node.src) == 1:
        return node.src[0]
    return None


def open_mask(node: Node) -> Node | None:
    """attend(q, m, mask(m){true})  ->  attend(q, m)"""
    if node.op is not Op.ATTEND:
        return None
    kept = [s for s in node.positional[2:] if is_list(s) or not hides_nothing(s)]
    return with_selections(node, kept) if len(kept) < len(node.positional) - 2 else None


def hides_nothing(selection: Node) -> bool:
    """Whether a mask's predicate is the constant true."""
    where = selection.expr("where")
    return where is not None and where.head == "const" and where.value is True


def list_first(node: Node) -> Node | None:
    """attend(q, m, mask, list)  ->  attend(q, m, list, mask)"""
    if node.op is not Op.ATTEND:
        return None
    selections = list(node.positional[2:])
    wanted = sorted(selections, key=lambda s: not is_list(s))
    return with_selections(node, wanted) if wanted != selections else None


def one_mask(node: Node) -> Node | None:
    """attend(q, m, mask(m){p}, mask(m){r})  ->  attend(q, m, mask(m){p & r}), captures joined."""
    if node.op is not Op.ATTEND:
        return None
    masks = [s for s in node.positional[2:] if not is_list(s)]
    captures: dict[str, Node] = {}
    for name, tensor in (pair for m in masks for pair in m.captures.items()):
        if captures.setdefault(name, tensor) is not tensor:
            return None  # one name for two tensors
    if len(masks) < 2:
        return None
    where = reduce(lambda a, b: a & b, (predicate(m) for m in masks))
    both = mask_after(masks[0], masks[0].src[0], where, captures)
    return with_selections(node, [*(s for s in node.positional[2:] if is_list(s)), both])


def predicate(selection: Node) -> Expr:
    """The predicate of a mask."""
    where = selection.expr("where")
    assert where is not None, "a mask without a predicate"
    return where


RULES = (open_mask, list_first, one_mask, flat_merge, single_branch)
