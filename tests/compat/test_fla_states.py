"""flash-linear-attention's recurrences by name, against a token loop in fp64: outputs, last states, every gradient."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from sparsec import InputError
from sparsec.compat import fla

B, T, H, K, V = 2, 19, 2, 8, 12
ENDS = [0, 5, 6, 19]
Tensors = dict[str, Any]


def loop(x: Tensors, scale: float | None = None, reads: str = "decayed") -> tuple[Tensor, Tensor]:
    """Outputs ``[B,T,H,V]`` and last states of one token after another."""
    q, k, v = x["q"], x["k"], x["v"]
    state = x.get("h0", q.new_zeros(q.shape[0], v.shape[2], q.shape[3], v.shape[3]))
    outputs = []
    for t in range(q.shape[1]):
        before = state
        if "g" in x:
            decay = x["g"][:, t].exp()
            state = state * decay.view(*decay.shape[:2], -1, 1)
        read = before if reads == "undecayed" else state
        value = v[:, t]
        if "a" in x:
            state = state + x["b"][:, t].unsqueeze(-1) * (read * x["a"][:, t].unsqueeze(-1)).sum(-2, keepdim=True)
        elif "beta" in x:
            value = x["beta"][:, t].unsqueeze(-1) * (value - (read * k[:, t].unsqueeze(-1)).sum(-2))
        state = state + k[:, t].unsqueeze(-1) * value.unsqueeze(-2)
        outputs.append((state * q[:, t].unsqueeze(-1)).sum(-2) * (q.shape[-1] ** -0.5 if scale is None else scale))
    return torch.stack(outputs, 1), state


def packed_loop(x: Tensors, ends: list[int], **how: Any) -> tuple[Tensor, Tensor]:
    """The loop over each document by itself."""
    parts = []
    for n, (start, end) in enumerate(pairwise(ends)):
        parts.append(loop({m: t[n : n + 1] if m == "h0" else t[:, start:end] for m, t in x.items()}, **how))
    return torch.cat([o for o, _ in parts], 1), torch.cat([last for _, last in parts])


def draw(*names: str, batch: int = B, heads: int = H, states: int = B) -> Tensors:
    """Tensors by name, in fp32 and with gradients."""
    generator = torch.Generator().manual_seed(len(names))
    shapes = {"v": (heads, V), "h0": (heads, K, V), "g": (heads,), "beta": (heads,), "gk": (heads, K), "b": (heads, K)}
    done: Tensors = {}
    for name in ("q", "k", "v", *names):
        tokens = (states,) if name == "h0" else (batch, T)
        x = torch.randn(*tokens, *shapes.get(name, (heads if name == "a" else H, K)), generator=generator)
        if name in ("g", "gk"):
            x = logsigmoid(x + 1)
        if name in ("k", "a", "b"):
            x = normalize(x, dim=-1)
        done[name] = (x.sigmoid() if name == "beta" else x).requires_grad_()
    return done


def compare(done: tuple[Any, ...], truth: tuple[Tensor, ...], inputs: Tensors) -> None:
    """Outputs, and the gradients of one random sum of them, against those of the loop."""
    assert len(done) == len(truth)
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(7)) for y in truth]
    names = [name for name, x in inputs.items() if x.requires_grad]
    sums = [torch.stack([(y * w).sum() for y, w in zip(ys, weights, strict=True)]).sum() for ys in (done, truth)]
    ours, theirs = (torch.autograd.grad(total, [inputs[n] for n in names]) for total in sums)
    for name, a, b in [*zip(("o", "last"), done, truth, strict=False), *zip(names, ours, theirs, strict=True)]:
        assert a.shape == b.shape, name
        assert (a - b).norm() <= 2e-5 * b.norm() + 1e-6, f"{name}: {(a - b).norm() / b.norm():.2e}"


def doubled(x: Tensors) -> Tensors:
    """The same in fp64."""
    return {name: t.double() for name, t in x.items()}


# Each: the inputs beside q, k and v, what they are called, and the truth's way of reading.
OPS: dict[str, tuple[dict[str, str], str]] = {
    "chunk_simple_gla": ({"g": "g"}, "decayed"),
    "fused_recurrent_simple_gla": ({"g": "g"}, "decayed"),
    "chunk_gla": ({"gk": "g"}, "decayed"),
    "fused_recurrent_gla": ({"gk": "gk"}, "decayed"),
    "chunk_delta_rule": ({"beta": "beta"}, "decayed"),
    "chunk_gated_delta_rule": ({"g": "g", "beta": "beta"}, "decayed"),
    "fused_recurrent_gated_delta_rule": ({"g": "g", "beta": "beta"}, "decayed"),
    "chunk_kda": ({"gk": "g", "beta": "beta"}, "decayed"),
    "fused_recurrent_kda": ({"gk": "g", "beta": "beta"}, "decayed"),
    "chunk_dplr_delta_rule": ({"a": "a", "b": "b", "gk": "gk"}, "undecayed"),
    "chunk_iplr_delta_rule": ({"a": "a", "b": "b"}, "undecayed"),
}


def named(x: Tensors, names: dict[str, str]) -> Tensors:
    """The inputs of an op by its own names."""
    return {names.get(name, name): t for name, t in x.items() if name != "h0"}


def meant(x: Tensors) -> Tensors:
    """The inputs of the loop."""
    return {"g" if name == "gk" else name: t for name, t in doubled(x).items()}


@pytest.mark.parametrize("op", OPS)
def test_ops(op: str) -> None:
    names, reads = OPS[op]
    x = draw(*names, "h0")
    done = getattr(fla, op)(**named(x, names), initial_state=x["h0"], output_final_state=True)
    compare(done, loop(meant(x), reads=reads), x)


@pytest.mark.parametrize("op", ["chunk_simple_gla", "chunk_gla", "chunk_gated_delta_rule", "chunk_dplr_delta_rule"])
def test_packed(op: str) -> None:
    names, reads = OPS[op]
    x = draw(*names, "h0", batch=1, states=3)
    done = getattr(fla, op)(
        **named(x, names), initial_state=x["h0"], output_final_state=True, cu_seqlens=torch.tensor(ENDS), scale=0.5
    )
    compare(done, packed_loop(meant(x), ENDS, scale=0.5, reads=reads), x)


def test_reverse() -> None:
    x = draw("gk", "h0", batch=1, states=3)
    backwards = {n: t if n == "h0" else t.flip(1) for n, t in meant(x).items()} | {"h0": x["h0"].double().flip(0)}
    done = fla.fused_recurrent_gla(
        **named(x, {}), initial_state=x["h0"], output_final_state=True, reverse=True, cu_seqlens=torch.tensor(ENDS)
    )
    o, last = packed_loop(backwards, [0, 13, 14, 19])
    compare(done, (o.flip(1), last.flip(0)), x)


def test_states_with_values_first() -> None:
    x = draw("g", "beta", "h0")
    o, last = fla.chunk_gated_delta_rule(
        **named(x, {}), initial_state=x["h0"].transpose(-1, -2), output_final_state=True, state_v_first=True
    )
    assert last is not None
    compare((o, last.transpose(-1, -2)), loop(meant(x)), x)


def test_more_value_heads_than_key_heads() -> None:
    x = draw("g", "beta", heads=2 * H)
    repeated = {n: t.repeat_interleave(2, 2) if n in "qk" else t for n, t in meant(x).items()}
    done = fla.chunk_gated_delta_rule(**x, output_final_state=True)
    compare(done, loop(repeated), x)


def test_gates_in_the_kernel() -> None:
    x = draw("g", "beta")
    extra: Tensors = {"A_log": torch.rand(H).requires_grad_(), "dt_bias": torch.randn(H).requires_grad_()}
    done = fla.chunk_gated_delta_rule(
        **x, **extra, use_gate_in_kernel=True, use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=True, output_final_state=True,
    )  # fmt: skip
    truth = doubled(x | extra)
    truth["g"] = -truth["A_log"].exp() * softplus(truth["g"] + truth["dt_bias"])
    truth |= {"beta": 2 * truth["beta"].sigmoid(), **{n: normalize(truth[n], dim=-1) for n in "qk"}}
    compare(done, loop(truth), x | extra)


@pytest.mark.parametrize("bound", [None, -5.0])
def test_gates_of_kda(bound: float | None) -> None:
    x = draw("gk", "beta")
    extra: Tensors = {"A_log": torch.rand(H).requires_grad_(), "dt_bias": torch.randn(H * K).requires_grad_()}
    done = fla.chunk_kda(
        **named(x, {"gk": "g"}), **extra, use_gate_in_kernel=True, lower_bound=bound, output_final_state=True
    )
    truth = meant(x | extra)
    steep, shifted = truth["A_log"].view(H, 1).exp(), truth["g"] + truth["dt_bias"].view(H, K)
    truth["g"] = -steep * softplus(shifted) if bound is None else bound * (steep * shifted).sigmoid()
    compare(done, loop(truth), x | extra)


def test_retention() -> None:
    x = draw("h0")
    decays = (1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))).log().expand(B, T, H)
    done = fla.chunk_retention(**named(x, {}), initial_state=x["h0"], output_final_state=True)
    compare(done, loop(doubled(x) | {"g": decays}), x)


@pytest.mark.parametrize("ends", [None, ENDS])
def test_normalised(ends: list[int] | None) -> None:
    x = {n: t.detach().abs().requires_grad_() for n, t in draw("h0", batch=1, states=3 if ends else 1).items()}
    z = torch.rand(len(x["h0"]), 1, H, K).requires_grad_()
    pair = (x["h0"], z)
    o, last = fla.chunk_linear_attn(
        **named(x, {}),
        initial_state=pair,
        output_final_state=True,
        cu_seqlens=None if ends is None else torch.tensor(ends),
    )
    both = doubled(x)
    ones = both | {"v": both["v"][..., :1] * 0 + 1, "h0": z.double().squeeze(1).unsqueeze(-1)}
    (truth, state), (sums, keys) = (packed_loop(t, ends) if ends else loop(t) for t in (both, ones))
    compare((o, last[0]), (truth / sums, state), x | {"z": z})
    assert torch.allclose(last[1], keys.squeeze(-1).unsqueeze(1).float(), atol=1e-4)


def test_rwkv7_scales_by_one_in_chunks() -> None:
    x = draw("a", "b", "gk")
    mine = {{"q": "r", "gk": "w"}.get(name, name): t for name, t in x.items()}
    compare(fla.chunk_rwkv7(**mine, output_final_state=True), loop(meant(x), scale=1.0, reads="undecayed"), x)
    compare(fla.fused_recurrent_rwkv7(**mine), loop(meant(x), reads="undecayed"), x)


def test_gdn2() -> None:
    x = draw("gk", "b") | {"w": torch.rand(B, T, H, V).requires_grad_()}
    truth = meant(x)
    truth |= {"a": -truth["b"] * truth["k"], "b": truth["k"], "v": truth["w"] * truth["v"]}
    compare(fla.chunk_gdn2(**named(x, {"gk": "g"}), output_final_state=True), loop(truth), x)


def test_products() -> None:
    twice = draw("beta", "g")
    x = {n: t.detach()[:, : T // 2] if n in ("q", "g") else t.detach()[:, : T // 2 * 2] for n, t in twice.items()}
    x = {n: t.clone().requires_grad_() for n, t in x.items()}
    done = fla.chunk_gated_delta_product(**x, num_householder=2, output_final_state=True)
    truth = doubled(x)
    zeros = torch.zeros_like(truth["q"]), torch.zeros_like(truth["g"])
    truth["q"] = torch.stack([zeros[0], truth["q"]], 2).flatten(1, 2)
    truth["g"] = torch.stack([truth["g"], zeros[1]], 2).flatten(1, 2)
    o, last = loop(truth)
    compare(done, (o[:, 1::2], last), x)


@pytest.mark.parametrize(
    ("op", "names", "options", "said"),
    [
        ("chunk_gla", ("gk",), {"head_first": False}, "head_first: False.*B, T, H, D"),
        ("chunk_kda", ("gk", "beta"), {"cp_context": object()}, "cp_context.*one device"),
        ("chunk_kda", ("gk", "beta"), {"return_intermediate_states": True}, "return_intermediate_states"),
        ("fused_recurrent_gla", ("gk",), {"gv": torch.zeros(1)}, "gv.*per key or per value channel"),
        ("chunk_log_linear_attn", ("g",), {"level_scales": torch.zeros(1), "output_final_state": True}, "not carried"),
        ("parallel_retention", (), {"output_attentions": True}, "output_attentions"),
        ("chunk_gla", ("gk",), {"windows": 3}, "windows.*no such option"),
        ("chunk_gla", ("gk",), {"cu_seqlens": torch.tensor(ENDS)}, "batch size 2.*one row"),
        ("chunk_linear_attn", (), {"initial_state": torch.zeros(1)}, "it is a pair"),
    ],
)
def test_refusals(op: str, names: tuple[str, ...], options: dict[str, Any], said: str) -> None:
    x = {"g" if n == "gk" and op != "fused_recurrent_gla" else n: t for n, t in draw(*names).items()}
    with pytest.raises(InputError, match=said):
        getattr(fla, op)(**x, **options)


def test_kernels_are_built_once() -> None:
    from sparsec.compat.fla.recurrence import Form, compiled

    x = draw("gk")
    for tokens in (7, 19):
        fla.chunk_gla(**{n: t[:, :tokens] for n, t in named(x, {"gk": "g"}).items()}, scale=0.25)
    layer = compiled(Form(0.25, decay="key"), "cpu")
    built = layer.builds
    fla.chunk_gla(**{n: t[:, :11] for n, t in named(x, {"gk": "g"}).items()}, scale=0.25)
    assert layer.builds == built > 0


def test_the_former_name_of_an_option() -> None:
    x = named(draw("gk"), {"gk": "g"})
    o, last = fla.chunk_gla(**x, output_final_state=True)
    with pytest.warns(DeprecationWarning, match="state_v_first"):
        again, turned = fla.chunk_gla(**x, output_final_state=True, transpose_state_layout=True)
    assert last is not None and turned is not None
    assert torch.equal(o, again) and torch.equal(last, turned.transpose(-1, -2))
    with pytest.raises(InputError, match="both names"):
        fla.chunk_gla(**x, state_v_first=True, transpose_state_layout=True)
