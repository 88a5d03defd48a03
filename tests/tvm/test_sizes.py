"""Odd axis sizes, every dtype: softmax(q k) v, row by row, against the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsec.backends.tvm.build import compile
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

# rows, keys, summed dim, columns; the last two share K across a group of 3.
SIZES = [(1, 16, 64, 48), (3, 5, 16, 80), (5, 8, 3, 1), (8, 48, 5, 16), (16, 3, 80, 5), (48, 1, 8, 3), (80, 80, 48, 8)]


def attend(rows: int, keys: int, dim: int, columns: int, dtype: str, fresh: bool) -> Program:
    """One tile of attention; ``fresh`` loads keys inside a loop of one iteration, as kernels do."""
    with tile.Builder() as b:
        m, n, d, e = (b.axis(x, s) for x, s in (("m", rows), ("n", keys), ("d", dim), ("e", columns)))
        q, k, v, o = (Tensor(x, dtype, ("B", r, c)) for x, r, c in
                      (("q", rows, dim), ("k", keys, dim), ("v", keys, columns), ("o", rows, columns)))  # fmt: skip
        batch, count = tile.program_id(0), tile.param("N")
        query = tile.load(q, batch, tile.iota(m), tile.iota(d))

        def visit(at: Node, acc: Node) -> list[Node]:
            key = tile.apply(Fn.ADD, tile.iota(n), at)
            scores = tile.dot(query, tile.load(k, batch, key, tile.iota(d), bounds={1: count}), d)
            scores = tile.apply(Fn.WHERE, tile.apply(Fn.LT, key, count), scores, -1e30)
            p = tile.apply(Fn.EXP, tile.apply(Fn.SUB, scores, tile.reduce("max", scores, n)))
            weights = tile.cast(tile.apply(Fn.DIV, p, tile.reduce("sum", p, n)), dtype)
            return [tile.dot(weights, tile.load(v, batch, key, tile.iota(e), bounds={1: count}), n, acc)]

        start = [tile.full(0.0, m, e)]
        (out,) = tile.loop(0, 1, 1, start, visit) if fresh else visit(tile.const(0), *start)
        tile.store(o, batch, tile.iota(m), tile.iota(e), value=tile.cast(out, dtype))
        return b.program("attend", [q, k, v, o], [("B", "int32"), ("N", "int32")], [tile.param("B")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_size_of_axis(sizes: tuple[int, int, int, int], dtype: str, tmp_path: Path) -> None:
    rows, keys, dim, columns = sizes
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    for lanes, fresh in ((("m", "e", "n"), False), (("n", "e", "d"), True)):
        program = attend(*sizes, dtype, fresh)
        tensors = {"q": torch.randn(2, rows, dim), "k": torch.randn(2, keys, dim), "v": torch.randn(2, keys, columns)}
        tensors = {name: x.to(kind) for name, x in tensors.items()} | {"o": torch.empty(2, rows, columns, dtype=kind)}
        want = {name: x.clone() for name, x in tensors.items()}
        params = {"B": 2, "N": max(1, keys - 2)}
        compile(program, Schedule(lanes=lanes), tmp_path)([tensors[t.name] for t in program.tensors], params)
        interpret(program, want, params)
        scale = 3e-6 if dtype == "float32" else 2.0**-7
        torch.testing.assert_close(tensors["o"], want["o"], rtol=scale, atol=scale)
