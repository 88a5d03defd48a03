"""What a list ranks by where heads share it, and which part of its gradient is a head's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.scalars import add, most, mul, sub
from sparsec.lower.select.candidates import products, query
from sparsec.lower.select.frame import Frame, sharing
from sparsec.plan.specs import Selector
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node


def shared(f: Frame, own: Selector, number: Node) -> tuple[Node, Node | None]:
    """The sum or the maximum of the raw scores of the heads that share a list, and the share of the frame's head.

    A mean is a sum here, its factor the scale's. Of a maximum, heads that are equal share its gradient equally; all
    are worked out by the same loop, so that rounding cannot tell them apart. None: each has all of the gradient.
    """
    heads = sharing(own)
    first = mul(f.key_head, heads)
    group, mine = replace(f, head=first), sub(f.head, first)
    if own.group != "max":

        def collect(head: Node, total: Node) -> Sequence[Node]:
            return [add(total, products(group, query(group, head), number))]

        return tile.loop(0, heads, 1, [tile.full(0.0, f.rows, f.keys)], collect)[0], None

    def compare(head: Node, top: Node, ties: Node, asked: Node) -> Sequence[Node]:
        found = products(group, query(group, head), number)
        again = add(ties, tile.apply(Fn.WHERE, tile.apply(Fn.EQ, found, top), 1.0, 0.0))
        ties = tile.apply(Fn.WHERE, tile.apply(Fn.LT, top, found), 1.0, again)
        return [most(top, found), ties, tile.apply(Fn.WHERE, tile.apply(Fn.EQ, head, mine), found, asked)]

    start = [tile.full(x, f.rows, f.keys) for x in (-math.inf, 0.0, 0.0)]
    top, ties, asked = tile.loop(0, heads, 1, start, compare)
    won = tile.apply(Fn.EQ, asked, top)
    return top, tile.apply(Fn.WHERE, won, tile.apply(Fn.DIV, 1.0, most(ties, 1.0)), 0.0)
