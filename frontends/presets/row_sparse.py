"""Row-sparse linear attention: a token writes and decays the few rows of the state that its key chooses."""

from __future__ import annotations

from sparsec.frontends.recurrent import bank, queries, results, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node


def row_sparse(
    *, rows: int = 8, gated: bool = True, freeze: bool = True, initial: bool = False, final: bool = False
) -> Node | tuple[Node, ...]:
    """M = diag(exp(g)) M + k vᵀ, o = D^-½ Mᵀq, k a softmax over the largest few logits (row-sparse, arXiv 2507.16577).

    The key is a classifier over the rows of the state: the largest ``rows`` logits are kept, ties to the lower index,
    then the softmax is taken, with 0 elsewhere. Inputs: q, the keys' logits k ``[B,T,HKV,D]``, v, and the gates' logits
    f ``[B,T,HKV,D]``, g = log σ(f) / 16.

    Knobs:
        rows: of the state that a token writes.
        gated: rows decay by g; otherwise nothing does, and there is no f.
        freeze: rows that are not chosen keep still; otherwise all of them decay.
        initial: the states before the first token are an input m, fp32 ``[B,1,HKV,D,DV]``; otherwise zero.
        final: the states after the last token are a second output, fp32 ``[B,1,HKV,D,DV]``.
    """
    logits = lang.input("k", "B T HKV D")
    k, decay = lang.map(logits, row="softmax", top=rows), None
    if gated:
        f, fn = lang.input("f", "B T HKV D"), "log_sigmoid(x0) * 0.0625"
        chosen = lang.map(logits, row="chosen", top=rows)
        decay = lang.map(f, chosen, fn=f"where(x1 > 0.0, {fn}, 0.0)") if freeze else lang.map(f, fn=fn)
    return results(queries(), write(bank(initial), k, values(), decay=decay), final)
