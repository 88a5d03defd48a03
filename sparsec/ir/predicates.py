"""Predicates with a name: which chunks a query may choose, which tokens it may see."""

from __future__ import annotations

from sparsec.scalar.expr import Expr, var

QUERY, KEY, CHUNK_ID = var("i"), var("j"), var("c")


def complete_past(size: int) -> Expr:
    """Chunks that ended strictly before the query: HSA, MoBA's remote blocks."""
    return (CHUNK_ID + 1) * size <= QUERY


def complete(size: int) -> Expr:
    """Chunks that have ended, the query's own token included: NSA's compression."""
    return (CHUNK_ID + 1) * size - 1 <= QUERY


def started(size: int) -> Expr:
    """Chunks that have begun; the read masks tokens inside: NSA's selection, MoBA, InfLLM-v2."""
    return CHUNK_ID * size <= QUERY


def causal() -> Expr:
    """Tokens up to the query's own."""
    return KEY <= QUERY


CHUNK = {"complete_past": complete_past, "complete": complete, "started": started}
TOKEN = {"causal": causal}
