"""The bridge to sympy keeps values in both directions, and formulas become numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sympy

from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Kind
from sparsec.scalar.parse import parse
from sparsec.scalar.symbolic import NoFormula, formula, from_sympy, to_sympy

KINDS: dict[str, Kind] = {"w": "int"}
INTEGERS = [
    "2 * B * TQ * H * (D + DV)",
    "TK // 64 + 1",
    "(TK + 63) // 64 * 64 - TK % 64",
    "minimum(TK, 512) * maximum(TQ - 3, 0)",
    "(3 * i + 1) // 2 - j",
    "abs(i - j)",
    "where(i < j, i, 2 * j)",
    "where((i == j) | (i <= 3), 1, where(i != 7, 2, 3))",
    "i << 2",
    "i >> 1",
]
POINTS = [
    {"B": 2, "TQ": 5, "TK": 130, "H": 3, "D": 64, "DV": 32, "i": 7, "j": 2},
    {"B": 1, "TQ": 1, "TK": 64, "H": 1, "D": 1, "DV": 1, "i": 0, "j": 0},
    {"B": 1, "TQ": 9, "TK": 1, "H": 1, "D": 1, "DV": 1, "i": 3, "j": 8},
]


@pytest.mark.parametrize("text", INTEGERS)
def test_integers_keep_their_values(text: str) -> None:
    expr = parse(text)
    for point in POINTS:
        assert formula(expr, point) == evaluate(expr, point)
        assert evaluate(from_sympy(to_sympy(expr)), point) == evaluate(expr, point)


@pytest.mark.parametrize(
    "text",
    ["exp(-x) * tanh(x / 2.0)", "log2(x) + sigmoid(y)", "rsqrt(x) - sqrt(y)", "exp2(x) / y", "maximum(x, y * 0.5)"],
)
def test_floats_keep_their_values(text: str) -> None:
    kinds: dict[str, Kind] = {"x": "float", "y": "float"}
    expr, point = parse(text, kinds), {"x": 0.7, "y": 1.3}
    assert formula(expr, point) == pytest.approx(evaluate(expr, point))
    assert evaluate(from_sympy(to_sympy(expr)), point) == pytest.approx(evaluate(expr, point))


def test_partly_known_formulas_stay_formulas() -> None:
    left = formula(parse("4 * B * TQ * D"), {"B": 2, "D": 64})
    assert str(left) == "512*TQ"
    assert formula(left, {"TQ": 3}) == 1536 and isinstance(formula(left, {"TQ": 3}), int)
    assert formula(parse("TK / 3"), {"TK": 1}) == pytest.approx(1 / 3)


def test_sympy_proves_what_integers_allow() -> None:
    assert to_sympy(parse("(64 * c + 63) // 64")) == to_sympy(parse("c"))
    assert to_sympy(parse("TK")) > 0 and to_sympy(parse("i")) >= 0


def test_elements_cross_the_bridge() -> None:
    expr = parse("i - w[h] + 1", None, KINDS)
    assert from_sympy(to_sympy(expr)) is expr


def test_what_has_no_formula_says_so() -> None:
    with pytest.raises(NoFormula, match="bits"):
        to_sympy(parse("i & 3"))
    with pytest.raises(NoFormula, match="no `sin`"):
        from_sympy(sympy.sin(sympy.Symbol("x")))


def test_sympy_loads_late() -> None:
    code = "import sys, sparsec.scalar.symbolic; assert 'sympy' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
