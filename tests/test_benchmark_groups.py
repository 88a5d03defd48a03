"""Groups of cases, cases at a small size, and plain passes of sparsec's own as what is compared with."""

from __future__ import annotations

import torch

from sparsec.benchmarks.forms import repeated
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.own import own
from sparsec.benchmarks.peers.table import forms_for
from sparsec.benchmarks.registry import CASES, GROUPS, cases_named
from sparsec.benchmarks.run import run_cases


def test_groups_have_every_case_of_a_gpu_once() -> None:
    parts = [name for group in ("attention", "recurrences", "routed", "levels") for name in GROUPS[group]]
    assert sorted(parts) == sorted(name for name, case in CASES.items() if case.device == "cuda")
    assert set(GROUPS["states"]) == {*GROUPS["recurrences"], *GROUPS["routed"], *GROUPS["levels"]}
    named = [case.name for case in cases_named(["rsa", "routed"])]
    assert named[0] == "rsa" and len(named) == len(set(named)) == len(GROUPS["routed"])


def test_several_states_are_timed_beside_as_many_plain_passes() -> None:
    wanted = {"sse_n4_train": "gla_x2", "sse_gdn_n32": "gdn_x2", "rsa": "gdn_x3", "log_linear_gdn": "gdn_x1"}
    for name, passes in wanted.items():
        case, (form, *_) = CASES[name], forms_for(CASES[name])
        assert str(form) == f"sparsec/{passes}" and form.case is not None and form.times == int(passes[-1])
        assert (form.case.T, form.case.H, form.case.D, form.case.train) == (case.T, case.H, case.D, case.train)
        assert form.case.preset == passes[:3]
    assert [str(form) for form in forms_for(CASES["log_linear"])] == ["sparsec/simple_gla_x1", "fla/chunk"]


def test_a_repeated_call_makes_all_of_them() -> None:
    calls: list[int] = []

    def run() -> torch.Tensor:
        calls.append(len(calls))
        return torch.tensor(len(calls))

    assert int(repeated(run, 3)()) == 3 and calls == [0, 1, 2]


def test_a_case_runs_small_beside_its_base() -> None:
    assert small(CASES["window"]).group == 2 and small(CASES["gdn"]).group == 1
    said: list[str] = []
    (row,) = run_cases(
        ["log_linear"], lambda c, x: own(c, x, 0), rounds=1, skip=["fla/chunk"], report=said.append, as_small=True
    )
    assert row.verdict.passed and row.peer == "sparsec/simple_gla_x1" and row.pair is not None, said
    assert row.shape["device"] == "cpu" and row.shape["T"] == 256
