"""The cache specification against the oracle: steps on what the cache keeps equal one forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sparsec
from sparsec.ir.error import DeclarationError
from sparsec.ir.lengths import lengths
from sparsec.ir.variant import Variant
from sparsec.oracle.replay import replay
from sparsec.oracle.truth import oracle
from sparsec.passes.pipeline import run
from sparsec.passes.stream import Streamed, stream
from sparsec.testing.inputs.variants import EVERY, small

REFUSED = {
    "full-everywhere": "keys after the query's own",
    "longformer-dilated": "keys after the query's own",
    "bigbird-everywhere": "reads TK",
    "open": "keys after the query's own",
    "open-chunks": "not complete",
    "head-weights": "not complete",
    "mixed": "not complete",
    "other-names": "reads S",
    "pooled-means": "windows that exist",
    "shares-of-all": "not complete",
    "straight": "not complete",
    "kl-chunks": "not complete",
    "dsa-kl": "a training signal",
    "dsa-warm": "a training signal",
    "minimax-kl": "a training signal",
    "nsa-shared-lists": "shares a list",
    "evermind": "shares a list",
    "evermind-dot": "shares a list",
}
"""Variants whose rows change as tokens come, and what the refusal says."""

DECODED = tuple(name for name in EVERY if name not in REFUSED)
LENGTH = 67


def draw(variant: Variant, length: int, **dims: int) -> dict[str, torch.Tensor]:
    """Inputs with as many queries as keys."""
    sizes = {"H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16, "DI": 16, **dims}
    known = {n: s for n, s in sizes.items() if n in str([str(x) for x in variant.inputs.values()])}
    return sparsec.inputs(variant, dtype="float32", device="cpu", seed=0, T=length, **known)


def truth(variant: Variant, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    found = oracle(variant, inputs, form="vector")
    return found if isinstance(found, tuple) else (found,)


def rows(streamed: Streamed) -> dict[str, tuple[int | None, int, int]]:
    return {k.name: (k.window, k.sinks, k.unit) for k in streamed.spec.kept}


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("steps", [[40, *[1] * 27], [1, 16, 7, 24, 19], [LENGTH]], ids=["one", "several", "all"])
def test_steps_on_what_the_cache_keeps_equal_the_forward(name: str, steps: list[int]) -> None:
    variant = run(small(name))
    inputs = draw(variant, LENGTH)
    found = replay(variant, inputs, steps, rows(stream(variant)))
    for one, other in zip(found, truth(variant, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "name", ["streaming", "longformer", "alibi-lse", "nsa-separate-literal", "msa-dilated-carried"]
)
def test_one_row_less_is_seen(name: str) -> None:
    """The rings are no longer than they must be."""
    variant = run(small(name))
    inputs = draw(variant, LENGTH)
    exact = rows(stream(variant))
    rings = [n for n, (window, _, _) in exact.items() if window is not None and n.startswith("k")]
    assert rings
    for ring in rings:
        window, sinks, unit = exact[ring]
        assert window is not None
        # A summary's tail is as long as its window; what is settled is never read again.
        short = exact | {ring: (window - (5 if "cmp" in ring else 1), sinks, unit)}
        found = replay(variant, inputs, [1] * LENGTH, short)
        if "dilated" not in name:
            assert not torch.allclose(found[0], truth(variant, inputs)[0], rtol=1e-6), ring


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_reads_the_future_is_refused_with_a_sentence(name: str, why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        stream(run(small(name)))


@pytest.mark.parametrize("name", ["open", "full-everywhere", "head-weights", "mixed", "pooled-means", "shares-of-all"])
def test_refused_variants_do_change(name: str) -> None:
    """A refusal that protects nothing would be a loss: here a step would differ from the forward."""
    variant = run(small(name))
    inputs = draw(variant, LENGTH)
    found = replay(variant, inputs, [40, *[1] * 27], {n: (None, 0, 1) for n in inputs if n in ("k", "v")})
    assert not torch.allclose(found[0], truth(variant, inputs)[0], rtol=1e-6)


def test_one_length_becomes_two() -> None:
    text = """
variant layer(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], l: [B, (T + 15) // 16, HKV, D]) {
  memory = tokens(k, v) {chunk = 16}
  grouped = reduce(score(q, l)) {over = group, op = sum}
  chosen = topk(grouped) {k = 2, size = 16, eligible = 16 * c + 16 <= i}
  return attend(q, memory, chosen)
}
"""
    streamed = stream(run(sparsec.parse(text)))
    shapes = {name: str(spec.shape[1]) for name, spec in streamed.variant.inputs.items()}
    assert shapes == {"q": "TQ", "k": "TK", "v": "TK", "l": "(TK + 15) // 16"}
    assert (streamed.queries, streamed.keys) == ("TQ", "TK")
    assert lengths(streamed.variant).key_names == {"TK"}


def test_the_spec_prints_with_its_bytes() -> None:
    spec = stream(run(small("hsa"))).spec
    assert "l: pages, DR * HKV float per 16 tokens" in spec.text()
    dims = {"HKV": 2, "D": 16, "DV": 16, "DR": 16}
    assert spec.nbytes(dims, 1600) == 1600 * 2 * 2 * 32 + 100 * 2 * 2 * 16
    ring = stream(run(small("streaming"))).spec
    assert ring.steady and ring.nbytes(dims, 10) == ring.nbytes(dims, 10**6) == 27 * 2 * 2 * 32


def test_a_predicate_on_the_length_is_refused_even_where_it_is_bounded() -> None:
    variant = small("streaming")
    assert replace(variant, name="other").name == "other"
    text = variant.text().replace("i - j < 24", "i - j < TK")
    with pytest.raises(DeclarationError, match="reads TK"):
        stream(run(sparsec.parse(text)))
