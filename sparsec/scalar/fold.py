"""Canonical forms at construction: integers as sums of products, booleans simplified, floats only where IEEE allows."""

from __future__ import annotations

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.fold_bool import BOOL_RULES
from sparsec.scalar.fold_float import FLOAT_RULES
from sparsec.scalar.fold_int import INT_RULES

RULES = {"int": INT_RULES, "bool": BOOL_RULES, "float": FLOAT_RULES}


def fold(fn: Fn, args: tuple[Expr, ...]) -> Expr | None:
    """The simpler form of a call whose operands are of one kind (``kinds.coerce``), or None if it stands as it is.

    2 * TK - TK + 0  ->  TK        (64*c + 63) // 64  ->  c        True & x  ->  x        ~(i < j)  ->  j <= i
    """
    kinds = {"float"} if fn is Fn.DIV else {a.kind for a in (args[1:] if fn is Fn.WHERE else args)}
    widest = "float" if "float" in kinds else "int" if "int" in kinds else "bool"
    rule = RULES[widest].get(fn)
    return rule(*args) if rule else None
