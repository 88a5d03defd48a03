"""One way of computing a case: inputs in, a callable out that returns [B, T, H, D] without set-up work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparsec.benchmarks.cases import Case, Inputs

Run = Callable[[], torch.Tensor]
Compiler = Callable[..., Callable[..., Any]]
Build = Callable[[Case, Inputs, Compiler], Run]


@dataclass(frozen=True, slots=True)
class Form:
    """A named form of a peer. `build` may copy inputs into its own layout; data-dependent work belongs to the run.

    Attributes:
        case: what it computes and is judged by, where that is another case; sparsec's own kernels build it then.
        times: how often that case is run, one call after the other.
    """

    peer: str
    name: str
    build: Build | None = None
    case: Case | None = None
    times: int = 1

    def __str__(self) -> str:
        return f"{self.peer}/{self.name}"


def compile_static(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`torch.compile` for exactly these shapes, which is the fastest that a peer can be."""
    return torch.compile(function, dynamic=False, **options)


def eager(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
    """Stands in for `compile_static` where speed does not matter: small checks."""
    return function
