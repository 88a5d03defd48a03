"""Prefill then steps equals one forward: every variant with a decode step, bit for bit, on pages, rings and pools."""

from __future__ import annotations

from collections.abc import Sequence
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
from sparsec.oracle.truth import oracle, oracle_rows
from sparsec.oracle.values import Chosen
from sparsec.runtime.cache_state import Cache
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.pages import Pool, ring_table
from sparsec.testing.variants import EVERY, small

REFUSED = (
    "full-everywhere", "longformer-dilated", "bigbird-everywhere", "open", "open-chunks", "head-weights", "mixed",
    "other-names", "pooled-means", "shares-of-all", "straight", "kl-chunks", "dsa-kl", "minimax-kl",
    "evermind", "evermind-dot",
)  # fmt: skip
DECODED = tuple(name for name in EVERY if name not in REFUSED)
LENGTH, STEPS = 67, (40, 1, 1, 1, 3, 21)
Tensors = tuple[torch.Tensor, ...]


def draw(variant: Variant, length: int, batch: int = 2, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """Inputs with as many queries as keys."""
    sizes = {"B": batch, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16, "DI": 16}
    known = {n: s for n, s in sizes.items() if n in str([str(x) for x in variant.inputs.values()])}
    return sparsec.inputs(variant, dtype=dtype, device="cpu", seed=0, T=length, **known)


def at(made: Compiled, inputs: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """The inputs of a step."""
    spec = made.decoder.spec
    units = {**dict.fromkeys(spec.fresh, 1), **{k.name: k.unit for k in spec.kept}}
    return {n: x[:, start // units[n] : stop // units[n]] if n in units else x for n, x in inputs.items()}


def decoded(made: Compiled, cache: Cache, inputs: dict[str, torch.Tensor], steps: Sequence[int]) -> Tensors:
    """The outputs of all steps, from where the cache stands."""
    found, start = [], cache.known_lengths[0]
    for count in steps:
        out = made.decode(cache, **at(made, inputs, start, start + count))
        found.append(out if isinstance(out, tuple) else (out,))
        start += count
    return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))


def forward(made: Compiled, inputs: dict[str, torch.Tensor]) -> Tensors:
    named: dict[str, Any] = dict(inputs)
    found = made(None, **named)
    return found if isinstance(found, tuple) else (found,)


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
     "infllm2-free", "dsa", "fox", "msa-strided-gated", "joined", "alibi-lse", "documents", "given-weights"],
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


@pytest.mark.parametrize("name", ["streaming", "hsa", "nsa", "msa-random"])
def test_sequences_of_different_lengths_share_a_pool(name: str) -> None:
    made, first, second = compile(small(name), "interpreter"), draw(small(name), 67, 1), draw(small(name), 50, 1)
    pool = Pool(9, 16)
    cache = made.init_cache(2, 96, pool=pool, step=8, deterministic=True)
    shared = {n: x for n, x in first.items() if n not in (*made.decoder.spec.fresh, *_kept(made))}
    second |= shared
    one = decoded(made, cache.sequences(0), first, [61])
    two = decoded(made, cache.sequences(1), second, [44])
    steps = []
    for n in range(6):
        a, b = at(made, first, 61 + n, 62 + n), at(made, second, 44 + n, 45 + n)
        both = {k: x if k in shared else _stacked(a[k], b[k]) for k, x in a.items()}
        out = made.decode(cache, **both)
        steps.append(out if isinstance(out, torch.Tensor) else out[0])
    last = torch.cat(steps, dim=1)
    alone = [made.init_cache(1, 96, page=16, step=8, deterministic=True) for _ in range(2)]
    for k, (own, inputs, done) in enumerate(zip(alone, (first, second), (one, two), strict=True)):
        whole = decoded(made, own, inputs, [own_length := done[0].shape[1], *[1] * 6])
        assert torch.equal(whole[0][:, :own_length], done[0]) and torch.equal(whole[0][:, own_length:], last[k : k + 1])
    assert cache.known_lengths == (67, 50)


def _kept(made: Compiled) -> list[str]:
    return [k.name for k in made.decoder.spec.kept]


def _stacked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Rows of two sequences; one that completes no chunk brings a row that is not read."""
    rows = max(a.shape[1], b.shape[1])
    pad = [torch.cat([x, torch.full((1, rows - x.shape[1], *x.shape[2:]), 1e3, dtype=x.dtype)], 1) for x in (a, b)]
    return torch.cat(pad, dim=0)


def test_a_sequence_that_ends_gives_its_pages_back() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH, 1)
    pool = Pool(5, 16)
    cache = made.init_cache(2, 96, pool=pool, deterministic=True)
    expected = decoded(made, cache.sequences(0), inputs, [LENGTH])
    assert pool.free == 0
    with pytest.raises(InputError, match="pool of 5 pages has 0 left"):
        made.decode(cache.sequences(1), **at(made, inputs, 0, 1))
    cache.sequences(0).free()
    assert pool.free == 5 and cache.known_lengths == (0, 0)
    assert torch.equal(decoded(made, cache.sequences(1), inputs, STEPS)[0], expected[0])


def test_new_lengths_build_no_kernel() -> None:
    """There are two sets of kernels: for few new tokens and for many."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    cache = made.init_cache(2, 96)
    decoded(made, cache, inputs, [1, 20])
    before = made.builds
    decoded(made, cache, inputs, [3, 30, 1, 12])
    assert made.builds == before


@pytest.mark.parametrize("name", ["full", "hsa", "nsa", "nsa-given", "moba", "documents"])
def test_a_cache_takes_the_bytes_that_its_spec_says(name: str) -> None:
    made = compile(small(name), "interpreter")
    cache = made.init_cache(3, 96, page=16)
    made.decode(cache, **at(made, draw(small(name), 2, 3, "bfloat16"), 0, 2))
    tables = sum(x.numel() * x.element_size() for x in cache.tables.values())
    dims = {"H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16}
    assert cache.nbytes - tables == 3 * made.decoder.spec.nbytes(dims, 96, item=2)


def test_rings_do_not_grow() -> None:
    made = compile(small("streaming"), "interpreter")
    sizes = []
    for most in (512, 4096):
        cache = made.init_cache(1, most, page=16, step=8)
        decoded(made, cache, draw(small("streaming"), 9, 1), [9])
        sizes.append(sum(x.numel() for x in cache.tensors.values()))
    assert sizes[0] == sizes[1] == (1 + 3) * 16 * 2 * 2 * 16
    assert ring_table(64, 16, 24, 3, 8) == ([0, 1, 2, 3], 4)
    assert ring_table(160, 16, 24, 0, 8) == ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 3)


def test_only_touched_windows_are_written() -> None:
    """Summaries are updated, not recomputed: what is settled may be changed behind the kernels' back and stays so."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    cache = made.init_cache(2, 96, page=16, deterministic=True)
    decoded(made, cache, inputs, [60])
    name = next(n for n in cache.tensors if n.startswith("summaries"))
    marked = cache.tensors[name]
    marked[0, 0] = 7.0
    decoded(made, cache, inputs, [1, 5])
    assert bool((marked[0, 0] == 7.0).all())


def test_tokens_can_be_taken_back() -> None:
    """As after a draft that was refused."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    caches = [made.init_cache(2, 96, page=16, deterministic=True) for _ in range(2)]
    for cache in caches:
        decoded(made, cache, inputs, [40])
    wrong = {n: x.flip(1) for n, x in inputs.items()}
    decoded(made, caches[0], wrong, [5])
    caches[0].rewind(5)
    one, other = (decoded(made, cache, inputs, [1, 20]) for cache in caches)
    assert torch.equal(one[0], other[0])
    with pytest.raises(InputError, match="rewind fewer"):
        caches[0].rewind(90)


def test_cold_pages_change_nothing_but_where_they_are() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH)
    cold, warm = (made.init_cache(2, 96, cold=flag) for flag in (True, False))
    assert torch.equal(decoded(made, cold, inputs, STEPS)[0], decoded(made, warm, inputs, STEPS)[0])
    assert cold.cold_nbytes == 2 * 2 * 128 * 2 * 16 * 4 and cold.nbytes + cold.cold_nbytes == warm.nbytes
    with pytest.raises(InputError, match="no input that is read by chosen chunks alone"):
        compile(small("streaming"), "interpreter").init_cache(1, 64, cold=True)


def test_a_million_tokens_need_no_more_than_their_landmarks() -> None:
    """Near-constant memory where kernels run: a 64th of the tokens' landmarks; the rest is cold."""
    length, variant = 2**20, sparsec.preset("hsa")
    made, sizes = compile(variant, "interpreter"), {"H": 2, "HKV": 1, "D": 16, "DV": 16, "DR": 16, "DI": 16}
    inputs = draw(variant, 1, 1) | {"r": torch.randn(1, 1, 1, 16), "q": torch.randn(1, 1, 2, 16)}
    inputs |= {"k": torch.randn(1, 1, 1, 16), "v": torch.randn(1, 1, 1, 16)}
    cache = made.init_cache(1, length, cold=True, deterministic=False)
    step = {n: x for n, x in inputs.items() if n != "l"}
    made.decode(cache, **step, l=torch.zeros(1, 0, 1, 16))
    for name, x in cache.tensors.items():
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name))))
    cache.replayed(length - 2)
    lengths = cache.lengths
    assert lengths is not None
    lengths += length - 2
    out = made.decode(cache, **step, l=torch.randn(1, 1, 1, 16))
    whole = {n: x.reshape(1, -1, 1, 16) for n, x in cache.tensors.items()}
    truth = oracle_rows(variant, {"q": inputs["q"], "r": inputs["r"], **whole}, [0], q_offset=length - 1)
    assert isinstance(out, torch.Tensor) and isinstance(truth, torch.Tensor)
    verdict = check(out, truth, "float32", "o")
    assert verdict, verdict.sentence
    assert sizes["D"] * 4 * length // 64 <= cache.nbytes < 2 * sizes["D"] * 4 * length // 64 < cache.cold_nbytes // 50


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
