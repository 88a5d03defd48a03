"""The proof that states may be written over, and kernels that it must refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsec.lower.decode.in_place import in_place
from sparsec.lower.lowered import Step
from sparsec.lower.scan.token import forward as token
from sparsec.lower.scan.token import step
from sparsec.scalar.fn import Fn
from sparsec.testing.kernels.scan import Setting
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

SETTING = Setting("delta", "scalar", True, True, True, heads=4, state_heads=2, rows=64, cols=64)
SCHEDULE = Schedule(order="step", value_block=16, warps=2)


@pytest.mark.parametrize("lower", [step.lower, token.lower])
def test_recurrences_turn_states_into_states(lower: object) -> None:
    assert callable(lower)
    steps = lower(SETTING.scan(), SCHEDULE).steps
    assert in_place(steps, "h0", "ht")
    assert not in_place(steps, "h0", "o") and not in_place(steps, "k", "ht")


def test_more_lanes_than_elements_would_read_some_twice() -> None:
    steps = step.lower(SETTING.scan(), SCHEDULE).steps
    assert not in_place([replace(s, schedule=replace(s.schedule, warps=16)) for s in steps], "h0", "ht")


def moved(kind: str) -> Step:
    """x of some grid point into y, in a way that the same memory would not stand."""
    with tile.Builder() as builder:
        n, m = builder.axis("n", 128), builder.axis("m", 128)
        x, y = (Tensor(name, "float32", ("N", 128)) for name in ("x", "y"))
        row, at = tile.program_id(0), tile.iota(n)
        if kind == "another row":
            tile.store(y, row, at, value=tile.load(x, tile.apply(Fn.ADD, row, 1), at))
        elif kind == "all for each":
            total = tile.reduce("sum", tile.load(x, row, tile.iota(m)), m)
            tile.store(y, row, at, value=tile.apply(Fn.ADD, tile.full(0.0, n), total))
        elif kind == "in a loop":

            def visit(place: Node) -> list[Node]:
                tile.store(y, place, at, value=tile.load(x, place, at))
                return []

            tile.loop(0, tile.param("N"), 1, [], visit)
        else:
            tile.store(y, row, at, value=tile.load(x, row, at))
        program = builder.program("moved", [x, y], [("N", "int32")], [tile.param("N")])
    return Step(program, Schedule(warps=1))


def test_what_is_not_proved() -> None:
    assert in_place([moved("plain")], "x", "y")
    for kind in ("another row", "all for each", "in a loop"):
        assert not in_place([moved(kind)], "x", "y")
    assert not in_place([moved("plain"), moved("plain")], "x", "y")
