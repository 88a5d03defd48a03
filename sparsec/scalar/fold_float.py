"""Folding of floats, only where IEEE arithmetic gives the same number.

``x * 1.0``, ``x / 1.0``, ``x - 0.0`` and ``x + -0.0`` are ``x`` for every x, -0.0 and NaN included; ``x + 0.0`` and
``x * 0.0`` are not; nothing is reassociated. One operation on constants that are exact in fp32 is carried out in fp64:
rounded to fp32 that is the fp32 result.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable

from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.fn import Fn
from sparsec.scalar.fold_int import where_rule

Rule = Callable[..., Expr | None]


def _single(x: Expr) -> float | None:
    """A constant that is exact in fp32."""
    if x.head != "const" or not isinstance(x.value, int | float):
        return None
    try:
        narrow: float = struct.unpack("f", struct.pack("f", x.value))[0]
    except OverflowError:
        return None
    return narrow if narrow == x.value else None


def _is(x: Expr, value: float) -> bool:
    return x.head == "const" and repr(x.value) == repr(value)


def _binary(compute: Callable[[float, float], float], neutral: float, commutes: bool) -> Rule:
    def rule(a: Expr, b: Expr) -> Expr | None:
        for x, y in ((a, b), (b, a)) if commutes else ((a, b),):
            if _is(y, neutral) and x.kind == "float":
                return x
        left, right = _single(a), _single(b)
        if left is None or right is None or (compute is operator.truediv and right == 0):
            return None
        return constant(compute(left, right))

    return rule


def _neg(a: Expr) -> Expr | None:
    if a.head is Fn.NEG:
        return a.args[0]
    return constant(-a.value) if a.head == "const" and isinstance(a.value, float) else None


def _abs(a: Expr) -> Expr | None:
    return constant(abs(a.value)) if a.head == "const" and isinstance(a.value, float) else None


def _root(compute: Callable[[float], float]) -> Rule:
    def rule(a: Expr) -> Expr | None:
        value = _single(a)
        return None if value is None or value <= 0 else constant(compute(value))

    return rule


FLOAT_RULES: dict[Fn, Rule] = {
    Fn.ADD: _binary(operator.add, -0.0, True),
    Fn.SUB: _binary(operator.sub, 0.0, False),
    Fn.MUL: _binary(operator.mul, 1.0, True),
    Fn.DIV: _binary(operator.truediv, 1.0, False),
    Fn.NEG: _neg,
    Fn.ABS: _abs,
    Fn.SQRT: _root(math.sqrt),
    Fn.RSQRT: _root(lambda x: 1.0 / math.sqrt(x)),
    Fn.WHERE: where_rule,
}
