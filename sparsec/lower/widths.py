"""Which integers of an expression need 64 bits: everything is ranged over lengths far beyond what is run.

Positions go up to 2**22 and units up to 2**17; beyond these a product that was held in int32 could wrap.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.ranges import INT32, RULES, Range

POSITIONS, UNITS, HEADS = 2**22, 2**17, 2**16
ANY = Range(-INT32, INT32 - 1)
_NAMES = {
    **dict.fromkeys(("i", "i_lo", "i_hi", "q_offset"), Range(-POSITIONS, POSITIONS)),
    **dict.fromkeys(("b", "h"), Range(0, HEADS)),
    "c": Range(0, UNITS),
}
_MINUS = Range.of(-1)


def narrow(found: Range) -> bool:
    """Whether int32 holds it."""
    return found.lo >= -INT32 and found.hi < INT32


def wide(x: Expr) -> bool:
    """Whether an integer call is computed in int64: its result, or what rounding down adds to a remainder, is large."""
    if x.head in (Fn.FLOORDIV, Fn.MOD):
        divisor = whole(x.args[1])
        if max(abs(divisor.lo), abs(divisor.hi)) >= INT32 / 2:
            return True
    return not narrow(whole(x))


def may_be_zero(divisor: Expr) -> bool:
    """Whether a divisor is not seen to differ from zero."""
    found = whole(divisor)
    return found.lo <= 0 <= found.hi


@lru_cache(maxsize=4096)
def whole(x: Expr) -> Range:
    """The range of an integer expression; booleans are 0 and 1, elements of captured tensors any int32."""
    if x.head == "const":
        return Range.of(int(x.value or 0))
    if x.head == "var":
        return _NAMES.get(str(x.value), Range(0, POSITIONS))
    if x.head == "element":
        return ANY
    args = [whole(a) for a in (x.args[1:] if x.head is Fn.WHERE else x.args)]
    if x.head in (Fn.ADD, Fn.SUB, Fn.MUL):
        one, two = args
        return one * two if x.head is Fn.MUL else one + (two * _MINUS if x.head is Fn.SUB else two)
    if x.head is Fn.NEG:
        return args[0] * _MINUS
    if x.head is Fn.WHERE:
        return reduce(lambda a, b: a | b, args)
    assert isinstance(x.head, Fn)
    found = RULES[x.head](*args) if x.head in RULES else Range()
    return found if narrow(found) else _no_larger(x.head, args, found)


def _no_larger(fn: Fn, args: list[Range], found: Range) -> Range:
    """What cannot leave the size of its operands: quotients, remainders and bits."""
    if fn not in (Fn.FLOORDIV, Fn.MOD, Fn.AND, Fn.OR, Fn.XOR, Fn.NOT, Fn.SHR):
        return found
    most = max(max(abs(a.lo), abs(a.hi)) for a in (args[1:] if fn is Fn.MOD else args[:1] if fn is Fn.SHR else args))
    if math.isinf(most):
        return found
    limit = 2 ** int(most).bit_length()
    return Range(-limit, limit - 1)
