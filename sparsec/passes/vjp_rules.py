"""Where the gradient of each op's result goes: one row per op. What no flow names gets exactly nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsec.ir.adjoint import Key, Part, targets
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.scalar.walk import variables


@dataclass(frozen=True, slots=True)
class Flow:
    """One way from the gradient of a node's result to that of a source.

    Attributes:
        part: the tensor of the source that the gradient is of.
        via: the tensors of the result that depend on it.
        key: what the adjoint is asked for; None where the gradient is handed on as it is.
    """

    source: Node
    part: Part
    via: tuple[Part, ...] = ("value",)
    key: Key | None = None


def adjoint(node: Node, only: Callable[[Key], bool] = lambda key: True) -> list[Flow]:
    """vjp(node, grad) {of = source}, for every source with a slope, or for some."""
    return [
        Flow(node.src[target.place], target.part, _via(node, key), key)
        for key, target in targets(node).items()
        if only(key)
    ]


def _via(node: Node, key: Key) -> tuple[Part, ...]:
    """Which tensors of a result a source is seen in.

    A summary's values come from values, its keys from the rest; a log-sum-exp depends on no values and no outputs.
    """
    if node.kind == "memory":
        return ("v",) if key[0] == "v" else ("k",)
    in_lse = key[0] not in ("v", "weights") if node.op is Op.ATTEND else key[0].startswith("lse")
    return ("value", "lse") if in_lse else ("value",)


def nothing(node: Node) -> list[Flow]:
    """Inputs end here; what is chosen, by predicate or by rank, has no slope."""
    return []


def memory(node: Node) -> list[Flow]:
    """tokens(k, v), slots(k, v): the gradients of keys and values are those of the tensors."""
    parts: Sequence[Part] = ("k", "v")
    return [Flow(source, "value", (part,)) for source, part in zip(node.src, parts, strict=False)]


def summary(node: Node) -> list[Flow]:
    """As every op with an adjoint; given keys are the keys."""
    given = [Flow(node.src[1], "value", ("k",))] if node["fn"] == "given" and _alike(node) else []
    return [*given, *adjoint(node, lambda key: not given or key[0] != "given")]


def _alike(node: Node) -> bool:
    return node.src[1].shape == node.shape[:4]


def score(node: Node) -> list[Flow]:
    """{detach}  ->  nothing"""
    return [] if node.flag("detach") else adjoint(node)


def weights(node: Node) -> list[Flow]:
    """{selector_gradient = none or kl} of the selection  ->  nothing

    A given list has no such attribute and lets it pass.
    """
    passes = dict(node.src[1].attrs).get("selector_gradient", "through_weights")
    return adjoint(node) if passes in ("through_weights", "straight_through") else []


def state(node: Node) -> list[Flow]:
    """state(initial): the gradient of the states before the first token, summed over B where they are learned."""
    whole = node.src and node.src[0].shape == node.shape and node.src[0].dtype == node.dtype
    return [Flow(node.src[0], "value")] if whole else adjoint(node)


def merge(node: Node) -> list[Flow]:
    """A sum hands its gradient on to every branch."""
    if node["fn"] == "sum" and all(source.shape == node.shape for source in node.src):
        return [Flow(source, "value") for source in node.src]
    return adjoint(node)


def lse(node: Node) -> list[Flow]:
    """Becomes ``lse_grad`` of the attend or merge."""
    return [Flow(node.src[0], "lse")]


def map_(node: Node) -> list[Flow]:
    """Only to those that the function reads."""
    fn = node.expr("fn")
    read = variables(fn) if fn is not None else {}
    return adjoint(node, lambda key: key[0] in read)


FLOWS: dict[Op, Callable[[Node], list[Flow]]] = {
    Op.INPUT: nothing,
    Op.MAP: map_,
    Op.PREFIX: adjoint,
    Op.TOKENS: memory,
    Op.SLOTS: memory,
    Op.SUMMARY: summary,
    Op.SCORE: score,
    Op.BIAS: adjoint,
    Op.REDUCE: adjoint,
    Op.MASK: nothing,
    Op.TOPK: adjoint,
    Op.MEMBERS: nothing,
    Op.GIVEN: nothing,
    Op.EVICT: nothing,
    Op.WEIGHTS: weights,
    Op.STATE: state,
    Op.WRITE: adjoint,
    Op.RECALL: adjoint,
    Op.SURPRISE: adjoint,
    Op.NORM2: adjoint,
    Op.ROW_LSE: adjoint,
    Op.MASS: adjoint,
    Op.MIXTURE: adjoint,
    Op.ATTEND: adjoint,
    Op.LSE: lse,
    Op.MERGE: merge,
    Op.AUX: adjoint,
}
"""The ops that can be differentiated; the others are refused where a gradient would have to pass."""
