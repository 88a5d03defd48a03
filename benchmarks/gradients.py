"""Plain fp64 gradients of a case, through sampled rows of its output, and the verdict on those of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import ScanCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.draws import normal
from sparsec.benchmarks.reference import head_inputs, head_output, sampled_rows, truth
from sparsec.benchmarks.reference_rsa import rsa_gradients
from sparsec.benchmarks.reference_scan import scan_gradients
from sparsec.benchmarks.reference_sse import sse_gradients
from sparsec.benchmarks.step import Step
from sparsec.benchmarks.verdict import LIMITS

GRADIENT_SLACK = {"v": 1.0}
GRADIENT_SLACK_ELSE = 8 / 3
"""Gradients of values may err by 0.003 in bf16 like outputs, all others by 0.008."""


class GradientReferee:
    """Holds gradients to the fp64 ones of an output gradient that is zero but on some whole tiles of rows.

    Every key that those rows see gets its exact gradient, so what reaches keys across tiles and heads is covered. Rows
    that a near tie leaves open are zero too.
    """

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case, rows = case, sampled_rows(case)
        grad = torch.zeros((case.B, case.T, case.H, case.D), dtype=case.dtype, device=case.device)
        drawn = normal((case.B, len(rows), case.H, case.D), case.dtype, case.generator(7))
        grad[:, rows] = drawn * truth(case, inputs, rows).decided(case.peer_tie)[..., None]
        self.grad, self.truth = grad, gradients(case, inputs, rows, grad)

    def __call__(self, step: Step, slack: float = 1.0) -> tuple[dict[str, float], str]:
        """Errors by name, and what is wrong in a sentence; "" if nothing is."""
        errors = {name: _error(x, self.truth[name]) for name, x in step.gradients(self.grad).items()}
        limits = {
            name: LIMITS[self.case.dtype] * GRADIENT_SLACK.get(name, GRADIENT_SLACK_ELSE) * slack for name in errors
        }
        wrong = [
            f"gradient of {n}: error {e:.2e}, the limit is {limits[n]:.2e}"
            for n, e in errors.items()
            if not e <= limits[n]
        ]
        return errors, "; ".join(wrong)


def gradients(case: Case, inputs: Inputs, rows: Tensor, grad: Tensor) -> Inputs:
    """fp64 gradients ``[B,T,heads,…]`` of what the case learns, through the outputs of these rows only."""
    if isinstance(case, ScanCase):
        return scan_gradients(case, inputs, rows, grad)
    if isinstance(case, RsaCase):
        return rsa_gradients(case, inputs, rows, grad)
    if isinstance(case, SseCase):
        return sse_gradients(case, inputs, rows, grad)
    found = {name: torch.zeros(inputs[name].shape, dtype=torch.float64, device=case.device) for name in case.learned}
    for b in range(case.B):
        for h in range(case.H):
            x = head_inputs(case, {name: tensor[b] for name, tensor in inputs.items()}, h)
            leaves = {name: x[name].clone().requires_grad_() for name in case.learned}
            with torch.enable_grad():
                out, _ = head_output(case, x | leaves, rows)
                each = torch.autograd.grad(out, list(leaves.values()), grad[b, rows, h].double())
            for name, part in zip(case.learned, each, strict=True):
                found[name][b, :, h if name in case.per_query_head else h // case.group] += part
    return found


def _error(found: Tensor, truth: Tensor) -> float:
    """Root-mean-square error over root-mean-square truth; infinite where a value is not finite."""
    wrong = found.double() - truth
    error = float((wrong.square().mean() / truth.square().mean()).sqrt())
    return error if error == error else float("inf")
