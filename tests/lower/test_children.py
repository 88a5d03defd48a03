"""Choices within lists as GPUs would make them: schedules of the space, which fit and do not spill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.autotune.space import Space
from sparsec.frontends.preset import preset
from sparsec.lower.decode import schedules as steps
from sparsec.lower.registry import default, known, lower_kernel, space
from sparsec.lower.select.children import ORDER
from sparsec.plan.selection.parents import Parents
from sparsec.plan.specs import Selector
from sparsec.runtime.compiled import compile
from sparsec.testing.triton.ahead import job, misfits

PLACE = {"H": 16, "HKV": 2, "B": 1}


def selector(dim: int, **knobs: object) -> Selector:
    """The choice of chunks of HSA in sections."""
    made = compile(preset("hsa", sections=4, **knobs), "interpreter")
    kernels = made.plan({**PLACE, "D": dim, "DV": dim, "DR": dim}, "bfloat16").kernels
    (found,) = [k.spec for k in kernels if isinstance(k.spec, Selector) and k.spec.parents is not None]
    return found


LAYERS = {
    "64": selector(64),
    "128": selector(128),
    "means in fp32, heads": replace(selector(64), group="max", heads=16, key_dtype="float32"),
    "means in fp32": selector(128, landmark="mean", retrieval="group_mean", fanout=6),
}
INDEXER = replace(
    LAYERS["128"], heads=64, kv_heads=1, head_weights="w", k=1024, slots=1024, weights=None, weights_out=None,
    order="score", parents=Parents("above", 1, 32, 64),
)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_tuner_tries_them(name: str) -> None:
    spec = LAYERS[name]
    for target, order in (("triton:sm_90", ORDER), ("tvm:llvm", "two_pass")):
        own = Space(default(spec, target), space(spec, target))
        tried = known(spec, target)
        assert {s.order for s in tried} == {order} != {own.default.order}
        assert all(lower_kernel(spec, own.schedule(own.params(s))).steps for s in tried)
    assert ORDER not in space(replace(spec, parents=None), "triton:sm_90").get("order", ())
    assert default(INDEXER, "triton:sm_90").order == ORDER


@pytest.mark.slow
def test_they_fit_without_spills(tmp_path: Path) -> None:
    """Tiles of candidates by row, an indexer of 64 heads over chunks of 64, and a step's program.

    Maxima over heads, 8 x 8 at a time, spill 8 bytes with Triton 3.9; the tuner tries wider tiles too.
    """
    wanted = [
        (f"{name} {s.rows} x {s.block}", spec, s)
        for name, spec in LAYERS.items()
        for s in known(spec, "triton:sm_90")
        if spec.group != "max" or s.block > 8
    ]
    found = [
        (n, lower_kernel(spec, s)) for n, spec, s in [*wanted, ("indexer", INDEXER, default(INDEXER, "triton:sm_90"))]
    ]
    step = steps.schedule(LAYERS["64"], default(LAYERS["64"], "triton:sm_90"), processors=132, batch=1)
    found.append(("step", steps.lower(LAYERS["64"], step)))
    programs = [
        (f"{n}: {s.program.name}", False, job(s.program, s.schedule, "sm_90")) for n, made in found for s in made.steps
    ]
    assert misfits(programs, "sm_90", tmp_path) == {}
