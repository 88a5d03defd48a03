"""Packed documents of states by chunks: the loop over the documents, in the tile interpreter; what runs on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.lower.registry import default, lower_kernel
from sparsec.lower.scan.chunk import parts
from sparsec.lower.segments import packed, schedule
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.packed import floats, off_the_loop, packed_case
from sparsec.tile.schedule import Schedule

GPU = "triton:sm_90"
LENGTHS = (21, 0, 1, 70, 3, 34)
"""With ``_LONG`` brought down to 2, segments of up to two chunks of 16: 1, 1, 1, 2, 1 and 1 of them."""
CHUNKS = Schedule(order="chunk", rows=16, value_block=16, splits=4)
LAYERS: dict[str, dict[str, Any]] = {
    "gdn": {"raw": True},
    "gla": {"raw": True},
    "kda": {"raw": True},
    "rwkv7": {"raw": True},
    "mamba2": {},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_LONG", 2)


def by_chunks(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every scan has ``CHUNKS`` for its schedule; the orders of those that ran, as they run."""
    usual, ran = Compiled.schedule, set[str]()

    def chosen(self: Compiled, kernel: Any, *more: Any, **named: Any) -> Schedule:
        if not isinstance(kernel.spec, Scan | ScanGrad):
            return usual(self, kernel, *more, **named)
        ran.add(schedule(kernel.spec, CHUNKS).order)
        return CHUNKS

    monkeypatch.setattr(Compiled, "schedule", chosen)
    return ran


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


def test_banks_with_a_route_go_by_the_recurrence() -> None:
    layer = sparsec.compile(sparsec.preset("sse"), GPU)
    dims = {"H": 4, "HKV": 4, "D": 128, "DV": 128, "DX": 64}
    forward = layer.packed.halves(layer.training.joint(dims, "bfloat16", tuple(floats(layer.variant)))).split.forward
    orders = {schedule(k.spec, CHUNKS).order: k.spec for k in forward.kernels if isinstance(k.spec, Scan)}
    assert set(orders) == {"chunk", "token"} and orders["token"].writes.route is not None


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
