"""Powers with a number as exponent, as products and roots."""

from __future__ import annotations

from sparsec.scalar.expr import Expr, call, constant
from sparsec.scalar.fn import Fn

LARGEST = 8


def power_of(base: Expr, power: int | float) -> Expr:
    """``base ** power`` for whole powers up to 8 in size, 0.5 and -0.5; an integer base stays one for powers >= 0.

    Raises:
        TypeError: any other power.
    """
    if not isinstance(power, int | float) or power != power:
        raise TypeError(f"`{base} ** {power}`: the power is a number; use exp2() and log2()")
    if power in (0.5, -0.5):
        return call(Fn.SQRT if power > 0 else Fn.RSQRT, base)
    if power != int(power) or abs(power) > LARGEST:
        raise TypeError(
            f"`{base} ** {power}`: the power is a whole number up to {LARGEST}, 0.5 or -0.5; use exp2() and log2()"
        )
    result = constant(1) if base.kind == "int" else constant(1.0)
    for _ in range(abs(int(power))):
        result = call(Fn.MUL, result, base)
    return result if power >= 0 else call(Fn.DIV, 1.0, result)
