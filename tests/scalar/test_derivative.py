"""Every derivative rule against sympy's, against torch's autograd (ties included), and that each function has one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.derivative import PARTIALS, derivative
from sparsec.scalar.evaluate import NUMBERS, evaluate
from sparsec.scalar.expr import Expr, call, constant, element, var
from sparsec.scalar.fn import ARITY, COMPARISONS, LOGIC, Fn
from sparsec.scalar.functions import exp, maximum, minimum, sigmoid, tanh, where
from sparsec.scalar.symbolic import to_sympy

x, y = var("x", "float"), var("y", "float")
BITS = {Fn.XOR, Fn.SHL, Fn.SHR}
SMOOTH = [fn for fn in PARTIALS if fn not in (Fn.FLOORDIV, Fn.MOD)]


def test_every_function_of_floats_has_a_rule() -> None:
    assert set(PARTIALS) == set(NUMBERS) - COMPARISONS - LOGIC - BITS - {Fn.WHERE}


@pytest.mark.parametrize("wrt", [x, y], ids=str)
@pytest.mark.parametrize("fn", SMOOTH, ids=lambda fn: fn.value)
def test_each_rule_equals_sympys(fn: Fn, wrt: Expr) -> None:
    expr = call(fn, *(x, y)[: ARITY[fn]])
    theirs = to_sympy(expr).diff(to_sympy(wrt))
    for point in ({"x": 0.7, "y": 1.9}, {"x": 2.3, "y": 0.4}):
        value = float(theirs.subs({to_sympy(var(n, "float")): v for n, v in point.items()}).doit())
        assert evaluate(derivative(expr, wrt), point) == pytest.approx(value, abs=1e-12)


def autograd(expr: Expr, wrt: str, point: dict[str, float]) -> float:
    """torch's derivative in fp64."""
    env: dict[str, Any] = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in point.items()}
    out = torch.as_tensor(evaluate(expr, env))
    if not out.requires_grad:
        return 0.0
    (found,) = torch.autograd.grad(out, env[wrt], allow_unused=True)
    return 0.0 if found is None else found.item()


FLOATS = st.recursive(
    st.sampled_from([x, y, constant(2.0), constant(-0.5)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]), st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(inner, inner).map(lambda t: maximum(*t)), st.tuples(inner, inner).map(lambda t: minimum(*t)),
        st.tuples(inner, inner).map(lambda t: where(t[0] < t[1], t[0] - t[1], t[1])),
        inner.map(tanh), inner.map(sigmoid), inner.map(lambda a: exp(-abs(a))), inner.map(lambda a: -a),
    ),
    max_leaves=6,
)  # fmt: skip
VALUES = st.sampled_from([-1.5, 0.0, 1.0, 2.0]) | st.floats(-3, 3)


@given(FLOATS, VALUES, VALUES)
def test_composites_equal_autograd(expr: Expr, at_x: float, at_y: float) -> None:
    point = {"x": at_x, "y": at_y}
    mine = evaluate(derivative(expr, x), point)
    assert math.isclose(mine, autograd(expr, "x", point), rel_tol=1e-9, abs_tol=1e-9)


def test_ties_are_shared() -> None:
    point = {"x": 1.0, "y": 1.0}
    for expr in (minimum(x, y), maximum(x, y), maximum(x, 1.0)):
        assert evaluate(derivative(expr, x), point) == autograd(expr, "x", point) == 0.5


def test_elements_and_integers() -> None:
    slope, i = element("slopes", var("h")), var("i")
    assert str(derivative(x + slope * (var("j") - i), slope)) == "1.0 * (j - i)"
    assert evaluate(derivative(x + slope * i, slope), {"i": 3, "h": 0, "x": 1.0, "slopes": [2.0]}) == 3
    assert derivative(where(i < 3, 1, 2) + 0.5 * i, x) is constant(0.0)


def test_zero_times_infinity_does_not_arise() -> None:
    masked = where(var("j") <= var("i"), x, -math.inf)
    assert evaluate(derivative(masked, x), {"i": 0, "j": 1, "x": 2.0}) == 0.0


def test_softcap_reads_well() -> None:
    bent = derivative(20.0 * tanh(x / 20.0), x)
    assert str(bent) == "0.05 * (1.0 - tanh(x / 20.0) * tanh(x / 20.0)) * 20.0"


@pytest.mark.parametrize("wrt", [var("i"), x + 1.0, var("p", "bool")], ids=str)
def test_only_floats_are_differentiated_by(wrt: Expr) -> None:
    with pytest.raises(TypeError, match="differentiate by a float"):
        derivative(x, wrt)
