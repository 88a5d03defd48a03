"""A short running list by rounds: the best of a tile of candidates takes its place in the list, then the next best.

Sorting a tile moves 64-bit keys between threads; a round reads a maximum of 32-bit ranks and the lowest id that has it.
A list is a number per row for every slot, so that nothing of it changes hands. Candidates come in ascending order: of
equal ranks whoever is in the list stays before.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.lower.scalars import sub
from sparsec.lower.select.chosen import ID_BITS, LOW_WORD
from sparsec.plan.specs import Selector
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node

LONGEST = 4
LOWEST, HIGHEST = -(2**31), 2**31 - 1
"""Ranks of nothing and of whoever is forced. No score has either: NaN is one number, minus infinity not the last."""


def fits(spec: Selector) -> bool:
    """Whether a list is short, by rank, of ids alone, and at most one candidate of a row is forced."""
    alone = spec.weights is None and spec.hard_out is None and spec.scores_out is None
    plain = alone and spec.order == "score" and not spec.softmax
    return plain and spec.slots <= LONGEST and spec.count_forced and _single(spec.forced)


def _single(forced: Expr | None) -> bool:
    """Whether a predicate says which candidate, ``c == …``."""
    if forced is None or forced.head is not Fn.EQ:
        return forced is None or forced.value is False
    mine = [a for a in forced.args if a.head == "var" and a.value == "c"]
    return len(mine) == 1 and not any(_names(a) for a in forced.args if a is not mine[0])


def _names(expr: Expr) -> bool:
    return (expr.head == "var" and expr.value == "c") or any(map(_names, expr.args))


def start(spec: Selector, rows: Axis) -> list[Node]:
    """A list of nothing: a rank and an id for every slot."""
    empty = (tile.full(LOWEST, rows, dtype="int32"), tile.full(-1, rows, dtype="int32"))
    return [*empty] * min(spec.k, spec.slots)


def ranks(scores: Node, forced: Node | None, open_: Node) -> Node:
    """The ranks of a tile's candidates, in the order of scores as numbers of 32 bits."""
    key = tile.apply(Fn.AND, tile.apply(Fn.SHR, tile.apply(Fn.RANK, scores, tile.const(0)), ID_BITS), LOW_WORD)
    found = tile.cast(sub(key, 2**31), "int32")
    if forced is not None:
        found = tile.apply(Fn.WHERE, forced, HIGHEST, found)
    return tile.apply(Fn.WHERE, open_, found, LOWEST)


def insert(kept: Sequence[Node], new: Node, ids: Node, keys: Axis) -> list[Node]:
    """The list after a tile of ranks; the n-th best of a tile comes after those before it."""
    state = list(kept)
    for first in range(0, len(state), 2):
        rank = tile.reduce("max", new, keys)
        name = tile.reduce("min", tile.apply(Fn.WHERE, tile.apply(Fn.EQ, new, rank), ids, HIGHEST), keys)
        if first + 2 < len(state):
            new = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, ids, name), LOWEST, new)
        best = rank
        for slot in range(first, len(state), 2):  # from the first worse one on all move by a slot, equal ones too
            held, named = state[slot : slot + 2]
            worse = tile.apply(Fn.LT, held, best)
            state[slot : slot + 2] = _chosen(worse, rank, held), _chosen(worse, name, named)
            rank, name = _chosen(worse, held, rank), _chosen(worse, named, name)
    return state


def _chosen(condition: Node, a: Node, b: Node) -> Node:
    return tile.apply(Fn.WHERE, condition, a, b)
