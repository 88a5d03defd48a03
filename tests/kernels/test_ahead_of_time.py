"""Named kernels under their default schedules, compiled for GPUs that are not here: they fit, and nothing spills."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsec.plan.specs import BlockList, Combine, GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.testing.ahead import Layer, jobs, misfits, wide_dots

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


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_defaults_fit_without_spills(arch: str, tmp_path: Path) -> None:
    wanted = [
        (f"{name}: {program.name}", wide_dots(program), job)
        for name, (layer, kinds) in LAYERS.items()
        for spec in layer.specs()
        if isinstance(spec, kinds)
        for program, job in jobs(spec, arch)
    ]
    assert misfits(wanted, arch, tmp_path) == {}
