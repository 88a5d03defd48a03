"""Running lowered programs in the tile interpreter on poisoned outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch

from sparsec.plan.plan import Buffer
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Program

Run = Callable[..., None]


@pytest.fixture
def run() -> Run:
    """``run(programs, tensors, params, scratch, mode)``: scratch buffers are made here, full of NaN or nonsense."""

    def go(
        programs: Iterable[Program],
        tensors: Mapping[str, torch.Tensor],
        params: Mapping[str, int],
        scratch: Iterable[Buffer] = (),
        mode: str = "storage",
    ) -> None:
        dims = {"TK": 1, "q_offset": 0, **params}
        every = dict(tensors)
        for buffer in scratch:
            fill = math.nan if buffer.dtype == "float32" else -(10**9)
            shape = [size_of(extent, dims) for extent in buffer.shape]
            every[buffer.name] = torch.full(shape, fill, dtype=getattr(torch, buffer.dtype))
        for program in programs:
            interpret(program, every, dims, mode=mode)  # type: ignore[arg-type]

    return go


def size_of(extent: object, dims: Mapping[str, int]) -> int:
    """The value of an extent."""
    from sparsec.scalar.evaluate import evaluate

    return int(evaluate(extent, dims))  # type: ignore[arg-type]
