"""What the tuner tries first of attention: schedules of its space, that lower; gathered ones without spills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.autotune.space import Space
from sparsec.frontends.preset import preset
from sparsec.lower.registry import default, known, lower_kernel, space
from sparsec.plan.grad_specs import AnySpec, GatheredGradQ
from sparsec.plan.specs import GatheredAttention, TiledAttention
from sparsec.runtime.compiled import compile
from sparsec.scalar.expr import var
from sparsec.testing.triton.ahead import job, misfits

LAYERS = [
    ("nsa", {"k": 16, "block": 64}, (64, 4), 128),
    ("nsa", {"k": 16, "block": 64}, (32, 1), 128),
    ("hsa", {}, (16, 1), 64),
]


def specs(name: str, knobs: dict[str, object], heads: tuple[int, int], dim: int) -> list[AnySpec]:
    """The gathered kernels of a layer that read lists, forward and backward."""
    made = compile(preset(name, **knobs), target="interpreter")
    dims = {"H": heads[0], "HKV": heads[1], "D": dim, "DV": dim, "DR": dim, "B": 1}
    halves = made.training.joint(dims, "bfloat16", ("q", "k", "v")).split
    kernels = (*halves.forward.kernels, *halves.backward.kernels)
    return [k.spec for k in kernels if isinstance(k.spec, GatheredAttention | GatheredGradQ)]


@pytest.mark.parametrize("layer", LAYERS)
def test_they_are_schedules_of_the_space(layer: tuple[str, dict[str, object], tuple[int, int], int]) -> None:
    found = specs(*layer)
    assert {type(s) for s in found} == {GatheredAttention, GatheredGradQ}
    for spec in found:
        first, *_ = schedules = known(spec, "triton:sm_90")
        assert first.order == "query_outer" and known(spec, "triton:sm_80") == known(spec, "tvm:llvm") == ()
        for schedule in schedules:
            Space(default(spec, "triton:sm_90"), space(spec, "triton:sm_90")).params(schedule)
            assert lower_kernel(spec, schedule).steps


@pytest.mark.parametrize(
    ("layer", "order"), [(("moba", {}, (32, 8), 128), "key_outer"), (LAYERS[0], "tile_union")], ids=["moba", "nsa"]
)
def test_a_maximum_is_tried_where_the_default_has_none(
    layer: tuple[str, dict[str, object], tuple[int, int], int], order: str
) -> None:
    spec = specs(*layer)[0]
    first, other = default(spec, "triton:sm_90"), known(spec, "triton:sm_90")[-1]
    assert other.maximum and not first.maximum and other.order == first.order == order
    Space(first, space(spec, "triton:sm_90")).params(other)
    assert lower_kernel(spec, other).steps


def test_a_window_is_tried_with_fewer_registers() -> None:
    made = compile(preset("streaming"), target="interpreter")
    (kernel,) = made.plan({"H": 32, "HKV": 8, "D": 128, "DV": 128}, "bfloat16").kernels
    first = default(kernel.spec, "triton:sm_90")
    small, alike, other = known(kernel.spec, "triton:sm_90")
    assert first.producer and first.descriptors and first.rows == 16 * first.warps
    assert small.producer and (small.rows, small.block, small.warps, small.registers) == (64, 64, 4, 128)
    assert not alike.producer and (alike.registers, other.registers) == (0, 128) and other.descriptors
    assert known(kernel.spec, "triton:sm_80") == known(kernel.spec, "tvm:llvm") == ()
    for schedule in (small, alike, other):
        Space(first, space(kernel.spec, "triton:sm_90")).params(schedule)


@pytest.mark.parametrize("target", ["triton:sm_80", "triton:sm_100", "triton:gfx942"])
def test_a_producer_is_a_choice_on_hopper_alone(target: str) -> None:
    made = compile(preset("streaming"), target="interpreter")
    for dim, dtype in ((128, "bfloat16"), (80, "bfloat16"), (128, "float32")):
        (kernel,) = made.plan({"H": 32, "HKV": 8, "D": dim, "DV": dim}, dtype).kernels
        assert space(kernel.spec, target)["producer"] == (False,)
        may = space(kernel.spec, "triton:sm_90")["producer"] == (False, True)
        assert may == (dim == 128 and dtype == "bfloat16") == default(kernel.spec, "triton:sm_90").producer


def test_a_producer_waits_for_a_tuner_where_none_was_measured() -> None:
    made = compile(preset("streaming"), target="interpreter")
    (kernel,) = made.plan({"H": 32, "HKV": 8, "D": 128, "DV": 128}, "bfloat16").kernels
    assert isinstance(kernel.spec, TiledAttention)
    (piece,) = kernel.spec.pieces
    capped, narrow = replace(kernel.spec, softcap=20.0), replace(kernel.spec, head_dim=32)
    biased = replace(kernel.spec, pieces=(replace(piece, bias=var("score", "float") * 0.5),))
    for spec in (capped, narrow, biased):
        assert not default(spec, "triton:sm_90").producer
        assert [s.rows for s in known(spec, "triton:sm_90") if s.producer] == [128]
    few = replace(kernel.spec, pieces=(piece, replace(piece, size=48)))
    assert not any(s.producer for s in (default(few, "triton:sm_90"), *known(few, "triton:sm_90")))


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_they_compile_without_spills(
    layer: tuple[str, dict[str, object], tuple[int, int], int], tmp_path: Path
) -> None:
    jobs = [
        (program.program.name, False, job(program.program, program.schedule, "sm_90"))
        for spec in specs(*layer)
        for program in lower_kernel(spec, known(spec, "triton:sm_90")[0]).steps
    ]
    assert misfits(jobs, "sm_90", tmp_path) == {}
