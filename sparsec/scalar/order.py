"""A total order of expressions that does not depend on the history of the process; canonical forms sort by it."""

from __future__ import annotations

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn

OrderKey = tuple[int, str]


def order_key(x: Expr) -> OrderKey:
    """Variables by name, then everything else by its text, then constants."""
    rank = 0 if x.head == "var" else 2 if x.head == "const" else 1
    return rank, _shape(x)


def _shape(x: Expr) -> str:
    if x.head in ("const", "var"):
        return str(x.value)
    name = x.head.value if isinstance(x.head, Fn) else f"{x.value}[]"
    return f"{name}({','.join(_shape(a) for a in x.args)})"
