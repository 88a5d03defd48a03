"""Lists that blocks of queries share: what they mean, which kernels they become, and what is refused."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.ir.error import DeclarationError, InputError
from sparsec.oracle import oracle
from sparsec.plan.plan import PlanError
from sparsec.plan.specs import BlockList, TiledAttention
from sparsec.runtime.compiled import compile

TEXT = """
variant layer(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], ids: [B, (TQ + 31) // 32, HKV, 3] int32,
              n: [B, (TQ + 31) // 32, HKV] int32) {
  memory = tokens(k, v) {chunk = 16}
  chosen = given(ids, counts=n) {size = 16, query_block = 32}
  return attend(q, memory, chosen, mask(memory) {where = j <= i})
}
"""
DIMS = {"B": 2, "TQ": 70, "TK": 90, "H": 4, "HKV": 2, "D": 16, "DV": 32}


def one(found: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A single output."""
    assert isinstance(found, torch.Tensor)
    return found


def per_query(x: dict[str, torch.Tensor]) -> torch.Tensor:
    """Dense attention over what every query's block listed, in fp64."""
    ids, n, q, k, v = x["ids"].long(), x["n"], x["q"].double(), x["k"].double(), x["v"].double()
    ids = torch.where(torch.arange(3) < n[..., None], ids, -1).repeat_interleave(32, 1)[:, : q.shape[1]]
    i, j = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])
    listed = (ids[..., None] == j // 16).any(-2).transpose(1, 2).repeat_interleave(2, 1)
    shared_k, shared_v = (y.repeat_interleave(2, 2) for y in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, shared_k) * q.shape[-1] ** -0.5
    weights = torch.softmax(torch.where(listed & (j <= i), scores, -torch.inf), -1).nan_to_num(0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, shared_v)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_every_query_reads_what_its_block_lists(target: str) -> None:
    layer = sparsec.parse(TEXT)
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, **DIMS)
    assert torch.allclose(one(oracle(layer, x)), per_query(x), atol=1e-12)
    found = one(compile(layer, target=target)(**x))
    assert torch.allclose(found.double(), per_query(x), atol=1e-5)


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_gradients_are_those_of_dense_attention(target: str) -> None:
    layer = sparsec.parse(TEXT)
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, **DIMS)
    leaves = [x[name].requires_grad_() for name in ("q", "k", "v")]
    cotangent = torch.randn(2, 70, 4, 32)
    wanted = torch.autograd.grad(per_query(x), leaves, cotangent.double())
    found = torch.autograd.grad(compile(layer, target=target)(**x), leaves, cotangent)
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found, wanted, strict=True))


def test_it_is_tiled_attention_over_a_block_list() -> None:
    compiled = compile(sparsec.parse(TEXT), target="interpreter")
    plan = compiled.plan(
        *compiled.bind(sparsec.inputs(compiled.variant, dtype="float32", device="cpu", seed=0, **DIMS))
    )
    assert [type(k.spec) for k in plan.kernels] == [BlockList, TiledAttention]


def test_a_list_too_few_names_both_counts() -> None:
    compiled = compile(sparsec.parse(TEXT), target="interpreter")
    x = sparsec.inputs(compiled.variant, dtype="float32", device="cpu", seed=0, **DIMS)
    with pytest.raises(InputError, match="ids"):
        compiled(**x | {"ids": x["ids"][:, :2], "n": x["n"][:, :2]})


def test_an_id_beyond_the_last_chunk_is_refused() -> None:
    compiled = compile(sparsec.parse(TEXT), target="interpreter")
    x = sparsec.inputs(compiled.variant, dtype="float32", device="cpu", seed=0, **DIMS)
    x["ids"][0, 1, 0, 0] = 6
    x["n"][:] = 3
    with pytest.raises(InputError, match="6"):
        compiled(**x)


def test_blocks_that_are_no_tiles_are_refused() -> None:
    layer = sparsec.parse(TEXT.replace("31) // 32", "23) // 24").replace("query_block = 32", "query_block = 24"))
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, **DIMS)
    with pytest.raises(PlanError, match="query_block = 24"):
        compile(layer, target="interpreter")(**x)


def test_weights_of_a_shared_list_are_refused() -> None:
    text = TEXT.replace("n: [B, (TQ + 31) // 32, HKV] int32", "w: [B, (TQ + 31) // 32, HKV, 3] float32")
    text = text.replace(", counts=n", "").replace("where = j <= i})", "where = j <= i}, weights=w) {per = chunk}")
    with pytest.raises(DeclarationError, match="query_block = 32"):
        sparsec.parse(text)


def test_a_list_per_query_where_blocks_share_one_says_how_many_rows_there_are() -> None:
    layer = sparsec.parse(TEXT.replace("(TQ + 31) // 32", "TQ"))
    with pytest.raises(InputError, match=r"rows of lists.*declare the dim TQ as \(TQ \+ 31\) // 32"):
        compile(layer, target="interpreter")(**sparsec.inputs(layer, TQ=70))
