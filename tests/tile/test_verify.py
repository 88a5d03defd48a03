"""Every rule of the tile language refuses what breaks it, and says what."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor, TileOp
from sparsec.tile.verify import RULES, verify

X = Tensor("x", "float32", ("T", 16))
HALF = Tensor("h", "bfloat16", ("T", 16))
OUT = Tensor("out", "float32", ("T", 16))


def test_every_op_has_a_rule() -> None:
    assert set(RULES) == set(TileOp)


@pytest.mark.parametrize("name", CASES)
def test_good_programs_pass(name: str) -> None:
    verify(CASES[name]().program)


def program(body: Callable[[tile.Builder], None], *tensors: Tensor) -> Program:
    """A program of one body over 16 columns."""
    with tile.Builder() as b:
        body(b)
        return b.program("bad", tensors or (X, HALF, OUT), [("T", "int32")], [1])


def put(value: Node) -> None:
    """Store a row to out."""
    (axis,) = value.axes
    tile.store(OUT, 0, tile.iota(axis), value=value)


def half_sum(b: tile.Builder) -> None:
    d = b.axis("d", 16)
    x = tile.load(HALF, 0, tile.iota(d))
    put(tile.cast(tile.apply(Fn.ADD, x, x), "float32"))


def half_reduce(b: tile.Builder) -> None:
    d, n = b.axis("d", 16), b.axis("n", 16)
    put(tile.cast(tile.reduce("sum", tile.load(HALF, tile.iota(n), tile.iota(d)), n), "float32"))


def half_exp(b: tile.Builder) -> None:
    put(tile.cast(tile.apply(Fn.EXP2, tile.load(HALF, 0, tile.iota(b.axis("d", 16)))), "float32"))


def floor(b: tile.Builder) -> None:
    d = b.axis("d", 16)
    put(tile.load(X, 0, tile.apply(Fn.MOD, tile.iota(d), 3)))


def mixed_dot(b: tile.Builder) -> None:
    d, n = b.axis("d", 16), b.axis("n", 16)
    put(tile.dot(tile.load(X, tile.iota(n), tile.iota(d)), tile.load(HALF, 0, tile.iota(d)), d))


def precision(b: tile.Builder) -> None:
    d, n = b.axis("d", 16), b.axis("n", 16)
    x = tile.load(X, tile.iota(n), tile.iota(d))
    put(tile.dot(x, tile.load(X, 0, tile.iota(d)), d, precision="fast"))


def float_index(b: tile.Builder) -> None:
    put(tile.load(X, tile.load(X, 0, 0), tile.iota(b.axis("d", 16))))


def lost_axis(b: tile.Builder) -> None:
    d, n = b.axis("d", 16), b.axis("n", 16)
    tile.store(OUT, 0, tile.iota(d), value=tile.load(X, tile.iota(n), tile.iota(d)))


def read_and_written(b: tile.Builder) -> None:
    put(tile.load(OUT, 1, tile.iota(b.axis("d", 16))))


def undeclared_parameter(b: tile.Builder) -> None:
    put(tile.load(X, tile.param("L"), tile.iota(b.axis("d", 16))))


def undeclared_tensor(b: tile.Builder) -> None:
    put(tile.load(Tensor("y", "float32", (1, 16)), 0, tile.iota(b.axis("d", 16))))


def escaped(b: tile.Builder) -> None:
    d, kept = b.axis("d", 16), []

    def visit(i: Node) -> list[Node]:
        kept.append(tile.load(X, i, tile.iota(d)))
        return []

    tile.loop(0, 4, 1, [], visit)
    put(kept[0])


def truth_arithmetic(b: tile.Builder) -> None:
    d = b.axis("d", 16)
    below = tile.apply(Fn.LT, tile.iota(d), 3)
    put(tile.cast(tile.apply(Fn.ADD, below, below), "float32"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (half_sum, "arithmetic on bfloat16, bfloat16 would round differently"),
        (half_reduce, "works on float32 and integers, not bfloat16"),
        (half_exp, "takes float32, not bfloat16"),
        (floor, "rounds down; tile programs have truncdiv"),
        (mixed_dot, "multiplies float32 by bfloat16"),
        (precision, "precision 'fast' is unknown; use ieee, tf32 or tf32x3"),
        (float_index, "an index is float32"),
        (lost_axis, "no index has axis n of the value"),
        (read_and_written, "out is loaded and stored"),
        (undeclared_parameter, "L is read but is no parameter"),
        (undeclared_tensor, "y is used but is no tensor"),
        (escaped, "from inside loop 0; return it from the loop's body"),
        (truth_arithmetic, "takes numbers, not truth values"),
    ],
)
def test_broken_programs_are_refused_with_a_reason(body: Callable[[tile.Builder], None], message: str) -> None:
    with pytest.raises(tile.TileError, match=message):
        verify(program(body))


def test_a_tensor_may_be_called_what_a_stride_is() -> None:
    verify(CASES["names"]().program)


def test_two_arguments_of_one_name_are_refused() -> None:
    with tile.Builder() as b:
        put(tile.load(X, tile.param("x"), tile.iota(b.axis("d", 16))))
        made = b.program("bad", [X, OUT], [("x", "int32")], [1])
    with pytest.raises(tile.TileError, match="x names two arguments"):
        verify(made)
