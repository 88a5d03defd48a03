"""What becomes of a list of rank keys: its length, its order, its ids and its weights."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower import softmax
from sparsec.lower.scalars import add, least, most, mul, sub
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Axis, Node

ID_BITS = 31
LOW_IDS = 2**ID_BITS - 1
LOW_WORD = 2**32 - 1


def listed(spec: Selector, keys: Node, slots: Axis, spare: Axis) -> tuple[Node, Node]:
    """Ids (-1: nothing) and scores of the chosen, in the order asked for, from descending rank keys."""
    keys = _cut(spec, keys, slots)
    if spec.order == "score":
        return tile.apply(Fn.RANK_ID, keys), tile.apply(Fn.RANK_SCORE, keys)
    ids = tile.apply(Fn.RANK_ID, keys)
    first = tile.cast(ids, "int64") if spec.order == "newest" else tile.apply(Fn.AND, keys, LOW_IDS)
    score = tile.apply(Fn.AND, tile.apply(Fn.SHR, keys, ID_BITS), LOW_WORD)
    by_id = tile.apply(Fn.ADD, tile.apply(Fn.SHL, first, 32), score)
    empty = tile.full(EMPTY_KEY, *keys.axes, dtype="int64")
    by_id = tile.top_insert(empty, tile.rename(by_id, slots, spare), slots, spare)
    first = tile.cast(tile.apply(Fn.SHR, by_id, 32), "int32")
    score = tile.apply(Fn.RANK_SCORE, tile.apply(Fn.SHL, by_id, ID_BITS))
    if spec.order == "newest":
        return first, score
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, first, 0), -1, sub(tile.const(LOW_IDS), first)), score


def _cut(spec: Selector, keys: Node, slots: Axis) -> Node:
    """Only what the list may hold: k members, or k beside the forced ones."""
    allowed: Node = tile.const(spec.k)
    if not spec.count_forced:
        forced = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, keys), 1, 0)
        allowed = add(tile.reduce("sum", forced, slots), spec.k)
    elif min(spec.k, spec.slots) == slots.size:
        return keys
    inside = tile.apply(Fn.LT, tile.iota(slots), least(allowed, spec.slots))
    return tile.apply(Fn.WHERE, inside, keys, EMPTY_KEY)


def summed(sums: Sequence[Node], scores: Node, keys: Axis) -> tuple[Node, Node]:
    """The maximum of the scores so far, and the sum of their exponentials below it, with a tile of scores more."""
    top, total = sums
    high = most(top, tile.reduce("max", scores, keys))
    more = tile.reduce("sum", tile.apply(Fn.EXP, sub(scores, high)), keys)
    return high, add(mul(total, tile.apply(Fn.EXP, sub(top, high))), more)


def weights(fn: str, ids: Node, scores: Node, slots: Axis, everything: Node | None = None) -> Node:
    """Weights of the chosen along their list, 0 where there is none.

    ``everything`` is the log-sum-exp of all that could be chosen, for ``softmax_all``.
    """
    valid = tile.apply(Fn.LE, 0, ids)
    if fn == "softmax_all":
        assert everything is not None
        return tile.apply(Fn.WHERE, valid, tile.apply(Fn.EXP, sub(scores, everything)), 0.0)
    found = {"softmax": _softmax, "softmax_sink": _softmax, "stick": _stick}.get(fn)
    if found is not None:
        scores = found(fn, valid, scores, slots)
    elif fn == "sigmoid":
        scores = tile.apply(Fn.SIGMOID, scores)
    else:
        assert fn == "raw", fn
    return tile.apply(Fn.WHERE, valid, scores, 0.0)


def hard(ids: Node) -> Node:
    """1 for what was chosen, 0 where there is none."""
    return tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, ids), 1.0, 0.0)


def _softmax(fn: str, valid: Node, scores: Node, slots: Axis) -> Node:
    """exp(s) / sum exp(s), with one more logit of 0 in the denominator for ``softmax_sink``."""
    scores = tile.apply(Fn.WHERE, valid, scores, softmax.HIDDEN)
    top = tile.reduce("max", scores, slots)
    top = most(top, 0.0) if fn == "softmax_sink" else top
    power = tile.apply(Fn.EXP, sub(scores, top))
    total = tile.reduce("sum", power, slots)
    if fn == "softmax_sink":
        total = add(total, tile.apply(Fn.EXP, mul(top, -1.0)))
    return tile.apply(Fn.DIV, power, total)


def _stick(fn: str, valid: Node, scores: Node, slots: Axis) -> Node:
    """Stick-breaking along the list: sigmoid(s_j) times what the members before it left (HSA, arXiv 2504.16795)."""
    cost = tile.apply(Fn.WHERE, valid, _softplus(scores), 0.0)
    spent = sub(tile.scan(cost, slots), cost)
    return tile.apply(Fn.EXP, sub(mul(_softplus(mul(scores, -1.0)), -1.0), spent))


def _softplus(x: Node) -> Node:
    """ln(1 + exp(x)) without overflow."""
    small = tile.apply(Fn.EXP, mul(tile.apply(Fn.ABS, x), -1.0))
    return add(most(x, 0.0), tile.apply(Fn.LOG, tile.apply(Fn.ADD, small, 1.0)))
