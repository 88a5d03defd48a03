"""Every composition a figure is compared with computes the right thing, against plain fp64, at small sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsec.benchmarks.cases import Case, FullCase, HsaCase, Inputs, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.cases_nsa import BlocksCase
from sparsec.benchmarks.gradients import GradientReferee, gradients
from sparsec.benchmarks.peers.flex_lookup import block_lists
from sparsec.benchmarks.peers.form import Form, Run, compile_static, eager
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.reference import head_inputs, head_output, truth
from sparsec.benchmarks.registry import CASES, cases_named
from sparsec.benchmarks.row import write_rows
from sparsec.benchmarks.run import run_cases
from sparsec.benchmarks.step import Step, leaves_of
from sparsec.benchmarks.verdict import Referee
from sparsec.ir.error import InputError

WINDOW = WindowCase("window", 1, 4, 2, 256, 16, 48, 8, device="cpu", dtype=torch.float32)
SELECTED = SelectedCase("selected", 2, 4, 2, 192, 16, 4, 16, device="cpu", dtype=torch.float32)
BLOCKS = BlocksCase("blocks", 2, 4, 2, 192, 16, 4, 16, device="cpu", dtype=torch.float32)
LISTED = BlocksCase("listed", 1, 4, 2, 256, 16, 4, 32, device="cpu", dtype=torch.float32)
SMALL: list[Case] = [
    WINDOW,
    FullCase("full", 2, 4, 2, 192, 16, device="cpu", dtype=torch.float32),
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
    assert form.build is not None
    with torch.no_grad():
        output = form.build(case, inputs, eager)()
    verdict = Referee(case, inputs, torch.arange(case.T))(output)
    assert verdict.passed, verdict


@pytest.mark.parametrize("form", forms_for(LISTED)[:2], ids=str)
def test_listed_blocks_agree_with_fp64(form: Form) -> None:
    """Compiled: FlexAttention reads block lists only then."""
    inputs = LISTED.inputs(seed=1)
    assert form.build is not None
    with torch.no_grad():
        output = form.build(LISTED, inputs, compile_static)()
    verdict = Referee(LISTED, inputs, torch.arange(LISTED.T))(output)
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
    build = forms_for(case)[0].build
    assert build is not None
    return build(case, inputs, eager)


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
    with pytest.raises(InputError, match=r"case: 'windw': there is no such case.*did you mean `window`"):
        cases_named(["windw"])


TRAINED = [replace(case, name=f"{case.name}_train", train=True) for case in (WINDOW, SELECTED, BLOCKS)]


def test_reference_gradients_are_those_of_dense_attention() -> None:
    x, grad = SELECTED.inputs(seed=5), torch.zeros(2, 192, 4, 16)
    rows = torch.tensor([3, 90, 191])
    grad[:, rows] = torch.randn(2, 3, 4, 16)
    found = gradients(SELECTED, x, rows, grad)
    leaves = {name: x[name].double().requires_grad_() for name in ("q", "k", "v")}
    whole = {**x, **leaves}
    total = torch.zeros((), dtype=torch.float64)
    for h in range(4):
        allowed = torch.zeros(192, 193, dtype=torch.bool)
        lists = x["indices"][0, :, h // 2]
        keys = (lists[..., None] * 16 + torch.arange(16)).masked_fill(lists[..., None] < 0, 192).flatten(1)
        allowed = allowed.scatter_(1, keys, True)[:, :192].tril()
        total = total + (_dense(whole, allowed, h, 2) * grad[0, :, h].double()).sum()
    total.backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(found[name][0], leaf.grad[0])


def _dense_step(case: Case, inputs: Inputs, _compiler: object = None, factor: float = 1.0) -> Run:
    """A training step from dense scores, head by head."""
    leaves = leaves_of(case, inputs)

    def forward() -> torch.Tensor:
        pairs = [(b, h) for b in range(case.B) for h in range(case.H)]
        heads = [head_output(case, _slices(case, inputs | leaves, b, h), torch.arange(case.T))[0] for b, h in pairs]
        out: torch.Tensor = torch.stack(heads).unflatten(0, (case.B, case.H)).transpose(1, 2).float() * factor
        return out

    return Step(case, forward, leaves)


def _slices(case: Case, inputs: Inputs, b: int, h: int) -> Inputs:
    return head_inputs(case, {name: x[b] for name, x in inputs.items()}, h)


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_wrong_gradients_are_refused(case: Case) -> None:
    inputs = case.inputs()
    right, scaled = _dense_step(case, inputs), _dense_step(case, inputs, factor=1.01)
    assert isinstance(right, Step) and isinstance(scaled, Step)
    referee = GradientReferee(case, inputs)
    assert referee(right)[1] == ""
    assert "gradient of q: error 1.0" in referee(scaled)[1]


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_a_training_row_has_checked_gradients_on_both_sides(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, case.name, case)
    monkeypatch.setattr("sparsec.benchmarks.forms.forms_for", lambda _: [Form("dense", "eager", _dense_step)])
    (row,) = run_cases([case.name], _dense_step, rounds=1, report=lambda text: None)
    assert set(row.gradient_errors) == {"q", "k", "v"} and all(0 < e < 1e-5 for e in row.gradient_errors.values())
    wrong = [Form("dense", "scaled", lambda c, x, _: _dense_step(c, x, factor=1.0001))]
    monkeypatch.setattr("sparsec.benchmarks.forms.forms_for", lambda _: wrong)
    (row,) = run_cases([case.name], _dense_step, rounds=1, report=lambda text: None)
    assert row.pair is None and row.forms["dense/scaled"].refused.startswith("error 1.00e-04")
