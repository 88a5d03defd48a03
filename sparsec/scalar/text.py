"""Expressions as Python infix text with few parentheses; ``sparsec.scalar.parse`` reads the same expression back."""

from __future__ import annotations

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.parse import ExprSyntaxError, parse
from sparsec.scalar.walk import transform

__all__ = ["ExprSyntaxError", "parse", "to_text"]

# Python's binding strength, loosest first: comparisons, |, ^, &, shifts, sums, products, signs, atoms.
INFIX: dict[Fn, tuple[str, int]] = {
    **{fn: (sign, 1) for fn, sign in ((Fn.LT, "<"), (Fn.LE, "<="), (Fn.EQ, "=="), (Fn.NE, "!="))},
    Fn.OR: ("|", 2),
    Fn.XOR: ("^", 3),
    Fn.AND: ("&", 4),
    **{fn: (sign, 5) for fn, sign in ((Fn.SHL, "<<"), (Fn.SHR, ">>"))},
    **{fn: (sign, 6) for fn, sign in ((Fn.ADD, "+"), (Fn.SUB, "-"))},
    **{fn: (sign, 7) for fn, sign in ((Fn.MUL, "*"), (Fn.DIV, "/"), (Fn.FLOORDIV, "//"), (Fn.MOD, "%"))},
}
PREFIX: dict[Fn, str] = {Fn.NEG: "-", Fn.NOT: "~"}
SIGN, ATOM = 8, 9

Piece = tuple[str, int]


def to_text(expr: Expr) -> str:
    """``(j <= i) & (i - j < 512)``: Python syntax; ``parse`` gives back the same object."""
    return transform(expr, _piece)[0]


def _piece(x: Expr, args: tuple[Piece, ...]) -> Piece:
    if x.head == "const":
        return _number(x.value)
    if x.head == "var":
        return str(x.value), ATOM
    listed = ", ".join(text for text, _ in args)
    if x.head == "element":
        return f"{x.value}[{listed}]", ATOM
    assert isinstance(x.head, Fn)
    if x.head in INFIX:
        return _infix(*INFIX[x.head], *args)
    if x.head in PREFIX:
        return PREFIX[x.head] + _closed(args[0], SIGN), SIGN
    return f"{x.head.value}({listed})", ATOM


def _infix(sign: str, strength: int, left: Piece, right: Piece) -> Piece:
    inside = strength + 1 if strength == 1 else strength  # comparisons would chain
    return f"{_closed(left, inside)} {sign} {_closed(right, strength + 1)}", strength


def _closed(piece: Piece, strength: int) -> str:
    text, own = piece
    return text if own >= strength else f"({text})"


def _number(value: object) -> Piece:
    text = repr(value)
    return text, SIGN if text.startswith("-") else ATOM
