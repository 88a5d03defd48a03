"""Packed documents by chunks: banks with a route, several steps per token, first states, queries that share states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sparsec
from sparsec.autotune.tuner import Tuning
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default, lower_kernel
from sparsec.lower.scan import documents
from sparsec.lower.segments import known, packed, schedule
from sparsec.plan.plan import Kernel
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.kernel import lowered
from sparsec.testing.inputs.recurrent import RECURRENT, ROUTES, draw
from sparsec.testing.whole.by_chunks import LENGTHS, by_chunks
from sparsec.testing.whole.packed import PackedCase, floats, off_the_loop, packed_case
from sparsec.testing.whole.packed_truth import drawn_documents, wrong_documents

GPU = "triton:sm_90"
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sse": ("sse", {}),
    "sse, two parts, states": ("sse", {"k": 2, "initial": True, "final": True}),
    "sse_gdn": ("sse_gdn", {"k": 2}),
    "sse_gdn, states": ("sse_gdn", {"raw": True, "initial": True, "final": True}),
    "levels": ("rsa", {"raw": True, "levels": 2}),
    "steps": ("delta_product", {"raw": True}),
    "three steps, states": ("delta_product", {"steps": 3, "initial": True, "final": True}),
    "steps that do not fade": ("delta_product", {"raw": True, "gated": False}),
}
DECLARED = ("two of four", "delta from given states", "erasing parts", "a tree")
"""Of ``ROUTES``: decays of 0 and 1, first states of each document and of all, lists of each state, erase vectors."""

RULES = ("linear", "scalar", "gated-delta", "shared-keys", "channel", "learned")
"""Of ``RECURRENT``: the same of one bank; all documents begin at the states of the last."""


def declared(name: str, heads: int = 2) -> tuple[Variant, PackedCase]:
    variant = parse((ROUTES | RECURRENT)[name])
    sizes = {"B": 1, "H": heads, "HKV": 2, "D": 16, "DV": 24, "DX": 72}
    drawn = [draw(variant, sizes | {"T": n}, seed=number) for number, n in enumerate(LENGTHS)]
    return variant, drawn_documents(variant, drawn)


@pytest.mark.parametrize("which", PRESETS)
def test_documents_are_the_loop_over_them(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, knobs = PRESETS[which]
    layer, ran = sparsec.compile(sparsec.preset(name, **knobs), "interpreter"), by_chunks(monkeypatch)
    case = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HKV=2, D=16, DV=16, DX=16)
    outputs, gradients = off_the_loop(layer, case, floats(layer.variant))
    assert ran == {"chunk"} and outputs < 1e-6 and gradients < 1e-5


@pytest.mark.parametrize("name", DECLARED + RULES)
def test_declared_rules_are_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, (variant, case) = by_chunks(monkeypatch), declared(name)
    outputs, gradients = off_the_loop(sparsec.compile(variant, "interpreter"), case, floats(variant))
    assert ran == {"chunk"} and outputs < 1e-6 and gradients < 1e-5


@pytest.mark.parametrize("which", PRESETS)
def test_documents_are_the_oracle(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, knobs = PRESETS[which]
    layer, ran = sparsec.compile(sparsec.preset(name, **knobs), "interpreter"), by_chunks(monkeypatch)
    case = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HKV=2, D=16, DV=16, DX=16)
    assert wrong_documents(layer, case, "float32") == [] and ran == {"chunk"}


@pytest.mark.parametrize("name", DECLARED + RULES)
def test_declared_rules_are_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of decays per channel are sums of differences, exact to their neighbours' fp32 where one is 2^-86."""
    ran, (variant, case) = by_chunks(monkeypatch), declared(name)
    learned = [n for n in floats(variant) if n != "g" or name not in ("channel", "learned", "erasing parts")]
    layer = sparsec.compile(variant, "interpreter")
    assert wrong_documents(layer, case, "float32", learned) == [] and ran == {"chunk"}


@pytest.mark.parametrize("which", PRESETS)
def test_grids_of_all_rows_read_nothing_unwritten(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that is not told the longest document, with memory that holds what no kernel would leave there."""
    (name, knobs), empty = PRESETS[which], torch.empty

    def poisoned(*size: Any, **how: Any) -> torch.Tensor:
        made = empty(*size, **how)
        return made.fill_(torch.nan if made.is_floating_point() else 2**30 + 7)

    by_chunks(monkeypatch)
    monkeypatch.setattr(torch, "empty", poisoned)
    layer = sparsec.compile(sparsec.preset(name, **knobs), "interpreter")
    case = packed_case(layer.variant, LENGTHS, LENGTHS, H=2, HKV=2, D=16, DV=16, DX=16)
    every = {"max_seqlen_q": sum(LENGTHS), "max_seqlen_k": sum(LENGTHS)}
    outputs, gradients = off_the_loop(layer, case, floats(layer.variant), **every)
    assert outputs < 1e-6 and gradients < 1e-5


@pytest.mark.parametrize("name", ["scalar", "delta", "linear"])
def test_queries_that_share_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, (variant, case) = by_chunks(monkeypatch), declared(name, heads=4)
    assert wrong_documents(sparsec.compile(variant, "interpreter"), case, "float32") == [] and ran == {"chunk"}


@pytest.mark.parametrize("name", ["sse", "sse_gdn", "delta_product"])
def test_long_documents_are_cut_into_segments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 32 chunks, without a change of what is long."""
    ran, layer = by_chunks(monkeypatch, shortest=32), sparsec.compile(sparsec.preset(name), "interpreter")
    case = packed_case(layer.variant, (1, 1030), (1, 1030), H=1, HKV=1, D=16, DV=16, DX=16)
    outputs, gradients = off_the_loop(layer, case, floats(layer.variant))
    assert ran == {"chunk"} and outputs < 1e-5 and gradients < 1e-4


def scans(name: str, tmp_path: Path, **knobs: int) -> list[Kernel]:
    layer: Compiled = sparsec.compile(sparsec.preset(name, **knobs), GPU, tmp_path)
    dims = {"H": 16, "HKV": 16, "D": 128, "DV": 128, "DX": 64}
    halves = layer.packed.halves(layer.training.joint(dims, "bfloat16", tuple(floats(layer.variant)))).split
    kernels = (*halves.forward.kernels, *halves.backward.kernels)
    found = [(k, k.spec.writes if isinstance(k.spec, Scan) else k.spec.forward.writes) for k in kernels
             if isinstance(k.spec, Scan | ScanGrad)]  # fmt: skip
    return [kernel for kernel, w in found if w.route is not None or w.steps > 1]


@pytest.mark.parametrize("name", ["sse", "sse_gdn"])
def test_the_tuner_tries_chunks_of_documents_first(name: str, tmp_path: Path) -> None:
    """With many parts a GPU keeps the recurrence, dense schedules too, until chunks were chosen for documents."""
    for kernel in scans(name, tmp_path, parts=8):
        usual = default(kernel.spec, GPU)
        assert usual.order == "chunk" and schedule(kernel.spec, usual).order == "token"
        first = known(kernel.spec, GPU)
        tuning: Any = SimpleNamespace(compiled=SimpleNamespace(target=SimpleNamespace(name=GPU)))
        tried = Tuning.space(tuning, kernel)
        assert tried.known == first and all(tried.schedule(tried.params(s)) == s for s in first)
        assert first and all(s.order == "chunk" and s.documents and not s.descriptors for s in first)
        assert schedule(kernel.spec, first[0]) == first[0]
        steps = packed(kernel, lower_kernel(kernel.spec, first[0]))[1].steps
        assert all("segments_" in {t.name for t in step.program.tensors} for step in steps)


def test_a_switch_takes_chunks_untuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in scans("sse", tmp_path, parts=8):
        names = {}
        for switch in ("0", "1"):
            monkeypatch.setenv("SPARSEC_PACKED_CHUNKS", switch)
            names[switch] = [s.program.name for s in lowered(kernel, default(kernel.spec, GPU))[1].steps]
        assert not any("_sort_" in n for n in names["0"]) and any("_sort_" in n for n in names["1"])


@pytest.mark.parametrize("name", ["sse", "sse_gdn", "delta_product"])
def test_few_parts_and_several_steps_go_by_chunks(name: str, tmp_path: Path) -> None:
    for kernel in scans(name, tmp_path):
        assert schedule(kernel.spec, default(kernel.spec, GPU)).order == "chunk" and known(kernel.spec, GPU) == ()


def test_timed_documents_are_tuned_from_chunks(tmp_path: Path) -> None:
    layer = sparsec.compile(sparsec.preset("gdn"), GPU, tmp_path)
    plan = layer.packed.plan(layer.plan({"H": 16, "HKV": 16, "D": 128, "DV": 128}, "bfloat16", packed=True))
    (spec,) = (k.spec for k in plan.kernels if isinstance(k.spec, Scan))
    assert documents.packed_form(spec, default(spec, GPU)).order == "chunk" and documents.known(spec, GPU) == ()
