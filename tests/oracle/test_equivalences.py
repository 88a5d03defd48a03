"""Two ways to say the same thing give the same numbers (semantics §14.3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.ir import build as ir
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant
from sparsec.oracle import oracle

CHUNK = 3
SOME = settings(max_examples=15)
TOKENS = st.integers(1, 11)


def qkv() -> tuple[Node, Node, Node]:
    return ir.input("q", "B TQ H D"), ir.input("k", "B TK HKV D"), ir.input("v", "B TK HKV DV")


def sample(tokens: int, seed: int = 0, heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (2, tokens, heads, 4), "k": (2, tokens, kv_heads, 4), "v": (2, tokens, kv_heads, 3)}
    return {name: 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def run(of: Variant, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    done = oracle(of, inputs, form="vector")
    return (done,) if isinstance(done, Tensor) else done


def same(one: Variant, other: Variant, inputs: dict[str, Tensor]) -> None:
    for a, b in zip(run(one, inputs), run(other, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@SOME
@given(TOKENS, st.integers(0, 12), st.integers(0, 9))
def test_merging_disjoint_sets_by_log_sum_exp_is_one_softmax(tokens: int, split: int, seed: int) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v)
    parts = [
        f"(j <= i) & (j < {split})",
        f"(j <= i) & (j >= {split}) & (j % 2 == 0)",
        f"(j <= i) & (j >= {split}) & (j % 2 == 1)",
    ]
    merged = ir.merge(*(ir.attend(q, memory, ir.mask(memory, where=part)) for part in parts), fn="lse")
    joint = ir.attend(q, memory, ir.mask(memory, where="j <= i"))
    same(variant("merged", [merged, ir.lse(merged)]), variant("joint", [joint, ir.lse(joint)]), sample(tokens, seed))


@SOME
@given(TOKENS, st.integers(0, 9))
def test_chunks_weighted_by_the_softmax_of_their_log_sum_exps_are_one_softmax(tokens: int, seed: int) -> None:
    q, k, v = qkv()
    memory, count = ir.tokens(k, v, chunk=CHUNK), -(-tokens // CHUNK)
    lists = ir.given(ir.input("lists", f"B TQ H {count}", "int32"), size=CHUNK, scope="head")
    apart = ir.attend(q, memory, lists, weights=ir.input("w", f"B TQ H {count}"), per="chunk")
    joint = ir.attend(q, memory, lists)
    x = sample(tokens, seed)
    x["lists"] = torch.rand(2, tokens, 4, count).argsort(-1).to(torch.int32)
    single = ir.attend(q, memory, ir.given(ir.input("one", "B TQ H 1", "int32"), size=CHUNK, scope="head"))
    each = [{**x, "one": x["lists"][..., n : n + 1]} for n in range(count)]
    lses = [run(variant("lse", ir.lse(single)), {n: y[n] for n in ("q", "k", "v", "one")})[0] for y in each]
    weights = torch.softmax(torch.stack(lses, -1), -1)
    torch.testing.assert_close(run(variant("apart", apart), {**x, "w": weights})[0], run(variant("joint", joint), x)[0])


@SOME
@given(TOKENS, st.integers(0, 9))
def test_a_sink_of_zero_is_a_logit_of_zero_and_an_empty_slot(tokens: int, seed: int) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v)
    near = ir.mask(memory, where="(j < i) & (i - j < 4)")
    zero, given_sink = (ir.attend(q, memory, near, sink=sink) for sink in ("zero", ir.input("sink", "H")))
    slot = ir.attend(q, ir.slots(ir.input("sk", "1 HKV D"), ir.input("sv", "1 HKV DV")))
    merged = ir.merge(ir.attend(q, memory, near), slot, fn="lse")
    x = sample(tokens, seed)
    wanted = run(variant("zero", [zero, ir.lse(zero)]), x)
    others = {"sink": torch.zeros(4)}, {"sk": torch.zeros(1, 2, 4), "sv": torch.zeros(1, 2, 3)}
    for other, more in zip((given_sink, merged), others, strict=True):
        for a, b in zip(run(variant("other", [other, ir.lse(other)]), x | more), wanted, strict=True):
            torch.testing.assert_close(a, b)
    assert bool((wanted[0][:, 0] == 0).all() and (wanted[1][:, 0] == 0).all())


@SOME
@given(TOKENS, st.integers(0, 9))
def test_moba_with_every_block_is_full_attention(tokens: int, seed: int) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    causal = ir.mask(memory, where="j <= i")
    scores = ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK), scale=1.0, detach=True)
    forced = f"c == i // {CHUNK}"
    chosen = ir.topk(scores, k=4, size=CHUNK, scope="head", eligible="started", forced=forced)
    same(
        variant("moba", ir.attend(q, memory, chosen, causal)),
        variant("full", ir.attend(q, memory, causal)),
        sample(tokens, seed),
    )


def test_a_list_without_a_mask_does_not_look_inside_its_chunks() -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    scores = ir.reduce(ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK)), over="group", op="mean")
    chosen = ir.topk(scores, k=2, size=CHUNK, eligible="complete_past", order="newest")
    weights = ir.weights(scores, chosen, fn="stick")
    of = variant("hsa", ir.attend(q, memory, chosen, weights=weights, per="chunk"))
    x = sample(12)
    shuffled = torch.cat([CHUNK * c + torch.randperm(CHUNK) for c in range(4)])
    moved = {"q": x["q"], "k": x["k"][:, shuffled], "v": x["v"][:, shuffled]}
    torch.testing.assert_close(run(of, moved)[0], run(of, x)[0])


@pytest.mark.parametrize(("size", "stride", "block"), [(32, 16, 64), (4, 2, 4), (3, 3, 6), (8, 2, 4)])
def test_nsa_importance_counts_the_strides_that_a_summary_shares_with_a_block(
    size: int, stride: int, block: int
) -> None:
    tokens = 3 * block + stride + 1
    q, k, v = qkv()
    short = ir.summary(ir.tokens(k, v), size=size, stride=stride)
    seen = f"c * {stride} + {size - 1} <= i"
    shares = ir.reduce(ir.score(q, short), over="group", op="sum", pre="softmax", visible=seen)
    worth = ir.reduce(shares, over="overlap", size=size, stride=stride, block=block)
    x = sample(tokens)
    x["q"] = x["q"][:, -3:]
    p, found = run(variant("nsa", [shares, worth]), x)
    starts = torch.arange(p.shape[-1]) * stride
    for j in range(-(-tokens // block)):
        first = torch.maximum(starts, torch.tensor(j * block))
        last = torch.minimum(starts + size, torch.tensor((j + 1) * block))
        torch.testing.assert_close(found[..., j], (p * (last - first).clamp(min=0) / stride).sum(-1))


def test_softmax_weights_over_one_chunk_are_plain_attention_to_it() -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    scores = ir.reduce(ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK)), over="group")
    chosen = ir.topk(scores, k=1, size=CHUNK, eligible="complete_past")
    apart = ir.attend(q, memory, chosen, weights=ir.weights(scores, chosen), per="chunk")
    same(variant("apart", apart), variant("joint", ir.attend(q, memory, chosen)), sample(10))


@pytest.mark.parametrize("causal", [False, True])
def test_full_attention_is_torchs(causal: bool) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v)
    of = variant("full", ir.attend(q, memory, *([ir.mask(memory, where="j <= i")] if causal else [])))
    x = sample(9)
    q_, k_, v_ = (x[name].transpose(1, 2) for name in "qkv")
    wanted = torch.nn.functional.scaled_dot_product_attention(q_, k_, v_, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(run(of, x)[0], wanted.transpose(1, 2))
    torch.testing.assert_close(oracle(of, x), wanted.transpose(1, 2))


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_queries_of_a_block_share_the_list_of_its_first(form: str) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    scores = ir.reduce(ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK)), over="group")
    lists = [ir.topk(scores, k=2, size=CHUNK, eligible="complete_past", query_block=n) for n in (1, 4)]
    x = sample(11)
    single, shared = (oracle(variant("list", chosen), x, form=form) for chosen in lists)  # type: ignore[call-overload]
    assert torch.equal(shared, single[:, torch.arange(11) // 4 * 4]) and not torch.equal(shared, single)


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_one_question_asks_once(form: str) -> None:
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    every = ir.reduce(ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK), fn="cosine"), over="heads", op="mean")
    asked = ir.reduce(every, over="queries", op="max")
    chosen = ir.topk(asked, k=2, size=CHUNK, scope="query_set")
    x = sample(11)
    of = variant("msa", [asked, chosen, ir.attend(q, memory, chosen)])
    score, ids, o = oracle(of, x, form=form)  # type: ignore[call-overload]
    q_, k_, v_ = (x[name] for name in "qkv")
    means = torch.stack([c.mean(1) for c in k_.repeat_interleave(2, 2).split(CHUNK, dim=1)], 1)
    cosine = torch.cosine_similarity(q_[:, :, None], means[:, None], dim=-1).mean(-1).amax(1)
    torch.testing.assert_close(score[:, 0, 0], cosine * 0.5)
    assert torch.equal(ids[:, 0, 0], cosine.topk(2).indices)
    joint = torch.isin(torch.arange(11) // CHUNK, ids[0, 0, 0])
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q_[:1].transpose(1, 2), k_[:1, joint].transpose(1, 2), v_[:1, joint].transpose(1, 2), enable_gqa=True
    )
    torch.testing.assert_close(o[:1], wanted.transpose(1, 2))
