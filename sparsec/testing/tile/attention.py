"""Attention as hand-written tile programs: ragged lengths, grouped heads, rows of a group, two levels of softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, Tensors, randint, randn
from sparsec.tile import build as tile
from sparsec.tile.language import Axis, Node, Program, Tensor

LOG2E = math.log2(math.e)


def _step(scores: Node, keys: Axis, value: Node, state: Sequence[Node]) -> list[Node]:
    """One tile of base-two scores through the online softmax."""
    acc, high, total = state
    top = tile.apply(Fn.MAXIMUM, high, tile.reduce("max", scores, keys))
    p = tile.apply(Fn.EXP2, tile.apply(Fn.SUB, scores, top))
    keep = tile.apply(Fn.EXP2, tile.apply(Fn.SUB, high, top))
    acc = tile.dot(tile.cast(p, value.dtype), value, keys, tile.apply(Fn.MUL, acc, keep))
    return [acc, top, tile.apply(Fn.ADD, tile.apply(Fn.MUL, total, keep), tile.reduce("sum", p, keys))]


def _start(rows: Sequence[Axis], columns: Axis) -> list[Node]:
    return [tile.full(0.0, *rows, columns), tile.full(-1e30, *rows), tile.full(0.0, *rows)]


def window_program(dim: int, reach: int, rows: int, block: int, group: int, dtype: str) -> Program:
    """Causal attention to the last ``reach`` keys: a masked loop, a mask-free one, a masked one; o and natural lse."""
    with tile.Builder() as b:
        m, n, d, e = (b.axis(x, s) for x, s in (("m", rows), ("n", block), ("d", dim), ("e", dim)))
        length, head, batch = tile.param("T"), tile.program_id(1), tile.program_id(2)
        q, k, v, o = (
            Tensor(x, dtype, ("B", "T", y, dim)) for x, y in (("q", "H"), ("k", "HKV"), ("v", "HKV"), ("o", "H"))
        )
        lse = Tensor("lse", "float32", ("B", "T", "H"))
        first = tile.apply(Fn.MUL, tile.program_id(0), rows)
        row, kv = tile.apply(Fn.ADD, first, tile.iota(m)), tile.apply(Fn.TRUNCDIV, head, group)
        query = tile.load(q, batch, row, head, tile.iota(d), bounds={1: length})

        def visit(masked: bool, at: Node, state: Sequence[Node]) -> list[Node]:
            key = tile.apply(Fn.ADD, at, tile.iota(n))
            found = tile.load(k, batch, key, kv, tile.iota(d), bounds={1: length}, other=None)
            scores = tile.apply(Fn.MUL, tile.dot(query, found, d), dim**-0.5 * LOG2E)
            if masked:
                near = tile.apply(Fn.LT, tile.apply(Fn.SUB, row, key), reach)
                scores = tile.apply(Fn.WHERE, tile.apply(Fn.AND, tile.apply(Fn.LE, key, row), near), scores, -1e30)
            return _step(scores, n, tile.load(v, batch, key, kv, tile.iota(e), bounds={1: length}), state)

        state = _start([m], e)
        for (low, high), masked in zip(_phases(first, length, rows, block, reach), (True, False, True), strict=True):
            state = tile.loop(low, high, block, state, lambda at, *s, masked=masked: visit(masked, at, s), stages=3)
        acc, top, total = state
        out = tile.cast(tile.apply(Fn.DIV, acc, total), dtype)
        tile.store(o, batch, row, head, tile.iota(e), value=out, bounds={1: length})
        natural = tile.apply(Fn.MUL, tile.apply(Fn.ADD, top, tile.apply(Fn.LOG2, total)), math.log(2.0))
        tile.store(lse, batch, row, head, value=natural, bounds={1: length})
        grid = (tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, rows - 1), rows), tile.param("H"), tile.param("B"))
        return b.program("window", [q, k, v, o, lse], [(x, "int32") for x in ("T", "H", "B")], grid)


def _phases(first: Node, length: Node, rows: int, block: int, reach: int) -> list[tuple[Node, Node]]:
    """Key ranges before, inside and after the part that every row sees."""

    def whole(x: Node, up: int) -> Node:
        positive = tile.apply(Fn.MAXIMUM, tile.apply(Fn.ADD, x, up), 0)
        return tile.apply(Fn.MUL, tile.apply(Fn.TRUNCDIV, positive, block), block)

    low, high = whole(tile.apply(Fn.SUB, first, reach - 1), 0), tile.apply(Fn.ADD, first, rows)
    diagonal = whole(first, 0)
    seen = tile.apply(Fn.MINIMUM, whole(tile.apply(Fn.SUB, high, reach), block - 1), diagonal)
    return [(low, seen), (seen, diagonal), (diagonal, tile.apply(Fn.MINIMUM, high, length))]


def window(
    length: int = 75,
    dim: int = 16,
    reach: int = 40,
    rows: int = 16,
    block: int = 16,
    group: int = 2,
    dtype: str = "float32",
) -> Case:
    """Windowed attention over a ragged length with grouped heads."""
    heads, batch = 2 * group, 2

    def inputs(g: torch.Generator) -> Tensors:
        kv = {x: randn(g, batch, length, heads // group, dim, dtype=dtype) for x in ("k", "v")}
        return {"q": randn(g, batch, length, heads, dim, dtype=dtype), **kv}

    def reference(t: Tensors) -> Tensors:
        i = torch.arange(length)
        seen = (i[None, :] <= i[:, None]) & (i[:, None] - i[None, :] < reach)
        q, k, v = (t[x].transpose(1, 2) for x in ("q", "k", "v"))
        scores = q @ k.repeat_interleave(group, 1).mT * dim**-0.5
        scores = scores.masked_fill(~seen, -torch.inf)
        out = scores.softmax(-1) @ v.repeat_interleave(group, 1)
        return {"o": out.transpose(1, 2), "lse": scores.logsumexp(-1).transpose(1, 2)}

    program = window_program(dim, reach, rows, block, group, dtype)
    shapes = {"o": (batch, length, heads, dim), "lse": (batch, length, heads)}
    return Case("window", program, {"T": length, "H": heads, "B": batch}, inputs, shapes, reference)


def chunks_program(group: int, chunk: int, part: int, slots: int, dim: int, dtype: str) -> Program:
    """Per token tile: rows are (token, head of the group); each chosen chunk has a softmax of its own, weighted."""
    with tile.Builder() as b:
        m, n, d, e = (b.axis(x, s) for x, s in (("m", 16), ("n", part), ("d", dim), ("e", dim)))
        length, batch = tile.param("T"), tile.program_id(1)
        q, k, v = (Tensor(x, dtype, ("B", "T", h, dim)) for x, h in (("q", group), ("k", 1), ("v", 1)))
        ids, weights = Tensor("ids", "int32", ("B", "N", slots)), Tensor("weights", "float32", ("B", "T", slots))
        o = Tensor("o", dtype, ("B", "T", group, dim))
        tokens = m.size // group
        first = tile.apply(Fn.MUL, tile.program_id(0), tokens)
        row = tile.apply(Fn.ADD, first, tile.apply(Fn.TRUNCDIV, tile.iota(m), group))
        head = tile.apply(Fn.TRUNCMOD, tile.iota(m), group)
        query = tile.load(q, batch, row, head, tile.iota(d), bounds={1: length})

        def visit(slot: Node, acc: Node) -> list[Node]:
            chosen = tile.load(ids, batch, tile.program_id(0), slot)
            weight = tile.load(weights, batch, row, slot, bounds={1: length})
            weight = tile.apply(Fn.WHERE, tile.apply(Fn.LE, 0, chosen), weight, 0.0)
            start = tile.apply(Fn.MUL, tile.apply(Fn.MAXIMUM, chosen, 0), chunk)

            def inner(at: Node, *state: Node) -> list[Node]:
                key = tile.apply(Fn.ADD, tile.apply(Fn.ADD, start, at), tile.iota(n))
                found = tile.load(k, batch, key, 0, tile.iota(d), bounds={1: length})
                scores = tile.apply(Fn.MUL, tile.dot(query, found, d), dim**-0.5 * LOG2E)
                scores = tile.apply(Fn.WHERE, tile.apply(Fn.LT, key, length), scores, -1e30)
                return _step(scores, n, tile.load(v, batch, key, 0, tile.iota(e), bounds={1: length}), state)

            part_acc, _, total = tile.loop(0, chunk, part, _start([m], e), inner, stages=2)
            share = tile.apply(Fn.DIV, weight, total)
            return [tile.apply(Fn.ADD, acc, tile.apply(Fn.MUL, part_acc, share))]

        (acc,) = tile.loop(0, slots, 1, [tile.full(0.0, m, e)], visit)
        tile.store(o, batch, row, head, tile.iota(e), value=tile.cast(acc, dtype), bounds={1: length})
        grid = (tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, tokens - 1), tokens), tile.param("B"))
        return b.program("chunks", [q, k, v, ids, weights, o], [("T", "int32"), ("B", "int32")], grid)


def chunks(length: int = 70, group: int = 4, dtype: str = "float32") -> Case:
    """Chosen chunks with a softmax inside each; an id of -1 counts for nothing."""
    batch, chunk, slots, dim, tokens = 2, 32, 3, 16, 16 // group
    tiles = -(-length // tokens)

    def inputs(g: torch.Generator) -> Tensors:
        kv = {x: randn(g, batch, length, 1, dim, dtype=dtype) for x in ("k", "v")}
        ids = randint(g, -1, -(-length // chunk), batch, tiles, slots)
        return {
            "q": randn(g, batch, length, group, dim, dtype=dtype),
            **kv,
            "ids": ids,
            "weights": torch.rand(batch, length, slots, generator=g),
        }

    def reference(t: Tensors) -> Tensors:
        out = torch.zeros(batch, length, group, dim, dtype=torch.float64)
        for b, i, s in ((b, i, s) for b in range(batch) for i in range(length) for s in range(slots)):
            c = int(t["ids"][b, i // tokens, s])
            if c >= 0:
                keys, values = (t[x][b, c * chunk : (c + 1) * chunk, 0] for x in ("k", "v"))
                p = (t["q"][b, i] @ keys.mT * dim**-0.5).softmax(-1)
                out[b, i] += t["weights"][b, i, s] * (p @ values)
        return {"o": out}

    program = chunks_program(group, chunk, 16, slots, dim, dtype)
    return Case("chunks", program, {"T": length, "B": batch}, inputs, {"o": (batch, length, group, dim)}, reference)
