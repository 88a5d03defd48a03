"""Whether two predicates can hold together, decided on their comparisons of whole numbers."""

from __future__ import annotations

from itertools import product

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn


def disjoint(one: Expr, two: Expr) -> bool:
    """Whether no point satisfies both, as far as a comparison of one and a comparison of the other show.

    (i - j < 256) and (512 <= i - j): the two margins 256 - (i - j) and (i - j) - 512 add up to less than both need.
    """
    margins = [m for part in conjuncts(one) if (m := _margin(part)) is not None]
    others = [m for part in conjuncts(two) if (m := _margin(part)) is not None]
    return any(_exclude(a, b) for a, b in product(margins, others))


def conjuncts(predicate: Expr) -> list[Expr]:
    """The parts of a conjunction, in order."""
    found, stack = [], [predicate]
    while stack:
        part = stack.pop()
        if part.head is Fn.AND:
            stack.extend(reversed(part.args))
        else:
            found.append(part)
    return found


def _margin(part: Expr) -> tuple[Expr, int] | None:
    """a < b as (b - a, 1) and a <= b as (b - a, 0): what must be at least how much."""
    if part.head not in (Fn.LT, Fn.LE) or any(x.kind != "int" for x in part.args):
        return None
    low, high = part.args
    return high - low, int(part.head is Fn.LT)


def _exclude(one: tuple[Expr, int], two: tuple[Expr, int]) -> bool:
    total = one[0] + two[0]
    return total.head == "const" and int(total.value or 0) < one[1] + two[1]
