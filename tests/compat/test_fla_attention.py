"""flash-linear-attention's attentions by name, against dense softmax in fp64: outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sparsec import InputError
from sparsec.compat import fla
from sparsec.compat.fla import attention
from sparsec.compat.fla.attention import filled

B, T, HQ, H, D, BLOCK = 2, 37, 4, 2, 16, 8
ENDS = [0, 17, 37]
ROWS, COLUMNS = torch.arange(T)[:, None], torch.arange(T)[None]


def draw(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """q, k and v, and more by their shapes after the tokens."""
    generator = torch.Generator().manual_seed(1)
    all_shapes = {"q": (HQ, D), "k": (H, D), "v": (H, D), **shapes}
    return {n: torch.randn(B, T, *s, generator=generator).requires_grad_() for n, s in all_shapes.items()}


def doubled(x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in fp64."""
    return x["q"].double(), x["k"].double(), x["v"].double()


def dense(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | float = 0.0, scale: float | None = None
) -> Tensor:
    """Softmax attention over what ``seen`` ``[…,T,N]`` admits, 0 for rows that see nothing."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    shares = torch.nan_to_num(logits.masked_fill(~seen, -torch.inf).softmax(-1))
    return torch.einsum("bhij,bjhd->bihd", shares, v)


def compare(o: Tensor, truth: Tensor, inputs: dict[str, Tensor]) -> None:
    weights = torch.randn(truth.shape, generator=torch.Generator().manual_seed(7))
    sums = ((y * weights).sum() for y in (o, truth))
    ours, theirs = (torch.autograd.grad(total, list(inputs.values()), retain_graph=True) for total in sums)
    for name, a, b in [("o", o, truth), *zip(inputs, ours, theirs, strict=True)]:
        assert (a - b).norm() <= 2e-5 * b.norm(), f"{name}: {(a - b).norm() / b.norm():.2e}"


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("faded", [False, True])
def test_attention(window: int | None, faded: bool) -> None:
    x = draw(g=(HQ,))
    gates = logsigmoid(x["g"] + 1)
    o = fla.parallel_attn(x["q"], x["k"], x["v"], gates if faded else None, scale=0.3, window_size=window)
    total = gates.double().cumsum(1).transpose(1, 2)
    bias = total.unsqueeze(-1) - total.unsqueeze(-2) if faded else 0.0
    seen = (COLUMNS <= ROWS) & ((window or T) > ROWS - COLUMNS)
    used = x if faded else {n: x[n] for n in "qkv"}
    compare(o, dense(*doubled(x), seen, bias, 0.3), used)
    if faded:
        assert torch.equal(o, fla.parallel_forgetting_attn(x["q"], x["k"], x["v"], gates, 0.3, window))


def test_sinks() -> None:
    x = draw()
    sink = torch.randn(HQ).requires_grad_()
    q, k, v = doubled(x)
    with_sink = torch.cat([torch.zeros_like(k[:, :1]), k], 1), torch.cat([torch.zeros_like(v[:, :1]), v], 1)
    seen = torch.cat([torch.ones(T, 1, dtype=torch.bool), COLUMNS <= ROWS], 1)
    bias = torch.cat([sink.double().view(HQ, 1, 1).expand(HQ, T, 1), torch.zeros(HQ, T, T)], -1)
    compare(fla.parallel_attn(**x, sink_bias=sink), dense(q, *with_sink, seen, bias), x | {"sink": sink})


def test_packed_attention() -> None:
    x: dict[str, Any] = {name: t.detach()[:1].clone().requires_grad_() for name, t in draw().items()}
    document = torch.bucketize(torch.arange(T), torch.tensor(ENDS[1:-1]), right=True)
    seen = (COLUMNS <= ROWS) & (document[:, None] == document)
    o = fla.parallel_attn(**x, cu_seqlens=torch.tensor(ENDS))
    compare(o, dense(*doubled(x), seen), x)


def packed_heads() -> dict[str, Any]:
    """One document in a row, with as many heads of keys as of queries."""
    drawn = {n: t.detach()[:1].repeat_interleave(2 if n in "kv" else 1, 2) for n, t in draw().items()}
    return {name: t.requires_grad_() for name, t in drawn.items()}


@pytest.mark.parametrize("more", [0, 5], ids=["whole rows", "rows filled up"])
def test_moba(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "aligned", lambda *rows: tuple(torch.nn.functional.pad(x, (0, more)) for x in rows))
    x = packed_heads()
    o = fla.parallel_moba(**x, cu_seqlens=torch.tensor([0, T]), max_seqlen=T, chunk_size=BLOCK, topk=2)
    q, k, v = (x[n].double() for n in "qkv")
    means = torch.stack([c.mean(1) for c in k.split(BLOCK, 1)], 1)
    blocks, own = torch.arange(means.shape[1])[None], ROWS // BLOCK
    worth = torch.einsum("bihd,bchd->bhic", q, means).masked_fill(blocks > own, -torch.inf)
    best = worth.masked_fill(blocks == own, torch.inf).topk(2, -1).indices
    chosen = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, best, True)
    compare(o, dense(q, k, v, chosen.repeat_interleave(BLOCK, -1)[..., :T] & (COLUMNS <= ROWS)), x)


def test_moba_of_one_chunk_is_causal_attention_as_in_fla() -> None:
    x = packed_heads()
    o = fla.parallel_moba(**x, cu_seqlens=torch.tensor([0, T]), max_seqlen=T, chunk_size=BLOCK, topk=1)
    q, k, v = (x[n].double() for n in "qkv")
    compare(o, dense(q, k, v, COLUMNS <= ROWS), x)


def test_moba_of_rows_without_a_batch_and_of_a_batch() -> None:
    x = {name: t.detach() for name, t in packed_heads().items()}
    how: dict[str, Any] = {"cu_seqlens": torch.tensor([0, T]), "max_seqlen": T, "chunk_size": BLOCK, "topk": 2}
    plain = fla.parallel_moba(**{name: t[0] for name, t in x.items()}, **how)
    assert torch.equal(plain, fla.parallel_moba(**x, **how)[0])
    with pytest.raises(InputError, match="batch size 2: packed documents lie in one row"):
        fla.parallel_moba(**{name: t.repeat(2, 1, 1, 1) for name, t in x.items()}, **how)


def selected(q: Tensor, k: Tensor, means: Tensor, blocks: int) -> Tensor:
    """The blocks of each query and key head ``[B,H,T,blocks]``: three forced ones, then the most probable."""
    columns, own = torch.arange(means.shape[1])[None], ROWS // BLOCK
    logits = torch.einsum("bihd,bchd->bhic", q, means.repeat_interleave(q.shape[2] // H, 2)) * D**-0.5
    shares = torch.nan_to_num(logits.masked_fill((columns + 1) * BLOCK - 1 > ROWS, -torch.inf).softmax(-1))
    worth = shares.unflatten(1, (H, -1)).sum(2)
    forced = (columns == 0) | (columns == own) | (columns == own - 1)
    ranked = worth.masked_fill(forced, torch.inf).masked_fill(columns > own, -torch.inf)
    best = ranked.topk(min(blocks, ranked.shape[-1]), -1)
    return torch.where(best.values == -torch.inf, -1, best.indices)


def admitted(ids: Tensor) -> Tensor:
    """Tokens of listed blocks that are not ahead ``[B,H,T,T]``."""
    hit = (ids.unsqueeze(-1) == torch.arange(-(-T // BLOCK))).any(-2)
    return hit.repeat_interleave(BLOCK, -1)[..., :T] & (COLUMNS <= ROWS)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("window", [0, 10])
def test_nsa(given: bool, window: int) -> None:
    gates = {f"g_{name}": (HQ,) for name in ("cmp", "slc", "swa")[: 3 if window else 2]}
    x = draw(**gates)
    q, k, v = doubled(x)
    mean_k, mean_v = (torch.stack([c.mean(1) for c in t.split(BLOCK, 1)], 1) for t in (k, v))
    ids = selected(q.detach(), k.detach(), mean_k.detach(), 4)
    o = fla.parallel_nsa(
        **x, block_size=BLOCK, window_size=window, block_counts=4,
        block_indices=ids.transpose(1, 2).masked_fill(ids.transpose(1, 2) < 0, T) if given else None,
    )  # fmt: skip
    columns = torch.arange(mean_k.shape[1])[None]
    parts = {
        "g_slc": dense(q, k, v, admitted(ids).repeat_interleave(HQ // H, 1)),
        "g_cmp": dense(q, mean_k, mean_v, (columns + 1) * BLOCK - 1 <= ROWS),
        "g_swa": dense(q, k, v, (COLUMNS <= ROWS) & (window > ROWS - COLUMNS)),
    }
    truth = sum(parts[name] * x[name].double().unsqueeze(-1) for name in gates)
    assert isinstance(truth, Tensor)
    compare(o, truth, x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "g_cmp.*needed"),
        ({"g_cmp": torch.zeros(B, T, HQ), "block_counts": torch.ones(B, T, H)}, "block_counts.*given indices"),
        ({"g_cmp": torch.zeros(B, T, HQ), "window_size": 4}, "g_swa.*needed"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fla.parallel_nsa(**draw(), **options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_head_dims_that_no_tensor_core_takes(device: str) -> None:
    drawn = draw(q=(HQ, 20), k=(H, 20), v=(H, 12))
    x = {name: tensor.detach().to(device).requires_grad_() for name, tensor in drawn.items()}
    o = fla.parallel_attn(x["q"], x["k"], x["v"])
    seen = (COLUMNS <= ROWS).to(device)
    truth = dense(*doubled(x), seen)
    assert o.shape == (B, T, HQ, 12)
    compare(o.cpu(), truth.cpu(), x)


def test_rows_are_filled_up_with_zeros() -> None:
    x = torch.ones(2, 20)
    assert filled(x).shape == (2, 32) and filled(x).sum() == 40 and filled(x[:, :16]).shape == (2, 16)
