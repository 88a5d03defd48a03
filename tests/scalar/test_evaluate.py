"""Numbers and tensors give the same values, floor semantics and IEEE corners included."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.evaluate import NUMBERS, apply, evaluate
from sparsec.scalar.expr import element, var
from sparsec.scalar.fn import ARITY, COMPARISONS, Fn
from sparsec.scalar.functions import where
from sparsec.scalar.parse import parse

TRACED = [fn for fn in NUMBERS if fn is not Fn.WHERE]
INTEGER = {Fn.AND, Fn.OR, Fn.XOR, Fn.NOT, Fn.SHL, Fn.SHR}
FLOATS = st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 800.0]) | st.floats(-30, 30)


def test_every_function_of_expressions_is_evaluated() -> None:
    assert set(NUMBERS) == set(Fn) - {Fn.TRUNCDIV, Fn.TRUNCMOD, Fn.RANK, Fn.RANK_ID, Fn.RANK_SCORE}


@pytest.mark.parametrize("fn", [fn for fn in TRACED if fn not in INTEGER], ids=lambda fn: fn.value)
@given(a=FLOATS, b=FLOATS)
def test_numbers_agree_with_tensors_on_floats(fn: Fn, a: float, b: float) -> None:
    if fn in (Fn.FLOORDIV, Fn.MOD) and not (b and math.isfinite(a) and math.isfinite(b)):
        return
    operands = (a, b)[: ARITY[fn]]
    single = apply(fn, *operands)
    whole = apply(fn, *(torch.tensor(x, dtype=torch.float64) for x in operands))
    assert torch.allclose(torch.as_tensor(single, dtype=whole.dtype), whole, equal_nan=True, rtol=1e-12, atol=0)


INTEGERS = sorted({Fn.FLOORDIV, Fn.MOD, *COMPARISONS, *INTEGER, Fn.MINIMUM}, key=lambda fn: fn.value)


@pytest.mark.parametrize("fn", INTEGERS, ids=lambda fn: fn.value)
@given(a=st.integers(-1000, 1000), b=st.integers(1, 20))
def test_numbers_agree_with_tensors_on_integers(fn: Fn, a: int, b: int) -> None:
    operands = (a, b)[: ARITY[fn]]
    assert apply(fn, *operands) == apply(fn, *(torch.tensor(x) for x in operands)).item()


def test_a_mask_broadcasts_and_reads_captured_tensors() -> None:
    mask = parse("(j <= i) & (i - j < w[h]) & (doc[j] == doc[i])", None, {"w": "int", "doc": "int"})
    doc = torch.tensor([0, 0, 0, 1, 1, 1])
    at = torch.arange(6)
    env = {"h": torch.arange(2)[:, None, None], "i": at[:, None], "j": at, "w": torch.tensor([1, 6]), "doc": doc}
    shown = evaluate(mask, env)
    assert shown.shape == (2, 6, 6)
    assert torch.equal(shown[0], torch.eye(6, dtype=torch.bool))
    assert torch.equal(shown[1], torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).tril().bool())


def test_dtypes_follow_the_tensors() -> None:
    score = var("score", "float")
    bent = evaluate(
        where(score < 0, score * 2.0, 0.0) + element("t", var("i")),
        {"score": torch.ones(3), "i": 1, "t": torch.ones(2)},
    )
    assert bent.dtype == torch.float32


def test_a_missing_value_is_named() -> None:
    with pytest.raises(KeyError, match="no value for `j`; given: i"):
        evaluate(parse("i - j"), {"i": 1})


def test_numbers_need_no_torch() -> None:
    code = (
        "import sys; from sparsec.scalar.evaluate import evaluate; from sparsec.scalar.parse import parse;"
        "assert evaluate(parse('-7 // i + -7 % i'), {'i': 2}) == -3; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
