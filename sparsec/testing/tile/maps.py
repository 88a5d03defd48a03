"""Every scalar function, reduction and change of axes as hand-written tile programs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor as Torch

from sparsec.scalar.fn import ARITY, Fn
from sparsec.testing.tile.case import Case, Tensors, randint, randn
from sparsec.tile import build as tile
from sparsec.tile.language import Tensor

FLOATS: dict[Fn, Callable[..., Torch]] = {
    Fn.ADD: lambda x, y: x + y,
    Fn.SUB: lambda x, y: x - y,
    Fn.MUL: lambda x, y: x * y,
    Fn.DIV: lambda x, y: x / y,
    Fn.NEG: lambda x: -x,
    Fn.ABS: lambda x: x.abs(),
    Fn.MINIMUM: lambda x, y: torch.where(x < y, x, y),
    Fn.MAXIMUM: lambda x, y: torch.where(x < y, y, x),
    Fn.EXP: lambda x: x.exp(),
    Fn.EXP2: lambda x: 2.0**x,
    Fn.LOG: lambda x: (x.abs() + 0.5).log(),
    Fn.LOG2: lambda x: (x.abs() + 0.5).log() / torch.tensor(2.0, dtype=torch.float64).log(),
    Fn.SQRT: lambda x: (x.abs() + 0.5) ** 0.5,
    Fn.RSQRT: lambda x: (x.abs() + 0.5) ** -0.5,
    Fn.TANH: lambda x: torch.tanh(x),
    Fn.SIGMOID: lambda x: 1 / (1 + (-x).exp()),
}
"""Float functions by definition; those of positive numbers get |x| + 0.5."""

INTEGERS: dict[Fn, Callable[..., Torch]] = {
    Fn.TRUNCDIV: lambda x, y: x // y,
    Fn.TRUNCMOD: lambda x, y: x % y,
    Fn.XOR: lambda x, y: x ^ y,
    Fn.SHL: lambda x, y: x << y,
    Fn.SHR: lambda x, y: x >> y,
    Fn.LT: lambda x, y: (x < y).int(),
    Fn.LE: lambda x, y: (x <= y).int(),
    Fn.EQ: lambda x, y: (x == y).int(),
    Fn.NE: lambda x, y: (x != y).int(),
    Fn.AND: lambda x, y: ((x > 5) & (y > 3)).int(),
    Fn.OR: lambda x, y: ((x > 5) | (y > 3)).int(),
    Fn.NOT: lambda x: (~(x > 5)).int(),
    Fn.WHERE: lambda x, y: torch.where(x > 5, x, y),
}
"""Integer functions; logic is of x > 5 and y > 3."""

_POSITIVE = (Fn.LOG, Fn.LOG2, Fn.SQRT, Fn.RSQRT)
_LENGTH = 33


def floats() -> Case:
    """out[f] = f(x, y) for every float function."""
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, y = (Tensor(name, "float32", ("T",)) for name in ("x", "y"))
        out, length = Tensor("out", "float32", (len(FLOATS), "T")), tile.param("T")
        at = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 16), tile.iota(n))
        left, right = (tile.load(t, at, bounds={0: length}, other=1.0) for t in (x, y))
        for number, fn in enumerate(FLOATS):
            first = tile.apply(Fn.ADD, tile.apply(Fn.ABS, left), 0.5) if fn in _POSITIVE else left
            value = tile.apply(fn, *(first, right)[: ARITY[fn]])
            tile.store(out, number, at, value=value, bounds={1: length})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, 15), 16)
        program = b.program("floats", [x, y, out], [("T", "int32")], [tiles])

    def reference(t: Tensors) -> Tensors:
        both = (t["x"], t["y"])
        return {"out": torch.stack([f(*both[: ARITY[fn]]) for fn, f in FLOATS.items()])}

    def inputs(g: torch.Generator) -> Tensors:
        return {"x": randn(g, _LENGTH) * 2, "y": randn(g, _LENGTH).abs() + 0.1}

    return Case("floats", program, {"T": _LENGTH}, inputs, {"out": (len(FLOATS), _LENGTH)}, reference)


def integers() -> Case:
    """out[f] = f(x, y) for every integer function."""
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, y = (Tensor(name, "int32", ("T",)) for name in ("x", "y"))
        out, length = Tensor("out", "int32", (len(INTEGERS), "T")), tile.param("T")
        at = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 16), tile.iota(n))
        left, right = (tile.load(t, at, bounds={0: length}, other=1) for t in (x, y))
        large = (tile.apply(Fn.LT, 5, left), tile.apply(Fn.LT, 3, right))
        for number, fn in enumerate(INTEGERS):
            operands = (
                (large[0], left, right) if fn is Fn.WHERE else large if fn in (Fn.AND, Fn.OR, Fn.NOT) else (left, right)
            )
            value = tile.cast(tile.apply(fn, *operands[: ARITY[fn]]), "int32")
            tile.store(out, number, at, value=value, bounds={1: length})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, 15), 16)
        program = b.program("integers", [x, y, out], [("T", "int32")], [tiles])

    def reference(t: Tensors) -> Tensors:
        both = (t["x"], t["y"])
        return {"out": torch.stack([f(*both[: 1 if fn is Fn.NOT else 2]) for fn, f in INTEGERS.items()])}

    def inputs(g: torch.Generator) -> Tensors:
        return {"x": randint(g, 0, 12, _LENGTH), "y": randint(g, 1, 7, _LENGTH)}

    return Case("integers", program, {"T": _LENGTH}, inputs, {"out": (len(INTEGERS), _LENGTH)}, reference)


def axes() -> Case:
    """A matrix against itself under another axis, reductions along both, a transposed store, a conditional mask."""
    size, dim = 16, 32
    with tile.Builder() as b:
        d, m, n = b.axis("d", dim), b.axis("m", size), b.axis("n", size)
        x = Tensor("x", "float32", ("B", size, dim))
        gram, outs = Tensor("gram", "float32", ("B", size, size)), Tensor("outs", "float32", ("B", 4, size))
        turned = Tensor("turned", "float32", ("B", dim, size))
        batch = tile.program_id(0)
        tile_x = tile.load(x, batch, tile.iota(m), tile.iota(d))
        product = tile.dot(tile_x, tile.rename(tile_x, m, n), d)
        odd = tile.apply(Fn.EQ, tile.apply(Fn.TRUNCMOD, batch, 2), 1)
        product = tile.mask_if(odd, tile.apply(Fn.LE, tile.iota(n), tile.iota(m)), product, -5.0)
        tile.store(gram, batch, tile.iota(m), tile.iota(n), value=product)
        tile.store(turned, batch, tile.iota(d), tile.iota(m), value=tile_x)
        rows = [tile.reduce(kind, product, n) for kind in ("max", "min", "sum")]
        rows.append(tile.rename(tile.reduce("sum", product, m), n, m))
        for number, row in enumerate(rows):
            tile.store(outs, batch, number, tile.iota(m), value=row)
        program = b.program("axes", [x, gram, outs, turned], [("B", "int32")], [tile.param("B")])

    def reference(t: Tensors) -> Tensors:
        product = t["x"] @ t["x"].mT
        product[1] = product[1].tril() - 5.0 * torch.ones_like(product[1]).triu(1)
        outs = torch.stack([product.amax(-1), product.amin(-1), product.sum(-1), product.sum(-2)], 1)
        return {"gram": product, "outs": outs, "turned": t["x"].mT}

    shapes = {"gram": (2, size, size), "outs": (2, 4, size), "turned": (2, dim, size)}
    return Case("axes", program, {"B": 2}, lambda g: {"x": randn(g, 2, size, dim)}, shapes, reference)
