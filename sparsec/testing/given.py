"""The oracle on one kernel's piece of graph: what the kernel read is given, what it wrote is computed in fp64."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.oracle import check, same_selection
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.values import Chosen, Memory, Output, Value
from sparsec.plan.plan import Kernel

Finding = tuple[bool, str, float | None]
"""Whether two sides agree, the finding as a sentence, and its relative error where it has one."""

PARTS = frozenset({"o", "lse", "k", "v", "indices", "weights", "tensor"})
"""Values of the graph; block lists are not among them."""


def given(
    graph: Variant, kernel: Kernel, buffers: Mapping[str, Tensor], dims: Mapping[str, int], chosen: bool = False
) -> Evaluation:
    """An evaluation in which the inputs and the values that the kernel read from other kernels are known.

    With ``chosen``, so are the lists that the kernel itself wrote: what it computed from them is judged on them.
    """
    known: dict[Node, Value] = {node: _exact(buffers[str(node["name"])]) for node in graph.parameters}
    held: dict[Node, dict[str, Tensor]] = {}
    own = [place for place in kernel.results if chosen and place[2] == "indices"]
    for name, node, part in (*kernel.sources, *own):
        if node not in known and part in PARTS:
            held.setdefault(node, {})[part] = buffers[name]
    known |= {node: value_of(node, parts) for node, parts in held.items()}
    device = next(iter(buffers.values())).device
    return Evaluation(known, dims, "vector", dims["q_offset"], device)


def _exact(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def value_of(node: Node, parts: Mapping[str, Tensor]) -> Value:
    """The oracle's form of what kernels wrote for a node, by part: o, lse, k, v, indices, weights or tensor."""
    if "indices" in parts:
        return Chosen(parts["indices"].long(), node.integer("size"))
    if "k" in parts:
        return Memory(parts["k"].double(), parts["v"].double() if "v" in parts else None)
    if "o" in parts:
        return Output(parts["o"].double(), parts["lse"].double() if "lse" in parts else None)
    return _exact(next(iter(parts.values())))


def compare(ev: Evaluation, node: Node, part: str, actual: Tensor, dtype: str) -> Finding:
    """What a kernel wrote for one part of a node against the oracle's value; lists up to near ties of their scores."""
    truth = ev.whole(node)
    if isinstance(truth, Chosen):
        agree = same_selection(actual, truth)
        wrong = int((~agree).sum())
        return wrong == 0, f"{agree.numel() - wrong} of {agree.numel()} lists hold the oracle's members", None
    verdict = check(actual, _part(truth, part), dtype if actual.is_floating_point() else "float64")
    return verdict.ok, verdict.sentence, verdict.tensor


def _part(value: Value, part: str) -> Tensor:
    if isinstance(value, Output):
        found = value.lse if part == "lse" else value.o
    elif isinstance(value, Memory):
        found = value.v if part == "v" else value.k
    else:
        found = value if isinstance(value, Tensor) else None
    assert found is not None, f"the oracle has no part {part} of {type(value).__name__}"
    return found
