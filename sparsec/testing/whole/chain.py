"""The chain of trust on one set of inputs: every pair of neighbouring representations run side by side.

Rows: text, graph, graph after passes, each kernel of the plan on a target, the outputs. A wrong number is between two
neighbours, and the link between them says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import VALUES, unjudged, wrong
from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.oracle import Verdict, check, oracle
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.values import Chosen, Value, plain
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.specs import BlockList
from sparsec.runtime.compiled import Compiled
from sparsec.testing.kernels.tiles_seen import tiles_agree

Finding = tuple[bool, str, float | None]
"""Whether two sides agree, the finding as a sentence, and its relative error where it has one."""

Buffers = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Link:
    """Two neighbouring representations and whether they agree.

    Attributes:
        upper, lower: the rows that were compared, for example "graph" and "graph after passes".
        sentence: the finding with its numbers.
        error: root-mean-square error over root-mean-square truth; None where the comparison is not of numbers.
    """

    upper: str
    lower: str
    ok: bool
    sentence: str
    seconds: float
    error: float | None = None


def links(compiled: Compiled, inputs: Mapping[str, Tensor], q_offset: int | None = None) -> Iterator[Link]:
    """Run and compare every row of the chain in turn; kernels run on the compiled target.

    Workspaces hold NaN before a kernel runs. Each kernel is held to the oracle's value of the graph nodes that it
    covers, given what the kernel itself read; so an error is found at the kernel that makes it.
    """
    variant, graph = compiled.variant, compiled.graph
    yield _timed("graph", "text", lambda: _round_trip(variant))
    yield _timed("graph", "graph after passes", lambda: _passes(variant, graph, inputs, q_offset))
    dims, dtype = compiled.bind(inputs, q_offset)
    plan = compiled.plan(dims, dtype)
    buffers = poisoned(plan, inputs, dims)
    for kernel in plan.kernels:
        yield _timed("graph after passes", kernel.name, _kernel(compiled, kernel, buffers, dims, dtype))
    yield _timed(
        "graph after passes",
        f"outputs on {compiled.target.name}",
        lambda: _outputs(compiled, plan, buffers, dims, dtype),
    )


def _timed(upper: str, lower: str, find: Callable[[], Finding]) -> Link:
    start = time.perf_counter()
    ok, sentence, error = find()
    return Link(upper, lower, ok, sentence, time.perf_counter() - start, error)


def _round_trip(variant: Variant) -> Finding:
    from sparsec.frontends.text import parse

    same = parse(variant.text()).outputs == variant.outputs
    return same, "the printed text parses back to the same nodes" if same else "the text parses to another graph", None


def _passes(variant: Variant, graph: Variant, inputs: Mapping[str, Tensor], q_offset: int | None) -> Finding:
    if graph.outputs == variant.outputs:
        return True, "no pass found anything to change", None
    before, after = (as_tuple(oracle(v, inputs, form="vector", q_offset=q_offset)) for v in (variant, graph))
    verdicts = [check(a, b, "float64") for a, b in zip(after, before, strict=True)]
    worst = max(verdicts, key=lambda v: (not v.ok, v.tensor))
    return worst.ok, f"the oracle on both: {worst.sentence}", worst.tensor


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a call, of one too."""
    return result if isinstance(result, tuple) else (result,)


def poisoned(plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> Buffers:
    """The inputs, and every other buffer full of NaN (of a number that is no index, for indices)."""
    device, buffers = next(iter(inputs.values())).device, dict(inputs)
    for b in plan.buffers:
        if b.role != "input":
            dtype = getattr(torch, b.dtype)
            nothing = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
            buffers[b.name] = torch.full(b.size(dims), nothing, dtype=dtype, device=device)
    return buffers


def _kernel(
    compiled: Compiled, kernel: Kernel, buffers: Buffers, dims: Mapping[str, int], dtype: str
) -> Callable[[], Finding]:
    def find() -> Finding:
        compiled.built(kernel, dims).run(buffers, dims)
        if isinstance(kernel.spec, BlockList):
            ev = _evaluation(compiled.graph, buffers, dims, {})
            return tiles_agree(ev, kernel.results[0][1], kernel.spec, buffers)
        if unknown := unjudged(kernel):
            return True, f"left to the outputs: {', '.join(unknown)} mean nothing by themselves", None
        truth = Truth(kernel, buffers, dims, None)
        said = wrong(truth, buffers)
        found = [
            check(buffers[name], truth.tensor(node, part), dtype)
            for name, node, part in kernel.results
            if part in VALUES
        ]
        lists = [name for name, _, part in kernel.results if part == "indices"]
        if said is not None or not found:
            right = f"{lists[0]} holds the oracle's choices, up to gaps of 4 ulp" if lists else "all of it is right"
            return said is None, said or right, None
        worst = max(found, key=lambda v: v.tensor)
        return True, worst.sentence, worst.tensor

    return find


def _outputs(compiled: Compiled, plan: Plan, buffers: Buffers, dims: Mapping[str, int], dtype: str) -> Finding:
    """The outputs against the oracle with the lists that the kernels chose: near ties are judged at the selector."""
    chosen: dict[Node, Value] = {
        node: Chosen(buffers[name].long(), node.integer("size"))
        for kernel in plan.kernels
        for name, node, part in kernel.results
        if part == "indices"
    }
    ev = _evaluation(compiled.graph, buffers, dims, chosen)
    verdicts: list[Verdict] = []
    for name, node in zip(plan.outputs, compiled.graph.outputs, strict=True):
        truth = ev.whole(node)
        if not isinstance(truth, Chosen):
            verdicts.append(check(buffers[name], plain(truth), dtype))
    if not verdicts:
        return True, "the outputs are lists, which were compared at their kernels", None
    worst = max(verdicts, key=lambda v: (not v.ok, v.tensor))
    return worst.ok, worst.sentence, worst.tensor


def _evaluation(graph: Variant, buffers: Buffers, dims: Mapping[str, int], known: Mapping[Node, Value]) -> Evaluation:
    """The oracle on the inputs, some nodes given."""
    device = next(iter(buffers.values())).device
    inputs = {node: buffers[str(node["name"])] for node in graph.parameters}
    exact = {node: x.double() if x.is_floating_point() else x for node, x in inputs.items()}
    queries = lengths(graph).query_count(dims)
    return Evaluation({**exact, **known}, dims, "vector", dims["q_offset"], device, queries)
