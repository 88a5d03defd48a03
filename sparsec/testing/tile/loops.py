"""Carried values that trade places, nested loops that pass a state through, products with vectors, strided views."""

from __future__ import annotations

import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, Tensors, randn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def recurrence(steps: int = 7) -> Case:
    """(a, b, n) -> (b, a / 2 + b, n + 3): two states that trade places, and an integer that counts."""
    size = 16
    with tile.Builder() as b:
        m = b.axis("m", size)
        x, out = Tensor("x", "float32", (2, size)), Tensor("out", "float32", (3, size))
        first, second = (tile.load(x, row, tile.iota(m)) for row in (0, 1))

        def visit(_: Node, old: Node, new: Node, count: Node) -> list[Node]:
            made = tile.apply(Fn.ADD, tile.apply(Fn.MUL, old, 0.5), new)
            return [new, made, tile.apply(Fn.ADD, count, 3)]

        state = tile.loop(0, tile.param("steps"), 1, [first, second, tile.const(5)], visit)
        for row, value in enumerate(
            (*state[:2], tile.apply(Fn.ADD, tile.full(0.0, m), tile.cast(state[2], "float32")))
        ):
            tile.store(out, row, tile.iota(m), value=value)
        program = b.program("recurrence", [x, out], [("steps", "int32")], [1])

    def reference(t: Tensors) -> Tensors:
        old, new = t["x"]
        for _ in range(steps):
            old, new = new, old * 0.5 + new
        return {"out": torch.stack([old, new, torch.full_like(old, 5 + 3 * steps)])}

    return Case(
        "recurrence", program, {"steps": steps}, lambda g: {"x": randn(g, 2, size)}, {"out": (3, size)}, reference
    )


def nested() -> Case:
    """One state through two levels of loops, read between them, and a constant that a loop leaves alone."""
    size, outer, inner = 16, 3, 4
    with tile.Builder() as b:
        m = b.axis("m", size)
        x, out = Tensor("x", "float32", (outer, inner, size)), Tensor("out", "float32", (2, size))
        total = tile.param("outer")

        def visit(i: Node, acc: Node, seen: Node) -> list[Node]:
            def add(j: Node, inside: Node) -> list[Node]:
                return [tile.apply(Fn.ADD, inside, tile.load(x, i, j, tile.iota(m)))]

            (after,) = tile.loop(0, inner, 1, [acc], add)
            change = tile.apply(Fn.SUB, after, acc)
            return [tile.apply(Fn.MUL, after, 0.5), tile.apply(Fn.MAXIMUM, seen, change)]

        state = tile.loop(0, total, 1, [tile.full(1.0, m), tile.full(-100.0, m)], visit)
        for row, value in enumerate(state):
            tile.store(out, row, tile.iota(m), value=value)
        program = b.program("nested", [x, out], [("outer", "int32")], [1])

    def reference(t: Tensors) -> Tensors:
        acc, seen = torch.ones(size, dtype=torch.float64), torch.full((size,), -100.0, dtype=torch.float64)
        for part in t["x"].sum(1):
            acc, seen = (acc + part) * 0.5, torch.maximum(seen, part)
        return {"out": torch.stack([acc, seen])}

    shape = {"out": (2, size)}
    return Case("nested", program, {"outer": outer}, lambda g: {"x": randn(g, outer, inner, size)}, shape, reference)


def vectors(dtype: str = "float32") -> Case:
    """y = K q and z = yᵀ V of one token, from tensors whose heads come before their tokens in memory."""
    heads, length, dim, block = 3, 40, 16, 16
    with tile.Builder() as b:
        n, d, e = b.axis("n", block), b.axis("d", dim), b.axis("e", dim)
        q = Tensor("q", dtype, ("H", dim))
        k, v = (Tensor(name, dtype, ("T", "H", dim)) for name in ("k", "v"))
        z, head, total = Tensor("z", "float32", ("H", dim)), tile.program_id(0), tile.param("T")
        query = tile.load(q, head, tile.iota(d))

        def visit(at: Node, acc: Node) -> list[Node]:
            key = tile.apply(Fn.ADD, at, tile.iota(n))
            keys, values = (tile.load(t, key, head, tile.iota(a), bounds={0: total}) for t, a in ((k, d), (v, e)))
            scores = tile.dot(keys, query, d)
            return [tile.dot(scores, tile.cast(values, "float32"), n, acc)]

        (acc,) = tile.loop(0, total, block, [tile.full(0.0, e)], visit)
        tile.store(z, head, tile.iota(e), value=acc)
        program = b.program("vectors", [q, k, v, z], [("T", "int32"), ("H", "int32")], [tile.param("H")])

    def inputs(g: torch.Generator) -> Tensors:
        kv = {name: randn(g, heads, length, dim, dtype=dtype).transpose(0, 1) for name in ("k", "v")}
        return {"q": randn(g, heads, dim, dtype=dtype), **kv}

    def reference(t: Tensors) -> Tensors:
        return {"z": torch.einsum("hd,thd,the->he", t["q"], t["k"], t["v"])}

    return Case("vectors", program, {"T": length, "H": heads}, inputs, {"z": (heads, dim)}, reference)
