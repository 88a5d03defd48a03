"""The quick form of every row operation, under the names of `sparsec.oracle.loop`."""

from sparsec.oracle.vector_attention import attend, attend_chunks, cosine, dot, indexer, members, softmax
from sparsec.oracle.vector_selection import choose, overlap, pool, reduce_heads, weigh

__all__ = [
    "attend",
    "attend_chunks",
    "choose",
    "cosine",
    "dot",
    "indexer",
    "members",
    "overlap",
    "pool",
    "reduce_heads",
    "softmax",
    "weigh",
]
