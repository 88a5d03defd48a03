"""The doctor's minimal cases: right on a sane compiler, and every way of going wrong is seen and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
import torch

from sparsec.cli import faults, machine

WORKER = [sys.executable, "-m", "sparsec.testing.mistakes.triton_faults"]


def test_every_pattern_is_right_where_the_compiler_is() -> None:
    """Triton's interpreter, in fp16: it has no bf16."""
    wanted = [f"{name},float16,4,2" for name in faults.PATTERNS]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*WORKER, "cpu", *wanted], capture_output=True, text=True, env=env, timeout=300)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["setting"] for a in answers] == wanted, done.stderr
    assert all(a.get("error", 1.0) < 1e-3 for a in answers), answers


@pytest.mark.gpu
def test_every_pattern_runs_on_the_gpu() -> None:
    answers, _ = faults.on_gpu([f"{name},bfloat16,2,2" for name in faults.PATTERNS])
    assert [faults.judged(answer) for answer in answers] == [None] * len(faults.PATTERNS)


def _answer(setting: str) -> Mapping[str, object]:
    return {"setting": setting, "error": 0.5 if setting.startswith("transposed_sum,bfloat16,4") else 2e-3}


def _worker(wanted: Sequence[str]) -> tuple[list[Mapping[str, object]], str]:
    """Wrong where the reports say so, and ended by a crash of its own at one setting."""
    crash = next((n for n, x in enumerate(wanted) if x == "own_transpose,float16,8,3"), None)
    if crash is None:
        return [_answer(x) for x in wanted], ""
    return [_answer(x) for x in wanted[:crash]], "its process ended with -6"


def test_wrong_values_and_crashes_are_found_and_the_rest_still_runs() -> None:
    wanted = faults.settings()
    assert len(wanted) == len(set(wanted)) == 24
    seen: list[str] = []

    def worker(asked: Sequence[str]) -> tuple[list[Mapping[str, object]], str]:
        answers, ended = _worker(asked)
        seen.extend(str(a["setting"]) for a in answers)
        return answers, ended

    found = faults.faults(wanted, worker)
    assert [str(fault) for fault in found] == [
        "transposed_sum in bfloat16 with 4 warps and 3 stages: error 5.0e-01",
        "own_transpose in float16 with 8 warps and 3 stages: its process ended with -6",
    ]
    assert seen == [x for x in wanted if x != "own_transpose,float16,8,3"]


def test_errors_that_break_the_context_end_what_counts() -> None:
    answers: list[Mapping[str, object]] = [
        {"setting": "a,x,4,2", "error": 1e-3},
        {"setting": "b,x,4,2", "raised": "RuntimeError: CUDA error: an illegal memory access was encountered"},
        {"setting": "c,x,4,2", "raised": "RuntimeError: CUDA error: an illegal memory access was encountered"},
    ]
    kept, ended = faults._until_broken(answers, "")
    assert kept == answers[:1] and "illegal memory" in ended
    assert faults.judged({"setting": "a,x,4,2", "error": float("nan")}) is not None
    assert faults.judged({"setting": "a,x,4,2", "raised": "OutOfResources"}) is not None


@pytest.mark.parametrize(("gpu", "wrong", "state"), [(False, [], "note"), (True, [], "ok"), (True, ["x"], "warn")])
def test_the_finding(monkeypatch: pytest.MonkeyPatch, gpu: bool, wrong: list[str], state: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(machine, "installed", lambda name: "3.6.0")
    monkeypatch.setattr(faults, "faults", lambda wanted: [faults.Fault("own_transpose,float16,8,3", w) for w in wrong])
    found = machine.patterns()
    assert found.state == state and found.subject == "miscompiles"
    assert ("not run, there is no NVIDIA GPU" in found.finding) is (not gpu)
    assert ("this machine is affected, 1 of 24: own_transpose in float16" in found.finding) is bool(wrong)
