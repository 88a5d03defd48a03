"""The quick form of every row operation equals the loop over tokens, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.oracle import loop, vector
from sparsec.oracle.selection import Choice

B, R, DIM, VALUES = 2, 3, 4, 5
FORMS: tuple[Any, Any] = (loop, vector)
ROW = settings(max_examples=25)


def numbers(seed: int) -> Callable[..., Tensor]:
    """Random fp64 tensors with gradients."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def agree(forms: Sequence[Any], run: Callable[[Any], Tensor | Sequence[Tensor]], leaves: Sequence[Tensor]) -> None:
    """Equal results of both forms and equal gradients of a weighted sum of them."""
    results = [run(form) for form in forms]
    slow, quick = ([x] if isinstance(x, Tensor) else list(x) for x in results)
    for a, b in zip(slow, quick, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(slow, leaves), gradients(quick, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of Σ cos(n) · result[n], leaving out elements that are not finite."""
    finite = [x[x.isfinite()] for x in results]
    total = sum(((x * torch.arange(x.numel()).cos()).sum() for x in finite), torch.zeros(()))
    if not total.requires_grad or not leaves:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(total, list(leaves), retain_graph=True, allow_unused=True, materialize_grads=True)


@st.composite
def attention(draw: st.DrawFn) -> dict[str, Any]:
    """Scores, values, a visibility with empty rows, lists with holes."""
    kv_heads, group, keys, size = (draw(st.integers(1, n)) for n in (2, 3, 9, 4))
    heads, chunks = kv_heads * group, -(-keys // size)
    make = numbers(draw(st.integers(0, 99)))
    lists = draw(st.sampled_from([1, kv_heads, heads]))
    order = torch.rand(B * R * lists, chunks, generator=torch.Generator().manual_seed(4)).argsort(-1)
    ids = torch.where(torch.rand(order.shape, generator=torch.Generator().manual_seed(5)) < 0.3, -1, order)
    return {
        "q": make(B, R, heads, DIM),
        "k": make(B, keys, kv_heads, DIM),
        "v": make(B, keys, kv_heads, VALUES),
        "visible": make(B, R, heads, keys) > draw(st.sampled_from([-9.0, 0.0, 1.0])),
        "sink": draw(st.sampled_from([None, make(heads)])),
        "ids": ids.reshape(B, R, lists, chunks),
        "weights": make(B, R, lists, chunks),
        "size": size,
    }


def leaves(case: dict[str, Any], *names: str) -> list[Tensor]:
    """The tensors of a case that are there."""
    return [case[name] for name in names if case[name] is not None]


@ROW
@given(attention())
def test_attend(case: dict[str, Any]) -> None:
    rest = case["v"], case["visible"], case["sink"]
    agree(FORMS, lambda form: form.attend(form.dot(case["q"], case["k"]), *rest), leaves(case, "q", "k", "v", "sink"))


@ROW
@given(attention())
def test_attend_chunks(case: dict[str, Any]) -> None:
    rest = [case[name] for name in ("v", "visible", "ids", "weights", "size", "sink")]
    run = leaves(case, "q", "k", "v", "weights", "sink")
    agree(FORMS, lambda form: form.attend_chunks(form.dot(case["q"], case["k"]), *rest), run)


@ROW
@given(attention())
def test_members_softmax_and_other_scores(case: dict[str, Any]) -> None:
    q, k, visible = case["q"], case["k"], case["visible"]
    slow, quick = (form.members(case["ids"], case["size"], k.shape[1], q.shape[2]) for form in FORMS)
    assert torch.equal(slow, quick)
    agree(FORMS, lambda form: form.cosine(q, k), [q, k])
    agree(FORMS, lambda form: form.softmax(form.dot(q, k), visible), [q, k])
    agree(FORMS, lambda form: form.indexer(q, k[:, :, :1], q[..., 0]), [q, k])


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(("summaries", "blocks"), [(0, 1), (1, 1), (7, 2), (11, 3)])
def test_reductions(op: str, literal: bool, summaries: int, blocks: int) -> None:
    score = numbers(3)(B, R, 6, summaries)
    holes = score.detach().masked_fill(score > 1, -torch.inf).requires_grad_()
    agree(FORMS, lambda form: form.overlap(score, blocks, 8, 4, 16, literal), [score])
    agree(FORMS, lambda form: form.pool(score, blocks, 5, 4, 1, op), [score])
    agree(FORMS, lambda form: form.pool(holes, blocks, 5, 4, 1, op), [])
    if summaries:
        agree(FORMS, lambda form: form.reduce_heads(score, 2, op), [score])


@ROW
@given(
    count=st.integers(0, 7),
    k=st.integers(1, 5),
    more=st.integers(0, 3),
    counted=st.booleans(),
    order=st.sampled_from(["score", "newest", "oldest"]),
    seed=st.integers(0, 99),
)
def test_choose_and_weigh(count: int, k: int, more: int, counted: bool, order: Any, seed: int) -> None:
    make = numbers(seed)
    score = (make(B, R, 2, count) * 2).round() / 2  # many ties
    eligible, forced = make(B, R, 2, count) > -0.7, make(B, R, 2, count) > 0.7
    choice = Choice(k, k + more, counted, order)
    slow, quick = (form.choose(score, eligible, forced, choice) for form in FORMS)
    assert torch.equal(slow, quick)
    free = make(B, R, 2, count)
    for fn in ("softmax", "softmax_sink", "stick", "raw", "sigmoid"):
        agree(FORMS, partial(call_weigh, free, slow, fn), [free])


def call_weigh(score: Tensor, ids: Tensor, fn: str, form: Any) -> Tensor:
    """The form's weights."""
    weights: Tensor = form.weigh(score, ids, fn)
    return weights


def test_a_key_that_is_not_visible_may_be_anything() -> None:
    make = numbers(0)
    score, v = make(1, 1, 1, 4), make(1, 4, 1, 2).detach()
    v[0, 3], v[0, 2, 0, 0] = torch.nan, torch.inf
    for last in (2, 3, 4):
        visible = torch.arange(4).expand(1, 1, 1, 4) < last
        slow, quick = (form.attend(score, v, visible, None)[0] for form in FORMS)
        torch.testing.assert_close(slow, quick, equal_nan=True)
        assert bool(slow.isfinite().all()) is (last == 2)
