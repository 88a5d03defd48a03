"""The examples run as they stand: declared in few lines, right against the oracle, tuned through the public face."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sparsec
from sparsec.plan.specs import BlockList

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DECLARED = {
    "nsa_stick_dilated": "nsa_stick_dilated",
    "two_branches": "two_branches",
    "three_levels": "three_levels",
    "opaque_mask": "butterfly",
    "from_flex": "alibi_window",
}
TARGETS = {
    "nsa_stick_dilated": "cpu",
    "two_branches": "cpu",
    "three_levels": "cpu",
}  # gathering token by token is slow on the interpreter
MOST_LINES = 20


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DECLARED)
def test_main_checks_against_the_oracle(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).main(trials=0, target=TARGETS.get(name, "interpreter"))
    assert "within the bounds of float32" in capsys.readouterr().out


def test_a_wrong_kernel_stops_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = sparsec.Compiled.__call__
    monkeypatch.setattr(sparsec.Compiled, "__call__", lambda *given, **named: run(*given, **named) * 1.001)
    with pytest.raises(AssertionError):
        load("opaque_mask").main(trials=0, target="interpreter")


def test_main_tunes(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_DIR", str(tmp_path))
    load("from_flex").main(tokens=200, trials=1, target="cpu")
    assert "0 of 1 rejected" in capsys.readouterr().out


def test_only_a_list_of_tiles_serves_the_opaque_mask() -> None:
    compiled = sparsec.compile(load("opaque_mask").butterfly, "interpreter")
    plan = compiled.plan({"H": 4, "HKV": 2, "D": 64, "DV": 64}, "float32")
    assert any(isinstance(kernel.spec, BlockList) for kernel in plan.kernels)


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_is_short_and_public(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m for m in imported if m.startswith("sparsec")} == {"sparsec"}
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name != "main"]
    lines = sum((n.end_lineno or n.lineno) - n.lineno + 1 + len(n.decorator_list) for n in functions)
    assert 0 < lines < MOST_LINES


def test_the_demo_names_variants_that_exist() -> None:
    from sparsec.cli.naming import named

    demo = load("demo")
    assert demo.INPUTS.is_file()
    assert [named(words).variant.name for words in demo.VARIANTS] == ["msa", "hsa"]
