"""Which values between kernels are kept in fp32, and which gradients are not: read off the graph before planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rules_read import branches

OUTPUTS = (Op.ATTEND, Op.MERGE, Op.RECALL)
TOLERANT = (Op.MAP, Op.PREFIX, Op.WRITE, Op.RECALL)
"""Ops whose kernels read any float dtype."""


def exact(nodes: Sequence[Node], outputs: Sequence[Node]) -> frozenset[Node]:
    """Values in fp32 that are no results.

    Maps that a kernel adds up, multiplies or takes exponents of, one number per token and head (or a decay): gates,
    write strengths, terms of running sums. Outputs of attention and of states that maps alone read.
    """
    readers = _readers(nodes, outputs)
    maps = {n for n in nodes if n.op is Op.MAP and any(_gains(r, n) for r in readers[n])}
    maps = {n for n in maps if all(r.op in TOLERANT or _gains(r, n) for r in readers[n])}
    read = {n for n in nodes if n.op in OUTPUTS and readers[n] and all(r.op is Op.MAP for r in readers[n])}
    banks: dict[Node, bool] = {}
    for n in nodes:
        if n.op is Op.RECALL:  # one kernel for all that read a bank, and one dtype
            banks[n.src[1]] = banks.get(n.src[1], True) and n in read
    alone = {n for n in read if n.op is not Op.RECALL or banks[n.src[1]]}
    return frozenset(maps | alone) - frozenset(outputs)


def _readers(nodes: Sequence[Node], outputs: Sequence[Node]) -> Mapping[Node, list[Node]]:
    found: dict[Node, list[Node]] = {n: [] for n in (*nodes, *outputs)}
    for reader in nodes:
        for source in reader.src if reader.op is not Op.VJP else ():
            found[source].append(reader)
    return found


def _gains(reader: Node, source: Node) -> bool:
    """Whether a reader is more exact for a map in fp32, at little cost."""
    if reader.op is Op.PREFIX:
        return True
    if reader.op is Op.WRITE:
        read = [name for name, operand in reader.operands.items() if operand is source]
        return source not in reader.positional and (read == ["decay"] or len(source.shape) == 3)
    return reader.op is Op.MERGE and source not in branches(reader)[0]


def handed(nodes: Sequence[Node]) -> frozenset[Node]:
    """Gradients of activations that adjoints of maps alone read: in the dtype of the inputs, as what they are of."""
    found = {v for v in nodes if v.op is Op.VJP and len(v.shape) == 4}
    for reader in nodes:
        through = reader.op is Op.VJP and reader.src[0].op is Op.MAP
        found -= {s for s in reader.src if not through or s is not reader.positional[1]}
    return frozenset(found)
