"""The extreme values of an expression while one variable runs over an interval, in terms of the interval's ends."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.expr import Expr, call, constant, lift
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum, minimum, where
from sparsec.scalar.isolate import is_positive, without_modulo
from sparsec.scalar.polynomial import Monomial, expression, polynomial
from sparsec.scalar.ranges import Range, range_of
from sparsec.scalar.walk import depends_on, variables

SMALL = 128  # a remainder of a smaller modulus hardly widens a range


@dataclass(frozen=True, slots=True)
class Extreme:
    """A bound that no value exceeds; ``loose`` where it may lie far from every value."""

    value: Expr
    loose: bool = False


def extreme(x: Expr, name: str, ends: tuple[Expr, Expr], up: bool) -> Extreme | None:
    """An upper (or lower) bound of ``x`` for ``ends[0] <= name <= ends[1]``; None where none is found.

    Sound always; exact for expressions monotone in the variable. Variables are taken to be >= 0.
    """
    return _Search(name, ends).of(x, up)


class _Search:
    def __init__(self, name: str, ends: tuple[Expr, Expr]) -> None:
        self.name, self.ends = name, ends

    def of(self, x: Expr, up: bool) -> Extreme | None:
        if not depends_on(x, self.name):
            return Extreme(x)
        if x.head == "var":
            return Extreme(self.ends[up])
        if x.head in (Fn.ADD, Fn.SUB, Fn.NEG, Fn.MUL):
            return self._sum(x, up)
        rule = {
            Fn.FLOORDIV: self._floordiv, Fn.SHR: self._shift, Fn.MOD: self._mod,
            Fn.WHERE: self._where, Fn.ABS: self._abs, Fn.MINIMUM: self._extremum, Fn.MAXIMUM: self._extremum,
        }.get(x.head if isinstance(x.head, Fn) else Fn.EXP)  # fmt: skip
        return rule(x, up) if rule else None

    def _sum(self, x: Expr, up: bool) -> Extreme | None:
        total, loose = constant(0), False
        for monomial, factor in without_modulo(polynomial(x)).items():
            part = self._product(monomial, up == (factor > 0)) if (x,) != monomial else None
            if part is None:
                return None
            total, loose = total + factor * part.value, loose or part.loose
        return Extreme(total, loose)

    def _product(self, monomial: Monomial, up: bool) -> Extreme | None:
        """Monotone in each factor, if no factor is negative."""
        if not any(depends_on(atom, self.name) for atom in monomial):
            return Extreme(expression({monomial: 1}))
        if len(monomial) > 1 and not all(_not_negative(atom) for atom in monomial):
            return None
        return self._combined(Fn.MUL, [self.of(atom, up) for atom in monomial])

    def _combined(self, fn: Fn, parts: list[Extreme | None]) -> Extreme | None:
        known = [p for p in parts if p is not None]
        if len(known) != len(parts):
            return None
        value = known[0].value
        for part in known[1:]:
            value = call(fn, value, part.value)
        return Extreme(value, any(p.loose for p in known))

    def _extremum(self, x: Expr, up: bool) -> Extreme | None:
        assert isinstance(x.head, Fn)
        return self._combined(x.head, [self.of(a, up) for a in x.args])

    def _floordiv(self, x: Expr, up: bool) -> Extreme | None:
        return (
            self._combined(Fn.FLOORDIV, [self.of(x.args[0], up), Extreme(x.args[1])])
            if is_positive(x.args[1])
            else None
        )

    def _shift(self, x: Expr, up: bool) -> Extreme | None:
        fixed = not depends_on(x.args[1], self.name)
        return self._combined(Fn.SHR, [self.of(x.args[0], up), Extreme(x.args[1])]) if fixed else None

    def _mod(self, x: Expr, up: bool) -> Extreme | None:
        modulus = x.args[1]
        if modulus.head == "const" and isinstance(modulus.value, int) and modulus.value > 0:
            return Extreme(lift(modulus.value - 1 if up else 0), modulus.value > SMALL)
        largest = self.of(modulus, True) if _not_negative(modulus) else None
        return None if largest is None else Extreme(largest.value - 1 if up else constant(0), True)

    def _where(self, x: Expr, up: bool) -> Extreme | None:
        then, otherwise = self.of(x.args[1], up), self.of(x.args[2], up)
        if then is None or otherwise is None:
            return None
        loose = then.loose or otherwise.loose
        if not depends_on(x.args[0], self.name):
            return Extreme(where(x.args[0], then.value, otherwise.value), loose)
        return Extreme((maximum if up else minimum)(then.value, otherwise.value), loose)

    def _abs(self, x: Expr, up: bool) -> Extreme | None:
        high, low = self.of(x.args[0], True), self.of(x.args[0], False)
        if high is None or low is None:
            return None
        value = maximum(high.value, -low.value) if up else maximum(maximum(low.value, -high.value), 0)
        return Extreme(value, high.loose or low.loose)


def _not_negative(x: Expr) -> bool:
    return range_of(x, {name: Range(0) for name in variables(x)}).lo >= 0
