"""Walks in spans: the same numbers and gradients as in one go."""

import pytest
import torch
from torch import Tensor

from sparsec.benchmarks.spans import walked


def _walk(state: Tensor, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for t in range(x.shape[1]):
        state = torch.tanh(0.9 * state + x[:, t])
        found.append(state.square())
    return state, torch.stack(found, 1)


def _devices() -> list[object]:
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", _devices())
@pytest.mark.parametrize("length", [1, 8, 19])
def test_outputs_and_gradients_are_those_of_one_walk(device: str, length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (2, length, 3), (2, length))
    tensors = [torch.randn(shape, dtype=torch.float64, generator=draw).to(device) for shape in shapes]
    state, x, unused = (t.requires_grad_() for t in tensors)
    whole, spans = _walk(state, x, unused), walked(_walk, (state,), (x, unused), 8, 1)
    for found, truth in zip(spans, whole, strict=True):
        assert torch.equal(found, truth)
    weights = torch.linspace(-1, 1, length, dtype=torch.float64, device=device)[:, None]
    grads = [torch.autograd.grad((out * weights).sum() + last.sum(), (state, x)) for last, out in (whole, spans)]
    for found, truth in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)
