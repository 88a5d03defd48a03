"""Printed Triton: stable, parsable, free of what one of the supported versions lacks, and refused with a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

import pytest

from sparsec.backends.triton.emit import emit
from sparsec.backends.triton.names import merge
from sparsec.backends.triton.text import wrapped
from sparsec.scalar.fn import Fn
from sparsec.testing.tile.attention import window, window_program
from sparsec.testing.tile.cases import CASES
from sparsec.testing.tile.selection import top
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

X = Tensor("x", "float32", ("T", 16))
OUT = Tensor("out", "float32", ("T", 16))

# Newer than Triton 3.6, gone after it, or deprecated.
ABSENT = re.compile(
    r"make_block_ptr|tl\.squeeze|tl\.unsqueeze|can_reorder|topk\(.*descending|fdiv|atomic_(load|store|poll)"
    r"|tl\.softmax|[<>]=?[^=&|()]*[<>]"
)


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_source_is_stable_and_python(name: str, descriptors: bool) -> None:
    schedule = Schedule(descriptors=descriptors)
    source = emit(CASES[name]().program, schedule)
    assert source == emit(CASES[name]().program, schedule)
    ast.parse(source)
    code = [line for line in source.splitlines() if not line.lstrip().startswith('"""') and "<<" not in line]
    assert [line for line in code if ABSENT.search(line.replace(">>", ""))] == []


@pytest.mark.parametrize("name", ["window", "gather", "top_8_of_16"])
def test_source_of(name: str, golden: Callable[[str], None]) -> None:
    golden(emit(CASES[name]().program, Schedule()))


def test_source_through_descriptors(golden: Callable[[str], None]) -> None:
    golden(emit(window_program(64, 1024, 64, 64, 2, "bfloat16"), Schedule(descriptors=True)))


def test_lengths_and_loose_strides_never_specialise() -> None:
    source = emit(top(slots=8).program, Schedule())
    assert '@triton.jit(do_not_specialize=["T", "N", "x_s0", "ids_s0", "scores_s0"])' in source
    assert '@triton.jit(do_not_specialize=["T", "H", "B", "lse_s0", "lse_s1"])' in emit(window().program, Schedule())


def test_scalars_move_a_wide_base_and_tiles_a_narrow_offset() -> None:
    source = emit(window().program, Schedule())
    assert "k + pid2 * k_s0 + i * k_s1 + index_1 * k_s2 + (n_i[:, None] * k_t1 + d_i[None, :])" in source
    assert "k_t1 = k_s1.to(tl.int32)" in source and "k_s1: tl.int64" in source


def test_gathered_rows_get_wide_offsets() -> None:
    source = emit(CASES["gather"]().program, Schedule())
    assert ".to(tl.int64) * x_s0" in source


def test_states_that_trade_places_are_assigned_at_once() -> None:
    assert "x_tile, x_tile_1 = x_tile_1, x_1" in emit(CASES["recurrence"]().program, Schedule())


def test_stages_of_a_loop_are_printed() -> None:
    assert re.search(r"in tl\.range\(.*, num_stages=3\):", emit(window().program, Schedule()))


@pytest.mark.parametrize(
    ("dtype", "precision", "text"),
    [
        ("float32", "ieee", 'input_precision="ieee"'),
        ("float32", "tf32x3", 'input_precision="tf32x3"'),
        ("float32", "tf32", 'tl.dot(tf32(x_tile), tf32(tl.trans(y_tile)), input_precision="tf32")'),
        ("bfloat16", "ieee", "tl.dot(x_tile, tl.trans(y_tile))"),
    ],
)
def test_precision_of_dots(dtype: str, precision: str, text: str) -> None:
    assert text in emit(product(16, dtype, precision), Schedule())


def product(size: int, dtype: str = "float32", precision: str = "ieee") -> Program:
    """out = x yᵀ over matrices of ``size`` rows."""
    with tile.Builder() as b:
        m, n, d = b.axis("m", size), b.axis("n", size), b.axis("d", 16)
        x, y = (Tensor(name, dtype, (size, 16)) for name in ("x", "y"))
        out = Tensor("out", "float32", (size, size))
        left, right = tile.load(x, tile.iota(m), tile.iota(d)), tile.load(y, tile.iota(n), tile.iota(d))
        tile.store(out, tile.iota(m), tile.iota(n), value=tile.dot(left, right, d, precision=precision))
        return b.program("product", [x, y, out], [], [1])


def row(columns: int, name: str = "copy") -> Program:
    """out[0] = x[0]."""
    with tile.Builder() as b:
        d = b.axis("d", columns)
        tile.store(OUT, 0, tile.iota(d), value=tile.load(X, 0, tile.iota(d)))
        return b.program(name, [X, OUT], [], [1])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: row(48), "axis d has 48 elements; Triton's tiles are powers of two, so split the axis"),
        (lambda: row(1 << 21), "a tile of 2097152 elements; Triton allows 1048576"),
        (lambda: product(8), "axis [mn] of a matrix product has 8 elements; tensor cores need 16"),
        (lambda: row(16, name="tl"), "cannot be named 'tl'"),
        (lambda: row(16, name="lambda"), "cannot be named 'lambda'"),
    ],
)
def test_what_triton_cannot_do_is_refused_in_a_sentence(program: Callable[[], Program], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        emit(program(), Schedule())


def test_a_state_read_after_its_successor_is_not_overwritten() -> None:
    with tile.Builder() as b:
        d = b.axis("d", 16)

        def visit(i: Node, acc: Node, last: Node) -> list[Node]:
            after = tile.apply(Fn.ADD, acc, tile.load(X, i, tile.iota(d)))
            change = tile.apply(Fn.MUL, after, acc)
            return [after, tile.apply(Fn.ADD, last, change)]

        acc, last = tile.loop(0, tile.param("T"), 1, [tile.full(0.0, d), tile.full(1.0, d)], visit)
        tile.store(OUT, 0, tile.iota(d), value=acc)
        tile.store(OUT, 1, tile.iota(d), value=last)
        source = emit(b.program("late", [X, OUT], [("T", "int32")], [1]), Schedule())
    lines = [line.strip() for line in source.splitlines()]
    assert lines.index("total_1 = total_1 + x_1 * total") < lines.index("total = x_1")


def test_a_value_called_dot_leaves_the_function_dot_alone() -> None:
    lines = ["acc = fill", "for i in tl.range(0, n):", "    dot = tl.dot(p, v, acc)", "    use(dot)"]
    assert merge(lines, 1, "dot", "acc")
    assert lines[2:] == ["    acc = tl.dot(p, v, acc)", "    use(acc)"]


def test_a_long_bracketed_operand_is_no_tuple() -> None:
    long = " - ".join(f"name_of_a_value_{n}" for n in range(8))
    call, product = wrapped(f"    x = f({long}, 1)"), wrapped(f"    x = y * ({long})")
    assert call[-2] == "        1," and len(call) == 4
    assert product == ["    x = y * (", f"        {long}", "    )"]
