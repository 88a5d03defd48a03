"""Specs of lists that all queries share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SetSelector:
    """One list for all queries: indices int32 ``[B,1,1,k]`` by descending score, then lower id, -1 where none is left.

    score[c] = the maximum over the queries and over summaries ``c*pool … (c+1)*pool - 1`` of the heads' mean, sum or
    maximum of scale * q . key, or of their cosine (0 for a zero vector).

    Attributes:
        key_length: the launch parameter with the number of summaries; ``block_length`` with the number of units.
        key_dtype: the dtype of ``keys``: fp32 for computed summaries.
    """

    name: str
    q: str
    keys: str
    indices: str
    heads: int
    kv_heads: int
    dim: int
    key_length: str
    block_length: str
    scale: float
    cosine: bool
    group: str
    pool: int
    k: int
    dtype: str
    key_dtype: str


@dataclass(frozen=True, slots=True)
class Members:
    """members ``[B,N]`` int32: 1 for the units in a list ``[B,1,1,k]``, 0 for the others; N is ``length``."""

    name: str
    indices: str
    members: str
    k: int
    length: str
