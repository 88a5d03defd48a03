"""flash-linear-attention's slots, channels and levels by name, against loops in fp64: outputs, states, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from sparsec.compat import fla

B, T, H, K, V, M = 2, 13, 2, 8, 12, 6
Tensors = dict[str, Any]


def draw(**shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(len(shapes))
    return {n: torch.randn(B, *shape, generator=generator).requires_grad_() for n, shape in shapes.items()}


def compare(done: list[Tensor], truth: list[Tensor], inputs: Tensors) -> None:
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(7)) for y in truth]
    sums = [torch.stack([(y * w).sum() for y, w in zip(ys, weights, strict=True)]).sum() for ys in (done, truth)]
    ours, theirs = (torch.autograd.grad(total, list(inputs.values()), retain_graph=True) for total in sums)
    for n, (a, b) in enumerate([*zip(done, truth, strict=True), *zip(ours, theirs, strict=True)]):
        assert a.shape == b.shape and (a - b).norm() <= 2e-5 * b.norm() + 1e-6, f"{n}: {(a - b).norm() / b.norm():.2e}"


def slots(q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
    """Outputs and both states, one token after another; q has as many heads as k or twice as many."""
    outputs, times = [], q.shape[2] // k.shape[2]
    for t in range(q.shape[1]):
        keys = keys * g[:, t].exp().unsqueeze(-2) + k[:, t].unsqueeze(-1) * s[:, t].unsqueeze(-2)
        values = values * g[:, t].exp().unsqueeze(-1) + s[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        held, read = (x.repeat_interleave(times, 1) for x in (keys, values))
        shares = (torch.einsum("bhk,bhkm->bhm", q[:, t], held) * K**-0.5).softmax(-1)
        outputs.append(torch.einsum("bhm,bhmv->bhv", shares, read))
    return [torch.stack(outputs, 1), keys, values]


@pytest.mark.parametrize("heads", [H, 2 * H])
def test_gated_slots(heads: int) -> None:
    x = draw(q=(T, heads, K), k=(T, H, K), v=(T, H, V), s=(T, H, M), g=(T, H, M), keys=(H, K, M), values=(H, M, V))
    g = logsigmoid(x["g"])
    states: Tensors = {"initial_state": (x["keys"], x["values"]), "output_final_state": True}
    o, last = fla.chunk_gsa(x["q"], x["k"], x["v"], x["s"], g, **states)
    assert last[0] is not None and last[1] is not None
    wide = {n: t.double() for n, t in x.items()}
    compare([o, *last], slots(**wide | {"g": g.double()}), x)  # type: ignore[list-item]


def test_slots_without_gates_share_what_came_so_far() -> None:
    x = draw(q=(T, H, K), k=(T, H, K), v=(T, H, V), s=(T, H, M))
    wide = {n: t.double() for n, t in x.items()}
    total = wide["s"].logcumsumexp(1)
    decays = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1] - total[:, 1:]], 1)
    states = {"keys": total.new_zeros(B, H, K, M), "values": total.new_zeros(B, H, M, V)}
    truth = slots(**wide | states | {"s": (wide["s"] - total).exp(), "g": decays})
    compare([fla.fused_recurrent_gsa(**x)[0]], truth[:1], x)


def test_decays_of_value_channels() -> None:
    x = draw(q=(T, H, K), k=(T, H, K), v=(T, H, V), g=(T, H, V))
    g = logsigmoid(x["g"])
    o, last = fla.fused_recurrent_gla(x["q"], x["k"], x["v"], gv=g, output_final_state=True)
    state, outputs = torch.zeros(B, H, K, V, dtype=torch.float64), []
    for t in range(T):
        state = state * g[:, t].double().exp().unsqueeze(-2) + x["k"][:, t].unsqueeze(-1) * x["v"][:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", x["q"][:, t].double(), state) * K**-0.5)
    assert last is not None
    compare([o, last], [torch.stack(outputs, 1), state], x)


def test_channels_by_themselves() -> None:
    x = draw(x=(T, V), g=(T, V), h=(V,))
    g = logsigmoid(x["g"])
    o, last = fla.chunk_hgrn(x["x"], g, initial_state=x["h"], output_final_state=True)
    state, outputs = x["h"].double(), []
    for t in range(T):
        state = g[:, t].double().exp() * state + x["x"][:, t]
        outputs.append(state)
    assert last is not None
    compare([o, last], [torch.stack(outputs, 1), state], x)


def test_levels() -> None:
    x = draw(q=(T, 1, K), k=(T, 1, K), v=(T, H, V), g=(T, H), level_scales=(T, H, 5))
    g, weights = logsigmoid(x["g"]), softplus(x["level_scales"])
    o, _ = fla.chunk_log_linear_attn(x["q"], x["k"], x["v"], g, weights)
    total = g.double().cumsum(1).transpose(1, 2)
    level = torch.tensor([[(t ^ s).bit_length() for s in range(T)] for t in range(T)]).expand(B, H, T, T)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).exp() * weights.double().transpose(1, 2).gather(3, level)
    scores = torch.einsum("btgk,bsgk->bgts", x["q"].double(), x["k"].double()) * decay
    compare([o], [torch.einsum("bhts,bshv->bthv", scores.tril(), x["v"].double())], x)
