"""Scalar expressions: dims, masks, score modifiers, gates. One immutable interned node; IEEE-safe rewrites only.

The same type serves symbolic sizes (``TK // 64``), predicates (``(j <= i) & (i - j < 512)``) and traced float
functions. Nothing here imports anything but ``Fn``; sympy reads expressions through ``sparsec.scalar.symbolic``.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union

from sparsec.scalar.fn import ARITY, Fn

Kind = Literal["int", "float", "bool"]
ExprLike: TypeAlias = Union["Expr", int, float, bool]

_TRACING: ContextVar[str | None] = ContextVar("tracing", default=None)  # the function that ``trace`` is tracing


class Undecided(TypeError):
    """A truth value that is asked of an expression; ``fix`` is what to write instead."""

    fix = "(a) & (b) for `a and b`; (0 <= x) & (x < 8) for `0 <= x < 8`; where(condition, a, b) for `a if condition`"


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Expr:
    """A constant, a variable, a function call, or an element of a captured tensor; equal ones are one object.

    ``a == b`` is an expression as every other comparison. Outside ``trace`` its truth value is ``a is b``, so that
    tuples, sets and dataclasses of expressions compare as they should; inside, it is an error as for ``<``.

    Attributes:
        head: ``Fn`` for a call, else "const", "var" or "element".
        args: operands of a call; indices of an element.
        value: the number of a const; the name of a var or of an element's tensor.
        kind: int, float or bool.
    """

    head: Fn | str
    args: tuple[Expr, ...]
    value: int | float | bool | str | None
    kind: Kind

    def __add__(self, other: ExprLike) -> Expr:
        return call(Fn.ADD, self, other)

    def __radd__(self, other: ExprLike) -> Expr:
        return call(Fn.ADD, other, self)

    def __sub__(self, other: ExprLike) -> Expr:
        return call(Fn.SUB, self, other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return call(Fn.SUB, other, self)

    def __mul__(self, other: ExprLike) -> Expr:
        return call(Fn.MUL, self, other)

    def __rmul__(self, other: ExprLike) -> Expr:
        return call(Fn.MUL, other, self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return call(Fn.DIV, self, other)

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return call(Fn.DIV, other, self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return call(Fn.FLOORDIV, self, other)

    def __rfloordiv__(self, other: ExprLike) -> Expr:
        return call(Fn.FLOORDIV, other, self)

    def __mod__(self, other: ExprLike) -> Expr:
        return call(Fn.MOD, self, other)

    def __rmod__(self, other: ExprLike) -> Expr:
        return call(Fn.MOD, other, self)

    def __pow__(self, power: int | float) -> Expr:
        from sparsec.scalar.power import power_of

        return power_of(self, power)

    def __neg__(self) -> Expr:
        return call(Fn.NEG, self)

    def __abs__(self) -> Expr:
        return call(Fn.ABS, self)

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return call(Fn.EQ, self, other) if isinstance(other, Expr | int | float) else NotImplemented

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return call(Fn.NE, self, other) if isinstance(other, Expr | int | float) else NotImplemented

    __hash__ = object.__hash__

    def __lt__(self, other: ExprLike) -> Expr:
        return call(Fn.LT, self, other)

    def __le__(self, other: ExprLike) -> Expr:
        return call(Fn.LE, self, other)

    def __gt__(self, other: ExprLike) -> Expr:
        return call(Fn.LT, other, self)

    def __ge__(self, other: ExprLike) -> Expr:
        return call(Fn.LE, other, self)

    def __and__(self, other: ExprLike) -> Expr:
        return call(Fn.AND, self, other)

    def __rand__(self, other: ExprLike) -> Expr:
        return call(Fn.AND, other, self)

    def __or__(self, other: ExprLike) -> Expr:
        return call(Fn.OR, self, other)

    def __ror__(self, other: ExprLike) -> Expr:
        return call(Fn.OR, other, self)

    def __xor__(self, other: ExprLike) -> Expr:
        return call(Fn.XOR, self, other)

    def __rxor__(self, other: ExprLike) -> Expr:
        return call(Fn.XOR, other, self)

    def __lshift__(self, other: ExprLike) -> Expr:
        return call(Fn.SHL, self, other)

    def __rshift__(self, other: ExprLike) -> Expr:
        return call(Fn.SHR, self, other)

    def __invert__(self) -> Expr:
        return call(Fn.NOT, self)

    def __bool__(self) -> bool:
        if self.head == "const":
            return bool(self.value)
        if self.head in (Fn.EQ, Fn.NE) and _TRACING.get() is None:
            return (self.args[0] is self.args[1]) is (self.head is Fn.EQ)
        raise Undecided(
            f"`{self}` has no truth value while it is traced: use &, |, ~ and where(), not and, or, not, if"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _intern, (self.head, self.args, self.value, self.kind)

    @classmethod
    def __torch_function__(cls, fn: Any, types: object, args: Any = (), kwargs: Any = None) -> Expr:
        """``torch.where``, ``torch.tanh`` and their like, called on expressions by a traced function."""
        from sparsec.scalar.functions import named

        return named(fn.__name__)(*args, **(kwargs or {}))

    def __str__(self) -> str:
        from sparsec.scalar.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        return str(self)


_TABLE: weakref.WeakValueDictionary[tuple[object, ...], Expr] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def _intern(head: Fn | str, args: tuple[Expr, ...], value: int | float | bool | str | None, kind: Kind) -> Expr:
    key = (head, tuple(id(a) for a in args), type(value), repr(value), kind)
    found = _TABLE.get(key)
    if found is None:
        with _LOCK:  # two threads must not make two of one
            found = _TABLE.get(key)
            if found is None:
                found = _TABLE[key] = Expr(head, args, value, kind)
    return found


def constant(value: int | float | bool) -> Expr:
    """A number."""
    kind: Kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    return _intern("const", (), value, kind)


def var(name: str, kind: Kind = "int") -> Expr:
    """A named variable: a dim, an index (b, h, i, j, c), ``score``."""
    return _intern("var", (), name, kind)


def element(tensor: str, *index: ExprLike, kind: Kind = "float") -> Expr:
    """``tensor[index…]`` of a captured tensor."""
    return _intern("element", tuple(lift(i) for i in index), tensor, kind)


def lift(value: ExprLike) -> Expr:
    """A number as a constant; an expression as it is."""
    return value if isinstance(value, Expr) else constant(value)


def raw(fn: Fn, *args: Expr) -> Expr:
    """A call as it stands, not folded; for ``sparsec.scalar.fold`` and what it is built of."""
    from sparsec.scalar.kinds import result_kind

    return _intern(fn, args, None, result_kind(fn, args))


def call(fn: Fn, *values: ExprLike) -> Expr:
    """A scalar function of expressions, in canonical form (see ``sparsec.scalar.fold``).

    Raises:
        TypeError: on a wrong number of operands, or operands of a kind that the function does not take.
    """
    if len(values) != ARITY[fn]:
        raise TypeError(f"{fn.value} takes {ARITY[fn]} operands, not {len(values)}")
    from sparsec.scalar.fold import fold
    from sparsec.scalar.kinds import coerce

    args = coerce(fn, tuple(lift(v) for v in values))
    folded = fold(fn, args)
    return raw(fn, *args) if folded is None else folded
