"""Every preset of a state memory on a GPU, with its default schedules: outputs, gradients, packed documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.preset import find
from sparsec.ir.variant import Variant, dim_names
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.packed import floats, off_the_loop, packed_case
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.schedule import Schedule

pytestmark = pytest.mark.gpu

FAMILY: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "kda", "gdn2", "rwkv7")},
    **{name: {} for name in ("gsa", "row_sparse", "mamba1", "sse", "sse_gdn", "rsa")},
    "delta_product": {"steps": 2},
    "log_linear": {"levels": 11},
    "lola": {"window": 64, "keep": 64},
}
LENGTH = 700
DOCUMENTS = (67, 0, 1, 330, 3)
LONG = (2500, 40, 4200)
"""Documents that are cut into segments, as those above 32 chunks are."""


def declared(name: str) -> Variant:
    """The preset on raw inputs, where it takes them."""
    known = {knob.name for knob in find(name).knobs}
    wanted = {"raw": True, **FAMILY[name]}
    return sparsec.preset(name, **{key: value for key, value in wanted.items() if key in known})


def drawn(variant: Variant, dim: int, length: int) -> dict[str, torch.Tensor]:
    """Inputs in bf16 of two heads."""
    sizes = {"B": 1, "T": length, "H": 2, "HKV": 2, "D": dim, "DV": dim, "DX": 2 * dim}
    known = dim_names(variant)
    return sparsec.inputs(variant, dtype="bfloat16", device="cuda", **{n: x for n, x in sizes.items() if n in known})


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", FAMILY)
def test_outputs_and_gradients(name: str, dim: int) -> None:
    variant = declared(name)
    assert wrong_on(sparsec.compile(variant, target="cuda"), drawn(variant, dim, LENGTH), "bfloat16") == []


@pytest.mark.parametrize("name", ["gla", "kda", "gdn2", "rwkv7"])
def test_channels_that_fade_slowly(name: str) -> None:
    """What is rounded comes back for hundreds of tokens; with 64 dims, where chunks that answer are exact."""
    variant = declared(name)
    x = drawn(variant, 64, LENGTH)
    assert wrong_on(sparsec.compile(variant, target="cuda"), x | {"g": x["g"] / 64}, "bfloat16") == []


def exactly(layer: Compiled, x: dict[str, torch.Tensor]) -> dict[str, Schedule]:
    """The schedules of scans by chunks, with products in fp32."""
    dims, dtype = layer.bind(x)
    halves = layer.training.joint(dims, dtype, floats(layer.variant)).split
    kernels = [k for plan in (halves.forward, halves.backward) for k in plan.kernels]
    chosen = {k.name: layer.schedule(k, dims) for k in kernels if isinstance(k.spec, Scan | ScanGrad)}
    return {name: replace(schedule, exact=True) for name, schedule in chosen.items() if schedule.order == "chunk"}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["deltanet", "kda", "gdn2", "rwkv7"])
def test_chunks_in_single_precision(name: str, dim: int) -> None:
    """Whatever the default is: schedules that the tuner, or a layer whose decays are near 1, may choose."""
    layer = sparsec.compile(declared(name), target="cuda")
    x = drawn(layer.variant, dim, LENGTH)
    layer.schedules = exactly(layer, x)
    assert layer.schedules and wrong_on(layer, x, "bfloat16") == []


def test_many_queries_ask_one_mass() -> None:
    variant = declared("rsa")
    x = sparsec.inputs(variant, dtype="bfloat16", device="cuda", B=1, T=LENGTH, H=8, HKV=1, D=128, DV=128, DX=256)
    assert wrong_on(sparsec.compile(variant, target="cuda"), x, "bfloat16") == []


def test_rates_of_one() -> None:
    variant = declared("deltanet")
    x = drawn(variant, 64, LENGTH)
    assert wrong_on(sparsec.compile(variant, target="cuda"), x | {"beta": torch.ones_like(x["beta"])}, "bfloat16") == []


@pytest.mark.parametrize("name", ["gdn", "kda", "mamba2"])
def test_more_value_heads_than_key_heads(name: str) -> None:
    knobs = {knob.name for knob in find(name).knobs} & {"raw"}
    variant = sparsec.preset(name, shared="keys", **dict.fromkeys(knobs, True))
    known, sizes = dim_names(variant), {"B": 1, "T": LENGTH, "H": 2, "HV": 4, "D": 128, "DV": 128}
    x = sparsec.inputs(variant, dtype="bfloat16", device="cuda", **{n: d for n, d in sizes.items() if n in known})
    assert wrong_on(sparsec.compile(variant, target="cuda"), x, "bfloat16") == []


@pytest.mark.parametrize("name", ["gdn", "gla", "kda"])
def test_several_queries_ask_one_state(name: str) -> None:
    variant = declared(name)
    x = sparsec.inputs(variant, dtype="bfloat16", device="cuda", B=1, T=LENGTH, H=4, HKV=2, D=128, DV=128)
    assert wrong_on(sparsec.compile(variant, target="cuda"), x, "bfloat16") == []


@pytest.mark.parametrize("name", FAMILY)
def test_packing_is_looping_over_the_documents(name: str) -> None:
    layer = sparsec.compile(declared(name), "cuda")
    made = packed_case(layer.variant, DOCUMENTS, DOCUMENTS, H=2, HKV=2, D=64, DV=64, DX=128)
    outputs, gradients = off_the_loop(layer, made.moved(lambda _, x: x.cuda()), floats(layer.variant))
    assert outputs < 1e-5 and gradients < 1e-4


@pytest.mark.parametrize("name", ["retnet", "gla", "deltanet", "gdn", "kda", "gdn2", "rwkv7", "mamba2"])
def test_packed_documents_in_half_precision_are_near_the_loop(name: str) -> None:
    """By chunks, whose tiles begin where a document does: as the loop's, but for segments and the order of sums."""
    layer = sparsec.compile(declared(name), "cuda")
    made = packed_case(layer.variant, DOCUMENTS, DOCUMENTS, H=2, HKV=2, D=128, DV=128, DX=128)
    kept = {n for n, spec in layer.variant.inputs.items() if spec.dtype == "float32"}
    halved = made.moved(lambda n, x: x.cuda() if n in kept or not x.is_floating_point() else x.cuda().bfloat16())
    outputs, gradients = off_the_loop(layer, halved, floats(layer.variant))
    assert outputs < 0.02 and gradients < 0.02


@pytest.mark.parametrize("lengths", [DOCUMENTS, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", ["sse", "sse_gdn", "delta_product"])
def test_parts_and_steps_of_documents_by_chunks(name: str, lengths: tuple[int, ...]) -> None:
    layer = sparsec.compile(declared(name), "cuda")
    made = packed_case(layer.variant, lengths, lengths, H=2, HKV=2, D=128, DV=128, DX=128)
    kept = {n for n, spec in layer.variant.inputs.items() if spec.dtype == "float32"}
    halved = made.moved(lambda n, x: x.cuda() if n in kept or not x.is_floating_point() else x.cuda().bfloat16())
    outputs, gradients = off_the_loop(layer, halved, floats(layer.variant))
    assert outputs < 0.02 and gradients < 0.02


@pytest.mark.parametrize("name", ["gla", "gdn", "kda", "delta_product"])
def test_long_packed_documents_are_near_the_loop(name: str) -> None:
    layer = sparsec.compile(declared(name), "cuda")
    made = packed_case(layer.variant, LONG, LONG, H=2, HKV=2, D=128, DV=128, DX=128)
    kept = {n for n, spec in layer.variant.inputs.items() if spec.dtype == "float32"}
    halved = made.moved(lambda n, x: x.cuda() if n in kept or not x.is_floating_point() else x.cuda().bfloat16())
    outputs, gradients = off_the_loop(layer, halved, floats(layer.variant))
    assert outputs < 0.02 and gradients < 0.02
