"""Softmaxes over the rows of states, as reads from both sides and maps between them (GSA, arXiv 2409.07146)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sparsec.ir.build import map as mapped
from sparsec.ir.build import merge
from sparsec.ir.build_state import recall, row_lse, state, surprise, write
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.passes.expand_residual import part_slots
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.functions import exp, maximum, sqrt


def expand_slots(variant: Variant) -> Variant:
    """Keys of slots are read as values of the transposed states, values by the softmax of what that gives.

    recall(q, values, keys){slot_softmax}  ->  recall(map(recall(q, turned) {scale = sqrt(D)}){softmax}, values)
        where keys = write(state, s, k), turned = write(state, k, s); of a delta rule with surprise(keys) for k
    recall(q, values, keys, …)  ->  merge(one of these per level, the shares of levels by their row_lse){gated}
        where a token writes several parts, one for each slot of its list; of a delta rule with
        recall(q, keys) {turned}
    """
    return variant.with_outputs(rewrite(variant.outputs, (_slots,)))


def _slots(node: Node) -> Node | None:
    if node.op is not Op.RECALL or node["mode"] != "slot_softmax" or node["when"] != "after" or node["top"] is not None:
        return None
    q, *banks = node.positional
    pairs, given = list(zip(banks[::2], banks[1::2], strict=True)), node.operands
    alike = all(_turns(keys) and _slots_of(values) == _slots_of(keys) for values, keys in pairs)
    if {"level_bias", "level_gate"} & set(given) or not alike:
        return None
    each = [(values, keys, slot) for values, keys in pairs for slot in _slots_of(values)]
    scale: Expr | float = sqrt(q.shape[-1])
    if "kappa" in given:
        scale, q = 1.0, mapped(q, given["kappa"], fn="x0 * x1", align="heads")
    scores = [
        recall(q, keys if _apart(keys) else _turned(keys), slot=slot, turned=_apart(keys), scale=scale)
        for _, keys, slot in each
    ]
    reads = [
        recall(mapped(s, row="softmax"), values, slot=slot, scale=node["scale"])  # type: ignore[arg-type]
        for s, (values, _, slot) in zip(scores, each, strict=True)
    ]
    return reads[0] if len(reads) == 1 else merge(*reads, fn="gated", gates=_shares(scores))


def _slots_of(written: Node) -> tuple[int | None, ...]:
    return part_slots(written) if written.op is Op.WRITE else ()


def _apart(written: Node) -> bool:
    """Whether a token's parts have each a surprise of its own: such states are read turned."""
    return written.word("rule") == "delta" and len(_slots_of(written)) > 1


def _turns(written: Node) -> bool:
    """Whether the transposed states follow a rule that there is."""
    slots = _slots_of(written)
    if not slots or written["decay_kind"] == "full" or written["reads"] != "decayed":
        return False
    if _apart(written):
        return True
    if written.src[0].src or written.src[1].shape[2] is not written.src[2].shape[2]:
        return False
    plain = written["rule"] == "additive" or written["decay_kind"] in ("none", "scalar")
    return plain and "erase_a" not in written.operands


def _turned(written: Node) -> Node:
    """Mᵀ of M = fade · M + s kᵀ, by keys k and values s; a delta rule writes its surprise for k."""
    bank, slots, keys = written.positional
    keys = surprise(written) if written["rule"] == "delta" else keys
    turned = state(heads=bank.shape[2], rows=bank.shape[4], cols=bank.shape[3], parts=int(bank.shape[1].value or 1))
    kind = {"key": "value", "value": "key"}.get(written.word("decay_kind"), written.word("decay_kind"))
    return write(turned, keys, slots, rule="additive", decay_kind=kind, **written.operands)  # type: ignore[arg-type]


def _shares(scores: Sequence[Node]) -> list[Node]:
    """The softmax over levels of what their rows' exponentials sum to, one map per level."""
    sums = [row_lse(s) for s in scores]
    names = [var(f"x{n}", "float") for n in range(len(sums))]
    top: Expr = reduce(maximum, names)
    total = reduce(lambda a, b: a + b, (exp(name - top) for name in names))
    return [mapped(*sums, fn=exp(name - top) / total) for name in names]
