"""Prefill then steps equals one forward: every variant with a decode step, bit for bit; others say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.error import check
from sparsec.oracle.gap import same_selection
from sparsec.oracle.truth import oracle
from sparsec.oracle.values import Chosen
from sparsec.runtime.compiled import compile
from sparsec.runtime.decode.pages import Pool
from sparsec.testing.inputs.variants import EVERY, small
from sparsec.testing.whole.decoding import LENGTH, STEPS, at, decoded, draw, forward

REFUSED = (
    "full-everywhere", "longformer-dilated", "bigbird-everywhere", "open", "open-chunks", "head-weights", "mixed",
    "other-names", "pooled-means", "shares-of-all", "straight", "kl-chunks", "dsa-kl", "dsa-warm", "minimax-kl",
    "evermind", "evermind-dot", "nsa-shared-lists",
)  # fmt: skip
DECODED = tuple(name for name in EVERY if name not in REFUSED)


@pytest.mark.parametrize("name", DECODED)
def test_prefill_then_steps_equals_one_forward(name: str) -> None:
    made = compile(small(name), "interpreter")
    inputs = draw(small(name), LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    for one, other in zip(decoded(made, cache, inputs, STEPS), forward(made, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("streaming", "bfloat16"),
        ("hsa", "float16"),
        ("nsa", "bfloat16"),
        ("moba", "bfloat16"),
        ("documents", "float16"),
    ],
)
def test_in_half_precision_too(name: str, dtype: str) -> None:
    made = compile(small(name), "interpreter")
    inputs = draw(small(name), LENGTH, dtype=dtype)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    for one, other in zip(decoded(made, cache, inputs, STEPS), forward(made, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name",
    ["streaming", "full-softcap-sink", "msa-window", "hsa", "hsa-softmax-sink", "nsa", "nsa-separate-literal", "moba",
     "infllm2-free", "dsa", "fox", "msa-strided-gated", "joined", "alibi-lse", "documents", "given-weights",
     "straight-weights", "weighted"],
)  # fmt: skip
def test_steps_agree_with_the_oracle(name: str) -> None:
    """Under the schedules of steps, which need not be the forward's."""
    variant = small(name)
    made, inputs = compile(variant, "interpreter"), draw(variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=False)
    truth = oracle(variant, inputs, form="vector")
    for one, other in zip(
        decoded(made, cache, inputs, STEPS), truth if isinstance(truth, tuple) else (truth,), strict=True
    ):
        verdict = check(one, other, "float32", "o")
        assert verdict, verdict.sentence


SUMMED = """variant summed(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], f: [B, T, H] float32) {
  memory = tokens(k, v)
  faded = prefix(f) {fn = log_sigmoid(x0)}
  near = mask(memory) {where = (j <= i) & (i - j < 8 * (h + 1))}
  return attend(q, memory, near, faded=faded) {bias = score + faded[b, i, h] - faded[b, j, h]}
}"""


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_summed_up_is_kept_where_queries_and_keys_have_one_length(deterministic: bool) -> None:
    made = compile(sparsec.parse(SUMMED), "interpreter")
    inputs = draw(made.variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=deterministic)
    truth = oracle(made.variant, inputs, form="vector")
    assert isinstance(truth, torch.Tensor)
    verdict = check(decoded(made, cache, inputs, STEPS)[0], truth, "float32", "o")
    assert verdict, verdict.sentence


def listing(name: str) -> Variant:
    """A variant that returns its list beside its output."""
    variant = small(name)
    return variant.with_outputs((*variant.outputs, next(n for n in variant.nodes if n.op is Op.TOPK)))


@pytest.mark.parametrize("name", ["hsa", "hsa-mean", "nsa", "moba", "infllm2-free", "dsa"])
def test_steps_choose_what_the_oracle_chooses(name: str) -> None:
    """But where the gap between the last chosen and the next score is below 4 ulp."""
    variant = listing(name)
    made, inputs = compile(variant, "interpreter"), draw(variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, deterministic=False)
    _, ids = decoded(made, cache, inputs, [47, *[1] * 20])
    _, values = oracle(variant, inputs, form="vector", return_all=True)
    chosen = next(v for v in values.values() if isinstance(v, Chosen))
    assert bool(same_selection(ids, chosen, ulps=4).all())


@pytest.mark.parametrize("name", ["hsa", "hsa-mean", "moba"])
def test_ties_go_to_the_lowest_index(name: str) -> None:
    """Scores of small whole numbers are exact, so that every path must list the same."""
    variant = listing(name)
    made, inputs = compile(variant, "interpreter"), draw(variant, LENGTH)
    inputs = {n: x.clamp(-1, 1).round() if x.is_floating_point() else x for n, x in inputs.items()}
    named: dict[str, Any] = dict(inputs)
    expected = made(None, **named)[1]
    for deterministic in (True, False):
        cache = made.init_cache(2, 96, page=16, deterministic=deterministic)
        assert torch.equal(decoded(made, cache, inputs, [47, *[1] * 20])[1], expected)


@pytest.mark.parametrize("name", ["hsa", "nsa"])
def test_on_the_cpu(name: str, tmp_path: Path) -> None:
    made = compile(small(name), "cpu", tmp_path)
    inputs = draw(small(name), LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    for one, other in zip(decoded(made, cache, inputs, STEPS), forward(made, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_decode_step_says_so(name: str) -> None:
    with pytest.raises(DeclarationError, match="a decode step reads only what no later token can change"):
        compile(small(name), "interpreter").init_cache(1, 64)


def test_tokens_that_do_not_fit() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH)
    cache = made.init_cache(2, 64)
    good = at(made, inputs, 0, 20)
    for wrong, words in (
        ({**good, "k": good["k"][:, :3]}, "3 new tokens"),
        ({**good, "l": good["l"][:, :0]}, "complete 1 chunks of 16 tokens"),
        ({n: x for n, x in good.items() if n != "v"}, "missing"),
        ({**good, "z": good["q"]}, "not an input"),
        ({**good, "q": good["q"].half()}, "one dtype"),
        ({n: x[:1] for n, x in good.items()}, "2 sequences"),
        ({**good, "k": good["k"][..., :8]}, "D"),
    ):
        with pytest.raises(InputError, match=words):
            made.decode(cache, **wrong)
    assert cache.known_lengths == (0, 0)
    with pytest.raises(InputError, match="was made for 64 tokens"):
        made.decode(cache, **at(made, inputs, 0, 67))
    with pytest.raises(InputError, match="whole numbers"):
        made.init_cache(2, 0)
    with pytest.raises(InputError, match="a page holds whole chunks"):
        made.init_cache(2, 64, pool=Pool(8, 24))


def test_rows_of_chunks_may_be_left_out() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH)
    cache = made.init_cache(2, 64, deterministic=True)
    first = {n: x for n, x in at(made, inputs, 0, 5).items() if n != "l"}
    out = made.decode(cache, **first)
    assert isinstance(out, torch.Tensor) and out.shape[1] == 5


def test_one_length_for_both_is_split() -> None:
    text = """
variant layer(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]) {
  memory = tokens(k, v)
  return attend(q, memory, mask(memory) {where = (j <= i) & (i - j < 24)})
}
"""
    variant = sparsec.parse(text)
    made, inputs = compile(variant, "interpreter"), draw(variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    assert torch.equal(decoded(made, cache, inputs, STEPS)[0], forward(made, inputs)[0])
