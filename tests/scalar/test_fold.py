"""Canonical forms: what folds, what must not, and that folding never changes a value."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.evaluate import apply, evaluate
from sparsec.scalar.expr import Expr, call, constant, element, lift, raw, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import maximum, minimum, sqrt, where
from sparsec.scalar.walk import transform

i, j, n = var("i"), var("j"), var("n")
x, y = var("x", "float"), var("y", "float")
NEGATIVE = -x
p, q = var("p", "bool"), var("q", "bool")


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (i + 0, "i"),
        (1 * i, "i"),
        (i * 0, "0"),
        (i - i, "0"),
        (2 * n - n + j, "j + n"),
        (j - i, "j - i"),
        (-i - 1, "-i - 1"),
        (1 - i, "1 - i"),
        ((i + 1) * 64 - 1, "64 * i + 63"),
        ((i + j) * (i - j), "i * i - j * j"),
        ((64 * i + 63) // 64, "i"),
        ((64 * i + j + 70) // 64, "i + (j + 6) // 64 + 1"),
        ((64 * i + j + 70) % 64, "(j + 6) % 64"),
        ((i // 4) // 8, "i // 32"),
        ((6 * i + 3) // 4, "(3 * i + 1) // 2"),
        ((i % 64) % 16, "i % 16"),
        ((n * i) // n, "i"),
        ((n * i + j) % n, "j % n"),
        (minimum(i + 1, i), "i"),
        (minimum(minimum(i, 5), 3), "minimum(i, 3)"),
        (maximum(i, maximum(j, i + 2)), "maximum(j, i + 2)"),
        (i < i + 1, "True"),
        (lift(3) == i, "i == 3"),
        (~(i < j), "j <= i"),
        (~(i == j), "i != j"),
        (~i, "-i - 1"),
        (i & 0, "0"),
        (i & -1, "i"),
        ((p & True) | False, "p"),
        (p & ~p, "False"),
        (~~p, "p"),
        (p ^ q, "p & ~q | ~p & q"),
        (where(i < j, 2, 2), "2"),
        (p + 1, "where(p, 1, 0) + 1"),
        (x * 1.0, "x"),
        (x - 0.0, "x"),
        (-NEGATIVE, "x"),
        (x * 2, "x * 2.0"),
        (constant(64) ** -0.5, "0.125"),
        (x**2, "x * x"),
        (sqrt(4.0), "2.0"),
    ],
)
def test_canonical_forms(built: Expr, text: str) -> None:
    assert str(built) == text


@pytest.mark.parametrize(
    "built",
    [x + 0.0, x * 0.0, (x + 12582912.0) - 12582912.0, ~(x < y), x - x, x / x, constant(0.1) + constant(0.2), 0 * x],
)
def test_floats_are_left_alone(built: Expr) -> None:
    assert isinstance(built.head, Fn)


def test_sums_are_one_object_however_they_are_written() -> None:
    assert (n - 1 + i) - j is i - (1 + j) + n
    assert 3 * (i + j) is i + 2 * j + 2 * i + j


def test_equality_is_an_expression_with_the_truth_of_identity() -> None:
    assert (i == j).head is Fn.EQ
    assert i == i and i != j and bool(i == j) is False
    assert (i, j) == (i, j) and (i, j) != (j, i)
    assert i in [j, i] and bool(i == "i") is False


def test_copies_and_pickles_are_the_same_object() -> None:
    mask = (j <= i) & (element("doc", i, kind="int") == element("doc", j, kind="int"))
    assert copy.deepcopy(mask) is mask
    assert pickle.loads(pickle.dumps(mask)) is mask


@pytest.mark.parametrize("wrong", [lambda: x & 1, lambda: p & i, lambda: i & p, lambda: x << 1, lambda: where(i, 1, 2)])
def test_kinds_that_do_not_fit(wrong: object) -> None:
    with pytest.raises(TypeError, match="takes"):
        wrong()  # type: ignore[operator]


def test_other_truth_values_are_errors() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(i < j)


INTEGER = (Fn.ADD, Fn.SUB, Fn.MUL, Fn.FLOORDIV, Fn.MOD, Fn.MINIMUM, Fn.MAXIMUM, Fn.XOR, Fn.AND, Fn.OR)
Program = tuple[Fn, "Tree", "Tree"]
Tree = Program | int | str
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.integers(-9, 9) | st.sampled_from(["i", "j", "n"]),
    lambda inner: st.tuples(st.sampled_from(INTEGER), inner, inner),
    max_leaves=12,
)


def grow(tree: Tree, folded: bool) -> Expr:
    """The expression of a tree of calls, with or without folding."""
    if isinstance(tree, int):
        return constant(tree)
    if isinstance(tree, str):
        return var(tree)
    fn, a, b = tree
    return (call if folded else raw)(fn, grow(a, folded), grow(b, folded))


@given(TREES, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 50))
def test_folding_keeps_the_value(tree: Tree, vi: int, vj: int, vn: int) -> None:
    env = {"i": vi, "j": vj, "n": vn}
    try:
        wanted = evaluate(grow(tree, False), env)
    except ZeroDivisionError:
        return
    assert evaluate(grow(tree, True), env) == wanted


@given(TREES)
def test_folding_is_idempotent(tree: Tree) -> None:
    def again(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return call(node.head, *args) if isinstance(node.head, Fn) else node

    try:
        built = grow(tree, True)
    except ZeroDivisionError:
        return
    assert transform(built, again) is built


SINGLE = st.floats(width=32)


@given(SINGLE, SINGLE, st.sampled_from([Fn.ADD, Fn.SUB, Fn.MUL, Fn.DIV]))
def test_float_constants_fold_as_fp32_computes(a: float, b: float, fn: Fn) -> None:
    import torch

    made = call(fn, a, b)
    if made.head == "const":
        rounded = torch.tensor(made.value, dtype=torch.float32)
        assert torch.equal(rounded, apply(fn, torch.tensor(a), torch.tensor(b))) or bool(rounded.isnan())
    else:
        assert b == 0 or math.isnan(a) or math.isnan(b)
