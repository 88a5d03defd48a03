"""Ranges and three-valued truth against brute force over boxes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, constant, element, var
from sparsec.scalar.functions import maximum, minimum, where
from sparsec.scalar.interval import Range, Truth, decide, fits_int32, range_of
from sparsec.scalar.parse import parse

NAMES = ("i", "j", "n")
LEAVES = st.sampled_from([var(n) for n in NAMES]) | st.integers(-9, 9).map(constant)


def combine(sign: str, a: Expr, b: Expr) -> Expr:
    """One integer operation; divisors and shifts are small positive constants."""
    k = abs(int(b.value)) + 1 if isinstance(b.value, int) else 4
    return {
        "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a // k, "%": lambda: a % k,
        "m": lambda: minimum(a, b), "M": lambda: maximum(a, b), "a": lambda: abs(a - b), "&": lambda: a & b,
        "|": lambda: a | b, "^": lambda: a ^ b, ">": lambda: a >> (k % 4), "w": lambda: where(a < b, a, 2 * b),
        "d": lambda: a // (abs(b) + 1), "r": lambda: a % (abs(b) + 1),
    }[sign]()  # fmt: skip


INTEGERS = st.recursive(
    LEAVES, lambda inner: st.builds(combine, st.sampled_from("+-*/%mMa&|^>wdr"), inner, inner), max_leaves=6
)
COMPARISONS = st.builds(
    lambda sign, a, b: {"<": a < b, "<=": a <= b, "==": a == b, "!=": a != b}[sign],
    st.sampled_from(["<", "<=", "==", "!="]), INTEGERS, INTEGERS,
)  # fmt: skip
PREDICATES = st.recursive(
    COMPARISONS,
    lambda inner: st.builds(lambda a, b: a & b, inner, inner) | st.builds(lambda a, b: a | ~b, inner, inner),
    max_leaves=3,
)


@st.composite
def boxes(draw: st.DrawFn) -> dict[str, Range]:
    """A small range with a step for each variable."""
    box = {}
    for name in NAMES:
        step = draw(st.integers(1, 3))
        lo = draw(st.integers(-5, 5)) * step
        box[name] = Range(lo, lo + draw(st.integers(0, 3)) * step, step)
    return box


def points(box: dict[str, Range]) -> list[dict[str, int]]:
    """Every point of a box."""
    axes = [range(int(r.lo), int(r.hi) + 1, r.multiple_of) for r in box.values()]
    return [dict(zip(box, values, strict=True)) for values in product(*axes)]


@given(INTEGERS, boxes())
def test_ranges_are_sound(expr: Expr, box: dict[str, Range]) -> None:
    found = range_of(expr, box)
    for point in points(box):
        value = evaluate(expr, point)
        assert found.lo <= value <= found.hi
        assert value % found.multiple_of == 0 if found.multiple_of else value == 0


@given(PREDICATES, boxes())
def test_decisions_are_sound(predicate: Expr, box: dict[str, Range]) -> None:
    values = {bool(evaluate(predicate, point)) for point in points(box)}
    truth = decide(predicate, box)
    assert truth is Truth.MIXED or values == {truth is Truth.ALL}


@given(
    st.integers(-3, 3), st.integers(-3, 3), st.integers(-9, 9), st.sampled_from("<="),
    st.integers(-5, 5), st.integers(0, 4), st.integers(-5, 5), st.integers(0, 4),
)  # fmt: skip
def test_unit_differences_are_exact(
    a: int, b: int, c: int, sign: str, i_lo: int, i_n: int, j_lo: int, j_n: int
) -> None:
    box = {"i": Range(i_lo, i_lo + i_n), "j": Range(j_lo, j_lo + j_n)}
    left = a * var("i") + b * var("j")
    predicate = left < c if sign == "<" else left <= c
    values = {bool(evaluate(predicate, point)) for point in points(box)}
    exact = Truth.MIXED if len(values) == 2 else Truth.ALL if True in values else Truth.NONE
    assert decide(predicate, box) is exact


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("j <= i", Truth.ALL),
        ("i - j < 512", Truth.MIXED),
        ("(j <= i) & (i - j < 200)", Truth.ALL),
        ("(j <= i) & (i - j < 64)", Truth.NONE),
        ("i // 64 == j // 64", Truth.NONE),
        ("(i // 64 - j // 64) == 2", Truth.ALL),
        ("2 * i == 2 * j + 1", Truth.NONE),
        ("n < 5", Truth.MIXED),
        ("score < 0.0", Truth.MIXED),
        ("(score < 0.0) & (i < j)", Truth.NONE),
    ],
)
def test_tiles(text: str, truth: Truth) -> None:
    box = {"i": Range(128, 191), "j": Range(0, 63)}
    if text == "i - j < 512":
        box["i"] = Range(128, 600)
    assert decide(parse(text), box) is truth


def test_offsets_fit_or_do_not() -> None:
    offset = parse("(b * TK + j) * H * D + h * D")
    small = {"b": Range(0, 7), "TK": Range(1, 32768), "j": Range(0, 32767), "H": Range(8, 8), "D": Range(64, 64)}
    assert fits_int32(offset, {**small, "h": Range(0, 7)})
    assert not fits_int32(offset, {**small, "h": Range(0, 7), "TK": Range(1, 2**20), "j": Range(0, 2**20)})
    assert not fits_int32(offset, small)
    assert not fits_int32(parse("i * i // 65536"), {"i": Range(0, 65536)})


def test_divisibility_is_inferred() -> None:
    env = {"TK": Range(0, 4096, 64), "c": Range(0, 63)}
    assert range_of(parse("TK // 16 + 8 * c"), env) == Range(0, 256 + 504, 4)
    assert range_of(parse("TK % 64 + 64 * c"), env).multiple_of == 64
    assert range_of(element("w", var("h"), kind="int") + 1, {"w": Range(0, 9)}) == Range(1, 10, 1)
