"""Sparse state expansion with gated delta updates."""

from __future__ import annotations

from sparsec.frontends.presets.sse import sse
from sparsec.ir.node import Node


def sse_gdn(
    *,
    parts: int = 4,
    k: int = 1,
    balance: float = 0.0,
    literal: bool = False,
    raw: bool = False,
    initial: bool = False,
    final: bool = False,
) -> Node | tuple[Node, ...]:
    """The preset sse with rule = gdn: unit keys, a scalar decay, the delta rule (SSE-GDN, arXiv 2507.16577).

    Knobs:
        parts: partitions to choose from.
        k: partitions that a token writes and reads.
        balance: coefficient of the balance loss, a second output; 0 for none.
        literal: e says only what is chosen, as in released code, where normalising what e multiplies undoes it.
        raw: queries, keys and beta ``[B,T,HKV]`` as they are given.
        initial: states before the first token are inputs m1 and m2, fp32 ``[B,1,HKV,D,DV]`` and ``[B,parts,HKV,D,DV]``.
        final: the states after the last token are the last two outputs, shaped alike.
    """
    return sse(parts=parts, k=k, rule="gdn", balance=balance, literal=literal, raw=raw, initial=initial, final=final)
