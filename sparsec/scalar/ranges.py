"""Ranges and divisibility of integer expressions over boxes of variables; the proof that offsets fit int32.

Sums are ranged as polynomials, so that linear ones such as ``i - j`` or ``3 * i - 2 * i`` are exact; the rest is sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.polynomial import polynomial
from sparsec.scalar.walk import postorder

Bound = int | float  # a float only for the two infinities
INT32 = 2**31


@dataclass(frozen=True, slots=True)
class Range:
    """The integers ``lo … hi``, both included, that ``multiple_of`` divides (0: only the number 0)."""

    lo: Bound = -math.inf
    hi: Bound = math.inf
    multiple_of: int = 1

    def __add__(self, other: Range) -> Range:
        return Range(self.lo + other.lo, self.hi + other.hi, math.gcd(self.multiple_of, other.multiple_of))

    def __mul__(self, other: Range) -> Range:
        ends = [_times(a, b) for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Range(min(ends), max(ends), self.multiple_of * other.multiple_of)

    def __or__(self, other: Range) -> Range:
        """The smallest range around both."""
        shared = math.gcd(self.multiple_of, other.multiple_of)
        return Range(min(self.lo, other.lo), max(self.hi, other.hi), shared)

    @staticmethod
    def of(value: int) -> Range:
        """One number."""
        return Range(value, value, abs(value))


def range_of(expr: Expr, env: Mapping[str, Range]) -> Range:
    """The range of an integer expression; ``env`` ranges variables and captured tensors, else any integer."""
    return _Ranging(env).of(expr)


def fits_int32(expr: Expr, env: Mapping[str, Range]) -> bool:
    """Whether an integer expression and everything computed on the way stay within int32."""
    ranging = _Ranging(env)
    ranges = (ranging.of(x) for x in postorder(expr) if x.kind == "int")
    return all(r.lo >= -INT32 and r.hi < INT32 for r in ranges)


def _times(a: Bound, b: Bound) -> Bound:
    return a * b if a and b else 0


def _floor_divided(a: Bound, b: Bound) -> Bound:
    if isinstance(a, float):  # infinite
        return a if b > 0 else -a
    return a // b if not isinstance(b, float) else (0 if (a >= 0) == (b > 0) or a == 0 else -1)


class _Ranging:
    def __init__(self, env: Mapping[str, Range]) -> None:
        self.env = env
        self.known: dict[int, Range] = {}

    def of(self, x: Expr) -> Range:
        found = self.known.get(id(x))
        if found is None:
            found = self.known[id(x)] = self._sum(x) if x.head in (Fn.ADD, Fn.SUB, Fn.NEG, Fn.MUL) else self._atom(x)
        return found

    def _sum(self, x: Expr) -> Range:
        total = Range.of(0)
        for monomial, factor in polynomial(x).items():
            if monomial == (x,):  # a product too long to multiply out
                return self.of(x.args[0]) * self.of(x.args[1])
            term = Range.of(factor)
            for atom in monomial:
                term = term * self.of(atom)
            total = total + term
        return total

    def _atom(self, x: Expr) -> Range:
        if x.head == "const":
            assert isinstance(x.value, int)
            return Range.of(x.value)
        if x.head in ("var", "element"):
            return self.env.get(str(x.value), Range())
        if x.head is Fn.WHERE:
            return self._choice(x)
        assert isinstance(x.head, Fn)
        rule = RULES.get(x.head)
        return rule(*(self.of(a) for a in x.args)) if rule else Range()

    def _choice(self, x: Expr) -> Range:
        from sparsec.scalar.interval import Truth, decide

        condition, then, otherwise = x.args
        truth = decide(condition, self.env)
        if truth is Truth.MIXED:
            return self.of(then) | self.of(otherwise)
        return self.of(then if truth is Truth.ALL else otherwise)


def _floordiv(a: Range, b: Range) -> Range:
    if b.lo <= 0 <= b.hi:
        return Range()
    ends = [_floor_divided(x, y) for x, y in product((a.lo, a.hi), (b.lo, b.hi))]
    exact = b.lo == b.hi and a.multiple_of % b.lo == 0
    return Range(min(ends), max(ends), a.multiple_of // abs(int(b.lo)) if exact else 1)


def _mod(a: Range, b: Range) -> Range:
    if b.lo <= 0:
        return Range()
    if a.lo >= 0 and a.hi < b.lo:
        return a
    shared = math.gcd(a.multiple_of, b.multiple_of)
    if b.lo != b.hi:
        return Range(0, b.hi - 1, shared)
    if _floor_divided(a.lo, b.lo) == _floor_divided(a.hi, b.lo) and not math.isinf(a.lo):
        return Range(a.lo % b.lo, a.hi % b.lo, shared)
    return Range(0, b.lo - (shared or b.lo), shared)


def _abs(a: Range) -> Range:
    least = 0 if a.lo <= 0 <= a.hi else min(abs(a.lo), abs(a.hi))
    return Range(least, max(abs(a.lo), abs(a.hi)), a.multiple_of)


def _and(a: Range, b: Range) -> Range:
    """Bits of a number that is not negative can only be cleared."""
    highest = [r.hi for r in (a, b) if r.lo >= 0]
    return Range(0, min(highest)) if highest else Range()


def _or(a: Range, b: Range) -> Range:
    """No bit above the highest of both is set."""
    if min(a.lo, b.lo) < 0 or math.isinf(max(a.hi, b.hi)):
        return Range(0 if min(a.lo, b.lo) >= 0 else -math.inf)
    return Range(0, 2 ** int(max(a.hi, b.hi)).bit_length() - 1)


def _shift(fn: Callable[[Range, Range], Range]) -> Callable[[Range, Range], Range]:
    def rule(a: Range, b: Range) -> Range:
        if b.lo != b.hi or not 0 <= b.lo < 64:
            return Range()
        return fn(a, Range.of(2 ** int(b.lo)))

    return rule


RULES: dict[Fn, Callable[..., Range]] = {
    Fn.FLOORDIV: _floordiv,
    Fn.MOD: _mod,
    Fn.ABS: _abs,
    Fn.MINIMUM: lambda a, b: Range(min(a.lo, b.lo), min(a.hi, b.hi), math.gcd(a.multiple_of, b.multiple_of)),
    Fn.MAXIMUM: lambda a, b: Range(max(a.lo, b.lo), max(a.hi, b.hi), math.gcd(a.multiple_of, b.multiple_of)),
    Fn.AND: _and,
    Fn.OR: _or,
    Fn.XOR: _or,
    Fn.SHL: _shift(lambda a, b: a * b),
    Fn.SHR: _shift(_floordiv),
}
