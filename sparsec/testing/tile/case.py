"""A small tile program with inputs and an fp64 reference: what every runner of tile programs must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.tile.language import Program

Tensors = dict[str, Tensor]
Params = Mapping[str, int]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int32": torch.int32}


@dataclass(frozen=True, slots=True)
class Case:
    """A program and what it should compute.

    Attributes:
        inputs: makes the input tensors; floats in the program's dtype.
        shapes: of the outputs, which are made poisoned.
        reference: outputs in fp64 from the inputs.
        tolerance: allowed error of fp32 arithmetic, relative to the largest output.
    """

    name: str
    program: Program
    params: Params
    inputs: Callable[[torch.Generator], Tensors]
    shapes: Mapping[str, tuple[int, ...]]
    reference: Callable[[Tensors], Tensors]
    tolerance: float = 2e-6

    def tensors(self, seed: int = 0) -> Tensors:
        """Inputs, and outputs full of NaN (zeros where the program adds to them, -7 for integers)."""
        made = self.inputs(torch.Generator().manual_seed(seed))
        for tensor in (t for t in self.program.tensors if t.name not in made):
            fill = torch.nan if tensor.dtype not in ("int32", "int64") else -7
            made[tensor.name] = torch.full(self.shapes[tensor.name], fill, dtype=_DTYPES[tensor.dtype])
        return made

    def error(self, tensors: Tensors) -> float:
        """The largest error of any output, relative to the largest true value; integers must be equal."""
        worst = 0.0
        for name, truth in self.reference({k: exact(v) for k, v in tensors.items()}).items():
            if not truth.is_floating_point():
                worst = max(worst, float((tensors[name] != truth).any()))
                continue
            difference = (tensors[name].double() - truth).abs()
            same = tensors[name].double() == truth  # infinities
            largest = truth[truth.isfinite()].abs().max().clamp_min(1e-30)
            worst = max(worst, float((difference.masked_fill(same, 0.0) / largest).nan_to_num(torch.inf).max()))
        return worst


def exact(x: Tensor) -> Tensor:
    """Floats as fp64, anything else as it is."""
    return x.double() if x.is_floating_point() else x


def randn(generator: torch.Generator, *shape: int, dtype: str = "float32") -> Tensor:
    """Normal numbers in a tile dtype."""
    return torch.randn(shape, generator=generator).to(_DTYPES[dtype])


def randint(generator: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    """int32 from low to high - 1."""
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)
