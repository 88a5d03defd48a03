"""The verifier: one rule per op, and the check of whole graphs after every pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.ir import rules_grad, rules_read, rules_select, rules_state
from sparsec.ir.infer import INFER
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.origin import origin_of
from sparsec.ir.rules_select import Problem
from sparsec.ir.schema import SCHEMA, Schema


def _anything(node: Node) -> Problem | None:
    """The schema says it all."""
    return None


RULES: dict[Op, Callable[[Node], Problem | None]] = {
    Op.INPUT: _anything,
    Op.MAP: rules_read.mapped,
    Op.PREFIX: rules_read.prefix,
    Op.TOKENS: rules_read.memory,
    Op.SLOTS: rules_read.memory,
    Op.SUMMARY: rules_read.summary,
    Op.STATE: _anything,
    Op.WRITE: rules_state.write,
    Op.RESIDUAL: rules_state.residual,
    Op.SURPRISE: rules_state.surprise,
    Op.NORM2: lambda node: rules_select.rank(node.src[0], 4),
    Op.ROW_LSE: lambda node: rules_select.rank(node.src[0], 4),
    Op.MASS: rules_state.mass,
    Op.MIXTURE: rules_state.mixture,
    Op.EVICT: rules_state.evict,
    Op.TRANSFER: rules_state.transfer,
    Op.SCORE: rules_select.score,
    Op.BIAS: _anything,
    Op.REDUCE: rules_select.reduce,
    Op.MASK: _anything,
    Op.TOPK: rules_select.topk,
    Op.MEMBERS: rules_select.members,
    Op.GIVEN: rules_select.given,
    Op.WEIGHTS: rules_select.weights,
    Op.ATTEND: rules_read.attend,
    Op.RECALL: rules_state.recall,
    Op.LSE: rules_read.lse,
    Op.MERGE: rules_read.merge,
    Op.AUX: rules_grad.aux,
    Op.VJP: rules_grad.vjp,
}


class VerifyError(AssertionError):
    """A graph that a pass has broken: our mistake, not the declaration's."""


def problem(node: Node) -> Problem | None:
    """What is wrong with a node's sources and attributes, if anything."""
    return _sources(node, SCHEMA[node.op]) or RULES[node.op](node)


def _sources(node: Node, schema: Schema) -> Problem | None:
    """The number and the kinds of positional sources."""
    wanted = schema.sources
    least = sum(not name.endswith(("?", "*")) for name, _ in wanted)
    repeats = bool(wanted) and wanted[-1][0].endswith(("*", "+"))
    given = node.positional
    if len(given) < least or (len(given) > len(wanted) and not repeats):
        form = ", ".join(name for name, _ in wanted)
        return Problem(f"{len(given)} sources", f"it takes ({form})", f"{node.op.value}({form})")
    for at, source in enumerate(given):
        name, kinds = wanted[min(at, len(wanted) - 1)]
        if source.kind not in kinds:
            made = "tokens(k, v) makes one of keys and values" if "memory" in kinds and source.kind == "tensor" else ""
            fix = made or "look at the order of the sources"
            return Problem(
                f"a {source.kind} ({source.op.value})", f"`{name.rstrip('?*+')}` is a {' or '.join(kinds)}", fix
            )
    return None


def verify(roots: Sequence[Node], when: str) -> None:
    """Checks a whole graph; ``when`` names the pass to blame, as in "after simplify"."""
    for node in topological(roots):
        wrong = problem(node)
        inferred = INFER[node.op](node) if wrong is None else None
        if wrong or inferred != (node.shape, node.kind, node.dtype):
            said = f"{wrong.value}: {wrong.rule}" if wrong else f"{node} should be {inferred}"
            raise VerifyError(f"{when}: {origin_of(node) or ''} {node.op.value}: {said}")
