"""Named kernels under their default schedules, compiled for GPUs that are not here: they fit, and nothing spills."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import BlockList, Combine, GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.testing.triton.ahead import ARCHITECTURES, Layer, shared_out, unfit

LAYERS: dict[str, tuple[Layer, tuple[type[Spec], ...]]] = {
    "window 128": (Layer("msa", {"window": 1024, "slots": 64}), (TiledAttention,)),
    "window 64": (Layer("msa", {"window": 1024, "slots": 64}, dims=(64, 64)), (TiledAttention,)),
    "window 96": (Layer("streaming", {}, heads=(9, 3), dims=(96, 96), dtype="float16"), (TiledAttention,)),
    "full": (Layer("full", {}), (TiledAttention,)),
    "full fp32": (Layer("full", {}, dims=(64, 64), dtype="float32"), (TiledAttention,)),
    "random": (Layer("msa", {"pattern": "random", "slots": 0}), (BlockList, TiledAttention)),
    "nsa": (Layer("nsa", {}, heads=(64, 4)), (Summarise, Selector, GatheredAttention, Combine)),
    "hsa": (Layer("hsa", {}, heads=(16, 4)), (Selector, GatheredAttention)),
    "moba": (Layer("moba", {}, heads=(16, 16)), (Selector, GatheredAttention)),
    "infllm2": (Layer("infllm2", {}, heads=(32, 2)), (Selector, GatheredAttention)),
    "hsa fp32": (Layer("hsa", {}, heads=(16, 4), dtype="float32"), (GatheredAttention,)),
    "moba fp32 256": (Layer("moba", {}, heads=(16, 16), dims=(256, 256), dtype="float32"), (GatheredAttention,)),
    "hsa 192": (Layer("hsa", {}, dims=(192, 192)), (GatheredAttention,)),
    "moba 256": (Layer("moba", {}, heads=(16, 16), dims=(256, 256)), (GatheredAttention,)),
    "hsa 256 beside a sink": (Layer("hsa", {"sink": "zero"}, dims=(256, 256), dtype="float16"), (GatheredAttention,)),
    "tokens 256": (Layer("hsa", {"chunk": 8}, dims=(256, 256)), (GatheredAttention,)),
}
"""Name -> a layer and which kernels of its plan are compiled."""


def specs(names: Iterable[str]) -> dict[str, list[AnySpec]]:
    """The kernels to compile of the layers named."""
    return {name: [s for s in LAYERS[name][0].specs() if isinstance(s, LAYERS[name][1])] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_defaults_fit_without_spills(arch: str, tmp_path: Path) -> None:
    assert unfit(specs(shared_out(LAYERS, arch)), arch, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_default_fits_everywhere(arch: str, tmp_path: Path) -> None:
    assert unfit(specs(LAYERS), arch, tmp_path) == {}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kind_of_kernel_is_compiled_for_it(arch: str) -> None:
    kinds = {kind for name in shared_out(LAYERS, arch) for kind in LAYERS[name][1]}
    assert kinds >= {TiledAttention, Selector, GatheredAttention}
