"""Loads and stores as hand-written tile programs: gathers, scatters, stores inside loops, conditional stores."""

from __future__ import annotations

import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, Tensors, randint, randn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def _tiles(length: Node, size: int) -> Node:
    return tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, size - 1), size)


def gather(length: int = 21, dtype: str = "float32") -> Case:
    """out[t] = sum of x[ids[t, k]] over k, an id of -1 being nothing; rows gathered by an index tile."""
    rows, slots, dim, known = 8, 5, 16, 37
    with tile.Builder() as b:
        m, d = b.axis("m", rows), b.axis("d", dim)
        ids, x = Tensor("ids", "int32", ("T", slots)), Tensor("x", dtype, ("N", dim))
        out, total = Tensor("out", "float32", ("T", dim)), tile.param("T")
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), rows), tile.iota(m))

        def visit(slot: Node, acc: Node) -> list[Node]:
            chosen = tile.load(ids, row, slot, bounds={0: total}, other=-1)
            found = tile.load(x, tile.apply(Fn.MAXIMUM, chosen, 0), tile.iota(d))
            found = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chosen), tile.cast(found, "float32"), 0.0)
            return [tile.apply(Fn.ADD, acc, found)]

        (acc,) = tile.loop(0, slots, 1, [tile.full(0.0, m, d)], visit, stages=2)
        tile.store(out, row, tile.iota(d), value=acc, bounds={0: total})
        program = b.program("gather", [ids, x, out], [("T", "int32")], [_tiles(total, rows)])

    def inputs(g: torch.Generator) -> Tensors:
        return {"ids": randint(g, -1, known, length, slots), "x": randn(g, known, dim, dtype=dtype)}

    def reference(t: Tensors) -> Tensors:
        found = t["x"][t["ids"].clamp_min(0).long()] * (t["ids"] >= 0)[..., None]
        return {"out": found.sum(1)}

    return Case("gather", program, {"T": length}, inputs, {"out": (length, dim)}, reference)


def scatter(length: int = 21, dtype: str = "float32") -> Case:
    """counts[ids[t]] and sums[ids[t]] += x[t] by atomic addition; negative ids go past the bound."""
    rows, dim, known = 8, 4, 6
    with tile.Builder() as b:
        m, d = b.axis("m", rows), b.axis("d", dim)
        ids, x, sums = (
            Tensor("ids", "int32", ("T",)),
            Tensor("x", dtype, ("T", dim)),
            Tensor("sums", "float32", ("N", dim)),
        )
        total = tile.param("T")
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), rows), tile.iota(m))
        chosen = tile.load(ids, row, bounds={0: total}, other=-1)
        target = tile.apply(Fn.WHERE, tile.apply(Fn.LT, chosen, 0), known, chosen)
        value = tile.cast(tile.load(x, row, tile.iota(d), bounds={0: total}), "float32")
        tile.store(sums, target, tile.iota(d), value=value, bounds={0: known}, atomic=True)
        program = b.program("scatter", [ids, x, sums], [("T", "int32")], [_tiles(total, rows)])

    def inputs(g: torch.Generator) -> Tensors:
        made = {"ids": randint(g, -1, known, length), "x": randn(g, length, dim, dtype=dtype)}
        return {**made, "sums": torch.zeros(known, dim)}

    def reference(t: Tensors) -> Tensors:
        keep = t["ids"] >= 0
        return {"sums": torch.zeros(known, dim, dtype=torch.float64).index_add(0, t["ids"][keep], t["x"][keep])}

    return Case("scatter", program, {"T": length}, inputs, {}, reference)


def prefix(length: int = 45) -> Case:
    """Running sums of columns over tokens: a scan in each tile, a carry between tiles, a store in every iteration.

    The last tile also writes how many tiles there were, under a condition (a loop of no or one iteration).
    """
    rows, dim = 16, 4
    with tile.Builder() as b:
        m, d = b.axis("m", rows), b.axis("d", dim)
        x, out = (Tensor(name, "float32", ("T", dim)) for name in ("x", "out"))
        tiles, total = Tensor("tiles", "int32", (1,)), tile.param("T")

        def finish(count: Node) -> list[Node]:
            tile.store(tiles, 0, value=count)
            return []

        def visit(at: Node, before: Node) -> list[Node]:
            row = tile.apply(Fn.ADD, at, tile.iota(m))
            found = tile.load(x, row, tile.iota(d), bounds={0: total})
            running = tile.apply(Fn.ADD, tile.scan(found, m), before)
            tile.store(out, row, tile.iota(d), value=running, bounds={0: total})
            is_last = tile.apply(Fn.LE, total, tile.apply(Fn.ADD, at, rows))
            count = _tiles(total, rows)
            tile.loop(0, tile.cast(is_last, "int32"), 1, [], lambda _: finish(count))
            return [tile.apply(Fn.ADD, before, tile.reduce("sum", found, m))]

        tile.loop(0, total, rows, [tile.full(0.0, d)], visit)
        program = b.program("prefix", [x, out, tiles], [("T", "int32")], [1])

    def reference(t: Tensors) -> Tensors:
        return {"out": t["x"].cumsum(0), "tiles": torch.tensor([-(-length // rows)], dtype=torch.int32)}

    shapes = {"out": (length, dim), "tiles": (1,)}
    return Case("prefix", program, {"T": length}, lambda g: {"x": randn(g, length, dim)}, shapes, reference)
