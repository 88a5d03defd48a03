"""Shapes as text: "B TQ H D", "[B, (TK + 63) // 64, HKV, D]", with a dtype after it where it is not the call's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparsec.ir.coerce import Refused, divides
from sparsec.ir.node import Shape
from sparsec.scalar.expr import Expr, constant, var

DTYPES = ("float", "float32", "int32")
OTHER = re.compile(r"u?int\d+|bfloat16|float(16|64)|half|bf16|fp(16|32|64)|bool")


def parse_shape(shape: str | Sequence[str | int | Expr]) -> tuple[Shape, str | None]:
    """A shape and the dtype stated in its text, if any.

    Raises:
        DeclarationError: a dim that is no whole-number expression.
    """
    from sparsec.ir.error import DeclarationError
    from sparsec.ir.origin import here

    pieces, dtype = _pieces(shape) if isinstance(shape, str) else (list(shape), None)
    try:
        return tuple(_dim(piece) for piece in pieces), dtype
    except Refused as refused:
        raise DeclarationError("shape", *refused.problem, here()) from refused


def _pieces(text: str) -> tuple[list[str | int | Expr], str | None]:
    words = text.split()
    dtype = words.pop() if words and words[-1] in DTYPES else None
    body = " ".join(words)
    commas = "," in body or body.startswith("[")
    inside = body.removeprefix("[").removesuffix("]") if body.startswith("[") else body
    return [piece.strip() for piece in (inside.split(",") if commas else inside.split()) if piece.strip()], dtype


def _dim(piece: str | int | Expr) -> Expr:
    dim = _read(piece)
    if dim.kind != "int":
        raise Refused(piece, "a dim is a whole number", "such as TK or (TK + 63) // 64")
    if isinstance(piece, str) and OTHER.fullmatch(piece):
        raise Refused(piece, "no input is declared with this dtype", "none, for that of the call, or float32, or int32")
    divides(dim)
    if dim.head == "const" and int(dim.value or 0) < 0:
        raise Refused(piece, "a dim is not negative", "0 or more")
    return dim


def _read(piece: str | int | Expr) -> Expr:
    if isinstance(piece, Expr):
        return piece
    if isinstance(piece, int):
        return constant(piece)
    if piece.isidentifier():
        return var(piece)
    if piece.isdigit():
        return constant(int(piece))
    from sparsec.scalar.text import ExprSyntaxError, parse

    try:
        return parse(piece)
    except ExprSyntaxError as error:
        fix = "a name, a number or an expression such as (TK + 63) // 64"
        raise Refused(piece, f"{error.rule} at `{error.piece}`", fix) from error
