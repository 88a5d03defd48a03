"""Readouts of several banks, as one read per bank and what merges them."""

from __future__ import annotations

from functools import reduce

from sparsec.ir.build import map as mapped
from sparsec.ir.build import merge
from sparsec.ir.build_state import mass, mixture, row_lse
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.scores import ONE
from sparsec.ir.variant import Variant
from sparsec.passes.alter import altered
from sparsec.passes.expand_residual import part_slots
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import exp, sqrt

LEAST = 1e-30
"""What a weight counts at least where logarithms are taken: one that underflowed has no slope."""


def expand_readout(variant: Variant) -> Variant:
    """A sum over the states of several banks is a sum of reads; a softmax over states weighs the reads.

    recall(q, s, r){sum}  ->  merge(recall(q, s), recall(q, r)){sum}
    recall(q, s){sum, renormalise}, of several parts per token  ->  map(recall(q, s), row_lse(log e)){x0 exp(−x1)},
        or recall(q, s){sum} where the weights of a token sum to 1 already
    recall(q, s, r){state_softmax}  ->  merge(recall(q, s), recall(q, r), w){weighted}
        with w = mixture(q, mass(s's keys), mass(r's keys)) {scale = sqrt(D)}
        where a token writes several parts, a recall and a mass for each slot of its list
    """
    return variant.with_outputs(rewrite(variant.outputs, (_sum, _softmax)))


def _sum(node: Node) -> Node | None:
    if node.op is not Op.RECALL or node["mode"] != "sum" or node["slot"] is not None or node.operands:
        return None
    banks = node.positional[1:]
    if node.flag("renormalise") and any(map(_several, banks)):
        return _renormalised(node)
    return merge(*_reads(node), fn="sum") if len(banks) > 1 else None


def _several(written: Node) -> bool:
    """Whether a token writes several parts, each with a weight above 0."""
    route, weight = (written.operands.get(name) for name in ("route", "weight"))
    if route is None or weight is None or route.op is not Op.TOPK or route["eligible"] is not None:
        return False
    return route.shape[3] is not ONE


def _sum_to_one(written: Node) -> bool:
    """Whether the weights of a token are a softmax over the parts that it writes, whose slopes sum to 0 too."""
    weight = written.operands["weight"]
    whole = weight.op is Op.WEIGHTS and weight.word("fn") == "softmax" and weight.flag("renormalise")
    return whole and weight.src[1] is written.operands["route"]


def _renormalised(node: Node) -> Node:
    """Σ_banks read / Σ e, the sum of a token's weights being the exponential of a log-sum-exp of logarithms."""
    q, *banks = node.positional
    reads = [altered(node, positional=(q, bank), renormalise=not _several(bank)) for bank in banks]
    if not any(_several(bank) and not _sum_to_one(bank) for bank in banks):
        return merge(*reads, fn="sum") if len(banks) > 1 else reads[0]
    sources, terms = list[Node](), list[Expr]()
    for bank, read in zip(banks, reads, strict=True):
        sources.append(read)
        term = var(f"x{len(sources) - 1}", "float")
        if _several(bank) and not _sum_to_one(bank):
            sources.append(row_lse(mapped(bank.operands["weight"], fn=f"log(maximum(x0, {LEAST}))")))
            term = term * exp(-var(f"x{len(sources) - 1}", "float"))
        terms.append(term)
    return mapped(*sources, fn=reduce(lambda a, b: a + b, terms), align="heads")


def _reads(node: Node) -> list[Node]:
    """One recall per bank."""
    q, *banks = node.positional
    return [altered(node, dict.fromkeys(node.operands), positional=(q, bank)) for bank in banks]


def _softmax(node: Node) -> Node | None:
    if node.op is not Op.RECALL or node["mode"] != "state_softmax" or node["when"] != "after":
        return None
    q, *banks = node.positional
    given = node.operands
    per_level = [given[name] for name in ("level_bias", "level_gate") if name in given]
    if not all(map(_candidates, banks)) or any(len(source.shape) != 4 for source in per_level):
        return None
    each = [(bank, slot) for bank in banks for slot in _candidates(bank)]
    if per_level and len(each) > len(banks):
        return None
    scale: Expr = sqrt(q.shape[-1])
    if "kappa" in given:
        scale, q = ONE, mapped(q, given["kappa"], fn="x0 * x1", align="heads")
    found = [_mass(bank, slot) for bank, slot in each]
    kept = {"top": node["top"], "bias": given.get("level_bias"), "gain": given.get("level_gate")}
    first = len(_candidates(banks[0]))
    weights = mixture(q, *found, scale=scale, first=first, **kept)  # type: ignore[arg-type]
    asked, named = node.src[0], dict.fromkeys(node.operands)
    how = {"mode": "sum", "renormalise": True, "top": None}
    reads = [altered(node, named, positional=(asked, bank), slot=slot, **how) for bank, slot in each]
    return merge(*reads, weights, fn="weighted")


def _mass(written: Node, slot: int | None) -> Node:
    kept = {name: written.operands.get(name) for name in ("beta", "decay", "route", "weight")}
    return mass(written.src[1], freeze_unselected=written.flag("freeze_unselected"), slot=slot, **kept)


def _candidates(written: Node) -> tuple[int | None, ...]:
    """The slots of a token's parts, (None,) of one; () where their masses of keys do not fade as a whole."""
    if written.op is not Op.WRITE or written["decay_kind"] not in ("none", "scalar"):
        return ()
    return part_slots(written) if written.src[1].shape[2] is written.src[0].shape[2] else ()
