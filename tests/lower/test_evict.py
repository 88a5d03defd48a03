"""A cache of fixed size beside a linear state: LoLA's kernels give what a loop over its three memories gives."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.error import DeclarationError
from sparsec.oracle import check, oracle
from sparsec.testing.whole.packed import packed_case, results
from sparsec.testing.whole.trained import wrong_on

WINDOW, KEEP, CHUNK = 8, 3, 4
KNOBS: dict[str, Any] = {"window": WINDOW, "keep": KEEP, "chunk": CHUNK}
SIZES: dict[str, Any] = {"B": 2, "H": 4, "HKV": 2, "D": 16, "DV": 16, "F": 16}


def drawn(length: int = 33, dtype: str = "float32") -> dict[str, Tensor]:
    return sparsec.inputs(sparsec.preset("lola", **KNOBS), dtype=dtype, T=length, **SIZES)


def truth(x: dict[str, Tensor]) -> Tensor:
    """Window, cache and state of every head, chunk by chunk, in fp64."""
    q, k, v, fq, fk = (x[name].double() for name in ("q", "k", "v", "fq", "fk"))
    o = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b, h in ((b, h) for b in range(q.shape[0]) for h in range(q.shape[2])):
        at = h * k.shape[2] // q.shape[2]
        one_head(q[b, :, h], k[b, :, at], v[b, :, at], fq[b, :, h], fk[b, :, at], o[b, :, h])
    return o


def one_head(q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, o: Tensor) -> None:
    state, mass, cache = torch.zeros(fk.shape[1], v.shape[1]).double(), torch.zeros(fk.shape[1]).double(), list[int]()
    for start in range(0, len(q), CHUNK):
        gone = range(start - WINDOW - CHUNK, start - WINDOW)
        if gone.start >= 0:
            known = (fk @ state) / (fk @ mass).clamp(min=1e-300)[:, None]
            error = (known - v).square().sum(-1)
            ranked = sorted([*cache, *gone], key=lambda t: -float(error[t]))
            cache = ranked[:KEEP]
            for t in ranked[KEEP:]:
                state, mass = state + torch.outer(fk[t], v[t]), mass + fk[t]
        for i in range(start, min(start + CHUNK, len(q))):
            seen = [*cache, *range(max(start - WINDOW, 0), i + 1)]
            weights = torch.exp(q.shape[1] ** -0.5 * (k[seen] @ q[i]))
            o[i] = (weights @ v[seen] + fq[i] @ state) / (weights.sum() + fq[i] @ mass)


@pytest.mark.parametrize("form", ["loop", "vector"])
def test_the_oracle_is_three_memories(form: Literal["loop", "vector"]) -> None:
    x = drawn()
    torch.testing.assert_close(oracle(sparsec.preset("lola", **KNOBS), x, form=form), truth(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs(dtype: str) -> None:
    x = drawn(30, dtype)
    found = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")(**x)
    assert isinstance(found, Tensor) and check(found, truth(x), dtype)


@pytest.mark.parametrize("offset", [3, 13])
def test_queries_that_begin_later(offset: int) -> None:
    x = drawn(18)
    call = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")
    found, right = call(offset, **x), oracle(call.variant, x, q_offset=offset)
    assert isinstance(found, Tensor) and isinstance(right, Tensor) and check(found, right, "float32")


def test_the_state_is_read_on_the_way() -> None:
    """In time that is linear in the tokens; where gradients need the scores, tile by tile."""
    call = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")
    dims, dtype = call.bind(drawn())
    assert [type(k.spec).__name__ for k in call.plan(dims, dtype).kernels].count("TiledAttention") == 1
    halves = call.training.joint(dims, dtype, ("q", "fq")).split
    assert [type(k.spec).__name__ for k in halves.forward.kernels].count("TiledAttention") == 2


def test_gradients_take_the_choice_as_it_is() -> None:
    made = sparsec.preset("lola", features="elu", **KNOBS)
    x = sparsec.inputs(made, B=1, T=19, H=2, HKV=1, D=16, DV=16)
    assert wrong_on(sparsec.compile(made, target="interpreter"), x, "float32") == []


def test_packed_documents_have_memories_of_their_own() -> None:
    call = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")
    case = packed_case(call.variant, (3, 0, 21), (3, 0, 21), F=16)
    (found,) = results(call, **case.packed, **case.ends)
    alone = [results(call, **document)[0][0] for document in case.documents]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=0)


def test_a_cache_that_holds_everything_is_softmax_attention() -> None:
    x = {n: t.double() for n, t in drawn(21).items()}
    full = oracle(sparsec.preset("full"), {n: x[n] for n in "qkv"})
    for knobs in (KNOBS | {"keep": 21}, KNOBS | {"window": 24}):
        torch.testing.assert_close(oracle(sparsec.preset("lola", **knobs), x), full)


def test_equal_errors_keep_the_lower_token() -> None:
    """An empty state recalls nothing of the first chunk: errors are the lengths of its values, which are equal here."""
    x = drawn(16)
    x["v"] = x["v"].sign()
    call = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")
    found, left = call(**x), oracle(call.variant, x, return_all=True)[1]["left"]
    assert isinstance(left, Tensor) and (left[:, :CHUNK] == 0).nonzero()[:, 1].tolist() == [KEEP] * 4
    assert isinstance(found, Tensor) and check(found, truth(x), "float32")


def test_refusals() -> None:
    with pytest.raises(DeclarationError, match=r"window = 100.*chunks of 64"):
        sparsec.preset("lola", window=100)
    with pytest.raises(DeclarationError, match=r"size = 0.*at least 1"):
        sparsec.preset("lola", chunk=0)
    made = sparsec.preset("lola")
    exact = made.with_outputs([made.outputs[0].src[0]])
    with pytest.raises(DeclarationError, match="give features as inputs, or as maps"):
        sparsec.compile(exact, target="interpreter").init_cache(1)
