"""The quick form of every row operation, under the names of `sparsec.oracle.loop`."""

from sparsec.oracle.vector_attention import (
    attend,
    attend_chunks,
    cosine,
    divergence,
    dot,
    indexer,
    members,
    of_members,
    softmax,
)
from sparsec.oracle.vector_selection import choose, overlap, pool, reduce_heads, weigh

__all__ = [
    "attend",
    "attend_chunks",
    "choose",
    "cosine",
    "divergence",
    "dot",
    "indexer",
    "members",
    "of_members",
    "overlap",
    "pool",
    "reduce_heads",
    "softmax",
    "weigh",
]
