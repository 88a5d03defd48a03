"""Long chains of values that are each read several times compile in time proportional to their length."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sparsec.backends.tvm.build import compile
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule


def test_chains_do_not_grow_when_compiled(tmp_path: Path) -> None:
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, out = Tensor("x", "float32", (16,)), Tensor("out", "float32", (16,))
        value = tile.load(x, tile.iota(n))
        for _ in range(4):
            value = tile.apply(Fn.LOG2, tile.apply(Fn.ADD, tile.apply(Fn.EXP2, value), tile.apply(Fn.TANH, value)))
        for _ in range(16):
            square = tile.apply(Fn.MUL, value, value)
            value = tile.apply(Fn.WHERE, tile.apply(Fn.LT, square, 1.0), tile.apply(Fn.MAXIMUM, square, value), 0.5)
        tile.store(out, tile.iota(n), value=value)
        program = b.program("chain", [x, out], [], [1])
    mine, want = torch.rand(16), torch.zeros(16)
    result = want.clone()
    start = time.process_time()
    compile(program, Schedule(), tmp_path)([mine, result], {})
    assert time.process_time() - start < 20.0
    interpret(program, {"x": mine, "out": want}, {})
    torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-5)
