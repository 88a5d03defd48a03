"""Sparsity patterns as predicates over head h, query i and key j; all but ``random_anywhere`` are causal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.random import random_block

H, QUERY, KEY = var("h"), var("i"), var("j")
CAUSAL = KEY <= QUERY
AGE = QUERY - KEY


def any_of(predicates: Sequence[Expr]) -> Expr:
    """True where any of them is; false where there are none."""
    return reduce(lambda a, b: a | b, predicates, constant(False))


def window(size: int) -> Expr:
    """The last ``size`` tokens, the query's own among them."""
    return CAUSAL & (size > AGE)


def first(count: int) -> Expr:
    """The first ``count`` tokens: attention sinks, global tokens that all may see."""
    return CAUSAL & (count > KEY) if count else constant(False)


def dilated(size: int, step: int) -> Expr:
    """Every ``step``-th token back, ``size`` of them."""
    return CAUSAL & (size * step > AGE) & (AGE % step == 0)


def strided(step: int) -> Expr:
    """The last ``step`` tokens and every ``step``-th before (Sparse Transformer, arXiv 1904.10509)."""
    return CAUSAL & ((step > AGE) | (AGE % step == 0))


def log_sparse() -> Expr:
    """Tokens 0, 1, 2, 4, 8, … back (arXiv 1907.00235): for x = 0 and powers of two alone, x ^ (x - 1) is 2x - 1."""
    return CAUSAL & ((AGE ^ (AGE - 1)) == 2 * AGE - 1)


def random_earlier(block: int, count: int, seed: int) -> Expr:
    """``count`` draws of an earlier block per query block and head; they may coincide, the first block draws itself."""
    return CAUSAL & _drawn(block, count, seed, QUERY // block)


def random_anywhere(block: int, count: int, seed: int) -> Expr:
    """``count`` random blocks of the whole sequence, drawn per query block and head; not causal."""
    return _drawn(block, count, seed, (var("TK") + block - 1) // block)


def _drawn(block: int, count: int, seed: int, limit: Expr) -> Expr:
    return any_of([KEY // block == random_block(seed, H, QUERY // block, n, limit) for n in range(count)])
