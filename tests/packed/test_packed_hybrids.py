"""Packed documents of states beside attention, of levels of Fenwick's tree, and of parts that meet every token."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.lower.registry import default
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled
from sparsec.testing.inputs.recurrent import ROUTES, draw
from sparsec.testing.whole.by_chunks import LENGTHS, by_chunks
from sparsec.testing.whole.packed import packed_case
from sparsec.testing.whole.packed_truth import drawn_documents, wrong_documents
from sparsec.tile.schedule import Schedule

SIZES = {"H": 2, "HKV": 2, "D": 16, "DV": 16, "DX": 4}


def hybrids() -> dict[str, sparsec.Variant]:
    """Those of the examples that have a state."""
    spec = importlib.util.spec_from_file_location("hybrids", Path(__file__).parents[2] / "examples" / "hybrids.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {variant.name: variant for variant in module.HYBRIDS if variant.name != "stick_blocks"}


HYBRIDS = hybrids()


@pytest.mark.parametrize("name", HYBRIDS)
def test_states_beside_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, layer = by_chunks(monkeypatch), sparsec.compile(HYBRIDS[name], "interpreter")
    case = packed_case(layer.variant, LENGTHS, LENGTHS, **SIZES)
    case = case.moved(lambda n, x: torch.ones_like(x) if n == "one" else x)
    assert wrong_documents(layer, case, "float32") == [] and ran == {"chunk"}


@pytest.mark.parametrize("name", ["state_and_window", "state_and_chunks", "one_normaliser"])
def test_several_queries_ask_one_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, layer = by_chunks(monkeypatch), sparsec.compile(HYBRIDS[name], "interpreter")
    case = packed_case(layer.variant, LENGTHS, LENGTHS, **{**SIZES, "H": 4})
    case = case.moved(lambda n, x: torch.ones_like(x) if n == "one" else x)
    assert wrong_documents(layer, case, "float32") == [] and ran == {"chunk"}


@pytest.mark.parametrize("rule", ["additive", "delta"])
def test_levels_of_documents_go_by_a_gpus_chunks(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 tokens; that of a delta rule keeps the blocks of its forward."""
    usual, ran = Compiled.schedule, list[Schedule]()

    def chosen(self: Compiled, kernel: Any, *more: Any, **named: Any) -> Schedule:
        if not isinstance(kernel.spec, Ladder | LadderGrad):
            return usual(self, kernel, *more, **named)
        ran.append(replace(default(kernel.spec, "triton:sm_90"), rows=16, value_block=16))
        return ran[-1]

    monkeypatch.setattr(Compiled, "schedule", chosen)
    layer = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=8, raw=True), "interpreter")
    case = packed_case(layer.variant, LENGTHS, LENGTHS, **SIZES)
    assert wrong_documents(layer, case, "float32") == []
    assert {s.order for s in ran} == {"chunk"} and any(s.keep for s in ran) is (rule == "delta")


@pytest.mark.parametrize("order", ["token", "mask"])
@pytest.mark.parametrize("name", ["two of four", "lists per head", "delta from given states"])
def test_parts_walk_over_their_own_documents(name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the tokens that chose them, or over all."""
    usual = Compiled.schedule

    def chosen(self: Compiled, kernel: Any, *more: Any, **named: Any) -> Schedule:
        found = usual(self, kernel, *more, **named)
        return replace(found, order=order) if isinstance(kernel.spec, Scan | ScanGrad) else found

    monkeypatch.setattr(Compiled, "schedule", chosen)
    variant = parse(ROUTES[name])
    sizes = {"B": 1, "H": 4, "HKV": 2, "D": 16, "DV": 24}
    case = drawn_documents(variant, [draw(variant, sizes | {"T": n}, seed=i) for i, n in enumerate(LENGTHS)])
    assert wrong_documents(sparsec.compile(variant, "interpreter"), case, "float32") == []
