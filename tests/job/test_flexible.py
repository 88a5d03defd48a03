"""Plans as FlexAttention calls: the same numbers where there is a form, a reason where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.autotune.job.flexible import FlexForm, flex_form, functions
from sparsec.plan.plan import Refusal
from sparsec.scalar.evaluate import evaluate


def small(variant: sparsec.Variant) -> dict[str, Tensor]:
    return sparsec.inputs(variant, T=45, H=4, HKV=2, D=8, DV=8)


def form_of(variant: sparsec.Variant, inputs: dict[str, Tensor]) -> FlexForm | Refusal:
    compiled = sparsec.compile(variant, "interpreter")
    dims, dtype = compiled.bind(inputs)
    plan = compiled.plan(dims, dtype)
    params = {n: int(evaluate(v, dims)) for kernel in plan.kernels for n, v in kernel.params}
    return flex_form(plan, {**params, "q_offset": dims["q_offset"]})


def by_hand(form: FlexForm, inputs: dict[str, Tensor]) -> Tensor:
    """What FlexAttention does, written out: scores, score_mod, mask_mod, softmax."""
    mask_mod, score_mod = functions(form, inputs)
    q = inputs[form.spec.q].transpose(1, 2).double()
    parts = [
        [inputs[n] if inputs[n].ndim == 4 else inputs[n][None] for n in names] for names in (form.keys, form.values)
    ]
    k, v = (torch.cat(p, 1).transpose(1, 2).double().repeat_interleave(2, dim=1) for p in parts)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (*q.shape[:3], k.shape[2])), indexing="ij")
    scores = q @ k.mT * form.spec.scale
    scores = score_mod(scores, b, h, i, j) if score_mod is not None else scores
    return (scores.masked_fill(~mask_mod(b, h, i, j), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return torch.tanh(score) - 0.1 * (h + 1) * (i - j)


def tagged(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (j <= i) & (tags[b, i] == tags[b, j])


tags = torch.arange(45, dtype=torch.int32)[None] // 13

EXPRESSIBLE = {
    "window, sinks and slots": sparsec.preset("msa", window=7, sinks=2, slots=5),
    "dilated": sparsec.preset("msa", pattern="dilated", window=4, dilation=3, slots=0),
    "log sparse with slots": sparsec.preset("msa", pattern="log_sparse", slots=3),
    "random blocks": sparsec.preset("msa", pattern="window+random", window=4, block=8, slots=0),
    "full": sparsec.preset("full"),
    "score_mod": sparsec.from_flex(alibi),
    "captured documents": sparsec.from_flex(mask_mod=tagged),
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_form_computes_the_variant(name: str) -> None:
    variant = EXPRESSIBLE[name]
    inputs = small(variant)
    form = form_of(variant, inputs)
    assert isinstance(form, FlexForm), form
    truth = sparsec.oracle.oracle(variant, inputs, form="vector")
    assert isinstance(truth, Tensor)
    assert sparsec.oracle.check(by_hand(form, inputs), truth, "float32")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (sparsec.preset("hsa", chunk=8, k=2, landmark="mean", retrieval="group_mean"), "inside each chosen chunk"),
        (sparsec.preset("moba", block=8, k=2), "depends on scores"),
        (sparsec.preset("msa", window=8, slots=4, slot_softmax="gated"), "several softmaxes"),
    ],
)
def test_a_refusal_says_why(variant: sparsec.Variant, reason: str) -> None:
    found = form_of(variant, small(variant))
    assert isinstance(found, Refusal) and reason in found.reason
