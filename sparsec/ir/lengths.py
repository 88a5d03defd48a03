"""How many queries and how many keys a variant has: the dims behind both, whatever the declaration calls them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsec.ir.error import InputError
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant, dim_names
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.walk import variables

QUERIES, KEYS = ("TQ", "T"), ("TK", "T")
"""The customary names; they decide where inputs of several lengths could be meant."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths that query positions count along.

    Attributes:
        queries: rows of a query tensor; None for a variant that has no query.
        keys: tokens of the memory that positions refer to; None for a variant without keys of the customary names.
    """

    queries: Expr | None
    keys: Expr | None

    @property
    def names(self) -> frozenset[str]:
        """The dims in both, which differ from call to call."""
        return self.query_names | self.key_names

    @property
    def query_names(self) -> frozenset[str]:
        """The dims in the number of queries."""
        return frozenset() if self.queries is None else frozenset(variables(self.queries))

    @property
    def key_names(self) -> frozenset[str]:
        """The dims in the number of keys."""
        return frozenset() if self.keys is None else frozenset(variables(self.keys))

    def query_count(self, dims: Mapping[str, int]) -> int:
        """Query rows at these dims; 0 without a query."""
        return _at(self.queries, dims)

    def key_count(self, dims: Mapping[str, int]) -> int:
        """Tokens at these dims; 0 without keys."""
        return _at(self.keys, dims)

    def offset(self, dims: Mapping[str, int]) -> int:
        """The position of the first query by default, where queries end with the keys; 0 without keys."""
        return self.key_count(dims) - self.query_count(dims) if self.keys is not None else 0

    def longest(self, dims: Mapping[str, int]) -> int:
        """The larger of both counts, at least 1; a count of which dims do not tell does not matter."""
        known = [
            length for length in (self.queries, self.keys) if length is not None and {*variables(length)} <= {*dims}
        ]
        return max((_at(length, dims) for length in known), default=1) or 1


def lengths(variant: Variant) -> Lengths:
    """The lengths of a variant, the same for its declaration and for its graph after passes."""
    nodes = variant.nodes
    queries = [n.src[0].shape[1] for op in (Op.ATTEND, Op.RECALL, Op.SCORE) for n in nodes if n.op is op]
    keys = [n.shape[1] for n in nodes if n.op is Op.TOKENS]
    return Lengths(_chosen(variant, queries, QUERIES), _chosen(variant, keys, KEYS))


def _chosen(variant: Variant, used: Sequence[Expr], customary: Sequence[str]) -> Expr | None:
    """The length that has a customary name, else the one that the first input has; such a dim where none is used."""
    found = {str(length): length for length in used}
    inputs = [str(node.shape[1]) for node in variant.parameters if len(node.shape) > 1]
    for name in (*customary, *inputs, *sorted(found)):
        if name in found:
            return found[name]
    return next((var(name) for name in customary if name in dim_names(variant)), None)


def position(given: object) -> int:
    """A ``q_offset`` that a caller gave. Raises InputError where it is no whole number of 32 bits."""
    try:
        found = operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        found = 2**31
    if not -(2**31) <= found < 2**31:
        rule = "the position of the first query is a whole number of 32 bits"
        shape = tuple(getattr(given, "shape", ()))
        said = f"a tensor of shape {shape}" if shape else repr(given)
        named = "give inputs by name, layer(q=…)" if shape else "give an int, or None for queries that end the keys"
        raise InputError("q_offset", said, rule, named)
    return found


def _at(length: Expr | None, dims: Mapping[str, int]) -> int:
    return 0 if length is None else evaluate(length, dims)
