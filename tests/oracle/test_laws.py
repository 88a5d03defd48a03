"""Laws of every preset: both forms agree, the future is unseen, the unseen is unread, heads and batches are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.ir.dims import value
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.runtime.inputs import inputs

HSA: dict[str, Any] = {"chunk": 3, "k": 2, "landmark": "mean", "retrieval": "group_mean"}
NSA: dict[str, Any] = {"block": 4, "k": 4, "size": 4, "stride": 2, "window": 3}
TOKENS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "full with a sink": ("full", {"sink": "given", "softcap": 1.5}),
    "streaming": ("streaming", {"window": 4, "sinks": 2}),
    "msa": ("msa", {"pattern": "dilated+log_sparse", "window": 2, "slots": 3}),
    "msa, gated": (
        "msa",
        {"pattern": "strided+global", "stride": 3, "global_tokens": 2, "slots": 2, "slot_softmax": "gated"},
    ),
    "longformer": ("longformer", {"window": 3, "global_tokens": 2, "dilation": 2, "dilated_heads": 1}),
    "bigbird": ("bigbird", {"block": 2, "window_blocks": 2, "global_blocks": 1, "random_blocks": 1}),
    "hsa": ("hsa", HSA),
    "hsa, softmax": ("hsa", {**HSA, "weights": "softmax", "sink": "zero", "window": 4, "outside_window": True}),
    "hsa, given": ("hsa", {"chunk": 3, "k": 2, "window": 3, "merge": "sum"}),
    "nsa": ("nsa", NSA),
    "nsa, literal": ("nsa", {**NSA, "importance": "paper_literal", "kv": "separate"}),
    "moba": ("moba", {"block": 3, "k": 2}),
    "infllm2": ("infllm2", {"block": 4, "k": 4, "size": 4, "stride": 2, "window": 4}),
    "infllm2, forced apart": (
        "infllm2",
        {"block": 4, "k": 1, "size": 4, "stride": 2, "window": 4, "count_forced": False},
    ),
}
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "gdn": ("gdn", {}),
    "sse": ("sse", {"parts": 3, "k": 2}),
    "rsa": ("rsa", {"parts": 2, "branching": 2, "routing": "tree"}),
}
SIZES = {"B": 2, "H": 4, "HKV": 2, "D": 3, "DV": 3, "DR": 3}
APART = ("longformer", "bigbird")  # these give a head a pattern by its number
FEW = settings(max_examples=4)
every = pytest.mark.parametrize("name", [*TOKENS, *STATES])


def declared(name: str) -> Variant:
    kind, knobs = (TOKENS | STATES)[name]
    return preset(kind, **knobs)


def sample(of: Variant, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Random fp64 inputs of as many tokens."""
    names = {str(dim) for spec in of.inputs.values() for dim in spec.shape}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return inputs(of, dtype="float64", seed=seed, T=tokens, **sizes)  # type: ignore[arg-type]


def resized(
    of: Variant, given: dict[str, Tensor], dims: dict[str, int], resize: Callable[[Tensor, int, int], Tensor]
) -> dict[str, Tensor]:
    """Inputs under other lengths: `resize(x, dim, size)` is asked for wherever a dim changes with them."""
    done = dict(given)
    for name, spec in of.inputs.items():
        for dim, expr in enumerate(spec.shape):
            size = value(expr, {**SIZES, "DX": 16, **dims})
            done[name] = resize(done[name], dim, size) if size != done[name].shape[dim] else done[name]
    return done


def run(of: Variant, given: dict[str, Tensor], form: str = "vector", q_offset: int | None = None) -> Tensor:
    done = oracle(of, given, form=form, q_offset=q_offset)  # type: ignore[call-overload]
    assert isinstance(done, Tensor)
    return done


@every
@FEW
@given(tokens=st.integers(1, 17), seed=st.integers(0, 99))
def test_both_forms_agree(name: str, tokens: int, seed: int) -> None:
    of = declared(name)
    x = sample(of, tokens, seed)
    torch.testing.assert_close(run(of, x, "loop"), run(of, x), rtol=1e-10, atol=1e-10)


@every
@FEW
@given(tokens=st.integers(2, 23), data=st.data())
def test_a_prefix_gives_a_prefix(name: str, tokens: int, data: st.DataObject) -> None:
    of, fewer = declared(name), data.draw(st.integers(1, tokens - 1))
    x = sample(of, tokens)
    short = resized(of, x, dict.fromkeys(("T", "TQ", "TK"), fewer), lambda y, dim, size: y.narrow(dim, 0, size))
    torch.testing.assert_close(run(of, short, q_offset=0), run(of, x)[:, :fewer])


@pytest.mark.parametrize("name", TOKENS)
@FEW
@given(tokens=st.integers(1, 13), more=st.integers(1, 9))
def test_keys_that_nobody_sees_change_nothing(name: str, tokens: int, more: int) -> None:
    of = declared(name)
    x = sample(of, tokens)

    def pad(y: Tensor, dim: int, size: int) -> Tensor:
        shape = [*y.shape[:dim], size - y.shape[dim], *y.shape[dim + 1 :]]
        return torch.cat([y, torch.full(shape, torch.nan, dtype=y.dtype)], dim)

    padded = resized(of, x, {"TQ": tokens, "TK": tokens + more}, pad)
    torch.testing.assert_close(run(of, padded, q_offset=0), run(of, x))


@every
def test_batch_entries_are_apart(name: str) -> None:
    of = declared(name)
    x = sample(of, 11)
    swapped = {n: y.flip(0) if str(of.inputs[n].shape[0]) == "B" else y for n, y in x.items()}
    torch.testing.assert_close(run(of, swapped), run(of, x).flip(0))


@pytest.mark.parametrize("name", [name for name in [*TOKENS, *STATES] if name not in APART])
def test_heads_are_apart(name: str) -> None:
    of = declared(name)
    x = sample(of, 11)
    order = {"H": [3, 2, 0, 1], "HKV": [1, 0]}  # the groups change places, and the heads inside one of them
    moved = dict(x)
    for n, spec in of.inputs.items():
        for dim, expr in enumerate(spec.shape):
            if str(expr) in order:
                moved[n] = moved[n].index_select(dim, torch.tensor(order[str(expr)]))
    torch.testing.assert_close(run(of, moved), run(of, x)[:, :, order["H"]])
