"""What the bounds of an error cannot see: empty rows, exact ties, surplus slots, and kernels built once."""

from __future__ import annotations

import math

import pytest
import torch

from sparsec.ir.op import Op
from sparsec.oracle import Chosen, evaluate_node
from sparsec.runtime.compiled import compile
from sparsec.testing.inputs.styles import set_style
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.case import WholeCase, on

STYLES = ["gpu", "cpu", "flipped"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["streaming", "msa-random-alone", "hsa", "nsa-given", "moba", "infllm2"])
def test_rows_without_keys_are_zero(name: str, style: str) -> None:
    case = WholeCase(name, (33, 17, None), dtype="bfloat16", style=style)  # 16 queries come before the first key
    compiled, inputs = on(name, "interpreter"), case.inputs()
    set_style(compiled, style, *compiled.bind(inputs))
    out = compiled(None, **inputs)
    assert isinstance(out, torch.Tensor)
    assert bool((out[:, :16] == 0).all()) and bool(out.isfinite().all())


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
@pytest.mark.parametrize("name", ["hsa-mean", "nsa", "counted", "documents"])
def test_without_a_single_key_every_row_is_zero(name: str, target: str) -> None:
    inputs = WholeCase(name, (5, 0, None)).inputs()
    out = on(name, target)(None, **inputs)
    assert isinstance(out, torch.Tensor) and bool((out == 0).all())


@pytest.mark.parametrize("name", ["alibi-lse", "joined"])
def test_the_log_sum_exp_of_an_empty_row_is_minus_infinity(name: str) -> None:
    case = WholeCase(name, (33, 17, None), style="gpu")
    inputs = case.inputs()
    out, lse = on(name, "interpreter")(None, **inputs)
    assert bool((out[:, :16] == 0).all()) and bool((lse[:, :16] == -math.inf).all())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["hsa", "hsa-mean", "moba", "nsa-selected", "infllm2", "open-chunks"])
def test_ties_go_to_the_lowest_index(name: str, style: str) -> None:
    inputs = WholeCase(name, (131, 131, None), (2, 1), numbers="ties").inputs()  # whose means of equal keys are exact
    equal = {n: x[:, :1].expand_as(x).contiguous() if n in ("k", "l") else x for n, x in inputs.items()}
    compiled = on(name, "interpreter")
    dims, dtype = compiled.bind(equal)
    set_style(compiled, style, dims, dtype)
    plan = compiled.plan(dims, dtype)
    buffers = compiled.run_plan(plan, equal, dims)
    found = {node: buffers[b] for k in plan.kernels for b, node, part in k.results if part == "indices"}
    assert found
    for node, ids in found.items():
        assert node.op is Op.TOPK
        truth = evaluate_node(compiled.graph, node, equal)
        assert isinstance(truth, Chosen)
        assert torch.equal(ids.long().sort(-1).values, truth.ids.sort(-1).values)


@pytest.mark.parametrize("name", ["hsa", "moba", "infllm2"])
def test_slots_without_a_chunk_are_empty(name: str) -> None:
    inputs = WholeCase(name, (17, 17, None), style="gpu").inputs()
    compiled = on(name, "interpreter")
    dims, dtype = compiled.bind(inputs)
    set_style(compiled, "gpu", dims, dtype)
    plan = compiled.plan(dims, dtype)
    buffers = compiled.run_plan(plan, inputs, dims)
    for kernel in plan.kernels:
        parts = {part: buffers[b] for b, _, part in kernel.results}
        if "indices" in parts:
            surplus = parts["indices"] < 0
            assert bool(surplus.any()) and bool((parts["indices"][surplus] == -1).all())
            assert "weights" not in parts or bool((parts["weights"][surplus] == 0).all())


@pytest.mark.parametrize("name", ["msa-window", "nsa", "hsa-window"])
def test_a_new_length_builds_no_kernel(name: str) -> None:
    compiled = compile(small(name), target="interpreter")
    builds = []
    for lengths, batch, layout in [
        ((67, 67, None), 1, "bthd"),
        ((1, 33, None), 2, "bhtd"),
        ((16, 16, None), 1, "inset"),
    ]:
        compiled(None, **WholeCase(name, lengths, batch=batch, layout=layout).inputs())
        builds.append(compiled.builds)
    assert builds == [builds[0]] * 3
