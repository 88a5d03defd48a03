"""Banks of which tokens choose parts on the GPU that is here: token by token, and sorted into chunks."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.lower.registry import default
from sparsec.lower.scan.schedules import in_chunks, in_chunks_back, token_form
from sparsec.plan.plan import Kernel
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.inputs.recurrent import ROUTES, draw
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.schedule import Schedule

pytestmark = pytest.mark.gpu

SIZES = {"B": 2, "T": 67, "H": 4, "HKV": 2, "D": 64, "DV": 48, "DX": 72}
LAYER = {"B": 1, "T": 1037, "H": 2, "HKV": 2, "D": 128, "DV": 128, "DX": 256}


def by_token(kernel: Kernel, dims: object) -> Schedule:
    """The token recurrence for every state, whatever the default."""
    found = default(kernel.spec, "triton:sm_90")
    return token_form(kernel.spec, found) if isinstance(kernel.spec, Scan | ScanGrad) else found


def by_chunk(kernel: Kernel, dims: object) -> Schedule:
    """Chunks for every state."""
    spec, found = kernel.spec, default(kernel.spec, "triton:sm_90")
    if isinstance(spec, Scan):
        found = in_chunks(spec, "triton:sm_90") or found
    if isinstance(spec, ScanGrad):
        found = in_chunks_back(spec, "triton:sm_90") or found
    assert not isinstance(spec, Scan | ScanGrad) or found.order == "chunk"
    return found


@pytest.mark.parametrize("name", ROUTES)
def test_routes_by_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "schedule", staticmethod(by_token))
    made = compile(parse(ROUTES[name]), "cuda")
    drawn = {n: x.cuda() for n, x in draw(made.variant, SIZES, torch.float32).items()}
    assert wrong_on(made, drawn, "float32") == []


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["sse", "sse_gdn"])
def test_sparse_state_expansion_in_chunks(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "schedule", staticmethod(by_chunk))
    variant = sparsec.preset(name, k=k, balance=0.1, initial=True, final=True)
    drawn = sparsec.inputs(variant, dtype="bfloat16", device="cuda", **LAYER)
    assert wrong_on(compile(variant, "cuda"), drawn, "bfloat16") == []
