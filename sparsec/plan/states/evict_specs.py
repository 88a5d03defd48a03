"""Specs of caches from which pairs are given up for a linear state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearRead:
    """o = Mᵀq / zᵀq of the pairs that were given up, and log(zᵀq); 0 and −inf of none.

    Attributes:
        q: features ``[B,N,H,D]``; head h reads the state of head h // (H / HKV).
        out, lse: ``[B,N,H,DV]`` and fp32 ``[B,N,H]``.
        lag: L chunks: a query of chunk c reads what was given up after chunks before c − L.
    """

    q: str
    q_dtype: str
    out: str
    out_dtype: str
    lse: str
    heads: int
    lag: int


@dataclass(frozen=True, slots=True)
class Evict:
    """left ``[B,N,HKV]`` int32: after which chunk each pair of k ``[B,N,HKV,D]`` and v ``[B,N,HKV,DV]`` is given up.

    2**30 where it never is. Each complete chunk of ``size`` tokens joins what is held; the ``keep`` pairs stay that the
    state recalls worst, ties to the lower token, and the others are written to it.
    """

    name: str
    k: str
    v: str
    left: str
    heads: int
    dim: int
    cols: int
    keep: int
    size: int
    k_dtype: str
    v_dtype: str
    length: str = "N"
    read: LinearRead | None = None


NEVER = 2**30
"""The chunk after which a pair is given up that is still held at the end."""
