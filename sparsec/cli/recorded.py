"""The small case that an exported file checks itself on, with its exact result by the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.cli.setting import Setting
from sparsec.runtime.exported.check import SelfCheck
from sparsec.runtime.exported.host import digest, fitting, noise

if TYPE_CHECKING:
    from torch import Tensor

BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Distances of digests; a sum over a row's columns may be small beside them, so these are wider than a result's own."""

LENGTH, LONGEST = 67, 259


def recorded(chosen: Setting) -> SelfCheck:
    """A case with the setting's heads and head dims, one batch entry and a few tokens more than two chunks."""
    import torch

    from sparsec.ir.dims import value
    from sparsec.oracle import oracle
    from sparsec.runtime.inputs import inputs, kinds, sizes

    variant = chosen.compiled.variant
    tokens = length(chosen)
    fixed = {n: d for n, d in chosen.dims.items() if n not in {"q_offset", "B", *chosen.compiled.lengths.names}}
    dims = sizes(variant, {**fixed, "T": tokens, "B": 1})
    drawn, known = inputs(variant, dtype=chosen.dtype, device="cpu", seed=0, **dims), kinds(variant)
    case: dict[str, Tensor] = {}
    for seed, (name, spec) in enumerate(variant.inputs.items()):
        shape = tuple(value(d, dims) for d in spec.shape)
        case[name] = drawn[name] if spec.dtype == "int32" else number(name, shape, seed, known).to(drawn[name].dtype)
    result = oracle(variant, case, form="vector")
    outputs = result if isinstance(result, tuple) else (result,)
    rows = sorted({0, 1, tokens // 3, tokens // 2, tokens - 2, tokens - 1} & set(range(tokens)))
    assert all(torch.is_tensor(x) for x in outputs)
    given = {n: x.tolist() for n, x in case.items() if not x.is_floating_point()}
    truths = [digest(x, rows).tolist() for x in outputs]
    return SelfCheck(dims, given, rows, truths, BOUNDS[chosen.dtype], kinds=known)


def number(name: str, shape: tuple[int, ...], seed: int, kinds: Mapping[str, str]) -> Tensor:
    """The noise that an input is in the check."""
    return fitting(noise(shape, seed), kinds[name]) if name in kinds else noise(shape, seed)


def recorded_packed(chosen: Setting) -> SelfCheck:
    """As ``recorded`` for packed documents: one as long, one of one token, and one in between."""
    from sparsec.oracle.packed import packed_oracle
    from sparsec.runtime.inputs import kinds
    from sparsec.runtime.packed.inputs import packed_inputs

    compiled, tokens, known = chosen.compiled, length(chosen), kinds(chosen.compiled.variant)
    drawn = packed_inputs(compiled, (tokens, 1, tokens // 3), chosen.dims, chosen.dtype, device="cpu")
    ends = drawn.pop("cu_seqlens").tolist()
    case = {
        name: number(name, tuple(x.shape), seed, known).to(x.dtype) if x.is_floating_point() else x
        for seed, (name, x) in enumerate(drawn.items())
    }
    rows = list(range(0, ends[-1], max(ends[-1] // 8, 1)))
    truths = [digest(x[None], rows).tolist() for x in packed_oracle(compiled.variant, case, ends)]
    given = {n: x.tolist() for n, x in case.items() if not x.is_floating_point()} | {"cu_seqlens": ends}
    shapes = {n: tuple(x.shape) for n, x in case.items()} | {"cu_seqlens": (len(ends),)}
    return SelfCheck(chosen.dims, given, rows, truths, BOUNDS[chosen.dtype], shapes, known)


def length(chosen: Setting) -> int:
    """Tokens enough for more than two chunks of every size, if that is not too many."""
    attrs = (value for node in chosen.compiled.variant.nodes for name, value in node.attrs if name in ("size", "chunk"))
    return min(max([LENGTH, *(2 * size + 3 for size in attrs if isinstance(size, int))]), LONGEST)
