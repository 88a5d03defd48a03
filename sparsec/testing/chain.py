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

from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.oracle import check, oracle
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.values import Chosen, Value
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.specs import BlockList
from sparsec.runtime.compiled import Compiled
from sparsec.testing.given import Finding, compare, given, value_of
from sparsec.testing.tiles_seen import tiles_agree

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
    before, after = (_tuple(oracle(v, inputs, form="vector", q_offset=q_offset)) for v in (variant, graph))
    verdicts = [check(a, b, "float64") for a, b in zip(after, before, strict=True)]
    worst = max(verdicts, key=lambda v: (not v.ok, v.tensor))
    return worst.ok, f"the oracle on both: {worst.sentence}", worst.tensor


def _tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
        ev = given(compiled.graph, kernel, buffers, dims)
        if isinstance(kernel.spec, BlockList):
            return tiles_agree(ev, kernel.results[0][1], kernel.spec, buffers)
        lists = [compare(ev, n, p, buffers[b], dtype) for b, n, p in kernel.results if p == "indices"]
        ev = given(compiled.graph, kernel, buffers, dims, chosen=True) if lists else ev
        return _worst(lists + [compare(ev, n, p, buffers[b], dtype) for b, n, p in kernel.results if p != "indices"])

    return find


def _worst(found: list[Finding]) -> Finding:
    """The first finding that fails, else the one with the largest error; sentences of lists are kept."""
    ok = all(f[0] for f in found)
    numbers = [f for f in found if f[2] is not None and f[0] == ok]
    said = [f[1] for f in found if f[2] is None and f[0] == ok]
    worst = max(numbers, key=lambda f: f[2] or 0.0, default=None)
    return ok, "; ".join([*said, *([worst[1]] if worst else [])]), worst[2] if worst else None


def _outputs(compiled: Compiled, plan: Plan, buffers: Buffers, dims: Mapping[str, int], dtype: str) -> Finding:
    """The outputs against the oracle with the lists that the kernels chose: near ties are judged at the selector."""
    known: dict[Node, Value] = {}
    for node in compiled.variant.parameters:
        known[node] = value_of(node, {"tensor": buffers[str(node["name"])]})
    for kernel in plan.kernels:
        for name, node, part in kernel.results:
            if part == "indices":
                known[node] = Chosen(buffers[name].long(), node.integer("size"))
    ev = Evaluation(known, dims, "vector", dims["q_offset"], next(iter(buffers.values())).device)
    pairs = zip(plan.outputs, compiled.graph.outputs, strict=True)
    return _worst([compare(ev, node, "o", buffers[name], dtype) for name, node in pairs])
