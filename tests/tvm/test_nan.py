"""NaN goes through a compiled kernel as through the interpreter: never hidden by a maximum, never spread to others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sparsec.backends.tvm.build import compile
from sparsec.testing.tile.attention import window
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule


@pytest.mark.parametrize("lanes", [("m", "e", "n"), ("n", "e", "m")])
def test_attention_shows_nan_where_the_interpreter_does(lanes: tuple[str, ...], tmp_path: Path) -> None:
    case = window(length=40, reach=9)
    kernel = compile(case.program, Schedule(lanes=lanes), tmp_path)
    for name, place in (("q", (0, 3, 1, 5)), ("k", (1, 17, 0, 2)), ("v", (0, 39, 1, 0))):
        mine, want = case.tensors(), case.tensors()
        mine[name][place] = want[name][place] = math.nan
        kernel([mine[t.name] for t in case.program.tensors], case.params)
        interpret(case.program, want, case.params)
        for out in ("o", "lse"):
            assert torch.equal(mine[out].isnan(), want[out].isnan()), (name, out)
            assert 0 < int(want["o"].isnan().sum()) < want["o"].numel()


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_reductions_show_nan(kind: str, tmp_path: Path) -> None:
    with tile.Builder() as b:
        m, n = b.axis("m", 16), b.axis("n", 32)
        x, rows, columns = (
            Tensor("x", "float32", (16, 32)),
            Tensor("r", "float32", (16,)),
            Tensor("c", "float32", (32,)),
        )
        value = tile.load(x, tile.iota(m), tile.iota(n))
        tile.store(rows, tile.iota(m), value=tile.reduce(kind, value, n))
        tile.store(columns, tile.iota(n), value=tile.reduce(kind, value, m))
        program = b.program("reductions", [x, rows, columns], [], [1])
    for lanes in (("m",), ("n",), ()):
        kernel = compile(program, Schedule(lanes=lanes), tmp_path)
        for i, j in ((0, 0), (7, 13), (15, 31), (3, 16)):
            data = torch.randn(16, 32)
            data[i, j] = math.nan
            r, c = torch.zeros(16), torch.zeros(32)
            kernel([data, r, c], {})
            assert r.isnan().nonzero().tolist() == [[i]]
            assert c.isnan().nonzero().tolist() == [[j]]
