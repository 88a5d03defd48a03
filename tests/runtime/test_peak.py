"""The memory that `explain` predicts for a forward and its backward is what their calls allocate."""

from __future__ import annotations

import pytest

from sparsec.cli.setting import setting
from sparsec.plan.plan import Plan
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.explain import explain
from sparsec.runtime.peak import float_inputs, training_peak
from sparsec.runtime.quick import Device, on_gpu
from sparsec.runtime.ready import Ready

SMALL = ["T=130", "B=2", "H=4", "HKV=2", "D=16", "DV=16"]
CASES = {
    "streaming": ["window=24", "sinks=3"],
    "hsa": ["chunk=16", "k=3", "DR=16"],
    "nsa": ["block=16", "k=4", "size=8", "stride=4", "window=24"],
    "moba": ["block=16", "k=3"],
}


def _allocated(compiled: Compiled, plan: Plan, dims: dict[str, int]) -> tuple[int, int]:
    """Bytes of the results, and of everything that a call on a GPU makes; nothing is launched."""
    import torch

    built = [compiled.built(kernel, dims) for kernel in plan.kernels]
    given = [b for b in plan.buffers if b.role == "input"]
    ready = Ready(plan, dims, built, [b.name for b in given])
    tensors = [torch.zeros(b.size(dims), dtype=getattr(torch, b.dtype)) for b in given]
    learned = [(k.kernel.name, [(names, lambda own, stream: None) for names in k.tensors]) for k in built]
    stub = Device(lambda: -1, lambda index: 0, lambda: False)
    outputs, _, block = on_gpu(ready, learned, tensors, stub).place(tensors)
    made = sum(x.numel() * x.element_size() for x in outputs)
    return made, made + (block.numel() if block is not None else 0)


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_holds_what_is_predicted(name: str) -> None:
    chosen = setting([name, *CASES[name], *SMALL], "triton:sm_90", "bfloat16")
    compiled, dims, wrt = chosen.compiled, dict(chosen.dims), float_inputs(chosen.compiled.variant)
    found = training_peak(compiled, dims, "bfloat16", wrt)
    halves = compiled.training.joint(dims, "bfloat16", wrt).split
    kept, forward = _allocated(compiled, halves.forward, dims)
    _, backward = _allocated(compiled, halves.backward, dims)
    rounding = 512 * (len(halves.forward.buffers) + len(halves.backward.buffers))
    for predicted, made in ((found.kept, kept), (found.forward, forward), (found.backward, backward)):
        assert made <= predicted <= made + rounding
    assert found.peak == max(found.forward, found.kept + found.backward) > forward


@pytest.mark.parametrize("name", CASES)
def test_peak_memory_grows_as_the_length_does(name: str) -> None:
    """At the shapes of models; the tallies of an inverse index alone grow faster, and are small beside the rest."""
    peaks = []
    for length in (8192, 32768):
        words = [name, f"T={length}", "H=16", "HKV=1", "D=128", "DV=128"]
        chosen = setting(words, "triton:sm_90", "bfloat16")
        wrt = float_inputs(chosen.compiled.variant)
        peaks.append(explain(chosen.compiled, chosen.dims, "bfloat16", gradients=wrt).peak)
    assert peaks[1] <= 4.1 * peaks[0]


def test_explain_names_both_halves() -> None:
    chosen = setting(["streaming", "window=24", "sinks=3", *SMALL], "cpu")
    found = explain(chosen.compiled, chosen.dims, "float32", gradients=("q", "k", "v"))
    assert found.training is not None and found.peak == found.training.peak
    assert found.training.kept_formula == "4*B*H*TQ*(DV + 1)"
    kinds = {k.kind for k in found.kernels}
    assert "TiledAttention" in kinds and any("Grad" in kind for kind in kinds)
    assert found.to_dict()["training"]["kept"] == found.training.kept
