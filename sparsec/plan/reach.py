"""How many (query, key) pairs a mask lets through, from the bounds of its bands: a formula that is no less than that.

One row of a window of w keys sees w of them, a causal row sees those up to its own; summed over rows that is
``TQ * min(TK, w)`` and a triangle. What the bounds cannot tell counts as seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import minimum
from sparsec.scalar.polynomial import expression, polynomial
from sparsec.scalar.prove import is_open
from sparsec.scalar.walk import depends_on, substitute, tensors

TQ, OFFSET = var("TQ"), var("q_offset")
POSITION = var("i")


def keys_seen(where: Expr | None, length: Expr) -> Expr:
    """The sum over the query rows of the keys that each may see, at most; ``length`` keys exist."""
    everything = TQ * length
    if where is None:
        return everything
    found = key_ranges(where)
    if not isinstance(found, Bounded):
        return everything
    sums = [_rows(r.lo, r.hi, length) for r in found.ranges]
    if any(s is everything for s in sums):
        return everything
    return reduce(lambda a, b: a + b, sums, constant(0))


def _rows(lo: Expr, hi: Expr, length: Expr) -> Expr:
    """Σ over rows of hi − lo: the least of what the alternatives inside minimum and maximum give."""
    here = {"i_lo": POSITION, "i_hi": POSITION}
    lows = [substitute(e, here) for e in _parts(lo, Fn.MAXIMUM)]
    highs = [substitute(e, here) for e in _parts(hi, Fn.MINIMUM) if not is_open(e)] or [length]
    widths = [high - low for low in lows for high in highs]
    fixed = [int(w.value or 0) for w in widths if w.head == "const"]
    if fixed:
        return TQ * minimum(max(min(fixed), 0), length)
    sums = [s for w in widths if (s := _sum(w, length)) is not None]
    return min(sums, key=lambda s: len(str(s)), default=TQ * length)


def _parts(expr: Expr, fn: Fn) -> Iterator[Expr]:
    """The alternatives of a nested minimum or maximum; conditions count as if they held."""
    if expr.head is fn:
        for part in expr.args:
            yield from _parts(part, fn)
    elif expr.head is Fn.WHERE:
        yield from _parts(expr.args[1], fn)
    else:
        yield expr


def _sum(width: Expr, length: Expr) -> Expr | None:
    """Σ over i = q_offset … q_offset + TQ − 1 of a width that is constant or linear in i; None for anything else."""
    if tensors(width) or depends_on(width, "b", "h"):
        return None
    if not depends_on(width, "i"):
        return TQ * width
    terms = polynomial(width)
    mixed = [m for m in terms if any(depends_on(x, "i") for x in m)]
    if len(mixed) != 1 or len(mixed[0]) != 1:
        return None
    terms[()] = max(terms.get((), 0), 0)  # the first rows see nothing, not less than nothing
    return _linear(mixed[0][0], terms.pop(mixed[0]), TQ * expression(terms))


def _linear(part: Expr, factor: int, rest: Expr) -> Expr | None:
    """The sum of rest + factor · part, for part = i or i-linear // size, which is at most the quotient."""
    if part is POSITION:
        return factor * (TQ * (2 * OFFSET + TQ - 1)) / 2 + rest
    inner = _sum(part.args[0], constant(0)) if part.head is Fn.FLOORDIV and part.args[1].head == "const" else None
    return None if inner is None or factor < 0 else factor * inner / part.args[1] + rest
