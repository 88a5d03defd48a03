"""Packed documents of states by chunks: the loop over the documents, in the tile interpreter; what runs on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.lower.registry import default, lower_kernel
from sparsec.lower.segments import packed, schedule
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.testing.whole.by_chunks import LENGTHS, by_chunks
from sparsec.testing.whole.packed import floats, off_the_loop, packed_case

GPU = "triton:sm_90"
LAYERS: dict[str, dict[str, Any]] = {
    "gdn": {"raw": True},
    "gla": {"raw": True},
    "kda": {"raw": True},
    "rwkv7": {"raw": True},
    "mamba2": {},
}


@pytest.mark.parametrize("name", LAYERS)
def test_chunks_of_documents_are_the_loop_over_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, ran = sparsec.compile(sparsec.preset(name, **LAYERS[name]), "interpreter"), by_chunks(monkeypatch)
    made = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HKV=2, D=16, DV=16, DX=16)
    outputs, gradients = off_the_loop(layer, made, floats(layer.variant))
    assert ran == {"chunk"} and outputs < 1e-6 and gradients < 1e-5


def test_states_of_documents_that_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    by_chunks(monkeypatch)
    layer = sparsec.compile(sparsec.preset("gdn", shared="keys"), "interpreter")
    made = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HV=4, D=16, DV=16)
    outputs, gradients = off_the_loop(layer, made, floats(layer.variant))
    assert outputs < 1e-6 and gradients < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_on_a_gpu_they_go_by_chunks_both_ways(name: str, tmp_path: Path) -> None:
    layer = sparsec.compile(sparsec.preset(name, **LAYERS[name]), GPU, tmp_path)
    joint = layer.training.joint({"H": 16, "HKV": 16, "D": 128, "DV": 128}, "bfloat16", tuple(floats(layer.variant)))
    halves = layer.packed.halves(joint).split
    scans = [k for k in (*halves.forward.kernels, *halves.backward.kernels) if isinstance(k.spec, Scan | ScanGrad)]
    assert len(scans) == 2
    for kernel in scans:
        own = schedule(kernel.spec, default(kernel.spec, GPU))
        assert own.order == "chunk" and own.documents and not own.keep
        steps = packed(kernel, lower_kernel(kernel.spec, own))[1].steps
        assert all("segments_" in {t.name for t in step.program.tensors} for step in steps)


def test_each_document_has_states_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    by_chunks(monkeypatch)
    layer = sparsec.compile(sparsec.preset("gdn", raw=True, initial=True, final=True), "interpreter")
    made = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HKV=2, D=16, DV=16)
    out, last = layer(**made.packed, **made.ends)
    alone = [layer(**document) for document in made.documents]
    assert torch.allclose(out, torch.cat([o[0] for o, _ in alone]), atol=1e-6)
    assert torch.allclose(last, torch.cat([states for _, states in alone]), atol=1e-6)
    before = [x for name, x in made.packed.items() if x.dim() == 5 or x.shape[0] == len(LENGTHS)]
    assert before and torch.equal(last[1], before[0][1]), "an empty document leaves its states"
