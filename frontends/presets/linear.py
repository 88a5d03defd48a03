"""Linear attention: a matrix state to which every token adds its key and value."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, keys, queries, results, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node

ELU_PLUS_ONE = "maximum(x0, 0.0) + exp(minimum(x0, 0.0))"


def linear(*, raw: bool = False, initial: bool = False, final: bool = False) -> Node | tuple[Node, ...]:
    """M = M + k vᵀ, o = D^-½ Mᵀq, with no normaliser (linear attention, arXiv 2006.16236).

    Queries and keys go through elu + 1 first.

    Knobs:
        raw: queries and keys as they are given, without elu + 1.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    q, k = (x if raw else lang.map(x, fn=ELU_PLUS_ONE) for x in (queries(), keys()))
    return results(q, write(bank(initial), k, values()), final)
