"""Printed source: the same text for the same program, readable by TVM's own parser, printed without TVM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsec.backends.tvm.emit import emit
from sparsec.backends.tvm.lanes import Lanes
from sparsec.backends.tvm.pipeline import build
from sparsec.backends.tvm.reader import read
from sparsec.backends.tvm.text import grouped, plus, times
from sparsec.scalar.fn import Fn
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.build import TileError
from sparsec.tile.language import Axis, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

ROOT = Path(__file__).parents[2]


def softmax() -> Program:
    """out = softmax(x) over rows of 32, one row of 16 per program."""
    with tile.Builder() as b:
        m, n = b.axis("m", 16), b.axis("n", 32)
        x, out = (Tensor(name, "float32", ("T", 32)) for name in ("x", "out"))
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 16), tile.iota(m))
        value = tile.load(x, row, tile.iota(n))
        p = tile.apply(Fn.EXP2, tile.apply(Fn.SUB, value, tile.reduce("max", value, n)))
        tile.store(out, row, tile.iota(n), value=tile.apply(Fn.DIV, p, tile.reduce("sum", p, n)))
        return b.program("softmax", [x, out], [("T", "int32")], [tile.apply(Fn.TRUNCDIV, tile.param("T"), 16)])


def test_softmax_reads_as_if_written(golden: Callable[[str], None]) -> None:
    golden(emit(softmax(), Schedule(lanes=("n",))))


@pytest.mark.parametrize("name", ["window_half", "chunks", "top_8_of_16", "scatter", "prefix"])
def test_printing_is_deterministic_and_reads_back(name: str) -> None:
    import tvm_ffi
    from tvm.script import from_source

    source = emit(CASES[name]().program, Schedule())
    assert source == emit(CASES[name]().program, Schedule())
    assert tvm_ffi.structural_equal(read(source), from_source(source, check_well_formed=False))


@pytest.mark.parametrize("name", ["x_n", "x_data", "x_n0", "X_s0", "task"])
def test_names_of_tensors_are_kept_clear_of_what_is_made_of_others(name: str) -> None:
    """A declaration may call a node ``n`` or ``data``, whose gradients are then named grad_q_n, grad_q_data."""
    with tile.Builder() as b:
        m = b.axis("m", 16)
        first = name.split("_")[0]
        x, other, out = (Tensor(n, "float32", ("T",)) for n in (first if "_" in name else "x", name, "out"))
        row = tile.iota(m)
        both = tile.apply(Fn.ADD, tile.load(x, row), tile.load(other, row))
        tile.store(out, row, value=both)
        program = b.program("both", [other, x, out], [("T", "int32")], [tile.const(1)])
    build(emit(program, Schedule(lanes=("m",))))


def test_other_source_is_left_to_tvm() -> None:
    source = emit(softmax(), Schedule())
    aliased = source.replace("T.func_attr", "if True:\n        pass\n    T.func_attr", 1)
    assert "pass" in aliased
    read(source)
    with pytest.raises(Exception, match=r"\w"):
        read("import os\n" + source)


def test_printing_needs_neither_tvm_nor_torch() -> None:
    code = (
        "import sys; from sparsec.backends.tvm.emit import emit; "
        "print(sorted({'tvm', 'torch', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tensor_read_and_written_is_refused() -> None:
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x = Tensor("x", "float32", (16,))
        tile.store(x, tile.iota(n), value=tile.load(x, tile.iota(n)))
        program = b.program("twice", [x], [], [1])
    with pytest.raises(TileError, match="twice: x is both read and written"):
        emit(program, Schedule())


def test_an_odd_vector_length_is_refused() -> None:
    with pytest.raises(ScheduleError, match="12 floats"):
        emit(softmax(), Schedule(vector=12))


@pytest.mark.parametrize(
    ("sizes", "lane"),
    [((32, 64), "m"), ((3, 64), "e"), ((8, 64), "e"), ((8, 4), "m"), ((1, 5), None), ((80, 16), "m")],
)
def test_lanes_fill_vectors_first(sizes: tuple[int, int], lane: str | None) -> None:
    m, e = Axis("m", sizes[0], 1), Axis("e_1", sizes[1], 0)
    picked = Lanes(Schedule(lanes=("m", "e"))).pick((e, m))
    assert (picked.name.split("_")[0] if picked else None) == lane


def test_index_texts_fold() -> None:
    assert plus("i", "3", times("j", 1), "-3") == "i + j"
    assert plus("i", "-2") == "i - 2"
    assert times(plus("i", "1"), 4) == "(i + 1) * 4"
    assert times("4", "16") == "64"
    assert grouped("f(a + b)[2]") == "f(a + b)[2]"
    assert grouped("(a) + (b)") == "((a) + (b))"
