"""Steps of a decoder on drawn tokens, beside the forward of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import sparsec
from sparsec.ir.variant import Variant
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.decode.cache_state import Cache

LENGTH, STEPS = 67, (40, 1, 1, 1, 3, 21)
Tensors = tuple[torch.Tensor, ...]


def draw(variant: Variant, length: int, batch: int = 2, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """Inputs with as many queries as keys."""
    sizes = {"B": batch, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16, "DI": 16}
    known = {n: s for n, s in sizes.items() if n in str([str(x) for x in variant.inputs.values()])}
    return sparsec.inputs(variant, dtype=dtype, device="cpu", seed=0, T=length, **known)


def at(made: Compiled, inputs: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """The inputs of a step."""
    spec = made.decoder.spec
    units = {**dict.fromkeys(spec.fresh, 1), **{k.name: k.unit for k in spec.kept}}
    return {n: x[:, start // units[n] : stop // units[n]] if n in units else x for n, x in inputs.items()}


def decoded(made: Compiled, cache: Cache, inputs: dict[str, torch.Tensor], steps: Sequence[int]) -> Tensors:
    """The outputs of all steps, from where the cache stands."""
    found, start = [], cache.known_lengths[0]
    for count in steps:
        out = made.decode(cache, **at(made, inputs, start, start + count))
        found.append(out if isinstance(out, tuple) else (out,))
        start += count
    return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))


def forward(made: Compiled, inputs: dict[str, torch.Tensor]) -> Tensors:
    """The outputs of one call."""
    named: dict[str, Any] = dict(inputs)
    found = made(None, **named)
    return found if isinstance(found, tuple) else (found,)
