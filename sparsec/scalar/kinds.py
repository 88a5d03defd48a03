"""Which kinds a scalar function takes and gives; operands are brought to one kind before a call is built."""

from __future__ import annotations

from sparsec.scalar.expr import Expr, Kind, call, constant
from sparsec.scalar.fn import COMPARISONS, LOGIC, Fn

TRANSCENDENTAL = frozenset(
    {Fn.EXP, Fn.EXP2, Fn.LOG, Fn.LOG2, Fn.SQRT, Fn.RSQRT, Fn.TANH, Fn.SIGMOID}
)  # fmt: skip
BITS = frozenset({Fn.XOR, Fn.SHL, Fn.SHR}) | LOGIC


def result_kind(fn: Fn, args: tuple[Expr, ...]) -> Kind:
    """The kind of a call: logic of integers is bitwise, division gives floats, one float makes the result a float."""
    if fn in COMPARISONS:
        return "bool"
    if fn is Fn.DIV or fn in TRANSCENDENTAL:
        return "float"
    operands = args[1:] if fn is Fn.WHERE else args
    return "float" if any(a.kind == "float" for a in operands) else operands[0].kind


def coerce(fn: Fn, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Operands as the function takes them: booleans as 0 and 1 in arithmetic, whole constants as floats among floats.

    Raises:
        TypeError: logic or shifts of floats, logic of booleans with integers, a condition that is not boolean.
    """
    if fn in BITS:
        _check_bits(fn, args)
        return args
    if fn is Fn.WHERE:
        return _choice(args)
    if fn in (Fn.EQ, Fn.NE) and all(a.kind == "bool" for a in args):
        return args
    return _joined(tuple(_as_number(a) for a in args), fn is Fn.DIV or fn in TRANSCENDENTAL)


def _check_bits(fn: Fn, args: tuple[Expr, ...]) -> None:
    kinds = {a.kind for a in args}
    allowed: tuple[set[str], ...] = ({"int"},) if fn in (Fn.SHL, Fn.SHR) else ({"int"}, {"bool"})
    if kinds not in allowed:
        shown = " and ".join(f"`{a}` ({a.kind})" for a in args)
        wanted = "integers" if len(allowed) == 1 else "booleans, or only integers"
        raise TypeError(f"`{fn.value}` takes only {wanted}, not {shown}: compare first, and mind that & binds before <")


def _choice(args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    condition, *branches = args
    if condition.kind != "bool":
        raise TypeError(
            f"where() takes a boolean condition, not `{condition}` ({condition.kind}): write `{condition} != 0`"
        )
    if all(b.kind == "bool" for b in branches):
        return args
    return (condition, *_joined(tuple(_as_number(b) for b in branches), False))


def _as_number(x: Expr) -> Expr:
    return call(Fn.WHERE, x, 1, 0) if x.kind == "bool" else x


def _joined(args: tuple[Expr, ...], floats: bool) -> tuple[Expr, ...]:
    if not floats and not any(a.kind == "float" for a in args):
        return args
    return tuple(constant(float(a.value)) if a.head == "const" and isinstance(a.value, int) else a for a in args)
