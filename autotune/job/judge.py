"""Whether everything that a variant returns is right: numbers by the oracle's bounds, lists by gaps of 4 ulp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import wrong
from sparsec.ir.variant import Variant
from sparsec.oracle.error import Verdict, check
from sparsec.plan.plan import Plan
from sparsec.runtime.compiled import Compiled

SAMPLED = 64
"""Most queries whose lists are held to the oracle."""


def judged(
    compiled: Compiled, plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int], truths: Sequence[Tensor]
) -> Verdict:
    """The verdict on the worst of a variant's outputs; ``truths`` has all of them by the oracle."""
    result = compiled(None, **inputs)
    outputs = result if isinstance(result, tuple) else (result,)
    found = numbers(compiled.variant, outputs, truths, compiled.bind(inputs)[1])
    if len(found) < len(outputs):
        found.append(lists(compiled, plan, inputs, dims))
    return worst(found)


def numbers(variant: Variant, outputs: Sequence[Tensor], truths: Sequence[Tensor], dtype: str) -> list[Verdict]:
    """The verdicts on the outputs that are no lists, in order."""
    triples = zip(variant.outputs, outputs, truths, strict=True)
    return [check(actual, truth, dtype) for node, actual, truth in triples if node.kind != "selection"]


def lists(compiled: Compiled, plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> Verdict:
    """The verdict on the lists among the outputs, on a sample of queries, given what their kernels read."""
    buffers = compiled.run_plan(plan, inputs, dims)
    count = compiled.lengths.query_count(dims)
    rows = torch.linspace(0, max(count - 1, 0), min(count, SAMPLED)).long().unique()
    for kernel in plan.kernels:
        if {*kernel.writes} & {*plan.outputs} and any(part == "indices" for _, _, part in kernel.results):
            written = {name: buffers[name] for name in kernel.writes}
            sentence = wrong(Truth(kernel, buffers, dims, rows.to(written[kernel.writes[0]].device)), written)
            if sentence is not None:
                return Verdict(False, float("inf"), float("inf"), sentence)
    return Verdict(True, 0.0, 0.0, "the lists are the oracle's choice")


def worst(found: Sequence[Verdict]) -> Verdict:
    """The verdict that counts for all."""
    return max(found, key=lambda verdict: (not verdict.ok, verdict.tensor))
