"""What a row times: a call that was made ready, or one forward and one backward of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.draws import normal

if TYPE_CHECKING:
    from sparsec.autotune.report import Report


class Call:
    """A call without arguments.

    Attributes:
        predicted_peak_bytes: that it was predicted to hold beyond its inputs, where that is known.
        tuning: what tuning its schedules found; None where nothing was tuned.
    """

    tuning: Report | None = None

    def __init__(self, run: Callable[[], Tensor], predicted_peak_bytes: int | None = None) -> None:
        self.run, self.predicted_peak_bytes = run, predicted_peak_bytes

    def __call__(self) -> Tensor:
        return self.run()

    @property
    def tuning_seconds(self) -> float | None:
        """What went into its schedules."""
        return None if self.tuning is None else self.tuning.seconds


class Step(Call):
    """A call gives the output ``[B,T,H,D]`` after gradients for what the case learns were computed too.

    Args:
        forward: gives the output in the form's own layout.
        leaves: what to differentiate by in that layout, as the form holds it.
        heads_first: whether that layout is ``[B,H,T,D]``.
    """

    def __init__(
        self,
        case: Case,
        forward: Callable[[], Tensor],
        leaves: Mapping[str, Tensor],
        heads_first: bool = False,
        predicted_peak_bytes: int | None = None,
    ) -> None:
        super().__init__(self._step, predicted_peak_bytes)
        self.forward, self.leaves, self.heads_first = forward, leaves, heads_first
        shape = (case.B, case.T, case.H, case.D)
        self.grad = self._own(normal(shape, case.dtype, case.generator(99)))

    def _step(self) -> Tensor:
        out, _ = self._both(self.grad)
        return self._common(out.detach())

    def gradients(self, grad: Tensor) -> Inputs:
        """The gradients of the leaves ``[B,T,heads,D]`` under a gradient of the output ``[B,T,H,D]``."""
        _, found = self._both(self._own(grad))
        return {name: self._common(x) for name, x in zip(self.leaves, found, strict=True)}

    def _both(self, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            out = self.forward()
            return out, torch.autograd.grad(out, list(self.leaves.values()), grad)

    def _own(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous() if self.heads_first else x

    def _common(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.heads_first else x


def leaves_of(case: Case, inputs: Inputs, heads_first: bool = False) -> Inputs:
    """What the case learns as tensors of their own in a layout; leaves to differentiate by where the case trains."""
    own = {name: inputs[name].transpose(1, 2) if heads_first else inputs[name] for name in case.learned}
    copies = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in own.items()}
    return {name: x.requires_grad_(case.train) for name, x in copies.items()}
