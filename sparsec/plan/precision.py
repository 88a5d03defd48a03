"""Which values between kernels are kept in fp32, and which gradients are not: read off the graph before planning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rules_read import branches
from sparsec.ir.rules_state import is_ladder
from sparsec.plan.adjoint import is_total, terms
from sparsec.scalar.expr import var

OUTPUTS = (Op.ATTEND, Op.MERGE, Op.RECALL)
TOLERANT = (Op.MAP, Op.PREFIX, Op.WRITE, Op.RECALL, Op.NORM2, Op.ROW_LSE, Op.MASS, Op.MIXTURE)
"""Ops whose kernels read any float dtype."""
EXACT = (Op.MAP, Op.MIXTURE, Op.ROW_LSE)
"""Of those, the ones that nothing but fp32 is kept for where they alone read it."""
TERMS = {Op.WRITE: "k", Op.RECALL: "q", Op.MASS: "k"}
"""What of which op is a term that stays in the dtype of the inputs."""
OF_STATES = (*TERMS, Op.MIXTURE, Op.NORM2)
"""Ops of states that queries and keys get gradients from."""


NARROW = 64
"""Head dims below this are scanned token by token unless tuned; chunks read queries and keys in one dtype."""


def exact(nodes: Sequence[Node], outputs: Sequence[Node], width: Callable[[Node], int]) -> frozenset[Node]:
    """Values in fp32 that are no results.

    Maps that a kernel adds up, multiplies or takes exponents of, one number per token and head (or a decay): gates,
    write strengths, terms of running sums. Branches of merges that maps make. What one level leaves to the next, which
    may be a small difference. Outputs of attention and of states that maps alone read, or mixtures: masses, as a step
    holds them. Unit queries that weigh states and ask them, where their ``width``, the last dim, is narrow: queries,
    keys, values of the next level and outputs rounded, 1.65e-3 each, would be more than the 3e-3 of bf16.
    """
    readers = _readers(nodes, outputs)
    maps = {n for n in nodes if n.op is Op.MAP and any(_gains(r, n) for r in readers[n])}
    maps = {n for n in maps if all(r.op in TOLERANT or _gains(r, n) for r in readers[n])}
    maps |= left(nodes, Op.RECALL) | {n for n in nodes if _asks(n, readers[n]) and width(n) < NARROW}
    maps |= _faded(nodes, readers)
    read = {n for n in nodes if n.op in OUTPUTS and readers[n] and all(r.op in EXACT for r in readers[n])}
    return frozenset(maps | read) - frozenset(outputs)


def merged(nodes: Sequence[Node], outputs: Sequence[Node]) -> frozenset[Node]:
    """What merges read and is no result: they take fp32."""
    return frozenset(s for n in nodes if n.op is Op.MERGE for s in n.src) - frozenset(outputs)


def left(nodes: Sequence[Node], *made_of: Op) -> frozenset[Node]:
    """Maps of recalls or surprises that are written to states: what a level leaves to the next.

    That of a recall is a small difference of two values; a surprise is one already.
    """
    stored = {n.src[2] for n in nodes if n.op is Op.WRITE}
    return frozenset(n for n in stored if n.op is Op.MAP and any(s.op in made_of for s in n.src))


def _faded(nodes: Sequence[Node], readers: Mapping[Node, Sequence[Node]]) -> set[Node]:
    """Maps that scans and maps read, as queries, keys or erase vectors where key channels fade by themselves.

    They are multiplied by decays in fp32 before any product, and rounded then.
    """
    banks = {n for n in nodes if n.op is Op.WRITE and n["decay_kind"] == "key"}

    def vector(reader: Node, node: Node) -> bool:
        if reader.op is Op.RECALL:
            return reader.positional[0] is node and set(reader.positional[1:]) <= banks and not reader.operands
        return reader in banks and node is not reader.src[2] and len(node.shape) == 4

    found = {n for n in nodes if n.op is Op.MAP and any(vector(r, n) for r in readers[n])}
    return {n for n in found if all(vector(r, n) or r.op is Op.MAP for r in readers[n])}


def unit_vectors(nodes: Sequence[Node], outputs: Sequence[Node]) -> frozenset[Node]:
    """Vectors brought to length 1 that scans alone read, as keys of writes and queries of sums: no kernel stores them.

    A factor per token stands for the length, in products of vectors as they are given.
    """
    readers = _readers(nodes, outputs)
    scans = {n for n in nodes if n.op is Op.WRITE and not is_ladder(n)}

    def vector(reader: Node, node: Node) -> bool:
        if reader.op is Op.RECALL:
            asked = reader.positional[0] is node and reader.word("mode") == "sum" and not reader.operands
            return asked and set(reader.positional[1:]) <= scans
        return reader in scans and node not in (*reader.src[:1], *reader.src[2:])

    found = {n for n in nodes if n.op is Op.MAP and n.word("row") == "l2norm" and n.expr("fn") is var("x0", "float")}
    return frozenset(n for n in found if readers[n] and all(vector(r, n) for r in readers[n])) - frozenset(outputs)


def _asks(node: Node, readers: Sequence[Node]) -> bool:
    """Whether unit vectors are queries of a softmax over states, and nothing else."""
    ops = {reader.op for reader in readers}
    return node.op is Op.MAP and node.word("row") == "l2norm" and Op.MIXTURE in ops and ops <= {Op.MIXTURE, Op.RECALL}


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
    if reader.op in (Op.WRITE, Op.MASS):
        read = [name for name, operand in reader.operands.items() if operand is source]
        return source not in reader.positional and (read == ["decay"] or len(source.shape) == 3)
    if reader.op is Op.RECALL:
        return reader.operands.get("level_gate") is source
    return reader.op is Op.MERGE and (source not in branches(reader)[0] or reader.word("fn") != "lse")


def handed(nodes: Sequence[Node]) -> frozenset[Node]:
    """Gradients of activations that adjoints of maps alone read: in the dtype of the inputs, as what they are of."""
    found = {v for v in nodes if v.op is Op.VJP and len(v.shape) == 4}
    small = left(nodes, Op.RECALL, Op.SURPRISE)
    found -= {v for v in found if v.src[0].op is Op.WRITE and v["of"] == "v" and v.src[0].src[2] in small}
    for reader in nodes:
        through = reader.op is Op.VJP and reader.src[0].op is Op.MAP and not _centred(reader)
        found -= {s for s in reader.src if not through or s is not reader.positional[1]}
    return frozenset(found)


def _centred(reader: Node) -> bool:
    """Whether an adjoint takes a mean from what it is given: that of a row's softmax, which may leave little of it."""
    return reader.op is Op.VJP and reader.src[0].op is Op.MAP and reader.src[0].word("row") == "softmax"


def rounded(nodes: Sequence[Node]) -> frozenset[Node]:
    """Gradients of queries and keys through single banks that sums alone read: in the dtype of the inputs.

    Each bank rounds its own, once, as it would where it is alone: by less than the bounds of these gradients allow.
    """
    sums = {n: terms(n) for n in nodes if is_total(n) and len(n.shape) == 4}
    found = {t for of in sums.values() for t in of if t.op is Op.VJP and TERMS.get(t.src[0].op) == t["of"]}
    found -= {t for of in sums.values() if not all(map(_of_states, of)) for t in of}
    found -= {t for n in nodes if _centred(n) for s in n.src for t in sums.get(s, ())}
    return frozenset(found - {s for n in nodes if n not in sums for s in n.src})


def _of_states(term: Node) -> bool:
    return term.op is Op.VJP and term.src[0].op in OF_STATES
