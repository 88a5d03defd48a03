"""A running top-k as a tile program: rank keys, forced members, ties, more and fewer candidates than slots."""

from __future__ import annotations

import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, Tensors, randint, randn
from sparsec.tile import build as tile
from sparsec.tile.language import EMPTY_KEY, Node, Tensor


def top(slots: int = 8, block: int = 16, units: int = 70, rows: int = 16, dtype: str = "float32") -> Case:
    """ids and scores of the best ``slots`` of the units below a row's own number; unit 1 is forced; -1 pads."""
    length = 2 * rows - 3
    with tile.Builder() as b:
        m, n, k = b.axis("m", rows), b.axis("n", block), b.axis("slot", slots)
        x, ids = Tensor("x", dtype, ("T", "N")), Tensor("ids", "int32", ("T", slots))
        scores, total, count = Tensor("scores", "float32", ("T", slots)), tile.param("T"), tile.param("N")
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), rows), tile.iota(m))

        def visit(at: Node, kept: Node) -> list[Node]:
            unit = tile.apply(Fn.ADD, at, tile.iota(n))
            found = tile.cast(tile.load(x, row, unit, bounds={0: total, 1: count}), "float32")
            key = tile.apply(Fn.RANK, found, unit)
            key = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, unit, 1), tile.apply(Fn.XOR, key, EMPTY_KEY), key)
            open_ = tile.apply(Fn.AND, tile.apply(Fn.LE, unit, row), tile.apply(Fn.LT, unit, count))
            return [tile.top_insert(kept, tile.apply(Fn.WHERE, open_, key, EMPTY_KEY), k, n)]

        (best,) = tile.loop(0, count, block, [tile.full(EMPTY_KEY, m, k, dtype="int64")], visit)
        found = tile.apply(Fn.RANK_ID, best)
        tile.store(ids, row, tile.iota(k), value=found, bounds={0: total})
        value = tile.apply(Fn.WHERE, tile.apply(Fn.LT, found, 0), 0.0, tile.apply(Fn.RANK_SCORE, best))
        tile.store(scores, row, tile.iota(k), value=value, bounds={0: total})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, total, rows - 1), rows)
        program = b.program("top", [x, ids, scores], [("T", "int32"), ("N", "int32")], [tiles])

    def inputs(g: torch.Generator) -> Tensors:
        ties = randint(g, -3, 4, length, units).to(torch.float32)
        mixed = torch.where(torch.arange(length)[:, None] % 2 == 0, ties, randn(g, length, units))
        return {"x": mixed.to(getattr(torch, dtype))}

    def reference(t: Tensors) -> Tensors:
        ids, scores = (
            torch.full((length, slots), -1, dtype=torch.int32),
            torch.zeros(length, slots, dtype=torch.float64),
        )
        for i in range(length):
            open_ = range(min(i + 1, units))
            best = sorted(open_, key=lambda c, i=i: (c != 1, -float(t["x"][i, c]), c))[:slots]  # type: ignore[misc]
            for s, c in enumerate(best):
                ids[i, s], scores[i, s] = c, t["x"][i, c]
        return {"ids": ids, "scores": scores}

    shapes = {"ids": (length, slots), "scores": (length, slots)}
    return Case("top", program, {"T": length, "N": units}, inputs, shapes, reference)
