"""Cases around NSA and HSA: references are the oracle, generated kernels pass them, and mistakes do not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from sparsec.benchmarks.cases import Case, HsaCase, Inputs
from sparsec.benchmarks.cases_nsa import BlocksCase, NsaCase, SelectorCase
from sparsec.benchmarks.cases_sections import SectionsCase
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.own import own
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.registry import CASES
from sparsec.benchmarks.row import HEAD, agrees, aligned, table_of, write_rows
from sparsec.benchmarks.run import run_cases
from sparsec.benchmarks.step import Call, Step
from sparsec.benchmarks.verdict import Referee
from sparsec.frontends.preset import preset
from sparsec.oracle import oracle

NSA = NsaCase("nsa", 1, 4, 2, 256, 16, 5, 16, 16, 16, device="cpu", dtype=torch.float32)
OVERLAPPING = replace(NSA, name="overlapping", size=16, stride=8)
SELECTOR = SelectorCase("selector", 1, 4, 2, 256, 16, 5, 16, 16, 8, device="cpu", dtype=torch.float32)
HSA = HsaCase("hsa", 1, 4, 2, 256, 16, 16, 3, 8, device="cpu", dtype=torch.float32, beside="nsa")
SECTIONS = SectionsCase("sections", 1, 4, 2, 256, 16, 8, 3, 8, 2, 4, device="cpu", dtype=torch.float32)
BLOCKS = BlocksCase("blocks", 1, 4, 2, 256, 16, 4, 32, device="cpu", dtype=torch.float32)


def _oracle(case: Case, inputs: Inputs, learned: bool = False) -> torch.Tensor:
    knobs = dict(case.knobs)
    found = oracle(preset(case.preset, **knobs), inputs, form="vector")
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("case", [NSA, OVERLAPPING, HSA, SECTIONS, BLOCKS], ids=lambda case: case.name)
def test_references_are_the_oracles(case: Case) -> None:
    inputs = {n: x.double() if x.is_floating_point() else x for n, x in case.inputs(seed=4).items()}
    leaves = {name: x.requires_grad_() if name in case.learned else x for name, x in inputs.items()}
    exact = _oracle(case, leaves)
    found = truth(case, {n: x.detach() for n, x in inputs.items()}, torch.arange(case.T))
    torch.testing.assert_close(found.output, exact)
    grad = torch.randn(exact.shape, dtype=torch.float64)
    rows = torch.tensor([0, 17, 130, 255])
    only = torch.zeros_like(grad)
    only[:, rows] = grad[:, rows]
    wanted = torch.autograd.grad(exact, [leaves[n] for n in case.learned], only)
    mine = gradients(case, {n: x.detach() for n, x in inputs.items()}, rows, only)
    for name, right in zip(case.learned, wanted, strict=True):
        torch.testing.assert_close(mine[name], right, msg=name)


@pytest.mark.parametrize("case", [NSA, HSA, SECTIONS, BLOCKS], ids=lambda case: case.name)
def test_generated_kernels_pass_with_gradients(case: Case) -> None:
    case = replace(case, train=True)
    inputs = case.inputs()
    step = own(case, inputs, 0)
    assert isinstance(step, Step) and step.predicted_peak_bytes
    assert Referee(case, inputs)(step()).passed
    assert GradientReferee(case, inputs)(step)[1] == ""


def test_a_selector_is_judged_by_its_lists() -> None:
    inputs = SELECTOR.inputs()
    referee, lists = Referee(SELECTOR, inputs), own(SELECTOR, inputs, 0)()
    verdict = referee(lists)
    assert verdict.passed and verdict.error == 0 and lists.shape == (1, 256, 2, 5)
    wrong = lists.clone()
    wrong[0, 200, 1, -1] = (wrong[0, 200, 1] + 1).max() % 7
    assert not referee(wrong).passed and "lists are not the best 5" in referee(wrong).reason
    doubled = lists.clone()
    doubled[0, 255, 0, 1] = doubled[0, 255, 0, 0]
    assert not referee(doubled).passed


def test_a_selector_row_has_no_peer_and_grows_as_the_length_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "tiny", SELECTOR)
    peaks = {256: 1000, 128: 400}
    monkeypatch.setattr("sparsec.benchmarks.run.peak_bytes", lambda run, device: peaks[run().shape[1]])
    said: list[str] = []
    assert run_cases(["tiny"], lambda c, x: own(c, x, 0), report=said.append) == []
    assert "holds 1000 bytes, and 400 at half the length" in said[-1]
    peaks[128] = 500
    (row,) = run_cases(["tiny"], lambda c, x: own(c, x, 0), report=said.append)
    assert row.pair is None and row.peer == "" and row.half_peak_bytes == 500 and row.peak_agrees is False
    write_rows([row], tmp_path / "rows.json")
    (line,) = table_of(json.loads((tmp_path / "rows.json").read_text()))
    assert aligned(HEAD, [line]).splitlines()[1].startswith("selector  ")
    assert len(line) == len(HEAD) and line[0] == "selector" and line[-1].endswith("OFF")


def test_hsa_is_timed_beside_our_nsa(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(HSA, name="hsa_train", train=True, k=5)
    monkeypatch.setitem(CASES, "hsa_train", case)
    built: list[Case] = []

    def ours(c: Case, x: Inputs) -> Call:
        built.append(c)
        return own(c, x, 0)

    (row,) = run_cases(["hsa_train"], ours, rounds=1, skip=["sparsec/nsa"], report=lambda text: None)
    assert row.peer == "sparsec/nsa_overlapping" and row.pair is not None and row.forms[row.peer].refused == ""
    nsa = built[1]
    assert isinstance(nsa, NsaCase) and nsa.train and (nsa.slots, nsa.block, nsa.size, nsa.stride) == (5, 16, 8, 4)
    assert set(row.gradient_errors) == {"q", "k", "v", "r", "l"}


def test_hsa_in_sections_is_timed_beside_hsa() -> None:
    (form,) = forms_for(SECTIONS)
    flat = form.case
    assert type(flat) is HsaCase and dict(flat.knobs) == {"chunk": 8, "k": 3} and flat.retrieval == SECTIONS.retrieval
    x = SECTIONS.inputs()
    rows = torch.arange(SECTIONS.T)
    levels, plain = truth(SECTIONS, x, rows), truth(flat, flat.inputs(), rows)
    alike = (levels.output == plain.output).all(-1).double().mean()
    assert 0.05 < alike < 0.95, "the same inputs, of which sections leave some chunks out"


def test_a_case_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "tiny", SELECTOR)
    monkeypatch.setitem(CASES, "broken", replace(SELECTOR, name="broken"))

    def ours(c: Case, x: Inputs) -> Call:
        if c.name == "broken":
            raise RuntimeError("no such kernel")
        return own(c, x, 0)

    said: list[str] = []
    (row,) = run_cases(["broken", "tiny"], ours, report=said.append)
    assert row.case == "selector" and "broken: failed, RuntimeError: no such kernel" in said
    assert asdict(row)["verdict"]["passed"]


def test_predicted_peaks_agree_within_a_tenth() -> None:
    assert agrees(100, 109) and agrees(100, 92) and agrees(100, None) is None and agrees(None, 5) is None
    assert agrees(100, 88) is False and agrees(100, 112) is False
