"""Printing and parsing: exact round trips, Python's own precedence, and errors that point."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.expr import Expr, Kind, constant, element, var
from sparsec.scalar.functions import exp, maximum, minimum, sigmoid, tanh, where
from sparsec.scalar.text import ExprSyntaxError, parse, to_text
from sparsec.scalar.walk import tensors, variables

i, j = var("i"), var("j")
x, y = var("score", "float"), var("x0", "float")


@pytest.mark.parametrize(
    "text",
    [
        "(j <= i) & (i - j < 512)",
        "(j < 4) | (j <= i) & (i - j < w[h])",
        "~(x0 < score) & (doc[b, i] == doc[b, j])",
        "(i - j) % 4 == 0",
        "score + slopes[h] * (j - i)",
        "x0 - (score - 1.0)",
        "x0 / (score / x1) * -2.5",
        "-(x0 + score)",
        "-x0 * score",
        "where(i < j, tanh(score), -inf)",
        "x0 * 1e-30 + 1e+30",
        "i // (j // 2 + 1)",
        "i << 3 & 7 | j >> 2 ^ 1",
        "2 * B * TQ + TK // 64 - 1",
    ],
)
def test_text_survives(text: str) -> None:
    kinds: dict[str, Kind] = {"doc": "int", "w": "int", "slopes": "float"}
    assert to_text(parse(text, None, kinds)) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("i - (j + 1)", i - j - 1),
        ("0 <= i - j < 512", (i - j >= 0) & (i - j < 512)),
        ("i > j", j < i),
        ("min(i, j)", minimum(i, j)),
        ("score ** 2", x * x),
        ("+i", i),
        ("nan", constant(float("nan"))),
        ("  i\n + j", i + j),
        ("True", constant(True)),
        ("i < j & i", i < (j & i)),
        ("t[i, j + 1]", element("t", i, j + 1)),
    ],
)
def test_other_spellings(text: str, same: Expr) -> None:
    assert parse(text) is same


FLOATS = st.recursive(
    st.sampled_from([x, y, var("x1", "float")]) | st.floats(allow_nan=False).map(constant),
    lambda inner: st.one_of(
        st.tuples(inner, inner, st.sampled_from("+-*/mMw")).map(lambda t: combine(*t)),
        inner.map(exp), inner.map(sigmoid), inner.map(lambda a: -a), inner.map(abs),
    ),
    max_leaves=12,
)  # fmt: skip


def combine(a: Expr, b: Expr, sign: str) -> Expr:
    """One operation by its sign."""
    return {
        "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b, "m": lambda: minimum(a, b),
        "M": lambda: maximum(a, b), "w": lambda: where(~(a < b) | (i == j), tanh(a), element("t", i, j)),
    }[sign]()  # fmt: skip


@given(FLOATS)
def test_round_trip_is_the_same_object(built: Expr) -> None:
    assert parse(to_text(built), variables(built), tensors(built)) is built
    assert parse(to_text(built)) is built


@pytest.mark.parametrize(
    ("text", "column", "piece", "fix"),
    [
        ("i - k", 5, "k", "known here: i, j"),
        ("(i < j) and (j < 4)", 1, "(i < j) and (j < 4)", "write &"),
        ("foo(i)", 1, "foo", "exp"),
        ("i if j else 3", 1, "i if j else 3", "where"),
        ("  not i", 3, "not i", "~"),
        ("i +", 4, "end of text", ""),
        ("t[i]", 1, "t", "captured here: none"),
        ("i ** j", 6, "j", "exp2"),
        ("where(i, 1, 2)", 1, "where(i, 1, 2)", ""),
        ("exp(i, j)", 1, "exp(i, j)", ""),
        ("'a'", 1, "'a'", "integer"),
        ("i @ j", 1, "i @ j", "use +"),
    ],
)
def test_errors_point(text: str, column: int, piece: str, fix: str) -> None:
    with pytest.raises(ExprSyntaxError) as caught:
        parse(text, {"i": "int", "j": "int"}, {})
    assert caught.value.column == column
    assert caught.value.piece == piece
    assert fix in caught.value.fix
    assert f"column {column}" in str(caught.value)
