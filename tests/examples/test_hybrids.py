"""Hybrids of states and attention: declared in few lines; outputs and all gradients are the oracle's."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.oracle import oracle
from sparsec.testing.whole.trained import wrong_on

FILE = Path(__file__).resolve().parents[2] / "examples" / "hybrids.py"
MOST_LINES = 20


def load() -> Any:
    spec = importlib.util.spec_from_file_location("hybrids", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HYBRIDS = load()
BY_NAME = {variant.name: variant for variant in HYBRIDS.HYBRIDS}


@pytest.mark.parametrize("name", BY_NAME)
def test_outputs_and_gradients(name: str) -> None:
    variant = BY_NAME[name]
    assert wrong_on(sparsec.compile(variant, target="interpreter"), HYBRIDS.drawn(variant), "float32") == []


def test_each_is_declared_in_few_lines() -> None:
    lengths = {f.name: (f.end_lineno or 0) - f.lineno for f in ast.parse(FILE.read_text()).body
               if isinstance(f, ast.FunctionDef)}  # fmt: skip
    assert set(BY_NAME) <= set(lengths) and max(lengths[name] for name in BY_NAME) < MOST_LINES


def test_main_checks_against_the_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    HYBRIDS.main(target="interpreter")
    assert capsys.readouterr().out.count("within the bounds of float32") == len(BY_NAME)


def test_one_normaliser_is_one_softmax_over_both() -> None:
    """With weights that sum to one: constant values come back as they are."""
    variant = BY_NAME["one_normaliser"]
    x = HYBRIDS.drawn(variant)
    x["v"] = torch.full_like(x["v"], 3.0)
    torch.testing.assert_close(oracle(variant, x), torch.full_like(x["q"], 3.0).double())


def test_residual_chunks_complete_what_the_state_recalls() -> None:
    """What the state does not know of a token's value, read back at that token alone, makes the value whole."""
    variant = BY_NAME["residual_chunks"]
    x = {n: y.double() for n, y in HYBRIDS.drawn(variant).items()}
    k = torch.nn.functional.normalize(x["k"], dim=-1)
    state = sparsec.parse(
        """variant s(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], b: [B,T,HKV], g: [B,T,HKV] float32) {
      s = write(state(), k, v, beta=b, decay=g) {rule = delta, decay_kind = scalar}
      return recall(k, s) {when = before}, surprise(s) }""".replace("q: [B,T,H,D], ", "")
    )
    known, left = oracle(state, {"k": k, "v": x["v"], "b": x["b"].sigmoid(), "g": x["g"]})
    torch.testing.assert_close(known + left, x["v"])


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "residual_chunks"])
def test_prefill_and_steps_are_one_forward(name: str) -> None:
    """But for the chunks that hold what a state left: a cache keeps inputs, and these are computed."""
    variant, x = BY_NAME[name], HYBRIDS.drawn(BY_NAME[name], tokens=37)
    made = sparsec.compile(variant, target="interpreter")
    cache = made.init_cache(1, 64, page=16, states={"m": x["m"]} if "m" in x else None)
    steps, kept = list[Any](), {n: y for n, y in x.items() if n != "m"}
    for first, end in ((0, 33), (33, 34), (34, 37)):
        given = {n: y[:, first:end] if str(variant.inputs[n].shape[1]) == "T" else y for n, y in kept.items()}
        steps.append(made.decode(cache, **given))
    torch.testing.assert_close(torch.cat(steps, 1), made(**x), rtol=1e-5, atol=1e-6)
