"""Token recurrences under their defaults, compiled for a GPU that is not here: they fit, and nothing spills."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparsec
from sparsec.lower.registry import default, lower_kernel
from sparsec.lower.scan.schedules import token_form
from sparsec.passes.differentiate import differentiate
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.testing.triton.ahead import job, misfits

DIMS = {"64": (64, 64), "128": (128, 128), "256": (256, 512)}


@pytest.mark.slow
@pytest.mark.parametrize("dims", DIMS)
def test_recurrences_fit_without_spills(dims: str, tmp_path: Path) -> None:
    rows, cols = DIMS[dims]
    sizes = {"B": 1, "T": 512, "H": 4, "HKV": 4, "D": rows, "DV": cols}
    wanted = []
    for name in ("kda", "rwkv7", "gla"):
        joint = differentiate(sparsec.preset(name, raw=True)).variant
        for kernel in sparsec.compile(joint, target="interpreter").plan(sizes, "bfloat16").kernels:
            assert isinstance(kernel.spec, Scan | ScanGrad)
            chosen = token_form(kernel.spec, default(kernel.spec, "triton:sm_90"))
            steps = lower_kernel(kernel.spec, chosen).steps
            wanted += [(f"{name} {s.program.name}", False, job(s.program, s.schedule, "sm_90")) for s in steps]
    assert misfits(wanted, "sm_90", tmp_path) == {}
