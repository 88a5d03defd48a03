"""Every composition a figure is compared with computes the right thing, against plain fp64, at small sizes."""

import json
from pathlib import Path

import pytest
import torch

from sparsec.benchmarks.cases import Case, HsaCase, Inputs, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.peers.flex_lookup import block_lists
from sparsec.benchmarks.peers.form import Form, Run, eager
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.reference import truth
from sparsec.benchmarks.registry import CASES, cases_named
from sparsec.benchmarks.run import run_cases, write_rows
from sparsec.benchmarks.verdict import Referee

torch.set_num_threads(2)
WINDOW = WindowCase("window", 1, 4, 2, 256, 16, 48, 8, device="cpu", dtype=torch.float32)
SELECTED = SelectedCase("selected", 2, 4, 2, 192, 16, 4, 16, device="cpu", dtype=torch.float32)
SMALL: list[Case] = [
    WINDOW,
    HsaCase("hsa", 2, 4, 2, 256, 16, 16, 3, 8, device="cpu", dtype=torch.float32),
    HsaCase("hsa_smooth", 1, 6, 2, 256, 16, 32, 4, 8, device="cpu", dtype=torch.float32, span=16),
    MobaCase("moba", 2, 4, 2, 256, 16, 32, 3, device="cpu", dtype=torch.float32),
    MobaCase("moba_one_kv", 1, 3, 1, 384, 16, 128, 2, device="cpu", dtype=torch.float32),
]
EVERY_FORM = [pytest.param(case, form, id=f"{case.name}-{form}") for case in SMALL for form in forms_for(case)]


@pytest.mark.parametrize(("case", "form"), EVERY_FORM)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_peer_agrees_with_fp64(case: Case, form: Form) -> None:
    inputs = case.inputs(seed=1)
    with torch.no_grad():
        output = form.build(case, inputs, eager)()
    verdict = Referee(case, inputs, torch.arange(case.T))(output)
    assert verdict.passed, verdict


def _dense(x: Inputs, allowed: torch.Tensor, h: int, group: int) -> torch.Tensor:
    """Attention of batch 0, head h under a boolean mask [T, T]."""
    q, k, v = x["q"][0, :, h].double(), x["k"][0, :, h // group].double(), x["v"][0, :, h // group].double()
    scores = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return torch.matmul(scores.softmax(-1), v)


def test_reference_of_given_blocks_token_by_token() -> None:
    x = SELECTED.inputs(seed=2)
    allowed = torch.zeros(SELECTED.T, SELECTED.T, dtype=torch.bool)
    for t in range(SELECTED.T):
        for block in x["indices"][0, t, 1].tolist():
            for j in range(block * 16, min(block * 16 + 16, t + 1)) if block >= 0 else ():
                allowed[t, j] = True
    found = truth(SELECTED, x, torch.arange(SELECTED.T)).output[0, :, 3]
    torch.testing.assert_close(found, _dense(x, allowed, 3, 2))


def test_reference_of_hsa_token_by_token() -> None:
    case = HsaCase("hsa", 1, 2, 1, 96, 8, 16, 3, 8, device="cpu", dtype=torch.float32)
    x = {name: tensor[0].double() for name, tensor in case.inputs(seed=3).items()}
    found = truth(case, case.inputs(seed=3), torch.arange(case.T)).output[0, :, 1]
    for t in range(case.T):
        scores = [float(x["r"][t, 0] @ x["l"][c, 0]) / 8**0.5 for c in range(t // 16)]
        best = sorted(range(len(scores)), key=lambda c: -scores[c])[:3]
        left, expected = 1.0, torch.zeros(8, dtype=torch.float64)
        for c in sorted(best, reverse=True):
            weight = left / (1 + torch.exp(torch.tensor(-scores[c])).item())
            left -= weight
            inside = (x["k"][c * 16 : c * 16 + 16, 0] @ x["q"][t, 1] / 8**0.5).softmax(0)
            expected += weight * (inside @ x["v"][c * 16 : c * 16 + 16, 0])
        torch.testing.assert_close(found[t], expected)


def test_block_lists_are_ascending_and_counted() -> None:
    counts, lists = block_lists(torch.tensor([[True, False, True, True], [False, False, False, False]]))
    assert counts.tolist() == [3, 0]
    assert lists[0, :3].tolist() == [0, 2, 3]


def _ours(case: Case, inputs: Inputs) -> Run:
    """Stands in for sparsec: a peer under another name."""
    return forms_for(case)[0].build(case, inputs, eager)


def _broken(case: Case, inputs: Inputs) -> Run:
    return lambda: torch.zeros_like(inputs["q"])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_row_holds_what_its_reader_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "tiny", WINDOW)
    rows = run_cases(["tiny"], _ours, rounds=1, compiler=eager, report=lambda _: None)
    write_rows(rows, tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["case"] == "window" and row["peer"] in row["forms"] and row["pair"]["ratio"] > 0
    assert row["verdict"]["passed"] and row["hardware"]["packages"]["torch"] == torch.__version__


def test_a_wrong_result_gets_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "tiny", WINDOW)
    said: list[str] = []
    assert run_cases(["tiny"], _broken, rounds=1, compiler=eager, report=said.append) == []
    assert any("refused" in line for line in said)


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(ValueError, match="no benchmark case named 'windw'; there are window,"):
        cases_named(["windw"])
