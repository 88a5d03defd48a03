"""Which values depend, through slopes, on the inputs that are differentiated by; refusals of what has no rule there."""

from __future__ import annotations

from collections.abc import Iterable

from sparsec.ir.adjoint import TARGETS, Part, targets
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import origin_of
from sparsec.ir.variant import Variant
from sparsec.passes.vjp_rules import FLOWS

Place = tuple[Node, Part]
"""A node and which of its tensors."""

PARTS: tuple[Part, ...] = ("value", "k", "v", "lse")


def depending(variant: Variant, inputs: Iterable[Node]) -> frozenset[Place]:
    """Every place that the inputs reach.

    Raises:
        DeclarationError: the variant has adjoints already, or a gradient would have to pass where it cannot yet.
    """
    reached: set[Place] = {(node, "value") for node in inputs}
    for node in variant.nodes:
        if node.op is Op.VJP:
            raise _error(
                variant, node, "double differentiation", "the gradients of gradients have no kernels",
                "differentiate the variant without its gradients",
            )  # fmt: skip
        sources = [source for source in node.src if any((source, part) in reached for part in PARTS)]
        if sources:
            _refuse(variant, node, sources)
            flows = [flow for flow in FLOWS[node.op](node) if (flow.source, flow.part) in reached]
            reached.update((node, part) for flow in flows for part in flow.via)
    return frozenset(reached)


def _refuse(variant: Variant, node: Node, sources: list[Node]) -> None:
    """An error where something that is differentiated by reaches an op, or a selector, that passes no gradient yet."""
    what = " and ".join(variant.names[source] for source in sources)
    fix = f"leave what leads to {what} out of `wrt`, or differentiate the oracle by autograd"
    if node.op not in FLOWS or (node.op in TARGETS and node.op is not Op.TOPK and not targets(node)):
        raise _error(variant, node, node.op.value, "its gradient is not derived yet", fix)
    if node.op is Op.TOPK and node["selector_gradient"] == "kl" and not _compared(variant, node):
        rule = "kl trains scores by an auxiliary loss, and no aux of this choice is among the results"
        raise _error(
            variant, node, "selector_gradient = kl", rule,
            "return aux(scores, selection, target = the attend) {fn = kl} too",
        )  # fmt: skip


def _compared(variant: Variant, selection: Node) -> bool:
    """Whether an auxiliary loss compares the scores of a choice with the attention that it got."""
    losses = (node for node in variant.nodes if node.op is Op.AUX and node["fn"] == "kl")
    return any(selection in node.positional for node in losses)


def _error(variant: Variant, node: Node, value: str, rule: str, fix: str) -> DeclarationError:
    return DeclarationError(f"{node.op.value} `{variant.names[node]}`", value, rule, fix, origin_of(node))
