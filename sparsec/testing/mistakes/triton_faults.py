"""Backward patterns that Triton is known to get wrong on Hopper, as small as they stay telling, each with its truth.

``python -m sparsec.testing.mistakes.triton_faults DEVICE PATTERN,DTYPE,WARPS,STAGES …`` prints a line of JSON per
setting: the error relative to fp64 (a right kernel's is at most 0.003), or what was raised. A crash ends the process.
All tiles are 64 x 64, the size that the reports are about.

Public reports: fla-org/flash-linear-attention issues 640 (Triton 3.4 to 3.7.0) and 984 (3.4 and later), and
triton-lang/triton issue 6124 (3.2). The kernels here are sparsec's own.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, TILES = 64, 2
Tensors = dict[str, Tensor]
Round = Callable[[Tensor], Tensor]
"""To the operands' dtype and back to fp64."""


@triton.jit
def tile_of(x, column, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """The addresses of 64 rows and 64 columns of a matrix with ``WIDTH`` columns."""
    return x + tl.arange(0, 64)[:, None] * WIDTH + column + tl.arange(0, 64)[None, :]


@triton.jit
def transposed_sum(q, k, v, do, dq, dk, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """Scores summed over tiles of values, rounded, then an operand as they are and transposed, onto other sums."""
    i = tl.arange(0, 64)
    b_q, b_k = tl.load(tile_of(q, 0, 64)), tl.load(tile_of(k, 0, 64))
    b_dq, b_dk = tl.zeros([64, 64], tl.float32), tl.zeros([64, 64], tl.float32)
    b_ds = tl.zeros([64, 64], tl.float32)
    for column in range(0, WIDTH, 64):
        b_v, b_do = tl.load(tile_of(v, column, WIDTH)), tl.load(tile_of(do, column, WIDTH))
        b_ds += tl.dot(b_do, tl.trans(b_v))
        b_dq += tl.dot(b_do, b_q)
        b_dk += tl.dot(b_v, b_k)
    b_ds = tl.where(i[:, None] >= i[None, :], b_ds, 0.0).to(b_k.dtype)
    b_dq += tl.dot(b_ds, b_k)
    b_dk += tl.dot(tl.trans(b_ds), b_q)
    tl.store(tile_of(dq, 0, 64), b_dq)
    tl.store(tile_of(dk, 0, 64), b_dk)


def transposed_sum_truth(x: Tensors, round_: Round) -> Tensors:
    """What it should give, from fp64 inputs; the scores are rounded as the kernel does."""
    scores = round_((x["do"] @ x["v"].T).tril())
    dq = sum(tile @ x["q"] for tile in x["do"].split(TILE, 1)) + scores @ x["k"]
    return {"dq": dq, "dk": sum(tile @ x["k"] for tile in x["v"].split(TILE, 1)) + scores.T @ x["q"]}


@triton.jit
def triangular_inverse(a, w, k, dk, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """The gradient through an inverse: a sum between two products with it, then an operand transposed in a loop."""
    i = tl.arange(0, 64)
    below = i[:, None] > i[None, :]
    b_a, b_da = tl.load(tile_of(a, 0, 64)), tl.zeros([64, 64], tl.float32)
    for column in range(0, WIDTH, 64):
        b_w, b_k = tl.load(tile_of(w, column, WIDTH)), tl.load(tile_of(k, column, WIDTH))
        b_da += tl.dot(b_w, tl.trans(b_k))
    b_da = tl.where(below, b_da, 0.0)
    b_da = tl.dot(b_da.to(b_a.dtype), b_a)
    b_da = tl.dot(b_a, b_da.to(b_a.dtype))
    b_da = tl.where(below, -b_da, 0.0).to(b_a.dtype)
    for column in range(0, WIDTH, 64):
        b_w, b_k = tl.load(tile_of(w, column, WIDTH)), tl.load(tile_of(k, column, WIDTH))
        b_dk = tl.dot(b_a, b_w) + tl.dot(b_da, b_k)
        b_dk += tl.dot(tl.trans(b_da), b_k)
        tl.store(tile_of(dk, column, WIDTH), b_dk)


def triangular_inverse_truth(x: Tensors, round_: Round) -> Tensors:
    """What it should give, rounded where the kernel rounds."""
    first = round_(round_((x["w"] @ x["k"].T).tril(-1)) @ x["a"])
    grad = round_(-(x["a"] @ first).tril(-1))
    return {"dk": x["a"] @ x["w"] + grad @ x["k"] + grad.T @ x["k"]}


@triton.jit
def own_transpose(k, out, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """A tile times its own transpose, which the compiler has crashed on, and the sum of it times the tiles."""
    b_s, b_o = tl.zeros([64, 64], tl.float32), tl.zeros([64, 64], tl.float32)
    for column in range(0, WIDTH, 64):
        b_k = tl.load(tile_of(k, column, WIDTH))
        b_s += tl.dot(b_k, tl.trans(b_k))
    for column in range(0, WIDTH, 64):
        b_k = tl.load(tile_of(k, column, WIDTH))
        b_o += tl.dot(b_s.to(b_k.dtype), b_k)
    tl.store(tile_of(out, 0, 64), b_o)


def own_transpose_truth(x: Tensors, round_: Round) -> Tensors:
    """What it should give."""
    return {"out": round_(x["k"] @ x["k"].T) @ torch.stack(x["k"].split(TILE, 1)).sum(0)}


@triton.jit
def transposed_product(q, k, do, out, WIDTH: tl.constexpr):  # noqa: ANN001, ANN201
    """A product rounded and transposed as the operand of the next, as in the gradient of values."""
    b_q, b_k = tl.load(tile_of(q, 0, 64)), tl.load(tile_of(k, 0, 64))
    b_do = tl.load(tile_of(do, 0, 64))
    b_p = tl.dot(b_q, tl.trans(b_k)).to(b_do.dtype)
    tl.store(tile_of(out, 0, 64), tl.dot(tl.trans(b_p), b_do))


def transposed_product_truth(x: Tensors, round_: Round) -> Tensors:
    """What it should give."""
    return {"out": round_(x["q"] @ x["k"].T).T @ x["do"]}


@dataclass(frozen=True)
class Pattern:
    """A kernel, its truth, and how many tiles wide what it takes and gives is."""

    kernel: Any
    truth: Callable[[Tensors, Round], Tensors]
    takes: dict[str, int]
    gives: dict[str, int]


PATTERNS = {
    "transposed_sum": Pattern(
        transposed_sum, transposed_sum_truth, {"q": 1, "k": 1, "v": TILES, "do": TILES}, {"dq": 1, "dk": 1}
    ),
    "triangular_inverse": Pattern(
        triangular_inverse, triangular_inverse_truth, {"a": 1, "w": TILES, "k": TILES}, {"dk": TILES}
    ),
    "own_transpose": Pattern(own_transpose, own_transpose_truth, {"k": TILES}, {"out": 1}),
    "transposed_product": Pattern(transposed_product, transposed_product_truth, {"q": 1, "k": 1, "do": 1}, {"out": 1}),
}


def error_of(pattern: Pattern, dtype: torch.dtype, warps: int, stages: int, device: str) -> float:
    """The largest of the outputs' errors, root mean square over root mean square."""
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(TILE, TILE * w, generator=generator).div(8).to(dtype) for n, w in pattern.takes.items()}
    found = {name: torch.full((TILE, TILE * w), torch.nan, device=device) for name, w in pattern.gives.items()}
    given = [x.to(device) for x in drawn.values()]
    pattern.kernel[(1,)](*given, *found.values(), WIDTH=TILE * TILES, num_warps=warps, num_stages=stages)
    truth = pattern.truth({name: x.double() for name, x in drawn.items()}, lambda x: x.to(dtype).double())
    wrong = {name: found[name].cpu().double() - right for name, right in truth.items()}
    return max(float(x.square().mean().sqrt() / truth[name].square().mean().sqrt()) for name, x in wrong.items())


def main(device: str, *settings: str) -> None:
    """Print each setting's error or what it raised, one after the other."""
    for setting in settings:
        name, dtype, warps, stages = setting.split(",")
        try:
            error = error_of(PATTERNS[name], getattr(torch, dtype), int(warps), int(stages), device)
            said: dict[str, object] = {"error": error}
        except Exception as raised:
            said = {"raised": f"{type(raised).__name__}: {raised}".splitlines()[0][:200]}
        print(json.dumps({"setting": setting, **said}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
