"""What a level leaves to the next, as a read of its states and a function of tokens."""

from __future__ import annotations

from functools import reduce

from sparsec.ir.build import map as mapped
from sparsec.ir.build_state import norm2, recall, surprise
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import maximum, minimum


def expand_residual(variant: Variant) -> Variant:
    """A residual is what a recall by the write's own keys lacks, clipped and weighed.

    residual(v, s, k, gamma){post, clip = c}
      ->  map(v, recall(k, s){after}, gamma){x2 · min(max(x0 − x1, −c), c)}        pre: before

    A delta rule works the latter out anyhow, and with it the former; both are exact where little is left:

    residual(v, s, k){pre}   ->  surprise(s)
    residual(v, s, k){post}  ->  map(surprise(s), beta, norm2(k)){(1 − x1 x2) x0}, with e beta for beta
    """
    return variant.with_outputs(rewrite(variant.outputs, (_own, _read)))


def _own(node: Node) -> Node | None:
    """The residual of a delta rule's own value, of one part per token."""
    if node.op is not Op.RESIDUAL or not _predicts(node):
        return None
    written, gamma = node.src[1], node.operands.get("gamma")
    sources, left = [node.src[0], surprise(written)], _name(1)  # of the dtype of v, which it does not read
    if node["mode"] == "post":
        named = [written.operands.get(name) for name in ("beta", "weight")]
        factors = [norm2(written.src[1]), *(x for x in named if x is not None)]
        sources += factors
        left = (1 - reduce(lambda a, b: a * b, map(_name, range(2, len(sources))))) * left
    left = _clipped(node, left)
    if gamma is not None:
        sources.append(gamma)
        left = _name(len(sources) - 1) * left
    return mapped(*sources, fn=left, align="heads")


def _name(number: int) -> Expr:
    return var(f"x{number}", "float")


def _predicts(node: Node) -> bool:
    v, written, k = node.positional
    if written.op is not Op.WRITE or written["rule"] != "delta" or "erase_a" in written.operands:
        return False
    if "weight" in written.operands and not node.flag("renormalise"):
        return False
    if (k, v) != written.positional[1:] or k.shape[2] is not v.shape[2]:
        return False
    if written["decay_kind"] not in ("none", "scalar") or written["reads"] != "decayed":
        return False
    return one_part(written)


def one_part(written: Node) -> bool:
    """Whether every token writes one part of a bank."""
    return part_slots(written) == (None,)


def part_slots(written: Node) -> tuple[int | None, ...]:
    """The slots of the parts that every token writes: (None,) where it writes one; () where it may write none."""
    if written.src[0]["schedule"] != "single" or not written.flag("freeze_unselected"):
        return ()
    route = written.operands.get("route")
    if route is None:
        return (None,)
    count = route.shape[3].value
    if not _filled(route) or not isinstance(count, int):
        return ()
    return (None,) if count == 1 else tuple(range(count))


def _filled(route: Node) -> bool:
    """Whether a router fills every slot of a token's list."""
    if route.op is not Op.TOPK or route["eligible"] is not None:
        return False
    within, slots, parts = route.operands.get("within"), route.shape[3].value, route.src[0].shape[3].value
    if within is not None:
        above, children = within.shape[3].value, route["fanout"]
        parts = above * children if isinstance(above, int) and isinstance(children, int) and _filled(within) else None
    return slots == 1 or (isinstance(slots, int) and isinstance(parts, int) and slots <= parts)


def _read(node: Node) -> Node | None:
    if node.op is not Op.RESIDUAL:
        return None
    v, written, k = node.positional
    when = "after" if node["mode"] == "post" else "before"
    known = recall(k, written, when=when, renormalise=node.flag("renormalise"))
    gamma = node.operands.get("gamma")
    sources = (v, known) if gamma is None else (v, known, gamma)
    return mapped(*sources, fn=_left(node, gamma is not None), align="none" if gamma is None else "heads")


def _left(node: Node, weighed: bool) -> Expr:
    """gamma · clip(v − recall)."""
    left = _clipped(node, _name(0) - _name(1))
    return _name(2) * left if weighed else left


def _clipped(node: Node, left: Expr) -> Expr:
    clip = node["clip"]
    return minimum(maximum(left, -float(clip)), float(clip)) if isinstance(clip, float | int) else left
