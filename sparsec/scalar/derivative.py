"""Derivatives of scalar expressions: one rule per function, with torch's conventions where two are possible.

At a tie ``minimum`` and ``maximum`` give half to each operand, ``abs`` has derivative 0 at 0, comparisons, logic, floor
division and everything of integers are flat. The product of a zero derivative is left out, never multiplied: 0 * inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import where
from sparsec.scalar.walk import transform

Partial = Expr | None  # None: zero
ONE = constant(1.0)


def derivative(expr: Expr, wrt: Expr) -> Expr:
    """d expr / d wrt, for a float variable or element.

    Raises:
        TypeError: ``wrt`` is not a float variable or element.
    """
    if wrt.head not in ("var", "element") or wrt.kind != "float":
        raise TypeError(f"no derivative by `{wrt}` ({wrt.kind}): differentiate by a float variable or element")

    def rule(x: Expr, inner: tuple[Partial, ...]) -> Partial:
        if x is wrt:
            return ONE
        if x.kind != "float" or not isinstance(x.head, Fn) or all(d is None for d in inner):
            return None
        if x.head is Fn.WHERE:
            then, otherwise = (constant(0.0) if d is None else d for d in inner[1:])
            return where(x.args[0], then, otherwise)
        return _chain(PARTIALS[x.head](x, *x.args), inner)

    found = transform(expr, rule)
    return constant(0.0) if found is None else found


def _chain(partials: tuple[Partial, ...], inner: tuple[Partial, ...]) -> Partial:
    total: Partial = None
    for partial, change in zip(partials, inner, strict=True):
        if partial is not None and change is not None:
            term = change * partial
            total = term if total is None else total + term
    return total


def _extremum(x: Expr, a: Expr, b: Expr) -> tuple[Partial, ...]:
    wins, loses = (a < b, b < a) if x.head is Fn.MINIMUM else (b < a, a < b)
    share = where(wins, 1.0, where(loses, 0.0, 0.5))
    return share, 1.0 - share


Rule = Callable[..., tuple[Partial, ...]]
PARTIALS: dict[Fn, Rule] = {  # (x = fn(a, b), a, b) -> (dx/da, dx/db)
    Fn.ADD: lambda x, a, b: (ONE, ONE),
    Fn.SUB: lambda x, a, b: (ONE, -ONE),
    Fn.MUL: lambda x, a, b: (b, a),
    Fn.DIV: lambda x, a, b: (1.0 / b, -(x / b)),
    Fn.FLOORDIV: lambda x, a, b: (None, None),
    Fn.MOD: lambda x, a, b: (ONE, -(a // b)),
    Fn.NEG: lambda x, a: (-ONE,),
    Fn.ABS: lambda x, a: (where(a < 0, -1.0, where(a > 0, 1.0, 0.0)),),
    Fn.MINIMUM: _extremum,
    Fn.MAXIMUM: _extremum,
    Fn.EXP: lambda x, a: (x,),
    Fn.EXP2: lambda x, a: (x * math.log(2),),
    Fn.LOG: lambda x, a: (1.0 / a,),
    Fn.LOG2: lambda x, a: (1.0 / (a * math.log(2)),),
    Fn.SQRT: lambda x, a: (0.5 / x,),
    Fn.RSQRT: lambda x, a: (-0.5 * (x * x * x),),
    Fn.TANH: lambda x, a: (1.0 - x * x,),
    Fn.SIGMOID: lambda x, a: (x * (1.0 - x),),
}
